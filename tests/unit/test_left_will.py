"""broker.core.left_will and the rows about wills: they come out as they went in, and nothing else does."""

import pytest

from broker.core.epoch import Epoch, pack_epoch
from broker.core.left_will import (
    LeftWill,
    pack_stored_will,
    pack_will_row,
    unpack_stored_will,
    unpack_will_row,
    will_tag,
)
from broker.core.rows import RowKind, pack_away, pack_claim, pack_row, unpack_claim
from broker.core.stored_message import UNREADABLE, Clock
from broker.core.will import Will
from cluster.table_frames import check_row
from cluster.wire import FrameError

EPOCH = pack_epoch(Epoch(3, 1 << 40, b"s" * 16))
STORES = b"a" * 16 + b"b" * 16


def left_will(due=0.0, user_name="user", **options):
    left = LeftWill("client", user_name, Will(b"w/x", b"gone", b"\x03\x00\x01t", 2, True, 60, **options))
    left.due = due
    left.epoch, left.number, left.wait_s = EPOCH, 7, 50
    return left


def fields(left):
    will = left.will
    message = (will.topic, will.payload, will.properties, will.qos, will.retain, will.delay_s, will.expiry_s)
    return left.client_id, left.user_name, left.epoch, left.number, left.wait_s, message


@pytest.mark.parametrize("user_name", [None, "", "üser"])
@pytest.mark.parametrize("expiry_s", [-1, 0, 9])
def test_a_will_comes_out_as_it_went_in(user_name, expiry_s):
    left = left_will(110.0, user_name, expiry_s=expiry_s)
    clock = Clock(100.0, 1_000_000)
    stored, deadline_ms = unpack_stored_will(b"client", pack_stored_will(left, clock))
    assert (fields(stored), deadline_ms) == (fields(left), 1_010_000)
    assert fields(unpack_will_row(b"client", pack_will_row(left))) == fields(left)


def test_a_row_says_whether_the_will_waits_and_no_time_of_day():
    assert not will_tag(pack_will_row(left_will())).waits
    assert will_tag(pack_will_row(left_will(110.0))).waits
    assert pack_will_row(left_will(110.0)) == pack_will_row(left_will(111.0))


def test_a_claim_comes_out_as_it_went_in():
    for number, spent in ((0, False), (2**64 - 1, True)):
        assert unpack_claim(pack_claim(number, spent)) == (number, spent)


WILL = pack_row(RowKind.WILL, b"client")
CLAIM = pack_row(RowKind.CLAIM, b"client", STORES)
AWAY = pack_row(RowKind.AWAY, b"a" * 16)


def test_good_rows_are_taken():
    for row, value in ((WILL, pack_will_row(left_will())), (CLAIM, pack_claim(1, True)), (AWAY, pack_away())):
        check_row(row, value)
        check_row(row, None)


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (WILL, b""),
        (WILL, b"\x02" + pack_will_row(left_will())[1:]),
        (WILL, pack_will_row(left_will())[:70]),
        (WILL + b"key", pack_will_row(left_will())),
        (pack_row(RowKind.WILL, b"\xff"), pack_will_row(left_will())),
        (WILL, pack_will_row(left_will()).replace(b"w/x", b"w/#")),
        (CLAIM, b""),
        (CLAIM, pack_claim(1, True) + b"x"),
        (CLAIM[:-1], pack_claim(1, True)),
        (pack_row(RowKind.CLAIM, b"client"), pack_claim(1, True)),
        (AWAY, b""),
        (AWAY, b"\x02"),
        (pack_row(RowKind.AWAY, b"a" * 15), pack_away()),
    ],
)
def test_bad_rows_are_refused(row, value):
    with pytest.raises(FrameError, match="is no row"):
        check_row(row, value)


def test_a_stored_will_that_is_cut_is_unreadable():
    value = pack_stored_will(left_will(), Clock(0.0, 0))
    for end in range(1, len(value) - len(b"gone")):
        with pytest.raises(UNREADABLE):
            unpack_stored_will(b"client", value[:end])
