"""3.5 PUBREC, 3.6 PUBREL and 3.7 PUBCOMP; what they do is in 4.3."""

import pytest
from hex_packets import packet, publish, spaced, text


def sending(broker, version, **options):
    """A client that was sent a QoS 2 PUBLISH with packet id 1."""
    client = broker.connect(version, "s", **options)
    client.subscribe("a", 2)
    broker.connect(4, "p").publish("a", qos=2)
    assert client.hear() == spaced(publish(version, "a", "x", 2, 1))
    return client


def test_they_are_short(broker, version):
    """[MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]: success, which 5.0 need not write."""
    client = sending(broker, version)
    assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("70 02 0001") == ""
    broker.connect(4, "o").subscribe("b")
    assert client.publish("b", qos=2, packet_id=7) == "50 02 00 07"
    assert client.say("62 02 0007") == "70 02 00 07"


def test_reasons_of_a_pubrec(broker):
    """[MQTT-3.5.2-1]: No matching subscribers, and Not authorized; 3.1.1 can say neither."""
    client = broker.connect(5)
    assert client.publish("nobody", qos=2, packet_id=1) == "50 03 00 01 10"
    assert client.publish("$x", qos=2, packet_id=2) == "50 03 00 02 87"
    client = broker.connect(4, "d")
    assert client.publish("nobody", qos=2, packet_id=1) == "50 02 00 01"
    assert client.publish("$x", qos=2, packet_id=2) == "50 02 00 02"


def test_unknown_packet_ids(broker):
    """[MQTT-3.6.2-1] [MQTT-3.7.2-1]: 5.0 is told that there is no such exchange."""
    client = broker.connect(5)
    assert client.say("50 02 1234") == "62 03 12 34 92"
    assert client.say("62 02 1234") == "70 03 12 34 92"
    assert client.say("50 03 1234 80") == ""
    assert client.say("70 02 1234") == ""
    assert client.say("70 03 1234 92") == ""
    assert not client.closed


def test_unknown_packet_ids_of_3_1_1(broker):
    """[MQTT311-4.3.3-2]: are answered, so that the other side comes to its end."""
    client = broker.connect(4)
    assert client.say("50 02 1234") == "62 02 12 34"
    assert client.say("62 02 1234") == "70 02 12 34"
    assert client.say("70 02 1234") == ""
    assert not client.closed


@pytest.mark.parametrize("first_byte", ["60", "61", "63", "64", "66", "6a"])
def test_wrong_flags_of_a_pubrel_close(broker, version, first_byte):
    """[MQTT-3.6.1-1] [MQTT311-3.6.1-1]"""
    client = broker.connect(version)
    client.publish("a", qos=2, packet_id=1)
    assert client.fails(first_byte + "020001", "81")


def test_the_servers_pubrel_has_its_flags(broker, version):
    """[MQTT-3.6.1-1] [MQTT311-3.6.1-1] [MQTT311-2.2.2-1]"""
    assert sending(broker, version).say("50 02 0001").startswith("62 ")


@pytest.mark.parametrize("reason", ["01", "11", "18", "81", "92", "ff"])
def test_other_reasons_of_a_pubrec_close(broker, reason):
    """[MQTT-3.5.2-1]"""
    assert sending(broker, 5).fails("50 03 0001" + reason, "82")


@pytest.mark.parametrize("reason", ["01", "10", "80", "87", "91", "ff"])
def test_other_reasons_of_a_pubrel_and_a_pubcomp_close(broker, reason):
    """[MQTT-3.6.2-1] [MQTT-3.7.2-1]"""
    client = broker.connect(5)
    client.publish("a", qos=2, packet_id=1)
    assert client.fails("62 03 0001" + reason, "82")
    client = sending(broker, 5)
    client.say("50 02 0001")
    assert client.fails("70 03 0001" + reason, "82")


@pytest.mark.parametrize("first_byte", ["50", "62", "70"])
def test_3_1_1_has_no_reasons(broker, first_byte):
    """[MQTT311-4.8.0-1]"""
    assert broker.connect(4).fails(first_byte + "03000100", "81")


def test_properties_are_taken(broker):
    """[MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.7.2-2]: a client may say more than it must."""
    said = "1f" + text("why") + "26" + text("k") + text("v")
    client = sending(broker, 5)
    assert client.say(packet("50", "000100", f"{len(said) // 2:02x}", said)) == "62 02 00 01"
    assert client.say(packet("70", "000100", f"{len(said) // 2:02x}", said)) == ""
    client.publish("b", qos=2, packet_id=7)
    assert client.say(packet("62", "000700", f"{len(said) // 2:02x}", said)) == "70 02 00 07"


@pytest.mark.parametrize("bytes_max", [10, 100])
def test_the_servers_are_without_properties(broker, bytes_max):
    """[MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3]

    So none makes one larger than the client takes.
    """
    client = sending(broker, 5, properties=f"27{bytes_max:08x}")
    assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("50 02 0009") == "62 03 00 09 92"
    assert client.publish("$x", qos=2, packet_id=2) == "50 03 00 02 87"
    assert client.say("62 02 0002") == "70 03 00 02 92"
