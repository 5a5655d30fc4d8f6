"""broker.core.delivery_queue: a bounded FIFO whose QoS 0 part doesn't outlive a connection."""

from hypothesis import given
from hypothesis import strategies as st

from broker.core.delivery_queue import DeliveryQueue
from broker.core.message import Delivery, Message


def filled(qualities):
    queue = DeliveryQueue()
    for seq, qos in enumerate(qualities, start=1):
        queue.push(Delivery(seq, Message(b"t", b"", qos=qos), qos))
    return queue


@given(st.lists(st.integers(0, 1)), st.integers(0, 50))
def test_order_and_the_count_of_qos0(qualities, taken):
    queue = filled(qualities)
    for seq in range(1, min(taken, len(qualities)) + 1):
        assert queue.head().seq == seq
        assert queue.pop().seq == seq
    assert queue.qos0 == qualities[taken:].count(0)
    assert len(queue) == len(qualities[taken:])
    assert queue.drop_qos0() == qualities[taken:].count(0)
    assert queue.qos0 == 0
    kept = [seq for seq, qos in enumerate(qualities, start=1) if qos and seq > taken]
    assert [delivery.seq for delivery in queue.deliveries()] == kept


def test_room():
    queue = filled([1, 1])
    assert queue.has_room(3)
    assert not queue.has_room(2)
    assert not queue.has_room(1)
    assert not queue.has_room(0)
    assert queue.has_room(-1)


def test_what_is_returned_is_a_copy():
    queue = filled([1, 0])
    queue.deliveries().clear()
    assert len(queue) == 2
