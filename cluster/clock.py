"""The hybrid logical clock (HLC): stamps that order what nodes tell each other, close to the time of day.

Owns this node's newest stamp. It knows nothing of what is stamped, and reads no clock: the caller says what the local
one shows.

Theory of operation
-------------------
A stamp is a u64: UTC milliseconds << 16 | a logical count. A node's stamps grow strictly, whatever its local clock
does: while that stands or steps back the count goes on (past its 16 bits it carries into the milliseconds, which does
no harm). What a node stamps after it has heard of a stamp is above that stamp. Hence a change that was made in
knowledge of another one is the newer of the two, on every node. Two nodes may give the same stamp: whoever compares
stamps breaks ties by store_id.

A stamp more than AHEAD_MS_MAX ahead of the local time is clamped to that and counted. Otherwise one node whose clock
stands in the year 2099 would win every conflict for ever, and take the clocks of all others along.

After a start the caller hands its newest stored stamps to `receive`, so that this life's are above them. Those that a
power loss took may be given again, if the local clock has not gone past them: what must not be mistaken for what
others heard of under the same stamp has something else that tells them apart, as a message has its number.

Invariant: every stamp that `now` gives is above all that it gave and all that `receive` returned before.
"""

from typing import Final, final

from broker.core.epoch import STAMP_LOGICAL_BITS

LOGICAL_BITS: Final = STAMP_LOGICAL_BITS
AHEAD_MS_MAX: Final = 60_000


@final
class HybridClock:
    """This node's stamps. Local times are UTC milliseconds since 1970."""

    def __init__(self) -> None:
        # The newest stamp given or received.
        self.newest = 0
        # Stamps that were too far ahead.
        self.clamped = 0

    def now(self, utc_ms: int) -> int:
        """Return a stamp above every stamp given or received so far."""
        self.newest = max(self.newest + 1, utc_ms << LOGICAL_BITS)
        return self.newest

    def receive(self, stamp: int, utc_ms: int) -> int:
        """Take note of another's stamp; return it as it counts here: clamped if it is too far ahead."""
        # Measured against the local time alone: against the newest stamp, it could creep ahead step by step.
        latest = ((utc_ms + AHEAD_MS_MAX + 1) << LOGICAL_BITS) - 1
        if stamp > latest:
            stamp = latest
            self.clamped += 1
        self.newest = max(self.newest, stamp)
        return stamp

    def ahead_ms(self, utc_ms: int) -> int:
        """Return by how much the newest stamp is ahead of the local time: 0 unless some clock is or was wrong."""
        return max(0, (self.newest >> LOGICAL_BITS) - utc_ms)
