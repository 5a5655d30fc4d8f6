"""Many paho-mqtt clients on one thread: connecting, subscribing, publishing at a pace, never waiting without a limit.

Owns the connections. Knows a scenario only as clients with callbacks; what messages mean is stamps.py's business.
One thread is right for Python: the clients would only take turns on more. Every wait has a deadline; a refusal or a
lost connection ends the run with a BenchError that names the client and the reason.
"""

import selectors
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bench.stamps import Arrivals, Stamp, Tally, read_stamp

KEEP_ALIVE_S = 60
MISC_INTERVAL_S = 1.0
POLL_S_MAX = 0.1
BURST_MAX = 10
"""Messages that one publisher may send before the others have their turn."""
SESSION_EXPIRY_S = 600
"""Of persistent MQTT 5 sessions: a run that is killed leaves them no longer than this."""
REFUSED_FROM = 0x80


class BenchError(Exception):
    """The run cannot go on: the text says which client, where, and why."""


@dataclass(frozen=True)
class Settings:
    """What all clients of a run share."""

    version: MQTTProtocolVersion
    clean: bool
    qos: int
    size: int
    window: int
    timeout_s: float

    @property
    def is_v5(self) -> bool:
        """Whether MQTT 5 is spoken."""
        return self.version == MQTTProtocolVersion.MQTTv5


class Peer:
    """One client. Its state is what the broker has said so far."""

    def __init__(self, client_id: str, host: str, port: int, settings: Settings) -> None:
        self.client_id = client_id
        self.address = f"{host}:{port}"
        self.settings = settings
        self.is_connected = False
        self.is_leaving = False
        self.window = settings.window
        self.began_ns = 0
        self.connected_ns = 0
        self.error = ""
        self.subscribed = 0
        self._host, self._port = host, port
        self.client = self._client(settings.clean)

    def open(self, clean: bool | None = None) -> None:
        """Connect by TCP and send CONNECT, `clean` whatever the settings say; raises BenchError."""
        properties = None
        if clean is not None:
            self.client = self._client(clean)
        if self.settings.is_v5 and not self.settings.clean:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
        self.client.connect_timeout = self.settings.timeout_s
        self.began_ns = time.monotonic_ns()
        self.is_connected = self.is_leaving = False
        # paho takes the wish for a clean session here in MQTT 5, and in the constructor before.
        start = self.settings.clean if self.settings.is_v5 else MQTT_CLEAN_START_FIRST_ONLY
        try:
            self.client.connect(self._host, self._port, KEEP_ALIVE_S, clean_start=start, properties=properties)
        except OSError as error:
            raise BenchError(f"{self.client_id} cannot connect to {self.address}: {error}") from None

    def subscribe(self, topic_filter: str) -> None:
        """Send SUBSCRIBE; `subscribed` counts the answers."""
        self._filter = topic_filter
        self.client.subscribe(topic_filter, self.settings.qos)

    def leave(self) -> None:
        """Send DISCONNECT, which ends a persistent session where the protocol can say so."""
        self.is_leaving = True
        properties = None
        if self.settings.is_v5 and not self.settings.clean:
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        self.client.disconnect(properties=properties)

    def on_message(self, message: MQTTMessage) -> None:
        """Take a message; only subscribers are sent any."""

    def on_acknowledged(self, packet_id: int) -> None:
        """Take an acknowledgement, or at QoS 0 the word that a message has been written."""

    def _client(self, clean: bool) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if self.settings.is_v5 else clean,
            protocol=self.settings.version,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(self.settings.window or 0)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_message = lambda _client, _data, message: self.on_message(message)
        return client

    def _connected(
        self, _client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self.error = f"{self.address} refused the connection of {self.client_id}: {reason}"
            return
        self.is_connected = True
        self.connected_ns = time.monotonic_ns()
        receive_maximum = getattr(properties, "ReceiveMaximum", None) if properties else None
        if receive_maximum is not None:
            # [MQTT-3.3.4-7], which paho leaves to its caller.
            self.window = min(self.window or receive_maximum, receive_maximum)

    def _subscribed(self, _client: Client, _data: Any, _id: int, reasons: list[ReasonCode], _properties: Any) -> None:
        granted = reasons[0]
        if granted.value >= REFUSED_FROM:
            self.error = f"{self.address} refused the subscription {self._filter!r} of {self.client_id}: {granted}"
        elif granted.value < self.settings.qos:
            self.error = f"{self.address} granted {self._filter!r} QoS {granted.value} instead of {self.settings.qos}"
        self.subscribed += 1

    def _published(self, _client: Client, _data: Any, packet_id: int, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self.error = f"{self.address} refused a message of {self.client_id}: {reason}"
        self.on_acknowledged(packet_id)

    def _disconnected(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        self.is_connected = False
        if not self.is_leaving and not self.error:
            self.error = f"{self.client_id} has lost its connection to {self.address}: {reason}"


class Subscriber(Peer):
    """A client that counts what arrives. `heard` is told the publisher of every message that is new."""

    def __init__(
        self,
        client_id: str,
        host: str,
        port: int,
        settings: Settings,
        arrivals: Arrivals,
        run: bytes | None,
        heard: Callable[[int], None],
    ) -> None:
        super().__init__(client_id, host, port, settings)
        self.arrivals = arrivals
        self._run = run
        self._heard = heard
        self._highest: dict[tuple[bytes, int], int] = {}

    def on_message(self, message: MQTTMessage) -> None:
        """Count a message of this run; `run` None takes those of every run."""
        stamp = read_stamp(bytes(message.payload))
        if stamp is None or (self._run is not None and stamp.run != self._run):
            return
        if self.arrivals.take(stamp, self._highest, time.monotonic_ns()):
            self._heard(stamp.publisher)


class Publisher(Peer):
    """A client that sends stamped messages: as its window allows, or when they are due.

    Invariants: unacknowledged messages never exceed the window at QoS > 0; without a pace, and with `receivers` of
    our own, messages that they have not all heard never exceed it either.
    """

    def __init__(
        self,
        client_id: str,
        host: str,
        port: int,
        settings: Settings,
        number: int,
        topic: str,
        run: bytes,
        tally: Tally,
    ) -> None:
        super().__init__(client_id, host, port, settings)
        self.number = number
        self.topic = topic
        self.sent = 0
        self.unacknowledged = 0
        self.receivers = 0
        self.deliveries = 0
        self._run = run
        self._tally = tally
        self._sent_ns: dict[int, int] = {}

    def may_send(self, is_paced: bool) -> bool:
        """Whether the window and the socket have room."""
        if self.client.want_write():
            return False
        if self.settings.qos and self.window and self.unacknowledged >= self.window:
            return False
        if is_paced or not self.receivers or not self.window:
            return True
        return self.sent * self.receivers - self.deliveries < self.window * self.receivers

    def send(self, stamp_ns: int) -> None:
        """Send the next message, stamped with a time."""
        payload = Stamp(self._run, self.number, self.sent, stamp_ns).payload(self.settings.size)
        self.sent += 1
        self._tally.published += 1
        if self.settings.qos:
            self.unacknowledged += 1
        info = self.client.publish(self.topic, payload, self.settings.qos)
        if self.settings.qos:
            self._sent_ns[info.mid] = stamp_ns

    def on_acknowledged(self, packet_id: int) -> None:
        """Count an acknowledgement; without subscribers of ours its delay is the latency."""
        if not self.settings.qos:
            return
        self.unacknowledged -= 1
        self._tally.acknowledged += 1
        sent_ns = self._sent_ns.pop(packet_id)
        if not self.receivers:
            self._tally.latencies_ns.append(time.monotonic_ns() - sent_ns)


class Pump:
    """Moves the bytes of all clients, on the caller's thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Peer, tuple[Any, int]] = {}
        self._misc_at = 0.0

    def add(self, peer: Peer) -> None:
        """Take over a client whose `open` has returned."""
        self.forget(peer)
        self._watch(peer)

    def forget(self, peer: Peer) -> None:
        """Leave a client alone."""
        watched = self._watched.pop(peer, None)
        if watched is not None:
            self._selector.unregister(watched[0])

    def turn(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for something to happen, and let the clients handle it; raises BenchError."""
        for key, events in self._selector.select(timeout_s):
            peer: Peer = key.data
            if events & selectors.EVENT_READ:
                peer.client.loop_read()
            if events & selectors.EVENT_WRITE:
                peer.client.loop_write()
            self.touched(peer)
        now = time.monotonic()
        if now >= self._misc_at:
            self._misc_at = now + MISC_INTERVAL_S
            for peer in list(self._watched):
                peer.client.loop_misc()
                self.touched(peer)

    def touched(self, peer: Peer) -> None:
        """A client has been used: look at what it waits for now; raises BenchError when it has failed."""
        if peer.error:
            raise BenchError(peer.error)
        self._watch(peer)

    def close(self) -> None:
        """Close every connection, without a word."""
        for peer in list(self._watched):
            self.forget(peer)
            connection = peer.client.socket()
            if connection is not None:
                connection.close()
        self._selector.close()

    def _watch(self, peer: Peer) -> None:
        connection = peer.client.socket()
        if connection is None:
            # paho has closed it, and so the kernel has taken it from the poller: this is for the selector's own table.
            self.forget(peer)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.client.want_write() else 0)
        watched = self._watched.get(peer)
        if watched is None:
            self._selector.register(connection, wanted, peer)
        elif watched[1] != wanted:
            self._selector.modify(connection, wanted, peer)
        self._watched[peer] = (connection, wanted)


def wait_for(pump: Pump, what: str, peers: Iterable[Peer], is_done: Callable[[Peer], bool], timeout_s: float) -> None:
    """Turn the pump until every peer is done; raises BenchError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    waiting = list(peers)
    while waiting := [peer for peer in waiting if not is_done(peer)]:
        if time.monotonic() > deadline:
            peer = waiting[0]
            raise BenchError(f"{peer.address} has not answered the {what} of {peer.client_id} within {timeout_s:g} s")
        pump.turn(POLL_S_MAX)
