"""Replication: how the members come to hold each other's tables.

Owns the talk of tables: deltas, positions, requests and their answers. What they mean `tables` says; it knows nothing
of rows.

All is said on the control connections, positions in heartbeats, but for what a node tells of RETAINED: that goes on the
bulk connection, in frames that name its session, since it is as long as messages are, and heartbeats must not wait
behind it. In a turn it goes ahead of the forwarded messages. So a node knows the row of a retained message before it
delivers the message to those who subscribe already, and nobody who subscribes after them is replayed the one before. A
turn's row leaves with the commit that its PUBACK waits for, and no later than that. What a peer does not keep up with
(BULK_BYTES_MAX), or gets while its store takes no writes, is lost on the way, and repaired: then a message may be there
before its row.

A replica that is not where its owner says that the table stands asks for what differs, and asks again when
PATIENCE_HEARTBEATS brought neither an answer nor a part of one. Requests are answered at the beginning of the next
turn, when all that was told is committed; only the newest request of a peer counts.

Members may hear a node that do not hear each other. So each tells the others how far everybody knows what it told.
"""

import math
from typing import Final, final

from broker.core.rows import Table
from cluster.commands import SendBulk
from cluster.frames import TablePosition
from cluster.own_tables import OwnTables
from cluster.peers import Peer, Peers
from cluster.table_frames import (
    TableRequest,
    pack_position,
    pack_table_bulk,
    pack_table_request,
    unpack_position,
    unpack_table_delta,
    unpack_table_done,
    unpack_table_request,
    unpack_table_rows,
)
from cluster.turn import Turn

PATIENCE_HEARTBEATS: Final = 2
# What a peer is told of a table on the bulk connection before it has said that it got on with what it was told.
BULK_BYTES_MAX: Final = 8 * 1024 * 1024
# So long after a member is forgotten, and all that are left are known, others may still ask whose sessions are over.
ENDED_S: Final = 10.0


@final
class Replication:
    """This node's half of the talk of tables; each `receive_*` returns whether a table is known now that was not."""

    def __init__(self, peers: Peers, own: OwnTables, turn: Turn) -> None:
        self._peers = peers
        self._own = own
        self._turn = turn
        self._requests: dict[tuple[str, int], TableRequest] = {}
        # Until when nothing is forgotten of sessions that are over.
        self._ended_until: float = -math.inf

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
                    self._send(peer, table, frame)

    def has_requests(self) -> bool:
        """Say whether `begin` has something to do."""
        return bool(self._requests)

    def tell(self, now: float) -> None:
        """Tell everybody what changed of this node's own tables."""
        self._own.settle(self._are_ends_known(now))
        peers = [peer for peer in self._peers.all.values() if peer.liveness.connected]
        for table in self._own.all.values():
            for delta in table.take_deltas(bool(peers)):
                for peer in peers:
                    if peer.tables.bulk_bytes < BULK_BYTES_MAX or table.table != Table.RETAINED:
                        self._send(peer, table.table, delta)
        self._own.told()

    def _are_ends_known(self, now: float) -> bool:
        """Say whether all members know which sessions are over, and nobody needs it any more.

        Who hears late that a member was removed has to know it then: what it kept for that one is not for them.
        """
        is_complete = self.is_complete()
        if not is_complete and self.may_have_estates(now):
            self._ended_until = now + ENDED_S
        return is_complete and not self.may_have_estates(now)

    def may_have_estates(self, now: float) -> bool:
        """Say whether members may have yet to give what they kept for one that was forgotten."""
        return now < max(self._ended_until, self._peers.forgot_at + ENDED_S)

    def is_complete(self, besides: str = "") -> bool:
        """Say whether every member but `besides` runs, and this node knows the sessions and wishes of each."""
        return all(
            peer.running and peer.tables.is_current() for name, peer in self._peers.all.items() if name != besides
        )

    def behind(self, since: float) -> list[str]:
        """Return the running members whose tables this node does not know as they were then or later."""
        return [
            peer.name
            for peer in self._peers.all.values()
            if peer.running and not (peer.tables.told_at >= since and peer.tables.is_current())
        ]

    def is_known_to(self, peer: Peer) -> bool:
        """Say whether a peer said last that it knows all tables of this node as they are now."""
        told = peer.tables.told
        return all(number in told and told[number].known > table.version for number, table in self._own.all.items())

    def lasting_known(self, besides: Peer) -> int:
        """Return the version plus one of what outlives a start here that all members but one said last they know."""
        others = [peer.tables.knows_of_lasting() for peer in self._peers.all.values() if peer is not besides]
        return min(others, default=self._own.all[Table.LASTING].version + 1)

    def positions(self, peer: Peer) -> list[TablePosition]:
        """Return where this node's tables stand, and what it knows of the peer's; frozen it knows nothing new."""
        return [self._position(peer, table) for table in self._own.all if table != Table.RETAINED]

    def tell_bulk_position(self, peer: Peer) -> None:
        """Say on the bulk connection where the table stands that is told there."""
        self._send(peer, Table.RETAINED, pack_position(self._position(peer, Table.RETAINED)))

    def retained_current_at(self) -> float:
        """Return when the last of all members said where its retained messages stand, which this node knows.

        It is infinity when there are no others, and -infinity while one does not run, or is not known.
        """
        current_at = math.inf
        for peer in self._peers.all.values():
            if not peer.running or not peer.tables.is_retained_current():
                return -math.inf
            current_at = min(current_at, peer.tables.retained_told_at)
        return current_at

    def known_retained(self) -> int:
        """Return the version of this node's retained messages that every member has said it knows, -1 if not all."""
        known = self._own.all[Table.RETAINED].version
        for peer in self._peers.all.values():
            known = min(known, peer.tables.known_retained())
        return known

    def hear(self, peer: Peer, positions: list[TablePosition], lasting_known: int, now: float) -> bool:
        """Take what a heartbeat says; true if this node knows a table now that it did not know."""
        learnt = False
        peer.tables.told_at = now
        for position in positions:
            if position.table == Table.LASTING and lasting_known:
                peer.tables.known_to_others = (position.generation, lasting_known)
            if self._hear(peer, position, now):
                learnt = True
        return learnt

    def receive_position(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take where a table stands; true if this node knows it now and did not."""
        position = unpack_position(frame)
        last = peer.tables.told.get(position.table)
        if last is None or position.known > last.known:
            peer.tables.bulk_bytes = 0
        peer.tables.retained_told_at = now
        return self._hear(peer, position, now)

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
            if request.table == Table.RETAINED:
                peer.tables.bulk_bytes = 0
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

    def _hear(self, peer: Peer, position: TablePosition, now: float) -> bool:
        replica = peer.tables.replicas.get(position.table)
        if replica is None:
            # Of a newer program; this one makes nothing of it.
            return False
        peer.tables.told[position.table] = position
        peer.tables.agrees[position.table] = replica.is_at(position)
        if self._turn.frozen or replica.is_at(position):
            return False
        if replica.hear(position):
            peer.tables.agrees[position.table] = True
            return True
        self._ask(peer, position.table, now, False)
        return False

    def _position(self, peer: Peer, table: int) -> TablePosition:
        return self._own.all[table].position(0 if self._turn.frozen else peer.tables.known_version(table))

    def _send(self, peer: Peer, table: int, frame: bytes) -> None:
        if table != Table.RETAINED:
            self._peers.send(peer, frame)
        elif peer.outgoing.open:
            peer.tables.bulk_bytes += len(frame)
            self._turn.commands.append(SendBulk(peer.name, pack_table_bulk(peer.outgoing.session, frame)))

    def _ask(self, peer: Peer, table: int, now: float, at_once: bool) -> None:
        patience_s = 0.0 if at_once else PATIENCE_HEARTBEATS * self._peers.heartbeat_s
        if peer.liveness.connected and peer.tables.may_ask(table, now, patience_s):
            peer.tables.asked_at[table] = now
            self._turn.count("table_requests")
            self._peers.send(peer, pack_table_request(peer.tables.replicas[table].request()))
