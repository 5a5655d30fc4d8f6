"""cluster.interest: peers know exactly what is wanted, whatever is lost on the way."""

import random

from broker.core.effects import InterestChange
from cluster.frames import FrameType, unpack_interest_delta, unpack_interest_snapshot
from cluster.interest import InterestTable


def deliver(sender, receiver, node, frames):
    """Hand frames over; return whether a snapshot has to be asked for."""
    behind = False
    for frame in frames:
        if frame[1] == FrameType.INTEREST_DELTA:
            behind |= not receiver.receive_delta(node, unpack_interest_delta(frame))
        else:
            receiver.receive_snapshot(node, unpack_interest_snapshot(frame))
    return behind


def is_current(sender, receiver, node):
    return receiver.current(node, sender.incarnation, sender.version, sender.checksum)


def synced_pair():
    sender, receiver = InterestTable(1), InterestTable(1)
    deliver(sender, receiver, "s", sender.snapshot())
    receiver.set_running("s", True)
    return sender, receiver


def test_deltas_follow_a_snapshot():
    sender, receiver = synced_pair()
    sender.change(b"a/+", True, False)
    sender.change(b"b/#", True, True)
    assert not deliver(sender, receiver, "s", sender.take_deltas())
    assert is_current(sender, receiver, "s")
    assert receiver.match(b"a/x") == [("s", False)]
    assert receiver.match(b"b") == [("s", True)]
    sender.change(b"a/+", False, False)
    deliver(sender, receiver, "s", sender.take_deltas())
    assert receiver.match(b"a/x") == []
    receiver.validate()


def test_persistent_wins_over_passing_and_a_node_stands_once():
    sender, receiver = synced_pair()
    sender.apply_changes([InterestChange(b"a/+", True, False), InterestChange(b"a/#", True, True)])
    deliver(sender, receiver, "s", sender.take_deltas())
    assert receiver.match(b"a/x") == [("s", True)]
    sender.change(b"a/#", True, False)
    deliver(sender, receiver, "s", sender.take_deltas())
    assert receiver.match(b"a/x") == [("s", False)]


def test_only_persistent_wishes_count_for_a_peer_that_is_down():
    sender, receiver = synced_pair()
    sender.change(b"a", True, False)
    sender.change(b"b", True, True)
    deliver(sender, receiver, "s", sender.take_deltas())
    assert receiver.set_running("s", False)
    assert receiver.match(b"a") == []
    assert receiver.match(b"b") == [("s", True)]
    assert not receiver.set_running("s", False)


def test_a_lost_delta_is_noticed_and_a_snapshot_repairs():
    sender, receiver = synced_pair()
    sender.change(b"a", True, False)
    sender.take_deltas()
    assert not is_current(sender, receiver, "s")
    sender.change(b"b", True, False)
    assert deliver(sender, receiver, "s", sender.take_deltas())
    assert receiver.match(b"b") == []
    deliver(sender, receiver, "s", sender.snapshot())
    assert is_current(sender, receiver, "s")
    assert receiver.match(b"a") == receiver.match(b"b") == [("s", False)]


def test_duplicates_and_old_deltas_change_nothing():
    sender, receiver = synced_pair()
    sender.change(b"a", True, False)
    first = sender.take_deltas()
    sender.change(b"a", False, False)
    second = sender.take_deltas()
    deliver(sender, receiver, "s", first + second)
    assert not deliver(sender, receiver, "s", first)
    assert receiver.match(b"a") == []
    assert is_current(sender, receiver, "s")


def test_a_new_incarnation_replaces_everything_at_once():
    sender, receiver = synced_pair()
    sender.change(b"old", True, True)
    deliver(sender, receiver, "s", sender.take_deltas())
    restarted = InterestTable(2)
    restarted.change(b"new", True, True)
    assert deliver(restarted, receiver, "s", restarted.take_deltas()), "a delta of a life it knows nothing of"
    assert receiver.match(b"old") == [("s", True)], "kept until the snapshot is here"
    deliver(restarted, receiver, "s", restarted.snapshot())
    assert receiver.match(b"old") == []
    assert receiver.match(b"new") == [("s", True)]


def test_a_large_snapshot_comes_in_parts_and_a_lost_part_leaves_the_old_state():
    sender, receiver = synced_pair()
    for number in range(20_000):
        sender.change(b"some/long/filter/for/device/%d/+" % number, True, number % 2 == 0)
    assert len(sender.take_deltas()) > 1
    parts = sender.snapshot()
    assert len(parts) > 2
    assert max(len(part) for part in parts) <= 256 * 1024
    for lost in range(len(parts)):
        deliver(sender, receiver, "s", parts[:lost] + parts[lost + 1 :])
        assert not is_current(sender, receiver, "s")
    deliver(sender, receiver, "s", parts)
    assert is_current(sender, receiver, "s")
    assert len(receiver.persistent_filters("s")) == 10_000
    receiver.validate()


def test_restored_filters_route_until_the_peer_is_heard():
    receiver = InterestTable(1)
    receiver.restore("s", b"a/#")
    assert receiver.match(b"a/b") == [("s", True)]
    assert receiver.known_version("s") == (0, 0)
    deliver(InterestTable(3), receiver, "s", InterestTable(3).snapshot())
    assert receiver.match(b"a/b") == []


def test_a_forgotten_node_wants_nothing():
    sender, receiver = synced_pair()
    sender.change(b"a", True, True)
    deliver(sender, receiver, "s", sender.take_deltas())
    receiver.forget("s")
    assert receiver.match(b"a") == []
    receiver.validate()


def test_any_losses_are_found_by_version_and_checksum():
    for seed in range(30):
        rng = random.Random(seed)
        sender, receiver = synced_pair()
        for _ in range(200):
            topic_filter = b"f/%d" % rng.randrange(20)
            sender.change(topic_filter, rng.random() < 0.6, rng.random() < 0.5)
            frames = [frame for frame in sender.take_deltas() if rng.random() < 0.9]
            behind = deliver(sender, receiver, "s", frames)
            if behind or (rng.random() < 0.1 and not is_current(sender, receiver, "s")):
                deliver(sender, receiver, "s", sender.snapshot())
                assert is_current(sender, receiver, "s"), f"seed {seed}"
            receiver.validate()
            sender.validate()
