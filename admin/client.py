"""The client of a node's admin socket: one request, its responses.

Owns the connection and its time limits. Knows nothing of what is asked or how answers are shown.
The grammar is in `broker/runtime/admin_socket.py`.
"""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

SOCKET_NAME = "admin.sock"

RESPONSE_BYTES_MAX = 64 * 1024 * 1024


class UnreachableError(Exception):
    """No node answers on this data_dir."""


class NoAnswerError(Exception):
    """The node did not answer in time."""


def connect(data_dir: str) -> socket.socket:
    """Connect to the node that runs on `data_dir`; raises UnreachableError."""
    try:
        # Through the directory's descriptor, because a socket address has room for 107 bytes only.
        directory = os.open(os.path.join(data_dir, "run"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreachableError(f"no node runs on {data_dir}: {error.strerror}") from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
    except OSError as error:
        connection.close()
        raise UnreachableError(f"no node runs on {data_dir}: {error.strerror}") from None
    finally:
        os.close(directory)
    return connection


def ask(
    data_dir: str, command: str, arguments: dict[str, Any], flags: dict[str, Any], timeout_s: float
) -> Iterator[dict[str, Any]]:
    """Ask the node; yields its responses, the final one last.

    `timeout_s` is the longest silence. Raises UnreachableError, also when the node ends without an answer, and
    NoAnswerError.
    """
    with connect(data_dir) as connection:
        connection.settimeout(timeout_s)
        try:
            request = {"command": command, "arguments": arguments, "flags": flags}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                while line := stream.readline(RESPONSE_BYTES_MAX):
                    response = json.loads(line)
                    yield response
                    if response["type"] != "progress":
                        return
        except TimeoutError:
            raise NoAnswerError(f"the node did not answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise UnreachableError(f"the connection to the node broke: {error}") from None
    raise UnreachableError("the node closed the connection without an answer")
