"""The admin socket of a node: `<data_dir>/run/admin.sock`, mode 0600, one JSON object a line.

    request     {"command": "cluster show", "arguments": {...}, "flags": {...}}
    responses   {"type": "progress", "text": ...}, any number, then exactly one of
                {"type": "result", "result": {"type": "table", "table": [{column: value, ...}, ...]}}
                {"type": "result", "result": {"type": "text", "text": "Done"}}
                    with "exit": 1 in it when the result is bad news
                {"type": "error", "error": text, "exit": exit code of vmq-admin}

Owns the socket, its limits and the checking of requests; what a command does it does not know.
A connection may ask several times, one request after the other.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from broker.commands import Command, NotServedError, UsageError, find
from broker.runtime.control import Message, decode_line, encode_line

NAME = "admin.sock"

CONNECTIONS_MAX = 32
REQUEST_BYTES_MAX = 65536
IDLE_S = 60.0
"""How long a connection may stay without asking."""

Progress = Callable[[Message], None]
Execute = Callable[[Command, dict[str, Any], dict[str, Any], Progress], Awaitable[Message]]


def text_result(text: str) -> Message:
    """A response that is a text."""
    return {"type": "result", "result": {"type": "text", "text": text}}


def error_response(text: str, exit_code: int = 1) -> Message:
    """A response that refuses."""
    return {"type": "error", "error": text, "exit": exit_code}


class AdminSocket:
    """Serves requests with `execute(command, arguments, flags, progress)`, which answers the final response."""

    def __init__(self, path: str, execute: Execute) -> None:
        self._path = path
        self._execute = execute
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises OSError. A socket left by a killed node is replaced: the caller holds the node's lock."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(self._path)
        os.chmod(self._path, 0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=REQUEST_BYTES_MAX)

    async def close(self) -> None:
        """Stop listening, end the connections, remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._connections) >= CONNECTIONS_MAX:
                writer.write(encode_line(error_response("too many admin connections to this node; try again")))
                return
            self._connections.add(task)
            # Somebody who hangs up or stays silent has ended the connection, and nothing more.
            with contextlib.suppress(OSError, TimeoutError):
                while await self._answer(reader, writer):
                    await writer.drain()
        except asyncio.CancelledError:
            # Only `close` cancels; asyncio would report it as an error of the connection.
            return
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(IDLE_S):
            try:
                line = await reader.readline()
            except ValueError:
                writer.write(encode_line(error_response("request too long", 2)))
                return False
        if not line:
            return False
        response = await self._respond(line, lambda message: writer.write(encode_line(message)))
        writer.write(encode_line(response))
        return True

    async def _respond(self, line: bytes, progress: Progress) -> Message:
        try:
            command, arguments, flags = parse_request(line)
            return await self._execute(command, arguments, flags, progress)
        except UsageError as error:
            return error_response(str(error), 2)
        except NotServedError as error:
            return error_response(str(error), 1)


def parse_request(line: bytes) -> tuple[Command, dict[str, Any], dict[str, Any]]:
    """The command of a request line, its arguments and flags; raises UsageError or NotServedError."""
    try:
        request = decode_line(line)
    except ValueError as error:
        raise UsageError(f"malformed request: {error}") from None
    words, arguments, flags = request.get("command"), request.get("arguments", {}), request.get("flags", {})
    if not isinstance(words, str) or not isinstance(arguments, dict) or not isinstance(flags, dict):
        raise UsageError("malformed request: needs command, arguments and flags")
    command, rest = find(words.split())
    if rest and command.served:
        raise UsageError(f"`{command.words}` does not take {' '.join(rest)}")
    command.check(arguments, flags)
    return command, arguments, flags
