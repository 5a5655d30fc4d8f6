"""The ledger: every message that clients published or left as wills, whom it was promised to, and who took it.

It judges nothing; `checkers` does. A payload is unique, so it stands for its message.
"""

SHARE_PREFIX = b"$share/"


class Published:
    """One message: where and how often it was sent, to whom it was promised, and who took it and acknowledged it."""

    __slots__ = (
        "acked",
        "acked_at",
        "deletes",
        "expiry_s",
        "finishers",
        "groups",
        "home",
        "number",
        "payload",
        "promised",
        "publisher",
        "qos",
        "refused",
        "retain",
        "sends",
        "sent_at",
        "takers",
        "topic",
        "will",
    )

    def __init__(self, publisher, number, topic, qos, payload, will=False):
        self.publisher = publisher
        self.number = number
        self.topic = topic
        self.qos = qos
        self.payload = payload
        self.will = will
        # With RETAIN; `deletes` then, and has no payload on the wire.
        self.retain = False
        self.deletes = False
        # How long it lasts, 0 for ever; longer than any history.
        self.expiry_s = 0.0
        self.sends = 0
        # When it was sent first, and last.
        self.sent_at = (0.0, 0.0)
        self.acked = False
        self.acked_at = 0.0
        self.refused = False
        self.promised = set()
        # The node where its publisher sent it last; None for a will.
        self.home = None
        # Shared filters of that node.
        self.groups = set()
        # Of shared groups: (member, its how manieth session).
        self.takers = set()
        # Who acknowledged it; a PUBREC is as good.
        self.finishers = set()


class LeftWill:
    """The will of one connection and what became of that: times are the world's, 0.0 for not yet."""

    __slots__ = (
        "asked_at",
        "back_asked_at",
        "back_at",
        "client",
        "connected",
        "delay_s",
        "ended_at",
        "evicted",
        "farewell",
        "farewell_arrived",
        "home",
        "life",
        "message",
        "taken_over",
        "told_at",
    )

    def __init__(self, client, message, delay_s):
        self.client = client
        self.home = client.home
        self.message = message
        self.delay_s = delay_s
        self.life = client.home.life
        self.asked_at = client.world.now
        self.connected = False
        self.ended_at = 0.0
        # When the node was told of the end at the latest.
        self.told_at = 0.0
        # A proper DISCONNECT, and whether the node lived on long enough to be sure that it took it.
        self.farewell = False
        self.farewell_arrived = False
        # Whether the node closed the connection for another session of the client id.
        self.taken_over = False
        # Whether it closed it since it leaves.
        self.evicted = False
        # When the client asked for its next connection, and when it had one.
        self.back_asked_at = 0.0
        self.back_at = 0.0


class Ledger:
    """Every message by its payload."""

    def __init__(self):
        self.published = {}
        self.wills = []

    def add(self, publisher, topic, qos, padding_bytes=0):
        """Note a new message, with a payload that is longer by some bytes."""
        number = len(self.published) + 1
        payload = b"%d" % number + b"." * padding_bytes
        message = Published(publisher, number, topic, qos, payload)
        self.published[payload] = message
        return message

    def add_will(self, client, topic, qos, delay_s):
        """Note the will of a connection that a client asks for."""
        number = len(self.published) + 1
        message = Published(client.name, number, topic, qos, b"will %d" % number, True)
        message.sends = 1
        self.published[message.payload] = message
        left = LeftWill(client, message, delay_s)
        self.wills.append(left)
        return left


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


def shared_part(topic_filter):
    """Return the filter of $share/name/filter, None for a plain filter."""
    return topic_filter.split(b"/", 2)[2] if topic_filter.startswith(SHARE_PREFIX) else None
