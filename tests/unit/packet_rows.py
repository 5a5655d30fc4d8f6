"""One row of the table of named packets, and the ways to write its bytes. Hexadecimal bytes may hold spaces."""

from dataclasses import dataclass

from broker.mqtt.packets import Packet
from broker.mqtt.reasons import Reason

FORBIDDEN = Reason.PROTOCOL_ERROR


@dataclass(frozen=True)
class Row:
    """One packet: a good one has `packet`, a bad one `refused`."""

    name: str
    version: int
    hex: str
    packet: Packet | None = None
    refused: Reason | None = None
    canonical: bool = True

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.hex)


def text(value: str) -> str:
    """The hexadecimal form of a string with its length."""
    data = value.encode()
    return len(data).to_bytes(2, "big").hex() + data.hex()


def framed(first_byte: int, body_hex: str) -> str:
    """A body of less than 128 bytes behind its fixed header."""
    return f"{first_byte:02x}" + sized(body_hex)


def sized(body_hex: str) -> str:
    """Less than 128 bytes behind their length."""
    body = bytes.fromhex(body_hex)
    assert len(body) < 128
    return f"{len(body):02x}" + body.hex()


def good(name: str, version: int, hex_bytes: str, packet: Packet, canonical: bool = True) -> Row:
    return Row(name, version, hex_bytes, packet=packet, canonical=canonical)


def bad(name: str, version: int, hex_bytes: str, refused: Reason = Reason.MALFORMED_PACKET) -> Row:
    return Row(name, version, hex_bytes, refused=refused)
