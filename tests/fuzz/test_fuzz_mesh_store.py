"""Any bytes as a record of the mesh in the store, beside what a member of a cluster has stored.

Documented: a store that can't be read raises StorageError, which names the record; the process then ends with one
sentence. What could be read is good for a start.
"""

from fuzzing import Target, examples, near
from hypothesis import given

from broker.core.epoch import Epoch, pack_epoch
from broker.core.left_will import LeftWill, pack_will_row
from broker.core.rows import (
    RowKind,
    SessionRow,
    Table,
    bucket_of,
    pack_claim,
    pack_ended,
    pack_row,
    pack_session,
    pack_subscription,
)
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.will import Will
from cluster.membership import Member, State
from cluster.mesh import Mesh, MeshSettings
from cluster.mesh_store import MeshStore
from cluster.table_rows import StoredRows
from cluster.turn import Turn

FAMILIES = ("meta", "registry")
OWN, PEER, GONE = b"o" * 16, b"p" * 16, b"g" * 16


def stored() -> MemoryStorage:
    """What a node leaves that has a peer, which wants something, and had another one."""
    storage = MemoryStorage()
    turn = Turn()
    store = MeshStore(storage, turn)
    store.put_cluster_id(b"c" * 16)
    store.put_members([Member("peer@h", PEER, 1 << 20, "h:2", State.ALIVE)])
    store.put_removed("gone@h", GONE)
    store.put_position(PEER, 7)
    store.put_known(PEER, Table.LASTING, (5, 7))
    store.put_interest(PEER, b"a/+/#")
    store.put_interest(PEER, b"$share/g/a/+")
    store.put_newcomer(PEER, "client", 7)
    epoch = Epoch(2, 1 << 40, PEER)
    for owner in (OWN, PEER):
        rows = StoredRows(storage, turn, owner, Table.LASTING)
        for row, value in (
            (pack_row(RowKind.SESSION, b"client"), pack_session(SessionRow(epoch, True, 60, "user"))),
            (pack_row(RowKind.SUBSCRIPTION, b"client", b"a/#"), pack_subscription(1, 7)),
            (pack_row(RowKind.ENDED, b"client"), pack_ended(pack_epoch(epoch))),
            (pack_row(RowKind.WILL, b"client"), pack_will_row(LeftWill("client", "user", Will(b"w/x", b"gone")))),
            (pack_row(RowKind.CLAIM, b"client", PEER + OWN), pack_claim(7, False)),
        ):
            rows.put(bucket_of(b"client"), row, value)
    batch = WriteBatch()
    turn.take_writes(batch)
    storage.commit(batch)
    return storage


STORED = stored()


def check(data: bytes) -> None:
    """Start on the store with one more record: which family, the key's length, the key, the value."""
    if len(data) < 2:
        return
    storage = STORED.survivor()
    batch = WriteBatch()
    batch.put(FAMILIES[data[0] % len(FAMILIES)], data[2 : 2 + data[1]], data[2 + data[1] :])
    storage.commit(batch)
    try:
        mesh = Mesh(MeshSettings("own@h", "h:1", 5.0, ()), storage, OWN, 2, bytes(16), 1000.0)
    except StorageError as error:
        assert str(error)
        return
    mesh.own.restore(lambda: iter([]))
    mesh.tick(1000.0)
    writes = WriteBatch()
    mesh.flush(writes, 1000.0)
    storage.commit(writes)
    mesh.validate()


def seeds() -> list[bytes]:
    """Each record that is stored."""
    snapshot = STORED.snapshot()
    rows = [(index, key, value) for index, name in enumerate(FAMILIES) for key, value in snapshot[name].items()]
    return [bytes([index, len(key)]) + key + value for index, key, value in rows]


TARGET = Target("mesh_store", check, seeds())


def test_the_seeds_are_records_of_every_kind() -> None:
    for seed in TARGET.seeds:
        check(seed)
    assert len(TARGET.seeds) == 18


def test_every_cut_record_is_refused_or_read() -> None:
    for seed in TARGET.seeds:
        for end in range(2, len(seed)):
            check(seed[:end])


def test_every_key_may_be_cut() -> None:
    for seed in TARGET.seeds:
        key, value = seed[2 : 2 + seed[1]], seed[2 + seed[1] :]
        for end in range(len(key)):
            check(bytes([seed[0], end]) + key[:end] + value)


@given(near(TARGET.seeds))
@examples(150)
def test_near_records(data: bytes) -> None:
    check(data)
