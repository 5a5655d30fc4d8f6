"""broker.core.topic_aliases: numbers for topics, within what each side allows."""

import pytest

from broker.core.topic_aliases import ClientAliases, OwnAliases
from broker.mqtt.reasons import ProtocolError, Reason


def test_what_the_client_set_is_what_it_means() -> None:
    aliases = ClientAliases(2)
    assert aliases.resolve(1, b"a") == b"a"
    assert aliases.resolve(1, b"") == b"a"
    assert aliases.resolve(2, b"b") == b"b"
    assert aliases.resolve(1, b"c") == b"c"
    assert (aliases.resolve(1, b""), aliases.resolve(2, b"")) == (b"c", b"b")


@pytest.mark.parametrize(
    ("alias", "topic", "reason"),
    [
        (3, b"a", Reason.TOPIC_ALIAS_INVALID),
        (65535, b"", Reason.TOPIC_ALIAS_INVALID),
        (2, b"", Reason.PROTOCOL_ERROR),
    ],
)
def test_what_the_client_may_not(alias: int, topic: bytes, reason: Reason) -> None:
    with pytest.raises(ProtocolError) as raised:
        ClientAliases(2).resolve(alias, topic)
    assert raised.value.reason == reason


def test_this_side_sets_as_many_as_it_may() -> None:
    aliases = OwnAliases(1, 0)
    assert aliases.take(b"topic", 10) == (b"topic", bytes.fromhex("230001"))
    assert aliases.take(b"topic", 10) == (b"", bytes.fromhex("230001"))
    assert aliases.take(b"other", 10) == (b"other", b"")


def test_an_alias_does_not_make_a_packet_too_large() -> None:
    """[MQTT-3.1.2-24]: for a short topic the property is longer than what it saves."""
    aliases = OwnAliases(1, 30)
    assert aliases.take(b"abc", 12) == (b"abc", b"")
    assert aliases.take(b"topic", 15) == (b"topic", b"")
    assert aliases.take(b"topic", 14) == (b"topic", bytes.fromhex("230001"))
    assert aliases.take(b"topic", 25) == (b"", bytes.fromhex("230001"))
