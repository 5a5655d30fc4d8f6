"""cluster.readiness: who is missed under which rule, for how long a planned stop is not, and what counts as a split."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.readiness import ALL, AVAILABLE, MAJORITY, POLICIES, Readiness

PLANNED_S = 30.0
GRACE_S = 5.0


def readiness(policy=ALL, **running):
    """A node that began at 100.0 with these members."""
    made = Readiness(policy, PLANNED_S, GRACE_S)
    made.update(running, 100.0)
    return made


@pytest.mark.parametrize(
    ("policy", "members", "missing", "ready"),
    [
        (ALL, 1, 0, True),
        (ALL, 3, 0, True),
        (ALL, 3, 1, False),
        (ALL, 5, 4, False),
        (MAJORITY, 1, 0, True),
        (MAJORITY, 2, 1, False),
        (MAJORITY, 3, 1, True),
        (MAJORITY, 3, 2, False),
        (MAJORITY, 4, 2, False),
        (MAJORITY, 5, 2, True),
        (AVAILABLE, 2, 1, True),
        (AVAILABLE, 5, 4, True),
    ],
)
def test_the_policy_decides_how_many_may_be_missing(policy, members, missing, ready):
    made = readiness(policy, **{f"n{number}": number >= missing for number in range(members)})
    assert made.ready is ready
    made.validate()


def test_the_reason_names_who_is_missing():
    assert readiness(ALL, a=True, b=False, c=True).reason == "this node is not ready: b is not running"
    assert readiness(ALL, a=True, c=False, b=False).reason == "this node is not ready: b, c are not running"
    few = readiness(MAJORITY, a=True, b=False, c=False)
    assert few.reason == "this node is not ready: b, c are not running, 2 of 3 members"
    many = readiness(ALL, **{f"n{number}": False for number in range(10)})
    assert many.reason.endswith("n6, n7 and 2 more are not running")
    assert readiness(ALL, a=True).reason == ""


def test_a_split_is_counted_once_and_so_is_its_end():
    made = readiness(ALL, a=True, b=True)
    for times in range(1, 4):
        assert made.update({"a": True, "b": False}, 101.0)
        assert not made.update({"a": True, "b": False}, 102.0)
        assert (made.ready, made.detected, made.resolved) == (False, times, times - 1)
        assert made.update({"a": True, "b": True}, 103.0)
        assert (made.ready, made.detected, made.resolved) == (True, times, times)


def test_a_start_is_no_split():
    made = readiness(ALL, a=True, b=False)
    assert not made.ready
    assert made.update({"a": True, "b": True}, 101.0)
    assert (made.ready, made.detected, made.resolved) == (True, 0, 0)


def test_who_has_just_joined_has_a_moment_to_be_heard():
    made = readiness(ALL, a=True)
    assert not made.update({"a": True, "b": False}, 110.0)
    assert made.next_deadline() == 110.0 + GRACE_S
    assert made.update({"a": True, "b": False}, 110.0 + GRACE_S)
    assert made.update({"a": True, "b": True}, 116.0)
    # Then it is as any other.
    assert made.update({"a": True, "b": False}, 116.1)
    assert (made.detected, made.next_deadline()) == (2, math.inf)


def test_who_leaves_is_not_missed():
    made = readiness(ALL, a=True, b=True)
    assert not made.update({"a": True}, 101.0)
    made.update({"a": True, "b": True}, 102.0)
    assert made.update({"a": True, "b": False}, 110.0)
    assert made.update({"a": True}, 111.0)
    assert (made.detected, made.resolved) == (1, 1)


def test_a_planned_stop_counts_as_present_until_its_time_is_over():
    made = readiness(ALL, a=True, b=True)
    made.announced("b", 1, 101.0)
    assert not made.update({"a": True, "b": False}, 102.0)
    assert made.next_deadline() == 101.0 + PLANNED_S
    assert not made.update({"a": True, "b": False}, 130.9)
    assert made.update({"a": True, "b": False}, 131.0)
    assert (made.detected, made.next_deadline()) == (1, math.inf)


def test_who_is_back_is_missed_as_any_other():
    made = readiness(ALL, a=True, b=True)
    made.announced("b", 1, 101.0)
    # It still runs, and one of its connections is opened anew: it goes on stopping.
    made.greeted("b", 1, 101.5)
    assert not made.update({"a": True, "b": False}, 102.0)
    made.greeted("b", 2, 103.0)
    # It has greeted, and the connection to it is not up yet.
    assert not made.update({"a": True, "b": False}, 103.0)
    assert not made.update({"a": True, "b": True}, 103.1)
    assert made.update({"a": True, "b": False}, 103.0 + GRACE_S)
    made.greeted("c", 1, 104.0)


def test_no_time_for_planned_stops_means_none():
    made = Readiness(ALL, 0.0, GRACE_S)
    made.update({"a": True, "b": True}, 100.0)
    made.announced("b", 1, 101.0)
    assert made.update({"a": True, "b": False}, 101.0)


NAMES = ("b", "c", "d")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("up", "down", "plan", "leave", "wait")), st.sampled_from(NAMES), st.floats(0.0, 2 * PLANNED_S)
    ),
    max_size=40,
)


@given(st.sampled_from(POLICIES), STEPS)
def test_any_history_counts_each_change_once(policy, steps):
    made = Readiness(policy, PLANNED_S, GRACE_S)
    now = 100.0
    running = {"a": True}
    joined, planned, life = {}, {}, dict.fromkeys(NAMES, 1)
    changes = [made.ready]
    made.update(running, now)
    for step, name, seconds in steps:
        if step == "up":
            if running.get(name) is False:
                life[name] += 1
                made.greeted(name, life[name], now)
                if planned.pop(name, None) is not None:
                    joined[name] = now + GRACE_S
            joined.setdefault(name, now + GRACE_S)
            running[name] = True
        elif step == "down":
            joined.setdefault(name, now + GRACE_S)
            running[name] = False
        elif step == "plan" and name in running:
            made.announced(name, life[name], now)
            planned[name] = now + PLANNED_S
        elif step == "leave":
            for table in (running, joined, planned):
                table.pop(name, None)
        else:
            now += seconds
        made.update(running, now)
        made.validate()
        missing = [
            name
            for name in running
            if not running[name] and now >= joined[name] and now >= planned.get(name, -math.inf)
        ]
        present = len(running) - len(missing)
        assert made.ready is {ALL: not missing, MAJORITY: 2 * present > len(running), AVAILABLE: True}[policy]
        assert all(name in made.reason for name in missing) or made.ready
        if made.ready != changes[-1]:
            changes.append(made.ready)
    assert made.detected == changes.count(False)
    assert made.resolved == changes.count(True) - 1
