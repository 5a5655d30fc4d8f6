"""Tables, texts and JSON as they look."""

import io
import json
from typing import Any

import pytest

from admin.render import plain_table, render

MEMBERS = {
    "type": "table",
    "table": [{"Node": "VerneMQ@10.0.0.1", "Running": True}, {"Node": "VerneMQ@10.0.0.2", "Running": False}],
}

PLAIN = """\
+------------------+---------+
| Node             | Running |
+------------------+---------+
| VerneMQ@10.0.0.1 | true    |
+------------------+---------+
| VerneMQ@10.0.0.2 | false   |
+------------------+---------+
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rendered(result: dict[str, Any], as_json: bool = False, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    render(result, as_json, stream)
    return stream.getvalue()


def test_the_plain_table_is_vernemqs() -> None:
    assert rendered(MEMBERS) == PLAIN


def test_json_is_vernemqs() -> None:
    text = rendered(MEMBERS, as_json=True)
    assert text.startswith('{"type":"table","table":[{"Node":"VerneMQ@10.0.0.1","Running":true},')
    assert json.loads(text) == MEMBERS


def test_text() -> None:
    assert rendered({"type": "text", "text": "Done"}) == "Done\n"
    assert rendered({"type": "text", "text": "Done"}, as_json=True) == '{"type":"text","text":"Done"}\n'


def test_a_table_with_a_text_is_a_text_for_people_and_a_table_for_programs() -> None:
    result = {"type": "table", "table": [{"Metric": "a", "Value": 1}], "text": "counter.a = 1"}
    assert rendered(result) == rendered(result, stream=Terminal()) == "counter.a = 1\n"
    assert json.loads(rendered(result, as_json=True)) == {"type": "table", "table": result["table"]}


def test_a_table_without_rows_is_nothing() -> None:
    assert plain_table([]) == ""
    assert rendered({"type": "table", "table": []}, stream=Terminal()) == ""


def test_missing_values_and_rows_with_more_columns() -> None:
    assert plain_table([{"a": 1}, {"a": None, "b": "x"}]).splitlines()[3:6:2] == ["| 1    | null |", "| null | x    |"]


def test_a_newline_in_a_value_breaks_no_table() -> None:
    assert "| a\\x0ab    |" in plain_table([{"client_id": "a\nb"}])


@pytest.mark.parametrize("columns", ["20", "80"])
def test_a_terminal_never_cuts_a_value(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    value = "abcdefghijklmnopqrstuvwxyz" * 8 + "[red]"
    text = rendered({"type": "table", "table": [{"Node": value}]}, stream=Terminal())
    assert "".join(character for character in text if character.isascii() and character not in " \n") == "Node" + value


def test_a_terminal_shows_true_and_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = rendered(MEMBERS, stream=Terminal())
    assert "true" in text and "false" in text and "VerneMQ@10.0.0.2" in text


def test_sentences_stand_below_the_table_of_people_and_in_that_of_programs() -> None:
    rows = [{"Node": "a@b", "State": "idle", "Failure": None}, {"Node": "c@d", "State": "failed", "Failure": "long\n"}]
    result = {"type": "table", "table": rows, "below": ["Failure"]}
    table = plain_table([{"Node": "a@b", "State": "idle"}, {"Node": "c@d", "State": "failed"}])
    assert rendered(result) == table + "c@d: long\\x0a\n"
    assert json.loads(rendered(result, as_json=True)) == {"type": "table", "table": rows}
