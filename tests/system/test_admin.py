"""`vmq-admin` on a node of its own; tests/system/test_cluster.py has what several nodes add."""

import json

from nodes import STOP_LIMIT_S, Node, free_address


def test_the_cluster_of_one(node: Node) -> None:
    shown = node.admin("cluster", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "+-----------------+---------+\n"
        "| Node            | Running |\n"
        "+-----------------+---------+\n"
        f"| {node.name} | true    |\n"
        "+-----------------+---------+\n"
    )
    as_json = node.admin("cluster", "show", "--json")
    assert json.loads(as_json.stdout) == {"type": "table", "table": [{"Node": node.name, "Running": True}]}
    assert node.admin("cluster", "show", "--verbose").returncode == 0
    assert {row["Status"] for row in node.table("node", "status")} >= {"num_online", "queued_messages", "version"}


def test_what_can_not_be_done_says_so(node: Node) -> None:
    joined = node.admin("cluster", "join", f"discovery-node=node2@{free_address()}")
    assert (joined.returncode, joined.stdout) == (1, "")
    assert "cookie" in joined.stderr
    unknown = node.admin("cluster", "shwo")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "show" in unknown.stderr


def test_node_stop(node: Node) -> None:
    stopped = node.admin("node", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Done\n")
    assert node.wait_end(STOP_LIMIT_S) == 0
    gone = node.admin("node", "status")
    assert (gone.returncode, gone.stdout) == (3, "")


def test_metrics_show(node: Node) -> None:
    shown = node.admin("metrics", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = dict(line.split(" = ") for line in shown.stdout.splitlines())
    assert lines["counter.queue_message_drop"] == lines["gauge.sessions_online"] == "0"
    described = node.admin("metrics", "show", "-d").stdout.splitlines()
    assert described[described.index("gauge.sessions_online = 0") - 1] == "# The sessions with a connection."
    assert {"Kind": "gauge", "Metric": "cluster_nodes", "Value": 1} in node.table("metrics", "show")
    assert node.admin("metrics", "show", "--aggregate").returncode == 2
