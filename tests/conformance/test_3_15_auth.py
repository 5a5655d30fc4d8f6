"""3.15 AUTH and 4.12 Enhanced authentication, where no method is served."""

import hex_packets
import pytest
from hex_packets import connack, text


@pytest.mark.parametrize("first_byte", ["f1", "f2", "f4", "f8"])
def test_wrong_flags_close(broker, first_byte):
    """[MQTT-3.15.1-1]"""
    assert broker.connect(5).fails(first_byte + "00", "81")


def test_auth_needs_a_method(broker):
    """[MQTT-4.12.0-7]: that the CONNECT had not."""
    assert broker.connect(5).fails("f0 00", "82")
    assert broker.connect(5).fails(hex_packets.packet("f0", "19", "04", "15" + text("m")), "82")


def test_3_1_1_has_no_auth(broker):
    """[MQTT311-4.8.0-1]"""
    assert broker.connect(4).fails("f0 00", "81")


def test_without_a_method_there_is_no_authentication(broker):
    """[MQTT-4.12.0-6]: the first thing said is the CONNACK, which names no method."""
    assert broker.connect(5).connack == connack(5)
    assert broker.connect(5, user="u", password="p").connack == connack(5)


def test_an_unknown_method_is_refused(broker):
    """[MQTT-4.12.0-1]: Bad authentication method."""
    client = broker.open(5)
    heard = client.say(hex_packets.connect(5, properties="15" + text("m") + "16" + text("data")))
    assert heard.split()[:1] + heard.split()[2:4] == ["20", "00", "8c"]
    assert client.closed
