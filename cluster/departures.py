"""Departures: the old home's half of moves, for all sessions that leave this node.

Owns when a session is frozen, what is sent of it when, and when its stub may go. It knows what the owner's `transfer`
does with the session itself, and nothing of connections or of who becomes a home: a TAKE, or the registry, says that.
Who sends to old homes still, and until when, is the business of `switching`.

Theory of operation
-------------------
    depart --HEAD--> offered --MOVE_ACK(head taken)--> flowing: DELIVERIES, acknowledged by the last place
      flowing: each member says SWITCHED in its stream; what it sent before is behind us, and goes on to the new home
      all switched, everything confirmed: STATE(ended) --MOVE_ACK(over)--> the stub is gone

Everything is state, told again until it is answered: a lost frame, a restart of either side or a new home (a TAKE of a
later epoch) changes nothing but where reading begins. What the new home has confirmed is deleted here and only here.
DELIVERIES follow the HEAD before that is answered, and never go in front of it; if it is lost, what the home says of
them does not count.

The new home hears which members have switched when all that run have: what it holds back it holds for all of them. One
that is down switches when it is back; so long the stub stays, on disk, since what waits for this node there must find
it. One that runs and does not hear the home goes on sending here. And what is for others at this node comes to the stub
as well, whoever has switched. The new home has had that directly, but does not know so for ever: if this node is
removed and its store comes back as a donor, that has forgotten it. So a stub is looked at every RETRY_S as long as it
stands, and gives what it has got.

A stub may get more after it has said that it has ended, and its home not by any other way: one of a legacy (see
`broker.core.legacies`), and any when a node has joined since, which may know the stub alone, and of which the home may
have known nothing when it took the last word. It is not over then, whatever its home has answered, but is offered
again, with what it has.

A donor may give nothing before all members have answered it, and one that is down may take long. Until then it does not
offer a session either that goes on elsewhere: what is new there would wait, from the head on, for what it is to give.

A TAKE of a session that can't go yet waits here, and is looked at every WAIT_POLL_S; who asks for it asks again all the
same, as after a lost frame.

Bounds: SESSIONS_AT_ONCE move to one home at a time, each with at most CHUNK_BYTES unconfirmed; those whose clients wait
go first. A client id has one TAKE that waits, the last.

Invariants: every stub of the owner has a LeavingSession, and the other way round; `active` are of their home's, and no
more than SESSIONS_AT_ONCE.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
from typing import Final, final

from broker.core.epoch import NO_EPOCH, Epoch
from broker.core.legacies import is_bare
from broker.core.owner import QueueOwner
from broker.core.session import Session
from broker.core.transfer import Departure
from cluster.frames import FrameType
from cluster.leaving_session import RETRY_S, LeavingSession
from cluster.move_frames import (
    DISCARDED,
    HEAD_TAKEN,
    NOTHING,
    OVER,
    REFUSED,
    STATES_MAX,
    MoveAck,
    Switch,
    Take,
    frames,
    pack_deliveries,
    pack_head,
    pack_moved,
    pack_no,
    pack_state,
)
from cluster.site import Site
from cluster.switching import Switching
from cluster.wire import NUMBER_MAX

CHUNK_BYTES: Final = 128 * 1024
SESSIONS_AT_ONCE: Final = 256
# Parts of a session, which may have a slow link to cross, are said again in the end after so long.
RETRY_S_MAX: Final = 32.0
# So long a session that is still arriving waits for the rest when it is to go on. Less than a CONNECT waits.
PATIENCE_S: Final = 3.0
WAIT_POLL_S: Final = 0.05
# How often is looked for stubs that nobody has taken, after a restart, and how many may come back at a time.
UNTAKEN_POLL_S: Final = 1.0
UNTAKEN_MAX: Final = 1000


@final
class Destination:
    """One new home: the sessions that are under way there, and those that wait for that, in order."""

    def __init__(self) -> None:
        self.active: dict[str, LeavingSession] = {}
        # Those whose clients wait, and the others.
        self.urgent: OrderedDict[str, LeavingSession] = OrderedDict()
        self.waiting: OrderedDict[str, LeavingSession] = OrderedDict()
        self.items: list[bytes] = []

    def has(self, client_id: str) -> bool:
        """Say whether a session is under way, or waits for it."""
        return client_id in self.active or client_id in self.urgent or client_id in self.waiting

    def remove(self, client_id: str) -> None:
        """A session goes elsewhere, or has gone."""
        for leavings in (self.active, self.urgent, self.waiting):
            leavings.pop(client_id, None)

    def fill(self) -> None:
        """Let as many be under way as may be."""
        for queue in (self.urgent, self.waiting):
            while queue and len(self.active) < SESSIONS_AT_ONCE:
                client_id, leaving = queue.popitem(last=False)
                self.active[client_id] = leaving


@final
class HeldTake:
    """A TAKE that waits until the session can go: who asked, since when, and when it asked last."""

    __slots__ = ("asked_at", "node", "since", "take")

    def __init__(self, node: bytes, take: Take, since: float, asked_at: float) -> None:
        self.node = node
        self.take = take
        self.since = since
        self.asked_at = asked_at


@final
class Departures:
    """The sessions that leave this node."""

    def __init__(self, owner: QueueOwner, site: Site) -> None:
        self.leavings: dict[str, LeavingSession] = {}
        self.moved: int = 0
        self.discarded: int = 0
        self.notices: list[str] = []
        # Nothing is read, and so nothing given; but for sessions that are asked for, no heads are sent either.
        self.held = False
        self._owner = owner
        self._site = site
        self._switching = Switching(owner, site)
        self._destinations: dict[bytes, Destination] = {}
        # Leavings about which something has to be said, or may have.
        self._due: dict[str, LeavingSession] = {}
        self._load_due = False
        self._held: dict[str, HeldTake] = {}
        # Some session is on its way to a node that is no member, and nobody else is known to have it.
        self._homeless = False
        self._look_at: float = math.inf
        self._untaken_at: float = math.inf
        self._retry_at: float = math.inf

    def publish_nothing(self) -> None:
        """This node is a donor: nothing of its own comes to any home directly, ever."""
        self._switching.own_first = NUMBER_MAX

    def restore(self, client_id: str, departure: Departure) -> None:
        """Go on with a stub that was found in the store; whose it is, the registry says."""
        session = departure.session
        self.leavings[client_id] = LeavingSession(departure, session.epoch, session.epoch)
        self._untaken_at = -math.inf

    # What happens.

    def take(self, node: bytes, take: Take, now: float) -> None:
        """A node asks for a client's session to be its home under a later epoch than the one here."""
        held = self._held.get(take.client_id)
        since = now if held is None else held.since
        if self._decide(node, take, since, now):
            self._held.pop(take.client_id, None)
        elif held is None or take.epoch >= held.take.epoch:
            self._held[take.client_id] = HeldTake(node, take, since, now)
            self._look_at = min(self._look_at, now + WAIT_POLL_S)

    def _decide(self, node: bytes, take: Take, since: float, now: float) -> bool:
        """Do what a TAKE asks for, or answer that it can't be; false: it has to wait."""
        session = self._owner.session(take.client_id)
        if session is not None and session.epoch >= take.epoch:
            # It is this node's by a later epoch: who asks will hear of that.
            return True
        leaving = self.leavings.get(take.client_id)
        # Somebody connected once more where the session is on its way to: that is the same move.
        is_same = (
            leaving is not None
            and leaving.home == node
            and not take.clean_start
            and self._owner.session(take.client_id) is None
        )
        if leaving is not None and (is_same or take.epoch <= leaving.epoch):
            is_earlier = leaving.home == node and leaving.old_epoch < take.epoch < leaving.epoch
            if is_earlier and not leaving.head_taken and self._site.home(take.client_id) <= take.epoch:
                # It is the home by this epoch, though it asked under a later one as well. Where a later one is known to
                # be its home's, the TAKE is an old one that had to wait here.
                self._retarget(leaving, take.epoch, True)
            elif is_same or leaving.epoch == take.epoch:
                # It asks again: the head may have been lost.
                leaving.spoke_at = -math.inf
                self._due[take.client_id] = leaving
            elif leaving.home != node and not self._site.is_running(leaving.home):
                # Nobody may know of that home but this node: who asks is to do so under an epoch that is later.
                self._put(node, pack_moved(take.client_id, take.epoch, leaving.epoch))
            return True
        old_epoch = NO_EPOCH if session is None else session.epoch
        drained = NO_EPOCH.store_id
        if leaving is not None and session is not None:
            if not self._owner.transfers.is_drained(leaving.departure):
                # What is routed to the session here comes to the stub as well, and is not read there otherwise.
                self._due[take.client_id] = leaving
                return False
            # It makes way when the session goes, and not before: while that waits or stays, members may still send what
            # was for the stub, and directly the session does not get that.
            drained = self._site.store_id()
            leaving = None
        held = leaving.departure.session if leaving is not None else session
        is_strange = held is not None and held.user_name not in (None, "", take.user_name)
        if is_strange and not take.is_adoption:
            # [MQTT-3.1.3-8] [MQTT311-3.1.3-9] Nobody reads, ends or takes over what belongs to another user.
            self._put(node, pack_no(REFUSED, take.client_id, take.epoch))
            return True
        if held is not None and _is_arriving(held, drained) and now - since < PATIENCE_S:
            # It has to come here as a whole before it goes on; later, what has not come comes by itself.
            return False
        elsewhere = leaving is not None and leaving.home not in (node, self._site.store_id())
        if leaving is not None and elsewhere and self._site.is_running(leaving.home):
            # Whoever has taken the head is the home now; until that is known, this one waits.
            if leaving.head_taken:
                self._put(node, pack_moved(take.client_id, take.epoch, leaving.epoch))
            return leaving.head_taken
        if leaving is not None and elsewhere and take.clean_start:
            # That home may have it. Who asks is to begin as if it had heard of that, and say for when both are over.
            self._put(node, pack_moved(take.client_id, take.epoch, leaving.epoch))
            return True
        if elsewhere:
            self.notices.append(f"session of {take.client_id!r} goes elsewhere while its new home is away")
        if take.clean_start:
            self.discard(take.client_id, now)
            self._put(node, pack_no(NOTHING, take.client_id, take.epoch))
            return True
        if held is not None:
            # Until members know its new home they are to send here what is for it.
            self._owner.transfers.wake(held)
        if leaving is not None:
            self._retarget(leaving, take.epoch, True)
        else:
            self.leave(take.client_id, old_epoch, take.epoch, True, now, not take.is_adoption)
            if take.client_id not in self.leavings:
                self._put_away(node, take)
        return True

    def _put_away(self, node: bytes, take: Take) -> None:
        """Answer that the session is not here: it may have gone to a home of which who asks has not heard."""
        home = self._site.home(take.client_id)
        if home.store_id in (NO_EPOCH.store_id, node, self._site.store_id()):
            self._put(node, pack_no(NOTHING, take.client_id, take.epoch))
        else:
            self._put(node, pack_moved(take.client_id, take.epoch, home))

    def _look_at_held(self, now: float) -> None:
        """See which of the TAKEs that wait need not wait any more; who does not ask again has given up."""
        self._look_at = math.inf
        for client_id, held in list(self._held.items()):
            if now - held.asked_at > 2 * RETRY_S or self._decide(held.node, held.take, held.since, now):
                del self._held[client_id]
        if self._held:
            self._look_at = now + WAIT_POLL_S

    def _answer_held(self, leaving: LeavingSession) -> None:
        """A session is all elsewhere: a TAKE that waits for it here would find nothing, and who asked begin anew."""
        held = self._held.get(leaving.client_id)
        if held is not None and self._owner.session(leaving.client_id) is None:
            del self._held[leaving.client_id]
            self._put(held.node, pack_moved(leaving.client_id, held.take.epoch, leaving.epoch))

    def leave(
        self, client_id: str, old_epoch: Epoch, epoch: Epoch, urgent: bool, now: float, is_takeover: bool = True
    ) -> bool:
        """Freeze a client's session, which is to have another home, and offer it there; false: it can't leave yet.

        `is_takeover`: its client has connected there since it did so here.
        """
        before = self.leavings.get(client_id)
        if before is not None and not self._make_way(before, now):
            return False
        departure = self._owner.depart(client_id, now, is_takeover)
        if departure is None:
            return True
        leaving = LeavingSession(departure, old_epoch, epoch)
        self.leavings[client_id] = leaving
        self._enter(leaving, urgent)
        return True

    def bequeath(self, departure: Departure, old_epoch: Epoch, epoch: Epoch, known: bool) -> None:
        """Something was put into a stub that is for a session of this epoch; `known`: it was there before."""
        client_id = departure.session.client_id
        if known:
            self._due[client_id] = self.leavings[client_id]
            return
        leaving = LeavingSession(departure, old_epoch, epoch)
        leaving.sent_to = departure.confirmed
        self.leavings[client_id] = leaving
        self._enter(leaving, False)

    def has_stub(self, client_id: str) -> bool:
        """Say whether a session of the client id that was here leaves this node, and is not over."""
        leaving = self.leavings.get(client_id)
        return leaving is not None and not is_bare(leaving.departure) and not self._is_over(leaving)

    def next_epoch(self, client_id: str) -> Epoch:
        """Return the epoch under which a stub is offered to its home, NO_EPOCH if none is here."""
        leaving = self.leavings.get(client_id)
        return NO_EPOCH if leaving is None else leaving.epoch

    def is_untaken(self, client_id: str) -> bool:
        """Say whether nobody is known to be the new home of a session that leaves."""
        leaving = self.leavings.get(client_id)
        return leaving is not None and leaving.home == self._site.store_id()

    def is_given_back(self, client_id: str, node: bytes, taken: list[tuple[bytes, int]]) -> bool:
        """Say whether the node that gives a session to this one is the new home of its stub, with what it has `taken`.

        That is known if it gives it under a later epoch than the stub was to go there.
        """
        leaving = self.leavings.get(client_id)
        if leaving is None or leaving.home != node:
            return False
        for store_id, watermark in taken:
            if store_id == self._site.store_id():
                self._owner.transfers.confirm(leaving.departure, watermark)
        return True

    def come_back(self, client_id: str, epoch: Epoch) -> bool:
        """The client is back at this node, and nobody else is known to have its session; false if there is no stub.

        One that has only what was kept for a home that is gone is no session: that follows what begins or comes here.
        """
        if not self.has_stub(client_id):
            return False
        leaving = self.leavings[client_id]
        self._forget(leaving)
        self._owner.transfers.come_back(leaving.departure, epoch)
        return True

    def retarget(self, client_id: str, epoch: Epoch) -> None:
        """The registry knows a home of this epoch for a session that leaves."""
        leaving = self.leavings.get(client_id)
        if leaving is not None and epoch > leaving.epoch:
            self._retarget(leaving, epoch, False)

    def end(self, client_id: str, epoch: Epoch, now: float) -> None:
        """What sessions of a client id were before this epoch is over, and there is none that is later."""
        leaving = self.leavings.get(client_id)
        if leaving is not None and leaving.epoch < epoch:
            self._end(leaving, now)

    def follow(self, session: Session, now: float) -> None:
        """A session began at this node: if its stub stands here as well, that goes to it, or ends if it began anew."""
        leaving = self.leavings.get(session.client_id)
        if leaving is None or leaving.epoch >= session.epoch:
            return
        if session.arrival is None:
            self._end(leaving, now)
        else:
            self._retarget(leaving, session.epoch, False)

    def session_ended(self, client_id: str) -> None:
        """A session of this node ended: so does its stub, if that is here as well."""
        leaving = self.leavings.get(client_id)
        if leaving is not None:
            self._due[client_id] = leaving

    def discard(self, client_id: str, now: float) -> None:
        """End a client's session at this node, its stub included: it began anew at another one."""
        leaving = self.leavings.get(client_id)
        if leaving is not None:
            self._end(leaving, now)
        self._owner.discard(client_id, now)

    def _make_way(self, leaving: LeavingSession, now: float) -> bool:
        """End a stub whose session has come back and leaves again, if it has given all it had; else it is asked again.

        What its members still have for it comes to the stub that the session becomes.
        """
        if not self._owner.transfers.is_drained(leaving.departure):
            return False
        self._end(leaving, now)
        session = self._owner.session(leaving.departure.session.client_id)
        if session is not None:
            # It would wait for the last word of a stub that is not there any more.
            self._owner.transfers.end_donor(session, self._site.store_id(), now)
        return True

    def _retarget(self, leaving: LeavingSession, epoch: Epoch, urgent: bool) -> None:
        self._leave_queues(leaving)
        self._switching.forget(leaving)
        leaving.epoch = epoch
        leaving.home = epoch.store_id
        self._owner.transfers.rewind(leaving.departure)
        leaving.begin_again()
        self._enter(leaving, urgent)
        if leaving.home == self._site.store_id():
            # Its new home was removed, or this node has a session of the client id.
            self._untaken_at = -math.inf

    def acknowledged(self, node: bytes, ack: MoveAck, now: float) -> None:
        """The new home says how far it is."""
        leaving = self.leavings.get(ack.client_id)
        if leaving is None or leaving.home != node or leaving.epoch != ack.epoch:
            return
        self._due[ack.client_id] = leaving
        self._load_due = True
        # A home that has not heard the head knows of no old home that gives something, as if all were over.
        is_over = ack.flags & OVER != 0 and leaving.head_taken
        if is_over and self._has_come_late(leaving):
            self._retarget(leaving, leaving.epoch, False)
            return
        if is_over or ack.flags & DISCARDED:
            if ack.flags & DISCARDED:
                self.discarded += 1
            else:
                self.moved += 1
                self._answer_held(leaving)
            self._end(leaving, now)
            return
        if not ack.flags & HEAD_TAKEN:
            if leaving.head_taken:
                # It is not there any more.
                self._owner.transfers.forget_switched(leaving.departure, b"")
                self._retarget(leaving, leaving.epoch, False)
            return
        departure = leaving.departure
        version = (ack.generation, ack.version)
        if not leaving.head_taken or leaving.needs[0] != ack.generation:
            # A home that restarted tells its wishes anew, and may have lost what members confirmed.
            leaving.head_taken = True
            self._owner.transfers.head_taken(departure)
            leaving.needs = version
            self._switching.begin(leaving)
        if ack.watermark > departure.confirmed:
            self._owner.transfers.confirm(departure, ack.watermark)
            leaving.sent_to = max(leaving.sent_to, ack.watermark)
            leaving.spoke_at = now
        # What was sent and is not confirmed may be lost, though something else was answered; so may the last STATE.
        leaving.quiet = not departure.sent and (not leaving.told or ack.state == leaving.state)
        for origin in ack.missing:
            if not self._switching.again(leaving, origin):
                # The home has not heard that this one is no member any more; then it needs to be told again.
                leaving.quiet = False

    def _has_come_late(self, leaving: LeavingSession) -> bool:
        """Say whether a stub got something after its last word, or may, that its home gets on no other way.

        What is still routed to the stub of a session that was here comes there directly, but for that of a member which
        had not switched when the last word was said first: it has joined since, and the answer may be one to that.
        """
        if is_bare(leaving.departure):
            return not self._owner.transfers.is_drained(leaving.departure)
        return not self._have_all_switched(leaving.first_ended)

    def switched(self, mark: Switch) -> None:
        """A member's stream has come to where it sends to a home directly."""
        for leaving in self._switching.marked(mark):
            self._due[leaving.client_id] = leaving

    def tables_changed(self) -> None:
        """More may be known of what the other members want, and have."""
        self._switching.tables_changed()
        if self._homeless:
            self._look_for_homes()

    def members_changed(self) -> None:
        """The members, or who of them runs, have changed."""
        others = self._site.others()
        # A session that went to a node which is no member any more would have no home, and its client was closed here.
        self._held = {client_id: held for client_id, held in self._held.items() if held.node in others}
        self._switching.members_changed(self.leavings)
        self._due.update(self.leavings)
        self._look_for_homes()

    def _look_for_homes(self) -> None:
        """Sessions that were on their way to a node which is no member any more go where they are known to be.

        That may be under a lower epoch, as nobody else may have heard of the one that the removed node had.
        """
        members = (self._site.store_id(), *self._site.others())
        self._homeless = False
        for client_id, leaving in self.leavings.items():
            if leaving.home not in members:
                home = self._site.home(client_id)
                if home.store_id in members:
                    if leaving.epoch != leaving.departure.session.epoch:
                        # That home had what was sent to it. A donor's own name is that of another store by now.
                        self._owner.transfers.forget_switched(leaving.departure, b"")
                    self._retarget(leaving, home, False)
                else:
                    self._homeless = True

    def home_is_back(self, home: bytes) -> None:
        """A member runs again: what was said to it may be lost."""
        self._load_due = True
        for client_id, leaving in self.leavings.items():
            if leaving.home == home:
                leaving.quiet = False
                leaving.spoke_at = leaving.sent_at = -math.inf
                self._due[client_id] = leaving

    def take_untaken(self, now: float) -> list[Session]:
        """Return sessions whose stubs are here and which nobody has, now and then: they may come back.

        Whoever had asked for one died, and it is a restart that left the stub; or the new home was removed. That nobody
        has it is known when all that every member has is known.
        """
        if now < self._untaken_at:
            return []
        untaken = [
            leaving.departure.session
            for leaving in self.leavings.values()
            if leaving.epoch == leaving.departure.session.epoch and self._waits_for_a_home(leaving)
        ]
        self._untaken_at = now + UNTAKEN_POLL_S if untaken else math.inf
        return untaken[:UNTAKEN_MAX] if self._site.is_complete() else []

    def wants_load(self) -> bool:
        """Say whether `load` has something to read."""
        return self._load_due and not self.held

    # What is to be done.

    def load(self, now: float) -> None:
        """Read and send deliveries. Everything that was written must be committed."""
        self._load_due = False
        for home, destination in self._destinations.items():
            if self._site.is_running(home):
                for leaving in list(destination.active.values()):
                    is_free = leaving.is_offered() and not leaving.departure.sent
                    if is_free and not self._waits_for_a_home(leaving):
                        self._load(leaving, destination, now)
                destination.fill()

    def _load(self, leaving: LeavingSession, destination: Destination, now: float) -> None:
        departure = leaving.departure
        after = max(leaving.sent_to, departure.confirmed)
        deliveries = [] if leaving.is_read() else self._owner.transfers.read(departure, CHUNK_BYTES)
        if deliveries:
            leaving.sent_to = deliveries[-1].seq
            leaving.spoke_at = leaving.sent_at = now
            leaving.quiet = False
            self._retry_at = min(self._retry_at, now + RETRY_S)
            destination.items.append(pack_deliveries(leaving.client_id, leaving.epoch, after, deliveries, now))
        elif not leaving.is_read():
            # All that was read was confirmed before it was sent again.
            self._load_due = True
        elif leaving.head_taken:
            # What is still to come concerns what is enqueued here later, and the ends of streams.
            del destination.active[leaving.client_id]
            self._due[leaving.client_id] = leaving

    def tick(self, now: float) -> None:
        """Say what is due, and what was not answered; call it once a turn."""
        if now >= self._look_at:
            self._look_at_held(now)
        for leaving in self._switching.tick(now):
            self._due[leaving.client_id] = leaving
        if now >= self._retry_at:
            self._retry_at = math.inf
            for client_id, leaving in self.leavings.items():
                if not leaving.quiet or not leaving.is_read():
                    self._due[client_id] = leaving
                elif self._site.is_running(leaving.home):
                    self._retry_at = now + RETRY_S
        if not self._due:
            return
        due, self._due = self._due, {}
        for client_id, leaving in due.items():
            if self.leavings.get(client_id) is not leaving:
                continue
            if self._is_over(leaving):
                self._end(leaving, now)
            elif not self._waits_for_a_home(leaving) and self._site.is_running(leaving.home):
                self._advance(leaving, now)
                self._retry_at = min(self._retry_at, now + RETRY_S)

    def next_deadline(self) -> float:
        """Return when `tick` or `load` has something to do; 0.0 if now."""
        if self._due or self.wants_load():
            return 0.0
        return min(self._switching.next_deadline(), self._retry_at, self._look_at, self._untaken_at)

    def flush(self) -> None:
        """Send what was gathered."""
        for home, destination in list(self._destinations.items()):
            items, destination.items = destination.items, []
            for frame in frames(FrameType.MOVE, items):
                self._site.send(home, frame)
            if not (destination.active or destination.urgent or destination.waiting):
                del self._destinations[home]

    def counts(self) -> dict[str, int]:
        """Return how many sessions are leaving and have left."""
        return {"moves_leaving": len(self.leavings), "moves_left": self.moved, "moves_discarded": self.discarded}

    def validate(self) -> None:
        """Check the invariants."""
        assert set(self.leavings) == set(self._owner.transfers.departures)
        for home, destination in self._destinations.items():
            assert len(destination.active) <= SESSIONS_AT_ONCE
            for leavings in (destination.active, destination.urgent, destination.waiting):
                for client_id, leaving in leavings.items():
                    assert leaving.home == home
                    assert self.leavings[client_id] is leaving
        self._switching.validate(self.leavings)

    def _waits_for_a_home(self, leaving: LeavingSession) -> bool:
        """Say whether nobody is known to have taken the session, not even this node: a restart left only the stub."""
        return leaving.home == self._site.store_id() and self._owner.session(leaving.client_id) is None

    def _is_over(self, leaving: LeavingSession) -> bool:
        """Say whether a stub went to a session that began or came where it is, and that has ended."""
        return leaving.epoch != leaving.departure.session.epoch and self._waits_for_a_home(leaving)

    def _advance(self, leaving: LeavingSession, now: float) -> None:
        departure = leaving.departure
        session = departure.session
        again = not leaving.quiet and now >= leaving.spoke_at + RETRY_S
        if not leaving.head_taken:
            goes_on = self._site.home(leaving.client_id) == leaving.epoch
            if again and not (self.held and goes_on):
                self._offer(leaving, now)
            return
        if departure.sent and now >= leaving.sent_at + leaving.patience_s:
            # Lost, or the home restarted: it takes what it has not taken yet. Or it is on its way yet, and a slow link
            # must not be filled with copies: the next part may take longer.
            leaving.patience_s = min(2 * leaving.patience_s, RETRY_S_MAX)
            self._owner.transfers.rewind(departure)
            leaving.sent_to = departure.confirmed
            self._load_due = True
            self._activate(leaving)
        if not leaving.is_read():
            self._activate(leaving)
        passed = leaving.passed()
        ended = self._is_ended(leaving, passed)
        news = (passed != leaving.told and self._have_all_passed(passed)) or (ended and not leaving.said_ended)
        if news or (passed and again):
            leaving.told = passed
            leaving.said_ended = ended
            if ended and not leaving.first_ended:
                leaving.first_ended = passed
            leaving.state = leaving.state % STATES_MAX + 1
            leaving.quiet = False
            leaving.spoke_at = now
            origins = list(passed.items())
            self._put(leaving.home, pack_state(session.client_id, leaving.epoch, leaving.state, origins, ended))

    def _offer(self, leaving: LeavingSession, now: float) -> None:
        leaving.spoke_at = now
        leaving.quiet = False
        self._load_due = True
        head = self._owner.transfers.head(leaving.departure)
        client_id = leaving.departure.session.client_id
        self._put(leaving.home, pack_head(client_id, leaving.epoch, leaving.old_epoch, head, now))

    def _have_all_passed(self, passed: dict[bytes, int]) -> bool:
        """Say whether that is all which the members that run can do for it."""
        site = self._site
        return site.store_id() in passed and all(
            member in passed for member in site.others() if site.is_running(member)
        )

    def _is_ended(self, leaving: LeavingSession, passed: dict[bytes, int]) -> bool:
        return self._owner.transfers.is_drained(leaving.departure) and self._have_all_switched(passed)

    def _have_all_switched(self, switched: Collection[bytes]) -> bool:
        """Say whether these are all members."""
        return self._site.store_id() in switched and all(member in switched for member in self._site.others())

    def _enter(self, leaving: LeavingSession, urgent: bool) -> None:
        self._load_due = True
        self._due[leaving.client_id] = leaving
        destination = self._destination(leaving.home)
        (destination.urgent if urgent else destination.waiting)[leaving.client_id] = leaving
        destination.fill()

    def _activate(self, leaving: LeavingSession) -> None:
        """There is something to be read of it."""
        self._load_due = True
        if not self._destination(leaving.home).has(leaving.client_id):
            self._enter(leaving, False)

    def _destination(self, home: bytes) -> Destination:
        destination = self._destinations.get(home)
        if destination is None:
            destination = Destination()
            self._destinations[home] = destination
        return destination

    def _leave_queues(self, leaving: LeavingSession) -> None:
        destination = self._destinations.get(leaving.home)
        if destination is not None:
            destination.remove(leaving.client_id)
            destination.fill()

    def _forget(self, leaving: LeavingSession) -> None:
        self._leave_queues(leaving)
        self._switching.forget(leaving)
        del self.leavings[leaving.client_id]

    def _end(self, leaving: LeavingSession, now: float) -> None:
        self._forget(leaving)
        self._owner.transfers.end_departure(leaving.departure, now)

    def _put(self, home: bytes, item: bytes) -> None:
        self._destination(home).items.append(item)


def _is_arriving(session: Session, besides: bytes) -> bool:
    return session.arrival is not None and session.arrival.has_present_donor(besides)
