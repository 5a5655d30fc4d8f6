"""The listener's core: every connection of one listener process, and its end of the pipe to the owner.

It owns the connections, the batch of records that goes to the owner, and the credit in both
directions. The shell gives it bytes, frames and the time; it answers with bytes for clients (`take_dirty`)
and frames for the owner (`take_frame`), and says which sockets to read (`want_read`, `waits_for_turn`).

Turns
-----
What the clients of a listener say goes to the owner in one queue, so one that says a lot would have the others wait
behind all of it. Therefore a client that fills SHARE_BYTES at once, or has more than PACKETS_PER_TURN in what it sent,
is not read again before it gets another turn; turns go round, while no more than BUSY_BYTES are under way to the owner.
Others are read at any time, up to the whole window. Should they alone keep the owner busy, one turn is given every
TURN_WAIT_S all the same.

A client is modest while it says no more than MODEST_BYTES_PER_S, and somewhat more at once. For MODEST_S after one has
said something there is one turn in a PACE_S, and a turn of another client is of PACED_PACKETS: what modest ones say
finds nearly nothing in its way then, here and at the owner, and whoever floods does not take all of the processor's
time.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from broker.core.authentication import NO_METHODS, Authenticator
from broker.core.connection import ATTACHED, CLOSED, PACKETS_PER_TURN, Connection
from broker.core.connection_limits import ConnectGate, ConnectionLimits
from broker.core.counters import ListenerCounters, pack_counters
from broker.core.listener_notices import ListenerNotices
from broker.core.listener_records import ListenerBatch
from broker.core.owner_records import FRAME_BYTES_MAX, Answer, Deliver, OwnerHeader, unpack_owner_records
from broker.core.records import (
    CONNACK,
    DUP_FLAG,
    PUBACK,
    PUBCOMP,
    RETAIN_FLAG,
    RETURN_BYTES,
    SUBACK,
    UNSUBACK,
    WINDOW_BYTES,
)
from broker.mqtt.codec import encode_publish, encode_publish_parts
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import unmounted

# Acknowledgements that nobody waits for leave together, some hundreds in a frame.
LAZY_BYTES_MAX: Final = 4096
# What is read of a client in a turn, and from where on it was a whole one.
TURN_BYTES: Final = 64 * 1024
SHARE_BYTES: Final = 16 * 1024
# Above RETURN_BYTES and LAZY_BYTES_MAX together, or a turn could wait for credit that is never returned.
BUSY_BYTES: Final = 128 * 1024
TURN_WAIT_S: Final = 0.1
# What a modest client says, on average and at once.
MODEST_BYTES_PER_S: Final = 160 * 1024
MODEST_BYTES_MAX: Final = 16 * 1024
# How long the others are paced for the sake of a modest one that has said something, and how.
MODEST_S: Final = 0.05
PACE_S: Final = 0.001
PACED_PACKETS: Final = 256
_EXPIRY_PROPERTY: Final = b"\x02"


@final
class ListenerCore:
    """The connections of one listener process. `make_client_id` names clients that come without an id."""

    def __init__(
        self,
        listener: int,
        generation: int,
        limits: ConnectionLimits,
        make_client_id: Callable[[], str],
        authenticator: Authenticator = NO_METHODS,
    ) -> None:
        self.batch = ListenerBatch(listener, generation, 0)
        self.connections: dict[int, Connection] = {}
        self.owner_generation: int = 0
        self._generation = generation
        self._limits = limits
        self.counters = ListenerCounters()
        self._gate = ConnectGate(limits.connects_per_s_max, self.counters)
        self._make_client_id = make_client_id
        self._authenticator = authenticator
        self._next_number: int = 1
        self._dirty: list[Connection] = []
        self._notices = ListenerNotices(limits)
        # By number, in the order of their turns: who leaves is found at once.
        self._turns: OrderedDict[int, Connection] = OrderedDict()
        self._turn_given_at: float = 0.0
        # Until when those who are not modest are paced, and for the sake of which connection.
        self._paced_until: float = 0.0
        self._paced_for: int = 0
        self._credit_bytes: int = WINDOW_BYTES
        self._consumed_bytes: int = 0

    # Connections.

    def open(self, now: float, mountpoint: str = "") -> Connection:
        """Begin a connection to a listener with this mountpoint."""
        number = self._next_number
        # Numbers are not used again within the life of the process: 2^32 at 10,000 a second last five days
        # longer than any connection that stays silent, and a live one is skipped.
        while number in self.connections:
            number += 1
        self._next_number = (number + 1) & 0xFFFFFFFF
        connection = Connection(
            number,
            self.batch,
            self._limits,
            self._gate,
            self.counters,
            self._authenticator,
            mountpoint,
            now,
        )
        self.connections[number] = connection
        self.counters.socket_open += 1
        return connection

    def receive_data(self, connection: Connection, data: bytes, now: float) -> None:
        """Work off bytes from a client."""
        if not self.owner_generation:
            # Without an owner there is nobody to ask, and no state to be right about.
            connection.close(Reason.SERVER_UNAVAILABLE, "", owner_knows=True)
        else:
            is_modest = self._is_modest(connection, len(data), now)
            if not is_modest and self._paced_for == connection.number:
                # Nobody is paced for its own sake.
                self._paced_until = 0.0
            is_paced = not is_modest and now < self._paced_until
            packets_max = PACED_PACKETS if is_paced else PACKETS_PER_TURN
            connection.receive_data(data, now, self._make_client_id, packets_max)
            if is_modest and data and connection.state == ATTACHED and not connection.has_more:
                self._paced_until = now + MODEST_S
                self._paced_for = connection.number
            if connection.notice:
                self._take_notice(connection)
        if connection.output or connection.state == CLOSED:
            self._mark(connection)
        if len(data) >= SHARE_BYTES or connection.has_more:
            self._wait_for_turn(connection)

    def _is_modest(self, connection: Connection, data_bytes: int, now: float) -> bool:
        """Take note that a client says so much; true as long as it is modest."""
        said_bytes = max(0.0, connection.said_bytes - (now - connection.said_at) * MODEST_BYTES_PER_S) + data_bytes
        # What a client said before is forgotten soon, however much it was.
        connection.said_bytes = min(said_bytes, 2.0 * MODEST_BYTES_MAX)
        connection.said_at = now
        return said_bytes < MODEST_BYTES_MAX

    def lost(self, connection: Connection) -> None:
        """Forget a connection whose socket is closed."""
        connection.lost()
        self._turns.pop(connection.number, None)
        self.connections.pop(connection.number, None)
        self.counters.socket_close += 1

    def tick(self, now: float) -> None:
        """Close connections that have been silent for too long; call it about once a second."""
        blocked = self.is_blocked()
        self._gate.begin_second()
        self._notices.begin_second(self.counters)
        for connection in self.connections.values():
            if blocked:
                # No client is read: none is to blame for its silence.
                connection.last_received = now
            connection.tick(now)
            if connection.output or connection.state == CLOSED:
                self._mark(connection)
        if self.owner_generation:
            self.batch.counters(pack_counters(self.counters.values()))

    def _wait_for_turn(self, connection: Connection) -> None:
        if not connection.waits_for_turn and connection.state != CLOSED:
            connection.waits_for_turn = True
            self._turns[connection.number] = connection

    def take_turns(self, now: float) -> list[Connection]:
        """Give those their turn who have waited longest, as far as the owner keeps up; return them."""
        given: list[Connection] = []
        if self.turn_wait_s(now) > 0:
            return given
        room_bytes: int = BUSY_BYTES - self._under_way_bytes()
        for _ in range(len(self._turns)):
            if room_bytes <= 0 and (self.is_blocked() or now < self._turn_given_at + TURN_WAIT_S):
                break
            _number, connection = self._turns.popitem(last=False)
            connection.waits_for_turn = False
            if connection.state == CLOSED:
                continue
            room_bytes -= TURN_BYTES
            self._turn_given_at = now
            given.append(connection)
            if connection.has_more:
                self.receive_data(connection, b"", now)
            if now < self._paced_until:
                break
        return given

    def wants_turn(self) -> bool:
        """Say whether somebody who waits for a turn may have it, in `turn_wait_s`."""
        return len(self._turns) > 0 and self._under_way_bytes() < BUSY_BYTES

    def turn_wait_s(self, now: float) -> float:
        """Return how long the next turn is put off for the sake of modest clients, 0 for not at all."""
        return max(0.0, self._turn_given_at + PACE_S - now) if now < self._paced_until else 0.0

    def _under_way_bytes(self) -> int:
        return WINDOW_BYTES - self._credit_bytes + self.batch.size()

    def close_all(self, reason: int) -> None:
        """End every connection, for a stop of the node or the loss of the owner."""
        for connection in self.connections.values():
            connection.close(reason, "")
            self._mark(connection)

    def take_dirty(self) -> list[Connection]:
        """Return the connections that have output or were closed since the last call."""
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            connection.dirty = False
        return dirty

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        return self._notices.take()

    def _take_notice(self, connection: Connection) -> None:
        self._notices.of_client(connection.notice)
        connection.notice = ""

    def _mark(self, connection: Connection) -> None:
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)

    # The owner.

    def owner_ready(self, owner_generation: int) -> None:
        """Begin to work with a new owner, with full credit."""
        self.owner_generation = owner_generation
        self.batch.reset(owner_generation)
        self._credit_bytes = WINDOW_BYTES
        self._consumed_bytes = 0

    def owner_gone(self) -> None:
        """Close every connection: the sessions are with an owner that is no more."""
        self.close_all(Reason.SERVER_SHUTTING_DOWN)
        self.owner_generation = 0
        self.batch.reset(0)

    def is_blocked(self) -> bool:
        """Say whether the owner has as much to do as it may: then no client is read."""
        return self._credit_bytes <= 0

    def wants_flush(self) -> bool:
        """Say whether there is something to tell the owner at once: records, or credit worth a frame."""
        return self.batch.urgent or self._consumed_bytes >= RETURN_BYTES or self.batch.size() >= LAZY_BYTES_MAX

    def wants_lazy_flush(self) -> bool:
        """Say whether there are only records that can wait a moment, to leave together with others."""
        return self.batch.size() > 0

    def is_full(self) -> bool:
        """Say whether the batch has the size of a frame and should leave before more is read."""
        return self.batch.size() >= FRAME_BYTES_MAX

    def take_frame(self) -> bytes:
        """Return the frame for the owner and take its bytes off the credit."""
        frame = self.batch.take(self._consumed_bytes)
        self._consumed_bytes = 0
        self._credit_bytes -= len(frame)
        return frame

    def receive_frame(self, frame: bytes) -> None:
        """Work off a frame of the owner."""
        header = OwnerHeader(frame)
        if header.owner_generation != self.owner_generation or header.generation != self._generation:
            return
        self._consumed_bytes += len(frame)
        self._credit_bytes = min(self._credit_bytes + header.consumed_bytes, WINDOW_BYTES)
        for record in unpack_owner_records(frame):
            if isinstance(record, Deliver):
                self._deliver(record)
            else:
                assert isinstance(record, Answer)
                self._answer(record)

    def _answer(self, answer: Answer) -> None:
        connection = self.connections.get(answer.connection)
        if connection is None or connection.state == CLOSED:
            # [MQTT-3.14.4-1] Nothing follows a DISCONNECT.
            return
        if PUBACK <= answer.kind <= PUBCOMP:
            connection.receive_acknowledgement(answer)
        elif answer.kind == CONNACK:
            connection.receive_connack(answer, self._make_client_id)
            if connection.has_more:
                self._wait_for_turn(connection)
        elif answer.kind == SUBACK:
            connection.receive_suback(answer)
        elif answer.kind == UNSUBACK:
            connection.receive_unsuback(answer)
        else:
            connection.close(answer.reason, "", owner_knows=True, reference=answer.text)
        if connection.notice:
            self._take_notice(connection)
        self._mark(connection)

    def _deliver(self, record: Deliver) -> None:
        """Encode a message for each target; alike ones share their bytes."""
        if record.topic[:1] == b"$":
            # Those who have a topic of a mountpoint all have that mountpoint.
            record.topic = unmounted(record.topic)
        expiring = record.properties
        if record.expiry_s >= 0:
            # [MQTT-3.3.2-6] What is left of the interval, which only MQTT 5 clients are told.
            expiring = _EXPIRY_PROPERTY + record.expiry_s.to_bytes(4, "big") + record.properties
        if record.count == 1:
            number, packet_id, flags = record.target(0)
            connection = self.connections.get(int(number))
            if connection is not None and connection.state == ATTACHED:
                self._deliver_one(connection, record, expiring, packet_id, flags)
            return
        alike: dict[int, tuple[bytes, bytes]] = {}
        index: i64 = 0
        while index < record.count:
            number, packet_id, flags = record.target(index)
            index += 1
            connection = self.connections.get(int(number))
            if connection is None or connection.state != ATTACHED:
                continue
            if connection.own_aliases is not None or (flags & 3 and connection.window is not None):
                self._deliver_one(connection, record, expiring, packet_id, flags)
                continue
            shape = int(connection.version << 8 | flags)
            parts = alike.get(shape)
            if parts is None:
                parts = encode_publish_parts(
                    record.topic,
                    record.payload,
                    flags & 3,
                    flags & RETAIN_FLAG != 0,
                    flags & DUP_FLAG != 0,
                    expiring,
                    connection.version,
                )
                if flags & 3 == 0:
                    parts = (parts[0] + parts[1], b"")
                alike[shape] = parts
            output = connection.output
            output.append(parts[0])
            if flags & 3:
                output.append(int(packet_id).to_bytes(2, "big"))
                output.append(parts[1])
            self.counters.publishes_sent += 1
            self.counters.mqtt_publish_bytes_sent += len(record.payload)
            self._mark(connection)

    def _deliver_one(
        self, connection: Connection, record: Deliver, properties: bytes, packet_id: i64, flags: i64
    ) -> None:
        topic = record.topic
        window = connection.window if flags & 3 else None
        # What is held back goes out later than what follows it with QoS 0, so it must not be what sets an alias.
        aliases = connection.own_aliases
        if aliases is not None and (window is None or not window.is_full()):
            topic, alias = aliases.take(topic, len(topic) + len(properties) + len(record.payload))
            properties = alias + properties
        packet = encode_publish(
            topic,
            record.payload,
            flags & 3,
            flags & RETAIN_FLAG != 0,
            flags & DUP_FLAG != 0,
            packet_id,
            properties,
            connection.version,
        )
        payload_bytes = len(record.payload)
        if window is None or window.admit(int(packet_id), packet, payload_bytes):
            connection.send_publish(packet, payload_bytes)
            self._mark(connection)
