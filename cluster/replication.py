"""Replication: how the members come to hold each other's tables.

Owns the talk of tables on the control connections: deltas, positions in heartbeats, requests and their answers. What
they mean `tables` says; it knows nothing of rows.

A replica that is not where its owner says that the table stands asks for what differs, and asks again when
PATIENCE_HEARTBEATS brought neither an answer nor a part of one. Requests are answered at the beginning of the next
turn, when all that was told is committed; only the newest request of a peer counts.
"""

from typing import Final, final

from cluster.frames import TablePosition
from cluster.own_tables import OwnTables
from cluster.peers import Peer, Peers
from cluster.table_frames import (
    TableRequest,
    pack_table_request,
    unpack_table_delta,
    unpack_table_done,
    unpack_table_request,
    unpack_table_rows,
)
from cluster.turn import Turn

PATIENCE_HEARTBEATS: Final = 2


@final
class Replication:
    """This node's half of the talk of tables; each `receive_*` returns whether a table is known now that was not."""

    def __init__(self, peers: Peers, own: OwnTables, turn: Turn) -> None:
        self._peers = peers
        self._own = own
        self._turn = turn
        self._requests: dict[tuple[str, int], TableRequest] = {}

    def begin(self) -> None:
        """Answer what was asked for; everything that was told is committed.

        What changed while the mesh was frozen is told at the end of this turn, and then it is the next one's to answer.
        """
        if not self._requests or any(table.is_untold() for table in self._own.all.values()):
            return
        requests, self._requests = self._requests, {}
        for (node, table), request in requests.items():
            peer = self._peers.all.get(node)
            if peer is not None:
                for frame in self._own.all[table].answer(request):
                    self._peers.send(peer, frame)

    def has_requests(self) -> bool:
        """Say whether `begin` has something to do."""
        return bool(self._requests)

    def tell(self) -> None:
        """Tell everybody what changed of this node's own tables."""
        self._own.settle(self.is_complete())
        peers = [peer for peer in self._peers.all.values() if peer.liveness.connected]
        for table in self._own.all.values():
            for delta in table.take_deltas(bool(peers)):
                for peer in peers:
                    self._peers.send(peer, delta)

    def is_complete(self) -> bool:
        """Say whether every member runs, and this node knows all tables of each."""
        return all(peer.running and peer.tables.is_current() for peer in self._peers.all.values())

    def is_current(self, since: float) -> bool:
        """Say whether this node knows the tables of every running member as they were then or later."""
        return all(
            peer.tables.told_at >= since and peer.tables.is_current()
            for peer in self._peers.all.values()
            if peer.running
        )

    def positions(self, peer: Peer) -> list[TablePosition]:
        """Return where this node's tables stand, and what it knows of the peer's; frozen it knows nothing new."""
        frozen = self._turn.frozen
        return [own.position(0 if frozen else peer.tables.known_version(table)) for table, own in self._own.all.items()]

    def hear(self, peer: Peer, positions: list[TablePosition], now: float) -> bool:
        """Take what a heartbeat says; true if this node knows a table now that it did not know."""
        learnt = False
        peer.tables.told_at = now
        for position in positions:
            replica = peer.tables.replicas.get(position.table)
            if replica is None:
                # Of a newer program; this one makes nothing of it.
                continue
            peer.tables.told[position.table] = position
            peer.tables.agrees[position.table] = replica.is_at(position)
            if self._turn.frozen or replica.is_at(position):
                continue
            if replica.hear(position):
                learnt = True
                peer.tables.agrees[position.table] = True
            else:
                self._ask(peer, position.table, now, False)
        return learnt

    def receive_delta(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take a delta; if it does not follow, ask for what differs."""
        delta = unpack_table_delta(frame)
        replica = peer.tables.replicas.get(delta.table)
        if replica is not None and not replica.receive_delta(delta):
            self._ask(peer, delta.table, now, False)
        return False

    def receive_request(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take a request, for `begin` of the next turn."""
        request = unpack_table_request(frame)
        if request.table in self._own.all:
            self._requests[peer.name, request.table] = request
        return False

    def receive_rows(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take a part of an answer."""
        rows = unpack_table_rows(frame)
        replica = peer.tables.replicas.get(rows.table)
        if replica is not None:
            # A long one is not asked for again while it arrives.
            peer.tables.asked_at[rows.table] = now
            replica.receive_rows(rows)
        return False

    def receive_done(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take the end of an answer, and ask for the next if there is more."""
        done = unpack_table_done(frame)
        replica = peer.tables.replicas.get(done.table)
        if replica is None:
            return False
        if replica.receive_done(done):
            self._ask(peer, done.table, now, True)
            return False
        return replica.known_version(done.generation) > 0

    def _ask(self, peer: Peer, table: int, now: float, at_once: bool) -> None:
        patience_s = 0.0 if at_once else PATIENCE_HEARTBEATS * self._peers.heartbeat_s
        if peer.liveness.connected and peer.tables.may_ask(table, now, patience_s):
            peer.tables.asked_at[table] = now
            self._turn.count("table_requests")
            self._peers.send(peer, pack_table_request(peer.tables.replicas[table].request()))
