"""The container image's steps, run outside Docker into a temporary directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_WAIT_S = 900

pytestmark = [
    # tox sets the variable; building once is enough, and it needs a compiler, which the compiled environment has too.
    pytest.mark.skipif(
        os.environ.get("ZVMQ_COMPILE") != "1", reason="takes minutes: only in tox's compiled environment"
    ),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the image's builder stage has gcc, this machine has not"),
]


def test_the_image_holds_compiled_programs_and_leaves_the_sources_clean(tmp_path: Path) -> None:
    prefix = tmp_path / "zvmq"
    before = {path.name for path in ROOT.iterdir()}
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHON": sys.executable}
    # pip's settings tell where packages come from on this machine.
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    build = subprocess.run(
        ["sh", ROOT / "deploy" / "image.sh", prefix],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_WAIT_S,
    )
    assert build.returncode == 0, build.stdout
    said = subprocess.run(
        [prefix / "bin" / "vmq-broker", "--version"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "cores: compiled" in said
    assert {path.name for path in ROOT.iterdir()} == before
    for program in ("vmq-admin", "vmq-bench"):
        subprocess.run([prefix / "bin" / program, "--help"], env=environment, capture_output=True, check=True)
