"""4 Operational behaviour: delivery, order, topics."""

import pytest
from conftest import spaced

PERSISTENT = "10 0d 0004 4d515454 04 00 0000 0001 73"


def away(broker):
    """A subscriber of everything that has gone away; its session stays."""
    client = broker.open(4)
    client.say(PERSISTENT)
    client.say("82 06 0001 0001 23 01")
    return client


def test_unacknowledged_deliveries_are_sent_again(broker):
    """[MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1]: with their packet ids, DUP, in their order."""
    client = away(broker)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.say(f"32 06 0001 61 0001 {number:02x}")
    client.hear()
    assert client.say("40 02 0002") == ""
    client.drop()
    publisher.say("32 06 0001 61 0001 03")
    client = broker.open(4)
    assert client.say(PERSISTENT) == spaced("20020100 3a06 0001 61 0001 00 3a06 0001 61 0003 02 3206 0001 61 0004 03")
    client.drop()
    # Again and again, until they are acknowledged.
    client = broker.open(4)
    assert client.say(PERSISTENT) == spaced("20020100 3a06 0001 61 0001 00 3a06 0001 61 0003 02 3a06 0001 61 0004 03")


def test_nothing_is_sent_again_on_a_live_connection(broker):
    """[MQTT-4.4.0-1]: only a reconnect is a reason to."""
    client = away(broker)
    broker.connect(4, "p").say("32 06 0001 61 0001 00")
    assert client.hear() == "32 06 00 01 61 00 01 00"
    broker.advance(1000)
    assert client.hear() == ""


def test_acknowledgements_are_in_the_order_of_the_publishes(broker):
    """[MQTT-4.6.0-2]"""
    away(broker)
    publisher = broker.connect(4, "p")
    ids = ["0009", "0001", "ffff", "0005"]
    heard = publisher.say(" ".join(f"32 06 0001 61 {packet_id} 00" for packet_id in ids))
    assert heard == spaced(" ".join(f"40 02 {packet_id}" for packet_id in ids))


def test_the_receive_maximum(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-3.3.4-9]"""
    client = broker.open(5)
    client.say("10 11 0004 4d515454 05 02 0000 03 21 0002 0001 73")
    client.say("82 07 0001 00 0001 61 01")
    publisher = broker.connect(4, "p")
    for number in range(4):
        publisher.say(f"32 06 0001 61 0001 {number:02x}")
    assert client.hear() == spaced("3207 0001 61 0001 00 00 3207 0001 61 0002 00 01")
    # Other packets don't wait for the quota.
    assert client.say("c0 00") == "d0 00"
    assert client.say("40 02 0001") == spaced("3207 0001 61 0003 00 02")


@pytest.mark.parametrize(
    ("topic_filter", "topic", "wanted"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "/finance", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("ACCOUNTS", "Accounts", False),
        ("/finance", "finance", False),
        ("a b", "a b", True),
    ],
)
def test_filters_match_as_the_specification_says(broker, topic_filter, topic, wanted):
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-4], its own examples."""
    client = broker.connect(4)
    name = topic_filter.encode()
    client.say(f"82 {len(name) + 5:02x} 0001 {len(name):04x} {name.hex()} 00")
    name = topic.encode()
    publish = f"30 {len(name) + 2:02x} {len(name):04x} {name.hex()}"
    broker.connect(4, "p").say(publish)
    assert client.hear() == (spaced(publish) if wanted else "")


def test_dollar_topics_are_the_servers(broker):
    """[MQTT-4.7.2-1]: refused in 5.0 (not authorized), acknowledged and dropped in 3.1.1, matched by no wildcard."""
    watcher = broker.connect(4, "w")
    watcher.say("82 06 0001 0001 23 00")
    watcher.say("82 06 0001 0001 2b 00")
    assert broker.connect(5).say("32 07 0001 24 0001 00 62") == "40 03 00 01 87"
    assert broker.connect(4).say("32 06 0001 24 0001 62") == "40 02 00 01"
    assert watcher.hear() == ""


def test_malformed_packets_close(broker, version):
    """[MQTT-4.13.1-1] [MQTT-4.8.0-1] of 3.1.1"""
    for packet in ("00 00", "30 ff ff ff ff 01", "30 80 00", "b0 02 0001", "90 03 0001 00", "20 02 00 00"):
        client = broker.connect(version)
        heard = client.say(packet)
        assert client.closed, packet
        assert heard == "" if version == 4 else heard.startswith("e0"), packet
