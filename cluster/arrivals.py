"""Arrivals: the new home's half of moves, for all sessions that come to this node.

Owns which sessions were asked for, what was heard of them, and what is answered. It knows what the owner's `transfer`
does with the session itself, and nothing of connections; which node had a client id before, the caller says.

Theory of operation
-------------------
    ask --TAKE, until answered--> HEAD and what was in flight: READY      NOTHING: there was no session
    an old home may as well offer a session by itself: one that was superseded, or that leaves its node

A session that is not here yet goes on as it was there (its heir); one that has a life here takes what the other has
left, in front of its own. An offer may be heard once more when all is over that came of it, and forgotten. So where
nothing of that is remembered, one that was not asked for counts only if the other's tables tell of the session now; and
a will that comes along only if they tell of that.

Everything is answered by what has come of it, so that an old home may say everything again. An answer leaves with the
commit of what it promises, and says which version of this node's wishes has the session's.

Whoever publishes confirms those versions in its stream to this node, which makes the cuts (see `broker.core.arrival`).
A session that was made of the registry alone, since its old home was away, is an arrival as well: its old home may come
back. An arrival is over when no node has anything of the client id but this one, and this node would know; and when
all others know that as well: who does not may have kept what it sent to an old home, and gives it when that is removed.
An old home that was removed itself is waited for no longer than REMOVED_S: then the arrival rests, and knows what came
directly, until the store of that home comes back as a donor's, if ever.

There may be thousands at once, so nothing that happens to one makes this look at all: what waits for a mark of a member
is kept by member, and whether arrivals are over is looked at every CHECK_S.

Invariants: a request is open, or has a result that was not taken; every session that arrives has its `needs`.
"""

import math
from typing import Final, final

from broker.core.epoch import Epoch, home_counter, pack_epoch
from broker.core.events import NEVER_EXPIRES_S
from broker.core.owner import QueueOwner
from broker.core.session import Session
from broker.core.transfer import SessionHead
from cluster.frames import FrameType
from cluster.move_frames import (
    DELIVERIES,
    DISCARDED,
    HEAD,
    HEAD_TAKEN,
    MOVED,
    NOTHING,
    OVER,
    REFUSED,
    STATE,
    Item,
    MoveAck,
    Switch,
    Take,
    frames,
    pack_move_ack,
    pack_take,
)
from cluster.registry import Registry
from cluster.site import Site
from cluster.wire import NUMBER_MAX

RETRY_S: Final = 0.5
# So long others may still give something to a session whose home was removed.
REMOVED_S: Final = 10.0
# An arrival that is over costs little, and it takes long to look at all.
CHECK_S: Final = 0.25
# So long what an old home gives waits for one before it.
HELD_S: Final = 10.0
# So long nobody else must be known to have a session before its old home is not waited for any more.
GONE_S: Final = 5.0

# Of wishes that are not told yet.
_UNTOLD: Final = (0, 0)


@final
class Asked:
    """A session that this node wants to have."""

    __slots__ = ("asked_at", "inflight_seq", "old_home", "take")

    def __init__(self, take: Take, old_home: bytes) -> None:
        self.take = take
        self.old_home = old_home
        self.asked_at: float = -math.inf
        # Up to which place it has to come before the client may go on; -1 until the head is here.
        self.inflight_seq: int = -1

    def is_answered_by(self, node: bytes, epoch: Epoch) -> bool:
        """Say whether a node's head is what was asked for, by whichever of the epochs under which this node has asked.

        A home before the old one may offer what it has left of the same session: that was not in flight.
        """
        return self.old_home == node and (self.take.epoch == epoch or not self.take.clean_start)


@final
class Arrivals:
    """The sessions that come to this node."""

    def __init__(self, owner: QueueOwner, site: Site, registry: Registry) -> None:
        self.arrived: int = 0
        self.notices: list[str] = []
        self._owner = owner
        self._site = site
        self._registry = registry
        self._asked: dict[str, Asked] = {}
        # Those that were not asked for at all yet.
        self._fresh: list[Asked] = []
        # Client id, and what was found: HEAD, NOTHING, REFUSED, or MOVED with the epoch of its home.
        self._ready: list[tuple[str, int, Epoch]] = []
        self._ask_at: float = math.inf
        # Old home -> client id -> what is to be answered when the turn's wishes are told.
        self._answers: dict[bytes, dict[str, MoveAck]] = {}
        # Client id -> the version of this node's wishes that has the session's, and those for which it is not told yet.
        self._needs: dict[str, tuple[int, int]] = {}
        self._untold: dict[str, bool] = {}
        # Member -> client ids, in the order of their versions, whose cut it has not named, or not yet come up to.
        self._uncut: dict[bytes, dict[str, bool]] = {}
        # Something has happened that may end arrivals.
        self._check_due = False
        self._check_at: float = -math.inf
        # Client id -> up to where the members had told of their sessions when no other node was known to have it.
        self._alone: dict[str, dict[bytes, tuple[int, int]]] = {}
        # Client id -> since when all that is known to everybody, though its old home owes a last word.
        self._alone_since: dict[str, float] = {}
        # Until when others may still have something for sessions whose home was removed: no arrival is over.
        self._estates_until: float = -math.inf
        # There may be donors that are no members; and since when which are not.
        self._strangers_due = False
        self._gone: dict[bytes, float] = {}
        # Client id -> until when what an old home gives waits for one before it; and when that is looked at.
        self._held: dict[str, float] = {}
        self._held_at: float = math.inf
        for session in owner.transfers.arriving():
            self.watch(session.client_id)
        if self._needs:
            self._strangers_due = True
            # They have as long again.
            self._held_at = -math.inf

    # What is wanted.

    def ask(self, take: Take, old_home: bytes, now: float) -> None:
        """Ask an old home for a session, or to forget it; `take_ready` has the client id when that is done."""
        asked = Asked(take, old_home)
        self._asked[take.client_id] = asked
        self._fresh.append(asked)
        self._ask_at = min(self._ask_at, now + RETRY_S)

    def forget(self, client_id: str) -> None:
        """Nobody waits any more. What comes of the session comes all the same."""
        self._asked.pop(client_id, None)

    def revive(self, head: SessionHead, epoch: Epoch, known: Epoch, now: float) -> Session:
        """Make a session of what the registry knows, since its old home is away. Its client is not attached yet.

        `known` is the epoch by which the registry knows it.
        """
        if head.expiry_s != NEVER_EXPIRES_S:
            # The client may still be refused.
            head.expires_at = now + head.expiry_s
        session = self._begin(head, epoch, known.store_id, home_counter(known), now)
        self._owner.transfers.set_present(session, known.store_id, False, now)
        return session

    def watch(self, client_id: str) -> None:
        """A session arrives, or wants more: have the members say in their streams from when on they know it.

        Who applies the version that has its wishes says so, though others may have wished the same before.
        """
        self._needs[client_id] = _UNTOLD
        self._untold[client_id] = True
        self._check_due = True
        self._site.touch()

    def watch_on(self, client_id: str) -> None:
        """A session has another old home, and wants what it has wanted.

        Who has said, or is just saying, that it knows that need not say so again. What it sent since is on no other way
        if the old home is gone.
        """
        if client_id not in self._needs:
            self.watch(client_id)

    def take_ready(self) -> list[tuple[str, int, Epoch]]:
        """Return (client id, kind, epoch) of what was asked for.

        HEAD: it has come as far as it has to; NOTHING: there is none; REFUSED: it is another user's; MOVED: its home is
        that of the epoch.
        """
        ready = self._ready
        if ready:
            self._ready = []
        return ready

    # What happens.

    def receive(self, node: bytes, items: list[Item], now: float) -> None:
        """An old home says something of sessions."""
        for item in items:
            if item.kind == HEAD:
                self._head(node, item, now)
            elif item.kind in (NOTHING, REFUSED, MOVED):
                asked = self._asked.get(item.client_id)
                if asked is not None and asked.take.epoch == item.epoch:
                    self._finish(item.client_id, item.kind, item.old_epoch)
            else:
                self._go_on(node, item, now)

    def confirmed(self, mark: Switch, now: float) -> None:
        """A member's stream has come to where it knows a version of this node's wishes."""
        version = (mark.generation, mark.version)
        uncut = self._uncut.get(mark.member)
        if uncut is None:
            uncut = {client_id: True for client_id, needs in self._needs.items() if needs != _UNTOLD}
            self._uncut[mark.member] = uncut
        known = []
        for client_id in uncut:
            needs = self._needs.get(client_id)
            if needs == _UNTOLD:
                # It is to know more than it was asked for.
                continue
            if needs is not None and needs > version:
                break
            known.append(client_id)
        for client_id in known:
            session = self._owner.session(client_id)
            if session is not None and client_id in self._needs:
                self._owner.transfers.set_cut(session, mark.member, mark.number, now)
                if session.arrival is not None and session.arrival.overlaps_with(mark.member):
                    # Its next mark stands behind all that it sends twice.
                    self._site.touch()
                    continue
                self._check_due = True
            del uncut[client_id]

    def running(self, node: bytes, runs: bool, now: float) -> None:
        """A member runs, or does not any more."""
        self._ask_at = now
        self._check_due = True
        for session in self._owner.transfers.arriving():
            self._owner.transfers.set_present(session, node, runs, now)
            assert session.arrival is not None
            if not runs and node in session.arrival.donors:
                self._note_away(session, node)

    def _note_strangers(self, now: float) -> None:
        """Note which donors are no members: nothing more comes from them, unless their stores come back as others."""
        self._strangers_due = False
        members = self._members()
        for session in self._owner.transfers.arriving():
            self._note_gone(session, members, now)

    def _note_gone(self, session: Session, members: set[bytes], now: float) -> None:
        assert session.arrival is not None
        for node, donor in session.arrival.donors.items():
            donor.gone = node not in members
            if donor.gone:
                self._gone.setdefault(node, now)
                # After a restart nobody else says that.
                self._owner.transfers.set_present(session, node, False, now)

    def _is_long_gone(self, node: bytes, members: set[bytes], now: float) -> bool:
        return node not in members and now >= self._gone.get(node, now) + REMOVED_S

    def _members(self) -> set[bytes]:
        return {self._site.store_id(), *self._site.others()}

    def end_own(self, now: float) -> None:
        """This node has given all that it had kept for sessions of nodes that are gone.

        A stub that is here gives what others still send to it, and says its last word itself.
        """
        own = self._site.store_id()
        transfers = self._owner.transfers
        for session in transfers.arriving():
            if session.arrival is None or session.client_id in transfers.departures:
                continue
            if own in session.arrival.donors:
                transfers.end_donor(session, own, now)
                self._check_due = True

    def members_changed(self, now: float) -> None:
        """A node is a member no more."""
        self._strangers_due = True
        self._estates_until = now + REMOVED_S

    def changed(self) -> None:
        """The registry or the members changed: arrivals may be over."""
        self._check_due = True

    # What is to be done.

    def tick(self, now: float) -> None:
        """Ask, and ask again, and end what is over."""
        if now >= self._ask_at:
            self._ask_at = now + RETRY_S if self._asked else math.inf
            self._ask(list(self._asked.values()), now)
        elif self._fresh:
            self._ask(self._fresh, now)
        self._fresh = []
        if self._strangers_due:
            self._note_strangers(now)
        if now >= self._held_at:
            self._release_held(now)
        if self._check_due and now >= self._check_at:
            self._check_at = now + CHECK_S
            self._check(now)
            # That this node knows all, and of no other home any more, is said by no event.
            self._check_due = bool(self._needs)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        if self._ready or self._fresh or self._strangers_due:
            return 0.0
        deadline = min(self._ask_at, self._held_at)
        return min(deadline, self._check_at) if self._check_due else deadline

    def flush(self) -> None:
        """Answer; call it when the turn's wishes have their version."""
        version = self._site.version()
        untold, self._untold = self._untold, {}
        for client_id in untold:
            if client_id in self._needs:
                self._needs[client_id] = version
                for uncut in self._uncut.values():
                    uncut.pop(client_id, None)
                    uncut[client_id] = True
        answers, self._answers = self._answers, {}
        for node, acks in answers.items():
            parts = []
            for ack in acks.values():
                ack.generation, ack.version = self._needs.get(ack.client_id, version)
                parts.append(pack_move_ack(ack))
            for frame in frames(FrameType.MOVE_ACK, parts):
                self._site.tell(node, frame)

    def counts(self) -> dict[str, int]:
        """Return how many sessions arrive and have arrived."""
        return {"moves_arriving": len(self._needs), "moves_arrived": self.arrived}

    def validate(self) -> None:
        """Check the invariants."""
        assert {session.client_id for session in self._owner.transfers.arriving()} <= set(self._needs)

    def _head(self, node: bytes, item: Item, now: float) -> None:
        client_id = item.client_id
        asked = self._asked.get(client_id)
        session = self._owner.session(client_id)
        is_passing = session is not None and not session.persistent and session.epoch > item.old_epoch
        is_over = self._registry.is_over(client_id, home_counter(item.old_epoch))
        if is_passing or is_over or self._registry.own_end(client_id.encode()) > pack_epoch(item.old_epoch):
            # Its client began anew since, or what it had is over. A session that ends with its connection ends all
            # before it, whether they are in the registry yet or not: it can have nothing of them.
            self._answer(node, item, DISCARDED)
            return
        assert item.head is not None
        if session is None and not item.head.expiry_s:
            # It was never there, and brings only deliveries; the session is over.
            self._answer(node, item, DISCARDED)
            return
        if asked is None and not self._is_open(node, session, client_id):
            return
        if session is None:
            home = self._registry.find(client_id)
            if home is not None and home.epoch > item.epoch:
                # It has found another home meanwhile, of which the old one will hear.
                return
            self._begin(item.head, item.epoch, node, 0, now)
        elif session.epoch != item.epoch:
            if item.old_epoch < session.epoch < item.epoch:
                self._say_epoch(node, session)
            return
        else:
            transfers = self._owner.transfers
            if item.head.will is not None and not self._site.is_current(node):
                # Whether it still has that will is known when it offers the session again.
                return
            if item.head.expiry_s:
                transfers.come_again(session, item.old_epoch.store_id, node, now)
            if transfers.add_donor(session, node, home_counter(item.old_epoch), now):
                self._forget_spent(item.head, node)
                if not self._site.has_will(node, client_id):
                    # The offer is an old one that was heard once more: the will came along with the first.
                    item.head.will = None
                transfers.inherit_will(session, item.head, now)
            self.watch_on(client_id)
        session = self._owner.session(client_id)
        assert session is not None
        if self._owner.transfers.introduce(session, node, item.old_epoch, item.head, self._own_cut(), now):
            self.watch(client_id)
        self._note_held(session, now)
        if asked is not None and asked.is_answered_by(node, item.epoch):
            asked.inflight_seq = item.head.inflight_seq
        self._answer(node, item, HEAD_TAKEN)
        self._settle(item.client_id)

    def _is_open(self, node: bytes, session: Session | None, client_id: str) -> bool:
        """Say whether an offer that this node has not asked for may be one that its node still makes.

        Else it is an old one that was heard once more when its node had said its last word; or its node has not told
        yet that it has something, and offers that again. What is known from before a restart, or before the node was
        heard again, does not tell. An arrival knows who has still to say a last word. Who has no stub any more never
        would, and nobody would pass on what an origin that joined since sends to this node alone.
        """
        arrival = session.arrival if session is not None else None
        if arrival is not None and node in arrival.donors:
            return True
        return self._site.is_current(node) and self._site.has_session(node, client_id)

    def _note_held(self, session: Session, now: float) -> None:
        """What one old home gives may have to wait for another one, which will be heard of soon if it is there."""
        assert session.arrival is not None
        self._note_gone(session, self._members(), now)
        for node, donor in session.arrival.donors.items():
            if donor.inherited and not donor.gone:
                was_present = donor.present
                self._owner.transfers.set_present(session, node, self._site.is_running(node), now)
                if was_present and not donor.present:
                    self._note_away(session, node)
        if session.arrival.holds_old() and session.client_id not in self._held:
            self._held[session.client_id] = now + HELD_S
            self._held_at = min(self._held_at, now + HELD_S)

    def _release_held(self, now: float) -> None:
        """Let go out what has waited for long enough."""
        if self._held_at == -math.inf:
            for session in self._owner.transfers.arriving():
                self._note_held(session, now)
        self._held_at = math.inf
        for client_id, deadline in list(self._held.items()):
            if now < deadline:
                self._held_at = min(self._held_at, deadline)
                continue
            del self._held[client_id]
            held = self._owner.session(client_id)
            if held is not None:
                self._owner.transfers.hold_new_only(held, now)
                self._check_due = True

    def _say_epoch(self, node: bytes, session: Session) -> None:
        """An old home offers a session under a later epoch than that by which this node is its home already.

        It was made of the registry here, by a clock that was set back after this node had asked for it.
        """
        take = pack_take(Take(session.client_id, session.epoch, False, session.user_name))
        for frame in frames(FrameType.MOVE_TAKE, [take], True):
            self._site.tell(node, frame)

    def _forget_spent(self, head: SessionHead, donor: bytes) -> None:
        """Forget a will that others have published: an old home that was away does not know it yet."""
        if self._registry.wills.is_spent(head.client_id.encode(), donor):
            head.will = None

    def _begin(self, head: SessionHead, epoch: Epoch, donor: bytes, row_counter: int, now: float) -> Session:
        self._forget_spent(head, donor)
        session = self._owner.transfers.begin_arrival(head, epoch, donor, row_counter, self._own_cut(), now)
        self.watch(head.client_id)
        return session

    def _own_cut(self) -> tuple[bytes, int]:
        """Return from which number on what is published here comes directly."""
        return self._site.store_id(), self._owner.next_number()

    def _go_on(self, node: bytes, item: Item, now: float) -> None:
        session = self._owner.session(item.client_id)
        transfers = self._owner.transfers
        if session is None and item.client_id not in transfers.departures:
            # A loss of power took its head, or it ended here: the old home is to offer the head again, and hears which.
            self._answer(node, item, 0)
            return
        if session is None or session.epoch != item.epoch:
            return
        donor = session.arrival.donors.get(node) if session.arrival is not None else None
        if donor is None:
            # Its last word was answered, and the answer was lost. What it has got since came here directly.
            self._answer(node, item, OVER)
            return
        if not donor.counter:
            # Others have told that it has something, and its own word was lost: it is to say that again.
            self._answer(node, item, 0)
            return
        flags = HEAD_TAKEN
        if item.kind == DELIVERIES:
            # One part at a time is under way, and it begins where this node has confirmed the one before: what is not
            # here of that was lost with the power, or others have had it.
            others = self._may_have_others(item.client_id, node)
            transfers.accept(session, node, item.after, item.deliveries, now, others)
        else:
            for origin, number in item.passed:
                transfers.pass_origin(session, node, origin, number, now)
            if item.ended and not self._missing(session, node):
                self.arrived += 1
                transfers.end_donor(session, node, now)
                self._check_due = True
                flags = OVER
        ack = self._answer(node, item, flags)
        if item.kind == STATE:
            ack.state = item.state
            ack.missing = self._missing(session, node) if item.ended and flags != OVER else []
        self._settle(item.client_id)

    def _may_have_others(self, client_id: str, donor: bytes) -> bool:
        """Say whether another old home than this one may have something of a session, be it one that is not heard yet.

        It may have had directly what this one gives, as both were known to want that.
        """
        known = (self._site.store_id(), donor)
        homes = self._registry.homes(client_id)
        return any(home.epoch.store_id not in known for home in homes) or not self._site.is_complete()

    def _note_away(self, session: Session, node: bytes) -> None:
        """Tell that what is newer does not wait for what an old home still has, be it that this is sent here by now."""
        if self._missing(session, node):
            self.notices.append(f"session of {session.client_id!r} goes on while its old home is away")

    def _missing(self, session: Session, node: bytes) -> list[bytes]:
        """Return the members of which not everything below their cut has come."""
        arrival = session.arrival
        assert arrival is not None
        passed = arrival.donors[node].passed
        # If it needs no cuts, the old home says its last word when everybody has switched. A member without a cut is
        # awaited unless nothing of it will ever come.
        waits_for = arrival.waits_for()
        return [
            member
            for member in (self._site.store_id(), *self._site.others())
            if any(cuts.numbers.get(member, NUMBER_MAX) > passed.get(member, -1) for cuts in waits_for)
        ]

    def _settle(self, client_id: str) -> None:
        """See whether what was asked for is here as far as it has to be."""
        asked = self._asked.get(client_id)
        session = self._owner.session(client_id)
        if asked is None or session is None or asked.inflight_seq < 0:
            return
        donor = session.arrival.donors.get(asked.old_home) if session.arrival is not None else None
        if donor is None or donor.watermark >= asked.inflight_seq:
            self._finish(client_id, HEAD, asked.take.epoch)

    def _finish(self, client_id: str, kind: int, epoch: Epoch) -> None:
        del self._asked[client_id]
        self._ready.append((client_id, kind, epoch))

    def _ask(self, wanted: list[Asked], now: float) -> None:
        takes: dict[bytes, list[bytes]] = {}
        for asked in wanted:
            if asked.inflight_seq >= 0 or self._asked.get(asked.take.client_id) is not asked:
                continue
            if now - asked.asked_at >= RETRY_S and self._site.is_running(asked.old_home):
                asked.asked_at = now
                takes.setdefault(asked.old_home, []).append(pack_take(asked.take))
        for node, parts in takes.items():
            for frame in frames(FrameType.MOVE_TAKE, parts, True):
                self._site.tell(node, frame)

    def _check(self, now: float) -> None:
        """End the arrivals to which nothing can come any more."""
        transfers = self._owner.transfers
        if not self._site.is_complete():
            self._alone.clear()
            self._alone_since.clear()
            if now < self._estates_until:
                # Nor does anybody else give anything before.
                self._estates_until = now + REMOVED_S
            return
        if now < self._estates_until:
            return
        heard, known = self._site.heard(), self._site.known_to_others()
        members = self._members()
        for client_id in list(self._needs):
            session = self._owner.session(client_id)
            if session is None or session.arrival is None:
                self._forget(client_id)
            elif (
                session.arrival.overlaps()
                or self._registry.has_rival_homes(client_id)
                # Of a stub that is here as well, nothing is told to others.
                or client_id in transfers.departures
            ):
                self._alone.pop(client_id, None)
                self._alone_since.pop(client_id, None)
            elif any(known.get(node, at) < at for node, at in self._alone.setdefault(client_id, heard).items()):
                # A member may know less of another one than this node does.
                continue
            elif (
                all(self._is_long_gone(node, members, now) for node in session.arrival.donors)
                or now >= self._alone_since.setdefault(client_id, now) + GONE_S
            ):
                # An old home that has nothing of it any more, as one that restarted, says no last word.
                for node in members.intersection(session.arrival.donors):
                    transfers.end_donor(session, node, now)
                transfers.end_arrival(session, now)
                self._forget(client_id)

    def _forget(self, client_id: str) -> None:
        del self._needs[client_id]
        self._alone.pop(client_id, None)
        self._alone_since.pop(client_id, None)
        self._untold.pop(client_id, None)
        for uncut in self._uncut.values():
            uncut.pop(client_id, None)

    def _answer(self, node: bytes, item: Item, flags: int) -> MoveAck:
        session = self._owner.session(item.client_id)
        watermark = 0
        if session is not None and session.arrival is not None and node in session.arrival.donors:
            watermark = session.arrival.donors[node].watermark
        answers = self._answers.setdefault(node, {})
        ack = answers.get(item.client_id)
        if ack is None or ack.epoch != item.epoch:
            ack = MoveAck(item.client_id, item.epoch, 0, 0)
            answers[item.client_id] = ack
        ack.flags |= flags
        ack.watermark = watermark
        return ack
