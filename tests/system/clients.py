"""MQTT clients for the system tests: paho-mqtt with deadlines, so that a test reads as what happens in order."""

import itertools
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final

from nodes import LIMIT_S, Node, wait_until
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

V4: Final = mqtt.MQTTv311
V5: Final = mqtt.MQTTv5

_WEEK_S: Final = 604_800
_numbers = itertools.count(1)


class Client:
    """One client of one node. Use it in a `with`: leaving disconnects."""

    def __init__(
        self, node: Node, client_id: str = "", version: int = V5, persistent: bool = False, user: str = ""
    ) -> None:
        self.version = version
        self.present: bool | None = None
        """Whether the broker had the session, from the last CONNACK."""
        self._persistent = persistent
        self._node = node
        self._messages: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        self._connected = threading.Event()
        self._closed = threading.Event()
        # The reason of the last end of a connection, and the server that the broker referred to.
        self._ended: tuple[int, str] = (0, "")
        self._acknowledged: set[int] = set()
        self._changed = threading.Condition()
        self._subscribed: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        clean = {} if version == V5 else {"clean_session": not persistent}
        self.paho = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"client-{next(_numbers)}",
            protocol=mqtt.MQTTProtocolVersion(version),
            **clean,
        )
        if user:
            self.paho.username_pw_set(user)
        self.paho.reconnect_delay_set(1, 1)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_subscribe = lambda client, userdata, mid, codes, properties: self._subscribed.put(codes)
        self.paho.on_publish = self._on_publish
        self.paho.on_message = lambda client, userdata, message: self._messages.put(message)

    def __enter__(self) -> "Client":
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def connect(self) -> "Client":
        """Connect and wait for CONNACK."""
        options: dict[str, Any] = {}
        if self.version == V5:
            options["clean_start"] = not self._persistent
            if self._persistent:
                options["properties"] = Properties(PacketTypes.CONNECT)
                options["properties"].SessionExpiryInterval = _WEEK_S
        self.paho.connect(self._node.host, self._node.mqtt_port, keepalive=60, **options)
        self.paho.loop_start()
        assert self._connected.wait(LIMIT_S), f"{self._node.name} did not answer CONNECT"
        return self

    def disconnect(self) -> None:
        """Disconnect and stop the client's thread."""
        self.paho.disconnect()
        self.paho.loop_stop()

    def wait_closed(self) -> None:
        """Wait for the broker to close the connection. The client then connects anew by itself."""
        assert self._closed.wait(LIMIT_S), f"{self._node.name} did not close the connection"

    def farewell(self) -> tuple[int, str]:
        """Wait for the broker to close the connection; return its reason and the server that it refers to."""
        self.wait_closed()
        return self._ended

    def wait_connected_again(self) -> None:
        """Wait for CONNACK of a connection after `wait_closed`."""
        assert self._connected.wait(LIMIT_S), f"the client could not connect to {self._node.name} again"

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Subscribe and wait for SUBACK, which must grant the QoS."""
        self.paho.subscribe(topic_filter, qos)
        (granted,) = self.take_suback()
        assert granted.value == qos

    def take_suback(self) -> list[Any]:
        """Wait for the next SUBACK and return its reason codes."""
        return self._subscribed.get(timeout=LIMIT_S)

    def retain(self, topic: str, payload: str | bytes) -> None:
        """Set what is retained of a topic, or delete it with an empty payload, and wait for PUBACK."""
        self.wait_acknowledged(self.paho.publish(topic, payload, 1, retain=True).mid)

    def publish(self, topic: str, payload: str | bytes = "", qos: int = 1) -> None:
        """Publish; QoS 1 waits for PUBACK."""
        self.wait_acknowledged(self.publish_later(topic, payload, qos))

    def publish_later(self, topic: str, payload: str | bytes = "", qos: int = 1) -> int:
        """Publish and wait for nothing; returns what `acknowledged` asks for.

        QoS 1 is kept while the client has no connection, and sent when it has.
        """
        message = self.paho.publish(topic, payload, qos)
        kept = qos > 0 and message.rc == MQTTErrorCode.MQTT_ERR_NO_CONN
        assert kept or message.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
        return message.mid

    def acknowledged(self, mid: int) -> bool:
        """Whether PUBACK has come; of QoS 0 whether the message was sent."""
        return mid in self._acknowledged

    def wait_acknowledged(self, mid: int) -> None:
        """Wait for PUBACK."""
        with self._changed:
            came = self._changed.wait_for(lambda: mid in self._acknowledged, LIMIT_S)
        assert came, f"{self._node.name} did not acknowledge message {mid}"

    def message(self, limit_s: float = LIMIT_S) -> tuple[str, str]:
        """Return topic and payload of the next message; fails after `limit_s` seconds without one."""
        try:
            message = self._messages.get(timeout=limit_s)
        except queue.Empty:
            raise AssertionError(f"no message from {self._node.name} within {limit_s:g} s") from None
        return message.topic, message.payload.decode()

    def messages(self, count: int) -> list[tuple[str, str]]:
        """Return the next `count` messages."""
        deadline = time.monotonic() + LIMIT_S
        return [self.message(max(0.0, deadline - time.monotonic())) for _ in range(count)]

    def settle(self) -> None:
        """Wait until the node has the acknowledgements of all that `message` has returned.

        The client's thread sends them after it has handed out the message, so the first PUBLISH may overtake the last
        of them. When that one is answered, the thread has sent them all, and they are in front of the second.
        """
        self.publish("settled")
        self.publish("settled")

    def nothing_waits(self) -> bool:
        """Whether no message has arrived that was not taken."""
        return self._messages.empty()

    def _on_connect(
        self, client: mqtt.Client, userdata: Any, flags: mqtt.ConnectFlags, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            # The node is starting. The client tries again, and who waits for it says when it took too long.
            return
        self.present = flags.session_present
        self._closed.clear()
        self._connected.set()

    def _on_disconnect(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._ended = (reason.value, getattr(properties, "ServerReference", ""))
        self._connected.clear()
        self._closed.set()

    def _on_publish(self, client: mqtt.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        assert not reason.is_failure, str(reason)
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()


def accepts(node: Node) -> bool:
    """Whether a client gets in right now."""
    try:
        with socket.create_connection((node.host, node.mqtt_port), timeout=LIMIT_S) as client:
            # CONNECT of MQTT 3.1.1, clean session, client id "c"; CONNACK without session, accepted.
            client.sendall(bytes.fromhex("100d00044d5154540402003c000163"))
            return client.recv(4) == bytes.fromhex("20020000")
    except OSError:
        return False


def wait_known(subscriber: Client, *publishers: Client) -> None:
    """Wait until the publishers' nodes know every subscription that the subscriber made so far.

    A node learns of another node's subscriptions in their order, a moment after SUBACK: once it knows one more, it
    knows all. Takes no message but its own, so call it before anything else is published.
    """
    for publisher in publishers:
        topic = f"known/{next(_numbers)}"
        subscriber.subscribe(topic, 0)

        def arrived(publisher: Client = publisher, topic: str = topic) -> bool:
            publisher.publish(topic, "?", 0)
            try:
                return subscriber.message(0.2)[0] == topic
            except AssertionError:
                return False

        wait_until(arrived, "a new subscription reaches another node")
        # Other askings may still be under way; the answer to the last one is the last of them.
        publisher.publish(topic, "last", 0)
        while subscriber.message() != (topic, "last"):
            pass
