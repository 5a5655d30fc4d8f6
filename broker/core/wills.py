"""Wills: who left one, and when those whose connection is gone are due.

It owns the family `will` of the store, the rows by which other nodes know of wills, and the deadlines. It does not
publish: the owner takes what is due.

    will  client id  see `left_will`

Theory of operation
-------------------
A will is stored with its CONNECT, also that of a session which isn't, so that it comes due although everything was
killed. It goes with a proper DISCONNECT [MQTT-3.1.2-10]. Else it waits for its delay, or the end of its session if that
comes first [MQTT-3.1.2-8], and is forgotten if the client is back in time [MQTT-3.1.3-9].

The other nodes know every will, since one of them publishes it when this node is gone for too long. Which of them does,
and that they agree, is the cluster's business. It has this node keep its wills (`held`) while it does not know what the
others did, leave alone those that another is about to publish (`claimed`), and give up what another has published.

Invariant: whatever waits, unless it is claimed, has a deadline in the heap.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Final, final

from broker.core.epoch import Epoch, pack_epoch
from broker.core.left_will import (
    STORED_VERSION,
    LeftWill,
    pack_stored_will,
    pack_will_row,
    unpack_stored_will,
)
from broker.core.rows import RowChange, RowKind, Table, pack_row, row_hash
from broker.core.session_rows import SessionRows
from broker.core.session_store import SessionStore
from broker.core.storage import Storage
from broker.core.stored_message import UNREADABLE, check_version, corrupt
from broker.core.will import Will

_STALE_DEADLINES_MAX: Final = 64
# A number is the incarnation and a count, as those of messages are.
_INCARNATION_SHIFT: Final = 40


@final
class Wills:
    """The wills of a node, by client id."""

    def __init__(self, store: SessionStore, rows: SessionRows, incarnation: int) -> None:
        # Nothing is published while the node does not know what the others did.
        self.held = False
        self._store = store
        self._rows = rows
        self._number: int = incarnation << _INCARNATION_SHIFT
        self._left: dict[str, LeftWill] = {}
        # Those that went to another node with their sessions, which has not said yet that it has them.
        self._suspended: dict[str, LeftWill] = {}
        # The hash of the row that others were told.
        self._told: dict[str, int] = {}
        self._due: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._left)

    def recover(self, storage: Storage, now: float, grace_s: float, delay_s_max: float, lasting: set[str]) -> None:
        """Read what is stored. Whoever was connected lost its connection to us, and has the grace to come back.

        `lasting` are the client ids whose sessions outlived that: the others ended, and with them their delays.
        """
        clock = self._store.clock
        for key, value in storage.scan("will", b"", b""):
            check_version(value, STORED_VERSION, "will")
            try:
                left, deadline_ms = unpack_stored_will(key, value)
            except UNREADABLE as error:
                raise corrupt("will", key, error) from None
            self._left[left.client_id] = left
            if deadline_ms:
                due = clock.to_monotonic(deadline_ms)
            else:
                delay_s = min(float(left.will.delay_s), delay_s_max) if left.client_id in lasting else 0.0
                left.wait_s = int(max(delay_s, grace_s))
                due = now + left.wait_s
            self._schedule(left, due)
            if left.number == 0:
                left.number = self._next_number()
                self._store.writes.put("will", key, pack_stored_will(left, clock))

    def rows(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (table, row, value) of what the other nodes have to know, and take it for told."""
        for client_id, left in {**self._suspended, **self._left}.items():
            row = pack_row(RowKind.WILL, client_id.encode())
            value = pack_will_row(left)
            self._told[client_id] = row_hash(row, value)
            yield int(Table.LASTING), row, value

    def leave(self, client_id: str, user_name: str | None, will: Will, epoch: Epoch, wait_s: int) -> None:
        """A client connected and left its will, which is to wait so long when the connection ends."""
        left = LeftWill(client_id, user_name, will)
        left.epoch = pack_epoch(epoch)
        left.number = self._next_number()
        left.wait_s = wait_s
        self._left[client_id] = left
        self._put(left)

    def discard(self, client_id: str) -> None:
        """The client said goodbye properly, or is back: its will goes."""
        if client_id in self._left:
            del self._left[client_id]
            self._delete(client_id)

    def schedule(self, client_id: str, wait_s: int, now: float) -> None:
        """The client's connection is gone; `take_due` has its will when it has waited."""
        left = self._left.get(client_id)
        if left is not None:
            left.wait_s = wait_s
            self._schedule(left, now + wait_s)
            self._put(left)

    def get(self, client_id: str) -> LeftWill | None:
        """Return the will of a client, if it left one."""
        return self._left.get(client_id)

    def take(self, client_id: str, now: float) -> LeftWill | None:
        """Take the will of a client that is not connected, due or not: its session ended."""
        left = self._left.get(client_id)
        if left is None or left.due == 0.0:
            return None
        if self.held or left.claimed:
            self._schedule(left, now)
            self._put(left)
            return None
        self.discard(client_id)
        return left

    def take_due(self, now: float) -> list[LeftWill]:
        """Take the wills that are due."""
        due: list[LeftWill] = []
        while not self.held and self._due and self._due[0][0] <= now:
            deadline, client_id = heapq.heappop(self._due)
            left = self._left.get(client_id)
            # Another entry, or none, stands for a will that was scheduled anew or went.
            if left is not None and left.due == deadline and not left.claimed:
                self.discard(client_id)
                due.append(left)
        return due

    def next_deadline(self) -> float:
        """Return when `take_due` may have something, in monotonic seconds; infinity when never."""
        return self._due[0][0] if self._due and not self.held else math.inf

    def _schedule(self, left: LeftWill, due: float) -> None:
        left.due = due
        if not left.claimed:
            heapq.heappush(self._due, (due, left.client_id))
        if len(self._due) > 2 * len(self._left) + _STALE_DEADLINES_MAX:
            # Those of clients that came back in time would otherwise stay until their time comes.
            self._due = [(left.due, left.client_id) for left in self._left.values() if left.due and not left.claimed]
            heapq.heapify(self._due)

    # Among other nodes.

    def set_claimed(self, client_id: str, claimed: bool) -> None:
        """Another node is about to publish the will of a client, or is not any more."""
        left = self._left.get(client_id)
        if left is not None and left.claimed != claimed:
            left.claimed = claimed
            if left.due and not claimed:
                self._schedule(left, left.due)

    def spend(self, client_id: str) -> None:
        """Another node has published the will of a client, which seemed to be gone with this node.

        If it is still connected, that is the will of a connection which goes on, and which will end one day.
        """
        left = self._left.get(client_id)
        if left is not None and left.due == 0.0:
            left.number = self._next_number()
            left.claimed = False
            self._put(left)
        else:
            self.discard(client_id)

    def suspend(self, client_id: str, epoch: Epoch) -> LeftWill | None:
        """Take the will of a session that goes to another node, and leave it in the store until `forget`."""
        left = self._left.get(client_id)
        if left is None or left.epoch > pack_epoch(epoch):
            # What there is belongs to a later session.
            return None
        self._suspended[client_id] = self._left.pop(client_id)
        return left

    def forget(self, client_id: str) -> None:
        """The other node has what `suspend` took."""
        if self._suspended.pop(client_id, None) is not None and client_id not in self._left:
            self._delete(client_id)

    def adopt(self, left: LeftWill, epoch: Epoch, now: float) -> None:
        """Take over the will of a client that is not connected, from another node, with its session."""
        self._suspended.pop(left.client_id, None)
        left.epoch = pack_epoch(epoch)
        left.number = self._next_number()
        left.wait_s = max(0, math.ceil(left.due - now))
        left.claimed = False
        self._left[left.client_id] = left
        self._schedule(left, left.due)
        self._put(left)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _put(self, left: LeftWill) -> None:
        client_id = left.client_id.encode()
        self._store.writes.put("will", client_id, pack_stored_will(left, self._store.clock))
        row = pack_row(RowKind.WILL, client_id)
        value = pack_will_row(left)
        self._rows.changes.append(RowChange(Table.LASTING, row, self._told.get(left.client_id, 0), value))
        self._told[left.client_id] = row_hash(row, value)

    def _delete(self, client_id: str) -> None:
        self._store.writes.delete("will", client_id.encode())
        told = self._told.pop(client_id, 0)
        if told:
            row = pack_row(RowKind.WILL, client_id.encode())
            self._rows.changes.append(RowChange(Table.LASTING, row, told, None))

    def validate(self) -> None:
        """Check the invariant."""
        waiting = {(left.due, left.client_id) for left in self._left.values() if left.due and not left.claimed}
        assert waiting <= set(self._due)
