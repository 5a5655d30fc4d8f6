"""Whole nodes killed by SIGKILL: what was acknowledged is delivered, in order.

`pytest tests/system/test_crash.py --crash-rounds 100` searches longer. Each test prints its seed: whom to kill and when
is drawn from it; what is under way at that moment is the machine's.
"""

import collections
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest
from clients import V4, V5, Client, wait_known
from nodes import COOKIE, LIMIT_S, Node, join_all, start_all, wait_until

SEED = 20
OFFLINE_MESSAGES = 500
PUBLISHERS = 2
UNDER_WAY_MAX = 50
PAYLOAD_BYTES = 200
KILL_AFTER_S = (0.1, 0.8)
RECONNECT_S = 0.05

# What waits while the subscriber is away is bounded by default; here nothing may be dropped.
UNBOUNDED = ["mqtt.max_offline_messages=-1", "mqtt.max_online_messages=-1"]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How many kills under load."""
    return int(request.config.getoption("crash_rounds", 3))


@pytest.mark.parametrize("version", [V4, V5], ids=["v3.1.1", "v5"])
def test_what_waits_for_an_absent_client_survives_a_kill(node: Node, version: int) -> None:
    subscriber = Client(node, "absent", version, persistent=True).connect()
    subscriber.subscribe("orders/+")
    subscriber.disconnect()
    sent = [("orders/a", str(number)) for number in range(OFFLINE_MESSAGES)]
    with Client(node, version=version) as publisher:
        for mid in [publisher.publish_later(topic, payload) for topic, payload in sent]:
            publisher.wait_acknowledged(mid)
        node.kill()
    node.start()
    with Client(node, "absent", version, persistent=True) as subscriber:
        assert subscriber.present is True
        assert subscriber.messages(OFFLINE_MESSAGES) == sent
        subscriber.publish("orders/b", "next")
        assert subscriber.message() == ("orders/b", "next")
        wait_until(lambda: queued_messages(node) == 0, "the broker has every acknowledgement")
    node.kill()
    node.start()
    assert queued_messages(node) == 0


def queued_messages(node: Node) -> int:
    """Return how many messages wait in the node's queues."""
    return next(int(row["Value"]) for row in node.table("node", "status") if row["Status"] == "queued_messages")


class Publisher(threading.Thread):
    """Publishes 0, 1, 2, ... with QoS 1 to a topic, and again what was not acknowledged when a connection broke.

    A client of its own, because paho-mqtt may send a new message ahead of those that it sends again.
    """

    def __init__(self, node: Node, topic: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[int] = []
        self.connections = 0
        self.sent = 0
        self.done = threading.Event()
        self._address = (node.host, node.mqtt_port)
        self._topic = topic.encode()
        self._pending: collections.deque[int] = collections.deque()
        self._finishing = threading.Event()
        self._leave = threading.Event()

    def run(self) -> None:
        """Publish until `finish` was called and everything is acknowledged."""
        while not (self.done.is_set() or self._leave.is_set()):
            with contextlib.suppress(OSError, EOFError), socket.create_connection(self._address, LIMIT_S) as connection:
                connection.settimeout(LIMIT_S)
                self._serve(connection)
            self._leave.wait(RECONNECT_S)

    def finish(self) -> None:
        """Send nothing new from now on."""
        self._finishing.set()

    def leave(self) -> None:
        """Give up."""
        self._leave.set()

    def _serve(self, connection: socket.socket) -> None:
        client_id = b"publisher " + self._topic
        body = b"\0\4MQTT\4\0\0\0" + len(client_id).to_bytes(2, "big") + client_id
        connection.sendall(b"\x10" + bytes([len(body)]) + body)
        answer = receive(connection)
        assert answer[0] == 0x20
        if answer[3]:
            return
        self.connections += 1
        for number in self._pending:
            connection.sendall(self._publish(number, 0x3A))
        while not self._leave.is_set():
            while len(self._pending) < UNDER_WAY_MAX and not self._finishing.is_set():
                self._pending.append(self.sent)
                self.sent += 1
                connection.sendall(self._publish(self._pending[-1], 0x32))
            if not self._pending:
                self.done.set()
                return
            answer = receive(connection)
            # Acknowledgements come in the order of the messages [MQTT-4.6.0-2].
            assert answer == b"\x40\x02" + packet_id(self._pending[0]), (answer, self._pending[0])
            self.acknowledged.append(self._pending.popleft())

    def _publish(self, number: int, head: int) -> bytes:
        payload = str(number).encode().ljust(PAYLOAD_BYTES)
        body = len(self._topic).to_bytes(2, "big") + self._topic + packet_id(number) + payload
        # Two bytes hold the length; a longer form than it needs would be malformed.
        assert 128 <= len(body) < 16_384
        return bytes([head, len(body) & 0x7F | 0x80, len(body) >> 7]) + body


def packet_id(number: int) -> bytes:
    """Return the packet id of a publisher's message."""
    return (number % 65_535 + 1).to_bytes(2, "big")


def receive(connection: socket.socket) -> bytes:
    """Return the next packet, CONNACK or PUBACK, which are four bytes each; raises EOFError at the end."""
    packet = b""
    while len(packet) < 4:
        got = connection.recv(4 - len(packet))
        if not got:
            raise EOFError
        packet += got
    return packet


def kill_under_load(publishing: Node, subscribing: Node, rounds: int, seed: int) -> None:
    """Kill the nodes, which may be one and the same, at random moments under load, and check the whole history."""
    print(f"seed {seed}, {rounds} rounds")
    chance = random.Random(seed)
    topics = [f"load/{number}" for number in range(PUBLISHERS)]
    publishers = [Publisher(publishing, topic) for topic in topics]
    first_deliveries: dict[str, list[int]] = {topic: [] for topic in topics}
    known: set[tuple[str, int]] = set()
    again = 0

    def take(limit_s: float) -> bool:
        """Take the next delivery, waiting for it up to `limit_s` seconds; false if there was none."""
        nonlocal again
        try:
            topic, payload = subscriber.message(limit_s)
        except AssertionError:
            return False
        number = int(payload)
        if (topic, number) in known:
            again += 1
        else:
            known.add((topic, number))
            first_deliveries[topic].append(number)
        return True

    with Client(subscribing, "keeper", persistent=True) as subscriber:
        subscriber.subscribe("load/#")
        if publishing is not subscribing:
            with Client(publishing) as asking:
                wait_known(subscriber, asking)
        try:
            for publisher in publishers:
                publisher.start()
            for _ in range(rounds):
                target = chance.choice([publishing, subscribing])
                kill_at = time.monotonic() + chance.uniform(*KILL_AFTER_S)
                # Under load means that the publishers are connected again after the last kill.
                before = [len(publisher.acknowledged) for publisher in publishers]
                wait_until(lambda before=before: under_load(publishers, before), "the publishers are acknowledged")  # type: ignore[misc]
                while time.monotonic() < kill_at:
                    take(0.01)
                target.kill()
                target.start()
            for publisher in publishers:
                publisher.finish()
            for publisher in publishers:
                assert publisher.done.wait(2 * LIMIT_S), f"{publisher.sent - len(publisher.acknowledged)} unanswered"
            # However much waits: only silence means that nothing more comes.
            while len(known) < sum(publisher.sent for publisher in publishers) and take(LIMIT_S):
                pass
            print(f"the node keeps {queued_messages(subscribing)} messages")
        finally:
            for publisher in publishers:
                publisher.leave()
    sent = sum(publisher.sent for publisher in publishers)
    connections = sum(publisher.connections for publisher in publishers)
    print(f"{sent} messages on {connections} connections, {again} deliveries came again")
    for topic, publisher in zip(topics, publishers, strict=True):
        lost = set(publisher.acknowledged).difference(first_deliveries[topic])
        assert not lost, f"{topic}: {len(lost)} acknowledged and never delivered, first {sorted(lost)[:10]}"
        assert first_deliveries[topic] == sorted(first_deliveries[topic])
        assert publisher.acknowledged == list(range(publisher.sent))


def under_load(publishers: list[Publisher], before: list[int]) -> bool:
    """Whether every publisher got an acknowledgement since `before`."""
    return all(len(publisher.acknowledged) > count for publisher, count in zip(publishers, before, strict=True))


def test_a_node_killed_under_load_loses_nothing_it_acknowledged(make_node: Callable[..., Node], rounds: int) -> None:
    node = make_node(settings=UNBOUNDED).start()
    kill_under_load(node, node, rounds, SEED)


def test_members_killed_under_load_lose_nothing_they_acknowledged(make_node: Callable[..., Node], rounds: int) -> None:
    members = [make_node(number, COOKIE, UNBOUNDED) for number in (1, 2)]
    start_all(members)
    join_all(members)
    kill_under_load(members[0], members[1], rounds, SEED)
