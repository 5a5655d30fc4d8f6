"""cluster.registry: one home a client id on every node, whatever order the rows come in; nothing ended rises."""

import random

import pytest

from broker.core.epoch import NO_EPOCH, Epoch, pack_epoch
from broker.core.rows import RowKind, SessionRow, Table, bucket_of, pack_ended, pack_row, pack_session
from cluster.registry import Registry

STORES = {"a": b"a" * 16, "b": b"b" * 16, "c": b"c" * 16}


class View:
    """A registry of the node `a`, and short ways to tell it something."""

    def __init__(self):
        self.registry = Registry("a")

    def session(self, node, counter, client_id="x", persistent=True, stamp=0):
        epoch = Epoch(counter, stamp, STORES[node])
        value = pack_session(SessionRow(epoch, persistent, 0, None))
        table = Table.LASTING if persistent else Table.PASSING
        subject = client_id.encode()
        self.registry.set_row(node, table, bucket_of(subject), pack_row(RowKind.SESSION, subject), value)
        return epoch

    def gone(self, node, client_id="x", table=Table.LASTING):
        subject = client_id.encode()
        self.registry.remove_row(node, table, bucket_of(subject), pack_row(RowKind.SESSION, subject))

    def ended(self, node, counter, client_id="x", stamp=0):
        value = pack_ended(pack_epoch(Epoch(counter, stamp, STORES[node])))
        subject = client_id.encode()
        self.registry.set_row(node, Table.LASTING, bucket_of(subject), pack_row(RowKind.ENDED, subject), value)

    def home(self, client_id="x"):
        home = self.registry.find(client_id)
        return None if home is None else (home.node, home.epoch.counter)


@pytest.fixture
def view():
    view = View()
    yield view
    view.registry.validate()


def test_a_client_id_without_a_session_has_no_home(view):
    assert view.home() is None
    assert view.registry.highest_epoch("x") == NO_EPOCH
    assert view.registry.homes("x") == []


def test_the_latest_epoch_is_the_home(view):
    view.session("b", 2)
    view.session("c", 3, persistent=False)
    view.session("a", 1)
    assert view.home() == ("c", 3)
    assert {home.node for home in view.registry.homes("x")} == {"a", "b", "c"}
    view.gone("c", table=Table.PASSING)
    assert view.home() == ("b", 2)
    view.session("b", 4)
    assert view.home() == ("b", 4)
    assert len(view.registry.homes("x")) == 2


def test_equal_counters_are_told_apart_by_time_and_store(view):
    view.session("b", 1, stamp=5)
    view.session("a", 1, stamp=4)
    assert view.home() == ("b", 1)
    view.session("c", 1, stamp=5)
    assert view.home() == ("c", 1)


def test_a_session_that_changes_its_table_is_one(view):
    view.session("b", 1, persistent=False)
    view.gone("b", table=Table.PASSING)
    view.session("b", 1)
    assert len(view.registry.homes("x")) == 1
    assert view.registry.find("x").persistent


def test_own_rows_that_a_later_epoch_supersedes_are_told_once(view):
    view.session("a", 1)
    view.session("a", 5, "y")
    view.session("b", 2)
    view.session("b", 2, "y")
    view.session("b", 2, "z")
    assert view.registry.take_superseded() == ["x"]
    assert view.registry.take_superseded() == []


def test_what_is_superseded_no_more_is_not_told(view):
    view.session("a", 1)
    view.session("b", 2)
    view.session("a", 3)
    assert view.registry.take_superseded() == []


def test_an_own_row_that_comes_after_the_later_one_is_superseded(view):
    view.session("b", 2)
    view.session("a", 1)
    assert view.registry.take_superseded() == ["x"]


def test_what_ended_elsewhere_is_no_home_and_supersedes(view):
    view.session("a", 1)
    view.session("b", 2)
    view.ended("c", 3)
    assert view.home() is None
    assert view.registry.highest_epoch("x").counter == 3
    assert view.registry.take_superseded() == ["x"]
    view.session("b", 4)
    assert view.home() == ("b", 4)
    assert view.registry.highest_epoch("x").counter == 4


def test_an_ended_row_does_not_end_the_session_that_it_came_with(view):
    epoch = view.session("b", 3, persistent=False)
    value = pack_ended(pack_epoch(epoch))
    view.registry.set_row("b", Table.LASTING, bucket_of(b"x"), pack_row(RowKind.ENDED, b"x"), value)
    assert view.home() == ("b", 3)


def test_a_bucket_that_is_told_anew_is_forgotten_for_that_table_alone(view):
    view.session("b", 1)
    view.session("b", 1, persistent=False)
    view.session("c", 2)
    view.ended("b", 3)
    view.ended("c", 1)
    bucket = bucket_of(b"x")
    view.registry.bucket_replaced("b", Table.PASSING, bucket)
    assert {(home.node, home.table) for home in view.registry.homes("x")} == {("b", 2), ("c", 2)}
    assert view.registry.ended("x").counter == 3
    view.registry.bucket_replaced("b", Table.LASTING, bucket)
    assert [home.node for home in view.registry.homes("x")] == ["c"]
    assert view.registry.ended("x").counter == 1


def test_clients_of_a_node_are_those_that_it_is_the_home_of(view):
    for number in range(20):
        view.session("b", 1, f"client{number}")
    view.session("c", 2, "client7")
    view.ended("c", 2, "client8")
    found = dict(view.registry.clients_of("b"))
    assert set(found) == {f"client{number}" for number in range(20)} - {"client7", "client8"}
    assert all(home.node == "b" for home in found.values())
    assert [client_id for client_id, _ in view.registry.clients_of("c")] == ["client7"]


def test_the_order_in_which_rows_come_does_not_matter():
    """Any two registries that hold the same rows say the same."""
    for seed in range(50):
        rng = random.Random(seed)
        facts = {(node, rng.choice("xyz"), table): rng.randrange(1, 6) for node in STORES for table in (False, True)}
        views = []
        for _ in range(2):
            view = View()
            order = list(facts.items())
            rng.shuffle(order)
            for (node, client_id, persistent), counter in order:
                view.session(node, rng.randrange(1, 9), client_id, persistent)
                view.session(node, counter, client_id, persistent)
            view.registry.validate()
            views.append(view)
        assert views[0].registry.rows() == views[1].registry.rows()
        assert [views[0].home(each) for each in "xyz"] == [views[1].home(each) for each in "xyz"], f"seed {seed}"
