"""Leaving a cluster, with real nodes: listeners, clients, processes, stores, and what a restart finds."""

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from clients import V5, Client, accepts, wait_known
from crowd import Crowd
from leaves import leave, leave_on_terminal, leaving
from nodes import COOKIE, NOTICE_LIMIT_S, Node, join_all, start_all, wait_until, wait_whole
from wire_clients import DISCONNECT, Will, Wire, connect_packet

STEP_1 = "Done! Use -k to teardown and migrate existing sessions!"
SERVER_MOVED = 0x9D
# Of the will of a client whose node dies, and of its session.
WILL_DELAY_S = 12


def queues(node: Node) -> tuple[int, int]:
    """Return how many sessions and messages a node has."""
    counts = node.status()
    return int(counts["num_online"]) + int(counts["num_offline"]), int(counts["queued_messages"])


def states(at: Node, node: Node) -> dict[str, str]:
    """Return where the leave of every member stands, as a node knows it."""
    return {row["Node"]: row["State"] for row in at.table("cluster", "leave", f"node={node.name}", "--status")}


@pytest.fixture
def members(make_node: Callable[..., Node]) -> list[Node]:
    """Three members that soon see when one of them dies, and let clients connect and publish meanwhile."""
    settings = ["cluster.failure_timeout_ms=1000"]
    settings += [f"cluster.allow_{each}_during_netsplit=on" for each in ("register", "publish")]
    made = [make_node(number, COOKIE, settings) for number in (1, 2, 3)]
    start_all(made)
    join_all(made)
    return made


def test_the_sessions_of_connected_subscribers_move_and_their_node_leaves(members: list[Node]) -> None:
    """VerneMQ's cluster_leave_test, and cluster_leave_myself_test behind it."""
    one, two, node = members
    crowd = Crowd(100)
    wires = crowd.begin(node, stays=True)
    with Client(two) as publisher:
        with Client(node) as last:
            wait_known(last, publisher)
        for publication in crowd.plan(0, 1):
            publisher.publish(publication.message.topic, publication.message.payload, publication.qos)
    assert all(wire.next() for wire in wires), "each has one in flight, and does not answer it"
    code, said, progress = leave(two, node, "-k", "-i", "1", "-t", "1")
    assert code == 1
    assert "100 queues with 100 messages remain on node3@" in said
    assert said.endswith(
        "where they are safe: give the same command again to wait once more and then migrate them to the other nodes "
        f"(vmq-admin cluster leave node={node.name} -k -i 1 -t 1), or --abort to put the node back in service"
    )
    for wire in wires:
        with pytest.raises(EOFError):
            wire.next()
        wire.close()
    assert (node.cluster()[node.name], queues(node), accepts(node)) == (True, (100, 100), False)
    code, said, progress = leave(two, node, "-k", "-i", "1", "-t", "1")
    assert (code, said) == (0, "Done")
    assert progress[-1].startswith("Migrated 100/100 queues and 100/100 messages; ")
    assert node.wait_end() == 0
    assert [queues(other) for other in (one, two)] == [(50, 50), (50, 50)]
    # The command is given at the very node that leaves.
    assert leave(two, two, "-k", "--force")[:2] == (0, "Done")
    assert two.wait_end() == 0
    wait_until(lambda: one.cluster() == {one.name: True}, "the removal")
    assert [one.metric(f"netsplit_{each}") for each in ("detected", "resolved")] == [0, 0]
    crowd.hear([one], 1)
    assert crowd.faults(1) == []


def test_a_live_node_leaves_in_two_steps_and_comes_back_only_when_asked_to(three: list[Node], tmp_path: Path) -> None:
    one, two, node = three
    with Client(one) as publisher:
        for number in range(10):
            with Client(node, f"away{number}", V5, persistent=True) as away:
                away.subscribe(f"to/{number}")
        with Client(node, "there", V5, persistent=True) as there:
            there.subscribe("to/there")
            wait_known(there, publisher)
            for at in (two, node):
                assert leave(at, node) == (0, STEP_1, [])
            wait_until(lambda: not accepts(node), "closed listeners")
            publisher.publish("to/there", "still here")
            assert there.message() == ("to/there", "still here")
            there.subscribe("new/there")
            there.publish("new/there", "as ever")
            assert there.message() == ("new/there", "as ever")
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
    assert states(two, node)[node.name] == "failed-with-queues"
    code, said, progress = leave(one, node, "-k", "-i", "1", "-t", "1")
    assert (code, said) == (0, "Done")
    assert node.wait_end() == 0
    wait_until(lambda: node.name not in one.cluster() and node.name not in two.cluster(), "the removal")
    sessions = [queues(other) for other in (one, two)]
    assert sum(count for count, _ in sessions) >= 11
    assert sum(messages for _, messages in sessions) == 10
    assert "[error] node3@127.0.0.3 owner: leave failed: 11 queues" in node.said()
    assert "[info] node3@127.0.0.3 owner: leave: Migrated 11/11 queues and 10/10 messages" in node.said()
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


def test_a_node_that_is_back_with_a_new_store_is_no_less_than_it_was(members: list[Node]) -> None:
    """Its orders are taken, and clients connect whose turns it keeps: it counts both from the beginning."""
    one, two, node = members
    for flags in ((), ("--abort",)):
        assert leave(node, one, *flags)[0] == 0
    two.stop()
    two.start()
    wait_whole(members)
    assert leave(one, node, "-k", "--force")[:2] == (0, "Done")
    assert node.wait_end() == 0
    node.start()
    node.join(one)
    wait_whole(members)
    with ExitStack() as open_wires:
        for number in range(30):
            wire = Wire(members[number % 3])
            open_wires.callback(wire.close)
            # Connects at once, or is refused in the end.
            assert wire.attach(connect_packet(f"there{number}", V5, expiry_s=0), V5) is False
    assert leave(node, one)[:2] == (0, STEP_1)
    wait_until(lambda: not accepts(one), "closed listeners")
    assert leave(node, one, "--abort")[:2] == (0, "Done")
    wait_until(lambda: accepts(one), "open listeners")


@pytest.mark.parametrize("how", ["interrupted", "put back", "marker removed"])
def test_a_store_that_has_left_does_not_come_back(make_node: Callable[..., Node], how: str) -> None:
    one, node = [make_node(number, COOKIE).start() for number in (1, 2)]
    node.join(one)
    assert leave(one, node, "-k", "--force")[:2] == (0, "Done")
    assert node.wait_end() == 0
    data = Path(node.data_dir)
    (place,) = data.glob("left-*")
    (place / "store").rename(data / "store")
    if how == "interrupted":
        # As a node that was killed between its last commit and the move has it.
        (data / "store" / "PUT-ASIDE").unlink()
    if how != "put back":
        (data / "LEFT").unlink()
    node.launch()
    if how == "interrupted":
        assert node.wait_end() == 0
        assert not (data / "store").exists() and (data / "LEFT").exists()
    else:
        assert node.wait_end() == 3
        assert "can't come back" in node.said()
        assert (data / "store").exists()


def test_clients_claim_their_queues_where_they_are_told_to_and_no_force_is_needed(
    make_node: Callable[..., Node],
) -> None:
    settings = ["node.server_reference=10.0.0.9:1883", "mqtt.leave_will_grace_s=3"]
    one, node = [make_node(number, COOKIE, settings) for number in (1, 2)]
    start_all([one, node])
    node.join(one)
    with Client(one) as heir, Client(node, "back", V5, persistent=True) as back:
        heir.subscribe("will/#")
        back.subscribe("to/back")
        wait_known(heir, back)
        wait_known(back, heir)
        back.disconnect()
        heir.publish("to/back", "for you")
        wires = {name: Wire(node) for name in ("back", "gone")}
        for name, wire in wires.items():
            connect = connect_packet(name, V5, will=Will(f"will/{name}", name), expiry_s=3600 if name == "back" else 0)
            assert wire.attach(connect, V5) is (name == "back")
        with leaving(one, node, "-k", "-i", "1", "-t", "60", "--rate=100") as command:
            for wire in wires.values():
                while (came := wire.next()) is not None and came[0] != DISCONNECT:
                    pass
                assert came is not None and came[1][0] == SERVER_MOVED
                assert came[1].endswith(b"10.0.0.9:1883")
                wire.close()
            with Client(one, "back", V5, persistent=True) as again:
                assert again.present
                assert again.message() == ("to/back", "for you")
                code, said, progress = command.end()
                assert (code, said) == (0, "Done")
                assert not any(line.startswith("Migrated") for line in progress)
                assert node.wait_end() == 0
                # Of the two wills there came that of the client that did not come back.
                heir.publish("will/last", "last")
                assert heir.messages(2) == [("will/gone", "gone"), ("will/last", "last")]


def test_connections_are_closed_at_a_rate_and_every_interval_says_how_many_are_left(
    make_node: Callable[..., Node],
) -> None:
    """The same lines go to the command and to console.log."""
    one, node = [make_node(number, COOKIE) for number in (1, 2)]
    start_all([one, node])
    node.join(one)
    with ExitStack() as open_wires:
        for number in range(30):
            wire = Wire(node)
            open_wires.callback(wire.close)
            wire.attach(connect_packet(f"there{number}", V5, expiry_s=0), V5)
        code, said, progress = leave(one, node, "-k", "-i", "1", "-t", "60", "--rate=6")
    assert (code, said) == (0, "Done")
    assert node.wait_end() == 0
    online = [int(found[1]) for line in progress if (found := re.search(r"queues: (\d+) online", line))]
    assert online == sorted(online, reverse=True)
    # Six a second are not all at once, whenever the first line comes.
    assert any(0 < count < 30 for count in online)
    logged = [line.partition(" owner: leave: ")[2] for line in node.said().splitlines() if " owner: leave: " in line]
    assert [line for line in progress if line not in logged] == []


def test_a_terminal_shows_a_bar_with_a_rate_and_the_logs_of_who_left_stay_in_place(
    make_node: Callable[..., Node],
) -> None:
    one, node = [make_node(number, COOKIE, ["log.console=both"]) for number in (1, 2)]
    start_all([one, node])
    node.join(one)
    with ExitStack() as open_clients:
        for number in range(5):
            away = open_clients.enter_context(Client(node, f"away{number}", V5, persistent=True))
            away.subscribe(f"to/{number}")
    code, shown = leave_on_terminal(one, node, "-k", "-i", "1", "-t", "2", "--force")
    assert code == 0
    assert re.search(r"5/5.*\d/s", shown) and "\u2501" in shown, "a bar, how many of how many, and a rate"
    assert shown.rstrip().endswith("Done")
    assert node.wait_end() == 0
    logged = (node.data_dir / "log" / "console.log").read_text()
    assert "leave: Migrated 5/5 queues" in logged and "joining the cluster" in logged
    assert not list(node.data_dir.glob("left-*/log"))


def test_a_leave_is_a_job_that_survives_its_command_and_its_node(members: list[Node]) -> None:
    one, two, node = members
    with Client(node, "away", V5, persistent=True) as away, Client(node, "there") as there:
        away.subscribe("to/away")
        away.disconnect()
        code, said, _ = leave(two, node, "-k", "--dry-run")
        assert (code, said.splitlines()) == (
            0,
            [
                f"{one.name} would get 1 queue with 0 messages",
                f"{two.name} would get 0 queues with 0 messages",
                "1 client without a persistent session would be disconnected",
                "nothing would be lost",
            ],
        )
        there.publish("to/away", "waits")
    with leaving(one, node, "-k", "-i", "1", "-t", "600") as command:
        command.wait_taken()
        command.interrupt()
        code, said, _ = command.end()
        assert code == 1 and "the leave goes on without this command" in said
    with leaving(two, node, "-k", "-i", "1", "-t", "600") as command:
        command.wait_taken()
        command.lose()
    node.kill()
    wait_until(lambda: not one.cluster()[node.name], "the notice of its death", NOTICE_LIMIT_S)
    node.start()
    wait_until(lambda: one.cluster()[node.name], "its return")
    for at in members:
        wait_until(lambda at=at: states(at, node).get(node.name) == "waiting", f"the state at {at.name}")  # type: ignore[misc]
    assert not accepts(node)
    for at in members:
        code, said, _ = leave(at, two, "-k", "--force")
        assert code == 1 and f"{node.name} is leaving the cluster already (waiting): one node at a time" in said
    with leaving(two, node, "-k", "-i", "1", "-t", "600") as command:
        command.wait_taken()
        assert leave(one, node, "--abort")[:2] == (0, "Done")
        assert command.end()[:2] == (1, f"vmq-admin: the leave of {node.name} was aborted")
    wait_until(lambda: accepts(node), "open listeners")
    assert queues(node)[1] == 1
    two.kill()
    wait_until(lambda: not one.cluster()[two.name] and not node.cluster()[two.name], "the notice of its death")
    begun = time.monotonic()
    code, said, _ = leave(one, node, "-k", "--force")
    assert code == 1 and said.startswith(f"vmq-admin: {two.name} does not run, and may have messages")
    assert time.monotonic() - begun < NOTICE_LIMIT_S
    assert leave(one, node, "-k", "--force", f"--force-targets={one.name}")[:2] == (0, "Done")
    assert node.wait_end() == 0
    two.start()
    wait_until(lambda: one.cluster() == two.cluster() == {one.name: True, two.name: True}, "the news of the leave")
    with Client(two, "away", V5, persistent=True) as back:
        assert back.present
        assert back.message() == ("to/away", "waits")


def test_a_dead_node_is_removed_and_hears_of_it_when_it_comes_back(members: list[Node]) -> None:
    one, two, node = members
    # Whoever takes them knows their users from the registry alone.
    users = {number: "" if number % 2 else f"user{number}" for number in range(10)}

    def away(number: int, at: Node) -> Client:
        return Client(at, f"away{number}", V5, persistent=True, user=users[number])

    with Client(one) as publisher:
        for number in range(10):
            with away(number, node) as client:
                client.subscribe(f"to/{number}")
        wire = Wire(node)
        will = Will("to/3", "will", WILL_DELAY_S)
        assert wire.attach(connect_packet("mortal", V5, will=will, expiry_s=WILL_DELAY_S), V5) is False
        with Client(node, "last", V5) as last:
            wait_known(last, publisher)
        publisher.publish("to/7", "old")
        publisher.publish("to/8", "old")
        node.kill()
        wire.close()
        wait_until(lambda: not one.cluster()[node.name] and not two.cluster()[node.name], "the notice of its death")
        assert node.name in one.status()["ready"]
        publisher.publish("to/9", "kept for it")
        code, shown = leave_on_terminal(one, node, answer="n")
        assert code == 1 and f"Remove {node.name} from the cluster? [y/N]" in shown and "nothing was done" in shown
        assert len(one.cluster()) == 3
        code, said, progress = leave(one, node)
        assert (code, said) == (0, "Done")
        assert "It may be alive on the far side of a network partition" in progress[0]
        assert "Its store holds 11 queues with " in progress[1]
        assert one.status()["ready"] == "yes"
        assert one.cluster() == {one.name: True, two.name: True}
        wait_until(lambda: two.cluster() == one.cluster(), "the news")
        assert (queues(one)[0], queues(two)[0]) == (7, 5), "five each, and the publisher and the eleventh"
        publisher.publish("to/7", "new")
    with away(7, two) as back:
        assert back.present
        assert back.message() == ("to/7", "new")
        assert back.nothing_waits()
    with away(9, one) as back:
        assert back.message() == ("to/9", "kept for it")
    node.launch()
    assert node.wait_end() == 3
    assert "was removed from the cluster" in node.said()
    assert not any(line.startswith("ready: ") for line in node.said().splitlines()), "it would serve who connects"
    node.launch()
    assert node.wait_end() == 3
    node.launch("--recover-queues")
    assert node.wait_end() == 0
    assert "queues are given back; 0 messages are left" in node.said()
    wait_until(lambda: len(one.cluster()) == 2, "the end of the donor")
    with away(7, one) as back, away(8, two) as other:
        assert back.message() == ("to/7", "old")
        assert other.message() == ("to/8", "old")
        assert back.nothing_waits() and other.nothing_waits()
    wait_until(lambda: queues(one)[0] + queues(two)[0] == 10, "the end of the session that was to end")
    with away(3, two) as heir, away(9, one) as back:
        assert heir.message() == ("to/3", "will")
        assert heir.nothing_waits() and back.nothing_waits()


def test_a_node_that_is_still_a_member_is_no_donor(make_node: Callable[..., Node]) -> None:
    one, node = [make_node(number, COOKIE).start() for number in (1, 2)]
    node.join(one)
    node.stop()
    node.launch("--recover-queues")
    assert node.wait_end() == 1
    assert "start it without --recover-queues" in node.said()
    node.start()
    wait_until(lambda: accepts(node), "its readiness")


def test_a_node_without_anything_to_give_back_is_no_donor(make_node: Callable[..., Node]) -> None:
    node = make_node()
    with Client(node.start(), "away", V5, persistent=True) as away:
        away.subscribe("to/away")
    node.stop()
    node.launch("--recover-queues")
    assert node.wait_end() == 1
    assert "has no queues to give back; start it without --recover-queues" in node.said()
    assert not any(line.startswith("ready: ") for line in node.said().splitlines()), "it would serve who connects"
