"""Copies: the tables of a member that does not run, as other members hold them.

Owns which members were asked what they know of one that is down, and how far that is. What a table is, and how it is
told, `tables` says.

Theory of operation
-------------------
A member tells its tables itself. Who joins while it is down, or was down when it told something last, knows less of it
than others, and would keep nothing for its sessions. So all members that run are asked, one after the other, whether
they know more; each is asked again when its connection, or that of the member that is down, was another one since. If
one does not answer, it is the next one's turn.

    asker:  TABLE_COPY(owner, as what it knows the table, TABLE_REQUEST(round, first bucket, sums from there on))
    member: TABLE_COPY(owner, TABLE_ROWS(round, part))*,
            TABLE_COPY(owner, TABLE_DONE(round, parts, generation, version, next bucket))

A member knows a table as it was at a generation and version (`Replica.known`), which is stored with it. The generations
of an owner grow, so of two that is later which has the higher pair; who knows nothing later answers with TABLE_DONE
alone. Of the wishes only those that outlive a connection are copied, and only added: that they are as old as what they
follow from, the sessions, is all that is known of them.

Who asks does so at once: what is published until it knows is lost for those sessions. Where the owner runs, as after a
start when not all are connected yet, there is no answer: it tells its tables itself. But who has not heard it for
`failure_timeout_s` is cut off from it, and says so (`is_cut_off`).

What was copied is like what a restart finds in the store: right as far as anybody knows, and not current.

Invariants: at most one member at a time is asked for a table of another, and neither is this node.
"""

import math
from typing import Final, final

from broker.core.rows import BUCKETS, Table
from cluster.commands import SendBulk
from cluster.frames import FrameType
from cluster.peers import HEARTBEATS_PER_TIMEOUT, Peer, Peers
from cluster.table_frames import (
    TableCopy,
    TableDone,
    TableRequest,
    pack_table_bulk,
    pack_table_copy,
    pack_table_done,
    pack_table_request,
    unpack_table_copy,
    unpack_table_done,
    unpack_table_request,
    unpack_table_rows,
)
from cluster.tables import pack_answer
from cluster.turn import Turn

PATIENCE_HEARTBEATS: Final = 2
TRIES_MAX: Final = 2
# What a table is as old as: the wishes follow from the sessions. They come first: who stops in between asks again.
_AS_OLD_AS: Final = {Table.RETAINED: Table.RETAINED, Table.PASSING: Table.LASTING, Table.LASTING: Table.LASTING}
_ORDER: Final = (Table.RETAINED, Table.PASSING, Table.LASTING)


@final
class Asked:
    """A member that is asked what it knows of another one: for which table, and from which bucket on."""

    __slots__ = ("asked_at", "first", "member", "session", "tables", "tries")

    def __init__(self, member: Peer) -> None:
        self.member = member.name
        self.session = member.session
        self.tables = list(_ORDER)
        self.first = 0
        self.asked_at = -math.inf
        # How often without an answer.
        self.tries = 0


@final
class Copies:
    """This node's half of the talk about members that are down."""

    def __init__(self, peers: Peers, turn: Turn) -> None:
        self._peers = peers
        self._turn = turn
        # By the name of the member that is down.
        self._asked: dict[str, Asked] = {}
        # The same -> who has said all that it knows, and by which session; since when it is down, or not known to run.
        self._heard: dict[str, dict[str, int]] = {}
        self._down_since: dict[str, float] = {}
        # (who asks, store id of the owner, table) -> what it asks.
        self._requests: dict[tuple[str, bytes, int], TableCopy] = {}

    def begin(self) -> None:
        """Answer what was asked for; everything that was written is committed."""
        requests, self._requests = self._requests, {}
        for (node, store_id, _), copy in requests.items():
            peer = self._peers.all.get(node)
            if peer is not None:
                self._answer(peer, store_id, copy)

    def has_requests(self) -> bool:
        """Say whether `begin` has something to do."""
        return bool(self._requests)

    def tick(self, now: float) -> None:
        """Ask about members that are down whoever has not been asked yet, or does not answer."""
        for name in [each for each in self._down_since if self._is_over(each)]:
            del self._down_since[name]
            self._asked.pop(name, None)
            self._heard.pop(name, None)
        for owner in self._peers.all.values():
            if owner.running:
                continue
            self._down_since.setdefault(owner.name, now)
            asked = self._asked.get(owner.name)
            if asked is None or not self._may_answer(asked, now):
                asked = self._next(owner.name, "" if asked is None else asked.member)
            if asked is not None and now >= self._again_at(asked):
                asked.tries += 1
                self._ask(owner, asked, now)

    def deadline(self) -> float:
        """Return when `tick` has something to do though nothing was heard; infinity when never."""
        return min([self._again_at(asked) for asked in self._asked.values()], default=math.inf)

    def receive(self, peer: Peer, frame: bytes, now: float) -> bool:
        """Take what a member asks, or says, of another one; FrameError if it can't be read."""
        copy = unpack_table_copy(frame)
        kind = copy.frame[1]
        owner = self._owner(copy.store_id)
        if kind == FrameType.TABLE_REQUEST:
            request = unpack_table_request(copy.frame)
            if owner is None:
                # Nothing is kept for a name that anybody could make up.
                self._send(peer, copy.store_id, request.table, [_nothing_later(request, (0, 0))])
            else:
                self._requests[peer.name, copy.store_id, request.table] = copy
            return False
        asked = None if owner is None else self._asked.get(owner.name)
        if owner is None or asked is None or asked.member != peer.name or owner.running:
            return False
        if kind == FrameType.TABLE_ROWS:
            rows = unpack_table_rows(copy.frame)
            if rows.table == asked.tables[0]:
                asked.asked_at, asked.tries = now, 0
                owner.tables.receive_copied(rows)
            return False
        done = unpack_table_done(copy.frame)
        if done.table == asked.tables[0] and owner.tables.replicas[done.table].ends_round(done):
            self._done(owner, asked, done, now)
        return False

    def validate(self) -> None:
        """Check the invariants."""
        for name, asked in self._asked.items():
            assert asked.member != name
            assert asked.tables

    def _again_at(self, asked: Asked) -> float:
        return asked.asked_at + PATIENCE_HEARTBEATS * self._peers.heartbeat_s

    def _is_over(self, name: str) -> bool:
        owner = self._peers.all.get(name)
        return owner is None or owner.running

    def _may_answer(self, asked: Asked, now: float) -> bool:
        member = self._peers.all.get(asked.member)
        is_there = member is not None and member.running and member.session == asked.session
        return is_there and (asked.tries < TRIES_MAX or now < self._again_at(asked))

    def _next(self, name: str, last: str) -> Asked | None:
        """Begin to ask a member that was not asked yet of what it knows of this one, the next after the last one."""
        self._asked.pop(name, None)
        heard = self._heard.get(name, {})
        left = [
            member
            for member in self._peers.all.values()
            if member.running and member.outgoing.open and heard.get(member.name) != member.session
        ]
        if not left:
            return None
        asked = Asked(min(left, key=lambda member: (member.name <= last, member.name)))
        self._asked[name] = asked
        return asked

    def _ask(self, owner: Peer, asked: Asked, now: float) -> None:
        asked.asked_at = now
        table = asked.tables[0]
        generation, version = owner.tables.known(_AS_OLD_AS[table])
        request = pack_table_request(owner.tables.replicas[table].request_from(asked.first))
        is_cut_off = now >= self._down_since[owner.name] + HEARTBEATS_PER_TIMEOUT * self._peers.heartbeat_s
        frame = pack_table_copy(TableCopy(owner.store_id, is_cut_off, generation, version, request))
        self._peers.send(self._peers.all[asked.member], frame)

    def _done(self, owner: Peer, asked: Asked, done: TableDone, now: float) -> None:
        asked.tries = 0
        is_later = (done.generation, done.version) > owner.tables.known(_AS_OLD_AS[asked.tables[0]])
        if is_later and done.next < BUCKETS:
            asked.first = done.next
            self._ask(owner, asked, now)
            return
        table = asked.tables.pop(0)
        asked.first = 0
        if is_later and table != Table.PASSING:
            self._turn.count("tables_copied")
            owner.tables.replicas[table].copied(done.generation, done.version)
        if not is_later and table == Table.PASSING:
            asked.tables.clear()
        if asked.tables:
            self._ask(owner, asked, now)
        else:
            del self._asked[owner.name]
            self._heard.setdefault(owner.name, {})[asked.member] = asked.session

    def _answer(self, peer: Peer, store_id: bytes, copy: TableCopy) -> None:
        request = unpack_table_request(copy.frame)
        owner = self._owner(store_id)
        if owner is None or (owner.running and not copy.is_cut_off):
            # Who asks hears of a removal, or of the owner, by other ways.
            return
        known = owner.tables.known(_AS_OLD_AS[Table(request.table)])
        if known <= (copy.generation, copy.version):
            self._send(peer, store_id, request.table, [_nothing_later(request, known)])
        else:
            sums = owner.tables.replicas[request.table].sums
            frames = pack_answer(request, sums, owner.tables.copy_of(request.table), *known)
            self._send(peer, store_id, request.table, frames)

    def _send(self, peer: Peer, store_id: bytes, table: int, frames: list[bytes]) -> None:
        for frame in frames:
            frame = pack_table_copy(TableCopy(store_id, False, 0, 0, frame))
            if table != Table.RETAINED:
                self._peers.send(peer, frame)
            elif peer.outgoing.open:
                # As long as messages are: heartbeats must not wait behind it.
                peer.tables.bulk_bytes += len(frame)
                self._turn.commands.append(SendBulk(peer.name, pack_table_bulk(peer.outgoing.session, frame)))

    def _owner(self, store_id: bytes) -> Peer | None:
        for peer in self._peers.all.values():
            if peer.store_id == store_id:
                return peer
        return None


def _nothing_later(request: TableRequest, known: tuple[int, int]) -> bytes:
    """Return the answer of who knows nothing later than the asker, but a table as it was at this point."""
    return pack_table_done(TableDone(request.table, request.round, 0, *known, BUCKETS))
