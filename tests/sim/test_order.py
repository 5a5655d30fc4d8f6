"""What the simulator takes for the order of a publisher's messages, which is the order within one session."""

import checkers
import pytest
from scene import Scene
from world import SimulationError


def test_two_sessions_of_a_client_have_no_order():
    """A node keeps for another one, which is down, what a subscriber there wants.

    A client without a session beside its connection comes to the first node too late for the oldest of that, and is at
    the other node, with a new session, when everything arrives there.
    """
    scene = Scene(count=2)
    away, home = scene.nodes
    keeper = scene.comes("keeper", away, {b"a/b": 1})
    publisher = scene.comes("publisher", home)
    scene.crash(away)
    missed = scene.publish(publisher, b"a/b")
    visitor = scene.client("visitor", home, {b"a/b": 0}, persistent=False)
    scene.connect(visitor)
    seen = scene.publish(publisher, b"a/b")
    scene.until(lambda: scene.payloads(visitor) == seen)
    scene.goes(visitor)
    scene.split([away], [home])
    away.start()
    scene.connect(visitor, away)
    scene.heal()
    scene.connect(keeper)
    scene.until(lambda: scene.payloads(keeper) == [*missed, *seen])
    assert [arrival.payload for arrival in visitor.inbox.arrivals] == [*seen, *missed, *seen]
    checkers.check_order(scene.world, scene.clients, scene.ledger)
    # To one session that would be the wrong order.
    for arrival in visitor.inbox.arrivals:
        arrival.session = 1
    with pytest.raises(SimulationError, match=r"visitor received message 1 of publisher .* after message 2"):
        checkers.check_order(scene.world, scene.clients, scene.ledger)
