"""broker.core.client_window: the client never has more under way than it may, whatever the owner hands over."""

import pytest
from core_helpers import Node
from hypothesis import given
from hypothesis import strategies as st

from broker.core.client_window import ClientWindow
from broker.core.connection_limits import ConnectionLimits
from broker.core.inflight import AHEAD_BYTES_MAX, AHEAD_MAX
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Property

RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)
MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)


def test_what_does_not_fit_goes_out_with_what_makes_room():
    window = ClientWindow(2)
    assert [window.admit(packet_id, b"%d" % packet_id, 7) for packet_id in range(1, 6)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert window.unsent() == [3, 4, 5]
    assert window.finished(1) == [(b"3", 7)]
    assert window.finished(9) == []
    # What is under way already may be sent again.
    assert window.admit(2, b"2 again", 7)
    assert window.finished(3) == [(b"4", 7)]
    assert window.finished(2) == [(b"5", 7)]
    assert window.unsent() == []
    assert window.is_full()


def test_nothing_overtakes_what_is_held():
    window = ClientWindow(1)
    assert window.admit(1, b"1", 7)
    assert not window.admit(2, b"2", 7)
    window.released(1)
    assert not window.admit(3, b"3", 7)
    assert window.finished(1) == [(b"2", 7)]


def test_an_exchange_of_an_older_connection_counts():
    window = ClientWindow(1)
    window.released(7)
    assert not window.admit(1, b"1", 7)
    assert window.finished(7) == [(b"1", 7)]


@given(st.integers(1, 5), st.lists(st.integers(0, 30), max_size=60))
def test_never_more_than_the_window_and_always_in_order(size, steps):
    window = ClientWindow(size)
    under_way, out, handed = [], [], 0
    for step in steps:
        if step % 3 or not under_way:
            handed += 1
            if window.admit(handed, b"%d" % handed, 7):
                out.append(handed)
                under_way.append(handed)
        else:
            sent = [int(packet) for packet, _payload_bytes in window.finished(under_way.pop(step % len(under_way)))]
            out += sent
            under_way += sent
        assert len(under_way) <= size
    assert out == list(range(1, len(out) + 1))
    assert out + window.unsent() == list(range(1, handed + 1))


@pytest.mark.parametrize("version", [4, 5])
def test_a_client_sees_its_window_and_the_owner_runs_ahead(start, version):
    node = start(settings=OwnerSettings(max_inflight_messages=3))
    client = node.connect("c", version, properties={RECEIVE_MAXIMUM: 3} if version == 5 else {})
    client.subscribe(b"a", 1)
    publisher = node.connect("p")
    for number in range(300):
        publisher.publish(b"a", b"%d" % number, qos=1)
    session = node.owner._sessions["c"]
    assert len(session.inflight) == AHEAD_MAX
    heard = []
    while packets := client.take_publishes():
        assert len(packets) <= 3
        heard += [int(packet.payload) for packet in packets]
        client.acknowledge(*[packet.packet_id for packet in packets])
    assert heard == list(range(300))


def test_what_was_held_back_is_sent_for_the_first_time(start):
    """[MQTT-3.3.1-1]: DUP says that it may have been received."""
    node = start(settings=OwnerSettings(max_inflight_messages=2))
    client = node.persistent("c", 4)
    client.subscribe(b"a", 1)
    publisher = node.connect("p")
    for number in range(5):
        publisher.publish(b"a", b"%d" % number, qos=1)
    assert client.take_payloads() == [b"0", b"1"]
    client.drop()
    heard = []
    client = node.persistent("c", 4)
    while packets := client.take_publishes():
        heard += [(packet.payload, packet.dup) for packet in packets]
        client.acknowledge(*[packet.packet_id for packet in packets])
    assert heard == [(b"0", True), (b"1", True), (b"2", False), (b"3", False), (b"4", False)]


def test_a_listener_that_died_can_not_say_what_it_held_back(start):
    node = start(settings=OwnerSettings(max_inflight_messages=1))
    client = node.persistent("c", 4)
    client.subscribe(b"a", 1)
    publisher = node.connect("p", listener=1)
    for number in range(3):
        publisher.publish(b"a", b"%d" % number, qos=1)
    restarted = node.restart()
    client = restarted.persistent("c", 4)
    (first,) = client.take_publishes()
    assert (first.payload, first.dup) == (b"0", True)


def test_what_expires_or_is_large_does_not_run_ahead(start):
    node = start(settings=OwnerSettings(max_inflight_messages=1))
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(b"a", 1)
    publisher = node.connect("p", 5)
    publisher.publish(b"a", b"first", qos=1)
    publisher.publish(b"a", b"x" * AHEAD_BYTES_MAX, qos=1)
    session = node.owner._sessions["c"]
    assert (len(session.inflight), len(session.queue)) == (1, 1)
    client.acknowledge(client.take_publishes()[0].packet_id)
    publisher.publish(b"a", b"soon gone", qos=1, properties={MESSAGE_EXPIRY: 5})
    assert (len(session.inflight), len(session.queue)) == (1, 1)
    node.advance(6)
    client.acknowledge(client.take_publishes()[0].packet_id)
    assert client.take() == []
    assert node.dropped("expired") == 1


def test_the_online_limit_counts_what_waits_at_the_listener(start):
    node = start(settings=OwnerSettings(max_inflight_messages=2, max_online_messages=3))
    client = node.connect("c", 4)
    client.subscribe(b"a", 1)
    publisher = node.connect("p")
    for number in range(7):
        publisher.publish(b"a", b"%d" % number, qos=1)
    assert node.dropped("queue_full") == 2
    assert len(node.owner._sessions["c"].inflight) == 5


def test_qos_2_keeps_the_window_to_the_end(start):
    node = start(settings=OwnerSettings(max_inflight_messages=1))
    client = node.connect("c", 4)
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for number in range(2):
        publisher.publish_qos2(b"a", b"%d" % number, packet_id=number + 1)
    (first,) = client.take()
    client.send(Pubrec(first.packet_id))
    assert client.take() == [Pubrel(first.packet_id)]
    client.send(Pubcomp(first.packet_id))
    (second,) = client.take()
    assert isinstance(second, Publish)
    assert (second.payload, second.dup) == (b"1", False)


def test_a_held_packet_sets_no_alias(start):
    """QoS 0 would overtake it and use what the client has not heard of."""

    node: Node = start(
        settings=OwnerSettings(max_inflight_messages=1), limits=ConnectionLimits(topic_alias_max_broker=5)
    )
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1, int(Property.TOPIC_ALIAS_MAXIMUM): 5})
    client.subscribe(b"#", 1)
    publisher = node.connect("p")
    publisher.publish(b"a", b"1", qos=1)
    publisher.publish(b"b", b"2", qos=1)
    publisher.publish(b"b", b"3")
    packets = client.take_publishes()
    assert [(packet.topic, packet.payload) for packet in packets] == [(b"a", b"1"), (b"b", b"3")]
    client.acknowledge(packets[0].packet_id)
    assert [(packet.topic, packet.payload) for packet in client.take_publishes()] == [(b"b", b"2")]


def test_what_is_held_back_counts_as_sent_when_it_is(start):
    node = start()
    subscriber = node.connect("s", version=5, properties={RECEIVE_MAXIMUM: 2})
    subscriber.subscribe(b"a", 1)
    publisher = node.connect("p")
    counters = node.listeners[0].counters
    for number in range(1, 6):
        publisher.publish(b"a", b"12345", qos=1, packet_id=number)
    assert (counters.publishes_sent, counters.mqtt_publish_bytes_sent) == (2, 10)
    subscriber.acknowledge(subscriber.take_publishes()[0].packet_id)
    assert (counters.publishes_sent, counters.mqtt_publish_bytes_sent) == (3, 15)
    subscriber.drop()
    assert (counters.publishes_sent, counters.mqtt_publish_bytes_sent) == (3, 15)


def test_what_is_held_back_sets_no_alias(start):
    """A QoS 0 PUBLISH goes out before it, and must not use an alias that the client has not heard of."""
    node = start(limits=ConnectionLimits(topic_alias_max_broker=2))
    properties = {RECEIVE_MAXIMUM: 1, int(Property.TOPIC_ALIAS_MAXIMUM): 2}
    subscriber = node.connect("s", version=5, properties=properties)
    subscriber.subscribe(b"#", 1)
    publisher = node.connect("p")
    for qos, topic in ((1, b"first topic"), (1, b"other topic"), (0, b"other topic"), (0, b"first topic")):
        publisher.publish(topic, b"", qos=qos, packet_id=qos)
    heard = subscriber.take_publishes()
    assert [(packet.qos, packet.topic) for packet in heard] == [(1, b"first topic"), (0, b"other topic"), (0, b"")]
    subscriber.acknowledge(heard[0].packet_id)
    assert [packet.topic for packet in subscriber.take_publishes()] == [b"other topic"]
