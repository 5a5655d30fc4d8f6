"""broker.core.publishing: when a PUBLISH is acknowledged, in which order, and what becomes of it meanwhile."""

import pytest
from core_helpers import StubInterest

from broker.core.full_links import PATIENCE_S
from broker.core.message import Message
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)
NONE = Reason.NO_MATCHING_SUBSCRIBERS
LARGE = b"x" * 600


@pytest.fixture
def node(start):
    """A node that must ask n2 about `far`, n3 about `farther`, and both about `both`."""
    wanted = {b"far": [("n2", True)], b"farther": [("n3", True)], b"both": [("n2", True), ("n3", True)]}
    return start(interest=StubInterest(wanted))


# The order of acknowledgements.


def test_acknowledgements_of_both_qos_keep_the_order_of_the_publishes(node):
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3]"""
    client = node.connect("c", 5)
    for packet_id, topic, qos in (
        (1, b"far", 1),
        (2, b"near", 1),
        (3, b"near", 2),
        (4, b"farther", 1),
        (5, b"far", 2),
    ):
        client.publish(topic, qos=qos, packet_id=packet_id)
    assert client.take() == []
    node.acknowledge_forwards(1)
    assert client.take() == []
    node.acknowledge_forwards(0)
    assert client.take() == [Puback(1), Puback(2, NONE), Pubrec(3, NONE), Puback(4), Pubrec(5)]


def test_a_pubcomp_does_not_wait_for_what_was_published_after(node):
    client = node.connect("c", 5)
    client.publish(b"near", qos=2, packet_id=1)
    client.publish(b"far", qos=1, packet_id=2)
    client.send(Pubrel(1))
    assert client.take() == [Pubrec(1, NONE), Pubcomp(1)]


def test_every_node_is_waited_for(node):
    client = node.connect("c", 5)
    client.publish(b"both", qos=1, packet_id=1)
    assert [forward.node for forward in node.forwards] == ["n2", "n3"]
    node.acknowledge_forwards(1)
    assert client.take() == []
    node.acknowledge_forwards(0)
    assert client.take() == [Puback(1)]


def test_qos_2_waits_for_nobody_as_it_is_stored_for_who_has_to_have_it(node):
    node.interest.wanted[b"both"] = [("n2", True), ("n3", False)]
    client = node.connect("c", 5)
    client.publish(b"both", qos=2, packet_id=1)
    assert client.take() == [Pubrec(1)]
    assert [(forward.node, forward.ticket, forward.persistent) for forward in node.forwards] == [
        ("n2", None, True),
        ("n3", None, False),
    ]


def test_a_packet_id_is_stored_in_the_turn_that_forwards(node):
    """So that both are in one batch."""
    client = node.persistent("c")
    node.turns.clear()
    client.publish(b"far", qos=2, packet_id=5)
    (turn,) = [turn for turn in node.turns if turn.to_peers]
    assert [key[8:] for _, family, key, _ in turn.writes.operations if family == "session"] == [b"i\0\x05"]


def test_qos0_waits_for_nobody(node):
    client = node.connect("c", 5)
    client.publish(b"far")
    assert node.forwards[0].ticket is None
    client.publish(b"near", qos=1)
    assert client.take() == [Puback(1, NONE)]


def test_what_waits_is_stored_for_the_sessions_here_at_once(node):
    """Nothing that this node owes hangs on another's answer."""
    watcher = node.persistent("w")
    watcher.subscribe(b"far")
    client = node.persistent("c")
    client.publish(b"far", LARGE, qos=2)
    assert watcher.take_payloads() == [LARGE]
    assert node.restart().persistent("w").take_payloads() == [LARGE]


# QoS 2 that comes again, and what stood behind a wait.


def test_what_was_published_is_known_to_later_connections_and_after_a_restart(node):
    client = node.persistent("c")
    client.publish(b"far", qos=2, packet_id=5)
    client.drop()
    for world in (node, node.restart()):
        client = world.persistent("c")
        client.send(Publish(b"far", b"x", 2, dup=True, packet_id=5))
        assert client.take() == [Pubrec(5)]
        assert len(world.forwards) == (1 if world is node else 0)
        client.send(Pubrel(5))
        client.drop()
        world.validate()


def test_what_stood_behind_a_wait_is_done_when_the_connection_ends(node):
    """A PUBLISH that waited for its turn alone must not be unanswered for ever."""
    client = node.persistent("c")
    for packet_id, topic, qos in ((1, b"far", 1), (2, b"near", 2), (3, b"farther", 2)):
        client.publish(topic, qos=qos, packet_id=packet_id)
    assert client.take() == []
    client.drop()
    for world in (node, node.restart()):
        client = world.persistent("c")
        for packet_id, topic in ((2, b"near"), (3, b"farther")):
            client.send(Publish(topic, b"x", 2, dup=True, packet_id=packet_id))
            client.send(Pubrel(packet_id))
            assert client.take() == [Pubrec(packet_id), Pubcomp(packet_id)]
        client.drop()


def test_what_stood_behind_a_wait_is_delivered_once_after_a_restart(node):
    """Its packet id is stored with the message, not with the PUBREC."""
    keeper = node.persistent("k")
    keeper.subscribe(b"near", 2)
    client = node.persistent("c")
    client.publish(b"far", qos=1, packet_id=1)
    client.publish(b"near", b"near", qos=2, packet_id=2)
    (delivered,) = keeper.take_publishes()
    restarted = node.restart()
    client = restarted.persistent("c")
    client.send(Publish(b"near", b"near", 2, dup=True, packet_id=2))
    assert client.take() == [Pubrec(2)]
    keeper = restarted.persistent("k")
    assert [(each.payload, each.packet_id, each.dup) for each in keeper.take_publishes()] == [
        (b"near", delivered.packet_id, True)
    ]


def test_pubrecs_of_what_is_sent_again_keep_their_order(node):
    """[MQTT-4.6.0-3]"""
    client = node.persistent("c")
    client.publish(b"near", b"1", qos=2, packet_id=1)
    client.publish(b"farther", b"2", qos=2, packet_id=2)
    client.drop()
    client = node.persistent("c")
    client.publish(b"far", qos=1, packet_id=3)
    for packet_id, topic, payload in ((1, b"near", b"1"), (1, b"near", b"1"), (2, b"farther", b"2")):
        client.send(Publish(topic, payload, 2, dup=True, packet_id=packet_id))
    client.publish(b"near", qos=1, packet_id=4)
    assert client.take() == []
    node.acknowledge_forwards(1)
    assert client.take() == [Puback(3), Pubrec(1), Pubrec(2), Puback(4, NONE)]
    assert len(node.forwards) == 2


def test_a_connection_that_has_the_number_of_an_older_one_hears_its_own_answers(node):
    """[MQTT-4.6.0-2] [MQTT-4.6.0-3]: a listener that starts again counts its connections from 1."""
    client = node.persistent("c")
    client.publish(b"far", b"1", qos=1, packet_id=1)
    client.publish(b"far", b"2", qos=2, packet_id=2)
    node.restart_listener(0)
    again = node.persistent("c")
    assert again.key == client.key
    again.send(Publish(b"far", b"1", 1, dup=True, packet_id=1))
    again.send(Publish(b"far", b"2", 2, dup=True, packet_id=2))
    again.publish(b"near", qos=1, packet_id=3)
    node.acknowledge_forwards(0)
    assert again.take() == []
    node.acknowledge_forwards(2)
    assert again.take() == [Puback(1), Pubrec(2), Puback(3, NONE)]


def test_a_refusal_behind_a_wait_frees_its_id_when_the_connection_ends(node):
    client = node.persistent("c")
    client.publish(b"far", qos=1, packet_id=1)
    client.publish(b"$SYS/x", qos=2, packet_id=2)
    client.drop()
    client = node.persistent("c")
    client.publish(b"$SYS/x", qos=2, packet_id=2)
    assert client.take() == [Pubrec(2, Reason.NOT_AUTHORIZED)]


def test_the_packet_ids_of_a_session_that_ended_are_not_those_of_the_next(node):
    """Same client id, same packet id, another message."""
    client = node.persistent("c")
    client.publish(b"far", b"old", qos=2, packet_id=5)
    client = node.connect("c", 5, clean=True)
    client.publish(b"farther", b"new", qos=2, packet_id=5)
    assert client.take() == [Pubrec(5)]
    assert [forward.message.payload for forward in node.forwards] == [b"old", b"new"]


@pytest.mark.parametrize("version", [4, 5])
def test_repetitions_that_wait_for_their_turn_do_not_pile_up(node, version):
    client = node.connect("c", version)
    client.publish(b"near", qos=2, packet_id=2)
    client.take()
    client.publish(b"far", qos=1, packet_id=1)
    for _ in range(100):
        client.send(Publish(b"near", b"x", 2, dup=True, packet_id=2))
    assert len(node.owner._attachments[client.key].pending) == 2
    node.acknowledge_forwards(0)
    assert client.take() == [Puback(1), Pubrec(2)]
    for _ in range(2):
        client.send(Publish(b"near", b"x", 2, dup=True, packet_id=2))
    assert client.take() == [Pubrec(2), Pubrec(2)]


# Links that are full.


@pytest.mark.parametrize(("qos", "answer"), [(1, Puback), (2, Pubrec)])
def test_mqtt_5_is_told_of_a_refusal_and_may_use_the_id_again(node, qos, answer):
    client = node.connect("c", 5)
    client.publish(b"far", qos=1, packet_id=4)
    node.fill_links("n3")
    client.publish(b"both", qos=qos, packet_id=5)
    node.advance(PATIENCE_S)
    assert client.take() == []
    node.acknowledge_forwards(0)
    assert client.take() == [Puback(4), answer(5, Reason.QUOTA_EXCEEDED)]
    assert len(node.forwards) == 1
    client.publish(b"far", qos=qos, packet_id=5)
    if qos == 1:
        node.acknowledge_forwards(1)
    assert client.take() == [answer(5)]
    assert node.dropped("link_full") == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_mqtt_3_sees_the_connection_close_and_publishes_again(node, qos):
    client = node.persistent("c", 4)
    node.fill_links("n2")
    client.publish(b"far", qos=qos, packet_id=5)
    assert not client.closed
    node.advance(PATIENCE_S)
    assert client.closed
    assert client.take() == []
    node.fill_links()
    client = node.persistent("c", 4)
    client.send(Publish(b"far", b"x", qos, dup=True, packet_id=5))
    assert len(node.forwards) == 1
    if qos == 1:
        node.acknowledge_forwards(0)
    assert [packet.packet_id for packet in client.take()] == [5]


def test_mqtt_3_hears_what_is_acknowledged_before_the_connection_closes(node):
    """[MQTT311-4.6.0-2]"""
    client = node.persistent("c", 4)
    client.publish(b"farther", qos=1, packet_id=4)
    node.fill_links("n2")
    client.publish(b"far", qos=1, packet_id=5)
    node.advance(PATIENCE_S)
    assert not client.closed
    node.acknowledge_forwards(0)
    assert client.take() == [Puback(4)]
    assert client.closed


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_refused_was_not_delivered_here(node, version, qos):
    """The client sends it again, and nobody gets it twice."""
    watcher = node.persistent("w")
    watcher.subscribe(b"both", 2)
    client = node.persistent("c", version)
    node.fill_links("n3")
    client.publish(b"both", b"once", qos=qos, packet_id=5, retain=True)
    node.advance(PATIENCE_S)
    assert watcher.take() == []
    assert node.forwards == []
    assert node.stored("retained") == []
    node.fill_links()
    client = node.persistent("c", version)
    client.send(Publish(b"both", b"once", qos, dup=True, packet_id=5))
    assert watcher.take_payloads() == [b"once"]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_publish_waits_for_room_and_keeps_its_order(node, version, qos):
    """What follows waits behind it, and is acknowledged in its turn; other clients wait for nothing."""
    watcher = node.persistent("w")
    watcher.subscribe(b"near", 2)
    client, other = node.persistent("c", version), node.connect("o", version)
    node.fill_links("n2")
    for packet_id, topic in ((5, b"far"), (6, b"near"), (7, b"far")):
        client.publish(topic, b"%d" % packet_id, qos=qos, packet_id=packet_id)
    client.publish(b"near", b"0")
    other.publish(b"near", b"o", qos=qos)
    assert [packet.packet_id for packet in other.take()] == [1]
    node.advance(PATIENCE_S - 0.1)
    assert client.take() == []
    assert watcher.take_payloads() == [b"0", b"o"]
    node.validate()
    node.fill_links()
    node.advance(0.06)
    if qos == 1:
        node.acknowledge_forwards(0, 1)
    assert [packet.packet_id for packet in client.take()] == [5, 6, 7]
    assert watcher.take_payloads() == [b"6"]
    assert [forward.message.payload for forward in node.forwards] == [b"5", b"7"]
    assert node.dropped("link_full") == 0
    assert node.owner.counters.mqtt_publish_received == 5
    node.validate()


def test_what_waits_for_room_goes_with_its_connection(node):
    client = node.persistent("c", 5)
    node.fill_links("n2")
    client.publish(b"far", b"lost", qos=2, packet_id=5)
    client.drop()
    node.fill_links()
    node.advance(1.0)
    node.validate()
    assert node.forwards == []
    client = node.persistent("c", 5)
    client.publish(b"far", b"again", qos=2, packet_id=5)
    assert [forward.message.payload for forward in node.forwards] == [b"again"]


def test_what_expires_while_it_waits_for_room_is_answered_only(node):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]"""
    client = node.persistent("c", 5)
    node.fill_links("n2")
    client.publish(b"far", qos=1, packet_id=5, properties={MESSAGE_EXPIRY: 2})
    client.publish(b"far", qos=1, packet_id=6, properties={MESSAGE_EXPIRY: 20})
    node.advance(3.0)
    assert client.take() == [Puback(5)]
    assert node.dropped("expired") == 1
    node.fill_links()
    node.advance(1.0)
    (forward,) = node.forwards
    assert forward.message.expires_at == node.now + 16


def test_the_limit_of_all_that_waits_for_room_is_exact(node):
    client, other = node.connect("c", 5), node.connect("o", 5)
    full_links = node.owner.full_links
    node.fill_links("n2")
    client.publish(b"far", b"x" * 1000, qos=1, packet_id=5)
    full_links.held_bytes_max = full_links.held_bytes() * 2
    other.publish(b"far", b"x" * 1000, qos=1, packet_id=6)
    node.advance(1.0)
    assert client.take() == other.take() == []
    full_links.held_bytes_max -= 1
    other.publish(b"near", qos=1, packet_id=7)
    node.advance(0.0)
    assert client.take() == [Puback(5, Reason.QUOTA_EXCEEDED)]
    assert other.take() == []


def test_what_follows_a_client_that_waits_is_not_held_past_the_limit(node):
    """A client that has something waiting could have all memory otherwise: what it says next waits behind it."""
    client, other = node.connect("c", 5), node.connect("o", 5)
    full_links = node.owner.full_links
    full_links.held_bytes_max = 10_000
    node.fill_links("n2")
    most = 0
    answers = []
    for packet_id in range(1, 51):
        client.publish(b"far", b"x" * 1000, qos=1, packet_id=packet_id)
        most = max(most, full_links.held_bytes())
        node.advance(0.0)
        assert full_links.held_bytes() <= 10_000
        answers += client.take()
        node.validate()
    assert most <= 11_500
    # The oldest are refused, in their order.
    assert answers == [Puback(packet_id, Reason.QUOTA_EXCEEDED) for packet_id in range(1, len(answers) + 1)]
    assert 40 < len(answers) < 50
    node.advance(PATIENCE_S)
    answers += client.take()
    assert [packet.packet_id for packet in answers] == list(range(1, 51))
    assert full_links.held_bytes() == 0
    other.publish(b"far", b"x", qos=1, packet_id=1)
    assert other.take() == []


def test_a_full_link_stops_nothing_that_nobody_waits_for(node):
    watcher = node.connect("w")
    watcher.subscribe(b"far")
    node.fill_links("n2")
    node.connect("c", 5).publish(b"far", b"0")
    assert watcher.take_payloads() == [b"0"]
    assert len(node.forwards) == 1


# What a message is.


def test_messages_have_ids_that_grow(node):
    client = node.connect("c", 5)
    for qos in (1, 2):
        client.publish(b"far", qos=qos, packet_id=qos)
    client.publish(b"far", retain=True)
    keys = [forward.message.key() for forward in node.forwards]
    assert keys == sorted(set(keys))
    assert all(len(key) == 24 for key in keys)
    restarted = node.restart()
    restarted.connect("c").publish(b"far", qos=1)
    assert restarted.forwards[0].message.key() > keys[-1]


def test_the_interval_of_a_message_runs_from_its_arrival(node):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]: also for one with an interval of 0."""
    watcher = node.persistent("w")
    watcher.subscribe(b"a")
    watcher.drop()
    client = node.connect("c", 5)
    for payload, expiry_s in ((b"0", 0), (b"5", 5), (b"6", 6)):
        client.publish(b"a", payload, qos=1, properties={MESSAGE_EXPIRY: expiry_s})
    node.advance(5)
    watcher = node.persistent("w")
    (packet,) = watcher.take_publishes()
    assert (packet.payload, packet.properties) == (b"6", {MESSAGE_EXPIRY: 1})
    assert node.dropped("expired") == 2


def test_what_is_in_flight_does_not_expire(node):
    """Its delivery has begun [MQTT-3.3.2-5]."""
    watcher = node.persistent("w")
    watcher.subscribe(b"a")
    node.connect("c", 5).publish(b"a", qos=1, properties={MESSAGE_EXPIRY: 5})
    watcher.drop()
    node.advance(60)
    (packet,) = node.persistent("w").take_publishes()
    assert (packet.dup, packet.properties) == (True, {MESSAGE_EXPIRY: 0})


def test_counters(node):
    watcher = node.connect("w")
    watcher.subscribe(b"both")
    client = node.connect("c", 5)
    client.publish(b"both")
    client.publish(b"nobody")
    counters = node.owner.counters
    assert (counters.mqtt_publish_received, counters.mqtt_publish_sent) == (2, 1)
    assert (counters.router_matches_local, counters.router_matches_remote) == (1, 2)


def test_upgraded_qos_is_kept_for_who_is_away(start):
    node = start(settings=OwnerSettings(upgrade_outgoing_qos=True))
    watcher = node.persistent("w")
    watcher.subscribe(b"a", 1)
    watcher.drop()
    node.connect("c").publish(b"a", LARGE, qos=0)
    (packet,) = node.restart().persistent("w").take_publishes()
    assert (packet.payload, packet.qos) == (LARGE, 1)


def test_upgraded_messages_of_nobody_are_stored_under_ids_too(start):
    """What the node itself or another publishes with QoS 0 has no id; where it is stored it needs one."""
    node = start(settings=OwnerSettings(upgrade_outgoing_qos=True))
    watcher = node.persistent("w")
    watcher.subscribe(b"$SYS/#", 1)
    watcher.drop()
    for payload in (LARGE + b"1", LARGE + b"2", b"3"):
        node.owner.receive_forwarded(Message(b"$SYS/x", payload), node.now)
    node.settle()
    assert len(node.stored("message")) == 2
    payloads = node.restart().persistent("w").take_payloads()
    assert payloads == [LARGE + b"1", LARGE + b"2", b"3"]
