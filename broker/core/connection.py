"""A connection: the MQTT of one client, on the listener's side of the node.

It owns what dies with the socket: the bytes of a packet that has not wholly arrived, the protocol
version, keep-alive, and how many of the client's PUBLISHes wait for their acknowledgement. It knows
no socket and no event loop: it is given bytes and the time, appends records for the owner to the
listener's batch, and leaves bytes for the client in `output`.

Theory of operation
-------------------
    WAITING    nothing but a CONNECT is accepted, of at most CONNECT_BYTES_MAX, within the connect timeout
    ATTACHING  the owner was asked for the session; later packets are held back until it answers
    ATTACHED   packets become records, the owner's records become packets
    CLOSED     nothing more is read; the shell writes `output` and closes the socket

A fault of the client is a ProtocolError: MQTT 5 is told the reason in a DISCONNECT (a CONNACK before
it is attached), MQTT 3.1.1 sees the connection close. What this broker does not serve (QoS 2, retained
messages, wills, shared subscriptions, subscription identifiers, topic aliases) is refused the same way,
with the reason that the specification has for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from mypy_extensions import i64

from broker.core.events import CONNECTION_LOST, NEVER_EXPIRES_S, Attach
from broker.core.records import NO_LOCAL_FLAG, PUBACK, Answer, ListenerBatch
from broker.mqtt.codec import decode, decode_publish, encode, encode_ack, split
from broker.mqtt.packets import (
    PACKET_REASONS,
    Auth,
    Connack,
    Connect,
    Disconnect,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties, Property, encode_properties, int_property
from broker.mqtt.reasons import ProtocolError, Reason
from broker.mqtt.topics import TOPIC_LEVELS_MAX, check_filter, check_name, shared_group

WAITING: Final = 0
ATTACHING: Final = 1
ATTACHED: Final = 2
CLOSED: Final = 3

# A CONNECT is an id, a user name and a password; the largest tokens in use as passwords are a few KiB.
CONNECT_BYTES_MAX: Final = 8192
# MQTT 3.1.1 has no Receive Maximum: a client that sends on without an acknowledgement is not read.
UNACKNOWLEDGED_MAX: Final = 4096
_QOS_MAX: Final = 1
_TYPE_CONNECT: Final = 1
_TYPE_PUBLISH: Final = 3

_FORWARDED_PROPERTIES: Final = (
    Property.PAYLOAD_FORMAT_INDICATOR,
    Property.CONTENT_TYPE,
    Property.RESPONSE_TOPIC,
    Property.CORRELATION_DATA,
    Property.USER_PROPERTY,
)


@dataclass(slots=True, frozen=True)
class ConnectionLimits:
    """What the configuration says to connections."""

    connect_timeout_s: float = 5.0
    packet_bytes_max: int = 0
    client_id_bytes_max: int = 100
    topic_levels_max: int = 128
    persistent_client_expiration_s: int = NEVER_EXPIRES_S


@final
class Connection:
    """One client connection. `want_read` says whether the shell should go on reading its socket."""

    __slots__ = (
        "_answer_bytes_max",
        "_assigned_client_id",
        "_batch",
        "_chunks",
        "_held_bytes",
        "_limits",
        "_needed_bytes",
        "_session_expiry_s",
        "_unacknowledged",
        "client_id",
        "dirty",
        "keep_alive_s",
        "last_received",
        "number",
        "output",
        "state",
        "version",
        "want_read",
    )

    def __init__(self, number: int, batch: ListenerBatch, limits: ConnectionLimits, now: float) -> None:
        self.number = number
        self.version: int = 0
        self.state: int = WAITING
        self.client_id: str = ""
        self.keep_alive_s: int = 0
        self.last_received = now
        self.output: list[bytes] = []
        self.dirty = False
        self.want_read = True
        self._batch = batch
        self._limits = limits
        self._chunks: list[bytes] = []
        self._held_bytes: int = 0
        self._needed_bytes: int = 0
        self._unacknowledged: int = 0
        self._session_expiry_s: int = 0
        self._assigned_client_id = ""
        self._answer_bytes_max: int = 0

    def receive_data(self, data: bytes, now: float, make_client_id: Callable[[], str]) -> None:
        """Work off bytes from the client. `make_client_id` names a client that has no id of its own."""
        if self.state == CLOSED:
            # [MQTT-3.14.4-1] [MQTT-3.14.4-2]
            return
        if self.state != WAITING:
            # The time for a CONNECT runs from the beginning, however busily its bytes trickle in.
            self.last_received = now
        if self._held_bytes:
            self._chunks.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._needed_bytes or self.state == ATTACHING:
                return
            data = b"".join(self._chunks)
            self._chunks = []
            self._held_bytes = 0
        elif self.state == ATTACHING:
            self._hold(data, 0)
            return
        try:
            self._parse(data, make_client_id)
        except ProtocolError as error:
            self.close(error.reason, error.text)

    def _hold(self, rest: bytes, needed_bytes: int) -> None:
        """Keep what can't be worked off yet; `needed_bytes` are the whole packet's, 0 when not known."""
        if rest:
            self._chunks.append(rest)
            self._held_bytes = len(rest)
        self._needed_bytes = needed_bytes

    def _parse(self, data: bytes, make_client_id: Callable[[], str]) -> None:
        pos: i64 = 0
        size: i64 = len(data)
        packet_bytes_max: i64 = self._limits.packet_bytes_max
        while pos < size:
            first: i64 = data[pos]
            if self.state == WAITING:
                # [MQTT-3.1.0-1] [MQTT311-3.1.0-1] The first packet is a CONNECT; anything else isn't worth a buffer.
                if first >> 4 != _TYPE_CONNECT:
                    raise ProtocolError(Reason.PROTOCOL_ERROR, "the first packet must be CONNECT")
                packet_bytes_max = CONNECT_BYTES_MAX
            start, end = split(data, pos, packet_bytes_max)
            if end == 0 or end > size:
                self._hold(data[pos:], int(end - pos) if end else 0)
                return
            if self.state != ATTACHED:
                assert self.state == WAITING
                self._connect(decode(data, int(first), int(start), int(end), 0), make_client_id)
                self._hold(data[end:], 0)
                return
            if first >> 4 == _TYPE_CONNECT:
                # [MQTT-3.1.0-2] [MQTT311-3.1.0-2] A second CONNECT is a fault, whatever is in it.
                raise ProtocolError(Reason.PROTOCOL_ERROR, "CONNECT on a connection that has a session")
            if first >> 4 == _TYPE_PUBLISH:
                self._publish(decode_publish(data, first, start, end, self.version))
            else:
                packet = decode(data, int(first), int(start), int(end), self.version)
                if isinstance(packet, Puback):
                    self._batch.puback(self.number, packet.packet_id, packet.reason)
                else:
                    _HANDLERS.get(type(packet), Connection._unexpected)(self, packet)
            if self.state == CLOSED:
                return
            pos = end

    # From the client.

    def _connect(self, packet: Any, make_client_id: Callable[[], str]) -> None:
        assert isinstance(packet, Connect)
        self.version = packet.version
        limits = self._limits
        properties = packet.properties
        self._answer_bytes_max = int_property(properties, Property.MAXIMUM_PACKET_SIZE, 0)
        if Property.AUTHENTICATION_METHOD in properties:
            # [MQTT-4.12.0-1]
            self.close(Reason.BAD_AUTHENTICATION_METHOD, "enhanced authentication is not served")
            return
        if packet.will is not None:
            self.close(Reason.IMPLEMENTATION_SPECIFIC_ERROR, "wills are not served")
            return
        if len(packet.client_id.encode()) > limits.client_id_bytes_max:
            # [MQTT-3.1.3-8] [MQTT-3.1.4-2] [MQTT311-3.1.3-9]
            self.close(Reason.CLIENT_IDENTIFIER_NOT_VALID, f"client id over {limits.client_id_bytes_max} bytes")
            return
        if not packet.client_id:
            # [MQTT311-3.1.3-8] [MQTT311-3.1.3-7] Without an id there is nothing to find a stored session by.
            if packet.version == 4 and not packet.clean_start:
                self.close(Reason.CLIENT_IDENTIFIER_NOT_VALID, "an empty client id needs a clean session")
                return
            # [MQTT-3.1.3-6] [MQTT311-3.1.3-6]
            self._assigned_client_id = make_client_id()
        self.client_id = packet.client_id or self._assigned_client_id
        self.keep_alive_s = packet.keep_alive_s
        if packet.version == 5:
            self._session_expiry_s = int_property(properties, Property.SESSION_EXPIRY_INTERVAL, 0)
        else:
            self._session_expiry_s = 0 if packet.clean_start else limits.persistent_client_expiration_s
        self.state = ATTACHING
        self.want_read = False
        self._batch.attach(
            Attach(
                self.number,
                self.client_id,
                packet.version,
                packet.clean_start,
                self._session_expiry_s,
                int_property(properties, Property.RECEIVE_MAXIMUM, 65535),
                self._answer_bytes_max,
                packet.user_name,
            )
        )

    def _publish(self, packet: Publish) -> None:
        qos: i64 = packet.qos
        if qos > _QOS_MAX:
            raise ProtocolError(Reason.QOS_NOT_SUPPORTED, "QoS 2 is not served")  # [MQTT-3.2.2-11]
        if packet.retain:
            raise ProtocolError(Reason.RETAIN_NOT_SUPPORTED, "retained messages are not served")  # [MQTT-3.2.2-14]
        properties = b""
        expiry_s: i64 = -1
        if packet.properties:
            expiry_s = int_property(packet.properties, Property.MESSAGE_EXPIRY_INTERVAL, -1)
            properties = self._forwarded_properties(packet.properties)
        if self._limits.topic_levels_max < TOPIC_LEVELS_MAX:
            check_name(packet.topic, self._limits.topic_levels_max)
        if qos:
            self._unacknowledged += 1
            if self._unacknowledged >= UNACKNOWLEDGED_MAX:
                self.want_read = False
        self._batch.publish(
            self.number, packet.packet_id, qos, packet.retain, packet.topic, properties, packet.payload, expiry_s
        )

    def _forwarded_properties(self, properties: Properties) -> bytes:
        if Property.TOPIC_ALIAS in properties:
            # [MQTT-3.3.2-9] [MQTT-3.2.2-17] [MQTT-3.2.2-18] The CONNACK announced no aliases.
            raise ProtocolError(Reason.TOPIC_ALIAS_INVALID, "topic aliases are not served")
        if Property.SUBSCRIPTION_IDENTIFIER in properties:
            # [MQTT-3.3.4-6] A client's PUBLISH has none.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "PUBLISH with a subscription identifier")
        # [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-20] go on unaltered.
        forwarded: Properties = {name: properties[name] for name in _FORWARDED_PROPERTIES if name in properties}
        return encode_properties(forwarded)

    def _subscribe(self, packet: Subscribe) -> None:
        if Property.SUBSCRIPTION_IDENTIFIER in packet.properties:
            raise ProtocolError(
                Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, "subscription identifiers are not served"
            )
        requests: list[tuple[bytes, int]] = []
        for request in packet.filters:
            check_filter(request.topic_filter, self._limits.topic_levels_max)
            if shared_group(request.topic_filter) is not None:
                refused = Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED if self.version == 5 else Reason.UNSPECIFIED_ERROR
                requests.append((request.topic_filter, refused))
                continue
            # [MQTT-3.2.2-10] [MQTT-3.8.4-7] [MQTT311-3.8.4-5] The highest QoS that is served, up to the wanted.
            granted = min(request.qos, _QOS_MAX)
            requests.append((request.topic_filter, granted | (NO_LOCAL_FLAG if request.no_local else 0)))
        self._batch.subscribe(self.number, packet.packet_id, requests)

    def _unsubscribe(self, packet: Unsubscribe) -> None:
        self._batch.unsubscribe(self.number, packet.packet_id, list(packet.filters))

    def _ping(self, packet: Any) -> None:
        self._write(Pingresp())  # [MQTT-3.12.4-1] [MQTT311-3.12.4-1]

    def _disconnect(self, packet: Disconnect) -> None:
        expiry_s = int_property(packet.properties, Property.SESSION_EXPIRY_INTERVAL, -1)
        if expiry_s > 0 and self._session_expiry_s == 0:
            # Section 3.14.2.2.2: a session that was to end with the connection can't be prolonged.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "session expiry interval of a session that ends now")
        self._batch.detach(self.number, packet.reason, expiry_s)
        self.state = CLOSED
        self.want_read = False

    def _auth(self, packet: Auth) -> None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH without an authentication method")  # [MQTT-4.12.0-7]

    def _unexpected(self, packet: Any) -> None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"{type(packet).__name__} is not for a client to send now")

    # From the owner.

    def receive_connack(self, answer: Answer, make_client_id: Callable[[], str]) -> None:
        """The owner attached the session, or refused to; then go on with what was held back."""
        if self.state != ATTACHING:
            return
        if answer.reason:
            self.close(answer.reason, "")
            return
        # [MQTT-3.1.4-6] [MQTT311-3.1.4-5] What was held back is worked off only from here on.
        self.state = ATTACHED
        self.want_read = True
        properties: Properties = {}
        if self.version == 5:
            properties = self._capabilities()
        # [MQTT-3.1.4-5] [MQTT-3.2.0-1] [MQTT311-3.1.4-4] [MQTT311-3.2.0-1]
        self._write(Connack(answer.session_present, 0, properties))
        if self._chunks:
            data = b"".join(self._chunks)
            self._chunks = []
            self._held_bytes = 0
            try:
                self._parse(data, make_client_id)
            except ProtocolError as error:
                self.close(error.reason, error.text)

    def _capabilities(self) -> Properties:
        # [MQTT-3.1.2-28] [MQTT-4.12.0-6] Neither Response Information nor a method of authentication.
        properties: Properties = {
            Property.MAXIMUM_QOS: _QOS_MAX,  # [MQTT-3.2.2-9]
            Property.RETAIN_AVAILABLE: 0,
            Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
            Property.SHARED_SUBSCRIPTION_AVAILABLE: 0,
        }
        if self._limits.packet_bytes_max:
            # [MQTT-3.2.2-15]
            properties[Property.MAXIMUM_PACKET_SIZE] = self._limits.packet_bytes_max
        if self._assigned_client_id:
            # [MQTT-3.1.3-7] [MQTT-3.2.2-16]
            properties[Property.ASSIGNED_CLIENT_IDENTIFIER] = self._assigned_client_id
        return properties

    def receive_puback(self, answer: Answer) -> None:
        """The owner took responsibility for a PUBLISH, or refused it."""
        self._unacknowledged -= 1
        if self._unacknowledged < UNACKNOWLEDGED_MAX and self.state == ATTACHED:
            self.want_read = True
        reason = answer.reason if self.version == 5 else 0
        # [MQTT-2.2.1-5] [MQTT-4.3.2-4] [MQTT311-2.3.1-6] [MQTT311-4.3.2-2], and no property: [MQTT-3.1.2-29]
        # [MQTT-3.4.2-2] [MQTT-3.4.2-3].
        self.output.append(encode_ack(PUBACK, answer.packet_id, reason, b"", self.version))

    def receive_suback(self, answer: Answer) -> None:
        """The owner subscribed."""
        if self.version == 5:
            reasons = tuple(reason if reason >= Reason.UNSPECIFIED_ERROR else reason & 3 for reason in answer.reasons)
        else:
            reasons = tuple(
                Reason.UNSPECIFIED_ERROR if reason >= Reason.UNSPECIFIED_ERROR else reason & 3
                for reason in answer.reasons
            )
        # [MQTT-2.2.1-6] [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT311-2.3.1-7] [MQTT311-3.8.4-1] [MQTT311-3.8.4-2]
        self._write(Suback(answer.packet_id, reasons, NO_PROPERTIES))  # [MQTT-3.9.2-1] [MQTT-3.9.2-2]

    def receive_unsuback(self, answer: Answer) -> None:
        """The owner unsubscribed."""
        # [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT311-3.10.4-4] [MQTT311-3.10.4-5]
        self._write(Unsuback(answer.packet_id, tuple(answer.reasons), NO_PROPERTIES))

    def tick(self, now: float) -> None:
        """Close what has been silent for too long."""
        silent_s = now - self.last_received
        if self.state == ATTACHED:
            if not self.want_read:
                # What the client sends is not read: its silence is ours.
                self.last_received = now
            elif self.keep_alive_s and silent_s > self.keep_alive_s * 1.5:
                # [MQTT-3.1.2-22] [MQTT-3.2.2-22] [MQTT311-3.1.2-24] One and a half times; 0 turns it off.
                self.close(Reason.KEEP_ALIVE_TIMEOUT, "")
        elif self.state == WAITING and silent_s > self._limits.connect_timeout_s:
            self.close(Reason.UNSPECIFIED_ERROR, "")
        elif self.state == ATTACHING and silent_s > self._limits.connect_timeout_s:
            self.close(Reason.SERVER_UNAVAILABLE, "")

    def lost(self) -> None:
        """The socket is closed; the owner is told unless it knows already."""
        if self.state in (ATTACHING, ATTACHED):
            self._batch.detach(self.number, CONNECTION_LOST, -1)
        self.state = CLOSED

    def close(self, reason: int, text: str, owner_knows: bool = False) -> None:
        """End the connection with a word to the client where its version has one for it.

        Closing is what every failure has in common: [MQTT-3.2.2-7] [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT311-3.2.2-5].
        """
        if self.state == CLOSED:
            return
        if self.version == 5:
            properties: Properties = {Property.REASON_STRING: text} if text else {}
            if self.state == ATTACHED:  # [MQTT-3.14.0-1]
                self._say(Disconnect(reason, properties), Disconnect(reason, NO_PROPERTIES))
            else:
                refused = refusal(reason)
                self._say(Connack(False, refused, properties), Connack(False, refused, NO_PROPERTIES))
        elif self.state == ATTACHED:
            # [MQTT311-4.8.0-1] Closing is all there is to say.
            pass
        elif self.version == 4:
            self._write(Connack(False, refusal(reason), NO_PROPERTIES))
        elif reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            # [MQTT-3.1.2-2] [MQTT311-3.1.2-2] An unknown version is answered in the oldest form that is served.
            self.version = 4
            self._write(Connack(False, reason, NO_PROPERTIES))
        if not owner_knows:
            self.lost()
        self.state = CLOSED
        self.want_read = False

    def _say(self, packet: Any, shorter: Any) -> None:
        """Write `packet`, or `shorter` where the client takes no packet of that size.

        [MQTT-3.2.2-19] [MQTT-3.14.2-3], and there is no other property [MQTT-3.2.2-20] [MQTT-3.14.2-2] [MQTT-3.14.2-4].
        """
        said = encode(packet, self.version)
        if self._answer_bytes_max and len(said) > self._answer_bytes_max:
            said = encode(shorter, self.version)
        self.output.append(said)

    def _write(self, packet: Any) -> None:
        self.output.append(encode(packet, self.version))


def refusal(reason: int) -> int:
    """Return the reason as a CONNACK may carry it; what only a DISCONNECT can say becomes SERVER_UNAVAILABLE."""
    return reason if reason in PACKET_REASONS[PacketType.CONNACK] else int(Reason.SERVER_UNAVAILABLE)


_HANDLERS: Final[dict[type, Callable[[Connection, Any], None]]] = {
    Subscribe: Connection._subscribe,
    Unsubscribe: Connection._unsubscribe,
    Pingreq: Connection._ping,
    Disconnect: Connection._disconnect,
    Auth: Connection._auth,
}
