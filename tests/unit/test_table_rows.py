"""Rows in memory are packed; to whoever reads them they are a dict of each bucket."""

from hypothesis import given
from hypothesis import strategies as st

from broker.core.rows import BUCKETS, RowKind, pack_row
from cluster.table_rows import SLOT_BYTES, MemoryRows

BUCKETS_USED = (0, BUCKETS - 1)
# Some begin like others, some are longer than a slot.
ROWS = [pack_row(RowKind.INTEREST, b"to/%d" % number) for number in range(40)]
ROWS += [pack_row(RowKind.INTEREST, b"to/1" + b"/" * size) for size in (1, SLOT_BYTES, 3 * SLOT_BYTES)]
VALUES = [b"", b"\0", b"\1", b"value", bytes(2 * SLOT_BYTES)]

changes = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "replace"]),
        st.sampled_from(BUCKETS_USED),
        st.dictionaries(st.sampled_from(ROWS), st.sampled_from(VALUES), min_size=1),
    ),
    max_size=30,
)


@given(changes)
def test_a_bucket_is_a_dict(changes):
    rows = MemoryRows()
    expected = {bucket: {} for bucket in BUCKETS_USED}
    for what, bucket, changed in changes:
        if what == "replace":
            gone = rows.replace(bucket, changed)
            assert sorted(gone) == sorted(expected[bucket].keys() - changed.keys())
            expected[bucket] = dict(changed)
            continue
        for row, value in changed.items():
            if what == "put":
                rows.put(bucket, row, value)
                expected[bucket][row] = value
            else:
                rows.delete(bucket, row)
                expected[bucket].pop(row, None)
    for bucket, kept in expected.items():
        found = rows.read(bucket)
        assert dict(found) == kept and len(found) == len(kept)
        assert [rows.get(bucket, row) for row in ROWS] == [kept.get(row) for row in ROWS]
    assert len(list(rows.scan())) == sum(len(kept) for kept in expected.values())
    rows.clear()
    assert not list(rows.scan()) and rows.get(0, ROWS[0]) is None


def test_what_lies_in_a_slot_stays_short_however_many_rows_there_are():
    rows = MemoryRows()
    for number in range(2000):
        rows.put(3, pack_row(RowKind.INTEREST, b"bench/%d" % number), b"\0")
    assert len(rows.read(3)) == 2000
    assert max(len(slot) for slot in rows._buckets[3]) < 8 * SLOT_BYTES
