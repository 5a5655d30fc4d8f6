"""Tables: what each node alone writes, and every other node holds a copy of.

Owns a node's own tables (`OwnTable`) and the copies of others' (`Replica`); where the rows of either lie `table_rows`
says. It knows nothing of peers, connections or of what rows mean.

Theory of operation
-------------------
Only its owner changes a table, so that a row that is gone needs no tombstone. Every turn's changes make a delta with
the next version, told to all. A delta says of each row the hash of what was there: a replica keeps its sums without
reading, since a read of the store does not see what is not committed yet.

A generation is a life of the owner. Versions count within it and mean nothing beyond; what is compared across lives are
sums: 64 bits for each of BUCKETS buckets, and the checksum of a table is the sum of those. So a restart without changes
costs nothing. An owner that lost what it had told (a power loss) differs in its sums, too, and is right.

A replica that is not current pulls, and the owner keeps nothing of it between two rounds:

    replica: TABLE_REQUEST(round, first bucket, sums from there on)
    owner:   TABLE_ROWS*(round, part), TABLE_DONE(round, parts, generation, version, next bucket)

The owner sends whole buckets that differ, in order, until they are ANSWER_BYTES_MAX together. The buckets before `next`
are then as they are at `version`: `fresh` of the replica counts them. Deltas that follow are applied to those, while it
goes on asking from there, so that it comes to an end however fast the table changes. Whatever is missing (a delta, a
part) begins it anew, at the cost of what really differs; a heartbeat finds it. Without persistence a replica begins
with nothing, with it with what the store holds, of which all that matters is what it is.

An owner answers at the beginning of a turn, when the store holds exactly what it told.

Invariants: a sum is that of the hashes of the bucket's rows; the checksum and version are those of what was told; a
replica with all buckets fresh is the table at its generation and version.
"""

from collections.abc import Callable
from typing import Final, Protocol, final

from broker.core.rows import BUCKETS, SUM_MASK, bucket_of, row_hash, row_subject
from cluster.frames import FRAME_BYTES_MAX, TablePosition
from cluster.table_frames import (
    TableDelta,
    TableDone,
    TableRequest,
    TableRows,
    pack_change,
    pack_entry,
    pack_piece,
    pack_table_delta,
    pack_table_done,
    pack_table_rows,
)
from cluster.table_rows import Rows

# An answer is about this long, and one bucket more: what a heartbeat waits behind.
ANSWER_BYTES_MAX: Final = 512 * 1024
# What a frame and its pieces have beside their rows.
_HEAD_BYTES: Final = 64


@final
class OwnTable:
    """A table of this node. Changes are told with the next `take_deltas`."""

    def __init__(self, table: int, generation: int, rows: Rows) -> None:
        self.table = table
        self.generation = generation
        # What was told last; changes since then are in `_changes` and `sums`.
        self.version = 0
        self.checksum = 0
        self.rows = rows
        self.sums = [0] * BUCKETS
        self._total = 0
        self._changes: list[tuple[bytes, int, bytes | None]] = []
        self._touched = False

    def restore(self) -> None:
        """Reckon the sums of what the rows hold."""
        for bucket, row, value in self.rows.scan():
            self._add(bucket, row_hash(row, value))
        self.checksum = self._total

    def change(self, bucket: int, row: bytes, was: int, value: bytes | None) -> None:
        """Set a row of a bucket, or end it with None; `was` is the hash of what is there, 0 for nothing."""
        is_now = 0 if value is None else row_hash(row, value)
        if is_now == was:
            return
        if value is None:
            self.rows.delete(bucket, row)
        else:
            self.rows.put(bucket, row, value)
        self._add(bucket, is_now - was)
        self._changes.append((row, was, value))

    def take_deltas(self, wanted: bool) -> list[bytes]:
        """Return the frames that tell the changes since the last call, each with the next version.

        Without somebody who hears them (`wanted`) the version grows all the same: whoever comes finds it by its sums.
        """
        if not self._changes and not self._touched:
            return []
        self._touched = False
        changes, self._changes = self._changes, []
        self.checksum = self._total
        if not wanted:
            self.version += 1
            return []
        frames: list[bytes] = []
        for part in _split([pack_change(row, was, value) for row, was, value in changes]) or [[]]:
            self.version += 1
            frames.append(pack_table_delta(self.table, self.generation, self.version, part))
        return frames

    def correct(self, bucket: int, total: int) -> None:
        """Its rows make another sum than was told: tell that, and who differs asks."""
        self._add(bucket, total - self.sums[bucket])
        self.touch()

    def touch(self) -> None:
        """Tell a version more, although nothing changed: whoever applies it says so."""
        self._touched = True

    def is_untold(self) -> bool:
        """Say whether something changed that was not told yet."""
        return bool(self._changes)

    def position(self, known: int = 0) -> TablePosition:
        """Return where the table stands; `known` is what to say of the other's."""
        return TablePosition(self.table, self.generation, self.version, self.checksum, known)

    def answer(self, request: TableRequest) -> list[bytes]:
        """Return the frames that answer a request. What was told must be committed, and nothing else changed since."""
        assert not self._changes, "an answer has the version of what it holds"
        return pack_answer(request, self.sums, self.rows.read, self.generation, self.version)

    def validate(self) -> None:
        """Check the invariants that cost nothing to check."""
        assert self._changes or self._touched or self.checksum == self._total

    def validate_rows(self) -> None:
        """Check the sums against the rows, while everything is committed."""
        _validate_rows(self.rows, self.sums, self._total)

    def _add(self, bucket: int, difference: int) -> None:
        self.sums[bucket] = (self.sums[bucket] + difference) & SUM_MASK
        self._total = (self._total + difference) & SUM_MASK


class RowView(Protocol):
    """What is made of the rows of other nodes. It may be told again what it knows."""

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """A bucket is told anew: forget what it held, unless each row that goes is told."""

    def set_row(self, node: str, table: int, bucket: int, row: bytes, value: bytes) -> None:
        """A row is there."""

    def remove_row(self, node: str, table: int, bucket: int, row: bytes) -> None:
        """A row is gone."""


@final
class Replica:
    """A copy of a table of another node."""

    def __init__(self, node: str, table: int, rows: Rows, view: RowView) -> None:
        self.node = node
        self.table = table
        # Where it stands; the buckets before `fresh` are as they are there.
        self.generation = 0
        self.version = 0
        self.fresh = 0
        # The (generation, version) at which it was last known wholly, in this life of the node or an earlier one.
        self.known: tuple[int, int] = (0, 0)
        self.sums = [0] * BUCKETS
        self.checksum = 0
        self.rows = rows
        self._view = view
        self._round = 0
        self._parts = 0
        # Rows of a bucket of which more are to come.
        self._partial: dict[bytes, bytes] = {}
        self._partial_of = -1

    def restore(self) -> None:
        """Take over what the rows hold from before."""
        for bucket, row, value in self.rows.scan():
            self._add(bucket, row_hash(row, value))
            self._view.set_row(self.node, self.table, bucket, row, value)

    def restore_row(self, row: bytes, value: bytes) -> None:
        """Put back one row that is remembered from before, although its table is not."""
        bucket = bucket_of(row_subject(row))
        self.rows.put(bucket, row, value)
        self._add(bucket, row_hash(row, value))
        self._view.set_row(self.node, self.table, bucket, row, value)

    def is_at(self, position: TablePosition) -> bool:
        """Say whether this is exactly the table that stands there."""
        return (
            self.fresh == BUCKETS
            and self.generation == position.generation
            and self.version == position.version
            and self.checksum == position.checksum
        )

    def covers(self, position: TablePosition) -> bool:
        """Say whether this is the table that stood there, or what became of it since."""
        return self.fresh == BUCKETS and self.generation == position.generation and self.version >= position.version

    def known_version(self, generation: int) -> int:
        """Return the version plus one of what is wholly known of this generation, 0 if nothing is."""
        return self.version + 1 if self.fresh == BUCKETS and self.generation == generation else 0

    def hear(self, position: TablePosition) -> bool:
        """The owner says where its table stands, in line with its deltas; false if the replica is elsewhere."""
        if self.is_at(position):
            return True
        if self.checksum == position.checksum:
            # It is what there was before one of the two began anew, and that is still right.
            self._forget_round()
            self.generation = position.generation
            self.version = position.version
            self.fresh = BUCKETS
            self._note_known()
            return True
        if self.fresh == BUCKETS or self.generation != position.generation or self.version != position.version:
            self._begin_anew()
        return False

    def request(self) -> TableRequest:
        """Return what to ask the owner for; the answers to older requests count no more."""
        return self.request_from(self.fresh)

    def request_from(self, first: int) -> TableRequest:
        """Return what to ask for of the buckets from one on."""
        self._forget_round()
        return TableRequest(self.table, self._round, first, self.sums[first:])

    def copied(self, generation: int, version: int) -> None:
        """It is as another member knew it, which is later than what was known here."""
        self.known = (generation, version)
        if self.fresh == BUCKETS:
            self.generation, self.version = generation, version

    def receive_delta(self, delta: TableDelta) -> bool:
        """Apply a delta as far as the table is fresh; false if it does not follow what is known."""
        if self.fresh == 0 or self.generation != delta.generation or delta.version > self.version + 1:
            self._begin_anew()
            return False
        if delta.version <= self.version:
            return True
        for change in delta.changes:
            row = change.row
            bucket = bucket_of(row_subject(row))
            if bucket >= self.fresh:
                continue
            if change.value is None:
                self.rows.delete(bucket, row)
                self._add(bucket, -change.was)
                self._view.remove_row(self.node, self.table, bucket, row)
            else:
                self.rows.put(bucket, row, change.value)
                self._add(bucket, row_hash(row, change.value) - change.was)
                self._view.set_row(self.node, self.table, bucket, row, change.value)
        self.version = delta.version
        self._note_known()
        return True

    def receive_rows(self, rows: TableRows) -> None:
        """Take one part of an answer; a bucket is replaced when all of it is here."""
        if not self.takes_part(rows):
            return
        for piece in rows.pieces:
            if piece.first:
                self._partial = {}
                self._partial_of = piece.bucket
            if piece.bucket != self._partial_of:
                continue
            for row, value in piece.rows:
                if bucket_of(row_subject(row)) == piece.bucket:
                    self._partial[row] = value
            if piece.last:
                partial, self._partial = self._partial, {}
                self._partial_of = -1
                self._replace(piece.bucket, partial)

    def takes_part(self, rows: TableRows) -> bool:
        """Count one part of an answer; false if it is not the next: one was lost, and TABLE_DONE won't count."""
        if rows.round != self._round or rows.part != self._parts:
            return False
        self._parts += 1
        return True

    def ends_round(self, done: TableDone) -> bool:
        """End a round; false if it is another one, or something of it was lost."""
        if done.round != self._round or done.parts != self._parts:
            return False
        self._forget_round()
        return True

    def receive_done(self, done: TableDone) -> bool:
        """Take the end of a round; true if the next one is to be asked for at once."""
        if not self.ends_round(done):
            return False
        if self.fresh and (self.generation != done.generation or self.version != done.version):
            # A delta was lost, or the owner has begun another life.
            self.fresh = 0
            return False
        self.generation = done.generation
        self.version = done.version
        progress = done.next > self.fresh
        self.fresh = max(self.fresh, done.next)
        self._note_known()
        return progress and self.fresh < BUCKETS

    def correct(self, bucket: int, total: int) -> None:
        """Its rows make another sum than is kept: what differs is asked for when the owner says where it stands."""
        self._add(bucket, total - self.sums[bucket])

    def forget(self) -> None:
        """Remove everything; the owner is no member any more."""
        for bucket in range(BUCKETS):
            self._view.bucket_replaced(self.node, self.table, bucket)
        self.rows.clear()

    def validate(self) -> None:
        """Check the invariants that cost nothing to check."""
        assert 0 <= self.fresh <= BUCKETS

    def validate_rows(self) -> None:
        """Check the sums against the rows, while everything is committed. A peer that is broken breaks this, too."""
        _validate_rows(self.rows, self.sums, self.checksum)

    def _replace(self, bucket: int, rows: dict[bytes, bytes]) -> None:
        gone = self.rows.replace(bucket, rows)
        self._view.bucket_replaced(self.node, self.table, bucket)
        for row in gone:
            self._view.remove_row(self.node, self.table, bucket, row)
        total = 0
        for row, value in rows.items():
            total += row_hash(row, value)
            self._view.set_row(self.node, self.table, bucket, row, value)
        self._add(bucket, total - self.sums[bucket])

    def _note_known(self) -> None:
        if self.fresh == BUCKETS:
            self.known = (self.generation, self.version)

    def _begin_anew(self) -> None:
        if self.fresh:
            # A round from the beginning that is under way goes on: nothing is fresh that it could miss something of.
            self.fresh = 0
            self._forget_round()

    def _forget_round(self) -> None:
        self._round = (self._round + 1) & 0xFFFFFFFF
        self._parts = 0
        self._partial = {}
        self._partial_of = -1

    def _add(self, bucket: int, difference: int) -> None:
        self.sums[bucket] = (self.sums[bucket] + difference) & SUM_MASK
        self.checksum = (self.checksum + difference) & SUM_MASK


def pack_answer(
    request: TableRequest,
    sums: list[int],
    read: Callable[[int], list[tuple[bytes, bytes]]],
    generation: int,
    version: int,
) -> list[bytes]:
    """Return the frames that answer a request for a table with these sums; `read` returns the rows of a bucket."""
    answer = _Answer(request.table, request.round)
    bucket = request.first
    while bucket < BUCKETS and answer.size < ANSWER_BYTES_MAX:
        if request.sums[bucket - request.first] != sums[bucket]:
            answer.add(bucket, read(bucket))
        bucket += 1
    frames = answer.finish()
    frames.append(pack_table_done(TableDone(request.table, request.round, len(frames), generation, version, bucket)))
    return frames


@final
class _Answer:
    """The frames of an answer while it is made."""

    def __init__(self, table: int, round_: int) -> None:
        self.size = 0
        self._table = table
        self._round = round_
        self._frames: list[bytes] = []
        self._pieces: list[bytes] = []
        self._frame_size = 0

    def add(self, bucket: int, rows: list[tuple[bytes, bytes]]) -> None:
        """Add a bucket, over as many frames as it takes; a row that is longer than a frame has one to itself."""
        first = True
        entries: list[bytes] = []
        for row, value in rows:
            entry = pack_entry(row, value)
            if self._frame_size and self._frame_size + len(entry) > FRAME_BYTES_MAX - _HEAD_BYTES:
                if entries:
                    self._pieces.append(pack_piece(bucket, first, False, entries))
                    first = False
                    entries = []
                self._end_frame()
            entries.append(entry)
            self._frame_size += len(entry)
            self.size += len(entry)
        self._pieces.append(pack_piece(bucket, first, True, entries))
        self._frame_size += 7

    def finish(self) -> list[bytes]:
        """Return the frames."""
        self._end_frame()
        return self._frames

    def _end_frame(self) -> None:
        if self._pieces:
            self._frames.append(pack_table_rows(self._table, self._round, len(self._frames), self._pieces))
        self._pieces = []
        self._frame_size = 0


def _validate_rows(rows: Rows, sums: list[int], total: int) -> None:
    found = [0] * BUCKETS
    for bucket, row, value in rows.scan():
        assert bucket == bucket_of(row_subject(row))
        found[bucket] = (found[bucket] + row_hash(row, value)) & SUM_MASK
    assert found == sums
    assert total == sum(sums) & SUM_MASK


def _split(changes: list[bytes]) -> list[list[bytes]]:
    """Divide packed changes into what fits one frame each; a longer one has a frame to itself."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for change in changes:
        if size and size + len(change) > FRAME_BYTES_MAX - _HEAD_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(change)
        size += len(change)
    return parts
