"""Commands that the queue-owner carries out: asked over its control channel, answered once, or late, or never.

Owns the calls under way and their time limits. Knows nothing of what a command means, and does not start the owner.
"""

import asyncio
from typing import Any

from broker.commands import Command
from broker.runtime.admin_socket import Progress, error_response
from broker.runtime.child_process import ChildProcess
from broker.runtime.control import Message


class OwnerCalls:
    """Commands that wait for the owner's reply."""

    def __init__(self) -> None:
        # A text in a queue says why the owner has ended.
        self._waiting: dict[int, asyncio.Queue[Message | str]] = {}
        self._number = 0

    async def ask(
        self,
        owner: ChildProcess,
        command: Command,
        arguments: dict[str, Any],
        flags: dict[str, Any],
        progress: Progress,
    ) -> Message:
        """Send a command to the owner, pass its progress on, and return the final response.

        The time limit is for silence: whoever says how far it is has it anew.
        """
        self._number += 1
        number = self._number
        replies = self._waiting[number] = asyncio.Queue()
        owner.send({"type": "command", "id": number, "command": command.words, "arguments": arguments, "flags": flags})
        try:
            async with asyncio.timeout(command.time_limit_s) as limit:
                while True:
                    reply = await replies.get()
                    if isinstance(reply, str):
                        return error_response(reply)
                    if reply["type"] == "reply":
                        break
                    limit.reschedule(asyncio.get_running_loop().time() + command.time_limit_s)
                    progress({name: value for name, value in reply.items() if name != "id"})
        except TimeoutError:
            return error_response(f"no answer within {command.time_limit_s:g} s", 4)
        finally:
            del self._waiting[number]
        if "error" in reply:
            return error_response(str(reply["error"]), int(reply.get("exit", 1)))
        return {"type": "result", **{name: reply[name] for name in ("result", "exit") if name in reply}}

    def receive(self, message: Message) -> None:
        """Pass a reply on. One that comes after its time limit is void."""
        replies = self._waiting.get(message.get("id", 0))
        if replies is not None:
            replies.put_nowait(message)

    def owner_gone(self, why: str) -> None:
        """End all calls; `why` is for those who gave the commands."""
        for replies in self._waiting.values():
            replies.put_nowait(why)
