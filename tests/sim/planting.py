"""Planting bugs, one at a time, for the tests that look whether a seed or a scene notices.

Bugs of the shell's order are planted in the simulator itself. The others replace methods of the cores, which can't be
done where those are compiled (see `builds`).
"""

import pytest
import workload

from broker.core.storage import WriteBatch
from cluster.readiness import AVAILABLE

SEEDS = range(40)
# Those in which something is retained.
RETAINING = range(1, 40, 2)
# Those in which a node may be not ready.
WAITING = [seed for seed in SEEDS if workload.readiness_of(seed) != AVAILABLE]


def caught(prepare=None, seeds=SEEDS, run=workload.run):
    """Return what the first seed says that notices, and fail if none does."""
    for seed in seeds:
        try:
            run(seed, prepare=prepare)
        except workload.Failure as failure:
            print(failure)
            # What can't be called any more is no bug of the broker's.
            assert "TypeError" not in str(failure)
            return str(failure)
    pytest.fail(f"none of {len(seeds)} seeds noticed")


def without(effects, lost):
    """Take the operations that `lost` says out of a turn's writes."""
    kept = WriteBatch()
    kept.operations = [operation for operation in effects.writes.operations if not lost(*operation)]
    effects.writes = kept
