"""Epochs: which of several homes of one client id is the newest.

Owns their order and their packed form. It knows nothing of who raises one.

An epoch is (counter, stamp, store_id): each registration takes a counter above that of the highest epoch it heard of.
Two that heard of the same one, in two halves of a divided cluster, have the same counter; then the later stamp of the
hybrid clock decides, then the store_id. So any two nodes that know of the same epochs choose the same home. A client
that connects again and again, for hours or months, comes to where counters end; from there on stamps decide alone.

What a node brings along when it joins a cluster overrides nothing there: its sessions get epochs that are before all
others. If it had been a member and was removed, it still counts which homes had a session before it and which after:
such an epoch has the counter of that time in place of its stamp, as which it is earlier than any clock.

Packed, epochs are compared as they are unpacked: where there are very many they stay packed.
"""

import struct
from typing import Final, NamedTuple

# A stamp is UTC milliseconds with so many bits of a logical count below.
STAMP_LOGICAL_BITS: Final = 16
EPOCH_BYTES: Final = 32
# More homes no session has: the places of its deliveries begin with the counter.
COUNTER_MAX: Final = (1 << 24) - 2
_EPOCH: Final = struct.Struct(">QQ16s")


class Epoch(NamedTuple):
    """One registration of a client id; `store_id` is its home's. Compares as it orders."""

    counter: int
    stamp: int
    store_id: bytes


# Below every other: the client id has no home that is known.
NO_EPOCH: Final = Epoch(0, 0, bytes(16))
# What a stored session without an epoch has: it is before all of the same counter that have one.
FIRST_EPOCH: Final = Epoch(1, 0, bytes(16))


def first_epoch(utc_ms: int, store_id: bytes) -> Epoch:
    """Return the epoch of a client id's first session, which began at that time."""
    return Epoch(FIRST_EPOCH.counter, utc_ms << STAMP_LOGICAL_BITS, store_id)


def oldest_epoch(counter: int, store_id: bytes) -> Epoch:
    """Return the epoch of a session that a node brings along, which was its home by this counter there, 0 if never."""
    return Epoch(FIRST_EPOCH.counter, counter, store_id)


def counter_above(counter: int) -> int:
    """Return the counter of an epoch that is to be later than one with this counter."""
    return min(counter + 1, COUNTER_MAX)


def home_counter(epoch: Epoch) -> int:
    """Return by which counter the home of an epoch became that: its places begin with it."""
    if epoch.counter == FIRST_EPOCH.counter and 0 < epoch.stamp <= COUNTER_MAX:
        return epoch.stamp
    return epoch.counter


def pack_epoch(epoch: Epoch) -> bytes:
    """Pack an epoch: u64 counter, u64 stamp, 16 bytes store_id."""
    return _EPOCH.pack(epoch.counter, epoch.stamp, epoch.store_id)


def unpack_epoch(data: bytes, pos: int) -> Epoch:
    """Return the epoch that is packed at data[pos:]; struct.error if it ends too early."""
    counter, stamp, store_id = _EPOCH.unpack_from(data, pos)
    return Epoch(counter, stamp, store_id)
