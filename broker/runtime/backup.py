"""Backup and restore: a consistent copy of a node's store, and the way back.

Owns the two commands of `vmq-broker`: who makes the copy, where it comes together, and what a restored store is. It
knows nothing of what is in the store but the few keys that say whose it is.

Theory of operation
-------------------
A backup is a RocksDB checkpoint: files that never change are linked, the rest is copied, and it is as if the store had
been killed at that moment. A node that runs makes it itself (`store backup` on its admin socket), beside its store,
where links cost it no time; this process then moves it to where it is wanted, copying it if that is another file
system. The store of a stopped node is opened here, under the node's lock. The directory appears under its name when it
is whole.

A restored store is *another* store: it gets a fresh store_id and forgets the cluster. The copy is older than what
became of the original: streams to peers went on, incarnations were counted, message ids were given out. Under the old
identity the node would number new messages as it had numbered others, and peers would discard them as duplicates while
acknowledging them. A backup can't know whether its node joined a cluster after it was made, so there is no exception
for one that was alone. The members that it remembers are forgotten because their stores may have been restored as well,
and each would refuse the other's new one: a cluster that is restored as a whole is joined anew, node by node. A single
member of a cluster that lives on joins as a new one, after the old one was removed. Sessions, subscriptions, queues and
message ids stay as they are: an id names the store where the message came in, and no store gives out ids of that name
any more.

A restore that is interrupted leaves the store that was there, or at the worst none under its name and both beside it:
then the node does not start, but says so. A backup can be read by its owner alone, as the store can.
"""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Final

import rocksdict

from broker.config import Config
from broker.core.storage import (
    KEY_SCHEMA,
    SCHEMA_VERSION,
    STORE_ID_BYTES,
    StorageError,
    WriteBatch,
    put_store_id,
)
from broker.runtime.admin_socket import NAME as ADMIN_SOCKET_NAME
from broker.runtime.control import decode_line, encode_line
from broker.runtime.rocks_storage import DIRECTORY_MODE, FILE_MODE, REPLACED, RESTORING, RocksStorage
from broker.runtime.run_dir import NodeRunningError, RunDir
from cluster.mesh_store import forget_cluster

STORE: Final = "store"
ANSWER_TIMEOUT_S: Final = 630.0
"""Longer than the node takes for the command, whose time limit is in broker/commands.py."""


class BackupError(Exception):
    """It can't be done; the text is for the user."""


def backup(config: Config, directory: str) -> None:
    """Copy the store of the configured node, running or not, to `directory`, which must be new or empty."""
    target = Path(os.path.abspath(directory))
    data_dir = Path(os.path.abspath(config.node.data_dir))
    if not (data_dir / STORE / "CURRENT").exists():
        raise BackupError(f"there is no store in {data_dir}")
    _check_target(target)
    staging = data_dir / f"{STORE}.backup-{_stamp()}-{os.getpid()}"
    try:
        if not _ask_node(data_dir, staging):
            _checkpoint_stopped(config, data_dir, staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        _move(staging, target)
    except OSError as error:
        raise BackupError(f"cannot write {error.filename or target}: {error.strerror or error}") from None
    except StorageError as error:
        raise BackupError(str(error)) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def restore(config: Config, directory: str, force: bool) -> str:
    """Make the configured node's store a copy of the backup in `directory`; the node must not run.

    A store that is there is in the way unless `force`; then it is kept. Returns where, "" if there was none.
    """
    source = Path(os.path.abspath(directory))
    _check_backup(source)
    data_dir = Path(os.path.abspath(config.node.data_dir))
    try:
        run_dir = RunDir(str(data_dir))
        try:
            lock = run_dir.lock()
        finally:
            run_dir.close()
    except NodeRunningError as error:
        raise BackupError(f"{error}; stop it first") from None
    except OSError as error:
        raise BackupError(f"cannot use the data_dir {data_dir}: {error.strerror or error}") from None
    try:
        return _restore_locked(source, data_dir, force)
    except OSError as error:
        raise BackupError(f"cannot write {error.filename or data_dir}: {error.strerror or error}") from None
    except StorageError as error:
        raise BackupError(str(error)) from None
    finally:
        os.close(lock)


def _restore_locked(source: Path, data_dir: Path, force: bool) -> str:
    store = data_dir / STORE
    there = store.exists() and any(store.iterdir())
    if there and not force:
        raise BackupError(f"there is a store in {data_dir} already; --force puts it aside and goes on")
    if source == store:
        raise BackupError(f"{source} is the store itself, not a backup of it")
    restoring = data_dir / (STORE + RESTORING)
    shutil.rmtree(restoring, ignore_errors=True)
    try:
        _copy(source, restoring)
        _become_another(restoring)
        replaced = ""
        if there:
            replaced = str(data_dir / f"{STORE}{REPLACED}{_stamp()}")
            os.rename(store, replaced)
        os.rename(restoring, store)
        _sync_directory(data_dir)
    finally:
        shutil.rmtree(restoring, ignore_errors=True)
    return replaced


def _become_another(path: Path) -> None:
    """Give the copy an identity of its own, and let it forget what was between the old one and others."""
    storage = RocksStorage(path, "always", 0)
    try:
        batch = WriteBatch()
        put_store_id(batch, os.urandom(STORE_ID_BYTES))
        forget_cluster(batch)
        storage.commit(batch)
        storage.sync()
    finally:
        storage.close()


def _check_backup(path: Path) -> None:
    """Raise BackupError unless `path` is a store that this program can read; it is left as it is."""
    if not (path / "CURRENT").exists():
        raise BackupError(f"{path} is not a backup: there is no store in it")
    options = rocksdict.Options(raw_mode=True)
    try:
        families = {name: options for name in rocksdict.Rdict.list_cf(str(path)) if name != "default"}
        database = rocksdict.Rdict(str(path), options, families, access_type=rocksdict.AccessType.read_only())
        try:
            version = database.get_column_family("meta").get(KEY_SCHEMA) if "meta" in families else None
        finally:
            database.close()
    except Exception as error:
        # rocksdict raises bare Exception for whatever RocksDB says.
        raise BackupError(f"the backup {path} can't be read: {error}") from None
    if not version:
        raise BackupError(f"{path} is not a backup of a zvmq store: it has no schema version")
    if version[0] > SCHEMA_VERSION:
        raise BackupError(
            f"the backup has schema version {version[0]}, this program reads up to version {SCHEMA_VERSION}: "
            "it was made by a newer version of zvmq"
        )


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BackupError(f"{target} exists already; a backup needs a directory that is new or empty")


def _ask_node(data_dir: Path, directory: Path) -> bool:
    """Have the running node make the checkpoint; false when none runs."""
    try:
        descriptor = os.open(data_dir / "run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            # Through the descriptor: a socket's address is short, whatever the data_dir.
            connection.connect(f"/proc/self/fd/{descriptor}/{ADMIN_SOCKET_NAME}")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        finally:
            os.close(descriptor)
        answer = _exchange(
            connection, {"command": "store backup", "arguments": {"directory": str(directory)}, "flags": {}}
        )
    if answer.get("type") != "result":
        raise BackupError(str(answer.get("error", "the node gave no answer")))
    return True


def _exchange(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    connection.settimeout(ANSWER_TIMEOUT_S)
    try:
        connection.sendall(encode_line(request))
        with connection.makefile("rb") as stream:
            for line in stream:
                answer = decode_line(line)
                if answer["type"] != "progress":
                    return answer
    except (OSError, json.JSONDecodeError) as error:
        raise BackupError(f"the connection to the node broke: {error}") from None
    return {}


def _checkpoint_stopped(config: Config, data_dir: Path, directory: Path) -> None:
    run_dir = RunDir(str(data_dir))
    try:
        lock = run_dir.lock()
    except NodeRunningError as error:
        raise BackupError(f"{error}, but it does not answer") from None
    finally:
        run_dir.close()
    try:
        storage = RocksStorage(data_dir / STORE, "interval", config.store.sync_interval_ms)
        try:
            storage.checkpoint(directory)
        finally:
            storage.close()
    finally:
        os.close(lock)


def _move(source: Path, target: Path) -> None:
    """Move a directory to a name that is free, or an empty directory, in one step whatever lies between."""
    try:
        os.rename(source, target)
    except OSError:
        # Another file system, or a mount point.
        if target.is_mount():
            _copy_files(source, target)
        else:
            partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
            try:
                _copy(source, partial)
                os.rename(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    _sync_directory(target.parent)


def _copy(source: Path, target: Path) -> None:
    """Copy a store's directory; a power loss afterwards takes nothing of it."""
    target.mkdir(mode=DIRECTORY_MODE)
    _copy_files(source, target)


def _copy_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.name == "LOCK":
            continue
        with open(file, "rb") as original, open(target / file.name, "xb", opener=_open_private) as copied:
            shutil.copyfileobj(original, copied)
            copied.flush()
            os.fsync(copied.fileno())
    _sync_directory(target)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, FILE_MODE)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
