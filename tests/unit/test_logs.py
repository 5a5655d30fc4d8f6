"""Logs: what children write, what the supervisor makes of it, and that the cookie stays out."""

import io
import json
import logging
from pathlib import Path

import pytest

from broker.logs import ChildFormatter, NodeLog, utc

COOKIE = "a-cookie-nobody-sees"


def make_log(tmp_path: Path, console: str = "both", style: str = "text", size_bytes_max: int = 0) -> NodeLog:
    return NodeLog(
        node="node1@127.0.0.1",
        console=console,
        level="info",
        path=str(tmp_path / "log" / "console.log"),
        style=style,
        size_bytes_max=size_bytes_max,
        keep=2,
        secrets=(COOKIE, ""),
        stream=io.StringIO(),
    )


def file_text(tmp_path: Path) -> str:
    return (tmp_path / "log" / "console.log").read_text()


def console_text(log: NodeLog) -> str:
    streams = [handler.stream for handler in log._logger.handlers if type(handler) is logging.StreamHandler]
    return "".join(stream.getvalue() for stream in streams)


def record(level: int, message: str, name: str = "broker.runtime.channel") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, None, None)


def test_a_childs_line_arrives_with_time_level_node_and_process(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write_child_line("listener 0", ChildFormatter("listener").format(record(logging.INFO, "hello")).encode())
    log.close()
    time, rest = file_text(tmp_path).split(" ", 1)
    assert rest == "[info] node1@127.0.0.1 listener 0: hello\n"
    assert time.startswith("20") and time.endswith("Z")


# What ends a line for some reader, moves a cursor, or turns what is written around.
HOSTILE = [
    "\n",
    "\r",
    "\x00",
    "\x0b",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\x9b2J",
    "\u2028",
    "\u2029",
    "\u202e",
    "\ufeff",
    "\udc80",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_message_can_not_begin_a_line_of_its_own(tmp_path: Path, hostile: str) -> None:
    forged = f"client x{hostile}2026-01-31T12:00:00.250Z [error] node1@127.0.0.1 owner: forged"
    log = make_log(tmp_path)
    log.write("owner", logging.WARNING, forged)
    log.write(f"listener{hostile}", logging.WARNING, "a name is no better")
    console = console_text(log)
    log.close()
    text = file_text(tmp_path)
    assert text == console
    assert text.replace("\n", "").isprintable()
    first, second = text.splitlines()
    escaped = hostile.encode("unicode_escape").decode()
    assert first.endswith(f"[warning] node1@127.0.0.1 owner: client x{escaped}2026{forged.partition('2026')[2]}")
    assert second.endswith(f"[warning] node1@127.0.0.1 listener{escaped}: a name is no better")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_json_line_is_one_line(tmp_path: Path, hostile: str) -> None:
    log = make_log(tmp_path, style="json")
    log.write("owner", logging.WARNING, f"x{hostile}y")
    log.close()
    (line,) = file_text(tmp_path).splitlines()
    assert json.loads(line)["message"] == f"x{hostile}y"


def test_what_can_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    for style in ("text", "json"):
        log = make_log(tmp_path / style, style=style)
        log.write("owner", logging.WARNING, r"Grüße, 日本語 🎉 \n")
        log.close()
        assert "Grüße, 日本語 🎉 \\" in file_text(tmp_path / style)


def test_console_and_file_as_asked(tmp_path: Path) -> None:
    for console, on_console, in_file in (
        ("both", True, True),
        ("console", True, False),
        ("file", False, True),
        ("off", False, False),
    ):
        log = make_log(tmp_path / console, console)
        log.write("owner", logging.INFO, "hello")
        assert (console_text(log) != "") is on_console is log.on_console
        assert (tmp_path / console / "log" / "console.log").exists() is in_file
        log.close()


def test_json_lines_are_json(tmp_path: Path) -> None:
    log = make_log(tmp_path, style="json")
    log.write("supervisor", logging.WARNING, 'two\nlines "quoted"')
    log.close()
    fields = json.loads(file_text(tmp_path))
    del fields["time"]
    assert fields == {
        "level": "warning",
        "node": "node1@127.0.0.1",
        "process": "supervisor",
        "message": 'two\nlines "quoted"',
    }


@pytest.mark.parametrize("line", [b"Traceback (most recent call last):", b'{"level": "info"', b'{"no": "log line"}'])
def test_what_is_no_log_line_is_an_error_as_it_is(tmp_path: Path, line: bytes) -> None:
    log = make_log(tmp_path)
    log.write_child_line("owner", line)
    log.close()
    assert file_text(tmp_path).endswith(f"[error] node1@127.0.0.1 owner: {line.decode()}\n")


def test_bytes_that_are_no_text_are_logged(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write_child_line("owner", b"\xff\xfe")
    log.write_child_line("owner", b"\n")
    log.close()
    assert len(file_text(tmp_path).splitlines()) == 1


def test_the_level_can_change(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write("owner", logging.DEBUG, "unseen")
    log.set_level("debug")
    log.write("owner", logging.DEBUG, "seen")
    log.close()
    assert "unseen" not in file_text(tmp_path) and "seen" in file_text(tmp_path)


def test_the_cookie_is_never_logged(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write_child_line("owner", f"KeyError: '{COOKIE}'".encode())
    assert COOKIE not in file_text(tmp_path) + console_text(log)
    log.close()


def test_a_percent_sign_is_no_format(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write("owner", logging.INFO, "100 %s")
    log.close()
    assert "100 %s" in file_text(tmp_path)


def test_files_rotate_and_old_ones_go(tmp_path: Path) -> None:
    log = make_log(tmp_path, size_bytes_max=200)
    for number in range(20):
        log.write("owner", logging.INFO, f"line {number} " + "x" * 50)
    log.close()
    names = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert names == ["console.log", "console.log.1", "console.log.2"]
    assert "line 19" in file_text(tmp_path)


def test_a_message_has_a_limit(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.write("owner", logging.INFO, "x" * 100_000)
    log.close()
    assert len(file_text(tmp_path)) < 17_000


def test_a_traceback_is_part_of_the_childs_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        broken = record(logging.ERROR, "failed", "root")
        broken.exc_info = (KeyError, error, error.__traceback__)
    fields = json.loads(ChildFormatter("owner").format(broken))
    assert fields["logger"] == "owner"
    assert fields["message"].startswith("failed\nTraceback") and fields["message"].endswith("KeyError: 'x'")


def test_milliseconds_never_overflow() -> None:
    assert utc(0.9996) == "1970-01-01T00:00:00.999Z"
    assert utc(1.25) == "1970-01-01T00:00:01.250Z"
