"""What a virtual client receives: it acknowledges in order, sometimes late, and remembers the packet ids of QoS 2.

A QoS 2 PUBLISH under an id that is not released yet is the same message once more, whatever its flags say; it is
answered again and not received again. The ids outlive connections, as the session does.
"""

from collections import Counter, defaultdict, deque

from broker.core.events import PubackReceived, PubcompReceived, PubrecReceived
from broker.core.records import DUP_FLAG

QOS_MASK = 3


class Arrival:
    """One PUBLISH as it came, to the how manieth session; `again` says that it was sent before."""

    __slots__ = ("again", "at", "payload", "qos", "session")

    def __init__(self, payload, qos, at, again, session):
        self.payload = payload
        self.qos = qos
        self.at = at
        self.again = again
        self.session = session


class Inbox:
    """The receiving half of a client."""

    def __init__(self, client):
        self.client = client
        self.world = client.world
        # How long the client takes at most for an acknowledgement.
        self.ack_delay_s = 0.0
        # What is not an evident repetition, by payload, and everything in the order of arrival.
        self.copies = Counter()
        # Those of them that came from a node that is to leave, and to which of the client's sessions each came.
        self.from_leaver = Counter()
        self.sessions = defaultdict(set)
        self.arrivals = []
        # Packet id -> payload of QoS 2 that is not released.
        self.received = {}
        # The same, of a session that may have ended.
        self.doubtful = {}
        # How many sessions ended, by the word of a node.
        self._sessions = 0
        self._reading = True
        self._unread = deque()
        self._ack_at = 0.0

    def connection_ended(self):
        """What was not read is lost."""
        self._reading = True
        self._unread.clear()

    def session_ended(self):
        """Nothing of the old session counts any more."""
        self._sessions += 1
        self.received.clear()
        self.doubtful.clear()

    def session_in_doubt(self):
        """Its end is asked for: until the answer is here it may go on all the same."""
        self.doubtful.update(self.received)
        self.received.clear()

    def hold_back(self, seconds):
        """Acknowledge nothing for a while, as `ack_delay_s` can't promise."""
        self._ack_at = max(self._ack_at, self.world.now + seconds)

    def stop_reading(self):
        """Leave everything unread; False if that is so already."""
        was_reading, self._reading = self._reading, False
        return was_reading

    def read_on(self):
        """Read what came meanwhile; False if there was no pause."""
        if self._reading:
            return False
        self._reading = True
        unread, self._unread = self._unread, deque()
        for arguments in unread:
            self._delivered(*arguments)
        return True

    def deliver(self, record, packet_id, flags):
        """A PUBLISH came."""
        arguments = (record.payload, record.topic, packet_id, flags, self.world.now)
        if self._reading:
            self._delivered(*arguments)
        else:
            self._unread.append(arguments)

    def pubrel(self, packet_id):
        """A PUBREL came: the id may be used again."""
        self.received.pop(packet_id, None)
        self.doubtful.pop(packet_id, None)
        self._later(PubcompReceived, packet_id)

    def _delivered(self, payload, topic, packet_id, flags, at):
        world = self.world
        client = self.client
        message = client.ledger.published.get(payload)
        world.check(message is not None and message.topic == topic, f"{client.name} received what nobody published")
        qos = flags & QOS_MASK
        world.check(qos <= message.qos, f"{client.name}: QoS {qos} of a message of QoS {message.qos}")
        world.count("deliveries")
        world.note(f"{client.name} receives {message.number} as {packet_id} flags {flags}")
        again = flags & DUP_FLAG != 0
        repeated = again
        if qos == 2:
            known = self.received.get(packet_id)
            if known not in (None, payload) and world.revived[client.client_id]:
                # Nobody could be asked which ids the old home had in use: chance alone keeps the new ones apart.
                known = None
            elif known is not None and not world.power_loss:
                world.check(known == payload, f"{client.name}: id {packet_id} is used anew before its release")
            repeated = known is not None or self.doubtful.get(packet_id) == payload
            self.received[packet_id] = payload
        if not repeated:
            self.copies[payload] += 1
            self.sessions[payload].add(client.sessions)
            if client.home is world.leaver:
                self.from_leaver[payload] += 1
        if repeated or self.copies[payload] > 1:
            world.count("duplicates")
        self.arrivals.append(Arrival(payload, qos, at, again, self._sessions))
        if client.shares:
            world.count("shared deliveries")
            message.takers.add((client.name, client.sessions))
        if qos == 1:
            self._later(PubackReceived, packet_id, message)
        elif qos == 2:
            self._later(PubrecReceived, packet_id, message)

    def _later(self, event, packet_id, message=None):
        world = self.world
        self._ack_at = max(self._ack_at, world.now + self.ack_delay_s * world.rng.random())
        world.at(self._ack_at, self._acknowledge, self.client.connects, event, packet_id, message)

    def _acknowledge(self, connects, event, packet_id, message):
        if self.client.connects == connects and self.client.is_online():
            self.client.send(event, packet_id)
            if message is not None:
                message.finishers.add(self.client.name)
