"""MQTT packets in hexadecimal, written out by the specifications' figures and by nothing of ours.

Every function returns digits without spaces, to be joined, said and compared (`spaced`). `version` is the protocol
level, 4 or 5; properties are given encoded and without their length. What a test must see in full it writes itself.
"""

# What a CONNACK says of this broker by default: the one place to change when it learns more.
CAPABILITIES = ""


def spaced(hex_bytes: str) -> str:
    """The form in which bytes are compared: two digits and a space."""
    return bytes.fromhex(hex_bytes).hex(" ")


def varint(value: int) -> str:
    """A variable byte integer in its shortest form."""
    digits = b""
    while value >= 128:
        digits += bytes([value & 127 | 128])
        value >>= 7
    return (digits + bytes([value])).hex()


def size(hex_bytes: str) -> int:
    return len(bytes.fromhex(hex_bytes))


def text(value: str | bytes) -> str:
    """A string or binary data, with its length of two bytes."""
    data = value.encode() if isinstance(value, str) else value
    return f"{len(data):04x}{data.hex()}"


def packet(first_byte: str, *body: str) -> str:
    """A packet of any body: its first byte, the remaining length, the body."""
    joined = "".join(body)
    return first_byte + varint(size(joined)) + joined.replace(" ", "")


def properties_of(version: int, properties: str) -> str:
    """Properties with their length where the version has them."""
    return varint(size(properties)) + properties if version == 5 else ""


def has_only_a_reason_string(packet: bytes, at: int) -> bool:
    """Whether the properties that begin there, and end the packet, are none or a Reason String of the server."""
    if packet[at] != len(packet) - at - 1:
        return False
    return packet[at] == 0 or (
        packet[at + 1] == 0x1F and int.from_bytes(packet[at + 2 : at + 4], "big") == packet[at] - 3
    )


def connect(
    version: int = 4,
    name: str | bytes = "c",
    clean: bool = True,
    *,
    keep_alive_s: int = 0,
    session_s: int = 0,
    properties: str = "",
    will: tuple[str, str | bytes] | None = None,
    will_qos: int = 0,
    will_retain: bool = False,
    will_properties: str = "",
    user: str | bytes | None = None,
    password: str | bytes | None = None,
    flags: int | None = None,
) -> str:
    """A CONNECT. `session_s` is the Session Expiry Interval; `flags` in place of those that belong to the rest."""
    if session_s and version == 5:
        properties = f"11{session_s:08x}" + properties
    if flags is None:
        flags = 0x02 if clean else 0
        flags |= (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
        if will is not None:
            flags |= 0x04 | will_qos << 3 | (0x20 if will_retain else 0)
    body = text("MQTT") + f"{version:02x}{flags:02x}{keep_alive_s:04x}" + properties_of(version, properties)
    body += text(name)
    if will is not None:
        body += properties_of(version, will_properties) + text(will[0]) + text(will[1])
    for field in (user, password):
        if field is not None:
            body += text(field)
    return packet("10", body)


def connack(version: int, present: int = 0, more: str = "") -> str:
    """The CONNACK of success, spaced; `more` are properties after the usual ones."""
    if version == 4:
        return spaced(f"2002 {present:02x} 00")
    return spaced(packet("20", f"{present:02x}00", properties_of(5, CAPABILITIES + more)))


def publish(
    version: int,
    topic: str | bytes,
    payload: str | bytes = "x",
    qos: int = 0,
    packet_id: int = 1,
    *,
    dup: bool = False,
    retain: bool = False,
    properties: str = "",
) -> str:
    """A PUBLISH; the packet id is there from QoS 1 on."""
    data = payload.encode() if isinstance(payload, str) else payload
    first_byte = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    return packet(
        f"{first_byte:02x}",
        text(topic),
        f"{packet_id:04x}" if qos else "",
        properties_of(version, properties),
        data.hex(),
    )


def subscribe(version: int, packet_id: int, *filters: tuple[str | bytes, int], properties: str = "") -> str:
    """A SUBSCRIBE of filters, each with its options byte (3.1.1: the QoS)."""
    body = "".join(text(topic_filter) + f"{options:02x}" for topic_filter, options in filters)
    return packet("82", f"{packet_id:04x}", properties_of(version, properties), body)


def suback(version: int, packet_id: int, reasons: str) -> str:
    """The SUBACK with these reasons and no properties."""
    return packet("90", f"{packet_id:04x}", properties_of(version, ""), reasons)


def unsubscribe(version: int, packet_id: int, *filters: str | bytes, properties: str = "") -> str:
    return packet("a2", f"{packet_id:04x}", properties_of(version, properties), *(text(name) for name in filters))


def unsuback(version: int, packet_id: int, reasons: str) -> str:
    """The UNSUBACK with these reasons (5.0) and no properties."""
    return packet("b0", f"{packet_id:04x}", properties_of(version, ""), reasons if version == 5 else "")
