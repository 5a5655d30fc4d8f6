"""The registry: which node is the home of a client id.

Owns the view that the SESSION and ENDED rows of all nodes make, this node's among them; `will_view` has the rows of
wills, which are told here as well. It knows nothing of how rows come here, and decides nothing: who sees that a session
of this node is superseded ends it, or moves it.

Theory of operation
-------------------
A client id has one home in a cluster at peace. After a partition, or while a session moves, several nodes hold a row:
the one with the latest epoch is the home, and the owner of an older row removes it when it sees the later one.

A row that is gone needs no tombstone, for nobody but its owner brings it back. What ended a session elsewhere does: a
session that is discarded at one node while its old home is away would rise when that comes back. So whoever ends a
session, or holds one that does not survive a restart, while another node has an older one keeps an ENDED row: it says
before which epoch sessions are over, and goes when no other node has such a row any more. So does whoever ends a
session while others may have something for an older one that was at a node which is no member any more (see `estates`).

There are very many homes, so they are kept packed, those of one client id behind one another (nearly all have one), and
epochs are compared as they are packed:

    home = node u16, table u8, persistent u8, epoch (32 bytes); nodes are numbered as they are heard of

Invariants: the homes of a client id are on different nodes, or in different tables of one; the bucket of a client id
holds it.
"""

import struct
from collections.abc import Iterator
from typing import Final, final

from broker.core.epoch import EPOCH_BYTES, NO_EPOCH, Epoch, counter_above, unpack_epoch
from broker.core.rows import (
    BUCKETS,
    RowKind,
    Table,
    bucket_of,
    is_persistent_session,
    row_subject,
    session_epoch,
    unpack_ended,
)
from cluster.will_view import WillView

# What the registry makes something of.
OF_WILLS: Final = (RowKind.WILL, RowKind.CLAIM, RowKind.AWAY)
REGISTERED: Final = (RowKind.SESSION, RowKind.ENDED, *OF_WILLS)

_HOME: Final = struct.Struct(">HBB32s")
_HOME_BYTES: Final = 36
# Node and table, which no two homes of a client id have both in common.
_PLACE: Final = struct.Struct(">HB")


@final
class Home:
    """One node's row of a client id; `table` is LASTING for a persistent session, else PASSING."""

    __slots__ = ("node", "packed", "persistent", "table")

    def __init__(self, node: str, table: int, packed: bytes, persistent: bool) -> None:
        self.node = node
        self.table = table
        self.packed = packed
        self.persistent = persistent

    @property
    def epoch(self) -> Epoch:
        """When the session came to the node."""
        return unpack_epoch(self.packed, 0)

    def __repr__(self) -> str:
        return f"Home({self.node!r}, {self.table}, {self.epoch}, persistent={self.persistent})"


@final
class Registry:
    """The homes of all client ids, and `wills`, what they left. `own` is this node's name.

    Where a bucket goes with a subject it is the subject's: it has been reckoned already.
    """

    def __init__(self, own: str) -> None:
        self.wills = WillView(own)
        self._own = own
        self._nodes: list[str] = []
        self._numbers: dict[str, int] = {}
        self._homes: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        # client id -> node -> before which epoch, packed, sessions are over.
        self._ended: dict[bytes, dict[str, bytes]] = {}
        # Own rows that may have been superseded, and client ids whose own ENDED row may have to come or to go.
        self._superseded: dict[bytes, bool] = {}
        self._doubtful: dict[bytes, bool] = {}

    def find(self, client_id: str) -> Home | None:
        """Return the home of a client id, the latest one where there are several; None if it has no session."""
        subject = client_id.encode()
        latest: Home | None = None
        for home in self._of(subject):
            if latest is None or home.packed > latest.packed:
                latest = home
        return None if latest is None or self._last_end(subject) > latest.packed else latest

    def homes(self, client_id: str) -> list[Home]:
        """Return every node's row of a client id."""
        return self._of(client_id.encode())

    def has_rival_homes(self, client_id: str) -> bool:
        """Say whether several nodes have a row of a client id."""
        subject = client_id.encode()
        return len(self._homes[bucket_of(subject)].get(subject, b"")) > _HOME_BYTES

    def clients_of(self, node: str) -> Iterator[tuple[str, Home]]:
        """Iterate (client id, home) over the sessions whose home is the node, except those that are superseded.

        The registry must not change meanwhile.
        """
        for homes in self._homes:
            for subject in homes:
                client_id = subject.decode()
                found = self.find(client_id)
                if found is not None and found.node == node:
                    yield client_id, found

    def highest_epoch(self, client_id: str) -> Epoch:
        """Return the latest epoch that is known of a client id, of a session or of what ended one; else NO_EPOCH."""
        subject = client_id.encode()
        highest = self._last_end(subject)
        packed = self._homes[bucket_of(subject)].get(subject, b"")
        for at in range(_HOME_BYTES, len(packed) + 1, _HOME_BYTES):
            highest = max(highest, packed[at - EPOCH_BYTES : at])
        return unpack_epoch(highest, 0) if highest else NO_EPOCH

    def next_counter(self, client_id: str, latest: Epoch) -> int:
        """Return the counter of an epoch later than `latest`, and than those of all wills that the client has left."""
        will = self.wills.highest_epoch(client_id.encode())
        return counter_above(max(latest.counter, unpack_epoch(will, 0).counter if will else 0))

    def latest_own(self, client_id: str) -> bytes:
        """Return the packed epoch of this node's session of a client id, b"" if there is none."""
        return max([home.packed for home in self.homes(client_id) if home.node == self._own], default=b"")

    def highest_elsewhere(self, client_id: str) -> bytes:
        """Return the latest packed epoch of a session at another node, or of what ended one there; b"" for none."""
        subject = client_id.encode()
        epochs = [home.packed for home in self._of(subject) if home.node != self._own]
        epochs += [epoch for node, epoch in self._ended.get(subject, {}).items() if node != self._own]
        return max(epochs, default=b"")

    def ended(self, client_id: str) -> Epoch | None:
        """Return before which epoch all sessions of a client id are over."""
        last = self._last_end(client_id.encode())
        return unpack_epoch(last, 0) if last else None

    def is_over(self, client_id: str, counter: int) -> bool:
        """Say whether the session that a client id had by an epoch of this counter is over."""
        ended = self.ended(client_id)
        return ended is not None and ended.counter > counter

    def take_superseded(self) -> list[str]:
        """Return the client ids, once, whose session at this node is over because of a later epoch elsewhere."""
        found = [subject.decode() for subject in self._superseded if self._is_superseded(subject)]
        self._superseded = {}
        return found

    def look_again(self, client_id: str) -> None:
        """Have `take_superseded` say it once more."""
        self._superseded[client_id.encode()] = True

    def rows(self) -> set[tuple[str, str, int, Epoch]]:
        """Return (client id, node, table, epoch) of every row, to be compared between nodes."""
        return {
            (subject.decode(), home.node, home.table, home.epoch)
            for homes in self._homes
            for subject in homes
            for home in self._of(subject)
        }

    # For own ENDED rows; epochs are packed, b"" is before all.

    def take_doubtful(self) -> list[bytes]:
        """Return the client ids whose own ENDED row may have to come or to go."""
        if not self._doubtful:
            return []
        found = list(self._doubtful)
        self._doubtful = {}
        return found

    def own_ended(self) -> list[bytes]:
        """Return the client ids of which this node has an ENDED row."""
        return [subject for subject, nodes in self._ended.items() if self._own in nodes]

    def own_end(self, subject: bytes) -> bytes:
        """Return the epoch of this node's own ENDED row."""
        return self._ended.get(subject, {}).get(self._own, b"")

    def own_epoch(self, subject: bytes, stored: bool) -> bytes:
        """Return the epoch of this node's session of a client id, `stored` or not, b"" if there is none such."""
        for home in self._of(subject):
            if home.node == self._own and home.persistent == stored:
                return home.packed
        return b""

    def has_older_elsewhere(self, subject: bytes, epoch: bytes) -> bool:
        """Say whether another node holds a session of an older epoch."""
        return any(home.node != self._own and epoch > home.packed for home in self._of(subject))

    def is_alone(self, bucket: int, subject: bytes) -> bool:
        """Say whether a client id has one home at most, and nothing of it ended."""
        return len(self._homes[bucket].get(subject, b"")) <= _HOME_BYTES and subject not in self._ended

    # The rows of tables.

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """Forget what a table's bucket held."""
        self.wills.bucket_replaced(node, table, bucket)
        homes = self._homes[bucket]
        place = self._place(node, table)
        for subject in [each for each, packed in homes.items() if _without(packed, place) != packed]:
            self._remove_home(homes, subject, place)
        if table != Table.LASTING:
            return
        # Few things end while another node has them still.
        for subject in [each for each, nodes in self._ended.items() if node in nodes and bucket_of(each) == bucket]:
            self._remove_end(subject, node)

    def set_row(self, node: str, table: int, bucket: int, row: bytes, value: bytes) -> None:
        """A row of a kind in REGISTERED is there."""
        subject = row_subject(row)
        if row[0] in OF_WILLS:
            self.wills.set_row(node, bucket, row, value)
            if row[0] == RowKind.WILL and node != self._own and subject in self._homes[bucket]:
                self.wills.session_began(self._own, subject)
            return
        self.wills.session_began(node, subject)
        if row[0] == RowKind.ENDED:
            self._ended.setdefault(subject, {})[node] = unpack_ended(value)
        else:
            homes = self._homes[bucket]
            place = self._place(node, table)
            others = _without(homes.get(subject, b""), place)
            homes[subject] = place + bytes((is_persistent_session(value),)) + session_epoch(value) + others
            if not others and subject not in self._ended:
                return
        # Something stands beside something else.
        self._doubtful[subject] = True
        if self._is_superseded(subject):
            self._superseded[subject] = True

    def remove_row(self, node: str, table: int, bucket: int, row: bytes) -> None:
        """A row of a kind in REGISTERED is gone."""
        if row[0] in OF_WILLS:
            self.wills.remove_row(node, bucket, row)
        elif row[0] == RowKind.ENDED:
            self._remove_end(row_subject(row), node)
        else:
            self._remove_home(self._homes[bucket], row_subject(row), self._place(node, table))

    def validate(self) -> None:
        """Check the invariants."""
        for bucket, homes in enumerate(self._homes):
            for subject in homes:
                assert bucket_of(subject) == bucket
                places = [(home.node, home.table) for home in self._of(subject)]
                assert len(set(places)) == len(places)
        assert all(self._ended.values())
        self.wills.validate()

    def _of(self, subject: bytes) -> list[Home]:
        packed = self._homes[bucket_of(subject)].get(subject, b"")
        found = []
        for at in range(0, len(packed), _HOME_BYTES):
            number, table, persistent, epoch = _HOME.unpack_from(packed, at)
            found.append(Home(self._nodes[number], table, epoch, persistent != 0))
        return found

    def _place(self, node: str, table: int) -> bytes:
        number = self._numbers.get(node)
        if number is None:
            number = len(self._nodes)
            self._numbers[node] = number
            self._nodes.append(node)
        return _PLACE.pack(number, table)

    def _last_end(self, subject: bytes) -> bytes:
        nodes = self._ended.get(subject)
        return b"" if nodes is None else max(nodes.values())

    def _is_superseded(self, subject: bytes) -> bool:
        homes = self._of(subject)
        own = b""
        for home in homes:
            if home.node == self._own:
                own = max(own, home.packed)
        if not own:
            return False
        if any(home.node != self._own and home.packed > own for home in homes):
            return True
        return any(node != self._own and epoch > own for node, epoch in self._ended.get(subject, {}).items())

    def _remove_home(self, homes: dict[bytes, bytes], subject: bytes, place: bytes) -> None:
        left = _without(homes.get(subject, b""), place)
        if left:
            homes[subject] = left
        else:
            homes.pop(subject, None)
        if left or subject in self._ended:
            self._doubtful[subject] = True

    def _remove_end(self, subject: bytes, node: str) -> None:
        nodes = self._ended.get(subject)
        if nodes is not None and nodes.pop(node, None) is not None:
            if not nodes:
                del self._ended[subject]
            self._doubtful[subject] = True


def _without(packed: bytes, place: bytes) -> bytes:
    """Return packed homes without the one at a place."""
    for at in range(0, len(packed), _HOME_BYTES):
        if packed.startswith(place, at):
            return packed[:at] + packed[at + _HOME_BYTES :]
    return packed
