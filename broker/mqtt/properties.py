"""MQTT 5.0 properties: the table of them, bytes to a dict and back (MQTT 5.0 section 2.2.2).

Grammar: properties = length (varint), then as many bytes of: identifier (one byte in this version), value.
A value's Python type follows from its wire type: integers int, strings str, binary data bytes; the two that may be
repeated are lists: USER_PROPERTY list[tuple[str, str]] everywhere, SUBSCRIPTION_IDENTIFIER list[int] in PUBLISH (in
SUBSCRIBE it is one int).
Nothing here knows what a property means beyond the values that the specification forbids.
"""

from enum import IntEnum
from typing import Final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.mqtt import framing
from broker.mqtt.reasons import ProtocolError, Reason, forbidden, malformed

PropertyValue = int | str | bytes | list[tuple[str, str]] | list[int]
Properties = dict[int, PropertyValue]

# Shared by every packet without properties. Nobody may change it.
NO_PROPERTIES: Final[Properties] = {}


class Property(IntEnum):
    """Every property identifier of MQTT 5.0."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


class WireType(IntEnum):
    """How a property's value is written."""

    BYTE = 0
    TWO_BYTES = 1
    FOUR_BYTES = 2
    VARINT = 3
    STRING = 4
    BINARY = 5
    STRING_PAIR = 6


# A context is the type of the packet that carries the properties; those of a will, inside CONNECT, have the free one.
WILL_CONTEXT: Final = 0
PUBLISH_CONTEXT: Final = 3

_WILL: Final = 1 << 0
_CONNECT: Final = 1 << 1
_CONNACK: Final = 1 << 2
_PUBLISH: Final = 1 << 3
_ACKS: Final = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7
_SUBSCRIBE: Final = 1 << 8
_SUBACK: Final = 1 << 9
_UNSUBSCRIBE: Final = 1 << 10
_UNSUBACK: Final = 1 << 11
_DISCONNECT: Final = 1 << 14
_AUTH: Final = 1 << 15
_MESSAGE: Final = _PUBLISH | _WILL
_ANSWERS: Final = _CONNACK | _ACKS | _SUBACK | _UNSUBACK | _DISCONNECT | _AUTH
_EVERYWHERE: Final = _ANSWERS | _MESSAGE | _CONNECT | _SUBSCRIBE | _UNSUBSCRIBE

_BYTE: Final = 0
_TWO_BYTES: Final = 1
_FOUR_BYTES: Final = 2
_VARINT: Final = 3
_STRING: Final = 4
_BINARY: Final = 5
_STRING_PAIR: Final = 6

_FORWARDED: Final = (
    Property.PAYLOAD_FORMAT_INDICATOR,
    Property.CONTENT_TYPE,
    Property.RESPONSE_TOPIC,
    Property.CORRELATION_DATA,
    Property.USER_PROPERTY,
)

_SUBSCRIPTION_IDENTIFIER: Final = 0x0B
_USER_PROPERTY: Final = 0x26

# Identifier -> (wire type, contexts as bits, least value, greatest value); the range is for integers only.
PROPERTY_TABLE: Final[dict[int, tuple[int, int, int, int]]] = {
    int(Property.PAYLOAD_FORMAT_INDICATOR): (_BYTE, _MESSAGE, 0, 1),
    int(Property.MESSAGE_EXPIRY_INTERVAL): (_FOUR_BYTES, _MESSAGE, 0, 0xFFFF_FFFF),
    int(Property.CONTENT_TYPE): (_STRING, _MESSAGE, 0, 0),
    int(Property.RESPONSE_TOPIC): (_STRING, _MESSAGE, 0, 0),
    int(Property.CORRELATION_DATA): (_BINARY, _MESSAGE, 0, 0),
    int(Property.SUBSCRIPTION_IDENTIFIER): (_VARINT, _PUBLISH | _SUBSCRIBE, 1, framing.VARINT_MAX),
    int(Property.SESSION_EXPIRY_INTERVAL): (_FOUR_BYTES, _CONNECT | _CONNACK | _DISCONNECT, 0, 0xFFFF_FFFF),
    int(Property.ASSIGNED_CLIENT_IDENTIFIER): (_STRING, _CONNACK, 0, 0),
    int(Property.SERVER_KEEP_ALIVE): (_TWO_BYTES, _CONNACK, 0, 0xFFFF),
    int(Property.AUTHENTICATION_METHOD): (_STRING, _CONNECT | _CONNACK | _AUTH, 0, 0),
    int(Property.AUTHENTICATION_DATA): (_BINARY, _CONNECT | _CONNACK | _AUTH, 0, 0),
    int(Property.REQUEST_PROBLEM_INFORMATION): (_BYTE, _CONNECT, 0, 1),
    int(Property.WILL_DELAY_INTERVAL): (_FOUR_BYTES, _WILL, 0, 0xFFFF_FFFF),
    int(Property.REQUEST_RESPONSE_INFORMATION): (_BYTE, _CONNECT, 0, 1),
    int(Property.RESPONSE_INFORMATION): (_STRING, _CONNACK, 0, 0),
    int(Property.SERVER_REFERENCE): (_STRING, _CONNACK | _DISCONNECT, 0, 0),
    int(Property.REASON_STRING): (_STRING, _ANSWERS, 0, 0),
    int(Property.RECEIVE_MAXIMUM): (_TWO_BYTES, _CONNECT | _CONNACK, 1, 0xFFFF),
    int(Property.TOPIC_ALIAS_MAXIMUM): (_TWO_BYTES, _CONNECT | _CONNACK, 0, 0xFFFF),
    int(Property.TOPIC_ALIAS): (_TWO_BYTES, _PUBLISH, 1, 0xFFFF),
    int(Property.MAXIMUM_QOS): (_BYTE, _CONNACK, 0, 1),
    int(Property.RETAIN_AVAILABLE): (_BYTE, _CONNACK, 0, 1),
    int(Property.USER_PROPERTY): (_STRING_PAIR, _EVERYWHERE, 0, 0),
    int(Property.MAXIMUM_PACKET_SIZE): (_FOUR_BYTES, _CONNECT | _CONNACK, 1, 0xFFFF_FFFF),
    int(Property.WILDCARD_SUBSCRIPTION_AVAILABLE): (_BYTE, _CONNACK, 0, 1),
    int(Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE): (_BYTE, _CONNACK, 0, 1),
    int(Property.SHARED_SUBSCRIPTION_AVAILABLE): (_BYTE, _CONNACK, 0, 1),
}


def no_properties() -> Properties:
    """NO_PROPERTIES, as a default factory."""
    return NO_PROPERTIES


def int_property(properties: Properties, identifier: int, default: int) -> int:
    """The value of an integer property, or `default` when it isn't there."""
    value = properties.get(identifier)
    return value if isinstance(value, int) else default


def decode_properties(buf: bytes, pos: i64, end: i64, context: i64) -> tuple[Properties, i64]:
    """Read the length and the properties of a packet whose body ends at `end`: (properties, the position after them).

    `context`: the packet type or WILL_CONTEXT. Raises MALFORMED_PACKET for what can't be read or doesn't belong here,
    PROTOCOL_ERROR for a repeated property or a forbidden value, and TOPIC_ALIAS_INVALID for alias 0.
    """
    length, pos = framing.read_varint(buf, pos, end)
    if length == 0:  # [MQTT-2.2.2-1]
        return NO_PROPERTIES, pos
    stop: i64 = pos + length
    if stop > end:
        raise malformed("properties are longer than their packet")
    properties: Properties = {}
    while pos < stop:
        identifier: int = buf[pos]
        pos += 1
        row = PROPERTY_TABLE.get(identifier)
        if row is None or not row[1] >> context & 1:
            raise malformed("property that doesn't belong in this packet")
        if row[0] == _STRING_PAIR:
            pos = _decode_user_property(buf, pos, stop, properties)
        elif identifier == _SUBSCRIPTION_IDENTIFIER and context == PUBLISH_CONTEXT:
            pos = _decode_subscription_identifier(buf, pos, stop, properties)
        elif identifier in properties:
            raise forbidden("property given more than once")
        elif row[0] == _STRING:
            # [MQTT-3.3.2-13] [MQTT-3.3.2-19]
            text, pos = framing.read_string(buf, pos, stop)
            if identifier == Property.RESPONSE_TOPIC and (not text or "+" in text or "#" in text):
                raise forbidden("response topic is not a topic name")  # [MQTT-3.3.2-14]
            properties[identifier] = text
        elif row[0] == _BINARY:
            properties[identifier], pos = framing.read_binary(buf, pos, stop)
        else:
            properties[identifier], pos = _decode_integer(buf, pos, stop, identifier, row)
    return properties, pos


def _decode_integer(buf: bytes, pos: i64, end: i64, identifier: int, row: tuple[int, int, int, int]) -> tuple[i64, i64]:
    """An integer property's value, found within its range."""
    value: i64 = 0
    if row[0] == _BYTE:
        value, pos = framing.read_u8(buf, pos, end)
    elif row[0] == _TWO_BYTES:
        value, pos = framing.read_u16(buf, pos, end)
    elif row[0] == _FOUR_BYTES:
        value, pos = framing.read_u32(buf, pos, end)
    else:
        value, pos = framing.read_varint(buf, pos, end)
    if value < row[2] or value > row[3]:
        if identifier == Property.TOPIC_ALIAS:
            raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, "topic alias 0")  # [MQTT-3.3.2-8]
        raise forbidden("property with a value that is not allowed")
    return value, pos


def _decode_user_property(buf: bytes, pos: i64, end: i64, properties: Properties) -> i64:
    """Append a name and value to the packet's user properties, in their order [MQTT-1.5.7-1] [MQTT-3.3.2-18]."""
    name, pos = framing.read_string(buf, pos, end)
    value, pos = framing.read_string(buf, pos, end)
    pairs = properties.get(_USER_PROPERTY)
    if pairs is None:
        properties[_USER_PROPERTY] = [(name, value)]
    else:
        assert isinstance(pairs, list)
        pairs.append((name, value))  # type: ignore[arg-type]
    return pos


def _decode_subscription_identifier(buf: bytes, pos: i64, end: i64, properties: Properties) -> i64:
    """Append one subscription identifier to those of a PUBLISH, which has one for each subscription that it matched."""
    value, pos = _decode_integer(buf, pos, end, _SUBSCRIPTION_IDENTIFIER, PROPERTY_TABLE[_SUBSCRIPTION_IDENTIFIER])
    identifiers = properties.get(_SUBSCRIPTION_IDENTIFIER)
    if identifiers is None:
        properties[_SUBSCRIPTION_IDENTIFIER] = [value]
    else:
        assert isinstance(identifiers, list)
        identifiers.append(value)  # type: ignore[arg-type]
    return pos


def encode_properties(properties: Properties) -> bytes:
    """The bytes of the properties, without their length. Values are ours, so a bad one is an assertion."""
    if not properties:
        return b""
    writer = BytesWriter()
    for identifier, value in properties.items():
        wire_type, _, least, greatest = PROPERTY_TABLE[identifier]
        if isinstance(value, int):
            assert least <= value <= greatest
            writer.append(identifier)
            _write_integer(writer, wire_type, value)
        elif isinstance(value, str):
            assert wire_type == _STRING
            writer.append(identifier)
            framing.write_string(writer, value)
        elif isinstance(value, bytes):
            assert wire_type == _BINARY
            writer.append(identifier)
            framing.write_binary(writer, value)
        else:
            for item in value:
                writer.append(identifier)
                if isinstance(item, int):
                    assert wire_type == _VARINT and item > 0
                    framing.write_varint(writer, item)
                else:
                    assert wire_type == _STRING_PAIR
                    framing.write_string(writer, item[0])
                    framing.write_string(writer, item[1])
    return writer.getvalue()


def encode_forwarded(properties: Properties) -> bytes:
    """The bytes of those properties of a PUBLISH or a will that go on to its subscribers, without their length.

    [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-20] go on unaltered; [MQTT-3.1.3-10]
    user properties are one value, in their order.
    """
    forwarded: Properties = {name: properties[name] for name in _FORWARDED if name in properties}
    return encode_properties(forwarded)


def _write_integer(writer: BytesWriter, wire_type: int, value: i64) -> None:
    """Append an integer property's value."""
    if wire_type == _BYTE:
        writer.append(value)
    elif wire_type == _TWO_BYTES:
        framing.write_u16(writer, value)
    elif wire_type == _FOUR_BYTES:
        framing.write_u32(writer, value)
    else:
        assert wire_type == _VARINT
        framing.write_varint(writer, value)
