"""Scenes: a few nodes of one cluster, and clients that do what they are told, for a history that is written down.

The same world as the seeds', but nothing goes wrong here that the scene does not say.
"""

import convergence
from ledger import Ledger
from virtual_clients import OFFLINE, ONLINE, Client
from world import World

from broker.core.settings import OwnerSettings
from cluster.readiness import AVAILABLE


class Scene:
    """Nodes that are one cluster; `nodes` are in the order of their names."""

    def __init__(self, seed=1, count=3, settings=None, readiness=AVAILABLE, trace=None):
        self.world = World(seed, trace)
        self.world.readiness = readiness
        self.world.promises = lambda publisher, message: None
        self.ledger = Ledger()
        self.settings = settings or OwnerSettings()
        self.clients = []
        self.nodes = [self.add_node(f"node{number}@h") for number in range(1, count + 1)]
        for node in self.nodes[1:]:
            self.join(node, self.nodes[0])
        self.until(self.is_whole)

    def add_node(self, name):
        """Start a node that is alone."""
        node = self.world.add_node(name, self.settings, 1)
        node.start()
        return node

    def begin_join(self, node, target):
        """Have a node ask another one to be taken in."""
        node.core.join(target.name, target.address, node.clocks.monotonic())
        node.wake(0.0)

    def join(self, node, target):
        """Have a node join the cluster of another, and wait for the answer."""
        self.begin_join(node, target)
        results = []

        def decided():
            result = node.core.take_join_result()
            if result is not None:
                results.append(result)
            return bool(results)

        self.until(decided)
        assert results[0].joined, results[0].text

    def is_whole(self):
        """Say whether all nodes hear each other, and know what each has, be it that it has not told that yet."""
        hear_all = all(
            node.up and len(node.core.mesh.peers) == len(self.world.nodes) - 1 and node.core.mesh.is_complete()
            for node in self.world.nodes.values()
        )
        return hear_all and not convergence.tables_converged(self.world)

    def run(self, seconds):
        """Let time pass."""
        self.world.run(seconds)

    def until(self, condition, seconds=30.0):
        """Let time pass until something is so; fail if it is not within that time."""
        assert self.world.run(seconds, condition, 0.02), "it did not come about"

    # Clients.

    def client(self, name, home, filters=(), persistent=True, version=5, client_id=""):
        """Make a client; `filters` has the QoS by filter."""
        client = Client(self.world, self.ledger, name, home, version, persistent, dict(filters))
        client.client_id = client_id or name
        client.comes_back = False
        self.clients.append(client)
        return client

    def connect(self, client, home=None, clean=False):
        """Have a client connect, to another node if that is named, and subscribe to what it wants.

        It does so again if it is refused, as where a node can't know yet who has what of its session.
        """
        client.home = home or client.home
        client.connect(clean)

        def is_there():
            if client.state == OFFLINE:
                client.connect(clean)
            return client.state == ONLINE and set(client.subscribed) == set(client.wanted)

        self.until(is_there)

    def comes(self, name, home, filters=(), **options):
        """Make a client that is there, with all nodes knowing what it wants."""
        client = self.client(name, home, filters, **options)
        self.connect(client)
        self.until(self.is_whole)
        return client

    def goes(self, client, abruptly=False):
        """Have a client disconnect."""
        client.disconnect(abruptly)
        self.until(lambda: client.state == OFFLINE)
        self.run(0.1)

    def publish(self, client, topic, qos=1, count=1, padding_bytes=0):
        """Have messages published and acknowledged; return their payloads."""
        before = len(self.ledger.published)
        for _ in range(count):
            client.publish(topic, qos, padding_bytes)
        self.until(client.outbox.is_empty)
        return list(self.ledger.published)[before:]

    def payloads(self, client):
        """Return what a client received, in order, without what it was plainly sent again."""
        seen = {}
        for arrival in client.inbox.arrivals:
            seen.setdefault(arrival.payload, arrival)
        return list(seen)

    def copies(self, client):
        """Return how often the client received what it received most often, evident repetitions aside."""
        return max(client.inbox.copies.values(), default=0)

    # Nodes.

    def homes(self, client_id):
        """Return the nodes that have a session of a client id."""
        return [node for node in self.world.nodes.values() if node.up and node.core.owner.session(client_id)]

    def connected(self, client_id):
        """Return the nodes that have a connection of a client id."""
        return [node for node in self.homes(client_id) if node.core.owner.session(client_id).attachment is not None]

    def split(self, *islands):
        """Cut the nodes of each island off from those of all others."""
        for place, island in enumerate(islands):
            for other in islands[place + 1 :]:
                for one in island:
                    for two in other:
                        self.world.network.partition(one.name, two.name, True)

    def heal(self):
        """End all partitions, and wait until the nodes are one cluster again."""
        self.world.network.heal_all()
        self.until(self.is_whole)

    def crash(self, node):
        """Kill a node and wait until all others have noticed."""
        node.kill()
        others = [each for each in self.world.nodes.values() if each.up]
        self.until(lambda: not any(other.core.mesh.peers[node.name].running for other in others))

    def start(self, node):
        """Start a node and wait until all is well."""
        node.start()
        self.until(self.is_whole)
