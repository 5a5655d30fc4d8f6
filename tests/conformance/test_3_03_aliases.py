"""3.3.2.3.4 Topic aliases, both ways, and 3.3.2.3.8 Subscription identifiers."""

import hex_packets
import pytest
from hex_packets import connack, publish, spaced, text

from broker.core.connection_limits import ConnectionLimits

LONG = "a/topic/of/some/length"


def alias(number):
    return f"23{number:04x}"


def accepts(number):
    """A client's Topic Alias Maximum."""
    return f"22{number:04x}"


@pytest.fixture
def aliases(start):
    """A broker that takes ten aliases from a client and sends ten."""
    return start(limits=ConnectionLimits(topic_alias_max_client=10, topic_alias_max_broker=10))


def watching(broker):
    client = broker.connect(4, "watcher")
    client.subscribe("#", 0)
    return client


# From the client.


def test_the_connack_says_how_many_there_may_be(aliases):
    """[MQTT-3.2.2-17]"""
    assert aliases.connect(5).connack == connack(5, more="22000a")


@pytest.mark.parametrize("number", range(1, 11))
def test_every_alias_up_to_the_maximum_is_accepted(aliases, number):
    """[MQTT-3.3.2-12]"""
    watcher = watching(aliases)
    client = aliases.connect(5)
    for topic, properties in ((LONG, alias(number)), ("", alias(number)), ("b", ""), ("", alias(number))):
        client.publish(topic, properties=properties)
        assert watcher.hear() == spaced(publish(4, topic or LONG))


def test_an_alias_can_be_set_anew(aliases):
    """[MQTT-3.3.2-12]"""
    watcher = watching(aliases)
    client = aliases.connect(5)
    for topic, properties in (("a", alias(1)), ("b", alias(2)), ("c", alias(1))):
        client.publish(topic, properties=properties)
    watcher.hear()
    client.publish("", "1", properties=alias(1))
    client.publish("", "2", properties=alias(2))
    assert watcher.hear() == spaced(publish(4, "c", "1") + publish(4, "b", "2"))


@pytest.mark.parametrize("number", [0, 11, 65535])
def test_other_aliases_close(aliases, number):
    """[MQTT-3.3.2-8] [MQTT-3.3.2-9] [MQTT-3.2.2-17]"""
    watcher = watching(aliases)
    assert aliases.connect(5).fails(publish(5, "a", properties=alias(number)), "94")
    assert watcher.hear() == ""


def test_an_alias_lasts_as_long_as_its_connection(aliases):
    """[MQTT-3.3.2-7]: another one of the same session, or another client, knows nothing of it."""
    client = aliases.stay(5)
    client.publish("a", properties=alias(1))
    other = aliases.connect(5, "o")
    assert other.fails(publish(5, "", properties=alias(1)), "82")
    client.drop()
    assert aliases.stay(5).fails(publish(5, "", properties=alias(1)), "82")


def test_an_alias_is_not_handed_on(aliases):
    """[MQTT-3.3.2-7]: it is the publisher's own."""
    client = aliases.connect(5, "s")
    client.subscribe("a", 0)
    publisher = aliases.connect(5)
    publisher.publish("a", properties=alias(5))
    assert client.hear() == spaced(publish(5, "a"))
    publisher.publish("", properties=alias(5))
    assert client.hear() == spaced(publish(5, "a"))


# To the client.


def test_topics_are_sent_as_aliases(aliases):
    """[MQTT-3.1.2-26] [MQTT-3.3.2-11]: as many as the client accepts, and no more."""
    client = aliases.connect(5, properties=accepts(2))
    client.subscribe("#", 0)
    publisher = aliases.connect(4, "p")
    topics = [LONG + str(number) for number in range(4)]
    for topic, number in zip(topics, (1, 2, 0, 0), strict=True):
        publisher.publish(topic)
        assert client.hear() == spaced(publish(5, topic, properties=alias(number) if number else ""))
    for topic, number in zip(topics, (1, 2, 0, 0), strict=True):
        publisher.publish(topic)
        wanted = publish(5, "", properties=alias(number)) if number else publish(5, topic)
        assert client.hear() == spaced(wanted)


def test_never_more_than_this_side_wants(aliases):
    """[MQTT-3.3.2-11]"""
    client = aliases.connect(5, properties=accepts(65535))
    client.subscribe("#", 0)
    publisher = aliases.connect(4, "p")
    for number in range(1, 20):
        publisher.publish(f"{LONG}{number}")
        assert (spaced(alias(number)) in client.hear()) == (number <= 10)


@pytest.mark.parametrize("properties", ["", "220000"], ids=["absent", "0"])
def test_who_accepts_none_is_sent_none(aliases, properties):
    """[MQTT-3.1.2-27] [MQTT-3.3.2-11]"""
    client = aliases.connect(5, "s", properties=properties)
    client.subscribe(LONG, 0)
    publisher = aliases.connect(4, "p")
    for _ in range(3):
        publisher.publish(LONG)
        assert client.hear() == spaced(publish(5, LONG))


def test_the_servers_aliases_last_as_long_as_their_connection(aliases):
    """[MQTT-3.3.2-7]: what is sent again has its topic again."""
    client = aliases.stay(5, properties=accepts(5))
    client.subscribe(LONG, 1)
    publisher = aliases.connect(4, "p")
    for payload in ("1", "2"):
        publisher.publish(LONG, payload, 1)
    first = publish(5, LONG, "1", 1, 1, properties=alias(1)) + publish(5, "", "2", 1, 2, properties=alias(1))
    assert client.hear() == spaced(first)
    client.drop()
    again = aliases.stay(5, properties=accepts(5)).hear()
    assert again == spaced(
        publish(5, LONG, "1", 1, 1, dup=True, properties=alias(1))
        + publish(5, "", "2", 1, 2, dup=True, properties=alias(1))
    )


@pytest.mark.parametrize("topic", ["a", "ab", "abc", "abcd", "abcde", LONG])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("property_bytes", [0, 124, 125, 127])
def test_an_alias_makes_no_packet_too_large(aliases, topic, qos, property_bytes):
    """[MQTT-3.1.2-24]: the first time it comes with its topic, and then it may be longer than that."""
    properties = "03" + text("t" * (property_bytes - 3)) if property_bytes else ""
    size = hex_packets.size(publish(5, topic, "x" * 12, qos, properties=properties))
    client = aliases.connect(5, "s", properties=accepts(5) + f"27{size:08x}")
    client.subscribe(topic, 1)
    publisher = aliases.connect(5, "p")
    for payload in ("", "x" * 12, "x" * 12):
        publisher.publish(topic, payload, qos, properties=properties)
        heard = client.hear()
        assert heard
        assert len(bytes.fromhex(heard)) <= size


# Subscription identifiers.


def identified(broker, *subscriptions, name="s", **options):
    """A client with subscriptions, each a filter, its identifier and options."""
    client = broker.connect(5, name, **options)
    for topic_filter, identifier, flags in subscriptions:
        properties = "0b" + hex_packets.varint(identifier) if identifier else ""
        client.say(hex_packets.subscribe(5, 1, (topic_filter, flags), properties=properties))
    return client


@pytest.mark.parametrize("identifier", [1, 127, 128, 16384, 268_435_455])
def test_a_subscription_identifier(broker, identifier):
    """[MQTT-3.3.4-3]: any that there can be, to the client that set it and to no other."""
    client = identified(broker, ("a", identifier, 2))
    other = identified(broker, ("a", 0, 0), name="o")
    publisher = broker.connect(4, "p")
    for qos in (0, 1, 2):
        publisher.publish("a", "x", qos, packet_id=9)
        properties = "0b" + hex_packets.varint(identifier)
        assert client.hear() == spaced(publish(5, "a", "x", qos, qos, properties=properties))
        assert other.hear() == spaced(publish(5, "a"))


def test_the_identifiers_of_overlapping_subscriptions(broker):
    """[MQTT-3.3.4-3] [MQTT-3.3.4-4] [MQTT-3.3.4-2]: all of them in a single copy, two alike twice."""
    client = identified(broker, ("a/b", 1, 0), ("a/+", 2, 1), ("#", 0, 0), ("+/b", 2, 0), ("c", 3, 0))
    broker.connect(4, "p").publish("a/b", "x", 1)
    heard = bytes.fromhex(client.hear())
    assert heard[:10] == bytes.fromhex("320f0003612f62000106")
    assert sorted(heard[at : at + 2].hex() for at in (10, 12, 14)) == ["0b01", "0b02", "0b02"]
    assert heard[16:] == b"x"


def test_an_identifier_goes_with_what_waited_and_what_is_sent_again(broker):
    """[MQTT-3.3.4-3]"""
    client = broker.stay(5)
    client.say(hex_packets.subscribe(5, 1, ("a", 1), properties="0b07"))
    publisher = broker.connect(4, "p")
    publisher.publish("a", "1", 1)
    client.drop()
    publisher.publish("a", "2", 1)
    wanted = publish(5, "a", "1", 1, 1, dup=True, properties="0b07") + publish(5, "a", "2", 1, 2, properties="0b07")
    assert broker.stay(5).hear() == spaced(wanted)


def test_an_identifier_goes_with_retained_messages_and_shared_subscriptions(broker):
    """[MQTT-3.3.4-3]"""
    broker.connect(4, "p").publish("r", "x", retain=True)
    client = broker.connect(5, "s")
    heard = client.say(hex_packets.subscribe(5, 1, ("r", 0), properties="0b07"))
    assert heard == spaced(hex_packets.suback(5, 1, "00") + publish(5, "r", retain=True, properties="0b07"))
    client.say(hex_packets.subscribe(5, 1, ("$share/g/a", 0), properties="0b08"))
    broker.connect(4, "p").publish("a")
    assert client.hear() == spaced(publish(5, "a", properties="0b08"))


def test_an_identifier_is_replaced_with_its_subscription(broker):
    """[MQTT-3.8.4-3] [MQTT-3.3.4-3]"""
    client = broker.connect(5, "s")
    publisher = broker.connect(4, "p")
    for properties in ("0b07", "0b08", ""):
        client.say(hex_packets.subscribe(5, 1, ("a", 0), properties=properties))
        publisher.publish("a")
        assert client.hear() == spaced(publish(5, "a", properties=properties))


def test_it_is_held_to_the_maximum_packet_size(broker):
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]: identifiers and all."""
    client = identified(broker, ("a", 268_435_455, 0), properties="2700000014")
    publisher = broker.connect(4, "p")
    publisher.publish("a", "x" * 10)
    assert client.hear() == ""
    publisher.publish("a", "x" * 9)
    assert client.hear() == spaced(publish(5, "a", "x" * 9, properties="0bffffff7f"))


def test_bad_identifiers_close(broker):
    """3.8.2.1.2: a protocol error for 0, and for more than one."""
    for properties in ("0b00", "0b010b02"):
        assert broker.connect(5).fails(hex_packets.subscribe(5, 1, ("a", 0), properties=properties), "82")
