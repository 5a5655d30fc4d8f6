"""A three-node cluster on this machine, for looking and trying: what `make run` and `make stop` call.

`start` runs one node on each of 127.0.0.1, 127.0.0.2 and 127.0.0.3, joins them, and sends a message from the first to
the third. It uses nothing but the installed programs, as a person would. Everything is kept under `.lab/`; a second
`start` finds the cluster as it was left. `stop` ends what an earlier `start --detach` left running.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / ".lab"
PIDS = LAB / "pids"
COOKIE = LAB / "cookie"
# The programs installed beside this interpreter; resolving the link would lead out of the virtual environment.
BIN = Path(sys.executable).parent

MQTT_PORT = 1883
MESH_PORT = 44053
READY_WAIT_S = 30.0
CLUSTER_WAIT_S = 30.0
MESSAGE_WAIT_S = 10.0
# A node promises to end within 10 s of SIGTERM.
STOP_WAIT_S = 11.0
POLL_S = 0.05
OUTPUT_LINES_MAX = 20
# struct ucred of SO_PEERCRED: process, user and group id.
CREDENTIALS = struct.Struct("iII")

CONFIG = """\
# Written once by deploy/lab.py; edit it freely, it is kept.
node:
  name: {name}
  data_dir: {data_dir}
cluster:
  cookie_file: {cookie_file}
  listen: {address}:{mesh_port}
listeners:
  - {{type: mqtt, address: "{address}:{mqtt_port}"}}
log: {{console: file, level: info, file: console.log}}
"""


class LabError(Exception):
    """Something a person must look at; the text says what and where."""


@dataclass(frozen=True)
class Node:
    """One node of the lab and where its files are."""

    short_name: str
    address: str

    @property
    def name(self) -> str:
        return f"{self.short_name}@{self.address}"

    @property
    def directory(self) -> Path:
        return LAB / self.short_name

    @property
    def config(self) -> Path:
        return self.directory / "zvmq.yml"

    @property
    def output(self) -> Path:
        """What the node prints, from its last start."""
        return self.directory / "output.log"

    @property
    def log(self) -> Path:
        return self.directory / "data" / "log" / "console.log"


NODES = (Node("node1", "127.0.0.1"), Node("node2", "127.0.0.2"), Node("node3", "127.0.0.3"))


def write_private(path: Path, text: str) -> None:
    """Create `path`, readable by this user alone, unless it is there already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def write_files() -> None:
    """Write the cookie that all nodes share and a configuration for each node."""
    write_private(COOKIE, secrets.token_urlsafe(32) + "\n")
    for node in NODES:
        config = CONFIG.format(
            name=node.name,
            address=node.address,
            # A JSON string is a YAML string, whatever the path holds.
            data_dir=json.dumps(str(node.directory / "data")),
            cookie_file=json.dumps(str(COOKIE)),
            mqtt_port=MQTT_PORT,
            mesh_port=MESH_PORT,
        )
        write_private(node.config, config)


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; `started` (clock ticks since boot) tells it from a later one with the same id."""

    pid: int
    session: int
    started: int


def read_process(pid: int) -> Process | None:
    """The live process `pid`, or None when it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the program's name, may hold spaces and parentheses: count from behind it.
    fields = stat[stat.rindex(")") + 2 :].split()
    state, session, started = fields[0], int(fields[3]), int(fields[19])
    return None if state in "ZX" else Process(pid, session, started)


def node_processes(pid: int, started: int) -> list[Process]:
    """A node's live processes: its supervisor `pid` and the children in the session that the supervisor leads."""
    leader = read_process(pid)
    if leader is not None and leader.started != started:
        # The node is long gone, and its id belongs to a stranger now.
        return []
    found = [read_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()]
    return [process for process in found if process is not None and pid in (process.pid, process.session)]


def serving_process(node: Node) -> Process | None:
    """The process that answers on the node's admin socket: a node may have been started again by hand."""
    try:
        # Through the descriptor, since the path of a Unix socket ends at 107 bytes.
        directory = os.open(node.directory / "data" / "run", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"/proc/self/fd/{directory}/admin.sock")
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    except OSError:
        return None
    finally:
        os.close(directory)
    return read_process(CREDENTIALS.unpack(credentials)[0])


def read_pids() -> dict[str, tuple[int, int]]:
    """The nodes that were started last: name -> (process id, start time)."""
    try:
        return {name: (pid, started) for name, (pid, started) in json.loads(PIDS.read_text()).items()}
    except FileNotFoundError:
        return {}


def known_nodes() -> list[tuple[str, int, int]]:
    """Every node that may still have processes: (name, process id of its supervisor, start time)."""
    known = [(name, pid, started) for name, (pid, started) in read_pids().items()]
    for node in NODES:
        process = serving_process(node)
        if process is not None and (node.name, process.pid, process.started) not in known:
            known.append((node.name, process.pid, process.started))
    return known


def check_port_free(node: Node, port: int) -> None:
    """Raise LabError when another program listens on `port` of the node's address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((node.address, port))
        except OSError as error:
            hint = f"`ss -ltnp 'sport = :{port}'` shows which; a mosquitto service may hold 1883"
            raise LabError(f"{node.address}:{port} is taken by another program ({error.strerror}).\n{hint}") from error


def environment() -> dict[str, str]:
    """This environment without zvmq's own variables, which would win over every node's file."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ZVMQ_")}


def start_node(node: Node) -> "subprocess.Popen[bytes]":
    """Start the node in a session of its own, so that Ctrl-C reaches only this program, which then stops the nodes."""
    with node.output.open("wb") as output:
        return subprocess.Popen(
            [BIN / "vmq-broker", "start", "--config", node.config],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(),
            cwd=node.directory,
        )


def last_lines(path: Path) -> str:
    """The end of a log file, indented, or a word that there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-OUTPUT_LINES_MAX:]
    except FileNotFoundError:
        lines = []
    return "\n".join(f"  {line}" for line in lines) or "  (nothing)"


def failure(node: Node, what: str) -> LabError:
    """An error that shows what the node said last."""
    return LabError(
        f"{node.name} {what}. Its last output ({node.output}):\n{last_lines(node.output)}\n"
        f"and its log ({node.log}):\n{last_lines(node.log)}"
    )


def wait_ready(node: Node, process: "subprocess.Popen[bytes]") -> str:
    """Wait for the node's `ready:` line and return it."""
    deadline = time.monotonic() + READY_WAIT_S
    while time.monotonic() < deadline:
        # The order matters: what a process printed before it ended is read after its end was seen.
        ended = process.poll()
        for line in node.output.read_text(errors="replace").splitlines():
            if line.startswith("ready: "):
                return line
        if ended is not None:
            raise failure(node, f"ended with status {ended} before it was ready")
        time.sleep(POLL_S)
    raise failure(node, f"was not ready after {READY_WAIT_S:.0f} s")


def admin(node: Node, *arguments: str) -> str:
    """What `vmq-admin` answers when it is run on `node`."""
    command = [str(BIN / "vmq-admin"), "--config", str(node.config), *arguments]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment())
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise LabError(f"vmq-admin {' '.join(arguments)} on {node.name} failed ({result.returncode}): {said}")
    return result.stdout


def cluster_view(node: Node) -> dict[str, bool]:
    """What `node` knows of the cluster: member -> whether it runs."""
    table = json.loads(admin(node, "cluster", "show", "--format", "json"))["table"]
    return {row["Node"]: row["Running"] for row in table}


def join_nodes() -> None:
    """Join the second and third node to the first, unless they came back as members, and wait until all see all."""
    first = NODES[0]
    for node in NODES[1:]:
        if first.name in cluster_view(node):
            print(f"{node.name} is a member already")
        else:
            print(f"{node.name} joins {first.name}: ", end="", flush=True)
            print(admin(node, "cluster", "join", f"discovery-node={first.name}").strip())
    deadline = time.monotonic() + CLUSTER_WAIT_S
    for node in NODES:
        while not all((view := cluster_view(node)).get(member.name) for member in NODES):
            if time.monotonic() > deadline:
                raise LabError(f"after {CLUSTER_WAIT_S:.0f} s {node.name} still sees {view}; .lab/*/data/log says why")
            time.sleep(POLL_S)


def send_message() -> str:
    """Send one message from the first node to the third, and return what arrived."""
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    topic, payload = "lab/hello", f"hello from {NODES[0].name}"
    subscribed, arrived = threading.Event(), threading.Event()
    received: list[str] = []

    def on_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        received.append(f"{message.topic}: {message.payload.decode()}")
        arrived.set()

    def connected(node: Node) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_message = on_message
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect(node.address, MQTT_PORT)
        client.loop_start()
        return client

    subscriber, publisher = connected(NODES[-1]), connected(NODES[0])
    try:
        subscriber.subscribe(topic, qos=1)
        if not subscribed.wait(MESSAGE_WAIT_S):
            raise LabError(f"{NODES[-1].name} did not answer a SUBSCRIBE within {MESSAGE_WAIT_S:.0f} s")
        # SUBACK says that the third node knows the subscription. The first learns of it a moment later, and a message
        # published before that finds no subscriber: publish until one has arrived.
        deadline = time.monotonic() + MESSAGE_WAIT_S
        while not arrived.is_set():
            if time.monotonic() > deadline:
                raise LabError(f"no message crossed from {NODES[0].name} to {NODES[-1].name}")
            publisher.publish(topic, payload, qos=1)
            arrived.wait(0.2)
    finally:
        for client in (publisher, subscriber):
            client.disconnect()
            client.loop_stop()
    return received[0]


def print_hints(detached: bool) -> None:
    """Say what to try next."""
    programs = BIN.relative_to(ROOT) if BIN.is_relative_to(ROOT) else BIN
    config = NODES[1].config.relative_to(ROOT)
    end = "`make stop` ends it." if detached else "Ctrl-C ends it."
    print(f"""
The cluster is ready. Try, each in a terminal of its own:
  mosquitto_sub -h {NODES[2].address} -t 'a/#' -q 1 -v
  mosquitto_pub -h {NODES[0].address} -t a/b -m hi -q 1
  {programs}/vmq-admin --config {config} cluster show
  {programs}/vmq-bench pairs --pairs 10 --qos 1
Data, configuration and logs are under .lab/. {end}""")


def stop_nodes() -> None:
    """Ask every node to stop, wait, and kill what is left, children included."""
    nodes = known_nodes()
    for name, pid, started in nodes:
        leader = read_process(pid)
        if leader is not None and leader.started == started:
            print(f"stopping {name}", flush=True)
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_WAIT_S
    for name, pid, started in nodes:
        while (left := node_processes(pid, started)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for process in left:
            print(f"killing process {process.pid} of {name}, which did not stop by itself", file=sys.stderr)
            # It may end by itself between the look and the kill.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    PIDS.unlink(missing_ok=True)


def watch(processes: "dict[Node, subprocess.Popen[bytes]]") -> NoReturn:
    """Stay in the foreground until Ctrl-C, and say when a node ends."""
    while True:
        time.sleep(0.5)
        for node, process in list(processes.items()):
            if process.poll() is not None:
                del processes[node]
                print(f"{failure(node, f'ended with status {process.returncode}')}", file=sys.stderr)
                print(f"start it again: {BIN}/vmq-broker start --config {node.config}", file=sys.stderr)


def start(detach: bool) -> None:
    """Start the cluster; without `detach`, stay until Ctrl-C and then stop it."""
    if all(serving_process(node) for node in NODES):
        print("the lab runs already; `make stop` ends it")
        return
    left = sorted({name for name, pid, started in known_nodes() if node_processes(pid, started)})
    if left:
        raise LabError(f"{', '.join(left)} still run from an earlier start; `make stop` ends them")
    for node in NODES:
        check_port_free(node, MQTT_PORT)
        check_port_free(node, MESH_PORT)
    write_files()
    processes: dict[Node, subprocess.Popen[bytes]] = {}
    try:
        for node in NODES:
            processes[node] = start_node(node)
            started = read_process(processes[node].pid)
            pids = {**read_pids(), node.name: (processes[node].pid, started.started if started else 0)}
            PIDS.write_text(json.dumps(pids))
        for node in NODES:
            print(wait_ready(node, processes[node]), flush=True)
        join_nodes()
        print(admin(NODES[0], "cluster", "show"), end="")
        print(f"{NODES[-1].name} received {send_message()}")
        print_hints(detach)
        sys.stdout.flush()
        if not detach:
            watch(processes)
    except KeyboardInterrupt:
        stop_nodes()
    except BaseException:
        stop_nodes()
        raise


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End on SIGTERM and SIGHUP as on Ctrl-C, which a shell disables for programs that it starts with &."""
    raise KeyboardInterrupt


def main() -> int:
    """The command line: `lab.py start [--detach]` or `lab.py stop`."""
    parser = argparse.ArgumentParser(prog="lab.py", description="a three-node cluster on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    start_command = commands.add_parser("start", help="start the cluster and stay until Ctrl-C")
    start_command.add_argument("--detach", action="store_true", help="return once the cluster is ready")
    commands.add_parser("stop", help="stop what an earlier start left running")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        if arguments.command == "start":
            start(arguments.detach)
        else:
            stop_nodes()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
