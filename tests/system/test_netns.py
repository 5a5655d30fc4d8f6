"""Three real nodes, each in a network namespace of its own, and links between them that are cut, heal or are slow.

A node's clients come over its loopback, so there are some on every side of a cut. The failure timeout is the default
where a node serves only as a whole, for which the times are promised.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from clients import Client, wait_known
from namespaces import Network, PlacedClient, PlacedNode, why_not
from nodes import NOTICE_LIMIT_S, close_started, join_all, start_all, wait_until
from test_netsplit import SILENCE_S, metric, readiness, splits
from wire_clients import V5, V311, Message, Wire, answer_packet, connect_packet, packet, publish_packet, string

SIZE = 3
BURNERS_PER_CPU = 2
SHORT = ("cluster.failure_timeout_ms=3000",)
# Longer than the failure timeout.
BUSY_S = 6.0
SESSION_TAKEN_OVER = 0x8E
INFLIGHT_MAX = 20
PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 0x30, 0x40, 0x50, 0x62, 0x70
SUBSCRIBE, SUBACK, DISCONNECT = 0x82, 0x90, 0xE0
QOS_1, QOS_2, DUP = 0x02, 0x04, 0x08
# A queue of 75 kB, which takes a second to send.
SLOW = ("rate", "600kbit", "burst", "4kb", "latency", "1s")
LARGE_BYTES = 1000
# At that rate it takes longer than the failure timeout.
LARGE_COUNT = 400


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A network for the nodes of this file."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Network(SIZE)
    yield made
    made.close()


@contextmanager
def running_cluster(network: Network, directory: Path, settings: list[str]) -> Iterator[list[PlacedNode]]:
    """Three nodes that are one cluster; whatever happens, nothing of them is left."""
    with ExitStack() as stack:
        members = [PlacedNode(network, directory / f"node{n}", n, *settings) for n in range(1, SIZE + 1)]
        for member in members:
            stack.callback(close_started, member)
        start_all(members)
        join_all(members)
        yield members
        for member in members:
            member.stop()


@pytest.fixture(scope="module")
def members(
    request: pytest.FixtureRequest, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[PlacedNode]]:
    """A cluster with the readiness that is asked for, by default `all`: it serves only as a whole."""
    readiness = getattr(request, "param", "all")
    settings = [f"cluster.readiness={readiness}", *(SHORT if readiness == "available" else ())]
    with running_cluster(network, tmp_path_factory.mktemp(readiness), settings) as made:
        yield made


AVAILABLE = pytest.mark.parametrize("members", ["available"], indirect=True)
"""Each node serves, whatever it sees of the others."""


def wait_seen(members: list[PlacedNode], missed: Mapping[int, set[int]]) -> None:
    """Wait until each node sees all but those that it must miss (node number -> numbers), in the promised time."""
    deadline = time.monotonic() + NOTICE_LIMIT_S
    for node in members:
        seen = {other.name: other.number not in missed.get(node.number, set()) for other in members}
        wait_until(
            lambda node=node, seen=seen: node.cluster() == seen,  # type: ignore[misc]
            f"{node.name} sees {seen}",
            max(0.0, deadline - time.monotonic()),
        )


def wait_whole(members: list[PlacedNode]) -> None:
    """Wait until each node sees all, in the promised time."""
    wait_seen(members, {})


@contextmanager
def busy_cpus() -> Iterator[None]:
    """Have every CPU contended for."""
    burners = []
    try:
        for _ in range(BURNERS_PER_CPU * len(os.sched_getaffinity(0))):
            burners.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def numbered(topic: str, count: int, first: int = 0) -> list[tuple[str, str]]:
    """Return messages of a topic that count up."""
    return [(topic, f"{number}") for number in range(first, first + count)]


def publish_all(publisher: Client, messages: list[tuple[str, str]]) -> None:
    """Publish at QoS 1 without waiting for each, and wait for every PUBACK."""
    sent = [publisher.publish_later(topic, payload) for topic, payload in messages]
    for mid in sent:
        publisher.wait_acknowledged(mid)


def test_a_cut_and_its_healing_are_seen_and_what_was_held_is_acknowledged(
    network: Network, members: list[PlacedNode]
) -> None:
    one, two, three = members
    before = [splits(node) for node in members]
    with PlacedClient(one) as near, PlacedClient(three) as far, PlacedClient(two) as subscriber:
        subscriber.subscribe("cut/#")
        wait_known(subscriber, near, far)
        with network.cut(3):
            wait_seen(members, {1: {3}, 2: {3}, 3: {1, 2}})
            assert readiness(one) == f"this node is not ready: {three.name} is not running"
            held = [near.publish_later("cut/near", f"{number}") for number in range(3)]
            held_far = [far.publish_later("cut/far", f"{number}") for number in range(3)]
            for node in (one, three):
                wait_until(lambda node=node: metric(node, "netsplit_held") >= 3, f"{node.name} holds them")  # type: ignore[misc]
            with pytest.raises(AssertionError, match="no message"):
                subscriber.message(SILENCE_S)
            assert not any(near.acknowledged(mid) for mid in held)
            assert not any(far.acknowledged(mid) for mid in held_far)
        wait_whole(members)
        for mid in held:
            near.wait_acknowledged(mid)
        for mid in held_far:
            far.wait_acknowledged(mid)
        heard = subscriber.messages(6)
        assert [message for message in heard if message[0] == "cut/near"] == numbered("cut/near", 3)
        assert [message for message in heard if message[0] == "cut/far"] == numbered("cut/far", 3)
    assert [splits(node) for node in members] == [(found + 1, ended + 1) for found, ended in before]
    assert [readiness(node) for node in members] == ["yes"] * SIZE


def test_a_link_that_loses_one_direction_is_missed_at_both_ends_and_nowhere_else(
    network: Network, members: list[PlacedNode]
) -> None:
    before = [splits(node) for node in members]
    missed = {1: {3}, 3: {1}}
    with network.one_way(1, 3):
        wait_seen(members, missed)
        for node in members:
            # Still.
            assert node.cluster() == {other.name: other.number not in missed.get(node.number, ()) for other in members}
        found = [splits(node) for node in members]
    wait_whole(members)
    # Once each, and at the second node, which reaches both, never.
    assert found == [(count + lost, ended) for (count, ended), lost in zip(before, (1, 0, 1), strict=True)]
    after = [splits(node) for node in members]
    assert after == [(count + lost, ended + lost) for (count, ended), lost in zip(before, (1, 0, 1), strict=True)]


def test_nothing_is_missed_while_every_cpu_is_busy(members: list[PlacedNode]) -> None:
    one, two, _three = members
    before = [splits(node) for node in members]
    whole = {node.name: True for node in members}
    with busy_cpus(), PlacedClient(one) as publisher, PlacedClient(two) as subscriber:
        subscriber.subscribe("busy")
        wait_known(subscriber, publisher)
        until = time.monotonic() + BUSY_S
        for look in itertools.count():
            messages = numbered("busy", 100, 100 * look)
            publish_all(publisher, messages)
            assert subscriber.messages(len(messages)) == messages
            assert members[look % SIZE].cluster() == whole
            if time.monotonic() > until:
                break
    assert [splits(node) for node in members] == before


def test_a_link_that_is_slow_and_full_is_not_missed(network: Network, members: list[PlacedNode]) -> None:
    one, _two, three = members
    before = [splits(node) for node in members]
    payload = "x" * LARGE_BYTES
    with PlacedClient(three) as publisher, PlacedClient(one) as subscriber:
        subscriber.subscribe("slow")
        wait_known(subscriber, publisher)
        with network.slow(3, *SLOW):
            messages = [("slow", f"{number} {payload}") for number in range(LARGE_COUNT)]
            publish_all(publisher, messages)
            assert subscriber.messages(LARGE_COUNT) == messages
            # It was as bad as it was meant to be.
            assert network.dropped(3) > 0
    assert [splits(node) for node in members] == before


def test_a_session_goes_with_its_client_from_node_to_node(members: list[PlacedNode]) -> None:
    one, two, three = members
    with PlacedClient(two) as publisher:
        with PlacedClient(one, "mover", persistent=True) as mover:
            assert not mover.present
            mover.subscribe("move/#")
            wait_known(mover, publisher)
        waiting = numbered("move/1", 100)
        publish_all(publisher, waiting)
        with PlacedClient(three, "mover", persistent=True) as mover:
            assert mover.present
            assert mover.messages(100) == waiting
            publisher.publish("move/2", "at the new home")
            assert mover.message() == ("move/2", "at the new home")
        again = numbered("move/3", 100)
        publish_all(publisher, again)
        with PlacedClient(two, "mover", persistent=True) as mover:
            assert mover.present
            assert mover.messages(100) == again
            publisher.publish("move/4", "end")
            assert mover.message() == ("move/4", "end")


def attached(node: PlacedNode, client_id: str, version: int = V311) -> tuple[Wire, bool | None]:
    """Connect to a node and return the connection, and whether the session was there."""
    with node.network.inside(node.number):
        wire = Wire(node)
    return wire, wire.attach(connect_packet(client_id, version), version)


def subscribe(wire: Wire, topic_filter: str, qos: int) -> None:
    """Subscribe as a client of MQTT 3.1.1."""
    wire.send(packet(SUBSCRIBE, b"\0\1" + string(topic_filter) + bytes([qos])))
    assert wire.next() == (SUBACK, bytes([0, 1, qos]))


class Publish(NamedTuple):
    """What a client of MQTT 3.1.1 got."""

    head: int
    packet_id: int
    payload: str


def take_publishes(wire: Wire, count: int) -> list[Publish]:
    """Return the next packets to a client of MQTT 3.1.1, which must be PUBLISHes of QoS 1 or 2."""
    found = []
    for _ in range(count):
        came = wire.next()
        assert came is not None
        head, body = came
        assert head & 0xF0 == PUBLISH
        start = 2 + int.from_bytes(body[:2], "big")
        found.append(Publish(head, int.from_bytes(body[start : start + 2], "big"), body[start + 2 :].decode()))
    return found


def test_a_client_that_connects_elsewhere_ends_its_old_connection(members: list[PlacedNode]) -> None:
    one, two, three = members
    old, present = attached(one, "roamer", V5)
    assert not present
    with old, PlacedClient(two) as publisher, PlacedClient(three, "roamer", persistent=True) as roamer:
        assert roamer.present
        goodbye = old.next()
        assert goodbye is not None
        assert (goodbye[0], goodbye[1][0]) == (DISCONNECT, SESSION_TAKEN_OVER)
        roamer.subscribe("roam")
        wait_known(roamer, publisher)
        publish_all(publisher, numbered("roam", 20))
        assert roamer.messages(20) == numbered("roam", 20)


def test_what_a_client_was_sent_and_did_not_acknowledge_comes_again_elsewhere(members: list[PlacedNode]) -> None:
    one, _two, three = members
    count = INFLIGHT_MAX + 10
    old, _ = attached(one, "reader")
    with old, PlacedClient(one) as publisher:
        subscribe(old, "sent/#", 1)
        publish_all(publisher, numbered("sent/1", count))
        first = take_publishes(old, INFLIGHT_MAX)
        assert [(got.head, got.payload) for got in first] == [(PUBLISH | QOS_1, f"{n}") for n in range(INFLIGHT_MAX)]
        new, present = attached(three, "reader")
        with new:
            assert present
            # [MQTT-4.4.0-1] Under their packet ids, in their order, and as what they are.
            again = take_publishes(new, INFLIGHT_MAX)
            assert again == [got._replace(head=got.head | DUP) for got in first]
            with pytest.raises(EOFError):
                old.next()
            for got in again:
                new.send(answer_packet(PUBACK, got.packet_id))
            # The old node may have begun with these, too, so DUP is right or not.
            assert [got.payload for got in take_publishes(new, 10)] == [f"{n}" for n in range(INFLIGHT_MAX, count)]
            publisher.publish("sent/2", "end")
            (end,) = take_publishes(new, 1)
            assert (end.head, end.payload) == (PUBLISH | QOS_1, "end")


def test_qos_2_goes_on_elsewhere_where_it_stood(members: list[PlacedNode]) -> None:
    one, two, three = members
    old, _ = attached(one, "exact")
    with old, PlacedClient(two) as publisher, PlacedClient(two) as witness:
        subscribe(old, "exact/in", 2)
        witness.subscribe("exact/out", 2)
        wait_known(witness, publisher)
        with PlacedClient(one) as near:
            for number in range(2):
                near.publish("exact/in", f"{number}", 2)
        first, second = take_publishes(old, 2)
        assert (first.head, first.payload, second.head, second.payload) == (PUBLISH | QOS_2, "0", PUBLISH | QOS_2, "1")
        # The first of them the client has, the second it has not; and what it sends itself is not yet released.
        old.send(answer_packet(PUBREC, first.packet_id))
        assert old.next() == (PUBREL, first.packet_id.to_bytes(2, "big"))
        message = Message("exact/out", b"once")
        old.send(publish_packet(V311, message, 2, 7))
        assert old.next() == (PUBREC, b"\0\7")
        new, present = attached(three, "exact")
        with new:
            assert present
            assert new.next() == (PUBREL, first.packet_id.to_bytes(2, "big"))
            assert take_publishes(new, 1) == [second._replace(head=second.head | DUP)]
            new.send(publish_packet(V311, message, 2, 7, dup=True))
            assert new.next() == (PUBREC, b"\0\7")
            new.send(answer_packet(PUBREL, 7))
            assert new.next() == (PUBCOMP, b"\0\7")
            new.send(answer_packet(PUBREC, second.packet_id))
            assert new.next() == (PUBREL, second.packet_id.to_bytes(2, "big"))
            for got in (first, second):
                new.send(answer_packet(PUBCOMP, got.packet_id))
        assert witness.message() == ("exact/out", "once")
        publisher.publish("exact/out", "end", 2)
        assert witness.message() == ("exact/out", "end")


@AVAILABLE
def test_both_sides_serve_and_get_what_they_missed(network: Network, members: list[PlacedNode]) -> None:
    one, two, three = members
    with ExitStack() as stack:
        near, far = stack.enter_context(PlacedClient(one)), stack.enter_context(PlacedClient(three))
        keepers = {
            node.number: stack.enter_context(PlacedClient(node, f"keeper {node.number}", persistent=True))
            for node in (two, three)
        }
        for keeper in keepers.values():
            keeper.subscribe("both/#")
            wait_known(keeper, near, far)
        with PlacedClient(three, "away", persistent=True) as away:
            away.subscribe("both/#")
            wait_known(away, near, far)
        with network.cut(3):
            wait_seen(members, {1: {3}, 2: {3}, 3: {1, 2}})
            assert [readiness(node) for node in members] == ["yes"] * SIZE
            publish_all(near, numbered("both/near", 50))
            publish_all(far, numbered("both/far", 50))
            assert keepers[2].messages(50) == numbered("both/near", 50)
            assert keepers[3].messages(50) == numbered("both/far", 50)
            # Who comes first during the cut is served as well.
            late = stack.enter_context(PlacedClient(three, "late", persistent=True))
            late.subscribe("late")
        wait_whole(members)
        assert keepers[2].messages(50) == numbered("both/far", 50)
        assert keepers[3].messages(50) == numbered("both/near", 50)
        wait_known(late, near)
        near.publish("late", "heard")
        assert late.message() == ("late", "heard")
        publish_all(near, [("both/end", "")])
        for keeper in keepers.values():
            # Once each: what is published next is what comes next.
            assert keeper.message() == ("both/end", "")
        with PlacedClient(three, "away", persistent=True) as away:
            assert away.present
            heard = away.messages(101)
            assert [message for message in heard if message[0] == "both/near"] == numbered("both/near", 50)
            assert [message for message in heard if message[0] == "both/far"] == numbered("both/far", 50)
            assert heard[-1] == ("both/end", "")


@AVAILABLE
def test_a_session_with_two_homes_has_one_after_healing(network: Network, members: list[PlacedNode]) -> None:
    one, _two, three = members
    with PlacedClient(one) as near, PlacedClient(three) as far:
        with PlacedClient(three, "twice", persistent=True) as twice:
            twice.subscribe("twice/#")
            wait_known(twice, near, far)
        publish_all(far, numbered("twice/old", 20))
        with network.cut(3):
            wait_seen(members, {1: {3}, 2: {3}, 3: {1, 2}})
            publish_all(far, numbered("twice/far", 20))
            # Once: who connects again gets once more what it has not acknowledged by then.
            twice = PlacedClient(one, "twice", persistent=True).connect()
            publish_all(near, numbered("twice/near", 20))
        with ExitStack() as stack:
            stack.callback(twice.disconnect)
            wait_whole(members)
            heard = twice.messages(60)
            for topic in ("twice/old", "twice/far", "twice/near"):
                assert [message for message in heard if message[0] == topic] == numbered(topic, 20)
            publish_all(far, [("twice/end", "")])
            assert twice.message() == ("twice/end", "")
        # Nothing is left at the other home, nor comes twice.
        with PlacedClient(three, "twice", persistent=True) as twice:
            assert twice.present
            publish_all(near, [("twice/again", "")])
            assert twice.message() == ("twice/again", "")


@AVAILABLE
def test_a_move_over_a_slow_link_goes_on_after_a_cut(network: Network, members: list[PlacedNode]) -> None:
    one, two, three = members
    payload = "x" * LARGE_BYTES
    messages = [("heavy/old", f"{number} {payload}") for number in range(LARGE_COUNT // 2)]
    with PlacedClient(two) as publisher:
        with PlacedClient(three, "heavy", persistent=True) as heavy:
            heavy.subscribe("heavy/#")
            wait_known(heavy, publisher)
        publish_all(publisher, messages)
        with network.slow(3, *SLOW), PlacedClient(one, "heavy", persistent=True) as heavy:
            assert heavy.present
            with network.cut(3):
                wait_seen(members, {1: {3}, 2: {3}, 3: {1, 2}})
                publish_all(publisher, numbered("heavy/new", 20))
            wait_whole(members)
            heard = heavy.messages(len(messages) + 20)
            # While the old home is away, what came meanwhile does not wait for what that still has.
            assert [message for message in heard if message[0] == "heavy/old"] == messages
            assert [message for message in heard if message[0] == "heavy/new"] == numbered("heavy/new", 20)
            publisher.publish("heavy/end")
            assert heavy.message() == ("heavy/end", "")
