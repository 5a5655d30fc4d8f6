"""All of MQTT on one node, zvmq beside mosquitto: `python -m bench.scenarios`, or `make bench`.

Each round of a scenario starts each broker afresh, in turn. One row for each scenario and broker: medians of the
rounds, sums of what was lost, duplicated and reordered, and as the ratio to mosquitto the median of each round's own
ratio of CPU time (of the whole process tree, per message delivered or connection accepted); for `idle` of memory.

A scenario that a broker does not serve leaves a row with the reason. Loads come from messages.c and connections.c.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from admin.render import render
from bench.brokers import BrokerError, Kind, RunningBroker, running
from bench.loaders import Connections, Figures, LoadError, Messages, Run, compile_loaders, new_tag, run_load
from bench.pipeline import KINDS, LOADER_BUSY_MAX, WARM_UP_SHARE, kinds, say
from bench.processes import raise_descriptor_limit
from bench.tables import RATIO, REFERENCE, Column, Round, Row, for_people, ratio, ratios, row

DESCRIPTORS_SPARE = 200
"""What a broker has open beside its connections, generously."""
MEMORY_SETTLE_S = 1.0
"""Until a broker has what it keeps, and nothing more: before its memory is read."""

CPU = Column("cpu_us", "CPU µs/msg", 2)
COLUMNS = (
    Column("per_s", "per s"),
    Column("lost", "lost"),
    Column("duplicated", "duplicated"),
    Column("reordered", "reordered"),
    Column("loader_busy", "loader busy", 2),
    Column("bytes_each", "B/connection"),
    Column("fill_per_s", "fill per s"),
    Column("accepts_s", "accepts s", 2),
    Column("drain_s", "drain s", 3),
)


@dataclass(frozen=True)
class Setting:
    """What a scenario needs to be run: the compiled load generators, and the CPUs of everybody."""

    programs: Path
    cpus: Sequence[int]


@dataclass(frozen=True)
class Scenario:
    """`run` measures one broker once; `headline` is the figure whose ratio is told."""

    what: str
    run: Callable[[Setting, Kind, float], Round]
    headline: str = "cpu_us"


def scaled(count: int, scale: float) -> int:
    """A count as the caller wants it, at least 1."""
    return max(1, round(count * scale))


def flow(load: Messages) -> Callable[[Setting, Kind, float], Round]:
    """Messages from publishers to subscribers that are there, flat out."""

    def run(setting: Setting, kind: Kind, scale: float) -> Round:
        wanted = replace(load, count=scaled(load.count, scale))
        with running(kind, setting.cpus) as broker:
            run_load(setting.programs, broker, replace(wanted, count=max(1, wanted.count // WARM_UP_SHARE)))
            figures, spent_s = run_load(setting.programs, broker, wanted)
        return flow_round(figures, spent_s)

    return run


def flow_round(figures: Figures, spent_s: float) -> Round:
    """What a flow has come to; raises LoadError when nothing came."""
    if not figures["received"]:
        raise LoadError("nothing was delivered")
    return {
        "cpu_us": spent_s / figures["received"] * 1e6,
        "per_s": figures["received"] / figures["seconds"],
        **{key: figures[key] for key in ("lost", "duplicated", "reordered")},
        "loader_busy": figures["loader_cpu_s"] / figures["seconds"],
    }


def connect(setting: Setting, kind: Kind, scale: float) -> Round:
    """CONNECT, CONNACK, DISCONNECT."""
    load = Connections(scaled(5_000, scale))
    with running(kind, setting.cpus) as broker:
        run_load(setting.programs, broker, replace(load, count=max(1, load.count // WARM_UP_SHARE)))
        figures, spent_s = run_load(setting.programs, broker, load)
    return connections_round(figures, spent_s)


def connections_round(figures: Figures, spent_s: float) -> Round:
    """What many connections have come to."""
    return {
        "cpu_us": spent_s / figures["accepted"] * 1e6,
        "per_s": figures["accepted"] / figures["seconds"],
        "loader_busy": figures["loader_cpu_s"] / figures["seconds"],
    }


def idle(setting: Setting, kind: Kind, scale: float) -> Round:
    """Connections that do nothing: their memory over that of the fresh broker."""
    wanted = scaled(10_000, scale)
    count = min(wanted, raise_descriptor_limit(wanted + DESCRIPTORS_SPARE) - DESCRIPTORS_SPARE)
    if count < wanted:
        say(f"idle: {count:,} connections instead of {wanted:,}, for want of file descriptors (ulimit -n)")
    with (
        running(kind, setting.cpus) as broker,
        Run(setting.programs, Connections(count, keep="yes"), broker.port, new_tag()) as run,
    ):
        time.sleep(MEMORY_SETTLE_S)
        fresh_bytes, before_s = broker.memory_bytes(), broker.cpu_s()
        figures = run.work()
        time.sleep(MEMORY_SETTLE_S)
        bytes_each = (broker.memory_bytes() - fresh_bytes) / count
        return {**connections_round(figures, broker.cpu_s() - before_s), "bytes_each": bytes_each}


def away(count: int, end: Callable[[RunningBroker], None]) -> Callable[[Setting, Kind, float], Round]:
    """Messages for a session that is away; the broker ends in this way and starts again; the session takes them."""

    def run(setting: Setting, kind: Kind, scale: float) -> Round:
        load = Messages(1, scaled(count // 10, scale), publishers=10, filter="all", stage="join")
        tag = new_tag()
        with running(kind, setting.cpus, is_durable=True) as broker:
            run_load(setting.programs, broker, load, tag)
            fill, fill_s = run_load(setting.programs, broker, replace(load, stage="fill"), tag)
            if fill["acknowledged"] < fill["sent"]:
                raise LoadError(f"{fill['sent'] - fill['acknowledged']} messages were not acknowledged")
            end(broker)
            began = time.monotonic()
            broker.start()
            accepts_s = time.monotonic() - began
            drain, drain_s = run_load(setting.programs, broker, replace(load, stage="drain"), tag)
        return away_round(fill, drain, fill_s + drain_s, accepts_s)

    return run


def away_round(fill: Figures, drain: Figures, spent_s: float, accepts_s: float) -> Round:
    """What such a session has come to; what was lost took no time, so without a message there is none to tell."""
    got = drain["received"]
    return {
        "cpu_us": spent_s / got * 1e6 if got else None,
        "per_s": got / drain["seconds"] if got else None,
        **{key: drain[key] for key in ("lost", "duplicated", "reordered")},
        "fill_per_s": fill["acknowledged"] / fill["seconds"],
        "accepts_s": accepts_s,
        "drain_s": drain["seconds"] if got else None,
    }


# At QoS 2 mosquitto closes the connection of a publisher with more in flight than its max_inflight_messages.
SCENARIOS = {
    "pairs-qos0": Scenario("10 pairs, QoS 0", flow(Messages(0, 50_000, 10, 10))),
    "pairs-qos1": Scenario("10 pairs, QoS 1", flow(Messages(1, 20_000, 10, 10))),
    "pairs-qos2": Scenario("10 pairs, QoS 2", flow(Messages(2, 10_000, 10, 10, window=20))),
    "fanout-100": Scenario("1 publisher, 100 subscribers, QoS 0", flow(Messages(0, 20_000, 1, 100))),
    "fanout-1000": Scenario("1 publisher, 1,000 subscribers, QoS 0", flow(Messages(0, 2_000, 1, 1_000))),
    "fanin-qos0": Scenario("100 publishers, 1 subscriber, QoS 0", flow(Messages(0, 5_000, 100, 1, "all"))),
    "fanin-qos1": Scenario("100 publishers, 1 subscriber, QoS 1", flow(Messages(1, 2_000, 100, 1, "all"))),
    "shared": Scenario("10 publishers, 10 members of a group, QoS 1", flow(Messages(1, 20_000, 10, 10, "shared"))),
    "idle": Scenario("10,000 idle connections: memory of each", idle, "bytes_each"),
    "connect": Scenario("5,000 connections, 64 at once: CONNECT, CONNACK, DISCONNECT", connect),
    "offline": Scenario(
        "100,000 QoS 1 messages for a session that is away, over a restart", away(100_000, RunningBroker.close)
    ),
    "kill": Scenario("50,000 of them, over kill -9 of every process", away(50_000, RunningBroker.kill)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the scenarios and exit: 0 done, 1 nothing could be measured."""
    options = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
            setting = Setting(compile_loaders(Path(directory)), sorted(os.sched_getaffinity(0)))
            contestants = kinds(options.brokers)
            table = [
                row
                for name in options.only or SCENARIOS
                for row in rows(name, setting, contestants, options.rounds, options.scale)
            ]
    except (LoadError, BrokerError) as error:
        sys.exit(f"bench.scenarios: {error}")
    render({"type": "table", "table": table if options.json else for_people(table)}, options.json, sys.stdout)
    for one in table:
        if (one.get("loader busy") or 0) > LOADER_BUSY_MAX:
            say(f"note: the load generator may have held back {one['broker']} at {one['scenario']}")
    if all(one["not measured"] for one in table):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    told = "\n".join(f"  {name:<12} {scenario.what}" for name, scenario in SCENARIOS.items())
    program = argparse.ArgumentParser(
        prog="python -m bench.scenarios",
        description=__doc__.partition("\n")[0],
        epilog=f"scenarios:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    program.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help="run only these")
    program.add_argument("--brokers", nargs="+", choices=KINDS, default=["compiled", REFERENCE])
    program.add_argument("--rounds", type=int, default=3)
    program.add_argument("--scale", type=float, default=1.0, help="multiplies the messages, or connections")
    program.add_argument("--json", action="store_true", help="print the table as JSON")
    return program


def rows(name: str, setting: Setting, contestants: Sequence[Kind], count: int, scale: float) -> list[Row]:
    """Run a scenario so many times, with all brokers in each round; their rows of the table."""
    measured: dict[str, list[Round | None]] = {kind.name: [] for kind in contestants}
    reasons: dict[str, str] = {}
    for number in range(count):
        for kind in contestants:
            # One refusal is enough: the next round would be refused the same.
            if kind.name in reasons:
                continue
            found: Round | None = None
            try:
                found = SCENARIOS[name].run(setting, kind, scale)
            except (LoadError, BrokerError) as error:
                reasons[kind.name] = str(error)
            measured[kind.name].append(found)
            say(f"{name}, round {number + 1} of {count}: {kind.name}: {reasons.get(kind.name) or told(found)}")
    return table_of(name, measured, reasons)


def told(found: Round | None) -> str:
    """One round in a line, for who waits."""
    values = row((CPU, *COLUMNS), [found])
    return ", ".join(f"{title} {value:,}" for title, value in values.items() if value is not None)


def table_of(name: str, measured: dict[str, list[Round | None]], reasons: dict[str, str]) -> list[Row]:
    """The rows of a scenario: one for each broker, in their order."""
    table = []
    for broker, rounds in measured.items():
        one: Row = {"scenario": name, "broker": broker, **row((CPU,), rounds)}
        if REFERENCE in measured:
            one[RATIO] = ratio(ratios(rounds, measured[REFERENCE], SCENARIOS[name].headline))
        one.update(row(COLUMNS, rounds))
        one["not measured"] = reasons.get(broker)
        table.append(one)
    return table


if __name__ == "__main__":
    main()
