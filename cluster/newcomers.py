"""Newcomers: from which of this node's messages on a session that came to a member is there.

Owns that number for each session of one member, as long as something older waits for the member. It knows nothing of
what a session wants.

Theory of operation
-------------------
What is published here before this node knows that a session came to a member goes to the home that it had before, which
has it, has given it to the client, or passes it on. The same message may wait for the member as well, since others
there want it. When it gets that, the session leaves it out: a mark in the stream says from where on the session is
served by that stream (see `broker.core.arrival`). If the member is removed, or this node is and comes back as a donor,
nobody reads the stream to its end; whoever gives what waits in it then (see `estates`) has to know the same. The old
home may have forgotten by then that there was a session.

A session of which no other home is known, when it is heard of, has no number: what it may have wanted before is nowhere
else. Nor has one whose row is there already: it has been at the member before, and what waits may be of that time. The
other home may be a later one, where another member tells of one that is down.

The number is that of the mark by which the member is told that this node knows what it wants, as sessions are told
behind what they want; or that of the next message, where another member tells of one that is down.

A number is in the store. It goes with the session's row, or when the member has acknowledged everything that was
waiting when the last session came, or when all that was kept for a member is given.
"""

from collections.abc import Callable
from typing import Final, final

from broker.core.rows import RowKind, pack_row, row_subject
from cluster.link import OutgoingLink
from cluster.mesh_store import MeshStore
from cluster.registry import Registry
from cluster.table_rows import StoredRows
from cluster.tables import RowView


@final
class Newcomers:
    """The sessions that came to one member; it is told the rows that outlive the member's starts, and tells `view`."""

    def __init__(
        self,
        store: MeshStore,
        registry: Registry,
        link: OutgoingLink,
        rows: StoredRows,
        view: RowView,
        store_id: bytes,
        next_number: Callable[[], int],
    ) -> None:
        # The number that was said in the last mark to the member while it runs, 0 for none.
        self.marked: int = 0
        self._store: Final = store
        self._registry: Final = registry
        self._link: Final = link
        self._rows: Final = rows
        self._view: Final = view
        self._store_id: Final = store_id
        self._next_number: Final = next_number
        self._first: dict[str, int] = {}
        # Those that came in this turn.
        self._fresh: dict[str, int] = {}
        # When the member has this number of the stream, nothing is older than any of the sessions.
        self._last: int = 0

    def restore(self) -> None:
        """Take over what the store holds."""
        self._first = self._store.newcomers(self._store_id)
        self._fresh = {}
        self._last = self._link.last_number()

    def settle(self) -> None:
        """Keep the numbers of who came, or forget all if the member has what is older.

        Call it when the link has all messages of the turn.
        """
        fresh, self._fresh = self._fresh, {}
        if fresh:
            self._last = self._link.last_number()
        if self._link.acked >= self._last:
            self.forget()
            return
        for client_id, number in fresh.items():
            if not self._rows.read_from(pack_row(RowKind.SESSION, client_id.encode())):
                self._first[client_id] = number
                self._store.put_newcomer(self._store_id, client_id, number)

    def forget(self) -> None:
        """Nothing that is older waits any more."""
        if self._first:
            self._first = {}
            self._store.forget_newcomers(self._store_id)

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """A bucket is told anew."""
        self._view.bucket_replaced(node, table, bucket)

    def set_row(self, node: str, table: int, bucket: int, row: bytes, value: bytes) -> None:
        """A row is there."""
        self._view.set_row(node, table, bucket, row, value)
        if row[0] == RowKind.SESSION and not self._registry.is_alone(bucket, row_subject(row)):
            self._note(node, row_subject(row).decode())

    def remove_row(self, node: str, table: int, bucket: int, row: bytes) -> None:
        """A row is gone."""
        if row[0] == RowKind.SESSION:
            client_id = row_subject(row).decode()
            self._fresh.pop(client_id, None)
            if self._first.pop(client_id, 0):
                self._store.delete_newcomer(self._store_id, client_id)
        self._view.remove_row(node, table, bucket, row)

    def _note(self, node: str, client_id: str) -> None:
        if client_id in self._first or client_id in self._fresh:
            return
        if any(home.node != node for home in self._registry.homes(client_id)):
            self._fresh[client_id] = self.marked or self._next_number()
