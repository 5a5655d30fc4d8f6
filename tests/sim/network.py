"""The virtual network: it stands where cluster/transport.py stands, and breaks what networks break.

It owns the connections between nodes and carries out `MeshCommand`s. It never looks into a frame but for the trace.

As with a ZeroMQ DEALER at a ROUTER: whoever wants to talk connects; control and bulk are two connections, each in order
and neither waiting for the other; a lost connection is dialled again without a word, a refused key is not; frames that
were under way when a connection ended are lost behind some point, and the last of what was sent may arrive once more
on the next connection, before anything new. A frame that arrives late, of a connection that is over for its sender,
still arrives. The target isn't told that a connection ended.

A partition holds what goes in its directions, as TCP does: a short one delays, a longer one ends connections. While
either direction is blocked no new connection comes about.
"""

from collections import deque

from cluster.commands import (
    Admit,
    CloseJoin,
    ConnectPeer,
    DisconnectPeer,
    FrameReceived,
    JoinFailed,
    OpenJoin,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Reply,
    Revoke,
    SendBulk,
    SendControl,
    SendJoin,
)
from cluster.frames import FrameType
from cluster.keys import JOIN

CONTROL = "control"
BULK = "bulk"
# How many of the last frames of a connection may be seen again on the next.
REPEATABLE_FRAMES = 4


class Wire:
    """One connection, from the node that opened it; `sent` and `replies` are what is under way."""

    def __init__(self, network, lane, source, target, opens_at=0.0):
        network.wires_made += 1
        self.network = network
        self.id = b"%s/%s/%d" % (source.name.encode(), lane.encode(), network.wires_made)
        self.lane = lane
        self.source = source
        self.source_life = source.life
        self.target = target
        self.target_life = target.life
        self.open = True
        self.recent = deque(maxlen=REPEATABLE_FRAMES)
        self._sent = deque()
        self._replies = deque()
        self._sent_at = opens_at
        self._replied_at = 0.0
        self._held = 0
        self._held_replies = 0
        # A connection has its own speed; a few are slow.
        rng = network.world.rng
        self._delay_s = rng.choice((0.001, 0.002, 0.005, 0.02, 0.1))

    def send(self, frame):
        """Put a frame on the way to the target."""
        self.recent.append(frame)
        self._sent.append(frame)
        world = self.network.world
        self._sent_at = max(self._sent_at, world.now + self._delay_s * (0.1 + world.rng.random()))
        world.at(self._sent_at, self._arrive)

    def reply(self, frame):
        """Put a frame on the way back."""
        if not self.open:
            return
        self._replies.append(frame)
        world = self.network.world
        self._replied_at = max(self._replied_at, world.now + self._delay_s * (0.1 + world.rng.random()))
        world.at(self._replied_at, self._arrive_back)

    def end(self, linger=False):
        """End the connection: some of what is under way still arrives; all of it with `linger`."""
        self.open = False
        self._replies.clear()
        if linger:
            return
        network = self.network
        if network.blocked(self.source.name, self.target.name):
            keep = 0
        else:
            keep = network.world.rng.randint(0, len(self._sent))
        network.world.count("frames lost", len(self._sent) - keep)
        while len(self._sent) > keep:
            self._sent.pop()

    def released(self):
        """What a partition held goes on."""
        world = self.network.world
        held, self._held = self._held, 0
        for _ in range(held):
            self._sent_at = max(self._sent_at, world.now + world.rng.uniform(0.001, 0.2))
            world.at(self._sent_at, self._arrive)
        held, self._held_replies = self._held_replies, 0
        for _ in range(held):
            self._replied_at = max(self._replied_at, world.now + world.rng.uniform(0.001, 0.2))
            world.at(self._replied_at, self._arrive_back)

    def _arrive(self):
        network = self.network
        if self._held or network.blocked(self.source.name, self.target.name):
            self._held += 1
            return
        if not self._sent:
            return
        frame = self._sent.popleft()
        target = self.target
        if not target.up or target.life != self.target_life:
            return
        network.frame_arrives(target, self.source.name if self.lane != JOIN else JOIN, self.id, frame)

    def _arrive_back(self):
        network = self.network
        if self._held_replies or network.blocked(self.target.name, self.source.name):
            self._held_replies += 1
            return
        source = self.source
        if not self._replies:
            return
        frame = self._replies.popleft()
        if source.up and source.life == self.source_life and self.open:
            network.frame_arrives(source, self.target.name if self.lane != JOIN else JOIN, b"", frame)


class Dial:
    """The wish of a node to be connected to another."""

    def __init__(self, address):
        self.address = address
        self.control = None
        self.bulk = None
        self.leftovers = {CONTROL: (), BULK: ()}


class Endpoint:
    """The transport of one life of a node."""

    def __init__(self):
        self.admitted = set()
        self.dials = {}
        self.join = None
        self.join_attempt = 0


class Network:
    """All connections between the nodes of a world."""

    def __init__(self, world):
        self.world = world
        self.endpoints = {}
        self.wires_made = 0
        self.lose_frame = None
        self._wires = {}
        self._blocked = set()
        self._handlers = {
            Admit: self._admit,
            Revoke: self._revoke,
            ConnectPeer: self._connect_peer,
            DisconnectPeer: self._disconnect_peer,
            SendControl: self._send_control,
            SendBulk: self._send_bulk,
            Reply: self._reply,
            OpenJoin: self._open_join,
            SendJoin: self._send_join,
            CloseJoin: self._close_join,
        }

    def node_started(self, node):
        """A node has a new transport."""
        self.endpoints[node.name] = Endpoint()

    def node_died(self, node):
        """A node's connections are gone; the others notice at once, or only after a while."""
        endpoint = self.endpoints.pop(node.name)
        for dial in endpoint.dials.values():
            self._end_wires(dial, False)
        if endpoint.join is not None:
            self._end(endpoint.join, False)
        rng = self.world.rng
        noticed_s = rng.uniform(0.0, 0.05) if rng.random() < 0.7 else rng.uniform(1.0, 3.0)
        for name, other in self.endpoints.items():
            source = self.world.nodes[name]
            dial = other.dials.get(node.name)
            if dial is not None and dial.control is not None:
                self.world.later(noticed_s * rng.random(), self._lose, source, source.life, dial, dial.control)
            if other.join is not None and other.join.target is node:
                self.world.later(noticed_s * rng.random(), self._join_lost, source, source.life, other.join)

    def execute(self, node, commands):
        """Carry out commands in order."""
        for command in commands:
            self._handlers[type(command)](node, command)

    def blocked(self, source, target):
        """Say whether a partition stops what goes from `source` to `target`."""
        return (source, target) in self._blocked

    def partition(self, one, other, both):
        """Block what goes from `one` to `other`, and what comes back if `both`."""
        world = self.world
        world.count("partitions")
        if not both:
            world.count("partitions of one direction")
        world.note(f"partition {one} {'<->' if both else '->'} {other}")
        self._blocked.add((one, other))
        world.cut(one, other)
        if both:
            self._blocked.add((other, one))
        for wire in self._wires_between(one, other):
            # Heartbeats of the connection go unanswered either way.
            world.later(world.rng.uniform(1.0, 3.0), self._unanswered, wire)

    def heal(self, one, other):
        """End the partition between two nodes."""
        if (one, other) not in self._blocked and (other, one) not in self._blocked:
            return
        self.world.count("heals")
        self.world.note(f"heal {one} {other}")
        self.world.healed(one, other)
        self._blocked.discard((one, other))
        self._blocked.discard((other, one))
        for wire in self._wires_between(one, other):
            wire.released()

    def heal_all(self):
        """End every partition."""
        for one, other in sorted(self._blocked):
            self.heal(one, other)

    def break_connection(self, source, target):
        """Reset the connections that one node opened to another."""
        endpoint = self.endpoints.get(source.name)
        dial = None if endpoint is None else endpoint.dials.get(target.name)
        if dial is not None and dial.control is not None:
            self._lose(source, source.life, dial, dial.control)

    def break_bulk(self, source, target):
        """Reset only the bulk connection: frames are lost and nobody is told."""
        endpoint = self.endpoints.get(source.name)
        dial = None if endpoint is None else endpoint.dials.get(target.name)
        if dial is None or dial.bulk is None or not target.up:
            return
        self.world.count("bulk resets")
        self.world.note(f"bulk reset {source.name} -> {target.name}")
        leftovers = self._leftovers(dial.bulk)
        self._end(dial.bulk, False)
        dial.bulk = self._make(BULK, source, target, self.world.now + self.world.rng.uniform(0.01, 0.3))
        self._repeat(dial.bulk, leftovers)

    def frame_arrives(self, node, sender, connection, frame):
        """Hand a frame over to a node, unless a planted fault loses it."""
        if self.lose_frame is not None and self.lose_frame(frame):
            return
        world = self.world
        world.count("frames")
        world.digest.update(frame)
        if world.traces():
            kind = FrameType(frame[1]).name if len(frame) > 1 else "?"
            world.note(f"frame {kind} of {len(frame)} {sender} -> {node.name} on {connection.decode()}")
        node.input_arrives(FrameReceived(sender, connection, frame))

    def _wires_between(self, one, other):
        pair = {one, other}
        return [wire for wire in self._wires.values() if {wire.source.name, wire.target.name} == pair]

    def _make(self, lane, source, target, opens_at=0.0):
        wire = Wire(self, lane, source, target, opens_at)
        self._wires[wire.id] = wire
        if len(self._wires) > 200:
            self._wires = {known.id: known for known in self._wires.values() if known.open or known._sent}
        return wire

    def _end(self, wire, linger):
        wire.end(linger)

    def _end_wires(self, dial, linger):
        for wire in (dial.control, dial.bulk):
            if wire is not None:
                self._end(wire, linger)
        dial.control = dial.bulk = None

    def _leftovers(self, wire):
        """Return the frames of a lost connection that will be seen again on the next."""
        rng = self.world.rng
        if not wire.recent or rng.random() < 0.6:
            return ()
        return tuple(wire.recent)[-rng.randint(1, len(wire.recent)) :]

    def _repeat(self, wire, frames):
        for frame in frames:
            self.world.count("frames duplicated")
            wire.send(frame)

    def _current(self, source, life, peer, dial):
        if not source.up or source.life != life:
            return False
        return self.endpoints[source.name].dials.get(peer) is dial

    def _attempt(self, source, life, peer, dial):
        """Dial once; dial again later unless the key is refused."""
        if not self._current(source, life, peer, dial) or dial.control is not None:
            return
        world = self.world
        rng = world.rng
        target = self._by_address(dial.address)
        if target is None or not target.up:
            world.later(rng.uniform(0.05, 0.5), self._attempt, source, life, peer, dial)
        elif self.blocked(source.name, target.name) or self.blocked(target.name, source.name):
            world.later(rng.uniform(0.3, 1.5), self._attempt, source, life, peer, dial)
        elif source.name not in self.endpoints[target.name].admitted:
            world.note(f"{target.name} does not admit {source.name}")
            world.count("keys refused")
            world.later(rng.uniform(0.001, 0.02), self._refuse, source, life, peer, dial)
        else:
            world.later(rng.uniform(0.001, 0.02), self._establish, source, life, peer, dial, target, target.life)

    def _refuse(self, source, life, peer, dial):
        if self._current(source, life, peer, dial):
            source.input_arrives(PeerRefused(peer))

    def _establish(self, source, life, peer, dial, target, target_life):
        if not self._current(source, life, peer, dial) or dial.control is not None:
            return
        down = not target.up or target.life != target_life
        if down or self.blocked(source.name, target.name) or self.blocked(target.name, source.name):
            self.world.later(self.world.rng.uniform(0.05, 0.5), self._attempt, source, life, peer, dial)
            return
        self.world.count("connections")
        dial.control = self._make(CONTROL, source, target)
        dial.bulk = self._make(BULK, source, target)
        for wire in (dial.control, dial.bulk):
            self._repeat(wire, dial.leftovers[wire.lane])
        dial.leftovers = {CONTROL: (), BULK: ()}
        self.world.note(f"{source.name} -> {peer} connected on {dial.control.id.decode()}")
        source.input_arrives(PeerConnected(peer))

    def _lose(self, source, life, dial, control):
        """The control connection is gone: say so and dial again."""
        peer = control.target.name
        if not self._current(source, life, peer, dial) or dial.control is not control:
            return
        self.world.note(f"{source.name} -> {peer} lost")
        self.world.count("connections lost")
        dial.leftovers = {CONTROL: self._leftovers(dial.control), BULK: self._leftovers(dial.bulk)}
        self._end_wires(dial, False)
        source.input_arrives(PeerDisconnected(peer))
        self.world.later(self.world.rng.uniform(0.02, 0.3), self._attempt, source, life, peer, dial)

    def _unanswered(self, wire):
        source, target = wire.source, wire.target
        if not wire.open or not source.up or source.life != wire.source_life:
            return
        if not (self.blocked(source.name, target.name) or self.blocked(target.name, source.name)):
            return
        endpoint = self.endpoints[source.name]
        dial = endpoint.dials.get(target.name)
        if dial is not None and dial.control is wire:
            self._lose(source, source.life, dial, wire)
        elif endpoint.join is wire:
            self._join_lost(source, source.life, wire)

    def _join_lost(self, source, life, wire):
        if source.up and source.life == life and self.endpoints[source.name].join is wire:
            self._end(wire, False)
            self.endpoints[source.name].join = None
            source.input_arrives(JoinFailed("disconnected", "the connection was closed before an answer came"))

    def _by_address(self, address):
        for node in self.world.nodes.values():
            if node.address == address:
                return node
        return None

    def _admit(self, node, command):
        self.endpoints[node.name].admitted.add(command.node)

    def _revoke(self, node, command):
        self.endpoints[node.name].admitted.discard(command.node)

    def _connect_peer(self, node, command):
        endpoint = self.endpoints[node.name]
        old = endpoint.dials.get(command.node)
        if old is not None:
            self._end_wires(old, False)
        dial = Dial(command.address)
        endpoint.dials[command.node] = dial
        self.world.later(self.world.rng.uniform(0.0005, 0.01), self._attempt, node, node.life, command.node, dial)

    def _disconnect_peer(self, node, command):
        dial = self.endpoints[node.name].dials.pop(command.node, None)
        if dial is not None:
            self._end_wires(dial, True)

    def _send_control(self, node, command):
        dial = self.endpoints[node.name].dials.get(command.node)
        if dial is not None and dial.control is not None:
            dial.control.send(command.frame)

    def _send_bulk(self, node, command):
        dial = self.endpoints[node.name].dials.get(command.node)
        if dial is not None and dial.bulk is not None:
            dial.bulk.send(command.frame)

    def _reply(self, node, command):
        wire = self._wires.get(command.connection)
        if wire is not None and wire.target is node and wire.target_life == node.life:
            wire.reply(command.frame)

    def _open_join(self, node, command):
        self._close_join(node, None)
        endpoint = self.endpoints[node.name]
        endpoint.join_attempt += 1
        self.world.later(
            self.world.rng.uniform(0.001, 0.03), self._attempt_join, node, node.life, endpoint.join_attempt, command
        )

    def _attempt_join(self, node, life, attempt, command):
        if not node.up or node.life != life or self.endpoints[node.name].join_attempt != attempt:
            return
        target = self._by_address(command.address)
        if target is None or not target.up:
            node.input_arrives(JoinFailed("refused", "the TCP connection was refused"))
        elif self.blocked(node.name, target.name) or self.blocked(target.name, node.name):
            # The mesh gives up by itself.
            self.world.later(0.5, self._attempt_join, node, life, attempt, command)
        else:
            self.endpoints[node.name].join = self._make(JOIN, node, target)
            node.input_arrives(PeerConnected(JOIN))

    def _send_join(self, node, command):
        wire = self.endpoints[node.name].join
        if wire is not None:
            wire.send(command.frame)

    def _close_join(self, node, command):
        endpoint = self.endpoints[node.name]
        endpoint.join_attempt += 1
        if endpoint.join is not None:
            self._end(endpoint.join, True)
            endpoint.join = None
