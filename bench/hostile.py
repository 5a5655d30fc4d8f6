"""What one bad client costs the others: `python -m bench.hostile`.

Good clients send 1,000 messages a second over ten pairs, once alone and then beside each bad client: one that never
reads what a loud publisher sends it, fifty that stop in the middle of a packet, one that floods QoS 0, QoS 1 or
PINGREQ, one that connects and connects. A row has the good clients' latency, as a ratio to that of the same broker
without bad clients, and what the broker's memory grew by meanwhile; zvmq's queues have the bounds that they have by
default. A flood takes processor time that the good ones would have had: the last column says how much of it came
through. So does a process that only counts and never speaks to the broker: it is measured too, since no broker can do
better than beside that one.
"""

import argparse
import contextlib
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from admin.render import render
from bench.brokers import UNBOUNDED_QUEUES, BrokerError, Kind, RunningBroker, compiled, interpreted, mosquitto, running
from bench.loaders import LoadError, Messages, compile_loaders, run_load
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Pingreq, Publish, Subscribe, SubscriptionRequest

RATE = 1000.0
PAIRS = 10
SECONDS = 3.0
FLOOD = b"".join(encode(Publish(b"flood/x", b"z" * 50), 4) for _ in range(2000))
FLOOD_QOS_1 = b"".join(encode(Publish(b"flood/x", b"z" * 50, 1, packet_id=number), 4) for number in range(1, 2001))
PINGS = encode(Pingreq(), 4) * 30_000
NOISE = b"".join(encode(Publish(b"noise/x", b"z" * 5000), 4) for _ in range(20))


def connect(port: int, name: str) -> socket.socket:
    """A connection of MQTT 3.1.1 that is accepted."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(encode(Connect(4, name), 4))
    client.recv(4)
    return client


@contextmanager
def sending(port: int, name: str, data: bytes) -> Iterator[list[int]]:
    """A client that sends the same bytes again and again and reads what comes; counts its rounds."""
    client = connect(port, name)
    rounds = [0]

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                client.sendall(data)
                rounds[0] += 1

    def read() -> None:
        with contextlib.suppress(OSError):
            while client.recv(65536):
                pass

    threads = [threading.Thread(target=work, daemon=True) for work in (send, read)]
    for thread in threads:
        thread.start()
    try:
        yield rounds
    finally:
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        client.close()


@contextmanager
def nobody(port: int) -> Iterator[list[int]]:
    """No bad client at all."""
    yield [0]


@contextmanager
def counting(port: int) -> Iterator[list[int]]:
    """No client, but a process that takes all the processor time that it is given."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield [0]
    finally:
        process.kill()
        process.wait()


@contextmanager
def deaf(port: int) -> Iterator[list[int]]:
    """A subscriber that never reads, and somebody who publishes a lot to it."""
    client = connect(port, "deaf")
    client.sendall(encode(Subscribe(1, (SubscriptionRequest(b"noise/#"),)), 4))
    with sending(port, "loud", NOISE) as rounds:
        yield rounds
    client.close()


@contextmanager
def halves(port: int) -> Iterator[list[int]]:
    """Fifty clients that stop in the middle of a packet."""
    clients = [connect(port, f"half{number}") for number in range(50)]
    for number, client in enumerate(clients):
        client.sendall(NOISE[: 1 + number])
    yield [0]
    for client in clients:
        client.close()


@contextmanager
def flood(port: int) -> Iterator[list[int]]:
    """A client that publishes QoS 0 as fast as it can."""
    with sending(port, "flood", FLOOD) as rounds:
        yield rounds


@contextmanager
def flood_qos_1(port: int) -> Iterator[list[int]]:
    """A client that publishes QoS 1 as fast as it can."""
    with sending(port, "flood1", FLOOD_QOS_1) as rounds:
        yield rounds


@contextmanager
def flood_pings(port: int) -> Iterator[list[int]]:
    """A client that wants to be answered as fast as it can."""
    with sending(port, "pings", PINGS) as rounds:
        yield rounds


@contextmanager
def flood_connects(port: int) -> Iterator[list[int]]:
    """A client that connects, is accepted and leaves, as fast as it can."""
    rounds = [0]
    ended = threading.Event()

    def connect_again_and_again() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                connect(port, f"again{rounds[0]}").close()
                rounds[0] += 1

    thread = threading.Thread(target=connect_again_and_again, daemon=True)
    thread.start()
    try:
        yield rounds
    finally:
        ended.set()
        thread.join()


BAD: dict[str, Callable[[int], contextlib.AbstractContextManager[list[int]]]] = {
    "nobody": nobody,
    "only counts": counting,
    "never reads": deaf,
    "half packets": halves,
    "floods QoS 0": flood,
    "floods QoS 1": flood_qos_1,
    "floods PINGREQ": flood_pings,
    "connects again": flood_connects,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and exit: 0 done, 1 could not be made."""
    program = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.partition("\n")[0])
    program.add_argument("--brokers", nargs="+", choices=("interpreted", "compiled", "mosquitto"), default=["compiled"])
    program.add_argument("--rounds", type=int, default=3)
    program.add_argument("--seconds", type=float, default=SECONDS, help="of each paced run")
    program.add_argument("--bad", nargs="+", choices=BAD, default=list(BAD), help="only these, beside nobody")
    program.add_argument("--json", action="store_true", help="print the table as JSON")
    options = program.parse_args(arguments)
    makers = {"interpreted": interpreted, "compiled": compiled, "mosquitto": mosquitto}
    try:
        with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
            programs = compile_loaders(Path(directory))
            kinds = [kind for name in options.brokers if (kind := makers[name]()) is not None]
            rows = [row for kind in kinds for row in measure(programs, bounded(kind), options)]
    except (LoadError, BrokerError) as error:
        sys.exit(f"bench.hostile: {error}")
    render({"type": "table", "table": rows}, options.json, sys.stdout)


def bounded(kind: Kind) -> Kind:
    """The same broker with the queues that users have, which no client can fill without end."""

    def command(port: int, directory: Path, is_durable: bool) -> list[str]:
        return [word for word in kind.command(port, directory, is_durable) if word not in UNBOUNDED_QUEUES]

    return dataclasses.replace(kind, command=command)


def measure(programs: Path, kind: Kind, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one broker: medians of the rounds."""
    names = ["nobody", *(name for name in options.bad if name != "nobody")]
    found: dict[str, list[tuple[float, float, int, int]]] = {name: [] for name in names}
    for number in range(options.rounds):
        with running(kind, sorted(os.sched_getaffinity(0))) as broker:
            for name in names:
                found[name].append(measure_one(programs, broker, BAD[name], options.seconds))
        print(f"round {number + 1} of {options.rounds}: {kind.name}", file=sys.stderr, flush=True)
    alone = statistics.median(p99 for _, p99, _, _ in found["nobody"])
    rows = []
    for name, rounds in found.items():
        p50, p99, grown, through = (statistics.median(column) for column in zip(*rounds, strict=True))
        rows.append(
            {
                "broker": kind.name,
                "bad client": name,
                "p50 µs": round(p50),
                "p99 µs": round(p99),
                "p99 x alone": round(p99 / alone, 2),
                "memory MB": round(grown / 1e6, 1),
                "bad rounds": round(through),
            }
        )
    return rows


def measure_one(
    programs: Path,
    broker: RunningBroker,
    bad: Callable[[int], contextlib.AbstractContextManager[list[int]]],
    seconds: float,
) -> tuple[float, float, int, int]:
    """(p50 and p99 of the good clients in µs, memory growth in bytes, rounds of the bad client)."""
    before = broker.memory_bytes()
    with bad(broker.port) as rounds:
        count = max(1, round(RATE * seconds / PAIRS))
        figures, _ = run_load(programs, broker, Messages(1, count, PAIRS, PAIRS, rate=RATE))
        grown = broker.memory_bytes() - before
        return figures["p50_us"], figures["p99_us"], grown, rounds[0]


if __name__ == "__main__":
    main()
