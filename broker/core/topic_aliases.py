"""Topic aliases of MQTT 5: numbers that stand for topics on one connection, in each direction [MQTT-3.3.2-10].

It owns what each side has set. It knows no packet but a topic and the property that goes with it.
"""

from typing import Final, final

from broker.mqtt.reasons import ProtocolError, Reason

_TOPIC_ALIAS_PROPERTY: Final = b"\x23"
# The property, and all of a PUBLISH that is neither topic nor property nor payload.
_ROOM_BYTES: Final = 16
# A topic that is shorter takes less room than the property, with what its length in front may grow by.
_ALIASED_BYTES_MIN: Final = 4


@final
class ClientAliases:
    """The aliases that the client set."""

    __slots__ = ("_aliases_max", "_topics")

    def __init__(self, aliases_max: int) -> None:
        self._aliases_max = aliases_max
        # Made with the first alias: most clients set none.
        self._topics: dict[int, bytes] | None = None

    def resolve(self, alias: int, topic: bytes) -> bytes:
        """Return the topic of a PUBLISH, and remember it under the alias; an empty one is what the alias stands for.

        [MQTT-3.3.2-12] Every alias up to the maximum is good.
        """
        if alias > self._aliases_max:
            # [MQTT-3.3.2-9] [MQTT-3.2.2-17] [MQTT-3.2.2-18] The CONNACK said how many there may be.
            raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, "topic alias over the maximum")
        if self._topics is None:
            self._topics = {}
        if topic:
            self._topics[alias] = topic
            return topic
        known = self._topics.get(alias)
        if known is None:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "topic alias that was not set")
        return known


@final
class OwnAliases:
    """The aliases that this side set; `packet_bytes_max` is the client's Maximum Packet Size, 0 for none."""

    __slots__ = ("_aliases", "_aliases_max", "_packet_bytes_max")

    def __init__(self, aliases_max: int, packet_bytes_max: int) -> None:
        self._aliases: dict[bytes, int] = {}
        self._aliases_max = aliases_max
        self._packet_bytes_max = packet_bytes_max

    def take(self, topic: bytes, packet_bytes: int) -> tuple[bytes, bytes]:
        """Return the topic and the property with which a PUBLISH of about that size says it.

        [MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.3.2-11] Never more aliases than the client accepts; an alias makes no
        PUBLISH too large that without it is not [MQTT-3.1.2-24].
        """
        if len(topic) < _ALIASED_BYTES_MIN:
            return topic, b""
        alias = self._aliases.get(topic)
        if alias is not None:
            return b"", _TOPIC_ALIAS_PROPERTY + alias.to_bytes(2, "big")
        if len(self._aliases) >= self._aliases_max:
            return topic, b""
        if self._packet_bytes_max and packet_bytes + _ROOM_BYTES > self._packet_bytes_max:
            return topic, b""
        alias = len(self._aliases) + 1
        self._aliases[topic] = alias
        return topic, _TOPIC_ALIAS_PROPERTY + alias.to_bytes(2, "big")
