"""cluster.statuses: what nodes say of themselves to another one's operator."""

import pytest
import recorded_frames
from mesh_network import cluster

from cluster.statuses import LOOK_TIMEOUT_S, NodeStatus, pack_look, pack_status, unpack_look, unpack_status
from cluster.wire import FrameError


def known(count=3):
    network, nodes = cluster(count=count)
    for number, node in enumerate(nodes, 1):
        node.mesh.ask_status(lambda number=number: NodeStatus(number, 10 * number, f"1.{number}"))
    return network, nodes


def look(network, node):
    node.mesh.look(network.now)
    results = []

    def ended():
        result = node.mesh.take_statuses()
        if result is not None:
            results.append(result)
        return bool(results)

    assert network.run(LOOK_TIMEOUT_S + 0.1, ended)
    assert node.mesh.take_statuses() is None
    return results[0]


def test_every_node_says_what_it_is():
    network, nodes = known()
    begun = network.now
    for node in nodes:
        assert look(network, node) == {
            "node1@h": NodeStatus(1, 10, "1.1"),
            "node2@h": NodeStatus(2, 20, "1.2"),
            "node3@h": NodeStatus(3, 30, "1.3"),
        }
    assert network.now - begun < LOOK_TIMEOUT_S, "nobody waits when all have answered"


def test_a_node_that_is_alone_answers_itself():
    network, nodes = known(count=1)
    assert look(network, nodes[0]) == {"node1@h": NodeStatus(1, 10, "1.1")}


def test_a_node_that_is_down_or_says_nothing_is_not_in_it():
    network, nodes = known()
    network.lose = lambda command: getattr(command, "frame", b"")[:2] == b"\x01\x25" and command.node == "node1@h"
    assert list(look(network, nodes[0])) == ["node1@h"]
    network.kill("node3@h")
    network.run(10)
    begun = network.now
    assert sorted(look(network, nodes[1])) == ["node1@h", "node2@h"]
    assert network.now - begun < LOOK_TIMEOUT_S


def test_an_answer_that_comes_too_late_is_none():
    network, nodes = known(count=2)
    held = []
    network.lose = lambda command: getattr(command, "frame", b"")[:2] == b"\x01\x25" and not held.append(command)
    assert list(look(network, nodes[0])) == ["node1@h"]
    network.lose = lambda command: False
    nodes[1].mesh.ask_status(lambda: NodeStatus(0, 0, "newer"))
    nodes[0].mesh.look(network.now)
    network.execute(nodes[1], held[0])
    network.run(0.5)
    assert nodes[0].mesh.take_statuses()["node2@h"].version == "newer"


def test_frames():
    frame = pack_status(7, NodeStatus(2, 3, "0.1.0"))
    assert frame.hex() == dict(recorded_frames.VERSION_1)["STATUS"]
    assert unpack_status(frame) == (7, NodeStatus(2, 3, "0.1.0"))
    assert pack_look(7).hex() == dict(recorded_frames.VERSION_1)["LOOK"]
    assert unpack_look(pack_look(2**32 - 1)) == 2**32 - 1
    for size in range(len(frame)):
        with pytest.raises(FrameError):
            unpack_status(frame[:size])
