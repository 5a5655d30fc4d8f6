"""1.5 Data representation."""

import hex_packets
import pytest
from hex_packets import connack, spaced, text

# Not UTF-8: a stray byte, an overlong form, a surrogate, a character cut short, a byte over U+10FFFF.
ILL_FORMED = ["ff", "c080", "eda080", "e282", "f4908080"]


def carriers(bad: str, version: int) -> dict[str, str]:
    """Packets of a connected client with the bytes `bad` in each kind of string."""
    name = text(bytes.fromhex(bad))
    packets = {
        "topic name": hex_packets.publish(version, bytes.fromhex(bad)),
        "topic filter": hex_packets.subscribe(version, 1, (bytes.fromhex(bad), 0)),
        "unsubscribed filter": hex_packets.unsubscribe(version, 1, bytes.fromhex(bad)),
    }
    if version == 5:
        for title, properties in {
            "content type": "03" + name,
            "response topic": "08" + name,
            "user property name": "26" + name + text("v"),
            "user property value": "26" + text("n") + name,
        }.items():
            packets[title] = hex_packets.publish(version, "a", properties=properties)
    return packets


@pytest.mark.parametrize("bad", ILL_FORMED)
def test_what_is_not_utf_8_closes(broker, version, bad):
    """[MQTT-1.5.4-1] [MQTT-1.5.7-1] [MQTT-3.3.2-1] [MQTT-3.3.2-13] [MQTT-3.3.2-19] [MQTT-3.8.3-1] [MQTT-3.10.3-1]

    [MQTT311-1.5.3-1] [MQTT311-3.3.2-1] [MQTT311-3.8.3-1] [MQTT311-3.10.3-1]
    """
    for title, packet in carriers(bad, version).items():
        assert broker.connect(version).fails(packet, "81"), title


def test_a_null_character_closes(broker, version):
    """[MQTT-1.5.4-2] [MQTT311-1.5.3-2] [MQTT-4.7.3-2] [MQTT311-4.7.3-2]: a malformed packet, wherever it is.

    5.0's reasons for topics speak of those that are correctly formed.
    """
    for title, packet in carriers("610062", version).items():
        assert broker.connect(version).fails(packet, "81"), title


# U+0001, U+001F, U+007F, U+0080, U+009F, U+FDD0, U+FFFF, U+10FFFF.
@pytest.mark.parametrize("code_point", ["01", "1f", "7f", "c280", "c29f", "efb790", "efbfbf", "f48fbfbf"])
def test_a_disallowed_code_point_in_a_topic_closes(broker, version, code_point):
    """5.0 section 1.5.4 and 3.1.1 section 1.5.3 allow it, and 5.0 section 5.4.9 says why: it could cut off subscribers.

    What is not a topic goes through.
    """
    for title, packet in carriers("61" + code_point, version).items():
        client = broker.connect(version)
        if title.startswith(("topic", "unsubscribed")):
            assert client.fails(packet, "81"), title
        else:
            assert client.say(packet) == "", title
            assert client.say("c0 00") == "d0 00", title


@pytest.mark.parametrize("code_point", ["01", "c29f", "efbfbf"])
def test_a_disallowed_code_point_in_the_topic_of_a_will_closes(broker, version, code_point):
    """As in every other topic."""
    will = hex_packets.connect(version, will=("ww", "x"))
    bad = f"{len(code_point) // 2 + 1:04x}61{code_point}"
    assert broker.refuses(version, hex_packets.packet("10", will[4:].replace(text("ww"), bad)))


@pytest.mark.parametrize("bad", [*ILL_FORMED, "610062"])
def test_a_connect_with_a_bad_string_closes(broker, version, bad):
    """[MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT311-1.5.3-1] [MQTT311-1.5.3-2]

    The client id [MQTT-3.1.3-4] [MQTT311-3.1.3-4] and the user name [MQTT-3.1.3-12] [MQTT311-3.1.3-11].
    """
    for packet in (
        hex_packets.connect(version, bytes.fromhex(bad)),
        hex_packets.connect(version, "c", user=bytes.fromhex(bad)),
    ):
        assert broker.refuses(version, packet)


def test_a_byte_order_mark_is_a_character(broker, version):
    """[MQTT-1.5.4-3] [MQTT311-1.5.3-3]: U+FEFF is neither skipped nor stripped, wherever it is."""
    client = broker.connect(version)
    client.subscribe("a")
    client.subscribe("\ufeffa")
    client.subscribe("b/+")
    publisher = broker.connect(version, "p")
    publisher.publish("\ufeffa")
    publisher.publish("b/a\ufeff")
    assert client.hear() == spaced(hex_packets.publish(version, "\ufeffa") + hex_packets.publish(version, "b/a\ufeff"))


def test_a_byte_order_mark_in_a_client_id_makes_another_client(broker, version):
    """[MQTT-1.5.4-3] [MQTT311-1.5.3-3]"""
    clients = [broker.connect(version, name) for name in ("a", "\ufeffa")]
    assert [client.closed for client in clients] == [False, False]


def test_a_byte_order_mark_in_a_property(broker):
    """[MQTT-1.5.4-3]"""
    client = broker.connect(5)
    client.subscribe("a", 0)
    publish = hex_packets.publish(5, "a", properties="26" + text("\ufeffn") + text("\ufeffv"))
    broker.connect(5, "p").say(publish)
    assert client.hear() == spaced(publish)


@pytest.mark.parametrize("length", ["8000", "818000", "80808000", "8080808001", "ffffffff7f"])
def test_a_remaining_length_that_is_not_the_shortest_closes(broker, version, length):
    """[MQTT-1.5.5-1]"""
    assert broker.connect(version).fails("30" + length, "81")


@pytest.mark.parametrize("length", ["8000", "808000", "8080808000"])
def test_a_property_length_that_is_not_the_shortest_closes(broker, length):
    """[MQTT-1.5.5-1]"""
    assert broker.connect(5).fails(hex_packets.packet("30", text("a"), length), "81")


@pytest.mark.parametrize(
    ("payload_bytes", "length"), [(124, "7f"), (125, "80 01"), (16380, "ff 7f"), (16381, "80 80 01")]
)
def test_what_the_server_writes_is_the_shortest(broker, payload_bytes, length):
    """[MQTT-1.5.5-1]"""
    client = broker.connect(4)
    client.subscribe("a", 0)
    broker.connect(4, "p").publish("a", b"x" * payload_bytes)
    assert client.hear().startswith(f"30 {length} 00 01 61 78")


@pytest.mark.parametrize(("properties_bytes", "length"), [(127, "7f"), (128, "80 01")])
def test_the_property_length_that_the_server_writes_is_the_shortest(broker, properties_bytes, length):
    """[MQTT-1.5.5-1]"""
    client = broker.connect(5)
    client.subscribe("a", 0)
    publish = hex_packets.publish(5, "a", properties="03" + text("t" * (properties_bytes - 3)))
    broker.connect(5, "p").say(publish)
    heard = client.hear()
    assert heard == spaced(publish)
    assert f"00 01 61 {length} 03" in heard


def test_the_longest_topic(broker, version):
    """[MQTT-4.7.3-3] [MQTT311-4.7.3-3]: all 65,535 bytes that a length of two bytes can say."""
    topic = "t" * 65535
    client = broker.connect(version)
    client.subscribe(topic, 0)
    broker.connect(version, "p").publish(topic)
    assert client.hear() == spaced(hex_packets.publish(version, topic))


def test_strings_that_unicode_allows_are_taken(broker, version):
    """[MQTT-1.5.4-1] [MQTT311-1.5.3-1]: what is well-formed is no fault, up to the last character."""
    client = broker.open(version)
    assert client.say(hex_packets.connect(version, "cé漢\U0010fffd")) == connack(version)
    client.subscribe("é/漢/\U0010fffd", 0)
    assert client.publish("é/漢/\U0010fffd") == spaced(hex_packets.publish(version, "é/漢/\U0010fffd"))
