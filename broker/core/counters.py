"""Counters of a listener process: how they are counted, what they look like on the pipe, how the owner adds them up.

It owns the order of the numbers and nothing of what they mean (that is `metrics`). It knows no pipe and no clock.

Theory of operation
-------------------
A listener counts in plain integers, which costs next to nothing, and once a second sends all of them to the owner: the
numbers since its start, never differences, so that a lost report is made good by the next. The owner keeps the
latest report of each listener that lives and the sum of the last ones of those that are gone.

Invariant: while the owner lives no sum goes backwards, whatever dies. A new owner begins with what the living
listeners report.
"""

from typing import Final, final

from mypy_extensions import i64

from broker.mqtt.packets import PACKET_REASONS, PacketType
from broker.mqtt.reasons import Reason

COUNTERS_VERSION: Final = 1
_HEAD_BYTES: Final = 3
_REASONS: Final = 256

# What a client may send, and what it may be sent.
RECEIVED: Final[tuple[PacketType, ...]] = (
    PacketType.CONNECT,
    PacketType.PUBLISH,
    PacketType.PUBACK,
    PacketType.PUBREC,
    PacketType.PUBREL,
    PacketType.PUBCOMP,
    PacketType.SUBSCRIBE,
    PacketType.UNSUBSCRIBE,
    PacketType.PINGREQ,
    PacketType.DISCONNECT,
    PacketType.AUTH,
)
SENT: Final[tuple[PacketType, ...]] = (
    PacketType.CONNACK,
    PacketType.PUBLISH,
    PacketType.PUBACK,
    PacketType.PUBREC,
    PacketType.PUBREL,
    PacketType.PUBCOMP,
    PacketType.SUBACK,
    PacketType.UNSUBACK,
    PacketType.PINGRESP,
    PacketType.DISCONNECT,
    PacketType.AUTH,
)
CONNACK_REASONS: Final[tuple[int, ...]] = tuple(sorted(PACKET_REASONS[int(PacketType.CONNACK)]))

# The attributes of ListenerCounters that are one number each, in the order of `values`; the names are the metrics'.
PLAIN: Final = (
    "bytes_received",
    "bytes_sent",
    "socket_open",
    "socket_close",
    "socket_close_timeout",
    "socket_error",
    "mqtt_publish_bytes_received",
    "mqtt_publish_bytes_sent",
    "mqtt_malformed_packet_error",
    "mqtt_protocol_error",
    "mqtt_invalid_msg_size_error",
    "mqtt_publish_auth_error",
    "mqtt_subscribe_auth_error",
    "client_keepalive_expired",
    "connections_refused",
    "client_read_paused",
    "client_write_paused",
    "listener_read_paused",
)


def received_name(kind: PacketType) -> str:
    """Return the name of the counter of received packets of a type."""
    return f"mqtt_{kind.name.lower()}_received"


def sent_name(kind: PacketType) -> str:
    """Return the name of the counter of sent packets of a type."""
    return f"mqtt_{kind.name.lower()}_sent"


def connack_name(reason: int) -> str:
    """Return the name of the counter of CONNACKs with a reason: `mqtt_connack_sent{reason_code=...}`."""
    return f"mqtt_connack_sent{{reason_code={Reason(reason).name.lower()}}}"


LISTENER_COUNTERS: Final[tuple[str, ...]] = (
    *PLAIN,
    *[received_name(kind) for kind in RECEIVED],
    # Sent CONNACKs are counted by reason, and their sum is nobody's to count.
    *[sent_name(kind) for kind in SENT if kind != PacketType.CONNACK],
    *[connack_name(reason) for reason in CONNACK_REASONS],
)
_OPEN: Final = PLAIN.index("socket_open")
_CLOSE: Final = PLAIN.index("socket_close")


@final
class ListenerCounters:
    """What one listener process has counted since its start.

    Count by adding: to a plain attribute, to `received[type]` and `sent[type]` (the upper four bits of a packet's
    first byte), and for a CONNACK, which is not in `sent`, to `connacks[reason]`. PUBLISHes, of which there are most,
    have plain attributes of their own.
    """

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "client_keepalive_expired",
        "client_read_paused",
        "client_write_paused",
        "connacks",
        "connections_refused",
        "listener_read_paused",
        "mqtt_invalid_msg_size_error",
        "mqtt_malformed_packet_error",
        "mqtt_protocol_error",
        "mqtt_publish_auth_error",
        "mqtt_publish_bytes_received",
        "mqtt_publish_bytes_sent",
        "mqtt_subscribe_auth_error",
        "publishes_received",
        "publishes_sent",
        "received",
        "sent",
        "socket_close",
        "socket_close_timeout",
        "socket_error",
        "socket_open",
    )

    def __init__(self) -> None:
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        self.socket_open: int = 0
        self.socket_close: int = 0
        self.socket_close_timeout: int = 0
        self.socket_error: int = 0
        self.mqtt_publish_bytes_received: int = 0
        self.mqtt_publish_bytes_sent: int = 0
        self.mqtt_malformed_packet_error: int = 0
        self.mqtt_protocol_error: int = 0
        self.mqtt_invalid_msg_size_error: int = 0
        self.mqtt_publish_auth_error: int = 0
        self.mqtt_subscribe_auth_error: int = 0
        self.client_keepalive_expired: int = 0
        self.connections_refused: int = 0
        self.client_read_paused: int = 0
        self.client_write_paused: int = 0
        self.listener_read_paused: int = 0
        self.publishes_received: int = 0
        self.publishes_sent: int = 0
        self.received: list[int] = [0] * 16
        self.sent: list[int] = [0] * 16
        self.connacks: list[int] = [0] * _REASONS

    def fault(self, reason: int) -> None:
        """Count a client's fault by the reason that it is told."""
        if reason == Reason.PACKET_TOO_LARGE:
            self.mqtt_invalid_msg_size_error += 1
        elif reason == Reason.MALFORMED_PACKET:
            self.mqtt_malformed_packet_error += 1
        elif reason == Reason.KEEP_ALIVE_TIMEOUT:
            self.client_keepalive_expired += 1
        else:
            self.mqtt_protocol_error += 1

    def values(self) -> list[int]:
        """Return all numbers in the order of LISTENER_COUNTERS."""
        self.received[PacketType.PUBLISH] = self.publishes_received
        self.sent[PacketType.PUBLISH] = self.publishes_sent
        values = [
            self.bytes_received,
            self.bytes_sent,
            self.socket_open,
            self.socket_close,
            self.socket_close_timeout,
            self.socket_error,
            self.mqtt_publish_bytes_received,
            self.mqtt_publish_bytes_sent,
            self.mqtt_malformed_packet_error,
            self.mqtt_protocol_error,
            self.mqtt_invalid_msg_size_error,
            self.mqtt_publish_auth_error,
            self.mqtt_subscribe_auth_error,
            self.client_keepalive_expired,
            self.connections_refused,
            self.client_read_paused,
            self.client_write_paused,
            self.listener_read_paused,
        ]
        for kind in RECEIVED:
            values.append(self.received[kind])
        for kind in SENT:
            if kind != PacketType.CONNACK:
                values.append(self.sent[kind])
        for reason in CONNACK_REASONS:
            values.append(self.connacks[reason])
        return values


def pack_counters(values: list[int]) -> bytes:
    """Pack a report: version u8, count u16, then a u64 each."""
    parts = [bytes((COUNTERS_VERSION,)), len(values).to_bytes(2, "big")]
    for value in values:
        parts.append(value.to_bytes(8, "big"))
    return b"".join(parts)


def unpack_counters(data: bytes) -> list[int]:
    """Unpack a report. Both ends of the pipe are this code, so one that does not fit is a fault of ours."""
    assert data[0] == COUNTERS_VERSION, f"counters version {data[0]}"
    count = int.from_bytes(data[1:_HEAD_BYTES], "big")
    assert count == len(LISTENER_COUNTERS), f"{count} counters instead of {len(LISTENER_COUNTERS)}"
    assert len(data) == _HEAD_BYTES + 8 * count, f"{len(data)} bytes of counters"
    return [int.from_bytes(data[pos : pos + 8], "big") for pos in range(_HEAD_BYTES, len(data), 8)]


def add_up(total: list[int], values: list[int]) -> None:
    """Add `values` to `total`, number by number."""
    index: i64 = 0
    while index < len(total):
        total[index] += values[index]
        index += 1


@final
class ListenerTotals:
    """The owner's side: the sums over all listeners that ever reported to it."""

    def __init__(self) -> None:
        # Listener index -> the generation whose reports count, and the latest of them; none of it is in `_gone`.
        self._generations: dict[int, int] = {}
        self._latest: dict[int, list[int]] = {}
        self._gone: list[int] = [0] * len(LISTENER_COUNTERS)

    def receive(self, listener: int, generation: int, values: list[int]) -> None:
        """Take a report; one of a process that is gone already is ignored, for it is in the sum."""
        known = self._generations.get(listener, -1)
        if generation < known or (generation == known and listener not in self._latest):
            return
        if generation > known:
            self._retire(listener)
            self._generations[listener] = generation
        self._latest[listener] = values

    def gone(self, listener: int, generation: int) -> None:
        """A listener process ended: its numbers stay, its sockets are closed."""
        if generation >= self._generations.get(listener, -1):
            self._retire(listener)
            self._generations[listener] = generation

    def values(self) -> list[int]:
        """Return the sums in the order of LISTENER_COUNTERS."""
        total = list(self._gone)
        for values in self._latest.values():
            add_up(total, values)
        return total

    def named(self) -> dict[str, int]:
        """Return the sums by name; nothing when no listener has reported yet."""
        if not self._latest and not any(self._gone):
            return {}
        return dict(zip(LISTENER_COUNTERS, self.values(), strict=True))

    def _retire(self, listener: int) -> None:
        values = self._latest.pop(listener, None)
        if values is not None:
            values = list(values)
            # The kernel closed what the process had open, and nobody was left to count it.
            values[_CLOSE] = max(values[_CLOSE], values[_OPEN])
            add_up(self._gone, values)
