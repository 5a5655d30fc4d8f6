"""Frames of the leave: what members say to each other when one of them is to leave the cluster.

Owns how these frames look; `leave_desk`, `leaver` and `adoptions` decide what is said. Integers, text and bytes16 are
as in `wire`.

    LEAVE_ORDER   u32 number, u8 verb (Verb), u32 interval in s, u32 timeout in s, u32 rate, u8 flags (1 force),
                  u16 count, text name of a target*             to the node that is to leave
    LEAVE_ANSWER  u32 number, u8 flags (1 taken), text           from it
    LEAVE_REPORT  u64 stamp of the leave, u8 state (`leaving.State`), u32 number of the line, text line, text failure,
                  u32 queues moved, u32 queues to be moved, u64 messages that are here
                                                                 from it to all, while it leaves
    LEAVE_HEARD   text host:port where clients are referred to, or nothing                    the answer to a report
    ADOPT         16 bytes store_id of the home, u8 flags (1 revive, 2 only while all others are heard), u32 count,
                  (bytes16 client id, u8 flags: 1 user name, bytes16 user name)*
                                                                 to the node that is to be their home; or of nobody, to
                                                                 all: all are adopted, and the home's other wills due
    ADOPT_LEFT    16 bytes store_id of the home, u32 how many persistent sessions have no other home, as far as I know
                                                                 the answer to an ADOPT of nobody
    DONOR         16 bytes store_id: I give the queues of this store back                       to all
    DONOR_HEARD   16 bytes store_id, number from which on mine for that store went to others, or will
                                                                 the answer
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from broker.core.storage import STORE_ID_BYTES
from cluster.frames import FRAME_BYTES_MAX, FrameType, frame_body, frame_head
from cluster.revival import Revival
from cluster.wire import FrameError, Reader, pack_bytes16, pack_text, pack_u16, pack_u32, pack_u64

_FORCE: Final = 1
_TAKEN: Final = 1
_REVIVE: Final = 1
_IF_WHOLE: Final = 2
_NAMED: Final = 1


class Verb(IntEnum):
    """What an order is about."""

    # Step 1: the MQTT listeners stop accepting.
    STOP_LISTENERS = 0
    # Step 2, with -k: the clients are disconnected and the queues moved.
    MOVE = 1
    ABORT = 2
    DRY_RUN = 3


@dataclass(slots=True, frozen=True)
class Order:
    """What an operator wants of a node. `rate` is connections closed per second, 0 for all at once.

    `targets`, if there are any, are the only nodes that queues go to by force; then other members may be down.
    """

    verb: int
    interval_s: int = 5
    timeout_s: int = 60
    rate: int = 0
    force: bool = False
    targets: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Report:
    """What a node that leaves says of that. The line with the highest number is the latest."""

    stamp: int
    state: int
    number: int = 0
    line: str = ""
    failure: str = ""
    moved: int = 0
    queues: int = 0
    messages: int = 0


@dataclass(slots=True, frozen=True)
class Orphan:
    """A session that is to have another home, and its user, without whom nobody may take it."""

    client_id: str
    user_name: str | None


def pack_order(number: int, order: Order) -> bytes:
    """Pack a LEAVE_ORDER frame."""
    return bytes(frame_head(FrameType.LEAVE_ORDER) + pack_u32(number) + pack_order_body(order))


def unpack_order(frame: bytes) -> tuple[int, Order]:
    """Return number and order of a LEAVE_ORDER frame."""
    reader = frame_body(frame, FrameType.LEAVE_ORDER)
    number = reader.u32()
    order = read_order_body(reader)
    reader.end()
    return number, order


def pack_order_body(order: Order) -> bytes:
    """Pack an order as it stands in a frame and in the store."""
    packed = bytearray((int(order.verb),)) + pack_u32(order.interval_s) + pack_u32(order.timeout_s)
    packed += pack_u32(order.rate) + bytes((_FORCE if order.force else 0,)) + pack_u16(len(order.targets))
    for name in order.targets:
        packed += pack_text(name)
    return bytes(packed)


def read_order_body(reader: Reader) -> Order:
    """Read what `pack_order_body` packed."""
    verb = reader.u8()
    if verb not in set(Verb):
        raise FrameError(f"unknown verb {verb} in an order")
    interval_s = reader.u32()
    timeout_s = reader.u32()
    rate = reader.u32()
    force = reader.u8() & _FORCE != 0
    targets = tuple([reader.node_name() for _ in range(reader.u16())])
    return Order(verb, interval_s, timeout_s, rate, force, targets)


def pack_answer(number: int, taken: bool, text: str) -> bytes:
    """Pack a LEAVE_ANSWER frame."""
    return bytes(frame_head(FrameType.LEAVE_ANSWER) + pack_u32(number) + bytes((_TAKEN if taken else 0,)) + _text(text))


def unpack_answer(frame: bytes) -> tuple[int, bool, str]:
    """Return number of the order, whether it is taken, and what is said of it."""
    reader = frame_body(frame, FrameType.LEAVE_ANSWER)
    number = reader.u32()
    taken = reader.u8() & _TAKEN != 0
    text = reader.text()
    reader.end()
    return number, taken, text


def pack_report(report: Report) -> bytes:
    """Pack a LEAVE_REPORT frame."""
    head = frame_head(FrameType.LEAVE_REPORT) + pack_u64(report.stamp) + bytes((report.state,))
    said = pack_u32(report.number) + _text(report.line) + _text(report.failure)
    return bytes(head + said + pack_u32(report.moved) + pack_u32(report.queues) + pack_u64(report.messages))


def unpack_report(frame: bytes) -> Report:
    """Return what a LEAVE_REPORT frame says."""
    reader = frame_body(frame, FrameType.LEAVE_REPORT)
    stamp = reader.number()
    state = reader.u8()
    number = reader.u32()
    line = reader.text()
    failure = reader.text()
    moved = reader.u32()
    queues = reader.u32()
    messages = reader.u64()
    reader.end()
    return Report(stamp, state, number, line, failure, moved, queues, messages)


def pack_heard(reference: str) -> bytes:
    """Pack a LEAVE_HEARD frame."""
    return bytes(frame_head(FrameType.LEAVE_HEARD) + pack_text(reference))


def unpack_heard(frame: bytes) -> str:
    """Return where the sender's clients are referred to."""
    reader = frame_body(frame, FrameType.LEAVE_HEARD)
    reference = reader.text()
    reader.end()
    return reference


def pack_adopts(home: bytes, revival: Revival, orphans: list[Orphan]) -> list[bytes]:
    """Pack ADOPT frames, as many as it takes; `home` is the store id of who has the sessions."""
    frames = []
    parts: list[bytes] = []
    size = 0
    for orphan in orphans:
        part = pack_bytes16(orphan.client_id.encode()) + bytes((0 if orphan.user_name is None else _NAMED,))
        part += pack_bytes16((orphan.user_name or "").encode())
        if size + len(part) > FRAME_BYTES_MAX - 64:
            frames.append(_adopt(home, revival, parts))
            parts = []
            size = 0
        parts.append(part)
        size += len(part)
    if parts or not frames:
        frames.append(_adopt(home, revival, parts))
    return frames


def unpack_adopt(frame: bytes) -> tuple[bytes, Revival, list[Orphan]]:
    """Return what an ADOPT frame says: the home, when sessions are revived if that is away, and which."""
    reader = frame_body(frame, FrameType.ADOPT)
    home = reader.take(STORE_ID_BYTES)
    flags = reader.u8()
    revival = Revival.NEVER
    if flags & _REVIVE:
        revival = Revival.IF_WHOLE if flags & _IF_WHOLE else Revival.ALWAYS
    orphans = []
    for _ in range(reader.u32()):
        client_id = reader.text()
        named = reader.u8() & _NAMED != 0
        user_name = reader.text()
        orphans.append(Orphan(client_id, user_name if named else None))
    reader.end()
    return home, revival, orphans


def pack_adopt_left(home: bytes, count: int) -> bytes:
    """Pack an ADOPT_LEFT frame; `home` is the store id of who has the sessions."""
    return bytes(frame_head(FrameType.ADOPT_LEFT)) + home + pack_u32(count)


def unpack_adopt_left(frame: bytes) -> tuple[bytes, int]:
    """Return the home, and how many of its sessions have no other one as far as the sender knows."""
    reader = frame_body(frame, FrameType.ADOPT_LEFT)
    home = reader.take(STORE_ID_BYTES)
    count = reader.u32()
    reader.end()
    return home, count


def pack_donor(store_id: bytes) -> bytes:
    """Pack a DONOR frame."""
    return bytes(frame_head(FrameType.DONOR)) + store_id


def unpack_donor(frame: bytes) -> bytes:
    """Return the store id of which a donor has the queues."""
    reader = frame_body(frame, FrameType.DONOR)
    store_id = reader.take(STORE_ID_BYTES)
    reader.end()
    return store_id


def pack_donor_heard(store_id: bytes, number: int) -> bytes:
    """Pack a DONOR_HEARD frame."""
    return bytes(frame_head(FrameType.DONOR_HEARD)) + store_id + pack_u64(number)


def unpack_donor_heard(frame: bytes) -> tuple[bytes, int]:
    """Return the store id, and from which number on the sender's messages for it went to others."""
    reader = frame_body(frame, FrameType.DONOR_HEARD)
    store_id = reader.take(STORE_ID_BYTES)
    number = reader.number()
    reader.end()
    return store_id, number


def _adopt(home: bytes, revival: Revival, parts: list[bytes]) -> bytes:
    flags = (0 if revival == Revival.NEVER else _REVIVE) | (_IF_WHOLE if revival == Revival.IF_WHOLE else 0)
    head = frame_head(FrameType.ADOPT) + home + bytes((flags,)) + pack_u32(len(parts))
    return bytes(head) + b"".join(parts)


def _text(text: str) -> bytes:
    """Pack a text for people, which may be cut."""
    return pack_text(text if len(text) < 16_000 else text[:16_000] + " ...")
