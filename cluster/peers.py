"""Peers: the other members as this node deals with them, each with its connection, its liveness and its two links.

Owns which peers there are, in line with the membership that it merges and stores, and whether each runs; and what is
kept for those that are none any more until `estates` ends that. It knows nothing of what is said on a connection
(`conversation`) or of who may become a member (`admission`).

Invariants: the peers are exactly the other members that have not left, with their store ids; a link is open only
while the connection that carries it is up; the store holds what finds the members again after a restart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from broker.core.effects import Ticket
from broker.core.message import Message
from broker.core.rows import Table
from broker.core.storage import Storage
from broker.core.subscription import QOS_MASK, Subscription
from cluster.commands import Admit, ConnectPeer, DisconnectPeer, Reply, Revoke, SendControl
from cluster.frames import (
    MESH_VERSION_NEWEST,
    MESH_VERSION_OLDEST,
    Hello,
    Refusal,
    pack_hello,
    pack_members,
    pack_refused,
)
from cluster.incoming_link import IncomingLink
from cluster.interest import PeerInterest, is_shared
from cluster.link import OutgoingLink, first_number
from cluster.membership import Liveness, Member, Membership, State, removed_text
from cluster.mesh_store import MeshStore
from cluster.newcomers import Newcomers
from cluster.outbox import Outbox
from cluster.peer_tables import PeerTables, Views
from cluster.readiness import ALL, Readiness
from cluster.registry import Registry
from cluster.retained_view import RetainedView
from cluster.table_rows import StoredRows
from cluster.turn import Turn
from cluster.wire import NUMBER_MAX

# A failure timeout has so many heartbeats.
HEARTBEATS_PER_TIMEOUT: Final = 5
# What a member said of its sessions so long before it is heard that another one was removed is recent enough: whoever
# removes one has waited until those that run know.
RECENT_HEARTBEATS: Final = 2
# How long a removed member stays one here if somebody who might have its sessions is not heard.
UNHEARD_S: Final = 10.0


@dataclass(slots=True, frozen=True)
class MeshSettings:
    """What the configuration says of the mesh; addresses are host:port, `lookups` names that have some."""

    name: str
    address: str
    failure_timeout_s: float
    discovery: tuple[tuple[str, str], ...]
    readiness: str = ALL
    planned_restart_s: float = 30.0
    spill_after_s: float = 0.2
    outbox_bytes_max: int = 1 << 30
    lookups: tuple[str, ...] = ()

    def heartbeat_s(self) -> float:
        """Return the time between two heartbeats."""
        return self.failure_timeout_s / HEARTBEATS_PER_TIMEOUT


@dataclass(slots=True, frozen=True)
class MemberView:
    """A member as `cluster show` shows it: by this node's own ears."""

    name: str
    store_id: bytes
    address: str
    incarnation: int
    state: str
    running: bool
    link_open: bool
    link_bytes_pending: int
    outbox_messages: int = 0
    outbox_bytes: int = 0


@final
class Peer:
    """Another member and everything between it and this node."""

    def __init__(
        self,
        member: Member,
        outgoing: OutgoingLink,
        incoming: IncomingLink,
        tables: PeerTables,
        newcomers: Newcomers,
        timeout_s: float,
        now: float,
    ) -> None:
        self.name = member.name
        self.store_id = member.store_id
        self.address = member.address
        self.liveness = Liveness(timeout_s, now)
        self.outgoing = outgoing
        self.incoming = incoming
        # Of the peer's newest control connection: the transport's id and the Hello's session, 0 before the first.
        self.connection = b""
        self.session = 0
        self.running = False
        self.tables = tables
        self.newcomers = newcomers
        # What the peer said last of its link to this node.
        self.link_open = False
        self.members_sent_at = -math.inf
        self.heartbeat_at = now
        # The version of its wishes that this node has confirmed in the stream to it.
        self.confirmed = (0, 0)
        # The version of this node's wishes that the peer, in its life of now, has confirmed in its stream.
        self.knows_wishes = (0, 0)
        self.starts_missed = 0
        self.refusals = 0
        self.retry_at = math.inf

    def is_confirmed(self) -> bool:
        """Say whether all is known that it said last of its wishes, and the stream to it says that."""
        return self.running and self.tables.is_current() and self.confirmed == self.tables.wishes_version()


@final
class Peers:
    """All peers. `all` is by node name and belongs to this class alone to change."""

    def __init__(
        self,
        settings: MeshSettings,
        storage: Storage,
        store: MeshStore,
        membership: Membership,
        interest: PeerInterest,
        registry: Registry,
        retained: RetainedView,
        turn: Turn,
    ) -> None:
        self.all: dict[str, Peer] = {}
        self.membership = membership
        self.interest = interest
        self.cluster_id = b""
        self.readiness = Readiness(settings.readiness, settings.planned_restart_s, settings.failure_timeout_s)
        self.heartbeat_s = settings.heartbeat_s()
        self._failure_timeout_s = settings.failure_timeout_s
        self._storage = storage
        self._spill_after_s = settings.spill_after_s
        self._outbox_bytes_max = settings.outbox_bytes_max
        # This node's first number in every stream; whoever makes this says which.
        self.first_number = first_number(0)
        # Hands in what was routed to members by what was known of them, before one is forgotten.
        self.hand_in: Callable[[float], None] = _nothing_routed
        # Says which number the next message that is published here has at least.
        self.next_number: Callable[[], int] = _no_number
        self._store = store
        self._registry = registry
        # When a member was forgotten last that is none any more.
        self.forgot_at: float = -math.inf
        # By the name under which interest knows the estate: what waits for a store that is no member any more, for as
        # long as what is published here is added to it.
        self.growing: dict[str, Outbox] = {}
        self._views = Views(interest, registry, retained)
        self._turn = turn
        # When this node heard that a member was removed, which it does not do before it knows who has its sessions.
        self._heard_removed: dict[str, float] = {}
        # What the store holds of members is read at the start alone; of one that comes later it holds nothing.
        self._restoring = False
        # Links of members that are gone leave their counts here.
        self._link_counts: dict[str, int] = {}

    def restore(self, fresh_cluster_id: bytes, now: float) -> None:
        """Find again what the store remembers, and connect."""
        for member in self._store.members():
            if member.name != self.membership.name:
                self.membership.merge(member)
        for name, store_id in self._store.removed():
            self.membership.merge_removed(name, store_id)
            # Nothing says how long ago that was: others may hear of it only now, and give what they kept.
            self.forgot_at = now
        self.cluster_id = self._store.cluster_id(fresh_cluster_id)
        for store_id in self._store.estates():
            self._turn.estates.append(store_id)
            if self._store.rerouted(store_id) == NUMBER_MAX:
                # Nothing of it was given yet. No member has a mark of this life.
                self._grow(store_id, [(each[2], each[3]) for each in self._store.estate(store_id)])
        self._restoring = True
        self._update(now)
        self._restoring = False
        self.update_readiness(now)

    def adopt(self, cluster_id: bytes) -> None:
        """Become a member of this cluster."""
        self.cluster_id = cluster_id
        self._turn.joined = True
        self._store.put_cluster_id(cluster_id)

    def merge(self, members: list[Member], removed: list[tuple[str, bytes]], now: float) -> None:
        """Take in what somebody tells of the membership.

        A member that others removed stays one here until this node has heard of its sessions' new homes: till then it
        would know of nobody who wants what it publishes. What it has for the member in that time goes to those homes.

        So long a new store under its name, as a donor has, is no member here, or it would take the old one's place.
        Who tells of it tells again as long as this node does not know the same.
        """
        changed = False
        for name, store_id in removed:
            peer = self.all.get(name)
            if peer is not None and peer.store_id == store_id:
                self._heard_removed.setdefault(name, now)
            elif self._remove(name, store_id):
                changed = True
        for member in members:
            has_to_wait = member.name in self._heard_removed and member.store_id != self.all[member.name].store_id
            if not has_to_wait and self.membership.merge(member):
                changed = True
        if changed:
            self._update(now)

    def remove(self, name: str, store_id: bytes, now: float) -> None:
        """Remove a member at once: its sessions' new homes are known here."""
        if self._remove(name, store_id):
            self._update(now)

    def is_removed(self, name: str, store_id: bytes) -> bool:
        """Say whether the pair was removed, even if it is still a member here."""
        peer = self.all.get(name)
        if peer is not None and peer.store_id == store_id:
            return name in self._heard_removed
        return (name, store_id) in self.membership.removed

    def tick(self, now: float) -> None:
        """Remove those of whom this node heard that they were, if it knows all that the others say."""
        for name, heard_at in list(self._heard_removed.items()):
            recently = heard_at - RECENT_HEARTBEATS * self.heartbeat_s
            if now >= heard_at + UNHEARD_S or self._have_all_told(recently):
                self.remove(name, self.all[name].store_id, now)

    def deadline(self) -> float:
        """Return when `tick` has something to do although nobody said anything; infinity when never."""
        return min(self._heard_removed.values(), default=math.inf) + UNHEARD_S

    def retry(self, now: float) -> None:
        """Try again at once with those that refused this node's key."""
        for peer in self.all.values():
            if peer.retry_at < math.inf:
                peer.retry_at = now

    def send(self, peer: Peer, frame: bytes) -> None:
        """Send a frame on the control connection, if it is up."""
        if peer.liveness.connected:
            self._turn.commands.append(SendControl(peer.name, frame))

    def send_members(self, peer: Peer, now: float) -> None:
        """Tell a peer the membership: it or this node knows something that the other doesn't."""
        # Both sides see the difference; once a heartbeat is enough for either.
        if now - peer.members_sent_at >= self.heartbeat_s / 2:
            peer.members_sent_at = now
            self.send(peer, pack_members(self.members(), sorted(self.membership.removed)))

    def tell_members(self, now: float) -> None:
        """Push the membership to everybody, without waiting for a heartbeat to show the difference."""
        for peer in self.all.values():
            peer.members_sent_at = -math.inf
            self.send_members(peer, now)

    def members(self) -> list[Member]:
        """Return every member, by name."""
        return [self.membership.members[name] for name in sorted(self.membership.members)]

    def hello(self, session: int, automatic: bool) -> bytes:
        """Pack who this node is."""
        own = self.membership.own()
        return pack_hello(
            Hello(
                own.name,
                own.store_id,
                own.incarnation,
                session,
                self._turn.number,
                self.cluster_id,
                own.address,
                MESH_VERSION_OLDEST,
                MESH_VERSION_NEWEST,
                automatic,
                not self.membership.alone(),
            )
        )

    def disconnected(self, peer: Peer, now: float) -> None:
        """The control connection to the peer is down."""
        peer.outgoing.disconnected()
        peer.liveness.connection_closed(now)
        self._tell_state(peer)
        self.update_running(peer)

    def update_running(self, peer: Peer) -> None:
        """Draw the conclusions of the peer's liveness."""
        running = peer.liveness.running()
        if running == peer.running:
            return
        peer.running = running
        self._turn.running_changed = True
        if not running:
            peer.newcomers.marked = 0
            self._turn.count("peers_died")
            self._tell_state(peer)
            peer.outgoing.begin_reclaim()
        self._turn.note(f"{peer.name} is {'running' if running else 'not running'}")
        self.interest.set_running(peer.name, running)

    def update_readiness(self, now: float) -> None:
        """Draw the conclusions of who runs for this node itself."""
        running: dict[str, bool] = {}
        for name, member in self.membership.members.items():
            if member.state < State.LEAVING and name not in self._heard_removed:
                peer = self.all.get(name)
                running[name] = peer is None or peer.running
        if self.readiness.update(running, now):
            self._turn.note(self.readiness.reason or "this node is ready")

    def is_complete(self, name: str) -> bool:
        """Say whether links are open both ways, and both sides know each other's tables."""
        peer = self.all.get(name)
        return (
            peer is not None
            and peer.running
            and peer.outgoing.open
            and peer.link_open
            and peer.tables.knows_ours()
            and peer.tables.is_current()
            and peer.tables.is_retained_current()
        )

    def views(self) -> list[MemberView]:
        """Return every member, by name."""
        views = []
        for member in self.members():
            peer = self.all.get(member.name)
            state = member.state
            running = member.name == self.membership.name
            if peer is not None and state < State.LEAVING:
                state = peer.liveness.state
            if peer is not None:
                running = peer.liveness.running()
            views.append(
                MemberView(
                    member.name,
                    member.store_id,
                    member.address,
                    member.incarnation,
                    state.name.lower(),
                    running,
                    peer is not None and peer.outgoing.open,
                    0 if peer is None else peer.outgoing.bytes_pending + peer.outgoing.bytes_behind,
                    0 if peer is None else peer.outgoing.outbox.messages,
                    0 if peer is None else peer.outgoing.outbox.bytes,
                )
            )
        return views

    def link_counts(self) -> dict[str, int]:
        """Return the counts of all links, added up, those of members that are gone included.

        What is dropped is counted by node as well.
        """
        counts = dict(self._link_counts)
        for peer in self.all.values():
            _add_link_counts(counts, peer)
            counts[f"link_drop_memory{{node={peer.name}}}"] = peer.outgoing.dropped_memory
            counts[f"link_drop_not_running{{node={peer.name}}}"] = peer.outgoing.dropped_not_running
        return counts

    # Estates.

    def estate(self, store_id: bytes) -> Outbox:
        """Return what waits for a store that is no member any more."""
        return self._store.outbox(store_id, self._outbox_bytes_max)

    def set_estate_interest(self, store_id: bytes, filters: list[bytes]) -> None:
        """Say what of all that is published here is added to an estate."""
        self.interest.set_estate(store_id.hex(), filters)

    def keep(self, estate: str, message: Message, ticket: Ticket | None) -> None:
        """Add a message to an estate."""
        if message.qos:
            outbox = self.growing[estate]
            outbox.last += 1
            outbox.put(outbox.last, message)
        if ticket is not None:
            # What it waits for is written in this turn.
            self._turn.acknowledged.append(ticket)

    def validate(self) -> None:
        """Check the invariants."""
        assert sorted(self.all) == [member.name for member in self.membership.others()]
        assert self._heard_removed.keys() <= self.all.keys()
        for peer in self.all.values():
            assert peer.store_id == self.membership.members[peer.name].store_id
            assert not peer.outgoing.open or peer.liveness.connected
            peer.outgoing.validate()
            peer.tables.validate()
        self.readiness.validate()

    def _update(self, now: float) -> None:
        """Bring peers and store in line with the membership."""
        others = {member.name: member for member in self.membership.others()}
        for name in list(self.all):
            member = others.get(name)
            if member is None or member.store_id != self.all[name].store_id:
                # What is for it by then waits for its sessions' new homes, as what came before does.
                self.hand_in(now)
                self._forget(self.all[name])
                self.forgot_at = now
        for name, member in others.items():
            peer = self.all.get(name)
            if peer is None:
                self.all[name] = self._new(member, now)
                self._turn.commands.append(Admit(name))
                self._turn.commands.append(ConnectPeer(name, member.address))
            elif peer.address != member.address:
                peer.address = member.address
                self.disconnected(peer, now)
                self._turn.commands.append(ConnectPeer(name, member.address))
        self._turn.running_changed = True
        self._store.put_members([member for member in self.members() if member.name != self.membership.name])

    def _new(self, member: Member, now: float) -> Peer:
        outbox = self._store.outbox(member.store_id, self._outbox_bytes_max)
        outgoing = OutgoingLink(self.membership.own().store_id, outbox, self.first_number, self._spill_after_s)
        lasting = StoredRows(self._storage, self._turn, member.store_id, Table.LASTING)
        newcomers = Newcomers(
            self._store, self._registry, outgoing, lasting, self._views, member.store_id, lambda: self.next_number()
        )
        tables = PeerTables(member.name, member.store_id, self._storage, self._turn, self._views, lasting, newcomers)
        filters = self.interest.add_peer(member.name, member.store_id, self._restoring)
        if self._restoring:
            tables.restore(filters, self._store.known(member.store_id))
            newcomers.restore()
        position = self._store.position(member.store_id)
        if not position:
            # A donor still has what its former store had sent and had no answer to, under the numbers of that. A node
            # that has nothing of it, and only the name, goes on from there.
            former = [store_id for name, store_id in self.membership.removed if name == member.name]
            position = max([self._store.position(store_id) for store_id in former], default=0)
        incoming = IncomingLink(member.store_id, position, self._store.handed(member.store_id))
        return Peer(member, outgoing, incoming, tables, newcomers, self._failure_timeout_s, now)

    def _remove(self, name: str, store_id: bytes) -> bool:
        member = self.membership.members.get(name)
        if not self.membership.merge_removed(name, store_id):
            return False
        if member is not None and member.store_id == store_id:
            self._turn.note(f"{name} is no member of the cluster any more")
        self._store.put_removed(name, store_id)
        return True

    def _have_all_told(self, since: float) -> bool:
        """Say whether all members but the removed ones run, and this node knows their sessions as they were then."""
        return all(
            peer.running and peer.tables.told_at >= since and peer.tables.is_current()
            for peer in self.all.values()
            if peer.name not in self._heard_removed
        )

    def _forget(self, peer: Peer) -> None:
        del self.all[peer.name]
        self._heard_removed.pop(peer.name, None)
        if peer.incoming.commit_due:
            # Its messages of this turn are committed in this turn.
            self._store.put_position(peer.store_id, peer.incoming.position)
        # What waits for it is not deleted: its sessions may have moved to other members.
        peer.outgoing.spill()
        outbox = peer.outgoing.outbox
        if outbox.messages:
            self._turn.counts["outbox_left"] += outbox.messages
            self._turn.note(
                f"{outbox.messages} messages for {peer.name} ({outbox.bytes} bytes) wait for its sessions' new homes"
            )
        grows = not all(
            other.is_confirmed() and other.outgoing.acked >= other.outgoing.marked for other in self.all.values()
        )
        wishes: list[tuple[bytes, Subscription]] = []
        if outbox.messages or grows:
            for client_id, counter, topic_filter, wanted in peer.tables.subscriptions():
                # What is over is for nobody: its client may have begun anew elsewhere.
                if not self._registry.is_over(client_id, counter):
                    self._store.put_estate(peer.store_id, client_id, counter, topic_filter, wanted)
                    wishes.append((topic_filter, wanted))
            self._turn.estates.append(peer.store_id)
        else:
            peer.newcomers.forget()
        _add_link_counts(self._link_counts, peer)
        self._turn.acknowledged.extend(peer.outgoing.take_tickets())
        peer.tables.forget()
        self._store.forget_known(peer.store_id)
        self.interest.forget(peer.name)
        if grows:
            self._grow(peer.store_id, wishes)
        if peer.connection:
            # It may run and hear this node, though not who removed it. Its connection stands, so that its key is not
            # asked for again: without a word it would go on serving clients, of whom nobody takes notice any more.
            self._turn.commands.append(Reply(peer.connection, pack_refused(Refusal.REMOVED, removed_text(peer.name))))
        self._turn.commands.append(Revoke(peer.name))
        self._turn.commands.append(DisconnectPeer(peer.name))

    def _grow(self, store_id: bytes, wishes: list[tuple[bytes, Subscription]]) -> None:
        filters = [topic_filter for topic_filter, wanted in wishes if grows_by(topic_filter, wanted)]
        if filters:
            self.growing[store_id.hex()] = self.estate(store_id)
            self.set_estate_interest(store_id, filters)

    def _tell_state(self, peer: Peer) -> None:
        self.membership.tell(peer.name, peer.liveness.state)


def grows_by(topic_filter: bytes, wanted: Subscription) -> bool:
    """Say whether what a subscription matches is added to an estate: neither is QoS 0, nor what is for groups."""
    return not is_shared(topic_filter) and wanted.options & QOS_MASK != 0


def _nothing_routed(now: float) -> None:
    pass


def _no_number() -> int:
    return 0


def _add_link_counts(counts: dict[str, int], peer: Peer) -> None:
    outgoing = peer.outgoing
    incoming = peer.incoming
    found = {
        "link_drop_memory": outgoing.dropped_memory,
        "link_drop_not_running": outgoing.dropped_not_running,
        "link_refused": outgoing.refused,
        "link_spills": outgoing.spills,
        "link_gap": outgoing.gaps + incoming.gaps,
        "link_resent_frames": outgoing.resent,
        "link_duplicates": incoming.duplicates,
        "link_stale_frames": incoming.stale,
        "link_messages_received": incoming.messages,
    }
    for name, count in found.items():
        counts[name] = counts.get(name, 0) + count
