"""Clients that connect now to one real node and now to another: their sessions come along."""

import pytest
from clients import V4, V5, Client, wait_known
from nodes import Node

QUEUED = 60


@pytest.mark.parametrize("version", [V4, V5], ids=["v3.1.1", "v5"])
def test_a_queue_follows_its_client(cluster: list[Node], version: int) -> None:
    one, two, three = cluster
    name = f"follower {version}"
    topic = f"queue/{version}"
    with (
        Client(one, version=version) as at_one,
        Client(two, version=version) as at_two,
        Client(three, version=version) as at_three,
    ):
        publishers = [at_one, at_two, at_three]
        with Client(one, name, version, persistent=True) as away:
            away.subscribe(f"{topic}/#")
            wait_known(away, *publishers)
        sent: dict[int, list[tuple[str, str]]] = {place: [] for place in range(3)}
        for number in range(QUEUED):
            place = number % 3
            publishers[place].publish(f"{topic}/{place}", str(number))
            sent[place].append((f"{topic}/{place}", str(number)))
        with Client(two, name, version, persistent=True) as back:
            assert back.present
            for place, publisher in enumerate(publishers):
                publisher.publish(f"{topic}/{place}", "after")
                sent[place].append((f"{topic}/{place}", "after"))
            heard = back.messages(QUEUED + 3)
            for place in range(3):
                assert [each for each in heard if each[0] == f"{topic}/{place}"] == sent[place]
            assert back.nothing_waits()
            back.settle()
        with Client(three, name, version, persistent=True) as again:
            assert again.present
            at_one.publish(f"{topic}/0", "once more")
            assert again.message() == (f"{topic}/0", "once more")


def test_a_connection_ends_when_its_client_connects_elsewhere(cluster: list[Node]) -> None:
    one, two, _ = cluster
    with Client(one, "twice", persistent=True) as first:
        first.subscribe("twice/#")
        with Client(two, "twice", persistent=True) as second:
            first.wait_closed()
            first.disconnect()
            assert second.present
            second.publish("twice/x", "to itself")
            assert second.message() == ("twice/x", "to itself")


def test_a_session_that_is_not_to_be_kept_ends_elsewhere(cluster: list[Node]) -> None:
    one, two, _ = cluster
    with Client(one, "clean") as first:
        first.subscribe("clean/#")
        with Client(two, "clean") as second:
            first.wait_closed()
            first.disconnect()
            assert not second.present
            second.publish("clean/x", "to nobody")
            second.subscribe("clean/#")
            second.publish("clean/x", "to itself")
            assert second.message() == ("clean/x", "to itself")
