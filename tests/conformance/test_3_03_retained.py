"""3.3.1.3 RETAIN, and the subscription options that go with it."""

import hex_packets
import pytest
from hex_packets import publish, spaced, suback, subscribe

RETAIN_AS_PUBLISHED = 0x08
SEND_IF_NEW = 0x10
DO_NOT_SEND = 0x20


def retain(broker, topic, payload="x", qos=0, version=4):
    broker.connect(version, "publisher").publish(topic, payload, qos, retain=True)


def found(broker, version, topic_filter, options=2, name="reader"):
    """What a new subscription is sent after its SUBACK."""
    heard = broker.connect(version, name).say(subscribe(version, 1, (topic_filter, options)))
    answer = spaced(suback(version, 1, f"{options & 3:02x}"))
    assert heard.startswith(answer)
    return heard.removeprefix(answer).strip()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_it_is_stored_with_its_qos(broker, version, qos):
    """[MQTT-3.3.1-5] [MQTT311-3.3.1-5] [MQTT311-3.3.1-6] [MQTT311-3.3.1-8] [MQTT311-3.3.1-7]"""
    retain(broker, "a", "1", qos, version)
    assert found(broker, version, "a") == spaced(publish(version, "a", "1", qos, 1, retain=True))
    assert found(broker, version, "a", 1) == spaced(publish(version, "a", "1", min(qos, 1), 1, retain=True))
    assert found(broker, version, "b") == ""


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_it_replaces_the_one_before(broker, version, before, after):
    """[MQTT-3.3.1-5] [MQTT311-3.3.1-5] [MQTT311-3.3.1-7]: whatever the QoS of either."""
    retain(broker, "a", "1", before, version)
    retain(broker, "a", "2", after, version)
    assert found(broker, version, "a") == spaced(publish(version, "a", "2", after, 1, retain=True))


def test_each_matching_topic_has_one(broker, version):
    """[MQTT311-3.3.1-6] [MQTT-3.3.1-9]"""
    for topic in ("a/b", "a/c", "b", "a"):
        retain(broker, topic, topic)
    retain(broker, "a/c", "new")
    wanted = [publish(version, topic, payload, retain=True) for topic, payload in (("a/b", "a/b"), ("a/c", "new"))]
    heard = found(broker, version, "a/+").replace(" ", "")
    assert heard in ("".join(wanted), "".join(reversed(wanted)))


def test_it_outlives_its_publisher_and_the_node(broker, version):
    """[MQTT-3.3.1-5] [MQTT311-3.3.1-5] [MQTT311-3.1.2.7]: it is no part of a session."""
    publisher = broker.stay(version, "p")
    publisher.publish("a", "1", 1, retain=True)
    publisher.drop()
    broker.connect(version, "p").drop()
    assert found(broker, version, "a") == spaced(publish(version, "a", "1", 1, 1, retain=True))
    broker.restart()
    assert found(broker, version, "a") == spaced(publish(version, "a", "1", 1, 1, retain=True))


def test_zero_bytes_remove_it(broker, version):
    """[MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT311-3.3.1-10] [MQTT311-3.3.1-11]

    They are sent to who is subscribed, without the flag, and not stored: later subscribers get nothing.
    """
    client = broker.connect(version, "s")
    client.subscribe("a", 1)
    retain(broker, "a", "1")
    client.hear()
    retain(broker, "a", "", 1, version)
    assert client.hear() == spaced(publish(version, "a", "", 1, 1))
    assert found(broker, version, "a") == ""
    broker.restart()
    assert found(broker, version, "a") == ""


def test_without_the_flag_nothing_is_stored_or_replaced(broker, version):
    """[MQTT-3.3.1-8] [MQTT311-3.3.1-12]: not by zero bytes either."""
    broker.connect(version, "p").publish("b", "1", 1)
    assert found(broker, version, "b") == ""
    retain(broker, "a", "1")
    broker.connect(version, "p").publish("a", "2", 1)
    broker.connect(version, "p").publish("a", "", 1)
    assert found(broker, version, "a") == spaced(publish(version, "a", "1", retain=True))


def test_who_is_subscribed_sees_no_flag(broker, version):
    """[MQTT-3.3.1-12] [MQTT311-3.3.1-9]: however the message was published."""
    client = broker.connect(version, "s")
    client.subscribe("a", 2)
    for qos in (0, 1, 2):
        retain(broker, "a", str(qos), qos)
        assert client.hear() == spaced(publish(version, "a", str(qos), qos, qos))


def test_who_was_away_sees_no_flag(broker, version):
    """[MQTT-3.3.1-12] [MQTT311-3.3.1-9]: the subscription was there when the message came."""
    client = broker.stay(version)
    client.subscribe("a", 1)
    client.drop()
    retain(broker, "a", "1", 1)
    assert broker.stay(version).hear() == spaced(publish(version, "a", "1", 1, 1))


def test_retain_as_published(broker):
    """[MQTT-3.3.1-12] [MQTT-3.3.1-13]: connected or away."""
    for topic, options, kept in (("a", 1, False), ("b", 1 | RETAIN_AS_PUBLISHED, True)):
        client = broker.stay(5)
        client.subscribe(topic, options)
        publisher = broker.connect(5, "p")
        for flag in (False, True):
            publisher.publish(topic, "live", retain=flag)
            assert client.hear() == spaced(publish(5, topic, "live", retain=flag and kept))
        client.drop()
        publisher.publish(topic, "1", 1, retain=True)
        publisher.publish(topic, "2", 1)
        client = broker.stay(5)
        waited = publish(5, topic, "1", 1, 1, retain=kept) + publish(5, topic, "2", 1, 2)
        assert client.hear() == spaced(waited)
        broker.connect(5, "s")


@pytest.mark.parametrize("options", [0, RETAIN_AS_PUBLISHED])
def test_what_a_new_subscription_is_sent_has_the_flag(broker, options):
    """[MQTT-3.3.1-9] [MQTT-3.3.1-13]: with Retain As Published and without."""
    retain(broker, "a", "1")
    assert found(broker, 5, "a", options) == spaced(publish(5, "a", "1", retain=True))


def test_retain_handling_0(broker):
    """[MQTT-3.3.1-9] [MQTT-3.8.4-4] [MQTT-3.8.4-3]: each time that the subscription is made."""
    retain(broker, "a", "1")
    client = broker.connect(5, "s")
    for packet_id in (1, 2, 3):
        heard = client.say(subscribe(5, packet_id, ("a", 0)))
        assert heard == spaced(suback(5, packet_id, "00") + publish(5, "a", "1", retain=True))


def test_an_identical_subscription_is_sent_it_again(broker):
    """[MQTT311-3.8.4-3]: and loses nothing of what comes."""
    retain(broker, "a", "1")
    client = broker.connect(4, "s")
    for packet_id in (1, 2):
        heard = client.say(subscribe(4, packet_id, ("a", 0)))
        assert heard == spaced(suback(4, packet_id, "00") + publish(4, "a", "1", retain=True))
    broker.connect(4, "p").publish("a", "2")
    assert client.hear() == spaced(publish(4, "a", "2"))


def test_replacing_a_subscription_loses_no_message(broker, version):
    """[MQTT-3.8.4-4] [MQTT311-3.8.4-3]: neither one that waits nor one in flight."""
    client = broker.stay(version)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "in flight", 1)
    client.hear()
    client.drop()
    publisher.publish("a", "waits", 1)
    client = broker.open(version)
    heard = client.say(
        hex_packets.connect(version, "s", False, session_s=60) + subscribe(version, 9, ("a", 0))
    ).replace(" ", "")
    assert publish(version, "a", "in flight", 1, 1, dup=True) + publish(version, "a", "waits", 1, 2) in heard
    assert heard.endswith(suback(version, 9, "00"))


def test_retain_handling_1(broker):
    """[MQTT-3.3.1-10]: for a subscription that did not exist, by that filter."""
    retain(broker, "a", "1")
    retained = publish(5, "a", "1", retain=True)
    client = broker.stay(5)
    assert client.say(subscribe(5, 1, ("a", SEND_IF_NEW))) == spaced(suback(5, 1, "00") + retained)
    assert client.say(subscribe(5, 2, ("a", SEND_IF_NEW | 1))) == spaced(suback(5, 2, "01"))
    assert client.say(subscribe(5, 3, ("+", SEND_IF_NEW))) == spaced(suback(5, 3, "00") + retained)
    client.drop()
    client = broker.stay(5)
    assert client.say(subscribe(5, 4, ("a", SEND_IF_NEW))) == spaced(suback(5, 4, "00"))
    client.say(hex_packets.unsubscribe(5, 5, "a"))
    assert client.say(subscribe(5, 6, ("a", SEND_IF_NEW))) == spaced(suback(5, 6, "00") + retained)


def test_retain_handling_2(broker):
    """[MQTT-3.3.1-11]: never; what is published later is sent."""
    retain(broker, "a", "1")
    client = broker.connect(5, "s")
    for packet_id in (1, 2):
        assert client.say(subscribe(5, packet_id, ("a", DO_NOT_SEND))) == spaced(suback(5, packet_id, "00"))
    retain(broker, "a", "2")
    assert client.hear() == spaced(publish(5, "a", "2"))


def test_it_expires(broker):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]: what is left of its interval goes along."""
    broker.connect(5, "p").publish("a", "1", retain=True, properties="020000000a")
    broker.advance(4)
    assert found(broker, 5, "a") == spaced(publish(5, "a", "1", retain=True, properties="0200000006"))
    broker.advance(7)
    assert found(broker, 5, "a") == ""


def test_it_waits_for_the_receive_maximum(broker):
    """[MQTT-3.3.4-9] [MQTT-3.3.1-9]: like any other PUBLISH."""
    for topic in ("a/1", "a/2", "a/3"):
        retain(broker, topic, "x", 1)
    client = broker.connect(5, "s", properties="210001")
    heard = client.say(subscribe(5, 1, ("a/+", 1))).split()
    for packet_id in (1, 2, 3):
        heard = heard[heard.index("33") :]
        assert len(bytes.fromhex("".join(heard))) == len(bytes.fromhex(publish(5, "a/1", "x", 1, 1)))
        heard = client.say(f"40 02 {packet_id:04x}").split()
    assert heard == []


def test_an_unsubscribe_ends_it(broker):
    """[MQTT-3.10.4-2]: what was not yet sent of the retained messages is not sent any more."""
    for topic in ("a/1", "a/2", "a/3"):
        retain(broker, topic, "x", 1)
    client = broker.connect(5, "s", properties="210001")
    client.say(subscribe(5, 1, ("a/+", 1)))
    client.say(hex_packets.unsubscribe(5, 2, "a/+"))
    assert client.say("40 02 0001") == ""


def test_a_shared_subscription_is_sent_none(broker):
    """3.3.1.3, 4.8.2: no single member would be the right one."""
    retain(broker, "a", "1")
    assert found(broker, 5, "$share/g/a", 0) == ""
