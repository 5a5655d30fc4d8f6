"""A listener's counters: their order, their packed form, and sums that never go backwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.counters import (
    CONNACK_REASONS,
    LISTENER_COUNTERS,
    PLAIN,
    RECEIVED,
    SENT,
    ListenerCounters,
    ListenerTotals,
    add_up,
    pack_counters,
    unpack_counters,
)
from broker.mqtt.packets import PacketType
from broker.mqtt.reasons import Reason

COUNT = len(LISTENER_COUNTERS)


def named(counters: ListenerCounters) -> dict[str, int]:
    return dict(zip(LISTENER_COUNTERS, counters.values(), strict=True))


def report(**counted: int) -> list[int]:
    return [counted.get(name, 0) for name in LISTENER_COUNTERS]


def test_every_name_is_there_once() -> None:
    assert len(set(LISTENER_COUNTERS)) == COUNT
    assert {"mqtt_publish_received", "mqtt_pingresp_sent", "mqtt_connack_sent{reason_code=success}"} < set(
        LISTENER_COUNTERS
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_counter_is_reported_under_its_name(name: str) -> None:
    counters = ListenerCounters()
    setattr(counters, name, 7)
    assert {key: value for key, value in named(counters).items() if value} == {name: 7}


def test_packets_are_counted_by_type() -> None:
    counters = ListenerCounters()
    for kind in RECEIVED:
        counters.received[kind] += kind
    for kind in SENT:
        counters.sent[kind] += 100 + kind
    counters.publishes_received, counters.publishes_sent = int(PacketType.PUBLISH), 100 + PacketType.PUBLISH
    counted = {name: value for name, value in named(counters).items() if value}
    wanted = {f"mqtt_{kind.name.lower()}_received": int(kind) for kind in RECEIVED}
    wanted |= {f"mqtt_{kind.name.lower()}_sent": 100 + kind for kind in SENT if kind != PacketType.CONNACK}
    assert counted == wanted


def test_connacks_are_counted_by_reason() -> None:
    counters = ListenerCounters()
    for reason in CONNACK_REASONS:
        counters.connacks[reason] += 1 + reason
    counted = {name: value for name, value in named(counters).items() if value}
    assert counted["mqtt_connack_sent{reason_code=success}"] == 1
    assert counted["mqtt_connack_sent{reason_code=not_authorized}"] == 1 + Reason.NOT_AUTHORIZED
    assert len(counted) == len(CONNACK_REASONS)


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (Reason.PACKET_TOO_LARGE, "mqtt_invalid_msg_size_error"),
        (Reason.MALFORMED_PACKET, "mqtt_malformed_packet_error"),
        (Reason.KEEP_ALIVE_TIMEOUT, "client_keepalive_expired"),
        (Reason.TOPIC_ALIAS_INVALID, "mqtt_protocol_error"),
        (Reason.PROTOCOL_ERROR, "mqtt_protocol_error"),
    ],
)
def test_faults_are_counted_by_what_they_are(reason: Reason, name: str) -> None:
    counters = ListenerCounters()
    counters.fault(reason)
    assert {key: value for key, value in named(counters).items() if value} == {name: 1}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=COUNT, max_size=COUNT))
def test_a_report_survives_the_pipe(values: list[int]) -> None:
    packed = pack_counters(values)
    assert len(packed) == 3 + 8 * COUNT
    assert unpack_counters(packed) == values


def test_a_report_that_does_not_fit_is_a_fault_of_ours() -> None:
    packed = pack_counters([1] * COUNT)
    for wrong in (b"\x02" + packed[1:], packed[:-1], packed + b"\0", pack_counters([1] * (COUNT - 1))):
        with pytest.raises(AssertionError):
            unpack_counters(wrong)


def test_add_up() -> None:
    total = [1, 2]
    add_up(total, [10, 20])
    assert total == [11, 22]


def test_the_latest_report_of_each_listener_counts() -> None:
    totals = ListenerTotals()
    assert totals.named() == {}
    totals.receive(0, 1, report(bytes_sent=5))
    totals.receive(0, 1, report(bytes_sent=7))
    totals.receive(1, 1, report(bytes_sent=100))
    assert totals.named()["bytes_sent"] == 107


def test_a_listener_that_is_gone_keeps_its_numbers_and_loses_its_sockets() -> None:
    totals = ListenerTotals()
    totals.receive(0, 1, report(bytes_sent=5, socket_open=4, socket_close=1))
    totals.gone(0, 1)
    totals.receive(0, 1, report(bytes_sent=6))
    assert totals.named()["bytes_sent"] == 5
    totals.receive(0, 2, report(bytes_sent=1, socket_open=2))
    assert totals.named()["bytes_sent"] == 6
    assert (totals.named()["socket_open"], totals.named()["socket_close"]) == (6, 4)
    # Of a generation that is gone for long.
    totals.gone(0, 1)
    totals.receive(0, 1, report(bytes_sent=50))
    assert totals.named()["bytes_sent"] == 6


def test_a_new_generation_retires_the_older_without_being_told() -> None:
    totals = ListenerTotals()
    totals.receive(0, 1, report(bytes_sent=5))
    totals.receive(0, 3, report(bytes_sent=1))
    assert totals.named()["bytes_sent"] == 6


def test_a_listener_that_never_reported_can_go() -> None:
    totals = ListenerTotals()
    totals.gone(0, 1)
    totals.receive(0, 1, report(bytes_sent=5))
    assert totals.values() == [0] * COUNT


# A step is a listener's: count some, report, or die and start again.
STEPS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "report", "die", "late"])), max_size=60)


@given(STEPS)
def test_no_sum_ever_goes_backwards(steps: list[tuple[int, str]]) -> None:
    totals = ListenerTotals()
    living = {index: (1, ListenerCounters()) for index in range(3)}
    late: list[tuple[int, int, list[int]]] = []
    before = totals.values()
    for index, step in steps:
        generation, counters = living[index]
        if step == "count":
            counters.socket_open += 2
            counters.socket_close += 1
            counters.publishes_received += 3
        elif step == "report":
            late.append((index, generation, counters.values()))
            totals.receive(index, generation, unpack_counters(pack_counters(counters.values())))
        elif step == "die":
            totals.gone(index, generation)
            living[index] = (generation + 1, ListenerCounters())
        else:
            for report_of in late:
                if report_of[1] < living[report_of[0]][0]:
                    totals.receive(*report_of)
        now = totals.values()
        assert all(new >= old for new, old in zip(now, before, strict=True))
        before = now
