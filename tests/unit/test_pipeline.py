"""The benchmark against mosquitto: its table."""

from dataclasses import replace

from bench import pipeline
from bench.pipeline import Measured

ROUND = Measured(
    qos=0,
    cpu_us_per_message=2.0,
    messages_per_s=1000.0,
    p50_us=10.0,
    p99_us=20.0,
    lost=1,
    duplicated=0,
    reordered=0,
    loader_busy=0.5,
)


def test_the_table_shows_medians_and_the_median_of_ratios() -> None:
    ours = [replace(ROUND, cpu_us_per_message=cost) for cost in (1.0, 2.0, 9.0)]
    theirs = [replace(ROUND, cpu_us_per_message=cost) for cost in (10.0, 10.0, 90.0)]
    table = pipeline.summary({"zvmq": [[one] for one in ours], "mosquitto": [[one] for one in theirs]})
    assert [row["broker"] for row in table] == ["zvmq", "mosquitto"]
    assert table[0]["CPU µs/msg"] == 2.0
    assert table[0]["x mosquitto"] == "0.100 (1/10.0)"
    assert table[1]["x mosquitto"] == "1.000"
    assert table[0]["lost"] == 3


def test_without_mosquitto_there_is_no_ratio() -> None:
    assert "x mosquitto" not in pipeline.summary({"zvmq": [[ROUND]]})[0]
