"""Whole nodes and single processes killed by SIGKILL: what was acknowledged is delivered, once if so asked, in order.

`make crash ROUNDS=100` searches longer. Each round prints its seed: whom to kill and when is drawn from it; what is
under way at that moment is the machine's. `--crash-seed N` begins with the round of that seed.
"""

import random
import time
from collections.abc import Callable

import pytest
from clients import V4, V5, Client, wait_known
from crash_round import ALL, KILLS, Round, Taken, Totals, Wanted, check, plan_for, queued_messages
from nodes import COOKIE, LIMIT_S, Node, join_all, start_all, wait_until
from wire_clients import Message, Progress, Will, Wire, WirePublisher, connect_packet

SEED = 20
OFFLINE_MESSAGES = 5000
DOWN_WILL_DELAY_S = 2
LONG_S = 3000

# What waits while the subscriber is away is bounded by default; here nothing may be dropped.
UNBOUNDED = ["mqtt.max_offline_messages=-1", "mqtt.max_online_messages=-1"]
SYNCED = "store.sync=always"


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> range:
    """The seeds of the rounds to run."""
    seed = request.config.getoption("crash_seed", None)
    count = request.config.getoption("crash_rounds", None) or (10 if seed is None else 1)
    first = SEED if seed is None else int(seed)
    return range(first, first + int(count))


def test_rounds_of_kills_lose_double_and_reorder_nothing(make_node: Callable[..., Node], rounds: range) -> None:
    node = make_node(settings=UNBOUNDED)
    totals = Totals()
    for seed in rounds:
        print(f"seed {seed}", flush=True)
        node.start()
        found = Round(seed, node, node).run(totals)
        print(totals.line(), flush=True)
        assert not found, f"seed {seed}: {found}"
        node.stop()
    assert totals.kills.total() == KILLS * len(rounds)


def test_members_killed_under_load_lose_nothing_they_acknowledged(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE, UNBOUNDED) for number in (1, 2)]
    start_all(members)
    join_all(members)

    def known() -> None:
        with Client(members[1]) as subscriber, Client(members[0]) as publisher:
            wait_known(subscriber, publisher)

    wanted = (Wanted("v3", 1, (V4,)), Wanted("v5", 1, (V5,)))
    totals = Totals()
    found = Round(SEED, *members, kinds=(ALL,), qos=(1,), wanted=wanted).run(totals, known)
    print(totals.line())
    assert not found, f"seed {SEED}: {found}"
    assert totals.kills == {ALL: KILLS}


def test_the_check_of_a_history_finds_what_is_wrong() -> None:
    sent = plan_for(0, "a", (2,), 20, random.Random(SEED))
    once = Wanted("once", 2, (V5,))

    def wrong(messages: list[Message], wanted: Wanted = once) -> tuple[list[str], Totals]:
        totals = Totals()
        return check(sent, sent, [Taken(wanted, [messages])], totals), totals

    right = [publication.message for publication in sent]
    found, totals = wrong(right)
    assert found == [] and totals.delivered == totals.acknowledged == totals.published[2] == 20
    found, totals = wrong(right[1:])
    assert len(found) == totals.lost == 1
    found, totals = wrong([*right, right[3]])
    assert len(found) == totals.doubled == 1
    found, totals = wrong([*right, right[3]], Wanted("often", 1, (V5,)))
    assert found == [] and totals.again == 1
    backwards = [message for message in right if message.topic == "a/0"][::-1]
    found, totals = wrong([*backwards, *(message for message in right if message.topic != "a/0")])
    assert len(found) == 1 and totals.reordered == len(backwards) - 1
    found, _ = wrong([*right, Message("a/0", b"?")])
    assert found == ["once: 1 that nobody published"]


@pytest.mark.parametrize(
    ("version", "settings"), [(V4, []), (V5, []), (V5, [SYNCED])], ids=["v3.1.1", "v5", "v5-always"]
)
def test_what_waits_for_an_absent_client_survives_kills(
    make_node: Callable[..., Node], version: int, settings: list[str]
) -> None:
    node = make_node(settings=[*UNBOUNDED, *settings]).start()
    subscriber = Client(node, "absent", version, persistent=True).connect()
    subscriber.subscribe("orders/+", 2)
    subscriber.disconnect()
    chance = random.Random(SEED)
    plan = plan_for(0, "orders", (2,), OFFLINE_MESSAGES, chance)
    progress = Progress()
    publisher = WirePublisher(node, "publisher", version, chance, plan, progress)
    publisher.start()
    try:
        assert progress.wait(chance.randrange(1, OFFLINE_MESSAGES * 9 // 10), 2 * LIMIT_S), publisher.fault
        node.kill()
        node.start()
        assert publisher.done.wait(2 * LIMIT_S), publisher.fault
    finally:
        publisher.leaving.set()
    node.kill()
    node.start()
    wait_until(lambda: queued_messages(node) == OFFLINE_MESSAGES, "all of it is there")
    with Client(node, "absent", version, persistent=True) as subscriber:
        assert subscriber.present is True
        received = subscriber.messages(OFFLINE_MESSAGES)
        assert received == [(one.message.topic, one.message.payload.decode()) for one in plan]
        subscriber.publish("orders/b", "next")
        assert subscriber.message() == ("orders/b", "next")
        wait_until(lambda: queued_messages(node) == 0, "the broker has every acknowledgement")
    node.kill()
    node.start()
    wait_until(lambda: queued_messages(node) == 0, "none of it is there")


def test_retained_messages_survive_kills(node: Node) -> None:
    with Client(node) as publisher:
        for topic, payload in (("a", "old"), ("b", "gone"), ("c", "kept"), ("a", "new"), ("b", "")):
            publisher.wait_acknowledged(publisher.paho.publish(f"kept/{topic}", payload, 1, retain=True).mid)
        node.kill()
    for _ in range(2):
        node.start()
        with Client(node) as subscriber:
            subscriber.subscribe("kept/+")
            subscriber.publish("kept/d", "the last")
            assert sorted(subscriber.messages(2)) == [("kept/a", "new"), ("kept/c", "kept")]
            assert subscriber.message() == ("kept/d", "the last")
        node.kill()


def heir(node: Node) -> Client:
    """Return a client that waits for wills; once it has subscribed, it may leave."""
    client = Client(node, "heir", persistent=True).connect()
    client.subscribe("will/+")
    return client


def leave_wills(node: Node, wills: dict[str, Will], version: int = V5) -> list[Wire]:
    """Connect clients with wills, by client id; return what keeps them connected."""
    wires = [Wire(node) for _ in wills]
    for wire, (name, will) in zip(wires, wills.items(), strict=True):
        assert wire.attach(connect_packet(name, version, will=will), version) is False
    return wires


def test_a_will_that_came_due_while_the_node_was_down_is_published(make_node: Callable[..., Node]) -> None:
    # The grace is for those who were connected; this one was given up before, and its deadline stands.
    node = make_node(settings=[f"mqtt.leave_will_grace_s={LONG_S}"]).start()
    heir(node).disconnect()
    for wire in leave_wills(node, {"late": Will("will/late", "was due", DOWN_WILL_DELAY_S)}):
        wire.close()
    wait_until(lambda: online(node) == 0, "the node knows that the connection is gone")
    due = time.monotonic() + DOWN_WILL_DELAY_S
    node.kill()
    wait_until(lambda: time.monotonic() > due, "the will is due")
    node.start()
    with Client(node, "heir", persistent=True) as client:
        assert client.message() == ("will/late", "was due")


def online(node: Node) -> int:
    """Return how many clients are connected."""
    return next((int(row["Value"]) for row in node.table("node", "status") if row["Status"] == "num_online"), -1)


def test_wills_of_connected_clients_have_the_grace_after_a_kill(make_node: Callable[..., Node]) -> None:
    node = make_node(settings=["mqtt.leave_will_grace_s=1"]).start()
    heir(node).disconnect()
    wires = leave_wills(node, {"v3": Will("will/v3", "gone")}, V4) + leave_wills(node, {"v5": Will("will/v5", "gone")})
    assert queued_messages(node) == 0
    node.kill()
    node.start()
    with Client(node, "heir", persistent=True) as client:
        assert sorted(client.messages(2)) == [("will/v3", "gone"), ("will/v5", "gone")]
        wait_until(lambda: queued_messages(node) == 0, "the broker has every acknowledgement")
    # Once: what was published is in the store no more.
    node.kill()
    node.start()
    with Client(node, "heir", persistent=True) as client:
        client.publish("will/none", "no more")
        assert client.message() == ("will/none", "no more")
    for wire in wires:
        wire.close()


def test_who_is_back_after_a_kill_has_left_no_will(make_node: Callable[..., Node]) -> None:
    node = make_node(settings=[f"mqtt.leave_will_grace_s={LONG_S}"]).start()
    heir(node).disconnect()
    wires = leave_wills(node, {name: Will(f"will/{name}", "gone", LONG_S) for name in ("back", "away")})
    node.kill()
    node.start()
    with Wire(node) as back:
        assert back.attach(connect_packet("back", V5), V5) is True
    # A session that ends doesn't let its will wait any longer, so this shows who still has one.
    for name in ("back", "away"):
        with Wire(node) as ending:
            assert ending.attach(connect_packet(name, V5, clean=True), V5) is False
    with Client(node, "heir", persistent=True) as client:
        client.publish("will/none", "no more")
        assert client.messages(2) == [("will/away", "gone"), ("will/none", "no more")]
    for wire in wires:
        wire.close()
