"""The supervisor with tiny children: start, restart, stop, and what it tells whom when.

The children log what they receive, and tests wait for those log lines: nothing here sleeps.
"""

import asyncio
import errno
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.config import Config, ListenerConfig, NodeConfig, ProcessesConfig
from broker.config_load import load
from broker.logs import NodeLog
from broker.runtime import supervisor as supervisor_module
from broker.runtime.child_process import PACKAGE_ROOT, ChildProcess
from broker.runtime.run_dir import RunDir
from broker.runtime.supervisor import StartError, Supervisor, Timing, changed_keys, put_aside, run_node

NODE = "node1@127.0.0.1"

TIMING = Timing(restart_first_s=0.001, restart_max_s=0.004, stop_s=20.0)

LIMIT_S = 30.0
"""Reached by a broken supervisor only."""

CHILD = """
import json, os, select, sys
from broker.runtime.control import ControlChannel

def say(*words):
    print(json.dumps({"level": "info", "logger": "child", "message": " ".join(map(str, words))}), flush=True)

channel = ControlChannel.from_environment()
start = channel.wait_start()
say("start", start["generation"], "owner", start["owner_generation"], "pid", os.getpid())
mode = sys.argv[1]
if mode == "dies":
    sys.exit(1)
if mode == "exits-78":
    sys.exit(78)
if mode == "fails":
    channel.send({"type": "failed", "error": "removed from the cluster", "exit": 3})
    sys.exit(78)
channel.send({"type": "ready"})
while True:
    for message in channel.receive():
        say(message["type"], *(message[key] for key in ("index", "generation", "level") if key in message))
        if message["type"] == "stop" and mode != "deaf":
            sys.exit(0)
        if message["type"] == "command":
            number = message["id"]
            if mode == "dies-when-asked":
                sys.exit(1)
            if message["flags"].get("verbose"):
                channel.send({"type": "reply", "id": number, "error": "no", "exit": 1})
            elif mode != "silent":
                channel.send({"type": "progress", "id": number, "text": "half"})
                table = {"type": "table", "table": [message["arguments"]]}
                channel.send({"type": "reply", "id": number, "result": table})
    select.select([channel], [], [])
"""


def child(mode: str = "good") -> list[str]:
    return [sys.executable, "-P", "-c", CHILD, mode]


class RecordingLog(NodeLog):
    """A log that tests can wait for."""

    def __init__(self) -> None:
        super().__init__(NODE, "off", "debug", "", "text", 0, 0)
        self.lines: list[str] = []
        self._changed = asyncio.Event()

    def write(self, process: str, level: int, message: str) -> None:
        self.lines.append(f"{process}: {message}")
        self._changed.set()

    async def until(self, text: str, count: int = 1) -> str:
        """Wait until `count` lines begin with `text`; returns the rest of the last."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                found = [line for line in self.lines if line.startswith(text)]
                if len(found) >= count:
                    return found[count - 1].removeprefix(text)
                self._changed.clear()
                await self._changed.wait()

    def of(self, process: str) -> list[str]:
        return [line.removeprefix(f"{process}: ") for line in self.lines if line.startswith(f"{process}: ")]


class Node:
    """A supervisor under test."""

    def __init__(self, data_dir: Path, owner: str, listener: str, timing: Timing, **options: Any) -> None:
        self.config = config_for(data_dir)
        self.log = RecordingLog()
        self.output = io.StringIO()
        self.run_dir = RunDir(str(data_dir))
        self.supervisor = Supervisor(
            self.config,
            self.log,
            self.run_dir,
            self.run_dir.lock(),
            commands={"owner": child(owner), "listener": child(listener)},
            timing=timing,
            output=self.output,
            **options,
        )
        self.task = asyncio.ensure_future(self.supervisor.run())

    async def ready(self) -> None:
        await self.log.until("supervisor: ready")

    async def ended(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await self.task

    async def kill(self, process: str, count: int = 1) -> None:
        rest = await self.log.until(f"{process}: start", count)
        os.kill(int(rest.split()[-1]), signal.SIGKILL)

    async def ask(self, command: str, flags: dict[str, Any] | None = None, **arguments: str) -> list[dict[str, Any]]:
        reader, writer = await asyncio.open_unix_connection(self.run_dir.path("admin.sock"))
        request = {"command": command, "arguments": arguments, "flags": flags or {}}
        writer.write(json.dumps(request).encode() + b"\n")
        responses = []
        while not responses or responses[-1]["type"] == "progress":
            async with asyncio.timeout(LIMIT_S):
                responses.append(json.loads(await reader.readline()))
        writer.close()
        return responses


def config_for(data_dir: Path, listeners: int = 2) -> Config:
    return Config(node=NodeConfig(NODE, str(data_dir)), processes=ProcessesConfig(listeners))


@asynccontextmanager
async def node(
    data_dir: Path, owner: str = "good", listener: str = "good", timing: Timing = TIMING, **options: Any
) -> AsyncIterator[Node]:
    started = Node(data_dir, owner, listener, timing, **options)
    try:
        yield started
    finally:
        started.supervisor.stop()
        await started.ended()


def test_starts_the_owner_then_the_listeners_and_says_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            assert running.output.getvalue() == f"ready: {NODE} mqtt=127.0.0.1:1883\n"
            # What a child prints comes another way than its word that it is ready.
            await running.log.until("listener 0: start")
            assert [line.split(" pid")[0] for line in running.log.of("listener 0")] == ["start 1 owner 1"]
            await running.log.until("owner: listener-started 1 1")
            await running.log.until("owner: listener-started 0 1")
        assert await running.task == 0

    asyncio.run(scenario())


def test_listeners_stop_before_the_owner_on_sigterm(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running.ended() == 0
        # The owner has heard of the end of each listener when it is told to stop.
        assert sorted(running.log.of("owner")[-3:-1]) == ["listener-gone 0 1", "listener-gone 1 1"]
        assert running.log.of("owner")[-1] == "stop"
        # And before all that it has told the other nodes.
        assert running.log.of("owner")[-4] == "stopping"
        assert running.log.of("listener 0")[-1] == running.log.of("listener 1")[-1] == "stop"
        assert not os.path.exists(tmp_path / "run" / "admin.sock")

    asyncio.run(scenario())


def test_who_does_not_stop_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, "deaf", "deaf", replace(TIMING, stop_s=0.2)) as running:
            await running.ready()
            running.supervisor.stop()
            assert await running.ended() == 0
        await running.log.until("supervisor: listener 0 did not stop in time")
        await running.log.until("supervisor: owner did not stop in time")

    asyncio.run(scenario())


def test_a_dead_listener_comes_back_with_the_next_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, ...]] = []
    send, start = ChildProcess.send, ChildProcess.start

    def recording_send(self: ChildProcess, message: dict[str, Any]) -> None:
        order.append((self.label, message["type"], *(str(message[k]) for k in ("index", "generation") if k in message)))
        send(self, message)

    async def recording_start(label: str, *arguments: Any) -> ChildProcess:
        order.append((label, "process"))
        return await start(label, *arguments)

    monkeypatch.setattr(ChildProcess, "send", recording_send)
    monkeypatch.setattr(ChildProcess, "start", recording_start)

    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            del order[:]
            await running.kill("listener 1")
            await running.log.until("listener 1: start 2 owner 1")
            assert order[:4] == [
                ("owner", "listener-gone", "1", "1"),
                ("owner", "listener-started", "1", "2"),
                ("listener 1", "process"),
                ("listener 1", "start", "1", "2"),
            ]
            assert running.output.getvalue().count("ready") == 1

    asyncio.run(scenario())


def test_a_dead_owner_comes_back_and_everybody_hears_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            await running.kill("owner")
            for listener in ("listener 0", "listener 1"):
                await running.log.until(f"{listener}: owner-ready 2")
                assert running.log.of(listener)[1:] == ["owner-gone", "owner-ready 2"]
            await running.log.until("owner: listener-started 1 1", count=2)
            assert [line for line in running.log.of("owner") if line.startswith("start 2 owner 2")]
            assert running.log.of("owner")[-2:] == ["listener-started 0 1", "listener-started 1 1"]

    asyncio.run(scenario())


def test_a_listener_waits_for_an_owner_that_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            await running.kill("owner")
            await running.kill("listener 0")
            await running.log.until("listener 0: start", count=2)
            await running.log.until("owner: listener-started 0", count=2)

    asyncio.run(scenario())


def test_restarts_are_slower_and_slower(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            for count, pause in enumerate(["0.001 s", "0.002 s", "0.004 s", "0.004 s"], start=1):
                await running.kill("listener 0", count)
                text = "supervisor: listener 0 was ended by signal 9; it starts again in "
                assert await running.log.until(text, count) == pause

    asyncio.run(scenario())


def test_a_child_that_was_healthy_comes_back_fast(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, timing=replace(TIMING, healthy_s=0.0)) as running:
            await running.ready()
            for count in (1, 2, 3):
                await running.kill("listener 0", count)
                text = "supervisor: listener 0 was ended by signal 9; it starts again in "
                assert await running.log.until(text, count) == "0.001 s"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("owner", "listener", "exit_code", "error"),
    [
        ("fails", "good", 3, "removed from the cluster"),
        ("good", "fails", 3, "removed from the cluster"),
        ("exits-78", "good", 1, "owner cannot start"),
        ("dies", "good", 1, "owner ended with exit code 1 5 times before it was ready"),
        ("good", "dies", 1, "ended with exit code 1 5 times before it was ready"),
    ],
)
def test_a_child_that_cannot_start_ends_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], owner: str, listener: str, exit_code: int, error: str
) -> None:
    async def scenario() -> None:
        async with node(tmp_path, owner, listener) as running:
            assert await running.ended() == exit_code
        assert running.output.getvalue() == ""
        # The other nodes need not wait for one that can't go on.
        assert "stopping" not in running.log.of("owner")

    asyncio.run(scenario())
    assert error in capsys.readouterr().err


def test_commands_reach_the_owner_and_its_replies_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            joined = await running.ask("cluster join", **{"discovery-node": "node2@127.0.0.2:5000"})
            address = {"discovery-node": "node2@127.0.0.2", "address": "127.0.0.2:5000"}
            assert joined == [
                {"type": "progress", "text": "half"},
                {"type": "result", "result": {"type": "table", "table": [address]}},
            ]
            refused = await running.ask("cluster show", {"verbose": True})
            assert refused == [{"type": "error", "error": "no", "exit": 1}]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("command", "arguments", "exit_code", "error"),
    [
        ("cluster shwo", {}, 2, "did you mean cluster show?"),
        ("cluster join", {}, 2, "You have to provide a discovery node"),
        ("cluster join", {"discovery-node": "node2"}, 2, "name@host"),
        ("cluster join", {"discovery-node": "node2@host.invalid"}, 1, "cannot find the host host.invalid"),
        ("cluster join", {"discovery-node": "node2@host..invalid"}, 1, "cannot find the host host..invalid"),
        ("session show", {}, 1, "not served by this version"),
        ("cluster cookie", {}, 1, "by itself"),
    ],
)
def test_requests_that_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    arguments: dict[str, str],
    exit_code: int,
    error: str,
) -> None:
    def no_such_host(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if arguments.get("discovery-node") == "node2@host.invalid":
        # No test asks a name server.
        monkeypatch.setattr(socket, "getaddrinfo", no_such_host)

    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            [response] = await running.ask(command, **arguments)
            assert (response["type"], response["exit"]) == ("error", exit_code)
            assert error in response["error"]

    asyncio.run(scenario())


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"command": 1}\n', b'{"command": ""}\n', b"x" * 70_000 + b"\n"])
def test_malformed_requests(tmp_path: Path, line: bytes) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            reader, writer = await asyncio.open_unix_connection(running.run_dir.path("admin.sock"))
            writer.write(line)
            response = json.loads(await reader.readline())
            assert (response["type"], response["exit"]) == ("error", 2)
            writer.close()

    asyncio.run(scenario())


def test_a_question_ends_with_the_owner(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, "dies-when-asked") as running:
            await running.ready()
            [response] = await running.ask("node status")
            assert response["exit"] == 1 and "ended meanwhile" in response["error"]

    asyncio.run(scenario())


def test_a_question_ends_with_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path, "silent") as running:
            await running.ready()
            asked = asyncio.ensure_future(running.ask("node status"))
            # The supervisor answers this one by itself, and has passed the first one on by then.
            await running.ask("cluster cookie")
            running.supervisor.stop()
            [response] = await asked
            assert response == {"type": "error", "error": "this node is stopping", "exit": 1}

    asyncio.run(scenario())


def test_a_question_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from broker import commands

    quick = replace(commands.COMMANDS["node status"], time_limit_s=0.01)
    monkeypatch.setitem(commands.COMMANDS, "node status", quick)

    async def scenario() -> None:
        async with node(tmp_path, "silent") as running:
            await running.ready()
            assert await running.ask("node status") == [
                {"type": "error", "error": "no answer within 0.01 s", "exit": 4}
            ]

    asyncio.run(scenario())


def test_a_question_before_the_owner_is_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as starting:
            # The socket is there before the owner's process can be.
            while not os.path.exists(tmp_path / "run" / "admin.sock"):
                await asyncio.sleep(0)
            [response] = await starting.ask("node status")
            assert response["exit"] == 1 and "not ready" in response["error"]

    asyncio.run(scenario())


def test_node_stop_says_done_and_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            assert await running.ask("node stop") == [{"type": "result", "result": {"type": "text", "text": "Done"}}]
            assert await running.ended() == 0

    asyncio.run(scenario())


def test_the_admin_socket_is_private_and_works_in_a_long_data_dir(tmp_path: Path) -> None:
    data_dir = tmp_path.joinpath(*["d" * 100] * 2)

    async def scenario() -> None:
        async with node(data_dir) as running:
            await running.ready()
            assert os.stat(data_dir / "run" / "admin.sock").st_mode & 0o777 == 0o600
            assert (await running.ask("node status"))[-1]["type"] == "result"

    asyncio.run(scenario())


def test_admin_connections_have_a_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with node(tmp_path) as running:
            await running.ready()
            path = running.run_dir.path("admin.sock")
            connections = [await asyncio.open_unix_connection(path) for _ in range(33)]
            response = json.loads(await connections[-1][0].readline())
            assert "too many" in response["error"]
            for _, writer in connections:
                writer.close()

    asyncio.run(scenario())


def test_sighup_takes_over_the_log_level_and_names_the_rest(tmp_path: Path) -> None:
    def reload() -> Config:
        old = config_for(tmp_path)
        cluster = replace(old.cluster, cookie="a-new-cookie-123456")
        return replace(old, log=replace(old.log, level="debug"), cluster=cluster)

    async def scenario() -> None:
        async with node(tmp_path, reload=reload) as running:
            await running.ready()
            os.kill(os.getpid(), signal.SIGHUP)
            await running.log.until("owner: log-level debug")
            await running.log.until("listener 1: log-level debug")
            await running.log.until("supervisor: changed, but only a restart takes it over: cluster.cookie")
            assert "a-new-cookie" not in str(running.log.lines)

    asyncio.run(scenario())


def test_sighup_with_a_broken_configuration_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        broken = ["log.level=loud"]
        async with node(tmp_path, reload=lambda: load(os.devnull, {}, broken)) as running:
            await running.ready()
            os.kill(os.getpid(), signal.SIGHUP)
            await running.log.until("supervisor: configuration not reloaded: ")
            assert not running.task.done()

    asyncio.run(scenario())


def test_changed_keys_are_named_without_values() -> None:
    assert changed_keys({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [2]}) == ["a.c", "d"]


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_taken_port_is_refused_clearly(tmp_path: Path, listening: str) -> None:
    config = replace(config_for(tmp_path), listeners=(ListenerConfig("mqtt", listening),))
    with pytest.raises(StartError, match=f"cannot listen on {listening}: address already in use"):
        run_node(config, commands={"owner": child(), "listener": child()})


def test_a_data_dir_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot use the data_dir"):
        run_node(config_for(tmp_path / "file"))


def test_a_second_node_on_a_data_dir_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path))
    lock = run_dir.lock()
    with pytest.raises(StartError, match="another node is running"):
        run_node(config_for(tmp_path))
    os.close(lock)
    run_dir.close()


def test_a_fault_of_our_own_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(supervisor_module.Supervisor, "_announce_ready", broken)

    async def scenario() -> None:
        async with node(tmp_path) as running:
            assert await running.ended() == 1

    asyncio.run(scenario())
    assert "supervisor: KeyError: 'a bug'" in capsys.readouterr().err


SUPERVISOR = """
import json, sys
from broker.config import Config, NodeConfig, ProcessesConfig
from broker.runtime.supervisor import run_node

config = Config(node=NodeConfig("node1@127.0.0.1", sys.argv[1]), processes=ProcessesConfig(2), listeners=())
sys.exit(run_node(config, commands=json.loads(sys.argv[2])))
"""


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    commands = json.dumps({"owner": child(), "listener": child()})
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_ROOT},
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == f"ready: {NODE}\n"
    children = [os.pidfd_open(int(pid)) for pid in child_processes(process.pid)]
    assert len(children) == 3
    process.kill()
    process.wait()
    for descriptor in children:
        assert select.select([descriptor], [], [], LIMIT_S)[0], "a child lives on without its supervisor"
        os.close(descriptor)
    process.stdout.close()
    process.stderr.close()
    # And the data_dir is free for the next.
    run_dir = RunDir(str(tmp_path))
    os.close(run_dir.lock())
    run_dir.close()


def child_processes(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def test_a_store_that_can_not_be_put_aside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*_: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "LEFT")

    log = RecordingLog()
    (tmp_path / "store").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", rename)
        assert put_aside(config_for(tmp_path), log) == 1
    assert f"{NODE} has left its cluster, but its store can't be put aside: [Errno 30] Read-only" in log.lines[-1]
    assert put_aside(config_for(tmp_path), log) == 0
    assert not (tmp_path / "store").exists()


def test_run_node_logs_to_the_data_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path)
    config = replace(
        config, log=replace(config.log, console="file"), listeners=(ListenerConfig("http", "127.0.0.1:1"),)
    )
    assert run_node(config, commands={"owner": child("fails"), "listener": child()}) == 3
    text = (tmp_path / "log" / "console.log").read_text()
    assert "[warning] node1@127.0.0.1 supervisor: http on 127.0.0.1:1 is not served yet" in text
    assert "[critical] node1@127.0.0.1 supervisor: removed from the cluster" in text
    assert "owner: start 1" in text
    assert capsys.readouterr().err == "vmq-broker: removed from the cluster\n"
