"""Moving: the parts that register client ids, claim wills and move sessions, joined with the owner and the mesh.

Owns the order in which they are told things, and is their `Site`: it translates between the names by which the mesh
knows members and the store ids by which sessions know their homes. It decides nothing itself but who leaves: a session
of this node of which the registry knows a later home goes there.

Theory of operation
-------------------
A turn: `load` when everything is committed; `receive` for each frame and mark, in their order; `tick`; then, when the
turn's forwards are in the streams, `answer`, and when its tables are told, `flush`. What is said there leaves with the
commit of the turn.
"""

import math
from collections.abc import Callable
from typing import Final, final

from broker.core.epoch import NO_EPOCH, Epoch, pack_epoch
from broker.core.owner import QueueOwner
from broker.core.rows import RowChange, RowKind, row_subject
from broker.core.transfer import SessionHead
from cluster.arrivals import Arrivals
from cluster.claims import Claims
from cluster.departures import Departures
from cluster.frames import FrameType
from cluster.mesh import Mesh
from cluster.move_frames import (
    CONFIRMED,
    HEAD,
    SWITCHED,
    Item,
    Switch,
    pack_mark,
    unpack_mark,
    unpack_move,
    unpack_move_acks,
    unpack_switches,
    unpack_takes,
)
from cluster.registrar import Registrar
from cluster.registration import Registration
from cluster.revival import Revival

_LIFE_SHIFT: Final = 32


@final
class MeshSite:
    """The mesh as those see it who know members by their store ids."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._own = mesh.membership.own().store_id
        self._names: dict[bytes, str] = {}
        # What this node says to itself: a session may come back while its stub stands.
        self.loop: list[bytes] = []
        self.update()

    def update(self) -> None:
        """The members have changed."""
        self._names = {peer.store_id: name for name, peer in self._mesh.peers.items()}

    def store_id(self) -> bytes:
        """Return this node's store id."""
        return self._own

    def others(self) -> list[bytes]:
        """Return the other members, whether they run or not."""
        return list(self._names)

    def name_of(self, store_id: bytes) -> str:
        """Return the name of another member, "" if there is none such; one may have been removed in this turn."""
        name = self._names.get(store_id, "")
        return name if name in self._mesh.peers else ""

    def is_running(self, store_id: bytes) -> bool:
        """Say whether a member runs."""
        name = self.name_of(store_id)
        return store_id == self._own or (name != "" and self._mesh.peers[name].running)

    def is_complete(self, besides: bytes = b"") -> bool:
        """Say whether all members but `besides` run, and all that they say of themselves is known here."""
        return self._mesh.is_complete(self.name_of(besides))

    def heard(self) -> dict[bytes, tuple[int, int]]:
        """Return up to where each other member has told of its sessions, as far as that is known here."""
        return {peer.store_id: peer.tables.lasting_at() for peer in self._mesh.peers.values()}

    def known_to_others(self) -> dict[bytes, tuple[int, int]]:
        """Return up to where all the others know that of each other member, by what that has said last."""
        return {peer.store_id: peer.tables.known_to_others for peer in self._mesh.peers.values()}

    def version(self) -> tuple[int, int]:
        """Return (generation, version) of this node's wishes, as told so far."""
        return self._mesh.own.wishes_version()

    def touch(self) -> None:
        """Have the next version of this node's wishes told, although nothing changed."""
        self._mesh.own.touch_wishes()

    def known_version(self, store_id: bytes) -> tuple[int, int]:
        """Return (generation, version) of a member's wishes as known here with its sessions; (0, 0) if they aren't.

        Both are told at once; but after a restart they are asked for one by one.
        """
        if store_id == self._own:
            return self.version()
        return self._mesh.peers[self.name_of(store_id)].tables.wishes_version() if self.is_current(store_id) else (0, 0)

    def is_current(self, store_id: bytes) -> bool:
        """Say whether all that a member says of its sessions and wills is known here; of this node it always is."""
        name = self.name_of(store_id)
        return store_id == self._own or (name != "" and self._mesh.peers[name].tables.is_current())

    def has_session(self, store_id: bytes, client_id: str) -> bool:
        """Say whether a member tells of a session of a client that it has, or of which it has something left."""
        name = self._name_of_any(store_id)
        return name != "" and any(home.node == name for home in self._mesh.registry.homes(client_id))

    def has_will(self, store_id: bytes, client_id: str) -> bool:
        """Say whether a member tells of a client's will that it has; this node's own tables count as well."""
        name = self._name_of_any(store_id)
        return name != "" and self._mesh.registry.wills.will(name, client_id.encode()) is not None

    def _name_of_any(self, store_id: bytes) -> str:
        """Return the name of a member, this node included; "" if it is none."""
        return self._mesh.membership.name if store_id == self._own else self.name_of(store_id)

    def home(self, client_id: str) -> Epoch:
        """Return the epoch of the latest home that is known of a client id; NO_EPOCH if there is none."""
        home = self._mesh.registry.find(client_id)
        return NO_EPOCH if home is None else home.epoch

    def tell(self, store_id: bytes, frame: bytes) -> None:
        """Send a frame on the control connection, or lose it."""
        if store_id == self._own:
            self.loop.append(frame)
        name = self.name_of(store_id)
        if name:
            self._mesh.tell(name, frame)

    def send(self, store_id: bytes, frame: bytes) -> None:
        """Send a frame on the bulk connection, or lose it."""
        if store_id == self._own:
            self.loop.append(frame)
        name = self.name_of(store_id)
        if name:
            self._mesh.send(name, frame)


@final
class Moving:
    """Registration and moves of one node."""

    def __init__(self, owner: QueueOwner, mesh: Mesh, incarnation: int, now: float) -> None:
        self._owner = owner
        self._mesh = mesh
        self._now: float = 0.0
        self.site = MeshSite(mesh)
        self.registration = Registration(
            mesh.membership.name, self.site.store_id(), incarnation, mesh.registry.highest_epoch, mesh.is_current
        )
        self.departures = Departures(owner, self.site)
        self.arrivals = Arrivals(owner, self.site, mesh.registry)
        self.claims = Claims(owner, mesh, self.registration)
        self.registrar = Registrar(
            owner,
            self.site,
            self.registration,
            mesh.registry,
            self.arrivals,
            self.departures,
            self.claims,
            self._remembered,
            self._end_older,
            mesh.stamp,
        )
        # By store id, whether a member ran when it was looked at last, and in which life.
        self._ran: dict[bytes, bool] = {}
        # And the names by which the registration knows them.
        self._named: set[str] = set()
        self._lives: dict[bytes, int] = {}
        # Until when a member that was not heard since this node started may be there all the same, for what arrives.
        self._unheard_until: float = now + mesh.failure_timeout_s if owner.transfers.arriving() else math.inf
        # (asker, home, generation, version): who is to be told when this node knows a version of a home's wishes.
        self._switches: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        self._frames: Final[dict[int, Callable[[str, bytes, bytes, float], None]]] = {
            FrameType.MOVE: self._receive_move,
            FrameType.MOVE_TAKE: self._receive_takes,
            FrameType.MOVE_ACK: self._receive_acks,
            FrameType.SWITCH: self._receive_switches,
        }
        for client_id, departure in owner.transfers.departures.items():
            self.departures.restore(client_id, departure)
            session = owner.session(client_id)
            if session is not None:
                self.departures.follow(session, now)
        if mesh.membership.removed:
            # Nothing says how long ago that was: who has something for its sessions may have yet to give it.
            self.arrivals.members_changed(now)

    def joined(self) -> None:
        """This node adopted a cluster: of the epochs that it gave while it was alone nothing is left."""
        self.registration.forget_released()

    def load(self, now: float) -> None:
        """Read what leaves this node. Everything that was written must be committed."""
        if self.departures.wants_load():
            self.departures.load(now)

    def receive(self, node: str, frame: bytes, now: float) -> None:
        """Take a frame of a member; FrameError if it can't be read."""
        self._now = now
        peer = self._mesh.peers.get(node)
        if peer is None:
            return
        receive = self._frames.get(frame[1])
        if receive is None:
            self.registration.receive(node, frame, now)
        else:
            receive(node, peer.store_id, frame, now)

    def receive_mark(self, member: bytes, body: bytes, now: float) -> None:
        """Take a mark out of the stream of a member; FrameError if it can't be read."""
        switch = unpack_mark(member, body)
        if switch.kind == CONFIRMED and switch.home == self.site.store_id():
            self._mesh.confirmed(switch.member, (switch.generation, switch.version))
            self.arrivals.confirmed(switch, now)
        elif switch.kind == SWITCHED:
            self.departures.switched(switch)

    def tick(self, now: float) -> None:
        """Draw the conclusions of what changed, and do what is due."""
        self._now = now
        if self._mesh.take_running_changed():
            self._mesh.retained.running_changed()
            self.claims.running_changed()
            self._update_running(now)
        if now >= self._unheard_until:
            self._unheard_until = math.inf
            for store_id in [each for each, runs in self._ran.items() if not runs]:
                self.arrivals.running(store_id, False, now)
        if self._mesh.take_tables_changed():
            self.registration.check_current(now)
            self.arrivals.changed()
            self.departures.tables_changed()
        self.claims.tick(now)
        self._leave_superseded(now)
        frames, self.site.loop = self.site.loop, []
        for frame in frames:
            self._frames[frame[1]](self._mesh.membership.name, self.site.store_id(), frame, now)
        self.registration.tick(now)
        self.arrivals.tick(now)
        self.registrar.tick(now)
        self.departures.tick(now)
        for session in self.departures.take_untaken(now):
            own = self.site.store_id()
            self.registrar.adopt(session.client_id, session.user_name, own, Revival.ALWAYS, now)

    def next_deadline(self) -> float:
        """Return when `load` or `tick` has something to do."""
        if self.site.loop:
            return 0.0
        return min(
            self.registration.next_deadline(),
            self.arrivals.next_deadline(),
            self.registrar.next_deadline(),
            self.departures.next_deadline(),
            self.claims.next_deadline(),
            self._unheard_until,
        )

    def rows_changed(self, changes: list[RowChange]) -> None:
        """What others know of this node's sessions has changed: some may have ended."""
        if not self.departures.leavings:
            return
        for change in changes:
            if change.row[0] == RowKind.SESSION and change.value is None and not change.moved:
                self.departures.session_ended(row_subject(change.row).decode())

    def answer(self, now: float) -> None:
        """Say in the streams, behind all that was published here in this turn, whose wishes are known.

        Sessions that began are in the registry now, and what their clients left elsewhere is spent.
        """
        self.claims.cancel(now)
        for (asker, home), version in list(self._switches.items()):
            own = self.site.store_id()
            known = self.site.version() if home == own else self.site.known_version(home)
            if known >= version:
                del self._switches[asker, home]
                switch = Switch(SWITCHED, own, home, known[0], known[1], self._owner.next_number())
                self._mesh.mark(asker, pack_mark(switch), now)

    def flush(self) -> None:
        """Send what was gathered; this node's tables are told."""
        self.arrivals.flush()
        self.departures.flush()
        self.claims.flush()
        for node, frame in self.registration.take_frames():
            if node in self._mesh.peers:
                self._mesh.tell(node, frame)
                if frame[1] == FrameType.TURNS_HELD:
                    # Who surveys this node waits to hear what it knows.
                    self._mesh.heartbeat_soon(node)

    def counts(self) -> dict[str, int]:
        """Return what is counted."""
        return {
            **self.arrivals.counts(),
            **self.departures.counts(),
            **self.registration.counters(),
            "wills_claimed": self.claims.claimed,
        }

    def validate(self) -> None:
        """Check the invariants of all parts."""
        self.registration.validate()
        self.arrivals.validate()
        self.departures.validate()
        self.registrar.validate()
        self.claims.validate()

    def _update_running(self, now: float) -> None:
        self.site.update()
        running = {peer.store_id: peer.running for peer in self._mesh.peers.values()}
        for name, peer in self._mesh.peers.items():
            if peer.running:
                self.registration.member_started(name, peer.store_id, peer.session >> _LIFE_SHIFT, now)
            else:
                self.registration.member_stopped(name, now)
        for name in self._named - set(self._mesh.peers):
            self.registration.member_stopped(name, now)
        self._named = set(self._mesh.peers)
        gone = [each for each in self._ran if each not in running]
        for store_id in gone:
            running[store_id] = False
        for store_id, runs in running.items():
            if runs != self._ran.get(store_id, False):
                self.arrivals.running(store_id, runs, now)
                self.registrar.running(store_id, runs, now)
        for peer in self._mesh.peers.values():
            life = peer.session >> _LIFE_SHIFT
            if peer.running and (life != self._lives.get(peer.store_id) or not self._ran.get(peer.store_id)):
                # It may have been back before anybody missed it.
                self._lives[peer.store_id] = life
                self.departures.home_is_back(peer.store_id)
        if gone:
            self.arrivals.members_changed(now)
            self._switches = {pair: version for pair, version in self._switches.items() if not set(pair) & set(gone)}
        self._ran = {peer.store_id: peer.running for peer in self._mesh.peers.values()}
        self.departures.members_changed()

    def _leave_superseded(self, now: float) -> None:
        for client_id in self._mesh.registry.take_superseded():
            home = self._mesh.registry.find(client_id)
            session = self._owner.session(client_id)
            if session is None:
                if home is not None:
                    self.departures.retarget(client_id, home.epoch)
                elif (ended := self._mesh.registry.ended(client_id)) is not None:
                    self.departures.end(client_id, ended, now)
            elif session.epoch >= self._mesh.registry.highest_epoch(client_id):
                # It began in this turn: the registry knows what it ended, and itself when the turn's rows are told.
                continue
            elif home is None or not session.persistent:
                # It ended elsewhere, or has nothing that could be moved.
                self.departures.discard(client_id, now)
            # Nobody asked for it: its client may have come here after it was there.
            elif not self.departures.leave(client_id, session.epoch, home.epoch, False, now, False):
                self._mesh.registry.look_again(client_id)

    def _end_older(self, client_id: str, epoch: Epoch, told: bytes, is_away: bool) -> None:
        known = (self._mesh.membership.name, self.site.name_of(told))
        if is_away or any(home.node not in known for home in self._mesh.registry.homes(client_id)):
            self._mesh.own.end(client_id.encode(), pack_epoch(epoch))

    def _remembered(self, client_id: str, store_id: bytes) -> SessionHead | None:
        for peer in self._mesh.peers.values():
            if peer.store_id == store_id:
                return peer.tables.head_of(client_id)
        return None

    def _receive_move(self, node: str, store_id: bytes, frame: bytes, now: float) -> None:
        items = [item for item in unpack_move(frame, now) if self._is_expected(store_id, item)]
        self.arrivals.receive(store_id, items, now)
        for item in items:
            session = self._owner.session(item.client_id)
            if session is not None:
                self.departures.follow(session, now)

    def _is_expected(self, node: bytes, item: Item) -> bool:
        """Say whether an old home's word is for this node.

        If a stub is here that nobody has taken, or that is meant for the very node that gives the session away, then
        that is the session which the word is about: two stubs would wait for each other. One that is meant for a third
        node goes to the session that comes instead: more stubs would wait in a ring.

        All that goes by a later epoch than the stub's: a session that is back has other places than those which it gave
        away. Who knows no later one than that by which the stub was the home offers it again when that is adopted.
        """
        if item.kind != HEAD or self._owner.session(item.client_id) is not None:
            return True
        if not self.departures.has_stub(item.client_id):
            return True
        if item.epoch <= self.departures.next_epoch(item.client_id):
            return False
        assert item.head is not None
        given_back = self.departures.is_given_back(item.client_id, node, item.head.taken)
        if not given_back and not self.departures.is_untaken(item.client_id):
            return True
        self.departures.come_back(item.client_id, item.epoch)
        self.departures.notices.append(f"session of {item.client_id!r} is back before it was all elsewhere")
        self.arrivals.watch(item.client_id)
        return True

    def _receive_takes(self, node: str, store_id: bytes, frame: bytes, now: float) -> None:
        for take in unpack_takes(frame):
            self.departures.take(store_id, take, now)

    def _receive_acks(self, node: str, store_id: bytes, frame: bytes, now: float) -> None:
        for ack in unpack_move_acks(frame):
            self.departures.acknowledged(store_id, ack, now)

    def _receive_switches(self, node: str, store_id: bytes, frame: bytes, now: float) -> None:
        for home, generation, version in unpack_switches(frame):
            self._switches[store_id, home] = (generation, version)
