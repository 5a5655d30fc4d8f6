"""3.14 DISCONNECT and 3.15 AUTH."""

import pytest

CONNECT_60_S = "10 13 0004 4d515454 05 00 0000 05 11 0000003c 0001 63"


def test_it_closes_without_an_answer(broker, version):
    """[MQTT-3.14.4-1] [MQTT-3.14.4-2]"""
    client = broker.connect(version)
    assert client.say("e0 00") == ""
    assert client.closed


def test_nothing_after_it_counts(broker, version):
    """[MQTT-3.14.4-1]"""
    watcher = broker.connect(4, "w")
    watcher.say("82 06 0001 0001 23 00")
    client = broker.connect(version)
    assert client.say("e0 00 30 04 0001 61 62 c0 00") == ""
    assert watcher.hear() == ""


@pytest.mark.parametrize("disconnect", ["e0 01 00", "e0 01 04", "e0 02 00 00"], ids=["normal", "with will", "empty"])
def test_reasons_of_5_0(broker, disconnect):
    client = broker.connect(5)
    assert client.say(disconnect) == ""
    assert client.closed


@pytest.mark.parametrize(
    ("disconnect", "reason"),
    [("e1 00", "81"), ("e0 01 01", "82"), ("e0 07 00 05 11 0000003c", "82")],
    ids=["flags", "reason", "expiry of a session that ends now"],
)
def test_bad_ones(broker, disconnect, reason):
    """[MQTT-3.14.1-1] [MQTT-3.14.2-1] [MQTT-3.14.2-2]"""
    client = broker.connect(5)
    heard = client.say(disconnect).split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", reason)


def test_it_may_end_the_session(broker):
    """3.14.2.2.2: the Session Expiry Interval of the DISCONNECT counts."""
    client = broker.open(5)
    client.say(CONNECT_60_S)
    client.say("e0 07 00 05 11 00000000")
    client.drop()
    assert broker.open(5).say(CONNECT_60_S).split()[2] == "00"


def test_without_one_the_interval_of_the_connect_counts(broker):
    """[MQTT-3.1.2-23]"""
    client = broker.open(5)
    client.say(CONNECT_60_S)
    client.say("e0 00")
    client.drop()
    broker.advance(59)
    assert broker.open(5).say(CONNECT_60_S).split()[2] == "01"


def test_auth_needs_a_method(broker):
    """[MQTT-4.12.1-1]"""
    client = broker.connect(5)
    heard = client.say("f0 00").split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", "82")
    client = broker.connect(4)
    assert client.say("f0 00") == ""
    assert client.closed
