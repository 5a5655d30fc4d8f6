"""cluster.clock: stamps grow whatever clocks do, and nobody's wrong clock takes the others along."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import AHEAD_MS_MAX, LOGICAL_BITS, HybridClock

UTC = 1_800_000_000_000


def test_a_stamp_is_the_time_of_day_and_a_count():
    clock = HybridClock()
    assert clock.now(UTC) == UTC << 16
    assert clock.now(UTC) == (UTC << 16) + 1
    assert clock.now(UTC + 1) == (UTC + 1) << 16
    assert clock.ahead_ms(UTC + 1) == 0


def test_a_clock_that_steps_back_does_not_take_stamps_back():
    clock = HybridClock()
    first = clock.now(UTC)
    assert clock.now(UTC - 3_600_000) == first + 1
    assert clock.ahead_ms(UTC - 3_600_000) == 3_600_000
    assert clock.now(UTC + 5) == (UTC + 5) << 16


def test_more_stamps_in_a_millisecond_than_can_be_counted_go_on_in_the_next():
    clock = HybridClock()
    stamps = [clock.now(UTC) for _ in range((1 << LOGICAL_BITS) + 2)]
    assert stamps == list(range(UTC << 16, (UTC << 16) + len(stamps)))
    assert clock.now(UTC + 1) == stamps[-1] + 1


def test_what_is_stamped_in_knowledge_of_a_stamp_is_above_it():
    clock = HybridClock()
    told = UTC + AHEAD_MS_MAX << 16 | 0xFFFF
    assert clock.receive(told, UTC) == told
    assert clock.clamped == 0
    assert clock.now(UTC) == told + 1
    assert clock.receive(5, UTC) == 5
    assert clock.now(UTC) == told + 2


def test_a_stamp_of_the_year_2099_is_clamped_and_counted_and_moves_nobody_there():
    clock = HybridClock()
    wrong = 4_070_908_800_000 << 16
    latest = (UTC + AHEAD_MS_MAX << 16) + 0xFFFF
    assert clock.receive(wrong, UTC) == latest
    assert clock.clamped == 1
    assert clock.now(UTC) == latest + 1
    for _ in range(1000):
        clock.receive(clock.newest + 5, UTC)
    assert clock.ahead_ms(UTC) <= AHEAD_MS_MAX + 1, "not step by step either"
    assert clock.receive((1 << 64) - 1, UTC) == latest


STEPS = st.lists(
    st.tuples(st.integers(UTC - 10**9, UTC + 10**9), st.none() | st.integers(0, (1 << 64) - 1)), max_size=50
)


@given(STEPS)
def test_every_stamp_is_above_all_before_and_none_is_received_too_far_ahead(steps):
    clock = HybridClock()
    above = -1
    clamped = 0
    for utc_ms, stamp in steps:
        if stamp is None:
            given_out = clock.now(utc_ms)
            assert given_out > above
            assert given_out >> 16 >= utc_ms
            above = given_out
        else:
            counted = clock.receive(stamp, utc_ms)
            clamped += counted != stamp
            assert counted <= stamp
            assert counted >> 16 <= utc_ms + AHEAD_MS_MAX
            assert counted == stamp or counted >> 16 == utc_ms + AHEAD_MS_MAX
            above = max(above, counted)
        assert clock.clamped == clamped


@given(st.lists(st.tuples(st.booleans(), st.integers(-50_000, 50_000)), min_size=2, max_size=50))
def test_cause_comes_before_effect_between_nodes_whose_clocks_differ(events):
    """Reason: a change made in knowledge of another must win over it on every node."""
    clocks = [HybridClock(), HybridClock()]
    newest = 0
    for other, skew_ms in events:
        clock = clocks[other]
        assert clock.receive(newest, UTC + skew_ms // 2) == newest, "within the bound nothing is clamped"
        stamp = clock.now(UTC + skew_ms // 2)
        assert stamp > newest
        newest = stamp
