"""The simulator's seeds: a virtual cluster under load and faults, judged as a whole; and that a seed is a history."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import workload
from builds import compiled
from ledger import Ledger
from population import Population
from world import World


def test_promises_hold_under_faults(seeds, record_property, tracing):
    failures = []
    counted = Counter()
    for seed in seeds:
        try:
            with tracing() as trace:
                result = workload.run(seed, trace)
        except workload.Failure as failure:
            if len(seeds) == 1:
                raise
            failures.append(str(failure))
            continue
        counted.update(result.stats)
        counted["seeds"] += 1
        print(f"seed {seed}: {result.line()}")
    record_property(workload.COUNTED, dict(counted))
    assert not failures, "\n" + "\n".join(failures)


@compiled
@pytest.mark.parametrize("seed", [0, 1, 3, 7, 11])
def test_a_seed_is_one_history(seed):
    first = workload.run(seed).digest
    assert workload.run(seed).digest == first
    # Another process hashes strings in another way: nothing may depend on the order of a set.
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import workload; print(workload.run(int(sys.argv[2])).digest)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(seed + 1)}
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", program, here, str(seed)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert printed.stdout.strip() == first


def test_a_member_that_takes_what_nobody_else_may_have_stays():
    # [MQTT-4.8.2-5] What a session of a group has at QoS 2 goes to no other when that session ends.
    roamers = set()
    for seed in range(8):
        world = World(seed)
        for name in ("node1@h", "node2@h", "node3@h"):
            world.add_node(name)
        for worker in Population(world, Ledger(), wide=False, flooded=False).workers:
            assert worker.steady == (2 in worker.wanted.values()), (seed, worker.name)
            if worker.roams:
                roamers.add(worker.steady)
    assert roamers == {False, True}


def test_a_failure_says_how_to_see_it_again():
    def break_the_world(world):
        world.later(5.0, world.check, False, "planted")

    with pytest.raises(workload.Failure, match=r"seed 4 .*planted\nsee it again: .*pytest tests/sim --seed 4"):
        workload.run(4, prepare=break_the_world)
