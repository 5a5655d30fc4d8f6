"""Table rows: where the rows of a table lie, in memory or in the store, one's own as well as copies of others'.

Owns the layout of what is stored. It knows nothing of sums or versions: `tables` does.
"""

from collections.abc import Iterator
from typing import Final, Protocol, final

from broker.core.retained_rows import FAMILY as RETAINED_FAMILY
from broker.core.rows import BUCKETS, ROW_VERSION, Table, bucket_of, row_subject
from broker.core.storage import Storage, WriteBatch
from broker.core.stored_message import check_version, corrupt
from cluster.table_frames import check_row
from cluster.turn import Turn
from cluster.wire import FrameError

KEY_TABLE: Final = b"table/"
# Of so few bytes there are no more than 65,793 values.
SHORT_BYTES: Final = 2


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
    """Rows that need not survive a restart."""

    def __init__(self) -> None:
        self._buckets: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        # Short values are flags of very many rows: each that there is once.
        self._short: dict[bytes, bytes] = {}

    def get(self, bucket: int, row: bytes) -> bytes | None:
        """Return the value of a row."""
        return self._buckets[bucket].get(row)

    def put(self, bucket: int, row: bytes, value: bytes) -> None:
        """Set a row."""
        self._buckets[bucket][row] = self._only(value)

    def delete(self, bucket: int, row: bytes) -> None:
        """Remove a row."""
        self._buckets[bucket].pop(row, None)

    def replace(self, bucket: int, rows: dict[bytes, bytes]) -> list[bytes]:
        """Set all rows of a bucket; return those that went."""
        gone = [row for row in self._buckets[bucket] if row not in rows]
        self._buckets[bucket] = {row: self._only(value) for row, value in rows.items()}
        return gone

    def read(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """Return the rows of a bucket."""
        return list(self._buckets[bucket].items())

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (bucket, row, value)."""
        return iter([(at, row, value) for at, rows in enumerate(self._buckets) for row, value in rows.items()])

    def clear(self) -> None:
        """Remove everything."""
        self._buckets = [{} for _ in range(BUCKETS)]

    def _only(self, value: bytes) -> bytes:
        return self._short.setdefault(value, value) if len(value) <= SHORT_BYTES else value


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


def forget_tables(batch: WriteBatch) -> None:
    """Remove all tables from a store that becomes another one, except RETAINED, which that makes its own."""
    batch.delete_range("registry", KEY_TABLE, KEY_TABLE[:-1] + bytes((KEY_TABLE[-1] + 1,)))
