"""Bytes to packets.

Decoding is faithful: everything that the specification lets a peer write is read, in either direction (but for topics
with code points that it disallows), and whether this broker serves it is for the connection to say. Decoding any bytes
raises nothing but `ProtocolError`, and its reason is one that CONNACK (for CONNECT) or DISCONNECT (for all others) may
carry.
"""

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from broker.mqtt.framing import read_binary, read_string, read_u8, read_u16
from broker.mqtt.packets import (
    MQTT_3_1,
    MQTT_3_1_1,
    MQTT_5_0,
    PACKET_REASONS,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
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
from broker.mqtt.properties import (
    NO_PROPERTIES,
    PUBLISH_CONTEXT,
    WILL_CONTEXT,
    Properties,
    Property,
    decode_properties,
)
from broker.mqtt.reasons import (
    CONNACK_REASONS,
    ProtocolError,
    Reason,
    forbidden,
    malformed,
)
from broker.mqtt.topics import SHARE_PREFIX, check_characters, check_filter, check_name

# The lower four bits that the first byte of each type must have [MQTT-2.1.3-1]; PUBLISH has its own flags there.
_FLAGS: Final[tuple[int, ...]] = (0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0, 0)

# What 3.1 has besides: the duplicate flag of a PUBREL, SUBSCRIBE or UNSUBSCRIBE that is sent again.
_FLAGS_AGAIN_3_1: Final = 0x0A

_PROTOCOL_NAME: Final = b"MQTT"
_PROTOCOL_NAME_3_1: Final = b"MQIsdp"
_BRIDGE_BIT: Final = 0x80

_PUBACK: Final = 4
_PUBREC: Final = 5
_PUBREL: Final = 6
_PUBCOMP: Final = 7


def decode(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    """The packet with the body buf[start:end], which is all there. `version` is 3, 4 or 5; 0 will do for CONNECT."""
    assert start <= end <= len(buf)
    packet_type: i64 = first_byte >> 4
    if packet_type != PUBLISH_CONTEXT:
        # [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1] [MQTT-3.14.1-1] [MQTT-3.15.1-1]
        # [MQTT311-2.2.2-2] [MQTT311-3.6.1-1] [MQTT311-3.8.1-1] [MQTT311-3.10.1-1] [MQTT311-3.14.1-1]
        _check_flags(first_byte, version)
    return _DECODERS[packet_type](buf, first_byte, start, end, version)


def _check_flags(first_byte: i64, version: i64) -> None:
    flags: i64 = first_byte & 15
    expected: i64 = _FLAGS[first_byte >> 4]
    if flags != expected and not (version == MQTT_3_1 and expected == 2 and flags == _FLAGS_AGAIN_3_1):
        raise malformed("reserved bits of the first byte are wrong")


def decode_publish(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Publish:
    """A PUBLISH. Its topic is a good topic name, or empty in 5.0 with a topic alias."""
    at: i64 = start + 2
    if at > end:
        raise malformed("packet ends before the topic name")  # [MQTT-3.3.2-1] [MQTT311-3.3.2-1]
    high: i64 = buf[start]
    low: i64 = buf[start + 1]
    pos: i64 = at + (high << 8 | low)
    if pos > end:
        raise malformed("packet ends inside the topic name")
    topic = buf[at:pos]
    qos: i64 = first_byte >> 1 & 3
    packet_id: i64 = 0
    if qos:
        if qos == 3:
            raise malformed("QoS 3")  # [MQTT-3.3.1-4] [MQTT311-3.3.1-4]
        packet_id = _packet_id(buf, pos, end)
        pos += 2
    elif first_byte & 8:
        raise malformed("duplicate flag with QoS 0")  # [MQTT-3.3.1-2] [MQTT311-3.3.1-2]
    properties = NO_PROPERTIES
    if version >= MQTT_5_0:
        if pos < end and buf[pos] == 0:
            pos += 1
        else:
            properties, pos = decode_properties(buf, pos, end, PUBLISH_CONTEXT)
        if not topic:
            if Property.TOPIC_ALIAS not in properties:
                raise forbidden("neither topic name nor topic alias")
        else:
            check_name(topic)
    else:
        check_name(topic)
    return Publish(topic, buf[pos:end], qos, first_byte & 1 != 0, first_byte & 8 != 0, packet_id, properties)


def decode_ack(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> tuple[i64, i64]:
    """(packet identifier, reason) of a PUBACK, PUBREC, PUBREL or PUBCOMP: what a session asks of one.

    All is checked as `decode` does, properties too; they are forgotten, and no packet is made.
    """
    packet_type: i64 = first_byte >> 4
    assert _PUBACK <= packet_type <= _PUBCOMP
    _check_flags(first_byte, version)
    packet_id = _packet_id(buf, start, end)
    if end - start == 2:
        return packet_id, 0
    reason, _ = _decode_reason(buf, start + 2, end, version, packet_type)
    return packet_id, reason


def _decode_puback(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    reason, properties = _decode_reason(buf, start + 2, end, version, _PUBACK)
    return Puback(packet_id, reason, properties)


def _decode_pubrec(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    reason, properties = _decode_reason(buf, start + 2, end, version, _PUBREC)
    return Pubrec(packet_id, reason, properties)


def _decode_pubrel(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    reason, properties = _decode_reason(buf, start + 2, end, version, _PUBREL)
    return Pubrel(packet_id, reason, properties)


def _decode_pubcomp(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    reason, properties = _decode_reason(buf, start + 2, end, version, _PUBCOMP)
    return Pubcomp(packet_id, reason, properties)


def _packet_id(buf: bytes, pos: i64, end: i64) -> i64:
    """The two bytes of a packet identifier, which is never 0 [MQTT-2.2.1-3] [MQTT311-2.3.1-1]."""
    if pos + 2 > end:
        raise malformed("packet ends before its packet identifier")
    high: i64 = buf[pos]
    low: i64 = buf[pos + 1]
    if high == 0 and low == 0:
        raise forbidden("packet identifier 0")
    return high << 8 | low


def _decode_reason(buf: bytes, pos: i64, end: i64, version: i64, packet_type: i64) -> tuple[int, Properties]:
    """The rest of a packet that ends with an optional reason and optional properties: neither is in 3.1.1."""
    if pos == end:
        return 0, NO_PROPERTIES
    if version < MQTT_5_0:
        raise malformed("bytes after the end of the packet")
    reason: int = buf[pos]
    pos += 1
    if reason not in PACKET_REASONS[packet_type]:
        raise forbidden("reason code that this packet can't have")
    if pos == end:
        return reason, NO_PROPERTIES
    properties, pos = decode_properties(buf, pos, end, packet_type)
    _check_end(pos, end)
    return reason, properties


def _check_end(pos: i64, end: i64) -> None:
    if pos != end:
        raise malformed("bytes after the end of the packet")


def _decode_connect(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    """CONNECT: protocol name, level, flags, keep alive, properties, then the payload that the flags announce.

    A field that is announced and absent, or the reverse, makes the packet too short or too long: the client id
    [MQTT-3.1.3-3] [MQTT311-3.1.3-3], a will [MQTT-3.1.2-9] [MQTT311-3.1.2-9], a user name [MQTT-3.1.2-16]
    [MQTT-3.1.2-17] [MQTT311-3.1.2-18] [MQTT311-3.1.2-19] and a password [MQTT-3.1.2-18] [MQTT-3.1.2-19]
    [MQTT311-3.1.2-20] [MQTT311-3.1.2-21]. Whatever is wrong, the connection closes [MQTT-3.1.4-1] [MQTT311-3.1.4-1].
    """
    level, bridge, pos = _decode_level(buf, start, end)
    flags, pos = read_u8(buf, pos, end)
    _check_connect_flags(flags, level)
    keep_alive_s, pos = read_u16(buf, pos, end)
    properties = NO_PROPERTIES
    if level == MQTT_5_0:
        properties, pos = decode_properties(buf, pos, end, PacketType.CONNECT)
        if Property.AUTHENTICATION_DATA in properties and Property.AUTHENTICATION_METHOD not in properties:
            raise forbidden("authentication data without a method")
    # [MQTT-3.1.3-1] [MQTT311-3.1.3-1] The order of the fields.
    client_id, pos = read_string(buf, pos, end)  # [MQTT-3.1.3-4] [MQTT311-3.1.3-4]
    will: Will | None = None
    if flags & 0x04:
        will, pos = _decode_will(buf, pos, end, flags, level)
    user_name: str | None = None
    # In 3.1 the packet's length goes before the flags: what they announce may be missing at its end.
    if flags & 0x80 and not (level == MQTT_3_1 and pos == end):
        user_name, pos = read_string(buf, pos, end)  # [MQTT-3.1.3-12] [MQTT311-3.1.3-11]
    password: bytes | None = None
    if flags & 0x40 and not (level == MQTT_3_1 and pos == end):
        password, pos = read_binary(buf, pos, end)
    _check_end(pos, end)
    return Connect(level, client_id, flags & 0x02 != 0, keep_alive_s, user_name, password, will, properties, bridge)


def _decode_level(buf: bytes, pos: i64, end: i64) -> tuple[i64, bool, i64]:
    """Protocol name and level: (level, whether the client is a bridge, the position after them)."""
    name, pos = read_binary(buf, pos, end)
    level, pos = read_u8(buf, pos, end)
    # [MQTT311-7.0.0-2] An extension that no client has to know.
    bridge = level in (MQTT_3_1 | _BRIDGE_BIT, MQTT_3_1_1 | _BRIDGE_BIT)
    if bridge:
        level &= ~_BRIDGE_BIT
    if (name == _PROTOCOL_NAME and level in (MQTT_3_1_1, MQTT_5_0)) or (
        name == _PROTOCOL_NAME_3_1 and level == MQTT_3_1
    ):
        return level, bridge, pos
    # [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT311-3.1.2-1] The same word for an unknown name, so that its sender learns what
    # listens here.
    raise ProtocolError(Reason.UNSUPPORTED_PROTOCOL_VERSION, "only MQTT 3.1, 3.1.1 and 5.0 are served")


def _check_connect_flags(flags: i64, level: i64) -> None:
    if flags & 0x01 and level > MQTT_3_1:
        raise malformed("reserved connect flag is set")  # [MQTT-3.1.2-3] [MQTT311-3.1.2-3]; 3.1 disregards it.
    if not flags & 0x04:
        if flags & 0x38 and level > MQTT_3_1:
            # [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT311-3.1.2-11] [MQTT311-3.1.2-13] [MQTT311-3.1.2-15]; as above.
            raise malformed("will QoS or will retain without a will")
    elif flags & 0x18 == 0x18:
        raise malformed("will with QoS 3")  # [MQTT-3.1.2-12] [MQTT311-3.1.2-14]
    if level < MQTT_5_0 and flags & 0xC0 == 0x40:
        raise malformed("password without a user name")  # [MQTT311-3.1.2-22]; 5.0 allows it.


def _decode_will(buf: bytes, pos: i64, end: i64, flags: i64, level: i64) -> tuple[Will, i64]:
    properties = NO_PROPERTIES
    if level == MQTT_5_0:
        properties, pos = decode_properties(buf, pos, end, WILL_CONTEXT)
    topic, pos = read_binary(buf, pos, end)
    check_name(topic)  # [MQTT-3.1.3-11] [MQTT311-3.1.3-10]
    payload, pos = read_binary(buf, pos, end)
    return Will(topic, payload, flags >> 3 & 3, flags & 0x20 != 0, properties), pos


def _decode_connack(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    flags, pos = read_u8(buf, start, end)
    reason, pos = read_u8(buf, pos, end)
    if version == MQTT_3_1:
        flags = 0  # A reserved byte.
    if flags > 1:
        raise malformed("reserved bits of the connect acknowledge flags are set")  # [MQTT-3.2.2-1]
    properties = NO_PROPERTIES
    if version >= MQTT_5_0:
        if reason not in PACKET_REASONS[PacketType.CONNACK]:
            raise forbidden("reason code that this packet can't have")
        properties, pos = decode_properties(buf, pos, end, PacketType.CONNACK)
    elif reason < len(CONNACK_REASONS):
        reason = CONNACK_REASONS[reason]
    else:
        raise forbidden("reserved return code")
    _check_end(pos, end)
    if flags and reason:
        raise forbidden("session present in a refusal")  # [MQTT-3.2.2-6]
    return Connack(flags == 1, reason, properties)


def _decode_subscribe(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    properties, pos = _decode_request_properties(buf, start + 2, end, version, PacketType.SUBSCRIBE)
    filters: list[SubscriptionRequest] = []
    while pos < end:
        topic_filter, pos = _read_filter(buf, pos, end)  # [MQTT-3.8.3-1] [MQTT311-3.8.3-1]
        options, pos = read_u8(buf, pos, end)
        _check_subscription_options(topic_filter, options, version)
        filters.append(
            SubscriptionRequest(topic_filter, options & 3, options & 4 != 0, options & 8 != 0, options >> 4 & 3)
        )
    if not filters:
        raise forbidden("SUBSCRIBE without a topic filter")  # [MQTT-3.8.3-2] [MQTT311-3.8.3-3]
    return Subscribe(packet_id, tuple(filters), properties)


def _read_filter(buf: bytes, pos: i64, end: i64) -> tuple[bytes, i64]:
    topic_filter, pos = read_binary(buf, pos, end)
    check_filter(topic_filter)
    check_characters(topic_filter)
    return topic_filter, pos


def _check_subscription_options(topic_filter: bytes, options: i64, version: i64) -> None:
    reserved: i64 = 0xC0 if version >= MQTT_5_0 else 0xFC
    if options & reserved:
        raise malformed("reserved subscription options are set")  # [MQTT-3.8.3-5] [MQTT311-3-8.3-4]
    if options & 0x03 == 0x03:
        raise forbidden("subscription with QoS 3")
    if options & 0x30 == 0x30:
        raise forbidden("retain handling 3")
    if options & 0x04 and topic_filter.startswith(SHARE_PREFIX):
        raise forbidden("no local on a shared subscription")  # [MQTT-3.8.3-4]


def _decode_request_properties(
    buf: bytes, pos: i64, end: i64, version: i64, packet_type: i64
) -> tuple[Properties, i64]:
    """Properties that 5.0 always has and 3.1.1 never."""
    if version < MQTT_5_0:
        return NO_PROPERTIES, pos
    return decode_properties(buf, pos, end, packet_type)


def _decode_suback(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    properties, pos = _decode_request_properties(buf, start + 2, end, version, PacketType.SUBACK)
    reasons = tuple(buf[pos:end])
    if not reasons:
        raise forbidden("SUBACK without a reason code")
    for reason in reasons:
        if reason not in PACKET_REASONS[PacketType.SUBACK] or (version < MQTT_5_0 and reason > 0x80):
            raise forbidden("reason code that this packet can't have")  # [MQTT-3.9.3-2]
    return Suback(packet_id, reasons, properties)


def _decode_unsubscribe(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    properties, pos = _decode_request_properties(buf, start + 2, end, version, PacketType.UNSUBSCRIBE)
    filters: list[bytes] = []
    while pos < end:
        topic_filter, pos = _read_filter(buf, pos, end)  # [MQTT-3.10.3-1] [MQTT311-3.10.3-1]
        filters.append(topic_filter)
    if not filters:
        raise forbidden("UNSUBSCRIBE without a topic filter")  # [MQTT-3.10.3-2] [MQTT311-3.10.3-2]
    return Unsubscribe(packet_id, tuple(filters), properties)


def _decode_unsuback(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    packet_id = _packet_id(buf, start, end)
    if version < MQTT_5_0:
        _check_end(start + 2, end)
        return Unsuback(packet_id, (), NO_PROPERTIES)
    properties, pos = decode_properties(buf, start + 2, end, PacketType.UNSUBACK)
    reasons = tuple(buf[pos:end])
    if not reasons:
        raise forbidden("UNSUBACK without a reason code")
    for reason in reasons:
        if reason not in PACKET_REASONS[PacketType.UNSUBACK]:
            raise forbidden("reason code that this packet can't have")
    return Unsuback(packet_id, reasons, properties)


def _decode_pingreq(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    _check_end(start, end)
    return _PINGREQ


def _decode_pingresp(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    _check_end(start, end)
    return _PINGRESP


def _decode_disconnect(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    reason, properties = _decode_reason(buf, start, end, version, PacketType.DISCONNECT)
    return Disconnect(reason, properties)


def _decode_auth(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    if version < MQTT_5_0:
        raise malformed("AUTH before MQTT 5.0")
    if end - start == 1:
        raise malformed("AUTH with a reason code and no property length")  # Only both together may be left out.
    reason, properties = _decode_reason(buf, start, end, version, PacketType.AUTH)
    if (reason or properties) and Property.AUTHENTICATION_METHOD not in properties:
        raise forbidden("AUTH without an authentication method")
    return Auth(reason, properties)


def _decode_reserved(buf: bytes, first_byte: i64, start: i64, end: i64, version: i64) -> Packet:
    raise malformed("packet type 0")


_PINGREQ: Final = Pingreq()
_PINGRESP: Final = Pingresp()

# By packet type.
_DECODERS: Final[tuple[Callable[[bytes, i64, i64, i64, i64], Packet], ...]] = (
    _decode_reserved,
    _decode_connect,
    _decode_connack,
    decode_publish,
    _decode_puback,
    _decode_pubrec,
    _decode_pubrel,
    _decode_pubcomp,
    _decode_subscribe,
    _decode_suback,
    _decode_unsubscribe,
    _decode_unsuback,
    _decode_pingreq,
    _decode_pingresp,
    _decode_disconnect,
    _decode_auth,
)
