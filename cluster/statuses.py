"""Statuses: what an operator wants to see of every node, which only the node itself knows.

Owns who was asked and what was answered, and how the frames look; integers and text are as in `wire`. What a node says
of itself its caller knows.

    LOOK    u32 number
    STATUS  u32 number, u64 sessions, u64 queued messages, text version of the program

A look ends when all running members have answered, or after LOOK_TIMEOUT_S without those that have not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from cluster.frames import FrameType, frame_body, frame_head
from cluster.peers import Peer, Peers
from cluster.wire import pack_text, pack_u32, pack_u64

LOOK_TIMEOUT_S: Final = 2.0


@dataclass(slots=True, frozen=True)
class NodeStatus:
    """What a node says of itself."""

    sessions: int
    queued_messages: int
    version: str


@final
class Statuses:
    """The look of this node's operator, and the answers to others'."""

    def __init__(self, peers: Peers) -> None:
        # What this node says of itself; whoever makes this says how to know.
        self.own: Callable[[], NodeStatus] = _unknown
        self._peers = peers
        self._number = 0
        self._asked: set[str] = set()
        self._answers: dict[str, NodeStatus] = {}
        self._until = math.inf
        self._result: dict[str, NodeStatus] | None = None

    def look(self, now: float) -> None:
        """Ask every running member; `take_result` has the answers within LOOK_TIMEOUT_S."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._result = None
        self._answers = {self._peers.membership.name: self.own()}
        self._asked = set()
        self._until = now + LOOK_TIMEOUT_S
        for name, peer in self._peers.all.items():
            if peer.running:
                self._asked.add(name)
                self._peers.send(peer, pack_look(self._number))

    def take_result(self) -> dict[str, NodeStatus] | None:
        """Return the answers by node name, once there are no more to come."""
        result = self._result
        self._result = None
        return result

    def receive_look(self, peer: Peer, frame: bytes, now: float) -> None:
        """A member's operator wants to see."""
        self._peers.send(peer, pack_status(unpack_look(frame), self.own()))

    def receive_status(self, peer: Peer, frame: bytes, now: float) -> None:
        """A member has answered."""
        number, status = unpack_status(frame)
        if number == self._number:
            self._answers[peer.name] = status

    def tick(self, now: float) -> None:
        """End the look when it is over."""
        if self._until < math.inf and (self._asked <= set(self._answers) or now >= self._until):
            self._until = math.inf
            self._result = self._answers

    def deadline(self) -> float:
        """Return when `tick` has something to do; what arrives makes something due as well."""
        return self._until


def pack_look(number: int) -> bytes:
    """Pack a LOOK frame."""
    return bytes(frame_head(FrameType.LOOK) + pack_u32(number))


def unpack_look(frame: bytes) -> int:
    """Return the number of a LOOK frame."""
    reader = frame_body(frame, FrameType.LOOK)
    number = reader.u32()
    reader.end()
    return number


def pack_status(number: int, status: NodeStatus) -> bytes:
    """Pack a STATUS frame."""
    packed = frame_head(FrameType.STATUS) + pack_u32(number) + pack_u64(status.sessions)
    return bytes(packed + pack_u64(status.queued_messages) + pack_text(status.version))


def unpack_status(frame: bytes) -> tuple[int, NodeStatus]:
    """Return number and status of a STATUS frame."""
    reader = frame_body(frame, FrameType.STATUS)
    number = reader.u32()
    sessions = reader.u64()
    queued_messages = reader.u64()
    version = reader.text()
    reader.end()
    return number, NodeStatus(sessions, queued_messages, version)


def _unknown() -> NodeStatus:
    return NodeStatus(0, 0, "")
