"""Readiness: whether this node reaches the members that it needs, and why not.

Owns the rule (`cluster.readiness`), the planned stops that members announced, and the count of net splits. It knows
nothing of frames, connections or clients: it is told who the members are and which of them run, and says what follows.

Theory of operation
-------------------
The members that count are those that neither left nor are about to. Of them are missing those that do not run, but for

    a member that announced its stop  until its next life greets, or `planned_restart_s` are over
    a member that has just joined     for the grace: until links stand both ways takes a moment
    one that is back from its stop    for the grace, as well

What a node finds in its store when it starts is neither: it is not ready before it hears the others, as it can't know
what they want. Then a node is ready if

    all        no member is missing
    majority   more than half of the members are there, this node among them
    available  always

A net split is detected when a node that was ready is not, and resolved when it is again. That a node was not ready from
its start on is neither, so that splits detected and resolved differ by one at most.

Invariant: `ready` is what the members of the last `update` make it.
"""

import math
from collections.abc import Mapping
from typing import Final, final

ALL: Final = "all"
MAJORITY: Final = "majority"
AVAILABLE: Final = "available"
POLICIES: Final = (ALL, MAJORITY, AVAILABLE)

# So many missing members are named; who has more to read has `cluster show`.
_NAMED_MAX: Final = 8


@final
class Readiness:
    """Whether a node is ready; `reason` is the sentence that says why it is not, "" when it is. Times are monotonic."""

    def __init__(self, policy: str, planned_restart_s: float, grace_s: float) -> None:
        assert policy in POLICIES, policy
        self.ready = True
        self.reason = ""
        self.detected: int = 0
        self.resolved: int = 0
        self._policy = policy
        self._planned_restart_s = planned_restart_s
        self._grace_s = grace_s
        self._deadline: float = math.inf
        # Whether there was an `update`, and until when a member that came since need not run.
        self._begun = False
        self._known: set[str] = set()
        self._new_until: dict[str, float] = {}
        # Of members that announced a stop: the life that stops, and until when they are waited for.
        self._planned: dict[str, tuple[int, float]] = {}
        # The life in which a member greeted last: what another one still tells of earlier ones is over.
        self._lives: dict[str, int] = {}

    def announced(self, name: str, life: int, now: float, ago_s: float = 0.0) -> bool:
        """A member said that it stops; lives are a node's starts, counted. True if that is news.

        `ago_s` is how long ago, if another one tells it, 0 if the member says so itself.
        """
        known = self._planned.get(name, (-1, 0.0))[0]
        if life < self._lives.get(name, -1) or life < known or (life == known and ago_s):
            return False
        self._planned[name] = (life, now + self._planned_restart_s - ago_s)
        return True

    def planned(self, now: float) -> list[tuple[str, int, float]]:
        """Return (name, life, how long ago) of the stops that were announced and are waited for."""
        return [
            (name, life, self._planned_restart_s - (until - now))
            for name, (life, until) in self._planned.items()
            if until > now
        ]

    def waited_until(self, name: str) -> float:
        """Return until when a member is waited for that stopped as planned, is just back from that, or new here."""
        return max(self._planned.get(name, (0, -math.inf))[1], self._new_until.get(name, -math.inf))

    def greeted(self, name: str, life: int, now: float) -> None:
        """A member greeted in this life: in a later one than that which stopped it is as any other that came."""
        self._lives[name] = life
        planned = self._planned.get(name)
        if planned is not None and life > planned[0]:
            del self._planned[name]
            self._new_until[name] = now + self._grace_s

    def update(self, running: Mapping[str, bool], now: float) -> bool:
        """Take the members that count, and whether each of them runs; true if that changes whether this node is ready.

        The first call begins: what is not so then was never otherwise.
        """
        self._note_members(running, now)
        missing: list[str] = []
        self._deadline = math.inf
        for name in sorted(running):
            if running[name]:
                continue
            until = max(self.waited_until(name), now)
            if until > now:
                self._deadline = min(self._deadline, until)
            else:
                missing.append(name)
        was_ready = self.ready
        self.ready = self._is_ready(len(running), len(missing))
        self.reason = "" if self.ready else _why(missing, len(running), self._policy)
        changed = self.ready != was_ready
        if not self._begun:
            self._begun = True
        elif changed and not self.ready:
            self.detected += 1
        elif changed and self.resolved < self.detected:
            self.resolved += 1
        return changed

    def next_deadline(self) -> float:
        """Return when `update` may come to another end although nobody said anything; infinity when never."""
        return self._deadline

    def validate(self) -> None:
        """Check the invariants."""
        assert self.ready == (not self.reason)
        assert 0 <= self.detected - self.resolved <= 1
        assert not self.ready or self.detected == self.resolved

    def _note_members(self, running: Mapping[str, bool], now: float) -> None:
        for name in running:
            if name not in self._known:
                self._known.add(name)
                if self._begun:
                    self._new_until[name] = now + self._grace_s
        for name in self._known - set(running):
            self._known.discard(name)
            self._new_until.pop(name, None)
            self._planned.pop(name, None)
            self._lives.pop(name, None)

    def _is_ready(self, members: int, missing: int) -> bool:
        if self._policy == ALL:
            return missing == 0
        return self._policy == AVAILABLE or 2 * (members - missing) > members


def _why(missing: list[str], members: int, policy: str) -> str:
    names = ", ".join(missing[:_NAMED_MAX])
    if len(missing) > _NAMED_MAX:
        names += f" and {len(missing) - _NAMED_MAX} more"
    verb = "is" if len(missing) == 1 else "are"
    text = f"this node is not ready: {names} {verb} not running"
    if policy == MAJORITY:
        text += f", {len(missing)} of {members} members"
    return text
