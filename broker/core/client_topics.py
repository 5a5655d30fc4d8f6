"""Topics and filters as the clients of a listener may write them: within its limits, and below its mountpoint.

It owns the limits and the mountpoint's prefix, and what records of topics look like that are over a limit. It knows
neither connections nor sessions.

Invariants: what leaves here begins with the prefix; a name or filter that is over a limit leaves only as its refusal.
"""

from typing import Final, final

from broker.core.connection_limits import ConnectionLimits
from broker.core.subscription import NO_LOCAL, RETAIN_AS_PUBLISHED, RETAIN_HANDLING_SHIFT
from broker.core.will import Will
from broker.mqtt import packets
from broker.mqtt.framing import STRING_BYTES_MAX
from broker.mqtt.properties import Property, encode_forwarded, int_property
from broker.mqtt.reasons import ProtocolError, Reason
from broker.mqtt.topics import SHARE_PREFIX, mount_prefix, mounted, shared_group

# By itself a filter of a topic that no client can publish to: whoever asks for it forgot the group and the filter.
_SHARE: Final = SHARE_PREFIX[:-1]


@final
class ClientTopics:
    """What a topic must be like. One of up to `bytes_free` bytes is within all limits, for the many that are short."""

    __slots__ = (
        "_filters_refused_before",
        "_refused_before",
        "bridge",
        "bytes_free",
        "bytes_max",
        "levels_max",
        "mountpoint",
        "prefix",
        "refuses_filters",
    )

    def __init__(self, limits: ConnectionLimits, mountpoint: str) -> None:
        # Whether the client is another broker, which has to tell before it subscribes.
        self.bridge = False
        # Client ids and topics of another mountpoint are others, though they are written alike.
        self.mountpoint = mountpoint
        self.prefix: bytes = mount_prefix(mountpoint)
        # With the prefix a topic is still one of MQTT's.
        self.bytes_max: int = min(limits.topic_bytes_max, STRING_BYTES_MAX - len(self.prefix))
        self.levels_max: int = limits.topic_levels_max
        # A topic has one level more than separators at most.
        self.bytes_free: int = min(self.bytes_max, self.levels_max - 1)
        self._refused_before = False
        # Whether the last SUBSCRIBE had a filter that is over a limit.
        self.refuses_filters = False
        self._filters_refused_before = False

    def are_exceeded(self, topic: bytes) -> bool:
        """Say whether a name, or a filter that is not shared, is longer or deeper than it may be."""
        return len(topic) > self.bytes_max or topic.count(b"/") >= self.levels_max

    def refuse(self, client_id: str) -> str:
        """Return what an operator should read of PUBLISHes to such topics, "" when there is nothing new."""
        if self._refused_before:
            return ""
        self._refused_before = True
        return (
            f"client {client_id!r} publishes to topics of more than {self.levels_max} levels or "
            f"{self.bytes_max} bytes: they are dropped"
        )

    def refuse_filters(self, client_id: str) -> str:
        """Return what an operator should read of such filters, "" when there is nothing new."""
        if self._filters_refused_before:
            return ""
        self._filters_refused_before = True
        return (
            f"client {client_id!r} subscribes to filters of more than {self.levels_max} levels or "
            f"{self.bytes_max} bytes: they are refused"
        )

    def requests(self, packet: packets.Subscribe) -> list[tuple[bytes, int]]:
        """Return the filters of a SUBSCRIBE, each with its options for the owner, or a reason why it can't be had."""
        requests: list[tuple[bytes, int]] = []
        self.refuses_filters = False
        for request in packet.filters:
            topic_filter = request.topic_filter
            is_over = self._is_over(topic_filter)
            if is_over or topic_filter == _SHARE:
                # Well-formed, and not for this client [MQTT-3.9.3-2] [MQTT311-3.9.3-2].
                self.refuses_filters = self.refuses_filters or is_over
                requests.append((topic_filter, int(Reason.TOPIC_FILTER_INVALID)))
                continue
            options = request.qos | request.retain_handling << RETAIN_HANDLING_SHIFT
            # A bridge wants flags as they were published, and not its own messages back.
            if request.no_local or self.bridge:
                options |= NO_LOCAL
            if request.retain_as_published or self.bridge:
                options |= RETAIN_AS_PUBLISHED
            requests.append((mounted(topic_filter, self.prefix), options))
        return requests

    def _is_over(self, topic_filter: bytes) -> bool:
        shared = shared_group(topic_filter)
        return len(topic_filter) > self.bytes_max or self.are_exceeded(topic_filter if shared is None else shared[1])

    def filters(self, packet: packets.Unsubscribe) -> list[bytes]:
        """Return the filters of an UNSUBSCRIBE; for one that is too long with the prefix, one that nobody can have."""
        names = [mounted(topic_filter, self.prefix) for topic_filter in packet.filters]
        return [name if len(name) <= STRING_BYTES_MAX else _SHARE for name in names]

    def will(self, will: packets.Will | None) -> Will | None:
        """Return a CONNECT's will as the owner keeps it; ProtocolError when its topic is over a limit."""
        if will is None:
            return None
        if self.are_exceeded(will.topic):
            raise ProtocolError(Reason.TOPIC_NAME_INVALID, "the will's topic has too many levels or bytes")
        return Will(
            self.prefix + will.topic,
            will.payload,
            encode_forwarded(will.properties),
            will.qos,
            will.retain,
            int_property(will.properties, Property.WILL_DELAY_INTERVAL, 0),
            int_property(will.properties, Property.MESSAGE_EXPIRY_INTERVAL, -1),
        )
