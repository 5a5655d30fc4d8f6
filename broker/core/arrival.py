"""Arrivals: what a session that came from another node is still owed from there, and from where it gets what.

An Arrival owns the cuts and the watermarks of one session at its new home. It knows nothing of frames, queues or
connections: `transfer` asks it. `cuts`, `direct_homes` and `places` are its parts, `arrival_value` is its stored form.

Theory of operation
-------------------
While a session moves, a message may reach its new home on two ways: forwarded by the node where it was published (its
origin), and through the old home, which goes on taking what is routed to it. A message's number says which one counts.
`cuts[origin]` is the first number of that origin that was routed when the new home was already known there:

    directly, from an origin without a cut, or below its cut       not for this session: the old home has it
    directly, from the cut on                                      for this session
    from an old home, below the cut or of an origin without one    for this session
    from an old home, from the cut on                              had already, directly

QoS 0 has no numbers. Directly it is for this session once its origin's cut is known, which is heard of in line with it:
what came before was sent when the session was elsewhere, and may have been given to the client there.

When all old homes have said their last word, every member has a cut, and nobody passes on anything. Who has none then
joined later. It may know the session from other members, before it hears this node and has a mark in its stream: what
it sends then comes on no other way, and is for this session. It is known by its id, as an old home of which nothing was
heard yet may have it as well.

An old home passes on what an origin sends in the order of its numbers. So when a cut is heard of late, what came that
way until then (`relayed`) came wholly, and the cut is behind it. What the origin sends directly, on a slow link
perhaps, overlaps with that: the arrival is not over before the direct way has come as far.

What a later home had directly has higher places in the queue than all that comes from older ones. It waits behind the
gate while an origin's messages come directly and an old home before it has not said that it has passed on everything
below the cut (`passed`). An old home that is not there holds up nobody. What another old home gives waits only so long
for one before it, and for one of which only that has told, as it was still to give something (`inherited`). What it
gives behind that which a later one had taken of it is younger than that, and waits for that one to give it.

An origin may reach a later one of the old homes and not the one before it, nor yet this node, of which there is no cut
then. What the later one had of it directly waits until the one before it has passed on anything of that origin: it has
all by then that was sent there before.

Each old home (a donor) numbers its deliveries by their places, so its `watermark` is the last place that was taken.
Several old homes may have the same delivery: a stub deletes what the next home has committed when it hears of it, which
it may not have. So the next home says how far it had taken from others (`skips`); that counts for none of those that
has been the home again since, as it may have got back what it gave. And what comes in a place of a stub's own that the
stub has given already (`low` to `watermark`, or in `places` before that and when it is over) is left out. What was
skipped it has not given: that comes from the one that had taken it, in the same places. What an origin sends to two old
homes, since it has heard of nothing yet, has a place of its own at each: while there are several, or may be such of
which nothing was heard yet, the ids of what they gave are remembered, as what the client took of that is nowhere else.

What an old home had directly (`givers`) and has not given away it gives itself: what has a place of an older home is
left out. When it has given that away, or is not heard of any more, a still older home and who kept something for that
one need not give it all the same (`known`). These may have been away for many homes: each tells the next of all before
it.

A session that comes back to a node where its stub still stood has had everything directly all the time (`direct_from`):
of what its other home has left only those deliveries count that it got from here. So has one that began here, to which
another comes that began elsewhere, in the other half of a partition or in a node that joined: but of that everything
counts, since nobody there knew of the one here.

Who kept something for the present home itself, which it could not send there while it was a member, gives what was to
come directly: that counts as what does, and is placed behind what did before.

What a stub had directly and gave to its new home it has no more. When the session comes back to it, only what it has
`kept` came directly here: of each origin everything from a number on. No more than that it tells the next home that it
had, as the other one may be back as a donor, and give the rest.

A stub hears of no cuts any more, and takes whatever comes while old homes still give something: an origin that knows of
it may have sent that here alone. Of one whose cut it had not heard it may be sent only what others here want, and what
nobody else wants stays with the older homes. So it says nothing of what it had directly of that one, and knows what it
took by the ids.

An origin may not have heard that an old home took what it sent there, and keep that for it when it is removed. So
it is remembered from which number to which that home gave what it had of an origin (`given`): what is between is all.
A donor, which had nothing while it was no member, gives of such an origin only what is before all that this kept.

An old home whose node was removed says no last word, and may come back for as long as the session lives, as a donor.
When nothing else is to come the arrival rests: it knows what was had directly and how far each of these had been taken,
and holds up nothing. What a stub took of an origin without a cut is known by the ids alone: these wait in the store
until one of those homes is back, or the session leaves. What is published then all comes directly, as to a session with
a life of its own. The next home is told of these old homes as well, but of no ids, and rests in turn. An arrival rests
until the session ends, or each of them has come back and said its last word. A donor that had the session for itself to
the last has it under its new identity alone, by which nobody knows which of them it was: then it ends with the session.

Subscriptions of homes that meet are merged by filter: a home's word counts for those that the client made or ended
there (`touched`), the latest home's first, whichever is heard first; for all others an older home knows more than a
later one that was made of what the others had heard of it. What such a one has by that stays, whatever still older
homes say, until the one of whom it was heard is there. For a session that began here, of which nobody at the old home
knew, only what the client said here counts, unless it may not have heard that it had none (`unheard` of the session).
What only filters match that came in this way (`late`) did not come directly before: such filters have cuts of their
own. So have those that came from QoS 0, at which nothing is kept for a client that is away: what one had then,
connected, it may have once more.

Invariant: the gate is closed exactly while a donor that is there has not passed on everything below a cut, or anything
of an origin of which it is awaited, and at the first place that a home after it gave; or has not given what it had
taken of another one, and behind that.
"""

from typing import Final, final

from broker.core.cuts import Cuts
from broker.core.direct_homes import DirectHomes
from broker.core.epoch import Epoch
from broker.core.message import Delivery
from broker.core.places import (
    ANYBODY,
    GIVEN_MAX,
    NOWHERE,
    PLACE_BITS,
    UNPLACED,
    GivenPlaces,
    first_place_of,
    is_legacy,
    place_in_range,
)
from broker.core.subscription import QOS_MASK, Subscription
from broker.mqtt.topics import SHARE_PREFIX, matches

# A client that makes and ends other subscriptions all the time, while an old home is away, is not remembered for ever.
TOUCHED_MAX: Final = 10_000


@final
class Donor:
    """An old home: the last place that was taken from it, and below which number of each origin it has passed on all.

    `heir` says that the session goes on here as it was there, with its packet ids; else it has a life of its own.
    `row_counter` says that it has, and was made of what the old home had told the others, by that epoch counter; 0 that
    it was not. What has the place `before` or a later one is younger than all that it gives. `direct` says that it is
    none, but has what was to come directly. Of an origin that it has `passed` on below 0 it is awaited, as a later old
    home gave something of that already.
    """

    __slots__ = (
        "before",
        "counter",
        "direct",
        "gone",
        "heir",
        "inherited",
        "low",
        "passed",
        "present",
        "rival",
        "row_counter",
        "watermark",
    )

    def __init__(self) -> None:
        self.watermark: int = 0
        # The epoch counter by which it was the home; its own places are of that. -1 for the low until it has given any.
        self.counter: int = 0
        self.low: int = -1
        self.heir = False
        self.direct = False
        self.row_counter: int = 0
        self.inherited = False
        self.before: int = NOWHERE
        self.passed: dict[bytes, int] = {}
        # Whether the donor's node runs, as far as is known.
        self.present = True
        # Whether its node is no member any more: if its store comes back, that is under another identity.
        self.gone = False
        # Its range among those of the same epoch counter, 0 for the places themselves, or UNPLACED.
        self.rival: int = 0


@final
class Arrival:
    """What is still to come to one session; `first_seq` is the first place of its present home.

    `direct_from`, unless it is 0, says that everything came directly that has this or a later place elsewhere.
    """

    __slots__ = (
        "cuts",
        "direct",
        "direct_from",
        "donors",
        "first_seq",
        "fresh_ids",
        "given",
        "id_rows",
        "ids",
        "is_stub",
        "kept",
        "late",
        "places",
        "skips",
        "touched",
    )

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.direct_from: int = 0
        # Whether the session leaves again: then it takes whatever comes.
        self.is_stub = False
        # Those of all filters, but for those that came `late`.
        self.cuts = Cuts([])
        self.late: list[Cuts] = []
        # The filters that the client made or ended here or at an old home that was heard -> that one's epoch counter.
        # Those of which that was noted last are at the end.
        self.touched: dict[bytes, int] = {}
        self.donors: dict[bytes, Donor] = {}
        # What donors gave that are over, and which ranges rivals have.
        self.places = GivenPlaces()
        # Old home -> up to which place another one had everything of it, and that one's epoch counter.
        self.skips: dict[bytes, tuple[int, int]] = {}
        # What homes before this one had directly.
        self.direct = DirectHomes()
        # (old home, its epoch counter, origin) -> the first and last number that it gave of that, in places of its own.
        self.given: dict[tuple[bytes, int, bytes], tuple[int, int]] = {}
        # Origin -> the numbers that old homes gave while there were several, or may have been, or came without a cut.
        self.ids: dict[bytes, set[int]] = {}
        # Those of them that are not stored yet, and in how many rows the others are.
        self.fresh_ids: dict[bytes, list[int]] = {}
        self.id_rows: int = 0
        # Origin -> from which number on what came directly is here, not before; None: all of it is.
        self.kept: dict[bytes, int] | None = None

    def donor(self, store_id: bytes) -> Donor:
        """Return what is known of an old home."""
        donor = self.donors.get(store_id)
        if donor is None:
            donor = Donor()
            self.donors[store_id] = donor
        return donor

    def touch(self, topic_filter: bytes, counter: int) -> None:
        """The client makes or ends a subscription at the home of an epoch counter."""
        self.touched.pop(topic_filter, None)
        self.touched[topic_filter] = counter
        if len(self.touched) > TOUCHED_MAX:
            del self.touched[next(iter(self.touched))]

    def is_touched_since(self, topic_filter: bytes, counter: int) -> bool:
        """Say whether the client made or ended a subscription at the home of an epoch counter, or at a later one."""
        return self.touched.get(topic_filter, -1) >= counter

    def come_late(self, filters: list[bytes], origin: bytes, number: int) -> None:
        """An old home has these filters, for which nothing that is kept came directly; `origin` is this node."""
        for cuts in self.late:
            cuts.filters = [each for each in cuts.filters if each not in filters]
        self.late.append(Cuts(filters))
        self.set_cut(origin, number)

    def cuts_of(self, topic: bytes, subscriptions: dict[bytes, Subscription]) -> Cuts:
        """Return the cuts that count for a topic; `subscriptions` are all of the session."""
        if not self.late:
            return self.cuts
        came_late = [cuts for cuts in self.late if any(matches(topic_filter, topic) for topic_filter in cuts.filters)]
        if not came_late:
            return self.cuts
        late = {topic_filter for cuts in self.late for topic_filter in cuts.filters}
        for topic_filter, wanted in subscriptions.items():
            is_own = topic_filter not in late and not topic_filter.startswith(SHARE_PREFIX)
            if is_own and wanted.options & QOS_MASK and matches(topic_filter, topic):
                return self.cuts
        return came_late[0]

    def takes(self, cuts: Cuts, origin: bytes, number: int) -> bool:
        """Say whether a message that came directly, for which these cuts count, is for the session."""
        if self.is_stub:
            return self._stub_takes(cuts, origin, number)
        if self.direct_from and cuts is self.cuts:
            self._keep(origin, number)
            return True
        if not cuts.takes(origin, number) and not (self._is_later(cuts, origin) and self._is_new(cuts, origin, number)):
            return False
        self._keep(origin, number)
        return True

    def _is_later(self, cuts: Cuts, origin: bytes) -> bool:
        """Say whether an origin joined when the last old home had said its last word, and none has what it sends."""
        return not self.donors and origin not in cuts.numbers

    def _is_new(self, cuts: Cuts, origin: bytes, number: int) -> bool:
        """Say whether no old home passed on or gave a message of an origin without a cut, and note it."""
        return number > cuts.relayed.get(origin, -1) and not self.comes_again(origin, number, True)

    def _stub_takes(self, cuts: Cuts, origin: bytes, number: int) -> bool:
        """Say the same of a session that leaves again: it takes all but what an old home passed on."""
        if self.direct_from and cuts is self.cuts:
            # From the first one on it has them all.
            cuts.set(origin, number)
        if origin in cuts.numbers:
            return number >= cuts.numbers[origin]
        return self._is_new(cuts, origin, number)

    def takes_unnumbered(self, cuts: Cuts, origin: bytes) -> bool:
        """Say the same of QoS 0: whether its origin knew, when it sent that, that the session is here."""
        is_direct = self.is_stub or (self.direct_from != 0 and cuts is self.cuts)
        return is_direct or not self.donors or origin in cuts.numbers

    def _keep(self, origin: bytes, number: int) -> None:
        if self.kept is not None and number:
            self.kept.setdefault(origin, number)

    def set_cut(self, origin: bytes, number: int) -> bool:
        """Hear in an origin's stream from which number on it sends directly; false if that is known."""
        is_new = False
        for cuts in self.all_cuts():
            is_new |= cuts.set(origin, number)
        return is_new

    def all_cuts(self) -> list[Cuts]:
        """Return the cuts of all filters."""
        return [self.cuts, *self.late]

    def direct_cuts(self) -> list[tuple[bytes, int]]:
        """Return from which number of each origin on everything came directly, and is here, whatever matches it."""
        kept = self.cuts.numbers if self.kept is None else self.kept
        return [
            (origin, max([kept[origin], *[cuts.numbers[origin] for cuts in self.all_cuts()]]))
            for origin in self.cuts.numbers
            if origin in kept and all(origin in cuts.numbers for cuts in self.late)
        ]

    def overlaps_with(self, origin: bytes) -> bool:
        """Say whether something is still to come directly from an origin that an old home passed on."""
        return any(cuts.overlaps_with(origin) for cuts in self.all_cuts())

    def overlaps(self) -> bool:
        """Say whether that is so of any origin."""
        return any(cuts.overlaps_with(origin) for cuts in self.all_cuts() for origin in cuts.relayed)

    def introduce(self, store_id: bytes, counter: int) -> None:
        """An old home says by which epoch counter it was that."""
        donor = self.donor(store_id)
        if donor.counter != counter:
            donor.counter = counter
            donor.rival = self._range_of(store_id, counter)
        if store_id in self.skips and counter > self.skips[store_id][1]:
            # It has been the home again since, and may have got that back.
            del self.skips[store_id]
        donor.inherited = False
        donor.before = first_place_of(counter + 1)

    def _range_of(self, store_id: bytes, counter: int) -> int:
        """Return the range for the places of an old home, 0 if no other home has places of its epoch counter.

        UNPLACED if it is to get the next one that is free when it gives the first that has such a place: in front of
        that comes what others gave to it, in ranges that it gave them.
        """
        known = self.places.range_of(store_id, counter)
        if known >= 0:
            # It comes again.
            return known
        if (
            first_place_of(counter) == self.first_seq
            or any(
                its_id != store_id and its.counter == counter and not its.gone for its_id, its in self.donors.items()
            )
            or self.places.are_of_rivals(counter)
            or any(its_id != store_id for its_id in self._passed_on_of(counter))
        ):
            return UNPLACED
        return 0

    def _passed_on_of(self, counter: int) -> list[bytes]:
        """Return the old homes of which others say that they had places of an epoch counter of them.

        Not those that are no members: they may be back under another identity.
        """
        return [
            store_id
            for store_id, (place, _counter) in self.skips.items()
            if place >> PLACE_BITS == counter and store_id in self.donors and not self.donors[store_id].gone
        ]

    def _sources(self, donor: Donor, seq: int) -> list[bytes]:
        """Return the old homes of one of which a donor had what it passes on with this place; none: it may be anybody.

        It says of whom it had such places. A rival of that one gave other things in the same.
        """
        counter = seq >> PLACE_BITS
        return list(self.skips) if counter != donor.counter and self._passed_on_of(counter) else []

    def _is_of_rivals(self, donor: Donor, seq: int) -> bool:
        """Say whether a rival of the one of whom a donor had what it passes on has given what has that place here."""
        sources = self._sources(donor, seq)
        if not sources or is_legacy(seq):
            return False
        counter = seq >> PLACE_BITS
        return self.places.include_of_others(seq, sources) or any(
            other.counter == counter and not other.rival and 0 <= other.low < seq <= other.watermark
            for other_id, other in self.donors.items()
            if other_id not in sources
        )

    def inherit(self, store_id: bytes, counter: int) -> None:
        """The home of this epoch counter says that an older one has something left for it."""
        if store_id not in self.donors:
            donor = self.donor(store_id)
            donor.inherited = True
            donor.before = first_place_of(counter)

    def skip(self, store_id: bytes, place: int, counter: int) -> None:
        """The home of an epoch counter says that it had everything of an older one up to a place there."""
        donor = self.donors.get(store_id)
        if donor is None or donor.counter <= counter:
            known_place, known_counter = self.skips.get(store_id, (0, counter))
            self.skips[store_id] = (max(place, known_place), min(counter, known_counter))

    def _skipped_to(self, store_id: bytes, donor: Donor) -> int:
        """Return up to which place of an old home another one has taken everything.

        Of a store that gives what it had kept for an older home, places of later homes that it had itself say nothing.
        """
        place = self.skips[store_id][0] if store_id in self.skips else 0
        return place if place >> PLACE_BITS <= donor.counter else 0

    def holds_old(self) -> bool:
        """Say whether what an old home gives may have to wait for another one before it."""
        return any(donor.before < self.first_seq for donor in self.donors.values()) or bool(self.places_taken())

    def hold_new_only(self) -> list[bytes]:
        """Let nothing that an old home gave wait any more; return the old homes that were not heard of themselves.

        Those are left out that are no members: nobody hears of these before they come back.
        """
        for donor in self.donors.values():
            donor.before = NOWHERE
        return [store_id for store_id, donor in self.donors.items() if donor.inherited and not donor.gone]

    def has_relayed(self) -> bool:
        """Say whether old homes gave something that may still come directly, whether a cut is known or not."""
        return any(cuts.relayed for cuts in self.all_cuts())

    def rest(self, counter: int) -> None:
        """Nothing comes to this home, of an epoch counter, any more, unless an old one that was removed is back.

        The ids of what others gave are to be read from the store then.
        """
        direct = DirectHomes()
        for its_counter, origin, number in self.told_direct(counter):
            direct.add(origin, its_counter, number)
        self.direct = direct
        self.direct_from = NOWHERE
        self.cuts = Cuts([])
        self.late = []
        self.kept = None
        self.given = {}
        self.ids = {}
        for donor in self.donors.values():
            donor.before = NOWHERE
            donor.passed = {}
            donor.present = False
            donor.gone = True

    def come_again(self, former: bytes, store_id: bytes) -> bool:
        """An old home that was removed is back under another identity, and goes on from where it was; say whether so.

        Otherwise what it had from older homes, in their places, would seem to be new.
        """
        donor = self.donors.get(former)
        if donor is None or not donor.gone or store_id in self.donors:
            return False
        del self.donors[former]
        if former in self.skips:
            self.skips[store_id] = self.skips.pop(former)
        donor.gone = False
        donor.present = True
        self.donors[store_id] = donor
        return True

    def end(self, store_id: bytes) -> None:
        """An old home has said its last word."""
        donor = self.donors.pop(store_id, None)
        if donor is None or donor.low < 0:
            return
        giver = store_id
        if donor.gone:
            giver = ANYBODY
            self.places.lose_name(store_id, donor.counter)
        self.places.add(giver, donor.counter, donor.low, max(donor.low, donor.watermark), donor.rival)

    def begin_part(self, store_id: bytes, donor: Donor, after: int) -> None:
        """An old home gives what follows a place there.

        What another one had taken of that is left out, and comes from that one in the same places: it does not count as
        given by this one, as what came before it does.
        """
        if donor.low < 0:
            donor.low = after
        skipped = self._skipped_to(store_id, donor)
        if skipped > donor.watermark:
            if donor.low < donor.watermark:
                self.places.add(store_id, donor.counter, donor.low, donor.watermark, donor.rival)
            donor.low = max(donor.low, skipped)

    def come_back(self, epoch: Epoch, place: int) -> None:
        """The session, which was here by an epoch, is back: what it gave up to this place another home has, and gives.

        It has places of its own of that epoch, which no rival is to have.
        """
        for donor in self.donors.values():
            if donor.low >= 0:
                donor.low = max(donor.low, min(place, donor.watermark))
        self.places.come_back(epoch, place)
        # What is stored of them may have been given away, and come back.
        self.fresh_ids = {origin: sorted(numbers) for origin, numbers in self.ids.items() if numbers}

    def told_direct(self, counter: int) -> list[tuple[int, bytes, int]]:
        """Return (epoch counter, origin, number) of what this home, of an epoch counter, and older ones had directly.

        Those had not what only filters match that came late. Of one to which the session came back it is told what it
        had before that.
        """
        told = []
        if not self.late:
            told = self.direct.all()
        if self.kept is None:
            told.extend([(counter, origin, number) for origin, number in self.direct_cuts()])
        return told

    def came_later(self, donor: Donor, cuts: Cuts, origin: bytes, number: int) -> bool:
        """Say whether a home later than a donor had a delivery directly, for which these cuts count.

        It gives that, has given it, or left it out since another later one had it. Who kept something for a home that
        is gone gives it as that home, whatever it had itself.
        """
        return cuts is self.cuts and self.direct.is_after(donor.counter, origin, number)

    def gives_later(self, store_id: bytes, cuts: Cuts, origin: bytes, number: int, seq: int) -> bool:
        """Say whether another old home had what one gives directly, for which these cuts count, and gives it."""
        return cuts is self.cuts and self.direct.gives_later(store_id, origin, number, seq)

    def was_given(self, store_id: bytes, donor: Donor, seq: int) -> bool:
        """Say whether a delivery of a donor, by its place there, came from another one, or is to come from there."""
        if seq <= self._skipped_to(store_id, donor):
            return True
        counter = seq >> PLACE_BITS
        # What has a place of its own there, nobody else had: a rival has other things in the same places.
        is_own = counter == donor.counter
        sources = self._sources(donor, seq)
        for other_id, other in self.donors.items():
            if other is donor or counter != other.counter or (is_own and not other.gone):
                continue
            if 0 <= other.low < seq <= other.watermark and (not sources or other_id in sources):
                return True
        return self.places.include(store_id, seq, is_own, sources)

    def has_had(self, cuts: Cuts, origin: bytes, number: int, seq: int) -> bool:
        """Say whether a delivery of an old home, by its place there, came directly as well by the cuts that count."""
        if self.kept is not None and number and number < self.kept.get(origin, NOWHERE):
            return False
        if self.direct_from and cuts is self.cuts:
            return seq >= self.direct_from
        return cuts.had(origin, number)

    def give_away(self, origin: bytes, number: int) -> None:
        """A delivery was given to the next home, which may give it back."""
        numbers = self.ids.get(origin)
        if numbers is not None:
            numbers.discard(number)

    def is_brought(self, seq: int) -> bool:
        """Say whether what has this place here came through an old home."""
        return not self.direct_from and seq < self.first_seq

    def comes_again(self, origin: bytes, number: int, others: bool) -> bool:
        """Say whether a delivery of an old home was given by another one before, or came directly without a cut.

        `others` says that there may be such of which nothing was heard yet.
        """
        numbers = self.ids.get(origin)
        if numbers is not None and number in numbers:
            return True
        if others or len(self.donors) > 1:
            self.note_id(origin, number)
            if number and not self.is_stub:
                self.fresh_ids.setdefault(origin, []).append(number)
        return False

    def note_id(self, origin: bytes, number: int) -> None:
        """An old home gave a delivery, which another one may give as well."""
        if number:
            self.ids.setdefault(origin, set()).add(number)

    def note_given(self, store_id: bytes, delivery: Delivery, seq: int) -> None:
        """An old home gives a delivery, by its place there.

        A retained message may have come there before what its origin had sent earlier.
        """
        donor = self.donors[store_id]
        message = delivery.message
        if not message.number or delivery.retain or not self.is_own(donor, seq):
            return
        key = (store_id, donor.counter, message.origin)
        # What was given last is remembered longest.
        first, last = self.given.pop(key, (message.number, message.number))
        self.given[key] = (min(first, message.number), max(last, message.number))
        if len(self.given) > GIVEN_MAX:
            del self.given[next(iter(self.given))]

    def was_had(self, origin: bytes, number: int, seq: int) -> bool:
        """Say whether what was kept for a home that is gone, by its place, had come there and was given by that."""
        return is_legacy(seq) and any(
            of == origin and counter == seq >> PLACE_BITS and first <= number <= last
            for (_, counter, of), (first, last) in self.given.items()
        )

    def await_older(self, cuts: Cuts, origin: bytes, number: int, place: int) -> None:
        """An old home gave a delivery with a place here: older ones are to pass on first what they have of its origin.

        Where these cuts, which count for it, have one of the origin, that says already what is waited for.
        """
        if number and origin not in cuts.numbers:
            for donor in self.donors.values():
                if place >= donor.before:
                    donor.passed.setdefault(origin, 0)

    def others_gave(self) -> bool:
        """Say whether more than one old home has given something, or may have."""
        return len(self.donors) > 1 or bool(self.places.given)

    def is_own(self, donor: Donor, seq: int) -> bool:
        """Say whether a place at an old home is one that it gave itself."""
        return seq >> PLACE_BITS == donor.counter and not is_legacy(seq)

    def place(self, donor: Donor, seq: int) -> int:
        """Return the place here of a delivery with the place `seq` at an old home."""
        is_beside = self._is_of_rivals(donor, seq) or (self.is_own(donor, seq) and donor.rival != 0)
        if seq < self.first_seq and not is_beside:
            self.places.note(seq)
            return seq
        # The donor, or one before it, was a home of the same epoch counter as another one, beyond a partition.
        if donor.rival in (0, UNPLACED):
            donor.rival = self.places.new_range(first_place_of(seq >> PLACE_BITS) == self.first_seq)
        return place_in_range(donor.rival, seq, self.first_seq)

    def is_apart(self) -> bool:
        """Say whether nobody at the old homes knew of the session here: everything counts that either side has."""
        return self.direct_from == NOWHERE

    def has_present_donor(self, besides: bytes) -> bool:
        """Say whether an old home that is there, another one than that, has not said its last word."""
        return any(donor.present for store_id, donor in self.donors.items() if store_id != besides)

    def waits_for(self) -> list[Cuts]:
        """Return the cuts below which an old home has to pass on everything before what came directly goes out."""
        return self.late if self.direct_from else self.all_cuts()

    def gate(self) -> int:
        """Return the place from which on everything has to wait, 0 for none."""
        waits_for = self.waits_for()
        gate = min([place + 1 for place in self.places_taken()], default=NOWHERE)
        for donor in self.donors.values():
            if not donor.present or donor.direct:
                continue
            if not all(cuts.are_passed(donor.passed) for cuts in waits_for):
                gate = min(gate, donor.before, self.first_seq)
            elif 0 in donor.passed.values():
                # Only as long as what one old home gives waits for another one.
                gate = min(gate, donor.before)
        return 0 if gate == NOWHERE else gate

    def places_taken(self) -> list[int]:
        """Return up to which places of others an old home, which is there, had taken what it has not given yet.

        What those give behind is younger. One that has passed on anything has given all that it had taken before.
        """
        taken = []
        for store_id, (place, counter) in self.skips.items():
            of = self.donors.get(store_id)
            if of is not None and (of.rival or not self._skipped_to(store_id, of)):
                # It has other places here.
                continue
            for donor in self.donors.values():
                waits = donor.present and donor.before != NOWHERE and not any(donor.passed.values())
                if waits and donor.counter == counter and donor.watermark < place:
                    taken.append(place)
        return taken
