"""The frames of registration: how turns are asked for, granted, given back and told of.

Owns how each looks. What they are for stands in `registration`.

Grammar
-------
Integers, number, text and pair are as in `wire`, frame as in `frames`.

    epoch        = number counter, u64 stamp, 16 bytes store_id

    TURN_REQUEST (number request, text client id)*
    TURN_GRANT   (number round, number request, text client id, epoch)*
    TURN_RELEASE (number request, text client id, epoch)*
    TURN_SURVEY  number round
    TURNS_HELD   number round, u64 view, u32 part, u8 flags (1 last), u32 count, (number request, text client id)*

The items of a frame, one at least, follow each other to its end. A request's number is the asker's, a round the
keeper's; both grow over their owner's restarts. Everything that is held is told in parts, which count from 0, each
within FRAME_BYTES_MAX.
"""

from dataclasses import dataclass
from typing import Final

from cluster.epoch import Epoch, pack_epoch, read_epoch
from cluster.frames import FRAME_BYTES_MAX, FRAME_VERSION, FrameType, frame_type
from cluster.wire import FrameError, Reader, pack_text, pack_u32, pack_u64

# Room for the head, so that a part with it stays within a frame. A client id has at most 64 KiB: any fits.
_PART_BYTES_MAX: Final = FRAME_BYTES_MAX - 64


@dataclass(slots=True, frozen=True)
class TurnRequest:
    """I want the turn of this client id; sent again it asks whether the grant was lost."""

    number: int
    client_id: str


@dataclass(slots=True, frozen=True)
class TurnGrant:
    """The turn is yours; sent again it asks whether you still have it. `epoch` is the highest that I know."""

    round: int
    number: int
    client_id: str
    epoch: Epoch


@dataclass(slots=True, frozen=True)
class TurnRelease:
    """I don't have or want the turn (any more). `epoch` is what came of it, NO_EPOCH if nothing did."""

    number: int
    client_id: str
    epoch: Epoch


@dataclass(slots=True, frozen=True)
class TurnsHeld:
    """One part of the turns that I hold, as (request, client id); `view` is the digest of who runs in my eyes."""

    round: int
    view: int
    part: int
    last: bool
    held: list[tuple[int, str]]


def _head(kind: FrameType) -> bytes:
    return bytes((FRAME_VERSION, int(kind)))


def _body(frame: bytes, kind: FrameType) -> Reader:
    if frame_type(frame) != kind:
        raise FrameError(f"frame type {frame[1]} where {kind.name} was expected")
    return Reader(frame, 2)


def pack_turns(kind: FrameType, items: list[bytes]) -> list[bytes]:
    """Pack the packed items of one kind into the frames that they take."""
    frames: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for item in items:
        if size and size + len(item) > _PART_BYTES_MAX:
            frames.append(_head(kind) + b"".join(batch))
            batch = []
            size = 0
        batch.append(item)
        size += len(item)
    if batch:
        frames.append(_head(kind) + b"".join(batch))
    return frames


def pack_turn_request(request: TurnRequest) -> bytes:
    """Pack one item of a TURN_REQUEST frame."""
    return pack_u64(request.number) + pack_text(request.client_id)


def unpack_turn_requests(frame: bytes) -> list[TurnRequest]:
    """Unpack a TURN_REQUEST frame."""
    reader = _body(frame, FrameType.TURN_REQUEST)
    requests: list[TurnRequest] = []
    while not requests or reader.left():
        requests.append(TurnRequest(reader.number(), reader.text()))
    return requests


def pack_turn_grant(grant: TurnGrant) -> bytes:
    """Pack one item of a TURN_GRANT frame."""
    return pack_u64(grant.round) + pack_u64(grant.number) + pack_text(grant.client_id) + pack_epoch(grant.epoch)


def unpack_turn_grants(frame: bytes) -> list[TurnGrant]:
    """Unpack a TURN_GRANT frame."""
    reader = _body(frame, FrameType.TURN_GRANT)
    grants: list[TurnGrant] = []
    while not grants or reader.left():
        grants.append(TurnGrant(reader.number(), reader.number(), reader.text(), read_epoch(reader)))
    return grants


def pack_turn_release(release: TurnRelease) -> bytes:
    """Pack one item of a TURN_RELEASE frame."""
    return pack_u64(release.number) + pack_text(release.client_id) + pack_epoch(release.epoch)


def unpack_turn_releases(frame: bytes) -> list[TurnRelease]:
    """Unpack a TURN_RELEASE frame."""
    reader = _body(frame, FrameType.TURN_RELEASE)
    releases: list[TurnRelease] = []
    while not releases or reader.left():
        releases.append(TurnRelease(reader.number(), reader.text(), read_epoch(reader)))
    return releases


def pack_turn_survey(round_number: int) -> bytes:
    """Pack a TURN_SURVEY frame."""
    return _head(FrameType.TURN_SURVEY) + pack_u64(round_number)


def unpack_turn_survey(frame: bytes) -> int:
    """Unpack a TURN_SURVEY frame; return its round."""
    reader = _body(frame, FrameType.TURN_SURVEY)
    round_number = reader.number()
    reader.end()
    return round_number


def pack_turns_held(round_number: int, view: int, held: list[tuple[int, str]]) -> list[bytes]:
    """Pack everything that is held into the TURNS_HELD frames that it takes, one at least."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for number, client_id in held:
        packed = pack_u64(number) + pack_text(client_id)
        if size + len(packed) > _PART_BYTES_MAX:
            parts.append([])
            size = 0
        parts[-1].append(packed)
        size += len(packed)
    head = _head(FrameType.TURNS_HELD) + pack_u64(round_number) + pack_u64(view)
    last = len(parts) - 1
    return [
        head + pack_u32(part) + bytes((1 if part == last else 0,)) + pack_u32(len(packed)) + b"".join(packed)
        for part, packed in enumerate(parts)
    ]


def unpack_turns_held(frame: bytes) -> TurnsHeld:
    """Unpack a TURNS_HELD frame."""
    reader = _body(frame, FrameType.TURNS_HELD)
    round_number = reader.number()
    view = reader.u64()
    part = reader.u32()
    last = reader.u8() & 1 != 0
    held = []
    for _ in range(reader.u32()):
        number = reader.number()
        held.append((number, reader.text()))
    reader.end()
    return TurnsHeld(round_number, view, part, last, held)
