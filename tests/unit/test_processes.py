"""What is read of a process tree, and that all of it is killed."""

import multiprocessing
import os
import resource
import subprocess
import sys
import time

import pytest

from bench import processes

PARENT = """\
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


def burn(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def ended_child(seconds: float = 0.0) -> int:
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(seconds,))
    child.start()
    child.join()
    assert child.pid is not None
    return child.pid


def test_cpu_time_counts_children_that_have_ended() -> None:
    before = processes.cpu_s(os.getpid())
    ended_child(0.3)
    assert processes.cpu_s(os.getpid()) - before >= 0.29


def test_a_process_that_is_gone() -> None:
    gone = ended_child()
    assert (processes.tree(gone), processes.cpu_s(gone), processes.memory_bytes(gone)) == ([], 0.0, 0)


def test_the_whole_tree_is_seen_and_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert processes.tree(parent.pid) == [parent.pid, child]
        assert processes.memory_bytes(parent.pid) > processes.memory_bytes(child) > 0
        processes.kill(parent.pid)
    assert parent.returncode == -9
    # Whoever inherited it may not have taken notice of its end yet; but it does nothing any more.
    assert not processes.tree(child) or processes.memory_bytes(child) == 0


def test_pss_is_read_in_bytes() -> None:
    text = "00400000-7fff0000 ---p 00000000 00:00 0    [rollup]\nRss:      900 kB\nPss:      123 kB\nPss_Anon:  7 kB\n"
    assert processes.pss_bytes(text) == 123 * 1024
    assert processes.pss_bytes("") == 0


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "found"),
    [
        (1000, 2000, 500, False, (1000, None)),
        (1000, 2000, 1500, False, (1500, (1500, 2000))),
        (1000, 2000, 5000, True, (5000, (5000, 5000))),
        (1000, 2000, 5000, False, (2000, (2000, 2000))),
    ],
)
def test_the_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    wanted: int,
    allowed: bool,
    found: tuple[int, tuple[int, int] | None],
) -> None:
    said: list[tuple[int, int]] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        if limits[1] > hard and not allowed:
            raise ValueError("not allowed to raise maximum limit")
        said.append(limits)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert (processes.raise_descriptor_limit(wanted), said[-1] if said else None) == found
