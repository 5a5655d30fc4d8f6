"""vmq-admin against a node that is only a socket: arguments, results, exit codes."""

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from admin import cli
from broker.commands import COMMANDS

DONE = {"type": "result", "result": {"type": "text", "text": "Done"}}

Request = dict[str, Any]


class FakeNode:
    """Answers each connection's request with `responses`, and remembers the requests."""

    def __init__(self, data_dir: Path, responses: list[Any]) -> None:
        self.data_dir = str(data_dir)
        self.requests: list[Request] = []
        self._responses = responses
        self._later: list[list[Any]] = []
        (data_dir / "run").mkdir(parents=True)
        directory = os.open(data_dir / "run", os.O_RDONLY)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"/proc/self/fd/{directory}/admin.sock")
        os.close(directory)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                self.requests.append(json.loads(stream.readline()))
                responses = self._later.pop(0) if self._later and len(self.requests) > 1 else self._responses
                for response in responses:
                    stream.write(json.dumps(response).encode() + b"\n")
                stream.flush()
                if not self._responses:
                    # Says nothing until the client has given up.
                    stream.read()

    def then(self, responses: list[Any]) -> None:
        """Answer the next request otherwise than the first."""
        self._later.append(responses)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def fake_node(tmp_path: Path) -> Iterator[Callable[..., FakeNode]]:
    nodes: list[FakeNode] = []

    def start(*responses: Any, data_dir: Path | None = None) -> FakeNode:
        nodes.append(FakeNode(data_dir or tmp_path / "data", list(responses)))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


def admin(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    return cli.run(arguments, environ or {}, output, errors), output.getvalue(), errors.getvalue()


def test_a_result_may_be_bad_news(fake_node: Callable[..., FakeNode]) -> None:
    table = {"type": "table", "table": [{"Node": "a@b", "Agrees": False}]}
    node = fake_node({"type": "result", "result": table, "exit": 1})
    code, output, errors = admin("cluster", "check", "--repair", f"--data-dir={node.data_dir}", "--json")
    assert (code, json.loads(output), errors) == (1, table, "")


def test_arguments_and_flags_reach_the_node(fake_node: Callable[..., FakeNode]) -> None:
    node = fake_node(DONE)
    assert admin("cluster", "join", "discovery-node=a@b:1", f"--data-dir={node.data_dir}") == (0, "Done\n", "")
    assert admin("--data-dir", node.data_dir, "cluster", "show", "--verbose") == (0, "Done\n", "")
    assert admin("cluster", "--data-dir", node.data_dir, "show", "-v") == (0, "Done\n", "")
    show = {"command": "cluster show", "arguments": {}, "flags": {"verbose": True}}
    assert node.requests == [
        {"command": "cluster join", "arguments": {"discovery-node": "a@b:1"}, "flags": {}},
        show,
        show,
    ]


@pytest.mark.parametrize("form", [["--json"], ["--format", "json"], ["--format=json"]])
def test_json(fake_node: Callable[..., FakeNode], form: list[str]) -> None:
    table = {"type": "table", "table": [{"Node": "node1@127.0.0.1", "Running": True}]}
    node = fake_node({"type": "result", "result": table})
    code, output, _ = admin(*form, "cluster", "show", "--data-dir", node.data_dir)
    assert (code, json.loads(output)) == (0, table)


def test_progress_goes_to_stderr(fake_node: Callable[..., FakeNode]) -> None:
    node = fake_node({"type": "progress", "text": "half way"}, DONE)
    assert admin("node", "stop", "--data-dir", node.data_dir) == (0, "Done\n", "half way\n")


def test_a_refusal_has_the_nodes_text_and_exit_code(fake_node: Callable[..., FakeNode]) -> None:
    node = fake_node({"type": "error", "error": "not empty", "exit": 1})
    assert admin("node", "status", "--data-dir", node.data_dir) == (1, "", "vmq-admin: not empty\n")


def test_a_long_data_dir(fake_node: Callable[..., FakeNode], tmp_path: Path) -> None:
    node = fake_node(DONE, data_dir=tmp_path.joinpath(*["d" * 100] * 2))
    assert admin("node", "status", "--data-dir", node.data_dir)[0] == 0


def test_no_node(tmp_path: Path) -> None:
    code, output, errors = admin("node", "status", "--data-dir", str(tmp_path))
    assert (code, output) == (3, "")
    assert errors == f"vmq-admin: no node runs on {tmp_path}: No such file or directory\n"


def test_a_node_that_was_killed(fake_node: Callable[..., FakeNode], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "run" / "admin.sock"))
    assert admin("node", "status", "--data-dir", str(tmp_path))[0] == 3


def test_a_node_that_does_not_answer(fake_node: Callable[..., FakeNode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ANSWER_GRACE_S", 0.01 - COMMANDS["node status"].time_limit_s)
    code, _, errors = admin("node", "status", "--data-dir", fake_node().data_dir)
    assert (code, errors) == (4, "vmq-admin: the node did not answer within 0.01 s\n")


def test_a_node_that_ends_meanwhile(fake_node: Callable[..., FakeNode]) -> None:
    node = fake_node({"type": "progress", "text": "half way"})
    assert admin("node", "status", "--data-dir", node.data_dir)[0] == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cluster", "shwo"], "no such command: cluster shwo; did you mean cluster show?"),
        (["cluster"], "`cluster` needs one of: show, join, leave, check, cookie"),
        (["cluster", "join"], "You have to provide a discovery node (example discovery-node=node1@127.0.0.1)"),
        (["cluster", "join", "discovery-node="], "You have to provide a discovery node"),
        (["cluster", "join", "discovery-node=a@b", "x=y"], "`cluster join` has no argument x="),
        (["cluster", "show", "--verbos"], "`cluster show` has no flag --verbos; did you mean --verbose?"),
        (["cluster", "show", "--verbose=1"], "flag --verbose needs no value"),
        (["cluster", "show", "me"], "`cluster show` does not take me"),
        (["cluster", "show", "--format=xml"], "--format=xml: must be table or json"),
        (["cluster", "show", "--data-dir"], "--data-dir needs a value"),
        (["cluster", "leave", "node=a@b", "-k", "--rate", "--data-dir=x"], "--rate needs a value"),
        (["cluster", "show", "--json=1"], "--json takes no value"),
        (["help"], "no such command: help"),
    ],
)
def test_usage_errors(arguments: list[str], complaint: str) -> None:
    code, output, errors = admin(*arguments)
    assert (code, output) == (2, "")
    assert complaint in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["session", "show", "--client_id=x", "--limit=3"],
        ["listener", "stop", "address=a", "port=1", "-k"],
        ["set", "max_inflight_messages=5"],
        ["set", "a=b"],
        ["cluster", "show", "--url", "http://127.0.0.1:8888"],
    ],
)
def test_what_is_not_served_yet(arguments: list[str]) -> None:
    code, _, errors = admin(*arguments)
    assert code == 1
    assert "served by this version" in errors


def test_help_lists_every_command_and_needs_no_node() -> None:
    code, output, _ = admin("--help")
    assert code == 0
    assert all(f"\n  {words}" in output for words in COMMANDS)
    code, output, _ = admin("cluster", "join", "-h")
    assert code == 0 and "discovery-node=" in output and "session show" not in output
    assert max(map(len, output.splitlines())) <= 100
    code, _, errors = admin()
    assert code == 2 and "Usage" in errors


def test_help_explains_every_flag_of_a_command_in_lines_that_fit() -> None:
    code, output, _ = admin("cluster", "leave", "--help")
    assert code == 0
    assert output.startswith("Usage: vmq-admin cluster leave node=NAME@HOST [-k]")
    assert max(map(len, output.splitlines())) <= 100
    said = output.split("\n\n")[2]
    for name in COMMANDS["cluster leave"].flags:
        short = [f"-{letter}" for letter, flag in COMMANDS["cluster leave"].short.items() if flag == name]
        assert name == "ask" or any(f"\n  {written}" in said for written in [*short, f"--{name}"]), name
    assert "disconnect its clients too" in said


def test_a_cookie_is_fresh_long_and_needs_no_node() -> None:
    cookies = {admin("cluster", "cookie")[1].strip() for _ in range(3)}
    assert len(cookies) == 3 and all(len(cookie) >= 32 for cookie in cookies)


def test_the_node_is_found_by_its_configuration(fake_node: Callable[..., FakeNode], tmp_path: Path) -> None:
    node = fake_node(DONE)
    config = tmp_path / "zvmq.yml"
    config.write_text(f"node: {{data_dir: {node.data_dir}}}\n")
    assert admin("node", "status", "--config", str(config))[0] == 0
    assert admin("node", "status", environ={"ZVMQ_CONFIG": str(config)})[0] == 0
    assert admin("node", "status", environ={"ZVMQ__NODE__DATA_DIR": node.data_dir})[0] == 0


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    code, output, errors = admin("node", "status", "--config", str(tmp_path / "missing.yml"))
    assert (code, output) == (2, "")
    assert "missing.yml" in errors


class Terminal(io.StringIO):
    """A stream on which somebody looks, or types."""

    def isatty(self) -> bool:
        return True


LONG = "Migrated 9/9 queues and 18/18 messages; " * 9
PROGRESS = [
    {"type": "progress", "text": "", "done": 0, "total": 0},
    {"type": "progress", "text": "Migrated 3/9 queues and 6/18 messages", "done": 3, "total": 9},
    {"type": "progress", "text": "", "done": 9, "total": 9},
]


def leave(node: FakeNode, errors: io.StringIO) -> tuple[int, str]:
    output = io.StringIO()
    arguments = ["cluster", "leave", "node=a@b", "-k", "--data-dir", node.data_dir]
    return cli.run(arguments, {}, output, errors), output.getvalue()


def test_progress_is_lines_where_nobody_looks(fake_node: Callable[..., FakeNode]) -> None:
    errors = io.StringIO()
    assert leave(fake_node(*PROGRESS, DONE), errors) == (0, "Done\n")
    assert errors.getvalue() == "Migrated 3/9 queues and 6/18 messages\n"


def test_progress_is_a_bar_on_a_terminal(fake_node: Callable[..., FakeNode]) -> None:
    errors = Terminal()
    progress = [*PROGRESS, {"type": "progress", "text": LONG, "done": 9, "total": 9}]
    assert leave(fake_node(*progress, DONE), errors) == (0, "Done\n")
    assert f"\x1b[2K{LONG}\n" in errors.getvalue()
    assert "9/9" in errors.getvalue() and "/s" in errors.getvalue()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1), ("no\n", 1)])
def test_a_question_is_asked_on_a_terminal(
    fake_node: Callable[..., FakeNode], monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    losses = "a@b does not run.\nIts messages are lost."
    question = {"type": "result", "result": {"type": "question", "text": f"{losses}\nRemove a@b?"}}
    node = fake_node(question)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    errors = Terminal()
    if code == 0:
        lines = [*losses.splitlines(), "c@d gets 3 sessions."]
        node.then([*[{"type": "progress", "text": line} for line in lines], DONE])
    assert leave(node, errors) == (code, "Done\n" if code == 0 else "")
    # What the question says is not said once more.
    assert errors.getvalue().count("Its messages are lost.") == 1
    assert ("c@d gets 3 sessions." in errors.getvalue()) is (code == 0)
    assert "Remove a@b? [y/N]" in errors.getvalue()
    assert [request["flags"].get("ask", False) for request in node.requests] == ([True, False] if code == 0 else [True])


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt], ids=["Ctrl-D", "Ctrl-C"])
def test_who_ends_a_question_is_told_that_nothing_was_done(
    fake_node: Callable[..., FakeNode], monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    class Ending(Terminal):
        def readline(self, size: int | None = -1) -> str:
            if end is KeyboardInterrupt:
                raise end
            return ""

    monkeypatch.setattr("sys.stdin", Ending())
    errors = Terminal()
    assert leave(fake_node({"type": "result", "result": {"type": "question", "text": "Sure?"}}), errors) == (1, "")
    assert errors.getvalue() == "Sure? [y/N] \nvmq-admin: nothing was done\n"
