"""A connection: the MQTT of one client, on the listener's side of the node.

It owns what dies with the socket: the state, the protocol version, keep-alive, and its parts, which know nothing of it:
the bytes held back, the greeting, an authentication, what the client may publish, and its topics. It knows no socket
and no event loop: it is given bytes and the time, appends records for the owner to the listener's batch, and leaves
bytes for the client in `output`.

Theory of operation
-------------------
    WAITING         nothing but a CONNECT is accepted, of a limited size, within the connect timeout
    AUTHENTICATING  an exchange of AUTH packets goes on, within the connect timeout [MQTT-4.12.0-1]
    ATTACHING       the owner was asked for the session; later packets are held back until it answers
    ATTACHED        packets become records, the owner's records become packets
    CLOSED          nothing more is read; the shell writes `output` and closes the socket

A fault of the client is a ProtocolError: MQTT 5 is told the reason in a DISCONNECT (a CONNACK before it is attached),
MQTT 3 sees the connection close.
"""

from collections.abc import Callable
from typing import Any, Final, final

from mypy_extensions import i64

from broker.core.answers import encode_answer
from broker.core.authentication import CONTINUE, FAILURE, Authenticator, Step
from broker.core.client_authentication import ClientAuthentication
from broker.core.client_publishing import ClientPublishing
from broker.core.client_topics import ClientTopics
from broker.core.client_window import ClientWindow
from broker.core.connection_limits import ConnectGate, ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.core.events import CONNECTION_LOST, REFUSED_TOPIC
from broker.core.farewell import farewell, refusal
from broker.core.greeting import Greeting, begins_as_mqtt_5, why_refused
from broker.core.inflight import AHEAD_MAX
from broker.core.listener_records import ListenerBatch
from broker.core.owner_records import Answer
from broker.core.packet_buffer import PacketBuffer
from broker.core.records import PUBACK, PUBCOMP, PUBREC, PUBREL
from broker.core.topic_aliases import OwnAliases
from broker.mqtt import packets
from broker.mqtt.codec import decode, decode_ack, decode_publish, encode, split
from broker.mqtt.properties import Property, int_property
from broker.mqtt.reasons import ProtocolError, Reason

WAITING: Final = 0
ATTACHING: Final = 1
ATTACHED: Final = 2
CLOSED: Final = 3
AUTHENTICATING: Final = 4

# However small its packets are, a client gets no more of them worked off before the others have their turn.
PACKETS_PER_TURN: Final = 1024
# [MQTT-3.1.2-22] Only whole packets are signs of life, but a large one over a slow line must be let through.
SIGN_OF_LIFE_BYTES: Final = 1000
_TYPE_CONNECT: Final = 1
_TYPE_PUBLISH: Final = 3
_FAILURE: Final = 0x80


@final
class Connection:
    """One client connection. `want_read` says whether the shell should go on reading its socket."""

    __slots__ = (
        "_answer_bytes_max",
        "_authentication",
        "_authenticator",
        "_batch",
        "_buffer",
        "_counters",
        "_gate",
        "_greeting",
        "_is_full",
        "_limits",
        "_publishing",
        "_session_expiry_s",
        "_topics",
        "_unfinished_bytes",
        "answer_bytes",
        "client_id",
        "dirty",
        "has_more",
        "keep_alive_s",
        "last_received",
        "notice",
        "number",
        "output",
        "own_aliases",
        "said_at",
        "said_bytes",
        "state",
        "version",
        "waits_for_turn",
        "want_read",
        "window",
    )

    def __init__(
        self,
        number: int,
        batch: ListenerBatch,
        limits: ConnectionLimits,
        gate: ConnectGate,
        counters: ListenerCounters,
        authenticator: Authenticator,
        mountpoint: str,
        now: float,
    ) -> None:
        self.number = number
        self.version: int = 0
        self.state: int = WAITING
        self.client_id: str = ""
        self.keep_alive_s: int = 0
        self.last_received = now
        self.output: list[bytes] = []
        # What the client was answered, for the shell to set to 0 and look at.
        self.answer_bytes: int = 0
        self.dirty = False
        # Whether packets are held back until the others have had their turn, and whether the client has to wait for
        # that; see ListenerCore.
        self.has_more = False
        self.waits_for_turn = False
        # How much the client has said of late, for ListenerCore to tell the modest from others.
        self.said_bytes: float = 0.0
        self.said_at: float = now
        # What an operator should read in the log of this connection; whoever logs it takes it.
        self.notice = ""
        self.want_read = True
        # None when the owner never hands over more than the client may have.
        self.window: ClientWindow | None = None
        self._batch = batch
        self._limits = limits
        self._gate = gate
        self._counters = counters
        self._authenticator = authenticator
        self._topics = ClientTopics(limits, mountpoint)
        # Whether a subscription was refused because there are too many.
        self._is_full = False
        # From the CONNECT to the CONNACK.
        self._greeting: Greeting | None = None
        # None when the CONNECT named no method.
        self._authentication: ClientAuthentication | None = None
        # None when nothing is held back, which is nearly always.
        self._buffer: PacketBuffer | None = None
        # Bytes of a packet that is not whole yet, since the client was last taken for alive.
        self._unfinished_bytes: int = 0
        self._publishing = ClientPublishing(limits)
        # None when the client takes none, or none are to be set.
        self.own_aliases: OwnAliases | None = None
        self._session_expiry_s: int = 0
        self._answer_bytes_max: int = 0

    def receive_data(
        self, data: bytes, now: float, make_client_id: Callable[[], str], packets_max: i64 = PACKETS_PER_TURN
    ) -> None:
        """Work off bytes from the client. `make_client_id` names a client that has no id of its own."""
        if self.state == CLOSED:
            return
        self.has_more = False
        if self.state == ATTACHED:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes >= SIGN_OF_LIFE_BYTES:
                self._heard(now)
        if self._buffer is not None:
            if not self._buffer.add(data) or self.state == ATTACHING:
                return
            data = self._buffer.joined()
            self._buffer = None
        elif self.state == ATTACHING:
            self._buffer = PacketBuffer(data, 0)
            return
        if self._work_off(data, make_client_id, packets_max):
            self._heard(now)

    def _work_off(self, data: bytes, make_client_id: Callable[[], str], packets_max: i64 = PACKETS_PER_TURN) -> bool:
        """Take packets, and close for a fault; true when there was one that counts for the keep-alive."""
        try:
            return self._parse(data, make_client_id, packets_max)
        except ProtocolError as error:
            if self.state == WAITING and begins_as_mqtt_5(data):
                # [MQTT-4.13.1-1] Whatever is wrong with the rest, MQTT 5 is told in a CONNACK. [MQTT311-3.1.4-1] MQTT 3
                # is not: its return codes are for a CONNECT that is well-formed, also those of a client id ("correct
                # UTF-8 but not allowed") and of a user name.
                self.version = 5
            self._counters.fault(error.reason)
            if error.reason == Reason.PACKET_TOO_LARGE:
                self.notice = self.notice or self._too_large()
            self.close(error.reason, error.text)
            return False

    def _too_large(self) -> str:
        if self.state == ATTACHED:
            return f"client {self.client_id!r} sends a packet of more than {self._limits.packet_bytes_max} bytes"
        return f"a client that connects sends a packet of more than {self._limits.connect_bytes_max} bytes"

    def _heard(self, now: float) -> None:
        self.last_received = now
        self._unfinished_bytes = 0

    def _parse(self, data: bytes, make_client_id: Callable[[], str], packets_max: i64) -> bool:
        """Take every packet that is whole, as `_work_off` does."""
        pos: i64 = 0
        size: i64 = len(data)
        packet_bytes_max: i64 = self._limits.packet_bytes_max
        taken: i64 = 0
        while pos < size:
            if taken == packets_max:
                self._buffer = PacketBuffer(data[pos:], 0)
                self.has_more = True
                break
            taken += 1
            first: i64 = data[pos]
            if self.state == WAITING:
                # [MQTT-3.1.0-1] [MQTT311-3.1.0-1] The first packet is a CONNECT; anything else isn't worth a buffer.
                if first >> 4 != _TYPE_CONNECT:
                    raise ProtocolError(Reason.PROTOCOL_ERROR, "the first packet must be CONNECT")
                packet_bytes_max = self._limits.connect_bytes_max
            elif self.state == AUTHENTICATING:
                packet_bytes_max = self._limits.connect_bytes_max
            start, end = split(data, pos, packet_bytes_max)
            if end == 0 or end > size:
                self._buffer = PacketBuffer(data[pos:], int(end - pos) if end else 0)
                break
            if self.state != ATTACHED:
                # The time for a CONNECT runs from the beginning, however busily its bytes trickle in.
                self._greet(data, first, start, end, make_client_id)
                if self.state != AUTHENTICATING:
                    if end < size and self.state != CLOSED:
                        self._buffer = PacketBuffer(data[end:], 0)
                    return False
                pos = end
                continue
            if first >> 4 == _TYPE_CONNECT:
                # [MQTT-3.1.0-2] [MQTT311-3.1.0-2] A second CONNECT is a fault, whatever is in it.
                raise ProtocolError(Reason.PROTOCOL_ERROR, "CONNECT on a connection that has a session")
            if first >> 4 == _TYPE_PUBLISH:
                self._counters.publishes_received += 1
                self._publish(decode_publish(data, first, start, end, self.version))
            elif PUBACK <= first >> 4 <= PUBCOMP:
                self._counters.received[first >> 4] += 1
                packet_id, reason = decode_ack(data, first, start, end, self.version)
                self._acknowledged(first >> 4, packet_id, reason)
            else:
                self._counters.received[first >> 4] += 1
                packet = decode(data, int(first), int(start), int(end), self.version)
                _HANDLERS.get(type(packet), Connection._unexpected)(self, packet)
            if self.state == CLOSED:
                break
            pos = end
        return pos > 0 and self.state == ATTACHED

    # From the client.

    def _acknowledged(self, kind: i64, packet_id: i64, reason: i64) -> None:
        """Take a PUBACK, PUBREC, PUBREL or PUBCOMP."""
        window = self.window
        lazy = False
        if window is not None and kind != PUBREL and (kind != PUBREC or reason >= _FAILURE):
            for packet, payload_bytes in window.finished(int(packet_id)):
                self.send_publish(packet, payload_bytes)
            lazy = window.is_well_supplied()
        self._batch.acknowledge(kind, self.number, packet_id, reason, lazy)

    def _greet(self, data: bytes, first: i64, start: i64, end: i64, make_client_id: Callable[[], str]) -> None:
        """Take a packet before the session is attached."""
        self._counters.received[first >> 4] += 1
        if self.state == WAITING:
            self._connect(decode(data, int(first), int(start), int(end), 0), make_client_id)
            return
        packet = decode(data, int(first), int(start), int(end), self.version)
        if isinstance(packet, packets.Auth):
            self._authenticate(packet)
        elif isinstance(packet, packets.Disconnect):
            self._end()
        else:
            # [MQTT-3.1.2-30] Nothing but AUTH and DISCONNECT before the CONNACK.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "only AUTH goes on with an authentication")

    def _connect(self, packet: Any, make_client_id: Callable[[], str]) -> None:
        assert isinstance(packet, packets.Connect)
        self.version = packet.version
        self._topics.bridge = packet.bridge
        self._answer_bytes_max = int_property(packet.properties, Property.MAXIMUM_PACKET_SIZE, 0)
        reason, text = why_refused(packet, self._limits, self._gate)
        if reason:
            self.close(reason, text)
            return
        greeting = Greeting(packet, self._limits, self._topics.mountpoint, make_client_id)
        self._greeting = greeting
        self.client_id = greeting.client_id
        self.keep_alive_s = greeting.keep_alive_s
        self._session_expiry_s = greeting.session_expiry_s
        self.own_aliases = greeting.own_aliases()
        method = greeting.method()
        if method is None:
            self._attach(greeting, packet.user_name)
        else:
            self._authentication = ClientAuthentication(self._authenticator, method)
            self.state = AUTHENTICATING
            self._authenticated(self._authentication, self._authentication.begin(packet.properties))

    def _attach(self, greeting: Greeting, user_name: str | None) -> None:
        """Ask the owner for the session."""
        will = self._topics.will(greeting.connect.will)
        self.state = ATTACHING
        self.want_read = False
        self._batch.attach(greeting.attach(self.number, user_name, will))

    def _authenticate(self, packet: packets.Auth) -> None:
        authentication = self._authentication
        if authentication is None:
            # [MQTT-4.12.0-7]
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH without a method in the CONNECT")
        self._authenticated(authentication, authentication.receive(packet, self.state == ATTACHED))

    def _authenticated(self, authentication: ClientAuthentication, step: Step) -> None:
        """Say what came of a step of an authentication."""
        if step.outcome == FAILURE:
            # [MQTT-4.12.0-4] [MQTT-4.12.1-2] A CONNACK before it is attached, then a DISCONNECT.
            self.close(step.reason, "authentication failed")
            return
        properties = authentication.properties(step.data)
        if step.outcome == CONTINUE:
            # [MQTT-4.12.0-2] [MQTT-3.15.2-1]
            self._write(packets.Auth(Reason.CONTINUE_AUTHENTICATION, properties))
        elif self.state == ATTACHED:
            self._write(packets.Auth(Reason.SUCCESS, properties))
        else:
            assert self._greeting is not None
            self._greeting.authentication = properties
            self._attach(self._greeting, step.user_name)

    # Publishing and subscribing.

    def _publish(self, packet: packets.Publish) -> None:
        qos: i64 = packet.qos
        topic = packet.topic
        properties = b""
        expiry_s: i64 = -1
        if packet.properties:
            # [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]
            topic, properties, expiry_s = self._publishing.read_properties(packet)
        size: i64 = len(topic) + len(properties) + len(packet.payload)
        if self._publishing.count(packet.packet_id, qos, self.version, size):
            self._stop_reading()
        self._counters.mqtt_publish_bytes_received += len(packet.payload)
        topics = self._topics
        if len(topic) > topics.bytes_free and topics.are_exceeded(topic):
            self._refuse(packet.packet_id, qos)
            return
        self._batch.publish(
            self.number,
            packet.packet_id,
            qos,
            packet.retain,
            topics.prefix + topic if topics.prefix else topic,
            properties,
            packet.payload,
            expiry_s,
        )

    def _refuse(self, packet_id: i64, qos: i64) -> None:
        """Let the owner answer a PUBLISH to a topic over a limit: well-formed, it is no fault to close for."""
        self.notice = self.notice or self._topics.refuse(self.client_id)
        self._batch.publish(self.number, packet_id, qos, False, REFUSED_TOPIC, b"", b"", -1)

    def _stop_reading(self) -> None:
        """The client publishes faster than it may: TCP tells it so."""
        self._counters.client_read_paused += 1
        self.want_read = False
        self.notice = self._publishing.throttle(self.client_id) or self.notice

    def _subscribe(self, packet: packets.Subscribe) -> None:
        identifier = int_property(packet.properties, Property.SUBSCRIPTION_IDENTIFIER, 0)
        self._batch.subscribe(self.number, packet.packet_id, identifier, self._topics.requests(packet))
        if self._topics.refuses_filters:
            self.notice = self.notice or self._topics.refuse_filters(self.client_id)

    def _unsubscribe(self, packet: packets.Unsubscribe) -> None:
        self._batch.unsubscribe(self.number, packet.packet_id, self._topics.filters(packet))

    def _ping(self, packet: Any) -> None:
        self._write(packets.Pingresp())  # [MQTT-3.12.4-1] [MQTT311-3.12.4-1]

    def _disconnect(self, packet: packets.Disconnect) -> None:
        # [MQTT-3.14.4-1] [MQTT-3.14.4-2]
        expiry_s = int_property(packet.properties, Property.SESSION_EXPIRY_INTERVAL, -1)
        if expiry_s > 0 and self._session_expiry_s == 0:
            # Section 3.14.2.2.2: a session that was to end with the connection can't be prolonged.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "session expiry interval of a session that ends now")
        self._batch.detach(self.number, packet.reason, expiry_s, self._unsent())
        self._end()

    def _unexpected(self, packet: Any) -> None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"{type(packet).__name__} is not for a client to send now")

    # From the owner.

    def receive_connack(self, answer: Answer, make_client_id: Callable[[], str]) -> None:
        """The owner attached the session, or refused to; then go on with what was held back."""
        if self.state != ATTACHING:  # [MQTT-3.2.0-2]
            return
        if answer.reason:
            # [MQTT-3.2.2-19] As far as there is room, and whatever the client wants to know of problems.
            self.close(answer.reason, answer.text)
            return
        greeting = self._greeting
        assert greeting is not None
        self._greeting = None
        # [MQTT-3.1.4-5] [MQTT-3.2.0-1] [MQTT311-3.1.4-4] [MQTT311-3.2.0-1]
        if not self._write(packets.Connack(answer.session_present, 0, greeting.connack_properties())):
            return
        self._counters.connacks[Reason.SUCCESS] += 1
        if answer.window < AHEAD_MAX:
            self.window = ClientWindow(answer.window)
        self.state = ATTACHED
        self.want_read = True
        held, self._buffer = self._buffer, None
        if held is not None:
            # [MQTT-3.1.4-6] [MQTT311-3.1.4-5] What was held back is worked off only from here on.
            self._work_off(held.joined(), make_client_id)

    def send_publish(self, packet: bytes, payload_bytes: int) -> None:
        """Send an encoded PUBLISH, which its window has room for."""
        self.output.append(packet)
        self._counters.publishes_sent += 1
        self._counters.mqtt_publish_bytes_sent += payload_bytes

    def receive_acknowledgement(self, answer: Answer) -> None:
        """The owner took responsibility for a PUBLISH or refused it, or goes on with a QoS 2 exchange."""
        kind = answer.kind
        if self._publishing.acknowledged(kind, answer.packet_id, answer.reason) and self.state == ATTACHED:
            self.want_read = True
        if kind == PUBREL and self.window is not None:
            self.window.released(answer.packet_id)
        self._append(encode_answer(answer, self.version))

    def receive_suback(self, answer: Answer) -> None:
        """The owner subscribed."""
        if Reason.QUOTA_EXCEEDED in answer.reasons and not self._is_full:
            self._is_full = True
            self.notice = f"client {self.client_id!r} has all the subscriptions that it may have: more are refused"
        self._append(encode_answer(answer, self.version))

    def receive_unsuback(self, answer: Answer) -> None:
        """The owner unsubscribed."""
        self._append(encode_answer(answer, self.version))

    def tick(self, now: float) -> None:
        """Close what has been silent for too long, and begin a new second; call it about once in one."""
        silent_s = now - self.last_received
        if self._publishing.begin_second() and self.state == ATTACHED:
            self.want_read = True
        if self.state == ATTACHED:
            if not self.want_read or self.waits_for_turn:
                # What the client sends is not read: its silence is ours.
                self.last_received = now
            elif self.keep_alive_s and silent_s > self.keep_alive_s * 1.5:
                # [MQTT-3.1.2-22] [MQTT-3.2.2-22] [MQTT311-3.1.2-24] One and a half times; 0 turns it off.
                self._counters.fault(Reason.KEEP_ALIVE_TIMEOUT)
                self.close(Reason.KEEP_ALIVE_TIMEOUT, "")
        elif self.state in (WAITING, AUTHENTICATING) and silent_s > self._limits.connect_timeout_s:
            self._counters.socket_close_timeout += 1
            self.close(Reason.UNSPECIFIED_ERROR, "")
        elif self.state == ATTACHING and silent_s > self._limits.connect_timeout_s:
            self.close(Reason.SERVER_UNAVAILABLE, "")

    def lost(self, reason: int = CONNECTION_LOST) -> None:
        """The socket is closed, for that reason; the owner is told unless it knows already."""
        if self.state in (ATTACHING, ATTACHED):
            self._batch.detach(self.number, reason, -1, self._unsent())
        self._end()

    def _end(self) -> None:
        """Read nothing more, and keep nothing of what was read."""
        self.state = CLOSED
        self.want_read = False
        self.has_more = False
        self._buffer = None

    def _unsent(self) -> list[int]:
        return [] if self.window is None else self.window.unsent()

    def close(self, reason: int, text: str, owner_knows: bool = False, reference: str = "") -> None:
        """End the connection with a word to the client, and a server to use instead, where its version has one for it.

        Closing is what every failure has in common: [MQTT-3.2.2-7] [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT311-3.2.2-5].
        """
        if self.state == CLOSED:
            return
        state = self.state
        if owner_knows:
            self._end()
        else:
            # That this side stops is no fault of the client's: its will is given more time.
            self.lost(reason if reason == Reason.SERVER_SHUTTING_DOWN else CONNECTION_LOST)
        if state != ATTACHED:
            self._counters.connacks[refusal(reason)] += 1
        said = farewell(self.version, state == ATTACHED, reason, text, self._answer_bytes_max, reference)
        if said:
            # What hasn't said its version is answered as MQTT 3.1.1.
            self.version = self.version or 4
            self._append(said)

    def _write(self, packet: Any) -> bool:
        return self._append(encode(packet, self.version))

    def _append(self, said: bytes) -> bool:
        """Leave a packet for the client; false when it takes none of that size."""
        if self._answer_bytes_max and len(said) > self._answer_bytes_max:
            # [MQTT-3.1.2-24] It can't be said. Without it the client would wait for ever: that is the end.
            self.close(Reason.PACKET_TOO_LARGE, "")
            return False
        self._counters.sent[said[0] >> 4] += 1
        self.answer_bytes += len(said)
        self.output.append(said)
        return True


_HANDLERS: Final[dict[type, Callable[[Connection, Any], None]]] = {
    packets.Subscribe: Connection._subscribe,
    packets.Unsubscribe: Connection._unsubscribe,
    packets.Pingreq: Connection._ping,
    packets.Disconnect: Connection._disconnect,
    packets.Auth: Connection._authenticate,
}
