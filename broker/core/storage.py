"""The store as the cores see it: families of ordered key-value pairs, changed in atomic batches.

Owns the vocabulary (families, WriteBatch, Storage, StorageError), the few keys in `meta` that say whose store this
is, and MemoryStorage. It knows nothing of disks, sessions or messages.

Theory of operation
-------------------
A core appends what it wants kept to a WriteBatch; the shell commits the batch as a whole, and only then lets out
what acknowledges it. Reads go straight to the Storage and never see an uncommitted batch.

A key belongs to one family; keys are ordered as unsigned bytes. Every value begins with a version byte, so that an
older program can tell what it can't read; `SCHEMA_VERSION` counts changes to the families and keys themselves. A
store of an older version is brought up to date by the steps in `upgrades`, one version at a time.

Errors are of two kinds. StorageError is the disk's: full, corrupt, locked, written by a newer program; the node
stays up and acknowledges nothing. A family that doesn't exist or a reversed range is ours, and raises KeyError or
AssertionError.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

FAMILIES: Final = ("meta", "session", "queue", "message", "outbox", "registry", "retained", "will")

# The layout of the store that this program writes, and the newest that it reads.
SCHEMA_VERSION: Final = 2

# The version byte in front of the values of `meta` that this module writes.
META_VERSION: Final = 1
KEY_SCHEMA: Final = b"schema"
KEY_STORE_ID: Final = b"store_id"
KEY_INCARNATION: Final = b"incarnation"
STORE_ID_BYTES: Final = 16

# Kinds of operation in a WriteBatch.
PUT: Final = 0
DELETE: Final = 1
DELETE_RANGE: Final = 2


class StorageError(Exception):
    """The store can't do it: disk full, corrupt, locked, or written by a newer program."""


class WriteBatch:
    """Changes in order, committed together or not at all."""

    def __init__(self) -> None:
        # (kind, family, key, value); of a DELETE_RANGE the start and the end. A flat list is what a compiled core
        # appends to fastest, and what a storage reads without a call an operation.
        self.operations: list[tuple[int, str, bytes, bytes]] = []
        # Whether a power loss must not take it, whatever `store.sync` says.
        self.durable = False

    def put(self, family: str, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self.operations.append((PUT, family, key, value))

    def delete(self, family: str, key: bytes) -> None:
        """Remove `key`; it need not exist."""
        self.operations.append((DELETE, family, key, b""))

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        """Remove every key in [start, end). Unlike in a scan, an empty `end` is not the end of the family."""
        assert start <= end, "reversed range"
        self.operations.append((DELETE_RANGE, family, start, end))

    def extend(self, other: "WriteBatch") -> None:
        """Append the operations of `other`, in their order."""
        self.operations.extend(other.operations)
        self.durable = self.durable or other.durable

    def __len__(self) -> int:
        return len(self.operations)


class Storage(Protocol):
    """What the cores ask of a store."""

    def commit(self, batch: WriteBatch) -> None:
        """Apply the batch atomically. It survives the process, and a power loss if durable or as `store.sync` says."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """Return the value of `key`, None if there is none."""

    def scan(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate [start, end) in ascending order, as it is at the call; an empty `end` is the end of the family."""

    def scan_reverse(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the same range in descending order."""

    def close(self) -> None:
        """Release the store; closing twice is harmless."""


class MemoryStorage:
    """A Storage in memory, for tests and the simulator.

    Invariant: `_keys[f]` is the sorted list of the keys of `_values[f]`.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[bytes, bytes]] = {family: {} for family in FAMILIES}
        self._keys: dict[str, list[bytes]] = {family: [] for family in FAMILIES}

    def commit(self, batch: WriteBatch) -> None:
        """Apply the batch; nothing of it if it names a family that doesn't exist (KeyError)."""
        for operation in batch.operations:
            self._values[operation[1]]
        for kind, family, key, value in batch.operations:
            values = self._values[family]
            keys = self._keys[family]
            if kind == PUT:
                if key not in values:
                    insort(keys, key)
                values[key] = value
            elif kind == DELETE:
                if key in values:
                    del values[key]
                    del keys[bisect_left(keys, key)]
            else:
                first = bisect_left(keys, key)
                last = bisect_left(keys, value)
                for gone in keys[first:last]:
                    del values[gone]
                del keys[first:last]

    def get(self, family: str, key: bytes) -> bytes | None:
        """Return the value of `key`, None if there is none."""
        return self._values[family].get(key)

    def scan(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate [start, end) as it is at the call."""
        values = self._values[family]
        keys = self._keys[family]
        last = bisect_left(keys, end) if end else len(keys)
        return iter([(key, values[key]) for key in keys[bisect_left(keys, start) : last]])

    def scan_reverse(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate [start, end) backwards, as it is at the call."""
        return iter(list(self.scan(family, start, end))[::-1])

    def close(self) -> None:
        """Do nothing: what is in memory needs no closing."""

    def snapshot(self) -> dict[str, dict[bytes, bytes]]:
        """Return a copy of everything, by family."""
        return {family: dict(values) for family, values in self._values.items()}

    def survivor(self) -> "MemoryStorage":
        """Return what a restart after `kill -9` finds: a copy, which later commits here don't reach."""
        copy = MemoryStorage()
        for family in FAMILIES:
            copy._values[family] = dict(self._values[family])
            copy._keys[family] = list(self._keys[family])
        return copy


def put_schema(batch: WriteBatch, version: int) -> None:
    """Stamp the store: from the commit of this batch on it has this version."""
    batch.put("meta", KEY_SCHEMA, bytes([version]))


def check_schema(storage: Storage, newest: int = SCHEMA_VERSION) -> int:
    """Return the store's schema version; a new one is stamped. StorageError if a newer program wrote it.

    It asks for no family but `meta`, and changes nothing in a store that is not new.
    """
    stored = storage.get("meta", KEY_SCHEMA)
    if stored is None:
        batch = WriteBatch()
        put_schema(batch, newest)
        storage.commit(batch)
        return newest
    if len(stored) < 1 or stored[0] < 1:
        raise StorageError("the store's schema version is empty: the store is corrupt")
    if stored[0] > newest:
        raise StorageError(
            f"the store has schema version {stored[0]}, this program reads up to version {newest}: "
            "it was written by a newer version of zvmq"
        )
    return stored[0]


def upgrade_schema(
    storage: Storage, steps: Mapping[int, Callable[[Storage], None]], newest: int = SCHEMA_VERSION
) -> None:
    """Bring an older store up to date; StorageError if it is a newer program's. Call it before anything is read.

    A step brings it from the version before to the one it is named by, in as many batches as it wants. The last one has
    the stamp (`put_schema`), and whatever a crash leaves before it is what the same step finds again and goes on from.
    """
    stored = check_schema(storage, newest)
    for version in range(stored + 1, newest + 1):
        steps[version](storage)
        assert storage.get("meta", KEY_SCHEMA) == bytes([version]), f"step {version} did not stamp its version"


def ensure_store_id(storage: Storage, fresh: bytes) -> bytes:
    """Return the store's identity (16 bytes); a store that has none gets `fresh`, which the shell drew at random."""
    stored = storage.get("meta", KEY_STORE_ID)
    if stored is not None:
        return _meta_value(KEY_STORE_ID, stored, STORE_ID_BYTES)
    batch = WriteBatch()
    put_store_id(batch, fresh)
    storage.commit(batch)
    return fresh


def put_store_id(batch: WriteBatch, fresh: bytes) -> None:
    """Give the store an identity of its own: for everybody else it is another store from now on."""
    assert len(fresh) == STORE_ID_BYTES
    batch.put("meta", KEY_STORE_ID, bytes([META_VERSION]) + fresh)


def next_incarnation(storage: Storage) -> int:
    """Count one more opening of the store and return the count, 1 for the first."""
    stored = storage.get("meta", KEY_INCARNATION)
    count = 0 if stored is None else int.from_bytes(_meta_value(KEY_INCARNATION, stored, 8), "big")
    batch = WriteBatch()
    batch.put("meta", KEY_INCARNATION, bytes([META_VERSION]) + (count + 1).to_bytes(8, "big"))
    storage.commit(batch)
    return count + 1


def _meta_value(key: bytes, stored: bytes, size: int) -> bytes:
    if stored[:1] > bytes([META_VERSION]):
        raise StorageError(
            f"meta {key.decode()} has version {stored[0]}, this program reads up to version {META_VERSION}"
        )
    if len(stored) != 1 + size:
        raise StorageError(f"meta {key.decode()} has {len(stored)} bytes instead of {1 + size}: the store is corrupt")
    return stored[1:]
