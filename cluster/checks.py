"""Checks: an operator asks whether all nodes hold the same, and every running member looks.

Owns who was asked and what was answered. What a look is, `audit` says.

    the node that is asked:  CHECK(number, repair) to every running member, and looks itself
    every member:            CHECKED(number, findings) when it has looked

A check ends when all have answered, or after CHECK_TIMEOUT_S without those that have not. One that repairs is followed
by another that looks whether it helped, until all agree or REPAIR_TIMEOUT_S are over.
"""

import math
from dataclasses import dataclass
from typing import Final, final

from cluster.audit import Audit, Finding
from cluster.check_frames import pack_check, pack_checked, unpack_check, unpack_checked
from cluster.membership import State
from cluster.own_tables import OwnTables
from cluster.peers import Peer, Peers
from cluster.turn import Turn

CHECK_TIMEOUT_S: Final = 20.0
REPAIR_TIMEOUT_S: Final = 20.0
# What was found wrong is asked for with the next heartbeat, and the answer takes its time.
PAUSE_HEARTBEATS: Final = 3


@dataclass(slots=True, frozen=True)
class CheckResult:
    """What each node found, by its name; `missing` did not answer."""

    findings: dict[str, list[Finding]]
    missing: list[str]

    def agrees(self) -> bool:
        """Say whether everybody answered, and holds what the others say of themselves."""
        return not self.missing and all(each.agrees for found in self.findings.values() for each in found)


@final
class Checks:
    """The check of this node's operator, and the looks for those of others."""

    def __init__(self, peers: Peers, own: OwnTables, turn: Turn) -> None:
        self._peers = peers
        self._own = own
        self._turn = turn
        # By who asked: a member, or this node itself by its own name.
        self._audits: dict[str, Audit] = {}
        # Of the check under way, numbered.
        self._number = 0
        self._repair = False
        self._asked: set[str] = set()
        self._findings: dict[str, list[Finding]] = {}
        self._until = math.inf
        self._again_at = math.inf
        self._ends_at = math.inf
        self._result: CheckResult | None = None

    def check(self, repair: bool, now: float) -> None:
        """Begin a check; `take_result` has the outcome within CHECK_TIMEOUT_S, or that and REPAIR_TIMEOUT_S."""
        self._result = None
        self._repair = repair
        self._ends_at = now + REPAIR_TIMEOUT_S
        self._begin(now)

    def take_result(self) -> CheckResult | None:
        """Return the outcome of `check` once it is known."""
        result = self._result
        self._result = None
        return result

    def begin(self) -> None:
        """Begin a turn: everything that was told is committed, so that rows can be read."""
        for audit in self._audits.values():
            audit.step()

    def has_rows(self) -> bool:
        """Say whether `begin` has something to do."""
        return any(audit.has_rows() for audit in self._audits.values())

    def receive_check(self, peer: Peer, frame: bytes, now: float) -> None:
        """A member's operator wants to know."""
        number, repair = unpack_check(frame)
        self._audits[peer.name] = Audit(number, repair, self._peers, self._own, now)

    def receive_checked(self, peer: Peer, frame: bytes, now: float) -> None:
        """A member has looked."""
        number, findings = unpack_checked(frame)
        if number == self._number and peer.name in self._asked:
            self._findings[peer.name] = findings

    def tick(self, now: float) -> None:
        """Answer who asked, and end what is over."""
        for name, audit in list(self._audits.items()):
            if not audit.is_over(now):
                continue
            del self._audits[name]
            if name == self._peers.membership.name:
                self._findings[name] = audit.findings()
            elif name in self._peers.all:
                self._peers.send(self._peers.all[name], pack_checked(audit.number, audit.findings()))
        if now >= self._again_at:
            self._again_at = math.inf
            self._begin(now)
        elif self._asked and (self._asked <= set(self._findings) or now >= self._until):
            self._end(now)

    def deadline(self) -> float:
        """Return when `tick` has something to do; what arrives makes something due as well."""
        deadline = min(self._until, self._again_at)
        for audit in self._audits.values():
            deadline = min(deadline, audit.deadline())
        return deadline

    def _begin(self, now: float) -> None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._findings = {}
        self._until = now + CHECK_TIMEOUT_S
        own = self._peers.membership.name
        self._audits[own] = Audit(self._number, self._repair, self._peers, self._own, now)
        self._asked = {own}
        for name, peer in self._peers.all.items():
            if peer.running:
                self._asked.add(name)
                self._peers.send(peer, pack_check(self._number, self._repair))

    def _end(self, now: float) -> None:
        self._until = math.inf
        self._asked = set()
        members = [member.name for member in self._peers.members() if member.state != State.LEFT]
        result = CheckResult(self._findings, [name for name in members if name not in self._findings])
        if self._repair and not result.agrees() and now < self._ends_at:
            self._again_at = now + PAUSE_HEARTBEATS * self._peers.heartbeat_s
        else:
            self._result = result
