"""broker.core.persistence: what is written is what a restart finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import persistence
from broker.core.message import Delivery, Message
from broker.core.persistence import Clock
from broker.core.session import Session
from broker.core.storage import MemoryStorage, StorageError, WriteBatch

ORIGIN = b"0123456789abcdef"
BEFORE = Clock(5000.0, 1_700_000_000_000)
# Ten seconds later, after a boot: monotonic time is another.
AFTER = Clock(100.0, 1_700_000_010_000)
FILTERS = st.one_of(st.binary(min_size=1, max_size=20), st.just(b"t" * 65535))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def recovered(batch, clock=AFTER, storage=None):
    storage = storage or MemoryStorage()
    storage.commit(batch)
    return persistence.recover(storage, clock, 20)


def session_with(number=1, client_id="c", expiry_s=60):
    return Session(number, client_id, None, expiry_s, 20)


def message_of(number=1, **options):
    return Message(b"t", b"p", qos=1, origin=ORIGIN, number=number, **options)


def put(batch, session, message, packet_id=0, qos=1):
    delivery = Delivery(session.take_seq(), message, qos)
    delivery.packet_id = packet_id
    persistence.put_delivery(batch, session, delivery, BEFORE)
    return delivery


@given(
    st.integers(1, 2**64 - 1),
    st.one_of(TEXT, st.just("x" * 65535)),
    st.one_of(st.none(), TEXT),
    st.integers(1, 0xFFFFFFFF),
    st.dictionaries(FILTERS, st.integers(0, 7), max_size=4),
)
def test_sessions(number, client_id, user_name, expiry_s, subscriptions):
    session = Session(number, client_id, user_name, expiry_s, 20)
    batch = WriteBatch()
    persistence.put_session(batch, session, BEFORE)
    for topic_filter, granted in subscriptions.items():
        persistence.put_subscription(batch, session, topic_filter, granted)
    (found,) = recovered(batch)
    assert (found.number, found.client_id, found.user_name) == (number, client_id, user_name)
    assert (found.expiry_s, found.expires_at, found.persistent) == (expiry_s, 0.0, True)
    assert found.subscriptions == subscriptions
    assert found.inflight.window == 20


@given(
    st.one_of(st.binary(min_size=1, max_size=20), st.just(b"t" * 65535)),
    st.one_of(st.binary(max_size=50), st.just(b"p" * 200_000)),
    st.one_of(st.binary(max_size=50), st.just(b"q" * 70_000)),
    st.booleans(),
    TEXT,
    st.sampled_from([1, 2**32, 2**64 - 1]),
    st.sampled_from([0, 1, 0x8000, 65535]),
)
def test_messages(topic, payload, properties, retain, publisher, number, packet_id):
    session = session_with()
    batch = WriteBatch()
    persistence.put_session(batch, session, BEFORE)
    message = Message(topic, payload, properties, 1, retain, 5030.0, publisher, ORIGIN, number)
    put(batch, session, message, packet_id)
    (found,) = recovered(batch)
    (delivery,) = list(found.inflight.deliveries.values()) + found.queue.deliveries()
    assert delivery.packet_id == packet_id
    assert len(found.inflight) == (packet_id > 0)
    assert (delivery.seq, delivery.qos, delivery.stored) == (1, 1, True)
    back = delivery.message
    assert (back.topic, back.payload, back.properties) == (topic, payload, properties)
    assert (back.qos, back.retain, back.publisher) == (1, retain, publisher)
    assert (back.origin, back.number, back.references) == (ORIGIN, number, 1)
    # Thirty seconds were left, ten of them the node was down.
    assert back.expires_at == pytest.approx(120.0)


def test_deadlines_are_utc():
    assert BEFORE.to_utc_ms(0.0) == 0
    assert BEFORE.to_monotonic(0) == 0.0
    assert AFTER.to_monotonic(BEFORE.to_utc_ms(5010.0)) == 100.0
    assert AFTER.to_monotonic(BEFORE.to_utc_ms(5000.0)) == 90.0


def test_order_is_kept_and_goes_on():
    session = session_with()
    batch = WriteBatch()
    persistence.put_session(batch, session, BEFORE)
    for number in range(1, 301):
        put(batch, session, message_of(number), packet_id=number if number <= 3 else 0)
    (found,) = recovered(batch)
    assert list(found.inflight.deliveries) == [1, 2, 3]
    assert [delivery.message.number for delivery in found.queue.deliveries()] == list(range(4, 301))
    assert found.next_seq == 301


def test_a_body_is_stored_once_and_counted():
    one, two = session_with(1, "one"), session_with(2, "two")
    storage = MemoryStorage()
    batch = WriteBatch()
    message = message_of()
    persistence.put_session(batch, one, BEFORE)
    persistence.put_session(batch, two, BEFORE)
    first = put(batch, one, message)
    second = put(batch, two, message)
    # Writing a delivery again, with its packet id, is not another reference.
    second.packet_id = 9
    persistence.put_delivery(batch, two, second, BEFORE)
    assert message.references == 2
    assert sum(operation[1] == "message" for operation in batch.operations) == 1
    found = recovered(batch, storage=storage)
    assert found[0].queue.deliveries()[0].message is found[1].inflight.deliveries[9].message
    assert found[1].inflight.deliveries[9].message.references == 2
    batch = WriteBatch()
    persistence.delete_delivery(batch, one, first)
    storage.commit(batch)
    assert storage.get("message", message.key()) is not None
    batch = WriteBatch()
    persistence.delete_delivery(batch, two, second)
    storage.commit(batch)
    assert storage.get("message", message.key()) is None
    assert list(storage.scan("queue", b"", b"")) == []


def test_a_session_takes_its_subscriptions_along_and_no_others():
    storage = MemoryStorage()
    batch = WriteBatch()
    sessions = [session_with(number, f"c{number}") for number in (255, 256, 257)]
    for session in sessions:
        persistence.put_session(batch, session, BEFORE)
        for topic_filter in (b"\0", b"a", b"\xff" * 20, b"/"):
            persistence.put_subscription(batch, session, topic_filter, 1)
    storage.commit(batch)
    batch = WriteBatch()
    persistence.delete_session(batch, sessions[1])
    assert [found.number for found in recovered(batch, storage=storage)] == [255, 257]
    assert len(list(storage.scan("session", b"", b""))) == 10
    batch = WriteBatch()
    persistence.delete_subscription(batch, sessions[0], b"a")
    assert [set(found.subscriptions) for found in recovered(batch, storage=storage)] == [
        {b"\0", b"\xff" * 20, b"/"},
        {b"\0", b"a", b"\xff" * 20, b"/"},
    ]


@pytest.mark.parametrize("family", ["session", "queue", "message"])
def test_a_newer_version_is_refused(family):
    session = session_with()
    storage = MemoryStorage()
    batch = WriteBatch()
    persistence.put_session(batch, session, BEFORE)
    put(batch, session, message_of())
    storage.commit(batch)
    batch = WriteBatch()
    for key, value in storage.scan(family, b"", b""):
        batch.put(family, key, b"\x02" + value[1:])
    with pytest.raises(StorageError, match="version 2"):
        recovered(batch, storage=storage)


def test_a_delivery_without_its_message_is_said():
    session = session_with()
    batch = WriteBatch()
    persistence.put_session(batch, session, BEFORE)
    message = message_of()
    put(batch, session, message)
    batch.delete("message", message.key())
    with pytest.raises(StorageError, match="not there"):
        recovered(batch)
