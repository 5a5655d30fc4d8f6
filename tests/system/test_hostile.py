"""Clients that never read, that stop in the middle, that flood, that say nothing or nonsense: nobody else suffers.

Each of them works on a node beside two good clients, who are served in order all the while; the node's memory stays
within a bound, what bites is counted, and nothing of ours is to be read in the log.
"""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import V5, Client
from nodes import Node, wait_until
from wire_clients import V311, Wire, connect_packet, packet, publish_packet, string
from wire_clients import Message as Wanted

CONNECTED = bytes.fromhex("20020000")
# What a node may grow by: queues of a thousand messages, output buffers and the allocator's generosity.
GROWTH_BYTES_MAX = 64 * 1024 * 1024
GOOD_MESSAGES = 100


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node that gives a silent client a second."""
    return make_node(settings=["mqtt.mqtt_connect_timeout=1000"]).start()


def memory_bytes(node: Node) -> int:
    """What the processes of a node have in memory by themselves."""
    total = 0
    for process in node.processes():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1]) * 1024
    return total


def counted(node: Node, name: str) -> int:
    return sum(row["Value"] for row in node.table("metrics", "show") if row["Metric"].partition("{")[0] == name)


def connected(node: Node, name: str) -> socket.socket:
    host, port = node.mqtt_address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)))
    client.sendall(connect_packet(name, V311, clean=True))
    assert client.recv(4) == CONNECTED
    return client


@pytest.fixture
def good_clients(node: Node) -> Iterator[Callable[[], None]]:
    """A function that has good messages published and received in order, and looks at memory and log at the end."""
    with Client(node, version=V5) as publisher, Client(node, version=V5) as subscriber:
        subscriber.subscribe("good/#")
        before = memory_bytes(node)

        def served() -> None:
            for number in range(GOOD_MESSAGES):
                publisher.publish("good/x", str(number), qos=number % 2)
            assert [payload for _, payload in subscriber.messages(GOOD_MESSAGES)] == [
                str(number) for number in range(GOOD_MESSAGES)
            ]

        yield served
        served()
        assert memory_bytes(node) - before < GROWTH_BYTES_MAX
    assert "Traceback" not in node.said()
    assert "Error" not in node.said()


def test_a_client_that_never_reads(node: Node, good_clients: Callable[[], None]) -> None:
    deaf = connected(node, "deaf")
    deaf.sendall(packet(0x82, b"\x00\x01" + string("noise/#") + b"\x00"))
    with Client(node, version=V5) as loud:
        for number in range(3000):
            loud.publish("noise/x", b"x" * 5000, qos=number % 100 == 0)
        good_clients()
        assert counted(node, "client_write_paused") >= 1
        assert counted(node, "queue_message_drop") >= 1
    deaf.close()


def test_clients_that_stop_in_the_middle_of_a_packet(node: Node, good_clients: Callable[[], None]) -> None:
    whole = publish_packet(V311, Wanted("half/x", b"y" * 100), 1, 7)
    halves = [connected(node, f"half{number}") for number in range(50)]
    for number, half in enumerate(halves):
        half.sendall(whole[: 1 + number % (len(whole) - 1)])
    good_clients()
    for half in halves:
        half.close()


def test_clients_that_say_nothing_or_announce_what_never_comes(node: Node, good_clients: Callable[[], None]) -> None:
    host, port = node.mqtt_address.rsplit(":", 1)
    silent = [socket.create_connection((host, int(port))) for _ in range(200)]
    for number, client in enumerate(silent):
        if number % 2:
            # A CONNECT of 256 MB, and the first of it.
            client.sendall(bytes.fromhex("10ffffff7f00044d5154540402003c") + b"x" * 1000)
    good_clients()

    def all_closed() -> bool:
        return counted(node, "socket_close") >= len(silent)

    wait_until(all_closed, "the silent clients to be closed")
    assert counted(node, "socket_close_timeout") >= 100
    for client in silent:
        client.close()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_client_that_floods(node: Node, good_clients: Callable[[], None], qos: int) -> None:
    flooder = connected(node, "flooder")
    with Client(node, version=V5) as listener:
        listener.subscribe("flood/#", qos=0)
        frames = b"".join(
            publish_packet(V311, Wanted("flood/x", b"z" * 50), qos, number % 65535 + 1 if qos else 0)
            for number in range(2000)
        )
        stop = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                for _ in range(50):
                    if stop.is_set():
                        return
                    flooder.sendall(frames)

        def read_answers() -> None:
            with contextlib.suppress(OSError):
                while flooder.recv(65536):
                    pass

        threads = [threading.Thread(target=work, daemon=True) for work in (flood, read_answers)]
        for thread in threads:
            thread.start()
        good_clients()
        stop.set()
        flooder.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    flooder.close()


def test_clients_that_say_nonsense(node: Node, good_clients: Callable[[], None]) -> None:
    chance = random.Random(20261125)
    for number in range(300):
        if number % 2:
            client = connected(node, f"odd{number}")
        else:
            host, port = node.mqtt_address.rsplit(":", 1)
            client = socket.create_connection((host, int(port)))
        with contextlib.suppress(OSError):
            client.sendall(chance.randbytes(chance.randint(1, 400)))
        client.close()
    good_clients()
    assert counted(node, "mqtt_protocol_error") + counted(node, "mqtt_malformed_packet_error") > 0


def test_who_is_closed_in_the_middle_of_its_words_reads_why(node: Node, good_clients: Callable[[], None]) -> None:
    """A socket that is closed with something unread in it resets the connection: the reason would be lost with it."""
    rest = bytes(200_000)
    for number in range(50):
        with connected(node, f"wordy{number}") as client:
            # The second packet is none, and nobody will want the rest.
            client.sendall(b"\xc0\x00\xf0\x00" + rest)
            heard = b""
            while data := client.recv(100):
                heard += data
            assert heard == b"\xd0\x00"
    good_clients()


def test_one_client_id_that_connects_again_and_again(node: Node, good_clients: Callable[[], None]) -> None:
    wires = []
    for _ in range(200):
        wires.append(connected(node, "again"))
    good_clients()
    for wire in wires:
        wire.close()
    with Wire(node) as last:
        assert last.attach(connect_packet("again", V311, clean=True), V311) is False
