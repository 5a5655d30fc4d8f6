"""The wire: how numbers, text and names lie in what nodes tell each other and in what they store of each other.

Owns their packing and reading, and their bounds: a peer may be another program, and nothing it says is longer, larger
or of another form than is stated here. It knows no frame; `frames` is made of it.

Integers are big-endian; text and bytes16 are a u16 length and as many bytes; a number is a u64, at most NUMBER_MAX:
what is counted on from here. A node name is name@host and an address host:port, as the configuration demands of them:
what they are used for (keys that are admitted, connections, texts) relies on it.
"""

from typing import Final, final

# No counter of ours ever gets near; beyond it, adding to what a peer said might not fit 64 bits any more.
NUMBER_MAX: Final = (1 << 63) - 1

NODE_NAME_BYTES_MAX: Final = 255
# A host name, brackets, a colon and a port.
ADDRESS_BYTES_MAX: Final = 263


class FrameError(Exception):
    """The peer sent what can't be read."""


@final
class Reader:
    """Reads a frame from front to back; a frame that ends too early is a FrameError."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    def take(self, size: int) -> bytes:
        """Read `size` bytes."""
        start = self._position
        if len(self._data) - start < size:
            raise FrameError("short frame")
        self._position = start + size
        return self._data[start : start + size]

    def u8(self) -> int:
        """Read a u8."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read a u16."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read a u32."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read a u64."""
        return int.from_bytes(self.take(8), "big")

    def bytes16(self) -> bytes:
        """Read a u16 length and as many bytes."""
        return self.take(self.u16())

    def text(self) -> str:
        """Read a u16 length and as many bytes of UTF-8."""
        try:
            return self.bytes16().decode()
        except UnicodeDecodeError:
            raise FrameError("text that is not UTF-8") from None

    def number(self) -> int:
        """Read a u64 that something will be added to."""
        value = self.u64()
        if value > NUMBER_MAX:
            raise FrameError(f"{value} is out of range")
        return value

    def node_name(self) -> str:
        """Read a text that is name@host; above all it is never JOIN."""
        name = self.text()
        front, _, host = name.partition("@")
        if not front or not host or len(name.encode()) > NODE_NAME_BYTES_MAX or not name.isprintable() or " " in name:
            raise FrameError(f"{name[:NODE_NAME_BYTES_MAX]!r} is no node name")
        return name

    def address(self) -> str:
        """Read a text that is host:port; whether it can be connected to shows when it is tried."""
        address = self.text()
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or len(address) > ADDRESS_BYTES_MAX or not address.isprintable():
            raise FrameError(f"{address[:ADDRESS_BYTES_MAX]!r} is no address")
        return address

    def rest(self) -> bytes:
        """Read what is left."""
        return self.take(len(self._data) - self._position)

    def end(self) -> None:
        """Refuse anything left."""
        if self._position != len(self._data):
            raise FrameError("frame with something behind its end")


def pack_u16(value: int) -> bytes:
    """Pack a u16."""
    return value.to_bytes(2, "big")


def pack_u32(value: int) -> bytes:
    """Pack a u32."""
    return value.to_bytes(4, "big")


def pack_u64(value: int) -> bytes:
    """Pack a u64."""
    return value.to_bytes(8, "big")


def pack_bytes16(value: bytes) -> bytes:
    """Pack a u16 length and as many bytes."""
    return pack_u16(len(value)) + value


def pack_text(value: str) -> bytes:
    """Pack a u16 length and as many bytes of UTF-8."""
    return pack_bytes16(value.encode())
