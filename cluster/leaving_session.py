"""A leaving session: one that leaves this node, and how far it is. `departures` says what becomes of it."""

import math
from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.transfer import Departure

# What was not answered for so long is said again.
RETRY_S: Final = 0.5


@final
class LeavingSession:
    """A session that leaves: to which home, and how far it is."""

    __slots__ = (
        "client_id",
        "departure",
        "epoch",
        "first_ended",
        "head_taken",
        "home",
        "needs",
        "old_epoch",
        "patience_s",
        "quiet",
        "said_ended",
        "sent_at",
        "sent_to",
        "spoke_at",
        "state",
        "switched",
        "told",
    )

    def __init__(self, departure: Departure, old_epoch: Epoch, epoch: Epoch) -> None:
        self.client_id: str = departure.session.client_id
        self.departure = departure
        self.old_epoch = old_epoch
        self.epoch = epoch
        self.home: bytes = epoch.store_id
        self.head_taken = False
        # The version of the home's wishes that holds the session's subscriptions.
        self.needs: tuple[int, int] = (0, 0)
        # The last place that was sent, when that was, and how long its confirmation may take.
        self.sent_to: int = 0
        self.sent_at: float = -math.inf
        self.patience_s: float = RETRY_S
        self.spoke_at: float = -math.inf
        # Member -> the number from which on it sends to the new home, and the stub's last place by then.
        self.switched: dict[bytes, tuple[int, int]] = {}
        # What the new home was told of that, and whether it was told that this is all.
        self.told: dict[bytes, int] = {}
        self.said_ended = False
        # What it was told when it was first told that this is all.
        self.first_ended: dict[bytes, int] = {}
        # The number of the last STATE.
        self.state: int = 0
        # Whether the home has answered the last that it was told.
        self.quiet = False

    def begin_again(self) -> None:
        """Everything that isn't confirmed is to be sent, from the head on."""
        self.head_taken = False
        self.sent_to = self.departure.confirmed
        self.needs = (0, 0)
        self.switched.clear()
        self.told.clear()
        self.said_ended = False
        self.first_ended = {}
        self.spoke_at = -math.inf
        self.quiet = False

    def is_offered(self) -> bool:
        """Say whether the head was sent to the home."""
        return self.head_taken or self.spoke_at > -math.inf

    def is_read(self) -> bool:
        """Say whether all that was enqueued so far was read."""
        return self.departure.read_to >= self.departure.session.next_seq - 1

    def passed(self) -> dict[bytes, int]:
        """Return below which number of each origin everything is at the new home."""
        departure = self.departure
        first = departure.sent[0].seq if departure.sent else math.inf
        return {
            origin: number
            for origin, (number, place) in self.switched.items()
            if departure.read_to >= place and first > place
        }
