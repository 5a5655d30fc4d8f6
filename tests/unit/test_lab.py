"""The lab's own care: private files, ports in use, and never a signal to a stranger's process."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from broker.config import mesh_listen
from broker.config_load import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/lab.py, loaded from its file, with its directory under `tmp_path`."""
    spec = importlib.util.spec_from_file_location("lab", ROOT / "deploy" / "lab.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up while it is being made.
    monkeypatch.setitem(sys.modules, "lab", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LAB", tmp_path / ".lab")
    monkeypatch.setattr(module, "PIDS", tmp_path / ".lab" / "pids")
    monkeypatch.setattr(module, "COOKIE", tmp_path / ".lab" / "cookie")
    return module


def test_files_are_private_and_kept(lab: ModuleType) -> None:
    lab.write_files()
    files = [lab.COOKIE, *(node.config for node in lab.NODES)]
    before = [path.read_text() for path in files]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * len(files)
    lab.write_files()
    assert [path.read_text() for path in files] == before


def test_configuration_is_what_the_broker_reads(lab: ModuleType) -> None:
    lab.write_files()
    for node in lab.NODES:
        loaded = load(str(node.config), {}, [])
        assert loaded.node.name == node.name
        assert [listener.address for listener in loaded.listeners] == [f"{node.address}:1883"]
        assert mesh_listen(loaded) == (node.address, 44053)
        assert loaded.auth.allow_anonymous


def test_a_taken_port_is_named(lab: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(lab.LabError, match=f"127.0.0.1:{port} is taken"):
            lab.check_port_free(lab.NODES[0], port)
    lab.check_port_free(lab.NODES[0], port)


def test_a_node_is_known_by_its_start_time(lab: ModuleType) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        found = lab.read_process(process.pid)
        assert found is not None and found.session == process.pid
        assert lab.node_processes(process.pid, found.started) == [found]
        # The same id with another start time is somebody else's process.
        assert lab.node_processes(process.pid, found.started - 1) == []
        process.kill()
        process.wait()
        assert lab.node_processes(process.pid, found.started) == []


def test_stop_ends_a_node_and_the_children_it_left(lab: ModuleType) -> None:
    # The leader ends by itself on SIGTERM; its child ignores the signal and has to be killed.
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    leader = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    lab.STOP_WAIT_S = 0.5
    command = [sys.executable, "-c", leader]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        started = lab.read_process(process.pid)
        lab.PIDS.parent.mkdir(parents=True)
        lab.PIDS.write_text(f'{{"node1@127.0.0.1": [{process.pid}, {started.started}]}}')
        assert lab.known_nodes() == [("node1@127.0.0.1", process.pid, started.started)]
        lab.stop_nodes()
        # The pipe's end says that the child, which holds it too, is gone.
        assert process.stdout.read() == ""
    assert lab.known_nodes() == []


def test_a_node_that_was_started_by_hand_is_found_by_its_admin_socket(lab: ModuleType) -> None:
    node = lab.NODES[1]
    run = node.directory / "data" / "run"
    run.mkdir(parents=True)
    assert lab.known_nodes() == []
    listen = "import os, socket, sys; os.chdir(sys.argv[1]); s = socket.socket(socket.AF_UNIX); s.bind('admin.sock')"
    # It lives until it is waited for, which closes its input.
    code = f"{listen}; s.listen(); print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, run]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert [(name, pid) for name, pid, _ in lab.known_nodes()] == [(node.name, process.pid)]
    assert lab.known_nodes() == []


def test_a_node_that_ends_early_is_reported_with_its_words(lab: ModuleType) -> None:
    node = lab.NODES[0]
    node.directory.mkdir(parents=True)
    with node.output.open("wb") as output:
        process = subprocess.Popen(["sh", "-c", "echo the disk is full; exit 1"], stdout=output, start_new_session=True)
        with pytest.raises(lab.LabError, match=r"ended with status 1 before it was ready(.|\n)*the disk is full"):
            lab.wait_ready(node, process)


def test_nodes_do_not_inherit_settings(lab: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZVMQ__NODE__NAME", "other@127.0.0.9")
    assert "ZVMQ__NODE__NAME" not in lab.environment()
    assert lab.environment()["PATH"] == os.environ["PATH"]
