"""2.2.2 Properties: each of them in each packet that a client may send, twice, cut short, and with what it may not say.

The table is figure 2-4 of the specification, and nothing of ours.
"""

import hex_packets
import pytest
from hex_packets import packet, publish, size, spaced, text, varint

from broker.core.connection_limits import ConnectionLimits

CONNECT, WILL, PUBLISH, ACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH = range(8)

# Identifier -> (a value, where a client may say it); those with nothing are a server's.
PROPERTIES = {
    "01": ("01", {PUBLISH, WILL}),
    "02": ("0000000a", {PUBLISH, WILL}),
    "03": (text("type"), {PUBLISH, WILL}),
    "08": (text("r/t"), {PUBLISH, WILL}),
    "09": (text("data"), {PUBLISH, WILL}),
    "0b": ("05", {SUBSCRIBE}),
    "11": ("00000000", {CONNECT, DISCONNECT}),
    "12": (text("id"), set()),
    "13": ("000a", set()),
    "15": (text("method"), {CONNECT, AUTH}),
    "16": (text("data"), {CONNECT, AUTH}),
    "17": ("01", {CONNECT}),
    "18": ("00000001", {WILL}),
    "19": ("00", {CONNECT}),
    "1a": (text("info"), set()),
    # Of a server's DISCONNECT; a client's ends the connection with it as well as without.
    "1c": (text("server"), {DISCONNECT}),
    "1f": (text("reason"), {ACK, DISCONNECT, AUTH}),
    "21": ("000a", {CONNECT}),
    "22": ("000a", {CONNECT}),
    "23": ("0001", {PUBLISH}),
    "24": ("01", set()),
    "25": ("01", set()),
    "26": (text("n") + text("v"), {CONNECT, WILL, PUBLISH, ACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH}),
    "27": ("00001000", {CONNECT}),
    "28": ("01", set()),
    "29": ("01", set()),
    "2a": ("01", set()),
}
USER_PROPERTY = "26"


def with_length(properties):
    return varint(size(properties)) + properties


# What a connected client says with properties: name -> (place, a packet with them).
SAID = {
    "PUBLISH": (PUBLISH, lambda properties: publish(5, "a", properties=properties)),
    "PUBLISH QoS 1": (PUBLISH, lambda properties: publish(5, "a", "x", 1, properties=properties)),
    "PUBACK": (ACK, lambda properties: packet("40", "0001 00", with_length(properties))),
    "PUBREC": (ACK, lambda properties: packet("50", "0001 00", with_length(properties))),
    "PUBREL": (ACK, lambda properties: packet("62", "0001 00", with_length(properties))),
    "PUBCOMP": (ACK, lambda properties: packet("70", "0001 00", with_length(properties))),
    "SUBSCRIBE": (SUBSCRIBE, lambda properties: hex_packets.subscribe(5, 1, ("a", 0), properties=properties)),
    "UNSUBSCRIBE": (UNSUBSCRIBE, lambda properties: hex_packets.unsubscribe(5, 1, "a", properties=properties)),
    "DISCONNECT": (DISCONNECT, lambda properties: packet("e0", "00", with_length(properties))),
}


def will(properties):
    return hex_packets.connect(5, will=("w", "x"), will_properties=properties)


def connect(properties):
    """A CONNECT; data of an authentication goes with a method."""
    if properties.startswith("16"):
        properties = "15" + text("method") + properties
    return hex_packets.connect(5, properties=properties)


@pytest.fixture
def aliases(start):
    """A broker that takes a topic alias."""
    return start(limits=ConnectionLimits(topic_alias_max_client=10))


@pytest.mark.parametrize("name", SAID)
def test_each_property_in_each_packet(aliases, name):
    """[MQTT-2.2.2-1] [MQTT-4.13.1-1]: served where it belongs, and everywhere else a malformed packet (2.2.2.2).

    A Subscription Identifier belongs into a PUBLISH, but not of a client [MQTT-3.3.4-6].
    """
    place, say = SAID[name]
    for identifier, (value, places) in PROPERTIES.items():
        client = aliases.connect(5)
        said = say(identifier + value)
        if place in places:
            assert "e0" not in client.say(said).split()[:1], identifier
            assert client.closed == (place == DISCONNECT), identifier
        else:
            of_servers = identifier == "0b" and place == PUBLISH
            assert client.fails(said, "82" if of_servers else "81"), identifier


@pytest.mark.parametrize("name", SAID)
def test_each_property_twice(aliases, name):
    """[MQTT-4.13.1-1]: a protocol error, but for User Properties [MQTT-3.3.2-18]."""
    place, say = SAID[name]
    for identifier, (value, places) in PROPERTIES.items():
        if place not in places:
            continue
        client = aliases.connect(5)
        said = say((identifier + value) * 2)
        if identifier == USER_PROPERTY:
            assert "e0" not in client.say(said).split()[:1]
            assert client.closed == (place == DISCONNECT)
        else:
            assert client.fails(said, "82"), identifier


@pytest.mark.parametrize("name", SAID)
def test_each_property_cut_short(aliases, name):
    """[MQTT-4.13.1-1]: the length of the properties ends inside of one, at every byte."""
    place, say = SAID[name]
    for identifier, (value, places) in PROPERTIES.items():
        if place in places:
            for length in range(size(value)):
                said = say(identifier + value[: 2 * length])
                assert aliases.connect(5).fails(said, "81"), (identifier, length)


@pytest.mark.parametrize("name", SAID)
def test_no_other_identifiers(aliases, name):
    """[MQTT-4.13.1-1]: those that the specification has no property for, and those in two bytes."""
    _, say = SAID[name]
    for identifier in {f"{number:02x}" for number in range(128)} - set(PROPERTIES) | {"8001", "a600", "ff7f"}:
        assert aliases.connect(5).fails(say(identifier + "01"), "81"), identifier


@pytest.mark.parametrize(("place", "say"), [(CONNECT, connect), (WILL, will)], ids=["CONNECT", "will"])
def test_properties_of_a_connect(broker, place, say):
    """[MQTT-3.1.4-1] [MQTT-4.13.1-1]: as in all other packets, but said in a CONNACK."""
    for identifier, (value, places) in PROPERTIES.items():
        said = identifier + value
        if place not in places:
            assert broker.refuses(5, say(said), "81"), identifier
            continue
        client = broker.open(5)
        heard = client.say(say(said)).split()
        # There is no method that is served.
        assert heard[2:4] == ["00", "8c" if identifier in ("15", "16") else "00"], identifier
        if identifier == USER_PROPERTY:
            assert broker.open(5).say(say(said * 2)).split()[3] == "00"
        elif identifier == "16":
            assert broker.refuses(5, hex_packets.connect(5, properties="15" + text("method") + said * 2), "82")
        else:
            assert broker.refuses(5, say(said * 2), "82"), identifier
        for length in range(size(value)):
            assert broker.refuses(5, say(identifier + value[: 2 * length]), "81"), (identifier, length)
    for identifier in {f"{number:02x}" for number in range(128)} - set(PROPERTIES) | {"8001", "a600", "ff7f"}:
        assert broker.refuses(5, say(identifier + "01"), "81"), identifier


@pytest.mark.parametrize("value", ["02", "03", "7f", "80", "ff"])
def test_flags_are_0_or_1(broker, value):
    """[MQTT-4.13.1-1] [MQTT-3.1.4-1]: Payload Format Indicator, Request Problem and Request Response Information."""
    assert broker.connect(5).fails(publish(5, "a", properties="01" + value), "82")
    assert broker.refuses(5, will("01" + value), "82")
    assert broker.refuses(5, connect("17" + value), "82")
    assert broker.refuses(5, connect("19" + value), "82")


def test_numbers_that_are_not_0(broker):
    """[MQTT-4.13.1-1] [MQTT-3.1.4-1] [MQTT-3.3.2-8]: two maxima, an identifier, and an alias, which has its reason."""
    assert broker.refuses(5, connect("210000"), "82")
    assert broker.refuses(5, connect("2700000000"), "82")
    assert broker.connect(5).fails(hex_packets.subscribe(5, 1, ("a", 0), properties="0b00"), "82")
    assert broker.connect(5).fails(publish(5, "a", properties="230000"), "94")


@pytest.mark.parametrize("bad", ["ff", "c080", "eda080", "e282", "f4908080", "00", "610062"])
@pytest.mark.parametrize("name", SAID)
def test_strings_are_strings(aliases, name, bad):
    """[MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.7-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19]: in every packet."""
    place, say = SAID[name]
    wrong = text(bytes.fromhex(bad))
    for identifier in ("03", "08", "1c", "1f"):
        if place in PROPERTIES[identifier][1]:
            assert aliases.connect(5).fails(say(identifier + wrong), "81"), identifier
    assert aliases.connect(5).fails(say("26" + wrong + text("v")), "81")
    assert aliases.connect(5).fails(say("26" + text("n") + wrong), "81")


@pytest.mark.parametrize("bad", ["ff", "eda080", "00"])
def test_strings_of_a_connect_are_strings(broker, bad):
    """[MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.7-1]"""
    wrong = text(bytes.fromhex(bad))
    for said in (
        connect("15" + wrong),
        connect("26" + wrong + text("v")),
        connect("26" + text("n") + wrong),
        will("03" + wrong),
        will("08" + wrong),
        will("26" + wrong + text("v")),
    ):
        assert broker.refuses(5, said, "81"), said


@pytest.mark.parametrize("topic", ["a/#", "+", "a+b", ""])
def test_a_response_topic_of_a_will_is_a_topic_name(broker, topic):
    """[MQTT-3.3.2-14]: an error of the protocol; Topic Name invalid would speak of the will's own."""
    assert broker.refuses(5, will("08" + text(topic)), "82")


def test_properties_may_come_in_any_order(broker):
    """2.2.2.2: "There is no significance in the order of Properties with different Identifiers"."""
    user = "26" + text("n")
    client = broker.connect(5, properties="22000a" + user + text("v") + "1701" + "1900" + "21000a")
    client.subscribe("a", 0)
    said = "0101" + "03" + text("t") + user + text("v") + "08" + text("r") + user + text("w") + "09" + text("d")
    # They go on in another order, but those of the user [MQTT-3.3.2-18].
    heard = "0101" + "03" + text("t") + "08" + text("r") + "09" + text("d") + user + text("v") + user + text("w")
    assert client.publish("a", properties=said) == spaced(publish(5, "a", properties=heard))
