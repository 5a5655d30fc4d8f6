"""Departures: the old home's half of moves, for all sessions that leave this node.

Owns when a session is frozen, what is sent of it when, and when its stub may go. It knows what the owner's `transfer`
does with the session itself, and nothing of connections or of who becomes a home: a TAKE, or the registry, says that.

Theory of operation
-------------------
    depart --HEAD--> offered --MOVE_ACK(head taken)--> flowing: DELIVERIES, acknowledged by the last place
      flowing: each member says SWITCHED in its stream; what it sent before is behind us, and goes on to the new home
      all switched, everything confirmed: STATE(ended) --MOVE_ACK(over)--> the stub is gone

Everything is state, told again until it is answered: a lost frame, a restart of either side or a new home (a TAKE of a
later epoch) changes nothing but where reading begins. What the new home has confirmed is deleted here and only here.

A member has switched when its SWITCHED arrives in its stream to this node: from then on it sends to the new home what
the session wants, under numbers from the mark's on, and everything that it sent here only has been received before. A
member that is down switches when it is back; so long the stub stays, on disk, since what waits for this node there must
find it.

Bounds: SESSIONS_AT_ONCE move to one home at a time, each with at most CHUNK_BYTES unconfirmed; those whose clients wait
go first.

Invariants: every stub of the owner has a Leaving, and the other way round; `active` are of their home's Leavings, and
no more than SESSIONS_AT_ONCE.
"""

import math
from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.owner import QueueOwner
from broker.core.session import Session
from broker.core.transfer import Departure
from cluster.frames import FRAME_BYTES_MAX, FrameType
from cluster.move_frames import (
    DISCARDED,
    HEAD_TAKEN,
    NOTHING,
    OVER,
    REFUSED,
    MoveAck,
    Switch,
    Take,
    frame,
    pack_deliveries,
    pack_head,
    pack_moved,
    pack_no,
    pack_state,
    pack_switch,
)
from cluster.site import Site
from cluster.wire import pack_u32

CHUNK_BYTES: Final = 128 * 1024
SESSIONS_AT_ONCE: Final = 256
# What was not answered for so long is said again.
RETRY_S: Final = 0.5
# Parts of a session, which may have a slow link to cross, in the end after so long.
RETRY_S_MAX: Final = 32.0
# So long a session that is still arriving waits for the rest when it is to go on. Less than a CONNECT waits.
PATIENCE_S: Final = 3.0


@final
class Leaving:
    """A session that leaves: to which home, and how far it is."""

    __slots__ = (
        "departure",
        "ended",
        "epoch",
        "head_taken",
        "home",
        "needs",
        "old_epoch",
        "patience_s",
        "quiet",
        "sent_at",
        "sent_to",
        "spoke_at",
        "state_due",
        "switched",
        "told",
    )

    def __init__(self, departure: Departure, old_epoch: Epoch, epoch: Epoch) -> None:
        self.departure = departure
        self.old_epoch = old_epoch
        self.epoch = epoch
        self.home: bytes = epoch.store_id
        self.head_taken = False
        # The version of the home's wishes that holds the session's subscriptions.
        self.needs: tuple[int, int] = (0, 0)
        # The last place that was sent, when that was, and how long its confirmation may take.
        self.sent_to: int = 0
        self.sent_at: float = -math.inf
        self.patience_s: float = RETRY_S
        self.spoke_at: float = -math.inf
        # Member -> the number from which on it sends to the new home, and the stub's last place by then.
        self.switched: dict[bytes, tuple[int, int]] = {}
        # What the new home was told of that.
        self.told: dict[bytes, int] = {}
        self.state_due = False
        # Whether it was told last that this is all.
        self.ended = False
        # Whether the home has answered the last that it was told.
        self.quiet = False

    def begin_again(self) -> None:
        """Everything that isn't confirmed is to be sent, from the head on."""
        self.head_taken = False
        self.sent_to = self.departure.confirmed
        self.needs = (0, 0)
        self.switched.clear()
        self.told.clear()
        self.spoke_at = -math.inf
        self.quiet = False


@final
class Departures:
    """The sessions that leave this node."""

    def __init__(self, owner: QueueOwner, site: Site) -> None:
        self.leavings: dict[str, Leaving] = {}
        self.moved: int = 0
        self.discarded: int = 0
        self.notices: list[str] = []
        # Nothing is read, and so nothing given but heads.
        self.held = False
        self._owner = owner
        self._site = site
        # By home: those that are under way, and those that wait for that, in order.
        self._active: dict[bytes, dict[str, Leaving]] = {}
        self._waiting: dict[bytes, dict[str, Leaving]] = {}
        self._items: dict[bytes, list[bytes]] = {}
        # Leavings about which something has to be said, or may have.
        self._due: dict[str, Leaving] = {}
        self._load_due = False
        # Client id -> since when a session that is still arriving is asked for.
        self._patience: dict[str, float] = {}
        self._switch_at: float = math.inf
        self._retry_at: float = math.inf

    def restore(self, client_id: str, departure: Departure) -> None:
        """Go on with a stub that was found in the store; whose it is, the registry says."""
        session = departure.session
        self.leavings[client_id] = Leaving(departure, session.epoch, session.epoch)

    # What happens.

    def take(self, node: bytes, take: Take, old_epoch: Epoch, now: float) -> None:
        """A node asks for a client's session to be its home under a later epoch than `old_epoch`, the one here."""
        leaving = self.leavings.get(take.client_id)
        # Somebody connected once more where the session is on its way to: that is the same move.
        is_same = (
            leaving is not None
            and leaving.home == node
            and not take.clean_start
            and self._owner.session(take.client_id) is None
        )
        if leaving is not None and (is_same or take.epoch <= leaving.epoch):
            if is_same or leaving.epoch == take.epoch:
                # It asks again: the head may have been lost.
                leaving.spoke_at = -math.inf
                self._due[take.client_id] = leaving
            return
        if leaving is not None and self._owner.session(take.client_id) is not None:
            if not self._make_way(leaving, now):
                return
            leaving = None
        held = leaving.departure.session if leaving is not None else self._owner.session(take.client_id)
        if held is not None and held.user_name and held.user_name != take.user_name:
            # [MQTT-3.1.3-8] [MQTT311-3.1.3-9] Nobody reads, ends or takes over what belongs to another user.
            self._put(node, pack_no(REFUSED, take.client_id, take.epoch))
            return
        if held is not None and self._is_arriving(held, take, now):
            return
        elsewhere = leaving is not None and leaving.home not in (node, self._site.store_id())
        if leaving is not None and elsewhere and self._site.is_running(leaving.home):
            # Whoever has taken the head is the home now; until that is known, it is asked for again.
            if leaving.head_taken:
                self._put(node, pack_moved(take.client_id, take.epoch, leaving.epoch))
            return
        if elsewhere:
            self.notices.append(f"session of {take.client_id!r} goes elsewhere while its new home is away")
        if take.clean_start:
            if leaving is not None:
                self._end(leaving, now)
            self._owner.discard(take.client_id, now)
            self._put(node, pack_no(NOTHING, take.client_id, take.epoch))
            return
        if leaving is None:
            self.leave(take.client_id, old_epoch, take.epoch, True, now)
            if take.client_id not in self.leavings:
                self._put(node, pack_no(NOTHING, take.client_id, take.epoch))
            return
        self._retarget(leaving, take.epoch, True)

    def _is_arriving(self, session: Session, take: Take, now: float) -> bool:
        """Say whether a session has to come here as a whole before it goes on; it is asked for again.

        What has not come after PATIENCE_S comes from its old home by itself.
        """
        if session.arrival is None or not session.arrival.has_present_donor():
            self._patience.pop(take.client_id, None)
            return False
        since = self._patience.setdefault(take.client_id, now)
        if now - since < PATIENCE_S:
            return True
        del self._patience[take.client_id]
        return False

    def leave(self, client_id: str, old_epoch: Epoch, epoch: Epoch, urgent: bool, now: float) -> bool:
        """Freeze a client's session, which is to have another home, and offer it there; false: it can't leave yet."""
        before = self.leavings.get(client_id)
        if before is not None and not self._make_way(before, now):
            return False
        departure = self._owner.depart(client_id, now)
        if departure is None:
            return True
        leaving = Leaving(departure, old_epoch, epoch)
        self.leavings[client_id] = leaving
        self._enter(leaving, urgent)
        return True

    def bequeath(self, departure: Departure, old_epoch: Epoch, epoch: Epoch, known: bool) -> None:
        """Something was put into a stub that is for a session of this epoch; `known`: it was there before."""
        client_id = departure.session.client_id
        if known:
            self._due[client_id] = self.leavings[client_id]
            return
        leaving = Leaving(departure, old_epoch, epoch)
        leaving.sent_to = departure.confirmed
        self.leavings[client_id] = leaving
        self._enter(leaving, False)

    def has_stub(self, client_id: str) -> bool:
        """Say whether a session of the client id leaves this node."""
        return client_id in self.leavings

    def is_untaken(self, client_id: str) -> bool:
        """Say whether nobody is known to be the new home of a session that leaves."""
        leaving = self.leavings.get(client_id)
        return leaving is not None and leaving.home == self._site.store_id()

    def come_back(self, client_id: str, epoch: Epoch) -> bool:
        """The client is back at this node, and nobody else is known to have its session; false if there is no stub."""
        leaving = self.leavings.get(client_id)
        if leaving is None:
            return False
        self._leave_queues(leaving)
        del self.leavings[client_id]
        self._owner.transfers.come_back(leaving.departure, epoch)
        return True

    def retarget(self, client_id: str, epoch: Epoch) -> None:
        """The registry knows a home of this epoch for a session that leaves."""
        leaving = self.leavings.get(client_id)
        if leaving is not None and epoch > leaving.epoch:
            self._retarget(leaving, epoch, False)

    def follow(self, session: Session, now: float) -> None:
        """A session began at this node: if its stub stands here as well, that goes to it, or ends if it began anew."""
        leaving = self.leavings.get(session.client_id)
        if leaving is None or leaving.epoch >= session.epoch:
            return
        if session.arrival is None:
            self._end(leaving, now)
        else:
            self._retarget(leaving, session.epoch, False)

    def _make_way(self, leaving: Leaving, now: float) -> bool:
        """End a stub whose session has come back and leaves again, if it has given all it had; else it is asked again.

        What its members still have for it comes to the stub that the session becomes.
        """
        if not self._owner.transfers.is_drained(leaving.departure):
            return False
        self._end(leaving, now)
        return True

    def _retarget(self, leaving: Leaving, epoch: Epoch, urgent: bool) -> None:
        self._leave_queues(leaving)
        leaving.epoch = epoch
        leaving.home = epoch.store_id
        self._owner.transfers.rewind(leaving.departure)
        leaving.begin_again()
        self._enter(leaving, urgent)

    def acknowledged(self, node: bytes, ack: MoveAck, now: float) -> None:
        """The new home says how far it is."""
        leaving = self.leavings.get(ack.client_id)
        if leaving is None or leaving.home != node or leaving.epoch != ack.epoch:
            return
        self._due[ack.client_id] = leaving
        self._load_due = True
        if ack.flags & (OVER | DISCARDED):
            if ack.flags & DISCARDED:
                self.discarded += 1
            else:
                self.moved += 1
            self._end(leaving, now)
            return
        departure = leaving.departure
        if ack.flags & HEAD_TAKEN:
            version = (ack.generation, ack.version)
            if not leaving.head_taken or leaving.needs[0] != ack.generation:
                # A home that restarted tells its wishes anew, and may have lost what members confirmed.
                leaving.head_taken = True
                self._owner.transfers.head_taken(departure)
                leaving.needs = version
                leaving.switched.clear()
                leaving.told.clear()
                self._switch_at = 0.0
        if ack.watermark > departure.confirmed:
            self._owner.transfers.confirm(departure, ack.watermark)
            leaving.sent_to = max(leaving.sent_to, ack.watermark)
            leaving.spoke_at = now
        # What was sent and is not confirmed may be lost, though something else was answered: that this is all is
        # answered by the end, or by what is missing to it.
        leaving.quiet = not departure.sent and (not leaving.ended or bool(ack.missing))
        for origin in ack.missing:
            leaving.switched.pop(origin, None)
            leaving.told.pop(origin, None)
            self._switch_at = 0.0

    def switched(self, mark: Switch) -> None:
        """A member's stream has come to where it sends to a home directly."""
        version = (mark.generation, mark.version)
        for client_id, leaving in self.leavings.items():
            if leaving.home != mark.home or mark.member in leaving.switched:
                continue
            if leaving.head_taken and version >= leaving.needs:
                self._due[client_id] = leaving
                leaving.switched[mark.member] = (mark.number, leaving.departure.session.next_seq - 1)

    def changed(self) -> None:
        """The members, who of them runs, or what is known of their wishes has changed."""
        if self.leavings:
            self._switch_at = 0.0

    def home_is_back(self, home: bytes) -> None:
        """A member runs again: what was said to it may be lost."""
        self._load_due = True
        for client_id, leaving in self.leavings.items():
            if leaving.home == home:
                leaving.quiet = False
                leaving.spoke_at = leaving.sent_at = -math.inf
                self._due[client_id] = leaving

    def wants_load(self) -> bool:
        """Say whether `load` has something to read."""
        return self._load_due and not self.held

    # What is to be done.

    def load(self, now: float) -> None:
        """Read and send deliveries. Everything that was written must be committed."""
        self._load_due = False
        transfers = self._owner.transfers
        for home, active in list(self._active.items()):
            if not self._site.is_running(home):
                continue
            for client_id, leaving in list(active.items()):
                departure = leaving.departure
                if departure.sent:
                    continue
                after = max(leaving.sent_to, departure.confirmed)
                deliveries = transfers.read(departure, CHUNK_BYTES)
                if deliveries:
                    leaving.sent_to = deliveries[-1].seq
                    leaving.spoke_at = leaving.sent_at = now
                    leaving.quiet = False
                    self._retry_at = min(self._retry_at, now + RETRY_S)
                    self._put(home, pack_deliveries(client_id, leaving.epoch, after, deliveries, now))
                elif departure.read_to >= departure.session.next_seq - 1 and leaving.head_taken:
                    # What is still to come concerns what is enqueued here later, and the ends of streams.
                    del active[client_id]
                    leaving.state_due = True
                    self._due[client_id] = leaving
            self._fill(home)

    def tick(self, now: float) -> None:
        """Say what is due, and what was not answered; call it once a turn."""
        if now >= self._switch_at:
            self._ask_to_switch(now)
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._due.update([item for item in self.leavings.items() if not item[1].quiet])
        if not self._due:
            return
        due, self._due = self._due, {}
        for client_id, leaving in due.items():
            if self.leavings.get(client_id) is leaving and self._site.is_running(leaving.home):
                self._advance(leaving, now)
                if not leaving.quiet:
                    self._retry_at = min(self._retry_at, now + RETRY_S)

    def next_deadline(self) -> float:
        """Return when `tick` or `load` has something to do; 0.0 if now."""
        if self._due or self.wants_load():
            return 0.0
        return min(self._switch_at, self._retry_at)

    def flush(self) -> None:
        """Send what was gathered."""
        items, self._items = self._items, {}
        for home, parts in items.items():
            batch: list[bytes] = []
            size = 0
            for part in parts:
                if size and size + len(part) > FRAME_BYTES_MAX - 64:
                    self._site.send(home, frame(FrameType.MOVE, batch))
                    batch = []
                    size = 0
                batch.append(part)
                size += len(part)
            self._site.send(home, frame(FrameType.MOVE, batch))

    def counts(self) -> dict[str, int]:
        """Return how many sessions are leaving and have left."""
        return {"moves_leaving": len(self.leavings), "moves_left": self.moved, "moves_discarded": self.discarded}

    def validate(self) -> None:
        """Check the invariants."""
        assert set(self.leavings) == set(self._owner.transfers.departures)
        for home, active in self._active.items():
            assert 0 < len(active) <= SESSIONS_AT_ONCE
            for client_id, leaving in active.items():
                assert leaving.home == home
                assert self.leavings[client_id] is leaving

    def _advance(self, leaving: Leaving, now: float) -> None:
        departure = leaving.departure
        session = departure.session
        again = not leaving.quiet and now >= leaving.spoke_at + RETRY_S
        if not leaving.head_taken:
            if again:
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
        if departure.read_to < session.next_seq - 1:
            self._activate(leaving)
        passed = self._passed(leaving)
        ended = self._is_ended(leaving, passed)
        if passed != leaving.told or leaving.state_due or (passed and again):
            leaving.told = passed
            leaving.ended = ended
            leaving.quiet = False
            leaving.state_due = False
            leaving.spoke_at = now
            self._put(leaving.home, pack_state(session.client_id, leaving.epoch, list(passed.items()), ended))

    def _offer(self, leaving: Leaving, now: float) -> None:
        leaving.spoke_at = now
        leaving.quiet = False
        head = self._owner.transfers.head(leaving.departure)
        client_id = leaving.departure.session.client_id
        self._put(leaving.home, pack_head(client_id, leaving.epoch, leaving.old_epoch, head, now))

    def _passed(self, leaving: Leaving) -> dict[bytes, int]:
        """Return below which number of each origin everything is at the new home."""
        departure = leaving.departure
        first = departure.sent[0].seq if departure.sent else math.inf
        return {
            origin: number
            for origin, (number, place) in leaving.switched.items()
            if departure.read_to >= place and first > place
        }

    def _is_ended(self, leaving: Leaving, passed: dict[bytes, int]) -> bool:
        if not self._owner.transfers.is_drained(leaving.departure):
            return False
        return self._site.store_id() in passed and all(member in passed for member in self._site.others())

    def _ask_to_switch(self, now: float) -> None:
        """Ask who has not switched yet, for the latest version that is needed of each home; switch ourselves."""
        self._switch_at = math.inf
        site = self._site
        wanted: dict[bytes, dict[bytes, tuple[int, int]]] = {}
        for leaving in self.leavings.values():
            if not leaving.head_taken:
                continue
            if site.store_id() not in leaving.switched and site.known_version(leaving.home) >= leaving.needs:
                # What is published here from now on goes there as well.
                place = leaving.departure.session.next_seq - 1
                leaving.switched[site.store_id()] = (self._owner.next_number(), place)
                self._due[leaving.departure.session.client_id] = leaving
            elif site.store_id() not in leaving.switched:
                self._switch_at = now + RETRY_S
            for member in site.others():
                if member not in leaving.switched and site.is_running(member):
                    homes = wanted.setdefault(member, {})
                    homes[leaving.home] = max(homes.get(leaving.home, (0, 0)), leaving.needs)
        for member, homes in wanted.items():
            self._switch_at = now + RETRY_S
            parts = [pack_switch(home, version[0], version[1]) for home, version in homes.items()]
            site.tell(member, frame(FrameType.SWITCH, [pack_u32(len(parts)), *parts]))

    def _enter(self, leaving: Leaving, urgent: bool) -> None:
        self._load_due = True
        client_id = leaving.departure.session.client_id
        self._due[client_id] = leaving
        waiting = self._waiting.setdefault(leaving.home, {})
        if urgent:
            self._waiting[leaving.home] = {client_id: leaving, **waiting}
        else:
            waiting[client_id] = leaving
        self._fill(leaving.home)

    def _activate(self, leaving: Leaving) -> None:
        """There is something to be read of it."""
        self._load_due = True
        client_id = leaving.departure.session.client_id
        if client_id not in self._active.get(leaving.home, {}) and client_id not in self._waiting.get(leaving.home, {}):
            self._enter(leaving, False)

    def _fill(self, home: bytes) -> None:
        active = self._active.setdefault(home, {})
        waiting = self._waiting.get(home, {})
        while waiting and len(active) < SESSIONS_AT_ONCE:
            client_id = next(iter(waiting))
            active[client_id] = waiting.pop(client_id)
        if not waiting:
            self._waiting.pop(home, None)
        if not active:
            del self._active[home]

    def _leave_queues(self, leaving: Leaving) -> None:
        client_id = leaving.departure.session.client_id
        self._active.get(leaving.home, {}).pop(client_id, None)
        self._waiting.get(leaving.home, {}).pop(client_id, None)
        self._fill(leaving.home)

    def _end(self, leaving: Leaving, now: float) -> None:
        self._leave_queues(leaving)
        del self.leavings[leaving.departure.session.client_id]
        self._owner.transfers.end_departure(leaving.departure, now)

    def _put(self, home: bytes, item: bytes) -> None:
        self._items.setdefault(home, []).append(item)
