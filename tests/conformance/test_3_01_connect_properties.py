"""3.1.2.10 and 3.1.2.11: keep alive, and the properties of CONNECT."""

import hex_packets
import pytest
from hex_packets import connack, spaced, text

from broker.core.connection_limits import ConnectionLimits

# 3.1.2.10: keep alive


def test_keep_alive(broker, version):
    """[MQTT-3.1.2-22] [MQTT-3.2.2-22] [MQTT311-3.1.2-24]: any packet counts; after 1.5 times 10 s it is over."""
    client = broker.connect(version, keep_alive_s=10)
    for said in ("c0 00", hex_packets.publish(version, "a"), "40 02 1234"):
        broker.advance(14)
        client.say(said)
    broker.advance(14)
    assert not client.closed
    broker.advance(2)
    assert client.closed
    assert client.hear() == ("" if version == 4 else "e0 01 8d")


def test_what_the_server_sends_keeps_nobody_alive(broker, version):
    """[MQTT-3.1.2-22] [MQTT311-3.1.2-24]"""
    client = broker.connect(version, keep_alive_s=10)
    client.subscribe("a", 0)
    publisher = broker.connect(4, "p")
    for _ in range(8):
        broker.advance(2)
        publisher.publish("a")
    assert client.closed


def test_after_the_keep_alive_it_is_as_if_the_network_had_failed(broker, version):
    """[MQTT-3.1.2-22] [MQTT311-3.1.2-24]: the session stays."""
    broker.stay(version, keep_alive_s=10)
    broker.advance(16)
    assert broker.stay(version).connack == connack(version, present=1)


def test_a_keep_alive_of_0_is_none(broker, version):
    """[MQTT-3.1.2-22] [MQTT311-3.1.2-24]"""
    client = broker.connect(version, keep_alive_s=0)
    broker.advance(1_000_000)
    assert client.say("c0 00") == "d0 00"


@pytest.mark.parametrize(("said", "told"), [(0, "13001e"), (31, "13001e"), (65535, "13001e"), (30, ""), (10, "")])
def test_the_servers_keep_alive(start, version, said, told):
    """[MQTT-3.1.2-22] [MQTT-3.2.2-22] [MQTT311-3.1.2-24]: what it says counts, and otherwise the client's own.

    3.1.1 can't be told, so it has to have asked for less; its silence ends no later.
    """
    broker = start(limits=ConnectionLimits(keep_alive_s_max=30))
    client = broker.connect(version, keep_alive_s=said)
    assert client.connack == connack(version, more=told)
    seconds = 30 if told else said
    broker.advance(seconds * 1.5 - 1)
    assert not client.closed
    broker.advance(2)
    assert client.closed
    assert client.hear() == ("" if version == 4 else "e0 01 8d")


# 3.1.2.11: properties


def test_the_session_expiry_interval(broker):
    """[MQTT-3.1.2-23] [MQTT-4.1.0-2] [MQTT-3.2.2-3]"""
    broker.stay(5).drop()
    broker.advance(59)
    client = broker.stay(5)
    assert client.connack == connack(5, present=1)
    # It runs from the end of the connection.
    broker.advance(1000)
    client.drop()
    broker.advance(61)
    assert broker.stay(5).connack == connack(5)


@pytest.mark.parametrize("properties", ["", "1100000000"], ids=["absent", "0"])
def test_without_a_session_expiry_interval_the_session_ends_with_the_connection(broker, properties):
    """[MQTT-4.1.0-2]"""
    client = broker.connect(5, "s", False, properties=properties)
    client.subscribe("a")
    client.drop()
    assert broker.stay(5).connack == connack(5)


def test_a_session_that_never_expires(broker):
    """[MQTT-3.1.2-23]: 0xFFFFFFFF seconds are for ever."""
    broker.stay(5, session_s=0xFFFFFFFF).drop()
    broker.advance(2.0**33)
    assert broker.stay(5).connack == connack(5, present=1)


def test_the_session_of_a_connected_client_stays_however_long(broker, version):
    """[MQTT-4.1.0-1] [MQTT311-4.1.0-2]"""
    client = broker.connect(version, "s")
    client.subscribe("a")
    broker.advance(1_000_000)
    broker.connect(4, "p").publish("a")
    assert client.hear() == spaced(hex_packets.publish(version, "a"))


def test_a_maximum_packet_size_is_kept(broker):
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]: what is larger counts as sent; the next one is served."""
    client = broker.connect(5, "s", properties="2700000014")
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    # 2 of header, 3 of topic, 2 of packet id, 1 of properties leave 12 for the payload.
    publisher.publish("a", "x" * 13, qos=1)
    assert client.hear() == ""
    publisher.publish("a", "x" * 12, qos=1)
    assert client.hear() == spaced(hex_packets.publish(5, "a", "x" * 12, 1, 1))
    publisher.publish("a", "x" * 15, qos=0)
    publisher.publish("a", "x" * 14, qos=0)
    assert client.hear() == spaced(hex_packets.publish(5, "a", "x" * 14))


def test_what_waited_is_held_to_the_maximum_packet_size_too(broker):
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]: that of the connection that it would be sent on."""
    client = broker.stay(5)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "x" * 13, qos=1)
    client.hear()
    client.drop()
    publisher.publish("a", "y" * 13, qos=1)
    publisher.publish("a", "z", qos=1)
    client = broker.stay(5, properties="2700000014")
    assert client.hear() == spaced(hex_packets.publish(5, "a", "z", 1, 2))
    client.say("40 02 0002")
    client.drop()
    assert broker.stay(5).hear() == ""


@pytest.mark.parametrize("properties", ["", "220000"], ids=["absent", "0"])
def test_without_a_topic_alias_maximum_none_is_sent(broker, properties):
    """[MQTT-3.1.2-27]"""
    client = broker.connect(5, "s", properties=properties)
    client.subscribe("a/long/topic", 0)
    publisher = broker.connect(4, "p")
    for _ in range(3):
        publisher.publish("a/long/topic")
        assert client.hear() == spaced(hex_packets.publish(5, "a/long/topic"))


@pytest.mark.parametrize("properties", ["", "1900"], ids=["absent", "0"])
def test_response_information_is_not_sent_unasked(broker, properties):
    """[MQTT-3.1.2-28]"""
    assert broker.connect(5, properties=properties).connack == connack(5)


def test_problem_information_is_not_sent_where_it_is_unwanted(broker):
    """[MQTT-3.1.2-29]: failures are their bare codes."""
    client = broker.connect(5, properties="1700")
    assert client.publish("$x", qos=1) == "40 03 00 01 87"
    assert client.say(hex_packets.subscribe(5, 1, ("$x/y", 0))) == "90 04 00 01 00 00"
    assert client.say(hex_packets.unsubscribe(5, 2, "nothing")) == "b0 04 00 02 00 11"


def test_enhanced_authentication_is_refused(broker):
    """[MQTT-4.12.0-1]: Bad authentication method."""
    client = broker.open(5)
    heard = client.say(hex_packets.connect(5, properties="15" + text("m")))
    assert heard.split()[2:4] == ["00", "8c"]
    assert client.closed
