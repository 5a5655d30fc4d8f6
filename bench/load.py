"""vmq-bench: load scripts on paho-mqtt against any MQTT broker, with a check of loss, duplicates and order.

Owns the arguments, the scenarios and the exit codes: 0 good; 1 refused, failed, or at QoS > 0 a message that was lost,
came twice or out of order; 2 usage. paho can't saturate a broker: bench.pipeline measures what a broker costs.

Theory of operation
-------------------
A scenario is a cast: publishers, subscribers and who hears whom. A run connects all of them, subscribes, publishes,
drains and leaves, on one thread. Without --rate it is a closed loop: a publisher is at most --window messages ahead of
its subscribers (and of its acknowledgements at QoS > 0), so what is measured is the broker and not its queue limits.
With --rate it is an open loop: messages are stamped with the time at which they were due. Whenever nothing at all
happens for --timeout, the run ends: what is missing then is lost.
"""

import argparse
import contextlib
import resource
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

from paho.mqtt.enums import MQTTProtocolVersion

from bench.clients import BURST_MAX, POLL_S_MAX, BenchError, Peer, Publisher, Pump, Settings, Subscriber, wait_for
from bench.report import Bar, Result, latencies_us, write_result
from bench.stamps import PAYLOAD_BYTES_MIN, Arrivals, Tally

FAILED = 1

SCENARIOS = {
    "pairs": "N publishers and N subscribers, each pair with a topic of its own",
    "pub": "N publishers, no subscribers; latency is that of the acknowledgement",
    "sub": "N subscribers of what other vmq-bench processes on this machine publish",
    "fan-out": "one publisher, N subscribers",
    "fan-in": "N publishers, one subscriber",
    "shared": "N publishers, N subscribers that share one subscription",
    "connect": "N connections; --duration holds them open",
}
COUNT_DEFAULT = 1000
CONNECTING_MAX = 100
"""Connections under way at once, so that a broker's listen backlog is not what is measured."""
LINGER_S = 0.1
"""After the last message: time for a duplicate to show up."""
LEAVE_S = 2.0
MQTT_BYTES_MAX = 268_435_455 - 65_540


def main(arguments: Sequence[str] | None = None) -> None:
    """Run vmq-bench and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run vmq-bench; returns its exit code. argparse exits by itself with 2 for bad usage, 0 for help."""
    options = parse(arguments)
    raise_file_limit()
    load = Load(options)
    try:
        result = load.connections() if options.scenario == "connect" else load.messages()
    except BenchError as error:
        print(f"vmq-bench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("vmq-bench: interrupted", file=sys.stderr)
        return FAILED
    finally:
        load.close()
    write_result(result, options.json, sys.stdout)
    return 0 if result.is_good else FAILED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The checked arguments."""
    program = parser()
    options = program.parse_args(arguments)
    if options.count is None and options.duration is None and options.scenario not in ("sub", "connect"):
        options.count = COUNT_DEFAULT
    if not PAYLOAD_BYTES_MIN <= options.size <= MQTT_BYTES_MAX:
        program.error(f"--size must be {PAYLOAD_BYTES_MIN} to {MQTT_BYTES_MAX}: a payload carries its stamp")
    if not options.topic or set(options.topic) & set("+#\0"):
        program.error("--topic must be a topic name, without wildcards")
    options.pub_host = options.pub_host or options.host or ["127.0.0.1"]
    options.sub_host = options.sub_host or options.host or ["127.0.0.1"]
    for host in (*options.pub_host, *options.sub_host):
        try:
            endpoint(host, options.port)
        except ValueError:
            program.error(f"{host!r} is not a host or host:port")
    return options


def parser() -> argparse.ArgumentParser:
    """The parser of vmq-bench's arguments."""
    scenarios = "\n".join(f"  {name:<9} {text}" for name, text in SCENARIOS.items())
    program = argparse.ArgumentParser(
        prog="vmq-bench",
        description=f"Load an MQTT broker and check what arrives.\n\nscenarios:\n{scenarios}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    program.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO")
    program.add_argument(
        "--pairs", "--clients", dest="clients", type=PositiveNumber(int), default=10, metavar="N", help="N above (10)"
    )
    program.add_argument("--host", action="append", help="host or host:port; several are used in turn (127.0.0.1)")
    program.add_argument("--pub-host", action="append", metavar="HOST", help="... of the publishers")
    program.add_argument("--sub-host", action="append", metavar="HOST", help="... of the subscribers")
    program.add_argument("--port", type=PositiveNumber(int), default=1883, help="where a host names none (1883)")
    program.add_argument("--qos", type=int, choices=(0, 1, 2), default=0)
    program.add_argument(
        "--count",
        type=PositiveNumber(int),
        metavar="N",
        help="messages of each publisher (1000); sub: messages to wait for",
    )
    program.add_argument(
        "--duration", type=PositiveNumber(float), metavar="SECONDS", help="publish, or hold, for this long"
    )
    program.add_argument(
        "--rate", type=PositiveNumber(float), metavar="R", help="messages per second in all, an open loop"
    )
    program.add_argument("--size", type=PositiveNumber(int), default=64, metavar="BYTES", help="payload (64)")
    program.add_argument(
        "--window", type=int, default=20, metavar="N", help="messages under way of each publisher, 0 = no limit (20)"
    )
    program.add_argument("--topic", default="bench", help="first levels of all topics (bench)")
    program.add_argument("--v5", action="store_true", help="MQTT 5 instead of 3.1.1")
    session = program.add_mutually_exclusive_group()
    session.add_argument("--clean", action="store_true", help="clean sessions, the default")
    session.add_argument("--persistent", action="store_true", help="persistent sessions, removed at the end")
    program.add_argument(
        "--timeout",
        type=PositiveNumber(float),
        default=10.0,
        metavar="SECONDS",
        help="give up after such a silence (10)",
    )
    program.add_argument("--json", action="store_true", help="print one JSON object")
    return program


class PositiveNumber:
    """Converts an argument; argparse shows its name when that fails."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def __call__(self, text: str) -> float:
        value = self._kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    def __repr__(self) -> str:
        return f"positive {self._kind.__name__}"


def endpoint(host: str, port: int) -> tuple[str, int]:
    """host, host:port, [v6] or [v6]:port -> host and port; raises ValueError."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        number = rest.removeprefix(":")
    elif host.count(":") == 1:
        name, _, number = host.partition(":")
    else:
        name, number = host, ""
    chosen = int(number) if number else port
    if not name or not 0 < chosen < 65536:
        raise ValueError(host)
    return name, chosen


def raise_file_limit() -> None:
    """Each connection takes a descriptor: allow as many as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass
class Cast:
    """Who takes part. A message is heard by `receivers` subscribers, or by one member of a group."""

    publishers: list[Publisher] = field(default_factory=list)
    subscribers: list[tuple[Subscriber, str]] = field(default_factory=list)
    arrivals: list[Arrivals] = field(default_factory=list)
    receivers: int = 0

    def heard(self, number: int) -> None:
        """A message of publisher `number` has arrived for the first time; strangers' messages are nobody's here."""
        if self.publishers:
            self.publishers[number].deliveries += 1


class Load:
    """One run of a scenario. Call `messages` or `connections` once, then `close`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._settings = Settings(
            version=MQTTProtocolVersion.MQTTv5 if options.v5 else MQTTProtocolVersion.MQTTv311,
            clean=not options.persistent,
            qos=options.qos,
            size=options.size,
            window=max(0, options.window),
            timeout_s=options.timeout,
        )
        self._run = secrets.token_bytes(8)
        self._tally = Tally()
        self._pump = Pump()
        self._peers: list[Peer] = []
        self._began_ns = self._last_ns = 0
        self._next_turn = 0

    def connections(self) -> Result:
        """Open the connections, hold them, and say how fast that went; raises BenchError."""
        places = cycle(endpoint(host, self._options.port) for host in self._options.sub_host)
        peers = [Peer(self._client_id("c", n), *next(places), self._settings) for n in range(self._options.clients)]
        self._began_ns = time.monotonic_ns()
        self._connect(peers)
        self._last_ns = max(peer.connected_ns for peer in peers)
        deadline = time.monotonic() + (self._options.duration or 0.0)
        while time.monotonic() < deadline:
            self._pump.turn(min(POLL_S_MAX, max(0.0, deadline - time.monotonic())))
        self._leave()
        self._tally.latencies_ns = [peer.connected_ns - peer.began_ns for peer in peers]
        return self._result(Cast(), 0, 0, "connections", len(peers), len(peers))

    def messages(self) -> Result:
        """Publish and receive what the scenario says; raises BenchError."""
        cast = self._cast()
        subscribers = [subscriber for subscriber, _ in cast.subscribers]
        self._connect([*subscribers, *cast.publishers])
        for subscriber, topic_filter in cast.subscribers:
            subscriber.subscribe(topic_filter)
            self._pump.touched(subscriber)
        wait_for(self._pump, "SUBSCRIBE", subscribers, lambda peer: bool(peer.subscribed), self._settings.timeout_s)
        self._transfer(cast)
        self._leave()
        if cast.publishers:
            expected = self._tally.published * cast.receivers
            lost = expected - self._tally.received
        else:
            lost = sum(arrivals.gaps() for arrivals in cast.arrivals)
            expected = self._options.count or self._tally.received + lost
            lost = max(lost, expected - self._tally.received)
        if subscribers:
            return self._result(cast, expected, lost, "messages", self._tally.received, len(subscribers))
        # Nobody listens: a message that nobody acknowledged is a lost one.
        done = self._tally.acknowledged if self._options.qos else self._tally.published
        return self._result(cast, self._tally.published, self._tally.published - done, "messages", done, 0)

    def close(self) -> None:
        """Close whatever is still open."""
        self._pump.close()

    def _cast(self) -> Cast:
        scenario, clients, topic = self._options.scenario, self._options.clients, self._options.topic
        ours = f"{topic}/{self._run.hex()}"
        cast = Cast(receivers={"pub": 0, "fan-out": clients}.get(scenario, 1))
        if scenario != "sub":
            places = cycle(endpoint(host, self._options.port) for host in self._options.pub_host)
            for number in range(1 if scenario == "fan-out" else clients):
                name = self._client_id("p", number)
                publisher = Publisher(
                    name, *next(places), self._settings, number, f"{ours}/{number}", self._run, self._tally
                )
                publisher.receivers = cast.receivers
                cast.publishers.append(publisher)
        filters = {
            "pairs": [f"{ours}/{number}" for number in range(clients)],
            "sub": [f"{topic}/#"] * clients,
            "fan-out": [f"{ours}/0"] * clients,
            "fan-in": [f"{ours}/+"],
            "shared": [f"$share/{self._run.hex()}/{ours}/+"] * clients,
        }.get(scenario, [])
        places = cycle(endpoint(host, self._options.port) for host in self._options.sub_host)
        for number, topic_filter in enumerate(filters):
            if not cast.arrivals or scenario != "shared":
                cast.arrivals.append(Arrivals(self._tally))
            run = None if scenario == "sub" else self._run
            name = self._client_id("s", number)
            subscriber = Subscriber(name, *next(places), self._settings, cast.arrivals[-1], run, cast.heard)
            cast.subscribers.append((subscriber, topic_filter))
        return cast

    def _client_id(self, role: str, number: int) -> str:
        return f"bench-{self._run.hex()}-{role}{number}"

    def _connect(self, peers: Sequence[Peer]) -> None:
        with Bar("connecting", len(peers)) as bar:
            for start in range(0, len(peers), CONNECTING_MAX):
                some = peers[start : start + CONNECTING_MAX]
                for peer in some:
                    peer.open()
                    self._peers.append(peer)
                    self._pump.add(peer)
                wait_for(self._pump, "CONNECT", some, lambda peer: peer.is_connected, self._settings.timeout_s)
                bar.show(start + len(some))

    def _transfer(self, cast: Cast) -> None:
        tally, timeout_s = self._tally, self._settings.timeout_s
        self._began_ns = self._last_ns = time.monotonic_ns()
        expected = self._options.count
        if expected and cast.publishers:
            expected *= len(cast.publishers) * max(1, cast.receivers)
        before = (0, 0, 0, 0)
        complete_at = shown_at = 0.0
        with Bar(self._options.scenario, expected) as bar, contextlib.suppress(KeyboardInterrupt):
            while True:
                wait_s, is_due_later = self._publish(cast)
                self._pump.turn(wait_s)
                now_ns = time.monotonic_ns()
                after = (tally.published, tally.acknowledged, tally.received, tally.duplicated)
                if after != before:
                    self._last_ns, before = now_ns, after
                if now_ns / 1e9 - shown_at > POLL_S_MAX:
                    shown_at = now_ns / 1e9
                    bar.show(tally.received if cast.subscribers else tally.acknowledged or tally.published)
                if self._is_complete(cast, now_ns):
                    complete_at = complete_at or now_ns / 1e9
                    if now_ns / 1e9 >= complete_at + LINGER_S:
                        return
                elif not is_due_later and now_ns > self._last_ns + timeout_s * 1e9:
                    return

    def _publish(self, cast: Cast) -> tuple[float, bool]:
        """Send what may be sent; returns how long nothing will be, in seconds, and whether that is the pace's doing."""
        now_ns = time.monotonic_ns()
        if not cast.publishers:
            # A subscriber with a count waits for messages; without one for somebody to end it.
            return POLL_S_MAX, self._options.count is None or self._options.duration is not None
        if self._options.rate:
            return self._publish_due(cast.publishers, now_ns)
        is_busy = False
        for publisher in cast.publishers:
            for _ in range(BURST_MAX):
                if self._is_finished(publisher, now_ns) or not publisher.may_send(False):
                    break
                publisher.send(time.monotonic_ns())
                is_busy = True
            self._pump.touched(publisher)
        return (0.0 if is_busy else POLL_S_MAX), False

    def _publish_due(self, publishers: list[Publisher], now_ns: int) -> tuple[float, bool]:
        # One schedule for all, taken in turn; a publisher whose window is full holds up the others no longer than
        # its acknowledgement takes, and the delay is in the stamps.
        for _ in range(BURST_MAX * len(publishers)):
            publisher = publishers[self._next_turn % len(publishers)]
            due_ns = self._began_ns + round(self._next_turn * 1e9 / self._options.rate)
            if self._is_finished(publisher, due_ns):
                return POLL_S_MAX, False
            if due_ns > now_ns:
                return min(POLL_S_MAX, (due_ns - now_ns) / 1e9), True
            if not publisher.may_send(True):
                return POLL_S_MAX, False
            publisher.send(due_ns)
            self._next_turn += 1
            self._pump.touched(publisher)
        return 0.0, False

    def _is_finished(self, publisher: Publisher, now_ns: int) -> bool:
        if self._options.count is not None and publisher.sent >= self._options.count:
            return True
        duration = self._options.duration
        return duration is not None and now_ns >= self._began_ns + duration * 1e9

    def _is_complete(self, cast: Cast, now_ns: int) -> bool:
        tally = self._tally
        if not cast.publishers:
            duration, count = self._options.duration, self._options.count
            over = duration is not None and now_ns >= self._began_ns + duration * 1e9
            return over or (count is not None and tally.received >= count)
        if not all(self._is_finished(publisher, now_ns) for publisher in cast.publishers):
            return False
        if self._options.qos and tally.acknowledged < tally.published:
            return False
        if any(publisher.client.want_write() for publisher in cast.publishers):
            return False
        return tally.received >= tally.published * cast.receivers

    def _leave(self) -> None:
        peers = [peer for peer in self._peers if peer.is_connected]
        self._say_goodbye(peers)
        if not self._settings.clean and not self._settings.is_v5:
            # Before MQTT 5 only a clean session removes a persistent one.
            for peer in peers:
                peer.open(clean=True)
                self._pump.add(peer)
            wait_for(self._pump, "CONNECT", peers, lambda peer: peer.is_connected, self._settings.timeout_s)
            self._say_goodbye(peers)

    def _say_goodbye(self, peers: Sequence[Peer]) -> None:
        for peer in peers:
            peer.leave()
            self._pump.touched(peer)
        with contextlib.suppress(BenchError):
            wait_for(self._pump, "DISCONNECT", peers, lambda peer: not peer.is_connected, LEAVE_S)

    def _result(self, cast: Cast, expected: int, lost: int, counted: str, done: int, subscribers: int) -> Result:
        seconds = max(1, self._last_ns - self._began_ns) / 1e9
        tally = self._tally
        return Result(
            scenario=self._options.scenario,
            qos=self._options.qos,
            protocol="MQTT 5" if self._options.v5 else "MQTT 3.1.1",
            payload_bytes=self._options.size,
            publishers=len(cast.publishers),
            subscribers=subscribers,
            published=tally.published,
            acknowledged=tally.acknowledged,
            expected=expected,
            received=tally.received,
            lost=lost,
            duplicated=tally.duplicated,
            reordered=tally.reordered,
            counted=counted,
            seconds=seconds,
            rate_per_s=done / seconds,
            latency_us=latencies_us(tally.latencies_ns),
        )


if __name__ == "__main__":
    main()
