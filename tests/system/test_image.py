"""The container image's steps, outside Docker. tox takes them to make the wheel that it tests: they are run once."""

import os
import subprocess
from pathlib import Path

import pytest
from nodes import LIMIT_S, environment

ROOT = Path(__file__).resolve().parents[2]

# A Python that makes virtual environments of itself, and builds as carelessly as a build may.
CARELESS = """\
#!/bin/sh
set -eu
for last; do :; done
case "$*" in
    "-m venv "*) mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; cp "$0" "$last/bin/vmq-broker" ;;
    *" wheel "*) mkdir "$last/build"; touch "$last/setup.py"; mkdir -p "$WHEELS"; touch "$WHEELS/zvmq.whl" ;;
esac
echo "$@" >>"$SAID"
"""


@pytest.mark.skipif(
    "ZVMQ_IMAGE" not in os.environ, reason="takes minutes: only in tox's system environment, which has made an image"
)
def test_the_image_holds_compiled_programs() -> None:
    programs = Path(os.environ["ZVMQ_IMAGE"]) / "bin"
    said = subprocess.run(
        [programs / "vmq-broker", "--version"], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert "cores: compiled" in said
    for program in ("vmq-admin", "vmq-bench"):
        subprocess.run([programs / program, "--help"], env=environment(), capture_output=True, check=True)


def test_what_a_build_leaves_behind_is_not_left_beside_the_sources(tmp_path: Path) -> None:
    careless, said, wheels = tmp_path / "python", tmp_path / "said", tmp_path / "wheels"
    careless.write_text(CARELESS)
    careless.chmod(0o755)
    before = beside_the_sources()
    subprocess.run(
        ["sh", ROOT / "deploy" / "image.sh", tmp_path / "image", wheels],
        env={**environment(), "PYTHON": str(careless), "SAID": str(said), "WHEELS": str(wheels)},
        check=True,
        timeout=LIMIT_S,
    )
    _venv, built, installed, version = said.read_text().splitlines()
    assert "wheel" in built.split() and installed.endswith(f" install {wheels / 'zvmq.whl'}")
    assert version == "--version"
    assert beside_the_sources() == before


def beside_the_sources() -> dict[str, int]:
    """What lies there, and when it was changed; what tools keep for themselves has hidden names."""
    return {path.name: path.stat().st_mtime_ns for path in ROOT.iterdir() if not path.name.startswith(".")}
