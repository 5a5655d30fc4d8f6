"""vmq-bench and the benchmark against a real node: that they measure at all, never how fast anything is."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nodes import BIN, LIMIT_S, Node, environment

ROOT = Path(__file__).resolve().parents[2]
PIPELINE_LIMIT_S = 120.0
SERVED = (
    "pairs-qos0",
    "pairs-qos1",
    "pairs-qos2",
    "fanout-100",
    "fanin-qos0",
    "fanin-qos1",
    "shared",
    "idle",
    "connect",
    "offline",
    "kill",
)


def bench(node: Node, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(BIN / "vmq-bench"), *arguments, "--host", node.mqtt_address]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment())


def figures(node: Node, *arguments: str) -> dict[str, Any]:
    ran = bench(node, *arguments, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("protocol", [[], ["--v5"]])
@pytest.mark.parametrize("session", ["--clean", "--persistent"])
def test_pairs_at_qos_1(node: Node, protocol: list[str], session: str) -> None:
    found = figures(node, "pairs", "--pairs=3", "--qos=1", "--count=100", session, *protocol)
    assert (found["published"], found["acknowledged"], found["received"]) == (300, 300, 300)
    assert (found["lost"], found["duplicated"], found["reordered"]) == (0, 0, 0)
    assert set(found["latency_us"]) == {"p50", "p90", "p99", "max"}


def test_the_other_scenarios(node: Node) -> None:
    assert figures(node, "pairs", "--pairs=3", "--count=100")["reordered"] == 0
    assert figures(node, "fan-out", "--pairs=3", "--qos=1", "--count=50")["received"] == 150
    assert figures(node, "fan-in", "--pairs=3", "--qos=1", "--count=50")["received"] == 150
    assert figures(node, "pub", "--pairs=3", "--qos=1", "--count=50")["acknowledged"] == 150
    assert figures(node, "connect", "--clients=30")["subscribers"] == 30
    assert figures(node, "pairs", "--pairs=3", "--qos=1", "--rate=300", "--duration=0.5")["published"] == 150


def test_what_people_see(node: Node) -> None:
    ran = bench(node, "pairs", "--pairs=2", "--qos=1", "--count=10")
    assert ran.returncode == 0
    assert "lost 0  duplicated 0  reordered 0\n" in ran.stdout
    assert "p50" in ran.stdout


def test_sub_hears_what_another_process_publishes(node: Node) -> None:
    command = [str(BIN / "vmq-bench"), "sub", "--pairs=1", "--qos=1", "--count=20", "--json"]
    command += ["--host", node.mqtt_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as listening:
        try:
            # It hears everything from its subscription on: publish until it has enough.
            while listening.poll() is None:
                figures(node, "pub", "--pairs=1", "--qos=1", "--count=20")
        finally:
            listening.kill()
        assert listening.stdout is not None
        found = json.loads(listening.stdout.read())
    assert listening.returncode == 0
    assert found["received"] >= 20


def test_two_nodes(three: list[Node]) -> None:
    places = ["--pub-host", three[0].mqtt_address, "--sub-host", three[1].mqtt_address]
    # Interest takes a moment to cross, and what is published before then has no subscriber: so no count is promised.
    ran = bench(three[2], "pairs", "--pairs=2", "--qos=0", "--count=10", "--timeout=1", "--json", *places)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["published"] == 20


def measured(module: str, directory: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows of a benchmark of a source tree."""
    if not shutil.which("cc"):
        pytest.skip("the load generators need a C compiler")
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--rounds=1", "--json"],
        capture_output=True,
        text=True,
        timeout=PIPELINE_LIMIT_S,
        cwd=directory,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    rows: list[dict[str, Any]] = json.loads(ran.stdout)["table"]
    return rows


def test_the_benchmark_measures(tmp_path: Path) -> None:
    rows = measured("bench.pipeline", tmp_path, "--only", "interpreted", "--count=200", "--pairs=2", "--paced-s=0.2")
    assert [(row["broker"], row["QoS"]) for row in rows] == [("zvmq interpreted", 0), ("zvmq interpreted", 1)]
    assert [(row["lost"], row["duplicated"], row["reordered"]) for row in rows] == [(0, 0, 0)] * 2


def test_the_scenarios_measure(tmp_path: Path) -> None:
    arguments = ("--brokers", "interpreted", "--scale=0.005", "--only", *SERVED)
    rows = {row["scenario"]: row for row in measured("bench.scenarios", tmp_path, *arguments)}
    assert {name: row["not measured"] for name, row in rows.items()} == dict.fromkeys(SERVED)
    counted = {name: (row["lost"], row["duplicated"], row["reordered"]) for name, row in rows.items()}
    nothing_to_count = {"idle": (None, None, None), "connect": (None, None, None)}
    assert counted == {name: nothing_to_count.get(name, (0, 0, 0)) for name in SERVED}
    assert rows["idle"]["B/connection"] is not None
    assert rows["kill"]["drain s"] > 0


def test_the_cluster_measures(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("the load generators need a C compiler")
    command = [
        sys.executable,
        "-m",
        "bench.cluster",
        "--broker=interpreted",
        "--only",
        "forwarding",
        "moving",
        "--json",
    ]
    command += ["--rounds=1", "--count=200", "--pairs=2", "--paced-s=0.2", "--sessions=4", "--at-once=2", "--queued=3"]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PIPELINE_LIMIT_S,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    tables = json.loads(ran.stdout)
    places = ("same node", "other node")
    assert [(row["QoS"], row["subscribers"]) for row in tables["forwarding"]] == list(itertools.product((0, 1), places))
    assert [(row["clients come to"], row["resumed"]) for row in tables["moving"]] == [(place, 4) for place in places]
    rows = tables["forwarding"] + tables["moving"]
    assert not any(row[title] for row in rows for title in ("lost", "duplicated", "reordered"))


def test_moves_are_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.moves", "--sessions=20", "--queued", "0", "3", "--json"]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PIPELINE_LIMIT_S,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["moves"]
    assert [(row["sessions"], row["queued each"]) for row in rows] == [(20, 0), (20, 3)]
    assert all(row["sessions/s"] > 0 for row in rows)
