"""broker.core.netsplit_gate: what clients may do while the node does not reach the members that it needs."""

import pytest
from core_helpers import Node, StubInterest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import netsplit_gate
from broker.core.client_publishing import UNACKNOWLEDGED_BYTES_MAX, UNACKNOWLEDGED_MAX
from broker.core.listener_records import unpack_events
from broker.core.message import Message
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import (
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

WHY = "this node is not ready: b@h is not running"
VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


def split(node, ready=False):
    node.owner.netsplit.set_ready(ready, "" if ready else WHY)
    node.settle()


def heal(node):
    split(node, True)


def allowing(*what):
    return OwnerSettings(**{f"allow_{each}_during_netsplit": True for each in what})


def ids(packets, kind):
    assert all(type(packet) is kind for packet in packets), packets
    return [packet.packet_id for packet in packets]


# Each packet and its answer, as bytes: while the node is not ready, and when it is again.
CONNECT = {3: "10 0f 0006 4d5149736470 03 02 0000 0001 63", 4: "10 0d 0004 4d515454 04 02 0000 0001 63"}
CONNECT[5] = "10 0e 0004 4d515454 05 02 0000 00 0001 63"
SAID = "1f 002a" + WHY.encode().hex()
ANSWERS = [
    ("connect 3", "", "20 02 00 03", ""),
    ("connect 4", "", "20 02 00 03", ""),
    ("connect 5", "", "20 30 00 88 2d" + SAID, ""),
    ("subscribe 3", "82 06 0007 0001 61 01", "90 03 0007 80", ""),
    ("subscribe 4", "82 06 0007 0001 61 01", "90 03 0007 80", ""),
    ("subscribe 5", "82 07 0007 00 0001 61 01", "90 04 0007 00 87", ""),
    ("unsubscribe 3", "a2 05 0007 0001 61", "", "b0 02 0007"),
    ("unsubscribe 4", "a2 05 0007 0001 61", "", "b0 02 0007"),
    ("unsubscribe 5", "a2 06 0007 00 0001 61", "", "b0 04 0007 00 11"),
    ("publish 3", "30 04 0001 61 78", "", ""),
    ("publish 4", "30 04 0001 61 78", "", ""),
    ("publish 5", "30 05 0001 61 00 78", "", ""),
    ("publish 3", "32 06 0001 61 0007 78", "", "40 02 0007"),
    ("publish 4", "32 06 0001 61 0007 78", "", "40 02 0007"),
    ("publish 5", "32 07 0001 61 0007 00 78", "", "40 03 0007 10"),
    ("publish 3", "34 06 0001 61 0007 78", "", "50 02 0007"),
    ("publish 4", "34 06 0001 61 0007 78", "", "50 02 0007"),
    ("publish 5", "34 07 0001 61 0007 00 78", "", "50 03 0007 10"),
]


@pytest.mark.parametrize(("what", "said", "split_answer", "heal_answer"), ANSWERS)
def test_the_answers_byte_by_byte(node, what, said, split_answer, heal_answer):
    """[MQTT-3.10.4-4] [MQTT311-3.10.4-4]: an UNSUBSCRIBE is answered, if late."""
    version = int(what[-1])
    if said:
        client = node.connect("c", version)
        split(node)
        client.send(bytes.fromhex(said))
    else:
        split(node)
        client = node.open(version=version)
        client.send(bytes.fromhex(CONNECT[version]))
    assert client.take_bytes() == bytes.fromhex(split_answer)
    assert client.closed == (not said)
    heal(node)
    assert client.take_bytes() == bytes.fromhex(heal_answer)


# CONNECT.


@VERSIONS
def test_connect_is_refused_and_who_is_connected_stays(start, version):
    node = start()
    stays = node.connect("stays", version)
    split(node)
    refused = node.open(version=version)
    refused.send(Connect(version, "refused", True))
    (connack,) = refused.take()
    assert connack.reason == Reason.SERVER_UNAVAILABLE
    assert connack.properties == ({int(Property.REASON_STRING): WHY} if version == 5 else {})
    assert refused.closed and not stays.closed
    # Its own client id makes no difference.
    again = node.open(version=version)
    again.send(Connect(version, "stays", True))
    assert again.closed and not stays.closed
    heal(node)
    assert node.connect("refused", version).connack.reason == 0


def test_a_reason_string_that_is_too_long_for_the_client_is_left_out(node):
    """[MQTT-3.2.2-19]"""
    split(node)
    client = node.open(version=5)
    client.send(Connect(5, "c", True, properties={int(Property.MAXIMUM_PACKET_SIZE): 20}))
    assert client.take_bytes() == bytes.fromhex("2003008800")


@VERSIONS
def test_connect_may_be_allowed(start, version):
    node = start(settings=allowing("register"))
    split(node)
    assert node.connect("c", version).connack.reason == 0


# SUBSCRIBE and UNSUBSCRIBE.


@VERSIONS
def test_subscribe_is_refused_for_each_filter(start, version):
    node = start()
    client = node.connect("c", version)
    split(node)
    client.send(Subscribe(7, (SubscriptionRequest(b"a", 1), SubscriptionRequest(b"b", 2))))
    (suback,) = client.take()
    assert suback.packet_id == 7
    assert suback.reasons == ((Reason.NOT_AUTHORIZED if version == 5 else 0x80,) * 2)
    assert node.owner.counters.mqtt_subscribe_error == 1
    heal(node)
    client.publish(b"a", qos=0)
    assert client.take() == []
    assert client.subscribe(b"a") == (1,)


@VERSIONS
def test_subscribe_may_be_allowed(start, version):
    node = start(settings=allowing("subscribe"))
    client = node.connect("c", version)
    split(node)
    assert client.subscribe(b"a") == (1,)


@VERSIONS
def test_unsubscribe_is_answered_when_the_node_is_ready(start, version):
    node = start(settings=allowing("publish"))
    client = node.connect("c", version)
    client.subscribe(b"a", 0)
    split(node)
    client.send(Unsubscribe(8, (b"a",)))
    assert client.take() == []
    assert node.owner.counters.mqtt_unsubscribe_error == 1
    client.publish(b"a", b"still subscribed")
    assert client.take_payloads() == [b"still subscribed"]
    heal(node)
    (unsuback,) = client.take()
    assert unsuback.packet_id == 8
    client.publish(b"a")
    assert client.take() == []


@VERSIONS
def test_unsubscribe_may_be_allowed(start, version):
    node = start(settings=allowing("unsubscribe"))
    client = node.connect("c", version)
    client.subscribe(b"a")
    split(node)
    assert len(client.unsubscribe(b"a")) == (1 if version == 5 else 0)


def test_a_subscribe_behind_a_held_unsubscribe_waits_with_it(start):
    node = start(settings=allowing("subscribe"))
    client = node.connect("c", 5)
    client.subscribe(b"a")
    split(node)
    client.send(Unsubscribe(8, (b"a",)))
    client.send(Subscribe(9, (SubscriptionRequest(b"a", 0),)))
    assert client.take() == []
    heal(node)
    assert [packet.packet_id for packet in client.take()] == [8, 9]
    client.publish(b"a")
    assert client.take_payloads() == [b"x"]


def test_unsubscribes_without_end_are_not_all_held(node):
    client = node.connect("c", 5)
    split(node)
    for packet_id in range(1, 1001):
        client.say(Unsubscribe(packet_id, (b"a",)))
    node.settle()
    held = node.owner.counts()["netsplit_held"]
    assert 200 < held < 300
    heal(node)
    assert len(client.take()) == held
    assert not client.closed


# PUBLISH.


@VERSIONS
def test_qos_0_is_dropped_and_counted(start, version):
    node = start()
    publisher, subscriber = node.connect("p", version), node.connect("s", version)
    subscriber.subscribe(b"a", 0)
    split(node)
    publisher.publish(b"a")
    heal(node)
    assert subscriber.take() == [] and publisher.take() == [] and not publisher.closed
    assert node.dropped("not_ready") == 1
    assert node.owner.counters.mqtt_publish_error == 1


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_qos_1_and_2_wait_and_are_answered_in_order(start, version, qos):
    node = start()
    publisher, subscriber = node.connect("p", version), node.connect("s", version)
    subscriber.subscribe(b"a/#", 0)
    split(node)
    for packet_id in (1, 2, 3):
        publisher.publish(b"a/b", b"%d" % packet_id, qos, packet_id)
    assert publisher.take() == [] and subscriber.take() == []
    assert node.owner.counts()["netsplit_held"] == 3
    assert node.owner.counters.mqtt_publish_error == 3
    heal(node)
    assert ids(publisher.take(), Puback if qos == 1 else Pubrec) == [1, 2, 3]
    assert subscriber.take_payloads() == [b"1", b"2", b"3"]
    assert node.owner.counts()["netsplit_held"] == 0
    assert node.owner.counters.mqtt_publish_received == 3
    publisher.publish(b"a/b", b"4", qos, 4)
    assert subscriber.take_payloads() == [b"4"]


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_publish_may_be_allowed(start, version, qos):
    node = start(settings=allowing("publish"))
    publisher, subscriber = node.connect("p", version), node.connect("s", version)
    subscriber.subscribe(b"a", 0)
    split(node)
    publisher.publish(b"a", b"x", qos)
    assert subscriber.take_payloads() == [b"x"]
    assert len(publisher.take()) == (1 if qos else 0)


def test_later_publishes_stay_behind_those_that_were_held(node):
    """Also while what was held is handed on in parts."""
    node.owner.netsplit.events_per_turn = 1
    publishers = [node.connect(f"p{number}", 5) for number in range(4)]
    subscriber = node.connect("s", 5)
    subscriber.subscribe(b"#", 0)
    split(node)
    for number, publisher in enumerate(publishers):
        publisher.publish(b"t%d" % number, b"held", 1, 1)
    node.owner.netsplit.set_ready(True, "")
    for number, publisher in enumerate(reversed(publishers)):
        publisher.say(Publish(b"t%d" % (3 - number), b"later", number % 2, packet_id=2 if number % 2 else 0))
    node.settle()
    heard = {}
    for packet in subscriber.take_publishes():
        heard.setdefault(packet.topic, []).append(packet.payload)
    assert heard == {b"t%d" % number: [b"held", b"later"] for number in range(4)}


def test_what_is_handed_on_is_handed_on_in_parts(node):
    node.owner.netsplit.events_per_turn = 2
    publishers = [node.connect(f"p{number}", 5) for number in range(5)]
    split(node)
    for publisher in publishers:
        publisher.publish(b"t", b"held", 1, 1)
    node.owner.netsplit.set_ready(True, "")
    left = []
    while node.owner.next_deadline() == 0.0:
        node.step()
        left.append(node.owner.counts()["netsplit_held"])
    assert left == [3, 1, 0]


def test_what_is_handed_on_waits_for_listeners_that_are_behind(start):
    """A subscriber of QoS 0 would lose what its listener does not take."""
    node = start(settings=OwnerSettings(listener_window_bytes=2000, max_online_messages=5))
    publisher, subscriber = node.connect("p", 5), node.connect("s", 5, listener=1)
    subscriber.subscribe(b"t", 0)
    split(node)
    for packet_id in range(1, 101):
        publisher.publish(b"t", b"x" * 100, 1, packet_id)
    node.credit_held.add(1)
    heal(node)
    assert node.owner.counts()["netsplit_held"] > 50
    assert node.owner.next_deadline() == node.now + netsplit_gate.BEHIND_S
    node.release_credit(1)
    assert node.owner.counts()["netsplit_held"] == 0
    assert len(subscriber.take_publishes()) == len(publisher.take()) == 100
    assert node.dropped("queue_full") == 0


def test_a_node_that_is_not_ready_again_holds_on(node):
    publisher, other = node.connect("p", 5), node.connect("o", 5)
    split(node)
    publisher.publish(b"t", b"1", 1, 1)
    node.owner.netsplit.set_ready(True, "")
    split(node)
    publisher.publish(b"t", b"2", 1, 2)
    other.publish(b"t", b"3", 1, 1)
    assert publisher.take() == other.take() == []
    heal(node)
    assert ids(publisher.take(), Puback) == [1, 2]
    assert ids(other.take(), Puback) == [1]


@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_what_is_held_is_forgotten_with_its_connection(start, version, qos):
    node = start(settings=allowing("register"))
    publisher, subscriber = node.persistent("p", version), node.connect("s", version)
    subscriber.subscribe(b"a", 0)
    split(node)
    publisher.publish(b"a", b"x", qos, 5)
    publisher.drop()
    assert node.owner.counts()["netsplit_held"] == 0
    publisher = node.persistent("p", version)
    # What was never answered comes again, and waits again.
    publisher.publish(b"a", b"x", qos, 5, dup=True)
    assert publisher.take() == []
    heal(node)
    assert ids(publisher.take(), Puback if qos == 1 else Pubrec) == [5]
    assert subscriber.take_payloads() == [b"x"]


def test_a_takeover_forgets_what_the_older_connection_had_held(start):
    node = start(settings=allowing("register"))
    older = node.persistent("p", 5)
    split(node)
    older.publish(b"a", b"x", 1, 5)
    node.persistent("p", 5)
    assert older.closed
    assert node.owner.counts()["netsplit_held"] == 0


def test_a_qos_2_publish_that_comes_again_on_its_connection_is_held_once(node):
    publisher, subscriber = node.connect("p", 4), node.connect("s", 4)
    subscriber.subscribe(b"a", 0)
    split(node)
    for _ in range(3):
        publisher.publish(b"a", b"x", 2, 5)
    assert node.owner.counts()["netsplit_held"] == 1
    heal(node)
    assert ids(publisher.take(), Pubrec) == [5]
    assert subscriber.take_payloads() == [b"x"]


def test_other_exchanges_go_on(start):
    interest = StubInterest({b"far": [("b@h", True)]})
    node = start(interest=interest)
    client = node.connect("c", 5)
    client.subscribe(b"#", 2)
    other = node.connect("o", 5)
    other.publish(b"one", b"1", 1)
    other.publish(b"two", b"2", 2)
    other.publish(b"far", b"3", 1, 3)
    other.take()
    split(node)
    first, second, third = client.take_publishes()
    client.send(Puback(first.packet_id))
    client.send(Pubrec(second.packet_id))
    assert ids(client.take(), Pubrel) == [second.packet_id]
    client.send(Pubcomp(second.packet_id))
    client.send(Puback(third.packet_id))
    other.send(Pubrel(1))
    assert ids(other.take(), Pubcomp) == [1]
    # What waited for another node is answered when that has it, and what is held stays behind it.
    other.publish(b"one", b"4", 1, 4)
    node.acknowledge_forwards(0)
    assert ids(other.take(), Puback) == [3]
    heal(node)
    assert ids(other.take(), Puback) == [4]
    other.send(Disconnect(0))


@VERSIONS
def test_wills_are_published(start, version):
    node = start()
    dying = node.connect("d", version, will=Will(b"will", b"gone", 1))
    witness = node.connect("w", version)
    witness.subscribe(b"will", 0)
    split(node)
    dying.drop()
    assert witness.take_payloads() == [b"gone"]


def test_messages_of_other_nodes_and_sys_topics_are_delivered(node):
    subscriber = node.connect("s", 5)
    subscriber.subscribe(b"#", 0)
    split(node)
    node.owner.receive_forwarded(Message(b"a", b"from afar"), node.now)
    node.settle()
    assert subscriber.take_payloads() == [b"from afar"]


@pytest.mark.parametrize("qos", [1, 2])
def test_the_time_of_a_message_runs_while_it_is_held(node, qos):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]"""
    publisher, subscriber = node.connect("p", 5), node.connect("s", 5)
    subscriber.subscribe(b"a", 0)
    split(node)
    for packet_id, expiry_s in ((1, 5), (2, 60)):
        expiry = {int(Property.MESSAGE_EXPIRY_INTERVAL): expiry_s}
        publisher.publish(b"a", b"%d" % packet_id, qos, packet_id, properties=expiry)
    node.advance(10)
    heal(node)
    assert ids(publisher.take(), Puback if qos == 1 else Pubrec) == [1, 2]
    (publish,) = subscriber.take_publishes()
    assert (publish.payload, publish.properties[Property.MESSAGE_EXPIRY_INTERVAL]) == (b"2", 50)
    assert node.dropped("expired") == 1
    if qos == 2:
        publisher.send(Pubrel(1))
        assert [packet.reason for packet in publisher.take()] == [0]


def test_a_qos_2_publish_that_was_received_before_and_expired_is_answered_and_not_dropped(start):
    """[MQTT-4.3.3-13]"""
    node = start(settings=allowing("register"))
    publisher = node.persistent("p", 5)
    expiry = {int(Property.MESSAGE_EXPIRY_INTERVAL): 5}
    publisher.publish(b"a", b"x", 2, 1, properties=expiry)
    publisher.drop()
    split(node)
    publisher = node.persistent("p", 5)
    publisher.publish(b"a", b"x", 2, 1, properties=expiry, dup=True)
    node.advance(10)
    heal(node)
    assert ids(publisher.take(), Pubrec) == [1]
    assert node.dropped("expired") == 0


# How much.


@pytest.mark.parametrize(("version", "qos"), [(4, 1), (4, 2), (5, 1), (5, 2)])
def test_a_client_is_not_read_beyond_what_it_may_have_unacknowledged(start, version, qos):
    node = start()
    publisher, other = node.connect("p", version), node.connect("o", version)
    split(node)
    packet_id = 0
    while publisher.connection.want_read:
        packet_id += 1
        publisher.publish(b"a", b"x", qos, packet_id)
    assert packet_id == UNACKNOWLEDGED_MAX
    assert other.connection.want_read
    heal(node)
    assert publisher.connection.want_read
    assert len(publisher.take()) == packet_id


@pytest.mark.parametrize("qos", [1, 2])
def test_large_messages_have_the_same_end_in_bytes(node, qos):
    publisher = node.connect("p", 5)
    split(node)
    packet_id = 0
    while publisher.connection.want_read:
        packet_id += 1
        publisher.publish(b"a", b"x" * 100_000, qos, packet_id)
    assert packet_id * 100_000 - 100_000 < UNACKNOWLEDGED_BYTES_MAX <= packet_id * 100_001
    heal(node)
    assert publisher.connection.want_read


def test_all_clients_together_have_an_end(node):
    node.owner.netsplit.held_bytes_max = 10_000
    first, second = node.connect("first", 5), node.connect("second", 4)
    split(node)
    first.publish(b"a", b"x" * 6000, 1, 1)
    second.publish(b"a", b"x" * 6000, 1, 1)
    assert second.closed and second.take() == []
    first.publish(b"a", b"x" * 6000, 1, 2)
    (disconnect,) = first.take()
    assert (disconnect.reason, first.closed) == (Reason.QUOTA_EXCEEDED, True)
    assert node.owner.counts()["netsplit_held"] == 0


def test_a_message_that_is_larger_than_everything_is_held_alone(node):
    node.owner.netsplit.held_bytes_max = 1000
    publisher = node.connect("p", 5)
    split(node)
    publisher.publish(b"a", b"x" * 6000, 1, 1)
    heal(node)
    assert ids(publisher.take(), Puback) == [1]


# With a store that fails.


def test_a_failing_store_lets_nothing_overtake_what_is_held(node):
    publisher = node.connect("p", 5)
    split(node)
    publisher.publish(b"a", b"x", 1, 1)
    for qos in (0, 1):
        publisher.say(Publish(b"a", b"y", qos, packet_id=2 if qos else 0))
    events = unpack_events(node.listeners[0].take_frame())
    assert len(events) == 2
    assert not any(node.owner.receive_degraded(event, node.now) for event in events)
    node.settle()
    assert publisher.take() == []


@given(st.lists(st.sampled_from(("split", "heal", "qos 0", "qos 1", "qos 2", "drop", "unsubscribe")), max_size=30))
def test_any_history_answers_in_order_and_delivers_once(steps):
    node = Node(settings=allowing("register"))
    subscriber = node.connect("s", 5)
    subscriber.subscribe(b"a", 0)
    publisher = node.persistent("p", 5)
    sent, owed = 0, []
    for step in steps:
        if step == "split":
            split(node)
        elif step == "heal":
            heal(node)
        elif step == "drop":
            publisher.drop()
            publisher = node.persistent("p", 5)
            for packet_id, qos in owed:
                publisher.publish(b"a", b"%d" % packet_id, qos, packet_id, dup=True)
        elif step == "unsubscribe":
            publisher.send(Unsubscribe(60_000, (b"nothing",)))
        else:
            sent += 1
            qos = int(step[-1])
            publisher.publish(b"a", b"%d" % sent, qos, sent)
            if qos:
                owed.append((sent, qos))
        owed = settled(publisher, owed)
    heal(node)
    assert settled(publisher, owed) == []
    node.validate()
    arrived = [int(payload) for payload in subscriber.take_payloads()]
    assert arrived == sorted(set(arrived))


def settled(publisher, owed):
    """Take what the publisher was answered, which has to be in order; return what is still owed."""
    for packet in publisher.take():
        if isinstance(packet, (Puback, Pubrec)):
            assert packet.packet_id == owed[0][0]
            owed = owed[1:]
            if isinstance(packet, Pubrec):
                publisher.say(Pubrel(packet.packet_id))
    publisher.node.settle()
    return owed
