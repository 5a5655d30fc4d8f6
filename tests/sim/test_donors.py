"""Donors, in the simulator: what a removed node still has comes to its sessions, once and in front."""

from math import isfinite

import checkers
import pytest
from builds import compiled
from leave_world import TOPIC, LeaveWorld, heard_by, outbox_messages
from virtual_clients import ONLINE, Client

from broker.core.storage import WriteBatch
from cluster.arrivals import GONE_S, REMOVED_S
from cluster.donor import become_donor
from cluster.frames import FrameType
from cluster.leaving_session import RETRY_S
from cluster.mesh_store import forget_cluster
from cluster.move_frames import CONFIRMED

# When a donor comes of whose sessions nobody remembers what came directly.
LATE_S = REMOVED_S + GONE_S + 2.0


@pytest.mark.parametrize("seed", range(4))
def test_the_queues_of_a_removed_node_are_recovered_in_front_and_not_doubled(seed):
    test = LeaveWorld(seed=300 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 12, qos=1 + seed % 2)
    publisher = test.publisher(one)
    test.publish(publisher, clients, 3, qos=1 + seed % 2)
    test.crash(node)
    assert test.leave_and_wait(one, node).exit_code == 0
    test.publish(publisher, clients, 2, qos=1 + seed % 2)
    # One has a life of its own by now, and one is over.
    back, over = clients[0], clients[1]
    test.come_back([back], [two])
    over.home = one
    over.connect(True)
    test.wait(lambda: over.state == "online", "a clean start")
    over.persistent = False
    over.disconnect(False)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    if seed % 2:
        test.crash_later(node, 0.3 + 0.1 * seed)
        test.world.run(3.0)
        if not node.up and node.name not in test.gone:
            node.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.end_crashes()
    test.wait(test.whole, "the rest of the cluster")
    test.come_back(clients[2:], [one, two])
    test.judge(clients[2:])
    # What it heard before came before what was recovered.
    assert len(back.inbox.arrivals) == 5 == len(back.inbox.copies)


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_session_took_from_a_removed_node_it_does_not_take_from_the_donor(qos):
    """The node brought it from an older home, and never heard that the next one has it."""
    test = LeaveWorld(seed=550 + qos)
    node, one, two = test.nodes
    clients = test.make_sessions(one, 8, qos=qos)
    publisher = test.publisher(two)
    test.publish(publisher, clients, 30, qos=qos)
    for client in clients:
        client.inbox.ack_delay_s = 3.0
    for home in (node, two):
        if home is two:
            test.lose(FrameType.MOVE_ACK)
        for client in clients:
            client.home = home
            client.come_back()
            client.comes_back = False
        test.wait(lambda: all(client.state == ONLINE for client in clients), "the move")
        test.world.run(1.0)
        for client in clients:
            client.disconnect(False)
        test.world.run(1.0)
    assert len(node.core.owner.transfers.departures) == len(clients)
    test.crash(node)
    test.lose()
    assert test.leave_and_wait(one, node).exit_code == 0
    for client in clients:
        client.inbox.ack_delay_s = 0.0
        client.come_back()
    test.wait(lambda: set(test.queued(two).values()) == {0}, "all that there is")
    test.donate(node)
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("seed", range(6))
def test_what_was_rerouted_is_not_recovered_once_more(seed):
    """The node that dies has the messages in its store, and the others never heard so.

    The homes after the next one do not know what the client got there.
    """
    test = LeaveWorld(seed=600 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 8, qos=1 + seed % 2)
    publisher = test.publisher(one)
    test.publish(publisher, clients, 2, qos=1 + seed % 2)
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.publish(publisher, clients, 3, qos=1 + seed % 2)
    test.world.run(0.2)
    assert set(test.queued(node).values()) == {5}
    assert sum(view.outbox_messages for view in one.core.members_view()) >= 24
    node.kill()
    # What it had said before must not arrive after all.
    test.world.run(1.0)
    test.lose()
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.world.run(15.0)
    if seed < 2:
        test.come_back(clients, [one, two])
        assert all(3 <= len(client.inbox.copies) <= 5 for client in clients)
    if seed >= 4:
        test.visit(clients, two)
        test.visit(clients, one)
    test.donate(node)
    test.come_back(clients, [one, two])
    for client in clients:
        assert len(client.inbox.copies) == 5 and set(client.inbox.copies.values()) == {1}


@pytest.mark.parametrize("later_s", [0.0, REMOVED_S + GONE_S + 2.0])
@pytest.mark.parametrize("moves", [False, True])
def test_what_was_sent_to_a_removed_node_as_well_is_not_given_by_the_donor(moves, later_s):
    """Who published it had heard of the session's new home, and not yet of the removal.

    The new home remembers after a restart what came directly, or the home after it (seed 14417), whenever the donor
    comes (seed 9832).
    """
    test = LeaveWorld(seed=652)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.isolate(one)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.lose(FrameType.MEMBERS)
    test.world.network.heal(one.name, two.name)
    test.wait(lambda: len(set(two.core.mesh.interest.persistent_filters(one.name))) == 3, "the news of the new home")
    test.world.run(1.0)
    test.publish(publisher, clients, 3, qos=2)
    names = [client.name for client in clients]
    test.wait(lambda: all(test.queued(home) == dict.fromkeys(names, 3) for home in (node, one)), "the messages")
    test.lose()
    test.wait(lambda: node.name in test.gone and node.name not in two.core.mesh.peers, "the news of its removal")
    test.world.network.heal_all()
    test.restart(one, publisher)
    test.wait(lambda: one.core.mesh.is_complete(), "the rest of the cluster")
    test.world.run(GONE_S + 1.0)
    if moves:
        test.visit(clients, two)
    test.world.run(later_s)
    assert bool(later_s) != bool((two if moves else one).core.owner.transfers.arriving())
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_a_stub_took_without_a_cut_is_not_given_by_a_late_donor(restarts):
    """It came to the session's next home after the session had gone on, and to the removed one as well (seed 2657).

    The home that has it from the stub knows that by the ids alone, after a restart as well.
    """
    test = LeaveWorld(seed=653)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.isolate(one)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    is_mark = bytes((CONFIRMED,)) + one.store_id
    kinds = [FrameType.MEMBERS]
    test.world.network.lose_frame = lambda frame: (
        frame[1] in kinds or (frame[1] == FrameType.FORWARDS and is_mark in frame)
    )
    test.world.network.heal(one.name, two.name)
    test.wait(lambda: len(set(two.core.mesh.interest.persistent_filters(one.name))) == 3, "the news of the new home")
    test.world.run(1.0)
    test.publish(publisher, clients, 3, qos=2)
    names = [client.name for client in clients]
    test.wait(lambda: test.queued(node) == dict.fromkeys(names, 3), "the messages")
    assert test.queued(one) == dict.fromkeys(names, 0)
    kinds.clear()
    test.wait(lambda: node.name in test.gone and node.name not in two.core.mesh.peers, "the news of its removal")
    test.world.network.heal_all()
    test.visit(clients, two)
    assert set(one.core.owner.transfers.departures) == set(names) and not any(heard_by(*clients))
    test.lose()
    test.wait(lambda: len(heard_by(*clients)) + sum(test.queued(two).values()) == 9, "what was on its way")
    test.come_back(clients, [two])
    test.wait(lambda: not two.core.owner.transfers.arriving(), "the end of the arrivals")
    if restarts:
        test.restart(two, publisher)
        test.wait(lambda: not two.core.owner.transfers.arriving(), "the end of the arrivals once more")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two])
    test.judge(clients)


def test_what_a_removed_node_had_sent_is_not_sent_by_the_donor():
    """It died before it had the answer, and has it in its outbox."""
    test = LeaveWorld(seed=650)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 3, qos=2, online=True)
    publisher = test.publisher(node)
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 2)
    test.wait(lambda: all(client.inbox.copies for client in clients), "the messages")
    node.kill()
    test.world.run(1.0)
    test.lose()
    assert node.storage.snapshot()["outbox"]
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    test.donate(node)
    test.world.run(1.0)
    for client in clients:
        assert list(client.inbox.copies.values()) == [1]


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_in_flight_at_a_removed_node_is_not_given_by_the_donor_after_others(qos, reads):
    """The node died before its client heard of that, or had the answer; nothing of it is remembered (seed 22138).

    A packet id that the client may hold is released all the same.
    """
    test = LeaveWorld(seed=655)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1, qos=qos, online=True)[0]
    publisher = test.publisher(one)
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    client.inbox.ack_delay_s = 60.0
    if not reads:
        client.inbox.stop_reading()
    test.publish(publisher, [client], 3, qos=qos)
    test.world.run(0.1)
    assert len(node.core.owner.session(client.name).inflight) == 3
    client.comes_back = False
    node.kill()
    test.world.run(1.0)
    test.lose()
    client.inbox.ack_delay_s = 0.0
    assert len(client.inbox.arrivals) == 3 * reads
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.come_back([client], [two])
    test.world.run(REMOVED_S + 1.0)
    assert not two.core.owner.transfers.arriving()
    test.donate(node)
    test.come_back([client], [two])
    test.world.run(1.0)
    assert len(client.inbox.copies) == 3
    assert len(client.inbox.arrivals) == 3 + 3 * reads
    assert not client.inbox.received


def test_what_a_session_brought_along_is_recovered_though_who_published_it_gives_it_to_others():
    """It is unacknowledged on the way to the node that is removed, whose session it was not for, and heard of by none.

    Who published it has not heard of that session, and gives it only to another one that was there.
    """
    test = LeaveWorld(seed=660, max_inflight_messages=1)
    node, one, two = test.nodes
    settled = test.make_sessions(node, 1, qos=2)[0]
    roamer = Client(test.world, test.ledger, "roamer", two, 4, True, {TOPIC % 0: 2})
    test.clients.append(roamer)
    roamer.connect()
    test.wait(lambda: test.known(two, [roamer]), "its interest")
    roamer.comes_back = False
    roamer.disconnect(False)
    publisher = test.publisher(one)
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    for _ in range(3):
        publisher.publish(TOPIC % 0, 2)
    test.wait(publisher.is_idle, "the acknowledgements")
    test.wait(lambda: test.queued(two) == {"roamer": 3} and test.queued(node) == {settled.name: 3}, "the messages")
    test.crash(one)
    test.lose()
    roamer.home = node
    roamer.inbox.ack_delay_s = 60.0
    roamer.come_back()
    test.wait(lambda: test.queued(node).get("roamer") == 3 and roamer.inbox.arrivals, "its move")
    roamer.comes_back = False
    roamer.disconnect(False)
    test.world.run(0.5)
    assert not two.core.owner.transfers.departures["roamer"].session.queue
    test.crash(node)
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    test.donate(node)
    roamer.inbox.ack_delay_s = 0.0
    test.come_back([settled, roamer], [two])
    assert len(settled.inbox.copies) == len(roamer.inbox.copies) == 3


def test_what_a_session_took_from_a_home_that_goes_on_with_it_is_recovered():
    """The new home hears that an older one had it directly, and did not hear which one that gave it to.

    A donor's sessions are older than all others. It was a home after the one from which it has that.
    """
    test = LeaveWorld(seed=670)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 3)
    publisher = test.publisher(one)
    test.crash(two)
    test.visit(clients, one)
    test.publish(publisher, clients, 3)
    test.cut_off(node, one)
    test.visit(clients, node)
    test.world.network.heal(node.name, one.name)
    test.wait(lambda: test.queued(node) == {client.name: 3 for client in clients}, "the messages")
    # What waits for who is down keeps them.
    assert len(one.core.owner.transfers.departures) == len(clients)
    test.crash(node)
    two.start()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.donate(node)
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_a_removed_node_took_has_other_places_than_what_comes_to_its_old_home_since():
    """A still older home offers what it has under the epoch by which the stub there was the home (seed 354)."""
    test = LeaveWorld(seed=671, max_inflight_messages=1)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 6)
    publisher = test.publisher(one)
    test.crash(two)
    test.visit(clients, one)
    test.publish(publisher, clients, 3)
    # Nobody else hears that they are there.
    test.lose(FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    for client in clients:
        _move(test, client, node)
    assert test.queued(node) == {client.name: 3 for client in clients}
    test.crash(node)
    test.lose()
    two.start()
    test.wait(test.whole, "the rest of the cluster")
    # The turns of some clients are to be granted by the node that was started.
    test.lose(FrameType.TURN_GRANT)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.publish(publisher, clients, 3)
    test.lose()
    test.wait(lambda: len(test.queued(one)) == len(clients), "the sessions")
    # Else it would go on with what it has itself of what was in flight at the removed node.
    test.wait(lambda: not two.core.owner.transfers.departures, "what the older home has")
    test.visit(clients, two)
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two])
    assert all(list(client.inbox.copies.values()) == [1] * 6 for client in clients)


def test_what_a_donor_has_is_kept_apart_from_what_its_rival_gave():
    """Both were homes of one epoch counter, in two halves of a partition, and the session of the other one went on."""
    test = LeaveWorld(seed=675)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 3)
    test.isolate(node)
    for home in (node, one):
        test.visit(clients, home)
        test.publish(test.publisher(home, f"publisher of {home.name}"), clients, 3)
    node.kill()
    for other in (one, two):
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(one, node).exit_code == 0
    for client in clients:
        client.home = two
        client.come_back()
    test.wait(lambda: all(len(client.inbox.copies) == 3 for client in clients), "what one home had")
    test.donate(node)
    test.wait(lambda: all(len(client.inbox.copies) == 6 for client in clients), "what the other had")
    assert all(set(client.inbox.copies.values()) == {1} for client in clients)


def test_what_a_donor_has_is_kept_apart_from_what_waits_of_a_rival_that_is_over():
    """The session's home has forgotten from where it has what waits."""
    test = LeaveWorld(seed=676, count=4)
    node, one, two, three = test.nodes
    clients = test.make_sessions(two, 3)
    test.isolate(node)
    for home in (node, one):
        test.visit(clients, home)
        test.publish(test.publisher(home, f"publisher of {home.name}"), clients, 3)
    node.kill()
    for other in (one, two, three):
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(one, node).exit_code == 0
    assert test.leave_and_wait(two, one, targets=(three.name,), force=True).exit_code == 0
    assert test.queued(three) == {client.name: 3 for client in clients}
    test.wait(lambda: not three.core.owner.transfers.arriving(), "the end of the moves")
    test.donate(node)
    test.come_back(clients, [three])
    assert all(list(client.inbox.copies.values()) == [1] * 6 for client in clients)


def test_what_a_removed_node_had_is_recovered_though_an_older_message_to_a_group_is_given_to_others():
    """That was taken back from another node that had died, and sent behind what is acknowledged."""
    test = LeaveWorld(seed=680)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2)
    workers = [
        Client(test.world, test.ledger, f"worker {home.name}", home, 4, True, wanted)
        for home, wanted in ((two, {b"$share/crew/x": 2}), (node, {}))
    ]
    workers[0].connect()
    test.wait(lambda: one.core.mesh.interest.group(b"$share/crew/x") is not None, "a group")
    publisher = test.publisher(one)
    two.kill()
    publisher.publish(b"x", 2)
    test.wait(publisher.is_idle, "the acknowledgement")
    test.wait(lambda: not one.core.mesh.peers[two.name].running, "the notice of its death")
    test.publish(publisher, clients, 3)
    # Without heartbeats the keeper of its client id might never know that it may grant the turn.
    workers[1].connect()
    test.wait(lambda: workers[1].state == ONLINE, "another worker")
    workers[1].comes_back = False
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    workers[1].subscribe(b"$share/crew/x", 2)
    test.wait(lambda: workers[1].inbox.copies, "what was taken back")
    test.crash(node)
    test.lose()
    assert one.core.members_view()[0].outbox_messages == 1
    # It would take that back once more if the other member of the group were there before the node is removed.
    one.kill()
    two.start()
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    test.donate(node)
    test.come_back(clients, [one, two])
    test.judge(clients)


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_a_donor_has_is_not_for_a_session_that_ends_with_its_connection(is_killed):
    """Its home hears that the donor has an older one when that is offered, before it knows the donor's rows."""
    test = LeaveWorld(seed=680)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1)[0]
    publisher = test.publisher(two)
    test.publish(publisher, [client], 3)
    test.crash(node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    client.home = one
    client.persistent = False
    client.comes_back = True
    client.connect(True)
    test.wait(lambda: client.subscribed, "a new session")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    rows = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    arrives = test.world.network.frame_arrives

    def unless_of_donor(receiver, sender, connection, frame):
        if sender != node.name or frame[1] not in rows:
            arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_of_donor
    test.recover(node)
    test.world.run(5.0)
    if is_killed:
        one.kill()
        one.start()
        test.wait(lambda: client.subscribed, "a new session")
    test.world.network.frame_arrives = arrives
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.world.run(1.0)
    assert not client.inbox.copies


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("late", ["nothing", "rows", "messages"])
def test_what_a_donor_has_for_a_session_and_for_its_new_home_comes_to_the_session_once(late, crashes):
    """It is on its way to others at the new home, where nothing is remembered of the old one by then.

    So it is if the client had it there. What the session wants since it is here is not for it, as it was published when
    only the others wanted that; nor is anything for one that began anew here.
    """
    test = LeaveWorld(seed=690)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1, qos=2)[0]
    anew = Client(test.world, test.ledger, "anew", node, 4, True, {TOPIC % 0: 2})
    settled = Client(test.world, test.ledger, "settled", node, 4, True, {TOPIC % 0: 2})
    others = [Client(test.world, test.ledger, f"other{each}", one, 4, True, {TOPIC % each: 2}) for each in (0, 1)]
    for each in (settled, anew, *others):
        each.connect()
    test.wait(lambda: test.known(one, others) and test.known(node, [settled]), "their interest")
    anew.comes_back = False
    anew.disconnect(False)
    publisher = test.publisher(node)
    test.isolate(node)
    for topic in (TOPIC % 0, TOPIC % 1):
        for _ in range(3):
            publisher.publish(topic, 2)
    test.wait(lambda: publisher.is_idle() and len(settled.inbox.copies) == 3, "the acknowledgements")
    assert len(node.core.owner.session(client.name).queue) == 3
    test.world.run(0.5)
    settled.disconnect(False)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    for each in (client, settled):
        each.home = one
        each.come_back()
    test.wait(lambda: client.state == settled.state == ONLINE, "their new home")
    client.subscribe(TOPIC % 1, 2)
    anew.home = one
    anew.persistent = False
    anew.connect(True)
    test.wait(lambda: TOPIC % 1 in client.subscribed and anew.subscribed, "more interest")
    for other in (one, two):
        test.world.network.heal(node.name, other.name)
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.world.run(REMOVED_S + 1.0)
    assert not one.core.owner.transfers.arriving()
    test.recover(node)
    rows = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    lost = {
        "nothing": lambda frame: False,
        "rows": lambda frame: frame[1] in rows,
        "messages": lambda frame: frame[1] == FrameType.MOVE and TOPIC[:-2] in frame,
    }
    test.world.network.lose_frame = lost[late]
    test.world.later(5.0, setattr, test.world.network, "lose_frame", None)
    if crashes:
        test.wait(lambda: node.name in one.core.mesh.peers, "its return")
        test.world.run(0.5)
        for each in (node, one):
            each.kill()
            each.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.world.run(1.0)
    for each, count in ((client, 3), (settled, 3), (others[0], 3), (others[1], 3), (anew, 0)):
        assert list(each.inbox.copies.values()) == [1] * count, each.name


@pytest.mark.parametrize("crashes", [False, True])
def test_what_a_donor_has_for_others_is_not_for_a_session_that_came_to_their_node_since(crashes):
    """That had the same at its old home. Its new one forgets what came to it when the donor was a member."""
    test = LeaveWorld(seed=695)
    node, one, two = test.nodes
    clients, publisher = _want_the_same(test, one, two)
    roamer, other = clients
    test.cut_off(node, two)
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(one) == {"roamer": 3}, "the messages")
    _remove(test, node, one)
    test.visit([roamer], two)
    assert list(roamer.inbox.copies.values()) == [1] * 3
    test.world.run(REMOVED_S + 1.0)
    assert not two.core.owner.transfers.arriving()
    test.donate(node, two if crashes else None)
    test.come_back(clients, [two])
    for client in (roamer, other):
        assert list(client.inbox.copies.values()) == [1] * 3, client.name


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("waits_s", [0.0, REMOVED_S + 1.0])
@pytest.mark.parametrize("moves", ["never", "before", "after"])
def test_what_a_donor_has_for_a_session_comes_to_where_that_is_by_now(moves, waits_s, crashes):
    """It moves before its old home hears that the donor is removed, or after that, or not at all.

    It comes behind what had come directly before the donor was cut off.
    """
    test = LeaveWorld(seed=696)
    node, one, two = test.nodes
    clients, publisher = _want_the_same(test, two, one)
    roamer = clients[0]
    test.publish(publisher, clients[:1], 2, qos=2)
    test.wait(lambda: test.queued(two) == {"roamer": 2}, "the first messages")
    test.cut_off(node, two)
    if moves == "before":
        test.cut_off(node, one)
        test.world.network.heal(node.name, one.name)
        test.wait(lambda: node.core.mesh.peers[one.name].running, "its return")
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(one)["other"] == 5, "the messages")
    home = two if moves == "never" else one
    if moves == "before":
        test.cut_off(node, one)
        _move(test, roamer, one)
    _remove(test, node, one)
    if moves == "after":
        _move(test, roamer, one)
    assert test.queued(home)["roamer"] == 2
    test.world.run(waits_s)
    test.donate(node, home if crashes else None)
    test.come_back(clients, [home])
    test.judge(clients)


def test_what_a_donor_has_for_a_session_that_had_just_come_when_it_was_cut_off_comes_there():
    """The new home knows that it was to get that directly, and from nowhere else.

    The donor has it for the old home as well, for another session there and for the stub that had to wait for it.
    """
    test = LeaveWorld(seed=697)
    node, one, two = test.nodes
    clients, publisher = _want_the_same(test, one, one)
    roamer = clients[0]
    test.cut_off(node, one)
    test.visit([roamer], two)
    test.cut_off(node, two)
    test.publish(publisher, clients[:1], 3, qos=2)
    _remove(test, node, one)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    assert node.store_id in two.core.owner.session("roamer").arrival.cuts.numbers
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two])
    for client in clients:
        assert list(client.inbox.copies.values()) == [1] * 3, client.name


@pytest.mark.parametrize("gives_first", [True, False])
@pytest.mark.parametrize("at", ["its new home", "the donor"])
def test_what_came_to_a_stub_that_waits_for_a_member_which_is_down_is_not_given_by_the_donor(at, gives_first):
    """Another client's session at the old home wants the same, and the new home has all directly (seed 1390)."""
    test, clients, publisher = _stub_that_waits(at)
    node, one, two = test.nodes
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(node) == {"other": 3} and test.queued(one) == {"roamer": 3}, "the messages")
    if gives_first:
        test.world.run(2 * RETRY_S)
    test.isolate(node)
    two.start()
    test.wait(lambda: one.core.mesh.peers[two.name].running, "its return")
    _remove(test, node, one)
    test.world.run(LATE_S)
    assert not one.core.owner.transfers.arriving()
    test.donate(node)
    test.come_back(clients, [one])
    test.judge(clients)


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize(("seed", "later_s"), [(1390, 0.0), (1390, LATE_S), (1393, LATE_S)])
def test_what_is_published_where_a_stub_waits_and_is_cut_off_then_is_given_by_the_donor(seed, later_s, restarts):
    """Some of it had come to the stub alone, some to the new home as well, and the rest waits for that.

    Where the donor knows its members before its sessions' homes, it may not forget what those have (seed 1393).
    """
    test, clients, publisher = _stub_that_waits("the donor", seed)
    node, one, two = test.nodes
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(node) == {"other": 3} and test.queued(one) == {"roamer": 3}, "the messages")
    test.isolate(node)
    test.publish(publisher, clients[:1], 4, qos=2)
    test.wait(lambda: test.queued(node)["other"] == 7, "what is published there now")
    if restarts:
        test.crash(node)
        node.start()
        test.world.run(1.0)
    two.start()
    test.wait(lambda: one.core.mesh.peers[two.name].running, "its return")
    _remove(test, node, one)
    test.world.run(later_s)
    test.donate(node)
    test.come_back(clients, [one])
    test.judge(clients)


def _stub_that_waits(at, seed=1390):
    """Return a roamer whose stub waits for the third member, another client that wants the same, and a publisher."""
    test = LeaveWorld(seed=seed)
    node, one, two = test.nodes
    clients, _ = _want_the_same(test, node, node)
    publisher = test.publisher({"its new home": one, "the donor": node}[at], "another")
    test.crash(two)
    test.visit(clients[:1], one)
    assert list(node.core.owner.transfers.departures) == ["roamer"]
    return test, clients, publisher


@pytest.mark.parametrize("unheard", ["a subscription", "a higher QoS", "clean starts"])
def test_what_a_donor_has_for_others_is_not_owed_to_a_session_of_which_it_had_not_heard(unheard):
    """The donor knew that another client at the same home wants the same, and that one has it (seed 3595)."""
    test = LeaveWorld(seed=699)
    node, one, two = test.nodes
    test.world.leaver = node
    clients, publisher = _want_the_same(test, two, one)
    wanted = {"a subscription": {TOPIC % 1: 2}, "a higher QoS": {TOPIC % 0: 0}, "clean starts": {TOPIC % 0: 2}}
    unknown = Client(test.world, test.ledger, "unknown", two, 4, True, wanted[unheard])
    test.clients.append(unknown)
    unknown.connect()
    test.wait(lambda: unknown.subscribed == unknown.wanted, "subscribing")
    test.world.run(1.0)
    for other in (one, two):
        test.cut_off(node, other)
    assert test.leave_and_wait(one, node).exit_code == 0
    for _ in range(2 if unheard == "clean starts" else 0):
        unknown.comes_back = False
        unknown.disconnect(False)
        unknown.connect(True)
        test.wait(lambda: unknown.subscribed == unknown.wanted, "a clean start")
    unknown.subscribed = {}
    unknown.subscribe(TOPIC % 0, 2)
    test.wait(lambda: TOPIC % 0 in unknown.subscribed, "what the donor does not hear")
    test.publish(publisher, clients[:1], 3, qos=2)
    for other in (one, two):
        test.world.network.heal(node.name, other.name)
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two, one])
    for client, count in ((clients[0], 3), (clients[1], 3), (unknown, 0)):
        assert list(client.inbox.copies.values()) == [1] * count, client.name
    checkers.check_delivery(test.world, test.clients, test.ledger)


def _want_the_same(test, *homes):
    """Return a roamer and another client that want the same, at their homes, and a publisher at the first node."""
    clients = [
        Client(test.world, test.ledger, name, home, 4, True, {TOPIC % 0: 2})
        for name, home in zip(("roamer", "other"), homes, strict=True)
    ]
    test.clients.extend(clients)
    for client in clients:
        client.connect()
    test.wait(lambda: all(each.subscribed and test.known(each.home, [each]) for each in clients), "their interest")
    for client in clients:
        client.comes_back = False
        client.disconnect(False)
    test.world.run(0.5)
    return clients, test.publisher(test.nodes[0])


def _move(test, client, home):
    """Have the session of a client move while the client is away."""
    client.inbox.hold_back(30.0)
    test.visit([client], home)


def _remove(test, node, at):
    """Have a node die, and the others remove it."""
    test.crash(node)
    for other in test.nodes:
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(at, node).exit_code == 0


@pytest.mark.parametrize("dies", ["nobody", "the donor", "the publisher's node"])
@pytest.mark.parametrize("before", [0, 2])
def test_a_donor_leaves_to_others_what_they_kept_for_it_and_have_not_given_yet(before, dies):
    """Who publishes keeps that for long, as the new home does not hear its mark, and sends to the donor again.

    What the donor had of it before it was removed and what it has had since is not all that is between (seed 14396).
    """
    test = LeaveWorld(seed=14396)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.publish(publisher, clients, 2, qos=2)
    test.crash(node)
    test.publish(publisher, clients, before, qos=2)
    removed = node.store_id
    arrives = test.world.network.frame_arrives

    def unless_lost(receiver, sender, connection, frame):
        if sender == two.name and receiver is one and frame[1] == FrameType.FORWARDS:
            return
        arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_lost
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.wait(lambda: node.name not in two.core.mesh.peers, "the removal")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    _wait_for_wishes(test, node, two)
    test.publish(publisher, clients, 2, qos=2)
    test.world.run(1.0)
    assert two.core.mesh.is_growing(removed), "nothing more is kept"
    if dies == "the donor":
        node.kill()
        node.start()
    elif dies == "the publisher's node":
        test.restart(two, publisher)
    test.world.run(1.0)
    test.world.network.frame_arrives = arrives
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one, two])
    test.judge(clients)


@compiled
@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("waits_s", [0.0, 10.0, REMOVED_S + GONE_S + 1.0])
@pytest.mark.parametrize("online", [True, False])
def test_what_is_published_while_a_donor_gives_comes_once_to_sessions_that_go_on_elsewhere(online, waits_s, crashes):
    """Who publishes knows both homes. The later one has forgotten by then what has come to it directly."""
    test = LeaveWorld(seed=700)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.publish(publisher, clients, 2, qos=2)
    test.crash(node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    if online:
        test.come_back(clients, [one])
    test.world.run(waits_s)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    _wait_for_wishes(test, node, two)
    test.publish(publisher, clients, 2, qos=2)
    if crashes:
        node.kill()
        test.publish(publisher, clients, 1, qos=2)
        node.start()
        _wait_for_wishes(test, node, two)
        test.publish(publisher, clients, 1, qos=2)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [one, two])
    for client in clients:
        if online:
            # What was recovered came late.
            client.inbox.arrivals.sort(key=lambda arrival: int(arrival.payload))
    test.judge(clients)


@compiled
@pytest.mark.parametrize("comes", ["soon", "while it is down", "after a restart"])
@pytest.mark.parametrize("is_held_up", [True, False])
@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_published_while_a_donor_gives_comes_to_a_session_that_only_the_donor_has(comes, is_held_up, keeps):
    """It began there while that was cut off. Another one, which goes on elsewhere, wants the same, and gets it once.

    Who publishes may give to others what it kept for the removed node, and have the donor leave out what is later.
    """
    test = LeaveWorld(seed=702, count=4)
    node, one, two, down = test.nodes
    known, unknown = [
        Client(test.world, test.ledger, f"client{number}", node, 4, True, {TOPIC % 0: 2}) for number in range(2)
    ]
    third = Client(test.world, test.ledger, "client2", node, 4, True, {TOPIC % 1: 2})
    test.clients += [known, unknown, third]
    known.connect()
    third.connect()
    test.wait(lambda: known.subscribed and third.subscribed, "two sessions")
    for other in test.nodes[1:]:
        test.cut_off(node, other)
    unknown.connect()
    test.wait(lambda: unknown.subscribed, "a session that is not known")
    for client in (known, unknown, third):
        client.comes_back = False
        client.disconnect(False)
    publisher = test.publisher(node)
    test.publish(publisher, [unknown], 2, qos=2)
    publisher.comes_back = False
    test.crash(node)
    publisher = test.publisher(two)
    if keeps:
        test.publish(publisher, [third], 2, qos=2)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.run(REMOVED_S + GONE_S)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    if is_held_up:
        test.crash(down)
    test.recover(node)
    test.wait(lambda: TOPIC % 0 in two.core.mesh.interest.persistent_filters(node.name), "its wishes")
    test.publish(publisher, [unknown], 2, qos=2)
    if comes != "soon":
        node.kill()
        test.publish(publisher, [unknown], 2, qos=2)
    if comes == "after a restart":
        node.start()
        test.wait(lambda: two.core.mesh.peers[node.name].running, "its return")
        test.publish(publisher, [unknown], 2, qos=2)
    unknown.home = one
    unknown.come_back()
    test.wait(lambda: unknown.state == ONLINE, "the client", 10.0)
    test.publish(publisher, [unknown], 2, qos=2)
    if comes == "while it is down":
        node.start()
    test.world.run(1.0)
    if is_held_up:
        down.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back([known, unknown, third], [one])
    unknown.inbox.arrivals.sort(key=lambda arrival: int(arrival.payload))
    test.judge([known, unknown, third])


def test_what_is_published_while_a_client_takes_its_session_from_a_donor_comes_to_it():
    """As a member is down, the donor does not know yet that nobody else has it. Who publishes hears of no new home."""
    test = LeaveWorld(seed=703, count=4)
    node, one, two, down = test.nodes
    for other in test.nodes[1:]:
        test.cut_off(node, other)
    client = Client(test.world, test.ledger, "client0", node, 4, True, {TOPIC % 0: 2})
    test.clients.append(client)
    client.connect()
    test.wait(lambda: client.subscribed, "a session")
    client.comes_back = False
    client.disconnect(False)
    test.crash(node)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.crash(down)
    test.recover(node)
    test.wait(lambda: one.core.mesh.registry.find(client.name) is not None, "the donor's session")
    assert node.core.owner.local_interest() == []
    tables = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    arrives = test.world.network.frame_arrives

    def unless_lost(receiver, sender, connection, frame):
        if not (sender == one.name and receiver is two and frame[1] in tables):
            arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_lost
    client.home = one
    client.come_back()
    test.wait(lambda: client.state == ONLINE, "its return", 5.0)
    test.wait(lambda: TOPIC % 0 in two.core.mesh.interest.persistent_filters(node.name), "the donor's wishes", 1.0)
    test.publish(test.publisher(two), [client], 2, qos=2)
    test.world.network.frame_arrives = arrives
    down.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back([client], [one])
    test.judge([client])


def test_a_copy_of_the_store_of_a_donor_is_one_of_sessions_that_get_what_is_published():
    """It is a member of nothing, and its sessions are its own."""
    test = LeaveWorld(seed=704)
    node, one, _two = test.nodes
    client = test.make_sessions(node, 1, qos=2)[0]
    test.crash(node)
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.gone.discard(node.name)
    become_donor(node.storage, node.name, b"f" * 16)
    batch = WriteBatch()
    forget_cluster(batch)
    node.storage.commit(batch)
    node.store_id = b"f" * 16
    node.discovery = ()
    node.start()
    test.publish(test.publisher(node), [client], 2, qos=2)
    client.home = node
    client.come_back()
    test.wait(lambda: len(client.inbox.copies) == 2, "what was published")


def _wait_for_wishes(test, node, other):
    """Wait until a node knows what a donor wants, by the donor's own word."""
    test.wait(
        lambda: node.name in other.core.mesh.peers and other.core.mesh.peers[node.name].is_confirmed(),
        "the donor's wishes",
    )


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_new_does_not_wait_for_a_donor_that_may_give_nothing_as_a_member_is_down(restarts):
    """It has to hear from every member what that gives instead; the new home still remembers its old one."""
    test = LeaveWorld(seed=700, count=4)
    node, one, two, down = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.publish(publisher, clients, 2, qos=2)
    # Who published would give what has not come there yet.
    names = [client.name for client in clients]
    test.wait(lambda: test.queued(node) == dict.fromkeys(names, 2) and not outbox_messages(two), "the messages")
    test.crash(node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    for client in clients:
        client.home = one
        client.come_back()
    test.wait(lambda: all(client.state == ONLINE for client in clients), "their new home")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.crash(down)
    test.recover(node)
    test.wait(lambda: all(test.queued(node).values()) and node.name in one.core.mesh.peers, "the donor")
    if restarts:
        test.wait(lambda: len(node.core.owner.transfers.departures) == len(clients), "its stubs")
        node.kill()
        node.start()
    test.wait(lambda: one.core.mesh.peers[node.name].running, "its return")
    test.world.run(2.0)
    assert len(one.core.owner.transfers.arriving()) == len(clients), "the arrivals are over"
    test.publish(publisher, clients, 2, qos=2)
    test.wait(lambda: all(len(client.inbox.copies) == 2 for client in clients), "what is new", 1.0)
    down.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.publish(publisher, clients, 1, qos=2)
    test.world.run(1.0)
    for client in clients:
        # What was recovered came late, and in order.
        numbers = [int(each.payload) for each in client.inbox.arrivals]
        assert numbers == sorted(numbers[:2]) + sorted(numbers[2:4]) + numbers[4:]
        assert list(client.inbox.copies.values()) == [1] * 5


def test_a_session_that_only_a_donor_has_goes_on_though_that_may_give_nothing_yet():
    """Its client would be refused otherwise, for as long as a member is down that has to answer the donor."""
    test = LeaveWorld(seed=701, count=4)
    node, one, _, down = test.nodes
    for other in test.nodes[1:]:
        test.world.network.partition(node.name, other.name, True)
    test.wait(lambda: not any(peer.running for peer in node.core.mesh.peers.values()), "their absence")
    client = Client(test.world, test.ledger, "client0", node, 4, True, {TOPIC % 0: 2})
    test.clients.append(client)
    client.connect()
    test.wait(lambda: client.subscribed, "a session")
    client.comes_back = False
    client.disconnect(False)
    publisher = test.publisher(node)
    test.publish(publisher, [client], 2, qos=2)
    publisher.comes_back = False
    test.crash(node)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.crash(down)
    test.recover(node)
    test.wait(lambda: one.core.mesh.registry.find(client.name) is not None, "the donor's session")
    client.home = one
    client.come_back()
    test.wait(lambda: client.state == ONLINE, "its return", 5.0)
    assert client.session_present
    down.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back([client], [one])
    test.judge([client])


def test_a_donor_ends_though_a_session_that_it_was_offering_is_over():
    """The client began anew with a session that ended with its node; the donor died as well, and remembers no home."""
    test = LeaveWorld(seed=698)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1)[0]
    test.publish(test.publisher(two), [client], 3)
    test.crash(node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    client.home = one
    client.persistent = False
    client.connect(True)
    test.wait(lambda: client.subscribed, "a new session")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.lose(FrameType.MOVE)
    test.recover(node)
    test.wait(lambda: node.core.owner.transfers.departures, "its offer")
    for each in (node, one):
        each.kill()
        each.start()
    test.lose()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
