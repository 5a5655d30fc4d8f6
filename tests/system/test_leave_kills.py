"""A forced leave of many queues in which processes are killed by SIGKILL: nothing is lost or doubled, order is kept.

`make crash-leave KILLS=10` kills the node that leaves in ten rounds, and a target in ten others. Each round prints its
seed; `--crash-seed N` begins with that one.
"""

import random
import time
from collections.abc import Callable

import pytest
from clients import Client, wait_known
from crowd import Crowd
from leaves import leave, leaving
from nodes import COOKIE, LIMIT_S, Node, join_all, start_all, wait_until

SEED = 40
UNBOUNDED = ["mqtt.max_offline_messages=-1", "mqtt.max_online_messages=-1"]
QUEUES = 1000
# What waits in each when the leave begins, and what comes while it goes on.
WAITING, COMING = 3, 2
# After the migration began, which takes longer.
KILL_AFTER_S_MAX = 0.4
ORDERS_MAX = 10
X, TARGET, BOTH = "the node that leaves", "a target", "both"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A round in which both die, or as many as are asked for in which one does."""
    if "victim" not in metafunc.fixturenames:
        return
    count = metafunc.config.getoption("leave_kills", None)
    first = metafunc.config.getoption("crash_seed", None) or SEED
    victims = [BOTH] if count is None else [X, TARGET]
    rounds = [(victim, seed) for victim in victims for seed in range(first, first + (count or 1))]
    metafunc.parametrize(("victim", "seed"), rounds, ids=[f"{victim} {seed}" for victim, seed in rounds])


def test_whoever_is_killed_while_queues_are_moved_nothing_is_lost(
    make_node: Callable[..., Node], victim: str, seed: int
) -> None:
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    members = [make_node(number, COOKIE, UNBOUNDED) for number in (1, 2, 3)]
    at, target, node = members
    start_all(members)
    join_all(members)
    crowd = Crowd(QUEUES)
    crowd.begin(node)
    with Client(node) as last, Client(at) as publisher:
        wait_known(last, publisher)
    coming, progress = crowd.publisher(at, crowd.plan(0, WAITING + COMING))
    assert progress.wait(QUEUES * WAITING, 2 * LIMIT_S), coming.fault
    with leaving(at, node, "-k", "--force", "-i", "1") as command:
        killed = {X: [node], TARGET: [target], BOTH: [target, node]}[victim]
        wait_until(lambda: "leave: migrating" in node.said(), "the begin of the migration")
        # The moment is what the round is about, and is the seed's: nothing is waited for.
        time.sleep(chance.uniform(0, KILL_AFTER_S_MAX))
        assert node.process is not None and node.process.poll() is None, "it has left before anybody was killed"
        # Both at once: one that is back may be all that the other has waited for.
        for each in killed:
            each.kill()
        for each in killed:
            each.launch()
            # One that was killed at the very end of its leave has left, and ends when it hears so.
            each.wait_ready_or_end()
        code, said, _ = command.end()
    for _ in range(ORDERS_MAX):
        if code == 0:
            break
        print(said, flush=True)
        code, said, _ = leave(at, node, "-k", "--force", "-i", "1")
    assert (code, said) == (0, "Done")
    assert node.wait_end() == 0
    assert coming.done.wait(2 * LIMIT_S), coming.fault
    coming.leaving.set()
    assert sum(int(each.status()["num_offline"]) + int(each.status()["num_online"]) for each in (at, target)) >= QUEUES
    crowd.hear([at, target], WAITING + COMING)
    assert crowd.faults(WAITING + COMING) == []
