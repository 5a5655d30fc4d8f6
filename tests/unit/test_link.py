"""cluster.link: in order, without a loss or a double, whatever the connection does."""

import random

import pytest
from builds import compiled

from broker.core.effects import Ticket
from broker.core.message import Message
from broker.core.storage import MemoryStorage, WriteBatch
from broker.core.stored_message import Clock
from cluster import link as link_module
from cluster.addressing import Addressed, pack_address
from cluster.forwards import MARK_BYTES_MAX, Forwards, Mark
from cluster.frames import FRAME_BYTES_MAX
from cluster.incoming_link import IncomingLink
from cluster.link import (
    FRAMES_IN_FLIGHT_MAX,
    MEMORY_BYTES_MAX,
    PROBE_AFTER_S,
    WINDOW_BYTES_MAX,
    OutgoingLink,
    first_number,
)
from cluster.outbox import Outbox, recover
from cluster.turn import Turn

STORE = b"s" * 16
PEER = b"p" * 16


def message(payload=b"x", qos=1, number=1):
    return Message(b"t", payload, b"", qos, False, 0.0, "client", STORE, number if qos else 0)


def ticket():
    return Ticket(1, 1, 0)


class Stream:
    """Both ends with nothing between them but what a test loses."""

    def __init__(self, position=0):
        self.storage = MemoryStorage()
        self.turn = Turn()
        self.outgoing = OutgoingLink(STORE, Outbox(self.storage, self.turn, Clock(0.0, 0), PEER, 1 << 30))
        self.incoming = IncomingLink(STORE, position)
        self.session = 0
        self.received = []
        self.acknowledged = []
        self.now = 0.0

    def connect(self):
        self.session += 1
        self.outgoing.connected(self.session)
        self.incoming.connected(self.session)
        self.position()

    def position(self):
        self.incoming.position_due = False
        self.acknowledged += self.outgoing.opened(self.session, self.incoming.position, self.now)

    def send(self, *payloads, qos=1, waits=False):
        tickets = []
        for payload in payloads:
            tickets.append(ticket() if waits else None)
            self.outgoing.forward(message(payload, qos), tickets[-1], waits, True, self.now)
        return tickets

    def mark(self, body, durable=False):
        self.outgoing.mark(body, durable, self.now)

    def frames(self):
        """What leaves in a turn, whose writes are committed."""
        if not len(self.turn.writes):
            self.outgoing.load(self.now)
        frames = self.outgoing.take_frames(self.now)
        self.storage.commit(self.turn.writes)
        self.turn.writes = WriteBatch()
        return frames

    def take(self, frames):
        for frame in frames:
            for each in self.incoming.receive(Forwards(frame), self.now):
                message = each.message if isinstance(each, Addressed) else each
                self.received.append(message.body if isinstance(message, Mark) else message.payload)

    def acknowledge(self):
        self.incoming.ack_due = False
        self.acknowledged += self.outgoing.acknowledged(self.session, self.incoming.position, self.now)

    def exchange(self):
        """Let everything flow until nothing moves."""
        while (frames := self.frames()) or self.outgoing.wants_turn:
            self.take(frames)
            self.acknowledge()
        self.outgoing.validate()


def test_nothing_is_sent_before_the_positions_and_everything_after():
    stream = Stream()
    tickets = stream.send(b"1", b"2", waits=True)
    assert stream.outgoing.take_frames(0.0) == []
    stream.connect()
    stream.exchange()
    assert stream.received == [b"1", b"2"]
    assert stream.acknowledged == tickets
    assert stream.outgoing.bytes_pending == 0
    assert stream.incoming.commit_due


def test_nothing_is_sent_while_the_link_is_held_and_everything_afterwards():
    stream = Stream()
    stream.outgoing.held = True
    stream.connect()
    stream.send(b"1", waits=True)
    stream.mark(b"a mark")
    assert stream.frames() == []
    stream.outgoing.held = False
    stream.exchange()
    assert stream.received == [b"1", b"a mark"]


def test_a_qos_0_message_alone_commits_nothing_but_is_acknowledged():
    stream = Stream()
    stream.connect()
    stream.send(b"1", qos=0)
    stream.exchange()
    assert stream.received == [b"1"]
    assert not stream.incoming.commit_due
    assert stream.outgoing.acked == 1


def test_what_was_lost_with_the_connection_is_sent_again_and_nothing_twice():
    stream = Stream()
    stream.connect()
    stream.send(b"1")
    arrived = stream.outgoing.take_frames(0.0)
    stream.send(b"2")
    stream.outgoing.take_frames(0.0)
    stream.take(arrived)
    stream.outgoing.disconnected()
    stream.send(b"3")
    assert stream.outgoing.take_frames(0.0) == []
    stream.connect()
    stream.exchange()
    assert stream.received == [b"1", b"2", b"3"]
    assert stream.outgoing.resent == 2


def test_a_frame_of_an_older_session_is_never_news():
    """Reason: a restarted sender numbers on from the receiver's position, and an old frame has the same numbers."""
    stream = Stream()
    stream.connect()
    stream.send(b"old")
    old = stream.outgoing.take_frames(0.0)
    restarted = Stream()
    restarted.incoming, restarted.session = stream.incoming, stream.session
    restarted.send(b"new")
    restarted.connect()
    restarted.take(old)
    assert restarted.received == []
    restarted.exchange()
    assert restarted.received == [b"new"]
    assert restarted.incoming.stale == 1


def test_a_restarted_sender_continues_behind_the_receivers_position():
    stream = Stream(position=1000)
    tickets = stream.send(b"1", b"2", waits=True)
    stream.connect()
    stream.exchange()
    assert stream.received == [b"1", b"2"]
    assert stream.acknowledged == tickets
    assert stream.incoming.position == 1002


def test_a_lost_frame_shows_at_the_next_and_is_sent_again():
    stream = Stream()
    stream.connect()
    stream.send(b"1")
    stream.take(stream.outgoing.take_frames(0.0))
    stream.send(b"2")
    stream.outgoing.take_frames(0.0)
    stream.send(b"3")
    stream.take(stream.outgoing.take_frames(0.0))
    assert stream.incoming.position_due
    stream.send(b"4")
    stream.take(stream.outgoing.take_frames(0.0))
    assert stream.received == [b"1"], "nothing passes until the sender starts over"
    stream.position()
    stream.exchange()
    assert stream.received == [b"1", b"2", b"3", b"4"]


def test_a_loss_at_the_end_shows_by_a_probe_which_a_slow_receiver_ignores():
    stream = Stream()
    stream.connect()
    stream.send(b"1")
    stream.take(stream.outgoing.take_frames(0.0))
    assert stream.outgoing.take_probe(PROBE_AFTER_S / 2) == b""
    probe = stream.outgoing.take_probe(PROBE_AFTER_S)
    stream.take([probe])
    assert not stream.incoming.position_due, "it has everything"
    stream.acknowledge()
    stream.send(b"2")
    stream.now = 10.0
    stream.outgoing.take_frames(10.0)
    stream.take([stream.outgoing.take_probe(10.0 + PROBE_AFTER_S)])
    assert stream.incoming.position_due
    stream.position()
    stream.exchange()
    assert stream.received == [b"1", b"2"]


def test_a_receiver_that_went_back_is_a_counted_gap_and_jumped():
    stream = Stream()
    stream.connect()
    stream.send(b"1", b"2")
    stream.exchange()
    stream.incoming = IncomingLink(STORE, 0)
    stream.connect()
    stream.send(b"3")
    stream.exchange()
    assert stream.received == [b"1", b"2", b"3"]
    assert stream.outgoing.gaps == stream.incoming.gaps == 1
    assert stream.incoming.position == 3


def test_a_receiver_that_went_back_over_qos_0_only_is_no_gap():
    stream = Stream()
    stream.connect()
    stream.send(b"1")
    stream.exchange()
    stream.send(b"2", qos=0)
    stream.exchange()
    stream.incoming = IncomingLink(STORE, 1)
    stream.connect()
    stream.exchange()
    assert stream.outgoing.gaps == stream.incoming.gaps == 0
    assert stream.incoming.position == 2, "an empty stream tells where it goes on, too"


def test_acknowledgements_of_what_was_not_sent_or_of_old_sessions_count_nothing():
    stream = Stream()
    stream.connect()
    stream.send(b"1", waits=True)
    assert stream.outgoing.acknowledged(1, 1, 0.0) == []
    stream.take(stream.outgoing.take_frames(0.0))
    assert stream.outgoing.acknowledged(0, 1, 0.0) == []
    assert len(stream.outgoing.acknowledged(1, 1, 0.0)) == 1


def test_window_and_frames_are_bounded():
    stream = Stream()
    stream.connect()
    stream.send(*[bytes(10_000)] * 2000)
    frames = stream.outgoing.take_frames(0.0)
    assert max(map(len, frames)) <= FRAME_BYTES_MAX
    assert sum(map(len, frames)) <= WINDOW_BYTES_MAX + 100 * len(frames)
    assert sum(map(len, frames)) > WINDOW_BYTES_MAX - FRAME_BYTES_MAX
    assert stream.outgoing.take_frames(0.0) == []
    stream.take(frames)
    stream.acknowledge()
    stream.exchange()
    assert len(stream.received) == 2000


def test_small_frames_in_flight_are_bounded_by_number():
    stream = Stream()
    stream.connect()
    frames = []
    for number in range(3000):
        stream.send(b"%d" % number)
        frames += stream.outgoing.take_frames(0.0)
    assert len(frames) == FRAMES_IN_FLIGHT_MAX
    stream.take(frames)
    stream.acknowledge()
    stream.exchange()
    assert stream.received == [b"%d" % number for number in range(3000)]


def test_a_message_larger_than_a_frame_or_the_window_passes_alone():
    stream = Stream()
    stream.connect()
    large = bytes(WINDOW_BYTES_MAX + 1)
    stream.send(b"1", large, b"2")
    stream.exchange()
    assert stream.received == [b"1", large, b"2"]


def test_beyond_the_memory_what_nobody_has_to_have_is_dropped_and_counted():
    stream = Stream()
    stream.send(*[bytes(1024 * 1024)] * 63)
    assert stream.outgoing.bytes_pending <= MEMORY_BYTES_MAX
    big = bytes(2 * 1024 * 1024)
    stream.outgoing.forward(message(big), None, False, True, 0.0)
    stream.outgoing.forward(message(big, qos=0), None, True, True, 0.0)
    assert stream.outgoing.dropped_memory == 2
    stream.connect()
    stream.exchange()
    assert len(stream.received) == 63


def test_beyond_the_memory_what_somebody_waits_for_goes_to_the_outbox():
    stream = Stream()
    large = bytes(MEMORY_BYTES_MAX - 1000)
    tickets = stream.send(large, b"x" * 2000, waits=True)
    assert stream.outgoing.released == tickets
    assert stream.outgoing.outbox.messages == 2
    stream.connect()
    stream.exchange()
    assert stream.received == [large, b"x" * 2000]
    assert stream.outgoing.outbox.bytes == 0


def test_what_nobody_has_to_have_is_dropped_and_counted_for_a_peer_that_does_not_run():
    stream = Stream()
    stream.outgoing.forward(message(qos=0), None, True, False, 0.0)
    stream.outgoing.forward(message(qos=1), None, False, False, 0.0)
    stream.outgoing.forward(message(b"kept"), ticket(), True, False, 0.0)
    stream.connect()
    stream.exchange()
    assert stream.received == [b"kept"]
    assert stream.outgoing.dropped_not_running == 2


def test_marks_stand_between_the_messages_and_are_sent_again_with_them():
    stream = Stream()
    stream.connect()
    stream.send(b"1")
    stream.mark(b"first")
    stream.send(b"2", qos=0)
    stream.frames()
    stream.mark(b"\0" * MARK_BYTES_MAX, True)
    stream.send(b"3")
    stream.connect()
    stream.exchange()
    assert stream.received == [b"1", b"first", b"2", b"\0" * MARK_BYTES_MAX, b"3"]
    assert stream.incoming.position == 5


@pytest.mark.parametrize("durable", [True, False])
def test_the_position_of_a_durable_mark_is_committed(durable):
    stream = Stream()
    stream.connect()
    stream.mark(b"x", durable)
    stream.exchange()
    assert stream.incoming.commit_due == durable


def test_it_is_known_whether_the_receiver_has_the_last_mark():
    stream = Stream(position=7)
    stream.send(b"1")
    stream.mark(b"a", True)
    assert stream.outgoing.marked > stream.outgoing.acked
    # It has heard of another life of the sender, by whose numbers it would have the mark.
    stream.connect()
    assert stream.outgoing.marked > stream.outgoing.acked
    stream.frames()
    stream.connect()
    assert stream.outgoing.marked > stream.outgoing.acked
    stream.exchange()
    assert stream.outgoing.marked == stream.outgoing.acked == stream.incoming.position


def test_marks_keep_their_place_while_the_link_spills():
    stream = Stream()
    stream.send(b"1", waits=True)
    stream.mark(b"a")
    stream.outgoing.spill()
    stream.send(b"2", waits=True)
    stream.send(b"0", qos=0)
    stream.mark(b"b")
    stream.send(b"3", waits=True)
    stream.mark(b"c")
    assert stream.outgoing.outbox.messages == 3
    stream.frames()
    stream.connect()
    stream.exchange()
    assert stream.received == [b"1", b"a", b"2", b"0", b"b", b"3", b"c"]
    stream.outgoing.validate()


def restarted(*kept):
    """A stream whose sender left something in its outbox when it died, and lost what it had in memory between."""
    stream = Stream()
    for payload in kept:
        stream.send(b"lost")
        stream.outgoing.forward(message(payload, 2), None, True, True, 0.0)
    stream.outgoing.take_frames(0.0)
    stream.storage.commit(stream.turn.writes)
    stream.turn = Turn()
    outbox = recover(stream.storage, stream.turn, Clock(0.0, 0))[PEER]
    outbox.bytes_max = 1 << 30
    stream.outgoing = OutgoingLink(STORE, outbox, first_number(2))
    return stream


def test_numbers_that_are_missing_are_no_loss():
    stream = restarted(b"1", b"2")
    stream.send(b"3")
    stream.connect()
    for _ in range(6):
        stream.take(stream.frames())
        assert not stream.incoming.position_due, "it would start over for nothing"
        stream.acknowledge()
    assert stream.received == [b"1", b"2", b"3"]
    assert stream.incoming.position == first_number(2)
    assert stream.incoming.gaps == stream.outgoing.gaps == 0


def test_what_is_lost_before_missing_numbers_is_sent_again():
    stream = restarted(b"1", b"2")
    stream.send(b"3")
    stream.connect()
    (start,) = stream.frames()
    first, _lost, third = stream.frames()
    stream.take([start, first, third])
    assert stream.incoming.position_due
    stream.position()
    stream.exchange()
    assert stream.received == [b"1", b"2", b"3"]


def test_the_tickets_of_a_member_that_is_gone_come_back():
    stream = Stream()
    stream.connect()
    tickets = stream.send(b"1", waits=True)
    stream.outgoing.take_frames(0.0)
    tickets += stream.send(b"2", waits=True)
    assert stream.outgoing.take_tickets() == tickets
    stream.outgoing.validate()


def test_any_losses_and_restarts_leave_the_order_and_double_nothing(monkeypatch):
    if link_module.__file__.endswith(".py"):
        monkeypatch.setattr(link_module, "WINDOW_BYTES_MAX", 2000)
    for seed in range(100):
        rng = random.Random(seed)
        stream = Stream()
        sent = []
        wire = []
        tickets = []
        stream.connect()
        for step in range(300):
            choice = rng.random()
            if choice < 0.5:
                sent.append(b"%d" % step)
                qos = rng.choice([0, 1])
                tickets += [each for each in stream.send(sent[-1], qos=qos, waits=qos == 1) if each is not None]
                wire += stream.outgoing.take_frames(stream.now)
            elif choice < 0.8 and wire:
                frame = wire.pop(0)
                if rng.random() < 0.9:
                    stream.take([frame])
            elif choice < 0.9:
                stream.acknowledge()
                wire += stream.outgoing.take_frames(stream.now)
            elif choice < 0.95:
                stream.outgoing.disconnected()
                if rng.random() < 0.5:
                    # The receiver hears the new session while frames of the old one are still under way.
                    stream.connect()
                    rng.shuffle(wire)
                else:
                    stream.connect()
                    wire = []
            elif stream.incoming.position_due:
                stream.position()
            stream.outgoing.validate()
        stream.connect()
        stream.exchange()
        assert stream.received == sent, f"seed {seed}"
        assert stream.acknowledged == tickets, f"seed {seed}"


# What is for groups is taken back from a peer that died.

GROUP, AGAIN = b"$share/g/t", b"$share/h/t"


class Groups(Stream):
    """A stream of messages for groups; `take_back` is what the mesh does when the peer has died."""

    def send_to(self, payload, groups, plain=False, qos=1, waits=False, running=True):
        waiting = ticket() if waits else None
        address = pack_address(groups, plain)
        self.outgoing.forward(message(payload, qos), waiting, True, running, self.now, address)
        return waiting

    def commit(self):
        self.storage.commit(self.turn.writes)
        self.turn.writes = WriteBatch()
        self.outgoing.validate()

    def take_back(self, *groups):
        """Die, and take back what is for these groups: (payload, groups)."""
        self.outgoing.disconnected()
        self.outgoing.begin_reclaim()
        found = []
        while self.outgoing.is_reclaiming():
            if self.outgoing.is_spill_due(False, self.now):
                assert self.outgoing.reclaim(lambda group, message: True) == [], "not everything is on disk yet"
                self.outgoing.spill()
            self.commit()
            found += self.outgoing.reclaim(lambda group, message: group in groups)
        self.commit()
        return [(each.message.payload, each.groups) for each in found]

    def stored(self):
        """What the outbox holds: (payload, groups, plain)."""
        found = self.outgoing.outbox.read(0, 1 << 60, 1 << 30)
        return [(each.message.payload, each.groups, each.plain) for each in found]

    def come_back(self):
        """The peer connects again, and takes everything: payloads."""
        self.connect()
        for _ in range(5):
            self.take(self.frames())
            self.acknowledge()
        self.commit()
        taken, self.received = self.received, []
        # A mark that says nothing stands where a message was.
        return [each for each in taken if each]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_for_groups_is_taken_back(waits, sent, restarted):
    stream = Groups()
    stream.connect()
    stream.send(b"before", waits=True)
    tickets = [stream.send_to(b"1", [GROUP], waits=waits), stream.send_to(b"2", [GROUP, AGAIN], True, waits=waits)]
    stream.send_to(b"3", [AGAIN], waits=waits)
    stream.send(b"after", waits=True)
    if sent:
        # Lost on the way.
        assert stream.frames()
    if restarted:
        stream.outgoing.spill()
        stream.commit()
        outbox = recover(stream.storage, stream.turn, Clock(0.0, 0))[PEER]
        stream.outgoing = OutgoingLink(STORE, outbox, first_number(1))
    assert stream.take_back(GROUP) == [(b"1", [GROUP]), (b"2", [GROUP])]
    assert stream.stored() == [
        (b"before", [], True),
        (b"2", [AGAIN], True),
        (b"3", [AGAIN], False),
        (b"after", [], True),
    ]
    if waits and not restarted:
        assert set(tickets) <= set(stream.outgoing.released), "who waits for it has it stored"
    assert stream.take_back(GROUP) == []
    received = stream.come_back()
    assert received == [b"before", b"2", b"3", b"after"]
    assert stream.stored() == []


def test_what_the_peer_had_all_the_same_it_has_and_numbers_go_on():
    stream = Groups()
    stream.connect()
    stream.send_to(b"1", [GROUP])
    stream.send_to(b"2", [GROUP])
    stream.take(stream.frames())
    assert stream.take_back(GROUP) == [(b"1", [GROUP]), (b"2", [GROUP])]
    assert stream.outgoing.outbox.messages == 0
    assert not stream.outgoing.outbox.addressed
    stream.send_to(b"3", [GROUP])
    assert stream.come_back() == [b"1", b"2", b"3"]


def test_marks_and_what_follows_them_stay_in_their_places():
    stream = Groups()
    stream.connect()
    stream.send_to(b"1", [GROUP], waits=True)
    stream.mark(b"mark", True)
    stream.send(b"2", qos=0)
    stream.send_to(b"3", [GROUP], qos=0)
    assert stream.take_back(GROUP) == [(b"1", [GROUP])]
    # QoS 0 is nowhere but in memory, and nobody is told of it.
    assert stream.come_back() == [b"mark", b"2", b"3"]


@compiled
def test_a_way_through_a_long_outbox_goes_in_steps():
    stream = Groups()
    for number in range(3000):
        stream.send_to(b"%d" % number + b"." * 300, [GROUP] if number % 3 else [AGAIN], running=False)
    stream.commit()
    stream.outgoing.begin_reclaim()
    found, steps = [], 0
    while stream.outgoing.is_reclaiming():
        found += stream.outgoing.reclaim(lambda group, message: group == GROUP)
        steps += 1
        stream.commit()
    assert len(found) == 2000
    assert 3 < steps < 10
    assert len(stream.stored()) == 1000
    assert len(stream.come_back()) == 1000


def test_a_peer_that_comes_back_is_left_what_is_its_own():
    stream = Groups()
    for number in range(2000):
        stream.send_to(b"%d" % number + b"." * 300, [GROUP], running=False)
    stream.commit()
    stream.outgoing.begin_reclaim()
    taken = stream.outgoing.reclaim(lambda group, message: True)
    stream.commit()
    stream.connect()
    assert not stream.outgoing.is_reclaiming()
    assert 0 < len(taken) < 2000
    assert len(stream.come_back()) == 2000 - len(taken)


def test_a_link_without_groups_looks_at_nothing():
    stream = Groups()
    stream.send(b"1", waits=False)
    stream.outgoing.forward(message(b"2"), None, True, False, 0.0)
    stream.commit()
    stream.outgoing.begin_reclaim()
    assert not stream.outgoing.is_reclaiming()


class Kept(Groups):
    """The outbox that a donor's former life left, and a link that sends nothing of it yet."""

    def restart(self):
        self.outgoing.spill()
        self.commit()
        outbox = recover(self.storage, self.turn, Clock(0.0, 0))[PEER]
        self.outgoing = OutgoingLink(STORE, outbox, first_number(1))
        self.outgoing.held = True

    def withdraw(self):
        """Return the payloads of everything, a step each, and let the rest be sent."""
        steps = []
        while taken := self.outgoing.withdraw():
            steps.append([each.message.payload for each in taken])
            self.commit()
        assert taken == []
        self.outgoing.held = False
        return steps


@pytest.mark.parametrize("had", [0, 2])
def test_what_is_for_sessions_of_the_peer_is_withdrawn_unless_it_has_that(had):
    stream = Kept()
    for number in range(3):
        stream.send_to(b"%d" % number, [], plain=True)
    stream.send_to(b"both", [GROUP], plain=True)
    stream.send_to(b"group", [GROUP])
    stream.restart()
    assert stream.outgoing.withdraw() is None, "nobody knows what the peer has"
    stream.incoming = IncomingLink(STORE, had)
    stream.connect()
    assert stream.outgoing.withdraw() is None, "what it has is still there"
    assert stream.frames() == []
    assert stream.withdraw() == [[b"0", b"1", b"2", b"both"][had:]]
    assert stream.stored() == [(b"both", [GROUP], False), (b"group", [GROUP], False)]
    assert stream.come_back() == [b"both", b"group"]
    assert stream.stored() == []


def test_what_was_handed_over_is_not_withdrawn():
    stream = Kept()
    address = pack_address([], True, stood=(b"l" * 16, 7))
    stream.outgoing.forward(message(b"handed over"), None, True, True, 0.0, address)
    stream.restart()
    stream.connect()
    stream.frames()
    assert stream.withdraw() == []
    assert stream.come_back() == [b"handed over"]


def test_a_long_outbox_is_withdrawn_in_steps():
    stream = Kept()
    for number in range(3000):
        stream.send_to(b"%d" % number + b"." * 300, [AGAIN] if number % 3 else [], plain=number % 3 == 0)
    stream.restart()
    stream.connect()
    stream.frames()
    steps = stream.withdraw()
    assert 3 < len(steps) < 10
    payloads = [payload for step in steps for payload in step]
    assert payloads == [b"%d" % number + b"." * 300 for number in range(0, 3000, 3)]
    assert len(stream.come_back()) == 2000
