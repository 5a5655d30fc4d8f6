"""3.2 CONNACK."""

import hex_packets
import pytest
from hex_packets import connack, spaced, text

from broker.core.connection_limits import ConnectionLimits


def test_3_1_1_is_answered(broker):
    """[MQTT311-3.2.0-1] [MQTT311-3.2.2-1]"""
    client = broker.open(4)
    assert client.say("10 0d 0004 4d515454 04 02 003c 0001 63") == "20 02 00 00"
    assert not client.closed


def test_5_0_is_answered(broker):
    """[MQTT-3.2.0-1] [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-8] [MQTT-4.12.0-6]

    Without properties: everything is served, and nothing is limited but by the protocol.
    """
    client = broker.open(5)
    heard = client.say("10 0e 0004 4d515454 05 02 003c 00 0001 63")
    assert heard == "20 03 00 00 00"
    assert not client.closed


def test_session_present(broker):
    """[MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT311-3.2.2-1] [MQTT311-3.2.2-2] [MQTT311-3.2.2-3]"""
    for level in (4, 5):
        for clean, present in ((False, 0), (False, 1), (True, 0), (False, 1 if level == 5 else 0)):
            client = broker.connect(level, f"s{level}", clean, session_s=60)
            assert client.connack == connack(level, present)
            client.drop()


def test_the_connack_goes_before_what_waited(broker, version):
    """[MQTT-3.2.0-1] [MQTT311-3.2.0-1]"""
    client = broker.stay(version)
    client.subscribe("a", 1)
    client.drop()
    broker.connect(4, "p").publish("a", qos=1)
    heard = broker.open(version).say(hex_packets.connect(version, "s", False, session_s=60))
    assert heard == f"{connack(version, 1)} {spaced(hex_packets.publish(version, 'a', 'x', 1, 1))}"


def test_a_refusal_knows_of_no_session(broker, version):
    """[MQTT-3.2.2-6] [MQTT-3.2.2-7] [MQTT-4.13.2-1] [MQTT311-3.2.2-4] [MQTT311-3.2.2-5]: though one is there."""
    broker.stay(version).drop()
    client = broker.open(version)
    if version == 4:
        assert client.say("10 0d 0004 4d515454 06 00 0000 0001 73") == "20 02 00 01"
    else:
        heard = client.say(hex_packets.connect(5, "s", False, properties="15" + text("m")))
        assert heard.split()[:1] + heard.split()[2:4] == ["20", "00", "8c"]
    assert client.closed
    assert broker.stay(version).connack == connack(version, present=1)


def test_the_servers_maximum_packet_size(start, version):
    """[MQTT-3.2.2-15]: told in 5.0, kept in both."""
    broker = start(limits=ConnectionLimits(packet_bytes_max=100))
    watcher = broker.connect(4, "w")
    watcher.subscribe("a", 0)
    client = broker.connect(version)
    assert client.connack == connack(version, more="2700000064")
    largest = hex_packets.publish(version, "a", "x" * (95 if version == 4 else 94))
    assert len(bytes.fromhex(largest)) == 100
    client.say(largest)
    assert watcher.hear() != ""
    assert client.fails(hex_packets.publish(version, "a", "x" * 96), "95")
    assert watcher.hear() == ""


def test_a_packet_that_is_too_large_closes_before_it_is_there(start, version):
    """[MQTT-3.2.2-15]: its fixed header says enough."""
    broker = start(limits=ConnectionLimits(packet_bytes_max=100))
    assert broker.connect(version).fails("30 ff ff ff 7f", "95")


@pytest.mark.parametrize("length", [101, 128, 16384, 2097152, 268435455])
def test_a_connect_that_is_too_large_is_refused(start, version, length):
    """[MQTT-4.13.1-1] [MQTT311-3.2.2-6]: Packet too large, where its version has arrived; 3.1.1 has no code for it."""
    broker = start(limits=ConnectionLimits(connect_bytes_max=102))
    header = "10" + hex_packets.varint(length)
    beginning = header + hex_packets.connect(version, "c" * 50)[4:]
    assert broker.refuses(version, beginning, "95")
    for said in (header, header + "0004", header + text("MQTT")):
        client = broker.open()
        assert client.say(said) == ""
        assert client.closed


def test_assigned_client_ids_are_new(broker):
    """[MQTT-3.2.2-16] [MQTT-3.1.3-6]"""
    answers = {broker.connect(5, "").connack for _ in range(10)}
    assert len(answers) == 10


@pytest.mark.parametrize("bytes_max", [5, 16])
def test_a_refusal_never_exceeds_the_maximum_packet_size(broker, bytes_max):
    """[MQTT-3.2.2-19] [MQTT-3.2.2-20]: it goes without its text."""
    client = broker.open(5)
    heard = client.say(hex_packets.connect(5, properties=f"27{bytes_max:08x}15" + text("m")))
    assert heard == "20 03 00 8c 00"
    assert client.closed
