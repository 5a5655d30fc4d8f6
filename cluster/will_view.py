"""The will view: which wills clients left at which node, what is said of them elsewhere, and which nodes are not heard.

Owns what the WILL, CLAIM and AWAY rows of all nodes say, this node's among them. It keeps no message, knows nothing of
how rows come here, and decides nothing: `claims` does.

A will is named by its client id, its node and its number. Times are those of the last `now` that was set: since when a
will waits is when this node heard so, as clocks of two nodes need not agree.
"""

from collections.abc import Iterator
from typing import final

from broker.core.left_will import will_tag
from broker.core.rows import RowKind, Table, bucket_of, row_rest, row_subject, unpack_claim
from broker.core.storage import STORE_ID_BYTES


@final
class KnownWill:
    """A node's WILL row without the message; `waits_since` is 0.0 while the client is connected."""

    __slots__ = ("epoch", "number", "wait_s", "waits_since")

    def __init__(self, epoch: bytes, number: int, wait_s: int, waits_since: float) -> None:
        self.epoch = epoch
        self.number = number
        self.wait_s = wait_s
        self.waits_since = waits_since


@final
class Claim:
    """A CLAIM row: of the will with this number, in the store `whose`, the store `claimer` says that it publishes it.

    Or it is spent: published, or its client is back. `teller` is the node that has the row: the claimer, or another
    one that speaks for it while it is away. Of a will that was over at its own node that store is the claimer.
    """

    __slots__ = ("claimer", "client_id", "number", "spent", "teller", "whose")

    def __init__(self, teller: str, client_id: bytes, key: bytes, number: int, spent: bool) -> None:
        self.teller = teller
        self.client_id = client_id
        self.whose = key[:STORE_ID_BYTES]
        self.claimer = key[STORE_ID_BYTES:]
        self.number = number
        self.spent = spent

    def key(self) -> bytes:
        """Return what follows the client id in the name of the row."""
        return self.whose + self.claimer


@final
class WillView:
    """The wills and claims of all nodes. `own` is this node's name."""

    def __init__(self, own: str) -> None:
        self.now: float = 0.0
        self._own = own
        # Node -> bucket -> client id.
        self._wills: dict[str, dict[int, dict[bytes, KnownWill]]] = {}
        # Node -> the highest number of all wills that it has told of: later ones have higher numbers.
        self._highest: dict[str, int] = {}
        # Bucket -> client id -> (teller, key).
        self._claims: dict[int, dict[bytes, dict[tuple[str, bytes], Claim]]] = {}
        # The store id of a member -> the nodes that do not hear it.
        self._away: dict[bytes, dict[str, bool]] = {}
        self.away_changed = False
        # Client ids of which a will of this node, or something that it says of another's, may have to change.
        self._doubtful: dict[bytes, bool] = {}
        # Those of which this node has a session, and perhaps another one a will of before.
        self._back: dict[bytes, bool] = {}

    def will(self, node: str, client_id: bytes) -> KnownWill | None:
        """Return the will that a client left at a node."""
        buckets = self._wills.get(node)
        return None if buckets is None else buckets.get(bucket_of(client_id), {}).get(client_id)

    def wills_of(self, node: str) -> Iterator[tuple[bytes, KnownWill]]:
        """Iterate (client id, will) of a node; the view must not change meanwhile."""
        for wills in self._wills.get(node, {}).values():
            yield from wills.items()

    def wills_elsewhere(self, client_id: bytes) -> list[tuple[str, KnownWill]]:
        """Return (node, will) of what a client left at other nodes."""
        found = []
        for node in self._wills:
            will = None if node == self._own else self.will(node, client_id)
            if will is not None:
                found.append((node, will))
        return found

    def is_over(self, node: str, client_id: bytes, number: int) -> bool:
        """Say whether a will of a node has come and gone, if its rows are wholly known as they were at some time.

        Numbers rise with time: what has one that is not above all that were told of, and is not there, is gone.
        """
        will = self.will(node, client_id)
        return number <= self._highest.get(node, -1) and (will is None or will.number != number)

    def forget(self, node: str) -> None:
        """A node is no member any more; another store may come under its name, with numbers of its own."""
        self._highest.pop(node, None)

    def claims(self, client_id: bytes, whose: bytes, number: int) -> list[Claim]:
        """Return what all nodes say of a will."""
        claims = self._claims_on(client_id).values()
        return [claim for claim in claims if claim.whose == whose and claim.number == number]

    def claims_on(self, client_id: bytes) -> list[Claim]:
        """Return what all nodes say of all wills of a client."""
        return list(self._claims_on(client_id).values())

    def claims_of(self, teller: str) -> list[Claim]:
        """Return what a node says of wills."""
        found = []
        for bucket in self._claims.values():
            for claims in bucket.values():
                found += [claim for claim in claims.values() if claim.teller == teller]
        return found

    def is_spent(self, client_id: bytes, whose: bytes) -> bool:
        """Say whether the will that a client left in a store, as far as that is known, is nobody's to publish."""
        return any(
            claim.spent
            for _, will in self.wills_elsewhere(client_id)
            for claim in self.claims(client_id, whose, will.number)
        )

    def own_claims_on(self, client_id: bytes) -> list[Claim]:
        """Return what this node says of a client's wills."""
        return [claim for claim in self._claims_on(client_id).values() if claim.teller == self._own]

    def own_claim(self, client_id: bytes, key: bytes) -> Claim | None:
        """Return this node's row with that key."""
        return self._claims_on(client_id).get((self._own, key))

    def highest_epoch(self, client_id: bytes) -> bytes:
        """Return the latest packed epoch of a client's wills, b"" if there is none."""
        highest = b""
        for node in self._wills:
            will = self.will(node, client_id)
            if will is not None:
                highest = max(highest, will.epoch)
        return highest

    def is_away_for(self, node: str, store_id: bytes) -> bool:
        """Say whether a node does not hear a member."""
        return node in self._away.get(store_id, {})

    def session_began(self, node: str, client_id: bytes) -> None:
        """A session of a client id began, or ended, at a node: what the client left elsewhere before may have to go."""
        if node == self._own:
            if self.wills_elsewhere(client_id):
                self._back[client_id] = True
        elif self.will(self._own, client_id) is not None:
            self._doubtful[client_id] = True

    def take_back(self) -> list[bytes]:
        """Return the client ids of which there is a session of this node and perhaps an older will elsewhere."""
        found = list(self._back)
        if found:
            self._back = {}
        return found

    def take_doubtful(self) -> list[bytes]:
        """Return the client ids of which a will of this node, or what it says of another's, may have to change."""
        found = list(self._doubtful)
        if found:
            self._doubtful = {}
        return found

    # The rows of tables.

    def bucket_replaced(self, node: str, table: int, bucket: int) -> None:
        """Forget what a bucket of a node's table held."""
        if table == Table.PASSING:
            for store_id in [each for each in self._away if bucket_of(each) == bucket]:
                self._set_away(node, store_id, False)
            return
        for client_id in self._wills.get(node, {}).pop(bucket, {}):
            self._note(client_id)
        for client_id, claims in list(self._claims.get(bucket, {}).items()):
            for teller, key in list(claims):
                if teller == node:
                    self._remove_claim(bucket, client_id, teller, key)

    def set_row(self, node: str, bucket: int, row: bytes, value: bytes) -> None:
        """A row of a kind in OF_WILLS is there."""
        client_id = row_subject(row)
        if row[0] == RowKind.AWAY:
            self._set_away(node, client_id, True)
            return
        if row[0] == RowKind.CLAIM:
            key = row_rest(row)
            number, spent = unpack_claim(value)
            self._claims.setdefault(bucket, {}).setdefault(client_id, {})[node, key] = Claim(
                node, client_id, key, number, spent
            )
        else:
            tag = will_tag(value)
            wills = self._wills.setdefault(node, {}).setdefault(bucket, {})
            self._highest[node] = max(tag.number, self._highest.get(node, -1))
            wills[client_id] = KnownWill(tag.epoch, tag.number, tag.wait_s, self.now if tag.waits else 0.0)
        self._note(client_id)

    def remove_row(self, node: str, bucket: int, row: bytes) -> None:
        """A row of a kind in OF_WILLS is gone."""
        client_id = row_subject(row)
        if row[0] == RowKind.AWAY:
            self._set_away(node, client_id, False)
            return
        if row[0] == RowKind.CLAIM:
            self._remove_claim(bucket, client_id, node, row_rest(row))
        else:
            wills = self._wills.get(node, {}).get(bucket, {})
            wills.pop(client_id, None)
            if not wills and node in self._wills:
                self._wills[node].pop(bucket, None)
        self._note(client_id)

    def validate(self) -> None:
        """Check the invariants."""
        for buckets in self._wills.values():
            for bucket, wills in buckets.items():
                assert all(bucket_of(client_id) == bucket for client_id in wills)
        for bucket, claimed in self._claims.items():
            assert all(bucket_of(client_id) == bucket and claims for client_id, claims in claimed.items())

    def _set_away(self, node: str, store_id: bytes, away: bool) -> None:
        self.away_changed = True
        nodes = self._away.setdefault(store_id, {})
        if away:
            nodes[node] = True
        else:
            nodes.pop(node, None)
        if not nodes:
            del self._away[store_id]

    def _claims_on(self, client_id: bytes) -> dict[tuple[str, bytes], Claim]:
        return self._claims.get(bucket_of(client_id), {}).get(client_id, {}) if self._claims else {}

    def _remove_claim(self, bucket: int, client_id: bytes, teller: str, key: bytes) -> None:
        clients = self._claims.get(bucket, {})
        claims = clients.get(client_id, {})
        claims.pop((teller, key), None)
        if not claims:
            clients.pop(client_id, None)
        if not clients:
            self._claims.pop(bucket, None)
        self._note(client_id)

    def _note(self, client_id: bytes) -> None:
        if self._claims_on(client_id) or self.will(self._own, client_id) is not None:
            self._doubtful[client_id] = True
