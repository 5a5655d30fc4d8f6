"""The leaver: a node that leaves the cluster under load, as operators tell it to or because it does not answer.

Its clients go elsewhere once they find that it accepts nobody, and may be back if the leave is aborted. Whatever
happens in the middle, orders are given until the node is gone:

    LIVE     it gives everything away: its clients are closed, or went before; operators wait, force, abort and try
             again, while it or somebody else dies or is cut off
    DEAD     it died, or is alive where nobody else hears it, and is removed by the others; then it may come back, is
             told so and ends, and may be started again as a donor

All chance is that of a stream of its own, so that what it does changes nothing in seeds in which nobody leaves.
"""

import random

from operators import Operators

from broker.core.owner import QueueOwner
from broker.core.routes import NoInterest
from broker.core.session_store import SessionStore
from broker.core.stored_message import Clock
from cluster.arrivals import GONE_S, REMOVED_S
from cluster.donor import stored_state
from cluster.leave_frames import Verb
from cluster.leaver import BUSY
from cluster.leaving import State
from cluster.outbox import recover as recover_outboxes
from cluster.turn import Turn

NO_HARM = "no harm"
ABORT = "an abort"
CRASH = "its crash"
TARGET_CRASH = "a target's crash"
CUT = "a partition"
LIVE = (NO_HARM, ABORT, ABORT, CRASH, TARGET_CRASH, CUT)
# Dead for good; dead and back; dead and back as a donor; alive where nobody hears it, and perhaps a donor afterwards.
DEAD_FOR_GOOD = "dead for good"
BACK = "back"
DONOR = "a donor"
CUT_OFF = "cut off"
CUT_OFF_DONOR = "cut off, a donor"
DEAD = (DEAD_FOR_GOOD, BACK, DONOR, DONOR, CUT_OFF, CUT_OFF_DONOR)
DONORS = (DONOR, CUT_OFF_DONOR)
LOOK_S = 0.1
# How long a command may take before another operator gives it once more.
PATIENCE_S = 20.0
# How often everybody publishes while a late donor gives.
LATE_ROUNDS = 10
HUSH_S = 1.0
EVERYTHING = 1 << 62
COUNTS = (
    "leave orders",
    "leaves failed",
    "leaves aborted",
    "leaves taken up again",
    "second leaves refused",
    "nodes left",
    "nodes removed",
    "removed nodes told",
    "donors",
    "late donors",
    "emigrations",
    "lost with a node",
)


class LeaverPlan:
    """The leave of one node of a world, and all that operators do about it."""

    def __init__(self, world, population):
        self.world = world
        self.population = population
        self._rng = rng = random.Random(f"leave {world.seed}")
        self.node = rng.choice(list(world.nodes.values()))
        self.kind = rng.choice(LIVE if rng.random() < 0.6 else DEAD)
        self.operators = Operators(world, on_gone=self._process_ended, on_look=self._note_orphans)
        self._has_begun = False
        self._hurries = False
        self._is_removed = False
        self._is_over = False
        # A donor may come when its sessions' new homes have forgotten the old one.
        self._comes_late = random.Random(f"late donor {world.seed}").random() < 0.4
        self._story = None
        world.leaver = self.node
        world.leaves_since = float("inf")
        world.refuge = self._refuge
        for client in population.clients:
            client.emigrates = client.home is self.node

    def begin(self):
        """Plan the leave under the load that begins now."""
        self.world.note(f"{self.node.name} is to leave: {self.kind}")
        self.operators.watch()
        self._story = self._whole_story()
        self.world.later(self._rng.uniform(0.5, 8.0), self._go_on)

    def hurry(self):
        """Everybody runs and hears each other from now on: come to an end."""
        self._hurries = True

    def unfinished(self):
        """Return "" when the node is gone for good, else what it still is."""
        if self._is_over:
            return ""
        state = "down" if self.node.core is None else self.node.core.leaver.job.state.text()
        return f"{self.node.name} has not left ({self.kind}): it is {state}"

    def _go_on(self):
        self._has_begun = True
        self.world.leaves_since = min(self.world.leaves_since, self.world.now)
        wait_s = next(self._story, None)
        if wait_s is None:
            self._is_over = True
        else:
            self.world.later(wait_s, self._go_on)

    def _whole_story(self):
        yield from self._live() if self.kind in LIVE else self._dead()
        if self._is_removed:
            yield from self._afterwards()
        while self.node.up:
            yield LOOK_S

    # A node that is alive.

    def _live(self):
        rng = self._rng
        if rng.random() < 0.5:
            yield from self._give(Verb.STOP_LISTENERS)
            yield rng.uniform(0.0, 1.5)
        self._order(Verb.MOVE, force=rng.random() < 0.3)
        yield rng.uniform(0.0, 2.0)
        if not self.node.is_gone:
            self._harm()
        if rng.random() < 0.5:
            self._try_another()
        if self.kind == ABORT:
            yield from self._abort()
        yield from self._insist()

    def _abort(self):
        rng = self._rng
        for _ in range(rng.choice((1, 1, 2))):
            command = yield from self._give(Verb.ABORT)
            if command is not None and command.exit_code == 0:
                self.world.count("leaves aborted")
                # One that was given before, elsewhere, may be taken after it, also one that was waited for in vain.
                accepts = not self.node.up or not command.is_last() or self.node.core.leaver.job.accepts()
                self.world.check(accepts, f"{self.node.name} accepts nobody after an abort")
            yield rng.uniform(0.2, 4.0)
            if not self.node.is_gone:
                self._order(Verb.MOVE, force=rng.random() < 0.5)
                yield rng.uniform(0.0, 2.0)

    def _harm(self):
        """Do what this seed is about in the middle of the leave; who dies is back after a while."""
        world = self.world
        rng = self._rng
        others = self._others()
        if self.kind in (CRASH, TARGET_CRASH):
            victim = self.node if self.kind == CRASH else rng.choice(others)
            victim.crash(rng.choice(world.crash_points))
            world.later(rng.uniform(2.1, 6.0), self._start, victim)
        elif self.kind == CUT:
            for other in rng.sample(others, rng.randint(1, len(others))):
                world.network.partition(self.node.name, other.name, rng.random() < 0.7)
                world.later(rng.choice((0.5, 3.0, 8.0)), world.network.heal, self.node.name, other.name)

    def _start(self, node):
        if not node.up and not node.is_gone and not node.stays_down:
            node.start()

    def _try_another(self):
        """A second node can't leave while one does; whoever has not heard of that is not asked."""
        heard = [
            other
            for other in self._others()
            if other.up
            and any(
                name == self.node.name and said is not None and said.state in BUSY
                for name, said in other.core.leave_desk.status()
            )
        ]
        if not heard:
            return
        other = self._rng.choice(heard)
        second = self.operators.order(other, other, self._rng.choice((Verb.STOP_LISTENERS, Verb.MOVE, Verb.DRY_RUN)))
        self.operators.listen()
        refused = second.exit_code == 1 and f"{self.node.name} is leaving the cluster already" in second.text
        self.world.check(refused, f"{other.name} may leave beside {self.node.name}: {second.text}")
        self.world.count("second leaves refused")

    def _insist(self):
        """Give the order until the node is gone."""
        is_first = True
        while not self.node.is_gone:
            if not is_first:
                self.world.count("leaves taken up again")
            is_first = False
            command = yield from self._give(Verb.MOVE, force=self._hurries or self._rng.random() < 0.4)
            if command is not None and "remain on" in command.text:
                self.world.count("leaves failed")
            yield self._rng.uniform(0.1, 1.5)

    # A node that does not answer.

    def _dead(self):
        rng = self._rng
        node = self.node
        if self._comes_late and self.kind in DONORS:
            # Nobody has anything for it when it is removed, and so tells its donor from where on others are given that.
            self.world.is_hushed = True
            yield HUSH_S
        if self.kind in (CUT_OFF, CUT_OFF_DONOR):
            for other in self._others():
                self.world.network.partition(node.name, other.name, True)
        else:
            node.stays_down = True
            node.crash(rng.choice(self.world.crash_points))
            while node.up:
                yield LOOK_S
        yield rng.uniform(0.0, 5.0)
        yield from self._insist()
        self.world.is_hushed = False

    def _afterwards(self):
        """A node that was removed comes back, or does not."""
        rng = self._rng
        node = self.node
        if self.kind != DEAD_FOR_GOOD:
            yield rng.uniform(0.0, 4.0)
            for other in self._others():
                self.world.network.heal(node.name, other.name)
            while node.name not in self.operators.gone:
                if not node.up:
                    node.start()
                yield LOOK_S
            self.world.count("removed nodes told")
            if stored_state(node.storage, node.name) == State.LEFT:
                # It had given everything before it was removed, and found that out before it heard of that.
                return
        self.world.orphans |= {session.client_id for session in sessions_of(restored(node))}
        if self.kind in DONORS or (self.kind in LIVE and rng.random() < 0.5):
            yield rng.uniform(0.0, 4.0)
            if self._comes_late:
                self.world.count("late donors")
                yield REMOVED_S + GONE_S
            self.world.astray |= under_way(node)
            yield from self._donate()
        else:
            self.world.lost |= held(node)
            self.world.count("lost with a node", len(self.world.lost))

    def _donate(self):
        """Start the node as a donor, and again when it dies."""
        rng = self._rng
        self.world.count("donors")
        self.world.donates_since = self.world.now
        self.world.revived_before = self.world.revived.copy()
        self.operators.recover(self.node)
        if rng.random() < 0.4 and not self._hurries:
            yield rng.uniform(0.1, 2.0)
            self.node.crash(rng.choice(self.world.crash_points))
        rounds = LATE_ROUNDS if self._comes_late else 0
        while self.node.name not in self.operators.gone:
            if not self.node.up:
                self.node.start()
            if rounds and any(node.up and self.node.name in node.core.mesh.peers for node in self._others()):
                rounds -= 1
                for publisher in self.population.publishers:
                    publisher.publish(rng.choice(publisher.lines), rng.choice((1, 2)))
            yield LOOK_S

    # Orders.

    def _order(self, verb, **order):
        """Give an order somewhere; None if nobody is there to take it."""
        rng = self._rng
        at = [each for each in self.world.members() if each.up and (each is not self.node or self.kind in LIVE)]
        if not at:
            return None
        self.world.count("leave orders")
        if self.kind in DEAD and rng.random() < 0.3 and not self._hurries:
            order["targets"] = tuple(sorted(each.name for each in at))
        timeout_s, rate = rng.choice((1, 2, 4)), rng.choice((0, 0, 3))
        return self.operators.order(
            rng.choice(at), self.node, verb, timeout_s=timeout_s, interval_s=1, rate=rate, **order
        )

    def _give(self, verb, **order):
        """Give an order and wait for its end."""
        command = self._order(verb, **order)
        until = self.world.now + PATIENCE_S
        while command is not None and self.world.now < until:
            self._look()
            if command.is_over() or command.is_lost() or self.node.is_gone:
                break
            yield LOOK_S
        return command

    def _look(self):
        """See whether nobody has the node as a member any more."""
        others = [other for other in self._others() if other.up]
        if not others or any(self.node.name in other.core.mesh.peers for other in others):
            return
        state = self.node.core.leaver.job.state if self.node.up else stored_state(self.node.storage, self.node.name)
        self._is_gone(state not in (State.LEAVING, State.LEFT))

    def _note_orphans(self):
        """See whose sessions get new homes since others remove the node, though it may live on or come back before."""
        for other in self._others():
            removal = other.core.leave_desk._removals.get(self.node.name) if other.up else None
            if removal is not None:
                clients = other.core.mesh.registry.clients_of(self.node.name)
                self.world.orphans |= {*removal._assigned, *[client_id for client_id, _home in clients]}

    def _process_ended(self, node):
        self._is_gone(bool(node.core.removed))

    def _is_gone(self, is_removed):
        node = self.node
        if node.is_gone:
            return
        node.is_gone = True
        self._is_removed = is_removed
        self.world.note(f"{node.name} {'is removed' if is_removed else 'leaves'}")
        self.world.count("nodes removed" if is_removed else "nodes left")
        if is_removed:
            # What it has from now on as well may come twice.
            self.world.orphans |= {session.client_id for session in sessions_of(restored(node))}

    # Its clients.

    def _others(self):
        return [each for each in self.world.members() if each is not self.node]

    def _refuge(self, client):
        """Return where a client goes whose node accepts nobody, or back to it when that is in service again."""
        rng = self._rng
        node = self.node
        if not self._has_begun:
            return None
        accepts = node.up and not node.is_gone and node.core.leaver.job.accepts()
        if client.home is not node:
            returns = client.emigrates and accepts and self.kind in LIVE
            return node if returns and rng.random() < 0.5 else None
        if accepts or (not node.is_gone and rng.random() < 0.6):
            return None
        return rng.choice(self._others())


def restored(node):
    """Return a queue owner that knows what is on the disk of a node."""
    owner = QueueOwner(node.settings, node.storage.survivor(), NoInterest(), node.store_id, 1 << 20)
    owner.recover(node.clocks.monotonic(), node.clocks.utc_ms())
    return owner


def sessions_of(owner):
    """Return the sessions of a queue owner, those included that were leaving."""
    return [*owner.draining.all(), *[departure.session for departure in owner.transfers.departures.values()]]


def held(node):
    """Return what the disk of a node holds: (client id or shared filter, payload), or payloads for other nodes."""
    storage = node.storage.survivor()
    owner = restored(node)
    store = SessionStore(storage)
    queues = {session.number: session.client_id for session in sessions_of(owner)}
    queues.update({group.number: name.decode() for name, group in owner._groups.all.items()})
    found = under_way(node)
    for number, name in queues.items():
        found |= {(name, delivery.message.payload) for delivery in store.read(number, 0, EVERYTHING)}
    return found


def under_way(node):
    """Return the payloads on the disk of a node that other nodes have not had."""
    outboxes = recover_outboxes(node.storage.survivor(), Turn(), Clock(0.0, 0)).values()
    return {stored.message.payload for outbox in outboxes for stored in outbox.read(0, EVERYTHING, EVERYTHING)}
