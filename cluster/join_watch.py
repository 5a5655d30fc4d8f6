"""What was seen of the connection of an attempt to join, and when that says for certain why it failed.

Owns the judgement. It knows neither sockets nor their monitors: `transport` names what it saw.

A refused handshake looks the same whatever the cause: a wrong server key, or a port that speaks something else. So it
takes several to be certain. A TCP connection that fails is told at once, since whoever joins waits for the answer.
"""

from enum import Enum, auto
from typing import Final, final

from cluster.commands import JoinFailed

# A busy node may miss one handshake; a node with another cookie fails them all. 3 * 2 s are within the 10 s in which
# `cluster join` has to say so.
HANDSHAKE_FAILURES_MAX: Final = 3
# The first words are promised to users; the name is part of the key that is expected over there.
HANDSHAKE_REFUSED: Final = (
    "handshake refused: different cookie, or not a zvmq cluster port, or the node there has another name"
)

# A connection that ended a little before its time limit has timed out.
TIMEOUT_SHARE: Final = 0.9


class Seen(Enum):
    """What the monitor of a connection has to say."""

    # The host name was looked up; TCP is under way.
    CONNECTING = auto()
    CONNECTED = auto()
    HANDSHAKE_DONE = auto()
    HANDSHAKE_FAILED = auto()
    KEY_REFUSED = auto()
    DISCONNECTED = auto()
    # The attempt is over, the next will follow.
    RETRIED = auto()


@final
class JoinWatch:
    """One attempt to join."""

    def __init__(self, connect_timeout_s: float, now: float, failures_max: int = HANDSHAKE_FAILURES_MAX) -> None:
        self._times_out_at = now + connect_timeout_s * TIMEOUT_SHARE
        self._resolved = False
        self._connected = False
        self._broken = False
        self._shaken = False
        # How many handshakes failed, and with how many it is certain.
        self.failures = 0
        self._failures_max = failures_max

    def see(self, seen: Seen, now: float) -> JoinFailed | None:
        """Take what was seen; return why the attempt failed once that is certain."""
        if seen is Seen.HANDSHAKE_DONE:
            self._shaken = True
        elif seen is Seen.CONNECTING:
            self._resolved = True
            self._broken = False
        elif seen is Seen.CONNECTED:
            self._connected = True
        elif seen is Seen.KEY_REFUSED:
            # Told only to a key that isn't admitted, which the join key towards the name of the node there always is.
            return JoinFailed("handshake", HANDSHAKE_REFUSED)
        elif seen is Seen.HANDSHAKE_FAILED:
            return self._handshake_failed()
        elif seen is Seen.DISCONNECTED:
            if self._shaken:
                return JoinFailed("disconnected", "the connection was closed before an answer came")
            if self._connected:
                return self._handshake_failed()
        elif not self._broken and not self._connected:
            if not self._resolved:
                return JoinFailed("unknown", "unknown host")
            if now >= self._times_out_at:
                return JoinFailed("timeout", "the TCP connection timed out")
            return JoinFailed("refused", "the TCP connection was refused")
        return None

    def _handshake_failed(self) -> JoinFailed | None:
        self._connected = False
        self._broken = True
        self.failures += 1
        return JoinFailed("handshake", HANDSHAKE_REFUSED) if self.failures >= self._failures_max else None
