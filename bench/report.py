"""How the results of vmq-bench look: a few lines for people, one JSON object for programs, a progress bar meanwhile."""

import json
import sys
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.stamps import percentile

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Result:
    """The figures of one run. `rate_per_s` counts `counted`: messages received or published, or connections."""

    scenario: str
    qos: int
    protocol: str
    payload_bytes: int
    publishers: int
    subscribers: int
    published: int
    acknowledged: int
    expected: int
    received: int
    lost: int
    duplicated: int
    reordered: int
    counted: str
    seconds: float
    rate_per_s: float
    latency_us: dict[str, float]

    @property
    def is_good(self) -> bool:
        """At QoS > 0 nothing may be lost, come twice or out of order; `sub` must get what it waits for at any QoS."""
        if self.scenario == "sub" and self.received < self.expected:
            return False
        return self.qos == 0 or not (self.lost or self.duplicated or self.reordered)


def latencies_us(latencies_ns: list[int]) -> dict[str, float]:
    """The percentiles of latencies in ns, in µs; empty when there are none."""
    ascending = sorted(latencies_ns)
    return {name: percentile(ascending, share) / 1000 for name, share in SHARES.items()} if ascending else {}


def write_result(result: Result, as_json: bool, stream: IO[str]) -> None:
    """Print the result."""
    if as_json:
        print(json.dumps(asdict(result)), file=stream)
        return
    if result.scenario == "connect":
        print(f"connect: {result.subscribers:,} connections, {result.protocol}", file=stream)
    else:
        sides = f"{result.publishers:,} publishers, {result.subscribers:,} subscribers"
        print(f"{result.scenario}: {sides}, QoS {result.qos}, {result.payload_bytes} B, {result.protocol}", file=stream)
    print(f"rate        {result.rate_per_s:,.0f} {result.counted}/s over {result.seconds:.2f} s", file=stream)
    if result.latency_us:
        named = "  ".join(f"{name} {value / 1000:.2f} ms" for name, value in result.latency_us.items())
        print(f"latency     {named}", file=stream)
    if result.scenario == "connect":
        return
    told = f"published {result.published:,}"
    if result.qos:
        told += f"  acknowledged {result.acknowledged:,}"
    if result.subscribers:
        told += f"  received {result.received:,}"
    print(f"messages    {told}", file=stream)
    if result.subscribers:
        print(
            f"lost {result.lost:,}  duplicated {result.duplicated:,}  reordered {result.reordered:,}",
            file=stream,
        )


class Bar:
    """A progress bar on stderr when that is a terminal, else nothing. `total` None: nobody knows."""

    def __init__(self, what: str, total: int | None) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, completed: int) -> None:
        """Show how far it is."""
        self._progress.update(self._task, completed=completed)
