"""cluster.donor: for which sessions of the members a store has messages that becomes a donor's."""

from broker.core.epoch import Epoch, pack_epoch
from broker.core.message import Message
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
from broker.core.session import Session
from broker.core.session_store import SessionStore, switched_stubs
from broker.core.storage import MemoryStorage, WriteBatch, put_store_id
from broker.core.subscription import subscription
from cluster.donor import become_donor, stored_state
from cluster.leaving import LeaveJob, State
from cluster.membership import Member
from cluster.membership import State as MemberState
from cluster.mesh_store import MeshStore, forget_cluster
from cluster.table_rows import StoredRows
from cluster.turn import Turn

NAME = "own@h"
OWN, FRESH, AGAIN = b"o" * 16, b"f" * 16, b"g" * 16
ONE, TWO, THREE = b"1" * 16, b"2" * 16, b"3" * 16
TOPIC = b"a/#"


class Removed:
    """The store of a node that was removed."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.stubs = 0
        self.turn = Turn()
        self.store = MeshStore(self.storage, self.turn)
        put_store_id(self.turn.writes, OWN)
        self.store.put_members(
            [
                Member(f"{store_id[:1].decode()}@h", store_id, 1, "h:1", MemberState.ALIVE)
                for store_id in (ONE, TWO, THREE)
            ]
        )
        self.remove()

    def remove(self) -> None:
        job = LeaveJob(NAME)
        job.removed(0.0)
        self.store.put_leave(job.pack())

    def message(self, store_id: bytes) -> None:
        outbox = self.store.outbox(store_id, 1 << 30)
        outbox.last += 1
        outbox.put(outbox.last, Message(b"a/b", b"x", b"", 1, False, 0.0, "", OWN, 1))

    def put(self, store_id: bytes, row: bytes, value: bytes, client_id: str) -> None:
        StoredRows(self.storage, self.turn, store_id, Table.LASTING).put(bucket_of(client_id.encode()), row, value)

    def session(self, store_id: bytes, client_id: str, counter: int) -> None:
        subject = client_id.encode()
        epoch = Epoch(counter, 1, store_id)
        self.put(
            store_id, pack_row(RowKind.SESSION, subject), pack_session(SessionRow(epoch, True, 60, None)), client_id
        )
        self.put(store_id, pack_row(RowKind.SUBSCRIPTION, subject, TOPIC), pack_subscription(1, 7), client_id)

    def stub(self, client_id: str, home: bytes, switched: dict[bytes, int]) -> None:
        sessions = SessionStore(self.storage)
        self.stubs += 1
        session = Session(self.stubs, client_id, None, 60, 1)
        session.switched_home, session.switched = home, switched
        sessions.put_session(session)
        sessions.put_departing(session)
        sessions.put_switched(session)
        self.storage.commit(sessions.take_writes())

    def become_donor(self, fresh: bytes = FRESH) -> MeshStore:
        self.commit()
        become_donor(self.storage, NAME, fresh)
        assert stored_state(self.storage, NAME) == State.DONATING
        return MeshStore(self.storage, Turn())

    def commit(self) -> None:
        writes = WriteBatch()
        self.turn.take_writes(writes)
        self.storage.commit(writes)


def test_it_is_for_those_that_were_there_as_far_as_the_node_knew() -> None:
    node = Removed()
    for store_id in (ONE, ONE, TWO):
        node.message(store_id)
    node.session(ONE, "there", 3)
    node.session(ONE, "gone on", 3)
    node.session(TWO, "gone on", 4)
    node.session(THREE, "elsewhere", 1)
    found = node.become_donor()
    ((client_id, counter, topic_filter, wanted),) = found.kept(ONE)
    assert (client_id, counter, topic_filter) == ("there", 3, TOPIC)
    assert wanted.is_like(subscription(1, 7))
    assert [(client_id, counter) for client_id, counter, *_ in found.kept(TWO)] == [("gone on", 4)]
    assert found.kept(THREE) == [], "there is nothing for it"
    assert [found.kept_left(store_id) for store_id in (ONE, TWO, THREE)] == [2, 1, 0]


def test_what_is_in_its_own_queue_is_not_given_once_more_nor_anything_to_who_began_anew() -> None:
    node = Removed()
    node.message(ONE)
    for client_id in ("here", "claimed", "over", "over elsewhere"):
        node.session(ONE, client_id, 3)
    node.session(OWN, "here", 2)
    node.put(OWN, pack_row(RowKind.CLAIM, b"claimed", ONE + OWN), pack_claim(1, True), "claimed")
    ended = pack_ended(pack_epoch(Epoch(4, 0, TWO)))
    node.put(OWN, pack_row(RowKind.ENDED, b"over"), ended, "over")
    node.put(THREE, pack_row(RowKind.ENDED, b"over elsewhere"), ended, "over elsewhere")
    found = node.become_donor()
    assert [client_id for client_id, *_ in found.kept(ONE)] == ["claimed"]


def test_a_session_of_which_it_has_the_stub_gets_from_there_what_is_older_than_its_next_home_knows() -> None:
    """What was published here is the stub's, if the session is not known to be where it was sent."""
    node = Removed()
    node.message(ONE)
    homes = {"waits": ONE, "all acknowledged": TWO, "gone on": ONE, "back": OWN, "over": ONE}
    for client_id, home in homes.items():
        node.session(OWN, client_id, 2)
        node.session(home, client_id, 3)
        node.stub(client_id, home, {OWN: 5, THREE: 7})
    node.session(TWO, "gone on", 4)
    node.put(THREE, pack_row(RowKind.ENDED, b"over"), pack_ended(pack_epoch(Epoch(4, 0, TWO))), "over")
    node.session(OWN, "not heard", 2)
    node.session(ONE, "not heard", 3)
    node.stub("not heard", bytes(16), {THREE: 7})
    found = node.become_donor()
    assert [client_id for client_id, *_ in found.kept(ONE)] == ["waits"]
    assert found.kept_from(ONE) == {"waits": 5}
    assert found.kept_from(TWO) == {}, "it has everything"
    numbers = {client_id: found for _, client_id, _, found in switched_stubs(node.storage)}
    is_sent = ("waits", "all acknowledged", "back")
    assert {client_id for client_id, found in numbers.items() if found.get(OWN) == 5} == set(is_sent)
    assert all(found[THREE] == 7 for found in numbers.values()) and len(numbers) == 6


def test_a_donor_that_is_removed_itself_gives_what_is_left_to_the_same() -> None:
    node = Removed()
    node.message(ONE)
    node.message(ONE)
    node.session(ONE, "there", 3)
    node.become_donor()
    node.store.put_kept_left(ONE, 1)
    node.session(ONE, "new", 1)
    node.remove()
    found = node.become_donor(AGAIN)
    assert [client_id for client_id, *_ in found.kept(ONE)] == ["there"]
    assert found.kept_left(ONE) == 1


def test_a_copy_of_a_store_keeps_nothing_for_others() -> None:
    node = Removed()
    node.message(ONE)
    node.session(ONE, "there", 3)
    node.become_donor()
    batch = WriteBatch()
    forget_cluster(batch)
    node.storage.commit(batch)
    found = MeshStore(node.storage, Turn())
    assert found.kept(ONE) == [] and found.kept_left(ONE) == 0
