"""MQTT clients down to the bytes: packet ids, resends, DUP and both halves of QoS 2 are theirs, as MQTT demands them.

paho-mqtt decides all of that by itself, and may send a new message ahead of those that it sends again. These keep their
session state over as many connections as it takes, and whatever the broker does against the rules ends them with a
fault. They know 3.1.1 and 5, and of each what the tests say.
"""

import collections
import contextlib
import itertools
import random
import select
import socket
import threading
from types import TracebackType
from typing import Final, NamedTuple

from nodes import LIMIT_S, Node

V311: Final = 4
V5: Final = 5

_POLL_S: Final = 0.2
_PAUSE_S_MAX: Final = 0.2
_SESSION_EXPIRY_S: Final = 3600
_READ_BYTES: Final = 65_536
CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x62
PUBCOMP: Final = 0x70
_SUBSCRIBE: Final = 0x82
SUBACK: Final = 0x90
DISCONNECT: Final = 0xE0
DUP: Final = 0x08
_RETAIN: Final = 0x01
_UNAVAILABLE: Final = {V311: 3, V5: 0x88}
_PACKET_IDENTIFIER_NOT_FOUND: Final = 0x92
# A node that stops or restarts says the first; an old connection's CONNECT that is late has the second said.
_GOODBYES: Final = (0x8B, 0x8E)
# Few packet ids: each is used again soon, while the broker may still remember it.
_PACKET_IDS: Final = 40
_WINDOW: Final = 16


class Violation(Exception):
    """The broker did what MQTT forbids."""


class Will(NamedTuple):
    """What a client leaves."""

    topic: str
    payload: str
    delay_s: int = 0


class Message(NamedTuple):
    """What a publisher publishes, and what an application got."""

    topic: str
    payload: bytes


class Publication(NamedTuple):
    """A message, and its place: `number` counts up among those of one publisher, topic and QoS."""

    message: Message
    qos: int
    publisher: int
    number: int


def varint(number: int) -> bytes:
    """Return a variable byte integer."""
    encoded = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        encoded.append(low | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def string(text: str | bytes) -> bytes:
    """Return a string or binary data with its length."""
    encoded = text.encode() if isinstance(text, str) else text
    return len(encoded).to_bytes(2, "big") + encoded


def packet(head: int, body: bytes) -> bytes:
    """Return a packet."""
    return bytes([head]) + varint(len(body)) + body


def connect_packet(
    client_id: str,
    version: int,
    clean: bool = False,
    receive_maximum: int = 65_535,
    will: Will | None = None,
    expiry_s: int = _SESSION_EXPIRY_S,
) -> bytes:
    """Return the CONNECT of a session that outlives its connection, unless `clean` and 3.1.1, or `expiry_s` is 0."""
    flags = (0x02 if clean else 0) | (0x0C if will is not None else 0)
    body = string("MQTT") + bytes([version, flags, 0, 0])
    if version == V5:
        properties = b"\x11" + expiry_s.to_bytes(4, "big") + b"\x21" + receive_maximum.to_bytes(2, "big")
        body += varint(len(properties)) + properties
    body += string(client_id)
    if will is not None:
        if version == V5:
            body += b"\x05\x18" + will.delay_s.to_bytes(4, "big")
        body += string(will.topic) + string(will.payload)
    return packet(0x10, body)


def publish_packet(version: int, message: Message, qos: int, packet_id: int, dup: bool = False) -> bytes:
    """Return a PUBLISH of QoS 1 or 2."""
    properties = b"\0" if version == V5 else b""
    body = string(message.topic) + packet_id.to_bytes(2, "big") + properties + message.payload
    return packet(PUBLISH | qos << 1 | (DUP if dup else 0), body)


def subscribe_packet(version: int, packet_id: int, topic_filter: str, qos: int) -> bytes:
    """Return a SUBSCRIBE for one filter."""
    properties = b"\0" if version == V5 else b""
    return packet(_SUBSCRIBE, packet_id.to_bytes(2, "big") + properties + string(topic_filter) + bytes([qos]))


def answer_packet(head: int, packet_id: int) -> bytes:
    """Return a PUBACK, PUBREC, PUBREL or PUBCOMP without a reason."""
    return bytes([head, 2]) + packet_id.to_bytes(2, "big")


class Wire:
    """A connection that takes and gives packets; raises OSError or EOFError when it breaks."""

    def __init__(self, node: Node) -> None:
        self._socket = socket.create_connection((node.host, node.mqtt_port), LIMIT_S)
        self._bytes = b""
        self._packets: collections.deque[tuple[int, bytes]] = collections.deque()

    def __enter__(self) -> "Wire":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break the connection without a goodbye."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send packets."""
        self._socket.sendall(data)

    def next(self, limit_s: float = LIMIT_S) -> tuple[int, bytes] | None:
        """Return first byte and body of the next packet; None when it has not come after `limit_s` seconds."""
        while not self._packets:
            # Not `select`, which takes no descriptor beyond 1023.
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            if not poller.poll(limit_s * 1000):
                return None
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise EOFError
            self._split(self._bytes + data)
        return self._packets.popleft()

    def has_more(self) -> bool:
        """Whether another packet has been read already."""
        return bool(self._packets)

    def _split(self, data: bytes) -> None:
        start = 0
        while True:
            size, shift, pos = 0, 0, start + 1
            while pos < len(data):
                size |= (data[pos] & 0x7F) << shift
                shift, pos = shift + 7, pos + 1
                if data[pos - 1] < 0x80:
                    break
            else:
                break
            if pos + size > len(data):
                break
            self._packets.append((data[start], data[pos : pos + size]))
            start = pos + size
        self._bytes = data[start:]

    def leave(self) -> None:
        """Say goodbye, as 3.1.1 and 5 do, and close the connection."""
        self.send(bytes([DISCONNECT, 0]))
        self.close()

    def attach(self, connect: bytes, version: int) -> bool | None:
        """Send CONNECT and return whether the session was there; None when the node is not ready to serve."""
        self.send(connect)
        return self.connected(version)

    def connected(self, version: int) -> bool | None:
        """Wait for the answer to CONNECT and return what `attach` does."""
        answer = self.next()
        if answer is None or answer[0] != CONNACK:
            raise Violation(f"no CONNACK came, but {answer}")
        present, reason = answer[1][0] == 1, answer[1][1]
        if reason == _UNAVAILABLE[version]:
            return None
        if reason:
            raise Violation(f"CONNECT was refused with {reason:#x}")
        return present


class Progress:
    """Counts what all publishers got acknowledged, so that somebody may wait for the moment."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def add(self) -> None:
        """Count one more."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, count: int, limit_s: float) -> bool:
        """Wait until there are as many; false after `limit_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count >= count, limit_s)


class WireClient(threading.Thread):
    """A client that connects again and again, until it is done or told to leave. `chance` draws how long it waits."""

    def __init__(
        self, node: Node, client_id: str, version: int, chance: random.Random, receive_maximum: int = 65_535
    ) -> None:
        super().__init__(name=client_id, daemon=True)
        self.version = version
        self.connections = 0
        self.fault = ""
        self.done = threading.Event()
        self.leaving = threading.Event()
        self._node = node
        self._chance = chance
        self._connect = connect_packet(client_id, version, receive_maximum=receive_maximum)

    def run(self) -> None:
        """Serve connections."""
        try:
            while not (self.done.is_set() or self.leaving.is_set()):
                with contextlib.suppress(OSError, EOFError), Wire(self._node) as wire:
                    present = wire.attach(self._connect, self.version)
                    if present is not None:
                        if self.connections and not present:
                            raise Violation("the session is gone")
                        self.connections += 1
                        self.serve(wire)
                self.leaving.wait(self._chance.uniform(0, _PAUSE_S_MAX))
        except Violation as violation:
            self.fault = f"{self.name}: {violation}"

    def serve(self, wire: Wire) -> None:
        """Use a connection on which the session is attached."""
        raise NotImplementedError

    def closed(self, head: int, body: bytes) -> None:
        """Take a packet that nobody expects, which can only be a DISCONNECT."""
        if head == DISCONNECT and self.version == V5 and body[:1] and body[0] in _GOODBYES:
            raise EOFError
        raise Violation(f"unexpected packet {head:#x} {body[:20].hex()}")


class Exchange:
    """A PUBLISH under way; `received` once its PUBREC has come."""

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.received = False


class WirePublisher(WireClient):
    """Publishes what is planned, in order, and sends again what was not acknowledged when a connection broke."""

    def __init__(
        self,
        node: Node,
        client_id: str,
        version: int,
        chance: random.Random,
        plan: list[Publication],
        progress: Progress,
    ) -> None:
        super().__init__(node, client_id, version, chance)
        self.sent: list[Publication] = []
        self.acknowledged: list[Publication] = []
        self._plan = iter(plan)
        self._progress = progress
        self._ids = itertools.cycle(range(1, _PACKET_IDS + 1))
        # By packet id, in the order in which they were first sent.
        self._under_way: dict[int, Exchange] = {}

    def serve(self, wire: Wire) -> None:
        """Publish until everything is acknowledged."""
        # [MQTT-4.4.0-1] First again what was under way, in its order [MQTT-4.6.0-1].
        for packet_id, exchange in self._under_way.items():
            if exchange.received:
                wire.send(answer_packet(PUBREL, packet_id))
            else:
                publication = exchange.publication
                wire.send(publish_packet(self.version, publication.message, publication.qos, packet_id, dup=True))
        while not self.leaving.is_set():
            while len(self._under_way) < _WINDOW and self._publish_next(wire):
                pass
            if not self._under_way:
                self.done.set()
                return
            answer = wire.next()
            if answer is None:
                raise Violation(f"{len(self._under_way)} unanswered after {LIMIT_S:g} s")
            self._receive(wire, *answer)

    def _publish_next(self, wire: Wire) -> bool:
        publication = next(self._plan, None)
        if publication is None:
            return False
        packet_id = next(packet_id for packet_id in self._ids if packet_id not in self._under_way)
        self._under_way[packet_id] = Exchange(publication)
        self.sent.append(publication)
        wire.send(publish_packet(self.version, publication.message, publication.qos, packet_id))
        return True

    def _receive(self, wire: Wire, head: int, body: bytes) -> None:
        if head not in (PUBACK, PUBREC, PUBCOMP):
            self.closed(head, body)
        packet_id, reason = int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0
        if head == PUBCOMP:
            exchange = self._under_way.get(packet_id)
            if exchange is None or not exchange.received:
                raise Violation(f"PUBCOMP {packet_id} answers nothing")
            # A PUBREL that was sent again may be one too many.
            if reason not in (0, _PACKET_IDENTIFIER_NOT_FOUND):
                raise Violation(f"PUBCOMP {packet_id} with {reason:#x}")
            self._acknowledge(packet_id)
            return
        if reason >= 0x80:
            raise Violation(f"PUBLISH {packet_id} was refused with {reason:#x}")
        # [MQTT-4.6.0-2] [MQTT-4.6.0-3] Each comes in the order of the PUBLISHes.
        qos = 1 if head == PUBACK else 2
        waiting = [key for key, each in self._under_way.items() if each.publication.qos == qos and not each.received]
        if waiting[:1] != [packet_id]:
            raise Violation(f"{'PUBACK' if qos == 1 else 'PUBREC'} {packet_id} came, but {waiting} wait in that order")
        if qos == 1:
            self._acknowledge(packet_id)
        else:
            self._under_way[packet_id].received = True
            wire.send(answer_packet(PUBREL, packet_id))

    def _acknowledge(self, packet_id: int) -> None:
        self.acknowledged.append(self._under_way.pop(packet_id).publication)
        self._progress.add()


class WireSubscriber(WireClient):
    """Subscribes once, and hands to its application what comes: `received`, in order."""

    def __init__(
        self,
        node: Node,
        client_id: str,
        version: int,
        chance: random.Random,
        topic_filter: str,
        qos: int,
        receive_maximum: int = 65_535,
    ) -> None:
        super().__init__(node, client_id, version, chance, receive_maximum)
        self.received: list[Message] = []
        self.subscribed = threading.Event()
        self._filter = topic_filter
        self._qos = qos
        # QoS 2 by packet id, from PUBLISH to PUBREL: what is sent again meanwhile is not handed over again.
        self._held: dict[int, Message] = {}

    def serve(self, wire: Wire) -> None:
        """Receive until told to leave."""
        if not self.subscribed.is_set():
            wire.send(subscribe_packet(self.version, 1, self._filter, self._qos))
        answers: list[bytes] = []
        while not self.leaving.is_set():
            came = wire.next(_POLL_S)
            if came is not None:
                answers.append(self._receive(*came))
            if answers and not wire.has_more():
                wire.send(b"".join(answers))
                answers = []

    def _receive(self, head: int, body: bytes) -> bytes:
        """Take a packet; the result is the answer to it."""
        if head & 0xF0 == PUBLISH:
            return self._receive_publish(head, body)
        if head == PUBREL:
            packet_id = int.from_bytes(body[:2], "big")
            self._held.pop(packet_id, None)
            return answer_packet(PUBCOMP, packet_id)
        if head != SUBACK:
            self.closed(head, body)
        if body[-1] != self._qos:
            raise Violation(f"SUBACK with {body[-1]:#x}")
        self.subscribed.set()
        return b""

    def _receive_publish(self, head: int, body: bytes) -> bytes:
        qos, pos = head >> 1 & 3, 2 + int.from_bytes(body[:2], "big")
        topic = body[2:pos].decode()
        packet_id = int.from_bytes(body[pos : pos + 2], "big")
        pos += 2
        if self.version == V5:
            # Nobody sends a property here, so that there is nothing to pass on.
            if body[pos]:
                raise Violation(f"PUBLISH {packet_id} with properties that nobody sent")
            pos += 1
        message = Message(topic, body[pos:])
        if qos == 1:
            self.received.append(message)
            return answer_packet(PUBACK, packet_id)
        if qos != 2:
            raise Violation(f"PUBLISH with QoS {qos}")
        held = self._held.get(packet_id)
        if held is None:
            self._held[packet_id] = message
            self.received.append(message)
        elif held != message:
            raise Violation(f"PUBLISH {packet_id} is another message before its PUBREL")
        elif not head & DUP:
            raise Violation(f"PUBLISH {packet_id} came again without DUP")
        return answer_packet(PUBREC, packet_id)
