"""Removing a node that does not answer, in the simulator: what was for it, and what it still has, comes once."""

from math import isfinite

import checkers
import pytest
from leave_world import TOPIC, LeaveWorld
from test_leaving import dead
from virtual_clients import ONLINE, Client

from broker.core.events import Detach
from broker.core.records import CLOSE
from broker.core.storage import WriteBatch
from broker.mqtt.reasons import Reason
from cluster.arrivals import GONE_S, REMOVED_S
from cluster.donor import become_donor
from cluster.estates import CHUNK_BYTES
from cluster.frames import FrameType
from cluster.mesh_store import forget_cluster
from cluster.peers import UNHEARD_S
from cluster.readiness import ALL, AVAILABLE


def test_whoever_removes_a_node_sends_it_nothing_more():
    """A group's message must not go there by what was known before."""
    test = LeaveWorld(seed=26)
    node, one, _two = test.nodes
    workers = [
        Client(test.world, test.ledger, f"worker {home.name}", home, 4, True, {b"$share/crew/x": 1})
        for home in (node, one)
    ]
    for worker in workers:
        worker.connect()
    test.wait(lambda: all(worker.subscribed for worker in workers), "a group")
    test.wait(lambda: one.core.mesh.interest.group(b"$share/crew/x") is not None, "the group's interest")
    dead(test, node)
    test.world.validate_every = 1
    assert test.leave_and_wait(one, node).exit_code == 0


def test_a_dead_node_is_removed_when_the_others_know_the_new_homes():
    """Who does not would know of nobody who wants what it is publishing."""
    test = LeaveWorld(seed=27)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 4)
    publisher = test.publisher(two)
    dead(test, node)
    lost = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    test.world.network.lose_frame = lambda frame: frame[1] in lost
    command = test.leave(one, node, targets=(one.name,))
    test.wait(lambda: len(test.queued(one)) == 4, "the new homes")
    test.world.run(5.0)
    assert node.name in one.core.mesh.peers
    test.publish(publisher, clients, 1)
    test.world.network.lose_frame = None
    test.wait(command.is_over, "the removal")
    test.publish(publisher, clients, 1)
    test.come_back(clients, [one, two])
    test.judge(clients)


@pytest.mark.parametrize("readiness", [ALL, AVAILABLE])
def test_who_was_away_sends_to_the_new_homes_when_it_knows_them(readiness):
    """It hears of the removal first, and would know of nobody who wants what it is publishing."""
    test = LeaveWorld(seed=28, count=4, readiness=readiness)
    node, away, one, two = test.nodes
    clients = test.make_sessions(node, 4)
    publisher = test.publisher(away)
    dead(test, node)
    for other in (one, two):
        test.world.network.partition(away.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[away.name].running for other in (one, two)), "its absence")
    assert test.leave_and_wait(one, node, targets=(one.name, two.name)).exit_code == 0
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 1)
    tables = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    test.world.network.lose_frame = lambda frame: frame[1] in tables
    test.world.network.heal(away.name, one.name)
    test.world.run(3.0)
    test.world.network.heal(away.name, two.name)
    test.wait(lambda: all(peer.running for peer in away.core.mesh.peers.values() if peer.name != node.name), "the rest")
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 1)
    test.world.run(3.0)
    assert away.core.mesh.readiness.ready
    assert node.name in away.core.mesh.peers
    test.world.network.lose_frame = None
    test.wait(lambda: node.name not in away.core.mesh.peers, "the removal")
    test.publish(publisher, clients, 1)
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_a_client_whose_session_is_adopted_is_not_told_that_another_has_its_connection():
    """Its node is removed where it is not heard, and another member still hears it: the client is to come back.

    That was so in seed 1544, where none of those who had raced for a client id came back.
    """
    test = LeaveWorld(seed=1544, suppress_will_on_takeover=True)
    node, one, two = test.nodes
    (client,) = test.make_sessions(node, 1)
    client.will = (b"will", 1, 5)
    client.comes_back = True
    client.connect()
    test.wait(lambda: client.state == ONLINE, "its connection")
    reasons = []
    answer = client.answer

    def note(record):
        if record.kind == CLOSE:
            reasons.append(record.reason)
            client.comes_back = False
        answer(record)

    client.answer = note
    test.world.network.partition(node.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[node.name].running, "its absence")
    test.leave(two, node, targets=(one.name,))
    test.wait(lambda: one.core.owner.session(client.name) is not None, "the adoption")
    test.wait(lambda: reasons, "the end of its connection")
    assert reasons == [Reason.SERVER_SHUTTING_DOWN]
    # It has not gone by its own will, nor to anybody else: its will goes on waiting, and comes along.
    test.wait(lambda: one.core.owner.wills.get(client.name) is not None, "its will")


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_a_client_asked_for_where_nobody_heard_it_is_not_owed_if_its_home_is_removed(comes_back):
    """All others know the filter at QoS 0, at which nobody who is away gets anything; a donor had not heard of it."""
    test = LeaveWorld(seed=31)
    node, one, two = test.nodes
    (client,) = test.make_sessions(node, 1, qos=0)
    client.emigrates = True
    publisher = test.publisher(two)
    for other in (one, two):
        test.world.network.partition(node.name, other.name, True)
    client.wanted = {TOPIC % 0: 1}
    client.subscribed = {}
    client.connect()
    test.wait(lambda: client.subscribed == client.wanted, "subscribing")
    client.disconnect(False)
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its absence")
    test.publish(publisher, [client], 1)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.publish(publisher, [client], 1)
    if comes_back:
        for other in (one, two):
            test.world.network.heal(node.name, other.name)
        test.wait(lambda: node.name in test.gone, "its end")
        test.recover(node)
        test.wait(lambda: not node.up, "the donor")
    client.home = one
    client.come_back()
    test.wait(lambda: client.state == ONLINE, "its return")
    test.world.run(5.0)
    assert client.session_present
    assert not client.inbox.arrivals
    checkers.check_delivery(test.world, test.clients, test.ledger)


def test_a_member_that_does_not_hear_the_new_home_of_a_session_does_not_adopt_it():
    """It was cut off when the session went there from the node that is removed, and may only not have heard of it.

    That was so in seed 9587: the new home had to leave the session to one that was made of the registry alone, and knew
    nothing of the QoS 2 PUBLISHes that its client had sent. One was published once more.
    """
    test = LeaveWorld(seed=9587, count=4)
    node, one, away, home = test.nodes
    (client,) = test.make_sessions(node, 1, qos=2)
    for other in (node, one, home):
        test.world.network.partition(away.name, other.name, True)
    test.wait(lambda: not home.core.mesh.peers[away.name].running, "its absence")
    client.home = home
    client.come_back()
    test.wait(lambda: client.state == ONLINE, "the move")
    dead(test, node)
    test.world.network.heal(away.name, one.name)
    test.wait(lambda: all(peer.running for peer in one.core.mesh.peers.values() if peer.name != node.name), "the rest")
    connects = client.connects
    command = test.leave(one, node)
    test.wait(lambda: command.is_over() or away.core.owner.session(client.name), "the failure")
    assert (command.exit_code, command.text) == (
        1,
        "1 sessions of node1@h have no new home: node3@h could not take them; a member takes none while it "
        "does not hear all others. node1@h stays a member; give the order once more",
    )
    test.world.network.heal_all()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert (client.state, client.connects, client.home) == (ONLINE, connects, home)
    test.publish(test.publisher(one), [client], 2, qos=2)
    test.come_back([client], [home])
    test.judge([client])


def test_a_removal_survives_the_loss_of_power():
    """Whoever ordered it was told, and nobody else is there who knows."""
    test = LeaveWorld(seed=30)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    dead(test, node)
    two.kill()
    test.wait(lambda: not one.core.mesh.peers[two.name].running, "its death")
    one.sync()
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    one.lose_power()
    one.start()
    assert node.name not in one.core.mesh.peers
    two.start()
    test.wait(lambda: node.name not in two.core.mesh.peers, "the news")


def test_a_removed_node_is_forgotten_although_somebody_stays_away():
    test = LeaveWorld(seed=29, count=4)
    node, away, one, two = test.nodes
    test.make_sessions(node, 4)
    dead(test, node)
    for other in (one, two):
        test.world.network.partition(away.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[away.name].running for other in (one, two)), "its absence")
    assert test.leave_and_wait(one, node, targets=(one.name, two.name)).exit_code == 0
    two.kill()
    test.world.network.heal(away.name, one.name)
    test.wait(lambda: away.core.mesh.peers[one.name].running, "its return")
    test.world.run(UNHEARD_S - 5.0)
    assert node.name in away.core.mesh.peers
    # Somebody who asks it hears the truth all the same.
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.wait(lambda: node.name not in away.core.mesh.peers, "the removal", UNHEARD_S)


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_session_that_began_without_its_old_home_does_not_wait_for_that_after_a_restart(is_removed):
    """Its new home has not heard the old one in this life, and so does not see it go away."""
    test = LeaveWorld(seed=145)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3)
    publisher = test.publisher(two)
    dead(test, node)
    for client in clients:
        client.comes_back = True
    test.come_back(clients, [one])
    if is_removed:
        assert test.leave_and_wait(two, node).exit_code == 0
    _restart(test, one, publisher)
    test.wait(lambda: all(client.state == ONLINE for client in clients), "their return")
    test.publish(publisher, clients, 3)
    assert len(one.core.owner.transfers.arriving()) == len(clients)
    test.world.run(one.core.mesh.failure_timeout_s + 0.5)
    test.judge(clients)


def test_a_session_of_a_removed_node_is_known_where_its_donor_is_heard_of_first():
    """A new store under the name comes with the news of the removal; who has the sessions comes later (seed 2328)."""
    test = LeaveWorld(seed=4)
    node, one, away = test.nodes
    clients = test.make_sessions(node, 1)
    for other in (node, away):
        test.world.network.partition(one.name, other.name, True)
    test.wait(lambda: not any(peer.running for peer in one.core.mesh.peers.values()), "their absence")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.network.heal(one.name, node.name)
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    removed = node.store_id
    test.recover(node)
    test.wait(lambda: node.name in one.core.mesh.peers, "the donor")
    assert node.store_id < removed, "of two stores under one name the first one in this order is the member"
    # Nobody has missed the old one here: the session is asked for there.
    clients[0].home = away
    clients[0].come_back()
    tables = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    test.world.network.lose_frame = lambda frame: frame[1] in tables
    test.world.network.heal(one.name, away.name)
    test.wait(lambda: away.core.mesh.peers[one.name].running, "who removed it")
    test.world.run(1.0)
    assert away.core.mesh.peers[node.name].store_id == removed
    test.world.network.lose_frame = None
    test.wait(lambda: clients[0].state == ONLINE, "its return")
    assert clients[0].session_present
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.publish(test.publisher(one), clients, 1)
    test.come_back(clients, [away])
    test.judge(clients)


def test_what_was_kept_for_a_dead_node_and_came_to_a_later_home_is_not_given_once_more():
    """The session began elsewhere, got the messages there, and went on before its first home was removed."""
    test = LeaveWorld(seed=460)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 6, qos=2)
    publisher = test.publisher(one)
    dead(test, node)
    test.come_back(clients, [one])
    for client in clients:
        client.comes_back = False
        client.disconnect(False)
    test.world.run(0.5)
    test.publish(publisher, clients, 3, qos=2)
    for client in clients[:3]:
        client.home = two
        client.come_back()
    test.wait(lambda: all(len(client.inbox.copies) == 3 for client in clients[:3]), "the messages")
    test.world.run(2.0)
    assert test.leave_and_wait(two, node).exit_code == 0
    test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.world.run(REMOVED_S + 5.0)
    test.come_back(clients[3:], [two])
    test.judge(clients)
    test.wait(lambda: not any(each.core.owner.transfers.arriving() for each in (one, two)), "the end of all moves")


@pytest.mark.parametrize("away", ["nobody", "the home", "the publisher's node"])
def test_what_a_dead_node_had_passed_on_is_not_given_once_more(away):
    """It did not come to acknowledge that to who published it, and is removed."""
    test = LeaveWorld(seed=2209)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.world.network.partition(node.name, two.name, False)
    test.publish(publisher, clients, 3, qos=2)
    for client in clients:
        client.home = one
        client.come_back()
    test.wait(lambda: all(len(client.inbox.copies) == 3 for client in clients), "the messages")
    for client in clients:
        client.comes_back = False
        client.disconnect(False)
    test.world.run(0.5)
    assert two.storage.snapshot()["outbox"], "nothing is kept"
    dead(test, node)
    test.world.network.heal_all()
    if away == "the publisher's node":
        two.kill()
        command = test.leave(one, node, targets=(one.name,))
        test.world.run(REMOVED_S + 5.0)
        two.start()
        test.wait(command.is_over, "the removal")
    else:
        if away == "the home":
            _restart(test, one, publisher)
        assert test.leave_and_wait(two, node).exit_code == 0
    test.wait(lambda: publisher.state == ONLINE, "the publisher")
    test.publish(publisher, clients, 2, qos=2)
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one])
    test.judge(clients)
    test.wait(lambda: not any(each.core.owner.transfers.arriving() for each in (one, two)), "the end of all moves")


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("is_removed", [True, False])
def test_what_came_to_a_home_before_the_last_is_not_given_once_more(last, is_removed):
    """Who had it directly gave it to the next home, and has it no more; the first home, or who kept it, has it still.

    The last home is that one again, or one that never had the session before.
    """
    test = LeaveWorld(seed=470, count=4)
    node, one, two = test.nodes[:3]
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(test.nodes[3])
    dead(test, node)
    test.come_back(clients, [one])
    for client in clients:
        client.comes_back = False
        client.disconnect(False)
    test.world.run(0.5)
    test.publish(publisher, clients, 3, qos=2)
    names = [client.name for client in clients]
    for home in (two, test.nodes[last]):
        for client in clients:
            client.home = home
            client.come_back()
        test.wait(lambda home=home: test.queued(home) == dict.fromkeys(names, 0), "the move")
        for client in clients:
            client.comes_back = False
            client.disconnect(False)
        test.world.run(2.0)
    assert all(len(client.inbox.copies) == 3 for client in clients)
    if is_removed:
        assert test.leave_and_wait(two, node).exit_code == 0
        test.wait(lambda: not test.nodes[3].storage.snapshot()["outbox"], "the end of the estate")
    else:
        node.start()
        test.wait(test.whole, "the rest of the cluster")
    test.world.run(REMOVED_S + 5.0)
    test.come_back(clients, [two])
    test.judge(clients)
    homes = test.world.running_nodes()
    test.wait(lambda: not any(home.core.owner.transfers.arriving() for home in homes), "the end of all moves")


def test_what_was_kept_for_a_dead_node_before_a_restart_comes_although_a_stub_has_ended_meanwhile():
    """After a restart the stream goes on far behind what is kept, whose places are to differ all the same.

    Between the first and the last that a session gets so much is for another one that the stub of the first is gone.
    """
    test = LeaveWorld(seed=480)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2)
    publisher = test.publisher(one)
    dead(test, node)
    test.publish(publisher, clients[:1], 1)
    _publish_in_turns(test, publisher, clients[1], 20)
    test.publish(publisher, clients[:1], 1)
    one.kill()
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    test.publish(publisher, clients, 1)
    command = test.leave(two, node, targets=(two.name,))
    test.wait(lambda: isfinite(one.core.estates.next_deadline()), "the estate")
    stubs = one.core.owner.transfers.departures
    test.wait(lambda: clients[0].name not in stubs, "the end of the first stub")
    assert isfinite(one.core.estates.next_deadline())
    test.wait(lambda: command.is_over() and not one.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [two])
    test.judge(clients)


def test_what_is_published_in_the_turn_in_which_a_node_is_forgotten_comes_to_the_new_homes():
    """Who was away hears of these in one turn with the publishes, which were routed before to the node that is gone."""
    test = LeaveWorld(seed=520)
    node, away, one = test.nodes
    clients = test.make_sessions(node, 3)
    publisher = test.publisher(away)
    dead(test, node)
    test.world.network.partition(away.name, one.name, True)
    test.wait(lambda: not one.core.mesh.peers[away.name].running, "its absence")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.network.heal(away.name, one.name)
    # Much happens in each of its turns.
    away.slow_until, away.turn_s = test.world.now + 20.0, 0.05
    for number in range(2000):
        client = clients[number % len(clients)]
        test.world.later(0.005 * number, publisher.publish, next(iter(client.ever_wanted)), 1)
    test.wait(lambda: node.name not in away.core.mesh.peers, "the removal")
    test.world.run(10.0)
    test.wait(publisher.is_idle, "the acknowledgements")
    test.wait(lambda: not away.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one])
    test.judge(clients)


def test_what_is_given_while_the_stub_of_what_was_given_before_ends_comes_all_the_same():
    """The stub has said that this is all, and its new home has not answered."""
    test = LeaveWorld(seed=490)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 1)
    publisher = test.publisher(one)
    dead(test, node)
    _publish_in_turns(test, publisher, clients[0], 20)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("at_home", [False, True])
def test_what_is_published_while_what_was_kept_is_given_is_for_the_new_home(at_home):
    """Who was away says which wishes it knows, and gives at once; so does the new home itself, that has kept some, too.

    What it publishes from then on is on no other way.
    """
    test = LeaveWorld(seed=500)
    node, away, two = test.nodes
    clients = test.make_sessions(node, 1)
    publisher = test.publisher(away)
    dead(test, node)
    # So much that it is given for a while.
    _publish_in_turns(test, publisher, clients[0], 20)
    if at_home:
        _publish_in_turns(test, test.publisher(two, "other publisher"), clients[0], 20)
    test.world.network.partition(away.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[away.name].running, "its absence")
    command = test.leave(two, node, targets=(two.name,))
    test.wait(command.is_over if not at_home else lambda: test.queued(two), "the removal")
    test.world.network.heal(away.name, two.name)
    for number in range(400):
        test.world.later(0.005 * number, publisher.publish, next(iter(clients[0].ever_wanted)), 1)
    test.world.run(3.0)
    test.wait(lambda: command.is_over() and node.name not in away.core.mesh.peers, "the removal")
    test.wait(lambda: not isfinite(away.core.estates.next_deadline()), "the end of the estate")
    test.wait(publisher.is_idle, "the acknowledgements")
    test.come_back(clients, [two])
    topic = next(iter(clients[0].ever_wanted))
    published = {each.payload for each in test.ledger.published.values() if each.topic == topic}
    assert clients[0].inbox.copies == dict.fromkeys(published, 1)


def test_what_a_stub_has_for_a_removed_node_is_for_the_session_that_begins_where_the_stub_is():
    """Who publishes has not heard that the session went to the node that dies, and goes on sending to the stub."""
    test = LeaveWorld(seed=510)
    node, one, two = test.nodes
    clients = test.make_sessions(one, 1)
    publisher = test.publisher(two)
    test.world.network.partition(node.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[node.name].running, "its absence")
    for client in clients:
        client.home = node
        client.connect()
    test.wait(lambda: all(client.state == ONLINE for client in clients), "the move")
    for client in clients:
        client.disconnect(False)
    dead(test, node)
    test.publish(publisher, clients, 5)
    assert len(one.core.owner.transfers.departures[clients[0].name].session.queue) == 5
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.come_back(clients, [one])
    test.judge(clients)


@pytest.mark.parametrize("stays", [True, False])
def test_a_session_that_comes_where_a_stub_is_of_what_was_kept_for_it_comes_as_it_was(stays):
    """The stub has only messages: it is not the session, which would end with its connection (seed 22215)."""
    test = LeaveWorld(seed=693)
    node, away, two = test.nodes
    clients = test.make_sessions(node, 1, qos=2)
    publisher = test.publisher(away)
    dead(test, node)
    _publish_in_turns(test, publisher, clients[0], 60)
    test.world.network.partition(away.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[away.name].running, "its absence")
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.world.network.heal(away.name, two.name)
    # It is asked for before its home hears of the stub.
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MOVE
    test.wait(lambda: away.core.owner.transfers.departures, "the stub")
    clients[0].home = away
    clients[0].connect()
    if not stays:
        clients[0].disconnect(True)
    test.wait(lambda: two.core.owner.transfers.departures, "its leave")
    test.world.network.lose_frame = None
    # The estate is given faster than the stub.
    away.slow_until, away.turn_s = test.world.now + 20.0, 0.03
    test.wait(lambda: test.queued(away), "the session")
    test.wait(lambda: not isfinite(away.core.estates.next_deadline()), "the end of the estate")
    test.wait(lambda: not two.core.owner.transfers.departures, "the end of the move")
    if not stays:
        away.kill()
        away.start()
    test.come_back(clients, [away])
    test.judge(clients)


def test_a_session_that_is_over_is_not_back_by_what_was_kept_for_it():
    """The stub of that stands as long as a member is down which may send to it, and is no session."""
    test = LeaveWorld(seed=694)
    node, away, two = test.nodes
    clients = test.make_sessions(node, 1)
    client = clients[0]
    publisher = test.publisher(away)
    dead(test, node)
    test.publish(publisher, clients, 2)
    test.world.network.partition(away.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[away.name].running, "its absence")
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.world.network.heal(away.name, two.name)
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MOVE
    stubs = away.core.owner.transfers.departures
    test.wait(lambda: stubs, "the stub")
    dead(test, two)
    client.home = away
    client.connect()
    test.wait(lambda: client.state == ONLINE, "its return")
    test.wait(lambda: len(client.inbox.copies) == 2, "the messages")
    # Its session expires with this connection.
    client.send(Detach, 0, 0)
    client.disconnect(False)
    client.session_exists = False
    test.wait(lambda: away.core.owner.session(client.name) is None, "the end of the session")
    client.home = away
    client.connect()
    test.wait(lambda: client.state == ONLINE, "its return")
    assert not client.session_present
    assert client.name not in stubs


def test_what_was_kept_for_a_session_of_which_nobody_else_had_heard_comes_to_the_older_one():
    """It began at the removed node without its home, which goes on with it, and is not to give it up (seed 13955)."""
    test = LeaveWorld(seed=700)
    node, one, away = test.nodes
    publisher = test.publisher(away)
    _cut_off(test, one, away)
    client = Client(test.world, test.ledger, "roamer", one, 4, True, {TOPIC % 0: 2})
    test.clients.append(client)
    _visit(test, [client], one)
    _begin_without_home(test, client, one, node)
    test.publish(publisher, [client], 3, qos=2)
    away.kill()
    test.world.network.heal(one.name, away.name)
    _have_removed_unheard(test, node, one, away)
    assert test.queued(one) == {client.name: 3}
    test.come_back([client], [away])
    test.judge([client])


def test_what_an_older_session_got_is_not_taken_for_what_the_removed_home_had():
    """Who gives what it kept for that had both in its store when it started, and sent to both from the first on."""
    test = LeaveWorld(seed=703)
    node, one, away = test.nodes
    client = test.make_sessions(one, 1, qos=2)[0]
    publisher = test.publisher(away)
    _begin_without_home(test, client, one, node)
    test.publish(publisher, [client], 1, qos=2)
    away.kill()
    _have_removed_unheard(test, node, one, away)
    test.wait(lambda: publisher.state == ONLINE, "the publisher's return")
    test.publish(publisher, [client], 3, qos=2)
    test.come_back([client], [away])
    # The first was for both, of which neither knew of the other.
    assert list(client.inbox.copies.values()) == [2, 1, 1, 1]


def _begin_without_home(test, client, home, node):
    """Have the session of a client begin at a node while its home is down, and the node die."""
    dead(test, home)
    _visit(test, [client], node)
    test.wait(lambda: test.known(node, [client]), "its interest")
    dead(test, node)


def _have_removed_unheard(test, node, one, away):
    """Have a node removed by one that knows less of its sessions than another one, which is down, and starts then."""
    one.start()
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    away.start()
    test.wait(lambda: node.name not in away.core.mesh.peers, "the news of the removal")
    test.wait(lambda: not away.storage.snapshot()["outbox"], "the end of the estate")
    test.wait(lambda: not away.core.owner.transfers.departures, "the end of the stub")


def _publish_in_turns(test, publisher, client, count):
    """Publish messages to a client of which no two are given in one turn when they were kept for a dead node."""
    for _ in range(count):
        publisher.publish(next(iter(client.ever_wanted)), 1, CHUNK_BYTES // 2)
    test.wait(publisher.is_idle, "the acknowledgements")


def test_what_was_kept_for_a_group_of_a_dead_node_goes_to_another_member():
    """Whoever kept it was down when the node was removed."""
    test = LeaveWorld(seed=470)
    node, one, two = test.nodes
    workers = [
        Client(test.world, test.ledger, f"worker {home.name}", home, 4, True, {b"$share/crew/x": 1})
        for home in (node, two)
    ]
    for worker in workers:
        worker.connect()
    test.wait(lambda: all(worker.subscribed for worker in workers), "a group")
    workers[1].comes_back = False
    workers[1].disconnect(False)
    publisher = test.publisher(one)
    test.world.run(1.0)
    node.kill()
    for _ in range(3):
        publisher.publish(b"x", 1)
    test.wait(publisher.is_idle, "the acknowledgements")
    assert one.core.members_view()[0].outbox_messages == 3
    one.kill()
    test.wait(lambda: not two.core.mesh.peers[node.name].running, "the notice of its death")
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    workers[1].come_back()
    test.wait(lambda: len(workers[1].inbox.copies) == 3, "the messages")
    assert set(workers[1].inbox.copies.values()) == {1}
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")


@pytest.mark.parametrize("moves", [False, True])
def test_what_was_sent_to_a_removed_node_as_well_is_not_given_by_the_donor(moves):
    """Who published it had heard of the session's new home, and not yet of the removal.

    The new home remembers as long after a restart what came directly, or the home after it (seed 14417).
    """
    test = LeaveWorld(seed=652)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    for other in (node, two):
        test.world.network.partition(one.name, other.name, True)
    test.wait(lambda: not any(peer.running for peer in one.core.mesh.peers.values()), "their absence")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MEMBERS
    test.world.network.heal(one.name, two.name)
    test.wait(lambda: len(set(two.core.mesh.interest.persistent_filters(one.name))) == 3, "the news of the new home")
    test.world.run(1.0)
    test.publish(publisher, clients, 3, qos=2)
    names = [client.name for client in clients]
    test.wait(lambda: all(test.queued(home) == dict.fromkeys(names, 3) for home in (node, one)), "the messages")
    test.world.network.lose_frame = None
    test.wait(lambda: node.name in test.gone and node.name not in two.core.mesh.peers, "the news of its removal")
    test.world.network.heal_all()
    _restart(test, one, publisher)
    test.wait(lambda: one.core.mesh.is_complete(), "the rest of the cluster")
    test.world.run(GONE_S + 1.0)
    if moves:
        _visit(test, clients, two)
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
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 2)
    test.wait(lambda: all(client.inbox.copies for client in clients), "the messages")
    node.kill()
    test.world.run(1.0)
    test.world.network.lose_frame = None
    assert node.storage.snapshot()["outbox"]
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
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
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    client.inbox.ack_delay_s = 60.0
    if not reads:
        client.inbox.stop_reading()
    test.publish(publisher, [client], 3, qos=qos)
    test.world.run(0.1)
    assert len(node.core.owner.session(client.name).inflight) == 3
    client.comes_back = False
    node.kill()
    test.world.run(1.0)
    test.world.network.lose_frame = None
    client.inbox.ack_delay_s = 0.0
    assert len(client.inbox.arrivals) == 3 * reads
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.come_back([client], [two])
    test.world.run(REMOVED_S + 1.0)
    assert not two.core.owner.transfers.arriving()
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
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
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    for _ in range(3):
        publisher.publish(TOPIC % 0, 2)
    test.wait(publisher.is_idle, "the acknowledgements")
    test.wait(lambda: test.queued(two) == {"roamer": 3} and test.queued(node) == {settled.name: 3}, "the messages")
    dead(test, one)
    test.world.network.lose_frame = None
    roamer.home = node
    roamer.inbox.ack_delay_s = 60.0
    roamer.come_back()
    test.wait(lambda: test.queued(node).get("roamer") == 3 and roamer.inbox.arrivals, "its move")
    roamer.comes_back = False
    roamer.disconnect(False)
    test.world.run(0.5)
    assert not two.core.owner.transfers.departures["roamer"].session.queue
    dead(test, node)
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
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
    dead(test, two)
    _visit(test, clients, one)
    test.publish(publisher, clients, 3)
    test.world.network.partition(node.name, one.name, True)
    test.wait(lambda: not one.core.mesh.peers[node.name].running, "its absence")
    _visit(test, clients, node)
    test.world.network.heal(node.name, one.name)
    test.wait(lambda: test.queued(node) == {client.name: 3 for client in clients}, "the messages")
    # What waits for who is down keeps them.
    assert len(one.core.owner.transfers.departures) == len(clients)
    dead(test, node)
    two.start()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_a_donor_has_is_kept_apart_from_what_its_rival_gave():
    """Both were homes of one epoch counter, in two halves of a partition, and the session of the other one went on."""
    test = LeaveWorld(seed=675)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 3)
    for other in (one, two):
        test.world.network.partition(node.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its absence")
    for home in (node, one):
        _visit(test, clients, home)
        test.publish(test.publisher(home, f"publisher of {home.name}"), clients, 3)
    node.kill()
    for other in (one, two):
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(one, node).exit_code == 0
    for client in clients:
        client.home = two
        client.come_back()
    test.wait(lambda: all(len(client.inbox.copies) == 3 for client in clients), "what one home had")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.wait(lambda: all(len(client.inbox.copies) == 6 for client in clients), "what the other had")
    assert all(set(client.inbox.copies.values()) == {1} for client in clients)


def test_what_a_donor_has_is_kept_apart_from_what_waits_of_a_rival_that_is_over():
    """The session's home has forgotten from where it has what waits."""
    test = LeaveWorld(seed=676, count=4)
    node, one, two, three = test.nodes
    clients = test.make_sessions(two, 3)
    for other in (one, two, three):
        test.world.network.partition(node.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two, three)), "its absence")
    for home in (node, one):
        _visit(test, clients, home)
        test.publish(test.publisher(home, f"publisher of {home.name}"), clients, 3)
    node.kill()
    for other in (one, two, three):
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(one, node).exit_code == 0
    assert test.leave_and_wait(two, one, targets=(three.name,), force=True).exit_code == 0
    assert test.queued(three) == {client.name: 3 for client in clients}
    test.wait(lambda: not three.core.owner.transfers.arriving(), "the end of the moves")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [three])
    assert all(list(client.inbox.copies.values()) == [1] * 6 for client in clients)


def _visit(test, clients, home):
    """Have clients connect to a node for a moment."""
    for client in clients:
        client.home = home
        client.come_back()
        client.comes_back = False
    test.wait(lambda: all(client.state == ONLINE for client in clients), "everybody's visit")
    test.world.run(0.5)
    for client in clients:
        client.disconnect(False)
    test.world.run(0.5)


def test_what_a_removed_node_had_is_recovered_though_an_older_message_to_a_group_is_given_to_others():
    """That was taken back from another node that had died, and sent behind what is acknowledged."""
    test = LeaveWorld(seed=680)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2)
    workers = [
        Client(test.world, test.ledger, f"worker {home.name}", home, 4, True, {b"$share/crew/x": 2})
        for home in (two, node)
    ]
    workers[0].connect()
    test.wait(lambda: one.core.mesh.interest.group(b"$share/crew/x") is not None, "a group")
    publisher = test.publisher(one)
    two.kill()
    publisher.publish(b"x", 2)
    test.wait(publisher.is_idle, "the acknowledgement")
    test.wait(lambda: not one.core.mesh.peers[two.name].running, "the notice of its death")
    test.publish(publisher, clients, 3)
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    workers[1].connect()
    workers[1].comes_back = False
    test.wait(lambda: workers[1].inbox.copies, "what was taken back")
    dead(test, node)
    test.world.network.lose_frame = None
    assert one.core.members_view()[0].outbox_messages == 1
    # It would take that back once more if the other member of the group were there before the node is removed.
    one.kill()
    two.start()
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
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
    dead(test, node)
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
    for other in (one, two):
        test.world.network.partition(node.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its absence")
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
    _cut_off(test, node, two)
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(one) == {"roamer": 3}, "the messages")
    _remove(test, node, one)
    _visit(test, [roamer], two)
    assert list(roamer.inbox.copies.values()) == [1] * 3
    test.world.run(REMOVED_S + 1.0)
    assert not two.core.owner.transfers.arriving()
    _donate(test, node, two if crashes else None)
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
    _cut_off(test, node, two)
    if moves == "before":
        _cut_off(test, node, one)
        test.world.network.heal(node.name, one.name)
        test.wait(lambda: node.core.mesh.peers[one.name].running, "its return")
    test.publish(publisher, clients[:1], 3, qos=2)
    test.wait(lambda: test.queued(one)["other"] == 5, "the messages")
    home = two if moves == "never" else one
    if moves == "before":
        _cut_off(test, node, one)
        _move(test, roamer, one)
    _remove(test, node, one)
    if moves == "after":
        _move(test, roamer, one)
    assert test.queued(home)["roamer"] == 2
    test.world.run(waits_s)
    _donate(test, node, home if crashes else None)
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
    _cut_off(test, node, one)
    _visit(test, [roamer], two)
    _cut_off(test, node, two)
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
        _cut_off(test, node, other)
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
    test.wait(lambda: all(test.known(client.home, [client]) for client in clients), "their interest")
    for client in clients:
        client.comes_back = False
        client.disconnect(False)
    test.world.run(0.5)
    return clients, test.publisher(test.nodes[0])


def _move(test, client, home):
    """Have the session of a client move while the client is away."""
    client.inbox.ack_delay_s = 60.0
    _visit(test, [client], home)
    client.inbox.ack_delay_s = 0.0


def _cut_off(test, node, other):
    """Have two nodes hear nothing of each other."""
    test.world.network.partition(node.name, other.name, True)
    test.wait(
        lambda: (
            not other.core.mesh.peers[node.name].running and not (node.up and node.core.mesh.peers[other.name].running)
        ),
        "its absence",
    )


def _remove(test, node, at):
    """Have a node die, and the others remove it."""
    dead(test, node)
    for other in test.nodes:
        test.world.network.heal(node.name, other.name)
    assert test.leave_and_wait(at, node).exit_code == 0


def _donate(test, node, dies=None):
    """Start a removed node, and again as a donor; meanwhile it and another one may die."""
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    if dies is not None:
        test.wait(lambda: node.name in dies.core.mesh.peers, "its return")
        test.world.run(0.5)
        for each in (node, dies):
            each.kill()
            each.start()
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.world.run(1.0)


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
    dead(test, node)
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
        _restart(test, two, publisher)
    test.world.run(1.0)
    test.world.network.frame_arrives = arrives
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one, two])
    test.judge(clients)


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
    dead(test, node)
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
        _cut_off(test, node, other)
    unknown.connect()
    test.wait(lambda: unknown.subscribed, "a session that is not known")
    for client in (known, unknown, third):
        client.comes_back = False
        client.disconnect(False)
    publisher = test.publisher(node)
    test.publish(publisher, [unknown], 2, qos=2)
    publisher.comes_back = False
    dead(test, node)
    publisher = test.publisher(two)
    if keeps:
        test.publish(publisher, [third], 2, qos=2)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.run(REMOVED_S + GONE_S)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    if is_held_up:
        dead(test, down)
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
        _cut_off(test, node, other)
    client = Client(test.world, test.ledger, "client0", node, 4, True, {TOPIC % 0: 2})
    test.clients.append(client)
    client.connect()
    test.wait(lambda: client.subscribed, "a session")
    client.comes_back = False
    client.disconnect(False)
    dead(test, node)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    dead(test, down)
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
    dead(test, node)
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
    dead(test, node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    for client in clients:
        client.home = one
        client.come_back()
    test.wait(lambda: all(client.state == ONLINE for client in clients), "their new home")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    dead(test, down)
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
    dead(test, node)
    test.world.network.heal_all()
    assert test.leave_and_wait(one, node).exit_code == 0
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    dead(test, down)
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
    dead(test, node)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    client.home = one
    client.persistent = False
    client.connect(True)
    test.wait(lambda: client.subscribed, "a new session")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MOVE
    test.recover(node)
    test.wait(lambda: node.core.owner.transfers.departures, "its offer")
    for each in (node, one):
        each.kill()
        each.start()
    test.world.network.lose_frame = None
    test.wait(lambda: node.name in test.gone, "the end of the donation")


def test_what_was_kept_for_a_session_that_was_over_is_not_given_to_the_home_that_had_it_directly():
    """Who published it died before it heard that; it found both homes in its store, and nobody told it better."""
    test = LeaveWorld(seed=699)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1, qos=2)[0]
    publisher = test.publisher(one)
    arrives = test.world.network.frame_arrives
    lost = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE, FrameType.HEARTBEAT)

    def unless_lost(receiver, sender, connection, frame):
        if sender == node.name and receiver is one and frame[1] in lost:
            return
        arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_lost
    _visit(test, [client], two)
    assert not node.core.owner.transfers.departures
    assert len(one.core.mesh.registry.homes(client.name)) == 2
    one.kill()
    dead(test, node)
    test.world.network.frame_arrives = arrives
    one.start()
    test.wait(lambda: publisher.state == ONLINE, "the publisher's return")
    test.publish(publisher, [client], 3, qos=2)
    test.wait(lambda: test.queued(two) == {client.name: 3}, "the messages")
    assert one.storage.snapshot()["outbox"]
    assert test.leave_and_wait(two, node).exit_code == 0
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back([client], [two])
    test.judge([client])


def test_what_a_removed_node_had_taken_is_not_given_once_more_by_who_did_not_hear_so():
    """Nor had that heard that the session was gone from there with all that it had (seed 139584)."""
    test = LeaveWorld(seed=700)
    node, one, two = test.nodes
    client = test.make_sessions(node, 1, qos=2)[0]
    publisher = test.publisher(one)
    arrives = test.world.network.frame_arrives
    lost = (FrameType.LINK_ACK, FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE, FrameType.HEARTBEAT)

    def unless_lost(receiver, sender, connection, frame):
        if sender == node.name and receiver is one and frame[1] in lost:
            return
        arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_lost
    test.publish(publisher, [client], 3, qos=2)
    test.wait(lambda: test.queued(node) == {client.name: 3}, "the messages")
    _visit(test, [client], two)
    test.wait(lambda: not node.core.owner.transfers.departures, "the end of the stub")
    test.world.run(1.0)
    assert one.storage.snapshot()["outbox"]
    one.kill()
    dead(test, node)
    test.world.network.frame_arrives = arrives
    one.start()
    test.wait(lambda: publisher.state == ONLINE and one.core.mesh.peers[two.name].running, "the publisher's return")
    assert test.leave_and_wait(two, node).exit_code == 0
    test.wait(lambda: not one.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back([client], [two])
    test.judge([client])
    test.wait(lambda: not two.core.owner.transfers.arriving(), "the end of the arrival", 60.0)


@pytest.mark.parametrize("restarts", [(), ("before",), ("after",), ("before", "after")])
def test_what_is_published_for_a_new_home_that_did_not_hear_that_it_is_known_comes_there(restarts):
    """It leaves to the old home what comes before it has heard, and that is removed meanwhile."""
    test = LeaveWorld(seed=690)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    dead(test, node)
    _have_adopted_unheard(test, node, one, two)
    if "before" in restarts:
        _restart(test, two, publisher)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.publish(publisher, clients, 2, qos=2)
    if "after" in restarts:
        _restart(test, two, publisher)
        test.publish(publisher, clients, 2, qos=2)
    test.world.network.lose_frame = None
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    test.publish(publisher, clients, 2, qos=2)
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_is_published_for_a_new_home_that_is_away_for_long_comes_to_the_one_after_it():
    """Nor does that one hear of it: the new home is removed as well."""
    test = LeaveWorld(seed=691, count=4)
    node, one, two, three = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    dead(test, node)
    test.world.network.partition(two.name, three.name, True)
    _have_adopted_unheard(test, node, one, two)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.world.network.lose_frame = None
    test.publish(publisher, clients, 2, qos=2)
    test.world.run(UNHEARD_S + 5.0)
    assert test.leave_and_wait(two, one, targets=(two.name,)).exit_code == 0
    test.publish(publisher, clients, 2, qos=2)
    test.world.network.heal(two.name, three.name)
    test.wait(test.whole, "the rest of the cluster")
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estates")
    test.come_back(clients, [three, two])
    test.judge(clients)


def test_what_is_published_for_new_homes_of_which_nobody_told_comes_there():
    """Who was away forgets the removed node after a while, though it does not know all that have its sessions."""
    test = LeaveWorld(seed=692, count=4)
    node, away, one, two = test.nodes
    clients = test.make_sessions(node, 4, qos=2)
    publisher = test.publisher(away)
    dead(test, node)
    for other in (one, two):
        test.world.network.partition(away.name, other.name, True)
    test.wait(lambda: not any(other.core.mesh.peers[away.name].running for other in (one, two)), "its absence")
    assert test.leave_and_wait(one, node, targets=(one.name, two.name)).exit_code == 0
    two.kill()
    test.world.network.heal(away.name, one.name)
    test.wait(lambda: node.name not in away.core.mesh.peers, "the removal")
    test.wait(lambda: away.core.mesh.peers[one.name].is_confirmed(), "the marks")
    test.world.run(1.0)
    test.publish(publisher, clients, 2, qos=2)
    kept = {each.message.topic for each in away.core.estates._open[node.store_id].outbox.read(0, 1 << 62, 1 << 62)}
    there = {next(iter(client.ever_wanted)) for client in clients if client.name in test.queued(one)}
    assert len(there) == len(kept) == 2 and not there & kept, "what who is there has heard of is kept as well"
    test.world.network.heal(away.name, two.name)
    two.start()
    test.wait(test.whole, "the rest of the cluster")
    test.wait(lambda: not away.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one, two])
    test.judge(clients)


def _have_adopted_unheard(test, node, one, two):
    """Have a node take the sessions of a dead one, and die before it hears that another one knows that."""
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.FORWARDS
    test.leave(one, node, targets=(one.name,))
    clients = {client.name for client in test.clients if client.persistent}
    registry = two.core.mesh.registry
    test.wait(lambda: clients <= {client_id for client_id, _ in registry.clients_of(one.name)}, "the new homes")
    dead(test, one)


def _restart(test, node, publisher):
    """Start a node anew, whose publisher comes back."""
    node.kill()
    node.start()
    test.wait(lambda: publisher.state == ONLINE, "the publisher's return")
