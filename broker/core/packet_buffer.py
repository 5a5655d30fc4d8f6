"""Bytes of a client that can't be worked off yet: of a packet that is not whole, or that come before their time.

It owns them and nothing else; what a packet is, and when the time has come, its user knows.
"""

from typing import final


@final
class PacketBuffer:
    """Pieces as they came, joined once when they are taken. `size` is the sum of their bytes."""

    __slots__ = ("_chunks", "_needed_bytes", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._needed_bytes: int = 0
        self.size: int = 0

    def hold(self, data: bytes, needed_bytes: int) -> None:
        """Keep a piece; `needed_bytes` are the whole packet's, 0 when not known."""
        if data:
            self._chunks.append(data)
            self.size += len(data)
        self._needed_bytes = needed_bytes

    def add(self, data: bytes) -> bool:
        """Keep one more piece; true when there is enough to look at again."""
        self._chunks.append(data)
        self.size += len(data)
        return self.size >= self._needed_bytes

    def take(self) -> bytes:
        """Return all of it, and be empty."""
        data = b"".join(self._chunks)
        self._chunks = []
        self.size = 0
        return data
