"""The simulator finds bugs: each of these is planted in memory, and some early seed has to notice.

Bugs of the shell's order are planted in the simulator itself. The others replace public methods of the cores, which
can't be done where those are compiled.
"""

import pytest
import workload

from broker.core.storage import PUT, WriteBatch
from cluster.frames import FrameType
from cluster.interest import InterestTable
from cluster.link import IncomingLink, OutgoingLink

SEEDS = range(40)

interpreted = pytest.mark.skipif(
    not hasattr(IncomingLink.receive, "__code__"), reason="compiled classes can't be changed in memory"
)


def caught(prepare=None):
    """Return what the first seed says that notices, and fail if none does."""
    for seed in SEEDS:
        try:
            workload.run(seed, prepare=prepare)
        except workload.Failure as failure:
            print(failure)
            return str(failure)
    pytest.fail(f"none of {len(SEEDS)} seeds noticed")


def without(effects, lost):
    """Take the operations that `lost` says out of a turn's writes."""
    kept = WriteBatch()
    kept.operations = [operation for operation in effects.writes.operations if not lost(*operation)]
    effects.writes = kept


def test_acknowledging_before_the_commit_is_caught():
    def plant(world):
        world.acknowledge_before_commit = True

    caught(plant)


def test_a_position_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and key.startswith(b"position/"))

    caught(lambda world: world.mutations.append(forget))


def test_a_queue_record_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and family == "queue" and node.life > 1)

    caught(lambda world: world.mutations.append(forget))


def test_a_message_that_is_not_deleted_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind != PUT and family == "message")

    assert "no queue points to" in caught(lambda world: world.mutations.append(forget))


def test_a_subscription_that_is_not_committed_is_caught():
    def forget(node, effects):
        without(effects, lambda kind, family, key, value: kind == PUT and family == "session" and len(key) > 8)

    caught(lambda world: world.mutations.append(forget))


@interpreted
def test_a_puback_before_the_link_ack_is_caught(monkeypatch):
    forward = OutgoingLink.forward
    waiting = []

    def keep_ticket(self, message, ticket, running, now):
        if ticket is not None:
            waiting.append(ticket)
        return forward(self, message, None, running, now)

    def acknowledge(node, effects):
        for ticket in waiting:
            node.core.owner.forward_acknowledged(ticket, node.world.now)
        waiting.clear()

    def plant(world):
        waiting.clear()
        world.mutations.append(acknowledge)

    monkeypatch.setattr(OutgoingLink, "forward", keep_ticket)
    assert "never arrived" in caught(plant)


@interpreted
def test_a_receiver_that_does_not_discard_duplicates_is_caught(monkeypatch):
    receive = IncomingLink.receive

    def receive_again(self, forwards, now):
        if forwards.session == self.session and forwards.first <= self.position:
            self.position = forwards.first - 1
        return receive(self, forwards, now)

    monkeypatch.setattr(IncomingLink, "receive", receive_again)
    assert "times, though" in caught()


@interpreted
def test_a_receiver_that_takes_what_follows_a_hole_is_caught(monkeypatch):
    receive = IncomingLink.receive

    def receive_anyway(self, forwards, now):
        if forwards.session == self.session and forwards.first > self.position + 1:
            self.position = forwards.first - 1
        return receive(self, forwards, now)

    monkeypatch.setattr(IncomingLink, "receive", receive_anyway)
    caught()


def lose_some_interest(world):
    def lost(frame):
        return len(frame) > 1 and frame[1] == FrameType.INTEREST_DELTA and world.rng.random() < 0.3

    world.network.lose_frame = lost


@interpreted
def test_interest_that_is_lost_and_never_repaired_is_caught(monkeypatch):
    current = InterestTable.current

    def never_wrong(self, node, incarnation, version, checksum):
        known, _ = self.known_version(node)
        return known == incarnation or current(self, node, incarnation, version, checksum)

    receive_delta = InterestTable.receive_delta

    def no_hole(self, node, delta):
        receive_delta(self, node, delta)
        return True

    monkeypatch.setattr(InterestTable, "current", never_wrong)
    monkeypatch.setattr(InterestTable, "receive_delta", no_hole)
    caught(lose_some_interest)


def test_interest_that_is_lost_is_repaired():
    for seed in range(5):
        workload.run(seed, prepare=lose_some_interest)


@interpreted
def test_a_link_that_forgets_what_was_not_acknowledged_is_caught(monkeypatch):
    disconnected = OutgoingLink.disconnected

    def forget(self):
        disconnected(self)
        self.take_tickets()

    monkeypatch.setattr(OutgoingLink, "disconnected", forget)
    caught()
