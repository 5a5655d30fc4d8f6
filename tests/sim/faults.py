"""What goes wrong while there is load: crashes, partitions, wrong clocks, dying listeners, clients that come and go."""

from virtual_clients import DISCONNECT_WITH_WILL, ONLINE
from virtual_node import PLANNED_RESTART_S

from cluster.readiness import AVAILABLE

MINUTES_MS = 5 * 60_000
HOURS_MS = 6 * 3_600_000
DECADES_MS = 30 * 365 * 86_400_000
# A clock that nobody corrects is off by a tenth of that.
RATE_ERROR_MAX = 0.001


def set_clocks(world):
    """Let the clocks of all nodes be wrong by minutes, and maybe one by hours or decades."""
    rng = world.rng
    for node in world.nodes.values():
        world.count("skews")
        node.clocks.ahead_ms = int(rng.uniform(-MINUTES_MS, MINUTES_MS))
        node.clocks.rate = 1.0 + rng.uniform(-RATE_ERROR_MAX, RATE_ERROR_MAX)
    if rng.random() < 0.6:
        world.count("far skews")
        rng.choice(list(world.nodes.values())).clocks.ahead_ms += rng.choice((-HOURS_MS, HOURS_MS, DECADES_MS))


class Faults:
    """The faults of a seed, spread over `load_s` seconds from now on."""

    def __init__(self, world, population, load_s):
        self.world = world
        self.population = population
        self.load_s = load_s

    def plan(self):
        """Draw everything."""
        self._plan_nodes()
        self._plan_network()
        rng = self.world.rng
        population = self.population
        for _ in range(rng.randint(10, 20)):
            self._at_some_time(self._disturb, rng.choice(population.clients))
        for mortal in population.mortals:
            for _ in range(rng.randint(2, 5)):
                self._at_some_time(self._strike, mortal)
        for roamer in population.roamers:
            for _ in range(rng.randint(2, 6)):
                self._at_some_time(self._strike, roamer)
        for racers in population.races:
            for _ in range(rng.randint(2, 4)):
                self._at_some_time(racers.race)
        for worker in population.workers:
            for _ in range(rng.randint(1, 3)):
                self._at_some_time(self._vex, worker)
        if rng.random() < 0.5:
            # A whole crew goes, of one node or of all, and what comes meanwhile waits for whoever is back first.
            home = rng.choice((None, rng.choice(population.workers).home))
            at = rng.uniform(0.0, self.load_s)
            for worker in population.workers:
                if home in (None, worker.home):
                    self.world.later(at, worker.stay_away, rng.uniform(2.0, 5.0))
                    self.world.later(at, worker.disconnect, rng.random() < 0.5)

    def _at_some_time(self, call, *arguments):
        self.world.later(self.world.rng.uniform(0.0, self.load_s), call, *arguments)

    def _plan_nodes(self):
        world = self.world
        rng = world.rng
        nodes = list(world.nodes.values())
        for _ in range(rng.randint(2, 4)):
            self._at_some_time(self.crash, rng.choice(nodes), rng.choice(world.crash_points))
        if rng.random() < 0.2:
            at = rng.uniform(0.0, self.load_s)
            for node in nodes:
                world.later(at + rng.uniform(0.0, 0.05), self.crash, node, rng.choice(world.crash_points))
        if world.readiness != AVAILABLE:
            for _ in range(rng.randint(0, 2)):
                self._at_some_time(self.stop, rng.choice(nodes))
        if world.readiness != AVAILABLE or rng.random() < 0.3:
            self._plan_splits(nodes)
        for _ in range(rng.randint(1, 3)):
            node = rng.choice(nodes)
            self._at_some_time(node.listener_died, rng.randrange(len(node.listeners)))
        if rng.random() < 0.5:
            self._at_some_time(self.stall, rng.choice(nodes), rng.uniform(0.2, 6.0))
        if rng.random() < 0.4:
            self._at_some_time(self._slow_down, rng.choice(nodes), rng.uniform(1.0, 8.0), rng.uniform(0.02, 0.2))
        if world.stats["skews"] and rng.random() < 0.5:
            self._at_some_time(self._set_clock, rng.choice(nodes), rng.uniform(-120.0, 120.0))

    def _plan_splits(self, nodes):
        """Cut one part of the nodes off from the other for longer than it takes to be missed."""
        world = self.world
        rng = world.rng
        for _ in range(rng.randint(1, 2)):
            some = rng.sample(nodes, rng.randint(1, len(nodes) // 2))
            at = rng.uniform(0.0, self.load_s / 2)
            world.count("splits")
            for one in some:
                for other in nodes:
                    if other not in some:
                        world.later(at, world.network.partition, one.name, other.name, True)
                        world.later(at + rng.uniform(4.0, 9.0), world.network.heal, one.name, other.name)

    def _plan_network(self):
        world = self.world
        rng = world.rng
        network = world.network
        for _ in range(rng.randint(1, 3)):
            one, other = rng.sample(list(world.nodes), 2)
            at = rng.uniform(0.0, self.load_s)
            world.later(at, network.partition, one, other, rng.random() < 0.6)
            world.later(at + rng.choice((rng.uniform(0.05, 1.0), rng.uniform(1.0, 9.0))), network.heal, one, other)
        if rng.random() < 0.3:
            self._plan_flapping(*rng.sample(list(world.nodes), 2))
        for _ in range(rng.randint(1, 4)):
            breaker = rng.choice((network.break_bulk, network.break_bulk, network.break_connection))
            self._at_some_time(breaker, *rng.sample(list(world.nodes.values()), 2))

    def _plan_flapping(self, one, other):
        """Let a link come and go faster than anybody can tell."""
        world = self.world
        rng = world.rng
        world.count("flapping links")
        at = rng.uniform(0.0, self.load_s / 2)
        both = rng.random() < 0.5
        for _ in range(rng.randint(4, 10)):
            world.later(at, world.network.partition, one, other, both)
            at += rng.choice((rng.uniform(0.05, 0.5), rng.uniform(0.5, 3.5)))
            world.later(at, world.network.heal, one, other)
            at += rng.uniform(0.05, 1.0)

    def crash(self, node, point):
        """Crash a node at a point of a turn, and start it again after a while."""
        node.crash(point)
        self.world.later(self.world.rng.choice((0.1, 1.0, 6.0)) * (0.5 + self.world.rng.random()), self.start, node)

    def stop(self, node):
        """Stop a node as it was told to, and start it again within the time or after it."""
        if node.up and not node.crash_point:
            self.world.count("planned stops")
            node.core.announce_stop()
            node.planned_until = self.world.now + PLANNED_RESTART_S
            node.wake(0.0)
            self.world.later(0.3, self._stopped, node, node.life)

    def _stopped(self, node, life):
        if node.up and node.life == life:
            node.kill()
            self.world.later(self.world.rng.choice((0.5, 4.0, 9.0)), self.start, node)

    def start(self, node):
        """Start a node, as soon as it is down."""
        if node.stays_down or node.is_gone:
            return
        if not node.up:
            node.start()
        elif node.crash_point:
            self.world.later(0.5, self.start, node)

    def stall(self, node, seconds):
        """Let a node do nothing for a while."""
        self.world.note(f"{node.name} stands still for {seconds:.1f} s")
        self.world.count("stalls")
        node.stalled_until = self.world.now + seconds
        self.world.trouble()
        self.world.later(seconds, self.world.trouble)

    def _slow_down(self, node, seconds, turn_s):
        self.world.note(f"{node.name} takes up to {turn_s:.2f} s over each turn for {seconds:.1f} s")
        self.world.count("slow nodes")
        node.slow_until = self.world.now + seconds
        node.turn_s = turn_s

    def _set_clock(self, node, seconds):
        self.world.note(f"the clock of {node.name} is set {seconds:.1f} s ahead")
        self.world.count("clocks set")
        node.clocks.set_ahead(int(1000 * seconds))

    def _disturb(self, client):
        """Let a client do one of the things that clients do."""
        rng = self.world.rng
        choice = rng.random()
        publishes = not client.ever_wanted
        if client.contends:
            client.disconnect(True, rng.random() < 0.4)
            return
        if choice < 0.4:
            client.disconnect(True, rng.random() < 0.4)
        elif choice < 0.6:
            client.disconnect(False)
        elif choice < 0.75:
            client.pause(rng.uniform(0.1, 3.0))
        elif client.steady or client.shares or publishes:
            client.disconnect(True)
        elif choice < 0.8 and client.persistent and client.state == ONLINE:
            self._start_clean(client)
        elif choice < 0.9 and client.wanted:
            client.unsubscribe(rng.choice(sorted(client.wanted)))
        else:
            client.subscribe(rng.choice(self.population.filters), rng.choice((1, 2)))

    def _start_clean(self, client):
        self.world.count("clean starts")
        client.comes_back = False
        client.disconnect(False)
        client.comes_back = True
        client.connect(True)

    def _strike(self, mortal):
        """End a mortal's connection in one of many ways; it may be back before its will is due, or long after."""
        rng = self.world.rng
        if rng.random() < 0.4:
            mortal.stay_away(rng.choice((rng.uniform(1.0, 6.0), rng.uniform(12.0, 20.0))))
        choice = rng.random()
        if choice < 0.6:
            mortal.disconnect(True, rng.random() < 0.4)
        elif choice < 0.85:
            mortal.disconnect(False)
        else:
            mortal.disconnect(False, reason=DISCONNECT_WITH_WILL)

    def _vex(self, worker):
        """Let a member of a group go, in one of many ways, and come back."""
        rng = self.world.rng
        choice = rng.random()
        if choice < 0.4:
            worker.disconnect(True, rng.random() < 0.4)
        elif choice < 0.5 or worker.steady:
            worker.stay_away(rng.uniform(0.5, 4.0))
            worker.disconnect(False)
        elif choice < 0.7 and worker.state == ONLINE:
            self._start_clean(worker)
        else:
            (group,) = worker.ever_wanted
            worker.unsubscribe(group)
            self.world.later(rng.uniform(0.1, 4.0), worker.subscribe, group, 1)
