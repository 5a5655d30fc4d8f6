"""The donor: the store of a node that was removed gives its queues to the cluster after all.

Owns the change of such a store into one that may join: under another identity, as the old one never comes back. Its
sessions have later homes by now, at which they are offered as after a partition: what they have queued here goes in
front, and what was there before is known by its id. A session that has no other home is over, and stays where it is.
What waits in shared groups goes to the members elsewhere.

What is published while it gives does not come to them here: who publishes sends that to their later homes, or keeps it
for these (see `estates`). They would take it for something else, as they forget what they have had directly. So all
sessions of a donor are dormant at first: nothing that is published comes to them, and nobody hears that they want it.
One of which no later home is known wakes when all members have told of theirs, and so does one that is asked for: what
members send here, until they know its new home, nobody else has. It stays awake, over a restart as well, whatever home
is heard of afterwards: that one may have begun without what was sent here.

What the cluster has taken over by itself goes: retained messages, which may have been deleted since, and wills.
Messages for other members that had not reached them stay, and are given.

They are for the sessions that were at those members as far as this node knew when it was one, and for no others: a
session that came to a member since had the same messages at the home that it had then, or has them in its queue here.
So which sessions those are, and what they wanted, is remembered (`kept`), and each gets what is for it at the home that
it has by now, as from a member that keeps messages for a home that is gone (see `estates`); what the home that it had
then has taken is told by that as any stream's position. A session of which this node knew a later home, or that was
here itself, is left out: it gets the same from there.

The stub of a session that had gone may have had the same as its next home, since other sessions here wanted that, or a
member was awaited for long. The stub gives what members sent before they sent it to that home as well (see `switched`
of a session). Of what was published here it gives what is older than that, and the home gets the rest from what was
kept for it; if it is not known any more that the session is there, the stub gives all of that.
"""

from collections.abc import Iterator
from typing import Final

from broker.core.epoch import pack_epoch, unpack_epoch
from broker.core.retained_rows import FAMILY as RETAINED
from broker.core.rows import RowKind, Table, row_subject, session_epoch, unpack_ended
from broker.core.session_store import make_dormant, pack_switched, switched_stubs
from broker.core.storage import Storage, WriteBatch, ensure_store_id, put_store_id
from broker.core.subscription import Subscription
from cluster.leaving import LeaveJob, State
from cluster.membership import State as MemberState
from cluster.mesh_store import KEY_FORMER, KEY_LEAVE, MeshStore, forget_cluster, put_kept
from cluster.peer_tables import subscriptions_in
from cluster.table_rows import StoredRows
from cluster.turn import Turn
from cluster.wire import Reader, pack_text, pack_u16

KEY_FELLOWS: Final = b"fellows"
_VERSION: Final = b"\x01"
_END: Final = b"\xff" * 64


def stored_state(storage: Storage, name: str) -> State:
    """Return where the leave of this store's node stands."""
    job = LeaveJob(name)
    value = storage.get("meta", KEY_LEAVE)
    if value is not None:
        job.restore(value, 0.0)
    return job.state


def become_donor(storage: Storage, name: str, fresh: bytes) -> None:
    """Make the store of a removed node that of a donor; `fresh` is a random store id."""
    assert stored_state(storage, name) == State.REMOVED
    store = MeshStore(storage, Turn())
    fellows = [member for member in store.members() if member.state < MemberState.LEFT]
    batch = WriteBatch()
    if not store.former_store():
        # Else it was a donor, and has published nothing since.
        _keep(storage, store, [member.store_id for member in fellows], batch)
    packed = _VERSION + pack_u16(len(fellows))
    for member in fellows:
        packed += pack_text(member.name) + pack_text(member.address)
    forget_cluster(batch, keeps_outboxes=True)
    batch.put("meta", KEY_FORMER, _VERSION + ensure_store_id(storage, b""))
    put_store_id(batch, fresh)
    batch.put("meta", KEY_FELLOWS, packed)
    make_dormant(storage, batch)
    for family in (RETAINED, "will"):
        batch.delete_range(family, b"", _END)
    job = LeaveJob(name)
    job.donate(0.0)
    batch.put("meta", KEY_LEAVE, job.pack())
    storage.commit(batch)


def fellows(storage: Storage) -> list[tuple[str, str]]:
    """Return (name, host:port) of the members that the node of a donor's store had."""
    value = storage.get("meta", KEY_FELLOWS)
    if value is None:
        return []
    reader = Reader(value, 1)
    return [(reader.node_name(), reader.address()) for _ in range(reader.u16())]


def _keep(storage: Storage, store: MeshStore, fellows: list[bytes], batch: WriteBatch) -> None:
    """Remember which sessions of these members the messages are for that wait for the members."""
    own_id = ensure_store_id(storage, b"")
    latest = _latest_epochs(storage, [own_id, *fellows])
    own = {row_subject(row) for _, row, _ in _lasting(storage, own_id).scan() if row[0] == RowKind.SESSION}
    kept_from = _split_stubs(storage, own_id, fellows, latest, batch)
    for store_id in fellows:
        messages = store.outbox(store_id, 0).messages
        if messages:
            first = kept_from[store_id]
            wishes = _wishes(_lasting(storage, store_id), latest, own.difference(map(str.encode, first)))
            put_kept(batch, store_id, messages, wishes, first)


def _split_stubs(
    storage: Storage, own_id: bytes, fellows: list[bytes], latest: dict[bytes, bytes], batch: WriteBatch
) -> dict[bytes, dict[str, int]]:
    """Return by member, for the sessions of which stubs are here, from which number on what was published here it gets.

    If a session is not known to be there (any more), its stub is to give all of that.
    """
    kept_from: dict[bytes, dict[str, int]] = {store_id: {} for store_id in fellows}
    for key, client_id, home, numbers in switched_stubs(storage):
        if own_id in numbers and home != own_id:
            known = latest.get(client_id.encode())
            if home in kept_from and known is not None and unpack_epoch(known, 0).store_id == home:
                kept_from[home][client_id] = numbers[own_id]
            else:
                del numbers[own_id]
                batch.put("session", key, pack_switched(home, numbers))
    return kept_from


def _latest_epochs(storage: Storage, members: list[bytes]) -> dict[bytes, bytes]:
    """Return by client id the packed epoch before which sessions were over, or had gone to another of these members."""
    latest: dict[bytes, bytes] = {}
    for store_id in members:
        for _bucket, row, value in _lasting(storage, store_id).scan():
            if row[0] in (RowKind.SESSION, RowKind.ENDED):
                epoch = session_epoch(value) if row[0] == RowKind.SESSION else unpack_ended(value)
                subject = row_subject(row)
                latest[subject] = max(latest.get(subject, b""), epoch)
    return latest


def _wishes(
    lasting: StoredRows, latest: dict[bytes, bytes], own: set[bytes]
) -> Iterator[tuple[str, int, bytes, Subscription]]:
    for client_id, epoch, topic_filter, wanted in subscriptions_in(lasting):
        subject = client_id.encode()
        if subject not in own and pack_epoch(epoch) >= latest.get(subject, b""):
            yield client_id, epoch.counter, topic_filter, wanted


def _lasting(storage: Storage, store_id: bytes) -> StoredRows:
    return StoredRows(storage, Turn(), store_id, Table.LASTING)
