"""One real node: what it serves without configuration, what it refuses, how it ends and how it recovers."""

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import V4, V5, Client, accepts
from nodes import BROKER, LIMIT_S, STOP_LIMIT_S, Node, environment, port_is_free, wait_until

SOCKET_PATH_BYTES_MAX = 107


def start_refused(directory: Path, *settings: str) -> tuple[int, str]:
    """Start a node that can't start; returns its exit code and what it said on stderr."""
    directory.mkdir(exist_ok=True)
    command = [BROKER, "start", *(["--set", *settings] if settings else [])]
    ended = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert "ready:" not in ended.stdout
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("version", [V4, V5], ids=["v3.1.1", "v5"])
def test_without_any_configuration(make_node: Callable[..., Node], fresh_loopback: None, version: int) -> None:
    """[MQTT-4.2.0-1] [MQTT311-7.1.1-1]: over TCP."""
    if not port_is_free("127.0.0.1", 1883):
        pytest.skip("port 1883 of 127.0.0.1 is taken, by a lab or by mosquitto")
    node = make_node()
    node.settings = []
    node.data_dir = node.directory / "zvmq-data"
    node.mqtt_port = 1883
    node.launch()
    assert node.wait_ready() == "ready: node1@127.0.0.1 mqtt=127.0.0.1:1883"
    with Client(node, version=version) as client:
        client.subscribe("a/+")
        client.publish("a/b", "hi")
        assert client.message() == ("a/b", "hi")
    assert sorted(path.name for path in node.directory.iterdir()) == ["output.log", "zvmq-data"]
    node.stop()


def test_processes_are_named_by_node_and_role(node: Node) -> None:
    roles = ["listener 0", "listener 1", "owner", "supervisor"]
    assert sorted(node.processes().values()) == [f"zvmq {node.name} {role}" for role in roles]


def test_what_a_node_leaves_on_disk_is_private(node: Node) -> None:
    for path, mode in [("", 0o700), ("run", 0o700), ("run/admin.sock", 0o600), ("store", 0o700)]:
        assert stat.S_IMODE(os.stat(node.data_dir / path).st_mode) == mode, path


def test_a_listener_for_others_needs_authentication(tmp_path: Path) -> None:
    code, said = start_refused(tmp_path / "node", "listeners=[{type: mqtt, address: 0.0.0.0:18830}]")
    assert code == 2
    assert "0.0.0.0:18830" in said and "allow_anonymous" in said
    assert not (tmp_path / "node" / "zvmq-data").exists()


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    code, said = start_refused(tmp_path / "node", "cluster.cokie=0123456789abcdef")
    assert code == 2
    assert "cluster.cokie" in said and "cluster.cookie" in said
    assert "0123456789abcdef" not in said
    (tmp_path / "node" / "zvmq.yml").write_text("mqtt:\n  max_inflight: 3\n")
    code, said = start_refused(tmp_path / "node")
    assert code == 2
    assert "zvmq.yml:2" in said and "max_inflight_messages" in said


def test_a_port_in_use_is_named(make_node: Callable[..., Node], node: Node) -> None:
    second = make_node(2)
    second.settings.append(f"listeners=[{{type: mqtt, address: '{node.mqtt_address}'}}]")
    second.launch()
    assert second.wait_end() == 1
    assert f"cannot listen on {node.mqtt_address}: address already in use" in second.said()
    assert accepts(node)


def test_a_mesh_port_in_use_is_named(make_node: Callable[..., Node]) -> None:
    second = make_node(2, "a cookie for the system tests")
    with socket.create_server((second.host, second.mesh_port)):
        second.launch()
        assert second.wait_end() == 1
    assert f"{second.host}:{second.mesh_port}" in second.said()
    assert "in use" in second.said()


def test_a_data_dir_has_one_node(make_node: Callable[..., Node], node: Node) -> None:
    second = make_node(2)
    second.settings.append(f"node.data_dir={node.data_dir}")
    second.launch()
    assert second.wait_end() == 1
    assert f"another node is running on {node.data_dir} (process {node.process_of('supervisor')})" in second.said()
    assert accepts(node)


def test_a_data_dir_longer_than_a_socket_path(make_node: Callable[..., Node]) -> None:
    node = make_node(place="/".join(["d" * SOCKET_PATH_BYTES_MAX] * 2)).start()
    with Client(node) as client:
        client.subscribe("a/#")
        client.publish("a/b", "hi")
        assert client.message() == ("a/b", "hi")
    assert node.cluster() == {node.name: True}
    stopped = node.admin("node", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Done\n")
    assert node.wait_end(STOP_LIMIT_S) == 0


@pytest.mark.parametrize("version", [V4, V5], ids=["v3.1.1", "v5"])
def test_sigterm_stops_cleanly_and_keeps_sessions(node: Node, version: int) -> None:
    subscriber = Client(node, "keeper", version, persistent=True).connect()
    assert subscriber.present is False
    subscriber.subscribe("kept/#")
    subscriber.disconnect()
    with Client(node) as publisher:
        for number in range(50):
            publisher.publish("kept/a", str(number))
        publisher.publish("kept/a", "QoS 0 is for those who are there", 0)
        # A client that is connected is no reason to take longer.
        node.stop()
    assert "[error]" not in node.said() and "[warning]" not in node.said(), node.said()
    node.start()
    with Client(node, "keeper", version, persistent=True) as subscriber:
        assert subscriber.present is True
        assert subscriber.messages(50) == [("kept/a", str(number)) for number in range(50)]


def kill_one(node: Node, role: str) -> None:
    """Kill one process of a node and wait until another one has its role."""
    killed = node.process_of(role)
    assert killed
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: node.process_of(role) not in (0, killed), f"the {role} is started again")


def test_a_killed_listener_comes_back_and_its_clients_reconnect(node: Node) -> None:
    # The kernel spreads clients over the listeners: with both killed in turn each client has lost its own.
    with Client(node, "keeper", persistent=True) as subscriber, Client(node) as publisher:
        subscriber.subscribe("a/#")
        for number, listener in enumerate(("listener 0", "listener 1")):
            kill_one(node, listener)
            # A client that has not lost its listener sees nothing of it; the other's own retry connects it again.
            publisher.publish("a/b", str(number))
            while subscriber.message() != ("a/b", str(number)):
                # At least once: what was under way when the connection broke may come again.
                pass
    assert node.process is not None and node.process.poll() is None


def test_a_killed_owner_comes_back_with_its_sessions_and_messages(node: Node) -> None:
    absent = Client(node, "absent", persistent=True).connect()
    absent.subscribe("a/#")
    absent.disconnect()
    with Client(node, "present", persistent=True) as present:
        present.subscribe("a/#")
        present.publish("a/b", "before")
        assert present.message() == ("a/b", "before")
        kill_one(node, "owner")
        present.wait_closed()
        present.wait_connected_again()
        assert present.present is True
        present.publish("a/b", "after")
        while present.message() != ("a/b", "after"):
            # Its acknowledgement of the first may have been lost with the owner.
            pass
    with Client(node, "absent", persistent=True) as absent:
        assert absent.messages(2) == [("a/b", "before"), ("a/b", "after")]
    assert node.table("node", "status")


def test_a_node_whose_supervisor_is_killed_ends_and_can_be_started_at_once(node: Node) -> None:
    assert node.process is not None
    node.process.kill()
    # Not a process is waited for: the next start has to cope with children that are about to end.
    node.process.wait()
    node.process = None
    node.start()
    assert accepts(node)


def test_a_node_publishes_about_itself(make_node: Callable[..., Node]) -> None:
    node = make_node(settings=["systree.interval_s=1"]).start()
    with Client(node) as client:
        client.subscribe("$SYS/broker/clients/connected", 0)
        client.subscribe(f"$SYS/{node.name}/sessions/online", 0)
        said = dict(client.messages(2))
    assert said == {"$SYS/broker/clients/connected": "1", f"$SYS/{node.name}/sessions/online": "1"}


def test_the_service_manager_is_told(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"@zvmq-system-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:])
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        node = make_node()
        node.launch()
        said = ""
        while not said.startswith("READY=1"):
            said = manager.recv(4096).decode()
        assert said.splitlines()[1] == f"STATUS={node.name} serves mqtt={node.mqtt_address}"
        assert accepts(node), "ready before it accepts"
        while said != "WATCHDOG=1":
            said = manager.recv(4096).decode()
        for pid in node.processes():
            # None of its own: only the main process speaks for the node.
            inherited = Path(f"/proc/{pid}/environ").read_bytes()
            assert pid == node.process_of("supervisor") or b"NOTIFY_SOCKET" not in inherited
        node.stop()
        while not said.startswith("STOPPING=1"):
            said = manager.recv(4096).decode()
