"""What a node knows of members that do not run, though they told it nothing, or not all: the others tell it."""

import checkers
import pytest
from checkers import PEACE_S
from scene import Scene

from broker.core.rows import Table
from broker.core.settings import OwnerSettings
from cluster.frames import FrameType
from cluster.readiness import ALL
from cluster.running_view import keeper_among
from cluster.table_frames import unpack_table_copy

DELTAS = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
FILTERS = {b"a/#": 1, b"$share/g/s/#": 1}


def knows(node, of, version):
    """Say whether a node knows what outlives a start of another one as it was at a version."""
    return node.core.mesh.peers[of.name].tables.known(Table.LASTING)[1] >= version


def version_of(node):
    """Return the version of what outlives its start that a node told last."""
    return node.core.mesh.own.all[Table.LASTING].version


def away_with_a_session(readiness=None, restarts=()):
    """Return a scene whose second node is down, and its client; the nodes `restarts` start anew meanwhile."""
    scene = Scene() if readiness is None else Scene(readiness=readiness)
    one, away, _home = scene.nodes
    client = scene.comes("subscriber", away, FILTERS)
    scene.goes(client)
    scene.until(scene.is_whole)
    version = version_of(away)
    scene.crash(away)
    for place in restarts:
        scene.nodes[place].kill()
        scene.nodes[place].start()
    scene.run(2.0)
    assert all(knows(node, away, version) for node in scene.nodes if node.up)
    return scene, client, one, away, version


def come_back(scene, client, away, sent):
    """Have the node and its client be back; the client gets what was published meanwhile, once."""
    scene.start(away)
    scene.connect(client)
    assert client.session_present
    scene.until(lambda: set(sent) <= set(client.inbox.copies))
    assert sorted(scene.payloads(client)) == sorted(sent)
    assert scene.copies(client) == 1
    checkers.check_delivery(scene.world, scene.clients, scene.ledger)


@pytest.mark.parametrize("restarts", [(), (0,), (0, 2)])
def test_what_is_published_at_a_node_that_joined_while_a_member_was_down_waits_for_that(restarts):
    """The others know what it wants, after a restart as well (seed 14064)."""
    scene, client, one, away, version = away_with_a_session(restarts=restarts)
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    scene.until(lambda: away.name in late.core.mesh.peers and knows(late, away, version))
    publisher = scene.client("publisher", late)
    scene.connect(publisher)
    sent = scene.publish(publisher, b"a/b", count=3) + scene.publish(publisher, b"s/t", count=2)
    late.kill()
    late.start()
    scene.run(3.0)
    scene.connect(publisher)
    sent += scene.publish(publisher, b"a/c", count=2)
    come_back(scene, client, away, sent)


def test_a_node_that_joins_while_a_member_is_down_knows_that_ones_sessions_before_it_is_ready():
    """As new members it would wait for are."""
    scene, client, one, away, version = away_with_a_session(ALL)
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    publisher = scene.client("publisher", late)
    publisher.connect(False)
    scene.until(lambda: publisher.state == "online")
    sent = scene.publish(publisher, b"a/b")
    assert knows(late, away, version)
    come_back(scene, client, away, sent)


def test_the_session_of_a_member_that_is_down_is_known_at_a_node_that_joined_then():
    """Its client goes on there with its subscriptions, and what it had comes when its old home is back."""
    scene = Scene()
    one, away, _home = scene.nodes
    client = scene.comes("roamer", away, FILTERS)
    scene.goes(client)
    publisher = scene.comes("publisher", one)
    sent = scene.publish(publisher, b"a/b", count=3)
    scene.run(1.0)
    version = version_of(away)
    scene.crash(away)
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    scene.until(lambda: away.name in late.core.mesh.peers and knows(late, away, version))
    client.home = late
    client.connect(False)
    scene.until(lambda: client.state == "online")
    assert client.session_present
    more = scene.publish(publisher, b"a/c", count=2)
    scene.until(lambda: set(more) <= set(client.inbox.copies))
    scene.start(away)
    scene.until(lambda: set(sent) <= set(client.inbox.copies))
    assert scene.copies(client) == 1
    checkers.check_delivery(scene.world, scene.clients, scene.ledger)


@pytest.mark.parametrize("qos", [1, 2])
def test_a_session_that_had_come_to_a_member_which_is_down_gets_what_is_published_at_a_node_that_joined_then(qos):
    """Its old home has said its last word and died before all others knew that, so its new one waits (seed 3242)."""
    scene = Scene()
    one, away, old = scene.nodes
    client = scene.comes("roamer", old, {b"a/#": 2})
    scene.goes(client)
    scene.connect(client, away)

    def has_all():
        session = away.core.owner.session("roamer")
        return session.arrival is not None and not session.arrival.donors

    scene.until(lambda: scene.homes("roamer") == [away] and has_all())
    scene.crash(old)
    scene.goes(client)
    assert has_all()
    version = version_of(away)
    scene.until(lambda: knows(one, away, version))
    scene.crash(away)
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    scene.until(lambda: away.name in late.core.mesh.peers and knows(late, away, version))
    publisher = scene.client("publisher", late)
    scene.connect(publisher)
    sent = scene.publish(publisher, b"a/b", qos=qos, count=3)
    away.start()
    scene.connect(client)
    scene.until(lambda: scene.payloads(client) == sent)
    scene.start(old)
    scene.run(5.0)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


@pytest.mark.parametrize("joins", [True, False])
def test_a_retained_message_of_a_member_that_is_down_is_known_where_it_was_not_heard(joins):
    scene = Scene()
    one, away, slow = scene.nodes
    if not joins:
        slow.kill()
        scene.run(3.0)
    setter = scene.client("setter", away)
    scene.connect(setter)
    setter.retain(b"state/x", 1, 0, False)
    scene.until(setter.outbox.is_empty)
    scene.run(1.0)
    scene.crash(away)
    late = slow
    if joins:
        late = scene.add_node("latecomer@h")
        scene.join(late, one)
    else:
        slow.start()
    scene.run(3.0)
    reader = scene.client("reader", late, {b"state/#": 1})
    scene.connect(reader)
    scene.until(lambda: len(reader.inbox.arrivals) == 1)


def test_what_a_member_told_last_is_known_by_who_was_down_then():
    """A node starts that has missed a session which began at one that has died since."""
    scene = Scene()
    one, away, slow = scene.nodes
    slow.kill()
    scene.run(3.0)
    client = scene.client("subscriber", away, FILTERS)
    scene.connect(client)
    scene.goes(client)
    scene.run(1.0)
    version = version_of(away)
    scene.crash(away)
    slow.start()
    scene.until(lambda: slow.core.mesh.peers[one.name].running and knows(slow, away, version))
    publisher = scene.client("publisher", slow)
    scene.connect(publisher)
    sent = scene.publish(publisher, b"a/b", count=3)
    come_back(scene, client, away, sent)


def test_who_knows_less_of_a_member_that_is_down_takes_nothing_away_from_who_knows_more():
    """One was cut off from the member when a session began there; the other has restarted since it heard of that."""
    scene = Scene()
    one, away, slow = scene.nodes
    scene.split([away], [slow])
    scene.run(3.0)
    client = scene.client("subscriber", away, FILTERS)
    scene.connect(client)
    scene.goes(client)
    scene.run(1.0)
    version = version_of(away)
    assert knows(one, away, version)
    assert not knows(slow, away, version)
    scene.world.network.lose_frame = lambda frame: frame[1] == FrameType.TABLE_COPY
    away.kill()
    scene.run(3.0)
    one.kill()
    one.start()
    scene.run(3.0)
    scene.world.network.heal_all()
    scene.world.network.lose_frame = None
    scene.until(lambda: knows(slow, away, version))
    assert knows(one, away, version)
    sent = []
    for node in (one, slow):
        publisher = scene.client(f"at {node.name}", node)
        scene.connect(publisher)
        sent += scene.publish(publisher, b"a/b")
    come_back(scene, client, away, sent)


def test_a_copy_is_asked_for_until_it_is_there_and_of_every_member_but_once():
    scene, _client, one, away, version = away_with_a_session()
    asked = []

    def note(frame):
        if len(frame) > 1 and frame[1] == FrameType.TABLE_COPY:
            asked.append(unpack_table_copy(frame).frame[1])
            # In no rhythm, or it might be the same frame of each exchange.
            return scene.world.rng.random() < 0.3
        return False

    scene.world.network.lose_frame = note
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    scene.until(lambda: away.name in late.core.mesh.peers and knows(late, away, version))
    scene.run(10.0)
    asked.clear()
    scene.run(10.0)
    assert not asked
    scene.world.network.lose_frame = None
    scene.start(away)
    scene.run(1.0)
    assert not asked


@pytest.mark.parametrize("claims", [False, True])
def test_a_will_at_a_node_that_joined_while_a_member_was_down_waits_for_that(claims):
    """Be it the will of a client of its own, or of one whose node died (seed 14064)."""
    scene = Scene(settings=OwnerSettings(leave_will_grace_s=1))
    one, away, home = scene.nodes
    here, witness = [scene.comes(f"witness of {node.name}", node, {b"will/#": 2}) for node in (one, away)]
    here.steady = witness.steady = True
    scene.goes(witness)
    scene.until(scene.is_whole)
    version = version_of(away)
    scene.crash(away)
    late = scene.add_node("latecomer@h")
    scene.join(late, one)
    scene.until(lambda: away.name in late.core.mesh.peers and knows(late, away, version))
    others = [each.core.mesh.peers for each in (one, home, late)]
    scene.until(lambda: all(peer.tables.is_current() for peers in others for peer in peers.values() if peer.running))
    survivors = [(node.store_id, node.name) for node in (one, late)]
    name = next(name for name in map(str, range(100)) if keeper_among(survivors, name) == late.name)
    mortal = scene.client(name, home if claims else late)
    mortal.will = (b"will/x", 1, 2)
    scene.connect(mortal)
    scene.run(PEACE_S)
    if claims:
        home.kill()
    else:
        mortal.disconnect(True)
    payload = scene.ledger.wills[-1].message.payload
    scene.until(lambda: payload in here.inbox.copies)
    assert late.core.moving.claims.claimed == claims
    if claims:
        home.start()
    scene.run(20.0)
    scene.start(away)
    scene.connect(witness)
    scene.until(lambda: payload in witness.inbox.copies)
    assert scene.payloads(here) == scene.payloads(witness) == [payload]
    checkers.check_delivery(scene.world, scene.clients, scene.ledger)
