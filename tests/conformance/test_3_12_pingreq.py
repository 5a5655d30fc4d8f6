"""3.12 PINGREQ and 3.13 PINGRESP."""


def test_a_ping_is_answered(broker, version):
    """[MQTT-3.12.4-1] [MQTT311-3.12.4-1]"""
    client = broker.connect(version)
    assert client.say("c0 00") == "d0 00"
    assert client.say("c000 c000") == "d0 00 d0 00"


def test_bad_ones_close(broker, version):
    """A body is malformed; a PINGRESP is not for a client to send."""
    assert broker.connect(version).fails("c0 01 00", "81")
    assert broker.connect(version).fails("d0 00", "82")
