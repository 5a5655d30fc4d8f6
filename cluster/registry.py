"""The registry: which node is the home of a client id.

Owns the view that the SESSION and ENDED rows of all nodes make, this node's among them. It knows nothing of how rows
come here, and decides nothing: who sees that a session of this node is superseded ends it, or moves it.

Theory of operation
-------------------
A client id has one home in a cluster at peace. After a partition, or while a session moves, several nodes hold a row:
the one with the latest epoch is the home, and the owner of an older row removes it when it sees the later one.

A row that is gone needs no tombstone, for nobody but its owner brings it back. What ended a session elsewhere does: a
session that is discarded at one node while its old home is away would rise when that comes back. So whoever ends a
session, or holds one that does not survive a restart, while another node has an older one keeps an ENDED row: it says
before which epoch sessions are over, and goes when no other node has such a row any more.

Invariants: the homes of a client id are on different nodes, or in different tables of one; the bucket of a client id
holds it.
"""

from collections.abc import Iterator
from typing import final

from broker.core.epoch import Epoch
from broker.core.rows import BUCKETS, RowKind, Table, bucket_of, row_subject, unpack_ended, unpack_session


@final
class Home:
    """One node's row of a client id; `table` is LASTING for a persistent session, else PASSING."""

    __slots__ = ("epoch", "next", "node", "persistent", "table")

    def __init__(self, node: str, table: int, epoch: Epoch, persistent: bool) -> None:
        self.node = node
        self.table = table
        self.epoch = epoch
        self.persistent = persistent
        # The same client id elsewhere. Nearly all have one home, and there are many of them.
        self.next: Home | None = None

    def __repr__(self) -> str:
        return f"Home({self.node!r}, {self.table}, {self.epoch}, persistent={self.persistent})"


@final
class Registry:
    """The homes of all client ids. `own` is this node's name."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._homes: list[dict[bytes, Home]] = [{} for _ in range(BUCKETS)]
        # client id -> node -> before which epoch sessions are over.
        self._ended: dict[bytes, dict[str, Epoch]] = {}
        # Own rows that may have been superseded, and client ids whose own ENDED row may have to come or to go.
        self._superseded: dict[bytes, bool] = {}
        self._doubtful: dict[bytes, bool] = {}

    def find(self, client_id: str) -> Home | None:
        """Return the home of a client id, the latest one where there are several; None if it has no session."""
        subject = client_id.encode()
        found = self._latest(subject)
        ended = self.ended(subject)
        return None if found is None or (ended is not None and ended.is_after(found.epoch)) else found

    def homes(self, client_id: str) -> list[Home]:
        """Return every node's row of a client id."""
        return self._of(client_id.encode())

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

    def highest_epoch(self, client_id: str) -> Epoch | None:
        """Return the latest epoch that is known of a client id, of a session or of what ended one."""
        subject = client_id.encode()
        found = self._latest(subject)
        ended = self.ended(subject)
        if found is None or (ended is not None and ended.is_after(found.epoch)):
            return ended
        return found.epoch

    def ended(self, subject: bytes) -> Epoch | None:
        """Return before which epoch all sessions of a client id are over."""
        latest: Epoch | None = None
        for epoch in self._ended.get(subject, {}).values():
            if latest is None or epoch.is_after(latest):
                latest = epoch
        return latest

    def ended_by(self, subject: bytes, node: str) -> Epoch | None:
        """Return what a node's own ENDED row says."""
        return self._ended.get(subject, {}).get(node)

    def take_superseded(self) -> list[str]:
        """Return the client ids, once, whose session at this node is over because of a later epoch elsewhere."""
        found = [subject.decode() for subject in self._superseded if self._is_superseded(subject)]
        self._superseded = {}
        return found

    def take_doubtful(self) -> list[bytes]:
        """Return the client ids whose own ENDED row may have to come or to go."""
        found = list(self._doubtful)
        self._doubtful = {}
        return found

    def own_ended(self) -> list[bytes]:
        """Return the client ids of which this node has an ENDED row."""
        return [subject for subject, nodes in self._ended.items() if self._own in nodes]

    def has_older_elsewhere(self, subject: bytes, epoch: Epoch) -> bool:
        """Say whether another node holds a session of an older epoch."""
        return any(home.node != self._own and epoch.is_after(home.epoch) for home in self._of(subject))

    def own_home(self, subject: bytes) -> Home | None:
        """Return this node's row of a client id."""
        for home in self._of(subject):
            if home.node == self._own:
                return home
        return None

    # The rows of tables.

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """Forget what a table's bucket held."""
        homes = self._homes[bucket]
        for subject in [each for each, home in homes.items() if _has(home, node, table)]:
            self._remove_home(homes, subject, node, table)
        if table != Table.LASTING:
            return
        # Few things end while another node has them still.
        for subject in [each for each, nodes in self._ended.items() if node in nodes and bucket_of(each) == bucket]:
            self._remove_ended(subject, node)

    def set_row(self, node: str, table: int, row: bytes, value: bytes) -> None:
        """A SESSION or ENDED row is there."""
        subject = row_subject(row)
        if row[0] == RowKind.ENDED:
            self._ended.setdefault(subject, {})[node] = unpack_ended(value)
        else:
            session = unpack_session(value)
            homes = self._homes[bucket_of(subject)]
            self._unlink(homes, subject, node, table)
            home = Home(node, table, session.epoch, session.persistent)
            home.next = homes.get(subject)
            homes[subject] = home
            if home.next is None and subject not in self._ended:
                return
        self._compare(subject)

    def remove_row(self, node: str, table: int, row: bytes) -> None:
        """A SESSION or ENDED row is gone."""
        subject = row_subject(row)
        if row[0] == RowKind.ENDED:
            self._remove_ended(subject, node)
        else:
            self._remove_home(self._homes[bucket_of(subject)], subject, node, table)

    def validate(self) -> None:
        """Check the invariants."""
        for bucket, homes in enumerate(self._homes):
            for subject in homes:
                assert bucket_of(subject) == bucket
                places = [(home.node, home.table) for home in self._of(subject)]
                assert len(set(places)) == len(places)
        assert all(self._ended.values())

    def rows(self) -> set[tuple[str, str, int, Epoch]]:
        """Return (client id, node, table, epoch) of every row, to be compared between nodes."""
        return {
            (subject.decode(), home.node, home.table, home.epoch)
            for homes in self._homes
            for subject in homes
            for home in self._of(subject)
        }

    def _of(self, subject: bytes) -> list[Home]:
        found = []
        home = self._homes[bucket_of(subject)].get(subject)
        while home is not None:
            found.append(home)
            home = home.next
        return found

    def _latest(self, subject: bytes) -> Home | None:
        latest: Home | None = None
        for home in self._of(subject):
            if latest is None or home.epoch.is_after(latest.epoch):
                latest = home
        return latest

    def _is_superseded(self, subject: bytes) -> bool:
        own = self.own_home(subject)
        if own is None:
            return False
        for home in self._of(subject):
            if home.node != self._own and home.epoch.is_after(own.epoch):
                return True
        for node, epoch in self._ended.get(subject, {}).items():
            if node != self._own and epoch.is_after(own.epoch):
                return True
        return False

    def _compare(self, subject: bytes) -> None:
        """Something stands beside something else."""
        self._doubtful[subject] = True
        if self._is_superseded(subject):
            self._superseded[subject] = True

    def _remove_home(self, homes: dict[bytes, Home], subject: bytes, node: str, table: int) -> None:
        alone = self._unlink(homes, subject, node, table)
        if not alone or subject in self._ended:
            self._doubtful[subject] = True

    def _unlink(self, homes: dict[bytes, Home], subject: bytes, node: str, table: int) -> bool:
        """Remove one node's row; false if others are left."""
        before: Home | None = None
        home = homes.get(subject)
        while home is not None:
            if home.node == node and home.table == table:
                if before is not None:
                    before.next = home.next
                elif home.next is not None:
                    homes[subject] = home.next
                else:
                    del homes[subject]
                break
            before = home
            home = home.next
        return subject not in homes

    def _remove_ended(self, subject: bytes, node: str) -> None:
        nodes = self._ended.get(subject)
        if nodes is not None and nodes.pop(node, None) is not None:
            if not nodes:
                del self._ended[subject]
            self._doubtful[subject] = True


def _has(home: Home | None, node: str, table: int) -> bool:
    while home is not None:
        if home.node == node and home.table == table:
            return True
        home = home.next
    return False
