"""The mesh's part of the store: what survives a restart of this node, and how it is found again.

Owns the keys and values; it knows nothing of liveness, connections or frames. Reads go to the storage, writes into
the turn's batch, which is committed before anything of the turn leaves.

    meta      "cluster_id"                     the cluster's id
              "member/<name>"                  a member, packed as in a frame; whether it is heard is not for the store
              "removed/<store_id><name>"       a pair that never comes back
              "position/<sender store_id>"     u64: the last message of that stream that this node has
    registry  "interest/<store_id><filter>"    a peer's persistent filter, so that after a restart messages for its
                                               sessions wait even for a peer that is down
              "table/..."                      see `tables`

Every value begins with a version byte; a newer one is a StorageError, and the node does not start.
"""

from dataclasses import replace
from typing import Final, final

from broker.core.storage import STORE_ID_BYTES, Storage, StorageError, WriteBatch
from cluster.frames import pack_member, read_member
from cluster.membership import Member, State
from cluster.tables import forget_tables
from cluster.turn import Turn
from cluster.wire import FrameError, Reader

VALUE_VERSION: Final = 1
_VERSION: Final = bytes([VALUE_VERSION])
KEY_CLUSTER_ID: Final = b"cluster_id"
KEY_MEMBER: Final = b"member/"
KEY_REMOVED: Final = b"removed/"
KEY_POSITION: Final = b"position/"
KEY_INTEREST: Final = b"interest/"


@final
class MeshStore:
    """What the mesh reads at its start and writes in its turns."""

    def __init__(self, storage: Storage, turn: Turn) -> None:
        self._storage = storage
        self._turn = turn
        # What is stored of each member, so that only changes are written.
        self._members: dict[str, bytes] = {}

    def cluster_id(self, fresh: bytes) -> bytes:
        """Return the cluster's id; a store that has none gets `fresh`."""
        stored = self._storage.get("meta", KEY_CLUSTER_ID)
        if stored is not None:
            return _value(stored)
        self.put_cluster_id(fresh)
        return fresh

    def put_cluster_id(self, cluster_id: bytes) -> None:
        """Adopt a cluster."""
        self._turn.writes.put("meta", KEY_CLUSTER_ID, _VERSION + cluster_id)

    def members(self) -> list[Member]:
        """Return the members that are stored."""
        found = []
        for _, stored in self._storage.scan("meta", KEY_MEMBER, _after(KEY_MEMBER)):
            try:
                member = read_member(Reader(_value(stored), 0))
            except FrameError as error:
                raise StorageError(f"the store's member data is corrupt: {error}") from None
            self._members[member.name] = stored
            found.append(member)
        return found

    def put_members(self, members: list[Member]) -> None:
        """Store exactly these members, which don't include this node."""
        names = set()
        for member in members:
            names.add(member.name)
            state = member.state if member.state >= State.LEAVING else State.ALIVE
            value = _VERSION + pack_member(replace(member, state=state))
            if self._members.get(member.name) != value:
                self._members[member.name] = value
                self._turn.writes.put("meta", KEY_MEMBER + member.name.encode(), value)
        for name in [name for name in self._members if name not in names]:
            del self._members[name]
            self._turn.writes.delete("meta", KEY_MEMBER + name.encode())

    def removed(self) -> list[tuple[str, bytes]]:
        """Return the removed pairs."""
        found = []
        for key, stored in self._storage.scan("meta", KEY_REMOVED, _after(KEY_REMOVED)):
            _value(stored)
            rest = key[len(KEY_REMOVED) :]
            found.append((rest[STORE_ID_BYTES:].decode(), rest[:STORE_ID_BYTES]))
        return found

    def put_removed(self, name: str, store_id: bytes) -> None:
        """Remember for ever that the pair was removed."""
        self._turn.writes.put("meta", KEY_REMOVED + store_id + name.encode(), _VERSION)

    def position(self, sender: bytes) -> int:
        """Return the number of the last message of the sender's stream that was committed here."""
        stored = self._storage.get("meta", KEY_POSITION + sender)
        return 0 if stored is None else int.from_bytes(_value(stored), "big")

    def put_position(self, sender: bytes, position: int) -> None:
        """Store the position, in the batch that holds the messages up to it."""
        self._turn.writes.put("meta", KEY_POSITION + sender, _VERSION + position.to_bytes(8, "big"))

    def interest(self, store_id: bytes) -> list[bytes]:
        """Return the persistent filters of a peer."""
        prefix = KEY_INTEREST + store_id
        found = []
        for key, stored in self._storage.scan("registry", prefix, _after(prefix)):
            _value(stored)
            found.append(key[len(prefix) :])
        return found

    def put_interest(self, store_id: bytes, topic_filter: bytes) -> None:
        """Store a persistent filter of a peer."""
        self._turn.writes.put("registry", KEY_INTEREST + store_id + topic_filter, _VERSION)

    def delete_interest(self, store_id: bytes, topic_filter: bytes) -> None:
        """Forget a filter of a peer; it need not be stored."""
        self._turn.writes.delete("registry", KEY_INTEREST + store_id + topic_filter)

    def clear_interest(self, store_id: bytes) -> None:
        """Forget all filters of a peer."""
        prefix = KEY_INTEREST + store_id
        self._turn.writes.delete_range("registry", prefix, _after(prefix))


def forget_cluster(batch: WriteBatch) -> None:
    """Make the store one that is a member of nothing: for a copy, which gets a store_id of its own.

    Positions, interest and tables are a store's, which the copy is not. Removed pairs stay removed.
    """
    batch.delete("meta", KEY_CLUSTER_ID)
    forget_tables(batch)
    for family, prefix in (("meta", KEY_MEMBER), ("meta", KEY_POSITION), ("registry", KEY_INTEREST)):
        batch.delete_range(family, prefix, _after(prefix))


def _after(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`, which must not be all 0xFF."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def _value(stored: bytes) -> bytes:
    if len(stored) < 1 or stored[0] > VALUE_VERSION:
        raise StorageError("the store holds cluster data of a newer version of zvmq")
    return stored[1:]
