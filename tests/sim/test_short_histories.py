"""Short histories of a session that moves while a node joins, and that they find what went wrong in such a one."""

from collections import Counter

import pytest
import short_history
from builds import interpreted
from planting import caught
from workload import Failure

from broker.core.arrival import Arrival


def test_promises_hold_in_short_histories(histories, record_property, tracing):
    failures = []
    counted = Counter()
    for seed in histories:
        try:
            with tracing() as trace:
                stats = short_history.run(seed, trace)
        except Failure as failure:
            if len(histories) == 1:
                raise
            failures.append(str(failure))
            continue
        counted.update(stats)
        counted["histories"] += 1
        print(f"history {seed}: {short_history.describe(stats)}")
    record_property(short_history.COUNTED, dict(counted))
    assert not failures, "\n" + "\n".join(failures)


def test_a_failure_says_how_to_see_the_short_history_again():
    def break_the_world(world):
        world.later(1.0, world.check, False, "planted")

    with pytest.raises(Failure, match=r"history 4 .*planted\nsee it again: .*pytest tests/sim --history 4"):
        short_history.run(4, prepare=break_the_world)


@interpreted
def test_an_arrival_without_old_homes_that_leaves_to_them_what_a_later_member_sends_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "_is_later", lambda self, cuts, origin: False)
    # There the late node joins when no old home is left, and does not hear the new one.
    assert "never arrived" in caught(seeds=[39], run=short_history.run)
