"""broker.core.rows and epoch: rows come out as they went in, and two of them never count as one."""

import itertools
import struct

import pytest

from broker.core import rows
from broker.core.epoch import (
    COUNTER_MAX,
    FIRST_EPOCH,
    NO_EPOCH,
    Epoch,
    first_epoch,
    home_counter,
    oldest_epoch,
    pack_epoch,
    unpack_epoch,
)
from broker.core.rows import RowKind, SessionRow, pack_row
from broker.core.stored_message import UNREADABLE

HERE, THERE = b"a" * 16, b"b" * 16
EPOCH = Epoch(3, 2**41, THERE)


def test_epochs_are_totally_ordered_by_counter_then_time_then_store():
    epochs = [
        Epoch(1, 0, HERE),
        Epoch(1, 0, THERE),
        Epoch(1, 5, HERE),
        Epoch(2, 1, HERE),
        Epoch(2, 1, THERE),
    ]
    for (at, one), (other_at, other) in itertools.product(enumerate(epochs), repeat=2):
        assert (one > other) == (at > other_at) == (pack_epoch(one) > pack_epoch(other))
        assert one > FIRST_EPOCH > NO_EPOCH


def test_an_epoch_comes_out_as_it_went_in():
    for epoch in (EPOCH, FIRST_EPOCH, NO_EPOCH, Epoch(2**64 - 1, 2**64 - 1, HERE)):
        assert unpack_epoch(b"xy" + pack_epoch(epoch) + b"z", 2) == epoch
    with pytest.raises(struct.error):
        unpack_epoch(pack_epoch(EPOCH), 1)


def test_an_oldest_epoch_is_before_all_and_says_by_which_counter_its_node_was_the_home():
    began = first_epoch(1_700_000_000_000, HERE)
    for counter in (0, 1, 2, COUNTER_MAX):
        oldest = oldest_epoch(counter, THERE)
        assert FIRST_EPOCH < oldest < began < EPOCH
        assert home_counter(oldest) == max(counter, 1)
    others = (NO_EPOCH, FIRST_EPOCH, began, EPOCH, Epoch(9, 4, HERE))
    assert [home_counter(epoch) for epoch in others] == [0, 1, 1, 3, 9]


@pytest.mark.parametrize(
    ("subject", "key"), [(b"client", b"a/#"), (b"", b""), (b"s" * 65535, b"k" * 65535), (b"\0", b"\0")]
)
def test_a_row_is_its_kind_subject_and_key(subject, key):
    row = pack_row(RowKind.SUBSCRIPTION, subject, key)
    assert rows.is_row(row)
    assert (row[0], rows.row_subject(row), rows.row_rest(row)) == (RowKind.SUBSCRIPTION, subject, key)
    assert 0 <= rows.bucket_of(subject) < rows.BUCKETS


def test_what_ends_within_its_subject_is_no_row():
    row = pack_row(RowKind.SESSION, b"client")
    for end in range(len(row)):
        assert not rows.is_row(row[:end])


def test_rows_that_look_alike_have_different_hashes():
    row = pack_row(RowKind.SESSION, b"client", b"key")
    alike = [(row, b"value"), (row + b"v", b"alue"), (row[:-1], b"yvalue"), (pack_row(2, b"clien", b"tkey"), b"value")]
    assert len({rows.row_hash(*each) for each in alike}) == len(alike)


def test_buckets_are_used_alike():
    used = {rows.bucket_of(b"client%d" % number) for number in range(20_000)}
    assert len(used) == rows.BUCKETS


@pytest.mark.parametrize("user_name", [None, "", "ü"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_session_row_comes_out_as_it_went_in(user_name, persistent):
    value = rows.pack_session(SessionRow(EPOCH, persistent, 2**32 - 1, user_name))
    assert rows.is_persistent_session(value) == persistent
    found = rows.unpack_session(value)
    assert rows.session_epoch(value) == pack_epoch(EPOCH)
    assert (found.epoch, found.persistent, found.expiry_s, found.user_name) == (EPOCH, persistent, 2**32 - 1, user_name)


VALUES = [
    (rows.pack_session(SessionRow(EPOCH, True, 0, "u")), rows.unpack_session),
    (rows.pack_subscription(9, 7), rows.unpack_subscription),
    (rows.pack_interest(True), rows.unpack_interest),
    (rows.pack_ended(pack_epoch(EPOCH)), rows.unpack_ended),
    (rows.pack_group(True, 7), rows.unpack_group),
]


def test_values_come_out_as_they_went_in():
    assert rows.unpack_subscription(VALUES[1][0]) == (9, 7)
    assert rows.unpack_interest(rows.pack_interest(True)) and not rows.unpack_interest(rows.pack_interest(False))
    assert rows.unpack_group(VALUES[4][0]) == (True, 7, False)
    assert rows.unpack_group(rows.pack_group(False, 0, True)) == (False, 0, True)
    assert rows.unpack_ended(VALUES[3][0]) == pack_epoch(EPOCH)


@pytest.mark.parametrize(("value", "unpack"), VALUES)
def test_values_that_are_cut_or_of_another_version_are_unreadable(value, unpack):
    for wrong in [value[:end] for end in range(len(value))] + [value + b"x", b"\x02" + value[1:]]:
        with pytest.raises(UNREADABLE):
            unpack(wrong)
