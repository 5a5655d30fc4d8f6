"""Three real nodes as one broker: joining, messages across nodes, killed nodes, strangers."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import zmq
from clients import V4, V5, Client, wait_known
from nodes import (
    COOKIE,
    LIMIT_S,
    NOTICE_LIMIT_S,
    Node,
    free_address,
    free_port,
    join_all,
    start_all,
    wait_until,
    wait_whole,
)

ANSWER_LIMIT_S = 10.0
"""Promised: a join that can't be hears why within this time."""

SILENCE_MS = 1500


def test_every_node_shows_the_cluster(cluster: list[Node]) -> None:
    line = "+-----------------+---------+\n"
    rows = "".join(f"| {member.name} | true    |\n{line}" for member in cluster)
    table = [{"Node": member.name, "Running": True} for member in cluster]
    for member in cluster:
        shown = member.admin("cluster", "show")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout == line + "| Node            | Running |\n" + line + rows
        as_json = member.admin("cluster", "show", "--format", "json")
        assert (as_json.returncode, json.loads(as_json.stdout)) == (0, {"type": "table", "table": table})


@pytest.mark.parametrize("version", [V4, V5], ids=["v3.1.1", "v5"])
def test_a_message_reaches_subscribers_on_every_node(cluster: list[Node], version: int) -> None:
    one, two, three = cluster
    with (
        Client(one, version=version) as publisher,
        Client(two, version=version) as exact,
        Client(three, version=version) as plus,
        Client(three, version=version) as hash_0,
        Client(one, version=version) as at_home,
    ):
        exact.subscribe("house/1/temperature")
        plus.subscribe("house/+/temperature")
        hash_0.subscribe("house/#", 0)
        at_home.subscribe("#")
        for subscriber in (exact, plus, hash_0, at_home):
            wait_known(subscriber, publisher)
        while not at_home.nothing_waits():
            # It heard the others' askings as well.
            at_home.message()
        for qos in (0, 1):
            publisher.publish("house/1/temperature", f"warm {qos}", qos)
            publisher.publish("house/2/temperature", f"cold {qos}", qos)
        first = [("house/1/temperature", "warm 0"), ("house/1/temperature", "warm 1")]
        both = [("house/1/temperature", "warm 0"), ("house/2/temperature", "cold 0")]
        both += [("house/1/temperature", "warm 1"), ("house/2/temperature", "cold 1")]
        assert exact.messages(2) == first
        assert plus.messages(4) == hash_0.messages(4) == at_home.messages(4) == both
        # Once each: what is published next is what comes next.
        publisher.publish("house/1/temperature", "end")
        for subscriber in (exact, plus, hash_0, at_home):
            assert subscriber.message() == ("house/1/temperature", "end")


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto_sub is not installed")
def test_mosquitto_clients_cross_nodes(cluster: list[Node]) -> None:
    one, _, three = cluster
    subscribe = ["mosquitto_sub", "-h", three.host, "-p", str(three.mqtt_port)]
    subscribe += ["-t", "a/#", "-q", "1", "-v", "-C", "1", "-W", str(int(LIMIT_S))]
    publish = ["mosquitto_pub", "-h", one.host, "-p", str(one.mqtt_port), "-t", "a/b", "-m", "hi", "-q", "1"]
    with subprocess.Popen(subscribe, stdout=subprocess.PIPE, text=True) as subscriber:

        def heard() -> bool:
            # Nobody says when the first node knows of the subscription.
            subprocess.run(publish, check=True, timeout=LIMIT_S)
            return subscriber.poll() is not None

        wait_until(heard, "mosquitto_sub on node 3 hears mosquitto_pub on node 1")
        assert subscriber.stdout is not None
        assert subscriber.stdout.read() == "a/b hi\n"


def test_unsubscribed_is_unsubscribed_everywhere(cluster: list[Node]) -> None:
    one, two, _ = cluster
    with Client(one) as publisher, Client(two) as subscriber:
        subscriber.subscribe("news")
        wait_known(subscriber, publisher)
        publisher.publish("news", "1")
        assert subscriber.message() == ("news", "1")
        subscriber.paho.unsubscribe("news")
        wait_known(subscriber, publisher)
        publisher.publish("news", "2")
        wait_known(subscriber, publisher)
        assert subscriber.nothing_waits()


@pytest.mark.parametrize("mechanism", ["random key", "NULL", "wrong server key", "PLAIN"])
def test_a_stranger_on_the_mesh_port_gets_nothing(cluster: list[Node], mechanism: str) -> None:
    one = cluster[0]
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        if mechanism in ("random key", "wrong server key"):
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            # The right server key takes the cookie; a stranger with one key of a member is the harder case.
            stranger.curve_serverkey = server_key() if mechanism == "random key" else zmq.curve_keypair()[0]
        elif mechanism == "PLAIN":
            stranger.plain_username, stranger.plain_password = b"node2@127.0.0.2", COOKIE.encode()
        monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        stranger.connect(f"tcp://{one.host}:{one.mesh_port}")
        # The first byte of a frame is its version, the second its type: a Hello that would be read if it got in.
        stranger.send(b"\x01\x01hello")
        assert stranger.poll(SILENCE_MS) == 0
        assert monitor.poll(0) == 0
        stranger.disable_monitor()
    assert one.cluster() == {member.name: True for member in cluster}


def server_key() -> bytes:
    """Return the public key that nodes answer with, as one who knows the cookie computes it."""
    from cluster.keys import SERVER
    from cluster.transport import cluster_keys

    return cluster_keys(COOKIE).public(SERVER)


def test_discovery_makes_one_cluster_of_nodes_started_at_once(three: list[Node]) -> None:
    # That it is whole is the fixture's work; here it carries a message each way round.
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(member)) for member in three]
        for publisher, subscriber in zip(clients, clients[1:] + clients[:1], strict=True):
            subscriber.subscribe("round")
            wait_known(subscriber, publisher)
        for publisher in clients:
            publisher.publish("round", "trip")
        for subscriber in clients:
            assert subscriber.messages(3) == [("round", "trip")] * 3


def test_a_killed_node_is_seen_and_comes_back_with_its_sessions(three: list[Node]) -> None:
    one, two, last = three
    subscriber = Client(last, "keeper", persistent=True).connect()
    subscriber.subscribe("kept/#")
    with Client(one) as publisher, Client(two) as other:
        wait_known(subscriber, publisher, other)
        subscriber.disconnect()
        publisher.publish("kept/1", "while the session's node runs")
        last.kill()
        killed_at = time.monotonic()
        for member in (one, two):
            wait_until(
                lambda member=member: member.cluster().get(last.name) is False,  # type: ignore[misc]
                f"{member.name} sees that {last.name} is not running",
                NOTICE_LIMIT_S - (time.monotonic() - killed_at),
            )
        assert one.cluster() == {one.name: True, two.name: True, last.name: False}
        # A node that does not reach all of them holds what is published, whoever it is for.
        waiting = publisher.publish_later("kept/2", "while it is down")
        elsewhere = other.publish_later("elsewhere", "a topic that nobody waits for there")
        assert not publisher.acknowledged(waiting)
        last.start()
        publisher.wait_acknowledged(waiting)
        other.wait_acknowledged(elsewhere)
        wait_whole(three)
        with Client(last, "keeper", persistent=True) as subscriber:
            assert subscriber.present
            assert subscriber.messages(2) == [
                ("kept/1", "while the session's node runs"),
                ("kept/2", "while it is down"),
            ]
            # Nothing has to be joined or subscribed again.
            other.publish("kept/3", "afterwards")
            assert subscriber.message() == ("kept/3", "afterwards")


def test_what_a_node_that_is_down_has_to_get_survives_the_node_that_has_it(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE, ["cluster.readiness=majority"]) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    one, _two, last = members
    subscriber = Client(last, "keeper", persistent=True).connect()
    subscriber.subscribe("kept/#", 2)
    with Client(one) as publisher:
        wait_known(subscriber, publisher)
        subscriber.disconnect()
        last.kill()
        wait_until(lambda: one.cluster().get(last.name) is False, f"{one.name} sees that {last.name} is not running")
        for qos in (1, 2):
            publisher.publish(f"kept/{qos}", "while it is down", qos)
    waiting = {row["Metric"]: row["Value"] for row in one.table("metrics", "show")}
    assert waiting[f"cluster_outbox_messages{{node={last.name}}}"] == 2
    one.kill()
    one.start()
    last.start()
    wait_whole(members)
    with Client(last, "keeper", persistent=True) as subscriber:
        assert subscriber.present
        assert subscriber.messages(2) == [("kept/1", "while it is down"), ("kept/2", "while it is down")]
        assert subscriber.nothing_waits()


def retained_at(node: Node, topic_filter: str) -> list[tuple[str, str]]:
    """Return, sorted, what a new subscriber of a node is sent before something that is published now."""
    with Client(node) as subscriber:
        subscriber.subscribe(topic_filter)
        subscriber.subscribe("end")
        subscriber.publish("end")
        found = []
        while True:
            message = subscriber.message()
            if message[0] == "end":
                return sorted(found)
            found.append(message)


def wait_retained(members: list[Node], topic_filter: str, *expected: tuple[str, str]) -> None:
    """Wait until every member has exactly this for a new subscriber."""
    for member in members:
        wait_until(
            lambda member=member: retained_at(member, topic_filter) == list(expected),  # type: ignore[misc]
            f"{member.name} retains {expected}",
        )


def test_a_retained_message_is_every_nodes(three: list[Node]) -> None:
    one, two, last = three
    large = "x" * 1_000_000
    with Client(one) as first, Client(two) as second:
        first.retain("state/1", "on")
        wait_retained(three, "state/#", ("state/1", "on"))
        second.retain("state/1", "off")
        first.retain("state/2", large)
        wait_retained(three, "state/#", ("state/1", "off"), ("state/2", large))
        last.kill()
        last.start()
        wait_whole(three)
        wait_retained([last], "state/#", ("state/1", "off"), ("state/2", large))
        first.retain("state/1", "")
        wait_retained(three, "state/#", ("state/2", large))
    for member in three:
        member.kill()
    start_all(three)
    wait_whole(three)
    wait_retained(three, "state/#", ("state/2", large))


def test_what_is_deleted_while_a_node_is_down_does_not_rise_with_it(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE, ["cluster.readiness=majority"]) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    one, two, last = members
    with Client(one) as client, Client(last) as owner:
        owner.retain("state/1", "old")
        owner.retain("state/2", "old")
        wait_retained(members, "state/#", ("state/1", "old"), ("state/2", "old"))
        last.kill()
        wait_until(lambda: one.cluster().get(last.name) is False, f"{one.name} sees that {last.name} is not running")
        client.retain("state/1", "")
        client.retain("state/2", "new")
        wait_retained([one, two], "state/#", ("state/2", "new"))
    last.start()
    wait_whole(members)
    wait_retained(members, "state/#", ("state/2", "new"))


def test_a_cluster_comes_back_in_any_order_without_discovery(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    for member in members:
        member.stop()
    # The one that the others joined comes last; after a while alone the second is a member as before.
    one, two, last = members
    two.start()
    assert two.cluster() == {one.name: False, two.name: True, last.name: False}
    last.start()
    wait_whole_without(one, [two, last])
    one.start()
    wait_whole(members)
    for member in members:
        member.kill()
    start_all(reversed(members))
    wait_whole(members)


def wait_whole_without(missing: Node, members: list[Node]) -> None:
    """Wait until the members see each other running and `missing` not."""
    seen = {member.name: True for member in members} | {missing.name: False}
    for member in members:
        wait_until(lambda member=member: member.cluster() == seen, f"{member.name} sees {seen}")  # type: ignore[misc]


def refused_join(node: Node, discovery_node: str) -> str:
    """Ask `node` to join, and return why it did not within the promised time."""
    began = time.monotonic()
    joined = node.admin("cluster", "join", f"discovery-node={discovery_node}")
    took_s = time.monotonic() - began
    assert (joined.returncode, joined.stdout) == (1, "")
    assert joined.stderr.startswith("vmq-admin: ") and joined.stderr.count("\n") == 1
    assert took_s < ANSWER_LIMIT_S, joined.stderr
    return joined.stderr


def test_a_wrong_cookie_is_refused(cluster: list[Node], make_node: Callable[..., Node]) -> None:
    stranger = make_node(4, "the cookie of another cluster").start()
    assert "handshake refused: different cookie, or not a zvmq cluster port" in refused_join(
        stranger, cluster[0].discovery_node
    )
    assert stranger.cluster() == {stranger.name: True}
    assert stranger.name not in cluster[0].cluster()


def test_joins_that_can_not_be(cluster: list[Node], make_node: Callable[..., Node]) -> None:
    # One node for all: none of them may change anything.
    loner = make_node(4, COOKIE).start()
    free = free_address("127.0.0.5")
    assert "can't join itself" in refused_join(loner, loner.discovery_node)
    assert "refused" in refused_join(loner, f"node5@{free}")
    assert "cannot find the host nowhere.invalid" in refused_join(loner, "node5@nowhere.invalid:44053")
    # Somebody listens there, who isn't zvmq.
    assert "handshake refused" in refused_join(loner, f"node1@{cluster[0].mqtt_address}")
    # A port of the cluster under another node's name: its key is another one.
    assert "handshake refused" in refused_join(loner, f"node2@{cluster[0].host}:{cluster[0].mesh_port}")
    assert loner.cluster() == {loner.name: True}
    assert cluster[0].cluster() == {member.name: True for member in cluster}


def test_a_name_that_is_taken_is_refused(cluster: list[Node], make_node: Callable[..., Node]) -> None:
    double = make_node(2, COOKIE).start()
    why = refused_join(double, cluster[0].discovery_node)
    assert f"a member named {double.name} with another store is already in the cluster" in why
    assert double.cluster() == {double.name: True}
    # At the node that it is called like, and by its own name, nothing is different.
    assert "can't join itself" in refused_join(double, cluster[1].discovery_node)
    assert cluster[0].cluster() == {member.name: True for member in cluster}


def test_a_member_may_come_back_at_another_address(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE) for number in (1, 2)]
    start_all(members)
    join_all(members)
    one, two = members
    two.stop()
    two.settings.append(f"cluster.listen={free_address(two.host)}")
    two.start()
    wait_whole(members)
    two.stop()
    # While the other one is away, and by an operator's word as well.
    one.stop()
    two.mesh_port = free_port(two.host)
    two.settings.append(f"cluster.listen={two.host}:{two.mesh_port}")
    start_all(members)
    wait_whole(members)
    one.join(two)
    with Client(two, "keeper", persistent=True), Client(two):
        own, other = one.table("cluster", "show", "--verbose")
    assert list(other) == [
        "Node",
        "Running",
        "State",
        "Address",
        "Sessions",
        "Queued messages",
        "Link lag (bytes)",
        "Version",
    ]
    assert (other["Node"], other["State"], other["Address"]) == (two.name, "alive", f"{two.host}:{two.mesh_port}")
    assert (own["Sessions"], other["Sessions"], other["Queued messages"]) == (0, 2, 0)
    assert own["Version"] == other["Version"]
    two.stop()
    (_, other) = one.table("cluster", "show", "--verbose")
    assert (other["Sessions"], other["Queued messages"], other["Version"]) == (None, None, None)


def test_a_member_joins_no_other_cluster_and_joining_again_is_harmless(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE) for number in (1, 2, 3, 4)]
    start_all(members)
    one, two, three, four = members
    two.join(one)
    four.join(three)
    assert "already in a cluster with others" in refused_join(two, three.discovery_node)
    assert "already in a cluster with others" in refused_join(one, four.discovery_node)
    two.join(one)
    one.join(two)
    wait_whole([one, two])
    wait_whole([three, four])


def test_after_a_suback_that_waits_for_the_cluster_every_node_knows(make_node: Callable[..., Node]) -> None:
    settings = ["cluster.subscribe_wait=cluster", "cluster.readiness=available"]
    members = [make_node(number, COOKIE, settings) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    one, two, last = members
    with Client(one) as publisher, Client(two) as other, Client(last) as subscriber:
        for number in range(50):
            subscriber.subscribe(f"new/{number}")
            # At once, and once: there is no second chance.
            publisher.publish(f"new/{number}", "1")
            other.publish(f"new/{number}", "2")
            assert sorted(subscriber.messages(2)) == [(f"new/{number}", "1"), (f"new/{number}", "2")]
        one.kill()
        # The node that is waited for is taken for dead, or the time is over.
        subscriber.subscribe("later")
        other.publish("later", "3")
        assert subscriber.message() == ("later", "3")


def test_a_shared_subscription_is_one_in_the_whole_cluster(make_node: Callable[..., Node]) -> None:
    settings = ["cluster.subscribe_wait=cluster", "cluster.readiness=available", "cluster.failure_timeout_ms=1500"]
    settings += ["mqtt.shared_subscription_policy=random"]
    members = [make_node(number, COOKIE, settings) for number in (1, 2, 3)]
    start_all(members)
    join_all(members)
    one, two, last = members
    lasting = Client(two, "lasting", persistent=True).connect()
    lasting.subscribe("$share/crew/work/#")
    with Client(one) as publisher, Client(one) as near, Client(last) as far:
        for client in (near, far):
            client.subscribe("$share/crew/work/#")

        def share(client: Client) -> list[str]:
            # What is published to all of them comes behind the work.
            found = []
            while (message := client.message())[0] != "end":
                found.append(message[1])
            return found

        def published(first: int, count: int, clients: list[Client]) -> list[list[str]]:
            for number in range(first, first + count):
                publisher.publish(f"work/{number}", str(number), 1)
            publisher.publish("end")
            return [share(client) for client in clients]

        for client in (lasting, near, far):
            client.subscribe("end")
        shares = published(0, 60, [lasting, near, far])
        assert sorted(number for each in shares for number in each) == sorted(map(str, range(60)))
        assert all(10 < len(each) < 30 for each in shares), "to each alike"
        last.kill()
        shares = published(60, 60, [lasting, near])
        # What the dead node had not acknowledged comes when it is dead, behind the end.
        found = [number for each in shares for number in each]

        def have_all() -> bool:
            for client in (lasting, near):
                while not client.nothing_waits():
                    found.append(client.message()[1])
            return len(set(found)) >= 60

        wait_until(have_all, "what the dead node was to have comes to the others")
        assert set(found) == set(map(str, range(60, 120)))
    # Nobody is connected but who comes next, at another node than the one where it was.
    with Client(one) as publisher:
        lasting.disconnect()
        # What is sent to it before its node hears of that is its own.
        wait_until(lambda: {"Status": "num_online", "Value": 0} in two.table("node", "status"), "nobody is connected")
        for number in range(120, 140):
            publisher.publish(f"work/{number}", str(number), 1)
        with Client(one) as newcomer:
            newcomer.subscribe("$share/crew/work/#")
            assert [number for _, number in newcomer.messages(20)] == list(map(str, range(120, 140)))


def test_the_cookie_is_changed_by_three_rounds_of_restarts(make_node: Callable[..., Node]) -> None:
    old, new = COOKIE, "the cookie that comes after it"
    members = [make_node(number, old) for number in (1, 2)]
    start_all(members)
    join_all(members)
    subscriber = Client(members[1], "keeper", persistent=True).connect()
    subscriber.subscribe("kept/#")
    subscriber.disconnect()
    for cookie, others in ((old, f"[{new}]"), (new, f"[{old}]"), (new, "[]")):
        for member in members:
            member.stop()
            member.settings += [f"cluster.cookie={cookie}", f"cluster.other_cookies={others}"]
            member.start()
            # One with the new settings and one with the old ones are a cluster as well.
            wait_whole(members)
        with Client(members[0]) as publisher:
            publisher.publish(f"kept/{cookie}/{others}", "each round")
    with Client(members[1], "keeper", persistent=True) as subscriber:
        rounds = [topic for topic, _ in subscriber.messages(3)]
        assert rounds == [f"kept/{old}/[{new}]", f"kept/{new}/[{old}]", f"kept/{new}/[]"]
    left_out = make_node(3, old).start()
    assert "handshake refused" in refused_join(left_out, members[0].discovery_node)


def test_a_check_compares_what_all_nodes_hold(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE) for number in (1, 2)]
    start_all(members)
    join_all(members)
    one, two = members
    with Client(two) as subscriber, Client(one, "keeper", persistent=True) as keeper:
        subscriber.subscribe("a/#")
        keeper.subscribe("b/#")
        checked = one.admin("cluster", "check", "--json")
        assert (checked.returncode, checked.stderr) == (0, "")
        table = json.loads(checked.stdout)["table"]
        names = [one.name, two.name]
        assert [(row["Node"], row["Table of"], row["Table"]) for row in table] == [
            (node, owner, kind) for node in names for owner in names for kind in ("passing", "lasting", "retained")
        ]
        assert all(row["Agrees"] is True for row in table)
        # The session and the subscription of a persistent client.
        assert [row["Rows"] for row in table if (row["Table of"], row["Table"]) == (one.name, "lasting")] == [2, 2]
        assert two.admin("cluster", "check", "--repair").returncode == 0
    two.kill()
    wait_until(lambda: one.cluster().get(two.name) is False, f"{one.name} sees that {two.name} is not running")
    checked = one.admin("cluster", "check", "--json")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert json.loads(checked.stdout)["table"][-1] == {
        "Node": two.name,
        **dict.fromkeys(("Table of", "Table", "Version", "Checksum", "Rows", "Agrees")),
    }


def test_nodes_find_each_other_by_a_name(make_node: Callable[..., Node]) -> None:
    # The first finds its own address alone.
    members = [make_node(number, COOKIE) for number in (1, 2, 3)]
    for member in members:
        member.settings.append(f"cluster.discovery=[dns://localhost:{members[0].mesh_port}]")
    start_all(members)
    wait_whole(members)
