"""The mesh's part of the store: what survives a restart of this node, and how it is found again.

Owns the keys and values; it knows nothing of liveness, connections or frames. Reads go to the storage, and only at the
start; writes go into the turn's batch, which is committed before anything of the turn leaves.

    meta      "cluster_id"                     the cluster's id
              "member/<name>"                  a member, packed as in a frame; whether it is heard is not for the store
              "removed/<store_id><name>"       a pair that never comes back
              "rerouted/<store_id>"            u64: the first number of this node's messages for sessions of a store
                                               that is gone which their new homes were given
              "leave"                          the leave of this node, see `leaving`
              "position/<sender store_id>"     u64: the last message of that stream that this node has
              "handed/<sender store_id>"       u64: the last of that stream that came from who had taken it over
              "known/<store_id><table u8>"     u64 generation, number version: as what a peer's table was known wholly
              "kept/<store_id>"                u64: how many messages a donor had for a member, less those that it gave
    registry  "interest/<store_id><filter>"    a peer's persistent filter, a shared one if it is of a group, so that
                                               after a restart messages for its sessions wait even for a peer that is
                                               down
              "estate/<store_id><client id><filter>"   what a session wanted of a node that is gone, see `estates`
              "kept/<store_id><client id><filter>"     what a session wanted of a member when a donor was one
              "from/<store_id><client id>"             u64: the first of its messages that a donor kept for that
                                                       session, if its stub gives those before
              "since/<store_id><client id>"            u64: the first of this node's messages that are for a session
                                                       that came to a member, see `newcomers`
              "table/..."                      see `tables`

What waits for a peer on disk is in the family `outbox`, which `outbox` owns.

Every value begins with a version byte; a newer one is a StorageError, and so is what can't be read, and the node does
not start. What is read is held to the same bounds as what a peer says.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, TypeVar, final

from broker.core.storage import STORE_ID_BYTES, Storage, WriteBatch
from broker.core.stored_message import Clock, check_version, corrupt
from broker.core.subscription import Subscription, subscription
from cluster.frames import pack_member, read_filter, read_member
from cluster.membership import Member, State
from cluster.outbox import FAMILY, Outbox, recover
from cluster.table_rows import forget_tables
from cluster.turn import Turn
from cluster.wire import NUMBER_MAX, FrameError, Reader, pack_bytes16, pack_text, pack_u32, pack_u64

T = TypeVar("T")

VALUE_VERSION: Final = 1
_VERSION: Final = bytes([VALUE_VERSION])
KEY_CLUSTER_ID: Final = b"cluster_id"
KEY_MEMBER: Final = b"member/"
KEY_REMOVED: Final = b"removed/"
KEY_POSITION: Final = b"position/"
KEY_HANDED: Final = b"handed/"
KEY_KNOWN: Final = b"known/"
KEY_LEAVE: Final = b"leave"
KEY_FORMER: Final = b"former"
KEY_INTEREST: Final = b"interest/"
KEY_ESTATE: Final = b"estate/"
KEY_REROUTED: Final = b"rerouted/"
KEY_KEPT: Final = b"kept/"
KEY_FROM: Final = b"from/"
KEY_SINCE: Final = b"since/"


@final
class MeshStore:
    """What the mesh reads at its start and writes in its turns."""

    def __init__(self, storage: Storage, turn: Turn) -> None:
        # For deadlines of messages that wait on disk.
        self.clock = Clock(0.0, 0)
        self._storage = storage
        self._turn = turn
        # What is stored of each member, so that only changes are written.
        self._members: dict[str, bytes] = {}
        # By sender. A member comes at any time, when the store may not be readable.
        self._positions: dict[bytes, int] = dict(self._read_all("meta", KEY_POSITION, _read_position))
        self._handed: dict[bytes, int] = dict(self._read_all("meta", KEY_HANDED, _read_position))
        # By store. What is told of an estate in the turn in which it ends counts.
        self._rerouted: dict[bytes, int] = dict(self._read_all("meta", KEY_REROUTED, _read_position))
        self._outboxes: dict[bytes, Outbox] = recover(storage, turn, self.clock)

    def cluster_id(self, fresh: bytes) -> bytes:
        """Return the cluster's id; a store that has none gets `fresh`."""
        stored = self._storage.get("meta", KEY_CLUSTER_ID)
        if stored is not None:
            return _read("meta", KEY_CLUSTER_ID, b"", stored, _read_cluster_id)
        self.put_cluster_id(fresh)
        return fresh

    def put_cluster_id(self, cluster_id: bytes) -> None:
        """Adopt a cluster."""
        self._turn.writes.put("meta", KEY_CLUSTER_ID, _VERSION + cluster_id)
        # Or the others know a member that knows no cluster.
        self._turn.writes.durable = True

    def members(self) -> list[Member]:
        """Return the members that are stored."""
        members = self._read_all("meta", KEY_MEMBER, _read_member)
        self._members = {member.name: _VERSION + pack_member(member) for member in members}
        return members

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
        return self._read_all("meta", KEY_REMOVED, _read_removed)

    def put_removed(self, name: str, store_id: bytes) -> None:
        """Remember for ever that the pair was removed."""
        self._turn.writes.put("meta", KEY_REMOVED + store_id + name.encode(), _VERSION)
        # This node may be the only one that knows, and the operator has been told.
        self._turn.writes.durable = True

    def former_store(self) -> bytes:
        """Return the store id that a donor had as a member, b"" for none."""
        return (self._storage.get("meta", KEY_FORMER) or _VERSION)[1:]

    def leave(self) -> bytes:
        """Return what `put_leave` stored, b"" if nothing."""
        return self._storage.get("meta", KEY_LEAVE) or b""

    def put_leave(self, value: bytes) -> None:
        """Store the leave of this node."""
        self._turn.writes.put("meta", KEY_LEAVE, value)

    def position(self, sender: bytes) -> int:
        """Return the number of the last message of the sender's stream that this node has."""
        return self._positions.get(sender, 0)

    def put_position(self, sender: bytes, position: int) -> None:
        """Store the position, in the batch that holds the messages up to it."""
        self._positions[sender] = position
        self._turn.writes.put("meta", KEY_POSITION + sender, _VERSION + position.to_bytes(8, "big"))

    def handed(self, sender: bytes) -> int:
        """Return the number of the last message of the sender's stream that came from who had taken it over."""
        return self._handed.get(sender, 0)

    def put_handed(self, sender: bytes, number: int) -> None:
        """Store that, in the batch that holds the message."""
        self._handed[sender] = number
        self._turn.writes.put("meta", KEY_HANDED + sender, _VERSION + pack_u64(number))

    def outbox(self, store_id: bytes, bytes_max: int) -> Outbox:
        """Return what waits for a peer on disk; it stays the same for as long as this node lives."""
        outbox = self._outboxes.get(store_id)
        if outbox is None:
            outbox = Outbox(self._storage, self._turn, self.clock, store_id, bytes_max)
            self._outboxes[store_id] = outbox
        outbox.bytes_max = bytes_max
        return outbox

    def known(self, store_id: bytes) -> dict[int, tuple[int, int]]:
        """Return table -> (generation, version) at which a peer's was known wholly."""
        return dict(self._read_all("meta", KEY_KNOWN + store_id, _read_known))

    def put_known(self, store_id: bytes, table: int, at: tuple[int, int]) -> None:
        """Store that, in the batch that holds the rows."""
        self._turn.writes.put(
            "meta", KEY_KNOWN + store_id + bytes((table,)), _VERSION + pack_u64(at[0]) + pack_u64(at[1])
        )

    def forget_known(self, store_id: bytes) -> None:
        """Nothing of a peer is known here any more."""
        prefix = KEY_KNOWN + store_id
        self._turn.writes.delete_range("meta", prefix, _after(prefix))

    def interest(self, store_id: bytes) -> list[bytes]:
        """Return the persistent filters of a peer."""
        return self._read_all("registry", KEY_INTEREST + store_id, _read_interest)

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

    # Estates.

    def put_estate(
        self, store_id: bytes, client_id: str, counter: int, topic_filter: bytes, wanted: Subscription
    ) -> None:
        """Remember what a session, of this epoch counter, of a store that is no member any more wanted."""
        key = KEY_ESTATE + store_id + pack_text(client_id) + topic_filter
        self._turn.writes.put("registry", key, _pack_wish(counter, wanted))

    def estates(self) -> list[bytes]:
        """Return the store ids of which there are estates."""
        rows = self._storage.scan("registry", KEY_ESTATE, _after(KEY_ESTATE))
        start = len(KEY_ESTATE)
        return list(dict.fromkeys([key[start : start + STORE_ID_BYTES] for key, _ in rows]))

    def estate(self, store_id: bytes) -> list[tuple[str, int, bytes, Subscription]]:
        """Return (client id, epoch counter, filter, subscription) of an estate."""
        return self._read_all("registry", KEY_ESTATE + store_id, _read_estate)

    def rerouted(self, store_id: bytes) -> int:
        """Return from which number on this node's messages for a store went to others; NUMBER_MAX for none."""
        return self._rerouted.get(store_id, NUMBER_MAX)

    def put_rerouted(self, store_id: bytes, number: int) -> None:
        """Remember for ever from which number on this node's messages for a store go to others."""
        self._rerouted[store_id] = number
        self._turn.writes.put("meta", KEY_REROUTED + store_id, _VERSION + pack_u64(number))

    def end_estate(self, store_id: bytes) -> None:
        """Forget an estate: everything of it is given away."""
        prefix = KEY_ESTATE + store_id
        self._turn.writes.delete_range("registry", prefix, _after(prefix))
        self.forget_newcomers(store_id)

    def newcomers(self, store_id: bytes) -> dict[str, int]:
        """Return client id -> the first of this node's messages that are for a session that came to a member."""
        return dict(self._read_all("registry", KEY_SINCE + store_id, _read_from))

    def put_newcomer(self, store_id: bytes, client_id: str, number: int) -> None:
        """Remember that of a session."""
        self._turn.writes.put("registry", KEY_SINCE + store_id + client_id.encode(), _VERSION + pack_u64(number))

    def delete_newcomer(self, store_id: bytes, client_id: str) -> None:
        """Forget that of a session."""
        self._turn.writes.delete("registry", KEY_SINCE + store_id + client_id.encode())

    def forget_newcomers(self, store_id: bytes) -> None:
        """Forget that of all sessions of a member."""
        prefix = KEY_SINCE + store_id
        self._turn.writes.delete_range("registry", prefix, _after(prefix))

    # What a donor kept for members.

    def kept(self, store_id: bytes) -> list[tuple[str, int, bytes, Subscription]]:
        """Return (client id, epoch counter, filter, subscription) of the sessions of a member for which it is."""
        return self._read_all("registry", KEY_KEPT + store_id, _read_estate)

    def kept_from(self, store_id: bytes) -> dict[str, int]:
        """Return client id -> the first number of this store's for a session of a member of which there is a stub."""
        return dict(self._read_all("registry", KEY_FROM + store_id, _read_from))

    def kept_left(self, store_id: bytes) -> int:
        """Return how many messages there were for a member, less those that were given; 0 if none were kept."""
        stored = self._storage.get("meta", KEY_KEPT + store_id)
        return 0 if stored is None else int.from_bytes(stored[1:], "big")

    def put_kept_left(self, store_id: bytes, left: int) -> None:
        """Store that, in the batch that gives some of them."""
        self._turn.writes.put("meta", KEY_KEPT + store_id, _VERSION + pack_u64(left))

    def _read_all(self, family: str, prefix: bytes, read: Callable[[bytes, Reader], T]) -> list[T]:
        """Return what is stored under keys that begin with `prefix`; `read` gets the rest of the key, and the value."""
        rows = self._storage.scan(family, prefix, _after(prefix))
        return [_read(family, key, key[len(prefix) :], stored, read) for key, stored in rows]


def put_kept(
    batch: WriteBatch,
    store_id: bytes,
    messages: int,
    wishes: Iterable[tuple[str, int, bytes, Subscription]],
    kept_from: dict[str, int],
) -> None:
    """Keep for a donor which sessions of a member the messages are for that it has for that.

    `kept_from` has the first number of this store's for those of which it has stubs.
    """
    batch.put("meta", KEY_KEPT + store_id, _VERSION + pack_u64(messages))
    for client_id, number in kept_from.items():
        batch.put("registry", KEY_FROM + store_id + client_id.encode(), _VERSION + pack_u64(number))
    for client_id, counter, topic_filter, wanted in wishes:
        key = KEY_KEPT + store_id + pack_text(client_id) + topic_filter
        batch.put("registry", key, _pack_wish(counter, wanted))


def forget_cluster(batch: WriteBatch, keeps_outboxes: bool = False) -> None:
    """Make the store one that is a member of nothing: for a copy, which gets a store_id of its own.

    Positions, interest and outboxes are between two stores, of which the copy is neither; tables are a store's own.
    Removed pairs stay removed. With `keeps_outboxes` it is no copy, and nobody else sends what is in them.
    """
    if not keeps_outboxes:
        batch.delete_range(FAMILY, b"", b"\xff" * (STORE_ID_BYTES + 9))
        for family in ("meta", "registry"):
            batch.delete_range(family, KEY_KEPT, _after(KEY_KEPT))
        for prefix in (KEY_FROM, KEY_SINCE):
            batch.delete_range("registry", prefix, _after(prefix))
    batch.delete("meta", KEY_CLUSTER_ID)
    batch.delete("meta", KEY_LEAVE)
    forget_tables(batch)
    for family, prefix in (
        ("meta", KEY_MEMBER),
        ("meta", KEY_POSITION),
        ("meta", KEY_HANDED),
        ("meta", KEY_KNOWN),
        ("registry", KEY_INTEREST),
        ("registry", KEY_ESTATE),
    ):
        batch.delete_range(family, prefix, _after(prefix))


def _after(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`, which must not be all 0xFF."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def _read(family: str, key: bytes, name: bytes, stored: bytes, read: Callable[[bytes, Reader], T]) -> T:
    try:
        reader = Reader(stored, 1)
        check_version(stored, VALUE_VERSION, family)
        found = read(name, reader)
        reader.end()
    except FrameError as error:
        raise corrupt(family, key, error) from None
    return found


def _pack_wish(counter: int, wanted: Subscription) -> bytes:
    return _VERSION + bytes((wanted.options,)) + pack_u32(wanted.identifier) + pack_u32(counter)


def _read_estate(name: bytes, reader: Reader) -> tuple[str, int, bytes, Subscription]:
    key = Reader(name, 0)
    client_id = key.text()
    topic_filter = read_filter(Reader(pack_bytes16(key.rest()), 0))
    options = reader.u8()
    wanted = subscription(options, reader.u32())
    return client_id, reader.u32(), topic_filter, wanted


def _read_cluster_id(_name: bytes, reader: Reader) -> bytes:
    return reader.rest()


def _read_member(name: bytes, reader: Reader) -> Member:
    member = read_member(reader)
    if member.name.encode() != name:
        raise FrameError(f"the member {member.name}")
    return member


def _read_removed(name: bytes, _reader: Reader) -> tuple[str, bytes]:
    store_id = Reader(name, 0).take(STORE_ID_BYTES)
    return Reader(pack_bytes16(name[STORE_ID_BYTES:]), 0).node_name(), store_id


def _read_position(name: bytes, reader: Reader) -> tuple[bytes, int]:
    if len(name) != STORE_ID_BYTES:
        raise FrameError("a store's id has another length")
    return name, reader.number()


def _read_from(name: bytes, reader: Reader) -> tuple[str, int]:
    return Reader(pack_bytes16(name), 0).text(), reader.number()


def _read_known(name: bytes, reader: Reader) -> tuple[int, tuple[int, int]]:
    if len(name) != 1:
        raise FrameError("what is known is of no table")
    return name[0], (reader.u64(), reader.number())


def _read_interest(name: bytes, _reader: Reader) -> bytes:
    return read_filter(Reader(pack_bytes16(name), 0))
