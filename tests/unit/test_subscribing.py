"""broker.core.subscribing: options and identifiers of subscriptions, retained messages, and what other nodes hear."""

import pytest
from core_helpers import Client, Node

from broker.core.connection_limits import ConnectionLimits
from broker.core.events import ConnectionPaused, ConnectionResumed, SubscribeReceived
from broker.core.message import Message
from broker.core.replaying import REPLAY_STEPS_MAX
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Puback, Publish, Subscribe, SubscriptionRequest, Unsubscribe
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

IDENTIFIER = int(Property.SUBSCRIPTION_IDENTIFIER)
RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)


def subscribe_and_hear(
    client: Client, *requests: SubscriptionRequest, identifier: int = 0
) -> tuple[tuple[int, ...], list[Publish]]:
    """Subscribe and return the reasons, and what the subscriptions bring at once."""
    assert client.take() == []
    client.send(Subscribe(7, requests, {IDENTIFIER: [identifier]} if identifier else {}))
    suback, *publishes = client.take()
    return suback.reasons, publishes


def subscribe(client: Client, *requests: SubscriptionRequest, identifier: int = 0) -> tuple[int, ...]:
    """Subscribe where nothing is retained, and return the reasons."""
    reasons, publishes = subscribe_and_hear(client, *requests, identifier=identifier)
    assert publishes == []
    return reasons


def replay(client: Client, *requests: SubscriptionRequest, identifier: int = 0) -> list[Publish]:
    """Subscribe and return what is retained."""
    return subscribe_and_hear(client, *requests, identifier=identifier)[1]


def retained(node: Node, count: int) -> None:
    """Messages retained under r/0, r/1 and so on."""
    publisher = node.connect("retainer")
    for number in range(count):
        publisher.say(Publish(b"r/%d" % number, b"%d" % number, 1, True, packet_id=number + 1))
    node.settle()


def request(topic_filter: bytes, qos: int = 1, **options) -> SubscriptionRequest:
    return SubscriptionRequest(topic_filter, qos, **options)


# Identifiers.


@pytest.mark.parametrize("restart", [False, True])
def test_overlapping_subscriptions_make_one_delivery_with_all_identifiers(node, restart):
    """[MQTT-3.3.4-2] [MQTT-3.3.4-3] [MQTT-3.3.4-4]"""
    client = node.persistent("c")
    for topic_filter, qos, identifier in ((b"a/#", 0, 1), (b"a/+", 2, 268_435_455), (b"+/b", 1, 300), (b"a/b", 1, 0)):
        assert subscribe(client, request(topic_filter, qos), identifier=identifier) == (qos,)
    if restart:
        node = node.restart()
        client = node.persistent("c")
    node.connect("p").publish(b"a/b", qos=2)
    (packet,) = client.take_publishes()
    assert packet.qos == 2
    assert sorted(packet.properties[IDENTIFIER]) == [1, 300, 268_435_455]
    node.connect("p").publish(b"a/c", qos=2)
    (packet,) = client.take_publishes()
    assert sorted(packet.properties[IDENTIFIER]) == [1, 268_435_455]


def test_identifiers_are_the_subscribers_own(node):
    """Of clients on one listener and on another, with the same identifiers, others and none."""
    clients = [node.connect(f"c{number}", 5, listener=number % 2) for number in range(6)]
    for client, identifier in zip(clients, (1, 1, 2, 1, 0, 0), strict=True):
        subscribe(client, request(b"a"), identifier=identifier)
    node.connect("p").publish(b"a", qos=1)
    found = [client.take_publishes()[0].properties.get(IDENTIFIER) for client in clients]
    assert found == [[1], [1], [2], [1], None, None]


def test_a_delivery_keeps_the_identifiers_with_which_it_was_made(node):
    """Queued, sent again, and after a restart; whatever became of the subscription."""
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    subscribe(client, request(b"a"), identifier=1)
    publisher = node.connect("p")
    for _ in range(2):
        publisher.publish(b"a", qos=1)
    client.take()
    subscribe(client, request(b"a"), identifier=2)
    publisher.publish(b"a", qos=1)
    client.drop()
    for world in (node, node.restart()):
        client = world.persistent("c")
        packets = client.take_publishes()
        assert [packet.properties[IDENTIFIER] for packet in packets] == [[1], [1], [2]]
        client.drop()


def test_a_replacement_without_an_identifier_takes_it_away(node):
    """[MQTT-3.8.4-3]"""
    client = node.persistent("c")
    subscribe(client, request(b"a"), identifier=1)
    subscribe(client, request(b"a"))
    restarted = node.restart()
    for world, listening in ((node, client), (restarted, restarted.persistent("c"))):
        world.connect("p").publish(b"a")
        assert listening.take_publishes()[0].properties == {}


def test_the_identifier_of_retained_messages(node):
    retained(node, 1)
    client = node.connect("c", 5)
    packets = replay(client, request(b"r/0"), request(b"r/#"), identifier=9)
    assert [(packet.properties, packet.retain) for packet in packets] == [({IDENTIFIER: [9]}, True)] * 2


# Retain As Published and Retain Handling.


@pytest.mark.parametrize(("published", "as_published", "flag"), [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("waiting", [False, True])
def test_retain_as_published(node, published, as_published, flag, qos, waiting):
    """[MQTT-3.3.1-12] [MQTT-3.3.1-13]"""
    client = node.persistent("c")
    subscribe(client, request(b"a", qos, retain_as_published=bool(as_published)))
    if waiting:
        node.owner.receive(ConnectionPaused(client.key), node.now)
    node.connect("p").publish(b"a", qos=1, retain=bool(published))
    if waiting and qos:
        client = node.restart().persistent("c")
    elif waiting:
        node.owner.receive(ConnectionResumed(client.key), node.now)
        node.settle()
    (packet,) = client.take_publishes()
    assert (packet.retain, packet.qos) == (bool(flag), qos)


def test_one_of_overlapping_subscriptions_with_retain_as_published_is_enough(node):
    client = node.connect("c", 5)
    subscribe(client, request(b"#", 2), request(b"a", 0, retain_as_published=True))
    node.connect("p").publish(b"a", qos=2, retain=True)
    (packet,) = client.take_publishes()
    assert (packet.qos, packet.retain) == (2, True)


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
def test_retain_handling(node, handling, first, again):
    """[MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]; after UNSUBSCRIBE a subscription is new again."""
    retained(node, 1)
    client = node.persistent("c")
    wanted = request(b"r/#", retain_handling=handling)
    for expected in (first, again):
        assert len(replay(client, wanted)) == expected
    client.unsubscribe(b"r/#")
    assert len(replay(client, wanted)) == first


def test_retained_messages_come_with_the_lower_qos_and_the_flag(node):
    """[MQTT-3.3.1-8] [MQTT-3.8.4-8]: whatever Retain As Published says."""
    retained(node, 1)
    client = node.connect("c", 5)
    for qos in (0, 1, 2):
        (packet,) = replay(client, request(b"r/0", qos))
        assert (packet.qos, packet.retain, packet.dup) == (min(qos, 1), True, False)


def test_retained_messages_keep_to_the_window_and_all_come(start):
    node = start(settings=OwnerSettings(max_inflight_messages=3, max_online_messages=5))
    retained(node, 50)
    client = node.connect("c", 4)
    packets = replay(client, request(b"r/+"))
    heard = []
    while packets:
        assert len(packets) <= 3
        heard += [packet.payload for packet in packets]
        for packet in packets:
            client.say(Puback(packet.packet_id))
        node.settle()
        packets = client.take_publishes()
    assert sorted(heard, key=int) == [b"%d" % number for number in range(50)]
    assert node.owner.counters.dropped == {}


def test_retained_messages_are_those_of_the_moment_at_which_they_are_sent(node):
    retained(node, 3)
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    (first,) = replay(client, request(b"r/+"))
    publisher = node.connect("p")
    publisher.publish(b"r/1", b"", retain=True)
    client.take()
    client.acknowledge(first.packet_id)
    assert [(packet.topic, packet.payload) for packet in client.take()] == [(b"r/2", b"2")]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_came_live_is_not_replayed(node, qos):
    """[MQTT-4.3.3-2]: a message comes once for a subscription; here it takes the place of one that is to come."""
    retained(node, 5)
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 2})
    packets = replay(client, request(b"r/+", 2))
    assert [packet.topic for packet in packets] == [b"r/0", b"r/1"]
    publisher = node.connect("p")
    publisher.publish(b"r/3", b"new", qos, retain=True)
    publisher.publish(b"r/new", b"new", qos, 2, retain=True)
    packets += client.take_publishes()
    heard = packets
    while packets:
        for packet in packets:
            if packet.qos == 1:
                client.acknowledge(packet.packet_id)
            elif packet.qos == 2:
                client.receive_qos2(packet.packet_id)
        packets = [packet for packet in client.take() if isinstance(packet, Publish)]
        heard += packets
    assert sorted((packet.topic, packet.payload, packet.retain) for packet in heard) == [
        (b"r/0", b"0", True),
        (b"r/1", b"1", True),
        (b"r/2", b"2", True),
        (b"r/3", b"new", False),
        (b"r/4", b"4", True),
        (b"r/new", b"new", False),
    ]


@pytest.mark.parametrize(("qos", "retain"), [(0, True), (1, False)])
def test_what_came_while_the_client_was_away_it_gets_in_the_one_way_or_the_other(node, qos, retain):
    """QoS 1 waited for it, QoS 0 did not, and is replayed with the rest."""
    retained(node, 5)
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    assert len(replay(client, request(b"r/+"))) == 1
    client.drop()
    node.connect("p").publish(b"r/3", b"new", qos, retain=True)
    client = node.persistent("c")
    packets = [(packet.payload, packet.retain) for packet in client.take_publishes()]
    assert sorted(packets) == [(b"0", True), (b"1", True), (b"2", True), (b"4", True), (b"new", retain)]


@pytest.mark.parametrize("restart", [False, True])
def test_no_local_holds_for_retained_messages(node, restart):
    """[MQTT-3.8.3-3]"""
    client = node.persistent("c")
    client.publish(b"r/mine", b"mine", qos=1, retain=True)
    node.connect("p").publish(b"r/theirs", b"theirs", qos=1, retain=True)
    if restart:
        node = node.restart()
        client = node.persistent("c")
    client.take()
    assert [packet.payload for packet in replay(client, request(b"r/+", no_local=True))] == [b"theirs"]
    assert len(replay(client, request(b"r/+"))) == 2


def test_what_a_reconnect_finds_of_a_replay_goes_on(node):
    retained(node, 5)
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 2})
    assert len(replay(client, request(b"r/+"))) == 2
    client.drop()
    client = node.persistent("c")
    packets = client.take_publishes()
    assert [(packet.dup, packet.retain) for packet in packets] == [(True, True)] * 2 + [(False, True)] * 3


def test_unsubscribing_ends_a_replay(node):
    """[MQTT-3.10.4-2]: nothing more is taken up for a subscription that is gone; others' replays go on."""
    retained(node, 5)
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    (first,) = replay(client, request(b"r/+"), request(b"r/4"))
    client.unsubscribe(b"r/+")
    client.acknowledge(first.packet_id)
    assert [packet.topic for packet in client.take_publishes()] == [b"r/4"]


def test_subscribing_again_begins_the_replay_anew(node):
    """[MQTT-3.8.4-4]: one replay for each subscription, however often a client that doesn't read asks for it."""
    retained(node, 5)
    client = node.connect("c", 5)
    node.owner.receive(ConnectionPaused(client.key), node.now)
    for _ in range(20):
        assert replay(client, request(b"r/+", 1), request(b"r/0", 0)) == []
    replay(client, request(b"r/+", 0))
    node.owner.receive(ConnectionResumed(client.key), node.now)
    node.settle()
    packets = client.take_publishes()
    assert sorted(packet.topic for packet in packets) == [b"r/0", b"r/0", b"r/1", b"r/2", b"r/3", b"r/4"]
    assert all(packet.qos == 0 for packet in packets)


@pytest.mark.parametrize("handling", [1, 2])
def test_a_replay_goes_on_as_the_client_subscribes_now(node, handling):
    """[MQTT-3.8.4-3] [MQTT-3.8.4-4]: another subscription in its place loses nothing, and nothing comes twice."""
    retained(node, 5)
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 2})
    packets = replay(client, request(b"r/+", 1), identifier=1)
    assert [packet.payload for packet in packets] == [b"0", b"1"]
    assert replay(client, request(b"r/+", 0, retain_handling=handling), identifier=2) == []
    client.acknowledge(packets[0].packet_id)
    packets = client.take_publishes()
    assert [(packet.payload, packet.qos) for packet in packets] == [(b"2", 0), (b"3", 0), (b"4", 0)]
    assert [packet.properties for packet in packets] == [{IDENTIFIER: [2]}] * 3


def test_a_filter_that_stands_in_a_packet_often_is_one_subscription(node):
    """[MQTT-3.8.4-3] [MQTT-3.8.4-5]: as the last of its requests says, in the order of the others."""
    retained(node, 3)
    client = node.connect("c", 5)
    packets = replay(client, request(b"r/2"), *[request(b"r/+", n % 2) for n in range(99)], request(b"r/1"))
    assert [(packet.payload, packet.qos) for packet in packets] == [
        (b"2", 1),
        *[(b"%d" % n, 0) for n in range(3)],
        (b"1", 1),
    ]


# Replays take turns.


def retain_many(node: Node, count: int) -> None:
    """So many messages retained under r/N/a."""
    store = node.owner._store
    for number in range(count):
        message = Message(b"r/%d/a" % number, b"x", origin=node.store_id, number=number + 1)
        node.owner.retained.set(message, store.writes, store.clock, node.now)
    node.settle()


def ask(client: Client, topic_filter: bytes) -> None:
    """Subscribe without working it off."""
    client.node.owner.receive(SubscribeReceived(client.key, 1, [(topic_filter, 0)]), client.node.now)


def replay_turn(node: Node, *clients: Client) -> list[int]:
    """One turn of the node; how many PUBLISHes each client was sent."""
    node.owner.begin(node.now)
    node.turn()
    return [sum(1 for packet in client.take() if isinstance(packet, Publish)) for client in clients]


def test_a_long_replay_leaves_room_for_others(node):
    """[MQTT-3.3.1-9]: others are served between its parts, who asks for little does not wait for who asks for much."""
    count = 3 * REPLAY_STEPS_MAX
    retain_many(node, count)
    greedy, modest = node.connect("greedy", 5), node.connect("modest", 5)
    ask(greedy, b"r/#")
    ask(modest, b"r/7/a")
    heard = [0, 0]
    turns = 0
    while node.owner.next_deadline() == 0.0:
        found = replay_turn(node, greedy, modest)
        assert sum(found) <= REPLAY_STEPS_MAX
        heard = [before + more for before, more in zip(heard, found, strict=True)]
        turns += 1
        if turns == 3:
            assert heard[1] == 1
            assert heard[0] < count
    assert heard == [count, 1]
    assert turns <= 8


def test_who_subscribes_again_and_again_keeps_nobody_waiting(node):
    """With filters that find nothing, too: what is looked at counts, and not what is sent."""
    retain_many(node, 2 * REPLAY_STEPS_MAX)
    greedy, modest = node.connect("greedy", 5), node.connect("modest", 5)
    ask(modest, b"r/+/a")
    heard = 0
    for _ in range(30):
        for number in range(20):
            ask(greedy, b"+/+/%d" % number)
            ask(greedy, b"#")
        sent, more = replay_turn(node, greedy, modest)
        assert sent + more <= REPLAY_STEPS_MAX
        heard += more
    assert heard == 2 * REPLAY_STEPS_MAX


def test_a_replay_ends_with_its_connection_and_its_subscription(node):
    """And nothing is left of it that would go wrong in a later turn."""
    retain_many(node, 2 * REPLAY_STEPS_MAX)
    clients = [node.connect(f"c{number}", 5) for number in range(3)]
    for client in clients:
        ask(client, b"r/#")
    replay_turn(node, *clients)
    clients[0].drop()
    clients[1].unsubscribe(b"r/#")
    node.settle()
    assert len(clients[2].take()) > REPLAY_STEPS_MAX


# Many at once, limits, replacing.


def test_one_packet_with_good_and_bad_filters(start):
    """[MQTT-3.8.4-5] [MQTT-3.8.4-6]: one reason for each, in their order."""
    node = start(settings=OwnerSettings(max_subscriptions_per_client=2))
    client = node.persistent("c")
    reasons = subscribe(client, request(b"a", 0), request(b"b", 1), request(b"c", 2), request(b"a", 2))
    assert reasons == (0, 1, Reason.QUOTA_EXCEEDED, 2)
    assert node.owner.counters.refused == {"max_subscriptions_per_client": 1}
    client.unsubscribe(b"b")
    assert subscribe(client, request(b"$share/g/c")) == (1,)
    assert subscribe(client, request(b"d")) == (Reason.QUOTA_EXCEEDED,)
    restarted = node.restart()
    client = restarted.persistent("c")
    assert subscribe(client, request(b"d")) == (Reason.QUOTA_EXCEEDED,)
    assert restarted.owner.counts()["num_subscriptions"] == 2


def test_a_filter_over_a_limit_of_topics_is_counted(start):
    node = start(limits=ConnectionLimits(topic_levels_max=2))
    client = node.connect("c", 5)
    reasons = subscribe(client, request(b"a/b"), request(b"a/b/c"), request(b"+/+/+"))
    assert reasons == (1, Reason.TOPIC_FILTER_INVALID, Reason.TOPIC_FILTER_INVALID)
    assert node.owner.counters.refused == {"topic_limit": 2}


def test_mqtt_3_is_told_of_a_failure_in_its_own_word(start):
    node = start(settings=OwnerSettings(max_subscriptions_per_client=1))
    client = node.connect("c", 4)
    assert subscribe(client, request(b"a"), request(b"b")) == (1, 0x80)


def test_unsubscribing_many_at_once(node):
    """[MQTT-3.11.3-2]"""
    client = node.connect("c", 5)
    subscribe(client, request(b"a"), request(b"$share/g/a"))
    client.send(Unsubscribe(8, (b"$share/g/a", b"b", b"a", b"a")))
    (unsuback,) = client.take()
    missing = Reason.NO_SUBSCRIPTION_EXISTED
    assert unsuback.reasons == (0, missing, 0, missing)
    assert node.owner.counts()["num_subscriptions"] == 0


def test_a_replacement_changes_what_follows_and_nothing_else(node):
    """[MQTT-3.8.4-3] [MQTT-3.8.4-4]"""
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    subscribe(client, request(b"a", 1))
    publisher = node.connect("p")
    for _ in range(2):
        publisher.publish(b"a", qos=1)
    (first,) = client.take_publishes()
    subscribe(client, request(b"a", 0))
    publisher.publish(b"a", b"third", qos=1)
    client.acknowledge(first.packet_id)
    packets = client.take_publishes()
    assert sorted((packet.payload, packet.qos) for packet in packets) == [(b"third", 0), (b"x", 1)]
    assert node.owner.counts()["num_subscriptions"] == 1


def test_what_waits_when_its_subscription_ends_is_sent_all_the_same(node):
    """[MQTT-3.10.4-3]"""
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    subscribe(client, request(b"a"))
    publisher = node.connect("p")
    for _ in range(2):
        publisher.publish(b"a", qos=1)
    (first,) = client.take_publishes()
    client.unsubscribe(b"a")
    client.acknowledge(first.packet_id)
    assert len(client.take_publishes()) == 1


# What other nodes hear.


def changes(node: Node) -> list[tuple[bytes, bool, bool]]:
    """(filter, wanted, persistent) since the last call."""
    heard, node.interest_changes = node.interest_changes, []
    return [(change.topic_filter, change.wanted, change.persistent) for change in heard]


def test_other_nodes_hear_of_the_first_and_the_last(node):
    passing = [node.connect(f"c{number}", 5) for number in range(2)]
    for client in passing:
        subscribe(client, request(b"a", 0))
    assert changes(node) == [(b"a", True, False)]
    lasting = [node.persistent(f"l{number}") for number in range(2)]
    for client in lasting:
        subscribe(client, request(b"a", 0))
    assert changes(node) == [(b"a", True, True)]
    lasting[0].unsubscribe(b"a")
    passing[0].drop()
    lasting[1].drop()
    assert changes(node) == []
    node.advance(4000)
    assert changes(node) == [(b"a", True, False)]
    passing[1].unsubscribe(b"a")
    assert changes(node) == [(b"a", False, False)]
    assert node.owner.local_interest() == []


def test_replacing_and_reconnecting_is_nobody_elses_business(node):
    client = node.persistent("c")
    subscribe(client, request(b"a", 0))
    changes(node)
    subscribe(client, request(b"a", 2), identifier=3)
    client.drop()
    client = node.persistent("c")
    assert changes(node) == []
    # Until it ends, a session that is stored counts as one that lasts.
    client = node.connect("c", 5, False)
    assert changes(node) == []
    client.drop()
    assert changes(node) == [(b"a", False, False)]


def test_a_refused_subscription_is_not_told(start):
    node = start(settings=OwnerSettings(max_subscriptions_per_client=1))
    client = node.connect("c", 5)
    subscribe(client, request(b"a"), request(b"b"))
    assert changes(node) == [(b"a", True, False)]
