"""One run of one child process: starting it, its control channel, what it logs, its end.

Owns the process and the supervisor's end of the channel. Decides nothing: when to start, stop or restart is
the supervisor's business. A child is executed afresh and never forked: a fork would share sockets and locks.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.logs import NodeLog
from broker.runtime.control import ENVIRONMENT_KEY, LINE_BYTES_MAX, Message, decode_line, encode_line

PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])

MALLOC_SETTINGS = {"MALLOC_TRIM_THRESHOLD_": str(32 * 1024 * 1024), "MALLOC_MMAP_THRESHOLD_": str(4 * 1024 * 1024)}
"""Frames of some 100 KiB come and go all the time: glibc should not give their memory back to the kernel, only to fault
it in again page by page, which costs about 8 % of the CPU time at full load. Whoever sets them otherwise is heard."""

LOG_BYTES_MAX = 65536
"""A child's log line that is longer is written in pieces."""

CLOSING_S = 2.0
"""How long a child may live on after it has closed its control channel, and its pipes after its death."""


def python_command(module: str) -> list[str]:
    """The command of a child: `main()` of a module, by this interpreter, without the working directory on its path."""
    return [sys.executable, "-P", "-c", f"from {module} import main; main()"]


class ChildProcess:
    """A started child. Call `run` once; it returns when the child has ended."""

    def __init__(
        self,
        label: str,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: NodeLog,
    ) -> None:
        self.label = label
        self.process_id = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = log

    @classmethod
    async def start(cls, label: str, command: Sequence[str], inherited: Sequence[int], log: NodeLog) -> "ChildProcess":
        """Start the command with a control channel and the `inherited` descriptors; raises OSError."""
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        environment[ENVIRONMENT_KEY] = str(theirs.fileno())
        for key, value in MALLOC_SETTINGS.items():
            environment.setdefault(key, value)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_ROOT, environment.get("PYTHONPATH", "")]))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(), *inherited),
                # Ctrl-C on the terminal is for the supervisor, which stops its children in order.
                process_group=0,
                env=environment,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES_MAX)
        return cls(label, process, reader, writer, log)

    def send(self, message: Message) -> None:
        """Send a control message; one that can't be delivered is void, as the child is about to end."""
        if not self._writer.is_closing():
            self._writer.write(encode_line(message))

    def kill(self) -> None:
        """End the child at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def run(self, receive: Callable[[Message], None]) -> int:
        """Pass each control message to `receive` until the child has ended; returns its exit code (-signal)."""
        logs = asyncio.create_task(self._read_logs())
        try:
            await self._read_messages(receive)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    await self._process.wait()
        finally:
            # Also when `receive` has failed: no child outlives its run.
            self.kill()
            exit_code = await self._process.wait()
            await asyncio.wait([logs], timeout=CLOSING_S)
            logs.cancel()
            self._writer.close()
        return exit_code

    async def _read_messages(self, receive: Callable[[Message], None]) -> None:
        while True:
            try:
                line = await self._reader.readline()
                if not line:
                    return
                message = decode_line(line)
            except (ValueError, OSError) as error:
                self._log.write(self.label, logging.ERROR, f"control channel: {error}")
                self.kill()
                return
            receive(message)

    async def _read_logs(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while data := await stream.read(LOG_BYTES_MAX):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log.write_child_line(self.label, line)
            if len(rest) > LOG_BYTES_MAX:
                self._log.write_child_line(self.label, rest)
                rest = b""
        self._log.write_child_line(self.label, rest)


def ending(exit_code: int) -> str:
    """An exit code in words."""
    return f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
