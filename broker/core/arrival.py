"""Arrivals: what a session that came from another node is still owed from there, and from where it gets what.

An Arrival owns the cuts and the watermarks of one session at its new home. It knows nothing of frames, queues or
connections: `transfer` asks it, and stores it.

Theory of operation
-------------------
While a session moves, a message may reach its new home on two ways: forwarded by the node where it was published (its
origin), and through the old home, which goes on taking what is routed to it. A message's number says which one counts.
`cuts[origin]` is the first number of that origin that was routed when the new home was already known there:

    directly, from an origin without a cut, or below its cut       not for this session: the old home has it
    directly, from the cut on                                      for this session
    from an old home, below the cut or of an origin without one    for this session
    from an old home, from the cut on                              had already, directly

An old home passes on what an origin sends in the order of its numbers. So when a cut is heard of late, what came that
way until then (`relayed`) came wholly, and the cut is behind it. What the origin sends directly, on a slow link
perhaps, overlaps with that: the arrival is not over before the direct way has come as far.

What came directly has higher places in the queue than all that comes from old homes. It waits behind the gate while an
origin's messages come directly and the old home has not said that it has passed on everything below the cut (`passed`).
An old home that is not there holds up nobody.

Each old home (a donor) numbers its deliveries by their places, so its `watermark` is the last place that was taken.
Several old homes may have the same delivery: a stub deletes what the next home has committed when it hears of it, which
it may not have. So the next home says how far it had taken from others (`skips`), and what comes from it in a place of
a stub's own that the stub has given already (`low` to `watermark`, or `given` when it is over) is left out. What an
origin sends to two old homes, since it has heard of nothing yet, has a place of its own at each: while there are
several, the ids of what they gave are remembered, until a restart.

A session that comes back to a node where its stub still stood has had everything directly all the time (`direct_from`):
of what its other home has left only those deliveries count that it got from here. So has one that began here, to which
another comes that began elsewhere, in the other half of a partition or in a node that joined: but of that everything
counts, since nobody there knew of the one here.

What a stub had directly and gave to its new home it has no more. When the session comes back to it, only what it has
`kept` came directly here: of each origin everything from a number on.

Invariant: the gate is closed exactly while a donor that is there has not passed on everything below a cut.
"""

import struct
from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.inflight import PACKET_ID_MAX
from broker.core.message import ORIGIN_BYTES

VALUE_VERSION: Final = 1
# A home's places begin with its epoch's counter; below are the places of those that had the session before.
PLACE_BITS: Final = 40
# Homes of the same epoch counter, which a partition makes: their places are put below the winner's, one range each.
RIVALS_MAX: Final = 31
_RIVAL_BITS: Final = 34
# A place behind all others.
NOWHERE: Final = (1 << 64) - 1
_HEAD: Final = struct.Struct(">BHHHHHHBHQQ")
_CUT: Final = struct.Struct(">16sQ")
_DONOR: Final = struct.Struct(">16sQQIBBH")
_GIVEN: Final = struct.Struct(">IQQ")
_HAD: Final = struct.Struct(">IQ")


def first_place(epoch: Epoch) -> int:
    """Return the place before the first that a home gives."""
    return epoch.counter << PLACE_BITS


def first_packet_id(epoch: Epoch) -> int:
    """Return the first packet id of a home that does not know those which the client still holds of another one."""
    return 1 + epoch.stamp % PACKET_ID_MAX


@final
class Donor:
    """An old home: the last place that was taken from it, and below which number of each origin it has passed on all.

    `heir` says that the session goes on here as it was there, with its packet ids; else it has a life of its own.
    """

    __slots__ = ("counter", "heir", "low", "passed", "present", "rival", "watermark")

    def __init__(self) -> None:
        self.watermark: int = 0
        # The epoch counter by which it was the home; its own places are of that. -1 for the low until it has given any.
        self.counter: int = 0
        self.low: int = -1
        self.heir = False
        self.passed: dict[bytes, int] = {}
        # Whether the donor's node runs, as far as is known.
        self.present = True
        # Its range among those of the same epoch counter, 0 for none.
        self.rival: int = 0


@final
class Arrival:
    """What is still to come to one session; `first_seq` is the first place of its present home.

    `direct_from`, unless it is 0, says that everything came directly that has this or a later place elsewhere.
    """

    __slots__ = (
        "cuts",
        "direct_from",
        "donors",
        "first_seq",
        "given",
        "had",
        "ids",
        "is_stub",
        "kept",
        "relayed",
        "skips",
    )

    def __init__(self, first_seq: int) -> None:
        self.first_seq = first_seq
        self.direct_from: int = 0
        # Whether the session leaves again: then it takes whatever comes.
        self.is_stub = False
        self.cuts: dict[bytes, int] = {}
        self.donors: dict[bytes, Donor] = {}
        # What donors gave that are over: epoch counter, and between which places.
        self.given: list[tuple[int, int, int]] = []
        # Old home -> up to which place another one had everything of it.
        self.skips: dict[bytes, int] = {}
        # (old home, origin) -> by which epoch counter it was the home, and from which number on it had everything
        # directly, and gives it.
        self.had: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        # Origin without a cut, or of which not as much has come directly -> the last number that an old home passed on.
        self.relayed: dict[bytes, int] = {}
        # Origin -> the numbers that old homes gave while there were several.
        self.ids: dict[bytes, set[int]] = {}
        # Origin -> from which number on what came directly is here, not before; None: all of it is.
        self.kept: dict[bytes, int] | None = None

    def donor(self, store_id: bytes) -> Donor:
        """Return what is known of an old home."""
        donor = self.donors.get(store_id)
        if donor is None:
            donor = Donor()
            self.donors[store_id] = donor
        return donor

    def takes(self, origin: bytes, number: int) -> bool:
        """Say whether a message that came directly is for the session."""
        if self.is_stub:
            # From the first one on that it takes it has them all; what an old home passed on it has.
            self.set_cut(origin, number)
            return number >= self.cuts[origin]
        if self.direct_from:
            self._keep(origin, number)
            return True
        cut = self.cuts.get(origin)
        if cut is not None and self.relayed:
            self._come_to(origin, number)
        if cut is None or number < cut:
            return False
        self._keep(origin, number)
        return True

    def _keep(self, origin: bytes, number: int) -> None:
        if self.kept is not None and number:
            self.kept.setdefault(origin, number)

    def set_cut(self, origin: bytes, number: int) -> bool:
        """Hear in an origin's stream from which number on it sends directly; false if that is known."""
        is_new = origin not in self.cuts
        if is_new:
            self.cuts[origin] = max(number, self.relayed.get(origin, -1) + 1)
        self._come_to(origin, number)
        return is_new

    def _come_to(self, origin: bytes, number: int) -> None:
        """The direct way from an origin has come to a number."""
        if number > self.relayed.get(origin, -1):
            self.relayed.pop(origin, None)

    def overlaps_with(self, origin: bytes) -> bool:
        """Say whether something is still to come directly from an origin that an old home passed on."""
        return origin in self.relayed and origin in self.cuts

    def overlaps(self) -> bool:
        """Say whether that is so of any origin."""
        return any(origin in self.cuts for origin in self.relayed)

    def note_relayed(self, origin: bytes, number: int) -> None:
        """An old home passed on a message of an origin whose cut is not known."""
        if origin not in self.cuts and number > self.relayed.get(origin, -1):
            self.relayed[origin] = number

    def end(self, store_id: bytes) -> None:
        """An old home has said its last word."""
        donor = self.donors.pop(store_id, None)
        if donor is not None and donor.low >= 0:
            self._note_given(donor.counter, donor.low, donor.watermark)

    def _note_given(self, counter: int, low: int, high: int) -> None:
        """Remember what a donor gave; what adjoins it is one with it, so that a donor that comes again adds nothing."""
        apart = []
        for other in self.given:
            if other[0] == counter and other[1] <= high and low <= other[2]:
                low = min(low, other[1])
                high = max(high, other[2])
            else:
                apart.append(other)
        self.given = [*apart, (counter, low, high)]

    def add_had(self, donor: bytes, counter: int, origin: bytes, number: int) -> None:
        """An old home had everything of an origin directly from a number on."""
        self.had.setdefault((donor, origin), (counter, number))

    def had_directly(self, donor: bytes, origin: bytes, number: int, seq: int) -> bool:
        """Say whether a later home than the one that gave a delivery its place had it directly, and gives it.

        An earlier one may have had it as well, and have it no more: the later one left out what came from there.
        """
        own = seq >> PLACE_BITS
        for (by, of), (counter, first) in self.had.items():
            if of == origin and number >= first and by != donor and counter > own:
                return True
        return False

    def was_given(self, store_id: bytes, donor: Donor, seq: int) -> bool:
        """Say whether a delivery of a donor, by its place there, came from another one, or is to come from there."""
        if seq <= self.skips.get(store_id, 0):
            return True
        counter = seq >> PLACE_BITS
        for other in self.donors.values():
            if other is not donor and counter == other.counter and 0 <= other.low < seq <= other.watermark:
                return True
        return any(counter == of and low < seq <= high for of, low, high in self.given)

    def has_had(self, origin: bytes, number: int, seq: int) -> bool:
        """Say whether a delivery of an old home, by its place there, came directly as well."""
        if self.kept is not None and number and number < self.kept.get(origin, NOWHERE):
            return False
        if self.direct_from:
            return seq >= self.direct_from
        cut = self.cuts.get(origin)
        return cut is not None and number >= cut

    def comes_again(self, origin: bytes, number: int) -> bool:
        """Say whether a delivery of one of several old homes was given by another one before."""
        numbers = self.ids.get(origin)
        if numbers is not None and number in numbers:
            return True
        if len(self.donors) > 1 and number:
            self.ids.setdefault(origin, set()).add(number)
        return False

    def place(self, donor: Donor, seq: int) -> int:
        """Return the place here of a delivery with the place `seq` at an old home."""
        if seq < self.first_seq:
            return seq
        # The donor was a home of the same epoch counter, on the other side of a partition.
        if donor.rival == 0:
            donor.rival = 1 + sum(1 for other in self.donors.values() if other.rival)
        rank = seq & ((1 << _RIVAL_BITS) - 1)
        below: int = (RIVALS_MAX + 1 - min(donor.rival, RIVALS_MAX)) << _RIVAL_BITS
        return self.first_seq - below + rank

    def has_present_donor(self) -> bool:
        """Say whether an old home that is there has not said its last word."""
        return any(donor.present for donor in self.donors.values())

    def is_gated(self) -> bool:
        """Say whether what came directly has to wait."""
        if self.direct_from:
            return False
        for donor in self.donors.values():
            if donor.present:
                for origin, cut in self.cuts.items():
                    if cut > donor.passed.get(origin, -1):
                        return True
        return False

    def pack(self) -> bytes:
        """Return the stored form."""
        counts = (len(self.cuts), len(self.donors), len(self.given), len(self.skips), len(self.had), len(self.relayed))
        kept = self.kept or {}
        all_counts = (*counts, self.kept is not None, len(kept))
        parts = [_HEAD.pack(VALUE_VERSION, *all_counts, self.first_seq, self.direct_from)]
        for origin, number in self.cuts.items():
            parts.append(_CUT.pack(origin, number))
        for store_id, donor in self.donors.items():
            numbers = (donor.watermark, donor.low + 1, donor.counter)
            parts.append(_DONOR.pack(store_id, *numbers, donor.heir, donor.rival, len(donor.passed)))
            parts.extend([_CUT.pack(origin, number) for origin, number in donor.passed.items()])
        parts.extend([_GIVEN.pack(*given) for given in self.given])
        parts.extend([_CUT.pack(store_id, place) for store_id, place in self.skips.items()])
        parts.extend([store_id + origin + _HAD.pack(*had) for (store_id, origin), had in self.had.items()])
        parts.extend([_CUT.pack(origin, number) for origin, number in self.relayed.items()])
        parts.extend([_CUT.pack(origin, number) for origin, number in kept.items()])
        return b"".join(parts)


def unpack_arrival(value: bytes) -> Arrival:
    """Return what `pack` packed; struct.error when it is cut."""
    _version, cuts, donors, given, skips, had, relayed, keeps, kept, first_seq, direct_from = _HEAD.unpack_from(value)
    pos: int = _HEAD.size
    arrival = Arrival(first_seq)
    arrival.direct_from = direct_from
    for _ in range(cuts):
        origin, number = _CUT.unpack_from(value, pos)
        arrival.cuts[origin] = number
        pos += _CUT.size
    for _ in range(donors):
        store_id, watermark, low, counter, heir, rival, passed = _DONOR.unpack_from(value, pos)
        pos += _DONOR.size
        donor = arrival.donor(store_id)
        donor.watermark = watermark
        donor.low = low - 1
        donor.counter = counter
        donor.heir = heir != 0
        donor.rival = rival
        for _ in range(passed):
            origin, number = _CUT.unpack_from(value, pos)
            donor.passed[origin] = number
            pos += _CUT.size
    for _ in range(given):
        counter, low, high = _GIVEN.unpack_from(value, pos)
        arrival.given.append((counter, low, high))
        pos += _GIVEN.size
    for _ in range(skips):
        store_id, place = _CUT.unpack_from(value, pos)
        arrival.skips[store_id] = place
        pos += _CUT.size
    for _ in range(had):
        store_id, origin = value[pos : pos + ORIGIN_BYTES], value[pos + ORIGIN_BYTES : pos + 2 * ORIGIN_BYTES]
        arrival.had[store_id, origin] = _HAD.unpack_from(value, pos + 2 * ORIGIN_BYTES)
        pos += 2 * ORIGIN_BYTES + _HAD.size
    for _ in range(relayed):
        origin, number = _CUT.unpack_from(value, pos)
        arrival.relayed[origin] = number
        pos += _CUT.size
    if keeps:
        arrival.kept = {}
        for _ in range(kept):
            origin, number = _CUT.unpack_from(value, pos)
            arrival.kept[origin] = number
            pos += _CUT.size
    return arrival
