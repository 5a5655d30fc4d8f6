"""vmq-broker: the command line of a node.

Owns the arguments and the exit codes: 0 clean, 1 failed, 2 bad usage or configuration, 3 removed from the cluster.
Running a node is the supervisor's business.
"""

import argparse
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence

from broker import __version__
from broker.config import Config
from broker.config_load import ConfigError, load

FAILED = 1
USAGE = 2

CORES = ("broker.core.owner", "broker.mqtt.codec")
"""Modules that stand for the pure packages, which are compiled together or not at all."""

DESCRIPTION = "A clustered MQTT broker. `vmq-broker start` with no configuration listens on 127.0.0.1:1883."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run vmq-broker and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run vmq-broker; returns its exit code. argparse exits by itself with 2 for bad usage, 0 for help."""
    options = parser().parse_args(arguments)
    if options.version:
        print(version_text())
        return 0
    if options.command is None:
        parser().print_usage(sys.stderr)
        return USAGE
    try:
        config = load(options.config, os.environ, options.set)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    if options.command == "check-config":
        print(f"the configuration of {config.node.name} is good")
        return 0
    if options.command in ("backup", "restore"):
        return _copy_store(config, options)
    return _start(config, options)


def parser() -> argparse.ArgumentParser:
    """The parser of vmq-broker's arguments."""
    program = argparse.ArgumentParser(prog="vmq-broker", description=DESCRIPTION, allow_abbrev=False)
    program.add_argument("--version", action="store_true", help="say version, cores and libraries")
    commands = program.add_subparsers(dest="command", metavar="COMMAND")
    start = commands.add_parser("start", help="run a node in the foreground", allow_abbrev=False)
    start.add_argument(
        "--recover-queues", action="store_true", help="serve nobody: give the queues of a removed node to the cluster"
    )
    check = commands.add_parser("check-config", help="say what is wrong with a configuration", allow_abbrev=False)
    backup = commands.add_parser(
        "backup", help="copy the store of a node, running or stopped, to a new directory", allow_abbrev=False
    )
    restore = commands.add_parser(
        "restore", help="make a backup the store of a node that is stopped", allow_abbrev=False
    )
    for command in (backup, restore):
        command.add_argument("directory", metavar="DIR")
    restore.add_argument("--force", action="store_true", help="put aside the store that is there")
    for command in (start, check, backup, restore):
        command.add_argument("--config", metavar="FILE", help="configuration file (else $ZVMQ_CONFIG, ./zvmq.yml, ...)")
        command.add_argument(
            "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="set a key, wins over the file"
        )
    return program


def version_text() -> str:
    """Version, compiled or interpreted cores, versions of libzmq and the RocksDB binding."""
    import zmq

    return "\n".join(
        [
            f"zvmq {__version__}",
            f"cores: {'compiled' if all(_is_compiled(name) for name in CORES) else 'interpreted'}",
            f"libzmq {zmq.zmq_version()} (pyzmq {_version('pyzmq')})",
            f"RocksDB as in rocksdict {_version('rocksdict')}",
        ]
    )


def _start(config: Config, options: argparse.Namespace) -> int:
    # Here, so that `check-config` and `--version` need no more than they use.
    from broker.runtime.supervisor import StartError, run_node

    try:
        return run_node(
            config, reload=lambda: load(options.config, os.environ, options.set), recovers=options.recover_queues
        )
    except StartError as error:
        print(f"vmq-broker: {error}", file=sys.stderr)
        return FAILED


def _copy_store(config: Config, options: argparse.Namespace) -> int:
    from broker.runtime.backup import BackupError, backup, restore

    try:
        if options.command == "backup":
            backup(config, options.directory)
            print(f"the store of {config.node.name} is in {options.directory}")
            return 0
        replaced = restore(config, options.directory, options.force)
    except BackupError as error:
        print(f"vmq-broker: {error}", file=sys.stderr)
        return FAILED
    print(f"{config.node.name} has the store from {options.directory}; it is in no cluster, and joins as a new member")
    if replaced:
        print(f"the store that was there is in {replaced}")
    return 0


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _is_compiled(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    origin = spec.origin if spec else None
    return origin is not None and origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


if __name__ == "__main__":
    main()
