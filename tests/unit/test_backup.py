"""vmq-broker backup and restore on the stores of stopped nodes: what is copied, what a copy is, what is refused."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.config import Config
from broker.config_load import load
from broker.core.storage import SCHEMA_VERSION, StorageError, WriteBatch
from broker.main import run
from broker.runtime import backup as module
from broker.runtime.backup import BackupError, backup, restore
from broker.runtime.rocks_storage import OpenedStore, RocksStorage, open_store
from broker.runtime.run_dir import RunDir
from cluster.mesh_store import (
    KEY_CLUSTER_ID,
    KEY_HANDED,
    KEY_INTEREST,
    KEY_KNOWN,
    KEY_MEMBER,
    KEY_POSITION,
    KEY_REMOVED,
    KEY_SINCE,
)
from cluster.table_rows import KEY_TABLE

ROWS = {
    ("session", b"\0\0\0\0\0\0\0\1"): b"\1session",
    ("queue", b"\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\1"): b"\1queue",
    ("message", bytes(16) + b"\0\0\0\0\0\0\0\1"): b"\1" + b"message" * 10_000,
    ("meta", KEY_REMOVED + bytes(16) + b"node9@h"): b"\1",
}
CLUSTER_ROWS = {
    ("meta", KEY_CLUSTER_ID): b"\1" + bytes(16),
    ("meta", KEY_MEMBER + b"node2@h"): b"\1member",
    ("meta", KEY_POSITION + bytes(16)): b"\1position",
    ("meta", KEY_HANDED + bytes(16)): b"\1handed",
    ("meta", KEY_KNOWN + bytes(16) + b"\2"): b"\1known",
    ("registry", KEY_INTEREST + bytes(16) + b"a/#"): b"\1",
    ("registry", KEY_SINCE + bytes(16) + b"client"): b"\1since",
    ("registry", KEY_TABLE + bytes(16) + b"\2\0\0\2\0\1c"): b"\1row",
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(None, {}, [f"node.data_dir={tmp_path / 'data'}"])


def opened(config: Config) -> OpenedStore:
    return open_store(os.path.join(config.node.data_dir, "store"), "interval", 100)


@pytest.fixture
def store_id(config: Config) -> bytes:
    """The identity of the configured node's store, which holds all of the rows."""
    store = opened(config)
    batch = WriteBatch()
    for (family, key), value in {**ROWS, **CLUSTER_ROWS}.items():
        batch.put(family, key, value)
    store.storage.commit(batch)
    store.storage.close()
    return store.store_id


@pytest.fixture
def saved(config: Config, store_id: bytes, tmp_path: Path) -> Path:
    """A backup of that store."""
    backup(config, str(tmp_path / "saved"))
    return tmp_path / "saved"


def put(config: Config, key: bytes) -> None:
    store = opened(config).storage
    batch = WriteBatch()
    batch.put("session", key, b"\1later")
    store.commit(batch)
    store.close()


def names(directory: Path | str) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_restored_store_holds_everything_and_is_another(config: Config, store_id: bytes, saved: Path) -> None:
    before = names(saved)
    put(config, b"later")
    replaced = restore(config, str(saved), force=True)
    store = opened(config)
    assert {key: store.storage.get(*key) for key in ROWS} == ROWS
    assert [store.storage.get(*key) for key in CLUSTER_ROWS] == [None] * len(CLUSTER_ROWS)
    assert store.storage.get("session", b"later") is None
    assert store.store_id != store_id
    # The count goes on: no number is used again.
    assert store.incarnation == 2
    store.storage.close()
    older = open_store(replaced, "interval", 100)
    assert older.store_id == store_id and older.storage.get("session", b"later") == b"\1later"
    older.storage.close()
    assert names(saved) == before
    assert names(config.node.data_dir) == ["run", "store", os.path.basename(replaced)]


def test_every_restored_store_is_one_of_its_own(config: Config, saved: Path, tmp_path: Path) -> None:
    store_ids = set()
    for name in ("one", "two"):
        other = load(None, {}, [f"node.data_dir={tmp_path / name}"])
        assert restore(other, str(saved), force=False) == ""
        store = opened(other)
        store_ids.add(store.store_id)
        store.storage.close()
    assert len(store_ids) == 2


def test_a_backup_holds_what_only_the_log_had_and_nothing_later(config: Config, saved: Path) -> None:
    put(config, b"later")
    storage = RocksStorage(saved, "interval", 100)
    assert {key: storage.get(*key) for key in ROWS} == ROWS
    assert storage.get("session", b"later") is None
    storage.close()
    assert names(config.node.data_dir) == ["run", "store"]


def modes(directory: Path | str) -> set[int]:
    """The modes of a directory and of the files in it."""
    return {
        stat.S_IMODE(os.stat(path).st_mode) for path in (directory, *map(Path(directory).joinpath, names(directory)))
    }


@pytest.mark.parametrize("copied", [False, True])
def test_nobody_else_reads_a_backup(
    config: Config, store_id: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    # Table files are linked into the backup, with the mode that they have in the store.
    store = opened(config).storage
    store._db.flush()
    store.close()
    if copied:
        only_within(config.node.data_dir, monkeypatch)
    before = os.umask(0)
    try:
        backup(config, str(tmp_path / "saved"))
        restore(load(None, {}, [f"node.data_dir={tmp_path / 'other'}"]), str(tmp_path / "saved"), force=False)
    finally:
        assert os.umask(before) == 0
    assert any(name.endswith(".sst") for name in names(tmp_path / "saved"))
    assert modes(tmp_path / "saved") == {0o700, 0o600}
    assert stat.S_IMODE(os.stat(tmp_path / "other" / "store").st_mode) == 0o700


def test_a_store_in_the_way_is_left_unless_forced(config: Config, store_id: bytes, saved: Path) -> None:
    with pytest.raises(BackupError, match=r"there is a store in .* already; --force"):
        restore(config, str(saved), force=False)
    store = opened(config)
    assert store.store_id == store_id
    store.storage.close()


def test_a_newer_backup_is_refused_before_anything_is_touched(config: Config, store_id: bytes, saved: Path) -> None:
    storage = RocksStorage(saved, "interval", 100)
    batch = WriteBatch()
    batch.put("meta", b"schema", bytes([SCHEMA_VERSION + 1]))
    storage.commit(batch)
    storage.close()
    before = names(config.node.data_dir)
    with pytest.raises(BackupError, match="made by a newer version of zvmq"):
        restore(config, str(saved), force=True)
    assert names(config.node.data_dir) == before


@pytest.mark.parametrize("kind", ["missing", "empty", "damaged", "foreign"])
def test_what_is_no_backup_is_refused(config: Config, store_id: bytes, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other"
    if kind != "missing":
        path.mkdir()
    if kind == "damaged":
        (path / "CURRENT").write_text("MANIFEST-000001\n")
    if kind == "foreign":
        import rocksdict

        rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True)).close()
    with pytest.raises(BackupError, match=r"is not a backup|can't be read"):
        restore(config, str(path), force=True)
    assert opened(config).store_id == store_id


@pytest.fixture
def running(config: Config) -> Iterator[None]:
    """The lock of the node is held, as by one that runs, though nobody answers."""
    run_dir = RunDir(config.node.data_dir)
    lock = run_dir.lock()
    yield
    os.close(lock)
    run_dir.close()


def test_a_node_that_runs_is_not_restored(config: Config, saved: Path, running: None) -> None:
    with pytest.raises(BackupError, match=r"another node is running .*; stop it first"):
        restore(config, str(saved), force=True)


def test_a_node_that_runs_and_does_not_answer_is_not_backed_up(
    config: Config, store_id: bytes, tmp_path: Path, running: None
) -> None:
    with pytest.raises(BackupError, match=r"another node is running .*, but it does not answer"):
        backup(config, str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_backup_takes_the_place_of_nothing(config: Config, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="exists already"):
        backup(config, str(saved))
    (tmp_path / "empty").mkdir()
    backup(config, str(tmp_path / "empty"))
    assert "CURRENT" in names(tmp_path / "empty")
    with pytest.raises(BackupError, match="there is no store in"):
        backup(load(None, {}, [f"node.data_dir={tmp_path / 'nothing'}"]), str(tmp_path / "new"))
    assert not (tmp_path / "nothing").exists()


def only_within(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be renamed into a directory or out of it, as if it were a file system of its own."""
    rename = os.rename

    def rename_within(source: Path, target: Path) -> None:
        if str(source).startswith(data_dir) != str(target).startswith(data_dir):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_within)


def test_a_backup_on_another_file_system_is_copied(
    config: Config, store_id: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = config.node.data_dir
    only_within(data_dir, monkeypatch)
    backup(config, str(tmp_path / "deep" / "saved"))
    assert names(tmp_path / "deep") == ["saved"]
    assert names(data_dir) == ["run", "store"]
    restore(config, str(tmp_path / "deep" / "saved"), force=True)


def test_a_restore_that_fails_leaves_the_store_that_was_there(
    config: Config, store_id: bytes, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(module, "_become_another", fail)
    with pytest.raises(BackupError, match="No space left on device"):
        restore(config, str(saved), force=True)
    assert names(config.node.data_dir) == ["run", "store"]
    store = opened(config)
    assert store.store_id == store_id
    store.storage.close()


class Killed(BaseException):
    """The process ends here: nothing is tidied up."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_restore_that_is_killed_leaves_no_empty_store_behind(
    config: Config, store_id: bytes, saved: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    rename = os.rename
    left = [renames]

    def rename_some(source: Path, target: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        rename(source, target)

    with monkeypatch.context() as patches:
        patches.setattr(os, "rename", rename_some)
        patches.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            restore(config, str(saved), force=True)
    if renames:
        before = names(config.node.data_dir)
        assert "store" not in before and "store.restoring" in before
        with pytest.raises(StorageError, match=r"a restore was interrupted\. Restore again, or rename"):
            opened(config)
        assert names(config.node.data_dir) == before
        assert restore(config, str(saved), force=False) == ""
    store = opened(config)
    assert (store.store_id == store_id) is (renames == 0)
    assert {key: store.storage.get(*key) for key in ROWS} == ROWS
    store.storage.close()


def test_what_a_restore_put_aside_is_missed_when_the_store_is_gone(
    config: Config, store_id: bytes, saved: Path
) -> None:
    replaced = restore(config, str(saved), force=True)
    os.rename(os.path.join(config.node.data_dir, "store"), os.path.join(config.node.data_dir, "elsewhere"))
    with pytest.raises(StorageError, match=replaced):
        opened(config)
    os.rename(replaced, os.path.join(config.node.data_dir, "store"))
    store = opened(config)
    assert store.store_id == store_id
    store.storage.close()


def test_the_commands_say_what_they_did(
    config: Config, store_id: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = ["--set", f"node.data_dir={config.node.data_dir}"]
    saved = str(tmp_path / "saved")
    assert run(["backup", saved, *setting]) == 0
    assert capsys.readouterr().out == f"the store of node1@127.0.0.1 is in {saved}\n"
    assert run(["restore", saved, *setting]) == 1
    assert "--force" in capsys.readouterr().err
    assert run(["restore", saved, "--force", *setting]) == 0
    said = capsys.readouterr().out
    assert "joins as a new member" in said and "store.replaced-" in said
    assert run(["backup", saved, *setting]) == 1
    assert run(["backup", saved, "--set", "node.nmae=x"]) == 2
