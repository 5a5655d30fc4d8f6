"""What the simulator takes for the order of a publisher's messages: it is that within one session, of known homes."""

import checkers
import pytest
from leaver_plan import LeaverPlan
from scene import Scene
from test_sequences import kept_by, lose
from world import SimulationError

from cluster.frames import FrameType


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


@pytest.mark.parametrize("qos", [1, 2])
def test_a_word_of_qos_1_that_is_sent_again_is_the_last_if_one_of_qos_2_was(qos):
    scene = Scene(count=2)
    node = scene.nodes[0]
    publisher = scene.comes("publisher", node)
    # It hears of no acknowledgement, so that it sends both again.
    publisher.hear_nothing()
    publisher.retain(b"state/of/0", 1, 0, False)
    publisher.retain(b"state/of/0", qos, 0, False)
    first, second = scene.ledger.published

    def retained():
        return [each.payload for each in node.core.owner.retained.match(b"state/#", node.clocks.monotonic())]

    scene.until(lambda: retained() == [second])
    publisher.disconnect(True)
    scene.connect(publisher)
    scene.until(publisher.outbox.is_empty)
    scene.until(scene.is_whole)
    assert retained() == [first if qos == 2 else second]
    checkers.check_retained(scene.world, scene.ledger)
    # Had nothing been sent again, the first word could not stand.
    for message in scene.ledger.published.values():
        message.sent_at = (message.sent_at[0], message.sent_at[0])
    if qos == 2:
        with pytest.raises(SimulationError, match="not the last word"):
            checkers.check_retained(scene.world, scene.ledger)


def test_a_session_that_others_took_from_a_dead_node_has_no_order():
    """The node comes back before it is removed, and brings what it had: nothing newer has waited for that."""
    scene = Scene()
    node, one, two = scene.nodes
    client = scene.comes("client", node, {b"a/b": 1})
    publisher = scene.comes("publisher", two)
    plan = LeaverPlan(scene.world, scene)
    plan.node = node
    plan.operators.watch()
    scene.goes(client)
    missed = scene.publish(publisher, b"a/b")
    scene.crash(node)
    # The removal is not over before the node is back: that waits for what another member says.
    lose(scene, FrameType.ADOPT_LEFT)
    command = plan.operators.order(one, node)
    scene.until(lambda: scene.homes("client"))
    scene.connect(client, *scene.homes("client"))
    scene.until(lambda: b"a/b" in two.core.mesh.interest.persistent_filters(client.home.name))
    seen = scene.publish(publisher, b"a/b")
    scene.until(lambda: scene.payloads(client) == seen)
    scene.start(node)
    scene.until(lambda: scene.payloads(client) == [*seen, *missed])
    scene.until(command.is_over)
    assert "runs again and stays a member" in command.text
    checkers.check_order(scene.world, scene.clients, scene.ledger)


def test_nobody_waits_for_an_old_home_that_went_before_an_origin_was_heard():
    """The origin was away all the time, and has something that it still has to send to the old home."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes(kept_by(scene, old, new), old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    scene.split([third], [old, new])
    scene.until(lambda: not any(home.core.mesh.peers[third.name].running for home in (old, new)))
    missed = scene.publish(publisher, b"a/b")
    scene.connect(client, new)
    scene.run(1.0)
    scene.crash(old)
    scene.world.network.heal_all()
    scene.until(lambda: new.core.mesh.peers[third.name].running and third.core.mesh.peers[new.name].running)
    scene.run(1.0)
    seen = scene.publish(publisher, b"a/b")
    scene.until(lambda: scene.payloads(client) == seen)
    scene.start(old)
    scene.until(lambda: scene.payloads(client) == [*seen, *missed])
    assert scene.copies(client) == 1
    assert scene.world.revived[client.client_id] == 1, "nobody was told"
    checkers.check_order(scene.world, scene.clients, scene.ledger)


def test_nobody_waits_for_an_old_home_of_which_only_another_has_told_and_that_is_away():
    """The home between could hear both, and had something directly of the origin that the old one could not hear."""
    scene = Scene()
    old, between, third = scene.nodes
    client = scene.comes(kept_by(scene, between, third), old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    scene.split([old], [third])
    scene.until(lambda: not third.core.mesh.peers[old.name].running and not old.core.mesh.peers[third.name].running)
    missed = scene.publish(publisher, b"a/b")
    scene.connect(client, between)
    scene.goes(client)
    seen = scene.publish(publisher, b"a/b")
    scene.connect(client, third)
    scene.until(lambda: scene.payloads(client) == seen)
    scene.heal()
    scene.until(lambda: scene.payloads(client) == [*seen, *missed])
    assert scene.copies(client) == 1
    assert scene.world.revived[client.client_id] == 1, "nobody was told"
    checkers.check_order(scene.world, scene.clients, scene.ledger)
