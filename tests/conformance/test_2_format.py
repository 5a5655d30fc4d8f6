"""2 MQTT control packet format: flags, packet identifiers, properties."""

import hex_packets
import pytest
from builds import compiled
from hex_packets import CAPABILITIES, connack, size, spaced

from broker.core.settings import OwnerSettings


@pytest.mark.parametrize(
    "packet",
    [
        "41 02 0001",
        "51 02 0001",
        "60 02 0001",
        "71 02 0001",
        "80 06 0001 0001 61 00",
        "83 06 0001 0001 61 00",
        "a0 05 0001 0001 61",
        "a6 05 0001 0001 61",
        "c1 00",
        "c8 00",
        "e1 00",
        "e2 00",
    ],
)
def test_wrong_reserved_flags_close(broker, version, packet):
    """[MQTT-2.1.3-1] [MQTT311-2.2.2-1] [MQTT311-2.2.2-2]"""
    assert broker.connect(version).fails(packet, "81")


@pytest.mark.parametrize("first_byte", ["11", "12", "14", "18"])
def test_wrong_reserved_flags_of_a_connect_close(broker, version, first_byte):
    """[MQTT-2.1.3-1] [MQTT311-2.2.2-1] [MQTT311-2.2.2-2]"""
    assert broker.refuses(version, first_byte + hex_packets.connect(version)[2:])


def test_the_servers_own_reserved_flags(broker, version):
    """[MQTT-2.1.3-1] [MQTT311-2.2.2-1]: CONNACK, PUBACK, SUBACK, UNSUBACK and PINGRESP have none but zeros."""
    client = broker.open(version)
    heard = [client.say(hex_packets.connect(version)), client.publish("a", qos=1)]
    heard.append(client.say(hex_packets.subscribe(version, 1, ("a", 0))))
    heard += [client.say(hex_packets.unsubscribe(version, 2, "a")), client.say("c0 00")]
    assert [packet[:2] for packet in heard] == ["20", "40", "90", "b0", "d0"]


def test_qos_0_has_no_packet_id(broker, version):
    """[MQTT-2.2.1-2] [MQTT311-2.3.1-5]: topic, properties, payload, and nothing between them."""
    client = broker.connect(version)
    client.subscribe("a", 1)
    broker.connect(version, "p").publish("a", "x", qos=0)
    assert client.hear() == spaced({4: "30 04 0001 61 78", 5: "30 05 0001 61 00 78"}[version])


def test_packet_id_0_closes(broker, version):
    """[MQTT-2.2.1-3] [MQTT311-2.3.1-1]"""
    for packet in (
        hex_packets.publish(version, "a", qos=1, packet_id=0),
        hex_packets.publish(version, "a", qos=2, packet_id=0),
        hex_packets.subscribe(version, 0, ("a", 0)),
        hex_packets.unsubscribe(version, 0, "a"),
        "40 02 0000",
        "50 02 0000",
        "62 02 0000",
        "70 02 0000",
    ):
        assert broker.connect(version).fails(packet, "82"), packet


@compiled
def test_the_servers_packet_ids_are_unused_and_not_0(start, version):
    """[MQTT-2.2.1-4] [MQTT311-2.3.1-4] [MQTT-4.3.2-1] [MQTT311-4.3.2-1]

    One delivery stays unacknowledged while the ids go all the way round.
    """
    broker = start(settings=OwnerSettings(max_inflight_messages=2000))
    client = broker.connect(version)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "kept", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "kept", 1, 1))
    ids = []
    publishes = hex_packets.publish(4, "a", "", 1) * 1000
    length = size(hex_packets.publish(version, "a", "", 1))
    while len(ids) < 65535:
        publisher.say(publishes)
        data = client.client.take_bytes()
        round_ids = [data[at + 5 : at + 7].hex() for at in range(0, len(data), length)]
        assert len(set(round_ids)) == 1000
        ids += round_ids
        client.say("".join("4002" + packet_id for packet_id in round_ids))
        # Beside a client that says little a flood is paced; a moment later it is not.
        broker.advance(1.0)
    assert "0000" not in ids
    assert "0001" not in ids
    assert len(set(ids[:65534])) == 65534


def test_an_acknowledgement_has_the_id_of_its_publish(broker, version):
    """[MQTT-2.2.1-5] [MQTT311-2.3.1-6]"""
    client = broker.connect(version)
    client.subscribe("b")
    for packet_id in (1, 0x1234, 0xFFFF, 0x0100):
        assert client.publish("a", qos=1, packet_id=packet_id).split()[2:4] == spaced(f"{packet_id:04x}").split()


def test_suback_and_unsuback_have_the_id_of_their_request(broker, version):
    """[MQTT-2.2.1-6] [MQTT311-2.3.1-7]"""
    client = broker.connect(version)
    for packet_id in (1, 0x1234, 0xFFFF, 0x0100):
        heard = client.say(hex_packets.subscribe(version, packet_id, ("a", 0)))
        assert heard == spaced(hex_packets.suback(version, packet_id, "00"))
        heard = client.say(hex_packets.unsubscribe(version, packet_id, "a"))
        assert heard == spaced(hex_packets.unsuback(version, packet_id, "00"))


def test_without_properties_their_length_is_0(broker):
    """[MQTT-2.2.2-1]: in what the server writes."""
    client = broker.connect(5)
    assert client.say("82 07 0001 00 0001 61 01") == "90 04 00 01 00 01"
    assert broker.connect(4, "p").publish("a", "x", qos=1) == "40 02 00 01"
    assert client.hear() == "32 07 00 01 61 00 01 00 78"
    assert client.say("a2 06 0002 00 0001 61") == "b0 04 00 02 00 00"


@pytest.mark.parametrize(
    "packet", ["82 02 0001", "a2 02 0001", "32 05 0001 61 0001", "30 03 0001 61"], ids=lambda packet: packet[:2]
)
def test_a_missing_property_length_closes(broker, packet):
    """[MQTT-2.2.2-1]: in what a client writes."""
    assert broker.connect(5).fails(packet, "81")


def test_a_connect_needs_a_property_length(broker):
    """[MQTT-2.2.2-1]"""
    assert broker.refuses(5, "10 0d 0004 4d515454 05 02 0000 0001 63")
    assert broker.open(5).say("10 0e 0004 4d515454 05 02 0000 00 0001 63") == connack(5)


def test_the_connack_says_the_length_of_its_properties(broker):
    """[MQTT-2.2.2-1]"""
    heard = bytes.fromhex(broker.connect(5).connack)
    assert heard[4] == size(CAPABILITIES) == len(heard) - 5
