"""Epochs: which of several homes of one client id is the newest.

Owns their order and their packing. It knows nothing of who raises one.

An epoch is (counter, stamp, store_id): each registration takes a counter above that of the highest epoch it heard of.
Two that heard of the same one, in two halves of a divided cluster, have the same counter; then the later stamp of the
hybrid logical clock decides, then the store_id. So any two nodes that know of the same epochs choose the same home.
"""

from typing import Final, NamedTuple

from broker.core.message import ORIGIN_BYTES
from cluster.wire import Reader, pack_u64


class Epoch(NamedTuple):
    """One registration of a client id; `store_id` is its home's. Compares as it orders."""

    counter: int
    stamp: int
    store_id: bytes


# Below every other: the client id has no home that is known.
NO_EPOCH: Final = Epoch(0, 0, bytes(ORIGIN_BYTES))


def pack_epoch(epoch: Epoch) -> bytes:
    """Pack an epoch: u64 counter, u64 stamp, 16 bytes store_id."""
    return pack_u64(epoch.counter) + pack_u64(epoch.stamp) + epoch.store_id


def read_epoch(reader: Reader) -> Epoch:
    """Read what `pack_epoch` packed."""
    counter = reader.number()
    stamp = reader.u64()
    return Epoch(counter, stamp, reader.take(ORIGIN_BYTES))
