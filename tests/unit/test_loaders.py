"""The load generators: that they compile, that they notice lies, and that they say why a run failed."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from lying_broker import Deliver, LyingBroker, honest, lose_the_third, repeat_the_third, swap_two

from bench import loaders
from bench.loaders import Connections, LoadError, Messages, run_load

SOURCES = Path(__file__).resolve().parents[2] / "bench"


@dataclass
class Served:
    """Looks like a RunningBroker."""

    port: int

    def cpu_s(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("cc"):
        pytest.skip("the load generators need a C compiler")
    return loaders.compile_loaders(tmp_path_factory.mktemp("loaders"))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(LoadError, match="no C compiler"):
        loaders.compile_loaders(tmp_path)


def test_an_installed_copy_has_the_c_sources() -> None:
    assert {path.name for path in loaders.SOURCES.glob("*.[ch]")} == {path.name for path in SOURCES.glob("*.[ch]")}


LOADS = [Messages(0, 3), Messages(1, 3), Messages(2, 3), Messages(1, 3, rate=1000.0)]
LOADS += [Messages(1, 3, filter="all"), Messages(1, 3, filter="shared")]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(
    ("deliver", "lost", "duplicated", "reordered"),
    [(honest, 0, 0, 0), (repeat_the_third, 0, 1, 0), (swap_two, 0, 0, 1)],
)
def test_a_lie_is_noticed(
    programs: Path, load: Messages, deliver: Deliver, lost: int, duplicated: int, reordered: int
) -> None:
    with LyingBroker(deliver) as broker:
        figures, _ = run_load(programs, Served(broker.port), load)
    assert (figures["lost"], figures["duplicated"], figures["reordered"]) == (lost, duplicated, reordered)
    assert (figures["sent"], figures["received"]) == (3, 3 - lost)
    assert figures["acknowledged"] == (3 if load.qos else 0)
    assert 0 <= figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]


def test_a_loss_is_noticed(programs: Path) -> None:
    # On its own, because the load generator waits for it.
    with LyingBroker(lose_the_third) as broker:
        figures, _ = run_load(programs, Served(broker.port), Messages(1, 3))
    assert (figures["lost"], figures["acknowledged"]) == (1, 3)


def test_several_publishers_each_in_its_own_order(programs: Path) -> None:
    with LyingBroker() as broker:
        figures, _ = run_load(programs, Served(broker.port), Messages(2, 50, publishers=3, filter="all", window=7))
    assert (figures["received"], figures["lost"], figures["duplicated"], figures["reordered"]) == (150, 0, 0, 0)


def test_the_stages_of_a_session_that_nobody_keeps(programs: Path) -> None:
    load = Messages(1, 3, filter="all", stage="join")
    with LyingBroker() as broker:
        served, tag = Served(broker.port), loaders.new_tag()
        assert run_load(programs, served, load, tag)[0]["sent"] == 0
        fill, _ = run_load(programs, served, replace(load, stage="fill"), tag)
        drain, _ = run_load(programs, served, replace(load, stage="drain"), tag)
    assert (fill["acknowledged"], fill["lost"]) == (3, 0)
    assert (drain["resumed"], drain["received"], drain["lost"]) == (0, 0, 3)


@pytest.mark.parametrize("keep", ["yes", "no"])
def test_connections(programs: Path, keep: str) -> None:
    with LyingBroker() as broker:
        figures, _ = run_load(programs, Served(broker.port), Connections(20, at_once=3, keep=keep))
    assert figures["accepted"] == 20


@pytest.mark.parametrize(
    ("load", "connack", "suback", "text"),
    [
        (Messages(1, 3), 5, None, "publisher 0: CONNECT refused with code 5"),
        (Messages(1, 3), 0, 0x80, "SUBSCRIBE at QoS 1 answered with 128"),
        (Messages(2, 3), 0, 1, "SUBSCRIBE at QoS 2 answered with 1"),
        (Connections(3), 5, None, "connection .: CONNECT refused with code 5"),
        (Messages(3, 3), 0, None, "qos=3 is not a number from 0 to 2"),
        (Messages(0, 3, filter="some"), 0, None, "filter=some is none of its values"),
    ],
)
def test_a_refusal_ends_the_run(
    programs: Path, load: Messages | Connections, connack: int, suback: int | None, text: str
) -> None:
    with LyingBroker(connack=connack, suback=suback) as broker, pytest.raises(LoadError, match=text):
        run_load(programs, Served(broker.port), load)
