"""cluster.registration_frames and epoch: what is packed is unpacked, and every shorter or stranger frame is refused."""

import itertools

import pytest
import recorded_frames

from cluster.epoch import NO_EPOCH, Epoch
from cluster.frames import FRAME_BYTES_MAX, FrameType
from cluster.registration_frames import (
    TurnGrant,
    TurnRelease,
    TurnRequest,
    TurnsHeld,
    pack_turn_grant,
    pack_turn_release,
    pack_turn_request,
    pack_turn_survey,
    pack_turns,
    pack_turns_held,
    unpack_turn_grants,
    unpack_turn_releases,
    unpack_turn_requests,
    unpack_turn_survey,
    unpack_turns_held,
)
from cluster.wire import FrameError

STORE = bytes(range(16))
EPOCH = Epoch(7, 2**64 - 1, STORE)
NUMBER = 3 << 40 | 9
HELD = [(NUMBER, "ü"), (NUMBER + 1, "")]

REQUEST = TurnRequest(NUMBER, "ü")
GRANT = TurnGrant(1 << 32, NUMBER, "ü", EPOCH)
RELEASE = TurnRelease(NUMBER, "ü", NO_EPOCH)


def only(kind, item):
    (frame,) = pack_turns(kind, [item])
    return frame


TABLE = {
    "TURN_REQUEST": (only(FrameType.TURN_REQUEST, pack_turn_request(REQUEST)), unpack_turn_requests, [REQUEST]),
    "TURN_GRANT": (only(FrameType.TURN_GRANT, pack_turn_grant(GRANT)), unpack_turn_grants, [GRANT]),
    "TURN_RELEASE": (only(FrameType.TURN_RELEASE, pack_turn_release(RELEASE)), unpack_turn_releases, [RELEASE]),
    "TURN_SURVEY": (pack_turn_survey(1 << 32 | 5), unpack_turn_survey, 1 << 32 | 5),
    "TURNS_HELD": (
        pack_turns_held(1 << 32, 2**64 - 1, HELD)[0],
        unpack_turns_held,
        TurnsHeld(1 << 32, 2**64 - 1, 0, True, HELD),
    ),
}


@pytest.mark.parametrize("kind", TABLE)
def test_frames_come_out_as_they_went_in(kind):
    frame, unpack, value = TABLE[kind]
    assert unpack(frame) == value
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            unpack(frame[:end])
    with pytest.raises(FrameError):
        unpack(frame + b"\0")
    with pytest.raises(FrameError):
        unpack(b"\x02" + frame[1:])


@pytest.mark.parametrize("kind", TABLE)
def test_the_recorded_frames_are_read_and_packed(kind):
    recorded = bytes.fromhex(dict(recorded_frames.VERSION_1)[kind])
    frame, unpack, value = TABLE[kind]
    assert recorded[1] == FrameType[kind]
    assert unpack(recorded) == value
    assert frame == recorded


def test_numbers_that_could_not_be_counted_on_are_refused():
    beyond = (2**63).to_bytes(8, "big")
    for kind, number in (
        ("TURN_REQUEST", NUMBER),
        ("TURN_GRANT", 1 << 32),
        ("TURN_GRANT", 7),
        ("TURN_SURVEY", 1 << 32 | 5),
        ("TURNS_HELD", NUMBER + 1),
    ):
        frame, unpack, _ = TABLE[kind]
        with pytest.raises(FrameError, match="out of range"):
            unpack(frame.replace(number.to_bytes(8, "big"), beyond, 1))


def test_a_client_id_that_is_no_text_is_refused():
    with pytest.raises(FrameError, match="UTF-8"):
        unpack_turn_requests(TABLE["TURN_REQUEST"][0].replace("ü".encode(), b"\xff\xff"))


def test_many_requests_go_in_frames_that_fit():
    requests = [TurnRequest(number, "x" * 65535) for number in range(9)]
    frames = pack_turns(FrameType.TURN_REQUEST, [pack_turn_request(each) for each in requests])
    assert len(frames) == 3 and max(map(len, frames)) <= FRAME_BYTES_MAX
    assert [each for frame in frames for each in unpack_turn_requests(frame)] == requests
    assert pack_turns(FrameType.TURN_REQUEST, []) == []


def test_many_turns_are_told_in_parts_that_fit():
    held = [(number, "x" * 65535) for number in range(9)]
    frames = pack_turns_held(5, 6, held)
    parts = [unpack_turns_held(frame) for frame in frames]
    assert max(map(len, frames)) <= FRAME_BYTES_MAX
    assert [part.part for part in parts] == list(range(len(parts)))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [turn for part in parts for turn in part.held] == held
    assert len(pack_turns_held(5, 6, [])) == 1


def test_epochs_are_ordered_by_counter_then_stamp_then_store():
    epochs = [
        NO_EPOCH,
        Epoch(1, 5, b"b" * 16),
        Epoch(2, 0, b"a" * 16),
        Epoch(2, 3, b"a" * 16),
        Epoch(2, 3, b"b" * 16),
    ]
    assert all(lower < higher for lower, higher in itertools.pairwise(epochs))
