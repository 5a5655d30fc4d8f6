"""What `make run` and `make stop` call: a cluster on the fixed ports, used and ended.

It runs a copy of deploy/lab.py, whose directory is then its own, where it can on a loopback of its own: nobody's lab is
touched.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import ADMIN, LIMIT_S, environment, port_is_free, processes_in, wait_until

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PORTS = [1883, 44053]
READY_LIMIT_S = 120.0


class Lab:
    """A lab in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.directory = root / ".lab"
        self.program = root / "deploy" / "lab.py"
        self.program.parent.mkdir()
        shutil.copy(ROOT / "deploy" / "lab.py", self.program)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.program), *arguments]

    def run(self, *arguments: str) -> str:
        """Run lab.py, which must succeed; returns what it printed."""
        # Not a pipe: a node that inherited it would keep it open.
        with (self.directory.parent / "output").open("w+") as output:
            ran = subprocess.run(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                timeout=READY_LIMIT_S,
            )
            output.seek(0)
            said = output.read()
        assert ran.returncode == 0, said
        return said

    def processes(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for number in (1, 2, 3):
            found |= processes_in(self.directory / f"node{number}")
        return found


@pytest.fixture
def lab(tmp_path: Path, fresh_loopback: None) -> Iterator[Lab]:
    taken = [f"{host}:{port}" for host in HOSTS for port in PORTS if not port_is_free(host, port)]
    if taken:
        pytest.skip(f"the lab's fixed ports are taken, maybe by `make run`: {', '.join(taken)}")
    lab = Lab(tmp_path)
    yield lab
    lab.run("stop")
    assert not lab.processes()


def test_the_lab(lab: Lab) -> None:
    said = lab.run("start", "--detach")
    for host, number in zip(HOSTS, (1, 2, 3), strict=True):
        assert f"ready: node{number}@{host} mqtt={host}:1883\n" in said
        assert f"| node{number}@{host} | true    |\n" in said
    assert "node3@127.0.0.3 received lab/hello: hello from node1@127.0.0.1\n" in said
    assert len(lab.processes()) >= 3 * 3
    show = [ADMIN, "--config", lab.directory / "node2" / "zvmq.yml", "cluster", "show", "--format", "json"]
    shown = subprocess.run(show, capture_output=True, text=True, env=environment(), check=True, timeout=LIMIT_S).stdout
    assert [row["Running"] for row in json.loads(shown)["table"]] == [True] * 3
    assert "the lab runs already" in lab.run("start", "--detach")
    lab.run("stop")
    assert not lab.processes()
    assert all(port_is_free(host, port) for host in HOSTS for port in PORTS)
    # In the foreground the next start finds the cluster as it was left, and Ctrl-C ends it.
    output = lab.directory.parent / "foreground"
    with (
        output.open("w") as file,
        subprocess.Popen(
            lab.command("start"), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment()
        ) as foreground,
    ):
        try:
            wait_until(
                lambda: "Ctrl-C ends it." in output.read_text() or foreground.poll() is not None,
                "the lab is ready",
                READY_LIMIT_S,
            )
            foreground.send_signal(signal.SIGINT)
            assert foreground.wait(LIMIT_S) == 0, output.read_text()
        finally:
            foreground.kill()
    said = output.read_text()
    assert said.count("is a member already") == 2, said
    assert "node3@127.0.0.3 received lab/hello: hello from node1@127.0.0.1\n" in said
    assert not lab.processes()
