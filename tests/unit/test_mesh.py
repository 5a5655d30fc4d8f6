"""cluster.mesh, its parts, and node: what members make of each other, without sockets or waiting."""

import itertools
import math
import random

import pytest
from builds import compiled
from librt.strings import BytesWriter
from mesh_network import TIMEOUT_S, Network, cluster, message, payloads

from broker.core.effects import Ticket
from broker.core.owner import QueueOwner
from broker.core.rows import RowKind, pack_interest, pack_row
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage, WriteBatch
from cluster import commands as say
from cluster import forwards, frames, table_frames
from cluster.admission import INVITATIONS_MAX
from cluster.keys import JOIN
from cluster.mesh import Mesh, MeshSettings
from cluster.node import NodeCore
from cluster.peers import UNHEARD_S
from cluster.wire import NUMBER_MAX


def wish(topic_filter):
    """The row of a node's persistent wish, and its value."""
    return pack_row(RowKind.INTEREST, topic_filter), pack_interest(True)


def wish_delta(generation, version, topic_filter):
    row, value = wish(topic_filter)
    return table_frames.pack_table_delta(1, generation, version, [table_frames.pack_change(row, 0, value)])


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
    third.mesh.forward("node1@h", message(), ticket, network.now)
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
    hello = frames.Hello("new@h", b"n" * 16, 1, 0, 0, b"x", "new@h:1", 7, 9, False, False)
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
        wish_delta(1, 1, b"#"),
        forwards.pack_forwards(1, 1, 0, 0, True, False, b""),
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
    hello = frames.Hello("node3@h", nodes[2].store_id, 99 << 20, 2**60, 0, mesh.cluster_id, "x:1", 1, 1, False, True)
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


def test_a_malformed_frame_is_noted_once():
    network, nodes = cluster(count=2)
    connection = nodes[0].mesh.peers["node2@h"].connection
    nodes[0].mesh.take_notes()
    for _ in range(100):
        nodes[0].mesh.receive(say.FrameReceived("node2@h", connection, b"\x01\x04"), network.now)
    assert nodes[0].mesh.take_notes() == ["malformed frame from node2@h: short frame"]
    assert nodes[0].mesh.counters()["frames_malformed"] == 100


def every_frame(nodes):
    """One frame of each kind, as the first of the nodes could send it to the second."""
    mesh = nodes[0].mesh
    link = mesh.peers["node2@h"].outgoing
    own = mesh.membership.own()
    members = [mesh.membership.members[name] for name in sorted(mesh.membership.members)]
    hello = frames.Hello(
        own.name, own.store_id, own.incarnation, link.session, 1, mesh.cluster_id, "a:1", 1, 1, False, True
    )
    session = nodes[1].mesh.peers[own.name].outgoing.session
    tables = [frames.TablePosition(1, 1, 1, 5, 1), frames.TablePosition(2, 1, 1, 5, 1)]
    heartbeat = frames.Heartbeat(link.session, 2, 3, session, 1, True, 1, tables)
    entry = table_frames.pack_entry(*wish(b"a/#"))
    writer = BytesWriter()
    for each in (message(), message(b"", 0, 0)):
        forwards.pack_message(writer, each, b"client", own.store_id, 0.0)
    return [
        frames.pack_hello(hello),
        frames.pack_welcome(frames.Welcome(mesh.cluster_id, members, [("x@x", b"x" * 16)], [own.name])),
        frames.pack_refused(frames.Refusal.FINAL, "no"),
        frames.pack_heartbeat(heartbeat),
        frames.pack_members(members, []),
        wish_delta(1, 1, b"a/#"),
        table_frames.pack_table_request(table_frames.TableRequest(1, 1, 1020, [0] * 4)),
        table_frames.pack_table_rows(1, 1, 0, [table_frames.pack_piece(5, True, True, [entry])]),
        table_frames.pack_table_done(table_frames.TableDone(1, 1, 1, 1, 1, 1024)),
        frames.pack_positions(heartbeat.your_session, 0),
        frames.pack_link_ack(heartbeat.your_session, 0),
        forwards.pack_forwards(link.session, 1, 2, 0, True, False, writer.getvalue()),
    ]


def broken(rng, frame):
    """A frame with some of its bytes changed, cut out or doubled; often with the numbers that hurt most."""
    frame = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(2, len(frame) + 1) if len(frame) > 2 else 0
        size = rng.choice([1, 1, 2, 4, 8])
        choice = rng.random()
        if choice < 0.6:
            frame[at : at + size] = rng.choice([b"\xff", b"\0", b"\x7f", rng.randbytes(1)]) * size
        elif choice < 0.8:
            del frame[at : at + size]
        else:
            frame[at:at] = frame[at : at + rng.randint(1, 40)]
    return bytes(frame)


@pytest.mark.parametrize("seed", range(20))
def test_no_frame_crashes_who_receives_it(seed):
    rng = random.Random(seed)
    network, nodes = cluster(seed, count=3)
    mesh = nodes[1].mesh
    whole = every_frame(nodes)
    for _ in range(300):
        node = rng.choice([JOIN, "node1@h", "node1@h", "node1@h", "nobody@h"])
        connection = mesh.peers["node1@h"].connection if node == "node1@h" and "node1@h" in mesh.peers else b"join/x"
        connection = rng.choice([b"", b"another", connection, connection, connection, connection])
        mesh.receive(say.FrameReceived(node, connection, broken(rng, rng.choice(whole))), network.now)
        if rng.random() < 0.2:
            # What it made of the frame has to be packed, too.
            mesh.tick(network.now)
            for command in mesh.flush(WriteBatch(), network.now):
                assert command != say.Revoke(JOIN)
            network.now += 0.3
    mesh.validate()
    assert JOIN not in mesh.peers


def test_the_largest_numbers_that_a_peer_may_say_can_be_counted_on():
    network, nodes = cluster(count=2)
    mesh = nodes[1].mesh
    peer = mesh.peers["node1@h"]
    largest = NUMBER_MAX
    own = mesh.membership.own()
    rumour = frames.Member(own.name, own.store_id, largest, own.address, frames.State.DEAD)
    ours = peer.outgoing.session
    tables = [frames.TablePosition(table, 2**64 - 1, largest, 0, 2**64 - 1) for table in (1, 2)]
    heartbeat = frames.Heartbeat(2**64 - 1, 2**64 - 1, 2**64 - 1, ours, largest, True, 2**64 - 1, tables)
    for frame in (
        frames.pack_heartbeat(heartbeat),
        wish_delta(2**64 - 1, largest, b"a"),
        frames.pack_members([rumour], []),
        frames.pack_positions(ours, largest),
        forwards.pack_forwards(peer.incoming.session, largest, 0, 0, True, False, b""),
    ):
        mesh.receive(say.FrameReceived("node1@h", peer.connection, frame), network.now)
    mesh.forward("node1@h", message(), Ticket(1, 1, 0), network.now)
    for _ in range(3):
        network.now += TIMEOUT_S
        mesh.tick(network.now)
        assert mesh.flush(WriteBatch(), network.now)
    assert mesh.counters()["frames_malformed"] == 0
    assert mesh.membership.own().incarnation == largest + 1
    mesh.validate()


def test_a_node_that_calls_itself_join_can_not_take_the_join_key_away():
    network = Network()
    node = network.add("node1@h")
    hello = frames.Hello("join", b"n" * 16, 1, 0, 0, b"x", "new@h:1", 1, 1, False, False)
    node.mesh.receive(say.FrameReceived(JOIN, b"join/node1@h/1/x", frames.pack_hello(hello)), network.now)
    assert node.mesh.counters()["frames_malformed"] == 1
    assert not node.mesh.flush(WriteBatch(), network.now)


def test_invitations_are_bounded():
    network = Network()
    node = network.add("node1@h")
    for number in range(INVITATIONS_MAX + 1):
        hello = frames.Hello(f"n{number}@h", b"n" * 16, 1, 0, 0, b"x", "h:1", 1, 1, False, False)
        node.mesh.receive(say.FrameReceived(JOIN, b"%d" % number, frames.pack_hello(hello)), network.now)
    replies = [each for each in node.mesh.flush(WriteBatch(), network.now) if isinstance(each, say.Reply)]
    assert [each.frame[1] for each in replies] == [frames.FrameType.WELCOME] * INVITATIONS_MAX + [
        frames.FrameType.REFUSED
    ]
    assert frames.unpack_refused(replies[-1].frame).reason == frames.Refusal.BUSY


def test_forwards_that_can_not_be_read_are_not_asked_for_at_full_speed():
    network, nodes = cluster(count=2)
    network.run(1)
    broken_ones = 0

    def lose(command):
        nonlocal broken_ones
        is_forwards = isinstance(command, say.SendBulk) and command.frame[1] == frames.FrameType.FORWARDS
        if is_forwards and len(command.frame) > forwards.HEADER_BYTES:
            broken_ones += 1
            command = say.SendBulk(command.node, command.frame[:-1])
            network.lose = lambda command: False
            network.execute(nodes[0], command)
            network.lose = lose
            return True
        return False

    network.lose = lose
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    network.run(10)
    assert 2 <= broken_ones <= 11, "at most once a heartbeat"
    network.lose = lambda command: False
    assert network.run(5, lambda: payloads(nodes[1]) == [b"hi"])
    assert len(nodes[0].acknowledged) == 1


def test_messages_and_their_acknowledgements_make_nothing_due():
    """Reason: they come in every turn under load, and what is due costs something for every peer."""
    network, nodes = cluster(count=2)
    network.run(1)
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    due = [node.mesh.next_deadline() for node in nodes]
    for command in nodes[0].mesh.flush(WriteBatch(), network.now):
        if isinstance(command, say.SendBulk):
            nodes[1].mesh.receive(say.FrameReceived("node1@h", b"bulk", command.frame), network.now)
    connection = nodes[0].mesh.peers["node2@h"].connection
    for command in nodes[1].mesh.flush(WriteBatch(), network.now):
        if isinstance(command, say.SendControl) and command.frame[1] == frames.FrameType.LINK_ACK:
            nodes[0].mesh.receive(say.FrameReceived("node2@h", connection, command.frame), network.now)
    assert len(nodes[0].mesh.take_acknowledged()) == len(nodes[1].mesh.take_messages()) == 1
    assert [node.mesh.next_deadline() for node in nodes] == due
    assert min(due) > network.now - 0.01


def test_frames_of_an_old_connection_are_ignored():
    network, nodes = cluster()
    mesh = nodes[0].mesh
    delta = wish_delta(1, 1, b"ghost")
    mesh.receive(say.FrameReceived("node2@h", b"an older one", delta), network.now)
    assert mesh.counters()["frames_of_old_connections"] == 1
    assert mesh.interest.match(b"ghost") == []


@compiled
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


@compiled
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


NODES = "dns://nodes"


def looking(network, *numbers, known=None, **options):
    """Add nodes that look for each other by one name, which has the addresses of `known`."""
    network.names[NODES] = [f"node{number}@h:1" for number in known or numbers]
    return [network.add(f"node{number}@h", lookups=(NODES,), **options) for number in numbers]


@compiled
@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
@pytest.mark.parametrize("gap_s", [0.0, 0.05, 2.5])
def test_a_name_with_addresses_is_as_good_as_a_list_of_nodes(order, gap_s):
    for seed in range(3):
        network = Network(seed)
        for number in order:
            looking(network, number, known=(1, 2, 3))
            network.run(gap_s)
        assert network.run(30, network.one_cluster), f"seed {seed}: {[node.notes for node in network.nodes.values()]}"


def test_addresses_that_come_one_after_the_other_are_found():
    network = Network()
    network.names[NODES] = []
    network.add("node2@h", lookups=(NODES,))
    network.run(5)
    # The first node is not found by the name until it is there.
    network.names[NODES] = ["node2@h:1"]
    network.add("node1@h", lookups=(NODES,))
    assert network.run(10, network.one_cluster)
    network.names[NODES] = ["node2@h:1", "node1@h:1", "gone@h:1"]
    network.add("node3@h", lookups=(NODES,))
    assert network.run(20, network.one_cluster)
    # Members look for nobody.
    network.run(2)
    del network.names[NODES]
    network.run(10)
    assert [node.mesh.take_lookups() for node in network.nodes.values()] == [[], [], []]


@pytest.mark.parametrize("answer", ["None", "no answer"])
def test_while_nobody_can_say_what_a_name_has_nobody_founds_a_cluster(answer):
    network = Network()
    looking(network, 1, 2)
    network.names[NODES] = None
    if answer == "no answer":
        del network.names[NODES]
    assert not network.run(20, network.one_cluster)
    network.names[NODES] = ["node1@h:1", "node2@h:1"]
    assert network.run(30, network.one_cluster)


def test_names_and_nodes_can_be_looked_for_together():
    network = Network()
    network.add("node3@h")
    network.names[NODES] = ["node3@h:1"]
    network.add("node1@h", ["node2@h"], lookups=(NODES,))
    network.add("node2@h", ["node1@h"])
    assert network.run(30, network.one_cluster)


def test_an_operator_joins_while_a_name_is_looked_up():
    network = Network()
    network.add("node1@h")
    network.add("node2@h", lookups=("dns://nobody answers",))
    network.run(1)
    assert network.join("node2@h", "node1@h").joined


@pytest.mark.parametrize(("oldest", "newest", "fits"), [(2, 3, False), (0, 0, False), (1, 3, True), (0, 1, True)])
def test_a_node_that_speaks_no_version_of_ours_is_told_so(oldest, newest, fits):
    network = Network()
    node = network.add("node1@h")
    hello = frames.Hello("new@h", b"n" * 16, 1, 0, 0, b"x", "new@h:1", oldest, newest, False, False)
    # A newer program's Hello is read, whatever the version of its frames, and whatever it has behind what is known.
    frame = frames.pack_hello(hello) if newest < 2 else b"\x02" + frames.pack_hello(hello)[1:] + b"more"
    node.mesh.receive(say.FrameReceived(JOIN, b"join/node1@h/1/x", frame), network.now)
    (reply,) = [each for each in node.mesh.flush(WriteBatch(), network.now) if isinstance(each, say.Reply)]
    if fits:
        assert frames.unpack_welcome(reply.frame).running == ["node1@h"]
    else:
        refused = frames.unpack_refused(reply.frame)
        assert refused.reason == frames.Refusal.FINAL
        assert refused.text == (
            f"new@h speaks mesh versions {oldest} to {newest}, node1@h speaks 1 to 1: no version in common"
        )


def test_an_operator_hears_that_the_other_node_speaks_another_version():
    network = Network()
    network.add("node1@h")
    joiner = network.add("node2@h")
    network.lose = lambda command: isinstance(command, say.Reply)
    joiner.mesh.join("node1@h", "node1@h:1", network.now)
    network.run(0.5)
    joiner.mesh.receive(say.FrameReceived(JOIN, b"", b"\x02" + frames.pack_refused(frames.Refusal.FINAL, "")[1:]), 0.0)
    result = joiner.mesh.take_join_result()
    assert not result.joined
    assert result.text == ("node1@h refused: it speaks version 2 of the protocol, this node speaks version 1")


def test_the_join_key_gets_a_name_and_nothing_else():
    network = Network()
    node = network.add("node1@h")
    node.mesh.receive(say.FrameReceived(JOIN, b"join/node1@h/1/x", frames.pack_who()), network.now)
    replies = [each for each in node.mesh.flush(WriteBatch(), network.now) if isinstance(each, say.Reply)]
    assert [frames.unpack_name(each.frame) for each in replies] == ["node1@h"]
    node.mesh.receive(say.FrameReceived(JOIN, b"join/node1@h/1/x", frames.pack_who() + b"x"), network.now)
    assert node.mesh.counters()["frames_of_strangers"] == 1


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
    hello = frames.Hello("new@h", b"n" * 16, 1, 0, 0, b"x", "new@h:1", 1, 1, False, False)
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


def test_a_member_that_is_connected_but_not_known_introduces_itself_again():
    """Reason: its key was admitted by an invitation that ended after its handshake, and nobody refuses the key."""
    network = Network()
    first, second = network.add("node1@h"), network.add("node2@h")
    network.lose = lambda command: isinstance(command, say.SendControl)
    second.mesh.join("node1@h", "node1@h:1", network.now)
    assert network.run(25, lambda: "node2@h" not in first.admitted and "node1@h" in second.connected)
    assert first.mesh.membership.alone()
    network.lose = lambda command: False
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


def test_a_node_that_is_called_only_when_something_is_due_declares_death_in_time():
    network, nodes = cluster(count=2)
    mesh = nodes[0].mesh
    mesh.receive(say.PeerDisconnected("node2@h"), network.now)
    end = network.now + TIMEOUT_S
    while nodes[0].running() == ["node1@h", "node2@h"]:
        mesh.tick(network.now)
        assert mesh.next_deadline() > network.now
        network.now = mesh.next_deadline()
    assert network.now == math.inf
    assert nodes[0].mesh.peers["node2@h"].liveness.deadline() == math.inf
    assert mesh._ticked_at == pytest.approx(end)


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
    drop = {
        frames.FrameType.TABLE_DELTA,
        frames.FrameType.TABLE_REQUEST,
        frames.FrameType.TABLE_ROWS,
        frames.FrameType.TABLE_DONE,
    }
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


def test_a_long_answer_is_not_asked_for_again_while_it_arrives():
    network, nodes = cluster(count=2)
    mesh = nodes[0].mesh
    connection = mesh.peers["node2@h"].connection
    there = [frames.TablePosition(1, 9, 1, 1, 0)]
    heartbeat = frames.pack_heartbeat(frames.Heartbeat(1, 0, 0, 0, 0, True, 0, there))
    before = mesh.counters()["table_requests"]
    for part in range(30):
        network.now += 0.5
        entry = table_frames.pack_entry(*wish(b"%d" % part))
        rows = table_frames.pack_table_rows(1, 1, part, [table_frames.pack_piece(1, part == 0, False, [entry])])
        mesh.receive(say.FrameReceived("node2@h", connection, rows), network.now)
        mesh.receive(say.FrameReceived("node2@h", connection, heartbeat), network.now)
    assert mesh.counters()["table_requests"] == before
    network.now += TIMEOUT_S
    mesh.receive(say.FrameReceived("node2@h", connection, heartbeat), network.now)
    assert mesh.counters()["table_requests"] == before + 1


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
        nodes[0].mesh.forward("node2@h", message(sent[-1]), tickets[-1], network.now)
        network.run(0.02)
        if number % 30 == 29:
            network.cut.add(frozenset(("node1@h", "node2@h")))
            network.run(1)
            network.cut.clear()
    assert network.run(60, lambda: payloads(nodes[1]) == sent and nodes[0].acknowledged == tickets)


def test_a_forward_for_a_peer_that_is_down_is_acknowledged_at_once_and_waits_on_disk():
    network, nodes = cluster(count=2)
    network.kill("node2@h")
    network.run(10)
    ticket = Ticket(1, 1, 0)
    nodes[0].mesh.forward("node2@h", message(b"kept"), ticket, network.now)
    nodes[0].mesh.forward("node2@h", message(b"gone", qos=0), None, network.now)
    nodes[0].mesh.forward("node2@h", message(b"gone"), None, network.now, False)
    network.run(0.02)
    assert nodes[0].acknowledged == [ticket]
    counted = nodes[0].mesh.counters()
    assert counted["link_drop_not_running"] == counted["link_drop_not_running{node=node2@h}"] == 2
    (view,) = [view for view in nodes[0].mesh.members_view() if view.name == "node2@h"]
    assert view.outbox_messages == 1
    # What the peer's wishes were confirmed by stands before it.
    assert view.link_bytes_pending > view.outbox_bytes > 0
    network.kill("node1@h")
    nodes[0].start()
    nodes[1].start()
    assert network.run(5, lambda: payloads(nodes[1]) == [b"kept"])
    assert network.run(5, lambda: not nodes[0].storage.snapshot()["outbox"])


def test_the_outbox_of_a_member_that_was_removed_is_told_of_and_waits():
    network, nodes = cluster(count=2)
    network.kill("node2@h")
    network.run(10)
    ticket = Ticket(1, 1, 0)
    nodes[0].mesh.forward("node2@h", message(b"kept"), ticket, network.now)
    network.run(0.02)
    nodes[0].mesh.remove("node2@h", network.now)
    network.run(0.1)
    assert "node2@h" not in nodes[0].mesh.peers
    assert nodes[0].acknowledged == [ticket]
    assert nodes[0].mesh.counters()["outbox_left"] == 1
    assert any("1 messages for node2@h" in note for note in nodes[0].notes)
    assert len(nodes[0].storage.snapshot()["outbox"]) == 1


def test_nobody_is_removed_while_the_store_takes_no_writes():
    network, nodes = cluster(count=3)
    for name in ("node2@h", "node3@h"):
        network.kill(name)
    network.run(10)
    mesh = nodes[0].mesh
    mesh._peers.merge([], [("node2@h", nodes[1].store_id)], network.now)
    network.run(1)
    mesh.freeze(True)
    network.run(UNHEARD_S + 1)
    assert "node2@h" in mesh.peers
    assert mesh.next_deadline() > network.now, "it does not turn all the time"
    mesh.freeze(False)
    network.run(0.1)
    assert "node2@h" not in mesh.peers


def test_a_peer_that_acknowledges_nothing_costs_no_publisher_more_than_its_time():
    network, nodes = cluster(count=2)
    network.run(1)
    network.cut.add(frozenset(("node1@h", "node2@h")))
    ticket = Ticket(1, 1, 0)
    nodes[0].mesh.forward("node2@h", message(), ticket, network.now)
    assert nodes[0].mesh.next_deadline() <= network.now + 0.2
    network.run(0.15)
    assert nodes[0].acknowledged == []
    network.run(0.1)
    assert nodes[0].acknowledged == [ticket]
    assert nodes[0].mesh.counters()["link_spills"] == 1
    network.cut.clear()
    assert network.run(5, lambda: payloads(nodes[1]) == [b"hi"])
    assert network.run(5, lambda: not nodes[0].storage.snapshot()["outbox"])


def test_a_node_that_stood_still_listens_before_it_spills():
    network, nodes = cluster(count=2)
    network.run(1)
    mesh = nodes[0].mesh
    mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    for late_s, spills in ((1.5, 0), (0.15, 0), (0.1, 1)):
        network.now += late_s
        mesh.tick(network.now)
        assert mesh.counters()["link_spills"] == spills


def test_a_frozen_node_spills_nothing_and_gives_its_peers_their_time_afterwards():
    network, nodes = cluster(count=2)
    network.run(1)
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    nodes[0].mesh.freeze(True)
    network.run(2)
    nodes[0].mesh.freeze(False)
    assert nodes[0].acknowledged == []
    assert network.run(0.15, lambda: len(nodes[0].acknowledged) == 1)
    assert nodes[0].mesh.counters()["link_spills"] == 0


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
    before = nodes[1].mesh.peers["node1@h"].incoming.position
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    for command in nodes[0].mesh.flush(WriteBatch(), network.now):
        if isinstance(command, say.SendBulk):
            nodes[1].mesh.receive(say.FrameReceived("node1@h", b"bulk", command.frame), network.now)
    batch = WriteBatch()
    commands = nodes[1].mesh.flush(batch, network.now)
    sent = [command.frame for command in commands if isinstance(command, say.SendControl)]
    acks = [frame for frame in sent if frame[1] == frames.FrameType.LINK_ACK]
    position = before + 1
    assert [frames.unpack_position(frame).position for frame in acks] == [position]
    assert batch.operations == [(0, "meta", b"position/" + nodes[0].store_id, b"\x01" + position.to_bytes(8, "big"))]


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


def test_a_frozen_node_lives_on_and_acknowledges_nothing():
    network, nodes = cluster(count=2)
    network.run(1)
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    assert network.run(5, lambda: payloads(nodes[1]) == [b"hi"])
    # The commit of this turn fails: what it has to say waits.
    waiting = nodes[1].mesh.flush(WriteBatch(), network.now)
    nodes[1].mesh.freeze(True)
    network.run(4 * TIMEOUT_S)
    outbox = nodes[0].mesh.peers["node2@h"].outgoing.outbox
    assert outbox.messages == 1
    assert network.one_cluster()
    nodes[1].mesh.freeze(False)
    for command in waiting:
        network.execute(nodes[1], command)
    assert network.run(5, lambda: outbox.messages == 0)
    assert payloads(nodes[1]) == [b"hi"]


def test_a_frozen_node_forwards_nothing_and_everything_afterwards():
    network, nodes = cluster(count=2)
    network.run(1)
    nodes[1].mesh.freeze(True)
    for number in range(3):
        nodes[1].mesh.forward("node1@h", message(payload=b"%d" % number), None, network.now)
    network.run(4 * TIMEOUT_S)
    assert payloads(nodes[0]) == []
    nodes[1].mesh.freeze(False)
    assert network.run(5, lambda: payloads(nodes[0]) == [b"0", b"1", b"2"])


def test_what_a_frozen_node_did_not_hear_is_told_again():
    network, nodes = cluster()
    network.run(1)
    nodes[1].mesh.freeze(True)
    nodes[0].wish(b"a/b", persistent=True)
    nodes[0].mesh.forward("node2@h", message(), Ticket(1, 1, 0), network.now)
    network.run(1)
    # Its connections break, too.
    network.cut.add(frozenset(("node1@h", "node2@h")))
    network.run(1)
    network.cut.clear()
    network.run(2 * TIMEOUT_S)
    assert nodes[1].mesh.interest.match(b"a/b") == []
    nodes[1].mesh.freeze(False)
    assert network.run(2 * TIMEOUT_S, lambda: nodes[1].mesh.interest.match(b"a/b") == [("node1@h", True)])
    assert network.run(2 * TIMEOUT_S, lambda: len(nodes[0].acknowledged) == 1 and network.one_cluster())
    assert payloads(nodes[1]) == [b"hi"]
