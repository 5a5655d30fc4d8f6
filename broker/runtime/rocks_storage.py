"""The store on disk: broker.core.storage's Storage on RocksDB (rocksdict in raw mode, one column family a family).

Owns the database's files, its options and the moments of its fsyncs; knows nothing of what the records mean. Only one
process has a store open: RocksDB's LOCK file says so.

A commit is in the write-ahead log, handed to the operating system, when `commit` returns: it survives `kill -9` of
the process in every mode. What a power loss leaves is up to `sync`: `always` syncs the log in every commit (group
commit: one for a whole batch), `interval` when the owner's loop calls `flush` and `sync_interval_ms` went by since
the last time, `never` leaves it to the operating system. The commit of a durable batch syncs it in every mode.

After a failed write or sync RocksDB takes no other until it was opened anew, so the next commit does that first, even
if its batch is empty. It first writes a file beside the store: while there is no room for that, the store that failed
stays open and can still be read. A batch that failed may be in the store or not; committing it again is right in both
cases, as every operation may be repeated.

rocksdict raises bare `Exception` for whatever RocksDB says, so each call into it is guarded on its own, and our own
mistakes (an unknown family) stay what they are.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

import rocksdict

from broker.core.storage import (
    DELETE,
    FAMILIES,
    PUT,
    STORE_ID_BYTES,
    StorageError,
    WriteBatch,
    check_schema,
    ensure_store_id,
    next_incarnation,
    upgrade_schema,
)
from broker.core.upgrades import UPGRADES

SyncMode = Literal["always", "interval", "never"]

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
# What a restore has beside the store while it works, and keeps beside it afterwards: suffixes of the store's path.
RESTORING: Final = ".restoring"
REPLACED: Final = ".replaced-"

# The store's share of a node's memory: memtables of all families together, and blocks read.
MEMTABLES_BYTES_MAX: Final = 32 * 1024 * 1024
MEMTABLE_BYTES: Final = 8 * 1024 * 1024
BLOCK_CACHE_BYTES: Final = 8 * 1024 * 1024
# A log file goes when every family in it was flushed; a family that is seldom written would keep it for ever.
WAL_BYTES_MAX: Final = 128 * 1024 * 1024
OPEN_FILES_MAX: Final = 256
BACKGROUND_JOBS: Final = 2
INFO_LOG_BYTES_MAX: Final = 1024 * 1024
INFO_LOG_FILES: Final = 2
BLOOM_BITS_PER_KEY: Final = 10
# A store that failed is opened again once there is room for this much and twice the batch: opening writes, too.
PROBE_BYTES: Final = 1024 * 1024


class RocksStorage:
    """A Storage in a directory. All methods may raise StorageError."""

    def __init__(self, path: str | os.PathLike[str], sync: SyncMode, sync_interval_ms: int) -> None:
        """Open or create the store; StorageError if it is in use, damaged, or a newer program's."""
        self.path = os.fspath(path)
        self._interval_s = sync_interval_ms / 1000 if sync == "interval" else math.inf
        self._syncs_at_close = sync != "never"
        self._write_options = rocksdict.WriteOptions()
        self._write_options.sync = sync == "always"
        self._durable_options = rocksdict.WriteOptions()
        self._durable_options.sync = True
        # Commits that no fsync has covered yet, and when the last one was (monotonic seconds).
        self._dirty = False
        self._synced_at = 0.0
        # A write or a sync failed, and the database was not opened anew since.
        self._failed = False
        self._closed = False
        self._families: dict[str, rocksdict.Rdict] = {}
        self._handles: dict[str, rocksdict.ColumnFamily] = {}
        self._open()

    def _open(self) -> None:
        cache = rocksdict.Cache(BLOCK_CACHE_BYTES)
        self._db, existing = self._open_database(cache)
        try:
            self._open_families(cache, existing)
        except BaseException:
            self._release()
            raise

    def _open_database(self, cache: rocksdict.Cache) -> tuple[rocksdict.Rdict, list[str]]:
        """Return the database and the families that are in it."""
        try:
            _make_private_directory(Path(self.path))
            # Every family that exists has to be opened, also those that only a newer program knows: its schema
            # version is a better answer than RocksDB's complaint about them.
            existing = rocksdict.Rdict.list_cf(self.path) if os.path.exists(f"{self.path}/CURRENT") else []
            families = {name: _family_options(cache) for name in existing if name != "default"}
            return rocksdict.Rdict(self.path, _database_options(cache), families), existing
        except Exception as error:
            if "/LOCK:" in str(error):
                raise StorageError(f"the store {self.path} is in use by another process: {error}") from error
            raise StorageError(f"the store {self.path} can't be opened: {error}") from error

    def _open_families(self, cache: rocksdict.Cache, existing: list[str]) -> None:
        for name in FAMILIES:
            try:
                if name in existing:
                    self._families[name] = self._db.get_column_family(name)
                else:
                    self._families[name] = self._db.create_column_family(name, _family_options(cache))
                self._handles[name] = self._db.get_column_family_handle(name)
            except Exception as error:
                verb = "open" if name in existing else "create"
                raise StorageError(f"the store {self.path} can't {verb} the family {name}: {error}") from error
            if name == "meta":
                # First of all families: nothing is created in a store that we don't understand.
                check_schema(self)
        upgrade_schema(self, UPGRADES)

    def commit(self, batch: WriteBatch) -> None:
        """Apply the batch atomically and hand it to the operating system; nothing of it if it can't be done."""
        if self._failed:
            self._reopen(sum(len(key) + len(value) for _, _, key, value in batch.operations))
        if not batch.operations:
            return
        raw = rocksdict.WriteBatch(raw_mode=True)
        handles = self._handles
        put = raw.put
        for kind, family, key, value in batch.operations:
            if kind == PUT:
                put(key, value, handles[family])
            elif kind == DELETE:
                raw.delete(key, handles[family])
            else:
                raw.delete_range(key, value, handles[family])
        try:
            self._db.write(raw, self._durable_options if batch.durable else self._write_options)
        except Exception as error:
            self._failed = True
            raise StorageError(f"the store {self.path} can't be written: {error}") from error
        self._dirty = True

    def get(self, family: str, key: bytes) -> bytes | None:
        """Return the value of `key`, None if there is none."""
        rows = self._families[family]
        try:
            value: bytes | None = rows.get(key)
        except Exception as error:
            raise StorageError(f"the store {self.path} can't be read: {error}") from error
        return value

    def scan(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate [start, end) as it is at the call. An unfinished iterator keeps the store's files open."""
        rows = self._families[family]
        options = rocksdict.ReadOptions()
        if end:
            options.set_iterate_upper_bound(end)
        try:
            iterator = rows.iter(options)
            iterator.seek(start)
        except Exception as error:
            raise StorageError(f"the store {self.path} can't be read: {error}") from error
        return self._rows(iterator, iterator.next, bound=end)

    def scan_reverse(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the same range in descending order."""
        # The lower bound is checked row by row: rocksdict's own is not honoured on the way down.
        rows = self._families[family]
        options = rocksdict.ReadOptions()
        try:
            iterator = rows.iter(options)
            if end:
                # The last key up to the end, which is not in the range itself.
                iterator.seek_for_prev(end)
                if iterator.valid() and iterator.key() == end:
                    iterator.prev()
            else:
                iterator.seek_to_last()
        except Exception as error:
            raise StorageError(f"the store {self.path} can't be read: {error}") from error
        return self._rows(iterator, iterator.prev, start)

    def _rows(
        self, iterator: rocksdict.RdictIter, step: Callable[[], None], first: bytes = b"", bound: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """Go on to the end, or to the first key below `first`."""
        # RocksDB reads its bound in place and rocksdict does not keep it alive, so `bound` must live as long as the
        # iterator. Else the scan would stop wherever the memory's next use says.
        try:
            while iterator.valid():
                key = iterator.key()
                if key < first:
                    return
                yield key, iterator.value()
                step()
            # An iterator that meets a damaged block ends like one that is through; only its status tells.
            iterator.status()
        except Exception as error:
            raise StorageError(f"the store {self.path} can't be read: {error}") from error

    def flush(self, now: float) -> None:
        """Sync the log if that is due. Call it once per turn of the owner's loop, and when `next_deadline` is past."""
        if self._dirty and not self._failed and now >= self._synced_at + self._interval_s:
            self.sync()
            self._synced_at = now

    def next_deadline(self) -> float:
        """Return when `flush` wants to be called (monotonic seconds); infinity while nothing waits for a sync."""
        return self._synced_at + self._interval_s if self._dirty and not self._failed else math.inf

    def sync(self) -> None:
        """Make everything committed so far survive a power loss, whatever the mode."""
        try:
            self._db.flush_wal(True)
        except Exception as error:
            # Never sync again in the hope that it works now: the kernel has dropped the pages it could not write.
            self._failed = True
            raise StorageError(f"the store {self.path} can't be synced: {error}") from error
        self._dirty = False

    def checkpoint(self, directory: str | os.PathLike[str]) -> None:
        """Make a copy of everything committed so far in `directory`, which must not exist; its parent must.

        On the store's file system that takes moments, as most of it is linked; on another it is copied. Like the
        store, it is for nobody but its owner.
        """
        if self._failed:
            raise StorageError(f"the store {self.path} can't be copied: it can't be written at present")
        self.sync()
        others = os.umask(~DIRECTORY_MODE & 0o777)
        try:
            rocksdict.Checkpoint(self._db).create_checkpoint(os.fspath(directory))
            for file in os.scandir(directory):
                # What is linked is the store's own file, with the mode that RocksDB gave it.
                os.chmod(file, FILE_MODE)
        except Exception as error:
            raise StorageError(f"the store {self.path} can't be copied to {os.fspath(directory)}: {error}") from error
        finally:
            os.umask(others)

    def has_failed(self) -> bool:
        """Say whether a write or a sync failed, and no commit has opened the store anew since."""
        return self._failed

    def close(self) -> None:
        """Sync and release the store; closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._dirty and self._syncs_at_close and not self._failed:
                self.sync()
        finally:
            self._release()

    def _reopen(self, batch_bytes: int) -> None:
        self._try_writing(PROBE_BYTES + 2 * batch_bytes)
        self._release()
        self._open()
        self._failed = False
        # What was written before the failure may not be on the disk, whatever was said of it.
        self._dirty = True

    def _try_writing(self, size: int) -> None:
        """Write and sync `size` bytes beside the store; StorageError if that can't be done."""
        path = f"{self.path}.probe"
        try:
            try:
                with open(path, "wb") as probe:
                    while size > 0:
                        size -= probe.write(bytes(min(size, PROBE_BYTES)))
                    probe.flush()
                    os.fsync(probe.fileno())
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        except OSError as error:
            raise StorageError(f"the store {self.path} can't be written: {error.strerror or error}") from error

    def _release(self) -> None:
        # RocksDB gives up its lock when the last handle is gone, not at the close of the first. What is closed stays
        # in _families: a read of it raises StorageError, while a missing one would look like an unknown family.
        self._handles.clear()
        for database in (*self._families.values(), self._db):
            # A database that failed repeats its failure here, and one that a reopen left closed says so; neither
            # changes what is on the disk.
            with contextlib.suppress(Exception):
                database.close()


class OpenedStore(NamedTuple):
    """A store that is ready for an owner: who it is and how many times it was opened, this time included."""

    storage: RocksStorage
    store_id: bytes
    incarnation: int


def open_store(path: str | os.PathLike[str], sync: SyncMode, sync_interval_ms: int) -> OpenedStore:
    """Open or create the store at `path`, draw its identity if it is new, and count the opening."""
    _check_no_restore(Path(path))
    storage = RocksStorage(path, sync, sync_interval_ms)
    try:
        store_id = ensure_store_id(storage, os.urandom(STORE_ID_BYTES))
        incarnation = next_incarnation(storage)
        # Peers remember both: after a power loss neither may come again with another meaning.
        storage.sync()
    except BaseException:
        storage.close()
        raise
    return OpenedStore(storage, store_id, incarnation)


def _check_no_restore(path: Path) -> None:
    """Raise StorageError when a restore was cut short: an empty store would look as if nothing had ever been there."""
    if (path / "CURRENT").exists() or not path.parent.exists():
        return
    for name in sorted(os.listdir(path.parent)):
        if name == path.name + RESTORING or name.startswith(path.name + REPLACED):
            raise StorageError(
                f"there is no store {path}, but {path.with_name(name)}: a restore was interrupted. Restore again, or "
                f"rename to {path} what is to be the store; remove {path.with_name(name)} to begin with an empty one"
            )


def _make_private_directory(path: Path) -> None:
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(DIRECTORY_MODE, exist_ok=True)


def _database_options(cache: rocksdict.Cache) -> rocksdict.Options:
    options = _family_options(cache)
    options.create_if_missing(True)
    options.set_db_write_buffer_size(MEMTABLES_BYTES_MAX)
    options.set_max_total_wal_size(WAL_BYTES_MAX)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_max_background_jobs(BACKGROUND_JOBS)
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    options.set_keep_log_file_num(INFO_LOG_FILES)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_is_fd_close_on_exec(True)
    return options


def _family_options(cache: rocksdict.Cache) -> rocksdict.Options:
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    options = rocksdict.Options(raw_mode=True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    return options
