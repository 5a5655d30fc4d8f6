"""Handing over, in the simulator: what a node that leaves kept for one that is down comes to that, once."""

import pytest
from leave_world import LeaveWorld, outbox_messages

from cluster.frames import FrameType
from cluster.leaving import State


@pytest.mark.parametrize("seed", range(4))
def test_what_a_leaving_node_kept_for_one_that_is_down_is_handed_over(seed):
    test = LeaveWorld(seed=500 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10, qos=1 + seed % 2)
    publisher = test.publisher(node)
    test.crash(two)
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
    test.crash(two)
    test.publish(publisher, clients, 5)
    publisher.comes_back = False
    # Nor do they hear that it has left.
    test.lose(FrameType.HANDED, FrameType.MEMBERS)
    command = test.leave(one, node, targets=("node2@h",), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    if is_removed:
        # The node is gone before the member is back.
        test.lose()
        test.wait(command.is_over, "the leave")
    two.start()
    test.wait(lambda: all(count >= 5 for count in test.queued(two).values()), "what was kept")
    test.lose()
    test.wait(lambda: command.is_over() and not outbox_messages(one), "the leave")
    test.come_back(clients, [two])
    test.judge(clients)


def test_what_a_member_had_before_it_went_down_it_does_not_get_from_who_took_it_over():
    """The node that leaves has not heard that the member has it."""
    test = LeaveWorld(seed=511)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10)
    publisher = test.publisher(node)
    test.lose(FrameType.LINK_ACK, FrameType.HEARTBEAT)
    test.publish(publisher, clients, 3)
    test.wait(lambda: set(test.queued(two).values()) == {3}, "what it has")
    two.kill()
    test.world.run(1.0)
    test.lose()
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
    test.crash(two)
    test.publish(publisher, clients, 5, qos=2)
    publisher.comes_back = False
    test.lose(FrameType.HANDED)
    command = test.leave(other, node, targets=("node2@h", "node3@h"), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    dying = {"target": [one], "leaver": [node], "target and leaver": [one, node], "all": [one, node, other]}[victims]
    for each in dying:
        each.kill()
    if victims == "target":
        test.wait(lambda: outbox_messages(other) == 50, "what is handed over to another one")
    test.lose()
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
    test.crash(two)
    test.publish(publisher, clients, 5)
    publisher.comes_back = False
    test.lose(FrameType.HANDED)
    test.leave(other, node, targets=("node2@h", "node3@h"), force=True)
    test.wait(lambda: outbox_messages(one) == 50, "what is handed over")
    one.kill()
    test.wait(lambda: outbox_messages(other) == 50, "what is handed over to another one")
    test.lose()
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
    test.crash(gone)
    test.publish(publisher, clients, 3)
    publisher.comes_back = False
    test.crash(two)
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
    test.crash(two)
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
    test.lose()
    test.wait(command.is_over, "the leave")
    test.come_back(clients, [two])
    test.judge(clients)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_taken_behind_what_was_lost_on_its_way_to_who_takes_over(seed):
    test = LeaveWorld(seed=520 + seed)
    node, one, two = test.nodes
    clients = test.make_sessions(two, 10, qos=1 + seed % 2)
    publisher = test.publisher(node)
    test.crash(two)
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
