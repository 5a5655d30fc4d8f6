"""One node without processes or sockets: listener cores and a queue-owner, joined by the frames they exchange.

A test talks to it as a client does, in MQTT bytes, and moves the time by hand. What a turn decides is done in the order
in which the shells do it: commit, then forwards, then what listeners and clients are told.
"""

from collections.abc import Callable, Iterator
from typing import Any

from broker.core.authentication import NO_METHODS, Authenticator
from broker.core.connection import CLOSED, Connection
from broker.core.connection_limits import ConnectionLimits
from broker.core.effects import Effects, Forward, InterestChange
from broker.core.events import CreditReturned, ListenerGone, ListenerStarted
from broker.core.group_choice import GroupParts
from broker.core.listener import ListenerCore
from broker.core.listener_records import LISTENER_HEADER_BYTES, ListenerHeader, unpack_events
from broker.core.owner import QueueOwner
from broker.core.owner_records import owner_frame
from broker.core.retained_rows import retained_row, stored_topic
from broker.core.routes import Interest, NoInterest
from broker.core.rows import RowChange, Table, row_hash
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage
from broker.mqtt.codec import decode, encode, split
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
    Will,
)
from broker.mqtt.properties import Property

STORE_ID = b"0123456789abcdef"
START_S = 1000.0
START_UTC_MS = 1_700_000_000_000


def packets_of(data: bytes, version: int) -> list[Packet]:
    """The packets that the bytes consist of, to the last byte."""
    packets: list[Packet] = []
    pos = 0
    while pos < len(data):
        start, end = split(data, pos, 0)
        assert 0 < end <= len(data), f"the bytes end inside a packet: {data[pos:].hex()}"
        packets.append(decode(data, data[pos], start, end, version))
        pos = end
    return packets


class StubInterest:
    """Other nodes' interest: what a test says. A node stands once for a topic."""

    def __init__(self, wanted: dict[bytes, list[tuple[str, bool]]] | None = None) -> None:
        self.wanted = wanted or {}

    def match(self, topic: bytes) -> list[tuple[str, bool]]:
        return self.wanted.get(topic, [])

    def match_groups(self, topic: bytes) -> list[GroupParts]:
        return []

    def group(self, shared_filter: bytes) -> GroupParts | None:
        return None


class Client:
    """One client: `send` says bytes and hears what comes of them."""

    def __init__(self, node: "Node", listener: int, version: int, mountpoint: str = "") -> None:
        self.node = node
        self.listener = listener
        self.version = version
        self.connection: Connection = node.listeners[listener].open(node.now, mountpoint)
        self.connack: Connack | None = None
        self.unread = b""
        node.clients[(listener, self.connection.number)] = self

    @property
    def closed(self) -> bool:
        return self.connection.state == CLOSED

    @property
    def key(self) -> int:
        """The connection's number as the owner knows it."""
        return self.listener << 32 | self.connection.number

    def send(self, data: bytes | Packet) -> None:
        """Say bytes, or a packet, and let the node work until it is quiet."""
        self.say(data)
        self.node.settle()

    def say(self, data: bytes | Packet) -> None:
        """Say bytes, or a packet, without working it off."""
        raw = data if isinstance(data, bytes) else encode(data, self.version)
        self.node.listeners[self.listener].receive_data(self.connection, raw, self.node.now)

    def take_bytes(self) -> bytes:
        """What the client heard since the last call."""
        data, self.unread = self.unread, b""
        return data

    def take(self) -> list[Any]:
        """The packets that the client heard since the last call."""
        return packets_of(self.take_bytes(), self.version)

    def take_publishes(self) -> list[Publish]:
        """The same, if they are PUBLISHes all of them."""
        packets = self.take()
        assert all(isinstance(packet, Publish) for packet in packets), packets
        return packets

    def take_payloads(self) -> list[bytes]:
        return [packet.payload for packet in self.take_publishes()]

    def subscribe(self, topic_filter: bytes, qos: int = 1, no_local: bool = False) -> tuple[int, ...]:
        """Subscribe and return the reasons; what was heard before is forgotten."""
        self.take_bytes()
        self.send(Subscribe(7, (SubscriptionRequest(topic_filter, qos, no_local),)))
        suback = self.take()[0]
        assert suback.packet_id == 7
        return suback.reasons

    def unsubscribe(self, topic_filter: bytes) -> tuple[int, ...]:
        self.take_bytes()
        self.send(Unsubscribe(8, (topic_filter,)))
        (unsuback,) = self.take()
        return unsuback.reasons

    def publish(self, topic: bytes, payload: bytes = b"x", qos: int = 0, packet_id: int = 1, **options: Any) -> None:
        self.send(Publish(topic, payload, qos, packet_id=packet_id if qos else 0, **options))

    def acknowledge(self, *packet_ids: int) -> None:
        for packet_id in packet_ids:
            self.send(Puback(packet_id))

    def receive_qos2(self, *packet_ids: int) -> None:
        """Go through the whole of QoS 2 for deliveries; what is heard meanwhile stays unread."""
        for packet_id in packet_ids:
            self.send(Pubrec(packet_id))
            self.send(Pubcomp(packet_id))

    def publish_qos2(self, topic: bytes, payload: bytes = b"x", packet_id: int = 1, **options: Any) -> None:
        """Publish with QoS 2, to the end; the answers stay unread."""
        self.send(Publish(topic, payload, 2, packet_id=packet_id, **options))
        self.send(Pubrel(packet_id))

    def disconnect(self, expiry_s: int | None = None) -> None:
        """Say DISCONNECT and close the socket."""
        self.send(Disconnect(0, {} if expiry_s is None else {int(Property.SESSION_EXPIRY_INTERVAL): expiry_s}))
        self.drop()

    def drop(self) -> None:
        """Close the socket without a word."""
        self.node.listeners[self.listener].lost(self.connection)
        self.node.settle()


class Node:
    """A node of `listeners` listener cores; `turns` holds the effects of every turn."""

    def __init__(
        self,
        listeners: int = 2,
        settings: OwnerSettings | None = None,
        limits: ConnectionLimits | None = None,
        storage: MemoryStorage | None = None,
        interest: Interest | None = None,
        incarnation: int = 1,
        now: float = START_S,
        utc_ms: int = START_UTC_MS,
        generation: int = 1,
        authenticator: Authenticator = NO_METHODS,
        store_id: bytes = STORE_ID,
    ) -> None:
        self.store_id = store_id
        self.now = now
        self.started = now
        self.utc_ms = utc_ms
        self.generation = generation
        self.incarnation = incarnation
        self.settings = settings or OwnerSettings()
        self.limits = limits or ConnectionLimits()
        self.authenticator = authenticator
        self.storage = storage or MemoryStorage()
        self.interest = interest or NoInterest()
        self.owner = QueueOwner(self.settings, self.storage, self.interest, store_id, incarnation)
        self.owner.recover(now, utc_ms)
        # What the other nodes know of this one's sessions: (table, row) -> value.
        self.rows = {**self.local_rows(), **self.retained_rows()}
        self.turns: list[Effects] = []
        self.forwards: list[Forward] = []
        self.interest_changes: list[InterestChange] = []
        self.clients: dict[tuple[int, int], Client] = {}
        # A listener that returns no credit is one that does not get on with its work.
        self.credit_held: set[int] = set()
        self.unreturned_bytes = [0] * listeners
        self._names = 0
        self.listeners: list[ListenerCore] = []
        for index in range(listeners):
            self.listeners.append(ListenerCore(index, 1, self.limits, self._name, authenticator))
            self.listeners[index].owner_ready(generation)
            self.owner.receive(ListenerStarted(index, 1), now)
        self.settle()

    def _name(self) -> str:
        self._names += 1
        return f"assigned-{self._names}"

    def open(self, listener: int = 0, version: int = 4, mountpoint: str = "") -> Client:
        """A client that has said nothing yet."""
        return Client(self, listener, version, mountpoint)

    def connect(
        self,
        client_id: str,
        version: int = 4,
        clean: bool = True,
        listener: int = 0,
        properties: dict[int, Any] | None = None,
        keep_alive_s: int = 0,
        will: Will | None = None,
        mountpoint: str = "",
    ) -> Client:
        """A client that is connected; its CONNACK is in `connack`, what came after it is unread."""
        client = self.open(listener, version, mountpoint)
        client.send(Connect(version, client_id, clean, keep_alive_s, will=will, properties=properties or {}))
        start, end = split(client.unread, 0, 0)
        assert 0 < end <= len(client.unread), "no CONNACK"
        connack = decode(client.unread, client.unread[0], start, end, version)
        assert isinstance(connack, Connack)
        client.connack = connack
        client.unread = client.unread[end:]
        return client

    def persistent(self, client_id: str, version: int = 5, expiry_s: int = 3600, **options: Any) -> Client:
        """A client whose session outlives its connection."""
        properties = {int(Property.SESSION_EXPIRY_INTERVAL): expiry_s} if version == 5 else {}
        properties.update(options.pop("properties", {}))
        return self.connect(client_id, version, False, properties=properties, **options)

    def settle(self) -> None:
        """Work until nobody has anything to say."""
        while self.step():
            pass

    def step(self) -> bool:
        """Work for one turn; true when anything came of it."""
        self.begin()
        given = [listener.take_turns(self.now) for listener in self.listeners]
        frames = [listener.take_frame() for listener in self.listeners]
        for frame in frames:
            self.receive_frame(frame)
        self.owner.tick(self.now)
        return self.turn() or any(given) or any(len(frame) > LISTENER_HEADER_BYTES for frame in frames)

    def wall_clock_ms(self) -> int:
        return self.utc_ms + int((self.now - self.started) * 1000)

    def step_clock(self, seconds: int) -> None:
        """Somebody sets the wall clock."""
        self.utc_ms += seconds * 1000

    def begin(self) -> None:
        """Begin a turn, as the shell does; what the last one wrote is committed."""
        self.owner.set_clock(self.now, self.wall_clock_ms())
        self.owner.begin(self.now)

    def receive_frame(self, frame: bytes) -> None:
        """Hand a listener's frame to the owner, and give the listener its credit back."""
        header = ListenerHeader(frame)
        index = header.listener
        self.unreturned_bytes[index] += header.consumed_bytes
        if index not in self.credit_held:
            credit_bytes, self.unreturned_bytes[index] = self.unreturned_bytes[index], 0
            if credit_bytes:
                self.owner.receive(CreditReturned(index, credit_bytes), self.now)
        for event in unpack_events(frame):
            self.owner.receive(event, self.now)
        answer = owner_frame(self.generation, header.generation, len(frame), b"")
        self.listeners[index].receive_frame(answer)

    def turn(self) -> bool:
        """Carry out what the owner decided; true when it was anything."""
        effects = self.take_effects()
        self.owner.validate()
        self.storage.commit(effects.writes)
        self.forwards.extend(effects.to_peers)
        self.interest_changes.extend(effects.interest)
        for index, batch in effects.to_listeners.items():
            for records in batch.records():
                self.listeners[index].receive_frame(owner_frame(self.generation, 1, 0, records))
        for index, listener in enumerate(self.listeners):
            for connection in listener.take_dirty():
                self.clients[(index, connection.number)].unread += b"".join(connection.output)
                connection.output = []
        busy = bool(effects.to_listeners or len(effects.writes) or effects.to_peers or effects.interest)
        if busy:
            self.turns.append(effects)
        return busy or self.owner.next_deadline() == 0.0

    def change_rows(self, changes: list[RowChange]) -> None:
        """Apply what the other nodes hear; each change has to say rightly what was there before."""
        for change in changes:
            before = self.rows.pop((change.table, change.row), None)
            assert change.was == (0 if before is None else row_hash(change.row, before)), change.row
            if change.value is not None:
                self.rows[change.table, change.row] = change.value

    def take_effects(self) -> Effects:
        """What the owner decided, for a test to look at."""
        effects = self.owner.take_effects()
        self.change_rows(effects.rows)
        return effects

    def local_rows(self) -> dict[tuple[int, bytes], bytes]:
        """What the other nodes have to know of the sessions."""
        return {(table, row): value for table, row, value in self.owner.local_rows()}

    def retained_rows(self) -> dict[tuple[int, bytes], bytes]:
        """What the other nodes have to know of what is retained: this node's rows as they are stored."""
        stored = self.storage.scan("retained", self.store_id, self.store_id + b"\xff\xff")
        return {(int(Table.RETAINED), retained_row(stored_topic(key))): value[1:] for key, value in stored}

    def told_rows(self) -> dict[tuple[int, bytes], bytes]:
        """What the other nodes know of the sessions, and of what is retained."""
        self.take_effects()
        return dict(self.rows)

    def release_credit(self, index: int) -> None:
        """A listener that was stuck gets on with its work."""
        self.credit_held.discard(index)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for listener in self.listeners:
            listener.tick(self.now)
        self.owner.tick(self.now)
        self.settle()

    def lose_listener(self, index: int) -> None:
        """A listener process dies: its clients hear nothing more."""
        self.owner.receive(ListenerGone(index, 1), self.now)
        self.settle()

    def restart_listener(self, index: int) -> None:
        """The same, and another process takes its place."""
        self.lose_listener(index)
        self.listeners[index] = ListenerCore(index, 1, self.limits, self._name, self.authenticator)
        self.listeners[index].owner_ready(self.generation)
        self.owner.receive(ListenerStarted(index, 1), self.now)
        self.settle()

    def restart(self, down_s: float = 0.0, **options: Any) -> "Node":
        """The node after `kill -9` and `down_s` seconds: another, on what is in the store."""
        return Node(
            len(self.listeners),
            options.get("settings", self.settings),
            self.limits,
            self.storage.survivor(),
            self.interest,
            self.incarnation + 1,
            # Another process, another boot perhaps: monotonic time begins elsewhere.
            now=START_S / 2,
            utc_ms=self.wall_clock_ms() + int(down_s * 1000),
            generation=self.generation + 1,
            authenticator=self.authenticator,
            store_id=self.store_id,
        )

    def acknowledge_forwards(self, *indexes: int) -> None:
        """The other nodes take these of `forwards`."""
        for index in indexes:
            self.owner.forward_acknowledged(self.forwards[index].ticket, self.now)
        self.settle()

    def fill_links(self, *names: str) -> None:
        """The links to these nodes are full, and no others."""
        self.owner.ask_room(lambda node, _message: node not in names)

    def dropped(self, reason: str) -> int:
        return self.owner.counters.dropped.get(reason, 0)

    def stored(self, family: str) -> list[bytes]:
        """The keys of a family."""
        return [key for key, _ in self.storage.scan(family, b"", b"")]

    def validate(self) -> None:
        """The owner's invariants, and that store and memory agree, and what the other nodes know."""
        self.owner.validate()
        told = self.told_rows()
        assert told == {**self.local_rows(), **self.retained_rows()}
        sessions = {key[:8] for key in self.stored("session") if len(key) == 8}
        parts = {key[:8] for key in self.stored("session") if key[8:9] in (b"/", b"i")}
        assert parts <= sessions, "a subscription of no session"
        groups = {key[:8] for key in self.stored("session") if key[8:9] == b"$"}
        assert {key[:8] for key in self.stored("queue")} <= sessions | groups, "a delivery of no session"
        referenced = {body_key(value) for _, value in self.storage.scan("queue", b"", b"")} - {b""}
        assert set(self.stored("message")) == referenced, "messages without deliveries, or the other way round"


def body_key(record: bytes) -> bytes:
    """The key of the body that a queue record points to, b"" when it holds the body itself, or needs none."""
    inline, released, identifiers, shared = (record[1] >> bit & 1 for bit in (3, 4, 5, 6))
    if inline or released:
        return b""
    place = 8
    for _ in range(identifiers + shared):
        place += 2 + int.from_bytes(record[place : place + 2], "big")
    return record[place : place + 24]


def started_nodes() -> Iterator[Callable[..., Node]]:
    """For a fixture: a function that starts nodes, each of which is validated at the end."""
    nodes: list[Node] = []

    def start(**options: Any) -> Node:
        nodes.append(Node(**options))
        return nodes[-1]

    yield start
    for node in nodes:
        node.settle()
        node.validate()
