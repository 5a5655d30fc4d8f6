"""What one message costs in each pure core, without sockets: `python -m bench.cores`.

Ten publishers and ten subscribers of own topics, 64 B payloads, bursts as a loaded loop sees them. Prints ns of CPU
per message for the publisher's listener, the owner, and the subscriber's listener; compiled cores say so.
"""

import sys
import time

from broker.core.connection import Connection
from broker.core.connection_limits import ConnectionLimits
from broker.core.events import ListenerStarted
from broker.core.listener import ListenerCore
from broker.core.listener_records import ListenerHeader, unpack_events
from broker.core.owner import QueueOwner
from broker.core.owner_records import owner_frame
from broker.core.routes import NoInterest
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage
from broker.mqtt.codec import encode
from broker.mqtt.packets import Connect, Puback, Publish, Subscribe, SubscriptionRequest

PAIRS = 10
BURST = 50
ROUNDS = 400


class Node:
    """One owner and two listeners, joined by hand: listener 0 has the publishers, listener 1 the subscribers."""

    def __init__(self) -> None:
        self.owner = QueueOwner(OwnerSettings(), MemoryStorage(), NoInterest(), b"s" * 16, 1)
        self.owner.recover(0.0, 0)
        self.listeners = [ListenerCore(index, 1, ConnectionLimits(), str) for index in range(2)]
        for index, listener in enumerate(self.listeners):
            listener.owner_ready(1)
            self.owner.receive(ListenerStarted(index, 1), 0.0)
        self.spent = {"publisher's listener": 0.0, "owner": 0.0, "subscriber's listener": 0.0}

    def connect(self, listener: int, client_id: str) -> Connection:
        connection = self.listeners[listener].open(0.0)
        self.say(listener, connection, encode(Connect(4, client_id, True, 0, None, None, None), 4))
        return connection

    def say(self, listener: int, connection: Connection, data: bytes) -> None:
        self.listeners[listener].receive_data(connection, data, 0.0)
        self.settle()

    def settle(self) -> None:
        """Carry frames back and forth until nobody has anything to say."""
        while any(listener.wants_flush() for listener in self.listeners):
            for listener in self.listeners:
                if listener.wants_flush():
                    self.to_owner(listener.take_frame())
            self.to_listeners()
        for listener in self.listeners:
            for connection in listener.take_dirty():
                connection.output = []

    def to_owner(self, frame: bytes) -> None:
        began = time.thread_time()
        for event in unpack_events(frame):
            self.owner.receive(event, 0.0)
        self.spent["owner"] += time.thread_time() - began
        self.owner._outlets[ListenerHeader(frame).listener].credit_bytes = 1 << 40

    def to_listeners(self) -> None:
        began = time.thread_time()
        batches = self.owner.take_effects().to_listeners
        frames = [
            (index, owner_frame(1, 1, 0, records)) for index, batch in batches.items() for records in batch.records()
        ]
        self.spent["owner"] += time.thread_time() - began
        for index, frame in frames:
            name = "subscriber's listener" if index else "publisher's listener"
            began = time.thread_time()
            self.listeners[index].receive_frame(frame)
            self.spent[name] += time.thread_time() - began
            self.listeners[index]._credit_bytes = 1 << 40
            self.listeners[index]._consumed_bytes = 0


def run(qos: int) -> None:
    """Publish PAIRS x BURST x ROUNDS messages and print the cost of each stage."""
    node = Node()
    publishers, subscribers = [], []
    for pair in range(PAIRS):
        subscriber = node.connect(1, f"s{pair}")
        requests = (SubscriptionRequest(b"load/%d" % pair, qos),)
        node.say(1, subscriber, encode(Subscribe(1, requests), 4))
        subscribers.append(subscriber)
        publishers.append(node.connect(0, f"p{pair}"))
    bursts = []
    for pair in range(PAIRS):
        packets = [Publish(b"load/%d" % pair, b"x" * 64, qos, packet_id=n % 20 + 1 if qos else 0) for n in range(BURST)]
        bursts.append(b"".join(encode(packet, 4) for packet in packets))
    acks = b"".join(encode(Puback(n + 1), 4) for n in range(20))
    node.spent = dict.fromkeys(node.spent, 0.0)
    for _ in range(ROUNDS):
        for publisher, burst in zip(publishers, bursts, strict=True):
            began = time.thread_time()
            node.listeners[0].receive_data(publisher, burst, 0.0)
            node.spent["publisher's listener"] += time.thread_time() - began
        node.settle()
        while qos and any(len(session.inflight) for session in node.owner._sessions.values()):
            for subscriber in subscribers:
                session = node.owner._sessions[subscriber.client_id]
                acks = b"".join(encode(Puback(packet_id), 4) for packet_id in session.inflight.deliveries)
                began = time.thread_time()
                node.listeners[1].receive_data(subscriber, acks, 0.0)
                node.spent["subscriber's listener"] += time.thread_time() - began
            node.settle()
    count = PAIRS * BURST * ROUNDS
    total = sum(node.spent.values())
    stages = ", ".join(f"{name} {spent / count * 1e9:.0f}" for name, spent in node.spent.items())
    print(f"QoS {qos}: {total / count * 1e9:.0f} ns per message ({stages})")


if __name__ == "__main__":
    print("cores are", "interpreted" if str(sys.modules["broker.core.owner"].__file__).endswith(".py") else "compiled")
    run(0)
    run(1)
