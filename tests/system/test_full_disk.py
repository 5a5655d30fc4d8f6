"""A node on a disk that fills up: it stays up, says no, holds what it can't refuse, and goes on when there is room."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import V4, V5, Client, accepts
from leaves import leave
from nodes import COOKIE, Node, join_all, start_all, wait_until
from paho.mqtt import client as mqtt

DISK = "16m"
PAYLOAD = "x" * 50_000
QUOTA_EXCEEDED = 0x97
DISK_FULL = "No space left on device"


class Publisher(Client):
    """A client that takes a refusal for an answer: `reasons` holds the reason of every acknowledgement."""

    def __init__(self, node: Node, client_id: str, version: int) -> None:
        self.reasons: dict[int, int] = {}
        super().__init__(node, client_id, version)

    def _on_publish(self, client: mqtt.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        self.reasons[mid] = reason.value


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def node_on(disk: Path, make_node: Callable[..., Node], number: int = 1, cookie: str = "") -> Node:
    """A node whose data is on the disk."""
    node = make_node(number, cookie, [f"node.data_dir={disk / 'data'}"])
    node.data_dir = disk / "data"
    return node


def fill(disk: Path) -> Path:
    """Leave no room on the disk; return the file to remove for some."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def status(node: Node) -> dict[str, str]:
    return {row["Status"]: str(row["Value"]) for row in node.table("node", "status")}


def test_a_full_disk_stops_acknowledgements_and_nothing_else(disk: Path, make_node: Callable[..., Node]) -> None:
    node = node_on(disk, make_node).start()
    owner = node.process_of("owner")
    keeper = Client(node, "keeper", V5, persistent=True).connect()
    keeper.subscribe("orders/#")
    keeper.disconnect()
    watcher = Client(node, "watcher", V4).connect()
    watcher.subscribe("watched", 0)
    first, five, three = (
        Publisher(node, "first", V5),
        Publisher(node, "five", V5),
        Publisher(node, "three", V4),
    )
    with first, five, three:
        filler = fill(disk)
        # The store has reserved some room, which has to be used up first.
        sent = [first.publish_later("orders/first", PAYLOAD)]
        while status(node)["store"] == "ok":
            wait_until(lambda: sent[-1] in first.reasons or status(node)["store"] != "ok", "an answer")
            sent.append(first.publish_later("orders/first", PAYLOAD))
        assert DISK_FULL in status(node)["store"]
        waiting = three.publish_later("orders/three", "three")
        refused = five.publish_later("orders/five", "five")
        assert wait_until(lambda: five.reasons.get(refused), "the refusal") == QUOTA_EXCEEDED
        three.publish_later("watched", "qos 0", 0)
        assert watcher.message() == ("watched", "qos 0")
        assert not accepts(node)
        assert waiting not in three.reasons
        assert sent[-1] not in first.reasons
        assert int(status(node)["queue_message_drop{reason=store_failing}"]) >= 1
        filler.unlink()
        for publisher, mid in ((three, waiting), (first, sent[-1])):
            wait_until(lambda publisher=publisher, mid=mid: mid in publisher.reasons, "an acknowledgement")  # type: ignore[misc]
            assert publisher.reasons[mid] == 0
        assert status(node)["store"] == "ok"
        assert all(reason == 0 for mid, reason in first.reasons.items() if mid in sent)
    watcher.disconnect()
    assert node.process_of("owner") == owner
    assert node.said().count("nothing that needs the store is acknowledged") == 1
    assert node.said().count("the store works again") == 1
    node.kill()
    node.start()
    with Client(node, "keeper", V5, persistent=True) as keeper:
        got = keeper.messages(len(sent) + 1)
        assert sorted(topic for topic, _ in got) == ["orders/first"] * len(sent) + ["orders/three"]
        assert keeper.nothing_waits()


def test_a_node_on_a_full_disk_says_so_to_who_wants_it_to_leave(disk: Path, make_node: Callable[..., Node]) -> None:
    one, node = make_node(1, COOKIE), node_on(disk, make_node, 2, COOKIE)
    start_all([one, node])
    join_all([one, node])
    with Client(node, "keeper", V5, persistent=True) as keeper, Publisher(node, "first", V5) as first:
        keeper.subscribe("orders/#")
        filler = fill(disk)
        # The store has reserved some room, which has to be used up first.
        while status(node)["store"] == "ok":
            mid = first.publish_later("orders/first", PAYLOAD)
            wait_until(lambda mid=mid: mid in first.reasons or status(node)["store"] != "ok", "an answer")  # type: ignore[misc]
        code, said, _ = leave(node, node, "-k")
        assert (code, "this node can take no order now: " in said, DISK_FULL in said) == (1, True, True)
        assert node.admin("cluster", "leave", f"node={node.name}", "--status").returncode == 0
        code, said, _ = leave(one, node, "--dry-run")
        assert (code, "runs, but has not answered within 10 s" in said) == (4, True)
        filler.unlink()
        wait_until(lambda: status(node)["store"] == "ok", "a store that works")
        assert leave(one, node, "-k", "--force")[:2] == (0, "Done")
    assert node.wait_end() == 0


def test_a_disk_that_is_full_at_the_start_is_told(disk: Path, make_node: Callable[..., Node]) -> None:
    node = node_on(disk, make_node)
    os.mkdir(disk / "data")
    os.mkdir(disk / "data" / "run")
    fill(disk)
    node.launch()
    assert node.wait_end() == 1
    assert DISK_FULL in node.said()
