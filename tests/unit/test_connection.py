"""broker.core.connection: the states of one connection, and which records and packets make which others."""

import pytest

from broker.core.authentication import CONTINUE, FAILURE, NO_METHODS, SUCCESS, Authenticator, MethodTable, Step
from broker.core.connection import ATTACHED, ATTACHING, CLOSED, WAITING, Connection
from broker.core.connection_limits import CONNECT_BYTES_MAX, ConnectGate, ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.core.events import (
    CONNECTION_LOST,
    NEVER_EXPIRES_S,
    REFUSED_TOPIC,
    Attach,
    Detach,
    PubackReceived,
    PubcompReceived,
    PublishReceived,
    PubrecReceived,
    PubrelReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.listener_records import ListenerBatch, unpack_events
from broker.core.owner_records import Answer
from broker.core.records import CONNACK, PUBACK, PUBCOMP, PUBREC, SUBACK, UNSUBACK
from broker.mqtt.codec import decode, encode, split
from broker.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason


class Talk:
    """A connection and its batch; `told` is what the owner heard since the last look, `heard` what the client did."""

    def __init__(
        self, limits: ConnectionLimits | None = None, authenticator: Authenticator = NO_METHODS, mountpoint: str = ""
    ) -> None:
        self.batch = ListenerBatch(0, 1, 1)
        self.connection = Connection(
            9,
            self.batch,
            limits or ConnectionLimits(),
            ConnectGate(0, ListenerCounters()),
            ListenerCounters(),
            authenticator,
            mountpoint,
            100.0,
        )

    def say(self, *packets, version=4, now=100.0):
        data = b"".join(encode(packet, version) for packet in packets)
        self.connection.receive_data(data, now, lambda: "assigned")
        return self

    def told(self):
        return unpack_events(self.batch.take(0))

    def heard(self):
        data = b"".join(self.connection.output)
        self.connection.output = []
        packets = []
        pos = 0
        while pos < len(data):
            start, end = split(data, pos, 0)
            packets.append(decode(data, data[pos], start, end, self.connection.version))
            pos = end
        return packets

    def answer(self, kind, packet_id=0, reason=0, reasons=b"", present=False):
        answer = Answer(kind, 9, packet_id, reason)
        answer.reasons = reasons
        answer.session_present = present
        if kind == CONNACK:
            self.connection.receive_connack(answer, lambda: "assigned")
        elif kind in (PUBACK, PUBREC, PUBCOMP):
            self.connection.receive_acknowledgement(answer)
        elif kind == SUBACK:
            self.connection.receive_suback(answer)
        else:
            self.connection.receive_unsuback(answer)

    def refusal(self, version=5):
        """The one packet that the client heard, after which it is closed and the owner knows."""
        assert self.connection.state == CLOSED
        assert not self.connection.want_read
        (packet,) = self.heard()
        return packet.reason


def attached(version=4, limits=None, **options):
    talk = Talk(limits).say(Connect(version, "c", **options), version=version)
    talk.answer(CONNACK)
    talk.told()
    talk.heard()
    return talk


def test_the_states():
    talk = Talk()
    assert talk.connection.state == WAITING
    assert talk.connection.want_read
    talk.say(Connect(4, "c"))
    assert talk.connection.state == ATTACHING
    assert not talk.connection.want_read
    talk.answer(CONNACK, present=True)
    assert talk.connection.state == ATTACHED
    assert talk.connection.want_read
    assert talk.heard() == [Connack(True)]
    talk.say(Disconnect())
    assert talk.connection.state == CLOSED
    assert not talk.connection.want_read
    assert talk.heard() == []
    # Nothing is heard any more, and the owner knows already.
    talk.told()
    talk.say(Pingreq())
    talk.connection.lost()
    assert talk.told() == []
    assert talk.heard() == []


def only(talk, kind):
    (event,) = talk.told()
    assert isinstance(event, kind)
    return event


@pytest.mark.parametrize(
    ("version", "clean", "properties", "limits", "expiry_s"),
    [
        (4, True, {}, ConnectionLimits(), 0),
        (4, False, {}, ConnectionLimits(), NEVER_EXPIRES_S),
        (4, False, {}, ConnectionLimits(persistent_client_expiration_s=60), 60),
        (5, True, {}, ConnectionLimits(), 0),
        (5, False, {}, ConnectionLimits(), 0),
        (5, True, {Property.SESSION_EXPIRY_INTERVAL: 7}, ConnectionLimits(), 7),
        (5, False, {Property.SESSION_EXPIRY_INTERVAL: NEVER_EXPIRES_S}, ConnectionLimits(), NEVER_EXPIRES_S),
    ],
)
def test_connect_becomes_attach(version, clean, properties, limits, expiry_s):
    talk = Talk(limits).say(Connect(version, "käse", clean, 30, "user", b"secret", properties=properties))
    event = only(talk, Attach)
    assert (event.client_id, event.version, event.clean_start) == ("käse", version, clean)
    assert (event.session_expiry_s, event.user_name) == (expiry_s, "user")
    assert (event.receive_maximum, event.packet_bytes_max) == (65535, 0)


def test_the_limits_of_a_5_0_client():
    properties = {int(Property.RECEIVE_MAXIMUM): 3, int(Property.MAXIMUM_PACKET_SIZE): 0xFFFFFFFF}
    event = only(Talk().say(Connect(5, "c", properties=properties)), Attach)
    assert (event.receive_maximum, event.packet_bytes_max) == (3, 0xFFFFFFFF)


def test_a_client_without_an_id_is_given_one():
    """[MQTT-3.1.3-6] [MQTT-3.1.3-7]"""
    for version, clean in ((4, True), (5, True), (5, False)):
        talk = Talk().say(Connect(version, "", clean))
        assert only(talk, Attach).client_id == "assigned"
        talk.answer(CONNACK)
        (connack,) = talk.heard()
        assert connack.properties.get(Property.ASSIGNED_CLIENT_IDENTIFIER) == ("assigned" if version == 5 else None)


def test_an_id_of_100_bytes_is_not_too_long():
    """The limit counts bytes of UTF-8."""
    assert only(Talk().say(Connect(4, "é" * 50)), Attach).client_id == "é" * 50
    talk = Talk().say(Connect(4, "é" * 51))
    assert talk.refusal() == Reason.CLIENT_IDENTIFIER_NOT_VALID
    assert talk.told() == []


@pytest.mark.parametrize(
    ("connect", "reason"),
    [
        (Connect(4, "", False), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(4, "x" * 101), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(5, "x" * 101), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(3, ""), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(5, "c", properties={Property.AUTHENTICATION_METHOD: "m"}), Reason.BAD_AUTHENTICATION_METHOD),
    ],
)
def test_refused_connects(connect, reason):
    """The owner never hears of them."""
    talk = Talk().say(connect)
    assert talk.refusal() == reason
    assert talk.told() == []


def test_a_refusal_by_the_owner():
    for version in (4, 5):
        talk = Talk().say(Connect(version, "c"))
        talk.told()
        talk.answer(CONNACK, reason=Reason.NOT_AUTHORIZED)
        assert talk.refusal() == Reason.NOT_AUTHORIZED


def test_a_connack_that_comes_too_late_or_twice():
    talk = attached()
    talk.answer(CONNACK)
    assert talk.heard() == []
    talk = Talk().say(Connect(4, "c"))
    talk.connection.lost()
    talk.answer(CONNACK)
    assert talk.heard() == []
    assert talk.connection.state == CLOSED


def test_what_the_connack_of_5_0_says():
    """Limits that are not MQTT's own, and nothing else."""
    limits = ConnectionLimits(packet_bytes_max=1000, receive_max=7, topic_alias_max_client=3, keep_alive_s_max=60)
    for keep_alive_s in (0, 61):
        talk = Talk(limits).say(Connect(5, "c", keep_alive_s=keep_alive_s))
        talk.answer(CONNACK)
        (connack,) = talk.heard()
        assert connack.properties == {
            Property.RECEIVE_MAXIMUM: 7,
            Property.MAXIMUM_PACKET_SIZE: 1000,
            Property.TOPIC_ALIAS_MAXIMUM: 3,
            Property.SERVER_KEEP_ALIVE: 60,
        }
    talk = Talk().say(Connect(5, "c"))
    talk.answer(CONNACK)
    assert talk.heard() == [Connack()]


def test_publish():
    talk = attached(5)
    properties = {
        int(Property.MESSAGE_EXPIRY_INTERVAL): 30,
        int(Property.CONTENT_TYPE): "text/plain",
        int(Property.USER_PROPERTY): [("k", "v")],
    }
    talk.say(Publish(b"a", b"p", 1, packet_id=65535, properties=properties), version=5)
    event = only(talk, PublishReceived)
    assert (event.connection, event.packet_id, event.expiry_s) == (9, 65535, 30)
    message = event.message
    assert (message.topic, message.payload, message.qos, message.retain) == (b"a", b"p", 1, False)
    # Without the expiry, which differs for each receiver.
    assert message.properties == bytes.fromhex("03000a") + b"text/plain" + bytes.fromhex("2600016b000176")


def test_subscribe_and_unsubscribe():
    talk = attached(5)
    filters = (
        SubscriptionRequest(b"a/#", 2, no_local=True),
        SubscriptionRequest(b"$share/g/a", 1),
        SubscriptionRequest(b"b", 0, retain_as_published=True, retain_handling=2),
    )
    talk.say(Subscribe(5, filters), Unsubscribe(6, (b"a", b"$share/g/a")), version=5)
    subscribe, unsubscribe = talk.told()
    assert isinstance(subscribe, SubscribeReceived)
    assert subscribe.requests == [
        (b"a/#", 2 | 4),
        (b"$share/g/a", 1),
        (b"b", 8 | 2 << 4),
    ]
    assert isinstance(unsubscribe, UnsubscribeReceived)
    assert (unsubscribe.packet_id, unsubscribe.filters) == (6, [b"a", b"$share/g/a"])


def test_answers():
    reasons = bytes([0, 1, 0x9E, 0x80])
    for version, suback, unsuback in (
        (5, Suback(1, (0, 1, 0x9E, 0x80)), Unsuback(2, (0, 0x11))),
        (4, Suback(1, (0, 1, 0x80, 0x80)), Unsuback(2)),
    ):
        talk = attached(version)
        talk.answer(SUBACK, 1, reasons=reasons)
        talk.answer(UNSUBACK, 2, reasons=bytes([0, 0x11]))
        talk.say(Publish(b"a", b"", 1, packet_id=3), version=version)
        talk.answer(PUBACK, 3, 0x10)
        assert talk.heard() == [suback, unsuback, Puback(3, 0x10 if version == 5 else 0)]


def test_acknowledgements_of_the_client():
    for packet, event in (
        (Puback, PubackReceived),
        (Pubrec, PubrecReceived),
        (Pubrel, PubrelReceived),
        (Pubcomp, PubcompReceived),
    ):
        talk = attached(5)
        reason = 0x92 if packet in (Pubrel, Pubcomp) else 0x80
        talk.say(packet(1), packet(65535, reason), version=5)
        first, second = talk.told()
        assert (type(first), first.packet_id, first.reason) == (event, 1, 0)
        assert (type(second), second.packet_id, second.reason) == (event, 65535, reason)


def test_a_will_goes_with_the_attach():
    properties = {
        int(Property.WILL_DELAY_INTERVAL): 5,
        int(Property.MESSAGE_EXPIRY_INTERVAL): 6,
        int(Property.CONTENT_TYPE): "t",
    }
    event = only(Talk().say(Connect(5, "c", will=Will(b"a", b"gone", 2, True, properties))), Attach)
    will = event.will
    assert (will.topic, will.payload, will.qos, will.retain) == (b"a", b"gone", 2, True)
    assert (will.delay_s, will.expiry_s, will.properties) == (5, 6, bytes.fromhex("03000174"))
    assert only(Talk().say(Connect(4, "c")), Attach).will is None


def test_topic_aliases_of_the_client():
    """[MQTT-3.3.2-8..12]"""
    alias = int(Property.TOPIC_ALIAS)
    talk = attached(5, ConnectionLimits(topic_alias_max_client=2))
    said = [(b"a", 1), (b"", 1), (b"b", 2), (b"c", 1), (b"", 1), (b"", 2)]
    talk.say(*(Publish(topic, b"", properties={alias: number}) for topic, number in said), version=5)
    assert [event.message.topic for event in talk.told()] == [b"a", b"a", b"b", b"c", b"c", b"b"]
    talk.say(Publish(b"a", b"", properties={alias: 3}), version=5)
    assert talk.refusal() == Reason.TOPIC_ALIAS_INVALID
    talk = attached(5, ConnectionLimits(topic_alias_max_client=2))
    talk.say(Publish(b"", b"", properties={alias: 2}), version=5)
    assert talk.refusal() == Reason.PROTOCOL_ERROR


def test_topic_aliases_of_this_side():
    """[MQTT-3.1.2-26] [MQTT-3.1.2-27]: as many as both sides allow."""
    for ours, theirs in ((5, 1), (1, 5)):
        properties = {Property.TOPIC_ALIAS_MAXIMUM: theirs}
        aliases = attached(
            5, ConnectionLimits(topic_alias_max_broker=ours), properties=properties
        ).connection.own_aliases
        assert aliases.take(b"topic", 10) == (b"topic", bytes.fromhex("230001"))
        assert aliases.take(b"other", 10) == (b"other", b"")
    assert attached(5, ConnectionLimits(topic_alias_max_broker=5)).connection.own_aliases is None
    assert attached(5, properties={Property.TOPIC_ALIAS_MAXIMUM: 1}).connection.own_aliases is None


def test_the_receive_maximum_of_this_side():
    """[MQTT-3.3.4-9]: QoS 1 and 2 count until they are wholly acknowledged."""
    talk = attached(5, ConnectionLimits(receive_max=2))
    talk.say(Publish(b"a", b"", 1, packet_id=1), Publish(b"a", b"", 2, packet_id=2), version=5)
    talk.answer(PUBREC, 2)
    talk.answer(PUBACK, 1)
    talk.say(Publish(b"a", b"", 1, packet_id=3), version=5)
    talk.answer(PUBCOMP, 2)
    talk.say(Publish(b"a", b"", 1, packet_id=4), Publish(b"a", b""), version=5)
    talk.heard()
    talk.say(Publish(b"a", b"", 1, packet_id=5), version=5)
    assert talk.refusal() == Reason.RECEIVE_MAXIMUM_EXCEEDED


def test_a_client_that_publishes_too_fast_is_not_read():
    talk = attached(4, ConnectionLimits(messages_per_s_max=2))
    talk.say(Publish(b"a", b""))
    assert talk.connection.want_read
    talk.say(Publish(b"a", b""))
    assert not talk.connection.want_read
    assert talk.connection.notice == "client 'c' publishes more than 2 messages a second: it has to wait"
    talk.connection.notice = ""
    talk.connection.tick(101.0)
    assert talk.connection.want_read
    # Said once.
    talk.say(Publish(b"a", b""), Publish(b"a", b""))
    assert (talk.connection.want_read, talk.connection.notice) == (False, "")


def test_an_acknowledgement_does_not_lift_the_limit_of_the_rate():
    talk = attached(4, ConnectionLimits(messages_per_s_max=2))
    talk.say(Publish(b"a", b"", 1, packet_id=1), Publish(b"a", b"", 1, packet_id=2))
    talk.answer(PUBACK, 1)
    talk.answer(PUBACK, 2)
    assert not talk.connection.want_read
    talk.connection.tick(101.0)
    assert talk.connection.want_read


def test_only_so_many_connects_a_second():
    gate = ConnectGate(2, ListenerCounters())
    assert [gate.admit() for _ in range(3)] == [True, True, False]
    gate.begin_second()
    assert gate.admit()
    assert ConnectGate(0, ListenerCounters()).admit()


def test_versions_that_a_listener_does_not_serve():
    limits = ConnectionLimits(protocol_versions=frozenset((4,)))
    only(Talk(limits).say(Connect(4, "c")), Attach)
    for connect in (Connect(5, "c"), Connect(3, "c"), Connect(4, "c", bridge=True)):
        assert Talk(limits).say(connect).refusal() == Reason.UNSUPPORTED_PROTOCOL_VERSION


def test_a_bridge_wants_flags_as_published_and_nothing_back():
    talk = Talk().say(Connect(4, "c", bridge=True))
    talk.told()
    talk.answer(CONNACK)
    talk.say(Subscribe(1, (SubscriptionRequest(b"a", 1),)))
    assert only(talk, SubscribeReceived).requests == [(b"a", 1 | 4 | 8)]


def test_payloads_that_say_to_be_text_are_checked_when_asked():
    properties = {int(Property.PAYLOAD_FORMAT_INDICATOR): 1}
    for payload, refused in ((b"\xff", True), (b"ok", False)):
        talk = attached(5, ConnectionLimits(check_payload_format=True))
        talk.say(Publish(b"a", payload, properties=properties), version=5)
        assert (talk.connection.state == CLOSED) == refused
    talk = attached(5)
    talk.say(Publish(b"a", b"\xff", properties=properties), version=5)
    assert talk.connection.state == ATTACHED


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Publish(b"a", b"", properties={int(Property.TOPIC_ALIAS): 1}), Reason.TOPIC_ALIAS_INVALID),
        (Publish(b"", b"", properties={int(Property.TOPIC_ALIAS): 1}), Reason.TOPIC_ALIAS_INVALID),
        (Publish(b"a", b"", properties={int(Property.SUBSCRIPTION_IDENTIFIER): [1]}), Reason.PROTOCOL_ERROR),
        (Auth(0x18, {int(Property.AUTHENTICATION_METHOD): "m"}), Reason.PROTOCOL_ERROR),
        (Connect(5, "c"), Reason.PROTOCOL_ERROR),
        (Pingresp(), Reason.PROTOCOL_ERROR),
        (Connack(), Reason.PROTOCOL_ERROR),
        (Suback(1, (0,)), Reason.PROTOCOL_ERROR),
        (Disconnect(0, {int(Property.SESSION_EXPIRY_INTERVAL): 1}), Reason.PROTOCOL_ERROR),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else Reason(value).name,
)
def test_faults_end_the_connection(packet, reason):
    """[MQTT-4.13.1-1]: with the reason for 5.0; the owner hears of the end once, and of nothing after the fault."""
    talk = attached(5)
    talk.say(packet, Publish(b"after", b""), version=5)
    assert talk.refusal() == reason
    event = only(talk, Detach)
    assert (event.reason, event.session_expiry_s) == (CONNECTION_LOST, -1)
    talk.connection.lost()
    assert talk.told() == []


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("topic", "over"), [(b"a/b/c", False), (b"a/b/c/d", True), (b"t" * 9, False), (b"t" * 10, True)]
)
def test_a_topic_over_a_limit_is_the_owners_to_refuse(version, topic, over):
    """The owner gets neither the topic nor the payload, and the log one line for all of them."""
    talk = attached(version, ConnectionLimits(topic_levels_max=3, topic_bytes_max=9))
    talk.say(Publish(topic, b"x", 1, True, packet_id=7), Publish(topic, b"x", 2, packet_id=8), version=version)
    assert [(event.packet_id, event.message.topic, event.message.payload) for event in talk.told()] == (
        [(7, REFUSED_TOPIC, b""), (8, REFUSED_TOPIC, b"")] if over else [(7, topic, b"x"), (8, topic, b"x")]
    )
    assert ("more than 3 levels or 9 bytes" in talk.connection.notice) == over
    talk.connection.notice = ""
    talk.say(Publish(topic, b"x"), version=version)
    assert talk.connection.notice == ""
    assert talk.connection.state == ATTACHED


def test_a_filter_over_a_limit_is_asked_for_with_its_refusal():
    talk = attached(4, ConnectionLimits(topic_levels_max=3, topic_bytes_max=19))
    filters = (b"+/+/#", b"+/+/+/#", b"$share/g/a/b/c", b"$share/g/a/b/c/d", b"t" * 20, b"$share")
    talk.say(Subscribe(7, tuple(SubscriptionRequest(topic_filter, 1) for topic_filter in filters)))
    assert [reason for _, reason in only(talk, SubscribeReceived).requests] == [1, 0x8F, 1, 0x8F, 0x8F, 0x8F]


def test_filters_over_a_limit_are_said_once():
    talk = attached(4, ConnectionLimits(topic_levels_max=3, topic_bytes_max=19))
    said = []
    for topic_filter in (b"+/+/#", b"$share", b"+/+/+/#", b"t" * 20):
        talk.say(Subscribe(7, (SubscriptionRequest(topic_filter, 1),)))
        said.append(talk.connection.notice)
        talk.connection.notice = ""
    assert said == ["", "", "client 'c' subscribes to filters of more than 3 levels or 19 bytes: they are refused", ""]


def test_too_many_subscriptions_are_said_once():
    talk = attached(4)
    said = []
    for reasons in ([0, 0x8F], [0, 0x97], [0x97]):
        talk.say(Subscribe(7, (SubscriptionRequest(b"a"),)))
        talk.answer(SUBACK, 7, reasons=bytes(reasons))
        said.append(talk.connection.notice)
        talk.connection.notice = ""
    assert said == ["", "client 'c' has all the subscriptions that it may have: more are refused", ""]


@pytest.mark.parametrize("version", [4, 5])
def test_a_packet_that_is_too_large_is_said(version):
    talk = attached(version, ConnectionLimits(packet_bytes_max=100))
    talk.say(Publish(b"a", bytes(80)), version=version)
    assert talk.connection.notice == ""
    talk.say(Publish(b"a", bytes(100)), version=version)
    assert talk.connection.state == CLOSED
    assert talk.connection.notice == "client 'c' sends a packet of more than 100 bytes"
    talk = Talk(ConnectionLimits(connect_bytes_max=100)).say(Connect(version, "c" * 100), version=version)
    assert talk.connection.notice == "a client that connects sends a packet of more than 100 bytes"


def test_a_will_over_a_limit_asks_the_owner_for_nothing():
    talk = Talk(ConnectionLimits(topic_levels_max=3)).say(Connect(5, "c", will=Will(b"a/b/c/d", b"x")), version=5)
    assert talk.refusal() == Reason.TOPIC_NAME_INVALID
    assert talk.told() == []


def test_what_came_before_a_fault_counts():
    talk = attached(4)
    talk.say(Publish(b"a", b"counts"), Pingresp())
    publish, detach = talk.told()
    assert publish.message.payload == b"counts"
    assert isinstance(detach, Detach)
    assert talk.heard() == []


@pytest.mark.parametrize("expiry_s", [-1, 0, 5, NEVER_EXPIRES_S])
def test_disconnect_becomes_detach(expiry_s):
    """[MQTT-3.14.2-1]"""
    talk = attached(5, properties={Property.SESSION_EXPIRY_INTERVAL: 60})
    properties = {} if expiry_s < 0 else {int(Property.SESSION_EXPIRY_INTERVAL): expiry_s}
    talk.say(Disconnect(4, properties), version=5)
    event = only(talk, Detach)
    assert (event.reason, event.session_expiry_s) == (4, expiry_s)


def test_a_lost_connection_is_told_when_the_owner_knows_of_it():
    talk = Talk()
    talk.connection.lost()
    assert talk.told() == []
    talk = Talk().say(Connect(4, "c"))
    talk.connection.lost()
    attach, detach = talk.told()
    assert (type(attach), type(detach)) == (Attach, Detach)
    talk = attached()
    talk.connection.lost()
    assert only(talk, Detach).reason == CONNECTION_LOST


def test_a_close_that_the_owner_asked_for_is_not_told_back():
    talk = attached(5)
    talk.connection.close(Reason.SESSION_TAKEN_OVER, "", owner_knows=True)
    assert talk.refusal() == Reason.SESSION_TAKEN_OVER
    talk.connection.close(Reason.PROTOCOL_ERROR, "")
    talk.connection.lost()
    assert talk.heard() == []
    assert talk.told() == []


def test_who_never_gets_an_answer_is_closed():
    """An owner that is busy for longer than the connect timeout: the client had better try again."""
    talk = Talk(ConnectionLimits(connect_timeout_s=5))
    talk.say(Connect(5, "c"), now=100.0)
    talk.connection.tick(104.0)
    assert talk.connection.state == ATTACHING
    talk.connection.tick(105.1)
    assert talk.refusal() == Reason.SERVER_UNAVAILABLE
    attach, detach = talk.told()
    assert (type(attach), type(detach)) == (Attach, Detach)


def test_time_without_a_keep_alive():
    talk = attached()
    talk.connection.tick(1e9)
    assert talk.connection.state == ATTACHED


@pytest.mark.parametrize(("size", "closed"), [(CONNECT_BYTES_MAX, False), (CONNECT_BYTES_MAX + 1, True)])
def test_the_largest_connect(size, closed):
    """It counts from the first byte to the last, and a larger one isn't waited for."""
    rest = size - len(encode(Connect(4, "c", user_name="u", password=b""), 4)) - 1
    data = encode(Connect(4, "c", user_name="u", password=b"p" * rest), 4)
    assert len(data) == size
    talk = Talk()
    talk.connection.receive_data(data[:3], 100.0, lambda: "assigned")
    assert (talk.connection.state == CLOSED) == closed
    talk.connection.receive_data(data[3:], 100.0, lambda: "assigned")
    assert (talk.connection.state == CLOSED) == closed


# Enhanced authentication.

METHOD = int(Property.AUTHENTICATION_METHOD)
DATA = int(Property.AUTHENTICATION_DATA)


class Riddle:
    """A method in as many steps as the client likes: `more` goes on, `yes` lets in, anything else doesn't."""

    def receive(self, data):
        if data == b"more":
            return Step(CONTINUE, b"go on")
        if data in (b"yes", b"else"):
            return Step(SUCCESS, b"welcome", "somebody" if data == b"yes" else "somebody else")
        return Step(FAILURE, reason=Reason.NOT_AUTHORIZED)


METHODS = MethodTable({"riddle": Riddle})


def auth(data, reason=Reason.CONTINUE_AUTHENTICATION, method="riddle"):
    return Auth(reason, {METHOD: method, DATA: data})


def authenticating(data=b"more", **options):
    properties = {METHOD: "riddle", DATA: data, **options}
    return Talk(authenticator=METHODS).say(Connect(5, "c", properties=properties), version=5)


def test_an_authentication_in_steps():
    """[MQTT-4.12.0-2] [MQTT-4.12.0-3]"""
    talk = authenticating()
    assert talk.heard() == [auth(b"go on")]
    talk.say(auth(b"more"), version=5)
    assert talk.heard() == [auth(b"go on")]
    assert talk.told() == []
    talk.say(auth(b"yes"), version=5)
    assert only(talk, Attach).user_name == "somebody"
    talk.answer(CONNACK)
    assert talk.heard() == [Connack(False, 0, {METHOD: "riddle", DATA: b"welcome"})]


def test_an_authentication_in_one_step():
    talk = authenticating(b"yes")
    assert only(talk, Attach).user_name == "somebody"


def test_an_authentication_that_fails_is_a_connack():
    """[MQTT-4.12.0-4]"""
    for talk in (authenticating(b"no"), authenticating().say(auth(b"no"), version=5)):
        packets = talk.heard()
        assert isinstance(packets[-1], Connack)
        assert packets[-1].reason == Reason.NOT_AUTHORIZED
        assert talk.told() == []
        assert talk.connection.state == CLOSED


@pytest.mark.parametrize(
    "packet",
    [
        auth(b"more", method="another"),
        Auth(Reason.CONTINUE_AUTHENTICATION, {}),
        auth(b"more", Reason.REAUTHENTICATE),
        Pingreq(),
        Publish(b"a", b""),
        Connect(5, "c"),
    ],
)
def test_what_may_not_come_before_the_connack(packet):
    """[MQTT-3.1.2-30] [MQTT-4.12.0-5]"""
    talk = authenticating()
    talk.heard()
    talk.say(packet, version=5)
    assert talk.refusal() in (Reason.PROTOCOL_ERROR, Reason.SERVER_UNAVAILABLE)
    assert talk.told() == []


def test_a_disconnect_ends_an_authentication():
    talk = authenticating()
    talk.heard()
    talk.say(Disconnect(), version=5)
    assert (talk.connection.state, talk.heard(), talk.told()) == (CLOSED, [], [])


def test_an_authentication_has_the_time_of_a_connect():
    talk = authenticating()
    talk.heard()
    talk.say(auth(b"more"), version=5, now=104.0)
    talk.heard()
    talk.connection.tick(105.1)
    assert talk.connection.state == CLOSED


def attached_by_riddle():
    talk = authenticating(b"yes")
    talk.answer(CONNACK)
    talk.told()
    talk.heard()
    return talk


def test_authenticating_again():
    """[MQTT-4.12.1-1]: while packets go on."""
    talk = attached_by_riddle()
    talk.say(auth(b"more", Reason.REAUTHENTICATE), Pingreq(), auth(b"yes"), version=5)
    assert talk.heard() == [auth(b"go on"), Pingresp(), auth(b"welcome", Reason.SUCCESS)]
    assert talk.told() == []


def test_authenticating_again_in_vain_is_a_disconnect():
    """[MQTT-4.12.1-2]"""
    for answer in (b"no", b"else"):
        talk = attached_by_riddle()
        talk.say(auth(answer, Reason.REAUTHENTICATE), version=5)
        (packet,) = talk.heard()
        assert packet == Disconnect(Reason.NOT_AUTHORIZED, packet.properties)
        assert talk.connection.state == CLOSED


def test_an_auth_that_nobody_asked_for():
    """[MQTT-4.12.0-6] [MQTT-4.12.0-7]"""
    for talk in (attached(5), attached_by_riddle()):
        talk.say(auth(b"more"), version=5)
        assert talk.refusal() == Reason.PROTOCOL_ERROR
    talk = attached_by_riddle()
    talk.say(auth(b"more", Reason.REAUTHENTICATE, "another"), version=5)
    assert talk.refusal() == Reason.PROTOCOL_ERROR


# Limits of the client, and of patience.


def test_nothing_is_larger_than_the_client_takes():
    """[MQTT-3.1.2-24]: what can't be said ends the connection."""
    small = {Property.MAXIMUM_PACKET_SIZE: 5}
    talk = attached(5, properties=small)
    talk.say(Subscribe(1, (SubscriptionRequest(b"a", 1),)), version=5)
    talk.told()
    talk.answer(SUBACK, 1, reasons=b"\x01")
    assert talk.heard() == [Disconnect(Reason.PACKET_TOO_LARGE)]
    assert only(talk, Detach).reason == CONNECTION_LOST
    for size in (1, 2, 4):
        talk = Talk().say(Connect(5, "", properties={Property.MAXIMUM_PACKET_SIZE: size}))
        talk.told()
        talk.answer(CONNACK)
        assert talk.heard() == []
        assert talk.connection.state == CLOSED
        assert only(talk, Detach).reason == CONNECTION_LOST


def test_bytes_that_never_become_a_packet_are_no_sign_of_life():
    """[MQTT-3.1.2-22]"""
    talk = attached(keep_alive_s=10)
    for now in (105.0, 110.0, 114.0):
        talk.connection.receive_data(b"\x32\x7f" if now == 105.0 else b"\x00", now, str)
        talk.connection.tick(now)
    assert talk.connection.state == ATTACHED
    talk.connection.tick(115.1)
    assert talk.connection.state == CLOSED


def test_a_large_packet_over_a_slow_line_is_let_through():
    talk = attached(keep_alive_s=10)
    data = encode(Publish(b"a", b"x" * 10_000), 4)
    now = 100.0
    for place in range(0, len(data), 500):
        talk.connection.receive_data(data[place : place + 500], now, str)
        talk.connection.tick(now)
        now += 5.0
    assert only(talk, PublishReceived).message.payload == b"x" * 10_000
