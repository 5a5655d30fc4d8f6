"""Properties: the table against every context, both ways."""

import hypothesis
import pytest
from hypothesis import strategies

from broker.mqtt.packets import PacketType
from broker.mqtt.properties import (
    NO_PROPERTIES,
    PROPERTY_TABLE,
    WILL_CONTEXT,
    Property,
    WireType,
    decode_properties,
    encode_properties,
    int_property,
)
from broker.mqtt.reasons import ProtocolError, Reason

CONTEXTS = [WILL_CONTEXT, *PacketType]

# The specification's table of properties once more, by packet, so that a slip in the code's bit masks shows.
PROPERTIES_OF = {
    WILL_CONTEXT: (0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26),
    PacketType.CONNECT: (0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27),
    PacketType.CONNACK: (
        0x11,
        0x12,
        0x13,
        0x15,
        0x16,
        0x1A,
        0x1C,
        0x1F,
        0x21,
        0x22,
        0x24,
        0x25,
        0x26,
        0x27,
        0x28,
        0x29,
        0x2A,
    ),
    PacketType.PUBLISH: (0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26),
    PacketType.PUBACK: (0x1F, 0x26),
    PacketType.PUBREC: (0x1F, 0x26),
    PacketType.PUBREL: (0x1F, 0x26),
    PacketType.PUBCOMP: (0x1F, 0x26),
    PacketType.SUBSCRIBE: (0x0B, 0x26),
    PacketType.SUBACK: (0x1F, 0x26),
    PacketType.UNSUBSCRIBE: (0x26,),
    PacketType.UNSUBACK: (0x1F, 0x26),
    PacketType.PINGREQ: (),
    PacketType.PINGRESP: (),
    PacketType.DISCONNECT: (0x11, 0x1C, 0x1F, 0x26),
    PacketType.AUTH: (0x15, 0x16, 0x1F, 0x26),
}

SAMPLES = {
    WireType.BYTE: (b"\x01", 1),
    WireType.TWO_BYTES: (b"\x01\x02", 258),
    WireType.FOUR_BYTES: (b"\xff\x00\x00\x01", 0xFF000001),
    WireType.VARINT: (b"\x80\x01", 128),
    WireType.STRING: (b"\x00\x02\xc3\xa4", "ä"),
    WireType.BINARY: (b"\x00\x02\x00\xff", b"\x00\xff"),
    WireType.STRING_PAIR: (b"\x00\x01k\x00\x00", [("k", "")]),
}


def with_length(body: bytes) -> bytes:
    assert len(body) < 128
    return bytes((len(body),)) + body


def decode(body: bytes, context: int):
    data = with_length(body)
    properties, end = decode_properties(data + b"\xff", 0, len(data), context)
    assert end == len(data)
    return properties


def refusal(body: bytes, context: int) -> int:
    with pytest.raises(ProtocolError) as caught:
        decode(body, context)
    return caught.value.reason


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("identifier", list(Property))
def test_every_property_in_every_context(identifier, context):
    wire, value = SAMPLES[WireType(PROPERTY_TABLE[identifier][0])]
    body = bytes((identifier,)) + wire
    if identifier not in PROPERTIES_OF[context]:
        assert refusal(body, context) == Reason.MALFORMED_PACKET
        return
    if identifier == Property.SUBSCRIPTION_IDENTIFIER and context == PacketType.PUBLISH:
        value = [value]
    properties = decode(body, context)
    assert properties == {identifier: value}
    assert encode_properties(properties) == body
    for size in range(1, len(body)):
        assert refusal(body[:size], context) == Reason.MALFORMED_PACKET


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("identifier", list(Property))
def test_repeated(identifier, context):
    if identifier not in PROPERTIES_OF[context]:
        return
    body = (bytes((identifier,)) + SAMPLES[WireType(PROPERTY_TABLE[identifier][0])][0]) * 2
    if identifier == Property.USER_PROPERTY:
        assert decode(body, context) == {identifier: [("k", ""), ("k", "")]}
    elif identifier == Property.SUBSCRIPTION_IDENTIFIER and context == PacketType.PUBLISH:
        assert decode(body, context) == {identifier: [128, 128]}
    else:
        assert refusal(body, context) == Reason.PROTOCOL_ERROR


def test_every_identifier_that_does_not_exist():
    for identifier in set(range(256)) - {int(known) for known in Property}:
        assert refusal(bytes((identifier, 0, 0, 0, 0)), PacketType.PUBLISH) == Reason.MALFORMED_PACKET


def test_table_is_complete():
    assert set(PROPERTY_TABLE) == set(Property)


@pytest.mark.parametrize(
    ("body", "context", "reason"),
    [
        (b"\x21\x00\x00", PacketType.CONNECT, Reason.PROTOCOL_ERROR),
        (b"\x27\x00\x00\x00\x00", PacketType.CONNECT, Reason.PROTOCOL_ERROR),
        (b"\x23\x00\x00", PacketType.PUBLISH, Reason.TOPIC_ALIAS_INVALID),
        (b"\x0b\x00", PacketType.SUBSCRIBE, Reason.PROTOCOL_ERROR),
        (b"\x0b\x00", PacketType.PUBLISH, Reason.PROTOCOL_ERROR),
        (b"\x0b\x80\x80\x80\x80\x01", PacketType.PUBLISH, Reason.MALFORMED_PACKET),
        (b"\x01\x02", WILL_CONTEXT, Reason.PROTOCOL_ERROR),
        (b"\x17\x02", PacketType.CONNECT, Reason.PROTOCOL_ERROR),
        (b"\x19\xff", PacketType.CONNECT, Reason.PROTOCOL_ERROR),
        (b"\x24\x02", PacketType.CONNACK, Reason.PROTOCOL_ERROR),
        (b"\x25\x02", PacketType.CONNACK, Reason.PROTOCOL_ERROR),
        (b"\x28\x02", PacketType.CONNACK, Reason.PROTOCOL_ERROR),
        (b"\x29\x02", PacketType.CONNACK, Reason.PROTOCOL_ERROR),
        (b"\x2a\x02", PacketType.CONNACK, Reason.PROTOCOL_ERROR),
        (b"\x03\x00\x01\x00", PacketType.PUBLISH, Reason.MALFORMED_PACKET),
        (b"\x03\x00\x03\xed\xa0\x80", PacketType.PUBLISH, Reason.MALFORMED_PACKET),
        (b"\x26\x00\x00\x00\x01\xff", PacketType.PUBLISH, Reason.MALFORMED_PACKET),
        (b"\x08\x00\x00", PacketType.PUBLISH, Reason.PROTOCOL_ERROR),
        (b"\x08\x00\x03a/+", WILL_CONTEXT, Reason.PROTOCOL_ERROR),
    ],
)
def test_values_that_are_not_allowed(body, context, reason):
    assert refusal(body, context) == reason


def test_none_and_length():
    assert decode(b"", PacketType.PUBLISH) is NO_PROPERTIES
    assert encode_properties(NO_PROPERTIES) == b""
    for data in (b"", b"\x80", b"\x80\x00", b"\x05\x01\x01", b"\x80\x80\x80\x80\x01"):
        with pytest.raises(ProtocolError) as caught:
            decode_properties(data, 0, len(data), PacketType.PUBLISH)
        assert caught.value.reason == Reason.MALFORMED_PACKET


def test_a_property_never_reads_past_the_properties():
    data = b"\x02\x02\x00\x00\x00\x01"
    with pytest.raises(ProtocolError):
        decode_properties(data, 0, len(data), PacketType.PUBLISH)


def test_int_property():
    properties = {Property.RECEIVE_MAXIMUM: 7, Property.REASON_STRING: "x"}
    assert int_property(properties, Property.RECEIVE_MAXIMUM, 65_535) == 7
    assert int_property(properties, Property.TOPIC_ALIAS_MAXIMUM, 0) == 0
    assert int_property(NO_PROPERTIES, Property.RECEIVE_MAXIMUM, 65_535) == 65_535


@pytest.mark.parametrize(
    "properties",
    [
        {Property.RECEIVE_MAXIMUM: 0},
        {Property.TOPIC_ALIAS: 65_536},
        {Property.SUBSCRIPTION_IDENTIFIER: [0]},
        {Property.REASON_STRING: b"x"},
        {Property.CORRELATION_DATA: "x"},
        {Property.CONTENT_TYPE: "x" * 65_536},
        {Property.RECEIVE_MAXIMUM: [1]},
    ],
)
def test_our_own_mistakes_are_assertions(properties):
    with pytest.raises(AssertionError):
        encode_properties(properties)


texts = strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
publish_properties = strategies.fixed_dictionaries(
    {},
    optional={
        0x01: strategies.integers(0, 1),
        0x02: strategies.integers(0, 0xFFFF_FFFF),
        0x03: texts,
        0x09: strategies.binary(max_size=300),
        0x0B: strategies.lists(strategies.integers(1, 268_435_455), min_size=1, max_size=4),
        0x23: strategies.integers(1, 65_535),
        0x26: strategies.lists(strategies.tuples(texts, texts), min_size=1, max_size=4),
    },
)


@hypothesis.given(publish_properties)
@hypothesis.settings(deadline=None)
def test_round_trip(properties):
    body = encode_properties(properties)
    size = len(body)
    length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
    decoded, end = decode_properties(length + body, 0, len(length) + size, PacketType.PUBLISH)
    assert decoded == properties
    assert end == len(length) + size


@hypothesis.given(strategies.binary(max_size=60), strategies.sampled_from(CONTEXTS))
@hypothesis.settings(deadline=None, max_examples=500)
def test_random_bytes(body, context):
    try:
        properties = decode(body, context)
    except ProtocolError as error:
        assert error.reason in (0x81, 0x82, 0x94)
        return
    assert decode(encode_properties(properties), context) == properties
