"""Packets to bytes.

Encoding is told only what our own code made: a packet that can't be written is an assertion. What 3.1.1 has no words
for (properties, most reasons, subscription options) is left out.
"""

from collections.abc import Callable
from typing import Any, Final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.mqtt import framing
from broker.mqtt.packets import (
    MQTT_3_1,
    MQTT_5_0,
    PACKET_REASONS,
    Acknowledgement,
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
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import (
    Properties,
    encode_properties,
)
from broker.mqtt.reasons import (
    connack_return_code,
)

# Up to here writing the payload through the growing buffer is cheaper than one more bytes object.
PAYLOAD_BYTES_COPIED_TWICE_MAX: Final = 1024

_PUBACK: Final = 4
_PUBREC: Final = 5
_PUBREL: Final = 6
_PUBCOMP: Final = 7

_PROTOCOL_NAME: Final = b"\x00\x04MQTT"
_PROTOCOL_NAME_3_1: Final = b"\x00\x06MQIsdp"
_BRIDGE_BIT: Final = 0x80


def encode(packet: Packet, version: int) -> bytes:
    """The bytes of a packet for a peer that speaks `version` (3, 4 or 5). What 3.1.1 can't say is left out."""
    return _ENCODERS[type(packet)](packet, version)


def encode_publish(
    topic: bytes,
    payload: bytes,
    qos: i64,
    retain: bool,
    dup: bool,
    packet_id: i64,
    properties: bytes,
    version: i64,
) -> bytes:
    """A PUBLISH; `properties` are encoded without their length, unused in 3.1.1; `packet_id` is for QoS 1 and 2."""
    writer = BytesWriter()
    _write_publish_start(writer, topic, len(payload), qos, retain, dup, properties, version)
    if qos:  # [MQTT-2.2.1-2] [MQTT311-2.3.1-5]
        assert packet_id > 0
        framing.write_u16(writer, packet_id)
    if version >= MQTT_5_0:
        _write_encoded_properties(writer, properties)
    if len(payload) > PAYLOAD_BYTES_COPIED_TWICE_MAX:
        return writer.getvalue() + payload
    writer.write(payload)
    return writer.getvalue()


def encode_publish_parts(
    topic: bytes, payload: bytes, qos: i64, retain: bool, dup: bool, properties: bytes, version: i64
) -> tuple[bytes, bytes]:
    """A PUBLISH in two parts: all before and all after the packet identifier (two bytes, only when `qos` isn't 0)."""
    head = BytesWriter()
    _write_publish_start(head, topic, len(payload), qos, retain, dup, properties, version)
    if version < MQTT_5_0:
        return head.getvalue(), payload
    if not properties:
        return head.getvalue(), b"\0" + payload
    middle = BytesWriter()
    _write_encoded_properties(middle, properties)
    return head.getvalue(), middle.getvalue() + payload


def _write_publish_start(
    writer: BytesWriter,
    topic: bytes,
    payload_bytes: i64,
    qos: i64,
    retain: bool,
    dup: bool,
    properties: bytes,
    version: i64,
) -> None:
    """Append what comes before a PUBLISH's packet identifier."""
    topic_bytes: i64 = len(topic)
    length: i64 = 2 + topic_bytes + payload_bytes
    if qos:
        length += 2
    if version >= MQTT_5_0:
        properties_bytes: i64 = len(properties)
        length += framing.varint_bytes(properties_bytes) + properties_bytes
    first_byte: i64 = 0x30 | qos << 1
    if retain:
        first_byte |= 1
    if dup:
        first_byte |= 8
    framing.write_u8(writer, first_byte)
    framing.write_varint(writer, length)
    framing.write_u16(writer, topic_bytes)
    writer.write(topic)


def encode_ack(packet_type: i64, packet_id: i64, reason: i64, properties: bytes, version: i64) -> bytes:
    """A PUBACK, PUBREC, PUBREL or PUBCOMP; `properties` are encoded without their length. 3.1.1 can't say a failure."""
    writer = BytesWriter()
    # [MQTT-3.6.1-1] [MQTT311-3.6.1-1] [MQTT311-2.2.2-1] Reserved bits.
    framing.write_u8(writer, packet_type << 4 | (2 if packet_type == _PUBREL else 0))
    if version < MQTT_5_0 or (reason == 0 and not properties):
        assert reason < 0x80
        framing.write_u8(writer, 2)
        framing.write_u16(writer, packet_id)
        return writer.getvalue()
    # [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
    assert reason in PACKET_REASONS[packet_type]
    if not properties:
        framing.write_u8(writer, 3)
        framing.write_u16(writer, packet_id)
        framing.write_u8(writer, reason)
        return writer.getvalue()
    properties_bytes: i64 = len(properties)
    framing.write_varint(writer, 3 + framing.varint_bytes(properties_bytes) + properties_bytes)
    framing.write_u16(writer, packet_id)
    framing.write_u8(writer, reason)
    _write_encoded_properties(writer, properties)
    return writer.getvalue()


def _finish(first_byte: i64, body: BytesWriter) -> bytes:
    """The fixed header in front of a body."""
    head = BytesWriter()
    framing.write_u8(head, first_byte)
    framing.write_varint(head, len(body))
    return head.getvalue() + body.getvalue()


def _write_properties(writer: BytesWriter, properties: Properties) -> None:
    """Append properties with their length."""
    _write_encoded_properties(writer, encode_properties(properties))


def _write_encoded_properties(writer: BytesWriter, properties: bytes) -> None:
    if not properties:
        framing.write_u8(writer, 0)
        return
    framing.write_varint(writer, len(properties))
    writer.write(properties)


def _encode_connect(packet: Connect, version: int) -> bytes:
    """CONNECT in its own version, whatever `version` is."""
    will = packet.will
    flags: i64 = 0x02 if packet.clean_start else 0
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
    if packet.user_name is not None:
        flags |= 0x80
    if packet.password is not None:
        flags |= 0x40
    _check_own_connect(packet, flags)
    body = BytesWriter()
    body.write(_PROTOCOL_NAME_3_1 if packet.version == MQTT_3_1 else _PROTOCOL_NAME)
    framing.write_u8(body, packet.version | (_BRIDGE_BIT if packet.bridge else 0))
    framing.write_u8(body, flags)
    framing.write_u16(body, packet.keep_alive_s)
    if packet.version >= MQTT_5_0:
        _write_properties(body, packet.properties)
    framing.write_string(body, packet.client_id)
    if will is not None:
        if packet.version >= MQTT_5_0:
            _write_properties(body, will.properties)
        framing.write_binary(body, will.topic)
        framing.write_binary(body, will.payload)
    if packet.user_name is not None:
        framing.write_string(body, packet.user_name)
    if packet.password is not None:
        framing.write_binary(body, packet.password)
    return _finish(0x10, body)


def _check_own_connect(packet: Connect, flags: i64) -> None:
    assert MQTT_3_1 <= packet.version <= MQTT_5_0
    assert flags & 0x18 != 0x18
    assert packet.version == MQTT_5_0 or flags & 0xC0 != 0x40
    assert packet.version < MQTT_5_0 or not packet.bridge


def _encode_connack(packet: Connack, version: int) -> bytes:
    assert not (packet.session_present and packet.reason)  # [MQTT-3.2.2-6] [MQTT311-3.2.2-4]
    body = BytesWriter()
    # [MQTT-3.2.2-1] 3.1 reserves the byte.
    framing.write_u8(body, 1 if packet.session_present and version > MQTT_3_1 else 0)
    if version >= MQTT_5_0:
        assert packet.reason in PACKET_REASONS[PacketType.CONNACK]  # [MQTT-3.2.2-8]
        framing.write_u8(body, packet.reason)
        _write_properties(body, packet.properties)
    else:
        framing.write_u8(body, connack_return_code(packet.reason))
    return _finish(0x20, body)


def _encode_publish_packet(packet: Publish, version: int) -> bytes:
    return encode_publish(
        packet.topic,
        packet.payload,
        packet.qos,
        packet.retain,
        packet.dup,
        packet.packet_id,
        encode_properties(packet.properties),
        version,
    )


def _encode_puback(packet: Acknowledgement, version: int) -> bytes:
    return encode_ack(_PUBACK, packet.packet_id, packet.reason, encode_properties(packet.properties), version)


def _encode_pubrec(packet: Acknowledgement, version: int) -> bytes:
    return encode_ack(_PUBREC, packet.packet_id, packet.reason, encode_properties(packet.properties), version)


def _encode_pubrel(packet: Acknowledgement, version: int) -> bytes:
    return encode_ack(_PUBREL, packet.packet_id, packet.reason, encode_properties(packet.properties), version)


def _encode_pubcomp(packet: Acknowledgement, version: int) -> bytes:
    return encode_ack(_PUBCOMP, packet.packet_id, packet.reason, encode_properties(packet.properties), version)


def _encode_subscribe(packet: Subscribe, version: int) -> bytes:
    body = BytesWriter()
    framing.write_u16(body, packet.packet_id)
    if version >= MQTT_5_0:
        _write_properties(body, packet.properties)
    for request in packet.filters:
        framing.write_binary(body, request.topic_filter)
        options: i64 = request.qos
        if version >= MQTT_5_0:
            options |= request.retain_handling << 4
            options |= (4 if request.no_local else 0) | (8 if request.retain_as_published else 0)
        framing.write_u8(body, options)
    return _finish(0x82, body)


def _encode_suback(packet: Suback, version: int) -> bytes:
    body = BytesWriter()
    framing.write_u16(body, packet.packet_id)
    if version >= MQTT_5_0:
        _write_properties(body, packet.properties)
    for reason in packet.reasons:
        assert reason in PACKET_REASONS[PacketType.SUBACK]  # [MQTT-3.9.3-2] [MQTT311-3.9.3-2]
        framing.write_u8(body, reason if version >= MQTT_5_0 or reason < 0x80 else 0x80)
    return _finish(0x90, body)


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    body = BytesWriter()
    framing.write_u16(body, packet.packet_id)
    if version >= MQTT_5_0:
        _write_properties(body, packet.properties)
    for topic_filter in packet.filters:
        framing.write_binary(body, topic_filter)
    return _finish(0xA2, body)


def _encode_unsuback(packet: Unsuback, version: int) -> bytes:
    body = BytesWriter()
    framing.write_u16(body, packet.packet_id)
    if version >= MQTT_5_0:
        _write_properties(body, packet.properties)
        for reason in packet.reasons:
            assert reason in PACKET_REASONS[PacketType.UNSUBACK]  # [MQTT-3.11.3-2]
            framing.write_u8(body, reason)
    return _finish(0xB0, body)


def _encode_pingreq(packet: Pingreq, version: int) -> bytes:
    return b"\xc0\x00"


def _encode_pingresp(packet: Pingresp, version: int) -> bytes:
    return b"\xd0\x00"


def _encode_disconnect(packet: Disconnect, version: int) -> bytes:
    body = BytesWriter()
    if version >= MQTT_5_0 and (packet.reason or packet.properties):
        assert packet.reason in PACKET_REASONS[PacketType.DISCONNECT]  # [MQTT-3.14.2-1]
        framing.write_u8(body, packet.reason)
        if packet.properties:
            _write_properties(body, packet.properties)
    return _finish(0xE0, body)


def _encode_auth(packet: Auth, version: int) -> bytes:
    assert version >= MQTT_5_0
    body = BytesWriter()
    if packet.reason or packet.properties:
        assert packet.reason in PACKET_REASONS[PacketType.AUTH]
        framing.write_u8(body, packet.reason)
        _write_properties(body, packet.properties)
    return _finish(0xF0, body)


# Each encoder takes its own class, which only a table of Any can say.
_ENCODERS: Final[dict[type[object], Callable[[Any, int], bytes]]] = {
    Connect: _encode_connect,
    Connack: _encode_connack,
    Publish: _encode_publish_packet,
    Puback: _encode_puback,
    Pubrec: _encode_pubrec,
    Pubrel: _encode_pubrel,
    Pubcomp: _encode_pubcomp,
    Subscribe: _encode_subscribe,
    Suback: _encode_suback,
    Unsubscribe: _encode_unsubscribe,
    Unsuback: _encode_unsuback,
    Pingreq: _encode_pingreq,
    Pingresp: _encode_pingresp,
    Disconnect: _encode_disconnect,
    Auth: _encode_auth,
}
