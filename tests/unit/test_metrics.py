"""The table of metrics, the joining of what the parts of a node count, and what `metrics show` prints."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from core_helpers import Node

from broker.core.counters import LISTENER_COUNTERS, ListenerTotals
from broker.core.metrics import (
    COUNTER,
    DROP_REASONS,
    GAUGE,
    LISTENER,
    METRICS,
    OWNER,
    base_name,
    description_of,
    drop_name,
    in_order,
    kind_of,
    label_value,
    mesh_names,
    metric_lines,
    metrics_result,
    node_metrics,
)
from broker.core.retained import LEVEL_BYTES, MESSAGE_BYTES
from broker.core.settings import Counters
from broker.core.systree import Systree
from broker.mqtt.packets import Puback, Pubcomp, Pubrec
from cluster.turn import COUNTS

ROOT = Path(__file__).resolve().parents[2]
COUNTS_OF_OWNER = {"num_online": 2, "num_offline": 1, "num_subscriptions": 4, "queued_messages": 5}


def joined(**parts: Any) -> dict[str, int]:
    empty: dict[str, int] = {}
    return node_metrics(
        parts.get("counted", empty),
        parts.get("dropped", empty),
        parts.get("counts", empty),
        parts.get("listeners", empty),
        parts.get("mesh", empty),
    )


def reported(**counted: int) -> dict[str, int]:
    totals = ListenerTotals()
    totals.receive(0, 1, [counted.get(base_name(name), 0) for name in LISTENER_COUNTERS])
    return totals.named()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_table_is_complete(metric: Any) -> None:
    assert METRICS[metric.name] is metric
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert metric.kind in (COUNTER, GAUGE)
    assert re.fullmatch(r"[A-Z].*[a-z]\.", metric.description) or metric.description.endswith(
        "stayed away for too long."
    )


def test_what_listeners_count_is_in_the_table() -> None:
    names = {base_name(name) for name in LISTENER_COUNTERS}
    assert names == {metric.name for metric in METRICS.values() if metric.source == LISTENER}


def test_vernemqs_names() -> None:
    assert {
        "mqtt_connect_received", "mqtt_connack_sent", "mqtt_publish_received", "mqtt_publish_sent", "socket_open",
        "socket_close", "socket_close_timeout", "socket_error", "bytes_received", "bytes_sent", "queue_setup",
        "queue_teardown", "queue_message_in", "queue_message_out", "queue_message_drop", "queue_message_expired",
        "queue_message_unhandled", "queue_processes", "router_matches_local", "router_matches_remote",
        "router_subscriptions", "retain_messages", "netsplit_detected", "netsplit_resolved", "cluster_bytes_sent",
        "client_keepalive_expired", "mqtt_invalid_msg_size_error",
    } <= set(METRICS)  # fmt: skip


def test_what_the_queue_owner_and_the_mesh_count_is_in_the_table() -> None:
    counters = Counters()
    numbers = {name for name in dir(counters) if name[0] != "_" and isinstance(getattr(counters, name), int)}
    assert numbers and numbers <= set(METRICS)
    links = re.findall(r'"(link_\w+)":', (ROOT / "cluster" / "peers.py").read_text())
    sockets = re.findall(r'"(mesh_\w+)": 0', (ROOT / "cluster" / "transport.py").read_text())
    assert links and sockets
    assert set(mesh_names(dict.fromkeys([*COUNTS, *links, *sockets], 0))) <= set(METRICS)


def drop_reasons_in_the_code() -> set[str]:
    """The literals that are passed to `drop`."""
    found = set()
    for path in (ROOT / "broker" / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "drop":
                found |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def test_every_drop_reason_is_described() -> None:
    assert drop_reasons_in_the_code()
    assert drop_reasons_in_the_code() <= set(DROP_REASONS)


def test_a_series_has_a_metric_and_a_label() -> None:
    assert base_name(drop_name("queue_full")) == "queue_message_drop"
    assert label_value(drop_name("queue_full")) == "queue_full"
    assert (base_name("bytes_sent"), label_value("bytes_sent")) == ("bytes_sent", "")


def test_without_listeners_nothing_of_theirs_is_there() -> None:
    metrics = joined(counted={"mqtt_publish_received": 3}, counts=COUNTS_OF_OWNER, mesh={"cluster_nodes": 1})
    assert metrics == {
        "mqtt_publish_received": 3,
        "queue_message_drop": 0,
        "queue_message_expired": 0,
        "queue_message_unhandled": 0,
        "queue_processes": 3,
        "sessions_online": 2,
        "sessions_offline": 1,
        "queue_messages": 5,
        "router_subscriptions": 4,
        "limit_refused": 0,
        "cluster_nodes": 1,
    }
    assert [name for name in METRICS if name in metrics] == list(metrics)


def test_a_listeners_number_stands_for_the_owners() -> None:
    metrics = joined(
        counted={"mqtt_publish_received": 3, "queue_message_in": 1}, listeners=reported(mqtt_publish_received=4)
    )
    assert (metrics["mqtt_publish_received"], metrics["queue_message_in"]) == (4, 1)


def test_drops_are_summed_and_shown_by_reason() -> None:
    metrics = joined(dropped={"queue_full": 2, "expired": 3})
    assert list(metrics.items())[:3] == [
        ("queue_message_drop", 5),
        ("queue_message_drop{reason=expired}", 3),
        ("queue_message_drop{reason=queue_full}", 2),
    ]
    assert metrics["queue_message_expired"] == 3


def test_refusals_are_summed_and_shown_by_limit() -> None:
    counters = Counters()
    counters.refuse("max_retained", 2)
    counters.refuse("max_connections")
    metrics = joined(counted=counters.named())
    assert {name: count for name, count in metrics.items() if base_name(name) == "limit_refused"} == {
        "limit_refused": 3,
        "limit_refused{limit=max_connections}": 1,
        "limit_refused{limit=max_retained}": 2,
    }


def metrics_of(node: Node) -> dict[str, int]:
    """The metrics of a node without a mesh."""
    owner = node.owner
    return node_metrics(owner.counters.named(), owner.counters.dropped, owner.counts(), owner.totals.named(), {})


def test_everything_that_the_queue_owner_describes_has_a_value(node: Node) -> None:
    owned = {metric.name for metric in METRICS.values() if metric.source == OWNER}
    # The listeners see the connections.
    assert owned - set(metrics_of(node)) == {"total_active_connections"}


def test_sessions_that_come_and_go(node: Node) -> None:
    for client_id, expiry_s in [("short", 10), ("long", 3600), ("longer", 3600)]:
        client = node.persistent(client_id, expiry_s=expiry_s)
        client.subscribe(b"a")
        client.drop()
    node.connect("clean").drop()
    publisher = node.connect("p")
    for number in range(3):
        publisher.publish(b"a", qos=1, packet_id=number + 1)
    node.advance(20)
    node.connect("long", 5)
    metrics = metrics_of(node)
    assert (metrics["queue_setup"], metrics["queue_teardown"], metrics["queue_processes"]) == (6, 3, 3)
    assert (metrics["client_expired"], metrics["queue_message_unhandled"]) == (1, 6)
    metrics = metrics_of(node.restart())
    assert (metrics["queue_initialized_from_storage"], metrics["queue_setup"], metrics["queue_teardown"]) == (1, 0, 0)


def test_the_bytes_of_what_waits_and_of_what_is_retained(node: Node) -> None:
    """In queues, in flight and in shared groups."""
    for client_id, topic_filter in [("waits", b"a"), ("member", b"$share/g/a")]:
        client = node.persistent(client_id)
        client.subscribe(topic_filter)
        client.drop()
    reader = node.connect("reader", 5)
    reader.subscribe(b"a")
    publisher = node.connect("p")
    publisher.publish(b"a", b"x" * 99, qos=1)
    publisher.publish(b"r", b"x" * 49, qos=1, retain=True)
    metrics = metrics_of(node)
    retained = MESSAGE_BYTES + LEVEL_BYTES + 51
    assert (metrics["queue_messages"], metrics["queue_message_bytes"], metrics["retain_memory"]) == (3, 300, retained)
    systree = Systree("n", "1", 20.0, node.now)
    topics = dict(systree.tick(node.now + 20, metrics))
    assert topics[b"$SYS/broker/store/messages/bytes"] == b"%d" % (300 + retained)
    assert topics[b"$SYS/broker/clients/expired"] == b"0"
    (packet,) = reader.take_publishes()
    reader.acknowledge(packet.packet_id)
    assert metrics_of(node)["queue_message_bytes"] == 200


def test_acknowledgements_for_nothing_that_is_in_flight(node: Node) -> None:
    client = node.connect("c", 5)
    client.subscribe(b"a")
    for packet in (Puback(9), Pubrec(9), Pubrec(9), Pubcomp(9)):
        client.send(packet)
    node.connect("p").publish(b"a", qos=1)
    client.send(Pubrec(client.take()[-1].packet_id))
    assert client.closed
    counts = metrics_of(node)
    assert [counts[f"mqtt_{name}_invalid_error"] for name in ("puback", "pubrec", "pubcomp")] == [1, 3, 1]


def test_connacks_and_open_connections_come_from_listeners() -> None:
    metrics = joined(listeners=reported(mqtt_connack_sent=1, socket_open=9, socket_close=2))
    assert metrics["mqtt_connack_sent"] == len([name for name in metrics if name.startswith("mqtt_connack_sent{")])
    assert metrics["total_active_connections"] == 7


def test_what_the_table_does_not_know_is_shown_last() -> None:
    assert list(in_order({"zzz": 1, "sessions_online": 2, "bytes_sent": 3})) == ["bytes_sent", "sessions_online", "zzz"]
    assert (kind_of("zzz"), description_of("zzz")) == (COUNTER, "")
    assert metric_lines({"zzz": 1}, True) == "counter.zzz = 1"


def test_mesh_and_transport_have_one_prefix() -> None:
    assert mesh_names({"peers_died": 1, "mesh_send_blocked": 2}) == {
        "cluster_peers_died": 1,
        "cluster_send_blocked": 2,
    }


SHOWN = {"bytes_sent": 12, drop_name("queue_full"): 2, "sessions_online": 3}


def test_lines_are_vernemqs() -> None:
    assert metric_lines(SHOWN, False).splitlines() == [
        "counter.bytes_sent = 12",
        "counter.queue_message_drop{reason=queue_full} = 2",
        "gauge.sessions_online = 3",
    ]


def test_lines_with_descriptions() -> None:
    assert metric_lines(SHOWN, True).splitlines() == [
        "# The bytes sent to clients.",
        "counter.bytes_sent = 12",
        "# The deliveries that were dropped, by reason. queue_full: the session's queue was at its limit.",
        "counter.queue_message_drop{reason=queue_full} = 2",
        "# The sessions with a connection.",
        "gauge.sessions_online = 3",
    ]


def test_the_result_is_a_table_for_programs() -> None:
    result = metrics_result({"sessions_online": 3}, True)
    row = {"Kind": "gauge", "Metric": "sessions_online", "Value": 3}
    assert result["type"] == "table"
    assert result["table"] == [row | {"Description": "The sessions with a connection."}]
    assert metrics_result({"sessions_online": 3}, False) == {
        "type": "table",
        "table": [row],
        "text": "gauge.sessions_online = 3",
    }
