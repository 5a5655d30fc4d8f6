"""What an operator should read in the log of one listener process: which limits bite, and whom.

It owns the bounds of that: a limit of the whole node is said when it begins to bite, and again only after a minute in
which it did not; of clients so many lines are said in a minute, and one that there are more. It knows neither clients
nor the log. The seconds are `begin_second`'s, it has no clock.
"""

from typing import Final, final

from broker.core.connection_limits import ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.mqtt.reasons import Reason

QUIET_S: Final = 60
CLIENT_NOTICES_MAX: Final = 10


@final
class _Watched:
    """A counter of what a limit refused, and how long it has stood still."""

    __slots__ = ("quiet_s", "text", "value")

    def __init__(self, text: str) -> None:
        self.text = text
        self.value: int = 0
        self.quiet_s: int = QUIET_S

    def begins(self, value: int) -> bool:
        """Take the counter once a second; true when it went on after a time of quiet."""
        if value == self.value:
            self.quiet_s += 1
            return False
        begins = self.quiet_s >= QUIET_S
        self.value = value
        self.quiet_s = 0
        return begins


@final
class ListenerNotices:
    """The lines that wait to be logged."""

    __slots__ = ("_clients_left", "_connections", "_rate", "_seconds", "_waiting")

    def __init__(self, limits: ConnectionLimits) -> None:
        self._waiting: list[str] = []
        self._clients_left: int = CLIENT_NOTICES_MAX
        self._seconds: int = 0
        self._connections = _Watched("there are as many clients as mqtt.max_connections allows: more are refused")
        self._rate = _Watched(f"more than {limits.connects_per_s_max} clients connect in a second: they are refused")

    def of_client(self, text: str) -> None:
        """Say something of one client; `text` names it."""
        if self._clients_left == 0:
            return
        self._clients_left -= 1
        self._waiting.append(text)
        if self._clients_left == 0:
            self._waiting.append("the clients that are at a limit are too many to name more of them in this minute")

    def begin_second(self, counters: ListenerCounters) -> None:
        """A second is over: look at what the limits of the node have refused in it."""
        for watched, value in (
            (self._connections, counters.connacks[Reason.QUOTA_EXCEEDED]),
            (self._rate, counters.connections_refused),
        ):
            if watched.begins(value):
                self._waiting.append(watched.text)
        self._seconds += 1
        if self._seconds % QUIET_S == 0:
            self._clients_left = CLIENT_NOTICES_MAX

    def take(self) -> list[str]:
        """Return the lines since the last call."""
        waiting, self._waiting = self._waiting, []
        return waiting
