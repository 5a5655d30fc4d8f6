"""Leaving: the job of a node that is to leave its cluster, from the first command to its end.

Owns the state of that job, what it waits for and for how long, and what is said of it. It knows nothing of sessions,
members or frames: `leaver` counts what is still here, does what a state asks for, and stores what `pack` returns.

Theory of operation
-------------------
    IDLE --order--> DRAINING_LISTENERS         the MQTT listeners accept nobody; all else goes on
    IDLE, DRAINING_LISTENERS --order, -k--> WAITING
                                               the clients are disconnected, and claim their queues elsewhere
    WAITING --queues are left after -t--> FAILED_WITH_QUEUES
    FAILED_WITH_QUEUES --the same order--> WAITING --queues are left after -t--> MIGRATING
    any of them --order, --force--> MIGRATING  what is left is given to the other members
    WAITING, MIGRATING --nothing is here any more--> LEAVING --the others have removed this node--> LEFT
    all but LEAVING and LEFT --abort--> IDLE
    any but LEAVING and LEFT --the others have removed this node, without asking it--> REMOVED
    REMOVED --its store comes back as a donor's--> DONATING --all is taken--> LEAVING

An order is the job's from the moment it is taken: a command that is lost, or a restart of the node, changes nothing.
After a restart the time begins anew for which the job waits.

The listeners accept again only in IDLE. Nothing is here any more when there is no queue, no stub, no move, no will that
waits and no forward that is not acknowledged, and the other members know all that this node said of its sessions.

A member that is down holds everything up: it may have messages for queues that have moved, and can't be told. So the
job fails when one is down for MISSING_S, unless the order names targets; then whoever is down finds out by itself. The
stubs that wait for it are no members of shared groups any more once nothing else is here, so that what waits for those
goes to the members elsewhere, and nobody chooses this node for it.

Invariant: the state is stored before anything comes of it.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, final

from cluster.leave_frames import Order, Report, Verb, pack_order_body, read_order_body
from cluster.wire import FrameError, Reader, pack_text, pack_u64

# For so long a member may be down, or nobody be there who could take a queue, before the job fails.
MISSING_S: Final = 5.0
VALUE_VERSION: Final = 1
_FINAL: Final = 1

STEP_1_DONE: Final = "Done! Use -k to teardown and migrate existing sessions!"


class State(IntEnum):
    """Where the job stands."""

    IDLE = 0
    DRAINING_LISTENERS = 1
    WAITING = 2
    FAILED_WITH_QUEUES = 3
    MIGRATING = 4
    LEAVING = 5
    LEFT = 6
    REMOVED = 7
    DONATING = 8

    def text(self) -> str:
        """Return the state as people write it."""
        return self.name.lower().replace("_", "-")


_UNDER_WAY: Final = (State.WAITING, State.MIGRATING)
# Those in which progress is said.
_SPEAKING: Final = (State.WAITING, State.MIGRATING, State.DONATING)
_OVER: Final = (State.LEAVING, State.LEFT, State.REMOVED, State.DONATING)


@dataclass(slots=True, frozen=True)
class Census:
    """What is still at a node: sessions with and without a client, sessions on their way, and messages of all.

    `unfinished` counts what else holds the node back: wills, forwards that are not acknowledged, messages that are kept
    for a member that is gone, members that do not know its tables. `missing` are members that are down, `targets` those
    that queues may go to.
    """

    online: int
    offline: int
    moving: int
    messages: int
    unfinished: int
    missing: tuple[str, ...]
    targets: tuple[str, ...]

    def queues(self) -> int:
        """Return how many queues are here."""
        return self.online + self.offline + self.moving

    def is_empty(self) -> bool:
        """Say whether nothing is here any more."""
        return not self.queues() and not self.unfinished


@final
class LeaveJob:
    """The leave of one node. Times are monotonic seconds."""

    def __init__(self, name: str) -> None:
        self.state = State.IDLE
        self.order = Order(Verb.STOP_LISTENERS)
        # Which leave it is: of two the one with the lower stamp is the first.
        self.stamp = 0
        self.failure = ""
        self.line = ""
        self.line_number = 0
        # The state is to be stored and told.
        self.changed = False
        self._name = name
        # The queues that are left after the time are moved by force.
        self._final = False
        self._until = math.inf
        self._line_at = math.inf
        self._missing_at = math.inf
        # What there was when the state began, and when that was; -1 until the next census.
        self._queues = -1
        self._migrated = 0
        self._messages = 0
        self._began_at = 0.0
        self._closed_at = 0.0
        self._allowance = 0.0

    def restore(self, value: bytes, now: float) -> None:
        """Go on with what `pack` returned; FrameError if it can't be read."""
        reader = Reader(value, 1)
        if value[0] != VALUE_VERSION:
            raise FrameError(f"version {value[0]} of a leave")
        state = reader.u8()
        if state not in set(State):
            raise FrameError(f"unknown state {state} of a leave")
        self.stamp = reader.number()
        self._final = reader.u8() & _FINAL != 0
        self.failure = reader.text()
        self.order = read_order_body(reader)
        reader.end()
        self._enter(State(state), now)
        self.changed = False

    def pack(self) -> bytes:
        """Return the job as it is stored."""
        head = bytes((VALUE_VERSION, int(self.state))) + pack_u64(self.stamp)
        return head + bytes((_FINAL if self._final else 0,)) + pack_text(self.failure) + pack_order_body(self.order)

    def report(self, messages: int = 0) -> Report:
        """Return what the others are told, the number of messages at this node included."""
        queues = max(self._queues, 0)
        return Report(
            self.stamp, self.state, self.line_number, self.line, self.failure, self._migrated, queues, messages
        )

    # What operators want.

    def take_order(self, order: Order, stamp: int, now: float) -> str:
        """Take an order of the verbs STOP_LISTENERS or MOVE; the same order twice is no other than once."""
        if self.state == State.IDLE:
            self.stamp = stamp
            self.failure = ""
        if order.verb == Verb.STOP_LISTENERS:
            if self.state == State.IDLE:
                self.order = order
                self._enter(State.DRAINING_LISTENERS, now)
            return STEP_1_DONE
        if self.state in _OVER:
            return ""
        is_retry = self.state == State.FAILED_WITH_QUEUES
        is_begun = self.state in _UNDER_WAY
        self.order = order
        self.changed = True
        self._line_at = min(self._line_at, now + order.interval_s)
        if order.force:
            if self.state != State.MIGRATING:
                self._enter(State.MIGRATING, now)
        elif not is_begun:
            self._final = is_retry
            self.line = ""
            self._enter(State.WAITING, now)
        return ""

    def abort(self, now: float) -> str:
        """Put the node back in service; the result is why that can't be, "" if it is done."""
        if self.state in _OVER:
            return f"{self._name} has nothing left and is {self.state.text()}: that can't be undone"
        self._final = False
        self.failure = ""
        # How far a leave was that is over is nobody's progress.
        self.line = ""
        if self.state != State.IDLE:
            self._enter(State.IDLE, now)
        return ""

    # What the state asks for.

    def accepts(self) -> bool:
        """Say whether clients may connect."""
        return self.state == State.IDLE

    def may_close(self, online: int, now: float) -> int:
        """Return how many of the clients that are connected are to be disconnected now."""
        if self.state < State.WAITING or not online:
            return 0
        if not self.order.rate:
            return online
        self._allowance = min(self._allowance + (now - self._closed_at) * self.order.rate, float(self.order.rate))
        self._closed_at = now
        count = min(int(self._allowance), online)
        self._allowance -= count
        return count

    def migrates(self) -> bool:
        """Say whether the queues that are here are to be given to the others."""
        return self.state == State.MIGRATING

    def wants_messages(self, now: float) -> bool:
        """Say whether the next census has to count messages, which takes its time."""
        if self.state not in _UNDER_WAY:
            return False
        return self._queues < 0 or now >= min(self._line_at, self._until, self._missing_at)

    def tick(self, census: Census, now: float) -> None:
        """See what has come of it."""
        if self.state not in _UNDER_WAY:
            return
        if self._queues < 0:
            self._queues = census.queues()
            self._messages = census.messages
        self._migrated = max(0, self._queues - census.queues())
        if census.online:
            # The time that clients have to claim their queues begins when the last is disconnected.
            self._until = now + self.order.timeout_s
        if now >= self._line_at:
            self._line_at = now + self.order.interval_s
            self._say(self.progress(census, now))
        if census.is_empty():
            self._say(self.progress(census, now))
            self._enter(State.LEAVING, now)
        elif self._is_held_up(census, now):
            self._fail(self._obstacle(census))
        elif self.state == State.WAITING and now >= self._until and census.offline:
            if self._final:
                self._enter(State.MIGRATING, now)
            else:
                self._fail(self._remaining(census))

    def left(self, now: float) -> None:
        """All others have removed this node."""
        self._enter(State.LEFT, now)

    def removed(self, now: float) -> None:
        """All others have removed this node, which did not leave."""
        self._enter(State.REMOVED, now)

    def donate(self, now: float) -> None:
        """The store of a removed node is to give its queues away."""
        self._enter(State.DONATING, now)

    def donated(self, taken: int, queues: int, messages: int, now: float) -> None:
        """So many queues of a donor were taken, and so many queues and messages were not yet."""
        self._queues = taken + queues
        self._migrated = taken
        if now >= self._line_at or not queues:
            self._line_at = now + self.order.interval_s
            self._say(f"{self._migrated}/{self._queues} queues are given back; {messages} messages are left")
        if not queues:
            self._enter(State.LEAVING, now)

    def progress(self, census: Census, now: float) -> str:
        """Return one line that says how far the job is."""
        queues = max(self._queues, census.queues())
        migrated = queues - census.queues()
        messages = max(self._messages, census.messages)
        rate = migrated / max(now - self._began_at, 0.001)
        left_s = (queues - migrated) / rate if rate else math.inf
        if self.state == State.WAITING:
            left_s = max(0.0, self._until - now)
        said = (
            f"queues: {census.online} online, {census.offline} offline, {census.moving} migrating, {migrated} "
            f"migrated; {census.messages} messages; {rate:.1f} queues/s; "
            f"{'?' if left_s == math.inf else f'{left_s:.0f}'} s left"
        )
        if self.state == State.MIGRATING:
            done = f"{migrated}/{queues} queues and {messages - census.messages}/{messages} messages"
            said = f"Migrated {done}; {said}"
        if census.unfinished and not census.queues():
            said += f"; wills, forwards and messages of groups or removed members not done yet: {census.unfinished}"
        return said

    def validate(self) -> None:
        """Check the invariants."""
        assert self.state in set(State)
        assert (self.state == State.FAILED_WITH_QUEUES) == bool(self.failure)

    def _is_held_up(self, census: Census, now: float) -> bool:
        """Say whether the job has been unable to go on for too long."""
        if (not census.missing or self.order.targets) and (census.targets or self.state == State.WAITING):
            self._missing_at = math.inf
            return False
        self._missing_at = min(self._missing_at, now + MISSING_S)
        return now >= self._missing_at

    def _obstacle(self, census: Census) -> str:
        if census.missing and not self.order.targets:
            return f"{', '.join(census.missing)} does not run; {self._remaining(census)}, {how_without(census.missing)}"
        return f"none of the targets runs; {self._remaining(census)}"

    def _remaining(self, census: Census) -> str:
        queues = census.queues()
        return (
            f"{counted(queues, 'queue')} with {counted(census.messages, 'message')} "
            f"remain{'s' if queues == 1 else ''} on {self._name}, where they are safe: give the same "
            f"command again to wait once more and then migrate them to the other nodes (vmq-admin cluster leave "
            f"node={self._name} -k -i {self.order.interval_s} -t {self.order.timeout_s}), or --abort to put the node "
            "back in service"
        )

    def _fail(self, failure: str) -> None:
        self.failure = failure
        self.state = State.FAILED_WITH_QUEUES
        self.changed = True

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        if state != State.FAILED_WITH_QUEUES:
            self.failure = ""
        self.changed = True
        if state not in (State.LEAVING, State.LEFT):
            # There it is said how much has gone.
            self._queues = -1
            self._migrated = 0
        self._began_at = now
        self._missing_at = math.inf
        self._until = now + self.order.timeout_s if state == State.WAITING else math.inf
        self._line_at = now + self.order.interval_s if state in _SPEAKING else math.inf

    def _say(self, line: str) -> None:
        self.line = line
        self.line_number += 1


def counted(number: int, noun: str) -> str:
    """Return so many of something, as people write it."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def how_without(missing: tuple[str, ...]) -> str:
    """Return what an operator can do while members are down."""
    what = "it" if len(missing) == 1 else "them"
    return (
        f"or first start {what} or let {what} leave, or name those that shall take the queues by "
        "--force-targets=NODE,..."
    )
