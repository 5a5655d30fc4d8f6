"""Dispatching: from a message and its route to what each session's connection is sent, queues, or loses.

It owns the decision what a session gets now, later or never, and the life of a delivery up to its acknowledgement. It
knows sessions, outlets and what is stored of them, and when it is a shared group's turn (`shared_dispatch`); who
publishes, who is acknowledged and what other nodes want is not its business.

Theory of operation
-------------------
A delivery goes out at once when the session is attached, its client reads, its listener has credit, nothing older
waits and, from QoS 1 on, the window has room. Otherwise QoS 1 and 2 wait in the queue, and QoS 0 does too while the
client is connected. `drain` sends whenever one of those reasons ended: first again what was in flight, then the queue,
then retained messages that a subscription asked for (`replaying`), then what its shared groups have waiting. A session
whose only obstacle is its listener's credit is in `waiting`, so that returning credit finds it; one whose queue goes on
in the store is in `loading`, and `load` reads on when the turn begins, with everything committed that was written.
"""

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core.arrival import Arrival
from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.owner_records import pack_target
from broker.core.records import DUP_FLAG, PUBREL, RETAIN_FLAG
from broker.core.replaying import Replays
from broker.core.retained import RetainedStore
from broker.core.routes import Route
from broker.core.sending import Sender, is_too_large
from broker.core.session import Attachment, Session
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.shared_dispatch import SharedDispatcher
from broker.core.subscription import QOS_MASK, RETAIN_AS_PUBLISHED
from broker.mqtt.reasons import Reason

_FAILURE: Final = 0x80


@final
class Dispatcher:
    """Hands messages to sessions."""

    def __init__(self, settings: OwnerSettings, store: SessionStore, retained: RetainedStore) -> None:
        self.sender = Sender(settings, store)
        self.counters = self.sender.counters
        self.shared = SharedDispatcher(settings, store, self.sender)
        # Sessions that would have sent something and could not, because their listener has no credit.
        self.waiting = self.sender.waiting
        # Sessions whose next deliveries are in the store only.
        self.loading: dict[Session, bool] = {}
        # Sessions that still get something from the nodes that had them before.
        self.arriving: dict[Session, Arrival] = {}
        # Those whose arrival changed since it was written last.
        self.changed_arrivals: dict[Session, bool] = {}
        # LIFO queues that have to lose what is in the store only, and how many messages they may keep.
        self._trimming: dict[Session, int] = {}
        self._bytes_max = settings.max_queued_bytes
        self._store = store
        self._retained = retained
        self._replays = Replays(retained, self.sender)
        self._upgrade = settings.upgrade_outgoing_qos

    # A message comes.

    def deliver(self, message: Message, route: Route, now: float) -> int:
        """Offer the message to each session and send it, once for each listener, to those that can take it.

        Returns how many sessions it was for, whatever became of it there.
        """
        sessions = route.sessions
        granted = route.granted
        matched = len(sessions)
        own: Session | None = None
        if route.no_local:
            # [MQTT-3.8.3-3] No Local: the publisher's own subscription is left out.
            own = route.no_local.get(message.publisher)
            if own is not None:
                matched -= 1
        self.counters.router_matches_local += matched
        if self.arriving and message.qos:
            route = self._without_arriving(route, message)
            sessions = route.sessions
            granted = route.granted
        if route.identifiers:
            self._deliver_identified(message, route, own, now)
            return matched
        if len(sessions) == 1:
            session = sessions[0]
            if session is not own:
                head = self._offer(session, message, granted[0], b"", now)
                if head >= 0:
                    attachment = session.attachment
                    assert attachment is not None
                    attachment.outlet.deliver(attachment.connection, head, message, b"", now)
            return matched
        groups: dict[Outlet, BytesWriter] = {}
        for index, session in enumerate(sessions):
            if session is own:
                continue
            head = self._offer(session, message, granted[index], b"", now)
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                targets = groups.get(attachment.outlet)
                if targets is None:
                    targets = BytesWriter()
                    groups[attachment.outlet] = targets
                pack_target(targets, attachment.connection, head >> 16, head & 0xFFFF)
        for outlet, targets in groups.items():
            outlet.deliver_many(targets.getvalue(), message, b"", now)
        return matched

    def _without_arriving(self, route: Route, message: Message) -> Route:
        """Leave out the sessions that came from another node and get this message from there."""
        elsewhere = []
        for session in route.sessions:
            arrival = self.arriving.get(session)
            if arrival is not None:
                cuts = arrival.cuts_of(message.topic, session.subscriptions)
                if not arrival.takes(cuts, message.origin, message.number):
                    elsewhere.append(session)
                elif arrival.fresh_ids:
                    self.changed_arrivals[session] = True
        return route.without(elsewhere) if elsewhere else route

    def without_newcomers(self, route: Route, message: Message) -> Route:
        """Leave out the sessions that came when the node which forwards this QoS 0 message did not know that yet."""
        if not self.arriving:
            return route
        newcomers = []
        for session in route.sessions:
            arrival = self.arriving.get(session)
            if arrival is not None:
                cuts = arrival.cuts_of(message.topic, session.subscriptions)
                if not arrival.takes_unnumbered(cuts, message.origin):
                    newcomers.append(session)
        return route.without(newcomers) if newcomers else route

    def _deliver_identified(self, message: Message, route: Route, own: Session | None, now: float) -> None:
        """The same when subscriptions have identifiers: those with the same ones share a record."""
        groups: dict[tuple[Outlet, bytes], BytesWriter] = {}
        for index, session in enumerate(route.sessions):
            if session is own:
                continue
            identifiers = route.identifiers[index]
            head = self._offer(session, message, route.granted[index], identifiers, now)
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                key = (attachment.outlet, identifiers)
                targets = groups.get(key)
                if targets is None:
                    targets = BytesWriter()
                    groups[key] = targets
                pack_target(targets, attachment.connection, head >> 16, head & 0xFFFF)
        for (outlet, identifiers), targets in groups.items():
            outlet.deliver_many(targets.getvalue(), message, identifiers, now)

    def _offer(self, session: Session, message: Message, granted: i64, identifiers: bytes, now: float) -> i64:
        """Give the message to a session; the result is packet id << 16 | flags when it goes out now, else -1."""
        # [MQTT-3.8.4-8] [MQTT311-3.8.4-6] The lower of both QoS, unless it is to be the subscription's.
        qos: i64 = message.qos
        if (granted & QOS_MASK) < qos or self._upgrade:
            qos = granted & QOS_MASK
        flags: i64 = qos
        if message.retain and granted & RETAIN_AS_PUBLISHED:
            # [MQTT-3.3.1-13] The flag as it was published; [MQTT-3.3.1-12] [MQTT311-3.3.1-9] else without.
            flags |= RETAIN_FLAG
        attachment = session.attachment
        if (
            attachment is not None
            and attachment.packet_bytes_max
            and is_too_large(attachment, message, qos, identifiers)
        ):
            self.counters.drop("max_packet_size_exceeded")
            return -1
        sendable = attachment is not None and not attachment.paused and attachment.outlet.open
        if qos == 0:
            if sendable and (session.queue.qos0 == 0 or session.queue.lifo):
                # [MQTT-4.3.1-1] [MQTT311-4.3.1-1]
                self.counters.mqtt_publish_sent += 1
                return flags
            if attachment is None:
                return -1
        delivery = Delivery(session.take_seq(), message, int(qos), flags & RETAIN_FLAG != 0, identifiers)
        if (
            qos
            and sendable
            and session.is_caught_up()
            and session.inflight.has_room(delivery)
            and (self._bytes_max < 0 or session.has_room(self._bytes_max, delivery.size))
        ):
            # [MQTT-4.3.2-2] [MQTT-4.3.3-2] In flight until it is acknowledged [MQTT-4.3.2-3] [MQTT-4.3.3-3].
            packet_id: i64 = session.inflight.add(delivery, now)
            self.counters.mqtt_publish_sent += 1
            if session.persistent:
                self._store.put_delivery(session.number, delivery)
            return packet_id << 16 | flags
        self._enqueue(session, delivery, now)
        return -1

    def _enqueue(self, session: Session, delivery: Delivery, now: float) -> None:
        queue = session.queue
        attachment = session.attachment
        messages_max = self.sender.messages_max(attachment is not None)
        if messages_max >= 0 and attachment is not None:
            # What waits at the listener waits all the same.
            messages_max = max(0, messages_max - session.inflight.ahead_count())
        bytes_max = self._bytes_max
        inflight_bytes = session.inflight.bytes
        size = delivery.size
        if attachment is None and not queue.has_room(messages_max, bytes_max, size, inflight_bytes):
            # Of a session that is connected this is done as the queue goes out.
            self._drop_expired(session, now)
        if not queue.has_room(messages_max, bytes_max, size, inflight_bytes):
            if not queue.dropping:
                queue.dropping = True
                self.sender.notices.append(f"queue of {session.client_id!r} is full at {len(queue)} messages: dropping")
            if not queue.lifo or messages_max == 0 or (inflight_bytes and 0 <= bytes_max < inflight_bytes + size):
                # What is in flight makes room for nothing.
                self.counters.drop("queue_full")
                return
            self._make_room(session, messages_max, size)
        else:
            queue.note_room(messages_max, bytes_max, inflight_bytes)
        # [MQTT-4.5.0-1] [MQTT311-3.1.2-5] [MQTT311-4.5.0-1]
        if delivery.qos and session.persistent:
            self._store.put_delivery(session.number, delivery)
        queue.push(delivery)
        self.counters.queue_message_in += 1
        if attachment is not None and not attachment.outlet.open:
            self.waiting[session] = attachment.outlet

    def _drop_expired(self, session: Session, now: float) -> None:
        """Drop what expired from the head of a queue: it must not keep out what is fresh."""
        queue = session.queue
        head = queue.head()
        while head is not None and head.message.expires_at and head.message.expires_at <= now:
            queue.pop()
            self.counters.drop("expired")
            self._end(session, head)
            head = queue.head()

    def _make_room(self, session: Session, messages_max: int, size: int) -> None:
        """Drop the oldest of a LIFO queue; those that are in the store only go when they can be read."""
        queue = session.queue
        while not queue.has_room(messages_max, self._bytes_max, size, session.inflight.bytes):
            oldest = queue.pop_oldest()
            if oldest is None:
                self._trimming[session] = messages_max
                return
            self.counters.drop("queue_full")
            if oldest.stored:
                self._store.delete_delivery(session.number, oldest)

    def _trim(self, session: Session, messages_max: int) -> None:
        """Drop the oldest of a LIFO queue that are in the store only, and what has to follow them."""
        queue = session.queue
        bytes_max = self._bytes_max
        if bytes_max >= 0:
            bytes_max = max(0, bytes_max - session.inflight.bytes)
        dropped = self._store.trim(session.number, queue, messages_max, bytes_max)
        while not queue.tail_count and queue.is_over(messages_max, bytes_max):
            oldest = queue.pop_oldest()
            assert oldest is not None
            if oldest.stored:
                self._store.delete_delivery(session.number, oldest)
            dropped += 1
        if dropped:
            self.counters.drop("queue_full", dropped)

    def session_ended(self, session: Session) -> None:
        """Nothing of its queue is to be read or trimmed."""
        self._trimming.pop(session, None)
        self.arriving.pop(session, None)
        if len(session.queue):
            self.counters.drop("session_ended", len(session.queue))

    def member_gone(self, group: SharedGroup, now: float) -> None:
        """A member's connection ended: another may have what only it could have taken."""
        self._drain_members(group, now)
        self.shared.member_gone(group)

    def _drain_members(self, group: SharedGroup, now: float) -> None:
        """Send what waits in a group to whoever can take it; nobody comes or goes by that."""
        for session in group.online:
            if group.queue.is_empty():
                return
            assert session.attachment is not None
            self.drain(session.attachment, now)

    # A connection can take more.

    def redeliver(self, attachment: Attachment, now: float) -> None:
        """Send again what was in flight when the last connection ended, then what waits.

        [MQTT-4.4.0-1] [MQTT311-4.4.0-1], in the old order [MQTT-4.6.0-1] [MQTT311-4.6.0-1]. What a shared group gave to
        the session is among it [MQTT-4.8.2-4].
        """
        attachment.session.inflight.begin_resend()
        attachment.session.live_since = self._retained.revision
        self.drain(attachment, now)

    def replay(self, attachment: Attachment, topic_filters: list[bytes], now: float) -> None:
        """Send what is retained for these subscriptions as the connection can take it, the first one's first."""
        if self._replays.begin(attachment.session, topic_filters):
            self.drain(attachment, now)

    def drain(self, attachment: Attachment, now: float) -> None:
        """Send what the connection, its window and its listener can take."""
        session = attachment.session
        while not attachment.paused and self._has_work(session):
            if not attachment.outlet.open:
                self.waiting[session] = attachment.outlet
                return
            if session.inflight.is_resending():
                sent = self._drain_resend(attachment, now)
            elif not session.queue.is_empty():
                sent = self._drain_queue(attachment, now)
            elif session.has_replays():
                sent = self._replays.drain(attachment, now)
            else:
                sent = self.shared.drain(attachment, now)
            if not sent:
                return

    def _has_work(self, session: Session) -> bool:
        if session.inflight.is_resending() or not session.queue.is_empty() or session.has_replays():
            return True
        return self.shared.has_work(session)

    def _drain_resend(self, attachment: Attachment, now: float) -> bool:
        inflight = attachment.session.inflight
        if not inflight.may_resend():
            return False
        delivery = inflight.take_resend(now)
        if delivery is None:
            return True
        if delivery.released:
            # [MQTT-4.4.0-1] The second half of QoS 2 is sent again, too [MQTT-4.3.3-5], and not the first
            # [MQTT-4.3.3-6].
            attachment.outlet.batch.acknowledge(PUBREL, attachment.connection, delivery.packet_id, 0)
        elif self._is_deliverable(attachment, delivery, now):
            # [MQTT-3.3.1-1] [MQTT-3.3.1-3] [MQTT311-3.3.1-1] [MQTT311-3.3.1-3] Sent again, with the flag that says so.
            head = delivery.packet_id << 16 | delivery.qos | (RETAIN_FLAG if delivery.retain else 0)
            if not delivery.fresh:
                head |= DUP_FLAG
            delivery.fresh = False
            attachment.outlet.deliver(attachment.connection, head, delivery.message, delivery.identifiers, now)
        return True

    def _drain_queue(self, attachment: Attachment, now: float) -> bool:
        session = attachment.session
        queue = session.queue
        delivery = queue.head()
        if delivery is None:
            self.loading[session] = True
            return False
        if delivery.qos and not session.inflight.has_room(delivery):
            return False
        if session.gate and delivery.seq >= session.gate:
            return False
        # [MQTT-4.9.0-2] [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT311-4.6.0-5] [MQTT311-4.6.0-6]
        queue.take(delivery)
        if queue.wants_load():
            self.loading[session] = True
        if self._is_deliverable(attachment, delivery, now):
            self.counters.queue_message_out += 1
            packet_id = session.inflight.add(delivery, now) if delivery.qos else 0
            if delivery.stored:
                # The packet id is part of the session: a resend after a restart has to use it again.
                self._store.put_delivery(session.number, delivery)
            self.counters.mqtt_publish_sent += 1
            head = packet_id << 16 | delivery.qos | (RETAIN_FLAG if delivery.retain else 0)
            attachment.outlet.deliver(attachment.connection, head, delivery.message, delivery.identifiers, now)
        return True

    def _is_deliverable(self, attachment: Attachment, delivery: Delivery, now: float) -> bool:
        """Say whether the delivery may go out; one that may not is dropped here, and counted."""
        message = delivery.message
        if message.expires_at and message.expires_at <= now and not delivery.packet_id:
            # [MQTT-3.3.2-5] A message that expired before its delivery began is not sent; later it is [MQTT-4.3.3-7].
            self.counters.drop("expired")
        elif is_too_large(attachment, message, delivery.qos, delivery.identifiers):
            # [MQTT-3.1.2-25] What is too large counts as delivered.
            self.counters.drop("max_packet_size_exceeded")
        else:
            return True
        self._end(attachment.session, delivery)
        return False

    def _end(self, session: Session, delivery: Delivery) -> None:
        """Forget a delivery that is in flight, or was taken from the queue."""
        if delivery.packet_id:
            session.inflight.pop(delivery.packet_id)
        if delivery.stored:
            self._store.delete_delivery(session.number, delivery)
        if delivery.shared:
            self.shared.forget_kept(delivery)

    def resume(self, outlet: Outlet, now: float) -> None:
        """Send to the sessions that waited for this outlet's credit, as far as it goes."""
        for session, blocked in list(self.waiting.items()):
            if not outlet.open:
                return
            if blocked is outlet and session in self.waiting:
                del self.waiting[session]
                assert session.attachment is not None
                self.drain(session.attachment, now)

    # The store.

    def wants_load(self) -> bool:
        """Say whether `load` has something to do."""
        return bool(self.loading or self.shared.loading or self._trimming or self._replays.is_due())

    def load(self, now: float) -> None:
        """Read on where queues go on in the store. Everything that was written must be committed.

        What StorageError keeps it from is done by the next call.
        """
        for session, messages_max in list(self._trimming.items()):
            self._trim(session, messages_max)
            del self._trimming[session]
        for session in list(self.loading):
            attachment = session.attachment
            if attachment is not None and session.queue.wants_load():
                self._store.load(session.number, session.queue)
            del self.loading[session]
            if attachment is not None:
                self.drain(attachment, now)
        for group in list(self.shared.loading):
            self.shared.load(group)
            self._drain_members(group, now)
        self._replays.begin_turn()
        replaying = self._replays.next_session()
        while replaying is not None:
            if replaying.attachment is not None:
                self.drain(replaying.attachment, now)
            replaying = self._replays.next_session()

    # Acknowledgements of deliveries. Each returns the reason for which the connection has to end, 0 for none.

    def acknowledged(self, attachment: Attachment, packet_id: int, now: float) -> int:
        """A PUBACK came."""
        session = attachment.session
        delivery = session.inflight.get(packet_id)
        if delivery is None:
            # The acknowledgement of a first sending may arrive after a reconnect: nothing is left to do.
            self.counters.mqtt_puback_invalid_error += 1
            return 0
        if delivery.qos != 1:
            self.counters.mqtt_puback_invalid_error += 1
            return int(Reason.PROTOCOL_ERROR)
        # [MQTT-4.4.0-2] Whatever its reason, it ends the delivery [MQTT-4.3.2-3] [MQTT311-4.3.2-1].
        self._finish(attachment, delivery, now)
        return 0

    def received(self, attachment: Attachment, packet_id: int, reason: int, now: float) -> int:
        """A PUBREC came: the client has the message, or refuses it."""
        session = attachment.session
        delivery = session.inflight.get(packet_id)
        batch = attachment.outlet.batch
        if delivery is None:
            self.counters.mqtt_pubrec_invalid_error += 1
            if reason < _FAILURE:
                batch.acknowledge(PUBREL, attachment.connection, packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND)
            return 0
        if delivery.qos != 2:
            self.counters.mqtt_pubrec_invalid_error += 1
            return int(Reason.PROTOCOL_ERROR)
        if reason >= _FAILURE:
            # [MQTT-4.4.0-2] A refusal ends the exchange, [MQTT-4.8.2-6] and no other member is asked.
            self._finish(attachment, delivery, now)
            return 0
        if not delivery.released:
            self._store.release_delivery(session.number, delivery)
            session.inflight.forget_message(delivery)
        # [MQTT-4.3.3-4] [MQTT-4.6.0-4] [MQTT311-4.3.3-1] [MQTT311-4.6.0-4] At once, and so in the order of the PUBRECs.
        batch.acknowledge(PUBREL, attachment.connection, packet_id, 0)
        if self._bytes_max >= 0 and self._has_work(session):
            # The message is held no more, and that may be all that something waits for.
            self.drain(attachment, now)
        return 0

    def completed(self, attachment: Attachment, packet_id: int, now: float) -> int:
        """A PUBCOMP came."""
        delivery = attachment.session.inflight.get(packet_id)
        if delivery is None:
            self.counters.mqtt_pubcomp_invalid_error += 1
            return 0
        if not delivery.released:
            self.counters.mqtt_pubcomp_invalid_error += 1
            return int(Reason.PROTOCOL_ERROR)
        self._finish(attachment, delivery, now)
        return 0

    def _finish(self, attachment: Attachment, delivery: Delivery, now: float) -> None:
        session = attachment.session
        self._end(session, delivery)
        if self._has_work(session):
            self.drain(attachment, now)

    def validate(self, session: Session) -> None:
        """Check the invariants of a session's deliveries."""
        session.inflight.validate()
        for delivery in session.inflight.deliveries.values():
            assert delivery.stored == session.persistent
        session.queue.validate()
        assert session.persistent or not session.queue.tail_count
        attachment = session.attachment
        if attachment is not None and not attachment.paused:
            self._validate_waiting(session, attachment)

    def _validate_waiting(self, session: Session, attachment: Attachment) -> None:
        """A session that has something to be sent has a reason why it is not."""
        if not attachment.outlet.open and session in self.waiting:
            return
        inflight = session.inflight
        if inflight.is_resending():
            assert inflight.is_full()
            return
        if session in self.loading or session.replay_due:
            return
        head = session.queue.head()
        if session.gate and (head is None or head.seq >= session.gate):
            return
        assert len(session.queue) == 0 or (head is not None and head.qos > 0 and not inflight.has_room(head))
        if len(session.queue):
            return
        # An acknowledgement goes on with it.
        is_full = inflight.is_full() or (self._bytes_max >= 0 and inflight.bytes > 0)
        assert not session.has_replays() or is_full
        if not session.has_replays():
            for group in session.groups:
                assert group in self.shared.loading or not len(group.queue) or is_full
