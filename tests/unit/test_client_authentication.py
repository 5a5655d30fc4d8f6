"""broker.core.client_authentication: which AUTH is in turn."""

import pytest

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS, MethodTable, Step
from broker.core.client_authentication import ClientAuthentication
from broker.mqtt.packets import Auth
from broker.mqtt.properties import Property
from broker.mqtt.reasons import ProtocolError, Reason

METHOD = {int(Property.AUTHENTICATION_METHOD): "m"}


class Named:
    """A method that believes whoever says a name, and asks who says nothing."""

    def receive(self, data):
        return Step(SUCCESS, b"hello", data.decode()) if data else Step(CONTINUE, b"who?")


def by(method="m"):
    return ClientAuthentication(MethodTable({"m": Named}), method)


def says(name):
    return METHOD | {int(Property.AUTHENTICATION_DATA): name}


def in_turn(authentication, reason, is_attached, properties=METHOD):
    try:
        authentication.receive(Auth(int(reason), dict(properties)), is_attached)
    except ProtocolError as error:
        assert error.reason == Reason.PROTOCOL_ERROR
        return False
    return True


def test_an_unknown_method():
    """[MQTT-4.12.0-1]"""
    step = by("other").begin({})
    assert (step.outcome, step.reason) == (FAILURE, Reason.BAD_AUTHENTICATION_METHOD)


def test_an_exchange():
    """[MQTT-4.12.0-2] [MQTT-4.12.0-3]"""
    authentication = by()
    assert authentication.begin(METHOD).outcome == CONTINUE
    assert not in_turn(authentication, Reason.REAUTHENTICATE, False)
    assert not in_turn(authentication, Reason.SUCCESS, False)
    step = authentication.receive(Auth(int(Reason.CONTINUE_AUTHENTICATION), says(b"ann")), False)
    assert (step.outcome, step.user_name) == (SUCCESS, "ann")
    # It is over.
    assert not in_turn(authentication, Reason.CONTINUE_AUTHENTICATION, True)


def test_the_method_stays_the_same():
    """[MQTT-4.12.0-5] [MQTT-4.12.1-1]"""
    authentication = by()
    authentication.begin(METHOD)
    for properties in ({}, {int(Property.AUTHENTICATION_METHOD): "M"}):
        assert not in_turn(authentication, Reason.CONTINUE_AUTHENTICATION, False, properties)
    assert in_turn(authentication, Reason.CONTINUE_AUTHENTICATION, False)


@pytest.mark.parametrize(("name", "outcome"), [(b"ann", SUCCESS), (b"bob", FAILURE)])
def test_authenticating_again_is_for_the_same_user(name, outcome):
    """[MQTT-4.12.1-2]"""
    authentication = by()
    authentication.begin(says(b"ann"))
    assert not in_turn(authentication, Reason.REAUTHENTICATE, False)
    step = authentication.receive(Auth(int(Reason.REAUTHENTICATE), says(name)), True)
    assert step.outcome == outcome
    assert step.reason == (0 if outcome == SUCCESS else Reason.NOT_AUTHORIZED)


def test_what_it_has_to_say():
    assert by().properties(b"") == METHOD
    assert by().properties(b"data") == says(b"data")
