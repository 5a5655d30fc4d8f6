"""cluster.tables and table_rows: whatever happens on the way, a replica becomes what its owner has, at little cost."""

from collections import deque

import pytest
from builds import compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.rows import BUCKETS, RowKind, Table, bucket_of, pack_row, pack_subscription, row_hash, row_subject
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from cluster import table_frames as frames
from cluster.frames import FRAME_BYTES_MAX, FrameType
from cluster.table_rows import KEY_TABLE, MemoryRows, StoredRows, forget_tables
from cluster.tables import ANSWER_BYTES_MAX, OwnTable, Replica
from cluster.turn import Turn

OWNER = b"store of owner.."
# A kind that nobody makes anything of: any bytes are a value.
KIND = 200


class View:
    """What a replica told of its rows."""

    def __init__(self):
        self.rows = {}

    def bucket_replaced(self, node, table, bucket):
        for row in [row for row in self.rows if bucket_of(row_subject(row)) == bucket]:
            del self.rows[row]

    def set_row(self, node, table, bucket, row, value):
        self.rows[row] = value

    def remove_row(self, node, table, bucket, row):
        del self.rows[row]


class Side:
    """One node's disk and turn."""

    def __init__(self, stored):
        self.stored = stored
        self.storage = MemoryStorage()
        self.turn = Turn()

    def rows(self):
        return StoredRows(self.storage, self.turn, OWNER, Table.LASTING) if self.stored else MemoryRows()

    def commit(self):
        batch = WriteBatch()
        self.turn.take_writes(batch)
        self.storage.commit(batch)

    def restart(self):
        self.storage = self.storage.survivor()
        self.turn = Turn()


class Pair:
    """An owner and a replica, and the frames between them."""

    def __init__(self, stored=False):
        self.owner_side, self.replica_side = Side(stored), Side(stored)
        self.generation = 0
        self.content = {}
        self.stored = stored
        self.wire = deque()
        self.requests = deque()
        self.sent = []
        self.due = []
        self.start_owner()
        self.start_replica()

    def start_owner(self):
        self.owner_side.restart()
        self.generation += 1
        self.due = []
        if not self.stored:
            self.content = {}
        self.owner = OwnTable(Table.LASTING, self.generation, self.owner_side.rows())
        self.owner.restore()
        self.reconnect()

    def start_replica(self):
        self.replica_side.restart()
        self.view = View()
        self.replica = Replica("owner", Table.LASTING, self.replica_side.rows(), self.view)
        self.replica.restore()
        self.reconnect()

    def reconnect(self):
        self.wire.clear()
        self.requests.clear()
        self.patience = 0

    def set(self, subject, value, key=b""):
        """Have the next turn change a row."""
        self.due.append((pack_row(KIND, subject, key), value))

    def change(self, row, value):
        old = self.content.get(row)
        self.owner.change(bucket_of(row_subject(row)), row, 0 if old is None else row_hash(row, old), value)
        if value is None:
            self.content.pop(row, None)
        else:
            self.content[row] = value

    def turn(self):
        """The owner's turn: answers, then what is new; it commits before anything leaves."""
        out = []
        while self.requests:
            out += self.owner.answer(frames.unpack_table_request(self.requests.popleft()))
        for row, value in self.due:
            self.change(row, value)
        self.due = []
        out += self.owner.take_deltas(True)
        self.owner_side.commit()
        self.owner.validate_rows()
        self.wire.extend(out)
        self.sent += out

    def heartbeat(self):
        self.wire.append(self.owner.position())

    def arrive(self):
        """The replica takes what is first on the wire."""
        if not self.wire:
            return
        frame = self.wire.popleft()
        ask = False
        if not isinstance(frame, bytes):
            # Who asked waits for two heartbeats before it asks again.
            self.patience -= 1
            ask = not self.replica.hear(frame) and self.patience <= 0
        elif frame[1] == FrameType.TABLE_DELTA:
            self.replica.receive_delta(frames.unpack_table_delta(frame))
        elif frame[1] == FrameType.TABLE_ROWS:
            self.patience = 2
            self.replica.receive_rows(frames.unpack_table_rows(frame))
        else:
            ask = self.replica.receive_done(frames.unpack_table_done(frame))
        if ask:
            self.patience = 2
            self.requests.append(frames.pack_table_request(self.replica.request()))
        self.replica_side.commit()

    def settle(self, rounds=50):
        """Lose nothing more; within some heartbeats both are equal."""
        for _ in range(rounds):
            self.turn()
            self.heartbeat()
            while self.wire:
                self.arrive()
            if self.replica.is_at(self.owner.position()):
                break
        assert self.replica.is_at(self.owner.position())
        self.check()

    def check(self):
        self.owner.validate()
        self.replica.validate()
        self.replica.validate_rows()
        assert self.replica.sums == self.owner.sums
        held = {row: value for _, row, value in self.replica.rows.scan()}
        assert held == self.view.rows == self.content


SUBJECTS = st.integers(0, 40).map(lambda number: b"client%d" % number)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), SUBJECTS, st.binary(min_size=1, max_size=3)),
        st.tuples(st.just("end"), SUBJECTS),
        st.tuples(st.sampled_from(["turn", "turn", "heartbeat", "lose", "reconnect", "owner", "replica"])),
        st.tuples(st.just("arrive"), st.integers(1, 5)),
        st.tuples(st.just("many"), st.integers(0, 200)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("stored", [False, True])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_whatever_is_lost_both_sides_come_to_the_same(stored, steps):
    pair = Pair(stored)
    for step, *args in steps:
        if step == "set":
            pair.set(args[0], args[1])
        elif step == "end":
            pair.set(args[0], None)
        elif step == "many":
            for number in range(args[0]):
                pair.set(b"many%d" % number, b"v%d" % len(pair.sent))
        elif step == "turn":
            pair.turn()
        elif step == "heartbeat":
            # Its position is that of the last turn, behind which it leaves.
            pair.heartbeat()
        elif step == "lose" and pair.wire:
            pair.wire.popleft()
        elif step == "reconnect":
            pair.reconnect()
        elif step == "owner":
            pair.turn()
            pair.start_owner()
        elif step == "replica":
            pair.start_replica()
        elif step == "arrive":
            for _ in range(args[0]):
                pair.arrive()
        pair.replica.validate()
    pair.settle()


def test_a_power_loss_of_the_owner_takes_back_what_it_told():
    pair = Pair(stored=True)
    pair.set(b"a", b"1")
    pair.settle()
    before = pair.owner_side.storage.survivor()
    content = dict(pair.content)
    pair.set(b"b", b"2")
    pair.settle()
    pair.owner_side.storage = before
    pair.start_owner()
    pair.content = content
    pair.settle()


@pytest.mark.parametrize("who", ["owner", "replica"])
def test_a_restart_without_changes_sends_nothing(who):
    pair = Pair(stored=True)
    for number in range(3000):
        pair.set(b"client%d" % number, b"v")
    pair.settle()
    pair.sent.clear()
    pair.start_owner() if who == "owner" else pair.start_replica()
    pair.settle()
    assert pair.sent == []
    pair.set(b"client1", b"w")
    pair.settle()
    assert [frame[1] for frame in pair.sent] == [FrameType.TABLE_DELTA]


def test_only_buckets_that_differ_are_sent():
    pair = Pair(stored=True)
    for number in range(3000):
        pair.set(b"client%d" % number, b"v" * 100)
    pair.settle()
    pair.start_replica()
    pair.set(b"client7", b"w")
    pair.turn()
    pair.sent.clear()
    pair.settle()
    assert len(b"".join(pair.sent)) < 2000


@compiled
def test_a_large_table_comes_in_bounded_rounds_while_it_changes_all_the_time():
    pair = Pair()
    for number in range(20_000):
        pair.set(b"client%d" % number, b"v" * 100)
    pair.turn()
    pair.wire.clear()
    rounds = 0
    for _ in range(100):
        pair.heartbeat()
        # More buckets change between two rounds than one brings.
        for number in range(1500):
            pair.set(b"client%d" % (number * 13), b"%d" % rounds)
        pair.sent.clear()
        pair.turn()
        answers = [frame for frame in pair.sent if frame[1] == FrameType.TABLE_ROWS]
        assert sum(len(frame) for frame in answers) < ANSWER_BYTES_MAX + 20_000
        assert all(len(frame) <= FRAME_BYTES_MAX for frame in answers)
        rounds += bool(answers)
        while pair.wire:
            pair.arrive()
        if pair.replica.is_at(pair.owner.position()):
            break
    assert 3 < rounds < 15
    pair.check()


def test_a_bucket_over_several_frames_is_replaced_when_all_of_it_is_here():
    pair = Pair()
    for number in range(20):
        pair.set(b"client", b"v" * 100_000, b"%d" % number)
    pair.turn()
    pair.wire.clear()
    pair.heartbeat()
    pair.arrive()
    pair.turn()
    parts = [frame for frame in pair.wire if frame[1] == FrameType.TABLE_ROWS]
    assert len(parts) > 5
    for _ in parts[1:]:
        pair.arrive()
    assert pair.view.rows == {}
    pair.arrive()
    assert pair.view.rows == pair.content
    pair.settle()


@pytest.mark.parametrize("lost", range(7))
def test_an_answer_with_a_hole_does_not_count(lost):
    pair = Pair()
    for number in range(10):
        pair.set(b"client", b"v" * 200_000, b"%d" % number)
    pair.turn()
    pair.wire.clear()
    pair.heartbeat()
    pair.arrive()
    pair.turn()
    if lost < len(pair.wire):
        del pair.wire[lost]
    while pair.wire:
        pair.arrive()
    assert (pair.replica.fresh == BUCKETS) == (lost >= 10 + 1)
    pair.settle()


def test_a_heartbeat_does_not_void_an_answer_that_is_under_way():
    pair = Pair()
    pair.set(b"a", b"1")
    pair.turn()
    pair.wire.clear()
    pair.heartbeat()
    pair.arrive()
    pair.turn()
    pair.wire.appendleft(pair.owner.position())
    while pair.wire:
        pair.arrive()
    assert pair.replica.is_at(pair.owner.position())
    assert not pair.requests


def test_known_version_counts_only_a_whole_table():
    pair = Pair()
    assert pair.replica.known_version(1) == 0
    pair.set(b"a", b"1")
    pair.settle()
    assert pair.replica.known_version(1) == pair.owner.version + 1
    assert pair.replica.known_version(2) == 0
    there = pair.owner.position()
    pair.set(b"a", b"2")
    pair.turn()
    pair.arrive()
    assert pair.replica.covers(there) and not pair.replica.is_at(there)
    assert not pair.replica.covers(OwnTable(Table.LASTING, 2, MemoryRows()).position())


def test_what_nobody_hears_is_found_by_its_sums():
    pair = Pair()
    pair.set(b"a", b"1")
    for change in pair.due:
        pair.change(*change)
    pair.due = []
    assert pair.owner.take_deltas(False) == []
    assert pair.owner.version == 1
    pair.settle()


def test_a_forgotten_table_leaves_nothing():
    pair = Pair(stored=True)
    pair.set(b"a", b"1")
    pair.settle()
    pair.replica.forget()
    pair.replica_side.commit()
    assert pair.view.rows == {}
    assert list(pair.replica_side.storage.scan("registry", b"", b"")) == []
    batch = WriteBatch()
    forget_tables(batch)
    pair.owner_side.storage.commit(batch)
    assert list(pair.owner_side.storage.scan("registry", b"", b"")) == []


@pytest.mark.parametrize(
    ("row", "stored"),
    [
        (b"", b"\x01"),
        (pack_row(KIND, b"c"), b"\x01"),
        (b"\xc8\0\1", b"\x01"),
        (pack_row(RowKind.SESSION, b"c"), b"\x01"),
        (pack_row(RowKind.ENDED, b"c"), b"\x01\x01"),
        (pack_row(KIND, b"c"), b"\x02"),
        (pack_row(KIND, b"c"), b""),
    ],
)
def test_a_stored_row_that_can_not_be_read_is_named(row, stored):
    side = Side(True)
    batch = WriteBatch()
    batch.put("registry", KEY_TABLE + OWNER + b"\2\0\0" + row, stored)
    side.storage.commit(batch)
    with pytest.raises(StorageError, match="registry record"):
        list(side.rows().scan())


def test_rows_of_one_subject_are_read_on_demand():
    side = Side(True)
    rows = side.rows()
    value = pack_subscription(1, 0)
    for client, topic_filter in ((b"c", b"a/#"), (b"c", b"b"), (b"cc", b"a")):
        row = pack_row(RowKind.SUBSCRIPTION, client, topic_filter)
        rows.put(bucket_of(client), row, value)
    rows.put(bucket_of(b"c"), pack_row(KIND, b"c"), b"s")
    side.commit()
    start = pack_row(RowKind.SUBSCRIPTION, b"c")
    assert rows.read_from(start) == [(start + b"a/#", value), (start + b"b", value)]
