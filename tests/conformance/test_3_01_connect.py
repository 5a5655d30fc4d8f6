"""3.1 CONNECT and 3.2 CONNACK."""

import pytest
from conftest import spaced

CONNACK_5 = "20 0b 00 00 08 24 01 25 00 29 00 2a 00"


def test_3_1_1_is_answered(broker):
    """[MQTT-3.2.0-1] [MQTT-3.2.2-1]"""
    client = broker.open(4)
    assert client.say("10 0d 0004 4d515454 04 02 003c 0001 63") == "20 02 00 00"
    assert not client.closed


def test_5_0_is_answered_with_what_is_not_served(broker):
    """[MQTT-3.2.2-9] [MQTT-3.2.2-14]: Maximum QoS 1, no retained messages, subscription ids, shared subscriptions."""
    client = broker.open(5)
    assert client.say("10 0e 0004 4d515454 05 02 003c 00 0001 63") == CONNACK_5
    assert not client.closed


@pytest.mark.parametrize(
    ("connect", "answer"),
    [
        ("10 0d 0004 4d515454 03 02 0000 0001 63", "20 02 00 01"),
        ("10 0d 0004 4d515454 06 02 0000 0001 63", "20 02 00 01"),
        ("10 0f 0006 4d5149736470 04 02 0000 0001 63", "20 02 00 01"),
    ],
    ids=["level 3", "level 6", "level 4 with the name of 3.1"],
)
def test_other_versions_are_refused(broker, connect, answer):
    """[MQTT-3.1.2-2], in the form of the oldest version that is served."""
    client = broker.open()
    assert client.say(connect) == answer
    assert client.closed


def test_the_first_packet_is_a_connect(broker):
    """[MQTT-3.1.0-1]"""
    client = broker.open()
    assert client.say("c0 00") == ""
    assert client.closed


def test_a_second_connect_closes(broker, version):
    """[MQTT-3.1.0-2]"""
    client = broker.connect(version)
    connect = {4: "10 0d 0004 4d515454 04 02 0000 0001 63", 5: "10 0e 0004 4d515454 05 02 0000 00 0001 63"}[version]
    heard = client.say(connect)
    assert client.closed
    assert heard == "" if version == 4 else heard.startswith("e0") and "82" in heard.split()[2]


def test_the_reserved_flag_closes(broker):
    """[MQTT-3.1.2-3]"""
    client = broker.open()
    assert client.say("10 0d 0004 4d515454 04 03 0000 0001 63") == ""
    assert client.closed


def test_an_empty_client_id_is_assigned(broker):
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16]"""
    client = broker.open(5)
    heard = client.say("10 0d 0004 4d515454 05 02 0000 00 0000")
    assert heard.startswith("20 18 00 00 15 24 01 25 00 29 00 2a 00 12 00 0a")
    assert bytes.fromhex(heard)[-10:] == b"assigned-1"
    client = broker.open(4)
    assert client.say("10 0c 0004 4d515454 04 02 0000 0000") == "20 02 00 00"


def test_an_empty_client_id_without_a_clean_session_is_refused(broker):
    """[MQTT-3.1.3-8] of 3.1.1"""
    client = broker.open(4)
    assert client.say("10 0c 0004 4d515454 04 00 0000 0000") == "20 02 00 02"
    assert client.closed


def test_a_client_id_that_is_too_long_is_refused(broker):
    """[MQTT-3.1.3-8]"""
    client = broker.open(4)
    assert client.say("10 71 0004 4d515454 04 02 0000 0065" + "63" * 101) == "20 02 00 02"
    assert client.closed
    client = broker.open(5)
    assert client.say("10 72 0004 4d515454 05 02 0000 00 0065" + "63" * 101).startswith("20")
    assert client.closed


def test_a_will_is_refused(broker):
    """Wills are not served yet: the CONNECT is refused (5.0: 0x83), rather than the will forgotten."""
    client = broker.open(4)
    assert client.say("10 13 0004 4d515454 04 06 0000 0001 63 0001 61 0001 62") == "20 02 00 03"
    assert client.closed
    client = broker.open(5)
    heard = client.say("10 15 0004 4d515454 05 06 0000 00 0001 63 00 0001 61 0001 62")
    assert heard.split()[:1] + heard.split()[2:4] == ["20", "00", "83"]
    assert client.closed


def test_enhanced_authentication_is_refused(broker):
    """[MQTT-4.12.0-1]: Bad authentication method."""
    client = broker.open(5)
    heard = client.say("10 12 0004 4d515454 05 02 0000 04 15 0001 6d 0001 63")
    assert heard.split()[2:4] == ["00", "8c"]
    assert client.closed


def test_session_present(broker):
    """[MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.2.2-2] [MQTT-3.2.2-3]"""
    persistent = "10 0d 0004 4d515454 04 00 0000 0001 63"
    clean = "10 0d 0004 4d515454 04 02 0000 0001 63"
    for connect, answer in (
        (persistent, "20 02 00 00"),
        (persistent, "20 02 01 00"),
        (clean, "20 02 00 00"),
        (persistent, "20 02 00 00"),
    ):
        client = broker.open(4)
        assert client.say(connect) == answer
        client.drop()


def test_session_present_with_an_expiry(broker):
    """[MQTT-3.1.2-23] [MQTT-3.2.2-3]"""
    connect = "10 13 0004 4d515454 05 00 0000 05 11 0000003c 0001 63"
    client = broker.open(5)
    assert client.say(connect) == CONNACK_5
    client.drop()
    broker.advance(59)
    client = broker.open(5)
    assert client.say(connect) == CONNACK_5.replace("0b 00 00", "0b 01 00")
    client.drop()
    broker.advance(61)
    assert broker.open(5).say(connect) == CONNACK_5


def test_takeover(broker):
    """[MQTT-3.1.4-3]"""
    older = broker.connect(5)
    newer = broker.connect(5)
    assert older.hear() == "e0 01 8e"
    assert older.closed
    older, newer = newer, broker.connect(4)
    assert older.closed
    older, newer = newer, broker.connect(4)
    assert older.hear() == ""
    assert older.closed
    assert not newer.closed


def test_what_follows_the_connect_at_once_is_served_after_the_connack(broker):
    """[MQTT-3.1.4-5]: the CONNACK first; clients need not wait for it."""
    client = broker.open(4)
    heard = client.say("10 0d 0004 4d515454 04 02 0000 0001 63 c000 82 06 0001 0001 61 00 30 04 0001 61 62")
    assert heard == "20 02 00 00 d0 00 90 03 00 01 00 30 04 00 01 61 62"


def test_keep_alive(broker, version):
    """[MQTT-3.1.2-22]"""
    client = broker.open(version)
    client.say({4: "10 0d 0004 4d515454 04 02 000a 0001 63", 5: "10 0e 0004 4d515454 05 02 000a 00 0001 63"}[version])
    broker.advance(14)
    assert client.say("c0 00") == "d0 00"
    broker.advance(14)
    assert not client.closed
    broker.advance(2)
    assert client.closed
    assert client.hear() == ("" if version == 4 else spaced("e0 01 8d"))


def test_a_reason_string_never_exceeds_the_maximum_packet_size(broker):
    """[MQTT-3.2.2-19] [MQTT-3.14.2-3]"""
    client = broker.open(5)
    assert client.say("10 13 0004 4d515454 05 02 0000 05 27 00000010 0001 63") == CONNACK_5
    assert client.say("f3 00") == "e0 01 81"
    assert client.closed
    client = broker.open(5)
    heard = client.say("10 1a 0004 4d515454 05 06 0000 05 27 00000010 0001 63 00 0001 61 0001 62")
    assert heard == "20 03 00 83 00"
