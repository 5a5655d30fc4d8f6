"""The queue-owner: sessions, subscriptions and queues of one node, and what happens to a message.

It is told events and the time, and answers with effects; it knows no sockets, processes, disks or
clocks. Other nodes exist for it only as names in `Forward` effects and as `Interest`.

Theory of operation
-------------------
A connection attaches to a session and detaches from it; this module owns the two ends of that. Which sessions there
are, and when the time of one is over, is `lifetimes`', what a client publishes `publishing`'s, what it subscribes to
`subscribing`'s, what it is sent `dispatch`'s business. Writes go into the turn's batch, which the shell commits before
anything else of the turn leaves, so an acknowledgement never runs ahead of what it promises.

Invariants, checked by `validate`: an attachment and its session point at each other; every subscription is in the tree
once; a queue and a window hold together no delivery twice; stored deliveries exist for persistent sessions only; a
session that waits has a reason to.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, final

from broker.core.counters import ListenerTotals
from broker.core.degraded import Degraded
from broker.core.dispatch import Dispatcher
from broker.core.draining import Draining
from broker.core.effects import Effects, Forward, Ticket
from broker.core.epoch import Epoch, first_epoch
from broker.core.events import (
    CONNECTION_LOST,
    NEVER_EXPIRES_S,
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    CreditReturned,
    Detach,
    Event,
    ListenerCounted,
    ListenerGone,
    ListenerStarted,
    PubackReceived,
    PubcompReceived,
    PublishReceived,
    PubrecReceived,
    PubrelReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.forwarding import Forwarding
from broker.core.full_links import FullLinks
from broker.core.groups import Groups
from broker.core.inflight import AHEAD_MAX, PACKET_ID_MAX
from broker.core.left_will import LeftWill
from broker.core.legacies import Legacies
from broker.core.lifetimes import Lifetimes
from broker.core.message import Message
from broker.core.netsplit_gate import NetsplitGate
from broker.core.outlet import Outlet
from broker.core.publishing import WAITS, Publishing
from broker.core.retained import RetainedStore
from broker.core.routes import Interest, Routes
from broker.core.session import Attachment, Session
from broker.core.session_rows import SessionRows
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.storage import Storage, WriteBatch
from broker.core.stored_message import Clock
from broker.core.subscribing import Suback, Subscribing
from broker.core.transfer import Departure, Transfers
from broker.core.will import Will
from broker.core.wills import Wills
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import SHARE_PREFIX

_SUCCESS: Final = 0
# This side closed the connection for a reason of its own: the client has the grace to come back.
_GRACEFUL: Final = (int(Reason.SERVER_SHUTTING_DOWN), int(Reason.SERVER_MOVED))
# How often a turn looks for deliveries to send again, where `retry_interval` asks for it.
_RETRY_CHECK_S: Final = 1.0


class Registrar(Protocol):
    """Who sees to it that a client id has one home in the cluster."""

    def attach(self, event: Attach, now: float) -> None:
        """Take a CONNECT, and have the owner attach or refuse it, now or later."""

    def detach(self, connection: int, now: float) -> None:
        """A connection that is not attached ended."""

    def lose_listener(self, listener: int, now: float) -> None:
        """All connections of a listener ended."""


@final
class QueueOwner:
    """Everything of one node that survives a connection. Call `take_effects` after every turn."""

    def __init__(
        self, settings: OwnerSettings, storage: Storage, interest: Interest, store_id: bytes, incarnation: int
    ) -> None:
        self.settings = settings
        self.retained = RetainedStore(settings.retained_messages_max, settings.retained_bytes_max, store_id)
        self._storage = storage
        self._store = SessionStore(storage)
        self._routes = Routes(interest)
        self._dispatcher = Dispatcher(settings, self._store, self.retained)
        self._rows = SessionRows()
        self._forwarding = Forwarding()
        self._groups = Groups(
            settings,
            self._store,
            self._routes,
            self._dispatcher,
            self._forwarding,
            interest,
            int.from_bytes(store_id[:8], "big"),
        )
        self._subscribing = Subscribing(settings, self._store, self._routes, self._rows, self._dispatcher, self._groups)
        self._publishing = Publishing(
            settings,
            self._store,
            self._routes,
            self._dispatcher,
            self._groups,
            self._forwarding,
            self.retained,
            store_id,
            incarnation,
        )
        self.wills = Wills(self._store, self._rows, incarnation)
        self.counters = self._dispatcher.counters
        self.totals = ListenerTotals()
        self._lifetimes = Lifetimes(
            settings,
            self._store,
            self._subscribing,
            self._rows,
            self._dispatcher,
            self._publishing,
            self.wills,
            store_id,
        )
        self._sessions = self._lifetimes.sessions
        self.transfers = Transfers(
            settings, self._store, self._subscribing, self._dispatcher, self.wills, self._rows, self._lifetimes
        )
        self.legacies = Legacies(self._store, self.transfers, self._rows, store_id)
        self._attachments: dict[int, Attachment] = {}
        self._outlets: dict[int, Outlet] = {}
        self._retry_at: float = math.inf
        self._store_id = store_id
        self._registrar: Registrar | None = None
        self.netsplit = NetsplitGate(
            settings, self._attachments, self._outlets, self.counters, self._receive_held, self._close, self.is_behind
        )
        self.full_links = FullLinks(self._attachments, self._publish_held)
        self.draining = Draining(
            self._attachments, self._sessions, self.transfers, self.wills, self._groups, self._close
        )
        self.degraded = Degraded(
            self._attachments, self._outlets, self.counters, self.receive, self.netsplit, self.full_links
        )
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Attach: self._attach_asked,
            Detach: self._detach_received,
            PubackReceived: self._puback,
            PubrecReceived: self._pubrec,
            PubrelReceived: self._pubrel,
            PubcompReceived: self._pubcomp,
            SubscribeReceived: self._subscribe,
            UnsubscribeReceived: self._unsubscribe,
            ConnectionPaused: self._pause,
            ConnectionResumed: self._resume,
            ListenerStarted: self._listener_started,
            ListenerGone: self._listener_gone,
            ListenerCounted: self._listener_counted,
            CreditReturned: self._credit_returned,
        }

    # The shell's side.

    def recover(self, now: float, utc_ms: int, progress: Callable[[str], None] | None = None) -> None:
        """Read what is stored; call it once, before the first event. `progress` hears how far it is."""
        self.set_clock(now, utc_ms)
        settings = self.settings
        window = settings.max_inflight_messages or PACKET_ID_MAX
        sessions, groups = self._store.recover(window, settings.queue_lifo, progress or _ignore)
        self._subscribing.restore(sessions, groups)
        self.retained.recover(self._storage, self._store.clock)
        lasting = {session.client_id for session in sessions if session.expiry_s}
        self.wills.recover(
            self._storage, now, float(settings.leave_will_grace_s), float(settings.max_last_will_delay_s), lasting
        )
        self._lifetimes.restore([session for session in sessions if not session.departing], now)
        self.transfers.restore(sessions)

    def publish_will(self, left: LeftWill, now: float) -> None:
        """Publish a will that was another node's."""
        self._publishing.publish_will(left, now)

    def set_clock(self, now: float, utc_ms: int) -> None:
        """Take a reading of both clocks, for the deadlines that are stored; each turn has its own."""
        self._store.clock.set(now, utc_ms)

    def begin(self, now: float) -> None:
        """Begin a turn: read on where queues go on in the store, if everything that was written is committed.

        What is told between two turns may have written something; then the next turn, which is due at once, reads.
        """
        if len(self._store.writes):
            return
        self._store.committed()
        if self._dispatcher.wants_load():
            self._dispatcher.load(now)
        self.netsplit.work_off(now)
        self.full_links.work_off(now)

    def receive(self, event: Event, now: float) -> None:
        """Do what one event asks for."""
        if not self.netsplit.is_open and self.netsplit.receive(event, now):
            return
        self._receive(event, now)

    def _receive(self, event: Event, now: float) -> None:
        if isinstance(event, PublishReceived):
            attachment = self._attachments.get(event.connection)
            if attachment is not None:
                self.counters.mqtt_publish_received += 1
                full_links = self.full_links
                if event.message.qos and full_links.is_holding(event.connection):
                    full_links.hold(event, now)
                    return
                reason = self._publishing.publish(attachment, event, full_links.has_patience, now)
                if reason == WAITS:
                    full_links.hold(event, now)
                elif reason:
                    self._close(attachment, reason, now)
        else:
            self._handlers[type(event)](event, now)

    def _publish_held(self, attachment: Attachment, event: PublishReceived, may_wait: bool, now: float) -> int:
        """Publish what had to wait for room at another node, if that is there."""
        if 0.0 < event.message.expires_at <= now:
            self._publishing.publish_expired(attachment, event, now)
            return _SUCCESS
        reason = self._publishing.publish(attachment, event, may_wait, now)
        if reason != WAITS:
            self._close_for(attachment, reason, now)
        return reason

    def _receive_held(self, event: Event, now: float) -> None:
        """Do what an event asks for that had to wait until the node was ready."""
        if isinstance(event, PublishReceived) and 0.0 < event.message.expires_at <= now:
            attachment = self._attachments.get(event.connection)
            if attachment is not None:
                self.counters.mqtt_publish_received += 1
                self._publishing.publish_expired(attachment, event, now)
        else:
            self._receive(event, now)

    def receive_degraded(self, event: Event, now: float) -> bool:
        """Do what one event asks for while the store takes no writes; false: it has to wait for the store."""
        return self.degraded.receive(event, now)

    def receive_forwarded(self, message: Message, now: float) -> None:
        """Deliver to sessions what another node forwarded; it is never forwarded again (one hop)."""
        self._publishing.receive_forwarded(message, now)

    def receive_for_groups(
        self, message: Message, shared_filters: list[bytes], now: float, waited: bool = False
    ) -> None:
        """Give a message to these groups, or have another node do so where that is not possible here.

        `waited` says that it comes out of the queue of another node.
        """
        for shared_filter in shared_filters:
            self._groups.place(shared_filter, message, now, waited)

    def publish_here(self, message: Message, now: float) -> None:
        """Deliver what concerns this node alone to its own sessions and groups."""
        self._publishing.publish_here(message, now)

    def can_move(self, shared_filter: bytes, message: Message) -> bool:
        """Say whether somebody else that runs could have a group's message that a node was to have which does not."""
        return self._groups.can_move(shared_filter, message)

    def others_changed(self, shared_filter: bytes) -> None:
        """Another node's part of a shared group began, changed or ended."""
        self._groups.others_changed(shared_filter)

    def forward_acknowledged(self, ticket: Ticket, now: float) -> None:
        """One of the nodes that the PUBLISH waited for has taken the message."""
        ticket.waiting -= 1
        if ticket.waiting:
            return
        attachment = self._attachments.get(ticket.connection)
        if attachment is not None:
            reason = self._publishing.release_pending(attachment)
            if reason:
                self._close(attachment, reason, now)

    def take_subacks(self) -> list[Suback]:
        """Return the SUBACKs that wait, with `subacks_wait`, since the last call; `answer` sends one."""
        subacks = self._subscribing.subacks
        if subacks:
            self._subscribing.subacks = []
        return subacks

    def answer(self, suback: Suback) -> None:
        """Send a SUBACK that has waited, if its connection is still there."""
        attachment = suback.attachment
        if self._attachments.get(attachment.connection) is attachment:
            attachment.outlet.batch.suback(attachment.connection, suback.packet_id, suback.reasons)

    def register_with(self, registrar: Registrar) -> None:
        """Leave it to the registrar when a CONNECT is attached; without one that is at once."""
        self._registrar = registrar

    def ask_room(self, has_room: Callable[[str, Message], bool]) -> None:
        """Ask this whether a node can be sent a message that it has to have; without it every node can."""
        self._forwarding.has_room = has_room

    def ask_complete(self, is_complete: Callable[[], bool]) -> None:
        """Ask this whether all that other members have is known; without it there are none."""
        self._groups.is_complete = is_complete

    def become_oldest(self, was_member: bool) -> None:
        """This node joins a cluster, maybe once more: what it has adds to what is there, and overrides nothing."""
        self.retained.become_oldest(self._store.writes, self._store.clock)
        self._lifetimes.become_oldest(was_member)

    def interest_changed(self) -> None:
        """The other nodes' interest changed: remembered routes are void."""
        self._routes.invalidate()

    def local_interest(self) -> list[tuple[bytes, bool]]:
        """Return every (filter, persistent) that sessions of this node want."""
        return self._subscribing.wishes.snapshot()

    def local_rows(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (table, row, value) of what the other nodes have to know of this node's sessions and wills."""
        stubs = [
            departure.session
            for client_id, departure in self.transfers.departures.items()
            if client_id not in self._sessions
        ]
        yield from self._rows.snapshot([*self._sessions.values(), *stubs])
        yield from self.wills.rows()
        yield from self._groups.snapshot()

    def depart(self, client_id: str, now: float, is_takeover: bool = True) -> Departure | None:
        """Close the client's connection and freeze its session, which is another node's; None when there is none.

        `is_takeover`: a client has connected there since. Else that one takes it from a node that is to go, or was its
        home by a later epoch when this node heard of it, and whether a client is there is not known.
        """
        session = self._sessions.get(client_id)
        if session is not None and session.attachment is not None:
            # [MQTT-3.1.4-3] [MQTT311-3.1.4-2] Its client has connected to another node. Who hears that need not come
            # back; who may be the only one is to, and its will waits for that.
            reason = Reason.SESSION_TAKEN_OVER if is_takeover else Reason.SERVER_SHUTTING_DOWN
            self._close(session.attachment, reason, now)
            session = self._sessions.get(client_id)
        if session is None:
            return self.transfers.departures.get(client_id)
        return self.transfers.depart(session)

    def discard(self, client_id: str, now: float) -> None:
        """Close the client's connection and end its session: it began anew at another node [MQTT-3.1.4-4]."""
        session = self._sessions.get(client_id)
        if session is not None and session.attachment is not None:
            self._close(session.attachment, Reason.SESSION_TAKEN_OVER, now)
            session = self._sessions.get(client_id)
        if session is not None:
            self._lifetimes.end(session, now)
        departure = self.transfers.departures.get(client_id)
        if departure is not None:
            self.transfers.end_departure(departure, now)

    @property
    def writes(self) -> WriteBatch:
        """The batch of this turn."""
        return self._store.writes

    @property
    def clock(self) -> Clock:
        """Both clocks, for deadlines that are stored."""
        return self._store.clock

    def is_committed(self) -> bool:
        """Say whether nothing was written since `take_effects`."""
        return not len(self._store.writes)

    def next_number(self) -> int:
        """Return the number that the next message published here has at least."""
        return self._publishing.next_number()

    def session(self, client_id: str) -> Session | None:
        """Return the session of a client id."""
        return self._sessions.get(client_id)

    def tick(self, now: float) -> None:
        """End the sessions whose time is over, and publish the wills that are due."""
        self._lifetimes.expire(now)
        for left in self.wills.take_due(now):
            self._publishing.publish_will(left, now)
        if self.retained.next_deadline() <= now:
            self.retained.expire(now, self._store.writes)
        if self._retry_at <= now:
            self._retry(now)
        self._groups.tick(now)

    def is_behind(self, now: float) -> bool:
        """Say whether a listener has more to do than it may: then leave what clients sent for later."""
        return any(outlet.is_behind(now) for outlet in self._outlets.values())

    def next_deadline(self) -> float:
        """Return when `begin` or `tick` has something to do, in monotonic seconds; infinity when never."""
        if self._dispatcher.wants_load():
            return 0.0
        due_at = min(self._lifetimes.next_deadline(), self._groups.next_deadline())
        due_at = min(due_at, self.netsplit.next_deadline(), self.full_links.next_deadline())
        return min(due_at, self.wills.next_deadline(), self.retained.next_deadline(), self._retry_at)

    def take_effects(self) -> Effects:
        """Return what has to be done, and begin a new turn."""
        effects = Effects()
        self.transfers.write()
        effects.writes = self._store.take_writes()
        effects.rows, self._rows.changes = self._rows.changes, []
        effects.rows += self._groups.take_rows()
        if self.retained.changes:
            effects.rows += self.retained.changes
            self.retained.changes = []
        effects.interest, self._subscribing.interest = self._subscribing.interest, []
        effects.to_peers = self._forwarding.take()
        for outlet in self._outlets.values():
            if outlet.batch.size():
                effects.to_listeners[outlet.listener] = outlet.take_batch()
        return effects

    def take_forwards(self) -> list[Forward]:
        """Return what the turn has for other nodes so far; `take_effects` has the rest."""
        return self._forwarding.take()

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        return self._dispatcher.sender.take_notices()

    def counts(self) -> dict[str, int]:
        """Return sessions and queues as `node status` shows them."""
        online = len(self._attachments)
        # What leaves for another node waits here until it has it.
        stubs = [departure.session for departure in self.transfers.departures.values()]
        sessions = [*self._sessions.values(), *stubs]
        groups = self._groups.all.values()
        queued = sum(len(session.queue) + len(session.inflight) for session in sessions)
        queued_bytes = sum(session.queue.bytes + session.inflight.bytes for session in sessions)
        return {
            "num_online": online,
            "num_offline": len(self._sessions) - online,
            "num_subscriptions": self._subscribing.count(),
            "queued_messages": queued + sum(len(group.queue) for group in groups),
            "queued_bytes": queued_bytes + sum(group.queue.bytes for group in groups),
            "retain_messages": len(self.retained),
            "retain_memory": self.retained.bytes,
            "shared_subscriptions": sum(len(group.members) for group in groups),
            "netsplit_held": self.netsplit.held_count,
        }

    # Connections.

    def _attach_asked(self, event: Attach, now: float) -> None:
        if self._registrar is not None:
            self._registrar.attach(event, now)
        else:
            self.attach(event, first_epoch(self._store.clock.to_utc_ms(now), self._store_id), now)

    def refuse(self, event: Attach, reason: int, text: str = "") -> None:
        """Answer a CONNECT that comes to nothing; `text` is what MQTT 5 may read about it."""
        outlet = self._outlets.get(event.connection >> 32)
        if outlet is not None:
            outlet.batch.connack(event.connection, reason, False, text=text)

    def attach(self, event: Attach, epoch: Epoch, now: float) -> None:
        """Attach a CONNECT's connection to its client's session here; a new session has the epoch."""
        outlet = self._outlets[event.connection >> 32]
        limit = self.settings.max_connections
        session = self._sessions.get(event.client_id)  # [MQTT-3.1.3-2] [MQTT311-3.1.3-2]
        if session is not None and session.user_name and session.user_name != event.user_name:
            # [MQTT-3.1.3-8] [MQTT311-3.1.3-9] Nobody reads, ends or takes over what belongs to another user.
            outlet.batch.connack(event.connection, Reason.CLIENT_IDENTIFIER_NOT_VALID, False)
            return
        if limit >= 0 and len(self._attachments) >= limit and (session is None or session.attachment is None):
            self.counters.refuse("max_connections")
            outlet.batch.connack(event.connection, Reason.QUOTA_EXCEEDED, False)
            return
        if session is not None and session.attachment is not None:
            # [MQTT-3.1.4-3] [MQTT311-3.1.4-2] The older connection of a client id goes.
            self._close(session.attachment, Reason.SESSION_TAKEN_OVER, now)
            session = self._sessions.get(event.client_id)
        if session is not None and event.clean_start:
            # [MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT311-3.1.2-6] [MQTT311-3.1.4-3] Clean Start discards what was there.
            self._lifetimes.end(session, now)
            session = None
        # [MQTT-3.1.3-9] Back in time, or the session's end has published it.
        self.wills.discard(event.client_id)
        present = session is not None
        if session is None:
            self.transfers.hide_stub(event.client_id)
            session = self._lifetimes.begin(event, epoch)
        attachment = Attachment(event.connection, outlet, session, event.version, event.packet_bytes_max)
        attachment.is_first = not present
        session.attach(attachment)
        self._groups.attached(session)
        session.user_name = event.user_name
        # [MQTT-4.1.0-1] [MQTT311-4.1.0-2] It does not end while it is connected.
        session.expires_at = 0.0
        session.inflight.window = self._window(event)
        session.inflight.ahead = self._ahead(session.inflight.window)
        self._attachments[event.connection] = attachment
        self._lifetimes.set_expiry(session, event.session_expiry_s)
        self._rows.tell(session)
        if event.will is not None:
            # [MQTT-3.1.2-7] [MQTT311-3.1.2-8] [MQTT311-3.1.2-12] No connection has another one's will.
            delay_s = self._will_delay_s(session, event.will)
            self.wills.leave(event.client_id, event.user_name, event.will, session.epoch, delay_s)
        if self.settings.retry_interval_s and self._retry_at == math.inf:
            self._retry_at = now + _RETRY_CHECK_S
        # [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT311-3.2.2-1] [MQTT311-3.2.2-2] [MQTT311-3.2.2-3]
        outlet.batch.connack(event.connection, _SUCCESS, present, session.inflight.window)
        # [MQTT-3.1.2-5] [MQTT311-3.1.2-4]
        self._dispatcher.redeliver(attachment, now)

    def _window(self, event: Attach) -> int:
        # [MQTT-3.3.4-9] [MQTT-4.9.0-1] MQTT 5 clients say how much they take; for the others the broker decides.
        if event.version == 5:
            return min(event.receive_maximum or PACKET_ID_MAX, self.settings.receive_max_client)
        return self.settings.max_inflight_messages or PACKET_ID_MAX

    def _ahead(self, window: int) -> int:
        """Return how many deliveries may be under way at all, those included that the listener holds."""
        if self.settings.retry_interval_s or self.settings.queue_lifo:
            # A retry must not send again what the listener has not sent at all, and a younger message goes before it.
            return 0
        online_max = self.settings.max_online_messages
        return AHEAD_MAX if online_max < 0 else min(AHEAD_MAX, window + online_max)

    def _detach_received(self, event: Detach, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None and self._registrar is not None:
            self._registrar.detach(event.connection, now)
        if attachment is not None:
            attachment.session.inflight.set_fresh(event.unsent)
            self._detach(attachment, event.reason, event.session_expiry_s, now)

    def _close(self, attachment: Attachment, reason: int, now: float, reference: str = "") -> None:
        """End a connection from this side."""
        attachment.outlet.batch.close(attachment.connection, reason, reference)
        self._detach(attachment, reason, -1, now)

    def _detach(self, attachment: Attachment, reason: int, session_expiry_s: int, now: float) -> None:
        session = attachment.session
        del self._attachments[attachment.connection]
        self._publishing.leave(attachment)
        self.netsplit.forget(attachment.connection)
        self.full_links.forget(attachment.connection)
        self._dispatcher.waiting.pop(session, None)
        self._dispatcher.loading.pop(session, None)
        session.detach()
        dropped = session.queue.drop_qos0()
        if dropped:
            self.counters.drop("offline_qos0", dropped)
        if session.persistent and session_expiry_s >= 0 and session_expiry_s != session.expiry_s:
            # [MQTT-3.14.2-2] A session that ends now can't be prolonged; its listener lets no client say so.
            self._lifetimes.set_expiry(session, session_expiry_s)
            self._rows.tell(session)
        self._execute_will(session, reason, now)
        if session.expiry_s == 0:
            self._lifetimes.end(session, now, will_waits=reason in _GRACEFUL)
            return
        self._lifetimes.start_expiry(session, now)
        self._groups.detached(session, now)

    def _execute_will(self, session: Session, reason: int, now: float) -> None:
        """Decide about the will of a connection that ended: forget it, or let it wait."""
        left = self.wills.get(session.client_id)
        if left is None:
            return
        taken_over = reason == Reason.SESSION_TAKEN_OVER
        if reason == _SUCCESS or (taken_over and self.settings.suppress_will_on_takeover):
            # [MQTT-3.1.2-10] [MQTT-3.14.4-3] [MQTT311-3.1.2-10] [MQTT311-3.14.4-3] A proper goodbye.
            self.wills.discard(session.client_id)
            return
        delay_s = self._will_delay_s(session, left.will)
        if reason in _GRACEFUL:
            # ![MQTT-3.1.2-8] because this side closed the connection: a rolling restart would fire every will.
            delay_s = max(delay_s, self.settings.leave_will_grace_s)
        if delay_s == 0:
            self.wills.discard(session.client_id)
            self._publishing.publish_will(left, now)
        else:
            self.wills.schedule(session.client_id, delay_s, now)

    def _will_delay_s(self, session: Session, will: Will) -> int:
        """Return how long a will waits when its connection ends."""
        delay_s = min(will.delay_s, self.settings.max_last_will_delay_s)
        # [MQTT-3.1.2-8] The end of the session does not wait for the delay.
        return delay_s if session.expiry_s == NEVER_EXPIRES_S else min(delay_s, session.expiry_s)

    # What clients say.

    def _subscribe(self, event: SubscribeReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._subscribing.subscribe(attachment, event, now)

    def _unsubscribe(self, event: UnsubscribeReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._subscribing.unsubscribe(attachment, event, now)

    def _puback(self, event: PubackReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._close_for(attachment, self._dispatcher.acknowledged(attachment, event.packet_id, now), now)

    def _pubrec(self, event: PubrecReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            reason = self._dispatcher.received(attachment, event.packet_id, event.reason, now)
            self._close_for(attachment, reason, now)

    def _pubrel(self, event: PubrelReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._publishing.release(attachment, event.packet_id)

    def _pubcomp(self, event: PubcompReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._close_for(attachment, self._dispatcher.completed(attachment, event.packet_id, now), now)

    def _close_for(self, attachment: Attachment, reason: int, now: float) -> None:
        if reason:
            self._close(attachment, reason, now)

    def _retry(self, now: float) -> None:
        """Send again what MQTT 3 clients have not acknowledged for too long; MQTT 5 forbids it [MQTT-4.4.0-1]."""
        self._retry_at = now + _RETRY_CHECK_S if self._attachments else math.inf
        for attachment in list(self._attachments.values()):
            if attachment.version != 5 and attachment.session.inflight.begin_retry(
                now - self.settings.retry_interval_s
            ):
                self._dispatcher.drain(attachment, now)

    # Listeners.

    def _pause(self, event: ConnectionPaused, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            attachment.paused = True

    def _resume(self, event: ConnectionResumed, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            attachment.paused = False
            self._dispatcher.drain(attachment, now)

    def _listener_counted(self, event: ListenerCounted, now: float) -> None:
        self.totals.receive(event.listener, event.generation, event.values)

    def _listener_started(self, event: ListenerStarted, now: float) -> None:
        self.totals.gone(event.listener, event.generation - 1)
        self._lose_connections(event.listener, now)
        self._outlets[event.listener] = Outlet(event.listener, event.generation, self.settings.listener_window_bytes)

    def _listener_gone(self, event: ListenerGone, now: float) -> None:
        self.totals.gone(event.listener, event.generation)
        outlet = self._outlets.get(event.listener)
        if outlet is not None and outlet.generation == event.generation:
            self._lose_connections(event.listener, now)
            del self._outlets[event.listener]

    def _lose_connections(self, listener: int, now: float) -> None:
        if self._registrar is not None:
            self._registrar.lose_listener(listener, now)
        for attachment in list(self._attachments.values()):
            if attachment.connection >> 32 == listener:
                self._detach(attachment, CONNECTION_LOST, -1, now)

    def _credit_returned(self, event: CreditReturned, now: float) -> None:
        outlet = self._outlets.get(event.listener)
        if outlet is not None and outlet.return_credit(event.credit_bytes, now):
            self._dispatcher.resume(outlet, now)
            self.netsplit.resume()

    def validate(self) -> None:
        """Check the invariants; an AssertionError is a bug of ours."""
        for connection, attachment in self._attachments.items():
            assert attachment.connection == connection
            assert attachment.session.attachment is attachment
            assert self._sessions[attachment.session.client_id] is attachment.session
            assert self._outlets[connection >> 32] is attachment.outlet
            assert attachment.pending.is_empty() or attachment.pending.first().waiting > 0
        self._lifetimes.validate()
        self.transfers.validate()
        stubs = [departure.session for departure in self.transfers.departures.values()]
        sessions = [*self._sessions.values(), *stubs]
        shared = sum(len(session.groups) for session in sessions)
        filters = [topic_filter for session in sessions for topic_filter in session.subscriptions]
        # A stub may have left its groups before its end.
        assert shared <= sum(1 for topic_filter in filters if topic_filter.startswith(SHARE_PREFIX))
        awake = [topic_filter for session in sessions if not session.dormant for topic_filter in session.subscriptions]
        plain = sum(1 for topic_filter in awake if not topic_filter.startswith(SHARE_PREFIX))
        assert plain == len(self._routes)
        assert self._subscribing.wishes.total() == plain
        assert plain + shared == self._subscribing.count()
        self._dispatcher.shared.validate(sessions)
        self._groups.validate()
        self.wills.validate()
        self.netsplit.validate()
        self.full_links.validate()
        self.retained.validate()


def _ignore(text: str) -> None:
    """Nobody wants to hear how far recovery is."""
