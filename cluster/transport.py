"""The transport: the mesh's sockets. It carries out commands and says what happened; it decides nothing.

Owns one ROUTER that all others connect to, for each member two DEALERs (control and bulk), one DEALER for a join, the
ZAP handler and the monitors. It knows keys and node names, and never looks into a frame.

How it works
------------
- Keys (see `keys`): the ROUTER is the CURVE server, and has the pair of one cookie only, the first. A DEALER uses the
  pair of this node, or of JOIN, towards the peer's name; when a handshake fails it tries that of the next cookie. ZAP
  answers in the same loop and thread: an admitted key, of whichever cookie, is named by its node (every frame then
  carries it as User-Id), any other key gets 400. It is bound before the ROUTER, and ZAP_ENFORCE_DOMAIN refuses
  everybody if it is gone: without a handler a CURVE server admits anybody.
- A connection's identity is the ROUTER's own routing id, never one that the peer chose.
- libzmq gives up for good on a connection that was refused with 400, and reconnects after every other failure. The
  mesh hears `PeerRefused` and decides when to connect anew.
- The bulk DEALER is made anew with every control connection, so that nothing of an older one is left in it.
- A large message must pass through a slow network, and counts as no sign of life before it is whole. So ZeroMQ's own
  heartbeats guard the control connections alone; what is dead of the others TCP finds out, or the link does.
- An I/O thread stands still while it looks up a host name, and answers nothing meanwhile. So the connections to one
  member don't share a thread with those to the next, nor with what members connect to.
- Nothing blocks. What a full socket doesn't take is counted and lost; heartbeats and links repair it.

Create it in the process that uses it, never before a fork: ZeroMQ's threads don't follow.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from cluster.commands import (
    Admit,
    CloseJoin,
    ConnectPeer,
    DisconnectPeer,
    FrameReceived,
    JoinFailed,
    MeshCommand,
    MeshInput,
    OpenJoin,
    PeerConnected,
    PeerDisconnected,
    PeerRefused,
    Reply,
    Revoke,
    SendBulk,
    SendControl,
    SendJoin,
)
from cluster.frames import ANY_FRAME_BYTES_MAX
from cluster.join_watch import HANDSHAKE_FAILURES_MAX, JoinWatch, Seen
from cluster.keys import JOIN, SERVER, Keys, derive, towards

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
ZAP_DOMAIN: Final = b"zvmq"

HANDSHAKE_TIMEOUT_MS: Final = 2000
CONNECT_TIMEOUT_MS: Final = 2000
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 1000
# What may still leave when the node stops: the last acknowledgements.
LINGER_MS: Final = 200

# What was sent and is not acknowledged by the other machine for so long ends a connection.
TCP_SILENCE_MS: Final = 15_000
TCP_IDLE_S: Final = 15
TCP_PROBE_S: Final = 5

# One thread for the ROUTER, the others for the DEALERs to members in turn.
IO_THREADS: Final = 4

# Connections begin and end rarely: under load it is enough to look so often.
WATCH_S: Final = 0.01

# The links and the mesh bound what is under way; these are the backstop. A pipe holds frames, not bytes.
CONTROL_FRAMES_MAX: Final = 20_000
BULK_FRAMES_MAX: Final = 4_096

# What a monitor says, in words; of everything else it is silent.
_SEEN: Final[dict[int, Seen]] = {
    zmq.EVENT_CONNECT_DELAYED: Seen.CONNECTING,
    zmq.EVENT_CONNECTED: Seen.CONNECTED,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Seen.HANDSHAKE_DONE,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Seen.HANDSHAKE_FAILED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Seen.HANDSHAKE_FAILED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Seen.KEY_REFUSED,
    zmq.EVENT_DISCONNECTED: Seen.DISCONNECTED,
    zmq.EVENT_CONNECT_RETRIED: Seen.RETRIED,
}

Socket = zmq.Socket[bytes]


class BindError(Exception):
    """The cluster's port can't be bound; the text names the address."""


def cluster_keys(cookie: str) -> Keys:
    """Compute the keys of a cookie; the first time for a cookie takes half a second."""
    return derive(cookie, zmq.curve_public)


class _Outgoing:
    """A DEALER and its monitor."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.monitor: Socket = socket.get_monitor_socket(sum(_SEEN))

    def seen(self) -> list[Seen]:
        """Return what the monitor has to say."""
        found: list[Seen] = []
        while True:
            try:
                parts = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            found.append(_SEEN[int(parse_monitor_message(parts)["event"])])

    def close(self, linger_ms: int = 0) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)


class _Peer:
    """The connections to one member; both are None after a refusal."""

    def __init__(self, address: str, thread: int) -> None:
        self.address = address
        self.thread = thread
        # Which cookie it is tried with, and how many handshakes failed since the last that did not.
        self.cookie = 0
        self.failures = 0
        # A handshake is under way.
        self.shaking = False
        self.control: _Outgoing | None = None
        self.bulk: _Outgoing | None = None
        self.connected = False

    def close(self, linger_ms: int = 0) -> None:
        for outgoing in (self.control, self.bulk):
            if outgoing is not None:
                outgoing.close(linger_ms)
        self.control = self.bulk = None
        self.connected = False


class _Join:
    """The connection of an attempt to join."""

    def __init__(self, command: OpenJoin, thread: int, outgoing: _Outgoing, cookies: int) -> None:
        self.command = command
        self.thread = thread
        self.outgoing = outgoing
        # One more try for every other cookie.
        self.watch = JoinWatch(CONNECT_TIMEOUT_MS / 1000, time.monotonic(), HANDSHAKE_FAILURES_MAX + cookies - 1)


class MeshTransport:
    """The sockets of one node's mesh."""

    def __init__(
        self,
        keys: Keys,
        name: str,
        listen: tuple[str, int],
        failure_timeout_s: float,
        other_keys: Sequence[Keys] = (),
    ) -> None:
        """Bind the cluster's port; raise BindError with the address if that fails.

        `keys` are those that are served; who has one of `other_keys` is admitted and found, too.
        """
        self.name = name
        # Counts up whenever `sockets` changed.
        self.changes = 0
        self.counters: dict[str, int] = {
            "mesh_send_blocked": 0,
            "mesh_reply_lost": 0,
            "mesh_keys_refused": 0,
            "mesh_frames_malformed": 0,
        }
        # The first are served.
        self._keys = [keys, *other_keys]
        self._heartbeat_ms = max(50, int(failure_timeout_s * 1000) // 5)
        self._admitted: dict[bytes, bytes] = {}
        self._peers: dict[str, _Peer] = {}
        self._join: _Join | None = None
        self._inputs: list[MeshInput] = []
        self._watched_at = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            ConnectPeer: self._connect_peer,
            DisconnectPeer: self._disconnect_peer,
            SendControl: self._send_control,
            SendBulk: self._send_bulk,
            Reply: self._reply,
            Admit: self._admit,
            Revoke: self._revoke,
            OpenJoin: self._open_join,
            SendJoin: self._send_join,
            CloseJoin: self._close_join,
        }
        for keys in self._keys:
            self._admitted[z85.decode(keys.public(JOIN))] = JOIN.encode()
        self._admit(Admit(JOIN))
        # A context of its own: ZAP is one a context, and this one is the mesh's alone.
        self._context: zmq.Context[Socket] = zmq.Context(IO_THREADS)
        self._zap: Socket = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(ZAP_ENDPOINT)
        self._router = self._make_router(listen)

    def sockets(self) -> list[Socket]:
        """Return every socket that is to be polled for reading."""
        found = [self._router, self._zap]
        for outgoing in self._outgoing():
            found.append(outgoing.monitor)
            found.append(outgoing.socket)
        return found

    def has_inputs(self) -> bool:
        """Say whether `receive` has something that no socket shows: a command that failed at once."""
        return bool(self._inputs)

    def receive(self, limit: int) -> list[MeshInput]:
        """Return what happened since, at most about `limit` frames. Call it when any of `sockets` is readable."""
        frames = self._receive_frames(limit)
        now = time.monotonic()
        if not frames or now - self._watched_at >= WATCH_S:
            self._watched_at = now
            self._answer_zap()
            for node, peer in list(self._peers.items()):
                self._watch_peer(node, peer)
            self._watch_join()
        if not self._inputs:
            return frames
        inputs = self._inputs
        self._inputs = []
        inputs.extend(frames)
        return inputs

    def execute(self, commands: list[MeshCommand]) -> None:
        """Carry out commands in order."""
        for command in commands:
            self._handlers[type(command)](command)

    def close(self) -> None:
        """Close everything; returns within LINGER_MS."""
        for peer in self._peers.values():
            peer.close(LINGER_MS)
        self._peers.clear()
        self._close_join(CloseJoin())
        self._router.close(linger=LINGER_MS)
        self._zap.close(linger=0)
        self._context.term()

    def _make_router(self, listen: tuple[str, int]) -> Socket:
        host, port = listen
        endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        router: Socket = self._context.socket(zmq.ROUTER)
        public, secret = self._keys[0].pair(SERVER)
        router.curve_server = True
        router.curve_publickey = public
        router.curve_secretkey = secret
        router.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        # A frame for a connection that is gone must not vanish without a word.
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 0)
        router.setsockopt(zmq.IPV6, 1 if ":" in host else 0)
        router.setsockopt(zmq.AFFINITY, 1)
        self._set_common(router, CONTROL_FRAMES_MAX)
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            router.close(linger=0)
            self._zap.close(linger=0)
            self._context.term()
            raise BindError(f"can't listen for the cluster on {host}:{port}: {error.strerror}") from None
        return router

    def _make_dealer(
        self, name: str, node: str, address: str, thread: int, cookie: int = 0, bulk: bool = False
    ) -> _Outgoing:
        """Connect to `node` as `name`; raise ZMQError for an address that can't be one."""
        dealer: Socket = self._context.socket(zmq.DEALER)
        keys = self._keys[cookie]
        public, secret = keys.pair(towards(name, node))
        dealer.curve_publickey = public
        dealer.curve_secretkey = secret
        dealer.curve_serverkey = keys.public(SERVER)
        dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        dealer.setsockopt(zmq.IPV6, 1 if address.startswith("[") else 0)
        dealer.setsockopt(zmq.AFFINITY, 1 << thread)
        if bulk:
            # What is sent before its handshake is done waits in it.
            self._set_common(dealer, BULK_FRAMES_MAX)
        else:
            dealer.setsockopt(zmq.IMMEDIATE, 1)
            self._set_common(dealer, CONTROL_FRAMES_MAX)
            dealer.setsockopt(zmq.HEARTBEAT_IVL, self._heartbeat_ms)
            dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2 * self._heartbeat_ms)
            dealer.setsockopt(zmq.HEARTBEAT_TTL, 5 * self._heartbeat_ms)
        outgoing = _Outgoing(dealer)
        self.changes += 1
        try:
            dealer.connect(f"tcp://{address}")
        except zmq.ZMQError:
            outgoing.close()
            raise
        return outgoing

    def _thread(self) -> int:
        """Choose an I/O thread, never the ROUTER's, for the connections to one more node."""
        used = [peer.thread for peer in self._peers.values()]
        return min(range(1, IO_THREADS), key=used.count)

    def _set_common(self, socket: Socket, frames_max: int) -> None:
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, ANY_FRAME_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, frames_max)
        socket.setsockopt(zmq.RCVHWM, frames_max)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, TCP_IDLE_S)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, TCP_PROBE_S)
        socket.setsockopt(zmq.TCP_MAXRT, TCP_SILENCE_MS)

    def _receive_frames(self, limit: int) -> list[MeshInput]:
        """Return what others sent on the connections that they opened."""
        inputs: list[MeshInput] = []
        router = self._router
        for _ in range(limit):
            try:
                # The envelope is the ROUTER's routing id; only the frame behind it carries the User-Id.
                connection = router.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            parts = [router.recv(zmq.NOBLOCK, copy=False)]
            while parts[-1].more:
                parts.append(router.recv(zmq.NOBLOCK, copy=False))
            if len(parts) != 1:
                self._count("mesh_frames_malformed")
                continue
            user = parts[0].get("User-Id")
            assert isinstance(user, str) and user, "ZAP admitted a connection without a name"
            inputs.append(FrameReceived(user, connection, parts[0].bytes))
        return inputs

    def _answer_zap(self) -> None:
        while True:
            try:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # RFC 27: version, request id, domain, address, identity, mechanism, credentials.
            user = None
            if len(request) == 7 and request[2] == ZAP_DOMAIN and request[5] == b"CURVE":
                user = self._admitted.get(request[6])
            version, number = (request[0], request[1]) if len(request) > 1 else (b"1.0", b"")
            if user is None:
                self._count("mesh_keys_refused")
                reply = [version, number, b"400", b"unknown key", b"", b""]
            else:
                reply = [version, number, b"200", b"OK", user, b""]
            self._zap.send_multipart(reply, zmq.NOBLOCK)

    def _watch_peer(self, node: str, peer: _Peer) -> None:
        if peer.bulk is not None and Seen.KEY_REFUSED in peer.bulk.seen():
            self._refused(node, peer)
            return
        if peer.control is None:
            return
        for seen in peer.control.seen():
            if seen is Seen.CONNECTED:
                peer.shaking = True
            elif seen is Seen.HANDSHAKE_DONE:
                if peer.bulk is not None:
                    peer.bulk.close()
                peer.connected = True
                peer.shaking = False
                peer.failures = 0
                peer.bulk = self._make_dealer(self.name, node, peer.address, peer.thread, peer.cookie, bulk=True)
                self._inputs.append(PeerConnected(node))
            elif seen is Seen.DISCONNECTED and peer.connected:
                peer.connected = False
                if peer.bulk is not None:
                    peer.bulk.close()
                    peer.bulk = None
                    self.changes += 1
                self._inputs.append(PeerDisconnected(node))
            elif seen is Seen.KEY_REFUSED:
                self._refused(node, peer)
                return
            elif seen in (Seen.HANDSHAKE_FAILED, Seen.DISCONNECTED) and self._try_next_cookie(node, peer):
                return
        self._drain(node, peer.control)

    def _try_next_cookie(self, node: str, peer: _Peer) -> bool:
        """After a handshake that failed: connect anew with another cookie, if there is one and it is its turn."""
        if not peer.shaking:
            # Both are seen of one handshake.
            return False
        peer.shaking = False
        peer.failures += 1
        if peer.failures % len(self._keys) == 0:
            # All had their turn, and this one has another when libzmq reconnects: that is what paces it.
            return False
        peer.cookie = (peer.cookie + 1) % len(self._keys)
        peer.close()
        peer.control = self._make_dealer(self.name, node, peer.address, peer.thread, peer.cookie)
        return True

    def _refused(self, node: str, peer: _Peer) -> None:
        peer.close()
        self.changes += 1
        self._inputs.append(PeerRefused(node))

    def _drain(self, node: str, outgoing: _Outgoing) -> None:
        """Read what the other side answered on a connection that this node opened."""
        while True:
            try:
                parts = outgoing.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 1:
                self._inputs.append(FrameReceived(node, b"", parts[0]))
            else:
                self._count("mesh_frames_malformed")

    def _watch_join(self) -> None:
        join = self._join
        if join is None:
            return
        for seen in join.outgoing.seen():
            if seen is Seen.HANDSHAKE_DONE:
                self._inputs.append(PeerConnected(JOIN))
            failures = join.watch.failures
            failure = join.watch.see(seen, time.monotonic())
            if failure is not None:
                self._close_join(CloseJoin())
                self._inputs.append(failure)
                return
            if join.watch.failures > failures and len(self._keys) > 1:
                node, address = join.command.node, join.command.address
                join.outgoing.close()
                cookie = join.watch.failures % len(self._keys)
                join.outgoing = self._make_dealer(JOIN, node, address, join.thread, cookie)
                return
        self._drain(JOIN, join.outgoing)

    def _connect_peer(self, command: ConnectPeer) -> None:
        peer = self._peers.get(command.node)
        if peer is None:
            peer = _Peer(command.address, self._thread())
            self._peers[command.node] = peer
        peer.close()
        peer.address = command.address
        try:
            peer.control = self._make_dealer(self.name, command.node, command.address, peer.thread, peer.cookie)
        except zmq.ZMQError:
            # An address that can't be one now may be put right by the member's next Hello.
            self._inputs.append(PeerRefused(command.node))

    def _disconnect_peer(self, command: DisconnectPeer) -> None:
        peer = self._peers.pop(command.node, None)
        if peer is not None:
            peer.close(LINGER_MS)
            self.changes += 1

    def _send_control(self, command: SendControl) -> None:
        peer = self._peers.get(command.node)
        self._send(None if peer is None else peer.control, command.frame)

    def _send_bulk(self, command: SendBulk) -> None:
        peer = self._peers.get(command.node)
        self._send(None if peer is None else peer.bulk, command.frame)

    def _send(self, outgoing: _Outgoing | None, frame: bytes) -> None:
        if outgoing is None:
            self._count("mesh_send_blocked")
            return
        try:
            outgoing.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._count("mesh_send_blocked")

    def _reply(self, command: Reply) -> None:
        try:
            self._router.send_multipart([command.connection, command.frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._count("mesh_reply_lost")

    def _admit(self, command: Admit) -> None:
        for keys in self._keys:
            self._admitted[z85.decode(keys.public(towards(command.node, self.name)))] = command.node.encode()

    def _revoke(self, command: Revoke) -> None:
        for keys in self._keys:
            self._admitted.pop(z85.decode(keys.public(towards(command.node, self.name))), None)

    def _open_join(self, command: OpenJoin) -> None:
        self._close_join(CloseJoin())
        thread = self._thread()
        try:
            dealer = self._make_dealer(JOIN, command.node, command.address, thread)
        except zmq.ZMQError as error:
            self._inputs.append(JoinFailed("invalid", f"not an address: {error.strerror}"))
            return
        self._join = _Join(command, thread, dealer, len(self._keys))

    def _send_join(self, command: SendJoin) -> None:
        if self._join is not None:
            self._send(self._join.outgoing, command.frame)

    def _close_join(self, command: CloseJoin) -> None:
        if self._join is not None:
            self._join.outgoing.close()
            self._join = None
            self.changes += 1

    def _outgoing(self) -> list[_Outgoing]:
        found = [] if self._join is None else [self._join.outgoing]
        for peer in self._peers.values():
            found.extend(outgoing for outgoing in (peer.control, peer.bulk) if outgoing is not None)
        return found

    def _count(self, name: str) -> None:
        self.counters[name] += 1
