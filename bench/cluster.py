"""What a second node costs: `python -m bench.cluster`. Two nodes of zvmq on one machine, and four tables.

- forwarding: 64 B messages over 10 pairs whose subscribers are at the publishers' node, or at the other one; flat out
  for the CPU time (of both nodes) and the rate, paced for the latency. The ratios to the same node are medians of each
  round's own ratio.
- joining: a node joins one that has many subscriptions, of clean or of persistent sessions: how long it takes until it
  has them all and is ready, and the memory that each costs at its own node and at the other. The time includes the
  start of vmq-admin, which the first row shows.
- leaving: a node with offline sessions, which have messages in their queues, leaves, and gives them to the other one.
- moving: offline sessions with messages in their queues, whose clients connect at their home, or at the other node,
  which makes that their home.

Both nodes and the load share the CPUs, so where the work is on two nodes the CPU time tells more than the rate.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from admin.render import render
from bench import brokers
from bench.brokers import BrokerError, Kind, RunningBroker, free_port
from bench.loaders import SETTLE_S, LoadError, Messages, Run, compile_loaders, new_tag, run_load
from bench.pipeline import WARM_UP_SHARE, say
from bench.scenarios import MEMORY_SETTLE_S
from bench.tables import Row, ratio, ratios
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connack, Connect, Publish, Subscribe, SubscriptionRequest

MEMORY_SAMPLE_S = 0.05
COOKIE = "a cookie for the benchmarks"
NEAR, FAR = "same node", "other node"
FILTERS_PER_PACKET = 100
SUBSCRIBERS = 100
ANSWER_LIMIT_S = 60.0
JOIN_LIMIT_S = 600.0
CLEAN, PERSISTENT = "clean", "persistent"

# Figures of forwarding: digits that are worth telling.
MEDIANS = {"msg/s": None, "CPU µs/msg": 2, "paced p50 µs": None, "paced p99 µs": None, "loader busy": 2}
RATIOS = ("msg/s", "CPU µs/msg", "paced p50 µs")
SUMS = ("lost", "duplicated", "reordered")


@dataclass(frozen=True)
class Member:
    """A node that may join another."""

    name: str
    mesh_port: int
    directory: Path
    broker: RunningBroker

    def join(self, other: "Member") -> float:
        """Join the cluster of another node and return the seconds until that was done; raises BrokerError."""
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "admin.cli", "cluster", "join"),
                f"discovery-node={other.name}:{other.mesh_port}",
                f"--data-dir={self.directory / 'data'}",
            ],
            env=self.broker.kind.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=JOIN_LIMIT_S,
        )
        if done.returncode:
            raise BrokerError(f"{self.name} does not join: {done.stderr.strip()}")
        return time.monotonic() - began


@dataclass(frozen=True)
class Cluster:
    """Two nodes, joined or not yet; for a load the node where publishers are."""

    home: Member
    other: Member

    @property
    def port(self) -> int:
        """Where the first node accepts clients."""
        return self.home.broker.port

    def cpu_s(self) -> float:
        """CPU seconds of both so far."""
        return self.home.broker.cpu_s() + self.other.broker.cpu_s()


@dataclass(frozen=True)
class Setting:
    """What every measurement is told."""

    programs: Path
    kind: Kind
    options: argparse.Namespace


def new_member(kind: Kind, name: str, directory: Path) -> Member:
    """A node that is to be started."""
    mesh_port = free_port()
    settings = [f"node.name={name}", f"cluster.listen=127.0.0.1:{mesh_port}", f"cluster.cookie={COOKIE}"]

    def command(port: int, directory: Path, is_durable: bool) -> list[str]:
        return [*kind.command(port, directory, is_durable), *settings]

    broker = RunningBroker(replace(kind, command=command), directory, os.sched_getaffinity(0))
    return Member(name, mesh_port, directory, broker)


@contextmanager
def two_nodes(kind: Kind) -> Iterator[Cluster]:
    """Two nodes that are started and have not joined; their directories are gone afterwards."""
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        home, other = (
            new_member(kind, name, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zvmq-bench-"))))
            for name in ("home@127.0.0.1", "other@127.0.0.1")
        )
        both = (home.broker, other.broker)
        stack.callback(lambda: list(pool.map(RunningBroker.close, both)))
        list(pool.map(RunningBroker.start, both))
        yield Cluster(home, other)


# Forwarding.


def forwarding(setting: Setting) -> list[Row]:
    """Messages to the same node beside messages to another."""
    options = setting.options
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with two_nodes(setting.kind) as cluster:
        cluster.other.join(cluster.home)
        for number in range(options.rounds):
            for qos, place in itertools.product((0, 1), (NEAR, FAR)):
                found.setdefault((qos, place), []).append(forwarded(setting, cluster, qos, place))
            say(f"forwarding, round {number + 1} of {options.rounds}")
    return [
        {
            "QoS": qos,
            "subscribers": place,
            **{title: median(title, digits, rounds) for title, digits in MEDIANS.items()},
            **{title: sum(round(one[title]) for one in rounds) for title in SUMS},
            **{f"x {title}": ratio(ratios(rounds, found[qos, NEAR], title)) for title in RATIOS},
        }
        for (qos, place), rounds in sorted(found.items(), key=lambda each: each[0][0])
    ]


def median(title: str, digits: int | None, rounds: list[dict[str, float]]) -> float:
    """What a figure of the rounds comes to."""
    return round(statistics.median(one[title] for one in rounds), digits)


def forwarded(setting: Setting, cluster: Cluster, qos: int, place: str) -> dict[str, float]:
    """One run at one QoS: warm up, flat out, paced."""
    options = setting.options
    port = cluster.other.broker.port if place == FAR else 0
    load = Messages(qos, options.count, options.pairs, options.pairs, size=options.size, subscriber_port=port)
    paced_count = max(1, round(options.rate * options.paced_s / options.pairs))
    run_load(setting.programs, cluster, replace(load, count=max(1, options.count // WARM_UP_SHARE)))
    flat, spent_s = run_load(setting.programs, cluster, load)
    paced, _ = run_load(setting.programs, cluster, replace(load, count=paced_count, rate=options.rate))
    if not flat["received"] or not paced["received"]:
        raise LoadError(f"nothing was delivered at QoS {qos} to the {place}")
    return {
        "msg/s": flat["received"] / flat["seconds"],
        "CPU µs/msg": spent_s / flat["received"] * 1e6,
        "paced p50 µs": paced["p50_us"],
        "paced p99 µs": paced["p99_us"],
        "loader busy": flat["loader_cpu_s"] / flat["seconds"],
        **{title: flat[title] + paced[title] for title in SUMS},
    }


# Joining.


def joining(setting: Setting) -> list[Row]:
    """A node that joins, and gets the tables."""
    rows: list[Row] = []
    empty_bytes = 0
    for count, sessions in (
        (0, CLEAN),
        (setting.options.subscriptions, CLEAN),
        (setting.options.subscriptions, PERSISTENT),
    ):
        with two_nodes(setting.kind) as cluster, subscribed(cluster, count, sessions) as (each_bytes, clients):
            time.sleep(MEMORY_SETTLE_S)
            before_bytes, before_s = cluster.other.broker.memory_bytes(), cluster.cpu_s()
            join_s = cluster.other.join(cluster.home)
            time.sleep(MEMORY_SETTLE_S)
            spent_s = cluster.cpu_s() - before_s
            grown_bytes = cluster.other.broker.memory_bytes() - before_bytes
            if count:
                check_known(cluster, clients[-1], count - 1)
            else:
                empty_bytes = grown_bytes
        row: Row = {
            "sessions": sessions,
            "subscriptions": count,
            "join s": round(join_s, 2),
            "CPU s": round(spent_s, 2),
        }
        row[f"B each, {NEAR}"] = round(each_bytes) if count else None
        row[f"B each, {FAR}"] = round((grown_bytes - empty_bytes) / count) if count else None
        rows.append(row)
        say(f"joining: {count:,} subscriptions of {sessions} sessions took {join_s:.2f} s")
    return rows


def filter_of(number: int) -> bytes:
    """No two subscriptions have the same."""
    return b"bench/joining/%d/+" % number


@contextmanager
def subscribed(cluster: Cluster, count: int, sessions: str) -> Iterator[tuple[float, list["Subscriber"]]]:
    """Subscribe at the first node so often, from connections that stay: memory for each, and the clients."""
    broker = cluster.home.broker
    with ExitStack() as stack:
        clients = [Subscriber(broker.port, f"{sessions}-{n}", sessions) for n in range(SUBSCRIBERS if count else 0)]
        for client in clients:
            stack.callback(client.close)
        time.sleep(MEMORY_SETTLE_S)
        before_bytes = broker.memory_bytes()
        numbers = iter(range(count))
        each = -(-count // SUBSCRIBERS)
        for client in clients:
            mine = list(itertools.islice(numbers, each))
            for start in range(0, len(mine), FILTERS_PER_PACKET):
                client.subscribe([filter_of(number) for number in mine[start : start + FILTERS_PER_PACKET]])
        time.sleep(MEMORY_SETTLE_S)
        yield (broker.memory_bytes() - before_bytes) / max(1, count), [client for client in clients if client.is_used]


def connected(port: int, request: Connect) -> socket.socket:
    """Connect, and return the socket once CONNACK has come."""
    client = socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT_S)
    client.sendall(encode(request, 4))
    if client.recv(4) != encode(Connack(), 4):
        raise LoadError("the node refuses a client")
    return client


class Subscriber:
    """A client of MQTT 3.1.1 that subscribes."""

    def __init__(self, port: int, client_id: str, sessions: str) -> None:
        self.is_used = False
        self.socket = connected(port, Connect(4, client_id, sessions == CLEAN))

    def subscribe(self, filters: list[bytes]) -> None:
        """Subscribe and wait for SUBACK; raises LoadError."""
        self.is_used = True
        request = Subscribe(1, tuple(SubscriptionRequest(one, 1) for one in filters))
        self.socket.sendall(encode(request, 4))
        # One byte for each filter, and the fixed header is one byte longer from 128 on.
        wanted = 4 + len(filters) + (1 if 2 + len(filters) > 127 else 0)
        answer = b""
        while len(answer) < wanted:
            data = self.socket.recv(wanted - len(answer))
            if not data:
                raise LoadError("the node closed the connection of a subscriber")
            answer += data
        if answer[-len(filters) :] != b"\1" * len(filters):
            raise LoadError("the node does not take so many subscriptions")

    def close(self) -> None:
        """Break the connection."""
        self.socket.close()


def check_known(cluster: Cluster, subscriber: Subscriber, number: int) -> None:
    """See that the second node knows the last subscription; raises LoadError."""
    payload = b"known"
    with connected(cluster.other.broker.port, Connect(4, "asker")) as publisher:
        publisher.sendall(encode(Publish(filter_of(number).replace(b"+", b"x"), payload), 4))
        try:
            answer = subscriber.socket.recv(1000)
        except TimeoutError:
            answer = b""
    if not answer.endswith(payload):
        raise LoadError("the node that joined does not know the subscriptions")


# Moving.


def moving(setting: Setting) -> list[Row]:
    """Sessions whose clients come back, at home or elsewhere."""
    return [moved(setting, queued, place) for queued in setting.options.queued for place in (NEAR, FAR)]


def moved(setting: Setting, queued: int, place: str) -> Row:
    """Sessions with so many messages each; as many clients come at once as the options say."""
    options = setting.options
    each = max(1, options.sessions // options.at_once)
    sessions = each * options.at_once
    load = Messages(1, queued, each, each, stage="join", size=100)
    tags = [f"{new_tag()}-{number}" for number in range(options.at_once)]
    with two_nodes(setting.kind) as cluster:
        cluster.other.join(cluster.home)
        with ThreadPoolExecutor(len(tags)) as pool, ExitStack() as stack:
            for stage in ("join", "fill"):
                loads = [
                    pool.submit(run_load, setting.programs, cluster, replace(load, stage=stage), tag) for tag in tags
                ]
                for done in loads:
                    figures, _ = done.result()
                    if figures["acknowledged"] < figures["sent"]:
                        raise LoadError(f"{figures['sent'] - figures['acknowledged']} messages were not acknowledged")
            drain = replace(load, stage="drain")
            port = cluster.other.broker.port if place == FAR else cluster.port
            runs = [stack.enter_context(Run(setting.programs, drain, port, tag)) for tag in tags]
            before_s, began = cluster.cpu_s(), time.monotonic()
            found = list(pool.map(Run.work, runs))
            # A generator waits a moment for duplicates, which is none of the nodes' time.
            seconds = max(one["seconds"] for one in found)
            time.sleep(SETTLE_S)
            spent_s = cluster.cpu_s() - before_s
    got = sum(one["received"] for one in found)
    say(f"moving: {sessions} sessions with {queued} messages each to the {place}: {time.monotonic() - began:.1f} s")
    return {
        "clients come to": place,
        "sessions": sessions,
        "queued each": queued,
        "resumed": sum(one["resumed"] for one in found),
        "s": round(seconds, 2),
        "sessions/s": round(sessions / seconds),
        "messages/s": round(got / seconds),
        "CPU ms/session": round(spent_s / sessions * 1e3, 2),
        **{title: sum(one[title] for one in found) for title in SUMS},
    }


# Leaving.


def leaving(setting: Setting) -> list[Row]:
    """A node that leaves with all its offline sessions."""
    options = setting.options
    sessions, queued = options.leaving_sessions, options.leaving_queued
    load = Messages(1, queued, sessions, sessions, stage="join", size=100)
    tag = new_tag()
    with two_nodes(setting.kind) as cluster:
        cluster.other.join(cluster.home)
        for stage in ("join", "fill"):
            run_load(setting.programs, cluster, replace(load, stage=stage), tag)
        time.sleep(SETTLE_S)
        members = (cluster.home, cluster.other)
        before = [member.broker.memory_bytes() for member in members]
        peaks = list(before)
        spent_s = [member.broker.cpu_s() for member in members]
        done_s = list(spent_s)
        command = [
            *(sys.executable, "-P", "-m", "admin.cli", "cluster", "leave", f"node={cluster.home.name}", "-k"),
            *("--force", "-i", "1", f"--data-dir={cluster.other.directory / 'data'}"),
        ]
        began = time.monotonic()
        with subprocess.Popen(
            command, env=cluster.home.broker.kind.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as done:
            while done.poll() is None:
                for place, member in enumerate(members):
                    # The one that leaves ends before the command does.
                    with suppress(OSError):
                        peaks[place] = max(peaks[place], member.broker.memory_bytes())
                        done_s[place] = max(done_s[place], member.broker.cpu_s())
                time.sleep(MEMORY_SAMPLE_S)
            said = done.communicate()[1]
        seconds = time.monotonic() - began
        if done.returncode:
            raise BrokerError(f"{cluster.home.name} does not leave: {said.strip()}")
    say(f"leaving: {sessions} sessions with {queued} messages each took {seconds:.2f} s")
    return [
        {
            "sessions": sessions,
            "queued each": queued,
            "s": round(seconds, 2),
            "sessions/s": round(sessions / seconds),
            "messages/s": round(sessions * queued / seconds),
            "CPU s, leaving": round(done_s[0] - spent_s[0], 2),
            "CPU s, other": round(done_s[1] - spent_s[1], 2),
            "MiB more, leaving": round((peaks[0] - before[0]) / 2**20),
            "MiB more, other": round((peaks[1] - before[1]) / 2**20),
        }
    ]


PARTS: dict[str, Callable[[Setting], list[Row]]] = {
    "forwarding": forwarding,
    "joining": joining,
    "leaving": leaving,
    "moving": moving,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and exit: 0 done, 1 could not be made."""
    options = parser().parse_args(arguments)
    try:
        kind = brokers.compiled() if options.broker == "compiled" else brokers.interpreted()
        say(f"{kind.name}: {kind.version}")
        with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
            setting = Setting(compile_loaders(Path(directory)), kind, options)
            tables = {name: PARTS[name](setting) for name in options.only}
    except (LoadError, BrokerError) as error:
        sys.exit(f"bench.cluster: {error}")
    if options.json:
        print(json.dumps({"broker": kind.name, **tables}, ensure_ascii=False))
        return
    for name, table in tables.items():
        print(f"{name}, {kind.name}:")
        shown = [{title: "" if value is None else value for title, value in row.items()} for row in table]
        render({"type": "table", "table": shown}, False, sys.stdout)


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    program = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__.partition("\n")[0])
    program.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these")
    program.add_argument("--broker", choices=("compiled", "interpreted"), default="compiled")
    program.add_argument("--rounds", type=int, default=3, help="of forwarding")
    program.add_argument("--count", type=int, default=20_000, help="messages of each publisher, flat out")
    program.add_argument("--pairs", type=int, default=10, help="publishers, and subscribers")
    program.add_argument("--size", type=int, default=64, help="payload bytes, at least 16")
    program.add_argument("--rate", type=float, default=1000.0, help="messages per second of the paced runs")
    program.add_argument("--paced-s", type=float, default=3.0, help="how long a paced run takes")
    program.add_argument("--subscriptions", type=int, default=100_000, help="what a joining node gets")
    program.add_argument("--sessions", type=int, default=800, help="sessions that move")
    program.add_argument("--queued", type=int, nargs="+", default=[1, 100], help="messages in the queue of each")
    program.add_argument("--leaving-sessions", type=int, default=10_000, help="sessions of the node that leaves")
    program.add_argument("--leaving-queued", type=int, default=10, help="messages in the queue of each of those")
    program.add_argument("--at-once", type=int, default=8, help="clients that connect at once")
    program.add_argument("--json", action="store_true", help="print the tables as one JSON object")
    return program


if __name__ == "__main__":
    main()
