"""How the simulator is called, and what it says at the end.

`--seed N` replays one history and prints its trace; `--seeds N` or `--seeds A-B` runs others than the suite does.
`--history N` and `--histories N` or `--histories A-B` are the same for the short histories of moves and joins.
`--leave-queues 1000` is for test_leaving, which the suite runs with fewer.
"""

from collections import Counter
from contextlib import contextmanager

import pytest
import short_history
import workload
from builds import IS_INTERPRETED

# By the name of an option and a fixture: the option that replays one seed, how many the suite runs, and how many are a
# test. A seed is the same history compiled and interpreted, and takes three times as long then.
RUNS = {
    "seeds": ("seed", 10 if IS_INTERPRETED else 100, 10),
    "histories": ("history", 10 if IS_INTERPRETED else 150, 25),
}


def pytest_addoption(parser):
    group = parser.getgroup("simulator")
    group.addoption("--seed", type=int, default=None, help="replay one seed and print its trace")
    group.addoption("--seeds", default=None, help="how many seeds, or A-B for those from A to B")
    group.addoption("--history", type=int, default=None, help="replay one short history and print its trace")
    group.addoption("--histories", default=None, help="how many short histories, or A-B for those from A to B")
    group.addoption(
        "--leave-queues", type=int, default=None, help="how many queues leave a node while nodes are killed"
    )


def is_replayed(config):
    """Say whether one seed is replayed."""
    return any(config.getoption(one, None) is not None for one, _, _ in RUNS.values())


def chunks(config, name):
    """Return the seeds to run, as lists that are one test each."""
    one, count, size = RUNS[name]
    seed = config.getoption(one, None)
    if seed is not None:
        return [[seed]]
    text = str(config.getoption(name, None) or count)
    first, _, last = text.rpartition("-")
    seeds = range(int(first), int(last) + 1) if first else range(int(last))
    return [list(seeds[place : place + size]) for place in range(0, len(seeds), size)]


def pytest_generate_tests(metafunc):
    for name in RUNS:
        if name in metafunc.fixturenames:
            found = chunks(metafunc.config, name)
            metafunc.parametrize(name, found, ids=[f"{seeds[0]}-{seeds[-1]}" for seeds in found])


def pytest_collection_modifyitems(config, items):
    # Who replays a seed, or runs very many, wants nothing else.
    asked = {
        name
        for name, (one, _, _) in RUNS.items()
        if config.getoption(one, None) is not None or config.getoption(name, None) is not None
    }
    if asked:
        wanted = [item for item in items if asked & set(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


@pytest.fixture
def tracing(request, capfd):
    """Return a context manager that says where the trace goes: to the terminal for who replays a seed, else nowhere."""

    @contextmanager
    def tracing():
        if not is_replayed(request.config):
            yield None
        else:
            with capfd.disabled():
                print()
                yield print

    return tracing


def pytest_terminal_summary(terminalreporter):
    lines = []
    for name, module in (("seeds", workload), ("histories", short_history)):
        counted = Counter()
        for reports in terminalreporter.stats.values():
            for report in reports:
                if getattr(report, "when", "") == "call":
                    counted.update(dict(report.user_properties).get(module.COUNTED, {}))
        if counted:
            lines.append(f"{counted[name]} {name}: {module.describe(counted)}")
    if lines:
        terminalreporter.section("simulator")
    for line in lines:
        terminalreporter.line(line)
