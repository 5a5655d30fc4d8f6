"""bench.backlog: with few messages, that it measures what it says. What it measures is for people to judge."""

import pytest

from bench import backlog


@pytest.mark.parametrize("payload_bytes", [100, 1024])
def test_a_backlog_is_filled_recovered_and_drained(tmp_path, payload_bytes):
    # More than a head, and not a whole turn's at the end; both phases assert that nothing is missing.
    messages = 6 * backlog.TURN_MESSAGES + 7
    path = str(tmp_path / "store")
    filled = backlog.fill(path, messages, payload_bytes)
    assert filled["disk"] * backlog.MIB > messages * payload_bytes * 0.9
    assert min(filled.values()) > 0.0
    found = backlog.recover_and_drain(path, messages, payload_bytes)
    assert set(found) == {"recovery", "before", "after", "recovery peak", "drain", "drain peak"}
    assert min(found.values()) > 0.0
    # It asserts that nothing is left.
    backlog.recover_and_drain(path, 0, payload_bytes)
