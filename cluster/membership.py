"""Membership: who belongs to the cluster, and whether this node hears them.

Owns the members, the removed pairs, their merge, and the liveness of each peer. It knows nothing of
frames, connections or the store: `mesh` tells it what happened and at what time.

Theory of operation
-------------------
A member is a pair (name, store_id). What is told about it (`Member`) is gossiped and merged: of one pair the higher
incarnation wins, within an incarnation the later of alive < suspect < dead < leaving < left. A restart raises the
incarnation, and so does a member that finds itself suspected or declared dead: nobody but the member itself can say
that it is well. A removed pair is remembered for ever and never comes back. Hence merging is commutative,
associative and idempotent, and members that exchange what they know agree; `digest` says whether they do.

Liveness is this node's own opinion and comes from its own ears only. The opinion of others is merged above, refuted by
whom it concerns, and never changes what this node thinks of a peer that it hears:

    DEAD --heard, connected--> ALIVE --connection closed--> SUSPECT --failure timeout--> DEAD
                                 ^ <--heard, connected--------'
    ALIVE --connected, but its loop counter stands for 3 failure timeouts--> DEAD

A peer never heard since this node started is DEAD. A connection that is up counts as life for three failure timeouts,
since ZeroMQ's I/O thread keeps it up while a busy owner is silent. A refused reconnect alone does not bring death
forward: an owner that restarts within the failure timeout is no netsplit.

Invariants: this node is a member and not removed; no removed pair is a member.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import blake2b
from typing import Final, final

# How many failure timeouts a connected peer may keep silent.
BUSY_TIMEOUTS: Final = 3

# An incarnation is the count of restarts with room below it for refutations, so that a restart is above all of them
# without any of them being stored.
REFUTATION_BITS: Final = 20


class State(IntEnum):
    """What is told of a member, in the order in which it overrides within an incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEAVING = 3
    LEFT = 4


@dataclass(slots=True, frozen=True)
class Member:
    """What is told of one member; the address is host:port."""

    name: str
    store_id: bytes
    incarnation: int
    address: str
    state: State


def removed_text(name: str) -> str:
    """Return why a removed member is refused."""
    return f"{name} was removed from the cluster and can't come back with the same store"


@final
class Membership:
    """The members of this node's cluster, this node among them."""

    def __init__(self, name: str, store_id: bytes, restarts: int, address: str) -> None:
        self.name = name
        self.members: dict[str, Member] = {
            name: Member(name, store_id, restarts << REFUTATION_BITS, address, State.ALIVE)
        }
        self.removed: set[tuple[str, bytes]] = set()
        self._digest = -1

    def own(self) -> Member:
        """Return what this node tells of itself."""
        return self.members[self.name]

    def others(self) -> list[Member]:
        """Return the other members that have not left, by name."""
        return [
            self.members[name]
            for name in sorted(self.members)
            if name != self.name and self.members[name].state != State.LEFT
        ]

    def alone(self) -> bool:
        """Say whether this node is a cluster of one."""
        return not self.others()

    def refusal(self, name: str, store_id: bytes) -> str:
        """Return why the pair can't be a member, "" if it can."""
        if name == self.name:
            return f"{name} can't join itself: the node that was asked has the same name"
        if (name, store_id) in self.removed:
            return removed_text(name)
        member = self.members.get(name)
        if member is not None and member.store_id != store_id and member.state != State.LEFT:
            return (
                f"a member named {name} with another store is already in the cluster; "
                f"remove that member first (vmq-admin cluster leave node={name} -k) or choose another name"
            )
        return ""

    def merge(self, member: Member) -> bool:
        """Take in what somebody tells of a member; true if it changed anything."""
        if (member.name, member.store_id) in self.removed:
            return False
        known = self.members.get(member.name)
        if member.name == self.name:
            return self._refute(member)
        if known is not None:
            if known.store_id == member.store_id:
                if (member.incarnation, member.state) <= (known.incarnation, known.state):
                    return False
            elif member.state == State.LEFT or (known.state != State.LEFT and known.store_id < member.store_id):
                # Two stores under one name can only come from two joins at the same time at different members. All
                # have to choose the same one; the other is refused at its next Hello.
                return False
        self.members[member.name] = member
        self._digest = -1
        return True

    def merge_removed(self, name: str, store_id: bytes) -> bool:
        """Remember that the pair was removed; true if that is news."""
        if (name, store_id) in self.removed or (name == self.name and store_id == self.own().store_id):
            return False
        self.removed.add((name, store_id))
        known = self.members.get(name)
        if known is not None and known.store_id == store_id:
            del self.members[name]
        self._digest = -1
        return True

    def tell(self, name: str, state: State) -> bool:
        """Gossip this node's new opinion of a peer; true if it says more than what is told already."""
        member = self.members.get(name)
        if member is None or member.state >= state:
            return False
        return self.merge(replace(member, state=state))

    def digest(self) -> int:
        """Return 64 bits that are equal on two nodes that know the same."""
        if self._digest < 0:
            told = blake2b(digest_size=8)
            for name in sorted(self.members):
                member = self.members[name]
                told.update(f"{name}\n{member.address}\n{member.incarnation} {int(member.state)}\n".encode())
                told.update(member.store_id)
            for name, store_id in sorted(self.removed):
                told.update(f"removed {name}\n".encode())
                told.update(store_id)
            self._digest = int.from_bytes(told.digest(), "big")
        return self._digest

    def validate(self) -> None:
        """Check the invariants."""
        assert self.name in self.members
        assert self.own().state < State.SUSPECT
        for name, member in self.members.items():
            assert name == member.name
            assert (name, member.store_id) not in self.removed

    def _refute(self, told: Member) -> bool:
        own = self.own()
        if told.store_id != own.store_id or told.incarnation < own.incarnation:
            return False
        if told.incarnation == own.incarnation and told.state == State.ALIVE:
            return False
        self.members[self.name] = replace(own, incarnation=told.incarnation + 1)
        self._digest = -1
        return True


@final
class Liveness:
    """What this node hears of one peer. Times are monotonic seconds."""

    def __init__(self, failure_timeout_s: float, now: float) -> None:
        self.state = State.DEAD
        self.connected = False
        self._timeout_s = failure_timeout_s
        self._closed_at = now
        self._moved_at = -math.inf
        self._counter = -1

    def running(self) -> bool:
        """Say whether the peer counts as running: alive, or suspect and not yet timed out."""
        return self.state != State.DEAD

    def connection_opened(self, now: float) -> None:
        """The control connection to the peer is up."""
        self.connected = True
        if now - self._moved_at <= self._timeout_s:
            # Its Hello came before our own connection was up.
            self.state = State.ALIVE
        if self.state != State.DEAD:
            # The handshake needs the peer's loop: it has just turned.
            self._moved_at = now

    def connection_closed(self, now: float) -> None:
        """The control connection to the peer is down."""
        if self.connected:
            self.connected = False
            self._closed_at = now
            self._moved_at = -math.inf
            if self.state == State.ALIVE:
                self.state = State.SUSPECT

    def heard(self, counter: int, now: float, greeting: bool = False) -> None:
        """A frame of the peer's newest connection arrived, with its loop counter; `greeting`: its first."""
        if counter == self._counter and not greeting:
            return
        self._counter = counter
        self._moved_at = now
        if self.connected:
            self.state = State.ALIVE

    def tick(self, now: float) -> None:
        """Declare the peer dead if it is time."""
        if now >= self.deadline():
            self.state = State.DEAD

    def deadline(self) -> float:
        """Return when the peer is dead if nothing is heard until then; infinity when it is dead."""
        if self.state == State.DEAD:
            return math.inf
        if self.connected:
            return self._moved_at + BUSY_TIMEOUTS * self._timeout_s
        return self._closed_at + self._timeout_s

    def shift(self, seconds: float, now: float) -> None:
        """Forget `seconds` in which this node itself stood still: it heard nobody, and may blame nobody."""
        self._closed_at = min(self._closed_at + seconds, now)
        self._moved_at = min(self._moved_at + seconds, now)
