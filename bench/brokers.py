"""Brokers under test: building zvmq's compiled copy, starting a broker on a port of its own, stopping and killing it.

Owns the broker's processes and its temporary directory. Knows nothing about load.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes

ROOT = Path(__file__).resolve().parents[1]
COMPILED = ROOT / "build" / "compiled"

READY_WAIT_S = 30.0
# A node promises to end within 10 s of SIGTERM.
STOP_WAIT_S = 11.0
POLL_S = 0.02

MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence {persistence}
persistence_location {directory}/
# A flat-out run must not be a run of dropped messages.
max_queued_messages 0
max_inflight_messages 20
log_type error
"""

UNBOUNDED_QUEUES = ("mqtt.max_online_messages=-1", "mqtt.max_offline_messages=-1")

# rumqttd inside a Python process of its own; its limits are those that a run may not meet.
IOTCORE_PROGRAM = """\
from iotcore import IotCoreBroker
IotCoreBroker(listen="127.0.0.1", port={port}, max_connections=100_000, max_inflight_count=1000).run_forever()
"""


class BrokerError(Exception):
    """A broker that cannot be built or started, with the reason in words."""


@dataclass(frozen=True)
class Kind:
    """A broker that can be measured. `command(port, directory, is_durable)`: how it starts.

    Durable, it keeps sessions and their messages where it can, on disk, as a run with a restart wants it. Otherwise
    it is as fast as it can be; zvmq keeps them always.
    """

    name: str
    version: str
    command: Callable[[int, Path, bool], list[str]]
    environment: dict[str, str] = field(repr=False)
    says_ready: bool


def interpreted() -> Kind:
    """The source tree's own zvmq, which is never compiled."""
    return _zvmq("zvmq interpreted", ROOT, "interpreted")


def compiled() -> Kind:
    """zvmq with compiled cores, built first when the sources have changed; raises BrokerError."""
    return _zvmq("zvmq compiled", _compiled_root(), "compiled")


def mosquitto() -> Kind | None:
    """mosquitto, or None when it is not installed."""
    path = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin")
    if path is None:
        return None
    # -h exits with 1 or 3, whichever the version.
    help_text = subprocess.run([path, "-h"], capture_output=True, text=True, check=False).stdout

    def command(port: int, directory: Path, is_durable: bool) -> list[str]:
        config = directory / "mosquitto.conf"
        # It would leave root's own directory behind for a user who may not read it.
        user = "user root\n" if os.geteuid() == 0 else ""
        persistence = "true" if is_durable else "false"
        text = MOSQUITTO_CONFIG.format(port=port, persistence=persistence, directory=directory)
        config.write_text(text + user)
        return [path, "-c", str(config)]

    return Kind("mosquitto", help_text.partition("\n")[0], command, dict(os.environ), False)


def iotcore() -> Kind | None:
    """rumqttd as the package iotcore brings it, or None when that is not installed; it keeps nothing on disk."""
    if importlib.util.find_spec("iotcore") is None:
        return None

    def command(port: int, directory: Path, is_durable: bool) -> list[str]:
        return [sys.executable, "-P", "-c", IOTCORE_PROGRAM.format(port=port)]

    return Kind("iotcore", f"iotcore {importlib.metadata.version('iotcore')}", command, dict(os.environ), False)


def _zvmq(name: str, root: Path, cores: str) -> Kind:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZVMQ_")}
    environment["PYTHONPATH"] = str(root)
    program = [sys.executable, "-P", "-m", "broker.main"]
    said = subprocess.run(
        [*program, "--version"], env=environment, capture_output=True, text=True, check=False, cwd="/"
    )
    version = ", ".join(said.stdout.splitlines())
    if said.returncode or f"cores: {cores}" not in version:
        raise BrokerError(f"{name} is not what it should be: {version or said.stderr}")

    def command(port: int, directory: Path, is_durable: bool) -> list[str]:
        settings = [
            "node.name=bench@127.0.0.1",
            f"node.data_dir={directory / 'data'}",
            f"listeners=[{{type: mqtt, address: 127.0.0.1:{port}}}]",
            f"cluster.listen=127.0.0.1:{free_port()}",
            *UNBOUNDED_QUEUES,
            "log.console=file",
        ]
        return [*program, "start", "--set", *settings]

    return Kind(name, version, command, environment, True)


def _compiled_root() -> Path:
    if not (ROOT / "setup.py").exists():
        raise BrokerError("the compiled copy is built from a source tree, and this is none")
    target = COMPILED / _sources_hash()
    if target.exists():
        return target
    print("building the compiled cores, which takes a minute or two ...", file=sys.stderr, flush=True)
    COMPILED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMPILED) as half:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", half, str(ROOT)]
        build = subprocess.run(
            command, env={**os.environ, "ZVMQ_COMPILE": "1"}, capture_output=True, text=True, check=False
        )
        if build.returncode:
            raise BrokerError(f"the compiled cores cannot be built:\n{build.stdout}{build.stderr}")
        # Under its final name only when it is whole. Copied, because the temporary directory wants to be removed.
        shutil.copytree(half, target.with_suffix(".part"), dirs_exist_ok=True)
        target.with_suffix(".part").rename(target)
    return target


def _sources_hash() -> str:
    """What decides whether an earlier build still holds: the sources, how they are built, and by which Python."""
    digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()}".encode())
    files = [ROOT / name for name in ("setup.py", "setup.cfg", "pyproject.toml")]
    for package in ("broker", "cluster"):
        files += sorted((ROOT / package).rglob("*.py"))
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class RunningBroker:
    """A broker that accepts clients on `port` once it is started; close it. It may start again, in its directory."""

    def __init__(self, kind: Kind, directory: Path, cpus: Iterable[int], is_durable: bool = False) -> None:
        self.kind = kind
        self.port = free_port()
        self._directory = directory
        self._cpus = list(cpus)
        self._is_durable = is_durable
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it accepts clients; raises BrokerError."""
        assert self._process is None
        # A file takes all that a broker says, where one that talks much would stop at a full pipe.
        with confined(self._cpus), self._log().open("wb") as log:
            self._process = subprocess.Popen(
                self.kind.command(self.port, self._directory, self._is_durable),
                env=self.kind.environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_ready()

    def cpu_s(self) -> float:
        """CPU seconds of the broker's process tree since it started, those of children that have ended included."""
        assert self._process is not None
        return processes.cpu_s(self._process.pid)

    def memory_bytes(self) -> int:
        """Memory of the broker's process tree, what processes share counted once (PSS)."""
        assert self._process is not None
        return processes.memory_bytes(self._process.pid)

    def close(self) -> None:
        """Stop it in good order, if it runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._end()

    def kill(self) -> None:
        """End every process of it at once (SIGKILL)."""
        assert self._process is not None
        processes.kill(self._process.pid)
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.wait()

    def _log(self) -> Path:
        return self._directory / "broker.log"

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_WAIT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self._log().read_text(errors="replace")
                raise BrokerError(f"{self.kind.name} does not start (exit code {self._process.returncode}): {text}")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        if self.kind.says_ready:
            return b"ready:" in self._log().read_bytes()
        try:
            socket.create_connection(("127.0.0.1", self.port), POLL_S).close()
        except OSError:
            return False
        return True


@contextmanager
def running(kind: Kind, cpus: Iterable[int], is_durable: bool = False) -> Iterator[RunningBroker]:
    """A started broker of this kind, confined to these CPUs, with a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
        broker = RunningBroker(kind, Path(directory), cpus, is_durable)
        try:
            broker.start()
            yield broker
        finally:
            broker.close()


@contextmanager
def confined(cpus: Iterable[int]) -> Iterator[None]:
    """Processes started inside may only use these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
