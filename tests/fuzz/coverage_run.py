"""Searches with coverage as its guide: `python tests/fuzz/coverage_run.py [--seconds N] [TARGET ...]`, `make fuzz`.

Each target is run in a process of its own by atheris (libFuzzer for Python), which is no dependency of the suite. The
corpus is kept under `.fuzz/`, so that the next run goes on from this one. A finding is printed once for each place that
raises it, with the bytes, and the search goes on; a hang or an exhausted memory ends the target, and libFuzzer prints
the bytes. The exit code is 1 when anything was found.
"""

import argparse
import hashlib
import importlib
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".fuzz"
HANG_S = 20
MEMORY_MB_MAX = 1500
INPUT_BYTES_MAX = 4096
# How a child says that it has found something.
FINDING = "FINDING"
# What else libFuzzer says.
PROGRESS = r'#\d+\t|INFO: |WARNING: Failed|stat::|Done |###### |"'


def targets() -> list[str]:
    """The names of all targets: each lies in a module of its own."""
    prefix = "test_fuzz_"
    return sorted(path.stem.removeprefix(prefix) for path in Path(__file__).parent.glob(f"{prefix}*.py"))


def search(name: str, seconds: int) -> None:
    """Search for so long; libFuzzer ends the process."""
    import atheris

    sys.path.insert(0, str(ROOT / "tests" / "unit"))
    with atheris.instrument_imports(include=["broker", "cluster"]):
        target = importlib.import_module(f"test_fuzz_{name}").TARGET
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    places: set[tuple[str, int, str]] = set()

    def try_one(data: bytes) -> None:
        try:
            target.check(data)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = (last.filename, last.lineno or 0, type(error).__name__)
            if place not in places:
                places.add(place)
                traceback.print_exc()
                print(f'{FINDING} {name}: bytes.fromhex("{data.hex()}")', file=sys.stderr, flush=True)

    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={corpus}-",
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, try_one)
    atheris.Fuzz()


def run(name: str, seconds: int) -> bool:
    """Search in a child, print what it did in a line and what it found; true when that is nothing."""
    command = [sys.executable, __file__, "--child", "--seconds", str(seconds), name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    (KEPT / f"{name}.log").write_text(output)
    executions = re.search(r"number_of_executed_units: *(\d+)", output)
    findings = output.count(f"\n{FINDING} ") + output.startswith(FINDING)
    coverage = re.findall(r"\bcov: (\d+)", output)
    print(
        f"{name}: {executions.group(1) if executions else '?'} executions in {seconds} s, "
        f"coverage {coverage[-1] if coverage else '?'}, {findings} findings, exit code {done.returncode}",
        flush=True,
    )
    if not findings and not done.returncode:
        return True
    # Tracebacks and bytes, without the search's progress.
    print("\n".join(line for line in output.splitlines() if not re.match(PROGRESS, line)))
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(targets())}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(targets()):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.child:
        search(arguments.targets[0], arguments.seconds)
        return 0
    KEPT.mkdir(exist_ok=True)
    clean = [run(name, arguments.seconds) for name in arguments.targets or targets()]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
