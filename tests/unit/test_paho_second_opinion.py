"""paho-mqtt as a second opinion: what it writes we read, what we write it reads.

A paho client is connected over loopback to a test that plays the broker with nothing but our codec. paho keeps quiet
about much of what it receives, so its callbacks are the evidence.
"""

import select
import socket

import hypothesis
import paho.mqtt.client as paho
import pytest
from hypothesis import strategies
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.mqtt import codec
from broker.mqtt.packets import (
    MQTT_3_1,
    MQTT_3_1_1,
    MQTT_5_0,
    PACKET_REASONS,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
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
from broker.mqtt.properties import (
    NO_PROPERTIES,
    PROPERTY_TABLE,
    WILL_CONTEXT,
    Properties,
    Property,
    WireType,
    decode_properties,
    encode_properties,
)
from broker.mqtt.reasons import Reason

TIMEOUT_S = 10.0
VERSIONS = (MQTT_3_1, MQTT_3_1_1, MQTT_5_0)


def to_paho(properties: Properties, packet_type: int) -> PahoProperties:
    """Our properties as paho's."""
    result = PahoProperties(packet_type)
    for identifier, value in properties.items():
        name = result.getNameFromIdent(identifier).replace(" ", "")
        if identifier == Property.SUBSCRIPTION_IDENTIFIER and isinstance(value, int):
            value = [value]
        setattr(result, name, value)
    return result


def from_paho(theirs: PahoProperties) -> Properties:
    """paho's properties as ours."""
    names = {identifier: theirs.getNameFromIdent(identifier).replace(" ", "") for identifier in Property}
    return {int(identifier): getattr(theirs, name) for identifier, name in names.items() if hasattr(theirs, name)}


class Peer:
    """A paho client and the socket that it takes for a broker."""

    def __init__(self, version: int, client_id: str = "paho", clean_start: bool = True) -> None:
        self.version = version
        self.events: list[tuple] = []
        self.buffer = b""
        self.clean_start = clean_start
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=clean_start if version < MQTT_5_0 else None,
            protocol=paho.MQTTProtocolVersion(version),
            reconnect_on_failure=False,
        )
        self.client.on_connect = self.record("connect")
        self.client.on_message = self.record("message")
        self.client.on_publish = self.record("publish")
        self.client.on_subscribe = self.record("subscribe")
        self.client.on_unsubscribe = self.record("unsubscribe")
        self.client.on_disconnect = self.record("disconnect")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.connection: socket.socket | None = None

    def record(self, name: str):
        def callback(client, userdata, *arguments):
            self.events.append((name, *arguments))

        return callback

    def open(self, keep_alive_s: int = 60, properties: PahoProperties | None = None) -> Packet:
        """Connect; returns the CONNECT."""
        arguments = {}
        if self.version == MQTT_5_0:
            arguments = {"clean_start": self.clean_start, "properties": properties}
        self.client.connect("127.0.0.1", self.server.getsockname()[1], keep_alive_s, **arguments)
        self.connection, _ = self.server.accept()
        self.connection.settimeout(TIMEOUT_S)
        return self.read()

    def read(self) -> Packet:
        """The next packet that paho wrote."""
        while self.client.want_write():
            self.client.loop_write()
        while True:
            start, end = codec.split(self.buffer, 0, 0)
            if 0 < end <= len(self.buffer):
                data, self.buffer = self.buffer[:end], self.buffer[end:]
                return codec.decode(data, data[0], start, end, self.version)
            received = self.connection.recv(65_536)
            assert received, "paho closed the connection"
            self.buffer += received

    def write(self, packet: Packet) -> tuple:
        """Let paho read our packet, which must lead to a callback; returns the callback's name and arguments."""
        before = len(self.events)
        self.send(packet)
        while len(self.events) == before:
            readable, _, _ = select.select([self.client.socket()], [], [], TIMEOUT_S)
            assert readable, "paho did not call back"
            self.client.loop_read()
        assert len(self.events) == before + 1
        return self.events[-1]

    def send(self, packet: Packet) -> None:
        self.connection.sendall(codec.encode(packet, self.version))

    def serve(self, *packets: Packet) -> None:
        """Let paho read packets that lead to an answer instead of a callback."""
        for packet in packets:
            self.send(packet)
            readable, _, _ = select.select([self.client.socket()], [], [], TIMEOUT_S)
            assert readable
            self.client.loop_read()

    def close(self) -> None:
        if self.client.socket() is not None:
            self.client.socket().close()
        if self.connection is not None:
            self.connection.close()
        self.server.close()


@pytest.fixture
def peers():
    opened = []

    def open_peer(*arguments, **keywords) -> Peer:
        opened.append(Peer(*arguments, **keywords))
        return opened[-1]

    yield open_peer
    for peer in opened:
        peer.close()


@pytest.fixture(params=VERSIONS, ids=["v3", "v4", "v5"])
def connected(request, peers):
    peer = peers(request.param)
    peer.open()
    peer.write(Connack())
    return peer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("clean_start", [True, False])
def test_connect(peers, version, clean_start):
    peer = peers(version, "Gruß", clean_start)
    assert peer.open(17) == Connect(version, "Gruß", clean_start, 17)


@pytest.mark.parametrize("version", VERSIONS)
def test_connect_with_will_user_name_and_password(peers, version):
    peer = peers(version)
    peer.client.username_pw_set("üser", "pass")
    peer.client.will_set("w/t", b"\x00gone", 1, True)
    assert peer.open() == Connect(version, "paho", True, 60, "üser", b"pass", Will(b"w/t", b"\x00gone", 1, True))


@pytest.mark.parametrize("version", [MQTT_3_1, MQTT_3_1_1])
def test_connect_as_a_bridge(peers, version):
    peer = peers(version)
    peer.client.enable_bridge_mode()
    assert peer.open() == Connect(version, "paho", True, 60, bridge=True)


def test_connect_with_all_will_properties(peers):
    properties = {
        Property.WILL_DELAY_INTERVAL: 0xFFFF_FFFF,
        Property.PAYLOAD_FORMAT_INDICATOR: 1,
        Property.MESSAGE_EXPIRY_INTERVAL: 9,
        Property.CONTENT_TYPE: "text/plain",
        Property.RESPONSE_TOPIC: "r/日",
        Property.CORRELATION_DATA: b"\x00\xff",
        Property.USER_PROPERTY: [("a", "1"), ("a", "2"), ("", "")],
    }
    peer = peers(MQTT_5_0)
    peer.client.will_set("w", "x", 1, True, to_paho(properties, PacketTypes.WILLMESSAGE))
    assert peer.open() == Connect(5, "paho", True, 60, will=Will(b"w", b"x", 1, True, properties))


def test_connect_with_properties(peers):
    properties = {
        Property.SESSION_EXPIRY_INTERVAL: 100_000,
        Property.RECEIVE_MAXIMUM: 65_535,
        Property.MAXIMUM_PACKET_SIZE: 1 << 27,
        Property.TOPIC_ALIAS_MAXIMUM: 3,
        Property.REQUEST_PROBLEM_INFORMATION: 0,
        Property.REQUEST_RESPONSE_INFORMATION: 1,
        Property.USER_PROPERTY: [("a", "1"), ("b", "2"), ("a", "3")],
        Property.AUTHENTICATION_METHOD: "none",
        Property.AUTHENTICATION_DATA: b"\xff\x00",
    }
    will_properties = {Property.WILL_DELAY_INTERVAL: 7, Property.CONTENT_TYPE: "text", Property.CORRELATION_DATA: b"c"}
    peer = peers(MQTT_5_0)
    peer.client.will_set("w", "x", 2, False, to_paho(will_properties, PacketTypes.WILLMESSAGE))
    packet = peer.open(60, to_paho(properties, PacketTypes.CONNECT))
    assert packet == Connect(
        5, "paho", True, 60, will=Will(b"w", b"x", 2, False, will_properties), properties=properties
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("session_present", [True, False])
def test_connack(peers, version, session_present):
    peer = peers(version)
    peer.open()
    properties = {Property.RECEIVE_MAXIMUM: 5, Property.USER_PROPERTY: [("a", "b")], Property.MAXIMUM_QOS: 1}
    name, flags, reason, theirs = peer.write(
        Connack(session_present, 0, properties if version == MQTT_5_0 else NO_PROPERTIES)
    )
    assert (name, reason.value) == ("connect", 0)
    assert flags.session_present == (session_present and version > MQTT_3_1)
    if version == MQTT_5_0:
        assert from_paho(theirs) == properties


@pytest.mark.parametrize(
    "reason", [Reason.NOT_AUTHORIZED, Reason.CLIENT_IDENTIFIER_NOT_VALID, Reason.SERVER_UNAVAILABLE]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_connack_refused(peers, version, reason):
    """paho translates the return codes of 3.1.1 to reason codes with a table of its own."""
    peer = peers(version)
    peer.open()
    before = len(peer.events)
    peer.serve(Connack(False, reason))
    name, _, theirs, _ = peer.events[before]
    assert (name, theirs.value) == ("connect", reason)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [True, False])
def test_publish_from_paho(connected, qos, retain):
    for payload in (b"", b"hi", b"x" * 200, b"y" * 20_000):
        info = connected.client.publish("a/日/c", payload, qos, retain)
        expected = Publish("a/日/c".encode(), payload, qos, retain, False, info.mid if qos else 0)
        assert connected.read() == expected


PUBLISH_PROPERTIES = {
    Property.PAYLOAD_FORMAT_INDICATOR: 1,
    Property.MESSAGE_EXPIRY_INTERVAL: 60,
    Property.CONTENT_TYPE: "text/plain",
    Property.RESPONSE_TOPIC: "r/1",
    Property.CORRELATION_DATA: b"\x00\x01",
    Property.TOPIC_ALIAS: 4,
    Property.USER_PROPERTY: [("k", "v"), ("k", "w")],
}


def test_publish_with_properties_from_paho(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    peer.client.publish("a", b"x", 0, properties=to_paho(PUBLISH_PROPERTIES, PacketTypes.PUBLISH))
    assert peer.read() == Publish(b"a", b"x", properties=PUBLISH_PROPERTIES)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("payload_bytes", [0, 1, 120, 130, 20_000])
def test_publish_to_paho(connected, qos, payload_bytes):
    payload = b"p" * payload_bytes
    properties = NO_PROPERTIES
    if connected.version == MQTT_5_0:
        properties = {**PUBLISH_PROPERTIES, Property.SUBSCRIPTION_IDENTIFIER: [1, 300, 268_435_455]}
    name, message = connected.write(Publish("a/日".encode(), payload, qos, True, qos > 0, 9 if qos else 0, properties))
    assert (name, message.topic, message.payload, message.qos) == ("message", "a/日", payload, qos)
    assert (message.retain, message.dup, message.mid) == (True, qos > 0, 9 if qos else 0)
    if connected.version == MQTT_5_0:
        assert from_paho(message.properties) == properties
    if qos:
        assert connected.read() == Puback(9)


def test_publish_qos_2_to_paho(connected):
    connected.serve(Publish(b"a", b"x", 2, packet_id=0x1234))
    assert connected.read() == Pubrec(0x1234)
    connected.serve(Pubrel(0x1234))
    assert connected.read() == Pubcomp(0x1234)
    assert connected.events[-1][1].payload == b"x"


def test_publish_qos_2_from_paho(connected):
    packet_id = connected.client.publish("a", b"x", 2).mid
    assert connected.read() == Publish(b"a", b"x", 2, packet_id=packet_id)
    connected.serve(Pubrec(packet_id))
    assert connected.read() == Pubrel(packet_id)
    assert connected.write(Pubcomp(packet_id))[:2] == ("publish", packet_id)


def test_puback(connected):
    packet_id = connected.client.publish("a", b"x", 1).mid
    connected.read()
    assert connected.write(Puback(packet_id))[:2] == ("publish", packet_id)


def test_puback_with_reason(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    packet_id = peer.client.publish("a", b"x", 1).mid
    peer.read()
    name, mid, reason, properties = peer.write(
        Puback(packet_id, Reason.QUOTA_EXCEEDED, {Property.REASON_STRING: "full"})
    )
    assert (name, mid, reason.value) == ("publish", packet_id, Reason.QUOTA_EXCEEDED)
    assert from_paho(properties) == {Property.REASON_STRING: "full"}


REASON_PROPERTIES = {Property.REASON_STRING: "why", Property.USER_PROPERTY: [("k", "v"), ("k", "w")]}


def test_pubcomp_with_reason(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    packet_id = peer.client.publish("a", b"x", 2).mid
    peer.read()
    peer.serve(Pubrec(packet_id, Reason.NO_MATCHING_SUBSCRIBERS, REASON_PROPERTIES))
    assert peer.read() == Pubrel(packet_id)
    name, mid, reason, properties = peer.write(
        Pubcomp(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND, REASON_PROPERTIES)
    )
    assert (name, mid, reason.value) == ("publish", packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND)
    assert from_paho(properties) == REASON_PROPERTIES


def test_pubrel_with_reason(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    peer.serve(Publish(b"a", b"x", 2, packet_id=7))
    assert peer.read() == Pubrec(7)
    name, message = peer.write(Pubrel(7, Reason.PACKET_IDENTIFIER_NOT_FOUND, REASON_PROPERTIES))
    assert (name, message.mid, message.payload) == ("message", 7, b"x")
    assert peer.read() == Pubcomp(7)


@pytest.mark.parametrize("packet_type", sorted(PACKET_REASONS))
def test_reasons_of_each_packet(packet_type):
    """paho has a table of its own of which reason belongs in which packet."""
    theirs = {
        reason for reason, names in ReasonCode.names.items() if any(packet_type in types for types in names.values())
    }
    if packet_type == PacketType.CONNACK:
        theirs.add(Reason.PAYLOAD_FORMAT_INVALID)  # In the specification's list for CONNACK.
    assert PACKET_REASONS[packet_type] == theirs


def test_subscribe(connected):
    _, packet_id = connected.client.subscribe([("a/#", 1), ("+/日", 2), ("#", 0)])
    requests = (
        SubscriptionRequest(b"a/#", 1),
        SubscriptionRequest("+/日".encode(), 2),
        SubscriptionRequest(b"#", 0),
    )
    assert connected.read() == Subscribe(packet_id, requests)
    name, mid, reasons, _ = connected.write(Suback(packet_id, (1, 2, 0x80)))
    assert (name, mid, [reason.value for reason in reasons]) == ("subscribe", packet_id, [1, 2, 0x80])


def test_subscribe_with_options_and_properties(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    properties = {Property.SUBSCRIPTION_IDENTIFIER: 268_435_455, Property.USER_PROPERTY: [("a", "b")]}
    _, packet_id = peer.client.subscribe(
        [("$share/g/a", SubscribeOptions(1, False, True, 2)), ("b", SubscribeOptions(2, True, False, 1))],
        properties=to_paho(properties, PacketTypes.SUBSCRIBE),
    )
    requests = (SubscriptionRequest(b"$share/g/a", 1, False, True, 2), SubscriptionRequest(b"b", 2, True, False, 1))
    assert peer.read() == Subscribe(packet_id, requests, properties)
    reasons = (Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, Reason.GRANTED_QOS_2)
    event = peer.write(Suback(packet_id, reasons, {Property.REASON_STRING: "no"}))
    assert [reason.value for reason in event[2]] == list(reasons)
    assert from_paho(event[3]) == {Property.REASON_STRING: "no"}


def test_unsubscribe(connected):
    _, packet_id = connected.client.unsubscribe(["a/#", "b"])
    assert connected.read() == Unsubscribe(packet_id, (b"a/#", b"b"))
    name, mid, reasons, _ = connected.write(Unsuback(packet_id, (0, Reason.NO_SUBSCRIPTION_EXISTED)))
    assert (name, mid) == ("unsubscribe", packet_id)
    if connected.version == MQTT_5_0:
        assert [reason.value for reason in reasons] == [0, Reason.NO_SUBSCRIPTION_EXISTED]


def test_disconnect_from_paho(connected):
    connected.client.disconnect()
    assert connected.read() == Disconnect()


def test_disconnect_to_paho(peers):
    peer = peers(MQTT_5_0)
    peer.open()
    peer.write(Connack())
    event = peer.write(Disconnect(Reason.SESSION_TAKEN_OVER, {Property.REASON_STRING: "taken over"}))
    assert (event[0], event[2].value) == ("disconnect", Reason.SESSION_TAKEN_OVER)
    assert from_paho(event[3]) == {Property.REASON_STRING: "taken over"}


texts = strategies.text(strategies.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=150)
VALUES = {
    WireType.TWO_BYTES: strategies.integers(1, 0xFFFF),
    WireType.FOUR_BYTES: strategies.integers(1, 0xFFFF_FFFF),
    WireType.BYTE: strategies.integers(0, 1),
    WireType.VARINT: strategies.integers(1, 268_435_455),
    WireType.STRING: texts.filter(lambda text: text != "" and "+" not in text and "#" not in text),
    WireType.BINARY: strategies.binary(max_size=150),
    WireType.STRING_PAIR: strategies.lists(strategies.tuples(texts, texts), min_size=1, max_size=3),
}


def properties_of(context: int):
    rows = {key: row for key, row in PROPERTY_TABLE.items() if row[1] >> context & 1}
    values = {identifier: VALUES[WireType(row[0])] for identifier, row in rows.items()}
    if Property.MAXIMUM_PACKET_SIZE in values:
        values[Property.MAXIMUM_PACKET_SIZE] = VALUES[WireType.VARINT]  # paho allows no more.
    if context == PacketType.PUBLISH:
        values[Property.SUBSCRIPTION_IDENTIFIER] = strategies.lists(VALUES[WireType.VARINT], min_size=1, max_size=3)
    return strategies.fixed_dictionaries({}, optional=values)


@pytest.mark.parametrize(
    "context", [WILL_CONTEXT, *sorted(set(PacketType) - {PacketType.PINGREQ, PacketType.PINGRESP})]
)
@hypothesis.given(data=strategies.data())
@hypothesis.settings(deadline=None, max_examples=60)
def test_properties(context, data):
    ours = data.draw(properties_of(context))
    theirs_type = PacketTypes.WILLMESSAGE if context == WILL_CONTEXT else int(context)
    packed = bytes(to_paho(ours, theirs_type).pack())
    decoded, end = decode_properties(packed, 0, len(packed), context)
    assert (decoded, end) == (ours, len(packed))
    body = encode_properties(ours)
    assert sorted(packed[len(packed) - len(body) :]) == sorted(body)
    # paho's own length is taken: the bytes behind it are ours, and paho's order of properties is fixed.
    unpacked, _ = PahoProperties(theirs_type).unpack(packed[: len(packed) - len(body)] + body)
    if context == PacketType.SUBSCRIBE and Property.SUBSCRIPTION_IDENTIFIER in ours:
        ours = {**ours, Property.SUBSCRIPTION_IDENTIFIER: [ours[Property.SUBSCRIPTION_IDENTIFIER]]}
    assert from_paho(unpacked) == ours
