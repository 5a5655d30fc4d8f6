"""The virtual MQTT clients: connections, subscriptions and wills. Publishing and receiving have halves of their own.

A client speaks with its listener in events and records: no bytes of MQTT, but MQTT's rules. It has a home node and
always comes back to it, at once or after a while. Its connection ends with or without a word, and sometimes the node
learns of that only after it is back.
"""

from client_inbox import Inbox
from client_outbox import Outbox
from ledger import matches, shared_part

from broker.core.epoch import NO_EPOCH
from broker.core.events import (
    NEVER_EXPIRES_S,
    Attach,
    ConnectionPaused,
    ConnectionResumed,
    Detach,
    SubscribeReceived,
    UnsubscribeReceived,
)
from broker.core.records import CLOSE, CONNACK, PUBACK, PUBCOMP, PUBREC, PUBREL, SUBACK, UNSUBACK
from broker.core.will import Will
from broker.mqtt.reasons import Reason
from cluster.readiness import AVAILABLE

OFFLINE = "offline"
CONNECTING = "connecting"
ONLINE = "online"
DISCONNECT_WITH_WILL = 4
# A node that lived so long after a DISCONNECT has taken it, however long it stood still.
FAREWELL_S = 9.0
# Ids are soon used again, so that one that a node forgot to free is found.
PACKET_ID_MAX = 40


class Client:
    """One client; what it does is the workload's decision."""

    def __init__(self, world, ledger, name, home, version, persistent, filters):
        self.world = world
        self.ledger = ledger
        self.name = name
        # One's own, but of those who race for it.
        self.client_id = name
        self.contends = False
        self.home = home
        self.version = version
        self.persistent = persistent
        self.wanted = dict(filters)
        # Whatever it ever asked for.
        self.ever_wanted = dict(filters)
        self.shares = any(shared_part(topic_filter) is not None for topic_filter in filters)
        # It never gives up its session or a subscription.
        self.steady = False
        # It connects now to one node and now to another, or does so when its node leaves.
        self.roams = False
        self.emigrates = False
        # Filters that everybody knows: they stay known wherever the client goes.
        self.rooted = set()
        self.state = OFFLINE
        self.comes_back = True
        # It may go in the middle of a CONNECT.
        self.aborts = False
        self.receive_maximum = 0
        # (topic, QoS, delay) of the will that it leaves with each connection.
        self.will = None
        self.will_retained = False
        # Filters that the broker acknowledged, with the QoS granted.
        self.subscribed = {}
        # Filters of which it said its last word to an older home than an earlier one, of which that home did not know.
        self.outdated = set()
        # The latest epoch by which it said anything, by filter; and by which it was told that it has no session, be it
        # that it asked for a clean start: then it wants nothing. And that of its connection.
        self.said_by = {}
        self._begun_by = NO_EPOCH
        self._epoch = NO_EPOCH
        self.session_exists = False
        # The nodes that have heard of it: any other one has no way of knowing it while its home is away. And the epoch
        # by which it began: who has heard of no later one knows an earlier session, which a Clean Start ended.
        self.session_known = set()
        self._session_began = NO_EPOCH
        # What the last CONNACK said of the session; None before the first.
        self.session_present = None
        # How many sessions ended.
        self.sessions = 0
        # Whether a Clean Start is not answered yet; and by node until when one may be served that it did not wait for.
        self._starts_clean = False
        self._late_starts = {}
        # Whether one of these may end the session of the last CONNACK.
        self._may_be_ended = False
        self.connects = 0
        self.outbox = Outbox(self)
        self.inbox = Inbox(self)
        # The wills of the present connection, and of the last one that stood.
        self._present = None
        self._left = None
        self._listener = None
        self._number = 0
        self._packet_id = 0
        self._requests = {}
        # Until when a node may take an old connection for a live one.
        self._stands_until = 0.0

    # Connections.

    def connect(self, clean=False):
        """Try to connect to the home node; try again later when it is down."""
        if self.state != OFFLINE:
            return
        world = self.world
        if self.roams and world.rng.random() < 0.7:
            self.home = world.rng.choice([node for node in world.members() if not node.is_alone])
            world.count("roamings")
        refuge = world.refuge(self)
        if refuge is not None:
            self._flee(refuge)
        listeners = [listener for listener in self.home.listeners if listener is not None and listener.up]
        if not self.home.up or not listeners or not self.home.core.leaver.job.accepts():
            self._retry(clean)
            return
        clean = clean or not self.persistent
        if clean or self._may_be_ended:
            self._forget_session()
        self._starts_clean = clean
        self.connects += 1
        world.count("client connects")
        if world.now < self._stands_until:
            world.count("takeovers")
        self.state = CONNECTING
        self._listener = world.rng.choice(listeners)
        self._number = self._listener.open(self)
        expiry_s = 0
        if self.persistent:
            expiry_s = 3600 if self.version == 5 else NEVER_EXPIRES_S
        world.note(f"{self.name} connects to {self.home.name} listener {self._listener.index} as {self._number}")
        maximum = self.receive_maximum or 65535
        will = self._leave_will()
        user_name = world.user_of(self.client_id)
        self._listener.send(
            Attach(self._key(), self.client_id, self.version, clean, expiry_s, maximum, user_name=user_name, will=will)
        )
        world.later(10.0, self._give_up, self.connects)
        if self.aborts and world.rng.random() < 0.15:
            world.later(world.rng.uniform(0.0, 0.03), self._abort, self.connects)

    def _flee(self, refuge):
        """Go to another node, and tell that one whatever not all know by now."""
        self.world.count("emigrations")
        self.home = refuge
        self.subscribed = {name: qos for name, qos in self.subscribed.items() if name in self.rooted}

    def _uproot(self, filters):
        """Not everybody knows these filters any more; those of a roamer are always the same, and known for ever."""
        if not self.roams:
            self.rooted = self.rooted - set(filters)

    def wanders(self):
        """Say whether it is not always at the same node."""
        return self.roams or self.emigrates

    def _leave_will(self):
        if self._left is not None and not self._left.back_asked_at:
            self._left.back_asked_at = self.world.now
        if self.will is None:
            return None
        topic, qos, delay_s = self.will
        # [MQTT-3.1.2-8] The will of a session that ends with its connection does not wait.
        left = self.ledger.add_will(self, topic, qos, delay_s if self.persistent else 0)
        self._present = left
        self.world.count("wills left")
        return Will(topic, left.message.payload, b"", qos, self.will_retained, delay_s=delay_s)

    def disconnect(self, abruptly, half_open=False, reason=0):
        """End the connection; `half_open` leaves the node in the belief that it stands for a while."""
        if self.state == OFFLINE:
            return
        world = self.world
        listener, number = self._listener, self._number
        world.note(f"{self.name} disconnects{' abruptly' if abruptly else ''}")
        listener.connections.pop(number, None)
        delay_s = 0.0
        if abruptly:
            world.count("client drops")
            delay_s = world.rng.uniform(1.0, 4.0) if half_open else 0.0
            self._stands_until = world.now + delay_s
            world.later(delay_s, self._lost_at_listener, listener, number)
        else:
            listener.send(Detach(listener.key(number), reason))
        self._ended(world.now + delay_s, not abruptly and reason != DISCONNECT_WITH_WILL)

    def hear_nothing(self):
        """Lose what the listener says from now on, though that goes on hearing the client."""
        self._listener.connections.pop(self._number, None)

    def stay_away(self, seconds):
        """Do not come back before a time; the connection ends by itself or ended already."""
        self.comes_back = False
        self.world.later(seconds, self.come_back)

    def come_back(self):
        """Connect again, and again whenever the connection ends."""
        self.comes_back = True
        self.connect()

    def connection_lost(self):
        """The listener or the node died."""
        self.world.note(f"{self.name} is cut off")
        self._ended(self.world.now + 0.3)

    def _lost_at_listener(self, listener, number):
        if listener.up:
            listener.send(Detach(listener.key(number)))

    def _ended(self, told_at, farewell=False):
        if self._starts_clean:
            self._late_starts[self.home] = told_at + FAREWELL_S
        self._ask_who_knows(self.connects)
        self._end_will(told_at, farewell)
        self.state = OFFLINE
        self._listener = None
        self._requests = {}
        self.outbox.connection_ended()
        self.inbox.connection_ended()
        if self.comes_back:
            self._retry(False)

    def _end_will(self, told_at, farewell):
        left = self._present
        if left is None:
            return
        self._present = None
        left.ended_at = self.world.now
        left.told_at = told_at
        left.farewell = farewell
        if left.connected:
            self._left = left
        if farewell:
            self.world.later(FAREWELL_S, self._farewell_arrived, left, self._listener, left.home.life)

    def _farewell_arrived(self, left, listener, life):
        left.farewell_arrived = listener.up and left.home.up and left.home.life == life == left.life

    def _retry(self, clean):
        rng = self.world.rng
        self.world.later(rng.uniform(0.05, 0.5) if rng.random() < 0.7 else rng.uniform(0.5, 3.0), self._again, clean)

    def _again(self, clean):
        if self.comes_back:
            self.connect(clean)

    def _give_up(self, connects):
        if self.connects == connects and self.state == CONNECTING:
            self.disconnect(True)

    def _abort(self, connects):
        if self.connects == connects and self.state == CONNECTING:
            self.world.count("CONNECTs aborted")
            self.disconnect(True)

    def _forget_session(self):
        """A clean start, be it one that is served late: nothing that was promised to the old session is owed."""
        self.subscribed = {}
        self._uproot(self.rooted)
        self.session_exists = False
        self.session_known = set()
        self.sessions += 1
        self.inbox.session_in_doubt()
        if self.persistent:
            for message in self.ledger.published.values():
                message.promised.discard(self.name)

    def _key(self):
        return self._listener.key(self._number)

    def is_online(self):
        """Say whether the client is connected and may speak."""
        return self.state == ONLINE

    def send(self, event, *arguments):
        """Say something on the connection."""
        self._listener.send(event(self._key(), *arguments))

    # What the client does.

    def publish(self, topic, qos, padding_bytes=0):
        """Publish a new message as soon as the window and the connection allow."""
        if self.world.is_hushed:
            return
        self.outbox.add(topic, qos, padding_bytes)

    def retain(self, topic, qos, padding_bytes, deletes):
        """Set what is retained of a topic, or delete it."""
        self.world.count("retained deletes" if deletes else "retained sets")
        self.outbox.add(topic, qos, padding_bytes, True, deletes)

    def unsubscribe(self, topic_filter):
        """Give up a filter."""
        if self.state != ONLINE or topic_filter not in self.wanted:
            return
        del self.wanted[topic_filter]
        self.subscribed.pop(topic_filter, None)
        self._say(topic_filter)
        self._uproot([topic_filter])
        # What is not acknowledged yet, or waits at another node, may be routed after the subscription is gone.
        for message in self.ledger.published.values():
            pending = not message.acked or message.home is not self.home or self.emigrates
            if pending and self.name in message.promised and not self._wants(message.topic):
                message.promised.discard(self.name)
        self.send(UnsubscribeReceived, self.next_id(), [topic_filter])

    def subscribe(self, topic_filter, qos):
        """Ask for a filter, now or at the next connection."""
        self.wanted[topic_filter] = qos
        self.ever_wanted[topic_filter] = qos
        if self.state == ONLINE:
            self._subscribe({topic_filter: qos})

    def pause(self, seconds):
        """Stop reading for a while."""
        if self.state == ONLINE and self.inbox.stop_reading():
            self.world.count("pauses")
            self._listener.send(ConnectionPaused(self._key()))
            self.world.later(seconds, self._resume, self.connects)

    def is_idle(self):
        """Say whether everything the client wanted to publish is settled, and no QoS 2 is half received.

        A loss of power, or of the node, may take the memory of a delivery that the client has: its PUBREL never comes.
        """
        forgotten = self.world.power_loss or self.client_id in self.world.orphans
        return self.outbox.is_empty() and (forgotten or not self.inbox.received)

    def next_id(self):
        """Return a packet id that is not in use."""
        while True:
            self._packet_id = self._packet_id % PACKET_ID_MAX + 1
            if self._packet_id not in self.outbox.under_way:
                return self._packet_id

    def _resume(self, connects):
        if self.connects == connects and self.state == ONLINE and self.inbox.read_on():
            self._listener.send(ConnectionResumed(self._key()))

    def _subscribe(self, filters):
        packet_id = self.next_id()
        self._uproot(filters)
        self._requests[packet_id] = dict(filters)
        self.send(SubscribeReceived, packet_id, list(filters.items()))

    def _say(self, topic_filter):
        """A node has heard what the client wants of a filter: of homes that were apart the latest one's word counts.

        A session that ends with its connection begins anew with the next one, and has no older homes.
        """
        if self.persistent and self._epoch < max(self.said_by.get(topic_filter, NO_EPOCH), self._begun_by):
            self.outdated.add(topic_filter)
        else:
            self.outdated.discard(topic_filter)
            self.said_by[topic_filter] = self._epoch

    def _wants(self, topic):
        return any(qos and matches(topic_filter, topic) for topic_filter, qos in self.subscribed.items())

    # What the client is told.

    def deliver(self, record, packet_id, flags):
        """A PUBLISH came."""
        self.inbox.deliver(record, packet_id, flags)

    def answer(self, record):
        """Anything else came."""
        kind = record.kind
        if kind == PUBACK:
            self.outbox.puback(record.packet_id, record.reason)
        elif kind == PUBREC:
            self.outbox.pubrec(record.packet_id, record.reason)
        elif kind == PUBCOMP:
            self.outbox.pubcomp(record.packet_id)
        elif kind == PUBREL:
            self.inbox.pubrel(record.packet_id)
        elif kind == CONNACK:
            self._connack(record)
        elif kind == SUBACK:
            self._suback(record)
        elif kind == CLOSE:
            self.world.count("closes")
            self.world.note(f"{self.name} is closed with {record.reason:#x}")
            self._listener.connections.pop(self._number, None)
            self._lose_to_another(record.reason)
            if self._present is not None:
                self._present.taken_over = record.reason == Reason.SESSION_TAKEN_OVER
                self._present.evicted = record.reason == Reason.SERVER_SHUTTING_DOWN
            self._ended(self.world.now)
        else:
            assert kind == UNSUBACK

    def _lose_to_another(self, reason):
        if self.contends and reason == Reason.SESSION_TAKEN_OVER:
            self.comes_back = False

    def _connack(self, record):
        world = self.world
        self._starts_clean = False
        self._lose_to_another(record.reason)
        if record.reason and self._may_be_refused(record.reason, Reason.SERVER_UNAVAILABLE):
            world.count("CONNECTs refused")
            self._listener.connections.pop(self._number, None)
            self._ended(world.now)
            return
        world.check(record.reason == 0, f"{self.name} was refused with {record.reason:#x}")
        self.state = ONLINE
        self.session_present = record.session_present
        if self._left is not None:
            self._left.back_at = world.now
            self._left = None
        if self._present is not None:
            self._present.connected = True
        if self.session_exists and not record.session_present:
            unheard_of = self.wanders() and self.home not in self.session_known
            world.check(unheard_of or world.power_loss, f"the session of {self.name} was lost at {self.home.name}")
            # What waits for it elsewhere comes when that is known.
            world.revived[self.client_id] += 1
        session = self.home.core.owner.session(self.client_id) if self.home.up else None
        self._epoch = session.epoch if session is not None else NO_EPOCH
        if not record.session_present:
            self.session_known = set()
            self._session_began = self._epoch
            self._begun_by = max(self._begun_by, self._epoch)
            self.subscribed = {}
            self._uproot(self.rooted)
            self.inbox.session_ended()
        # To a node that gets late to a Clean Start, that is the newer one: its connection may stand there still.
        late = [node for node, until in self._late_starts.items() if world.now < until]
        self._may_be_ended = any(node is not self.home for node in late)
        self.session_exists = self.persistent and not self.contends and not self._may_be_ended
        world.later(0.5, self._ask_who_knows, self.connects)
        missing = {name: qos for name, qos in self.wanted.items() if name not in self.subscribed}
        if missing:
            self._subscribe(missing)
        self.outbox.connected(record.session_present)

    def _ask_who_knows(self, connects):
        if self.connects == connects and self.state == ONLINE and self.session_exists:
            for node in self.world.nodes.values():
                if node.up and not node.is_alone:
                    heard = node.core.mesh.registry.find(self.client_id)
                    if heard is not None and heard.epoch >= self._session_began:
                        self.session_known.add(node)

    def _may_be_refused(self, reason, expected):
        """Say whether this is how a node refuses that does not reach the others, in a world where nodes do."""
        if reason == Reason.SERVER_UNAVAILABLE == expected:
            # No turn within its time, or an old home that does not answer.
            return True
        if self.contends and reason == Reason.SESSION_TAKEN_OVER:
            return True
        return self.world.readiness != AVAILABLE and reason == expected

    def _subscribe_again(self, connects):
        if self.connects == connects and self.state == ONLINE:
            missing = {name: qos for name, qos in self.wanted.items() if name not in self.subscribed}
            if missing:
                self._subscribe(missing)

    def _suback(self, record):
        filters = self._requests.pop(record.packet_id)
        if all(self._may_be_refused(reason, Reason.NOT_AUTHORIZED) for reason in record.reasons):
            self.world.count("SUBSCRIBEs refused")
            self.world.later(1.0, self._subscribe_again, self.connects)
            return
        self.world.check(list(record.reasons) == list(filters.values()), f"{self.name}: SUBACK {record.reasons!r}")
        for topic_filter, qos in filters.items():
            self._say(topic_filter)
            if topic_filter in self.wanted:
                self.subscribed[topic_filter] = qos
