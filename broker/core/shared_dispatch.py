"""Dispatching to shared groups: which member is sent a message, and what waits until one can be.

It owns the groups' queues, and what groups keep of what their members have in flight. It knows of a session only what
one message needs: whether it can be sent that now. What else waits for a member, and when it is its turn to be sent
something, is `dispatch`'s business.

Theory of operation
-------------------
A message that comes is given at once to the first member in turn that can take it, if nothing of the group waits;
otherwise it waits in the group's queue. `drain` gives a member that can take more the next of what waits. A group in
which something waits is in `waiting`; one whose queue goes on in the store is in `loading`, and is read on when the
turn begins.
"""

from collections.abc import Iterable
from typing import final

from broker.core.message import Delivery, Message
from broker.core.sending import Sender, is_too_large
from broker.core.session import Attachment, Session
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.subscription import Subscription


@final
class SharedDispatcher:
    """Hands messages to the members of shared groups."""

    def __init__(self, settings: OwnerSettings, store: SessionStore, sender: Sender) -> None:
        # By shared filter. Who is a member, and what comes here at all, is `groups`' business.
        self.groups: dict[bytes, SharedGroup] = {}
        # Groups in which something waits.
        self.waiting: dict[SharedGroup, bool] = {}
        # Groups whose next deliveries are in the store only.
        self.loading: dict[SharedGroup, bool] = {}
        # Groups of which other nodes may have to hear something else.
        self.changed: dict[SharedGroup, bool] = {}
        self.counters = sender.counters
        self._settings = settings
        self._store = store
        self._sender = sender

    def offer(self, group: SharedGroup, message: Message, now: float, waited: bool = False) -> None:
        """Send the message to the first member that can take it now, or queue it for whoever can later.

        One that has `waited` in the queue of another node has its place: it is not dropped here.
        """
        queue = group.queue
        too_large = False
        if not len(queue):
            for place in range(len(group.online)):
                session = group.in_turn(place)
                subscription = group.members[session]
                if not self._is_free(session, message, subscription):
                    continue
                attachment = session.attachment
                assert attachment is not None
                qos = self._sender.qos(message, subscription)
                if attachment.packet_bytes_max and is_too_large(attachment, message, qos, subscription.encoded):
                    too_large = True
                    continue
                group.pass_turn(place + 1)
                self._give(group, session, message, None, now)
                return
        if too_large:
            # [MQTT-3.1.2-25] It counts as delivered to one of those; what follows would wait behind it for nothing.
            self.counters.drop("max_packet_size_exceeded")
            return
        online = len(group.online) > 0
        if message.qos == 0 and not online:
            return
        delivery = Delivery(group.take_seq(), message, message.qos)
        messages_max = self._sender.messages_max(online)
        if not waited and not queue.has_room(messages_max, self._settings.max_queued_bytes, delivery.size):
            self.counters.drop("queue_full")
            if not queue.dropping:
                queue.dropping = True
                # `!r`: a filter may hold line breaks, and what else a log should not.
                name = group.shared_filter.decode()
                self._sender.notices.append(f"queue of {name!r} is full at {len(queue)} messages: dropping")
            return
        queue.note_room(messages_max, self._settings.max_queued_bytes)
        if message.qos and (group.stored or group.is_persistent()):
            # Once stored it stays so: what is in memory only would pass what is in the store.
            self._put_group_delivery(group, delivery)
        if queue.is_empty():
            self._wait(group)
        queue.push(delivery)
        self.counters.queue_message_in += 1
        if not group.full and queue.is_over(*self._shares(2)):
            group.full = True
            self.changed[group] = True

    def _shares(self, parts: int) -> tuple[int, int]:
        """Return one of so many parts of the limits of a queue in messages and bytes; negative for none."""
        messages_max = self._sender.messages_max(True)
        bytes_max = self._settings.max_queued_bytes
        return (messages_max // parts if messages_max > 0 else messages_max), (bytes_max // parts)

    def _taken(self, group: SharedGroup) -> None:
        """The queue is shorter."""
        if group.queue.is_empty():
            del self.waiting[group]
        if group.full and not group.queue.is_over(*self._shares(4)):
            group.full = False
            self.changed[group] = True

    def _wait(self, group: SharedGroup) -> None:
        """Something begins to wait: members that need nothing but credit have to be found when it comes.

        When something else kept one from taking it, the end of that drains the member, and notes this for it.
        """
        self.waiting[group] = True
        for session in group.online:
            attachment = session.attachment
            assert attachment is not None
            if not attachment.outlet.open:
                self._sender.waiting[session] = attachment.outlet

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
        delivery = self._sender.send(session, message, group.members[session], False, group.shared_filter, now)
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

    def forget_kept(self, delivery: Delivery) -> None:
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
        return self._sender.has_room(session, message, self._sender.qos(message, subscription))

    def has_work(self, session: Session) -> bool:
        """Say whether something waits in a group of this session."""
        return len(self.waiting) > 0 and len(self._waiting_of(session)) > 0

    def _waiting_of(self, session: Session) -> list[SharedGroup]:
        """Return the session's groups in which something waits, of all or of its own, whichever are fewer.

        It is asked for each acknowledgement, and a client may be in as many groups as it likes.
        """
        if len(session.groups) <= len(self.waiting):
            return [group for group in session.groups if not group.queue.is_empty()]
        return [group for group in self.waiting if session in group.members]

    def drain(self, attachment: Attachment, now: float) -> bool:
        """Send the next of what waits in its groups to this member; false when there is nothing it can take."""
        return any(self._drain(attachment, group, now) for group in self._waiting_of(attachment.session))

    def _drain(self, attachment: Attachment, group: SharedGroup, now: float) -> bool:
        """Send the next of what waits in the group to this member; false when there is nothing it can take."""
        delivery = group.queue.head()
        if delivery is None:
            if group.queue.tail_count:
                self.loading[group] = True
            return False
        session = attachment.session
        subscription = group.members[session]
        message = delivery.message
        expired = message.expires_at != 0.0 and message.expires_at <= now
        if not expired and not self._sender.has_room(session, message, self._sender.qos(message, subscription)):
            return False
        group.queue.take(delivery)
        self._taken(group)
        if group.queue.wants_load():
            self.loading[group] = True
        if expired:
            self.counters.drop("expired")
        elif is_too_large(attachment, message, self._sender.qos(message, subscription), subscription.encoded):
            self.counters.drop("max_packet_size_exceeded")
        else:
            self.counters.queue_message_out += 1
            self._give(group, session, message, delivery, now)
            return True
        if delivery.stored:
            self._store.delete_delivery(group.number, delivery)
        return True

    def take(self, group: SharedGroup, delivery: Delivery) -> None:
        """Take the head of a group's queue, which goes elsewhere or nowhere."""
        group.queue.take(delivery)
        self._taken(group)
        if delivery.stored:
            self._store.delete_delivery(group.number, delivery)

    def group_ends(self, group: SharedGroup) -> None:
        """Nobody is left: what waits goes, too."""
        waiting = len(group.queue)
        if waiting:
            self.counters.drop("group_ended", waiting)
        if group.stored:
            self._store.delete_group(group)
        self.loading.pop(group, None)
        self.waiting.pop(group, None)

    def member_gone(self, group: SharedGroup) -> None:
        """A member's connection ended: QoS 0 does not wait when it was the last one."""
        if not group.online:
            dropped = group.queue.drop_qos0()
            if dropped:
                self.counters.drop("offline_qos0", dropped)
                self._taken(group)

    def load(self, group: SharedGroup) -> None:
        """Read on where the queue of one in `loading` goes on in the store; then it is no more in it.

        Everything that was written must be committed.
        """
        if group.queue.wants_load():
            self._store.load(group.number, group.queue)
        del self.loading[group]

    def validate(self, sessions: Iterable[Session]) -> None:
        """Check the invariants of the groups; `sessions` are all of the node."""
        for group in self.groups.values():
            group.validate()
            assert (group in self.waiting) == (not group.queue.is_empty())
        self._validate_kept(sessions)

    def _validate_kept(self, sessions: Iterable[Session]) -> None:
        """What groups keep is in flight, and stands in the store ahead of their queues."""
        in_flight = {of for session in sessions for of in session.inflight.deliveries.values()}
        for group in self.groups.values():
            head = group.queue.head()
            for delivery, record in group.kept.items():
                assert delivery in in_flight
                assert delivery.shared == group.shared_filter
                assert record.stored
                assert head is None or record.seq < head.seq
