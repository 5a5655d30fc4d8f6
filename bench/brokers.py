"""Brokers under test: building zvmq's compiled copy, starting a broker on a port of its own, reading its CPU time.

Owns the broker's processes and its temporary directory. Knows nothing about load.
"""

import hashlib
import os
import platform
import select
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

ROOT = Path(__file__).resolve().parents[1]
COMPILED = ROOT / "build" / "compiled"

READY_WAIT_S = 30.0
# A node promises to end within 10 s of SIGTERM.
STOP_WAIT_S = 11.0
POLL_S = 0.02

# Fields of /proc/<pid>/stat after the command's closing parenthesis: utime, stime, cutime, cstime, in clock ticks.
CPU_FIELDS = slice(11, 15)

MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
# A flat-out run must not be a run of dropped messages.
max_queued_messages 0
max_inflight_messages 20
log_type error
"""


class BrokerError(Exception):
    """A broker that cannot be built or started, with the reason in words."""


@dataclass(frozen=True)
class Kind:
    """A broker that can be measured. `start(port, directory)` gives its command and environment."""

    name: str
    version: str
    command: Callable[[int, Path], list[str]]
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

    def command(port: int, directory: Path) -> list[str]:
        config = directory / "mosquitto.conf"
        # It would leave root's own directory behind for a user who may not read it.
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(MOSQUITTO_CONFIG.format(port=port) + user)
        return [path, "-c", str(config)]

    return Kind("mosquitto", help_text.partition("\n")[0], command, dict(os.environ), False)


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

    def command(port: int, directory: Path) -> list[str]:
        settings = [
            "node.name=bench@127.0.0.1",
            f"node.data_dir={directory / 'data'}",
            f"listeners=[{{type: mqtt, address: 127.0.0.1:{port}}}]",
            f"cluster.listen=127.0.0.1:{free_port()}",
            "mqtt.max_online_messages=-1",
            "mqtt.max_offline_messages=-1",
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
    """A started broker that accepts clients on `port`; close it."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self._process = subprocess.Popen(
            kind.command(self.port, directory),
            env=kind.environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._output = b""
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def cpu_s(self) -> float:
        """CPU seconds of the broker's process tree so far, those of children that have ended included."""
        return cpu_s(self._process.pid)

    def close(self) -> None:
        """Stop the broker."""
        self._process.terminate()
        try:
            self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_WAIT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self._output.decode(errors="replace")
                raise BrokerError(f"{self.kind.name} does not start (exit code {self._process.returncode}): {text}")

    def _is_ready(self) -> bool:
        stdout = self._process.stdout
        assert stdout is not None
        if select.select([stdout], [], [], POLL_S)[0]:
            self._output += os.read(stdout.fileno(), 4096)
        if self.kind.says_ready:
            return b"ready:" in self._output
        try:
            socket.create_connection(("127.0.0.1", self.port), POLL_S).close()
        except OSError:
            return False
        return True


@contextmanager
def running(kind: Kind, cpus: Iterable[int]) -> Iterator[RunningBroker]:
    """A broker of this kind, confined to these CPUs, with a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory:
        with confined(cpus):
            broker = RunningBroker(kind, Path(directory))
        try:
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


def cpu_s(process: int) -> float:
    """CPU seconds of a process and everything below it, so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        tasks = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        # It has ended since its parent was asked, and now counts with its parent.
        return 0.0
    ticks = sum(int(value) for value in fields[CPU_FIELDS])
    children = [int(child) for text in tasks for child in text.split()]
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_s(child) for child in children)
