"""3.12 PINGREQ and 3.13 PINGRESP."""

from conftest import spaced


def test_a_ping_is_answered(broker, version):
    """[MQTT-3.12.4-1]"""
    client = broker.connect(version)
    assert client.say("c0 00") == "d0 00"
    assert client.say("c000 c000") == "d0 00 d0 00"


def test_bad_ones_close(broker, version):
    """[MQTT-2.1.3-1]"""
    for packet in ("c1 00", "c0 01 00", "d0 00"):
        client = broker.connect(version)
        heard = client.say(packet)
        assert client.closed
        assert heard == "" if version == 4 else heard.startswith(spaced("e0"))
