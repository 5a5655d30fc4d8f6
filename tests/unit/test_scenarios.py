"""The scenarios: their arguments, what a round comes to, and their rows, also of a broker that does not serve one."""

from typing import Any

import pytest

from bench import scenarios
from bench.loaders import LoadError
from bench.scenarios import SCENARIOS

FLOW: dict[str, Any] = {
    "sent": 8,
    "acknowledged": 8,
    "received": 4,
    "lost": 4,
    "duplicated": 1,
    "reordered": 2,
    "seconds": 2.0,
    "loader_cpu_s": 1.0,
}


def test_a_flow() -> None:
    assert scenarios.flow_round(FLOW, 8e-6) == {
        "cpu_us": pytest.approx(2.0),
        "per_s": 2.0,
        "lost": 4,
        "duplicated": 1,
        "reordered": 2,
        "loader_busy": 0.5,
    }
    with pytest.raises(LoadError, match="nothing was delivered"):
        scenarios.flow_round({**FLOW, "received": 0}, 0.0)


def test_connections() -> None:
    found = scenarios.connections_round({"accepted": 10, "seconds": 0.5, "loader_cpu_s": 0.1}, 0.02)
    assert found == {"cpu_us": pytest.approx(2000.0), "per_s": 20.0, "loader_busy": 0.2}


def test_a_session_that_was_away() -> None:
    found = scenarios.away_round(FLOW, FLOW, 4e-6, 0.25)
    assert (found["cpu_us"], found["per_s"], found["lost"]) == (pytest.approx(1.0), 2.0, 4)
    assert (found["fill_per_s"], found["accepts_s"], found["drain_s"]) == (4.0, 0.25, 2.0)


def test_a_session_that_got_nothing_has_no_times() -> None:
    found = scenarios.away_round(FLOW, {**FLOW, "received": 0, "lost": 8}, 4e-6, 0.25)
    assert (found["cpu_us"], found["per_s"], found["drain_s"], found["lost"]) == (None, None, None, 8)


def test_the_rows_of_a_scenario() -> None:
    measured: dict[str, list[Any]] = {
        "zvmq": [{"cpu_us": 1.0, "lost": 0}, {"cpu_us": 4.0, "lost": 0}],
        "mosquitto": [{"cpu_us": 2.0, "lost": 1}, {"cpu_us": 2.0, "lost": 2}],
        "another": [None],
    }
    table = scenarios.table_of("pairs-qos0", measured, {"another": "refused"})
    assert [(one["broker"], one["CPU µs/msg"], one["lost"]) for one in table] == [
        ("zvmq", 2.5, 0),
        ("mosquitto", 2.0, 3),
        ("another", None, None),
    ]
    assert [one["x mosquitto"] for one in table] == ["1.250", "1.000", None]
    assert [one["not measured"] for one in table] == [None, None, "refused"]


def test_idle_compares_memory() -> None:
    measured: dict[str, list[Any]] = {
        "zvmq": [{"cpu_us": 1.0, "bytes_each": 3000.0}],
        "mosquitto": [{"cpu_us": 1.0, "bytes_each": 1500.0}],
    }
    assert scenarios.table_of("idle", measured, {})[0]["x mosquitto"] == "2.000"


def test_without_mosquitto_there_is_no_ratio() -> None:
    assert "x mosquitto" not in scenarios.table_of("connect", {"zvmq": [{"cpu_us": 1.0}]}, {})[0]


def test_arguments() -> None:
    options = scenarios.parser().parse_args(["--only", "kill", "idle", "--brokers", "interpreted", "--scale", "0.1"])
    assert (options.only, options.brokers, options.scale) == (["kill", "idle"], ["interpreted"], 0.1)
    assert all(name in scenarios.parser().format_help() for name in SCENARIOS)
    assert scenarios.scaled(10, 0.001) == 1
