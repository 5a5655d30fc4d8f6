"""The mesh's part of the store: what is written is found again, and reading it never fails amid the mesh's work."""

import pytest

from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from cluster.mesh import Mesh, MeshSettings
from cluster.mesh_store import MeshStore
from cluster.turn import Turn
from cluster.wire import NUMBER_MAX

SENDER, OTHER = b"s" * 16, b"o" * 16


class Unreadable:
    """A storage that must not be asked for anything."""


def store_on(storage: MemoryStorage) -> tuple[MeshStore, Turn]:
    """A mesh's store, and the turn that holds what it writes."""
    turn = Turn()
    return MeshStore(storage, turn), turn


def commit(storage: MemoryStorage, turn: Turn) -> None:
    """What the end of a turn does."""
    batch = WriteBatch()
    turn.take_writes(batch)
    storage.commit(batch)


def test_how_late_is_known_of_a_peers_tables_is_found_again() -> None:
    storage = MemoryStorage()
    store, turn = store_on(storage)
    for sender in (SENDER, OTHER):
        store.put_known(sender, 2, (1 << 63, 7))
        store.put_known(sender, 3, (1, 2))
    commit(storage, turn)
    store, turn = store_on(storage)
    assert store.known(SENDER) == {2: (1 << 63, 7), 3: (1, 2)}
    store.forget_known(SENDER)
    commit(storage, turn)
    store, turn = store_on(storage)
    assert (store.known(SENDER), len(store.known(OTHER))) == ({}, 2)


def test_positions_are_known_without_the_store() -> None:
    storage = MemoryStorage()
    store, turn = store_on(storage)
    store.put_position(SENDER, 7)
    store.put_handed(SENDER, 9)
    # A member may come back in the turn in which it went.
    assert (store.position(SENDER), store.position(OTHER)) == (7, 0)
    assert (store.handed(SENDER), store.handed(OTHER)) == (9, 0)
    # A donor may ask for that in the turn in which all is given.
    store.put_rerouted(SENDER, 5)
    assert (store.rerouted(SENDER), store.rerouted(OTHER)) == (5, NUMBER_MAX)
    commit(storage, turn)
    again, turn = store_on(storage)
    again._storage = Unreadable()  # type: ignore[assignment]
    assert (again.position(SENDER), again.position(OTHER)) == (7, 0)
    assert (again.handed(SENDER), again.handed(OTHER)) == (9, 0)
    assert (again.rerouted(SENDER), again.rerouted(OTHER)) == (5, NUMBER_MAX)
    again.put_position(SENDER, 8)
    assert again.position(SENDER) == 8


MEMBER = b"\0\6peer@h" + OTHER + bytes(8) + b"\0\0\3h:1"


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("meta", b"cluster_id", b""),
        ("meta", b"member/peer@h", b""),
        ("meta", b"member/peer@h", b"\1" + MEMBER[:-1]),
        ("meta", b"member/peer@h", b"\1" + MEMBER + b"!"),
        ("meta", b"member/else@h", b"\1" + MEMBER),
        ("meta", b"removed/" + SENDER + b"\xff@h", b"\1"),
        ("meta", b"removed/" + SENDER, b"\1"),
        ("meta", b"removed/short", b"\1"),
        ("meta", b"removed/" + SENDER + b"gone@h", b""),
        ("meta", b"position/" + SENDER, b"\1\0"),
        ("meta", b"position/" + SENDER, b"\1" + b"\xff" * 8),
        ("meta", b"position/short", b"\1" + bytes(8)),
        ("meta", b"handed/" + SENDER, b"\1\0"),
        ("meta", b"handed/short", b"\1" + bytes(8)),
        ("meta", b"rerouted/" + SENDER, b"\1\0"),
        ("registry", b"interest/" + OTHER, b"\1"),
        ("registry", b"interest/" + OTHER + b"a\xff", b"\1"),
        ("registry", b"interest/" + OTHER + b"a/#/b", b"\1"),
        ("registry", b"since/" + OTHER + b"client", b"\1\0"),
        ("registry", b"since/" + OTHER + b"\xff", b"\1" + bytes(8)),
    ],
)
def test_a_record_that_can_not_be_read_is_named(family: str, key: bytes, value: bytes) -> None:
    """Reason: the process ends with one sentence for a StorageError, and with a traceback for anything else."""
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("meta", b"member/peer@h", b"\1" + MEMBER)
    batch.put(family, key, value)
    storage.commit(batch)
    with pytest.raises(StorageError, match=rf"{family} record ({key.hex()} |is empty)"):
        mesh_on(storage)


@pytest.mark.parametrize(("family", "key"), [("meta", b"member/peer@h"), ("registry", b"interest/" + OTHER + b"a")])
def test_a_newer_version_is_refused(family: str, key: bytes) -> None:
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("meta", b"member/peer@h", b"\1" + MEMBER)
    batch.put(family, key, b"\2whatever")
    storage.commit(batch)
    with pytest.raises(StorageError, match="version 2"):
        mesh_on(storage)


def mesh_on(storage: MemoryStorage) -> Mesh:
    """A node's mesh at its start."""
    return Mesh(MeshSettings("own@h", "h:1", 5.0, ()), storage, SENDER, 1, bytes(16), 1000.0)
