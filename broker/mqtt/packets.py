"""The control packets of MQTT 3.1, 3.1.1 and 5.0 as values.

One class a packet for all versions; what only 5.0 has keeps its default before it. A reason is always a 5.0 code.
What the code and its comments say of 3.1.1 holds for 3.1 too where they say nothing else.
Publish and the four acknowledgements are made for every message, so they are plain classes; all others are frozen
dataclasses. A packet is never changed once made, nor is its `properties` dict, which may be the shared NO_PROPERTIES.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, final

from mypy_extensions import mypyc_attr

from broker.mqtt.properties import NO_PROPERTIES, Properties, no_properties

MQTT_3_1: Final = 3  # The protocol levels as CONNECT says them.
MQTT_3_1_1: Final = 4
MQTT_5_0: Final = 5


class PacketType(IntEnum):
    """The upper four bits of a packet's first byte."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


_RECEIVED: Final = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))
_RELEASED: Final = frozenset((0x00, 0x92))

# Packet type -> the reason codes that it may carry in 5.0. Where the specification's list of all reasons and its list
# for one packet differ (0x99 of CONNACK, 0x8C of DISCONNECT), either will do.
PACKET_REASONS: Final[dict[int, frozenset[int]]] = {
    int(PacketType.CONNACK): frozenset(
        (0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F)
    ),
    int(PacketType.PUBACK): _RECEIVED,
    int(PacketType.PUBREC): _RECEIVED,
    int(PacketType.PUBREL): _RELEASED,
    int(PacketType.PUBCOMP): _RELEASED,
    int(PacketType.SUBACK): frozenset((0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    int(PacketType.UNSUBACK): frozenset((0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),
    int(PacketType.DISCONNECT): frozenset(
        (0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, *range(0x93, 0xA3))
    ),
    int(PacketType.AUTH): frozenset((0x00, 0x18, 0x19)),
}


@dataclass(slots=True, frozen=True)
class Will:
    """The message that a client leaves to be published when it is gone."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Connect:
    """A client's opening packet; `clean_start` is 3.1.1's clean session, an empty `client_id` is as received.

    `bridge`: the client says that it is another broker, by the upper bit of the level. The specification has no such
    bit, mosquitto and its bridges do, before 5.0 (which has options for what a bridge wants).
    """

    version: int
    client_id: str
    clean_start: bool = True
    keep_alive_s: int = 0
    user_name: str | None = None
    password: bytes | None = field(default=None, repr=False)
    will: Will | None = None
    properties: Properties = field(default_factory=no_properties)
    bridge: bool = False


@dataclass(slots=True, frozen=True)
class Connack:
    """The answer to CONNECT. In 3.1.1 the reason is written as the nearest return code; 3.1 lacks `session_present`."""

    session_present: bool = False
    reason: int = 0
    properties: Properties = field(default_factory=no_properties)


@mypyc_attr(acyclic=True, free_list_len=1)
@final
class Publish:
    """A message on the wire. `topic` is empty only in 5.0 with a topic alias; `packet_id` is 0 for QoS 0."""

    __slots__ = ("dup", "packet_id", "payload", "properties", "qos", "retain", "topic")

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        self.topic: bytes = topic
        self.payload: bytes = payload
        self.qos: int = qos
        self.retain: bool = retain
        self.dup: bool = dup
        self.packet_id: int = packet_id
        self.properties: Properties = properties

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Publish):
            return NotImplemented
        return (
            self.topic == other.topic
            and self.payload == other.payload
            and self.qos == other.qos
            and self.retain == other.retain
            and self.dup == other.dup
            and self.packet_id == other.packet_id
            and self.properties == other.properties
        )

    def __repr__(self) -> str:
        return (
            f"Publish({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain}, dup={self.dup}, "
            f"packet_id={self.packet_id}, properties={self.properties!r})"
        )


class Acknowledgement:
    """What PUBACK, PUBREC, PUBREL and PUBCOMP have in common."""

    __slots__ = ("packet_id", "properties", "reason")

    def __init__(self, packet_id: int, reason: int = 0, properties: Properties = NO_PROPERTIES) -> None:
        self.packet_id: int = packet_id
        self.reason: int = reason
        self.properties: Properties = properties

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Acknowledgement) or type(other) is not type(self):
            return NotImplemented
        return self.packet_id == other.packet_id and self.reason == other.reason and self.properties == other.properties

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.packet_id}, reason={self.reason:#04x}, properties={self.properties!r})"


@final
class Puback(Acknowledgement):
    """The end of a QoS 1 PUBLISH."""

    __slots__ = ()


@final
class Pubrec(Acknowledgement):
    """The receiver has a QoS 2 PUBLISH."""

    __slots__ = ()


@final
class Pubrel(Acknowledgement):
    """The sender has forgotten a QoS 2 message."""

    __slots__ = ()


@final
class Pubcomp(Acknowledgement):
    """The receiver has forgotten a QoS 2 packet id."""

    __slots__ = ()


@dataclass(slots=True, frozen=True)
class SubscriptionRequest:
    """One filter of a SUBSCRIBE with its options; `retain_handling` is 0 send, 1 send if new, 2 don't send."""

    topic_filter: bytes
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(slots=True, frozen=True)
class Subscribe:
    """A request for at least one subscription."""

    packet_id: int
    filters: tuple[SubscriptionRequest, ...]
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Suback:
    """One reason for each filter of the SUBSCRIBE. In 3.1.1 every failure is written as 0x80.

    3.1 has no code for a failure. It is sent 0x80 all the same, as mosquitto does: the alternatives are to grant what
    will never be delivered, or to close the connection for one filter among many.
    """

    packet_id: int
    reasons: tuple[int, ...]
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Unsubscribe:
    """A request to end at least one subscription."""

    packet_id: int
    filters: tuple[bytes, ...]
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Unsuback:
    """One reason for each filter of the UNSUBSCRIBE; 3.1.1 has none and reads as ()."""

    packet_id: int
    reasons: tuple[int, ...] = ()
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Pingreq:
    """Are you there?"""


@dataclass(slots=True, frozen=True)
class Pingresp:
    """Yes."""


@dataclass(slots=True, frozen=True)
class Disconnect:
    """The last packet of a connection. In 3.1.1 only a client sends it, without a reason."""

    reason: int = 0
    properties: Properties = field(default_factory=no_properties)


@dataclass(slots=True, frozen=True)
class Auth:
    """A step of an extended authentication, 5.0 only."""

    reason: int = 0
    properties: Properties = field(default_factory=no_properties)


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
