"""The virtual MQTT clients, and the ledger of what they published, were promised and received.

A client speaks with its listener in events and records: no bytes of MQTT, but MQTT's rules. It has a home node and
always comes back to it. It sends again, with the same packet ids and payloads and in the same order, what was not
acknowledged when its connection ended; it acknowledges deliveries in order, sometimes late; it stops reading for a
while; its connection ends with or without a word, and sometimes the node learns of that only after it is back.

The ledger judges nothing but what a single record shows; `checkers` judges the whole.
"""

from collections import Counter, deque

from broker.core.events import (
    NEVER_EXPIRES_S,
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    PubackReceived,
    PublishReceived,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.message import Message
from broker.core.records import CLOSE, CONNACK, DUP_FLAG, PUBACK, SUBACK, UNSUBACK

OFFLINE = "offline"
CONNECTING = "connecting"
ONLINE = "online"
QOS_MASK = 3
REFUSED = 0x80
# A publisher has at most so many PUBLISHes under way, as a client with a Receive Maximum does.
UNACKNOWLEDGED_MAX = 12


class Published:
    """One message of a publisher: how often it was sent, and to whom it was promised."""

    __slots__ = ("acked", "number", "payload", "promised", "publisher", "qos", "refused", "sends", "topic")

    def __init__(self, publisher, number, topic, qos, payload):
        self.publisher = publisher
        self.number = number
        self.topic = topic
        self.qos = qos
        self.payload = payload
        self.sends = 0
        self.acked = False
        self.refused = False
        self.promised = set()


class Ledger:
    """Every message by its payload, which is unique."""

    def __init__(self):
        self.published = {}

    def add(self, publisher, topic, qos, padding_bytes=0):
        """Note a new message, with a payload that is longer by some bytes."""
        number = len(self.published) + 1
        payload = b"%d" % number + b"." * padding_bytes
        message = Published(publisher, number, topic, qos, payload)
        self.published[payload] = message
        return message


class Client:
    """One client; what it does is the workload's decision."""

    def __init__(self, world, ledger, name, home, version, persistent, filters):
        self.world = world
        self.ledger = ledger
        self.name = name
        self.home = home
        self.version = version
        self.persistent = persistent
        self.wanted = dict(filters)
        self.state = OFFLINE
        self.comes_back = True
        self.receive_maximum = 0
        self.ack_delay_s = 0.0
        # Filters that the broker acknowledged, with the QoS granted.
        self.subscribed = {}
        self.session_exists = False
        self.unacknowledged = {}
        self.backlog = deque()
        # payload -> count of deliveries sent for the first time, and in the order of their first arrival.
        self.copies = Counter()
        self.arrivals = []
        self._listener = None
        self._number = 0
        self._packet_id = 0
        self._requests = {}
        self._ack_at = 0.0
        self._expected_acks = deque()
        self._reading = True
        self._unread = deque()
        self._connects = 0

    # Connections.

    def connect(self, clean=False):
        """Try to connect to the home node; try again later when it is down."""
        if self.state != OFFLINE:
            return
        world = self.world
        listeners = [listener for listener in self.home.listeners if listener is not None and listener.up]
        if not self.home.up or not listeners:
            self._retry(clean)
            return
        clean = clean or not self.persistent
        if clean:
            self._forget_session()
        self._connects += 1
        world.count("client connects")
        self.state = CONNECTING
        self._listener = world.rng.choice(listeners)
        self._number = self._listener.open(self)
        expiry_s = 0
        if self.persistent:
            expiry_s = 3600 if self.version == 5 else NEVER_EXPIRES_S
        world.note(f"{self.name} connects to {self.home.name} listener {self._listener.index} as {self._number}")
        self._listener.send(
            Attach(self._key(), self.name, self.version, clean, expiry_s, self.receive_maximum or 65535)
        )
        world.later(10.0, self._give_up, self._connects)

    def disconnect(self, abruptly, half_open=False):
        """End the connection; `half_open` leaves the node in the belief that it stands for a while."""
        if self.state == OFFLINE:
            return
        world = self.world
        listener, number = self._listener, self._number
        world.note(f"{self.name} disconnects{' abruptly' if abruptly else ''}")
        listener.connections.pop(number, None)
        if abruptly:
            world.count("client drops")
            delay_s = world.rng.uniform(1.0, 4.0) if half_open else 0.0
            world.later(delay_s, self._lost_at_listener, listener, number)
        else:
            listener.send(Detach(listener.key(number), 0))
        self._ended()

    def connection_lost(self):
        """The listener or the node died."""
        self.world.note(f"{self.name} is cut off")
        self._ended()

    def _lost_at_listener(self, listener, number):
        if listener.up:
            listener.send(Detach(listener.key(number)))

    def _ended(self):
        self.state = OFFLINE
        self._listener = None
        self._requests = {}
        self._expected_acks.clear()
        self._reading = True
        self._unread.clear()
        if self.comes_back:
            self._retry(False)

    def _retry(self, clean):
        rng = self.world.rng
        self.world.later(rng.uniform(0.05, 0.5) if rng.random() < 0.7 else rng.uniform(0.5, 3.0), self._again, clean)

    def _again(self, clean):
        if self.comes_back:
            self.connect(clean)

    def _give_up(self, connects):
        if self._connects == connects and self.state == CONNECTING:
            self.disconnect(True)

    def _forget_session(self):
        """A clean start: nothing that was promised to the old session is owed any more."""
        self.subscribed = {}
        self.session_exists = False
        for message in self.ledger.published.values():
            message.promised.discard(self.name)

    def _key(self):
        return self._listener.key(self._number)

    # What the client does.

    def publish(self, topic, qos):
        """Publish a new message as soon as the window and the connection allow."""
        self.backlog.append((topic, qos))
        self._publish_backlog()

    def unsubscribe(self, topic_filter):
        """Give up a filter."""
        if self.state != ONLINE or topic_filter not in self.wanted:
            return
        del self.wanted[topic_filter]
        self.subscribed.pop(topic_filter, None)
        # What is not acknowledged yet may be routed after the subscription is gone.
        for message in self.ledger.published.values():
            if not message.acked and self.name in message.promised and not self._wants(message.topic):
                message.promised.discard(self.name)
        packet_id = self._next_id()
        self._listener.send(UnsubscribeReceived(self._key(), packet_id, [topic_filter]))

    def subscribe(self, topic_filter, qos):
        """Ask for a filter, now or at the next connection."""
        self.wanted[topic_filter] = qos
        if self.state == ONLINE:
            self._subscribe({topic_filter: qos})

    def pause(self, seconds):
        """Stop reading for a while."""
        if self.state != ONLINE or not self._reading:
            return
        self.world.count("pauses")
        self._reading = False
        self._listener.send(ConnectionPaused(self._key()))
        self.world.later(seconds, self._resume, self._connects)

    def idle(self):
        """Say whether everything the client wanted to publish is settled."""
        return not self.backlog and not self.unacknowledged

    def _resume(self, connects):
        if self._connects != connects or self.state != ONLINE or self._reading:
            return
        self._reading = True
        unread, self._unread = self._unread, deque()
        for arguments in unread:
            self._delivered(*arguments)
        self._listener.send(ConnectionResumed(self._key()))

    def _publish_backlog(self):
        while self.backlog and self.state == ONLINE and len(self.unacknowledged) < UNACKNOWLEDGED_MAX:
            topic, qos = self.backlog.popleft()
            message = self.ledger.add(self.name, topic, qos, self.world.padding_bytes())
            message.promised = self.world.promises(self, message)
            self.world.count(f"publishes QoS {qos}")
            packet_id = 0
            if qos:
                packet_id = self._next_id()
                self.unacknowledged[packet_id] = message
            self._send(packet_id, message)

    def _send(self, packet_id, message):
        message.sends += 1
        self.world.note(f"{self.name} publishes {message.number} {message.topic.decode()} QoS {message.qos}")
        if packet_id:
            self._expected_acks.append(packet_id)
        wire = Message(message.topic, message.payload, b"", message.qos)
        self._listener.send(PublishReceived(self._key(), packet_id, wire))

    def _next_id(self):
        while True:
            self._packet_id = self._packet_id % 65535 + 1
            if self._packet_id not in self.unacknowledged:
                return self._packet_id

    def _subscribe(self, filters):
        packet_id = self._next_id()
        self._requests[packet_id] = dict(filters)
        self._listener.send(SubscribeReceived(self._key(), packet_id, list(filters.items())))

    def _wants(self, topic):
        return any(qos and matches(topic_filter, topic) for topic_filter, qos in self.subscribed.items())

    # What the client is told.

    def answer(self, record):
        """A CONNACK, PUBACK, SUBACK, UNSUBACK or CLOSE came."""
        if record.kind == PUBACK:
            self._puback(record.packet_id, record.reason)
        elif record.kind == CONNACK:
            self._connack(record)
        elif record.kind == SUBACK:
            self._suback(record)
        elif record.kind == CLOSE:
            self.world.count("closes")
            self.world.note(f"{self.name} is closed with {record.reason:#x}")
            self._listener.connections.pop(self._number, None)
            self._ended()
        else:
            assert record.kind == UNSUBACK

    def deliver(self, record, packet_id, flags):
        """A PUBLISH came."""
        if self._reading:
            self._delivered(record.payload, record.topic, packet_id, flags)
        else:
            self._unread.append((record.payload, record.topic, packet_id, flags))

    def _connack(self, record):
        world = self.world
        world.check(record.reason == 0, f"{self.name} was refused with {record.reason:#x}")
        self.state = ONLINE
        if self.session_exists and not world.power_loss:
            world.check(record.session_present, f"the session of {self.name} was lost at {self.home.name}")
        if not record.session_present:
            self.subscribed = {}
        self.session_exists = self.persistent
        missing = {name: qos for name, qos in self.wanted.items() if name not in self.subscribed}
        if missing:
            self._subscribe(missing)
        resent = list(self.unacknowledged.items())
        if resent:
            world.count("publishes resent", len(resent))
        for packet_id, message in resent:
            self._send(packet_id, message)
        self._publish_backlog()

    def _suback(self, record):
        filters = self._requests.pop(record.packet_id)
        self.world.check(list(record.reasons) == list(filters.values()), f"{self.name}: SUBACK {record.reasons!r}")
        for topic_filter, qos in filters.items():
            if topic_filter in self.wanted:
                self.subscribed[topic_filter] = qos

    def _puback(self, packet_id, reason):
        world = self.world
        expected = self._expected_acks.popleft()
        world.check(expected == packet_id, f"{self.name}: PUBACK {packet_id} instead of {expected} [MQTT-4.6.0-2]")
        message = self.unacknowledged.pop(packet_id)
        if reason < REFUSED:
            message.acked = True
            world.count("acks")
        else:
            message.refused = True
            world.count("refusals")
        world.note(f"{self.name} has {message.number} acknowledged with {reason:#x}")
        self._publish_backlog()

    def _delivered(self, payload, topic, packet_id, flags):
        world = self.world
        message = self.ledger.published.get(payload)
        world.check(message is not None and message.topic == topic, f"{self.name} received what nobody published")
        qos = flags & QOS_MASK
        world.check(qos <= message.qos, f"{self.name}: QoS {qos} of a message of QoS {message.qos}")
        world.count("deliveries")
        world.note(f"{self.name} receives {message.number} as {packet_id} flags {flags}")
        if not flags & DUP_FLAG:
            self.copies[payload] += 1
        if self.copies[payload] > 1 or flags & DUP_FLAG:
            world.count("duplicates")
        self.arrivals.append((payload, qos))
        if qos:
            delay_s = self.ack_delay_s * world.rng.random()
            self._ack_at = max(self._ack_at, world.now + delay_s)
            world.at(self._ack_at, self._acknowledge, self._connects, packet_id)

    def _acknowledge(self, connects, packet_id):
        if self._connects == connects and self.state == ONLINE:
            self._listener.send(PubackReceived(self._key(), packet_id))


def matches(topic_filter, topic):
    """Say whether a filter matches a topic, by the specification and not by the broker's tree."""
    levels = topic.split(b"/")
    wanted = topic_filter.split(b"/")
    for place, level in enumerate(wanted):
        if level == b"#":
            return True
        if place >= len(levels) or (level != b"+" and level != levels[place]):
            return False
    return len(levels) == len(wanted)
