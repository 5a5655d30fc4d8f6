"""The mesh: what this node says to which other node, and when.

Owns the peers and conducts the parts that decide: membership and liveness, joining, interest, links. It knows nothing
of sockets (it answers with `MeshCommand`s) and nothing of sessions (messages and tickets are handed through).

Theory of operation
-------------------
Every member connects to every other: A's frames to B travel on connections that A opened, a control and a bulk one.
The node of a frame is what its connection's key says. A control connection begins with Hello, which carries a session
number that grows with every connection and restart; the newest session's connection is the only one that counts, and
bulk frames name their session. So no frame of an older connection is ever taken for news.

    A: PeerConnected -> Hello(session)                      B: Hello -> POSITIONS(session, position), asks for interest
    A: POSITIONS     -> link open, FORWARDS(start), Heartbeat

Nothing here is lost for good when a frame is: Hello is repeated until POSITIONS comes, heartbeats carry the position
(an acknowledgement), the version and checksum of interest and the digest of the membership, and whoever sees a
difference asks or tells. Frames that acknowledge leave after the commit of the batch that `flush` writes into.

Store: meta "cluster_id", "member/<name>", "removed/<store_id><name>", "position/<sender store_id>" (u64); registry
"interest/<store_id><filter>" for the persistent filters of peers, so that after a restart messages for their sessions
wait even for a peer that is down. Every value begins with a version byte.

Invariants: peers are exactly the other members that have not left; those of the parts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, final

from broker.core.effects import InterestChange, Ticket
from broker.core.message import Message
from broker.core.storage import Storage, StorageError, WriteBatch
from cluster.commands import (
    Admit,
    ConnectPeer,
    DisconnectPeer,
    FrameReceived,
    JoinFailed,
    MeshCommand,
    MeshInput,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Reply,
    Revoke,
    SendBulk,
    SendControl,
    SendJoin,
)
from cluster.frames import (
    MESH_VERSION_NEWEST,
    MESH_VERSION_OLDEST,
    Forwards,
    FrameError,
    FrameType,
    Heartbeat,
    Hello,
    Reader,
    Refusal,
    Welcome,
    frame_type,
    pack_heartbeat,
    pack_hello,
    pack_interest_request,
    pack_link_ack,
    pack_member,
    pack_members,
    pack_positions,
    pack_refused,
    pack_welcome,
    read_member,
    unpack_heartbeat,
    unpack_hello,
    unpack_interest_delta,
    unpack_interest_snapshot,
    unpack_members,
    unpack_position,
    unpack_refused,
    unpack_welcome,
)
from cluster.interest import InterestTable
from cluster.joining import INVITATION_S, JOIN_TIMEOUT_S, Joining, JoinResult, JoinState, Purpose
from cluster.keys import JOIN
from cluster.link import IncomingLink, OutgoingLink
from cluster.membership import Liveness, Member, Membership, State

# A failure timeout has so many heartbeats.
HEARTBEATS_PER_TIMEOUT: Final = 5

# The first and the last pause before this node tries again where its key was refused; each pause doubles the last.
REFUSED_RETRY_S: Final = 0.2
REFUSED_RETRY_MAX_S: Final = 3.0
# After so many refusals it introduces itself with the join key.
REFUSALS_BEFORE_INTRODUCTION: Final = 3

VALUE_VERSION: Final = 1
KEY_CLUSTER_ID: Final = b"cluster_id"
KEY_MEMBER: Final = b"member/"
KEY_REMOVED: Final = b"removed/"
KEY_POSITION: Final = b"position/"
KEY_INTEREST: Final = b"interest/"
STORE_ID_BYTES: Final = 16


@dataclass(slots=True, frozen=True)
class MeshSettings:
    """What the configuration says of the mesh; addresses are host:port."""

    name: str
    address: str
    failure_timeout_s: float
    discovery: tuple[tuple[str, str], ...]


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


@dataclass(slots=True, frozen=True)
class Invitation:
    """A node that was welcomed and has not come yet with its own key."""

    member: Member
    until: float


@final
class Peer:
    """Another member and everything between it and this node."""

    def __init__(self, member: Member, own_store_id: bytes, position: int, timeout_s: float, now: float) -> None:
        self.name = member.name
        self.store_id = member.store_id
        self.address = member.address
        self.liveness = Liveness(timeout_s, now)
        self.outgoing = OutgoingLink(own_store_id)
        self.incoming = IncomingLink(member.store_id, position)
        # Of the peer's newest control connection: the transport's id and the Hello's session, 0 before the first.
        self.connection = b""
        self.session = 0
        self.running = False
        # What the peer said last: its interest's (incarnation, version, checksum), and of this node's interest the
        # version it knows plus one.
        self.interest = (0, 0, 0)
        self.knows_interest = 0
        self.link_open = False
        self.requested_at = -math.inf
        self.members_sent_at = -math.inf
        self.heartbeat_at = now
        self.starts_missed = 0
        self.refusals = 0
        self.retry_at = math.inf


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
        self.settings = settings
        self.name = settings.name
        self.store_id = store_id
        self.incarnation = incarnation
        self.membership = Membership(settings.name, store_id, incarnation, settings.address)
        self.interest = InterestTable(incarnation)
        self.joining = Joining(settings.name, list(settings.discovery))
        self.peers: dict[str, Peer] = {}
        self.notes: list[str] = []
        self.routes_changed = False
        self._storage = storage
        self._commands: list[MeshCommand] = []
        self._writes = WriteBatch()
        self._messages: list[Message] = []
        self._acknowledged: list[Ticket] = []
        self._invitations: dict[str, Invitation] = {}
        self._stored: dict[str, bytes] = {}
        self._heartbeat_s = settings.failure_timeout_s / HEARTBEATS_PER_TIMEOUT
        self._counter = 0
        self._sessions = 0
        self._ticked_at = now
        self._deadline = 0.0
        self._join_waits: list[str] = []
        self._join_until = math.inf
        self._join_result: JoinResult | None = None
        self._counts: dict[str, int] = {
            "frames_malformed": 0,
            "frames_of_strangers": 0,
            "frames_of_old_connections": 0,
            "hellos_refused": 0,
            "peers_died": 0,
            "interest_requests": 0,
        }
        # Links of members that are gone leave their counts here.
        self._link_counts: dict[str, int] = {}
        self._handlers: dict[int, Callable[[Peer, bytes, float], None]] = {
            FrameType.HEARTBEAT: self._receive_heartbeat,
            FrameType.MEMBERS: self._receive_members,
            FrameType.INTEREST_DELTA: self._receive_interest_delta,
            FrameType.INTEREST_SNAPSHOT: self._receive_interest_snapshot,
            FrameType.INTEREST_REQUEST: self._receive_interest_request,
            FrameType.POSITIONS: self._receive_positions,
            FrameType.LINK_ACK: self._receive_link_ack,
        }
        self.cluster_id = self._restore(new_cluster_id)
        self._update_peers(now)

    def receive(self, happened: MeshInput, now: float) -> None:
        """Take one input of the transport. Afterwards take messages and tickets, then `flush`."""
        self._deadline = 0.0
        if isinstance(happened, FrameReceived):
            try:
                self._receive_frame(happened.node, happened.connection, happened.frame, now)
            except FrameError as error:
                self._count("frames_malformed")
                self._note(f"malformed frame from {happened.node}: {error}")
        elif isinstance(happened, PeerConnected):
            self._peer_connected(happened.node, now)
        elif isinstance(happened, PeerDisconnected):
            peer = self.peers.get(happened.node)
            if peer is not None:
                self._disconnected(peer, now)
        elif isinstance(happened, PeerRefused):
            self._peer_refused(happened.node, now)
        else:
            assert isinstance(happened, JoinFailed)
            self.joining.failed(happened.text, now)
            self._settle_join(now)

    def forward(self, node: str, message: Message, ticket: Ticket | None, now: float) -> bool:
        """Send a message to a node that wants it. False: the link is full, the ticket is the caller's to answer."""
        peer = self.peers.get(node)
        if peer is None:
            # It left since the route was looked up; nobody there waits for the message any more.
            if ticket is not None:
                self._acknowledged.append(ticket)
                self._deadline = 0.0
            return True
        return peer.outgoing.forward(message, ticket, peer.running, now)

    def change_interest(self, changes: list[InterestChange]) -> None:
        """Note changes of this node's own wishes; `flush` tells them."""
        self.interest.apply_changes(changes)

    def join(self, node: str, address: str, now: float) -> None:
        """Begin to join the cluster of `node`; `take_join_result` has the outcome within JOIN_TIMEOUT_S."""
        self._deadline = 0.0
        self._join_result = None
        self._join_until = now + JOIN_TIMEOUT_S
        self._join_waits = []
        if node == self.name:
            self._finish_join(False, f"{node} can't join itself")
            return
        self.joining.join(node, address, now)
        self._settle_join(now)

    def take_join_result(self) -> JoinResult | None:
        """Return the outcome of `join` once it is decided."""
        result = self._join_result
        self._join_result = None
        return result

    def take_messages(self) -> list[Message]:
        """Return the messages that peers forwarded, in order."""
        messages = self._messages
        if messages:
            self._messages = []
        return messages

    def take_acknowledged(self) -> list[Ticket]:
        """Return the tickets of forwards whose receiver has taken responsibility."""
        tickets = self._acknowledged
        if tickets:
            self._acknowledged = []
        return tickets

    def take_notes(self) -> list[str]:
        """Return what an operator should read, once."""
        notes = self.notes + self.joining.notes
        self.notes = []
        self.joining.notes = []
        return notes

    def tick(self, now: float) -> None:
        """Do what is due. Call it every turn of the loop: it also counts the turns."""
        self._counter += 1
        stall_s = now - self._ticked_at - self._heartbeat_s
        self._ticked_at = now
        if now < self._deadline:
            return
        if stall_s > self._heartbeat_s:
            for peer in self.peers.values():
                peer.liveness.shift(stall_s, now)
        for name in [name for name, invitation in self._invitations.items() if now >= invitation.until]:
            del self._invitations[name]
            if name not in self.peers:
                self._commands.append(Revoke(name))
        self.joining.tick(self.membership.alone(), self._hosting(), now)
        self._settle_join(now)
        for peer in self.peers.values():
            self._tick_peer(peer, now)
        self._deadline = self._next_deadline(now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do; 0.0 if that is now."""
        return self._deadline

    def flush(self, writes: WriteBatch, now: float) -> list[MeshCommand]:
        """Append to `writes`, and return the commands to carry out, in order, once they are committed."""
        deltas = self.interest.take_deltas()
        for peer in self.peers.values():
            incoming = peer.incoming
            if incoming.commit_due:
                incoming.commit_due = False
                value = bytes([VALUE_VERSION]) + incoming.position.to_bytes(8, "big")
                writes.put("meta", KEY_POSITION + peer.store_id, value)
            if peer.liveness.connected:
                for delta in deltas:
                    self._send(peer, delta)
                self._send_position(peer)
                outgoing = peer.outgoing
                if outgoing.open:
                    for frame in outgoing.take_frames(now):
                        self._commands.append(SendBulk(peer.name, frame))
        if self._writes:
            writes.extend(self._writes)
            self._writes = WriteBatch()
        if self.joining.commands:
            self._commands.extend(self.joining.commands)
            self.joining.commands = []
        commands = self._commands
        if commands:
            self._commands = []
        return commands

    def members_view(self) -> list[MemberView]:
        """Return every member, by name."""
        views = []
        for name in sorted(self.membership.members):
            member = self.membership.members[name]
            peer = self.peers.get(name)
            state = member.state
            running = name == self.name
            if peer is not None and state < State.LEAVING:
                state = peer.liveness.state
            if peer is not None:
                running = peer.liveness.running()
            views.append(
                MemberView(
                    name,
                    member.store_id,
                    member.address,
                    member.incarnation,
                    state.name.lower(),
                    running,
                    peer is not None and peer.outgoing.open,
                    0 if peer is None else peer.outgoing.bytes_pending,
                )
            )
        return views

    def counters(self) -> dict[str, int]:
        """Return the counts of the mesh and, added up, of its links."""
        counts = dict(self._counts)
        counts.update(self._link_counts)
        for peer in self.peers.values():
            _add_link_counts(counts, peer)
        return counts

    def validate(self) -> None:
        """Check the invariants."""
        self.membership.validate()
        self.interest.validate()
        assert sorted(self.peers) == [member.name for member in self.membership.others()]
        for peer in self.peers.values():
            assert peer.store_id == self.membership.members[peer.name].store_id
            assert not peer.outgoing.open or peer.liveness.connected
            peer.outgoing.validate()

    def _restore(self, new_cluster_id: bytes) -> bytes:
        storage = self._storage
        for _, value in storage.scan("meta", KEY_MEMBER, _after(KEY_MEMBER)):
            member = _stored_member(value)
            if member.name != self.name:
                self.membership.merge(member)
                self._stored[member.name] = value
        for key, _ in storage.scan("meta", KEY_REMOVED, _after(KEY_REMOVED)):
            rest = key[len(KEY_REMOVED) :]
            self.membership.merge_removed(rest[STORE_ID_BYTES:].decode(), rest[:STORE_ID_BYTES])
        for member in self.membership.others():
            prefix = KEY_INTEREST + member.store_id
            for key, _ in storage.scan("registry", prefix, _after(prefix)):
                self.interest.restore(member.name, key[len(prefix) :])
        stored = storage.get("meta", KEY_CLUSTER_ID)
        if stored is not None:
            return _value(stored)
        self._writes.put("meta", KEY_CLUSTER_ID, bytes([VALUE_VERSION]) + new_cluster_id)
        return new_cluster_id

    def _receive_frame(self, node: str, connection: bytes, frame: bytes, now: float) -> None:
        if node == JOIN:
            if connection:
                self._receive_stranger(connection, frame, now)
            else:
                self._receive_answer(frame, now)
            return
        if len(frame) > 1 and frame[1] == FrameType.HELLO and connection:
            self._receive_hello(node, connection, unpack_hello(frame), now)
            return
        kind = frame_type(frame)
        peer = self.peers.get(node)
        if not connection:
            # A member answers on this node's own connection only to refuse its Hello.
            if kind == FrameType.REFUSED:
                self._note(f"{node} refuses this node: {unpack_refused(frame).text}")
            return
        if peer is None:
            self._count("frames_of_strangers")
            return
        if kind == FrameType.FORWARDS:
            # It comes on the bulk connection, and names its session.
            self._messages.extend(peer.incoming.receive(Forwards(frame), now))
            return
        if connection != peer.connection:
            self._count("frames_of_old_connections")
            return
        handler = self._handlers.get(kind)
        if handler is None:
            raise FrameError(f"unexpected frame type {kind}")
        handler(peer, frame, now)

    def _receive_stranger(self, connection: bytes, frame: bytes, now: float) -> None:
        """A frame on the join key: nothing but Hello is heard."""
        if len(frame) < 2 or frame[1] != FrameType.HELLO:
            self._count("frames_of_strangers")
            return
        hello = unpack_hello(frame)
        text = self._refusal(hello)
        if not text and hello.clustered and hello.cluster_id != self.cluster_id:
            text = f"{hello.name} is already in a cluster with others; it has to leave that cluster first"
        if text:
            self._count("hellos_refused")
            self._note(f"refused {hello.name} at {hello.address}: {text}")
            self._commands.append(Reply(connection, pack_refused(Refusal.FINAL, text)))
            return
        if hello.name not in self.peers:
            if hello.cluster_id != self.cluster_id:
                reason = self.joining.may_invite(hello, self.membership.alone(), self._hosting())
                if reason is not None:
                    self._commands.append(Reply(connection, pack_refused(reason, "ask again")))
                    return
            invited = Member(hello.name, hello.store_id, hello.incarnation, hello.address, State.ALIVE)
            self._invitations[hello.name] = Invitation(invited, now + INVITATION_S)
            self.joining.invited_somebody(now)
        self._commands.append(Admit(hello.name))
        running = [name for name, peer in self.peers.items() if peer.running and name != hello.name]
        welcome = Welcome(
            self.cluster_id, self._all_members(), sorted(self.membership.removed), sorted([*running, self.name])
        )
        self._commands.append(Reply(connection, pack_welcome(welcome)))

    def _receive_answer(self, frame: bytes, now: float) -> None:
        """The node that this node asked with the join key answered."""
        kind = frame_type(frame)
        if kind == FrameType.REFUSED:
            refused = unpack_refused(frame)
            self.joining.refused(refused.reason, refused.text, now)
        elif kind == FrameType.WELCOME and self.joining.state == JoinState.ASKING:
            welcome = unpack_welcome(frame)
            operator = self.joining.purpose == Purpose.OPERATOR
            if welcome.cluster_id != self.cluster_id and not self.membership.alone():
                # An answer to an introduction from a cluster that is not ours.
                self.joining.refused(Refusal.FINAL, "it is in another cluster", now)
                return
            if welcome.cluster_id != self.cluster_id:
                self.cluster_id = welcome.cluster_id
                self._writes.put("meta", KEY_CLUSTER_ID, bytes([VALUE_VERSION]) + self.cluster_id)
                self._note(f"joining the cluster of {self.joining.target}")
            for peer in self.peers.values():
                if peer.retry_at < math.inf:
                    peer.retry_at = now
            self._merge(welcome.members, welcome.removed, now)
            if operator:
                self._join_waits = [name for name in welcome.running if name != self.name]
            self.joining.welcomed(now)
        self._settle_join(now)

    def _receive_hello(self, node: str, connection: bytes, hello: Hello, now: float) -> None:
        """A control connection of a member, or of an invited node, began or waits for POSITIONS."""
        text = self._refusal(hello)
        if hello.name != node:
            text = f"the key is that of {node}, the Hello of {hello.name}"
        elif not text and hello.cluster_id != self.cluster_id:
            text = f"{self.name} is in another cluster"
        invitation = self._invitations.get(node)
        if not text and invitation is not None and invitation.member.store_id == hello.store_id:
            # It has adopted the cluster: from now on it is a member.
            del self._invitations[node]
            self._merge([invitation.member], [], now)
            self._tell_members(now)
            self._note(f"{node} at {hello.address} joined the cluster")
        peer = self.peers.get(node)
        if not text and peer is None:
            text = f"{node} is not a member of this cluster"
        if text or peer is None:
            self._count("hellos_refused")
            self._commands.append(Reply(connection, pack_refused(Refusal.FINAL, text)))
            return
        if hello.session < peer.session:
            self._count("frames_of_old_connections")
            return
        peer.connection = connection
        greeting = hello.session > peer.session
        if greeting:
            peer.session = hello.session
            peer.link_open = False
            peer.knows_interest = 0
            peer.requested_at = -math.inf
            # This node's own key may have been refused because the peer was only starting.
            if peer.retry_at < math.inf:
                peer.retry_at = now
        member = self.membership.members[node]
        if hello.incarnation > member.incarnation:
            told = replace(member, incarnation=hello.incarnation, address=hello.address, state=State.ALIVE)
            self._merge([told], [], now)
        peer.interest = (hello.interest_incarnation, hello.interest_version, hello.interest_checksum)
        peer.incoming.connected(hello.session)
        peer.liveness.heard(hello.counter, now, greeting)
        self._update_running(peer)
        self._repair_interest(peer, now)

    def _receive_heartbeat(self, peer: Peer, frame: bytes, now: float) -> None:
        heartbeat = unpack_heartbeat(frame)
        peer.liveness.heard(heartbeat.counter, now)
        peer.interest = (heartbeat.interest_incarnation, heartbeat.interest_version, heartbeat.interest_checksum)
        peer.knows_interest = heartbeat.known_interest_version
        peer.link_open = heartbeat.link_open
        self._acknowledged.extend(peer.outgoing.acknowledged(heartbeat.your_session, heartbeat.position, now))
        if heartbeat.link_open and peer.incoming.waiting_for_start:
            # The START frame may be on its way behind other bulk; if it is still missing a heartbeat later it is lost.
            peer.starts_missed += 1
            if peer.starts_missed > 1:
                peer.incoming.position_due = True
                peer.starts_missed = 0
        else:
            peer.starts_missed = 0
        if heartbeat.membership_digest != self.membership.digest():
            self._send_members(peer, now)
        self._update_running(peer)
        self._repair_interest(peer, now)
        self._settle_join(now)

    def _receive_members(self, peer: Peer, frame: bytes, now: float) -> None:
        members = unpack_members(frame)
        self._merge(members.members, members.removed, now)

    def _receive_interest_delta(self, peer: Peer, frame: bytes, now: float) -> None:
        delta = unpack_interest_delta(frame)
        known = self.interest.known_version(peer.name)
        if not self.interest.receive_delta(peer.name, delta):
            self._request_interest(peer, now)
            return
        if self.interest.known_version(peer.name) == known:
            # An old one, which changed nothing and must not change the store either.
            return
        prefix = KEY_INTEREST + peer.store_id
        for wish in delta.wishes:
            if wish.wanted and wish.persistent:
                self._writes.put("registry", prefix + wish.topic_filter, bytes([VALUE_VERSION]))
            else:
                self._writes.delete("registry", prefix + wish.topic_filter)
        self.routes_changed = True

    def _receive_interest_snapshot(self, peer: Peer, frame: bytes, now: float) -> None:
        if not self.interest.receive_snapshot(peer.name, unpack_interest_snapshot(frame)):
            return
        prefix = KEY_INTEREST + peer.store_id
        self._writes.delete_range("registry", prefix, _after(prefix))
        for topic_filter in self.interest.persistent_filters(peer.name):
            self._writes.put("registry", prefix + topic_filter, bytes([VALUE_VERSION]))
        self.routes_changed = True
        self._heartbeat(peer, now)
        self._settle_join(now)

    def _receive_interest_request(self, peer: Peer, frame: bytes, now: float) -> None:
        for delta in self.interest.take_deltas():
            for other in self.peers.values():
                self._send(other, delta)
        for part in self.interest.snapshot():
            self._send(peer, part)

    def _receive_positions(self, peer: Peer, frame: bytes, now: float) -> None:
        position = unpack_position(frame)
        if position.session != peer.outgoing.session or not peer.liveness.connected:
            return
        gaps = peer.outgoing.gaps
        self._acknowledged.extend(peer.outgoing.opened(position.session, position.position, now))
        if peer.outgoing.gaps > gaps:
            self._note(f"link gap: {peer.name} went back behind what it had acknowledged, and lost messages")
        peer.refusals = 0
        self._heartbeat(peer, now)
        self._settle_join(now)

    def _receive_link_ack(self, peer: Peer, frame: bytes, now: float) -> None:
        position = unpack_position(frame)
        self._acknowledged.extend(peer.outgoing.acknowledged(position.session, position.position, now))

    def _peer_connected(self, node: str, now: float) -> None:
        if node == JOIN:
            if self.joining.connected(self._hosting(), self.membership.alone(), now):
                self._commands.append(SendJoin(self._hello(0)))
            return
        peer = self.peers.get(node)
        if peer is None:
            return
        self._sessions += 1
        # Sessions of this node grow over its restarts, too.
        peer.outgoing.connected(self.incarnation << 32 | self._sessions)
        peer.retry_at = math.inf
        peer.liveness.connection_opened(now)
        self._update_running(peer)
        self._send(peer, self._hello(peer.outgoing.session))
        peer.heartbeat_at = now + self._heartbeat_s
        if peer.session:
            peer.incoming.position_due = True
            peer.requested_at = -math.inf
            self._repair_interest(peer, now)

    def _disconnected(self, peer: Peer, now: float) -> None:
        peer.outgoing.disconnected()
        peer.liveness.connection_closed(now)
        self._tell_state(peer)
        self._update_running(peer)

    def _peer_refused(self, node: str, now: float) -> None:
        peer = self.peers.get(node)
        if peer is None:
            return
        self._disconnected(peer, now)
        pause_s: float = REFUSED_RETRY_S * 2 ** min(peer.refusals, 10)
        peer.retry_at = now + min(pause_s, REFUSED_RETRY_MAX_S)
        peer.refusals += 1
        if peer.refusals % REFUSALS_BEFORE_INTRODUCTION == 0:
            # It may have lost the invitation it gave, or not have heard of this member yet.
            self.joining.introduce(node, peer.address)

    def _tick_peer(self, peer: Peer, now: float) -> None:
        if now >= peer.retry_at:
            peer.retry_at = math.inf
            self._commands.append(ConnectPeer(peer.name, peer.address))
        peer.liveness.tick(now)
        self._update_running(peer)
        if now >= peer.heartbeat_at and peer.liveness.connected:
            self._heartbeat(peer, now)
            probe = peer.outgoing.take_probe(now)
            if probe:
                self._commands.append(SendBulk(peer.name, probe))

    def _heartbeat(self, peer: Peer, now: float) -> None:
        """Say that this node turns; until the peer has answered the Hello, repeat that instead."""
        peer.heartbeat_at = now + self._heartbeat_s
        if not peer.liveness.connected:
            return
        outgoing = peer.outgoing
        if not outgoing.open:
            self._send(peer, self._hello(outgoing.session))
            return
        incarnation, version = self.interest.known_version(peer.name)
        known = version + 1 if incarnation and incarnation == peer.interest[0] else 0
        heartbeat = Heartbeat(
            outgoing.session,
            self._counter,
            self.membership.digest(),
            self.interest.incarnation,
            self.interest.version,
            self.interest.checksum,
            known,
            peer.incoming.session,
            peer.incoming.position,
            outgoing.open,
        )
        self._send(peer, pack_heartbeat(heartbeat))

    def _hello(self, session: int) -> bytes:
        own = self.membership.own()
        automatic = session == 0 and self.joining.purpose == Purpose.DISCOVERY
        return pack_hello(
            Hello(
                own.name,
                own.store_id,
                own.incarnation,
                session,
                self._counter,
                self.cluster_id,
                own.address,
                MESH_VERSION_OLDEST,
                MESH_VERSION_NEWEST,
                automatic,
                not self.membership.alone(),
                self.interest.incarnation,
                self.interest.version,
                self.interest.checksum,
            )
        )

    def _send(self, peer: Peer, frame: bytes) -> None:
        if peer.liveness.connected:
            self._commands.append(SendControl(peer.name, frame))

    def _send_position(self, peer: Peer) -> None:
        incoming = peer.incoming
        if incoming.position_due:
            self._send(peer, pack_positions(incoming.session, incoming.position))
        elif incoming.ack_due:
            self._send(peer, pack_link_ack(incoming.session, incoming.position))
        incoming.position_due = False
        incoming.ack_due = False

    def _send_members(self, peer: Peer, now: float) -> None:
        # Both sides see the difference; once a heartbeat is enough for either.
        if now - peer.members_sent_at >= self._heartbeat_s / 2:
            peer.members_sent_at = now
            self._send(peer, pack_members(self._all_members(), sorted(self.membership.removed)))

    def _tell_members(self, now: float) -> None:
        """Push the membership to everybody, without waiting for a heartbeat to show the difference."""
        for peer in self.peers.values():
            peer.members_sent_at = -math.inf
            self._send_members(peer, now)

    def _all_members(self) -> list[Member]:
        return [self.membership.members[name] for name in sorted(self.membership.members)]

    def _repair_interest(self, peer: Peer, now: float) -> None:
        incarnation, version, checksum = peer.interest
        if not self.interest.current(peer.name, incarnation, version, checksum):
            self._request_interest(peer, now)

    def _request_interest(self, peer: Peer, now: float) -> None:
        # A snapshot that was asked for may be on its way.
        if peer.liveness.connected and now - peer.requested_at >= 2 * self._heartbeat_s:
            peer.requested_at = now
            self._count("interest_requests")
            self._send(peer, pack_interest_request())

    def _refusal(self, hello: Hello) -> str:
        if hello.oldest > MESH_VERSION_NEWEST or hello.newest < MESH_VERSION_OLDEST:
            return (
                f"{hello.name} speaks mesh versions {hello.oldest} to {hello.newest}, "
                f"{self.name} speaks {MESH_VERSION_OLDEST} to {MESH_VERSION_NEWEST}: no version in common"
            )
        return self.membership.refusal(hello.name, hello.store_id)

    def _merge(self, members: list[Member], removed: list[tuple[str, bytes]], now: float) -> None:
        changed = False
        for name, store_id in removed:
            if self.membership.merge_removed(name, store_id):
                changed = True
                self._writes.put("meta", KEY_REMOVED + store_id + name.encode(), bytes([VALUE_VERSION]))
        for member in members:
            if self.membership.merge(member):
                changed = True
        if changed:
            self._update_peers(now)

    def _update_peers(self, now: float) -> None:
        """Bring peers and store in line with the membership."""
        others = {member.name: member for member in self.membership.others()}
        for name in list(self.peers):
            member = others.get(name)
            if member is None or member.store_id != self.peers[name].store_id:
                self._forget_peer(self.peers[name])
        for name, member in others.items():
            peer = self.peers.get(name)
            if peer is None:
                position = self._storage.get("meta", KEY_POSITION + member.store_id)
                number = 0 if position is None else int.from_bytes(_value(position), "big")
                self.peers[name] = Peer(member, self.store_id, number, self.settings.failure_timeout_s, now)
                self._commands.append(Admit(name))
                self._commands.append(ConnectPeer(name, member.address))
            elif peer.address != member.address:
                peer.address = member.address
                self._disconnected(peer, now)
                self._commands.append(ConnectPeer(name, member.address))
        self._store_members()

    def _forget_peer(self, peer: Peer) -> None:
        del self.peers[peer.name]
        _add_link_counts(self._link_counts, peer)
        self._acknowledged.extend(peer.outgoing.take_tickets())
        self.interest.forget(peer.name)
        self.routes_changed = True
        prefix = KEY_INTEREST + peer.store_id
        self._writes.delete_range("registry", prefix, _after(prefix))
        self._commands.append(Revoke(peer.name))
        self._commands.append(DisconnectPeer(peer.name))

    def _store_members(self) -> None:
        """Keep what finds the members again after a restart; who is heard is not for the store."""
        for name, member in self.membership.members.items():
            if name == self.name:
                continue
            state = member.state if member.state >= State.LEAVING else State.ALIVE
            value = bytes([VALUE_VERSION]) + pack_member(replace(member, state=state))
            if self._stored.get(name) != value:
                self._stored[name] = value
                self._writes.put("meta", KEY_MEMBER + name.encode(), value)
        for name in [name for name in self._stored if name not in self.membership.members]:
            del self._stored[name]
            self._writes.delete("meta", KEY_MEMBER + name.encode())

    def _update_running(self, peer: Peer) -> None:
        running = peer.liveness.running()
        if running == peer.running:
            return
        peer.running = running
        if not running:
            self._count("peers_died")
            self._tell_state(peer)
        self._note(f"{peer.name} is {'running' if running else 'not running'}")
        if self.interest.set_running(peer.name, running):
            self.routes_changed = True

    def _tell_state(self, peer: Peer) -> None:
        self.membership.tell(peer.name, peer.liveness.state)

    def _hosting(self) -> bool:
        """Say whether somebody holds an invitation of this node, which is still alone."""
        return bool(self._invitations) and self.membership.alone()

    def _settle_join(self, now: float) -> None:
        """End the operator's join if it can be said how."""
        joining = self.joining
        if not joining.operator_target:
            return
        node = joining.operator_target
        if joining.failure:
            self._finish_join(False, joining.failure)
        elif self.membership.alone():
            if now >= self._join_until:
                self._finish_join(False, f"{node} did not take this node in within {JOIN_TIMEOUT_S:.0f} s")
        elif node not in self.peers:
            others = ", ".join(member.name for member in self.membership.others())
            self._finish_join(False, f"this node is already in a cluster with others ({others}); let it leave first")
        else:
            waits = self._join_waits if node in self._join_waits else [*self._join_waits, node]
            missing = [name for name in waits if not self._complete(name)]
            if not missing:
                self._finish_join(True, "")
            elif now >= self._join_until:
                self._finish_join(
                    False,
                    f"this node is a member now, but within {JOIN_TIMEOUT_S:.0f} s the links and tables of "
                    f"{', '.join(sorted(missing))} did not become complete",
                )

    def _complete(self, name: str) -> bool:
        """Say whether links are open both ways, and both sides know each other's wishes."""
        peer = self.peers.get(name)
        if peer is None:
            return False
        incarnation, version, checksum = peer.interest
        return (
            peer.running
            and peer.outgoing.open
            and peer.link_open
            and peer.knows_interest > 0
            and self.interest.current(name, incarnation, version, checksum)
        )

    def _finish_join(self, joined: bool, text: str) -> None:
        self._join_result = JoinResult(joined, text)
        self._join_until = math.inf
        self.joining.settle()

    def _next_deadline(self, now: float) -> float:
        deadline = self.joining.deadline(self.membership.alone(), self._hosting())
        if self.joining.operator_target:
            deadline = min(deadline, self._join_until)
        for invitation in self._invitations.values():
            deadline = min(deadline, invitation.until)
        for peer in self.peers.values():
            deadline = min(deadline, peer.retry_at, peer.liveness.deadline())
            if peer.liveness.connected:
                deadline = min(deadline, peer.heartbeat_at)
        return deadline

    def _count(self, name: str) -> None:
        self._counts[name] += 1

    def _note(self, text: str) -> None:
        self.notes.append(text)


def _add_link_counts(counts: dict[str, int], peer: Peer) -> None:
    outgoing = peer.outgoing
    incoming = peer.incoming
    found = {
        "link_drop_memory": outgoing.dropped_memory,
        "link_drop_not_running": outgoing.dropped_not_running,
        "link_refused": outgoing.refused,
        "link_gap": outgoing.gaps + incoming.gaps,
        "link_resent_frames": outgoing.resent,
        "link_duplicates": incoming.duplicates,
        "link_stale_frames": incoming.stale,
        "link_messages_received": incoming.messages,
    }
    for name, count in found.items():
        counts[name] = counts.get(name, 0) + count


def _after(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`, which must not be all 0xFF."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def _value(stored: bytes) -> bytes:
    if len(stored) < 1 or stored[0] > VALUE_VERSION:
        raise StorageError("the store holds cluster data of a newer version of zvmq")
    return stored[1:]


def _stored_member(stored: bytes) -> Member:
    try:
        return read_member(Reader(_value(stored), 0))
    except FrameError as error:
        raise StorageError(f"the store's member data is corrupt: {error}") from None
