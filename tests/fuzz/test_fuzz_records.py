"""Any bytes as a frame between a listener and the owner.

Both ends of these pipes are our own code, so a frame that doesn't fit is a fault of ours, and unpacking it ends the
process. Documented: AssertionError, IndexError and UnicodeDecodeError, and that what is unpacked is no larger than the
frame. What was unpacked and is packed again is unpacked the same.
"""

from fuzzing import Target, examples, near
from hypothesis import given
from test_records import fields, pack_event, pack_record, view

from broker.core.counters import LISTENER_COUNTERS, pack_counters
from broker.core.events import (
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    Event,
    ListenerCounted,
    PubackReceived,
    PublishReceived,
    PubrecReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.listener_records import ListenerBatch, ListenerHeader, unpack_events
from broker.core.message import Message
from broker.core.owner_records import (
    FRAME_BYTES_MAX,
    Answer,
    Deliver,
    OwnerBatch,
    OwnerHeader,
    OwnerRecord,
    owner_frame,
    unpack_owner_records,
)
from broker.core.records import CONNACK, PUBREL, SUBACK, UNSUBACK
from broker.core.will import Will

TO_OWNER, TO_LISTENER = 0, 1


def check(data: bytes) -> None:
    """Unpack the frame behind the first byte, which says whose it is."""
    if not data:
        return
    frame = data[1:]
    try:
        if data[0] & 1 == TO_OWNER:
            check_events(frame)
        else:
            check_records(frame)
    except (AssertionError, IndexError, UnicodeDecodeError):
        # What this file finds is a RuntimeError, as an assertion is one of the documented faults.
        return


def check_events(frame: bytes) -> None:
    header = ListenerHeader(frame)
    events = unpack_events(frame)
    if sum(weight(event) for event in events) > len(frame):
        raise RuntimeError("events that are larger than their frame")
    said = [(type(event), fields(event)) for event in events]
    batch = ListenerBatch(header.listener, header.generation, header.owner_generation)
    for event in events:
        if isinstance(event, ListenerCounted):
            batch.counters(pack_counters(event.values))
        else:
            # The owner's number has the listener in front.
            event.connection &= 0xFFFFFFFF
            pack_event(batch, event)
    again = batch.take(header.consumed_bytes)
    if fields(ListenerHeader(again)) != fields(header):
        raise RuntimeError("a header that changed")
    if [(type(event), fields(event)) for event in unpack_events(again)] != said:
        raise RuntimeError("events that changed")


def weight(event: Event) -> int:
    """The least bytes that such an event takes in a frame: as many as its parts together."""
    if isinstance(event, PublishReceived):
        return event.message.size()
    if isinstance(event, SubscribeReceived):
        return sum(3 + len(topic_filter) for topic_filter, _ in event.requests)
    if isinstance(event, UnsubscribeReceived):
        return sum(2 + len(topic_filter) for topic_filter in event.filters)
    return 5


def check_records(frame: bytes) -> None:
    header = OwnerHeader(frame)
    records = unpack_owner_records(frame)
    if sum(record_weight(record) for record in records) > len(frame):
        raise RuntimeError("records that are larger than their frame")
    batch = OwnerBatch()
    for record in records:
        pack_record(batch, view(record) if isinstance(record, Deliver) else record)
    (packed,) = batch.records() or (b"",)
    again = owner_frame(header.owner_generation, header.generation, header.consumed_bytes, packed)
    if fields(OwnerHeader(again)) != fields(header):
        raise RuntimeError("a header that changed")
    if [view(record) for record in unpack_owner_records(again)] != [view(record) for record in records]:
        raise RuntimeError("records that changed")


def record_weight(record: OwnerRecord) -> int:
    if isinstance(record, Deliver):
        return len(record.topic) + len(record.properties) + len(record.payload) + len(record.targets)
    assert isinstance(record, Answer)
    return 5 + len(record.reasons)


WILL = Will(b"w/t", b"gone", b"\x03\x00\x01t", 1, True, 5, 60)
EVENTS: list[Event] = [
    Attach(1, "client", 5, False, 3600, 20, 1000, "user", WILL),
    Attach(2, "", 4, True),
    Detach(1, 4, 7),
    PublishReceived(1, 9, Message(b"a/b", b"payload", b"\x01\x01", 1, True), 60),
    PublishReceived(1, 0, Message(b"a", b""), -1),
    PubackReceived(1, 2, 0),
    PubrecReceived(1, 2, 0x80),
    SubscribeReceived(1, 3, [(b"a/#", 1), (b"$share/g/+", 0x8F)], 5),
    UnsubscribeReceived(1, 4, [b"a/#", b"b"]),
    ConnectionPaused(1),
    ConnectionResumed(1),
]


def seeds() -> list[bytes]:
    """A frame of each record, and one of all."""
    frames = []
    for events in (*[[event] for event in EVENTS], EVENTS):
        batch = ListenerBatch(1, 2, 3)
        for event in events:
            pack_event(batch, event)
        frames.append(bytes([TO_OWNER]) + batch.take(100))
    batch = ListenerBatch(1, 2, 3)
    batch.counters(pack_counters(list(range(len(LISTENER_COUNTERS)))))
    frames.append(bytes([TO_OWNER]) + batch.take(0))
    whole = OwnerBatch()
    for append in (
        lambda batch: batch.connack(1, 0, True, text="why"),
        lambda batch: batch.acknowledge(PUBREL, 1, 2, 0),
        lambda batch: batch.suback(1, 2, [0, 1, 0x80]),
        lambda batch: batch.unsuback(1, 2, [0, 0x11]),
        lambda batch: batch.close(1, 0x8E),
        deliver,
    ):
        batch = OwnerBatch()
        for each in (batch, whole):
            append(each)
        frames.append(bytes([TO_LISTENER]) + owner_frame(1, 2, 100, batch.records()[0]))
    frames.append(bytes([TO_LISTENER]) + owner_frame(1, 2, 100, whole.records()[0]))
    return frames


def deliver(batch: OwnerBatch) -> None:
    message = Message(b"a/b", b"payload", b"\x01\x01")
    batch.deliver_head(message, b"\x0b\x05", 60, 2)
    batch.target(1, 2, 1)
    batch.target(3, 0, 0)
    batch.deliver_body(message, b"\x0b\x05")


TARGET = Target("records", check, seeds())


def test_the_seeds_are_whole_frames() -> None:
    for seed in TARGET.seeds:
        check_events(seed[1:]) if seed[0] == TO_OWNER else check_records(seed[1:])
    assert {seed[15] for seed in TARGET.seeds if seed[0] == TO_OWNER} >= {1, 3, 4, 5, 8, 10, 14, 20, 21, 22}
    assert {seed[14] for seed in TARGET.seeds if seed[0] == TO_LISTENER} == {CONNACK, 3, PUBREL, SUBACK, UNSUBACK, 14}


def test_every_cut_frame_is_refused_or_shorter() -> None:
    for seed in TARGET.seeds:
        for end in range(len(seed)):
            check(seed[:end])


@given(near(TARGET.seeds))
@examples()
def test_near_frames(data: bytes) -> None:
    assert len(data) <= FRAME_BYTES_MAX
    check(data)
