"""cluster.own_tables: the stored rows follow the sessions, and what ended elsewhere does not rise again."""

import pytest

from broker.core.effects import InterestChange
from broker.core.epoch import Epoch, pack_epoch, unpack_epoch
from broker.core.rows import (
    RowChange,
    RowKind,
    SessionRow,
    Table,
    bucket_of,
    pack_ended,
    pack_interest,
    pack_row,
    pack_session,
    pack_subscription,
    row_hash,
    unpack_ended,
)
from broker.core.storage import MemoryStorage, WriteBatch
from broker.core.stored_message import Clock
from cluster.clock import HybridClock
from cluster.own_tables import OwnTables
from cluster.registry import Registry
from cluster.retained_view import RetainedView
from cluster.table_rows import KEY_TABLE
from cluster.turn import Turn

STORES = {"a": b"a" * 16, "b": b"b" * 16}
PASSING, LASTING = int(Table.PASSING), int(Table.LASTING)
X = pack_row(RowKind.SESSION, b"x")
ENDED = pack_row(RowKind.ENDED, b"x")


def session_value(node="a", counter=1, persistent=True):
    return pack_session(SessionRow(Epoch(counter, 0, STORES[node]), persistent, 0, None))


class Node:
    """The tables of node `a` with its registry and store."""

    def __init__(self, storage=None, incarnation=1):
        self.storage = storage or MemoryStorage()
        self.turn = Turn()
        self.registry = Registry("a")
        self.retained = RetainedView(
            "a", STORES["a"], self.storage, self.turn, Clock(0.0, 0), HybridClock(), heartbeat_s=1.0
        )
        self.own = OwnTables("a", STORES["a"], incarnation, self.storage, self.turn, self.registry, self.retained)

    def restart(self):
        return Node(self.storage.survivor(), self.own.all[LASTING].generation + 1)

    def restore(self, *rows):
        self.own.restore(lambda: iter(rows))
        self.commit()

    def commit(self):
        for table in self.own.all.values():
            table.take_deltas(False)
        batch = WriteBatch()
        self.turn.take_writes(batch)
        self.storage.commit(batch)
        self.own.validate()
        for table in self.own.all.values():
            table.validate_rows()
        return len(batch)

    def session(self, counter=1, persistent=True, before=None):
        """This node's session of x begins; `before` is its value until now."""
        table = LASTING if persistent else PASSING
        was = 0 if before is None else row_hash(X, before)
        self.own.change([RowChange(table, X, was, session_value("a", counter, persistent))])

    def end(self, counter=1, persistent=True):
        table = LASTING if persistent else PASSING
        self.own.change([RowChange(table, X, row_hash(X, session_value("a", counter, persistent)), None)])

    def other(self, counter, persistent=True):
        """Node b has a session of x."""
        table = LASTING if persistent else PASSING
        self.registry.set_row("b", table, bucket_of(b"x"), X, session_value("b", counter, persistent))

    def other_gone(self, table=LASTING):
        self.registry.remove_row("b", table, bucket_of(b"x"), X)

    def marker(self):
        """The epoch counter of this node's ENDED row, as others see it; 0 without one."""
        self.commit()
        found = {row: value for _, row, value in self.own.all[LASTING].rows.scan()}
        return unpack_epoch(unpack_ended(found[ENDED]), 0).counter if ENDED in found else 0


def rows_of(node, table):
    node.commit()
    return {row: value for _, row, value in node.own.all[table].rows.scan()}


def test_changes_are_in_the_table_the_registry_and_the_store():
    node = Node()
    subscription = pack_row(RowKind.SUBSCRIPTION, b"x", b"a/#")
    value = pack_subscription(1, 0)
    node.session()
    node.own.change([RowChange(LASTING, subscription, 0, value)])
    assert node.registry.find("x").node == "a"
    assert node.commit() == 2
    assert rows_of(node, LASTING) == {X: session_value(), subscription: value}
    node.own.change([RowChange(LASTING, subscription, row_hash(subscription, value), None)])
    node.end()
    assert rows_of(node, LASTING) == {}
    assert node.registry.find("x") is None
    assert node.marker() == 0


def test_what_sessions_want_is_passing():
    node = Node()
    row = pack_row(RowKind.INTEREST, b"a/#")
    node.own.change_interest([InterestChange(b"a/#", True, False), InterestChange(b"b", True, True)])
    node.own.change_interest([InterestChange(b"a/#", True, True), InterestChange(b"b", False, False)])
    node.own.change_interest([InterestChange(b"never", False, False)])
    assert rows_of(node, PASSING) == {row: pack_interest(True)}
    assert node.commit() == 0


def test_a_restart_reads_what_is_stored_and_writes_nothing():
    node = Node()
    node.session()
    node.commit()
    sums = list(node.own.all[LASTING].sums)
    node = node.restart()
    node.own.restore(lambda: iter([(LASTING, X, session_value())]))
    assert node.commit() == 0
    assert node.own.all[LASTING].sums == sums
    assert node.own.all[LASTING].version == 0
    assert node.registry.find("x").node == "a"


def test_a_store_without_rows_or_with_others_is_put_right():
    wanted = {pack_row(RowKind.SESSION, b"client%d" % number): session_value() for number in range(300)}
    node = Node()
    node.restore(*[(LASTING, row, value) for row, value in wanted.items()])
    assert rows_of(node, LASTING) == wanted
    node = node.restart()
    # One ended with the start, another is not what it was, a third has come; what ended elsewhere stays as it was.
    row = pack_row(RowKind.ENDED, b"client7")
    node.own.change([RowChange(LASTING, row, 0, pack_ended(pack_epoch(Epoch(5, 0, STORES["a"]))))])
    node.commit()
    node = node.restart()
    gone, changed, new = (pack_row(RowKind.SESSION, client) for client in (b"client1", b"client2", b"new"))
    del wanted[gone]
    wanted[changed] = session_value(counter=9)
    wanted[new] = session_value()
    node.restore(*[(LASTING, row, value) for row, value in wanted.items()], (PASSING, X, session_value("a", 1, False)))
    assert rows_of(node, LASTING) == {**wanted, row: pack_ended(pack_epoch(Epoch(5, 0, STORES["a"])))}
    assert rows_of(node, PASSING) == {X: session_value("a", 1, False)}
    assert node.own.all[LASTING].version == 1


def test_a_store_that_became_another_one_has_rows_under_its_own_name():
    node = Node()
    node.session()
    node.commit()
    node.own = OwnTables("a", b"another store...", 2, node.storage, node.turn, node.registry, node.retained)
    node.restore((LASTING, X, session_value()))
    assert any(key.startswith(KEY_TABLE + b"another store...") for key, _ in node.storage.scan("registry", b"", b""))


# What ended.


def test_a_session_that_ends_while_another_node_has_an_older_one_leaves_a_row():
    node = Node()
    node.other(1)
    node.session(2)
    node.own.settle(False)
    assert node.marker() == 0
    node.end(2)
    node.own.settle(False)
    assert node.marker() == 2
    assert node.registry.find("x") is None


@pytest.mark.parametrize("first", ["own", "other"])
def test_a_session_that_is_not_stored_has_its_row_while_it_lives(first):
    node = Node()
    for who in ["own", "other"] if first == "own" else ["other", "own"]:
        if who == "own":
            node.session(2, persistent=False)
        else:
            node.other(1)
        node.own.settle(False)
    assert node.marker() == 2
    assert node.registry.find("x").node == "a"
    # It ends with the node.
    node = node.restart()
    node.restore()
    node.other(1)
    assert node.registry.find("x") is None
    assert node.marker() == 2


def test_the_row_stays_until_every_member_is_known_and_none_has_an_older_session():
    node = Node()
    node.other(1)
    node.session(2, persistent=False)
    node.end(2, persistent=False)
    node.own.settle(True)
    assert node.marker() == 2
    node.other_gone()
    node.own.settle(False)
    assert node.marker() == 2
    node.own.settle(True)
    assert node.marker() == 0
    assert node.registry.own_ended() == []


def test_a_later_session_elsewhere_is_no_reason_for_the_row():
    node = Node()
    node.own.settle(True)
    node.other(1)
    node.session(2, persistent=False)
    node.own.settle(True)
    assert node.marker() == 2
    node.other(3)
    node.own.settle(True)
    assert node.marker() == 0
    assert node.registry.take_superseded() == ["x"]


def test_a_later_end_replaces_an_earlier_one():
    node = Node()
    node.other(1)
    node.session(2)
    node.end(2)
    node.session(5)
    node.end(5)
    assert node.marker() == 5
    node.own.end(b"x", pack_epoch(Epoch(3, 0, STORES["a"])))
    assert node.marker() == 5


@pytest.mark.parametrize(
    ("counter", "table", "moved", "untold", "marker"),
    [
        (2, LASTING, False, True, 2),
        (2, LASTING, False, False, 0),
        (2, LASTING, True, True, 0),
        # Nothing was kept for a session that is not stored, and there was none before the first.
        (2, PASSING, False, True, 0),
        (1, LASTING, False, True, 0),
    ],
)
def test_a_session_that_ends_while_others_may_have_something_of_older_ones_leaves_a_row(
    counter, table, moved, untold, marker
):
    node = Node()
    node.session(counter, table == LASTING)
    value = session_value("a", counter, table == LASTING)
    node.own.change([RowChange(table, X, row_hash(X, value), None, moved)], untold)
    node.own.settle(False)
    assert node.marker() == marker
    node.own.settle(True)
    assert node.marker() == 0
