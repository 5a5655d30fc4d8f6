"""cluster.replication and what it joins: members hold each other's tables, and agree on the homes of client ids."""

from builds import compiled
from mesh_network import cluster

from broker.core.epoch import Epoch
from broker.core.rows import RowChange, RowKind, SessionRow, pack_row, pack_session, pack_subscription, row_hash
from broker.core.storage import WriteBatch
from cluster import commands as say
from cluster import frames, table_frames


def session_row(client_id, node, counter=1, persistent=True):
    """The change that begins a session of a node."""
    value = pack_session(SessionRow(Epoch(counter, 0, node.store_id), persistent, 0, None))
    return RowChange(2 if persistent else 1, pack_row(RowKind.SESSION, client_id), 0, value)


def registries(network):
    return [node.mesh.registry.rows() for node in network.nodes.values() if not node.down]


def test_every_node_knows_the_home_of_every_client_id():
    network, nodes = cluster()
    for number, node in enumerate(nodes):
        row = session_row(b"client%d" % number, node, persistent=number != 1)
        node.mesh.change_rows([row])
    subscription = pack_row(RowKind.SUBSCRIPTION, b"client0", b"a/#")
    nodes[0].mesh.change_rows([RowChange(2, subscription, 0, pack_subscription(1, 7))])
    network.run(1)
    for node in nodes:
        homes = [node.mesh.registry.find(f"client{number}") for number in range(3)]
        assert [home.node for home in homes] == ["node1@h", "node2@h", "node3@h"]
    ((topic_filter, found),) = nodes[1].mesh.peers["node1@h"].tables.subscriptions_of("client0")
    assert (topic_filter, found.options, found.identifier) == (b"a/#", 1, 7)
    # The third is down, the first has started anew: what is lasting is known of both, what is passing of nobody else.
    network.kill("node3@h")
    network.kill("node1@h")
    network.run(0.5)
    nodes[0].start()
    nodes[0].mesh.own.restore(
        lambda: iter([(2, pack_row(RowKind.SESSION, b"client0"), session_row(b"client0", nodes[0]).value)])
    )
    assert nodes[0].mesh.registry.find("client2").node == "node3@h"
    assert nodes[0].mesh.registry.find("client1") is None
    assert network.run(5, lambda: nodes[0].mesh.registry.find("client1") is not None)


@compiled
def test_a_cluster_that_starts_again_sends_no_rows():
    network, nodes = cluster()
    rows = [session_row(b"client%d" % number, nodes[0]) for number in range(3000)]
    nodes[0].mesh.change_rows(rows)
    network.run(1)
    assert all(len(each) == 3000 for each in registries(network))
    sent = []
    network.lose = lambda command: isinstance(command, say.SendControl) and sent.append(command.frame[1])
    for node in nodes:
        network.kill(node.name)
    network.run(0.5)
    for node in nodes:
        node.start()
    nodes[0].mesh.own.restore(lambda: iter([(2, row.row, row.value) for row in rows]))
    complete = [(node, other.name) for node in nodes for other in nodes if node is not other]
    assert network.run(10, lambda: all(node.mesh._peers.is_complete(name) for node, name in complete))
    assert all(len(each) == 3000 for each in registries(network))
    assert not {frames.FrameType.TABLE_ROWS, frames.FrameType.TABLE_DELTA} & set(sent)


def test_a_member_that_is_gone_leaves_no_rows():
    network, nodes = cluster()
    nodes[2].mesh.change_rows([session_row(b"x", nodes[2]), session_row(b"y", nodes[2], persistent=False)])
    nodes[2].wish(b"a", persistent=True)
    network.run(1)
    removal = frames.pack_members([], [("node3@h", nodes[2].store_id)])
    mesh = nodes[0].mesh
    assert mesh.registry.find("x") and mesh.registry.find("y")
    mesh.receive(say.FrameReceived("node2@h", mesh.peers["node2@h"].connection, removal), network.now)
    network.run(1)
    assert mesh.registry.rows() == set()
    assert not [key for key in nodes[0].storage.snapshot()["registry"] if nodes[2].store_id in key]


def test_a_session_that_was_discarded_elsewhere_does_not_rise_with_its_old_home():
    network, nodes = cluster()
    old = session_row(b"x", nodes[0])
    nodes[0].mesh.change_rows([old])
    network.run(1)
    network.kill("node1@h")
    # Meanwhile it begins anew and ends at the second, which starts anew then.
    new = session_row(b"x", nodes[1], 2, persistent=False)
    nodes[1].mesh.change_rows([new])
    network.run(1)
    assert nodes[2].mesh.registry.find("x").node == "node2@h"
    network.kill("node2@h")
    network.run(0.5)
    nodes[1].start()
    nodes[0].start()
    nodes[0].mesh.own.restore(lambda: iter([(2, old.row, old.value)]))
    assert network.run(10, lambda: nodes[0].mesh.registry.take_superseded() == ["x"])
    assert network.run(10, lambda: all(node.mesh.registry.find("x") is None for node in nodes))
    # The old home gives it up; then nobody has to remember it any more.
    nodes[0].mesh.change_rows([RowChange(2, old.row, row_hash(old.row, old.value), None)])
    assert network.run(10, lambda: not any(node.mesh.registry.ended("x") for node in nodes))
    assert registries(network) == [set(), set(), set()]


def test_a_table_is_asked_for_at_the_beginning_of_a_turn_alone():
    """Reason: the store does not hold yet what a turn changes."""
    network, nodes = cluster(count=2)
    mesh = nodes[0].mesh
    request = table_frames.pack_table_request(table_frames.TableRequest(2, 1, 0, [0] * 1024))
    mesh.change_rows([session_row(b"x", nodes[0])])
    mesh.receive(say.FrameReceived("node2@h", mesh.peers["node2@h"].connection, request), network.now)
    assert mesh.next_deadline() == 0.0
    batch = WriteBatch()
    first = [command.frame[1] for command in mesh.flush(batch, network.now) if isinstance(command, say.SendControl)]
    assert frames.FrameType.TABLE_DELTA in first and frames.FrameType.TABLE_DONE not in first
    mesh.freeze(True)
    mesh.begin(network.now)
    assert not mesh.flush(WriteBatch(), network.now)
    nodes[0].storage.commit(batch)
    mesh.freeze(False)
    mesh.begin(network.now)
    answer = [command.frame for command in mesh.flush(WriteBatch(), network.now)]
    assert [frame[1] for frame in answer] == [frames.FrameType.TABLE_ROWS, frames.FrameType.TABLE_DONE]
    assert table_frames.unpack_table_done(answer[1]).version == 1


def test_what_changed_while_the_node_was_frozen_is_told_before_it_is_asked_for():
    network, nodes = cluster(count=2)
    mesh = nodes[0].mesh
    request = table_frames.pack_table_request(table_frames.TableRequest(2, 1, 0, [0] * 1024))
    # A heartbeat may be on its way out.
    mesh.flush(WriteBatch(), network.now)
    mesh.receive(say.FrameReceived("node2@h", mesh.peers["node2@h"].connection, request), network.now)
    mesh.freeze(True)
    mesh.change_rows([session_row(b"x", nodes[0])])
    batch = WriteBatch()
    assert not mesh.flush(batch, network.now)
    nodes[0].storage.commit(batch)
    mesh.freeze(False)
    sent = []
    for _ in range(2):
        mesh.begin(network.now)
        sent += [command.frame[1] for command in mesh.flush(WriteBatch(), network.now)]
    assert sent == [frames.FrameType.TABLE_DELTA, frames.FrameType.TABLE_ROWS, frames.FrameType.TABLE_DONE]


def test_a_member_is_known_although_it_changes_all_the_time():
    """Reason: a join would not end while the cluster is busy."""
    network, nodes = cluster(count=2)
    node, peer = nodes
    for number in range(20):
        peer.mesh.change_rows([session_row(b"client%d" % number, peer)])
        network.run(0.2)
        assert node.mesh.peers["node2@h"].tables.is_current()


def test_a_member_tells_how_far_all_others_know_what_outlives_its_starts():
    network, nodes = cluster()
    one, other = nodes[0].mesh, nodes[2].mesh

    def is_known():
        tables = other.peers["node1@h"].tables
        return tables.known_to_others >= tables.lasting_at()

    assert network.run(2, is_known)
    # To the second the deltas are lost.
    network.lose = lambda command: (
        isinstance(command, say.SendControl)
        and command.node == "node2@h"
        and command.frame[1] in (frames.FrameType.TABLE_DELTA, frames.FrameType.TABLE_ROWS)
    )
    one.change_rows([session_row(b"x", nodes[0])])
    assert network.run(2, lambda: other.registry.find("x") is not None)
    assert not network.run(3, is_known)
    network.lose = lambda command: False
    assert network.run(2, is_known)
    # Whoever starts again has said nothing of that yet.
    network.kill("node2@h")
    nodes[1].start()
    one.change_rows([session_row(b"y", nodes[0])])
    assert network.run(2, lambda: other.registry.find("y") is not None)
    assert nodes[1].mesh.registry.find("y") is not None or not is_known()
    assert network.run(5, is_known)
    assert nodes[1].mesh.registry.find("y") is not None


def test_a_node_is_current_when_each_running_member_was_heard_since_and_is_known():
    network, nodes = cluster()
    mesh = nodes[0].mesh
    asked_at = network.now
    assert not mesh.is_current(asked_at)
    assert network.run(2, lambda: mesh.is_current(asked_at))
    # What is told from now on does not arrive: the heartbeats name it.
    lost = {frames.FrameType.TABLE_DELTA, frames.FrameType.TABLE_ROWS}
    network.lose = lambda command: isinstance(command, say.SendControl) and command.frame[1] in lost
    nodes[1].mesh.change_rows([session_row(b"x", nodes[1])])
    network.run(0.1)
    asked_at = network.now
    assert not network.run(5, lambda: mesh.is_current(asked_at))
    network.lose = lambda command: False
    assert network.run(5, lambda: mesh.is_current(asked_at))
    assert mesh.registry.highest_epoch("x").counter == 1
    # Who does not run is not waited for.
    network.kill("node3@h")
    assert network.run(10, lambda: "node3@h" not in nodes[0].running())
    asked_at = network.now
    assert network.run(2, lambda: mesh.is_current(asked_at))
