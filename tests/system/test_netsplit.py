"""Three real nodes, one of which is not reached: what clients of the others are told, and what waits for it."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from clients import V4, V5, Client, wait_known
from nodes import COOKIE, LIMIT_S, NOTICE_LIMIT_S, Node, join_all, start_all, wait_until, wait_whole

# CONNECTs with the client id "c", of MQTT 3.1.1 and 5.0.
CONNECT = {V4: "100d 0004 4d515454 04 02 003c 0001 63", V5: "100e 0004 4d515454 05 02 003c 00 0001 63"}
SHORT = ("cluster.failure_timeout_ms=1500",)
# How long a node that is not ready is watched to see that it does not answer.
SILENCE_S = 1.0


def connack(node: Node, version: int) -> bytes:
    """Return what a CONNECT is answered."""
    with socket.create_connection((node.host, node.mqtt_port), timeout=LIMIT_S) as client:
        client.sendall(bytes.fromhex(CONNECT[version]))
        return client.recv(1000)


def metric(node: Node, name: str) -> int:
    """Return a metric of a node."""
    return int(next(row["Value"] for row in node.table("metrics", "show") if row["Metric"] == name))


def splits(node: Node) -> tuple[int, int]:
    """Return how many net splits a node detected and how many it saw resolved."""
    return metric(node, "netsplit_detected"), metric(node, "netsplit_resolved")


def readiness(node: Node) -> str:
    """Return what `node status` says of it."""
    return str(next(row["Value"] for row in node.table("node", "status") if row["Status"] == "ready"))


@contextmanager
def standing_still(node: Node) -> Iterator[None]:
    """Stop every process of a node as a hung machine does, and let it go on afterwards."""
    pids = list(node.processes())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def see_missing(members: list[Node], missing: Node) -> None:
    """Wait until the members see that one is not running, in the time that is promised for that."""
    seen = {member.name: True for member in members} | {missing.name: False}
    for member in members:
        wait_until(lambda member=member: member.cluster() == seen, f"{member.name} sees {seen}", NOTICE_LIMIT_S)  # type: ignore[misc]


def make_three(make_node: Callable[..., Node], *settings: str) -> list[Node]:
    """Return a cluster of three nodes with these settings."""
    members = [make_node(number, COOKIE, settings) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    return members


def test_a_node_that_hangs_is_missed_and_what_waits_for_it_is_answered_when_it_goes_on(three: list[Node]) -> None:
    one, two, last = three
    with Client(one) as publisher, Client(two, version=V4) as old, Client(one, "s") as subscriber:
        subscriber.subscribe("a/#")
        wait_known(subscriber, publisher, old)
        assert splits(one) == splits(two) == (0, 0)
        with standing_still(last):
            see_missing([one, two], last)
            why = f"this node is not ready: {last.name} is not running"
            assert readiness(one) == readiness(two) == why
            answer = connack(one, V5)
            assert answer[:4] == bytes([0x20, len(answer) - 2, 0, 0x88])
            assert answer[5:] == b"\x1f\x00" + bytes([len(why)]) + why.encode()
            assert connack(two, V4) == bytes.fromhex("20020003")
            subscriber.paho.subscribe("b", 1)
            (refused,) = subscriber.take_suback()
            assert refused.value == 0x87
            held = [publisher.publish_later("a/1", f"{number}") for number in range(3)]
            held_old = old.publish_later("a/2", "old")
            publisher.publish_later("a/3", "dropped", 0)
            wait_until(lambda: metric(one, "netsplit_held") == 3, "node 1 holds what was published")
            wait_until(lambda: metric(two, "netsplit_held") == 1, "node 2 holds what was published")
            with pytest.raises(AssertionError, match="no message"):
                subscriber.message(SILENCE_S)
            assert not any(publisher.acknowledged(mid) for mid in held)
            assert not old.acknowledged(held_old)
        for mid in held:
            publisher.wait_acknowledged(mid)
        old.wait_acknowledged(held_old)
        heard = subscriber.messages(4)
        assert [message for message in heard if message[0] == "a/1"] == [("a/1", f"{number}") for number in range(3)]
        assert ("a/2", "old") in heard
        wait_whole(three)
        assert metric(one, "queue_message_drop{reason=not_ready}") == 1
        assert splits(one) == splits(two) == (1, 1)
        assert readiness(one) == "yes"
        assert connack(one, V5)[3] == connack(two, V4)[3] == 0


def test_a_killed_node_is_missed_and_a_planned_stop_is_not(make_node: Callable[..., Node]) -> None:
    members = make_three(make_node, *SHORT)
    one, two, last = members
    with Client(one) as publisher:
        assert last.admin("node", "stop").returncode == 0
        assert last.wait_end() == 0
        see_missing([one, two], last)
        # It is not there, and that is known: nobody waits for it.
        publisher.publish("a", "while a member is stopped")
        assert connack(two, V5)[3] == 0
        assert f"{last.name} stops as planned" in one.said()
        last.start()
        wait_whole(members)
        assert splits(one) == splits(two) == (0, 0)
        last.kill()
        see_missing([one, two], last)
        held = publisher.publish_later("a", "while a member is missing")
        wait_until(lambda: metric(one, "netsplit_held") == 1, "node 1 holds what was published")
        assert connack(two, V5)[3] == 0x88
        last.start()
        publisher.wait_acknowledged(held)
        wait_whole(members)
        assert splits(one) == splits(two) == (1, 1)


def test_a_majority_goes_on_and_a_minority_does_not(make_node: Callable[..., Node]) -> None:
    members = make_three(make_node, "cluster.readiness=majority", *SHORT)
    one, two, last = members
    with Client(one) as publisher:
        last.kill()
        see_missing([one, two], last)
        publisher.publish("a", "to the two that are left")
        two.kill()
        wait_until(lambda: readiness(one) != "yes", "node 1 sees that it is alone")
        assert readiness(one).endswith("are not running, 2 of 3 members")
        held = publisher.publish_later("a", "to nobody")
        wait_until(lambda: metric(one, "netsplit_held") == 1, "node 1 holds what was published")
        two.start()
        publisher.wait_acknowledged(held)


def test_the_switches_let_clients_through(make_node: Callable[..., Node]) -> None:
    names = ("register", "publish", "subscribe", "unsubscribe")
    members = make_three(make_node, *SHORT, *(f"cluster.allow_{name}_during_netsplit=on" for name in names))
    one, two, last = members
    last.kill()
    see_missing([one, two], last)
    assert readiness(one) == f"this node is not ready: {last.name} is not running"
    with Client(one) as publisher, Client(two) as subscriber:
        subscriber.subscribe("a")
        wait_known(subscriber, publisher)
        publisher.publish("a", "through")
        assert subscriber.message() == ("a", "through")
