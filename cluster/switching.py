"""Switching: which members send on to old homes what is for new ones, and are asked when that will be over.

Owns who is awaited for which sessions, and what members are asked. It knows nothing of what else a move needs.

Theory of operation
-------------------
A member has switched when its SWITCHED arrives in its stream to this node: from then on it sends to the new home what
the session wants, under numbers from the mark's on, and everything that it sent here only has been received before. A
mark names a version of the home's wishes, and is for all sessions whose subscriptions are in that. So members are asked
once for all sessions of one home, again and again until they have answered; this node asks itself.

A member that is down switches when it is back: not when it knows what the home wants, but when it knows its sessions as
well. For when all have switched the old home's row goes, by which alone it may have known that there is a session.

From which number on a member sends there is stored with the stub: it may stand for long, and if this node is removed
meanwhile its store is to give nothing that the home has had (see `donor`).

Invariants: a session is awaited of a member exactly while its head is taken and the member has not switched.
"""

import math
from typing import Final, final

from broker.core.legacies import is_bare
from broker.core.owner import QueueOwner
from cluster.frames import FrameType
from cluster.leaving_session import RETRY_S, LeavingSession
from cluster.move_frames import Switch, frames, pack_switch
from cluster.site import Site

_NO_VERSION: Final = (0, 0)


@final
class _Awaited:
    """The sessions that wait for one member to switch to one home, and the latest version that one of them needs."""

    __slots__ = ("leavings", "version")

    def __init__(self) -> None:
        self.leavings: dict[str, LeavingSession] = {}
        self.version: tuple[int, int] = _NO_VERSION


@final
class Switching:
    """Who has yet to switch, for all sessions that leave this node."""

    def __init__(self, owner: QueueOwner, site: Site) -> None:
        self._owner = owner
        self._site = site
        # By member and home; this node is a member, too.
        self._awaited: dict[bytes, dict[bytes, _Awaited]] = {}
        self._ask_at: float = math.inf
        # The first of its own messages that this node sends to new homes, if it is not the next one.
        self.own_first: int = 0
        self._look_due = False

    def begin(self, leaving: LeavingSession) -> None:
        """The new home has the session's head, and says in which version its subscriptions are: all are to switch."""
        self.forget(leaving)
        leaving.switched.clear()
        leaving.told.clear()
        for member in self._members():
            self._await(leaving, member)

    def again(self, leaving: LeavingSession, member: bytes) -> bool:
        """What a member said is not enough, or the new home has lost what it made of that; false: it is no member."""
        if member not in self._members():
            return False
        if leaving.head_taken:
            leaving.switched.pop(member, None)
            self._owner.transfers.forget_switched(leaving.departure, member)
            leaving.told.pop(member, None)
            leaving.said_ended = False
            self._await(leaving, member)
        return True

    def forget(self, leaving: LeavingSession) -> None:
        """The session has left, or goes elsewhere."""
        for member in list(self._awaited):
            self._remove(leaving, member)

    def marked(self, mark: Switch) -> list[LeavingSession]:
        """A member's stream has come to where it sends to a home directly; the sessions for which that was awaited."""
        return self._switch(mark.member, mark.home, (mark.generation, mark.version), mark.number)

    def tables_changed(self) -> None:
        """More may be known here of what homes want."""
        self._look_due = bool(self._awaited)

    def members_changed(self, leavings: dict[str, LeavingSession]) -> None:
        """The members, or who of them runs, have changed."""
        members = self._members()
        for member in [each for each in self._awaited if each not in members]:
            del self._awaited[member]
        for leaving in leavings.values():
            if leaving.head_taken:
                for member in members:
                    if member not in leaving.switched:
                        self._await(leaving, member)

    def tick(self, now: float) -> list[LeavingSession]:
        """Ask who has not switched, and switch ourselves; the sessions for which this node has."""
        if now >= self._ask_at:
            self._ask_at = math.inf
            self._ask(now)
        switched: list[LeavingSession] = []
        if self._look_due:
            self._look_due = False
            own = self._site.store_id()
            for home in list(self._awaited.get(own, {})):
                # What is published here from now on goes there as well.
                number = self.own_first or self._owner.next_number()
                switched += self._switch(own, home, self._site.known_version(home), number)
        return switched

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        return 0.0 if self._look_due else self._ask_at

    def validate(self, leavings: dict[str, LeavingSession]) -> None:
        """Check the invariants."""
        members = self._members()
        awaited = {
            (member, client_id)
            for member, homes in self._awaited.items()
            for home, awaited in homes.items()
            for client_id, leaving in awaited.leavings.items()
            if leavings[client_id] is leaving and leaving.home == home and leaving.needs <= awaited.version
        }
        assert awaited == {
            (member, client_id)
            for client_id, leaving in leavings.items()
            for member in members
            if leaving.head_taken and member not in leaving.switched
        }

    def _members(self) -> list[bytes]:
        return [self._site.store_id(), *self._site.others()]

    def _await(self, leaving: LeavingSession, member: bytes) -> None:
        homes = self._awaited.setdefault(member, {})
        awaited = homes.get(leaving.home)
        if awaited is None:
            awaited = _Awaited()
            homes[leaving.home] = awaited
        awaited.leavings[leaving.client_id] = leaving
        awaited.version = max(awaited.version, leaving.needs)
        self._ask_at = 0.0
        self._look_due = True

    def _remove(self, leaving: LeavingSession, member: bytes) -> None:
        homes = self._awaited[member]
        awaited = homes.get(leaving.home)
        if awaited is None:
            return
        awaited.leavings.pop(leaving.client_id, None)
        if not awaited.leavings:
            del homes[leaving.home]
            if not homes:
                del self._awaited[member]

    def _switch(self, member: bytes, home: bytes, version: tuple[int, int], number: int) -> list[LeavingSession]:
        awaited = self._awaited.get(member, {}).get(home)
        if awaited is None:
            return []
        switched = [leaving for leaving in awaited.leavings.values() if leaving.needs <= version]
        own_home = home if member == self._site.store_id() else b""
        for leaving in switched:
            leaving.switched[member] = (number, leaving.departure.session.next_seq - 1)
            if not is_bare(leaving.departure):
                # What a bare one has was kept for an older home, whenever it comes to the stub.
                self._owner.transfers.switched(leaving.departure, member, number, own_home)
            self._remove(leaving, member)
        return switched

    def _ask(self, now: float) -> None:
        for member, homes in self._awaited.items():
            if not self._site.is_running(member):
                continue
            self._ask_at = now + RETRY_S
            if member == self._site.store_id():
                self._look_due = True
                continue
            parts = [pack_switch(home, *awaited.version) for home, awaited in homes.items()]
            for frame in frames(FrameType.SWITCH, parts, True):
                self._site.tell(member, frame)
