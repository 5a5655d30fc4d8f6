"""broker.core.records: whatever is packed is unpacked, up to the widest values of each field."""

from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from librt.strings import BytesWriter

from broker.core.events import (
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    PubackReceived,
    PubcompReceived,
    PublishReceived,
    PubrecReceived,
    PubrelReceived,
    SubscribeReceived,
    UnsubscribeReceived,
    connection_key,
)
from broker.core.listener_records import ListenerBatch, ListenerHeader, unpack_events
from broker.core.message import Message
from broker.core.owner_records import (
    FRAME_BYTES_MAX,
    Answer,
    Deliver,
    OwnerBatch,
    OwnerHeader,
    owner_frame,
    pack_target,
    unpack_owner_records,
)
from broker.core.records import (
    CLOSE,
    CONNACK,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    put_string,
    put_u8,
    put_u16,
    put_u32,
    string_at,
)
from broker.core.will import Will

U8 = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 0xFF))
U16 = st.one_of(st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFF]), st.integers(0, 0xFFFF))
U32 = st.one_of(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))
# All ones stand for "none".
EXPIRY = st.one_of(st.sampled_from([-1, 0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE]), st.integers(-1, 0xFFFFFFFE))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BYTES = st.one_of(st.binary(max_size=30), st.sampled_from([b"\0" * 255, b"\xff" * 256, b"t" * 65535]))
BODY = st.one_of(BYTES, st.just(b"p" * 70_000))


def fields(event):
    """The fields of an event by name, a message as its own fields; compiled classes have no `vars`."""
    values = {name: getattr(event, name) for name in dir(event) if not name.startswith("_")}
    if "message" in values:
        message = values["message"]
        values["message"] = (message.topic, message.payload, message.properties, message.qos, message.retain)
    if values.get("will") is not None:
        values["will"] = fields(values["will"])
    return values


def publish(connection, packet_id, qos, retain, topic, properties, payload, expiry_s):
    return PublishReceived(connection, packet_id, Message(topic, payload, properties, qos, retain), expiry_s)


WILLS = st.builds(Will, BYTES, BODY, BODY, st.integers(0, 2), st.booleans(), U32, EXPIRY)
ACKNOWLEDGEMENTS = {PubackReceived: PUBACK, PubrecReceived: PUBREC, PubrelReceived: PUBREL, PubcompReceived: PUBCOMP}
ATTACHES = st.builds(
    Attach,
    U32,
    TEXT,
    st.sampled_from([3, 4, 5]),
    st.booleans(),
    U32,
    U16,
    U32,
    st.one_of(st.none(), TEXT),
    st.one_of(st.none(), WILLS),
)
EVENTS = st.one_of(
    ATTACHES,
    st.builds(Detach, U32, U8, st.one_of(st.just(-1), U32)),
    st.builds(publish, U32, U16, st.integers(0, 2), st.booleans(), BYTES, BODY, BODY, EXPIRY),
    *[st.builds(kind, U32, U16, U8) for kind in ACKNOWLEDGEMENTS],
    st.builds(SubscribeReceived, U32, U16, st.lists(st.tuples(BYTES, U8), max_size=4), U32),
    st.builds(UnsubscribeReceived, U32, U16, st.lists(BYTES, max_size=4)),
    st.builds(ConnectionPaused, U32),
    st.builds(ConnectionResumed, U32),
)


def pack_event(batch, event):
    if isinstance(event, Attach):
        batch.attach(event)
    elif isinstance(event, Detach):
        batch.detach(event.connection, event.reason, event.session_expiry_s, event.unsent)
    elif isinstance(event, PublishReceived):
        message = event.message
        batch.publish(
            event.connection,
            event.packet_id,
            message.qos,
            message.retain,
            message.topic,
            message.properties,
            message.payload,
            event.expiry_s,
        )
    elif type(event) in ACKNOWLEDGEMENTS:
        batch.acknowledge(ACKNOWLEDGEMENTS[type(event)], event.connection, event.packet_id, event.reason)
    elif isinstance(event, SubscribeReceived):
        batch.subscribe(event.connection, event.packet_id, event.identifier, event.requests)
    elif isinstance(event, UnsubscribeReceived):
        batch.unsubscribe(event.connection, event.packet_id, event.filters)
    elif isinstance(event, ConnectionPaused):
        batch.paused(event.connection)
    else:
        batch.resumed(event.connection)


@given(U8, U32, U32, U32, st.lists(EVENTS, max_size=5))
@example(255, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, [ConnectionPaused(0xFFFFFFFF), PubackReceived(1 << 31, 0xFFFF, 0xFF)])
def test_events(listener, generation, owner_generation, consumed_bytes, events):
    batch = ListenerBatch(listener, generation, owner_generation)
    for event in events:
        pack_event(batch, event)
    frame = batch.take(consumed_bytes)
    assert batch.size() == 0
    header = ListenerHeader(frame)
    assert (header.listener, header.generation) == (listener, generation)
    assert (header.owner_generation, header.consumed_bytes) == (owner_generation, consumed_bytes)
    unpacked = unpack_events(frame)
    for event in events:
        # The owner's number has the listener in front.
        event.connection = connection_key(listener, event.connection)
    assert [type(event) for event in unpacked] == [type(event) for event in events]
    assert [fields(event) for event in unpacked] == [fields(event) for event in events]


def test_connection_numbers_come_back_to_their_listener():
    """Above 2**31 and 2**32 alike: the listener gets its own number, the lower half."""
    batch = OwnerBatch()
    connection = connection_key(200, 0xFEDCBA98)
    batch.connack(connection, 0, True)
    batch.acknowledge(PUBACK, connection, 1, 0)
    batch.suback(connection, 1, [0])
    batch.unsuback(connection, 1, [0])
    batch.close(connection, 0x8E)
    assert [record.connection for record in unpack_owner_records(batch.records()[0], 0)] == [0xFEDCBA98] * 5


def answer(kind, connection, packet_id, reason, reasons=b"", session_present=False, text=""):
    made = Answer(kind, connection, packet_id, reason)
    made.reasons = reasons
    made.session_present = session_present
    made.text = text
    return made


class Delivered(NamedTuple):
    """A DELIVER as a test states it."""

    topic: bytes
    properties: bytes
    payload: bytes
    expiry_s: int
    targets: list[tuple[int, int, int]]


ANSWERS = st.one_of(
    st.builds(
        lambda to, reason, present, text: answer(CONNACK, to, 0, reason, b"", present, text),
        U32,
        U8,
        st.booleans(),
        st.text(max_size=20),
    ),
    st.builds(answer, st.sampled_from([PUBACK, PUBREC, PUBREL, PUBCOMP]), U32, U16, U8),
    st.builds(lambda *values: answer(SUBACK, *values[:2], 0, values[2]), U32, U16, BYTES),
    st.builds(lambda *values: answer(UNSUBACK, *values[:2], 0, values[2]), U32, U16, BYTES),
    st.builds(
        lambda to, reason, reference: answer(CLOSE, to, 0, reason, text=reference), U32, U8, st.text(max_size=20)
    ),
    st.builds(Delivered, BYTES, BODY, BODY, EXPIRY, st.lists(st.tuples(U32, U16, U16), max_size=4)),
)


def pack_record(batch, record):
    if isinstance(record, Delivered):
        # A third of the properties stands for subscription identifiers: they are read as one.
        cut = len(record.properties) // 3
        message = Message(record.topic, record.payload, record.properties[cut:])
        batch.deliver_head(message, record.properties[:cut], record.expiry_s, len(record.targets))
        for connection, packet_id, flags in record.targets:
            batch.target(connection, packet_id, flags)
        batch.deliver_body(message, record.properties[:cut])
    elif record.kind == CONNACK:
        batch.connack(record.connection, record.reason, record.session_present, text=record.text)
    elif PUBACK <= record.kind <= PUBCOMP:
        batch.acknowledge(record.kind, record.connection, record.packet_id, record.reason)
    elif record.kind == SUBACK:
        batch.suback(record.connection, record.packet_id, list(record.reasons))
    elif record.kind == UNSUBACK:
        batch.unsuback(record.connection, record.packet_id, list(record.reasons))
    else:
        batch.close(record.connection, record.reason, record.text)


def view(record):
    if isinstance(record, Delivered):
        return record
    if isinstance(record, Deliver):
        targets = [record.target(index) for index in range(record.count)]
        return Delivered(record.topic, record.properties, record.payload, record.expiry_s, targets)
    told = (record.kind, record.connection, record.packet_id, record.reason, record.reasons)
    return (*told, record.session_present, record.text)


@given(U32, U32, U32, st.lists(ANSWERS, max_size=5))
def test_owner_records(owner_generation, generation, consumed_bytes, records):
    batch = OwnerBatch()
    size = 0
    for record in records:
        pack_record(batch, record)
        assert batch.size() > size
        size = batch.size()
    assert sum(len(part) for part in batch.records()) == size
    unpacked = []
    for part in batch.records():
        frame = owner_frame(owner_generation, generation, consumed_bytes, part)
        header = OwnerHeader(frame)
        assert (header.owner_generation, header.generation) == (owner_generation, generation)
        assert header.consumed_bytes == consumed_bytes
        unpacked += unpack_owner_records(frame)
    assert [view(record) for record in unpacked] == [view(record) for record in records]


def test_frames_are_cut_at_their_size():
    batch = OwnerBatch()
    message = Message(b"t", b"p" * 1000)
    count = 3 * FRAME_BYTES_MAX // 1000
    for number in range(count):
        batch.deliver_head(message, b"", -1, 1)
        batch.target(number, 0, 0)
        batch.deliver_body(message, b"")
    parts = batch.records()
    assert len(parts) in (3, 4)
    assert all(len(part) < FRAME_BYTES_MAX + 1100 for part in parts)
    numbers = [record.target(0)[0] for part in parts for record in unpack_owner_records(part, 0)]
    assert numbers == list(range(count))


def test_a_batch_that_was_cut_exactly_has_no_empty_part():
    batch = OwnerBatch()
    assert batch.records() == []
    message = Message(b"t", b"p" * FRAME_BYTES_MAX)
    batch.deliver_head(message, b"", -1, 0)
    batch.deliver_body(message, b"")
    assert len(batch.records()) == 1
    assert batch.size() == len(batch.records()[0])


def test_packed_targets_are_the_same_as_single_ones():
    targets = [(1, 2, 1), (0xFFFFFFFF, 0xFFFF, 9), (connection_key(3, 1 << 31), 0x8000, 8)]
    message = Message(b"t", b"p")
    single, many = OwnerBatch(), OwnerBatch()
    writer = BytesWriter()
    single.deliver_head(message, b"", -1, len(targets))
    for target in targets:
        single.target(*target)
        pack_target(writer, *target)
    single.deliver_body(message, b"")
    many.deliver_head(message, b"", -1, len(targets))
    many.targets(writer.getvalue())
    many.deliver_body(message, b"")
    assert single.records() == many.records()


def test_a_reset_batch_forgets_and_speaks_to_the_new_owner():
    batch = ListenerBatch(1, 2, 3)
    batch.paused(1)
    batch.reset(4)
    assert batch.size() == 0
    frame = batch.take(0)
    assert ListenerHeader(frame).owner_generation == 4
    assert unpack_events(frame) == []


def test_as_many_filters_as_a_big_packet_holds():
    count = 70_000
    requests = [(b"a", 0)] * count
    batch = ListenerBatch(0, 1, 1)
    batch.subscribe(1, 2, 0, requests)
    batch.unsubscribe(1, 3, [b"a"] * count)
    subscribe, unsubscribe = unpack_events(batch.take(0))
    assert len(subscribe.requests) == count
    assert len(unsubscribe.filters) == count


def test_a_record_that_runs_over_its_frame_is_our_fault():
    batch = ListenerBatch(0, 1, 1)
    batch.publish(1, 1, 1, False, b"topic", b"", b"payload", -1)
    frame = batch.take(0)
    with pytest.raises(AssertionError):
        unpack_events(frame[:-1])
    with pytest.raises(AssertionError):
        ListenerHeader(b"\x02" + frame[1:])
    records = OwnerBatch()
    records.deliver_head(Message(b"topic", b"payload"), b"", -1, 0)
    records.deliver_body(Message(b"topic", b"payload"), b"")
    with pytest.raises(AssertionError):
        unpack_owner_records(records.records()[0][:-1], 0)
    with pytest.raises(AssertionError):
        OwnerHeader(b"\x02" + bytes(20))


@pytest.mark.parametrize("kind", [0, 12, 99, 255])
def test_an_unknown_record_is_our_fault(kind):
    head = ListenerBatch(0, 1, 1).take(0)
    with pytest.raises(AssertionError):
        unpack_events(head + bytes([kind]) + bytes(20))
    with pytest.raises(AssertionError):
        unpack_owner_records(bytes([kind]) + bytes(20), 0)


@pytest.mark.parametrize("size", [0xFFFF, 0x10000, 0x10004])
def test_a_string_that_is_too_long_is_never_packed(size):
    """Reason: a length that wrapped once made records of a client's filter, which ended the owner."""
    writer = BytesWriter()
    if size <= 0xFFFF:
        put_string(writer, bytes(size))
        assert string_at(writer.getvalue(), 0) == (bytes(size), size + 2)
    else:
        with pytest.raises(AssertionError, match=f"{size} in a u16"):
            put_string(writer, bytes(size))
        assert writer.getvalue() == b""


@pytest.mark.parametrize(("put", "bits"), [(put_u8, 8), (put_u16, 16), (put_u32, 32)])
def test_a_number_that_does_not_fit_is_never_packed(put, bits):
    writer = BytesWriter()
    for number in (0, 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1):
        put(writer, number)
        assert int.from_bytes(writer.getvalue()[-bits // 8 :], "big") == number
    packed = writer.getvalue()
    for number in (1 << bits, (1 << bits) + 1, -1, -(1 << bits - 1), 1 << 62):
        with pytest.raises(AssertionError, match=f"{number} in a u{bits}"):
            put(writer, number)
    assert writer.getvalue() == packed


TOO_LONG = b"t" * 0x10000


@pytest.mark.parametrize(
    "append",
    [
        lambda batch: batch.publish(1, 0, 0, False, TOO_LONG, b"", b"", -1),
        lambda batch: batch.publish(1, 0x10000, 1, False, b"t", b"", b"", -1),
        lambda batch: batch.publish(1, 0, 0, False, b"t", b"", b"", 1 << 32),
        lambda batch: batch.acknowledge(PUBACK, 1, 0x10000, 0),
        lambda batch: batch.subscribe(1, 1, 0, [(TOO_LONG, 0)]),
        lambda batch: batch.subscribe(1, 1, 1 << 32, []),
        lambda batch: batch.unsubscribe(1, 1, [TOO_LONG]),
        lambda batch: batch.detach(1, 0, 1 << 32, []),
        lambda batch: batch.detach(1, 0, -1, [1] * 0x10000),
        lambda batch: batch.attach(Attach(1, "c" * 0x10000, 5)),
        lambda batch: batch.attach(Attach(1, "c", 5, user_name="u" * 0x10000)),
        lambda batch: batch.attach(Attach(1, "c", 5, will=Will(TOO_LONG, b""))),
    ],
)
def test_what_does_not_fit_a_listeners_record_fails_at_the_listener(append):
    with pytest.raises(AssertionError, match="in a u"):
        append(ListenerBatch(0, 1, 1))


@pytest.mark.parametrize(
    "append",
    [
        lambda batch: batch.deliver_head(Message(TOO_LONG, b""), b"", -1, 0),
        lambda batch: batch.deliver_head(Message(b"t", b""), b"", 1 << 32, 0),
        lambda batch: batch.target(1, 0x10000, 0),
        lambda batch: batch.acknowledge(PUBACK, 1, 0x10000, 0),
        lambda batch: batch.connack(1, 0, False, 0x10000),
        lambda batch: batch.suback(1, 1, [0x100]),
    ],
)
def test_what_does_not_fit_an_owners_record_fails_at_the_owner(append):
    with pytest.raises(AssertionError, match="in a u"):
        append(OwnerBatch())
