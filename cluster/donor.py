"""The donor: the store of a node that was removed gives its queues to the cluster after all.

Owns the change of such a store into one that may join: under another identity, as the old one never comes back. Its
sessions have later homes by now, at which they are offered as after a partition: what they have queued here goes in
front, and what was there before is known by its id. A session that has no other home is over, and stays where it is.
What waits in shared groups goes to the members elsewhere.

What the cluster has taken over by itself goes: retained messages, which may have been deleted since, and wills.
Messages for other members that had not reached them stay, and are sent.

Such a message may be for a session that is there by now, and in its queue here as well. So a member is sent nothing
before it has said that it knows which sessions are here, and has answered (DONOR): it leaves those out. What they have
queued follows when everything that was sent is taken; till then none of their rows goes.
"""

from typing import Final

from broker.core.retained_rows import FAMILY as RETAINED
from broker.core.storage import Storage, WriteBatch, ensure_store_id, put_store_id
from cluster.leaving import LeaveJob, State
from cluster.membership import State as MemberState
from cluster.mesh_store import KEY_FORMER, KEY_LEAVE, MeshStore, forget_cluster
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
    fellows = [member for member in MeshStore(storage, Turn()).members() if member.state < MemberState.LEFT]
    batch = WriteBatch()
    packed = _VERSION + pack_u16(len(fellows))
    for member in fellows:
        packed += pack_text(member.name) + pack_text(member.address)
    forget_cluster(batch, keeps_outboxes=True)
    batch.put("meta", KEY_FORMER, _VERSION + ensure_store_id(storage, b""))
    put_store_id(batch, fresh)
    batch.put("meta", KEY_FELLOWS, packed)
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
