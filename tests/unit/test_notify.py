"""What systemd hears of a node, and that the unit file asks for it."""

import asyncio
import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_supervisor import LIMIT_S, node

from broker.main import parser
from broker.runtime.notify import PINGS_PER_WATCHDOG, Notifier

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "zvmq.service"


class Manager:
    """The service manager's socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every message that is there."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found

    async def hear(self, beginning: str) -> str:
        """Wait for a message that begins so."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                text = (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode()
                if text.startswith(beginning):
                    return text


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@zvmq-test-{os.getpid()}-{id(request)}"
    started = Manager(address)
    yield started
    started.socket.close()


def test_what_is_said(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready("node1@h serves mqtt=127.0.0.1:1883")
    notifier.alive()
    notifier.stopping()
    assert manager.heard() == [
        "READY=1\nSTATUS=node1@h serves mqtt=127.0.0.1:1883",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_the_environment_is_taken_and_not_left_to_children(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environment)
    assert environment == {}
    assert notifier.watchdog_s == 8 / PINGS_PER_WATCHDOG
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("watchdog", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "4000000"}, 1.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_when_the_watchdog_waits(watchdog: dict[str, str], watchdog_s: float) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": "@x", **watchdog}).watchdog_s == watchdog_s


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_without_a_socket_nobody_is_told(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert notifier.watchdog_s == 0.0
    notifier.ready("x")


def test_a_manager_that_is_gone_or_does_not_read_is_no_fault(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).ready("x")
    manager = Manager(str(tmp_path / "deaf"))
    # Far more than the kernel holds for a socket that nobody reads: saying on must neither wait nor fail.
    for _ in range(2000):
        Notifier(manager.address).alive()
    assert 0 < len(manager.heard()) < 2000
    manager.socket.close()


def test_a_node_says_ready_alive_and_stopping(manager: Manager, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, notifier=Notifier(manager.address, 0.001)) as running:
            status = f"STATUS={running.config.node.name} serves mqtt=127.0.0.1:1883"
            assert await manager.hear("READY=1") == f"READY=1\n{status}"
            await manager.hear("WATCHDOG=1")
            running.supervisor.stop()
            await manager.hear("STOPPING=1")

    asyncio.run(scenario())


class CountingNotifier(Notifier):
    """One that knows how often it was asked when the watchdog waits, which is twice a round."""

    asked = 0

    @property
    def watchdog_s(self) -> float:  # type: ignore[override]
        self.asked += 1
        return 0.001

    @watchdog_s.setter
    def watchdog_s(self, value: float) -> None:
        pass


def test_a_node_without_all_its_processes_does_not_say_that_it_is_alive(manager: Manager, tmp_path: Path) -> None:
    async def scenario() -> None:
        notifier = CountingNotifier(manager.address)
        async with node(tmp_path, notifier=notifier) as running:
            await manager.hear("READY=1")
            slot = running.supervisor._listeners[0]
            # As between the death of a listener and its restart, but for as long as the test wants.
            child, slot.child = slot.child, None
            manager.heard()
            before = notifier.asked
            async with asyncio.timeout(LIMIT_S):
                while notifier.asked < before + 10:
                    await asyncio.sleep(0)
            assert manager.heard() == []
            slot.child = child
            await manager.hear("WATCHDOG=1")
            assert child is not None
            os.kill(child.process_id, signal.SIGKILL)
            await running.log.until("listener 0: start 2")
            manager.heard()
            await manager.hear("WATCHDOG=1")

    asyncio.run(scenario())


def unit() -> configparser.ConfigParser:
    file = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    file.optionxform = str  # type: ignore[method-assign, assignment]
    file.read_string(UNIT.read_text())
    return file


def test_the_unit_starts_a_node_as_the_program_wants_it() -> None:
    service = unit()["Service"]
    program, *arguments = service["ExecStart"].split()
    assert os.path.basename(program) == "vmq-broker" and os.path.isabs(program)
    options = parser().parse_args(arguments)
    assert (options.command, options.config) == ("start", "/etc/zvmq/zvmq.yml")
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    # SIGHUP reloads, SIGTERM is for the supervisor alone and takes up to 10 s; 2 and 3 are no reason to try again.
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["KillMode"], service["Restart"]) == ("mixed", "on-failure")
    assert int(service["TimeoutStopSec"]) > 10
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]
    assert "KillSignal" not in service
    assert int(service["LimitNOFILE"]) >= 1_000_000
    # The one directory that a strictly protected system lets the node write; README.md names it as data_dir.
    assert service["ProtectSystem"] == "strict"
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert f"data_dir: {service['WorkingDirectory']}" in (UNIT.parents[1] / "README.md").read_text()


def test_the_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / "zvmq.service"
    # It looks for the program, which is not installed where a service has it.
    copy.write_text(UNIT.read_text().replace("/opt/zvmq/bin/vmq-broker", sys.executable))
    said = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert [line for line in said.stderr.splitlines() if "zvmq.service" in line] == []
