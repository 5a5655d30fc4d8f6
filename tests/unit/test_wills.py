"""Wills: when they are published, and when they are not, through one node as clients see it."""

import math

import pytest
from core_helpers import Node, StubInterest

from broker.core.epoch import pack_epoch
from broker.core.left_will import LeftWill, unpack_will_row, will_tag
from broker.core.rows import RowKind, row_subject
from broker.core.settings import OwnerSettings
from broker.core.storage import WriteBatch
from broker.mqtt.packets import Disconnect, Publish, Subscribe, SubscriptionRequest, Will
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

DELAY = int(Property.WILL_DELAY_INTERVAL)
EXPIRY = int(Property.SESSION_EXPIRY_INTERVAL)
MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)
NEVER = 0xFFFFFFFF
GRACE_S = 10
LARGE = b"x" * 600


def will_of(delay_s: int = 0, topic: bytes = b"will", payload: bytes = b"gone", **options) -> Will:
    properties = options.pop("properties", {})
    if delay_s:
        properties = {**properties, DELAY: delay_s}
    return Will(topic, payload, options.pop("qos", 1), properties=properties, **options)


def watch(node: Node):
    """A client that hears every will, on the listener that the others are not on."""
    watcher = node.persistent("watcher", listener=1)
    watcher.subscribe(b"will/#", 2)
    return watcher


def leave(node: Node, delay_s: int = 0, expiry_s: int = 3600, version: int = 5, **options):
    if version != 5:
        return node.connect("c", version, will=will_of(**options))
    return node.persistent("c", expiry_s=expiry_s, will=will_of(delay_s, **options))


def heard(watcher) -> list[bytes]:
    payloads = []
    for packet in watcher.take_publishes():
        payloads.append(packet.payload)
        if packet.qos == 1:
            watcher.acknowledge(packet.packet_id)
    return payloads


# Which end is a bad one.


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_connection_that_is_lost(node, version):
    """[MQTT-3.1.2-8]"""
    watcher = watch(node)
    client = leave(node, version=version)
    assert len(node.stored("will")) == 1
    client.drop()
    assert heard(watcher) == [b"gone"]
    assert node.stored("will") == []
    assert node.owner.counters.will_published == 1


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_proper_goodbye(node, version):
    """[MQTT-3.1.2-10] [MQTT-3.14.4-3]"""
    watcher = watch(node)
    leave(node, version=version).disconnect()
    assert node.stored("will") == []
    node.advance(4000)
    assert heard(watcher) == []


@pytest.mark.parametrize(
    ("reason", "published"),
    [(0x00, False), (0x04, True), (0x80, True), (0x81, True), (0x93, True)],
)
def test_the_reason_of_the_disconnect(node, reason, published):
    """Every reason but success leaves the will."""
    watcher = watch(node)
    client = leave(node)
    client.send(Disconnect(reason))
    client.drop()
    assert heard(watcher) == ([b"gone"] if published else [])


def test_a_fault_of_the_client(node):
    watcher = watch(node)
    client = leave(node)
    client.send(b"\xff\xff\xff\xff\xff")
    assert client.closed
    assert heard(watcher) == [b"gone"]


def test_silence(node):
    """[MQTT-3.1.2-22]"""
    watcher = watch(node)
    node.connect("c", 4, keep_alive_s=10, will=will_of())
    node.advance(15)
    assert heard(watcher) == []
    node.advance(1)
    assert heard(watcher) == [b"gone"]


def test_a_listener_that_dies(node):
    watcher = watch(node)
    leave(node)
    node.lose_listener(0)
    assert heard(watcher) == [b"gone"]


def test_a_client_without_a_will(node):
    watcher = watch(node)
    node.persistent("c").drop()
    node.advance(4000)
    assert heard(watcher) == []


# Delay.


def test_the_delay(node):
    """[MQTT-3.1.3-9]"""
    watcher = watch(node)
    leave(node, 60).drop()
    assert node.owner.next_deadline() == node.now + 60
    node.advance(59)
    assert heard(watcher) == []
    node.advance(1)
    assert heard(watcher) == [b"gone"]
    node.advance(10_000)
    assert heard(watcher) == []


def test_back_in_time(node):
    """[MQTT-3.1.3-9]"""
    watcher = watch(node)
    leave(node, 60).drop()
    node.advance(59)
    client = node.persistent("c")
    assert node.stored("will") == []
    node.advance(100)
    assert heard(watcher) == []
    # This connection left no will.
    client.drop()
    node.advance(100)
    assert heard(watcher) == []


def test_the_will_of_the_present_connection_counts(node):
    watcher = watch(node)
    leave(node, 60, payload=b"first").drop()
    leave(node, 30, payload=b"second").drop()
    node.advance(30)
    assert heard(watcher) == [b"second"]
    node.advance(100)
    assert heard(watcher) == []


@pytest.mark.parametrize("expiry_s", [0, 20])
def test_the_end_of_the_session_does_not_wait_for_the_delay(node, expiry_s):
    """[MQTT-3.1.2-8]"""
    watcher = watch(node)
    leave(node, 60, expiry_s).drop()
    if expiry_s:
        node.advance(expiry_s - 1)
        assert heard(watcher) == []
        node.advance(1)
    assert heard(watcher) == [b"gone"]
    node.advance(100)
    assert heard(watcher) == []


def test_an_end_that_the_disconnect_brings_forward(node):
    watcher = watch(node)
    client = leave(node, 60)
    client.send(Disconnect(0x04, {EXPIRY: 5}))
    client.drop()
    node.advance(5)
    assert heard(watcher) == [b"gone"]


def test_clean_start_ends_the_session_before_the_delay(node):
    watcher = watch(node)
    leave(node, 60).drop()
    node.connect("c", 5)
    assert heard(watcher) == [b"gone"]


@pytest.mark.parametrize(("delay_s", "waits_s"), [(60, 20), (10, 10), (NEVER, 20)])
def test_the_longest_delay(start, delay_s, waits_s):
    node = start(settings=OwnerSettings(max_last_will_delay_s=20))
    watcher = watch(node)
    leave(node, delay_s, NEVER).drop()
    node.advance(waits_s - 1)
    assert heard(watcher) == []
    node.advance(1)
    assert heard(watcher) == [b"gone"]


# Takeover.


@pytest.mark.parametrize(
    ("delay_s", "expiry_s", "clean", "published"),
    [
        (0, 3600, False, True),
        (60, 3600, False, False),
        (60, 3600, True, True),
        (60, 0, False, True),
        (0, 0, True, True),
    ],
)
@pytest.mark.parametrize("suppressed", [False, True])
def test_takeover(start, delay_s, expiry_s, clean, published, suppressed):
    """The older connection ends without a goodbye; within its delay the newer one is a return."""
    node = start(settings=OwnerSettings(suppress_will_on_takeover=suppressed))
    watcher = watch(node)
    older = leave(node, delay_s, expiry_s)
    node.connect("c", 5, clean, properties={EXPIRY: 3600})
    assert older.closed
    assert heard(watcher) == ([b"gone"] if published and not suppressed else [])
    node.advance(100)
    assert heard(watcher) == []
    assert node.stored("will") == []


# Restarts.


@pytest.mark.parametrize("expiry_s", [0, 3600])
def test_a_crash_gives_the_grace_to_who_was_connected(node, expiry_s):
    watch(node)
    leave(node, 0, expiry_s)
    restarted = node.restart(down_s=100)
    assert restarted.owner.next_deadline() == restarted.now + GRACE_S
    restarted.advance(GRACE_S - 1)
    watcher = restarted.persistent("watcher")
    assert heard(watcher) == []
    restarted.advance(1)
    assert heard(watcher) == [b"gone"]
    assert restarted.stored("will") == []


@pytest.mark.parametrize("expiry_s", [0, 3600])
def test_back_after_a_crash(node, expiry_s):
    watch(node)
    leave(node, 0, expiry_s)
    restarted = node.restart()
    restarted.persistent("c")
    restarted.advance(1000)
    assert heard(restarted.persistent("watcher")) == []


def test_a_delay_runs_on_over_a_restart(node):
    watch(node)
    leave(node, 60).drop()
    node.advance(20)
    restarted = node.restart(down_s=10)
    restarted.advance(29)
    watcher = restarted.persistent("watcher")
    assert heard(watcher) == []
    restarted.advance(1.1)
    assert heard(watcher) == [b"gone"]


def test_two_crashes_do_not_publish_twice(node):
    watch(node)
    leave(node)
    restarted = node.restart()
    restarted.advance(GRACE_S)
    again = restarted.restart()
    again.advance(1000)
    assert heard(again.persistent("watcher")) == [b"gone"]


@pytest.mark.parametrize(
    ("delay_s", "expiry_s", "waits_s"),
    [(3600, 0, GRACE_S), (3600, NEVER, 20), (15, NEVER, 15), (3600, 12, 12), (5, NEVER, GRACE_S)],
)
def test_the_bounds_of_a_delay_hold_after_a_crash(start, delay_s, expiry_s, waits_s):
    """The session's end, and the longest delay that this node allows."""
    node = start(settings=OwnerSettings(max_last_will_delay_s=20))
    watch(node)
    leave(node, delay_s, expiry_s)
    restarted = node.restart()
    watcher = restarted.persistent("watcher")
    restarted.advance(waits_s - 1)
    assert heard(watcher) == []
    restarted.advance(1)
    assert heard(watcher) == [b"gone"]


def test_wills_that_went_leave_no_deadlines(node):
    """A year of delay and a reconnect every second must not be 30 million remembered deadlines."""
    for _ in range(300):
        leave(node, 31_536_000, NEVER).drop()
    assert len(node.owner.wills._due) < 100


@pytest.mark.parametrize(
    "will",
    [
        will_of(0, payload=b""),
        will_of(0, payload=LARGE, qos=2, properties={int(Property.CONTENT_TYPE): "text/plain"}),
        will_of(3, b"will/\xc3\xa9", qos=0, retain=True, properties={MESSAGE_EXPIRY: 100}),
    ],
    ids=["empty", "large", "delayed"],
)
@pytest.mark.parametrize("restart", [False, True])
def test_the_message(node, will, restart):
    """[MQTT-3.1.2-9] [MQTT-3.1.2-16]: as it was left, also after a restart."""
    watch(node)
    client = node.persistent("c", will=will)
    node.advance(500)
    if restart:
        node = node.restart()
    else:
        client.drop()
    watcher = node.persistent("watcher")
    node.advance(GRACE_S)
    (packet,) = watcher.take_publishes()
    assert (packet.topic, packet.payload, packet.qos) == (will.topic, will.payload, will.qos)
    # Its interval runs from when it is published.
    assert packet.properties == {name: value for name, value in will.properties.items() if name != DELAY}


# The node stops.


@pytest.mark.parametrize("expiry_s", [0, 3600, NEVER])
def test_a_node_that_stops_gives_the_grace(node, expiry_s):
    """A rolling restart doesn't fire every will; delays that are longer stay as they are."""
    watch(node)
    leave(node, 0, expiry_s)
    node.persistent("patient", will=will_of(60, payload=b"patient"))
    node.listeners[0].close_all(Reason.SERVER_SHUTTING_DOWN)
    node.settle()
    restarted = node.restart(down_s=4)
    watcher = restarted.persistent("watcher")
    restarted.advance(GRACE_S - 4 - 1)
    assert heard(watcher) == []
    restarted.advance(1.1)
    assert heard(watcher) == [b"gone"]
    restarted.advance(50)
    assert heard(watcher) == [b"patient"]


@pytest.mark.parametrize("expiry_s", [0, 3600])
def test_back_after_the_stop(node, expiry_s):
    watch(node)
    leave(node, 0, expiry_s)
    node.listeners[0].close_all(Reason.SERVER_SHUTTING_DOWN)
    node.settle()
    restarted = node.restart(down_s=4)
    restarted.persistent("c")
    restarted.advance(100)
    assert heard(restarted.persistent("watcher")) == []


# What a will is as a message.


def test_retained_wills(node):
    """[MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.2-17]"""
    for retain in (False, True):
        leave(node, retain=retain, payload=b"%d" % retain).drop()
    client = node.connect("new", 5)
    client.send(Subscribe(7, (SubscriptionRequest(b"will", 1),)))
    (packet,) = (packet for packet in client.take() if isinstance(packet, Publish))
    assert (packet.payload, packet.retain) == (b"1", True)


def test_a_will_to_a_topic_of_the_server(node):
    """[MQTT-4.7.2-1]: refused like any PUBLISH there, when its time comes."""
    watcher = node.connect("w")
    watcher.subscribe(b"$SYS/#")
    leave(node, topic=b"$SYS/x").drop()
    assert watcher.take() == []
    assert node.dropped("reserved_topic") == 1
    assert node.owner.counters.will_published == 0


def test_a_will_is_forwarded(start):
    node = start(interest=StubInterest({b"will": [("n2", True)]}))
    leave(node).drop()
    (forward,) = node.forwards
    assert (forward.node, forward.message.payload, forward.message.publisher) == ("n2", b"gone", "c")
    assert forward.ticket is None
    assert len(forward.message.key()) == 24


def test_a_will_for_oneself(node):
    """A session that outlives its connection may have subscribed to it."""
    client = leave(node)
    client.subscribe(b"will")
    client.drop()
    assert node.persistent("c").take_payloads() == [b"gone"]


def test_a_clean_session_ends_with_its_will_for_itself(node):
    client = leave(node, expiry_s=0)
    client.subscribe(b"will")
    client.drop()
    assert node.stored("queue") == []
    assert node.connect("c", 5, False).take() == []


def test_refused_connections_leave_no_will(start):
    node = start(settings=OwnerSettings(max_connections=1))
    watcher = watch(node)
    assert leave(node).connack.reason == Reason.QUOTA_EXCEEDED
    node.advance(1000)
    assert heard(watcher) == []
    assert node.stored("will") == []


# Among other nodes.


def told(node: Node) -> list[LeftWill]:
    """The wills that the other nodes know."""
    return [unpack_will_row(row_subject(row), value) for (_, row), value in node.rows.items() if row[0] == RowKind.WILL]


def waits(node: Node) -> list[tuple[bool, int]]:
    """Of those, whether they wait, and how long in all."""
    tags = [will_tag(value) for (_, row), value in node.rows.items() if row[0] == RowKind.WILL]
    return [(tag.waits, tag.wait_s) for tag in tags]


@pytest.mark.parametrize("expiry_s", [0, 3600])
def test_the_others_are_told_of_a_will(node, expiry_s):
    assert told(node) == []
    leave(node, 60, expiry_s, retain=True, properties={MESSAGE_EXPIRY: 7})
    (left,) = told(node)
    session = node.owner.session("c")
    assert (left.client_id, left.epoch) == ("c", pack_epoch(session.epoch))
    will = left.will
    assert (will.topic, will.payload, will.qos, will.retain, will.expiry_s) == (b"will", b"gone", 1, True, 7)
    assert waits(node) == [(False, min(60, expiry_s))]


def test_the_others_are_told_that_a_will_waits_and_that_it_is_gone(node):
    leave(node, 60).drop()
    assert waits(node) == [(True, 60)]
    leave(node, 30)
    assert waits(node) == [(False, 30)]
    leave(node, 0).drop()
    assert told(node) == []


def test_who_leaves_no_will_costs_nothing(node):
    node.persistent("c").drop()
    assert not [row for _, row in node.rows if row[0] == RowKind.WILL]
    assert node.stored("will") == []


def test_a_restart_tells_the_same_wills_and_that_they_wait(node):
    leave(node, 60)
    number = told(node)[0].number
    restarted = node.restart()
    assert [left.number for left in told(restarted)] == [number]
    assert waits(restarted) == [(True, 60)]
    leave(restarted)
    assert told(restarted)[0].number > number


def test_a_stored_will_of_an_earlier_program(node):
    watch(node)
    leave(node, 60)
    key, value = next(node.storage.scan("will", b"", b""))
    batch = WriteBatch()
    batch.put("will", key, value[1 + 44 :])
    node.storage.commit(batch)
    restarted = node.restart()
    (left,) = told(restarted)
    assert left.number
    assert left.will.payload == b"gone"
    restarted.advance(61)
    assert heard(restarted.persistent("watcher")) == [b"gone"]


def test_nothing_is_published_while_wills_are_held(node):
    watcher = watch(node)
    leave(node, 5).drop()
    node.owner.wills.held = True
    node.advance(10)
    assert node.owner.wills.next_deadline() == math.inf
    assert heard(watcher) == []
    node.owner.wills.held = False
    node.advance(0)
    assert heard(watcher) == [b"gone"]


def test_a_session_that_ends_while_wills_are_held_leaves_its_will(node):
    watcher = watch(node)
    leave(node, 60, 60).drop()
    node.owner.wills.held = True
    node.advance(61)
    assert node.owner.session("c") is None
    assert heard(watcher) == []
    node.owner.wills.held = False
    node.advance(0)
    assert heard(watcher) == [b"gone"]


def test_what_another_node_claims_waits_until_it_does_not(node):
    watcher = watch(node)
    leave(node, 5).drop()
    node.owner.wills.set_claimed("c", True)
    node.advance(10)
    assert heard(watcher) == []
    node.owner.wills.set_claimed("c", False)
    node.advance(0)
    assert heard(watcher) == [b"gone"]


def test_what_another_node_has_published_is_given_up(node):
    watcher = watch(node)
    leave(node, 5).drop()
    node.owner.wills.spend("c")
    node.settle()
    node.advance(10)
    assert heard(watcher) == []
    assert (told(node), node.stored("will")) == ([], [])


def test_the_will_of_a_connection_that_goes_on_is_another_one_when_it_was_published_elsewhere(node):
    watcher = watch(node)
    client = leave(node)
    number = told(node)[0].number
    node.owner.wills.spend("c")
    node.settle()
    assert told(node)[0].number > number
    client.drop()
    assert heard(watcher) == [b"gone"]
