"""Audits: what a node really holds of every member's tables, and whether that is what their owners say.

Owns the count of the rows behind the sums, and what an audit has found. It knows nothing of who asked (`checks`).

Theory of operation
-------------------
Two things have to be true of a copy. Its rows make the sums that are kept of it: they are read and added up, bucket by
bucket, some in every turn, at its beginning, when everything is committed. And its version and checksum are those that
the owner tells in its heartbeats, in line with its deltas: that is looked at with each of them, so that it can be said
of tables that change all the time. An audit is over when all rows are read and every running owner was heard since it
began, or has had HEARD_TIMEOUT_S for it. Of who was not heard it is not known whether it would agree.

To repair is to let the sums be those of the rows: then the checksum is another than the owner's, and the replica asks
for what differs, as it always does. A table of this node's own whose rows are not what it told is told anew.
"""

from dataclasses import dataclass
from typing import Final, final

from broker.core.rows import BUCKETS, SUM_MASK, row_hash
from cluster.own_tables import OwnTables
from cluster.peers import Peer, Peers
from cluster.tables import OwnTable, Replica

# What a turn reads at most, but for what one bucket has more.
ROWS_PER_TURN: Final = 2_000
BUCKETS_PER_TURN: Final = 128
HEARD_TIMEOUT_S: Final = 5.0


@dataclass(slots=True, frozen=True)
class Finding:
    """What a node holds of a member's table, and whether that is right; `known` is false if nobody could say."""

    owner: str
    table: int
    version: int
    checksum: int
    rows: int
    agrees: bool
    known: bool


@final
class _Count:
    """The rows of one table as far as they are read."""

    def __init__(self, owner: str, table: OwnTable | Replica) -> None:
        self.owner = owner
        self.table = table
        self.rows = 0
        self.wrong: list[int] = []


@final
class Audit:
    """One look at all tables that this node holds."""

    def __init__(self, number: int, repair: bool, peers: Peers, own: OwnTables, now: float) -> None:
        self.number = number
        self._repair = repair
        self._peers = peers
        self._began_at = now
        self._counts = [_Count(peers.membership.name, table) for table in own.all.values()]
        for name in sorted(peers.all):
            self._counts += [_Count(name, replica) for replica in peers.all[name].tables.replicas.values()]
        # Which table is being read, and its next bucket.
        self._at = 0
        self._bucket = 0

    def has_rows(self) -> bool:
        """Say whether `step` has something to do."""
        return self._at < len(self._counts)

    def step(self) -> None:
        """Read on. Everything that was told must be committed, and nothing else changed since."""
        left = ROWS_PER_TURN
        for _ in range(BUCKETS_PER_TURN):
            if not self.has_rows() or left <= 0:
                return
            count = self._counts[self._at]
            left -= self._read(count, self._bucket)
            self._bucket += 1
            if self._bucket == BUCKETS:
                self._bucket = 0
                self._at += 1

    def is_over(self, now: float) -> bool:
        """Say whether `findings` are to be had."""
        return not self.has_rows() and (
            now >= self.deadline() or not any(map(self._is_awaited, self._peers.all.values()))
        )

    def deadline(self) -> float:
        """Return when nobody is waited for any more."""
        return self._began_at + HEARD_TIMEOUT_S

    def findings(self) -> list[Finding]:
        """Return what was found, table by table."""
        found = []
        for count in self._counts:
            table = count.table
            peer = self._peers.all.get(count.owner)
            if isinstance(table, OwnTable):
                known, same = True, True
            elif peer is None:
                # It was a member when this began.
                continue
            else:
                known = peer.running and peer.tables.told_at > self._began_at
                same = peer.tables.agrees.get(table.table, False)
            agrees = known and same and not count.wrong
            found.append(Finding(count.owner, table.table, table.version, table.checksum, count.rows, agrees, known))
        return found

    def _is_awaited(self, peer: Peer) -> bool:
        return peer.running and peer.tables.told_at <= self._began_at

    def _read(self, count: _Count, bucket: int) -> int:
        table = count.table
        rows = table.rows.read(bucket)
        total = 0
        for row, value in rows:
            total += row_hash(row, value)
        total &= SUM_MASK
        if total != table.sums[bucket]:
            count.wrong.append(bucket)
            if self._repair:
                table.correct(bucket, total)
        count.rows += len(rows)
        return len(rows)
