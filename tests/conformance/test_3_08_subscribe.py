"""3.8 SUBSCRIBE and 3.9 SUBACK, 3.10 UNSUBSCRIBE and 3.11 UNSUBACK."""

import pytest
from conftest import spaced


def test_one_reason_for_each_filter(broker):
    """[MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1]: QoS 2 is granted as 1."""
    assert broker.connect(4, "f").say("82 0e 1234 0001 61 00 0001 62 01 0001 63 02") == "90 05 12 34 00 01 01"
    assert broker.connect(5).say("82 0f 1234 00 0001 61 00 0001 62 01 0001 63 02") == "90 06 12 34 00 00 01 01"


def test_an_identical_filter_replaces(broker):
    """[MQTT-3.8.4-3]"""
    client = broker.connect(4)
    client.say("82 06 0001 0001 61 01")
    assert client.say("82 06 0002 0001 61 00") == "90 03 00 02 00"
    broker.connect(4, "p").say("32 06 0001 61 0001 62")
    assert client.hear() == "30 04 00 01 61 62"


def test_shared_subscriptions_are_refused(broker):
    """3.9.3: 0x9E in 5.0, failure in 3.1.1; the other filters of the packet are served."""
    shared = b"\0\x0a$share/g/a".hex()
    assert broker.connect(5).say("82 14 0001 00" + shared + "01 0001 61 01") == "90 05 00 01 00 9e 01"
    assert broker.connect(4, "f").say("82 13 0001" + shared + "01 0001 61 01") == "90 04 00 01 80 01"


def test_subscription_identifiers_are_refused(broker):
    """[MQTT-3.2.2-17]: the CONNACK said that there are none."""
    client = broker.connect(5)
    heard = client.say("82 09 0001 02 0b05 0001 61 01").split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", "a1")


@pytest.mark.parametrize(
    ("subscribe", "reason"),
    [
        ("80 07 0001 00 0001 61 01", "81"),
        ("82 03 0001 00", "82"),
        ("82 07 0000 00 0001 61 01", "82"),
        ("82 07 0001 00 0001 61 03", "82"),
        ("82 07 0001 00 0001 61 41", "81"),
        ("82 07 0001 00 0001 61 31", "82"),
        ("82 08 0001 00 0002 6123 01", "8f"),
        ("82 08 0001 00 0002 612b 01", "8f"),
        ("82 06 0001 00 0000 01", "8f"),
        ("82 10 0001 00 000a 2473686172652f672f61 05", "82"),
    ],
    ids=[
        "flags",
        "empty",
        "packet id 0",
        "QoS 3",
        "reserved",
        "retain handling 3",
        "a#",
        "a+",
        "no filter",
        "shared nl",
    ],
)
def test_bad_ones_close(broker, subscribe, reason):
    """[MQTT-3.8.1-1] [MQTT-3.8.3-2] [MQTT-2.2.1-3] [MQTT-3.8.3-5] [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-3.8.3-4]"""
    client = broker.connect(5)
    heard = client.say(subscribe).split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", reason)


def test_3_1_1_has_no_subscription_options(broker):
    """[MQTT-3-8.3-4] of 3.1.1"""
    client = broker.connect(4)
    assert client.say("82 06 0001 0001 61 04") == ""
    assert client.closed


def test_no_local(broker):
    """[MQTT-3.8.3-3]"""
    client = broker.connect(5)
    client.say("82 07 0001 00 0001 61 05")
    assert client.say("32 07 0001 61 0001 00 62").startswith("40")
    broker.connect(4, "p").say("30 04 0001 61 62")
    assert client.hear() == "30 05 00 01 61 00 62"


def test_overlapping_subscriptions(broker):
    """[MQTT-3.3.4-2]: one copy at the highest QoS"""
    client = broker.connect(4)
    client.say("82 0a 0001 0001 61 01 0001 23 00")
    broker.connect(4, "p").say("32 06 0001 61 0001 62")
    assert client.hear() == "32 06 00 01 61 00 01 62"


def test_unsubscribing(broker):
    """[MQTT-3.10.4-4] [MQTT-3.10.4-6] [MQTT-3.11.3-1]"""
    client = broker.connect(5)
    client.say("82 07 0001 00 0001 61 00")
    assert client.say("a2 09 0002 00 0001 61 0001 62") == "b0 05 00 02 00 00 11"
    client = broker.connect(4, "f")
    client.say("82 06 0001 0001 61 00")
    assert client.say("a2 08 0002 0001 61 0001 62") == "b0 02 00 02"
    broker.connect(4, "p").say("30 04 0001 61 62")
    assert client.hear() == ""


def test_filters_are_compared_character_by_character(broker):
    """[MQTT-3.10.4-1]"""
    client = broker.connect(5)
    client.say("82 07 0001 00 0001 2b 00")
    assert client.say("a2 06 0002 00 0001 61") == "b0 04 00 02 00 11"
    broker.connect(4, "p").say("30 04 0001 61 62")
    assert client.hear() == "30 05 00 01 61 00 62"


@pytest.mark.parametrize(
    ("unsubscribe", "reason"),
    [("a0 06 0002 00 0001 61", "81"), ("a2 03 0002 00", "82"), ("a2 06 0000 00 0001 61", "82")],
    ids=["flags", "empty", "packet id 0"],
)
def test_bad_unsubscribes_close(broker, unsubscribe, reason):
    """[MQTT-3.10.1-1] [MQTT-3.10.3-2] [MQTT-2.2.1-3]"""
    client = broker.connect(5)
    heard = client.say(unsubscribe).split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", reason)


def test_answers_are_in_the_order_of_the_requests(broker):
    client = broker.connect(4)
    heard = client.say("82 06 0001 0001 61 00 a2 05 0002 0001 61 82 06 0003 0001 61 01")
    assert heard == spaced("90 03 0001 00 b0 02 0002 90 03 0003 01")
