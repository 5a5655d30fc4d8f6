"""Leaving a cluster, with real nodes: listeners, clients, processes, stores, and what a restart finds."""

from collections.abc import Callable
from pathlib import Path

import pytest
from clients import V5, Client, accepts, wait_known
from nodes import COOKIE, Node, wait_until

STEP_1 = "Done! Use -k to teardown and migrate existing sessions!"


def leave(at: Node, node: Node, *flags: str) -> tuple[int, str, list[str]]:
    """Give the command at a node; return its exit code, the last it says, and its progress."""
    done = at.admin("cluster", "leave", f"node={node.name}", *flags)
    said = done.stderr.splitlines()
    last = done.stdout.strip() if done.returncode == 0 else said.pop()
    return done.returncode, last, said


def queues(node: Node) -> tuple[int, int]:
    """Return how many sessions and messages a node has."""
    counts = {row["Status"]: row["Value"] for row in node.table("node", "status")}
    return int(counts["num_online"]) + int(counts["num_offline"]), int(counts["queued_messages"])


def test_a_live_node_leaves_in_two_steps_and_comes_back_only_when_asked_to(three: list[Node], tmp_path: Path) -> None:
    one, two, node = three
    with Client(one) as publisher:
        for number in range(10):
            with Client(node, f"away{number}", V5, persistent=True) as away:
                away.subscribe(f"to/{number}")
        with Client(node, "there", V5, persistent=True) as there:
            there.subscribe("to/there")
            wait_known(there, publisher)
            assert leave(two, node) == (0, STEP_1, [])
            wait_until(lambda: not accepts(node), "closed listeners")
            publisher.publish("to/there", "still here")
            assert there.message() == ("to/there", "still here")
            assert leave(node, node, "--abort")[:2] == (0, "Done")
            wait_until(lambda: accepts(node), "open listeners")
            for number in range(10):
                publisher.publish(f"to/{number}", "for you")
            code, said, progress = leave(one, node, "-k", "-i", "1", "-t", "2")
            assert code == 1
            assert "11 queues with 10 messages remain on node3@" in said
            assert any("11 offline" in line for line in progress)
            assert there.farewell() == (0x8B, "")
    assert node.cluster()[node.name]
    states = {row["Node"]: row["State"] for row in two.table("cluster", "leave", f"node={node.name}", "--status")}
    assert states[node.name] == "failed-with-queues"
    code, said, progress = leave(one, node, "-k", "-i", "1", "-t", "1")
    assert (code, said) == (0, "Done")
    assert node.wait_end() == 0
    wait_until(lambda: node.name not in one.cluster() and node.name not in two.cluster(), "the removal")
    sessions = [queues(other) for other in (one, two)]
    assert sum(count for count, _ in sessions) >= 11
    assert sum(messages for _, messages in sessions) == 10
    assert "[error] node3@127.0.0.3 owner: leave failed: 11 queues" in node.said()
    with Client(two, "away3", V5, persistent=True) as back:
        assert back.present
        assert back.message() == ("to/3", "for you")
    data = Path(node.data_dir)
    assert (data / "LEFT").exists()
    (place,) = data.glob("left-*")
    assert (place / "store").is_dir() and not (data / "store").exists()
    node.start()
    assert node.cluster() == {node.name: True}
    assert "cluster.discovery is ignored" in node.said()
    node.join(one)
    assert not (data / "LEFT").exists()
    wait_until(lambda: len(two.cluster()) == 3, "the return")


@pytest.mark.parametrize("by_hand", [False, True], ids=["interrupted", "put back"])
def test_a_store_that_has_left_does_not_come_back(make_node: Callable[..., Node], by_hand: bool) -> None:
    one, node = [make_node(number, COOKIE).start() for number in (1, 2)]
    node.join(one)
    assert leave(one, node, "-k", "--force")[:2] == (0, "Done")
    assert node.wait_end() == 0
    data = Path(node.data_dir)
    (place,) = data.glob("left-*")
    if by_hand:
        (place / "store").rename(data / "store")
        place.rmdir()
        place.mkdir()
        (place / "store").mkdir()
    else:
        (place / "store").rename(data / "store")
        (data / "LEFT").unlink()
    node.launch()
    assert node.wait_end() == (3 if by_hand else 0)
    if by_hand:
        assert "can't come back" in node.said()
    else:
        assert not (data / "store").exists() and (data / "LEFT").exists()


def test_clients_of_mqtt_5_are_told_where_to_go(make_node: Callable[..., Node]) -> None:
    one, node = [make_node(number, COOKIE, ["node.server_reference=10.0.0.9:1883"]).start() for number in (1, 2)]
    node.join(one)
    with Client(node, "v5") as there:
        assert leave(one, node, "-k", "--rate=100")[:2] == (0, "Done")
        assert there.farewell() == (0x9D, "10.0.0.9:1883")
    assert node.wait_end() == 0


def test_a_dead_node_is_removed_and_hears_of_it_when_it_comes_back(make_node: Callable[..., Node]) -> None:
    settings = ["cluster.failure_timeout_ms=1000"]
    one, two, node = [make_node(number, COOKIE, settings).start() for number in (1, 2, 3)]
    node.join(one)
    two.join(one)
    wait_until(lambda: len(two.cluster()) == 3, "three members")
    with Client(one) as publisher:
        for number in range(10):
            with Client(node, f"away{number}", V5, persistent=True) as away:
                away.subscribe(f"to/{number}")
        with Client(node, "last", V5) as last:
            wait_known(last, publisher)
        publisher.publish("to/7", "old")
        publisher.publish("to/8", "old")
        node.kill()
        wait_until(lambda: not one.cluster()[node.name], "the notice of its death")
        code, said, progress = leave(one, node)
        assert (code, said) == (0, "Done")
        assert "Its store holds 10 queues with " in progress[1]
        assert one.cluster() == {one.name: True, two.name: True}
        wait_until(lambda: two.cluster() == one.cluster(), "the news")
        assert queues(two)[0] == 5 and queues(one)[0] == 6, "five each, and the publisher"
        publisher.publish("to/7", "new")
    with Client(two, "away7", V5, persistent=True) as back:
        assert back.present
        assert back.message() == ("to/7", "new")
        assert back.nothing_waits()
    node.launch()
    assert node.wait_end() == 3
    assert "was removed from the cluster" in node.said()
    node.launch()
    assert node.wait_end() == 3
    node.launch("--recover-queues")
    assert node.wait_end() == 0
    assert "10/10 queues are given back" in node.said()
    wait_until(lambda: len(one.cluster()) == 2, "the end of the donor")
    with Client(one, "away7", V5, persistent=True) as back, Client(two, "away8", V5, persistent=True) as other:
        assert back.message() == ("to/7", "old")
        assert other.message() == ("to/8", "old")
        assert back.nothing_waits() and other.nothing_waits()


def test_a_node_that_is_still_a_member_is_no_donor(make_node: Callable[..., Node]) -> None:
    one, node = [make_node(number, COOKIE).start() for number in (1, 2)]
    node.join(one)
    node.stop()
    node.launch("--recover-queues")
    assert node.wait_end() == 1
    assert "start it without --recover-queues" in node.said()
    node.start()
    wait_until(lambda: accepts(node), "its readiness")
