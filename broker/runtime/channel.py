"""The ZeroMQ pipes between the listeners and the queue-owner of a node.

Each listener PUSHes to the owner's one PULL; the owner has one PUSH for each listener, since a PUSH with
several PULLs would deal the frames out round robin. It owns sockets, endpoints and the returning of credit; what is
in a frame is `listener_records`' and `owner_records`' business. Nothing here blocks: the amount under way is bounded by
credit, so the high-water marks are off.
"""

import math

import zmq

from broker.core.listener_records import ListenerHeader
from broker.core.owner_records import OwnerBatch, owner_frame
from broker.core.records import RETURN_BYTES
from broker.runtime.run_dir import RunDir

_OWNER_ENDPOINT = "owner.sock"
_RECONNECT_MS = 20
_LINGER_MS = 1000
# A listener says something every second, if only that it is there.
SILENCE_S_MAX = 10.0


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    return socket


class ListenerChannel:
    """A listener's end: frames to the owner, frames from the owner. Poll `fileno()`, which is edge-triggered."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: RunDir, listener: int) -> None:
        self._pull = _socket(context, zmq.PULL)
        self._pull.bind(run_dir.endpoint(f"listener-{listener}.sock"))
        self._push = _socket(context, zmq.PUSH)
        self._push.connect(run_dir.endpoint(_OWNER_ENDPOINT))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when `receive` may have something new."""
        return int(self._pull.getsockopt(zmq.FD))

    def send(self, frame: bytes) -> None:
        """Send a frame to the owner."""
        self._push.send(frame, zmq.NOBLOCK)

    def receive(self) -> bytes | None:
        """Return the next frame, None when there is none now."""
        try:
            return self._pull.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Close the sockets; what was sent still leaves, within the linger time."""
        self._push.close()
        self._pull.close(linger=0)


class _Pipe:
    """The owner's PUSH to one listener of one generation, and the credit it owes that listener."""

    def __init__(self, push: zmq.Socket[bytes], generation: int) -> None:
        self.push = push
        self.generation = generation
        self.consumed_bytes = 0
        # When the listener was heard last; it is not expected to say anything before its first frame.
        self.heard_at = math.inf


class OwnerChannel:
    """The owner's end: frames from every listener, records to each."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: RunDir, owner_generation: int) -> None:
        self._context = context
        self._run_dir = run_dir
        self._owner_generation = owner_generation
        self._pipes: dict[int, _Pipe] = {}
        self.pull = _socket(context, zmq.PULL)
        self.pull.bind(run_dir.endpoint(_OWNER_ENDPOINT))

    def add_listener(self, listener: int, generation: int) -> None:
        """Connect to a listener that is about to start; an older one of that index is forgotten."""
        self.remove_listener(listener)
        push = _socket(self._context, zmq.PUSH)
        push.connect(self._run_dir.endpoint(f"listener-{listener}.sock"))
        self._pipes[listener] = _Pipe(push, generation)

    def remove_listener(self, listener: int) -> None:
        """Forget a listener that ended, with whatever was on its way to it."""
        pipe = self._pipes.pop(listener, None)
        if pipe is not None:
            pipe.push.close(linger=0)

    def take_silent(self, now: float) -> list[tuple[int, int]]:
        """Return the (index, generation) of listeners that hang, each once."""
        silent: list[tuple[int, int]] = []
        for listener, pipe in self._pipes.items():
            if now - pipe.heard_at > SILENCE_S_MAX:
                pipe.heard_at = math.inf
                silent.append((listener, pipe.generation))
        return silent

    def receive(self, frames_max: int, now: float) -> list[tuple[ListenerHeader, bytes]]:
        """Return the frames that are there now, without those from or for a process that is no more.

        Call `worked_off` for each when its events are done: that is what gives the listener its credit back.
        """
        frames: list[tuple[ListenerHeader, bytes]] = []
        receive = self.pull.recv
        for _ in range(frames_max):
            try:
                frame = receive(zmq.NOBLOCK)
            except zmq.Again:
                break
            header = ListenerHeader(frame)
            pipe = self._pipes.get(header.listener)
            if pipe is None or pipe.generation != header.generation:
                continue
            if header.owner_generation != self._owner_generation:
                continue
            pipe.heard_at = now
            frames.append((header, frame))
        return frames

    def is_current(self, header: ListenerHeader) -> bool:
        """Say whether the listener of a frame still lives; else its events are void."""
        pipe = self._pipes.get(header.listener)
        return pipe is not None and pipe.generation == header.generation

    def worked_off(self, header: ListenerHeader, credit_bytes: int) -> bool:
        """Take note that so much of a frame is done; false when its listener is gone and its events are void."""
        pipe = self._pipes.get(header.listener)
        if pipe is None or pipe.generation != header.generation:
            return False
        pipe.consumed_bytes += credit_bytes
        return True

    def send(self, batches: dict[int, OwnerBatch]) -> None:
        """Send the turn's records, and return credit where enough of it has gathered."""
        for listener, batch in batches.items():
            pipe = self._pipes.get(listener)
            if pipe is None:
                continue
            for records in batch.records():
                self._send(pipe, records)
        for pipe in self._pipes.values():
            if pipe.consumed_bytes >= RETURN_BYTES:
                self._send(pipe, b"")

    def _send(self, pipe: _Pipe, records: bytes) -> None:
        frame = owner_frame(self._owner_generation, pipe.generation, pipe.consumed_bytes, records)
        pipe.consumed_bytes = 0
        pipe.push.send(frame, zmq.NOBLOCK)

    def close(self) -> None:
        """Close the sockets; what was sent still leaves, within the linger time."""
        for pipe in self._pipes.values():
            pipe.push.close()
        self.pull.close(linger=0)
