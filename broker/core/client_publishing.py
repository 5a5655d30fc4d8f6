"""What one client may publish: how much at a time, how fast, and with which properties.

It owns the counts of the client's PUBLISHes and the topic aliases that it set. It stops nobody: it says when the client
should be read no more and when again, and a fault is a ProtocolError. It knows neither topics' limits nor records.
"""

from typing import Final, final

from mypy_extensions import i64

from broker.core.connection_limits import ConnectionLimits
from broker.core.records import PUBACK, PUBCOMP, PUBREC
from broker.core.topic_aliases import ClientAliases
from broker.mqtt.framing import is_utf8
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Property, encode_forwarded, int_property
from broker.mqtt.reasons import ProtocolError, Reason

# A client that sends QoS 1 or 2 on and on without an acknowledgement is not read: MQTT 3 has no Receive Maximum, and
# that of MQTT 5 bounds no bytes. What the owner holds of it while it is not ready is bounded by this.
UNACKNOWLEDGED_MAX: Final = 512
UNACKNOWLEDGED_BYTES_MAX: Final = 1024 * 1024
# Only what is larger is counted in bytes, so that what is small and comes often costs nothing more.
LARGE_BYTES: Final = UNACKNOWLEDGED_BYTES_MAX // UNACKNOWLEDGED_MAX
_FAILURE: Final = 0x80


@final
class ClientPublishing:
    """The PUBLISHes of one client. Aliases last as long as the connection [MQTT-3.3.2-7], and so does this."""

    __slots__ = (
        "_aliases",
        "_bytes",
        "_bytes_of",
        "_limits",
        "_published",
        "_quota_used",
        "_throttled",
        "_throttled_before",
        "_unacknowledged",
    )

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._aliases = ClientAliases(limits.topic_alias_max_client)
        self._unacknowledged: int = 0
        # By packet id what is large, or of QoS 2 (then as large at least, however often it comes again: it may be
        # acknowledged once). None while nothing of that kind is under way, which is nearly always.
        self._bytes_of: dict[int, int] | None = None
        self._bytes: int = 0
        # QoS 1 and 2 that are not wholly acknowledged.
        self._quota_used: int = 0
        # In the present second, and whether they were too many.
        self._published: int = 0
        self._throttled = False
        self._throttled_before = False

    def count(self, packet_id: i64, qos: i64, version: i64, size: i64) -> bool:
        """Count a PUBLISH of so many bytes; true when the client should be read no more."""
        limits = self._limits
        if qos:
            if version == 5:
                # [MQTT-3.3.4-7] More under way than the CONNACK allowed.
                if self._quota_used >= limits.receive_max:
                    raise ProtocolError(Reason.RECEIVE_MAXIMUM_EXCEEDED, "more PUBLISHes than Receive Maximum allows")
                self._quota_used += 1
            if qos == 1:
                self._unacknowledged += 1
            if size > LARGE_BYTES or qos == 2:
                self._note_bytes(int(packet_id), max(int(size), LARGE_BYTES))
        self._published += 1
        return self.is_full() or (limits.messages_per_s_max > 0 and self._published >= limits.messages_per_s_max)

    def is_full(self) -> bool:
        """Say whether the client has as much unacknowledged as it may have."""
        return self._unacknowledged >= UNACKNOWLEDGED_MAX or self._bytes >= UNACKNOWLEDGED_BYTES_MAX

    def _note_bytes(self, packet_id: int, size: int) -> None:
        if self._bytes_of is None:
            self._bytes_of = {}
        self._bytes_of[packet_id] = self._bytes_of.get(packet_id, 0) + size
        self._bytes += size

    def _forget_bytes(self, packet_id: int) -> None:
        if self._bytes_of is not None:
            self._bytes -= self._bytes_of.pop(packet_id, 0)
            if not self._bytes_of:
                self._bytes_of = None

    def throttle(self, client_id: str) -> str:
        """Have the client wait for the next second, if it is for its rate that it is read no more.

        The result is what an operator should read of it, "" when there is nothing to say, or nothing new.
        """
        if self.is_full():
            return ""
        self._throttled = True
        if self._throttled_before:
            return ""
        self._throttled_before = True
        limit = self._limits.messages_per_s_max
        return f"client {client_id!r} publishes more than {limit} messages a second: it has to wait"

    def acknowledged(self, kind: int, packet_id: int, reason: int) -> bool:
        """Take a PUBACK, PUBREC or PUBCOMP for the client; true when the client may be read."""
        if kind in (PUBACK, PUBCOMP) or (kind == PUBREC and reason >= _FAILURE):
            # [MQTT-4.9.0-2] The client may have one more under way.
            self._quota_used = max(0, self._quota_used - 1)
        if kind not in (PUBACK, PUBREC):
            return False
        if kind == PUBACK:
            self._unacknowledged -= 1
        self._forget_bytes(packet_id)
        return not self.is_full() and not self._throttled

    def begin_second(self) -> bool:
        """A new second begins; true when the client waited for it, and for nothing else."""
        self._published = 0
        waited = self._throttled
        self._throttled = False
        return waited and not self.is_full()

    def read_properties(self, packet: Publish) -> tuple[bytes, bytes, i64]:
        """Return the topic, the properties that go on, and the expiry (-1: none) of a PUBLISH that has properties."""
        properties = packet.properties
        topic = packet.topic
        alias = int_property(properties, Property.TOPIC_ALIAS, 0)
        if alias:
            topic = self._aliases.resolve(alias, topic)
        if Property.SUBSCRIPTION_IDENTIFIER in properties:
            # [MQTT-3.3.4-6] A client's PUBLISH has none.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "PUBLISH with a subscription identifier")
        said_to_be_utf8 = int_property(properties, Property.PAYLOAD_FORMAT_INDICATOR, 0) == 1
        if self._limits.check_payload_format and said_to_be_utf8 and not is_utf8(packet.payload):
            raise ProtocolError(Reason.PAYLOAD_FORMAT_INVALID, "the payload is not the UTF-8 that it says to be")
        return topic, encode_forwarded(properties), int_property(properties, Property.MESSAGE_EXPIRY_INTERVAL, -1)
