"""Session rows: what the other nodes have to hear of the sessions of this node.

Owns the changes of the turn until the owner takes them. It knows nothing of other nodes: which table a row belongs to
follows from the session alone. A session's row tells its epoch, user and expiry; a persistent one has a row for each
subscription beside it, so that it can be given another home while this node is away.

A session remembers what was told of it (`told`): a table does not look up what it held.
"""

from collections.abc import Iterable, Iterator
from typing import final

from broker.core.rows import (
    RowChange,
    RowKind,
    SessionRow,
    Table,
    is_persistent_session,
    pack_row,
    pack_session,
    pack_subscription,
    row_hash,
)
from broker.core.session import Session
from broker.core.subscription import Subscription


@final
class SessionRows:
    """Changes of sessions' rows, in order."""

    def __init__(self) -> None:
        self.changes: list[RowChange] = []

    def tell(self, session: Session) -> None:
        """The session began, or something of it changed that others know."""
        value = _pack(session)
        told = session.told
        if value == told:
            return
        row = pack_row(RowKind.SESSION, session.client_id.encode())
        was = 0
        if told:
            was = row_hash(row, told)
            if session.persistent and not is_persistent_session(told):
                self.changes.append(RowChange(Table.PASSING, row, was, None))
                was = 0
                for topic_filter, subscription in session.subscriptions.items():
                    self._change_subscription(session, topic_filter, None, subscription)
        self.changes.append(RowChange(_table(session.persistent), row, was, value))
        session.told = value

    def subscribed(self, session: Session, topic_filter: bytes, before: Subscription | None, now: Subscription) -> None:
        """A subscription was made, or replaces the one before."""
        if session.persistent and before is not now:
            self._change_subscription(session, topic_filter, before, now)

    def unsubscribed(self, session: Session, topic_filter: bytes, before: Subscription) -> None:
        """A subscription ended."""
        if session.persistent:
            self._change_subscription(session, topic_filter, before, None)

    def moved(self, session: Session) -> None:
        """The session is another's: what older homes have of it goes there."""
        self._end(session, True)

    def ended(self, session: Session) -> None:
        """The session ended, and with it all that it had, older homes' parts included."""
        self._end(session, False)

    def _end(self, session: Session, moved: bool) -> None:
        told = session.told
        if not told:
            return
        session.told = b""
        if is_persistent_session(told):
            for topic_filter, subscription in session.subscriptions.items():
                self._change_subscription(session, topic_filter, subscription, None)
        row = pack_row(RowKind.SESSION, session.client_id.encode())
        self.changes.append(RowChange(_table(is_persistent_session(told)), row, row_hash(row, told), None, moved))

    def snapshot(self, sessions: Iterable[Session]) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (table, row, value) of all that is to be known of the sessions, and take it for told."""
        for session in sessions:
            session.told = _pack(session)
            client_id = session.client_id.encode()
            yield _table(session.persistent), pack_row(RowKind.SESSION, client_id), session.told
            if session.persistent:
                for topic_filter, subscription in session.subscriptions.items():
                    row = pack_row(RowKind.SUBSCRIPTION, client_id, topic_filter)
                    yield _table(True), row, _pack_subscription(subscription)

    def _change_subscription(
        self, session: Session, topic_filter: bytes, before: Subscription | None, now: Subscription | None
    ) -> None:
        row = pack_row(RowKind.SUBSCRIPTION, session.client_id.encode(), topic_filter)
        was = 0 if before is None else row_hash(row, _pack_subscription(before))
        value = None if now is None else _pack_subscription(now)
        self.changes.append(RowChange(Table.LASTING, row, was, value))


def _pack(session: Session) -> bytes:
    return pack_session(SessionRow(session.epoch, session.persistent, session.expiry_s, session.user_name))


def _pack_subscription(subscription: Subscription) -> bytes:
    return pack_subscription(subscription.options, subscription.identifier)


def _table(persistent: bool) -> int:
    return int(Table.LASTING if persistent else Table.PASSING)
