"""3.10 UNSUBSCRIBE and 3.11 UNSUBACK."""

import hex_packets
import pytest
from hex_packets import spaced, unsuback, unsubscribe


def test_it_is_answered(broker, version):
    """[MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT311-3.10.4-4] [MQTT311-3.10.4-5]: also where nothing was subscribed."""
    client = broker.connect(version)
    client.subscribe("a")
    assert client.say(unsubscribe(version, 0x1234, "a")) == spaced(unsuback(version, 0x1234, "00"))
    assert client.say(unsubscribe(version, 0xFFFF, "a")) == spaced(unsuback(version, 0xFFFF, "11"))


def test_nothing_new_is_delivered(broker, version):
    """[MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT311-3.10.4-2]"""
    client = broker.connect(version)
    client.subscribe("a/+", 1)
    client.subscribe("b", 1)
    client.say(unsubscribe(version, 2, "a/+"))
    publisher = broker.connect(4, "p")
    publisher.publish("a/x", qos=1)
    assert client.hear() == ""
    publisher.publish("b", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "b", "x", 1, 1))


def test_the_subscription_does_not_come_back(broker, version):
    """[MQTT-3.10.4-1] [MQTT-3.10.4-2]: neither with a connection nor with the node."""
    client = broker.stay(version)
    client.subscribe("a", 1)
    client.say(unsubscribe(version, 2, "a"))
    client.drop()
    broker.restart()
    broker.connect(4, "p").publish("a", qos=1)
    assert broker.stay(version).hear() == ""


def test_filters_are_compared_character_by_character(broker, version):
    """[MQTT-3.10.4-1] [MQTT311-3.10.4-1]: a wildcard takes none of those that it matches along."""
    client = broker.connect(version)
    client.subscribe("a/b", 0)
    client.subscribe("a/+", 0)
    for other in ("#", "+/b", "a/#", "A/b", "a/b/", "/a/b", "a/B"):
        assert client.say(unsubscribe(version, 2, other)) == spaced(unsuback(version, 2, "11"))
    assert client.say(unsubscribe(version, 3, "a/+")) == spaced(unsuback(version, 3, "00"))
    broker.connect(4, "p").publish("a/b")
    assert client.hear() == spaced(hex_packets.publish(version, "a/b"))


def test_a_delivery_that_has_begun_is_completed(broker, version):
    """[MQTT-3.10.4-3] [MQTT311-3.10.4-3]: sent again on the next connection like any other."""
    client = broker.stay(version)
    client.subscribe("a", 1)
    broker.connect(4, "p").publish("a", qos=1)
    client.hear()
    client.say(unsubscribe(version, 2, "a"))
    client.drop()
    client = broker.stay(version)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "x", 1, 1, dup=True))
    client.say("40 02 0001")
    client.drop()
    assert broker.stay(version).hear() == ""


def test_many_filters_are_as_many_requests(broker, version):
    """[MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT-3.11.3-2] [MQTT311-3.10.4-6]: with one answer, in their order."""
    client = broker.connect(version)
    client.subscribe("a", 0)
    client.subscribe("b", 0)
    client.subscribe("c", 0)
    heard = client.say(unsubscribe(version, 2, "a", "x", "b", "a"))
    assert heard == spaced(unsuback(version, 2, "00 11 00 11"))
    publisher = broker.connect(4, "p")
    assert [publisher.publish(topic) or client.hear() for topic in ("a", "b")] == ["", ""]
    publisher.publish("c")
    assert client.hear() == spaced(hex_packets.publish(version, "c"))


@pytest.mark.parametrize("bytes_max", [13, 20])
def test_an_unsuback_is_without_properties(broker, bytes_max):
    """[MQTT-3.11.2-1] [MQTT-3.11.2-2]: so none makes it larger than the client takes."""
    client = broker.connect(5, properties=f"27{bytes_max:08x}")
    assert client.say(unsubscribe(5, 1, "a", "b")) == "b0 05 00 01 00 11 11"


@pytest.mark.parametrize("first_byte", ["a0", "a1", "a3", "a4", "a6", "aa"])
def test_wrong_flags_close(broker, version, first_byte):
    """[MQTT-3.10.1-1] [MQTT311-3.10.1-1]"""
    assert broker.connect(version).fails(first_byte + unsubscribe(version, 1, "a")[2:], "81")


def test_without_a_filter_it_closes(broker, version):
    """[MQTT-3.10.3-2] [MQTT311-3.10.3-2]"""
    assert broker.connect(version).fails(unsubscribe(version, 1), "82")


def test_answers_are_in_the_order_of_the_requests(broker, version):
    client = broker.connect(version)
    heard = client.say(
        hex_packets.subscribe(version, 1, ("a", 0))
        + unsubscribe(version, 2, "a")
        + hex_packets.subscribe(version, 3, ("a", 1))
    )
    answers = hex_packets.suback(version, 1, "00") + unsuback(version, 2, "00") + hex_packets.suback(version, 3, "01")
    assert heard == spaced(answers)
