"""What 100,000 retained messages cost, without sockets: `python -m bench.retained`.

Topics of four levels and one of ten kinds, 64 B payloads, half of the messages with an expiry. Prints CPU time per set
(new and replacing, with the record for the store), per look-up by topic and by filters that match all, some and one,
and the memory of it all; a compiled core says so.
"""

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

from broker.core.message import Message
from broker.core.retained import RetainedStore
from broker.core.storage import MemoryStorage, WriteBatch
from broker.core.stored_message import Clock

MESSAGES = 100_000
ROUNDS = 5
KINDS = (b"co2", b"door", b"humidity", b"lamp", b"light", b"motion", b"noise", b"power", b"smoke", b"temperature")
CLOCK = Clock(1000.0, 1_700_000_000_000)


def topic_of(number: int) -> bytes:
    """building/B/room R/kind: 100 buildings of 100 rooms of 10 kinds."""
    return b"building/%d/room %d/%b" % (number // 1000, number // 10 % 100, KINDS[number % 10])


def messages(topics: list[bytes], expires_at: float) -> list[Message]:
    """A message for each topic; every other one has a deadline."""
    return [
        Message(topic, b"x" * 64, b"", 1, True, expires_at if n % 2 else 0.0, "sensor", b"s" * 16, n)
        for n, topic in enumerate(topics)
    ]


def fill(store: RetainedStore, filling: list[Message]) -> float:
    """Set them all and return the CPU seconds."""
    began = time.thread_time()
    writes = WriteBatch()
    for message in filling:
        store.set(message, writes, CLOCK, 1000.0)
        if len(writes) == 1000:
            writes = WriteBatch()
    return time.thread_time() - began


def best_of_rounds(question: Callable[[], list[Any]]) -> tuple[float, int]:
    """The least CPU seconds of a call, and how many it found."""
    spent = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        found = question()
        spent.append(time.thread_time() - began)
    return min(spent), len(found)


def print_look_ups(store: RetainedStore) -> None:
    """Print what the look-ups cost by filters that match fewer and fewer."""
    for topic_filter in (
        b"#",
        b"building/#",
        b"+/+/+/lamp",
        b"building/7/#",
        b"building/+/room 7/lamp",
        topic_of(77_777),
    ):
        matching, found = best_of_rounds(partial(store.match, topic_filter, 1000.0))
        print(f"match {topic_filter.decode():27} {found:6} found in {matching * 1e3:.3f} ms")


def print_expiry(store: RetainedStore) -> None:
    """Print what it costs to end half of the messages at one time."""
    calls = expired = 0
    longest = 0.0
    began = time.thread_time()
    while store.next_deadline() <= 5000.0:
        call_began = time.thread_time()
        expired += store.expire(5000.0, WriteBatch())
        longest = max(longest, time.thread_time() - call_began)
        calls += 1
    spent = time.thread_time() - began
    print(f"expire: {spent / expired * 1e6:.2f} us per message, the longest of {calls} calls {longest * 1e3:.2f} ms")


def print_recovery(filling: list[Message]) -> None:
    """Print what a restart costs, without the disk."""
    storage = MemoryStorage()
    writes = WriteBatch()
    store = RetainedStore(-1, -1)
    # In the order of keys, or the MemoryStorage would sort for longer than this takes.
    for message in sorted(filling, key=lambda message: message.topic):
        store.set(message, writes, CLOCK, 1000.0)
    storage.commit(writes)
    began = time.thread_time()
    RetainedStore(-1, -1).recover(storage, CLOCK)
    print(f"recover: {(time.thread_time() - began) * 1e3:.0f} ms in all")


def print_memory(topics: list[bytes]) -> None:
    """Print the bytes of a message in the store, its own included."""
    gc.collect()
    tracemalloc.start()
    store = RetainedStore(-1, -1)
    writes = WriteBatch()
    for n, topic in enumerate(topics):
        # Topic and payload as a listener's frame would give them: new bytes each.
        message = Message(bytes(bytearray(topic)), bytes(64), b"", 1, True, 0.0, "sensor", b"", 0)
        store.set(message, writes, CLOCK, 1000.0)
        if n % 1000 == 999:
            writes = WriteBatch()
    held, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"memory: {held / len(topics):.0f} B per message, of which {store.bytes / len(topics):.0f} B count")


def main() -> None:
    print(
        "cores are", "interpreted" if str(sys.modules["broker.core.retained"].__file__).endswith(".py") else "compiled"
    )
    topics = [topic_of(number) for number in range(MESSAGES)]
    store = RetainedStore(-1, -1)
    new = fill(store, messages(topics, 4000.0))
    again = fill(store, messages(topics, 4001.0))
    print(f"set: {new / MESSAGES * 1e6:.2f} us new, {again / MESSAGES * 1e6:.2f} us replacing")
    print_look_ups(store)
    print_expiry(store)
    print_recovery(messages(topics, 4000.0))
    print_memory(topics)


if __name__ == "__main__":
    main()
