"""The leaver: what a node does to leave its cluster.

Owns the leave job of this node and carries it out: it closes its clients' connections, asks other members to adopt what
nobody claims, counts what is left, tells everybody how far it is, and in the end has itself removed. What comes when,
`leaving` says; how a session gets to its new home is the registrar's business there.

Theory of operation
-------------------
    MIGRATING  ADOPT(client ids) --> the targets, in turn; at most ASKED_MAX of each are not under way yet. Who asks for
               a session by that is its new home, as if its client had connected there.
    LEAVING    MEMBERS(removed: this node), Hello --> everybody; who answers REFUSED(REMOVED) has it in its store. What
               others forward is not taken: who was not waited for has it for sessions that have moved, may be back too
               late for a stub to give it on, and gives it to their new homes itself when it removes this node.
    REPORT     --> everybody, REPORT_S apart while something happens, else IDLE_REPORT_S

Two leaves that begin at the same time at two nodes hear of each other; the one with the higher stamp ends itself.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final, final

from broker.core.owner import QueueOwner
from broker.core.session import Session
from cluster.estates import PAUSE_S, Estates
from cluster.handover import HandOver
from cluster.leave_frames import Order, Orphan, Report, Verb, pack_adopts, pack_donor, pack_report
from cluster.leaving import Census, LeaveJob, State, counted, how_without
from cluster.mesh import Mesh
from cluster.moving import Moving
from cluster.revival import Revival

ASKED_MAX: Final = 512
# A target that has not asked for a session after so long has forgotten it.
ASK_AGAIN_S: Final = 6.0
REPORT_S: Final = 1.0
IDLE_REPORT_S: Final = 20.0
# How often it is looked whether something is left.
LOOK_S: Final = 0.05
GOODBYE_S: Final = 0.5
DONATE_S: Final = 0.5
# Everything is given when so many looks in a row found nothing.
GIVEN_LOOKS: Final = 4
# So long clients are not disconnected for want of a server that they could be referred to.
REFERENCE_S: Final = 1.0
# A listed target or session more does not help anybody to decide.
DRY_RUN_LINES_MAX: Final = 100

GIVING: Final = (State.WAITING, State.MIGRATING, State.LEAVING, State.DONATING)
BUSY: Final = (State.DRAINING_LISTENERS, State.WAITING, State.FAILED_WITH_QUEUES, State.MIGRATING, State.LEAVING)


def already_leaving(name: str, report: Report, runs: bool) -> str:
    """Return why no other node can leave, and what an operator can do about it."""
    said = f"{name} is leaving the cluster already ({State(report.state).text()}): one node at a time."
    if runs:
        return f"{said} Wait for it, or end that by vmq-admin cluster leave node={name} --abort"
    return f"{said} It does not run: start it, or have it removed by vmq-admin cluster leave node={name}"


@final
class Leaver:
    """The leave of this node. `reports` are what other members say of theirs, by name."""

    def __init__(
        self,
        owner: QueueOwner,
        mesh: Mesh,
        moving: Moving,
        estates: Estates,
        reports: dict[str, Report],
    ) -> None:
        self.job = LeaveJob(mesh.membership.name)
        # What an operator should read: (whether it is bad news, text).
        self.lines: list[tuple[bool, str]] = []
        # host:port where clients of other members are to go, by name; "" where that is not configured.
        self.references: dict[str, str] = {}
        self._owner = owner
        self._mesh = mesh
        self._moving = moving
        self._estates = estates
        self._reports = reports
        self._name: Final = mesh.membership.name
        self._store_id: Final = mesh.membership.own().store_id
        # Client id -> target and when it was asked to adopt it.
        self._asked: dict[str, tuple[str, float]] = {}
        self._turn_of = 0
        self._removed_by: set[str] = set()
        self._line_number = 0
        self._report_at = 0.0
        self._look_at = 0.0
        self._goodbye_at = 0.0
        self._state = State.IDLE
        self._running = 0
        self._close_at = 0.0
        self.handover = HandOver(mesh)
        self._handed = False
        self._hand_at = 0.0
        self._donate_at = 0.0
        # Since when a donor has known what all members that run have.
        self._known_since = math.inf
        # Who has said what it gave instead of this donor, and for whom the donor has nothing more that it had kept.
        self._heard: set[str] = set()
        self._given_to: set[str] = set()
        self._give_at = 0.0
        # Whether no session, will or group was here when that was looked at last.
        self._was_bare = False
        # How often nothing was left to be given away, one after the other.
        self._given = 0
        stored = mesh.leave_value()
        if stored:
            self.job.restore(stored, mesh.started_at)
            self._state = self.job.state
        if self.job.state == State.DONATING:
            # What it has for others waits for its stubs, and so does the mark in its streams for which homes would.
            moving.departures.publish_nothing()
        if self.job.state == State.IDLE:
            # It may be a copy of a donor's store.
            self._wake(owner.draining.everything())

    # What operators want.

    def order(self, order: Order, now: float) -> tuple[bool, str]:
        """Take an order; return whether it is taken, and what is to be said of it."""
        if order.verb == Verb.ABORT:
            refusal = self.job.abort(now)
            return not refusal, refusal or "Done"
        refusal = self._refusal(order)
        if refusal:
            return False, refusal
        if order.verb == Verb.DRY_RUN:
            return True, self._dry_run(order)
        if self.job.state < State.WAITING:
            # Where clients are to go the others say with their answers to the first report.
            self._close_at = now + REFERENCE_S
        said = self.job.take_order(order, self._mesh.stamp(), now)
        self._look_at = 0.0
        return True, said

    def removed_by(self, names: set[str], now: float) -> bool:
        """Members say that they have removed this node; false: without its leave."""
        if self.job.state in (State.LEAVING, State.LEFT):
            self._removed_by |= names
            return True
        self.job.removed(now)
        return False

    # What is due.

    def begin(self, now: float) -> None:
        """Begin a turn: hand over what waits for members that are down. Everything that was written is committed."""
        if self.job.state == State.LEAVING and not self._handed and now >= self._hand_at:
            self._hand_at = now + LOOK_S
            targets = self._targets(self.job.order)
            self._handed = bool(targets) and self.handover.begin(targets, now)
        if self.job.state == State.DONATING and now >= self._give_at:
            self._give_at = now + PAUSE_S
            for name in self._mesh.peers:
                if name not in self._given_to and self._estates.give_kept(name, now):
                    self._given_to.add(name)

    def tick(self, now: float) -> None:
        """Go on with the job; call it once a turn."""
        job = self.job
        if job.state == State.DONATING:
            for name, peer in self._mesh.peers.items():
                # What it kept for sessions there is not sent, but given to these.
                peer.outgoing.held = name not in self._given_to
        if now >= self._look_at:
            self._look_at = now + LOOK_S if job.state != State.IDLE else math.inf
            self._look(now)
        self._mesh.takes_forwards = job.state not in (State.LEAVING, State.LEFT)
        if job.changed:
            job.changed = False
            self._mesh.put_leave(job.pack())
            self._note_state(now)
        running = 0
        for peer in self._mesh.peers.values():
            if peer.running:
                running += 1
        if running != self._running:
            # Who comes is told where this node stands.
            self._running = running
            self._report_at = 0.0
        if now >= self._report_at and self._mesh.peers:
            self._report_at = now + (REPORT_S if job.state != State.IDLE else IDLE_REPORT_S)
            # Who looks after a node that died is told how much it had.
            frame = pack_report(job.report(self._owner.draining.messages()))
            for name in self._mesh.peers:
                self._mesh.tell(name, frame)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        if self.job.changed:
            return 0.0
        return min(self._look_at, self._report_at if self._mesh.peers else math.inf)

    def take_lines(self) -> list[tuple[bool, str]]:
        """Return what an operator should read since the last call: (whether it is bad news, text)."""
        lines = self.lines
        if lines:
            self.lines = []
        return lines

    def validate(self) -> None:
        """Check the invariants."""
        self.job.validate()

    def _look(self, now: float) -> None:
        job = self.job
        first = self._earlier_leave()
        if first and job.state not in (State.IDLE, State.LEAVING, State.LEFT):
            self.lines.append((True, f"leave: {first} began to leave before this node, which stays"))
            job.abort(now)
            return
        known = all(name in self.references for name in self._targets(job.order))
        count = job.may_close(self._owner.draining.online(), now) if known or now >= self._close_at else 0
        if count:
            self._owner.draining.close(count, self._reference(), now)
        only_stubs = job.state == State.LEAVING
        if job.state in (State.WAITING, State.MIGRATING):
            census = self._census(job.wants_messages(now))
            only_stubs = not census.queues()
            job.tick(census, now)
        if only_stubs:
            # Stubs at most, which wait for members that are down. They end with this node, and all that run know where
            # their sessions are: what waits for their groups is for members elsewhere.
            self._owner.draining.leave_groups(now)
        # A client whose CONNECT has waited since before would publish what nobody takes from this node any more.
        self._moving.registrar.set_open(job.state not in (State.LEAVING, State.LEFT), now)
        if job.state == State.DONATING and now >= self._donate_at:
            self._donate_at = now + DONATE_S
            self._donate(now)
        self._owner.draining.give_groups(job.state in GIVING)
        if job.migrates():
            self._ask(now)
        elif self._asked:
            self._asked = {}
        if job.state == State.LEAVING == self._state and (self._handed or self._removed_by):
            # It is stored that everything is gone, and told. Who has removed this node, before it started again, takes
            # nothing any more.
            self._say_goodbye(now)
        if job.line_number != self._line_number:
            self._line_number = job.line_number
            self.lines.append((False, f"leave: {job.line}"))
            self._report_at = 0.0

    def _note_state(self, now: float) -> None:
        job = self.job
        self._report_at = 0.0
        self._look_at = 0.0
        if job.state != self._state:
            self._state = job.state
            if job.state == State.FAILED_WITH_QUEUES:
                self.lines.append((True, f"leave failed: {job.failure}"))
            elif job.state == State.IDLE:
                self.lines.append((False, "leave: aborted; this node stays and serves clients again"))
            else:
                self.lines.append((False, f"leave: {job.state.text()}"))

    def _census(self, with_messages: bool) -> Census:
        draining = self._owner.draining
        online, offline = draining.online(), draining.offline()
        moving = self._departing() if self.job.order.targets else draining.moving()
        unfinished = 0
        if not online + offline + moving:
            here = draining.wills() + draining.stubs_in_groups() + self._estates.messages()
            here += draining.groups_to_give(not self.job.order.targets)
            is_bare, self._was_bare = self._was_bare, not here
            # What the last of them changed is told at the end of this turn, so nobody knows it yet.
            unfinished = here or (self._mesh.unacknowledged() if is_bare else 1)
        return Census(
            online,
            offline,
            moving,
            draining.messages() if with_messages else 0,
            unfinished,
            self._missing(),
            tuple(self._targets(self.job.order)),
        )

    def _departing(self) -> int:
        """Return how many sessions are not wholly elsewhere, where whoever does not run is not waited for."""
        running = [peer.store_id for peer in self._mesh.peers.values() if peer.running]
        count = 0
        for leaving in self._moving.departures.leavings.values():
            is_drained = leaving.head_taken and self._owner.transfers.is_drained(leaving.departure)
            if not is_drained or not all(member in leaving.switched for member in [*running, self._store_id]):
                count += 1
        return count

    def _missing(self) -> tuple[str, ...]:
        return tuple(sorted([name for name, peer in self._mesh.peers.items() if not peer.running]))

    def _targets(self, order: Order) -> list[str]:
        """Return the members that queues may go to, by name."""
        names = [name for name, peer in self._mesh.peers.items() if peer.running]
        return sorted([name for name in names if not order.targets or name in order.targets])

    def _reference(self) -> str:
        """Return where a client is to go, another one each time; "" if that is not known."""
        known = [self.references.get(name, "") for name in self._targets(self.job.order)]
        known = [reference for reference in known if reference]
        if not known:
            return ""
        self._turn_of += 1
        return known[self._turn_of % len(known)]

    # Forced migration.

    def _ask(self, now: float) -> None:
        """Ask the targets to adopt the sessions that are here, each as many as may be under way."""
        targets = self._targets(self.job.order)
        if not targets:
            return
        asked: dict[str, tuple[str, float]] = {}
        counts = dict.fromkeys(targets, 0)
        orphans: dict[str, list[Orphan]] = {}
        for client_id, (target, asked_at) in self._asked.items():
            session = self._homeless(client_id)
            if session is not None and target in counts:
                counts[target] += 1
                if now >= asked_at + ASK_AGAIN_S:
                    # Once more and not another: all are to get the same.
                    asked_at = now
                    orphans.setdefault(target, []).append(Orphan(client_id, session.user_name))
                asked[client_id] = (target, asked_at)
        self._asked = asked
        for session in self._all_homeless():
            if session.client_id in asked:
                continue
            target = self._next_target(targets, counts)
            if not target:
                break
            counts[target] += 1
            asked[session.client_id] = (target, now)
            orphans.setdefault(target, []).append(Orphan(session.client_id, session.user_name))
        for target, adopted in orphans.items():
            for frame in pack_adopts(self._store_id, Revival.NEVER, adopted):
                self._mesh.tell(target, frame)

    def _homeless(self, client_id: str) -> Session | None:
        """Return the session of a client id if nobody is taking it."""
        session = self._owner.session(client_id)
        if session is not None:
            return session if session.attachment is None else None
        departures = self._moving.departures
        return departures.leavings[client_id].departure.session if departures.is_untaken(client_id) else None

    def _all_homeless(self) -> Iterator[Session]:
        """Iterate over all of those, the ones last that were asked for by a node that then died."""
        yield from self._owner.draining.waiting()
        for client_id, leaving in self._moving.departures.leavings.items():
            if self._homeless(client_id) is leaving.departure.session:
                yield leaving.departure.session

    def _next_target(self, targets: list[str], counts: dict[str, int]) -> str:
        """Return whose turn it is, "" if that one has enough for now: the others wait, so that all get the same."""
        target = targets[self._turn_of % len(targets)]
        if counts[target] >= ASKED_MAX:
            return ""
        self._turn_of += 1
        return target

    def may_give(self) -> bool:
        """Say whether sessions may be read that leave this node.

        A donor asks first what others give instead of it (see `estates`).
        """
        return self.job.state != State.DONATING or self._heard >= set(self._mesh.peers)

    def donor_heard(self, node: str, store_id: bytes, number: int) -> None:
        """A member says from which number on its messages for this donor are given to others."""
        if store_id == self._mesh.former_store() and node in self._mesh.peers:
            self._heard.add(node)
            self._owner.transfers.skips[self._mesh.peers[node].store_id] = number

    def _donate(self, now: float) -> None:
        """See what of this donor's sessions has not been taken; those that have no other home stay in the store."""
        mesh = self._mesh
        registry = mesh.registry
        for name in mesh.peers:
            if name not in self._heard:
                mesh.tell(name, pack_donor(mesh.former_store()))
        self._wake_homeless(now)
        if not mesh.peers or not mesh.is_complete() or not self.may_give():
            self._given = 0
            return
        draining = self._owner.draining
        left = [session for session in draining.all() if len(registry.homes(session.client_id)) > 1]
        count = len(left) + draining.moving()
        if not count:
            # The sessions that stay are over: what waits for groups is not for them.
            draining.leave_groups(now)
        is_given = not (count or draining.groups_to_give(True) or mesh.unacknowledged())
        self._given = self._given + 1 if is_given else 0
        if count or self._given >= GIVEN_LOOKS:
            messages = sum(len(session.queue) + len(session.inflight) for session in left)
            self.job.donated(self._moving.departures.moved, count, messages, now)

    def _wake_homeless(self, now: float) -> None:
        """Have what is published come to those of this donor's sessions that have no other home, as far as is known.

        A member that is down may have one. It is not waited for: the client may come before it does.
        """
        running = [peer for peer in self._mesh.peers.values() if peer.running]
        if not running or not all(peer.tables.is_current() for peer in running):
            self._known_since = math.inf
            return
        self._known_since = min(self._known_since, now)
        if self._mesh.is_complete() or now >= self._known_since + self._mesh.failure_timeout_s:
            self._wake(session for session in self._owner.draining.all() if self._is_only_here(session))

    def _is_only_here(self, session: Session) -> bool:
        return all(home.node == self._name for home in self._mesh.registry.homes(session.client_id))

    def _wake(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._owner.transfers.wake(session)

    # The end.

    def _say_goodbye(self, now: float) -> None:
        running = {name for name, peer in self._mesh.peers.items() if peer.running}
        if self._removed_by and running <= self._removed_by:
            self.job.left(now)
        elif now >= self._goodbye_at:
            self._goodbye_at = now + GOODBYE_S
            self._mesh.tell_leaving()

    # What is said of it.

    def _earlier_leave(self) -> str:
        """Return another member that is leaving and began before this node, "" if there is none."""
        for name, report in self._reports.items():
            is_leaving = report.state in BUSY and name in self._mesh.peers
            if is_leaving and (report.stamp, name) < (self.job.stamp, self._name):
                return name
        return ""

    def _refusal(self, order: Order) -> str:
        """Return why an order can't be taken, "" if it can."""
        if not self._mesh.peers:
            return f"{self._name} is in no cluster with others: there is nothing to leave"
        if self.job.state == State.IDLE:
            for name, report in self._reports.items():
                if report.state in BUSY and name in self._mesh.peers:
                    return already_leaving(name, report, self._mesh.peers[name].running)
        if order.verb == Verb.STOP_LISTENERS:
            return ""
        if order.targets:
            unfit = [name for name in order.targets if name not in self._targets(order)]
            return f"no target: {', '.join(unfit)} is not a running member besides {self._name}" if unfit else ""
        missing = self._missing()
        if missing:
            return (
                f"{', '.join(missing)} does not run, and may have messages for queues that would move: "
                f"{how_without(missing).removeprefix('or ')}"
            )
        return ""

    def _dry_run(self, order: Order) -> str:
        """Return what a forced migration would do now."""
        targets = self._targets(order)
        queues = dict.fromkeys(targets, 0)
        messages = dict.fromkeys(targets, 0)
        passing = 0
        number = 0
        for session in self._owner.draining.all():
            if not session.persistent:
                passing += 1
                continue
            target = targets[number % len(targets)]
            number += 1
            queues[target] += 1
            messages[target] += len(session.queue) + len(session.inflight)
        lines = [
            f"{target} would get {counted(queues[target], 'queue')} with {counted(messages[target], 'message')}"
            for target in targets
        ]
        if len(lines) > DRY_RUN_LINES_MAX:
            lines = [*lines[:DRY_RUN_LINES_MAX], "..."]
        if passing:
            lines.append(f"{counted(passing, 'client')} without a persistent session would be disconnected")
        # What waits in a group waits for nobody in particular, and goes where a member is.
        waiting, lost = self._owner.draining.in_groups()
        if waiting > lost:
            lines.append(
                f"{counted(waiting - lost, 'message')} of shared subscriptions would go where their members are"
            )
        if lost:
            lines.append(
                f"{counted(lost, 'message')} of shared subscriptions would be lost, as only clients without a "
                "persistent session wait for them"
            )
        else:
            lines.append("nothing would be lost")
        return "\n".join(lines)
