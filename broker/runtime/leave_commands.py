"""The admin command `cluster leave` at the queue-owner: its arguments become an order, and what is said replies.

Owns the words of the command line and the commands that wait. What an order does is decided in `cluster`.
"""

from collections.abc import Callable
from typing import Any

from broker.commands import UsageError
from cluster.leave_desk import Said
from cluster.leave_frames import Order, Verb
from cluster.leaving import State
from cluster.node import NodeCore

SECONDS_MAX = 10 * 365 * 86400
RATE_MAX = 1_000_000

Send = Callable[[dict[str, Any]], None]


def leave_order(flags: dict[str, Any]) -> Order:
    """Return the order that these flags of the command line make; raises UsageError."""
    verbs = [
        verb
        for flag, verb in (("abort", Verb.ABORT), ("dry-run", Verb.DRY_RUN), ("kill_sessions", Verb.MOVE))
        if flags.get(flag)
    ]
    if Verb.ABORT in verbs and (len(verbs) > 1 or flags.get("force") or flags.get("status")):
        raise UsageError("--abort goes with no other flag")
    verb = verbs[0] if verbs else Verb.MOVE if flags.get("force") else Verb.STOP_LISTENERS
    targets = tuple(name.strip() for name in str(flags.get("force-targets", "")).split(",") if name.strip())
    if "force-targets" in flags and not targets:
        # A script whose variable is empty does not mean all of them.
        raise UsageError("--force-targets needs the names of nodes (example --force-targets=node1@127.0.0.1)")
    return Order(
        verb,
        _whole(flags, "summary-interval", "-i", 5, SECONDS_MAX),
        _whole(flags, "timeout", "-t", 60, SECONDS_MAX),
        _whole(flags, "rate", "--rate", 0, RATE_MAX) if "rate" in flags else 0,
        bool(flags.get("force")),
        targets,
    )


def _whole(flags: dict[str, Any], name: str, shown: str, default: int, most: int) -> int:
    text = str(flags.get(name, default))
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise UsageError(f"{shown} {text}: must be a whole number from 1 to {most}")
    return int(text)


def leave_table(node: NodeCore) -> list[dict[str, Any]]:
    """Return what `cluster leave --status` shows: the leave of every member, as far as this node has heard of it."""
    return [
        {
            "Node": name,
            "State": None if report is None else State(report.state).text(),
            "Progress": None if report is None else report.line or None,
            "Failure": None if report is None else report.failure or None,
        }
        for name, report in node.leave_desk.status()
    ]


class LeaveCommands:
    """The commands of one node's operators. `send` sends a message to the supervisor."""

    def __init__(self, node: NodeCore, send: Send) -> None:
        self._node = node
        self._send = send

    def command(self, number: int, name: str, flags: dict[str, Any], now: float) -> None:
        """Take a command; the replies come from `answer`, now or later."""
        try:
            order = leave_order(flags)
        except UsageError as error:
            self._send({"type": "reply", "id": number, "error": str(error), "exit": 2})
            return
        if flags.get("status"):
            self._reply(number, {"type": "table", "table": leave_table(self._node), "below": ["Failure"]})
            return
        self._node.leave_desk.command(number, name, order, now, bool(flags.get("ask")))

    def answer(self) -> None:
        """Pass on what is said to commands; everything that it promises must be committed."""
        for said in self._node.leave_desk.take_said():
            if said.is_end:
                self._end(said)
            else:
                progress = {"type": "progress", "id": said.command, "text": said.text}
                self._send({**progress, "done": said.moved, "total": said.queues})

    def _end(self, said: Said) -> None:
        if said.asks:
            self._reply(said.command, {"type": "question", "text": said.text})
        elif said.exit_code:
            self._send({"type": "reply", "id": said.command, "error": said.text, "exit": said.exit_code})
        else:
            self._reply(said.command, {"type": "text", "text": said.text})

    def _reply(self, number: int, result: dict[str, Any]) -> None:
        self._send({"type": "reply", "id": number, "result": result})
