"""broker.core.farewell: the last word."""

import pytest

from broker.core.farewell import farewell, refusal
from broker.mqtt.reasons import Reason


@pytest.mark.parametrize(
    ("version", "is_attached", "reason", "said"),
    [
        (5, True, Reason.MALFORMED_PACKET, "e0 01 81"),
        (5, True, Reason.SERVER_SHUTTING_DOWN, "e0 01 8b"),
        (5, False, Reason.MALFORMED_PACKET, "20 03 00 81 00"),
        (5, False, Reason.SERVER_SHUTTING_DOWN, "20 03 00 88 00"),
        (4, True, Reason.MALFORMED_PACKET, ""),
        (4, False, Reason.CLIENT_IDENTIFIER_NOT_VALID, "20 02 00 02"),
        (4, False, Reason.CONNECTION_RATE_EXCEEDED, "20 02 00 03"),
        (3, True, Reason.MALFORMED_PACKET, ""),
        (3, False, Reason.NOT_AUTHORIZED, "20 02 00 05"),
        (0, False, Reason.UNSUPPORTED_PROTOCOL_VERSION, "20 02 00 01"),
        (0, False, Reason.MALFORMED_PACKET, ""),
    ],
)
def test_the_word_for_each_version(version, is_attached, reason, said):
    """[MQTT-3.2.2-7] [MQTT-4.13.2-1] [MQTT311-3.2.2-5] [MQTT311-3.2.2-6] [MQTT311-4.8.0-1]"""
    assert farewell(version, is_attached, reason, "", 0).hex(" ") == said


@pytest.mark.parametrize(
    ("is_attached", "bytes_max", "said"),
    [
        (True, 0, "e0 07 81 05 1f 00 02 6e 6f"),
        (True, 9, "e0 07 81 05 1f 00 02 6e 6f"),
        (True, 8, "e0 01 81"),
        (True, 3, "e0 01 81"),
        (True, 2, ""),
        (False, 10, "20 08 00 81 05 1f 00 02 6e 6f"),
        (False, 9, "20 03 00 81 00"),
        (False, 4, ""),
    ],
)
def test_it_is_no_longer_than_the_client_takes(is_attached, bytes_max, said):
    """[MQTT-3.2.2-19] [MQTT-3.14.2-3] [MQTT-3.1.2-24]"""
    assert farewell(5, is_attached, Reason.MALFORMED_PACKET, "no", bytes_max).hex(" ") == said


@pytest.mark.parametrize(
    ("version", "is_attached", "bytes_max", "said"),
    [
        (5, True, 0, "e0 08 9d 06 1c 00 03 61 3a 31"),
        (5, True, 9, "e0 01 9d"),
        (5, False, 0, "20 09 00 9d 06 1c 00 03 61 3a 31"),
        (4, True, 0, ""),
    ],
)
def test_a_server_to_use_instead_is_named_where_there_is_room(version, is_attached, bytes_max, said):
    """[MQTT-4.13.2-1]"""
    assert farewell(version, is_attached, Reason.SERVER_MOVED, "", bytes_max, "a:1").hex(" ") == said


def test_mqtt_3_is_told_no_text():
    assert farewell(4, False, Reason.NOT_AUTHORIZED, "no", 0).hex(" ") == "20 02 00 05"


def test_refusals():
    assert refusal(Reason.BANNED) == Reason.BANNED
    assert refusal(Reason.SESSION_TAKEN_OVER) == Reason.SERVER_UNAVAILABLE
