"""What the kernel says about a process and everything below it (/proc), and how all of that is killed.

Knows nothing about brokers.
"""

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

# Fields of /proc/<pid>/stat after the command's closing parenthesis: utime, stime, cutime, cstime, in clock ticks.
CPU_FIELDS = slice(11, 15)
GONE = (FileNotFoundError, ProcessLookupError)
KILL_WAIT_S = 10.0
POLL_S = 0.01


def tree(process: int) -> list[int]:
    """A process and everything below it that lives, parents first; empty when it is gone."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except GONE:
        return []
    # Whatever lives has a thread.
    if not tasks:
        return []
    return [process, *(below for text in tasks for child in text.split() for below in tree(int(child)))]


def cpu_s(process: int) -> float:
    """CPU seconds of a process and everything below it so far, those that have ended included."""
    ticks = 0
    for member in tree(process):
        # One that has ended since its parent was asked counts with its parent.
        with contextlib.suppress(*GONE):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(value) for value in fields[CPU_FIELDS])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(process: int) -> int:
    """Memory of a process and everything below it; a page that several of them share counts once in all (PSS)."""
    total = 0
    for member in tree(process):
        with contextlib.suppress(*GONE):
            total += pss_bytes(Path(f"/proc/{member}/smaps_rollup").read_text())
    return total


def pss_bytes(rollup: str) -> int:
    """The Pss line of an smaps_rollup, in bytes; 0 without one, as of a process that is ending."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def kill(process: int) -> None:
    """End a process and everything below it by SIGKILL, the parent first, so that it starts nothing again.

    What it starts at that very moment is not seen here, and has to notice by itself that its parent is gone. Returns
    once all of them are gone but the process itself, which its own parent has to wait for.
    """
    members = tree(process)
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT_S
    while any(_is_alive(member) for member in members) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except GONE:
        return False
    return state not in ("Z", "X")


def raise_descriptor_limit(wanted: int) -> int:
    """Let this process, and those that it starts, have `wanted` open files; returns how many they may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    if hard < wanted:
        # Beyond the hard limit only who is privileged may go.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    allowed = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
