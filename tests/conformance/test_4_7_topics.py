"""4.7 Topic names and topic filters."""

import hex_packets
import pytest
from hex_packets import spaced

from broker.core.message import Message


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
        ("+/tennis/#", "sport/tennis", True),
        ("+/tennis/#", "sport/golf", False),
        ("sport/+/player1", "sport/tennis/player1", True),
        ("sport/+/player1", "sport//player1", True),
        ("ACCOUNTS", "Accounts", False),
        ("/finance", "finance", False),
        ("finance/", "finance", False),
        ("a b", "a b", True),
        ("/", "/", True),
        ("a//b", "a/b", False),
    ],
)
def test_filters_match_as_the_specification_says(broker, version, topic_filter, topic, wanted):
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-3.3.2-3] [MQTT311-4.7.1-2] [MQTT311-4.7.1-3] [MQTT311-3.3.2-3]"""
    client = broker.connect(version)
    client.subscribe(topic_filter, 0)
    broker.connect(version, "p").publish(topic)
    assert client.hear() == (spaced(hex_packets.publish(version, topic)) if wanted else "")


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        # Letters that look alike, composed and decomposed forms, case, spaces, percent signs, dots.
        ("\u00e9", "e\u0301"),
        ("\u212b", "\u00c5"),
        ("\ufb01", "fi"),
        ("a", "A"),
        ("a", "a "),
        ("a%2fb", "a/b"),
        ("a/./b", "a/b"),
        ("\\a", "a"),
    ],
)
def test_nothing_is_normalized(broker, version, topic_filter, topic):
    """[MQTT-4.7.3-4] [MQTT311-4.7.3-4]: each matches itself, byte for byte, and neither the other."""
    client = broker.connect(version)
    client.subscribe(topic_filter, 0)
    publisher = broker.connect(version, "p")
    publisher.publish(topic)
    assert client.hear() == ""
    publisher.publish(topic_filter)
    assert client.hear() == spaced(hex_packets.publish(version, topic_filter))


@pytest.mark.parametrize("topic_filter", ["#", "+", "+/b", "+/#", "+/+"])
def test_wildcards_do_not_match_dollar_topics(broker, version, topic_filter):
    """[MQTT-4.7.2-1] [MQTT311-4.7.2-1]: not at the beginning of a filter.

    No client may publish there, so the messages are the server's own, as another node hands them over.
    """
    watcher = broker.connect(version, "w")
    watcher.subscribe(topic_filter, 0)
    other = broker.connect(version, "o")
    other.subscribe("$SYS/#", 0)
    other.subscribe("$SYS/+", 0)
    for topic in ("$", "$SYS", "$SYS/b"):
        broker.node.owner.receive_forwarded(Message(topic.encode(), b"x"), broker.node.now)
        broker.node.settle()
        assert watcher.hear() == "", topic
        assert other.hear() == ("" if topic == "$" else spaced(hex_packets.publish(version, topic))), topic


def test_dollar_topics_are_the_servers(broker):
    """[MQTT-3.4.2-1] [MQTT311-3.3.5-2]: refused in 5.0 (not authorized), acknowledged and dropped in 3.1.1."""
    watcher = broker.connect(4, "w")
    watcher.subscribe("$a", 0)
    assert broker.connect(5).say("32 08 0002 2461 0001 00 62") == "40 03 00 01 87"
    assert broker.connect(4).say("32 07 0002 2461 0001 62") == "40 02 00 01"
    assert watcher.hear() == ""


@pytest.mark.parametrize("topic", ["#", "+", "a/#", "a/+/b", "a+", "#a"])
def test_a_topic_name_has_no_wildcards(broker, version, topic):
    """[MQTT-4.7.0-1] [MQTT-3.3.2-2] [MQTT311-4.7.1-1] [MQTT311-3.3.2-2]"""
    assert broker.connect(version).fails(hex_packets.publish(version, topic), "90")


def test_a_topic_name_is_not_empty(broker, version):
    """[MQTT-4.7.3-1] [MQTT311-4.7.3-1]"""
    assert broker.connect(version).fails(hex_packets.publish(version, ""), {4: "90", 5: "82"}[version])


def test_a_topic_of_one_character(broker, version):
    """[MQTT-4.7.3-1] [MQTT311-4.7.3-1]: is long enough, even if it is the separator."""
    client = broker.connect(version)
    client.subscribe("/", 0)
    assert client.publish("/") == spaced(hex_packets.publish(version, "/"))


@pytest.mark.parametrize("topic", ["a\0", "\0", "\0a/b"])
def test_a_topic_has_no_null_character(broker, version, topic):
    """[MQTT-4.7.3-2] [MQTT311-4.7.3-2]"""
    assert broker.connect(version).fails(hex_packets.publish(version, topic), "90")
    assert broker.connect(version).fails(hex_packets.subscribe(version, 1, (topic, 0)), "8f")
