"""Places: where a delivery stands in the queue of a session that has had several homes, and which places are taken.

A place is a delivery's sequence number in its session's queue: the epoch counter of the home that gave it, then a rank.
So what an older home gave is in front of what a later one did, and a delivery keeps its place when the session moves.
Homes of the same epoch counter, which a partition makes, would give the same places: all but one have theirs put below
that one's, a range each.

`GivenPlaces` remembers, for one session, which places old homes gave that are over, or that left something out since,
and which ranges rivals have. It knows nothing of messages: `arrival` asks it.
"""

from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.message import ORIGIN_BYTES

# A home's places begin with its epoch's counter; below are the places of those that had the session before.
PLACE_BITS: Final = 40
# A range is given once: a rival may bring what others, which were rivals of its own, had given to it in theirs.
RIVALS_MAX: Final = 31
# Of a rival that has no range yet.
UNPLACED: Final = 255
# Places with this bit alone above it are of what others kept for a home that is gone.
LEGACY_BITS: Final = 38
RIVAL_BITS: Final = 34
# A place behind all others.
NOWHERE: Final = (1 << 64) - 1
# An old home that may come again under another identity.
ANYBODY: Final = bytes(ORIGIN_BYTES)
# So much of what old homes gave is remembered, the latest, of a client that goes to and fro while another one is away.
GIVEN_MAX: Final = 1000


def first_place(epoch: Epoch) -> int:
    """Return the place before the first that a home gives."""
    return first_place_of(epoch.counter)


def first_place_of(counter: int) -> int:
    """Return the same for a home of this epoch counter."""
    return counter << PLACE_BITS


def is_legacy(seq: int) -> bool:
    """Say whether a place is of what was kept for a home that is gone, see `legacies`."""
    return (seq & ((1 << PLACE_BITS) - 1)) >> LEGACY_BITS == 1


@final
class GivenPlaces:
    """What old homes of one session gave that are over or left something out since, and the ranges of rivals.

    `given` are (old home, epoch counter, low, high, range): it gave its places from behind `low` to `high`.
    """

    __slots__ = ("given", "ranges")

    def __init__(self) -> None:
        self.given: list[tuple[bytes, int, int, int, int]] = []
        # The ranges that rivals have, or have had here or elsewhere, a bit each.
        self.ranges: int = 0

    def add(self, store_id: bytes, counter: int, low: int, high: int, its_range: int) -> None:
        """An old home gave places; what adjoins them is one with them, so that one that comes again adds nothing."""
        apart = []
        for other in self.given:
            of, its_counter, other_low, other_high, _range = other
            if of == store_id and its_counter == counter and other_low <= high and low <= other_high:
                low = min(low, other_low)
                high = max(high, other_high)
            else:
                apart.append(other)
        self.given = [*apart, (store_id, counter, low, high, its_range)][-GIVEN_MAX:]

    def lose_name(self, store_id: bytes, counter: int) -> None:
        """An old home that gave something by an epoch counter may come again under another identity."""
        self.given = [
            (ANYBODY if of == store_id and its_counter == counter else of, its_counter, low, high, its_range)
            for of, its_counter, low, high, its_range in self.given
        ]

    def come_back(self, epoch: Epoch, place: int) -> None:
        """The session, which was here by an epoch, is back: what it gave up to this place another home has, and gives.

        It has places of its own of that epoch, which no rival is to have.
        """
        kept = [
            (of, counter, max(low, place), high, its_range)
            for of, counter, low, high, its_range in self.given
            if high > place
        ]
        end = first_place_of(epoch.counter + 1) - 1
        self.given = [*kept, (epoch.store_id, epoch.counter, end, end, 0)][-GIVEN_MAX:]

    def include(self, store_id: bytes, seq: int, is_own: bool, sources: list[bytes]) -> bool:
        """Say whether a delivery of an old home was given before; `is_own` says that its place is of that home's own.

        What has such a place nobody else had: a rival has other things in the same places. `sources` are the only ones
        of which it may have had another, if any are named.
        """
        counter = seq >> PLACE_BITS
        return any(
            counter == its_counter
            and low < seq <= high
            and (of in (store_id, ANYBODY) or (not is_own and (not sources or of in sources)))
            for of, its_counter, low, high, _range in self.given
        )

    def include_of_others(self, seq: int, sources: list[bytes]) -> bool:
        """Say whether another old home than these gave what has this place here."""
        counter = seq >> PLACE_BITS
        return any(
            counter == its_counter and not its_range and low < seq <= high and of not in sources and of != ANYBODY
            for of, its_counter, low, high, its_range in self.given
        )

    def range_of(self, store_id: bytes, counter: int) -> int:
        """Return the range that an old home had when it gave something by an epoch counter, -1 if it gave nothing."""
        for of, its_counter, _low, _high, its_range in self.given:
            if its_counter == counter and of == store_id:
                return its_range
        return -1

    def are_of_rivals(self, counter: int) -> bool:
        """Say whether a home that is known gave places by this epoch counter."""
        return any(its_counter == counter and of != ANYBODY for of, its_counter, _low, _high, _range in self.given)

    def new_range(self, first: bool) -> int:
        """Return a range that nobody has, the `first` such or the last; the very last one if there is none.

        Where the present home is none of the rivals they get ranges from the other end: one of them may bring what
        another one had given to it, in the first ones.
        """
        free = [each for each in range(1, RIVALS_MAX + 1) if not self.ranges & 1 << each]
        if not free:
            return RIVALS_MAX
        chosen = free[0] if first else free[-1]
        self.ranges |= 1 << chosen
        return chosen

    def note(self, place: int) -> None:
        """A place is taken: if it is in a rival's range, no other rival gets that."""
        home_after = first_place_of((place >> PLACE_BITS) + 1)
        self.note_range(RIVALS_MAX - ((home_after - 1 - place) >> RIVAL_BITS))

    def note_range(self, number: int) -> None:
        """A rival has a range; 0 and UNPLACED are none."""
        if 0 < number <= RIVALS_MAX:
            self.ranges |= 1 << number


def place_in_range(its_range: int, seq: int, before: int) -> int:
    """Return the place in a rival's range of a delivery with the place `seq` there; it is below the place `before`."""
    rank = seq & ((1 << RIVAL_BITS) - 1)
    below: int = (RIVALS_MAX + 1 - its_range) << RIVAL_BITS
    return min(first_place_of(seq >> PLACE_BITS), before) - below + rank
