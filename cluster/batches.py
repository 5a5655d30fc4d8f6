"""What an outgoing link holds: messages in memory, packed as they travel, and messages that are on disk.

Values, and what is in them; `link` says what becomes of them.
"""

from typing import final

from librt.strings import BytesWriter

from broker.core.effects import Ticket
from broker.core.message import Message
from cluster.addressing import NO_ADDRESS, Addressed, pack_address
from cluster.forwards import Forwards, Mark, pack_forwards, pack_mark, pack_message


@final
class Batch:
    """Messages that travel in one frame."""

    __slots__ = ("body", "count", "durable", "first", "packed_at", "stored", "stored_bytes", "tickets")

    def __init__(
        self,
        first: int,
        count: int,
        body: bytes,
        tickets: list[Ticket],
        durable: bool,
        packed_at: float,
        stored: list[int],
        stored_bytes: int,
    ) -> None:
        self.first = first
        self.count = count
        self.body = body
        self.tickets = tickets
        # Whether something is in it that the receiver stores: a message with QoS > 0, or a durable mark.
        self.durable = durable
        self.packed_at = packed_at
        # The numbers of those of its messages that are in the outbox, too, and what they take there.
        self.stored = stored
        self.stored_bytes = stored_bytes

    def last(self) -> int:
        """Return the number of the last message."""
        return self.first + self.count - 1


@final
class Run:
    """Messages that are in the outbox alone. Some numbers may be missing, the first included."""

    __slots__ = ("bytes", "count", "first", "last")

    def __init__(self, first: int, last: int, count: int, size: int) -> None:
        self.first = first
        self.last = last
        self.count = count
        self.bytes = size


def messages_of(batch: Batch, sender: bytes) -> list[tuple[int, Message, bytes]]:
    """Return (number, message, address) of what is in a batch, marks left out."""
    found = []
    for place, each in enumerate(_unpack(batch, sender)):
        if not isinstance(each, Mark):
            found.append((batch.first + place, *_parts(each)))
    return found


def repack(batch: Batch, sender: bytes, addresses: dict[int, bytes | None]) -> int:
    """Give these numbers other addresses, None for what is taken out; return by how many bytes the batch grew.

    A mark that says nothing takes the place of what was taken out.
    """
    writer = BytesWriter()
    for place, each in enumerate(_unpack(batch, sender)):
        if isinstance(each, Mark):
            pack_mark(writer, each)
            continue
        message, known = _parts(each)
        address = addresses.get(batch.first + place, known)
        if address is None:
            pack_mark(writer, Mark(b"", False, sender))
        else:
            pack_message(writer, message, message.publisher.encode(), sender, batch.packed_at, address)
    body = writer.getvalue()
    more = len(body) - len(batch.body)
    batch.body = body
    return more


def _unpack(batch: Batch, sender: bytes) -> list[Message | Addressed | Mark]:
    frame = pack_forwards(0, 1, batch.count, 0, False, False, batch.body)
    return Forwards(frame).messages(sender, batch.packed_at)


def _parts(each: Message | Addressed) -> tuple[Message, bytes]:
    if isinstance(each, Addressed):
        return each.message, pack_address(each.groups, each.plain, each.waited, each.stood)
    return each, NO_ADDRESS
