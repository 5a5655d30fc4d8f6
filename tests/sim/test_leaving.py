"""Leaving a cluster, in the simulator: what a node has goes to the others, whoever dies meanwhile."""

from itertools import pairwise
from math import isfinite
from types import SimpleNamespace

import pytest
from leave_world import FAR_S, LeaveWorld
from virtual_clients import OFFLINE, ONLINE, Client

from broker.core.events import Attach
from broker.mqtt.reasons import Reason
from cluster.arrivals import REMOVED_S
from cluster.departures import PATIENCE_S
from cluster.frames import FrameType
from cluster.leave_desk import TIMED_OUT
from cluster.leave_frames import Order, Verb, unpack_answer
from cluster.leaver import ASKED_MAX
from cluster.leaving import STEP_1_DONE, State
from cluster.node import AWAITED_S

CREW = b"$share/crew/to/0"
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
    test.world.network.lose_frame = lambda frame: frame[1] in (FrameType.TURN_GRANT, *goodbye)
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
    test.world.network.lose_frame = None
    test.wait(command.is_over, "the leave")


def test_no_session_goes_to_a_node_that_asked_for_it_and_has_left_meanwhile():
    """It had not wholly come where it was, so that whoever asked had to wait.

    The epoch of that was later than all that others gave, since its clock was ahead of theirs.
    """
    test = LeaveWorld(seed=19)
    node, one, two = test.nodes
    node.clocks.ahead_ms = 150_000
    (client,) = test.make_sessions(two, 1)
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.SWITCH
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
    test.world.network.lose_frame = None
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
    dead(test, node)
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
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.LEAVE_ORDER
    begun = test.world.now
    command = test.leave_and_wait(one, node, verb)
    assert command.exit_code == 4
    assert "node1@h runs, but has not answered within 10 s" in command.text
    assert test.world.now - begun < 11.0
    test.world.network.lose_frame = None
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


def test_a_dry_run_tells_of_what_waits_in_shared_subscriptions():
    test = LeaveWorld(seed=8)
    node, _one, _two = test.nodes
    worker = make_worker(test, node)
    passing = make_worker(test, node, b"$share/gang/to/1", persistent=False, window=1)
    passing.inbox.ack_delay_s = FAR_S
    publisher = test.publisher(node)
    for topic in (b"to/0", b"to/1", b"to/1", b"to/1"):
        publisher.publish(topic, 1)
    test.wait(publisher.is_idle, "the acknowledgement")
    worker.comes_back = passing.comes_back = False
    dry = test.leave_and_wait(node, node, Verb.DRY_RUN)
    assert dry.text.splitlines()[2:] == [
        "2 clients without a persistent session would be disconnected",
        "1 message of shared subscriptions would go where their members are",
        "2 messages of shared subscriptions would be lost, as only clients without a persistent session wait for them",
    ]


def make_worker(test, node, shared_filter=CREW, persistent=True, window=0):
    """Make a member of a group, which goes away again if its session lasts."""
    name = f"worker of {node.name} for {shared_filter.decode()}"
    worker = Client(test.world, test.ledger, name, node, 5, persistent, {shared_filter: 1})
    worker.receive_maximum = window
    worker.connect()
    test.wait(lambda: worker.subscribed, "a member of a group")
    others = [other for other in test.nodes if other is not node]
    test.wait(lambda: all(has_part(other, node, shared_filter) for other in others), "the news of a member")
    if persistent:
        worker.comes_back = False
        worker.disconnect(False)
        test.world.run(0.5)
    return worker


def has_part(other, node, shared_filter):
    """Say whether a node has heard what another one has of a group."""
    group = other.core.mesh.interest.group(shared_filter)
    return group is not None and node.name in group.parts


def publish_to_group(test, publisher, count):
    """Publish to the crew, and return the payloads."""
    first = len(test.ledger.published)
    for _ in range(count):
        publisher.publish(b"to/0", 1)
    test.wait(publisher.is_idle, "the acknowledgements")
    return [each.payload for each in list(test.ledger.published.values())[first:]]


def heard_by(*clients):
    """Return what clients heard, each as often as it was heard."""
    return sorted([arrival.payload for client in clients for arrival in client.inbox.arrivals])


def work_off(test, workers, node, count):
    """Have members of a group connect, and hear so many messages."""
    for worker in workers:
        worker.home = node
        worker.come_back()
    test.wait(lambda: len(heard_by(*workers)) >= count, "what waits for the group")
    test.world.run(5.0)


def test_what_waits_in_a_group_goes_where_its_members_go_though_there_is_no_room():
    test = LeaveWorld(seed=12, max_queued_bytes=1_500)
    node, one, _two = test.nodes
    workers = [make_worker(test, each) for each in (node, one)]
    payloads = [
        payload
        for number, each in enumerate((node, one))
        for payload in publish_to_group(test, test.publisher(each, f"publisher {number}"), 150)
    ]
    test.wait(lambda: node.core.mesh.interest.group(CREW).parts[one.name].full, "the news that there is no room")
    for client in test.clients:
        client.comes_back = False
    done = test.leave_and_wait(one, node, force=True, targets=("node2@h",))
    assert done.exit_code == 0
    work_off(test, workers, one, len(payloads))
    assert heard_by(*workers) == sorted(payloads)


def test_what_a_leaving_node_kept_for_a_group_of_one_that_is_down_is_handed_over():
    test = LeaveWorld(seed=13)
    node, one, two = test.nodes
    worker = make_worker(test, two)
    (plain,) = test.make_sessions(two, 1)
    publisher = test.publisher(node)
    dead(test, two)
    payloads = publish_to_group(test, publisher, 5)
    publisher.comes_back = False
    assert test.leave_and_wait(one, node, targets=("node2@h",), force=True).exit_code == 0
    two.start()
    test.wait(lambda: test.whole() and len(two.core.mesh.peers) == 1, "the return")
    work_off(test, [worker], two, len(payloads))
    assert heard_by(worker) == sorted(payloads)
    test.come_back([plain], [two])
    assert heard_by(plain) == sorted(payloads)


@pytest.mark.parametrize("force", [False, True])
def test_what_waits_in_a_group_is_not_kept_for_a_stub_that_waits_for_a_member_which_is_down(force):
    """The stub ends with the node that leaves; the member of the group is where its session is."""
    test = LeaveWorld(seed=15)
    node, one, two = test.nodes
    worker = make_worker(test, node)
    publisher = test.publisher(node)
    payloads = publish_to_group(test, publisher, 5)
    publisher.comes_back = False
    dead(test, two)
    if not force:
        # An order that is taken up again does not wait for ever.
        assert test.leave_and_wait(one, node, targets=("node2@h",), timeout_s=1).exit_code == 1
    done = test.leave_and_wait(one, node, targets=("node2@h",), force=force, timeout_s=1)
    assert (done.exit_code, done.text) == (0, "Done")
    assert in_groups(one) == 5
    two.start()
    test.wait(lambda: test.whole() and len(two.core.mesh.peers) == 1, "the return")
    work_off(test, [worker], two, len(payloads))
    assert heard_by(worker) == sorted(payloads)


def in_groups(node):
    """Return how many messages wait in the groups of a node."""
    return node.core.owner.draining.in_groups()[0]


def test_nobody_chooses_a_node_that_leaves_for_a_group_of_which_it_has_stubs():
    test = LeaveWorld(seed=16, count=4)
    node, one, other, two = test.nodes
    worker = make_worker(test, node)
    publisher = test.publisher(other)
    dead(test, two)
    # It goes on telling the others that it leaves for a while.
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MEMBERS
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: node.core.leaver.job.state == State.LEAVING, "the end of all that it had")
    assert node.core.owner.transfers.departures
    payloads = publish_to_group(test, publisher, 20)
    assert in_groups(one) == 20
    test.world.network.lose_frame = None
    test.wait(command.is_over, "the leave")
    work_off(test, [worker], one, len(payloads))
    assert heard_by(worker) == sorted(payloads)


def test_what_is_under_way_to_a_group_is_waited_for():
    """Who sent it has heard since that the member there is gone; one of the others removes the node before it comes."""
    test = LeaveWorld(seed=18)
    node, one, two = test.nodes
    publisher = test.publisher(two)
    worker = make_worker(test, one)
    make_worker(test, node, persistent=False).comes_back = False
    network = test.world.network
    arrives = network.frame_arrives
    held = []

    def hold(target, sender, connection, frame):
        if target is node and sender == two.name and frame[1] == FrameType.FORWARDS:
            held.append((target, sender, connection, frame))
        elif not (target is two and frame[1] in (FrameType.MEMBERS, FrameType.HELLO)):
            arrives(target, sender, connection, frame)

    network.frame_arrives = hold
    for _ in range(5):
        publisher.publish(b"to/0", 1)
    test.wait(lambda: held, "what is for the member that is connected")
    command = test.leave(one, node, force=True)
    test.world.run(3.0, lambda: node.core.leaver.job.state == State.LEAVING)
    test.world.run(3.0, lambda: node.name not in one.core.mesh.peers)
    network.frame_arrives = arrives
    for frame in held:
        arrives(*frame)
    test.wait(command.is_over, "the leave")
    test.wait(publisher.is_idle, "the acknowledgements")
    payloads = [message.payload for message in test.ledger.published.values()]
    work_off(test, [worker], one, len(payloads))
    assert heard_by(worker) == payloads


@pytest.mark.parametrize("restarts", [False, True])
def test_a_stub_that_left_its_groups_is_a_member_again_when_its_session_is_back(restarts):
    test = LeaveWorld(seed=17)
    node, one, two = test.nodes
    worker = make_worker(test, node)
    publisher = test.publisher(one)
    payloads = publish_to_group(test, publisher, 5)
    dead(test, two)
    # What waits for the group is not acknowledged, which holds the node back.
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.FORWARDS and CREW in frame
    test.leave(one, node, targets=("node2@h",), force=True)
    stubs = node.core.owner.transfers.departures
    test.wait(lambda: stubs and not node.core.owner.draining.stubs_in_groups(), "the end of its membership")
    assert not in_groups(node)
    if restarts:
        node.kill()
        node.start()
        test.wait(lambda: test.whole() and not node.core.owner.draining.stubs_in_groups(), "its end once more")
    test.wait(lambda: not has_part(one, node, CREW), "the news of its end")
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
    test.world.network.lose_frame = None
    work_off(test, [worker], node, len(payloads))
    worker.comes_back = False
    worker.disconnect(False)
    two.start()
    test.wait(lambda: test.whole() and has_part(two, node, CREW), "the news that it is a member again")
    payloads += publish_to_group(test, test.publisher(two, "another"), 5)
    assert in_groups(node) == 5
    work_off(test, [worker], node, len(payloads))
    assert heard_by(worker) == sorted(payloads)


def test_what_was_kept_for_a_group_of_a_dead_node_goes_to_the_group():
    test = LeaveWorld(seed=14)
    node, one, two = test.nodes
    worker = make_worker(test, node)
    (plain,) = test.make_sessions(node, 1)
    publisher = test.publisher(one)
    dead(test, node)
    payloads = publish_to_group(test, publisher, 5)
    command = test.leave(two, node)
    # It does not live to take back what was for a group whose member is elsewhere now.
    test.world.run(0.5)
    one.kill()
    test.wait(command.is_over, "the removal")
    assert command.exit_code == 0
    one.start()
    test.wait(lambda: test.whole() and node.name not in one.core.mesh.peers, "the news of the removal")
    work_off(test, [worker], one, len(payloads))
    test.come_back([plain], [two])
    assert heard_by(worker) == heard_by(plain) == sorted(payloads)


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
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.LEAVE_ORDER
    overtaken = test.leave(one, node, first, timeout_s=100)
    test.world.run(0.1)
    assert not overtaken.is_over()
    test.world.network.lose_frame = None
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
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.LEAVE_ORDER
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


def dead(test, node):
    """Kill a node, and have everybody notice."""
    node.kill()
    others = [other for other in test.nodes if other is not node and other.up]
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in others), "the notice of its death")
    return others


def test_the_sessions_of_a_dead_node_are_split_evenly_and_get_new_messages():
    test = LeaveWorld(seed=20)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 10)
    publisher = test.publisher(one)
    dead(test, node)
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


@pytest.mark.parametrize("count", [4, ASKED_MAX + 40])
@pytest.mark.parametrize("is_known", [True, False], ids=["at_who_knows", "at_who_does_not"])
def test_the_sessions_of_a_dead_node_live_of_which_not_all_members_know(is_known, count):
    """A member was down when they began, and the node died before it was back: what they are only the third knows."""
    test = LeaveWorld(seed=670)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 2)
    dead(test, two)
    clients += test.make_sessions(node, count, first=2)
    dead(test, node)
    two.start()
    test.wait(test.whole, "the return")
    said = test.leave_and_wait(one if is_known else two, node)
    assert (said.exit_code, said.text) == (0, "Done")
    assert sum(len(test.queued(other)) for other in (one, two)) == len(clients)
    clients = clients[:6]
    test.publish(test.publisher(two), clients, 3)
    test.come_back(clients, [two, one])
    test.judge(clients)


@pytest.mark.parametrize("is_back", [True, False])
def test_a_removal_waits_for_a_member_that_dies_and_knows_of_more(is_back):
    """It was not down when the removal was ordered, and nobody said that what only it knows may go (seed 13955)."""
    test = LeaveWorld(seed=678)
    node, one, two = test.nodes
    dead(test, two)
    clients = test.make_sessions(node, 4)
    dead(test, node)
    two.start()
    test.wait(test.whole, "the return")
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.ADOPT
    command = test.leave(two, node)
    dead(test, one)
    test.world.network.lose_frame = None
    if not is_back:
        test.wait(command.is_over, "the end of its patience")
        assert command.exit_code == 1
        assert command.text.startswith("node2@h does not say whether it knows of more sessions of node1@h")
        assert test.leave_and_wait(two, node).text.startswith("besides node1@h, node2@h does not run")
    one.start()
    if not is_back:
        test.wait(test.whole, "the return")
        command = test.leave(two, node)
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
        dead(test, node)
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
    dead(test, two)
    test.make_sessions(node, 4)
    dead(test, node)
    two.start()
    test.wait(test.whole, "the return")
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.TURN_GRANT
    said = test.leave_and_wait(two, node)
    assert said.exit_code == 1
    assert " sessions of node1@h have no new home: node2@h could not take them; a member takes none" in said.text
    test.world.network.lose_frame = None
    test.wait(test.whole, "a quiet cluster")
    assert test.leave_and_wait(two, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 4


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "unheard"])
def test_a_removal_fails_while_a_member_runs_and_does_not_tell(is_frozen):
    """What only it knows of would be forgotten: its disk is full, or what it says of its sessions does not come."""
    test = LeaveWorld(seed=676)
    node, one, two = test.nodes
    test.make_sessions(node, 4)
    restless = test.publisher(two)
    dead(test, node)
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
    test.world.network.lose_frame = None
    test.wait(test.whole, "a quiet cluster")
    assert test.leave_and_wait(one, node).exit_code == 0
    assert sum(len(test.queued(other)) for other in (one, two)) == 4


def test_a_removal_fails_whose_only_target_dies():
    test = LeaveWorld(seed=674)
    node, one, two = test.nodes
    test.make_sessions(node, 400)
    dead(test, node)
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
    dead(test, node)
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
    dead(test, two)
    test.make_sessions(node, 4)
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
    dead(test, three)
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
    dead(test, node)
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


@pytest.mark.parametrize("seed", range(4))
def test_the_queues_of_a_removed_node_are_recovered_in_front_and_not_doubled(seed):
    test = LeaveWorld(seed=300 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 12, qos=1 + seed % 2)
    publisher = test.publisher(one)
    test.publish(publisher, clients, 3, qos=1 + seed % 2)
    dead(test, node)
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


@pytest.mark.parametrize("bytes_max", [-1, 1_500])
def test_what_waits_in_a_group_of_a_donor_goes_to_its_members_though_one_is_over(bytes_max):
    """Nor does it wait until there is room elsewhere."""
    test = LeaveWorld(seed=310, max_queued_bytes=bytes_max)
    node, one, two = test.nodes
    workers = [make_worker(test, each) for each in test.nodes]
    over = Client(test.world, test.ledger, "over", node, 5, True, {CREW: 1})
    over.comes_back = False
    over.connect()
    test.wait(lambda: over.subscribed, "another member of the group")
    over.disconnect(False)
    test.world.run(0.5)
    payloads = [
        payload
        for number, each in enumerate((one, two, node))
        for payload in publish_to_group(test, test.publisher(each, f"publisher {number}"), 150)
    ]
    assert [in_groups(each) for each in test.nodes] == [150, 150, 150]
    test.clients[-1].comes_back = False
    dead(test, node)
    assert test.leave_and_wait(one, node).exit_code == 0
    over.home = two
    over.wanted = {}
    over.persistent = False
    over.connect(True)
    test.wait(lambda: over.state == ONLINE, "a clean start")
    over.disconnect(False)
    test.wait(lambda: over.state == OFFLINE, "its end")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    for each, other in ((one, two), (two, one)):
        assert each.core.mesh.interest.group(CREW).parts[other.name].full == (bytes_max > 0)
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    assert in_groups(one) + in_groups(two) == 450
    work_off(test, workers, two, len(payloads))
    assert heard_by(*workers) == sorted(payloads)


@pytest.mark.parametrize("seed", range(8))
def test_what_was_kept_for_a_dead_node_does_not_go_to_sessions_that_began_anew(seed):
    """Their clients may have had it at other homes, and gave up all that was for them."""
    test = LeaveWorld(seed=450 + seed, count=3 + seed % 2)
    node, one, two = test.nodes[:3]
    # It is away while the node is removed, and hears of it later.
    away = test.nodes[3] if seed % 2 else None
    clients = test.make_sessions(node, 8)
    publishers = [test.publisher(other, f"publisher of {other.name}") for other in test.nodes[1:]]
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
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
    dead(test, node)
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
            test.world.network.lose_frame = lambda frame: frame[1] == FrameType.MOVE_ACK
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
    dead(test, node)
    test.world.network.lose_frame = None
    assert test.leave_and_wait(one, node).exit_code == 0
    for client in clients:
        client.inbox.ack_delay_s = 0.0
        client.come_back()
    test.wait(lambda: set(test.queued(two).values()) == {0}, "all that there is")
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_leaving_node_kept_for_one_that_is_down_is_handed_over(seed):
    test = LeaveWorld(seed=500 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10, qos=1 + seed % 2)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5, qos=1 + seed % 2)
    assert [view.outbox_messages for view in node.core.members_view()] == [0, 0, 50]
    publisher.comes_back = False
    done = test.leave_and_wait(one, node, targets=("node2@h",), force=True)
    assert (done.exit_code, done.text) == (0, "Done")
    assert sum(view.outbox_messages for view in one.core.members_view()) == 50
    two.start()
    test.wait(lambda: test.whole() and len(two.core.mesh.peers) == 1, "the return")
    test.wait(lambda: all(count == 5 for count in test.queued(two).values()), "what was handed over")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_member_that_is_back_while_its_messages_are_handed_over_has_them_once(is_removed):
    """It gets them from the node that leaves, which does not hear that they are taken, and from who took them."""
    test = LeaveWorld(seed=510)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5)
    publisher.comes_back = False
    # Nor do they hear that it has left.
    silent = (FrameType.HANDED, FrameType.MEMBERS)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    if is_removed:
        # The node is gone before the member is back.
        test.world.network.lose_frame = None
        test.wait(command.is_over, "the leave")
    two.start()
    test.wait(lambda: all(count >= 5 for count in test.queued(two).values()), "what was kept")
    test.world.network.lose_frame = None
    test.wait(lambda: command.is_over() and not outbox_messages(one), "the leave")
    test.come_back(clients, [two])
    test.judge(clients)


def test_what_a_member_had_before_it_went_down_it_does_not_get_from_who_took_it_over():
    """The node that leaves has not heard that the member has it."""
    test = LeaveWorld(seed=511)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10)
    publisher = test.publisher(node)
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    test.publish(publisher, clients, 3)
    test.wait(lambda: set(test.queued(two).values()) == {3}, "what it has")
    two.kill()
    test.world.run(1.0)
    test.world.network.lose_frame = None
    test.wait(lambda: not any(other.core.mesh.peers[two.name].running for other in (node, one)), "its death")
    test.publish(publisher, clients, 2)
    assert outbox_messages(node) == 50
    publisher.comes_back = False
    assert test.leave_and_wait(one, node, targets=("node2@h",), force=True).exit_code == 0
    assert outbox_messages(one) == 50
    two.start()
    test.wait(lambda: not outbox_messages(one), "what was handed over")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("victims", ["target", "leaver", "target and leaver", "all"])
def test_whoever_dies_while_messages_are_handed_over_their_member_has_them_once(victims):
    """What a target has that died is with the next one as well, and what one has was said to it twice."""
    test = LeaveWorld(seed=512, count=4)
    node, one, other, two = test.nodes
    clients = test.make_sessions(two, 10, qos=2)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5, qos=2)
    publisher.comes_back = False
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.HANDED
    command = test.leave(other, node, targets=("node2@h", "node3@h"), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    dying = {"target": [one], "leaver": [node], "target and leaver": [one, node], "all": [one, node, other]}[victims]
    for each in dying:
        each.kill()
    if victims == "target":
        test.wait(lambda: outbox_messages(other) == 50, "what is handed over to another one")
    test.world.network.lose_frame = None
    for each in reversed(dying):
        each.start()
    test.wait(lambda: node.name in test.gone, "the end of the leave")
    assert outbox_messages(one) + outbox_messages(other) >= 50
    two.start()
    test.wait(lambda: not outbox_messages(one) + outbox_messages(other), "what was handed over")
    test.come_back(clients, [two])
    test.judge(clients)
    assert command.is_over() or other in dying


def test_what_was_handed_over_twice_is_had_once():
    """Who took it over leaves as well, and who takes it then has what was said to it before."""
    test = LeaveWorld(seed=513, count=4)
    node, one, other, two = test.nodes
    clients = test.make_sessions(two, 10)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5)
    publisher.comes_back = False
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.HANDED
    test.leave(other, node, targets=("node2@h", "node3@h"), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    one.kill()
    test.wait(lambda: outbox_messages(other) == 50, "what is handed over to another one")
    test.world.network.lose_frame = None
    test.wait(lambda: node.name in test.gone, "the end of the leave")
    one.start()
    test.wait(lambda: len(one.core.mesh.peers) == 2 and test.whole(), "the return of the first")
    assert test.leave_and_wait(other, one, targets=("node3@h",), force=True).exit_code == 0
    assert outbox_messages(other) == 100
    two.start()
    test.wait(lambda: not outbox_messages(other), "what was handed over")
    test.come_back(clients, [two])
    test.judge(clients)


def test_what_a_node_that_leaves_keeps_for_the_sessions_of_a_dead_one_is_waited_for():
    """It can't be given while a member is down that may have the sessions."""
    test = LeaveWorld(seed=515, count=4)
    node, gone, one, two = test.nodes
    clients = test.make_sessions(gone, 4)
    publisher = test.publisher(node)
    dead(test, gone)
    test.publish(publisher, clients, 3)
    publisher.comes_back = False
    dead(test, two)
    assert test.leave_and_wait(one, gone, targets=(one.name,)).exit_code == 0
    test.wait(lambda: gone.name not in node.core.mesh.peers, "the removal")
    command = test.leave(one, node, targets=(one.name,), force=True)
    test.world.run(20.0)
    assert not command.is_over()
    assert "not done yet: 12" in node.core.leaver.job.line
    two.start()
    test.wait(command.is_over, "the leave")
    assert command.exit_code == 0
    test.come_back(clients, [one, two])
    test.judge(clients)


def test_what_is_not_handed_over_yet_when_its_member_is_back_is_waited_for():
    test = LeaveWorld(seed=514)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5)
    publisher.comes_back = False
    silent = [FrameType.HAND_OVER]
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: node.core.leaver.job.state == State.LEAVING, "the beginning of the hand-over")
    silent.append(FrameType.FORWARDS)
    two.start()
    test.wait(lambda: node.core.mesh.peers[two.name].running, "its return")
    test.world.run(3.0)
    test.world.network.lose_frame = None
    test.wait(command.is_over, "the leave")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_taken_behind_what_was_lost_on_its_way_to_who_takes_over(seed):
    test = LeaveWorld(seed=520 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10, qos=1 + seed % 2)
    publisher = test.publisher(node)
    dead(test, two)
    test.publish(publisher, clients, 5, qos=1 + seed % 2)
    publisher.comes_back = False
    kinds = (FrameType.HAND_OVER, FrameType.HANDED)
    test.world.network.lose_frame = lambda frame: frame[1] in kinds and test.rng.random() < 0.1
    done = test.leave_and_wait(one, node, targets=("node2@h",), force=True)
    assert (done.exit_code, done.text) == (0, "Done")
    assert outbox_messages(one) == 50
    two.start()
    test.wait(lambda: not outbox_messages(one), "what was handed over")
    test.come_back(clients, [two])
    test.judge(clients)


def test_a_node_that_starts_after_the_others_removed_it_has_left():
    test = LeaveWorld(seed=530)
    node, one, two = test.nodes
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.REFUSED
    test.leave(one, node, force=True)
    test.wait(lambda: not any(node.name in other.core.mesh.peers for other in (one, two)), "its removal")
    assert node.core.leaver.job.state == State.LEAVING
    node.kill()
    test.world.network.lose_frame = None
    node.start()
    test.wait(lambda: node.name in test.gone, "the end of the leave")


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


def outbox_messages(node):
    """Return how much waits at a node for members that are down."""
    return sum(view.outbox_messages for view in node.core.members_view()) if node.up else 0


@pytest.mark.parametrize("seed", range(4))
def test_what_was_rerouted_is_not_recovered_once_more(seed):
    """The node that dies has the messages in its store, and the others never heard so."""
    test = LeaveWorld(seed=600 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(node, 8, qos=1 + seed % 2)
    publisher = test.publisher(one)
    test.publish(publisher, clients, 2, qos=1 + seed % 2)
    silent = (FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.world.network.lose_frame = lambda frame: frame[1] in silent
    test.publish(publisher, clients, 3, qos=1 + seed % 2)
    test.world.run(0.2)
    assert set(test.queued(node).values()) == {5}
    assert sum(view.outbox_messages for view in one.core.members_view()) >= 24
    node.kill()
    # What it had said before must not arrive after all.
    test.world.run(1.0)
    test.world.network.lose_frame = None
    test.wait(lambda: not any(other.core.mesh.peers[node.name].running for other in (one, two)), "its death")
    assert test.leave_and_wait(one, node).exit_code == 0
    test.wait(lambda: not isfinite(one.core.estates.next_deadline()), "the end of the estate")
    test.world.run(15.0)
    if seed < 2:
        test.come_back(clients, [one, two])
        assert all(3 <= len(client.inbox.copies) <= 5 for client in clients)
    node.start()
    test.wait(lambda: node.name in test.gone, "the news of its removal")
    test.recover(node)
    test.wait(lambda: node.name in test.gone, "the end of the donation")
    test.come_back(clients, [one, two])
    for client in clients:
        assert len(client.inbox.copies) == 5 and set(client.inbox.copies.values()) == {1}


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
