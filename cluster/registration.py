"""Registration: one registration of a client id at a time in the whole cluster.

Owns this node's requests for turns, and what nodes say to each other of them; `turn_keeper` is the other side, and
`running_view` says who keeps which client id. It knows nothing of sessions, of what is done in a turn, or of
connections: it is told who runs, and the caller sends its frames.

Theory of operation
-------------------
Before a node makes a client id its own (CONNECT, a claim of a will) it takes the client id's turn. The keeper of the
client id, one of the running members, grants it to one at a time, first come first, with the highest epoch that it
knows. The node then does its work under a higher epoch and gives the turn back with that.

    A: TURN_REQUEST(number) --> K                        K: TURN_GRANT(number, epoch) --> A
    A: TURN_RELEASE(number, new epoch) --> K             K: the next one's turn

    request -> waiting --granted--> held --release--> over
                  |--release: the client is gone--> over
                  '--REGISTRATION_TIMEOUT_S--> timed out, over

A number is given to one request at one keeper, and never again: a request that moves to another keeper gets a new one,
and the old one is released. It contains the incarnation of its node, so that the life before has no say. Thus every
frame may be lost, doubled or late:

- a request is repeated until it is granted, and is the same request to the keeper;
- a grant is repeated while its holder has not released it. Who does not know its number answers with a release: so a
  lost release, a turn that was given up while it was granted, and a keeper that took a late request for a new one all
  come to their end, and nobody has to remember what is over;
- a grant names the keeper's round and is ignored if it is of an earlier round than this node has heard of.

When the view of who runs changes
---------------------------------
Waiting requests go to their new keepers at once. Every keeper surveys all running members for the turns that they
hold, and grants again when it is settled (`turn_keeper`): a new keeper knows the turns that its predecessor granted,
be that dead or not, and the registry rows of everybody. A holder that dies, or that restarts, frees its turns.
The answer to a survey does well to be followed by a heartbeat: its keeper waits for the next one.

So among members that all see the same members run, a turn has one holder. While they see different ones, two keepers
may grant two turns of one client id: to a node and to another one that the first's keeper doesn't hear. That is
harmless, since a turn decides nothing. It is the old home's commit that decides a move, by the epochs, and of two homes
in two halves of a cluster all nodes choose the one with the higher epoch, once they hear of both. Turns only spare
nodes that hear each other the contest.

A node alone keeps everything itself: its turns are granted within `request`, and no frame is ever sent.

What is said between two calls of `take_frames` travels together, so that very many turns at once cost few frames.

Bounds: REQUESTS_MAX requests of this node; those of `turn_keeper`.

Invariants: a waiting request is at the keeper of its client id in the current view; every request has a number of its
own; deadlines are those of all waiting requests, in order.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from cluster.epoch import NO_EPOCH, Epoch
from cluster.frames import FrameType, frame_type
from cluster.registration_frames import (
    TurnGrant,
    TurnRelease,
    TurnRequest,
    pack_turn_grant,
    pack_turn_release,
    pack_turn_request,
    pack_turn_survey,
    pack_turns,
    pack_turns_held,
    unpack_turn_grants,
    unpack_turn_releases,
    unpack_turn_requests,
    unpack_turn_survey,
    unpack_turns_held,
)
from cluster.running_view import RunningView
from cluster.turn_keeper import CLAIMS_MAX, NUMBER_BITS, REGISTRATION_TIMEOUT_S, RETRY_S, ROUND_BITS, TurnKeeper
from cluster.wire import FrameError

# A keeper takes no more of a node.
REQUESTS_MAX: Final = CLAIMS_MAX
# How often a keeper that is not settled looks whether it is.
SETTLE_POLL_S: Final = 0.1

# What is not of a round, but told by a holder of its own accord.
_NO_ROUND: Final = 0
# In place of a kind, for a frame that is packed.
_WHOLE: Final = 0


@dataclass(slots=True, frozen=True)
class Granted:
    """The turn of `client_id` is the caller's until `release`; `epoch` is the highest known, NO_EPOCH if none is."""

    token: int
    client_id: str
    epoch: Epoch


@dataclass(slots=True, frozen=True)
class TimedOut:
    """There is no turn for the request, which is over: nothing came in time, or there are too many requests."""

    token: int
    client_id: str


TurnResult = Granted | TimedOut


@final
class Request:
    """A request for a turn that is waiting or held."""

    __slots__ = ("asked_at", "client_id", "deadline", "held", "keeper", "number", "over", "token")

    def __init__(self, token: int, client_id: str, now: float) -> None:
        self.token = token
        self.client_id = client_id
        self.deadline = now + REGISTRATION_TIMEOUT_S
        # Where it waits, or who granted it, and under which number.
        self.keeper = ""
        self.number = 0
        self.asked_at = now
        self.held = False
        self.over = False


@final
class Outbound:
    """What is to be said, in order; what is said of one kind to one node goes together."""

    def __init__(self) -> None:
        # (node name, kind, items), or with a frame that is whole already.
        self._said: list[tuple[str, int, list[bytes]]] = []
        self._open: dict[tuple[str, int], list[bytes]] = {}

    def say(self, node: str, kind: FrameType, item: bytes) -> None:
        """Say one item of a frame."""
        items = self._open.get((node, kind))
        if items is None:
            items = []
            self._open[node, kind] = items
            self._said.append((node, kind, items))
        items.append(item)

    def send(self, node: str, frame: bytes) -> None:
        """Say a whole frame: what is said later comes behind it."""
        self._open = {}
        self._said.append((node, _WHOLE, [frame]))

    def take_frames(self) -> list[tuple[str, bytes]]:
        """Return (node name, frame) of all that was said."""
        if not self._said:
            return []
        said, self._said = self._said, []
        self._open = {}
        found = []
        for node, kind, items in said:
            frames = items if kind == _WHOLE else pack_turns(FrameType(kind), items)
            found += [(node, frame) for frame in frames]
        return found


@final
class Registration:
    """The turns of one node. Times are monotonic seconds; after each call take results and frames."""

    def __init__(
        self,
        name: str,
        store_id: bytes,
        incarnation: int,
        find: Callable[[str], Epoch],
        is_current: Callable[[float], bool],
    ) -> None:
        """`find` returns the highest epoch of a client id in all tables known here, NO_EPOCH if there is none.

        `is_current`, given a time, says whether this node knows the registry rows of every running member as they
        were then or later: whether, of each, a heartbeat that came since then names the versions of its tables that
        are known here. `incarnation` counts the openings of this node's store.
        """
        self._view = RunningView(name, store_id, incarnation)
        self._keeper = TurnKeeper(self._view, find, is_current)
        self._find = find
        self._name = name
        self._last_number = incarnation << NUMBER_BITS
        # By token and by number, those that are not over.
        self._requests: dict[int, Request] = {}
        self._numbers: dict[int, Request] = {}
        # Those that were not granted at once, in the order of their deadlines; what is over or held is passed over.
        self._deadlines: deque[Request] = deque()
        # By node name, the newest round of each keeper that this node has heard of, and the store that counts them.
        self._rounds: dict[str, int] = {}
        self._stores: dict[str, bytes] = {}
        self._results: list[TurnResult] = []
        self._outbound = Outbound()
        self._tick_at = math.inf
        self._timed_out = 0
        self._refused = 0
        self._strange_frames = 0
        self._handlers: dict[int, Callable[[str, bytes, float], None]] = {
            FrameType.TURN_REQUEST: self._receive_requests,
            FrameType.TURN_GRANT: self._receive_grants,
            FrameType.TURN_RELEASE: self._receive_releases,
            FrameType.TURN_SURVEY: self._receive_survey,
            FrameType.TURNS_HELD: self._receive_held,
        }

    def request(self, client_id: str, token: int, now: float) -> None:
        """Ask for the turn of a client id; a result for `token`, which is not in use, follows within 5 s."""
        assert token not in self._requests
        if len(self._requests) >= REQUESTS_MAX:
            self._refused += 1
            self._results.append(TimedOut(token, client_id))
            return
        request = Request(token, client_id, now)
        self._requests[token] = request
        self._ask(request, now)
        self._pass_on(now)
        if not request.held:
            self._deadlines.append(request)

    def release(self, token: int, epoch: Epoch, now: float) -> None:
        """Give a turn back, or a request up. `epoch` is the client id's new one, NO_EPOCH if nothing came of it.

        What is over, or was never asked for, is no fault.
        """
        request = self._requests.get(token)
        if request is not None:
            self._end(request, epoch, now)
            self._pass_on(now)

    def member_started(self, name: str, store_id: bytes, incarnation: int, now: float) -> None:
        """Another member runs: its Hello came, and named this incarnation, the count of the openings of its store."""
        if self._stores.get(name) != store_id:
            # Who has left, and is back under its name with another store, counts from the beginning.
            self._stores[name] = store_id
            self._rounds[name] = 0
        self._rounds[name] = max(self._rounds[name], incarnation << ROUND_BITS)
        if self._view.started(name, store_id, incarnation):
            self._view_changed(True, name, now)

    def member_stopped(self, name: str, now: float) -> None:
        """Another member does not run any more."""
        if self._view.stopped(name):
            self._view_changed(False, "", now)

    def forget_released(self) -> None:
        """Forget what was told with the turns that were given back."""
        self._keeper.forget_released()

    def check_current(self, now: float) -> None:
        """`is_current` may answer otherwise than before. Without it, that is noticed within SETTLE_POLL_S."""
        if not self._keeper.settled:
            self._keeper.settle(now)
            self._pass_on(now)

    def receive(self, node: str, frame: bytes, now: float) -> None:
        """Take a frame of another member's newest connection; FrameError if it can't be read."""
        handler = self._handlers.get(frame_type(frame))
        if handler is None:
            raise FrameError(f"unexpected frame type {frame[1]}")
        if self._view.incarnation(node) < 0:
            # It hears this node first. It says again what matters.
            self._strange_frames += 1
            return
        handler(node, frame, now)
        self._pass_on(now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._expire(now)
        if now >= self._tick_at:
            self._tick_at = math.inf
            for request in self._numbers.values():
                if not request.held and now - request.asked_at >= RETRY_S:
                    self._send_request(request, now)
            self._keeper.tick(now)
        self._pass_on(now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do, infinity if that is never."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0].held or deadlines[0].over):
            deadlines.popleft()
        return min(self._tick_at, deadlines[0].deadline) if deadlines else self._tick_at

    def take_results(self) -> list[TurnResult]:
        """Return what became of requests, in order."""
        results = self._results
        if results:
            self._results = []
        return results

    def take_frames(self) -> list[tuple[str, bytes]]:
        """Return the frames to send, in order, with the name of the node that each is for."""
        return self._outbound.take_frames()

    def keeper(self, client_id: str) -> str:
        """Return the name of a client id's keeper, by this node's view."""
        return self._view.keeper(client_id)

    def holders(self, client_id: str) -> list[tuple[str, int]]:
        """Return who holds a client id's turn by this node as its keeper, as (node name, number of the request)."""
        return self._keeper.holders(client_id)

    def view(self) -> int:
        """Return the digest of this node's view of who runs: equal on nodes that agree."""
        return self._view.digest

    def counters(self) -> dict[str, int]:
        """Return the counts since the start, and how many turns and requests there are."""
        return {
            "turns_granted": self._keeper.granted,
            "turns_timed_out": self._timed_out,
            "turns_refused": self._refused + self._keeper.refused,
            "turn_frames_of_strangers": self._strange_frames,
            "turns_kept": len(self._keeper),
            "turns_requested": len(self._requests),
        }

    def validate(self) -> None:
        """Check the invariants."""
        self._view.validate()
        self._keeper.validate()
        assert len(self._requests) == len(self._numbers) <= REQUESTS_MAX
        waiting = []
        for number, request in self._numbers.items():
            assert number == request.number <= self._last_number
            assert self._requests[request.token] is request
            assert not request.over
            if not request.held:
                assert request.keeper == self._view.keeper(request.client_id)
                waiting.append(request.deadline)
        assert sorted(waiting) == [each.deadline for each in self._deadlines if not each.held and not each.over]

    def _ask(self, request: Request, now: float) -> None:
        """Ask the keeper of the client id, under a new number."""
        self._last_number += 1
        request.number = self._last_number
        request.keeper = self._view.keeper(request.client_id)
        self._numbers[request.number] = request
        self._send_request(request, now)

    def _send_request(self, request: Request, now: float) -> None:
        request.asked_at = now
        if request.keeper == self._name:
            self._keeper.request(self._name, request.number, request.client_id, now)
        else:
            item = pack_turn_request(TurnRequest(request.number, request.client_id))
            self._say(request.keeper, FrameType.TURN_REQUEST, item)

    def _end(self, request: Request, epoch: Epoch, now: float) -> None:
        """Be done with a request."""
        request.over = True
        del self._requests[request.token]
        self._release(request, epoch, now)

    def _release(self, request: Request, epoch: Epoch, now: float) -> None:
        """Tell all who may have the request under its number that it is over, and forget the number.

        They are who was asked; of a turn that is held also the keeper of today, which was told of it, and this node,
        which may have been that in between. Another one that was asks by itself.
        """
        del self._numbers[request.number]
        self._keeper.release(self._name, request.number, request.client_id, epoch, now)
        today = self._view.keeper(request.client_id) if request.held else request.keeper
        for keeper in (request.keeper,) if today == request.keeper else (request.keeper, today):
            if keeper != self._name:
                self._say_release(keeper, request.number, request.client_id, epoch)

    def _say_release(self, keeper: str, number: int, client_id: str, epoch: Epoch) -> None:
        self._say(keeper, FrameType.TURN_RELEASE, pack_turn_release(TurnRelease(number, client_id, epoch)))

    def _say(self, node: str, kind: FrameType, item: bytes) -> None:
        """Say one of many; what a member that does not run is told would come out of nowhere when it does again."""
        if self._view.incarnation(node) >= 0:
            self._outbound.say(node, kind, item)

    def _send(self, node: str, frame: bytes) -> None:
        if self._view.incarnation(node) >= 0:
            self._outbound.send(node, frame)

    def _expire(self, now: float) -> None:
        while self._deadlines and (
            self._deadlines[0].held or self._deadlines[0].over or now >= self._deadlines[0].deadline
        ):
            request = self._deadlines.popleft()
            if not request.held and not request.over:
                self._timed_out += 1
                self._results.append(TimedOut(request.token, request.client_id))
                self._end(request, NO_EPOCH, now)

    def _pass_on(self, now: float) -> None:
        """Tell the keeper's decisions to whom they concern, and see when to come back."""
        keeper = self._keeper
        # A grant to this node may come too late, and the turn is the next one's at once.
        while keeper.grants:
            grants = keeper.grants
            keeper.grants = []
            for node, number, client_id, epoch in grants:
                if node == self._name:
                    self._granted(number, epoch, now)
                else:
                    grant = TurnGrant(keeper.round, number, client_id, epoch)
                    self._say(node, FrameType.TURN_GRANT, pack_turn_grant(grant))
        if keeper.surveys:
            for node in keeper.surveys:
                self._send(node, pack_turn_survey(keeper.round))
            keeper.surveys = []
        if not keeper.settled:
            self._tick_at = min(self._tick_at, now + SETTLE_POLL_S)
        elif self._tick_at == math.inf and ((self._view.others and self._requests) or keeper.pending()):
            self._tick_at = now + RETRY_S

    def _granted(self, number: int, epoch: Epoch, now: float) -> None:
        request = self._numbers.get(number)
        if request is None:
            # It was granted while several ended at once, and was one of them.
            return
        if now >= request.deadline:
            self._expire(now)
            return
        request.held = True
        self._results.append(Granted(request.token, request.client_id, epoch))

    def _view_changed(self, grown: bool, started: str, now: float) -> None:
        """Go on in a changed view; `started` is the member that runs now, or runs anew."""
        self._keeper.view_changed(grown, now)
        told: dict[str, list[tuple[int, str]]] = {}
        for request in list(self._numbers.values()):
            keeper = self._view.keeper(request.client_id)
            if request.held:
                if keeper == self._name:
                    self._keeper.held(self._name, request.number, request.client_id, now)
                elif keeper != request.keeper:
                    told.setdefault(keeper, []).append((request.number, request.client_id))
            elif keeper != request.keeper:
                self._release(request, NO_EPOCH, now)
                self._ask(request, now)
            elif keeper == started:
                # It knows nothing of what it was asked in another life, or while it did not hear this node.
                self._send_request(request, now)
        for keeper, held in told.items():
            # A keeper asks when its own view changes. It may have seen for long what this node sees only now.
            self._tell(keeper, _NO_ROUND, held)
        self._keeper.settle(now)
        self._pass_on(now)

    def _tell(self, keeper: str, round_number: int, held: list[tuple[int, str]]) -> None:
        for part in pack_turns_held(round_number, self._view.digest, held):
            self._send(keeper, part)

    def _receive_requests(self, node: str, frame: bytes, now: float) -> None:
        for request in unpack_turn_requests(frame):
            self._keeper.request(node, request.number, request.client_id, now)

    def _receive_grants(self, node: str, frame: bytes, now: float) -> None:
        for grant in unpack_turn_grants(frame):
            request = self._numbers.get(grant.number)
            if request is None:
                # The release of what it is about may have been lost, and the row of what came of it, too.
                self._say_release(node, grant.number, grant.client_id, self._find(grant.client_id))
            elif (
                not request.held
                and request.keeper == node
                and request.client_id == grant.client_id
                and grant.round >= self._rounds[node]
            ):
                self._granted(grant.number, max(grant.epoch, self._find(grant.client_id)), now)

    def _receive_releases(self, node: str, frame: bytes, now: float) -> None:
        for release in unpack_turn_releases(frame):
            self._keeper.release(node, release.number, release.client_id, release.epoch, now)

    def _receive_survey(self, node: str, frame: bytes, now: float) -> None:
        round_number = unpack_turn_survey(frame)
        if round_number >= self._rounds[node]:
            # Grants of earlier rounds that are still under way are nothing from here on: they are not told of now.
            self._rounds[node] = round_number
            held = [(number, request.client_id) for number, request in self._numbers.items() if request.held]
            self._tell(node, round_number, held)

    def _receive_held(self, node: str, frame: bytes, now: float) -> None:
        told = unpack_turns_held(frame)
        for number, client_id in told.held:
            self._keeper.held(node, number, client_id, now)
        self._keeper.told(node, told.round, told.view, told.part, told.last, now)
