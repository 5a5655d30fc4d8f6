"""The commit gate: what a turn decided leaves through it, once the store has taken what it writes.

Owns the turns that wait for a store that fails, the events that are held behind them, and the attempts to commit again.
It has no sockets: the owner process hands in events and carries out what it gets back.

Theory of operation
-------------------
    OPEN --a commit, a sync or a read fails--> FAILING --every RETRY_S: commit what waits, in order, and read--> OPEN

While the store fails nothing leaves that needs it. The turn whose commit failed waits whole; the node is frozen
(cluster/node.py), and each event of a listener is either dealt with at once without a write (broker/core/degraded.py)
or held. Effects of a later turn leave at once if they write nothing, and wait behind the others if they do. What waits
is bounded: held events by the credit that is not returned for them, a window for each listener; later turns by what was
queued before, as nothing new that is stored gets in.

A retry commits the waiting batches as they are: each of their operations may be repeated. When the last one is in the
store, and what queues go on with can be read, the node thaws, and the held events are replayed before anything new.
Should the store fail meanwhile, the rest stays held, and what is new is held behind it.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from broker.core.events import (
    ConnectionResumed,
    CreditReturned,
    Event,
    ListenerGone,
    ListenerStarted,
    PublishReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.listener_records import ListenerHeader
from broker.core.storage import StorageError, WriteBatch
from cluster.node import NodeCore, NodeEffects

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
EVENTS_PER_TURN: Final = 4096
# What may send what was queued, or end sessions.
_MAY_WRITE: Final = (ConnectionResumed, CreditReturned, ListenerGone, ListenerStarted)
# What an event takes without its topics and payload.
_EVENT_BYTES: Final = 24


class GatedStorage(Protocol):
    """What the gate asks of the store on disk; all of it may raise StorageError."""

    def commit(self, batch: WriteBatch) -> None:
        """Apply the batch; after a failure even an empty one makes the store usable again, or fails."""

    def flush(self, now: float) -> None:
        """Sync if that is due."""

    def next_deadline(self) -> float:
        """Return when `flush` wants to be called."""

    def checkpoint(self, directory: str) -> None:
        """Sync what was committed, and copy it."""

    def has_failed(self) -> bool:
        """Say whether a write or a sync failed since the store was opened."""


class Held(NamedTuple):
    """An event that waits for the store, and how much credit comes back when it is done."""

    header: ListenerHeader
    event: Event
    credit_bytes: int


class CommitGate:
    """Commits the turns of a node. `failing_reason` says why none leaves now, "" while they do."""

    def __init__(self, node: NodeCore, storage: GatedStorage) -> None:
        self.failing_reason = ""
        # How many times the store began to fail.
        self.failures = 0
        self._node = node
        self._storage = storage
        # Turns that wait for the store, oldest first, and those that don't and leave at the end of this one.
        self._waiting: deque[NodeEffects] = deque()
        self._leaving: list[NodeEffects] = []
        self._held: deque[Held] = deque()
        self._began_at = 0.0
        self._retry_at = 0.0

    def begin(self, now: float) -> None:
        """Begin a turn; a store that can't be read is one that fails."""
        try:
            self._node.begin(now)
        except StorageError as error:
            self._begin_empty(error, now)

    def receive(self, event: Event, now: float) -> None:
        """Take an event that is no client's: what a listener is and how much it can take."""
        if not self.failing_reason:
            self._node.receive_event(event, now)
            return
        handled = self._receive_degraded(event, now)
        assert handled, f"{type(event).__name__} can't wait"
        if isinstance(event, (ListenerStarted, ListenerGone)):
            # What is for an older process under that index means nothing to the next one, or something else.
            for effects in (*self._waiting, *self._leaving):
                effects.to_listeners.pop(event.listener, None)

    def receive_frame(self, header: ListenerHeader, events: list[Event], frame_bytes: int, now: float) -> int:
        """Take the events of a listener's frame, in order; return for how many bytes it gets its credit back now."""
        if not self.failing_reason and not self._held:
            for event in events:
                self._node.receive_event(event, now)
            return frame_bytes
        credit_bytes = frame_bytes
        for event in events:
            if self.failing_reason and self._receive_degraded(event, now):
                continue
            event_bytes = min(_size(event), credit_bytes)
            credit_bytes -= event_bytes
            self._held.append(Held(header, event, event_bytes))
        return credit_bytes

    def replay(self, worked_off: Callable[[ListenerHeader, int], bool], now: float) -> bool:
        """Receive what was held, as far as a turn goes; true when nothing is left.

        `worked_off` returns the credit of an event, and says whether its listener still lives.
        """
        if self.failing_reason:
            return False
        for _ in range(min(EVENTS_PER_TURN, len(self._held))):
            if self._node.owner.is_behind(now):
                return False
            held = self._held.popleft()
            if worked_off(held.header, held.credit_bytes):
                self._node.receive_event(held.event, now)
        return not self._held

    def has_held(self) -> bool:
        """Say whether events wait for a turn that may take them."""
        return bool(self._held) and not self.failing_reason

    def settle(self, now: float) -> list[NodeEffects]:
        """End the turn: return the effects that may be carried out now, in order."""
        effects = self._node.take_effects()
        if not self.failing_reason:
            try:
                if len(effects.writes):
                    self._storage.commit(effects.writes)
            except StorageError as error:
                self._begin(str(error), effects, now)
                return []
            return [effects]
        self._sort_out(effects)
        if now >= self._retry_at:
            self._retry(now)
        leaving, self._leaving = self._leaving, []
        if not self.failing_reason:
            # What the thaw let loose: there may be no other turn for a while.
            leaving.extend(self.settle(now))
        return leaving

    def flush(self, now: float) -> None:
        """Sync the store if that is due."""
        if self.failing_reason or now < self._storage.next_deadline():
            return
        try:
            self._storage.flush(now)
        except StorageError as error:
            # What is acknowledged survives all but a power loss; nothing more is, until it does that, too.
            self._begin_empty(error, now)

    def copy(self, directory: str, now: float) -> None:
        """Copy the store to a directory that is not there; StorageError if that can't be done."""
        try:
            self._storage.checkpoint(directory)
        except StorageError as error:
            if self._storage.has_failed() and not self.failing_reason:
                self._begin_empty(error, now)
            raise

    def next_deadline(self) -> float:
        """Return when `settle` or `flush` has something to do."""
        return self._retry_at if self.failing_reason else self._storage.next_deadline()

    def status(self) -> str:
        """Return what `node status` shows."""
        return f"failing: {self.failing_reason}" if self.failing_reason else "ok"

    def _receive_degraded(self, event: Event, now: float) -> bool:
        if not isinstance(event, _MAY_WRITE):
            return self._node.receive_degraded(event, now)
        # Apart from the rest of the turn, which else would have to wait with it.
        self._sort_out(self._node.take_effects())
        handled = self._node.receive_degraded(event, now)
        self._sort_out(self._node.take_effects())
        return handled

    def _sort_out(self, effects: NodeEffects) -> None:
        """Put effects behind those that wait if they write, else let them leave."""
        if len(effects.writes):
            self._waiting.append(effects)
            self._node.freeze(effects)
        else:
            self._leaving.append(effects)

    def _begin_empty(self, error: StorageError, now: float) -> None:
        """The store failed at something else than a commit."""
        self._begin(str(error), NodeEffects(WriteBatch(), [], {}, []), now)

    def _begin(self, reason: str, effects: NodeEffects, now: float) -> None:
        self.failing_reason = reason
        self.failures += 1
        self._began_at = now
        self._retry_at = now + RETRY_S
        self._waiting.append(effects)
        self._node.freeze(effects)
        for held in self._held:
            self._node.owner.degraded.hold(held.event)
        log.error("%s; nothing that needs the store is acknowledged until it works again", reason)

    def _retry(self, now: float) -> None:
        try:
            while self._waiting:
                self._storage.commit(self._waiting[0].writes)
                self._leaving.append(self._waiting.popleft())
            self._node.thaw(now)
        except StorageError as error:
            self.failing_reason = str(error)
            self._retry_at = now + RETRY_S
            return
        self.failing_reason = ""
        log.warning("the store works again, after %.0f s", now - self._began_at)


def _size(event: Event) -> int:
    """Return about how much of its frame an event is."""
    if isinstance(event, PublishReceived):
        return _EVENT_BYTES + event.message.size()
    if isinstance(event, SubscribeReceived):
        return _EVENT_BYTES + sum(len(topic_filter) for topic_filter, _ in event.requests)
    if isinstance(event, UnsubscribeReceived):
        return _EVENT_BYTES + sum(len(topic_filter) for topic_filter in event.filters)
    return _EVENT_BYTES
