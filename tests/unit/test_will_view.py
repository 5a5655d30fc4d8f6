"""cluster.will_view: what the rows of wills come to, in whatever order they come and go."""

import pytest

from broker.core.epoch import Epoch, pack_epoch
from broker.core.left_will import LeftWill, pack_will_row
from broker.core.rows import RowKind, SessionRow, Table, bucket_of, pack_away, pack_claim, pack_row, pack_session
from broker.core.will import Will
from cluster.registry import Registry

STORES = {"a": b"a" * 16, "b": b"b" * 16, "c": b"c" * 16}
X = bucket_of(b"x")


class View:
    """The registry of the node `a`, told of rows of the client id x."""

    def __init__(self):
        self.registry = Registry("a")
        self.wills = self.registry.wills
        self.wills.now = 100.0

    def will(self, node, number=1, counter=1, due=0.0, wait_s=5):
        left = LeftWill("x", None, Will(b"t", b""))
        left.number, left.due, left.wait_s = number, due, wait_s
        left.epoch = pack_epoch(Epoch(counter, 0, STORES[node]))
        self.registry.set_row(node, Table.LASTING, X, pack_row(RowKind.WILL, b"x"), pack_will_row(left))

    def no_will(self, node):
        self.registry.remove_row(node, Table.LASTING, X, pack_row(RowKind.WILL, b"x"))

    def claim(self, teller, whose, claimer, number=1, spent=False):
        row = pack_row(RowKind.CLAIM, b"x", STORES[whose] + STORES[claimer])
        self.registry.set_row(teller, Table.LASTING, X, row, pack_claim(number, spent))

    def session(self, node, counter):
        value = pack_session(SessionRow(Epoch(counter, 0, STORES[node]), False, 0, None))
        self.registry.set_row(node, Table.PASSING, X, pack_row(RowKind.SESSION, b"x"), value)


@pytest.fixture
def view():
    view = View()
    yield view
    view.registry.validate()


def test_a_will_is_known_until_it_is_gone(view):
    view.will("b", 7, counter=3)
    will = view.wills.will("b", b"x")
    assert (will.number, will.epoch, will.wait_s, will.waits_since) == (7, pack_epoch(Epoch(3, 0, STORES["b"])), 5, 0.0)
    assert [client_id for client_id, _ in view.wills.wills_of("b")] == [b"x"]
    assert view.registry.next_counter("x", Epoch(1, 0, STORES["a"])) == 4
    view.no_will("b")
    assert view.wills.will("b", b"x") is None
    assert list(view.wills.wills_of("b")) == []


def test_a_will_is_over_that_came_and_went(view):
    """Not one that was never heard of, which may come yet, nor one of another store under the same name."""
    assert not view.wills.is_over("b", b"x", 6)
    view.will("b", 7)
    assert [view.wills.is_over("b", b"x", number) for number in (6, 7, 8)] == [True, False, False]
    view.no_will("b")
    assert [view.wills.is_over("b", b"x", number) for number in (6, 7, 8)] == [True, True, False]
    assert not view.wills.is_over("c", b"x", 7)
    view.wills.forget("b")
    assert not view.wills.is_over("b", b"x", 7)


def test_since_when_a_will_waits_is_when_this_node_heard_so(view):
    view.will("b", due=1e9)
    assert view.wills.will("b", b"x").waits_since == 100.0


def test_a_bucket_that_is_told_anew_forgets_what_it_held(view):
    view.will("b")
    view.claim("b", "c", "b")
    view.will("c")
    view.registry.bucket_replaced("b", Table.PASSING, X)
    assert view.wills.will("b", b"x") is not None
    view.registry.bucket_replaced("b", Table.LASTING, X)
    assert view.wills.will("b", b"x") is None
    assert view.wills.claims_of("b") == []
    assert view.wills.will("c", b"x") is not None


def test_claims_are_of_one_will_of_one_store(view):
    view.claim("b", "c", "b", 1)
    view.claim("b", "a", "b", 1)
    view.claim("a", "c", "b", 2, True)
    assert [claim.teller for claim in view.wills.claims(b"x", STORES["c"], 1)] == ["b"]
    assert [claim.spent for claim in view.wills.claims(b"x", STORES["c"], 2)] == [True]
    assert [claim.whose for claim in view.wills.own_claims_on(b"x")] == [STORES["c"]]


def test_what_may_concern_this_node_is_looked_at_once(view):
    view.will("b")
    assert view.wills.take_doubtful() == []
    view.will("a")
    assert view.wills.take_doubtful() == [b"x"]
    view.claim("b", "a", "b")
    view.session("c", 4)
    assert view.wills.take_doubtful() == [b"x"]
    assert view.wills.take_doubtful() == []


def test_a_client_that_is_back_here_is_noted_in_whatever_order_the_rows_come(view):
    view.session("a", 4)
    assert view.wills.take_back() == []
    view.will("b")
    assert view.wills.take_back() == [b"x"]
    view.session("a", 5)
    assert view.wills.take_back() == [b"x"]
    view.no_will("b")
    view.session("a", 6)
    assert view.wills.take_back() == []


def test_who_does_not_hear_whom(view):
    row = pack_row(RowKind.AWAY, STORES["c"])
    bucket = bucket_of(STORES["c"])
    view.registry.set_row("b", Table.PASSING, bucket, row, pack_away())
    assert view.wills.is_away_for("b", STORES["c"])
    assert not view.wills.is_away_for("a", STORES["c"])
    view.registry.bucket_replaced("b", Table.LASTING, bucket)
    assert view.wills.is_away_for("b", STORES["c"])
    view.registry.bucket_replaced("b", Table.PASSING, bucket)
    assert not view.wills.is_away_for("b", STORES["c"])
