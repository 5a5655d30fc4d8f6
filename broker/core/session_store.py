"""The stored form of sessions, subscriptions, queues and shared groups, and the way back at recovery.

It owns the layout of the families `session`, `queue` and `message`, and the turn's batch. It writes into the batch and
reads through Storage; when something is written is the owner's decision.

    session  session u64                  version u8, flags u8 (1 user name, 2 unheard), expiry u32, deadline u64,
                                          epoch (32 bytes), client id str, user name str; version 1 has no epoch
    session  session u64, "/", filter     version u8, options u8, identifier u32
    session  session u64, "i", id u16     version u8, fingerprint u32: a QoS 2 PUBLISH of the client that it has not
                                          released yet
    session  session u64, "d"             version u8, place u64: the session goes to another node, which has it up to
    session  session u64, "s"             version u8, store id (16 bytes), {origin (16 bytes), number u64}: what comes
                                          to its next home directly, see `switched` of the session
    session  session u64, "a"             see `arrival`: what the session may still get from other nodes
    session  session u64, "g", row u32    version u8, {origin (16 bytes), count u32, numbers u64}: what old homes gave
                                          and others may have as well
    session  session u64, "z"             version u8, place u64: the session was dormant before what is there, or is (0)
    session  group u64, "$", filter       version u8: a shared group with records; filter begins with $share
    queue    owner u64, seq u64           version u8, flags u8 (see below), packet id u16 (0: not sent), size u32,
                                          [identifiers str], [shared filter str], message id (24 bytes), [body]
    message  origin (16 bytes), u64       version u8, body
    meta     "unreferenced"               version u8: there may be bodies in `message` that no record points to

`owner` is a session's number or a group's: they count together. A body of at most INLINE_BYTES_MAX lies in each queue
record, a larger one is stored once however many queues point to it; then references are counted in memory, in
`_references`, and rebuilt at recovery. So a million small messages in a queue cost no memory, and a million large ones
some 130 bytes each (`bench.backlog`). What a body is, `stored_message` says.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final, final

from broker.core.arrival_value import VALUE_VERSION as ARRIVAL_VERSION
from broker.core.arrival_value import pack_arrival, unpack_arrival
from broker.core.delivery_queue import DeliveryQueue
from broker.core.epoch import COUNTER_MAX, EPOCH_BYTES, FIRST_EPOCH, pack_epoch, unpack_epoch
from broker.core.inflight import first_packet_id
from broker.core.message import NO_MESSAGE, ORIGIN_BYTES, Delivery
from broker.core.places import first_place
from broker.core.session import Session
from broker.core.shared import SharedGroup
from broker.core.storage import Storage, StorageError, WriteBatch
from broker.core.stored_message import (
    MESSAGE_KEY_BYTES,
    UNREADABLE,
    Clock,
    check_version,
    corrupt,
    pack_message,
    string,
    unpack_message,
    unpack_string,
)
from broker.core.subscription import QOS_MASK, Subscription, subscription
from broker.mqtt.topics import shared_group

VALUE_VERSION: Final = 1
# Of a session without its parts.
SESSION_VERSION: Final = 2
# Of a packet id that an earlier program wrote: other nodes, which have to have the message, may not have it.
_UNDER_WAY: Final = 2
# As many sessions and groups there never are, one after the other.
NUMBER_MAX: Final = 1 << 62
INLINE_BYTES_MAX: Final = 512
# How much of a tail is read at once.
LOAD_MAX: Final = 384
# What a delivery takes beside its message, for estimates.
RECORD_BYTES: Final = 64
# So many bodies that nothing points to go in one batch.
SWEPT_MAX: Final = 1000
KEY_UNREFERENCED: Final = b"unreferenced"
# Recovery says how far it is after so many records.
PROGRESS_RECORDS: Final = 200_000

# The flags of a session.
_USER_NAME: Final = 1
_UNHEARD: Final = 2

_SUBSCRIPTION: Final = ord("/")
_GROUP: Final = ord("$")
_GIVEN_IDS: Final = ord("g")
_KEY_END: Final = b"\xff" * 9
_SESSION: Final = struct.Struct(">BBIQ")
_SUBSCRIBED: Final = struct.Struct(">BBI")
_QUEUE: Final = struct.Struct(">BBHI")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_QUEUE_KEY_BYTES: Final = 16
_U16: Final = struct.Struct(">H")
_STORED_QOS: Final = (1, 2)

_RETAIN: Final = 4
_INLINE: Final = 8
_RELEASED: Final = 16
_IDENTIFIERS: Final = 32
_SHARED: Final = 64


@final
class SessionStore:
    """What the owner writes of sessions and queues. `writes` is the turn's batch; whoever commits it takes it."""

    def __init__(self, storage: Storage) -> None:
        self.writes = WriteBatch()
        self.clock = Clock(0.0, 0)
        # The last number given to a session or group.
        self.last_number: int = 0
        self._storage = storage
        # Message key -> how many queue records point to a body in the family `message`.
        self._references: dict[bytes, int] = {}
        # (owner, seq) of records that point to a body and that a scan may not know yet as they are: those that were
        # written, with the message key, and those that were deleted, since everything was committed last.
        self._fresh: dict[tuple[int, int], bytes] = {}
        self._gone: dict[tuple[int, int], bool] = {}
        # Owner -> place -> what moves have put there since then, None where they took away what was there.
        self._moved: dict[int, dict[int, Delivery | None]] = {}

    def take_writes(self) -> WriteBatch:
        """Return the turn's batch and begin a new one."""
        writes = self.writes
        self.writes = WriteBatch()
        return writes

    def committed(self) -> None:
        """Everything that was written is committed: what scans read is all there is."""
        if self._fresh or self._gone or self._moved:
            self._fresh = {}
            self._gone = {}
            self._moved = {}

    def take_number(self) -> int:
        """Return a number for a new session or group."""
        self.last_number += 1
        return self.last_number

    # Sessions.

    def put_session(self, session: Session) -> None:
        """Write the session without its subscriptions and queue [MQTT-3.1.2-23] [MQTT311-4.1.0-1]."""
        head = _SESSION.pack(
            SESSION_VERSION,
            (0 if session.user_name is None else _USER_NAME) | (_UNHEARD if session.unheard else 0),
            session.expiry_s,
            self.clock.to_utc_ms(session.expires_at),
        )
        value = head + pack_epoch(session.epoch) + string(session.client_id) + string(session.user_name or "")
        self.writes.put("session", _number(session.number), value)

    def delete_session(self, session: Session) -> None:
        """Remove the session with all that is stored of it; what was in flight or queued must not be used again."""
        if len(session.inflight) or not session.queue.is_empty():
            # Ranges that were deleted slow down every search after them, and most queues end empty.
            self._delete_queue(session.number, session.queue, list(session.inflight.deliveries.values()))
        start = _number(session.number)
        self.writes.delete_range("session", start, start + _KEY_END)

    def put_subscription(self, session: Session, topic_filter: bytes, wanted: Subscription) -> None:
        """Write one subscription."""
        key = _number(session.number) + b"/" + topic_filter
        value = _SUBSCRIBED.pack(VALUE_VERSION, wanted.options, wanted.identifier)
        self.writes.put("session", key, value)

    def delete_subscription(self, session: Session, topic_filter: bytes) -> None:
        """Remove one subscription."""
        self.writes.delete("session", _number(session.number) + b"/" + topic_filter)

    def put_incoming(self, session: Session, packet_id: int) -> None:
        """Write that the client's QoS 2 PUBLISH with this id was published."""
        value = bytes([VALUE_VERSION]) + session.incoming[packet_id].to_bytes(4, "big")
        self.writes.put("session", _incoming_key(session, packet_id), value)

    def delete_incoming(self, session: Session, packet_id: int) -> None:
        """The client released the id."""
        self.writes.delete("session", _incoming_key(session, packet_id))

    def put_departing(self, session: Session) -> None:
        """Write that the session goes to another node, and how far it has gone: no place is given twice."""
        value = bytes([VALUE_VERSION]) + session.left_to.to_bytes(8, "big")
        self.writes.put("session", _number(session.number) + b"d", value)

    def delete_departing(self, session: Session) -> None:
        """The session stays."""
        self.writes.delete("session", _number(session.number) + b"d")
        self.writes.delete("session", _number(session.number) + b"s")

    def put_switched(self, session: Session) -> None:
        """Write what comes to the session's next home directly as well."""
        assert session.switched is not None
        value = pack_switched(session.switched_home, session.switched)
        self.writes.put("session", _number(session.number) + b"s", value)

    def put_awake(self, session: Session) -> None:
        """Write that what is published comes to the session again, and from which place on."""
        value = bytes([VALUE_VERSION]) + session.awake_from.to_bytes(8, "big")
        self.writes.put("session", _number(session.number) + b"z", value)

    def put_arrival(self, session: Session) -> None:
        """Write what the session may still get from other nodes."""
        assert session.arrival is not None
        self.writes.put("session", _number(session.number) + b"a", pack_arrival(session.arrival))

    def delete_arrival(self, session: Session) -> None:
        """The session has everything that it can get from other nodes."""
        self.writes.delete("session", _number(session.number) + b"a")

    def put_given_ids(self, session: Session) -> None:
        """Write those ids of what old homes gave that are not written yet, in a row of their own."""
        arrival = session.arrival
        assert arrival is not None
        value = bytes([VALUE_VERSION])
        for origin, numbers in arrival.fresh_ids.items():
            value += origin + _U32.pack(len(numbers)) + b"".join([_U64.pack(number) for number in numbers])
        self.writes.put("session", _number(session.number) + b"g" + _U32.pack(arrival.id_rows), value)
        arrival.id_rows += 1
        arrival.fresh_ids = {}

    def given_ids(self, number: int) -> list[tuple[bytes, int]]:
        """Return (origin, number) of all that is in those rows of a session. What was written must be committed."""
        start = _number(number) + b"g"
        ids = []
        for _key, value in self._storage.scan("session", start, start + _KEY_END):
            ids.extend(_unpack_given_ids(value))
        return ids

    def delete_given_ids(self, session: Session) -> None:
        """Remove all of those rows."""
        start = _number(session.number) + b"g"
        self.writes.delete_range("session", start, start + _KEY_END)

    # Shared groups.

    def put_group(self, group: SharedGroup) -> None:
        """Write that there are records of the group."""
        self.writes.put("session", _number(group.number) + b"$" + group.shared_filter, bytes([VALUE_VERSION]))

    def delete_group(self, group: SharedGroup) -> None:
        """Remove the group, its queue, and what it kept of what members have in flight."""
        self._delete_queue(group.number, group.queue, list(group.kept.values()))
        self.writes.delete("session", _number(group.number) + b"$" + group.shared_filter)

    # Deliveries.

    def put_delivery(self, owner: int, delivery: Delivery) -> None:
        """Write a queue record of the session or group with that number and, with the first reference, the body."""
        flags = delivery.qos
        if delivery.retain:
            flags |= _RETAIN
        if delivery.released:
            # The client has the message: what is left is its packet id.
            value = _QUEUE.pack(VALUE_VERSION, flags | _RELEASED, delivery.packet_id, 0)
            self.writes.put("queue", _queue_key(owner, delivery.seq), value)
            delivery.stored = True
            return
        message = delivery.message
        inline = delivery.size <= INLINE_BYTES_MAX
        if inline:
            flags |= _INLINE
        identifiers = b""
        if delivery.identifiers:
            flags |= _IDENTIFIERS
            identifiers = len(delivery.identifiers).to_bytes(2, "big") + delivery.identifiers
        if delivery.shared:
            flags |= _SHARED
            identifiers += len(delivery.shared).to_bytes(2, "big") + delivery.shared
        key = message.key()
        value = _QUEUE.pack(VALUE_VERSION, flags, delivery.packet_id, delivery.size) + identifiers + key
        if inline:
            value += pack_message(message, self.clock)
        elif not delivery.stored:
            count = self._references.get(key, 0)
            if count == 0:
                self.writes.put("message", key, bytes([VALUE_VERSION]) + pack_message(message, self.clock))
            self._references[key] = count + 1
            self._fresh[owner, delivery.seq] = key
        delivery.stored = True
        self.writes.put("queue", _queue_key(owner, delivery.seq), value)

    def release_delivery(self, owner: int, delivery: Delivery) -> None:
        """The client has the message of a QoS 2 delivery: forget it, and keep the packet id."""
        delivery.released = True
        if delivery.stored:
            self._dereference(owner, delivery)
        delivery.message = NO_MESSAGE
        if delivery.stored:
            self.put_delivery(owner, delivery)

    def delete_delivery(self, owner: int, delivery: Delivery) -> None:
        """Remove a queue record, and the body with the last one that points to it."""
        assert delivery.stored
        self.writes.delete("queue", _queue_key(owner, delivery.seq))
        if not delivery.released:
            self._dereference(owner, delivery)
        delivery.stored = False

    def give_away(self, owner: int, delivery: Delivery) -> None:
        """Remove the queue record of what another node has now, and may give back before that is committed."""
        self.delete_delivery(owner, delivery)
        self._moved.setdefault(owner, {})[delivery.seq] = None

    def put_moved(self, owner: int, delivery: Delivery) -> None:
        """Write the queue record of what another node gave; one more may give it before that is committed."""
        self.put_delivery(owner, delivery)
        self._moved.setdefault(owner, {})[delivery.seq] = delivery

    def _dereference(self, owner: int, delivery: Delivery) -> None:
        if delivery.size > INLINE_BYTES_MAX:
            self._fresh.pop((owner, delivery.seq), None)
            self._gone[owner, delivery.seq] = True
            self._dereference_key(delivery.message.key())

    def _dereference_key(self, key: bytes) -> None:
        count = self._references[key] - 1
        if count:
            self._references[key] = count
        else:
            del self._references[key]
            self.writes.delete("message", key)

    def _delete_queue(self, owner: int, queue: DeliveryQueue, inflight: list[Delivery]) -> None:
        for delivery in (*inflight, *queue.deliveries()):
            if delivery.stored and not delivery.released:
                self._dereference(owner, delivery)
        # What is left that points to a body is the tail's.
        if queue.tail_count:
            try:
                bodies = self._tail_bodies(owner, queue)
            except StorageError:
                # The session's end can't wait for a store that can be read: recovery has to find the bodies.
                bodies = []
                self.writes.put("meta", KEY_UNREFERENCED, bytes([VALUE_VERSION]))
            for key in bodies:
                self._dereference_key(key)
        start = _number(owner)
        self.writes.delete_range("queue", start, start + _KEY_END)

    def _tail_bodies(self, owner: int, queue: DeliveryQueue) -> list[bytes]:
        """Return the keys of the bodies that the tail's records point to, committed or not.

        While the store fails, what is in it may be several turns behind.
        """
        first = _number(owner)
        if queue.lifo:
            start, end = first, _queue_key(owner, queue.tail_seq + 1)
        else:
            start, end = _queue_key(owner, queue.tail_seq), first + _KEY_END
        keys = [key for (of, _), key in self._fresh.items() if of == owner]
        for key, value in self._storage.scan("queue", start, end):
            place = (owner, _seq(key))
            if not value[1] & (_INLINE | _RELEASED) and place not in self._gone and place not in self._fresh:
                keys.append(_message_key(value))
        return keys

    # Reading again.

    def load(self, owner: int, queue: DeliveryQueue) -> None:
        """Read the next part of the tail. Everything that was written must be committed."""
        found: list[Delivery] = []
        first = _number(owner)
        if queue.lifo:
            rows = self._storage.scan_reverse("queue", first, _queue_key(owner, queue.tail_seq + 1))
        else:
            rows = self._storage.scan("queue", _queue_key(owner, queue.tail_seq), first + _KEY_END)
        wanted = min(LOAD_MAX, queue.tail_count)
        for key, value in rows:
            if _packet_id(value):
                # In flight: not the queue's any more. Its seq may lie among those of a LIFO queue.
                continue
            found.append(self._unpack_delivery(key, value))
            if len(found) >= wanted:
                break
        if len(found) < wanted:
            raise StorageError(f"queue {owner} has {len(found)} records in the store instead of {wanted}")
        queue.load(found)

    def read(self, owner: int, after_seq: int, bytes_max: int) -> list[Delivery]:
        """Return the next deliveries behind a place, in flight or not, until they have `bytes_max`.

        Everything that was written must be committed.
        """
        found: list[Delivery] = []
        size = 0
        for key, value in self._storage.scan("queue", _queue_key(owner, after_seq + 1), _number(owner) + _KEY_END):
            delivery = self._unpack_delivery(key, value)
            found.append(delivery)
            size += RECORD_BYTES + delivery.size
            if size >= bytes_max:
                break
        return found

    def places(self, owner: int, first: int, last: int) -> dict[int, bytes]:
        """Return the places between two, both included, that have a delivery, with its message's key.

        That is b"" where the client has released the message. What was written must be committed, but for what moved.
        """
        rows = self._storage.scan("queue", _queue_key(owner, first), _queue_key(owner, last + 1))
        found = {_seq(key): b"" if value[1] & _RELEASED else _message_key(value) for key, value in rows}
        for place, delivery in self._moved.get(owner, {}).items():
            if delivery is None:
                found.pop(place, None)
            elif first <= place <= last:
                found[place] = b"" if delivery.released else delivery.message.key()
        return found

    def at(self, owner: int, place: int) -> Delivery:
        """Return what is in a place, which must have something. What was written must be committed, as for `places`."""
        moved = self._moved.get(owner, {}).get(place)
        return self.read(owner, place - 1, 1)[0] if moved is None else moved

    def last_place_before(self, owner: int, place: int) -> int:
        """Return the highest place below another that has a delivery, 0: none. What was written must be committed."""
        for key, _value in self._storage.scan_reverse("queue", _number(owner), _queue_key(owner, place)):
            return _seq(key)
        return 0

    def ids_before(self, owner: int, place: int) -> list[tuple[bytes, int]]:
        """Return (origin, number) of the deliveries below a place, but for what was released, and what a group gave.

        What was written must be committed.
        """
        ids = []
        for _key, value in self._storage.scan("queue", _number(owner), _queue_key(owner, place)):
            if not value[1] & (_RELEASED | _SHARED):
                key = _message_key(value)
                ids.append((key[:ORIGIN_BYTES], int.from_bytes(key[ORIGIN_BYTES:], "big")))
        return ids

    def trim(self, owner: int, queue: DeliveryQueue, messages_max: int, bytes_max: int) -> int:
        """Remove the oldest of a LIFO queue's tail until the queue keeps its limits; return how many they were.

        Everything that was written must be committed.
        """
        trimmed = 0
        start, end = _queue_key(owner, queue.oldest_seq), _queue_key(owner, queue.tail_seq + 1)
        for key, value in self._storage.scan("queue", start, end):
            if not queue.tail_count or not queue.is_over(messages_max, bytes_max):
                break
            if _packet_id(value):
                continue
            self.delete_delivery(owner, self._unpack_delivery(key, value))
            queue.trim(_seq(key), int.from_bytes(value[4:8], "big"))
            trimmed += 1
        return trimmed

    def _unpack_delivery(self, key: bytes, value: bytes) -> Delivery:
        try:
            return self._unpack_queue_record(key, value)
        except UNREADABLE as error:
            raise corrupt("queue", key, error) from None

    def _unpack_queue_record(self, key: bytes, value: bytes) -> Delivery:
        _version, flags, packet_id, size = _QUEUE.unpack_from(value)
        pos: int = _QUEUE.size
        identifiers = b""
        shared = b""
        message = NO_MESSAGE
        if flags & _RELEASED:
            if size:
                raise ValueError("the size of what is forgotten")
        else:
            if flags & _IDENTIFIERS:
                identifiers, pos = unpack_string(value, pos)
            if flags & _SHARED:
                shared, pos = unpack_string(value, pos)
            message_key = value[pos : pos + MESSAGE_KEY_BYTES]
            if flags & _INLINE:
                message = unpack_message(message_key, value, pos + MESSAGE_KEY_BYTES, self.clock)
            else:
                stored = self._storage.get("message", message_key)
                if stored is None:
                    raise StorageError(f"queue record {key.hex()} points to a message that is not there")
                check_version(stored, VALUE_VERSION, "message")
                message = unpack_message(message_key, stored, 1, self.clock)
        delivery = Delivery(_seq(key), message, flags & QOS_MASK, flags & _RETAIN != 0, identifiers)
        delivery.shared = shared
        delivery.size = size
        delivery.packet_id = packet_id
        delivery.released = flags & _RELEASED != 0
        delivery.stored = True
        return delivery

    # Recovery.

    def recover(
        self, window: int, lifo: bool, progress: Callable[[str], None]
    ) -> tuple[list[Session], dict[bytes, SharedGroup]]:
        """Read every session and group, in the order of their numbers. Queues stay in the store, but for their head."""
        sessions: dict[bytes, Session] = {}
        groups: dict[bytes, SharedGroup] = {}
        for key, value in self._storage.scan("session", b"", b""):
            try:
                self._recover_row(key, value, sessions, groups, window, lifo)
            except UNREADABLE as error:
                raise corrupt("session", key, error) from None
        by_filter = {group.shared_filter: group for group in groups.values()}
        client_ids = {(session.client_id, session.departing) for session in sessions.values()}
        if len(client_ids) < len(sessions) or len(by_filter) < len(groups):
            raise StorageError("the store is corrupt: two sessions of one client id, or two groups of one filter")
        self._recover_queues(sessions, groups, progress)
        self._sweep(progress)
        for session in sessions.values():
            # Its own places begin there, however few of them are taken.
            session.next_seq = max(session.next_seq, first_place(session.epoch) + 1, session.left_to + 1)
        return list(sessions.values()), by_filter

    def _recover_row(
        self,
        key: bytes,
        value: bytes,
        sessions: dict[bytes, Session],
        groups: dict[bytes, SharedGroup],
        window: int,
        lifo: bool,
    ) -> None:
        is_incoming = key[8:9] == b"i"
        newest = SESSION_VERSION if len(key) == 8 else _UNDER_WAY if is_incoming else VALUE_VERSION
        if key[8:] == b"a":
            newest = ARRIVAL_VERSION
        check_version(value, newest, "session")
        self.last_number = int.from_bytes(key[:8], "big")
        if self.last_number > NUMBER_MAX:
            raise ValueError("a number that no session or group can have")
        if len(key) == 8:
            sessions[key] = self._unpack_session(key, value, window, lifo)
        elif key[8] == _GROUP:
            if key[:8] in sessions or key[:8] in groups:
                raise ValueError("a group that has the number of another, or of a session")
            group = SharedGroup(int.from_bytes(key[:8], "big"), key[9:])
            group.stored = True
            groups[key[:8]] = group
        elif key[8:] == b"d":
            sessions[key[:8]].departing = True
            (sessions[key[:8]].left_to,) = _U64.unpack(value[1:])
        elif key[8:] == b"z":
            (sessions[key[:8]].awake_from,) = _U64.unpack(value[1:])
            sessions[key[:8]].dormant = not sessions[key[:8]].awake_from
        elif key[8:] == b"s":
            session = sessions[key[:8]]
            session.switched_home, session.switched = _unpack_switched(value)
        elif key[8:] == b"a":
            session = sessions[key[:8]]
            session.arrival = unpack_arrival(value)
            if any(not donor.heir for donor in session.arrival.donors.values()):
                session.inflight.next_id = first_packet_id(session.epoch)
        elif key[8] == _GIVEN_IDS:
            _recover_given_ids(sessions[key[:8]], key, value)
        elif is_incoming:
            session = sessions[key[:8]]
            (packet_id,) = _U16.unpack(key[9:])
            if value[0] != _UNDER_WAY:
                # Else it was not acknowledged, and comes again: rather twice here than never on other nodes.
                session.incoming[packet_id] = int.from_bytes(value[1:5], "big")
        else:
            assert key[8] == _SUBSCRIPTION
            _version, options, identifier = _SUBSCRIBED.unpack_from(value)
            if options & QOS_MASK == QOS_MASK:
                raise ValueError("no QoS")
            # What begins like a shared subscription must be one.
            shared_group(key[9:])
            sessions[key[:8]].subscriptions[key[9:]] = subscription(options, identifier)

    def _recover_queues(
        self, sessions: dict[bytes, Session], groups: dict[bytes, SharedGroup], progress: Callable[[str], None]
    ) -> None:
        for count, (key, value) in enumerate(self._storage.scan("queue", b"", b""), start=1):
            try:
                self._recover_queue_row(key, value, sessions, groups)
            except UNREADABLE as error:
                raise corrupt("queue", key, error) from None
            if count % PROGRESS_RECORDS == 0:
                progress(f"recovering: {count} queued messages read")

    def _recover_queue_row(
        self, key: bytes, value: bytes, sessions: dict[bytes, Session], groups: dict[bytes, SharedGroup]
    ) -> None:
        check_version(value, VALUE_VERSION, "queue")
        _version, flags, packet_id, size = _QUEUE.unpack_from(value)
        released = flags & _RELEASED
        if flags & QOS_MASK not in _STORED_QOS or (released and not packet_id):
            raise ValueError("a QoS or packet id that no record has")
        if not released and (flags & _INLINE != 0) != (size <= INLINE_BYTES_MAX):
            raise ValueError("a body that should lie elsewhere")
        if not flags & (_INLINE | _RELEASED):
            message_key = _message_key(value)
            self._references[message_key] = self._references.get(message_key, 0) + 1
        owner = key[:8]
        seq = _seq(key)
        if len(key) != _QUEUE_KEY_BYTES or not seq:
            raise ValueError("no place in a queue")
        session = sessions.get(owner)
        if session is not None:
            session.next_seq = seq + 1
            if not packet_id:
                session.queue.restore(seq, size)
            elif session.inflight.get(packet_id) is None:
                session.inflight.restore(self._unpack_delivery(key, value))
            else:
                raise ValueError(f"packet id {packet_id} twice")
        else:
            group = groups[owner]
            if packet_id:
                raise ValueError("a packet id in a group's queue")
            group.next_seq = seq + 1
            group.queue.restore(seq, size)

    def _sweep(self, progress: Callable[[str], None]) -> None:
        """Delete the bodies that nothing points to, if there may be some.

        RocksDB reads a body with its key, so that to look for them is to read them all: a second for a million of 1 KiB
        that are in the system's memory, and what the disk takes for others.
        """
        stored = self._storage.get("meta", KEY_UNREFERENCED)
        if stored is None:
            return
        check_version(stored, VALUE_VERSION, "meta")
        progress("recovering: looking for messages that no queue has any more")
        batch = WriteBatch()
        for key, _value in self._storage.scan("message", b"", b""):
            if key not in self._references:
                batch.delete("message", key)
                if len(batch) == SWEPT_MAX:
                    self._storage.commit(batch)
                    batch = WriteBatch()
        batch.delete("meta", KEY_UNREFERENCED)
        self._storage.commit(batch)

    def _unpack_session(self, key: bytes, value: bytes, window: int, lifo: bool) -> Session:
        version, flags, expiry_s, deadline_ms = _SESSION.unpack_from(value)
        pos: int = _SESSION.size
        epoch = FIRST_EPOCH
        if version > 1:
            epoch = unpack_epoch(value, pos)
            if not 0 < epoch.counter <= COUNTER_MAX:
                raise ValueError("an epoch that no session can have")
            pos += EPOCH_BYTES
        client_id, pos = unpack_string(value, pos)
        if not client_id:
            raise ValueError("a session of no client id")
        user_name, pos = unpack_string(value, pos)
        session = Session(
            int.from_bytes(key, "big"),
            client_id.decode(),
            user_name.decode() if flags & _USER_NAME else None,
            expiry_s,
            window,
            lifo,
        )
        session.persistent = True
        session.unheard = flags & _UNHEARD != 0
        session.epoch = epoch
        if epoch.counter > FIRST_EPOCH.counter:
            # Its client may for ever hold ids of a home that is gone: begin as this one did.
            session.inflight.next_id = first_packet_id(epoch)
        session.expires_at = self.clock.to_monotonic(deadline_ms)
        return session


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _queue_key(owner: int, seq: int) -> bytes:
    return owner.to_bytes(8, "big") + seq.to_bytes(8, "big")


def make_dormant(storage: Storage, batch: WriteBatch) -> None:
    """Make all sessions of a store dormant, those included that go to another node."""
    for key, _ in storage.scan("session", b"", b""):
        if len(key) == 8:
            batch.put("session", key + b"z", bytes([VALUE_VERSION]) + bytes(8))


def switched_stubs(storage: Storage) -> Iterator[tuple[bytes, str, bytes, dict[bytes, int]]]:
    """Iterate over what is stored of stubs whose next homes get something directly.

    That is (the row's key, client id, store id of the home that gets what is published here, origin -> number).
    """
    client_id = b""
    for key, value in storage.scan("session", b"", b""):
        if len(key) == 8:
            client_id, _ = unpack_string(value, _SESSION.size + (EPOCH_BYTES if value[0] > 1 else 0))
        elif key[8:] == b"s":
            yield key, client_id.decode(), *_unpack_switched(value)


def pack_switched(home: bytes, numbers: dict[bytes, int]) -> bytes:
    """Return the stored form of what comes to a session's next home directly."""
    return bytes([VALUE_VERSION]) + home + b"".join([origin + _U64.pack(number) for origin, number in numbers.items()])


def _unpack_switched(value: bytes) -> tuple[bytes, dict[bytes, int]]:
    numbers = {}
    for pos in range(1 + ORIGIN_BYTES, len(value), ORIGIN_BYTES + _U64.size):
        (number,) = _U64.unpack_from(value, pos + ORIGIN_BYTES)
        numbers[value[pos : pos + ORIGIN_BYTES]] = number
    return value[1 : 1 + ORIGIN_BYTES], numbers


def _seq(key: bytes) -> int:
    """The place that a queue record's key names."""
    return int.from_bytes(key[8:], "big")


def _incoming_key(session: Session, packet_id: int) -> bytes:
    return _number(session.number) + b"i" + packet_id.to_bytes(2, "big")


def _recover_given_ids(session: Session, key: bytes, value: bytes) -> None:
    """Take ids of what old homes gave out of a row; of a stub's, what is here still says which count."""
    arrival = session.arrival
    if arrival is None:
        raise ValueError("ids of what nobody gave")
    arrival.id_rows = _U32.unpack(key[9:])[0] + 1
    ids = _unpack_given_ids(value)
    if not session.departing:
        for origin, number in ids:
            arrival.note_id(origin, number)


def _unpack_given_ids(value: bytes) -> list[tuple[bytes, int]]:
    ids = []
    pos = 1
    while pos < len(value):
        origin = value[pos : pos + ORIGIN_BYTES]
        pos += ORIGIN_BYTES
        (count,) = _U32.unpack_from(value, pos)
        pos += _U32.size
        for _ in range(count):
            (number,) = _U64.unpack_from(value, pos)
            pos += _U64.size
            ids.append((origin, number))
    return ids


def _packet_id(value: bytes) -> int:
    """The packet id of a queue record, 0 when it is not in flight."""
    return value[2] << 8 | value[3]


def _message_key(value: bytes) -> bytes:
    """The message id of a queue record that is not released."""
    pos: int = _QUEUE.size
    for flag in (_IDENTIFIERS, _SHARED):
        if value[1] & flag:
            pos += 2 + int.from_bytes(value[pos : pos + 2], "big")
    return value[pos : pos + MESSAGE_KEY_BYTES]
