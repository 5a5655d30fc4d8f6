"""The commit gate with a whole node behind it and a store that fails when told: what leaves, waits, is held."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
from builds import compiled
from core_helpers import START_S, STORE_ID, Client, Node

from broker.core.effects import Ticket
from broker.core.events import CreditReturned, ListenerGone, ListenerStarted
from broker.core.listener import ListenerCore
from broker.core.listener_records import LISTENER_HEADER_BYTES, ListenerHeader, unpack_events
from broker.core.owner_records import owner_frame
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.mqtt.packets import (
    Connect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from broker.runtime import commit_gate
from broker.runtime.commit_gate import RETRY_S, CommitGate
from cluster.mesh import Mesh, MeshSettings
from cluster.node import NodeCore

QUOTA_EXCEEDED = 0x97


class FailingStorage:
    """Fails while `error` says why; `applies` makes a commit that fails take effect nevertheless, as a disk may."""

    def __init__(self, memory: MemoryStorage) -> None:
        self.error = ""
        self.sync_error = ""
        self.read_error = ""
        self.copy_error = ""
        # How many more rows can be read before reads fail.
        self.rows_left = 0
        self.applies = False
        self.sync_at = float("inf")
        self.attempts = 0
        self._memory = memory
        # A compiled class can't be the base of one that is not.
        self.close = memory.close
        self.survivor = memory.survivor

    def get(self, family: str, key: bytes) -> bytes | None:
        self._read()
        return self._memory.get(family, key)

    def scan(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._rows(self._memory.scan(family, start, end))

    def scan_reverse(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self._rows(self._memory.scan_reverse(family, start, end))

    def _rows(self, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for row in rows:
            self._read()
            yield row

    def _read(self) -> None:
        if self.read_error and not self.rows_left:
            raise StorageError(self.read_error)
        self.rows_left = max(0, self.rows_left - 1)

    def commit(self, batch: WriteBatch) -> None:
        self.attempts += 1
        if not self.error or self.applies:
            self._memory.commit(batch)
        if self.error:
            raise StorageError(self.error)

    def flush(self, now: float) -> None:
        self.sync_at = float("inf")
        if self.sync_error:
            raise StorageError(self.sync_error)

    def next_deadline(self) -> float:
        return self.sync_at

    def checkpoint(self, directory: str) -> None:
        if self.sync_error or self.copy_error:
            raise StorageError(self.sync_error or self.copy_error)

    def has_failed(self) -> bool:
        return bool(self.sync_error)


class GatedNode(Node):
    """A node whose turns leave through the gate, as in the owner process."""

    gate: CommitGate | None = None

    def __init__(self, storage: MemoryStorage | None = None, **options: Any) -> None:
        self.disk = FailingStorage(storage or MemoryStorage())
        now = options.get("now", START_S)
        settings = MeshSettings("node1@h", "h:1", 5.0, ())
        self.mesh = Mesh(settings, self.disk, STORE_ID, options.get("incarnation", 1), bytes(16), now)
        options.pop("interest", None)
        super().__init__(storage=self.disk, interest=self.mesh.interest, **options)
        self.generations = [1] * len(self.listeners)
        self.core = NodeCore(self.owner, self.mesh)
        self.gate = CommitGate(self.core, self.disk)
        self.settle()

    def begin(self) -> None:
        if self.gate is None:
            super().begin()
        else:
            self.core.set_clock(self.now, self.wall_clock_ms())
            self.gate.begin(self.now)

    def receive_frame(self, frame: bytes) -> None:
        if self.gate is None:
            return super().receive_frame(frame)
        header = ListenerHeader(frame)
        if header.consumed_bytes:
            self.gate.receive(CreditReturned(header.listener, header.consumed_bytes), self.now)
        credit_bytes = self.gate.receive_frame(header, unpack_events(frame), len(frame), self.now)
        self.return_credit(header, credit_bytes)
        return None

    def return_credit(self, header: ListenerHeader, credit_bytes: int) -> bool:
        generation = self.generations[header.listener]
        if header.generation != generation:
            return False
        self.listeners[header.listener].receive_frame(owner_frame(self.generation, generation, credit_bytes, b""))
        return True

    def turn(self) -> bool:
        if self.gate is None:
            return super().turn()
        if self.gate.has_held():
            self.gate.replay(self.return_credit, self.now)
        self.core.tick(self.now)
        busy = False
        for effects in self.gate.settle(self.now):
            busy = busy or bool(effects.to_listeners or len(effects.writes))
            for index, batch in effects.to_listeners.items():
                for records in batch.records():
                    frame = owner_frame(self.generation, self.generations[index], 0, records)
                    self.listeners[index].receive_frame(frame)
        self.gate.flush(self.now)
        for index, listener in enumerate(self.listeners):
            for connection in listener.take_dirty():
                self.clients[(index, connection.number)].unread += b"".join(connection.output)
                connection.output = []
        return busy or self.gate.has_held()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    def restart_listener(self, index: int) -> None:
        """A listener process dies, and another takes its place."""
        assert self.gate is not None
        self.gate.receive(ListenerGone(index, self.generations[index]), self.now)
        self.generations[index] += 1
        self.listeners[index] = ListenerCore(index, self.generations[index], self.limits, self._name)
        self.listeners[index].owner_ready(self.generation)
        self.gate.receive(ListenerStarted(index, self.generations[index]), self.now)
        self.settle()

    def told_rows(self) -> dict[tuple[int, bytes], bytes]:
        tables = self.mesh.own.all
        return {
            (number, row): value for number in tables for _, row, value in tables[number].rows.scan() if row[0] != 1
        }

    def validate(self) -> None:
        """And every connection of the owner is one of a listener."""
        super().validate()
        known = {index << 32 | number for index, core in enumerate(self.listeners) for number in core.connections}
        assert self.owner._attachments.keys() <= known

    def fail(self, reason: str = "No space left on device") -> None:
        """The disk takes no writes from now on."""
        self.disk.error = reason

    def fail_reading(self, rows: int = 0) -> None:
        """The disk gives so many more rows, and then nothing."""
        self.disk.read_error = "Input/output error"
        self.disk.rows_left = rows

    def recover(self) -> None:
        """The disk takes writes again and can be read, and the node notices."""
        self.disk.error = self.disk.read_error = ""
        self.advance(RETRY_S)

    def restarted(self) -> "GatedNode":
        """The node after `kill -9`."""
        return GatedNode(storage=self.storage.survivor(), incarnation=self.incarnation + 1, settings=self.settings)


@pytest.fixture
def node() -> Iterator[GatedNode]:
    node = GatedNode()
    yield node
    node.settle()
    node.validate()
    node.mesh.validate()


@pytest.fixture
def keeper(node: GatedNode) -> Client:
    """A persistent subscriber of everything under a/."""
    keeper = node.persistent("keeper")
    keeper.subscribe(b"a/#")
    return keeper


def break_store(node: GatedNode) -> Client:
    """Fail the disk, and have one PUBLISH of MQTT 5 run into that; its publisher is returned."""
    first = node.connect("first", 5, listener=1)
    node.fail()
    first.publish(b"a/first", b"first", 1)
    assert first.take() == []
    assert node.gate is not None and node.gate.failing_reason
    return first


def test_what_could_not_be_committed_leaves_once_it_is(node: GatedNode, keeper: Client) -> None:
    first = break_store(node)
    assert keeper.take() == []
    node.recover()
    assert first.take() == [Puback(1)]
    assert keeper.take_payloads() == [b"first"]
    assert node.gate is not None and node.gate.status() == "ok" and node.gate.failures == 1
    assert len(node.stored("queue")) == 1


def test_a_publish_of_mqtt_5_is_refused_and_one_of_mqtt_3_waits(node: GatedNode, keeper: Client) -> None:
    publishers = [node.connect("five", 5), node.connect("three", 4)]
    break_store(node)
    for publisher in publishers:
        publisher.publish(b"a/b", publisher.connection.client_id.encode(), 1, packet_id=9)
    assert publishers[0].take() == [Puback(9, QUOTA_EXCEEDED)]
    assert publishers[1].take() == []
    assert node.dropped("store_failing") == 1
    node.recover()
    assert publishers[0].take() == []
    assert publishers[1].take() == [Puback(9)]
    assert keeper.take_payloads() == [b"first", b"three"]


def test_what_was_received_is_not_called_refused_when_it_comes_again(node: GatedNode, keeper: Client) -> None:
    """[MQTT-4.3.3-10] A refusal would have the client publish it anew."""
    publisher = node.connect("publisher", 5)
    publisher.publish(b"a/b", b"once", 2, packet_id=9)
    assert publisher.take() == [Pubrec(9)]
    assert keeper.take_payloads() == [b"once"]
    break_store(node)
    publisher.send(Publish(b"a/b", b"once", 2, dup=True, packet_id=9))
    assert publisher.take() == []
    node.recover()
    assert publisher.take() == [Pubrec(9)]
    assert keeper.take_payloads() == [b"first"]


def test_no_refusal_overtakes_an_acknowledgement_that_waits(node: GatedNode, keeper: Client) -> None:
    first = break_store(node)
    first.publish(b"a/b", b"second", 1, packet_id=2)
    first.publish(b"a/b", b"third", 1, packet_id=3)
    assert first.take() == []
    node.recover()
    # [MQTT-4.6.0-2]
    assert first.take() == [Puback(1), Puback(2), Puback(3)]
    assert keeper.take_payloads() == [b"first", b"second", b"third"]


def test_qos_0_goes_on_but_overtakes_nothing_of_its_kind(node: GatedNode) -> None:
    keeper, other = node.persistent("keeper"), node.connect("other", listener=1)
    keeper.subscribe(b"a/#")
    other.subscribe(b"b")
    publisher = node.connect("publisher", 4)
    node.fail()
    # One turn: a delivery with QoS 0 and one that has to be stored.
    publisher.say(Publish(b"a/0", b"0", 0))
    publisher.say(Publish(b"a/1", b"1", 1, packet_id=1))
    node.settle()
    publisher.publish(b"a/0", b"2")
    publisher.publish(b"b", b"other")
    assert other.take_payloads() == [b"other"]
    assert keeper.take() == []
    node.recover()
    assert keeper.take_payloads() == [b"0", b"1", b"2"]


@pytest.mark.parametrize(("version", "reason"), [(5, 0x88), (4, 3)])
def test_connects_are_refused(node: GatedNode, keeper: Client, version: int, reason: int) -> None:
    break_store(node)
    late = node.open(version=version)
    late.send(Connect(version, "late"))
    refused = late.take_bytes()
    assert refused[:1] == b"\x20" and refused[2:4] == bytes([0, reason])
    assert late.closed
    assert node.owner.counts()["num_online"] == 2
    node.recover()
    connack = node.connect("late", version).connack
    assert connack is not None and connack.reason == 0


def test_a_connack_that_waits_comes_before_what_follows_it(node: GatedNode) -> None:
    keeper = node.persistent("keeper")
    keeper.subscribe(b"a/#", 0)
    keeper.drop()
    publisher = node.connect("publisher")
    node.fail()
    again = node.open(version=5)
    again.send(Connect(5, "keeper", False, properties={17: 3600}))
    publisher.publish(b"a/b", b"0")
    assert again.take() == []
    node.recover()
    connack, publish = again.take()
    assert connack.session_present and publish.payload == b"0"


def test_the_rest_is_held_in_order(node: GatedNode, keeper: Client) -> None:
    three = node.persistent("three", 4, listener=1)
    break_store(node)
    three.send(Subscribe(7, (SubscriptionRequest(b"b", 1, False),)))
    three.publish(b"b", b"to itself", 1, packet_id=8)
    assert three.take() == []
    assert node.owner.counts()["num_subscriptions"] == 1
    node.recover()
    suback, *rest = three.take()
    assert isinstance(suback, Suback) and suback.packet_id == 7
    assert sorted(type(packet).__name__ for packet in rest) == ["Puback", "Publish"]
    assert node.owner.counts()["num_subscriptions"] == 2


def test_a_client_that_leaves_meanwhile_is_gone_afterwards(node: GatedNode, keeper: Client) -> None:
    three = node.connect("three")
    break_store(node)
    three.publish(b"a/b", b"last words", 1)
    three.disconnect()
    node.recover()
    assert keeper.take_payloads() == [b"first", b"last words"]
    assert node.owner.counts()["num_online"] == 2


def test_refused_clients_leave_nothing_to_hold(node: GatedNode, keeper: Client) -> None:
    break_store(node)
    assert node.gate is not None
    for _ in range(100):
        late = node.open()
        late.send(Connect(4, "late"))
        late.drop()
    assert not node.gate._held


def test_attempts_are_a_second_apart_and_both_ends_are_logged(
    node: GatedNode, keeper: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    break_store(node)
    assert node.gate is not None
    attempts = node.disk.attempts
    for _ in range(30):
        node.advance(RETRY_S / 10)
        assert node.gate.next_deadline() > node.now
    assert node.disk.attempts == attempts + 3
    node.recover()
    begun, ended = (record.getMessage() for record in caplog.records)
    assert begun.startswith("No space left on device; nothing that needs the store is acknowledged")
    assert ended == "the store works again, after 4 s"


def test_a_batch_that_failed_may_be_in_the_store_already(node: GatedNode, keeper: Client) -> None:
    node.disk.applies = True
    first = break_store(node)
    node.advance(RETRY_S)
    node.recover()
    assert first.take() == [Puback(1)]
    assert keeper.take_payloads() == [b"first"]
    keeper.acknowledge(1)
    assert node.stored("queue") == node.stored("message") == []


def test_failing_again_amid_the_replay_keeps_the_order(
    node: GatedNode, keeper: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_gate, "EVENTS_PER_TURN", 1)
    five, three = node.connect("five", 5), node.connect("three", 4)
    first = break_store(node)
    three.publish(b"a/b", b"three", 1, packet_id=1)
    first.publish(b"a/b", b"second", 1, packet_id=2)
    # The store takes what waited, and fails at the first event of the replay.
    node.disk.error = ""
    node.now += RETRY_S
    node.turn()
    node.fail("Input/output error")
    node.settle()
    assert node.gate is not None and node.gate.status() == "failing: Input/output error"
    first.publish(b"a/b", b"third", 1, packet_id=3)
    five.publish(b"a/b", b"refused", 1, packet_id=1)
    assert first.take() == [Puback(1)]
    assert five.take() == [Puback(1, QUOTA_EXCEEDED)]
    node.recover()
    assert first.take() == [Puback(2), Puback(3)]
    assert three.take() == [Puback(1)]
    assert keeper.take_payloads() == [b"first", b"three", b"second", b"third"]


def fail_amid_the_replay(node: GatedNode, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Have a CONNECT arrive behind a replay, and the store fail again before it is attached; return its client."""
    three = node.connect("three", 4)
    break_store(node)
    for number in (1, 2, 3):
        three.publish(b"a/b", b"held", 1, packet_id=number)
    monkeypatch.setattr(commit_gate, "EVENTS_PER_TURN", 1)
    node.disk.error = ""
    node.now += RETRY_S
    node.turn()
    newcomer = node.open(version=5)
    will = Will(b"a/will", b"gone", 1)
    newcomer.say(Connect(5, "newcomer", will=will))
    node.receive_frame(node.listeners[0].take_frame())
    node.fail()
    node.turn()
    assert node.gate is not None and node.gate.failing_reason
    monkeypatch.undo()
    return newcomer


def test_a_client_that_leaves_while_its_connect_is_held_is_gone(
    node: GatedNode, keeper: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer = fail_amid_the_replay(node, monkeypatch)
    newcomer.drop()
    node.recover()
    assert node.owner.counts()["num_online"] == 3
    assert keeper.take_payloads() == [b"first", b"held", b"held", b"held", b"gone"]


def test_a_client_whose_connect_is_held_is_connected_afterwards(
    node: GatedNode, keeper: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer = fail_amid_the_replay(node, monkeypatch)
    node.advance(0.1)
    assert newcomer.take() == []
    node.recover()
    assert newcomer.take()[0].reason == 0
    assert newcomer.subscribe(b"b") == (1,)


def test_a_held_connect_of_a_listener_that_died_is_not_the_next_ones(
    node: GatedNode, keeper: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    newcomer = fail_amid_the_replay(node, monkeypatch)
    node.restart_listener(0)
    for _ in range(newcomer.connection.number):
        again = node.open(version=5)
        again.send(Connect(5, "again"))
        # All of them are refused, that with the number of the one that was held as well.
        assert again.take()[0].reason == 0x88
    node.recover()
    assert node.owner.counts()["num_online"] == 1


def test_a_frozen_node_reads_no_queue_on(node: GatedNode, keeper: Client) -> None:
    """What the store says is not what the queue is while a batch waits."""
    keeper.drop()
    node.connect("publisher").publish(b"a/b", b"queued", 1)
    node = node.restarted()
    keeper = node.open(version=5)
    node.fail()
    keeper.send(Connect(5, "keeper", False, properties={17: 3600}))
    node.advance(0.1)
    assert node.owner._sessions["keeper"].queue.in_memory() == 0
    node.recover()
    _connack, publish = keeper.take()
    assert publish.payload == b"queued"


def test_what_is_new_comes_after_what_was_held(
    node: GatedNode, keeper: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_gate, "EVENTS_PER_TURN", 1)
    first = break_store(node)
    for number in (2, 3, 4):
        first.publish(b"a/b", str(number).encode(), 1, packet_id=number)
    node.disk.error = ""
    node.now += RETRY_S
    node.turn()
    first.publish(b"a/b", b"5", 1, packet_id=5)
    assert first.take() == [Puback(number) for number in range(1, 6)]
    assert keeper.take_payloads() == [b"first", b"2", b"3", b"4", b"5"]


def test_a_client_that_does_not_read_stays_paused_at_the_end(node: GatedNode, keeper: Client) -> None:
    first = break_store(node)
    node.listeners[0].batch.paused(keeper.connection.number)
    node.settle()
    node.recover()
    assert first.take() == [Puback(1)]
    attachment = node.owner._attachments[keeper.key]
    assert attachment.paused
    node.listeners[0].batch.resumed(keeper.connection.number)
    node.settle()
    assert not attachment.paused


def test_what_reading_again_sends_waits_for_its_packet_id(node: GatedNode, keeper: Client) -> None:
    # `keeper` is not the one for whom the first PUBLISH waits.
    other = node.persistent("other", listener=1)
    other.subscribe(b"b")
    node.listeners[0].batch.paused(keeper.connection.number)
    publisher = node.connect("publisher")
    publisher.publish(b"a/b", b"queued", 1)
    node.fail()
    publisher.publish(b"b", b"breaks", 1, packet_id=2)
    node.listeners[0].batch.resumed(keeper.connection.number)
    node.settle()
    publisher.publish(b"a/b", b"qos 0")
    assert keeper.take() == []
    node.recover()
    assert [(packet.packet_id, packet.payload) for packet in keeper.take_publishes()] == [(1, b"queued"), (0, b"qos 0")]


def test_a_listener_that_dies_meanwhile_leaves_nothing_to_the_next_one(node: GatedNode, keeper: Client) -> None:
    three = node.connect("three", 4, listener=1)
    break_store(node)
    three.publish(b"a/b", b"held", 1)
    assert node.gate is not None
    node.gate.receive(ListenerGone(1, 1), node.now)
    node.gate.receive(ListenerStarted(1, 2), node.now)
    node.settle()
    node.disk.error = ""
    node.now += RETRY_S
    node.core.tick(node.now)
    leaving = node.gate.settle(node.now)
    assert [1 in effects.to_listeners for effects in leaving] == [False] * len(leaving)
    assert [0 in effects.to_listeners for effects in leaving].count(True) == 1
    credits: list[int] = []

    def worked_off(header: ListenerHeader, credit_bytes: int) -> bool:
        credits.append(credit_bytes)
        return header.listener == 0

    assert node.gate.replay(worked_off, node.now)
    assert len(credits) == 1
    assert node.owner.counts()["num_online"] == 1


def test_a_sync_that_fails_closes_the_gate_too(node: GatedNode, keeper: Client) -> None:
    node.disk.sync_at = node.now
    node.disk.sync_error = "Input/output error"
    node.fail()
    node.settle()
    assert node.gate is not None and node.gate.status() == "failing: Input/output error"
    five = node.open(version=5)
    five.send(Connect(5, "five"))
    assert five.take()[0].reason == 0x88
    node.disk.sync_error = ""
    node.recover()
    assert node.gate.status() == "ok"


def test_a_backup_whose_sync_fails_closes_the_gate_too(node: GatedNode, keeper: Client) -> None:
    """What was acknowledged before may be lost with the power, and somebody has to hear of it."""
    assert node.gate is not None
    node.gate.copy("backup", node.now)
    node.disk.copy_error = "No such file or directory"
    with pytest.raises(StorageError, match="No such file"):
        node.gate.copy("no/such/backup", node.now)
    assert node.gate.status() == "ok"
    node.disk.sync_error = "Input/output error"
    for _ in range(2):
        with pytest.raises(StorageError, match="Input/output error"):
            node.gate.copy("backup", node.now)
        assert node.gate.status() == "failing: Input/output error"
    node.disk.sync_error = ""
    node.recover()
    assert node.gate.status() == "ok" and node.gate.failures == 1


def test_credit_is_returned_for_all_but_what_is_held(node: GatedNode, keeper: Client) -> None:
    five, three = node.connect("five", 5), node.connect("three", 4)
    break_store(node)
    assert node.gate is not None
    five.say(Publish(b"a/b", bytes(5000), 1, packet_id=1))
    three.say(Publish(b"a/b", bytes(3000), 1, packet_id=1))
    frame = node.listeners[0].take_frame()
    credit_bytes = node.gate.receive_frame(ListenerHeader(frame), unpack_events(frame), len(frame), node.now)
    assert 5000 < credit_bytes < len(frame) - 3000
    assert len(frame) > LISTENER_HEADER_BYTES
    node.disk.error = ""
    node.now += RETRY_S
    node.core.tick(node.now)
    node.gate.settle(node.now)
    credits: list[int] = []
    assert node.gate.replay(lambda header, size: credits.append(size) is None, node.now)
    assert credits == [len(frame) - credit_bytes]


def test_a_peers_acknowledgement_lets_nothing_out_that_waits(node: GatedNode, keeper: Client) -> None:
    publisher = node.connect("publisher", 5)
    publisher.publish(b"nobody", b"", 1, packet_id=1)
    assert publisher.take() == [Puback(1, 0x10)]
    # A PUBLISH that waits for a peer, and one behind it whose commit fails.
    ticket = Ticket(publisher.key, 2, 0)
    ticket.waiting = 1
    node.owner._attachments[publisher.key].pending.append(ticket)
    node.fail()
    publisher.publish(b"a/b", b"x", 1, packet_id=3)
    node.mesh._turn.acknowledged.append(ticket)
    node.advance(0.1)
    assert publisher.take() == []
    node.recover()
    assert publisher.take() == [Puback(2), Puback(3)]


@pytest.mark.parametrize("seed", range(25))
def test_nothing_acknowledged_is_lost_whatever_the_disk_does(seed: int) -> None:
    chance = random.Random(seed)
    node = GatedNode()
    keeper = node.persistent("keeper")
    keeper.subscribe(b"a/#")
    keeper.drop()
    sent: dict[str, int] = {}
    acknowledged: dict[str, list[int]] = {}
    delivered: dict[str, list[int]] = {}
    publishers: list[Client] = []
    for index in range(4):
        publishers.append(node.connect(f"p{index}", 4 + index % 2, listener=index % 2))
        sent[f"p{index}"], acknowledged[f"p{index}"] = 0, []

    def hear() -> None:
        for publisher in publishers:
            name = publisher.connection.client_id
            for packet in publisher.take():
                assert isinstance(packet, Puback)
                # [MQTT-4.6.0-2] Each is answered in its turn, refused or not.
                answered.setdefault(name, []).append(packet.packet_id)
                if packet.reason < 0x80:
                    acknowledged[name].append(packet.packet_id)

    answered: dict[str, list[int]] = {}
    for _ in range(150):
        what = chance.random()
        if what < 0.08:
            node.disk.error = "" if node.disk.error else "No space left on device"
            node.disk.applies = chance.random() < 0.5
        elif what < 0.2:
            node.advance(chance.uniform(0.1, 1.5))
        else:
            publisher = chance.choice(publishers)
            name = publisher.connection.client_id
            if publisher.connection._publishing._unacknowledged < 20:
                sent[name] += 1
                publisher.say(Publish(b"a/" + name.encode(), str(sent[name]).encode(), 1, packet_id=sent[name]))
            if chance.random() < 0.7:
                node.settle()
        hear()
    if chance.random() < 0.5:
        node.disk.error = ""
        node.advance(RETRY_S)
        hear()
        for name, numbers in answered.items():
            assert numbers == list(range(1, sent[name] + 1))
    node = node.restarted()
    keeper = node.persistent("keeper")
    assert keeper.connack is not None and keeper.connack.session_present
    while publishes := keeper.take_publishes():
        for packet in publishes:
            delivered.setdefault(packet.topic.decode()[2:], []).append(int(packet.payload))
        keeper.acknowledge(*(packet.packet_id for packet in publishes))
    for name, numbers in acknowledged.items():
        assert set(numbers) <= set(delivered.get(name, []))
        assert delivered.get(name, []) == sorted(set(delivered.get(name, [])))
    assert any(acknowledged.values())


def publish_anything(chance: random.Random, client: Client, packet_id: int) -> bytes:
    """Publish with some QoS and size; return the payload, which no other message has."""
    qos = chance.randrange(3)
    payload = f"{packet_id} ".encode() + b"x" * chance.choice((0, 600))
    client.say(Publish(b"a/b", payload, qos, packet_id=packet_id if qos else 0))
    return payload


def answer_anything(chance: random.Random, client: Client) -> list[Packet]:
    """Acknowledge most of what the client heard; return it."""
    heard: list[Packet] = client.take()
    for packet in heard:
        if client.closed:
            break
        if isinstance(packet, Publish) and packet.qos and chance.random() < 0.85:
            client.say(Puback(packet.packet_id) if packet.qos == 1 else Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrec) and packet.reason < 0x80:
            client.say(Pubrel(packet.packet_id))
        elif isinstance(packet, Pubrel):
            client.say(Pubcomp(packet.packet_id))
    return heard


@compiled
@pytest.mark.parametrize("seed", range(100))
def test_clients_and_listeners_may_come_and_go_while_the_disk_fails(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is acknowledged arrives, with QoS 2 once, and nothing is left of those that are gone."""
    monkeypatch.setattr(commit_gate, "EVENTS_PER_TURN", 10)
    chance = random.Random(seed)
    node = GatedNode(settings=OwnerSettings(0, -1, -1, queue_lifo=seed % 2 == 1))
    node.persistent("keeper").subscribe(b"a/#", 2)
    node.restart_listener(0)
    clients: list[Client] = []
    payloads: list[bytes] = [b""]
    promised: set[bytes] = set()

    def hear() -> None:
        for client in clients:
            for packet in answer_anything(chance, client):
                if isinstance(packet, Puback | Pubrec) and packet.reason < 0x80:
                    promised.add(payloads[packet.packet_id])

    for _ in range(250):
        clients = [client for client in clients if not client.closed]
        what = chance.random()
        if what < 0.15 or not clients:
            client = node.open(chance.randrange(2), chance.choice((4, 5)))
            expiry = {17: chance.choice((0, 3, 3600)), 33: chance.choice((1, 30))} if client.version == 5 else {}
            client.say(Connect(client.version, f"c{chance.randrange(5)}", chance.random() < 0.3, properties=expiry))
            clients.append(client)
        elif what < 0.25:
            chance.choice(clients).say(Subscribe(7, (SubscriptionRequest(b"a/#", chance.randrange(3)),)))
        elif what < 0.5:
            client = chance.choice(clients)
            # Now and then enough for a queue that goes on in the store.
            for _ in range(chance.choice((1, 1, 3, 3, 100))):
                payloads.append(publish_anything(chance, client, len(payloads)))
        elif what < 0.7:
            hear()
        elif what < 0.78:
            client = clients.pop(chance.randrange(len(clients)))
            node.listeners[client.listener].lost(client.connection)
        elif what < 0.8:
            listener = chance.randrange(2)
            node.restart_listener(listener)
            clients = [client for client in clients if client.listener != listener]
        elif what < 0.88:
            node.disk.error = "" if node.disk.error else "No space left on device"
            node.disk.applies = chance.random() < 0.5
        else:
            node.now += chance.uniform(0.1, 4.0)
        if chance.random() < 0.15:
            node.settle()
        else:
            # A replay takes many turns.
            node.step()
    node.recover()
    hear()
    node.settle()
    node.validate()
    node = node.restarted()
    keeper = node.persistent("keeper")
    assert keeper.connack is not None and keeper.connack.session_present
    came: list[bytes] = []
    while heard := keeper.take():
        came.extend(packet.payload for packet in heard if isinstance(packet, Publish))
        for packet in heard:
            if isinstance(packet, Publish) and packet.qos == 1:
                keeper.say(Puback(packet.packet_id))
            else:
                keeper.say(Pubrec(packet.packet_id) if isinstance(packet, Publish) else Pubcomp(packet.packet_id))
        node.settle()
    assert promised <= set(came)
    assert len(came) == len(set(came))
    node.validate()


@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_long_queue_that_ends_while_batches_wait_leaves_nothing(lifo: bool, retries: int) -> None:
    """What its tail points to is said by the store and by all that is not in it yet."""
    node = GatedNode(settings=OwnerSettings(0, -1, -1, queue_lifo=lifo))
    small_window = {33: 1}
    session = node.persistent("s", properties=small_window)
    session.subscribe(b"a/#")
    session.drop()
    # It is stored, and ends with its connection.
    session = node.connect("s", 5, False, listener=1, properties=small_window)
    publisher = node.connect("p", 4)
    for number in range(1, 800):
        publisher.publish(b"a/b", b"x" * 600, 1, number)
    node.fail()
    if lifo:
        # The acknowledged delivery's record is in the store still, the next one's has no packet id there.
        session.acknowledge(session.take_publishes()[0].packet_id)
    else:
        # The last record of the tail waits.
        publisher.publish(b"a/b", b"x" * 600, 1, 800)
    for _ in range(retries):
        node.advance(RETRY_S)
    node.restart_listener(1)
    node.recover()
    assert node.stored("queue") == node.stored("message") == []
    node.validate()


def queue_up(node: GatedNode, first: int, last: int) -> None:
    """Publish what these numbers say, under a/."""
    publisher = node.connect("publisher", 4, listener=1)
    for number in range(first, last + 1):
        publisher.publish(b"a/b", b"%d" % number, 1, number)
    publisher.disconnect()


def hear_all(client: Client) -> list[int]:
    """Acknowledge everything that comes; return the payloads, which are numbers."""
    heard: list[int] = []
    while publishes := [packet for packet in client.take() if isinstance(packet, Publish)]:
        heard.extend(int(packet.payload) for packet in publishes)
        client.acknowledge(*(packet.packet_id for packet in publishes))
    return heard


@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("rows", [0, 100, 450])
def test_a_queue_that_can_not_be_read_waits_as_writes_do(
    lifo: bool, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    node = GatedNode(settings=OwnerSettings(0, -1, -1, queue_lifo=lifo))
    node.persistent("keeper").subscribe(b"a/#")
    node.persistent("other").subscribe(b"a/#")
    node.restart_listener(0)
    queue_up(node, 1, 600)
    node = node.restarted()
    assert node.gate is not None
    caplog.set_level(logging.INFO)
    node.fail_reading(rows)
    keepers = [node.open(version=5), node.open(version=5)]
    for keeper, name in zip(keepers, ("keeper", "other"), strict=True):
        keeper.say(Connect(5, name, False, properties={17: 3600}))
    node.settle()
    assert node.gate.status() == "failing: Input/output error"
    for _ in range(30):
        node.advance(RETRY_S / 10)
        assert node.gate.next_deadline() > node.now
        assert node.core.next_deadline() > node.now
    node.recover()
    assert node.gate.status() == "ok" and node.gate.failures == 1
    assert len(caplog.records) == 2
    for keeper in keepers:
        heard = hear_all(keeper)
        assert sorted(heard) == list(range(1, 601))
        assert lifo or heard == sorted(heard)
    node.validate()


def test_a_group_whose_queue_can_not_be_read_waits_too(node: GatedNode) -> None:
    node.persistent("member").subscribe(b"$share/g/a/#")
    node.restart_listener(0)
    queue_up(node, 1, 600)
    again = node.restarted()
    again.fail_reading()
    member = again.persistent("member")
    assert again.gate is not None and again.gate.failing_reason
    again.recover()
    assert hear_all(member) == list(range(1, 601))


def test_a_lifo_queue_that_can_not_be_trimmed_is_trimmed_later() -> None:
    node = GatedNode(settings=OwnerSettings(max_offline_messages=600, queue_lifo=True))
    node.persistent("keeper").subscribe(b"a/#")
    node.restart_listener(0)
    queue_up(node, 1, 600)
    node.fail_reading(5)
    publisher = node.connect("publisher", 4)
    for number in range(601, 621):
        publisher.say(Publish(b"a/b", b"%d" % number, 1, packet_id=number))
    node.settle()
    assert node.gate is not None and node.gate.failing_reason
    node.recover()
    assert len(node.stored("queue")) == 600
    assert sorted(hear_all(node.persistent("keeper"))) == list(range(21, 621))


@pytest.mark.parametrize("writes_fail", [False, True])
def test_a_long_queue_may_end_while_it_can_not_be_read(writes_fail: bool) -> None:
    node = GatedNode(settings=OwnerSettings(0, -1, -1))
    session = node.persistent("s")
    session.subscribe(b"a/#")
    session.drop()
    publisher = node.connect("p", 4)
    for number in range(1, 600):
        publisher.publish(b"a/b", b"x" * 600, 1, number)
    session = node.connect("s", 5, False, listener=1, properties={33: 1})
    if writes_fail:
        node.fail()
        publisher.publish(b"a/b", b"x", 1, 600)
    node.fail_reading()
    node.restart_listener(1)
    node.recover()
    assert node.gate is not None and node.gate.status() == "ok"
    assert node.owner.counts()["queued_messages"] == 0
    assert node.stored("queue") == []
    connack = node.connect("s", 5, False, listener=1).connack
    assert connack is not None and not connack.session_present
    # What the tail pointed to could not be known; the next start looks.
    assert node.stored("message")
    again = node.restarted()
    assert again.stored("message") == []
    assert again.storage.get("meta", b"unreferenced") is None
