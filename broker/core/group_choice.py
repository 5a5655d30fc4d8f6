"""The choice of a node: which one gets the next message of a shared group that has members on several.

Owns what is known of the other nodes' parts of a group, and the rules of `mqtt.shared_subscription_policy`. It knows
nothing of sessions, queues or of how a node came to be known; which member of the node gets the message is decided
there.

Theory of operation
-------------------
A message goes to a node with a connected member, if there is one at all:

    prefer_local                    here, while a member is connected here; else to a connected one elsewhere
    prefer_online_before_local      the same: no message waits here for who is away while another could have it
    random                          to every connected member alike
    local_only                      to nobody but the members of this node

Only when nobody is connected it waits, and is kept: here if a member will come back here, else where one will, on nodes
that run before those that don't. QoS 0 is not kept.

Chance is a number that the caller draws (`Lots`): the multiples of the golden ratio, which fall into any division of a
range as evenly as can be, in an order that looks like none. So the choice follows from the state of the core alone.
"""

from collections.abc import Iterable
from typing import Final, final

PREFER_LOCAL: Final = "prefer_local"
PREFER_ONLINE: Final = "prefer_online_before_local"
RANDOM: Final = "random"
LOCAL_ONLY: Final = "local_only"
POLICIES: Final = (PREFER_LOCAL, RANDOM, LOCAL_ONLY, PREFER_ONLINE)

# This node, where nodes have names.
HERE: Final = ""

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_LOT_BITS: Final = 32


@final
class Lots:
    """Numbers of 32 bits, one after another; `seed` says where they begin."""

    def __init__(self, seed: int) -> None:
        self._state: int = seed & _MASK

    def take(self) -> int:
        """Return the next number."""
        self._state = (self._state + _GOLDEN) & _MASK
        return self._state >> _LOT_BITS


@final
class GroupPart:
    """What another node has of a group: about how many members are connected, and whether some will come back.

    What waits elsewhere is not for one that is `full`; what is published is, as for any other queue.
    """

    __slots__ = ("full", "node", "online", "persistent", "running")

    def __init__(self, node: str, online: int, persistent: bool, running: bool = True, full: bool = False) -> None:
        self.full = full
        self.node = node
        self.online = online
        self.persistent = persistent
        self.running = running


@final
class GroupParts:
    """What all other nodes have of one group, by node name."""

    __slots__ = ("parts", "shared_filter")

    def __init__(self, shared_filter: bytes) -> None:
        self.shared_filter = shared_filter
        self.parts: dict[str, GroupPart] = {}

    def is_persistent(self) -> bool:
        """Say whether a member elsewhere outlives its connection."""
        return any(part.persistent for part in self.parts.values())


def choose(policy: str, online: int, persistent: bool, parts: Iterable[GroupPart], keeps: bool, lot: int) -> str | None:
    """Return the name of the node that gets a message, HERE for this one, None if it is for nobody.

    `online` members are connected here; `persistent`: some will come back here. `keeps`: the message may wait. `lot` is
    of `Lots`.
    """
    if online and policy != RANDOM:
        return HERE
    if policy == LOCAL_ONLY:
        return HERE if persistent and keeps else None
    connected = [part for part in parts if part.running and part.online]
    total = online + sum([part.online for part in connected])
    if total:
        left = (lot * total >> _LOT_BITS) - online
        for part in connected:
            if left < 0:
                break
            left -= part.online
            if left < 0:
                return part.node
        return HERE
    if not keeps:
        return None
    if persistent:
        return HERE
    waiting = [part for part in parts if part.persistent]
    waiting = [part for part in waiting if part.running] or waiting
    return waiting[lot * len(waiting) >> _LOT_BITS].node if waiting else None
