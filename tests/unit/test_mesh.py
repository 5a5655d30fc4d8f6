"""cluster.mesh, joining and node: meshes on a network in memory, without sockets or waiting."""

import itertools
import math
import random

import pytest

from broker.core.effects import InterestChange, Ticket
from broker.core.message import Message
from broker.core.owner import OwnerSettings, QueueOwner
from broker.core.storage import MemoryStorage, WriteBatch, next_incarnation
from cluster import commands as say
from cluster import frames
from cluster.joining import JOIN_TIMEOUT_S
from cluster.keys import JOIN
from cluster.mesh import Mesh, MeshSettings
from cluster.node import NodeCore

TIMEOUT_S = 5.0


class Node:
    """One mesh with its store, and what its application saw."""

    def __init__(self, network, name, discovery=(), storage=None):
        self.network = network
        self.name = name
        self.storage = storage or MemoryStorage()
        self.store_id = name.encode().ljust(16, b".")
        self.discovery = discovery
        self.down = True
        self.connections = {}

    def start(self, address=""):
        self.down = False
        settings = MeshSettings(
            self.name, address or f"{self.name}:1", TIMEOUT_S, tuple((node, f"{node}:1") for node in self.discovery)
        )
        cluster_id = b"cluster of " + self.name.encode()
        now = self.network.now
        self.mesh = Mesh(settings, self.storage, self.store_id, next_incarnation(self.storage), cluster_id, now)
        self.admitted = set()
        self.connected = set()
        self.wanted = {}
        self.join = None
        self.received = []
        self.acknowledged = []
        self.notes = []
        self.life = next(self.network.lives)

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

    def add(self, name, discovery=(), start=True):
        node = Node(self, name, discovery)
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
            node.join = command.node
            target = self.nodes.get(command.node)
            if target is None or not self.reachable(name, command.node):
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
        node.mesh.tick(self.now)
        batch = WriteBatch()
        commands = node.mesh.flush(batch, self.now)
        node.received += node.mesh.take_messages()
        node.acknowledged += node.mesh.take_acknowledged()
        node.notes += node.mesh.take_notes()
        node.storage.commit(batch)
        for command in commands:
            self.execute(node, command)
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
                    node.received += node.mesh.take_messages()
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
    return [each.payload for each in node.received]


def test_a_join_ends_when_the_member_can_send_and_receive_everything():
    network = Network()
    first, second, third = (network.add(f"node{number}@h") for number in (1, 2, 3))
    first.wish(b"a/#", persistent=True)
    third.wish(b"c/#")
    assert network.join("node2@h", "node1@h").joined
    result = network.join("node3@h", "node2@h")
    assert result.joined, result.text
    # Success means now, not soon.
    assert third.mesh.interest.match(b"a/b") == [("node1@h", True)]
    assert first.mesh.interest.match(b"c/d") == second.mesh.interest.match(b"c/d") == [("node3@h", False)]
    assert third.running() == ["node1@h", "node2@h", "node3@h"]
    ticket = Ticket(1, 1, 0)
    assert third.mesh.forward("node1@h", message(), ticket, network.now)
    assert network.run(1, lambda: third.acknowledged == [ticket])
    assert payloads(first) == [b"hi"]


def test_joining_again_is_done_at_once():
    network, _ = cluster()
    assert network.join("node3@h", "node2@h").joined


def test_what_can_not_join_is_told_why():
    network, _ = cluster()
    assert "can't join itself" in network.join("node1@h", "node1@h").text
    network.add("lone@h")
    network.add("other@h")
    assert "refused" in network.join("lone@h", "nobody@h").text
    network.join("lone@h", "other@h")
    assert "already in a cluster with others (other@h)" in network.join("lone@h", "node1@h").text


def test_a_second_store_under_a_members_name_is_refused():
    network, nodes = cluster()
    network.kill("node3@h")
    nodes[2].storage = MemoryStorage()
    nodes[2].store_id = b"an empty volume."
    nodes[2].start()
    result = network.join("node3@h", "node1@h")
    assert not result.joined
    assert "a member named node3@h with another store is already in the cluster" in result.text
    # With the old cluster's knowledge but another store it gets no further.
    nodes[0].mesh.membership.merge_removed("node3@h", b"node3@h".ljust(16, b"."))
    assert not nodes[2].mesh.peers


def test_a_removed_pair_is_refused():
    network, nodes = cluster()
    pair = ("node3@h", nodes[2].store_id)
    removal = frames.pack_members([], [pair])
    for node in nodes[:2]:
        peer = nodes[1] if node is nodes[0] else nodes[0]
        node.mesh.receive(say.FrameReceived(peer.name, node.mesh.peers[peer.name].connection, removal), network.now)
    network.run(3)
    assert nodes[0].running() == nodes[1].running() == ["node1@h", "node2@h"]
    network.kill("node3@h")
    nodes[2].start()
    network.run(10)
    assert nodes[0].running() == ["node1@h", "node2@h"]
    assert any("was removed from the cluster" in note for note in nodes[2].notes)
    assert (b"removed/" + pair[1] + pair[0].encode()) in nodes[0].storage.snapshot()["meta"]


def test_versions_too_far_apart_are_refused_with_a_text():
    network, nodes = cluster(count=2)
    hello = frames.Hello("new@h", b"n" * 16, 1, 0, 0, b"x", "new@h:1", 7, 9, False, False, 1, 0, 0)
    # Its frames have another version, too; a Hello can be read nevertheless.
    frame = b"\x07" + frames.pack_hello(hello)[1:]
    mesh = nodes[0].mesh
    mesh.receive(say.FrameReceived(JOIN, b"c", frame), network.now)
    reply = [command for command in mesh.flush(WriteBatch(), network.now) if isinstance(command, say.Reply)]
    assert "speaks mesh versions 7 to 9" in frames.unpack_refused(reply[0].frame).text


def test_the_join_key_carries_nothing_but_hello():
    network, nodes = cluster(count=2)
    mesh = nodes[0].mesh
    for frame in (
        frames.pack_members([], [("node2@h", nodes[1].store_id)]),
        frames.pack_interest_delta(1, 1, [frames.pack_wish(b"#", True, True)]),
        frames.pack_forwards(1, 1, 0, 0, True, False, b""),
        b"\x01",
        b"",
    ):
        mesh.receive(say.FrameReceived(JOIN, b"c", frame), network.now)
    assert mesh.counters()["frames_of_strangers"] == 5
    assert mesh.interest.match(b"x") == []
    assert "node2@h" in mesh.peers


def test_a_hello_under_another_members_key_is_refused():
    network, nodes = cluster()
    mesh = nodes[0].mesh
    before = mesh.peers["node3@h"].connection
    hello = frames.Hello(
        "node3@h", nodes[2].store_id, 99 << 20, 2**60, 0, mesh.cluster_id, "x:1", 1, 1, False, True, 1, 0, 0
    )
    mesh.receive(say.FrameReceived("node2@h", b"evil", frames.pack_hello(hello)), network.now)
    assert mesh.peers["node3@h"].connection == before
    assert mesh.counters()["hellos_refused"] == 1


def test_malformed_frames_are_counted_and_change_nothing():
    network, nodes = cluster()
    mesh = nodes[0].mesh
    connection = mesh.peers["node2@h"].connection
    for frame in (b"", b"\x01", b"\x01\xff", b"\x09\x04", frames.pack_positions(1, 1)[:-1], b"\x01\x0b" + bytes(40)):
        mesh.receive(say.FrameReceived("node2@h", connection, frame), network.now)
    assert mesh.counters()["frames_malformed"] >= 5
    mesh.validate()
    assert network.run(3, network.one_cluster)


def test_frames_of_an_old_connection_are_ignored():
    network, nodes = cluster()
    mesh = nodes[0].mesh
    delta = frames.pack_interest_delta(1, 1, [frames.pack_wish(b"ghost", True, True)])
    mesh.receive(say.FrameReceived("node2@h", b"an older one", delta), network.now)
    assert mesh.counters()["frames_of_old_connections"] == 1
    assert mesh.interest.match(b"ghost") == []


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
@pytest.mark.parametrize("gap_s", [0.0, 0.05, 2.5])
def test_discovery_makes_one_cluster_of_nodes_that_start_together(order, gap_s):
    for seed in range(5):
        network = Network(seed)
        names = [f"node{number}@h" for number in (1, 2, 3)]
        for number in order:
            network.add(f"node{number}@h", names)
            network.run(gap_s)
        assert network.run(30, network.one_cluster), f"seed {seed}: {[node.notes for node in network.nodes.values()]}"


def test_discovery_of_many_never_founds_two_clusters():
    for seed in range(10):
        network = Network(seed)
        names = [f"node{number}@h" for number in range(1, 8)]
        order = list(names)
        network.rng.shuffle(order)
        for name in order:
            network.add(name, names)
            network.run(network.rng.choice([0.0, 0.01, 0.4, 3.0]))
        assert network.run(60, network.one_cluster), f"seed {seed}"


def test_discovery_goes_on_without_the_smallest_name_which_joins_later():
    network = Network()
    names = ["node1@h", "node2@h", "node3@h"]
    network.add("node3@h", names)
    network.add("node2@h", names)
    assert network.run(30, network.one_cluster)
    network.add("node1@h", names)
    assert network.run(30, network.one_cluster)


def test_discovery_with_one_seed_node():
    network = Network()
    network.add("node3@h")
    network.add("node1@h", ["node3@h"])
    network.add("node2@h", ["node3@h"])
    assert network.run(30, network.one_cluster)


def test_two_operators_who_join_two_nodes_to_each_other_get_one_cluster():
    for seed in range(10):
        network = Network(seed)
        one, two = network.add("node1@h"), network.add("node2@h")
        one.mesh.join("node2@h", "node2@h:1", network.now)
        two.mesh.join("node1@h", "node1@h:1", network.now)
        assert network.run(30, network.one_cluster), f"seed {seed}"
        network.run(3)
        for node in (one, two):
            assert node.mesh.take_join_result().joined, f"seed {seed}"


def test_an_invitation_that_nobody_takes_up_ends():
    network = Network()
    node = network.add("node1@h")
    hello = frames.Hello("new@h", b"n" * 16, 1, 0, 0, b"x", "new@h:1", 1, 1, False, False, 1, 0, 0)
    node.mesh.receive(say.FrameReceived(JOIN, b"join/node1@h/1/x", frames.pack_hello(hello)), network.now)
    network.run(1)
    assert "new@h" in node.admitted
    assert node.mesh.membership.alone()
    network.run(20)
    assert "new@h" not in node.admitted


def test_a_member_whose_invitation_was_lost_introduces_itself_again():
    network = Network()
    first, second = network.add("node1@h"), network.add("node2@h")
    second.mesh.join("node1@h", "node1@h:1", network.now)
    assert network.run(5, lambda: second.mesh.cluster_id == first.mesh.cluster_id)
    assert first.mesh.membership.alone()
    network.kill("node1@h")
    network.run(1)
    first.start()
    assert network.run(20, network.one_cluster)


def test_members_find_each_other_after_a_restart_of_all():
    network, nodes = cluster()
    for node in nodes:
        network.kill(node.name)
    for node in nodes:
        node.start()
        assert node.running() == [node.name]
    assert network.run(3, network.one_cluster)


def test_a_killed_node_is_not_running_after_the_timeout_and_is_again_when_back():
    network, nodes = cluster()
    network.kill("node3@h")
    network.run(TIMEOUT_S - 0.5)
    assert "node3@h" in nodes[0].running()
    network.run(1)
    assert nodes[0].running() == nodes[1].running() == ["node1@h", "node2@h"]
    assert [view.state for view in nodes[0].mesh.members_view()] == ["alive", "alive", "dead"]
    nodes[2].start()
    assert network.run(3, network.one_cluster)
    assert network.run(3, lambda: len({node.mesh.membership.digest() for node in nodes}) == 1)


def test_a_quick_restart_is_no_netsplit():
    network, nodes = cluster()
    network.kill("node3@h")
    network.run(3)
    nodes[2].start()
    assert not network.run(10, lambda: "node3@h" not in nodes[0].running())
    assert nodes[0].mesh.counters()["peers_died"] == 0


def test_an_owner_that_stands_still_is_dead_after_three_timeouts_and_blames_nobody():
    network, nodes = cluster()
    network.turn = lambda node, turn=network.turn: turn(node) if node is not nodes[2] else None
    network.run(2.5 * TIMEOUT_S)
    assert "node3@h" in nodes[0].running()
    network.run(TIMEOUT_S)
    assert "node3@h" not in nodes[0].running()
    del network.turn
    nodes[2].mesh.tick(network.now)
    assert nodes[2].running() == ["node1@h", "node2@h", "node3@h"]
    assert network.run(3, network.one_cluster)


def test_a_partition_heals_and_others_opinions_change_nothing():
    network, nodes = cluster()
    network.cut.add(frozenset(("node1@h", "node3@h")))
    network.run(15)
    assert nodes[0].running() == ["node1@h", "node2@h"]
    assert nodes[1].running() == ["node1@h", "node2@h", "node3@h"], "it hears both itself"
    network.cut.clear()
    assert network.run(5, network.one_cluster)
    assert network.run(5, lambda: len({node.mesh.membership.digest() for node in nodes}) == 1)


def test_interest_spreads_and_lost_frames_are_repaired():
    network, nodes = cluster()
    drop = {frames.FrameType.INTEREST_DELTA, frames.FrameType.INTEREST_REQUEST}
    network.lose = lambda command: (
        isinstance(command, say.SendControl) and command.frame[1] in drop and network.rng.random() < 0.5
    )
    for number in range(20):
        nodes[0].wish(b"t/%d" % number, persistent=number % 2 == 0)
        network.run(0.1)
    assert network.run(30, lambda: all(node.mesh.interest.match(b"t/19") for node in nodes[1:]))
    for node in nodes[1:]:
        for number in range(20):
            assert node.mesh.interest.match(b"t/%d" % number) == [("node1@h", number % 2 == 0)]


def test_persistent_interest_of_a_peer_that_is_down_survives_the_own_restart():
    network, nodes = cluster(count=2)
    nodes[0].wish(b"a/#", persistent=True)
    nodes[0].wish(b"b/#", persistent=False)
    nodes[0].wish(b"c/#", persistent=True)
    network.run(1)
    nodes[0].wish(b"c/#", wanted=False)
    network.run(1)
    network.kill("node1@h")
    network.kill("node2@h")
    nodes[1].start()
    assert nodes[1].mesh.interest.match(b"a/b") == [("node1@h", True)]
    assert nodes[1].mesh.interest.match(b"b/b") == nodes[1].mesh.interest.match(b"c/b") == []


@pytest.mark.parametrize("seed", range(10))
def test_forwards_survive_lost_frames_and_reconnects_in_order(seed):
    network, nodes = cluster(seed, count=2)
    network.lose = lambda command: isinstance(command, say.SendBulk) and network.rng.random() < 0.2
    sent = []
    tickets = []
    for number in range(100):
        sent.append(b"%d" % number)
        tickets.append(Ticket(1, number, 0))
        assert nodes[0].mesh.forward("node2@h", message(sent[-1]), tickets[-1], network.now)
        network.run(0.02)
        if number % 30 == 29:
            network.cut.add(frozenset(("node1@h", "node2@h")))
            network.run(1)
            network.cut.clear()
    assert network.run(60, lambda: nodes[0].acknowledged == tickets)
    assert payloads(nodes[1]) == sent


def test_a_forward_for_a_peer_that_is_down_waits_and_is_acknowledged_when_it_is_back():
    network, nodes = cluster(count=2)
    network.kill("node2@h")
    network.run(10)
    ticket = Ticket(1, 1, 0)
    assert nodes[0].mesh.forward("node2@h", message(b"kept"), ticket, network.now)
    assert nodes[0].mesh.forward("node2@h", message(b"gone", qos=0), None, network.now)
    nodes[1].start()
    assert network.run(5, lambda: nodes[0].acknowledged == [ticket])
    assert payloads(nodes[1]) == [b"kept"]
    assert nodes[0].mesh.counters()["link_drop_not_running"] == 1


def test_positions_survive_restarts_of_both_sides():
    network, nodes = cluster(count=2)
    for number in range(5):
        for node in nodes:
            ticket = Ticket(1, 1, 0)
            nodes[0].mesh.forward("node2@h", message(b"%d" % number), ticket, network.now)
            assert network.run(5, lambda ticket=ticket: ticket in nodes[0].acknowledged)
            assert payloads(nodes[1])[-1] == b"%d" % number
            network.kill(node.name)
            network.run(0.5)
            node.start()
            assert network.run(5, network.one_cluster)
    assert nodes[0].mesh.counters()["link_gap"] == nodes[1].mesh.counters()["link_gap"] == 0


def test_an_acknowledgement_is_taken_with_the_position_that_it_promises():
    network, nodes = cluster(count=2)
    network.run(1)
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    for command in nodes[0].mesh.flush(WriteBatch(), network.now):
        if isinstance(command, say.SendBulk):
            nodes[1].mesh.receive(say.FrameReceived("node1@h", b"bulk", command.frame), network.now)
    batch = WriteBatch()
    commands = nodes[1].mesh.flush(batch, network.now)
    sent = [command.frame for command in commands if isinstance(command, say.SendControl)]
    acks = [frame for frame in sent if frame[1] == frames.FrameType.LINK_ACK]
    assert [frames.unpack_position(frame).position for frame in acks] == [1]
    assert batch.operations == [(0, "meta", b"position/" + nodes[0].store_id, b"\x01" + (1).to_bytes(8, "big"))]


def test_an_address_that_changed_is_told_by_hello():
    network, nodes = cluster()
    network.kill("node3@h")
    nodes[2].start("elsewhere:2")
    assert network.run(5, network.one_cluster)
    assert nodes[0].wanted["node3@h"] == nodes[1].wanted["node3@h"] == "elsewhere:2"


def test_a_node_core_joins_owner_and_mesh():
    storage = MemoryStorage()
    settings = MeshSettings("node1@h", "node1@h:1", TIMEOUT_S, ())
    mesh = Mesh(settings, storage, b"s" * 16, 1, b"c" * 16, 0.0)
    owner = QueueOwner(OwnerSettings(), storage, mesh.interest, b"s" * 16, 1)
    owner.recover(0.0, 0)
    node = NodeCore(owner, mesh)
    node.tick(1.0)
    effects = node.take_effects()
    assert (b"cluster_id") in [operation[2] for operation in effects.writes.operations]
    assert node.next_deadline() == math.inf
    assert [view.name for view in node.members_view()] == ["node1@h"]
    node.join("node1@h", "node1@h:1", 1.0)
    assert not node.take_join_result().joined
    node.validate()
