"""Any bytes as a record of the store, beside what a node has stored.

Documented: a store that can't be read raises StorageError, which names the record; the process then ends with one
sentence.
"""

from core_helpers import Node
from fuzzing import Target, examples, near
from hypothesis import given

from broker.core.message import Message
from broker.core.owner import QueueOwner
from broker.core.routes import NoInterest
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from cluster.outbox import Outbox
from cluster.turn import Turn

FAMILIES = ("session", "queue", "message", "retained", "will", "outbox")
PEER = b"peer of the node"
UTC_MS = 1_700_000_000_000


def stored() -> MemoryStorage:
    """What a node leaves that had a session with something in its queue, a retained message and a shared group.

    And something that waits for another node.
    """
    node = Node()
    session = node.persistent("s")
    session.subscribe(b"t", 1)
    session.subscribe(b"$share/g/t", 1)
    session.drop()
    publisher = node.connect("p")
    publisher.publish(b"t", b"small", 1, 1)
    publisher.publish(b"t", b"large" * 200, 1, 2)
    publisher.publish(b"r", b"kept", 0, retain=True)
    turn = Turn()
    outbox = Outbox(node.storage, turn, Clock(1000.0, UTC_MS), PEER, 1 << 30)
    outbox.put(1 << 40, Message(b"t", b"far", b"", 2, False, 2000.0, "c", bytes(16), 7))
    node.storage.commit(turn.writes)
    return node.storage.survivor()


STORED = stored()


def check(data: bytes) -> None:
    """Start on the store with one more record: which family, the key's length, the key, the value."""
    if len(data) < 2:
        return
    storage = STORED.survivor()
    batch = WriteBatch()
    family = FAMILIES[data[0] % len(FAMILIES)]
    batch.put(family, data[2 : 2 + data[1]], data[2 + data[1] :])
    storage.commit(batch)
    try:
        QueueOwner(OwnerSettings(), storage, NoInterest(), bytes(16), 2).recover(1000.0, UTC_MS)
        outbox = Outbox(storage, Turn(), Clock(1000.0, UTC_MS), PEER, 1 << 30)
        outbox.recover()
        assert len(outbox.read(0, 1 << 62, 1 << 30)) <= outbox.messages
    except StorageError as error:
        assert str(error)


def seeds() -> list[bytes]:
    """Each record that is stored, and what a will looks like."""
    snapshot = STORED.snapshot()
    rows = [(index, key, value) for index, name in enumerate(FAMILIES) for key, value in snapshot[name].items()]
    rows.append((4, b"client", b"\1\x0d" + bytes(16) + b"\0\1u\0\3w/t\0\0\0\0gone"))
    return [bytes([index, len(key)]) + key + value for index, key, value in rows]


TARGET = Target("store", check, seeds())


def test_the_seeds_are_records_of_every_family() -> None:
    for seed in TARGET.seeds:
        check(seed)
    assert {seed[0] for seed in TARGET.seeds} == set(range(len(FAMILIES)))


def test_every_cut_record_is_refused_or_read() -> None:
    for seed in TARGET.seeds:
        for end in range(2 + seed[1], len(seed)):
            check(seed[:end])


@given(near(TARGET.seeds))
@examples(150)
def test_near_records(data: bytes) -> None:
    check(data)
