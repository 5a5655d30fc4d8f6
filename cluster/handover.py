"""The hand-over: what a node that leaves has in its outboxes for members that are down, given to one that runs.

Owns both halves of it. Each message goes with the store id of whom it is for; who takes it forwards it to that member
as its own, which is to its outbox, and answers when that is committed. The message keeps its id.

    the node that leaves   HAND_OVER(store id, number, message) -->  a target
    the target             HANDED(store id, number) -->              behind its commit

    HAND_OVER  16 bytes store_id of whom it is for, number in the outbox, bytes32 address as in `addressing`,
               24 bytes message id, message as in `stored_message`                             bulk
    HANDED     16 bytes store_id, number                                                       control

One part is under way at a time. A target that dies before it has answered for a part is replaced, and the part said
again; then something may come twice.
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
        # Of others: the last number of (who leaves, whom it is for).
        self._received: dict[tuple[str, bytes], int] = {}
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

    def begin(self, target: str, now: float) -> bool:
        """Give on; say whether nothing is left. Everything that was written must be committed."""
        is_done = True
        for name, peer in self._mesh.peers.items():
            if peer.running or name == target:
                continue
            store_id = peer.store_id
            taken = self._taken.get(store_id, 0)
            if self._said.get(store_id, 0) > taken and now < self._said_at + AGAIN_S:
                is_done = False
                continue
            part = peer.outgoing.outbox.read(taken + 1, NUMBER_MAX - 1, PART_BYTES)
            for stored in part:
                address = pack_address(stored.groups, stored.plain, stored.waited)
                self._mesh.send(target, pack_hand_over(store_id, stored.number, address, stored.message, now))
                self._said[store_id] = stored.number
            if part:
                self._said_at = now
                is_done = False
        return is_done

    def _receive(self, node: str, frame: bytes, now: float) -> None:
        store_id, number, address, message = unpack_hand_over(frame, now)
        key = (node, store_id)
        if number > self._received.get(key, 0):
            self._received[key] = number
            for name, peer in self._mesh.peers.items():
                if peer.store_id == store_id:
                    self._mesh.forward(name, message, None, now, True, address)
        self._mesh.tell(node, pack_handed(store_id, number))

    def _receive_handed(self, node: str, frame: bytes, now: float) -> None:
        store_id, number = unpack_handed(frame)
        if number <= self._said.get(store_id, 0):
            self._taken[store_id] = max(self._taken.get(store_id, 0), number)


def pack_hand_over(store_id: bytes, number: int, address: bytes, message: Message, now: float) -> bytes:
    """Pack a HAND_OVER frame."""
    head = bytes(frame_head(FrameType.HAND_OVER)) + store_id + pack_u64(number) + pack_bytes32(address)
    return head + message.key() + pack_message(message, relative_clock(now))


def unpack_hand_over(frame: bytes, now: float) -> tuple[bytes, int, bytes, Message]:
    """Return whom a message is for, its number in the outbox, its address, and the message."""
    reader = frame_body(frame, FrameType.HAND_OVER)
    store_id = reader.take(STORE_ID_BYTES)
    number = reader.number()
    address = reader.bytes32()
    if address and unpack_address(address, 0)[3] != len(address):
        raise FrameError("an address with something behind its end")
    key = reader.take(MESSAGE_KEY_BYTES)
    body = reader.rest()
    try:
        return store_id, number, address, unpack_message(key, body, 0, relative_clock(now))
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
