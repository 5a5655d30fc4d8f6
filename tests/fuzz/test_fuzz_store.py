"""Any bytes as a record of the store, beside what a node has stored.

Documented: a store that can't be read raises StorageError, which names the record; the process then ends with one
sentence. What recovery has taken is good for the life of its sessions: only what it leaves in the store may still turn
out to be damaged when it is read.
"""

from core_helpers import Node
from fuzzing import Target, examples, near
from hypothesis import given

from broker.core.message import Message
from broker.core.retained import RetainedStore
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from broker.mqtt.packets import (
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from cluster.clock import HybridClock
from cluster.outbox import Outbox, recover
from cluster.retained_view import RetainedView
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
    session.subscribe(b"$share/g/t", 2)
    session.drop()
    away = node.persistent("away", properties={33: 1})
    away.subscribe(b"t", 2)
    away.send(Publish(b"nobody", b"", 2, packet_id=7))
    publisher = node.connect("p")
    publisher.publish(b"t", b"small", 1, 1)
    publisher.publish(b"t", b"large" * 200, 1, 2)
    publisher.publish(b"t", b"exactly once", 2, 3)
    away.acknowledge(1)
    away.drop()
    publisher.publish(b"t", b"to nobody", 1, 4)
    publisher.publish(b"r", b"kept", 0, retain=True)
    node.connect("late", will=Will(b"w/t", b"gone"))
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
        live(Node(storage=storage, incarnation=2))
        for outbox in recover(storage, Turn(), Clock(1000.0, UTC_MS)).values():
            assert len(outbox.read(0, 1 << 62, 1 << 30)) <= outbox.messages
        take_over(storage)
    except StorageError as error:
        assert str(error)


def take_over(storage: MemoryStorage) -> None:
    """Have another store make what is retained its own."""
    clock = Clock(1000.0, UTC_MS)
    writes = WriteBatch()
    retained = RetainedStore(-1, -1, PEER)
    view = RetainedView("node@h", PEER, storage, Turn(), clock, HybridClock(), heartbeat_s=1.0)
    view.attach(retained, lambda: writes, clock, [])
    storage.commit(writes)
    retained.validate()
    again = RetainedStore(-1, -1, PEER)
    again.recover(storage, clock)
    assert len(again) == len(retained)


def live(node: Node) -> None:
    """Have everybody come back, take what there is, and go for good."""
    node.connect("reader", 5).send(Subscribe(1, (SubscriptionRequest(b"#", 1),)))
    returned = set()
    for session in list(node.owner._sessions.values()):
        # What is in a message is not for recovery to judge, so nothing that is sent is decoded here.
        client = node.open(version=5)
        client.send(Connect(5, session.client_id, False, properties={17: 60}))
        for packet_id, delivery in list(session.inflight.deliveries.items()):
            client.say(Puback(packet_id) if delivery.qos == 1 else Pubrec(packet_id))
            client.say(Pubcomp(packet_id))
        node.settle()
        if not client.closed:
            returned.add(session.client_id)
            client.drop()
    node.advance(2**33)
    # A client id that no CONNECT can have stays until its deadline, which may be any.
    left = {session.client_id for session in node.owner._sessions.values() if session.persistent}
    assert not left & returned


def seeds() -> list[bytes]:
    """Each record that is stored."""
    snapshot = STORED.snapshot()
    rows = [(index, key, value) for index, name in enumerate(FAMILIES) for key, value in snapshot[name].items()]
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


def test_every_record_may_be_under_another_key() -> None:
    for seed in TARGET.seeds:
        key, value = seed[2 : 2 + seed[1]], seed[2 + seed[1] :]
        for other in [row[2 : 2 + row[1]] for row in TARGET.seeds] + [key[:end] for end in range(len(key))]:
            check(bytes([seed[0], len(other)]) + other + value)


def test_every_byte_of_a_record_may_be_another() -> None:
    for seed in TARGET.seeds:
        for place in range(2 + seed[1], min(len(seed), 80)):
            for change in (0x01, 0x18, 0xFF):
                check(seed[:place] + bytes([seed[place] ^ change]) + seed[place + 1 :])


@given(near(TARGET.seeds))
@examples(150)
def test_near_records(data: bytes) -> None:
    check(data)
