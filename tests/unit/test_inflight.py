"""broker.core.inflight: packet ids are unique while in use, and the window bounds them."""

import pytest

from broker.core.inflight import PACKET_ID_MAX, Inflight
from broker.core.message import Delivery, Message


def delivery(seq=1):
    return Delivery(seq, Message(b"t", b"", qos=1), 1)


def test_ids_count_up_and_wrap_without_zero():
    """[MQTT-2.2.1-3]: a packet id is never 0."""
    inflight = Inflight(10)
    inflight.restore(sent := delivery_with_id(PACKET_ID_MAX - 1))
    assert [inflight.add(delivery(), 0.0) for _ in range(3)] == [PACKET_ID_MAX, 1, 2]
    assert next(iter(inflight.deliveries.values())) is sent


def delivery_with_id(packet_id):
    sent = delivery()
    sent.packet_id = packet_id
    return sent


def test_ids_in_use_are_skipped():
    """[MQTT-2.2.1-4]: a new delivery takes an id that is not in use."""
    inflight = Inflight(10)
    for packet_id in (1, 2, 4, PACKET_ID_MAX):
        inflight.restore(delivery_with_id(packet_id))
    assert [inflight.add(delivery(), 0.0) for _ in range(3)] == [3, 5, 6]


def test_the_whole_range_can_be_in_use():
    inflight = Inflight(PACKET_ID_MAX)
    ids = {inflight.add(delivery(), 0.0) for _ in range(PACKET_ID_MAX)}
    assert ids == set(range(1, PACKET_ID_MAX + 1))
    assert inflight.is_full()
    inflight.pop(77)
    assert not inflight.is_full()
    assert inflight.add(delivery(), 0.0) == 77


def test_pop_gives_the_delivery_once():
    inflight = Inflight(1)
    sent = delivery()
    packet_id = inflight.add(sent, 0.0)
    assert inflight.is_full()
    assert len(inflight) == 1
    assert inflight.pop(packet_id) is sent
    assert inflight.pop(packet_id) is None
    assert not inflight.is_full()


@pytest.mark.parametrize("window", [1, 2, 20])
def test_the_window_bounds(window):
    inflight = Inflight(window)
    for _ in range(window):
        assert not inflight.is_full()
        inflight.add(delivery(), 0.0)
    assert inflight.is_full()


def test_a_new_connection_sends_everything_again_in_order():
    """[MQTT-4.4.0-1]"""
    inflight = Inflight(2)
    sent = [delivery(seq) for seq in range(1, 5)]
    for packet_id, one in zip((7, 8, 9, 3), sent, strict=True):
        one.packet_id = packet_id
        inflight.restore(one)
    assert not inflight.is_resending()
    inflight.begin_resend()
    assert not inflight.is_full()
    assert inflight.is_resending()
    assert [inflight.take_resend(0.0).packet_id for _ in range(2)] == [7, 8]
    # The window counts what this connection was sent [MQTT-3.3.4-9].
    assert inflight.is_full()
    inflight.pop(7)
    assert not inflight.is_full()
    # What is acknowledged before it was sent again isn't sent again, and makes no room.
    inflight.pop(9)
    assert inflight.take_resend(0.0) is sent[3]
    assert inflight.take_resend(0.0) is None
    assert not inflight.is_resending()
    assert inflight.is_full()


def test_a_connection_that_ends_while_sending_again_begins_anew():
    inflight = Inflight(10)
    for _ in range(3):
        inflight.add(delivery(), 0.0)
    inflight.begin_resend()
    assert inflight.take_resend(0.0).packet_id == 1
    inflight.begin_resend()
    assert [inflight.take_resend(0.0).packet_id for _ in range(3)] == [1, 2, 3]
    inflight.pop(1)
    inflight.pop(2)
    inflight.pop(3)
    assert len(inflight) == 0
    assert [inflight.add(delivery(), 0.0) for _ in range(10)] == list(range(4, 14))
    assert inflight.is_full()


def test_acknowledged_before_its_turn_and_its_id_taken_by_another():
    inflight = Inflight(10)
    first = delivery()
    first.packet_id = PACKET_ID_MAX
    inflight.restore(first)
    inflight.begin_resend()
    inflight.pop(PACKET_ID_MAX)
    inflight.restore(delivery_with_id(PACKET_ID_MAX - 1))
    assert inflight.add(delivery(), 0.0) == PACKET_ID_MAX
    assert inflight.take_resend(0.0) is None
