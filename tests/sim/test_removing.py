"""Removing a node that does not answer, in the simulator: its sessions live on elsewhere, and it is told so."""

from types import SimpleNamespace

import checkers
import convergence
import pytest
from leave_world import TOPIC, LeaveWorld, heard_by
from virtual_clients import ONLINE, Client

from broker.core.events import Attach
from broker.core.records import CLOSE
from broker.mqtt.reasons import Reason
from cluster.arrivals import REMOVED_S
from cluster.frames import FrameType
from cluster.leave_frames import Order, Verb
from cluster.leaver import ASKED_MAX
from cluster.leaving import State
from cluster.node import AWAITED_S
from cluster.peers import UNHEARD_S
from cluster.readiness import ALL, AVAILABLE


def test_the_sessions_of_a_dead_node_are_split_evenly_and_get_new_messages():
    test = LeaveWorld(seed=20)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 10)
    publisher = test.publisher(one)
    test.crash(node)
    said = test.leave_and_wait(two, node)
    assert (said.exit_code, said.text) == (0, "Done")
    assert "node1@h does not run. It may be alive on the far side of a network partition" in said.progress[0]
    assert "holds 10 queues with 0 messages" in said.progress[1]
    assert [len(test.queued(other)) for other in (one, two)] == [5, 5]
    assert list(one.core.mesh.peers) == [two.name]
    assert one.core.mesh.readiness.ready and two.core.mesh.readiness.ready
    test.publish(publisher, clients, 3)
    test.come_back(clients, [two, one])
    test.judge(clients)
    test.world.run(REMOVED_S + 1.0)
    assert not any(node.core.owner.transfers.arriving() for node in (one, two))


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_a_client_asked_a_removed_node_for_is_known_if_that_was_heard(is_heard):
    """The node at which its session goes on was down then (seed 17133)."""
    test = LeaveWorld(seed=20, count=2)
    old, home = test.nodes
    (client,) = test.make_sessions(old, 1)
    topic_filter = TOPIC % 0
    client.comes_back = True
    client.connect()
    test.wait(lambda: client.state == ONLINE, "its return")
    client.unsubscribe(topic_filter)
    test.wait(lambda: not old.core.owner.session(client.name).subscriptions, "the end of its subscription")
    client.comes_back = False
    client.disconnect(False)
    test.crash(old)
    client.home = home
    client.comes_back = True
    client.connect()
    test.wait(lambda: client.state == ONLINE, "its return to the other node")
    client.subscribe(topic_filter, 1)
    test.wait(lambda: client.subscribed, "a subscription")
    client.comes_back = False
    client.disconnect(False)
    if not is_heard:
        test.world.network.partition(old.name, home.name, True)
    old.start()
    test.world.run(5.0)
    home.kill()
    test.world.network.heal_all()
    test.wait(lambda: not old.core.mesh.peers[home.name].running, "its death")
    assert test.leave_and_wait(old, home).exit_code == 0
    test.come_back([client], [old])
    assert list(old.core.owner.session(client.name).subscriptions) == [topic_filter][: int(is_heard)]
    home.is_gone = True
    assert convergence.sessions_converged(test.world, [client]) == ""


@pytest.mark.parametrize("count", [4, ASKED_MAX + 40])
@pytest.mark.parametrize("is_known", [True, False], ids=["at_who_knows", "at_who_does_not"])
def test_the_sessions_of_a_dead_node_live_of_which_not_all_members_know(is_known, count):
    """A member was down when they began, and the node died before it was back: what they are only the third knows."""
    test = LeaveWorld(seed=670)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2)
    test.crash(two)
    clients += test.make_sessions(node, count, first=2)
    test.crash(node)
    two.start()
    test.wait(test.whole, "the return")
    said = test.leave_and_wait(one if is_known else two, node)
    assert (said.exit_code, said.text) == (0, "Done")
    assert sum(len(test.queued(other)) for other in (one, two)) == len(clients)
    clients = clients[:6]
    test.publish(test.publisher(two), clients, 3)
    test.come_back(clients, [two, one])
    test.judge(clients)


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("is_back", [True, False])
def test_a_removal_waits_for_a_member_that_dies_and_knows_of_more(is_back, is_named):
    """It was not down when the removal was ordered, and nobody said that what only it knows may go (seed 13955).

    Whoever names it as a target says that others may be down, and not that it may (seed 3959).
    """
    test = LeaveWorld(seed=678)
    node, one, two = test.nodes
    targets = (one.name, two.name) if is_named else ()
    test.crash(two)
    clients = test.make_sessions(node, 4)
    test.crash(node)
    # Nor does it hear of these sessions before the other one dies.
    test.lose(FrameType.TABLE_COPY, FrameType.ADOPT)
    two.start()
    test.wait(test.whole, "the return")
    command = test.leave(two, node, targets=targets)
    test.crash(one)
    test.lose()
    if not is_back:
        test.wait(command.is_over, "the end of its patience")
        assert command.exit_code == 1
        assert command.text.startswith("node2@h does not say whether it knows of more sessions of node1@h")
        refusal = "no target: node2@h is not a running member" if is_named else "besides node1@h, node2@h does not run"
        assert test.leave_and_wait(two, node, targets=targets).text.startswith(refusal)
    one.start()
    if not is_back:
        test.wait(test.whole, "the return")
        command = test.leave(two, node, targets=targets)
    test.wait(command.is_over, "the removal")
    assert (command.exit_code, command.text) == (0, "Done")
    assert sum(len(test.queued(other)) for other in (one, two)) == len(clients)
    test.publish(test.publisher(two), clients, 3)
    test.come_back(clients, [two, one])
    test.judge(clients)


@pytest.mark.parametrize("is_heard", [False, True], ids=["dead", "heard_by_another"])
def test_a_session_of_a_removed_node_goes_on_belonging_to_its_user(is_heard):
    """No user orders an adoption: the one whose session it is need not be known to who has it adopted."""
    test = LeaveWorld(seed=677)
    node, one, two = test.nodes
    assert connects(test, node, "ann") == Reason.SUCCESS
    test.wait(lambda: one.core.mesh.registry.find("client"), "its home")
    if is_heard:
        test.world.network.partition(node.name, one.name, True)
        test.wait(lambda: not one.core.mesh.peers[node.name].running, "its absence")
    else:
        test.crash(node)
    said = test.leave_and_wait(one, node, targets=(two.name,))
    assert (said.exit_code, said.text) == (0, "Done")
    assert two.core.owner.session("client").user_name == "ann"
    assert connects(test, one, "bob") == Reason.CLIENT_IDENTIFIER_NOT_VALID
    assert connects(test, one, "ann") == Reason.SUCCESS
    assert two.core.owner.session("client") is None


def connects(test, node, user_name):
    """Return the reason with which a node answers the CONNECT of a user."""
    heard = []
    listener = node.listeners[0]
    number = listener.open(SimpleNamespace(answer=heard.append, connection_lost=lambda: None))
    listener.send(Attach(listener.key(number), "client", 5, False, 3600, 65535, user_name=user_name))
    test.wait(lambda: bool(heard), "its answer")
    return heard[0].reason


def test_a_removal_fails_if_a_member_can_not_take_what_only_it_knows_of():
    test = LeaveWorld(seed=673)
    node, one, two = test.nodes
    test.crash(two)
    # Of some of them the other member is the keeper.
    test.make_sessions(node, 12)
    test.crash(node)
    # Nor does it ask.
    test.lose(FrameType.TABLE_COPY)
    two.start()
    test.wait(test.whole, "the return")
    test.lose(FrameType.TABLE_COPY, FrameType.TURN_GRANT)
    said = test.leave_and_wait(two, node)
    assert said.exit_code == 1
    assert " sessions of node1@h have no new home: node2@h could not take them; a member takes none" in said.text
    test.lose()
    test.wait(test.whole, "a quiet cluster")
    assert test.leave_and_wait(two, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 12


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "unheard"])
def test_a_removal_fails_while_a_member_runs_and_does_not_tell(is_frozen):
    """What only it knows of would be forgotten: its disk is full, or what it says of its sessions does not come."""
    test = LeaveWorld(seed=676)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    restless = test.publisher(two)
    test.crash(node)
    lost = set()

    def fails_at_the_order(frame):
        if frame[1] == FrameType.ADOPT and is_frozen:
            two.core.mesh.freeze(True)
        elif frame[1] == FrameType.ADOPT_LEFT and not lost:
            lost.update((FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE))
            restless.subscribe(b"more", 0)
        return frame[1] in lost

    test.world.network.lose_frame = fails_at_the_order
    said = test.leave_and_wait(one, node, targets=(one.name,))
    assert bool(lost) != is_frozen
    assert (said.exit_code, said.text.splitlines()[-1]) == (
        1,
        "node3@h does not say whether it knows of more sessions of node1@h, as when it has died, or its disk is full. "
        "node1@h stays a member; give the order without --force-targets",
    )
    two.core.mesh.freeze(False)
    test.lose()
    test.wait(test.whole, "a quiet cluster")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 4


def test_a_removal_fails_whose_only_target_dies():
    test = LeaveWorld(seed=674)
    node, one, two = test.nodes
    test.make_sessions(node, 400)
    test.crash(node)
    command = test.leave(one, node, targets=(two.name,))
    test.world.run(0.05)
    two.kill()
    test.wait(command.is_over, "the failure")
    assert command.exit_code == 1
    assert command.text.endswith(
        "have no new home: none of its targets runs. node1@h stays a member; give the order without --force-targets"
    )
    two.start()
    test.wait(test.whole, "the return")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 400


def test_a_dead_node_is_removed_while_clients_subscribe_all_the_time():
    """What a member says of its sessions is never known to all at once then."""
    test = LeaveWorld(seed=675)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    test.crash(node)
    for home in (one, two):
        restless = Client(test.world, test.ledger, f"restless {home.name}", home, 4, True, {})
        restless.connect()
        for number in range(6000):
            topic_filter = b"restless/%d" % number
            test.world.later(0.005 * number, restless.subscribe, topic_filter, 0)
    test.world.run(0.5)
    said = test.leave(one, node)
    test.wait(said.is_over, "the removal", 20.0)
    assert (said.exit_code, said.text) == (0, "Done")
    assert sum(len(test.queued(other)) for other in (one, two)) == 4


def test_a_removal_fails_whose_targets_know_nothing_of_the_sessions():
    test = LeaveWorld(seed=671)
    node, one, two = test.nodes
    test.crash(two)
    test.make_sessions(node, 4)
    test.crash(node)
    # Nor does it ask.
    test.lose(FrameType.TABLE_COPY)
    two.start()
    test.wait(test.whole, "the return")
    said = test.leave_and_wait(one, node, targets=(two.name,))
    assert said.exit_code == 1
    assert said.text.startswith(
        "4 sessions of node1@h have no new home: none of node3@h could take them. node1@h stays"
    )
    assert said.text.endswith("give the order without --force-targets")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 4


@pytest.mark.parametrize("delay_s", [0, 1, 40])
@pytest.mark.parametrize("planned", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("seed", range(4))
def test_the_wills_of_a_dead_node_go_with_its_sessions_or_are_published(seed, planned, delay_s):
    test = LeaveWorld(seed=700 + seed)
    node, one, two = test.nodes
    (witness,) = test.make_sessions(two, 1, online=True)
    topic = next(iter(witness.ever_wanted))
    clients = test.make_sessions(node, 6, first=1, online=True)
    passing = test.publisher(node, "passing")
    for client in [*clients, passing]:
        client.version = 5
        client.will = (topic, 1, delay_s)
        client.disconnect(False)
    test.wait(lambda: all(client.state == "online" for client in [*clients, passing]), "connections with wills")
    test.world.run(1.0)
    for client in [*clients, passing]:
        client.comes_back = False
    if planned:
        node.core.announce_stop()
        node.wake(0.0)
        test.world.run(0.3)
    test.crash(node)
    command = test.leave(one, node)
    if seed % 2:
        test.crash_later(two if seed == 1 else one, 0.3)
        test.world.run(3.0)
        test.end_crashes()
        for victim in (one, two):
            if not victim.up:
                victim.start()
        test.wait(test.whole, "the return")
        command = test.leave(one, node)
    test.wait(command.is_over, "the removal")
    assert command.exit_code == 0 or "not a member" in command.text
    test.wait(lambda: not any(node.name in other.core.mesh.peers for other in (one, two)), "the news")
    test.wait(lambda: witness.inbox.arrivals, "the will of the client whose session ended")
    back = clients[:2] if delay_s == 40 else []
    test.come_back(back, [one, two])
    test.world.run(60.0)
    # That of a session that ended, and those of clients that did not come back in time; at once or later.
    assert len(heard_by(witness)) == 7 - len(back) == len(set(heard_by(witness)))


def test_a_removed_node_that_comes_back_is_told_so_and_serves_nobody():
    test = LeaveWorld(seed=21)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    test.crash(node)
    assert test.leave_and_wait(one, node).exit_code == 0
    assert not one.core.is_awaited(one.clocks.monotonic())
    node.start()
    while node.name not in test.gone:
        assert node.core.is_awaited(node.clocks.monotonic()), "it serves nobody before it knows"
        test.world.run(0.01)
    node.start()
    assert node.core.leaver.job.state == State.REMOVED, "it knows at once when it is started again"
    assert not node.core.leaver.job.accepts()
    assert list(one.core.mesh.peers) == [two.name]


def test_a_removed_node_publishes_no_wills_while_it_waits_to_be_told_so():
    """Members that refuse its key live, and take long to say why. As a donor it gives away what it published."""
    test = LeaveWorld(seed=678, leave_will_grace_s=1)
    node, one, two = test.nodes
    (witness,) = test.make_sessions(two, 1, online=True)
    mortals = [test.publisher(home, f"mortal {home.name}") for home in (node, one)]
    for mortal in mortals:
        mortal.will = (next(iter(witness.ever_wanted)), 1, 0)
        mortal.disconnect(False)
    test.wait(lambda: all(mortal.state == ONLINE for mortal in mortals), "connections with wills")
    test.world.run(1.0)
    for mortal in mortals:
        mortal.comes_back = False
    test.crash(node)
    mortals[1].disconnect(True)
    assert test.leave_and_wait(one, node).exit_code == 0
    test.wait(lambda: len(heard_by(witness)) == 2, "both wills")
    told_at = test.world.now + AWAITED_S + 2.0
    one.stalled_until = two.stalled_until = told_at
    node.start()
    while node.name not in test.gone:
        assert node.core.is_awaited(node.clocks.monotonic()), "it serves nobody before it knows"
        test.world.run(0.01)
    assert test.world.now > told_at
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the donor's end")
    test.world.run(REMOVED_S)
    assert len(heard_by(witness)) == 2


@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "stays"])
def test_the_wills_of_a_node_are_published_once_though_another_member_hears_it_while_it_is_removed(is_removed):
    """That one published them again and again, as their connections stood (seed 16510), also if the node stayed.

    Of some it is the keeper. Whoever does not hear the node has to see to these as well.
    """
    test = LeaveWorld(seed=684)
    node, one, two = test.nodes
    (witness,) = test.make_sessions(one, 1, online=True)
    mortals = [test.publisher(node, f"mortal{number}") for number in range(12)]
    for mortal in mortals:
        mortal.will = (next(iter(witness.ever_wanted)), 1, 0)
        mortal.disconnect(False)
    test.wait(lambda: all(mortal.state == ONLINE for mortal in mortals), "connections with wills")
    test.world.run(1.0)
    for mortal in mortals:
        mortal.comes_back = False
    test.cut_off(node, one)
    keepers = {one.core.moving.registration.keeper(mortal.name) for mortal in mortals}
    assert keepers == {one.name, two.name}
    if not is_removed:
        test.lose(FrameType.ADOPT_LEFT)
    command = test.leave(one, node)
    if not is_removed:
        test.world.run(5.0)
        test.world.network.heal(node.name, one.name)
    test.wait(command.is_over, "its end")
    test.lose()
    wills = sorted([left.message.payload for left in test.ledger.wills])
    if is_removed:
        assert (command.exit_code, command.text) == (0, "Done")
        test.wait(lambda: node.name in test.gone, "the node's end")
    else:
        assert "runs again and stays a member" in command.text
        test.world.run(5.0)
        # It is connected yet, as only some members knew: what it left goes when it is gone.
        assert heard_by(witness) == wills
        for mortal in mortals:
            mortal.disconnect(True)
        wills = sorted(wills * 2)
    test.world.run(30.0)
    assert heard_by(witness) == wills


def test_a_will_that_is_left_anew_is_not_published_again_by_who_removes_a_node_that_another_member_hears():
    """Its connection stands, and its new will comes by way of that member to who has published the last one."""
    test = LeaveWorld(seed=1693)
    node, one, two = test.nodes
    (witness,) = test.make_sessions(one, 1, online=True)
    mortal = test.publisher(node, "mortal")
    mortal.will = (next(iter(witness.ever_wanted)), 1, 0)
    mortal.disconnect(False)
    test.wait(lambda: mortal.state == ONLINE, "a connection with a will")
    test.cut_off(node, one)
    # The removal is not to end.
    test.lose(FrameType.ADOPT_LEFT)
    command = test.leave(one, node)
    claims = two.core.mesh.registry.wills.claims_on
    test.wait(lambda: any(claim.spent for claim in claims(b"mortal")), "its will")

    def number_at(member):
        will = member.core.mesh.registry.wills.will(node.name, b"mortal")
        return 0 if will is None else will.number

    # Who has a new connection asks anew what that member knows of the one that is not heard.
    first = number_at(one)
    test.world.network.break_connection(two, node)
    test.wait(lambda: number_at(two) > first, "its next will")
    test.world.network.break_connection(two, one)
    test.wait(lambda: number_at(one) > first, "the news of that")
    test.wait(command.is_over, "the failure")
    test.world.run(10.0)
    assert heard_by(witness) == [left.message.payload for left in test.ledger.wills]


def test_a_removed_node_that_runs_is_told_so_by_a_member_that_it_hears():
    """It does not hear who removed it, and its connection to the other member stands all the while."""
    test = LeaveWorld(seed=672)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2, online=True)
    for other in (one, two):
        test.world.network.partition(node.name, other.name, True)
    one.kill()
    test.wait(lambda: not any(peer.running for peer in two.core.mesh.peers.values()), "the loneliness")
    test.world.network.partition(one.name, two.name, True)
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    one.start()
    test.world.network.heal(node.name, one.name)
    test.wait(lambda: node.core.mesh.peers[one.name].running, "the member that does not know")
    test.wait(lambda: one.core.mesh.peers[node.name].running, "the node, for that")
    test.world.run(1.0)
    test.world.network.heal(one.name, two.name)
    test.wait(lambda: node.name not in one.core.mesh.peers, "the news")
    test.wait(lambda: node.name in test.gone, "the node's end", 1.0)
    assert not any(client.is_online() for client in clients)


def test_a_node_that_starts_serves_when_a_member_is_heard_or_none_for_long():
    test = LeaveWorld(seed=24)
    node, one, _two = test.nodes
    test.wait(test.whole, "the others")
    for each in test.nodes:
        each.kill()
    node.start()
    assert node.core.is_awaited(node.clocks.monotonic())
    test.world.run(AWAITED_S - 0.5)
    assert node.core.is_awaited(node.clocks.monotonic())
    test.world.run(1.0)
    assert not node.core.is_awaited(node.clocks.monotonic())
    one.start()
    assert one.core.is_awaited(one.clocks.monotonic())
    test.wait(lambda: not one.core.is_awaited(one.clocks.monotonic()), "a member that is heard", 1.0)


def test_what_would_be_lost_is_said_first_and_asked_for_on_a_terminal():
    test = LeaveWorld(seed=22)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 3)
    test.publish(test.publisher(one), clients, 2)
    test.world.run(25.0)
    test.crash(node)
    dry = test.leave_and_wait(one, node, Verb.DRY_RUN)
    assert dry.exit_code == 0
    assert "holds 3 queues with 6 messages, as last known" in dry.text
    assert "node2@h gets 2 sessions" in dry.text and "node3@h gets 1 sessions" in dry.text
    one.core.leave_desk.command(99, node.name, Order(Verb.MOVE), one.clocks.monotonic(), True)
    one.wake(0.0)
    asked = []
    test.on_said = lambda said: asked.append(said) if said.command == 99 else None
    test.wait(lambda: asked, "a question")
    assert asked[0].asks and asked[0].text.endswith("Remove node1@h from the cluster?")
    assert len(two.core.mesh.peers) == 2
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 1


def test_a_second_member_that_is_down_is_named_at_once():
    test = LeaveWorld(seed=23, count=4)
    node, one, two, three = test.nodes
    test.make_sessions(node, 6)
    test.crash(node)
    test.crash(three)
    refused = test.leave_and_wait(one, node)
    assert refused.exit_code == 1 and "besides node1@h, node4@h does not run" in refused.text
    done = test.leave_and_wait(one, node, targets=("node2@h", "node3@h"))
    assert done.exit_code == 0
    assert [len(test.queued(other)) for other in (one, two)] == [3, 3]


@pytest.mark.parametrize("seed", range(6))
def test_whoever_is_killed_while_a_dead_node_is_removed_every_session_lives(seed):
    test = LeaveWorld(seed=200 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 40)
    test.crash(node)
    rng = test.world.rng
    test.leave(one, node)
    victim = [one, two][seed % 2]
    test.crash_later(victim, rng.uniform(0.0, 0.5))
    for _ in range(100):
        test.world.run(0.5)
        if not victim.up:
            test.world.run(rng.uniform(0.0, 5.0))
            victim.start()
        elif all(node.name not in other.core.mesh.peers for other in (one, two)):
            break
        elif test.world.run(8.0, test.whole):
            test.leave(one, node)
    test.end_crashes()
    test.wait(lambda: test.whole() and len(one.core.mesh.peers) == 1 == len(two.core.mesh.peers), "the removal")
    assert len(test.queued(one)) + len(test.queued(two)) == 40
    publisher = test.publisher(two)
    test.publish(publisher, clients, 2)
    test.come_back(clients, [two, one])
    test.judge(clients)


def test_a_node_that_starts_after_the_others_removed_it_has_left():
    test = LeaveWorld(seed=530)
    node, one, two = test.nodes
    test.lose(FrameType.REFUSED)
    test.leave(one, node, force=True)
    test.wait(lambda: not any(node.name in other.core.mesh.peers for other in (one, two)), "its removal")
    assert node.core.leaver.job.state == State.LEAVING
    node.kill()
    test.lose()
    node.start()
    test.wait(lambda: node.name in test.gone, "the end of the leave")


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
    test.crash(node)
    test.world.validate_every = 1
    assert test.leave_and_wait(one, node).exit_code == 0


def test_a_dead_node_is_removed_when_the_others_know_the_new_homes():
    """Who does not would know of nobody who wants what it is publishing."""
    test = LeaveWorld(seed=27)
    node, one, two = test.nodes
    # More than one turn may not be had while nothing is known.
    clients = test.make_sessions(node, 1)
    publisher = test.publisher(two)
    test.crash(node)
    test.lose(FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    command = test.leave(one, node, targets=(one.name,))
    test.wait(lambda: len(test.queued(one)) == 1, "the new homes")
    test.world.run(5.0)
    assert node.name in one.core.mesh.peers
    test.publish(publisher, clients, 1)
    test.lose()
    test.wait(command.is_over, "the removal")
    test.publish(publisher, clients, 1)
    test.come_back(clients, [one, two])
    # What was kept for the node that is gone waits for that, and holds up nothing that comes directly.
    test.wait(lambda: len(heard_by(*clients)) == 2, "what was kept")
    assert heard_by(*clients) == sorted(test.ledger.published)


@pytest.mark.parametrize("readiness", [ALL, AVAILABLE])
def test_who_was_away_sends_to_the_new_homes_when_it_knows_them(readiness):
    """It hears of the removal first, and would know of nobody who wants what it is publishing."""
    test = LeaveWorld(seed=28, count=4, readiness=readiness)
    node, away, one, two = test.nodes
    clients = test.make_sessions(node, 4)
    publisher = test.publisher(away)
    test.crash(node)
    test.cut_off(away, one, two)
    assert test.leave_and_wait(one, node, targets=(one.name, two.name)).exit_code == 0
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 1)
    test.lose(FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    test.world.network.heal(away.name, one.name)
    test.world.run(3.0)
    test.world.network.heal(away.name, two.name)
    test.wait(lambda: all(peer.running for peer in away.core.mesh.peers.values() if peer.name != node.name), "the rest")
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 1)
    test.world.run(3.0)
    assert away.core.mesh.readiness.ready
    assert node.name in away.core.mesh.peers
    test.lose()
    test.wait(lambda: node.name not in away.core.mesh.peers, "the removal")
    test.wait(lambda: sum(sum(test.queued(each).values()) for each in (one, two)) == 8, "what was kept")
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
    test.cut_off(node, two)
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
    # It may be refused until the keeper of its client id, which is not heard, is missed.
    client.come_back()
    test.wait(lambda: client.subscribed == client.wanted, "subscribing")
    client.comes_back = False
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
    test.isolate(away)
    client.home = home
    client.come_back()
    test.wait(lambda: client.state == ONLINE, "the move")
    test.crash(node)
    # Nor is it told of that by the others.
    test.lose(FrameType.TABLE_COPY)
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
    test.lose()
    test.world.network.heal_all()
    test.wait(test.whole, "the rest of the cluster")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert (client.state, client.connects, client.home) == (ONLINE, connects, home)
    test.publish(test.publisher(one), [client], 2, qos=2)
    test.come_back([client], [home])
    test.judge([client])


def test_sessions_that_may_have_gone_to_a_member_that_is_not_heard_any_more_are_adopted_by_nobody():
    """Whoever removes their node is cut off from that one as well, which it notices only after it was told to.

    That was so in seed 9930: the session began twice, and what was published for both afterwards came twice.
    """
    test = LeaveWorld(seed=9930, count=4)
    node, one, two, home = test.nodes
    # Before they miss it, nobody can have these turns there.
    kept = [each for each in range(40) if one.core.moving.registration.keeper(f"client{each}") == home.name]
    clients = [client for number in kept[:4] for client in test.make_sessions(node, 1, qos=2, first=number)]
    test.cut_off(node, one, two)
    for other in (one, two):
        test.world.network.partition(home.name, other.name, True)
    command = test.leave(one, node)
    for client in clients:
        client.home = home
        client.come_back()
    test.wait(lambda: all(client.state == ONLINE for client in clients), "the moves")
    connects = [client.connects for client in clients]
    test.wait(command.is_over, "the failure")
    assert (command.exit_code, command.text) == (
        1,
        "4 sessions of node1@h have no new home: none of node2@h, node3@h could take them; a member takes none while "
        "it does not hear all others. node1@h stays a member; give the order once more",
    )
    test.world.network.heal_all()
    test.wait(test.whole, "the rest of the cluster")
    test.publish(test.publisher(one), clients, 2, qos=2)
    test.world.run(1.0)
    assert [client.connects for client in clients] == connects
    assert list(test.queued(home)) == [client.name for client in clients]
    test.judge(clients)


def test_a_removal_survives_the_loss_of_power():
    """Whoever ordered it was told, and nobody else is there who knows."""
    test = LeaveWorld(seed=30)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    test.crash(node)
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
    test.crash(node)
    test.cut_off(away, one, two)
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
    test.crash(node)
    for client in clients:
        client.comes_back = True
    test.come_back(clients, [one])
    # What is published before that is known waits for the old home.
    test.wait(lambda: test.known(one, clients), "the interest of all")
    if is_removed:
        assert test.leave_and_wait(two, node).exit_code == 0
    connects = [client.connects for client in clients]
    test.restart(one, publisher)
    test.wait(lambda: all(each.connects > before for each, before in zip(clients, connects, strict=True)), "the end")
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
    test.isolate(one)
    assert test.leave_and_wait(one, node, targets=(one.name,)).exit_code == 0
    test.world.network.heal(one.name, node.name)
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    removed = node.store_id
    # Of two stores under one name the first one in this order is the member.
    test.recover(node, bytes([0] * 15 + [1]))
    assert node.store_id < removed
    test.wait(lambda: node.name in one.core.mesh.peers, "the donor")
    # Nobody has missed the old one here: the session is asked for there.
    clients[0].home = away
    clients[0].come_back()
    test.lose(FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    test.world.network.heal(one.name, away.name)
    test.wait(lambda: away.core.mesh.peers[one.name].running, "who removed it")
    test.world.run(1.0)
    assert away.core.mesh.peers[node.name].store_id == removed
    test.lose()
    test.wait(lambda: clients[0].state == ONLINE, "its return")
    assert clients[0].session_present
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.publish(test.publisher(one), clients, 1)
    test.come_back(clients, [away])
    test.judge(clients)
