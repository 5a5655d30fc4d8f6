"""Broker CPU per message, zvmq beside mosquitto: `python -m bench.pipeline`, or `make bench`.

Each round starts each broker afresh and sends through it 64 B messages over 10 pairs, at QoS 0 and QoS 1: flat out
for the CPU time (user and system, of the whole process tree) and the rate, then paced at 1,000 messages per second for
the latency, counted from the time at which a message was due. The figures are medians of the rounds, the ratio is the
median of each round's own ratio: on a shared machine neighbours move both brokers of a round, not the ratio.

The load comes from pairs.c, which is compiled into a temporary directory: Python could not saturate these brokers.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admin.render import render
from bench import brokers
from bench.brokers import BrokerError, Kind, RunningBroker, confined, running

LOADER_SOURCE = Path(__file__).with_name("pairs.c")
REFERENCE = "mosquitto"
WARM_UP_SHARE = 10
"""One part in so many of a flat-out run goes ahead unmeasured, so that every broker is past its start."""
SETTLE_S = 0.2
"""Before a run: until the last handshake is acknowledged by TCP, Nagle's algorithm may hold a first message back 40 ms.
After it, before the CPU time is read: the broker may still have acknowledgements to take."""
END_WAIT_S = 10.0
"""For the load generator to end once it has told its figures."""
LOADER_BUSY_MAX = 0.95
"""A load generator that used more of a core than this may have been the bottleneck."""


class PipelineError(Exception):
    """A measurement that cannot be made."""


@dataclass(frozen=True)
class Load:
    """One run of the load generator; `rate` in messages per second of all publishers, 0 for flat out."""

    qos: int
    count: int
    rate: float = 0.0


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
            loader = compile_loader(Path(directory))
            measured = measure(loader, kinds(options.only), options)
    except (PipelineError, BrokerError) as error:
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
    program.add_argument("--qos", type=int, nargs="+", choices=(0, 1), default=[0, 1])
    program.add_argument("--window", type=int, default=100, help="unacknowledged QoS 1 messages of a publisher")
    program.add_argument("--rate", type=float, default=1000.0, help="messages per second of the paced runs")
    program.add_argument("--paced-s", type=float, default=3.0, help="how long a paced run takes")
    program.add_argument("--pin", action="store_true", help="the last CPU for the load, the others for the broker")
    program.add_argument("--only", nargs="+", choices=("interpreted", "compiled", REFERENCE), help="measure only these")
    program.add_argument("--json", action="store_true", help="print the table as JSON")
    return program


def compile_loader(directory: Path) -> Path:
    """Compile the load generator into a directory; raises PipelineError."""
    compiler = next(filter(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")), None)
    if compiler is None:
        raise PipelineError("there is no C compiler here, and the load generator is written in C")
    program = directory / "pairs"
    command = [compiler, "-std=c11", "-O2", "-o", str(program), str(LOADER_SOURCE)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise PipelineError(f"{LOADER_SOURCE} does not compile:\n{built.stderr}")
    return program


def kinds(only: Iterable[str] | None) -> list[Kind]:
    """The brokers to measure, each with its version told on stderr."""
    wanted = list(only or ("interpreted", "compiled", REFERENCE))
    found = [brokers.interpreted()] if "interpreted" in wanted else []
    if "compiled" in wanted:
        found.append(brokers.compiled())
    if REFERENCE in wanted:
        reference = brokers.mosquitto()
        if reference is None:
            say("mosquitto is not installed: there is nothing to compare with")
        else:
            found.append(reference)
    for kind in found:
        say(f"{kind.name}: {kind.version}")
    return found


def measure(loader: Path, contestants: list[Kind], options: argparse.Namespace) -> dict[str, list[list[Measured]]]:
    """Broker name -> one list for each round, with one measurement for each QoS. The rounds are interleaved."""
    found: dict[str, list[list[Measured]]] = {kind.name: [] for kind in contestants}
    cpus = sorted(os.sched_getaffinity(0))
    pinned = options.pin and len(cpus) > 1
    for number in range(options.rounds):
        for kind in contestants:
            with running(kind, cpus[:-1] if pinned else cpus) as broker, confined(cpus[-1:] if pinned else cpus):
                measured = [measure_qos(loader, broker, qos, options) for qos in options.qos]
            found[kind.name].append(measured)
            cost = ", ".join(f"QoS {one.qos} {one.cpu_us_per_message:.2f} µs" for one in measured)
            say(f"round {number + 1} of {options.rounds}: {kind.name}: {cost}")
    return found


def measure_qos(loader: Path, broker: RunningBroker, qos: int, options: argparse.Namespace) -> Measured:
    """One broker at one QoS: warm up, flat out, paced."""
    run_load(loader, broker, Load(qos, max(1, options.count // WARM_UP_SHARE)), options)
    flat, spent_s = run_load(loader, broker, Load(qos, options.count), options)
    paced_count = max(1, round(options.rate * options.paced_s / options.pairs))
    paced, _ = run_load(loader, broker, Load(qos, paced_count, options.rate), options)
    if not flat["received"] or not paced["received"]:
        raise PipelineError(f"{broker.kind.name} has delivered nothing at QoS {qos}")
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


def run_load(
    loader: Path, broker: RunningBroker, load: Load, options: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Run the load generator; returns its figures and the CPU seconds that the broker used meanwhile."""
    # No two runs share client ids or topics.
    tag = f"{os.getpid()}-{time.monotonic_ns() % 1_000_000_000}"
    numbers = (broker.port, options.pairs, load.qos, load.count, options.size, load.rate, options.window)
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        command = [str(loader), *map(str, numbers), tag]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0)
        )
        # Last in, first out: no exception may wait for a living process.
        stack.callback(process.kill)
        ready = listen(process)
        time.sleep(SETTLE_S)
        before_s = broker.cpu_s()
        tell(process)
        line = listen(process)
        time.sleep(SETTLE_S)
        spent_s = broker.cpu_s() - before_s
        tell(process)
        code = process.wait(END_WAIT_S)
        if code or not (ready and line):
            errors.seek(0)
            text = errors.read().decode().strip() or f"exit code {code}"
            raise PipelineError(f"the load on {broker.kind.name} at QoS {load.qos} failed: {text}")
        figures: dict[str, Any] = json.loads(line)
        missing = load.count * options.pairs - figures["sent"]
        if missing:
            raise PipelineError(
                f"{broker.kind.name} at QoS {load.qos} stopped taking messages, {missing} before the end"
            )
        return figures, spent_s


def listen(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of the load generator, empty when it has ended; an alarm of its own sees to that."""
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[bytes]) -> None:
    """Let the load generator go on."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"\n")


def summary(measured: dict[str, list[list[Measured]]]) -> list[dict[str, Any]]:
    """The table: one row for each broker and QoS, medians of the rounds."""
    rows = []
    reference = measured.get(REFERENCE, [])
    for name, rounds in measured.items():
        for index, runs in enumerate(zip(*rounds, strict=True)):
            row: dict[str, Any] = {"broker": name, "QoS": runs[0].qos}
            row["CPU µs/msg"] = round(statistics.median(run.cpu_us_per_message for run in runs), 2)
            if reference:
                row["x mosquitto"] = ratio(
                    [
                        run.cpu_us_per_message / other[index].cpu_us_per_message
                        for run, other in zip(runs, reference, strict=True)
                    ]
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


def ratio(rounds: list[float]) -> str:
    """The median ratio, as a fraction too when it is below one."""
    value = statistics.median(rounds)
    return f"{value:.3f} (1/{1 / value:.1f})" if 0 < value < 1 else f"{value:.3f}"


def say(text: str) -> None:
    """A line of progress; the figures alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
