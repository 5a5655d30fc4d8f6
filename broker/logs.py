"""Logs of a node: children write JSON lines to stderr, the supervisor writes them all to console and file.

Owns the line formats. One process writes the log file, so it can be rotated, and a process that crashes still
gets its last words in: whatever a child writes that is no JSON line (a traceback) is logged as an error as it is.
A message is one line, whatever is in it: clients choose client ids and topics, and none of them may begin a line of
its own or move a terminal's cursor.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
from typing import IO, Any

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

LINE_CHARACTERS_MAX = 16384
"""A longer message is cut: a log line is for reading."""


def level_number(name: str) -> int:
    """The number of a level name; unknown names read as info, as the configuration has checked them."""
    return LEVELS.get(name.lower(), logging.INFO)


def child_logging(level: str, role: str = "node") -> None:
    """Send this process's logs to stderr, one JSON object a line, for the supervisor to write.

    `role` names the logger of lines that come from the root logger.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ChildFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level_number(level))
    logging.captureWarnings(True)
    # A log that can't be written (the supervisor has died) must not fill the pipe with tracebacks of its own.
    logging.raiseExceptions = False


class ChildFormatter(logging.Formatter):
    """A record as one JSON line; the traceback, if any, is part of the message."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        logger = self._role if record.name == "root" else record.name
        return json.dumps({"level": record.levelname.lower(), "logger": logger, "message": message})


class NodeLog:
    """The log of a node, written by its supervisor: console (stderr), `<data_dir>/log/<file>`, both or neither.

    `secrets` are replaced wherever they turn up. Raises OSError when the file can't be opened.
    """

    def __init__(
        self,
        node: str,
        console: str,
        level: str,
        path: str,
        style: str,
        size_bytes_max: int,
        keep: int,
        secrets: tuple[str, ...] = (),
        stream: IO[str] | None = None,
    ) -> None:
        self._secrets = tuple(secret for secret in secrets if secret)
        # Not registered under a name: several nodes in one test process must not share handlers.
        self._logger = logging.Logger("zvmq")
        # Our own check: such a logger remembers which levels are off, and is not told when that changes.
        self._level = level_number(level)
        formatter = JsonFormatter(node) if style == "json" else TextFormatter(node)
        handlers: list[logging.Handler] = []
        self.on_console = console in ("console", "both")
        if self.on_console:
            handlers.append(logging.StreamHandler(stream or sys.stderr))
        if console in ("file", "both"):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            handlers.append(
                logging.handlers.RotatingFileHandler(
                    path, maxBytes=size_bytes_max, backupCount=keep, encoding="utf-8", errors="backslashreplace"
                )
            )
        if not handlers:
            handlers.append(logging.NullHandler())
        for handler in handlers:
            handler.setFormatter(formatter)
            self._logger.addHandler(handler)

    def set_level(self, level: str) -> None:
        """Write lines from `level` upwards from now on."""
        self._level = level_number(level)

    def write(self, process: str, level: int, message: str) -> None:
        """Write one message of one process ("supervisor", "owner", "listener 0")."""
        if level < self._level:
            return
        for secret in self._secrets:
            message = message.replace(secret, "***")
        if len(message) > LINE_CHARACTERS_MAX:
            message = message[:LINE_CHARACTERS_MAX] + " ..."
        self._logger.log(level, "%s", message, extra={"process_label": process})

    def write_child_line(self, process: str, line: bytes) -> None:
        """Write one line that a child process wrote to its stderr."""
        text = line.decode("utf-8", "replace").rstrip()
        if not text:
            return
        fields = _child_fields(text)
        if fields is None:
            self.write(process, logging.ERROR, text)
        else:
            self.write(process, level_number(str(fields["level"])), str(fields["message"]))

    def close(self) -> None:
        """Flush and close the file."""
        for handler in list(self._logger.handlers):
            self._logger.removeHandler(handler)
            handler.close()


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.250Z [info] node1@127.0.0.1 listener 0: message`"""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        process = record.__dict__["process_label"]
        level = record.levelname.lower()
        return printable(f"{utc(record.created)} [{level}] {self._node} {process}: {record.getMessage()}")


class JsonFormatter(logging.Formatter):
    """The same as one JSON object a line."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "node": self._node,
            "process": record.__dict__["process_label"],
            "message": record.getMessage(),
        }
        line = json.dumps(fields, ensure_ascii=False)
        return line if line.isprintable() else json.dumps(fields)


def printable(text: str) -> str:
    """The text with an escape in place of each character that is none to look at: controls, line ends, directions."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def utc(seconds: float) -> str:
    """A wall-clock time as ISO 8601 with milliseconds, in UTC so that the logs of a cluster sort together."""
    # Milliseconds are cut before the split, so that 0.9996 does not become the 1000th of the second before.
    milliseconds = int(seconds * 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{stamp}.{milliseconds % 1000:03d}Z"


def _child_fields(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and {"level", "message"} <= fields.keys() else None
