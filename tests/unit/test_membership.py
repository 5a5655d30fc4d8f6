"""cluster.membership: merging converges, removed stays removed, and liveness is what this node hears."""

import itertools
import math
import random
from dataclasses import replace

import pytest

from cluster.membership import BUSY_TIMEOUTS, Liveness, Member, Membership, State

STORES = [bytes([number]) * 16 for number in range(8)]


def membership(name="a@a", store=STORES[0], restarts=1):
    return Membership(name, store, restarts, f"{name}:1")


def member(name="b@b", store=STORES[1], incarnation=5, state=State.ALIVE, address="b:1"):
    return Member(name, store, incarnation, address, state)


def test_incarnation_and_then_state_decide():
    view = membership()
    assert view.alone()
    assert view.merge(member())
    assert not view.merge(member())
    assert view.merge(member(state=State.DEAD))
    assert not view.merge(member(state=State.SUSPECT))
    assert view.merge(member(incarnation=6, address="b:2"))
    assert view.members["b@b"].address == "b:2"
    assert not view.merge(member(incarnation=5, state=State.LEFT))
    assert view.merge(member(incarnation=6, state=State.LEFT))
    assert view.alone()
    view.validate()


def test_a_suspected_member_refutes_and_a_restart_is_above_every_refutation():
    view = membership()
    own = view.own()
    assert view.merge(replace(own, state=State.DEAD))
    assert view.own().incarnation == own.incarnation + 1
    assert view.own().state == State.ALIVE
    assert not view.merge(replace(own, state=State.DEAD)), "an old rumour"
    for _ in range(1000):
        view.merge(replace(view.own(), state=State.SUSPECT))
    assert membership(restarts=2).own().incarnation > view.own().incarnation


def test_removed_pairs_are_remembered_and_refused():
    view = membership()
    view.merge(member())
    assert view.merge_removed("b@b", STORES[1])
    assert "b@b" not in view.members
    assert not view.merge(member(incarnation=99))
    assert "removed" in view.refusal("b@b", STORES[1])
    assert view.refusal("b@b", STORES[2]) == "", "a new store under the old name is a new member"


def test_a_node_that_is_back_under_its_name_knows_its_former_store_as_removed_as_the_others_do():
    view = membership()
    view.merge(member())
    other = Membership("b@b", STORES[1], 1, "b:1")
    other.merge(view.own())
    other.merge(member())
    for each in (view, other):
        assert each.merge_removed("a@a", STORES[2])
    assert not view.merge_removed("a@a", STORES[0]), "that is this node"
    assert "a@a" in view.members
    other.members["b@b"] = view.members["b@b"]
    assert other.merge_removed("c@c", STORES[2]) and view.merge_removed("c@c", STORES[2])
    assert view.digest() == other.digest()


def test_a_second_store_under_a_name_is_refused_while_the_first_is_a_member():
    view = membership()
    view.merge(member())
    assert view.refusal("b@b", STORES[1]) == ""
    assert "a member named b@b with another store is already in the cluster" in view.refusal("b@b", STORES[2])
    assert "can't join itself" in view.refusal("a@a", STORES[0])
    view.merge(member(state=State.LEFT))
    assert view.refusal("b@b", STORES[2]) == ""


def test_merging_in_any_order_gives_the_same():
    told = [
        member(incarnation=1),
        member(incarnation=1, state=State.DEAD),
        member(incarnation=2, address="b:9"),
        member(store=STORES[2], incarnation=1),
        member("c@c", STORES[3], 1),
        member("c@c", STORES[3], 1, State.LEAVING),
    ]
    digests = set()
    for order in itertools.permutations(told):
        view = membership()
        for each in order:
            view.merge(each)
        view.validate()
        digests.add((view.digest(), view.members["b@b"]))
    assert len(digests) == 1


def test_members_that_exchange_everything_agree():
    names = ["a@a", "b@b", "c@c"]
    for seed in range(50):
        rng = random.Random(seed)
        views = {name: membership(name, STORES[place]) for place, name in enumerate(names)}
        for name, other in itertools.permutations(names, 2):
            views[name].merge(views[other].own())
        for _ in range(30):
            view = views[rng.choice(names)]
            other = rng.choice(names)
            if other != view.name:
                view.tell(other, rng.choice([State.SUSPECT, State.DEAD]))
            for each in list(views[rng.choice(names)].members.values()):
                view.merge(each)
        for _ in range(3):
            for name, other in itertools.permutations(names, 2):
                for each in list(views[other].members.values()):
                    views[name].merge(each)
        assert len({view.digest() for view in views.values()}) == 1, f"seed {seed}"
        assert all(each.state == State.ALIVE for each in views["a@a"].members.values()), f"seed {seed}"


def test_a_peer_never_heard_is_dead_until_heard_and_connected():
    liveness = Liveness(5.0, 0.0)
    assert not liveness.running()
    assert liveness.deadline() == math.inf
    liveness.connection_opened(1.0)
    assert not liveness.running()
    liveness.heard(1, 1.1)
    assert liveness.state == State.ALIVE


def test_hello_may_come_before_the_own_connection():
    liveness = Liveness(5.0, 0.0)
    liveness.heard(1, 1.0)
    assert not liveness.running()
    liveness.connection_opened(1.1)
    assert liveness.state == State.ALIVE


def test_a_closed_connection_makes_suspect_and_the_timeout_dead():
    liveness = alive_at(10.0)
    liveness.connection_closed(12.0)
    assert liveness.state == State.SUSPECT
    assert liveness.running()
    assert liveness.deadline() == 17.0
    liveness.tick(16.9)
    assert liveness.running()
    liveness.tick(17.0)
    assert not liveness.running()


def test_an_owner_that_restarts_in_time_is_no_netsplit():
    liveness = alive_at(10.0)
    liveness.connection_closed(12.0)
    liveness.connection_opened(16.0)
    assert liveness.state == State.SUSPECT, "its I/O thread answers; it has not spoken"
    liveness.tick(18.0)
    assert liveness.running()
    liveness.heard(1, 19.0, greeting=True)
    assert liveness.state == State.ALIVE


def test_a_busy_owner_is_not_dead_before_three_timeouts():
    liveness = alive_at(10.0)
    for second in range(11, 25):
        liveness.heard(1, float(second))
        liveness.tick(float(second))
        assert liveness.state == State.ALIVE
    liveness.tick(10.0 + BUSY_TIMEOUTS * 5.0)
    assert liveness.state == State.DEAD


def test_who_slept_blames_nobody():
    liveness = alive_at(10.0)
    liveness.shift(60.0, 70.0)
    liveness.tick(70.0)
    assert liveness.state == State.ALIVE
    assert liveness.deadline() == 70.0 + 15.0


@pytest.mark.parametrize("state", list(State))
def test_states_override_in_their_order(state):
    view = membership()
    view.merge(member(state=state))
    for other in State:
        assert view.tell("b@b", other) == (other > state)
        state = max(state, other)
        assert view.members["b@b"].state == state


def alive_at(now):
    liveness = Liveness(5.0, now)
    liveness.connection_opened(now)
    liveness.heard(1, now)
    return liveness
