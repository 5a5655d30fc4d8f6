"""Epochs: which of two homes of a client id is the later one.

Every registration of a client id at another node raises the counter; two that raised it at the same time without
hearing of each other differ by the hybrid time in ms and, at last, by the store of the home. So epochs are totally
ordered, and every node agrees on the later one.
"""

import struct
from dataclasses import dataclass
from typing import Final

EPOCH_BYTES: Final = 28
_EPOCH: Final = struct.Struct(">IQ16s")


@dataclass(slots=True, frozen=True)
class Epoch:
    """When a session came to its home: the count of homes, hybrid UTC time in ms, the home's store_id (16 bytes)."""

    counter: int
    hlc: int
    store_id: bytes

    def is_after(self, other: "Epoch") -> bool:
        """Say whether this is later than another."""
        if self.counter != other.counter:
            return self.counter > other.counter
        if self.hlc != other.hlc:
            return self.hlc > other.hlc
        return self.store_id > other.store_id

    def pack(self) -> bytes:
        """Return EPOCH_BYTES; of two epochs the later one's are the greater."""
        return _EPOCH.pack(self.counter, self.hlc, self.store_id)


# What a record without an epoch has: it is before those of all that have one.
FIRST_EPOCH: Final = Epoch(1, 0, bytes(16))


def unpack_epoch(data: bytes, pos: int) -> Epoch:
    """Return the epoch at data[pos:]; struct.error if it ends too early."""
    counter, hlc, store_id = _EPOCH.unpack_from(data, pos)
    return Epoch(counter, hlc, store_id)
