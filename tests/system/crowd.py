"""A crowd: very many persistent sessions, each with a topic of its own, that are made and emptied many at a time.

Session `n` subscribes to `crowd/n` with QoS 1 or 2, whichever `qos(n)` says, and remembers what it heard, in order.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Final

from crash_round import queued_messages
from nodes import LIMIT_S, Node, wait_until
from wire_clients import (
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    V311,
    Message,
    Progress,
    Publication,
    Violation,
    Wire,
    WirePublisher,
    answer_packet,
    connect_packet,
    subscribe_packet,
)

# So many connections are opened at a time: fewer than a node lets wait.
AT_ONCE: Final = 100


class Crowd:
    """So many sessions of MQTT 3.1.1; `received` is what each has heard."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.received: list[list[str]] = [[] for _ in range(count)]

    def qos(self, number: int) -> int:
        """Return the QoS of a session's subscription, and of what is published to it."""
        return 1 + number % 2

    def plan(self, first: int, messages: int) -> list[Publication]:
        """Return what a publisher is to publish, so that each session gets as many: their texts count from `first`."""
        return [
            Publication(Message(f"crowd/{number}", str(place).encode()), self.qos(number), 0, place)
            for place in range(first, first + messages)
            for number in range(self.count)
        ]

    def publisher(self, node: Node, plan: list[Publication]) -> tuple[WirePublisher, Progress]:
        """Return a publisher that has begun with a plan, and what it has done of it."""
        progress = Progress()
        publisher = WirePublisher(node, "crowd's publisher", V311, random.Random(len(plan)), plan, progress)
        publisher.start()
        return publisher, progress

    def begin(self, node: Node, stays: bool = False) -> list[Wire]:
        """Make the sessions at a node, and leave it, unless they are to stay; returns the connections that do."""
        wires: list[Wire] = []
        for part in self._parts():
            attached = self._attach([node], part, False)
            for number, wire in attached.items():
                wire.send(subscribe_packet(V311, 1, f"crowd/{number}", self.qos(number)))
            for number, wire in attached.items():
                assert wire.next() == (SUBACK, bytes([0, 1, self.qos(number)])), f"session {number} has no SUBACK"
                if not stays:
                    wire.leave()
            wires += attached.values()
        return wires if stays else []

    def hear(self, nodes: Sequence[Node], wanted: int) -> None:
        """Have everybody connect to one of the nodes, and hear what waits: so many messages each, and no more."""
        for part in self._parts():
            for number, wire in self._attach(nodes, part, True).items():
                self._hear(wire, number, wanted)
                wire.leave()
        # Whatever came beyond what is wanted was answered by nobody, and waits.
        wait_until(lambda: all(queued_messages(node) == 0 for node in nodes), "nothing waits any more")

    def faults(self, messages: int) -> list[str]:
        """Return what is wrong if each session was to hear the texts from 0 on, once and in order."""
        expected = [str(place) for place in range(messages)]
        return [f"session {number}: {heard}" for number, heard in enumerate(self.received) if heard != expected]

    def _parts(self) -> Iterator[range]:
        for first in range(0, self.count, AT_ONCE):
            yield range(first, min(first + AT_ONCE, self.count))

    def _attach(self, nodes: Sequence[Node], numbers: range, present: bool) -> dict[int, Wire]:
        wires = {number: Wire(nodes[number % len(nodes)]) for number in numbers}
        for number, wire in wires.items():
            wire.send(connect_packet(f"crowd{number:05}", V311))
        for number, wire in wires.items():
            assert wire.connected(V311) is present, f"session {number} is {'not ' if present else ''}there"
        return wires

    def _hear(self, wire: Wire, number: int, wanted: int) -> None:
        """Take packets until so many messages are here and all of their exchanges are over."""
        heard = self.received[number]
        held: dict[int, str] = {}
        while len(heard) < wanted or held:
            came = wire.next()
            assert came is not None, f"session {number} hears nothing after {heard}, {held}, within {LIMIT_S:g} s"
            head, body = came
            if head == PUBREL:
                packet_id = int.from_bytes(body, "big")
                held.pop(packet_id, None)
                wire.send(answer_packet(PUBCOMP, packet_id))
                continue
            if head & 0xF0 != PUBLISH or head >> 1 & 3 != self.qos(number):
                raise Violation(f"session {number}: unexpected packet {head:#x}")
            topic_end = 2 + int.from_bytes(body[:2], "big")
            assert body[2:topic_end].decode() == f"crowd/{number}"
            packet_id = int.from_bytes(body[topic_end : topic_end + 2], "big")
            heard.append(body[topic_end + 2 :].decode())
            if self.qos(number) == 1:
                wire.send(answer_packet(PUBACK, packet_id))
            else:
                held[packet_id] = heard[-1]
                wire.send(answer_packet(PUBREC, packet_id))
