"""Waiting SUBACKs: with `cluster.subscribe_wait: cluster` one leaves when every running member knows its subscriptions.

Owns the SUBACKs that wait and in which order they leave. It knows nothing of subscriptions: it is told the version of
this node's wishes that has them, and `mesh` says which versions the members have confirmed.

A member confirms in its stream to this node, ahead of what it routes by that version. So a message that is published
anywhere after the SUBACK reaches the subscriber. Nobody is waited for who does not run, and nobody for longer than
WAIT_S: a client that has no answer at all is worse off than one whose subscription takes a little longer to get around.
"""

import math
from collections import deque
from typing import Final, final

from broker.core.subscribing import Suback
from cluster.mesh import Mesh

# Less than clients wait for a SUBACK (10 s and more), and as long as a registration may take.
WAIT_S: Final = 5.0
# Clients may ask again and again while they wait; beyond this number the oldest wait no longer.
SUBACKS_MAX: Final = 65_536


@final
class SubscribeWait:
    """The SUBACKs of this node that wait for other nodes, oldest first."""

    def __init__(self, mesh: Mesh) -> None:
        # How many left before every running member had confirmed.
        self.unconfirmed: int = 0
        self._mesh = mesh
        self._waiting: deque[tuple[Suback, tuple[int, int], float]] = deque()

    def add(self, subacks: list[Suback], now: float) -> None:
        """Have these wait; what they grant has been told to the members."""
        version = self._mesh.own.wishes_version()
        for suback in subacks:
            self._waiting.append((suback, version, now + WAIT_S))

    def take_due(self, now: float) -> list[Suback]:
        """Return those that wait no longer, in the order in which they were asked for."""
        due: list[Suback] = []
        while self._waiting:
            suback, version, until = self._waiting[0]
            if not self._mesh.is_confirmed(version):
                if now < until and len(self._waiting) <= SUBACKS_MAX:
                    break
                self.unconfirmed += 1
            self._waiting.popleft()
            due.append(suback)
        return due

    def next_deadline(self) -> float:
        """Return when `take_due` has something."""
        if not self._waiting:
            return math.inf
        _, version, until = self._waiting[0]
        return 0.0 if self._mesh.is_confirmed(version) else until
