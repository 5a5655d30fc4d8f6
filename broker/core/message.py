"""Messages and deliveries: what was published, and one subscriber's share of it.

A message is immutable and shared by everything that still has to do with it: queues, links, the
store. A delivery is one session's copy of the duty to hand it over. Neither knows who holds it.
"""

from typing import Final, final
from zlib import crc32

from mypy_extensions import mypyc_attr

ORIGIN_BYTES: Final = 16
# The fingerprint of a message of which nobody noted it.
UNKNOWN: Final = 0


@mypyc_attr(acyclic=True)
@final
class Message:
    """One application message, with the id that makes merges free of duplicates.

    `properties` are encoded MQTT 5 properties to pass on, without their length and without message
    expiry, topic alias and subscription identifiers, which differ per receiver. `expires_at` is in
    monotonic seconds, 0.0 for never. (`origin`, `number`) is the message id; QoS 0 has number 0.
    """

    __slots__ = (
        "expires_at",
        "number",
        "origin",
        "payload",
        "properties",
        "publisher",
        "qos",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        properties: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        expires_at: float = 0.0,
        publisher: str = "",
        origin: bytes = b"",
        number: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.properties = properties
        self.qos = qos
        self.retain = retain
        self.expires_at = expires_at
        self.publisher = publisher
        self.origin = origin
        self.number = number

    def key(self) -> bytes:
        """Return the store key: 16 bytes of origin, then the number as u64."""
        return self.origin + self.number.to_bytes(8, "big")

    def size(self) -> int:
        """Return the bytes that count against limits: topic, properties and payload."""
        return len(self.topic) + len(self.properties) + len(self.payload)


def fingerprint(message: Message) -> int:
    """Return what tells a client's message from another one under the same packet id: u32, never UNKNOWN."""
    return crc32(message.payload, crc32(message.topic)) or 1


def is_same(noted: int, message: Message) -> bool:
    """Say whether a message with this fingerprint may be the one that was noted."""
    return noted in (UNKNOWN, fingerprint(message))


@mypyc_attr(acyclic=True)
@final
class Delivery:
    """One session's copy of a message: `seq` is its place in the queue, `qos` what was granted.

    `packet_id` is 0 until it is sent; a delivery with a packet id is in flight, and `sent` says whether it was sent on
    the present connection, at `sent_at` (monotonic seconds); `fresh` says that it was never sent on any, although it
    has a packet id: its listener held it back. `released` is the second half of QoS 2: the client has the message,
    which is forgotten here, and owes a PUBCOMP. `stored` says that a queue record of it exists. `shared` is the shared
    subscription that it came by, b"" for none. `retain` is the flag to send, `identifiers` are the subscription
    identifiers as encoded properties, `size` the bytes that count against limits.
    """

    __slots__ = (
        "fresh",
        "identifiers",
        "message",
        "packet_id",
        "qos",
        "released",
        "retain",
        "sent",
        "sent_at",
        "seq",
        "shared",
        "size",
        "stored",
    )

    def __init__(self, seq: int, message: Message, qos: int, retain: bool = False, identifiers: bytes = b"") -> None:
        self.seq = seq
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        self.shared: bytes = b""
        self.size: int = message.size()
        self.packet_id: int = 0
        self.sent = False
        self.sent_at: float = 0.0
        self.fresh = False
        self.released = False
        self.stored = False


# What a released delivery holds instead of its message.
NO_MESSAGE: Final = Message(b"", b"")
