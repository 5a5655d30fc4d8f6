"""Admission: who becomes a member, here and elsewhere.

Owns the answers to Hello (on the join key and on a member's own), the invitations that are out, and the outcome of
an operator's join. When to ask and when to invite is decided by `joining`; what comes of a new member is the peers'.

The join key is known to every holder of the cookie and so proves nothing but that. All it may carry is Hello, and
all that it brings is a Refused, or a Welcome and the admission of the key of the name in it; and Who, which brings this
node's name.
"""

import math
from dataclasses import dataclass
from typing import Final, final

from cluster.commands import Admit, Reply, Revoke, SendJoin
from cluster.frames import (
    FRAME_VERSION,
    MESH_VERSION_NEWEST,
    MESH_VERSION_OLDEST,
    FrameType,
    Hello,
    Refusal,
    Welcome,
    frame_type,
    pack_name,
    pack_refused,
    pack_welcome,
    pack_who,
    unpack_hello,
    unpack_name,
    unpack_refused,
    unpack_welcome,
)
from cluster.joining import INVITATION_S, JOIN_TIMEOUT_S, Joining, JoinResult, JoinState, Purpose
from cluster.membership import Member, State, removed_text
from cluster.peers import Peers
from cluster.turn import Turn

# Names that may be invited at a time; more ask again. Every invitation is a key that is admitted.
INVITATIONS_MAX: Final = 256


@dataclass(slots=True, frozen=True)
class Invitation:
    """A node that was welcomed and has not come yet with its own key."""

    member: Member
    until: float


@final
class Admission:
    """Who may come in, and how this node's own attempts end."""

    def __init__(self, peers: Peers, joining: Joining, turn: Turn) -> None:
        self._peers = peers
        self._membership = peers.membership
        self._joining = joining
        self._turn = turn
        self._invitations: dict[str, Invitation] = {}
        # Of an operator's join: the members that have to be complete, the time it has, and its outcome.
        self._waits: list[str] = []
        self._until = math.inf
        self._result: JoinResult | None = None

    def join(self, node: str, address: str, now: float) -> None:
        """Begin to join the cluster of `node`; `take_result` has the outcome within JOIN_TIMEOUT_S."""
        self._result = None
        self._until = now + JOIN_TIMEOUT_S
        self._waits = []
        if node == self._membership.name:
            self._finish(False, f"{node} can't join itself")
            return
        self._joining.join(node, address, now)
        self.settle(now)

    def take_result(self) -> JoinResult | None:
        """Return the outcome of `join` once it is decided."""
        result = self._result
        self._result = None
        return result

    def connected(self, now: float) -> None:
        """The connection with the join key is up: introduce this node, if it still wants to."""
        if self._joining.connected(self._hosting(), self._membership.alone(), now):
            hello = self._peers.hello(0, self._joining.purpose == Purpose.DISCOVERY)
            self._turn.commands.append(SendJoin(hello if self._joining.target else pack_who()))

    def failed(self, text: str, now: float) -> None:
        """The connection with the join key can't be had."""
        self._joining.failed(text, now)

    def receive_stranger(self, connection: bytes, frame: bytes, now: float) -> None:
        """A frame on the join key: nothing but Hello and Who is heard."""
        if len(frame) == 2 and frame_type(frame) == FrameType.WHO:
            self._turn.commands.append(Reply(connection, pack_name(self._membership.name)))
            return
        if len(frame) < 2 or frame[1] != FrameType.HELLO:
            self._turn.count("frames_of_strangers")
            return
        hello = unpack_hello(frame)
        text = self._refusal(hello)
        if not text and hello.clustered and hello.cluster_id != self._peers.cluster_id:
            text = f"{hello.name} is already in a cluster with others; it has to leave that cluster first"
        if text:
            self._refuse(connection, hello, text)
            return
        if hello.name not in self._peers.all:
            reason = self._invite(hello, now)
            if reason is not None:
                self._turn.commands.append(Reply(connection, pack_refused(reason, "ask again")))
                return
        self._turn.commands.append(Admit(hello.name))
        running = [name for name, peer in self._peers.all.items() if peer.running and name != hello.name]
        welcome = Welcome(
            self._peers.cluster_id,
            self._peers.members(),
            sorted(self._membership.removed),
            sorted([*running, self._membership.name]),
        )
        self._turn.commands.append(Reply(connection, pack_welcome(welcome)))

    def receive_member(self, node: str, connection: bytes, hello: Hello, now: float) -> bool:
        """A Hello on the key of `node`: true if it is a member, which an invited node becomes hereby."""
        text = self._refusal(hello)
        if hello.name != node:
            text = f"the key is that of {node}, the Hello of {hello.name}"
        elif not text and hello.cluster_id != self._peers.cluster_id:
            text = f"{self._membership.name} is in another cluster"
        invitation = self._invitations.get(node)
        if not text and invitation is not None and invitation.member.store_id == hello.store_id:
            # It has adopted the cluster: from now on it is a member.
            del self._invitations[node]
            self._peers.merge([invitation.member], [], now)
            self._peers.tell_members(now)
            self._turn.note(f"{node} at {hello.address} joined the cluster")
        if not text and node not in self._peers.all:
            text = f"{node} is not a member of this cluster"
        if text:
            if self._peers.is_removed(node, hello.store_id):
                # It is leaving, and waits to hear that this node knows; or it is back, which it hears first.
                self._turn.commands.append(Reply(connection, pack_refused(Refusal.REMOVED, text)))
            else:
                self._refuse(connection, hello, text)
            return False
        return True

    def receive_answer(self, frame: bytes, now: float) -> None:
        """The node that this node asked with the join key answered."""
        joining = self._joining
        if frame and frame[0] != FRAME_VERSION:
            # Whatever it says, it has read the Hello, and can't talk to this program.
            text = f"it speaks version {frame[0]} of the protocol, this node speaks version {FRAME_VERSION}"
            joining.refused(Refusal.FINAL, text, now)
            return
        kind = frame_type(frame)
        if kind == FrameType.REFUSED:
            refused = unpack_refused(frame)
            if refused.reason == Refusal.REMOVED:
                self._turn.removed_by.add(joining.target)
            joining.refused(refused.reason, refused.text, now)
            return
        if kind == FrameType.NAME:
            joining.named(unpack_name(frame), now)
            return
        if kind != FrameType.WELCOME or joining.state != JoinState.ASKING:
            return
        welcome = unpack_welcome(frame)
        if welcome.cluster_id != self._peers.cluster_id:
            if not self._membership.alone():
                # An answer to an introduction from a cluster that is not ours.
                joining.refused(Refusal.FINAL, "it is in another cluster", now)
                return
            self._peers.adopt(welcome.cluster_id)
            self._turn.note(f"joining the cluster of {joining.target}")
        self._peers.retry(now)
        self._peers.merge(welcome.members, welcome.removed, now)
        if joining.purpose == Purpose.OPERATOR:
            self._waits = [name for name in welcome.running if name != self._membership.name]
        joining.welcomed(now)

    def tick(self, now: float) -> None:
        """Begin what is due, end what takes too long."""
        for name in [name for name, invitation in self._invitations.items() if now >= invitation.until]:
            del self._invitations[name]
            if name not in self._peers.all:
                self._turn.commands.append(Revoke(name))
        self._joining.tick(self._membership.alone(), self._hosting(), now)
        self.settle(now)

    def settle(self, now: float) -> None:
        """End the operator's join if it can be said how."""
        joining = self._joining
        node = joining.operator_target
        if not node:
            return
        if joining.failure:
            self._finish(False, joining.failure)
        elif self._membership.alone():
            if now >= self._until:
                self._finish(False, f"{node} did not take this node in within {JOIN_TIMEOUT_S:.0f} s")
        elif node not in self._peers.all:
            others = ", ".join(member.name for member in self._membership.others())
            self._finish(False, f"this node is already in a cluster with others ({others}); let it leave first")
        else:
            waits = self._waits if node in self._waits else [*self._waits, node]
            missing = [name for name in waits if not self._peers.is_complete(name)]
            if not missing:
                self._finish(True, "")
            elif now >= self._until:
                self._finish(
                    False,
                    f"this node is a member now, but within {JOIN_TIMEOUT_S:.0f} s the links and tables of "
                    f"{', '.join(sorted(missing))} did not become complete",
                )

    def deadline(self) -> float:
        """Return when `tick` has something to do."""
        deadline = self._joining.deadline(self._membership.alone(), self._hosting())
        if self._joining.operator_target:
            deadline = min(deadline, self._until)
        for invitation in self._invitations.values():
            deadline = min(deadline, invitation.until)
        return deadline

    def _invite(self, hello: Hello, now: float) -> Refusal | None:
        """Invite the sender of an acceptable Hello, or return what to answer instead."""
        if hello.cluster_id != self._peers.cluster_id:
            reason = self._joining.may_invite(hello, self._membership.alone(), self._hosting())
            if reason is not None:
                return reason
        if hello.name not in self._invitations and len(self._invitations) >= INVITATIONS_MAX:
            return Refusal.BUSY
        invited = Member(hello.name, hello.store_id, hello.incarnation, hello.address, State.ALIVE)
        self._invitations[hello.name] = Invitation(invited, now + INVITATION_S)
        self._joining.invited_somebody(now)
        return None

    def _refuse(self, connection: bytes, hello: Hello, text: str) -> None:
        is_removed = self._peers.is_removed(hello.name, hello.store_id)
        reason = Refusal.REMOVED if is_removed else Refusal.FINAL
        self._turn.count("hellos_refused")
        # It asks again for as long as it lives; its operator reads the reason over there.
        self._turn.note_once(f"refused {hello.name}", f"refused {hello.name} at {hello.address}: {text}")
        self._turn.commands.append(Reply(connection, pack_refused(reason, text)))

    def _refusal(self, hello: Hello) -> str:
        if hello.oldest > MESH_VERSION_NEWEST or hello.newest < MESH_VERSION_OLDEST:
            return (
                f"{hello.name} speaks mesh versions {hello.oldest} to {hello.newest}, "
                f"{self._membership.name} speaks {MESH_VERSION_OLDEST} to {MESH_VERSION_NEWEST}: no version in common"
            )
        text = self._membership.refusal(hello.name, hello.store_id)
        if not text and self._peers.is_removed(hello.name, hello.store_id):
            text = removed_text(hello.name)
        return text

    def _hosting(self) -> bool:
        """Say whether somebody holds an invitation of this node, which is still alone."""
        return bool(self._invitations) and self._membership.alone()

    def _finish(self, joined: bool, text: str) -> None:
        self._result = JoinResult(joined, text)
        self._until = math.inf
        self._joining.settle()
