"""Events: what the queue-owner is told. A listener says most of them, the supervisor the rest.

A `connection` is a number unique for the life of the node: listener index in the upper half, the
listener's own count in the lower. Events carry facts, validated by the listener; they decide nothing.
"""

from typing import Final, final

from mypy_extensions import mypyc_attr

from broker.core.message import Message
from broker.core.will import Will

NEVER_EXPIRES_S: Final = 0xFFFFFFFF
CONNECTION_LOST: Final = 0xFF
# The topic of a PublishReceived whose own is over a limit of the listener, for the owner to refuse in its turn. No name
# is empty.
REFUSED_TOPIC: Final = b""


@mypyc_attr(acyclic=True)
class Event:
    """Base of everything that `QueueOwner.receive` takes."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class Attach(Event):
    """A CONNECT was accepted by the listener and asks for its session."""

    __slots__ = (
        "clean_start",
        "client_id",
        "connection",
        "packet_bytes_max",
        "receive_maximum",
        "session_expiry_s",
        "user_name",
        "version",
        "will",
    )

    def __init__(
        self,
        connection: int,
        client_id: str,
        version: int = 4,
        clean_start: bool = True,
        session_expiry_s: int = 0,
        receive_maximum: int = 0,
        packet_bytes_max: int = 0,
        user_name: str | None = None,
        will: Will | None = None,
    ) -> None:
        self.connection = connection
        self.client_id = client_id
        self.version = version
        self.clean_start = clean_start
        self.session_expiry_s = session_expiry_s
        self.receive_maximum = receive_maximum
        self.packet_bytes_max = packet_bytes_max
        self.user_name = user_name
        self.will = will


@mypyc_attr(acyclic=True)
@final
class Detach(Event):
    """The connection ended: `reason` is the DISCONNECT's, or CONNECTION_LOST without one.

    `session_expiry_s` replaces the session's interval when the DISCONNECT carried one, else -1. `unsent` are the packet
    ids of deliveries that the listener held back.
    """

    __slots__ = ("connection", "reason", "session_expiry_s", "unsent")

    def __init__(
        self,
        connection: int,
        reason: int = CONNECTION_LOST,
        session_expiry_s: int = -1,
        unsent: list[int] | None = None,
    ) -> None:
        self.connection = connection
        self.reason = reason
        self.session_expiry_s = session_expiry_s
        self.unsent: list[int] = unsent or []


@mypyc_attr(acyclic=True)
@final
class PublishReceived(Event):
    """A client's PUBLISH; `expiry_s` is its Message Expiry Interval, -1 without one."""

    __slots__ = ("connection", "expiry_s", "message", "packet_id")

    def __init__(self, connection: int, packet_id: int, message: Message, expiry_s: int = -1) -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.message = message
        self.expiry_s = expiry_s


@mypyc_attr(acyclic=True)
class Acknowledgement(Event):
    """Base of the packets that consist of a packet id and a reason."""

    __slots__ = ("connection", "packet_id", "reason")

    def __init__(self, connection: int, packet_id: int, reason: int = 0) -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.reason = reason


@mypyc_attr(acyclic=True)
@final
class PubackReceived(Acknowledgement):
    """A client's PUBACK for a QoS 1 delivery."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class PubrecReceived(Acknowledgement):
    """A client's PUBREC for a QoS 2 delivery."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class PubrelReceived(Acknowledgement):
    """A client's PUBREL for its own QoS 2 PUBLISH."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class PubcompReceived(Acknowledgement):
    """A client's PUBCOMP for a QoS 2 delivery."""

    __slots__ = ()


@mypyc_attr(acyclic=True)
@final
class SubscribeReceived(Event):
    """A client's SUBSCRIBE: (topic filter, options) pairs, or (filter, reason >= 0x80) for a refused one.

    The options are the byte of MQTT 5; `identifier` is the subscription identifier, 0 for none.
    """

    __slots__ = ("connection", "identifier", "packet_id", "requests")

    def __init__(self, connection: int, packet_id: int, requests: list[tuple[bytes, int]], identifier: int = 0) -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.requests = requests
        self.identifier = identifier


@mypyc_attr(acyclic=True)
@final
class UnsubscribeReceived(Event):
    """A client's UNSUBSCRIBE."""

    __slots__ = ("connection", "filters", "packet_id")

    def __init__(self, connection: int, packet_id: int, filters: list[bytes]) -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.filters = filters


@mypyc_attr(acyclic=True)
@final
class ConnectionPaused(Event):
    """The client does not read: its listener holds more output for it than it wants to."""

    __slots__ = ("connection",)

    def __init__(self, connection: int) -> None:
        self.connection = connection


@mypyc_attr(acyclic=True)
@final
class ConnectionResumed(Event):
    """The client reads again."""

    __slots__ = ("connection",)

    def __init__(self, connection: int) -> None:
        self.connection = connection


@mypyc_attr(acyclic=True)
@final
class ListenerStarted(Event):
    """A listener process (re)started under this index; whatever an older one held is gone."""

    __slots__ = ("generation", "listener")

    def __init__(self, listener: int, generation: int) -> None:
        self.listener = listener
        self.generation = generation


@mypyc_attr(acyclic=True)
@final
class ListenerGone(Event):
    """A listener process ended; its connections are lost."""

    __slots__ = ("generation", "listener")

    def __init__(self, listener: int, generation: int) -> None:
        self.listener = listener
        self.generation = generation


@mypyc_attr(acyclic=True)
@final
class ListenerCounted(Event):
    """A listener's counters, in the order of LISTENER_COUNTERS."""

    __slots__ = ("generation", "listener", "values")

    def __init__(self, listener: int, generation: int, values: list[int]) -> None:
        self.listener = listener
        self.generation = generation
        self.values = values


@mypyc_attr(acyclic=True)
@final
class CreditReturned(Event):
    """A listener consumed `credit_bytes` of what was sent to it."""

    __slots__ = ("credit_bytes", "listener")

    def __init__(self, listener: int, credit_bytes: int) -> None:
        self.listener = listener
        self.credit_bytes = credit_bytes


def connection_key(listener: int, number: int) -> int:
    """Return the node-wide connection number of a listener's own `number`."""
    return (listener << 32) | number
