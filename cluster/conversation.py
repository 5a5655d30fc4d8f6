"""Conversation: what members say to each other on their control connections, and what each sentence does.

Owns the greeting, heartbeats, gossip of members and of planned stops, and the links' positions; what is said of tables
goes to `replication`. It knows nothing of strangers (`admission`) or of the messages that the links carry.

A control connection begins with Hello, which is repeated until POSITIONS answers it; then heartbeats follow. Nothing
is lost for good when a frame is: a heartbeat carries the position (an acknowledgement), where the tables stand and the
digest of the membership, and whoever sees a difference asks or tells.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final, final

from cluster.checks import Checks
from cluster.commands import ConnectPeer, SendBulk
from cluster.copies import Copies
from cluster.frames import (
    FrameType,
    Heartbeat,
    Hello,
    Refusal,
    pack_heartbeat,
    pack_link_ack,
    pack_members,
    pack_positions,
    pack_stopping,
    pack_stops,
    unpack_heartbeat,
    unpack_members,
    unpack_position,
    unpack_refused,
    unpack_stops,
)
from cluster.joining import Joining
from cluster.membership import State
from cluster.peers import Peer, Peers
from cluster.replication import Replication
from cluster.statuses import Statuses
from cluster.table_frames import unpack_table_bulk
from cluster.turn import Turn
from cluster.wire import FrameError

# The first and the last pause before this node tries again where its key was refused; each pause doubles the last.
REFUSED_RETRY_S: Final = 0.2
REFUSED_RETRY_MAX_S: Final = 3.0
# After so many refusals of its key or its Hello it introduces itself with the join key.
REFUSALS_BEFORE_INTRODUCTION: Final = 3
# A session number is the count of the node's starts, and below that of its connections.
_LIFE_SHIFT: Final = 32


@final
class Conversation:
    """This node's half of every control connection."""

    def __init__(
        self,
        peers: Peers,
        replication: Replication,
        copies: Copies,
        checks: Checks,
        statuses: Statuses,
        joining: Joining,
        turn: Turn,
        incarnation: int,
    ) -> None:
        self._peers = peers
        self._replication = replication
        self._joining = joining
        self._turn = turn
        self._heartbeat_s = peers.heartbeat_s
        # Sessions of this node grow over its restarts, too.
        self._session = incarnation << _LIFE_SHIFT
        self._handlers: dict[int, Callable[[Peer, bytes, float], None]] = {
            FrameType.HEARTBEAT: self._receive_heartbeat,
            FrameType.MEMBERS: self._receive_members,
            FrameType.POSITIONS: self._receive_positions,
            FrameType.LINK_ACK: self._receive_link_ack,
            FrameType.STOPPING: self._receive_stopping,
            FrameType.STOPS: self._receive_stops,
            FrameType.CHECK: checks.receive_check,
            FrameType.CHECKED: checks.receive_checked,
            FrameType.LOOK: statuses.receive_look,
            FrameType.STATUS: statuses.receive_status,
        }
        self._table_handlers: dict[int, Callable[[Peer, bytes, float], bool]] = {
            FrameType.TABLE_DELTA: replication.receive_delta,
            FrameType.TABLE_REQUEST: replication.receive_request,
            FrameType.TABLE_ROWS: replication.receive_rows,
            FrameType.TABLE_DONE: replication.receive_done,
            FrameType.TABLE_POSITION: replication.receive_position,
            FrameType.TABLE_COPY: copies.receive,
        }

    def connected(self, peer: Peer, now: float) -> None:
        """The control connection to the peer is up: greet."""
        self._session += 1
        peer.outgoing.connected(self._session)
        peer.retry_at = math.inf
        peer.liveness.connection_opened(now)
        self._peers.update_running(peer)
        self._peers.send(peer, self._peers.hello(peer.outgoing.session, False))
        peer.heartbeat_at = now + self._heartbeat_s
        if peer.session:
            peer.incoming.position_due = True

    def key_refused(self, peer: Peer, now: float) -> None:
        """The peer does not admit this node's key; the transport leaves it at that."""
        self._peers.disconnected(peer, now)
        pause_s: float = REFUSED_RETRY_S * 2 ** min(peer.refusals, 10)
        peer.retry_at = now + min(pause_s, REFUSED_RETRY_MAX_S)
        self._refused(peer)

    def hello_refused(self, peer: Peer, frame: bytes) -> None:
        """The peer knows this node's key, but does not take it for a member."""
        refused = unpack_refused(frame)
        if refused.reason == Refusal.REMOVED:
            self._turn.removed_by.add(peer.name)
            return
        self._turn.note_once(f"refused by {peer.name}", f"{peer.name} refuses this node: {refused.text}")
        self._refused(peer)

    def greeted(self, peer: Peer, connection: bytes, hello: Hello, now: float) -> None:
        """A control connection of the peer began, or still waits for POSITIONS."""
        if hello.session < peer.session:
            self._turn.count("frames_of_old_connections")
            return
        peer.connection = connection
        greeting = hello.session > peer.session
        if greeting:
            if hello.session >> _LIFE_SHIFT != peer.session >> _LIFE_SHIFT:
                peer.knows_wishes = (0, 0)
            peer.session = hello.session
            self._turn.running_changed = True
            self._peers.readiness.greeted(peer.name, hello.session >> _LIFE_SHIFT, now)
            peer.link_open = False
            peer.tables.greeted()
            # This node's own key may have been refused because the peer was only starting.
            if peer.retry_at < math.inf:
                peer.retry_at = now
        member = self._peers.membership.members[peer.name]
        if hello.incarnation > member.incarnation:
            told = replace(member, incarnation=hello.incarnation, address=hello.address, state=State.ALIVE)
            self._peers.merge([told], [], now)
        peer.incoming.connected(hello.session)
        peer.liveness.heard(hello.counter, now, greeting)
        self._peers.update_running(peer)

    def receive(self, peer: Peer, kind: int, frame: bytes, now: float) -> None:
        """Take a frame of the peer's newest control connection; FrameError if it can't be read."""
        of_tables = self._table_handlers.get(kind)
        if of_tables is not None:
            if of_tables(peer, frame, now):
                # It waits to hear that its table is known.
                self._heartbeat(peer, now)
            return
        handler = self._handlers.get(kind)
        if handler is None:
            raise FrameError(f"unexpected frame type {kind}")
        handler(peer, frame, now)

    def receive_bulk(self, peer: Peer, frame: bytes, now: float) -> None:
        """Take a TABLE_BULK frame; FrameError if it can't be read."""
        session, inner = unpack_table_bulk(frame)
        if session != peer.incoming.session:
            self._turn.count("frames_of_old_connections")
        elif inner[1] not in self._table_handlers:
            raise FrameError(f"unexpected frame type {inner[1]}")
        else:
            self.receive(peer, inner[1], inner, now)

    def tick(self, peer: Peer, now: float) -> None:
        """Do what is due between this node and the peer."""
        if now >= peer.retry_at:
            peer.retry_at = math.inf
            self._turn.commands.append(ConnectPeer(peer.name, peer.address))
        peer.liveness.tick(now)
        self._peers.update_running(peer)
        if now >= peer.heartbeat_at and peer.liveness.connected:
            self._heartbeat(peer, now)
            # A frozen link makes no progress, and knows why.
            probe = b"" if self._turn.frozen else peer.outgoing.take_probe(now)
            if probe:
                self._turn.commands.append(SendBulk(peer.name, probe))

    def deadline(self, peer: Peer, now: float) -> float:
        """Return when `tick` has something to do for the peer."""
        deadline = min(peer.retry_at, peer.liveness.deadline())
        if peer.liveness.connected:
            deadline = min(deadline, peer.heartbeat_at)
        elif peer.running:
            # A node that ticks no more than once a heartbeat while somebody's death may come of it can tell when it
            # stood still itself.
            deadline = min(deadline, now + self._heartbeat_s)
        return deadline

    def tell_stopping(self) -> None:
        """Tell everybody that this node stops as it was told to: they need not take it for a net split."""
        for peer in self._peers.all.values():
            self._peers.send(peer, pack_stopping())

    def tell_leaving(self) -> None:
        """Have everybody remove this node from the membership; who has refuses its next Hello, and says why."""
        own = self._peers.membership.own()
        for peer in self._peers.all.values():
            self._peers.send(peer, pack_members([], [(own.name, own.store_id)]))
            self._peers.send(peer, self._peers.hello(peer.outgoing.session, False))

    def tell_position(self, peer: Peer) -> None:
        """Tell how far the peer's stream has come, if that is due; it leaves after the commit of what it promises."""
        incoming = peer.incoming
        if incoming.position_due:
            self._peers.send(peer, pack_positions(incoming.session, incoming.position))
        elif incoming.ack_due:
            self._peers.send(peer, pack_link_ack(incoming.session, incoming.position))
        incoming.position_due = False
        incoming.ack_due = False

    def _refused(self, peer: Peer) -> None:
        peer.refusals += 1
        if peer.refusals % REFUSALS_BEFORE_INTRODUCTION == 0:
            # It may have lost the invitation it gave, or not have heard of this member yet.
            self._joining.introduce(peer.name, peer.address)

    def _receive_heartbeat(self, peer: Peer, frame: bytes, now: float) -> None:
        heartbeat = unpack_heartbeat(frame)
        peer.liveness.heard(heartbeat.counter, now)
        peer.link_open = heartbeat.link_open
        self._turn.acknowledged.extend(peer.outgoing.acknowledged(heartbeat.your_session, heartbeat.position, now))
        if heartbeat.link_open and peer.incoming.waiting_for_start:
            # The START frame may be on its way behind other bulk; if it is still missing a heartbeat later it is lost.
            peer.starts_missed += 1
            if peer.starts_missed > 1:
                peer.incoming.position_due = True
                peer.starts_missed = 0
        else:
            peer.starts_missed = 0
        if heartbeat.membership_digest != self._peers.membership.digest():
            self._peers.send_members(peer, now)
        self._peers.update_running(peer)
        if self._replication.hear(peer, heartbeat.tables, heartbeat.lasting_known, now):
            self._heartbeat(peer, now)

    def _receive_members(self, peer: Peer, frame: bytes, now: float) -> None:
        members = unpack_members(frame)
        own = (peer.name, peer.store_id)
        if own in members.removed:
            # It leaves, and has seen to it that all know the new homes of its sessions.
            self._peers.remove(*own, now)
        self._peers.merge(members.members, members.removed, now)

    def _receive_positions(self, peer: Peer, frame: bytes, now: float) -> None:
        position = unpack_position(frame)
        if position.session != peer.outgoing.session or not peer.liveness.connected:
            return
        gaps = peer.outgoing.gaps
        self._turn.acknowledged.extend(peer.outgoing.opened(position.session, position.position, now))
        if peer.outgoing.gaps > gaps:
            self._turn.note(f"link gap: {peer.name} went back behind what it had acknowledged, and lost messages")
        peer.refusals = 0
        self._tell_stops(peer, now)
        self._heartbeat(peer, now)

    def _receive_link_ack(self, peer: Peer, frame: bytes, now: float) -> None:
        position = unpack_position(frame)
        self._turn.acknowledged.extend(peer.outgoing.acknowledged(position.session, position.position, now))

    def _receive_stopping(self, peer: Peer, frame: bytes, now: float) -> None:
        self._stops(peer.name, peer.session >> _LIFE_SHIFT, 0.0, now)

    def _receive_stops(self, peer: Peer, frame: bytes, now: float) -> None:
        for name, life, ago_ms in unpack_stops(frame):
            if name in self._peers.all:
                self._stops(name, life, ago_ms / 1000, now)

    def _stops(self, name: str, life: int, ago_s: float, now: float) -> None:
        """A member stops as planned: whoever was not connected to it has to hear that from somebody else."""
        if self._peers.readiness.announced(name, life, now, ago_s):
            self._turn.note(f"{name} stops as planned")
            for other in self._peers.all.values():
                if other.name != name:
                    self._tell_stops(other, now)

    def _tell_stops(self, peer: Peer, now: float) -> None:
        stops = self._peers.readiness.planned(now)
        if stops:
            self._peers.send(peer, pack_stops([(name, life, max(1, int(1000 * ago_s))) for name, life, ago_s in stops]))

    def _heartbeat(self, peer: Peer, now: float) -> None:
        """Say that this node turns; until the peer has answered the Hello, repeat that instead."""
        peer.heartbeat_at = now + self._heartbeat_s
        outgoing = peer.outgoing
        if not outgoing.open:
            self._peers.send(peer, self._peers.hello(outgoing.session, False))
            return
        # What the store does not hold is not known here yet. A lower number takes nothing back at the peer.
        position = 0 if self._turn.frozen else peer.incoming.position
        heartbeat = Heartbeat(
            outgoing.session,
            self._turn.number,
            self._peers.membership.digest(),
            peer.incoming.session,
            position,
            outgoing.open,
            self._replication.lasting_known(peer),
            self._replication.positions(peer),
        )
        self._peers.send(peer, pack_heartbeat(heartbeat))
        self._replication.tell_bulk_position(peer)
