"""Own tables: what this node tells the others of itself.

Owns the tables of this node: the rows that the queue-owner reports, the ENDED rows that the registry calls for, and
claims of wills. It
knows nothing of peers or frames' ways; `replication` carries what it packs.

The rows of RETAINED are written by the queue-owner, which reports only what it has done to them.

The rows of LASTING follow from the sessions in the store, and are committed in the same batch. At a start both are
compared, so that a store of an older program, or one whose sessions ended with the start, is put right.
"""

from collections.abc import Callable, Iterator
from typing import Final, final

from broker.core.effects import InterestChange
from broker.core.epoch import FIRST_EPOCH, unpack_epoch
from broker.core.rows import (
    BUCKETS,
    SUM_MASK,
    RowChange,
    RowKind,
    Table,
    bucket_of,
    pack_away,
    pack_claim,
    pack_ended,
    pack_interest,
    pack_row,
    row_hash,
    row_subject,
)
from broker.core.storage import Storage
from cluster.registry import REGISTERED, Registry
from cluster.retained_view import RetainedView, value_in
from cluster.table_rows import MemoryRows, StoredRows
from cluster.tables import OwnTable
from cluster.turn import Turn

# What follows from sessions and wills.
_DERIVED: Final = (RowKind.SESSION, RowKind.SUBSCRIPTION, RowKind.WILL)


@final
class OwnTables:
    """The tables of this node by number."""

    def __init__(
        self,
        node: str,
        store_id: bytes,
        incarnation: int,
        storage: Storage,
        turn: Turn,
        registry: Registry,
        retained: RetainedView,
    ) -> None:
        self._node = node
        self._registry = registry
        self._retained = retained
        self._complete = False
        self._passing = MemoryRows()
        self._retained_rows = StoredRows(storage, turn, store_id, Table.RETAINED, told=True)
        lasting = OwnTable(Table.LASTING, incarnation, StoredRows(storage, turn, store_id, Table.LASTING))
        self.all: dict[int, OwnTable] = {
            int(Table.PASSING): OwnTable(Table.PASSING, incarnation, self._passing),
            int(Table.LASTING): lasting,
            # The queue-owner writes its rows itself.
            int(Table.RETAINED): OwnTable(Table.RETAINED, incarnation, self._retained_rows),
        }
        lasting.restore()
        self.all[Table.RETAINED].restore()
        for bucket, row, value in lasting.rows.scan():
            if row[0] in (RowKind.ENDED, RowKind.CLAIM):
                registry.set_row(node, Table.LASTING, bucket, row, value)

    def restore(self, rows: Callable[[], Iterator[tuple[int, bytes, bytes]]]) -> None:
        """Put the tables in line with the (table, row, value) that follow from the sessions; `rows` is asked twice."""
        lasting = self.all[Table.LASTING]
        differing = [0] * BUCKETS
        for table, row, value in rows():
            bucket = bucket_of(row_subject(row))
            if table == Table.LASTING:
                differing[bucket] += row_hash(row, value)
            else:
                self.all[table].change(bucket, row, 0, value)
            if row[0] in (RowKind.SESSION, RowKind.WILL):
                self._registry.set_row(self._node, table, bucket, row, value)
        for bucket, row, value in lasting.rows.scan():
            if row[0] in _DERIVED:
                differing[bucket] -= row_hash(row, value)
        wrong: dict[int, dict[bytes, bytes]] = {}
        for bucket, difference in enumerate(differing):
            if difference & SUM_MASK:
                wrong[bucket] = {}
        if wrong:
            self._correct(lasting, wrong, rows())

    def change_interest(self, changes: list[InterestChange]) -> None:
        """Note what the sessions of this node want."""
        table = self.all[Table.PASSING]
        for change in changes:
            bucket = bucket_of(change.topic_filter)
            row = pack_row(RowKind.INTEREST, change.topic_filter)
            known = self._passing.get(bucket, row)
            value = pack_interest(change.persistent) if change.wanted else None
            table.change(bucket, row, 0 if known is None else row_hash(row, known), value)

    def change(self, changes: list[RowChange], untold: bool = False) -> None:
        """Note changes as the queue-owner reports them; the writes belong into the batch of what they follow from.

        `untold` says that others may have something of older sessions of which no row tells.
        """
        for change in changes:
            row = change.row
            subject = row_subject(row)
            bucket = bucket_of(subject)
            self.all[change.table].change(bucket, row, change.was, change.value)
            if row[0] == RowKind.RETAINED:
                self._retained.changed(subject, change.value is not None)
            if row[0] not in REGISTERED:
                continue
            if change.value is not None:
                self._registry.set_row(self._node, change.table, bucket, row, change.value)
                continue
            if row[0] == RowKind.SESSION and not change.moved:
                stored = change.table == Table.LASTING
                if not self._registry.is_alone(bucket, subject):
                    self._end_if_older(subject, stored)
                if untold and stored:
                    self._end_untold(subject)
            self._registry.remove_row(self._node, change.table, bucket, row)

    def end(self, subject: bytes, epoch: bytes) -> None:
        """Say that the sessions of a client id before this packed epoch are over."""
        known = self._registry.own_end(subject)
        if epoch > known:
            row = pack_row(RowKind.ENDED, subject)
            bucket = bucket_of(subject)
            value = pack_ended(epoch)
            self.all[Table.LASTING].change(bucket, row, row_hash(row, pack_ended(known)) if known else 0, value)
            self._registry.set_row(self._node, Table.LASTING, bucket, row, value)

    def claim(self, client_id: bytes, key: bytes, number: int, spent: bool) -> None:
        """Say of the will that a client left in another store who publishes it, or that nobody has to any more."""
        self._change_claim(client_id, key, pack_claim(number, spent))

    def end_claim(self, client_id: bytes, key: bytes) -> None:
        """Say nothing of a will any more: it is gone, or another speaks of it."""
        self._change_claim(client_id, key, None)

    def _change_claim(self, client_id: bytes, key: bytes, value: bytes | None) -> None:
        known = self._registry.wills.own_claim(client_id, key)
        row = pack_row(RowKind.CLAIM, client_id, key)
        was = 0 if known is None else row_hash(row, pack_claim(known.number, known.spent))
        self.change([RowChange(Table.LASTING, row, was, value)])

    def set_away(self, store_id: bytes, away: bool) -> None:
        """Say that this node does not hear a member, or that it does again."""
        row = pack_row(RowKind.AWAY, store_id)
        known = self._passing.get(bucket_of(store_id), row)
        was = 0 if known is None else row_hash(row, known)
        self.change([RowChange(Table.PASSING, row, was, pack_away() if away else None)])

    def lasting_version(self) -> int:
        """Return the version of what outlives a start, as told so far."""
        return self.all[Table.LASTING].version

    def wishes_version(self) -> tuple[int, int]:
        """Return (generation, version) of what this node wants, as told so far."""
        table = self.all[Table.PASSING]
        return table.generation, table.version

    def touch_wishes(self) -> None:
        """Have the next version of this node's wishes told, although nothing changed."""
        self.all[Table.PASSING].touch()

    def retained_value(self, topic: bytes) -> bytes:
        """Return the value of this node's row of a topic, as it is committed; b"" if there is none."""
        return value_in(self._retained_rows, topic)

    def told(self) -> None:
        """All changes are told."""
        self._retained.told(self.all[Table.RETAINED].version)

    def settle(self, complete: bool) -> None:
        """See which ENDED rows have to come, and which may go; `complete`: every member's tables are known here.

        A session that is not stored ends with its node, which can't say so any more: it has its row while it lives.
        """
        doubtful = self._registry.take_doubtful()
        for subject in doubtful:
            self._end_if_older(subject, False)
        if complete and not self._complete:
            doubtful = self._registry.own_ended()
        self._complete = complete
        if complete:
            for subject in doubtful:
                self._forget_end(subject)

    def validate(self) -> None:
        """Check the invariants."""
        for table in self.all.values():
            table.validate()

    def _correct(
        self, lasting: OwnTable, wrong: dict[int, dict[bytes, bytes]], rows: Iterator[tuple[int, bytes, bytes]]
    ) -> None:
        """Make the rows of these buckets those that follow from the sessions."""
        for table, row, value in rows:
            bucket = bucket_of(row_subject(row))
            if table == Table.LASTING and bucket in wrong:
                wrong[bucket][row] = value
        for bucket, wanted in wrong.items():
            for row, value in lasting.rows.read(bucket):
                if row[0] in _DERIVED:
                    lasting.change(bucket, row, row_hash(row, value), wanted.pop(row, None))
            for row, value in wanted.items():
                lasting.change(bucket, row, 0, value)

    def _end_if_older(self, subject: bytes, stored: bool) -> None:
        """If another node has an older session than this one's, say that it is over."""
        epoch = self._registry.own_epoch(subject, stored)
        if epoch and self._registry.has_older_elsewhere(subject, epoch):
            self.end(subject, epoch)

    def _end_untold(self, subject: bytes) -> None:
        """Say that a session of this node is over, unless it is the first of its client id: there was none before."""
        epoch = self._registry.own_epoch(subject, True)
        if epoch and unpack_epoch(epoch, 0).counter > FIRST_EPOCH.counter:
            self.end(subject, epoch)

    def _forget_end(self, subject: bytes) -> None:
        epoch = self._registry.own_end(subject)
        if epoch and not self._registry.has_older_elsewhere(subject, epoch):
            row = pack_row(RowKind.ENDED, subject)
            bucket = bucket_of(subject)
            self.all[Table.LASTING].change(bucket, row, row_hash(row, pack_ended(epoch)), None)
            self._registry.remove_row(self._node, Table.LASTING, bucket, row)
