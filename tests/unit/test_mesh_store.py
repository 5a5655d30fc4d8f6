"""The mesh's part of the store: what is written is found again, and reading it never fails amid the mesh's work."""

from broker.core.storage import MemoryStorage, WriteBatch
from cluster.mesh_store import MeshStore
from cluster.turn import Turn

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


def test_positions_are_known_without_the_store() -> None:
    storage = MemoryStorage()
    store, turn = store_on(storage)
    store.put_position(SENDER, 7)
    # A member may come back in the turn in which it went.
    assert (store.position(SENDER), store.position(OTHER)) == (7, 0)
    commit(storage, turn)
    again, turn = store_on(storage)
    again._storage = Unreadable()  # type: ignore[assignment]
    assert (again.position(SENDER), again.position(OTHER)) == (7, 0)
    again.put_position(SENDER, 8)
    assert again.position(SENDER) == 8
