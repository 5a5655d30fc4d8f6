"""The stored form of an arrival, in its session's row of the store. It changes only with VALUE_VERSION."""

import struct
from typing import Final

from broker.core.arrival import Arrival
from broker.core.cuts import Cuts
from broker.core.message import ORIGIN_BYTES
from broker.core.places import ANYBODY

# Version 1 does not say who gave something, and by which epoch counter it was said that something was had; nor does
# version 2 say which numbers of each origin an old home gave. Up to version 3 it is not said at which home the client
# made or ended subscriptions, nor by which epoch counter's row a session was made.
VALUE_VERSION: Final = 4
_HEIR: Final = 1
_MADE_OF_ROW: Final = 2
_INHERITED: Final = 4
_DIRECT: Final = 8
_HEAD: Final = struct.Struct(">BHHHHHBQQ")
_COUNT: Final = struct.Struct(">I")
_CUT: Final = struct.Struct(">16sQ")
_DONOR: Final = struct.Struct(">16sQQQIBB")
_GIVEN: Final = struct.Struct(">16sIQQB")
_SKIP: Final = struct.Struct(">16sQI")
_GIVEN_1: Final = struct.Struct(">IQQ")
_EARLIEST_COUNTER: Final = 1
_LATEST_COUNTER: Final = (1 << 32) - 1
_HAD: Final = struct.Struct(">IQ")
_SPAN: Final = struct.Struct(">IQQ")


def pack_arrival(arrival: Arrival) -> bytes:
    """Return the stored form."""
    places = arrival.places.given
    givers = arrival.direct.givers
    direct = arrival.direct.all()
    counts = (len(arrival.donors), len(places), len(arrival.skips), len(givers) + len(direct), len(arrival.late))
    parts = [_HEAD.pack(VALUE_VERSION, *counts, arrival.kept is not None, arrival.first_seq, arrival.direct_from)]
    for store_id, donor in arrival.donors.items():
        numbers = (donor.watermark, donor.low + 1, donor.before, donor.counter)
        flags = (_HEIR if donor.heir else 0) | (_MADE_OF_ROW if donor.row_counter else 0)
        flags |= (_INHERITED if donor.inherited else 0) | (_DIRECT if donor.direct else 0)
        parts.append(_DONOR.pack(store_id, *numbers, flags, donor.rival) + _pack_numbers(donor.passed))
        if donor.row_counter:
            parts.append(_COUNT.pack(donor.row_counter))
    parts.extend([_GIVEN.pack(*given) for given in places])
    parts.extend([_SKIP.pack(store_id, *skip) for store_id, skip in arrival.skips.items()])
    parts.extend([store_id + origin + _HAD.pack(*had) for (store_id, origin), had in givers.items()])
    parts.extend([ANYBODY + origin + _HAD.pack(counter, number) for counter, origin, number in direct])
    if arrival.kept is not None:
        parts.append(_pack_numbers(arrival.kept))
    parts.append(_pack_filters(list(arrival.touched)))
    parts.extend([_COUNT.pack(counter) for counter in arrival.touched.values()])
    for cuts in arrival.all_cuts():
        parts.append(_pack_filters(cuts.filters) + _pack_numbers(cuts.numbers) + _pack_numbers(cuts.relayed))
    parts.append(_COUNT.pack(len(arrival.given)))
    given = arrival.given.items()
    parts.extend([store_id + origin + _SPAN.pack(counter, *span) for (store_id, counter, origin), span in given])
    return b"".join(parts)


def unpack_arrival(value: bytes) -> Arrival:
    """Return what `pack_arrival` packed; struct.error when it is cut."""
    version, donors, given, skips, had, late, keeps, first_seq, direct_from = _HEAD.unpack_from(value)
    pos: int = _HEAD.size
    arrival = Arrival(first_seq)
    arrival.direct_from = direct_from
    for _ in range(donors):
        store_id, watermark, low, before, counter, flags, rival = _DONOR.unpack_from(value, pos)
        donor = arrival.donor(store_id)
        donor.watermark = watermark
        donor.low = low - 1
        donor.counter = counter
        donor.heir = flags & _HEIR != 0
        donor.inherited = flags & _INHERITED != 0
        donor.direct = flags & _DIRECT != 0
        donor.before = before
        donor.rival = rival
        arrival.places.note_range(rival)
        donor.passed, pos = _read_numbers(value, pos + _DONOR.size)
        if flags & _MADE_OF_ROW:
            donor.row_counter, pos = _read_count(value, pos) if version > 3 else (_EARLIEST_COUNTER, pos)
    for _ in range(given):
        if version == 1:
            arrival.places.given.append((ANYBODY, *_GIVEN_1.unpack_from(value, pos), 0))
            pos += _GIVEN_1.size
        else:
            given_before: tuple[bytes, int, int, int, int] = _GIVEN.unpack_from(value, pos)
            arrival.places.given.append(given_before)
            arrival.places.note_range(given_before[4])
            pos += _GIVEN.size
    for _ in range(skips):
        if version == 1:
            store_id, place = _CUT.unpack_from(value, pos)
            arrival.skips[store_id] = (place, _LATEST_COUNTER)
            pos += _CUT.size
        else:
            store_id, place, counter = _SKIP.unpack_from(value, pos)
            arrival.skips[store_id] = (place, counter)
            pos += _SKIP.size
    for _ in range(had):
        store_id, origin = value[pos : pos + ORIGIN_BYTES], value[pos + ORIGIN_BYTES : pos + 2 * ORIGIN_BYTES]
        counter, number = _HAD.unpack_from(value, pos + 2 * ORIGIN_BYTES)
        if store_id == ANYBODY:
            arrival.direct.known.setdefault(origin, {})[counter] = number
        else:
            arrival.direct.givers[store_id, origin] = counter, number
        pos += 2 * ORIGIN_BYTES + _HAD.size
    if keeps:
        arrival.kept, pos = _read_numbers(value, pos)
    touched, pos = _read_filters(value, pos)
    for topic_filter in touched:
        arrival.touched[topic_filter], pos = _read_count(value, pos) if version > 3 else (_LATEST_COUNTER, pos)
    for index in range(1 + late):
        filters, pos = _read_filters(value, pos)
        cuts = Cuts(filters)
        cuts.numbers, pos = _read_numbers(value, pos)
        cuts.relayed, pos = _read_numbers(value, pos)
        if index:
            arrival.late.append(cuts)
        else:
            arrival.cuts = cuts
    if version > 2:
        arrival.given = _read_given(value, pos)
    return arrival


def _read_given(value: bytes, pos: int) -> dict[tuple[bytes, int, bytes], tuple[int, int]]:
    (count,) = _COUNT.unpack_from(value, pos)
    pos += _COUNT.size
    given: dict[tuple[bytes, int, bytes], tuple[int, int]] = {}
    for _ in range(count):
        store_id, origin = value[pos : pos + ORIGIN_BYTES], value[pos + ORIGIN_BYTES : pos + 2 * ORIGIN_BYTES]
        counter, first, last = _SPAN.unpack_from(value, pos + 2 * ORIGIN_BYTES)
        given[store_id, counter, origin] = first, last
        pos += 2 * ORIGIN_BYTES + _SPAN.size
    return given


def _pack_numbers(numbers: dict[bytes, int]) -> bytes:
    return _COUNT.pack(len(numbers)) + b"".join([_CUT.pack(origin, number) for origin, number in numbers.items()])


def _read_numbers(value: bytes, pos: int) -> tuple[dict[bytes, int], int]:
    (count,) = _COUNT.unpack_from(value, pos)
    pos += _COUNT.size
    numbers: dict[bytes, int] = {}
    for _ in range(count):
        origin, number = _CUT.unpack_from(value, pos)
        numbers[origin] = number
        pos += _CUT.size
    return numbers, pos


def _read_count(value: bytes, pos: int) -> tuple[int, int]:
    (count,) = _COUNT.unpack_from(value, pos)
    return count, pos + _COUNT.size


def _pack_filters(filters: list[bytes]) -> bytes:
    return _COUNT.pack(len(filters)) + b"".join([_COUNT.pack(len(each)) + each for each in filters])


def _read_filters(value: bytes, pos: int) -> tuple[list[bytes], int]:
    (count,) = _COUNT.unpack_from(value, pos)
    pos += _COUNT.size
    filters: list[bytes] = []
    for _ in range(count):
        (size,) = _COUNT.unpack_from(value, pos)
        pos += _COUNT.size
        filters.append(value[pos : pos + size])
        pos += size
    return filters, pos
