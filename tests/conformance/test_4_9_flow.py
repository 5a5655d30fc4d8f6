"""4.9 Flow control."""

import hex_packets
from core_helpers import StubInterest
from hex_packets import publish, spaced

from broker.core.connection_limits import ConnectionLimits
from broker.core.routes import NoInterest
from broker.core.settings import OwnerSettings


def test_the_receive_maximum(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-3.3.4-9]"""
    client = broker.connect(5, "s", properties="210002")
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(5):
        publisher.publish("a", str(number), qos=1)
    assert client.hear() == spaced(publish(5, "a", "0", 1, 1) + publish(5, "a", "1", 1, 2))
    assert client.say("40 02 0001") == spaced(publish(5, "a", "2", 1, 3))
    # A refusal gives room like any other answer; an id that is not in use gives none.
    assert client.say("40 03 0002 80") == spaced(publish(5, "a", "3", 1, 4))
    assert client.say("40 02 0001") == ""


def test_the_receive_maximum_holds_for_what_is_sent_again(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2]: that of the new connection."""
    client = broker.stay(5)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", str(number), qos=1)
    client.drop()
    client = broker.stay(5, properties="210001")
    assert client.hear() == spaced(publish(5, "a", "0", 1, 1, dup=True))
    assert client.say("40 02 0001") == spaced(publish(5, "a", "1", 1, 2, dup=True))


def test_without_a_receive_maximum_it_is_65535(start):
    """[MQTT-4.9.0-1]: whatever the broker allows clients that can't say how much they take."""
    broker = start(settings=OwnerSettings(max_inflight_messages=1), interest=NoInterest())
    client = broker.connect(5, "s")
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", qos=1)
        assert client.hear() == spaced(publish(5, "a", "x", 1, number + 1))


def test_other_packets_do_not_wait_for_the_quota(broker):
    """[MQTT-3.3.4-10] [MQTT-4.9.0-3]"""
    client = broker.connect(5, "s", properties="210001")
    client.subscribe("a", 1)
    client.subscribe("b", 0)
    publisher = broker.connect(4, "p")
    publisher.publish("a", qos=1)
    publisher.publish("a", qos=1)
    assert client.hear() == spaced(publish(5, "a", "x", 1, 1))
    assert client.say("c0 00") == "d0 00"
    assert client.say(hex_packets.subscribe(5, 2, ("c", 1))) == "90 04 00 02 00 01"
    assert client.say(hex_packets.unsubscribe(5, 3, "c")) == "b0 04 00 03 00 00"
    assert client.publish("d", qos=1, packet_id=9) == "40 03 00 09 10"
    assert client.say("e0 00") == ""
    assert client.closed


def test_qos_2_counts_until_its_pubcomp(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-3.3.4-9]: or until a PUBREC that refuses it."""
    client = broker.connect(5, "s", properties="210002")
    client.subscribe("a", 2)
    publisher = broker.connect(4, "p")
    for number in range(5):
        publisher.publish("a", str(number), 2, packet_id=number + 1)
    assert client.hear() == spaced(publish(5, "a", "0", 2, 1) + publish(5, "a", "1", 2, 2))
    assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("70 02 0001") == spaced(publish(5, "a", "2", 2, 3))
    assert client.say("50 03 0002 10") == "62 02 00 02"
    assert client.say("50 03 0003 80") == spaced(publish(5, "a", "3", 2, 4))


def test_a_pubrel_does_not_wait_for_the_quota(broker):
    """[MQTT-3.3.4-10] [MQTT-4.9.0-3] [MQTT-4.4.0-1]

    On a new connection that takes less, a PUBLISH that is sent again uses the quota up; the PUBRELs go all the same.
    """
    client = broker.stay(5)
    client.subscribe("a", 2)
    publisher = broker.connect(4, "p")
    for number in range(1, 5):
        publisher.publish("a", str(number), 2, packet_id=number)
    client.say("50 02 0002 50 02 0004")
    client.drop()
    client = broker.stay(5, properties="210001")
    heard = client.hear()
    assert "62 02 00 02" in heard
    assert "62 02 00 04" in heard
    heard += " " + client.say("70 02 0002 70 02 0004")
    assert publish(5, "a", "1", 2, 1, dup=True) in heard.replace(" ", "")
    assert publish(5, "a", "3", 2, 3, dup=True) not in heard.replace(" ", "")
    client.say("50 02 0001")
    assert client.say("70 02 0001") == spaced(publish(5, "a", "3", 2, 3, dup=True))


def test_the_servers_receive_maximum(start):
    """[MQTT-3.3.4-7]: one PUBLISH more, before any of them is wholly acknowledged, closes."""
    broker = start(limits=ConnectionLimits(receive_max=2), interest=StubInterest({b"far": [("other", True)]}))
    for qos in (1, 2):
        client = broker.connect(5)
        assert client.connack == hex_packets.connack(5, more="210002")
        for packet_id in (1, 2):
            # At QoS 1 it waits for the other node; at QoS 2 a PUBREC is not the end.
            answer = "" if qos == 1 else f"50 02 00 0{packet_id}"
            assert client.publish("far", qos=qos, packet_id=packet_id) == answer
        client.publish("far", qos=0)
        assert not client.closed
        assert client.fails(publish(5, "far", "x", 3 - qos, 3), "93")


def test_the_servers_receive_maximum_counts_qos_2_to_its_end(start):
    """[MQTT-3.3.4-7] [MQTT-4.9.0-2]: a PUBREC that refuses it is one, too."""
    broker = start(limits=ConnectionLimits(receive_max=1))
    client = broker.connect(5)
    for _ in range(3):
        assert client.publish("$x", qos=2) == "50 03 00 01 87"
        assert client.publish("a", qos=2) == "50 03 00 01 10"
        assert client.say("62 02 0001") == "70 02 00 01"
        assert client.publish("a", qos=1) == "40 03 00 01 10"
    client.publish("a", qos=2, packet_id=1)
    assert client.fails(publish(5, "a", "x", 1, 2), "93")


def test_3_1_1_knows_no_receive_maximum(start):
    """3.3.4: it can't be told, so it is not closed for it."""
    broker = start(limits=ConnectionLimits(receive_max=1))
    client = broker.connect(4)
    for packet_id in (1, 2, 3):
        assert client.publish("a", qos=2, packet_id=packet_id) == f"50 02 00 {packet_id:02x}"
