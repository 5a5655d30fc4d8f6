"""Where packets begin and end in a stream, and the wire's data types (MQTT 5.0 sections 1.5 and 2.1.4).

Grammar: packet = first byte (type << 4 | flags), remaining length (varint of 1..4 bytes), body.
Readers take (buf, pos, end), never look at or past `end` (the buffer goes on with other packets) and return the value
and the position after it; bytes that don't fit raise `ProtocolError`. Writers append to a BytesWriter; a value too
large for its field is our own fault: assert.
"""

from typing import Final

from librt.strings import BytesWriter, write_i16_be, write_i32_be
from mypy_extensions import i16, i32, i64, u8

from broker.mqtt.reasons import ProtocolError, Reason, malformed

VARINT_MAX: Final = 268_435_455  # Four bytes of seven bits.
STRING_BYTES_MAX: Final = 65_535  # A two byte length.


def split(buf: bytes, pos: i64, packet_bytes_max: i64) -> tuple[i64, i64]:
    """(body start, packet end) of the packet that begins at `pos`, or (0, 0) while its fixed header is incomplete.

    The end may lie past the buffer: compare it with `len(buf)`. A packet of more than `packet_bytes_max` bytes (0: no
    limit) raises PACKET_TOO_LARGE as soon as its header is there, so that nobody buffers it first.
    """
    size: i64 = len(buf)
    at: i64 = pos + 1
    if at >= size:
        return 0, 0
    octet: i64 = buf[at]
    at += 1
    length: i64 = octet & 0x7F
    shift: i64 = 7
    while octet >= 0x80:
        if shift > 21:
            raise malformed("remaining length of more than four bytes")
        if at >= size:
            return 0, 0
        octet = buf[at]
        at += 1
        if octet == 0:
            raise malformed("remaining length in more bytes than it needs")  # [MQTT-1.5.5-1]
        length |= (octet & 0x7F) << shift
        shift += 7
    end: i64 = at + length
    if packet_bytes_max > 0 and end - pos > packet_bytes_max:
        raise ProtocolError(Reason.PACKET_TOO_LARGE, "packet larger than the limit")
    return at, end


def read_varint(buf: bytes, pos: i64, end: i64) -> tuple[i64, i64]:
    """A variable byte integer, 0..VARINT_MAX, which must be in its shortest form."""
    value: i64 = 0
    shift: i64 = 0
    while shift <= 21:
        if pos >= end:
            raise malformed("packet ends inside a variable byte integer")
        octet: i64 = buf[pos]
        pos += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            if octet == 0 and shift > 0:
                raise malformed("variable byte integer in more bytes than it needs")  # [MQTT-1.5.5-1]
            return value, pos
        shift += 7
    raise malformed("variable byte integer of more than four bytes")


def read_u8(buf: bytes, pos: i64, end: i64) -> tuple[i64, i64]:
    """One byte."""
    if pos >= end:
        raise malformed("packet ends before its last field")
    return buf[pos], pos + 1


def read_u16(buf: bytes, pos: i64, end: i64) -> tuple[i64, i64]:
    """A two byte integer, big-endian."""
    if pos + 2 > end:
        raise malformed("packet ends inside a two byte integer")
    high: i64 = buf[pos]
    low: i64 = buf[pos + 1]
    return high << 8 | low, pos + 2


def read_u32(buf: bytes, pos: i64, end: i64) -> tuple[i64, i64]:
    """A four byte integer, big-endian."""
    if pos + 4 > end:
        raise malformed("packet ends inside a four byte integer")
    value: i64 = 0
    stop: i64 = pos + 4
    while pos < stop:
        octet: i64 = buf[pos]
        value = value << 8 | octet
        pos += 1
    return value, stop


def read_binary(buf: bytes, pos: i64, end: i64) -> tuple[bytes, i64]:
    """Binary data: a two byte length, then as many bytes."""
    length, start = read_u16(buf, pos, end)
    stop: i64 = start + length
    if stop > end:
        raise malformed("packet ends inside a string or binary data")
    return buf[start:stop], stop


def read_string(buf: bytes, pos: i64, end: i64) -> tuple[str, i64]:
    """A UTF-8 encoded string."""
    data, stop = read_binary(buf, pos, end)
    return decode_utf8(data), stop


def decode_utf8(data: bytes) -> str:
    """The text of `data`; MALFORMED_PACKET when it isn't well-formed UTF-8 without U+0000.

    A byte order mark is a character like any other [MQTT-1.5.4-3] [MQTT311-1.5.3-3]; surrogates are ill-formed.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("string is not well-formed UTF-8") from None  # [MQTT-1.5.4-1] [MQTT311-1.5.3-1]
    if "\0" in text:
        raise malformed("string holds U+0000")  # [MQTT-1.5.4-2] [MQTT311-1.5.3-2]
    return text


def is_utf8(payload: bytes) -> bool:
    """Whether a payload is what its payload format indicator 1 says: well-formed UTF-8 (5.0 section 3.3.2.3.2).

    Unlike a string's, a payload's text may hold U+0000.
    """
    if payload.isascii():
        return True
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def write_varint(writer: BytesWriter, value: i64) -> None:
    """Append a variable byte integer in its shortest form [MQTT-1.5.5-1]."""
    assert 0 <= value <= VARINT_MAX
    while value >= 0x80:
        write_u8(writer, value & 0x7F | 0x80)
        value >>= 7
    write_u8(writer, value)


def varint_bytes(value: i64) -> i64:
    """How many bytes `write_varint` appends."""
    if value < 0x80:
        return 1
    if value < 0x4000:
        return 2
    return 3 if value < 0x20_0000 else 4


def write_u8(writer: BytesWriter, value: i64) -> None:
    """Append a byte."""
    assert 0 <= value <= 0xFF
    # Compiled code appends a u8 without a call; an int it would hand to Python.
    writer.append(u8(value))


def write_u16(writer: BytesWriter, value: i64) -> None:
    """Append a two byte integer, big-endian."""
    assert 0 <= value <= 0xFFFF
    # The library writes signed numbers; the wrap-around makes the same bytes.
    write_i16_be(writer, i16(value if value < 0x8000 else value - 0x10000))


def write_u32(writer: BytesWriter, value: i64) -> None:
    """Append a four byte integer, big-endian."""
    assert 0 <= value <= 0xFFFF_FFFF
    write_i32_be(writer, i32(value if value < 0x8000_0000 else value - 0x1_0000_0000))


def write_binary(writer: BytesWriter, data: bytes) -> None:
    """Append binary data with its two byte length."""
    write_u16(writer, len(data))
    writer.write(data)


def write_string(writer: BytesWriter, text: str) -> None:
    """Append a string as UTF-8 with its two byte length."""
    write_binary(writer, text.encode("utf-8"))
