"""A backup of a node that runs, and a node that begins with it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from clients import V5, Client
from nodes import BROKER, COOKIE, LIMIT_S, Node, environment, wait_until


def broker(node: Node, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run vmq-broker with the settings of a node."""
    return subprocess.run(
        [str(BROKER), *arguments, "--set", *node.settings],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        env=environment(),
    )


def publish(node: Node, *payloads: str) -> None:
    with Client(node) as publisher:
        for payload in payloads:
            publisher.publish("orders/a", payload)


def payloads(node: Node, count: int) -> list[str]:
    """Take what waits for the persistent client, and see that it is no more than that."""
    with Client(node, "keeper", V5, persistent=True) as keeper:
        assert keeper.present
        got = [payload for _, payload in keeper.messages(count)]
        assert keeper.nothing_waits()
        return got


def test_a_backup_of_a_running_node_holds_what_was_acknowledged(
    node: Node, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    keeper = Client(node, "keeper", V5, persistent=True).connect()
    keeper.subscribe("orders/#")
    keeper.disconnect()
    publish(node, "1", "2")
    saved = tmp_path / "saved"
    made = broker(node, "backup", str(saved))
    assert (made.returncode, made.stderr) == (0, "")
    publish(node, "3")
    assert sorted(path.name for path in node.data_dir.glob("store*")) == ["store"]
    refused = broker(node, "restore", str(saved), "--force")
    assert refused.returncode == 1 and "stop it first" in refused.stderr

    other = make_node(2)
    restored = broker(other, "restore", str(saved))
    assert (restored.returncode, restored.stderr) == (0, "")
    other.start()
    publish(other, "4")
    assert payloads(other, 3) == ["1", "2", "4"]

    node.stop()
    assert broker(node, "restore", str(saved)).returncode == 1
    assert broker(node, "restore", str(saved), "--force").returncode == 0
    node.start()
    assert payloads(node, 2) == ["1", "2"]


def test_an_admin_backup_needs_an_absolute_directory_that_is_new(node: Node, tmp_path: Path) -> None:
    made = node.admin("store", "backup", f"directory={tmp_path / 'saved'}")
    assert (made.returncode, made.stdout) == (0, "Done\n")
    assert (tmp_path / "saved" / "CURRENT").exists()
    again = node.admin("store", "backup", f"directory={tmp_path / 'saved'}")
    assert again.returncode == 1 and "exists" in again.stderr
    relative = node.admin("store", "backup", "directory=saved")
    assert relative.returncode == 2 and "absolute" in relative.stderr


def test_a_cluster_that_is_restored_as_a_whole_is_joined_anew(make_node: Callable[..., Node], tmp_path: Path) -> None:
    members = [make_node(number, COOKIE).start() for number in (1, 2)]
    members[1].join(members[0])
    for member in members:
        saved = tmp_path / f"saved-{member.host}"
        assert broker(member, "backup", str(saved)).returncode == 0
        member.stop()
        assert broker(member, "restore", str(saved), "--force").returncode == 0
    for member in members:
        member.start()
        assert member.cluster() == {member.name: True}
    members[1].join(members[0])
    names = {member.name: True for member in members}
    wait_until(lambda: all(member.cluster() == names for member in members), "one cluster")


def test_a_restored_member_is_not_taken_for_the_one_it_was(make_node: Callable[..., Node], tmp_path: Path) -> None:
    members = [make_node(number, COOKIE).start() for number in (1, 2)]
    members[1].join(members[0])
    saved = str(tmp_path / "saved")
    assert broker(members[1], "backup", saved).returncode == 0
    members[1].stop()
    assert broker(members[1], "restore", saved, "--force").returncode == 0
    members[1].start()
    joined = members[1].admin("cluster", "join", f"discovery-node={members[0].discovery_node}")
    assert joined.returncode == 1
    assert "another store is already in the cluster" in joined.stderr
