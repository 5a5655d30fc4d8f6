"""Medians, sums and ratios of the benchmarks' tables."""

from bench.tables import Column, for_people, ratio, ratios, row

COLUMNS = (Column("cpu_us", "CPU", 2), Column("per_s", "per s"), Column("lost", "lost"), Column("drain_s", "drain", 3))


def test_a_ratio_is_the_median_and_a_fraction_below_one() -> None:
    assert ratio([0.5, 0.1, 0.125]) == "0.125 (1/8.0)"
    assert ratio([3.0, 1.0]) == "2.000"
    assert ratio([]) is None


def test_ratios_are_those_of_rounds_that_have_both() -> None:
    ours = [{"cpu_us": 2.0}, None, {"cpu_us": None}, {"cpu_us": 3.0}, {"cpu_us": 8.0}]
    theirs = [{"cpu_us": 4.0}, {"cpu_us": 1.0}, {"cpu_us": 1.0}, {"cpu_us": 0.0}, {"cpu_us": 2.0}]
    assert ratios(ours, theirs, "cpu_us") == [0.5, 4.0]
    assert ratios(ours, theirs, "bytes_each") == []
    assert ratios(ours, [], "cpu_us") == []


def test_a_row_has_medians_and_sums() -> None:
    rounds = [{"cpu_us": 9.0, "per_s": 10.6, "lost": 1}, {"cpu_us": 2.111, "per_s": 1.0, "lost": 2}, {"cpu_us": 1.0}]
    assert row(COLUMNS, [*rounds, None]) == {"CPU": 2.11, "per s": 6, "lost": 3, "drain": None}


def test_people_see_empty_cells() -> None:
    assert for_people([{"CPU": None, "lost": 0}]) == [{"CPU": "", "lost": 0}]
