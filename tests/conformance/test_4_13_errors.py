"""4.8 of MQTT 3.1.1 and 4.13 of 5.0: handling errors."""

import hex_packets
import pytest
from core_helpers import StubInterest
from hex_packets import connack

from broker.core.full_links import PATIENCE_S


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ("00 00", "81"),
        ("30 ff ff ff ff 01", "81"),
        ("30 80 00", "81"),
        ("30 01 00", "81"),
        ("30 02 0001", "81"),
        ("32 04 0001 61 00", "81"),
        ("36 07 0001 61 0001 00 62", "81"),
        ("38 05 0001 61 00 62", "81"),
        ("40 00", "81"),
        ("40 01 00", "81"),
        ("82 00", "81"),
        ("a2 01 00", "81"),
        ("20 02 00 00", "82"),
        ("b0 02 0001", "81"),
        ("c0 01 00", "81"),
        ("d0 00", "82"),
    ],
)
def test_faults_close(broker, version, packet, reason):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1]"""
    client = broker.connect(version)
    if packet.startswith(("20", "b0")):
        # A server's packet: 5.0 has longer ones, so that one of 3.1.1 is cut short there.
        client.say(packet)
        assert client.closed
    else:
        assert client.fails(packet, reason)


@pytest.mark.parametrize("packet", ["20 03 00 00 00", "90 04 0001 00 00", "b0 04 0001 00 00", "d0 00"])
def test_packets_of_a_server_close(broker, packet):
    """[MQTT-4.13.1-1]: a protocol error, however well formed."""
    assert broker.connect(5).fails(packet, "82")


def test_a_fault_has_no_consequences_for_others(broker, version):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1]: the session of the client stays, and every other connection."""
    other = broker.connect(version, "o")
    client = broker.stay(version)
    assert client.fails("00 00", "81")
    client.drop()
    assert other.say("c0 00") == "d0 00"
    assert broker.stay(version).connack == connack(version, present=1)


def test_what_came_before_a_fault_is_done_and_nothing_after_it(broker, version):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1]"""
    watcher = broker.connect(4, "w")
    watcher.subscribe("#", 0)
    client = broker.connect(version)
    client.say(hex_packets.publish(version, "a") + "0000" + hex_packets.publish(version, "b"))
    assert client.closed
    assert watcher.hear() == "30 04 00 01 61 78"


def test_a_refused_publish_is_said_or_closes(start, version):
    """[MQTT-3.4.2-1] [MQTT311-3.3.5-2] [MQTT311-4.8.0-2]: another node has no room for the message.

    5.0 has a reason for it; 3.1.1 can only close, and must not acknowledge what nobody has.
    """
    broker = start(interest=StubInterest({b"far": [("other", True)]}))
    other = broker.connect(version, "o")
    client = broker.connect(version)
    broker.node.fill_links("other")
    assert client.publish("far", qos=1, packet_id=7) == "", "there may be room in a moment"
    broker.node.advance(PATIENCE_S)
    assert client.hear() == {4: "", 5: "40 03 00 07 97"}[version]
    assert broker.node.forwards == []
    assert client.closed == (version == 4)
    assert not other.closed


def test_without_its_owner_a_listener_closes_what_it_has(broker, version):
    """[MQTT311-4.8.0-2] [MQTT-4.13.2-1]: 5.0 is told that the server shuts down."""
    client = broker.connect(version)
    listener = broker.node.listeners[0]
    listener.owner_gone()
    listener.receive_data(client.client.connection, bytes.fromhex("c000"), broker.node.now)
    assert client.closed
    heard = b"".join(client.client.connection.output).hex(" ")
    assert heard == {4: "", 5: "e0 01 8b"}[version]
