"""Compiles the pure cores with mypyc when a C compiler and Python's headers are there; setup.cfg holds the rest.

ZVMQ_COMPILE=0 never compiles, =1 makes every failure fatal, =auto (the default) falls back to the same modules
interpreted and says so in one line. Editable installs are always interpreted, so that no stale compiled file can
shadow the source that is being edited. Everything is built in a temporary directory: the source tree stays clean, and
two builds at once, or a build after a module was removed, cannot mix.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

CORE_GLOBS = ("broker/mqtt/*.py", "broker/core/*.py", "cluster/*.py")
# transport.py talks to ZeroMQ; an __init__ holds no code worth compiling.
NOT_COMPILED = ("__init__.py", "transport.py")
BUILD_COMMANDS = {"bdist_wheel", "build", "build_ext", "install"}
MODE = os.environ.get("ZVMQ_COMPILE", "auto")
CPUS = os.cpu_count() or 1


def core_modules() -> list[str]:
    """The source files of the pure cores, relative to this file."""
    root = Path(__file__).resolve().parent
    found = (path for glob in CORE_GLOBS for path in root.glob(glob) if path.name not in NOT_COMPILED)
    return sorted(str(path.relative_to(root)) for path in found)


def missing_tool() -> str:
    """What compiling needs and this machine lacks, or an empty string."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h (Debian: python3-dev)"
    return ""


def give_up(reason: str) -> None:
    """End the build when compiling was demanded, else say that the cores stay interpreted."""
    if MODE == "1":
        sys.exit(f"ZVMQ_COMPILE=1, but the cores cannot be compiled: {reason}")
    print(f"zvmq: the cores are installed interpreted: {reason}", file=sys.stderr)


def core_extensions(build_directory: str) -> list[Extension]:
    """The extension modules to build: all of the cores, or none."""
    if MODE not in ("0", "1", "auto"):
        sys.exit(f"ZVMQ_COMPILE={MODE}: must be 0, 1 or auto")
    if MODE == "0" or not BUILD_COMMANDS & set(sys.argv):
        return []
    reason = missing_tool()
    if reason:
        give_up(reason)
        return []
    try:
        from mypyc.build import mypycify

        return mypycify(
            core_modules(),
            opt_level="3",
            debug_level="0",
            # A C file for each module, of one library still: one file for all of them would keep one CPU busy.
            multi_file=True,
            group_name="zvmq_cores",
            target_dir=build_directory,
        )
    except (ImportError, SystemExit) as error:
        # mypycify prints the type errors that it finds, then exits.
        give_up(f"mypyc failed ({error})")
        return []


class BuildCores(build_ext):
    """Builds every extension or none: they share one library, so a part of them could not even be imported."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the C files of an extension side by side, then link it."""

        def compile_one(source: str) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=ext.extra_compile_args,
            )

        with ThreadPoolExecutor(CPUS) as pool:
            for objects in pool.map(compile_one, ext.sources):
                ext.extra_objects += objects
        ext.sources = []
        super().build_extension(ext)

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            print(error, file=sys.stderr)
            give_up("the C compiler failed, see above")
            for output in self.get_outputs():
                Path(output).unlink(missing_ok=True)
            self.extensions = []


with tempfile.TemporaryDirectory(prefix="zvmq-build-") as build_directory:
    setup(
        ext_modules=core_extensions(build_directory),
        cmdclass={"build_ext": BuildCores},
        options={"build": {"build_base": build_directory}, "build_ext": {"parallel": CPUS}},
    )
