"""What was kept for a node that is removed, in the simulator: it comes to the new homes of its sessions, once."""

from math import isfinite

import pytest
from leave_world import TOPIC, LeaveWorld, outbox_messages
from virtual_clients import ONLINE, Client

from broker.core.events import Detach
from cluster.arrivals import REMOVED_S
from cluster.estates import CHUNK_BYTES
from cluster.frames import FrameType
from cluster.leaving import State
from cluster.peers import UNHEARD_S


@pytest.mark.parametrize("seed", range(8))
def test_what_was_kept_for_a_dead_node_does_not_go_to_sessions_that_began_anew(seed):
    """Their clients may have had it at other homes, and gave up all that was for them."""
    test = LeaveWorld(seed=450 + seed, count=3 + seed % 2)
    node, one, two = test.nodes[:3]
    # It is away while the node is removed, and hears of it later.
    away = test.nodes[3] if seed % 2 else None
    clients = test.make_sessions(node, 8)
    publishers = [test.publisher(other, f"publisher of {other.name}") for other in test.nodes[1:]]
    test.crash(node)
    for publisher in publishers:
        test.publish(publisher, clients, 3)
    anew = clients[:4]
    for client in anew:
        client.home = two
        client.connect(True)
    test.wait(lambda: all(set(client.subscribed) == set(client.wanted) for client in anew), "clean starts")
    test.wait(lambda: test.known(two, anew), "the interest of all")
    for publisher in publishers:
        test.publish(publisher, clients, 2)
    if away is not None:
        away.kill()
    assert test.leave_and_wait(one, node, targets=(one.name, two.name)).exit_code == 0
    test.world.run(5.0)
    if away is not None:
        away.start()
        test.wait(test.whole, "the return of who was away")
        test.world.run(5.0)
    test.come_back(clients, [one, two])
    for client in clients:
        heard = len(publishers) * (2 if client in anew else 5)
        assert sorted(client.inbox.copies.values()) == [1] * heard, f"{client.name} heard what it gave up, or twice"


@pytest.mark.parametrize("how", ["at its home", "elsewhere", "and goes on elsewhere", "and its home restarts"])
def test_what_was_kept_for_a_removed_node_does_not_go_to_sessions_that_begin_anew(how):
    """Nothing is given while a member is away, and the client comes (seed 7235). No node has an older session then."""
    test = LeaveWorld(seed=458, count=4)
    node, one, two, away = test.nodes
    clients = test.make_sessions(node, 4, qos=2)
    publishers = [test.publisher(other, f"publisher of {other.name}") for other in (one, two, away)]
    test.crash(node)
    for publisher in publishers:
        test.publish(publisher, clients, 3, qos=2)
    away.kill()
    test.wait(lambda: not one.core.mesh.peers[away.name].running, "its absence")
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    anew = clients[:2]
    for client in anew:
        client.home = two if how == "elsewhere" else one
        client.connect(True)
    test.wait(lambda: all(set(client.subscribed) == set(client.wanted) for client in anew), "clean starts")
    for client in anew:
        client.disconnect(False)
    test.world.run(0.5)
    if how == "and goes on elsewhere":
        for client in anew:
            client.home = two
            client.come_back()
        test.wait(lambda: all(client.state == ONLINE for client in anew), "another home")
    if how == "and its home restarts":
        one.kill()
        one.start()
    away.start()
    test.wait(test.whole, "the return of who was away")
    test.wait(lambda: not any(each.storage.snapshot()["outbox"] for each in (one, two, away)), "the end of the estates")
    test.come_back(clients, [one, two])
    for client in clients:
        heard = 0 if client in anew else 9
        assert sorted(client.inbox.copies.values()) == [1] * heard, f"{client.name} heard what it gave up, or twice"


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_was_kept_and_is_on_its_way_does_not_go_to_a_session_that_begins_anew(goes_on):
    """The client may have gone on to another node, which is offered that though it was not the one to begin anew."""
    test = LeaveWorld(seed=459, count=4)
    node, one, two, away = test.nodes
    clients = test.make_sessions(node, 4, qos=2)
    publisher = test.publisher(away)
    test.crash(node)
    test.publish(publisher, clients, 3, qos=2)
    arrives = test.world.network.frame_arrives

    def unless_move(receiver, sender, connection, frame):
        if sender != away.name or frame[1] != FrameType.MOVE:
            arrives(receiver, sender, connection, frame)

    test.world.network.frame_arrives = unless_move
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.wait(lambda: not away.storage.snapshot()["outbox"], "the end of the estate")
    assert len(away.core.owner.transfers.departures) == len(clients)
    anew = clients[:2]
    for client in anew:
        client.home = one
        client.connect(True)
    test.wait(lambda: all(set(client.subscribed) == set(client.wanted) for client in anew), "clean starts")
    if goes_on:
        for client in anew:
            client.disconnect(False)
        test.world.run(0.5)
        for client in anew:
            client.home = two
            client.come_back()
        test.wait(lambda: all(client.state == ONLINE for client in anew), "another home")
    test.world.network.frame_arrives = arrives
    test.come_back(clients, [one, two])
    for client in clients:
        heard = 0 if client in anew else 3
        assert sorted(client.inbox.copies.values()) == [1] * heard, f"{client.name} heard what it gave up"


@pytest.mark.parametrize("seed", range(8))
def test_what_was_kept_for_a_dead_node_goes_to_its_sessions(seed):
    test = LeaveWorld(seed=400 + seed, count=3 if seed % 4 else 2)
    node, one, two = [*test.nodes, None][:3]
    others = [other for other in (one, two) if other is not None]
    qos = 1 + seed % 2
    clients = test.make_sessions(node, 12, qos=qos)
    publishers = [test.publisher(other, f"publisher of {other.name}") for other in others]
    test.crash(node)
    for publisher in publishers:
        test.publish(publisher, clients, 3, qos=qos)
    assert sum(view.outbox_messages for other in others for view in other.core.members_view()) >= 36
    command = test.leave(one, node)
    for publisher in publishers:
        # Some go both ways: to the node that is gone, and to the new home that is known already.
        for number in range(4):
            for client in clients:
                test.world.later(0.3 * number, publisher.publish, next(iter(client.ever_wanted)), qos)
    test.wait(command.is_over, "the removal")
    if seed >= 5:
        victim = others[-1]
        test.crash_later(victim, 0.2 * (seed - 4))
        test.world.run(4.0)
        test.end_crashes()
        if not victim.up:
            victim.start()
    test.wait(lambda: all(publisher.is_idle() for publisher in publishers), "the acknowledgements")
    test.wait(test.whole, "the rest of the cluster")
    test.wait(
        lambda: not any(isfinite(other.core.estates.next_deadline()) for other in others), "the end of the estates"
    )
    test.world.run(15.0)
    test.come_back(clients, others)
    for client in clients:
        topic = next(iter(client.ever_wanted))
        for publisher in publishers:
            said = [each for each in test.ledger.published.values() if each.publisher == publisher.name]
            expected = [each.payload for each in said if each.topic == topic]
            heard = [arrival.payload for arrival in client.inbox.arrivals if arrival.payload in expected]
            assert sorted(set(heard)) == sorted(expected), f"{client.name} misses {len(expected) - len(set(heard))}"
            assert list(dict.fromkeys(heard)) == expected
            if seed < 5:
                assert all(client.inbox.copies[payload] == 1 for payload in expected), f"{client.name} heard it twice"
    for other in others:
        assert not other.storage.snapshot()["outbox"]
        assert not other.core.owner.transfers.departures and not other.core.owner.transfers.arriving()


@pytest.mark.parametrize("restarts", [False, True])
def test_who_was_not_waited_for_and_is_back_gives_what_it_kept_to_the_new_homes(restarts):
    """The node that leaves has a stub of each session, which gives nothing on to a home that has removed the node."""
    test = LeaveWorld(seed=531)
    node, one, two = test.nodes
    network = test.world.network
    clients = test.make_sessions(node, 10)
    publisher = test.publisher(two)
    for other in (node, one):
        network.partition(other.name, two.name, True)
    test.wait(lambda: not two.core.mesh.peers[node.name].running, "the notice of the partition")
    test.wait(lambda: not any(other.core.mesh.peers[two.name].running for other in (node, one)), "the same elsewhere")
    test.publish(publisher, clients, 5)
    silent = [FrameType.REFUSED]
    network.lose_frame = lambda frame: frame[1] in silent
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: node.name not in one.core.mesh.peers, "its removal")
    assert node.core.leaver.job.state == State.LEAVING
    silent.append(FrameType.MEMBERS)
    if restarts:
        node.kill()
        node.start()
    network.heal(node.name, two.name)
    test.wait(lambda: node.core.mesh.peers[two.name].running, "the return")
    test.world.run(1.0)
    assert outbox_messages(two) == 50
    network.lose_frame = None
    network.heal(one.name, two.name)
    test.wait(lambda: command.is_over() and node.name in test.gone and test.whole(), "the end of the leave")
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_was_kept_for_a_dead_node_and_came_to_a_later_home_is_not_given_once_more():
    """The session began elsewhere, got the messages there, and went on before its first home was removed."""
    test = LeaveWorld(seed=460)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 6, qos=2)
    publisher = test.publisher(one)
    test.crash(node)
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
    test.crash(node)
    test.world.network.heal_all()
    if away == "the publisher's node":
        two.kill()
        command = test.leave(one, node, targets=(one.name,))
        test.world.run(REMOVED_S + 5.0)
        two.start()
        test.wait(command.is_over, "the removal")
    else:
        if away == "the home":
            test.restart(one, publisher)
        assert test.leave_and_wait(two, node).exit_code == 0
    test.wait(lambda: publisher.state == ONLINE, "the publisher")
    test.publish(publisher, clients, 2, qos=2)
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    test.come_back(clients, [one])
    test.judge(clients)
    test.wait(lambda: not any(each.core.owner.transfers.arriving() for each in (one, two)), "the end of all moves")


@pytest.mark.parametrize("then", ["it is removed", "the publisher's node restarts", "the publisher's node gives it"])
@pytest.mark.parametrize("seed", [471, 7534])
def test_what_was_kept_for_others_before_a_session_came_to_their_home_is_not_given_to_that(then, seed):
    """The client had it at the home before, which does not know so any more (seed 15362).

    With the second seed the publisher's node hears of that home when the session has gone on from there.
    """
    test = LeaveWorld(seed=seed)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 3, qos=2)
    others = [Client(test.world, test.ledger, f"other{at}", node, 4, True, {TOPIC % at: 2}) for at in range(3)]
    test.clients += others
    test.visit(others, node)
    publisher = test.publisher(one)
    test.wait(lambda: test.known(node, others), "the interest of all")
    test.world.network.partition(one.name, node.name, False)
    test.publish(publisher, clients, 2, qos=2)
    # Who does not hear a member for a moment has its clients wait for that.
    test.wait(lambda: not node.core.mesh.peers[one.name].running, "the notice of the cut")
    test.visit(clients, two)
    assert all(len(client.inbox.copies) == 2 for client in clients)
    test.visit(clients, node)
    assert one.storage.snapshot()["outbox"], "nothing is kept"
    if then == "the publisher's node gives it":
        test.crash(one)
        assert test.leave_and_wait(two, one).exit_code == 0
        test.world.network.heal_all()
        test.visit(clients, two)
        test.donate(one)
    else:
        test.publish(publisher, clients, 2, qos=2)
        test.crash(node)
        test.world.network.heal_all()
        if then == "the publisher's node restarts":
            test.restart(one, publisher)
        test.wait(test.whole, "the rest of the cluster")
        assert test.leave_and_wait(one, node).exit_code == 0
        test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.come_back(clients + others, [two])
    test.judge(clients + others)


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
    test.crash(node)
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
    test.crash(node)
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
    test.crash(node)
    test.cut_off(away, one)
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
    test.crash(node)
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
    test.crash(node)
    # So much that it is given for a while.
    _publish_in_turns(test, publisher, clients[0], 20)
    if at_home:
        _publish_in_turns(test, test.publisher(two, "other publisher"), clients[0], 20)
    test.cut_off(away, two)
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
    test.cut_off(node, two)
    for client in clients:
        client.home = node
        client.connect()
    test.wait(lambda: all(client.state == ONLINE for client in clients), "the move")
    for client in clients:
        client.disconnect(False)
    test.crash(node)
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
    test.crash(node)
    _publish_in_turns(test, publisher, clients[0], 60)
    test.cut_off(away, two)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.world.network.heal(away.name, two.name)
    # It is asked for before its home hears of the stub.
    test.lose(FrameType.MOVE)
    test.wait(lambda: away.core.owner.transfers.departures, "the stub")
    clients[0].home = away
    clients[0].connect()
    if not stays:
        clients[0].disconnect(True)
    test.wait(lambda: two.core.owner.transfers.departures, "its leave")
    test.lose()
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
    test.crash(node)
    test.publish(publisher, clients, 2)
    test.cut_off(away, two)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.world.network.heal(away.name, two.name)
    test.lose(FrameType.MOVE)
    stubs = away.core.owner.transfers.departures
    test.wait(lambda: stubs, "the stub")
    test.crash(two)
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
    # Nor does anybody ask.
    test.lose(FrameType.TABLE_COPY)
    test.cut_off(one, away)
    client = Client(test.world, test.ledger, "roamer", one, 4, True, {TOPIC % 0: 2})
    test.clients.append(client)
    test.visit([client], one)
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
    test.crash(home)
    test.visit([client], node)
    test.wait(lambda: test.known(node, [client]), "its interest")
    test.crash(node)


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
    test.visit([client], two)
    assert not node.core.owner.transfers.departures
    assert len(one.core.mesh.registry.homes(client.name)) == 2
    one.kill()
    test.crash(node)
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
    test.visit([client], two)
    test.wait(lambda: not node.core.owner.transfers.departures, "the end of the stub")
    test.world.run(1.0)
    assert one.storage.snapshot()["outbox"]
    one.kill()
    test.crash(node)
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
    test.crash(node)
    _have_adopted_unheard(test, node, one, two)
    if "before" in restarts:
        test.restart(two, publisher)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.publish(publisher, clients, 2, qos=2)
    if "after" in restarts:
        test.restart(two, publisher)
        test.publish(publisher, clients, 2, qos=2)
    test.lose()
    one.start()
    test.wait(test.whole, "the rest of the cluster")
    test.publish(publisher, clients, 2, qos=2)
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    # What was kept for a removed node holds up nobody: a client that is there before hears what came directly.
    test.wait(lambda: not two.core.owner.transfers.departures, "the end of the stubs")
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_a_new_home_left_to_the_old_one_comes_to_the_home_after_it():
    """Who published it has found both in its store, and is heard at the next home before the new one is."""
    test = LeaveWorld(seed=701, count=4)
    node, one, two, three = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.crash(node)
    _have_adopted_unheard(test, node, one, two)
    test.restart(two, publisher)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.publish(publisher, clients, 2, qos=2)
    test.visit(clients, three)
    test.publish(publisher, clients, 2, qos=2)
    test.lose()
    test.world.network.partition(one.name, three.name, True)
    one.start()
    test.wait(lambda: not two.storage.snapshot()["outbox"], "the end of the estate")
    transfers = two.core.owner.transfers
    test.wait(lambda: all(map(transfers.is_drained, transfers.departures.values())), "what was kept")
    test.world.network.heal(one.name, three.name)
    test.wait(test.whole, "the rest of the cluster")
    test.come_back(clients, [three])
    test.judge(clients)


def test_what_is_published_for_a_new_home_that_is_away_for_long_comes_to_the_one_after_it():
    """Nor does that one hear of it: the new home is removed as well."""
    test = LeaveWorld(seed=691, count=4)
    node, one, two, three = test.nodes
    clients = test.make_sessions(node, 3, qos=2)
    publisher = test.publisher(two)
    test.crash(node)
    test.world.network.partition(two.name, three.name, True)
    _have_adopted_unheard(test, node, one, two)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    test.lose()
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
    test.crash(node)
    test.cut_off(away, one, two)
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
    test.lose(FrameType.FORWARDS)
    test.leave(one, node, targets=(one.name,))
    clients = {client.name for client in test.clients if client.persistent}
    registry = two.core.mesh.registry
    test.wait(lambda: clients <= {client_id for client_id, _ in registry.clients_of(one.name)}, "the new homes")
    test.crash(one)
