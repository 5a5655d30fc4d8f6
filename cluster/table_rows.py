"""Table rows: where the rows of a table lie, in memory or in the store, one's own as well as copies of others'.

Owns the layout of what is stored. It knows nothing of sums or versions: `tables` does.
"""

from collections.abc import Iterator, Sized
from typing import Final, Protocol, final
from zlib import crc32

from broker.core.retained_rows import FAMILY as RETAINED_FAMILY
from broker.core.rows import BUCKETS, ROW_VERSION, Table, bucket_of, row_subject
from broker.core.storage import Storage, WriteBatch
from broker.core.stored_message import check_version, corrupt
from cluster.table_frames import check_row, pack_entry
from cluster.turn import Turn
from cluster.wire import FrameError

KEY_TABLE: Final = b"table/"
# To look a row up is to walk through half of so many.
SLOT_BYTES: Final = 256
# The two of an entry.
_LENGTHS_BYTES: Final = 8


class Rows(Protocol):
    """Where the rows of one table lie."""

    def put(self, bucket: int, row: bytes, value: bytes) -> None:
        """Set a row."""

    def delete(self, bucket: int, row: bytes) -> None:
        """Remove a row."""

    def replace(self, bucket: int, rows: dict[bytes, bytes]) -> list[bytes]:
        """Set all rows of a bucket; return those that went, as far as that is known without reading."""

    def read(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """Return the rows of a bucket, of a table in the store those that are committed."""

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (bucket, row, value) of the whole table, of one in the store as it is committed."""

    def clear(self) -> None:
        """Remove everything."""


@final
class MemoryRows:
    """Rows that need not survive a restart.

    There may be very many, and most are short: objects of each would take several times the bytes that it has. So those
    of a bucket lie packed in slots, as they stand in a frame, each in the slot that its checksum says. A bucket gets
    twice the slots whenever it has more than SLOT_BYTES for each.
    """

    def __init__(self) -> None:
        self._buckets: list[list[bytes]] = [[b""] for _ in range(BUCKETS)]
        self._sizes = [0] * BUCKETS

    def get(self, bucket: int, row: bytes) -> bytes | None:
        """Return the value of a row."""
        slots = self._buckets[bucket]
        slot = slots[_place(row, slots)]
        at, end = _find(slot, row)
        return None if at < 0 else slot[at + _LENGTHS_BYTES + len(row) : end]

    def put(self, bucket: int, row: bytes, value: bytes) -> None:
        """Set a row."""
        self._change(bucket, row, pack_entry(row, value))

    def delete(self, bucket: int, row: bytes) -> None:
        """Remove a row."""
        self._change(bucket, row, b"")

    def replace(self, bucket: int, rows: dict[bytes, bytes]) -> list[bytes]:
        """Set all rows of a bucket; return those that went."""
        gone = [row for row, _ in self.read(bucket) if row not in rows]
        self._buckets[bucket] = [b"".join([pack_entry(row, value) for row, value in rows.items()])]
        self._sizes[bucket] = len(self._buckets[bucket][0])
        self._spread(bucket)
        return gone

    def read(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """Return the rows of a bucket."""
        found = []
        for slot in self._buckets[bucket]:
            at = 0
            while at < len(slot):
                value_at = at + 4 + _u32(slot, at)
                end = value_at + 4 + _u32(slot, value_at)
                found.append((slot[at + 4 : value_at], slot[value_at + 4 : end]))
                at = end
        return found

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (bucket, row, value)."""
        return iter([(bucket, row, value) for bucket in range(BUCKETS) for row, value in self.read(bucket)])

    def clear(self) -> None:
        """Remove everything."""
        self._buckets = [[b""] for _ in range(BUCKETS)]
        self._sizes = [0] * BUCKETS

    def _change(self, bucket: int, row: bytes, entry: bytes) -> None:
        """Put an entry in the place of a row's, if it has one, or at the end."""
        slots = self._buckets[bucket]
        place = _place(row, slots)
        slot = slots[place]
        at, end = _find(slot, row)
        changed = slot + entry if at < 0 else slot[:at] + entry + slot[end:]
        slots[place] = changed
        self._sizes[bucket] += len(changed) - len(slot)
        if self._sizes[bucket] > len(slots) * SLOT_BYTES:
            self._spread(bucket)

    def _spread(self, bucket: int) -> None:
        """Make as many slots as the rows of a bucket need."""
        rows = self.read(bucket)
        count = 1
        while self._sizes[bucket] > count * SLOT_BYTES:
            count *= 2
        parts: list[list[bytes]] = [[] for _ in range(count)]
        for row, value in rows:
            parts[_place(row, parts)].append(pack_entry(row, value))
        self._buckets[bucket] = [b"".join(part) for part in parts]


@final
class StoredRows:
    """Rows in the store: registry "table/", store_id of the owner, table u8, bucket u16, row -> version u8, value.

    Those of RETAINED have the family `retained` to themselves: there a key begins with the store_id, and the bucket
    follows. Writes go into the turn's batch, of rows that are `told` only into whoever's they are; reads see what is
    committed. What is found by a scan, and of one subject, is held to the same bounds as what a peer says: StorageError
    if a row is none, or is of a newer program. A bucket is read as it is: whoever gets it looks at it.
    """

    def __init__(self, storage: Storage, turn: Turn, store_id: bytes, table: int, told: bool = False) -> None:
        self._storage = storage
        self._turn = turn
        self._told = told
        self._family = "registry"
        self._prefix = KEY_TABLE + store_id + bytes((table,))
        if table == Table.RETAINED:
            self._family = RETAINED_FAMILY
            self._prefix = store_id

    def put(self, bucket: int, row: bytes, value: bytes) -> None:
        """Set a row."""
        if not self._told:
            self._turn.writes.put(self._family, self._key(bucket) + row, bytes((ROW_VERSION,)) + value)

    def delete(self, bucket: int, row: bytes) -> None:
        """Remove a row."""
        if not self._told:
            self._turn.writes.delete(self._family, self._key(bucket) + row)

    def replace(self, bucket: int, rows: dict[bytes, bytes]) -> list[bytes]:
        """Set all rows of a bucket; which of them went is not known."""
        self._turn.writes.delete_range(self._family, self._key(bucket), self._key(bucket + 1))
        for row, value in rows.items():
            self.put(bucket, row, value)
        return []

    def read(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """Return the rows of a bucket that are committed, for who compares them by their hashes: nothing is checked."""
        at = len(self._prefix) + 2
        rows = self._storage.scan(self._family, self._key(bucket), self._key(bucket + 1))
        return [(key[at:], stored[1:]) for key, stored in rows]

    def read_from(self, start: bytes) -> list[tuple[bytes, bytes]]:
        """Return the rows that begin like this and are committed; all have the subject that `start` names."""
        bucket = self._key(bucket_of(row_subject(start)))
        found = []
        for _, row, value in self._scan(bucket + start, self._key(BUCKETS)):
            if not row.startswith(start):
                break
            found.append((row, value))
        return found

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (bucket, row, value) of what is committed."""
        return self._scan(self._prefix, self._key(BUCKETS))

    def clear(self) -> None:
        """Remove everything."""
        self._turn.writes.delete_range(self._family, self._prefix, self._key(BUCKETS))

    def _key(self, bucket: int) -> bytes:
        return self._prefix + bucket.to_bytes(2, "big")

    def _scan(self, start: bytes, end: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        at = len(self._prefix)
        for key, stored in self._storage.scan(self._family, start, end):
            check_version(stored, ROW_VERSION, self._family)
            row, value = key[at + 2 :], stored[1:]
            try:
                check_row(row, value)
                bucket = key[at] << 8 | key[at + 1]
                if bucket != bucket_of(row_subject(row)):
                    raise FrameError("a row in another bucket than its own")
            except FrameError as error:
                raise corrupt(self._family, key, error) from None
            yield bucket, row, value


def _place(row: bytes, slots: Sized) -> int:
    """Return in which slot of a bucket a row lies."""
    return crc32(row) & (len(slots) - 1)


def _find(slot: bytes, row: bytes) -> tuple[int, int]:
    """Return where the entry of a row begins and ends in a slot, (-1, -1) if there is none."""
    at = 0
    while at < len(slot):
        value_at = at + 4 + _u32(slot, at)
        end = value_at + 4 + _u32(slot, value_at)
        if value_at == at + 4 + len(row) and slot.startswith(row, at + 4):
            return at, end
        at = end
    return -1, -1


def _u32(packed: bytes, at: int) -> int:
    return packed[at] << 24 | packed[at + 1] << 16 | packed[at + 2] << 8 | packed[at + 3]


def forget_tables(batch: WriteBatch) -> None:
    """Remove all tables from a store that becomes another one, except RETAINED, which that makes its own."""
    batch.delete_range("registry", KEY_TABLE, KEY_TABLE[:-1] + bytes((KEY_TABLE[-1] + 1,)))
