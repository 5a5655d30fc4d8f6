"""2.1 Fixed header, and 1.5.5: every packet that a client may send, with every wrong flag and cut at every byte."""

import hex_packets
import pytest
from hex_packets import connack, packet, properties_of, spaced, text

USER = "26" + text("n") + text("v")
WILL = "18 00000001 01 01 02 00000001 03 0001 63 08 0001 72 09 0001 64".replace(" ", "") + USER


def body_of(hex_packet):
    """The body of a packet that is shorter than 128 bytes."""
    return hex_packet[4:]


def connects(version):
    """CONNECTs with everything: their bodies."""
    options = {"user": "user", "password": "pass", "will_properties": WILL, "will_retain": True, "will_qos": 1}
    for will in (None, ("w/t", "payload")):
        yield hex_packets.connect(version, "client", properties="21000a" + USER, will=will, **options)


def whole_packets(version):
    """Packets of a connected client with all of their fields: (first byte, fields, numbers of them that will do)."""
    user = properties_of(version, USER)
    yield "30", [text("a/b") + properties_of(version, "0101" + USER), "78"], {1, 2}
    yield "82", ["0001" + user, text("a/b") + "01", text("c/+") + "00"], {2, 3}
    yield "a2", ["0001" + user, text("a/b"), text("c/+")], {2, 3}
    for first, reason in (("40", "80"), ("50", "80"), ("62", "92"), ("70", "92")):
        if version == 4:
            yield first, ["0001"], {1}
        else:
            yield first, ["0001", reason, properties_of(5, "1f" + text("reason") + USER)], {1, 2, 3}
    if version == 5:
        yield "e0", ["", "04", properties_of(5, "1100000000" + "1f" + text("reason") + USER)], {1, 2, 3}


@pytest.mark.parametrize(
    ("first", "right"),
    [(4, 0), (5, 0), (6, 2), (7, 0), (8, 2), (10, 2), (12, 0), (14, 0), (15, 0)],
    ids=lambda number: f"{number:x}",
)
def test_no_other_flags(broker, version, first, right):
    """[MQTT-2.1.3-1] [MQTT311-2.2.2-1] [MQTT311-2.2.2-2]: of sixteen, fifteen are malformed, whatever the body."""
    for flags in set(range(16)) - {right}:
        for body in ("", "0001", "0001 0001 61 00"):
            assert broker.connect(version).fails(packet(f"{first:x}{flags:x}", body), "81"), (flags, body)


def test_no_other_flags_of_a_connect(broker, version):
    """[MQTT-2.1.3-1] [MQTT311-2.2.2-1] [MQTT311-2.2.2-2]"""
    for flags in range(1, 16):
        assert broker.refuses(version, f"1{flags:x}" + hex_packets.connect(version)[2:]), flags


def test_flags_of_a_publish_that_there_are(broker, version):
    """[MQTT-3.3.1-2] [MQTT-3.3.1-4] [MQTT311-3.3.1-2] [MQTT311-3.3.1-4]: all but QoS 3, and a duplicate of QoS 0."""
    for flags in range(16):
        qos = flags >> 1 & 3
        body = text("a") + ("0001" if qos else "") + properties_of(version, "")
        client = broker.connect(version)
        if qos == 3 or flags in (8, 9):
            assert client.fails(packet(f"3{flags:x}", body), "81"), flags
        else:
            nobody = " 10" if version == 5 else ""
            length = "03" if nobody else "02"
            answer = ["", f"40 {length} 00 01{nobody}", f"50 {length} 00 01{nobody}"][qos]
            assert client.say(packet(f"3{flags:x}", body)) == answer, flags


@pytest.mark.parametrize("first", range(16))
def test_a_first_packet_of_any_kind_and_flags_but_a_connect(broker, first):
    """[MQTT-3.1.0-1] [MQTT311-3.1.0-1]: closes without a word, however it goes on."""
    for flags in range(16):
        for rest in ("00", "02 0001", "ff ff ff 7f", "ff ff ff ff 01"):
            if first != 1:
                client = broker.open()
                assert client.say(f"{first:x}{flags:x} {rest}") == "", (flags, rest)
                assert client.closed, (flags, rest)


def test_packets_cut_short(broker, version):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1] [MQTT-2.2.2-1]: a length that ends inside of a field, or before one.

    What may be left out at the end may be left out; a request for nothing can be read, and is an error all the same.
    """
    for first, fields, wholes in whole_packets(version):
        body = "".join(fields)
        ends = {hex_packets.size("".join(fields[:number])) for number in wholes}
        nothing = hex_packets.size(fields[0]) if first in ("82", "a2") else -1
        for length in range(hex_packets.size(body) + 1):
            client = broker.connect(version)
            said = packet(first, body[: 2 * length])
            if length in ends:
                assert "e0" not in client.say(said).split()[:1], said
                assert client.closed == (first == "e0"), said
            else:
                assert client.fails(said, "82" if length == nothing else "81"), said


def test_connects_cut_short(broker, version):
    """[MQTT-3.1.4-1] [MQTT311-3.1.4-1]: at every byte; 5.0 is told from where it is known to be 5.0."""
    for whole in connects(version):
        body = body_of(whole) if len(whole) < 256 else whole[6:]
        size = hex_packets.size(body)
        client = broker.open(version)
        assert client.say(packet("10", body)) == connack(version)
        for length in range(size):
            client = broker.open(version)
            heard = bytes.fromhex(client.say(packet("10", body[: 2 * length])))
            assert client.closed, length
            if version == 4 or length < 7:
                assert heard == b"", length
            else:
                assert heard[:1] + heard[2:4] == b"\x20\0\x81", length
        if version == 5:
            assert broker.refuses(5, packet("10", body + "00"))


def test_one_byte_too_many(broker, version):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1]: behind the last field of a packet."""
    more = {4: ["40 03 0001 00", "50 03 0001 00", "62 03 0001 00", "70 03 0001 00", "e0 01 00", "c0 01 00"]}
    more[5] = ["40 05 0001 00 00 00", "50 05 0001 00 00 00", "62 05 0001 00 00 00", "70 05 0001 00 00 00"]
    more[5] += ["e0 03 00 00 00", "c0 01 00", "82 08 0001 00 0001 61 00 00", "a2 07 0001 00 0001 61 00"]
    for said in more[version]:
        assert broker.connect(version).fails(said, "81"), said


@pytest.mark.parametrize("first", ["30", "32", "40", "50", "62", "70", "82", "a2", "c0", "e0", "f0"])
@pytest.mark.parametrize("length", ["ffffffff01", "8080808001", "ffffffffff", "8080808000"])
def test_a_remaining_length_of_five_bytes_closes(broker, version, first, length):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1], and 2.1.4: four at most. It is not waited for more."""
    assert broker.connect(version).fails(first + length, "81")


@pytest.mark.parametrize("length", ["ffffffff01", "8080808001", "8080808000", "8000", "ff8000"])
def test_a_connect_with_a_remaining_length_that_there_is_not_closes(broker, length):
    """[MQTT-3.1.4-1] [MQTT311-3.1.4-1]: without a word, for nobody knows which version it is of."""
    client = broker.open()
    assert client.say("10" + length) == ""
    assert client.closed


@pytest.mark.parametrize("length", ["ffffffff01", "8080808001", "8000", "808000", "80"])
def test_a_property_length_that_there_is_not_closes(broker, length):
    """[MQTT-1.5.5-1] [MQTT-4.13.1-1]: of five bytes, longer than it need be, or endless, in every packet with one."""
    for said in (
        packet("32", text("a"), "0001", length),
        packet("30", text("a"), length),
        packet("40", "0001 00", length),
        packet("50", "0001 00", length),
        packet("62", "0001 00", length),
        packet("70", "0001 00", length),
        packet("82", "0001", length),
        packet("a2", "0001", length),
        packet("e0", "00", length),
        packet("f0", "18", length),
    ):
        assert broker.connect(5).fails(said, "81"), said
    assert broker.refuses(5, packet("10", text("MQTT"), "05 02 0000", length))
    assert broker.refuses(5, packet("10", text("MQTT"), "05 06 0000 00", text("c"), length))


@pytest.mark.parametrize("identifier", ["ffffffff01", "8080808001", "8100", "ff"])
def test_a_subscription_identifier_that_there_is_not_closes(broker, identifier):
    """[MQTT-1.5.5-1] [MQTT-4.13.1-1]"""
    said = packet(
        "82", "0001", hex_packets.varint(1 + hex_packets.size(identifier)), "0b" + identifier, text("a"), "00"
    )
    assert broker.connect(5).fails(said, "81")


def test_a_second_connect_in_one_piece_with_the_first(broker, version):
    """[MQTT-3.1.0-2] [MQTT311-3.1.0-2]: the first is answered, and that was it."""
    client = broker.open(version)
    heard = client.say(hex_packets.connect(version) * 2)
    assert heard.startswith(connack(version))
    rest = heard.removeprefix(connack(version)).split()
    assert client.closed
    assert (rest[:1] + rest[2:3]) == ([] if version == 4 else ["e0", "82"])


@pytest.mark.parametrize("first", [2, 9, 11, 13])
def test_packets_of_a_server_close_whatever_is_in_them(broker, version, first):
    """[MQTT-4.13.1-1] [MQTT311-4.8.0-1]"""
    bodies = ["", "00", "0000", "000000", "0001", "000100", "00010000"]
    for body in bodies:
        heard = broker.connect(version)
        said = heard.say(packet(f"{first:x}0", body)).split()
        assert heard.closed, body
        assert said[:1] == ([] if version == 4 else ["e0"]), body
        assert version == 4 or said[2] in ("81", "82"), body


def test_what_comes_in_single_bytes_is_the_same(broker, version):
    """4.2: where a packet ends has nothing to do with how its bytes arrive."""
    client = broker.open(version)
    stream = hex_packets.connect(version) + hex_packets.subscribe(version, 1, ("a", 0)) + "c000"
    stream += hex_packets.publish(version, "a") + "0000"
    heard = [client.say(stream[at : at + 2]) for at in range(0, len(stream), 2)]
    said = " ".join(filter(None, heard))
    expected = f"{connack(version)} " + spaced(
        hex_packets.suback(version, 1, "00") + "d000" + hex_packets.publish(version, "a")
    )
    assert said.startswith(expected)
    assert client.closed
