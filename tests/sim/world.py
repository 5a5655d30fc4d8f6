"""The simulated world: nodes, one clock, one source of chance, one heap of what happens next.

It owns time: a float that only the heap moves. Everything that could differ between two runs comes from `rng`, so that
a seed is a history. What a node is `virtual_node` says, what is between nodes `network`.
"""

import hashlib
import heapq
import random
import zlib
from collections import Counter

from network import Network
from virtual_node import CRASH_POINTS, Node

from broker.core.settings import OwnerSettings
from cluster.readiness import AVAILABLE

START_S = 1000.0
# A cut that is shorter than this nobody notices.
NOTICED_S = 0.9


class SimulationError(AssertionError):
    """A promise was broken; the text says which."""


class World:
    """Everything there is, from one seed."""

    def __init__(self, seed, trace=None):
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START_S
        self.digest = hashlib.blake2b(digest_size=8)
        self.nodes = {}
        # (when, who, whether that lived, until when it was waited for): every time that a node misses another one.
        self.misses = []
        # When a node started, a connection was cut or healed, or a node stood still.
        self.troubles = []
        # Since when two nodes can not hear each other, and when that was so before.
        self._cuts = {}
        self._divided = []
        # By client, how often its session began without its old home.
        self.revived = Counter()
        # Whether nobody begins to publish anything.
        self.is_hushed = False
        # Since when a donor gives, and how often that was by then.
        self.donates_since = float("inf")
        self.revived_before = Counter()
        # By client, how many sessions of its client id joined with their nodes.
        self.twins = Counter()
        # Client ids whose home was removed without its leave, and what was lost with it: (client id, payload), or
        # payloads that anybody was to have.
        self.orphans = set()
        self.lost = set()
        # What a donor still has for a node where it may come too late: sessions that went on from there had no stub
        # left for a member that was removed.
        self.astray = set()
        # The node that is to leave, since when, and where a client goes instead that finds its node no more.
        self.leaver = None
        self.leaves_since = 0.0
        self.refuge = lambda client: None
        # Whether half of the client ids belong to a user each.
        self.has_users = False
        # By shared filter and payload, how often a message was taken from a dead node for other members.
        self.moved = Counter()
        self.stats = Counter()
        self.turns = 0
        # Looking changes nothing: who replays a seed sees the turn in which it went wrong.
        self.validate_every = 8 if trace is None else 1
        self.power_loss = False
        # Which members a node needs to be ready. Seeds that are about messages across a split need none.
        self.readiness = AVAILABLE
        self.crash_points = CRASH_POINTS
        self.network = Network(self)
        # Planted bugs of the mutation tests.
        self.acknowledge_before_commit = False
        self.mutations = []
        self._trace = trace
        self._heap = []
        self._order = 0

    def user_of(self, client_id):
        """Return the user to whom a client id belongs, None for nobody."""
        has_user = self.has_users and zlib.crc32(f"{self.seed} {client_id}".encode()) & 1
        return f"user of {client_id}" if has_user else None

    def add_node(self, name, settings=None, listeners=2, discovery=()):
        """Add a node that is not started yet."""
        node = Node(self, name, settings or OwnerSettings(), listeners, discovery)
        self.nodes[name] = node
        return node

    def at(self, at, call, *arguments):
        """Let something happen at a time; what is due at the same time happens in the order of the calls."""
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, call, arguments))

    def later(self, delay_s, call, *arguments):
        """Let something happen after a delay."""
        self.at(self.now + delay_s, call, *arguments)

    def run(self, seconds, until=None, every_s=0.25):
        """Let time pass; end early, and return True, when `until` says so. It is asked every `every_s`."""
        end = self.now + seconds
        ask_at = self.now
        heap = self._heap
        while True:
            if until is not None and self.now >= ask_at:
                if until():
                    return True
                ask_at = self.now + every_s
            if not heap or heap[0][0] > end:
                break
            at, _order, call, arguments = heapq.heappop(heap)
            if at > self.now:
                self.now = at
            call(*arguments)
        self.now = end
        return until is not None and until()

    def short_delay(self):
        """Return what a pipe or the scheduler of one machine takes, in seconds."""
        return 0.0001 + 0.002 * self.rng.random()

    def members(self):
        """Return the nodes that are members, or will be."""
        return [node for node in self.nodes.values() if not node.is_gone]

    def is_lost(self, client_id, payload, wanders=False):
        """Say whether a message for somebody may be lost with the disk of a node that was removed."""
        return (client_id, payload) in self.lost or payload in self.lost or (wanders and payload in self.astray)

    def running_nodes(self):
        """Return the nodes whose process lives."""
        return [node for node in self.nodes.values() if node.up]

    def count(self, name, count=1):
        """Count something for the summary."""
        self.stats[name] += count

    def missed(self, name):
        """A node says that it does not hear another one, so that others may claim wills of that."""
        node = self.nodes[name]
        self.misses.append((self.now, name, node.up, node.planned_until))

    def cut(self, one, other):
        """Two nodes can't hear each other any more, or one of them the other."""
        self.trouble()
        self._cuts.setdefault(frozenset((one, other)), self.now)

    def healed(self, one, other):
        """Two nodes can hear each other again."""
        self.trouble()
        begun = self._cuts.pop(frozenset((one, other)), None)
        if begun is not None:
            self._divided.append((begun, self.now))

    def is_divided(self, since, until):
        """Say whether between two times some node may have taken another for dead that lived."""
        divided = [*self._divided, *[(begun, self.now) for begun in self._cuts.values()]]
        if any(begun <= until and end >= since and end - begun > NOTICED_S for begun, end in divided):
            return True
        return any(lived and since <= at <= until for at, _name, lived, _planned_until in self.misses)

    def trouble(self):
        """Something happens after which nodes may need a while to find each other."""
        self.troubles.append(self.now)

    def note(self, text):
        """Write a line of the trace."""
        self.digest.update(text.encode())
        if self._trace is not None:
            self._trace(f"{self.now:11.6f}  {text}")

    def traces(self):
        """Say whether anybody reads the trace."""
        return self._trace is not None

    def mutate(self, node, effects):
        """Let planted bugs change what a turn decided."""
        for mutation in self.mutations:
            mutation(node, effects)

    def check(self, condition, text):
        """Raise SimulationError unless the condition holds."""
        if not condition:
            raise SimulationError(text)
