"""The hand-over: what a node that leaves has in its outboxes for members that are down, given to one that runs.

Owns both halves of it. Each message goes with the store id of whom it is for; who takes it forwards it to that member
in its own stream, which is to its outbox, and answers when that is committed. The message keeps its id, and its address
says where it stood in the stream of the node that leaves.

    the node that leaves   HAND_OVER(store id, after, number, message) -->  a target
    the target             HANDED(store id, number) -->                     behind its commit

    HAND_OVER  16 bytes store_id of whom it is for, number of the message before it in the outbox, 0 for the first of
               a part, number of its own, bytes32 address as in `addressing`, 24 bytes message id, message as in
               `stored_message`                                                                bulk
    HANDED     16 bytes store_id, number                                                       control

One part is under way at a time, and begins behind all that the target has answered for. Frames of it may be lost; the
target takes nothing behind a hole, and the rest is said again.

Nothing leaves the outbox for that: the member may have been sent some of it before it went down, and may be back before
the node is gone, which then sends what it has as ever. Nor is it known what a target has that dies before it has
answered. So several may have the same message, and the member decides which one it takes: what everybody has begins
with the first that the member lacks, and goes on in the order of the stream, so that whatever is beyond the last that
it took, from anybody, is new, and the rest is not. That is why another target is given everything, from the first on.
What was taken over and is handed over again stays where it stood first.
"""

from collections.abc import Callable
from typing import Final, final

from broker.core.message import Message
from broker.core.storage import STORE_ID_BYTES
from broker.core.stored_message import MESSAGE_KEY_BYTES, UNREADABLE, pack_message, unpack_message
from cluster.addressing import pack_address, unpack_address
from cluster.frames import FrameType, frame_body, frame_head
from cluster.mesh import Mesh
from cluster.move_frames import relative_clock
from cluster.wire import NUMBER_MAX, FrameError, pack_bytes32, pack_u64

PART_BYTES: Final = 256 * 1024
AGAIN_S: Final = 1.0


@final
class HandOver:
    """The outboxes of this node that are given away, and what is taken of others'."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        # By the store id of whom it is for: the last number that was taken, and the last that was said.
        self._taken: dict[bytes, int] = {}
        self._said: dict[bytes, int] = {}
        self._said_at = 0.0
        self._target = ""
        # Of others: the last number of (who leaves, whom it is for), by their store ids.
        self._received: dict[tuple[bytes, bytes], int] = {}
        self._frames: Final[dict[int, Callable[[str, bytes, float], None]]] = {
            FrameType.HAND_OVER: self._receive,
            FrameType.HANDED: self._receive_handed,
        }

    def handles(self, kind: int) -> bool:
        """Say whether a frame is for this."""
        return kind in self._frames

    def receive(self, node: str, frame: bytes, now: float) -> None:
        """Take a frame of a member; FrameError if it can't be read."""
        self._frames[frame[1]](node, frame, now)

    def begin(self, targets: list[str], now: float) -> bool:
        """Give on to one of `targets`; say whether nothing is left. Everything that was written must be committed."""
        if self._target not in targets:
            self._target = targets[0]
            self._taken = {}
            self._said = {}
        own = self._mesh.membership.own().store_id
        is_done = True
        for peer in self._mesh.peers.values():
            if peer.running:
                # It gets from here what it lacks.
                is_done = is_done and not peer.outgoing.outbox.messages
                continue
            store_id = peer.store_id
            taken = self._taken.get(store_id, 0)
            if self._said.get(store_id, 0) > taken and now < self._said_at + AGAIN_S:
                is_done = False
                continue
            part = peer.outgoing.outbox.read(taken + 1, NUMBER_MAX - 1, PART_BYTES)
            after = 0
            for stored in part:
                stood = stored.stood or (own, stored.number)
                address = pack_address(stored.groups, stored.plain, stored.waited, stood)
                frame = pack_hand_over(store_id, after, stored.number, address, stored.message, now)
                self._mesh.send(self._target, frame)
                after = self._said[store_id] = stored.number
            if part:
                self._said_at = now
                is_done = False
        return is_done

    def _receive(self, node: str, frame: bytes, now: float) -> None:
        store_id, after, number, address, message = unpack_hand_over(frame, now)
        key = (self._mesh.peers[node].store_id, store_id)
        received = self._received.get(key, 0)
        if number > received:
            if after and after != received:
                return
            self._received[key] = number
            for name, peer in self._mesh.peers.items():
                if peer.store_id == store_id:
                    self._mesh.forward(name, message, None, now, True, address)
        self._mesh.tell(node, pack_handed(store_id, number))

    def _receive_handed(self, node: str, frame: bytes, now: float) -> None:
        store_id, number = unpack_handed(frame)
        if node == self._target and number <= self._said.get(store_id, 0):
            self._taken[store_id] = max(self._taken.get(store_id, 0), number)


def pack_hand_over(store_id: bytes, after: int, number: int, address: bytes, message: Message, now: float) -> bytes:
    """Pack a HAND_OVER frame."""
    head = bytes(frame_head(FrameType.HAND_OVER)) + store_id + pack_u64(after) + pack_u64(number)
    return head + pack_bytes32(address) + message.key() + pack_message(message, relative_clock(now))


def unpack_hand_over(frame: bytes, now: float) -> tuple[bytes, int, int, bytes, Message]:
    """Return whom a message is for, the number before it, its number in the outbox, its address, and the message."""
    reader = frame_body(frame, FrameType.HAND_OVER)
    store_id = reader.take(STORE_ID_BYTES)
    after = reader.number()
    number = reader.number()
    address = reader.bytes32()
    if address and unpack_address(address, 0)[-1] != len(address):
        raise FrameError("an address with something behind its end")
    key = reader.take(MESSAGE_KEY_BYTES)
    body = reader.rest()
    try:
        return store_id, after, number, address, unpack_message(key, body, 0, relative_clock(now))
    except UNREADABLE as error:
        raise FrameError(f"malformed HAND_OVER: {error}") from None


def pack_handed(store_id: bytes, number: int) -> bytes:
    """Pack a HANDED frame."""
    return bytes(frame_head(FrameType.HANDED)) + store_id + pack_u64(number)


def unpack_handed(frame: bytes) -> tuple[bytes, int]:
    """Return whom it is for, and the number in the outbox."""
    reader = frame_body(frame, FrameType.HANDED)
    store_id = reader.take(STORE_ID_BYTES)
    number = reader.number()
    reader.end()
    return store_id, number
