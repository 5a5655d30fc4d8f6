"""3.1 CONNECT."""

import hex_packets
import pytest
from hex_packets import connack, packet, spaced, text

from broker.core.connection_limits import ConnectionLimits

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def closes_silently(broker, hex_bytes):
    """Whether a first packet closes the connection without a word."""
    client = broker.open()
    return client.say(hex_bytes) == "" and client.closed


def test_a_client_without_anything_special_is_accepted(broker, version):
    """[MQTT-3.1.4-5] [MQTT311-3.1.4-4] [MQTT311-7.0.0-2]"""
    client = broker.open(version)
    assert client.say(hex_packets.connect(version)) == connack(version)
    assert client.say("c0 00") == "d0 00"


# 3.1.0


@pytest.mark.parametrize("first", [0, *range(2, 16)])
def test_the_first_packet_is_a_connect(broker, first):
    """[MQTT-3.1.0-1] [MQTT311-3.1.0-1]"""
    assert closes_silently(broker, f"{first:x}0 00")
    assert closes_silently(broker, f"{first:x}2 06 0001 0001 61 00")


def test_a_second_connect_closes(broker, version):
    """[MQTT-3.1.0-2] [MQTT311-3.1.0-2] [MQTT-3.2.0-2]: also one of another client id, also a bad one."""
    for second in (hex_packets.connect(version), hex_packets.connect(version, "d"), "10 00"):
        assert broker.connect(version).fails(second, "82")


# 3.1.2.1 to 3.1.2.3: name, level, reserved flag


@pytest.mark.parametrize("name", ["MQTX", "mqtt", "MQTTT", "MQT", ""])
def test_other_protocols_are_not_served(broker, version, name):
    """[MQTT-3.1.2-1] [MQTT311-3.1.2-1]"""
    client = broker.open(version)
    client.say(packet("10", text(name), hex_packets.connect(version, session_s=60, clean=False)[16:]))
    assert client.closed
    # Nothing of it was worked off: there is no session.
    assert broker.stay(version, "c").connack == connack(version)


@pytest.mark.parametrize("level", ["00", "01", "02", "06", "07", "7f"])
def test_other_levels_are_refused(broker, level):
    """[MQTT-3.1.2-2] [MQTT311-3.1.2-2] [MQTT311-3.2.2-5]: in the form of the oldest version that is served."""
    client = broker.open()
    assert client.say(f"10 0d 0004 4d515454 {level} 02 0000 0001 63") == "20 02 00 01"
    assert client.closed


def test_level_3_has_a_name_of_its_own(broker):
    """[MQTT-3.1.2-1] [MQTT311-3.1.2-1]: MQTT 3.1 is served as MQIsdp, and by no other name."""
    client = broker.open()
    assert client.say("10 0f 0006 4d5149736470 03 02 0000 0001 63") == "20 02 00 00"
    assert client.say("c0 00") == "d0 00"
    client = broker.open()
    assert client.say("10 0d 0004 4d515454 03 02 0000 0001 63") == "20 02 00 01"
    assert client.closed


def test_versions_that_are_not_allowed_are_refused(start, version):
    """[MQTT-3.1.2-2] [MQTT311-3.1.2-2] [MQTT-3.1.4-2] [MQTT311-3.2.2-5]: in their own form."""
    broker = start(limits=ConnectionLimits(protocol_versions=frozenset((9 - version,))))
    client = broker.open(version)
    heard = client.say(hex_packets.connect(version)).split()
    assert heard[2:4] == {4: ["00", "01"], 5: ["00", "84"]}[version]
    assert client.closed
    assert broker.connect(9 - version).connack == connack(9 - version)


def test_the_reserved_flag_closes(broker, version):
    """[MQTT-3.1.2-3] [MQTT311-3.1.2-3]"""
    assert broker.refuses(version, hex_packets.connect(version, flags=0x03))
    assert broker.refuses(version, hex_packets.connect(version, flags=0x01))


def test_each_byte_of_flags(broker, version):
    """[MQTT-3.1.2-3] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [MQTT-3.1.2-16] [MQTT-3.1.2-18]

    [MQTT311-3.1.2-3] [MQTT311-3.1.2-11] [MQTT311-3.1.2-13] [MQTT311-3.1.2-14] [MQTT311-3.1.2-15] [MQTT311-3.1.2-22]
    [MQTT311-3.1.2-18] [MQTT311-3.1.2-20]: with the fields that each announces.
    """
    accepted = 0
    for flags in range(256):
        said = hex_packets.connect(
            version,
            will=("w", "x") if flags & 0x04 else None,
            user="u" if flags & 0x80 else None,
            password="p" if flags & 0x40 else None,
            flags=flags,
        )
        no_will = not flags & 0x04 and flags & 0x38
        if flags & 0x01 or no_will or flags & 0x18 == 0x18 or (version == 4 and flags & 0xC0 == 0x40):
            assert broker.refuses(version, said), flags
        else:
            assert broker.open(version).say(said) == connack(version), flags
            accepted += 1
    # Clean start, seven kinds of will or none, and four pairs of user name and password, or three.
    assert accepted == 2 * 7 * {4: 3, 5: 4}[version]


# 3.1.2.4: clean session, clean start


def test_without_a_session_one_is_made(broker, version):
    """[MQTT-3.1.2-6] [MQTT311-3.1.2-4]"""
    client = broker.stay(version)
    assert client.connack == connack(version)
    client.subscribe("a")
    broker.connect(4, "p").publish("a")
    assert client.hear() == spaced(hex_packets.publish(version, "a"))


def test_a_session_is_resumed(broker, version):
    """[MQTT-3.1.2-5] [MQTT-3.1.2-23] [MQTT-4.5.0-1]: its subscriptions, and what came while its client was away.

    [MQTT311-3.1.2-4] [MQTT311-3.1.2-5] [MQTT311-4.5.0-1]
    """
    client = broker.stay(version)
    client.subscribe("a", 1)
    client.drop()
    publisher = broker.connect(4, "p")
    publisher.publish("a", "1", qos=1)
    client = broker.stay(version)
    assert client.connack == connack(version, present=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "1", 1, 1))
    publisher.publish("a", "2", qos=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "2", 1, 2))


def test_a_session_outlives_the_node(broker, version):
    """[MQTT-3.1.2-5] [MQTT-3.1.2-23] [MQTT-4.1.0-1] [MQTT311-3.1.2-4] [MQTT311-3.1.2-5] [MQTT311-4.1.0-1]"""
    client = broker.stay(version)
    client.subscribe("a", 1)
    broker.restart()
    broker.connect(4, "p").publish("a", "1", qos=1)
    broker.restart(down_s=50)
    client = broker.stay(version)
    assert client.connack == connack(version, present=1)
    assert client.hear() == spaced(hex_packets.publish(version, "a", "1", 1, 1))


def test_a_clean_start_discards_the_session(broker, version):
    """[MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT-3.2.2-2]: subscriptions, what waits, and what was not acknowledged.

    [MQTT311-3.1.2-6] [MQTT311-3.1.4-3] [MQTT311-3.2.2-1]
    """
    client = broker.stay(version)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "in flight", qos=1)
    client.drop()
    publisher.publish("a", "waits", qos=1)
    client = broker.connect(version, "s")
    assert client.connack == connack(version)
    publisher.publish("a", "new", qos=1)
    assert client.hear() == ""
    client.drop()
    assert broker.stay(version).connack == connack(version)


def test_a_clean_start_discards_the_session_of_a_connected_client(broker, version):
    """[MQTT-3.1.2-4] [MQTT311-3.1.2-6]"""
    older = broker.stay(version)
    older.subscribe("a", 1)
    client = broker.connect(version, "s")
    assert older.closed
    assert client.connack == connack(version)
    broker.connect(4, "p").publish("a", qos=1)
    assert client.hear() == ""


def test_a_clean_session_ends_with_its_connection(broker):
    """[MQTT311-3.1.2-6]: nothing of it comes back in a later one."""
    client = broker.connect(4, "s")
    client.subscribe("a", 1)
    broker.connect(4, "p").publish("a", qos=1)
    client.drop()
    client = broker.stay(4)
    assert client.connack == connack(4)
    assert client.hear() == ""


def test_a_clean_start_with_an_expiry_begins_a_session_that_stays(broker):
    """[MQTT-3.1.2-4] [MQTT-3.1.2-23]: the one says what is at the beginning, the other what is at the end."""
    client = broker.connect(5, "s", session_s=60)
    client.subscribe("a", 1)
    client.drop()
    broker.connect(4, "p").publish("a", qos=1)
    assert broker.stay(5).hear() == spaced(hex_packets.publish(5, "a", "x", 1, 1))


# 3.1.2.5 to 3.1.2.7: wills


@pytest.mark.parametrize("flags", [0x0A, 0x12, 0x1A, 0x22, 0x2A], ids=hex)
def test_will_flags_without_a_will_close(broker, version, flags):
    """[MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT311-3.1.2-11] [MQTT311-3.1.2-13] [MQTT311-3.1.2-15]"""
    assert broker.refuses(version, hex_packets.connect(version, flags=flags))


def test_will_fields_without_a_will_close(broker, version):
    """[MQTT311-3.1.2-11]"""
    assert broker.refuses(version, hex_packets.connect(version, will=("w", "x"), flags=0x02))


def test_a_will_of_qos_3_closes(broker, version):
    """[MQTT-3.1.2-12] [MQTT311-3.1.2-14]"""
    assert broker.refuses(version, hex_packets.connect(version, will=("w", "x"), will_qos=3))


def test_a_will_has_a_topic_and_a_payload(broker, version):
    """[MQTT-3.1.2-9] [MQTT311-3.1.2-9]: a CONNECT that ends before either closes."""
    assert broker.refuses(version, hex_packets.connect(version, flags=0x06))
    whole = hex_packets.connect(version, will=("w", "x"))
    assert broker.refuses(version, packet("10", whole[4:-6]))


def test_a_will_topic_is_utf_8(broker, version):
    """[MQTT-3.1.3-11] [MQTT311-3.1.3-10]"""
    for bad in ("ff", "eda080"):
        will = hex_packets.connect(version, will=("ww", "x")).replace(text("ww"), f"{len(bad) // 2:04x}{bad}")
        assert broker.refuses(version, packet("10", will[4:]))


@pytest.mark.parametrize("end", ["drop", "disconnect"])
def test_without_a_will_nothing_is_published(broker, version, end):
    """[MQTT311-3.1.2-12]"""
    watcher = broker.connect(4, "w")
    watcher.subscribe("#")
    client = broker.connect(version)
    if end == "disconnect":
        client.say("e0 00")
    client.drop()
    broker.advance(1000)
    assert watcher.hear() == ""


# 3.1.2.8, 3.1.2.9, 3.1.3: user name, password, and the order of the fields


def test_a_user_name_is_there_when_its_flag_says_so(broker, version):
    """[MQTT-3.1.2-16] [MQTT-3.1.2-17] [MQTT311-3.1.2-18] [MQTT311-3.1.2-19]"""
    assert broker.open(version).say(hex_packets.connect(version, user="u")) == connack(version)
    assert broker.refuses(version, hex_packets.connect(version, flags=0x82))
    assert broker.refuses(version, hex_packets.connect(version, user="u", flags=0x02))


def test_a_password_is_there_when_its_flag_says_so(broker, version):
    """[MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT311-3.1.2-20] [MQTT311-3.1.2-21]"""
    assert broker.open(version).say(hex_packets.connect(version, user="u", password="p")) == connack(version)
    assert broker.refuses(version, hex_packets.connect(version, user="u", flags=0xC2))
    assert broker.refuses(version, hex_packets.connect(version, user="u", password="p", flags=0x82))


def test_a_password_without_a_user_name(broker):
    """[MQTT311-3.1.2-22]: closes there; 5.0 allows it."""
    assert broker.refuses(4, hex_packets.connect(4, password="p"))
    assert broker.open(5).say(hex_packets.connect(5, password="p")) == connack(5)


def test_the_fields_come_in_their_order(broker, version):
    """[MQTT-3.1.3-1] [MQTT-3.1.3-3] [MQTT311-3.1.3-1] [MQTT311-3.1.3-3]

    Only a password is not text, so bytes that are none are taken in its place and nowhere else.
    """
    first = broker.connect(version, "c", user="u", password=b"\xff")
    assert broker.refuses(version, hex_packets.connect(version, "c", user=b"\xff", password="p"))
    assert broker.refuses(version, hex_packets.connect(version, b"\xff", user="u", password="p"))
    assert not first.closed
    broker.connect(version, "u", user="c", password="p")
    assert not first.closed
    broker.connect(version, "c", user="u", password="q")
    assert first.closed


def test_a_client_id_is_there(broker, version):
    """[MQTT-3.1.3-3] [MQTT311-3.1.3-3]"""
    without = hex_packets.connect(version)[4:-6]
    assert broker.refuses(version, packet("10", without))
    assert broker.refuses(version, packet("10", without, "0002 63"))


# 3.1.3.1: client id


def test_a_client_id_stands_for_its_session(broker, version):
    """[MQTT-3.1.3-2] [MQTT311-3.1.3-2]: whichever version its client speaks."""
    client = broker.stay(version, "s")
    client.subscribe("a")
    client.drop()
    for other in ("S", "s ", "t", "ss"):
        assert broker.stay(version, other).connack == connack(version)
    for level in (5, 4):
        client = broker.stay(level, "s")
        assert client.connack == connack(level, present=1)
        broker.connect(4, "p").publish("a")
        assert client.hear() == spaced(hex_packets.publish(level, "a"))
        client.drop()


def test_client_ids_that_every_server_takes(broker, version):
    """[MQTT-3.1.3-5] [MQTT311-3.1.3-5]: 1 to 23 bytes, digits and letters."""
    names = [LETTERS[start : start + length] for length in (1, 2, 22, 23) for start in range(len(LETTERS) - length + 1)]
    for name in names:
        assert broker.open(version).say(hex_packets.connect(version, name)) == connack(version), name


def test_an_empty_client_id_is_assigned(broker):
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16] [MQTT311-3.1.3-6]"""
    first = broker.connect(5, "", session_s=60)
    assert first.connack == connack(5, more="12" + text("assigned-1"))
    second = broker.connect(5, "")
    assert second.connack == connack(5, more="12" + text("assigned-2"))
    third = broker.connect(4, "")
    assert third.connack == connack(4)
    assert [client.closed for client in (first, second, third)] == [False, False, False]
    # It is as if the client had brought the id along.
    first.drop()
    assert broker.stay(5, "assigned-1").connack == connack(5, present=1)


def test_an_empty_client_id_without_a_clean_start(broker):
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7]: allowed in 5.0."""
    assert broker.connect(5, "", False).connack == connack(5, more="12" + text("assigned-1"))


def test_an_empty_client_id_without_a_clean_session_is_refused(broker):
    """[MQTT311-3.1.3-7] [MQTT311-3.1.3-8] [MQTT311-3.2.2-4] [MQTT311-3.2.2-5]"""
    client = broker.open(4)
    assert client.say(hex_packets.connect(4, "", False)) == "20 02 00 02"
    assert client.closed


def test_a_client_id_that_is_too_long_is_refused(start):
    """[MQTT-3.1.3-8] [MQTT-3.1.4-2] [MQTT-3.2.2-7] [MQTT-4.13.2-1] [MQTT311-3.1.3-9] [MQTT311-3.2.2-5]"""
    broker = start(limits=ConnectionLimits(client_id_bytes_max=30))
    for level in (4, 5):
        assert broker.open(level).say(hex_packets.connect(level, "c" * 30)) == connack(level)
    client = broker.open(4)
    assert client.say(hex_packets.connect(4, "c" * 31)) == "20 02 00 02"
    assert client.closed
    client = broker.open(5)
    assert client.say(hex_packets.connect(5, "c" * 31)).split()[2:4] == ["00", "85"]
    assert client.closed


# 3.1.4: response


@pytest.mark.parametrize("body", ["", "0004 4d5154", "0004 4d515454"])
def test_a_connect_that_ends_before_its_version_closes_without_a_word(broker, body):
    """[MQTT-3.1.4-1] [MQTT311-3.1.4-1] [MQTT311-3.2.2-6] [MQTT-3.14.0-1]"""
    assert closes_silently(broker, packet("10", body))


@pytest.mark.parametrize(
    "body",
    [
        "0004 4d515454 {level}",
        "0004 4d515454 {level} 02",
        "0004 4d515454 {level} 02 00",
        "0004 4d515454 {level} 02 0000 {properties}",
        "0004 4d515454 {level} 02 0000 {properties} 00",
        "0004 4d515454 {level} 02 0000 {properties} 0002 63",
        "0004 4d515454 {level} 02 0000 {properties} 0001 63 00",
        "0004 4d515454 {level} c2 0000 {properties} 0001 63 0001 75 0002 70",
    ],
)
def test_a_malformed_connect_closes(broker, version, body):
    """[MQTT-3.1.4-1] [MQTT311-3.1.4-1] [MQTT311-3.2.2-6] [MQTT-3.14.0-1]"""
    said = packet("10", body.format(level=f"{version:02x}", properties="00" if version == 5 else ""))
    assert broker.refuses(version, said)


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ("11 00000001 11 00000001", "82"),
        ("21 0000", "82"),
        ("27 00000000", "82"),
        ("19 02", "82"),
        ("17 02", "82"),
        ("16 0001 64", "82"),
        ("01 01", "81"),
        ("7f 00", "81"),
        ("21 00", "81"),
    ],
    ids=["twice", "receive max 0", "size 0", "bool", "bool 2", "data alone", "not here", "unknown", "cut short"],
)
def test_bad_properties_of_a_connect_close(broker, properties, reason):
    """[MQTT-3.1.4-1] [MQTT-4.13.1-1]"""
    assert broker.refuses(5, hex_packets.connect(5, properties=properties.replace(" ", "")), reason)


def test_takeover(broker):
    """[MQTT-3.1.4-3] [MQTT311-3.1.4-2]"""
    older = broker.connect(5)
    newer = broker.connect(5)
    assert older.hear() == "e0 01 8e"
    assert older.closed
    older, newer = newer, broker.connect(4)
    assert older.closed
    older, newer = newer, broker.connect(4)
    assert older.hear() == ""
    assert older.closed
    assert not newer.closed


def test_what_follows_the_connect_at_once_is_served_after_the_connack(broker, version):
    """[MQTT-3.2.0-1] [MQTT311-3.2.0-1]: the CONNACK first; clients need not wait for it."""
    client = broker.open(version)
    heard = client.say(
        hex_packets.connect(version)
        + "c000"
        + hex_packets.subscribe(version, 1, ("a", 0))
        + hex_packets.publish(version, "a")
    )
    rest = "d000" + hex_packets.suback(version, 1, "00") + hex_packets.publish(version, "a")
    assert heard == f"{connack(version)} {spaced(rest)}"


def test_nothing_that_follows_a_refused_connect_is_worked_off(broker, version):
    """[MQTT-3.1.4-6] [MQTT311-3.1.4-5]"""
    watcher = broker.connect(4, "w")
    watcher.subscribe("#")
    client = broker.open(version)
    refused = "10 0d 0004 4d515454 06 02 0000 0001 63"
    if version == 5:
        refused = hex_packets.connect(5, properties="15" + text("m"))
    heard = client.say(refused + hex_packets.publish(version, "a") + "c000")
    assert heard.startswith("20")
    assert "d0 00" not in heard
    assert client.say(hex_packets.publish(version, "a")) == ""
    assert watcher.hear() == ""
