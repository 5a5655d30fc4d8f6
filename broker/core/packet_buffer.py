"""Bytes of a client that can't be worked off yet: of a packet that is not whole, or that come before their time.

It owns them and nothing else; what a packet is, and when the time has come, its user knows.
"""

from typing import final


@final
class PacketBuffer:
    """Pieces as they came, joined once; `needed_bytes` are those of the whole packet, 0 when not known."""

    __slots__ = ("_chunks", "_needed_bytes", "_size")

    def __init__(self, data: bytes, needed_bytes: int) -> None:
        self._chunks = [data]
        self._needed_bytes = needed_bytes
        self._size: int = len(data)

    def add(self, data: bytes) -> bool:
        """Keep one more piece; true when there is enough to look at again."""
        self._chunks.append(data)
        self._size += len(data)
        return self._size >= self._needed_bytes

    def joined(self) -> bytes:
        """Return all of it."""
        return b"".join(self._chunks)
