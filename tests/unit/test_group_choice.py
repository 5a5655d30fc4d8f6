"""broker.core.group_choice: which node gets a message of a shared group, by policy and by who is connected where."""

from collections import Counter

import pytest

from broker.core.group_choice import (
    HERE,
    LOCAL_ONLY,
    POLICIES,
    PREFER_LOCAL,
    PREFER_ONLINE,
    RANDOM,
    GroupPart,
    GroupParts,
    Lots,
    choose,
)

LOCAL = (PREFER_LOCAL, PREFER_ONLINE, LOCAL_ONLY)
# The lots at both ends and in the middle of their range.
LOTS = (0, 1 << 31, (1 << 32) - 1)
ONLINE = GroupPart("online", 2, False)
AWAY = GroupPart("away", 0, True)
DOWN = GroupPart("down", 3, True, running=False)
DOWN_PASSING = GroupPart("gone", 3, False, running=False)


def chosen(policy, online=0, persistent=False, parts=(), keeps=True):
    return {choose(policy, online, persistent, parts, keeps, lot) for lot in LOTS}


@pytest.mark.parametrize("policy", LOCAL)
def test_who_is_connected_here_comes_first(policy):
    assert chosen(policy, 1, False, [ONLINE, AWAY, DOWN]) == {HERE}
    assert chosen(policy, 1, True, [ONLINE], keeps=False) == {HERE}


def test_random_is_for_everybody_who_is_connected_wherever():
    assert chosen(RANDOM, 1, True, [ONLINE, AWAY, DOWN]) == {HERE, "online"}
    assert chosen(RANDOM, 0, True, [ONLINE, AWAY]) == {"online"}


@pytest.mark.parametrize("policy", [PREFER_LOCAL, PREFER_ONLINE, RANDOM])
def test_who_is_connected_elsewhere_comes_before_who_is_away_here(policy):
    assert chosen(policy, 0, True, [AWAY, ONLINE, DOWN]) == {"online"}
    assert chosen(policy, 0, False, [DOWN, ONLINE], keeps=False) == {"online"}


def test_local_only_is_for_nobody_else():
    assert chosen(LOCAL_ONLY, 0, True, [ONLINE]) == {HERE}
    assert chosen(LOCAL_ONLY, 0, False, [ONLINE, AWAY]) == {None}
    assert chosen(LOCAL_ONLY, 0, True, [ONLINE], keeps=False) == {None}


@pytest.mark.parametrize("policy", [PREFER_LOCAL, PREFER_ONLINE, RANDOM])
def test_with_nobody_connected_it_waits_where_somebody_will_come_back(policy):
    assert chosen(policy, 0, True, [AWAY, DOWN]) == {HERE}
    assert chosen(policy, 0, False, [DOWN, AWAY, DOWN_PASSING]) == {"away"}
    # A node that is down has nobody connected, whatever was known of it.
    assert chosen(policy, 0, False, [DOWN, DOWN_PASSING]) == {"down"}
    assert chosen(policy, 0, False, [DOWN_PASSING]) == {None}


@pytest.mark.parametrize("policy", POLICIES)
def test_qos0_waits_for_nobody(policy):
    assert chosen(policy, 0, True, [AWAY, DOWN], keeps=False) == {None}
    assert chosen(policy, keeps=True) == {None}


def test_each_member_has_the_same_share_of_what_is_random():
    lots = Lots(7)
    parts = [GroupPart("b", 3, False), GroupPart("c", 1, True), GroupPart("d", 0, True), GroupPart("e", 4, False)]
    found = Counter(choose(RANDOM, 2, False, parts, True, lots.take()) for _ in range(1000))
    assert {name: round(count / 100) for name, count in found.items()} == {HERE: 2, "b": 3, "c": 1, "e": 4}


def test_those_who_wait_share_alike():
    lots = Lots(0)
    parts = [GroupPart(name, 0, True) for name in "bcd"]
    found = Counter(choose(PREFER_LOCAL, 0, False, parts, True, lots.take()) for _ in range(300))
    assert all(abs(count - 100) < 3 for count in found.values())


def test_chance_is_the_same_each_time_and_another_at_each_node():
    def some(seed):
        lots = Lots(seed)
        return [lots.take() for _ in range(10)]

    assert some(5) == some(5)
    assert some(5) != some(1 << 63)
    assert all(0 <= lot < 1 << 32 for lot in some(2**64 + 5))


def test_a_group_is_persistent_where_one_part_is():
    group = GroupParts(b"$share/g/a")
    assert not group.is_persistent()
    group.parts["b"] = GroupPart("b", 3, False)
    assert not group.is_persistent()
    group.parts["c"] = GroupPart("c", 0, True, running=False)
    assert group.is_persistent()
