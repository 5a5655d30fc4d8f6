"""Reclaiming: what members were to have for shared groups, and had not acknowledged when they died, others get.

Owns when the outboxes of dead members are looked through for that. Which groups have somebody else the caller says, and
it gives them what was taken back; how a link finds it `link` knows.

A member that is only not heard yet after a start of this node is not dead: what was on its way to it waits for the
failure timeout.
"""

import math
from collections.abc import Callable
from typing import Final, final

from broker.core.message import Message
from cluster.peers import Peer, Peers
from cluster.turn import Turn

# How often is looked, at most, whether somebody else can have by now what waits for dead members.
AGAIN_S: Final = 1.0


@final
class Reclaiming:
    """Takes back messages for groups; they are among the turn's messages then."""

    def __init__(self, peers: Peers, turn: Turn, first_at: float) -> None:
        # Whether others than a member that died could have a message of a group, by its shared filter.
        self.can_move: Callable[[bytes, Message], bool] = _nobody
        self._peers = peers
        self._turn = turn
        self._first_at = first_at
        self._at: float = math.inf

    def soon(self, now: float) -> None:
        """Somebody has become a member of a group: it may be able to have what waits for dead members."""
        self._at = min(self._at, max(now + AGAIN_S, self._first_at))

    def begin(self) -> None:
        """Take back the next messages. Everything that was written must be committed."""
        for peer in self._peers.all.values():
            if _is_due(peer):
                found = peer.outgoing.reclaim(self.can_move)
                self._turn.messages.extend(found)
                self._turn.counts["groups_moved"] += sum([len(each.groups) for each in found])

    def tick(self, now: float) -> None:
        """Look through the outboxes again if it is time."""
        if now >= self._at:
            self._at = math.inf
            for peer in self._peers.all.values():
                if not peer.running:
                    peer.outgoing.begin_reclaim()

    def deadline(self) -> float:
        """Return when `begin` or `tick` has something to do; 0.0 if now."""
        return 0.0 if any(_is_due(peer) for peer in self._peers.all.values()) else self._at


def _is_due(peer: Peer) -> bool:
    return not peer.running and peer.outgoing.is_reclaiming()


def _nobody(shared_filter: bytes, message: Message) -> bool:
    return False
