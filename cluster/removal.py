"""Removal: a member that does not answer is taken out of the cluster by the others.

Owns the removals that operators of this node ordered: who adopts which session of the node that is gone, and when it is
removed. It knows its sessions from what it told of them while it ran; what it had queued nobody knows.

Theory of operation
-------------------
    its persistent sessions, in the order of their names, are assigned to the members that run, in turn
    ADOPT(revive) --> each, at most ASKED_MAX at a time, until the registry knows another home of every one
      who does not hear all the others may only not have heard where these went: it adopts none, unless targets are
      named, as that may be wanted while members are down
      who was down when a session began may know nothing of it: the next one is asked after a while
      nobody has taken one since all were asked: it fails
    ADOPT(nobody) --> all, who adopt the sessions of which only they know, at most ASKED_MAX at a time
      of these nobody adopts any who does not hear all the others, targets or not
      <-- ADOPT_LEFT, until each says that it knows another home of every one; who dies meanwhile is waited for, unless
      targets are named and it is none of them: these run when the order is taken, and only others may be down
      also until the wills are published that no session took along, for WILLS_S at most
    this node knows what those that run said of their sessions since: then the node is removed, and its other sessions
    with it; no progress in this for a while, as with a member that runs and takes nothing: it fails

A session that its client claims meanwhile is one less. Nothing is stored: whoever gives the order again goes on where
this one ended. A node that runs again before it is removed ends the removal.
"""

from dataclasses import dataclass
from typing import Final, final

from cluster.leave_frames import Order, Orphan, Report, Verb, pack_adopts
from cluster.leaver import ASK_AGAIN_S, ASKED_MAX, BUSY, already_leaving
from cluster.leaving import State, how_without
from cluster.mesh import Mesh
from cluster.moving import Moving
from cluster.registry import Home
from cluster.revival import Revival

# So long wills may take to be published.
WILLS_S: Final = 10.0
# How often all are asked to adopt what is left: a frame may be lost.
ALL_AGAIN_S: Final = 1.0
_TAKES_NONE: Final = "a member takes none while it does not hear all others"


@dataclass(slots=True)
class Progress:
    """How far a removal is; `text` is its end."""

    moved: int = 0
    queues: int = 0
    is_over: bool = False
    failure: str = ""


@final
class Removal:
    """The removal of one node; `progress` is for whoever follows it."""

    def __init__(self, mesh: Mesh, moving: Moving, node: str, order: Order) -> None:
        self.node = node
        self.order = order
        self.progress = Progress()
        self._mesh = mesh
        self._moving = moving
        self.store_id: Final = mesh.peers[node].store_id
        # Client id -> who is to adopt it and when that was asked for.
        self._assigned: dict[str, str] = {}
        self._asked_at: dict[str, float] = {}
        # How many sessions were left when that was looked at last, and since when.
        self._left = 0
        self._left_at = 0.0
        self._targets: list[str] = []
        # How many sessions are left by what each member that is asked knows, -1 before it has said that; and since when
        # it is just so many in all.
        self._others_left: dict[str, int] = {}
        self._others_at = 0.0
        # When all are asked again, and how long wills are waited for.
        self._ask_all_at = 0.0
        self._wills_until = 0.0

    def tick(self, now: float) -> None:
        """Go on."""
        if self.progress.is_over:
            return
        peer = self._mesh.peers.get(self.node)
        if peer is None or peer.store_id != self.store_id:
            self.progress.is_over = True
        elif peer.running:
            self.progress.is_over = True
            self.progress.failure = f"{self.node} runs again and stays a member; give the order again to have it leave"
        elif self._adopt(now) and self._have_others_adopted(now):
            self._mesh.remove(self.node, now)
            self.progress.is_over = True

    def adopt_left(self, member: str, left: int, now: float) -> None:
        """A member says how many sessions have no other home as far as it knows."""
        if member in self._others_left and self._others_left[member] != left:
            self._others_left[member] = left
            self._others_at = now
        if left:
            # It adopts more at once.
            self._ask_all_at = now

    def _adopt(self, now: float) -> bool:
        """Have every session adopted that nobody has; say whether that is all of them."""
        left = persistent_sessions(self._mesh, self.node)
        targets = running_targets(self._mesh, self.node, self.order)
        if left and not targets:
            self._fail(f"{len(left)} sessions of {self.node} have no new home: none of its targets runs")
            return False
        if not self._assigned or targets != self._targets:
            self._targets = targets
            self._left_at = now
            self._assigned = {client_id: targets[place % len(targets)] for place, client_id in enumerate(sorted(left))}
            self._asked_at = {}
        self.progress.queues = max(self.progress.queues, len(left))
        self.progress.moved = self.progress.queues - len(left)
        if len(left) != self._left:
            self._left, self._left_at = len(left), now
        if left and now >= self._left_at + ASK_AGAIN_S * (len(targets) + 1):
            names = ", ".join(targets)
            why = "" if self.order.targets else f"; {_TAKES_NONE}"
            self._fail(f"{len(left)} sessions of {self.node} have no new home: none of {names} could take them{why}")
            return False
        counts = dict.fromkeys(targets, 0)
        orphans: dict[str, list[Orphan]] = {}
        for client_id in left:
            # One that nobody knew of before is anybody's.
            target = self._assigned.setdefault(client_id, targets[0])
            if counts[target] >= ASKED_MAX:
                continue
            counts[target] += 1
            if now >= self._asked_at.get(client_id, -ASK_AGAIN_S) + ASK_AGAIN_S:
                if client_id in self._asked_at:
                    target = targets[(targets.index(target) + 1) % len(targets)]
                    self._assigned[client_id] = target
                self._asked_at[client_id] = now
                orphans.setdefault(target, []).append(Orphan(client_id, None))
        revival = Revival.ALWAYS if self.order.targets else Revival.IF_WHOLE
        for target, adopted in orphans.items():
            if target == self._mesh.membership.name:
                for orphan in adopted:
                    self._moving.registrar.adopt(orphan.client_id, orphan.user_name, self.store_id, revival, now)
            else:
                for frame in pack_adopts(self.store_id, revival, adopted):
                    self._mesh.tell(target, frame)
        return not left

    def _have_others_adopted(self, now: float) -> bool:
        """Have all members adopt what only they know of, and publish the wills that are left.

        Say whether that is done, and this node knows of it. The wills are those of clients whose sessions end.
        """
        peers = self._mesh.peers
        # The targets ran when this began, or all others where none are named: who is down now may know of more.
        awaited = self.order.targets or [name for name in peers if name != self.node]
        others = [name for name in peers if peers[name].running or name in awaited]
        if others != list(self._others_left):
            self._others_left = {name: self._others_left.get(name, -1) for name in others}
            self._others_at = now
        if not self._wills_until:
            self._wills_until = now + WILLS_S
        if now >= self._ask_all_at:
            self._ask_all_at = now + ALL_AGAIN_S
            self._moving.claims.claim_now(self.node)
            for name in others:
                for frame in pack_adopts(self.store_id, Revival.IF_WHOLE, []):
                    self._mesh.tell(name, frame)
        behind = self._mesh.behind(self._others_at)
        if now >= self._others_at + ASK_AGAIN_S * 2 and (why := self._hindrance(behind)):
            self._fail(why)
            return False
        are_wills_published = now >= self._wills_until or not self._moving.claims.unspent(self.node)
        return are_wills_published and not any(self._others_left.values()) and not behind

    def _hindrance(self, behind: list[str]) -> str:
        """Return why not every session is known to have a new home, "" if it is; `behind` did not tell of theirs."""
        unable = [name for name, left in self._others_left.items() if left > 0]
        if unable:
            count = max(self._others_left.values())
            names = ", ".join(unable)
            return f"{count} sessions of {self.node} have no new home: {names} could not take them; {_TAKES_NONE}"
        silent = [name for name, left in self._others_left.items() if left < 0] or behind
        if silent:
            names = ", ".join(silent)
            why = "as when it has died, or its disk is full"
            return f"{names} does not say whether it knows of more sessions of {self.node}, {why}"
        return ""

    def _fail(self, why: str) -> None:
        """Say that the node is not removed."""
        self.progress.is_over = True
        again = "without --force-targets" if self.order.targets else "once more"
        self.progress.failure = f"{why}. {self.node} stays a member; give the order {again}"


def persistent_sessions(mesh: Mesh, node: str) -> dict[str, Home]:
    """Return the persistent sessions whose home is the node, as this node knows them."""
    return {client_id: home for client_id, home in mesh.registry.clients_of(node) if home.persistent}


def running_targets(mesh: Mesh, node: str, order: Order) -> list[str]:
    """Return who may get the sessions of a node that is gone, by name."""
    names = [mesh.membership.name] + [name for name, peer in mesh.peers.items() if peer.running and name != node]
    return sorted([name for name in names if not order.targets or name in order.targets])


def refusal(mesh: Mesh, reports: dict[str, Report], node: str, order: Order) -> str:
    """Return why a node that does not answer can't be removed, "" if it can."""
    if order.verb == Verb.ABORT:
        report = reports.get(node)
        if report is None or report.state not in BUSY:
            return f"{node} does not run: there is nothing to abort"
        return f"{node} does not run: its leave ({State(report.state).text()}) can be aborted when it runs again"
    for name, report in reports.items():
        if report.state in BUSY and name in mesh.peers and name != node:
            return already_leaving(name, report, mesh.peers[name].running)
    targets = running_targets(mesh, node, order)
    if order.targets:
        unfit = [name for name in order.targets if name not in targets]
        return f"no target: {', '.join(unfit)} is not a running member besides {node}" if unfit else ""
    missing = tuple(sorted([name for name, peer in mesh.peers.items() if not peer.running and name != node]))
    if missing:
        return f"besides {node}, {', '.join(missing)} does not run: {how_without(missing).removeprefix('or ')}"
    return ""


def losses(mesh: Mesh, reports: dict[str, Report], node: str, order: Order) -> list[str]:
    """Return what the removal of a node would lose and do, line by line."""
    left = sorted(persistent_sessions(mesh, node))
    targets = running_targets(mesh, node, order)
    report = reports.get(node)
    messages = "an unknown number of" if report is None else f"{report.messages}"
    lines = [
        f"{node} does not run. It may be alive on the far side of a network partition, and serve clients there.",
        f"Its store holds {len(left)} queues with {messages} messages, as last known: the messages are lost to their "
        f"clients unless {node} is started with --recover-queues later.",
    ]
    for place, target in enumerate(targets):
        count = len(range(place, len(left), len(targets)))
        lines.append(f"{target} gets {count} sessions, with their subscriptions and without messages.")
    return lines
