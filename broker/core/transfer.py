"""Transfers: sessions that leave for another node, and sessions that come from one.

It owns the two halves of a move as far as sessions, queues and the store are concerned; how the halves talk to each
other, and who decides on a move, is the cluster's business. Nothing here waits: the caller says what has arrived at the
other side, and asks for more.

Theory of operation
-------------------
At the old home `depart` freezes a session: it has no connection any more, is not in the owner's sessions, and stays as
a stub. Its subscriptions go on matching; what they match is stored behind what is there already. `head` is what has to
be at the new home before the client may go on; `read` returns the deliveries in the order of their places, those in
flight first; `confirm` deletes what the new home has committed. `end_departure` removes the stub. Until then
it is a member of its shared groups, unless its node leaves (see `draining`).

At the new home `begin_arrival` makes the session from the head, and `accept` takes deliveries, whatever comes twice or
came directly left out; but what is in flight at the heir goes on as it is there, in place of what another one gave. The
client is attached when those in flight are there. An `Arrival` says what the session gets directly meanwhile;
`end_donor` ends it with the last of its old homes. One that waits only for homes that were removed rests: it is no
session that arrives any more, until one of them is back (`add_donor`), and ends with the session otherwise.

Both halves survive a restart: a session's record says that it departs, or what its arrival is. `write` writes what
changed of that, once in a turn however much it was.

Invariants: a client id has at most one session and one stub here; a stub has no connection, no memory of its queue, and
an arrival of its own only as long as nobody has asked for it.
"""

from collections import deque
from typing import Final, final

from broker.core.arrival import Arrival, Donor
from broker.core.dispatch import Dispatcher
from broker.core.epoch import Epoch, home_counter
from broker.core.inflight import first_packet_id
from broker.core.left_will import LeftWill
from broker.core.lifetimes import Lifetimes
from broker.core.message import NO_MESSAGE, Delivery
from broker.core.places import NOWHERE, PLACE_BITS, RIVALS_MAX, UNPLACED, first_place
from broker.core.session import Session
from broker.core.session_rows import SessionRows
from broker.core.session_store import RECORD_BYTES, SessionStore
from broker.core.settings import OwnerSettings
from broker.core.subscribing import Subscribing
from broker.core.subscription import QOS_MASK, subscription
from broker.core.wills import Wills
from broker.mqtt.topics import SHARE_PREFIX, matches

# How much of a queue is read at a time by whoever looks at all of it.
SCAN_BYTES: Final = 256 * 1024


@final
class SessionHead:
    """A session without its deliveries. `expires_at` is monotonic seconds, 0.0 for never or not yet.

    `subscriptions` are (filter, options, identifier); `incoming` has the packet ids of QoS 2 PUBLISHes that the client
    has not released. The deliveries up to the place `inflight_seq` have to be there before the client may go on.
    """

    __slots__ = (
        "client_id",
        "cuts",
        "direct",
        "expires_at",
        "expiry_s",
        "incoming",
        "inflight_seq",
        "next_packet_id",
        "subscriptions",
        "taken",
        "touched",
        "user_name",
        "will",
    )

    def __init__(self, client_id: str, user_name: str | None, expiry_s: int) -> None:
        self.client_id = client_id
        self.user_name = user_name
        self.expiry_s = expiry_s
        self.expires_at: float = 0.0
        self.subscriptions: list[tuple[bytes, int, int]] = []
        self.incoming: dict[int, int] = {}
        self.next_packet_id: int = 1
        self.inflight_seq: int = 0
        # How far it had taken from older homes: (store id, last place).
        self.taken: list[tuple[bytes, int]] = []
        # From which number of an origin on it had everything directly: (store id, number).
        self.cuts: list[tuple[bytes, int]] = []
        # The same of it and all homes before it, whoever has that by now: (epoch counter, store id, number).
        self.direct: list[tuple[int, bytes, int]] = []
        # The filters that the client made or ended while an older home was to be heard -> the epoch counter of the home
        # where it did, 0 for the one that tells.
        self.touched: dict[bytes, int] = {}
        self.will: LeftWill | None = None


@final
class Departure:
    """A stub and how far its deliveries have gone: `sent` are those that were read and are not confirmed."""

    __slots__ = ("confirmed", "read_to", "sent", "session", "will")

    def __init__(self, session: Session, will: LeftWill | None) -> None:
        self.session = session
        # That of a client that was not connected, and was not due.
        self.will = will
        self.sent: deque[Delivery] = deque()
        self.read_to: int = 0
        self.confirmed: int = session.left_to


@final
class Transfers:
    """The sessions of this node that are on their way."""

    def __init__(
        self,
        settings: OwnerSettings,
        store: SessionStore,
        subscribing: Subscribing,
        dispatcher: Dispatcher,
        wills: Wills,
        rows: SessionRows,
        lifetimes: Lifetimes,
    ) -> None:
        self.departures: dict[str, Departure] = {}
        # Origin -> from which number on others have given what it had sent here to the sessions that leave.
        self.skips: dict[bytes, int] = {}
        # Stubs of which somebody has switched.
        self._switched: dict[Session, bool] = {}
        self._settings = settings
        self._store = store
        self._subscribing = subscribing
        self._dispatcher = dispatcher
        self._wills = wills
        self._rows = rows
        self._lifetimes = lifetimes

    def restore(self, sessions: list[Session]) -> None:
        """Take over what recovery found, of all sessions."""
        for session in sessions:
            arrival = session.arrival
            if session.departing:
                self._add(session)
            elif arrival is not None and session.client_id in self._lifetimes.sessions:
                self._dispatcher.arriving[session] = arrival
                session.gate = arrival.gate()
            if arrival is not None:
                self._note_places(session, arrival)
            if arrival is not None and session.departing:
                # What a stub has given away it may get back.
                for origin, number in self._store.ids_before(session.number, arrival.first_seq):
                    arrival.note_id(origin, number)

    def write(self) -> None:
        """Write what changed of arrivals and stubs; whoever ends a turn calls it before the batch is taken."""
        if self._switched:
            switched, self._switched = self._switched, {}
            for session in switched:
                departure = self.departures.get(session.client_id)
                if departure is not None and departure.session is session:
                    self._store.put_switched(session)
        if not self._dispatcher.changed_arrivals:
            return
        changed, self._dispatcher.changed_arrivals = self._dispatcher.changed_arrivals, {}
        for session in changed:
            departure = self.departures.get(session.client_id)
            is_there = self._lifetimes.sessions.get(session.client_id) is session
            if session.arrival is not None and (is_there or (departure is not None and departure.session is session)):
                self._store.put_arrival(session)
                if session.arrival.fresh_ids:
                    self._store.put_given_ids(session)

    # The old home.

    def depart(self, session: Session) -> Departure:
        """Freeze a session that is stored and has no connection."""
        assert session.attachment is None
        assert session.persistent
        assert session.client_id not in self.departures
        self._lifetimes.release(session)
        self._recall_ids(session)
        self._dispatcher.loading.pop(session, None)
        session.departing = True
        self._store.put_departing(session)
        return self._add(session)

    def _add(self, session: Session) -> Departure:
        session.queue.keep_in_store()
        # Whatever is still to come goes to the new home, which hears how far it had come here.
        self._dispatcher.arriving.pop(session, None)
        session.gate = 0
        arrival = session.arrival
        if arrival is not None and (arrival.donors or arrival.has_relayed()):
            # Older homes will go on giving, here if it comes back; what they gave may still come directly.
            arrival.is_stub = True
            self._dispatcher.arriving[session] = arrival
        departure = Departure(session, self._wills.suspend(session.client_id, session.epoch))
        self.departures[session.client_id] = departure
        return departure

    def wake(self, session: Session) -> None:
        """Nobody is known to go on with a session that a donor has: what is published is to come to it."""
        self._subscribing.wake(session)

    def hide_stub(self, client_id: str) -> None:
        """The client id gets a session at this node again: what others know of it is about that."""
        departure = self.departures.get(client_id)
        if departure is not None:
            self._rows.moved(departure.session)

    def head(self, departure: Departure) -> SessionHead:
        """Return what the new home has to have first, as it is now."""
        session = departure.session
        head = SessionHead(session.client_id, session.user_name, session.expiry_s)
        head.expires_at = session.expires_at
        head.subscriptions = [
            (topic_filter, wanted.options, wanted.identifier) for topic_filter, wanted in session.subscriptions.items()
        ]
        head.incoming = dict(session.incoming)
        head.next_packet_id = session.inflight.next_id
        head.inflight_seq = max([delivery.seq for delivery in session.inflight.deliveries.values()], default=0)
        head.will = departure.will
        if session.arrival is not None:
            head.touched = dict(session.arrival.touched)
            head.cuts = session.arrival.direct_cuts()
            head.direct = session.arrival.told_direct(session.epoch.counter)
            if departure.confirmed > session.arrival.first_seq:
                # What it had directly and has given to another home, it does not give to this one.
                kept = self._kept(departure)
                head.cuts = [(origin, kept[origin]) for origin, _ in head.cuts if origin in kept]
            head.taken = [(store_id, donor.watermark) for store_id, donor in session.arrival.donors.items()]
        return head

    def head_taken(self, departure: Departure) -> None:
        """The new home has committed the head: the will, if there was one, is its to publish."""
        if departure.will is not None:
            departure.will = None
            self._wills.forget(departure.session.client_id)

    def read(self, departure: Departure, bytes_max: int) -> list[Delivery]:
        """Return the next deliveries, about `bytes_max` of them. Everything that was written must be committed."""
        found: list[Delivery] = []
        session = departure.session
        deliveries: list[Delivery] = []
        if not session.queue.is_empty() or len(session.inflight):
            deliveries = self._store.read(session.number, departure.read_to, bytes_max)
        size = 0
        for delivery in deliveries:
            size += RECORD_BYTES + delivery.size
            departure.read_to = delivery.seq
            is_there = delivery.seq <= departure.confirmed
            if not is_there and self._was_given_by_others(session, delivery):
                if delivery.packet_id and delivery.qos == 2:
                    # The client may hold the id as taken.
                    delivery = self._release(session, delivery)
                else:
                    is_there = True
            if is_there:
                # The new home has had it since before a restart, or from elsewhere.
                self._remove(session, delivery)
            else:
                departure.sent.append(delivery)
                found.append(delivery)
        if size < bytes_max:
            # There are no more. Places that nothing was stored at count as read.
            departure.read_to = session.next_seq - 1
        return found

    def _was_given_by_others(self, session: Session, delivery: Delivery) -> bool:
        """Say whether others have given a delivery which they had kept for this node, as far as is known.

        What came through an old home they had not kept: who published it may not have heard that the session is here.
        Nor had they what a group gave to the session, if another node had chosen that. And what has come since the
        session woke they have not kept for a later home of it, as there was none.

        What its origin had sent to the next home as well, that has had, and has forgotten by now that it has.
        """
        message = delivery.message
        if delivery.shared or (session.awake_from and delivery.seq >= session.awake_from):
            return False
        never = message.number + 1
        switched = session.switched if session.dormant or session.awake_from else None
        if switched is not None and message.number >= switched.get(message.origin, never):
            return True
        if message.number < self.skips.get(message.origin, never):
            return False
        return session.arrival is None or not session.arrival.is_brought(delivery.seq)

    def _release(self, session: Session, delivery: Delivery) -> Delivery:
        """Return what is left of a delivery in flight that was read, without its message: the client has that."""
        held = session.inflight.get(delivery.packet_id)
        assert held is not None
        self._store.release_delivery(session.number, held)
        session.inflight.forget_message(held)
        return held

    def switched(self, departure: Departure, origin: bytes, number: int, home: bytes) -> None:
        """What an origin sends for the session goes to its next home directly from this number on.

        That, or one after it, has it then, whatever becomes of this stub. What is published here, for which `home` is
        given, waits for that home until it has it.
        """
        session = departure.session
        numbers = session.switched
        if numbers is None:
            numbers = session.switched = {}
        if home and home != session.switched_home:
            session.switched_home = home
            numbers.pop(origin, None)
        if origin not in numbers:
            numbers[origin] = number
            self._switched[session] = True

    def forget_switched(self, departure: Departure, origin: bytes) -> None:
        """The next home has not what an origin sent, or what any did (b""), or has lost it."""
        numbers = departure.session.switched
        if numbers:
            for each in [origin] if origin else list(numbers):
                numbers.pop(each, None)
            self._switched[departure.session] = True

    def rewind(self, departure: Departure) -> None:
        """Read again from behind what is confirmed: what was sent may have been lost."""
        departure.sent.clear()
        departure.read_to = 0

    def confirm(self, departure: Departure, watermark: int) -> None:
        """The new home has committed everything up to this place."""
        if watermark <= departure.confirmed:
            return
        departure.confirmed = watermark
        departure.session.left_to = watermark
        self._store.put_departing(departure.session)
        sent = departure.sent
        while sent and sent[0].seq <= watermark:
            self._remove(departure.session, sent.popleft())

    def come_back(self, departure: Departure, epoch: Epoch) -> Session:
        """The client is back before its session has another home: the stub is its session again, of a new epoch."""
        session = departure.session
        del self.departures[session.client_id]
        session.departing = False
        session.switched = None
        self.wake(session)
        session.left_to = 0
        self._store.delete_departing(session)
        if session.arrival is not None and session.arrival.id_rows:
            self._store.delete_given_ids(session)
        session.queue.keep_in_memory(self._settings.queue_lifo, session.next_seq - 1)
        arrival = session.arrival
        direct = [] if arrival is None else arrival.told_direct(session.epoch.counter)
        if arrival is None or not arrival.donors:
            arrival = Arrival(first_place(epoch))
            arrival.direct_from = NOWHERE
        if arrival.is_apart():
            # What the other home may have got of the session was directed here as well.
            arrival.direct_from = first_place(session.epoch) + (1 << PLACE_BITS)
        arrival.is_stub = False
        for counter, origin, number in direct:
            arrival.direct.add(origin, counter, number)
        arrival.come_back(session.epoch, departure.confirmed)
        arrival.kept = self._kept(departure)
        arrival.first_seq = first_place(epoch)
        session.epoch = epoch
        self._subscribing.join_groups(session)
        # The other home may have had the session, and the client may hold ids that it used.
        session.inflight.next_id = first_packet_id(epoch)
        session.next_seq = max(session.next_seq, first_place(epoch) + 1)
        session.arrival = arrival
        self._dispatcher.arriving[session] = arrival
        self._lifetimes.adopt(session)
        self._store.put_session(session)
        self._dispatcher.changed_arrivals[session] = True
        session.gate = arrival.gate()
        self._rows.tell(session)
        if departure.will is not None:
            self._wills.adopt(departure.will, epoch, self._store.clock.now)
        return session

    def _kept(self, departure: Departure) -> dict[bytes, int]:
        """Return from which number on of each origin the stub has what came directly: what is before was given away."""
        session = departure.session
        kept: dict[bytes, int] = {}
        after = departure.confirmed
        while deliveries := self._store.read(session.number, after, SCAN_BYTES):
            for delivery in deliveries:
                message = delivery.message
                cut = session.arrival.cuts.numbers.get(message.origin, 0) if session.arrival is not None else 0
                if message.number and message.number >= cut:
                    kept.setdefault(message.origin, message.number)
            after = deliveries[-1].seq
        return kept

    def is_drained(self, departure: Departure) -> bool:
        """Say whether nothing is left to be moved."""
        return not departure.sent and departure.session.queue.is_empty() and not len(departure.session.inflight)

    def end_departure(self, departure: Departure, now: float) -> None:
        """Remove the stub, and what is left of it."""
        session = departure.session
        self.head_taken(departure)
        del self.departures[session.client_id]
        self._dispatcher.arriving.pop(session, None)
        self._rows.moved(session)
        self._subscribing.end_session(session, now)
        self._subscribing.groups.session_ended(session, now)
        if len(session.queue):
            self._dispatcher.counters.drop("session_ended", len(session.queue))
        self._store.delete_session(session)

    def _remove(self, session: Session, delivery: Delivery) -> None:
        if delivery.packet_id:
            session.inflight.pop(delivery.packet_id)
        else:
            session.queue.remove(delivery.seq, delivery.size)
        if session.arrival is not None:
            session.arrival.give_away(delivery.message.origin, delivery.message.number)
        self._store.give_away(session.number, delivery)

    # The new home.

    def begin_arrival(
        self, head: SessionHead, epoch: Epoch, donor: bytes, row_counter: int, cut: tuple[bytes, int], now: float
    ) -> Session:
        """Make a session of what its old home says of it, or the others know of it if that is not there.

        `row_counter` is that of the epoch of which they know it, 0 for the former; `cut` is this node's own: its store
        id and next number.
        """
        session = Session(
            self._store.take_number(),
            head.client_id,
            head.user_name,
            head.expiry_s,
            self._settings.max_inflight_messages or 65535,
            self._settings.queue_lifo,
        )
        session.persistent = True
        session.expires_at = head.expires_at
        self.hide_stub(head.client_id)
        session.epoch = epoch
        arrival = Arrival(first_place(epoch))
        arrival.set_cut(*cut)
        if donor:
            arrival.donor(donor).heir = row_counter == 0
            arrival.donor(donor).row_counter = row_counter
        session.next_seq = arrival.first_seq + 1
        session.inflight.next_id = first_packet_id(epoch) if row_counter else head.next_packet_id
        session.arrival = arrival
        self._dispatcher.arriving[session] = arrival
        self._lifetimes.adopt(session)
        self._store.put_session(session)
        self._rows.tell(session)
        for topic_filter, options, identifier in head.subscriptions:
            self._subscribing.set(session, topic_filter, subscription(options, identifier), now)
        session.incoming = dict(head.incoming)
        for packet_id in session.incoming:
            self._store.put_incoming(session, packet_id)
        if head.will is not None and head.will.due != 0.0:
            self._wills.adopt(head.will, epoch, now)
        self._update(session, arrival, now)
        return session

    def arriving(self) -> list[Session]:
        """Return the sessions that still get something from other nodes, or may."""
        return [session for session in self._dispatcher.arriving if not session.departing]

    def introduce(
        self,
        session: Session,
        donor_id: bytes,
        epoch: Epoch,
        head: SessionHead,
        cut: tuple[bytes, int],
        now: float,
    ) -> bool:
        """An old home says by which epoch it was that, how far it had come itself, and what it subscribed to.

        `cut` is this node's own: its store id and next number. True if the session wants more by that.
        """
        arrival = session.arrival
        wants_more = False
        if arrival is not None:
            wants_more = self._merge(session, arrival, arrival.donor(donor_id), home_counter(epoch), head, cut, now)
            is_first = not arrival.donor(donor_id).counter
            arrival.introduce(donor_id, home_counter(epoch))
            its_home = (epoch.counter, epoch.store_id)
            arrival.donor(donor_id).direct = its_home == (session.epoch.counter, session.epoch.store_id)
            # A node that was removed has had nothing of what was published since, whatever its counter was.
            counter = epoch.counter
            for store_id, watermark in head.taken:
                if store_id != donor_id:
                    arrival.skip(store_id, watermark, counter)
                    # Of this node it is known whether it has something left: then that has a stub.
                    if is_first and (store_id != cut[0] or session.client_id in self.departures):
                        arrival.inherit(store_id, counter)
            for origin, number in head.cuts:
                arrival.direct.add_giver(donor_id, counter, origin, number)
            for its_counter, origin, number in head.direct:
                arrival.direct.add(origin, its_counter, number)
            self._update(session, arrival, now)
        return wants_more

    def _merge(
        self,
        session: Session,
        arrival: Arrival,
        donor: Donor,
        counter: int,
        head: SessionHead,
        cut: tuple[bytes, int],
        now: float,
    ) -> bool:
        """Take the old home's word for the subscriptions that the client has not made or ended since; true if for any.

        `counter` is that of its epoch. A client that was told here that it had no session knows nothing of those of
        another one. One that may not have heard that is told next that it has a session, and takes that for the one
        that it knows.
        """
        if arrival.is_apart() and not session.unheard:
            return False
        wants_more = False
        came_late = []
        known_there = set()
        touched = {topic_filter: at or counter for topic_filter, at in head.touched.items()}
        for topic_filter, options, identifier in head.subscriptions:
            known_there.add(topic_filter)
            before = session.subscriptions.get(topic_filter)
            wanted = subscription(options, identifier)
            is_known = arrival.is_touched_since(topic_filter, touched.get(topic_filter, 0))
            if is_known or (before is not None and before.is_like(wanted)):
                continue
            self._subscribing.set(session, topic_filter, wanted, now)
            wants_more = True
            # Of what came directly at QoS 0 nothing was kept.
            had_all = before is not None and (before.options & QOS_MASK != 0 or wanted.options & QOS_MASK == 0)
            if not had_all and not topic_filter.startswith(SHARE_PREFIX):
                came_late.append(topic_filter)
        # Who has heard others may have what this old home knew nothing of.
        from_others = {each for cuts in arrival.late for each in cuts.filters}
        # By the row of a later home, which is not heard yet, the client has made it again.
        unheard = [each for each in arrival.donors.values() if each is not donor and not each.counter]
        row_counter = max([each.row_counter for each in unheard], default=0)
        for topic_filter in [each for each in session.subscriptions if each not in known_there]:
            at = touched.get(topic_filter, 0)
            is_ended = at > 0 or (donor.row_counter > 0 and topic_filter not in from_others)
            if 0 < at < row_counter:
                del touched[topic_filter]
            elif is_ended and not arrival.is_touched_since(topic_filter, at):
                self._subscribing.end(session, topic_filter, now)
        for topic_filter, at in touched.items():
            if not arrival.is_touched_since(topic_filter, at):
                arrival.touch(topic_filter, at)
        if came_late:
            arrival.come_late(came_late, *cut)
        return wants_more

    def inherit_will(self, session: Session, head: SessionHead, now: float) -> None:
        """Take over the will that waits at an old home of a session with its own life, if no client is back here."""
        will = head.will
        is_free = session.attachment is None and self._wills.get(session.client_id) is None
        if will is not None and will.due != 0.0 and is_free:
            self._wills.adopt(will, session.epoch, now)

    def add_donor(self, session: Session, donor: bytes, counter: int, now: float) -> bool:
        """Say that another old home has something left of a session with its own life here; false if that is known.

        `counter` is of the epoch by which it was the home. One that has been the home again since it gave what it had
        is another one: it may have got that back, and gives it once more in the same places.
        """
        if session.arrival is None:
            session.arrival = Arrival(first_place(session.epoch))
            session.arrival.direct_from = NOWHERE
            if session.unheard:
                for topic_filter in session.subscriptions:
                    session.arrival.touch(topic_filter, home_counter(session.epoch))
        if session not in self._dispatcher.arriving:
            # It is new, or has rested.
            self._note_places(session, session.arrival)
            self._recall_ids(session)
            self._dispatcher.arriving[session] = session.arrival
        known = session.arrival.donors.get(donor)
        if known is not None:
            if known.counter in (0, counter):
                return known.inherited
            session.arrival.end(donor)
        session.arrival.donor(donor)
        self._update(session, session.arrival, now)
        return True

    def come_again(self, session: Session, former: bytes, donor: bytes, now: float) -> None:
        """An old home whose store had this id when it was the home has another one by now."""
        if former != donor and session.arrival is not None and session.arrival.come_again(former, donor):
            self._update(session, session.arrival, now)

    def _note_places(self, session: Session, arrival: Arrival) -> None:
        """Have what old homes gave before, and the client has not got yet, keep its places for itself."""
        arrival.places.note(self._store.last_place_before(session.number, arrival.first_seq))

    def _recall_ids(self, session: Session) -> None:
        """Have an arrival that has rested know again by their ids what old homes gave."""
        arrival = session.arrival
        if arrival is not None and arrival.id_rows and session not in self._dispatcher.arriving:
            for origin, number in self._store.given_ids(session.number):
                arrival.note_id(origin, number)

    def accept(
        self,
        session: Session,
        donor_id: bytes,
        after: int,
        deliveries: list[Delivery],
        now: float,
        others: bool = False,
    ) -> int:
        """Take deliveries from an old home that follow the place `after` there, and return the watermark.

        `others` says that an old home of which nothing was heard yet may give some of them as well.
        """
        arrival = session.arrival
        if arrival is None:
            return 0
        donor = arrival.donor(donor_id)
        arrival.begin_part(donor_id, donor, after)
        queue = session.queue
        queue.rewind()
        places, here = self._place(session, arrival, donor, deliveries)
        held = {each.seq: each for each in session.inflight.deliveries.values()} if here else {}
        for place, delivery in zip(places, deliveries, strict=True):
            if delivery.seq <= donor.watermark:
                continue
            donor.watermark = delivery.seq
            message = delivery.message
            known = arrival.was_given(donor_id, donor, delivery.seq)
            cuts = arrival.cuts_of(message.topic, session.subscriptions)
            if donor.direct:
                known = known or not arrival.takes(cuts, message.origin, message.number)
            elif not delivery.shared:
                # What a group gave to the session comes on no other way, whatever its number.
                known = (
                    known
                    or arrival.gives_later(donor_id, cuts, message.origin, message.number, delivery.seq)
                    or (
                        arrival.came_later(donor, cuts, message.origin, message.number)
                        and self._had_wish(session, arrival, message.topic)
                    )
                    or arrival.has_had(cuts, message.origin, message.number, delivery.seq)
                    or arrival.was_had(message.origin, message.number, delivery.seq)
                    or arrival.comes_again(message.origin, message.number, others)
                )
                cuts.note_relayed(message.origin, message.number)
                arrival.note_given(donor_id, delivery, delivery.seq)
            is_here = delivery.seq in here
            delivery.seq = place
            if is_here:
                if not donor.heir or not delivery.packet_id:
                    continue
                self._make_way(session, place, held.get(place))
            if delivery.packet_id and self._keeps_id(session, donor, delivery):
                self._take_in_flight(session, donor, delivery, known)
                continue
            if delivery.released or message is NO_MESSAGE:
                continue
            delivery.packet_id = 0
            if known:
                # It came directly as well.
                continue
            if message.expires_at and message.expires_at <= now:
                self._dispatcher.counters.drop("expired")
                continue
            if not donor.direct and not delivery.shared:
                arrival.await_older(cuts, message.origin, message.number, place)
            self._store.put_moved(session.number, delivery)
            queue.insert(delivery.seq, delivery.size)
            self._dispatcher.counters.queue_message_in += 1
        self._update(session, arrival, now)
        attachment = session.attachment
        if attachment is not None:
            self._dispatcher.drain(attachment, now)
            if not queue.is_empty():
                self._dispatcher.loading[session] = True
        return donor.watermark

    def _had_wish(self, session: Session, arrival: Arrival, topic: bytes) -> bool:
        """Say whether what an old home gives of a topic is what later ones had subscribed to, as far as is known.

        Of a session with a life of its own, which does not take over what that one had subscribed to.
        """
        return not arrival.is_apart() or any(
            wanted.options & QOS_MASK and not topic_filter.startswith(SHARE_PREFIX) and matches(topic_filter, topic)
            for topic_filter, wanted in session.subscriptions.items()
        )

    def _place(
        self, session: Session, arrival: Arrival, donor: Donor, deliveries: list[Delivery]
    ) -> tuple[list[int], set[int]]:
        """Return the places here of what an old home gives, and the places there of what is here already."""
        here: set[int] = set()
        if donor.direct:
            return [session.take_seq() for _ in deliveries], here
        places = [arrival.place(donor, delivery.seq) for delivery in deliveries]
        if not deliveries or (donor.heir and not arrival.others_gave()):
            return places, here
        for _ in range(RIVALS_MAX):
            occupied = self._store.places(session.number, min(places), max(places))
            others = set()
            for place, delivery in zip(places, deliveries, strict=True):
                if delivery.seq in here or place not in occupied:
                    continue
                key = occupied[place]
                is_same = delivery.released or key in (b"", delivery.message.key())
                if is_same or not arrival.is_own(donor, delivery.seq):
                    # A home that lost what it had confirmed, by a loss of power, brings what this one had given to it.
                    here.add(delivery.seq)
                else:
                    others.add(delivery.seq)
            if not others:
                return places, here
            # These places are of another home of its epoch counter, of which nothing else is remembered.
            donor.rival = UNPLACED
            places = [arrival.place(donor, delivery.seq) for delivery in deliveries]
        return places, here | others

    def _take_in_flight(self, session: Session, donor: Donor, delivery: Delivery, known: bool) -> None:
        if known and not donor.heir:
            if delivery.qos == 1:
                return
            # The client has the message from elsewhere; what is left is the packet id, which it may hold as taken.
            delivery.released = True
            delivery.message = NO_MESSAGE
            delivery.size = 0
        if donor.heir and session.attachment is None:
            session.inflight.restore(delivery)
        else:
            # The old home may have had it from an older one, after it gave its head.
            session.inflight.restore_late(delivery)
        self._store.put_moved(session.number, delivery)

    def _make_way(self, session: Session, place: int, held: Delivery | None) -> None:
        """Remove what another old home gave of a delivery that is in flight at the heir: it goes on as it is there.

        The client may have it, under the packet id that it has there. `held` is that delivery if it is in flight here.
        """
        if held is not None:
            session.inflight.pop(held.packet_id)
            self._store.delete_delivery(session.number, held)
            return
        copy = self._store.at(session.number, place)
        if not copy.packet_id:
            # Else the client has acknowledged it in this turn.
            session.queue.take_out(copy.size)
            self._store.delete_delivery(session.number, copy)

    def _keeps_id(self, session: Session, donor: Donor, delivery: Delivery) -> bool:
        """Say whether a delivery in flight goes on under its packet id: the client may have it, under that."""
        return donor.heir or session.inflight.get(delivery.packet_id) is None

    def set_cut(self, session: Session, origin: bytes, number: int, now: float) -> None:
        """An origin has routed its messages to this session from this number on."""
        arrival = session.arrival
        if arrival is not None and arrival.set_cut(origin, number):
            self._dispatcher.changed_arrivals[session] = True
            self._update(session, arrival, now)

    def pass_origin(self, session: Session, donor: bytes, origin: bytes, number: int, now: float) -> None:
        """An old home has passed on all that it gets of an origin below a number."""
        arrival = session.arrival
        if arrival is not None and number > arrival.donor(donor).passed.get(origin, -1):
            arrival.donor(donor).passed[origin] = number
            self._dispatcher.changed_arrivals[session] = True
            self._update(session, arrival, now)

    def set_present(self, session: Session, donor: bytes, present: bool, now: float) -> None:
        """An old home's node runs, or does not."""
        arrival = session.arrival
        if arrival is not None and donor in arrival.donors:
            arrival.donors[donor].present = present
            self._update(session, arrival, now)

    def hold_new_only(self, session: Session, now: float) -> None:
        """Old homes that can't pass on everything, or were not heard of at all, have been waited for long enough."""
        arrival = session.arrival
        if arrival is not None:
            for donor in arrival.hold_new_only():
                arrival.end(donor)
            self._update(session, arrival, now)

    def end_donor(self, session: Session, donor: bytes, now: float) -> None:
        """Nothing more comes from an old home."""
        arrival = session.arrival
        if arrival is None:
            return
        arrival.end(donor)
        self._update(session, arrival, now)

    def end_arrival(self, session: Session, now: float) -> None:
        """No node has anything left of the session: what comes directly is for it from now on.

        Old homes that have not said their last word are no members any more, and may come back.
        """
        arrival = session.arrival
        if arrival is None:
            return
        self._dispatcher.arriving.pop(session, None)
        if arrival.donors:
            arrival.rest(session.epoch.counter)
            self._dispatcher.changed_arrivals[session] = True
        else:
            session.arrival = None
            self._store.delete_arrival(session)
            if arrival.id_rows:
                self._store.delete_given_ids(session)
        self._open(session, 0, now)

    def _update(self, session: Session, arrival: Arrival, now: float) -> None:
        self._dispatcher.changed_arrivals[session] = True
        self._open(session, arrival.gate(), now)

    def _open(self, session: Session, gate: int, now: float) -> None:
        """Close the session's gate at a place, or open it (0): what waited behind it goes out."""
        before, session.gate = session.gate, gate
        if before and (gate == 0 or gate > before) and session.attachment is not None:
            self._dispatcher.drain(session.attachment, now)

    def validate(self) -> None:
        """Check the invariants."""
        for client_id, departure in self.departures.items():
            session = departure.session
            assert session.client_id == client_id
            assert session.departing
            assert session.attachment is None
            assert not session.queue.in_memory()
        for session, arrival in self._dispatcher.arriving.items():
            assert session.arrival is arrival
            assert arrival.is_stub == session.departing
            if not session.departing:
                assert session.gate == arrival.gate()
                assert self._lifetimes.sessions[session.client_id] is session
