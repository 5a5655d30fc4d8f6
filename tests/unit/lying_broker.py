"""A broker on a thread that loses, repeats or swaps messages as told, to see whether load generators notice.

It speaks just enough MQTT 3.1.1 for them: CONNECT, SUBSCRIBE, PUBLISH and what acknowledges it. A filter has one
subscriber, and a topic goes to the first filter that matches: by name, or by `+` in the place of its last level.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable

POLL_S = 0.02

Deliver = Callable[[list[bytes]], list[bytes]]
"""Takes the PUBLISH packets that have come for a subscriber so far; returns those to send now and empties the list."""


def honest(waiting: list[bytes]) -> list[bytes]:
    sent, waiting[:] = list(waiting), []
    return sent


def lose_the_third(waiting: list[bytes]) -> list[bytes]:
    return _once_there_are_three(waiting, (0, 1))


def repeat_the_third(waiting: list[bytes]) -> list[bytes]:
    return _once_there_are_three(waiting, (0, 1, 2, 2))


def swap_two(waiting: list[bytes]) -> list[bytes]:
    return _once_there_are_three(waiting, (0, 2, 1))


def _once_there_are_three(waiting: list[bytes], chosen: tuple[int, ...]) -> list[bytes]:
    if len(waiting) < 3:
        return []
    sent, waiting[:] = [waiting[index] for index in chosen], []
    return sent


class LyingBroker:
    """Serves 127.0.0.1:`port` from `__enter__` to `__exit__`. `connack` and `suback` are the codes it answers with."""

    def __init__(
        self, deliver: Deliver = honest, connack: int = 0, suback: int | None = None, mute: bool = False
    ) -> None:
        self._deliver = deliver
        self._connack = connack
        self._suback = suback
        self._mute = mute
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._inputs: dict[socket.socket, bytes] = {}
        self._subscribers: dict[bytes, socket.socket] = {}
        self._waiting: dict[bytes, list[bytes]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "LyingBroker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for connection in (self._server, *self._inputs):
            connection.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(POLL_S):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is self._server:
                    client = connection.accept()[0]
                    self._inputs[client] = b""
                    self._selector.register(client, selectors.EVENT_READ)
                    continue
                data = b""
                with contextlib.suppress(OSError):
                    data = connection.recv(65536)
                if not data:
                    self._selector.unregister(connection)
                self._take(connection, data)

    def _take(self, connection: socket.socket, data: bytes) -> None:
        rest = self._inputs[connection] + data
        # Every packet here is shorter than 128 bytes, so its length is one byte.
        while len(rest) >= 2 and len(rest) >= 2 + rest[1]:
            packet, rest = rest[: 2 + rest[1]], rest[2 + rest[1] :]
            with contextlib.suppress(OSError):
                self._answer(connection, packet)
        self._inputs[connection] = rest

    def _answer(self, connection: socket.socket, packet: bytes) -> None:
        if self._mute:
            return
        kind, qos = packet[0] >> 4, packet[0] >> 1 & 3
        if kind == 1:
            connection.sendall(bytes([0x20, 2, 0, self._connack]))
        elif kind == 8:
            length = int.from_bytes(packet[4:6], "big")
            self._subscribers[packet[6 : 6 + length]] = connection
            granted = packet[-1] if self._suback is None else self._suback
            connection.sendall(bytes([0x90, 3, packet[2], packet[3], granted]))
        elif kind == 3:
            length = int.from_bytes(packet[2:4], "big")
            topic = packet[4 : 4 + length]
            if qos:
                connection.sendall(bytes([0x40 if qos == 1 else 0x50, 2]) + packet[4 + length : 6 + length])
            waiting = self._waiting.setdefault(topic, [])
            waiting.append(packet)
            subscriber = self._subscriber_of(topic)
            if subscriber:
                subscriber.sendall(b"".join(self._deliver(waiting)))
        elif kind in (5, 6):
            # PUBREC of a subscriber: PUBREL; PUBREL of a publisher: PUBCOMP.
            connection.sendall(bytes([0x62 if kind == 5 else 0x70, 2]) + packet[2:4])

    def _subscriber_of(self, topic: bytes) -> socket.socket | None:
        for wanted, subscriber in self._subscribers.items():
            name = wanted.removeprefix(b"$share/g/")
            if name == topic or (name.endswith(b"/+") and name[:-1] == topic[: topic.rindex(b"/") + 1]):
                return subscriber
        return None
