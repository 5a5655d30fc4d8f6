"""broker.core.delivery_queue: order, limits, and what is in memory of a queue that goes on in the store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.delivery_queue import HEAD_LOW, HEAD_MAX, DeliveryQueue
from broker.core.message import Delivery, Message


def delivery(seq: int, qos: int = 1, stored: bool = False, payload: bytes = b"") -> Delivery:
    made = Delivery(seq, Message(b"t", payload), qos)
    made.stored = stored
    return made


def drained(queue: DeliveryQueue) -> list[int]:
    found = []
    while queue.in_memory():
        found.append(queue.pop().seq)
    return found


def test_the_oldest_comes_first() -> None:
    queue = DeliveryQueue()
    for seq, qos in ((1, 1), (2, 0), (3, 1)):
        queue.push(delivery(seq, qos))
    assert [found.seq for found in queue.deliveries()] == [1, 2, 3]
    assert drained(queue) == [1, 2, 3]
    assert queue.head() is None
    assert queue.bytes == 0


def test_the_youngest_comes_first_in_a_lifo_queue() -> None:
    queue = DeliveryQueue(lifo=True)
    for seq, stored in ((1, True), (2, False), (3, True)):
        queue.push(delivery(seq, stored=stored))
    assert drained(queue) == [3, 2, 1]


@pytest.mark.parametrize(
    ("messages_max", "bytes_max", "size", "room"),
    [
        (-1, -1, 1000, True),
        (2, -1, 1, False),
        (3, -1, 1, True),
        (-1, 30, 8, True),
        (-1, 30, 9, False),
        (0, -1, 1, False),
    ],
)
def test_room(messages_max: int, bytes_max: int, size: int, room: bool) -> None:
    queue = DeliveryQueue()
    for seq in (1, 2):
        queue.push(delivery(seq, payload=b"p" * 10))
    assert queue.bytes == 22
    assert queue.has_room(messages_max, bytes_max, size) == room


def test_a_single_message_over_the_byte_limit_has_room_in_an_empty_queue() -> None:
    assert DeliveryQueue().has_room(-1, 5, 100)


def test_qos_0_goes_with_the_connection() -> None:
    queue = DeliveryQueue()
    for seq, qos in ((1, 0), (2, 1), (3, 0), (4, 2)):
        queue.push(delivery(seq, qos))
    assert queue.qos0 == 2
    assert queue.drop_qos0() == 2
    assert queue.drop_qos0() == 0
    assert drained(queue) == [2, 4]


def test_a_stored_queue_keeps_its_head_in_memory_and_counts_the_rest() -> None:
    queue = DeliveryQueue()
    for seq in range(1, HEAD_MAX + 101):
        queue.push(delivery(seq, stored=True))
    queue.validate()
    assert (len(queue), queue.in_memory(), queue.tail_count) == (HEAD_MAX + 100, HEAD_MAX, 100)
    assert queue.tail_seq == HEAD_MAX + 1
    assert not queue.wants_load()
    while queue.in_memory() > HEAD_LOW:
        queue.pop()
    assert queue.wants_load()
    queue.load([delivery(seq, stored=True) for seq in range(queue.tail_seq, queue.tail_seq + 60)])
    assert (queue.tail_count, queue.tail_seq) == (40, HEAD_MAX + 61)
    # What comes now is behind the tail, so it is in the store only.
    queue.push(delivery(HEAD_MAX + 101, stored=True))
    assert queue.tail_count == 41
    queue.load([delivery(seq, stored=True) for seq in range(HEAD_MAX + 61, HEAD_MAX + 102)])
    queue.validate()
    assert drained(queue) == list(range(HEAD_MAX - HEAD_LOW + 1, HEAD_MAX + 102))
    assert (len(queue), queue.bytes) == (0, 0)


def test_what_is_not_stored_does_not_wait_for_the_tail() -> None:
    """It is QoS 0, or a session's that ends with its connection: order is promised per topic and QoS."""
    queue = DeliveryQueue()
    queue.restore(1, 1)
    queue.push(delivery(2, qos=0))
    head = queue.head()
    assert head is not None and head.seq == 2


def test_a_lifo_queue_keeps_its_youngest_in_memory() -> None:
    queue = DeliveryQueue(lifo=True)
    for seq in range(1, HEAD_MAX + 11):
        queue.push(delivery(seq, stored=True))
    queue.validate()
    assert (queue.tail_count, queue.tail_seq) == (10, 10)
    assert queue.pop().seq == HEAD_MAX + 10
    assert queue.pop_oldest() is None
    while queue.in_memory():
        queue.pop()
    queue.load([delivery(seq, stored=True) for seq in range(10, 0, -1)])
    assert drained(queue) == list(range(10, 0, -1))


def test_making_room_takes_the_oldest() -> None:
    queue = DeliveryQueue(lifo=True)
    for seq, stored in ((1, False), (2, True), (3, False)):
        queue.push(delivery(seq, stored=stored))
    oldest = [queue.pop_oldest() for _ in range(3)]
    assert [found.seq for found in oldest if found is not None] == [1, 2, 3]


def test_recovery_counts_without_reading() -> None:
    for lifo, tail_seq in ((False, 3), (True, 9)):
        queue = DeliveryQueue(lifo)
        for seq in (3, 5, 9):
            queue.restore(seq, 100)
        assert (len(queue), queue.in_memory(), queue.bytes, queue.tail_seq) == (3, 0, 300, tail_seq)
        assert queue.wants_load()


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(["push", "store", "pop", "load"]), st.integers(0, 2))))
def test_nothing_is_lost_and_order_is_kept(lifo: bool, steps: list[tuple[str, int]]) -> None:
    """Against a model: the store is a dict, and what is stored comes in order whatever is in memory."""
    queue = DeliveryQueue(lifo)
    store: dict[int, Delivery] = {}
    seq = 0
    for step, qos in steps:
        if step in ("push", "store"):
            seq += 1
            made = delivery(seq, 1 if step == "store" else qos, stored=step == "store")
            if made.stored:
                store[seq] = made
            queue.push(made)
        elif step == "pop" and queue.in_memory():
            taken = queue.pop()
            if taken.stored:
                waiting = max(store) if lifo else min(store)
                assert taken.seq == waiting
                del store[taken.seq]
        elif queue.wants_load():
            tail = sorted(found for found in store if (found <= queue.tail_seq if lifo else found >= queue.tail_seq))
            queue.load([store[found] for found in (tail[::-1] if lifo else tail)[: queue.tail_count]])
        queue.validate()
