"""QoS 2 through one node, both ways: exactly once, wherever a connection is cut or the node is restarted.

The client's side is played by the rules of MQTT: `Receiver` and `Sender` remember what a client has to remember between
connections, and what was on its way when the connection was cut is lost.
"""

from itertools import product

import pytest
from core_helpers import Node, StubInterest

from broker.core.connection_limits import ConnectionLimits
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)
# A body that is stored apart from the queue records that point to it.
LARGE = b"x" * 600
NOT_FOUND = Reason.PACKET_IDENTIFIER_NOT_FOUND
# How a connection is lost: by itself, with the node, by a takeover, or the first and then the second.
CUTS = ("drop", "restart", "takeover", "both")


class Peer:
    """A client that comes again, on whichever node there is."""

    def __init__(self, node: Node, name: str, version: int) -> None:
        self.node = node
        self.name = name
        self.version = version
        self.client = node.persistent(name, version)

    def cut(self, how: str) -> None:
        """Lose the connection, and what was unread, and come again."""
        if how in ("drop", "both"):
            self.client.drop()
        if how in ("restart", "both"):
            self.node.validate()
            self.node = self.node.restart()
        self.client = self.node.persistent(self.name, self.version, listener=1)
        assert self.client.connack.session_present


class Receiver(Peer):
    """A subscriber by the rules [MQTT-4.3.3-8..13]: `got` is what its application was given."""

    def __init__(self, node: Node, version: int) -> None:
        super().__init__(node, "receiver", version)
        self.got: list[bytes] = []
        self.held: set[int] = set()

    def step(self) -> bool:
        """Answer one packet; false when nothing was heard."""
        heard = self.client.take()
        for packet in heard:
            if isinstance(packet, Publish):
                assert packet.qos == 2
                if packet.packet_id not in self.held:
                    self.held.add(packet.packet_id)
                    self.got.append(packet.payload)
                self.client.send(Pubrec(packet.packet_id))
            else:
                assert isinstance(packet, Pubrel)
                assert packet.packet_id in self.held or packet.reason == NOT_FOUND or self.version == 4
                self.held.discard(packet.packet_id)
                self.client.send(Pubcomp(packet.packet_id))
        return bool(heard)


class Sender(Peer):
    """A publisher by the rules [MQTT-4.3.3-1..7]: `stage` is 0 until the PUBREC came, 1 until the PUBCOMP, then 2."""

    def __init__(self, node: Node, version: int) -> None:
        super().__init__(node, "sender", version)
        self.stage = 0

    def say(self, again: bool) -> None:
        if self.stage == 0:
            self.client.send(Publish(b"a", LARGE, 2, dup=again, packet_id=9))
        elif self.stage == 1:
            self.client.send(Pubrel(9))

    def hear(self) -> None:
        for packet in self.client.take():
            if isinstance(packet, Pubrec) and self.stage == 0:
                assert packet == Pubrec(9, 0) or packet.reason == Reason.NO_MATCHING_SUBSCRIBERS
                self.stage = 1
            elif isinstance(packet, Pubcomp):
                self.stage = 2


# Cut after so many steps, once or twice: a client's step is to hear what is there and to answer it.


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("first", "second"), list(product(range(3), range(3))))
@pytest.mark.parametrize("how", CUTS)
def test_a_delivery_is_received_once_wherever_it_is_cut(start, how, first, second, version):
    node = start()
    receiver = Receiver(node, version)
    receiver.client.subscribe(b"a", 2)
    node.connect("p").publish_qos2(b"a", LARGE)
    for steps in (first, second):
        for _ in range(steps):
            receiver.step()
        receiver.cut(how)
    while receiver.step():
        pass
    assert receiver.got == [LARGE]
    assert receiver.held == set()
    node = receiver.node
    node.validate()
    assert node.stored("queue") == node.stored("message") == []
    receiver.cut("restart")
    assert receiver.client.take() == []


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("first", "second"), list(product(range(5), range(5))))
@pytest.mark.parametrize("how", CUTS)
def test_a_publish_is_published_once_wherever_it_is_cut(start, how, first, second, version):
    """A publisher's steps: say PUBLISH, hear PUBREC, say PUBREL, hear PUBCOMP."""
    node = start()
    watcher = node.persistent("watcher")
    watcher.subscribe(b"a", 1)
    watcher.drop()
    sender = Sender(node, version)
    again = False
    for steps in (first, second):
        for step in range(steps):
            if step % 2:
                sender.hear()
            else:
                sender.say(again)
        sender.cut(how)
        again = True
    while sender.stage < 2:
        sender.say(True)
        sender.hear()
    assert sender.node.persistent("watcher").take_payloads() == [LARGE]
    assert all(key[8:9] != b"i" for key in sender.node.stored("session"))
    sender.node.validate()
    # The id is free: what comes under it is another message.
    sender.client.publish(b"a", b"next", qos=2, packet_id=9)
    assert sender.node.restart().persistent("watcher").take_payloads() == [LARGE, b"next"]


def test_a_cut_after_every_round_loses_and_doubles_nothing(start):
    """Many at a time, with a small window, and a cut after every round: all of them once, in their order."""
    for how in CUTS:
        node = start()
        receiver = Receiver(node, 5)
        receiver.client.subscribe(b"a", 2)
        publisher = node.connect("p")
        for number in range(12):
            publisher.publish_qos2(b"a", b"%d" % number + LARGE, packet_id=number + 1)
        for _ in range(40):
            receiver.step()
            receiver.cut(how)
        while receiver.step():
            pass
        assert receiver.got == [b"%d" % number + LARGE for number in range(12)], how
        receiver.node.validate()


# Duplicates and what nobody knows, from publishers.


@pytest.mark.parametrize("version", [4, 5])
def test_a_publish_that_comes_again_is_answered_again(node, version):
    """[MQTT-4.3.3-10]"""
    watcher = node.connect("w")
    watcher.subscribe(b"a", 2)
    publisher = node.connect("p", version)
    for dup in (False, True, True):
        publisher.send(Publish(b"a", b"x", 2, dup=dup, packet_id=5))
    assert publisher.take() == [Pubrec(5)] * 3
    publisher.send(Pubrel(5))
    assert publisher.take() == [Pubcomp(5)]
    assert len(watcher.take_publishes()) == 1


@pytest.mark.parametrize(("version", "reason"), [(4, 0), (5, NOT_FOUND)])
def test_a_pubrel_that_nobody_knows(node, version, reason):
    """[MQTT-4.3.3-11]: it is answered all the same; MQTT 5 is told."""
    client = node.connect("c", version)
    client.send(Pubrel(77))
    assert client.take() == [Pubcomp(77, reason)]
    assert not client.closed


@pytest.mark.parametrize(("version", "reason"), [(4, 0), (5, NOT_FOUND)])
def test_a_pubrec_that_nobody_knows(node, version, reason):
    client = node.connect("c", version)
    client.send(Pubrec(77))
    assert client.take() == [Pubrel(77, reason)]
    client.send(Pubcomp(77))
    assert client.take() == []
    assert not client.closed


def test_a_refusal_that_nobody_knows_is_not_answered(node):
    client = node.connect("c", 5)
    client.send(Pubrec(77, Reason.QUOTA_EXCEEDED))
    assert client.take() == []
    assert not client.closed


def test_an_id_that_was_released_elsewhere_is_another_message(start):
    """The client has been at another node, whose word nobody has heard, and the id is used again (seed 278)."""
    node = start()
    watcher = node.persistent("watcher")
    watcher.subscribe(b"t", 1)
    client = node.persistent("client")
    client.publish(b"t", b"first", 2, 9)
    client.drop()
    node = node.restart()
    client = node.persistent("client")
    for payload in (b"first", b"second", b"second", b"third"):
        client.publish(b"t", payload, 2, 9)
    node = node.restart()
    client = node.persistent("client")
    client.publish(b"t", b"third", 2, 9)
    assert [type(packet) for packet in client.take()][-1] is Pubrec
    watcher = node.persistent("watcher")
    assert [publish.payload for publish in watcher.take_publishes()] == [b"first", b"second", b"third"]


def test_ids_of_both_directions_and_of_clients_are_apart(node):
    """[MQTT-2.2.1-4]: one id under way to and fro at once."""
    clients = [node.connect("c1", 5), node.connect("c2", 5)]
    for client in clients:
        client.subscribe(b"a", 2)
    clients[0].send(Publish(b"a", b"one", 2, packet_id=1))
    pubrec, publish = sorted(clients[0].take(), key=lambda packet: type(packet).__name__, reverse=True)
    assert (pubrec, publish.packet_id) == (Pubrec(1), 1)
    clients[0].send(Pubrec(1))
    assert clients[0].take() == [Pubrel(1)]
    clients[1].send(Pubrel(1))
    assert clients[1].take()[1:] == [Pubcomp(1, NOT_FOUND)]
    clients[0].send(Pubrel(1))
    clients[0].send(Pubcomp(1))
    assert clients[0].take() == [Pubcomp(1)]


# What subscribers may say.


def test_a_refusal_by_the_subscriber_ends_the_delivery(node):
    """[MQTT-4.3.3-4]: no PUBREL, the id is free, and nothing is sent again."""
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for payload in (b"1", b"2"):
        publisher.publish_qos2(b"a", payload)
    (first,) = client.take_publishes()
    client.send(Pubrec(first.packet_id, Reason.IMPLEMENTATION_SPECIFIC_ERROR))
    (second,) = client.take_publishes()
    assert second.payload == b"2"
    client.drop()
    assert [packet.payload for packet in node.restart().persistent("c").take()] == [b"2"]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("qos", "answer"), [(2, Puback), (1, Pubrec), (2, Pubcomp), (1, Pubcomp)], ids=str)
def test_the_wrong_answer_is_a_protocol_error(node, qos, answer, version):
    """And nothing is lost by it: the delivery comes again."""
    client = node.persistent("c", version)
    client.subscribe(b"a", qos)
    node.connect("p").publish_qos2(b"a")
    (packet,) = client.take_publishes()
    client.send(answer(packet.packet_id))
    assert client.closed
    assert client.take() == ([Disconnect(Reason.PROTOCOL_ERROR)] if version == 5 else [])
    (again,) = node.persistent("c", version).take_publishes()
    assert (again.packet_id, again.dup) == (packet.packet_id, True)


def test_a_puback_for_a_released_delivery_is_a_protocol_error(node):
    client = node.persistent("c")
    client.subscribe(b"a", 2)
    node.connect("p").publish_qos2(b"a")
    (packet,) = client.take_publishes()
    client.send(Pubrec(packet.packet_id))
    client.take()
    client.send(Puback(packet.packet_id))
    assert client.closed
    assert node.persistent("c").take() == [Pubrel(packet.packet_id)]


def test_a_pubrec_that_comes_again_is_answered_again(node):
    client = node.persistent("c")
    client.subscribe(b"a", 2)
    node.connect("p").publish_qos2(b"a", LARGE)
    for _ in range(3):
        client.send(Pubrec(1))
    assert [packet for packet in client.take() if isinstance(packet, Pubrel)] == [Pubrel(1)] * 3
    # The client has the message: it is kept here no more, only its id is.
    assert node.stored("message") == []
    assert len(node.stored("queue")) == 1
    client.send(Pubcomp(1))
    assert node.stored("queue") == []


# Windows.


def test_a_delivery_counts_against_the_window_until_its_pubcomp(node):
    """[MQTT-3.3.4-9]"""
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 2})
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for number in range(4):
        publisher.publish_qos2(b"a", b"%d" % number, packet_id=number + 1)
    assert client.take_payloads() == [b"0", b"1"]
    client.send(Pubrec(1))
    client.send(Pubrec(2))
    assert client.take() == [Pubrel(1), Pubrel(2)]
    client.send(Pubcomp(2))
    (third,) = client.take_publishes()
    assert (third.payload, third.packet_id) == (b"2", 3)
    client.send(Pubcomp(1))
    assert client.take_payloads() == [b"3"]


def test_what_is_sent_again_keeps_to_a_smaller_window(node):
    """PUBRELs first, then PUBLISHes in the order of the first sending, before what waits."""
    client = node.persistent("c")
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for number in range(5):
        publisher.publish_qos2(b"a", b"%d" % number, packet_id=number + 1)
    client.send(Pubrec(2))
    client.drop()
    publisher.publish_qos2(b"a", b"5")
    for world in (node, node.restart()):
        client = world.persistent("c", properties={RECEIVE_MAXIMUM: 2})
        heard = client.take()
        assert [packet.packet_id for packet in heard] == [2, 1]
        assert [type(packet) for packet in heard] == [Pubrel, Publish]
        client.send(Pubcomp(2))
        assert [packet.packet_id for packet in client.take()] == [3]
        for packet_id in (1, 3, 4, 5):
            client.receive_qos2(packet_id)
        payloads = [packet.payload for packet in client.take() if isinstance(packet, Publish)]
        assert payloads == [b"3", b"4", b"5"]
        client.drop()


def test_3_1_1_clients_have_the_window_of_the_node(start):
    node = start(settings=OwnerSettings(max_inflight_messages=3))
    client = node.connect("c", 4)
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for number in range(5):
        publisher.publish_qos2(b"a", packet_id=number + 1)
    assert len(client.take_publishes()) == 3


def test_a_client_that_sends_more_than_it_may_is_cut(start):
    """[MQTT-3.3.4-7]"""
    node = start(limits=ConnectionLimits(receive_max=2))
    client = node.connect("c", 5)
    assert client.connack.properties[RECEIVE_MAXIMUM] == 2
    for packet_id in (1, 2):
        client.publish(b"a", qos=2, packet_id=packet_id)
    client.send(Pubrel(1))
    client.publish(b"a", qos=2, packet_id=3)
    client.take()
    client.publish(b"a", qos=2, packet_id=4)
    assert client.take()[0].reason == Reason.RECEIVE_MAXIMUM_EXCEEDED
    assert client.closed


@pytest.mark.parametrize("version", [4, 5])
def test_what_an_older_connection_left_unreleased_takes_nothing_from_the_next(start, version):
    """Receive Maximum counts from nothing on each connection [MQTT-4.9.0-1]; the ids in use are bound as they are."""
    node = start(limits=ConnectionLimits(receive_max=2))
    client = node.persistent("c", version)
    for packet_id in (1, 2):
        client.publish(b"a", qos=2, packet_id=packet_id)
    client.drop()
    client = node.persistent("c", version)
    for packet_id in (3, 4):
        client.publish(b"a", qos=2, packet_id=packet_id)
    for packet_id in (1, 2, 3, 4):
        client.send(Pubrel(packet_id))
    assert [packet.packet_id for packet in client.take()] == [3, 4, 1, 2, 3, 4]
    assert not client.closed


# Sending again on the same connection.


def retried(start, version):
    """What is heard in 12 s by a client that answers nothing but the first PUBREC."""
    node = start(settings=OwnerSettings(retry_interval_s=5))
    client = node.connect("c", version)
    client.subscribe(b"a", 2)
    publisher = node.connect("p")
    for packet_id in (1, 2):
        publisher.publish_qos2(b"a", packet_id=packet_id)
    client.send(Pubrec(1))
    client.take()
    heard = []
    for _ in range(12):
        node.advance(1)
        heard += [(type(packet).__name__, packet.packet_id) for packet in client.take()]
    return heard


def test_retry_interval_sends_again_to_mqtt_3(start):
    assert retried(start, 4) == [("Pubrel", 1), ("Publish", 2)] * 2
    assert retried(start, 3) == [("Pubrel", 1), ("Publish", 2)] * 2


def test_retry_interval_is_not_for_mqtt_5(start):
    """[MQTT-4.4.0-1]"""
    assert retried(start, 5) == []


def test_a_retry_is_a_duplicate_and_what_was_answered_is_left_alone(start):
    node = start(settings=OwnerSettings(retry_interval_s=5, max_inflight_messages=3))
    client = node.connect("c", 4)
    client.subscribe(b"a", 1)
    publisher = node.connect("p")
    for number in range(4):
        publisher.publish(b"a", b"%d" % number, qos=1, packet_id=number + 1)
    client.take()
    node.advance(4)
    client.acknowledge(2)
    assert client.take_payloads() == [b"3"]
    node.advance(2)
    assert [(packet.payload, packet.dup) for packet in client.take_publishes()] == [(b"0", True), (b"2", True)]
    client.acknowledge(1, 3, 4)
    node.advance(20)
    assert client.take() == []


def test_without_retry_interval_nothing_is_sent_again(node):
    client = node.connect("c", 4)
    client.subscribe(b"a", 1)
    node.connect("p").publish(b"a", qos=1)
    client.take()
    node.advance(3600)
    assert client.take() == []
    assert node.owner.next_deadline() == float("inf")


# With other nodes.


def test_a_publish_that_other_nodes_have_to_have_waits_for_none_of_them(start):
    """It is theirs with the same commit that takes its packet id."""
    node = start(interest=StubInterest({b"a": [("n2", True)]}))
    publisher = node.connect("p", 5)
    for dup in (False, True):
        publisher.send(Publish(b"a", b"x", 2, dup=dup, packet_id=5))
    assert publisher.take() == [Pubrec(5)] * 2
    (forward,) = node.forwards
    assert (forward.ticket, forward.persistent) == (None, True)
