"""The keeper's side of registration turns: who has the turn of a client id, who waits for it, who is next.

Owns the turns of the client ids that this node keeps, and the survey that it makes before it grants in a changed view.
It knows nothing of frames and of its own node's CONNECTs: its own node asks like any other. The whole of the protocol
stands in `registration`.

Theory of operation
-------------------
A claim is (node, request number). A turn has holders and waiters:

    asked for -> waiter --first, and no holder--> holder --released, or its node died--> gone
                    '-- released, died, or older than any asker waits --> gone

There is one holder at most by this keeper's own grants. A survey may find a second: granted by another keeper to a node
that this one did not hear then. Nobody is granted the turn until all of them are gone.

The keeper grants while it is settled. When its view of who runs changes it begins a round: it asks every running member
which turns it holds, and is settled again when

- every member has told all its turns, and had the same view when it did: from then on it takes no turn of this keeper's
  client ids but from this keeper. A member that does not answer, or whose view stays different (a connection between
  two others is down), delays it for AGREEMENT_TIMEOUT_S only, and is then not asked any more once it has answered;
- `is_current` says that it knows the registry rows of every running member, not older than what the last one told: a
  turn that was given back to another keeper before is told of no more, and what came of it stands in a row.

A request for a client id that another member keeps, in this node's eyes, waits here: its asker sees the members before
or after this node sees them so. If that lasts for AGREEMENT_TIMEOUT_S the asker can't reach who this node takes for the
keeper, and is granted the turn here.

A view that only lost members since the keeper was last settled leaves it what it was for the client ids that it kept
then (see `running_view`): of these nobody else could grant a turn, so it goes on granting them at once.

A holder on another node is asked again and again whether it still has the turn, by repeating the grant. So a lost grant
arrives after all, and a lost release too: neither side remembers what is over.

What a turn's holder released says how high the client id's epoch is; it may arrive before the registry row of it does,
and until then it says where the session is; from then on the rows do. But the row may be gone again before another node
has seen it come, to which a later session with a lower epoch would be the one that is over. So how high it was is
remembered beyond that, for RELEASED_S in all.

Bounds: CLAIMS_MAX claims of a node, of which a node has no more; RELEASED_MAX epochs.

Invariants: no turn without a claim, no claim of a node that does not run, no number both holder and waiter; no turn has
waiters, no holder and a keeper that may grant it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, final

from cluster.epoch import NO_EPOCH, Epoch
from cluster.running_view import RunningView, keeper_among

# What an asker waits in all; a claim that waits longer is of one that gave up.
REGISTRATION_TIMEOUT_S: Final = 5.0
# What may have been lost is said again after so long.
RETRY_S: Final = 0.5
SURVEY_RETRY_S: Final = 0.2
# Members notice a death within a heartbeat or two of each other. A keeper that waits longer for their agreement goes on
# by its own view, since epochs decide between two registrations at once, and a CONNECT waits no longer than 5 s.
AGREEMENT_TIMEOUT_S: Final = 2.0
# A registry row that was lost on its way is repaired within a few heartbeats. Nor is one on its way for longer: who
# is not heard for so long is missed, and its rows come anew.
RELEASED_S: Final = 10.0
RELEASED_MAX: Final = 65536
CLAIMS_MAX: Final = 65536

# A number is the incarnation of its node << these bits | a count: 10,000 a second for 3 years.
NUMBER_BITS: Final = 40
# A round is the incarnation of the keeper << these bits | a count.
ROUND_BITS: Final = 32


@final
class ClientTurn:
    """The turn of one client id. Claims are (node, number)."""

    __slots__ = ("holders", "waiters")

    def __init__(self) -> None:
        # When each was granted the turn, or asked last whether it still has it.
        self.holders: dict[tuple[str, int], float] = {}
        # When each began to wait, first come first.
        self.waiters: OrderedDict[tuple[str, int], float] = OrderedDict()


def _waits_since(turn: ClientTurn, now: float) -> float:
    """Return since when the next one waits, `now` if nobody does."""
    return next(iter(turn.waiters.values()), now)


@final
class Told:
    """What a member has told in this round."""

    __slots__ = ("asked_at", "complete", "next_part", "view")

    def __init__(self, now: float) -> None:
        self.asked_at = now
        self.next_part = 0
        self.complete = False
        self.view = 0


@final
class Released:
    """What came of a turn. `is_known`: its registry row has come, and may be gone again."""

    __slots__ = ("epoch", "is_known", "until")

    def __init__(self, epoch: Epoch, is_known: bool, until: float) -> None:
        self.epoch = epoch
        self.is_known = is_known
        self.until = until


@final
class TurnKeeper:
    """The turns of this node's client ids. Afterwards take `grants` and `surveys`. Times are monotonic seconds."""

    def __init__(self, view: RunningView, find: Callable[[str], Epoch], is_current: Callable[[float], bool]) -> None:
        """`find` and `is_current` as in `Registration`."""
        # To be told: (node, number, client id, epoch), and the nodes to be asked what they hold.
        self.grants: list[tuple[str, int, str, Epoch]] = []
        self.surveys: list[str] = []
        self.settled = True
        self.round = view.incarnation(view.name) << ROUND_BITS
        # Grants of this keeper, and requests beyond its bounds.
        self.granted = 0
        self.refused = 0
        self._view = view
        self._find = find
        self._is_current = is_current
        self._turns: dict[str, ClientTurn] = {}
        # How many claims each node has in `_turns`.
        self._claims: dict[str, int] = {}
        self._told: dict[str, Told] = {}
        # When the view changed, and when the last of the members told something in this round.
        self._changed_at = 0.0
        self._told_at = 0.0
        # The view in which this keeper was last settled, and whether a member was added to it since.
        self._settled_members = view.members
        self._grown = False
        self._released: OrderedDict[str, Released] = OrderedDict()

    def __len__(self) -> int:
        """Return how many client ids have a turn."""
        return len(self._turns)

    def pending(self) -> bool:
        """Say whether `tick` has something to repeat or to wait for."""
        return not self.settled or len(self._claims) > (1 if self._view.name in self._claims else 0)

    def request(self, node: str, number: int, client_id: str, now: float) -> None:
        """A node wants the turn; repeated, it may have missed the grant, which `tick` repeats."""
        if not self._is_of(node, number):
            return
        claim = (node, number)
        turn = self._turns.get(client_id)
        if turn is None:
            if not self._has_room(node):
                return
            turn = ClientTurn()
            self._turns[client_id] = turn
        elif claim in turn.holders or claim in turn.waiters or not self._has_room(node):
            return
        self._claims[node] = self._claims.get(node, 0) + 1
        turn.waiters[claim] = now
        self._advance(client_id, turn, now)

    def release(self, node: str, number: int, client_id: str, epoch: Epoch, now: float) -> None:
        """A node does not have the turn, or no longer wants it; `epoch` is what came of it."""
        if epoch > NO_EPOCH:
            self._remember(client_id, epoch, now)
        turn = self._turns.get(client_id)
        if turn is not None:
            self._drop(turn, (node, number))
            self._advance(client_id, turn, now)

    def held(self, node: str, number: int, client_id: str, now: float) -> None:
        """A node holds a turn, whoever granted it."""
        if not self._is_of(node, number) or self._view.keeper(client_id) != self._view.name:
            return
        claim = (node, number)
        turn = self._turns.get(client_id)
        if turn is None:
            turn = ClientTurn()
            self._turns[client_id] = turn
        elif claim in turn.holders:
            return
        self._drop(turn, claim)
        # A survey may find more than a node should hold: better a turn too many in memory than one granted twice.
        self._claims[node] = self._claims.get(node, 0) + 1
        turn.holders[claim] = now

    def told(self, node: str, round_number: int, view: int, part: int, last: bool, now: float) -> None:
        """A node has told one part of what it holds; what the part says was handed to `held` before."""
        told = self._told.get(node)
        if told is None or round_number != self.round:
            return
        if part == 0:
            told.next_part = 0
        if part != told.next_part:
            # A part was lost; the next survey asks for all of them.
            return
        told.next_part += 1
        if last:
            if not self._agrees(told):
                self._told_at = now
            told.complete = True
            told.view = view
            self.settle(now)

    def view_changed(self, grown: bool, now: float) -> None:
        """Begin a round in a changed view; `grown` if a member was added.

        Then call `held` for the turns that the own node holds, and `settle`.
        """
        self.round += 1
        self.settled = False
        self._grown = self._grown or grown
        self._changed_at = now
        self._told_at = now
        self._told = {}
        for node in self._view.others:
            self._told[node] = Told(now)
            self.surveys.append(node)
        for turn in self._turns.values():
            for claim in [*turn.holders, *turn.waiters]:
                if not self._is_of(claim[0], claim[1]):
                    self._drop(turn, claim)

    def forget_released(self) -> None:
        """Go by the registry alone."""
        self._released.clear()

    def settle(self, now: float) -> None:
        """Grant again once that is right; and at once what never was in question."""
        if self.settled:
            return
        self.settled = self._is_settled(now)
        if self.settled:
            self._settled_members = self._view.members
            self._grown = False
        for client_id in list(self._turns):
            self._advance(client_id, self._turns[client_id], now)

    def tick(self, now: float) -> None:
        """Repeat what may have been lost, and forget who waited too long."""
        for node, told in self._told.items():
            if not self.settled and self._is_awaited(told, now) and now - told.asked_at >= SURVEY_RETRY_S:
                told.asked_at = now
                self.surveys.append(node)
        self.settle(now)
        for client_id, turn in list(self._turns.items()):
            while now - _waits_since(turn, now) >= REGISTRATION_TIMEOUT_S:
                self._drop(turn, next(iter(turn.waiters)))
            for claim, asked_at in list(turn.holders.items()):
                if claim[0] != self._view.name and now - asked_at >= RETRY_S:
                    turn.holders[claim] = now
                    self.grants.append((claim[0], claim[1], client_id, self._highest(client_id, now)))
            if self.settled and not turn.holders and now - _waits_since(turn, now) >= AGREEMENT_TIMEOUT_S:
                self._grant_next(client_id, turn, now)
            self._advance(client_id, turn, now)

    def holders(self, client_id: str) -> list[tuple[str, int]]:
        """Return who has the turn of a client id, for whoever looks."""
        turn = self._turns.get(client_id)
        return [] if turn is None else list(turn.holders)

    def validate(self) -> None:
        """Check the invariants."""
        claims: dict[str, int] = {}
        for client_id, turn in self._turns.items():
            assert turn.holders or turn.waiters
            assert not turn.holders.keys() & turn.waiters.keys()
            assert turn.holders or not self._may_grant(client_id)
            for node, number in [*turn.holders, *turn.waiters]:
                assert self._is_of(node, number)
                claims[node] = claims.get(node, 0) + 1
        assert claims == self._claims
        assert self.settled or sorted(self._told) == self._view.others
        assert len(self._released) <= RELEASED_MAX

    def _is_of(self, node: str, number: int) -> bool:
        """Say whether a number is of the life that a node leads."""
        return number >> NUMBER_BITS == self._view.incarnation(node)

    def _has_room(self, node: str) -> bool:
        if self._claims.get(node, 0) < CLAIMS_MAX:
            return True
        self.refused += 1
        return False

    def _drop(self, turn: ClientTurn, claim: tuple[str, int]) -> None:
        if turn.holders.pop(claim, None) is None and turn.waiters.pop(claim, None) is None:
            return
        count = self._claims[claim[0]] - 1
        if count:
            self._claims[claim[0]] = count
        else:
            del self._claims[claim[0]]

    def _advance(self, client_id: str, turn: ClientTurn, now: float) -> None:
        """Grant the turn to who is next if it is free."""
        if turn.holders:
            return
        if not turn.waiters:
            del self._turns[client_id]
        elif self._may_grant(client_id):
            self._grant_next(client_id, turn, now)

    def _grant_next(self, client_id: str, turn: ClientTurn, now: float) -> None:
        claim, _ = turn.waiters.popitem(last=False)
        turn.holders[claim] = now
        self.granted += 1
        self.grants.append((claim[0], claim[1], client_id, self._highest(client_id, now)))

    def _may_grant(self, client_id: str) -> bool:
        own = self._view.name
        if self._view.keeper(client_id) != own:
            # Its asker sees other members run than this node does; that passes, as a rule.
            return False
        return self.settled or (not self._grown and keeper_among(self._settled_members, client_id) == own)

    def _agrees(self, told: Told) -> bool:
        return told.complete and told.view == self._view.digest

    def _is_awaited(self, told: Told, now: float) -> bool:
        """Say whether a member has yet to tell its turns, or to do so in the same view.

        One whose view stays different is not asked for ever: all have to tell their rows after each answer, and no time
        would be left for that between the answers of two.
        """
        return not told.complete or (not self._agrees(told) and now - self._changed_at < AGREEMENT_TIMEOUT_S)

    def _is_settled(self, now: float) -> bool:
        if now - self._changed_at < AGREEMENT_TIMEOUT_S:
            for told in self._told.values():
                if not self._agrees(told):
                    return False
        return not self._told or self._is_current(self._told_at)

    def _highest(self, client_id: str, now: float) -> Epoch:
        """Return the highest epoch of a client id that is known here; of one whose row has gone, the counter alone."""
        found = self._find(client_id)
        released = self._released.get(client_id)
        if released is None:
            return found
        if now >= released.until:
            del self._released[client_id]
            return found
        if released.epoch <= found:
            released.is_known = True
        if released.is_known:
            return Epoch(max(found.counter, released.epoch.counter), found.stamp, found.store_id)
        return released.epoch

    def _remember(self, client_id: str, epoch: Epoch, now: float) -> None:
        found = self._find(client_id)
        known = self._released.get(client_id)
        if epoch < found or (known is not None and epoch <= known.epoch and now < known.until):
            return
        self._released[client_id] = Released(epoch, epoch == found, now + RELEASED_S)
        self._released.move_to_end(client_id)
        while len(self._released) > RELEASED_MAX or next(iter(self._released.values())).until <= now:
            self._released.popitem(last=False)
