"""3.3 PUBLISH and 3.4 PUBACK."""

import pytest
from hex_packets import publish, spaced, text


def subscribed(broker, version, qos=1, name="s"):
    """A client that wants the topic a."""
    client = broker.connect(version, name)
    if version == 4:
        assert client.say(f"82 06 0001 0001 61 {qos:02x}") == spaced(f"90 03 0001 {qos:02x}")
    else:
        assert client.say(f"82 07 0001 00 0001 61 {qos:02x}") == spaced(f"90 04 0001 00 {qos:02x}")
    return client


def test_qos_0(broker, version):
    """[MQTT-3.3.1-2] [MQTT-3.3.4-1] [MQTT311-3.3.1-2] [MQTT311-3.3.4-1]: delivered once, without an answer."""
    subscriber = subscribed(broker, version)
    publisher = broker.connect(4, "p")
    assert publisher.say("30 04 0001 61 62") == ""
    assert subscriber.hear() == spaced({4: "30 04 0001 61 62", 5: "30 05 0001 61 00 62"}[version])


def test_qos_1(broker, version):
    """[MQTT-4.3.2-1] [MQTT-4.3.2-4] [MQTT-3.3.4-1] [MQTT311-4.3.2-1] [MQTT311-4.3.2-2] [MQTT311-3.3.4-1]"""
    subscriber = subscribed(broker, version)
    publisher = broker.connect(version, "p")
    assert publisher.say({4: "32 06 0001 61 1234 62", 5: "32 07 0001 61 1234 00 62"}[version]) == "40 02 12 34"
    assert subscriber.hear() == spaced({4: "32 06 0001 61 0001 62", 5: "32 07 0001 61 0001 00 62"}[version])
    assert subscriber.say("40 02 0001") == ""
    assert not subscriber.closed


def test_nobody_wants_it(broker):
    """[MQTT-3.4.2-1]: No matching subscribers, which 3.1.1 can't say."""
    assert broker.connect(5, "p").say("32 07 0001 61 1234 00 62") == "40 03 12 34 10"
    assert broker.connect(4, "q").say("32 06 0001 61 1234 62") == "40 02 12 34"


def test_the_dup_flag_is_the_publishers_own(broker):
    """[MQTT-3.3.1-3] [MQTT311-3.3.1-3]: the outgoing flag says nothing of the incoming one."""
    subscriber = subscribed(broker, 4)
    broker.connect(4, "p").say("3a 06 0001 61 1234 62")
    assert subscriber.hear() == "32 06 00 01 61 00 01 62"


def test_an_empty_payload(broker, version):
    subscriber = subscribed(broker, version, 0)
    broker.connect(4, "p").say("30 03 0001 61")
    assert subscriber.hear() == spaced({4: "30 03 0001 61", 5: "30 04 0001 61 00"}[version])


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ("36 07 0001 61 0001 00 62", "81"),
        ("38 05 0001 61 00 62", "81"),
        ("32 07 0001 61 0000 00 62", "82"),
        ("30 05 0001 23 00 62", "82"),
        ("30 05 0001 2b 00 62", "82"),
        ("30 05 0001 00 00 62", "81"),
        ("30 04 0000 00 62", "82"),
        ("30 05 0001 ff 00 62", "81"),
        ("30 07 0001 61 02 0b01 62", "82"),
    ],
    ids=["QoS 3", "DUP with QoS 0", "packet id 0", "#", "+", "NUL", "no topic", "not UTF-8", "subscription id"],
)
def test_bad_ones_close(broker, packet, reason):
    """[MQTT-3.3.1-4] [MQTT-3.3.1-2] [MQTT-2.2.1-3] [MQTT-3.3.2-2] [MQTT-4.7.3-2] [MQTT-4.7.3-1] [MQTT-3.3.4-6]"""
    client = broker.connect(5)
    heard = client.say(packet).split()
    assert client.closed
    assert (heard[0], heard[2]) == ("e0", reason)


def test_a_wildcard_in_the_topic_closes_3_1_1_without_a_word(broker):
    """[MQTT311-3.3.2-2]"""
    client = broker.connect(4)
    assert client.say("30 04 0001 23 62") == ""
    assert client.closed


@pytest.mark.parametrize("first_byte", ["36", "37", "3e", "3f"])
def test_qos_3_closes(broker, version, first_byte):
    """[MQTT-3.3.1-4] [MQTT311-3.3.1-4]"""
    assert broker.connect(version).fails(first_byte + publish(version, "a", qos=1)[2:], "81")


def test_the_topic_name_is_the_first_field(broker, version):
    """[MQTT-3.3.2-1] [MQTT311-3.3.2-1]: a PUBLISH without one is cut short."""
    for packet in ("30 00", "30 01 00", "30 03 0002 61", "32 02 0001"):
        assert broker.connect(version).fails(packet, "81")


@pytest.mark.parametrize("topic", ["a/#", "+", "a/+/b", ""])
def test_a_response_topic_is_a_topic_name(broker, topic):
    """[MQTT-3.3.2-14]"""
    assert broker.connect(5).fails(publish(5, "a", properties="08" + text(topic)), "82")


def test_topic_alias_0_closes(broker):
    """[MQTT-3.3.2-8]"""
    assert broker.connect(5).fails(publish(5, "a", properties="230000"), "94")


@pytest.mark.parametrize("reason", ["01", "11", "18", "81", "92", "ff"])
def test_unknown_reasons_of_a_puback_close(broker, reason):
    """[MQTT-3.4.2-1]"""
    assert broker.connect(5).fails("40 03 0001" + reason, "82")


@pytest.mark.parametrize("bytes_max", [13, 20])
def test_a_puback_is_without_properties(broker, bytes_max):
    """[MQTT-3.4.2-2] [MQTT-3.4.2-3]: so none makes it larger than the client takes."""
    client = broker.connect(5, properties=f"27{bytes_max:08x}")
    assert client.publish("$x", qos=1) == "40 03 00 01 87"
    assert client.publish("a", qos=1) == "40 03 00 01 10"


@pytest.mark.parametrize("properties", ["230001", "23ffff"])
def test_without_a_topic_alias_maximum_none_is_taken(broker, properties):
    """[MQTT-3.2.2-17] [MQTT-3.2.2-18] [MQTT-3.3.2-9]: as announced."""
    subscriber = subscribed(broker, 4)
    assert broker.connect(5).fails(publish(5, "a", properties=properties), "94")
    assert subscriber.hear() == ""


def test_properties_go_on_unaltered(broker):
    """[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]"""
    subscriber = subscribed(broker, 5, 0)
    properties = "01 01 03 0001 74 08 0001 72 09 0002 00ff 26 0001 6b 0001 76 26 0001 6b 0001 77"
    size = len(bytes.fromhex(properties))
    packet = f"30 {size + 5:02x} 0001 61 {size:02x} {properties} 62"
    broker.connect(5, "p").say(packet)
    assert subscriber.hear() == spaced(packet)


def test_what_is_left_of_the_message_expiry(broker):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]"""
    connect = "10 13 0004 4d515454 05 00 0000 05 11 0000003c 0001 73"
    subscriber = broker.open(5)
    subscriber.say(connect)
    subscriber.say("82 07 0001 00 0001 61 01")
    subscriber.drop()
    publisher = broker.connect(5, "p")
    publisher.say("32 0c 0001 61 0001 05 02 0000000a 62")
    publisher.say("32 0c 0001 61 0002 05 02 0000001e 63")
    broker.advance(10)
    subscriber = broker.open(5)
    heard = subscriber.say(connect)
    assert heard.endswith(spaced("0100 00 32 0c 0001 61 0001 05 02 00000014 63"))
