"""Peer tables: what this node holds of one peer's tables, and what is made of their rows.

Owns the replicas of a peer, the ones in the store and those in memory, and hands each row to the view that wants it. It
knows nothing of connections; `replication` says when what is asked for.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, final

from broker.core.epoch import NO_EPOCH, Epoch
from broker.core.left_will import LeftWill, unpack_will_row
from broker.core.rows import (
    BUCKETS,
    RowKind,
    Table,
    bucket_of,
    pack_group,
    pack_interest,
    pack_row,
    row_rest,
    row_subject,
    unpack_group,
    unpack_interest,
    unpack_session,
    unpack_subscription,
)
from broker.core.storage import Storage
from broker.core.subscription import Subscription, subscription
from broker.core.transfer import SessionHead
from cluster.frames import TablePosition
from cluster.interest import PeerInterest, is_shared
from cluster.registry import REGISTERED, Registry
from cluster.retained_view import RetainedView, value_in
from cluster.table_frames import TableRows
from cluster.table_rows import MemoryRows, StoredRows
from cluster.tables import Replica, RowView
from cluster.turn import Turn

# What the interest view makes something of.
WISHED: Final = (RowKind.INTEREST, RowKind.GROUP)


@final
class Views:
    """Which view wants a row."""

    def __init__(self, interest: PeerInterest, registry: Registry, retained: RetainedView) -> None:
        self._interest = interest
        self._registry = registry
        self._retained = retained

    def forget(self, node: str) -> None:
        """A node is no member any more; afterwards it is told that its buckets hold nothing."""
        self._retained.forget(node)
        self._registry.wills.forget(node)

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """A bucket is told anew; of interest every row that went is told."""
        if table == Table.RETAINED:
            self._retained.bucket_replaced(node, bucket)
        else:
            self._registry.bucket_replaced(node, table, bucket)

    def set_row(self, node: str, table: int, bucket: int, row: bytes, value: bytes) -> None:
        """A row is there."""
        if row[0] in REGISTERED:
            self._registry.set_row(node, table, bucket, row, value)
        elif row[0] in WISHED and table == Table.PASSING:
            self._interest.set_row(node, row, value)
        elif row[0] == RowKind.RETAINED and table == Table.RETAINED:
            self._retained.set_row(node, bucket, row, value)

    def remove_row(self, node: str, table: int, bucket: int, row: bytes) -> None:
        """A row is gone."""
        if row[0] in REGISTERED:
            self._registry.remove_row(node, table, bucket, row)
        elif row[0] in WISHED and table == Table.PASSING:
            self._interest.remove_row(node, row)
        elif row[0] == RowKind.RETAINED and table == Table.RETAINED:
            self._retained.remove_row(node, bucket, row)


@final
class PeerTables:
    """The tables of one peer, by number."""

    def __init__(
        self,
        node: str,
        store_id: bytes,
        storage: Storage,
        turn: Turn,
        views: Views,
        lasting: StoredRows,
        lasting_view: RowView,
    ) -> None:
        """`lasting` are the rows that outlive the peer's starts; `lasting_view` is told them, and tells `views`."""
        self._node = node
        self._views = views
        self._lasting = lasting
        self._retained = StoredRows(storage, turn, store_id, Table.RETAINED)
        self._passing = MemoryRows()
        self.replicas: dict[int, Replica] = {
            int(Table.PASSING): Replica(node, Table.PASSING, self._passing, views),
            int(Table.LASTING): Replica(node, Table.LASTING, self._lasting, lasting_view),
            int(Table.RETAINED): Replica(node, Table.RETAINED, self._retained, views),
        }
        # What is stored of how late those in the store are.
        self._known: dict[int, tuple[int, int]] = {}
        # What this node sent of its tables on the bulk connection, since the peer last said that it got on with them.
        self.bulk_bytes: int = 0
        # What the peer said last of each table, and when this node asked for it last or heard a part of it. When it
        # said so in a heartbeat, and when on the bulk connection.
        self.told: dict[int, TablePosition] = {}
        self.told_at: float = -math.inf
        self.retained_told_at: float = -math.inf
        # The (generation, version plus one) of what outlives its starts that all others know, as it said last.
        self.known_to_others: tuple[int, int] = (0, 0)
        # Whether the replicas were then exactly what it said.
        self.agrees: dict[int, bool] = {}
        self.asked_at: dict[int, float] = {}

    def restore(self, filters: list[bytes], known: dict[int, tuple[int, int]]) -> None:
        """Begin with what the store holds of the peer, and with the persistent filters that are remembered.

        `known` is table -> (generation, version) at which that was wholly known.
        """
        self._known = dict(known)
        for table, at in known.items():
            if table in self.replicas:
                self.replicas[table].known = at
        self.replicas[Table.LASTING].restore()
        for topic_filter in filters:
            row, value = pack_row(RowKind.INTEREST, topic_filter), pack_interest(True)
            if is_shared(topic_filter):
                row, value = pack_row(RowKind.GROUP, topic_filter), pack_group(True, 0)
            self.replicas[Table.PASSING].restore_row(row, value)

    def restore_retained(self) -> None:
        """Begin with what the store holds of the peer's retained messages; whoever replays them is there."""
        self.replicas[Table.RETAINED].restore()

    def known(self, table: int) -> tuple[int, int]:
        """Return the (generation, version) of a table that was known wholly, in whichever life of this node."""
        return self.replicas[table].known

    def take_known(self) -> list[tuple[int, tuple[int, int]]]:
        """Return (table, what `known` says) of those in the store for which that changed since the last call."""
        found = []
        for table in (Table.LASTING, Table.RETAINED):
            at = self.replicas[table].known
            if at != self._known.get(table, (0, 0)):
                self._known[table] = at
                found.append((int(table), at))
        return found

    def copy_of(self, table: int) -> Callable[[int], list[tuple[bytes, bytes]]]:
        """Return what reads a bucket for a member that does not hear the peer; of wishes what outlives a connection."""
        return self._lasting_wishes if table == Table.PASSING else self.replicas[table].rows.read

    def _lasting_wishes(self, bucket: int) -> list[tuple[bytes, bytes]]:
        found = []
        for row, value in self._passing.read(bucket):
            if row[0] == RowKind.INTEREST and unpack_interest(value):
                found.append((row, value))
            elif row[0] == RowKind.GROUP and unpack_group(value)[0]:
                found.append((row, pack_group(True, 0)))
        return found

    def receive_copied(self, rows: TableRows) -> None:
        """Take a part of what another member knows of the peer; wishes are only added to what is known here."""
        replica = self.replicas[rows.table]
        if rows.table != Table.PASSING:
            replica.receive_rows(rows)
        elif replica.takes_part(rows):
            for piece in rows.pieces:
                for row, value in piece.rows:
                    if bucket_of(row_subject(row)) == piece.bucket and self._passing.get(piece.bucket, row) is None:
                        replica.restore_row(row, value)

    def greeted(self) -> None:
        """A new conversation begins; what was said in the last one, and asked for, is void."""
        self.told = {}
        self.told_at = -math.inf
        self.known_to_others = (0, 0)
        self.asked_at = {}
        self.bulk_bytes = 0

    def may_ask(self, table: int, now: float, patience_s: float) -> bool:
        """Say whether it is time to ask for a table; if it was asked for, an answer may be on its way."""
        return now - self.asked_at.get(table, -math.inf) >= patience_s

    def is_current(self) -> bool:
        """Say whether this node knows wholly what the peer told last of its sessions and wishes."""
        return self._covers(Table.PASSING) and self._covers(Table.LASTING)

    def is_lasting_whole(self) -> bool:
        """Say whether what is known of the peer that outlives its starts is all that there was at some time."""
        return self.replicas[Table.LASTING].fresh == BUCKETS

    def is_retained_current(self) -> bool:
        """Say whether this node knows exactly what the peer told last of its retained messages; they may be many."""
        return self._is_at(Table.RETAINED)

    def known_retained(self) -> int:
        """Return the version of this node's retained messages that the peer has said it knows, -1 if it has not."""
        told = self.told.get(Table.RETAINED)
        return -1 if told is None else told.known - 1

    def retained_value(self, topic: bytes) -> bytes:
        """Return the value of the peer's row of a topic, as it is committed here; b"" if there is none."""
        return value_in(self._retained, topic)

    def knows_ours(self) -> bool:
        """Say whether the peer said last that it knows all tables of this node."""
        return all(table in self.told and self.told[table].known > 0 for table in self.replicas)

    def wishes_version(self) -> tuple[int, int]:
        """Return (generation, version) of the peer's wishes, (0, 0) while they are not known as a whole."""
        replica = self.replicas[Table.PASSING]
        return (replica.generation, replica.version) if replica.fresh == BUCKETS else (0, 0)

    def known_version(self, table: int) -> int:
        """Return what to tell the peer: the version plus one that is known of its table, 0 if it is not known."""
        told = self.told.get(table)
        return 0 if told is None else self.replicas[table].known_version(told.generation)

    def subscriptions_of(self, client_id: str) -> list[tuple[bytes, Subscription]]:
        """Return (filter, subscription) of a persistent session of the peer, as they are committed here."""
        found = []
        for row, value in self._lasting.read_from(pack_row(RowKind.SUBSCRIPTION, client_id.encode())):
            options, identifier = unpack_subscription(value)
            found.append((row_rest(row), subscription(options, identifier)))
        return found

    def subscriptions(self) -> Iterator[tuple[str, int, bytes, Subscription]]:
        """Iterate over all persistent sessions of the peer, as they are committed.

        Each is (client id, epoch counter, filter, subscription).
        """
        for client_id, epoch, topic_filter, wanted in subscriptions_in(self._lasting):
            yield client_id, epoch.counter, topic_filter, wanted

    def head_of(self, client_id: str) -> SessionHead | None:
        """Return what is known of a persistent session of the peer, as it is committed here."""
        rows = self._lasting.read_from(pack_row(RowKind.SESSION, client_id.encode()))
        if not rows:
            return None
        session = unpack_session(rows[0][1])
        head = SessionHead(client_id, session.user_name, session.expiry_s)
        head.subscriptions = [
            (topic_filter, wanted.options, wanted.identifier)
            for topic_filter, wanted in self.subscriptions_of(client_id)
        ]
        return head

    def will_of(self, client_id: str) -> LeftWill | None:
        """Return the will that a client left at the peer, as it is committed here."""
        rows = self._lasting.read_from(pack_row(RowKind.WILL, client_id.encode()))
        return unpack_will_row(client_id.encode(), rows[0][1]) if rows else None

    def knows_lasting(self, version: int) -> bool:
        """Say whether the peer said last that it knows this version of what outlives a start of this node."""
        return self.knows_of_lasting() > version

    def knows_of_lasting(self) -> int:
        """Return the version plus one of that which the peer said last that it knows, 0 if it knows none."""
        told = self.told.get(Table.LASTING)
        return 0 if told is None else told.known

    def lasting_at(self) -> tuple[int, int]:
        """Return the (generation, version plus one) of what is known here of what outlives the peer's starts."""
        replica = self.replicas[Table.LASTING]
        return replica.generation, replica.version + 1

    def _covers(self, table: int) -> bool:
        told = self.told.get(table)
        return told is not None and self.replicas[table].covers(told)

    def _is_at(self, table: int) -> bool:
        told = self.told.get(table)
        return told is not None and self.replicas[table].is_at(told)

    def forget(self) -> None:
        """Remove everything: the peer is no member any more."""
        self._views.forget(self._node)
        for replica in self.replicas.values():
            replica.forget()

    def validate(self) -> None:
        """Check the invariants."""
        for replica in self.replicas.values():
            replica.validate()


def subscriptions_in(lasting: StoredRows) -> Iterator[tuple[str, Epoch, bytes, Subscription]]:
    """Iterate over the persistent sessions in a table that outlives starts, as they are committed.

    Each is (client id, epoch, filter, subscription).
    """
    epochs: dict[bytes, Epoch] = {}
    for _bucket, row, value in lasting.scan():
        if row[0] == RowKind.SUBSCRIPTION:
            subject = row_subject(row)
            if subject not in epochs:
                known = lasting.read_from(pack_row(RowKind.SESSION, subject))
                epochs[subject] = unpack_session(known[0][1]).epoch if known else NO_EPOCH
            options, identifier = unpack_subscription(value)
            yield subject.decode(), epochs[subject], row_rest(row), subscription(options, identifier)
