"""vmq-admin: the command line, with VerneMQ's form of arguments.

    vmq-admin [GLOBAL ...] COMMAND ... [key=value ...] [--flag[=value] ...] [-k]

Owns the arguments, the look-up of the node and the exit codes: 0 done, 1 refused or failed, 2 usage,
3 node not reachable, 4 timed out. Global options may stand anywhere. What a command does, the node knows.
"""

import os
import secrets
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from admin.client import NoAnswerError, UnreachableError, ask
from admin.progress import ProgressView
from admin.render import render
from broker.commands import COMMANDS, Command, NotServedError, UsageError, find, near

DONE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
TIMED_OUT = 4

COOKIE_BYTES = 32

ANSWER_GRACE_S = 5.0
"""How much longer than the node the client waits, so that the node's own word about its time limit arrives."""

HELP_WIDTH = 100

VALUE_GLOBALS = ("config", "data-dir", "format", "url", "api-key")
PLAIN_GLOBALS = ("json", "no-color", "help")

GLOBAL_HELP = """\
Global options, before or after the command:
  --config FILE         the configuration of the node on this machine
  --data-dir DIR        the data_dir of the node on this machine
  --format table|json   how results look; --json is short for the latter
  --no-color            no colours on a terminal
  --help                this text, or that of a command

Exit codes: 0 done, 1 refused or failed, 2 usage, 3 node not reachable, 4 timed out."""


@dataclass
class Invocation:
    """A command line, taken apart. Flags of commands are as written; the command knows which take a value."""

    words: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    flags: list[tuple[str, str | None]] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Run vmq-admin and exit."""
    sys.exit(run(sys.argv[1:], os.environ, sys.stdout, sys.stderr))


def run(arguments: Sequence[str], environ: Mapping[str, str], output: IO[str], errors: IO[str]) -> int:
    """Run vmq-admin; returns its exit code."""
    try:
        invocation = parse(arguments)
        if "help" in invocation.options or not invocation.words:
            print(help_text(invocation.words), file=output if "help" in invocation.options else errors)
            return DONE if "help" in invocation.options else USAGE
        return _run_command(invocation, environ, output, errors)
    except UsageError as error:
        return _complain(errors, error, USAGE)
    except NotServedError as error:
        return _complain(errors, error, FAILED)
    except UnreachableError as error:
        return _complain(errors, error, UNREACHABLE)
    except NoAnswerError as error:
        return _complain(errors, error, TIMED_OUT)
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough. Python must not complain at exit either.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def parse(arguments: Sequence[str]) -> Invocation:
    """Take a command line apart; raises UsageError."""
    invocation = Invocation()
    waiting = list(arguments)
    command: Command | None = None
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-") or argument == "-":
            key, equals, value = argument.partition("=")
            if equals:
                invocation.arguments[key] = value
            else:
                invocation.words.append(argument)
                command = COMMANDS.get(" ".join(invocation.words), command)
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        name = "help" if argument == "-h" else name
        if name in VALUE_GLOBALS:
            invocation.options[name] = value if equals else _value_after(argument, waiting)
        elif name in PLAIN_GLOBALS:
            if equals:
                raise UsageError(f"--{name} takes no value")
            invocation.options[name] = ""
        else:
            if command is not None:
                name = command.short.get(name, name)
                if command.flags.get(name) and not equals:
                    value, equals = _value_after(argument, waiting), "="
            invocation.flags.append((name, value if equals else None))
    return invocation


def help_text(words: Sequence[str]) -> str:
    """The help of a command, of a group of commands, or of all; raises UsageError for an unknown command."""
    said = " ".join(words)
    shown = [command for name, command in COMMANDS.items() if name == said or name.startswith(f"{said} ".lstrip())]
    if not shown:
        raise UsageError(f"no such command: {said}{near(said, COMMANDS)}")
    if len(shown) == 1 and shown[0].words == said:
        return "\n".join([*_lines_of(shown[0]), "", GLOBAL_HELP])
    width = max(len(command.words) for command in shown)
    lines = [f"  {command.words:<{width}}  {command.summary}{'' if command.served else ' *'}" for command in shown]
    return "\n".join(
        [
            "Usage: vmq-admin COMMAND [key=value ...] [--flag ...]",
            "",
            *lines,
            "",
            "  * not served by this version",
            "",
            "COMMAND --help says what a command takes.",
            "",
            GLOBAL_HELP,
        ]
    )


def _lines_of(command: Command) -> list[str]:
    """The help of one command."""
    usage = f"Usage: vmq-admin {command.words} {command.usage}".rstrip()
    lines = textwrap.wrap(usage, HELP_WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False, break_long_words=False)
    lines += ["", f"{command.summary[0].upper()}{command.summary[1:]}."]
    if not command.served:
        lines.append("It is not served by this version.")
    if command.explained:
        width = max(len(written) for written, _ in command.explained)
        indent = " " * (width + 4)
        lines.append("")
        for written, text in command.explained:
            lines += textwrap.wrap(f"  {written:<{width}}  {text}", HELP_WIDTH, subsequent_indent=indent)
    return lines


def _run_command(invocation: Invocation, environ: Mapping[str, str], output: IO[str], errors: IO[str]) -> int:
    options = invocation.options
    command, rest = find(invocation.words)
    if rest and command.served and not command.keys:
        raise UsageError(f"`{command.words}` does not take {' '.join(rest)}")
    if command.keys:
        invocation.arguments["keys"] = rest
    flags: dict[str, Any] = {name: True if value is None else value for name, value in invocation.flags}
    command.check(invocation.arguments, flags)
    if "url" in options or "api-key" in options:
        raise NotServedError("--url and --api-key are not served by this version")
    as_json = _wants_json(options)
    color = "no-color" not in options and not environ.get("NO_COLOR")
    if command.words == "cluster cookie":
        # Made here: a cookie is needed before there is a node.
        render({"type": "text", "text": secrets.token_urlsafe(COOKIE_BYTES)}, as_json, output, color)
        return DONE
    directory = _data_dir(options, environ)
    timeout_s = command.time_limit_s + ANSWER_GRACE_S
    if "ask" in command.flags and not flags.get("yes") and sys.stdin.isatty() and errors.isatty():
        flags["ask"] = True
    with ProgressView(errors, color) as view:
        response = _follow(command, ask(directory, command.words, invocation.arguments, flags, timeout_s), view)
    if response["type"] == "result" and response["result"]["type"] == "question":
        if not _says_yes(f"{response['result']['text']} [y/N] ", errors):
            return _complain(errors, "nothing was done", FAILED)
        del flags["ask"]
        asked = response["result"]["text"].splitlines()
        with ProgressView(errors, color) as view:
            responses = ask(directory, command.words, invocation.arguments, flags, timeout_s)
            response = _follow(command, responses, view, asked)
    if response["type"] == "error":
        return _complain(errors, response["error"], int(response["exit"]))
    render(response["result"], as_json, output, color)
    output.flush()
    return int(response.get("exit", DONE))


def _says_yes(question: str, errors: IO[str]) -> bool:
    """Ask somebody at the terminal."""
    print(question, file=errors, end="", flush=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if not answer.endswith("\n"):
        # Ctrl-C and Ctrl-D are an answer without an end of line.
        print(file=errors)
    return answer.strip().lower() in ("y", "yes")


def _follow(
    command: Command, responses: Iterator[dict[str, Any]], view: ProgressView, known: Sequence[str] = ()
) -> dict[str, Any]:
    """Show the progress, but for lines that are known, and return the final response."""
    try:
        for response in responses:
            if response["type"] != "progress":
                return response
            text = "" if response["text"] in known else response["text"]
            view.show(text, response.get("done", 0), response.get("total", 0))
    except KeyboardInterrupt:
        if not command.goes_on:
            raise
        return {"type": "error", "error": command.goes_on, "exit": FAILED}
    raise AssertionError("a node that ends is an UnreachableError")


def _data_dir(options: Mapping[str, str], environ: Mapping[str, str]) -> str:
    if "data-dir" in options:
        return options["data-dir"]
    # Here, so that a command with --data-dir does not load what it does not need.
    from broker.config_load import ConfigError, load

    try:
        return load(options.get("config"), environ, []).node.data_dir
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _wants_json(options: Mapping[str, str]) -> bool:
    form = options.get("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"--format={form}: must be table or json")
    return form == "json" or "json" in options


def _value_after(argument: str, waiting: list[str]) -> str:
    if not waiting or waiting[0].startswith("--"):
        # A value that looks like a flag is that flag, and the value was forgotten; = gives one that is none.
        raise UsageError(f"{argument} needs a value")
    return waiting.pop(0)


def _complain(errors: IO[str], error: object, exit_code: int) -> int:
    print(f"vmq-admin: {error}", file=errors)
    return exit_code


if __name__ == "__main__":
    main()
