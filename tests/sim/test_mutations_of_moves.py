"""The simulator finds bugs between nodes: in turns, moves, the registry and what is retained. Each is planted here.

Most break a scene of `test_sequences`, which is written down for just that; the others some early seed.
"""

import pytest
import test_sequences as sequences
from builds import interpreted
from planting import caught, without

from broker.core.arrival import Arrival
from broker.core.direct_homes import DirectHomes
from broker.core.lifetimes import Lifetimes
from broker.core.retained import RetainedStore
from broker.core.session_store import SessionStore
from broker.core.storage import PUT
from broker.core.transfer import Transfers
from cluster.arrivals import Arrivals
from cluster.clock import HybridClock
from cluster.departures import Departures
from cluster.moving import Moving
from cluster.own_tables import OwnTables
from cluster.registrar import Registrar
from cluster.turn_keeper import TurnKeeper


def fails(scene):
    """Play a scene, and fail if it ends well."""
    with pytest.raises(AssertionError) as noticed:
        scene()
    print(noticed.value)


# Turns.


@interpreted
def test_a_keeper_that_grants_before_it_knows_what_others_know_is_caught(monkeypatch):
    monkeypatch.setattr(TurnKeeper, "_is_settled", lambda self, now: True)
    fails(sequences.a_new_keeper_has_not_heard_of_a_new_session)


@interpreted
def test_a_connack_before_the_head_is_here_is_caught(monkeypatch):
    resolve = Registrar._resolve

    def answer_at_once(self, waiting, latest, now):
        resolve(self, waiting, latest, now)
        if waiting.event.connection in self._waiting:
            self._finish(waiting, b"", now)

    monkeypatch.setattr(Registrar, "_resolve", answer_at_once)
    assert "was lost at" in caught()


# Moves.


@interpreted
def test_a_stub_that_ends_before_all_have_switched_is_caught(monkeypatch):
    monkeypatch.setattr(Departures, "_have_all_switched", lambda self, switched: True)
    monkeypatch.setattr(Arrivals, "_missing", lambda self, session, node: [])
    fails(sequences.a_publishers_node_has_not_heard_of_a_move)


@interpreted
def test_two_old_homes_that_leave_it_to_each_other_are_caught(monkeypatch):
    monkeypatch.setattr(
        DirectHomes,
        "gives_later",
        lambda self, donor, origin, number, seq: any(
            of == origin and number >= first and by != donor for (by, of), (_, first) in self.givers.items()
        ),
    )
    fails(sequences.two_old_homes_have_what_came_directly)


@interpreted
def test_an_old_home_that_counts_as_given_what_was_left_out_of_it_is_caught(monkeypatch):
    def begin_part(self, store_id, donor, after):
        if donor.low < 0:
            donor.low = after

    monkeypatch.setattr(Arrival, "begin_part", begin_part)
    fails(sequences.a_home_does_not_know_what_the_next_one_took_when_the_session_moves_on)


@interpreted
def test_an_old_home_that_does_not_wait_for_what_another_took_of_it_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "places_taken", lambda self: [])
    fails(sequences.an_old_home_has_more_than_the_next_one_took_when_the_session_moves_on)


@interpreted
@pytest.mark.parametrize("is_late", [False, True])
def test_a_new_home_that_awaits_an_older_one_for_its_own_cuts_alone_is_caught(monkeypatch, is_late):
    monkeypatch.setattr(Arrival, "await_older", lambda self, cuts, origin, number, place: None)
    fails(lambda: sequences.an_origin_reaches_the_second_of_two_old_homes_alone(is_late))


@interpreted
@pytest.mark.parametrize("is_known", [True, False])
def test_a_new_home_that_expects_nothing_of_whom_it_has_not_heard_is_caught(monkeypatch, is_known):
    monkeypatch.setattr(Arrivals, "_may_have_others", lambda self, client_id, donor: False)
    fails(lambda: sequences.an_old_home_gives_what_another_one_had_that_is_not_heard_yet(2, is_known))


@interpreted
def test_a_home_that_forgets_with_a_restart_what_old_homes_gave_is_caught(monkeypatch):
    monkeypatch.setattr(SessionStore, "put_given_ids", lambda self, session: None)
    fails(lambda: sequences.a_home_restarts_between_what_two_old_homes_give(1))


@interpreted
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_stub_that_takes_a_part_for_all_that_its_session_wants_is_caught(monkeypatch, comes_back):
    def take(self, cuts, origin, number):
        cuts.set(origin, number)
        return number >= cuts.numbers[origin]

    monkeypatch.setattr(Arrival, "_stub_takes", take)
    fails(lambda: sequences.a_stub_gets_what_others_there_want(comes_back))


@interpreted
def test_a_new_home_that_knows_no_packet_ids_is_caught(monkeypatch):
    begin = Transfers.begin_arrival

    def forget(self, head, *arguments):
        head.incoming = {}
        return begin(self, head, *arguments)

    monkeypatch.setattr(Transfers, "begin_arrival", forget)
    fails(sequences.a_publisher_sends_again_elsewhere)


@interpreted
def test_a_new_home_that_takes_what_the_old_one_has_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "takes", lambda self, cuts, origin, number: True)
    caught()


@interpreted
def test_a_new_home_that_does_not_let_the_old_go_first_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "gate", lambda self: 0)
    fails(sequences.new_messages_come_before_old_ones)


def test_a_stub_that_acknowledges_what_it_does_not_store_is_caught():
    def forget(node, effects):
        departures = node.core.owner.transfers.departures.values()
        numbers = {departure.session.number.to_bytes(8, "big") for departure in departures}
        without(effects, lambda kind, family, key, value: kind == PUT and family == "queue" and key[:8] in numbers)

    caught(lambda world: world.mutations.append(forget))


# The registry.


@interpreted
def test_a_clean_start_that_forgets_older_sessions_elsewhere_is_caught(monkeypatch):
    monkeypatch.setattr(Moving, "_end_older", lambda self, client_id, epoch, told, is_away: None)
    fails(sequences.a_session_began_anew_while_its_old_home_was_away)


@interpreted
def test_an_end_that_is_told_for_ever_is_caught(monkeypatch):
    monkeypatch.setattr(OwnTables, "_forget_end", lambda self, subject: None)
    fails(sequences.a_session_ended_while_its_old_home_was_away)


# Joining with data, and clocks.


@interpreted
def test_retained_messages_that_join_as_the_newest_are_caught(monkeypatch):
    monkeypatch.setattr(RetainedStore, "become_oldest", lambda self, writes, clock: None)
    fails(sequences.a_node_with_data_joins)


@interpreted
def test_sessions_that_join_as_the_newest_are_caught(monkeypatch):
    monkeypatch.setattr(Lifetimes, "become_oldest", lambda self, was_member: None)
    fails(sequences.a_node_with_data_joins)


@interpreted
def test_a_session_that_takes_for_its_own_what_another_half_had_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "has_had", lambda self, cuts, origin, number, seq: self.direct_from > 0)
    fails(sequences.a_session_began_in_both_halves)


@interpreted
def test_a_clock_that_believes_anything_is_caught(monkeypatch):
    def believe(self, stamp, utc_ms):
        self.newest = max(self.newest, stamp)
        return stamp

    monkeypatch.setattr(HybridClock, "receive", believe)
    assert "ahead of its clock" in caught(seeds=range(1, 60, 6))
