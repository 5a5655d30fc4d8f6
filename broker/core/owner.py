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
[MQTT-4.6.0-2], so one that waits holds back those behind it.

Invariants, checked by `validate`: an attachment and its session point at each other; every
subscription is in the tree once; a queue and a window hold together no delivery twice; stored
deliveries exist for persistent sessions only; a waiting session has a reason to wait.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core import persistence
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
from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.records import DUP_FLAG, WINDOW_BYTES, pack_target
from broker.core.routes import Interest, Route, Routes, Wish
from broker.core.session import Attachment, Session
from broker.core.storage import Storage
from broker.mqtt.reasons import Reason

# A number of a message id is the incarnation and a count: 2^24 starts of 2^40 messages each.
_INCARNATION_SHIFT: Final = 40
# Fixed header, topic length and packet id of the largest PUBLISH, and its property length.
_PUBLISH_OVERHEAD_BYTES: Final = 5 + 2 + 2 + 4
_SUCCESS: Final = 0
_FAILURE: Final = 0x80
_NO_MATCHING_SUBSCRIBERS: Final = 0x10
_QUOTA_EXCEEDED: Final = 0x97


@dataclass(slots=True, frozen=True)
class OwnerSettings:
    """What the configuration says to the queue-owner; negative limits are none."""

    max_inflight_messages: int = 20
    max_online_messages: int = 1000
    max_offline_messages: int = 1000
    persistent_client_expiration_s: int = NEVER_EXPIRES_S
    listener_window_bytes: int = WINDOW_BYTES


@final
class Counters:
    """Counts since the start; the names are the metrics'."""

    def __init__(self) -> None:
        self.mqtt_publish_received: int = 0
        self.mqtt_publish_sent: int = 0
        self.queue_message_in: int = 0
        self.queue_message_out: int = 0
        self.router_matches_local: int = 0
        self.router_matches_remote: int = 0
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str, count: int = 1) -> None:
        """Count dropped deliveries by reason."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count


@final
class QueueOwner:
    """Everything of one node that survives a connection. Call `take_effects` after every turn."""

    def __init__(
        self, settings: OwnerSettings, storage: Storage, interest: Interest, store_id: bytes, incarnation: int
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.notices: list[str] = []
        self._storage = storage
        self._store_id = store_id
        self._message_number: int = incarnation << _INCARNATION_SHIFT
        self._clock = persistence.Clock(0.0, 0)
        self._routes = Routes(interest)
        self._sessions: dict[str, Session] = {}
        self._session_number: int = 0
        self._attachments: dict[int, Attachment] = {}
        self._outlets: dict[int, Outlet] = {}
        # Sessions that would have sent something and could not, because their listener has no credit.
        self._waiting: dict[Session, Outlet] = {}
        self._wishes: dict[bytes, Wish] = {}
        self._expiries: list[tuple[float, int, Session]] = []
        self._effects = Effects()
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
        self._clock = persistence.Clock(now, utc_ms)
        window = self.settings.max_inflight_messages or PACKET_ID_MAX
        for session in persistence.recover(self._storage, self._clock, window):
            self._sessions[session.client_id] = session
            self._session_number = max(self._session_number, session.number)
            for topic_filter, granted in session.subscriptions.items():
                self._routes.set(topic_filter, session, granted)
                self._wish(topic_filter, session, 1)
            if session.expires_at == 0.0:
                # It was connected when the node went down: its time runs from now.
                self._start_expiry(session, now)
            else:
                heapq.heappush(self._expiries, (session.expires_at, session.number, session))

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
        self._deliver(message, route, now)

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
        return [(topic_filter, wish.persistent > 0) for topic_filter, wish in self._wishes.items()]

    def tick(self, now: float) -> None:
        """End the sessions whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            deadline, _number, session = heapq.heappop(self._expiries)
            # An entry of a session that came back, or ended, says another time than the session does.
            if session.expires_at == deadline and self._sessions.get(session.client_id) is session:
                self._end_session(session)

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
        for outlet in self._outlets.values():
            if outlet.batch.size():
                effects.to_listeners[outlet.listener] = outlet.take_batch()
        return effects

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        notices = self.notices
        self.notices = []
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
        session = self._sessions.get(event.client_id)
        if session is not None and session.attachment is not None:
            # [MQTT-3.1.4-3] The older connection of a client id goes.
            older = session.attachment
            older.outlet.batch.close(older.connection, Reason.SESSION_TAKEN_OVER)
            self._detach(older, -1, now)
            session = self._sessions.get(event.client_id)
        if session is not None and event.clean_start:
            # [MQTT-3.1.2-4] Clean Start discards what was there.
            self._end_session(session)
            session = None
        present = session is not None
        if session is None:
            self._session_number += 1
            session = Session(self._session_number, event.client_id, event.user_name, event.session_expiry_s, 0)
            self._sessions[event.client_id] = session
        outlet = self._outlets[event.connection >> 32]
        attachment = Attachment(event.connection, outlet, session, event.version, event.packet_bytes_max)
        session.attachment = attachment
        session.user_name = event.user_name
        session.expires_at = 0.0
        session.inflight.window = self._window(event)
        self._attachments[event.connection] = attachment
        self._set_expiry(session, event.session_expiry_s)
        attachment.outlet.batch.connack(event.connection, _SUCCESS, present)
        self._redeliver(attachment, now)

    def _window(self, event: Attach) -> int:
        # [MQTT-3.3.4-9] MQTT 5 clients say how much they take; for the others the broker decides.
        wanted = event.receive_maximum if event.version == 5 else self.settings.max_inflight_messages
        return wanted or PACKET_ID_MAX

    def _detach_received(self, event: Detach, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            self._detach(attachment, event.session_expiry_s, now)

    def _detach(self, attachment: Attachment, session_expiry_s: int, now: float) -> None:
        session = attachment.session
        del self._attachments[attachment.connection]
        self._waiting.pop(session, None)
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
            heapq.heappush(self._expiries, (session.expires_at, session.number, session))
            persistence.put_session(self._effects.writes, session, self._clock)

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
            self._wish_persistence_changed(topic_filter, persistent)
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
            self._wish(topic_filter, session, -1)
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
        for topic_filter, granted in event.requests:
            reasons.append(granted)
            if granted >= _FAILURE:
                continue
            # [MQTT-3.8.4-3] An identical filter replaces the subscription.
            session.subscriptions[topic_filter] = granted
            if self._routes.set(topic_filter, session, granted):
                self._wish(topic_filter, session, 1)
            if session.persistent:
                persistence.put_subscription(self._effects.writes, session, topic_filter, granted)
        attachment.outlet.batch.suback(event.connection, event.packet_id, reasons)

    def _unsubscribe(self, event: UnsubscribeReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        session = attachment.session
        reasons: list[int] = []
        for topic_filter in event.filters:
            if session.subscriptions.pop(topic_filter, -1) < 0:
                reasons.append(Reason.NO_SUBSCRIPTION_EXISTED)
                continue
            reasons.append(_SUCCESS)
            self._routes.remove(topic_filter, session)
            self._wish(topic_filter, session, -1)
            if session.persistent:
                persistence.delete_subscription(self._effects.writes, session, topic_filter)
        attachment.outlet.batch.unsuback(event.connection, event.packet_id, reasons)

    def _wish(self, topic_filter: bytes, session: Session, step: int) -> None:
        """Count a subscription in (1) or out (-1) and tell the other nodes when that changes what is wanted."""
        wish = self._wishes.get(topic_filter)
        if wish is None:
            wish = Wish()
            self._wishes[topic_filter] = wish
        before, was_persistent = wish.sessions, wish.persistent
        wish.sessions += step
        if session.persistent:
            wish.persistent += step
        if wish.sessions == 0:
            del self._wishes[topic_filter]
        if (before == 0) != (wish.sessions == 0) or (was_persistent == 0) != (wish.persistent == 0):
            self._effects.interest.append(InterestChange(topic_filter, wish.sessions > 0, wish.persistent > 0))

    def _wish_persistence_changed(self, topic_filter: bytes, persistent: bool) -> None:
        wish = self._wishes[topic_filter]
        before = wish.persistent
        wish.persistent += 1 if persistent else -1
        if (before == 0) != (wish.persistent == 0):
            self._effects.interest.append(InterestChange(topic_filter, True, wish.persistent > 0))

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
            self._message_number += 1
            message.origin = self._store_id
            message.number = self._message_number
        if route.sessions:
            self._deliver(message, route, now)
        ticket: Ticket | None = None
        if route.nodes:
            ticket = self._forward(event, message, route.nodes)
        if message.qos == 0:
            return
        if ticket is None:
            matched = bool(route.sessions) or bool(route.nodes)
            reason = _SUCCESS if matched else _NO_MATCHING_SUBSCRIBERS
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
                # MQTT 3.1.1 has no way to refuse a PUBLISH but to close the connection.
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

    def _deliver(self, message: Message, route: Route, now: float) -> None:
        """Offer the message to each session and send it, once for each listener, to those that can take it."""
        sessions = route.sessions
        granted = route.granted
        if route.no_local and message.publisher in route.no_local:
            # [MQTT-3.8.3-3] No Local: the publisher's own subscription is left out.
            own = sessions.index(route.no_local[message.publisher])
            sessions = sessions[:own] + sessions[own + 1 :]
            granted = granted[:own] + granted[own + 1 :]
        self.counters.router_matches_local += len(sessions)
        if len(sessions) == 1:
            session = sessions[0]
            head = self._offer(session, message, granted[0])
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                attachment.outlet.deliver(attachment.connection, head, message, now)
            return
        groups: dict[Outlet, BytesWriter] = {}
        for index, session in enumerate(sessions):
            head = self._offer(session, message, granted[index])
            if head >= 0:
                attachment = session.attachment
                assert attachment is not None
                group = groups.get(attachment.outlet)
                if group is None:
                    group = BytesWriter()
                    groups[attachment.outlet] = group
                pack_target(group, attachment.connection, head >> 16, head & 0xFFFF)
        for outlet, group in groups.items():
            outlet.deliver_many(group.getvalue(), message, now)

    def _offer(self, session: Session, message: Message, granted: i64) -> i64:
        """Give the message to a session; the result is packet id << 16 | QoS when it goes out now, else -1."""
        qos: i64 = message.qos
        if granted < qos:
            qos = granted
        attachment = session.attachment
        if attachment is not None and attachment.packet_bytes_max and self._is_too_large(attachment, message):
            self.counters.drop("max_packet_size_exceeded")
            return -1
        sendable = attachment is not None and not attachment.paused and attachment.outlet.open
        if qos == 0:
            if sendable and session.queue.qos0 == 0:
                self.counters.mqtt_publish_sent += 1
                return 0
            if attachment is None:
                return -1
        delivery = Delivery(session.take_seq(), message, int(qos))
        if qos and sendable and not len(session.queue) and not session.inflight.is_full():
            packet_id: i64 = session.inflight.add(delivery)
            self.counters.mqtt_publish_sent += 1
            if session.persistent:
                persistence.put_delivery(self._effects.writes, session, delivery, self._clock)
            return packet_id << 16 | qos
        self._enqueue(session, delivery)
        return -1

    def _is_too_large(self, attachment: Attachment, message: Message) -> bool:
        # [MQTT-3.1.2-24] The client's Maximum Packet Size is kept by not sending at all.
        return message.size() + _PUBLISH_OVERHEAD_BYTES > attachment.packet_bytes_max

    def _enqueue(self, session: Session, delivery: Delivery) -> None:
        settings = self.settings
        attachment = session.attachment
        messages_max = settings.max_offline_messages if attachment is None else settings.max_online_messages
        if not session.queue.has_room(messages_max):
            self.counters.drop("queue_full")
            if not session.queue.dropping:
                session.queue.dropping = True
                self.notices.append(f"queue of {session.client_id!r} is full at {messages_max} messages: dropping")
            return
        session.queue.dropping = False
        session.queue.push(delivery)
        self.counters.queue_message_in += 1
        if delivery.qos and session.persistent:
            persistence.put_delivery(self._effects.writes, session, delivery, self._clock)
        if attachment is not None:
            outlet = attachment.outlet
            if not outlet.open:
                self._waiting[session] = outlet

    def _puback(self, event: PubackReceived, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is None:
            return
        session = attachment.session
        delivery = session.inflight.pop(event.packet_id)
        if delivery is None:
            # The acknowledgement of a first sending may arrive after a reconnect: nothing is left to do.
            return
        if delivery.stored:
            persistence.delete_delivery(self._effects.writes, session, delivery)
        if len(session.queue):
            self._drain(attachment, now)

    def _redeliver(self, attachment: Attachment, now: float) -> None:
        """Send again what was in flight when the last connection ended [MQTT-4.4.0-1], then what waits."""
        session = attachment.session
        outlet = attachment.outlet
        for packet_id, delivery in session.inflight.deliveries.items():
            head = packet_id << 16 | delivery.qos | DUP_FLAG
            outlet.deliver(attachment.connection, head, delivery.message, now)
        self._drain(attachment, now)

    def _drain(self, attachment: Attachment, now: float) -> None:
        """Send from the queue what the connection, its window and its listener can take."""
        session = attachment.session
        queue = session.queue
        outlet = attachment.outlet
        while len(queue) and not attachment.paused:
            if not outlet.open:
                self._waiting[session] = outlet
                return
            if queue.head().qos and session.inflight.is_full():
                return
            delivery = queue.pop()
            self.counters.queue_message_out += 1
            reason = self._undeliverable(attachment, delivery.message, now)
            if reason:
                self.counters.drop(reason)
                if delivery.stored:
                    persistence.delete_delivery(self._effects.writes, session, delivery)
                continue
            packet_id = session.inflight.add(delivery) if delivery.qos else 0
            if delivery.stored:
                # The packet id is part of the session: a resend after a restart has to use it again.
                persistence.put_delivery(self._effects.writes, session, delivery, self._clock)
            self.counters.mqtt_publish_sent += 1
            outlet.deliver(attachment.connection, packet_id << 16 | delivery.qos, delivery.message, now)

    def _undeliverable(self, attachment: Attachment, message: Message, now: float) -> str:
        if message.expires_at and message.expires_at <= now:
            # [MQTT-3.3.2-5] A message that expired in the queue is not sent.
            return "expired"
        if attachment.packet_bytes_max and self._is_too_large(attachment, message):
            return "max_packet_size_exceeded"
        return ""

    # Listeners.

    def _pause(self, event: ConnectionPaused, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            attachment.paused = True

    def _resume(self, event: ConnectionResumed, now: float) -> None:
        attachment = self._attachments.get(event.connection)
        if attachment is not None:
            attachment.paused = False
            self._drain(attachment, now)

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
        if outlet is None or not outlet.return_credit(event.credit_bytes, now):
            return
        for session, blocked in list(self._waiting.items()):
            if not outlet.open:
                return
            if blocked is outlet:
                del self._waiting[session]
                assert session.attachment is not None
                self._drain(session.attachment, now)

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
        assert sum(wish.sessions for wish in self._wishes.values()) == subscriptions

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
        if attachment is not None and len(session.queue) and not attachment.paused:
            blocked = not attachment.outlet.open and session in self._waiting
            assert blocked or (session.queue.head().qos and session.inflight.is_full())
