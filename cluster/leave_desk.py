"""The leave desk: where operators at any member say that a node is to leave, and hear how far it is.

Owns the commands of this node's operators, and what other members say of their leaves. An order goes to the node that
is meant; what it does there is `leaver`'s. A node that does not answer is removed by `removal`.

Theory of operation
-------------------
    command --LEAVE_ORDER, until answered--> the node --LEAVE_ANSWER--> follow its LEAVE_REPORTs
      LEFT, or the node is no member any more     --> Done
      FAILED_WITH_QUEUES                          --> its failure
      IDLE                                        --> it was aborted
      no LEAVE_ANSWER for UNANSWERED_S            --> the node runs and can't take an order: its store may be failing
      the node does not run for PATIENCE_S        --> its leave goes on when it runs again

A command follows and does nothing else: one that is lost changes nothing. An order is numbered, and its node answers
the same number the same way, so that one that is sent twice is taken once. An order that is not answered is given up
when its contrary is ordered here: sent once more it might be taken after that. What is ordered at different members may
be taken in any order.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from cluster.estates import Estates
from cluster.frames import FrameType
from cluster.leave_frames import (
    Order,
    Orphan,
    Report,
    Verb,
    pack_adopt_left,
    pack_answer,
    pack_donor_heard,
    pack_heard,
    pack_order,
    unpack_adopt,
    unpack_adopt_left,
    unpack_answer,
    unpack_donor,
    unpack_donor_heard,
    unpack_heard,
    unpack_order,
    unpack_report,
)
from cluster.leaver import ASKED_MAX, BUSY, Leaver
from cluster.leaving import State
from cluster.mesh import Mesh
from cluster.moving import Moving
from cluster.removal import Removal, losses, persistent_sessions, refusal
from cluster.revival import Revival

ANSWER_S: Final = 1.0
# A node that runs answers sooner, unless its store takes no writes.
UNANSWERED_S: Final = 10.0
# How long a node may be down before who follows its leave is told.
PATIENCE_S: Final = 60.0
# The exit code of a command that is answered by nobody.
TIMED_OUT: Final = 4
# Who follows hears something at least so often, so that nobody takes a quiet leave for a node that hangs.
STILL_THERE_S: Final = 5.0
_LEAVES: Final = (Verb.STOP_LISTENERS, Verb.MOVE)
_TICK_S: Final = 0.2
# Numbers of orders that are remembered with their answers, of each member.
_ANSWERS_MAX: Final = 64
# Numbers of orders begin with the life of the node where they were given; so many bits are left for the count.
_ORDERS_BITS: Final = 16


@dataclass(slots=True, frozen=True)
class Said:
    """What is said to a command: progress, or its end with an exit code.

    `asks`: the end is a question, and the answer is the same command with `yes`.
    """

    command: int
    is_end: bool
    exit_code: int
    text: str
    moved: int = 0
    queues: int = 0
    asks: bool = False


@final
class Follower:
    """A command that waits for a node."""

    __slots__ = (
        "asked_at",
        "asks",
        "begun_at",
        "command",
        "down_since",
        "is_taken",
        "line_number",
        "moved",
        "node",
        "number",
        "order",
        "removal",
        "said_at",
    )

    def __init__(self, command: int, number: int, node: str, order: Order, asks: bool, now: float) -> None:
        self.asks = asks
        self.begun_at = now
        self.removal: Removal | None = None
        self.command = command
        self.number = number
        self.node = node
        self.order = order
        self.is_taken = False
        self.asked_at: float = -math.inf
        self.said_at: float = now
        self.down_since: float = math.inf
        self.line_number = -1
        self.moved = 0


@final
class LeaveDesk:
    """The leaves of a cluster as one member sees them."""

    def __init__(
        self,
        mesh: Mesh,
        moving: Moving,
        estates: Estates,
        leaver: Leaver,
        reports: dict[str, Report],
        reference: str,
    ) -> None:
        self._mesh = mesh
        self._moving = moving
        self._estates = estates
        self._leaver = leaver
        self._reports = reports
        self._reference = reference
        self._name: Final = mesh.membership.name
        # Above those of the life before: to the others an order of that is another one.
        self._number = (mesh.incarnation << _ORDERS_BITS) & 0xFFFFFFFF
        self._followers: list[Follower] = []
        # Of nodes that do not answer, by name.
        self._removals: dict[str, Removal] = {}
        # By the store of a member, as one that is back with another counts from the beginning: (number of an order,
        # whether it was taken, what was said).
        self._answered: dict[bytes, deque[tuple[int, bool, str]]] = {}
        self._said: list[Said] = []
        self._tick_at = math.inf
        # That of this node's leave when it was told last: when it has left it is gone at once.
        self._own_state = State.IDLE
        self._frames: Final[dict[int, Callable[[str, bytes, float], None]]] = {
            FrameType.LEAVE_ORDER: self._receive_order,
            FrameType.LEAVE_ANSWER: self._receive_answer,
            FrameType.LEAVE_REPORT: self._receive_report,
            FrameType.LEAVE_HEARD: self._receive_heard,
            FrameType.ADOPT: self._receive_adopt,
            FrameType.ADOPT_LEFT: self._receive_adopt_left,
            FrameType.DONOR: self._receive_donor,
            FrameType.DONOR_HEARD: self._receive_donor_heard,
        }

    def handles(self, kind: int) -> bool:
        """Say whether a frame is for this."""
        return kind in self._frames

    def command(self, command: int, node: str, order: Order, now: float, asks: bool = False) -> None:
        """An operator wants something of a node; `take_said` has what is said to that.

        With `asks` it is asked whether a node that does not answer is really to be removed.
        """
        for name in (node, *order.targets):
            if name != self._name and name not in self._mesh.peers:
                members = ", ".join(sorted([*self._mesh.peers, self._name]))
                self._end(command, 1, f"{name} is not a member of this cluster; the members are {members}")
                return
        self._give_up_contraries(node, order)
        self._number = (self._number + 1) & 0xFFFFFFFF
        follower = Follower(command, self._number, node, order, asks, now)
        self._followers.append(follower)
        self._tick_at = now
        if node == self._name:
            taken, text = self._leaver.order(order, now)
            self._answer(follower, taken, text)

    def status(self) -> list[tuple[str, Report | None]]:
        """Return what is known of the leaves of all members: (node name, what it said last, None for nothing)."""
        known = {**self._reports, self._name: self._leaver.job.report()}
        return [(name, known.get(name)) for name in sorted([*self._mesh.peers, self._name])]

    def take_said(self) -> list[Said]:
        """Return what is to be said to commands, in order."""
        said = self._said
        if said:
            self._said = []
        return said

    def receive(self, node: str, frame: bytes, now: float) -> None:
        """Take a frame of a member; FrameError if it can't be read."""
        self._frames[frame[1]](node, frame, now)

    def tick(self, now: float) -> None:
        """Ask who has not answered, and tell followers what is new."""
        own_state = self._leaver.job.state
        if now < self._tick_at and own_state == self._own_state:
            return
        self._own_state = own_state
        for removal in list(self._removals.values()):
            removal.tick(now)
        for follower in list(self._followers):
            self._follow(follower, now)
        for node in [node for node, removal in self._removals.items() if removal.progress.is_over]:
            del self._removals[node]
        self._tick_at = now + _TICK_S if self._followers or self._removals else math.inf

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        return self._tick_at

    def validate(self) -> None:
        """Check the invariants."""
        assert len({follower.command for follower in self._followers}) == len(self._followers)

    def _receive_order(self, node: str, frame: bytes, now: float) -> None:
        number, order = unpack_order(frame)
        answered = self._answered.setdefault(self._mesh.peers[node].store_id, deque(maxlen=_ANSWERS_MAX))
        for known, taken, text in answered:
            if known == number:
                self._mesh.tell(node, pack_answer(number, taken, text))
                return
        taken, text = self._leaver.order(order, now)
        answered.append((number, taken, text))
        self._mesh.tell(node, pack_answer(number, taken, text))

    def _receive_answer(self, node: str, frame: bytes, now: float) -> None:
        number, taken, text = unpack_answer(frame)
        for follower in list(self._followers):
            if follower.number == number and follower.node == node and not follower.is_taken:
                self._answer(follower, taken, text)
                if follower.is_taken:
                    # What it said before is of a time before this order.
                    self._reports.pop(node, None)

    def _receive_report(self, node: str, frame: bytes, now: float) -> None:
        report = unpack_report(frame)
        if report.state not in set(State):
            return
        self._reports[node] = report
        if report.state != State.IDLE:
            self._mesh.tell(node, pack_heard(self._reference))
        for follower in list(self._followers):
            # At once: the next that comes may be that it is no member any more.
            if follower.node == node and follower.is_taken:
                self._tell(follower, report, now)

    def _receive_heard(self, node: str, frame: bytes, now: float) -> None:
        self._leaver.references[node] = unpack_heard(frame)

    def _receive_adopt(self, node: str, frame: bytes, now: float) -> None:
        home, revival, orphans = unpack_adopt(frame)
        if not orphans:
            left: list[str] = []
            for name, peer in self._mesh.peers.items():
                if peer.store_id == home:
                    self._moving.claims.claim_now(name)
                    left = sorted(persistent_sessions(self._mesh, name))
            self._mesh.tell(node, pack_adopt_left(home, len(left)))
            # Who removes it may have been down when these began. While a member is not heard here they may be there by
            # now, whoever was named as a target.
            orphans = [Orphan(client_id, None) for client_id in left[:ASKED_MAX]]
            revival = Revival.IF_WHOLE
        for orphan in orphans:
            self._moving.registrar.adopt(orphan.client_id, orphan.user_name, home, revival, now)

    def _receive_adopt_left(self, node: str, frame: bytes, now: float) -> None:
        store_id, left = unpack_adopt_left(frame)
        for removal in self._removals.values():
            if removal.store_id == store_id:
                removal.adopt_left(node, left, now)

    def _receive_donor(self, node: str, frame: bytes, now: float) -> None:
        store_id = unpack_donor(frame)
        number = self._estates.rerouted(store_id)
        if number:
            self._mesh.tell(node, pack_donor_heard(store_id, number))
        # Else it asks again.

    def _receive_donor_heard(self, node: str, frame: bytes, now: float) -> None:
        store_id, number = unpack_donor_heard(frame)
        self._leaver.donor_heard(node, store_id, number)

    def _give_up_contraries(self, node: str, order: Order) -> None:
        """Have the last word count: an abort after a leave that was ordered before, or the leave after an abort."""
        contraries = _LEAVES if order.verb == Verb.ABORT else (Verb.ABORT,) if order.verb in _LEAVES else ()
        for follower in list(self._followers):
            is_unanswered = follower.node == node and not follower.is_taken and follower.removal is None
            if is_unanswered and follower.order.verb in contraries:
                text = f"the contrary was ordered before {node} answered: --status shows what it does"
                self._finish(follower, TIMED_OUT, text)

    def _answer(self, follower: Follower, taken: bool, text: str) -> None:
        """The node has answered the order."""
        if not taken:
            self._finish(follower, 1, text)
        elif follower.order.verb != Verb.MOVE:
            self._finish(follower, 0, text)
        else:
            follower.is_taken = True

    def _follow(self, follower: Follower, now: float) -> None:
        node = follower.node
        if node != self._name and node not in self._mesh.peers and follower.removal is None:
            self._finish(follower, 0, "Done")
            return
        if now >= follower.said_at + STILL_THERE_S:
            follower.said_at = now
            self._said.append(Said(follower.command, False, 0, ""))
        if follower.removal is not None:
            self._follow_removal(follower, follower.removal, now)
            return
        if node != self._name and not self._mesh.peers[node].running:
            if not follower.is_taken:
                self._remove(follower, now)
                return
            if follower.down_since == math.inf:
                follower.down_since = now
                text = f"{node} does not run any more: waiting {PATIENCE_S:.0f} s for it to start again"
                self._said.append(Said(follower.command, False, 0, text))
            if now >= follower.down_since + PATIENCE_S:
                text = f"{node} does not run any more; its leave goes on when it does: see --status"
                self._finish(follower, 1, text)
            return
        follower.down_since = math.inf
        if not follower.is_taken:
            if now >= follower.begun_at + UNANSWERED_S:
                text = (
                    f"{node} runs, but has not answered within {UNANSWERED_S:g} s, as when its store can't be written: "
                    "its console.log says so. It may take the order yet; --status shows whether it did"
                )
                self._finish(follower, TIMED_OUT, text)
            elif now >= follower.asked_at + ANSWER_S:
                follower.asked_at = now
                self._mesh.tell(node, pack_order(follower.number, follower.order))
            return
        report = self._leaver.job.report() if node == self._name else self._reports.get(node)
        if report is not None:
            self._tell(follower, report, now)

    def _remove(self, follower: Follower, now: float) -> None:
        """The node does not run, and has not taken the order: have the others remove it."""
        node = follower.node
        order = follower.order
        text = refusal(self._mesh, self._reports, node, order)
        if text:
            self._finish(follower, 1, text)
            return
        lines = losses(self._mesh, self._reports, node, order)
        if order.verb == Verb.DRY_RUN:
            self._finish(follower, 0, "\n".join(lines))
        elif follower.asks:
            self._followers.remove(follower)
            question = "\n".join([*lines, f"Remove {node} from the cluster?"])
            self._said.append(Said(follower.command, True, 0, question, asks=True))
        else:
            for line in lines:
                self._said.append(Said(follower.command, False, 0, line))
            if node not in self._removals:
                self._removals[node] = Removal(self._mesh, self._moving, node, order)
            follower.removal = self._removals[node]
            self._follow_removal(follower, follower.removal, now)

    def _follow_removal(self, follower: Follower, removal: Removal, now: float) -> None:
        progress = removal.progress
        if progress.is_over:
            self._finish(follower, 1 if progress.failure else 0, progress.failure or "Done")
        elif now >= follower.said_at + follower.order.interval_s:
            follower.said_at = now
            text = f"{progress.moved}/{progress.queues} sessions have a new home"
            self._said.append(Said(follower.command, False, 0, text, progress.moved, progress.queues))

    def _tell(self, follower: Follower, report: Report, now: float) -> None:
        if follower.line_number < 0:
            # What was said before this command came is no progress of it.
            follower.line_number = report.number
        is_new = report.number != follower.line_number
        if is_new or report.moved != follower.moved:
            follower.line_number = report.number
            follower.moved = report.moved
            follower.said_at = now
            text = report.line if is_new else ""
            self._said.append(Said(follower.command, False, 0, text, report.moved, report.queues))
        if report.state == State.LEFT:
            self._finish(follower, 0, "Done")
        elif report.state == State.FAILED_WITH_QUEUES:
            self._finish(follower, 1, report.failure)
        elif report.state not in BUSY:
            self._finish(follower, 1, f"the leave of {follower.node} was aborted")

    def _finish(self, follower: Follower, exit_code: int, text: str) -> None:
        self._followers.remove(follower)
        self._end(follower.command, exit_code, text)

    def _end(self, command: int, exit_code: int, text: str) -> None:
        self._said.append(Said(command, True, exit_code, text))
