"""cluster.addressing and what carries addresses: FORWARDS frames, outboxes, and batches that lose some of theirs."""

import pytest
import recorded_frames
from librt.strings import BytesWriter

from broker.core.message import Message
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from cluster import forwards
from cluster.addressing import NO_ADDRESS, Addressed, pack_address, unpack_address
from cluster.batches import Batch, messages_of, repack
from cluster.forwards import Forwards, Mark
from cluster.incoming_link import IncomingLink
from cluster.outbox import Outbox, recover
from cluster.turn import Turn
from cluster.wire import FrameError

STORE, OTHER = b"s" * 16, b"o" * 16
STOOD = (OTHER, 7)
GROUP, MOUNTED = b"$share/g/a/#", b"$share/g/$m\0/a"


def message(payload=b"x", qos=1, number=1):
    return Message(b"a/b", payload, b"", qos, False, 0.0, "c", STORE, number if qos else 0)


def pack(*items):
    """A FORWARDS frame of (message, address), or of marks."""
    writer = BytesWriter()
    for item in items:
        if isinstance(item, Mark):
            forwards.pack_mark(writer, item)
        else:
            forwards.pack_message(writer, item[0], b"c", STORE, 0.0, item[1])
    return forwards.pack_forwards(5, 11, len(items), 0, True, False, writer.getvalue())


def seen(each):
    """What a receiver makes of one: payload, groups, plain; the body of a mark."""
    if isinstance(each, Addressed):
        return each.message.payload, each.groups, each.plain
    return each.body if isinstance(each, Mark) else each.payload


@pytest.mark.parametrize("stood", [None, (OTHER, 2**63 - 1)])
@pytest.mark.parametrize(("plain", "waited"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("groups", [[GROUP], [MOUNTED, GROUP], [b"$share/g/%d" % number for number in range(70_000)]])
def test_an_address_comes_out_as_it_went_in(groups, plain, waited, stood):
    packed = pack_address(groups, plain, waited, stood)
    assert unpack_address(b"front" + packed + b"rest", 5) == (groups, plain, waited, stood, 5 + len(packed))


def test_what_was_handed_over_has_an_address_of_no_group():
    packed = pack_address([], True, False, STOOD)
    assert unpack_address(packed, 0) == ([], True, False, STOOD, len(packed))


def test_nothing_has_no_address():
    assert pack_address([], True) == NO_ADDRESS
    assert pack_address([], False, False, STOOD) == NO_ADDRESS


@pytest.mark.parametrize("wrong", [[b"a/#"], [b"$share/g"], [b"$share/+/a"], [GROUP, b""]])
def test_what_is_no_shared_filter_is_refused(wrong):
    with pytest.raises(FrameError, match="not of shared groups"):
        unpack_address(pack_address(wrong, True), 0)


def test_an_address_of_no_group_is_refused():
    with pytest.raises(FrameError, match="not of shared groups"):
        unpack_address(bytes(5), 0)
    nobody = pack_address([], True, False, STOOD)
    with pytest.raises(FrameError, match="not of shared groups"):
        unpack_address(bytes((nobody[0] & ~1,)) + nobody[1:], 0)
    with pytest.raises(FrameError, match="out of range"):
        unpack_address(pack_address([], True, False, (OTHER, 2**63)), 0)


def test_messages_with_addresses_come_out_as_they_went_in():
    foreign = Message(b"t", b"foreign", b"p", 2, True, 160.0, "c", OTHER, 7)
    items = [(message(b"0", 0), pack_address([GROUP], False)), (message(b"1"), NO_ADDRESS)]
    items.append((foreign, pack_address([GROUP, MOUNTED], True, True)))
    found = Forwards(pack(*items)).messages(STORE, 0.0)
    assert [seen(each) for each in found] == [
        (b"0", [GROUP], False),
        b"1",
        (b"foreign", [GROUP, MOUNTED], True),
    ]
    assert [each.waited for each in found if isinstance(each, Addressed)] == [False, True]
    last = found[-1].message
    assert (last.origin, last.number, last.qos, last.retain) == (OTHER, 7, 2, True)
    assert last.expires_at == pytest.approx(160.0)


def test_the_recorded_frame_of_what_was_handed_over_is_read():
    items = [
        (message(b"hi"), pack_address([], True, False, STOOD)),
        (message(b"ho"), pack_address([GROUP], False, True, STOOD)),
    ]
    frame = bytes.fromhex(recorded_frames.HANDED_OVER)
    found = Forwards(frame).messages(STORE, 0.0)
    assert [seen(each) for each in found] == [(b"hi", [], True), (b"ho", [GROUP], False)]
    assert [(each.stood, each.waited) for each in found] == [(STOOD, False), (STOOD, True)]
    assert frame == pack(*items)


@pytest.mark.parametrize("stood", [None, STOOD])
def test_every_prefix_is_refused(stood):
    frame = pack((message(), pack_address([GROUP, MOUNTED], True, False, stood)))
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            Forwards(frame[:end]).messages(STORE, 0.0)
    with pytest.raises(FrameError):
        Forwards(frame + b"\0").messages(STORE, 0.0)


def test_the_recorded_frame_is_read():
    frame = bytes.fromhex(recorded_frames.ADDRESSED)
    items = [(message(b"hi"), pack_address([GROUP], False)), (message(b"ho", 0), pack_address([GROUP, MOUNTED], True))]
    assert [seen(each) for each in Forwards(frame).messages(STORE, 0.0)] == [
        (b"hi", [GROUP], False),
        (b"ho", [GROUP, MOUNTED], True),
    ]
    assert frame == pack(*items)


@pytest.mark.parametrize(("qos", "due"), [(0, False), (1, True), (2, True)])
def test_the_receiver_stores_its_position_with_a_message_for_a_group(qos, due):
    incoming = IncomingLink(STORE, 10)
    incoming.connected(5)
    (found,) = incoming.receive(Forwards(pack((message(qos=qos), pack_address([GROUP], False)))), 0.0)
    assert (found.groups, incoming.commit_due) == ([GROUP], due)


# What was handed over.


def receive(incoming, first, count):
    """Take a frame of a peer's own stream; return the payloads, and the bodies of marks."""
    items = [
        Mark(b"mark %d" % number, True, STORE) if number % 3 == 0 else (message(b"%d" % number), NO_ADDRESS)
        for number in range(first, first + count)
    ]
    writer = pack(*items)[forwards.HEADER_BYTES :]
    frame = forwards.pack_forwards(5, first, count, 0, incoming.waiting_for_start, False, writer)
    return [seen(each) for each in incoming.receive(Forwards(frame), 0.0)]


def test_what_came_from_others_is_not_taken_from_its_sender():
    incoming = IncomingLink(STORE, 10)
    incoming.connected(5)
    assert [incoming.take_handed(number) for number in (9, 10, 11, 13, 12, 14)] == [
        False, False, True, True, False, True,
    ]  # fmt: skip
    # Marks come from the sender alone.
    assert receive(incoming, 10, 3) == [b"mark 12"]
    assert receive(incoming, 13, 4) == [b"mark 15", b"16"]
    assert (incoming.position, incoming.duplicates) == (16, 3 + 1 + 1 + 2)


def test_what_came_from_its_sender_is_not_taken_from_others():
    incoming = IncomingLink(STORE, 10, 11)
    incoming.connected(5)
    assert receive(incoming, 11, 3) == [b"mark 12", b"13"]
    assert [incoming.take_handed(number) for number in (11, 13, 14)] == [False, False, True]
    assert receive(incoming, 14, 3) == [b"mark 15", b"16"]


# Outboxes.


def committed(storage, turn):
    storage.commit(turn.writes)
    turn.writes = WriteBatch()


def test_an_outbox_keeps_addresses():
    storage, turn, clock = MemoryStorage(), Turn(), Clock(0.0, 0)
    outbox = Outbox(storage, turn, clock, OTHER, 1 << 30)
    outbox.put(1, message(b"1"))
    assert not outbox.addressed
    size = outbox.put(2, message(b"2"), pack_address([GROUP], True, True))
    assert outbox.addressed
    handed = pack_address([], True, False, STOOD)
    outbox.put(3, message(b"3"), handed)
    committed(storage, turn)
    again = recover(storage, turn, clock)[OTHER]
    assert again.addressed
    one, two, three = again.read(1, 3, 1 << 30)
    assert (three.message.payload, three.groups, three.plain, three.stood) == (b"3", [], True, STOOD)
    assert [each.address() for each in (one, three)] == [NO_ADDRESS, handed]
    assert (one.message.payload, one.groups, one.plain) == (b"1", [], True)
    assert (two.message.payload, two.groups, two.plain, two.waited, two.size) == (b"2", [GROUP], True, True, size)
    again.delete([1, 2, 3], one.size + two.size + three.size)
    assert not again.addressed


def test_a_record_without_an_address_is_as_the_version_before_wrote_it():
    storage, turn, clock = MemoryStorage(), Turn(), Clock(0.0, 0)
    Outbox(storage, turn, clock, OTHER, 1 << 30).put(1, message(b"1"))
    ((_, _, _, value),) = turn.writes.operations
    assert value[:1] == b"\x01"
    committed(storage, turn)
    assert not recover(storage, turn, clock)[OTHER].addressed


def test_a_record_whose_address_is_cut_is_named():
    storage, turn, clock = MemoryStorage(), Turn(), Clock(0.0, 0)
    outbox = Outbox(storage, turn, clock, OTHER, 1 << 30)
    outbox.put(1, message(b"1"), pack_address([GROUP], True))
    ((_, _, key, value),) = turn.writes.operations
    for end in range(1, len(value) - 40):
        batch = WriteBatch()
        batch.put("outbox", key, value[:end])
        storage.commit(batch)
        with pytest.raises(StorageError, match="corrupt"):
            outbox.read(1, 1, 1 << 30)


# Batches.


def test_a_batch_loses_addresses_and_messages_and_keeps_its_numbers():
    items = [
        Mark(b"mark", True, STORE),
        (message(b"1"), pack_address([GROUP], False)),
        (message(b"2"), pack_address([GROUP, MOUNTED], True)),
        (message(b"3"), NO_ADDRESS),
        (message(b"4"), pack_address([], True, False, STOOD)),
    ]
    body = pack(*items)[forwards.HEADER_BYTES :]
    batch = Batch(11, 5, body, [], True, 0.0, [], 0)
    assert [(number, each.payload) for number, each, _ in messages_of(batch, STORE)] == [
        (12, b"1"),
        (13, b"2"),
        (14, b"3"),
        (15, b"4"),
    ]
    grew = repack(batch, STORE, {12: None, 13: pack_address([MOUNTED], True)})
    assert len(batch.body) == len(body) + grew
    frame = forwards.pack_forwards(5, 11, 5, 0, True, False, batch.body)
    found = Forwards(frame).messages(STORE, 0.0)
    assert [seen(each) for each in found] == [b"mark", b"", (b"2", [MOUNTED], True), b"3", (b"4", [], True)]
    assert found[-1].stood == STOOD
    assert [each.durable for each in found if isinstance(each, Mark)] == [True, False]
