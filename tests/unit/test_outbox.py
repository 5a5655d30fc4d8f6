"""cluster.outbox and the links that write it: nothing acknowledged is lost, nothing doubles, whoever is killed when."""

import pytest
from core_helpers import Node
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.effects import Ticket
from broker.core.full_links import PATIENCE_S
from broker.core.message import Message
from broker.core.owner_records import owner_frame
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from broker.mqtt.packets import Puback, Publish, Pubrec, Will
from broker.mqtt.reasons import Reason
from cluster import link as link_module
from cluster.forwards import Forwards, Mark
from cluster.incoming_link import IncomingLink
from cluster.link import OutgoingLink, first_number
from cluster.membership import Member, State
from cluster.mesh import Mesh, MeshSettings
from cluster.mesh_store import MeshStore, forget_cluster
from cluster.node import NodeCore
from cluster.outbox import Outbox, recover
from cluster.readiness import AVAILABLE
from cluster.turn import Turn

STORE = b"s" * 16
PEER = b"p" * 16
BIG = 1 << 30
UTC_MS = 1_700_000_000_000


def message(payload=b"x", qos=2, number=1, expires_at=0.0, origin=STORE):
    return Message(b"t", payload, b"", qos, False, expires_at, "client", origin, number)


def outbox_on(storage, turn=None, bytes_max=BIG, clock=None, peer=PEER):
    turn, clock = turn or Turn(), clock or Clock(0.0, UTC_MS)
    outbox = recover(storage, turn, clock).get(peer) or Outbox(storage, turn, clock, peer, 0)
    outbox.bytes_max = bytes_max
    return outbox


def commit(storage, turn):
    storage.commit(turn.writes)
    turn.writes = WriteBatch()


# The store.


def test_what_is_put_is_found_again_with_its_id_and_what_is_left_of_its_time():
    storage, turn = MemoryStorage(), Turn()
    outbox = outbox_on(storage, turn, clock=Clock(100.0, UTC_MS))
    other = Message(b"a/b", b"p" * 1000, b"\x01\x00", 1, True, 160.0, "ü", b"o" * 16, 2**62)
    size = outbox.put(7, message(b"1", number=5)) + outbox.put(2**62, other)
    assert (outbox.messages, outbox.bytes) == (2, size)
    commit(storage, turn)
    # Another boot: monotonic time begins elsewhere, and 20 s went by.
    found = outbox_on(storage, clock=Clock(5000.0, UTC_MS + 20_000))
    assert (found.messages, found.bytes, found.first, found.last) == (2, size, 7, 2**62)
    first, second = found.read(1, 2**62, BIG)
    assert (first.number, first.message.payload, first.message.key()) == (7, b"1", message(number=5).key())
    read = second.message
    assert (read.topic, read.payload, read.properties) == (other.topic, other.payload, other.properties)
    assert (read.qos, read.retain, read.publisher, read.key()) == (1, True, "ü", other.key())
    assert read.expires_at == pytest.approx(5040.0)
    assert sum(stored.size for stored in (first, second)) == size
    found.delete([7], first.size)
    assert (found.messages, found.bytes) == (1, second.size)


def test_peers_are_apart():
    storage, turn = MemoryStorage(), Turn()
    for peer in (b"\xff" * 16, PEER, bytes(16)):
        outbox_on(storage, turn, peer=peer).put(1, message(peer))
    commit(storage, turn)
    for peer in (b"\xff" * 16, PEER, bytes(16)):
        outbox = outbox_on(storage, peer=peer)
        assert outbox.messages == 1
        assert [stored.message.payload for stored in outbox.read(0, 9, BIG)] == [peer]


def test_a_read_ends_where_it_has_to_and_has_at_least_one():
    storage, turn = MemoryStorage(), Turn()
    outbox = outbox_on(storage, turn)
    sizes = [outbox.put(number, message(b"x" * 100, number=number)) for number in range(1, 6)]
    commit(storage, turn)
    assert [stored.number for stored in outbox.read(2, 5, sum(sizes[1:3]))] == [2, 3]
    assert [stored.number for stored in outbox.read(2, 3, BIG)] == [2, 3]
    assert [stored.number for stored in outbox.read(4, 5, 1)] == [4]
    assert outbox.sizes(2, 3) == [(2, sizes[1]), (3, sizes[2])]


def test_records_that_can_not_be_read_are_named():
    storage, turn = MemoryStorage(), Turn()
    outbox = outbox_on(storage, turn)
    outbox.put(1, message())
    (operation,) = turn.writes.operations
    batch = WriteBatch()
    batch.put("outbox", operation[2], operation[3][:30])
    storage.commit(batch)
    with pytest.raises(StorageError, match=r"outbox record .* is corrupt"):
        outbox.read(1, 1, BIG)
    batch.put("outbox", operation[2], b"\x02" + operation[3][1:])
    storage.commit(batch)
    with pytest.raises(StorageError, match=r"outbox record .* is corrupt"):
        outbox.read(1, 1, BIG)
    batch.put("outbox", operation[2], b"\x03" + operation[3][1:])
    storage.commit(batch)
    with pytest.raises(StorageError, match="has version 3"):
        outbox_on(storage)
    batch.put("outbox", operation[2][:-1], operation[3])
    storage.commit(batch)
    with pytest.raises(StorageError, match="another length"):
        outbox_on(storage)


def test_a_copy_of_the_store_has_no_outbox():
    storage, turn = MemoryStorage(), Turn()
    outbox_on(storage, turn, peer=b"\xff" * 16).put(2**64 - 1, message())
    commit(storage, turn)
    batch = WriteBatch()
    forget_cluster(batch)
    storage.commit(batch)
    assert not storage.snapshot()["outbox"]


# Bounds.


def turn_of(link, storage, turn, now=0.0):
    """What leaves in a turn, whose writes are committed."""
    link.load(now)
    frames = link.take_frames(now)
    commit(storage, turn)
    return frames


def link_on(storage, turn, bytes_max=BIG, incarnation=1):
    outbox = outbox_on(storage, turn, bytes_max)
    return OutgoingLink(STORE, outbox, first_number(incarnation))


def test_a_full_outbox_refuses_and_is_counted():
    storage, turn = MemoryStorage(), Turn()
    link = link_on(storage, turn, 2500)
    large = message(b"x" * 1000)
    for _ in range(2):
        assert link.has_room(large, True)
        link.forward(large, None, True, True, 0.0)
    assert not link.has_room(large, True)
    assert link.has_room(message(b"x" * 1000, qos=1), True), "in memory there is room"
    assert not link.has_room(message(b"x" * 1000, qos=1), False), "for one that does not run there is none"
    assert link.has_room(message(b"x"), True)
    link.spill()
    assert not link.has_room(message(b"x" * 1000, qos=1), True)
    assert link.refused == 3
    link.forward(message(b"x" * 1000, qos=1), None, False, True, 0.0)
    assert (link.dropped_memory, link.outbox.messages) == (1, 2), "nobody has to have it"
    commit(storage, turn)
    link.connected(1)
    link.opened(1, 0, 0.0)
    turn_of(link, storage, turn)
    link.acknowledged(1, link._last_sent, 0.0)
    assert link.has_room(large, True)


def test_an_empty_outbox_takes_one_message_whatever_its_bound():
    storage, turn = MemoryStorage(), Turn()
    link = link_on(storage, turn, 0)
    assert link.has_room(message(b"x" * 1000), False)
    link.forward(message(b"x" * 1000), None, True, False, 0.0)
    assert not link.has_room(message(b"y"), False)


def test_what_is_on_disk_is_not_in_memory():
    """And comes back a window at a time, in order."""
    storage, turn = MemoryStorage(), Turn()
    link = link_on(storage, turn)
    payload = bytes(20_000)
    for number in range(1, 1501):
        link.forward(message(number.to_bytes(2, "big") + payload, number=number), None, True, False, 0.0)
    assert link.bytes_pending == 0
    assert link.bytes_behind == link.outbox.bytes > 1500 * 20_000
    commit(storage, turn)
    incoming = IncomingLink(STORE, 0)
    incoming.connected(1)
    link.connected(1)
    link.opened(1, 0, 0.0)
    received = []
    while link.outbox.messages:
        for frame in turn_of(link, storage, turn):
            received += [each.number for each in incoming.receive(Forwards(frame), 0.0)]
        assert link.bytes_pending <= link_module.WINDOW_BYTES_MAX + link_module.FRAME_BYTES_MAX
        link.validate()
        link.acknowledged(1, incoming.position, 0.0)
    assert received == list(range(1, 1501))
    assert link.bytes_behind == link.bytes_pending == 0


def test_an_outbox_that_lacks_what_was_put_into_it_is_told_of():
    storage, turn = MemoryStorage(), Turn()
    link = link_on(storage, turn)
    for number in (1, 2):
        link.forward(message(number=number), None, True, False, 0.0)
    commit(storage, turn)
    batch = WriteBatch()
    batch.delete_range("outbox", b"", b"\xff" * 30)
    storage.commit(batch)
    link.connected(1)
    link.opened(1, 0, 0.0)
    assert link.take_frames(0.0)
    assert link.wants_turn
    for _ in range(2):
        with pytest.raises(StorageError, match="lacks 2 messages"):
            link.load(0.0)


class Unreadable:
    """A store that can't be scanned for a while. A compiled class can't be the base of one that is not."""

    def __init__(self, storage):
        self.get = storage.get
        self.commit = storage.commit
        self.snapshot = storage.snapshot
        self.scan_reverse = storage.scan_reverse
        self.close = storage.close
        self.fails = False
        self._scan = storage.scan

    def scan(self, family, start, end):
        if self.fails:
            raise StorageError("an I/O error")
        return self._scan(family, start, end)


def test_a_store_that_can_not_be_read_costs_nothing_but_time():
    storage, turn = Unreadable(MemoryStorage()), Turn()
    first = link_on(storage, turn)
    for number in range(1, 4):
        first.forward(message(b"%d" % number, number=number), None, True, False, 0.0)
    commit(storage, turn)
    link = link_on(storage, turn, incarnation=2)
    link.connected(1)
    # The receiver has the first of them: its deletion reads, too.
    link.opened(1, first_number(1), 0.0)
    storage.fails = True
    for _ in range(2):
        with pytest.raises(StorageError):
            link.load(0.0)
        link.validate()
        link.take_frames(0.0)
        assert link.wants_turn
    storage.fails = False
    (frame,) = turn_of(link, storage, turn)
    assert [each.payload for each in Forwards(frame).messages(STORE, 0.0)] == [b"2", b"3"]
    assert link.outbox.messages == len(storage.snapshot()["outbox"]) == 2


def test_a_receiver_that_goes_back_before_anything_was_deleted_misses_nothing():
    storage, turn = MemoryStorage(), Turn()
    first = link_on(storage, turn)
    for number in range(1, 4):
        first.forward(message(b"%d" % number, number=number), None, True, False, 0.0)
    commit(storage, turn)
    link = link_on(storage, turn, incarnation=2)
    link.connected(1)
    link.opened(1, first_number(1) + 1, 0.0)
    link.disconnected()
    incoming = IncomingLink(STORE, first_number(1))
    for instance in (link, incoming):
        instance.connected(2)
    link.opened(2, incoming.position, 0.0)
    received = []
    for _ in range(3):
        for frame in turn_of(link, storage, turn):
            received += [each.payload for each in incoming.receive(Forwards(frame), 0.0)]
        link.validate()
    assert received == [b"2", b"3"]
    link.acknowledged(2, incoming.position, 0.0)
    assert link.outbox.messages == 0


def test_a_receiver_that_knows_another_life_of_this_store_misses_nothing():
    """Numbers that it says it has were never sent by this one: what waits gets others."""
    storage, turn = MemoryStorage(), Turn()
    link = link_on(storage, turn)
    for number in range(1, 4):
        link.forward(message(b"%d" % number, number=number), None, True, number == 1, 0.0)
    commit(storage, turn)
    position = first_number(1) + 1
    incoming = IncomingLink(STORE, position)
    incoming.connected(1)
    link.connected(1)
    assert link.opened(1, position, 0.0) == []
    commit(storage, turn)
    received = []
    for _ in range(3):
        for frame in turn_of(link, storage, turn):
            received += [each.payload for each in incoming.receive(Forwards(frame), 0.0)]
        link.validate()
    assert received == [b"1", b"2", b"3"]
    link.acknowledged(1, incoming.position, 0.0)
    commit(storage, turn)
    assert not storage.snapshot()["outbox"]


# The node as a whole.


class MeshedNode(Node):
    """A node that knows a member, which does not run, and what that has to have: everything under far/."""

    def __init__(self, storage=None, **options):
        if storage is None:
            storage = MemoryStorage()
            turn = Turn()
            store = MeshStore(storage, turn)
            store.put_members([Member("node2@h", PEER, 1, "h:2", State.ALIVE)])
            store.put_interest(PEER, b"far/#")
            commit(storage, turn)
        bytes_max = options.pop("outbox_bytes_max", BIG)
        # It is ready whoever it reaches.
        settings = MeshSettings("node1@h", "h:1", 5.0, (), readiness=AVAILABLE, outbox_bytes_max=bytes_max)
        self.mesh = Mesh(settings, storage, STORE, options.get("incarnation", 1), bytes(16), options.get("now", 1000.0))
        self.commits = []
        options.pop("interest", None)
        super().__init__(storage=storage, interest=self.mesh.interest, **options)
        self.core = NodeCore(self.owner, self.mesh)
        self.settle()

    def begin(self):
        if hasattr(self, "core"):
            self.core.set_clock(self.now, self.wall_clock_ms())
            self.core.begin(self.now)
        else:
            super().begin()

    def turn(self):
        if not hasattr(self, "core"):
            return super().turn()
        self.core.tick(self.now)
        effects = self.core.take_effects()
        self.storage.commit(effects.writes)
        self.commits.append([(kind, family, key) for kind, family, key, _ in effects.writes.operations])
        for index, batch in effects.to_listeners.items():
            for records in batch.records():
                self.listeners[index].receive_frame(owner_frame(self.generation, 1, 0, records))
        for index, listener in enumerate(self.listeners):
            for connection in listener.take_dirty():
                self.clients[(index, connection.number)].unread += b"".join(connection.output)
                connection.output = []
        return bool(effects.to_listeners or len(effects.writes)) or self.core.next_deadline() == 0.0

    def killed(self, survivor=None):
        """The node after `kill -9`."""
        return MeshedNode(storage=survivor or self.storage.survivor(), incarnation=self.incarnation + 1)

    def waiting(self):
        """What is in the outbox for the other node."""
        return [stored.message for stored in outbox_on(self.storage).read(0, 2**64 - 2, BIG)]


def test_a_packet_id_and_what_it_owes_another_node_are_stored_in_one_batch():
    """Reason: with the id alone the publisher's resend is answered as known, and the other node never gets it.

    With the forward alone, or the id once that is acknowledged, the resend has another number and doubles.
    """
    node = MeshedNode()
    client = node.persistent("c")
    before = node.storage.survivor()
    node.commits.clear()
    client.send(Publish(b"far/x", b"once", 2, packet_id=9))
    assert client.take() == [Pubrec(9)], "nobody waits for a node that is down"
    (batch,) = [batch for batch in node.commits if any(family == "outbox" for _, family, _ in batch)]
    assert [family for _, family, key in batch if family == "outbox" or key[8:9] == b"i"] == ["session", "outbox"]
    for world in (node.killed(before), node.killed()):
        client = world.persistent("c")
        client.send(Publish(b"far/x", b"once", 2, dup=True, packet_id=9))
        assert client.take() == [Pubrec(9)]
        assert [message.payload for message in world.waiting()] == [b"once"]
        world.core.validate()


def test_a_publisher_never_waits_for_a_node_that_is_down():
    node = MeshedNode()
    client = node.connect("c", 5)
    client.publish(b"far/x", b"1", qos=1, packet_id=1)
    client.publish(b"far/x", b"2", qos=2, packet_id=2)
    assert client.take() == [Puback(1), Pubrec(2)]
    assert [(message.payload, message.qos) for message in node.killed().waiting()] == [(b"1", 1), (b"2", 2)]


def test_an_acknowledgement_leaves_after_the_commit_of_what_it_promises():
    node = MeshedNode()
    client = node.connect("c", 5)
    node.commits.clear()
    carried = node.turn

    def turn():
        before = node.storage.survivor()
        busy = carried()
        if client.unread:
            assert outbox_on(before).messages == 1, "the PUBACK is of a later turn than the commit"
        return busy

    node.turn = turn
    client.publish(b"far/x", b"1", qos=1, packet_id=1)
    assert client.take() == [Puback(1)]


def test_the_will_of_a_client_waits_for_a_node_that_is_down():
    node = MeshedNode()
    client = node.connect("c", 5, will=Will(b"far/will", b"gone", 1, False))
    client.drop()
    assert [message.payload for message in node.killed().waiting()] == [b"gone"]


@pytest.mark.parametrize(("qos", "answer"), [(1, Puback), (2, Pubrec)])
def test_a_publisher_is_told_when_the_outbox_is_full(qos, answer):
    node = MeshedNode(outbox_bytes_max=1500)
    client = node.connect("c", 5)
    for packet_id in (1, 2):
        client.publish(b"far/x", b"x" * 1000, qos=qos, packet_id=packet_id)
    client.publish(b"near", b"x", qos=1, packet_id=3)
    assert client.take() == [answer(1)]
    node.advance(PATIENCE_S)
    assert client.take() == [
        answer(2, Reason.QUOTA_EXCEEDED),
        Puback(3, Reason.NO_MATCHING_SUBSCRIBERS),
    ]
    assert node.dropped("link_full") == 1
    assert node.mesh.counters()["link_refused"] > 1, "it was asked again"
    metrics = node.core.metrics()
    assert metrics["cluster_outbox_messages"] == metrics["cluster_outbox_messages{node=node2@h}"] == 1
    assert metrics["cluster_outbox_bytes"] == metrics["cluster_outbox_bytes{node=node2@h}"] > 1000


# Both sides, and everything that may happen between them.

BEFORE_COMMIT = "before the commit"
AFTER_COMMIT = "after the commit, before anything is sent"
AFTER_SENDING = "after sending"
SENDER_POINTS = (BEFORE_COMMIT, AFTER_COMMIT, AFTER_SENDING)
RECEIVER_POINTS = (BEFORE_COMMIT, AFTER_COMMIT)


class Pair:
    """A publisher, its node, and another node, with their disks. The publisher sends again what was not acknowledged.

    In the place of sessions stands a row for each packet id that a QoS 2 message took; the receiver stores what it has
    with QoS > 0. `doubled` QoS 1 is the publisher's doing: it sent it twice.
    """

    def __init__(self):
        self.sender_disk = MemoryStorage()
        self.receiver_disk = MemoryStorage()
        self.now = 0.0
        self.running = True
        self.incarnation = 0
        self.session = 0
        self.published = []
        self.acked = []
        self.sent_twice = set()
        self.wire = []
        self.acks = []
        self.marks = []
        # Of each life of the receiver.
        self.received_marks = [[]]
        self.start_receiver()
        self.start_sender()

    # The publisher.

    def publish(self, qos):
        payload = b"%d" % len(self.published)
        self.published.append((payload, qos))
        self.arrived.append((payload, qos))

    def _acknowledge(self, payload):
        if payload not in self.acked:
            self.acked.append(payload)

    # The sender.

    def start_sender(self):
        self.incarnation += 1
        self.turn = Turn()
        # Monotonic time begins elsewhere after each start.
        self.clock = Clock(self.now, UTC_MS + int(self.now * 1000))
        outbox = outbox_on(self.sender_disk, self.turn, clock=self.clock)
        self.outgoing = OutgoingLink(STORE, outbox, first_number(self.incarnation))
        self.message_number = self.incarnation << 40
        self.arrived = []
        for payload, qos in self.published:
            if qos == 0 or payload in self.acked:
                continue
            if qos == 2 and self.sender_disk.get("session", payload):
                self._acknowledge(payload)
            else:
                self.sent_twice.add(payload)
                self.arrived.append((payload, qos))

    def crash_sender(self):
        self.sender_disk = self.sender_disk.survivor()
        self.acks = []
        self.start_sender()

    def mark(self):
        self.marks.append(b"mark %d" % len(self.marks))
        self.outgoing.mark(self.marks[-1], False, self.now)

    def sender_turn(self, crash=""):
        link = self.outgoing
        if not len(self.turn.writes):
            link.load(self.now)
        if link.is_spill_due(self.running, self.now):
            link.spill()
        known = []
        for payload, qos in self.arrived:
            self.message_number += 1
            number = self.message_number if qos else 0
            ticket = Ticket(0, int(payload), 0) if qos == 1 else None
            link.forward(message(payload, qos, number), ticket, qos > 0, self.running, self.now)
            if qos == 2:
                self.turn.writes.put("session", payload, b"\x01")
                known.append(payload)
        self.arrived = []
        released, link.released = link.released, []
        frames = link.take_frames(self.now) if link.open else []
        if crash == BEFORE_COMMIT:
            return self.crash_sender()
        commit(self.sender_disk, self.turn)
        if crash == AFTER_COMMIT:
            return self.crash_sender()
        self.wire += frames
        if crash == AFTER_SENDING:
            return self.crash_sender()
        for payload in known:
            self._acknowledge(payload)
        self._take(released)
        return None

    def _take(self, tickets):
        for ticket in tickets:
            self._acknowledge(b"%d" % ticket.packet_id)

    def hear(self, lost=False):
        """Let the sender hear the oldest answer."""
        if not self.acks:
            return
        session, position, asked = self.acks.pop(0)
        if lost:
            return
        if asked:
            self._take(self.outgoing.opened(session, position, self.now))
        else:
            self._take(self.outgoing.acknowledged(session, position, self.now))

    def probe(self):
        self.now += link_module.PROBE_AFTER_S
        probe = self.outgoing.take_probe(self.now)
        if probe:
            self.wire.append(probe)

    # The receiver.

    def start_receiver(self):
        stored = self.receiver_disk.get("meta", b"position")
        self.incoming = IncomingLink(STORE, int.from_bytes(stored, "big") if stored else 0)

    def crash_receiver(self):
        self.receiver_disk = self.receiver_disk.survivor()
        self.received_marks.append([])
        self.wire = []
        self.acks = []
        self.outgoing.disconnected()
        self.start_receiver()

    def receive(self, crash="", lost=False):
        """Let the oldest frame arrive, in a turn of its own."""
        if not self.wire:
            return
        frame = self.wire.pop(0)
        if lost:
            return
        incoming = self.incoming
        batch = WriteBatch()
        count = len(self.receiver_disk.snapshot()["queue"])
        marks = []
        for each in incoming.receive(Forwards(frame), self.now):
            if isinstance(each, Mark):
                marks.append(each.body)
            elif each.qos:
                count += 1
                batch.put("queue", count.to_bytes(4, "big"), each.payload)
        if incoming.commit_due:
            incoming.commit_due = False
            batch.put("meta", b"position", incoming.position.to_bytes(8, "big"))
        if crash == BEFORE_COMMIT:
            self.crash_receiver()
            return
        self.receiver_disk.commit(batch)
        self.received_marks[-1] += marks
        if crash == AFTER_COMMIT:
            self.crash_receiver()
            return
        if incoming.position_due or incoming.ack_due:
            self.acks.append((incoming.session, incoming.position, incoming.position_due))
        incoming.position_due = incoming.ack_due = False

    def connect(self):
        """The sender connects anew. What is still on the wire arrives, of an older session."""
        self.session += 1
        self.outgoing.connected(self.session)
        self.incoming.connected(self.session)
        self.incoming.position_due = False
        self.acks = [(self.session, self.incoming.position, True)]

    # The end.

    def received(self):
        return list(self.receiver_disk.snapshot()["queue"].values())

    def heal(self):
        """Let everything come to rest."""
        self.running = True
        self.connect()
        for _ in range(1000):
            self.hear()
            self.sender_turn()
            while self.wire:
                self.receive()
            if not (self.arrived or self.acks or self.wire or self.outgoing.wants_turn):
                break
        self.outgoing.validate()

    def judge(self):
        received = self.received()
        wanted = [payload for payload, qos in self.published if qos]
        assert sorted(self.acked) == sorted(wanted), "everything is acknowledged in the end"
        assert set(received) == set(wanted), "and nothing of it is lost"
        for payload, qos in self.published:
            if qos == 2 or (qos == 1 and payload not in self.sent_twice):
                assert received.count(payload) == 1, f"{payload} of QoS {qos} came {received.count(payload)} times"
        for wanted_qos in (1, 2):
            order = [payload for payload, qos in self.published if qos == wanted_qos]
            first = list(dict.fromkeys(payload for payload in received if payload in order))
            assert first == order, f"the order of QoS {wanted_qos}"
        for marks in self.received_marks:
            # A mark that is not durable comes again when the receiver has died, which knows nothing of it.
            assert marks == [mark for mark in self.marks if mark in marks]
        outbox = self.outgoing.outbox
        assert (outbox.messages, outbox.bytes) == (0, 0)
        assert not self.sender_disk.snapshot()["outbox"]


def check(pair):
    pair.heal()
    pair.judge()


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("point", SENDER_POINTS)
def test_a_sender_that_is_killed_loses_and_doubles_nothing(point, qos, connected, running):
    pair = Pair()
    if connected:
        pair.connect()
        pair.hear()
    pair.publish(qos)
    pair.sender_turn()
    pair.publish(qos)
    pair.running = running
    pair.sender_turn(point)
    check(pair)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("point", RECEIVER_POINTS)
@pytest.mark.parametrize("spilled", [True, False])
def test_a_receiver_that_is_killed_loses_and_doubles_nothing(point, qos, spilled):
    pair = Pair()
    pair.connect()
    pair.hear()
    for _ in range(3):
        pair.publish(qos)
        pair.sender_turn()
    pair.receive()
    if spilled:
        pair.outgoing.spill()
        pair.sender_turn()
    pair.receive(point)
    check(pair)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("sender_point", SENDER_POINTS)
@pytest.mark.parametrize("receiver_point", RECEIVER_POINTS)
@pytest.mark.parametrize("sender_first", [True, False])
def test_both_may_be_killed(sender_point, receiver_point, qos, sender_first):
    pair = Pair()
    pair.connect()
    pair.hear()
    for _ in range(2):
        pair.publish(qos)
        pair.sender_turn()
    if sender_first:
        pair.publish(qos)
        pair.sender_turn(sender_point)
        pair.receive(receiver_point)
    else:
        pair.receive(receiver_point)
        pair.publish(qos)
        pair.sender_turn(sender_point)
    check(pair)


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("point", ["", *SENDER_POINTS])
def test_an_acknowledgement_that_is_lost_or_not_committed_costs_nothing(qos, point):
    """What the peer has is deleted at last, although the deletion was lost with the sender."""
    pair = Pair()
    pair.connect()
    pair.hear()
    pair.publish(qos)
    pair.sender_turn()
    pair.receive()
    pair.hear(lost=point == "")
    if point:
        pair.sender_turn(point)
    check(pair)


def test_numbers_that_an_earlier_life_may_have_used_are_never_used_again():
    """Reason: the receiver would take what comes under them for known. Nothing is left in the outbox that says so."""
    pair = Pair()
    pair.connect()
    pair.hear()
    for qos in (2, 1, 1):
        pair.publish(qos)
    pair.sender_turn()
    pair.receive()
    pair.hear()
    pair.sender_turn()
    assert not pair.sender_disk.snapshot()["outbox"]
    pair.publish(1)
    pair.sender_turn(AFTER_SENDING)
    pair.receive()
    pair.running = False
    pair.publish(2)
    pair.sender_turn()
    check(pair)


def test_order_is_kept_when_the_link_spills_and_the_sender_is_killed():
    """A message in memory would come again behind one that was on disk."""
    pair = Pair()
    pair.connect()
    pair.hear()
    for _ in range(3):
        pair.publish(1)
    pair.sender_turn()
    pair.now += 1.0
    for _ in range(3):
        pair.publish(1)
    pair.sender_turn()
    assert len(pair.acked) == 6
    pair.crash_sender()
    assert pair.outgoing.outbox.messages == 6
    check(pair)


def test_a_link_that_moves_again_keeps_in_memory_what_comes():
    pair = Pair()
    pair.running = False
    pair.publish(1)
    pair.sender_turn()
    pair.running = True
    pair.connect()
    pair.hear()
    for _ in range(3):
        pair.sender_turn()
        pair.receive()
        pair.hear()
    pair.publish(1)
    pair.sender_turn()
    assert pair.outgoing.outbox.messages == 0
    assert len(pair.acked) == 1
    check(pair)


ACTIONS = {
    "publish 0": lambda pair: pair.publish(0),
    "publish 1": lambda pair: pair.publish(1),
    "publish 2": lambda pair: pair.publish(2),
    "mark": Pair.mark,
    "turn": Pair.sender_turn,
    "sender dies before the commit": lambda pair: pair.sender_turn(BEFORE_COMMIT),
    "sender dies after the commit": lambda pair: pair.sender_turn(AFTER_COMMIT),
    "sender dies after sending": lambda pair: pair.sender_turn(AFTER_SENDING),
    "receive": Pair.receive,
    "frame lost": lambda pair: pair.receive(lost=True),
    "receiver dies before the commit": lambda pair: pair.receive(BEFORE_COMMIT),
    "receiver dies after the commit": lambda pair: pair.receive(AFTER_COMMIT),
    "hear": Pair.hear,
    "answer lost": lambda pair: pair.hear(lost=True),
    "connect": Pair.connect,
    "connect and hear": lambda pair: (pair.connect(), pair.hear()),
    "time": lambda pair: setattr(pair, "now", pair.now + 0.3),
    "probe": Pair.probe,
    "peer runs or not": lambda pair: setattr(pair, "running", not pair.running),
}
OFTEN = ["publish 1", "publish 2", "turn", "turn", "receive", "receive", "hear", "hear"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*OFTEN, *ACTIONS]), min_size=5, max_size=150))
@example(["connect and hear", "publish 2", "turn", "receive", "sender dies before the commit", "connect and hear"])
@example(["connect and hear", "turn", "receive", "mark", "turn", "receiver dies after the commit"])
def test_whatever_happens_nothing_is_lost_or_doubled(actions):
    pair = Pair()
    for action in actions:
        ACTIONS[action](pair)
        pair.outgoing.validate()
    check(pair)
