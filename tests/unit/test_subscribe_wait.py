"""cluster.subscribe_wait and what the queue-owner leaves to it: when a SUBACK leaves, and in which order."""

import math

import pytest
from core_helpers import Node, started_nodes
from mesh_network import TIMEOUT_S, cluster
from test_outbox import MeshedNode

from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Publish, Suback, Subscribe, SubscriptionRequest, Unsuback, Unsubscribe
from cluster.move_frames import unpack_mark
from cluster.subscribe_wait import SUBACKS_MAX, WAIT_S, SubscribeWait

WAITING = OwnerSettings(subacks_wait=True)


@pytest.fixture
def start():
    yield from started_nodes()


def subscribe(client, packet_id, *filters):
    client.send(Subscribe(packet_id, tuple(SubscriptionRequest(each, 1) for each in filters)))


def test_a_suback_leaves_when_the_owner_is_told_to_send_it(start):
    node = start(settings=WAITING)
    client = node.connect("c")
    subscribe(client, 7, b"a", b"b/#")
    assert client.take() == []
    (suback,) = node.owner.take_subacks()
    assert node.owner.take_subacks() == []
    node.owner.answer(suback)
    node.settle()
    # [MQTT-3.8.4-2] [MQTT311-3.8.4-2]
    assert client.take() == [Suback(7, (1, 1))]


def test_a_subscription_counts_before_its_suback(start):
    """Retained and live messages may come before SUBACK, and nothing is sent twice for having waited."""
    node = start(settings=WAITING)
    publisher = node.connect("p")
    publisher.publish(b"a", b"kept", retain=True)
    client = node.connect("c")
    subscribe(client, 7, b"a")
    publisher.publish(b"a", b"live")
    assert client.take() == [Publish(b"a", b"kept", retain=True), Publish(b"a", b"live")]
    node.owner.answer(*node.owner.take_subacks())
    node.settle()
    assert client.take() == [Suback(7, (1,))]


def test_unsubscribe_waits_for_nobody(start):
    node = start(settings=WAITING)
    client = node.connect("c")
    subscribe(client, 7, b"a")
    client.send(Unsubscribe(8, (b"a",)))
    assert client.take() == [Unsuback(8)]
    node.owner.answer(*node.owner.take_subacks())
    node.settle()
    assert client.take() == [Suback(7, (1,))]


def test_nobody_is_sent_the_suback_of_a_connection_that_ended(start):
    node = start(settings=WAITING)
    client = node.connect("c")
    subscribe(client, 7, b"a")
    (suback,) = node.owner.take_subacks()
    client.drop()
    node.owner.answer(suback)
    # Numbers of connections come again with another listener process.
    again = node.connect("d")
    suback.attachment.connection = again.key
    node.owner.answer(suback)
    node.settle()
    assert again.take() == []


def hear(node):
    """Do with marks what the queue-owner's shell does."""
    for mark in node.marks:
        switch = unpack_mark(mark.sender, mark.body)
        node.mesh.confirmed(switch.member, (switch.generation, switch.version))
    node.marks = []


class Waits:
    """The waiting SUBACKs of the first node of a cluster."""

    def __init__(self, count=3):
        self.network, self.nodes = cluster(count=count)
        self.node = self.nodes[0]
        self.network.run(2)
        for node in self.nodes:
            hear(node)
        self.waits = SubscribeWait(self.node.mesh)
        self.owner = Node(settings=WAITING)
        self.client = self.owner.connect("c")

    def subscribe(self, topic_filter):
        self.node.wish(topic_filter)
        self.node.mesh.tell_tables(self.network.now)
        return self.ask()

    def ask(self):
        subscribe(self.client, 7, b"a")
        (suback,) = self.owner.owner.take_subacks()
        self.waits.add([suback], self.network.now)
        return suback

    def due(self):
        hear(self.node)
        return self.waits.take_due(self.network.now)


def test_a_suback_waits_for_every_running_member_and_no_longer():
    world = Waits()
    suback = world.subscribe(b"a/b")
    assert world.due() == []
    begun = world.network.now
    world.network.run(WAIT_S, lambda: hear(world.node) or world.waits.next_deadline() == 0.0)
    assert all(node.mesh.interest.match(b"a/b") for node in world.nodes[1:])
    # They said so by themselves: it is less than what passes between two heartbeats.
    assert world.network.now - begun < TIMEOUT_S / 5
    assert world.due() == [suback]
    assert (world.waits.unconfirmed, world.waits.next_deadline()) == (0, math.inf)


def test_what_is_known_already_does_not_wait():
    world = Waits()
    suback = world.ask()
    assert world.waits.next_deadline() == 0.0
    assert world.due() == [suback]


def test_a_node_that_is_alone_waits_for_nobody():
    world = Waits(count=1)
    assert world.subscribe(b"a") in world.due()


def test_subacks_leave_in_the_order_in_which_they_were_asked_for():
    world = Waits()
    subacks = [world.subscribe(b"a/%d" % number) for number in range(5)] + [world.ask()]
    found = []
    while len(found) < len(subacks):
        found += world.due()
        assert world.network.run(WAIT_S, lambda: hear(world.node) or world.waits.next_deadline() == 0.0) or found
    assert found == subacks


def test_a_member_that_stopped_running_is_not_waited_for():
    world = Waits()
    world.network.kill("node3@h")
    world.network.run(TIMEOUT_S / 2)
    suback = world.subscribe(b"a")
    world.network.run(1)
    # It may be slow for other reasons: until it is taken for dead it is waited for.
    assert world.due() == []
    assert world.network.run(TIMEOUT_S, lambda: "node3@h" not in world.node.running())
    assert world.due() == [suback]
    assert world.waits.unconfirmed == 0


def test_nobody_is_waited_for_longer_than_the_limit():
    world = Waits()
    world.network.lose = lambda command: type(command).__name__ == "SendBulk"
    suback = world.subscribe(b"a")
    assert world.waits.next_deadline() == world.network.now + WAIT_S
    world.network.run(WAIT_S - 0.5)
    assert world.due() == []
    world.network.run(0.6)
    assert world.due() == [suback]
    assert world.waits.unconfirmed == 1


def test_a_member_that_began_another_life_has_to_confirm_again():
    world = Waits(count=2)
    suback = world.subscribe(b"a")
    assert world.network.run(WAIT_S, lambda: hear(world.node) or world.waits.next_deadline() == 0.0)
    assert world.due() == [suback]
    world.network.kill("node2@h")
    world.nodes[1].start()
    known = world.node.mesh.peers["node2@h"].session
    assert world.network.run(TIMEOUT_S, lambda: world.node.mesh.peers["node2@h"].session > known)
    again = world.ask()
    assert world.due() == []
    assert world.network.run(TIMEOUT_S, lambda: hear(world.node) or world.waits.next_deadline() == 0.0)
    assert world.nodes[1].mesh.interest.match(b"a") == [("node1@h", False)]
    assert world.due() == [again]


def test_beyond_a_number_the_oldest_wait_no_longer():
    world = Waits()
    first, second = world.subscribe(b"a"), world.ask()
    world.waits.add([second] * (SUBACKS_MAX - 1), world.network.now)
    assert world.due() == [first]
    assert world.waits.unconfirmed == 1


def test_a_node_sends_them_by_itself():
    node = MeshedNode(settings=WAITING)
    client = node.connect("c")
    # The other member does not run.
    subscribe(client, 7, b"a")
    assert client.take() == [Suback(7, (1,))]
    assert node.core.metrics()["cluster_subacks_unconfirmed"] == 0
