"""The queue-owner: sessions, subscriptions and queues of one node, and what happens to a message.

It is told events and the time, and answers with effects; it knows no sockets, processes, disks or
clocks. Other nodes exist for it only as names in `Forward` effects and as `Interest`.

Theory of operation
-------------------
A connection attaches to a session and detaches from it. A message is looked up once (`Routes`), then
offered to each session: what its connection can take is sent at once, the rest of QoS 1 waits in its
queue. Writes for persistent sessions go into the turn's batch, which the shell commits before
anything else of the turn leaves, so an acknowledgement never runs ahead of what it promises.

A PUBLISH is acknowledged when this node has done its part and every node with persistent interest has
taken the message (its link acknowledged). Acknowledgements leave in the order of the PUBLISHes
[MQTT-4.6.0-2] [MQTT311-4.6.0-2], so one that waits holds back those behind it.

Invariants, checked by `validate`: an attachment and its session point at each other; every
subscription is in the tree once; a queue and a window hold together no delivery twice; stored
deliveries exist for persistent sessions only; a waiting session has a reason to wait.
"""

import heapq
import math
from collections.abc import Callable
from typing import Any, Final, final

from broker.core import persistence
from broker.core.dispatch import Dispatcher, OwnerSettings
from broker.core.effects import Effects, Forward, InterestChange, Ticket
from broker.core.events import (
    NEVER_EXPIRES_S,
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    CreditReturned,
    Detach,
    Event,
    ListenerGone,
    ListenerStarted,
    PubackReceived,
    PublishReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.inflight import PACKET_ID_MAX
from broker.core.message import Message
from broker.core.outlet import Outlet
from broker.core.routes import Interest, Routes
from broker.core.session import Attachment, Session
from broker.core.storage import Storage
from broker.core.wishes import Wishes
from broker.mqtt.reasons import Reason

# A number of a message id is the incarnation and a count: 2^24 starts of 2^40 messages each.
_INCARNATION_SHIFT: Final = 40
_STALE_DEADLINES_MAX: Final = 64
_SUCCESS: Final = 0
_FAILURE: Final = 0x80
_NO_MATCHING_SUBSCRIBERS: Final = 0x10
_QUOTA_EXCEEDED: Final = 0x97


@final
class QueueOwner:
    """Everything of one node that survives a connection. Call `take_effects` after every turn."""

    def __init__(
        self, settings: OwnerSettings, storage: Storage, interest: Interest, store_id: bytes, incarnation: int
    ) -> None:
        self.settings = settings
        self._dispatcher = Dispatcher(settings)
        self.counters = self._dispatcher.counters
        self._storage = storage
        self._store_id = store_id
        self._message_number: int = incarnation << _INCARNATION_SHIFT
        self._clock = persistence.Clock(0.0, 0)
        self._routes = Routes(interest)
        self._sessions: dict[str, Session] = {}
        self._session_number: int = 0
        self._attachments: dict[int, Attachment] = {}
        self._outlets: dict[int, Outlet] = {}
        self._wishes = Wishes()
        self._expiries: list[tuple[float, int, Session]] = []
        self._effects = Effects()
        self._dispatcher.writes = self._effects.writes
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Attach: self._attach,
            Detach: self._detach_received,
            SubscribeReceived: self._subscribe,
            UnsubscribeReceived: self._unsubscribe,
            ConnectionPaused: self._pause,
            ConnectionResumed: self._resume,
            ListenerStarted: self._listener_started,
            ListenerGone: self._listener_gone,
            CreditReturned: self._credit_returned,
        }

    # The shell's side.

    def recover(self, now: float, utc_ms: int) -> None:
        """Read every persistent session from the store; call it once, before the first event."""
        self._clock = self._dispatcher.clock = persistence.Clock(now, utc_ms)
        window = self.settings.max_inflight_messages or PACKET_ID_MAX
        for session in persistence.recover(self._storage, self._clock, window):
            self._sessions[session.client_id] = session
            self._session_number = max(self._session_number, session.number)
            for topic_filter, granted in session.subscriptions.items():
                self._routes.set(topic_filter, session, granted)
                self._count_wish(topic_filter, session, 1)
            if session.expires_at == 0.0:
                # It was connected when the node went down: its time runs from now.
                self._start_expiry(session, now)
            else:
                self._schedule(session)

    def receive(self, event: Event, now: float) -> None:
        """Do what one event asks for."""
        if isinstance(event, PublishReceived):
            self._publish(event, now)
        elif isinstance(event, PubackReceived):
            self._puback(event, now)
        else:
            self._handlers[type(event)](event, now)

    def receive_forwarded(self, message: Message, now: float) -> None:
        """Deliver what another node forwarded; it is never forwarded again (one hop)."""
        route = self._routes.find(message.topic)
        self._dispatcher.deliver(message, route, now)

    def forward_acknowledged(self, ticket: Ticket, now: float) -> None:
        """One of the nodes that the PUBLISH waited for has taken the message."""
        ticket.waiting -= 1
        if ticket.waiting == 0:
            self._release_pending(ticket.connection, now)

    def forward_refused(self, ticket: Ticket, now: float) -> None:
        """The link to one of the nodes is full: the PUBLISH is not accepted, and says so."""
        ticket.reason = _QUOTA_EXCEEDED
        self.counters.drop("link_full")
        self.forward_acknowledged(ticket, now)

    def interest_changed(self) -> None:
        """The other nodes' interest changed: remembered routes are void."""
        self._routes.invalidate()

    def local_interest(self) -> list[tuple[bytes, bool]]:
        """Return every (filter, persistent) that sessions of this node want."""
        return self._wishes.snapshot()

    def tick(self, now: float) -> None:
        """End the sessions whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            deadline, _number, session = heapq.heappop(self._expiries)
            if session.scheduled_at != deadline:
                continue
            session.scheduled_at = 0.0
            if self._sessions.get(session.client_id) is not session or session.expires_at == 0.0:
                continue
            if session.expires_at <= now:
                self._end_session(session)  # [MQTT-4.1.0-2]
            else:
                self._schedule(session)

    def is_behind(self, now: float) -> bool:
        """Say whether a listener has more to do than it may: then leave what clients sent for later."""
        return any(outlet.is_behind(now) for outlet in self._outlets.values())

    def next_deadline(self) -> float:
        """Return when `tick` has something to do, in monotonic seconds; infinity when never."""
        return self._expiries[0][0] if self._expiries else math.inf

    def take_effects(self) -> Effects:
        """Return what has to be done, and begin a new turn."""
        effects = self._effects
        self._effects = Effects()
        self._dispatcher.writes = self._effects.writes
        for outlet in self._outlets.values():
            if outlet.batch.size():
                effects.to_listeners[outlet.listener] = outlet.take_batch()
        return effects

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        notices = self._dispatcher.notices
        self._dispatcher.notices = []
        return notices

    def counts(self) -> dict[str, int]:
        """Return sessions and queues as `node status` shows them."""
        online = len(self._attachments)
        return {
            "num_online": online,
            "num_offline": len(self._sessions) - online,
            "num_subscriptions": len(self._routes),
            "queued_messages": sum(len(session.queue) + len(session.inflight) for session in self._sessions.values()),
        }

    # Connections.

    def _attach(self, event: Attach, now: float) -> None:
        session = self._sessions.get(event.client_id)  # [MQTT-3.1.3-2] [MQTT311-3.1.3-2]
        if session is not None and session.attachment is not None:
            # [MQTT-3.1.4-3] [MQTT311-3.1.4-2] The older connection of a client id goes.
            older = session.attachment
            older.outlet.batch.close(older.connection, Reason.SESSION_TAKEN_OVER)
            self._detach(older, -1, now)
            session = self._sessions.get(event.client_id)
        if session is not None and event.clean_start:
            # [MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT311-3.1.2-6] [MQTT311-3.1.4-3] Clean Start discards what was there.
            self._end_session(session)
            session = None
        # [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT311-3.2.2-1] [MQTT311-3.2.2-2] [MQTT311-3.2.2-3]
        present = session is not None
        if session is None:  # [MQTT-3.1.2-6]
            self._session_number += 1
            session = Session(self._session_number, event.client_id, event.user_name, event.session_expiry_s, 0)
            self._sessions[event.client_id] = session
        outlet = self._outlets[event.connection >> 32]
        attachment = Attachment(event.connection, outlet, session, event.version, event.packet_bytes_max)
        session.attachment = attachment
        session.user_name = event.user_name
        # [MQTT-4.1.0-1] [MQTT311-4.1.0-2] It does not end while it is connected.
        session.expires_at = 0.0
        session.inflight.window = self._window(event)
        self._attachments[event.connection] = attachment
        self._set_expiry(session, event.session_expiry_s)
        attachment.outlet.batch.connack(event.connection, _SUCCESS, present)
        # [MQTT-3.1.2-5] [MQTT311-3.1.2-4]
        self._dispatcher.redeliver(attachment, now)

    def _window(self, event: Attach) -> int:
        # [MQTT-3.3.4-9] [MQTT-4.9.0-1] MQTT 5 clients say how much they take; for the others the broker decides.
        wanted = event.receive_maximum if event.version == 5 else self.settings.max_inflight_messages
        return wanted or PACKET_ID_MAX

    def _detach_received(self, event: Detach, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._detach(attachment, event.session_expiry_s, now)

    def _detach(self, attachment: Attachment, session_expiry_s: int, now: float) -> None:
        session = attachment.session
        del self._attachments[attachment.connection]
        self._dispatcher.waiting.pop(session, None)
        session.attachment = None
        dropped = session.queue.drop_qos0()
        if dropped:
            self.counters.drop("offline_qos0", dropped)
        if session_expiry_s >= 0 and session_expiry_s != session.expiry_s:
            self._set_expiry(session, session_expiry_s)
        if session.expiry_s == 0:
            self._end_session(session)
        else:
            self._start_expiry(session, now)

    def _start_expiry(self, session: Session, now: float) -> None:
        if session.expiry_s != NEVER_EXPIRES_S:
            session.expires_at = now + session.expiry_s
            self._schedule(session)
            persistence.put_session(self._effects.writes, session, self._clock)

    def _schedule(self, session: Session) -> None:
        """Have `tick` look at the session no later than when it expires; one entry serves all its reconnects."""
        if session.scheduled_at == 0.0 or session.expires_at < session.scheduled_at:
            session.scheduled_at = session.expires_at
            heapq.heappush(self._expiries, (session.expires_at, session.number, session))
        if len(self._expiries) > 2 * len(self._sessions) + _STALE_DEADLINES_MAX:
            # Sessions that ended long before their time would otherwise stay until it comes.
            self._expiries = [(left.scheduled_at, left.number, left) for left in self._sessions.values()]
            self._expiries = [entry for entry in self._expiries if entry[0] > 0.0]
            heapq.heapify(self._expiries)

    def _set_expiry(self, session: Session, expiry_s: int) -> None:
        """Set how long the session outlives its connection, and store or unstore it accordingly."""
        session.expiry_s = expiry_s
        writes = self._effects.writes
        persistent = expiry_s > 0
        changed = persistent != session.persistent
        session.persistent = persistent
        if persistent:
            persistence.put_session(writes, session, self._clock)
        if not changed:
            return
        for topic_filter, granted in session.subscriptions.items():
            self._note_interest(self._wishes.set_persistent(topic_filter, persistent))
            if persistent:
                persistence.put_subscription(writes, session, topic_filter, granted)
        for delivery in list(session.inflight.deliveries.values()) + session.queue.deliveries():
            if delivery.qos == 0:
                continue
            if persistent:
                persistence.put_delivery(writes, session, delivery, self._clock)
            else:
                persistence.delete_delivery(writes, session, delivery)
        if not persistent:
            persistence.delete_session(writes, session)

    def _end_session(self, session: Session) -> None:
        writes = self._effects.writes
        for topic_filter in session.subscriptions:
            self._routes.remove(topic_filter, session)
            self._count_wish(topic_filter, session, -1)
        session.subscriptions = {}
        if session.persistent:
            for delivery in list(session.inflight.deliveries.values()) + session.queue.deliveries():
                if delivery.stored:
                    persistence.delete_delivery(writes, session, delivery)
            persistence.delete_session(writes, session)
        del self._sessions[session.client_id]

    # Subscriptions.

    def _subscribe(self, event: SubscribeReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        session = attachment.session
        reasons: list[int] = []
        # [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT311-3.8.4-4] [MQTT311-3.9.3-1]
        for topic_filter, granted in event.requests:
            reasons.append(granted)
            if granted >= _FAILURE:
                continue
            # [MQTT-3.8.4-3] An identical filter replaces the subscription.
            session.subscriptions[topic_filter] = granted
            if self._routes.set(topic_filter, session, granted):
                self._count_wish(topic_filter, session, 1)
            if session.persistent:
                persistence.put_subscription(self._effects.writes, session, topic_filter, granted)
        attachment.outlet.batch.suback(event.connection, event.packet_id, reasons)

    def _unsubscribe(self, event: UnsubscribeReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        session = attachment.session
        reasons: list[int] = []
        # [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT311-3.10.4-6]
        for topic_filter in event.filters:
            # [MQTT-3.10.4-1] [MQTT311-3.10.4-1] Byte by byte.
            if session.subscriptions.pop(topic_filter, -1) < 0:
                reasons.append(Reason.NO_SUBSCRIPTION_EXISTED)
                continue
            reasons.append(_SUCCESS)
            self._routes.remove(topic_filter, session)  # [MQTT-3.10.4-2] [MQTT311-3.10.4-2]
            self._count_wish(topic_filter, session, -1)
            if session.persistent:
                persistence.delete_subscription(self._effects.writes, session, topic_filter)
        attachment.outlet.batch.unsuback(event.connection, event.packet_id, reasons)

    def _count_wish(self, topic_filter: bytes, session: Session, step: int) -> None:
        self._note_interest(self._wishes.count(topic_filter, session.persistent, step))

    def _note_interest(self, change: InterestChange | None) -> None:
        if change is not None:
            self._effects.interest.append(change)

    # Messages.

    def _publish(self, event: PublishReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        self.counters.mqtt_publish_received += 1
        message = event.message
        message.publisher = attachment.session.client_id
        if event.expiry_s >= 0:
            message.expires_at = now + event.expiry_s
        route = self._routes.find(message.topic)
        if route.refused:
            self._refuse_publish(attachment, event.packet_id, message, route.refused)
            return
        if message.qos:
            # [MQTT-4.3.2-5] [MQTT311-4.3.2-2] A message of its own, whatever its packet id was used for.
            self._message_number += 1
            message.origin = self._store_id
            message.number = self._message_number
        matched = self._dispatcher.deliver(message, route, now) if route.sessions else 0
        ticket: Ticket | None = None
        if route.nodes:
            ticket = self._forward(event, message, route.nodes)
        # [MQTT-3.3.4-1] [MQTT311-3.3.4-1]
        if message.qos == 0:
            return
        if ticket is None:
            reason = _SUCCESS if matched or route.nodes else _NO_MATCHING_SUBSCRIBERS
            if not attachment.pending:
                attachment.outlet.batch.puback(event.connection, event.packet_id, reason)
                return
            ticket = Ticket(event.connection, event.packet_id, reason)
        attachment.pending.append(ticket)

    def _forward(self, event: PublishReceived, message: Message, nodes: list[tuple[str, bool]]) -> Ticket | None:
        """Forward once to each interested node; the ticket is there when one of them must answer first."""
        ticket: Ticket | None = None
        to_peers = self._effects.to_peers
        for node, persistent in nodes:
            if persistent and message.qos:
                if ticket is None:
                    ticket = Ticket(event.connection, event.packet_id, _SUCCESS)
                ticket.waiting += 1
                to_peers.append(Forward(node, message, ticket))
            else:
                to_peers.append(Forward(node, message, None))
        self.counters.router_matches_remote += len(nodes)
        return ticket

    def _release_pending(self, connection: int, now: float) -> None:
        attachment = self._attachments.get(connection)
        if attachment is None:
            return
        pending = attachment.pending
        batch = attachment.outlet.batch
        while pending and pending[0].waiting == 0:
            ticket = pending.popleft()
            if ticket.reason < _FAILURE or attachment.version == 5:
                batch.puback(connection, ticket.packet_id, ticket.reason)
            else:
                # [MQTT311-3.3.5-2] [MQTT311-4.8.0-2] 3.1.1 can refuse a PUBLISH only by closing the connection.
                batch.close(connection, ticket.reason)
                self._detach(attachment, -1, now)
                return

    def _refuse_publish(self, attachment: Attachment, packet_id: int, message: Message, reason: int) -> None:
        """Drop a PUBLISH to a topic that is not for clients; MQTT 3.1.1 can't be told so."""
        self.counters.drop("reserved_topic")
        if message.qos:
            attachment.pending.append(
                Ticket(attachment.connection, packet_id, reason if attachment.version == 5 else 0)
            )
            self._release_pending(attachment.connection, 0.0)

    def _puback(self, event: PubackReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        session = attachment.session
        delivery = session.inflight.pop(event.packet_id)
        if delivery is None:
            # The acknowledgement of a first sending may arrive after a reconnect: nothing is left to do.
            return
        # [MQTT-4.4.0-2] Whatever its reason, it ends the delivery [MQTT-4.3.2-3] [MQTT311-4.3.2-1].
        if delivery.stored:
            persistence.delete_delivery(self._effects.writes, session, delivery)
        if not session.is_caught_up():
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

    def _listener_started(self, event: ListenerStarted, now: float) -> None:
        self._lose_connections(event.listener, now)
        self._outlets[event.listener] = Outlet(event.listener, event.generation, self.settings.listener_window_bytes)

    def _listener_gone(self, event: ListenerGone, now: float) -> None:
        outlet = self._outlets.get(event.listener)
        if outlet is not None and outlet.generation == event.generation:
            self._lose_connections(event.listener, now)
            del self._outlets[event.listener]

    def _lose_connections(self, listener: int, now: float) -> None:
        for attachment in list(self._attachments.values()):
            if attachment.connection >> 32 == listener:
                self._detach(attachment, -1, now)

    def _credit_returned(self, event: CreditReturned, now: float) -> None:
        outlet = self._outlets.get(event.listener)
        if outlet is not None and outlet.return_credit(event.credit_bytes, now):
            self._dispatcher.resume(outlet, now)

    def validate(self) -> None:
        """Check the invariants; an AssertionError is a bug of ours."""
        for connection, attachment in self._attachments.items():
            assert attachment.connection == connection
            assert attachment.session.attachment is attachment
            assert self._sessions[attachment.session.client_id] is attachment.session
            assert self._outlets[connection >> 32] is attachment.outlet
            assert not attachment.pending or attachment.pending[0].waiting > 0
        subscriptions = 0
        for client_id, session in self._sessions.items():
            assert session.client_id == client_id
            assert session.attachment is not None or session.persistent
            assert session.persistent == (session.expiry_s > 0)
            subscriptions += len(session.subscriptions)
            self._validate_deliveries(session)
        assert subscriptions == len(self._routes)
        assert self._wishes.total() == subscriptions

    def _validate_deliveries(self, session: Session) -> None:
        last_seq = 0
        for packet_id, delivery in session.inflight.deliveries.items():
            assert delivery.packet_id == packet_id
            assert delivery.stored == session.persistent
        for delivery in session.queue.deliveries():
            assert delivery.packet_id == 0
            assert delivery.seq > last_seq
            assert delivery.stored == (session.persistent and delivery.qos > 0)
            last_seq = delivery.seq
        attachment = session.attachment
        if attachment is not None and not session.is_caught_up() and not attachment.paused:
            blocked = not attachment.outlet.open and session in self._dispatcher.waiting
            assert blocked or session.inflight.is_full()
            assert blocked or session.inflight.is_resending() or session.queue.head().qos
