"""How the simulator is called, and what it says at the end.

`--seed N` replays one history and prints its trace; `--seeds N` or `--seeds A-B` runs others than the suite does.
`--leave-queues 1000` is for test_leaving, which the suite runs with fewer.
"""

from collections import Counter
from contextlib import contextmanager

import pytest
import workload
from builds import IS_INTERPRETED

# A seed is the same history compiled and interpreted, and takes three times as long then.
SEEDS = 10 if IS_INTERPRETED else 100
CHUNK = 10


def pytest_addoption(parser):
    group = parser.getgroup("simulator")
    group.addoption("--seed", type=int, default=None, help="replay one seed and print its trace")
    group.addoption("--seeds", default=None, help="how many seeds, or A-B for those from A to B")
    group.addoption(
        "--leave-queues", type=int, default=None, help="how many queues leave a node while nodes are killed"
    )


def chunks(config):
    """Return the seeds to run, as lists that are one test each."""
    seed = config.getoption("seed", None)
    if seed is not None:
        return [[seed]]
    text = str(config.getoption("seeds", None) or SEEDS)
    first, _, last = text.rpartition("-")
    seeds = range(int(first), int(last) + 1) if first else range(int(last))
    return [list(seeds[place : place + CHUNK]) for place in range(0, len(seeds), CHUNK)]


def pytest_generate_tests(metafunc):
    if "seeds" in metafunc.fixturenames:
        found = chunks(metafunc.config)
        metafunc.parametrize("seeds", found, ids=[f"{seeds[0]}-{seeds[-1]}" for seeds in found])


def pytest_collection_modifyitems(config, items):
    # Who replays a seed, or runs very many, wants nothing else.
    if config.getoption("seed", None) is not None or config.getoption("seeds", None) is not None:
        wanted = [item for item in items if "seeds" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


@pytest.fixture
def tracing(request, capfd):
    """Return a context manager that says where the trace goes: to the terminal with --seed, else nowhere."""

    @contextmanager
    def tracing():
        if request.config.getoption("seed", None) is None:
            yield None
        else:
            with capfd.disabled():
                print()
                yield print

    return tracing


def pytest_terminal_summary(terminalreporter):
    counted = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                counted.update(dict(report.user_properties).get(workload.COUNTED, {}))
    if counted:
        terminalreporter.section("simulator")
        terminalreporter.line(f"{counted['seeds']} seeds: {workload.describe(counted)}")
