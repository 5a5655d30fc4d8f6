"""What a virtual client publishes: its PUBLISHes under way, with the packet ids that outlive its connections.

It sends again on the next connection, under the same ids and in the same order, what was not acknowledged: a PUBLISH
until its PUBACK or PUBREC, a PUBREL from the PUBREC to the PUBCOMP. It checks that answers come in the order of what
they answer.
"""

from collections import deque

from broker.core.events import PublishReceived, PubrelReceived
from broker.core.message import Message

REFUSED = 0x80
# A publisher has at most so many PUBLISHes under way, as a client with a Receive Maximum does.
UNACKNOWLEDGED_MAX = 12


class Outgoing:
    """One PUBLISH under way; `received` from the PUBREC on."""

    __slots__ = ("message", "received")

    def __init__(self, message):
        self.message = message
        self.received = False


class Outbox:
    """The publishing half of a client."""

    def __init__(self, client):
        self.client = client
        self.world = client.world
        self.backlog = deque()
        # By packet id, in the order of the first sending.
        self.under_way = {}
        # How long the client takes at most between a PUBREC and its PUBREL.
        self.release_delay_s = 0.0
        self._expected_acks = deque()
        self._expected_completions = deque()
        self._release_at = 0.0

    def is_empty(self):
        """Say whether everything is published and settled."""
        return not self.backlog and not self.under_way

    def add(self, topic, qos, padding_bytes, retain=False, deletes=False):
        """Publish a new message as soon as the window and the connection allow."""
        self.backlog.append((topic, qos, padding_bytes, retain, deletes))
        self.flush()

    def connection_ended(self):
        """What was sent is not answered any more."""
        self._expected_acks.clear()
        self._expected_completions.clear()

    def connected(self, session_present):
        """A connection stands: send again what has to be."""
        world = self.world
        client = self.client
        for packet_id, outgoing in list(self.under_way.items()):
            if not outgoing.received:
                world.count("publishes resent")
                self._send(packet_id, outgoing.message)
            elif session_present:
                world.count("PUBRELs resent")
                self._send_pubrel(packet_id)
            else:
                # Nobody remembers the id.
                del self.under_way[packet_id]
        assert client.is_online()
        self.flush()

    def flush(self):
        """Send of the backlog what the window allows."""
        client = self.client
        while self.backlog and client.is_online() and len(self.under_way) < UNACKNOWLEDGED_MAX:
            topic, qos, padding_bytes, retain, deletes = self.backlog.popleft()
            message = client.ledger.add(client.name, topic, qos, padding_bytes)
            message.retain = retain
            message.deletes = deletes
            if not retain and self.world.rng.random() < 0.3:
                message.expiry_s = 7200.0
            self.world.count(f"publishes QoS {qos}")
            packet_id = 0
            if qos:
                packet_id = client.next_id()
                self.under_way[packet_id] = Outgoing(message)
            self._send(packet_id, message)

    def _send(self, packet_id, message):
        self.world.promises(self.client, message)
        message.sent_at = (message.sent_at[0] or self.world.now, self.world.now)
        message.sends += 1
        topic = message.topic
        self.world.note(f"{self.client.name} publishes {message.number} {topic.decode()} QoS {message.qos}")
        if packet_id:
            self._expected_acks.append(packet_id)
        payload = b"" if message.deletes else message.payload
        # What is to last for hours lasts, whatever the clocks of the nodes show on which it waits.
        expires_at = self.client.home.clocks.monotonic() + message.expiry_s if message.expiry_s else 0.0
        sent = Message(topic, payload, b"", message.qos, message.retain, expires_at)
        self.client.send(PublishReceived, packet_id, sent)

    def puback(self, packet_id, reason):
        """A PUBACK came."""
        outgoing = self._answered(packet_id, reason, 1)
        assert outgoing is not None
        del self.under_way[packet_id]
        self.flush()

    def pubrec(self, packet_id, reason):
        """A PUBREC came: the message is the broker's."""
        outgoing = self._answered(packet_id, reason, 2)
        if outgoing.message.refused:
            del self.under_way[packet_id]
            self.flush()
            return
        outgoing.received = True
        world = self.world
        self._release_at = max(self._release_at, world.now + self.release_delay_s * world.rng.random())
        world.at(self._release_at, self._release, self.client.connects, packet_id)

    def pubcomp(self, packet_id):
        """A PUBCOMP came: the id is free."""
        expected = self._expected_completions.popleft()
        self.world.check(expected == packet_id, f"{self.client.name}: PUBCOMP {packet_id} instead of {expected}")
        del self.under_way[packet_id]
        self.flush()

    def _answered(self, packet_id, reason, qos):
        world = self.world
        client = self.client
        name = "PUBACK" if qos == 1 else "PUBREC"
        expected = self._expected_acks.popleft() if self._expected_acks else 0
        # [MQTT-4.6.0-2] [MQTT-4.6.0-3]
        world.check(expected == packet_id, f"{client.name}: {name} {packet_id} instead of {expected}")
        outgoing = self.under_way[packet_id]
        message = outgoing.message
        world.check(message.qos == qos, f"{client.name}: {name} for a message of QoS {message.qos}")
        if reason < REFUSED:
            message.acked = True
            message.acked_at = world.now
            world.count("acks")
        else:
            message.refused = True
            world.count("refusals")
        world.note(f"{client.name} has {message.number} acknowledged with {reason:#x}")
        return outgoing

    def _release(self, connects, packet_id):
        if self.client.connects == connects and self.client.is_online():
            self._send_pubrel(packet_id)

    def _send_pubrel(self, packet_id):
        self._expected_completions.append(packet_id)
        self.client.send(PubrelReceived, packet_id)
