"""3.14 DISCONNECT."""

import hex_packets
import pytest
from hex_packets import connack, text

SERVER_REASONS = {
    0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98,
    0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
}  # fmt: skip

# Faults of many kinds: packets that a connected client of 5.0 may not say.
FAULTS = [
    "00 00",
    "30 ff ff ff ff 01",
    "20 02 00 00",
    "36 07 0001 61 0001 00 62",
    "30 05 0001 23 00 62",
    "30 08 0001 61 03 230000 62",
    "82 07 0001 00 0001 61 03",
    "82 08 0001 00 0002 6123 01",
    "10 0e 0004 4d515454 05 02 0000 00 0001 63",
    "f0 00",
    "e0 01 01",
]


def test_it_closes_without_an_answer(broker, version):
    """3.14.4: the server closes where the client has not."""
    client = broker.connect(version)
    assert client.say("e0 00") == ""
    assert client.closed


def test_nothing_after_it_counts(broker, version):
    """[MQTT-3.14.4-1]: neither what the client sends nor what the server would have to send."""
    watcher = broker.connect(4, "w")
    watcher.subscribe("#", 0)
    client = broker.connect(version)
    client.subscribe("b", 0)
    assert client.say("e0 00" + hex_packets.publish(version, "a") + "c0 00") == ""
    assert watcher.hear() == ""
    watcher.publish("b")
    assert client.hear() == ""


@pytest.mark.parametrize("disconnect", ["e0 01 00", "e0 01 04", "e0 02 00 00"], ids=["normal", "with will", "empty"])
def test_reasons_of_5_0(broker, disconnect):
    client = broker.connect(5)
    assert client.say(disconnect) == ""
    assert client.closed


@pytest.mark.parametrize("reason", ["01", "02", "10", "18", "84", "85", "86", "8a", "91", "92", "a3", "ff"])
def test_unknown_reasons(broker, reason):
    """[MQTT-3.14.2-1]"""
    assert broker.connect(5).fails("e0 01" + reason, "82")


@pytest.mark.parametrize("first_byte", ["e1", "e2", "e4", "e8"])
def test_wrong_flags(broker, version, first_byte):
    """[MQTT-3.14.1-1] [MQTT311-3.14.1-1]"""
    assert broker.connect(version).fails(first_byte + "00", "81")


def test_3_1_1_knows_no_reasons(broker):
    """[MQTT311-4.8.0-1]: a body is malformed."""
    assert broker.connect(4).fails("e0 01 00", "81")


def test_it_may_end_the_session(broker):
    """3.14.2.2.2: the Session Expiry Interval of the DISCONNECT counts."""
    client = broker.stay(5)
    client.say("e0 07 00 05 11 00000000")
    client.drop()
    assert broker.stay(5).connack == connack(5)


def test_it_may_prolong_the_session(broker):
    """3.14.2.2.2"""
    client = broker.stay(5)
    client.say("e0 07 00 05 11 00000258")
    client.drop()
    broker.advance(599)
    assert broker.stay(5).connack == connack(5, present=1)


def test_it_can_not_prolong_a_session_that_ends_now(broker):
    """3.14.2.2.2: a protocol error."""
    assert broker.connect(5).fails("e0 07 00 05 11 0000003c", "82")


def test_without_an_interval_that_of_the_connect_counts(broker):
    """[MQTT-3.1.2-23]"""
    client = broker.stay(5)
    client.say("e0 00")
    client.drop()
    broker.advance(59)
    assert broker.stay(5).connack == connack(5, present=1)


# The server's own.


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_server_says(broker, fault):
    """[MQTT-3.14.2-1] [MQTT-3.14.2-2] [MQTT-3.14.4-1] [MQTT-3.14.4-2] [MQTT-4.13.1-1] [MQTT-4.13.2-1]

    One DISCONNECT with a reason of its table, no property but a Reason String, and then nothing.
    """
    client = broker.connect(5)
    client.subscribe("b", 0)
    heard = bytes.fromhex(client.say(fault + "c000"))
    assert heard[:2] == bytes([0xE0, len(heard) - 2])
    assert heard[2] in SERVER_REASONS
    assert len(heard) == 3 or (heard[3] == len(heard) - 4 and heard[4] == 0x1F)
    assert len(heard) == 3 or int.from_bytes(heard[5:7], "big") == len(heard) - 7
    assert client.closed
    broker.connect(4, "p").publish("b")
    assert client.say("c0 00") == ""


def test_before_the_connack_there_is_none(broker, version):
    """[MQTT-3.14.0-1]"""
    assert broker.refuses(version, hex_packets.connect(version, flags=1))
    for first in ("c0 00", "f0 00", "10 00", "30 80 80 80 80 01"):
        client = broker.open(version)
        assert client.say(first) == ""
        assert client.closed
    client = broker.open(version)
    assert "e0" not in client.say(hex_packets.connect(version, "c" * 200)).split()[:1]
    client = broker.open(version)
    broker.advance(1000)
    assert client.hear() == ""
    assert client.closed


def test_its_text_never_exceeds_the_maximum_packet_size(broker):
    """[MQTT-3.14.2-3] [MQTT-3.14.2-4]: it goes without."""
    client = broker.connect(5, properties="2700000010")
    assert client.say("f3 00") == "e0 01 81"
    assert client.closed
    client = broker.connect(5, properties="27000000ff")
    heard = bytes.fromhex(client.say("f3 00"))
    assert heard[:3] == bytes([0xE0, len(heard) - 2, 0x81])
    assert len(heard) > 16


def test_a_reason_string_from_the_client_is_taken(broker):
    """3.14.2.2.3"""
    client = broker.connect(5)
    properties = "1f" + text("enough")
    assert client.say(hex_packets.packet("e0", "04", f"{len(properties) // 2:02x}", properties)) == ""
    assert client.closed
