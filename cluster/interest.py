"""Interest: what the other nodes want.

Owns the tree of the others' filters, which the INTEREST rows of their tables make, and the copy in the store of those
that outlive a connection. It knows nothing of sessions, connections or of how rows come here.

What a peer wants stays known while the peer is down, over a restart of this node too: messages for its persistent
filters wait for it. Filters without a persistent session count for a running peer only.

There may be very many filters, so the tree is all that is kept of them; to forget a peer is to look through it.

Invariants: the tree holds exactly the filters of all peers; each peer's `count` is that of its own.
"""

from typing import final

from broker.core.rows import row_subject, unpack_interest
from broker.core.topic_tree import TopicTree
from cluster.mesh_store import MeshStore
from cluster.turn import Turn


@final
class PeerWishes:
    """How many filters a peer wants."""

    def __init__(self, store_id: bytes) -> None:
        self.store_id = store_id
        self.count = 0


@final
class PeerInterest:
    """The wishes of all other nodes; `match` is what the queue-owner asks."""

    def __init__(self, store: MeshStore, turn: Turn) -> None:
        self._store = store
        self._turn = turn
        self._peers: dict[str, PeerWishes] = {}
        # Who wants a filter, and whether that is persistent.
        self._tree: TopicTree[str, bool] = TopicTree()
        self._running: set[str] = set()

    def match(self, topic: bytes) -> list[tuple[str, bool]]:
        """Return (node, persistent) of every other node that wants the topic now or when it is back."""
        found: dict[str, bool] = {}
        for node, persistent in self._tree.match(topic):
            if persistent:
                found[node] = True
            elif node in self._running and node not in found:
                found[node] = False
        return list(found.items())

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

    def add_peer(self, node: str, store_id: bytes, restoring: bool) -> list[bytes]:
        """Begin with nothing, or with what the store remembers of a peer: return its persistent filters."""
        peer = PeerWishes(store_id)
        self._peers[node] = peer
        if not restoring:
            return []
        filters = self._store.interest(store_id)
        for topic_filter in filters:
            self._tree.set(topic_filter, node, True)
            self._turn.routes_changed = True
        peer.count = len(filters)
        return filters

    def set_row(self, node: str, row: bytes, value: bytes) -> None:
        """A peer wants a filter."""
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

    def remove_row(self, node: str, row: bytes) -> None:
        """A peer does not want a filter any more."""
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
        """Return the peer's persistent filters, after a look through all filters."""
        return [wanted for wanted, of, persistent in self._tree.items() if of == node and persistent]

    def forget(self, node: str) -> None:
        """Drop everything of a node that is no member any more."""
        self._running.discard(node)
        peer = self._peers.pop(node)
        self._store.clear_interest(peer.store_id)
        for topic_filter in [wanted for wanted, of, _ in self._tree.items() if of == node]:
            self._tree.remove(topic_filter, node)
        self._turn.routes_changed = True

    def validate(self) -> None:
        """Check the invariants."""
        assert len(self._tree) == sum([peer.count for peer in self._peers.values()])
