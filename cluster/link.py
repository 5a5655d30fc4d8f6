"""Links: the stream of messages from one node to another, numbered, acknowledged, in order.

Owns the sender's end; `incoming_link` is the receiver's. They know nothing of sockets, of what a message means or of
who waits for it: a ticket is carried and given back.

Theory of operation
-------------------
A stream belongs to (sender store_id, receiver store_id). Its messages are numbered; the receiver's position is the
number of the last one that it has. The receiver's store remembers the position of the last message with QoS 1 or 2, in
the same batch as that message. Messages are kept packed, in batches that are one frame each:

    open batch --sealed--> waiting --sent, within the window--> sent --acknowledged--> gone
    outbox, behind what waits --read, as the window opens--> waiting

Each control connection of the sender opens a session: its Hello carries the session's number, the receiver answers
with its position, and the sender goes on behind it with a frame marked START. Until then the receiver takes nothing,
and it never takes a frame of another session: what an older connection still holds can't mix in.

- A hole (a frame that goes on from a number that the receiver does not have) means that frames were lost on the way,
  which a full socket may do. The receiver answers with its position again and the sender starts over from there.
- Lost at the end of the stream: a sender without progress sends an empty frame behind its last number, which shows the
  hole. It costs nothing when the receiver is merely slow.
- A sender that restarted has its outbox and nothing in memory. It numbers on from `first_number`, which grows with
  every start and is beyond what any life before can have sent; the numbers between are never used, and each frame says
  which number it goes on from.
- A receiver that went back (power loss) may ask for what is gone here. START then names the first that is left and the
  receiver jumps: a gap if something with QoS > 0 is missing, counted on both sides, never waited for.

What survives this node is in the outbox. A message that nobody waits for and that the peer has to have is written there
when it comes, and sent as any other; one with a ticket stays in memory until the peer acknowledges it. When that takes
too long (`is_spill_due`), or memory is full, or the peer does not run, the link spills: everything unacknowledged with
QoS > 0 goes to the outbox, in its order, and the tickets are released. From then on whatever has QoS > 0 goes to the
outbox alone and is read back as the window opens, until nothing is left there that is not in memory. An earlier return
to memory would let a publisher's messages change places: one in memory may be lost with this node and come again behind
one that was on disk. Messages with QoS 0 are never written, and may be overtaken by those that are. Marks stay in
memory, in their place.

A message may be for shared groups of the peer, which alone of all nodes are to have it (its address says so). When the
peer dies before it has acknowledged that, others may have it: `begin_reclaim` makes a way through the outbox from its
head on, and `reclaim` takes back what somebody else can have. Whatever is for a group is in the outbox by then, as it
has to be had. What was taken back leaves nothing in the outbox, in memory a mark that says nothing; if the message was
for others of the peer as well, it stays, without those groups. A peer that had it all the same has it twice.

What is for sessions of the peer a donor takes back by `withdraw`, when it knows what the peer has, to give it to them
where they are by now (see `donor`). It sends nothing before.

Bounds: WINDOW_BYTES_MAX and FRAMES_IN_FLIGHT_MAX sent and unacknowledged, MEMORY_BYTES_MAX kept in memory. Beyond it
what nobody has to have is dropped and counted. The outbox has its own bound, which is asked about before (`has_room`):
the messages of one turn, which all saw the same room, may go over it, and so may what is spilled.

Invariants: acked < first of every batch, in ascending order; a number is missing only where a life of the sender ended
or a message was taken back;
`bytes_pending` is what all batches hold in memory; the outbox holds what batches and runs say that it does.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64

from broker.core.effects import Ticket
from broker.core.message import Message
from broker.core.storage import StorageError
from cluster.addressing import NO_ADDRESS, Addressed, pack_address
from cluster.batches import Batch, Run, messages_of, repack
from cluster.forwards import MESSAGE_OVERHEAD_BYTES, Mark, pack_forwards, pack_mark, pack_message
from cluster.frames import FRAME_BYTES_MAX
from cluster.outbox import Outbox, Stored

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

# Numbers of an incarnation: 2^40 messages each, as of message ids.
_INCARNATION_SHIFT: Final = 40


def first_number(incarnation: int) -> int:
    """Return the first number of this life of the sender, beyond those of every earlier one."""
    return (incarnation << _INCARNATION_SHIFT) + 1


@final
class OutgoingLink:
    """The sender's end of a stream. `released` are tickets that the outbox takes over, once it is committed."""

    def __init__(self, sender: bytes, outbox: Outbox, first: int = 1, spill_after_s: float = 0.2) -> None:
        """`first` is `first_number` of this life of the sender."""
        self.outbox = outbox
        self._sender = sender
        self._spill_after_s = spill_after_s
        self.session = 0
        self.open = False
        # Nothing is sent, though it is open.
        self.held = False
        self.acked = first - 1
        # The number of the last mark of this life, 0 for none.
        self.marked = 0
        # In memory, on the way, and in the outbox alone.
        self.bytes_pending = 0
        self.bytes_in_flight = 0
        self.bytes_behind = 0
        self.released: list[Ticket] = []
        # The window has room for what is in the outbox: `load` has something to do.
        self.wants_turn = False
        self.dropped_memory = 0
        self.dropped_not_running = 0
        self.refused = 0
        self.gaps = 0
        self.resent = 0
        self.spills = 0
        self._next_number = first
        self._spilling = False
        self._acked_durable = 0
        self._start = False
        self._gap = False
        self._progress_at = 0.0
        # When tickets were acknowledged last, or began to wait; and how many wait.
        self._acked_at = 0.0
        self._tickets_waiting = 0
        self._sent: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._behind: deque[Batch | Run] = deque()
        self._writer = BytesWriter()
        self._count = 0
        self._tickets: list[Ticket] = []
        self._durable = False
        self._packed_at = 0.0
        self._stored: list[int] = []
        self._stored_bytes = 0
        self._publisher = ""
        self._publisher_utf8 = b""
        if outbox.messages:
            self._behind.append(Run(outbox.first, outbox.last, outbox.messages, outbox.bytes))
            self.bytes_behind = outbox.bytes
            self.acked = outbox.first - 1
            self._next_number = max(first, outbox.last + 1)
            self._spilling = True
        # What earlier lives sent nobody knows any more.
        self._highest_sent = self._next_number - 1
        self._last_sent = self._highest_sent
        # The receiver may have something of what is in the outbox alone.
        self._trim_due = False
        # Where the way through the outbox stands that takes back what is for groups; 0 for none.
        self._reclaim_from = 0
        # The same of the one that takes back what is for sessions.
        self._withdraw_from = 0

    def has_room(self, message: Message, running: bool) -> bool:
        """Say whether a message that the peer has to have is taken; false is counted, each time it is asked."""
        size: i64 = MESSAGE_OVERHEAD_BYTES + message.size() + len(message.publisher.encode())
        is_over = self.bytes_pending and self.bytes_pending + size > MEMORY_BYTES_MAX
        if running and message.qos == 1 and not self._spilling and not is_over:
            return True
        if self.outbox.is_full(int(size)):
            self.refused += 1
            return False
        return True

    def forward(
        self,
        message: Message,
        ticket: Ticket | None,
        persistent: bool,
        running: bool,
        now: float,
        address: bytes = NO_ADDRESS,
    ) -> None:
        """Append a message. `persistent` says that the peer has to have it: `has_room` was asked, or nobody can.

        What has an address (see `addressing`) is persistent.
        """
        qos: i64 = message.qos
        if not running:
            if qos == 0 or not persistent:
                # Nothing is kept for a peer that is not there and need not have it.
                self.dropped_not_running += 1
                return
            self.spill()
        if message.publisher is not self._publisher:
            self._publisher = message.publisher
            self._publisher_utf8 = message.publisher.encode()
        size: i64 = MESSAGE_OVERHEAD_BYTES + message.size() + len(self._publisher_utf8) + len(address)
        if self.bytes_pending and self.bytes_pending + size > MEMORY_BYTES_MAX:
            if qos == 0 or not persistent:
                self.dropped_memory += 1
                return
            self.spill()
        if self._spilling and qos:
            if not persistent and self.outbox.is_full(int(size)):
                self.dropped_memory += 1
                return
            self._append_behind(message, address)
            if ticket is not None:
                self.released.append(ticket)
            return
        before: i64 = len(self._writer)
        if before + size > _BODY_BYTES_MAX:
            self._seal()
            before = 0
        if self._count == 0:
            self._packed_at = now
        pack_message(self._writer, message, self._publisher_utf8, self._sender, self._packed_at, address)
        if qos:
            self._durable = True
            if ticket is not None:
                if not self._tickets_waiting:
                    self._acked_at = now
                self._tickets_waiting += 1
                self._tickets.append(ticket)
            elif persistent:
                number = self._next_number + self._count
                self._stored_bytes += self.outbox.put(number, message, address)
                self._stored.append(number)
        self._count += 1
        self.bytes_pending += len(self._writer) - before

    def last_number(self) -> int:
        """Return the number of the last message or mark that was appended."""
        return self._next_number + self._count - 1

    def mark(self, body: bytes, durable: bool, now: float) -> None:
        """Append a mark: the receiver finds it in this place, between the messages.

        Marks are numbered and sent again as messages are, and are always taken, but not kept when this node restarts.
        """
        if self._spilling:
            # Here, and not where the messages of QoS 0 gather meanwhile.
            self._seal()
        before: i64 = len(self._writer)
        if before + len(body) + MESSAGE_OVERHEAD_BYTES > _BODY_BYTES_MAX:
            self._seal()
            before = 0
        if self._count == 0:
            self._packed_at = now
        pack_mark(self._writer, Mark(body, durable, self._sender))
        self.marked = self._next_number + self._count
        if durable:
            self._durable = True
        self._count += 1
        self.bytes_pending += len(self._writer) - before
        if self._spilling:
            self._seal()

    def spill_at(self) -> float:
        """Return when the link spills if nothing is acknowledged until then; infinity when nothing waits for it."""
        return self._acked_at + self._spill_after_s if self._tickets_waiting else math.inf

    def is_spill_due(self, running: bool, now: float) -> bool:
        """Say whether somebody waits for a peer that does not run or has acknowledged nothing for too long."""
        return self._tickets_waiting > 0 and (not running or now >= self._acked_at + self._spill_after_s)

    def forgive(self, now: float) -> None:
        """The peer was not heard, for a reason of this node's own: let it have its time from now on."""
        self._acked_at = now

    def spill(self) -> None:
        """Write everything unacknowledged with QoS > 0 to the outbox, and what follows it as well."""
        if self._spilling:
            return
        self._seal()
        self._spilling = True
        self.spills += 1
        for batch in self._sent:
            self._store(batch)
        for batch in self._waiting:
            self._store(batch)
        self._tickets_waiting = 0

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
        if position > self._highest_sent:
            # A receiver that has more than was ever sent knows another life of this store; its numbers are taken and
            # can't be used again.
            self._renumber(position)
        else:
            if self._trim_due:
                # What it said that it had, when it said so last, is still here.
                self.acked = min(self.acked, position)
            tickets = self._trim(self._waiting, position)
            self._trim_due = True
        self._end_spilling()
        self._gap = position < self._acked_durable
        if self._gap:
            self.gaps += 1
            self._acked_durable = position
        self.open = True
        self._start = True
        self._reclaim_from = 0
        self._withdraw_from = 0
        self._last_sent = position
        self._progress_at = now
        return tickets

    def acknowledged(self, session: int, number: int, now: float) -> list[Ticket]:
        """The receiver has everything up to `number`. Return the tickets of what it acknowledged."""
        if session != self.session or not self.open or number <= self.acked:
            return []
        if number > self._last_sent:
            # Nobody can acknowledge what was not sent; the peer's fault is not ours to crash for.
            return []
        self._progress_at = now
        self._acked_at = now
        size = self.bytes_pending
        tickets = self._trim(self._sent, number)
        self.bytes_in_flight -= size - self.bytes_pending
        self._end_spilling()
        return tickets

    def load(self, now: float) -> None:
        """Read on in the outbox, as far as the window goes. Everything that was written must be committed.

        What StorageError keeps it from is done by the next call.
        """
        if not self.open:
            return
        if self._trim_due:
            self._trim_behind(self.acked)
            self._trim_due = False
            self._end_spilling()
        if self._waiting:
            return
        size = self.bytes_in_flight
        while self._behind and size < WINDOW_BYTES_MAX:
            head = self._behind[0]
            if isinstance(head, Batch):
                self._behind.popleft()
                self._waiting.append(head)
            else:
                self._read(head, now)
                if head.first > head.last:
                    if head.count:
                        raise StorageError(f"the outbox lacks {head.count} messages that were put into it")
                    self._behind.popleft()
            if self._waiting:
                size += len(self._waiting[-1].body)

    def begin_reclaim(self) -> None:
        """The peer died, or others can have what was to be its: see whether something for groups is here."""
        if self.outbox.addressed or self._tickets_waiting:
            self._reclaim_from = self.acked + 1

    def is_reclaiming(self) -> bool:
        """Say whether `reclaim` has something to do, once the link has spilled."""
        return self._reclaim_from > 0

    def reclaim(self, can_move: Callable[[bytes, Message], bool]) -> list[Addressed]:
        """Take back the next messages for groups of a dead peer that others can have, as `can_move` says of each group.

        Everything that was written must be committed. What is taken back has to be given to them in this turn's batch.
        """
        if self._tickets_waiting:
            # Not everything is in the outbox yet.
            return []
        self._seal()
        found: list[Addressed] = []
        changed: dict[Batch, dict[int, bytes | None]] = {}
        stored: Stored | None = None
        for stored in self.outbox.read(self._reclaim_from, self._next_number - 1, _BODY_BYTES_MAX):
            moved = [each for each in stored.groups if can_move(each, stored.message)]
            if moved:
                found.append(Addressed(stored.message, moved, False, stored.waited))
                kept = [each for each in stored.groups if each not in moved]
                left = pack_address(kept, stored.plain, stored.waited, stored.stood) if kept or stored.plain else None
                self._take_back(stored, left, changed)
        self._reclaim_from = 0 if stored is None else stored.number + 1
        self._repack(changed)
        return found

    def withdraw(self) -> list[Stored] | None:
        """Take back the next messages for sessions of the peer; none: there are no more. What is for groups stays.

        What was handed over stays as well: where it stood says the peer what it has. None while it is not known how
        much the peer has. Everything that was written must be committed.
        """
        if not self.open or self._trim_due or self._tickets_waiting:
            return None
        self._seal()
        found: list[Stored] = []
        changed: dict[Batch, dict[int, bytes | None]] = {}
        while not found:
            first = max(self._withdraw_from, self.acked + 1)
            stored = self.outbox.read(first, self._next_number - 1, _BODY_BYTES_MAX)
            if not stored:
                break
            self._withdraw_from = stored[-1].number + 1
            found = [each for each in stored if each.plain and each.stood is None]
        for each in found:
            left = pack_address(each.groups, False, each.waited) if each.groups else None
            self._take_back(each, left, changed)
        self._repack(changed)
        return found

    def take_frames(self, now: float) -> list[bytes]:
        """Return the frames that the window lets go now."""
        self.wants_turn = False
        if not self.open or self.held:
            return []
        frames: list[bytes] = []
        while len(self._sent) < FRAMES_IN_FLIGHT_MAX and (self._waiting or self._refill()):
            batch = self._waiting[0]
            if self.bytes_in_flight and self.bytes_in_flight + len(batch.body) > WINDOW_BYTES_MAX:
                break
            self._waiting.popleft()
            if not self._sent:
                self._progress_at = now
            self._sent.append(batch)
            self.bytes_in_flight += len(batch.body)
            age_ms = int(max(0.0, min((now - batch.packed_at) * 1000.0, 4294967295.0)))
            after = -1 if self._start else self._last_sent
            frames.append(
                pack_forwards(self.session, batch.first, batch.count, age_ms, self._start, self._gap, batch.body, after)
            )
            self._last_sent = batch.last()
            self._start = False
            self._gap = False
        if self._start:
            # Nothing to send: an empty frame still tells the receiver where the stream goes on.
            first = max(self._first_waiting(), self._last_sent + 1)
            frames.append(pack_forwards(self.session, first, 0, 0, True, self._gap, b""))
            self._last_sent = first - 1
            self._start = False
            self._gap = False
        self._highest_sent = max(self._highest_sent, self._last_sent)
        return frames

    def take_probe(self, now: float) -> bytes:
        """Return an empty frame if nothing was acknowledged for too long, else b""."""
        if not self.open or not self._sent or now - self._progress_at < PROBE_AFTER_S:
            return b""
        self._progress_at = now
        return pack_forwards(self.session, self._last_sent + 1, 0, 0, False, False, b"")

    def take_tickets(self) -> list[Ticket]:
        """Give back the tickets of everything pending and forget it: the peer is no member any more.

        What is in the outbox stays there.
        """
        self._seal()
        self.outbox.first = self.acked + 1
        self.outbox.last = self._next_number - 1
        tickets, self.released = self.released, []
        for batch in (*self._sent, *self._waiting):
            tickets.extend(batch.tickets)
        self._sent.clear()
        self._waiting.clear()
        self._behind.clear()
        self._tickets_waiting = 0
        self.bytes_pending = 0
        self.bytes_in_flight = 0
        self.bytes_behind = 0
        self.acked = self._next_number - 1
        return tickets

    def validate(self) -> None:
        """Check the invariants, without a change to what is open."""
        behind = [each for each in self._behind if isinstance(each, Batch)]
        runs = [each for each in self._behind if isinstance(each, Run)]
        batches = [*self._sent, *self._waiting, *behind]
        last = 0
        for each in (*self._sent, *self._waiting, *self._behind):
            assert each.first > last
            last = each.last() if isinstance(each, Batch) else each.last
            # A batch acknowledged in part is kept as a whole, and the outbox until it is read.
            assert last > self.acked or self._trim_due
        assert last < self._next_number
        assert sum(len(batch.body) for batch in batches) + len(self._writer) == self.bytes_pending
        assert sum(len(batch.body) for batch in self._sent) == self.bytes_in_flight
        assert sum(run.bytes for run in runs) == self.bytes_behind
        assert sum(len(batch.tickets) for batch in batches) + len(self._tickets) == self._tickets_waiting
        assert not (self._spilling and self._tickets_waiting)
        assert self._spilling or not self._behind
        stored = sum(len(batch.stored) for batch in batches) + len(self._stored)
        assert stored + sum(run.count for run in runs) == self.outbox.messages
        stored_bytes = sum(batch.stored_bytes for batch in batches) + self._stored_bytes
        assert stored_bytes + self.bytes_behind == self.outbox.bytes

    def _end_spilling(self) -> None:
        """The link moves: if nothing is in the outbox that is not in memory, what comes next stays there, too."""
        if self._spilling and not self._behind:
            self._spilling = False

    def _first_waiting(self) -> int:
        """Return the number behind everything sent."""
        if self._waiting:
            return self._waiting[0].first
        return self._behind[0].first if self._behind else self._next_number

    def _seal(self) -> None:
        if self._count == 0:
            return
        batch = Batch(
            self._next_number,
            self._count,
            self._writer.getvalue(),
            self._tickets,
            self._durable,
            self._packed_at,
            self._stored,
            self._stored_bytes,
        )
        if self._behind:
            self._behind.append(batch)
        else:
            self._waiting.append(batch)
        self._next_number += self._count
        self._writer = BytesWriter()
        self._count = 0
        self._tickets = []
        self._durable = False
        self._stored = []
        self._stored_bytes = 0

    def _store(self, batch: Batch) -> None:
        """Write what is in memory alone, and release who waits for it."""
        if not batch.durable:
            return
        known = set(batch.stored)
        for number, message, address in messages_of(batch, self._sender):
            if message.qos and number not in known:
                batch.stored_bytes += self.outbox.put(number, message, address)
                batch.stored.append(number)
        self.released.extend(batch.tickets)
        batch.tickets = []

    def _append_behind(self, message: Message, address: bytes) -> None:
        """Write a message to the outbox, and keep nothing of it but its number."""
        number = self._next_number
        size = self.outbox.put(number, message, address)
        self._next_number = number + 1
        self.bytes_behind += size
        if self._behind:
            last = self._behind[-1]
            if isinstance(last, Run):
                last.last = number
                last.count += 1
                last.bytes += size
                return
        self._behind.append(Run(number, number, 1, size))

    def _take_back(self, stored: Stored, left: bytes | None, changed: dict[Batch, dict[int, bytes | None]]) -> None:
        """Leave in the outbox what of a message is for others of the peer, with the address `left`, None for nothing.

        `changed` is told the batch in which it is in memory, with the new address, None for nothing.
        """
        number = stored.number
        is_gone = left is None
        self.outbox.delete([number], stored.size)
        size = 0 if left is None else self.outbox.put(number, stored.message, left)
        for each in (*self._sent, *self._waiting, *self._behind):
            if isinstance(each, Run):
                if each.first <= number <= each.last:
                    each.count -= 1 if is_gone else 0
                    each.bytes += size - stored.size
                    self.bytes_behind += size - stored.size
                    return
            elif each.first <= number <= each.last():
                each.stored_bytes += size - stored.size
                if is_gone:
                    each.stored.remove(number)
                changed.setdefault(each, {})[number] = left
                return

    def _repack(self, changed: dict[Batch, dict[int, bytes | None]]) -> None:
        """Give what is in memory the addresses that it has in the outbox by now."""
        for batch, addresses in changed.items():
            more = repack(batch, self._sender, addresses)
            self.bytes_pending += more
            if batch in self._sent:
                self.bytes_in_flight += more

    def _refill(self) -> bool:
        """Have something waiting of what is in memory; false when there is nothing to be had in this turn."""
        if self.bytes_in_flight >= WINDOW_BYTES_MAX:
            return False
        if not self._behind:
            self._seal()
            return bool(self._waiting)
        head = self._behind[0]
        if isinstance(head, Batch):
            self._behind.popleft()
            self._waiting.append(head)
            return True
        self.wants_turn = True
        return False

    def _read(self, run: Run, now: float) -> None:
        """Pack what comes next of a run, as far as one frame goes."""
        last = run.last
        writer = BytesWriter()
        numbers: list[int] = []
        size = 0
        for stored in self.outbox.read(run.first, last, _BODY_BYTES_MAX):
            if numbers and stored.number != numbers[-1] + 1:
                break
            publisher = stored.message.publisher.encode()
            pack_message(writer, stored.message, publisher, self._sender, now, stored.address())
            numbers.append(stored.number)
            size += stored.size
        if numbers:
            last = numbers[-1]
        run.first = last + 1
        if numbers:
            run.count -= len(numbers)
            run.bytes -= size
            self.bytes_behind -= size
            body = writer.getvalue()
            self.bytes_pending += len(body)
            self._waiting.append(Batch(numbers[0], len(numbers), body, [], True, now, numbers, size))

    def _trim(self, batches: deque[Batch], number: int) -> list[Ticket]:
        tickets: list[Ticket] = []
        while batches and batches[0].last() <= number:
            batch = batches.popleft()
            self.bytes_pending -= len(batch.body)
            if batch.durable:
                self._acked_durable = batch.last()
            if batch.tickets:
                self._tickets_waiting -= len(batch.tickets)
                tickets.extend(batch.tickets)
            if batch.stored:
                self.outbox.delete(batch.stored, batch.stored_bytes)
        if number > self.acked:
            self.acked = number
        return tickets

    def _trim_behind(self, number: int) -> None:
        """Remove what an earlier life of this node sent, and the receiver has."""
        while self._behind:
            head = self._behind[0]
            if head.first > number:
                return
            if isinstance(head, Batch):
                if head.last() > number:
                    return
                self._behind.popleft()
                self.bytes_pending -= len(head.body)
                continue
            for stored, size in self.outbox.sizes(head.first, min(head.last, number)):
                self.outbox.delete([stored], size)
                self._acked_durable = stored
                head.count -= 1
                head.bytes -= size
                self.bytes_behind -= size
            head.first = number + 1
            if head.first > head.last:
                self._behind.popleft()

    def _renumber(self, position: int) -> None:
        first = self._first_waiting()
        by = position + 1 - first
        if by > 0:
            if self.marked >= first:
                self.marked += by
            for each in (*self._waiting, *self._behind):
                each.first += by
                if isinstance(each, Run):
                    each.last += by
                else:
                    each.stored = [number + by for number in each.stored]
            self.outbox.shift(first, by)
            self._next_number += by
        self.acked = position
        self._highest_sent = position
        self._acked_durable = 0
