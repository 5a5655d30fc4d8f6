"""cluster.frames: what is packed is unpacked, and every shorter or stranger frame is a FrameError."""

import pytest
from librt.strings import BytesWriter

from broker.core.message import Message
from cluster import frames
from cluster.frames import Forwards, FrameError
from cluster.membership import Member, State

STORE = bytes(range(16))
OTHER = bytes(range(16, 32))
HELLO = frames.Hello(
    "nöde1@a", STORE, 1 << 20, 7 << 32 | 1, 99, b"c" * 16, "10.0.0.1:44053", 1, 3, True, False, 7, 2**64 - 1, 5
)
MEMBERS = [
    Member("a@a", STORE, 2**63, "10.0.0.1:1", State.ALIVE),
    Member("b@b", OTHER, 3, "[::1]:2", State.LEAVING),
]
REMOVED = [("x@x", OTHER)]
HEARTBEAT = frames.Heartbeat(1, 2, 2**64 - 1, 4, 5, 6, 7, 8, 9, True)
WISHES = [frames.pack_wish(b"a/#", True, True), frames.pack_wish("ü/+".encode(), False, False)]
UNPACKED_WISHES = [frames.Wish(b"a/#", True, True), frames.Wish("ü/+".encode(), False, False)]

TABLE = [
    (frames.pack_hello(HELLO), frames.unpack_hello, HELLO),
    (
        frames.pack_welcome(frames.Welcome(b"c" * 16, MEMBERS, REMOVED, ["a@a"])),
        frames.unpack_welcome,
        frames.Welcome(b"c" * 16, MEMBERS, REMOVED, ["a@a"]),
    ),
    (
        frames.pack_refused(frames.Refusal.BUSY, "später"),
        frames.unpack_refused,
        frames.Refused(frames.Refusal.BUSY, "später"),
    ),
    (frames.pack_members(MEMBERS, REMOVED), frames.unpack_members, frames.Members(MEMBERS, REMOVED)),
    (frames.pack_heartbeat(HEARTBEAT), frames.unpack_heartbeat, HEARTBEAT),
    (
        frames.pack_interest_delta(1, 2, WISHES),
        frames.unpack_interest_delta,
        frames.InterestDelta(1, 2, UNPACKED_WISHES),
    ),
    (
        frames.pack_interest_snapshot(1, 2, 3, True, WISHES),
        frames.unpack_interest_snapshot,
        frames.InterestSnapshot(1, 2, 3, True, UNPACKED_WISHES),
    ),
    (frames.pack_positions(2**64 - 1, 5), frames.unpack_position, frames.Position(2**64 - 1, 5)),
    (frames.pack_link_ack(1, 5), frames.unpack_position, frames.Position(1, 5)),
]


@pytest.mark.parametrize(("frame", "unpack", "value"), TABLE, ids=[type(row[2]).__name__ for row in TABLE])
def test_frames_come_out_as_they_went_in(frame, unpack, value):
    assert unpack(frame) == value
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            unpack(frame[:end])
    with pytest.raises(FrameError):
        unpack(frame + b"\0")


def test_another_version_is_refused_but_its_hello_is_read():
    for frame, unpack, _ in TABLE[1:]:
        with pytest.raises(FrameError):
            unpack(b"\x02" + frame[1:])
    newer = b"\x02" + frames.pack_hello(HELLO)[1:] + b"something new"
    assert frames.unpack_hello(newer) == HELLO


def test_malformed_text_and_states_are_refused():
    with pytest.raises(FrameError):
        frames.unpack_refused(b"\x01\x03\x00\x00\x01\xff")
    with pytest.raises(FrameError):
        frames.read_member(frames.Reader(frames.pack_member(MEMBERS[0]).replace(b"\0\0\x0a10", b"\x09\0\x0a10"), 0))


def pack(messages, now=100.0, age_ms=0):
    writer = BytesWriter()
    for message in messages:
        frames.pack_message(writer, message, message.publisher.encode(), STORE, now)
    return frames.pack_forwards(5, 11, len(messages), age_ms, True, False, writer.getvalue())


def fields(message):
    return (
        message.topic,
        message.payload,
        message.properties,
        message.qos,
        message.retain,
        message.expires_at,
        message.publisher,
        message.origin,
        message.number,
    )


MESSAGES = [
    Message(b"a/b", b"hi", b"", 0, False, 0.0, "", STORE, 0),
    Message(b"a/b", b"", b"\x01\x00", 1, True, 0.0, "client", STORE, 2**62),
    Message(b"t" * 65535, b"p" * 70000, b"q" * 300, 2, False, 100.5, "ü" * 32767, OTHER, 1),
]


def test_messages_come_out_as_they_went_in():
    forwards = Forwards(pack(MESSAGES))
    assert (forwards.session, forwards.first, forwards.count) == (5, 11, 3)
    assert (forwards.start, forwards.gap) == (True, False)
    assert [fields(message) for message in forwards.messages(STORE, 100.0)] == [fields(each) for each in MESSAGES]


def test_every_prefix_of_forwards_is_refused():
    frame = pack([*MESSAGES[:2], Message(b"t", b"p", b"q", 2, False, 100.5, "c", OTHER, 1)])
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            Forwards(frame[:end]).messages(STORE, 0.0)
    with pytest.raises(FrameError):
        Forwards(frame + b"\0").messages(STORE, 0.0)


def test_expiry_travels_as_remaining_time_less_the_wait():
    message = Message(b"t", b"", b"", 0, False, 160.0, "", STORE, 0)
    # 60 s were left when it was packed, 20 s it waited; the receiver's clock is another one.
    received = Forwards(pack([message], 100.0, 20_000)).messages(STORE, 5000.0)[0]
    assert received.expires_at == pytest.approx(5040.0)
    late = Forwards(pack([message], 100.0, 70_000)).messages(STORE, 0.0)[0]
    assert 0.0 < late.expires_at < 0.001
    endless = Message(b"t", b"", b"", 0, False, 1e12, "", STORE, 0)
    assert Forwards(pack([endless], 100.0)).messages(STORE, 0.0)[0].expires_at == pytest.approx(4294967.295)
