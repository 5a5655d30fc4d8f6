"""vmq-bench: its arguments, what it counts, and whether it notices a broker that loses, repeats or swaps messages."""

import io
import json
from typing import Any

import pytest
from lying_broker import Deliver, LyingBroker, honest, lose_the_third, repeat_the_third, swap_two

from bench import load
from bench.report import Result, latencies_us, write_result
from bench.stamps import PAYLOAD_BYTES_MIN, Arrivals, Stamp, Tally, percentile, read_stamp

RUN = b"this run"
OTHER = b"thatrun!"


def test_a_stamp_survives_its_payload() -> None:
    stamp = Stamp(RUN, 7, 2**32 - 1, 2**63)
    assert read_stamp(stamp.payload(64)) == stamp
    assert len(stamp.payload(64)) == 64
    assert read_stamp(stamp.payload(PAYLOAD_BYTES_MIN)) == stamp
    assert read_stamp(b"x" * (PAYLOAD_BYTES_MIN - 1)) is None


def arrive(*sequences: int) -> tuple[Tally, Arrivals]:
    tally = Tally()
    arrivals = Arrivals(tally)
    highest: dict[tuple[bytes, int], int] = {}
    for sequence in sequences:
        arrivals.take(Stamp(RUN, 1, sequence, 1000), highest, 4000)
    return tally, arrivals


@pytest.mark.parametrize(
    ("sequences", "received", "duplicated", "reordered", "gaps"),
    [
        ((0, 1, 2), 3, 0, 0, 0),
        ((0, 2), 2, 0, 0, 1),
        ((0, 1, 1, 0), 2, 2, 0, 0),
        ((0, 2, 1), 3, 0, 1, 0),
        ((5, 6, 9), 3, 0, 0, 2),
        ((), 0, 0, 0, 0),
    ],
)
def test_arrivals(sequences: tuple[int, ...], received: int, duplicated: int, reordered: int, gaps: int) -> None:
    tally, arrivals = arrive(*sequences)
    assert (tally.received, tally.duplicated, tally.reordered) == (received, duplicated, reordered)
    assert arrivals.gaps() == gaps
    assert tally.latencies_ns == [3000] * received


def test_sources_are_told_apart() -> None:
    tally = Tally()
    arrivals = Arrivals(tally)
    highest: dict[tuple[bytes, int], int] = {}
    for stamp in (Stamp(RUN, 1, 5, 0), Stamp(RUN, 2, 0, 0), Stamp(OTHER, 1, 0, 0)):
        assert arrivals.take(stamp, highest, 1)
    assert (tally.duplicated, tally.reordered) == (0, 0)


def test_a_group_has_one_set_of_arrivals_and_an_order_for_each_member() -> None:
    tally = Tally()
    arrivals = Arrivals(tally)
    first: dict[tuple[bytes, int], int] = {}
    second: dict[tuple[bytes, int], int] = {}
    assert arrivals.take(Stamp(RUN, 1, 1, 0), first, 1)
    assert arrivals.take(Stamp(RUN, 1, 0, 0), second, 1)
    assert not arrivals.take(Stamp(RUN, 1, 1, 0), second, 1)
    assert (tally.received, tally.duplicated, tally.reordered) == (2, 1, 0)


def test_percentiles() -> None:
    values = list(range(1, 102))
    assert [percentile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 51, 100, 101]
    assert percentile([], 0.5) == 0
    assert latencies_us([]) == {}
    assert latencies_us([3000, 1000])["max"] == 3.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", ("10.0.0.1", 1883)),
        ("10.0.0.1:1884", ("10.0.0.1", 1884)),
        ("::1", ("::1", 1883)),
        ("[::1]:1884", ("::1", 1884)),
    ],
)
def test_endpoints(text: str, found: tuple[str, int]) -> None:
    assert load.endpoint(text, 1883) == found


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["everything"],
        ["pairs", "--pairs", "0"],
        ["pairs", "--qos", "3"],
        ["pairs", "--size", "23"],
        ["pairs", "--rate", "nan"],
        ["pairs", "--duration", "inf"],
        ["pairs", "--topic", "a/#"],
        ["pairs", "--host", "a:b"],
        ["pairs", "--port", "65536"],
        ["pairs", "--clean", "--persistent"],
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vmq-bench")


def result(**changed: Any) -> Result:
    values: dict[str, Any] = {
        "scenario": "pairs",
        "qos": 1,
        "protocol": "MQTT 5",
        "payload_bytes": 64,
        "publishers": 10,
        "subscribers": 10,
        "published": 1000,
        "acknowledged": 1000,
        "expected": 1000,
        "received": 1000,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "counted": "messages",
        "seconds": 0.5,
        "rate_per_s": 2000.0,
        "latency_us": {"p50": 1000.0, "p90": 2000.0, "p99": 3000.0, "max": 4000.0},
    }
    return Result(**{**values, **changed})


@pytest.mark.parametrize("fault", ["lost", "duplicated", "reordered"])
def test_qos_0_promises_less(fault: str) -> None:
    assert result().is_good
    assert not result(**{fault: 1}).is_good
    assert result(qos=0, **{fault: 1}).is_good


def test_a_subscriber_waits_for_a_number_at_any_qos() -> None:
    assert not result(scenario="sub", qos=0, expected=5, received=4).is_good


def test_the_report_for_people() -> None:
    stream = io.StringIO()
    write_result(result(lost=3), False, stream)
    assert stream.getvalue() == (
        "pairs: 10 publishers, 10 subscribers, QoS 1, 64 B, MQTT 5\n"
        "rate        2,000 messages/s over 0.50 s\n"
        "latency     p50 1.00 ms  p90 2.00 ms  p99 3.00 ms  max 4.00 ms\n"
        "messages    published 1,000  acknowledged 1,000  received 1,000\n"
        "lost 3  duplicated 0  reordered 0\n"
    )


def test_the_report_for_programs() -> None:
    stream = io.StringIO()
    write_result(result(), True, stream)
    assert json.loads(stream.getvalue())["latency_us"]["p99"] == 3000.0


def bench(broker: LyingBroker, *arguments: str) -> int:
    return load.run([*arguments, "--pairs=1", f"--port={broker.port}", "--count=3", "--json"])


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(
    ("deliver", "lost", "duplicated", "reordered"),
    [(honest, 0, 0, 0), (lose_the_third, 1, 0, 0), (repeat_the_third, 0, 1, 0), (swap_two, 0, 0, 1)],
)
def test_a_lie_is_noticed(
    deliver: Deliver, lost: int, duplicated: int, reordered: int, qos: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with LyingBroker(deliver) as broker:
        code = bench(broker, "pairs", f"--qos={qos}", "--timeout=0.5")
    found = json.loads(capsys.readouterr().out)
    assert (found["lost"], found["duplicated"], found["reordered"]) == (lost, duplicated, reordered)
    assert (found["published"], found["received"]) == (3, 3 - lost)
    assert code == (1 if qos and deliver is not honest else 0)


def test_an_open_loop_sends_all_when_due(capsys: pytest.CaptureFixture[str]) -> None:
    with LyingBroker() as broker:
        assert bench(broker, "pairs", "--qos=1", "--rate=100") == 0
    assert json.loads(capsys.readouterr().out)["received"] == 3


@pytest.mark.parametrize(
    ("broker", "text"),
    [
        (lambda: LyingBroker(connack=5), "refused the connection"),
        (lambda: LyingBroker(suback=0x80), "refused the subscription"),
        (lambda: LyingBroker(suback=0), "granted"),
        (lambda: LyingBroker(mute=True), "has not answered the CONNECT"),
    ],
)
def test_a_refusal_ends_the_run(broker: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with broker() as refusing:
        assert bench(refusing, "shared", "--qos=1", "--timeout=0.5") == 1
    assert text in capsys.readouterr().err


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with LyingBroker() as broker:
        port = broker.port
    assert load.run(["connect", f"--port={port}"]) == 1
    assert "cannot connect" in capsys.readouterr().err
