"""3.8 SUBSCRIBE and 3.9 SUBACK."""

import hex_packets
import pytest
from hex_packets import spaced, suback, subscribe


def test_it_is_answered(broker, version):
    """[MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT311-3.8.4-1] [MQTT311-3.8.4-2]"""
    client = broker.connect(version)
    for packet_id in (1, 0x1234, 0xFFFF):
        heard = client.say(subscribe(version, packet_id, ("a", 0)))
        assert heard == spaced(suback(version, packet_id, "00"))


def test_one_reason_for_each_filter(broker, version):
    """[MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.9.3-2] [MQTT311-3.8.4-5] [MQTT311-3.9.3-1]

    [MQTT311-3.9.3-2]: the QoS that was granted, in the order of the filters.
    """
    client = broker.connect(version)
    heard = client.say(subscribe(version, 0x1234, ("a", 0), ("b", 1), ("c", 0), ("a", 1)))
    assert heard == spaced(suback(version, 0x1234, "00 01 00 01"))


def test_qos_2_is_granted(broker, version):
    """[MQTT-3.8.4-7] [MQTT-3.9.3-2] [MQTT311-3.8.4-5] [MQTT311-3.9.3-2]"""
    assert broker.connect(version).say(subscribe(version, 1, ("a", 2))) == spaced(suback(version, 1, "02"))


def test_many_filters_are_as_many_requests(broker, version):
    """[MQTT-3.8.4-5] [MQTT311-3.8.4-4]: the last of two alike counts."""
    client = broker.connect(version)
    client.say(subscribe(version, 1, ("a", 1), ("b/+", 0), ("a", 0)))
    publisher = broker.connect(4, "p")
    for topic in ("a", "b/c"):
        publisher.publish(topic, qos=1)
        assert client.hear() == spaced(hex_packets.publish(version, topic))


def test_an_identical_filter_replaces(broker, version):
    """[MQTT-3.8.4-3]: its options are the new ones, its messages come once."""
    client = broker.connect(version)
    client.subscribe("a", 1)
    client.subscribe("a", 0)
    publisher = broker.connect(4, "p")
    publisher.publish("a", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a"))
    client.subscribe("a", 1)
    publisher.publish("a", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "x", 1, 1))
    client.say(hex_packets.unsubscribe(version, 2, "a"))
    publisher.publish("a", qos=1)
    assert client.hear() == ""


def test_a_replaced_subscription_is_another_sessions_no_business(broker, version):
    """[MQTT-3.8.4-3]"""
    client = broker.connect(version)
    other = broker.connect(version, "o")
    for subscriber in (client, other):
        subscriber.subscribe("a", 1)
    client.subscribe("a", 0)
    broker.connect(4, "p").publish("a", qos=1)
    assert other.hear() == spaced(hex_packets.publish(version, "a", "x", 1, 1))


@pytest.mark.parametrize("granted", [0, 1])
@pytest.mark.parametrize("published", [0, 1])
def test_the_qos_of_a_delivery_is_the_lower_one(broker, version, published, granted):
    """[MQTT-3.8.4-8] [MQTT311-3.8.4-6]"""
    client = broker.connect(version)
    client.subscribe("a", granted)
    broker.connect(4, "p").publish("a", qos=published)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "x", min(published, granted), 1))


def test_properties_that_are_not_for_the_server_are_taken(broker):
    """3.8.2.1.3: User Properties have no meaning here."""
    heard = broker.connect(5).say(subscribe(5, 1, ("a", 0), properties="26000161000162"))
    assert heard == "90 04 00 01 00 00"


@pytest.mark.parametrize("bytes_max", [13, 20])
def test_a_suback_is_without_properties(broker, bytes_max):
    """[MQTT-3.9.2-1] [MQTT-3.9.2-2]: so none makes it larger than the client takes."""
    client = broker.connect(5, properties=f"27{bytes_max:08x}")
    assert client.say(subscribe(5, 1, ("a", 1), ("b", 0))) == "90 05 00 01 00 01 00"


@pytest.mark.parametrize("first_byte", ["80", "81", "83", "84", "86", "8a"])
def test_wrong_flags_close(broker, version, first_byte):
    """[MQTT-3.8.1-1] [MQTT311-3.8.1-1]"""
    assert broker.connect(version).fails(first_byte + subscribe(version, 1, ("a", 0))[2:], "81")


def test_without_a_filter_it_closes(broker, version):
    """[MQTT-3.8.3-2] [MQTT311-3.8.3-3]"""
    assert broker.connect(version).fails(subscribe(version, 1), "82")


def test_a_filter_without_options_closes(broker, version):
    """[MQTT-3.8.3-2] [MQTT311-3.8.3-3]"""
    assert broker.connect(version).fails({4: "82 05 0001 0001 61", 5: "82 06 0001 00 0001 61"}[version], "81")


@pytest.mark.parametrize("options", [0x40, 0x80, 0xC1])
def test_reserved_options_close(broker, version, options):
    """[MQTT-3.8.3-5] [MQTT311-3-8.3-4]"""
    assert broker.connect(version).fails(subscribe(version, 1, ("a", options)), "81")


@pytest.mark.parametrize("options", [0x04, 0x08, 0x10, 0x20])
def test_3_1_1_has_no_options_but_the_qos(broker, options):
    """[MQTT311-3-8.3-4]"""
    assert broker.connect(4).fails(subscribe(4, 1, ("a", options)), "81")


def test_qos_3_closes(broker, version):
    """[MQTT311-3-8.3-4], and 3.8.3.1 of 5.0: a protocol error."""
    assert broker.connect(version).fails(subscribe(version, 1, ("a", 3)), "82")


def test_each_options_byte(broker, version):
    """[MQTT-3.8.3-5] [MQTT311-3-8.3-4] [MQTT-3.8.4-7] [MQTT311-3.8.4-5]: of 256, 36 are good in 5.0, and 3 in 3.1.1."""
    granted = 0
    for options in range(256):
        client = broker.connect(version)
        said = subscribe(version, 1, ("a", options))
        if options & {4: 0xFC, 5: 0xC0}[version]:
            assert client.fails(said, "81"), options
        elif options & 0x03 == 0x03 or options & 0x30 == 0x30:
            assert client.fails(said, "82"), options
        else:
            assert client.say(said) == spaced(suback(version, 1, f"{options & 3:02x}")), options
            granted += 1
    assert granted == {4: 3, 5: 36}[version]


def test_retain_handling_3_closes(broker):
    """3.8.3.1: a protocol error."""
    assert broker.connect(5).fails(subscribe(5, 1, ("a", 0x31)), "82")


def test_nothing_of_a_bad_subscribe_is_done(broker, version):
    """[MQTT-3.8.3-5] [MQTT311-3-8.3-4]: not even its good filters."""
    client = broker.stay(version)
    assert client.fails(subscribe(version, 1, ("a", 1), ("b", 0xC0)), "81")
    client.drop()
    broker.connect(4, "p").publish("a", qos=1)
    assert broker.stay(version).hear() == ""


@pytest.mark.parametrize("topic_filter", ["a#", "#/a", "a/#/b", "##", "a+", "+a", "a/b+/c", "++", ""])
def test_bad_filters_close(broker, version, topic_filter):
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-1] [MQTT311-4.7.1-2] [MQTT311-4.7.1-3] [MQTT311-4.7.3-1]

    5.0's Topic Filter invalid is for those that are correctly formed.
    """
    assert broker.connect(version).fails(subscribe(version, 1, (topic_filter, 0)), "82")
    assert broker.connect(version).fails(hex_packets.unsubscribe(version, 1, topic_filter), "82")


@pytest.mark.parametrize("topic_filter", ["$share/", "$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g#/a"])
def test_bad_shared_filters_close(broker, topic_filter):
    """[MQTT-4.8.2-1] [MQTT-4.8.2-2]"""
    assert broker.connect(5).fails(subscribe(5, 1, (topic_filter, 0)), "82")


def test_no_local(broker):
    """[MQTT-3.8.3-3]: what the same client id publishes is left out, from whichever connection."""
    client = broker.stay(5)
    client.subscribe("a", 0x05)
    assert client.publish("a", qos=1).startswith("40")
    assert client.hear() == ""
    broker.connect(4, "p").publish("a")
    assert client.hear() == spaced(hex_packets.publish(5, "a"))
    client.drop()
    client = broker.stay(5)
    client.publish("a", qos=1)
    assert client.hear() == ""


def test_without_no_local_a_client_hears_itself(broker, version):
    """[MQTT-3.8.3-3]: the option is off unless it is on."""
    client = broker.connect(version)
    client.subscribe("a", 0)
    assert client.publish("a") == spaced(hex_packets.publish(version, "a"))


@pytest.mark.parametrize("options", [0x04, 0x05, 0x06, 0x0C, 0x24])
def test_no_local_on_a_shared_subscription_closes(broker, options):
    """[MQTT-3.8.3-4]"""
    assert broker.connect(5).fails(subscribe(5, 1, ("$share/g/a", options)), "82")
    assert broker.connect(5).fails(subscribe(5, 1, ("a", options), ("$share/g/a", options)), "82")


def test_overlapping_subscriptions(broker, version):
    """[MQTT-3.3.4-2] [MQTT311-3.3.5-1]: one copy at the highest QoS"""
    client = broker.connect(version)
    client.say(subscribe(version, 1, ("a", 1), ("#", 0), ("+", 0)))
    broker.connect(4, "p").publish("a", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "x", 1, 1))
