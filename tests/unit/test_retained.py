"""broker.core.retained: the last message of each topic, found by filter, within limits, after restarts."""

import gc
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.message import Message
from broker.core.retained import EXPIRED_MAX, LEVEL_BYTES, MESSAGE_BYTES, RetainedStore
from broker.core.retained_rows import stored_key, stored_topic
from broker.core.storage import MemoryStorage, StorageError, WriteBatch
from broker.core.stored_message import Clock
from broker.mqtt.topics import matches

CLOCK = Clock(1000.0, 1_700_000_000_000)
NOW = 1000.0


def message_of(topic: bytes, payload: bytes = b"p", expires_at: float = 0.0, number: int = 0) -> Message:
    return Message(topic, payload, b"", 1 if number else 0, True, expires_at, "c", b"o" * 16, number)


class Kept:
    """A store of retained messages with its storage."""

    def __init__(self, messages_max: int = -1, bytes_max: int = -1) -> None:
        self.storage = MemoryStorage()
        self.retained = RetainedStore(messages_max, bytes_max)

    def set(self, topic: bytes, payload: bytes = b"p", expires_at: float = 0.0) -> bool:
        writes = WriteBatch()
        done = self.retained.set(message_of(topic, payload, expires_at), writes, CLOCK, NOW)
        self.storage.commit(writes)
        self.retained.validate()
        return done

    def stored(self) -> list[bytes]:
        return [stored_topic(key) for key, _ in self.storage.scan("retained", b"", b"")]

    def found(self, topic_filter: bytes) -> list[bytes]:
        found = self.retained.match(topic_filter, NOW)
        return sorted(message.topic for message in found)


TOPICS = [b"a", b"a/b", b"a/b/c", b"/", b"/a", b"a/", b"b", b"$SYS/x", b"$SYS", b"a/$SYS"]


def test_a_walk_takes_steps_and_minds_no_changes() -> None:
    kept = Kept()
    for number in range(40):
        kept.set(b"a/%d" % number)
    revision = kept.retained.revision
    walk = kept.retained.walk(b"a/+")
    found: list[tuple[bytes, bool]] = []
    while not walk.is_at_end():
        assert walk.find(3) <= 3 + 40 // 16
        if walk.message is not None:
            found.append((walk.message.topic, walk.revision <= revision))
        if len(found) == 5:
            kept.set(b"a/7", b"")
            kept.set(b"a/20", b"new")
            kept.set(b"a/x", b"new")
    assert [topic for topic, _ in found] == [b"a/%d" % number for number in range(40) if number != 7]
    assert [topic for topic, old in found if not old] == [b"a/20"]


def test_what_a_walk_stands_at_may_go() -> None:
    kept = Kept()
    kept.set(b"a")
    walk = kept.retained.walk(b"a")
    while walk.message is None:
        walk.find(1)
    kept.set(b"a", b"")
    assert walk.message is None
    assert walk.is_at_end()


@pytest.mark.parametrize(
    "topic_filter",
    [
        b"#",
        b"+",
        b"+/+",
        b"a",
        b"a/#",
        b"a/+",
        b"a/+/c",
        b"+/b/#",
        b"/#",
        b"/+",
        b"$SYS/#",
        b"$SYS/+",
        b"a/b/c/#",
        b"x/#",
    ],
)
def test_filters(topic_filter: bytes) -> None:
    kept = Kept()
    for topic in TOPICS:
        kept.set(topic)
    assert kept.found(topic_filter) == sorted(topic for topic in TOPICS if matches(topic_filter, topic))


LEVELS = st.sampled_from([b"", b"a", b"b", b"$x"])
NAMES = st.lists(LEVELS, min_size=1, max_size=4).map(b"/".join).filter(bool)
WILD = st.lists(st.one_of(LEVELS, st.just(b"+")), min_size=1, max_size=4).map(b"/".join).filter(bool)
FILTERS = st.one_of(WILD, WILD.map(lambda name: name + b"/#"), st.just(b"#"))


@given(st.lists(st.tuples(NAMES, st.sampled_from([b"", b"1", b"22"])), max_size=25), FILTERS)
def test_against_a_plain_dictionary(published: list[tuple[bytes, bytes]], topic_filter: bytes) -> None:
    kept = Kept()
    model: dict[bytes, bytes] = {}
    for topic, payload in published:
        assert kept.set(topic, payload)
        model[topic] = payload
        if not payload:
            del model[topic]
    assert kept.found(topic_filter) == sorted(topic for topic in model if matches(topic_filter, topic))
    assert sorted(kept.stored()) == sorted(model)
    after = RetainedStore(-1, -1)
    after.recover(kept.storage.survivor(), CLOCK)
    after.validate()
    assert {message.topic: message.payload for message in after.match(b"#", NOW)} == {
        topic: payload for topic, payload in model.items() if not topic.startswith(b"$")
    }
    assert len(after) == len(model)


def test_everything_of_a_message_survives() -> None:
    storage = MemoryStorage()
    writes = WriteBatch()
    message = Message(b"t", b"p" * 1000, b"\x03\x00\x01t", 2, True, NOW + 30, "käse", b"s" * 16, 2**64 - 1)
    assert RetainedStore(-1, -1).set(message, writes, CLOCK, NOW)
    storage.commit(writes)
    after = RetainedStore(-1, -1)
    # Ten seconds later, after a boot: monotonic time is another.
    after.recover(storage, Clock(5.0, 1_700_000_010_000))
    (back,) = after.match(b"t", 5.0)
    assert (back.topic, back.payload, back.properties, back.qos) == (b"t", b"p" * 1000, b"\x03\x00\x01t", 2)
    assert (back.retain, back.publisher, back.origin, back.number) == (True, "käse", b"s" * 16, 2**64 - 1)
    assert back.expires_at == pytest.approx(25.0)


def test_the_number_is_limited() -> None:
    kept = Kept(messages_max=2)
    assert kept.set(b"a") and kept.set(b"b")
    assert not kept.set(b"c")
    assert kept.set(b"a", b"another")
    assert kept.set(b"a", b"")
    assert kept.set(b"c")
    assert sorted(kept.stored()) == [b"b", b"c"]


def test_the_bytes_are_limited() -> None:
    fixed = MESSAGE_BYTES + LEVEL_BYTES + len(b"a")
    kept = Kept(bytes_max=fixed + 10)
    assert kept.set(b"a", b"12345")
    assert not kept.set(b"b", b"12345")
    # What is replaced makes room, and what is refused leaves the last one in place.
    assert kept.set(b"a", b"123456789")
    assert not kept.set(b"a", b"1234567890")
    assert kept.retained.bytes == fixed + 10
    assert [message.payload for message in kept.retained.match(b"a", NOW)] == [b"123456789"]


def test_a_level_counts_once_and_as_long_as_it_is_there() -> None:
    kept = Kept()
    kept.set(b"ab/c", b"p")
    alone = kept.retained.bytes
    assert alone == MESSAGE_BYTES + len(b"ab/cp") + 2 * LEVEL_BYTES + len(b"abc")
    kept.set(b"ab/d/", b"p")
    assert kept.retained.bytes == alone + MESSAGE_BYTES + len(b"ab/d/p") + 2 * LEVEL_BYTES + len(b"d")
    kept.set(b"ab", b"p")
    assert kept.retained.bytes == alone + 2 * MESSAGE_BYTES + len(b"ab/d/pabp") + 2 * LEVEL_BYTES + len(b"d")
    kept.set(b"ab/d/", b"")
    kept.set(b"ab", b"")
    assert kept.retained.bytes == alone
    again = RetainedStore(-1, -1)
    again.recover(kept.storage, CLOCK)
    assert again.bytes == alone
    kept.set(b"ab/c", b"")
    assert kept.retained.bytes == 0


@pytest.mark.parametrize("levels_max", [1, 2, 127])
def test_a_topic_that_needs_too_many_levels_is_refused(levels_max: int) -> None:
    kept = Kept(bytes_max=MESSAGE_BYTES + levels_max * LEVEL_BYTES + 2 * levels_max + 1)
    assert not kept.set(b"/" * levels_max)
    assert kept.retained.bytes == 0
    assert kept.set(b"/" * (levels_max - 1) or b"t")


@pytest.mark.parametrize(
    "topics",
    [
        [b"t%d" % number for number in range(3000)],
        [b"site/%d/device/%d/state" % (number % 30, number) for number in range(1500)],
        [b"/".join([b"%d" % number] + [b"a"] * 126) for number in range(100)],
    ],
    ids=["flat", "devices", "deep"],
)
def test_the_estimate_is_near_what_the_tree_takes(topics: list[bytes]) -> None:
    """A few hundred topics of many levels must not take many times what is counted."""
    messages = [message_of(topic, b"payload", number=number + 1) for number, topic in enumerate(topics)]
    retained = RetainedStore(-1, -1)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for message in messages:
            retained.set(message, WriteBatch(), CLOCK, NOW)
            retained.changes.clear()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = retained.bytes - len(messages) * MESSAGE_BYTES
    assert 0.5 * taken < counted < 2 * taken


def test_what_expired_is_not_found_and_then_removed() -> None:
    kept = Kept()
    kept.set(b"a", expires_at=NOW + 5)
    kept.set(b"b")
    assert kept.retained.next_deadline() == NOW + 5
    assert [message.topic for message in kept.retained.match(b"#", NOW + 4)] == [b"a", b"b"]
    assert [message.topic for message in kept.retained.match(b"#", NOW + 5)] == [b"b"]
    writes = WriteBatch()
    assert kept.retained.expire(NOW + 4, writes) == 0
    assert kept.retained.expire(NOW + 5, writes) == 1
    kept.storage.commit(writes)
    assert kept.stored() == [b"b"]
    assert kept.retained.next_deadline() == math.inf


def test_a_message_that_took_the_place_of_another_has_its_own_deadline() -> None:
    kept = Kept()
    kept.set(b"a", expires_at=NOW + 5)
    kept.set(b"a", expires_at=NOW + 50)
    assert kept.retained.expire(NOW + 6, WriteBatch()) == 0
    assert len(kept.retained) == 1
    kept.set(b"a")
    assert kept.retained.expire(NOW + 60, WriteBatch()) == 0


def test_a_topic_that_is_published_again_and_again_leaves_no_deadlines() -> None:
    kept = Kept()
    for number in range(1000):
        kept.set(b"a", expires_at=NOW + number + 1)
    assert len(kept.retained._deadlines) < 100


def test_a_call_expires_no_more_than_it_may() -> None:
    retained = RetainedStore(-1, -1)
    for number in range(EXPIRED_MAX + 5):
        retained.set(message_of(b"%d" % number, expires_at=NOW + 1), WriteBatch(), CLOCK, NOW)
    assert retained.expire(NOW + 2, WriteBatch()) == EXPIRED_MAX
    assert retained.next_deadline() <= NOW + 2
    assert retained.expire(NOW + 2, WriteBatch()) == 5


def test_deadlines_of_messages_that_were_replaced_count_as_work_too() -> None:
    retained = RetainedStore(-1, -1)
    for expires_at in (NOW + 1, NOW + 2):
        for number in range(EXPIRED_MAX):
            retained.set(message_of(b"%d" % number, expires_at=expires_at), WriteBatch(), CLOCK, NOW)
    assert retained.expire(NOW + 3, WriteBatch()) == 0
    assert retained.next_deadline() <= NOW + 3
    assert retained.expire(NOW + 3, WriteBatch()) == EXPIRED_MAX
    assert retained.next_deadline() == math.inf
    retained.validate()


def test_many_levels_are_no_recursion() -> None:
    kept = Kept()
    topic = b"/".join([b"a"] * 1_000)
    assert kept.set(topic)
    assert kept.found(b"#") == [topic]
    assert kept.found(b"/".join([b"+"] * 1_000)) == [topic]
    assert kept.set(topic, b"")


@pytest.mark.parametrize("version", [b"\x63", b"\x01\x63"])
def test_a_newer_version_is_refused(version: bytes) -> None:
    storage = MemoryStorage()
    writes = WriteBatch()
    writes.put("retained", stored_key(bytes(16), b"a"), version + bytes(60))
    storage.commit(writes)
    with pytest.raises(StorageError, match="retained record has version 99"):
        RetainedStore(-1, -1).recover(storage, CLOCK)
