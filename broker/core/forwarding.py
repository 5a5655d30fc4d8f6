"""Forwarding: what this turn has for other nodes, whoever of the owner's parts says so, in order.

It owns the turn's `Forward`s until the owner takes them, and the question whether a node has room. It decides nothing.
"""

from collections.abc import Callable
from typing import final

from broker.core.effects import Forward
from broker.core.message import Message


@final
class Forwarding:
    """The messages on their way to other nodes."""

    def __init__(self) -> None:
        # Whether a node can be sent a message that it has to have.
        self.has_room: Callable[[str, Message], bool] = _has_room
        self._forwards: list[Forward] = []

    def add(self, forward: Forward) -> None:
        """Have the turn forward a message."""
        self._forwards.append(forward)

    def take(self) -> list[Forward]:
        """Return the turn's forwards."""
        forwards, self._forwards = self._forwards, []
        return forwards


def _has_room(node: str, message: Message) -> bool:
    """No link is full where there is none."""
    return True
