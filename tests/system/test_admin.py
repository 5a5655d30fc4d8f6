"""A whole node from the outside: `vmq-broker` and `vmq-admin` as users run them."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
"""Promised: a stop takes no longer."""

NAME = "node1@127.0.0.1"

BROKER = [sys.executable, "-m", "broker.main"]
ADMIN = [sys.executable, "-m", "admin.cli"]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Node:
    """A running `vmq-broker start`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.address = free_address()
        settings = [
            f"node.name={NAME}",
            f"node.data_dir={data_dir}",
            f"listeners=[{{type: mqtt, address: {self.address}}}]",
            f"cluster.listen={free_address()}",
            "processes.listeners=2",
            "log.console=file",
        ]
        self.process = subprocess.Popen([*BROKER, "start", "--set", *settings], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def admin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*ADMIN, *arguments, f"--data-dir={self.data_dir}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)

    def log(self) -> str:
        return (self.data_dir / "log" / "console.log").read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], Node]]:
    with ExitStack() as stack:

        def start(data_dir: Path) -> Node:
            node = Node(data_dir)
            stack.callback(node.close)
            return node

        yield start


@pytest.fixture
def node(start: Callable[[Path], Node], tmp_path: Path) -> Node:
    node = start(tmp_path / "data")
    assert node.first_line == f"ready: {NAME} mqtt={node.address}\n", node.log()
    return node


def accepts(address: str) -> bool:
    """Whether an MQTT client gets in."""
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
            # CONNECT of MQTT 3.1.1, clean session, client id "c"; CONNACK without session, accepted.
            client.sendall(bytes.fromhex("100d00044d5154540402003c000163"))
            return client.recv(4) == bytes.fromhex("20020000")
    except OSError:
        return False


def test_a_node_that_is_ready_accepts(node: Node) -> None:
    assert accepts(node.address), node.log()


def test_sigterm_stops_cleanly(node: Node) -> None:
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(STOP_LIMIT_S) == 0, node.log()
    assert "[error]" not in node.log()


def test_the_cluster_of_one(node: Node) -> None:
    shown = node.admin("cluster", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "+-----------------+---------+\n"
        "| Node            | Running |\n"
        "+-----------------+---------+\n"
        f"| {NAME} | true    |\n"
        "+-----------------+---------+\n"
    )
    as_json = node.admin("cluster", "show", "--json")
    assert json.loads(as_json.stdout) == {"type": "table", "table": [{"Node": NAME, "Running": True}]}
    assert node.admin("cluster", "show", "--verbose").returncode == 0


def test_node_status(node: Node) -> None:
    status = node.admin("node", "status", "--json")
    assert (status.returncode, status.stderr) == (0, "")
    assert json.loads(status.stdout)["type"] == "table"


def test_node_stop(node: Node) -> None:
    stopped = node.admin("node", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Done\n")
    assert node.process.wait(STOP_LIMIT_S) == 0, node.log()
    gone = node.admin("node", "status")
    assert (gone.returncode, gone.stdout) == (3, "")


def test_join_without_a_cookie_is_refused(node: Node) -> None:
    joined = node.admin("cluster", "join", f"discovery-node=node2@{free_address()}")
    assert (joined.returncode, joined.stdout) == (1, "")
    assert "cookie" in joined.stderr


def test_what_a_node_leaves_on_disk_is_private(node: Node) -> None:
    assert stat.S_IMODE(os.stat(node.data_dir).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(node.data_dir / "run").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(node.data_dir / "run" / "admin.sock").st_mode) == 0o600


def test_a_long_data_dir(start: Callable[[Path], Node], tmp_path: Path) -> None:
    node = start(tmp_path.joinpath(*["d" * 100] * 2))
    assert node.first_line.startswith("ready: "), node.log()
    assert node.admin("cluster", "show").returncode == 0


def test_a_data_dir_has_one_node(node: Node, start: Callable[[Path], Node]) -> None:
    second = start(node.data_dir)
    assert second.first_line == ""
    assert second.process.wait(LIMIT_S) == 1
    assert node.admin("cluster", "show").returncode == 0


def test_a_node_killed_at_once_starts_again(node: Node, start: Callable[[Path], Node]) -> None:
    node.process.kill()
    node.process.wait()
    again = start(node.data_dir)
    assert again.first_line.startswith("ready: "), again.log()


@pytest.mark.parametrize("role", ["owner", "listener"])
def test_a_killed_process_comes_back(node: Node, role: str) -> None:
    killed = next(pid for pid, title in children(node.process.pid).items() if f" {role}" in title)
    descriptor = os.pidfd_open(killed)
    os.kill(killed, signal.SIGKILL)
    assert select.select([descriptor], [], [], LIMIT_S)[0]
    os.close(descriptor)
    deadline = time.monotonic() + LIMIT_S
    while node.admin("node", "status").returncode or not accepts(node.address):
        assert node.process.poll() is None and time.monotonic() < deadline, node.log()


def children(parent: int) -> dict[int, str]:
    """The titles of the processes that the main thread of `parent` has started."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids}
