"""Raw bytes in, exact bytes out: what the specifications demand of a server, by their chapters.

The node is the real cores without sockets; time is moved by hand. A test is a short script in hexadecimal, its packets
written out or made by `hex_packets`:

    def test_a_ping_is_answered(broker, version):
        '''[MQTT-3.12.4-1] [MQTT311-3.12.4-1]'''
        client = broker.connect(version)
        assert client.say("c0 00") == "d0 00"

A test carries the statements that it tries in its docstring: `[MQTT-x.y.z-n]` of MQTT 5.0, `[MQTT311-x.y.z-n]` of
3.1.1, whose numbers are others. `statements.py` collects them; a comment or a module's docstring counts for nothing.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

import hex_packets
from core_helpers import Client, Node, started_nodes
from hex_packets import spaced


class RawClient:
    """A client in hexadecimal. `connack` is what `broker.connect` heard first."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.version = client.version
        self.connack = ""

    @property
    def closed(self) -> bool:
        return self.client.closed

    def say(self, hex_bytes: str) -> str:
        """Say bytes and return what is heard by then."""
        self.client.send(bytes.fromhex(hex_bytes))
        return self.hear()

    def hear(self) -> str:
        """What was heard since the last time."""
        return self.client.take_bytes().hex(" ")

    def fails(self, hex_bytes: str, reason: str) -> bool:
        """Say bytes that close the connection: 5.0 is told the reason in a DISCONNECT, 3.1.1 nothing."""
        heard = self.say(hex_bytes).split()
        assert self.closed, "still connected"
        if self.version == 4:
            return not heard
        assert heard, "no DISCONNECT"
        length = int(heard[1], 16)
        assert (heard[0], heard[2]) == ("e0", reason), " ".join(heard)
        assert len(heard) == 2 + length
        return True

    def subscribe(self, topic_filter: str | bytes, options: int = 1, packet_id: int = 1) -> None:
        """Subscribe, and find it granted."""
        heard = self.say(hex_packets.subscribe(self.version, packet_id, (topic_filter, options)))
        assert heard == spaced(hex_packets.suback(self.version, packet_id, f"{options & 3:02x}"))

    def publish(self, topic: str | bytes, payload: str | bytes = "x", qos: int = 0, **options: Any) -> str:
        return self.say(hex_packets.publish(self.version, topic, payload, qos, **options))

    def drop(self) -> None:
        """Close the socket without a word."""
        self.client.drop()


class RawNode:
    """A node for clients in hexadecimal."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def open(self, version: int = 4) -> RawClient:
        """A client that has said nothing yet."""
        return RawClient(self.node.open(version=version))

    def connect(self, version: int, name: str | bytes = "c", clean: bool = True, **options: Any) -> RawClient:
        """A client that was accepted; what follows the CONNACK is not heard yet. The options are those of `connect`."""
        client = self.open(version)
        client.client.send(bytes.fromhex(hex_packets.connect(version, name, clean, **options)))
        heard = client.client.take_bytes()
        end = 2 + heard[1] if heard else 0
        assert heard[:1] == b"\x20", f"no CONNACK: {heard.hex(' ')}"
        assert heard[3] == 0, f"refused: {heard.hex(' ')}"
        client.connack = heard[:end].hex(" ")
        client.client.unread = heard[end:]
        return client

    def stay(self, version: int, name: str | bytes = "s", session_s: int = 60, **options: Any) -> RawClient:
        """A client whose session is resumed, and outlives its connection (5.0: by `session_s`)."""
        return self.connect(version, name, False, session_s=session_s, **options)

    def subscriber(self, version: int, qos: int = 2) -> RawClient:
        """A subscriber of everything, whose session stays."""
        client = self.stay(version)
        client.subscribe("#", qos)
        return client

    def refuses(self, version: int, hex_bytes: str, reason: str = "81") -> bool:
        """Say a bad CONNECT, which closes: 5.0 is told the reason in a CONNACK, 3.1.1 nothing."""
        client = self.open(version)
        heard = bytes.fromhex(client.say(hex_bytes))
        assert client.closed, "still connected"
        if version == 4:
            return not heard
        assert heard[:4] == bytes([0x20, len(heard) - 2, 0]) + bytes.fromhex(reason), heard.hex(" ")
        return hex_packets.has_only_a_reason_string(heard, 4)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.node.advance(seconds)

    def restart(self, down_s: float = 0.0) -> None:
        """Kill the node and start it from its store; its clients are gone."""
        self.node = self.node.restart(down_s)


def _start(brokers: list[RawNode], start_node: Callable[..., Node], **options: Any) -> RawNode:
    brokers.append(RawNode(start_node(**options)))
    return brokers[-1]


@pytest.fixture
def start() -> Iterator[Callable[..., RawNode]]:
    """A function that starts nodes with the options of `core_helpers.Node`; each is validated at the end."""
    brokers: list[RawNode] = []
    for start_node in started_nodes():
        yield partial(_start, brokers, start_node)
    for broker in brokers:
        broker.node.settle()
        broker.node.validate()


@pytest.fixture
def broker(start: Callable[..., RawNode]) -> RawNode:
    return start()


@pytest.fixture(params=[4, 5], ids=["3.1.1", "5.0"])
def version(request: pytest.FixtureRequest) -> int:
    level: int = request.param
    return level
