"""The running view: which members run, in this node's eyes, and which of them keeps the turns of a client id.

Owns the view, its digest and the choice of the keeper. It knows nothing of turns or of how life is noticed.

The keeper of a client id is chosen by rendezvous hashing: every member has a weight for every client id, a hash of its
store_id and the client id, and the heaviest running member is the keeper. Nodes that agree on who runs agree on every
keeper without a word. A member that goes leaves only the client ids that it kept to others; one that comes takes its
share and changes nothing else.

Invariant: this node is in its own view.
"""

from hashlib import blake2b
from typing import Final, final

from cluster.wire import pack_u64

_WEIGHT_BYTES: Final = 8


def keeper_among(members: list[tuple[bytes, str]], client_id: str) -> str:
    """Return the name of the keeper among members, as (store_id, name); there is at least one."""
    if len(members) == 1:
        return members[0][1]
    subject = client_id.encode()
    keeper = ""
    heaviest = (b"", b"")
    for store_id, name in members:
        weight = (blake2b(store_id + subject, digest_size=_WEIGHT_BYTES).digest(), store_id)
        if weight > heaviest:
            heaviest = weight
            keeper = name
    return keeper


@final
class RunningView:
    """The members that run. An incarnation is the count of a member's starts with its store."""

    def __init__(self, name: str, store_id: bytes, incarnation: int) -> None:
        self.name = name
        # (store_id, name), sorted.
        self.members: list[tuple[bytes, str]] = []
        # The names of the others, sorted.
        self.others: list[str] = []
        # 64 bits that are equal on nodes with the same view, incarnations included.
        self.digest = 0
        self._store_ids: dict[str, bytes] = {name: store_id}
        self._incarnations: dict[str, int] = {name: incarnation}
        self._update()

    def started(self, name: str, store_id: bytes, incarnation: int) -> bool:
        """A member runs, in this incarnation; true if that is news. It never concerns this node itself."""
        assert name != self.name
        if self._store_ids.get(name) == store_id and self._incarnations.get(name) == incarnation:
            return False
        self._store_ids[name] = store_id
        self._incarnations[name] = incarnation
        self._update()
        return True

    def stopped(self, name: str) -> bool:
        """A member does not run; true if that is news."""
        assert name != self.name
        if self._store_ids.pop(name, None) is None:
            return False
        del self._incarnations[name]
        self._update()
        return True

    def incarnation(self, name: str) -> int:
        """Return a running member's incarnation, -1 if it does not run."""
        return self._incarnations.get(name, -1)

    def keeper(self, client_id: str) -> str:
        """Return the name of the keeper of a client id."""
        return keeper_among(self.members, client_id)

    def validate(self) -> None:
        """Check the invariants."""
        assert self.name in self._store_ids
        assert sorted(self._store_ids) == sorted(self._incarnations) == sorted([self.name, *self.others])
        assert len(self.members) == len(self._store_ids)

    def _update(self) -> None:
        self.members = sorted((store_id, name) for name, store_id in self._store_ids.items())
        self.others = sorted(name for name in self._store_ids if name != self.name)
        told = blake2b(digest_size=8)
        for store_id, name in self.members:
            told.update(store_id + pack_u64(self._incarnations[name]))
        self.digest = int.from_bytes(told.digest(), "big")
