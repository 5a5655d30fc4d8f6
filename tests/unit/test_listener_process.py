"""broker.runtime.listener_process: when a client's socket is read, and when it is not. The loop is the test."""

from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import Config
from broker.core.connection import ATTACHED, ConnectionLimits
from broker.core.listener import ListenerCore
from broker.mqtt.codec import encode
from broker.mqtt.packets import Pingreq, Publish
from broker.runtime.listener_process import ClientProtocol

BUFFER_BYTES = 64 * 1024
PING = encode(Pingreq(), 4)


class Transport:
    """A socket that takes everything and says whether it is read."""

    def __init__(self) -> None:
        self.reading = True
        self.written = b""

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data


class Client:
    """A client whose session is attached."""

    def __init__(self, process: Any) -> None:
        self.transport: Any = Transport()
        self.protocol = ClientProtocol(process, "")
        self.protocol.connection_made(self.transport)
        connection = self.protocol.connection
        assert connection is not None
        connection.state, connection.version = ATTACHED, 4

    def send(self, data: bytes) -> None:
        """Send as much as one reading takes."""
        self.protocol.get_buffer(-1)[: len(data)] = data
        self.protocol.buffer_updated(len(data))
        self.protocol.write_output()


@pytest.fixture
def process() -> Any:
    core = ListenerCore(0, 1, ConnectionLimits(), lambda: "assigned")
    core.owner_ready(1)
    return SimpleNamespace(
        core=core,
        config=Config(),
        buffer=memoryview(bytearray(BUFFER_BYTES)),
        had_their_turn=[],
        protocols={},
        blocked=False,
        flush=core.take_frame,
        schedule_turn=lambda: None,
    )


def test_a_client_with_more_to_say_waits_for_the_others_turn(process: Any) -> None:
    client = Client(process)
    client.send(PING)
    assert client.transport.reading and not process.had_their_turn
    for data in (PING * (BUFFER_BYTES // 2), encode(Publish(b"a", b"x" * (BUFFER_BYTES - 7)), 4)):
        assert len(data) == BUFFER_BYTES
        client.send(data)
        assert not client.transport.reading and process.had_their_turn == [client.protocol]
        process.had_their_turn.clear()
        client.protocol.begin_turn()
        assert client.transport.reading


def test_a_client_that_reads_no_answers_is_not_read(process: Any) -> None:
    client = Client(process)
    some = PING * 10_000
    client.protocol.pause_writing()
    for _ in range(3):
        client.send(some)
        assert client.transport.reading
    client.send(some)
    assert not client.transport.reading
    assert process.core.counters.client_read_paused == 1
    client.protocol.resume_writing()
    assert client.transport.reading
    # What it was owed before is read by now.
    client.protocol.pause_writing()
    client.send(some)
    assert client.transport.reading and len(client.transport.written) == 5 * len(some)


def test_a_client_that_reads_no_deliveries_may_go_on_to_publish(process: Any) -> None:
    client = Client(process)
    client.protocol.pause_writing()
    for _ in range(100):
        client.send(encode(Publish(b"a", b"x" * 1000), 4))
    assert client.transport.reading
