"""Real nodes for the system tests: starting, watching, killing, and proof that nothing of them is left.

A node runs the programs installed beside this interpreter, as a user would. Its processes are known by their working
directory, which no other program has: so those are found too whose supervisor is gone. Ports are free ones, so that
tests may run beside a lab and beside each other.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

BIN: Final = Path(sys.executable).parent
BROKER: Final = BIN / "vmq-broker"
ADMIN: Final = BIN / "vmq-admin"

COOKIE: Final = "a cookie for the system tests"

LIMIT_S: Final = 30.0
"""Long enough for anything on a busy machine; only what fails takes it."""
STOP_LIMIT_S: Final = 10.0
"""Promised: a stop takes no longer."""
NOTICE_LIMIT_S: Final = 10.0
"""Promised: a node that was killed is seen by the others within this time."""
POLL_S: Final = 0.05
LOG_LINES_MAX: Final = 60

# Below the ports that the kernel hands out by itself: a client's own port must not take a node's while it is down.
_PORTS: Final = range(12_000, 30_000)
_next_port = itertools.count(os.getpid() * 37)

T = TypeVar("T")

started: "list[Node]" = []
"""Every node that was started and not closed: what a failed test shows the logs of."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of `host` that nobody listens on, another one at each call."""
    for number in itertools.islice(_next_port, len(_PORTS)):
        port = _PORTS[number % len(_PORTS)]
        if port_is_free(host, port):
            return port
    raise OSError(f"no free port on {host}")


def port_is_free(host: str, port: int) -> bool:
    """Whether nobody listens on a port of `host`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_address(host: str = "127.0.0.1") -> str:
    """Return host:port for a free port."""
    return f"{host}:{free_port(host)}"


def wait_until(condition: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """Wait until `condition` returns something true, and return that; fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"within {limit_s:g} s it did not happen: {what}"
        time.sleep(POLL_S)


def environment() -> dict[str, str]:
    """Return this environment without zvmq's own variables, which would win over a test's settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ZVMQ_")}


def processes_in(directory: Path) -> dict[int, str]:
    """Return the living processes whose working directory this is: process id -> title."""
    found: dict[int, str] = {}
    wanted = os.path.realpath(directory)
    for entry in os.listdir("/proc"):
        # One that is a zombie, or gone meanwhile, has no working directory.
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == wanted:
                found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().rstrip(b"\0 ").decode()
    return found


class Node:
    """One node: its settings, its directory and, while it runs, its processes."""

    def __init__(self, directory: Path, number: int = 1, cookie: str = "", settings: Iterable[str] = ()) -> None:
        self.host = f"127.0.0.{number}"
        self.name = f"node{number}@{self.host}"
        self.directory = directory
        self.data_dir = directory / "data"
        self.mqtt_port = free_port(self.host)
        self.mesh_port = free_port(self.host)
        self.output = directory / "output.log"
        self.settings = [
            f"node.name={self.name}",
            f"node.data_dir={self.data_dir}",
            f"listeners=[{{type: mqtt, address: '{self.mqtt_address}'}}]",
            f"cluster.listen={self.host}:{self.mesh_port}",
            f"cluster.cookie={cookie}",
            "processes.listeners=2",
            "log.console=console",
            *settings,
        ]
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def mqtt_address(self) -> str:
        """Where clients connect, host:port."""
        return f"{self.host}:{self.mqtt_port}"

    @property
    def discovery_node(self) -> str:
        """How others find it: name@host:port."""
        return f"{self.name}:{self.mesh_port}"

    def launch(self, *flags: str) -> None:
        """Start the node without waiting for anything."""
        assert self.process is None, f"{self.name} was not stopped"
        command = [str(BROKER), "start", *flags]
        if self.settings:
            command += ["--set", *self.settings]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment(),
            )
        if self not in started:
            started.append(self)

    def start(self) -> "Node":
        """Start the node and wait until it is ready."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> str:
        """Wait for the ready line and return it."""

        def ready_line() -> str:
            assert self.process is not None
            # The order matters: what a process printed before it ended is read after its end was seen.
            ended = self.process.poll()
            for line in self.said().splitlines():
                if line.startswith("ready: "):
                    return line
            assert ended is None, f"{self.name} ended with {ended} before it was ready"
            return ""

        return wait_until(ready_line, f"{self.name} is ready")

    def wait_ready_or_end(self) -> None:
        """Wait until the node is ready, or has ended by itself."""
        process = self.process
        assert process is not None
        wait_until(lambda: process.poll() is not None or "ready: " in self.said(), f"{self.name} is ready or ends")

    def wait_end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the node to end by itself; returns its exit code, once nothing of it is left."""
        assert self.process is not None
        code = self.process.wait(limit_s)
        self.process = None
        wait_until(lambda: not self.processes(), f"{self.name} leaves no process behind")
        return code

    def stop(self) -> None:
        """Stop the node by SIGTERM: cleanly and in time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_LIMIT_S)
        self.process = None
        left = self.processes()
        assert code == 0, f"{self.name} ended with {code}"
        assert not left, f"{self.name} left {left}"

    def kill(self) -> None:
        """End every process of the node by SIGKILL, the supervisor first, so that it starts none again."""
        assert self.process is not None
        pids = self.processes()
        self.process.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        # A child that was started at that very moment ends by itself: its supervisor is gone.
        wait_until(lambda: not self.processes(), f"every process of {self.name} is gone")

    def close(self) -> None:
        """End whatever runs, however the test ended. Fails if a node that was stopped left a process."""
        stopped = self.process is None
        left = self.processes()
        if self.process is not None:
            self.kill()
        for pid in left if stopped else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.remove(self)
        assert not stopped or not left, f"{self.name} was stopped and left {left}"

    def processes(self) -> dict[int, str]:
        """Return the living processes of the node: process id -> title."""
        return processes_in(self.directory)

    def process_of(self, role: str) -> int:
        """Return the process whose title is that of a role, as `owner` or `listener 0`; 0 if there is none."""
        wanted = f"zvmq {self.name} {role}"
        return next((pid for pid, title in self.processes().items() if title == wanted), 0)

    def said(self) -> str:
        """Return what the node printed and logged since its last start."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def log_tail(self) -> str:
        """Return the last lines of it."""
        return "\n".join(self.said().splitlines()[-LOG_LINES_MAX:])

    def admin(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run vmq-admin on this node."""
        return subprocess.run(
            self.admin_command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            env=environment(),
        )

    def admin_command(self, *arguments: str) -> list[str]:
        """Return what runs vmq-admin on this node."""
        return [str(ADMIN), *arguments, f"--data-dir={self.data_dir}"]

    def status(self) -> dict[str, Any]:
        """Return the rows of `node status`; none when the node doesn't answer."""
        return {row["Status"]: row["Value"] for row in self.table("node", "status")}

    def metric(self, name: str) -> int:
        """Return a metric."""
        return int(next(row["Value"] for row in self.table("metrics", "show") if row["Metric"] == name))

    def table(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the rows of a command's table; none when the node doesn't answer."""
        answer = self.admin(*arguments, "--json")
        if answer.returncode != 0:
            return []
        rows: list[dict[str, Any]] = json.loads(answer.stdout)["table"]
        return rows

    def cluster(self) -> dict[str, bool]:
        """Return what this node sees of the cluster: name -> running."""
        return {row["Node"]: row["Running"] for row in self.table("cluster", "show")}

    def join(self, other: "Node") -> None:
        """Join the cluster of another node."""
        joined = self.admin("cluster", "join", f"discovery-node={other.discovery_node}")
        assert (joined.returncode, joined.stdout, joined.stderr) == (0, "Done\n", "")


def start_all(nodes: Iterable[Node]) -> None:
    """Start nodes at once and wait until each is ready."""
    nodes = list(nodes)
    for node in nodes:
        node.launch()
    for node in nodes:
        node.wait_ready()


def wait_whole(nodes: Iterable[Node], limit_s: float = LIMIT_S) -> None:
    """Wait until each of these nodes sees each of them running, and no other."""
    nodes = list(nodes)
    whole = {node.name: True for node in nodes}
    for node in nodes:
        wait_until(lambda node=node: node.cluster() == whole, f"{node.name} sees {whole}", limit_s)  # type: ignore[misc]


def join_all(nodes: Iterable[Node]) -> None:
    """Make one cluster of nodes that run."""
    first, *others = nodes
    for node in others:
        node.join(first)
    wait_whole([first, *others])


def close_started(node: Node) -> None:
    """Close a node that may never have been started."""
    if node in started:
        node.close()
