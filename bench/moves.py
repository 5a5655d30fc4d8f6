"""What the move of a session costs: `python -m bench.moves`. Nodes in one process, each with a store, without sockets.

Sessions with messages in their queues are at the first node; their clients connect to the second and are gone at once,
so many at a time, and with them the sessions leave the one for the other. With `--leave` no client comes, but the first
node leaves the cluster by force, and gives its sessions to all others. What is measured is the work of all nodes
until nothing of it is left: the CPU time, which is that of each node on a core of its own, and by it what one second
moves. `--profile` shows where the time goes (of interpreted cores alone; compiled ones have no calls to show).
"""

import argparse
import cProfile
import gc
import json
import pstats
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from admin.render import render
from bench.tables import Row
from broker.core.events import (
    NEVER_EXPIRES_S,
    Attach,
    CreditReturned,
    Detach,
    Event,
    ListenerStarted,
    PublishReceived,
    SubscribeReceived,
    connection_key,
)
from broker.core.message import Message
from broker.core.owner import QueueOwner
from broker.core.owner_records import Answer, OwnerBatch, unpack_owner_records
from broker.core.records import CONNACK
from broker.core.settings import OwnerSettings
from broker.runtime.owner_process import GC_THRESHOLD
from broker.runtime.rocks_storage import OpenedStore, open_store
from cluster.commands import (
    ConnectPeer,
    FrameReceived,
    MeshCommand,
    MeshInput,
    PeerConnected,
    Reply,
    SendBulk,
    SendControl,
)
from cluster.leave_frames import Order, Verb
from cluster.leaving import State as LeaveState
from cluster.membership import Member, State
from cluster.mesh import Mesh, MeshSettings
from cluster.mesh_store import MeshStore
from cluster.node import NodeCore
from cluster.turn import Turn

CLUSTER_ID = b"cluster of moves"
FAILURE_TIMEOUT_S = 10.0
# As in the owner's process.
INPUTS_PER_TURN = 64
LIMIT_S = 300.0
# While queues are filled.
AT_ONCE = 500
PUBLISHES_PER_TURN = 200


class BenchNode:
    """One node with its store, a listener that only counts, and the frames that are on their way to it."""

    def __init__(self, network: "Network", name: str, opened: OpenedStore) -> None:
        self.name = name
        self.cpu_s = 0.0
        self.inputs: deque[MeshInput] = deque()
        self.events: deque[Event] = deque()
        # Connections whose CONNACK has come, and of which no other has.
        self.accepted: list[int] = []
        self._network = network
        self._opened = opened
        self._connections = 0

    def start(self, members: list[Member]) -> None:
        """Begin as a member of the cluster."""
        storage = self._opened.storage
        turn = Turn()
        store = MeshStore(storage, turn)
        store.put_cluster_id(CLUSTER_ID)
        store.put_members([member for member in members if member.name != self.name])
        storage.commit(turn.writes)
        now = time.monotonic()
        settings = MeshSettings(self.name, f"{self.name}:1", FAILURE_TIMEOUT_S, ())
        mesh = Mesh(settings, storage, self._opened.store_id, self._opened.incarnation, CLUSTER_ID, now)
        owner_settings = OwnerSettings(max_offline_messages=-1)
        owner = QueueOwner(owner_settings, storage, mesh.interest, self._opened.store_id, self._opened.incarnation)
        owner.recover(now, time.time_ns() // 1_000_000)
        self.core = NodeCore(owner, mesh)
        self.core.receive_event(ListenerStarted(0, 1), now)

    def member(self) -> Member:
        """This node as the others know it."""
        return Member(self.name, self._opened.store_id, self._opened.incarnation, f"{self.name}:1", State.ALIVE)

    def connect(self, client_id: str) -> int:
        """A client connects that wants its session to stay; the connection."""
        self._connections += 1
        connection = connection_key(0, self._connections)
        self.events.append(Attach(connection, client_id, 5, False, NEVER_EXPIRES_S, 1))
        return connection

    def turn(self) -> bool:
        """Do what there is to do; false if that was nothing."""
        core = self.core
        began_s = time.thread_time()
        now = time.monotonic()
        if not self.inputs and not self.events and core.next_deadline() > now:
            return False
        core.set_clock(now, time.time_ns() // 1_000_000)
        core.begin(now)
        events, self.events = self.events, deque()
        for event in events:
            core.receive_event(event, now)
        for _ in range(min(INPUTS_PER_TURN, len(self.inputs))):
            core.receive_input(self.inputs.popleft(), now)
        core.tick(now)
        effects = core.take_effects()
        if len(effects.writes):
            self._opened.storage.commit(effects.writes)
        for command in effects.commands:
            self._network.execute(self, command)
        for batch in effects.to_listeners.values():
            self._hear(batch)
        self.cpu_s += time.thread_time() - began_s
        return True

    def _hear(self, batch: OwnerBatch) -> None:
        for records in batch.records():
            for record in unpack_owner_records(records, 0):
                if isinstance(record, Answer) and record.kind == CONNACK and record.reason == 0:
                    self.accepted.append(connection_key(0, record.connection))
            self.events.append(CreditReturned(0, len(records)))


class Network:
    """Brings what nodes say to each other, at once and in order."""

    def __init__(self, stack: ExitStack, count: int, directory: Path) -> None:
        self.nodes: dict[str, BenchNode] = {}
        for number in range(count):
            opened = open_store(directory / f"node{number}", "interval", 100)
            stack.callback(opened.storage.close)
            name = f"node{number}@bench"
            self.nodes[name] = BenchNode(self, name, opened)
        members = [node.member() for node in self.nodes.values()]
        for node in self.nodes.values():
            node.start(members)

    def execute(self, node: BenchNode, command: MeshCommand) -> None:
        """Carry out a command."""
        if isinstance(command, (SendControl, SendBulk)):
            connection = f"{node.name}/{type(command).__name__}".encode()
            self.nodes[command.node].inputs.append(FrameReceived(node.name, connection, command.frame))
        elif isinstance(command, ConnectPeer):
            node.inputs.append(PeerConnected(command.node))
        elif isinstance(command, Reply):
            asker = self.nodes[command.connection.decode().partition("/")[0]]
            asker.inputs.append(FrameReceived(node.name, b"", command.frame))

    def turns(self) -> Iterator[None]:
        """Let all nodes work, turn by turn, for as long as the caller asks."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if not sum(node.turn() for node in self.nodes.values()):
                time.sleep(0.001)
            yield
        sys.exit("bench.moves: the nodes come to no end")


def fill(network: Network, home: BenchNode, sessions: int, queued: int, size: int) -> None:
    """Make sessions whose clients are away, with so many messages in each one's queue."""
    turns = network.turns()
    while not all(view.running for node in network.nodes.values() for view in node.core.mesh.members_view()):
        next(turns)
    for start in range(0, sessions, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, sessions))
        filters = {home.connect(f"mover-{number}"): b"bench/moves/%d" % number for number in numbers}
        for connection in accepted(turns, home, len(filters)):
            home.events.append(SubscribeReceived(connection, 1, [(filters[connection], 1)]))
            home.events.append(Detach(connection, 0))
    home.connect("publisher")
    (publisher,) = accepted(turns, home, 1)
    payload = bytes(size)
    for number in range(sessions * queued):
        message = Message(b"bench/moves/%d" % (number % sessions), payload, qos=1, publisher="publisher")
        home.events.append(PublishReceived(publisher, number % 65535 + 1, message))
        if number % PUBLISHES_PER_TURN == 0:
            next(turns)
    while home.core.owner.counts()["queued_messages"] < sessions * queued or not is_known(network, sessions):
        next(turns)


def accepted(turns: Iterator[None], node: BenchNode, count: int) -> list[int]:
    """Wait until so many connections are accepted, and take them."""
    while len(node.accepted) < count:
        next(turns)
    connections, node.accepted = node.accepted, []
    return connections


def is_known(network: Network, sessions: int) -> bool:
    """Say whether all nodes know all sessions."""
    last = f"mover-{sessions - 1}"
    return all(node.core.mesh.registry.find(last) is not None for node in network.nodes.values())


def move(network: Network, home: BenchNode, other: BenchNode, sessions: int, at_once: int) -> float:
    """Have all sessions move from one node to the other; the seconds until nothing of them is under way."""
    began = time.monotonic()
    other.accepted.clear()
    left = iter(range(sessions))
    waiting = 0
    for _ in network.turns():
        for connection in other.accepted:
            other.events.append(Detach(connection, 0))
            waiting -= 1
        other.accepted.clear()
        while waiting < at_once and (number := next(left, -1)) >= 0:
            other.connect(f"mover-{number}")
            waiting += 1
        if not waiting:
            counts = [node.core.moving.counts() for node in (home, other)]
            if counts[0]["moves_left"] >= sessions and counts[1]["moves_arriving"] == 0:
                break
    return time.monotonic() - began


def leave(network: Network, home: BenchNode) -> float:
    """Have a node leave by force; the seconds until it has left."""
    began = time.monotonic()
    home.core.leave_desk.command(1, home.name, Order(Verb.MOVE, force=True), began)
    for _ in network.turns():
        if home.core.leaver.job.state == LeaveState.LEFT:
            break
    return time.monotonic() - began


def measure(options: argparse.Namespace, sessions: int, queued: int) -> Row:
    """Fill one node's queues, and move them to another."""
    with tempfile.TemporaryDirectory(prefix="zvmq-bench-") as directory, ExitStack() as stack:
        network = Network(stack, options.nodes, Path(directory))
        home, other, *_ = network.nodes.values()
        fill(network, home, sessions, queued, options.size)
        for node in network.nodes.values():
            node.cpu_s = 0.0
        profile = cProfile.Profile() if options.profile else None
        if profile is not None:
            profile.enable()
        seconds = leave(network, home) if options.leave else move(network, home, other, sessions, options.at_once)
        if profile is not None:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats(options.profile).print_stats(options.lines)
        got = sum(node.core.owner.counts()["queued_messages"] for node in network.nodes.values() if node is not home)
        if got != sessions * queued:
            sys.exit(f"bench.moves: {got} messages came of {sessions * queued}")
    busiest_s = max(node.cpu_s for node in network.nodes.values())
    return {
        "nodes": options.nodes,
        "sessions": sessions,
        "queued each": queued,
        "s": round(seconds, 2),
        **{f"CPU s, {name.partition('@')[0]}": round(node.cpu_s, 2) for name, node in network.nodes.items()},
        "sessions/s": round(sessions / busiest_s),
        "messages/s": round(sessions * queued / busiest_s),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parser().parse_args(arguments)
    # As in the owner's process.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    rows = [measure(options, sessions, queued) for sessions in options.sessions for queued in options.queued]
    if options.json:
        print(json.dumps({"moves": rows}))
        return
    print(f"moving, {'interpreted' if is_interpreted() else 'compiled'} cores:")
    render({"type": "table", "table": rows}, False, sys.stdout)


def is_interpreted() -> bool:
    """Say whether the cores are."""
    return str(sys.modules[QueueOwner.__module__].__file__).endswith(".py")


def parser() -> argparse.ArgumentParser:
    """The parser of the arguments."""
    program = argparse.ArgumentParser(prog="python -m bench.moves", description=__doc__.partition("\n")[0])
    program.add_argument("--nodes", type=int, default=3, help="at least 2")
    program.add_argument("--sessions", type=int, nargs="+", default=[2000], help="sessions that move")
    program.add_argument("--queued", type=int, nargs="+", default=[1, 20], help="messages in the queue of each")
    program.add_argument("--size", type=int, default=100, help="payload bytes")
    program.add_argument("--leave", action="store_true", help="they move because their node leaves")
    program.add_argument("--at-once", type=int, default=500, help="clients that connect at once")
    program.add_argument("--profile", choices=("tottime", "cumtime"), help="show where the time of moving goes")
    program.add_argument("--lines", type=int, default=40, help="of the profile")
    program.add_argument("--json", action="store_true", help="print the table as one JSON object")
    return program


if __name__ == "__main__":
    main()
