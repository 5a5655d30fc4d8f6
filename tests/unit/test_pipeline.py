"""The benchmark against mosquitto: its table, its CPU clock, and whether its load generator notices lies."""

import argparse
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from lying_broker import Deliver, LyingBroker, honest, lose_the_third, repeat_the_third, swap_two

from bench import pipeline
from bench.brokers import cpu_s
from bench.pipeline import Load, Measured, PipelineError

SOURCES = Path(__file__).resolve().parents[2] / "bench"

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


def burn(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def test_cpu_time_counts_children_that_have_ended() -> None:
    before = cpu_s(os.getpid())
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(0.3,))
    child.start()
    child.join()
    assert cpu_s(os.getpid()) - before >= 0.29


def test_cpu_time_of_a_process_that_is_gone() -> None:
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(0.0,))
    child.start()
    child.join()
    assert child.pid is not None
    assert cpu_s(child.pid) == 0.0


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(PipelineError, match="no C compiler"):
        pipeline.compile_loader(tmp_path)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("the load generator needs a C compiler")
    with pytest.MonkeyPatch.context() as patch:
        # An installed copy has no C source.
        patch.setattr(pipeline, "LOADER_SOURCE", SOURCES / "pairs.c")
        return pipeline.compile_loader(tmp_path_factory.mktemp("loader"))


@dataclass
class Served:
    """Looks like a RunningBroker."""

    port: int
    kind = SimpleNamespace(name="the liar")

    def cpu_s(self) -> float:
        return 0.0


OPTIONS = argparse.Namespace(pairs=1, size=64, window=100)


@pytest.mark.parametrize("load", [Load(0, 3), Load(1, 3), Load(1, 3, 1000.0)])
@pytest.mark.parametrize(
    ("deliver", "lost", "duplicated", "reordered"),
    [(honest, 0, 0, 0), (repeat_the_third, 0, 1, 0), (swap_two, 0, 0, 1)],
)
def test_a_lie_is_noticed(
    loader: Path, load: Load, deliver: Deliver, lost: int, duplicated: int, reordered: int
) -> None:
    with LyingBroker(deliver) as broker:
        figures, _ = pipeline.run_load(loader, Served(broker.port), load, OPTIONS)  # type: ignore[arg-type]
    assert (figures["lost"], figures["duplicated"], figures["reordered"]) == (lost, duplicated, reordered)
    assert (figures["sent"], figures["received"]) == (3, 3 - lost)
    assert 0 <= figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]


def test_a_loss_is_noticed(loader: Path) -> None:
    # On its own, because the load generator waits for it.
    with LyingBroker(lose_the_third) as broker:
        figures, _ = pipeline.run_load(loader, Served(broker.port), Load(1, 3), OPTIONS)  # type: ignore[arg-type]
    assert (figures["lost"], figures["acknowledged"]) == (1, 3)


@pytest.mark.parametrize(("connack", "suback", "text"), [(5, None, "CONNECT refused"), (0, 0x80, "SUBSCRIBE at QoS 1")])
def test_a_refusal_ends_the_run(loader: Path, connack: int, suback: int | None, text: str) -> None:
    with LyingBroker(connack=connack, suback=suback) as broker, pytest.raises(PipelineError, match=text):
        pipeline.run_load(loader, Served(broker.port), Load(1, 3), OPTIONS)  # type: ignore[arg-type]
