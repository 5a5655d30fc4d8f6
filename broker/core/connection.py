"""A connection: the MQTT of one client, on the listener's side of the node.

It owns what dies with the socket: the bytes of a packet that has not wholly arrived, the protocol
version, keep-alive, and how many of the client's PUBLISHes wait for their acknowledgement. It knows
no socket and no event loop: it is given bytes and the time, appends records for the owner to the
listener's batch, and leaves bytes for the client in `output`.

Theory of operation
-------------------
    WAITING    nothing but a CONNECT is accepted, of a limited size, within the connect timeout
    AUTHENTICATING  an exchange of AUTH packets goes on, within the connect timeout [MQTT-4.12.0-1]
    ATTACHING  the owner was asked for the session; later packets are held back until it answers
    ATTACHED   packets become records, the owner's records become packets
    CLOSED     nothing more is read; the shell writes `output` and closes the socket

A fault of the client is a ProtocolError: MQTT 5 is told the reason in a DISCONNECT (a CONNACK before
it is attached), MQTT 3 sees the connection close.
"""

from collections.abc import Callable
from typing import Any, Final, final

from mypy_extensions import i64

from broker.core.authentication import CONTINUE, FAILURE, Authenticator, Exchange
from broker.core.client_window import ClientWindow
from broker.core.connection_limits import RECEIVE_MAXIMUM_MAX, ConnectGate, ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.core.events import CONNECTION_LOST, REFUSED_TOPIC, Attach
from broker.core.inflight import AHEAD_MAX
from broker.core.listener_records import ListenerBatch
from broker.core.owner_records import Answer
from broker.core.records import PUBACK, PUBCOMP, PUBREC, PUBREL
from broker.core.subscription import NO_LOCAL, RETAIN_AS_PUBLISHED, RETAIN_HANDLING_SHIFT
from broker.core.topic_aliases import ClientAliases, OwnAliases
from broker.core.will import Will
from broker.mqtt.codec import decode, decode_ack, decode_publish, encode, encode_ack, is_utf8, split
from broker.mqtt.framing import STRING_BYTES_MAX
from broker.mqtt.packets import (
    PACKET_REASONS,
    Auth,
    Connack,
    Connect,
    Disconnect,
    PacketType,
    Pingreq,
    Pingresp,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties, Property, encode_properties, int_property
from broker.mqtt.reasons import ProtocolError, Reason
from broker.mqtt.topics import SHARE_PREFIX, mount_prefix, mounted, shared_group

WAITING: Final = 0
ATTACHING: Final = 1
ATTACHED: Final = 2
CLOSED: Final = 3
AUTHENTICATING: Final = 4

# MQTT 3 has no Receive Maximum: a client that sends QoS 1 on and on without an acknowledgement is not read.
UNACKNOWLEDGED_MAX: Final = 512
# However small its packets are, a client gets no more of them worked off before the others have their turn.
PACKETS_PER_TURN: Final = 1024
# [MQTT-3.1.2-22] Only whole packets are signs of life, but a large one over a slow line must be let through.
SIGN_OF_LIFE_BYTES: Final = 1000
_TYPE_CONNECT: Final = 1
_TYPE_PUBLISH: Final = 3
# How the body of an MQTT 5 CONNECT begins.
_CONNECT_5: Final = b"\x00\x04MQTT\x05"
_LENGTH_BYTES_MAX: Final = 4
_SUCCESS: Final = 0
_FAILURE: Final = 0x80
_BRIDGE_BIT: Final = 0x80
# By itself a filter of a topic that no client can publish to: whoever asks for it forgot the group and the filter.
_SHARE: Final = SHARE_PREFIX[:-1]

_FORWARDED: Final = (
    Property.PAYLOAD_FORMAT_INDICATOR,
    Property.CONTENT_TYPE,
    Property.RESPONSE_TOPIC,
    Property.CORRELATION_DATA,
    Property.USER_PROPERTY,
)


@final
class Connection:
    """One client connection. `want_read` says whether the shell should go on reading its socket."""

    __slots__ = (
        "_answer_bytes_max",
        "_assigned_client_id",
        "_authentication_data",
        "_authenticator",
        "_batch",
        "_bridge",
        "_chunks",
        "_client_aliases",
        "_connect_packet",
        "_counters",
        "_exchange",
        "_gate",
        "_held_bytes",
        "_limits",
        "_mount",
        "_mountpoint",
        "_needed_bytes",
        "_published",
        "_quota_used",
        "_server_keep_alive",
        "_session_expiry_s",
        "_throttled",
        "_throttled_before",
        "_topic_bytes_free",
        "_topic_bytes_max",
        "_topics_refused",
        "_unacknowledged",
        "_unfinished_bytes",
        "_user_name",
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
        # Client ids and topics of another mountpoint are others, though they are written alike.
        self._mountpoint = mountpoint
        self._mount = mount_prefix(mountpoint)
        # With the prefix a topic is still one of MQTT's.
        self._topic_bytes_max: int = min(limits.topic_bytes_max, STRING_BYTES_MAX - len(self._mount))
        # A topic of so few bytes is within both limits: it has one level more than separators at most.
        self._topic_bytes_free: int = min(self._topic_bytes_max, limits.topic_levels_max - 1)
        self._topics_refused = False
        # The authentication in progress, and the CONNECT that named its method.
        self._exchange: Exchange | None = None
        self._connect_packet: Connect | None = None
        self._authentication_data = b""
        self._user_name = ""
        self._chunks: list[bytes] = []
        self._held_bytes: int = 0
        self._needed_bytes: int = 0
        self._unacknowledged: int = 0
        # Bytes of a packet that is not whole yet, since the client was last taken for alive.
        self._unfinished_bytes: int = 0
        # QoS 1 and 2 PUBLISHes of the client that are not wholly acknowledged.
        self._quota_used: int = 0
        # PUBLISHes in the present second, and whether they were too many.
        self._published: int = 0
        self._throttled = False
        self._throttled_before = False
        # Aliases last as long as the connection [MQTT-3.3.2-7].
        self._client_aliases = ClientAliases(limits.topic_alias_max_client)
        # None when the client takes none, or none are to be set.
        self.own_aliases: OwnAliases | None = None
        self._bridge = False
        self._server_keep_alive = False
        self._session_expiry_s: int = 0
        self._assigned_client_id = ""
        self._answer_bytes_max: int = 0

    def receive_data(self, data: bytes, now: float, make_client_id: Callable[[], str]) -> None:
        """Work off bytes from the client. `make_client_id` names a client that has no id of its own."""
        if self.state == CLOSED:
            return
        self.has_more = False
        if self.state == ATTACHED:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes >= SIGN_OF_LIFE_BYTES:
                self._heard(now)
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
            if self._parse(data, make_client_id):
                self._heard(now)
        except ProtocolError as error:
            if self.state == WAITING and begins_as_mqtt_5(data):
                # [MQTT-4.13.1-1] Whatever is wrong with the rest, MQTT 5 is told in a CONNACK. [MQTT311-3.1.4-1] MQTT 3
                # is not: its return codes are for a CONNECT that is well-formed, also those of a client id ("correct
                # UTF-8 but not allowed") and of a user name.
                self.version = 5
            self._counters.fault(error.reason)
            self.close(error.reason, error.text)

    def _heard(self, now: float) -> None:
        self.last_received = now
        self._unfinished_bytes = 0

    def _hold(self, rest: bytes, needed_bytes: int) -> None:
        """Keep what can't be worked off yet; `needed_bytes` are the whole packet's, 0 when not known."""
        if rest:
            self._chunks.append(rest)
            self._held_bytes = len(rest)
        self._needed_bytes = needed_bytes

    def _parse(self, data: bytes, make_client_id: Callable[[], str]) -> bool:
        """Take every packet that is whole; true when there was one that counts for the keep-alive."""
        pos: i64 = 0
        size: i64 = len(data)
        packet_bytes_max: i64 = self._limits.packet_bytes_max
        packets: i64 = 0
        while pos < size:
            if packets == PACKETS_PER_TURN:
                self._hold(data[pos:], 0)
                self.has_more = True
                break
            packets += 1
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
                self._hold(data[pos:], int(end - pos) if end else 0)
                break
            if self.state != ATTACHED:
                # The time for a CONNECT runs from the beginning, however busily its bytes trickle in.
                self._greet(data, first, start, end, make_client_id)
                if self.state != AUTHENTICATING:
                    self._hold(data[end:], 0)
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
        if self.state == AUTHENTICATING:
            packet = decode(data, int(first), int(start), int(end), self.version)
            if isinstance(packet, Auth):
                self._authenticate(packet)
            elif isinstance(packet, Disconnect):
                self.state = CLOSED
                self.want_read = False
            else:
                # [MQTT-3.1.2-30] Nothing but AUTH and DISCONNECT before the CONNACK.
                raise ProtocolError(Reason.PROTOCOL_ERROR, "only AUTH goes on with an authentication")
            return
        assert self.state == WAITING
        self._connect(decode(data, int(first), int(start), int(end), 0), make_client_id)

    def _connect(self, packet: Any, make_client_id: Callable[[], str]) -> None:
        assert isinstance(packet, Connect)
        self.version = packet.version
        self._bridge = packet.bridge
        limits = self._limits
        properties = packet.properties
        self._answer_bytes_max = int_property(properties, Property.MAXIMUM_PACKET_SIZE, 0)
        if packet.version | (_BRIDGE_BIT if packet.bridge else 0) not in limits.protocol_versions:
            self.close(Reason.UNSUPPORTED_PROTOCOL_VERSION, "this protocol version is not served here")
            return
        if not self._gate.admit():
            self.close(Reason.CONNECTION_RATE_EXCEEDED, "")
            return
        if len(packet.client_id.encode()) > limits.client_id_bytes_max:
            # [MQTT-3.1.3-8] [MQTT-3.1.4-2] [MQTT311-3.1.3-9]
            self.close(Reason.CLIENT_IDENTIFIER_NOT_VALID, f"client id over {limits.client_id_bytes_max} bytes")
            return
        if not packet.client_id:
            # [MQTT311-3.1.3-8] [MQTT311-3.1.3-7] Without an id there is nothing to find a stored session by; MQTT 3.1
            # has no empty one.
            if packet.version == 3 or (packet.version == 4 and not packet.clean_start):
                self.close(Reason.CLIENT_IDENTIFIER_NOT_VALID, "an empty client id needs a clean session")
                return
            # [MQTT-3.1.3-6] [MQTT311-3.1.3-6]
            self._assigned_client_id = make_client_id()
        self.client_id = packet.client_id or self._assigned_client_id
        if self._mountpoint:
            self.client_id = f"{self._mountpoint}\0{self.client_id}"
        self.keep_alive_s = packet.keep_alive_s
        if limits.keep_alive_s_max and not 0 < packet.keep_alive_s <= limits.keep_alive_s_max:
            # MQTT 5 is told [MQTT-3.2.2-21]; for MQTT 3 the limit holds all the same.
            self.keep_alive_s = limits.keep_alive_s_max
            self._server_keep_alive = True
        aliases_max = min(int_property(properties, Property.TOPIC_ALIAS_MAXIMUM, 0), limits.topic_alias_max_broker)
        if aliases_max:
            self.own_aliases = OwnAliases(aliases_max, self._answer_bytes_max)
        if packet.version == 5:
            self._session_expiry_s = int_property(properties, Property.SESSION_EXPIRY_INTERVAL, 0)
        else:
            self._session_expiry_s = 0 if packet.clean_start else limits.persistent_client_expiration_s
        if Property.AUTHENTICATION_METHOD in properties:
            self._connect_packet = packet
            self._begin_authentication(properties)
        else:
            self._attach(packet, packet.user_name)

    def _attach(self, packet: Connect, user_name: str | None) -> None:
        """Ask the owner for the session."""
        will = self._will(packet)
        self.state = ATTACHING
        self.want_read = False
        self._batch.attach(
            Attach(
                self.number,
                self.client_id,
                packet.version,
                packet.clean_start,
                self._session_expiry_s,
                int_property(packet.properties, Property.RECEIVE_MAXIMUM, RECEIVE_MAXIMUM_MAX),
                self._answer_bytes_max,
                user_name,
                will,
            )
        )

    # Enhanced authentication.

    def _begin_authentication(self, properties: Properties) -> None:
        """Begin the exchange that a CONNECT, or an AUTH that authenticates again, asks for."""
        method = str(properties[Property.AUTHENTICATION_METHOD])
        self._exchange = self._authenticator.begin(method)
        if self._exchange is None:
            self.close(Reason.BAD_AUTHENTICATION_METHOD, "the authentication method is not served")
            return
        if self.state == WAITING:
            self.state = AUTHENTICATING
        self._step(properties)

    def _authenticate(self, packet: Auth) -> None:
        """Take an AUTH: the next step of an exchange, or the first of another."""
        connect = self._connect_packet
        method = packet.properties.get(Property.AUTHENTICATION_METHOD)
        if connect is None or method != connect.properties[Property.AUTHENTICATION_METHOD]:
            # [MQTT-4.12.0-5] [MQTT-4.12.0-7] [MQTT-4.12.1-1] The method is the CONNECT's, and there is one.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH with another method than the CONNECT")
        if packet.reason == Reason.REAUTHENTICATE and self.state == ATTACHED and self._exchange is None:
            self._begin_authentication(packet.properties)
        elif packet.reason == Reason.CONTINUE_AUTHENTICATION and self._exchange is not None:  # [MQTT-4.12.0-3]
            self._step(packet.properties)
        else:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH with a reason that is not in turn")

    def _step(self, properties: Properties) -> None:
        exchange, connect = self._exchange, self._connect_packet
        assert exchange is not None and connect is not None
        data = properties.get(Property.AUTHENTICATION_DATA, b"")
        assert isinstance(data, bytes)
        step = exchange.receive(data)
        if step.outcome == CONTINUE:
            # [MQTT-4.12.0-2] [MQTT-3.15.2-1]
            self._write(Auth(Reason.CONTINUE_AUTHENTICATION, self._authentication(step.data)))
            return
        self._exchange = None
        if step.outcome == FAILURE:
            # [MQTT-4.12.0-4] [MQTT-4.12.1-2] A CONNACK before it is attached, then a DISCONNECT.
            self.close(step.reason, "authentication failed")
        elif self.state == ATTACHED and step.user_name != self._user_name:
            # The session is somebody's, and stays that client's.
            self.close(Reason.NOT_AUTHORIZED, "authenticated as somebody else")
        elif self.state == ATTACHED:
            self._write(Auth(Reason.SUCCESS, self._authentication(step.data)))
        else:
            self._user_name = step.user_name
            self._authentication_data = step.data
            self._attach(connect, step.user_name)

    def _authentication(self, data: bytes) -> Properties:
        """The properties that say the method, and what it has to say.

        There is no Reason String and no User Property [MQTT-3.15.2-2] [MQTT-3.15.2-3].
        """
        assert self._connect_packet is not None
        method = self._connect_packet.properties[Property.AUTHENTICATION_METHOD]
        properties: Properties = {Property.AUTHENTICATION_METHOD: method}
        if data:
            properties[Property.AUTHENTICATION_DATA] = data
        return properties

    # Publishing and subscribing.

    def _will(self, packet: Connect) -> Will | None:
        will = packet.will
        if will is None:
            return None
        if self._is_over_a_limit(will.topic):
            raise ProtocolError(Reason.TOPIC_NAME_INVALID, "the will's topic has too many levels or bytes")
        # [MQTT-3.1.3-10] User properties are one value, in their order.
        forwarded: Properties = {name: will.properties[name] for name in _FORWARDED if name in will.properties}
        return Will(
            self._mount + will.topic,
            will.payload,
            encode_properties(forwarded),
            will.qos,
            will.retain,
            int_property(will.properties, Property.WILL_DELAY_INTERVAL, 0),
            int_property(will.properties, Property.MESSAGE_EXPIRY_INTERVAL, -1),
        )

    def _publish(self, packet: Publish) -> None:
        qos: i64 = packet.qos
        limits = self._limits
        topic = packet.topic
        properties = b""
        expiry_s: i64 = -1
        if packet.properties:
            expiry_s = int_property(packet.properties, Property.MESSAGE_EXPIRY_INTERVAL, -1)
            alias = int_property(packet.properties, Property.TOPIC_ALIAS, 0)
            if alias:
                topic = self._client_aliases.resolve(alias, topic)
            properties = self._forwarded_properties(packet)
        if qos:
            if self.version == 5:
                # [MQTT-3.3.4-7] More under way than the CONNACK allowed.
                if self._quota_used >= limits.receive_max:
                    raise ProtocolError(Reason.RECEIVE_MAXIMUM_EXCEEDED, "more PUBLISHes than Receive Maximum allows")
                self._quota_used += 1
            if qos == 1:
                self._unacknowledged += 1
        self._published += 1
        self._counters.mqtt_publish_bytes_received += len(packet.payload)
        if self._unacknowledged >= UNACKNOWLEDGED_MAX or (
            limits.messages_per_s_max and self._published >= limits.messages_per_s_max
        ):
            self._stop_reading()
        if len(topic) > self._topic_bytes_free and self._is_over_a_limit(topic):
            self._refuse(packet.packet_id, qos)
            return
        self._batch.publish(
            self.number,
            packet.packet_id,
            qos,
            packet.retain,
            self._mount + topic if self._mount else topic,
            properties,
            packet.payload,
            expiry_s,
        )

    def _refuse(self, packet_id: i64, qos: i64) -> None:
        """Let the owner answer in its turn a PUBLISH to a topic that is over a limit.

        The topic is well-formed, so it is no fault to close for: MQTT 5 is told in the acknowledgement, MQTT 3 is
        acknowledged [MQTT311-3.3.5-2].
        """
        if not self._topics_refused and not self.notice:
            self._topics_refused = True
            limits = self._limits
            self.notice = (
                f"client {self.client_id!r} publishes to topics of more than {limits.topic_levels_max} levels or "
                f"{self._topic_bytes_max} bytes: they are dropped"
            )
        self._batch.publish(self.number, packet_id, qos, False, REFUSED_TOPIC, b"", b"", -1)

    def _is_over_a_limit(self, topic: bytes) -> bool:
        """Say whether a topic or filter is longer or deeper than it may be."""
        return len(topic) > self._topic_bytes_max or topic.count(b"/") >= self._limits.topic_levels_max

    def _stop_reading(self) -> None:
        """The client publishes faster than it may: TCP tells it so."""
        self._counters.client_read_paused += 1
        self.want_read = False
        if self._unacknowledged < UNACKNOWLEDGED_MAX:
            if not self._throttled_before:
                self._throttled_before = True
                limit = self._limits.messages_per_s_max
                self.notice = f"client {self.client_id!r} publishes more than {limit} messages a second: it has to wait"
            self._throttled = True

    def _forwarded_properties(self, packet: Publish) -> bytes:
        properties = packet.properties
        if Property.SUBSCRIPTION_IDENTIFIER in properties:
            # [MQTT-3.3.4-6] A client's PUBLISH has none.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "PUBLISH with a subscription identifier")
        said_to_be_utf8 = int_property(properties, Property.PAYLOAD_FORMAT_INDICATOR, 0) == 1
        if self._limits.check_payload_format and said_to_be_utf8 and not is_utf8(packet.payload):
            raise ProtocolError(Reason.PAYLOAD_FORMAT_INVALID, "the payload is not the UTF-8 that it says to be")
        # [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-20] go on unaltered.
        forwarded: Properties = {name: properties[name] for name in _FORWARDED if name in properties}
        return encode_properties(forwarded)

    def _subscribe(self, packet: Subscribe) -> None:
        requests: list[tuple[bytes, int]] = []
        for request in packet.filters:
            topic_filter = request.topic_filter
            shared = shared_group(topic_filter)
            if (
                len(topic_filter) > self._topic_bytes_max
                or self._is_over_a_limit(topic_filter if shared is None else shared[1])
                or topic_filter == _SHARE
            ):
                # Well-formed, and not for this client [MQTT-3.9.3-2] [MQTT311-3.9.3-2].
                requests.append((topic_filter, int(Reason.TOPIC_FILTER_INVALID)))
                continue
            options = request.qos | request.retain_handling << RETAIN_HANDLING_SHIFT
            # A bridge wants flags as they were published, and not its own messages back.
            if request.no_local or self._bridge:
                options |= NO_LOCAL
            if request.retain_as_published or self._bridge:
                options |= RETAIN_AS_PUBLISHED
            requests.append((topic_filter, options))
        identifier = int_property(packet.properties, Property.SUBSCRIPTION_IDENTIFIER, 0)
        if self._mount:
            requests = [(mounted(topic_filter, self._mount), options) for topic_filter, options in requests]
        self._batch.subscribe(self.number, packet.packet_id, identifier, requests)

    def _unsubscribe(self, packet: Unsubscribe) -> None:
        filters = [mounted(topic_filter, self._mount) for topic_filter in packet.filters]
        self._batch.unsubscribe(self.number, packet.packet_id, filters)

    def _ping(self, packet: Any) -> None:
        self._write(Pingresp())  # [MQTT-3.12.4-1] [MQTT311-3.12.4-1]

    def _disconnect(self, packet: Disconnect) -> None:
        # [MQTT-3.14.4-1] [MQTT-3.14.4-2]
        expiry_s = int_property(packet.properties, Property.SESSION_EXPIRY_INTERVAL, -1)
        if expiry_s > 0 and self._session_expiry_s == 0:
            # Section 3.14.2.2.2: a session that was to end with the connection can't be prolonged.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "session expiry interval of a session that ends now")
        self._batch.detach(self.number, packet.reason, expiry_s, self._unsent())
        self.state = CLOSED
        self.want_read = False

    def _auth(self, packet: Auth) -> None:
        self._authenticate(packet)

    def _unexpected(self, packet: Any) -> None:
        raise ProtocolError(Reason.PROTOCOL_ERROR, f"{type(packet).__name__} is not for a client to send now")

    # From the owner.

    def receive_connack(self, answer: Answer, make_client_id: Callable[[], str]) -> None:
        """The owner attached the session, or refused to; then go on with what was held back."""
        if self.state != ATTACHING:  # [MQTT-3.2.0-2]
            return
        if answer.reason:
            self.close(answer.reason, "")
            return
        properties: Properties = {}
        if self.version == 5:
            properties = self._capabilities()
            if self._connect_packet is not None:
                # [MQTT-4.12.0-5] The CONNACK says the method, and the last of what it has to say.
                properties.update(self._authentication(self._authentication_data))
        # [MQTT-3.1.4-5] [MQTT-3.2.0-1] [MQTT311-3.1.4-4] [MQTT311-3.2.0-1]
        self._write(Connack(answer.session_present, 0, properties))
        if not self._is_attaching():
            return
        self._counters.connacks[_SUCCESS] += 1
        if answer.window < AHEAD_MAX:
            self.window = ClientWindow(answer.window)
        self.state = ATTACHED
        self.want_read = True
        if self._chunks:
            # [MQTT-3.1.4-6] [MQTT311-3.1.4-5] What was held back is worked off only from here on.
            data = b"".join(self._chunks)
            self._chunks = []
            self._held_bytes = 0
            try:
                self._parse(data, make_client_id)
            except ProtocolError as error:
                self._counters.fault(error.reason)
                self.close(error.reason, error.text)

    def _is_attaching(self) -> bool:
        """Say whether writing a packet has not closed the connection."""
        return self.state == ATTACHING

    def _capabilities(self) -> Properties:
        """What this side's limits are, as far as they are not MQTT's own.

        There is never Response Information [MQTT-3.1.2-28], and a method only for who named one [MQTT-4.12.0-6].
        """
        limits = self._limits
        properties: Properties = {}
        if limits.receive_max < RECEIVE_MAXIMUM_MAX:
            properties[Property.RECEIVE_MAXIMUM] = limits.receive_max
        if limits.packet_bytes_max:
            properties[Property.MAXIMUM_PACKET_SIZE] = limits.packet_bytes_max  # [MQTT-3.2.2-15]
        if self._assigned_client_id:
            # [MQTT-3.1.3-7] [MQTT-3.2.2-16]
            properties[Property.ASSIGNED_CLIENT_IDENTIFIER] = self._assigned_client_id
        if limits.topic_alias_max_client:
            properties[Property.TOPIC_ALIAS_MAXIMUM] = limits.topic_alias_max_client
        if self._server_keep_alive:
            # [MQTT-3.2.2-21] Without it, the client's own counts [MQTT-3.2.2-22].
            properties[Property.SERVER_KEEP_ALIVE] = self.keep_alive_s
        return properties

    def send_publish(self, packet: bytes, payload_bytes: int) -> None:
        """Send an encoded PUBLISH, which its window has room for."""
        self.output.append(packet)
        self._counters.publishes_sent += 1
        self._counters.mqtt_publish_bytes_sent += payload_bytes

    def receive_acknowledgement(self, answer: Answer) -> None:
        """The owner took responsibility for a PUBLISH or refused it, or goes on with a QoS 2 exchange."""
        kind = answer.kind
        if kind == PUBACK:
            self._unacknowledged -= 1
            if self._unacknowledged < UNACKNOWLEDGED_MAX and self.state == ATTACHED and not self._throttled:
                self.want_read = True
        if kind in (PUBACK, PUBCOMP) or (kind == PUBREC and answer.reason >= _FAILURE):
            # [MQTT-4.9.0-2] The client may have one more under way.
            self._quota_used = max(0, self._quota_used - 1)
        # [MQTT-2.2.1-5] [MQTT-4.3.2-4] [MQTT311-2.3.1-6] [MQTT311-4.3.2-2], and no property: [MQTT-3.1.2-29]
        # [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2]
        # [MQTT-3.7.2-3].
        reason = answer.reason if self.version == 5 else _SUCCESS
        if kind == PUBREL and self.window is not None:
            self.window.released(answer.packet_id)
        self._append(encode_ack(kind, answer.packet_id, reason, b"", self.version))

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
        """Close what has been silent for too long, and begin a new second; call it about once in one."""
        silent_s = now - self.last_received
        self._published = 0
        if self._throttled and self.state == ATTACHED:
            self._throttled = False
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
        self.state = CLOSED

    def _unsent(self) -> list[int]:
        return [] if self.window is None else self.window.unsent()

    def close(self, reason: int, text: str, owner_knows: bool = False) -> None:
        """End the connection with a word to the client where its version has one for it.

        Closing is what every failure has in common: [MQTT-3.2.2-7] [MQTT-4.13.1-1] [MQTT-4.13.2-1] [MQTT311-3.2.2-5].
        """
        if self.state == CLOSED:
            return
        state = self.state
        if not owner_knows:
            # That this side stops is no fault of the client's: its will is given more time.
            self.lost(reason if reason == Reason.SERVER_SHUTTING_DOWN else CONNECTION_LOST)
        self.state = CLOSED
        self.want_read = False
        if state != ATTACHED:
            self._counters.connacks[refusal(reason)] += 1
        if self.version == 5:
            properties: Properties = {Property.REASON_STRING: text} if text else {}
            if state == ATTACHED:  # [MQTT-3.14.0-1]
                self._say(Disconnect(reason, properties), Disconnect(reason, NO_PROPERTIES))
            else:
                refused = refusal(reason)
                self._say(Connack(False, refused, properties), Connack(False, refused, NO_PROPERTIES))
        elif state == ATTACHED:
            # [MQTT311-4.8.0-1] Closing is all there is to say.
            pass
        elif self.version in (3, 4):
            self._write(Connack(False, refusal(reason), NO_PROPERTIES))
        elif reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            # [MQTT-3.1.2-2] [MQTT311-3.1.2-2] An unknown version is answered in the form that most know.
            self.version = 4
            self._write(Connack(False, reason, NO_PROPERTIES))
        # [MQTT311-3.2.2-6] There is no return code for anything else.

    def _say(self, packet: Any, shorter: Any) -> None:
        """Write `packet`, or `shorter` where the client takes no packet of that size.

        [MQTT-3.2.2-19] [MQTT-3.14.2-3], and there is no other property [MQTT-3.2.2-20] [MQTT-3.14.2-2] [MQTT-3.14.2-4].
        """
        said = encode(packet, self.version)
        if self._answer_bytes_max and len(said) > self._answer_bytes_max:
            said = encode(shorter, self.version)
        self._append(said)

    def _write(self, packet: Any) -> None:
        self._append(encode(packet, self.version))

    def _append(self, said: bytes) -> None:
        if self._answer_bytes_max and len(said) > self._answer_bytes_max:
            # [MQTT-3.1.2-24] It can't be said. Without it the client would wait for ever: that is the end.
            if self.state != CLOSED:
                self.close(Reason.PACKET_TOO_LARGE, "")
            return
        self._counters.sent[said[0] >> 4] += 1
        self.answer_bytes += len(said)
        self.output.append(said)


def begins_as_mqtt_5(data: bytes) -> bool:
    """Say whether the first packet of a client is a CONNECT of MQTT 5, even if it ends before it is whole."""
    size: i64 = len(data)
    if size == 0 or data[0] >> 4 != _TYPE_CONNECT:
        return False
    # The remaining length.
    at: i64 = 1
    while at < size and at < _LENGTH_BYTES_MAX and data[at] & 0x80:
        at += 1
    at += 1
    return data[at : at + len(_CONNECT_5)] == _CONNECT_5


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
