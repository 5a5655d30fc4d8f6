"""The control channel: what the supervisor and a child process of the node tell each other.

Owns the line format (JSON objects, one a line, over a Unix stream socket pair) and the child's end of it.
Knows nothing of what the messages mean. The supervisor's end is an asyncio stream over the other socket.

    supervisor -> child     start (always the first), stop, and what the role of the child understands
    child -> supervisor     ready | failed, then reply, progress

A child learns of the death of its supervisor by the end of this stream, and must end then too.
"""

import json
import os
import socket
import struct
from typing import Any

Message = dict[str, Any]

ENVIRONMENT_KEY = "ZVMQ_CONTROL_FD"

LINE_BYTES_MAX = 16 * 1024 * 1024
"""The longest line either side accepts: a table of some ten thousand rows. A longer one ends the channel."""

SEND_TIMEOUT_S = 10
"""How long a child waits for a supervisor that has stopped reading (it never does unless it hangs)."""

RECEIVE_BYTES = 65536


def encode_line(message: Message) -> bytes:
    """Pack one message as a line, newline included."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> Message:
    """Unpack one line; raises ValueError for anything but a JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a control message must be a JSON object")
    return message


class ControlChannel:
    """The child's end. Receiving never blocks after `wait_start`; poll `fileno()` for reading.

    The descriptor is level-triggered, and `receive` takes everything there is, so one call a wake-up is enough.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # The socket stays blocking, for `send`; `receive` asks for what is there call by call. The limit is the
        # kernel's and not `settimeout`, with which Python would wait before each receive as well.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        self._buffer = bytearray()
        self._waiting: list[Message] = []
        self._ended = False

    @classmethod
    def from_environment(cls) -> "ControlChannel":
        """Take the channel that the supervisor left to this process; raises RuntimeError if there is none."""
        text = os.environ.pop(ENVIRONMENT_KEY, "")
        if not text.isdigit():
            raise RuntimeError("this process is started by `vmq-broker start`, not by hand")
        descriptor = int(text)
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._socket.fileno()

    def wait_start(self) -> Message:
        """Block until the first message is here and return it; raises EOFError when the supervisor is gone.

        What arrived behind it is given by the next `receive`, and must be asked for before polling.
        """
        while not self._waiting:
            self._take(self._socket.recv(RECEIVE_BYTES))
            if self._ended and not self._waiting:
                raise EOFError("the supervisor is gone")
        return self._waiting.pop(0)

    def receive(self) -> list[Message]:
        """Every whole message that is there, maybe none; raises EOFError when the supervisor is gone."""
        while not self._ended:
            try:
                self._take(self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
        if self._ended and not self._waiting:
            raise EOFError("the supervisor is gone")
        messages, self._waiting = self._waiting, []
        return messages

    def send(self, message: Message) -> None:
        """Send one message. A supervisor that is gone is no error here: `receive` says it, in one place."""
        try:
            self._socket.sendall(encode_line(message))
        except OSError:
            self._ended = True

    def close(self) -> None:
        """Close this end; the supervisor sees the end of the stream."""
        self._socket.close()

    def _take(self, data: bytes) -> None:
        if not data or len(self._buffer) + len(data) > LINE_BYTES_MAX:
            self._ended = True
            return
        self._buffer += data
        if b"\n" not in data:
            return
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        self._waiting.extend(decode_line(bytes(line)) for line in lines)
