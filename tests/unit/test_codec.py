"""The codec against the table of named packets, every prefix of every packet, and bytes that nobody meant."""

import hypothesis
import pytest
from hypothesis import strategies
from packet_rows import Row
from packet_table import BAD_ROWS, GOOD_ROWS, ROWS

from broker.mqtt import codec
from broker.mqtt.packets import (
    MQTT_3_1,
    MQTT_3_1_1,
    MQTT_5_0,
    PACKET_REASONS,
    Acknowledgement,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import NO_PROPERTIES, Property, encode_properties
from broker.mqtt.reasons import CONNACK_RETURN_CODES, ProtocolError, Reason, connack_return_code


@pytest.fixture(autouse=True)
def no_properties_stays_empty():
    yield
    assert NO_PROPERTIES == {}


def decode_all(data: bytes, version: int, pos: int = 0) -> Packet:
    """Decode the packet at `pos`, which must be whole."""
    start, end = codec.split(data, pos, 0)
    assert 0 < start <= end <= len(data)
    return codec.decode(data, data[pos], start, end, version)


def each(rows: list[Row]):
    return pytest.mark.parametrize("row", rows, ids=[f"{row.name}, v{row.version}" for row in rows])


def test_table_is_as_large_as_it_claims():
    assert len(ROWS) >= 400
    assert len({(row.name, row.version) for row in ROWS}) == len(ROWS)
    assert {row.data[0] >> 4 for row in GOOD_ROWS} == {int(packet_type) for packet_type in PacketType}


@each(GOOD_ROWS)
def test_decode(row):
    packet = decode_all(row.data, row.version)
    assert packet == row.packet
    assert type(packet) is type(row.packet)
    assert repr(packet)


@each(GOOD_ROWS)
def test_encode(row):
    encoded = codec.encode(row.packet, row.version)
    if row.canonical:
        assert encoded == row.data
    else:
        assert len(encoded) <= len(row.data)
        assert decode_all(encoded, row.version) == row.packet


@each(GOOD_ROWS)
def test_decode_inside_a_stream(row):
    """The buffer goes on with other packets, and began with others."""
    data = b"\xc0\x00" + row.data + b"\xff" * 40
    start, end = codec.split(data, 2, 0)
    assert end == 2 + len(row.data)
    assert codec.decode(data, data[2], start, end, row.version) == row.packet


@each(BAD_ROWS)
def test_refuse(row):
    with pytest.raises(ProtocolError) as caught:
        decode_all(row.data, row.version)
    assert caught.value.reason == row.refused
    assert caught.value.text == str(caught.value) != ""


@each(BAD_ROWS)
def test_reason_can_be_said(row):
    """The connection may put the reason of a ProtocolError into CONNACK or DISCONNECT as it is."""
    answer = PacketType.CONNACK if row.data[0] >> 4 == PacketType.CONNECT else PacketType.DISCONNECT
    assert row.refused in PACKET_REASONS[answer]


@each(ROWS)
def test_every_prefix_is_incomplete(row):
    data = row.data
    whole = codec.split(data, 0, 0)
    assert whole[1] == len(data)
    for size in range(min(len(data), 300)):
        assert codec.split(data[:size], 0, 0) in ((0, 0), whole)


@each(ROWS)
def test_every_cut_body_is_refused_or_read(row):
    """A shorter remaining length over the same bytes never raises anything but ProtocolError."""
    data = row.data
    start, end = codec.split(data, 0, 0)
    for cut in range(start, min(end, start + 300)):
        try:
            packet = codec.decode(data, data[0], start, cut, row.version)
        except ProtocolError:
            continue
        assert_stable(packet, row.version)


def assert_stable(packet: Packet, version: int) -> None:
    """What was read can be written, and reads the same again."""
    version = getattr(packet, "version", version)
    encoded = codec.encode(packet, version)
    again = decode_all(encoded, version)
    assert again == packet
    assert codec.encode(again, version) == encoded


@hypothesis.given(
    strategies.sampled_from(ROWS),
    strategies.lists(strategies.tuples(strategies.integers(0, 400), strategies.integers(1, 255)), max_size=4),
)
@hypothesis.settings(deadline=None, max_examples=1500)
def test_flipped_bits(row, flips):
    data = bytearray(row.data[:400])
    for position, mask in flips:
        data[position % len(data)] ^= mask
    try_decode(bytes(data), row.version)


@hypothesis.given(strategies.binary(max_size=80), strategies.integers(0, 255), strategies.sampled_from((3, 4, 5)))
@hypothesis.settings(deadline=None, max_examples=1500)
def test_random_bodies(body, first_byte, version):
    try_decode(bytes((first_byte, len(body))) + body, version)


def try_decode(data: bytes, version: int) -> None:
    try:
        start, end = codec.split(data, 0, 0)
        if end == 0 or end > len(data):
            return
        packet = codec.decode(data, data[0], start, end, version)
    except ProtocolError as error:
        assert 0x80 <= error.reason <= 0xA2
        return
    assert_stable(packet, version)


def test_split_remaining_length():
    assert codec.split(b"", 0, 0) == (0, 0)
    assert codec.split(b"\xc0", 0, 0) == (0, 0)
    assert codec.split(b"\xc0\x00", 0, 0) == (2, 2)
    assert codec.split(b"\x30\x7f", 0, 0) == (2, 129)
    assert codec.split(b"\x30\x80", 0, 0) == (0, 0)
    assert codec.split(b"\x30\x80\x01", 0, 0) == (3, 131)
    assert codec.split(b"\x30\xff\xff\xff\x7f", 0, 0) == (5, 5 + 268_435_455)


@pytest.mark.parametrize(
    "data", [b"\x30\x80\x00", b"\x30\x80\x80\x80\x00", b"\x30\x80\x80\x80\x80", b"\x30\xff\xff\xff\xff\x7f"]
)
def test_split_refuses_a_bad_remaining_length(data):
    with pytest.raises(ProtocolError) as caught:
        codec.split(data, 0, 0)
    assert caught.value.reason == Reason.MALFORMED_PACKET


def test_split_refuses_oversize_before_the_body_is_there():
    assert codec.split(b"\x30\x62", 0, 100) == (2, 100)
    assert codec.split(b"xx\x30\x62", 2, 100) == (4, 102)
    with pytest.raises(ProtocolError) as caught:
        codec.split(b"\x30\x63", 0, 100)
    assert caught.value.reason == Reason.PACKET_TOO_LARGE


def test_decode_wants_the_whole_body():
    with pytest.raises(AssertionError):
        codec.decode(b"\x30\x7f", 0x30, 2, 129, 4)


@pytest.mark.parametrize("version", [MQTT_3_1, MQTT_3_1_1, MQTT_5_0])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("payload_bytes", [0, 1, 100, 117, 118, 119, 1024, 1025, 16_370, 70_000, 2_097_150])
def test_encode_publish_and_its_parts(version, qos, payload_bytes):
    payload = b"p" * payload_bytes
    properties = {Property.CONTENT_TYPE: "c" * 130} if version == MQTT_5_0 else NO_PROPERTIES
    packet = Publish(b"a/b", payload, qos, True, qos > 0, 258 if qos else 0, properties)
    encoded_properties = encode_properties(properties)
    encoded = codec.encode(packet, version)
    assert decode_all(encoded, version) == packet
    assert encoded == codec.encode_publish(b"a/b", payload, qos, True, qos > 0, 258, encoded_properties, version)
    head, tail = codec.encode_publish_parts(b"a/b", payload, qos, True, qos > 0, encoded_properties, version)
    assert encoded == head + (b"\x01\x02" if qos else b"") + tail


def test_publish_properties_are_not_written_in_3_1_1():
    assert codec.encode_publish(b"a", b"", 0, False, False, 0, b"\x01\x01", MQTT_3_1_1) == b"\x30\x03\x00\x01a"


def test_hot_functions_agree_with_decode():
    data = bytes.fromhex("3209 0003 612f62 0007 6869")
    assert codec.decode_publish(data, data[0], 2, 11, 4) == codec.decode(data, data[0], 2, 11, 4)
    assert codec.encode_ack(PacketType.PUBACK, 7, 0x97, b"", 5) == bytes.fromhex("4003 0007 97")
    assert codec.encode_ack(PacketType.PUBREL, 7, 0, b"", 5) == b"\x62\x02\x00\x07"


ACKS = (PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP)


def assert_decode_ack_agrees(data: bytes, start: int, end: int, version: int) -> None:
    """`decode_ack` says what `decode` says, or refuses with the same words."""
    try:
        packet = codec.decode(data, data[0], start, end, version)
    except ProtocolError as error:
        with pytest.raises(ProtocolError) as caught:
            codec.decode_ack(data, data[0], start, end, version)
        assert (caught.value.reason, caught.value.text) == (error.reason, error.text)
        return
    assert isinstance(packet, Acknowledgement)
    assert codec.decode_ack(data, data[0], start, end, version) == (packet.packet_id, packet.reason)


@each([row for row in ROWS if row.data[0] >> 4 in ACKS])
def test_decode_ack_agrees_with_decode(row):
    start, end = codec.split(row.data, 0, 0)
    data = row.data + b"\xff" * 8
    for version in (3, 4, 5):
        for cut in range(start, end + 1):
            assert_decode_ack_agrees(data, start, cut, version)


@hypothesis.given(
    strategies.sampled_from(ACKS), strategies.integers(0, 15), strategies.binary(max_size=20), strategies.integers(3, 5)
)
@hypothesis.settings(deadline=None, max_examples=500)
def test_decode_ack_agrees_with_decode_about_any_bytes(packet_type, flags, body, version):
    data = bytes((packet_type << 4 | flags, len(body))) + body
    assert_decode_ack_agrees(data, 2, len(data), version)


def test_decode_ack_is_for_acknowledgements():
    for first_byte in set(range(256)) - set(range(0x40, 0x80)):
        with pytest.raises(AssertionError):
            codec.decode_ack(b"\x00\x02\x00\x01", first_byte, 2, 4, 5)


@pytest.mark.parametrize("packet_type", ACKS)
def test_every_reason_of_an_acknowledgement(packet_type):
    """Each reason in its three forms: alone, with an empty property length, with a property; or in none."""
    properties = {int(Property.REASON_STRING): "x"}
    first_byte = packet_type << 4 | (2 if packet_type == PacketType.PUBREL else 0)
    kind = {4: Puback, 5: Pubrec, 6: Pubrel, 7: Pubcomp}[packet_type]
    for reason in range(256):
        for tail, expected in ((b"", {}), (b"\x00", {}), (b"\x04\x1f\x00\x01x", properties)):
            data = bytes((first_byte, 3 + len(tail), 0, 7, reason)) + tail
            assert_decode_ack_agrees(data, 2, len(data), 5)
            if reason not in PACKET_REASONS[packet_type]:
                with pytest.raises(ProtocolError) as caught:
                    decode_all(data, 5)
                assert caught.value.reason == Reason.PROTOCOL_ERROR
                continue
            packet = kind(7, reason, expected)
            assert decode_all(data, 5) == packet
            shortest = bytes((first_byte, 2, 0, 7)) if reason == 0 and not expected else data
            if tail == b"\x00":
                shortest = shortest if reason == 0 else bytes((first_byte, 3, 0, 7, reason))
            assert codec.encode(packet, 5) == shortest
            if reason < 0x80:
                # Before 5.0 neither the reason nor the properties can be said.
                assert codec.encode(packet, 4) == codec.encode(packet, 3) == bytes((first_byte, 2, 0, 7))


@pytest.mark.parametrize("packet_type", [PacketType.DISCONNECT, PacketType.AUTH])
def test_every_reason_of_disconnect_and_auth(packet_type):
    for reason in range(256):
        method = b"\x04\x15\x00\x01m" if packet_type == PacketType.AUTH else b"\x00"
        data = bytes((packet_type << 4, 1 + len(method), reason)) + method
        if reason in PACKET_REASONS[packet_type]:
            assert decode_all(data, 5).reason == reason
        else:
            with pytest.raises(ProtocolError) as caught:
                decode_all(data, 5)
            assert caught.value.reason == Reason.PROTOCOL_ERROR


def test_every_level_with_every_name():
    """Of all names and levels exactly five open a connection, two of them as a bridge."""
    served = {}
    for name in (b"MQTT", b"MQIsdp", b"MQTt", b"MQISDP", b""):
        for level in range(256):
            properties = b"\x00" if level & 0x7F == 5 else b""
            body = len(name).to_bytes(2, "big") + name + bytes((level, 2, 0, 0)) + properties + b"\x00\x01a"
            try:
                packet = decode_all(bytes((0x10, len(body))) + body, 0)
            except ProtocolError as error:
                assert error.reason == Reason.UNSUPPORTED_PROTOCOL_VERSION
                continue
            assert packet == Connect(packet.version, "a", True, 0, bridge=packet.bridge)
            served[name, level] = (packet.version, packet.bridge)
    assert served == {
        (b"MQIsdp", 3): (3, False),
        (b"MQIsdp", 131): (3, True),
        (b"MQTT", 4): (4, False),
        (b"MQTT", 132): (4, True),
        (b"MQTT", 5): (5, False),
    }


PACKETS_OF_ALL_VERSIONS = [
    Connack(),
    Connack(False, Reason.NOT_AUTHORIZED),
    Publish(b"a", b"x", 2, True, True, 7),
    Puback(7),
    Pubrec(7),
    Pubrel(7),
    Pubcomp(7),
    Subscribe(7, (SubscriptionRequest(b"a/#", 1), SubscriptionRequest(b"$share/g/+", 2))),
    Suback(7, (0, 1, 2, 0x80)),
    Unsubscribe(7, (b"a/#",)),
    Unsuback(7),
    Disconnect(),
]


@pytest.mark.parametrize("packet", PACKETS_OF_ALL_VERSIONS, ids=lambda packet: type(packet).__name__)
def test_3_1_is_written_as_3_1_1(packet):
    encoded = codec.encode(packet, MQTT_3_1)
    assert encoded == codec.encode(packet, MQTT_3_1_1)
    assert decode_all(encoded, MQTT_3_1) == decode_all(encoded, MQTT_3_1_1) == packet


def test_3_1_has_no_session_present():
    assert codec.encode(Connack(True), MQTT_3_1) == bytes.fromhex("2002 00 00")
    assert codec.encode(Connack(True), MQTT_3_1_1) == bytes.fromhex("2002 01 00")


def test_3_1_is_sent_0x80_for_a_failure():
    assert codec.encode(Suback(1, (1, Reason.NOT_AUTHORIZED)), MQTT_3_1) == bytes.fromhex("9004 0001 01 80")


WILL_VALUES = {
    Property.WILL_DELAY_INTERVAL: 0xFFFF_FFFF,
    Property.PAYLOAD_FORMAT_INDICATOR: 0,
    Property.MESSAGE_EXPIRY_INTERVAL: 0,
    Property.CONTENT_TYPE: "text/plain; charset=utf-8",
    Property.RESPONSE_TOPIC: "r/日",
    Property.CORRELATION_DATA: bytes(range(256)),
    Property.USER_PROPERTY: [("k", "v"), ("", ""), ("k", "v")],
}


@pytest.mark.parametrize("identifier", WILL_VALUES, ids=lambda identifier: identifier.name)
def test_each_will_property_alone(identifier):
    will = Will(b"w", b"\x00", 2, True, {int(identifier): WILL_VALUES[identifier]})
    packet = Connect(5, "a", False, 1, "u", b"p", will, {int(Property.RECEIVE_MAXIMUM): 1})
    assert decode_all(codec.encode(packet, 5), 5) == packet


def test_a_will_goes_on_as_a_publish():
    """What of a will's properties a PUBLISH may have reads the same in one."""
    forwarded = {int(name): value for name, value in WILL_VALUES.items() if name != Property.WILL_DELAY_INTERVAL}
    packet = Publish(b"w", b"gone", 1, True, False, 7, forwarded)
    assert decode_all(codec.encode(packet, 5), 5) == packet


@pytest.mark.parametrize(
    ("payload", "good"),
    [
        (b"", True),
        (b"plain", True),
        (b"a\0b", True),
        (b"\x01\x7f", True),
        ("Grüße, 日本, \U0001f600".encode(), True),
        (b"\xef\xbb\xbfx", True),
        (b"\xef\xbf\xbf", True),
        (b"\xf4\x8f\xbf\xbf", True),
        ("ä".encode() * 50_000, True),
        (b"\xff", False),
        (b"\x80", False),
        (b"caf\xe9", False),
        (b"\xc3", False),
        (b"\xc0\x80", False),
        (b"\xc1\xbf", False),
        (b"\xe0\x80\xaf", False),
        (b"\xf0\x80\x80\x80", False),
        (b"\xed\xa0\x80", False),
        (b"\xed\xbf\xbf", False),
        (b"\xf4\x90\x80\x80", False),
        (b"\xf8\x88\x80\x80\x80", False),
        ("ä".encode() * 50_000 + b"\xc3", False),
    ],
)
def test_is_utf8(payload, good):
    assert codec.is_utf8(payload) is good


@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"])), strategies.binary(max_size=8))
def test_is_utf8_of_any_text(text, more):
    assert codec.is_utf8(text.encode())
    payload = text.encode() + more
    assert codec.is_utf8(payload) == (payload.decode(errors="ignore").encode() == payload)


def test_packets_without_properties_share_one_dict():
    assert decode_all(bytes.fromhex("3004 0001 61 00"), 5).properties is NO_PROPERTIES
    assert Connack().properties is NO_PROPERTIES


def test_equality():
    publish = Publish(b"a", b"x", 1, True, True, 3, {Property.TOPIC_ALIAS: 1})
    assert publish == Publish(b"a", b"x", 1, True, True, 3, {Property.TOPIC_ALIAS: 1})
    others = [
        Publish(b"b", b"x", 1, True, True, 3, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"y", 1, True, True, 3, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"x", 2, True, True, 3, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"x", 1, False, True, 3, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"x", 1, True, False, 3, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"x", 1, True, True, 4, {Property.TOPIC_ALIAS: 1}),
        Publish(b"a", b"x", 1, True, True, 3),
        "publish",
    ]
    assert all(publish != other for other in others)
    assert Puback(1) == Puback(1)
    assert Puback(1) != Pubrec(1)
    assert Puback(1) != Puback(2)
    assert Puback(1) != Puback(1, 0x10)
    assert Puback(1) != 1


def test_3_1_1_says_what_it_can():
    assert codec.encode(Suback(1, (1, Reason.QUOTA_EXCEEDED)), 4) == bytes.fromhex("9004 0001 01 80")
    assert codec.encode(Unsuback(1, (0, 0x11)), 4) == bytes.fromhex("b002 0001")
    assert codec.encode(Connack(False, Reason.BANNED), 4) == bytes.fromhex("2002 00 05")
    assert codec.encode(Connack(False, Reason.MALFORMED_PACKET), 4) == bytes.fromhex("2002 00 03")
    for reason in PACKET_REASONS[PacketType.CONNACK]:
        assert connack_return_code(reason) == CONNACK_RETURN_CODES.get(reason, 3)
        assert (connack_return_code(reason) == 0) == (reason == 0)


@pytest.mark.parametrize(
    ("packet", "version"),
    [
        (Connect(2, "a"), 4),
        (Connect(6, "a"), 5),
        (Connect(3, "a", password=b"p"), 3),
        (Connect(4, "a", password=b"p"), 4),
        (Connect(4, "a", will=Will(b"w", b"", 3)), 4),
        (Connect(5, "a", bridge=True), 5),
        (Auth(), 3),
        (Auth(), 4),
        (Auth(Reason.NOT_AUTHORIZED), 5),
        (Pubrec(1, Reason.PACKET_IDENTIFIER_NOT_FOUND), 5),
        (Pubrel(1, Reason.PACKET_IDENTIFIER_IN_USE), 5),
        (Pubcomp(1, Reason.NOT_AUTHORIZED), 5),
        (Pubrec(1, Reason.NOT_AUTHORIZED), 3),
        (Connack(True, Reason.NOT_AUTHORIZED), 5),
        (Connack(False, Reason.RECEIVE_MAXIMUM_EXCEEDED), 5),
        (Puback(1, Reason.QUOTA_EXCEEDED), 4),
        (Puback(1, Reason.KEEP_ALIVE_TIMEOUT), 5),
        (Suback(1, (3,)), 5),
        (Publish(b"a", b"", 1), 4),
        (Puback(65_536), 4),
    ],
)
def test_our_own_mistakes_are_assertions(packet, version):
    with pytest.raises(AssertionError):
        codec.encode(packet, version)
