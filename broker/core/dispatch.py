"""Dispatching: from a message and its route to what each session's connection is sent, queues, or loses.

It owns the decision what a session gets now, later or never, and the life of a delivery up to its acknowledgement. It
knows sessions, groups, outlets and what is stored of them; who publishes, who is acknowledged and what other nodes want
is not its business.

Theory of operation
-------------------
A delivery goes out at once when the session is attached, its client reads, its listener has credit, nothing older
waits and, from QoS 1 on, the window has room. Otherwise QoS 1 and 2 wait in the queue, and QoS 0 does too while the
client is connected. `drain` sends whenever one of those reasons ended: first again what was in flight, then the queue,
then retained messages that a subscription asked for, then what its shared groups have waiting. A session whose only
obstacle is its listener's credit is in `waiting`, so that returning credit finds it; one whose queue goes on in the
store is in `loading`, and `load` reads on when the turn begins, with everything committed that was written.

Retained messages are looked for in `load` only, REPLAY_STEPS_MAX steps a turn for all sessions together: whoever asks
for many, or for the same ones again and again, waits for them and not the others.
"""

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core.fifo import Fifo
from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.owner_records import pack_target
from broker.core.records import DUP_FLAG, PUBREL, RETAIN_FLAG
from broker.core.retained import RetainedStore, RetainedWalk, is_expired
from broker.core.routes import Route
from broker.core.session import Attachment, Replay, Session
from broker.core.session_store import SessionStore
from broker.core.settings import Counters, OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.subscription import NO_LOCAL, QOS_MASK, RETAIN_AS_PUBLISHED, Subscription
from broker.mqtt.framing import varint_bytes
from broker.mqtt.reasons import Reason

# A Message Expiry Interval: its identifier and four bytes.
_EXPIRY_PROPERTY_BYTES: Final = 5
# How far a turn looks for retained messages that are to be replayed: about a millisecond's work, what is sent included.
REPLAY_STEPS_MAX: Final = 500
_FAILURE: Final = 0x80


@final
class Dispatcher:
    """Hands messages to sessions."""

    def __init__(self, settings: OwnerSettings, store: SessionStore, retained: RetainedStore) -> None:
        self.counters = Counters()
        self.notices: list[str] = []
        # By shared filter. Who subscribes is `Subscribing`'s business.
        self.groups: dict[bytes, SharedGroup] = {}
        # Sessions that would have sent something and could not, because their listener has no credit.
        self.waiting: dict[Session, Outlet] = {}
        # Sessions and groups whose next deliveries are in the store only.
        self.loading: dict[Session, bool] = {}
        self.loading_groups: dict[SharedGroup, bool] = {}
        # Groups in which something waits.
        self.waiting_groups: dict[SharedGroup, bool] = {}
        # Sessions that retained messages are to be looked for, who waits longest first, and how far this turn may look.
        self._replaying: Fifo[Session] = Fifo()
        self._steps_left: int = 0
        # LIFO queues that have to lose what is in the store only, and how many messages they may keep.
        self._trimming: dict[Session, int] = {}
        self._settings = settings
        self._store = store
        self._retained = retained
        self._upgrade = settings.upgrade_outgoing_qos

    # A message comes.

    def deliver(self, message: Message, route: Route, now: float) -> int:
        """Offer the message to each session and send it, once for each listener, to those that can take it.

        Returns how many sessions and groups it was for, whatever became of it there.
        """
        for group in route.groups:
            self._offer_group(group, message, now)
        sessions = route.sessions
        granted = route.granted
        matched = len(sessions) + len(route.groups)
        own: Session | None = None
        if route.no_local:
            # [MQTT-3.8.3-3] No Local: the publisher's own subscription is left out.
            own = route.no_local.get(message.publisher)
            if own is not None:
                matched -= 1
        self.counters.router_matches_local += matched
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
        if attachment is not None and _is_too_large(attachment, message, qos, identifiers):
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
        if qos and sendable and session.is_caught_up() and session.inflight.has_room(delivery):
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
        messages_max = self._messages_max(attachment is not None)
        if messages_max >= 0 and attachment is not None:
            # What waits at the listener waits all the same.
            messages_max = max(0, messages_max - session.inflight.ahead_count())
        bytes_max = self._settings.max_queued_bytes
        if attachment is None and not queue.has_room(messages_max, bytes_max, delivery.size):
            # Of a session that is connected this is done as the queue goes out.
            self._drop_expired(session, now)
        if not queue.has_room(messages_max, bytes_max, delivery.size):
            if not queue.dropping:
                queue.dropping = True
                self.notices.append(f"queue of {session.client_id!r} is full at {len(queue)} messages: dropping")
            if not queue.lifo or messages_max == 0:
                self.counters.drop("queue_full")
                return
            self._make_room(session, messages_max, delivery.size)
        else:
            queue.note_room(messages_max, bytes_max)
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
        while not queue.has_room(messages_max, self._settings.max_queued_bytes, size):
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
        bytes_max = self._settings.max_queued_bytes
        dropped = self._store.trim(session.number, queue, messages_max, bytes_max)
        while not queue.tail_count and queue.is_over(messages_max, bytes_max):
            oldest = queue.pop_oldest()
            assert oldest is not None
            if oldest.stored:
                self._store.delete_delivery(session.number, oldest)
            dropped += 1
        if dropped:
            self.counters.drop("queue_full", dropped)

    def session_ended(self, session: Session, now: float) -> None:
        """Nothing of its queue is to be read or trimmed. What groups had given to it at QoS 1 is another member's.

        What it had at QoS 2 must not go to anybody else [MQTT-4.8.2-5].
        """
        self._trimming.pop(session, None)
        if len(session.queue):
            self.counters.drop("session_ended", len(session.queue))
        for delivery in session.inflight.deliveries.values():
            group = self.groups.get(delivery.shared) if delivery.qos == 1 else None
            if group is None:
                continue
            message = delivery.message
            if message.expires_at and message.expires_at <= now:
                # [MQTT-3.3.2-5] Its delivery to another has not begun.
                self.counters.drop("expired")
            else:
                self._offer_group(group, message, now)
            self._forget_kept(delivery)

    def _messages_max(self, online: bool) -> int:
        settings = self._settings
        if not online:
            return settings.max_offline_messages
        if settings.override_max_online_messages and settings.max_online_messages >= 0:
            if settings.max_offline_messages < 0:
                return -1
            return max(settings.max_online_messages, settings.max_offline_messages)
        return settings.max_online_messages

    # Shared groups.

    def _offer_group(self, group: SharedGroup, message: Message, now: float) -> None:
        """Send the message to the first member that can take it now, or queue it for whoever can later."""
        queue = group.queue
        too_large = False
        if not len(queue):
            for place, session in enumerate(group.in_turn()):
                subscription = group.members[session]
                if not self._is_free(session, message, subscription):
                    continue
                attachment = session.attachment
                assert attachment is not None
                qos = self._qos(message, subscription)
                if attachment.packet_bytes_max and _is_too_large(attachment, message, qos, subscription.encoded):
                    too_large = True
                    continue
                group.pass_turn(place + 1)
                self._give(group, session, message, None, now)
                return
        if too_large:
            # [MQTT-3.1.2-25] It counts as delivered to one of those; what follows would wait behind it for nothing.
            self.counters.drop("max_packet_size_exceeded")
            return
        online = group.is_online()
        if message.qos == 0 and not online:
            return
        delivery = Delivery(group.take_seq(), message, message.qos)
        messages_max = self._messages_max(online)
        if not queue.has_room(messages_max, self._settings.max_queued_bytes, delivery.size):
            self.counters.drop("queue_full")
            if not queue.dropping:
                queue.dropping = True
                # `!r`: a filter may hold line breaks, and what else a log should not.
                name = group.shared_filter.decode()
                self.notices.append(f"queue of {name!r} is full at {len(queue)} messages: dropping")
            return
        queue.note_room(messages_max, self._settings.max_queued_bytes)
        if message.qos and (group.stored or group.is_persistent()):
            # Once stored it stays so: what is in memory only would pass what is in the store.
            self._put_group_delivery(group, delivery)
        queue.push(delivery)
        self.waiting_groups[group] = True
        self.counters.queue_message_in += 1
        for session in group.members:
            attachment = session.attachment
            if attachment is not None and not attachment.outlet.open:
                self.waiting[session] = attachment.outlet

    def _put_group_delivery(self, group: SharedGroup, delivery: Delivery) -> None:
        if not group.stored:
            group.stored = True
            self._store.put_group(group)
        self._store.put_delivery(group.number, delivery)

    def _give(
        self, group: SharedGroup, session: Session, message: Message, record: Delivery | None, now: float
    ) -> None:
        """Send a message to a member that can take it; `record` is what the group's queue had of it, None if nothing.

        A member whose session is not stored may go with the process, and then the group has to have the message still.
        """
        delivery = self._send(session, message, group.members[session], False, group.shared_filter, now)
        if (
            message.qos
            and delivery is not None
            and delivery.qos == 1
            and not session.persistent
            and group.is_persistent()
            # What is not stored was taken when nothing of the group outlived a connection.
            and (record is None or record.stored)
        ):
            if record is None:
                record = Delivery(group.take_seq(), message, message.qos)
                self._put_group_delivery(group, record)
            group.kept[delivery] = record
        elif record is not None and record.stored:
            self._store.delete_delivery(group.number, record)

    def _forget_kept(self, delivery: Delivery) -> None:
        """A delivery came to its end: if its group kept a record of it, that goes."""
        group = self.groups.get(delivery.shared)
        record = group.kept.pop(delivery, None) if group is not None else None
        if group is not None and record is not None:
            self._store.delete_delivery(group.number, record)

    def _is_free(self, session: Session, message: Message, subscription: Subscription) -> bool:
        """Say whether the session could be sent the message now, if it is not too large."""
        attachment = session.attachment
        if attachment is None or attachment.paused or not attachment.outlet.open or not session.is_caught_up():
            return False
        return not self._qos(message, subscription) or not session.inflight.is_full()

    def _qos(self, message: Message, subscription: Subscription) -> int:
        granted = subscription.options & QOS_MASK  # [MQTT-4.8.2-3]
        return granted if self._upgrade else min(message.qos, granted)

    def _send(
        self, session: Session, message: Message, subscription: Subscription, retained: bool, shared: bytes, now: float
    ) -> Delivery | None:
        """Send a message to a session that can take it, outside its queue; the result is what is in flight now."""
        attachment = session.attachment
        assert attachment is not None
        qos = self._qos(message, subscription)
        # [MQTT311-3.3.1-8] What a new subscription is sent carries the flag.
        retain = retained or (message.retain and subscription.options & RETAIN_AS_PUBLISHED != 0)
        flags: i64 = qos | (RETAIN_FLAG if retain else 0)
        packet_id: i64 = 0
        delivery: Delivery | None = None
        if qos:
            delivery = Delivery(session.take_seq(), message, qos, retain, subscription.encoded)
            delivery.shared = shared
            packet_id = session.inflight.add(delivery, now)
            if session.persistent:
                self._store.put_delivery(session.number, delivery)
        self.counters.mqtt_publish_sent += 1
        attachment.outlet.deliver(attachment.connection, packet_id << 16 | flags, message, subscription.encoded, now)
        return delivery

    def _drain_group(self, attachment: Attachment, group: SharedGroup, now: float) -> bool:
        """Send the next of what waits in the group to this member; false when there is nothing it can take."""
        delivery = group.queue.head()
        if delivery is None:
            if group.queue.tail_count:
                self.loading_groups[group] = True
            return False
        session = attachment.session
        subscription = group.members[session]
        message = delivery.message
        expired = message.expires_at != 0.0 and message.expires_at <= now
        if not expired and self._qos(message, subscription) and session.inflight.is_full():
            return False
        group.queue.take(delivery)
        if group.queue.is_empty():
            del self.waiting_groups[group]
        if group.queue.wants_load():
            self.loading_groups[group] = True
        if expired:
            self.counters.drop("expired")
        elif _is_too_large(attachment, message, self._qos(message, subscription), subscription.encoded):
            self.counters.drop("max_packet_size_exceeded")
        else:
            self.counters.queue_message_out += 1
            self._give(group, session, message, delivery, now)
            return True
        if delivery.stored:
            self._store.delete_delivery(group.number, delivery)
        return True

    def group_ends(self, group: SharedGroup) -> None:
        """The last member went: what waits goes with it."""
        waiting = len(group.queue)
        if waiting:
            self.counters.drop("group_ended", waiting)
        if group.stored:
            self._store.delete_group(group)
        self.loading_groups.pop(group, None)
        self.waiting_groups.pop(group, None)

    def member_gone(self, group: SharedGroup, now: float) -> None:
        """A member's connection ended: another may have what only it could have taken."""
        for session in list(group.members):
            if session.attachment is not None and len(group.queue):
                self.drain(session.attachment, now)
        if not group.is_online():
            dropped = group.queue.drop_qos0()
            if dropped:
                self.counters.drop("offline_qos0", dropped)
                if group.queue.is_empty():
                    del self.waiting_groups[group]

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
        if not len(self._retained):
            return
        for topic_filter in reversed(topic_filters):
            walk = self._retained.walk(topic_filter)
            attachment.session.begin_replay(Replay(topic_filter, walk, self._retained.revision))
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
                sent = self._drain_replay(attachment, now)
            else:
                sent = self._drain_groups(attachment, now)
            if not sent:
                return

    def _has_work(self, session: Session) -> bool:
        if session.inflight.is_resending() or not session.queue.is_empty() or session.has_replays():
            return True
        return len(self.waiting_groups) > 0 and len(self._waiting_groups_of(session)) > 0

    def _waiting_groups_of(self, session: Session) -> list[SharedGroup]:
        """Return the session's groups in which something waits, of all or of its own, whichever are fewer.

        It is asked for each acknowledgement, and a client may be in as many groups as it likes.
        """
        if len(session.groups) <= len(self.waiting_groups):
            return [group for group in session.groups if not group.queue.is_empty()]
        return [group for group in self.waiting_groups if session in group.members]

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

    def _drain_replay(self, attachment: Attachment, now: float) -> bool:
        session = attachment.session
        replay = session.next_replay()
        if replay is None:
            return True
        # As the client subscribes now, if it has done so again: nothing is lost by that [MQTT-3.8.4-4].
        subscription = session.subscriptions[replay.topic_filter]
        walk = replay.walk
        message = walk.message
        if message is None:
            return self._look_further(session, walk)
        if self._is_owed(session, replay, message, subscription, now):
            qos = self._qos(message, subscription)
            if qos and session.inflight.is_full():
                return False
            if _is_too_large(attachment, message, qos, subscription.encoded):
                self.counters.drop("max_packet_size_exceeded")
            else:
                self._send(session, message, subscription, True, b"", now)
        walk.leave()
        return True

    def _look_further(self, session: Session, walk: RetainedWalk) -> bool:
        """Look for the next retained message, if this turn may; false when it may not."""
        if walk.is_at_end():
            session.replay = None
        elif self._steps_left > 0:
            self._steps_left -= walk.find(self._steps_left)
        else:
            if not session.replay_due:
                session.replay_due = True
                self._replaying.append(session)
            return False
        return True

    def _is_owed(
        self, session: Session, replay: Replay, message: Message, subscription: Subscription, now: float
    ) -> bool:
        """Say whether a retained message is to be sent to a subscription that is replayed to."""
        if is_expired(message, now):
            return False
        if subscription.options & NO_LOCAL and message.publisher == session.client_id:
            # [MQTT-3.8.3-3] It makes no exception for what is retained.
            return False
        if replay.walk.revision <= replay.revision:
            return True
        # It came after the subscription and so as a live message, but for one of QoS 0 whose receiver was away.
        return not self._qos(message, subscription) and replay.walk.revision <= session.live_since

    def _drain_groups(self, attachment: Attachment, now: float) -> bool:
        return any(self._drain_group(attachment, group, now) for group in self._waiting_groups_of(attachment.session))

    def _is_deliverable(self, attachment: Attachment, delivery: Delivery, now: float) -> bool:
        """Say whether the delivery may go out; one that may not is dropped here, and counted."""
        message = delivery.message
        if message.expires_at and message.expires_at <= now and not delivery.packet_id:
            # [MQTT-3.3.2-5] A message that expired before its delivery began is not sent; later it is [MQTT-4.3.3-7].
            self.counters.drop("expired")
        elif _is_too_large(attachment, message, delivery.qos, delivery.identifiers):
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
            self._forget_kept(delivery)

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
        return bool(self.loading or self.loading_groups or self._trimming or not self._replaying.is_empty())

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
        for group in list(self.loading_groups):
            if group.queue.wants_load():
                self._store.load(group.number, group.queue)
            del self.loading_groups[group]
            for session in list(group.members):
                if session.attachment is not None:
                    self.drain(session.attachment, now)
        self._go_on_replaying(now)

    def _go_on_replaying(self, now: float) -> None:
        """Look for retained messages as far as a turn may; who is not done then waits behind the others."""
        self._steps_left = REPLAY_STEPS_MAX
        while self._steps_left > 0 and not self._replaying.is_empty():
            self._steps_left -= 1
            session = self._replaying.popleft()
            session.replay_due = False
            if session.attachment is not None:
                self.drain(session.attachment, now)
        self._steps_left = 0

    # Acknowledgements of deliveries. Each returns the reason for which the connection has to end, 0 for none.

    def acknowledged(self, attachment: Attachment, packet_id: int, now: float) -> int:
        """A PUBACK came."""
        session = attachment.session
        delivery = session.inflight.get(packet_id)
        if delivery is None:
            # The acknowledgement of a first sending may arrive after a reconnect: nothing is left to do.
            return 0
        if delivery.qos != 1:
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
            if reason < _FAILURE:
                batch.acknowledge(PUBREL, attachment.connection, packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND)
            return 0
        if delivery.qos != 2:
            return int(Reason.PROTOCOL_ERROR)
        if reason >= _FAILURE:
            # [MQTT-4.4.0-2] A refusal ends the exchange, [MQTT-4.8.2-6] and no other member is asked.
            self._finish(attachment, delivery, now)
            return 0
        if not delivery.released:
            self._store.release_delivery(session.number, delivery)
        # [MQTT-4.3.3-4] [MQTT-4.6.0-4] [MQTT311-4.3.3-1] [MQTT311-4.6.0-4] At once, and so in the order of the PUBRECs.
        batch.acknowledge(PUBREL, attachment.connection, packet_id, 0)
        return 0

    def completed(self, attachment: Attachment, packet_id: int, now: float) -> int:
        """A PUBCOMP came."""
        delivery = attachment.session.inflight.get(packet_id)
        if delivery is None:
            return 0
        if not delivery.released:
            return int(Reason.PROTOCOL_ERROR)
        self._finish(attachment, delivery, now)
        return 0

    def _finish(self, attachment: Attachment, delivery: Delivery, now: float) -> None:
        session = attachment.session
        self._end(session, delivery)
        if self._has_work(session):
            self.drain(attachment, now)


def _is_too_large(attachment: Attachment, message: Message, qos: i64, identifiers: bytes) -> bool:
    """Say whether the PUBLISH would be over the client's Maximum Packet Size [MQTT-3.1.2-24], if it named one."""
    if not attachment.packet_bytes_max:
        return False
    properties: i64 = len(message.properties) + len(identifiers)
    if message.expires_at:
        properties += _EXPIRY_PROPERTY_BYTES
    body: i64 = 2 + len(message.topic) + varint_bytes(properties) + properties + len(message.payload)
    if qos:
        body += 2
    return 1 + varint_bytes(body) + body > attachment.packet_bytes_max
