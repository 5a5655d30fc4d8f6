"""3.1.2.5 to 3.1.2.7 and 3.1.3.2: wills."""

import hex_packets
import pytest
from hex_packets import connack, publish, spaced, text

WILL = spaced(publish(4, "w", "gone"))


def watching(broker, qos=0):
    client = broker.connect(4, "watcher")
    client.subscribe("#", qos)
    return client


def leave(broker, version, name="c", clean=True, **options):
    """A client with a will."""
    return broker.connect(version, name, clean, will=("w", "gone"), **options)


def delay(seconds):
    return f"18{seconds:08x}"


@pytest.mark.parametrize("end", ["drop", "fault", "silence", "takeover"])
def test_it_is_published_when_the_connection_ends(broker, version, end):
    """[MQTT-3.1.2-7] [MQTT-3.1.2-8] [MQTT-3.1.2-22] [MQTT311-3.1.2-8] [MQTT311-3.1.2-24]: however, but well."""
    watcher = watching(broker)
    client = leave(broker, version, keep_alive_s=10)
    assert watcher.hear() == ""
    if end == "drop":
        client.drop()
    elif end == "fault":
        client.say("00 00")
    elif end == "silence":
        broker.advance(16)
    else:
        broker.connect(version)
    assert watcher.hear() == WILL
    broker.advance(1000)
    assert watcher.hear() == ""


def test_it_outlives_the_node(broker, version):
    """[MQTT-3.1.2-7] [MQTT311-3.1.2-8]: the client, whose connection broke, does not come back."""
    leave(broker, version)
    broker.restart()
    watcher = watching(broker)
    broker.advance(60)
    assert watcher.hear() == WILL
    broker.restart()
    watcher = watching(broker)
    broker.advance(60)
    assert watcher.hear() == ""


def test_a_proper_goodbye_discards_it(broker, version):
    """[MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT311-3.1.2-8] [MQTT311-3.1.2-10] [MQTT311-3.14.4-3]"""
    watcher = watching(broker)
    for clean in (True, False):
        client = leave(broker, version, "c", clean, session_s=60)
        client.say("e0 00")
        client.drop()
        broker.advance(1000)
        assert watcher.hear() == ""


@pytest.mark.parametrize("reason", ["04", "80", "81", "82", "83", "90", "93", "95", "97", "99"])
def test_a_goodbye_with_another_reason_publishes_it(broker, reason):
    """[MQTT-3.1.2-8] [MQTT-3.14.4-3]"""
    watcher = watching(broker)
    client = leave(broker, 5)
    assert client.say("e0 01" + reason) == ""
    assert watcher.hear() == WILL
    client.drop()
    assert watcher.hear() == ""


def test_after_it_was_published_it_is_gone(broker, version):
    """[MQTT-3.1.2-10] [MQTT311-3.1.2-10] [MQTT311-3.1.2-12]: the next connection of the session has none."""
    watcher = watching(broker)
    leave(broker, version, "s", False, session_s=60).drop()
    assert watcher.hear() == WILL
    client = broker.stay(version)
    assert client.connack == connack(version, present=1)
    client.drop()
    broker.advance(1000)
    assert watcher.hear() == ""


def test_it_belongs_to_its_connection(broker, version):
    """[MQTT-3.1.2-7] [MQTT311-3.1.2-8]: the next one's takes its place."""
    watcher = watching(broker)
    leave(broker, version, "s", False, session_s=60).say("e0 00")
    broker.stay(version, will=("v", "other")).drop()
    assert watcher.hear() == spaced(publish(4, "v", "other"))


def test_a_connect_that_is_refused_leaves_none(broker, version):
    """[MQTT311-3.1.2-8] [MQTT-3.1.4-6]"""
    watcher = watching(broker)
    client = broker.open(version)
    client.say(hex_packets.connect(version, "c" * 200, will=("w", "gone")))
    assert client.closed
    client.drop()
    broker.advance(1000)
    assert watcher.hear() == ""


def test_its_qos(broker, version):
    """[MQTT-3.1.2-12] [MQTT311-3.1.2-14]: each of the three, as the one of a PUBLISH."""
    watcher = watching(broker, qos=2)
    for qos in (0, 1, 2):
        leave(broker, version, will_qos=qos).drop()
        assert watcher.hear() == spaced(publish(4, "w", "gone", qos, qos))


def test_will_retain(broker, version):
    """[MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT311-3.1.2-16] [MQTT311-3.1.2-17]"""
    watcher = broker.connect(5, "watcher")
    watcher.subscribe("w", 0x08)
    leave(broker, version).drop()
    assert watcher.hear() == spaced(publish(5, "w", "gone"))
    later = broker.connect(4, "later")
    later.subscribe("w", 0)
    assert later.hear() == ""
    leave(broker, version, will_retain=True).drop()
    assert watcher.hear() == spaced(publish(5, "w", "gone", retain=True))
    assert later.hear() == WILL
    assert broker.connect(4, "last").say(hex_packets.subscribe(4, 1, ("w", 0))) == spaced(
        hex_packets.suback(4, 1, "00") + publish(4, "w", "gone", retain=True)
    )


def test_without_will_retain_what_is_retained_stays(broker, version):
    """[MQTT-3.1.2-14] [MQTT311-3.1.2-16]"""
    broker.connect(4, "p").publish("w", "old", retain=True)
    leave(broker, version).drop()
    heard = broker.connect(4, "later").say(hex_packets.subscribe(4, 1, ("w", 0)))
    assert heard == spaced(hex_packets.suback(4, 1, "00") + publish(4, "w", "old", retain=True))


def test_an_empty_one(broker, version):
    """[MQTT-3.1.2-9] [MQTT311-3.1.2-9]: zero bytes are a payload."""
    watcher = watching(broker)
    broker.connect(version, will=("w", "")).drop()
    assert watcher.hear() == spaced(publish(4, "w", ""))


@pytest.mark.parametrize("topic", ["a/#", "+", ""])
def test_its_topic_is_a_topic_name(broker, version, topic):
    """[MQTT-3.1.3-11] [MQTT311-3.1.3-10]"""
    assert broker.refuses(version, hex_packets.connect(version, will=(topic, "x")), "82")


# Will properties.


def test_the_will_delay(broker):
    """[MQTT-3.1.2-8] [MQTT-3.1.3-9]"""
    watcher = watching(broker)
    leave(broker, 5, "s", False, session_s=60, will_properties=delay(10)).drop()
    broker.advance(9)
    assert watcher.hear() == ""
    broker.advance(2)
    assert watcher.hear() == WILL
    broker.advance(1000)
    assert watcher.hear() == ""


def test_the_end_of_the_session_does_not_wait_for_the_delay(broker):
    """[MQTT-3.1.2-8] [MQTT-3.1.3-9]: whichever is first."""
    watcher = watching(broker)
    leave(broker, 5, "s", False, session_s=20, will_properties=delay(100)).drop()
    broker.advance(19)
    assert watcher.hear() == ""
    broker.advance(2)
    assert watcher.hear() == WILL
    leave(broker, 5, "s", will_properties=delay(100)).drop()
    assert watcher.hear() == WILL


def test_a_goodbye_that_ends_the_session_with_will(broker):
    """[MQTT-3.1.2-8] [MQTT-3.1.3-9]: the interval of the DISCONNECT counts."""
    watcher = watching(broker)
    client = leave(broker, 5, "s", False, session_s=60, will_properties=delay(100))
    client.say("e0 07 04 05 11 00000000")
    assert watcher.hear() == WILL


def test_back_before_the_delay_is_over(broker):
    """[MQTT-3.1.3-9] [MQTT-3.1.2-8]: with the session, the will is not published; without it, its end publishes."""
    watcher = watching(broker)
    leave(broker, 5, "s", False, session_s=60, will_properties=delay(10)).drop()
    broker.advance(9)
    client = broker.stay(5)
    broker.advance(1000)
    assert watcher.hear() == ""
    client.drop()
    leave(broker, 5, "s", False, session_s=60, will_properties=delay(10)).drop()
    broker.connect(5, "s", True)
    assert watcher.hear() == WILL


def test_a_takeover_is_a_new_connection(broker):
    """[MQTT-3.1.3-9]: to the same session, so a will with a delay is not published."""
    watcher = watching(broker)
    leave(broker, 5, "s", False, session_s=60, will_properties=delay(10))
    broker.stay(5)
    broker.advance(1000)
    assert watcher.hear() == ""


def test_a_delay_goes_on_while_the_node_is_down(broker):
    """[MQTT-3.1.2-7] [MQTT-3.1.3-9]"""
    leave(broker, 5, "s", False, session_s=600, will_properties=delay(30)).drop()
    broker.restart(down_s=20)
    watcher = watching(broker)
    broker.advance(5)
    assert watcher.hear() == ""
    broker.advance(6)
    assert watcher.hear() == WILL


def test_its_properties(broker):
    """[MQTT-3.1.3-10] [MQTT-3.1.2-8]: user properties in their order, and the others as they were given."""
    watcher = broker.connect(5, "watcher")
    watcher.subscribe("w", 0)
    users = "".join("26" + text(name) + text(value) for name, value in (("b", "1"), ("a", "2"), ("b", "0"), ("a", "2")))
    properties = "0101" + "03" + text("type") + "08" + text("answer") + "09" + text(b"\0\xff") + users
    leave(broker, 5, will_properties=delay(0) + properties).drop()
    assert watcher.hear() == spaced(publish(5, "w", "gone", properties=properties))


def test_its_message_expiry(broker):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]: begins with its publication."""
    watcher = broker.stay(5, "watcher")
    watcher.subscribe("w", 1)
    leave(broker, 5, "c", False, session_s=60, will_qos=1, will_properties=delay(10) + "020000001e").drop()
    watcher.drop()
    broker.advance(10)
    broker.advance(5)
    heard = broker.stay(5, "watcher").hear()
    assert heard == spaced(publish(5, "w", "gone", 1, 1, properties="0200000019"))
