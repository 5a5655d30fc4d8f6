"""The retained view: which node's message of a topic is the newest, and what becomes of the others.

Owns what is known of the RETAINED rows of all other nodes: for each topic who has a row and its order, never a value.
What is the newest it has the node's `RetainedStore` replay. It knows nothing of how rows come here.

Theory of operation
-------------------
The node where a retained message entered owns its row, and stamps it above all that it knows of the topic. So the rows
of a topic have an order on which all nodes agree, and every node replays the highest. The owner of a lower one removes
it when it sees the higher one.

What is replayed never goes backwards. When the row that is replayed goes, its owner has seen a newer one, of which this
node may not have heard: the message stays until this node knows the tables of every member, and a while longer, since
what is on its way from one member may have made another speak. Then the newest row that is left counts, read from the
store if it was not the newest before.

A delete is a row, too, while there are other members (see `RetainedStore`). Its owner removes it when every member runs
and is known here, has said that it knows this row, and has none of the topic itself: whatever it says afterwards of the
topic is newer.

When a member is removed its rows stay in force: of the members that run one, chosen by the topic, makes them its own. A
member that was not chosen does so later if nobody did; two equal rows do no harm, and the one of the higher name goes.
So do rows in the store of somebody who is no member, of a store that was copied.

A stamp far ahead of this node's clock is clamped for what this node stamps next (see `clock`). What is published in
knowledge of it is newer all the same: a node in the year 2099 wins no topic for longer than until its next message.

Invariants: the claims of a topic are on different nodes; what is replayed has the highest order of all rows, or is in
doubt, or its owner is gone.
"""

import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, final

from broker.core.retained import RetainedStore, read_stored
from broker.core.retained_rows import FAMILY, retained_row, stamp_of, unpack_retained, value_order
from broker.core.rows import BUCKETS, bucket_of, row_subject
from broker.core.storage import STORE_ID_BYTES, Storage, WriteBatch
from broker.core.stored_message import UNREADABLE, Clock, corrupt
from cluster.clock import HybridClock
from cluster.table_rows import StoredRows
from cluster.turn import Turn

# What is in doubt is decided when all members have been known for so many heartbeats.
PATIENCE_HEARTBEATS: Final = 2
# How many topics of each kind a turn settles; the next one goes on.
SETTLED_MAX: Final = 1000
# Behind every bucket of an owner.
_NO_BUCKET: Final = b"\xff\xff"


@final
class Claim:
    """Another node's row of a topic."""

    __slots__ = ("next", "node", "order")

    def __init__(self, node: str, order: bytes) -> None:
        self.node = node
        self.order = order
        # The same topic elsewhere. Nearly all have one owner.
        self.next: Claim | None = None


@final
class RetainedView:
    """What is known of the other nodes' retained messages. `own` is this node's name."""

    def __init__(
        self,
        own: str,
        store_id: bytes,
        storage: Storage,
        turn: Turn,
        clock: Clock,
        hybrid: HybridClock,
        heartbeat_s: float,
    ) -> None:
        self._own = own
        self._store_id = store_id
        self._storage = storage
        self._turn = turn
        self._clock = clock
        self._hybrid = hybrid
        self._patience_s = PATIENCE_HEARTBEATS * heartbeat_s
        self._store = RetainedStore(-1, -1, store_id)
        self._writes: Callable[[], WriteBatch] = turn_writes(turn)
        self._claims: list[dict[bytes, Claim]] = [{} for _ in range(BUCKETS)]
        # Topics of which something has to be seen, those with a time in its order: own rows that a newer one
        # supersedes; what is replayed without a row, since when; what a removed member left, since when.
        self._superseded: dict[bytes, bool] = {}
        self._doubtful: dict[bytes, float] = {}
        self._orphans: dict[bytes, float] = {}
        self._orphans_at: float = 0.0
        # Own rows that say deleted: those not told yet; the version that told them, in order; those that stand against
        # an older row, and those that do so no more.
        self._fresh: list[bytes] = []
        self._told: dict[bytes, int] = {}
        self._opposed: dict[bytes, bool] = {}
        self._unopposed: dict[bytes, bool] = {}

    def attach(
        self, store: RetainedStore, writes: Callable[[], WriteBatch], clock: Clock, members: list[bytes]
    ) -> None:
        """Show what is newest in this store, which has read this node's rows; `writes` is the batch of a turn.

        Rows of whoever is none of the members become this node's.
        """
        self._store = store
        self._writes = writes
        self._clock = clock
        known = {self._store_id, *members}
        owner = b""
        start = b""
        while True:
            found = next(iter(self._storage.scan(FAMILY, start, b"")), None)
            if found is None:
                break
            if found[0][:STORE_ID_BYTES] == owner:
                raise corrupt(FAMILY, found[0], ValueError("there is no such bucket"))
            owner = found[0][:STORE_ID_BYTES]
            start = owner + _NO_BUCKET
            if owner not in known:
                self._take_over(owner, start)
        self._hybrid.receive(store.newest_stamp(), clock.utc_ms)
        for topic in store.deleted():
            self._told[topic] = 0

    # The rows of tables.

    def bucket_replaced(self, node: str, bucket: int) -> None:
        """Forget what a node's bucket held."""
        claims = self._claims[bucket]
        for topic in [each for each, claim in claims.items() if _has(claim, node)]:
            self._remove(claims, topic, node)

    def set_row(self, node: str, bucket: int, row: bytes, value: bytes) -> None:
        """A row of another node is there."""
        topic = row_subject(row)
        order = value_order(value)
        self._hybrid.receive(stamp_of(order), self._clock.utc_ms)
        claims = self._claims[bucket]
        claim = Claim(node, order)
        if topic in claims:
            self._remove(claims, topic, node)
            claim.next = claims.get(topic)
        claims[topic] = claim
        shown = self._store.order_of(topic)
        if order >= shown:
            self._doubtful.pop(topic, None)
            self._orphans.pop(topic, None)
            if order > shown:
                self._show(topic, order, value)
        own = self._store.own_order(topic)
        if own:
            if order > own or (order == own and node < self._own):
                self._superseded[topic] = True
            elif order < own:
                self._oppose(topic)

    def remove_row(self, node: str, bucket: int, row: bytes) -> None:
        """A row of another node is gone."""
        self._remove(self._claims[bucket], row_subject(row), node)

    def forget(self, node: str) -> None:
        """A node is no member any more; what it had the others divide among themselves."""
        for claims in self._claims:
            for topic in [each for each, claim in claims.items() if _has(claim, node)]:
                self._remove(claims, topic, node)
                if self._doubtful.pop(topic, None) is not None:
                    self._orphans[topic] = self._clock.now
        self._orphans_at = 0.0

    def running_changed(self) -> None:
        """Others run than before: what is divided among those that run may be divided otherwise."""
        self._orphans_at = 0.0

    # This node's rows.

    def changed(self, topic: bytes, is_there: bool) -> None:
        """This node's row of a topic changed, or is gone."""
        if is_there and self._store.is_deleted(topic):
            self._fresh.append(topic)

    def told(self, version: int) -> None:
        """All changes of this node's rows are told, the last ones in this version."""
        for topic in self._fresh:
            self._told.pop(topic, None)
            self._told[topic] = version
        self._fresh = []

    # Every turn.

    def has_doubts(self) -> bool:
        """Say whether `begin` may have something to do."""
        return bool(self._doubtful)

    def begin(self, current_at: float, read: Callable[[str, bytes], bytes]) -> None:
        """Decide what is in doubt since long enough before `current_at`.

        That is the last time at which every member was known to run, with its tables known here; -inf while that is not
        so. `read` gives the value of a node's row, b"" if it has none; everything must be committed.
        """
        ripe: list[bytes] = []
        for topic, since in self._doubtful.items():
            if since + self._patience_s > current_at or len(ripe) == SETTLED_MAX:
                break
            ripe.append(topic)
        for topic in ripe:
            del self._doubtful[topic]
            self._decide(topic, read)

    def has_work(self) -> bool:
        """Say whether `settle` may have something to do."""
        return bool(self._superseded or self._told or self._unopposed or self._orphans)

    def settle(self, current_at: float, known: int, running: list[bytes]) -> None:
        """See which of this node's rows have to go, and which have to come; `current_at` is as in `begin`.

        `known` is the version of this node's table that every member has said it knows, `running` the store ids of the
        members that run, this node's among them.
        """
        if self._superseded:
            superseded, self._superseded = self._superseded, {}
            for topic in superseded:
                if self._is_superseded(topic):
                    self._store.drop_own(topic, self._writes())
        if current_at > -math.inf and (self._told or self._unopposed):
            self._forget_deleted(known)
        if self._orphans and self._clock.now >= self._orphans_at:
            self._orphans_at = self._clock.now + self._patience_s / PATIENCE_HEARTBEATS
            self._adopt_orphans(current_at, running)

    def validate(self) -> None:
        """Check the invariants."""
        for bucket, claims in enumerate(self._claims):
            for topic, first in claims.items():
                assert bucket_of(topic) == bucket
                nodes = [claim.node for claim in _all(first)]
                assert len(set(nodes)) == len(nodes) and self._own not in nodes
                assert max([claim.order for claim in _all(first)]) <= self._store.order_of(topic)

    def _show(self, topic: bytes, order: bytes, value: bytes) -> None:
        try:
            message = unpack_retained(topic, value, self._clock)
        except UNREADABLE as error:
            # What a peer said was looked at: this is of the store.
            raise corrupt(FAMILY, topic, error) from None
        if not self._store.show(topic, order, message):
            self._turn.count("retained_over_limit")

    def _remove(self, claims: dict[bytes, Claim], topic: bytes, node: str) -> None:
        order = _unlink(claims, topic, node)
        if not order:
            return
        if order == self._store.order_of(topic) and not self._is_claimed(topic, order):
            self._doubtful.pop(topic, None)
            self._doubtful[topic] = self._clock.now
        if topic not in claims and self._opposed.pop(topic, False):
            self._unopposed[topic] = True

    def _is_claimed(self, topic: bytes, order: bytes) -> bool:
        """Say whether some node has a row of the topic that is not older."""
        if self._store.own_order(topic) >= order:
            return True
        return any(claim.order >= order for claim in self._of(topic))

    def _is_superseded(self, topic: bytes) -> bool:
        own = self._store.own_order(topic)
        if not own:
            return False
        return any(claim.order > own or (claim.order == own and claim.node < self._own) for claim in self._of(topic))

    def _oppose(self, topic: bytes) -> None:
        """An own row stands against an older one, whose owner will remove that."""
        if self._unopposed.pop(topic, False):
            self._opposed[topic] = True

    def _forget_deleted(self, known: int) -> None:
        """Remove own rows that say deleted of which everybody knows, and against which nobody has anything."""
        due = list(self._unopposed)[:SETTLED_MAX]
        for topic in due:
            del self._unopposed[topic]
        for topic, version in self._told.items():
            if version > known or len(due) == SETTLED_MAX:
                break
            due.append(topic)
        for topic in due:
            self._told.pop(topic, None)
            if not self._store.is_deleted(topic):
                continue
            if topic in self._claims[bucket_of(topic)]:
                self._opposed[topic] = True
            else:
                self._store.drop_own(topic, self._writes())
                self._store.forget(topic)

    def _decide(self, topic: bytes, read: Callable[[str, bytes], bytes]) -> None:
        """Have the newest row that is there be what is replayed."""
        newest = self._store.own_order(topic)
        node = self._own
        for claim in self._of(topic):
            if claim.order > newest:
                newest = claim.order
                node = claim.node
        if newest == self._store.order_of(topic):
            return
        if not newest:
            self._store.forget(topic)
            return
        value = read(node, topic)
        assert value and value_order(value) == newest, "a claim is that of a row in the store"
        self._show(topic, newest, value)

    def _adopt_orphans(self, current_at: float, running: list[bytes]) -> None:
        for topic, since in list(self._orphans.items()):
            order = self._store.order_of(topic)
            if not order or self._is_claimed(topic, order):
                del self._orphans[topic]
            elif heir(topic, running) == self._store_id or since + 2 * self._patience_s <= current_at:
                del self._orphans[topic]
                self._store.adopt(topic, self._writes(), self._clock)

    def _take_over(self, owner: bytes, end: bytes) -> None:
        """Make the stored rows of somebody who is no member this node's, where they are the newest."""
        for key, stored in self._storage.scan(FAMILY, owner, end):
            topic, value, message = read_stored(key, stored, self._clock)
            order = value_order(value)
            if order > self._store.order_of(topic):
                self._store.show(topic, order, message)
                self._store.adopt(topic, self._writes(), self._clock)
            self._writes().delete(FAMILY, key)

    def _of(self, topic: bytes) -> list[Claim]:
        return _all(self._claims[bucket_of(topic)].get(topic))


def heir(topic: bytes, members: list[bytes]) -> bytes:
    """Return which of these members, by store id, gets what a removed one had (a rendezvous hash)."""
    return max(members, key=lambda member: blake2b(topic, digest_size=8, key=member).digest())


def value_in(rows: StoredRows, topic: bytes) -> bytes:
    """Return the value of a topic's row that is committed, b"" if there is none."""
    row = retained_row(topic)
    for found, value in rows.read_from(row):
        if found == row:
            return value
    return b""


def turn_writes(turn: Turn) -> Callable[[], WriteBatch]:
    """Return where writes go while no owner is there."""
    return lambda: turn.writes


def _all(claim: Claim | None) -> list[Claim]:
    found = []
    while claim is not None:
        found.append(claim)
        claim = claim.next
    return found


def _unlink(claims: dict[bytes, Claim], topic: bytes, node: str) -> bytes:
    """Remove one node's claim of a topic; return its order, b"" if it is not there."""
    before: Claim | None = None
    claim = claims.get(topic)
    while claim is not None:
        if claim.node == node:
            if before is not None:
                before.next = claim.next
            elif claim.next is not None:
                claims[topic] = claim.next
            else:
                del claims[topic]
            return claim.order
        before = claim
        claim = claim.next
    return b""


def _has(claim: Claim | None, node: str) -> bool:
    while claim is not None:
        if claim.node == node:
            return True
        claim = claim.next
    return False
