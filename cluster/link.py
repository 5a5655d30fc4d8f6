"""Links: the stream of messages from one node to another, numbered, acknowledged, in order.

Owns both ends: OutgoingLink at the sender, IncomingLink at the receiver. They know nothing of sockets, of what a
message means or of who waits for it: a ticket is carried and given back.

Theory of operation
-------------------
A stream belongs to (sender store_id, receiver store_id). Its messages are numbered from 1; the receiver's position is
the number of the last one that it has. The receiver's store remembers the position of the last message with QoS 1 or
2, in the same batch as that message. Messages are kept packed, in batches that are one frame each:

    open batch --sealed--> waiting --sent, within the window--> sent --acknowledged--> gone

Each control connection of the sender opens a session: its Hello carries the session's number, the receiver answers
with its position, and the sender goes on behind it with a frame marked START. Until then the receiver takes nothing,
and it never takes a frame of another session: what an older connection still holds can't mix in.

- A hole (first > position + 1) without START means that frames were lost on the way, which a full socket may do. The
  receiver answers with its position again and the sender starts over from there.
- Lost at the end of the stream: a sender without progress sends an empty frame with its next number, which shows the
  hole. It costs nothing when the receiver is merely slow.
- A sender that restarted has nothing in memory; it continues the numbers behind the receiver's position.
- A receiver that went back (power loss) may ask for what is gone here. START then names the first that is left and the
  receiver jumps: a gap if something with QoS > 0 is missing, counted on both sides, never waited for.

Bounds: WINDOW_BYTES_MAX and FRAMES_IN_FLIGHT_MAX sent and unacknowledged, MEMORY_BYTES_MAX kept. Beyond it what
nobody waits for is dropped and counted. What somebody waits for is asked about before (`has_room`) and then taken: the
messages of one turn, which all saw the same room, may go over it. A single larger message passes when nothing else is
there.

Invariants: acked < first of every batch, in order, without holes; `bytes_pending` is what all batches hold.
"""

from collections import deque
from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core.effects import Ticket
from broker.core.message import Message
from cluster.forwards import MESSAGE_OVERHEAD_BYTES, Forwards, pack_forwards, pack_message
from cluster.frames import FRAME_BYTES_MAX

# Returned by the receiver's acknowledgements; 8 MiB is 0.1 s of a 640 Mbit/s stream.
WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
MEMORY_BYTES_MAX: Final = 64 * 1024 * 1024

# The transport's socket holds frames, not bytes: at low rates a frame is one small message. Beyond this the open batch
# fills instead.
FRAMES_IN_FLIGHT_MAX: Final = 1024

# Room for the header, so that a batch with it stays within a frame.
_BODY_BYTES_MAX: Final = FRAME_BYTES_MAX - 64

# Without progress for so long the sender asks, by an empty frame, whether something was lost.
PROBE_AFTER_S: Final = 2.0


@final
class Batch:
    """Messages that travel in one frame."""

    __slots__ = ("body", "count", "durable", "first", "packed_at", "tickets")

    def __init__(
        self, first: int, count: int, body: bytes, tickets: list[Ticket], durable: bool, packed_at: float
    ) -> None:
        self.first = first
        self.count = count
        self.body = body
        self.tickets = tickets
        # Whether a message with QoS > 0 is in it.
        self.durable = durable
        self.packed_at = packed_at

    def last(self) -> int:
        """Return the number of the last message."""
        return self.first + self.count - 1


@final
class OutgoingLink:
    """The sender's end of a stream."""

    def __init__(self, sender: bytes) -> None:
        self._sender = sender
        self.session = 0
        self.open = False
        self.acked = 0
        self.bytes_pending = 0
        self.bytes_in_flight = 0
        self.dropped_memory = 0
        self.dropped_not_running = 0
        self.refused = 0
        self.gaps = 0
        self.resent = 0
        self._next_number = 1
        self._highest_sent = 0
        self._acked_durable = 0
        self._ever_open = False
        self._start = False
        self._gap = False
        self._progress_at = 0.0
        self._waiting: deque[Batch] = deque()
        self._sent: deque[Batch] = deque()
        self._writer = BytesWriter()
        self._count = 0
        self._tickets: list[Ticket] = []
        self._durable = False
        self._packed_at = 0.0
        self._publisher = ""
        self._publisher_utf8 = b""

    def has_room(self, message: Message) -> bool:
        """Say whether a message that somebody waits for is taken; false is counted as a refusal."""
        size: i64 = MESSAGE_OVERHEAD_BYTES + message.size() + len(message.publisher.encode())
        if self.bytes_pending and self.bytes_pending + size > MEMORY_BYTES_MAX:
            self.refused += 1
            return False
        return True

    def forward(self, message: Message, ticket: Ticket | None, running: bool, now: float) -> None:
        """Append a message; one with a ticket in any case, as `has_room` was asked."""
        if not running and message.qos == 0:
            # Nothing is kept in memory for a peer that is not there and that nobody waits for.
            self.dropped_not_running += 1
            return
        if message.publisher is not self._publisher:
            self._publisher = message.publisher
            self._publisher_utf8 = message.publisher.encode()
        size: i64 = MESSAGE_OVERHEAD_BYTES + message.size() + len(self._publisher_utf8)
        if ticket is None and self.bytes_pending and self.bytes_pending + size > MEMORY_BYTES_MAX:
            self.dropped_memory += 1
            return
        before: i64 = len(self._writer)
        if before + size > _BODY_BYTES_MAX:
            self._seal()
            before = 0
        if self._count == 0:
            self._packed_at = now
        pack_message(self._writer, message, self._publisher_utf8, self._sender, self._packed_at)
        self._count += 1
        self.bytes_pending += len(self._writer) - before
        if message.qos:
            self._durable = True
        if ticket is not None:
            self._tickets.append(ticket)

    def connected(self, session: int) -> None:
        """A new session begins; nothing is sent until `opened`."""
        self.session = session
        self.open = False

    def disconnected(self) -> None:
        """The connection is down; what was sent is sent again in the next session."""
        self.open = False

    def opened(self, session: int, position: int, now: float) -> list[Ticket]:
        """The receiver said its position: go on behind it. Return the tickets that this acknowledges."""
        if session != self.session:
            return []
        self._seal()
        self.resent += len(self._sent)
        while self._sent:
            self._waiting.appendleft(self._sent.pop())
        self.bytes_in_flight = 0
        tickets: list[Ticket] = []
        if not self._ever_open or position > self._highest_sent:
            # After a start the numbers continue where the receiver stands. A receiver that has more than was ever
            # sent knows an older life of this store; its numbers are taken and can't be used again.
            self._renumber(position)
        else:
            tickets = self._trim(self._waiting, position)
        self._ever_open = True
        self._gap = position < self._acked_durable
        if self._gap:
            self.gaps += 1
            self._acked_durable = position
        self.open = True
        self._start = True
        self._progress_at = now
        return tickets

    def acknowledged(self, session: int, number: int, now: float) -> list[Ticket]:
        """The receiver has everything up to `number`. Return the tickets of what it acknowledged."""
        if session != self.session or not self.open or number <= self.acked:
            return []
        if number >= self._first_waiting():
            # Nobody can acknowledge what was not sent; the peer's fault is not ours to crash for.
            return []
        self._progress_at = now
        size = self.bytes_pending
        tickets = self._trim(self._sent, number)
        self.bytes_in_flight -= size - self.bytes_pending
        return tickets

    def take_frames(self, now: float) -> list[bytes]:
        """Return the frames that the window lets go now."""
        if not self.open:
            return []
        frames: list[bytes] = []
        if self._count and self.bytes_in_flight < WINDOW_BYTES_MAX and len(self._sent) < FRAMES_IN_FLIGHT_MAX:
            self._seal()
        while self._waiting and len(self._sent) < FRAMES_IN_FLIGHT_MAX:
            batch = self._waiting[0]
            if self.bytes_in_flight and self.bytes_in_flight + len(batch.body) > WINDOW_BYTES_MAX:
                break
            self._waiting.popleft()
            if not self._sent:
                self._progress_at = now
            self._sent.append(batch)
            self._highest_sent = max(self._highest_sent, batch.last())
            self.bytes_in_flight += len(batch.body)
            age_ms = int(max(0.0, min((now - batch.packed_at) * 1000.0, 4294967295.0)))
            frames.append(
                pack_forwards(self.session, batch.first, batch.count, age_ms, self._start, self._gap, batch.body)
            )
            self._start = False
            self._gap = False
        if self._start:
            # Nothing to send: an empty frame still tells the receiver where the stream goes on.
            frames.append(pack_forwards(self.session, self._first_waiting(), 0, 0, True, self._gap, b""))
            self._start = False
            self._gap = False
        return frames

    def take_probe(self, now: float) -> bytes:
        """Return an empty frame if nothing was acknowledged for too long, else b""."""
        if not self.open or not self._sent or now - self._progress_at < PROBE_AFTER_S:
            return b""
        self._progress_at = now
        return pack_forwards(self.session, self._first_waiting(), 0, 0, False, False, b"")

    def take_tickets(self) -> list[Ticket]:
        """Give back the tickets of everything pending, which is dropped: the peer is no member any more."""
        self._seal()
        tickets: list[Ticket] = []
        for batch in list(self._sent) + list(self._waiting):
            tickets.extend(batch.tickets)
        self._sent.clear()
        self._waiting.clear()
        self.bytes_pending = 0
        self.bytes_in_flight = 0
        self.acked = self._next_number - 1
        return tickets

    def validate(self) -> None:
        """Check the invariants."""
        self._seal()
        number = self.acked + 1
        size = 0
        for batch in list(self._sent) + list(self._waiting):
            # A batch acknowledged in part is kept as a whole.
            assert batch.first == number or (number == self.acked + 1 and batch.first <= number <= batch.last())
            number = batch.last() + 1
            size += len(batch.body)
        assert number == self._next_number
        assert size == self.bytes_pending
        assert sum(len(batch.body) for batch in self._sent) == self.bytes_in_flight

    def _first_waiting(self) -> int:
        """Return the number behind everything sent; nothing waits unsealed ahead of it."""
        return self._waiting[0].first if self._waiting else self._next_number

    def _seal(self) -> None:
        if self._count == 0:
            return
        body = self._writer.getvalue()
        self._waiting.append(Batch(self._next_number, self._count, body, self._tickets, self._durable, self._packed_at))
        self._next_number += self._count
        self._writer = BytesWriter()
        self._count = 0
        self._tickets = []
        self._durable = False

    def _trim(self, batches: deque[Batch], number: int) -> list[Ticket]:
        tickets: list[Ticket] = []
        while batches and batches[0].last() <= number:
            batch = batches.popleft()
            self.bytes_pending -= len(batch.body)
            if batch.durable:
                self._acked_durable = batch.last()
            if batch.tickets:
                tickets.extend(batch.tickets)
        if number > self.acked:
            self.acked = number
        return tickets

    def _renumber(self, position: int) -> None:
        number = position + 1
        for batch in list(self._sent) + list(self._waiting):
            batch.first = number
            number += batch.count
        self._next_number = number
        self.acked = position
        self._highest_sent = position
        self._acked_durable = 0


@final
class IncomingLink:
    """The receiver's end of a stream. `position` is the number of the last message it has."""

    def __init__(self, sender: bytes, position: int) -> None:
        self.sender = sender
        self.position = position
        self.session = 0
        # Nothing is taken until a frame with START of the current session.
        self.waiting_for_start = True
        # What the caller owes: an acknowledgement, the position in the write batch, the position to the sender.
        self.ack_due = False
        self.commit_due = False
        self.position_due = False
        self.gaps = 0
        self.duplicates = 0
        self.stale = 0
        self.messages = 0

    def connected(self, session: int) -> None:
        """The sender's Hello opened a session; it is due to hear the position."""
        if session != self.session:
            self.session = session
            self.waiting_for_start = True
        self.position_due = True

    def receive(self, forwards: Forwards, now: float) -> list[Message]:
        """Take a frame; return the messages that are new, in order. FrameError if they can't be read."""
        if forwards.session != self.session:
            self.stale += 1
            return []
        first = forwards.first
        if not forwards.start:
            if self.waiting_for_start:
                self.stale += 1
                return []
            if first > self.position + 1:
                self.waiting_for_start = True
                self.position_due = True
                return []
        # What can't be read would be as unreadable when it is sent again at once. It is asked for again, like a START
        # that was lost, no more often than once a heartbeat.
        self.waiting_for_start = True
        messages = forwards.messages(self.sender, now)
        self.waiting_for_start = False
        if first > self.position + 1:
            if forwards.gap:
                self.gaps += 1
            self.position = first - 1
            self.commit_due = True
        self.ack_due = True
        known = self.position + 1 - first
        if known > 0:
            self.duplicates += min(known, len(messages))
            messages = messages[known:]
        if messages:
            self.position += len(messages)
            self.messages += len(messages)
            for message in messages:
                if message.qos:
                    self.commit_due = True
                    break
        return messages
