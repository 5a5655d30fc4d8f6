"""The registrar: from a client's CONNECT to its session at this node, wherever that was before.

Owns the CONNECTs that wait, and the order of what they wait for: the client id's turn, then the session. It decides
which node has the session and what becomes of it; how a turn is had is `registration`'s, how a session moves
`arrivals`' business.

Theory of operation
-------------------
    CONNECT --> turn --> no session anywhere, or this node's        --> attached
                         a session at a node that runs: asked for   --> attached when its head and what was in flight
                                                                        are here, or when that node has none any more
                         a session at a node that is away:          --> made of what the registry knows, and attached;
                                                                        what it had queued comes when that node is back
    Clean Start asks that node to forget the session, and does not wait for one that is away: what that has is over by
    an ENDED row.

The node that is asked may be giving the session to another one already, which is away and whose epoch nobody else has
heard of. It names that, and is asked again under a later epoch: a clock that is ahead decides nothing. Nor does it if
it is this node that gives the session to that one.

A session is also had for a client that has not connected (`adopt`): its old home wants to be rid of it, or is gone for
good. That goes the same way, but nothing is attached in the end. Nor does anybody wait for it: so it does not begin
without its home while another member is not heard to which it may have gone, unless an operator wants that.

The turn is given back when the client is attached, with the session's epoch. A CONNECT whose client goes meanwhile has
its session moved all the same, unless that would have to be made or ended. One that waits for CONNECT_TIMEOUT_S is
refused; another CONNECT of the same client id ends it as it would end a connection [MQTT-3.1.4-3]. So are all that wait
when the node is not ready any more and serves no others (see `broker.core.netsplit_gate`): the home that one waits for
may be among those that are missing, and nothing is to begin without it then. Who adopts a session goes on.

A node alone knows everything by itself: there nothing waits.

Invariants: a client id has at most one CONNECT that waits here; each has a turn, or a request for one.
"""

import math
from collections.abc import Callable
from typing import Final, final

from broker.core.epoch import NO_EPOCH, Epoch, counter_above
from broker.core.events import Attach
from broker.core.owner import QueueOwner
from broker.core.transfer import SessionHead
from broker.mqtt.reasons import Reason
from cluster.arrivals import Arrivals
from cluster.claims import Claims
from cluster.departures import Departures
from cluster.move_frames import MOVED, REFUSED, Take
from cluster.registration import Granted, Registration
from cluster.registry import Registry
from cluster.revival import Revival
from cluster.site import Site

CONNECT_TIMEOUT_S: Final = 5.0
# What stands for a CONNECT where there is none is of a listener that can't be.
_NO_LISTENER: Final = 0x7FFFFFFF


@final
class Waiting:
    """A CONNECT that waits; `epoch` is the session's new one, None until it has the turn.

    `revival`: when the session begins without its home if that is away.
    """

    __slots__ = ("deadline", "epoch", "event", "is_gone", "old_home", "revival")

    def __init__(self, event: Attach, deadline: float) -> None:
        self.event = event
        self.deadline = deadline
        self.epoch: Epoch | None = None
        self.old_home: bytes = b""
        # Its client has gone; the session comes all the same.
        self.is_gone = False
        self.revival = Revival.ALWAYS

    def is_adoption(self) -> bool:
        """Say whether there is no CONNECT."""
        return self.event.connection >> 32 == _NO_LISTENER


@final
class Registrar:
    """The CONNECTs of one node."""

    def __init__(
        self,
        owner: QueueOwner,
        site: Site,
        registration: Registration,
        registry: Registry,
        arrivals: Arrivals,
        departures: Departures,
        claims: Claims,
        remembered: Callable[[str, bytes], SessionHead | None],
        end_older: Callable[[str, Epoch, bytes, bool], None],
        stamp: Callable[[], int],
    ) -> None:
        """`remembered` makes a head of the rows that a node that is away has of a client id.

        `end_older` says that what nodes have of a client id is over before an epoch; the node that is named was told,
        and one that is away may have something of which nobody knows.
        `stamp` is the hybrid clock.
        """
        self._owner = owner
        self._site = site
        self._registration = registration
        self._registry = registry
        self._arrivals = arrivals
        self._departures = departures
        self._claims = claims
        self._remembered = remembered
        self._end_older = end_older
        self._stamp = stamp
        self._waiting: dict[int, Waiting] = {}
        self._by_client: dict[str, Waiting] = {}
        self._deadline: float = math.inf
        self._notices: list[str] = []
        self._adopted = 0
        # Whether clients may connect; not at a node that has nothing left and is about to be no member.
        self._is_open = True

    def adopt(self, client_id: str, user_name: str | None, home: bytes, revival: Revival, now: float) -> None:
        """Have the session of a client come here from its home, unless it has gone from there meanwhile.

        If that is away it begins here without what its home has, as far as `revival` has it; else nothing comes of it.
        """
        if client_id in self._by_client:
            return
        self._adopted += 1
        number = (_NO_LISTENER << 32) + (self._adopted & 0xFFFFFFFF)
        event = Attach(number, client_id, clean_start=False, user_name=user_name)
        waiting = Waiting(event, now + CONNECT_TIMEOUT_S)
        waiting.old_home = home
        waiting.revival = revival
        self._take(waiting, now)

    def set_open(self, is_open: bool, now: float) -> None:
        """Say whether clients may connect; else those that wait for that are refused as well."""
        if self._is_open and not is_open:
            for waiting in list(self._waiting.values()):
                self._refuse(waiting, Reason.SERVER_UNAVAILABLE, now)
        self._is_open = is_open

    def refuse_clients(self, text: str, now: float) -> None:
        """Refuse the CONNECTs that wait, and say why."""
        for waiting in [each for each in self._waiting.values() if not each.is_adoption()]:
            self._refuse(waiting, Reason.SERVER_UNAVAILABLE, now, text)

    def attach(self, event: Attach, now: float) -> None:
        """Take a CONNECT."""
        if not self._is_open:
            self._owner.refuse(event, Reason.SERVER_UNAVAILABLE)
            return
        before = self._by_client.get(event.client_id)
        if before is not None:
            self._refuse(before, Reason.SESSION_TAKEN_OVER, now)
        self._take(Waiting(event, now + CONNECT_TIMEOUT_S), now)

    def _take(self, waiting: Waiting, now: float) -> None:
        event = waiting.event
        self._waiting[event.connection] = waiting
        self._by_client[event.client_id] = waiting
        self._deadline = min(self._deadline, waiting.deadline)
        self._registration.request(event.client_id, event.connection, now)
        self._go_on(now)

    def detach(self, connection: int, now: float) -> None:
        """A connection that is not attached ended."""
        waiting = self._waiting.get(connection)
        if waiting is None:
            return
        if waiting.event.clean_start:
            self._forget(waiting, now)
        else:
            waiting.is_gone = True

    def lose_listener(self, listener: int, now: float) -> None:
        """All connections of a listener ended."""
        for waiting in [each for each in self._waiting.values() if each.event.connection >> 32 == listener]:
            self._forget(waiting, now)

    def running(self, node: bytes, runs: bool, now: float) -> None:
        """A member runs, or does not any more: who waits for it waits no longer."""
        if runs:
            return
        for waiting in [each for each in self._waiting.values() if each.epoch is not None and each.old_home == node]:
            self._arrivals.forget(waiting.event.client_id)
            latest = self._registry.highest_epoch(waiting.event.client_id)
            self._resolve(waiting, latest, now)

    def tick(self, now: float) -> None:
        """Go on where something has come, and refuse what has waited for too long."""
        self._go_on(now)
        if now < self._deadline:
            return
        self._deadline = math.inf
        for waiting in list(self._waiting.values()):
            if waiting.deadline <= now:
                self._refuse(waiting, Reason.SERVER_UNAVAILABLE, now)
            else:
                self._deadline = min(self._deadline, waiting.deadline)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        return self._deadline if self._waiting else math.inf

    def take_notices(self) -> list[str]:
        """Return what an operator should read in the log, since the last call."""
        notices, self._notices = [*self._arrivals.notices, *self._departures.notices, *self._notices], []
        self._arrivals.notices = []
        self._departures.notices = []
        return notices

    def validate(self) -> None:
        """Check the invariants."""
        assert len(self._waiting) == len(self._by_client)
        for connection, waiting in self._waiting.items():
            assert waiting.event.connection == connection
            assert self._by_client[waiting.event.client_id] is waiting

    def _go_on(self, now: float) -> None:
        for result in self._registration.take_results():
            if result.token < 0:
                # Connections have other numbers.
                self._claims.turn_decided(result, now)
                continue
            waiting = self._waiting.get(result.token)
            if waiting is None:
                continue
            if isinstance(result, Granted):
                latest = max(result.epoch, self._registry.highest_epoch(result.client_id))
                # A stub here may go to a home that is away, and of whose epoch nobody else has heard.
                highest = max(latest, self._departures.next_epoch(result.client_id))
                counter = self._registry.next_counter(result.client_id, highest)
                waiting.epoch = Epoch(counter, self._stamp(), self._site.store_id())
                self._resolve(waiting, latest, now)
            else:
                self._refuse(waiting, Reason.SERVER_UNAVAILABLE, now)
        for client_id, kind, epoch in self._arrivals.take_ready():
            ready = self._by_client.get(client_id)
            if ready is None or ready.epoch is None:
                continue
            if kind == REFUSED:
                self._refuse(ready, Reason.CLIENT_IDENTIFIER_NOT_VALID, now)
            elif kind == MOVED:
                asked = ready.epoch
                ready.epoch = Epoch(counter_above(max(epoch, asked).counter), self._stamp(), self._site.store_id())
                if epoch > asked and not self._site.is_running(epoch.store_id):
                    # The session has not come there, or is cut off there: who had it gives it under a later epoch.
                    self._ask(ready, ready.old_home, now)
                else:
                    self._resolve(ready, epoch, now)
            else:
                self._finish(ready, ready.old_home, now)

    def _resolve(self, waiting: Waiting, latest: Epoch, now: float) -> None:
        """Decide where the session is, by the latest epoch that is known of it, and have it or ask for it."""
        event = waiting.event
        assert waiting.epoch is not None
        is_here = latest.store_id in (NO_EPOCH.store_id, self._site.store_id())
        if waiting.is_adoption() and latest.store_id != waiting.old_home:
            # Its client was faster, and is not to be disturbed.
            self._forget(waiting, now)
        elif waiting.is_gone and (is_here or not self._site.is_running(latest.store_id)):
            self._forget(waiting, now)
        elif is_here:
            gone = self._owner.session(event.client_id) is None and not event.clean_start
            if gone and self._departures.come_back(event.client_id, waiting.epoch):
                self._arrivals.watch(event.client_id)
                self._notices.append(f"session of {event.client_id!r} is back before it was all elsewhere")
            self._finish(waiting, b"", now)
        elif self._site.is_running(latest.store_id):
            self._ask(waiting, latest.store_id, now)
        else:
            self._begin_without(waiting, latest, now)

    def _ask(self, waiting: Waiting, home: bytes, now: float) -> None:
        """Ask the session's home for it."""
        assert waiting.epoch is not None
        waiting.old_home = home
        event = waiting.event
        take = Take(event.client_id, waiting.epoch, event.clean_start, event.user_name, waiting.is_adoption())
        self._arrivals.ask(take, home, now)

    def _begin_without(self, waiting: Waiting, latest: Epoch, now: float) -> None:
        """Begin a session without its home, which is away."""
        event = waiting.event
        assert waiting.epoch is not None
        head = self._remembered(event.client_id, latest.store_id)
        will, is_claimed = None, False
        if waiting.is_adoption():
            # Its client is not back, so that its will goes on waiting.
            will, is_claimed = self._claims.bequest(event.client_id, latest.store_id, now)
        if is_claimed or not self._revives(waiting):
            self._forget(waiting, now)
            return
        is_strange = head is not None and head.user_name not in (None, "", event.user_name)
        if is_strange and not waiting.is_adoption():
            # [MQTT-3.1.3-8] [MQTT311-3.1.3-9] Nobody reads, ends or takes over what belongs to another user. Who adopts
            # it keeps it for that user.
            self._refuse(waiting, Reason.CLIENT_IDENTIFIER_NOT_VALID, now)
            return
        if not event.clean_start and self._owner.session(event.client_id) is None:
            home = self._registry.find(event.client_id)
            if head is not None:
                head.will = will
                self._arrivals.revive(head, waiting.epoch, latest, now)
                if not waiting.is_adoption():
                    self._notices.append(f"session of {event.client_id!r} begins here while its old home is away")
            elif home is None or home.epoch != latest:
                # Its home is known, and what it has is not.
                self._refuse(waiting, Reason.SERVER_UNAVAILABLE, now)
                return
        # The home was asked if it was not missed yet, and nobody knows whether it heard that.
        self._finish(waiting, b"", now, True)

    def _revives(self, waiting: Waiting) -> bool:
        """Say whether a session may begin without its home, which is away."""
        if waiting.revival == Revival.IF_WHOLE:
            # It may have gone to a member that is not heard, which would have to give it up with what it knows of it.
            return self._site.is_complete(waiting.old_home)
        return waiting.revival == Revival.ALWAYS

    def _finish(self, waiting: Waiting, told: bytes, now: float, is_away: bool = False) -> None:
        """Attach the client, and give the turn back; `told` is the old home that was asked and has answered, if any.

        `is_away`: its home is another, and does not run.
        """
        assert waiting.epoch is not None
        event = waiting.event
        epoch = NO_EPOCH
        if not waiting.is_gone and not waiting.is_adoption():
            epoch = waiting.epoch
            self._owner.attach(event, epoch, now)
        session = self._owner.session(event.client_id)
        if session is not None:
            epoch = session.epoch
            if event.clean_start:
                # Otherwise what waits for the client at a node that is away would come with that.
                self._end_older(event.client_id, epoch, told, is_away)
            self._departures.follow(session, now)
        del self._waiting[event.connection]
        del self._by_client[event.client_id]
        self._registration.release(event.connection, epoch, now)

    def _refuse(self, waiting: Waiting, reason: int, now: float, text: str = "") -> None:
        if not waiting.is_gone:
            self._owner.refuse(waiting.event, reason, text)
        self._forget(waiting, now)

    def _forget(self, waiting: Waiting, now: float) -> None:
        event = waiting.event
        del self._waiting[event.connection]
        del self._by_client[event.client_id]
        self._arrivals.forget(event.client_id)
        self._registration.release(event.connection, NO_EPOCH, now)
