"""The load generators, which are written in C, because Python could not saturate these brokers: compiling, running.

messages.c sends messages through a broker, connections.c opens connections. Each is told to begin and to end, so that
a caller reads the broker's CPU time around the work alone. Knows nothing about what is measured.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

SOURCES = Path(__file__).parent
PROGRAMS = ("messages", "connections")
SETTLE_S = 0.2
"""Before a run: until the last handshake is acknowledged by TCP, Nagle's algorithm may hold a first message back 40 ms.
After it, before the CPU time is read: the broker may still have acknowledgements to take."""
END_WAIT_S = 10.0
"""For a load generator to end once it has told its figures."""

Figures = dict[str, Any]


class Served(Protocol):
    """A broker that runs."""

    @property
    def port(self) -> int:
        """Where it accepts clients, on 127.0.0.1."""

    def cpu_s(self) -> float:
        """CPU seconds so far."""


class LoadError(Exception):
    """A load generator that cannot be built, or a load that a broker does not bear; with the reason in words."""


@dataclass(frozen=True)
class Messages:
    """Arguments of messages.c, which says what they mean."""

    qos: int
    count: int
    publishers: int = 1
    subscribers: int = 1
    filter: str = "own"
    stage: str = "flow"
    size: int = 64
    rate: float = 0.0
    window: int = 100
    subscriber_port: int = 0


@dataclass(frozen=True)
class Connections:
    """Arguments of connections.c, which says what they mean."""

    count: int
    at_once: int = 64
    keep: str = "no"


def compile_loaders(directory: Path) -> Path:
    """Compile the load generators into a directory, and return that; raises LoadError."""
    compiler = next(filter(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")), None)
    if compiler is None:
        raise LoadError("there is no C compiler here, and the load generators are written in C")
    for name in PROGRAMS:
        source = SOURCES / f"{name}.c"
        command = [compiler, "-std=c11", "-O2", "-o", str(directory / name), str(source)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise LoadError(f"{source} does not compile:\n{built.stderr}")
    return directory


def new_tag() -> str:
    """A tag for client ids and topics: no two runs share it, but the stages of one run."""
    return f"{os.getpid()}-{time.monotonic_ns() % 1_000_000_000}"


class Run:
    """One run of a load generator: enter it, `work`, look at the broker, leave it. `LoadError` from any of these."""

    def __init__(self, programs: Path, load: Messages | Connections, port: int, tag: str) -> None:
        name = "messages" if isinstance(load, Messages) else "connections"
        arguments = {**vars(load), "port": port, "tag": tag}
        self._command = [str(programs / name), *(f"{key}={value}" for key, value in arguments.items())]
        self._stack = ExitStack()

    def __enter__(self) -> "Run":
        with self._stack:
            self._errors = self._stack.enter_context(tempfile.TemporaryFile())
            self._process = self._stack.enter_context(
                subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
                )
            )
            # Last in, first out: no exception may wait for a living process.
            self._stack.callback(self._process.kill)
            self._listen()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._tell()
                if self._process.wait(END_WAIT_S):
                    raise LoadError(self._reason())

    def work(self) -> Figures:
        """Do the work and return its figures."""
        self._tell()
        figures: Figures = json.loads(self._listen())
        if figures.get("unsent"):
            raise LoadError(f"the broker stopped taking messages, {figures['unsent']} before the end")
        return figures

    def _listen(self) -> bytes:
        """The next line of the load generator; an alarm of its own sees to that, or to its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(END_WAIT_S)
            raise LoadError(self._reason())
        return line

    def _tell(self) -> None:
        """Let the load generator go on."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")

    def _reason(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode().strip() or f"exit code {self._process.returncode}"


def run_load(
    programs: Path, broker: Served, load: Messages | Connections, tag: str | None = None
) -> tuple[Figures, float]:
    """Put a load on a broker; returns its figures and the CPU seconds that the broker used meanwhile."""
    with Run(programs, load, broker.port, tag or new_tag()) as run:
        time.sleep(SETTLE_S)
        before_s = broker.cpu_s()
        figures = run.work()
        time.sleep(SETTLE_S)
        return figures, broker.cpu_s() - before_s
