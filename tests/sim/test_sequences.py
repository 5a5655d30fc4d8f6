"""The sequences that break simpler clusters, each written down: who has a session, and what becomes of it on its way.

Each scene is also what a planted bug has to fail (see `test_mutations_of_moves`).
"""

from itertools import permutations
from types import SimpleNamespace

import checkers
import convergence
import pytest
from scene import Scene
from virtual_clients import OFFLINE, ONLINE
from world import SimulationError

from broker.core.epoch import COUNTER_MAX, Epoch
from broker.core.events import Attach, Detach
from broker.core.rows import Table
from broker.core.settings import OwnerSettings
from broker.mqtt.reasons import Reason
from cluster.commands import FrameReceived
from cluster.frames import FrameType
from cluster.leaving_session import RETRY_S
from cluster.move_frames import DELIVERIES, HEAD, NOTHING, STATE, unpack_move
from cluster.readiness import ALL
from cluster.registration_frames import TurnRelease, pack_turn_release, pack_turns
from cluster.running_view import keeper_among
from cluster.turn_keeper import AGREEMENT_TIMEOUT_S

TABLES = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)


def lose(scene, *kinds):
    """Lose all frames of some kinds from now on; without any, none."""
    scene.world.network.lose_frame = (lambda frame: len(frame) > 1 and frame[1] in kinds) if kinds else None


def homes_known(node, client_id, topic_filter):
    """Return the names of the nodes to which a node sends what is for a client, as far as it has heard."""
    mesh = node.core.mesh
    homes = [home.node for home in mesh.registry.homes(client_id)]
    return [home for home in homes if topic_filter in mesh.interest.persistent_filters(home)]


def kept_by(scene, keeper, heir):
    """Return a client id that one node keeps, and another one when that is gone."""
    members = [(node.store_id, node.name) for node in scene.world.nodes.values()]
    left = [member for member in members if member[1] != keeper.name]
    for number in range(1000):
        name = f"client {number}"
        if keeper_among(members, name) == keeper.name and keeper_among(left, name) == heir.name:
            return name
    raise AssertionError("no such client id")


def a_new_keeper_has_not_heard_of_a_new_session():
    """The keeper dies, and the next one does not have the row yet of the session that was made a moment before."""
    scene = Scene()
    home, heir, keeper = scene.nodes
    client = scene.client(kept_by(scene, keeper, heir), home, {b"a/b": 1})
    lose(scene, *TABLES)
    scene.connect(client)
    scene.crash(keeper)
    scene.goes(client, True)
    client.home = heir
    client.connect()
    scene.run(1.0)
    assert client.state != ONLINE, "nobody can know yet what the new keeper has to know"
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    assert client.session_present
    assert scene.homes(client.client_id) == [heir]


def test_a_new_keeper_merges_what_all_members_know():
    a_new_keeper_has_not_heard_of_a_new_session()


@pytest.mark.parametrize("is_ended_elsewhere", [False, True])
def test_a_row_that_comes_when_its_session_is_over_ends_no_later_one(is_ended_elsewhere):
    """The keeper has seen that row come and go before the next home sees it (seed 18435).

    The session ends with its connection, or for a CONNECT that another one ends before it has its answer.
    """
    scene = Scene()
    keeper, home, slow = scene.nodes
    name = kept_by(scene, keeper, home)
    scene.comes("first", keeper, persistent=False, client_id=name)
    scene.world.network.partition(home.name, slow.name, False)
    client = scene.client("client", home, persistent=False, client_id=name)
    scene.connect(client)
    # Else the keeper may send who comes to the slow node to its home, whose answer does not come.
    scene.until(lambda: home.name in [row.node for row in keeper.core.mesh.registry.homes(name)], 0.5)
    if is_ended_elsewhere:
        other = scene.client("other", slow, persistent=False, client_id=name)
        other.contends = True
        other.connect()
    else:
        client.disconnect(False)
    scene.until(lambda: not any(node.core.mesh.registry.homes(name) for node in scene.nodes), 0.5)
    last = scene.client("last", slow, persistent=False, client_id=name)
    scene.connect(last)
    scene.run(0.1)
    deltas = []

    def is_later_delta(frame):
        if frame[1] == FrameType.TABLE_DELTA:
            deltas.append(frame)
        return frame[1] == FrameType.TABLE_DELTA and len(deltas) > 1

    # That it is over comes some time after the row.
    scene.world.network.lose_frame = is_later_delta
    scene.world.network.heal_all()
    scene.run(0.3)
    assert len(deltas) > 1 and last.state == ONLINE
    lose(scene)
    scene.until(scene.is_whole)
    assert last.state == ONLINE and scene.connected(name) == [slow]


@pytest.mark.parametrize("persistent", [True, False])
def test_sessions_begin_and_go_on_where_counters_end(persistent):
    """A client that begins a session each few seconds, again and again, comes so far.

    Its peers could not read the next epoch, nor could its node after a restart.
    """
    scene = Scene()
    home, other, keeper = scene.nodes
    name = kept_by(scene, keeper, home)
    last = TurnRelease(1, name, Epoch(COUNTER_MAX, 1, home.store_id))
    frame = pack_turns(FrameType.TURN_RELEASE, [pack_turn_release(last)])[0]
    keeper.core.moving.registration.receive(home.name, frame, keeper.clocks.monotonic())
    publisher = scene.comes("publisher", keeper)
    client = scene.client(name, home, {b"a/b": 1}, persistent)
    payloads = []
    for node in (home, other, home, other):
        scene.connect(client, node)
        scene.until(scene.is_whole)
        assert scene.connected(name) == [node]
        assert node.core.owner.session(name).epoch.counter == COUNTER_MAX
        scene.goes(client)
        if persistent:
            payloads += scene.publish(publisher, b"a/b", 1, 3)
    other.kill()
    scene.start(other)
    scene.connect(client, home)
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) <= 1


def a_publishers_node_has_not_heard_of_a_move(wanted_before=False):
    """C goes on sending to the old home what the session wants, and acknowledges it to its publisher.

    Somebody at the new home may have wanted it before: what C sends for that one is not for the session that comes.
    """
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    subscribers = [client, *([scene.comes("other", new, {b"a/b": 1})] if wanted_before else [])]
    publisher = scene.comes("publisher", third)
    before = scene.publish(publisher, b"a/b")
    scene.goes(client)
    lose(scene, *TABLES)
    client.home = new
    client.connect()
    scene.run(1.0)
    amid = scene.publish(publisher, b"a/b", 1, 5)
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    scene.until(scene.is_whole)
    after = scene.publish(publisher, b"a/b", 1, 5)
    scene.run(5.0)
    for each in subscribers:
        assert scene.payloads(each) == [*before, *amid, *after]
        assert scene.copies(each) == 1
    assert [node.core.moving.counts()["moves_leaving"] for node in scene.nodes] == [0, 0, 0]


def test_a_stub_outlasts_all_who_have_not_switched():
    a_publishers_node_has_not_heard_of_a_move()


def is_answer_on_sessions(frame):
    """Say whether a frame answers a member that asked which sessions another has."""
    return len(frame) > 2 and frame[1] in TABLES[1:] and frame[2] == Table.LASTING


def a_member_knows_what_a_new_home_wants_and_not_its_sessions():
    """It was down while the session moved, and is back for a moment when the new home dies (seed 776)."""
    scene = Scene()
    old, new, late = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    scene.goes(client)
    scene.crash(late)
    scene.connect(client, new)
    scene.goes(client)
    scene.world.network.lose_frame = is_answer_on_sessions
    late.start()
    scene.until(lambda: late.core.mesh.peers[new.name].tables.wishes_version() > (0, 0))
    scene.run(2 * RETRY_S)
    scene.crash(new)
    lose(scene)
    scene.connect(client, late)
    assert client.session_present
    scene.start(new)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.homes("client") == [late]


def test_an_old_home_is_known_until_all_know_the_new_one():
    a_member_knows_what_a_new_home_wants_and_not_its_sessions()


def test_a_stub_relays_what_a_member_sends_that_does_not_hear_the_new_home():
    """It is not to wait until the partition is over."""
    scene = Scene()
    old, new, origin = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", origin)
    scene.goes(client)
    scene.split([new], [origin])
    scene.until(lambda: not any(one.core.mesh.peers[other.name].running for one, other in permutations((new, origin))))
    scene.run(AGREEMENT_TIMEOUT_S)
    scene.connect(client, new)
    scene.run(3.0)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads, 2 * RETRY_S)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads, 2 * RETRY_S)
    scene.heal()
    scene.until(lambda: not old.core.moving.departures.leavings)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def is_state(frame):
    """Say whether a frame says who has switched, and whether that was the last word."""
    if len(frame) < 2 or frame[1] != FrameType.MOVE:
        return False
    return any(item.kind == STATE for item in unpack_move(frame, 0.0))


def a_last_word_is_lost():
    """A session has moved but for the last word of its stub; a publisher is at a node that is alone yet."""
    scene = Scene()
    old, new, _ = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.client("publisher", scene.add_node("late@h"))
    scene.connect(publisher)
    scene.goes(client)
    scene.world.network.lose_frame = is_state
    scene.connect(client, new)
    scene.until(lambda: old.core.moving.departures.leavings["client"].said_ended)
    scene.goes(client)
    return scene, client, publisher


def test_a_stub_outlasts_its_last_word_if_a_node_has_joined_of_which_the_new_home_does_not_know():
    """The new home stands still before it takes the last word; who joins meanwhile sends to the old one (seed 2080)."""
    scene, client, publisher = a_last_word_is_lost()
    old, new, third = scene.nodes
    late = publisher.home
    leavings = old.core.moving.departures.leavings
    new.stalled_until = scene.world.now + 9.0
    lose(scene)
    # The last word is said again, and waits at the new home.
    scene.run(2 * RETRY_S)
    scene.begin_join(late, third)
    scene.until(lambda: homes_known(late, "client", b"a/b") == [old.name] and old.core.mesh.peers[late.name].running)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: len(homes_known(late, "client", b"a/b")) == 2)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    assert scene.world.now < new.stalled_until
    scene.until(lambda: new.core.mesh.peers.keys() >= {late.name} and scene.is_whole())
    scene.connect(client)
    scene.until(lambda: not leavings)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def test_what_is_published_at_a_node_that_joined_in_another_half_than_a_move_ended_in_comes_to_the_session():
    """Neither home knows the node when the stub ends, which has heard of both homes from another member."""
    scene, client, publisher = a_last_word_is_lost()
    old, new, third = scene.nodes
    late = publisher.home
    leavings = old.core.moving.departures.leavings
    scene.split([old, new], [third, late])
    lose(scene)
    scene.until(lambda: not leavings)
    scene.begin_join(late, third)
    scene.until(lambda: new.name in homes_known(late, "client", b"a/b"))
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.heal()
    scene.connect(client, new)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def test_what_is_sent_for_others_is_not_for_a_session_that_comes():
    a_publishers_node_has_not_heard_of_a_move(True)


def an_old_message_without_a_number_is_on_a_slow_link():
    """C sends a QoS 0 message to A for the session, and to B for somebody else, where it arrives after the session."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes(kept_by(scene, old, new), old, {b"a/b": 1})
    other = scene.comes("other", new, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.world.network.partition(new.name, third.name, True)
    sent = scene.publish(publisher, b"a/b", 0)
    scene.until(lambda: scene.payloads(client) == sent)
    scene.goes(client)
    scene.connect(client, new)
    assert not scene.payloads(other)
    scene.heal()
    scene.until(lambda: scene.payloads(other) == sent)
    scene.run(2.0)
    sent += scene.publish(publisher, b"a/b", 0, 3)
    scene.until(lambda: scene.payloads(other) == sent)
    scene.run(1.0)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


def test_what_was_sent_without_a_number_before_a_session_came_is_not_for_it():
    an_old_message_without_a_number_is_on_a_slow_link()


def new_messages_come_before_old_ones():
    """C has switched, and what it says arrives before the last parts of what waits at the old home."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    before = scene.publish(publisher, b"a/b", 1, 6, padding_bytes=60_000)
    moves = []

    def is_later_part(frame):
        if len(frame) > 1 and frame[1] == FrameType.MOVE:
            moves.append(frame)
        return len(moves) > 1 and frame is moves[-1]

    scene.world.network.lose_frame = is_later_part
    scene.connect(client, new)
    scene.run(0.3)
    assert len(scene.payloads(client)) < 6, "the head is here, and not all that follows it"
    after = scene.publish(publisher, b"a/b", 1, 3)
    scene.run(0.3)
    lose(scene)
    scene.until(lambda: len(scene.payloads(client)) == 9)
    assert scene.payloads(client) == [*before, *after]
    assert scene.copies(client) == 1


def test_old_messages_come_before_new_ones():
    new_messages_come_before_old_ones()


def a_publisher_sends_again_elsewhere():
    """A QoS 2 PUBLISH is the old home's already, its PUBREC is lost, and the client sends it again to the new home."""
    scene = Scene()
    old, new, third = scene.nodes
    subscriber = scene.comes("subscriber", third, {b"a/b": 2})
    publisher = scene.comes("publisher", old)
    publisher.publish(b"a/b", 2)
    publisher.hear_nothing()
    scene.until(lambda: scene.payloads(subscriber))
    publisher.disconnect(True)
    scene.connect(publisher, new)
    scene.until(publisher.outbox.is_empty)
    scene.run(2.0)
    assert scene.copies(subscriber) == 1
    assert new.core.owner.session("publisher").incoming == {}


def test_packet_ids_are_there_before_the_client():
    a_publisher_sends_again_elsewhere()


def a_session_began_anew_while_its_old_home_was_away(is_missed=True):
    """It must not rise with its old home, nor must what waited there.

    Unless that was missed already it is asked to forget the session, and never answers.
    """
    scene = Scene()
    old, new, keeper = scene.nodes
    client = scene.comes(kept_by(scene, keeper, new), old, {b"a/b": 2, b"a/c": 1})
    scene.goes(client)
    scene.publish(scene.comes("publisher", old), b"a/b", 1, 3)
    other = scene.comes("other publisher", new)
    if is_missed:
        scene.crash(old)
    else:
        old.kill()
    scene.connect(client, new, clean=True)
    assert not client.session_present
    # This waits for the old home as well, as its session was not over there.
    payloads = scene.publish(other, b"a/b", 2)
    scene.start(old)
    scene.run(5.0)
    assert scene.homes(client.client_id) == [new]
    assert scene.payloads(client) == payloads
    assert scene.copies(client) == 1
    assert old.core.owner.counts()["queued_messages"] == 0
    assert [node.core.mesh.registry.own_ended() for node in scene.nodes] == [[], [], []]


@pytest.mark.parametrize("is_missed", [True, False])
def test_a_clean_start_ends_what_is_away(is_missed):
    a_session_began_anew_while_its_old_home_was_away(is_missed)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("waits_for_its_turn", [True, False])
def test_who_waits_for_a_home_is_refused_when_its_loss_leaves_the_node_not_ready(waits_for_its_turn, clean):
    """A session would begin where none may, and end the one with which its client goes on elsewhere (seed 19989)."""
    scene = Scene(readiness=ALL)
    old, new, third = scene.nodes
    client_id = kept_by(scene, old, new) if waits_for_its_turn else kept_by(scene, new, third)
    client = scene.comes(client_id, old, {b"a/b": 1})
    scene.goes(client)
    old.kill()
    client.home = new
    client.connect(clean)
    scene.until(lambda: client.state == OFFLINE)
    assert scene.world.stats["CONNECTs refused"] == 1
    assert not new.core.mesh.readiness.ready
    scene.start(old)
    scene.run(3.0)
    assert scene.homes(client_id) == [old]
    scene.connect(client, old)
    assert client.session_present


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_clean_start_that_is_served_late_ends_what_its_client_has_elsewhere(is_answered):
    """Its client did not wait for a node that was slow, and that node takes its connection for a live one (seed 3548).

    Or it hears that the connection is over when it has had the session ended, and before it is told so.
    """
    scene = Scene()
    old, new, slow = scene.nodes
    client = scene.comes(kept_by(scene, new, old), old, {b"a/b": 1})
    scene.goes(client)
    # It comes to the CONNECT when the client is at the new node, and before it hears that this connection is over.
    slow.stalled_until = scene.world.now + 0.5
    client.home = slow
    client.connect(True)
    scene.run(0.1)
    client.disconnect(True, half_open=True)
    scene.connect(client, new)
    assert client.session_present
    if not is_answered:
        scene.world.network.lose_frame = is_nothing
    scene.until(lambda: client.state == OFFLINE)
    scene.run(5.0)
    lose(scene)
    assert scene.homes(client.client_id) == ([slow] if is_answered else [])
    scene.connect(client, new)
    assert client.session_present == is_answered
    scene.until(scene.is_whole)
    sent = scene.publish(scene.comes("publisher", old), b"a/b")
    scene.run(0.5)
    assert scene.payloads(client) == sent


def test_who_knows_a_session_that_was_ended_by_a_clean_start_does_not_know_the_next_one():
    """A node that was down at the Clean Start still has the row of the old home (seed 3959)."""
    scene = Scene()
    old, home, away = scene.nodes
    client = scene.comes(kept_by(scene, away, old), old, {b"a/b": 1})
    client.emigrates = True
    scene.goes(client)
    scene.crash(away)
    scene.connect(client, home, clean=True)
    scene.split([away], [old], [home])
    away.start()
    scene.run(0.5)
    assert away.core.mesh.registry.find(client.client_id).node == old.name
    scene.goes(client)
    assert away not in client.session_known
    home.kill()
    scene.world.network.heal(away.name, old.name)
    scene.until(lambda: away.core.mesh.registry.find(client.client_id) is None)
    scene.connect(client, away)
    assert not client.session_present


@pytest.mark.parametrize("waits", [False, True])
def test_sessions_of_two_islands_meet_at_a_third_node(waits):
    """That has what one of them had when the node of the other is back, whose places are the same."""
    scene = Scene()
    first, second, third = scene.nodes
    publishers = [scene.comes("first publisher", first), scene.comes("second publisher", second)]
    scene.split([first], [second, third])
    scene.run(5.0)
    payloads = []
    for home, publisher in zip((first, second), publishers, strict=True):
        client = scene.client("client", home, {b"a/b": 1})
        scene.connect(client)
        assert not client.session_present
        scene.goes(client)
        payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.crash(first)
    scene.world.network.heal_all()
    scene.run(3.0)
    scene.connect(client, third)
    assert client.session_present
    if waits:
        scene.goes(client)
    scene.run(5.0)
    scene.start(first)
    scene.until(lambda: scene.homes("client") == [third])
    if waits:
        scene.connect(client)
    scene.run(5.0)
    assert sorted(scene.payloads(client)) == sorted(payloads)


@pytest.mark.parametrize("clean", [True, False])
def test_a_session_that_began_anew_elsewhere_gets_what_is_on_its_way_there(clean):
    """Its last session had the message; only one that goes on may not have it again."""
    scene = Scene()
    old, new, far = scene.nodes
    scene.world.leaver = old
    client = scene.comes("client", old, {b"a/b": 1})
    scene.comes("neighbour", new, {b"a/b": 1})
    publisher = scene.comes("publisher", far)
    scene.split([far], [new])
    scene.run(5.0)
    (payload,) = scene.publish(publisher, b"a/b")
    assert scene.payloads(client) == [payload]
    scene.goes(client)
    scene.connect(client, new, clean=clean)
    scene.heal()
    scene.run(3.0)
    assert scene.copies(client) == (2 if clean else 1)
    checkers.check_copies(scene.world, scene.clients, scene.ledger)
    client.inbox.copies[payload] += 1
    with pytest.raises(SimulationError, match="received message 1 of QoS 1"):
        checkers.check_copies(scene.world, scene.clients, scene.ledger)


def a_session_ended_while_its_old_home_was_away():
    """A client without a session says goodbye before anybody could tell its old home."""
    scene = Scene()
    old, new, _ = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    scene.goes(client)
    scene.crash(old)
    client.persistent = False
    scene.connect(client, new, clean=True)
    scene.goes(client)
    assert scene.homes("client") == []
    scene.start(old)
    scene.until(lambda: scene.homes("client") == [])
    scene.run(3.0)
    assert scene.homes("client") == []
    assert [node.core.mesh.registry.own_ended() for node in scene.nodes] == [[], [], []]


def test_a_session_that_ended_does_not_rise():
    a_session_ended_while_its_old_home_was_away()


def _a_stub_stands(scene, client_id="client"):
    """Have a session go to another node while a third one is down, for which its stub stays where it was."""
    old, new, absent = scene.nodes
    client = scene.comes(client_id, old, {b"a/b": 1})
    scene.goes(client)
    scene.crash(absent)
    scene.connect(client, new)
    scene.goes(client)
    assert client_id in old.core.owner.transfers.departures
    return client


def _a_session_is_where_its_stub_stands(scene):
    """Have a session begin where its stub is, as its new home is down."""
    old, new, _absent = scene.nodes
    client = _a_stub_stands(scene)
    scene.crash(new)
    scene.connect(client, old)
    assert "client" in old.core.owner.transfers.departures
    return client


@pytest.mark.parametrize("at_once", [False, True])
def test_a_session_that_ended_where_its_stub_stood_ends_with_that(at_once):
    """Else the stub is taken for the session when the client is back, or never goes."""
    scene = Scene()
    old = scene.nodes[0]
    client = _a_session_is_where_its_stub_stands(scene)
    if at_once:
        # In one turn it ends, and the client is back.
        old.slow_until, old.turn_s = scene.world.now + 0.5, 0.5
    client.send(Detach, 0, 0)
    client.disconnect(False)
    client.session_exists = False
    if not at_once:
        scene.run(0.1)
        assert not old.core.owner.transfers.departures
    scene.connect(client)
    assert not client.session_present
    scene.until(lambda: not old.core.owner.transfers.departures)


def test_a_session_that_was_ended_elsewhere_ends_with_the_stub_beside_it():
    scene = Scene()
    old, new, absent = scene.nodes
    client = _a_session_is_where_its_stub_stands(scene)
    scene.goes(client)
    scene.split([old], [new, absent])
    for node in (new, absent):
        node.start()
    scene.until(lambda: new.core.mesh.peers[absent.name].running)
    scene.connect(client, new, True)
    client.send(Detach, 0, 0)
    client.disconnect(False)
    scene.run(0.5)
    assert scene.homes("client") == [old]
    scene.world.validate_every = 1
    scene.heal()
    scene.until(lambda: not scene.homes("client"))
    assert not old.core.owner.transfers.departures


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("is_missed", [True, False])
def test_a_session_that_begins_anew_where_its_stub_stands_is_not_among_those_that_it_ends(is_missed, persistent):
    """The registry knows that older ones are over before it knows this one (seed 30274)."""
    scene = Scene()
    old, new, absent = scene.nodes
    client = _a_stub_stands(scene, kept_by(scene, old, new))
    if is_missed:
        scene.crash(new)
    else:
        new.kill()
    client.persistent = persistent
    scene.connect(client, old, clean=True)
    for node in (new, absent):
        node.start()
    scene.until(scene.is_whole)
    scene.until(lambda: not any(node.core.mesh.registry.own_ended() for node in scene.nodes))
    assert scene.connected(client.client_id) == [old]
    payloads = scene.publish(scene.comes("publisher", new), b"a/b")
    scene.until(lambda: scene.payloads(client) == payloads)


def an_offer_comes_late(scene, client, old, new):
    """The new home asked, what it was offered did not come, and its client was refused."""
    scene.goes(client)
    lose(scene, FrameType.MOVE)
    client.home = new
    client.connect()
    scene.until(lambda: client.state != OFFLINE)
    scene.until(lambda: client.state == OFFLINE)
    assert old.core.moving.counts()["moves_leaving"] == 1


def test_a_home_that_asked_again_takes_what_was_offered_first():
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    an_offer_comes_late(scene, client, old, new)
    payloads = scene.publish(publisher, b"a/b", 1, 5)
    lose(scene, FrameType.MOVE_TAKE)
    scene.connect(client)
    assert client.session_present
    lose(scene)
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    assert scene.payloads(client) == payloads
    assert scene.copies(client) == 1


def test_a_home_by_an_earlier_epoch_than_it_was_offered_has_the_rest():
    """It restarted with its clock set back, and made the session of the registry while it did not hear the old home."""
    scene = Scene(count=2)
    old, new = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", old)
    an_offer_comes_late(scene, client, old, new)
    payloads = scene.publish(publisher, b"a/b", 1, 5)
    lose(scene)
    scene.split([old], [new])
    offered = old.core.moving.departures.leavings["client"].epoch
    new.kill()
    new.clocks.set_ahead(-60_000)
    new.start()
    scene.connect(client)
    assert new.core.owner.session("client").epoch < offered, "it does not know any more how late it was"
    scene.heal()
    scene.until(lambda: not old.core.moving.counts()["moves_leaving"])
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("ahead_ms", [0, 150_000])
def test_a_session_goes_elsewhere_though_its_new_home_died_of_which_only_the_old_home_knows(ahead_ms, is_taken, clean):
    """With a clock that is ahead it asked under a later epoch than whoever asks then."""
    scene = Scene()
    old, dead, new = scene.nodes
    dead.clocks.set_ahead(ahead_ms)
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", new)
    scene.goes(client)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    lose(scene, FrameType.MOVE_ACK if is_taken else FrameType.MOVE, *TABLES)
    client.home = dead
    client.connect()
    scene.goes(client, True)
    scene.run(0.3)
    assert old.core.moving.departures.has_stub("client")
    assert (scene.homes("client") == [dead]) == is_taken
    scene.crash(dead)
    lose(scene)
    scene.connect(client, new, clean)
    assert scene.homes("client") == [new]
    if clean:
        payloads = []
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.start(dead)
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1
    assert scene.connected("client") == [new]


def a_session_goes_to_a_node_of_which_only_its_old_home_knows(ahead_ms=0):
    """Another one began in the other half of a partition, later.

    Return the scene, the client and what its sessions are to have: at the old home, at the new and at the third node.
    """
    scene = Scene()
    old, new, third = scene.nodes
    new.clocks.set_ahead(ahead_ms)
    publishers = [scene.comes(f"publisher {node.name}", node) for node in scene.nodes]
    scene.split([old, new], [third])
    scene.run(5.0)
    payloads = []
    for place, name in ((0, "client"), (2, "rival")):
        client = scene.client(name, scene.nodes[place], {b"a/b": 1}, client_id="client")
        scene.connect(client)
        scene.goes(client)
        payloads += scene.publish(publishers[place], b"a/b", 1, 3)
    client = scene.clients[-2]
    lose(scene, FrameType.MOVE_ACK, *TABLES)
    client.home = new
    client.connect()
    scene.goes(client, True)
    scene.until(lambda: scene.homes("client") == [new, third])
    scene.split([new], [old])
    scene.until(lambda: not old.core.mesh.peers[new.name].running)
    lose(scene)
    payloads += scene.publish(publishers[1], b"a/b", 1, 3)
    scene.world.network.heal(old.name, third.name)
    scene.until(lambda: all(len(node.core.mesh.registry.homes("client")) == 2 for node in (old, third)))
    return scene, client, payloads


def has_all_once(scene, client, home, payloads):
    """Heal the cluster, and check that a client that is connected stays where it is and gets everything."""
    scene.heal()
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.until(lambda: sorted(scene.payloads(client)) == sorted(payloads))
    assert scene.copies(client) == 1
    assert scene.connected("client") == [home]


@pytest.mark.parametrize("ahead_ms", [0, 150_000])
def test_a_session_comes_to_a_node_though_its_stub_there_goes_to_one_that_is_away(ahead_ms):
    """By a clock that is ahead, that one asked for it later than its client comes to the node of the stub."""
    scene, client, payloads = a_session_goes_to_a_node_of_which_only_its_old_home_knows(ahead_ms)
    old = scene.nodes[0]
    scene.connect(client, old)
    assert client.session_present
    has_all_once(scene, client, old, payloads)


def test_no_stubs_of_a_session_wait_for_each_other_in_a_ring():
    """The third node gives to the old home, that to the new one, and that to the third, where the client is now."""
    scene, client, payloads = a_session_goes_to_a_node_of_which_only_its_old_home_knows()
    old, new, third = scene.nodes
    lose(scene, FrameType.MOVE)
    client.home = old

    def is_asked_for():
        if client.state == OFFLINE:
            # Its keeper remembers for a while that it went to the new one.
            client.connect()
        return third.core.moving.departures.has_stub("client")

    scene.until(is_asked_for)
    scene.goes(client, True)
    scene.split([old], [third])
    lose(scene)
    scene.world.network.heal(new.name, third.name)
    scene.until(lambda: third.core.mesh.registry.find("client").node == new.name)
    scene.connect(client, third)
    assert client.session_present
    has_all_once(scene, client, third, payloads)


def calls(scene, node, client_id, user_name=None, clean=False):
    """Return the reason with which a node answers a CONNECT, and wait until all know of that."""
    heard = []
    (listener,) = node.listeners
    number = listener.open(SimpleNamespace(answer=heard.append, connection_lost=lambda: None))
    listener.send(Attach(listener.key(number), client_id, 5, clean, 3600, 65535, user_name=user_name))
    scene.until(lambda: bool(heard))
    scene.until(scene.is_whole if all(each.up for each in scene.nodes) else lambda: True)
    return heard[0].reason


def test_a_session_whose_client_is_refused_expires_at_its_new_home():
    scene = Scene(count=2)
    old, _ = scene.nodes
    assert calls(scene, old, "client") == Reason.SUCCESS
    # From here on nodes take no clients.
    scene.settings = OwnerSettings(max_connections=0)
    full = scene.add_node("full@h")
    scene.join(full, old)
    scene.until(scene.is_whole)
    scene.crash(old)
    assert calls(scene, full, "client") == Reason.QUOTA_EXCEEDED
    session = full.core.owner.session("client")
    assert 3590.0 < session.expires_at - full.clocks.monotonic() <= 3600.0


@pytest.mark.parametrize("clean", [False, True])
def test_nobody_takes_over_what_belongs_to_another_user_while_its_home_is_away(clean):
    scene = Scene()
    old, new, _ = scene.nodes
    assert calls(scene, old, "client", "ann") == Reason.SUCCESS
    scene.crash(old)
    assert calls(scene, new, "client", "bob", clean) == Reason.CLIENT_IDENTIFIER_NOT_VALID
    assert scene.homes("client") == []
    assert calls(scene, new, "client", "ann", clean) == Reason.SUCCESS
    assert scene.homes("client") == [new]


def the_old_home_dies_with_what_was_sent_late():
    """What a member sent to the old home for a session that leaves is acknowledged there, and waits for the new one."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    # Nothing moves for now, and third does not hear of the new home.
    lose(scene, FrameType.MOVE, FrameType.MOVE_ACK, *TABLES)
    client.home = new
    client.connect()
    scene.run(1.0)
    assert old.core.moving.counts()["moves_leaving"] == 1
    payloads = scene.publish(publisher, b"a/b", 1, 5)
    old.kill()
    lose(scene)
    scene.run(0.5)
    old.start()
    scene.until(scene.is_whole)
    if client.state == OFFLINE:
        client.connect()
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def test_what_a_stub_acknowledges_survives_it():
    the_old_home_dies_with_what_was_sent_late()


def an_old_home_is_back_after_its_session_went_elsewhere():
    """The registry knows a later home; the queue that was left comes in front."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    before = scene.publish(publisher, b"a/b", 1, 3)
    scene.crash(old)
    scene.connect(client, new)
    scene.until(lambda: third.core.mesh.is_current(0.0))
    assert client.session_present
    scene.goes(client)
    after = scene.publish(publisher, b"a/b", 1, 3)
    scene.start(old)
    scene.until(lambda: scene.homes("client") == [new] and not old.core.moving.counts()["moves_leaving"])
    scene.connect(client, new)
    scene.run(2.0)
    assert scene.payloads(client) == [*before, *after]
    assert scene.copies(client) == 1


def test_what_was_left_behind_comes_in_front():
    an_old_home_is_back_after_its_session_went_elsewhere()


def test_a_session_that_its_home_lost_with_the_power_is_had_from_its_stub():
    scene = Scene()
    old, new, away = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", old)
    scene.goes(client)
    # The stub stays as long as somebody may send there.
    scene.crash(away)
    new.sync()
    scene.connect(client, new)
    scene.goes(client)
    assert scene.homes("client") == [new]
    new.lose_power()
    new.start()
    scene.until(lambda: scene.homes("client") == [new])
    after = scene.publish(publisher, b"a/b", 1, 3)
    scene.connect(client, new)
    assert client.session_present
    scene.until(lambda: scene.payloads(client) == after)
    scene.start(away)
    scene.until(lambda: not old.core.moving.counts()["moves_leaving"])


def test_a_session_that_nobody_took_before_both_homes_died_comes_back_by_itself():
    """Its client does not come again; a stub would hold up a leave of its node, and never expire."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.world.network.lose_frame = lambda frame: frame[1] == FrameType.MOVE
    client.home = new
    client.connect()
    scene.until(lambda: old.core.moving.counts()["moves_leaving"] == 1)
    for node in (old, new):
        node.kill()
    scene.world.network.lose_frame = None
    for node in (old, new):
        node.start()
    scene.until(scene.is_whole)
    scene.until(lambda: old.core.owner.session("client") is not None)
    assert old.core.moving.counts()["moves_leaving"] == 0
    scene.connect(client, new)
    assert client.session_present
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def a_node_with_data_joins():
    """What it has adds to what the cluster has, and overrides nothing, whatever its clock and its epochs say."""
    scene = Scene(count=2)
    one, other = scene.nodes
    lone = scene.add_node("lone@h")
    lone.clocks.ahead_ms = 3_600_000
    # It goes on keeping the client id, and remembers what it was told of it.
    name = kept_by(scene, lone, one)
    both = scene.client(name, one, {b"a/b": 1})
    scene.connect(both)
    publisher = scene.client("publisher", one)
    scene.connect(publisher)
    publisher.retain(b"state/both", 1, 0, False)
    scene.until(publisher.outbox.is_empty)
    (cluster_word,) = scene.ledger.published
    # The same client id begins anew there, again and again: its last epoch is higher than the cluster's.
    twin = scene.client("twin", lone, {b"a/c": 1}, client_id=name)
    for _ in range(5):
        scene.connect(twin, clean=True)
        scene.goes(twin)
    alone = scene.client("alone", lone, {b"a/d": 1})
    scene.connect(alone)
    scene.goes(alone)
    late = scene.client("late", lone)
    scene.connect(late)
    waiting = scene.publish(late, b"a/d", 1, 3)
    late.retain(b"state/both", 1, 0, False)
    late.retain(b"state/lone", 1, 0, False)
    scene.until(late.outbox.is_empty)
    lone_word = list(scene.ledger.published)[-1]
    scene.join(lone, other)
    scene.until(scene.is_whole)
    scene.run(5.0)
    assert both.state == ONLINE, "nobody took over"
    assert scene.homes(name) == [one]
    assert set(one.core.owner.session(name).subscriptions) == {b"a/b"}
    assert scene.homes("alone") == [lone]
    for node in scene.world.nodes.values():
        retained = node.core.owner.retained.match(b"#", node.clocks.monotonic())
        shown = {message.topic: message.payload for message in retained}
        assert shown == {b"state/both": cluster_word, b"state/lone": lone_word}
    # Who connects anew within seconds has what the cluster has.
    scene.goes(both)
    scene.connect(both, lone)
    assert both.session_present
    assert set(lone.core.owner.session(name).subscriptions) == {b"a/b"}
    # Its queues are its own, and go on as any other.
    scene.connect(alone, other)
    assert alone.session_present
    scene.until(lambda: scene.payloads(alone) == waiting)
    assert [node.core.mesh.registry.own_ended() for node in scene.world.nodes.values()] == [[], [], []]


def test_a_node_with_data_adds_and_overrides_nothing():
    a_node_with_data_joins()


def two_homes_of_a_partition_give_way_to_a_third():
    """Both began as the second home, with places of their own in the queue that look alike."""
    scene = Scene()
    one, other, third = scene.nodes
    client = scene.comes("client", third, {b"a/b": 1})
    publishers = [scene.comes(f"publisher {node.name}", node) for node in (one, other)]
    scene.goes(client)
    scene.split([one], [other], [third])
    scene.until(lambda: not any(peer.running for node in scene.nodes for peer in node.core.mesh.peers.values()))
    left = []
    for home, publisher in zip((one, other), publishers, strict=True):
        scene.connect(client, home)
        assert client.session_present
        scene.goes(client)
        left.append(scene.publish(publisher, b"a/b", 1, 3))
    assert scene.homes("client") == scene.nodes
    lose(scene, FrameType.MOVE)
    scene.heal()
    client.home = third
    client.connect()
    scene.run(0.5)
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.run(3.0)
    received = scene.payloads(client)
    assert sorted(received) == sorted(left[0] + left[1])
    assert scene.copies(client) == 1
    for payloads in left:
        assert [payload for payload in received if payload in payloads] == payloads


def test_two_homes_of_a_partition_lose_nothing_to_a_third():
    two_homes_of_a_partition_give_way_to_a_third()


def two_homes_of_a_partition_meet_a_third_one_after_the_other():
    """Both began as the second home, and the third one has the places of the one when the other comes."""
    scene = Scene(count=4, settings=OwnerSettings(max_inflight_messages=1))
    first, one, other, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1}, version=4)
    publishers = [scene.comes(f"publisher {node.name}", node) for node in (one, other)]
    scene.goes(client)
    scene.split([first], [one], [other], [third])
    scene.until(lambda: not any(peer.running for node in scene.nodes for peer in node.core.mesh.peers.values()))
    # It hardly acknowledges anything, so that the queue moves.
    client.inbox.ack_delay_s = 5.0
    left = []
    for home, publisher in zip((one, other), publishers, strict=True):
        scene.connect(client, home)
        scene.goes(client)
        left.append(scene.publish(publisher, b"a/b", 1, 4))
    scene.world.network.heal(one.name, third.name)
    scene.until(lambda: third.core.mesh.peers[one.name].running and one.core.mesh.peers[third.name].running)
    scene.run(1.0)
    scene.connect(client, third)
    scene.until(lambda: scene.payloads(client))
    scene.goes(client)
    scene.heal()
    scene.until(lambda: scene.homes("client") == [third])
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    client.inbox.ack_delay_s = 0.0
    scene.connect(client, third)
    scene.run(15.0)
    received = scene.payloads(client)
    assert sorted(received) == sorted(left[0] + left[1])
    assert scene.copies(client) == 1
    for payloads in left:
        assert [payload for payload in received if payload in payloads] == payloads


def test_two_homes_of_a_partition_lose_nothing_to_a_third_that_knows_one():
    two_homes_of_a_partition_meet_a_third_one_after_the_other()


def the_losing_home_of_a_partition_is_the_home_again():
    """It has not given anything yet, and the winner gives it what has the same places."""
    scene = Scene(count=4)
    first, *rivals, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1})
    publishers = [scene.comes(f"publisher {node.name}", node) for node in rivals]
    scene.goes(client)
    scene.split([first], [rivals[0]], [rivals[1]], [third])
    scene.until(lambda: not any(peer.running for node in scene.nodes for peer in node.core.mesh.peers.values()))
    left = []
    for home, publisher in zip(rivals, publishers, strict=True):
        scene.connect(client, home)
        scene.goes(client)
        left.append(scene.publish(publisher, b"a/b", 1, 4))
    scene.world.network.lose_frame = is_deliveries
    scene.heal()
    scene.until(lambda: len(scene.homes("client")) == 1)
    (loser,) = set(rivals) - set(scene.homes("client"))
    client.home = loser
    client.connect()
    scene.until(lambda: scene.homes("client") == [loser])
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.run(15.0)
    received = scene.payloads(client)
    assert sorted(received) == sorted(left[0] + left[1])
    assert scene.copies(client) == 1
    for payloads in left:
        assert [payload for payload in received if payload in payloads] == payloads


def test_the_losing_home_of_a_partition_loses_nothing_when_it_is_the_home_again():
    the_losing_home_of_a_partition_is_the_home_again()


def a_session_began_in_both_halves():
    """Neither half knows of the other's; both are acknowledged what waits for theirs."""
    scene = Scene()
    one, other, third = scene.nodes
    publishers = [scene.comes(f"publisher {node.name}", node) for node in (one, other)]
    client = scene.client("client", one, {b"a/b": 1})
    scene.split([one], [other, third])
    scene.until(lambda: not any(peer.running for peer in one.core.mesh.peers.values()))
    left = []
    for home, publisher in zip((one, other), publishers, strict=True):
        client.session_exists = False
        scene.connect(client, home)
        scene.goes(client)
        left.append(scene.publish(publisher, b"a/b", 1, 3))
    scene.heal()
    scene.until(lambda: len(scene.homes("client")) == 1)
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.connect(client, third)
    scene.run(3.0)
    received = scene.payloads(client)
    assert sorted(received) == sorted(left[0] + left[1])
    assert scene.copies(client) == 1


def test_neither_half_loses_what_it_has():
    a_session_began_in_both_halves()


def _has_a_session_of_which_a_node_can_not_know():
    """Return the scene, the client, and the node, which hears no other one."""
    scene = Scene()
    old, cut_off, _third = scene.nodes
    scene.split([cut_off], [node for node in scene.nodes if node is not cut_off])
    scene.until(lambda: not any(peer.running for peer in cut_off.core.mesh.peers.values()))
    client = scene.client("client", old, {b"a/b": 1, b"a/c": 1})
    scene.connect(client)
    scene.goes(client)
    client.home = cut_off
    return scene, client, cut_off


def _meet(scene, home, restarts):
    if restarts:
        home.kill()
        scene.world.network.heal_all()
        scene.start(home)
    scene.heal()
    scene.until(lambda: scene.homes("client") == [home])
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.until(lambda: not home.core.moving.counts()["moves_arriving"])
    scene.until(scene.is_whole)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("says_more", [False, True])
def test_a_client_that_did_not_hear_that_it_has_no_session_keeps_its_subscriptions(says_more, restarts):
    """The CONNACK that said so was lost, and the next one says that there is a session, which it takes for its own.

    The seed that showed it: 9693. With `says_more` it comes again before the two homes meet, and subscribes once more.
    """
    scene, client, home = _has_a_session_of_which_a_node_can_not_know()
    client.connect()
    client.hear_nothing()
    scene.until(lambda: scene.connected("client") == [home])
    scene.goes(client, True)
    if says_more:
        client.wanted[b"c/d"] = 1
        scene.connect(client)
        assert client.session_present
        client.subscribe(b"a/b", 2)
        scene.run(1.0)
        scene.goes(client)
    _meet(scene, home, restarts)
    found = home.core.owner.session("client").subscriptions
    assert {name: wanted.options for name, wanted in found.items()} == client.wanted
    publisher = scene.comes("publisher", scene.nodes[2])
    sent = [payload for topic in client.wanted for payload in scene.publish(publisher, topic, 1)]
    scene.connect(client)
    assert client.session_present
    scene.until(lambda: scene.payloads(client) == sent)
    assert scene.copies(client) == 1


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("wants", [{b"c/d": 1}, {}])
def test_a_client_that_heard_that_it_has_no_session_has_only_what_it_asked_for_since(wants, restarts):
    scene, client, home = _has_a_session_of_which_a_node_can_not_know()
    client.wanted = {b"c/d": 1}
    client.session_exists = False
    scene.connect(client)
    assert not client.session_present
    if not wants:
        client.unsubscribe(b"c/d")
        scene.run(1.0)
    scene.goes(client)
    _meet(scene, home, restarts)
    assert set(home.core.owner.session("client").subscriptions) == set(wants)


def test_a_clean_start_ends_what_its_client_asks_an_older_home_for_that_does_not_know_of_it():
    """By its epoch it is the later word, whenever the client said the other one (seed 7179)."""
    scene = Scene()
    old, home, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    scene.goes(client)
    scene.split([home], [old, third])
    client.wanted = {}
    scene.connect(client, home, clean=True)
    assert not client.session_present
    home.kill()
    client.wanted = {b"a/b": 1}
    scene.until(lambda: client.state == OFFLINE)
    scene.connect(client, old)
    assert client.session_present
    scene.goes(client)
    scene.world.network.heal_all()
    scene.start(home)
    scene.until(lambda: scene.homes("client") == [home])
    assert not home.core.owner.session("client").subscriptions
    assert convergence.sessions_converged(scene.world, [client]) == ""
    # What it says at the latest home counts.
    scene.connect(client, home)
    client.subscribe(b"a/b", 1)
    scene.until(lambda: not client.outdated)
    del home.core.owner.session("client").subscriptions[b"a/b"]
    assert convergence.sessions_converged(scene.world, [client]) == "client has [] at node2@h, not [b'a/b']"


@pytest.mark.parametrize("is_known", [True, False])
def test_what_was_left_behind_is_not_lost_with_the_head(is_known):
    """The new home has a session, and hears what the old one left before it hears the old one's own word for that.

    It knows that there is something if it made the session of the registry; not if that began in its half.
    """
    scene = Scene()
    old, new, third = scene.nodes
    publisher = scene.comes("publisher", old)
    client = scene.client("client", old, {b"a/b": 1})
    if is_known:
        scene.connect(client)
        scene.until(scene.is_whole)
    scene.split([old], [new, third])
    scene.until(lambda: not any(peer.running for peer in old.core.mesh.peers.values()))
    if not is_known:
        scene.connect(client)
    scene.goes(client)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    client.session_exists = is_known
    scene.connect(client, new)
    heads = []

    def is_first_head(frame):
        found = [item.kind == HEAD for item in unpack_move(frame, 0.0)] if frame[1:2] == bytes([FrameType.MOVE]) else []
        heads.extend(filter(None, found))
        return len(heads) == 1 and any(found)

    scene.world.network.lose_frame = is_first_head
    scene.heal()
    scene.until(lambda: scene.homes("client") == [new] and not old.core.moving.counts()["moves_leaving"])
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1
    assert len(heads) == 2


def a_move_goes_on_before_the_last_one_is_confirmed():
    """The second home has taken what the first one does not know it has, and the third hears from both."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    payloads = scene.publish(publisher, b"a/b", 1, 5)
    lose(scene, FrameType.MOVE_ACK)
    client.home = new
    client.connect()
    scene.run(0.3)
    client.disconnect(True)
    scene.run(0.3)
    client.home = third
    client.connect()
    scene.run(1.0)
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    scene.until(lambda: len(scene.payloads(client)) == 5)
    scene.run(5.0)
    assert scene.payloads(client) == payloads
    assert scene.copies(client) == 1


def test_a_move_that_goes_on_doubles_nothing():
    a_move_goes_on_before_the_last_one_is_confirmed()


def two_old_homes_have_what_came_directly():
    """The stubs of a session that moved twice last, since a node is down; what is published then comes to both.

    When the session moves on, each may take it that the other one gives it.
    """
    scene = Scene(seed=5, count=5)
    first, second, third, fourth, away = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1})
    publisher = scene.comes("publisher", fourth)
    scene.goes(client)
    scene.crash(away)
    for home in (second, third):
        scene.connect(client, home)
        scene.run(1.0)
        scene.goes(client)
    scene.split([second], [third])
    sent = scene.publish(publisher, b"a/b", 1, 6, padding_bytes=60_000)
    assert len(second.core.moving.departures.leavings["client"].departure.session.queue) == 6
    assert len(third.core.owner.session("client").queue) == 6
    scene.connect(client, fourth)
    scene.world.network.heal_all()
    scene.start(away)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


def test_of_two_old_homes_one_gives_what_both_had():
    two_old_homes_have_what_came_directly()


def an_old_home_gives_what_another_one_had_that_is_not_heard_yet(qos, is_known):
    """A session began at two nodes while its old home was away; what is published at the one both have, it and the old.

    The old home meets the other one first, and passes that on before the one has offered what it has. That the one has
    a session may be known by then.
    """
    scene = Scene()
    old, one, other = scene.nodes
    client = scene.comes("client", old, {b"a/b": qos})
    publisher = scene.comes("publisher", one)
    scene.goes(client)
    scene.split([old], [one], [other])
    scene.until(lambda: not any(peer.running for node in scene.nodes for peer in node.core.mesh.peers.values()))
    scene.connect(client, one)
    scene.goes(client)
    scene.connect(client, other)
    sent = scene.publish(publisher, b"a/b", qos, 3)
    scene.world.network.heal(old.name, other.name)
    scene.until(lambda: scene.homes("client") == [one, other])
    if is_known:
        scene.world.network.lose_frame = lambda frame: is_head_of(frame, one)
        scene.world.network.heal(one.name, other.name)
        scene.until(lambda: other.core.mesh.peers[one.name].running and one.core.mesh.peers[other.name].running)
        scene.run(2.0)
    scene.world.network.heal(old.name, one.name)
    scene.until(lambda: len(scene.payloads(client)) == 3)
    lose(scene)
    scene.heal()
    scene.until(lambda: scene.homes("client") == [other])
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.run(5.0)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_is_given_before_another_old_home_is_heard_is_not_taken_from_that(qos, is_known):
    an_old_home_gives_what_another_one_had_that_is_not_heard_yet(qos, is_known)


def a_home_restarts_between_what_two_old_homes_give(qos, reads=False):
    """A session began at two nodes while its old home was away; what is published at the one both have, it and the old.

    The old home passes that on to the other one, which starts again before it hears the one. With `reads` the client
    has taken it from there.
    """
    scene = Scene()
    old, one, other = scene.nodes
    client = scene.comes("client", old, {b"a/b": qos})
    publisher = scene.comes("publisher", one)
    scene.goes(client)
    scene.split([old], [one], [other])
    scene.until(lambda: not any(peer.running for node in scene.nodes for peer in node.core.mesh.peers.values()))
    for home in (one, other):
        scene.connect(client, home)
        scene.goes(client)
    sent = scene.publish(publisher, b"a/b", qos, 3)
    scene.world.network.heal(old.name, other.name)
    scene.until(lambda: scene.homes("client") == [one, other])
    scene.world.network.heal(old.name, one.name)
    scene.until(lambda: len(other.core.owner.session("client").queue) == 3)
    assert one.core.moving.counts()["moves_left"] == 0
    if reads:
        scene.connect(client, other)
        scene.until(lambda: scene.payloads(client) == sent)
        scene.goes(client)
    scene.crash(other)
    scene.world.network.heal_all()
    scene.start(other)
    scene.until(lambda: scene.homes("client") == [other])
    scene.until(lambda: not any(node.core.moving.counts()["moves_leaving"] for node in scene.nodes))
    scene.connect(client, other)
    scene.until(lambda: scene.payloads(client) == sent)
    scene.run(2.0)
    assert scene.copies(client) == 1


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_an_old_home_gave_before_a_restart_is_not_taken_from_another(qos, reads):
    a_home_restarts_between_what_two_old_homes_give(qos, reads)


def a_session_moves_on_before_its_first_home_has_given_all():
    """Its second home has lost sight of the first one; the third sees both."""
    scene = Scene()
    first, second, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1})
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    before = scene.publish(publisher, b"a/b", 1, 6)
    scene.world.network.lose_frame = is_deliveries
    scene.connect(client, second)
    scene.goes(client, True)
    scene.split([first], [second])
    lose(scene)
    amid = scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: not second.core.mesh.peers[first.name].running)
    scene.connect(client, third)
    after = scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: len(scene.payloads(client)) == 9)
    assert scene.payloads(client) == [*before, *amid]
    scene.heal()
    scene.run(15.0)
    assert scene.payloads(client) == [*before, *amid, *after]
    assert scene.copies(client) == 1
    assert [node.core.moving.counts()["moves_leaving"] for node in scene.nodes] == [0, 0, 0]
    assert [node.core.moving.counts()["moves_arriving"] for node in scene.nodes] == [0, 0, 0]


def a_stub_gets_what_others_there_want(comes_back):
    """The second home's node is sent a part of what the session wants: its origin has not heard of the session there.

    The first home, which has all of it, is heard when the session is at the second one again, or at a fourth.
    """
    scene = Scene(count=4)
    first, second, third, fourth = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1, b"a/c": 1})
    neighbour = scene.comes("neighbour", second, {b"a/b": 1})
    publisher = scene.comes("publisher", first)
    scene.goes(client)
    scene.split([first], [second, third, fourth])
    scene.until(lambda: not second.core.mesh.peers[first.name].running)
    for home in (second, third):
        scene.connect(client, home)
        scene.goes(client)
    assert second.core.moving.counts()["moves_leaving"] == 1, "nobody knows what the first home may send there"
    wanted_by_both, wanted = [], []
    for _ in range(3):
        wanted_by_both += scene.publish(publisher, b"a/b")
        wanted += scene.publish(publisher, b"a/c")
    scene.world.network.lose_frame = is_deliveries
    scene.heal()
    scene.until(lambda: scene.payloads(neighbour) == wanted_by_both)
    scene.connect(client, second if comes_back else fourth)
    scene.run(1.0)
    lose(scene)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    scene.run(2.0)
    received = scene.payloads(client)
    assert [payload for payload in received if payload in wanted_by_both] == wanted_by_both
    assert [payload for payload in received if payload not in wanted_by_both] == wanted
    assert scene.copies(client) == 1


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_a_stub_is_sent_for_others_is_not_all_that_its_session_wants(comes_back):
    a_stub_gets_what_others_there_want(comes_back)


def is_head_of(frame, node):
    """Say whether a frame has a session's head that is of a node."""
    if len(frame) < 2 or frame[1] != FrameType.MOVE:
        return False
    return any(item.kind == HEAD and item.old_epoch.store_id == node.store_id for item in unpack_move(frame, 0.0))


def is_deliveries(frame):
    """Say whether a frame has a part of a session's queue, and nothing of its head."""
    if len(frame) < 2 or frame[1] != FrameType.MOVE:
        return False
    return all(item.kind == DELIVERIES for item in unpack_move(frame, 0.0))


def is_nothing(frame):
    """Say whether a frame has the answer that there is no session to give."""
    if len(frame) < 2 or frame[1] != FrameType.MOVE:
        return False
    return any(item.kind == NOTHING for item in unpack_move(frame, 0.0))


def first_part():
    """Return what says whether a frame is the first that has a part of a session's queue."""
    parts = []

    def is_first(frame):
        if not parts and is_deliveries(frame):
            parts.append(frame)
            return True
        return False

    return is_first


def test_a_session_that_moves_on_keeps_its_order():
    a_session_moves_on_before_its_first_home_has_given_all()


def a_home_does_not_know_what_the_next_one_took_when_the_session_moves_on():
    """The third home hears of that from the second one, but has it first from the first one, which is quicker."""
    scene = Scene(settings=OwnerSettings(max_inflight_messages=1))
    first, second, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1}, version=4)
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    sent = scene.publish(publisher, b"a/b", 1, 6, padding_bytes=1000)
    # It acknowledges nothing, so that the queue moves.
    client.inbox.ack_delay_s = 5.0
    lose(scene, FrameType.MOVE_ACK)
    scene.connect(client, second)
    scene.until(lambda: len(second.core.owner.session("client").queue) == 5)
    scene.goes(client, True)
    client.inbox.ack_delay_s = 0.0
    scene.split([first], [second])
    lose(scene)
    assert len(first.core.moving.departures.leavings["client"].departure.session.queue) == 6
    scene.until(lambda: not second.core.mesh.peers[first.name].running)
    scene.world.network.lose_frame = first_part()
    client.home = third
    client.connect()
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    lose(scene)
    scene.heal()
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


def test_what_one_old_home_leaves_to_another_that_one_gives():
    a_home_does_not_know_what_the_next_one_took_when_the_session_moves_on()


def an_old_home_has_more_than_the_next_one_took_when_the_session_moves_on():
    """Its own publishers go on, as it does not know of the next home. The third hears from that one last."""
    scene = Scene()
    first, second, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1})
    publisher = scene.comes("publisher", first)
    scene.goes(client)
    sent = scene.publish(publisher, b"a/b", 1, 6)

    def is_arriving():
        return second.core.owner.session("client") is not None

    scene.world.network.lose_frame = lambda frame: is_deliveries(frame) or (frame[1] in TABLES and is_arriving())
    scene.connect(client, second)
    scene.goes(client, True)
    lose(scene, FrameType.MOVE_ACK, *TABLES)
    scene.until(lambda: len(second.core.owner.session("client").queue) == 6)
    scene.split([first], [second])
    lose(scene)
    sent += scene.publish(publisher, b"a/b", 1, 3)
    assert len(first.core.moving.departures.leavings["client"].departure.session.queue) == 9
    scene.until(lambda: not second.core.mesh.peers[first.name].running)
    scene.world.network.lose_frame = first_part()
    client.home = third
    client.connect()
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    assert scene.payloads(client) == sent
    lose(scene)
    scene.heal()
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.copies(client) == 1


def test_what_an_old_home_has_behind_what_another_took_does_not_come_first():
    an_old_home_has_more_than_the_next_one_took_when_the_session_moves_on()


def an_origin_reaches_the_second_of_two_old_homes_alone(is_late):
    """It has something for the first one since before, and the third home does not hear it either.

    With `is_late` it is there when the session has left the second one, which gives that when it looks at all again.
    """
    scene = Scene(count=4)
    first, second, third, origin = scene.nodes
    client = scene.comes(kept_by(scene, second, third), first, {b"a/b": 1})
    publisher = scene.comes("publisher", origin)
    scene.goes(client)
    deaf = [first, second, third] if is_late else [first, third]
    scene.split([origin], deaf)
    sent = scene.publish(publisher, b"a/b", 1, 2)
    scene.until(lambda: not any(node.core.mesh.peers[origin.name].running for node in deaf))
    scene.connect(client, second)
    scene.run(1.0)
    scene.goes(client)
    if is_late:
        scene.connect(client, third)
        scene.world.network.heal(second.name, origin.name)
        scene.until(lambda: origin.core.mesh.peers[second.name].running)
        scene.until(lambda: b"a/b" in origin.core.mesh.interest.persistent_filters(second.name))
    sent += scene.publish(publisher, b"a/b", 1, 2)
    scene.run(0.5)
    if is_late:
        scene.split([first], [second])
        scene.until(lambda: not second.core.mesh.peers[first.name].running)
    else:
        scene.connect(client, third)
    scene.until(lambda: second.core.owner.transfers.departures[client.client_id].confirmed)
    scene.run(0.5)
    scene.heal()
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


@pytest.mark.parametrize("is_late", [False, True])
def test_what_one_old_home_has_of_an_origin_comes_before_what_a_later_one_had_directly(is_late):
    an_origin_reaches_the_second_of_two_old_homes_alone(is_late)


def a_session_goes_to_and_fro_before_any_move_is_over(times):
    """A node is down, so all stubs last. The first home gives once more what it had given, got back and still has."""
    scene = Scene(count=4, settings=OwnerSettings(max_inflight_messages=1))
    first, second, third, away = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1}, version=4)
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    scene.crash(away)
    sent = scene.publish(publisher, b"a/b", 1, 6)
    # It hardly acknowledges anything, so that the queue moves.
    client.inbox.ack_delay_s = 5.0
    for home in (second, first, second, first)[:times]:
        scene.connect(client, home)
        scene.run(1.0)
        scene.goes(client)
        sent += scene.publish(publisher, b"a/b", 1, 2)
    client.inbox.ack_delay_s = 0.0
    scene.connect(client)
    scene.start(away)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


@pytest.mark.parametrize("times", [3, 4])
def test_a_session_that_goes_to_and_fro_loses_nothing(times):
    a_session_goes_to_and_fro_before_any_move_is_over(times)


def test_a_session_that_is_given_back_brings_what_it_had_from_here():
    """Its first home hears that this was taken with the head alone, and gets it back in the same turn."""
    scene = Scene(settings=OwnerSettings(max_inflight_messages=1))
    first, second, third = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1}, version=4)
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    # They are too long for a listener to keep any for the client.
    sent = scene.publish(publisher, b"a/b", 1, 6, padding_bytes=1000)
    # It reads nothing until its connection ends, and so acknowledges nothing: the queue moves.
    client.inbox.stop_reading()
    lose(scene, FrameType.MOVE_ACK)
    scene.connect(client, second)
    scene.until(lambda: len(second.core.owner.session("client").queue) == 5)
    scene.goes(client, True)
    assert len(first.core.moving.departures.leavings["client"].departure.session.queue) == 6
    scene.connect(client, first)
    lose(scene)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


def a_session_that_came_back_goes_on_to_a_third_node():
    """A node is down, so all stubs last. The one between had taken all of the first home, says so, and gave it back.

    The third hears that before the first has given anything.
    """
    scene = Scene(count=4, settings=OwnerSettings(max_inflight_messages=1))
    first, second, third, away = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1}, version=4)
    publisher = scene.comes("publisher", third)
    scene.goes(client)
    scene.crash(away)
    sent = scene.publish(publisher, b"a/b", 1, 6)
    # It hardly acknowledges anything, so that the queue moves.
    client.inbox.ack_delay_s = 5.0
    for home in (second, first):
        scene.connect(client, home)
        scene.run(1.0)
        scene.goes(client)
    client.inbox.ack_delay_s = 0.0
    scene.world.network.lose_frame = is_deliveries
    client.home = third
    client.connect()
    scene.until(lambda: third.core.owner.session("client") is not None)
    scene.run(1.0)
    lose(scene)
    scene.until(lambda: client.state == ONLINE)
    scene.until(lambda: len(scene.payloads(client)) == len(sent))
    assert scene.payloads(client) == sent
    scene.start(away)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.copies(client) == 1


def test_a_session_that_came_back_loses_nothing_when_it_goes_on():
    a_session_that_came_back_goes_on_to_a_third_node()


def test_a_session_goes_on_from_where_its_stub_lasts():
    """It came back while the node to which it had gone is away; what is published since comes to the stub as well."""
    scene = Scene()
    old, dead, new = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", new)
    scene.goes(client)
    lose(scene, FrameType.MOVE_ACK)
    scene.connect(client, dead)
    scene.goes(client)
    scene.crash(dead)
    lose(scene)
    scene.connect(client, old)
    scene.run(2.0)
    scene.goes(client)
    assert old.core.moving.departures.has_stub("client")
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.run(2.0)
    scene.connect(client, new)
    scene.until(lambda: scene.payloads(client) == payloads)
    payloads += scene.publish(publisher, b"a/b", 1, 3)
    scene.start(dead)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    scene.until(lambda: scene.payloads(client) == payloads)
    assert scene.copies(client) == 1


def is_move(frame, takes):
    """Say whether a frame is an old home's word; what a new one asks for is noted."""
    kind = frame[1] if len(frame) > 1 else None
    if kind == FrameType.MOVE_TAKE:
        takes.append(frame)
    return kind == FrameType.MOVE


def a_session_is_asked_for_that_began_where_its_stub_is():
    """Its stub has given all it had, and waits for a member that is away; the session itself can't go yet.

    What that member had kept for the first home comes there before it knows of the session: it is for the stub.
    """
    scene = Scene()
    first, second, away = scene.nodes
    client = scene.comes("client", first, {b"a/b": 1})
    publisher = scene.comes("publisher", away)
    scene.goes(client)
    scene.split([first], [away])
    scene.until(lambda: not away.core.mesh.peers[first.name].running)
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.connect(client, second)
    scene.goes(client)
    scene.split([first], [second])
    scene.until(lambda: not first.core.mesh.peers[second.name].running)
    scene.connect(client, first)
    scene.goes(client)
    # The second home does not give what it has. It has to wait until it need not agree with all others who runs.
    takes = []
    scene.world.network.lose_frame = lambda frame: is_move(frame, takes)
    scene.world.network.heal(first.name, second.name)
    scene.until(lambda: second.core.mesh.is_current(0.0))
    scene.run(AGREEMENT_TIMEOUT_S)
    client.home = second
    client.connect()
    scene.until(lambda: bool(takes))
    scene.goes(client, True)
    assert [node.core.owner.session("client") is not None for node in scene.nodes] == [True, False, False]
    scene.heal()
    lose(scene)
    scene.connect(client, second)
    scene.until(lambda: scene.payloads(client) == payloads)
    scene.until(lambda: not any(node.core.moving.departures.leavings for node in scene.nodes))
    assert scene.copies(client) == 1


def test_a_stub_does_not_make_way_before_its_session_goes():
    a_session_is_asked_for_that_began_where_its_stub_is()


def an_offer_is_heard_once_more_when_all_is_over(is_ended):
    """As the last frames of a lost connection may be: what came of it is not remembered any more (seed 20143)."""
    scene = Scene()
    old, new, origin = scene.nodes
    client = scene.comes("client", old, {b"a/b": 2})
    publisher = scene.comes("publisher", origin)
    scene.goes(client)
    sent = scene.publish(publisher, b"a/b", 2, 3)
    heard = []

    def listen(frame):
        if len(frame) > 1 and frame[1] == FrameType.MOVE:
            heard.append(frame)

    scene.world.network.lose_frame = listen
    scene.connect(client, new)
    scene.until(lambda: scene.payloads(client) == sent)
    scene.until(lambda: new.core.owner.session("client").arrival is None)
    lose(scene)
    if is_ended:
        scene.goes(client)
        client.persistent = False
        scene.connect(client, clean=True)
        scene.goes(client)
        assert not scene.homes("client")
    assert heard
    for frame in heard:
        new.input_arrives(FrameReceived(old.name, b"bulk", frame))
    scene.run(2.0)
    assert len(scene.homes("client")) == (0 if is_ended else 1)
    assert scene.payloads(client) == sent
    assert scene.copies(client) == 1


@pytest.mark.parametrize("is_ended", [False, True])
def test_an_offer_that_is_heard_once_more_brings_nothing_back(is_ended):
    an_offer_is_heard_once_more_when_all_is_over(is_ended)


@pytest.mark.parametrize("qos", [1, 2])
def test_an_offer_that_is_heard_once_more_makes_nobody_wait_for_who_has_said_its_last_word(qos):
    """The home waits for what others know, and does not hear a node that has joined since the stub ended."""
    scene = Scene()
    old, new, third = scene.nodes
    client = scene.comes("client", old, {b"a/b": 2})
    late = scene.add_node("late@h")
    publisher = scene.client("publisher", late)
    scene.connect(publisher)
    scene.goes(client)
    heard = []

    def listen(frame):
        if len(frame) > 1 and frame[1] == FrameType.MOVE:
            heard.append(frame)

    def waits_for_nobody():
        session = new.core.owner.session("client")
        return session.arrival is not None and not session.arrival.donors

    scene.world.network.lose_frame = listen
    scene.connect(client, new)
    scene.until(waits_for_nobody)
    scene.goes(client)
    scene.split([new], [third, late])
    scene.begin_join(late, old)
    scene.until(lambda: new.name in homes_known(late, "client", b"a/b") and late.name in new.core.mesh.peers)
    lose(scene)
    assert waits_for_nobody() and heard
    for frame in heard:
        new.input_arrives(FrameReceived(old.name, b"bulk", frame))
    scene.run(0.1)
    assert waits_for_nobody()
    sent = scene.publish(publisher, b"a/b", qos, 3)
    scene.heal()
    scene.connect(client, new)
    scene.until(lambda: scene.payloads(client) == sent)
    assert scene.copies(client) == 1


def test_an_offer_that_is_heard_once_more_after_a_restart_brings_back_nothing_that_was_discarded_meanwhile():
    """What was sent to a node may have been on its way when it died, and what it has stored tells of the session."""
    scene = Scene()
    old, dead, new = scene.nodes
    client = scene.comes("client", old, {b"a/b": 1})
    publisher = scene.comes("publisher", new)
    scene.goes(client)
    scene.publish(publisher, b"a/b", 1, 3)
    offers = []

    def keep(frame):
        if len(frame) > 1 and frame[1] == FrameType.MOVE:
            offers.append(frame)
            return True
        return False

    scene.world.network.lose_frame = keep
    client.home = dead
    client.connect()
    scene.until(lambda: len(offers) > 1)
    scene.goes(client, True)
    scene.crash(dead)
    lose(scene)
    scene.connect(client, new, clean=True)
    scene.until(lambda: not old.core.moving.departures.leavings)
    # It tells that it has nothing of the session before it hears what became of that.
    lose(scene, FrameType.TABLE_ROWS, FrameType.TABLE_DONE)
    dead.start()
    scene.until(lambda: not new.core.mesh.registry.own_ended())
    for frame in offers:
        dead.input_arrives(FrameReceived(old.name, b"bulk", frame))
    scene.run(0.1)
    lose(scene)
    scene.until(scene.is_whole)
    scene.run(2.0)
    assert scene.homes("client") == [new]
    payloads = scene.publish(publisher, b"a/b", 1, 3)
    scene.until(lambda: scene.payloads(client) == payloads)


@pytest.mark.parametrize("stays", [False, True], ids=["nobody is at the other home", "a client is at the other home"])
def test_who_connects_where_a_later_home_is_not_heard_of_is_not_told_that_another_client_took_over(stays):
    """Its node was down when the session got that home; a contender that hears of a takeover gives up (seed 1040)."""
    scene = Scene()
    old, home, _third = scene.nodes
    first = scene.comes("client", old, {b"a/b": 1})
    scene.goes(first)
    scene.crash(old)
    scene.connect(first, home)
    if not stays:
        scene.goes(first)
    scene.split([old], [node for node in scene.nodes if node is not old])
    old.start()
    scene.run(0.5)
    last = scene.client("last", old, {b"a/b": 1}, client_id="client")
    first.contends = last.contends = True
    scene.connect(last)
    assert scene.connected("client") == ([old, home] if stays else [old])
    first.comes_back, last.comes_back = stays, True
    scene.heal()
    scene.until(lambda: len(scene.homes("client")) == 1)
    scene.until(lambda: scene.connected("client") == [old])
    scene.run(5.0)
    assert (first.state, last.state) == (OFFLINE, ONLINE)
