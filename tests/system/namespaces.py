"""A network of its own for each node of a system test: namespaces, joined by a bridge, whose links can be cut.

Each node has a loopback, where its clients are, and one link to the others. The namespaces have no names: the kernel
removes them, and the links with them, when the last process inside ends and the test program lets go of them, however
that happens. Needs Linux, iproute2 and the right to make namespaces; `why_not` says what is missing.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from clients import Client
from nodes import COOKIE, Node

_NEW_NETWORK: Final = 0x40000000
"""CLONE_NEWNET. Python has setns and unshare since 3.12 only."""
_OWN: Final = "/proc/thread-self/ns/net"
_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)

_LINK: Final = "eth0"
_SUBNET: Final = "10.44.53"
_NOBODY: Final = "02:00:00:00:00:fe"
"""A hardware address that no link has: what is sent there is lost without a word."""


def why_not() -> str:
    """Return why this machine can't make such a network, or nothing when it can."""
    if not shutil.which("ip"):
        return "no network namespaces: `ip` of iproute2 is not installed"
    try:
        with ExitStack() as stack:
            network = Network(1)
            stack.callback(network.close)
            with network.inside(1):
                if not queueing_is_there():
                    return "no network namespaces: `tc` of iproute2 or its token bucket (tbf) is missing"
    except OSError as error:
        return f"no network namespaces: {error}"
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: `{' '.join(error.cmd)}` says {error.stderr.strip()}"
    return ""


def queueing_is_there() -> bool:
    """Whether a link can be made slow."""
    command = ["tc", "qdisc", "add", "dev", _LINK, "root", "tbf", "rate", "1mbit", "burst", "4kb", "latency", "1s"]
    return bool(shutil.which("tc")) and subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def fresh_loopback() -> Iterator[None]:
    """Have this thread, and what it starts meanwhile, on a loopback on which every port is free, if that can be."""
    with ExitStack() as stack:
        if not why_not():
            network = Network(1)
            stack.callback(network.close)
            stack.enter_context(network.inside(1))
        yield


def run(*command: str) -> str:
    """Run a command in the namespace where this thread is, and return what it printed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def address(number: int) -> str:
    """Return the address of a node on its link."""
    return f"{_SUBNET}.{number}"


def _enter(namespace: int) -> None:
    if _LIBRARY.setns(namespace, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """A bridge, and so many namespaces with a link to it. Close it; nodes are numbered from 1."""

    def __init__(self, size: int) -> None:
        self._numbers = range(1, size + 1)
        self._namespaces: dict[int, int] = {}
        try:
            # Number 0 has the bridge, and no node.
            for number in range(size + 1):
                self._namespaces[number] = _new_namespace()
            with self.inside(0):
                run("ip", "link", "add", "bridge", "type", "bridge")
                run("ip", "link", "set", "bridge", "up")
            for number in self._numbers:
                self._connect(number)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the namespaces."""
        for namespace in self._namespaces.values():
            os.close(namespace)
        self._namespaces.clear()

    @contextmanager
    def inside(self, number: int) -> Iterator[None]:
        """Have this thread, and what it starts meanwhile, in a node's namespace."""
        before = os.open(_OWN, os.O_RDONLY)
        try:
            _enter(self._namespaces[number])
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(before)

    def _connect(self, number: int) -> None:
        place = f"/proc/{os.getpid()}/fd/{self._namespaces[number]}"
        port = f"port{number}"
        with self.inside(0):
            run("ip", "link", "add", port, "type", "veth", "peer", "name", _LINK, "netns", place)
            run("ip", "link", "set", port, "master", "bridge", "up")
        with self.inside(number):
            run("ip", "link", "set", "lo", "up")
            run("ip", "address", "add", f"{address(number)}/24", "dev", _LINK)
            run("ip", "link", "set", _LINK, "up")

    @contextmanager
    def cut(self, number: int) -> Iterator[None]:
        """Pull a node's plug at the bridge; it is back in afterwards."""
        self._plug(number, "down")
        try:
            yield
        finally:
            self._plug(number, "up")

    def _plug(self, number: int, state: str) -> None:
        with self.inside(0):
            run("ip", "link", "set", f"port{number}", state)

    @contextmanager
    def one_way(self, sender: int, receiver: int) -> Iterator[None]:
        """Lose whatever one node sends to another, and nothing that comes back."""
        neighbour = (address(receiver), "dev", _LINK)
        with self.inside(sender):
            run("ip", "neighbour", "replace", *neighbour, "lladdr", _NOBODY, "nud", "permanent")
        try:
            yield
        finally:
            with self.inside(sender):
                run("ip", "neighbour", "del", *neighbour)

    @contextmanager
    def slow(self, number: int, *limits: str) -> Iterator[None]:
        """Have what a node sends wait in a token bucket (`tc qdisc ... tbf LIMITS`)."""
        with self.inside(number):
            run("tc", "qdisc", "replace", "dev", _LINK, "root", "tbf", *limits)
        try:
            yield
        finally:
            with self.inside(number):
                run("tc", "qdisc", "del", "dev", _LINK, "root")

    def dropped(self, number: int) -> int:
        """Return how many packets had no room in a slow link's queue."""
        with self.inside(number):
            return _dropped_of(run("tc", "-s", "qdisc", "show", "dev", _LINK))


def _dropped_of(statistics: str) -> int:
    # " Sent 5430 bytes 21 pkt (dropped 3, overlimits 9 requeues 0)"
    return int(statistics.partition("(dropped ")[2].partition(",")[0])


def _new_namespace() -> int:
    """Return the descriptor of a new namespace."""
    before = os.open(_OWN, os.O_RDONLY)
    try:
        if _LIBRARY.unshare(_NEW_NETWORK):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            return os.open(_OWN, os.O_RDONLY)
        finally:
            _enter(before)
    finally:
        os.close(before)


class PlacedNode(Node):
    """A node in a namespace. Its clients reach it on the loopback there, the others by its link."""

    def __init__(self, network: Network, directory: Path, number: int, *settings: str) -> None:
        super().__init__(directory, number, COOKIE)
        self.network, self.number = network, number
        self.name = f"node{number}@{address(number)}"
        self.settings += [f"node.name={self.name}", f"cluster.listen={address(number)}:{self.mesh_port}", *settings]

    def launch(self) -> None:
        with self.network.inside(self.number):
            super().launch()


class PlacedClient(Client):
    """A client in the namespace of its node."""

    def __init__(self, node: PlacedNode, *arguments: Any, **options: Any) -> None:
        super().__init__(node, *arguments, **options)
        self._place = node

    def connect(self) -> "PlacedClient":
        # The client's thread is started here, and stays where it was started.
        with self._place.network.inside(self._place.number):
            super().connect()
        return self
