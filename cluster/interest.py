"""Interest: what the other nodes want.

Owns the tree of the others' filters, which the INTEREST rows of their tables make, the tree of the shared groups of
which they have parts, which the GROUP rows make, and the copy in the store of what of both outlives a connection. It
knows nothing of sessions, connections or of how rows come here.

What a peer wants stays known while the peer is down, over a restart of this node too: messages for its persistent
filters wait for it. Filters without a persistent session count for a running peer only. Of a part of a group it stays
known whether members will come back; who was connected comes to nothing when the peer does not run.

There may be very many filters, so the tree is all that is kept of them; to forget a peer is to look through it.

What the sessions wanted of a node that is no member any more may be wanted for a while yet, by its estate (see
`estates`). That has another name than any node, and nothing of its filters is in the store here.

Invariants: the trees hold exactly the filters and groups of all peers, and the filters of estates; each peer's `count`
is that of its own filters.
"""

from typing import final

from broker.core.group_choice import GroupPart, GroupParts
from broker.core.rows import RowKind, row_subject, unpack_group, unpack_interest
from broker.core.topic_tree import TopicTree
from broker.mqtt.topics import SHARE_PREFIX, shared_group
from cluster.mesh_store import MeshStore
from cluster.turn import Turn


@final
class PeerWishes:
    """How many filters a peer wants, and its parts of groups by shared filter."""

    def __init__(self, store_id: bytes) -> None:
        self.store_id = store_id
        self.count = 0
        self.parts: dict[bytes, GroupPart] = {}


@final
class PeerInterest:
    """The wishes of all other nodes; `match`, `match_groups` and `group` are what the queue-owner asks."""

    def __init__(self, store: MeshStore, turn: Turn) -> None:
        self._store = store
        self._turn = turn
        self._peers: dict[str, PeerWishes] = {}
        # Who wants a filter, and whether that is persistent.
        self._tree: TopicTree[str, bool] = TopicTree()
        self._groups: dict[bytes, GroupParts] = {}
        self._group_tree: TopicTree[GroupParts, bool] = TopicTree()
        self._estates: dict[str, dict[bytes, bool]] = {}
        self._running: set[str] = set()

    def match(self, topic: bytes) -> list[tuple[str, bool]]:
        """Return (node, persistent) of every other node that wants the topic now or when it is back, and of estates."""
        found: dict[str, bool] = {}
        for node, persistent in self._tree.match(topic):
            if persistent:
                found[node] = True
            elif node in self._running and node not in found:
                found[node] = False
        return list(found.items())

    def match_groups(self, topic: bytes) -> list[GroupParts]:
        """Return the groups with parts at other nodes that the topic is for."""
        return [group for group, _ in self._group_tree.match(topic)] if self._groups else []

    def group(self, shared_filter: bytes) -> GroupParts | None:
        """Return what other nodes have of a group, None for nothing."""
        return self._groups.get(shared_filter)

    def set_running(self, node: str, running: bool) -> None:
        """Say whether a peer runs."""
        if running == (node in self._running):
            return
        if running:
            self._running.add(node)
        else:
            self._running.discard(node)
        peer = self._peers.get(node)
        if peer is not None and peer.count:
            self._turn.routes_changed = True
        if peer is not None:
            for shared_filter, part in peer.parts.items():
                part.running = running
                self._turn.groups_changed[shared_filter] = True

    def add_peer(self, node: str, store_id: bytes, restoring: bool) -> list[bytes]:
        """Begin with nothing, or with what the store remembers of a peer: return its persistent filters.

        Shared filters are among them.
        """
        peer = PeerWishes(store_id)
        self._peers[node] = peer
        if not restoring:
            return []
        filters = self._store.interest(store_id)
        for topic_filter in filters:
            if is_shared(topic_filter):
                self._set_part(node, topic_filter, GroupPart(node, 0, True, False))
                continue
            peer.count += 1
            self._tree.set(topic_filter, node, True)
            self._turn.routes_changed = True
        return filters

    def set_row(self, node: str, row: bytes, value: bytes) -> None:
        """A peer wants a filter, or has a part of a group."""
        if row[0] == RowKind.GROUP:
            self._set_group(node, row_subject(row), value)
            return
        topic_filter = row_subject(row)
        persistent = unpack_interest(value)
        peer = self._peers[node]
        known = self._tree.get(topic_filter, node)
        if known == persistent:
            return
        if persistent:
            self._store.put_interest(peer.store_id, topic_filter)
        elif known is not None:
            self._store.delete_interest(peer.store_id, topic_filter)
        if self._tree.set(topic_filter, node, persistent):
            peer.count += 1
        self._turn.routes_changed = True

    def _set_group(self, node: str, shared_filter: bytes, value: bytes) -> None:
        persistent, online, full = unpack_group(value)
        peer = self._peers[node]
        known = peer.parts.get(shared_filter)
        if persistent and (known is None or not known.persistent):
            self._store.put_interest(peer.store_id, shared_filter)
        elif known is not None and known.persistent and not persistent:
            self._store.delete_interest(peer.store_id, shared_filter)
        if known is None:
            self._set_part(node, shared_filter, GroupPart(node, online, persistent, node in self._running, full))
        else:
            known.online = online
            known.persistent = persistent
            known.full = full
            self._turn.groups_changed[shared_filter] = True

    def _set_part(self, node: str, shared_filter: bytes, part: GroupPart) -> None:
        group = self._groups.get(shared_filter)
        if group is None:
            group = GroupParts(shared_filter)
            self._groups[shared_filter] = group
            self._group_tree.set(_topic_filter(shared_filter), group, True)
            self._turn.routes_changed = True
        group.parts[node] = part
        self._peers[node].parts[shared_filter] = part
        self._turn.groups_changed[shared_filter] = True

    def _remove_part(self, node: str, shared_filter: bytes) -> None:
        group = self._groups[shared_filter]
        del group.parts[node]
        if not group.parts:
            del self._groups[shared_filter]
            self._group_tree.remove(_topic_filter(shared_filter), group)
            self._turn.routes_changed = True
        self._turn.groups_changed[shared_filter] = True

    def _remove_group(self, node: str, shared_filter: bytes) -> None:
        peer = self._peers[node]
        part = peer.parts.pop(shared_filter, None)
        if part is not None:
            if part.persistent:
                self._store.delete_interest(peer.store_id, shared_filter)
            self._remove_part(node, shared_filter)

    def remove_row(self, node: str, row: bytes) -> None:
        """A peer does not want a filter any more, or has no part of a group."""
        if row[0] == RowKind.GROUP:
            self._remove_group(node, row_subject(row))
            return
        topic_filter = row_subject(row)
        peer = self._peers[node]
        known = self._tree.get(topic_filter, node)
        if known is None:
            return
        if known:
            self._store.delete_interest(peer.store_id, topic_filter)
        self._tree.remove(topic_filter, node)
        peer.count -= 1
        self._turn.routes_changed = True

    def persistent_filters(self, node: str) -> list[bytes]:
        """Return the peer's persistent filters, those of its groups not among them, after a look through all."""
        return [wanted for wanted, of, persistent in self._tree.items() if of == node and persistent]

    def set_estate(self, estate: str, filters: list[bytes]) -> None:
        """Say what an estate wants from now on."""
        known = self._estates.pop(estate, {})
        wanted = dict.fromkeys(filters, True)
        for topic_filter in known:
            if topic_filter not in wanted:
                self._tree.remove(topic_filter, estate)
        for topic_filter in wanted:
            self._tree.set(topic_filter, estate, True)
        if wanted:
            self._estates[estate] = wanted
        self._turn.routes_changed = True

    def forget(self, node: str) -> None:
        """Drop everything of a node that is no member any more."""
        self._running.discard(node)
        peer = self._peers.pop(node)
        self._store.clear_interest(peer.store_id)
        for topic_filter in [wanted for wanted, of, _ in self._tree.items() if of == node]:
            self._tree.remove(topic_filter, node)
        for shared_filter in peer.parts:
            self._remove_part(node, shared_filter)
        self._turn.routes_changed = True

    def validate(self) -> None:
        """Check the invariants."""
        wanted = sum([len(filters) for filters in self._estates.values()])
        assert len(self._tree) == wanted + sum([peer.count for peer in self._peers.values()])
        assert len(self._group_tree) == len(self._groups)
        parts = 0
        for group in self._groups.values():
            assert group.parts
            for node, part in group.parts.items():
                assert self._peers[node].parts[group.shared_filter] is part
                assert part.running == (node in self._running)
            parts += len(group.parts)
        assert parts == sum([len(peer.parts) for peer in self._peers.values()])


def is_shared(topic_filter: bytes) -> bool:
    """Say whether this is the shared filter of a group."""
    return topic_filter.startswith(SHARE_PREFIX)


def _topic_filter(shared_filter: bytes) -> bytes:
    parts = shared_group(shared_filter)
    assert parts is not None
    return parts[1]
