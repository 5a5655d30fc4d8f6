"""The $SYS topics of a node: their names, their rounds, and the averages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.counters import LISTENER_COUNTERS
from broker.core.events import Attach, ListenerStarted, SubscribeReceived
from broker.core.metrics import METRICS
from broker.core.owner import QueueOwner
from broker.core.owner_records import OwnerHeader, owner_frame, unpack_owner_records
from broker.core.settings import OwnerSettings
from broker.core.storage import MemoryStorage
from broker.core.systree import Load, Systree, topic_of, total
from broker.mqtt.topics import check_name
from cluster.mesh import Mesh, MeshSettings
from cluster.node import NodeCore

NODE = "node1@127.0.0.1"
START_S = 100.0


def started(interval_s: float = 20.0) -> Systree:
    return Systree(NODE, "1.2.3", interval_s, START_S)


def round_of(systree: Systree, now: float, **metrics: int) -> dict[str, str]:
    topics = [(topic.decode(), payload.decode()) for topic, payload in systree.tick(now, metrics)]
    assert len(dict(topics)) == len(topics), "a topic twice in a round"
    return dict(topics)


def everything(value: int = 1) -> dict[str, int]:
    return dict.fromkeys([*METRICS, *LISTENER_COUNTERS], value)


def test_rounds_come_one_interval_apart() -> None:
    systree = started()
    assert systree.next_deadline() == 120.0
    assert systree.tick(119.9, {}) == []
    assert systree.tick(120.5, {})
    assert systree.next_deadline() == 140.0
    assert systree.tick(139.0, {}) == []


def test_a_round_that_was_missed_is_not_made_up_for() -> None:
    systree = started()
    assert systree.tick(175.0, {})
    assert systree.next_deadline() == 195.0


def test_an_interval_of_zero_is_never() -> None:
    systree = started(0)
    assert systree.next_deadline() == math.inf
    assert systree.tick(1e9, {"bytes_sent": 1}) == []


def test_every_metric_is_below_the_nodes_name() -> None:
    found = round_of(started(), 120.0, mqtt_publish_received=5, sessions_online=2)
    assert found[f"$SYS/{NODE}/mqtt/publish/received"] == "5"
    assert found[f"$SYS/{NODE}/sessions/online"] == "2"
    assert topic_of("queue_message_drop{reason=queue_full}") == "queue/message/drop/queue_full"


def test_a_full_round_has_topic_names_that_are_valid_and_mosquittos() -> None:
    found = round_of(started(), 120.0, **everything())
    for topic in found:
        check_name(topic.encode())
    windows = ("1min", "5min", "15min")
    loads = (
        "messages/received", "messages/sent", "publish/received", "publish/sent", "publish/dropped", "bytes/received",
        "bytes/sent", "sockets", "connections",
    )  # fmt: skip
    assert {topic.removeprefix("$SYS/broker/") for topic in found if topic.startswith("$SYS/broker/")} == {
        "version", "uptime", "clients/connected", "clients/disconnected", "clients/total", "clients/maximum",
        "clients/expired", "clients/active", "clients/inactive", "messages/received", "messages/sent",
        "messages/stored", "publish/messages/received", "publish/messages/sent", "publish/messages/dropped",
        "publish/bytes/received", "publish/bytes/sent", "bytes/received", "bytes/sent", "retained messages/count",
        "subscriptions/count", "shared_subscriptions/count", "store/messages/count", "store/messages/bytes",
        *(f"load/{load}/{window}" for load in loads for window in windows),
    }  # fmt: skip


def test_what_is_not_counted_is_left_out() -> None:
    found = round_of(started(), 120.0)
    assert found == {"$SYS/broker/version": "zvmq version 1.2.3", "$SYS/broker/uptime": "20 seconds"}
    assert total({"a": 1}, ("a", "b")) == -1


def test_sums() -> None:
    found = round_of(started(), 120.0, **everything())
    assert found["$SYS/broker/messages/received"] == found["$SYS/broker/messages/sent"] == "11"
    assert found["$SYS/broker/clients/total"] == "2"
    # What waits and what is retained.
    assert found["$SYS/broker/store/messages/count"] == found["$SYS/broker/store/messages/bytes"] == "2"
    without = round_of(started(), 120.0, queue_messages=4)
    assert without["$SYS/broker/store/messages/count"] == without["$SYS/broker/messages/stored"] == "4"


def test_the_maximum_of_clients_stays() -> None:
    systree = started()
    for now, online, maximum in [(120.0, 3, "3"), (140.0, 7, "7"), (160.0, 1, "7")]:
        assert round_of(systree, now, sessions_online=online)["$SYS/broker/clients/maximum"] == maximum


def test_loads_grow_from_nothing_towards_the_rate() -> None:
    systree = started()
    loads = [f"$SYS/broker/load/bytes/sent/{window}" for window in ("1min", "5min", "15min")]
    found = round_of(systree, 120.0, bytes_sent=5000)
    assert [found[load] for load in loads] == ["0.00"] * 3
    # 100 bytes in 20 s are 300 a minute.
    found = round_of(systree, 140.0, bytes_sent=5100)
    assert (
        [found[load] for load in loads]
        == [f"{300 * (1 - math.exp(-20 / window)):.2f}" for window in (60, 300, 900)]
        == ["85.04", "19.35", "6.59"]
    )
    for number in range(2, 400):
        found = round_of(systree, 120.0 + 20 * number, bytes_sent=5000 + 100 * number)
    assert found[loads[0]] == found[loads[1]] == "300.00"
    found = round_of(systree, 120.0 + 20 * 400 + 600, bytes_sent=5000 + 100 * 399)
    assert float(found[loads[0]]) < 0.02 < 30 < float(found[loads[1]]) < float(found[loads[2]])


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.1, 1e4)), max_size=30))
def test_an_average_lies_within_the_rates_that_made_it(steps: list[tuple[int, float]]) -> None:
    load = Load(0)
    count, highest = 0, 0.0
    for growth, elapsed_s in steps:
        count += growth
        highest = max(highest, growth * 60 / elapsed_s)
        load.note(count, elapsed_s)
        assert all(0.0 <= average <= highest * 1.000001 for average in load.averages)


def test_a_counter_that_shrank_is_no_growth() -> None:
    load = Load(100)
    load.note(40, 20.0)
    assert load.averages == [0.0] * 3
    load.note(60, 20.0)
    assert load.averages[0] == pytest.approx(60 * (1 - math.exp(-1 / 3)))


@pytest.fixture
def node() -> NodeCore:
    storage = MemoryStorage()
    mesh = Mesh(MeshSettings(NODE, f"{NODE}:1", 5.0, ()), storage, b"s" * 16, 1, b"c" * 16, START_S)
    owner = QueueOwner(OwnerSettings(), storage, mesh.interest, b"s" * 16, 1)
    owner.recover(START_S, 0)
    owner.receive(ListenerStarted(0, 1), START_S)
    return NodeCore(owner, mesh, started())


def delivered(node: NodeCore) -> dict[str, str]:
    """What the client of listener 0 is sent in this turn."""
    found = {}
    effects = node.take_effects()
    for records in effects.to_listeners[0].records() if 0 in effects.to_listeners else ():
        frame = owner_frame(1, 1, 0, records)
        assert OwnerHeader(frame).generation == 1
        for record in unpack_owner_records(frame):
            if hasattr(record, "topic"):
                found[record.topic.decode()] = record.payload.decode()
    return found


def test_a_node_publishes_to_those_who_ask_for_it(node: NodeCore) -> None:
    for number, topic_filter in [(1, b"#"), (2, b"$SYS/+/cluster/#"), (3, b"$SYS/broker/version")]:
        node.receive_event(Attach(number, f"client{number}"), START_S)
        node.receive_event(SubscribeReceived(number, 1, [(topic_filter, 1)]), START_S)
    node.tick(START_S)
    assert delivered(node) == {}
    assert node.next_deadline() == 120.0
    node.tick(120.0)
    found = delivered(node)
    assert found["$SYS/broker/version"] == "zvmq version 1.2.3"
    assert found[f"$SYS/{NODE}/cluster/nodes"] == found[f"$SYS/{NODE}/cluster/nodes/running"] == "1"
    # [MQTT-4.7.2-1] "#" is no wish for any of it.
    assert not [topic for topic in found if "/cluster/" not in topic and not topic.endswith("version")]
    node.tick(121.0)
    assert delivered(node) == {}
    node.validate()


def test_a_nodes_metrics_count_what_it_did(node: NodeCore) -> None:
    node.receive_event(Attach(1, "client"), START_S)
    node.receive_event(SubscribeReceived(1, 1, [(b"$SYS/broker/+", 0)]), START_S)
    node.tick(120.0)
    metrics = node.metrics()
    assert (metrics["sessions_online"], metrics["router_subscriptions"], metrics["mqtt_publish_sent"]) == (1, 1, 2)
    assert metrics["cluster_peers_died"] == 0
    assert set(metrics) <= set(METRICS)
