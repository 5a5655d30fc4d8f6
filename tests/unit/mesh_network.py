"""Meshes on a network in memory: delays from one seed, losses as a test says, no sockets and no waiting."""

import itertools
import random

from broker.core.effects import InterestChange
from broker.core.message import Message
from broker.core.storage import MemoryStorage, WriteBatch, next_incarnation
from cluster import commands as say
from cluster.joining import JOIN_TIMEOUT_S
from cluster.keys import JOIN
from cluster.mesh import Mesh, MeshSettings

TIMEOUT_S = 5.0


class Node:
    """One mesh with its store, and what its application saw."""

    def __init__(self, network, name, discovery=(), storage=None, lookups=()):
        self.network = network
        self.name = name
        self.storage = storage or MemoryStorage()
        self.store_id = name.encode().ljust(16, b".")
        self.discovery = discovery
        self.lookups = lookups
        self.down = True
        self.connections = {}

    def start(self, address=""):
        self.down = False
        discovery = tuple((node, f"{node}:1") for node in self.discovery)
        settings = MeshSettings(self.name, address or f"{self.name}:1", TIMEOUT_S, discovery, lookups=self.lookups)
        cluster_id = b"cluster of " + self.name.encode()
        now = self.network.now
        self.mesh = Mesh(settings, self.storage, self.store_id, next_incarnation(self.storage), cluster_id, now)
        self.admitted = set()
        self.connected = set()
        self.wanted = {}
        self.join = None
        self.received = []
        self.marks = []
        self.acknowledged = []
        self.notes = []
        self.life = next(self.network.lives)

    def take_messages(self):
        for each in self.mesh.take_messages():
            (self.received if isinstance(each, Message) else self.marks).append(each)

    def wish(self, topic_filter, wanted=True, persistent=False):
        self.mesh.change_interest([InterestChange(topic_filter, wanted, persistent)])

    def running(self):
        return [view.name for view in self.mesh.members_view() if view.running]


class Network:
    """Delivers in order per connection, after delays drawn from one seed."""

    def __init__(self, seed=0):
        self.rng = random.Random(seed)
        self.now = 100.0
        self.nodes = {}
        self.events = []
        self.order = itertools.count()
        self.lives = itertools.count(1)
        self.cut = set()
        self.last_arrival = {}
        self.lose = lambda command: False
        # Name -> addresses; None when nobody can say, and a name that is not there has no answer at all.
        self.names = {}

    def add(self, name, discovery=(), start=True, lookups=()):
        node = Node(self, name, discovery, lookups=lookups)
        self.nodes[name] = node
        if start:
            node.start()
        return node

    def kill(self, name):
        node = self.nodes[name]
        node.down = True
        node.storage = node.storage.survivor()
        for other in self.nodes.values():
            if not other.down and name in other.connected:
                other.connected.discard(name)
                self.later(other, say.PeerDisconnected(name))
            if not other.down and other.join == name:
                self.later(other, say.JoinFailed("disconnected", "closed"))

    def later(self, node, happened, lane=None):
        """Schedule an input; inputs of one lane keep their order."""
        at = self.now + self.rng.uniform(0.0005, 0.02)
        if lane is not None:
            at = max(at, self.last_arrival.get(lane, 0.0))
            self.last_arrival[lane] = at
        self.events.append((at, next(self.order), node.name, node.life, happened))
        self.events.sort(key=lambda event: event[:2])

    def reachable(self, one, other):
        return not self.nodes[other].down and frozenset((one, other)) not in self.cut

    def execute(self, node, command):
        if self.lose(command):
            return
        name = node.name
        if isinstance(command, say.Admit):
            node.admitted.add(command.node)
        elif isinstance(command, say.Revoke):
            node.admitted.discard(command.node)
        elif isinstance(command, say.ConnectPeer):
            node.wanted[command.node] = command.address
            node.connected.discard(command.node)
        elif isinstance(command, say.DisconnectPeer):
            node.wanted.pop(command.node, None)
            node.connected.discard(command.node)
        elif isinstance(command, (say.SendControl, say.SendBulk)):
            if command.node in node.connected and self.reachable(name, command.node):
                peer = self.nodes[command.node]
                kind = type(command).__name__
                connection = f"{name}/{node.life}/{node.connections.get(command.node, 0)}/{kind}".encode()
                self.later(peer, say.FrameReceived(name, connection, command.frame), (name, command.node, kind))
        elif isinstance(command, say.OpenJoin):
            # Who is at an address is who answers; a node that is meant by name answers to that alone.
            node.join = command.address.removesuffix(":1") if not command.node else command.node
            target = self.nodes.get(node.join)
            if target is None or not self.reachable(name, node.join):
                self.later(node, say.JoinFailed("refused", "the TCP connection was refused"))
            else:
                self.later(node, say.PeerConnected(JOIN))
        elif isinstance(command, say.SendJoin):
            if node.join and self.reachable(name, node.join):
                connection = f"join/{name}/{node.life}/{node.join}".encode()
                self.later(self.nodes[node.join], say.FrameReceived(JOIN, connection, command.frame))
        elif isinstance(command, say.CloseJoin):
            node.join = None
        elif isinstance(command, say.Reply):
            self.reply(node, command)

    def reply(self, node, command):
        parts = command.connection.decode().split("/")
        if parts[0] == "join":
            asking = self.nodes[parts[1]]
            if not asking.down and asking.join == node.name and self.reachable(node.name, asking.name):
                self.later(asking, say.FrameReceived(JOIN, b"", command.frame))
        elif self.reachable(node.name, parts[0]):
            self.later(self.nodes[parts[0]], say.FrameReceived(node.name, b"", command.frame))

    def dial(self, node):
        """Do what the transport does by itself: connect what is wanted, notice what is gone."""
        for peer in list(node.wanted):
            if peer in node.connected:
                if not self.reachable(node.name, peer):
                    node.connected.discard(peer)
                    self.later(node, say.PeerDisconnected(peer), (node.name, peer, "watch"))
            elif self.reachable(node.name, peer):
                if node.name in self.nodes[peer].admitted:
                    node.connected.add(peer)
                    node.connections = {**getattr(node, "connections", {}), peer: next(self.order)}
                    self.later(node, say.PeerConnected(peer), (node.name, peer, "watch"))
                else:
                    del node.wanted[peer]
                    self.later(node, say.PeerRefused(peer), (node.name, peer, "watch"))

    def turn(self, node):
        node.mesh.begin(self.now)
        node.mesh.tick(self.now)
        batch = WriteBatch()
        commands = node.mesh.flush(batch, self.now)
        node.take_messages()
        node.acknowledged += node.mesh.take_acknowledged()
        node.notes += node.mesh.take_notes()
        node.storage.commit(batch)
        for command in commands:
            self.execute(node, command)
        for entry in node.mesh.take_lookups():
            if entry in self.names:
                node.mesh.looked_up(entry, self.names[entry], self.now)
        node.mesh.validate()

    def run(self, seconds, until=lambda: False):
        """Let time pass; return whether `until` came true."""
        end = self.now + seconds
        while self.now < end:
            if until():
                return True
            for node in self.nodes.values():
                if not node.down:
                    self.turn(node)
                    self.dial(node)
            self.now += 0.01
            while self.events and self.events[0][0] <= self.now:
                _, _, name, life, happened = self.events.pop(0)
                node = self.nodes[name]
                if not node.down and node.life == life:
                    node.mesh.receive(happened, self.now)
                    node.take_messages()
                    node.acknowledged += node.mesh.take_acknowledged()
        return until()

    def one_cluster(self):
        """Say whether all nodes are in one cluster and everybody hears everybody."""
        up = [node for node in self.nodes.values() if not node.down]
        names = sorted(node.name for node in up)
        return len({node.mesh.cluster_id for node in up}) == 1 and all(node.running() == names for node in up)

    def join(self, joiner, target):
        node = self.nodes[joiner]
        node.mesh.join(target, f"{target}:1", self.now)
        results = []

        def decided():
            result = node.mesh.take_join_result()
            if result is not None:
                results.append(result)
            return bool(results)

        assert self.run(JOIN_TIMEOUT_S + 1, decided), "the join has no outcome"
        return results[0]


def cluster(seed=0, count=3):
    network = Network(seed)
    names = [f"node{number}@h" for number in range(1, count + 1)]
    for name in names:
        network.add(name)
    for name in names[1:]:
        result = network.join(name, names[0])
        assert result.joined, result.text
    assert network.run(5, network.one_cluster)
    return network, [network.nodes[name] for name in names]


def message(payload=b"hi", qos=1, number=1):
    return Message(b"a/b", payload, b"", qos, False, 0.0, "client", b"o" * 16, number)


def payloads(node):
    return [each.payload for each in node.received if isinstance(each, Message)]
