"""broker.runtime.listener_process: when a client's socket is read, and when it is not. The loop is the test."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import Config
from broker.core.connection import ATTACHED, ConnectionLimits
from broker.core.listener import PACE_S, PACED_PACKETS, TURN_BYTES, ListenerCore
from broker.mqtt.codec import encode
from broker.mqtt.packets import Pingreq, Publish
from broker.runtime.listener_process import ANSWER_BYTES_MAX, CLOSING_BYTES_MAX, ClientProtocol, ListenerProcess

PING = encode(Pingreq(), 4)


class Transport:
    """A socket that takes everything and says whether it is read."""

    def __init__(self) -> None:
        self.reading = True
        self.written = b""
        self.ended = False
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data


class Timer:
    """What the loop was asked to do later."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop that does nothing, and remembers what it was to do."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.soon: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.soon.append(callback)

    def call_later(self, delay_s: float, callback: Any) -> Timer:
        self.timers.append(Timer(callback))
        return self.timers[-1]


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

    def take_turns(self) -> None:
        """Let it be read again, and what it said before be worked off."""
        core = self.protocol._process.core
        while core.wants_turn():
            core.take_turns(0.0)
            core.take_frame()
            self.protocol.write_output()


@pytest.fixture
def process() -> Any:
    core = ListenerCore(0, 1, ConnectionLimits(), lambda: "assigned")
    core.owner_ready(1)
    return SimpleNamespace(
        core=core,
        config=Config(),
        buffer=memoryview(bytearray(TURN_BYTES)),
        protocols={},
        blocked=False,
        flush=core.take_frame,
        schedule_turn=lambda: None,
        loop=Loop(),
    )


def test_a_client_with_more_to_say_waits_for_the_others_turn(process: Any) -> None:
    client = Client(process)
    client.send(PING)
    assert client.transport.reading
    for data in (PING * (TURN_BYTES // 2), encode(Publish(b"a", b"x" * (TURN_BYTES - 7)), 4)):
        assert len(data) == TURN_BYTES
        client.send(data)
        assert not client.transport.reading
        client.take_turns()
        assert client.transport.reading


def test_a_client_that_reads_no_answers_is_not_read(process: Any) -> None:
    client = Client(process)
    some = PING * 1000
    client.protocol.pause_writing()
    for _ in range(32):
        client.send(some)
        assert client.transport.reading
    client.send(some)
    assert 33 * len(some) > ANSWER_BYTES_MAX >= 32 * len(some)
    assert not client.transport.reading
    assert process.core.counters.client_read_paused == 1
    client.protocol.resume_writing()
    assert client.transport.reading
    # What it was owed before is read by now.
    client.protocol.pause_writing()
    client.send(some)
    assert client.transport.reading and len(client.transport.written) == 34 * len(some)


def test_a_client_that_reads_no_deliveries_may_go_on_to_publish(process: Any) -> None:
    client = Client(process)
    client.protocol.pause_writing()
    for _ in range(100):
        client.send(encode(Publish(b"a", b"x" * 1000), 4))
    assert client.transport.reading


def test_a_client_that_is_closed_may_read_its_last_words(process: Any) -> None:
    client = Client(process)
    client.send(PING + b"\xf0\x00" + PING)
    assert client.transport.written == b"\xd0\x00"
    assert client.transport.ended and not client.transport.aborted
    # What it says meanwhile is read, or closing would reset the connection; and ignored, up to a limit.
    assert client.transport.reading
    for _ in range(CLOSING_BYTES_MAX // TURN_BYTES):
        client.send(PING * (TURN_BYTES // 2))
    assert client.transport.written == b"\xd0\x00" and not client.transport.aborted
    client.send(PING)
    assert client.transport.aborted
    (timer,) = process.loop.timers
    assert not timer.cancelled
    client.protocol.connection_lost(None)
    assert timer.cancelled


def test_a_turn_that_is_put_off_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reason: without the timer a flooder would wait for what others say, or for the tick."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    process: Any = ListenerProcess.__new__(ListenerProcess)
    process.core = ListenerCore(0, 1, ConnectionLimits(), lambda: "assigned")
    process.core.owner_ready(1)
    process.config = Config()
    process.buffer = memoryview(bytearray(TURN_BYTES))
    process.protocols = {}
    process.blocked = process._closed = process._spoke = False
    process._turn_scheduled = process._turn_is_timed = process._flush_scheduled = False
    process.loop = Loop()
    process._channel = SimpleNamespace(send=lambda frame: None, receive=lambda: None)
    modest, greedy = Client(process), Client(process)
    modest.send(PING)
    greedy.send(PING * (TURN_BYTES // 2))
    process._turn()
    process._turn()
    # One timer, however often others have a turn of the loop made.
    (timer,) = process.loop.timers
    before = len(greedy.transport.written)
    process.loop.soon.clear()
    now[0] += PACE_S
    timer.callback()
    assert len(greedy.transport.written) == before + 2 * PACED_PACKETS
    (_, _) = process.loop.timers
