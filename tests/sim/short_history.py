"""Short histories: a session moves between a few members while a node joins, and something goes wrong just then.

The workload meets everything, and so each meeting of these three rarely. Here there is little else, and most of what
happens waits for a moment of the move: that the new home has the head, that the old one has said its last word, that
the node which joins has heard of it. Then that joins, the client goes on to the next node, or a fault begins, at once
or a little later. `run(seed)` is the whole of it.
"""

from collections import defaultdict

import checkers
import convergence
from faults import Faults
from ledger import matches
from scene import Scene
from virtual_clients import ONLINE
from virtual_node import CRASH_POINTS, NOW
from workload import Failure

from broker.core.settings import OwnerSettings
from cluster.frames import FrameType
from cluster.move_frames import STATE, unpack_move

SETTLE_S = 60.0
# After so long it is seen again whether a moment has come.
POLL_S = 0.01
FILTERS = ({b"a/#": 2}, {b"a/b": 1}, {b"a/b": 2, b"a/+": 1}, {b"a/b": 2})
TOPICS = (b"a/b", b"a/b", b"a/c")
LATE_PUBLISHER = "late publisher"
# The property of a test that has the counts of its histories, as of the workload's.
COUNTED = "short histories"
HOME = "home"
STUB = "stub"


def leaving_at(node, client):
    """Return the stub of a client's session at a node, None if it has none."""
    return node.core.moving.departures.leavings.get(client.client_id)


def is_move(frame):
    """Say whether a frame is of an old home to a new one."""
    return len(frame) > 1 and frame[1] == FrameType.MOVE


def is_state(frame):
    """Say whether a frame has the word up to where everything was passed on, which may be the last one."""
    return is_move(frame) and any(item.kind == STATE for item in unpack_move(frame, 0.0))


def is_answer(frame):
    """Say whether a frame is of a new home to an old one."""
    return len(frame) > 1 and frame[1] == FrameType.MOVE_ACK


class Promises:
    """To which sessions a message is promised, which is decided when it is published first.

    Its node has to know, then or earlier, what the session wants at every node that has anything of it: at its home,
    and at each old one, whose stub passes on what comes there. What a node has known so it knows wherever the session
    goes. A node that is down has what it had.
    """

    def __init__(self, world, clients):
        self._world = world
        self._clients = clients
        # By client id, what each node has of the session.
        self._parts = defaultdict(dict)
        # (client, node): that knows what this wants.
        self._known = set()

    def parts(self, client):
        """Return what of a session is where, HOME or STUB by the names of nodes."""
        parts = self._parts[client.client_id]
        for node in self._world.running_nodes():
            if node.core.owner.session(client.client_id) is not None:
                parts[node.name] = HOME
            elif leaving_at(node, client) is not None:
                parts[node.name] = STUB
            else:
                parts.pop(node.name, None)
        return parts

    def decide(self, publisher, message):
        """Write into a message, which its publisher sends now, to whom it is promised; publishers stay at a node."""
        node = publisher.home
        if not message.sends:
            message.home = node
            owed = [client.name for client in self._clients if node.up and self._is_owed(node, client, message)]
            message.promised = set(owed)

    def _is_owed(self, node, client, message):
        wants = any(matches(topic_filter, message.topic) for topic_filter in client.subscribed)
        if not client.session_exists or not wants:
            return False
        pair = (client, node)
        is_member = not node.is_alone or node.core.mesh.peers
        if pair not in self._known and is_member and (self._all_know(node, client) or self._knows(node, client)):
            self._known.add(pair)
        return pair in self._known

    def _all_know(self, node, client):
        """Say whether every node knows the session at its home, as the workload asks, and this one every stub too.

        Without the latter what everybody knows of the home would not say that this node's tables are complete.
        """
        home = client.home
        for other in self._world.nodes.values():
            is_told = other is home or (other.up and checkers.knows_session(other, client, home.name))
            if other.is_alone or not is_told:
                return False
        return self._knows_interest(node, client, set(self.parts(client)) - {node.name})

    def _knows(self, node, client):
        """Say whether a node knows the session wherever it is, or anybody else takes it to be."""
        parts = self.parts(client)
        if parts == {node.name: HOME}:
            return True
        registries = [other.core.mesh.registry for other in self._world.running_nodes()]
        told = {home.node for registry in registries for home in registry.homes(client.client_id)}
        elsewhere = (told | set(parts)) - {node.name}
        homes = [name for name in elsewhere if parts.get(name) == HOME]
        return (
            bool(elsewhere)
            and HOME in parts.values()
            and self._knows_interest(node, client, elsewhere)
            and all(checkers.knows_session(node, client, name) for name in homes)
        )

    def _knows_interest(self, node, client, names):
        interest = node.core.mesh.interest
        return all(set(client.subscribed) <= set(interest.persistent_filters(name)) for name in names)


class Moments:
    """What a plan may wait for: how far a session has moved, and what the late node, which joins, has heard of it."""

    def __init__(self, world, client, late):
        self._world = world
        self._client = client
        self._late = late
        self._first_home = client.home

    def _leavings(self):
        found = [leaving_at(node, self._client) for node in self._world.running_nodes()]
        return [leaving for leaving in found if leaving is not None]

    def stub(self):
        """An old home has a stub."""
        return bool(self._leavings())

    def head(self):
        """A new home has the head."""
        return any(leaving.head_taken for leaving in self._leavings())

    def last_word(self):
        """An old home has said its last word, and does not know yet that it was taken."""
        return any(leaving.said_ended for leaving in self._leavings())

    def no_old_home(self):
        """A new home waits for no old one any more, but still for what others know."""
        sessions = [node.core.owner.session(self._client.client_id) for node in self._world.running_nodes()]
        return any(session and session.arrival and not session.arrival.donors for session in sessions)

    def over(self):
        """The client has been at another node, and no stub is left."""
        return self._client.home is not self._first_home and not self._leavings()

    def late_heard(self):
        """A member hears the late node."""
        return any(self._late.name in node.core.mesh.peers for node in self._world.running_nodes())

    def late_knows(self):
        """The late node knows a home of the session."""
        return self._late.up and self._late.core.mesh.registry.find(self._client.client_id) is not None

    def late_switched(self):
        """The late node has told an old home from where on it sends to the new one."""
        return any(self._late.store_id in leaving.switched for leaving in self._leavings())

    # What waits for which, twice for what is to be met more often.

    def of_joins(self):
        """Return the moments at which the late node may join."""
        twice = [self.last_word, self.no_old_home]
        return [self.stub, self.head, self.over, *twice, *twice]

    def of_moves(self):
        """Return the moments at which the client may go on."""
        return [self.last_word, self.no_old_home, self.over, self.late_heard, self.late_knows, self.late_switched]

    def of_faults(self):
        """Return the moments at which something may go wrong."""
        of_late_node = [self.late_heard, self.late_knows, self.late_switched]
        return [self.head, self.last_word, self.no_old_home, self.over, *of_late_node, *of_late_node]


class ShortHistory:
    """The plan of a seed: some members, a client that moves between them, the late node, and publishers at each."""

    def __init__(self, seed, trace=None, prepare=None):
        count = 2 if seed % 8 == 3 else 4 if seed % 12 == 5 else 3
        settings = OwnerSettings(max_inflight_messages=(1, 3, 20)[seed // 4 % 3])
        self.scene = Scene(seed, count, settings, trace=trace)
        self.world = world = self.scene.world
        self.rng = world.rng
        self.members = list(self.scene.nodes)
        self.late = self.scene.add_node("late@h")
        self.late.is_alone = True
        self.nodes = [*self.members, self.late]
        # Those that a promise is made to; the first one moves.
        self.clients = []
        self.publishers = []
        self.promises = Promises(world, self.clients)
        # It plans nothing here, and does what it is asked for.
        self.faults = Faults(world, None, 0.0)
        self._asked = None
        self._joins = False
        self._is_over = False
        self._waiting = []
        world.validate_every = 50
        world.promises = self.promises.decide
        if prepare is not None:
            prepare(world)

    def run(self):
        """Go through all of it; return the counts of what happened."""
        self._make_clients()
        self.world.run(self.rng.uniform(0.0, 0.5))
        span_s = self.rng.choice((3.0, 4.5, 7.0))
        self._plan_publishes(span_s)
        self._plan(span_s)
        self.world.run(span_s)
        self._heal()
        self._judge()
        return self._count()

    def _make_clients(self):
        rng, scene = self.rng, self.scene
        for number in range(rng.choice((1, 1, 1, 2, 2))):
            client = scene.client(f"client{number}", rng.choice(self.members), rng.choice(FILTERS))
            self.clients.append(client)
        for node in self.nodes:
            name = LATE_PUBLISHER if node is self.late else f"publisher of {node.name}"
            self.publishers.append(scene.client(name, node))
        for client in [*self.clients, *self.publishers]:
            scene.connect(client)
            client.comes_back = True
        self.mover = self.clients[0]
        self.mover.emigrates = True
        self.moments = Moments(self.world, self.mover, self.late)

    # The plan.

    def _plan_publishes(self, span_s):
        rng = self.rng
        every_s, late_every_s = rng.choice((0.15, 0.3, 0.6)), rng.choice((0.06, 0.16, 0.3))
        for publisher in self.publishers:
            rate = 1 / (late_every_s if publisher.home is self.late else every_s)
            at = rng.expovariate(rate)
            while at < span_s:
                self.world.later(at, publisher.publish, rng.choice(TOPICS), rng.choice((1, 2)))
                at += rng.expovariate(rate)

    def _plan(self, span_s):
        rng, moments = self.rng, self.moments
        first_s = rng.uniform(0.0, 1.0)
        self.world.later(first_s, self._move)
        self._plan_one(first_s, moments.of_joins(), self._join)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            self._plan_one(first_s, moments.of_moves(), self._move)
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5))):
            self._plan_one(first_s, moments.of_faults(), self._fault)
        self.world.later(span_s, self._join)
        self._look()

    def _plan_one(self, first_s, moments, call):
        """Have something done around the first move, or when one of some moments has come, or a little later."""
        rng = self.rng
        if rng.random() < 0.25:
            self.world.later(max(0.0, first_s + rng.uniform(-0.6, 1.0)), call)
        else:
            delay_s = rng.choice((0.0, rng.uniform(0.0, 0.03), rng.uniform(0.0, 0.3), rng.uniform(0.0, 1.5)))
            self._waiting.append((rng.choice(moments), delay_s, call))

    def _look(self):
        """See which moments have come."""
        waiting, self._waiting = self._waiting, []
        for moment, delay_s, call in waiting:
            if moment():
                self.world.note(f"moment {moment.__name__}: {call.__name__} in {delay_s:.3f} s")
                self.world.later(delay_s, call)
            else:
                self._waiting.append((moment, delay_s, call))
        if self._waiting and not self._is_over:
            self.world.later(POLL_S, self._look)

    # The client moves, and the late node joins.

    def _move(self):
        """Let the client go to another node, and maybe leave that soon."""
        if self._is_over:
            return
        rng, mover = self.rng, self.mover
        places = [node for node in self.members if node is not mover.home]
        if not self.late.is_alone and rng.random() < 0.2:
            places.append(self.late)
        mover.comes_back = False
        mover.disconnect(mover.state != ONLINE or rng.random() < 0.5, rng.random() < 0.3)
        mover.home = rng.choice(places)
        mover.come_back()
        if rng.random() < 0.65:
            self.world.later(rng.choice((rng.uniform(0.0, 0.1), rng.uniform(0.0, 1.0))), self._go_away)

    def _go_away(self):
        if not self._is_over and self.mover.state == ONLINE:
            self.mover.stay_away(self.rng.uniform(0.5, 4.0))
            self.mover.disconnect(self.rng.random() < 0.5)
        elif not self._is_over:
            self.world.later(0.05, self._go_away)

    def _join(self):
        if not self._joins:
            self._joins = True
            if self.rng.random() < 0.6:
                self._deafen()
            self._ask()

    def _deafen(self):
        """Let the late node not hear some members at first, mostly those that have anything of the session."""
        rng, late = self.rng, self.late
        having = [node for node in self._having() if node is not late] or self.members
        some = rng.choice((having, [rng.choice(having)], [rng.choice(having)], [rng.choice(self.members)]))
        for one in some:
            seconds = rng.choice((rng.uniform(0.1, 1.5), rng.uniform(1.0, 6.0)))
            self._cut(*rng.choice(((one, late), (one, late), (late, one))), seconds)
            if rng.random() < 0.4:
                for other in [node for node in self.members if node not in some]:
                    self._cut(one, other, seconds * rng.choice((0.5, 1, 1.3)))

    def _ask(self):
        """Have the late node ask to be taken in, again and again until it is."""
        late = self.late
        if late.up and late.core.mesh.peers:
            late.is_alone = False
            self.world.count("late joins")
            self.world.note(f"{late.name} is a member")
            return
        if late.up and (late.core is not self._asked or late.core.take_join_result() is not None):
            self._asked = late.core
            self.scene.begin_join(late, self.rng.choice(self.members))
        self.world.later(0.02 if late.up else 0.2, self._ask)

    # Faults.

    def _fault(self):
        if not self._is_over:
            kinds = self._stall, self._cut_two, self._cut_off, self._crash, self._lose, self._flap
            self.rng.choice(kinds)()

    def _seconds(self):
        return self.rng.choice((self.rng.uniform(0.05, 1.0), self.rng.uniform(1.0, 7.0)))

    def _having(self):
        """Return the nodes that have anything of the client's session."""
        return [self.world.nodes[name] for name in self.promises.parts(self.mover)]

    def _victim(self):
        """Draw a node, mostly one that has anything of the session."""
        having = self._having()
        return self.rng.choice(having if having and self.rng.random() < 0.8 else self.nodes)

    def _stall(self):
        self.faults.stall(self._victim(), self._seconds())

    def _crash(self):
        self.faults.crash(self._victim(), self.rng.choice((NOW, NOW, *CRASH_POINTS)))

    def _cut(self, source, target, seconds):
        """Cut a node off from another one, or both from each other."""
        network = self.world.network
        network.partition(source.name, target.name, self.rng.random() < 0.6)
        self.world.later(seconds, network.heal, source.name, target.name)

    def _cut_two(self):
        self._cut(*self.rng.sample(self.nodes, 2), self._seconds())

    def _cut_off(self):
        """Cut one or two nodes off from all others."""
        some, seconds = self.rng.sample(self.nodes, self.rng.choice((1, 2))), self._seconds()
        self.scene.split(some, [node for node in self.nodes if node not in some])
        for one in some:
            for other in self.nodes:
                self.world.later(seconds, self.world.network.heal, one.name, other.name)

    def _lose(self):
        """Lose all frames of a kind that moves are made of."""
        is_lost, seconds = self.rng.choice((is_state, is_move, is_answer)), self._seconds()
        self.world.note(f"frames are lost for {seconds:.1f} s: {is_lost.__name__}")
        self.world.network.lose_frame = is_lost
        self.world.later(seconds, self._lose_nothing)

    def _lose_nothing(self):
        self.world.network.lose_frame = None

    def _flap(self):
        """Reset the connections to a node again and again: what was sent last may be heard once more each time."""
        node, network = self._victim(), self.world.network
        for other in self.nodes:
            for _ in range(3 if other is not node else 0):
                reset = self.rng.choice((network.break_bulk, network.break_connection))
                self.world.later(self.rng.uniform(0.0, 1.0), reset, other, node)

    # Afterwards.

    def _heal(self):
        """End all faults; what is published then, while everybody comes back, arrives as well."""
        world = self.world
        world.note("healing")
        self._is_over = True
        self._lose_nothing()
        world.network.heal_all()
        for node in self.nodes:
            node.crash_point = ""
            self.faults.start(node)
        world.run(self.rng.choice((0.0, 0.3, 4.0)))
        for client in self.clients:
            client.come_back()
        for publisher in self.publishers:
            publisher.publish(b"a/b", self.rng.choice((1, 2)))
        settled = world.run(SETTLE_S, lambda: not self._unsettled())
        world.check(settled, f"healing did not end within {SETTLE_S:.0f} s: {self._unsettled()}")
        world.run(1.0)
        world.check(not self._unsettled(), f"something began again: {self._unsettled()}")

    def _unsettled(self):
        world = self.world
        return convergence.unsettled(world, self.scene.clients) or convergence.queues_empty(world)

    def _judge(self):
        world, clients, ledger = self.world, self.scene.clients, self.scene.ledger
        for node in self.nodes:
            node.core.validate()
            convergence.check_store(world, node)
            convergence.check_tables(world, node)
            world.check(not node.storage.snapshot()["outbox"], f"{node.name} stores what every other node has")
        checkers.check_delivery(world, clients, ledger)
        checkers.check_copies(world, clients, ledger)
        # If a node joins in the middle of a move, what went to the stub alone may be overtaken by what goes to the new
        # home directly.
        checkers.check_order(world, clients, ledger, unordered=(LATE_PUBLISHER,))
        for message in ledger.published.values():
            answered = message.acked or message.refused
            world.check(answered, f"message {message.number} of {message.publisher} was never answered")

    def _count(self):
        stats = self.world.stats
        stats["moves"] += sum(node.core.moving.counts()["moves_left"] for node in self.nodes)
        published = self.scene.ledger.published.values()
        stats["late promises"] = sum(len(each.promised) for each in published if each.publisher == LATE_PUBLISHER)
        return stats


def describe(stats):
    """Return the counts that show what a run is worth."""
    names = ("promises", "late promises", "late joins", "moves", "revivals", "crashes", "stalls", "partitions")
    return ", ".join(f"{stats[name]} {name}" for name in names)


def run(seed, trace=None, prepare=None):
    """Run one seed, and return its counts; raise Failure if a promise was broken."""
    history = ShortHistory(seed, trace, prepare)
    try:
        return history.run()
    except Exception as error:
        raise Failure(
            f"history {seed} at {history.world.now:.3f} s: {type(error).__name__}: {error}\n"
            f"see it again: python -m pytest tests/sim --history {seed}"
        ) from error
