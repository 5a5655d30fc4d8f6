"""broker.core.outlet: deliveries stop with the credit, answers don't."""

import math

from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.message import Message
from broker.core.outlet import Outlet, remaining_s
from broker.core.owner_records import Answer, Deliver, unpack_owner_records
from broker.core.records import PUBACK

MESSAGE = Message(b"topic", b"p" * 100)


def sent(outlet):
    batch = outlet.take_batch()
    return batch.size(), [record for records in batch.records() for record in unpack_owner_records(records, 0)]


def test_it_closes_when_the_turn_fills_the_window():
    outlet = Outlet(0, 1, 300)
    outlet.deliver(7, 1 << 16 | 1, MESSAGE, b"", 0.0)
    assert outlet.open
    outlet.deliver(7, 2 << 16 | 1, MESSAGE, b"", 0.0)
    outlet.deliver(7, 3 << 16 | 1, MESSAGE, b"", 0.0)
    assert not outlet.open
    size, records = sent(outlet)
    assert size >= 300
    assert [record.target(0) for record in records] == [(7, 1, 1), (7, 2, 1), (7, 3, 1)]


def test_answers_leave_without_credit():
    outlet = Outlet(0, 1, 100)
    outlet.deliver(7, 0, MESSAGE, b"", 0.0)
    sent(outlet)
    assert not outlet.open
    outlet.batch.acknowledge(PUBACK, 7, 9, 0)
    _, (answer,) = sent(outlet)
    assert isinstance(answer, Answer)
    assert answer.packet_id == 9


def test_it_opens_again_with_half_a_window():
    outlet = Outlet(0, 1, 200)
    outlet.deliver(7, 0, MESSAGE, b"", 0.0)
    outlet.deliver(7, 0, MESSAGE, b"", 0.0)
    size, _ = sent(outlet)
    assert not outlet.open
    assert not outlet.return_credit(size - 200 + 99, 0.0)
    assert not outlet.open
    assert outlet.return_credit(1, 0.0)
    assert outlet.open
    # It says so once.
    assert not outlet.return_credit(1, 0.0)


def test_credit_never_exceeds_the_window():
    outlet = Outlet(0, 1, 200)
    outlet.return_credit(1000, 0.0)
    outlet.deliver(7, 0, MESSAGE, b"", 0.0)
    outlet.deliver(7, 0, MESSAGE, b"", 0.0)
    assert not outlet.open


def test_a_listener_that_stalls_is_no_longer_behind():
    outlet = Outlet(0, 1, 100)
    assert not outlet.is_behind(5.0)
    outlet.deliver(7, 0, MESSAGE, b"", 5.0)
    assert outlet.is_behind(5.5)
    assert not outlet.is_behind(7.0)
    sent(outlet)
    outlet.return_credit(1, 7.5)
    assert outlet.is_behind(8.0)


def test_many_targets_share_one_body():
    outlet = Outlet(0, 1, 10_000)
    targets = b"".join(number.to_bytes(4, "big") + number.to_bytes(2, "big") + b"\0\1" for number in (1, 2, 3))
    outlet.deliver_many(targets, MESSAGE, b"", 0.0)
    size, (record,) = sent(outlet)
    assert isinstance(record, Deliver)
    assert size < 200
    assert [record.target(index) for index in range(record.count)] == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]


@example(8191.611, 60, 0.0)
@given(st.floats(0.001, 1e9), st.integers(0, 0xFFFFFFFE), st.floats(0, 1e6))
def test_what_is_left_of_an_interval(now, interval_s, waited_s):
    """[MQTT-3.3.2-6]: the received interval less the time that the message waited."""
    left = remaining_s(Message(b"t", b"", expires_at=now + interval_s), now + waited_s)
    if waited_s == 0:
        assert left == interval_s
    assert 0 <= left <= interval_s
    assert left >= min(interval_s, math.floor(interval_s - waited_s))


def test_what_never_expires():
    assert remaining_s(Message(b"t", b""), 1e9) == -1
