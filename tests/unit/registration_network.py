"""Registrations of a few nodes on a network in memory: delays, losses and crashes from one seed, no waiting.

Each node has a table of epochs that only it writes, as a registry has: it tells its rows when they change, and all of
them once a heartbeat. `Network.check` looks at every grant while it happens.
"""

import heapq
import itertools
import random

from cluster.epoch import NO_EPOCH, Epoch
from cluster.registration import Granted, Registration

HEARTBEAT_S = 0.3
# What every request has to end in.
REQUEST_S = 5.0
CLIENT_IDS = [f"client {number}" for number in range(5)]


class Node:
    """One registration, the tables behind it, and what its CONNECTs do with the turns."""

    def __init__(self, network, name):
        self.network = network
        self.name = name
        self.store_id = name.encode().ljust(16, b".")
        self.incarnation = 0
        self.up = False
        # What outlives a crash: own rows, and the others' as far as they are known.
        self.tables = {name: {}}
        self.tokens = itertools.count(1)

    def start(self):
        self.up = True
        self.incarnation += 1
        self.started_at = self.network.now
        # When the last whole table of each peer came, and what it held.
        self.table_at = {}
        self.registration = Registration(self.name, self.store_id, self.incarnation, self.find, self.is_current)
        self.peers = set()
        # By token: when and for what it was asked; those granted, with (client id, granted at, view at that time).
        self.asked = {}
        self.holds = {}
        self.ticks_at = float("inf")

    def find(self, client_id):
        return max(table.get(client_id, NO_EPOCH) for table in self.tables.values())

    def is_current(self, since):
        return all(self.table_at.get(peer, -1.0) >= since for peer in self.peers)

    def request(self, client_id):
        token = next(self.tokens)
        self.asked[token] = (client_id, self.network.now)
        self.registration.request(client_id, token, self.network.now)
        self.network.after(self)
        return token

    def release(self, token, raised=True):
        """Give the turn back, with a new epoch of this node or with nothing; or give the request up."""
        epoch = NO_EPOCH
        hold = self.holds.pop(token, None)
        client_id = self.asked.pop(token)[0]
        if hold and raised:
            known = max(self.find(client_id), hold[3])
            epoch = Epoch(known.counter + 1, int(self.network.now * 1000), self.store_id)
            self.tables[self.name][client_id] = epoch
            for peer in sorted(self.peers):
                self.network.send(self, peer, ("row", client_id, epoch))
            self.network.released.setdefault(client_id, []).append((epoch, self.network.now, self))
        self.registration.release(token, epoch, self.network.now)
        self.network.after(self)

    def held(self, client_id):
        """Return the tokens that hold the client id's turn."""
        return [token for token, hold in self.holds.items() if hold[0] == client_id]

    def outcome(self, token):
        """Return "waiting", "held" or "over"."""
        return "held" if token in self.holds else "waiting" if token in self.asked else "over"


class Network:
    """Delivers in order per pair and connection, unless it is told to disturb."""

    def __init__(self, seed=0, count=3, loss=0.0, disturb=False, notice_s=1.0):
        self.rng = random.Random(seed)
        self.now = 100.0
        self.loss = loss
        # Frames are doubled, and come late and in any order.
        self.disturb = disturb
        # How long it takes at most until somebody else's death or start is noticed.
        self.notice_s = notice_s
        self.nodes = {name: Node(self, name) for name in (f"node{number}@h" for number in range(1, count + 1))}
        self.released = {}
        self.granted = 0
        self.timed_out = 0
        self.shared_since = self.now
        self.strict = True
        self.lose = lambda source, target, frame: False
        self._events = []
        self._order = itertools.count()
        self._last_arrival = {}
        # By (source, target): the connection on which source's frames come.
        self._connections = {}
        self._cut = set()

    # What happens.

    def later(self, delay_s, happen, *arguments):
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), happen, arguments))

    def run(self, seconds):
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, happen, arguments = heapq.heappop(self._events)
            happen(*arguments)
        self.now = end

    def up(self):
        return [node for node in self.nodes.values() if node.up]

    def start(self, *names):
        """Start nodes, all if none is named; everybody hears of it sooner or later."""
        for name in names or self.nodes:
            node = self.nodes[name]
            node.start()
            self.later(self.rng.uniform(0.0, HEARTBEAT_S), self._heartbeat, node, node.incarnation)
            self.after(node)
            for other in self.up():
                if other is not node:
                    self._connect(node, other)

    def crash(self, name):
        node = self.nodes[name]
        node.up = False
        self._views_differ()
        for other in self.up():
            self._disconnect(other, node, node.incarnation)

    def partition(self, one, other, noticed_by_both=True):
        """Cut the connection between two nodes; each notices by itself, or only `one` does, and the other never."""
        self._cut.add(frozenset((one.name, other.name)))
        for source, target in ((one, other), (other, one))[: 2 if noticed_by_both else 1]:
            self._disconnect(source, target, target.incarnation)

    def heal(self):
        cut, self._cut = self._cut, set()
        for pair in sorted(sorted(names) for names in cut):
            one, other = (self.nodes[name] for name in pair)
            if one.up and other.up:
                self._connect(one, other)

    def settle(self):
        """Let everybody hear everybody, and all that was going on come to its end."""
        self.run(2 * self.notice_s + 1.0)
        names = {node.name for node in self.up()}
        for node in self.up():
            assert node.peers | {node.name} == names, "the test has to wait for the views"

    def ready(self, node):
        """Say whether the node hears every node there is."""
        return node.peers >= {other.name for other in self.up()} - {node.name}

    def send(self, source, target, frame):
        if self.rng.random() < self.loss or self.lose(source, target, frame):
            return
        lane = (source.name, target)
        if lane not in self._connections:
            return
        for _ in range(2 if self.disturb and self.rng.random() < 0.2 else 1):
            at = self.now + self.rng.uniform(0.001, 0.03)
            if self.disturb and self.rng.random() < 0.2:
                at += self.rng.uniform(0.0, 2.0)
            else:
                at = max(at, self._last_arrival.get(lane, 0.0))
                self._last_arrival[lane] = at
            self.later(at - self.now, self._arrive, source, target, self._connections[lane], frame)

    def after(self, node):
        """Do what a shell does after each call, and look whether all is well."""
        registration = node.registration
        for result in registration.take_results():
            client_id, asked_at = node.asked[result.token]
            assert result.client_id == client_id
            assert self.now <= asked_at + REQUEST_S
            if isinstance(result, Granted):
                self.granted += 1
                self._check(node, client_id, result.epoch)
                node.holds[result.token] = (client_id, self.now, registration.view(), result.epoch)
            else:
                assert self.now == asked_at + REQUEST_S
                self.timed_out += 1
                del node.asked[result.token]
        for target, frame in registration.take_frames():
            self.send(node, target, ("turn", frame))
        registration.validate()
        at = registration.next_deadline()
        if at < node.ticks_at:
            node.ticks_at = at
            self.later(max(0.0, at - self.now), self._tick, node, node.incarnation)

    def _check(self, node, client_id, epoch):
        view = node.registration.view()
        for other in self.up():
            for token in other.held(client_id):
                _, granted_at, granted_in, _ = other.holds[token]
                what = (
                    f"{client_id} granted to {node.name} at {self.now:.3f}, {other.name} has it since {granted_at:.3f}"
                )
                assert not self.strict, what
                # Both nodes, and all others, had the same view at either grant and ever since.
                assert not (self._is_shared() and granted_in == view and granted_at >= self.shared_since), what
        for released, released_at, home in self.released.get(client_id, ()):
            # What the dead knew nobody else has to know; of two halves of a cluster neither knows the other's.
            heard = self.strict and home.up and home.started_at <= released_at
            if heard or (self._is_shared() and released_at >= self.shared_since):
                assert epoch >= released, f"{client_id} granted with {epoch}, not {released}"

    def _is_shared(self):
        return len({node.registration.view() for node in self.up()}) == 1

    def _views_differ(self):
        """Something is about to change the views; from when the last has changed they are shared again."""
        self.shared_since = self.now

    def _tick(self, node, incarnation):
        if node.up and node.incarnation == incarnation and self.now >= node.ticks_at:
            node.ticks_at = float("inf")
            node.registration.tick(self.now)
            self.after(node)

    def _heartbeat(self, node, incarnation):
        if node.up and node.incarnation == incarnation:
            for peer in sorted(node.peers):
                self.send(node, peer, ("table", self.now, dict(node.tables[node.name])))
            self.later(HEARTBEAT_S, self._heartbeat, node, incarnation)

    def _arrive(self, source, name, connection, frame):
        target = self.nodes[name]
        if not target.up or self._connections.get((source.name, name)) != connection or source.name not in target.peers:
            return
        table = target.tables.setdefault(source.name, {})
        if frame[0] == "turn":
            target.registration.receive(source.name, frame[1], self.now)
            self.after(target)
        elif frame[0] == "row":
            table[frame[1]] = max(table.get(frame[1], NO_EPOCH), frame[2])
        else:
            for client_id, epoch in frame[2].items():
                table[client_id] = max(table.get(client_id, NO_EPOCH), epoch)
            # Told when it was sent: a frame may overtake another here.
            target.table_at[source.name] = max(target.table_at.get(source.name, 0.0), frame[1])

    def _connect(self, one, other):
        for source, target in ((one, other), (other, one)):
            delay_s = self.rng.uniform(0.0, self.notice_s)
            self.later(delay_s, self._starts, source, source.incarnation, target, target.incarnation)

    def _starts(self, node, life, other, other_life):
        if (
            not node.up
            or not other.up
            or (node.incarnation, other.incarnation) != (life, other_life)
            or frozenset((node.name, other.name)) in self._cut
        ):
            return
        self._views_differ()
        self._connections[other.name, node.name] = next(self._order)
        node.peers.add(other.name)
        node.registration.member_started(other.name, other.store_id, other.incarnation, self.now)
        self.after(node)

    def _disconnect(self, node, other, other_life):
        delay_s = self.rng.uniform(0.0, self.notice_s)
        self.later(delay_s, self._stops, node, node.incarnation, other, other_life)

    def _stops(self, node, life, other, other_life):
        cut = frozenset((node.name, other.name)) in self._cut
        if not node.up or node.incarnation != life or other.name not in node.peers:
            return
        if other.incarnation != other_life or (other.up and not cut):
            return
        self._views_differ()
        self._connections.pop((other.name, node.name), None)
        node.peers.discard(other.name)
        node.registration.member_stopped(other.name, self.now)
        self.after(node)


def cluster(seed=0, count=3, **options):
    """Nodes that all hear each other."""
    network = Network(seed, count, **options)
    network.start()
    network.settle()
    return network, list(network.nodes.values())


def client_of(network, keeper, number=0):
    """Return the `number`th client id that a node keeps."""
    node = network.up()[0]
    ids = (f"id {count}" for count in itertools.count())
    return next(itertools.islice((each for each in ids if node.registration.keeper(each) == keeper.name), number, None))
