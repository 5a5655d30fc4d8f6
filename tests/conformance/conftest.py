"""Raw bytes in, exact bytes out: what the specifications demand of a server, by their chapters.

Tests name the statement that they try in their docstring, as MQTT 5.0 numbers them unless they say 3.1.1. The node is
the real cores without sockets.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from core_helpers import Client, Node, started_nodes

CONNECT = {4: "10 0d 0004 4d515454 04 02 0000 0001 {0:02x}", 5: "10 0e 0004 4d515454 05 02 0000 00 0001 {0:02x}"}
CONNACK = {4: "20 02 00 00", 5: "20 0b 00 00 08 2401 2500 2900 2a00"}


class RawClient:
    """A client in hexadecimal."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.version = client.version

    @property
    def closed(self) -> bool:
        return self.client.closed

    def say(self, hex_bytes: str) -> str:
        """Say bytes and return what is heard by then."""
        self.client.send(bytes.fromhex(hex_bytes))
        return self.hear()

    def hear(self) -> str:
        return self.client.take_bytes().hex(" ")

    def drop(self) -> None:
        self.client.drop()


class RawNode:
    """A node for clients in hexadecimal."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def open(self, version: int = 4) -> RawClient:
        return RawClient(self.node.open(version=version))

    def connect(self, version: int, name: str = "c") -> RawClient:
        """A client with a clean session and no properties."""
        client = self.open(version)
        assert client.say(CONNECT[version].format(ord(name))) == spaced(CONNACK[version])
        return client

    def advance(self, seconds: float) -> None:
        self.node.advance(seconds)


def spaced(hex_bytes: str) -> str:
    """The form in which bytes are compared: two digits and a space."""
    return bytes.fromhex(hex_bytes).hex(" ")


@pytest.fixture
def broker():
    for start in started_nodes():
        yield RawNode(start())


@pytest.fixture(params=[4, 5], ids=["3.1.1", "5.0"])
def version(request):
    return request.param
