"""Claims: what becomes of wills when a node dies, and of this node's own when it has been taken for dead.

Owns when a will of another node is due here, what this node says of others' wills, and what others say of its own.
Which rows there are it knows from `will_view`; it has turns from `registration`, and publishes through the owner. How a
will comes due at its own node is `broker.core.wills`' business.

Theory of operation
-------------------
A node says in AWAY rows which members it does not hear. A member is gone when all that run say so; not while it is
waited for because it announced its stop. A will is due when its node has been gone for its delay. Then the keeper of
the client id claims it:

    due --turn--> no later session of the client id, nobody's claim: CLAIM row, committed and told
        --every running member knows the row, and there is no other--> published, the row says spent: one batch

So of two that claim the same will, whichever hears of the other before it publishes gives way to the lower store id. A
claimer that dies goes on when it is back, since nobody else can know whether it has published: that is late, but never
twice. Only in two halves of a divided cluster a will may be published twice, once in each. Such a half is a node, too,
that publishes its own will when it is due, at once, and dies before anybody has heard of that; or one that stands still
for longer than whoever starts meanwhile waits to hear it.

A client that is back spends its will as well: in the batch in which its session begins, the new home says so of every
will that it left elsewhere before. A will that is spent is given up by its node, whose row of it goes then, and after
it every CLAIM row. What a node has said that is away, the keeper of the client id among those that run says for it.

So does whoever heard the last of a node that is gone: a member that was down meanwhile claims wills of it which that
node published or dropped. Who knows their end says for that node that they are spent, in the turn in which it hears
of the claim. If nobody runs that knows, such a will is published once more.

A node publishes none of its own wills that are claimed. Nor does it publish any while it does not know what those that
run say of themselves, and whether others do (`Wills.held`): that is so after its start, and when a partition ends. Who
may have been removed claims and publishes none: whoever removed it has seen to that, and what it published alone would
come to the others when it is a donor.

A member that is to be removed is gone for all that do not hear it. Who hears it claims nothing, as its clients may be
connected, and leave anew what is spent: a will would be published again and again. If the keeper hears it, whoever does
not claims the will. What is left anew comes to those as well, by way of who hears the member: a client of which a will
is spent has no other one that is due, for as long as the member is to be removed and not heard.

Bounds: TURNS_AT_ONCE turns are asked for or held.

Invariants: who is gone is missing here; every CLAIM row of this node's own that is not spent has a Pending, and the
other way round.
"""

import heapq
import math
from typing import Final, final

from broker.core.left_will import LeftWill
from broker.core.owner import QueueOwner
from cluster.epoch import NO_EPOCH, pack_epoch
from cluster.mesh import Mesh
from cluster.peers import Peer
from cluster.registration import Granted, Registration, TurnResult
from cluster.will_view import Claim, KnownWill

TURNS_AT_ONCE: Final = 2048
# How long others may take to say what a member said that is not heard any more.
DOUBT_HEARTBEATS: Final = 2
# How often to look again for what nobody tells.
POLL_S: Final = 0.1
# So long a claim keeps the turn: a member whose store takes no writes confirms nothing, for which no client is to wait.
TURN_S: Final = 2.0
# Whose turn could not be had is asked for again after so long.
RETRY_S: Final = 1.0


@final
class Pending:
    """A claim that is not spent yet. `version` is that of the table that tells it, -1 before that is known."""

    __slots__ = ("claim", "since", "token", "version")

    def __init__(self, claim: Claim, token: int, version: int, since: float) -> None:
        self.claim = claim
        # The request whose turn is held, 0 for none; since when it is.
        self.token = token
        self.since = since
        self.version = version


@final
class Claims:
    """What one node says of others' wills."""

    def __init__(self, owner: QueueOwner, mesh: Mesh, registration: Registration) -> None:
        self.claimed: int = 0
        self._owner = owner
        self._mesh = mesh
        self._wills = mesh.registry.wills
        self._registration = registration
        self._name = mesh.membership.name
        self._store_id = mesh.membership.own().store_id
        self._doubt_s: float = DOUBT_HEARTBEATS * mesh.heartbeat_s
        # Node -> since when this node does not hear it; those of which that was said; those that are gone, since when.
        self._missing: dict[str, float] = {}
        self._said: dict[str, bytes] = {}
        self._gone: dict[str, float] = {}
        # Those that are to be removed, and are gone however that is, with the clients of which a will is spent since.
        self._removed: dict[str, dict[bytes, bool]] = {}
        # (due, node, client id) of wills of nodes that are gone.
        self._due: list[tuple[float, str, bytes]] = []
        # Token -> (node, client id), and the other way round. Tokens of connections are not negative.
        self._asked: dict[int, tuple[str, bytes]] = {}
        self._tokens: dict[tuple[str, bytes], int] = {}
        self._last_token: int = 0
        # By (client id, key).
        self._pending: dict[tuple[bytes, bytes], Pending] = {}
        # The store ids of others for which this node says what they said.
        self._spoken_for: dict[bytes, bool] = {}
        self._running_changed = True
        self._may_be_removed = False
        self._deadline: float = 0.0
        for claim in self._wills.claims_of(self._name):
            if claim.claimer != self._store_id:
                self._spoken_for[claim.claimer] = True
            elif not claim.spent:
                self._pending[claim.client_id, claim.key()] = Pending(claim, 0, 0, 0.0)
        owner.wills.held = bool(mesh.peers)

    def running_changed(self) -> None:
        """Other members run than before, or others are members."""
        self._running_changed = True
        self._deadline = 0.0

    def claim_now(self, node: str) -> None:
        """A member is to be removed: its wills are due, whatever their delays, and though it announced a stop.

        That lasts until it is no member any more, or is heard here, as it may be already.
        """
        self._removed.setdefault(node, {})
        self.running_changed()

    def bequest(self, client_id: str, store_id: bytes, now: float) -> tuple[LeftWill | None, bool]:
        """Return what the new home of a client's session takes over of what the client left in another store.

        That is the will, or None, and whether somebody is about to publish it: then it is too early to say.
        """
        peer = self._peer(store_id)
        subject = client_id.encode()
        known = None if peer is None else self._wills.will(peer.name, subject)
        if peer is None or known is None:
            return None, False
        claims = self._wills.claims(subject, store_id, known.number)
        if claims:
            return None, not any(claim.spent for claim in claims)
        left = peer.tables.will_of(client_id)
        if left is None or left.number != known.number:
            # What is committed here is not what was told last.
            return None, left is not None
        left.due = (known.waits_since or self._missing.get(peer.name, now)) + known.wait_s
        return left, False

    def unspent(self, node: str) -> int:
        """Return how many wills of a member may still be published."""
        whose = self._mesh.peers[node].store_id
        spent = self._removed.get(node, {})
        return sum(
            client_id not in spent
            and not any(claim.spent for claim in self._wills.claims(client_id, whose, will.number))
            for client_id, will in self._wills.wills_of(node)
        )

    def turn_decided(self, result: TurnResult, now: float) -> None:
        """A turn was granted, or can't be had now."""
        node, client_id = self._asked.pop(result.token)
        del self._tokens[node, client_id]
        self._deadline = 0.0
        if not isinstance(result, Granted):
            heapq.heappush(self._due, (now + RETRY_S, node, client_id))
            return
        will = self._claimable(node, client_id)
        latest = max(result.epoch, self._mesh.registry.highest_epoch(result.client_id))
        if will is None or will.epoch < pack_epoch(latest):
            self._registration.release(result.token, NO_EPOCH, now)
            return
        key = self._mesh.peers[node].store_id + self._store_id
        self._mesh.own.claim(client_id, key, will.number, False)
        claim = Claim(self._name, client_id, key, will.number, False)
        self._pending[client_id, key] = Pending(claim, result.token, -1, now)

    def look(self, now: float, may_be_removed: bool) -> None:
        """See what others say of this node's wills; call it once a turn, before those that are due are published.

        It is also said whether this node may be no member any more.
        """
        self._may_be_removed = may_be_removed
        # Without a will there is nothing to ask for, which would be asked for in every turn.
        self._owner.wills.held = not self._knows_others(now) if len(self._owner.wills) else bool(self._mesh.peers)
        for client_id in self._wills.take_doubtful():
            self._note_spent(client_id)
            self._look_at(client_id)
            self._speak_for_home(client_id)
            for claim in self._wills.own_claims_on(client_id):
                self._review(claim, now)

    def tick(self, now: float) -> None:
        """Do what is due; call it once a turn."""
        if now < self._deadline and not self._wills.away_changed:
            return
        self._wills.away_changed = False
        self._note_missing(now)
        if not self._may_be_removed:
            self._ask(now)
        if self._pending and self._knows_others(now):
            for pending in list(self._pending.values()):
                if pending.version >= 0 and self._mesh.is_lasting_known(pending.version):
                    self._publish(pending, now)
        for pending in self._pending.values():
            if now >= pending.since + TURN_S:
                self._release(pending, now)
        self._fall_silent(now)
        self._deadline = self._next(now)

    def cancel(self, now: float) -> None:
        """Clients are back whose sessions began in this turn: what they left elsewhere before is spent."""
        for client_id in self._wills.take_back():
            epoch = self._mesh.registry.latest_own(client_id.decode())
            for node, will in self._wills.wills_elsewhere(client_id):
                peer = self._mesh.peers.get(node)
                if peer is not None and will.epoch < epoch:
                    key = peer.store_id + self._store_id
                    self._spend(Claim(self._name, client_id, key, will.number, True), now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do."""
        return self._deadline

    def flush(self) -> None:
        """This node's tables are told, new claims with them."""
        for pending in self._pending.values():
            if pending.version < 0:
                pending.version = self._mesh.own.lasting_version()

    def validate(self) -> None:
        """Check the invariants."""
        assert set(self._gone) <= set(self._missing)
        own = [claim for claim in self._wills.claims_of(self._name) if claim.claimer == self._store_id]
        assert {(claim.client_id, claim.key()) for claim in own if not claim.spent} == set(self._pending)
        assert len(self._asked) == len(self._tokens)

    # This node's own wills.

    def _knows_others(self, now: float) -> bool:
        """Say whether this node knows what every member says, those apart that have been away for long enough."""
        if self._may_be_removed:
            return False
        for name, peer in self._mesh.peers.items():
            if peer.running:
                if not peer.tables.is_current():
                    return False
            elif now < self._missing.get(name, math.inf) + self._doubt_s:
                return False
        return True

    def _look_at(self, client_id: bytes) -> None:
        """See what others' claims and sessions mean for the will of a client of this node."""
        wills = self._owner.wills
        name = client_id.decode()
        left = wills.get(name)
        if left is None:
            return
        claims = self._wills.claims(client_id, self._store_id, left.number)
        if self._mesh.registry.highest_elsewhere(name) > left.epoch:
            # [MQTT-3.1.3-9] It was back in time, or its session ended there.
            wills.discard(name)
        elif any(claim.spent for claim in claims):
            wills.spend(name)
        else:
            wills.set_claimed(name, bool(claims))

    # Those of others.

    def _note_spent(self, client_id: bytes) -> None:
        """See whether the will is spent that a client left at a member that is to be removed."""
        for node, spent in self._removed.items():
            peer = self._mesh.peers.get(node)
            if peer is not None and self._wills.is_spent(client_id, peer.store_id):
                spent[client_id] = True

    def _note_missing(self, now: float) -> None:
        """See who is gone, and who is not any more."""
        mesh = self._mesh
        known = [*self._missing, *self._removed]
        for name in [name for name in known if name not in mesh.peers or mesh.peers[name].running]:
            self._missing.pop(name, None)
            self._gone.pop(name, None)
            self._removed.pop(name, None)
            if name in self._said:
                mesh.own.set_away(self._said.pop(name), False)
        changed, self._running_changed = self._running_changed, False
        for name, peer in mesh.peers.items():
            if peer.running:
                continue
            # Who was not heard since the start may be about to be.
            since = self._missing.setdefault(name, max(now, mesh.started_at + mesh.failure_timeout_s))
            if now >= since and name not in self._said:
                self._said[name] = peer.store_id
                mesh.own.set_away(peer.store_id, True)
                changed = True
            gone_at = -math.inf if name in self._removed else now
            if not self._is_gone(peer, now):
                self._gone.pop(name, None)
            elif gone_at < self._gone.get(name, math.inf):
                self._gone[name] = gone_at
                changed = True
        if changed:
            self._schedule()
            self._speak_for_missing()

    def _is_gone(self, peer: Peer, now: float) -> bool:
        """Say whether nobody hears a member, and it is not waited for."""
        if peer.name in self._removed:
            return True
        if peer.name not in self._said or now < self._mesh.readiness.waited_until(peer.name):
            return False
        for name, other in self._mesh.peers.items():
            if other.running and not (other.tables.is_current() and self._wills.is_away_for(name, peer.store_id)):
                return False
        return True

    def _schedule(self) -> None:
        """Put all wills of nodes that are gone in the order in which they are due."""
        self._due = []
        for node, since in self._gone.items():
            for client_id, will in self._wills.wills_of(node):
                begun = min(since, will.waits_since) if will.waits_since else since
                self._due.append((begun + will.wait_s, node, client_id))
        heapq.heapify(self._due)

    def _ask(self, now: float) -> None:
        """Ask for the turns of those whose wills are due, if they are this node's to claim."""
        while self._due and self._due[0][0] <= now and len(self._asked) + len(self._pending) < TURNS_AT_ONCE:
            _due, node, client_id = heapq.heappop(self._due)
            name = client_id.decode()
            is_asked = (node, client_id) in self._tokens
            if is_asked or self._claimable(node, client_id) is None or not self._is_claimer(node, name):
                continue
            self._last_token -= 1
            self._asked[self._last_token] = (node, client_id)
            self._tokens[node, client_id] = self._last_token
            self._registration.request(name, self._last_token, now)

    def _is_claimer(self, node: str, name: str) -> bool:
        """Say whether it is this node's to claim the will of a client of a node that is gone."""
        keeper = self._registration.keeper(name)
        return keeper == self._name or not self._wills.is_away_for(keeper, self._mesh.peers[node].store_id)

    def _claimable(self, node: str, client_id: bytes) -> KnownWill | None:
        """Return the will of a client of a node that is gone, if nobody has claimed it."""
        will = self._wills.will(node, client_id)
        if node not in self._gone or node not in self._mesh.peers or will is None:
            return None
        if client_id in self._removed.get(node, {}):
            return None
        claimed = self._wills.claims(client_id, self._mesh.peers[node].store_id, will.number)
        return None if claimed else will

    def _publish(self, pending: Pending, now: float) -> None:
        claim = pending.claim
        peer = self._peer(claim.whose)
        if not self._review(claim, now) or peer is None:
            return
        others = self._wills.claims(claim.client_id, claim.whose, claim.number)
        will = self._wills.will(peer.name, claim.client_id)
        latest = self._mesh.registry.highest_epoch(claim.client_id.decode())
        if any(other.claimer < self._store_id for other in others):
            self._end(claim, now)
            return
        if will is None or will.epoch < pack_epoch(latest):
            # Its client is back.
            self._spend(claim, now)
            return
        left = peer.tables.will_of(claim.client_id.decode())
        if left is None or left.number != claim.number:
            # What is committed here is not what was told last.
            return
        self._owner.publish_will(left, now)
        self.claimed += 1
        self._spend(claim, now)

    # What is said.

    def _speak_for_missing(self) -> None:
        """Say what those said that are away, to whoever comes back meanwhile."""
        for name in self._said:
            for said in self._wills.claims_of(name):
                claimer = self._peer(said.claimer)
                is_kept = self._registration.keeper(said.client_id.decode()) == self._name
                if not is_kept or claimer is None or claimer.running or not self._is_left(said):
                    continue
                known = self._wills.own_claim(said.client_id, said.key())
                if known is None or known.number != said.number or (said.spent and not known.spent):
                    self._mesh.own.claim(said.client_id, said.key(), said.number, said.spent)
                    self._spoken_for[said.claimer] = True

    def _speak_for_home(self, client_id: bytes) -> None:
        """Say of wills that others claim which of them were over at their own nodes, which are away."""
        for claim in self._wills.claims_on(client_id):
            peer = None if claim.spent else self._peer(claim.whose)
            if peer is None or peer.running or not peer.tables.is_lasting_whole():
                continue
            if self._wills.is_over(peer.name, client_id, claim.number):
                self._mesh.own.claim(client_id, peer.store_id + peer.store_id, claim.number, True)
                self._spoken_for[peer.store_id] = True

    def _fall_silent(self, now: float) -> None:
        """Those speak for themselves that are back."""
        for store_id in list(self._spoken_for):
            claimer = self._peer(store_id)
            if claimer is None or (claimer.running and claimer.tables.is_current()):
                del self._spoken_for[store_id]
                for claim in self._wills.claims_of(self._name):
                    if claim.claimer == store_id:
                        self._review(claim, now)

    def _review(self, claim: Claim, now: float) -> bool:
        """See whether what this node says of a will still has to be said; end it if not."""
        if self._is_left(claim) and not self._is_obsolete(claim):
            return True
        self._end(claim, now)
        return False

    def _is_left(self, claim: Claim) -> bool:
        """Say whether there still is the will that a claim is about, or may be elsewhere."""
        peer = self._peer(claim.whose)
        if claim.claimer == claim.whose:
            return peer is not None
        will = None if peer is None else self._wills.will(peer.name, claim.client_id)
        return will is not None and will.number == claim.number

    def _is_obsolete(self, claim: Claim) -> bool:
        if claim.claimer == self._store_id:
            # Published by another one meanwhile, or its client is back.
            others = self._wills.claims(claim.client_id, claim.whose, claim.number)
            return not claim.spent and any(other.spent for other in others if other.claimer != self._store_id)
        claimer = self._peer(claim.claimer)
        if claimer is None:
            # Who was removed publishes nothing.
            return not claim.spent
        if not (claimer.running and claimer.tables.is_current()):
            return False
        # It may be that others don't hear it yet: what it says itself is said here as well until it says it no more.
        others = self._wills.claims(claim.client_id, claim.whose, claim.number)
        return not any(other.teller == claimer.name and other.claimer == claim.claimer for other in others)

    def _end(self, claim: Claim, now: float) -> None:
        self._mesh.own.end_claim(claim.client_id, claim.key())
        self._forget(claim, now)

    def _spend(self, claim: Claim, now: float) -> None:
        self._mesh.own.claim(claim.client_id, claim.key(), claim.number, True)
        self._forget(claim, now)

    def _forget(self, claim: Claim, now: float) -> None:
        pending = self._pending.pop((claim.client_id, claim.key()), None)
        if pending is not None:
            self._release(pending, now)

    def _release(self, pending: Pending, now: float) -> None:
        if pending.token:
            self._registration.release(pending.token, NO_EPOCH, now)
            pending.token = 0

    def _peer(self, store_id: bytes) -> Peer | None:
        for peer in self._mesh.peers.values():
            if peer.store_id == store_id:
                return peer
        return None

    def _next(self, now: float) -> float:
        """Return when to look again."""
        is_held = self._may_be_removed or (self._owner.wills.held and len(self._owner.wills) > 0)
        if self._pending or self._asked or is_held:
            return now + POLL_S
        deadline = self._due[0][0] if self._due else math.inf
        if self._missing or self._spoken_for:
            # Whether the others' tables are known, and who announced a stop, nobody tells this part.
            deadline = min(deadline, now + self._mesh.heartbeat_s)
        return max(deadline, now)
