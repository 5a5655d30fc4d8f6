"""The mesh: what this node says to which other node, and when.

Owns the conduct of the parts that decide: each input goes to the part that it concerns, and what they bring out leaves
in the order of the turn. It knows nothing of sockets (it answers with `MeshCommand`s) and nothing of sessions
(messages and tickets are handed through). Below it `admission` decides who becomes a member, `conversation` what
members say to each other, `replication` how they hold each other's tables, `peers` who they are, `mesh_store` what a
restart finds again.

Theory of operation
-------------------
Every member connects to every other: A's frames to B travel on connections that A opened, a control and a bulk one.
The node of a frame is what its connection's key says. A control connection begins with Hello, which carries a session
number that grows with every connection and restart; the newest session's connection is the only one that counts, and
bulk frames name their session. So no frame of an older connection is ever taken for news.

    A: PeerConnected -> Hello(session)                      B: Hello -> POSITIONS(session, position)
    A: POSITIONS     -> link open, FORWARDS(start), Heartbeat(tables)    B: Heartbeat -> asks for what differs

A frame that can't be read is its sender's fault: it is counted, noted once, and changes nothing. Frames that
acknowledge leave after the commit of the batch that `flush` writes into.

While the store takes no writes the mesh is frozen: it hears and says only what keeps its peers from thinking it dead.
Heartbeats go on and acknowledge nothing, and planned stops are heard; frames of messages wait with the caller and in
the links; every other frame is taken for lost on the way, which the conversation repairs afterwards as it always does.

Invariants: those of the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from broker.core.effects import InterestChange, Ticket
from broker.core.message import Message
from broker.core.retained import RetainedStore
from broker.core.rows import RowChange, RowKind
from broker.core.storage import Storage, WriteBatch
from broker.core.stored_message import Clock
from broker.core.subscription import Subscription
from cluster.addressing import NO_ADDRESS, Addressed
from cluster.admission import Admission
from cluster.checks import CheckResult, Checks
from cluster.clock import HybridClock
from cluster.commands import (
    FrameReceived,
    JoinFailed,
    MeshCommand,
    MeshInput,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    SendBulk,
)
from cluster.conversation import Conversation
from cluster.copies import Copies
from cluster.forwards import MESSAGE_OVERHEAD_BYTES, Forwards, Mark
from cluster.frames import FrameType, frame_type, unpack_hello
from cluster.interest import PeerInterest
from cluster.joining import Joining, JoinResult
from cluster.keys import JOIN
from cluster.link import first_number
from cluster.membership import Membership
from cluster.mesh_store import MeshStore
from cluster.move_frames import CONFIRMED, Switch, pack_mark
from cluster.outbox import Outbox
from cluster.own_tables import OwnTables
from cluster.peers import MemberView, MeshSettings, Peer, Peers
from cluster.reclaiming import Reclaiming
from cluster.registry import Registry
from cluster.replication import Replication
from cluster.retained_view import RetainedView
from cluster.statuses import NodeStatus, Statuses
from cluster.turn import Turn
from cluster.wire import NUMBER_MAX, FrameError

# What the queue-owner has to do with.
_MOVES: Final = (
    FrameType.MOVE_TAKE,
    FrameType.MOVE_ACK,
    FrameType.SWITCH,
    FrameType.TURN_REQUEST,
    FrameType.TURN_GRANT,
    FrameType.TURN_RELEASE,
    FrameType.TURN_SURVEY,
    FrameType.TURNS_HELD,
    FrameType.LEAVE_ORDER,
    FrameType.LEAVE_ANSWER,
    FrameType.LEAVE_REPORT,
    FrameType.LEAVE_HEARD,
    FrameType.ADOPT,
    FrameType.ADOPT_LEFT,
    FrameType.HANDED,
    FrameType.DONOR,
    FrameType.DONOR_HEARD,
)
# The same, on the bulk connection: they say themselves what they are about.
_BULK_MOVES: Final = (FrameType.MOVE, FrameType.HAND_OVER)
_FORWARDS: Final = bytes([FrameType.FORWARDS])
# What changes nothing that is stored, and, of a node that stops, is not said again.
_HEARD_WHILE_FROZEN: Final = (bytes([FrameType.HEARTBEAT]), bytes([FrameType.STOPPING]))

__all__ = ["MemberView", "Mesh", "MeshSettings"]


@final
@dataclass(slots=True, frozen=True)
class Marks:
    """A stream to a member: the last mark says which wishes of this generation are known; up to what it has all."""

    generation: int
    last: int
    acked: int


@final
class Mesh:
    """This node among the others."""

    def __init__(
        self,
        settings: MeshSettings,
        storage: Storage,
        store_id: bytes,
        incarnation: int,
        new_cluster_id: bytes,
        now: float,
    ) -> None:
        """Restore what the store knows; `incarnation` counts this store's openings, `new_cluster_id` is random."""
        self.incarnation = incarnation
        self.started_at = now
        # Whether what others forward is taken; not at a node that has nothing left and is about to be no member.
        self.takes_forwards = True
        turn = Turn()
        store = MeshStore(storage, turn)
        self._hybrid = HybridClock()
        self.retained = RetainedView(
            settings.name, store_id, storage, turn, store.clock, self._hybrid, settings.heartbeat_s()
        )
        self.interest = PeerInterest(store, turn)
        self.registry = Registry(settings.name)
        self.registry.wills.now = now
        self.own = OwnTables(settings.name, store_id, incarnation, storage, turn, self.registry, self.retained)
        self.membership = Membership(settings.name, store_id, incarnation, settings.address)
        self._peers = Peers(
            settings, storage, store, self.membership, self.interest, self.registry, self.retained, turn
        )
        self._peers.first_number = first_number(incarnation)
        # By node name, for whoever looks; `Peers` alone changes it.
        self.peers: dict[str, Peer] = self._peers.all
        self.readiness = self._peers.readiness
        self._joining = Joining(settings.name, list(settings.discovery), list(settings.lookups))
        self._admission = Admission(self._peers, self._joining, turn)
        self._replication = Replication(self._peers, self.own, turn)
        self._copies = Copies(self._peers, turn)
        self._checks = Checks(self._peers, self.own, turn)
        self._reclaiming = Reclaiming(self._peers, turn, now + settings.failure_timeout_s)
        self._statuses = Statuses(self._peers)
        self._conversation = Conversation(
            self._peers, self._replication, self._copies, self._checks, self._statuses, self._joining, turn, incarnation
        )
        self._turn = turn
        self._store = store
        self.heartbeat_s = self._peers.heartbeat_s
        self.failure_timeout_s = settings.failure_timeout_s
        self._ticked_at = now
        self._deadline = 0.0
        self._peers.restore(new_cluster_id, now)

    @property
    def cluster_id(self) -> bytes:
        """The id of the cluster that this node belongs to, alone or with others."""
        return self._peers.cluster_id

    def set_clock(self, now: float, utc_ms: int) -> None:
        """Take a reading of both clocks, for the deadlines that are stored."""
        self._store.clock.set(now, utc_ms)
        self.registry.wills.now = now

    def begin(self, now: float) -> None:
        """Begin a turn: read on in the outboxes and answer who asked for tables, if what was written is committed."""
        if not len(self._turn.writes):
            for peer in self.peers.values():
                peer.outgoing.load(now)
            self._reclaiming.begin()
        if not self._turn.frozen:
            if self.retained.has_doubts():
                self.retained.begin(self._replication.retained_current_at(), self._read_retained)
            self._replication.begin()
            self._copies.begin()
            if self._checks.has_rows():
                self._checks.begin()
                self._deadline = 0.0

    def stamp(self) -> int:
        """Return a stamp of the hybrid logical clock, above all that were given or heard of."""
        return self._hybrid.now(self._store.clock.utc_ms)

    def attach_retained(self, store: RetainedStore, writes: Callable[[], WriteBatch], clock: Clock) -> None:
        """Have the newest retained messages of all nodes replayed from this store, which has read this node's."""
        self.retained.attach(store, writes, clock, [peer.store_id for peer in self.peers.values()])
        for peer in self.peers.values():
            peer.tables.restore_retained()

    def settle_retained(self) -> None:
        """See what becomes of this node's retained messages now that others are known."""
        if self.retained.has_work():
            running = [peer.store_id for peer in self.peers.values() if peer.running]
            running.append(self.membership.own().store_id)
            current_at = self._replication.retained_current_at()
            self.retained.settle(current_at, self._replication.known_retained(), running)

    def receive(self, happened: MeshInput, now: float) -> None:
        """Take one input of the transport. Afterwards take messages and tickets, then `flush`."""
        if isinstance(happened, FrameReceived):
            if self._turn.frozen and happened.frame[1:2] not in _HEARD_WHILE_FROZEN:
                self._turn.count("frames_while_frozen")
                return
            try:
                self._receive_frame(happened.node, happened.connection, happened.frame, now)
            except FrameError as error:
                self.note_malformed(happened.node, error)
            return
        self._deadline = 0.0
        if isinstance(happened, PeerConnected) and happened.node == JOIN:
            self._admission.connected(now)
        elif isinstance(happened, JoinFailed):
            self._admission.failed(happened.text, now)
            self._admission.settle(now)
        else:
            assert isinstance(happened, (PeerConnected, PeerDisconnected, PeerRefused))
            peer = self.peers.get(happened.node)
            if peer is None:
                return
            if isinstance(happened, PeerConnected):
                self._conversation.connected(peer, now)
            elif isinstance(happened, PeerDisconnected):
                self._peers.disconnected(peer, now)
            else:
                self._conversation.key_refused(peer, now)

    def freeze(self, frozen: bool) -> None:
        """Say that the store takes no writes, or that it does again."""
        self._turn.frozen = frozen
        self._deadline = 0.0

    def is_bulk(self, happened: MeshInput) -> bool:
        """Say whether an input brings forwarded messages, which may be received later than what comes after it."""
        return isinstance(happened, FrameReceived) and happened.frame[1:2] == _FORWARDS

    def announce_stop(self) -> None:
        """Tell the others that this node stops, and shall be back: they wait for it before they count it as missing."""
        self._conversation.tell_stopping()

    def has_room(self, node: str, message: Message) -> bool:
        """Say whether the link to a node, or its outbox, takes a message that the node has to have."""
        peer = self.peers.get(node)
        if peer is not None:
            return peer.outgoing.has_room(message, peer.running)
        estate = self._peers.growing.get(node)
        return estate is None or not estate.is_full(MESSAGE_OVERHEAD_BYTES + message.size())

    def forward(
        self,
        node: str,
        message: Message,
        ticket: Ticket | None,
        now: float,
        persistent: bool = True,
        address: bytes = NO_ADDRESS,
    ) -> None:
        """Send a message to a node that wants it, now or, with `persistent`, when it is back; or add it to an estate.

        What was routed to a member is handed in before it is forgotten, and no route leads to it afterwards.
        """
        peer = self.peers.get(node)
        if peer is None:
            self._peers.keep(node, message, ticket)
            self._deadline = 0.0
        else:
            peer.outgoing.forward(message, ticket, persistent, peer.running, now, address)

    def change_interest(self, changes: list[InterestChange]) -> None:
        """Note changes of what this node wants; `flush` tells them."""
        self.own.change_interest(changes)

    def change_rows(self, changes: list[RowChange]) -> None:
        """Note changes of this node's sessions and groups; `flush` writes and tells them."""
        self.own.change(changes, self._replication.may_have_estates(self._ticked_at))
        if any(change.row[0] == RowKind.GROUP for change in changes):
            self._reclaiming.soon(self._ticked_at)

    def is_current(self, since: float) -> bool:
        """Say whether this node knows the tables of every running member as they were at that time or later."""
        return not self.behind(since)

    def behind(self, since: float) -> list[str]:
        """Return the running members whose tables this node does not know as they were at that time or later."""
        return self._replication.behind(since)

    def join(self, node: str, address: str, now: float) -> None:
        """Begin to join the cluster of `node`; `take_join_result` has the outcome within JOIN_TIMEOUT_S."""
        self._deadline = 0.0
        self._admission.join(node, address, now)

    def take_lookups(self) -> list[str]:
        """Return the names of `MeshSettings.lookups` that have to be looked up now; `looked_up` has the answers."""
        lookups = self._joining.lookups
        if lookups:
            self._joining.lookups = []
        return lookups

    def looked_up(self, entry: str, addresses: list[str] | None, now: float) -> None:
        """Take the addresses (host:port) that a name has; None if that could not be found out."""
        self._deadline = 0.0
        self._joining.looked_up(entry, addresses, now)

    def take_join_result(self) -> JoinResult | None:
        """Return the outcome of `join` once it is decided."""
        return self._admission.take_result()

    def check(self, repair: bool, now: float) -> None:
        """Begin to compare what all members hold; `take_check_result` has the outcome within CHECK_TIMEOUT_S.

        With `repair` they ask for what differs, and the outcome is that of the last of several checks.
        """
        self._deadline = 0.0
        self._checks.check(repair, now)

    def take_check_result(self) -> CheckResult | None:
        """Return the outcome of `check` once it is known."""
        return self._checks.take_result()

    def look(self, now: float) -> None:
        """Ask all nodes what they say of themselves; `take_statuses` has the answers within LOOK_TIMEOUT_S."""
        self._deadline = 0.0
        self._statuses.look(now)

    def take_statuses(self) -> dict[str, NodeStatus] | None:
        """Return what the nodes say of themselves, by name, once there are no more answers to come."""
        return self._statuses.take_result()

    def ask_status(self, status: Callable[[], NodeStatus]) -> None:
        """Ask this what this node says of itself."""
        self._statuses.own = status

    def ask_can_move(self, can_move: Callable[[bytes, Message], bool]) -> None:
        """Ask this whether others than a member that died could have a message of a shared group."""
        self._reclaiming.can_move = can_move

    def ask_number(self, next_number: Callable[[], int]) -> None:
        """Ask this which number the next message that is published here has at least."""
        self._peers.next_number = next_number

    def ask_forwards(self, hand_in: Callable[[float], None]) -> None:
        """Ask this to `forward`, before a member is forgotten, what was routed to it in the turn till then."""
        self._peers.hand_in = hand_in

    def note_malformed(self, node: str, error: FrameError) -> None:
        """A member said what can't be read."""
        self._turn.count("frames_malformed")
        self._turn.note_once(f"frame of {node}", f"malformed frame from {node}: {error}")

    def mark(self, store_id: bytes, body: bytes, now: float) -> None:
        """Append a mark to the stream to a member, behind all that was forwarded so far."""
        for peer in self.peers.values():
            if peer.store_id == store_id:
                peer.outgoing.mark(body, True, now)

    def take_moves(self) -> list[tuple[str, bytes]]:
        """Return what the members say of turns and moves: (node name, frame)."""
        moves = self._turn.moves
        if moves:
            self._turn.moves = []
        return moves

    def take_joined(self) -> bool:
        """Say whether this node adopted a cluster since the last call."""
        joined = self._turn.joined
        self._turn.joined = False
        return joined

    def take_estates(self) -> list[bytes]:
        """Return the stores that are no members any more and have estates here, once; they are committed."""
        estates = self._turn.estates
        if not estates or len(self._turn.writes):
            return []
        self._turn.estates = []
        return estates

    def has_fresh_estate(self, store_id: bytes) -> bool:
        """Say whether a store has an estate here that was not taken yet."""
        return store_id in self._turn.estates

    def estate_outbox(self, store_id: bytes) -> Outbox:
        """Return what waits for a store that is no member any more."""
        return self._peers.estate(store_id)

    def estate_wishes(self, store_id: bytes) -> list[tuple[str, int, bytes, Subscription]]:
        """Return (client id, epoch counter, filter, subscription) of what the sessions of such a store wanted."""
        return self._store.estate(store_id)

    def is_growing(self, store_id: bytes) -> bool:
        """Say whether what is published here is added to an estate."""
        return store_id.hex() in self._peers.growing

    def marks(self) -> dict[bytes, Marks]:
        """Return the marks in the streams to those members of which all is known that they said of their wishes."""
        return {
            peer.store_id: Marks(peer.confirmed[0], peer.outgoing.marked, peer.outgoing.acked)
            for peer in self.peers.values()
            if peer.is_confirmed()
        }

    def grow_less(self, store_id: bytes, filters: list[bytes], now: float) -> None:
        """Add from now on only what these filters match to an estate, without any nothing; what was routed is in it."""
        self._peers.hand_in(now)
        self._peers.set_estate_interest(store_id, filters)
        if not filters:
            del self._peers.growing[store_id.hex()]
            # No message has such a number: it says after a restart that the estate grows no more.
            self.put_rerouted(store_id, min(self.rerouted(store_id), NUMBER_MAX - 1))

    def rerouted(self, store_id: bytes) -> int:
        """Return from which number on this node's messages for a store went to others; NUMBER_MAX for none."""
        return self._store.rerouted(store_id)

    def put_rerouted(self, store_id: bytes, number: int) -> None:
        """Remember for ever from which number on this node's messages for a store go to others."""
        self._store.put_rerouted(store_id, number)

    def end_estate(self, store_id: bytes) -> None:
        """Nothing waits any more for a store that is no member."""
        self._store.end_estate(store_id)

    def newcomers(self, store_id: bytes) -> dict[str, int]:
        """Return client id -> the first of this node's messages for a session that came to a store, see `newcomers`."""
        return self._store.newcomers(store_id)

    def kept(self, store_id: bytes) -> list[tuple[str, int, bytes, Subscription]]:
        """Return (client id, epoch counter, filter, subscription) of a member's sessions for which a donor has any."""
        return self._store.kept(store_id)

    def kept_from(self, store_id: bytes) -> dict[str, int]:
        """Return client id -> the first number of a donor's that it kept for a member's session of which it has a stub.

        What was published there before that is in the stub.
        """
        return self._store.kept_from(store_id)

    def kept_left(self, store_id: bytes) -> int:
        """Return how many messages a donor had for a member, less those that it has given; 0 if none were kept."""
        return self._store.kept_left(store_id)

    def put_kept_left(self, store_id: bytes, left: int) -> None:
        """Store that, in this turn's batch."""
        self._store.put_kept_left(store_id, left)

    def note(self, text: str) -> None:
        """Say something to the operator."""
        self._turn.note(text)

    def former_store(self) -> bytes:
        """Return the store id that a donor had as a member, b"" for none."""
        return self._store.former_store()

    def leave_value(self) -> bytes:
        """Return what the store holds of this node's leave."""
        return self._store.leave()

    def put_leave(self, value: bytes) -> None:
        """Store this node's leave, in this turn's batch."""
        self._store.put_leave(value)
        self._deadline = 0.0

    def tell_leaving(self) -> None:
        """Have the others remove this node; `take_removed_by` has those that did."""
        self._conversation.tell_leaving()

    def introduces(self) -> bool:
        """Say whether members that refuse this node's key have yet to say why."""
        return self._joining.introduces()

    def take_removed_by(self) -> set[str]:
        """Return the members that say that this node is none any more, since the last call."""
        names = self._turn.removed_by
        if names:
            self._turn.removed_by = set()
        return names

    def remove(self, node: str, now: float) -> None:
        """Remove a member for ever, with its store, and tell everybody."""
        member = self.membership.members[node]
        self._deadline = 0.0
        self._peers.remove(node, member.store_id, now)
        self._peers.tell_members(now)

    def can_move(self, shared_filter: bytes, message: Message) -> bool:
        """Say whether others than a member that is gone could have a message of a group."""
        return self._reclaiming.can_move(shared_filter, message)

    def unacknowledged(self) -> int:
        """Return for how many running members something is not acknowledged, or not wholly known of this node.

        What they sent before they knew that must be here, too: they have said so in their streams.
        """
        wishes = self.own.wishes_version()
        count = 0
        for peer in self.peers.values():
            if peer.running:
                outgoing = peer.outgoing
                is_known = peer.knows_wishes >= wishes and self._replication.is_known_to(peer)
                if outgoing.bytes_pending or outgoing.outbox.messages or not is_known:
                    count += 1
        return count

    def take_running_changed(self) -> bool:
        """Say whether other members run than at the last call, or others are members."""
        changed = self._turn.running_changed
        self._turn.running_changed = False
        return changed

    def take_tables_changed(self) -> bool:
        """Say whether more may be known of other nodes than at the last call."""
        changed = self._turn.tables_changed
        self._turn.tables_changed = False
        return changed

    def tell(self, node: str, frame: bytes) -> None:
        """Send a frame on the control connection, or lose it."""
        self._peers.send(self.peers[node], frame)

    def heartbeat_soon(self, node: str) -> None:
        """Send a member a heartbeat with the next turn."""
        self.peers[node].heartbeat_at = 0.0
        self._deadline = 0.0

    def send(self, node: str, frame: bytes) -> None:
        """Send a frame on the bulk connection, or lose it."""
        if self.peers[node].outgoing.open:
            self._turn.commands.append(SendBulk(node, frame))

    def tell_tables(self, now: float) -> None:
        """Tell everybody what changed of this node's tables; afterwards their versions are those of what was told."""
        self._replication.tell(now)

    def confirmed(self, store_id: bytes, version: tuple[int, int]) -> None:
        """A member's stream has come to where it knows this (generation, version) of this node's wishes."""
        for peer in self.peers.values():
            if peer.store_id == store_id:
                peer.knows_wishes = max(peer.knows_wishes, version)

    def is_confirmed(self, version: tuple[int, int]) -> bool:
        """Say whether every running member has confirmed this (generation, version) of this node's wishes."""
        return all(peer.knows_wishes >= version for peer in self.peers.values() if peer.running)

    def is_complete(self, besides: str = "") -> bool:
        """Say whether every member but `besides` runs, and this node knows the sessions and wishes of each."""
        return self._replication.is_complete(besides)

    def is_lasting_known(self, version: int) -> bool:
        """Say whether every running member has said that it knows this version of what outlives a start here."""
        return all(peer.tables.knows_lasting(version) for peer in self.peers.values() if peer.running)

    def take_messages(self) -> list[Message | Addressed | Mark]:
        """Return the messages that peers forwarded, and the marks between them, in order."""
        return self._turn.take_messages()

    def takes(self, addressed: Addressed) -> bool:
        """Say whether such a message is to be taken: one that was handed over may have come, from others or its sender.

        One that is taken counts as had from now on, so that its effects have to be in this turn's batch.
        """
        if addressed.stood is None:
            return True
        sender, number = addressed.stood
        for peer in self.peers.values():
            if peer.store_id == sender:
                if not peer.incoming.take_handed(number):
                    return False
                break
        else:
            if number <= max(self._store.position(sender), self._store.handed(sender)):
                return False
        self._store.put_handed(sender, number)
        return True

    def take_acknowledged(self) -> list[Ticket]:
        """Return the tickets of forwards whose receiver has taken responsibility."""
        return self._turn.take_acknowledged()

    def take_routes_changed(self) -> bool:
        """Say whether `interest.match` may answer otherwise than at the last call."""
        changed = self._turn.routes_changed
        self._turn.routes_changed = False
        return changed

    def take_groups_changed(self) -> list[bytes]:
        """Return the shared filters of groups of which other nodes may have something else than at the last call."""
        if not self._turn.groups_changed:
            return []
        changed, self._turn.groups_changed = list(self._turn.groups_changed), {}
        self._reclaiming.soon(self._ticked_at)
        return changed

    def take_notes(self) -> list[str]:
        """Return what an operator should read, once."""
        notes = self._turn.take_notes()
        if self._joining.notes:
            notes = notes + self._joining.notes
            self._joining.notes = []
        return notes

    def tick(self, now: float) -> None:
        """Do what is due. Call it every turn of the loop: it also counts the turns."""
        self._turn.number += 1
        stall_s = now - self._ticked_at - self.heartbeat_s
        self._ticked_at = now
        for peer in self.peers.values():
            if self._turn.frozen or stall_s > 0.0:
                # This node did not listen to acknowledgements, or can't write.
                peer.outgoing.forgive(now)
            elif peer.outgoing.is_spill_due(peer.running, now):
                peer.outgoing.spill()
        if not self._turn.frozen:
            self._reclaiming.tick(now)
        if now < self._deadline:
            return
        if stall_s > self.heartbeat_s:
            for peer in self.peers.values():
                peer.liveness.shift(stall_s, now)
        self._admission.tick(now)
        self._checks.tick(now)
        self._statuses.tick(now)
        for peer in self.peers.values():
            self._conversation.tick(peer, now)
        self._deadline = self._admission.deadline()
        if not self._turn.frozen:
            self._peers.tick(now)
            self._copies.tick(now)
            self._deadline = min(self._deadline, self._peers.deadline(), self._copies.deadline())
        self._peers.update_readiness(now)
        self._deadline = min(self._deadline, self.readiness.next_deadline())
        self._deadline = min(self._deadline, self._checks.deadline(), self._statuses.deadline())
        for peer in self.peers.values():
            self._deadline = min(self._deadline, self._conversation.deadline(peer, now))

    def next_deadline(self) -> float:
        """Return when `begin` or `tick` has something to do; 0.0 if that is now."""
        if not self._turn.frozen and self._has_to_answer():
            return 0.0
        deadline = self._deadline
        if not self._turn.frozen:
            deadline = min(deadline, self._reclaiming.deadline())
            for peer in self.peers.values():
                deadline = min(deadline, peer.outgoing.spill_at())
        return deadline

    def _has_to_answer(self) -> bool:
        return self._replication.has_requests() or self._copies.has_requests() or self._checks.has_rows()

    def flush(self, writes: WriteBatch, now: float) -> list[MeshCommand]:
        """Append to `writes`, and return the commands to carry out, in order, once they are committed."""
        if not self._turn.frozen:
            self._tell_progress(now)
        if self._joining.commands:
            self._turn.commands.extend(self._joining.commands)
            self._joining.commands = []
        self._turn.take_writes(writes)
        return self._turn.take_commands()

    def _tell_progress(self, now: float) -> None:
        """Tell each peer what is new, what was received and what is for it."""
        self._replication.tell(now)
        for peer in self.peers.values():
            for table, at in peer.tables.take_known():
                self._store.put_known(peer.store_id, table, at)
            peer.newcomers.settle()
            incoming = peer.incoming
            if incoming.commit_due:
                incoming.commit_due = False
                self._store.put_position(peer.store_id, incoming.position)
            outgoing = peer.outgoing
            if outgoing.released:
                # What they wait for is written in this turn; who takes them in the next one knows it committed.
                self._turn.acknowledged.extend(outgoing.released)
                outgoing.released = []
                self._deadline = 0.0
            if peer.liveness.connected:
                self._conversation.tell_position(peer)
                if outgoing.open:
                    for frame in outgoing.take_frames(now):
                        self._turn.commands.append(SendBulk(peer.name, frame))
                    if outgoing.wants_turn:
                        self._deadline = 0.0

    def members_view(self) -> list[MemberView]:
        """Return every member, by name."""
        return self._peers.views()

    def counters(self) -> dict[str, int]:
        """Return the counts of the mesh and, added up, of its links."""
        return {**self._turn.counts, "stamps_clamped": self._hybrid.clamped, **self._peers.link_counts()}

    def netsplits(self) -> dict[str, int]:
        """Return how many net splits were detected and resolved."""
        return {"netsplit_detected": self.readiness.detected, "netsplit_resolved": self.readiness.resolved}

    def validate(self) -> None:
        """Check the invariants."""
        self.membership.validate()
        self.interest.validate()
        self.registry.validate()
        self.retained.validate()
        self.own.validate()
        self._peers.validate()

    def _receive_frame(self, node: str, connection: bytes, frame: bytes, now: float) -> None:
        peer = self.peers.get(node)
        kind = frame[1] if len(frame) > 1 else 0
        if kind in _BULK_MOVES and connection and peer is not None:
            frame_type(frame)
            self._turn.moves.append((node, frame))
            return
        if kind == FrameType.FORWARDS and connection and peer is not None:
            frame_type(frame)
            # It comes on the bulk connection, and names its session.
            if self.takes_forwards:
                self._turn.messages.extend(peer.incoming.receive(Forwards(frame), now))
            return
        if kind == FrameType.TABLE_BULK and connection and peer is not None:
            frame_type(frame)
            self._deadline = 0.0
            self._conversation.receive_bulk(peer, frame, now)
            return
        if kind != FrameType.LINK_ACK:
            # Messages and their acknowledgements make nothing due but what `flush` does every turn.
            self._deadline = 0.0
        if node == JOIN and connection:
            self._admission.receive_stranger(connection, frame, now)
        elif node == JOIN:
            self._admission.receive_answer(frame, now)
        elif kind == FrameType.HELLO and connection:
            # The version of the frame is not looked at: a Hello of a newer one can be read, too.
            hello = unpack_hello(frame)
            if self._admission.receive_member(node, connection, hello, now):
                self._conversation.greeted(self.peers[node], connection, hello, now)
        elif peer is None:
            self._turn.count("frames_of_strangers")
        elif not connection:
            # A member answers on this node's own connection only to refuse its Hello.
            if frame_type(frame) == FrameType.REFUSED:
                self._conversation.hello_refused(peer, frame)
        elif connection != peer.connection:
            self._turn.count("frames_of_old_connections")
        elif kind in _MOVES:
            frame_type(frame)
            self._turn.moves.append((node, frame))
        else:
            self._conversation.receive(peer, frame_type(frame), frame, now)
            self._confirm(peer, now)
        self._admission.settle(now)

    def _read_retained(self, node: str, topic: bytes) -> bytes:
        if node == self.membership.name:
            return self.own.retained_value(topic)
        return self.peers[node].tables.retained_value(topic)

    def _confirm(self, peer: Peer, now: float) -> None:
        """Say in the stream to a peer, before anything that is routed by it, which version of its wishes is known."""
        known = peer.tables.wishes_version()
        if known != peer.confirmed:
            peer.confirmed = known
            self._turn.tables_changed = True
            if known > (0, 0):
                own = self.membership.own().store_id
                number = self._peers.next_number()
                switch = Switch(CONFIRMED, own, peer.store_id, known[0], known[1], number)
                peer.outgoing.mark(pack_mark(switch), True, now)
                if peer.running:
                    peer.newcomers.marked = number
