"""Shared subscriptions when nodes leave, are removed or donate: what waits in a group goes to its members."""

import pytest
from leave_world import FAR_S, LeaveWorld, heard_by
from virtual_clients import OFFLINE, ONLINE, Client

from cluster.frames import FrameType
from cluster.leave_frames import Verb
from cluster.leaving import State

CREW = b"$share/crew/to/0"


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
    test.crash(two)
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
    test.crash(two)
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
    test.crash(two)
    # It goes on telling the others that it leaves for a while.
    test.lose(FrameType.MEMBERS)
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: node.core.leaver.job.state == State.LEAVING, "the end of all that it had")
    assert node.core.owner.transfers.departures
    payloads = publish_to_group(test, publisher, 20)
    assert in_groups(one) == 20
    test.lose()
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
    test.crash(two)
    # What waits for the group is not acknowledged, which holds the node back.
    test.world.network.lose_frame = lambda frame: frame[1] == FrameType.FORWARDS and CREW in frame
    test.leave(one, node, targets=("node2@h",), force=True)
    stubs = node.core.owner.transfers.departures
    test.wait(lambda: stubs and not node.core.owner.draining.stubs_in_groups(), "the end of its membership")
    test.wait(lambda: not in_groups(node), "what waits for the group being on its way")
    if restarts:
        node.kill()
        node.start()
        test.wait(lambda: test.whole() and not node.core.owner.draining.stubs_in_groups(), "its end once more")
    test.wait(lambda: not has_part(one, node, CREW), "the news of its end")
    assert test.leave_and_wait(one, node, Verb.ABORT).exit_code == 0
    test.lose()
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
    test.crash(node)
    payloads = publish_to_group(test, publisher, 5)
    # It does not live to take back what was for a group whose member is elsewhere then. No target, it is not awaited.
    one.kill()
    assert test.leave_and_wait(two, node, targets=(two.name,)).exit_code == 0
    one.start()
    test.wait(lambda: test.whole() and node.name not in one.core.mesh.peers, "the news of the removal")
    work_off(test, [worker], one, len(payloads))
    test.come_back([plain], [two])
    assert heard_by(worker) == heard_by(plain) == sorted(payloads)


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
    test.crash(node)
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
