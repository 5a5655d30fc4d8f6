"""4.7 Topic names and topic filters."""

import hex_packets
import pytest
from core_helpers import StubInterest
from hex_packets import spaced

from broker.core.connection_limits import ConnectionLimits
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
    assert broker.connect(version).fails(hex_packets.publish(version, topic), "82")


def test_a_topic_name_is_not_empty(broker, version):
    """[MQTT-4.7.3-1] [MQTT311-4.7.3-1]"""
    assert broker.connect(version).fails(hex_packets.publish(version, ""), "82")


def test_a_topic_of_one_character(broker, version):
    """[MQTT-4.7.3-1] [MQTT311-4.7.3-1]: is long enough, even if it is the separator."""
    client = broker.connect(version)
    client.subscribe("/", 0)
    assert client.publish("/") == spaced(hex_packets.publish(version, "/"))


@pytest.mark.parametrize("topic", ["a\0", "\0", "\0a/b"])
def test_a_topic_has_no_null_character(broker, version, topic):
    """[MQTT-4.7.3-2] [MQTT311-4.7.3-2]"""
    assert broker.connect(version).fails(hex_packets.publish(version, topic), "81")
    assert broker.connect(version).fails(hex_packets.subscribe(version, 1, (topic, 0)), "81")
    assert broker.connect(version).fails(hex_packets.unsubscribe(version, 1, topic), "81")


# A topic that is well-formed and over a limit is no fault.


@pytest.fixture
def limited(start):
    """A broker of topics of three levels and 20 bytes."""
    return start(limits=ConnectionLimits(topic_levels_max=3, topic_bytes_max=20))


OVER = ["a/b/c/d", "///", "t" * 21, "a/b/c/d/" + "t" * 20]
WITHIN = ["a/b/c", "//", "t" * 20, "a/b/" + "t" * 16]


@pytest.mark.parametrize("topic", OVER)
@pytest.mark.parametrize("retain", [False, True])
def test_a_publish_over_a_limit_is_refused_in_its_acknowledgement(limited, topic, retain):
    """[MQTT-3.4.2-1] [MQTT-3.5.2-1]: Topic Name invalid, "not malformed, but not accepted"; the connection goes on."""
    watcher = limited.connect(4, "w")
    watcher.subscribe("#", 0)
    client = limited.connect(5)
    assert client.publish(topic, "x" * 30, qos=1, packet_id=7, retain=retain) == "40 03 00 07 90"
    assert client.publish(topic, "x" * 30, qos=2, packet_id=8, retain=retain) == "50 03 00 08 90"
    assert client.publish(topic, "x" * 30, qos=0, retain=retain) == ""
    # The refused id is free, and there is nothing to be released.
    assert client.say("62 02 0008") == "70 03 00 08 92"
    assert client.publish("a", qos=2, packet_id=8) == "50 02 00 08"
    assert watcher.hear() == spaced(hex_packets.publish(4, "a"))
    assert limited.node.dropped("topic_limit") == 3
    assert limited.connect(4, "n").say(hex_packets.subscribe(4, 1, ("#", 0))) == "90 03 00 01 00"


@pytest.mark.parametrize("topic", OVER)
def test_3_1_1_is_acknowledged_what_is_over_a_limit(limited, topic):
    """[MQTT311-3.3.5-2]: the positive acknowledgement, by the rules of the QoS."""
    watcher = limited.connect(4, "w")
    watcher.subscribe("#", 0)
    client = limited.connect(4)
    assert client.publish(topic, qos=1, packet_id=7) == "40 02 00 07"
    assert client.publish(topic, qos=2, packet_id=8) == "50 02 00 08"
    assert client.publish(topic, qos=2, packet_id=8, dup=True) == "50 02 00 08"
    assert client.say("62 02 0008") == "70 02 00 08"
    assert client.publish(topic, qos=0) == ""
    assert watcher.hear() == ""
    assert limited.node.dropped("topic_limit") == 3


def test_the_refusal_of_a_topic_keeps_its_place_among_the_acknowledgements(start):
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3]"""
    broker = start(interest=StubInterest({b"far": [("other", True)]}), limits=ConnectionLimits(topic_levels_max=3))
    client = broker.connect(5)
    assert client.publish("far", qos=1, packet_id=1) == ""
    assert client.publish("a/b/c/d", qos=1, packet_id=2) == ""
    assert client.publish("a/b/c/d", qos=2, packet_id=3) == ""
    (forward,) = broker.node.forwards
    broker.node.owner.forward_acknowledged(forward.ticket, broker.node.now)
    broker.node.settle()
    assert client.hear() == "40 02 00 01 40 03 00 02 90 50 03 00 03 90"


@pytest.mark.parametrize("topic", WITHIN)
def test_a_topic_within_the_limits_is_served(limited, version, topic):
    client = limited.connect(version)
    client.subscribe(topic, 0)
    client.say(hex_packets.subscribe(version, 1, ("$share/g/#", 0)))
    heard = client.publish(topic)
    assert heard == spaced(hex_packets.publish(version, topic) * 2)


@pytest.mark.parametrize("topic_filter", [*OVER, "+/+/+/+", "a/b/c/#", "$share/g/a/b/c/d", "$share/g/t" + "t" * 11])
def test_a_filter_over_a_limit_is_refused_in_the_suback(limited, version, topic_filter):
    """[MQTT-3.9.3-2] [MQTT311-3.9.3-2]: "correctly formed but not allowed"; the others are granted."""
    client = limited.connect(version)
    heard = client.say(hex_packets.subscribe(version, 1, ("a", 1), (topic_filter, 1), ("b", 0)))
    assert heard == spaced(hex_packets.suback(version, 1, {4: "01 80 00", 5: "01 8f 00"}[version]))
    assert client.say(hex_packets.unsubscribe(version, 2, topic_filter)) == spaced(
        hex_packets.unsuback(version, 2, "11")
    )


def test_the_depth_of_a_shared_filter_is_that_of_its_filter(limited, version):
    client = limited.connect(version)
    client.subscribe("$share/g/a/b/c", 0)
    assert client.publish("a/b/c") == spaced(hex_packets.publish(version, "a/b/c"))


@pytest.mark.parametrize("topic", OVER)
def test_a_will_over_a_limit_is_refused(limited, topic):
    """3.2.2.2: "The Will Topic Name is not malformed, but is not accepted by this Server"."""
    assert limited.refuses(5, hex_packets.connect(5, will=(topic, "x")), "90")
    client = limited.open(4)
    assert client.say(hex_packets.connect(4, will=(topic, "x"))) == "20 02 00 03"
    assert client.closed


def test_an_aliased_topic_over_a_limit_is_refused_each_time(start):
    """[MQTT-3.3.2-12]: the alias is good all the same."""
    broker = start(limits=ConnectionLimits(topic_levels_max=3, topic_alias_max_client=1))
    client = broker.connect(5)
    assert client.publish("a/b/c/d", qos=1, packet_id=1, properties="230001") == "40 03 00 01 90"
    assert client.publish("", qos=1, packet_id=2, properties="230001") == "40 03 00 02 90"


def test_the_deepest_topics_there_can_be_close_nothing(broker, version):
    """65,536 levels, by far more than are served."""
    client = broker.connect(version)
    heard = client.say(hex_packets.subscribe(version, 1, ("/" * 65535, 0), ("+/" * 32767 + "+", 0)))
    assert heard == spaced(hex_packets.suback(version, 1, {4: "80 80", 5: "8f 8f"}[version]))
    assert client.publish("/" * 65535) == ""
    assert client.say("c0 00") == "d0 00"
