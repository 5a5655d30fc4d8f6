"""broker.runtime.addresses: what a name that is looked up for discovery has, and how long that may take."""

import asyncio
import socket
import threading

import pytest

from broker.runtime.addresses import look_up


def found(*addresses):
    """What getaddrinfo answers with."""
    families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
    return [
        (family, socket.SOCK_STREAM, 6, "", (each, 44053)) for family, each in zip(families, addresses, strict=True)
    ]


@pytest.mark.parametrize(
    ("answer", "addresses"),
    [
        (found("10.0.0.2", "10.0.0.1", "10.0.0.2"), ["10.0.0.1:44053", "10.0.0.2:44053"]),
        # One node has both.
        (found("::1", "10.0.0.1"), ["10.0.0.1:44053"]),
        (found("fd00::2"), ["[fd00::2]:44053"]),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), []),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), None),
        (OSError(23, "Too many open files in system"), None),
        (UnicodeError("label empty"), None),
    ],
)
def test_every_address_is_a_node_and_no_answer_is_not_nobody(answer, addresses):
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert asyncio.run(look_up("dns://nodes.example", resolve=resolve)) == addresses
    assert asked == [("nodes.example", 44053)]


def test_a_port_is_that_of_the_entry():
    asked = []
    asyncio.run(look_up("dns://nodes:4000", resolve=lambda host, port: asked.append((host, port)) or []))
    assert asked == [("nodes", 4000)]


def test_a_resolver_that_hangs_is_not_waited_for():
    ends = threading.Event()

    def resolve(host, port):
        ends.wait()
        return found("10.0.0.1")

    # Nobody waits at the end of the loop either: the resolver still hangs then.
    assert asyncio.run(look_up("dns://nodes", 0.05, resolve)) is None
    ends.set()


def test_this_machine_is_found():
    assert asyncio.run(look_up("dns://localhost:4000")) == ["127.0.0.1:4000"]
