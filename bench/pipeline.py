"""Broker CPU per message, zvmq beside mosquitto: `python -m bench.pipeline`, or `make bench`.

Each round starts each broker afresh and sends through it 64 B messages over 10 pairs, at QoS 0 and QoS 1: flat out
for the CPU time (user and system, of the whole process tree) and the rate, then paced at 1,000 messages per second for
the latency, counted from the time at which a message was due. The figures are medians of the rounds, the ratio is the
median of each round's own ratio: on a shared machine neighbours move both brokers of a round, not the ratio.

The load comes from messages.c, which is compiled into a temporary directory.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from admin.render import render
from bench import brokers
from bench.brokers import BrokerError, Kind, RunningBroker, confined, running
from bench.loaders import LoadError, Messages, compile_loaders, run_load
from bench.tables import RATIO, REFERENCE, ratio

KINDS = ("interpreted", "compiled", REFERENCE, "iotcore")
WARM_UP_SHARE = 10
"""One part in so many of a flat-out run goes ahead unmeasured, so that every broker is past its start."""
LOADER_BUSY_MAX = 0.95
"""A load generator that used more of a core than this may have been the bottleneck."""


@dataclass(frozen=True)
class Measured:
    """What one broker did in one round at one QoS."""

    qos: int
    cpu_us_per_message: float
    messages_per_s: float
    p50_us: float
    p99_us: float
    lost: int
    duplicated: int
    reordered: int
    loader_busy: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and exit: 0 done, 1 could not be made."""
    options = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
            programs = compile_loaders(Path(directory))
            measured = measure(programs, kinds(options.only), options)
    except (LoadError, BrokerError) as error:
        sys.exit(f"bench.pipeline: {error}")
    table = summary(measured)
    render({"type": "table", "table": table}, options.json, sys.stdout)
    for row in table:
        if row["loader busy"] > LOADER_BUSY_MAX:
            print(f"note: the load generator may have held back {row['broker']} at QoS {row['QoS']}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The parser of the benchmark's arguments."""
    program = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__.partition("\n")[0])
    program.add_argument("--count", type=int, default=50_000, help="messages of each publisher, flat out")
    program.add_argument("--pairs", type=int, default=10, help="publishers, and subscribers")
    program.add_argument("--rounds", type=int, default=3)
    program.add_argument("--size", type=int, default=64, help="payload bytes, at least 16")
    program.add_argument("--qos", type=int, nargs="+", choices=(0, 1, 2), default=[0, 1])
    program.add_argument("--window", type=int, default=100, help="unacknowledged messages of a publisher")
    program.add_argument("--rate", type=float, default=1000.0, help="messages per second of the paced runs")
    program.add_argument("--paced-s", type=float, default=3.0, help="how long a paced run takes")
    program.add_argument("--pin", action="store_true", help="the last CPU for the load, the others for the broker")
    program.add_argument("--only", nargs="+", choices=KINDS, help="measure only these")
    program.add_argument("--json", action="store_true", help="print the table as JSON")
    return program


def kinds(only: Iterable[str] | None) -> list[Kind]:
    """The brokers to measure, each with its version told on stderr."""
    wanted = list(only or KINDS[:3])
    found = [brokers.interpreted()] if "interpreted" in wanted else []
    if "compiled" in wanted:
        found.append(brokers.compiled())
    for name, others in ((REFERENCE, brokers.mosquitto), ("iotcore", brokers.iotcore)):
        kind = others() if name in wanted else None
        if kind is not None:
            found.append(kind)
        elif name in wanted:
            say(
                f"{name} is not installed: " + ("there is nothing to compare with" if name == REFERENCE else "left out")
            )
    for kind in found:
        say(f"{kind.name}: {kind.version}")
    return found


def measure(programs: Path, contestants: list[Kind], options: argparse.Namespace) -> dict[str, list[list[Measured]]]:
    """Broker name -> one list for each round, with one measurement for each QoS. The rounds are interleaved."""
    found: dict[str, list[list[Measured]]] = {kind.name: [] for kind in contestants}
    cpus = sorted(os.sched_getaffinity(0))
    pinned = options.pin and len(cpus) > 1
    for number in range(options.rounds):
        for kind in contestants:
            with running(kind, cpus[:-1] if pinned else cpus) as broker, confined(cpus[-1:] if pinned else cpus):
                measured = [measure_qos(programs, broker, qos, options) for qos in options.qos]
            found[kind.name].append(measured)
            cost = ", ".join(f"QoS {one.qos} {one.cpu_us_per_message:.2f} µs" for one in measured)
            say(f"round {number + 1} of {options.rounds}: {kind.name}: {cost}")
    return found


def measure_qos(programs: Path, broker: RunningBroker, qos: int, options: argparse.Namespace) -> Measured:
    """One broker at one QoS: warm up, flat out, paced."""
    load = Messages(qos, options.count, options.pairs, options.pairs, size=options.size, window=options.window)
    paced_count = max(1, round(options.rate * options.paced_s / options.pairs))
    try:
        run_load(programs, broker, replace(load, count=max(1, options.count // WARM_UP_SHARE)))
        flat, spent_s = run_load(programs, broker, load)
        paced, _ = run_load(programs, broker, replace(load, count=paced_count, rate=options.rate))
    except LoadError as error:
        raise LoadError(f"{broker.kind.name} at QoS {qos}: {error}") from error
    if not flat["received"] or not paced["received"]:
        raise LoadError(f"{broker.kind.name} has delivered nothing at QoS {qos}")
    return Measured(
        qos=qos,
        cpu_us_per_message=spent_s / flat["received"] * 1e6,
        messages_per_s=flat["received"] / flat["seconds"],
        p50_us=paced["p50_us"],
        p99_us=paced["p99_us"],
        lost=flat["lost"] + paced["lost"],
        duplicated=flat["duplicated"] + paced["duplicated"],
        reordered=flat["reordered"] + paced["reordered"],
        loader_busy=flat["loader_cpu_s"] / flat["seconds"],
    )


def summary(measured: dict[str, list[list[Measured]]]) -> list[dict[str, Any]]:
    """The table: one row for each broker and QoS, medians of the rounds."""
    rows = []
    reference = measured.get(REFERENCE, [])
    for name, rounds in measured.items():
        for index, runs in enumerate(zip(*rounds, strict=True)):
            row: dict[str, Any] = {"broker": name, "QoS": runs[0].qos}
            row["CPU µs/msg"] = round(statistics.median(run.cpu_us_per_message for run in runs), 2)
            if reference:
                row[RATIO] = ratio(
                    run.cpu_us_per_message / other[index].cpu_us_per_message
                    for run, other in zip(runs, reference, strict=True)
                )
            row["msg/s"] = round(statistics.median(run.messages_per_s for run in runs))
            row["paced p50 µs"] = round(statistics.median(run.p50_us for run in runs))
            row["paced p99 µs"] = round(statistics.median(run.p99_us for run in runs))
            row["lost"] = sum(run.lost for run in runs)
            row["duplicated"] = sum(run.duplicated for run in runs)
            row["reordered"] = sum(run.reordered for run in runs)
            row["loader busy"] = round(statistics.median(run.loader_busy for run in runs), 2)
            rows.append(row)
    return sorted(rows, key=lambda row: row["QoS"])


def say(text: str) -> None:
    """A line of progress; the figures alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
