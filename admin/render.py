"""How results look: rich tables on a terminal, plain ASCII tables elsewhere, or JSON.

Owns the look only. A value is never cut, whatever the width of the terminal.
"""

import json
from collections.abc import Sequence
from typing import IO, Any

Table = list[dict[str, Any]]


def render(result: dict[str, Any], as_json: bool, stream: IO[str], color: bool = True) -> None:
    """Write a result ({"type": "table" | "text", ...}) to `stream`.

    A table that has a "text" beside it is that text for people, and a table for programs. Its columns of "below" hold
    sentences; people read them below the table, where they have room.
    """
    if as_json:
        if result["type"] == "table":
            result = {name: value for name, value in result.items() if name not in ("text", "below")}
        print(json.dumps(result, separators=(",", ":"), ensure_ascii=False), file=stream)
    elif "text" in result:
        print(result["text"], file=stream)
    elif result["type"] == "table":
        table, sentences = set_below(result["table"], result.get("below", []))
        if stream.isatty():
            _rich_table(table, stream, color)
        else:
            stream.write(plain_table(table))
        for sentence in sentences:
            print(sentence, file=stream)


def cell(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def columns(table: Table) -> list[str]:
    """The columns of a table in the order in which its rows bring them."""
    return list(dict.fromkeys(name for row in table for name in row))


def set_below(table: Table, names: Sequence[str]) -> tuple[Table, list[str]]:
    """Return the table without some columns, and what they hold as lines, each behind the row's first value."""
    kept = [{name: value for name, value in row.items() if name not in names} for row in table]
    lines = [
        f"{_one_line(cell(next(iter(row.values()))))}: {_one_line(cell(row[name]))}"
        for row in table
        for name in names
        if row.get(name) is not None
    ]
    return kept, lines


def plain_table(table: Table) -> str:
    """The table as VerneMQ prints it: one space of padding, a separator after the header and after every row."""
    names = columns(table)
    if not names:
        return ""
    rows = [names] + [[_one_line(cell(row.get(name))) for name in names] for row in table]
    widths = [max(len(row[index]) for row in rows) for index in range(len(names))]
    separator = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [separator]
    for row in rows:
        lines.append("|" + "|".join(f" {text:<{width}} " for text, width in zip(row, widths, strict=True)) + "|")
        lines.append(separator)
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _rich_table(table: Table, stream: IO[str], color: bool) -> None:
    # Here, because rich takes longer to load than the rest of a command in a script.
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    names = columns(table)
    if not names:
        return
    shown = RichTable(show_lines=len(table) > 1)
    for name in names:
        shown.add_column(name, overflow="fold")
    for row in table:
        # As Text, so that brackets in a client id are no markup.
        shown.add_row(*(_rich_cell(Text, row.get(name), color) for name in names))
    Console(file=stream, no_color=not color, highlight=False, soft_wrap=False).print(shown)


def _rich_cell(text: Any, value: Any, color: bool) -> Any:
    style = {True: "green", False: "red"}.get(value, "") if color and isinstance(value, bool) else ""
    return text(_one_line(cell(value)), style=style)
