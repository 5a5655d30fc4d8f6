"""Nodes with all that has to do with retained messages: a mesh, and the store of what is replayed."""

from mesh_network import Network, Node

from broker.core.message import Message
from broker.core.retained import RetainedStore
from broker.core.retained_rows import unpack_retained
from broker.core.rows import Table, row_subject
from broker.core.storage import WriteBatch
from broker.core.stored_message import Clock
from cluster.joining import JOIN_TIMEOUT_S

UTC_MS_AT_ZERO = 1_700_000_000_000
RETAINED = int(Table.RETAINED)


class RetainedNode(Node):
    """A mesh, and what the node's subscribers are replayed. `skew_ms` is how wrong its clock is."""

    def __init__(self, network, name, discovery=(), storage=None, messages_max=-1):
        super().__init__(network, name, discovery, storage)
        self.messages_max = messages_max
        self.skew_ms = 0
        self.number = 0

    def start(self, address=""):
        super().start(address)
        now = self.network.now
        self.clock = Clock(now, self.network.utc_ms(self))
        self.mesh.set_clock(now, self.network.utc_ms(self))
        self.writes = WriteBatch()
        self.number = self.mesh.incarnation << 40
        self.retained = RetainedStore(self.messages_max, -1, self.store_id)
        self.retained.recover(self.storage, self.clock)
        self.retained.stamp = self.mesh.stamp
        self.retained.shared = bool(self.mesh.peers)
        self.mesh.attach_retained(self.retained, lambda: self.writes, self.clock)

    def publish(self, topic, payload, expiry_s=0.0):
        """A client publishes here; the next turn commits and tells it."""
        self.number += 1
        now = self.network.now
        expires_at = now + expiry_s if expiry_s else 0.0
        message = Message(topic, payload, b"", 1, True, expires_at, "client", self.store_id, self.number)
        return self.retained.set(message, self.writes, self.clock, now)

    def shown(self):
        """What a subscriber of everything is replayed."""
        return {message.topic: message.payload for message in self.retained.match(b"#", self.network.now)}

    def rows(self):
        """The node's own rows as they are stored: topic -> payload, None for one that says deleted."""
        found = {}
        for _, row, value in self.mesh.own.all[RETAINED].rows.scan():
            message = unpack_retained(row_subject(row), value, self.clock)
            found[row_subject(row)] = None if message is None else message.payload
        return found


class RetainedNetwork(Network):
    """The network of such nodes."""

    def utc_ms(self, node):
        return UTC_MS_AT_ZERO + int(self.now * 1000) + node.skew_ms

    def add(self, name, discovery=(), start=True, skew_ms=0, messages_max=-1):
        node = RetainedNode(self, name, discovery, messages_max=messages_max)
        node.skew_ms = skew_ms
        self.nodes[name] = node
        if start:
            node.start()
        return node

    def turn(self, node):
        mesh = node.mesh
        node.clock.set(self.now, self.utc_ms(node))
        mesh.set_clock(self.now, self.utc_ms(node))
        mesh.begin(self.now)
        mesh.tick(self.now)
        node.retained.shared = bool(mesh.peers)
        if mesh.take_joined():
            node.retained.become_oldest(node.writes, node.clock)
        node.retained.expire(self.now, node.writes)
        mesh.settle_retained()
        changes, node.retained.changes = node.retained.changes, []
        mesh.change_rows(changes)
        commands = mesh.flush(node.writes, self.now)
        batch, node.writes = node.writes, WriteBatch()
        node.storage.commit(batch)
        for command in commands:
            self.execute(node, command)
        mesh.validate()
        node.retained.validate()

    def up(self):
        return [node for node in self.nodes.values() if not node.down]

    def agrees(self):
        """Say whether all show the same, every topic has one row in all, and none says deleted."""
        shown = self.up()[0].shown()
        rows = [row for node in self.up() for row in node.rows().items()]
        return self.shows(shown) and len(rows) == len(shown) and dict(rows) == shown

    def shows(self, shown):
        """Say whether all show exactly this."""
        return all(node.shown() == shown for node in self.up())


def retained_cluster(seed=0, count=3, **options):
    network = RetainedNetwork(seed)
    names = [f"node{number}@h" for number in range(1, count + 1)]
    for name in names:
        network.add(name, **options)
    join_all(network, names)
    return network, [network.nodes[name] for name in names]


def join_all(network, names):
    for name in names[1:]:
        result = network.join(name, names[0])
        assert result.joined, result.text
    assert network.run(JOIN_TIMEOUT_S, network.one_cluster)
