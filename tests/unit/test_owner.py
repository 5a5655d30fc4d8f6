"""broker.core.owner: sessions, queues and who gets what, through the listener cores as clients see it.

Every node is validated after every turn and at the end, its store included.
"""

import math
from unittest.mock import patch

import pytest
from core_helpers import START_S, Client, Node, StubInterest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import delivery_queue, session_store
from broker.core.events import (
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    ListenerGone,
    ListenerStarted,
    PubackReceived,
    PublishReceived,
    SubscribeReceived,
    UnsubscribeReceived,
    connection_key,
)
from broker.core.message import Message
from broker.core.owner_records import Answer, Deliver, unpack_owner_records
from broker.core.records import PUBACK
from broker.core.settings import OwnerSettings
from broker.mqtt.codec import encode
from broker.mqtt.packets import (
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

EXPIRY = int(Property.SESSION_EXPIRY_INTERVAL)
MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)
RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)
PACKET_BYTES_MAX = int(Property.MAXIMUM_PACKET_SIZE)
# A body that is stored apart from the queue records that point to it.
LARGE = b"x" * 600
FILTERS = [b"a", b"b", b"#", b"+/x", b"a/#", b"$share/g/a", b"$share/g/#"]


def records_of(effects, listener=0):
    """What a listener is told in a turn."""
    batch = effects.to_listeners.get(listener)
    return [record for part in batch.records() for record in unpack_owner_records(part, 0)] if batch else []


def is_puback(record):
    return isinstance(record, Answer) and record.kind == PUBACK


# Sessions.


@pytest.mark.parametrize("version", [4, 5])
def test_a_clean_session_ends_with_its_connection(node, version):
    """[MQTT-3.1.2-6] of 3.1.1; a Session Expiry Interval of 0 in 5.0."""
    client = node.connect("c", version)
    client.subscribe(b"a")
    client.drop()
    assert set(node.owner.counts().values()) == {0}
    assert not node.connect("c", version, clean=False).connack.session_present


def test_nothing_of_a_clean_session_is_written(node):
    client = node.connect("c")
    client.subscribe(b"a")
    node.connect("p").publish(b"a", qos=1)
    client.take()
    client.drop()
    assert not any(len(effects.writes) for effects in node.turns)


@pytest.mark.parametrize("version", [4, 5])
def test_a_persistent_session_is_there_again(node, version):
    """[MQTT-3.1.2-5] [MQTT-3.2.2-3]"""
    client = node.persistent("c", version)
    assert not client.connack.session_present
    client.subscribe(b"a", 1)
    client.drop()
    publisher = node.connect("p")
    publisher.publish(b"a", b"1", qos=1)
    publisher.publish(b"a", b"0", qos=0)
    client = node.persistent("c", version, listener=1)
    assert client.connack.session_present
    assert client.take_payloads() == [b"1"]


def test_clean_start_discards_what_was_there(node):
    """[MQTT-3.1.2-4] [MQTT-3.2.2-2]"""
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    node.connect("p").publish(b"a", qos=1)
    client = node.connect("c", 5, clean=True, properties={EXPIRY: 60})
    assert not client.connack.session_present
    assert client.take() == []
    node.connect("p").publish(b"a", qos=1)
    assert client.take() == []
    assert node.stored("queue") == node.stored("message") == []
    assert len(node.stored("session")) == 1


def test_client_ids_are_sessions_of_their_own(node):
    one, two = node.persistent("one"), node.persistent("two")
    one.subscribe(b"a")
    two.subscribe(b"b")
    one.publish(b"b", b"for two", qos=1)
    assert [type(packet) for packet in one.take()] == [Puback]
    assert two.take_payloads() == [b"for two"]


# Takeover on one node.


def test_the_older_connection_of_a_client_id_is_told_and_closed(node):
    """[MQTT-3.1.4-3]"""
    older = node.connect("c", 5, listener=0)
    newer = node.connect("c", 5, listener=1)
    assert older.take() == [Disconnect(Reason.SESSION_TAKEN_OVER)]
    assert older.closed
    assert not newer.closed
    # The older socket's end is old news.
    older.drop()
    newer.subscribe(b"a")
    newer.publish(b"a", b"alive")
    assert newer.take_payloads() == [b"alive"]


def test_a_3_1_1_client_that_is_taken_over_sees_the_close_alone(node):
    older = node.connect("c", 4)
    node.connect("c", 4)
    assert older.closed
    assert older.take_bytes() == b""


def test_takeover_keeps_a_persistent_session(node):
    older = node.persistent("c")
    older.subscribe(b"a")
    publisher = node.connect("p")
    publisher.publish(b"a", b"1", qos=1)
    (first,) = older.take_publishes()
    newer = node.persistent("c", listener=1)
    assert newer.connack.session_present
    assert newer.take_publishes() == [Publish(b"a", b"1", 1, dup=True, packet_id=first.packet_id)]
    older.drop()
    publisher.publish(b"a", b"2", qos=1)
    assert newer.take_payloads() == [b"2"]


def test_takeover_ends_a_clean_session(node):
    older = node.connect("c", 5)
    older.subscribe(b"a")
    newer = node.persistent("c")
    assert not newer.connack.session_present
    node.connect("p").publish(b"a", qos=1)
    assert newer.take() == []


def test_takeover_with_clean_start_discards(node):
    older = node.persistent("c")
    older.subscribe(b"a")
    newer = node.connect("c", 5, clean=True)
    assert older.take() == [Disconnect(Reason.SESSION_TAKEN_OVER)]
    assert not newer.connack.session_present
    assert node.stored("session") == []


def test_what_a_taken_over_connection_said_last_is_ignored(node):
    older = node.persistent("c")
    watcher = node.connect("w", listener=1)
    watcher.subscribe(b"#")
    newer = node.persistent("c", listener=1)
    old_key = older.key
    for event in (
        PublishReceived(old_key, 9, Message(b"a", b"late", qos=1)),
        PubackReceived(old_key, 1),
        SubscribeReceived(old_key, 9, [(b"late", 1)]),
        UnsubscribeReceived(old_key, 9, [b"late"]),
        ConnectionPaused(old_key),
        ConnectionResumed(old_key),
        Detach(old_key),
    ):
        node.owner.receive(event, node.now)
    node.settle()
    assert watcher.take() == []
    assert newer.take() == []
    assert node.owner.counts()["num_online"] == 2


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("name", [None, "", "mallory"])
@pytest.mark.parametrize("state", ["online", "offline", "restarted"])
def test_nobody_takes_what_belongs_to_another_user(node, version, clean, name, state):
    """[MQTT-3.1.3-8] [MQTT311-3.1.3-9], neither what waits nor the connection, and Clean Start ends nothing of it."""
    alice = node.open()
    alice.send(Connect(4, "c", False, 0, "alice"))
    alice.subscribe(b"a")
    if state != "online":
        alice.drop()
    if state == "restarted":
        node = node.restart()
    mallory = node.open(1, version)
    mallory.send(Connect(version, "c", clean, 0, name))
    # MQTT 3 has the nearest return code: 2, identifier rejected.
    assert mallory.take_bytes() == (bytes.fromhex("20020002") if version == 4 else bytes.fromhex("2003008500"))
    assert mallory.closed
    assert alice.closed == (state != "online")
    node.connect("p").publish(b"a", b"mine", qos=1)
    if state != "online":
        alice = node.open()
        alice.send(Connect(4, "c", False, 0, "alice"))
        connack, publish = alice.take()
        assert connack.session_present
    else:
        (publish,) = alice.take()
    assert publish.payload == b"mine"


@pytest.mark.parametrize("name", [None, "", "bob"])
def test_a_session_of_nobody_is_anybodys(node, name):
    node.persistent("c").subscribe(b"a")
    client = node.open(1, 5)
    client.send(Connect(5, "c", False, 0, name))
    assert client.take()[0].session_present


def test_takeover_in_one_batch(node):
    """Both CONNECTs reach the owner in one frame; the first is answered, then closed."""
    older, newer = node.open(version=5), node.open(version=5)
    older.say(Connect(5, "c", True, 0))
    newer.say(Connect(5, "c", True, 0))
    node.settle()
    connack, disconnect = older.take()
    assert connack.reason == 0
    assert disconnect.reason == Reason.SESSION_TAKEN_OVER
    (connack,) = newer.take()
    assert connack.reason == 0
    assert not newer.closed


# Expiry of sessions.


def test_a_session_expires(node):
    """[MQTT-3.1.2-23]"""
    assert node.owner.next_deadline() == math.inf
    client = node.persistent("c", expiry_s=60)
    client.subscribe(b"a")
    assert node.owner.next_deadline() == math.inf
    client.drop()
    node.connect("p").publish(b"a", qos=1)
    assert node.owner.next_deadline() == node.now + 60
    node.advance(59.9)
    assert len(node.stored("queue")) == 1
    node.advance(0.1)
    assert [node.stored(family) for family in ("session", "queue", "message")] == [[], [], []]
    assert node.owner.next_deadline() == math.inf
    assert not node.persistent("c").connack.session_present


def test_a_session_that_came_back_in_time_does_not_expire(node):
    node.persistent("c", expiry_s=60).drop()
    node.advance(30)
    client = node.persistent("c", expiry_s=60)
    node.advance(100)
    assert not client.closed
    client.drop()
    node.advance(59)
    assert node.persistent("c").connack.session_present


@pytest.mark.parametrize("now", [START_S, 0.0])
def test_expiry_runs_on_while_the_node_is_down(start, now):
    node = start(now=now)
    node.persistent("c", expiry_s=60).drop()
    node.persistent("never", expiry_s=0xFFFFFFFF).drop()
    node.advance(20)
    early = node.restart(down_s=30)
    early.advance(9)
    assert early.persistent("c", expiry_s=60).connack.session_present
    late = node.restart(down_s=41)
    late.advance(0)
    assert not late.persistent("c", expiry_s=60).connack.session_present
    assert late.persistent("never").connack.session_present
    for restarted in (early, late):
        restarted.validate()


def test_the_expiry_of_a_session_that_was_connected_begins_at_the_restart(node):
    client = node.persistent("c", expiry_s=60)
    client.subscribe(b"a")
    node.advance(1000)
    restarted = node.restart(down_s=500)
    assert restarted.owner.next_deadline() == restarted.now + 60
    restarted.advance(30)
    # It is written too: another restart doesn't begin anew.
    again = restarted.restart(down_s=29)
    assert again.owner.next_deadline() == pytest.approx(again.now + 1)
    again.advance(1.1)
    assert again.stored("session") == []


def test_disconnect_changes_the_expiry(node):
    """[MQTT-3.14.2-1..2]: the interval of the DISCONNECT is the one that counts."""
    client = node.persistent("c", expiry_s=60)
    client.disconnect(expiry_s=600)
    assert node.owner.next_deadline() == node.now + 600
    restarted = node.restart()
    assert restarted.owner.next_deadline() == pytest.approx(restarted.now + 600)
    client = node.persistent("c", expiry_s=60)
    assert client.connack.session_present
    client.subscribe(b"a")
    node.connect("p").publish(b"a", qos=1)
    client.disconnect(expiry_s=0)
    assert [node.stored(family) for family in ("session", "queue", "message")] == [[], [], []]
    assert not node.persistent("c").connack.session_present


def test_a_session_that_ends_now_cannot_be_prolonged(node):
    """[MQTT-3.14.2-2]"""
    client = node.connect("c", 5)
    client.send(Disconnect(0, {EXPIRY: 60}))
    assert client.take()[0].reason == Reason.PROTOCOL_ERROR
    assert client.closed
    assert node.stored("session") == []


def test_coming_back_with_expiry_0_takes_the_session_out_of_the_store(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    node.connect("p").publish(b"a", LARGE, qos=1)
    assert len(node.stored("message")) == 1
    client = node.connect("c", 5, clean=False)
    assert client.connack.session_present
    assert client.take_payloads() == [LARGE]
    # Stored until it ends: its queue may be larger than what memory should hold.
    assert node.restart().stored("session") == []
    client.drop()
    assert [node.stored(family) for family in ("session", "queue", "message")] == [[], [], []]
    assert not node.connect("c", 5, clean=False).connack.session_present


def test_reconnecting_does_not_make_a_deadline_each_time(node):
    """A week of expiry and a reconnect every second must not be 600,000 remembered deadlines."""
    for _ in range(200):
        node.persistent("c", expiry_s=600_000).drop()
        node.advance(1)
    assert len(node.owner._lifetimes._expiries) < 100


# Queues.


def test_a_queue_keeps_order_across_reconnect_and_restart(node):
    client = node.persistent("c")
    client.subscribe(b"#")
    client.drop()
    publisher = node.connect("p")
    for number in range(30):
        publisher.publish(b"t/%d" % (number % 3), b"%d" % number, qos=1)
    expected = [b"%d" % number for number in range(30)]
    restarted = node.restart()
    for world in (node, restarted):
        client = world.persistent("c", properties={RECEIVE_MAXIMUM: 7})
        heard = []
        while packets := client.take_publishes():
            assert len(packets) <= 7
            assert not any(packet.dup for packet in packets)
            heard += [packet.payload for packet in packets]
            client.acknowledge(*[packet.packet_id for packet in packets])
        assert heard == expected
        assert world.stored("queue") == world.stored("message") == []
        world.validate()


def test_the_offline_limit_is_counted_and_noticed_once(start):
    node = start(settings=OwnerSettings(max_offline_messages=3))
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    publisher = node.connect("p")
    for number in range(5):
        publisher.publish(b"a", b"%d" % number, qos=1)
    assert node.dropped("queue_full") == 2
    notices = node.owner.take_notices()
    assert len(notices) == 1
    assert "'c'" in notices[0]
    assert node.owner.take_notices() == []
    client = node.persistent("c")
    assert client.take_payloads() == [b"0", b"1", b"2"]
    client.acknowledge(1, 2, 3)
    client.drop()
    # Room was made in between: the next time it bites is news.
    for number in range(4):
        publisher.publish(b"a", b"%d" % number, qos=1)
    assert len(node.owner.take_notices()) == 1
    assert node.dropped("queue_full") == 3


def test_the_online_limit(start):
    node = start(settings=OwnerSettings(max_inflight_messages=2, max_online_messages=3))
    client = node.connect("c")
    client.subscribe(b"a")
    publisher = node.connect("p")
    for number in range(7):
        publisher.publish(b"a", b"%d" % number, qos=1)
    assert client.take_payloads() == [b"0", b"1"]
    assert node.dropped("queue_full") == 2
    client.acknowledge(1, 2)
    assert client.take_payloads() == [b"2", b"3"]


def test_negative_limits_are_none_and_a_window_of_0_is_the_widest(start):
    node = start(settings=OwnerSettings(max_inflight_messages=0, max_online_messages=-1, max_offline_messages=-1))
    client = node.persistent("c", 4)
    client.subscribe(b"a")
    publisher = node.connect("p")
    for number in range(1500):
        publisher.say(Publish(b"a", b"", 1, packet_id=number + 1))
    node.settle()
    assert len(client.take_publishes()) == 1500
    client.drop()
    for number in range(1500):
        publisher.say(Publish(b"a", b"", 1, packet_id=number + 1))
    node.settle()
    assert node.owner.counts()["queued_messages"] == 3000
    assert node.owner.counters.dropped == {}


def test_the_inflight_window(node):
    """[MQTT-3.3.4-9]: never more than the client's Receive Maximum unacknowledged; for 3.1.1 the broker's."""
    publisher = node.connect("p")
    for client, window in ((node.connect("c4", 4), 20), (node.connect("c5", 5, properties={RECEIVE_MAXIMUM: 3}), 3)):
        client.subscribe(b"a")
        for _ in range(25):
            publisher.publish(b"a", qos=1)
        first = client.take_publishes()
        assert len(first) == window
        client.acknowledge(first[1].packet_id)
        (following,) = client.take_publishes()
        assert following.packet_id not in {packet.packet_id for packet in first}
        client.drop()


def test_qos0_is_not_kept_for_a_client_that_is_away(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    node.connect("p").publish(b"a", qos=0)
    assert node.persistent("c").take() == []
    assert node.stored("queue") == []


def test_a_client_that_does_not_read(node):
    """Paused: QoS 1 waits, QoS 0 waits while there is room, all in order once it reads again."""
    client = node.persistent("c")
    client.subscribe(b"a")
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publisher = node.connect("p", listener=1)
    for number in range(6):
        publisher.publish(b"a", b"%d" % number, qos=number % 2)
    assert client.take() == []
    node.owner.receive(ConnectionResumed(client.key), node.now)
    node.settle()
    assert client.take_payloads() == [b"%d" % number for number in range(6)]


def test_qos0_over_the_limit_is_dropped_and_counted(start):
    node = start(settings=OwnerSettings(max_online_messages=2))
    client = node.connect("c")
    client.subscribe(b"a")
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publisher = node.connect("p")
    for number in range(5):
        publisher.publish(b"a", b"%d" % number)
    assert node.dropped("queue_full") == 3
    client.drop()
    assert node.owner.counts()["queued_messages"] == 0


def test_qos0_that_waited_is_dropped_at_the_disconnect(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publisher = node.connect("p")
    for number in range(4):
        publisher.publish(b"a", b"%d" % number, qos=number % 2)
    client.drop()
    assert node.dropped("offline_qos0") == 2
    assert node.persistent("c").take_payloads() == [b"1", b"3"]


# Redelivery.


@pytest.mark.parametrize("version", [4, 5])
def test_what_was_in_flight_is_sent_again(node, version):
    """[MQTT-4.4.0-1] [MQTT-3.3.1-1]: the same packet ids, DUP set, in the same order, before what waits."""
    client = node.persistent("c", version)
    client.subscribe(b"a")
    publisher = node.connect("p")
    for number in range(25):
        publisher.publish(b"a", b"%d" % number, qos=1)
    # 5.0 clients take all 25 without a Receive Maximum.
    first = client.take_publishes()
    client.acknowledge(first[1].packet_id, first[3].packet_id)
    client.take()
    expected = [packet for at, packet in enumerate(first) if at not in (1, 3)]
    restarted = node.restart()
    client.drop()
    for world in (node, restarted):
        client = world.persistent("c", version)
        again = client.take_publishes()
        resent = again[: len(expected)]
        assert [(packet.packet_id, packet.payload) for packet in resent] == [
            (packet.packet_id, packet.payload) for packet in expected
        ]
        assert all(packet.dup for packet in resent)
        if version == 5:
            assert len(again) == len(expected)
        world.validate()


def test_new_packet_ids_after_a_restart_are_free_ones(node):
    """[MQTT-2.2.1-4]"""
    client = node.persistent("c")
    client.subscribe(b"a")
    publisher = node.connect("p")
    for _ in range(5):
        publisher.publish(b"a", qos=1)
    restarted = node.restart()
    client = restarted.persistent("c")
    used = {packet.packet_id for packet in client.take_publishes()}
    publisher = restarted.connect("p")
    for _ in range(5):
        publisher.publish(b"a", qos=1)
    fresh = {packet.packet_id for packet in client.take_publishes()}
    assert len(used) == len(fresh) == 5
    assert not used & fresh
    restarted.validate()


def test_what_was_acknowledged_is_gone_after_a_restart(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    node.connect("p").publish(b"a", qos=1)
    client.acknowledge(client.take_publishes()[0].packet_id)
    restarted = node.restart()
    assert restarted.persistent("c").take() == []
    assert node.stored("message") == []


def test_a_smaller_receive_maximum_holds_for_redelivery_too(node):
    """[MQTT-3.3.4-9]: what was in flight may be more than the new connection takes at once."""
    client = node.persistent("c")
    client.subscribe(b"a")
    publisher = node.connect("p")
    for number in range(10):
        publisher.publish(b"a", b"%d" % number, qos=1)
    client.drop()
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 3})
    heard = []
    while packets := client.take_publishes():
        assert len(packets) <= 3
        heard += [packet.payload for packet in packets]
        client.acknowledge(*[packet.packet_id for packet in packets])
    assert heard == [b"%d" % number for number in range(10)]


def test_a_smaller_maximum_packet_size_holds_for_redelivery_too(node):
    """[MQTT-3.1.2-24]"""
    client = node.persistent("c")
    client.subscribe(b"a")
    publisher = node.connect("p")
    publisher.publish(b"a", b"x" * 500, qos=1)
    publisher.publish(b"a", b"small", qos=1)
    client.drop()
    client = node.persistent("c", properties={PACKET_BYTES_MAX: 100})
    assert client.take_payloads() == [b"small"]
    assert node.dropped("max_packet_size_exceeded") == 1


def test_pubacks_that_mean_nothing(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    publisher = node.connect("p")
    publisher.publish(b"a", qos=1)
    (packet,) = client.take_publishes()
    client.acknowledge(packet.packet_id + 1, 65535)
    assert not client.closed
    assert len(node.stored("queue")) == 1
    client.acknowledge(packet.packet_id, packet.packet_id, packet.packet_id)
    assert not client.closed
    assert node.stored("queue") == []


def test_a_puback_with_a_failure_ends_the_delivery(node):
    """[MQTT-4.4.0-2]"""
    client = node.persistent("c")
    client.subscribe(b"a")
    node.connect("p").publish(b"a", qos=1)
    (packet,) = client.take_publishes()
    client.send(Puback(packet.packet_id, Reason.NOT_AUTHORIZED))
    client.drop()
    assert node.persistent("c").take() == []


def test_the_puback_of_a_first_sending_after_a_reconnect_counts(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    node.connect("p").publish(b"a", qos=1)
    (packet,) = client.take_publishes()
    client.drop()
    client = node.persistent("c")
    client.acknowledge(packet.packet_id)
    client.drop()
    assert node.persistent("c").take() == []


# What a message becomes on its way.


def test_qos_is_the_lower_of_both(node):
    """[MQTT-3.8.4-8]"""
    publisher = node.connect("p")
    for granted in (0, 1):
        client = node.connect(f"c{granted}")
        assert client.subscribe(b"a", granted) == (granted,)
        for qos in (0, 1):
            publisher.publish(b"a", qos=qos)
            (packet,) = client.take_publishes()
            assert packet.qos == min(qos, granted)
            assert (packet.packet_id > 0) == (packet.qos > 0)
            assert not packet.dup
            if packet.qos:
                client.acknowledge(packet.packet_id)


def test_the_granted_qos_is_what_was_asked_for(node):
    """[MQTT-3.8.4-7]"""
    assert [node.connect("c").subscribe(b"a", qos) for qos in (0, 1, 2)] == [(0,), (1,), (2,)]


def test_overlapping_subscriptions_are_one_delivery(node):
    """[MQTT-3.3.4-2]: of the highest QoS."""
    client = node.connect("c")
    for topic_filter, qos in ((b"a/#", 0), (b"a/+", 1), (b"+/b", 0)):
        client.subscribe(topic_filter, qos)
    node.connect("p").publish(b"a/b", qos=1)
    (packet,) = client.take_publishes()
    assert packet.qos == 1


@pytest.mark.parametrize("listener", [0, 1])
def test_no_local(node, listener):
    """[MQTT-3.8.3-3]"""
    client = node.connect("c", 5)
    others = [node.connect(f"o{number}", 5, listener=listener) for number in range(2)]
    for subscriber in (client, *others):
        subscriber.subscribe(b"a", 1, no_local=True)
    client.publish(b"a", b"mine", qos=1)
    (puback,) = client.take()
    assert puback == Puback(1)
    assert [other.take_payloads() for other in others] == [[b"mine"], [b"mine"]]
    others[0].publish(b"a", b"theirs")
    assert client.take_payloads() == [b"theirs"]
    # Another subscription, without No Local, brings one's own back.
    client.subscribe(b"#")
    client.publish(b"a", b"mine")
    assert client.take_payloads() == [b"mine"]


def test_no_local_survives_a_restart(node):
    client = node.persistent("c")
    client.subscribe(b"a", 1, no_local=True)
    restarted = node.restart()
    client = restarted.persistent("c")
    client.publish(b"a", qos=1)
    assert [type(packet) for packet in client.take()] == [Puback]


def test_topics_of_the_server(node):
    """[MQTT-4.7.2-1]: `#` doesn't match $-topics, and clients don't publish there."""
    watcher = node.connect("w", 5)
    watcher.subscribe(b"#")
    watcher.subscribe(b"$SYS/#")
    for version, reason in ((4, 0), (5, Reason.NOT_AUTHORIZED)):
        publisher = node.connect("p", version)
        publisher.publish(b"$SYS/x", qos=1, packet_id=5)
        publisher.publish(b"$SYS/x", qos=0)
        assert publisher.take() == [Puback(5, reason)]
        assert not publisher.closed
    assert watcher.take() == []
    assert node.dropped("reserved_topic") == 4


def test_the_refusal_of_a_reserved_topic_keeps_its_place_among_the_acknowledgements(start):
    """[MQTT-4.6.0-2]"""
    node = start(interest=StubInterest({b"a": [("n2", True)]}))
    publisher = node.connect("p", 5)
    publisher.publish(b"a", qos=1, packet_id=1)
    publisher.publish(b"$SYS/x", qos=1, packet_id=2)
    assert publisher.take() == []
    node.acknowledge_forwards(0)
    assert publisher.take() == [Puback(1), Puback(2, Reason.NOT_AUTHORIZED)]


@pytest.mark.parametrize("version", [4, 5])
def test_a_publish_that_nobody_wants_is_acknowledged(node, version):
    publisher = node.connect("p", version)
    publisher.publish(b"a", qos=1, packet_id=0x8001)
    assert publisher.take() == [Puback(0x8001, Reason.NO_MATCHING_SUBSCRIBERS if version == 5 else 0)]


def test_properties_are_passed_on(node):
    """[MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]"""
    five, four = node.persistent("five"), node.connect("four", 4)
    five.subscribe(b"a")
    four.subscribe(b"a")
    properties = {
        int(Property.PAYLOAD_FORMAT_INDICATOR): 1,
        int(Property.CONTENT_TYPE): "text/plain",
        int(Property.RESPONSE_TOPIC): "reply/to",
        int(Property.CORRELATION_DATA): b"\0\xff",
        int(Property.USER_PROPERTY): [("b", "1"), ("a", "2"), ("b", "3")],
    }
    node.connect("p", 5).publish(b"a", qos=1, properties=properties)
    (packet,) = five.take_publishes()
    assert packet.properties == properties
    assert four.take_publishes()[0].payload == b"x"
    (packet,) = node.restart().persistent("five").take_publishes()
    assert packet.properties == properties


def test_message_expiry(node):
    """[MQTT-3.3.2-5] [MQTT-3.3.2-6]: what has expired isn't sent and is counted; else the rest of the interval is."""
    client = node.persistent("c")
    client.subscribe(b"a")
    publisher = node.connect("p", 5)
    publisher.publish(b"a", b"online", qos=1, properties={MESSAGE_EXPIRY: 100})
    (packet,) = client.take_publishes()
    assert packet.properties == {MESSAGE_EXPIRY: 100}
    client.acknowledge(packet.packet_id)
    client.drop()
    for payload, expiry_s in ((b"short", 10), (b"long", 100), (b"longest", 0xFFFFFFFE)):
        publisher.publish(b"a", payload, qos=1, properties={MESSAGE_EXPIRY: expiry_s})
    publisher.publish(b"a", b"for ever", qos=1)
    node.advance(10)
    restarted = node.restart(down_s=5)
    for world, waited_s in ((node, 10), (restarted, 15)):
        client = world.persistent("c")
        long, longest, ever = client.take_publishes()
        assert (long.payload, long.properties) == (b"long", {MESSAGE_EXPIRY: 100 - waited_s})
        assert (longest.payload, longest.properties) == (b"longest", {MESSAGE_EXPIRY: 0xFFFFFFFE - waited_s})
        assert (ever.payload, ever.properties) == (b"for ever", {})
        assert world.dropped("expired") == 1
        world.validate()


def test_the_longest_message_expiry(node):
    """[MQTT-3.3.2-6]: 0xFFFFFFFF is an interval like any other for messages."""
    client = node.connect("c", 5)
    client.subscribe(b"a")
    client.publish(b"a", properties={MESSAGE_EXPIRY: 0xFFFFFFFF})
    assert client.take_publishes()[0].properties == {MESSAGE_EXPIRY: 0xFFFFFFFF}


def packet_bytes(payload_bytes, qos, topic, properties):
    return len(encode(Publish(topic, b"x" * payload_bytes, qos, packet_id=qos, properties=properties), 5))


LIMITS = (20, 127, 128, 130, 300, 16_384, 20_000)


def sent_of_size(start, limit, qos, properties, waiting, beyond):
    """What a client with a Maximum Packet Size hears of a message that exceeds it by `beyond` bytes."""
    node = start()
    client = node.persistent("c", properties={PACKET_BYTES_MAX: limit})
    client.subscribe(b"a")
    size = limit
    while packet_bytes(size, qos, b"a", properties) > limit:
        size -= 1
    if waiting:
        node.owner.receive(ConnectionPaused(client.key), node.now)
    node.connect("p", 5).publish(b"a", b"x" * (size + beyond), qos=qos, properties=properties)
    if waiting:
        node.owner.receive(ConnectionResumed(client.key), node.now)
        node.settle()
    assert node.dropped("max_packet_size_exceeded") == (0 if client.unread else 1)
    return client.take_bytes()


@pytest.mark.parametrize("waiting", [False, True], ids=["online", "queued"])
@pytest.mark.parametrize("properties", [{}, {MESSAGE_EXPIRY: 5}], ids=["plain", "expiring"])
def test_the_maximum_packet_size_is_kept(start, properties, waiting):
    """[MQTT-3.1.2-24] [MQTT-3.1.2-25]: what is larger is dropped, as if it had been sent, and counted."""
    for limit in LIMITS:
        for qos in (0, 1):
            assert sent_of_size(start, limit, qos, properties, waiting, 1) == b"", (limit, qos)


@pytest.mark.parametrize("waiting", [False, True], ids=["online", "queued"])
@pytest.mark.parametrize("properties", [{}, {MESSAGE_EXPIRY: 5}], ids=["plain", "expiring"])
def test_what_fits_into_the_maximum_packet_size_is_sent(start, properties, waiting):
    for limit in LIMITS:
        for qos in (0, 1):
            assert 0 < len(sent_of_size(start, limit, qos, properties, waiting, 0)) <= limit, (limit, qos)


def test_too_large_for_one_is_not_too_large_for_another(node):
    small = node.connect("small", 5, properties={PACKET_BYTES_MAX: 50})
    large = node.connect("large", 5)
    for client in (small, large):
        client.subscribe(b"a")
    node.connect("p").publish(b"a", b"x" * 100, qos=1)
    assert small.take() == []
    assert len(large.take_publishes()) == 1


# Subscriptions.


def test_unsubscribing(node):
    """[MQTT-3.10.4-2] [MQTT-3.11.3-1]"""
    client = node.persistent("c")
    client.subscribe(b"a")
    client.subscribe(b"b")
    assert client.unsubscribe(b"a") == (0,)
    assert client.unsubscribe(b"a") == (Reason.NO_SUBSCRIPTION_EXISTED,)
    publisher = node.connect("p")
    for topic in (b"a", b"b"):
        publisher.publish(topic, topic)
    assert client.take_payloads() == [b"b"]
    restarted = node.restart()
    assert restarted.owner.counts()["num_subscriptions"] == 1


def test_subscriptions_survive_a_restart(node):
    client = node.persistent("c")
    client.subscribe(b"a", 0)
    client.subscribe(b"a", 1)
    client.subscribe(b"b/#", 0)
    restarted = node.restart()
    publisher = restarted.connect("p")
    for topic in (b"a", b"b"):
        publisher.publish(topic, topic, qos=1)
    client = restarted.persistent("c")
    assert client.take_payloads() == [b"a"]
    publisher.publish(b"b", b"b", qos=1)
    assert [(packet.payload, packet.qos) for packet in client.take_publishes()] == [(b"b", 0)]


# Responsibility before acknowledgement.


def test_the_message_is_written_in_the_turn_of_its_acknowledgement(node):
    """Nothing that acknowledges leaves in an earlier turn than the write behind it."""
    online, offline = node.persistent("online", listener=1), node.persistent("offline", listener=1)
    for client in (online, offline):
        client.subscribe(b"a")
    offline.drop()
    publisher = node.connect("p")
    node.turns.clear()
    publisher.publish(b"a", LARGE, qos=1)
    (turn,) = (effects for effects in node.turns if any(map(is_puback, records_of(effects))))
    written = [operation[1] for operation in turn.writes.operations]
    # Two queue records, one body.
    assert sorted(written) == ["message", "queue", "queue"]
    assert node.turns.index(turn) == 0


def test_the_acknowledgement_of_a_delivery_is_written(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    node.connect("p").publish(b"a", LARGE, qos=1)
    node.turns.clear()
    client.acknowledge(client.take_publishes()[0].packet_id)
    assert sorted(operation[1] for operation in node.turns[0].writes.operations) == ["message", "queue"]


def test_sessions_and_subscriptions_are_written_with_their_answers(node):
    node.turns.clear()
    client = node.persistent("c")
    assert [operation[1] for operation in node.turns[0].writes.operations] == ["session"]
    node.turns.clear()
    client.subscribe(b"a")
    # By its first word the client has heard that the session began.
    assert [operation[1] for operation in node.turns[0].writes.operations] == ["session", "session"]
    node.turns.clear()
    client.subscribe(b"b")
    assert [operation[1] for operation in node.turns[0].writes.operations] == ["session"]
    node.turns.clear()
    client.unsubscribe(b"a")
    assert [operation[1] for operation in node.turns[0].writes.operations] == ["session"]


def test_the_body_goes_with_its_last_delivery(node):
    clients = [node.persistent(f"c{number}") for number in range(3)]
    for client in clients:
        client.subscribe(b"a")
    node.connect("p").publish(b"a", LARGE, qos=1)
    assert len(node.stored("message")) == 1
    assert len(node.stored("queue")) == 3
    clients[0].acknowledge(clients[0].take_publishes()[0].packet_id)
    clients[1].disconnect(expiry_s=0)
    restarted = node.restart()
    for world in (node, restarted):
        assert len(world.stored("message")) == len(world.stored("queue")) == 1
        client = world.persistent("c2")
        client.acknowledge(client.take_publishes()[-1].packet_id)
        assert world.stored("message") == []


def test_message_ids_are_never_used_again(node):
    client = node.persistent("c")
    client.subscribe(b"a")
    client.drop()
    node.connect("p").publish(b"a", b"1" + LARGE, qos=1)
    restarted = node.restart()
    restarted.connect("p").publish(b"a", b"2" + LARGE, qos=1)
    assert len(restarted.stored("message")) == 2
    assert restarted.persistent("c").take_payloads() == [b"1" + LARGE, b"2" + LARGE]


# Other nodes.


def test_a_publish_is_forwarded_once_to_each_node(start):
    node = start(interest=StubInterest({b"a": [("n2", False), ("n3", True)]}))
    node.connect("p").publish(b"a", b"0", qos=0)
    assert [(forward.node, forward.message.payload, forward.ticket) for forward in node.forwards] == [
        ("n2", b"0", None),
        ("n3", b"0", None),
    ]


def test_a_puback_waits_for_every_node_with_persistent_interest(start):
    node = start(interest=StubInterest({b"a": [("n2", True), ("n3", False), ("n4", True)]}))
    publisher = node.connect("p", 5)
    publisher.publish(b"a", qos=1)
    tickets = [forward.ticket for forward in node.forwards]
    assert tickets[0] is tickets[2]
    assert tickets[1] is None
    assert publisher.take() == []
    node.acknowledge_forwards(0)
    assert publisher.take() == []
    node.acknowledge_forwards(2)
    assert publisher.take() == [Puback(1)]


def test_interest_that_does_not_last_is_not_waited_for(start):
    node = start(interest=StubInterest({b"a": [("n2", False)]}))
    publisher = node.connect("p", 5)
    publisher.publish(b"a", qos=1)
    assert publisher.take() == [Puback(1)]
    assert len(node.forwards) == 1


def test_pubacks_leave_in_the_order_of_the_publishes(start):
    """[MQTT-4.6.0-2], on each connection for itself."""
    node = start(interest=StubInterest({b"far": [("n2", True)], b"farther": [("n3", True)]}))
    publisher, other = node.connect("p", 5), node.connect("o", 5)
    for packet_id, topic in ((4, b"near"), (3, b"far"), (2, b"near"), (1, b"farther"), (9, b"near")):
        publisher.publish(topic, qos=1, packet_id=packet_id)
    other.publish(b"near", qos=1, packet_id=7)
    assert [packet.packet_id for packet in publisher.take()] == [4]
    assert [packet.packet_id for packet in other.take()] == [7]
    assert [forward.node for forward in node.forwards] == ["n2", "n3"]
    node.acknowledge_forwards(1)
    assert publisher.take() == []
    node.acknowledge_forwards(0)
    assert [packet.packet_id for packet in publisher.take()] == [3, 2, 1, 9]


def test_a_ticket_of_a_connection_that_is_gone_means_nothing(start):
    node = start(interest=StubInterest({b"a": [("n2", True)]}))
    publisher = node.persistent("p", 4)
    publisher.publish(b"a", qos=1)
    publisher.drop()
    again = node.persistent("p", 4)
    node.acknowledge_forwards(0)
    assert again.take() == []
    again.publish(b"a", qos=1)
    node.acknowledge_forwards(1)
    assert again.take() == [Puback(1)]


def test_interest_that_changed_is_looked_up_again(start):
    interest = StubInterest()
    node = start(interest=interest)
    publisher = node.connect("p")
    publisher.publish(b"a")
    interest.wanted = {b"a": [("n2", False)]}
    node.owner.interest_changed()
    publisher.publish(b"a")
    assert len(node.forwards) == 1


def test_a_forwarded_message_is_delivered_here_and_never_forwarded_again(start):
    node = start(interest=StubInterest({b"a": [("n2", True)]}))
    online, offline = node.persistent("online"), node.persistent("offline")
    for client in (online, offline):
        client.subscribe(b"a")
    offline.drop()
    message = Message(b"a", LARGE, qos=1, origin=b"n2" * 8, number=77, publisher="far away")
    node.owner.receive_forwarded(message, node.now)
    effects = node.take_effects()
    assert effects.to_peers == []
    assert sorted(operation[1] for operation in effects.writes.operations) == ["message", "queue", "queue"]
    assert any(isinstance(record, Deliver) for record in records_of(effects))
    node.storage.commit(effects.writes)
    assert node.persistent("offline").take_payloads() == [LARGE]
    assert node.stored("message") == [b"n2" * 8 + (77).to_bytes(8, "big")]


def wishes_after(changes):
    """What another node knows that has heard the changes."""
    known = {}
    for change in changes:
        if change.wanted:
            known[change.topic_filter] = change.persistent
        else:
            del known[change.topic_filter]
    return known


def test_wishes_are_told_on_transitions(node):
    passing, lasting = node.connect("passing"), node.persistent("lasting")
    passing.subscribe(b"a")
    passing.subscribe(b"a", 0)
    lasting.subscribe(b"a")
    passing.unsubscribe(b"a")
    passing.subscribe(b"a")
    lasting.disconnect(expiry_s=0)
    passing.drop()
    seen = [(change.topic_filter, change.wanted, change.persistent) for change in node.interest_changes]
    assert seen[:2] == [(b"a", True, False), (b"a", True, True)]
    assert seen[-1] == (b"a", False, False)
    assert (b"a", True, False) in seen[2:-1]
    assert node.owner.local_interest() == []


def test_wishes_after_a_restart_are_those_before(node):
    node.persistent("c").subscribe(b"a")
    node.connect("d").subscribe(b"b")
    assert sorted(node.owner.local_interest()) == [(b"a", True), (b"b", False)]
    restarted = node.restart()
    assert restarted.owner.local_interest() == [(b"a", True)]


# Listeners and credit.


def flooded(start, qos):
    """A subscriber on listener 1, whose credit is used up by ten messages; ten more were published."""
    node = start(settings=OwnerSettings(listener_window_bytes=10_000, max_inflight_messages=0))
    client = node.persistent("c", 4, listener=1)
    client.subscribe(b"a")
    publisher = node.connect("p", 4)
    node.credit_held.add(1)
    for number in range(20):
        publisher.publish(b"a", b"%3d" % number + b"x" * 1000, qos=qos, packet_id=number + 1)
    return node, client, publisher


def test_without_credit_there_are_no_deliveries_but_answers(start):
    node, client, publisher = flooded(start, 1)
    assert [packet.packet_id for packet in publisher.take()] == list(range(1, 21))
    heard = len(client.take_publishes())
    assert 5 <= heard <= 10
    client.publish(b"elsewhere", qos=1, packet_id=99)
    assert client.take() == [Puback(99)]
    assert node.owner.counts()["queued_messages"] == 20
    # An acknowledgement that makes room in the window doesn't make room in the listener.
    client.acknowledge(1, 2)
    assert client.take() == []
    assert len(node.stored("queue")) == 18


def test_deliveries_go_on_in_order_with_credit(start):
    node, client, _ = flooded(start, 1)
    heard = client.take_publishes()
    node.release_credit(1)
    heard += client.take_publishes()
    assert [packet.payload[:3] for packet in heard] == [b"%3d" % number for number in range(20)]
    assert not any(packet.dup for packet in heard)
    assert node.owner.counters.dropped == {}


def test_qos0_without_credit_waits_or_drops_as_the_queue_has_room(start):
    node, client, _ = flooded(start, 0)
    heard = client.take_publishes()
    assert len(heard) <= 10
    node.release_credit(1)
    heard += client.take_publishes()
    assert [packet.payload[:3] for packet in heard] == [b"%3d" % number for number in range(20)]


def test_the_other_listener_is_not_held_up(start):
    node, _, publisher = flooded(start, 1)
    other = node.connect("o", listener=0)
    other.subscribe(b"a")
    publisher.publish(b"a", b"through", qos=1)
    publisher.take()
    assert other.take_payloads() == [b"through"]


def test_a_reconnect_without_credit_waits_too(start):
    """Sending again what was in flight is delivering: it needs credit as well."""
    node, client, _ = flooded(start, 1)
    node.listeners[1].lost(client.connection)
    node.settle()
    client = node.persistent("c", 4, listener=1)
    assert client.take() == []
    node.release_credit(1)
    payloads = [packet.payload[:3] for packet in client.take_publishes()]
    assert payloads == [b"%3d" % number for number in range(20)]


def test_a_session_that_waits_for_credit_may_end(start):
    node, client, _ = flooded(start, 1)
    client.drop()
    node.release_credit(1)
    assert len(node.persistent("c", 4, listener=0).take_publishes()) == 20


def test_sessions_that_wait_for_credit_and_are_paused(start):
    node, client, _ = flooded(start, 1)
    heard = len(client.take_publishes())
    node.owner.receive(ConnectionPaused(client.key), node.now)
    node.release_credit(1)
    assert client.take() == []
    node.owner.receive(ConnectionResumed(client.key), node.now)
    node.settle()
    assert len(client.take_publishes()) == 20 - heard


def test_behind_means_without_credit_and_at_work(start):
    node, _, _ = flooded(start, 1)
    assert node.owner.is_behind(node.now)
    assert not node.owner.is_behind(node.now + 60)
    node.release_credit(1)
    assert not node.owner.is_behind(node.now)


def test_a_dead_listener_loses_connections_not_sessions(node):
    lasting, passing = node.persistent("lasting", listener=1), node.connect("passing", listener=1)
    stays = node.connect("stays", listener=0)
    for client in (lasting, passing, stays):
        client.subscribe(b"a")
    node.lose_listener(1)
    assert node.owner.counts()["num_online"] == 1
    stays.publish(b"a", b"1", qos=1)
    assert sorted(type(packet).__name__ for packet in stays.take()) == ["Puback", "Publish"]
    assert node.owner.counts()["num_offline"] == 1
    again = node.persistent("lasting", listener=0)
    assert again.connack.session_present
    assert again.take_payloads() == [b"1"]


def test_the_end_of_an_older_listener_is_old_news(node):
    owner = node.owner
    owner.receive(ListenerStarted(1, 2), node.now)
    owner.receive(Attach(connection_key(1, 5), "c"), node.now)
    owner.receive(ListenerGone(1, 1), node.now)
    owner.receive(ListenerGone(7, 1), node.now)
    assert owner.counts()["num_online"] == 1
    owner.receive(ListenerGone(1, 2), node.now)
    assert owner.counts()["num_online"] == 0
    node.take_effects()


def test_a_listener_that_starts_again_has_no_connections_of_the_last(node):
    node.persistent("c", listener=1)
    node.owner.receive(ListenerStarted(1, 2), node.now)
    assert node.owner.counts()["num_online"] == 0
    node.take_effects()


# Anything at all.


class Model:
    """Random clients of one node, and what must be true of them in the end."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.clients: dict[str, Client] = {}
        self.number = 0

    def muster(self) -> None:
        """A group of two: one is away, and the other's session ends with its connection."""
        for client in (self.node.persistent("c0", expiry_s=20), self.node.connect("c1", 5)):
            client.subscribe(b"$share/g/a", 2)
            self.clients[client.connection.client_id] = client
        self.clients["c0"].drop()

    def step(self, kind: int, who: int, what: int) -> None:
        name = f"c{who}"
        client = self.clients.get(name)
        if client is None or client.closed:
            listener = what % 2
            if kind % 2:
                will = Will(b"a", b"gone", what % 3, what % 4 == 0) if what % 2 else None
                self.clients[name] = self.node.connect(name, 4 + who % 2, what % 5 == 0, listener, will=will)
            else:
                self.clients[name] = self.node.persistent(
                    name,
                    expiry_s=1 + what,
                    listener=listener,
                    properties={RECEIVE_MAXIMUM: 1 + what % 3, PACKET_BYTES_MAX: 12 + what % 4},
                )
        elif kind <= 1:
            client.send(Subscribe(7, (SubscriptionRequest(FILTERS[what % 7], what % 3),)))
        elif kind == 2:
            client.send(Unsubscribe(8, (FILTERS[what % 7],)))
        elif kind in (3, 4, 5):
            self.number += 1
            properties = {MESSAGE_EXPIRY: what} if client.version == 5 and what % 3 == 0 else {}
            payload = b"%d" % self.number + (LARGE if what == 12 else b"")
            topic = [b"a", b"b", b"a/x"][what % 3]
            if what == 11:
                client.publish_qos2(topic, payload, retain=who % 2 == 0, properties=properties)
            else:
                client.publish(topic, payload, kind % 2, retain=what % 4 == 0, properties=properties)
        elif kind == 6:
            for packet in client.take():
                if isinstance(packet, Publish) and packet.qos == 1:
                    client.acknowledge(packet.packet_id)
                elif isinstance(packet, Publish) and packet.qos == 2:
                    client.send(Pubrec(packet.packet_id))
                elif isinstance(packet, Pubrel) and what % 2:
                    client.send(Pubcomp(packet.packet_id))
        elif kind == 7:
            client.drop()
        elif kind == 8:
            event = ConnectionPaused(client.key) if what % 2 else ConnectionResumed(client.key)
            self.node.owner.receive(event, self.node.now)
            self.node.settle()
        elif kind == 9:
            self.node.advance(what % 4)
            self.answer_forwards()
            self.node.fill_links(*(["n2"] if what % 3 == 2 else []))
        elif kind == 10:
            if what % 2:
                self.node.credit_held.add(what % 4 // 2)
            else:
                self.node.release_credit(what % 4 // 2)
        elif client.version == 5:
            client.disconnect(what if client.connection._session_expiry_s else 0)

    def answer_forwards(self) -> None:
        """The other nodes answer: all of them have taken the message."""
        forwards, self.node.forwards = self.node.forwards, []
        owner = self.node.owner
        for forward in forwards:
            if forward.ticket is not None:
                owner.forward_acknowledged(forward.ticket, self.node.now)
        self.node.settle()

    def finish(self) -> None:
        """Nobody waits for anybody any more."""
        for client in self.clients.values():
            if not client.closed:
                client.drop()
        self.answer_forwards()


STEPS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.integers(0, 12)), max_size=60)


HABITS = st.fixed_dictionaries(
    {
        "max_offline_messages": st.sampled_from([3, 9, -1]),
        "max_online_messages": st.sampled_from([4, 9, -1]),
        "max_queued_bytes": st.sampled_from([-1, 12, 2000]),
        "listener_window_bytes": st.sampled_from([400, 100_000]),
        "queue_lifo": st.booleans(),
        "upgrade_outgoing_qos": st.booleans(),
        "retry_interval_s": st.sampled_from([0, 1]),
    }
)


@settings(deadline=None, max_examples=100)
@given(STEPS, HABITS, st.booleans(), st.booleans())
def test_whatever_clients_do_the_invariants_hold(steps, habits, others, grouped):
    """Validated after every turn; then what other nodes know, and what a restart finds, is what is here.

    Heads are small, so that queues go on in the store (compiled modules keep their own constants).
    """
    with (
        patch.object(delivery_queue, "HEAD_MAX", 4),
        patch.object(delivery_queue, "HEAD_LOW", 1),
        patch.object(session_store, "LOAD_MAX", 3),
    ):
        interest = StubInterest({b"a": [("n2", True), ("n3", False)], b"b": [("n3", True)]} if others else {})
        model = Model(Node(settings=OwnerSettings(**habits), interest=interest))
        if grouped:
            model.muster()
        for step in steps:
            model.step(*step)
            assert_bounded(model.node)
        compare_with_crash(model.node)
        compare_with_restart(model)


def assert_bounded(node):
    """What is held for a session, queued or in flight, keeps the limit in bytes; a single delivery always fits."""
    limit = node.settings.max_queued_bytes
    for session in node.owner._sessions.values():
        held = session.queue.bytes + session.inflight.bytes
        deliveries = len(session.queue) + sum(1 for of in session.inflight.deliveries.values() if not of.released)
        assert limit < 0 or held <= limit or deliveries == 1


def compare_with_crash(node):
    """What members that are not stored had of a group is the first that the others get of it."""
    crashed = node.restart()
    crashed.validate()
    for name, group in crashed.owner._groups.all.items():
        kept = sorted(node.owner._groups.all[name].kept.values(), key=lambda record: record.seq)
        payloads = stored_payloads(crashed, group)
        assert payloads[: len(kept)] == [record.message.payload for record in kept]


def compare_with_restart(model):
    model.finish()
    node = model.node
    node.validate()
    assert wishes_after(node.interest_changes) == dict(node.owner.local_interest())
    restarted = node.restart()
    restarted.validate()
    kept = {client_id for client_id, session in node.owner._sessions.items() if session.expiry_s > 0}
    assert set(restarted.owner._sessions) == kept
    for client_id in kept:
        before, after = node.owner._sessions[client_id], restarted.owner._sessions[client_id]
        assert plain(after.subscriptions) == plain(before.subscriptions)
        assert stored_payloads(restarted, after) == stored_payloads(node, before)
        assert list(after.inflight.deliveries) == sorted_by_place(before)
        # Nothing is under way for ever: each PUBLISH was refused, or its PUBREC stands.
        assert after.incoming == before.incoming
    for world in (node, restarted):
        for client_id in kept:
            world.connect(client_id).drop()
        world.validate()
        assert world.stored("queue") == world.stored("session") == []


def plain(subscriptions):
    return {name: (found.options, found.identifier) for name, found in subscriptions.items()}


def stored_payloads(node, owner):
    """What waits for a session or group and outlives the process."""
    while owner.queue.tail_count:
        node.owner._store.load(owner.number, owner.queue)
    return [delivery.message.payload for delivery in owner.queue.deliveries() if delivery.qos]


def sorted_by_place(session):
    """Packet ids in flight in the order of the queue."""
    return [packet_id for packet_id, _ in sorted(session.inflight.deliveries.items(), key=lambda item: item[1].seq)]


def test_sessions_that_ended_early_leave_no_deadlines(node):
    """A client id for each message and a year of expiry must not be remembered after a Clean Start ended them."""
    for number in range(300):
        node.persistent(f"c{number}", expiry_s=31_536_000).drop()
        node.connect(f"c{number}").drop()
    assert len(node.owner._lifetimes._expiries) < 100


YEAR_S = 31_536_000


@pytest.mark.parametrize("step_s", [YEAR_S, -YEAR_S])
def test_deadlines_are_right_when_the_clock_was_set_since_the_start(node, step_s):
    """Of a session, a message, what is retained and a will: a machine may start before it knows the time."""
    node.step_clock(step_s)
    will = Will(b"will", b"will", 1, properties={int(Property.WILL_DELAY_INTERVAL): 50})
    short = node.persistent("short", expiry_s=100, will=will)
    short.subscribe(b"a")
    node.persistent("watcher", expiry_s=1000).subscribe(b"will")
    publisher = node.connect("publisher", 5)
    publisher.publish(b"a", b"message", 1, properties={int(Property.MESSAGE_EXPIRY_INTERVAL): 90}, retain=True)
    short.drop()
    for down_s, there in ((40, True), (110, False)):
        restarted = node.restart(down_s)
        restarted.advance(0)
        assert ("short" in restarted.owner._sessions) == there
        assert (len(restarted.owner.retained) == 1) == there
        assert (restarted.owner.counters.will_published == 0) == there
        if there:
            (publish,) = restarted.persistent("short").take_publishes()
            assert publish.properties[int(Property.MESSAGE_EXPIRY_INTERVAL)] == 50
        restarted.validate()
