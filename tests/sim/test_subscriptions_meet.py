"""Homes of one session that meet: what the client made or ended at either of them holds, filter by filter."""

import pytest
from scene import Scene
from test_sequences import TABLES, lose

from broker.core.session import Session
from cluster.frames import FrameType


def an_old_home_knows_more(end=False, at_new=""):
    """A client subscribes, or unsubscribes, and its home is gone before anybody hears of it; it goes on elsewhere.

    `at_new` says what it does there about the same filter.
    """
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1, b"c/d": 1} if end else {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    lose(scene, *TABLES)
    if end:
        client.unsubscribe(b"c/d")
    else:
        client.subscribe(b"c/d", 1)
    scene.run(0.5)
    assert end or b"c/d" in client.subscribed
    scene.goes(client)
    scene.crash(old)
    lose(scene)
    comes_to(scene, client, new)
    assert client.session_present
    if at_new == "unsubscribes":
        client.wanted[b"c/d"] = 1
        client.unsubscribe(b"c/d")
    elif at_new == "subscribes":
        client.subscribe(b"c/d", 0)
    scene.run(1.0)
    return scene, client, publisher


def comes_to(scene, client, node):
    """Have a client connect to a node where it does not subscribe to anything."""
    client.home = node
    client.wanted = {}
    client.connect()
    scene.until(client.is_online)


def session_at(node, client) -> Session:
    session = node.core.owner.session(client.client_id)
    assert session is not None
    return session


def test_what_was_subscribed_at_a_home_that_was_away_is_subscribed_again():
    scene, client, publisher = an_old_home_knows_more()
    old, new, _ = scene.nodes
    assert set(session_at(new, client).subscriptions) == {b"a/b"}, "nobody has heard of the other one"
    scene.start(old)
    scene.run(10.0)
    assert set(session_at(new, client).subscriptions) == {b"a/b", b"c/d"}
    sent = scene.publish(publisher, b"c/d", 1, 3)
    scene.run(2.0)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


def test_what_was_unsubscribed_at_a_home_that_was_away_does_not_come_back():
    scene, client, _ = an_old_home_knows_more(end=True)
    old, new, _ = scene.nodes
    assert set(session_at(new, client).subscriptions) == {b"a/b", b"c/d"}
    scene.start(old)
    scene.run(10.0)
    assert set(session_at(new, client).subscriptions) == {b"a/b"}


def test_what_the_client_did_last_about_a_filter_holds():
    scene, client, _ = an_old_home_knows_more(end=True, at_new="subscribes")
    old, new, _ = scene.nodes
    scene.start(old)
    scene.run(10.0)
    assert session_at(new, client).subscriptions[b"c/d"].options == 0
    assert not session_at(new, client).arrival


def test_what_the_client_ended_where_it_went_stays_ended():
    scene, client, _ = an_old_home_knows_more(at_new="subscribes")
    old, new, _ = scene.nodes
    client.unsubscribe(b"c/d")
    scene.run(1.0)
    # What is remembered of that is there after a restart.
    new.kill()
    scene.run(0.5)
    new.start()
    scene.start(old)
    scene.run(10.0)
    assert set(session_at(new, client).subscriptions) == {b"a/b"}


def test_what_was_subscribed_again_at_a_later_home_stays_though_an_older_one_is_heard_first():
    """Where the client goes on, only others have told what that home knew (seed 10957)."""
    scene = Scene()
    home, other, third = scene.nodes
    client = scene.comes("client", home, {b"a/b": 1, b"c/d": 1})
    scene.crash(home)
    scene.goes(client)
    comes_to(scene, client, other)
    client.wanted[b"c/d"] = 1
    client.unsubscribe(b"c/d")
    scene.run(0.5)
    assert set(session_at(other, client).subscriptions) == {b"a/b"}
    scene.goes(client)
    scene.start(home)
    # The stub that knows of the end stays.
    lose(scene, FrameType.MOVE_ACK)
    comes_to(scene, client, home)
    assert other.core.owner.transfers.departures["client"].session.arrival is not None
    client.subscribe(b"c/d", 1)
    scene.run(0.5)
    scene.crash(home)
    scene.crash(other)
    scene.goes(client)
    lose(scene)
    comes_to(scene, client, third)
    for node in (other, home):
        assert set(session_at(third, client).subscriptions) == {b"a/b", b"c/d"}
        node.start()
        scene.run(5.0)
    scene.until(scene.is_whole)
    assert set(session_at(third, client).subscriptions) == {b"a/b", b"c/d"}
    assert scene.homes("client") == [third]


def test_what_comes_for_a_late_filter_comes_once_and_in_order():
    """The publisher's node knew of the filter and the client's new home did not: what it sent waits for the old one."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.split([old], [new])
    client.subscribe(b"c/d", 1)
    scene.until(lambda: any(name == old.name for name, _ in third.core.mesh.interest.match(b"c/d")))
    scene.goes(client)
    scene.crash(old)
    scene.world.network.heal_all()
    scene.connect(client, new)
    scene.run(1.0)
    assert set(session_at(new, client).subscriptions) == {b"a/b"}
    amid = scene.publish(publisher, b"c/d", 1, 5)
    assert not scene.payloads(client)
    scene.start(old)
    for _ in range(20):
        amid += scene.publish(publisher, b"c/d", 1, 2)
        amid += scene.publish(publisher, b"a/b", 1, 1)
        scene.run(0.05)
    scene.run(10.0)
    assert scene.payloads(client) == amid
    assert scene.copies(client) == 1
    assert not session_at(new, client).arrival


@pytest.mark.parametrize("other_filter", [b"", b"c/+"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_what_was_wanted_at_qos_0_alone_where_a_session_went_is_had_from_its_old_home(goes_on, other_filter):
    """The client asked for more where only its old home heard it, by the same filter or by another one.

    Where it went the messages came as well, and none was kept: QoS 0 waits for nobody who is away (seed 30076).
    """
    scene = Scene(count=4)
    old, new, third, fourth = scene.nodes
    client = scene.comes("client", old, {b"c/d": 0})
    publisher = scene.comes("publisher", third)
    scene.split([old], [new, third, fourth])
    client.subscribe(other_filter or b"c/d", 2)
    scene.run(0.5)
    assert 2 in client.subscribed.values()
    scene.goes(client)
    scene.until(lambda: not any(each.core.mesh.peers[old.name].running for each in (new, third, fourth)))
    scene.connect(client, new)
    assert client.session_present
    scene.run(1.0)
    scene.goes(client)
    sent = scene.publish(publisher, b"c/d", 1, 3)
    if goes_on:
        scene.connect(client, fourth)
        scene.run(1.0)
        scene.goes(client)
        sent += scene.publish(publisher, b"c/d", 1, 3)
    home = client.home
    assert session_at(home, client).subscriptions[b"c/d"].options == 0
    scene.heal()
    for _ in range(20):
        sent += scene.publish(publisher, b"c/d", 1, 1)
        scene.run(0.05)
    scene.run(10.0)
    scene.connect(client)
    scene.run(2.0)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1
    assert not session_at(home, client).arrival
