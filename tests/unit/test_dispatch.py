"""broker.core.dispatch: long queues, of which memory holds the head only; what limits, pauses and credit do to them.

Every queue here is longer than a head and more than one part that is read at a time.
"""

import pytest
from core_helpers import Node

from broker.core.delivery_queue import HEAD_MAX
from broker.core.events import ConnectionPaused, ConnectionResumed, PubackReceived
from broker.core.inflight import AHEAD_MAX
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Connect, Puback, Publish, Pubrec, Subscribe, SubscriptionRequest, Will
from broker.mqtt.properties import Property

RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)
MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)
EXPIRY = int(Property.SESSION_EXPIRY_INTERVAL)
COUNT = 3000
UNLIMITED = {"max_offline_messages": -1, "max_online_messages": -1}
SIZES = pytest.mark.parametrize("size", [0, 600], ids=["small", "large"])


def payload_of(number: int, size: int = 0) -> bytes:
    return b"%d" % number + b"x" * size


def numbers(payloads) -> list[int]:
    return [int(payload.rstrip(b"x")) for payload in payloads]


def publish(node: Node, count: int, size: int = 0, first: int = 0, settle: bool = True, **options) -> None:
    """So many messages at once, in as few turns as frames allow: without `settle` not even one."""
    publisher = node.connect(f"p{first}", 5)
    for number in range(first, first + count):
        publisher.say(Publish(b"a", payload_of(number, size), 1, packet_id=number % 60_000 + 1, **options))
    if settle:
        node.settle()


def away(node: Node, client_id: str = "c") -> None:
    """A session that subscribes to `a` and leaves."""
    client = node.persistent(client_id)
    client.subscribe(b"a")
    client.drop()


def drain(node: Node, window: int, client_id: str = "c", version: int = 5) -> list[int]:
    """Everything that a client hears that acknowledges at once."""
    client = node.persistent(client_id, version, properties={RECEIVE_MAXIMUM: window} if version == 5 else {})
    heard = []
    while packets := client.take_publishes():
        assert len(packets) <= window
        assert not any(packet.dup for packet in packets)
        heard += [packet.payload for packet in packets]
        for packet in packets:
            client.say(Puback(packet.packet_id))
        node.settle()
    client.drop()
    return numbers(heard)


def assert_empty(node: Node) -> None:
    node.validate()
    assert node.stored("queue") == node.stored("message") == []
    assert node.owner.counts()["queued_messages"] == 0


def in_memory(node: Node, client_id: str = "c") -> int:
    return node.owner._sessions[client_id].queue.in_memory()


@SIZES
def test_a_long_queue_of_a_client_that_is_away(start, size):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, COUNT, size)
    assert node.owner.counts()["queued_messages"] == COUNT
    assert in_memory(node) <= HEAD_MAX
    restarted = node.restart()
    assert restarted.owner.counts()["queued_messages"] == COUNT
    assert in_memory(restarted) == 0
    for world, window in ((node, 20), (restarted, 7)):
        assert drain(world, window) == list(range(COUNT))
        assert_empty(world)


@SIZES
def test_a_queue_goes_on_growing_while_it_is_read(start, size):
    """Neither an old one at its end nor a new one at its head; a restart in the middle changes nothing."""
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1500, size)
    node = node.restart()
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 100})
    heard = []
    for step in range(15):
        packets = client.take_publishes()
        heard += numbers(packet.payload for packet in packets)
        publish(node, 50, size, first=1500 + 50 * step)
        for packet in packets:
            client.say(Puback(packet.packet_id))
        node.settle()
    client.drop()
    restarted = node.restart()
    client = restarted.persistent("c")
    first = [packet for packet in client.take_publishes() if packet.dup]
    client.drop()
    # Small ones had run ahead to the listener, which died with the node: they may have been sent.
    heard += numbers(packet.payload for packet in first)
    assert heard == list(range(len(heard)))
    assert 1600 <= len(heard) < 1600 + AHEAD_MAX
    restarted.validate()


@SIZES
@pytest.mark.parametrize("lifo", [False, True], ids=["fifo", "lifo"])
@pytest.mark.parametrize("connected", [False, True], ids=["away", "paused"])
def test_clean_start_of_a_queue_in_the_turn_in_which_it_grew(start, size, lifo, connected):
    """Records and bodies of that turn are in no scan yet."""
    node = start(settings=OwnerSettings(queue_lifo=lifo, **UNLIMITED))
    client = node.persistent("c")
    client.subscribe(b"a")
    if connected:
        node.owner.receive(ConnectionPaused(client.key), node.now)
    else:
        client.drop()
    publish(node, 100, size)
    publish(node, 900, size, first=100, settle=False)
    again = node.open(1, 5)
    again.say(Connect(5, "c", True, 0))
    turns = len(node.turns)
    node.settle()
    assert len(node.turns[turns].writes) > 900
    assert_empty(node)
    assert_empty(node.restart())


@SIZES
def test_clean_start_of_a_long_queue_after_a_restart(start, size):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    away(node, "other")
    publish(node, 1000, size)
    restarted = node.restart()
    restarted.connect("c").drop()
    restarted.validate()
    assert drain(restarted, 50, "other") == list(range(1000))
    assert_empty(restarted)


@SIZES
def test_expiry_of_a_session_with_a_long_queue(start, size):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1000, size)
    for world in (node, node.restart()):
        world.advance(4000)
        assert_empty(world)


def test_the_tail_is_not_read_while_something_is_uncommitted(start):
    """What the supervisor's word writes before a turn begins is in no scan yet: reading on waits for the commit."""
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 100)
    node = node.restart()
    node.connect("w", listener=1, will=Will(b"a", b"100", 1))
    client = node.open(0, 5)
    client.say(Connect(5, "c", False, 0, properties={EXPIRY: 3600, RECEIVE_MAXIMUM: 200}))
    node.receive_frame(node.listeners[0].take_frame())
    node.turn()
    # All of the queue is in the store, and the will becomes part of it before the turn that reads it begins.
    node.lose_listener(1)
    assert node.owner.counts()["queued_messages"] == 101
    assert numbers(packet.payload for packet in client.take()[1:]) == list(range(101))


# LIFO.


@SIZES
def test_a_lifo_queue_gives_the_youngest_first(start, size):
    node = start(settings=OwnerSettings(queue_lifo=True, **UNLIMITED))
    away(node)
    publish(node, COUNT, size)
    for world in (node, node.restart()):
        assert drain(world, 10) == list(reversed(range(COUNT)))
        assert_empty(world)


@SIZES
def test_a_lifo_queue_that_ends_in_the_turn_in_which_part_of_it_was_sent(start, size):
    """What was sent and acknowledged in that turn lies among the places of the tail, and is not part of it."""
    node = start(settings=OwnerSettings(queue_lifo=True, max_inflight_messages=0, **UNLIMITED))
    client = node.persistent("c")
    client.subscribe(b"a")
    first, second = node.connect("first", 5), node.connect("second", 5, listener=1)
    for number in range(905):
        publisher = first if number < 5 else second
        publisher.say(Publish(b"a", payload_of(number, size), 1, packet_id=number + 1))
    again = node.open(1, 5)
    again.say(Connect(5, "c", True, 0))
    # All of it is one turn.
    node.receive_frame(node.listeners[0].take_frame())
    node.owner.receive(PubackReceived(client.key, 2), node.now)
    node.owner.receive(ConnectionPaused(client.key), node.now)
    node.receive_frame(node.listeners[1].take_frame())
    node.settle()
    assert_empty(node)


@SIZES
def test_a_lifo_queue_that_ends_in_the_turn_in_which_it_is_trimmed(start, size):
    node = start(settings=OwnerSettings(queue_lifo=True, max_offline_messages=1000, max_online_messages=-1))
    away(node)
    away(node, "other")
    publish(node, 1200, size, settle=False)
    node.receive_frame(node.listeners[0].take_frame())
    node.turn()
    assert node.owner.next_deadline() == 0.0
    again = node.open(1, 5)
    again.say(Connect(5, "c", True, 0))
    node.settle()
    assert drain(node, 20, "other") == list(reversed(range(200, 1200)))
    assert_empty(node)


def test_a_lifo_queue_keeps_its_limit_in_bytes(start):
    """One large message may cost many small ones."""
    node = start(settings=OwnerSettings(queue_lifo=True, max_queued_bytes=5000, **UNLIMITED))
    away(node)
    publish(node, 1200)
    assert node.owner.counters.dropped == {}
    publish(node, 8, 600, first=1200)
    queue = node.owner._sessions["c"].queue
    assert queue.bytes <= 5000
    kept = drain(node, 20)
    assert kept[:8] == list(reversed(range(1200, 1208)))
    assert kept == list(reversed(range(1208 - len(kept), 1208)))
    assert node.dropped("queue_full") == 1208 - len(kept)
    assert_empty(node)


def test_a_lifo_queue_of_nothing_takes_nothing(start):
    node = start(settings=OwnerSettings(queue_lifo=True, max_offline_messages=0))
    away(node)
    publish(node, 3)
    assert node.dropped("queue_full") == 3
    assert_empty(node)


@SIZES
@pytest.mark.parametrize("kept", [10, 1000])
def test_a_full_lifo_queue_loses_its_oldest(start, size, kept):
    node = start(settings=OwnerSettings(queue_lifo=True, max_offline_messages=kept, max_online_messages=-1))
    away(node)
    publish(node, 2000, size)
    publish(node, 500, size, first=2000)
    assert node.dropped("queue_full") == 2500 - kept
    assert len(node.stored("queue")) == kept
    assert len(node.owner.take_notices()) == 1
    for world in (node, node.restart()):
        assert drain(world, 10) == list(reversed(range(2500 - kept, 2500)))
        assert_empty(world)


# Limits.


@SIZES
def test_a_full_fifo_queue_keeps_its_oldest(start, size):
    node = start(settings=OwnerSettings(max_offline_messages=1000))
    away(node)
    publish(node, 1500, size)
    assert node.dropped("queue_full") == 500
    notices = node.owner.take_notices()
    assert len(notices) == 1
    assert "1000" in notices[0]
    assert drain(node.restart(), 50) == list(range(1000))


@pytest.mark.parametrize(("override", "accepted"), [(False, 0), (True, 500)])
def test_the_online_limit_of_a_backlog(start, override, accepted):
    """A backlog over the online limit is not cut; whether more may join it is `override_max_online_messages`'s."""
    limits = OwnerSettings(max_offline_messages=1000, max_online_messages=100, override_max_online_messages=override)
    node = start(settings=limits)
    away(node)
    publish(node, 500)
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    publish(node, 500, first=500)
    assert node.dropped("queue_full") == 500 - accepted
    assert node.owner.counts()["queued_messages"] == 500 + accepted
    client.drop()


@pytest.mark.parametrize("online", [-1, 100])
def test_overriding_an_unlimited_backlog(start, online):
    limits = OwnerSettings(max_offline_messages=-1, max_online_messages=online, override_max_online_messages=True)
    node = start(settings=limits)
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(b"a")
    publish(node, 1000)
    assert node.owner.counters.dropped == {}
    assert node.owner.counts()["queued_messages"] == 1000


@pytest.mark.parametrize("restart", [False, True])
def test_the_limit_in_bytes(start, restart):
    """Counted for all that waits or is in flight, in memory or not, and again after a restart."""
    node = start(settings=OwnerSettings(max_queued_bytes=700 * 104, **UNLIMITED))
    away(node)
    publisher = node.connect("p")
    for number in range(800):
        publisher.say(Publish(b"a", b"%03d" % number + b"x" * 100, 1, packet_id=number + 1))
    node.settle()
    assert node.dropped("queue_full") == 100
    if restart:
        node = node.restart()
    publisher = node.connect("p")
    publisher.publish(b"a", b"y" * 103, qos=1)
    assert node.owner.counts()["queued_messages"] == 700
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.acknowledge(client.take_publishes()[0].packet_id)
    publisher.publish(b"a", b"y" * 103, qos=1)
    publisher.publish(b"a", b"y" * 103, qos=1)
    assert node.owner.counts()["queued_messages"] == 700
    client.drop()
    assert len(drain_all(node)) == 700


def drain_all(node: Node) -> list[bytes]:
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 100})
    heard = []
    while packets := client.take_publishes():
        heard += packets
        client.acknowledge(*[packet.packet_id for packet in packets])
    return heard


def test_a_single_message_over_the_limit_in_bytes_is_taken(start):
    node = start(settings=OwnerSettings(max_queued_bytes=100))
    away(node)
    publish(node, 2, 600)
    assert node.dropped("queue_full") == 1
    assert drain(node, 5) == [0]


def held_bytes(node: Node, client_id: str = "c") -> int:
    session = node.owner._sessions[client_id]
    return session.queue.bytes + session.inflight.bytes


@pytest.mark.parametrize("lifo", [False, True], ids=["fifo", "lifo"])
def test_a_client_that_never_acknowledges_holds_no_more_than_the_limit_in_bytes(start, lifo):
    """Its window has room for all of it, and memory has not. What is acknowledged makes room again."""
    node = start(settings=OwnerSettings(max_online_messages=10, max_queued_bytes=10_000, queue_lifo=lifo))
    client = node.persistent("c")
    client.subscribe(b"a")
    publish(node, 1500, 996)
    sent = client.take_publishes()
    assert numbers(packet.payload for packet in sent) == list(range(10))
    assert (held_bytes(node), node.dropped("queue_full")) == (9980, 1490)
    client.acknowledge(sent[0].packet_id)
    publish(node, 2, 990, first=1500)
    assert numbers(client.take_payloads()) == [1500]
    client.drop()
    node = node.restart()
    assert held_bytes(node) <= 10_000
    publish(node, 5, 990, first=1600)
    assert node.dropped("queue_full") == 5
    client = node.persistent("c")
    assert numbers(client.take_payloads()) == [*range(1, 10), 1500]


def test_what_a_client_has_of_qos2_holds_no_bytes(start):
    node = start(settings=OwnerSettings(max_queued_bytes=1000))
    client = node.persistent("c")
    client.subscribe(b"a", 2)
    publisher = node.connect("p", 5)
    for number in range(20):
        publisher.publish_qos2(b"a", b"x" * 600, number + 1)
        (packet,) = client.take_publishes()
        assert held_bytes(node) == 601
        client.send(Pubrec(packet.packet_id))
        client.take()
        assert held_bytes(node) == 0
    assert (len(node.owner._sessions["c"].inflight), node.owner.counters.dropped) == (20, {})
    node = node.restart()
    assert held_bytes(node) == 0


def test_retained_messages_wait_for_the_limit_in_bytes(start):
    node = start(settings=OwnerSettings(max_queued_bytes=1000))
    publisher = node.connect("p")
    for number in range(10):
        publisher.publish(b"r/%d" % number, b"x" * 400, qos=1, retain=True)
    client = node.persistent("c")
    client.send(Subscribe(7, (SubscriptionRequest(b"r/+", 1),)))
    heard = []
    while packets := [packet for packet in client.take() if isinstance(packet, Publish)]:
        assert held_bytes(node) <= 1000
        assert len(packets) <= 2
        heard += [packet.topic for packet in packets]
        client.acknowledge(*[packet.packet_id for packet in packets])
    assert sorted(heard) == [b"r/%d" % number for number in range(10)]
    assert node.owner.counters.dropped == {}


def test_a_member_of_a_group_is_given_no_more_than_the_limit_in_bytes(start):
    """The rest waits in the group, within the same limit, for whoever acknowledges first."""
    node = start(settings=OwnerSettings(max_queued_bytes=1000))
    clients = [node.connect(f"c{number}", 5, listener=number % 2) for number in range(2)]
    for client in clients:
        client.subscribe(b"$share/g/a")
    publish(node, 20, 400)
    assert [held_bytes(node, f"c{number}") for number in range(2)] == [804, 804]
    assert (node.dropped("queue_full"), node.owner.counts()["queued_messages"]) == (14, 6)
    first = clients[0].take_publishes()
    clients[0].acknowledge(*[packet.packet_id for packet in first])
    assert len(clients[0].take_publishes()) == 2
    assert len(clients[1].take_publishes()) == 2


@pytest.mark.parametrize("topic_filter", [b"a", b"$share/g/a"], ids=["retained", "shared"])
def test_the_first_half_of_qos2_makes_room(start, topic_filter):
    """What waits for the limit in bytes need not wait for the PUBCOMP."""
    node = start(settings=OwnerSettings(max_queued_bytes=1000))
    publisher = node.connect("p")
    client = node.connect("c", 5)
    if topic_filter == b"a":
        publisher.publish_qos2(b"a", b"x" * 600, retain=True)
        client.subscribe(b"b", 2)
        publisher.publish_qos2(b"b", b"y" * 600)
        client.send(Subscribe(7, (SubscriptionRequest(topic_filter, 2),)))
    else:
        client.subscribe(topic_filter, 2)
        for payload in (b"y", b"x"):
            publisher.publish_qos2(b"a", payload * 600)
    first = [packet for packet in client.take() if isinstance(packet, Publish)]
    assert [packet.payload[:1] for packet in first] == [b"y"]
    client.send(Pubrec(first[0].packet_id))
    pubrel, second = client.take()
    assert (pubrel.packet_id, second.payload[:1]) == (first[0].packet_id, b"x")


# Expiry.


@SIZES
def test_what_expires_in_the_tail_is_dropped_when_its_turn_comes(start, size):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 200, size)
    publish(node, 1500, size, first=200, properties={MESSAGE_EXPIRY: 10})
    publish(node, 300, size, first=1700)
    node.advance(10)
    for world in (node, node.restart()):
        assert drain(world, 20) == [*range(200), *range(1700, 2000)]
        assert world.dropped("expired") == 1500
        assert_empty(world)


# Pause, credit, QoS 0.


def test_a_long_queue_and_a_client_that_pauses(start):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    # Too large to run ahead of the window.
    publish(node, 1500, 300)
    node = node.restart()
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 50})
    heard = []
    while packets := client.take_publishes():
        heard += numbers(packet.payload for packet in packets)
        node.owner.receive(ConnectionPaused(client.key), node.now)
        for packet in packets:
            client.send(Puback(packet.packet_id))
        assert client.take() == []
        node.owner.receive(ConnectionResumed(client.key), node.now)
        node.settle()
    assert heard == list(range(1500))
    assert_empty(node)


def test_a_long_queue_and_a_listener_without_credit(start):
    node = start(settings=OwnerSettings(listener_window_bytes=4000, max_inflight_messages=0, **UNLIMITED))
    away(node)
    publish(node, 1500, 60)
    node.credit_held.add(1)
    client = node.persistent("c", 4, listener=1)
    heard = client.take_payloads()
    assert 0 < len(heard) < 60
    while len(heard) < 1500:
        node.release_credit(1)
        node.credit_held.add(1)
        more = client.take_payloads()
        assert more
        heard += more
    assert numbers(heard) == list(range(1500))
    client.drop()
    assert drain_again(node) == list(range(1500))


def drain_again(node: Node) -> list[int]:
    """All that is in flight comes again, in order."""
    node.credit_held.clear()
    node.settle()
    packets = node.persistent("c", 4).take_publishes()
    assert all(packet.dup for packet in packets)
    return numbers(packet.payload for packet in packets)


def test_a_client_that_leaves_while_its_queue_is_being_read(start):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1000)
    node = node.restart()
    for _ in range(5):
        client = node.open(0, 5)
        client.say(Connect(5, "c", False, 0, properties={EXPIRY: 3600, RECEIVE_MAXIMUM: 10}))
        node.owner.begin(node.now)
        node.receive_frame(node.listeners[0].take_frame())
        node.turn()
        # The head is not read yet; the next part of the tail is asked for.
        assert node.owner.next_deadline() == 0.0
        node.listeners[0].lost(client.connection)
        node.receive_frame(node.listeners[0].take_frame())
        node.turn()
        assert node.owner.next_deadline() > 0.0
    assert drain(node, 30) == list(range(1000))


def test_qos0_passes_a_queue_that_waits_for_its_window(start):
    """Order is per topic and QoS."""
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1000)
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 2})
    client.take()
    node.connect("p").publish(b"a", b"now")
    assert client.take_payloads() == [b"now"]


def test_qos0_is_sent_at_once_past_a_lifo_queue(start):
    """The youngest first: it must not lie on top of the queue until an acknowledgement comes."""
    node = start(settings=OwnerSettings(queue_lifo=True, max_inflight_messages=1))
    client = node.connect("c", 4)
    client.subscribe(b"a")
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publisher = node.connect("p")
    for number in range(4):
        publisher.publish(b"a", b"%d" % number, qos=1 if number else 0)
    node.owner.receive(ConnectionResumed(client.key), node.now)
    node.settle()
    assert client.take_payloads() == [b"3"]
    publisher.publish(b"a", b"now")
    assert client.take_payloads() == [b"now"]


def test_qos0_that_waits_beside_a_tail(start):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1000)
    node = node.restart()
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.take()
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publisher = node.connect("p")
    for number in range(3):
        publisher.publish(b"a", b"-%d" % number)
    publisher.publish(b"a", b"1000", qos=1)
    node.owner.receive(ConnectionResumed(client.key), node.now)
    client.acknowledge(1)
    heard = []
    while packets := client.take_publishes():
        heard += [packet.payload for packet in packets]
        client.acknowledge(*[packet.packet_id for packet in packets if packet.qos])
    assert [payload for payload in heard if payload.startswith(b"-")] == [b"-0", b"-1", b"-2"]
    assert numbers(payload for payload in heard if not payload.startswith(b"-")) == list(range(1, 1001))


def test_counters_of_a_queue(start):
    node = start(settings=OwnerSettings(**UNLIMITED))
    away(node)
    publish(node, 1000)
    assert node.owner.counters.queue_message_in == 1000
    drain(node, 10)
    counters = node.owner.counters
    assert (counters.queue_message_out, counters.mqtt_publish_sent) == (1000, 1000)
    assert counters.dropped == {}


# What is counted and said of queues.


def test_a_queue_that_stays_full_is_named_once(start):
    """Until it fell below half: a client that acknowledges slowly makes room for one, again and again."""
    node = start(settings=OwnerSettings(max_offline_messages=10))
    client = node.persistent("c", 4)
    client.subscribe(b"a")
    client.drop()
    publisher = node.connect("p")
    queue = node.owner._sessions["c"].queue

    def overflow():
        for _ in range(12):
            publisher.publish(b"a", qos=1)
        return len(node.owner.take_notices())

    assert overflow() == 1
    for _ in range(5):
        queue.pop()
        assert overflow() == 0
    while len(queue) > 5:
        queue.pop()
    assert overflow() == 1
    assert node.dropped("queue_full") == 12 - 10 + 5 * 11 + 12 - 5


def test_a_shared_filter_is_named_in_one_line(start):
    node = start(settings=OwnerSettings(max_offline_messages=1))
    client = node.persistent("c")
    topic = "a\u2028ERROR forged".encode()
    client.subscribe(b"$share/g/" + topic)
    client.drop()
    publisher = node.connect("p")
    for _ in range(2):
        publisher.publish(topic, qos=1)
    (notice,) = node.owner.take_notices()
    assert notice.isprintable()


@pytest.mark.parametrize("clean", [False, True])
def test_what_a_session_takes_with_it_is_counted(node, clean):
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    publisher = node.connect("p")
    for _ in range(7):
        publisher.publish(b"a", qos=1)
    if clean:
        node.connect("c", 5)
    else:
        node.advance(4000)
    assert node.dropped("session_ended") == 7


def test_what_expired_was_not_taken_out_to_be_sent(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    publisher = node.connect("p", 5)
    for _ in range(3):
        publisher.publish(b"a", qos=1, properties={MESSAGE_EXPIRY: 1})
    publisher.publish(b"a", qos=1)
    node.advance(2)
    assert len(node.persistent("c").take_publishes()) == 1
    assert node.dropped("expired") == 3
    assert node.owner.counters.queue_message_out == 1


def test_what_was_held_back_once_is_marked_when_it_is_sent_again(node):
    """[MQTT-3.3.1-1] [MQTT311-3.3.1-1]: it is sent for the first time on the second connection."""
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(b"a")
    publisher = node.connect("p")
    for _ in range(2):
        publisher.publish(b"a", qos=1)
    assert len(client.take_publishes()) == 1
    client.drop()
    for flags in ([True, False], [True, True]):
        client = node.persistent("c")
        assert [packet.dup for packet in client.take_publishes()] == flags
        client.drop()


def test_what_expired_does_not_keep_out_what_is_fresh(start):
    node = start(settings=OwnerSettings(max_offline_messages=3))
    client = node.persistent("c")
    client.subscribe(b"a", 1)
    client.drop()
    publisher = node.connect("p", 5)
    for number in range(3):
        publisher.publish(b"a", b"%d" % number, qos=1, properties={MESSAGE_EXPIRY: 1})
    node.advance(3600 - 1)
    for payload in (b"fresh", b"and more"):
        publisher.publish(b"a", payload, qos=1)
    assert node.persistent("c").take_payloads() == [b"fresh", b"and more"]
    assert (node.dropped("expired"), node.dropped("queue_full")) == (3, 0)
