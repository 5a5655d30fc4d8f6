"""broker.core.client_topics: limits of topics, and their mountpoint."""

import pytest

from broker.core.client_topics import ClientTopics
from broker.core.connection_limits import ConnectionLimits
from broker.core.subscription import NO_LOCAL, RETAIN_AS_PUBLISHED
from broker.mqtt.packets import Subscribe, SubscriptionRequest, Unsubscribe, Will
from broker.mqtt.properties import Property
from broker.mqtt.reasons import ProtocolError, Reason
from broker.mqtt.topics import mount_prefix

LIMITS = ConnectionLimits(topic_levels_max=3, topic_bytes_max=20)
REFUSED = int(Reason.TOPIC_FILTER_INVALID)


@pytest.mark.parametrize(
    ("topic", "over"),
    [(b"a/b/c", False), (b"a/b/c/d", True), (b"//", False), (b"///", True), (b"t" * 20, False), (b"t" * 21, True)],
)
def test_limits(topic, over):
    topics = ClientTopics(LIMITS, "")
    assert topics.are_exceeded(topic) == over
    if over:
        assert len(topic) > topics.bytes_free


@pytest.mark.parametrize("limits", [LIMITS, ConnectionLimits(), ConnectionLimits(topic_levels_max=1)])
def test_what_is_short_need_not_be_looked_at(limits):
    topics = ClientTopics(limits, "")
    for size in range(1, topics.bytes_free + 1):
        assert not topics.are_exceeded(b"/" * size)
        assert not topics.are_exceeded(b"t" * size)


def test_a_prefix_takes_its_place():
    prefix = mount_prefix("m")
    topics = ClientTopics(ConnectionLimits(), "m")
    assert topics.prefix == prefix
    assert not topics.are_exceeded(b"t" * (65535 - len(prefix)))
    assert topics.are_exceeded(b"t" * (65536 - len(prefix)))


@pytest.mark.parametrize(
    ("topic_filter", "granted"),
    [
        (b"+/+/#", True),
        (b"+/+/+/#", False),
        (b"$share/g/a/b/c", True),
        (b"$share/g/a/b/c/d", False),
        (b"$share/group/" + b"t" * 7, True),
        (b"$share/group/" + b"t" * 8, False),
        (b"$share", False),
        (b"$shared", True),
    ],
)
def test_requests(topic_filter, granted):
    packet = Subscribe(1, (SubscriptionRequest(b"a", 2), SubscriptionRequest(topic_filter, 1)))
    wanted = [(b"a", 2), (topic_filter, 1 if granted else REFUSED)]
    assert ClientTopics(LIMITS, "").requests(packet) == wanted


def test_a_bridge_asks_for_more():
    packet = Subscribe(1, (SubscriptionRequest(b"a", 1),))
    topics = ClientTopics(LIMITS, "")
    topics.bridge = True
    assert topics.requests(packet) == [(b"a", 1 | NO_LOCAL | RETAIN_AS_PUBLISHED)]


def test_everything_is_below_the_mountpoint():
    topics = ClientTopics(ConnectionLimits(), "m")
    prefix = mount_prefix("m")
    shared = b"$share/g/" + prefix + b"a"
    packet = Subscribe(1, (SubscriptionRequest(b"a"), SubscriptionRequest(b"$share/g/a")))
    assert topics.requests(packet) == [(prefix + b"a", 0), (shared, 0)]
    assert topics.filters(Unsubscribe(1, (b"a", b"$share/g/a"))) == [prefix + b"a", shared]
    will = topics.will(Will(b"w", b"x"))
    assert will is not None
    assert will.topic == prefix + b"w"


def test_wills():
    topics = ClientTopics(LIMITS, "")
    assert topics.will(None) is None
    properties = {
        int(Property.WILL_DELAY_INTERVAL): 3,
        int(Property.MESSAGE_EXPIRY_INTERVAL): 4,
        int(Property.CONTENT_TYPE): "t",
    }
    will = topics.will(Will(b"w", b"x", 2, True, properties))
    assert will is not None
    assert (will.topic, will.payload, will.properties, will.qos, will.retain) == (b"w", b"x", b"\x03\0\x01t", 2, True)
    assert (will.delay_s, will.expiry_s) == (3, 4)
    with pytest.raises(ProtocolError) as caught:
        topics.will(Will(b"a/b/c/d", b"x"))
    assert caught.value.reason == Reason.TOPIC_NAME_INVALID


def test_an_operator_reads_of_refusals_once():
    topics = ClientTopics(LIMITS, "")
    assert "more than 3 levels or 20 bytes" in topics.refuse("c")
    assert topics.refuse("c") == ""
