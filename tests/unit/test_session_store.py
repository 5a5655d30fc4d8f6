"""broker.core.session_store: what is written is what a restart finds."""

import gc

import pytest
from builds import compiled
from core_helpers import STORE_ID, Node
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.arrival import Arrival
from broker.core.delivery_queue import HEAD_MAX
from broker.core.epoch import COUNTER_MAX, FIRST_EPOCH, Epoch
from broker.core.message import Delivery, Message
from broker.core.places import first_place
from broker.core.retained_rows import stored_key
from broker.core.session import Session
from broker.core.session_store import INLINE_BYTES_MAX, LOAD_MAX, NUMBER_MAX, SessionStore, make_dormant
from broker.core.shared import SharedGroup
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from broker.core.subscription import subscription

ORIGIN = b"0123456789abcdef"
BEFORE = Clock(5000.0, 1_700_000_000_000)
# Ten seconds later, after a boot: monotonic time is another.
AFTER = Clock(100.0, 1_700_000_010_000)
FILTERS = st.one_of(st.binary(min_size=1, max_size=20), st.just(b"t" * 65535))
PLAIN_FILTERS = FILTERS.filter(lambda topic_filter: not topic_filter.startswith(b"$share/"))
OPTIONS = st.sampled_from([options for options in range(16) if options & 3 != 3])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LARGE = b"p" * (INLINE_BYTES_MAX + 1)


def store_on(storage=None, clock=BEFORE):
    store = SessionStore(storage or MemoryStorage())
    store.clock = clock
    return store


def commit(store):
    store._storage.commit(store.take_writes())


def recovered(store, lifo=False):
    """(sessions, groups, the new store) after a restart."""
    commit(store)
    after = store_on(store._storage.survivor(), AFTER)
    sessions, groups = after.recover(20, lifo, lambda text: None)
    return sessions, groups, after


def session_in(store, number=1, client_id="c", expiry_s=60):
    session = Session(number, client_id, None, expiry_s, 20)
    session.persistent = True
    store.put_session(session)
    return session


def message_of(number=1, payload=b"p", **options):
    return Message(b"t", payload, qos=1, origin=ORIGIN, number=number, **options)


def put(store, session, message, packet_id=0, qos=1, **options):
    delivery = Delivery(session.take_seq(), message, qos, **options)
    delivery.packet_id = packet_id
    store.put_delivery(session.number, delivery)
    return delivery


def loaded(store, session):
    while session.queue.wants_load():
        store.load(session.number, session.queue)
    return session.queue.deliveries()


def keys(storage, family):
    return [key for key, _ in storage.scan(family, b"", b"")]


@settings(deadline=None)
@given(
    st.integers(1, NUMBER_MAX - 1),
    st.one_of(TEXT.filter(bool), st.just("x" * 65535)),
    st.one_of(st.none(), TEXT),
    st.integers(1, 0xFFFFFFFF),
    st.dictionaries(PLAIN_FILTERS, st.tuples(OPTIONS, st.integers(0, 268_435_455)), max_size=4),
    st.sets(st.integers(1, 65535), max_size=4),
)
def test_sessions(number, client_id, user_name, expiry_s, subscriptions, incoming):
    store = store_on()
    session = Session(number, client_id, user_name, expiry_s, 20)
    session.epoch = Epoch(number % COUNTER_MAX + 1, number, ORIGIN)
    store.put_session(session)
    for topic_filter, (options, identifier) in subscriptions.items():
        store.put_subscription(session, topic_filter, subscription(options, identifier))
    session.incoming = {packet_id: 0xFFFFFFFF - packet_id for packet_id in incoming}
    for packet_id in incoming:
        store.put_incoming(session, packet_id)
    (found,), groups, after = recovered(store)
    assert (found.number, found.client_id, found.user_name) == (number, client_id, user_name)
    assert (found.expiry_s, found.expires_at, found.persistent) == (expiry_s, 0.0, True)
    assert found.epoch == session.epoch
    assert {name: (sub.options, sub.identifier) for name, sub in found.subscriptions.items()} == subscriptions
    assert found.incoming == session.incoming
    assert found.inflight.window == 20
    assert groups == {}
    assert after.take_number() == number + 1


def test_a_packet_id_that_an_earlier_program_left_under_way_is_not_known():
    """Other nodes may not have the message, so the PUBLISH that comes again is published."""
    store = store_on()
    session = session_in(store, 1)
    session.incoming = {7: 77, 8: 88}
    store.put_incoming(session, 7)
    store.put_incoming(session, 8)
    (key,) = [key for _, _, key, _ in store.writes.operations if key.endswith(b"i\0\x07")]
    store.writes.put("session", key, b"\x02")
    (found,), _, _ = recovered(store)
    assert found.incoming == {8: 88}
    store.writes.put("session", key, b"\x03")
    with pytest.raises(StorageError, match="version 3"):
        recovered(store)


@settings(deadline=None)
@given(
    st.one_of(st.binary(min_size=1, max_size=20), st.just(b"t" * 65535)),
    st.one_of(st.binary(max_size=50), st.just(b"p" * 200_000)),
    st.one_of(st.binary(max_size=50), st.just(b"q" * 70_000)),
    st.tuples(st.booleans(), st.booleans(), st.integers(1, 2)),
    TEXT,
    st.sampled_from([1, 2**32, 2**64 - 1]),
    st.sampled_from([0, 1, 0x8000, 65535]),
    st.sampled_from([b"", b"\x0b\x05", b"\x0b\x05" * 100]),
)
def test_deliveries(topic, payload, properties, flags, publisher, number, packet_id, identifiers):
    retained, retain, qos = flags
    store = store_on()
    session = session_in(store)
    message = Message(topic, payload, properties, 2, retained, 5030.0, publisher, ORIGIN, number)
    put(store, session, message, packet_id, qos, retain=retain, identifiers=identifiers)
    (found,), _, after = recovered(store)
    (delivery,) = list(found.inflight.deliveries.values()) + loaded(after, found)
    assert delivery.packet_id == packet_id
    assert len(found.inflight) == (packet_id > 0)
    assert (delivery.seq, delivery.qos, delivery.stored, delivery.released) == (1, qos, True, False)
    assert (delivery.retain, delivery.identifiers, delivery.size) == (retain, identifiers, message.size())
    back = delivery.message
    assert (back.topic, back.payload, back.properties) == (topic, payload, properties)
    assert (back.qos, back.retain, back.publisher) == (2, retained, publisher)
    assert (back.origin, back.number) == (ORIGIN, number)
    # Thirty seconds were left, ten of them the node was down.
    assert back.expires_at == pytest.approx(120.0)


def test_deadlines_are_utc():
    assert BEFORE.to_utc_ms(0.0) == 0
    assert BEFORE.to_monotonic(0) == 0.0
    assert AFTER.to_monotonic(BEFORE.to_utc_ms(5010.0)) == 100.0
    assert AFTER.to_monotonic(BEFORE.to_utc_ms(5000.0)) == 90.0


def test_order_is_kept_and_goes_on():
    store = store_on()
    session = session_in(store)
    count = 3 * LOAD_MAX
    for number in range(1, count + 1):
        put(store, session, message_of(number), packet_id=number if number <= 3 else 0)
    (found,), _, after = recovered(store)
    assert list(found.inflight.deliveries) == [1, 2, 3]
    assert len(found.queue) == count - 3
    assert found.queue.in_memory() == 0
    # Places begin anew with each home of a session.
    assert found.next_seq == first_place(found.epoch) + 1 > count
    numbers = []
    while len(found.queue):
        if found.queue.wants_load():
            after.load(found.number, found.queue)
        numbers.append(found.queue.pop().message.number)
    assert numbers == list(range(4, count + 1))


def deliveries_alive():
    """How many there are; the collector sees none of a compiled class."""
    gc.collect()
    return sum(isinstance(found, Delivery) for found in gc.get_objects())


@compiled
@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("payload", [b"small", LARGE])
def test_a_long_queue_is_not_read_into_memory(payload, lifo):
    """After recovery only what was in flight is, and later a head."""
    store = store_on()
    session = session_in(store)
    count, in_flight = 4 * HEAD_MAX, 20
    for number in range(1, count + 1):
        put(store, session, message_of(number, payload), packet_id=number if number <= in_flight else 0)
    before = deliveries_alive()
    (found,), _, after = recovered(store, lifo)
    assert (len(found.queue), found.queue.in_memory(), len(found.inflight)) == (count - in_flight, 0, in_flight)
    assert deliveries_alive() - before <= in_flight
    taken = most = 0
    while len(found.queue):
        if found.queue.wants_load():
            after.load(found.number, found.queue)
            most = max(most, deliveries_alive() - before)
        assert found.queue.in_memory() <= HEAD_MAX
        found.queue.pop()
        taken += 1
    assert taken == count - in_flight
    # The one that was taken last is held by nobody but this test.
    assert most <= in_flight + HEAD_MAX + 1


def test_a_lifo_queue_is_read_from_its_end():
    store = store_on()
    session = session_in(store)
    for number in range(1, 11):
        # What is in flight may lie among what waits.
        put(store, session, message_of(number), packet_id=number if number in (4, 10) else 0)
    (found,), _, after = recovered(store, lifo=True)
    after.load(found.number, found.queue)
    assert [found.queue.pop().message.number for _ in range(8)] == [9, 8, 7, 6, 5, 3, 2, 1]


def test_a_full_lifo_queue_loses_its_oldest_in_the_store():
    store = store_on()
    session = session_in(store)
    for number in range(1, 6):
        put(store, session, message_of(number, LARGE))
    (found,), _, after = recovered(store, lifo=True)
    assert after.trim(found.number, found.queue, 3, -1) == 2
    commit(after)
    assert [delivery.message.number for delivery in loaded(after, found)] == [3, 4, 5]
    assert len(keys(after._storage, "message")) == 3


def test_a_lifo_queue_over_its_bytes_loses_its_oldest_in_the_store():
    store = store_on()
    session = session_in(store)
    for number in range(1, 6):
        put(store, session, message_of(number, LARGE))
    (found,), _, after = recovered(store, lifo=True)
    assert after.trim(found.number, found.queue, -1, 2 * (len(LARGE) + 1)) == 3
    assert found.queue.bytes == 2 * (len(LARGE) + 1)
    commit(after)
    assert after.trim(found.number, found.queue, -1, 1) == 1
    commit(after)
    assert [delivery.message.number for delivery in loaded(after, found)] == [5]


def test_trimming_leaves_what_is_in_flight_and_goes_on_where_it_was():
    store = store_on()
    session = session_in(store)
    for number in range(1, 9):
        put(store, session, message_of(number), packet_id=number if number in (2, 4) else 0)
    (found,), _, after = recovered(store, lifo=True)
    first = found.queue.oldest_seq
    for wanted in (4, 3):
        assert after.trim(found.number, found.queue, wanted, -1) == (2 if wanted == 4 else 1)
        commit(after)
        assert found.queue.oldest_seq > first
        first = found.queue.oldest_seq
    assert sorted(found.inflight.deliveries) == [2, 4]
    assert len(keys(after._storage, "queue")) == 3 + 2
    (found,), _, after = recovered(after, lifo=True)
    assert sorted(found.inflight.deliveries) == [2, 4]
    assert [delivery.message.number for delivery in loaded(after, found)] == [6, 7, 8]


def test_a_small_body_lies_with_each_delivery_and_a_large_one_is_stored_once():
    for payload, bodies in ((b"small", 0), (LARGE, 1)):
        store = store_on()
        one, two = session_in(store, 1, "one"), session_in(store, 2, "two")
        message = message_of(1, payload)
        first, second = put(store, one, message), put(store, two, message)
        # Writing a delivery again, with its packet id, is not another reference.
        second.packet_id = 9
        store.put_delivery(2, second)
        commit(store)
        assert len(keys(store._storage, "message")) == bodies
        sessions, _, after = recovered(store)
        assert [found.message.payload for found in loaded(after, sessions[0])] == [payload]
        after.delete_delivery(1, sessions[0].queue.pop())
        commit(after)
        assert len(keys(after._storage, "message")) == bodies
        after.delete_delivery(2, sessions[1].inflight.deliveries[9])
        commit(after)
        assert keys(after._storage, "message") == keys(after._storage, "queue") == []
        store.delete_delivery(1, first)
        store.delete_delivery(2, second)
        commit(store)
        assert keys(store._storage, "message") == []


def test_a_released_delivery_is_its_packet_id():
    for payload in (b"small", LARGE):
        store = store_on()
        session = session_in(store)
        delivery = put(store, session, message_of(1, payload), packet_id=5, qos=2)
        store.release_delivery(1, delivery)
        (found,), _, after = recovered(store)
        assert keys(after._storage, "message") == []
        back = found.inflight.deliveries[5]
        assert (back.released, back.qos, back.message.payload, back.stored) == (True, 2, b"", True)
        after.delete_delivery(1, back)
        commit(after)
        assert keys(after._storage, "queue") == []


def test_the_ids_of_what_is_below_a_place():
    """But for what a group gave, which may come on another way as well; of what was released nobody has the id."""
    store = store_on()
    session = session_in(store)
    put(store, session_in(store, 2, "d"), message_of(9))
    put(store, session, message_of(1), identifiers=b"\x0b\x07")
    put(store, session, message_of(2, LARGE), packet_id=4)
    shared = Delivery(session.take_seq(), message_of(3), 1)
    shared.shared = b"$share/g/t"
    store.put_delivery(1, shared)
    store.release_delivery(1, put(store, session, message_of(4), packet_id=5, qos=2))
    last = put(store, session, message_of(5))
    commit(store)
    assert store.ids_before(1, last.seq) == [(ORIGIN, 1), (ORIGIN, 2)]


def test_what_comes_to_the_next_home_of_a_stub_as_well_is_stored_as_long_as_that_stands():
    store = store_on()
    stub, session = session_in(store, 1), session_in(store, 2)
    for each in (stub, session):
        store.put_departing(each)
        each.switched_home, each.switched = b"h" * 16, {ORIGIN: 5, b"e" * 16: 7}
        store.put_switched(each)
    store.delete_departing(session)
    commit(store)
    found, _groups, after = recovered(store)
    assert [(each.switched_home, each.switched) for each in found] == [
        (b"h" * 16, {ORIGIN: 5, b"e" * 16: 7}),
        (bytes(16), None),
    ]
    found[0].switched = {}
    after.put_switched(found[0])
    commit(after)
    found, _groups, after = recovered(after)
    assert found[0].switched == {}
    after.delete_session(found[0])
    commit(after)
    assert not [key for key in keys(after._storage, "session") if key[8:] == b"s"]


def test_dormant_sessions():
    """All of a store are made dormant, and wake one by one; groups are not touched."""
    store = store_on()
    stub, session = session_in(store, 1), session_in(store, 2)
    store.put_departing(stub)
    store.put_subscription(session, b"z", subscription(1, 0))
    store.put_group(SharedGroup(3, b"$share/g/t"))
    commit(store)
    batch = WriteBatch()
    make_dormant(store._storage, batch)
    store._storage.commit(batch)
    found, groups, after = recovered(store)
    assert [(each.dormant, each.departing) for each in found] == [(True, True), (True, False)]
    assert list(groups) == [b"$share/g/t"] and list(found[1].subscriptions) == [b"z"]
    found[0].awake_from = 7
    after.put_awake(found[0])
    found, _groups, after = recovered(after)
    assert [(each.dormant, each.awake_from) for each in found] == [(False, 7), (True, 0)]
    after.delete_session(found[1])
    commit(after)
    assert [key[:8] for key in keys(after._storage, "session") if key[8:] == b"z"] == [bytes(7) + b"\x01"]


@pytest.mark.parametrize("departing", [False, True])
def test_the_ids_of_what_old_homes_gave(departing):
    """Each part in a row of its own, until nobody may give them any more. A stub may have given them away since."""
    store = store_on()
    session = session_in(store)
    session.arrival = Arrival(first_place(Epoch(2, 0, ORIGIN)))
    for numbers in ((1, 5), (7,)):
        for number in numbers:
            assert not session.arrival.comes_again(ORIGIN, number, True)
        store.put_arrival(session)
        store.put_given_ids(session)
        assert not session.arrival.fresh_ids
    if departing:
        store.put_departing(session)
    (found,), _groups, after = recovered(store)
    assert found.arrival is not None
    assert found.arrival.ids == ({} if departing else {ORIGIN: {1, 5, 7}})
    assert (found.arrival.id_rows, found.arrival.fresh_ids) == (2, {})
    after.delete_given_ids(found)
    (found,), _groups, _after = recovered(after)
    assert found.arrival is not None
    assert (found.arrival.ids, found.arrival.id_rows) == ({}, 0)


@pytest.mark.parametrize("committed", [True, False])
def test_a_session_that_ends_takes_everything_with_it(committed):
    """Also bodies that only records in the tail point to, whether those are committed or of the same turn."""
    store = store_on()
    sessions = [session_in(store, number, f"c{number}") for number in range(1, 4)]
    for session in sessions:
        store.put_subscription(session, b"a", subscription(1))
        session.incoming[7] = 1
        store.put_incoming(session, 7)
    shared = message_of(999, LARGE)
    for session in (sessions[0], sessions[1]):
        for number in range(1, 6):
            message = message_of(session.number * 10 + number, LARGE) if number > 1 else shared
            delivery = put(store, session, message)
            session.queue.restore(delivery.seq, delivery.size)
    if committed:
        commit(store)
    store.delete_session(sessions[1])
    commit(store)
    assert {key[:8] for key in keys(store._storage, "session")} == {(n).to_bytes(8, "big") for n in (1, 3)}
    assert {key[:8] for key in keys(store._storage, "queue")} == {(1).to_bytes(8, "big")}
    assert len(keys(store._storage, "message")) == 5
    store.delete_subscription(sessions[0], b"a")
    store.delete_incoming(sessions[0], 7)
    found, _, _ = recovered(store)
    assert (found[0].subscriptions, found[0].incoming) == ({}, {})
    assert list(found[1].subscriptions) == [b"a"]


def test_groups_and_their_queues():
    store = store_on()
    session = session_in(store, 1)
    store.put_subscription(session, b"$share/g/a", subscription(1))
    group = SharedGroup(2, b"$share/g/a")
    store.put_group(group)
    for number in (1, 2):
        store.put_delivery(2, Delivery(group.take_seq(), message_of(number, LARGE), 1))
    _, groups, after = recovered(store)
    found = groups[b"$share/g/a"]
    assert (found.number, found.topic_filter, found.stored, len(found.queue)) == (2, b"a", True, 2)
    assert found.take_seq() == 3
    assert after.take_number() == 3
    after.load(2, found.queue)
    assert [found.queue.pop().message.number for _ in range(2)] == [1, 2]
    after.delete_group(found)
    commit(after)
    assert keys(after._storage, "queue") == []
    assert [len(key) for key in keys(after._storage, "session") if key[7] == 2] == []


@pytest.mark.parametrize("garbage", [0, 1, 2, 5])
def test_bodies_that_nothing_points_to_are_deleted_where_there_may_be_some(monkeypatch, garbage):
    monkeypatch.setattr("broker.core.session_store.SWEPT_MAX", 2)
    store = store_on()
    session = session_in(store)
    for number in range(1, 4):
        put(store, session, message_of(number, LARGE))
    kept = [message_of(number).key() for number in range(1, 4)]
    for number in range(garbage):
        store.writes.put("message", message_of(100 + number).key(), b"\1")
    _, _, after = recovered(store)
    # To look is to read all there is, so it is not done for nothing.
    assert len(keys(after._storage, "message")) == 3 + garbage
    store.writes.put("meta", b"unreferenced", b"\1")
    found, _, after = recovered(store)
    assert keys(after._storage, "message") == kept
    assert keys(after._storage, "meta") == []
    assert len(found[0].queue) == 3
    store.writes.put("meta", b"unreferenced", b"\2")
    with pytest.raises(StorageError, match="has version 2"):
        recovered(store)


def test_recovery_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr("broker.core.session_store.PROGRESS_RECORDS", 2)
    store = store_on()
    session = session_in(store)
    for number in range(5):
        put(store, session, message_of(number))
    commit(store)
    said = []
    store_on(store._storage).recover(20, False, said.append)
    if said:  # A compiled module has its constants built in.
        assert said == ["recovering: 2 queued messages read", "recovering: 4 queued messages read"]


@pytest.mark.parametrize("family", ["session", "queue", "message"])
def test_a_newer_version_is_refused(family):
    store = store_on()
    session = session_in(store)
    put(store, session, message_of(1, LARGE), packet_id=1)
    commit(store)
    batch = WriteBatch()
    for key, value in store._storage.scan(family, b"", b""):
        batch.put(family, key, b"\x63" + value[1:])
    store._storage.commit(batch)
    with pytest.raises(StorageError, match=f"{family} record has version 99"):
        store_on(store._storage).recover(20, False, lambda text: None)


def test_a_session_without_an_epoch_is_of_the_first():
    """Reason: a store that was written before sessions had epochs."""
    store = store_on()
    store.writes.put("session", bytes(7) + b"\x05", b"\x01\x01\0\0\0\x3c" + bytes(8) + b"\0\1c\0\1u")
    (found,), _, _ = recovered(store)
    assert (found.number, found.client_id, found.user_name, found.expiry_s) == (5, "c", "u", 60)
    assert found.epoch == FIRST_EPOCH


def test_a_delivery_without_its_message_is_corruption():
    store = store_on()
    session = session_in(store)
    delivery = put(store, session, message_of(1, LARGE), packet_id=1)
    commit(store)
    batch = WriteBatch()
    batch.delete("message", delivery.message.key())
    store._storage.commit(batch)
    with pytest.raises(StorageError, match="not there"):
        store_on(store._storage).recover(20, False, lambda text: None)


def test_a_long_key_is_named_by_its_beginning():
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("session", ORPHAN + b"/" + b"t" * 65535, b"\x01")
    storage.commit(batch)
    with pytest.raises(StorageError, match=rf"{ORPHAN.hex()}2f(74)+\.\.\. is corrupt") as caught:
        Node(storage=storage)
    assert len(str(caught.value)) < 300


ORPHAN = bytes(7) + b"\x99"
RETAINED = stored_key(STORE_ID, b"t")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("session", ORPHAN + b"/t", b"\x01\x01\0\0\0\0"),
        ("session", ORPHAN + b"i\0\1", b"\x01"),
        ("session", ORPHAN, b"\x01"),
        ("session", ORPHAN, b""),
        ("session", ORPHAN, b"\x02" + bytes(13 + 31)),
        ("session", ORPHAN, b"\x01" + bytes(13) + b"\0\x09short"),
        ("session", ORPHAN, b"\x01" + bytes(13) + b"\0\1\xff\0\0"),
        ("session", ORPHAN + b"?", b"\x01"),
        ("session", ORPHAN + b"$$share/g\0t", b"\x01"),
        ("queue", ORPHAN + bytes(8), b"\x01\x09\0\0\0\0\0\1" + bytes(40)),
        ("queue", ORPHAN + bytes(8), b"\x01"),
        ("retained", RETAINED, b"\x01\x01\0" + bytes(8) + b"k" * 24),
        ("retained", RETAINED[:-1], b"\x01\x01\0" + bytes(8) + b"k" * 24 + bytes(11) + b"\0\1t\0\0\0\0x"),
        ("retained", RETAINED, b""),
        ("retained", RETAINED, b"\x01\x01\x01" + bytes(33)),
        ("will", b"c", b"\x01"),
        ("will", b"c", b"\x01" + bytes(17) + b"\0\0\0\1t\0\0\0\x09"),
        ("will", b"\xff", b"\x01" + bytes(17) + b"\0\0\0\1t\0\0\0\0"),
        ("retained", RETAINED, b"\x01\x01\0" + bytes(8) + b"k" * 24 + bytes(11) + b"\0\1t\0\0\0\x09"),
        ("retained", RETAINED, b"\x01\x01\0" + bytes(8) + b"k" * 24 + bytes(11) + b"\0\1u\0\0\0\0x"),
    ],
)
def test_a_record_that_can_not_be_read_is_named(family, key, value):
    """Reason: the process ends with one sentence for a StorageError, and with a traceback for anything else."""
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put(family, key, value)
    storage.commit(batch)
    with pytest.raises(StorageError, match=rf"{family} record"):
        Node(storage=storage)


FOUND = bytes(7) + b"\x01"
SESSION = b"\x01\0\0\0\0\x3c" + bytes(8) + b"\0\1c\0\0"
SMALL = b"k" * 24 + bytes(11) + b"\0\1t\0\0\0\0x"


def queued(flags=9, packet_id=0, size=1, rest=SMALL):
    return b"\x01" + bytes([flags]) + packet_id.to_bytes(2, "big") + size.to_bytes(4, "big") + rest


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("session", FOUND + b"$$share/g/t", b"\x01"),
        ("session", FOUND + b"i\0\1\2", b"\x01"),
        ("session", FOUND + b"i", b"\x01"),
        ("session", FOUND + b"/t", b"\x01\x03\0\0\0\0"),
        ("session", FOUND + b"/" + b"t" * 55, b"\x01\x03\0\0\0\0"),
        ("session", FOUND + b"/$share/g", b"\x01\x01\0\0\0\0"),
        # A number behind which there is none for the next session, and a client id that is none.
        ("session", b"\xff" * 7 + b"\xfe", SESSION),
        ("session", bytes(7) + b"\3", SESSION[:14] + bytes(4)),
        ("queue", FOUND + bytes(8), queued()),
        ("queue", FOUND + bytes(6) + b"\1", queued()),
        ("queue", FOUND + bytes(8) + b"\1", queued()),
        ("queue", FOUND + bytes(7) + b"\2", queued(flags=8)),
        ("queue", FOUND + bytes(7) + b"\2", queued(flags=11)),
        ("queue", FOUND + bytes(7) + b"\2", queued(flags=18, rest=b"")),
        ("queue", FOUND + bytes(7) + b"\2", queued(size=513)),
        ("queue", FOUND + bytes(7) + b"\2", queued(flags=1, size=512)),
        ("queue", FOUND + bytes(7) + b"\2", queued(packet_id=5)),
        ("queue", FOUND + bytes(7) + b"\2", queued(packet_id=6, rest=SMALL[:-2])),
        ("queue", bytes(7) + b"\2" + bytes(7) + b"\1", queued(packet_id=1)),
    ],
)
def test_a_record_that_does_not_fit_is_named(family, key, value):
    """What is believed of it would end the process later, without a word of the store."""
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("session", FOUND, SESSION)
    batch.put("session", bytes(7) + b"\2$$share/g/t", b"\x01")
    batch.put("queue", FOUND + bytes(7) + b"\1", queued(packet_id=5))
    storage.commit(batch)
    assert len(Node(storage=storage.survivor()).owner._sessions) == 1
    batch = WriteBatch()
    batch.put(family, key, value)
    storage.commit(batch)
    with pytest.raises(StorageError, match=rf"the {family} record {key.hex()} is corrupt"):
        Node(storage=storage)


@pytest.mark.parametrize(
    ("key", "value"),
    [(bytes(7) + b"\2", SESSION), (bytes(7) + b"\4$$share/g/t", b"\x01")],
)
def test_two_of_what_there_must_be_one_of_is_corruption(key, value):
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("session", FOUND, SESSION)
    batch.put("session", bytes(7) + b"\3$$share/g/t", b"\x01")
    batch.put("session", key, value)
    storage.commit(batch)
    with pytest.raises(StorageError, match="two sessions of one client id, or two groups of one filter"):
        Node(storage=storage)
