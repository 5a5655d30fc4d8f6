"""Giving the command `cluster leave` at real nodes: to its end, beside something else, and on a terminal."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from nodes import LIMIT_S, Node, environment


def leave(at: Node, node: Node, *flags: str) -> tuple[int, str, list[str]]:
    """Give the command at a node; return its exit code, the last it says, and its progress."""
    done = at.admin("cluster", "leave", f"node={node.name}", *flags)
    return ended(done.returncode, done.stdout, done.stderr)


def ended(code: int, output: str, errors: str) -> tuple[int, str, list[str]]:
    """Return exit code, last word and progress of a command that has said all this."""
    said = errors.splitlines()
    last = output.strip() if code == 0 else said.pop()
    return code, last, said


class Leaving:
    """A command that waits."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._first = ""

    def wait_taken(self) -> None:
        """Wait until it says how far the leave is."""
        assert self._process.stderr is not None
        self._first = self._process.stderr.readline()

    def lose(self) -> None:
        """Kill it."""
        self._process.kill()

    def interrupt(self) -> None:
        """Send it what Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str, list[str]]:
        """Wait for its end and return what `leave` does."""
        output, errors = self._process.communicate(timeout=2 * LIMIT_S)
        return ended(self._process.returncode, output, self._first + errors)


@contextmanager
def leaving(at: Node, node: Node, *flags: str) -> Iterator[Leaving]:
    """Give the command at a node, and do something else meanwhile; it is gone afterwards."""
    command = at.admin_command("cluster", "leave", f"node={node.name}", *flags)
    with subprocess.Popen(
        # What runs in the background of a script has its interrupts ignored, and hands that on.
        ["env", "--default-signal=INT", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield Leaving(process)
        finally:
            process.kill()


def leave_on_terminal(at: Node, node: Node, *flags: str, answer: str = "") -> tuple[int, str]:
    """Give the command on a terminal, and answer what it asks; return its exit code and all that the terminal shows."""
    mine, terminal = pty.openpty()
    try:
        command = at.admin_command("cluster", "leave", f"node={node.name}", *flags)
        with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment()) as process:
            os.close(terminal)
            terminal = -1
            if answer:
                # What is typed ahead waits for the question.
                os.write(mine, f"{answer}\n".encode())
            shown = b""
            # Linux says EIO when nobody has the terminal open any more.
            while part := _read(mine):
                shown += part
            return process.wait(LIMIT_S), shown.decode()
    finally:
        os.close(mine)
        if terminal >= 0:
            os.close(terminal)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
