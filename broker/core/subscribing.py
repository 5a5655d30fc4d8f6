"""Subscribing: what SUBSCRIBE and UNSUBSCRIBE change, and what of it the other nodes have to hear.

It owns the routes' subscriptions and the wishes; it keeps sessions, routes, groups, wishes and store in step. It sends
nothing but what a new subscription is owed: its SUBACK, and retained messages.
"""

from typing import Final, final

from broker.core.dispatch import Dispatcher
from broker.core.effects import InterestChange
from broker.core.epoch import home_counter
from broker.core.events import SubscribeReceived, UnsubscribeReceived
from broker.core.groups import Groups
from broker.core.routes import Routes
from broker.core.session import Attachment, Session
from broker.core.session_rows import SessionRows
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.subscription import QOS_MASK, RETAIN_HANDLING_SHIFT, Subscription, subscription
from broker.core.wishes import Wishes
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import SHARE_PREFIX

_FAILURE: Final = 0x80
_SUCCESS: Final = 0
# Retain Handling of MQTT 5: send retained messages always, for a new subscription, never.
_SEND_IF_NEW: Final = 1
_DO_NOT_SEND: Final = 2


@final
class Suback:
    """A SUBACK that waits until other nodes know what it grants."""

    __slots__ = ("attachment", "packet_id", "reasons")

    def __init__(self, attachment: Attachment, packet_id: int, reasons: list[int]) -> None:
        self.attachment = attachment
        self.packet_id = packet_id
        self.reasons = reasons


@final
class Subscribing:
    """The subscriptions of all sessions of this node."""

    def __init__(
        self,
        settings: OwnerSettings,
        store: SessionStore,
        routes: Routes,
        rows: SessionRows,
        dispatcher: Dispatcher,
        groups: Groups,
    ) -> None:
        # What the other nodes have to hear; the owner takes it.
        self.interest: list[InterestChange] = []
        # The SUBACKs that somebody else says the time of.
        self.subacks: list[Suback] = []
        self.groups = groups
        self.wishes = Wishes()
        self._settings = settings
        self._store = store
        self._routes = routes
        self._rows = rows
        self._dispatcher = dispatcher

    def subscribe(self, attachment: Attachment, event: SubscribeReceived, now: float) -> None:
        """Make or replace subscriptions, answer, and send what is retained for them."""
        session = attachment.session
        self._hear(attachment)
        reasons: list[int] = []
        replays: list[bytes] = []
        for topic_filter, options in event.requests:
            reason = options
            if options < _FAILURE:
                reason = self._refusal(session, topic_filter)
            else:
                self._dispatcher.counters.refuse("topic_limit")
            if reason >= _FAILURE:
                reasons.append(reason)
                continue
            # [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT311-3.8.4-4] [MQTT311-3.8.4-5]
            # [MQTT311-3.9.3-1]
            reasons.append(options & QOS_MASK)
            wanted = subscription(options, event.identifier)
            new = self.set(session, topic_filter, wanted, now)
            self._note_touch(session, topic_filter)
            handling = options >> RETAIN_HANDLING_SHIFT & 3
            if handling == _DO_NOT_SEND or (handling == _SEND_IF_NEW and not new):
                # [MQTT-3.3.1-10] [MQTT-3.3.1-11]
                continue
            if not topic_filter.startswith(SHARE_PREFIX):
                # [MQTT-3.3.1-9] [MQTT-3.8.4-4] [MQTT311-3.3.1-6] [MQTT311-3.8.4-3]
                replays.append(topic_filter)
        self._write_touched(session)
        if self._settings.subacks_wait:
            # What is retained does not wait for it: PUBLISH packets may come before SUBACK.
            self.subacks.append(Suback(attachment, event.packet_id, reasons))
        else:
            attachment.outlet.batch.suback(event.connection, event.packet_id, reasons)
        if replays:
            self._dispatcher.replay(attachment, replays, now)

    def _refusal(self, session: Session, topic_filter: bytes) -> int:
        """Return why the subscription can't be made, 0 when it can."""
        limit = self._settings.max_subscriptions_per_client
        if limit and len(session.subscriptions) >= limit and topic_filter not in session.subscriptions:
            self._dispatcher.counters.refuse("max_subscriptions_per_client")
            return int(Reason.QUOTA_EXCEEDED)
        return 0

    def set(self, session: Session, topic_filter: bytes, wanted: Subscription, now: float) -> bool:
        """Make or replace a subscription [MQTT-3.8.4-3] [MQTT311-3.8.4-3]; true when it is new."""
        before = session.subscriptions.get(topic_filter)
        session.subscriptions[topic_filter] = wanted
        self._rows.subscribed(session, topic_filter, before, wanted)
        if session.persistent:
            self._store.put_subscription(session, topic_filter, wanted)
        self._route(session, topic_filter, wanted)
        if topic_filter.startswith(SHARE_PREFIX) and session.attachment is not None:
            self._dispatcher.drain(session.attachment, now)
        return before is None

    def _route(self, session: Session, topic_filter: bytes, wanted: Subscription) -> None:
        if topic_filter.startswith(SHARE_PREFIX):
            self.groups.join(session, topic_filter, wanted)
        elif not session.dormant and self._routes.set(topic_filter, session, wanted):
            self._count_wish(topic_filter, session, 1)

    def unsubscribe(self, attachment: Attachment, event: UnsubscribeReceived, now: float) -> None:
        """End subscriptions and answer."""
        session = attachment.session
        self._hear(attachment)
        reasons: list[int] = []
        for topic_filter in event.filters:
            # [MQTT-3.10.4-1] [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT311-3.10.4-1] [MQTT311-3.10.4-6] Byte by byte.
            if topic_filter not in session.subscriptions:
                reasons.append(Reason.NO_SUBSCRIPTION_EXISTED)
                continue
            reasons.append(_SUCCESS)
            self.end(session, topic_filter, now)
            self._note_touch(session, topic_filter)
        self._write_touched(session)
        attachment.outlet.batch.unsuback(event.connection, event.packet_id, reasons)

    def end(self, session: Session, topic_filter: bytes, now: float) -> None:
        """End a subscription that the session has."""
        self._rows.unsubscribed(session, topic_filter, session.subscriptions.pop(topic_filter))
        session.end_replay(topic_filter)
        self._unroute(session, topic_filter, now)
        if session.persistent:
            self._store.delete_subscription(session, topic_filter)

    def _hear(self, attachment: Attachment) -> None:
        """A client says what it wants: if it was told that it has no session, it knows that it wants nothing else."""
        session = attachment.session
        if session.unheard and attachment.is_first:
            session.unheard = False
            if session.persistent:
                self._store.put_session(session)

    def _note_touch(self, session: Session, topic_filter: bytes) -> None:
        """An older home that is still to be heard has no say in this any more."""
        if session.arrival is not None:
            session.arrival.touch(topic_filter, home_counter(session.epoch))

    def _write_touched(self, session: Session) -> None:
        if session.arrival is not None and session.persistent:
            self._store.put_arrival(session)

    def _unroute(self, session: Session, topic_filter: bytes, now: float) -> None:
        # [MQTT-3.10.4-2] [MQTT311-3.10.4-2] Nothing new is sent, and nothing retained that was still to come; what is
        # in flight is not touched [MQTT-3.10.4-3] [MQTT311-3.10.4-3].
        if topic_filter.startswith(SHARE_PREFIX):
            self.groups.leave(session, topic_filter, now)
        elif not session.dormant:
            self._routes.remove(topic_filter, session)
            self._count_wish(topic_filter, session, -1)

    def wake(self, session: Session) -> None:
        """Have what is published come to a session from now on, if it is dormant."""
        if session.dormant:
            session.dormant = False
            session.awake_from = session.next_seq
            self._store.put_awake(session)
            for topic_filter, wanted in session.subscriptions.items():
                if not topic_filter.startswith(SHARE_PREFIX):
                    self._route(session, topic_filter, wanted)

    def join_groups(self, session: Session) -> None:
        """Make a session a member of all groups that it subscribes to."""
        for topic_filter, wanted in session.subscriptions.items():
            if topic_filter.startswith(SHARE_PREFIX):
                self.groups.join(session, topic_filter, wanted)

    def end_session(self, session: Session, now: float) -> None:
        """Forget every subscription of a session that ends; what is stored of it is the caller's to delete."""
        filters = list(session.subscriptions)
        session.subscriptions = {}
        for topic_filter in filters:
            self._unroute(session, topic_filter, now)

    def restore(self, sessions: list[Session], groups: dict[bytes, SharedGroup]) -> None:
        """Take over what recovery found."""
        self.groups.restore(groups)
        for session in sessions:
            for topic_filter, wanted in session.subscriptions.items():
                self._route(session, topic_filter, wanted)

    def count(self) -> int:
        """Return how many subscriptions there are."""
        return len(self._routes) + sum(len(group.members) for group in self.groups.all.values())

    def _count_wish(self, topic_filter: bytes, session: Session, step: int) -> None:
        self._note(self.wishes.count(topic_filter, session.persistent, step))

    def _note(self, change: InterestChange | None) -> None:
        if change is not None:
            self.interest.append(change)
