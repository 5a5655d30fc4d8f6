"""Metrics: every number that a node tells of itself, by name, and how `vmq-admin metrics show` prints them.

It owns names, kinds and descriptions (VerneMQ's names where VerneMQ has one) and the joining of what the parts of a
node count into one dict. It counts nothing by itself, and knows neither who asks nor how a listener's report travels.

A metric is named `name`, or `name{label=value}` for one of its series; a series' sum over the labels is the metric
itself. What nobody in this node counts is not there at all: a zero would say that it never happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from broker.core.counters import CONNACK_REASONS, PLAIN, RECEIVED, SENT, connack_name, received_name, sent_name

COUNTER: Final = "counter"
GAUGE: Final = "gauge"

# Who counts: each listener process, the queue-owner, or the mesh.
LISTENER: Final = "listener"
OWNER: Final = "owner"
MESH: Final = "mesh"

# Why a delivery was dropped: the labels of queue_message_drop.
DROP_REASONS: Final[dict[str, str]] = {
    "queue_full": "the session's queue was at its limit",
    "offline_qos0": "QoS 0 that waited for a client when it went offline",
    "expired": "the message expired before its delivery began",
    "max_packet_size_exceeded": "larger than the client takes",
    "link_full": "the outbox for a node that has to have the message was full; the publisher was told",
    "reserved_topic": "published to a topic that is not for clients",
    "topic_limit": "published to a topic of more levels or bytes than there may be; MQTT 5 was told",
    "group_ended": "no member of the shared subscription was left in the cluster",
    "session_ended": "the session that it waited for ended, by its time or by Clean Start",
    "store_failing": "the store takes no writes; the publisher was told",
    "not_ready": "QoS 0 that was published while the node did not reach the members that it needs",
}
_DROP: Final = "queue_message_drop"
_REFUSED: Final = "limit_refused"


@final
@dataclass(slots=True, frozen=True)
class Metric:
    """One metric; `source` is who counts it."""

    name: str
    kind: str
    description: str
    source: str


def base_name(series: str) -> str:
    """Return the metric of a series: its name without the label."""
    return series.partition("{")[0]


def label_value(series: str) -> str:
    """Return the value of a series' label, empty for a metric itself."""
    return series.partition("=")[2].rstrip("}")


def drop_name(reason: str) -> str:
    """Return the series of a drop reason."""
    return f"{_DROP}{{reason={reason}}}"


_PLAIN_DESCRIPTIONS: Final[dict[str, str]] = {
    "bytes_received": "The bytes received from clients.",
    "bytes_sent": "The bytes sent to clients.",
    "socket_open": "The connections that clients opened.",
    "socket_close": "The connections that were closed, by whomever.",
    "socket_close_timeout": "The connections closed because no CONNECT came in time.",
    "socket_error": "The connections that broke.",
    "mqtt_publish_bytes_received": "The payload bytes of PUBLISH packets received.",
    "mqtt_publish_bytes_sent": "The payload bytes of PUBLISH packets sent.",
    "mqtt_malformed_packet_error": "The connections closed because a packet could not be parsed.",
    "mqtt_protocol_error": "The connections closed because a client broke the protocol.",
    "mqtt_invalid_msg_size_error": "The connections closed because a packet was too large.",
    "mqtt_publish_auth_error": "The PUBLISH packets that were not authorized.",
    "mqtt_subscribe_auth_error": "The subscriptions that were not authorized.",
    "client_keepalive_expired": "The clients that were silent for longer than their keep-alive allows.",
    "connections_refused": "The connections refused because a limit was reached.",
    "client_read_paused": "How often a client was not read as it waited for too many acknowledgements or read none.",
    "client_write_paused": "How often a client did not read as fast as it was sent to.",
    "listener_read_paused": "How often a listener read no client because the queue-owner was behind.",
}

_OWNER_COUNTERS: Final[dict[str, str]] = {
    "queue_setup": "The sessions that were begun.",
    "queue_initialized_from_storage": "The sessions that were read from the store at the start.",
    "queue_teardown": "The sessions that ended.",
    "queue_message_in": "The messages that were put into queues.",
    "queue_message_out": "The messages that were taken out of queues to be sent.",
    _DROP: "The deliveries that were dropped, by reason.",
    "queue_message_expired": "The deliveries that were dropped because the message expired.",
    "queue_message_unhandled": "The messages that waited for a session that ended.",
    "client_expired": "The sessions that ended because their client stayed away for too long.",
    "router_matches_local": "The sessions of this node that messages were for.",
    "router_matches_remote": "The nodes that messages were forwarded to.",
    "will_published": "The wills that were published.",
    _REFUSED: "The requests that a limit refused, by its name.",
    "mqtt_publish_error": "The PUBLISH packets that were dropped, or had to wait, as the node was not ready.",
    "mqtt_subscribe_error": "The SUBSCRIBE packets that were refused as the node was not ready.",
    "mqtt_unsubscribe_error": "The UNSUBSCRIBE packets that had to wait as the node was not ready.",
    "mqtt_puback_invalid_error": "The PUBACK packets for nothing that was in flight.",
    "mqtt_pubrec_invalid_error": "The PUBREC packets for nothing that was in flight.",
    "mqtt_pubcomp_invalid_error": "The PUBCOMP packets for nothing that was in flight.",
}

_OWNER_GAUGES: Final[dict[str, str]] = {
    "total_active_connections": "The connections that are open.",
    "queue_processes": "The sessions that exist, with or without a connection.",
    "sessions_online": "The sessions with a connection.",
    "sessions_offline": "The sessions without a connection.",
    "queue_messages": "The deliveries that wait in queues or for their acknowledgement.",
    "queue_message_bytes": "The bytes of the messages that wait in queues or for their acknowledgement.",
    "router_subscriptions": "The subscriptions of this node's sessions.",
    "shared_subscriptions": "Those of them that are shared.",
    "retain_messages": "The retained messages.",
    "retain_memory": "The bytes of the retained messages.",
    "netsplit_held": "The packets of clients that wait until the node is ready.",
}

_MESH_COUNTERS: Final[dict[str, str]] = {
    "netsplit_detected": "How often this node stopped being ready because a member was not reachable.",
    "netsplit_resolved": "How often it became ready again.",
    "cluster_bytes_received": "The bytes received from other nodes.",
    "cluster_bytes_sent": "The bytes sent to other nodes.",
    "cluster_bytes_dropped": "The bytes that other nodes were not sent as their link was full.",
    "cluster_frames_while_frozen": "The frames of other nodes that were left aside while the store took no writes.",
    "cluster_frames_malformed": "The frames of other nodes that could not be read.",
    "cluster_frames_of_strangers": "The frames of nodes that are no members.",
    "cluster_frames_of_old_connections": "The frames that came on a connection that counts no more.",
    "cluster_hellos_refused": "The greetings of other nodes that were refused.",
    "cluster_peers_died": "How often a member was taken for dead.",
    "cluster_tables_copied": "How often a table of a member that did not run was copied from another member.",
    "cluster_table_requests": "How often this node asked a member for what differs in its tables.",
    "cluster_link_drop_memory": "The messages that nobody has to have, not forwarded as the link was full.",
    "cluster_link_drop_not_running": "The messages that nobody has to have, not forwarded as the member did not run.",
    "cluster_link_refused": "How often a QoS 1 or 2 message found an outbox full; its PUBLISH waits for up to 5 s.",
    "cluster_link_spills": "How often what waited for a member in memory went to its outbox on disk.",
    "cluster_outbox_left": "The messages in the outboxes of members when those ceased to be members.",
    "cluster_groups_moved": "The messages of shared groups taken from a member that died for others to have.",
    "cluster_link_gap": "How often a link began anew with messages missing.",
    "cluster_link_resent_frames": "The frames that were sent again on a link.",
    "cluster_link_duplicates": "The forwarded messages that came twice and were taken once.",
    "cluster_link_stale_frames": "The frames of a link's earlier session.",
    "cluster_link_messages_received": "The messages that other nodes forwarded to this one, and marks between them.",
    "cluster_retained_over_limit": "The retained messages of other nodes that were kept beyond this node's limits.",
    "cluster_stamps_clamped": "The stamps of other nodes that were more than a minute ahead of this node's clock.",
    "cluster_send_blocked": "How often a socket to another node took nothing more.",
    "cluster_reply_lost": "The replies to a node whose connection was gone.",
    "cluster_subacks_unconfirmed": "The SUBACKs that left before every running member had confirmed them.",
    "cluster_wills_claimed": "The wills that this node published for members that were gone.",
    "cluster_keys_refused": "The connections to the cluster's port that were refused for their key.",
}

_MESH_GAUGES: Final[dict[str, str]] = {
    "cluster_nodes": "The members of the cluster, this node included.",
    "cluster_nodes_running": "Those of them that run.",
    "cluster_outbox_messages": "The messages on disk that wait for other members, by member.",
    "cluster_outbox_bytes": "The bytes that they take there.",
}

# What `QueueOwner.counts` calls its numbers -> the gauges.
_COUNTS: Final[dict[str, str]] = {
    "num_online": "sessions_online",
    "num_offline": "sessions_offline",
    "num_subscriptions": "router_subscriptions",
    "queued_messages": "queue_messages",
    "queued_bytes": "queue_message_bytes",
}


def _table() -> dict[str, Metric]:
    metrics: list[Metric] = [Metric(name, COUNTER, _PLAIN_DESCRIPTIONS[name], LISTENER) for name in PLAIN]
    for kind in RECEIVED:
        metrics.append(Metric(received_name(kind), COUNTER, f"The {kind.name} packets received.", LISTENER))
    for kind in SENT:
        metrics.append(Metric(sent_name(kind), COUNTER, f"The {kind.name} packets sent.", LISTENER))
    for names, form, source in (
        (_OWNER_COUNTERS, COUNTER, OWNER),
        (_OWNER_GAUGES, GAUGE, OWNER),
        (_MESH_COUNTERS, COUNTER, MESH),
        (_MESH_GAUGES, GAUGE, MESH),
    ):
        metrics += [Metric(name, form, description, source) for name, description in names.items()]
    return {metric.name: metric for metric in metrics}


# Every metric of a node, in the order in which they are shown.
METRICS: Final[dict[str, Metric]] = _table()
_CONNACK: Final = base_name(connack_name(CONNACK_REASONS[0]))


def kind_of(name: str) -> str:
    """Return the kind of a metric or series. One that the table does not know is shown as a counter."""
    metric = METRICS.get(base_name(name))
    return metric.kind if metric is not None else COUNTER


def description_of(name: str) -> str:
    """Return the description of a metric or series."""
    metric = METRICS.get(base_name(name))
    if metric is None:
        return ""
    label = label_value(name)
    if metric.name == _DROP and label:
        return f"{metric.description} {label}: {DROP_REASONS.get(label, label)}."
    return metric.description


def mesh_names(counted: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the mesh and its transport under the metrics' names."""
    return {f"cluster_{name.removeprefix('mesh_').removeprefix('cluster_')}": n for name, n in counted.items()}


def node_metrics(
    counted: Mapping[str, int],
    dropped: Mapping[str, int],
    counts: Mapping[str, int],
    listeners: Mapping[str, int],
    mesh: Mapping[str, int],
) -> dict[str, int]:
    """Join what the parts of a node count into its metrics, in the order of METRICS.

    `counted` and `dropped` (by reason) are the queue-owner's counters, `counts` is `QueueOwner.counts()`, `listeners`
    is `ListenerTotals.named()`, and `mesh` has metrics' names (`mesh_names`). Where a listener counts what the
    queue-owner counts too, the listener's number stands: it has seen the packets.
    """
    found: dict[str, int] = {**counted, **mesh}
    for name, count in counts.items():
        found[_COUNTS.get(name, name)] = count
    if "num_online" in counts and "num_offline" in counts:
        found["queue_processes"] = counts["num_online"] + counts["num_offline"]
    for reason in sorted(dropped):
        found[drop_name(reason)] = dropped[reason]
    found[_DROP] = sum(dropped.values())
    found["queue_message_expired"] = dropped.get("expired", 0)
    found["queue_message_unhandled"] = dropped.get("session_ended", 0)
    found[_REFUSED] = sum([count for name, count in counted.items() if base_name(name) == _REFUSED])
    found.update(listeners)
    if listeners:
        found[_CONNACK] = sum(count for name, count in listeners.items() if base_name(name) == _CONNACK)
        found["total_active_connections"] = listeners["socket_open"] - listeners["socket_close"]
    return in_order(found)


def in_order(found: Mapping[str, int]) -> dict[str, int]:
    """Return the metrics in the order of METRICS, each followed by its series; unknown ones come last."""
    series: dict[str, list[str]] = {}
    for name in found:
        series.setdefault(base_name(name), []).append(name)
    ordered: dict[str, int] = {}
    for base in [*METRICS, *series]:
        # The metric itself is the shortest of its names.
        for name in sorted(series.pop(base, []), key=_by_label):
            ordered[name] = found[name]
    return ordered


def _by_label(name: str) -> tuple[bool, str]:
    return "{" in name, name


def metric_lines(metrics: Mapping[str, int], with_descriptions: bool) -> str:
    """Return the lines of `metrics show`: `counter.name = value`, each after its `# description` if wanted."""
    lines: list[str] = []
    for name, value in metrics.items():
        if with_descriptions and description_of(name):
            lines.append(f"# {description_of(name)}")
        lines.append(f"{kind_of(name)}.{name} = {value}")
    return "\n".join(lines)


def metric_rows(metrics: Mapping[str, int], with_descriptions: bool) -> list[dict[str, Any]]:
    """Return the rows of `metrics show --json`."""
    rows: list[dict[str, Any]] = []
    for name, value in metrics.items():
        row: dict[str, Any] = {"Kind": kind_of(name), "Metric": name, "Value": value}
        if with_descriptions:
            row["Description"] = description_of(name)
        rows.append(row)
    return rows


def metrics_result(metrics: Mapping[str, int], with_descriptions: bool) -> dict[str, Any]:
    """Return the answer to `metrics show`: a table for programs, that people see as its `text`."""
    return {
        "type": "table",
        "table": metric_rows(metrics, with_descriptions),
        "text": metric_lines(metrics, with_descriptions),
    }
