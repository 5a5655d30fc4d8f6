"""cluster.mesh: when a node is ready among others, and what a stop that was announced makes of it."""

import pytest
from builds import compiled
from mesh_network import TIMEOUT_S, Network, cluster

from cluster import frames
from cluster.commands import FrameReceived


def ready(nodes):
    return [node.mesh.readiness.ready for node in nodes]


def splits(nodes):
    return [tuple(node.mesh.netsplits().values()) for node in nodes]


def stop(network, name):
    """Stop a node as it was told to: what it has to say leaves before it ends."""
    network.nodes[name].mesh.announce_stop()
    network.run(0.1)
    network.kill(name)


def test_making_a_cluster_is_no_split():
    network = Network()
    for number in (1, 2, 3):
        network.add(f"node{number}@h")
    assert ready(network.nodes.values()) == [True] * 3
    for joiner in ("node2@h", "node3@h"):
        assert network.join(joiner, "node1@h").joined
        assert ready(network.nodes.values()) == [True] * 3
    network.run(2 * TIMEOUT_S)
    assert splits(network.nodes.values()) == [(0, 0)] * 3


def test_a_killed_member_makes_the_others_not_ready_until_it_is_back():
    network, nodes = cluster()
    network.kill("node3@h")
    left = nodes[:2]
    assert network.run(2 * TIMEOUT_S, lambda: ready(left) == [False, False])
    assert left[0].mesh.readiness.reason == "this node is not ready: node3@h is not running"
    assert "this node is not ready: node3@h is not running" in left[0].notes
    assert splits(left) == [(1, 0)] * 2
    network.run(3 * TIMEOUT_S)
    nodes[2].start()
    # It knows the others from its store, and waits until it hears them.
    assert ready(nodes) == [False] * 3
    assert network.run(5, lambda: ready(nodes) == [True] * 3)
    assert splits(nodes) == [(1, 1), (1, 1), (0, 0)]
    assert "this node is ready" in left[0].notes


def test_a_quick_restart_makes_nobody_not_ready():
    network, nodes = cluster()
    network.kill("node3@h")
    network.run(TIMEOUT_S / 2)
    nodes[2].start()
    assert network.run(5, network.one_cluster)
    assert splits(nodes[:2]) == [(0, 0)] * 2


def test_a_partition_is_one_split_for_each_side():
    network, nodes = cluster()
    network.cut = {frozenset(("node1@h", "node2@h")), frozenset(("node1@h", "node3@h"))}
    both = "this node is not ready: node2@h, node3@h are not running"
    assert network.run(20, lambda: ready(nodes) == [False] * 3 and nodes[0].mesh.readiness.reason == both)
    network.cut = set()
    assert network.run(10, lambda: ready(nodes) == [True] * 3)
    assert splits(nodes) == [(1, 1)] * 3


def test_a_planned_stop_is_waited_for():
    network, nodes = cluster()
    left = nodes[:2]
    stop(network, "node3@h")
    network.run(2 * TIMEOUT_S)
    assert left[0].running() == ["node1@h", "node2@h"]
    assert ready(left) == [True, True]
    assert "node3@h stops as planned" in left[0].notes
    assert network.run(30, lambda: ready(left) == [False, False])
    nodes[2].start()
    assert network.run(5, lambda: ready(nodes) == [True] * 3)
    assert splits(left) == [(1, 1)] * 2


def test_a_planned_stop_is_heard_while_the_store_takes_no_writes():
    network, nodes = cluster()
    nodes[0].mesh.freeze(True)
    stop(network, "node3@h")
    nodes[0].mesh.freeze(False)
    network.run(2 * TIMEOUT_S)
    assert ready(nodes[:2]) == [True, True]


def test_a_planned_stop_is_heard_of_from_another_member():
    network, nodes = cluster()
    network.cut = {frozenset(("node1@h", "node3@h"))}
    network.run(TIMEOUT_S / 2)
    stop(network, "node3@h")
    network.run(2 * TIMEOUT_S)
    assert ready(nodes[:2]) == [True, True]
    assert nodes[0].mesh.readiness.waited_until("node3@h") > network.now
    # Whoever starts meanwhile hears it, too, and waits no longer than the others.
    network.kill("node1@h")
    network.run(1)
    nodes[0].start()
    assert network.run(5, lambda: ready(nodes[:2]) == [True, True])
    waits = [node.mesh.readiness.waited_until("node3@h") for node in nodes[:2]]
    assert waits[0] == pytest.approx(waits[1], abs=0.1)
    network.cut = set()
    nodes[2].start()
    assert network.run(5, network.one_cluster)
    network.run(TIMEOUT_S + 1)
    assert [node.mesh.readiness.waited_until("node3@h") < network.now for node in nodes[:2]] == [True, True]


@compiled
@pytest.mark.parametrize("seed", range(10))
def test_a_planned_restart_is_no_split_however_the_member_comes_back(seed):
    """Its Hello may be here a moment before this node's connection to it is up."""
    network, nodes = cluster(seed)
    stop(network, "node3@h")
    network.run(2 * TIMEOUT_S)
    nodes[2].start()
    assert network.run(5, network.one_cluster)
    network.run(2 * TIMEOUT_S)
    assert splits(nodes) == [(0, 0)] * 3


def test_a_member_that_is_back_from_a_planned_stop_is_missed_when_it_is_killed():
    network, nodes = cluster()
    stop(network, "node3@h")
    network.run(1)
    nodes[2].start()
    assert network.run(5, network.one_cluster)
    network.kill("node3@h")
    assert network.run(2 * TIMEOUT_S, lambda: ready(nodes[:2]) == [False, False])


def test_a_connection_that_begins_anew_while_a_member_stops_does_not_end_its_announcement():
    network, nodes = cluster()
    nodes[2].mesh.announce_stop()
    network.run(0.1)
    network.cut = {frozenset(("node1@h", "node3@h"))}
    network.run(0.2)
    network.cut = set()
    assert network.run(2, network.one_cluster)
    network.kill("node3@h")
    network.run(2 * TIMEOUT_S)
    assert ready(nodes[:2]) == [True, True]


def test_who_leaves_is_not_missed():
    network, nodes = cluster()
    removal = frames.pack_members([], [("node3@h", nodes[2].store_id)])
    network.kill("node3@h")
    assert network.run(2 * TIMEOUT_S, lambda: ready(nodes[:2]) == [False, False])
    for node, peer in (nodes[:2], nodes[1::-1]):
        connection = node.mesh.peers[peer.name].connection
        node.mesh.receive(FrameReceived(peer.name, connection, removal), network.now)
    assert network.run(1, lambda: ready(nodes[:2]) == [True, True])
