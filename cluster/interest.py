"""Interest: what the other nodes want, and what this node tells them that it wants.

Owns the tree of the others' filters, this node's own wishes with their version, and a checksum for each side. It
knows nothing of sessions, connections or frames' timing; `mesh` carries what it packs.

Theory of operation
-------------------
A node's wishes are numbered: (incarnation, version), where the incarnation is the node's count of restarts, since own
wishes are rebuilt at a start. Every change makes a delta with the next version, pushed to all running members. A peer
applies a delta that follows what it has, ignores an older one, and asks for a snapshot when there is a hole. Heartbeats
carry version and checksum: what was lost or broken is found within one of them, whatever the reason.

The checksum is a sum of hashes, modulo 2**64, so that a change costs one hash and the order does not matter.

What a peer wants stays known while the peer is down: messages for its persistent filters wait for it. Filters without
a persistent session count for a running peer only. A new snapshot replaces everything of that peer at once.

Invariants: the tree holds exactly the filters of all peers; every checksum is that of its filters.
"""

from hashlib import blake2b
from typing import Final, final

from broker.core.effects import InterestChange
from broker.core.topic_tree import TopicTree
from cluster.frames import (
    FRAME_BYTES_MAX,
    InterestDelta,
    InterestSnapshot,
    pack_interest_delta,
    pack_interest_snapshot,
    pack_wish,
)

_MASK: Final = (1 << 64) - 1


def wish_hash(topic_filter: bytes, persistent: bool) -> int:
    """Return the 64 bits that a wish adds to a checksum."""
    digest = blake2b(topic_filter, digest_size=8, person=b"persistent" if persistent else b"passing").digest()
    return int.from_bytes(digest, "big")


@final
class PeerInterest:
    """What one peer wants, as far as it is known here."""

    def __init__(self) -> None:
        self.filters: dict[bytes, bool] = {}
        self.checksum = 0
        # (0, 0) is before every incarnation: what the store remembered is used but has to be asked for again.
        self.incarnation = 0
        self.version = 0
        # Parts of a snapshot that is still arriving.
        self.parts: dict[bytes, bool] = {}
        self.next_part = 0
        self.parts_of = (0, 0)


@final
class InterestTable:
    """The wishes of all nodes; `match` is what the queue-owner asks."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        # What was told last; changes since then are in `_changes` and `_checksum`.
        self.version = 0
        self.checksum = 0
        self._checksum = 0
        self._own: dict[bytes, bool] = {}
        self._changes: list[bytes] = []
        self._peers: dict[str, PeerInterest] = {}
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

    def set_running(self, node: str, running: bool) -> bool:
        """Say whether a peer runs; true if that changes routes."""
        if running == (node in self._running):
            return False
        if running:
            self._running.add(node)
        else:
            self._running.discard(node)
        peer = self._peers.get(node)
        return peer is not None and bool(peer.filters)

    def change(self, topic_filter: bytes, wanted: bool, persistent: bool) -> None:
        """Note a change of this node's own wishes; the next `take_deltas` tells it."""
        known = self._own.get(topic_filter)
        if wanted:
            if known is not None and known == persistent:
                return
            if known is not None:
                self._checksum = (self._checksum - wish_hash(topic_filter, known)) & _MASK
            self._own[topic_filter] = persistent
            self._checksum = (self._checksum + wish_hash(topic_filter, persistent)) & _MASK
        else:
            if known is None:
                return
            del self._own[topic_filter]
            self._checksum = (self._checksum - wish_hash(topic_filter, known)) & _MASK
        self._changes.append(pack_wish(topic_filter, wanted, persistent))

    def apply_changes(self, changes: list[InterestChange]) -> None:
        """Note changes as the queue-owner reports them."""
        for change in changes:
            self.change(change.topic_filter, change.wanted, change.persistent)

    def take_deltas(self) -> list[bytes]:
        """Return the frames that tell the changes since the last call, each with the next version."""
        if not self._changes:
            return []
        frames = []
        for wishes in _split(self._changes):
            self.version += 1
            frames.append(pack_interest_delta(self.incarnation, self.version, wishes))
        self._changes = []
        self.checksum = self._checksum
        return frames

    def snapshot(self) -> list[bytes]:
        """Return the frames of a snapshot; call `take_deltas` before, for it holds the newest state."""
        assert not self._changes, "a snapshot must have the version of what it holds"
        parts = _split([pack_wish(topic_filter, True, persistent) for topic_filter, persistent in self._own.items()])
        if not parts:
            parts = [[]]
        last = len(parts) - 1
        return [
            pack_interest_snapshot(self.incarnation, self.version, part, part == last, wishes)
            for part, wishes in enumerate(parts)
        ]

    def current(self, node: str, incarnation: int, version: int, checksum: int) -> bool:
        """Say whether this node knows exactly this state of the peer's wishes."""
        peer = self._peers.get(node)
        return (
            peer is not None
            and peer.incarnation == incarnation
            and peer.version == version
            and peer.checksum == checksum
        )

    def known_version(self, node: str) -> tuple[int, int]:
        """Return (incarnation, version) of what is known of the peer, (0, 0) if nothing was told."""
        peer = self._peers.get(node)
        return (0, 0) if peer is None else (peer.incarnation, peer.version)

    def receive_delta(self, node: str, delta: InterestDelta) -> bool:
        """Apply a delta; false if it does not follow what is known, so that a snapshot is needed."""
        peer = self._peers.get(node)
        if peer is None or peer.incarnation != delta.incarnation or delta.version > peer.version + 1:
            return False
        if delta.version <= peer.version:
            return True
        for wish in delta.wishes:
            if wish.wanted:
                self._set(node, peer, wish.topic_filter, wish.persistent)
            else:
                self._unset(node, peer, wish.topic_filter)
        peer.version = delta.version
        return True

    def receive_snapshot(self, node: str, snapshot: InterestSnapshot) -> bool:
        """Take one part of a snapshot; true when it was the last and everything is replaced."""
        peer = self._peer(node)
        if snapshot.part == 0:
            peer.parts = {}
            peer.next_part = 0
            peer.parts_of = (snapshot.incarnation, snapshot.version)
        if snapshot.part != peer.next_part or (snapshot.incarnation, snapshot.version) != peer.parts_of:
            # A part was lost; the next heartbeat shows that the snapshot is still missing.
            return False
        peer.next_part += 1
        for wish in snapshot.wishes:
            peer.parts[wish.topic_filter] = wish.persistent
        if not snapshot.last:
            return False
        parts = peer.parts
        peer.parts = {}
        peer.next_part = 0
        for topic_filter in [known for known in peer.filters if known not in parts]:
            self._unset(node, peer, topic_filter)
        for topic_filter, persistent in parts.items():
            self._set(node, peer, topic_filter, persistent)
        peer.incarnation = snapshot.incarnation
        peer.version = snapshot.version
        return True

    def restore(self, node: str, topic_filter: bytes) -> None:
        """Put back a persistent filter that the store remembered of a peer."""
        self._set(node, self._peer(node), topic_filter, True)

    def persistent_filters(self, node: str) -> list[bytes]:
        """Return the peer's persistent filters."""
        peer = self._peers.get(node)
        return [] if peer is None else [known for known, persistent in peer.filters.items() if persistent]

    def forget(self, node: str) -> None:
        """Drop everything of a node that is no member any more."""
        self._running.discard(node)
        peer = self._peers.pop(node, None)
        if peer is not None:
            for topic_filter in peer.filters:
                self._tree.remove(topic_filter, node)

    def validate(self) -> None:
        """Check the invariants."""
        count = 0
        for peer in self._peers.values():
            count += len(peer.filters)
            assert peer.checksum == _sum(peer.filters)
        assert count == len(self._tree)
        assert self._checksum == _sum(self._own)
        assert self._changes or self.checksum == self._checksum

    def _peer(self, node: str) -> PeerInterest:
        peer = self._peers.get(node)
        if peer is None:
            peer = PeerInterest()
            self._peers[node] = peer
        return peer

    def _set(self, node: str, peer: PeerInterest, topic_filter: bytes, persistent: bool) -> None:
        known = peer.filters.get(topic_filter)
        if known is not None:
            if known == persistent:
                return
            peer.checksum = (peer.checksum - wish_hash(topic_filter, known)) & _MASK
        peer.filters[topic_filter] = persistent
        peer.checksum = (peer.checksum + wish_hash(topic_filter, persistent)) & _MASK
        self._tree.set(topic_filter, node, persistent)

    def _unset(self, node: str, peer: PeerInterest, topic_filter: bytes) -> None:
        known = peer.filters.pop(topic_filter, None)
        if known is not None:
            peer.checksum = (peer.checksum - wish_hash(topic_filter, known)) & _MASK
            self._tree.remove(topic_filter, node)


def _sum(filters: dict[bytes, bool]) -> int:
    total = 0
    for topic_filter, persistent in filters.items():
        total = (total + wish_hash(topic_filter, persistent)) & _MASK
    return total


def _split(wishes: list[bytes]) -> list[list[bytes]]:
    """Divide packed wishes into what fits one frame each."""
    parts: list[list[bytes]] = []
    # A filter has at most 64 KiB, so that every wish fits a frame.
    size = FRAME_BYTES_MAX
    for wish in wishes:
        if size + len(wish) > FRAME_BYTES_MAX - 64:
            parts.append([])
            size = 0
        parts[-1].append(wish)
        size += len(wish)
    return parts
