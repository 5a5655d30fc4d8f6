"""The line that closes `make test`."""

import subprocess
import sys
from pathlib import Path

TOTAL = Path(__file__).resolve().parents[1] / "total.py"

REPORT = (
    '<testsuites name="pytest tests"><testsuite name="pytest" tests="{tests}" failures="{failures}" errors="{errors}" '
    'skipped="{skipped}"></testsuite></testsuites>'
)


def test_reports_are_summed(tmp_path: Path) -> None:
    counts = {"interpreted": (10, 1, 1, 2), "compiled": (5, 0, 0, 0)}
    reports = []
    for environment, (tests, failures, errors, skipped) in counts.items():
        report = tmp_path / environment / "junit.xml"
        report.parent.mkdir()
        report.write_text(REPORT.format(tests=tests, failures=failures, errors=errors, skipped=skipped))
        reports.append(report)
    said = subprocess.run([sys.executable, TOTAL, *reports], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "interpreted: 6 passed, 2 failed, 2 skipped",
        "compiled: 5 passed, 0 failed, 0 skipped",
        "11 passed, 2 failed, 2 skipped",
    ]
