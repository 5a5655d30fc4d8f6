"""broker.core.arrival: what a session remembers of old homes stays small however often they come again."""

import pytest

from broker.core.arrival import Arrival
from broker.core.arrival_value import pack_arrival, unpack_arrival
from broker.core.cuts import Cuts
from broker.core.direct_homes import DIRECT_MAX
from broker.core.epoch import Epoch
from broker.core.message import Delivery, Message
from broker.core.places import ANYBODY, GIVEN_MAX, LEGACY_BITS, PLACE_BITS, first_place_of, is_legacy
from broker.core.subscription import subscription

OLD, OTHER, ORIGIN, THIRD = b"o" * 16, b"p" * 16, b"q" * 16, b"r" * 16


def end(arrival: Arrival, low: int, high: int, counter: int = 1) -> None:
    """An old home gives what is between two of its places, and has said its last word."""
    donor = arrival.donor(OLD)
    donor.counter = counter
    donor.low, donor.watermark = (counter << PLACE_BITS) + low, (counter << PLACE_BITS) + high
    arrival.end(OLD)


def was_given(arrival: Arrival, seq: int, counter: int = 1) -> bool:
    return arrival.was_given(OTHER, arrival.donor(OTHER), (counter << PLACE_BITS) + seq)


def test_what_was_given_in_parts_that_adjoin_is_remembered_as_one() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    for number in range(1000):
        end(arrival, 10 * number, 10 * number + 10)
    assert len(arrival.places.given) == 1
    end(arrival, 20_000, 20_010)
    end(arrival, 5, 15, counter=2)
    assert len(arrival.places.given) == 3
    assert [was_given(arrival, seq) for seq in (0, 1, 10_000, 10_001, 20_000, 20_001)] == [
        *(False, True, True, False, False, True)
    ]
    assert was_given(arrival, 6, counter=2) and not was_given(arrival, 16, counter=2)


def test_a_part_between_two_joins_them() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    for low, high in ((0, 5), (10, 15), (3, 12)):
        end(arrival, low, high)
    assert len(arrival.places.given) == 1
    assert was_given(arrival, 1) and was_given(arrival, 15) and not was_given(arrival, 16)


def test_what_an_old_home_had_directly_is_told_once() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    for number in (5, 3, 9):
        arrival.direct.add_giver(OLD, 4, ORIGIN, number)
    assert arrival.direct.givers == {(OLD, ORIGIN): (4, 5)}
    again = unpack_arrival(pack_arrival(arrival))
    assert again.direct.givers == arrival.direct.givers and pack_arrival(again) == pack_arrival(arrival)
    place = (3 << PLACE_BITS) + 1
    assert again.direct.gives_later(OTHER, ORIGIN, 5, place) and not again.direct.gives_later(OLD, ORIGIN, 5, place)


def test_what_an_old_home_has_given_to_another_comes_from_there() -> None:
    """Though it had that directly itself: it has it no more, and its place says whose it was."""
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct.add_giver(OLD, 4, ORIGIN, 5)
    assert not arrival.direct.gives_later(OTHER, ORIGIN, 6, (4 << PLACE_BITS) + 1)
    assert arrival.direct.gives_later(OTHER, ORIGIN, 6, (3 << PLACE_BITS) + 1)


def test_what_two_old_homes_had_directly_the_later_one_gives() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct.add_giver(OLD, 4, ORIGIN, 5)
    arrival.direct.add_giver(OTHER, 5, ORIGIN, 6)
    assert arrival.direct.gives_later(OLD, ORIGIN, 7, (4 << PLACE_BITS) + 1)
    assert not arrival.direct.gives_later(OTHER, ORIGIN, 7, (5 << PLACE_BITS) + 1)


def came_later(arrival: Arrival, counter: int, number: int) -> bool:
    """Say whether a home later than that of an epoch counter had it directly."""
    donor = arrival.donor(OTHER)
    donor.counter = counter
    return arrival.came_later(donor, arrival.cuts, ORIGIN, number)


def test_what_a_later_home_had_directly_no_older_one_needs_to_give() -> None:
    """Whoever told of that one: it may have given everything away, and be over."""
    arrival = Arrival(9 << PLACE_BITS)
    for counter, number in ((4, 5), (6, 9)):
        arrival.direct.add(ORIGIN, counter, number)
    again = unpack_arrival(pack_arrival(arrival))
    assert again.direct.known == arrival.direct.known and not again.direct.givers
    assert pack_arrival(again) == pack_arrival(arrival)
    assert [came_later(again, 3, number) for number in (4, 5, 9)] == [False, True, True]
    assert [came_later(again, 5, number) for number in (5, 8, 9)] == [False, False, True]
    assert not came_later(again, 6, 9)
    # Nobody needs to know of a home after which, or with which, another one had as much.
    arrival.direct.add(ORIGIN, 5, 9)
    assert arrival.direct.known == {ORIGIN: {4: 5, 6: 9}}
    arrival.direct.add(ORIGIN, 7, 5)
    assert arrival.direct.known == {ORIGIN: {7: 5}}


def test_what_older_homes_had_directly_is_told_but_not_of_filters_that_came_late() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct.add(ORIGIN, 4, 5)
    arrival.set_cut(ORIGIN, 20)
    assert arrival.told_direct(9) == [(4, ORIGIN, 5), (9, ORIGIN, 20)]
    late = Cuts([b"late"])
    arrival.late.append(late)
    arrival.set_cut(ORIGIN, 30)
    assert not arrival.came_later(arrival.donor(OLD), late, ORIGIN, 7)
    assert arrival.told_direct(9) == [(9, ORIGIN, 30)]


def test_what_another_old_home_had_directly_it_does_not_give_for_filters_that_came_late() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct.add_giver(OTHER, 4, ORIGIN, 5)
    arrival.come_late([b"late"], THIRD, 1)
    late = arrival.cuts_of(b"late", {b"late": subscription(1)})
    place = (1 << PLACE_BITS) + 1
    assert arrival.gives_later(OLD, arrival.cuts, ORIGIN, 7, place)
    assert not arrival.gives_later(OLD, late, ORIGIN, 7, place)


def test_what_is_wanted_at_qos_0_alone_came_directly_for_no_filter_that_came_late() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    subscriptions = {b"a/#": subscription(0), b"a/b": subscription(1)}
    arrival.come_late([b"a/b"], THIRD, 1)
    (late,) = arrival.late
    assert arrival.cuts_of(b"a/b", subscriptions) is late
    assert arrival.cuts_of(b"a/b", {**subscriptions, b"a/+": subscription(1)}) is arrival.cuts
    arrival.come_late([b"a/b"], THIRD, 7)
    assert arrival.cuts_of(b"a/b", subscriptions) is arrival.late[1], "what counts is since when more is wanted"


def test_of_homes_that_had_everything_directly_not_all_are_remembered_for_ever() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    for number in range(1, 1000):
        arrival.direct.add(ORIGIN, number, number)
    assert len(arrival.direct.known[ORIGIN]) == DIRECT_MAX
    assert came_later(arrival, 0, 1) and came_later(arrival, DIRECT_MAX - 1, 2000)


def test_of_what_came_directly_only_what_was_not_given_away_is_here() -> None:
    """A stub gave all but the last of what it had of an origin, and all that it had of another."""
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct_from = 5 << PLACE_BITS
    arrival.kept = {ORIGIN: 7}
    arrival = unpack_arrival(pack_arrival(arrival))
    place = (5 << PLACE_BITS) + 1
    assert [arrival.has_had(arrival.cuts, ORIGIN, number, place) for number in (6, 7, 8)] == [False, True, True]
    assert not arrival.has_had(arrival.cuts, OTHER, 99, place)
    # From the next on that comes directly it is.
    assert arrival.takes(arrival.cuts, OTHER, 100)
    assert [arrival.has_had(arrival.cuts, OTHER, number, place) for number in (99, 100, 101)] == [False, True, True]


def comes_again(arrival: Arrival, number: int, others: bool = False) -> bool:
    return arrival.comes_again(ORIGIN, number, others)


def test_what_an_origin_sent_to_two_old_homes_is_taken_once() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.donor(OLD)
    assert not comes_again(arrival, 5) and not comes_again(arrival, 5)
    arrival.donor(OTHER)
    assert [comes_again(arrival, number) for number in (5, 6, 5, 6)] == [False, False, True, True]
    assert not comes_again(arrival, 0) and not comes_again(arrival, 0)
    # The one of which it came first may have said its last word since.
    arrival.end(OLD)
    assert [comes_again(arrival, number) for number in (6, 7, 7)] == [True, False, False]


def test_what_an_origin_sent_to_an_old_home_that_is_not_heard_yet_is_taken_once() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.donor(OLD)
    assert not comes_again(arrival, 5, others=True) and not comes_again(arrival, 6)
    arrival.donor(OTHER)
    assert [comes_again(arrival, number) for number in (5, 6)] == [True, False]


def test_a_stub_leaves_out_what_an_old_home_passed_on() -> None:
    """What the origin sends directly as well, on a slower way, comes when the session leaves again (seed 114)."""
    arrival = Arrival(9 << PLACE_BITS)
    arrival.cuts.note_relayed(ORIGIN, 7)
    arrival.is_stub = True
    assert [arrival.takes(arrival.cuts, ORIGIN, number) for number in (6, 7, 8)] == [False, False, True]


def test_a_stub_does_not_take_for_all_of_an_origin_what_others_want_there() -> None:
    """It has not heard of that one's cut: an old home gives what nobody else wants, and not once more what came."""
    arrival = Arrival(9 << PLACE_BITS)
    arrival.donor(OLD)
    arrival.set_cut(OTHER, 5)
    arrival.is_stub = True
    assert [arrival.takes(arrival.cuts, origin, 7) for origin in (ORIGIN, OTHER)] == [True, True]
    assert arrival.direct_cuts() == [(OTHER, 5)]
    assert [arrival.has_had(arrival.cuts, ORIGIN, number, 1) for number in (7, 8)] == [False, False]
    assert [comes_again(arrival, number) for number in (7, 8)] == [True, False]
    # What it gives to the next home it may get back.
    arrival.give_away(ORIGIN, 7)
    assert not comes_again(arrival, 7)


def test_a_stub_that_had_everything_directly_has_that_from_the_first_one_on() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.direct_from = 5 << PLACE_BITS
    arrival.is_stub = True
    assert [arrival.takes(arrival.cuts, ORIGIN, number) for number in (7, 8)] == [True, True]
    assert arrival.direct_cuts() == [(ORIGIN, 7)]


def test_what_a_later_home_had_waits_for_an_older_one_of_which_it_told() -> None:
    """The older home has something left, and the later one lost sight of it (seed 210)."""
    third = Arrival(first_place_of(3))
    third.introduce(OLD, 2)
    third.inherit(OTHER, 2)
    third.set_cut(ORIGIN, 5)
    third = unpack_arrival(pack_arrival(third))
    assert third.gate() == first_place_of(2)
    third.donors[OTHER].passed[ORIGIN] = 5
    assert third.gate() == first_place_of(3)
    third.donors[OTHER].passed = {}
    third.donors[OLD].passed[ORIGIN] = 5
    third.introduce(OTHER, 1)
    assert not third.donors[OTHER].inherited
    assert third.gate() == first_place_of(2)
    third.donors[OTHER].present = False
    assert third.gate() == 0
    third.inherit(OTHER, 1)
    assert not third.donors[OTHER].inherited, "it was heard of itself"


def test_what_a_later_home_gives_of_an_origin_waits_for_what_an_older_one_has_of_it() -> None:
    """The origin reached the later one alone, and not this node either, which has no cut of it (seed 30119)."""
    third = Arrival(first_place_of(3))
    third.introduce(OTHER, 1)
    third.introduce(OLD, 2)
    third.await_older(third.cuts, ORIGIN, 0, first_place_of(2) + 1)
    assert third.gate() == 0, "it has no order"
    third.await_older(third.cuts, ORIGIN, 7, first_place_of(1) + 1)
    assert third.gate() == 0, "the older one had given it to the later one"
    third.await_older(third.cuts, ORIGIN, 7, first_place_of(2) + 2)
    third = unpack_arrival(pack_arrival(third))
    other = third.donors[OTHER]
    assert third.gate() == first_place_of(2) and not third.donors[OLD].passed
    other.present = False
    assert third.gate() == 0
    other.present = True
    other.passed[ORIGIN] = 5
    assert third.gate() == 0
    third.await_older(third.cuts, ORIGIN, 9, first_place_of(2) + 3)
    assert third.gate() == 0, "it has passed on what it had"
    third.await_older(third.cuts, THIRD, 5, first_place_of(2) + 4)
    assert third.gate() == first_place_of(2) and third.hold_new_only() == []
    assert third.gate() == 0, "that took too long"
    third.introduce(OTHER, 1)
    third.set_cut(THIRD, 6)
    assert third.gate() == first_place_of(2)
    other.passed[THIRD] = 6
    third.donors[OLD].passed[THIRD] = 6
    assert third.gate() == 0
    third.await_older(third.cuts, THIRD, 6, first_place_of(2) + 5)
    third.introduce(b"s" * 16, 1)
    third.await_older(third.cuts, THIRD, 6, first_place_of(2) + 5)
    assert third.donors[b"s" * 16].passed == {}, "the cut says what is waited for"


def test_old_homes_of_one_epoch_counter_have_places_of_their_own() -> None:
    """Two halves of a partition made them, and a third home meets both: their places look alike."""
    third = Arrival(first_place_of(3))
    seq = first_place_of(2) + 1
    places = []
    for store_id in (OLD, OTHER, OLD):
        third.introduce(store_id, 2)
        donor = third.donor(store_id)
        assert third.was_given(store_id, donor, seq) == (len(places) == 2), "only what it gave before, it gave"
        places.append(third.place(donor, seq))
        donor.low, donor.watermark = seq - 1, seq
        third.end(store_id)
        third = unpack_arrival(pack_arrival(third))
    assert places[0] == places[2] == seq
    assert first_place_of(1) < places[1] < first_place_of(2) and not is_legacy(places[1])
    third.introduce(ORIGIN, 2)
    third.introduce(THIRD, 3)
    places += [third.place(third.donor(ORIGIN), seq), third.place(third.donor(THIRD), first_place_of(3) + 1)]
    assert places[3] not in places[:3] and first_place_of(2) < places[4] < third.first_seq


def test_what_an_old_home_gave_it_does_not_give_again_whatever_it_is_called() -> None:
    """A removed node comes back as a donor, under another identity, and is no rival of what it was."""
    place = first_place_of(1) + 5
    for is_over in (False, True):
        arrival = Arrival(9 << PLACE_BITS)
        arrival.introduce(OLD, 1)
        donor = arrival.donor(OLD)
        donor.low, donor.watermark, donor.gone = 0, first_place_of(1) + 10, True
        if is_over:
            arrival.end(OLD)
            arrival = unpack_arrival(pack_arrival(arrival))
        arrival.introduce(OTHER, 1)
        again = arrival.donor(OTHER)
        assert arrival.was_given(OTHER, again, place)
        assert not arrival.was_given(OTHER, again, place + 6)
        assert arrival.place(again, place + 6) == place + 6


def left_out(place: int, taken: int) -> Arrival:
    """One old home gives from a place of its own to the 60th; another says that it had taken everything to a place."""
    arrival = Arrival(first_place_of(3))
    arrival.introduce(OLD, 1)
    arrival.introduce(OTHER, 2)
    own = first_place_of(1)
    old = arrival.donor(OLD)
    arrival.begin_part(OLD, old, own)
    old.watermark = own + place
    arrival.skip(OLD, own + taken, 2)
    arrival.begin_part(OLD, old, own + place)
    old.watermark = own + 60
    return arrival


def test_what_a_store_kept_for_an_older_home_is_not_what_was_taken_of_its_own() -> None:
    """Another home had taken all that a node had as the home; then the node gives what it kept for one before it."""
    arrival = Arrival(first_place_of(4))
    arrival.introduce(OTHER, 3)
    arrival.skip(OLD, first_place_of(2) + 44, 3)
    kept = arrival.donor(OLD)
    kept.counter = 1
    place = first_place_of(1) + (1 << LEGACY_BITS) + 7
    arrival.begin_part(OLD, kept, place - 1)
    assert not arrival.was_given(OLD, kept, place)
    assert kept.low == place - 1
    kept.counter = 2
    assert arrival.was_given(OLD, kept, place), "what it had got of that as the home is"


def given(arrival: Arrival, store_id: bytes) -> list[int]:
    """Of the places of the first home return those in which everything is here, so that nobody need give it."""
    own = first_place_of(1)
    return [place for place in range(1, 70) if arrival.was_given(store_id, arrival.donor(store_id), own + place)]


@pytest.mark.parametrize(
    ("place", "taken", "of_old"),
    [(0, 44, [*range(45, 61)]), (20, 44, [*range(1, 21), *range(45, 61)]), (50, 44, [*range(1, 61)])],
)
def test_what_was_left_out_of_one_old_home_comes_from_the_other_that_had_it(
    place: int, taken: int, of_old: list[int]
) -> None:
    arrival = left_out(place, taken)
    assert given(arrival, OTHER) == of_old
    assert set(range(1, taken + 1)) <= set(given(arrival, OLD))
    assert given(unpack_arrival(pack_arrival(arrival)), OTHER) == of_old
    # Another part changes nothing.
    arrival.begin_part(OLD, arrival.donor(OLD), first_place_of(1) + 60)
    arrival.end(OLD)
    assert given(arrival, OTHER) == given(unpack_arrival(pack_arrival(arrival)), OTHER) == of_old


def test_a_removed_home_that_left_something_out_is_no_rival_of_what_it_was() -> None:
    arrival = left_out(20, 44)
    arrival.donor(OLD).gone = True
    arrival.end(OLD)
    arrival.introduce(THIRD, 1)
    assert given(arrival, THIRD) == [*range(1, 21), *range(45, 61)]
    place = first_place_of(1) + 30
    assert arrival.place(arrival.donor(THIRD), place) == place


def test_what_is_behind_what_another_old_home_had_taken_waits_for_that_one() -> None:
    arrival = left_out(0, 44)
    other = arrival.donor(OTHER)
    assert arrival.gate() == first_place_of(1) + 45
    arrival.end(OLD)
    assert arrival.gate() == first_place_of(1) + 45 and arrival.holds_old()
    other.watermark = first_place_of(1) + 44
    assert arrival.gate() == 0 and not arrival.holds_old()
    other.watermark = 0
    other.passed[ORIGIN] = 0
    assert arrival.gate() == first_place_of(1) + 45, "it is awaited, and has passed on nothing"
    other.passed[ORIGIN] = 1
    assert arrival.gate() == 0, "there was no more of it"
    del other.passed[ORIGIN]
    other.present = False
    assert arrival.gate() == 0
    other.present = True
    arrival.hold_new_only()
    assert arrival.gate() == 0


def test_an_arrival_of_an_earlier_program_can_be_read() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    arrival.introduce(OLD, 1)
    donor = arrival.donor(OLD)
    donor.low, donor.watermark = 0, 10
    arrival.end(OLD)
    arrival.skip(OTHER, 77, 5)
    arrival.touch(b"a/b", 7)
    packed = pack_arrival(arrival)
    given = OLD + bytes((0, 0, 0, 1)) + bytes(8) + (10).to_bytes(8, "big") + b"\0"
    skip = OTHER + (77).to_bytes(8, "big") + (5).to_bytes(4, "big")
    assert packed.count(given + skip) == 1
    touched = b"a/b" + (7).to_bytes(4, "big")
    earlier = b"\x01" + packed[1:].replace(given + skip, given[16:-1] + skip[:-4]).replace(touched, touched[:3])
    read = unpack_arrival(earlier)
    assert read.places.given == [(ANYBODY, 1, 0, 10, 0)]
    assert read.skips[OTHER][0] == 77
    assert read.is_touched_since(b"a/b", 100) and not read.is_touched_since(b"a", 0)
    assert unpack_arrival(packed).touched == {b"a/b": 7}
    assert unpack_arrival(pack_arrival(read)).places.given == read.places.given


def test_what_was_kept_for_a_home_that_gave_what_is_before_and_behind_it_had_come_there() -> None:
    """What has a place of an older home, or was retained, may have come there on another way, and before."""
    arrival = Arrival(first_place_of(3))
    own, legacy = first_place_of(1) + 1, first_place_of(1) + (1 << LEGACY_BITS)
    gives = [(OLD, 5, own, False), (OLD, 7, own + 1, False), (OLD, 8, legacy, False), (OLD, 9, own + 2, True)]
    gives += [(OLD, 10, 2, False), (OTHER, 20, own, False)]
    for store_id, number, place, retain in gives:
        arrival.introduce(store_id, 1)
        delivery = Delivery(place, Message(b"a/b", b"", origin=ORIGIN, number=number), 1, retain)
        arrival.note_given(store_id, delivery, place)
    arrival.end(OLD)
    for state in (arrival, unpack_arrival(pack_arrival(arrival))):
        assert [number for number in range(4, 22) if state.was_had(ORIGIN, number, legacy + 5)] == [5, 6, 7, 20]
        assert not state.was_had(THIRD, 6, legacy + 5)
        assert not state.was_had(ORIGIN, 6, legacy + (1 << PLACE_BITS)), "it was kept for another home"
        assert not state.was_had(ORIGIN, 6, own + 1), "the home itself gives it"
    arrival.given.clear()
    assert not unpack_arrival(b"\x02" + pack_arrival(arrival)[1:-4]).given


def test_a_removed_home_goes_on_under_another_identity() -> None:
    arrival = Arrival(first_place_of(3))
    arrival.donor(OLD).watermark = 7
    assert not arrival.come_again(OTHER, THIRD)
    assert not arrival.come_again(OLD, OTHER), "it is a member still"
    arrival.donors[OLD].gone = True
    arrival.donors[OLD].present = False
    arrival.donor(OTHER)
    assert not arrival.come_again(OLD, OTHER), "that one has given something of its own"
    arrival.skip(OLD, 9, 2)
    assert arrival.come_again(OLD, THIRD)
    assert list(arrival.donors) == [OTHER, THIRD]
    assert arrival.skips == {THIRD: (9, 2)}, "another one had taken more of it"
    again = arrival.donors[THIRD]
    assert (again.watermark, again.gone, again.present) == (7, False, True)


def test_what_a_removed_home_may_still_have_is_known_when_nothing_else_is_to_come() -> None:
    """No more than that; nothing waits for it, and it is not forgotten for its silence."""
    arrival = Arrival(2 << PLACE_BITS)
    arrival.donor(OLD).watermark = 7
    arrival.donor(OLD).present = False
    arrival.set_cut(ORIGIN, 3)
    arrival.come_late([b"late"], THIRD, 9)
    arrival.set_cut(ORIGIN, 5)
    arrival.rest(2)
    arrival = unpack_arrival(pack_arrival(arrival))
    arrival.donors[OLD].gone = True
    arrival.donors[OLD].inherited = True
    assert arrival.is_apart() and not arrival.late and not arrival.gate() and arrival.hold_new_only() == []
    assert sorted(arrival.told_direct(4)) == [(2, ORIGIN, 5), (2, THIRD, 9)]
    assert arrival.come_again(OLD, OTHER)
    donor = arrival.donors[OTHER]
    donor.counter = 1
    assert donor.watermark == 7
    assert [arrival.came_later(donor, arrival.cuts, ORIGIN, number) for number in (4, 5)] == [False, True]
    arrival.end(OTHER)
    assert not arrival.donors


def test_of_a_client_that_goes_to_and_fro_the_latest_is_remembered() -> None:
    arrival = Arrival(9 << PLACE_BITS)
    for counter in range(1, 2 * GIVEN_MAX):
        arrival.come_back(Epoch(counter, 0, OLD), 0)
        arrival.introduce(OTHER, counter)
        donor = arrival.donor(OTHER)
        donor.low, donor.watermark = first_place_of(counter), first_place_of(counter) + 10
        arrival.end(OTHER)
    assert len(arrival.places.given) == GIVEN_MAX
    assert arrival.places.given[-1][1] == 2 * GIVEN_MAX - 1
    assert len(unpack_arrival(pack_arrival(arrival)).places.given) == GIVEN_MAX


def test_what_was_to_come_directly_holds_up_nothing() -> None:
    """Who kept it for the present home is no older one."""
    arrival = Arrival(first_place_of(9))
    arrival.set_cut(ORIGIN, 5)
    donor = arrival.donor(OTHER)
    assert arrival.gate() == arrival.first_seq
    donor.direct = True
    assert arrival.gate() == 0
    again = unpack_arrival(pack_arrival(arrival))
    assert again.donors[OTHER].direct and pack_arrival(again) == pack_arrival(arrival)
