"""A node: the queue-owner and the mesh joined. The owner process and the simulator both drive this.

Owns nothing but the order of things between the two: the owner says "forward this to node n", the mesh says "this
arrived from a peer", and neither knows the other. It does no I/O: inputs and time come in, `take_effects` says what
to do, in the order of its fields.

How to drive it: create it after `QueueOwner.recover`. A turn: `set_clock`; `begin`; hand in everything that has arrived
(`receive_event`, `receive_input`); `tick`; `take_effects`: commit `writes`, then carry out `commands` in order, then
send `to_listeners`. Every acknowledgement is in the last two.

When a commit fails, `freeze`: the turn waits as a whole, and meanwhile events go to `receive_degraded`. Nothing that
comes from a frozen node acknowledges what waits: the mesh says none of it, forwarded messages and the answers of peers
are kept from the owner, and its clock stands still. Effects without writes may be carried out at once, others wait
behind those that wait already; `thaw` once all are carried out.
"""

from collections import deque
from typing import Final, final

from broker.core.effects import Effects, Forward, InterestChange
from broker.core.events import Event
from broker.core.message import Message
from broker.core.metrics import mesh_names, node_metrics
from broker.core.owner import QueueOwner
from broker.core.owner_records import OwnerBatch
from broker.core.storage import WriteBatch
from broker.core.systree import Systree
from cluster.addressing import NO_ADDRESS, Addressed, pack_address
from cluster.commands import MeshCommand, MeshInput
from cluster.estates import Estates
from cluster.forwards import Mark
from cluster.joining import JoinResult
from cluster.leave_desk import LeaveDesk
from cluster.leave_frames import Report
from cluster.leaver import Leaver
from cluster.leaving import State
from cluster.mesh import MemberView, Mesh
from cluster.moving import Moving
from cluster.statuses import NodeStatus
from cluster.subscribe_wait import SubscribeWait
from cluster.wire import FrameError

# How long it takes at most to notice that a listener is not behind any more, but stalls.
BEHIND_S: Final = 0.1
# So long after its start a member waits for another one to tell it that it still is one.
AWAITED_S: Final = 5.0


@final
class NodeEffects:
    """One turn's duties, in order of execution; `notes` are for the log."""

    __slots__ = ("commands", "notes", "to_listeners", "writes")

    def __init__(
        self,
        writes: WriteBatch,
        commands: list[MeshCommand],
        to_listeners: dict[int, OwnerBatch],
        notes: list[str],
    ) -> None:
        self.writes = writes
        self.commands = commands
        self.to_listeners = to_listeners
        self.notes = notes


@final
class NodeCore:
    """One node without its processes and sockets."""

    def __init__(
        self,
        owner: QueueOwner,
        mesh: Mesh,
        systree: Systree | None = None,
        version: str = "",
        server_reference: str = "",
    ) -> None:
        """`server_reference` is host:port where clients of nodes that leave may connect to this one, "" for nowhere."""
        self.owner = owner
        self.mesh = mesh
        self._systree = systree
        # What peers forwarded while a listener was behind. It is not received yet and so not acknowledged: the links'
        # windows bound it, and hold back the peers. It must not wait in the sockets, where the answers of the
        # handshake and the heartbeats are, too.
        self._held: deque[MeshInput] = deque()
        self._now = 0.0
        self._frozen = False
        owner.ask_room(mesh.has_room)
        owner.ask_complete(mesh.is_complete)
        mesh.ask_can_move(owner.can_move)
        for topic_filter, persistent in owner.local_interest():
            mesh.change_interest([InterestChange(topic_filter, True, persistent)])
        mesh.own.restore(owner.local_rows)
        owner.retained.stamp = mesh.stamp
        owner.retained.shared = bool(mesh.peers)
        mesh.attach_retained(owner.retained, lambda: owner.writes, owner.clock)
        mesh.ask_number(owner.next_number)
        mesh.ask_forwards(self._hand_in_forwards)
        mesh.ask_status(self._status)
        self._version = version
        self.moving = Moving(owner, mesh, mesh.incarnation, mesh.started_at)
        owner.register_with(self.moving.registrar)
        self.estates = Estates(owner, mesh, self.moving)
        reports: dict[str, Report] = {}
        self.leaver = Leaver(owner, mesh, self.moving, self.estates, reports)
        self.leave_desk = LeaveDesk(mesh, self.moving, self.estates, self.leaver, reports, server_reference)
        # Why this node is no member any more, "" while it is one.
        self.removed = ""
        self._subacks = SubscribeWait(mesh)
        self._tell_readiness()

    def set_clock(self, now: float, utc_ms: int) -> None:
        """Take a reading of both clocks."""
        self.owner.set_clock(now, utc_ms)
        self.mesh.set_clock(now, utc_ms)

    def begin(self, now: float) -> None:
        """Begin a turn; what the last one wrote is committed. StorageError if what goes on in the store can't be read.

        `freeze` it then: what was read counts, and `thaw` reads on.
        """
        self._now = now
        if not self._frozen:
            self.owner.begin(now)
            self.mesh.begin(now)
            if self.owner.is_committed():
                self.moving.departures.held = not self.leaver.may_give()
                self.moving.load(now)
                self.estates.begin(now)
                # No route leads any more to an estate that does not grow.
                self._see_routes()
                self.leaver.begin(now)

    def receive_event(self, event: Event, now: float) -> None:
        """Take one event from a listener."""
        self._now = now
        self.owner.receive(event, now)

    def receive_degraded(self, event: Event, now: float) -> bool:
        """Take one event of a listener while frozen; false: hold it, and replay it after `thaw`."""
        self._now = now
        return self.owner.receive_degraded(event, now)

    def receive_input(self, happened: MeshInput, now: float) -> None:
        """Take one input from the transport."""
        if self.mesh.is_bulk(happened) and (self._held or self._frozen or self.owner.is_behind(now)):
            self._held.append(happened)
            return
        self.mesh.receive(happened, now)
        self._collect(now)

    def tick(self, now: float) -> None:
        """Do what is due; call it once a turn, after the inputs."""
        self._now = now
        if self._frozen:
            self.mesh.tick(now)
            self._collect(now)
            return
        while self._held and not self.owner.is_behind(now):
            self.mesh.receive(self._held.popleft(), now)
            self._collect(now)
        self.mesh.tick(now)
        self._collect(now)
        self._tell_readiness()
        # What others publish, or have published, is not to be published here as well.
        self.moving.claims.look(now, self._may_be_removed(now))
        self.owner.tick(now)
        self.moving.tick(now)
        self.leaver.tick(now)
        self.leave_desk.tick(now)
        # A member that was removed by that must not be sent anything by the next turn's events.
        self._collect(now)
        for suback in self._subacks.take_due(now):
            self.owner.answer(suback)
        if self._systree is not None and now >= self._systree.next_deadline():
            self._publish_systree(self._systree, now)

    def _publish_systree(self, systree: Systree, now: float) -> None:
        """Tell this node's subscribers of $SYS; as what comes from a peer it is never forwarded."""
        for topic, payload in systree.tick(now, self.metrics()):
            self.owner.publish_here(Message(topic, payload), now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do; infinity if never, 0.0 if now."""
        if self._frozen:
            return self.mesh.next_deadline()
        deadline = min(self.owner.next_deadline(), self.mesh.next_deadline(), self.moving.next_deadline())
        deadline = min(deadline, self._subacks.next_deadline())
        deadline = min(deadline, self.leaver.next_deadline(), self.leave_desk.next_deadline())
        deadline = min(deadline, self.estates.next_deadline())
        if self._systree is not None:
            deadline = min(deadline, self._systree.next_deadline())
        if self._held:
            # Credit makes a turn by itself; a listener that stalls makes none.
            deadline = min(deadline, self._now + BEHIND_S)
        return deadline

    def freeze(self, waiting: NodeEffects) -> None:
        """The commit of these effects failed, or has to wait behind one that did."""
        self._frozen = True
        self.mesh.freeze(True)
        self.owner.degraded.wait(waiting.to_listeners)

    def thaw(self, now: float) -> None:
        """Everything that waited is committed and carried out; StorageError, and it stays frozen, if reading fails."""
        self._now = now
        self.owner.begin(now)
        self.mesh.begin(now)
        self._frozen = False
        self.mesh.freeze(False)
        self.owner.degraded.end(now)
        self._collect(now)
        self._tell_readiness()

    def join(self, node: str, address: str, now: float) -> None:
        """Begin to join the cluster of `node` at host:port."""
        self.mesh.join(node, address, now)

    def announce_stop(self) -> None:
        """Tell the other members that this node stops, as it was told to."""
        self.mesh.announce_stop()

    def take_join_result(self) -> JoinResult | None:
        """Return the outcome of `join` once it is decided."""
        return self.mesh.take_join_result()

    def is_awaited(self, now: float) -> bool:
        """Say whether this node, which has just started and would serve clients, has yet to hear that it is a member.

        Where it hears nobody, and nobody refuses it, it waits for AWAITED_S, no longer.
        """
        return self.owner.netsplit.lets_connect() and self._may_be_removed(now)

    def members_view(self) -> list[MemberView]:
        """Return every member as this node sees it."""
        return self.mesh.members_view()

    def metrics(self) -> dict[str, int]:
        """Return every metric of this node, in the order in which they are shown."""
        counters = self.owner.counters
        members = self.mesh.members_view()
        mesh = mesh_names(self.mesh.counters())
        mesh["cluster_nodes"] = len(members)
        mesh["cluster_nodes_running"] = sum([1 for member in members if member.running])
        for member in members:
            if member.name != self.mesh.membership.name:
                mesh[f"cluster_outbox_messages{{node={member.name}}}"] = member.outbox_messages
                mesh[f"cluster_outbox_bytes{{node={member.name}}}"] = member.outbox_bytes
        mesh["cluster_outbox_messages"] = sum([member.outbox_messages for member in members])
        mesh["cluster_outbox_bytes"] = sum([member.outbox_bytes for member in members])
        mesh.update(self.mesh.netsplits())
        mesh["cluster_subacks_unconfirmed"] = self._subacks.unconfirmed
        mesh["cluster_wills_claimed"] = self.moving.claims.claimed
        return node_metrics(counters.named(), counters.dropped, self.owner.counts(), self.owner.totals.named(), mesh)

    def take_effects(self) -> NodeEffects:
        """Return what is to be done since the last call."""
        mesh = self.mesh
        now = self._now
        if not self._frozen:
            mesh.settle_retained()
        effects: Effects = self.owner.take_effects()
        if effects.rows:
            mesh.change_rows(effects.rows)
            self.moving.rows_changed(effects.rows)
        if effects.interest:
            mesh.change_interest(effects.interest)
        self._forward(effects.to_peers, now)
        if not self._frozen:
            self.moving.answer(now)
            mesh.tell_tables(now)
            self._subacks.add(self.owner.take_subacks(), now)
            self.moving.flush()
        commands = mesh.flush(effects.writes, now)
        return NodeEffects(
            effects.writes,
            commands,
            effects.to_listeners,
            [*self.owner.take_notices(), *mesh.take_notes(), *self.moving.registrar.take_notices()],
        )

    def validate(self) -> None:
        """Check the invariants of both."""
        self.owner.validate()
        self.mesh.validate()
        self.moving.validate()
        self.leaver.validate()
        self.leave_desk.validate()

    def _hand_in_forwards(self, now: float) -> None:
        """A member is about to be forgotten: hand over to the mesh what was routed to it before."""
        self._forward(self.owner.take_forwards(), now)

    def _forward(self, forwards: list[Forward], now: float) -> None:
        for forward in forwards:
            address = NO_ADDRESS
            if forward.groups:
                address = pack_address(forward.groups, forward.plain, forward.waited)
            self.mesh.forward(forward.node, forward.message, forward.ticket, now, forward.persistent, address)

    def _may_be_removed(self, now: float) -> bool:
        """Say whether this node has been removed, or may have been while it was down, and hears nobody who knows.

        Members that refuse its key live, and say why when they are asked.
        """
        mesh = self.mesh
        if self.leaver.job.state == State.REMOVED:
            return True
        if now >= mesh.started_at + AWAITED_S and not mesh.introduces():
            return False
        return bool(mesh.peers) and not any(peer.running for peer in mesh.peers.values())

    def _tell_readiness(self) -> None:
        """Tell the owner whether this node reaches the members that it needs; not while the store takes no writes."""
        readiness = self.mesh.readiness
        self.owner.netsplit.set_ready(readiness.ready, readiness.reason)
        if not self.owner.netsplit.lets_connect():
            # One that came before and waits would be served by a node that serves no other.
            self.moving.registrar.refuse_clients(readiness.reason, self._now)

    def _status(self) -> NodeStatus:
        counts = self.owner.counts()
        return NodeStatus(counts["num_online"] + counts["num_offline"], counts["queued_messages"], self._version)

    def _receive_mark(self, mark: Mark, now: float) -> None:
        try:
            self.moving.receive_mark(mark.sender, mark.body, now)
        except FrameError as error:
            self.mesh.note_malformed("a member", error)

    def _see_routes(self) -> None:
        if self.mesh.take_routes_changed():
            self.owner.interest_changed()

    def _collect(self, now: float) -> None:
        """Hand over to the owner what the mesh has for it."""
        self._now = now
        mesh = self.mesh
        owner = self.owner
        self._see_routes()
        for shared_filter in mesh.take_groups_changed():
            owner.others_changed(shared_filter)
        owner.retained.shared = bool(mesh.peers)
        if self._frozen:
            # An acknowledgement of a peer may let one out that waits behind it, for what is not committed.
            return
        if mesh.take_joined():
            owner.become_oldest(mesh.former_store() != b"")
            self.moving.joined()
        for message in mesh.take_messages():
            if isinstance(message, Message):
                owner.receive_forwarded(message, now)
            elif isinstance(message, Addressed):
                if not mesh.takes(message):
                    continue
                if message.plain:
                    owner.receive_forwarded(message.message, now)
                owner.receive_for_groups(message.message, message.groups, now, message.waited)
            elif message.body:
                self._receive_mark(message, now)
        for node, frame in mesh.take_moves():
            try:
                if self.leaver.handover.handles(frame[1]):
                    self.leaver.handover.receive(node, frame, now)
                elif self.leave_desk.handles(frame[1]):
                    self.leave_desk.receive(node, frame, now)
                else:
                    self.moving.receive(node, frame, now)
            except FrameError as error:
                mesh.note_malformed(node, error)
        removed_by = mesh.take_removed_by()
        if removed_by and not self.leaver.removed_by(removed_by, now):
            name = mesh.membership.name
            self.removed = f"{name} was removed from the cluster, as {min(removed_by)} says, and serves nobody"
        for ticket in mesh.take_acknowledged():
            owner.forward_acknowledged(ticket, now)
