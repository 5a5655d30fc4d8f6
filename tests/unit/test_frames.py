"""cluster.frames: what is packed is unpacked, and every shorter or stranger frame is a FrameError."""

from dataclasses import replace

import pytest
import recorded_frames
from librt.strings import BytesWriter

from broker.core.epoch import Epoch, pack_epoch
from broker.core.message import Message
from broker.core.retained_rows import (
    pack_deleted,
    pack_order,
    pack_retained,
    retained_row,
    unpack_retained,
    value_order,
)
from broker.core.rows import (
    RowKind,
    SessionRow,
    pack_ended,
    pack_group,
    pack_interest,
    pack_row,
    pack_session,
    pack_subscription,
)
from broker.core.stored_message import Clock
from cluster import forwards, frames, table_frames
from cluster.forwards import Forwards, Mark
from cluster.membership import Member, State
from cluster.wire import FrameError, Reader

STORE = bytes(range(16))
OTHER = bytes(range(16, 32))
HELLO = frames.Hello("nöde1@a", STORE, 1 << 20, 7 << 32 | 1, 99, b"c" * 16, "10.0.0.1:44053", 1, 3, True, False)
MEMBERS = [
    Member("a@a", STORE, 2**63 - 1, "10.0.0.1:1", State.ALIVE),
    Member("b@b", OTHER, 3, "[::1]:2", State.LEAVING),
]
REMOVED = [("x@x", OTHER)]
POSITIONS = [frames.TablePosition(1, 4, 5, 2**64 - 1, 0), frames.TablePosition(2, 2**64 - 1, 6, 7, 8)]
HEARTBEAT = frames.Heartbeat(1, 2, 2**64 - 1, 8, 9, True, 10, POSITIONS)
EPOCH = Epoch(2, 2**40, OTHER)
INTEREST = (pack_row(RowKind.INTEREST, "ü/+".encode()), pack_interest(True))
ENTRIES = [
    INTEREST,
    (pack_row(RowKind.SESSION, b"client"), pack_session(SessionRow(EPOCH, True, 60, "ü"))),
    (pack_row(RowKind.SUBSCRIPTION, b"client", b"a/#"), pack_subscription(9, 268_435_455)),
    (pack_row(RowKind.ENDED, b"client"), pack_ended(pack_epoch(EPOCH))),
    (pack_row(200, b"subject", b"key"), b"of a newer program"),
]
CHANGES = [
    table_frames.Change(INTEREST[0], 0, INTEREST[1]),
    table_frames.Change(ENTRIES[1][0], 2**64 - 1, ENTRIES[1][1]),
    table_frames.Change(ENTRIES[2][0], 7, None),
]
DELTA = table_frames.TableDelta(1, 2**64 - 1, 2, CHANGES)
REQUEST = table_frames.TableRequest(2, 7, 1022, [2**64 - 1, 3])
ROWS = table_frames.TableRows(
    3, 7, 1, [table_frames.Piece(5, False, True, ENTRIES[:2]), table_frames.Piece(1023, True, False, ENTRIES[2:])]
)
POSITION = frames.TablePosition(3, 7, 2**63 - 1, 2**64 - 1, 9)
STOPS = [("nöde1@a", 7, 1500), ("a@a", 2**64 - 1, 0)]
DONE = table_frames.TableDone(2, 7, 2, 2**64 - 1, 5, 1024)


def pack_rows(rows):
    """Pack a TABLE_ROWS frame as an owner does."""
    pieces = [
        table_frames.pack_piece(
            piece.bucket, piece.first, piece.last, [table_frames.pack_entry(row, value) for row, value in piece.rows]
        )
        for piece in rows.pieces
    ]
    return table_frames.pack_table_rows(rows.table, rows.round, rows.part, pieces)


def pack_delta(delta):
    changes = [table_frames.pack_change(change.row, change.was, change.value) for change in delta.changes]
    return table_frames.pack_table_delta(delta.table, delta.generation, delta.version, changes)


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
    (frames.pack_positions(2**64 - 1, 5), frames.unpack_position, frames.Position(2**64 - 1, 5)),
    (frames.pack_link_ack(1, 5), frames.unpack_position, frames.Position(1, 5)),
    (pack_delta(DELTA), table_frames.unpack_table_delta, DELTA),
    (table_frames.pack_table_request(REQUEST), table_frames.unpack_table_request, REQUEST),
    (pack_rows(ROWS), table_frames.unpack_table_rows, ROWS),
    (table_frames.pack_table_done(DONE), table_frames.unpack_table_done, DONE),
    (table_frames.pack_position(POSITION), table_frames.unpack_position, POSITION),
    (frames.pack_stops(STOPS), frames.unpack_stops, STOPS),
]
# Their recordings stand in the order of this table.


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
        frames.read_member(Reader(frames.pack_member(MEMBERS[0]).replace(b"\0\0\x0a10", b"\x09\0\x0a10"), 0))


def test_numbers_that_could_not_be_counted_on_are_refused():
    for frame, unpack, _ in TABLE:
        numbers = {
            frames.unpack_hello: HELLO.incarnation,
            frames.unpack_members: 2**63 - 1,
            frames.unpack_welcome: 2**63 - 1,
            table_frames.unpack_table_delta: 2,
            table_frames.unpack_table_done: 5,
            table_frames.unpack_position: 2**63 - 1,
            frames.unpack_position: 5,
        }
        if unpack in numbers:
            assert unpack(frame)
            with pytest.raises(FrameError, match="out of range"):
                unpack(frame.replace(numbers[unpack].to_bytes(8, "big"), (2**63).to_bytes(8, "big"), 1))
    with pytest.raises(FrameError, match="out of range"):
        Forwards(forwards.pack_forwards(1, 2**63, 0, 0, True, False, b""))


@pytest.mark.parametrize("name", ["", "join", "@h", "a@", "a b@h", "a@h\n", "a@h\0", "a@" + "h" * 254])
def test_what_is_no_node_name_is_refused_wherever_it_stands(name):
    hello = replace(HELLO, name=name)
    member = replace(MEMBERS[0], name=name)
    for frame, unpack in (
        (frames.pack_hello(hello), frames.unpack_hello),
        (frames.pack_members([member], []), frames.unpack_members),
        (frames.pack_members([], [(name, STORE)]), frames.unpack_members),
        (frames.pack_welcome(frames.Welcome(b"c", [], [], [name])), frames.unpack_welcome),
    ):
        with pytest.raises(FrameError, match="no node name"):
            unpack(frame)


@pytest.mark.parametrize("address", ["", "h", "h:", ":1", "h:x", "h\0:1", "h" * 300 + ":1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(FrameError, match="no address"):
        frames.unpack_hello(frames.pack_hello(replace(HELLO, address=address)))
    with pytest.raises(FrameError, match="no address"):
        frames.unpack_members(frames.pack_members([replace(MEMBERS[0], address=address)], []))


@pytest.mark.parametrize("topic_filter", [b"", b"a#", b"a/#/b", b"a\0", b"\xff"])
def test_a_row_of_what_is_no_filter_is_refused(topic_filter):
    for row, value in (
        (pack_row(RowKind.INTEREST, topic_filter), INTEREST[1]),
        (pack_row(RowKind.SUBSCRIPTION, b"c", topic_filter), ENTRIES[2][1]),
    ):
        with pytest.raises(FrameError, match="is no row"):
            table_frames.check_row(row, value)
        with pytest.raises(FrameError, match="is no row"):
            table_frames.check_row(row, None)


@pytest.mark.parametrize(("row", "value"), ENTRIES[:-1])
def test_a_row_with_a_value_of_another_kind_is_refused(row, value):
    for wrong in (b"", value[:-1], value + b"x", b"\x02" + value[1:]):
        with pytest.raises(FrameError, match="is no row"):
            table_frames.check_row(row, wrong)
    for end in range(len(row)):
        if end < 3 + row[2]:
            with pytest.raises(FrameError, match="ends within its subject"):
                table_frames.check_row(row[:end], value)


def test_a_row_of_a_group_is_one_of_a_shared_filter():
    value = pack_group(True, 3)
    for shared_filter in (b"$share/g/a/#", b"$share/g/$m\0/a"):
        table_frames.check_row(pack_row(RowKind.GROUP, shared_filter), value)
        table_frames.check_row(pack_row(RowKind.GROUP, shared_filter), None)
    for wrong in (b"a/#", b"$share/g", b"$share/+/a", b"$share/g/a#", b"$share/g/a\0", b"\xff"):
        with pytest.raises(FrameError, match="is no row"):
            table_frames.check_row(pack_row(RowKind.GROUP, wrong), value)
    for row, wrong in (
        (pack_row(RowKind.GROUP, b"$share/g/a"), value[:-1]),
        (pack_row(RowKind.GROUP, b"$share/g/a", b"key"), value),
    ):
        with pytest.raises(FrameError, match="is no row"):
            table_frames.check_row(row, wrong)


def test_a_frame_of_tables_on_the_bulk_connection_names_its_session():
    inner = table_frames.pack_position(POSITION)
    frame = table_frames.pack_table_bulk(2**64 - 1, inner)
    assert table_frames.unpack_table_bulk(frame) == (2**64 - 1, inner)
    for wrong in (frame[:9], frame[:11], frame[:10] + b"\x02" + frame[11:], b"\x02" + frame[1:]):
        with pytest.raises(FrameError):
            table_frames.unpack_table_bulk(wrong)


def test_a_frame_of_another_members_table_names_the_owner():
    copy = table_frames.TableCopy(STORE, True, 2**64 - 1, 5, table_frames.pack_table_done(DONE))
    frame = table_frames.pack_table_copy(copy)
    assert table_frames.unpack_table_copy(frame) == copy
    recorded = bytes.fromhex(dict(recorded_frames.VERSION_1)["TABLE_COPY"])
    assert recorded[18:] == frame[18:]
    assert table_frames.unpack_table_copy(recorded).store_id == bytes(range(16))
    for wrong in (frame[:20], frame[:35], frame[:36] + b"\x04" + frame[37:], b"\x02" + frame[1:]):
        with pytest.raises(FrameError):
            table_frames.unpack_table_copy(wrong)


MESSAGE = Message(b"t/x", b"payload", b"", 1, True, 1010.0, "client", STORE, 7)
ORDER = pack_order(2**64 - 1, MESSAGE.key())
KEPT = pack_retained(ORDER, MESSAGE, Clock(1000.0, 1_700_000_000_000))


def test_a_row_of_a_retained_message_is_read():
    row = retained_row(b"t/x")
    assert row == pack_row(RowKind.RETAINED, b"t/x")
    for value in (KEPT, pack_deleted(ORDER), None):
        table_frames.check_row(row, value)
    assert value_order(KEPT) == value_order(pack_deleted(ORDER)) == ORDER
    back = unpack_retained(b"t/x", KEPT, Clock(5.0, 1_700_000_003_000))
    assert (back.payload, back.qos, back.retain, back.expires_at) == (b"payload", 1, True, 12.0)
    assert (back.publisher, back.origin, back.number) == ("client", STORE, 7)
    assert unpack_retained(b"t/x", pack_deleted(ORDER), Clock(0.0, 0)) is None


def test_of_two_retained_messages_of_one_node_and_stamp_the_one_of_the_higher_number_is_the_newer():
    later = Message(b"t/x", b"", origin=STORE, number=8)
    assert KEPT[:34] == b"\x01\x00" + b"\xff" * 8 + STORE + (7).to_bytes(8, "big")
    assert value_order(pack_deleted(pack_order(2**64 - 1, later.key()))) > value_order(KEPT)


def test_a_delete_that_an_older_program_wrote_without_a_number_is_read():
    row, value = retained_row(b"t/x"), b"\x01\x01" + b"\xff" * 8 + STORE + bytes(8)
    table_frames.check_row(row, value)
    assert unpack_retained(b"t/x", value, Clock(0.0, 0)) is None
    assert pack_order(2**64 - 2, MESSAGE.key()) < value_order(value) < ORDER


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (retained_row(b"t/y"), KEPT),
        (retained_row(b""), KEPT),
        (retained_row(b"t/+"), None),
        (retained_row(b"\xff"), None),
        (retained_row(b"t/x") + b"key", KEPT),
        (retained_row(b"t/x"), KEPT[:40]),
        (retained_row(b"t/x"), b"\x02" + KEPT[1:]),
        (retained_row(b"t/x"), pack_deleted(ORDER)[:-1]),
        (retained_row(b"t/x"), pack_deleted(ORDER) + b"x"),
        (retained_row(b"t/x"), b""),
    ],
)
def test_what_is_no_row_of_a_retained_message_is_refused(row, value):
    with pytest.raises(FrameError, match="is no row"):
        table_frames.check_row(row, value)


def test_tables_and_buckets_that_are_not_there_are_refused():
    for frame, unpack, at in (
        (pack_delta(DELTA), table_frames.unpack_table_delta, 2),
        (table_frames.pack_table_request(REQUEST), table_frames.unpack_table_request, 2),
        (pack_rows(ROWS), table_frames.unpack_table_rows, 2),
        (table_frames.pack_table_done(DONE), table_frames.unpack_table_done, 2),
        (pack_rows(ROWS), table_frames.unpack_table_rows, 15),
        (table_frames.pack_table_done(DONE), table_frames.unpack_table_done, -2),
    ):
        broken = bytearray(frame)
        broken[at] = 0xEE
        with pytest.raises(FrameError, match="there is no"):
            unpack(bytes(broken))


def test_a_message_without_a_topic_is_refused():
    with pytest.raises(FrameError):
        Forwards(pack([Message(b"", b"p", b"", 0, False, 0.0, "c", STORE, 0)])).messages(STORE, 0.0)


def test_a_message_with_a_number_that_can_not_go_on_is_refused():
    frame = pack([Message(b"t", b"p", b"", 1, False, 0.0, "c", STORE, 2**63 - 1)])
    number = (2**63 - 1).to_bytes(8, "big")
    assert Forwards(frame).messages(STORE, 0.0)[0].number == 2**63 - 1
    with pytest.raises(FrameError, match="out of range"):
        Forwards(frame.replace(number, (2**63).to_bytes(8, "big"))).messages(STORE, 0.0)


def test_the_recorded_frames_of_every_version_are_read():
    """Reason: nodes of different versions run side by side while a cluster is upgraded."""
    recorded = {}
    for number, (name, text) in enumerate(recorded_frames.VERSION_1):
        frame = bytes.fromhex(text)
        assert frame[0] == 1
        recorded[frame[1]] = name
        if number < len(TABLE):
            packed, unpack, value = TABLE[number]
            assert unpack(frame) == value, name
            assert frames.FRAME_VERSION != 1 or frame == packed, f"{name} is packed differently under the same version"
    assert sorted(recorded) == sorted(frames.FrameType)
    assert recorded == {int(kind): kind.name for kind in frames.FrameType}


def test_who_and_name():
    frame = bytes.fromhex(dict(recorded_frames.VERSION_1)["NAME"])
    assert frames.unpack_name(frame) == "nöde1@a"
    assert frames.pack_name("nöde1@a") == frame
    assert frames.pack_who() == bytes.fromhex(dict(recorded_frames.VERSION_1)["WHO"])


def test_the_recorded_messages_are_read():
    frame = bytes.fromhex(dict(recorded_frames.VERSION_1)["FORWARDS"])
    read = Forwards(frame)
    assert (read.session, read.first, read.age_ms, read.start, read.gap) == (5, 11, 7, True, False)
    assert [fields(message) for message in read.messages(STORE, 100.007)] == [
        fields(each) for each in RECORDED_MESSAGES
    ]
    assert frame == pack(RECORDED_MESSAGES, 100.0, 7)


def pack(messages, now=100.0, age_ms=0):
    writer = BytesWriter()
    for message in messages:
        forwards.pack_message(writer, message, message.publisher.encode(), STORE, now)
    return forwards.pack_forwards(5, 11, len(messages), age_ms, True, False, writer.getvalue())


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


RECORDED_MESSAGES = [
    Message(b"a/b", b"hi", b"", 0, False, 0.0, "", STORE, 0),
    Message(b"a/b", b"", b"\x01\x00", 1, True, 0.0, "client", STORE, 2**62),
    Message("t/ü".encode(), b"payload", b"", 2, False, 160.0, "ü", OTHER, 1),
]
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


def marked(after=-1):
    """A message between two marks."""
    writer = BytesWriter()
    forwards.pack_mark(writer, Mark(b"before", True, STORE))
    forwards.pack_message(writer, MESSAGES[0], b"", STORE, 0.0)
    forwards.pack_mark(writer, Mark(b"", False, STORE))
    return forwards.pack_forwards(5, 11, 3, 0, False, False, writer.getvalue(), after)


def test_marks_stand_between_the_messages():
    first, message, last = Forwards(marked()).messages(OTHER, 0.0)
    assert isinstance(first, Mark)
    assert (first.body, first.durable, first.sender) == (b"before", True, OTHER)
    assert (message.topic, message.payload) == (b"a/b", b"hi")
    assert isinstance(last, Mark)
    assert (last.body, last.durable) == (b"", False)


def test_a_mark_is_bounded():
    writer = BytesWriter()
    forwards.pack_mark(writer, Mark(bytes(forwards.MARK_BYTES_MAX), False, STORE))
    frame = forwards.pack_forwards(5, 11, 1, 0, False, False, writer.getvalue())
    (mark,) = Forwards(frame).messages(STORE, 0.0)
    assert len(mark.body) == forwards.MARK_BYTES_MAX
    longer = bytearray(frame + b"x")
    longer[forwards.HEADER_BYTES + 1 : forwards.HEADER_BYTES + 5] = (forwards.MARK_BYTES_MAX + 1).to_bytes(4, "big")
    with pytest.raises(FrameError, match="mark"):
        Forwards(bytes(longer)).messages(STORE, 0.0)
    with pytest.raises(AssertionError):
        forwards.pack_mark(BytesWriter(), Mark(bytes(forwards.MARK_BYTES_MAX + 1), False, STORE))


@pytest.mark.parametrize(("after", "read"), [(-1, 10), (10, 10), (0, 0), (7, 7)])
def test_a_frame_says_which_number_it_goes_on_from(after, read):
    frame = Forwards(marked(after))
    assert (frame.first, frame.after, len(frame.messages(STORE, 0.0))) == (11, read, 3)


def test_a_frame_that_jumps_back_is_refused():
    with pytest.raises(FrameError, match="jumps back"):
        Forwards(marked(11))


@pytest.mark.parametrize("after", [-1, 7])
def test_every_prefix_of_forwards_with_marks_is_refused(after):
    frame = marked(after)
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            Forwards(frame[:end]).messages(STORE, 0.0)
    with pytest.raises(FrameError):
        Forwards(frame + b"\0").messages(STORE, 0.0)


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
    assert Forwards(pack([endless], 100.0)).messages(STORE, 0.0)[0].expires_at == pytest.approx(4294967295.0)


@pytest.mark.parametrize("interval_s", [1, 4_294_967, 4_294_968, 60 * 86400, 2**32 - 1])
def test_no_expiry_interval_is_cut_on_the_way(interval_s):
    """[MQTT-3.3.2-6] What a subscriber is told is what the publisher said less the time that passed."""
    frame = pack([Message(b"t", b"", b"", 0, False, 100.0 + interval_s, "", STORE, 0)], 100.0)
    (received,) = Forwards(frame).messages(STORE, 5000.0)
    assert received.expires_at == pytest.approx(5000.0 + interval_s)
    remaining = (interval_s * 1000).to_bytes(8, "big")
    assert remaining in frame
    for wrong in (2**32 * 1000, 2**63, 2**64 - 1):
        with pytest.raises(FrameError, match="stays for longer"):
            Forwards(frame.replace(remaining, wrong.to_bytes(8, "big"))).messages(STORE, 0.0)
