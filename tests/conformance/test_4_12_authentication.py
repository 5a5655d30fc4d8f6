"""4.12 Enhanced authentication, and 3.15 AUTH with a method that is served."""

import hex_packets
import pytest
from hex_packets import connack, packet, publish, spaced, text
from scram_client import ScramClient

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS, MethodTable, Step
from broker.core.scram import MemoryVerifiers, scram_method
from broker.mqtt.reasons import Reason

METHOD = "15" + text("steps")


class Steps:
    """A method that asks until it hears what is right, or wrong."""

    def receive(self, data):
        if data == b"right":
            return Step(SUCCESS, b"welcome", "user")
        if data == b"at once":
            return Step(SUCCESS, user_name="user")
        if data == b"wrong":
            return Step(FAILURE, reason=int(Reason.NOT_AUTHORIZED))
        return Step(CONTINUE, b"more than " + data)


@pytest.fixture
def broker(start):
    verifiers = MemoryVerifiers()
    verifiers.add("user", "pencil", b"salt" * 4)
    return start(
        authenticator=MethodTable({"steps": Steps, "SCRAM-SHA-256": scram_method(verifiers, lambda: "server", b"key")})
    )


def data(value):
    return "16" + text(value)


def connect(value="x", properties="", **options):
    return hex_packets.connect(5, properties=METHOD + data(value) + properties, **options)


def auth(reason="18", value="x", properties=METHOD):
    said = properties + (data(value) if value is not None else "")
    return packet("f0", reason, hex_packets.varint(hex_packets.size(said)), said)


def authenticated(broker, properties=""):
    client = broker.open(5)
    client.say(connect("right", properties))
    return client


def test_the_server_asks_until_it_knows(broker):
    """[MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5] [MQTT-3.15.2-1] [MQTT-3.15.1-1]

    AUTH with 0x18 and the method, and a CONNACK with the method and the last of the data.
    """
    client = broker.open(5)
    assert client.say(connect("a")) == spaced(auth("18", "more than a"))
    assert client.say(auth("18", "b")) == spaced(auth("18", "more than b"))
    assert client.say(auth("18", "right")) == connack(5, more=METHOD + data("welcome"))
    assert client.say("c0 00") == "d0 00"


def test_without_a_question(broker):
    """[MQTT-4.12.0-5]: the CONNACK says the method even if there is no data."""
    assert broker.open(5).say(connect("at once")) == connack(5, more=METHOD)


def test_scram(broker):
    """[MQTT-4.12.0-2] [MQTT-4.12.0-5]: a method that both sides learn something from."""
    scram = ScramClient("user", "pencil")
    method = "15" + text("SCRAM-SHA-256")
    client = broker.open(5)
    heard = bytes.fromhex(client.say(hex_packets.connect(5, properties=method + data(scram.first()))))
    assert heard[2] == 0x18
    first = heard[heard.index(b"r=") :]
    heard = bytes.fromhex(client.say(auth("18", scram.final(first), method)))
    assert heard[0] == 0x20
    assert heard[3] == 0
    assert scram.verifies(heard[heard.index(b"v=") :])


def test_a_wrong_password_is_refused(broker):
    """[MQTT-4.12.0-4]"""
    scram = ScramClient("user", "pen")
    method = "15" + text("SCRAM-SHA-256")
    client = broker.open(5)
    heard = bytes.fromhex(client.say(hex_packets.connect(5, properties=method + data(scram.first()))))
    heard = client.say(auth("18", scram.final(heard[heard.index(b"r=") :]), method)).split()
    assert (heard[0], heard[2], heard[3]) == ("20", "00", "87")
    assert client.closed


@pytest.mark.parametrize("steps", [("wrong",), ("a", "wrong"), ("a", "b", "wrong")])
def test_a_failure_closes(broker, steps):
    """[MQTT-4.12.0-4]: at any point, with a CONNACK that says so; there is no session."""
    client = broker.open(5)
    heard = client.say(connect(steps[0], name="s", session_s=60)).split()
    for step in steps[1:]:
        heard = client.say(auth("18", step)).split()
    assert (heard[0], heard[2], heard[3]) == ("20", "00", "87")
    assert client.closed
    assert broker.stay(5).connack == connack(5)


def test_an_unknown_method_is_refused(broker):
    """[MQTT-4.12.0-1]: as are methods whose names differ in case."""
    for method in ("other", "STEPS", ""):
        assert broker.refuses(5, hex_packets.connect(5, properties="15" + text(method)), "8c")


@pytest.mark.parametrize(
    "said",
    [
        publish(5, "a"),
        publish(5, "a", qos=1),
        hex_packets.subscribe(5, 1, ("a", 0)),
        hex_packets.unsubscribe(5, 1, "a"),
        "c000",
        "40020001",
        hex_packets.connect(5),
    ],
    ids=["PUBLISH", "QoS 1", "SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ", "PUBACK", "CONNECT"],
)
def test_meanwhile_there_is_only_auth(broker, said):
    """[MQTT-3.1.2-30]"""
    watcher = broker.connect(4, "w")
    watcher.subscribe("#", 0)
    client = broker.open(5)
    client.say(connect())
    heard = client.say(said).split()
    assert (heard[0], heard[2], heard[3]) == ("20", "00", "82")
    assert client.closed
    assert watcher.hear() == ""


def test_a_client_may_give_up(broker):
    """[MQTT-3.1.2-30] [MQTT-4.12.0-4]: with a DISCONNECT, or by closing."""
    client = broker.open(5)
    client.say(connect("x", name="s", session_s=60))
    assert client.say("e0 00") == ""
    assert client.closed
    client = broker.open(5)
    client.say(connect("x", name="s", session_s=60))
    client.drop()
    assert broker.stay(5).connack == connack(5)


def test_an_authentication_has_its_time(broker):
    """[MQTT-4.12.0-4]: that of a CONNECT, however often the client says something."""
    client = broker.open(5)
    client.say(connect())
    for _ in range(20):
        broker.advance(1)
        client.say(auth())
    assert client.closed


@pytest.mark.parametrize("reason", ["00", "19", "01", "80", "87", "ff"])
def test_other_reasons_of_an_auth_close(broker, reason):
    """[MQTT-4.12.0-3] [MQTT-3.15.2-1]"""
    client = broker.open(5)
    client.say(connect())
    heard = client.say(auth(reason)).split()
    assert (heard[0], heard[2], heard[3]) == ("20", "00", "82")
    assert client.closed


def test_the_method_is_that_of_the_connect(broker):
    """[MQTT-4.12.0-5]"""
    for properties in ("15" + text("other"), "15" + text("SCRAM-SHA-256"), ""):
        client = broker.open(5)
        client.say(connect())
        heard = client.say(auth("18", "right", properties)).split()
        assert (heard[0], heard[2], heard[3]) == ("20", "00", "82")
        assert client.closed


def test_an_auth_without_anything_closes(broker):
    """[MQTT-4.12.0-5]: success and no method, as the short form means."""
    client = broker.open(5)
    client.say(connect())
    assert client.say("f0 00").split()[3:4] == ["82"]
    assert client.closed


def test_who_names_no_method_says_no_auth(broker):
    """[MQTT-4.12.0-6] [MQTT-4.12.0-7]: and hears none."""
    client = broker.connect(5, user="user", password="pencil")
    assert client.connack == connack(5)
    assert client.fails(auth("19"), "82")
    assert broker.connect(5).fails(auth("18"), "82")


# 4.12.1


def test_authenticating_again(broker):
    """[MQTT-4.12.1-1] [MQTT-4.12.0-2] [MQTT-4.12.0-5]: the connection goes on meanwhile."""
    client = authenticated(broker)
    for _ in range(2):
        assert client.say(auth("19", "a")) == spaced(auth("18", "more than a"))
        assert client.say("c0 00") == "d0 00"
        assert client.say(auth("18", "right")) == spaced(auth("00", "welcome"))
    assert client.say(auth("19", "at once")) == spaced(auth("00", None))
    assert client.say("c0 00") == "d0 00"


def test_authenticating_again_by_another_method_closes(broker):
    """[MQTT-4.12.1-1]"""
    client = authenticated(broker)
    assert client.fails(auth("19", "x", "15" + text("SCRAM-SHA-256")), "82")


def test_failing_to_authenticate_again_closes(broker):
    """[MQTT-4.12.1-2]: with a DISCONNECT; at once, or in the end."""
    client = authenticated(broker)
    assert client.fails(auth("19", "wrong"), "87")
    client = authenticated(broker)
    client.say(auth("19", "a"))
    assert client.fails(auth("18", "wrong"), "87")


@pytest.mark.parametrize("said", [auth("18"), auth("00")])
def test_an_answer_to_nothing_closes(broker, said):
    """[MQTT-4.12.0-3] [MQTT-4.12.1-1]: without an AUTH of the server, or a 0x19 of the client."""
    client = authenticated(broker)
    assert client.fails(said, "82")


def test_beginning_again_in_the_middle_closes(broker):
    """[MQTT-4.12.1-1]"""
    client = authenticated(broker)
    client.say(auth("19", "a"))
    assert client.fails(auth("19", "a"), "82")


@pytest.mark.parametrize("bytes_max", [30, 100])
def test_the_servers_auth_has_no_text(broker, bytes_max):
    """[MQTT-3.15.2-2] [MQTT-3.15.2-3]: neither a Reason String nor User Properties, so none makes it too large."""
    client = broker.open(5)
    heard = client.say(connect("a", f"27{bytes_max:08x}"))
    assert heard == spaced(auth("18", "more than a"))
    assert hex_packets.size(heard) <= bytes_max


def test_a_client_may_give_reasons(broker):
    """[MQTT-3.15.2-2] [MQTT-3.15.2-3]"""
    client = broker.open(5)
    client.say(connect())
    more = METHOD + "1f" + text("because") + "26" + text("k") + text("v")
    assert client.say(auth("18", "right", more)) == connack(5, more=METHOD + data("welcome"))


def test_an_auth_that_is_too_large_for_the_client_ends_it(broker):
    """[MQTT-3.1.2-24]: it can't be left out, so there is a CONNACK instead."""
    client = broker.open(5)
    heard = client.say(connect("a" * 20, f"27{20:08x}"))
    assert heard == "20 03 00 95 00"
    assert client.closed
