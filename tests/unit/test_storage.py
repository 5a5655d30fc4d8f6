"""One suite for every Storage, then what only the one on disk promises."""

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rocksdict

from broker.core import storage as core
from broker.core.storage import FAMILIES, MemoryStorage, Storage, StorageError, WriteBatch
from broker.core.upgrades import UPGRADES
from broker.runtime.rocks_storage import RocksStorage, SyncMode, open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["memory", "rocks"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """A function that opens the store, the first time empty, then as a restart finds it."""
    opened: list[Storage] = []

    def open_again() -> Storage:
        if request.param == "memory":
            storage: Storage = opened[-1].survivor() if opened else MemoryStorage()
        else:
            if opened:
                opened[-1].close()
            storage = RocksStorage(tmp_path / "store", "interval", 100)
        opened.append(storage)
        return storage

    yield open_again
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(reopen: Callable[[], Storage]) -> Storage:
    return reopen()


def put_all(storage: Storage, family: str, rows: dict[bytes, bytes]) -> None:
    batch = WriteBatch()
    for key, value in rows.items():
        batch.put(family, key, value)
    storage.commit(batch)


def keys(storage: Storage, family: str, start: bytes = b"", end: bytes = b"") -> list[bytes]:
    return [key for key, _ in storage.scan(family, start, end)]


def test_get_returns_what_was_put_in_that_family_only(storage: Storage) -> None:
    put_all(storage, "session", {b"k": b"\x01v"})
    assert storage.get("session", b"k") == b"\x01v"
    assert storage.get("queue", b"k") is None
    assert storage.get("session", b"other") is None


def test_empty_values_and_empty_keys_are_values_and_keys(storage: Storage) -> None:
    put_all(storage, "session", {b"k": b"", b"": b"\x01"})
    assert storage.get("session", b"k") == b""
    assert list(storage.scan("session", b"", b"")) == [(b"", b"\x01"), (b"k", b"")]


def test_every_family_exists(storage: Storage) -> None:
    batch = WriteBatch()
    for family in FAMILIES:
        batch.put(family, b"k", family.encode())
    storage.commit(batch)
    assert [storage.get(family, b"k") for family in FAMILIES] == [family.encode() for family in FAMILIES]


def test_operations_of_a_batch_apply_in_order(storage: Storage) -> None:
    put_all(storage, "queue", {b"a": b"old", b"b": b"old", b"c": b"old"})
    batch = WriteBatch()
    batch.put("queue", b"a", b"1")
    batch.delete("queue", b"a")
    batch.delete("queue", b"b")
    batch.put("queue", b"b", b"2")
    batch.put("queue", b"c1", b"gone")
    batch.delete_range("queue", b"c", b"d")
    batch.put("queue", b"c2", b"3")
    assert len(batch) == 7
    storage.commit(batch)
    assert list(storage.scan("queue", b"", b"")) == [(b"b", b"2"), (b"c2", b"3")]


def test_extend_appends_in_order(storage: Storage) -> None:
    first, second = WriteBatch(), WriteBatch()
    first.put("queue", b"k", b"1")
    second.put("queue", b"k", b"2")
    first.extend(second)
    storage.commit(first)
    assert storage.get("queue", b"k") == b"2"


def test_an_empty_batch_changes_nothing(storage: Storage) -> None:
    storage.commit(WriteBatch())
    assert keys(storage, "queue") == []


def test_deleting_what_is_not_there_is_harmless(storage: Storage) -> None:
    batch = WriteBatch()
    batch.delete("queue", b"k")
    batch.delete_range("queue", b"a", b"z")
    storage.commit(batch)
    assert keys(storage, "queue") == []


def test_delete_range_takes_the_start_and_leaves_the_end(storage: Storage) -> None:
    put_all(storage, "queue", {bytes([n]): b"v" for n in range(6)})
    batch = WriteBatch()
    batch.delete_range("queue", b"\x01", b"\x04")
    batch.delete_range("queue", b"\x05", b"\x05")
    storage.commit(batch)
    assert keys(storage, "queue") == [b"\x00", b"\x04", b"\x05"]


def test_a_reversed_range_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        WriteBatch().delete_range("queue", b"b", b"a")


def test_scan_is_ascending_by_unsigned_bytes_and_bounded(storage: Storage) -> None:
    put_all(storage, "queue", dict.fromkeys((b"\xff", b"\x80", b"a\x00", b"a", b"b", b""), b"v"))
    assert keys(storage, "queue") == [b"", b"a", b"a\x00", b"b", b"\x80", b"\xff"]
    assert keys(storage, "queue", b"a", b"b") == [b"a", b"a\x00"]
    assert keys(storage, "queue", b"a\x00") == [b"a\x00", b"b", b"\x80", b"\xff"]
    assert keys(storage, "queue", b"", b"a") == [b""]
    assert keys(storage, "queue", b"a", b"a") == []
    assert keys(storage, "queue", b"c", b"b") == []


def test_scan_is_a_snapshot_while_commits_go_on(storage: Storage) -> None:
    put_all(storage, "queue", {bytes([n]): b"old" for n in range(100)})
    scan = storage.scan("queue", b"", b"")
    batch = WriteBatch()
    batch.put("queue", b"\x05", b"new")
    batch.put("queue", b"\xf0", b"new")
    batch.delete("queue", b"\x06")
    batch.delete_range("queue", b"\x20", b"\x40")
    storage.commit(batch)
    assert list(scan) == [(bytes([n]), b"old") for n in range(100)]
    assert len(keys(storage, "queue")) == 100 + 1 - 1 - 32


def test_a_scan_keeps_the_bound_that_its_caller_lets_go(storage: Storage) -> None:
    put_all(storage, "queue", dict.fromkeys((b"row 1", b"row 2", b"row 3", b"z"), b"v"))
    for filler in (b"\x00" * 4, b"\xff" * 4):
        rows = storage.scan("queue", b"row ", bytes(bytearray(b"row 3")))
        # Objects of the same size are put where the bound was.
        fillers = [filler + bytes([number]) for number in range(100)]
        assert [key for key, _ in rows] == [b"row 1", b"row 2"], fillers[0]


def reverse_keys(storage: Storage, start: bytes = b"", end: bytes = b"") -> list[bytes]:
    return [key for key, _ in storage.scan_reverse("queue", start, end)]


def test_scan_reverse_is_descending_and_bounded_as_scan_is(storage: Storage) -> None:
    put_all(storage, "queue", dict.fromkeys((b"\xff", b"\x80", b"a\x00", b"a", b"b", b""), b"v"))
    assert reverse_keys(storage) == [b"\xff", b"\x80", b"b", b"a\x00", b"a", b""]
    assert reverse_keys(storage, b"a", b"b") == [b"a\x00", b"a"]
    assert reverse_keys(storage, b"a\x00") == [b"\xff", b"\x80", b"b", b"a\x00"]
    assert reverse_keys(storage, b"", b"a") == [b""]
    assert reverse_keys(storage, b"a", b"a") == []
    assert reverse_keys(storage, b"c", b"b") == []
    assert reverse_keys(storage, b"aa", b"az") == []
    assert list(storage.scan_reverse("session", b"", b"")) == []
    with pytest.raises(KeyError):
        storage.scan_reverse("nowhere", b"", b"")


def test_scan_reverse_is_a_snapshot_while_commits_go_on(storage: Storage) -> None:
    put_all(storage, "queue", {bytes([n]): b"old" for n in range(100)})
    scan = storage.scan_reverse("queue", b"\x10", b"\x60")
    batch = WriteBatch()
    batch.put("queue", b"\x15", b"new")
    batch.delete("queue", b"\x16")
    batch.delete_range("queue", b"\x20", b"\x40")
    storage.commit(batch)
    assert list(scan) == [(bytes([n]), b"old") for n in range(0x5F, 0x0F, -1)]


def test_scan_reverse_keeps_the_bounds_that_its_caller_lets_go(storage: Storage) -> None:
    put_all(storage, "queue", dict.fromkeys((b"a", b"row 1", b"row 2", b"row 3", b"z"), b"v"))
    for filler in (b"\x00" * 4, b"\xff" * 4):
        rows = storage.scan_reverse("queue", bytes(bytearray(b"row 1")), bytes(bytearray(b"row 3")))
        fillers = [filler + bytes([number]) for number in range(100)]
        assert [key for key, _ in rows] == [b"row 2", b"row 1"], fillers[0]


def test_an_unknown_family_is_our_mistake_and_nothing_of_the_batch_is_there(storage: Storage) -> None:
    batch = WriteBatch()
    batch.put("queue", b"k", b"v")
    batch.put("nowhere", b"k", b"v")
    with pytest.raises(KeyError):
        storage.commit(batch)
    assert storage.get("queue", b"k") is None
    with pytest.raises(KeyError):
        storage.get("nowhere", b"k")
    with pytest.raises(KeyError):
        storage.scan("nowhere", b"", b"")


def test_big_batches_and_big_values(storage: Storage) -> None:
    big = os.urandom(5_000_000)
    rows = {n.to_bytes(8, "big"): b"\x01" + n.to_bytes(8, "big") for n in range(50_000)}
    rows[b"\xff" * 8] = big
    put_all(storage, "queue", rows)
    assert dict(storage.scan("queue", b"", b"")) == rows
    assert storage.get("queue", b"\xff" * 8) == big


def test_a_restart_finds_what_was_committed(reopen: Callable[[], Storage]) -> None:
    put_all(reopen(), "queue", {b"a": b"1", b"b": b"2"})
    storage = reopen()
    batch = WriteBatch()
    batch.delete("queue", b"a")
    storage.commit(batch)
    assert list(reopen().scan("queue", b"", b"")) == [(b"b", b"2")]


def test_a_new_store_is_stamped_and_an_own_one_accepted(reopen: Callable[[], Storage]) -> None:
    core.check_schema(reopen())
    storage = reopen()
    core.check_schema(storage)
    assert storage.get("meta", b"schema") == bytes([core.SCHEMA_VERSION])


def test_the_store_of_a_newer_program_is_refused(reopen: Callable[[], Storage]) -> None:
    put_all(reopen(), "meta", {b"schema": bytes([core.SCHEMA_VERSION + 6])})
    newest = core.SCHEMA_VERSION
    with pytest.raises(StorageError, match=rf"schema version {newest + 6}.* up to version {newest}"):
        core.check_schema(reopen())


def move_rows(storage: Storage) -> None:
    """A step to version 2 that moves every session to `registry`, two rows a batch."""
    while rows := list(storage.scan("session", b"", b""))[:2]:
        batch = WriteBatch()
        for key, value in rows:
            batch.put("registry", b"moved/" + key, value)
            batch.delete("session", key)
        storage.commit(batch)
    batch = WriteBatch()
    core.put_schema(batch, 2)
    storage.commit(batch)


def stamp_only(version: int) -> Callable[[Storage], None]:
    def step(storage: Storage) -> None:
        batch = WriteBatch()
        batch.put("meta", b"seen/" + bytes([version]), storage.get("meta", core.KEY_SCHEMA) or b"")
        core.put_schema(batch, version)
        storage.commit(batch)

    return step


class DyingStorage:
    """Fails from the commit on that `commits_left` says, as a process that is killed there."""

    def __init__(self) -> None:
        self.commits_left = 1_000
        self._memory = MemoryStorage()
        # A compiled class can't be the base of one that is not.
        self.get = self._memory.get
        self.scan = self._memory.scan
        self.scan_reverse = self._memory.scan_reverse
        self.close = self._memory.close
        self.survivor = self._memory.survivor

    def commit(self, batch: WriteBatch) -> None:
        if self.commits_left == 0:
            raise KeyboardInterrupt
        self.commits_left -= 1
        self._memory.commit(batch)


def test_an_older_store_is_brought_up_to_date_step_by_step(reopen: Callable[[], Storage]) -> None:
    storage = reopen()
    put_all(storage, "meta", {b"schema": b"\x01"})
    put_all(storage, "session", {bytes([n]): b"v" for n in range(5)})
    core.upgrade_schema(storage, {2: move_rows, 3: stamp_only(3), 4: stamp_only(4)}, 4)
    storage = reopen_newer(reopen, storage)
    assert storage.get("meta", b"schema") == b"\x04"
    assert (storage.get("meta", b"seen/\x03"), storage.get("meta", b"seen/\x04")) == (b"\x02", b"\x03")
    assert keys(storage, "session") == []
    assert len(keys(storage, "registry")) == 5
    # Nothing is left to do.
    core.upgrade_schema(storage, {}, 4)


def reopen_newer(reopen: Callable[[], Storage], storage: Storage) -> Storage:
    """Only a program that knows version 4 could open a store on disk again; one in memory doesn't ask."""
    return reopen() if isinstance(storage, MemoryStorage) else storage


@pytest.mark.parametrize("commits", range(5))
def test_an_upgrade_goes_on_where_a_crash_left_it(commits: int) -> None:
    storage = DyingStorage()
    put_all(storage, "meta", {b"schema": b"\x01"})
    put_all(storage, "session", {bytes([n]): b"v" for n in range(5)})
    storage.commits_left = commits
    steps = {2: move_rows, 3: stamp_only(3)}
    with pytest.raises(KeyboardInterrupt):
        core.upgrade_schema(storage, steps, 3)
    assert storage.get("meta", b"schema") == (b"\x01" if commits < 4 else b"\x02")
    survivor = storage.survivor()
    core.upgrade_schema(survivor, steps, 3)
    assert survivor.get("meta", b"schema") == b"\x03"
    assert keys(survivor, "registry") == [b"moved/" + bytes([n]) for n in range(5)]


def test_a_newer_store_is_not_upgraded() -> None:
    storage = MemoryStorage()
    put_all(storage, "meta", {b"schema": b"\x03"})
    with pytest.raises(StorageError, match=r"schema version 3.* up to version 2"):
        core.upgrade_schema(storage, {2: move_rows}, 2)
    assert storage.get("meta", b"schema") == b"\x03"


def test_a_step_without_its_stamp_is_our_mistake() -> None:
    storage = MemoryStorage()
    put_all(storage, "meta", {b"schema": b"\x01"})
    with pytest.raises(AssertionError, match="step 2 did not stamp"):
        core.upgrade_schema(storage, {2: lambda storage: None}, 2)


def test_this_version_has_a_step_for_every_older_one() -> None:
    assert sorted(UPGRADES) == list(range(2, core.SCHEMA_VERSION + 1))


def test_the_store_id_is_drawn_once(reopen: Callable[[], Storage]) -> None:
    assert core.ensure_store_id(reopen(), b"a" * 16) == b"a" * 16
    assert core.ensure_store_id(reopen(), b"b" * 16) == b"a" * 16


def test_every_opening_is_counted(reopen: Callable[[], Storage]) -> None:
    assert [core.next_incarnation(reopen()) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({b"schema": b""}, "corrupt"),
        ({b"schema": b"\x00"}, "corrupt"),
        ({b"store_id": b"\x01short"}, "store_id has 6 bytes instead of 17"),
        ({b"store_id": b"\x02" + bytes(20)}, "store_id has version 2"),
        ({b"incarnation": b""}, "incarnation has 0 bytes"),
        ({b"incarnation": b"\x09" + bytes(8)}, "incarnation has version 9"),
    ],
)
def test_meta_that_can_not_be_read_is_refused(rows: dict[bytes, bytes], message: str) -> None:
    storage = MemoryStorage()
    put_all(storage, "meta", rows)
    with pytest.raises(StorageError, match=message):
        core.check_schema(storage)
        core.ensure_store_id(storage, bytes(16))
        core.next_incarnation(storage)


def test_a_survivor_is_apart_from_what_it_survived() -> None:
    storage = MemoryStorage()
    put_all(storage, "queue", {b"a": b"1"})
    survivor = storage.survivor()
    put_all(storage, "queue", {b"b": b"2"})
    assert survivor.snapshot()["queue"] == {b"a": b"1"}
    assert storage.snapshot()["queue"] == {b"a": b"1", b"b": b"2"}
    assert keys(survivor, "queue") == [b"a"]


def test_open_store_makes_private_directories_and_an_identity(tmp_path: Path) -> None:
    path = tmp_path / "data" / "store"
    first = open_store(path, "interval", 100)
    first.storage.close()
    second = open_store(path, "always", 0)
    second.storage.close()
    third = open_store(tmp_path / "other", "never", 0)
    third.storage.close()
    assert [stat.S_IMODE(os.stat(directory).st_mode) for directory in (path, path.parent)] == [0o700, 0o700]
    assert len(first.store_id) == 16
    assert first.store_id == second.store_id != third.store_id
    assert (first.incarnation, second.incarnation, third.incarnation) == (1, 2, 1)


def test_a_newer_store_on_disk_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    put_all(storage, "meta", {b"schema": bytes([core.SCHEMA_VERSION + 1])})
    storage.close()
    for _ in range(2):
        with pytest.raises(
            StorageError, match=rf"schema version {core.SCHEMA_VERSION + 1}.* up to version {core.SCHEMA_VERSION}"
        ):
            open_store(tmp_path, "interval", 100)


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    with pytest.raises(StorageError, match="in use by another process"):
        RocksStorage(tmp_path, "interval", 100)
    opened = run_in_a_process(f"open_store({str(tmp_path)!r}, 'interval', 100)")
    assert "StorageError" in opened.stderr
    assert "in use by another process" in opened.stderr
    storage.close()
    RocksStorage(tmp_path, "interval", 100).close()


def test_a_path_that_can_not_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be opened"):
        RocksStorage(tmp_path / "file" / "store", "interval", 100)


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_commits_survive_kill_9(tmp_path: Path, sync: str) -> None:
    killed = run_in_a_process(
        f"""
storage = open_store({str(tmp_path)!r}, {sync!r}, 3_600_000).storage
for n in range(1000):
    batch = WriteBatch()
    batch.put("queue", n.to_bytes(8, "big"), b"x" * 100)
    batch.put("message", n.to_bytes(8, "big"), b"y" * 100)
    storage.commit(batch)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = open_store(tmp_path, "interval", 100)
    assert store.incarnation == 2
    assert len(keys(store.storage, "queue")) == len(keys(store.storage, "message")) == 1000
    store.storage.close()


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_a_durable_batch_is_synced_in_every_mode(tmp_path: Path, sync: SyncMode) -> None:
    storage = RocksStorage(tmp_path, sync, 3_600_000)
    synced: list[bool] = []
    database = storage._db

    class Watched:
        def write(self, batch: Any, options: Any) -> None:
            synced.append(options.sync)
            database.write(batch, options)

    storage._db = Watched()  # type: ignore[assignment]
    for durable in (False, True, False):
        batch = WriteBatch()
        batch.put("meta", b"key", b"%d" % durable)
        part = WriteBatch()
        part.durable = durable
        batch.extend(part)
        batch.extend(WriteBatch())
        storage.commit(batch)
    storage._db = database
    assert synced == [sync == "always", True, sync == "always"]
    storage.close()


def run_in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    imports = (
        "import os, signal\n"
        "from broker.core.storage import WriteBatch\n"
        "from broker.runtime.rocks_storage import open_store\n"
    )
    return subprocess.run(
        [sys.executable, "-c", imports + code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_log_is_synced_once_an_interval_and_only_when_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    syncs = count_syncs(storage, monkeypatch)
    storage.flush(1000.0)  # covers the stamp of the new store
    del syncs[:]
    assert storage.next_deadline() == float("inf")
    storage.flush(1001.0)
    assert syncs == []
    put_all(storage, "queue", {b"a": b"1"})
    put_all(storage, "queue", {b"b": b"1"})
    storage.flush(1001.0)
    assert len(syncs) == 1
    put_all(storage, "queue", {b"c": b"1"})
    assert storage.next_deadline() == pytest.approx(1001.1)
    storage.flush(1001.05)
    assert len(syncs) == 1
    storage.flush(1001.11)
    assert len(syncs) == 2
    assert storage.next_deadline() == float("inf")
    storage.close()


@pytest.mark.parametrize("sync", ["always", "never"])
def test_other_modes_need_no_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str) -> None:
    storage = RocksStorage(tmp_path, sync, 100)
    syncs = count_syncs(storage, monkeypatch)
    put_all(storage, "queue", {b"a": b"1"})
    assert storage.next_deadline() == float("inf")
    storage.flush(1e9)
    assert syncs == []
    storage.close()


def count_syncs(storage: RocksStorage, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    syncs: list[None] = []
    sync = storage.sync

    def counted() -> None:
        syncs.append(None)
        sync()

    monkeypatch.setattr(storage, "sync", counted)
    return syncs


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """A function that lets no file of this process grow past a size: the nearest thing to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size >= 0 else before[0], before[1]))

    yield limit
    limit(-1)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_fails_commits_until_there_is_room_again(
    tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    put_all(storage, "queue", {b"a": b"1"})
    file_size_limit(50_000)
    for _ in range(3):
        with pytest.raises(StorageError):
            put_all(storage, "queue", {b"b": bytes(100_000)})
        storage.flush(1e9)
        # What failed stays open until there is room: what is there can be read.
        assert storage.get("queue", b"a") == b"1"
        assert os.listdir(tmp_path.parent).count(f"{tmp_path.name}.probe") == 0
    file_size_limit(-1)
    put_all(storage, "queue", {b"b": b"2"})
    assert list(storage.scan("queue", b"", b"")) == [(b"a", b"1"), (b"b", b"2")]
    storage.close()


def test_a_store_whose_sync_failed_is_opened_anew_by_an_empty_commit(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    put_all(storage, "queue", {b"a": b"1"})
    database = storage._db
    database.close()
    with pytest.raises(StorageError, match="can't be synced"):
        storage.flush(1e9)
    assert storage.next_deadline() == float("inf")
    storage.commit(WriteBatch())
    assert storage._db is not database
    # What was written before may not be on the disk: it is synced once more.
    assert storage.next_deadline() < float("inf")
    storage.flush(2e9)
    assert storage.get("queue", b"a") == b"1"
    storage.close()


def test_a_checkpoint_whose_sync_failed_is_not_synced_again(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path / "store", "never", 100)
    put_all(storage, "queue", {b"a": b"1"})
    database = storage._db
    database.close()
    with pytest.raises(StorageError, match="can't be synced"):
        storage.checkpoint(tmp_path / "copy")
    with pytest.raises(StorageError, match="can't be copied: it can't be written at present"):
        storage.checkpoint(tmp_path / "copy")
    assert storage.has_failed()
    # The next commit opens the store anew.
    put_all(storage, "queue", {b"b": b"2"})
    assert storage._db is not database and not storage.has_failed()
    storage.checkpoint(tmp_path / "copy")
    storage.close()


def test_a_damaged_block_is_an_error_and_not_the_end_of_a_scan(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    for n in range(1000):
        put_all(storage, "queue", {n.to_bytes(8, "big"): os.urandom(1000)})
    storage._families["queue"].flush()
    storage.close()
    table = max(tmp_path.glob("*.sst"), key=lambda path: path.stat().st_size)
    with open(table, "r+b") as file:
        file.seek(500_000)
        file.write(b"damaged" * 100)
    storage = RocksStorage(tmp_path, "interval", 100)
    with pytest.raises(StorageError, match="can't be read"):
        keys(storage, "queue")
    storage.close()


@pytest.mark.parametrize(("method", "verb"), [("get_column_family", "open"), ("create_column_family", "create")])
def test_a_family_that_fails_is_told_and_no_other_is_made_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, verb: str
) -> None:
    def fail(database: rocksdict.Rdict, name: str, *options: object) -> None:
        called.append(name)
        raise Exception("IO error: Input/output error")

    called: list[str] = []
    if verb == "open":
        RocksStorage(tmp_path, "interval", 100).close()
        monkeypatch.setattr(rocksdict.Rdict, "create_column_family", fail)
    monkeypatch.setattr(rocksdict.Rdict, method, fail)
    with pytest.raises(StorageError, match=f"can't {verb} the family meta: IO error"):
        RocksStorage(tmp_path, "interval", 100)
    assert called == ["meta"]
    monkeypatch.undo()
    storage = RocksStorage(tmp_path, "interval", 100)
    assert storage.get("queue", b"k") is None
    storage.close()


def test_closing_twice_is_harmless(storage: Storage) -> None:
    storage.close()
    storage.close()


def test_reading_a_closed_store_is_a_storage_error(tmp_path: Path) -> None:
    storage = RocksStorage(tmp_path, "interval", 100)
    storage.close()
    with pytest.raises(StorageError):
        storage.get("queue", b"k")
    with pytest.raises(StorageError):
        storage.scan("queue", b"", b"")
