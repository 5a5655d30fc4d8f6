"""cluster.registration: turns one at a time, first come first, for the living, and never for longer than 5 s."""

import math

import pytest
from registration_network import HEARTBEAT_S, REQUEST_S, Network, client_of, cluster

from cluster.epoch import NO_EPOCH, Epoch
from cluster.frames import FrameType
from cluster.registration import REQUESTS_MAX, Granted, Registration, TimedOut
from cluster.registration_frames import (
    TurnGrant,
    TurnRelease,
    TurnRequest,
    pack_turn_grant,
    pack_turn_release,
    pack_turn_request,
    pack_turn_survey,
    pack_turns,
    pack_turns_held,
    unpack_turn_grants,
    unpack_turn_requests,
    unpack_turn_survey,
    unpack_turns_held,
)
from cluster.running_view import RunningView, keeper_among
from cluster.turn_keeper import (
    AGREEMENT_TIMEOUT_S,
    CLAIMS_MAX,
    NUMBER_BITS,
    RELEASED_MAX,
    RELEASED_S,
    RETRY_S,
    ROUND_BITS,
)
from cluster.wire import FrameError

STORES = [bytes([number]) * 16 for number in range(8)]


def alone(epochs=None):
    known = epochs or {}
    return Registration("a@a", STORES[0], 1, lambda client_id: known.get(client_id, NO_EPOCH), lambda since: False)


def request_frame(number, client_id):
    return pack_turns(FrameType.TURN_REQUEST, [pack_turn_request(TurnRequest(number, client_id))])[0]


def grant_frame(*fields):
    return pack_turns(FrameType.TURN_GRANT, [pack_turn_grant(TurnGrant(*fields))])[0]


def release_frame(*fields):
    return pack_turns(FrameType.TURN_RELEASE, [pack_turn_release(TurnRelease(*fields))])[0]


def kinds(frames):
    return [(node, FrameType(frame[1]).name) for node, frame in frames]


# Who keeps what.


def test_views_with_the_same_members_agree_on_every_keeper():
    one = RunningView("a@a", STORES[0], 1)
    other = RunningView("c@c", STORES[2], 3)
    one.started("b@b", STORES[1], 2)
    one.started("c@c", STORES[2], 3)
    other.started("a@a", STORES[0], 1)
    assert one.digest != other.digest
    other.started("b@b", STORES[1], 2)
    assert one.digest == other.digest
    keepers = [one.keeper(f"client {number}") for number in range(3000)]
    assert keepers == [other.keeper(f"client {number}") for number in range(3000)]
    for name in ("a@a", "b@b", "c@c"):
        assert 900 < keepers.count(name) < 1100, "each has its share"
    assert not other.started("b@b", STORES[1], 2)
    assert other.started("b@b", STORES[1], 3), "a new life is news"
    assert one.digest != other.digest


def test_a_member_that_goes_leaves_the_keepers_of_the_other_client_ids_alone():
    members = [(STORES[number], f"n{number}@h") for number in range(5)]
    for number in range(500):
        before = keeper_among(members, f"client {number}")
        after = keeper_among([member for member in members if member[1] != "n3@h"], f"client {number}")
        assert after == before or before == "n3@h"


# A node alone.


def test_a_node_alone_grants_at_once_and_says_nothing():
    registration = alone({"c": Epoch(3, 9, STORES[1])})
    registration.request("c", 7, 10.0)
    assert registration.take_results() == [Granted(7, "c", Epoch(3, 9, STORES[1]))]
    assert registration.next_deadline() == math.inf
    registration.release(7, Epoch(4, 1, STORES[0]), 10.1)
    assert registration.take_frames() == []
    assert registration.counters()["turns_kept"] == registration.counters()["turns_requested"] == 0
    registration.release(7, NO_EPOCH, 10.2)
    registration.release(99, NO_EPOCH, 10.2)
    registration.validate()


def test_on_one_node_a_client_id_has_one_turn_first_come_first():
    registration = alone()
    for token in range(4):
        registration.request("c", token, 10.0 + token)
    registration.request("d", 9, 13.0)
    assert [result.token for result in registration.take_results()] == [0, 9]
    registration.release(2, NO_EPOCH, 13.0)
    registration.release(0, Epoch(1, 5, STORES[0]), 13.5)
    assert registration.take_results() == [Granted(1, "c", Epoch(1, 5, STORES[0]))], "though `find` knows nothing yet"
    registration.release(1, NO_EPOCH, 13.6)
    assert [result.token for result in registration.take_results()] == [3]
    registration.validate()


def test_who_waits_for_5_seconds_is_told_so_and_forgotten():
    registration = alone()
    registration.request("c", 1, 10.0)
    registration.request("c", 2, 11.0)
    registration.request("c", 3, 12.0)
    registration.take_results()
    assert registration.next_deadline() == 16.0
    registration.tick(15.999)
    assert registration.take_results() == []
    registration.tick(16.0)
    assert registration.take_results() == [TimedOut(2, "c")]
    registration.release(1, NO_EPOCH, 16.5)
    assert [result.token for result in registration.take_results()] == [3]
    registration.release(3, NO_EPOCH, 60.0)
    assert registration.next_deadline() == math.inf
    assert registration.counters()["turns_timed_out"] == 1
    registration.validate()


def test_a_turn_that_comes_free_too_late_goes_to_nobody_who_gave_up():
    registration = alone()
    for token in range(3):
        registration.request("c", token, 10.0)
    registration.take_results()
    registration.release(0, NO_EPOCH, 15.0)
    assert {result.token for result in registration.take_results()} == {1, 2}
    assert registration.counters()["turns_kept"] == 0
    registration.validate()


def test_requests_beyond_the_bound_end_at_once():
    registration = alone()
    for token in range(REQUESTS_MAX):
        registration.request(f"c{token}", token, 10.0)
    registration.take_results()
    registration.request("c", -1, 10.0)
    assert registration.take_results() == [TimedOut(-1, "c")]
    registration.release(5, NO_EPOCH, 10.0)
    registration.request("c", -1, 10.0)
    assert [type(result) for result in registration.take_results()] == [Granted]
    assert registration.counters()["turns_refused"] == 1


# Two nodes and more.


def test_the_keepers_own_request_needs_no_frame_and_anothers_needs_two():
    network, (one, two, _) = cluster()
    sent = []
    network.lose = lambda source, target, frame: frame[0] == "turn" and bool(sent.append((source.name, frame[1][1])))
    client_id = client_of(network, one)
    token = one.request(client_id)
    assert one.outcome(token) == "held"
    one.release(token)
    assert sent == []
    token = two.request(client_id)
    network.run(0.1)
    assert two.outcome(token) == "held"
    assert two.holds[token][3].store_id == one.store_id, "it hears of the newest home"
    two.release(token)
    assert [FrameType(kind) for _, kind in sent] == [
        FrameType.TURN_REQUEST,
        FrameType.TURN_GRANT,
        FrameType.TURN_RELEASE,
    ]


def test_turns_go_first_come_first_across_nodes():
    network, nodes = cluster(count=4)
    client_id = client_of(network, nodes[0])
    holder = nodes[1].request(client_id)
    network.run(0.1)
    waiting = []
    for node in (nodes[3], nodes[0], nodes[2], nodes[3], nodes[1]):
        waiting.append((node, node.request(client_id)))
        network.run(0.1)
    nodes[1].release(holder)
    for place, (node, token) in enumerate(waiting):
        network.run(0.1)
        assert [each.outcome(other) for each, other in waiting[place:]] == ["held"] + ["waiting"] * (4 - place)
        assert node.holds[token][3].counter == place + 1
        node.release(token)


def test_who_gives_up_is_passed_over():
    network, (one, two, three) = cluster()
    client_id = client_of(network, one)
    first = two.request(client_id)
    network.run(0.1)
    gone = three.request(client_id)
    network.run(0.1)
    last = one.request(client_id)
    three.release(gone)
    network.run(0.1)
    two.release(first)
    network.run(0.1)
    assert one.outcome(last) == "held"
    assert network.granted == 2


@pytest.mark.parametrize("lost", ["TURN_REQUEST", "TURN_GRANT", "TURN_RELEASE"])
def test_every_frame_may_be_lost(lost):
    network, (one, two, three) = cluster()
    client_id = client_of(network, one)
    losses = []

    def lose(source, target, frame):
        if frame[0] == "turn" and FrameType(frame[1][1]).name == lost and len(losses) < 2:
            losses.append(source.name)
            return True
        # Only what the release says tells of the epoch.
        return frame[0] == "row"

    network.lose = lose
    first = two.request(client_id)
    network.run(1.5)
    assert two.outcome(first) == "held"
    epoch = two.find(client_id)
    two.release(first)
    assert two.find(client_id) > epoch
    second = three.request(client_id)
    network.run(3 * RETRY_S + 0.5)
    assert len(losses) == 2
    assert three.outcome(second) == "held"
    assert three.holds[second][3] == two.find(client_id)
    three.release(second)
    network.run(2.0)
    assert one.registration.counters()["turns_kept"] == 0


def test_a_release_that_is_lost_with_the_row_of_what_came_of_it_still_tells_the_epoch():
    network, (one, two, three) = cluster()
    client_id = client_of(network, one)
    first = two.request(client_id)
    network.run(0.1)
    network.lose = lambda source, target, frame: source is two
    two.release(first)
    network.run(0.2)
    network.lose = lambda source, target, frame: frame[0] != "turn"
    second = three.request(client_id)
    network.run(2 * RETRY_S + 0.2)
    assert three.holds[second][3] == two.find(client_id) > NO_EPOCH


def test_frames_doubled_and_late_change_nothing():
    network, (one, two, _) = cluster()
    client_id = client_of(network, one)
    frames = []
    network.lose = lambda source, target, frame: frame[0] == "turn" and bool(frames.append((source, target, frame)))
    for _ in range(3):
        token = two.request(client_id)
        network.run(0.1)
        two.release(token)
        network.run(0.1)
    old = list(frames)
    assert len(old) == 9
    for source, target, frame in old:
        network.send(source, target, frame)
        network.send(source, target, frame)
        network.run(0.1)
    network.run(2.0)
    assert network.granted == 3
    assert one.registration.counters()["turns_kept"] == 0
    token = two.request(client_id)
    network.run(0.1)
    assert two.outcome(token) == "held"


# Deaths and starts.


def test_a_holder_that_dies_frees_its_turn_and_a_waiter_that_dies_its_place():
    network, (one, two, three) = cluster(count=3)
    client_id = client_of(network, one)
    two.request(client_id)
    network.run(0.1)
    two.request(client_id)
    network.run(0.1)
    token = three.request(client_id)
    network.run(0.1)
    network.crash(two.name)
    network.run(network.notice_s + 0.5)
    assert three.outcome(token) == "held"


def test_a_holder_that_restarts_unnoticed_frees_its_turn():
    network, (one, two, three) = cluster()
    client_id = client_of(network, one)
    two.request(client_id)
    network.run(0.1)
    token = three.request(client_id)
    network.run(0.1)
    two.up = False
    network.start(two.name)
    assert two.name in one.peers
    network.run(network.notice_s + 1.5)
    assert three.outcome(token) == "held"
    assert network.granted == 2


def test_requests_go_to_the_new_keeper_when_the_keeper_dies():
    network, nodes = cluster(count=4)
    client_id = client_of(network, nodes[0])
    network.lose = lambda source, target, frame: source is nodes[0]
    tokens = [node.request(client_id) for node in nodes[1:]]
    network.run(0.5)
    network.crash(nodes[0].name)
    network.run(network.notice_s + 1.0)
    assert sorted(node.outcome(token) for node, token in zip(nodes[1:], tokens, strict=True)) == [
        "held",
        "waiting",
        "waiting",
    ]


def test_a_new_keeper_knows_the_turns_that_the_dead_one_granted():
    """Reason: the survey. Without it the next one would have the turn while the holder is in the middle of a move."""
    network, nodes = cluster(count=4)
    client_id = client_of(network, nodes[0])
    holder = nodes[1].request(client_id)
    network.run(0.1)
    network.crash(nodes[0].name)
    network.settle()
    asked = [(node, node.request(client_id)) for node in nodes[2:]]
    network.run(2.0)
    assert [node.outcome(token) for node, token in asked] == ["waiting", "waiting"]
    nodes[1].release(holder)
    network.run(0.1)
    assert [node.outcome(token) for node, token in asked].count("held") == 1
    winner, token = next((node, token) for node, token in asked if node.outcome(token) == "held")
    assert winner.holds[token][3].store_id == nodes[1].store_id


def test_a_keeper_that_restarts_unnoticed_knows_the_turns_that_it_granted_before():
    network, (one, two, three) = cluster()
    client_id = client_of(network, one)
    holder = two.request(client_id)
    network.run(0.1)
    one.up = False
    network.start(one.name)
    waiting = three.request(client_id)
    network.run(network.notice_s + 2.0)
    assert three.outcome(waiting) == "waiting"
    two.release(holder)
    network.run(0.1)
    assert three.outcome(waiting) == "held"


def test_a_member_that_comes_takes_over_the_turns_of_its_client_ids():
    network = Network(count=4)
    network.start(*[f"node{number}@h" for number in range(1, 4)])
    network.settle()
    one, two, _, four = network.nodes.values()
    members = [(node.store_id, node.name) for node in network.nodes.values()]
    client_id = next(
        name for name in map(str, range(100)) if keeper_among(members, name) == four.name
        and keeper_among(members[:3], name) == one.name
    )  # fmt: skip
    holder = two.request(client_id)
    network.run(0.1)
    own = one.request(client_id)
    network.start(four.name)
    network.settle()
    assert (two.outcome(holder), one.outcome(own)) == ("held", "waiting")
    last = four.request(client_id)
    network.run(0.1)
    assert four.outcome(last) == "waiting"
    two.release(holder)
    network.run(0.1)
    assert one.outcome(own) == "held"
    one.release(own)
    network.run(0.1)
    assert four.outcome(last) == "held"
    four.release(last)
    network.run(1.0)
    assert all(node.registration.counters()["turns_kept"] == 0 for node in network.up())


def test_a_turn_of_before_is_told_to_a_keeper_that_hears_its_holder_again():
    network, (one, two, three) = cluster(notice_s=0.1)
    client_id = client_of(network, one)
    network.strict = False
    network.partition(one, two)
    network.partition(two, three)
    network.run(0.5)
    holder = two.request(client_id)
    assert two.outcome(holder) == "held", "alone in its own eyes it keeps everything"
    other = three.request(client_id)
    network.run(3.0)
    assert three.outcome(other) == "held", "and epochs decide between the two"
    network.heal()
    network.settle()
    waiting = one.request(client_id)
    network.run(0.5)
    three.release(other)
    network.run(0.5)
    assert one.outcome(waiting) == "waiting"
    two.release(holder)
    network.run(0.1)
    assert one.outcome(waiting) == "held"


# A keeper that is not settled.


def test_a_new_keeper_grants_only_once_it_is_current():
    network, nodes = cluster(count=4, notice_s=0.1)
    client_id = client_of(network, nodes[0])
    network.crash(nodes[0].name)
    network.lose = lambda source, target, frame: frame[0] != "turn"
    token = nodes[1].request(client_id)
    network.run(AGREEMENT_TIMEOUT_S + 0.5)
    assert nodes[1].outcome(token) == "waiting"
    network.lose = lambda source, target, frame: False
    network.run(HEARTBEAT_S + 0.3)
    assert nodes[1].outcome(token) == "held"


def test_what_became_current_is_noticed_at_once_when_it_is_said():
    current = [False]
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: current[0])
    registration.member_started("b@b", STORES[1], 1, 1.0)
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "a@a")
    registration.request(client_id, 1, 1.0)
    registration.tick(1.0 + AGREEMENT_TIMEOUT_S)
    registration.check_current(3.1)
    assert registration.take_results() == []
    current[0] = True
    registration.check_current(3.1)
    assert [result.token for result in registration.take_results()] == [1]
    registration.check_current(3.2)
    registration.validate()


def test_rows_told_before_a_member_answered_the_survey_are_not_current():
    """Reason: what it gave back to the old keeper in between is in neither, and nobody else would tell of it."""
    network, nodes = cluster(count=3, notice_s=0.1)
    client_id = client_of(network, nodes[0])
    members = [(node.store_id, node.name) for node in nodes[1:]]
    keeper = network.nodes[keeper_among(members, client_id)]
    holder = next(node for node in nodes[1:] if node is not keeper)
    token = holder.request(client_id)
    network.run(0.1)
    # The keeper notices the death first, and has the holder's rows; then the holder gives the turn back to the dead.
    nodes[0].up = False
    network._stops(keeper, keeper.incarnation, nodes[0], nodes[0].incarnation)
    network.run(HEARTBEAT_S + 0.1)
    network.lose = lambda source, target, frame: frame[0] != "turn"
    holder.release(token)
    network._stops(holder, holder.incarnation, nodes[0], nodes[0].incarnation)
    own = keeper.request(client_id)
    network.run(0.5)
    assert keeper.outcome(own) == "waiting"
    network.lose = lambda source, target, frame: False
    network.run(HEARTBEAT_S + 0.3)
    assert keeper.holds[own][3] == holder.find(client_id) > NO_EPOCH


def test_a_keeper_goes_on_with_the_client_ids_that_it_kept_while_others_die():
    network, nodes = cluster(count=4, notice_s=0.1)
    client_id = client_of(network, nodes[0])
    network.crash(nodes[3].name)
    network.run(0.2)
    network.lose = lambda source, target, frame: frame[0] != "turn"
    own = nodes[0].request(client_id)
    assert nodes[0].outcome(own) == "held"
    other = nodes[1].request(client_id)
    nodes[0].release(own)
    network.run(0.1)
    assert nodes[1].outcome(other) == "held"


def test_a_member_that_comes_back_may_bring_news_of_every_client_id():
    """Reason: it may have been in another half of the cluster, where others were the keepers."""
    network, nodes = cluster(count=3, notice_s=0.1)
    client_id = client_of(network, nodes[0])
    network.partition(nodes[0], nodes[1])
    network.partition(nodes[0], nodes[2])
    network.run(3.0)
    token = nodes[1].request(client_id)
    network.run(0.5)
    nodes[1].release(token)
    network.heal()
    # Nobody's rows come for now.
    network.lose = lambda source, target, frame: frame[0] != "turn"
    network.run(0.2)
    token = nodes[0].request(client_id)
    network.run(1.0)
    assert nodes[0].outcome(token) == "waiting"
    network.lose = lambda source, target, frame: False
    network.run(1.0)
    assert nodes[0].holds[token][3] == nodes[1].find(client_id) > NO_EPOCH


def test_members_that_never_agree_delay_a_keeper_but_do_not_stop_it():
    network, nodes = cluster(count=4, notice_s=0.1)
    network.strict = False
    network.partition(nodes[1], nodes[2])
    network.crash(nodes[0].name)
    network.run(0.2)
    client_id = next(
        name
        for name in map(str, range(100))
        if all(nodes[n].registration.keeper(name) == nodes[3].name for n in (1, 2))
    )
    network.run(AGREEMENT_TIMEOUT_S + 0.5)
    token = nodes[1].request(client_id)
    network.run(0.2)
    assert nodes[1].outcome(token) == "held"


def test_members_that_never_agree_and_answer_one_after_the_other_do_not_stop_a_keeper():
    """Each tells its rows with its answer, and again only a second after it was asked: one before the other."""
    told_at = {"b@b": 0.0, "c@c": 0.0}
    epochs = [lambda client_id: NO_EPOCH, lambda since: min(told_at.values()) >= since]
    registration = Registration("a@a", STORES[0], 1, *epochs)
    registration.member_started("b@b", STORES[1], 1, 1.0)
    registration.member_started("c@c", STORES[2], 1, 1.0)
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "a@a")
    registration.request(client_id, 1, 1.0)
    now = 1.0
    while now < 1.0 + AGREEMENT_TIMEOUT_S + 1.5:
        registration.tick(now)
        surveys = [(node, unpack_turn_survey(frame)) for node, frame in registration.take_frames()]
        for node in told_at:
            now += 0.03
            asked = [number for name, number in surveys if name == node]
            for number in asked:
                registration.receive(node, pack_turns_held(number, registration.view() + 1, [])[0], now)
            if asked or now >= told_at[node] + 1.0:
                told_at[node] = now
                registration.check_current(now)
        now += 0.01
    assert [result.token for result in registration.take_results()] == [1]
    registration.validate()


def test_a_request_at_a_node_that_does_not_keep_it_in_its_own_eyes_waits_there():
    """Reason: two nodes see a member come or go at different times; the request is answered once they agree."""
    network, (one, two, three) = cluster(notice_s=0.1)
    members = [(node.store_id, node.name) for node in (one, two, three)]
    client_id = next(
        name for name in map(str, range(100)) if keeper_among(members, name) == three.name
        and keeper_among(members[:2], name) == one.name
    )  # fmt: skip
    three.up = False
    network._stops(two, two.incarnation, three, three.incarnation)
    token = two.request(client_id)
    network.run(1.0)
    assert two.outcome(token) == "waiting"
    network._stops(one, one.incarnation, three, three.incarnation)
    network.run(HEARTBEAT_S + 0.3)
    assert two.outcome(token) == "held"


def test_who_can_not_reach_the_keeper_is_served_by_the_next_best():
    """Reason: a connection between two members may be down for long, and all others work."""
    network, (one, two, three) = cluster(notice_s=0.1)
    network.strict = False
    network.partition(two, three)
    network.run(3.0)
    client_id = next(
        name
        for name in map(str, range(100))
        if two.registration.keeper(name) == one.name and one.registration.keeper(name) == three.name
    )
    first = two.request(client_id)
    second = two.request(client_id)
    network.run(AGREEMENT_TIMEOUT_S - 0.1)
    assert two.outcome(first) == "waiting"
    network.run(RETRY_S + 0.2)
    assert (two.outcome(first), two.outcome(second)) == ("held", "waiting")
    two.release(first)
    network.run(RETRY_S + 0.2)
    assert two.outcome(second) == "held"


# The keeper against what is malformed, late or too much.


def keeper_of_b():
    """A settled node a@a with a member b@b, and a client id that a@a keeps."""
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    registration.tick(1.0 + AGREEMENT_TIMEOUT_S)
    registration.take_frames()
    return registration, next(name for name in map(str, range(99)) if registration.keeper(name) == "a@a")


def test_a_request_of_an_older_life_and_one_of_nobody_who_runs_are_nothing():
    registration, client_id = keeper_of_b()
    registration.receive("b@b", request_frame(4 << NUMBER_BITS | 1, client_id), 4.0)
    registration.receive("c@c", request_frame(5 << NUMBER_BITS | 1, client_id), 4.0)
    assert registration.take_frames() == []
    assert registration.counters()["turns_kept"] == 0
    assert registration.counters()["turn_frames_of_strangers"] == 1


def test_what_is_no_frame_of_registration_is_a_frame_error():
    registration, _ = keeper_of_b()
    for frame in (b"", b"\x01", b"\x01\x04", b"\x02\x14", pack_turn_survey(1)[:-1]):
        with pytest.raises(FrameError):
            registration.receive("b@b", frame, 4.0)
    registration.validate()


def test_a_holder_tells_a_keeper_that_it_hears_only_now():
    """Reason: the keeper may have heard this node for long, and has no reason to ask."""
    keeper, client_id = keeper_of_b()
    holder = Registration("b@b", STORES[1], 5, lambda client_id: NO_EPOCH, lambda since: True)
    holder.request(client_id, 1, 3.5)
    holder.member_started("a@a", STORES[0], 1, 3.6)
    frames = [frame for _, frame in holder.take_frames() if frame[1] == FrameType.TURNS_HELD]
    assert [unpack_turns_held(frame).held for frame in frames] == [[((5 << NUMBER_BITS) + 1, client_id)]]
    keeper.receive("b@b", frames[0], 3.7)
    keeper.request(client_id, 2, 3.8)
    assert keeper.take_results() == []
    holder.release(1, NO_EPOCH, 4.0)
    ((node, release),) = holder.take_frames()
    assert node == "a@a"
    keeper.receive("b@b", release, 4.1)
    assert [result.token for result in keeper.take_results()] == [2]
    keeper.validate()


def test_a_part_of_what_is_held_that_was_lost_is_not_taken_for_told():
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    ((_, survey),) = registration.take_frames()
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "a@a")
    registration.request(client_id, 1, 1.0)
    held = [((5 << NUMBER_BITS) + number, f"{number}".ljust(65535, "x")) for number in range(9)]
    first, *others = pack_turns_held(unpack_turn_survey(survey), registration.view(), held)
    for frame in others:
        registration.receive("b@b", frame, 1.1)
    assert registration.take_results() == []
    for frame in (first, others[0], first, *others):
        registration.receive("b@b", frame, 1.2)
    assert [result.token for result in registration.take_results()] == [1]
    registration.validate()


def test_a_keeper_that_runs_anew_is_asked_at_once_and_its_life_before_has_no_say():
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "b@b")
    registration.request(client_id, 1, 1.0)
    number = unpack_turn_requests(registration.take_frames()[-1][1])[-1].number
    registration.member_started("b@b", STORES[1], 6, 1.1)
    requests = [frame for _, frame in registration.take_frames() if frame[1] == FrameType.TURN_REQUEST]
    assert requests == [request_frame(number, client_id)]
    registration.receive("b@b", grant_frame(5 << ROUND_BITS | 9, number, client_id, NO_EPOCH), 1.2)
    assert registration.take_results() == []
    registration.receive("b@b", grant_frame(6 << ROUND_BITS, number, client_id, NO_EPOCH), 1.3)
    assert [result.token for result in registration.take_results()] == [1]


def test_a_turn_that_was_this_nodes_own_to_keep_for_a_while_is_given_back_here_too():
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    two = [(STORES[0], "a@a"), (STORES[1], "b@b")]
    client_id = next(
        name for name in map(str, range(99)) if keeper_among(two, name) == "b@b"
        and keeper_among([two[0], (STORES[2], "c@c")], name) == "c@c"
    )  # fmt: skip
    registration.member_started("b@b", STORES[1], 5, 1.0)
    registration.request(client_id, 1, 1.0)
    number = unpack_turn_requests(registration.take_frames()[-1][1])[-1].number
    registration.receive("b@b", grant_frame(5 << ROUND_BITS, number, client_id, NO_EPOCH), 1.1)
    registration.member_stopped("b@b", 1.2)
    assert registration.holders(client_id) == [("a@a", number)]
    registration.member_started("c@c", STORES[2], 1, 1.3)
    registration.release(1, NO_EPOCH, 1.4)
    assert registration.holders(client_id) == []
    assert kinds(registration.take_frames())[-1] == ("c@c", "TURN_RELEASE")
    registration.validate()


def test_who_knows_a_newer_epoch_than_the_keeper_does_goes_by_that():
    known = Epoch(9, 9, STORES[0])
    registration = Registration("a@a", STORES[0], 1, lambda client_id: known, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "b@b")
    registration.request(client_id, 1, 1.0)
    number = unpack_turn_requests(registration.take_frames()[-1][1])[-1].number
    registration.receive("b@b", grant_frame(5 << ROUND_BITS, number, client_id, NO_EPOCH), 1.2)
    assert registration.take_results() == [Granted(1, client_id, known)]


def test_a_late_survey_is_not_answered():
    """Its keeper has asked anew since, and would not take the answer."""
    registration = alone()
    registration.member_started("b@b", STORES[1], 5, 1.0)
    registration.take_frames()
    registration.receive("b@b", pack_turn_survey((5 << ROUND_BITS) + 2), 1.1)
    assert len(registration.take_frames()) == 1
    registration.receive("b@b", pack_turn_survey((5 << ROUND_BITS) + 1), 1.2)
    registration.receive("b@b", pack_turn_survey((4 << ROUND_BITS) + 9), 1.3)
    assert registration.take_frames() == []


def test_a_keeper_that_is_back_with_another_store_counts_its_rounds_from_the_beginning():
    registration = alone()
    registration.member_started("b@b", STORES[1], 1, 1.0)
    registration.receive("b@b", pack_turn_survey((1 << ROUND_BITS) + 9), 1.1)
    registration.member_stopped("b@b", 1.2)
    registration.member_started("b@b", STORES[2], 1, 1.3)
    registration.take_frames()
    registration.receive("b@b", pack_turn_survey((1 << ROUND_BITS) + 1), 1.4)
    assert kinds(registration.take_frames()) == [("b@b", "TURNS_HELD")]
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "b@b")
    registration.request(client_id, 1, 1.5)
    number = unpack_turn_requests(registration.take_frames()[-1][1])[-1].number
    registration.receive("b@b", grant_frame((1 << ROUND_BITS) + 1, number, client_id, NO_EPOCH), 1.6)
    assert [result.token for result in registration.take_results()] == [1]


def test_a_claim_that_waits_longer_than_any_asker_is_forgotten():
    registration, client_id = keeper_of_b()
    registration.request(client_id, 1, 4.0)
    registration.receive("b@b", request_frame(5 << NUMBER_BITS | 1, client_id), 4.0)
    registration.tick(8.5)
    registration.tick(9.5)
    registration.release(1, NO_EPOCH, 9.6)
    assert registration.take_frames() == []
    assert registration.counters()["turns_kept"] == 0
    registration.validate()


def test_one_node_has_only_so_many_claims():
    registration, client_id = keeper_of_b()
    for number in range(CLAIMS_MAX + 3):
        registration.receive("b@b", request_frame((5 << NUMBER_BITS) + number, client_id), 4.0)
    assert registration.counters()["turns_refused"] == 3
    registration.request(client_id, 1, 4.0)
    registration.member_stopped("b@b", 4.1)
    assert [result.token for result in registration.take_results()] == [1], "the others' room is their own"
    registration.validate()


def test_a_grant_of_an_earlier_round_is_not_taken_and_is_repeated_in_the_next():
    """Reason: the keeper had thought this node dead, and may have given its turn to another since."""
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    client_id = next(name for name in map(str, range(99)) if registration.keeper(name) == "b@b")
    registration.request(client_id, 1, 1.0)
    request = next(frame for node, frame in registration.take_frames() if frame[1] == FrameType.TURN_REQUEST)
    number = unpack_turn_requests(request)[-1].number
    asked = Registration("b@b", STORES[1], 5, lambda client_id: NO_EPOCH, lambda since: True)
    asked.member_started("a@a", STORES[0], 1, 1.0)
    asked.tick(1.0 + AGREEMENT_TIMEOUT_S)
    asked.take_frames()
    asked.receive("a@a", request, 3.1)
    ((_, grant),) = asked.take_frames()
    late = unpack_turn_grants(grant)[-1]
    registration.receive("b@b", pack_turn_survey(late.round + 1), 3.2)
    assert kinds(registration.take_frames())[-1] == ("b@b", "TURNS_HELD")
    registration.receive("b@b", grant, 3.3)
    assert registration.take_results() == [] and registration.take_frames() == []
    registration.receive("b@b", grant_frame(late.round + 1, number, client_id, late.epoch), 3.4)
    assert [result.token for result in registration.take_results()] == [1]
    registration.validate()


def test_a_request_has_a_number_of_its_own_at_every_keeper_and_each_time():
    """Reason: a grant that is under way while the request leaves and comes back has been released in between."""
    registration = Registration("a@a", STORES[0], 1, lambda client_id: NO_EPOCH, lambda since: True)
    registration.member_started("b@b", STORES[1], 5, 1.0)
    two = [(STORES[0], "a@a"), (STORES[1], "b@b")]
    client_id = next(
        name for name in map(str, range(99)) if keeper_among(two, name) == "b@b"
        and keeper_among([*two, (STORES[2], "c@c")], name) == "c@c"
    )  # fmt: skip
    registration.take_frames()
    registration.request(client_id, 1, 1.1)
    registration.member_started("c@c", STORES[2], 1, 1.2)
    registration.member_stopped("c@c", 1.3)
    frames = [(node, frame) for node, frame in registration.take_frames() if frame[1] <= FrameType.TURN_RELEASE]
    assert kinds(frames) == [
        ("b@b", "TURN_REQUEST"),
        ("b@b", "TURN_RELEASE"),
        ("c@c", "TURN_REQUEST"),
        ("b@b", "TURN_REQUEST"),
    ]
    first, *_, last = (int.from_bytes(frame[2:10], "big") for _, frame in frames)
    registration.receive("b@b", grant_frame(5 << ROUND_BITS, first, client_id, NO_EPOCH), 1.4)
    assert registration.take_results() == []
    assert kinds(registration.take_frames()) == [("b@b", "TURN_RELEASE")]
    registration.receive("b@b", grant_frame(5 << ROUND_BITS, last, client_id, NO_EPOCH), 1.4)
    assert [result.token for result in registration.take_results()] == [1]
    registration.validate()


def test_a_released_epoch_is_remembered_for_a_while_and_within_bounds():
    rows = {}
    registration = Registration(
        "a@a", STORES[0], 1, lambda client_id: rows.get(client_id, NO_EPOCH), lambda since: True
    )
    registration.member_started("b@b", STORES[1], 5, 1.0)
    registration.tick(1.0 + AGREEMENT_TIMEOUT_S)
    mine = [name for name in map(str, range(99)) if registration.keeper(name) == "a@a"]

    def granted(client_id, now):
        registration.request(client_id, 1, now)
        (result,) = registration.take_results()
        registration.release(1, NO_EPOCH, now)
        return result.epoch

    for count, client_id in enumerate(mine):
        registration.receive("b@b", release_frame(5 << NUMBER_BITS, client_id, Epoch(count + 1, 0, STORES[1])), 4.0)
    assert granted(mine[2], 5.0) == Epoch(3, 0, STORES[1])
    rows[mine[2]] = Epoch(4, 0, STORES[0])
    assert granted(mine[2], 5.0) == Epoch(4, 0, STORES[0]), "the row of a newer one has come"
    rows[mine[2]] = Epoch(2, 7, STORES[2])
    assert granted(mine[2], 5.0) == Epoch(3, 7, STORES[2]), "others may see it come yet, though it is gone"
    del rows[mine[2]]
    assert granted(mine[2], 5.0) == Epoch(3, 0, NO_EPOCH.store_id)
    assert granted(mine[2], 4.0 + RELEASED_S) == NO_EPOCH
    rows[mine[4]] = Epoch(9, 0, STORES[1])
    registration.receive("b@b", release_frame(5 << NUMBER_BITS, mine[4], rows[mine[4]]), 5.0)
    del rows[mine[4]]
    assert granted(mine[4], 5.0) == Epoch(9, 0, NO_EPOCH.store_id), "the row came first"
    assert granted(mine[3], 4.0 + RELEASED_S) == NO_EPOCH
    for count in range(RELEASED_MAX):
        frame = release_frame(5 << NUMBER_BITS, f"more {count}", Epoch(1, 0, STORES[1]))
        registration.receive("b@b", frame, 5.0)
    assert granted(mine[1], 5.0) == NO_EPOCH, "the oldest go first"
    registration.validate()


def test_nobody_waits_for_longer_than_5_seconds_whatever_the_keeper_does():
    network, (one, two, _) = cluster()
    network.lose = lambda source, target, frame: source is one
    client_id = client_of(network, one)
    token = two.request(client_id)
    network.run(REQUEST_S)
    assert two.outcome(token) == "over"
    assert network.timed_out == 1
    network.lose = lambda source, target, frame: False
    network.run(1.0)
    assert one.registration.counters()["turns_kept"] == 0
