"""Prints what the test runs of all tox environments add up to, from their JUnit reports; `make test` ends with it."""

import sys
from pathlib import Path
from xml.etree import ElementTree

COUNTS = ("tests", "failures", "errors", "skipped")


def read_counts(report: Path) -> dict[str, int]:
    """The sums of `report`'s test suites, by the names that JUnit gives them."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    counts = dict.fromkeys(COUNTS, 0)
    for suite in suites:
        for name in COUNTS:
            counts[name] += int(suite.get(name, "0"))
    return counts


def describe(counts: dict[str, int]) -> str:
    """One line of the form `N passed, N failed, N skipped`."""
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return f"{passed} passed, {failed} failed, {counts['skipped']} skipped"


def main(reports: list[str]) -> None:
    """Print a line for each report and their sum."""
    total = dict.fromkeys(COUNTS, 0)
    for report in map(Path, reports):
        counts = read_counts(report)
        print(f"{report.parent.name}: {describe(counts)}")
        for name in COUNTS:
            total[name] += counts[name]
    print(describe(total))


if __name__ == "__main__":
    main(sys.argv[1:])
