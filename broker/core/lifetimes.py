"""Lifetimes: the sessions of a node, from the first connection of a client id to the end of what it left behind.

It owns which sessions there are, when the time of one is over, and what its end takes with it. It knows nothing of
connections: whoever owns them says when one begins and ends.

Theory of operation
-------------------
A session that is to outlive its connection is in the store from then on until it ends. Its time runs from the end of
the connection; one entry of the heap serves all its reconnects, however often a client comes and goes.
"""

import heapq
import math
from typing import Final, final

from broker.core.dispatch import Dispatcher
from broker.core.epoch import FIRST_EPOCH, Epoch, first_epoch, home_counter, oldest_epoch
from broker.core.events import NEVER_EXPIRES_S, Attach
from broker.core.places import first_place
from broker.core.publishing import Publishing
from broker.core.session import Session
from broker.core.session_rows import SessionRows
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.subscribing import Subscribing
from broker.core.wills import Wills

_STALE_DEADLINES_MAX: Final = 64


@final
class Lifetimes:
    """Begins and ends sessions; `sessions` are those that there are, by client id."""

    def __init__(
        self,
        settings: OwnerSettings,
        store: SessionStore,
        subscribing: Subscribing,
        rows: SessionRows,
        dispatcher: Dispatcher,
        publishing: Publishing,
        wills: Wills,
        store_id: bytes,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self._settings = settings
        self._counters = dispatcher.counters
        self._store = store
        self._subscribing = subscribing
        self._rows = rows
        self._store_id = store_id
        self._dispatcher = dispatcher
        self._publishing = publishing
        self._wills = wills
        self._expiries: list[tuple[float, int, Session]] = []

    def restore(self, sessions: list[Session], now: float) -> None:
        """Take over the sessions that recovery found, and end those that are over."""
        self._counters.queue_initialized_from_storage += len(sessions)
        for session in sessions:
            self.sessions[session.client_id] = session
            if session.epoch == FIRST_EPOCH:
                session.epoch = first_epoch(0, self._store_id)
            if session.expiry_s == 0:
                # It was to end with a connection that is gone.
                self.end(session, now, will_waits=True)
            elif session.expires_at == 0.0:
                # It was connected when the node went down: its time runs from now.
                self.start_expiry(session, now)
            else:
                self._schedule(session)

    def begin(self, event: Attach, epoch: Epoch) -> Session:
        """Begin a session for a client id that has none [MQTT-3.1.2-6]."""
        number = self._store.take_number()
        session = Session(
            number, event.client_id, event.user_name, event.session_expiry_s, 0, self._settings.queue_lifo
        )
        session.epoch = epoch
        # Who asks for a clean start wants nothing of an older session, whatever it hears.
        session.unheard = not event.clean_start
        session.next_seq = first_place(epoch) + 1
        self.sessions[event.client_id] = session
        self._counters.queue_setup += 1
        return session

    def adopt(self, session: Session) -> None:
        """Take over a session that came from another node, without a connection."""
        assert session.client_id not in self.sessions
        self.sessions[session.client_id] = session
        self._counters.queue_setup += 1
        if session.expires_at != 0.0:
            self._schedule(session)

    def become_oldest(self, was_member: bool) -> None:
        """Have every session be of an earlier epoch than any that the cluster has which this node joins.

        `was_member` says that this node has been a member before, so that its sessions may have other homes there.
        """
        for session in self.sessions.values():
            session.epoch = oldest_epoch(home_counter(session.epoch) if was_member else 0, self._store_id)
            if session.persistent:
                self._store.put_session(session)
            self._rows.tell(session)

    def release(self, session: Session) -> None:
        """A session goes to another node: from now on it is not this node's."""
        del self.sessions[session.client_id]
        self._counters.queue_teardown += 1

    def expire(self, now: float) -> None:
        """End the sessions whose time is over."""
        while self._expiries and self._expiries[0][0] <= now:
            deadline, _number, session = heapq.heappop(self._expiries)
            if session.scheduled_at != deadline:
                continue
            session.scheduled_at = 0.0
            if self.sessions.get(session.client_id) is not session or session.expires_at == 0.0:
                continue
            if session.expires_at <= now:
                self._counters.client_expired += 1
                self.end(session, now)  # [MQTT-4.1.0-2]
            else:
                self._schedule(session)

    def next_deadline(self) -> float:
        """Return when `expire` has something to do, in monotonic seconds; infinity when never."""
        return self._expiries[0][0] if self._expiries else math.inf

    def set_expiry(self, session: Session, expiry_s: int) -> None:
        """Set how long the session outlives its connection; once it is to, it is stored until it ends.

        Its first CONNECT settles whether it is: one that ends with its connection goes on in no other, and can't be
        prolonged. So nothing else of it is to be stored yet.
        """
        session.expiry_s = expiry_s
        if expiry_s > 0 and not session.persistent:
            assert not session.subscriptions and session.queue.is_empty()
            session.persistent = True
        if session.persistent:
            self._store.put_session(session)

    def start_expiry(self, session: Session, now: float) -> None:
        """Its connection ended: from now on its time runs."""
        if session.expiry_s != NEVER_EXPIRES_S:
            session.expires_at = now + session.expiry_s
            self._schedule(session)
            self._store.put_session(session)

    def _schedule(self, session: Session) -> None:
        """Have `tick` look at the session no later than when it expires; one entry serves all its reconnects."""
        if session.scheduled_at == 0.0 or session.expires_at < session.scheduled_at:
            session.scheduled_at = session.expires_at
            heapq.heappush(self._expiries, (session.expires_at, session.number, session))
        if len(self._expiries) > 2 * len(self.sessions) + _STALE_DEADLINES_MAX:
            # Sessions that ended long before their time would otherwise stay until it comes.
            self._expiries = [(left.scheduled_at, left.number, left) for left in self.sessions.values()]
            self._expiries = [entry for entry in self._expiries if entry[0] != 0.0]
            heapq.heapify(self._expiries)

    def end(self, session: Session, now: float, will_waits: bool = False) -> None:
        """End a session and publish its will, unless that is to wait for the client all the same."""
        del self.sessions[session.client_id]
        self._counters.queue_teardown += 1
        self._rows.ended(session)
        self._subscribing.end_session(session, now)
        self._dispatcher.session_ended(session)
        self._subscribing.groups.session_ended(session, now)
        if session.persistent:
            self._store.delete_session(session)
        left = None if will_waits else self._wills.take(session.client_id, now)
        if left is not None:
            # [MQTT-3.1.2-8] The session ends before the delay does.
            self._publishing.publish_will(left, now)

    def validate(self) -> None:
        """Check the invariants of sessions; the store knows those that outlive their connections."""
        for client_id, session in self.sessions.items():
            assert session.client_id == client_id
            assert session.attachment is not None or session.persistent
            assert session.persistent or session.expiry_s == 0
            # One that stays at a donor is a member of none.
            shared = sum(1 for name in session.subscriptions if name.startswith(b"$share/"))
            assert len(session.groups) in (0, shared)
            self._dispatcher.validate(session)
