"""Mountpoints: clients of two of them share a node and nothing else."""

import pytest

from broker.core.connection_limits import ConnectionLimits
from broker.core.message import Message
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Puback, Subscribe, SubscriptionRequest, Unsuback, Unsubscribe, Will
from broker.mqtt.properties import Property
from broker.mqtt.reasons import ProtocolError, Reason
from broker.mqtt.topics import check_filter, check_name, matches, mount_prefix, mounted, unmounted


@pytest.mark.parametrize("topic", [b"a", b"a/b", b"#", b"+/x", b"$SYS/x", b"$share/g/a/#"])
def test_a_prefix_is_put_on_and_taken_off(topic):
    prefix = mount_prefix("one")
    inner = topic.removeprefix(b"$share/g/")
    assert mounted(topic, prefix) == (b"$share/g/" if inner != topic else b"") + prefix + inner
    assert unmounted(prefix + inner) == inner
    assert unmounted(topic) == topic
    assert mounted(topic, mount_prefix("")) == topic


def test_nobody_else_can_name_it_or_match_it():
    topic = mount_prefix("one") + b"a"
    for check in (check_name, check_filter):
        with pytest.raises(ProtocolError):
            check(topic)
    for topic_filter in (b"#", b"+/a", b"+/#"):
        assert not matches(topic_filter, topic)
        assert matches(mounted(topic_filter, mount_prefix("one")), topic) == (topic_filter in (b"#", b"+/#"))
        assert not matches(mounted(topic_filter, mount_prefix("two")), topic)


def test_topics_are_apart(start):
    node = start()
    clients = {}
    for mountpoint in ("", "one", "two"):
        clients[mountpoint] = node.connect("same", 5, mountpoint=mountpoint)
        for topic_filter in (b"#", b"a", b"$share/g/a"):
            clients[mountpoint].subscribe(topic_filter, 1)
    assert not any(client.closed for client in clients.values())
    clients["one"].publish(b"a", b"for one", qos=1)
    packets = clients["one"].take()
    assert [packet.topic for packet in packets[:-1]] == [b"a", b"a"]
    for other in ("", "two"):
        assert clients[other].take() == []
    clients[""].publish(b"a", b"for the others", qos=0)
    assert clients["one"].take() == clients["two"].take() == []


def test_sessions_retained_messages_and_wills_are_apart(start):
    node = start()
    node.persistent("c", mountpoint="one").drop()
    assert not node.persistent("c", mountpoint="two").connack.session_present
    restarted = node.restart()
    client = restarted.persistent("c", mountpoint="one")
    assert client.connack.session_present
    client.publish(b"kept", b"of one", retain=True)
    leaver = restarted.connect("w", will=Will(b"gone", b"w"), mountpoint="one")
    leaver.send(Subscribe(1, (SubscriptionRequest(b"#"),)))
    _, kept = leaver.take()
    assert (kept.topic, kept.retain) == (b"kept", True)
    outsider = restarted.connect("o")
    outsider.subscribe(b"#")
    client.subscribe(b"gone")
    leaver.drop()
    assert [packet.topic for packet in client.take_publishes()] == [b"gone"]
    assert outsider.take() == []


def test_dollar_topics_are_nobodys_there_either(start):
    node = start()
    client = node.connect("c", 5, mountpoint="one")
    client.subscribe(b"$SYS/#")
    node.owner.receive_forwarded(Message(b"$SYS/x", b"1"), node.now)
    node.settle()
    client.publish(b"$mine/x", b"", qos=1)
    (puback,) = client.take()
    assert puback.reason == 0x87


def test_unsubscribing_aliases_and_identifiers(start):
    node = start(limits=ConnectionLimits(topic_alias_max_client=1, topic_alias_max_broker=1))
    client = node.connect("c", 5, properties={int(Property.TOPIC_ALIAS_MAXIMUM): 1}, mountpoint="one")
    client.subscribe(b"a/#")
    alias = {int(Property.TOPIC_ALIAS): 1}
    client.publish(b"a/bcd", b"1", properties=alias)
    client.publish(b"", b"2", properties=alias)
    assert [(packet.topic, packet.payload) for packet in client.take_publishes()] == [(b"a/bcd", b"1"), (b"", b"2")]
    assert client.unsubscribe(b"a/#") == (0,)


def test_a_topic_and_its_prefix_fit_into_mqtts_length(start):
    node = start(settings=OwnerSettings(max_inflight_messages=1))
    prefix = len(mount_prefix("one"))
    client = node.connect("c", 5, mountpoint="one")
    client.publish(b"t" * (65535 - prefix), b"fits")
    assert not client.closed
    client.publish(b"t" * (65536 - prefix), b"does not", 1, 7)
    assert client.take() == [Puback(7, Reason.TOPIC_NAME_INVALID)]


@pytest.mark.parametrize("size", [65535, 65535 - 5, 65535 - 6])
@pytest.mark.parametrize("head", [b"", b"$share/g/"])
def test_nobody_unsubscribes_from_what_is_too_long_behind_the_prefix(start, head, size):
    """Its length would not fit into a record for the owner, and the rest would be read as other records."""
    node = start()
    client = node.connect("c", 5, mountpoint="one")
    client.subscribe(b"a", 1)
    client.send(Unsubscribe(2, (head + b"x" * (size - len(head)), b"a")))
    answers = client.take()
    assert answers[-1] == Unsuback(2, (int(Reason.NO_SUBSCRIPTION_EXISTED), 0))
