"""broker.core.client_publishing: how much a client may publish."""

import pytest

from broker.core.client_publishing import (
    LARGE_BYTES,
    UNACKNOWLEDGED_BYTES_MAX,
    UNACKNOWLEDGED_MAX,
    ClientPublishing,
)
from broker.core.connection_limits import ConnectionLimits
from broker.core.records import PUBACK, PUBCOMP, PUBREC, PUBREL
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property
from broker.mqtt.reasons import ProtocolError, Reason


def refused(call, *arguments):
    with pytest.raises(ProtocolError) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "reason", "frees"),
    [(PUBACK, 0, True), (PUBACK, 0x97, True), (PUBREC, 0, False), (PUBREC, 0x97, True), (PUBCOMP, 0, True)],
)
def test_the_receive_maximum(kind, reason, frees):
    """[MQTT-3.3.4-7] [MQTT-4.9.0-2]"""
    publishing = ClientPublishing(ConnectionLimits(receive_max=2))
    assert not publishing.count(1, 1, 5, 9)
    assert not publishing.count(2, 2, 5, 9)
    assert not publishing.count(0, 0, 5, 9)
    publishing.acknowledged(kind, 1, reason)
    if frees:
        assert not publishing.count(3, 2, 5, 9)
    assert refused(publishing.count, 4, 2, 5, 9) == Reason.RECEIVE_MAXIMUM_EXCEEDED


def test_mqtt_3_has_no_receive_maximum_but_an_end():
    publishing = ClientPublishing(ConnectionLimits(receive_max=2))
    assert not any(publishing.count(number, 1, 4, 9) for number in range(1, UNACKNOWLEDGED_MAX))
    assert publishing.count(9999, 1, 4, 9)
    # It is not for its rate that it waits.
    assert publishing.throttle("c") == ""
    assert not publishing.begin_second()
    assert not publishing.acknowledged(PUBREL, 1, 0)
    assert publishing.acknowledged(PUBACK, 1, 0)


def test_what_is_large_has_an_end_in_bytes():
    publishing = ClientPublishing(ConnectionLimits())
    half = UNACKNOWLEDGED_BYTES_MAX // 2
    assert not publishing.count(1, 1, 5, half)
    assert not publishing.count(0, 0, 5, 2 * half)
    assert publishing.count(2, 1, 4, half)
    assert publishing.count(3, 1, 4, 1)
    assert not publishing.acknowledged(PUBACK, 3, 0)
    assert publishing.acknowledged(PUBACK, 1, 0)
    # One id twice counts twice, whatever the client means by it.
    assert publishing.count(2, 1, 4, half)
    assert publishing.acknowledged(PUBACK, 2, 0)


def test_qos_2_has_the_same_end_and_waits_for_its_pubrec():
    publishing = ClientPublishing(ConnectionLimits())
    assert not any(publishing.count(number, 2, 4, 9) for number in range(1, UNACKNOWLEDGED_MAX))
    assert publishing.count(9999, 2, 4, LARGE_BYTES)
    assert not publishing.acknowledged(PUBCOMP, 1, 0)
    assert publishing.acknowledged(PUBREC, 1, 0)
    # One that comes again counts again, until a PUBREC answers both.
    assert publishing.count(2, 2, 4, 9)
    assert publishing.acknowledged(PUBREC, 2, 0)
    assert not publishing.count(1, 2, 4, 9)


def test_the_rate():
    publishing = ClientPublishing(ConnectionLimits(messages_per_s_max=2))
    assert [publishing.count(0, 0, 4, 9), publishing.count(1, 1, 4, 9)] == [False, True]
    assert "more than 2 messages a second" in publishing.throttle("c")
    # An acknowledgement is no new second.
    assert not publishing.acknowledged(PUBACK, 1, 0)
    assert publishing.begin_second()
    assert not publishing.begin_second()
    assert [publishing.count(0, 0, 4, 9), publishing.count(0, 0, 4, 9)] == [False, True]
    assert publishing.throttle("c") == ""
    assert publishing.begin_second()
    # Who waits for acknowledgements as well is not read before they come.
    publishing.count(1, 1, 4, 9), publishing.count(2, 1, 4, 9), publishing.throttle("c")
    publishing.count(3, 1, 4, UNACKNOWLEDGED_BYTES_MAX)
    assert not publishing.begin_second()
    assert publishing.acknowledged(PUBACK, 3, 0)


def test_properties():
    """[MQTT-3.3.2-17] [MQTT-3.3.4-6]"""
    publishing = ClientPublishing(ConnectionLimits(topic_alias_max_client=1, check_payload_format=True))
    alias, expiry, content_type = Property.TOPIC_ALIAS, Property.MESSAGE_EXPIRY_INTERVAL, Property.CONTENT_TYPE
    said = {int(alias): 1, int(expiry): 9, int(content_type): "t"}
    assert publishing.read_properties(Publish(b"a", b"", properties=said)) == (b"a", b"\x03\0\x01t", 9)
    assert publishing.read_properties(Publish(b"", b"", properties={int(alias): 1})) == (b"a", b"", -1)
    own = {int(Property.SUBSCRIPTION_IDENTIFIER): [1]}
    assert refused(publishing.read_properties, Publish(b"a", b"", properties=own)) == Reason.PROTOCOL_ERROR
    utf8 = {int(Property.PAYLOAD_FORMAT_INDICATOR): 1}
    assert publishing.read_properties(Publish(b"a", b"t", properties=utf8)) == (b"a", b"\x01\x01", -1)
    bad = Publish(b"a", b"\xff", properties=utf8)
    assert refused(publishing.read_properties, bad) == Reason.PAYLOAD_FORMAT_INVALID
    assert ClientPublishing(ConnectionLimits()).read_properties(bad) == (b"a", b"\x01\x01", -1)
