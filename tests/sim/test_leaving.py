"""Leaving a cluster, in the simulator: what a node has goes to the others, whoever dies meanwhile."""

from itertools import pairwise

import pytest
from builds import compiled
from leave_world import LeaveWorld
from virtual_clients import OFFLINE, ONLINE, Client

from cluster.departures import PATIENCE_S
from cluster.frames import FrameType
from cluster.leave_desk import TIMED_OUT
from cluster.leave_frames import Verb, unpack_answer
from cluster.leaving import STEP_1_DONE, State

QUEUES = 60


def test_step_one_stops_the_listeners_and_nothing_else():
    test = LeaveWorld()
    one, two, _three = test.nodes
    first = test.leave_and_wait(two, one, Verb.STOP_LISTENERS)
    assert (first.exit_code, first.text) == (0, STEP_1_DONE)
    assert not one.core.leaver.job.accepts()
    again = test.leave_and_wait(one, one, Verb.STOP_LISTENERS)
    assert (again.exit_code, again.text) == (0, STEP_1_DONE)
    test.world.run(20.0)
    assert one.core.leaver.job.state == State.DRAINING_LISTENERS
    assert len(two.core.mesh.peers) == 2, "it is a member"
    assert test.leave_and_wait(two, one, Verb.ABORT).exit_code == 0
    assert one.core.leaver.job.accepts()


@pytest.mark.parametrize("place", [0, 1], ids=["from another node", "from itself"])
def test_offline_queues_are_left_at_the_first_time_and_moved_at_the_second(place):
    test = LeaveWorld(count=3)
    node, one, two = test.nodes
    at = [one, node][place]
    clients = test.make_sessions(node, 20)
    publisher = test.publisher(one)
    test.publish(publisher, clients, 3)
    failed = test.leave_and_wait(at, node, timeout_s=1, interval_s=1)
    assert failed.exit_code == 1
    assert "20 queues with 60 messages remain on node1@h" in failed.text
    assert "vmq-admin cluster leave node=node1@h -k -i 1 -t 1" in failed.text
    assert test.queued(node) == {client.name: 3 for client in clients}
    done = test.leave_and_wait(at, node, timeout_s=1, interval_s=1)
    assert (done.exit_code, done.text) == (0, "Done")
    test.wait(lambda: test.gone == {"node1@h"}, "the end")
    assert not node.up
    for other in (one, two):
        assert len(test.queued(other)) == 10
        assert set(test.queued(other).values()) == {3}
        assert list(other.core.mesh.peers) == [{one: two, two: one}[other].name]
        assert other.core.mesh.readiness.ready
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_clients_claim_their_queues_and_force_is_not_needed():
    test = LeaveWorld(seed=2, count=3)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 12, online=True)
    publisher = test.publisher(two)
    # One message is in flight at each.
    for client in clients:
        client.inbox.ack_delay_s = 5.0
        client.comes_back = False
    for client in clients:
        publisher.publish(next(iter(client.ever_wanted)), 1)
    test.world.run(0.2)
    command = test.leave(one, node, timeout_s=60, interval_s=1)
    test.wait(lambda: all(client.state == "offline" for client in clients), "the end of the connections")
    test.world.run(1.5)
    assert command.progress and "12 offline" in command.progress[-1]
    for client in clients:
        client.inbox.ack_delay_s = 0.0
    test.come_back(clients, [one, two])
    test.wait(command.is_over, "the end")
    assert (command.exit_code, command.text) == (0, "Done")
    assert test.gone == {node.name}
    for client in clients:
        assert {arrival.payload for arrival in client.inbox.arrivals}, client.name


def test_force_does_not_wait():
    test = LeaveWorld(seed=3)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 30, qos=2)
    test.publish(test.publisher(two), clients, 2, qos=2)
    begun = test.world.now
    done = test.leave_and_wait(two, node, force=True, timeout_s=1000)
    assert done.exit_code == 0
    assert test.world.now - begun < 10.0
    assert [len(test.queued(other)) for other in (one, two)] == [15, 15]
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_who_waits_to_connect_while_a_node_leaves_is_refused_and_publishes_nothing_there():
    """It had nothing left and had told the others; what was published there then nobody took from it."""
    test = LeaveWorld(seed=3)
    node, one, _two = test.nodes
    late = next(
        Client(test.world, test.ledger, name, node, 4, False, {})
        for name in (f"late {number}" for number in range(1000))
        if node.core.moving.registration.keeper(name) == one.name
    )
    late.comes_back = False
    test.clients.append(late)
    # It goes on telling the others that it leaves for a while.
    goodbye = (FrameType.MEMBERS, FrameType.HELLO)
    test.lose(FrameType.TURN_GRANT, *goodbye)
    for _ in range(3):
        late.publish(b"late", 1)
    late.connect()
    test.world.run(0.2)
    assert late.state != "online"
    command = test.leave(one, node, force=True)
    test.wait(lambda: node.core.leaver.job.state == State.LEAVING, "the end of all that it had")
    test.world.network.lose_frame = lambda frame: frame[1] in goodbye
    test.world.run(3.0)
    assert late.state == OFFLINE
    assert not any(message.acked for message in test.ledger.published.values())
    assert node.core.leaver.job.state == State.LEAVING
    test.lose()
    test.wait(command.is_over, "the leave")


def test_no_session_goes_to_a_node_that_asked_for_it_and_has_left_meanwhile():
    """It had not wholly come where it was, so that whoever asked had to wait.

    The epoch of that was later than all that others gave, since its clock was ahead of theirs.
    """
    test = LeaveWorld(seed=19)
    node, one, two = test.nodes
    node.clocks.ahead_ms = 150_000
    (client,) = test.make_sessions(two, 1)
    test.lose(FrameType.SWITCH)
    client.home = one
    client.connect()
    test.wait(lambda: client.state == ONLINE, "the session")
    rival = Client(test.world, test.ledger, "rival", node, 4, True, {})
    rival.client_id = client.name
    rival.comes_back = False
    rival.connect()
    test.world.run(PATIENCE_S - 0.3)
    assert rival.state != ONLINE
    assert test.leave_and_wait(one, node, force=True).exit_code == 0
    test.world.run(10.0)
    assert client.state == ONLINE
    test.lose()
    rival.home = two
    rival.come_back()
    test.wait(lambda: rival.state == ONLINE, "the session once more")
    test.publish(test.publisher(one), [client], 1)
    test.wait(lambda: rival.inbox.arrivals, "what is published")
    assert not client.inbox.arrivals


@pytest.mark.parametrize("comes_back", [True, False])
def test_whoever_follows_a_leave_hears_that_its_node_does_not_run(comes_back):
    test = LeaveWorld(seed=8)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 4)
    command = test.leave(one, node, timeout_s=5, interval_s=1)
    test.world.run(2.0)
    test.crash(node)
    test.wait(lambda: "does not run any more: waiting 60 s" in command.progress[-1], "the news", 5.0)
    if comes_back:
        node.start()
        test.wait(command.is_over, "the failure")
        assert "4 queues with 0 messages remain on node1@h" in command.text
        return
    test.world.run(55.0)
    assert not command.is_over()
    test.wait(command.is_over, "the end of its patience", 10.0)
    assert (command.exit_code, command.text) == (
        1,
        "node1@h does not run any more; its leave goes on when it does: see --status",
    )
    node.start()
    test.wait(test.whole, "its return")
    assert test.leave_and_wait(one, node, force=True).exit_code == 0
    test.come_back(clients, [one, two])


def test_one_leave_at_a_time():
    test = LeaveWorld(seed=4)
    node, one, two = test.nodes
    test.make_sessions(node, 3)
    assert test.leave_and_wait(one, node, Verb.STOP_LISTENERS).exit_code == 0
    test.world.run(2.0)
    for at in (one, two, node):
        for verb in (Verb.STOP_LISTENERS, Verb.MOVE, Verb.DRY_RUN):
            second = test.leave_and_wait(at, one, verb)
            assert second.exit_code == 1
            assert "node1@h is leaving the cluster already (draining-listeners)" in second.text
    assert [name for name, report in two.core.leave_desk.status() if report is not None] == [
        each.name for each in test.nodes
    ]
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
    test.world.run(2.0)
    assert test.leave_and_wait(node, one, Verb.STOP_LISTENERS).exit_code == 0


@pytest.mark.parametrize("verb", [Verb.STOP_LISTENERS, Verb.MOVE, Verb.DRY_RUN, Verb.ABORT])
def test_a_node_that_runs_and_answers_no_order_is_not_waited_for_without_end(verb):
    test = LeaveWorld(seed=4)
    node, one, _two = test.nodes
    test.lose(FrameType.LEAVE_ORDER)
    begun = test.world.now
    command = test.leave_and_wait(one, node, verb)
    assert command.exit_code == 4
    assert "node1@h runs, but has not answered within 10 s" in command.text
    assert test.world.now - begun < 11.0
    test.lose()
    assert test.leave_and_wait(one, node, Verb.DRY_RUN).exit_code == 0


def test_of_a_leave_whose_node_does_not_run_it_is_said_what_can_be_done():
    test = LeaveWorld(seed=4)
    node, one, two = test.nodes
    test.make_sessions(node, 3)
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
    test.leave(one, node, timeout_s=100)
    test.wait(lambda: node.core.leaver.job.state == State.WAITING, "the begin")
    test.world.run(2.0)
    node.kill()
    test.wait(lambda: not any(at.core.mesh.peers[node.name].running for at in (one, two)), "the notice of its death")
    assert test.leave_and_wait(two, node, Verb.ABORT).text == (
        "node1@h does not run: its leave (waiting) can be aborted when it runs again"
    )
    for at in (one, two):
        assert test.leave_and_wait(at, one, Verb.STOP_LISTENERS).text == (
            "node1@h is leaving the cluster already (waiting): one node at a time. It does not run: start it, or have "
            "it removed by vmq-admin cluster leave node=node1@h"
        )
    assert test.leave_and_wait(two, node).text == "Done"
    assert test.leave_and_wait(two, one, Verb.STOP_LISTENERS).exit_code == 0


def test_of_two_that_begin_at_once_one_ends_itself():
    test = LeaveWorld(seed=5)
    node, one, _two = test.nodes
    test.make_sessions(node, 3)
    test.make_sessions(one, 3, first=3)
    first = test.leave(node, node, timeout_s=5)
    second = test.leave(one, one, timeout_s=5)
    test.wait(lambda: first.is_over() and second.is_over(), "both")
    assert [first.exit_code, second.exit_code] == [1, 1]
    said = sorted([first.text, second.text])
    assert "remain on" in said[0] and said[1].startswith("the leave of ")
    assert sorted([node.core.leaver.job.state, one.core.leaver.job.state]) == [State.IDLE, State.FAILED_WITH_QUEUES]


def test_a_member_that_is_down_is_named_at_once_and_not_in_the_way_of_targets():
    test = LeaveWorld(seed=6)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 10)
    test.publish(test.publisher(one), clients, 2)
    two.kill()
    test.wait(lambda: not one.core.mesh.peers[two.name].running, "the notice of its death")
    test.wait(lambda: not node.core.mesh.peers[two.name].running, "the notice of its death")
    begun = test.world.now
    refused = test.leave_and_wait(one, node, timeout_s=5)
    assert refused.exit_code == 1
    assert "node3@h does not run" in refused.text and "--force-targets" in refused.text
    assert test.world.now - begun < 10.0
    assert node.core.leaver.job.accepts()
    wrong = test.leave_and_wait(one, node, targets=("node3@h", "node2@h"))
    assert wrong.exit_code == 1 and "no target: node3@h" in wrong.text
    for name in ("node", "node9@h", "\udcff@h"):
        # It is no name of a member, nor perhaps of any node, that another one could read.
        wrong = test.leave_and_wait(one, node, targets=(name,))
        assert (wrong.exit_code, wrong.text.partition(";")[0]) == (1, f"{name} is not a member of this cluster")
    done = test.leave_and_wait(one, node, targets=("node2@h",), force=True)
    assert (done.exit_code, done.text) == (0, "Done")
    assert len(test.queued(one)) == 10
    two.start()
    test.wait(lambda: list(two.core.mesh.peers) == ["node2@h"] and test.whole(), "the news of the leave")
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_a_member_that_dies_in_the_middle_fails_the_leave():
    test = LeaveWorld(seed=7)
    node, one, two = test.nodes
    test.make_sessions(node, 5)
    command = test.leave(one, node, timeout_s=100)
    test.world.run(2.0)
    two.kill()
    died = test.world.now
    test.wait(command.is_over, "a failure")
    assert test.world.now - died < 15.0
    assert command.exit_code == 1
    assert "node3@h does not run" in command.text
    assert node.core.leaver.job.state == State.FAILED_WITH_QUEUES


def test_a_dry_run_says_what_would_be_and_does_nothing():
    test = LeaveWorld(seed=8)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 5)
    test.publish(test.publisher(one), clients, 2)
    test.publisher(node, "visitor")
    dry = test.leave_and_wait(two, node, Verb.DRY_RUN)
    assert dry.exit_code == 0
    assert dry.text.splitlines() == [
        "node2@h would get 3 queues with 6 messages",
        "node3@h would get 2 queues with 4 messages",
        "1 client without a persistent session would be disconnected",
        "nothing would be lost",
    ]
    assert node.core.leaver.job.state == State.IDLE


@pytest.mark.parametrize("state", ["waiting", "migrating"])
def test_an_abort_puts_the_node_back_in_service(state):
    test = LeaveWorld(seed=9)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 40)
    test.publish(test.publisher(one), clients, 3)
    command = test.leave(one, node, timeout_s=100, force=state == "migrating")
    test.wait(lambda: node.core.leaver.job.state.text() == state, state)
    if state == "migrating":
        test.wait(lambda: len(node.core.moving.departures.leavings) > 0, "a move")
    assert test.leave_and_wait(two, node, Verb.ABORT).exit_code == 0
    test.wait(command.is_over, "the end of the first command")
    assert (command.exit_code, command.text) == (1, "the leave of node1@h was aborted")
    assert node.core.leaver.job.accepts()
    test.come_back(clients, [node, one, two])
    test.judge(clients)


@pytest.mark.parametrize("first", [Verb.STOP_LISTENERS, Verb.MOVE, Verb.ABORT])
def test_an_order_that_came_to_nobody_is_not_taken_after_its_contrary(first):
    """It was sent once more a second later: the node left though its abort was done (seed 32323)."""
    test = LeaveWorld(seed=9)
    node, one, _two = test.nodes
    test.make_sessions(node, 3)
    begun = test.leave(one, node, timeout_s=100)
    test.wait(lambda: node.core.leaver.job.state == State.WAITING, "the begin")
    if first != Verb.ABORT:
        assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
        test.wait(begun.is_over, "the end of the first leave")
    test.lose(FrameType.LEAVE_ORDER)
    overtaken = test.leave(one, node, first, timeout_s=100)
    test.world.run(0.1)
    assert not overtaken.is_over()
    test.lose()
    last = test.leave(one, node, Verb.MOVE if first == Verb.ABORT else Verb.ABORT, timeout_s=100)
    test.world.run(3.0)
    assert last.exit_code == (None if first == Verb.ABORT else 0)
    assert node.core.leaver.job.state == (State.WAITING if first == Verb.ABORT else State.IDLE)
    assert (overtaken.exit_code, overtaken.text) == (
        TIMED_OUT,
        "the contrary was ordered before node1@h answered: --status shows what it does",
    )


def test_an_order_that_was_given_elsewhere_may_be_taken_after_an_abort_though_its_progress_is_heard_before():
    """Nobody who knows of one of them knows of the other, so this is nothing that a plan may find fault with."""
    test = LeaveWorld(seed=9)
    node, one, two = test.nodes
    test.make_sessions(node, 3)
    test.lose(FrameType.LEAVE_ORDER)
    before = test.leave(one, node, timeout_s=100, interval_s=1)
    test.world.run(0.1)
    test.world.network.lose_frame = lambda frame: (
        frame[1] == FrameType.LEAVE_ANSWER and unpack_answer(frame)[2] == "Done" and not before.progress
    )
    abort = test.leave(two, node, Verb.ABORT)
    test.wait(abort.is_over, "the end of the abort")
    assert (abort.exit_code, bool(before.progress), before.is_over()) == (0, True, False)
    assert not node.core.leaver.job.accepts()
    assert not abort.is_last()


def test_an_abort_is_the_last_order_when_those_before_were_taken_or_are_over():
    test = LeaveWorld(seed=9)
    node, one, two = test.nodes
    test.make_sessions(node, 3)
    assert test.leave_and_wait(one, node, Verb.STOP_LISTENERS).exit_code == 0
    heard = test.leave(one, node, timeout_s=100, interval_s=1)
    test.wait(lambda: heard.progress, "progress")
    assert test.leave(two, node, Verb.ABORT).is_last()


def test_an_order_of_a_node_that_has_restarted_is_another_one_than_before():
    test = LeaveWorld(seed=9)
    node, one, _two = test.nodes
    assert test.leave_and_wait(one, node, Verb.STOP_LISTENERS).exit_code == 0
    one.kill()
    one.start()
    test.wait(test.whole, "all nodes")
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
    assert node.core.leaver.job.accepts()


def test_connections_are_closed_at_the_rate_that_was_asked_for():
    test = LeaveWorld(seed=10)
    node, one, _two = test.nodes
    clients = test.make_sessions(node, 20, online=True)
    for client in clients:
        client.comes_back = False
    command = test.leave(one, node, timeout_s=2, rate=5, interval_s=1)
    counts = []
    for _ in range(5):
        counts.append(node.core.owner.draining.online())
        test.world.run(1.0)
    assert all(0 < before - after <= 6 for before, after in pairwise(counts[1:])), counts
    test.wait(command.is_over, "the end")
    assert "20 queues" in command.text


def test_no_will_of_a_client_that_comes_back_elsewhere_fires():
    test = LeaveWorld(seed=11, leave_will_grace_s=10)
    node, one, two = test.nodes
    witness = test.make_sessions(two, 1, online=True)[0]
    topic = next(iter(witness.ever_wanted))
    clients = test.make_sessions(node, 4, first=1, online=True)
    for client in clients:
        client.will = (topic, 1, 0)
        client.disconnect(False)
    test.wait(lambda: all(client.state == "online" for client in clients), "connections with wills")
    for client in clients:
        client.comes_back = False
    command = test.leave(one, node, timeout_s=60)
    test.world.run(3.0)
    test.come_back(clients[:3], [one, two])
    test.world.run(5.0)
    assert not witness.inbox.arrivals
    test.leave(one, node, force=True)
    test.wait(command.is_over, "the end")
    assert command.exit_code == 0
    test.world.run(15.0)
    # Of the one that did not come back it fired where its session went.
    assert len(witness.inbox.arrivals) == 1


@compiled
@pytest.mark.parametrize(
    ("victim", "seed"),
    [
        (victim, seed)
        for victim, seeds in {"the node that leaves": 10, "a target": 10, "both": 3, "the third": 3}.items()
        for seed in range(seeds)
    ],
)
def test_whoever_is_killed_in_the_middle_nothing_is_lost_or_doubled(victim, seed, request):
    """The job goes on by itself when its node is back, whatever became of the command."""
    killed_in_the_middle(victim, seed, request.config.getoption("leave_queues", None) or QUEUES)


def killed_in_the_middle(victim, seed, queues=QUEUES):
    """Have a node leave with so many queues, and kill somebody meanwhile."""
    test = LeaveWorld(seed=100 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, queues, qos=1 + seed % 2)
    test.publish(test.publisher(one), clients, 4, qos=1 + seed % 2)
    test.leave(two, node, force=True)
    rng = test.world.rng
    victims = {"the node that leaves": [node], "a target": [one], "both": [node, one], "the third": [one, two]}[victim]
    for each in victims:
        test.crash_later(each, rng.uniform(0.0, 0.4))
    for _ in range(400):
        test.world.run(0.3)
        for each in victims:
            if not each.up and each.name not in test.gone:
                test.world.run(rng.uniform(0.0, 1.0))
                each.start()
        if node.core is not None and node.core.leaver.job.state == State.FAILED_WITH_QUEUES:
            # A member was down for too long: once more.
            test.leave(node, node, force=True)
        if test.gone == {node.name} and all(each.up for each in (one, two)):
            break
    test.wait(lambda: test.gone == {node.name}, "the end of the leave")
    test.end_crashes()
    test.wait(test.whole, "the rest of the cluster")
    assert len(test.queued(one)) + len(test.queued(two)) == queues
    test.come_back(clients, [one, two])
    test.judge(clients)


def operate(test, node, others, seconds):
    """Let operators at any node order, order again and abort, and nodes die, until the node has left."""
    rng = test.world.rng
    end = test.world.now + seconds
    orders = 0
    while node.name not in test.gone:
        test.world.run(rng.uniform(0.2, 2.0))
        for each in (node, *others):
            if not each.up and each.name not in test.gone:
                test.world.run(rng.uniform(0.0, 2.0))
                each.start()
        up = [each for each in (node, *others) if each.up]
        if node.name in test.gone or not node.up:
            continue
        at = rng.choice(up)
        choice = rng.random()
        is_late = test.world.now > end
        if is_late:
            test.end_crashes()
        if choice < 0.15 and orders and not is_late:
            test.leave(at, node, Verb.ABORT)
        elif choice < 0.35 and not is_late:
            test.crash_later(rng.choice((node, *others)), rng.uniform(0.0, 0.5))
        else:
            orders += 1
            force = is_late or rng.random() < 0.3
            test.leave(at, node, force=force, timeout_s=rng.choice((1, 2, 5)), rate=rng.choice((0, 5)))
        assert test.world.now < end + 120.0, f"{node.name} does not leave: {node.core.leaver.job.state!r}"


@compiled
@pytest.mark.parametrize("seed", range(12))
def test_clients_and_publishers_go_on_while_a_node_leaves(seed):
    """Sessions come and go, some are never there; whatever operators and faults do, everybody gets everything once."""
    test = LeaveWorld(seed=700 + seed, count=3 + seed % 2)
    node, *others = test.nodes
    rng = test.world.rng
    absent = test.make_sessions(node, 8, qos=2)
    clients = test.make_sessions(node, 8, qos=2, first=8, online=True)
    clients += test.make_sessions(others[0], 4, qos=2, first=16, online=True)
    for client in clients:
        client.roams = True
        client.inbox.ack_delay_s = rng.choice((0.0, 0.05, 0.3))
    publisher = test.publisher(others[0])
    publisher.persistent = True
    publisher.disconnect(False)
    for _ in range(6):
        for client in (*absent, *clients):
            test.world.later(rng.uniform(0.0, 12.0), publisher.publish, next(iter(client.ever_wanted)), 2)
    for client in clients:
        for _ in range(3):
            test.world.later(rng.uniform(0.0, 12.0), client.disconnect, rng.random() < 0.5)
    begun = test.world.now
    operate(test, node, others, 15.0)
    test.end_crashes()
    # What clients were to do they have done.
    test.world.run(max(0.0, begun + 13.0 - test.world.now))
    for each in others:
        if not each.up:
            each.start()
    test.wait(test.whole, "the rest of the cluster")
    test.wait(publisher.is_idle, "the acknowledgements")
    for client in clients:
        client.roams = False
    test.come_back([*absent, *clients], others)
    test.wait(lambda: not any(client.inbox.received for client in (*absent, *clients)), "the last releases")
    test.world.run(2.0)
    for client in (*absent, *clients):
        said = [each for each in test.ledger.published.values() if each.topic in client.ever_wanted and each.acked]
        missing = [each.number for each in said if each.payload not in client.inbox.copies]
        assert not missing, f"{client.name} misses {missing}"
        if not test.world.revived[client.name]:
            assert set(client.inbox.copies.values()) <= {1}, f"{client.name} heard something twice"
            heard = list(dict.fromkeys([arrival.payload for arrival in client.inbox.arrivals]))
            assert heard == [each.payload for each in said], f"{client.name} heard it in another order"
