"""broker.core.greeting: who is let in, and what it is told."""

import pytest

from broker.core.connection_limits import ConnectGate, ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.core.events import NEVER_EXPIRES_S
from broker.core.greeting import Greeting, begins_as_mqtt_5, why_refused
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

EVERYTHING = ConnectionLimits(
    packet_bytes_max=1000, receive_max=20, topic_alias_max_client=3, topic_alias_max_broker=5, keep_alive_s_max=60
)


def greeting(connect, limits=None, mountpoint=""):
    return Greeting(connect, limits or ConnectionLimits(), mountpoint, lambda: "assigned")


def refused(connect, limits=None):
    return why_refused(connect, limits or ConnectionLimits(), ConnectGate(0, ListenerCounters()))[0]


@pytest.mark.parametrize(
    ("connect", "reason"),
    [
        (Connect(5, "c"), 0),
        (Connect(4, "c", False), 0),
        (Connect(5, "", False), 0),
        (Connect(4, ""), 0),
        (Connect(4, "", False), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(3, ""), Reason.CLIENT_IDENTIFIER_NOT_VALID),
        (Connect(5, "é" * 50), 0),
        (Connect(5, "é" * 50 + "c"), Reason.CLIENT_IDENTIFIER_NOT_VALID),
    ],
)
def test_who_is_let_in(connect, reason):
    """[MQTT-3.1.3-8] [MQTT311-3.1.3-7] [MQTT311-3.1.3-8] [MQTT311-3.1.3-9]"""
    assert refused(connect) == reason


@pytest.mark.parametrize("connect", [Connect(5, "c"), Connect(4, "c", bridge=True), Connect(3, "c")])
def test_versions_that_are_not_allowed(connect):
    """[MQTT-3.1.2-2] [MQTT311-3.1.2-2]"""
    assert refused(connect, ConnectionLimits(protocol_versions=frozenset((4,)))) == Reason.UNSUPPORTED_PROTOCOL_VERSION


def test_too_many_in_a_second():
    gate = ConnectGate(1, ListenerCounters())
    assert [why_refused(Connect(5, "c"), ConnectionLimits(), gate)[0] for _ in range(2)] == [
        0,
        Reason.CONNECTION_RATE_EXCEEDED,
    ]


def test_what_it_asks_for():
    properties = {
        int(Property.SESSION_EXPIRY_INTERVAL): 7,
        int(Property.RECEIVE_MAXIMUM): 9,
        int(Property.MAXIMUM_PACKET_SIZE): 100,
    }
    wanted = greeting(Connect(5, "c", False, 30, properties=properties), mountpoint="m")
    attach = wanted.attach(12, "user", None)
    assert (attach.connection, attach.client_id, attach.version, attach.clean_start) == (12, "m\0c", 5, False)
    assert (attach.session_expiry_s, attach.receive_maximum, attach.packet_bytes_max) == (7, 9, 100)
    assert (attach.user_name, attach.will, wanted.keep_alive_s) == ("user", None, 30)


@pytest.mark.parametrize(("clean", "expiry_s"), [(True, 0), (False, NEVER_EXPIRES_S)])
def test_the_session_of_mqtt_3(clean, expiry_s):
    assert greeting(Connect(4, "c", clean)).session_expiry_s == expiry_s


def test_without_limits_a_connack_says_nothing():
    assert greeting(Connect(5, "c")).connack_properties() == {}


def test_what_a_connack_says():
    """[MQTT-3.2.2-15] [MQTT-3.2.2-16] [MQTT-3.2.2-21] [MQTT-4.12.0-5]"""
    wanted = greeting(Connect(5, "", True, 0), EVERYTHING)
    wanted.authentication = {int(Property.AUTHENTICATION_METHOD): "m"}
    assert wanted.connack_properties() == {
        Property.RECEIVE_MAXIMUM: 20,
        Property.MAXIMUM_PACKET_SIZE: 1000,
        Property.ASSIGNED_CLIENT_IDENTIFIER: "assigned",
        Property.TOPIC_ALIAS_MAXIMUM: 3,
        Property.SERVER_KEEP_ALIVE: 60,
        Property.AUTHENTICATION_METHOD: "m",
    }
    assert wanted.client_id == "assigned"
    assert greeting(Connect(4, "", True, 0), EVERYTHING).connack_properties() == {}


@pytest.mark.parametrize(("said_s", "kept_s"), [(0, 60), (1, 1), (60, 60), (61, 60)])
def test_keep_alive(said_s, kept_s):
    """[MQTT-3.2.2-21] [MQTT-3.2.2-22]"""
    wanted = greeting(Connect(5, "c", True, said_s), EVERYTHING)
    assert wanted.keep_alive_s == kept_s
    assert (Property.SERVER_KEEP_ALIVE in wanted.connack_properties()) == (said_s != kept_s)


@pytest.mark.parametrize(("taken", "limits", "some"), [(1, EVERYTHING, True), (0, EVERYTHING, False), (1, None, False)])
def test_aliases(taken, limits, some):
    properties = {int(Property.TOPIC_ALIAS_MAXIMUM): taken}
    assert (greeting(Connect(5, "c", properties=properties), limits).own_aliases() is not None) == some


def test_methods():
    assert greeting(Connect(5, "c")).method() is None
    assert greeting(Connect(5, "c", properties={int(Property.AUTHENTICATION_METHOD): ""})).method() == ""


@pytest.mark.parametrize("size", [1, 200, 20_000])
def test_what_begins_as_mqtt_5(size):
    whole = encode(Connect(5, "c", password=b"p" * size), 5)
    begins = whole.index(b"MQTT") + 5
    for cut in (0, 1, 2, begins - 1):
        assert not begins_as_mqtt_5(whole[:cut])
    assert begins_as_mqtt_5(whole[:begins])
    assert begins_as_mqtt_5(whole)
    assert not begins_as_mqtt_5(b"\x30" + whole[1:])
    assert not begins_as_mqtt_5(encode(Connect(4, "c"), 4))
    assert not begins_as_mqtt_5(b"\x10\xff\xff\xff\xff\xff")
