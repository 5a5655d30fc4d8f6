"""A listener process: sockets, event loop and pipes around a ListenerCore, which decides everything.

It accepts MQTT connections on a SO_REUSEPORT socket of its own for each address, so that the kernel spreads
clients over the pool. What clients say becomes one frame to the owner per turn of the loop; what the owner says
becomes one write per connection and turn.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import secrets
import socket
import sys
import time
from typing import Any, cast

import setproctitle
import uvloop
import zmq

from broker.config import Config
from broker.config_values import expiration_s, host_port, protocol_versions
from broker.core.connection import CLOSED, Connection
from broker.core.connection_limits import ConnectionLimits
from broker.core.events import NEVER_EXPIRES_S
from broker.core.listener import TURN_BYTES, ListenerCore
from broker.logs import child_logging, level_number
from broker.mqtt.reasons import Reason
from broker.runtime.channel import ListenerChannel
from broker.runtime.control import ControlChannel
from broker.runtime.run_dir import RunDir

log = logging.getLogger(__name__)

CANNOT_START = 78
# Frames and packets are freed by their reference counts: collecting rarely keeps the collector out of their way.
GC_THRESHOLD = 100_000
_BACKLOG = 4096
_FRAMES_PER_TURN = 64
# A client that does not read may be owed this much in answers before it is not read either.
ANSWER_BYTES_MAX = 64 * 1024
_TICK_S = 1.0
# How long acknowledgements wait for company that nobody waits for.
_LAZY_FLUSH_S = 0.01
# A client gets this long to read the last words and to close its end, and may say so much meanwhile.
_CLOSE_TIMEOUT_S = 5.0
CLOSING_BYTES_MAX = 1024 * 1024
_STOP_TIMEOUT_S = 1.0


def connection_limits(config: Config) -> ConnectionLimits:
    """Return what the configuration says to connections."""
    mqtt = config.mqtt
    return ConnectionLimits(
        connect_timeout_s=mqtt.mqtt_connect_timeout / 1000,
        connect_bytes_max=mqtt.max_connect_size,
        packet_bytes_max=mqtt.max_message_size,
        client_id_bytes_max=mqtt.max_client_id_size,
        topic_levels_max=mqtt.topic_max_depth,
        topic_bytes_max=mqtt.max_topic_size,
        persistent_client_expiration_s=int(min(expiration_s(mqtt.persistent_client_expiration), NEVER_EXPIRES_S)),
        receive_max=mqtt.receive_max_broker,
        topic_alias_max_client=mqtt.topic_alias_max_client,
        topic_alias_max_broker=mqtt.topic_alias_max_broker,
        keep_alive_s_max=mqtt.max_keep_alive,
        messages_per_s_max=mqtt.max_message_rate,
        connects_per_s_max=mqtt.max_connection_rate,
        protocol_versions=protocol_versions(mqtt.allowed_protocol_versions),
        check_payload_format=mqtt.check_payload_format,
    )


class ClientProtocol(asyncio.BufferedProtocol):
    """One client's socket: it passes bytes on and does what its Connection wants done.

    Much is read at once, but of one client no more than a buffer in a turn of the loop: uvloop would read 32 of them,
    and the others would wait until all of that is worked off.
    """

    def __init__(self, process: "ListenerProcess", mountpoint: str) -> None:
        self._process = process
        self._mountpoint = mountpoint
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self._reading = True
        self._write_paused = False
        self._closing = False
        self._closing_bytes = 0
        self._close_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection."""
        # uvloop's transports are transports in everything but their class.
        self.transport = transport = cast(asyncio.Transport, transport)
        # Above this a client counts as not reading: the owner then keeps its messages where they can be bounded and
        # dropped.
        transport.set_write_buffer_limits(high=self._process.config.mqtt.max_output_buffer)
        self.connection = self._process.core.open(time.monotonic(), self._mountpoint)
        self._process.protocols[self.connection.number] = self
        self.sync_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what the client sent: one buffer serves all, as it is emptied at once."""
        return self._process.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what the client sent."""
        connection, process = self.connection, self._process
        assert connection is not None
        process.core.counters.bytes_received += nbytes
        if self._closing:
            self._ignore(nbytes)
            return
        process.core.receive_data(connection, bytes(process.buffer[:nbytes]), time.monotonic())
        if process.core.is_full():
            process.flush()
        if connection.waits_for_turn:
            self.sync_reading()
        process.schedule_turn()

    def _ignore(self, nbytes: int) -> None:
        self._closing_bytes += nbytes
        if self._closing_bytes > CLOSING_BYTES_MAX:
            assert self.transport is not None
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client doesn't read: tell the owner."""
        assert self.connection is not None
        self._write_paused = True
        self.connection.answer_bytes = 0
        self._tell_owner(paused=True)

    def resume_writing(self) -> None:
        """The client reads again: tell the owner."""
        self._write_paused = False
        self._tell_owner(paused=False)
        self.sync_reading()

    def _tell_owner(self, paused: bool) -> None:
        assert self.connection is not None
        batch = self._process.core.batch
        if paused:
            self._process.core.counters.client_write_paused += 1
            batch.paused(self.connection.number)
        else:
            batch.resumed(self.connection.number)
        self._process.schedule_turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        assert self.connection is not None
        if exc is not None:
            self._process.core.counters.socket_error += 1
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._process.core.lost(self.connection)
        self._process.protocols.pop(self.connection.number, None)
        self._process.schedule_turn()

    def write_output(self) -> None:
        """Write what the Connection left, and close the socket if it is closed."""
        connection, transport = self.connection, self.transport
        assert connection is not None and transport is not None
        output = connection.output
        if output:
            connection.output = []
            data = output[0] if len(output) == 1 else b"".join(output)
            self._process.core.counters.bytes_sent += len(data)
            transport.write(data)
        if connection.state == CLOSED and not self._closing and not transport.is_closing():
            # A socket that is closed with something in it unread resets the connection, and the client might never
            # read what it was told last: it is for the client to close first (RFC 1122, 4.2.2.13).
            self._closing = True
            transport.write_eof()
            self._close_timer = self._process.loop.call_later(_CLOSE_TIMEOUT_S, transport.abort)
        self.sync_reading()

    def sync_reading(self) -> None:
        """Read the socket exactly while the Connection wants it, the owner has credit for it and answers are read.

        Deliveries to a client that does not read end when the owner hears of it; only what it asks itself goes on, and
        would fill the memory. Its keep-alive runs on meanwhile: a client that reads nothing is not alive.
        """
        connection, transport = self.connection, self.transport
        assert connection is not None and transport is not None
        choked = self._write_paused and connection.answer_bytes > ANSWER_BYTES_MAX
        wanted = connection.want_read and not connection.waits_for_turn and not self._process.blocked and not choked
        wanted = wanted or self._closing
        if wanted == self._reading or transport.is_closing():
            return
        self._reading = wanted
        if choked and not wanted:
            self._process.core.counters.client_read_paused += 1
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()


class ListenerProcess:
    """The process: its loop, its sockets, and the core they serve."""

    def __init__(self, start: dict[str, Any], control: ControlChannel, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.config = Config.from_dict(start["config"])
        self._control = control
        self._run_dir = RunDir(self.config.node.data_dir)
        index = int(start["index"])
        self.core = ListenerCore(
            index, int(start["generation"]), connection_limits(self.config), lambda: "zvmq-" + secrets.token_hex(12)
        )
        self.core.owner_ready(int(start["owner_generation"]))
        self._channel = ListenerChannel(context, self._run_dir, index)
        self.protocols: dict[int, ClientProtocol] = {}
        self.buffer = memoryview(bytearray(TURN_BYTES))
        self.blocked = False
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(crash)
        self._closed = False
        self._turn_scheduled = False
        self._turn_is_timed = False
        self._flush_scheduled = False
        self._spoke = False
        self._stopping = asyncio.Event()
        # Whether clients may connect, and the sockets on which they do.
        self._accepts = bool(start.get("accept", True))
        self._accepts_changed = asyncio.Event()
        self._servers: list[asyncio.Server] = []

    async def run(self) -> None:
        """Serve until told to stop."""
        await self._open_or_close()
        doorkeeper = self.loop.create_task(self._keep_the_door())
        self.loop.add_reader(self._channel.fileno(), self._turn)
        self.loop.add_reader(self._control.fileno(), self._control_readable)
        self._control.send({"type": "ready"})
        self._control_readable()
        ticker = self.loop.create_task(self._tick_forever())
        await self._stopping.wait()
        ticker.cancel()
        doorkeeper.cancel()
        self._accepts = False
        await self._open_or_close()
        await self._close_clients()
        # A turn that is scheduled comes too late: there is nobody left to serve.
        self.loop.remove_reader(self._channel.fileno())
        self._closed = True
        self._channel.close()

    async def _open_or_close(self) -> None:
        """Have sockets that listen exactly while clients may connect; those that have connected stay."""
        if not self._accepts:
            for server in self._servers:
                server.close()
            self._servers = []
        elif not self._servers:
            self._servers = [
                # [MQTT-4.2.0-1] [MQTT311-7.1.1-1]
                await self.loop.create_server(
                    functools.partial(ClientProtocol, self, listener.mountpoint),
                    sock=listening_socket(listener.address),
                )
                for listener in self.config.listeners
                if listener.type == "mqtt"
            ]

    async def _keep_the_door(self) -> None:
        while True:
            await self._accepts_changed.wait()
            self._accepts_changed.clear()
            try:
                await self._open_or_close()
            except OSError as error:
                # Another program has the address meanwhile. The supervisor starts this process again until it is free.
                log.error("%s", error.strerror or error)
                os._exit(1)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self.core.tick(time.monotonic())
            self._turn()
            for notice in self.core.take_notices():
                log.warning("%s", notice)
            if self.core.owner_generation and not self._spoke:
                # The owner takes a listener that says nothing at all for one that hangs.
                self._channel.send(self.core.take_frame())
            self._spoke = False

    async def _close_clients(self) -> None:
        self.core.close_all(Reason.SERVER_SHUTTING_DOWN)
        self._turn()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self.protocols and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self.flush()

    def _control_readable(self) -> None:
        try:
            messages = self._control.receive()
        except EOFError:
            # Nobody would restart us, and nobody would tell the owner when we end.
            self._stopping.set()
            self.loop.remove_reader(self._control.fileno())
            return
        for message in messages:
            kind = message["type"]
            if kind == "owner-gone":
                self.core.owner_gone()
                self._turn()
            elif kind == "owner-ready":
                self.core.owner_ready(int(message["generation"]))
                self._turn()
            elif kind == "accept":
                self._accepts = bool(message["on"])
                self._accepts_changed.set()
            elif kind == "stop":
                self._stopping.set()
            elif kind == "log-level":
                logging.getLogger().setLevel(level_number(message["level"]))

    def schedule_turn(self) -> None:
        """Have `_turn` run once, after everything else that is ready now."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Give turns, tell the owner, hear the owner, write to clients."""
        if self._closed:
            return
        self._turn_scheduled = False
        core, protocols = self.core, self.protocols
        for connection in core.take_turns(time.monotonic()):
            protocol = protocols.get(connection.number)
            if protocol is not None:
                protocol.sync_reading()
        self.flush()
        # The descriptor is edge-triggered and a send may have taken the edge, so look every time.
        for _ in range(_FRAMES_PER_TURN):
            frame = self._channel.receive()
            if frame is None:
                break
            core.receive_frame(frame)
        else:
            self.schedule_turn()
        for connection in core.take_dirty():
            protocol = protocols.get(connection.number)
            if protocol is not None:
                protocol.write_output()
        self.flush()
        if core.is_blocked() != self.blocked:
            self.blocked = not self.blocked
            if self.blocked:
                core.counters.listener_read_paused += 1
            for protocol in protocols.values():
                protocol.sync_reading()
        if core.wants_turn():
            wait_s = core.turn_wait_s(time.monotonic())
            if not wait_s:
                self.schedule_turn()
            elif not self._turn_is_timed:
                self._turn_is_timed = True
                self.loop.call_later(wait_s, self._timed_turn)

    def _timed_turn(self) -> None:
        self._turn_is_timed = False
        self._turn()

    def flush(self) -> None:
        """Send the owner what there is to say."""
        core = self.core
        if not core.owner_generation:
            return
        if core.wants_flush():
            self._channel.send(core.take_frame())
            self._spoke = True
        elif core.wants_lazy_flush() and not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_later(_LAZY_FLUSH_S, self._flush_lazily)

    def _flush_lazily(self) -> None:
        self._flush_scheduled = False
        core = self.core
        if not self._closed and core.owner_generation and core.wants_lazy_flush():
            self._channel.send(core.take_frame())
            self._spoke = True


def crash(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process on a fault of ours: the supervisor restarts it, and no connection is left half-served."""
    error = context.get("exception")
    log.error("%s", context["message"], exc_info=error)
    if error is not None and not isinstance(error, OSError):
        os._exit(1)


def listening_socket(address: str) -> socket.socket:
    """Return a socket that listens on `host:port` beside those of the other listener processes."""
    host, port = host_port(address)
    family, kind, protocol, _name, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listening.bind(target)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


async def _serve(start: dict[str, Any], control: ControlChannel) -> None:
    with zmq.Context() as context:
        await ListenerProcess(start, control, context).run()


def main() -> None:
    """Run a listener process; the supervisor starts it."""
    control = ControlChannel.from_environment()
    start = control.wait_start()
    config = Config.from_dict(start["config"])
    child_logging(config.log.level, "listener")
    setproctitle.setproctitle(f"zvmq {config.node.name} listener {start['index']}")
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            uvloop.run(_serve(start, control))
        except (OSError, zmq.ZMQError) as error:
            control.send({"type": "failed", "error": error.strerror or str(error), "exit": 1})
            sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()
