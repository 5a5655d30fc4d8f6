"""The workload: what one seed's nodes and clients go through, from joining to the final count.

    join      the nodes become a cluster, one after another by command or all at once by discovery
    load      publishes, and meanwhile crashes, partitions, resets, dying listeners, clients that come and go
    heal      everything that can run does; some persistent sessions stay away, so that queues hold something
    restart   every node at once, then those sessions come back
    count     the checkers judge the whole history

`run(seed)` is the whole of it; the result holds the counts of what happened, so that nobody mistakes a tiny workload
for proof.
"""

import checkers
from virtual_clients import Client, Ledger
from world import CRASH_POINTS, SimulationError, World

from broker.core.settings import OwnerSettings

JOIN_S = 60.0
HEAL_S = 90.0
LOAD_S = 16.0
LINES = (b"a/b", b"a/c", b"a/b/c", b"b", b"b/x/y", b"c//d")
FILTERS = (b"#", b"a/#", b"a/+", b"a/b", b"+/b", b"b/#", b"+", b"b/+/y", b"c/+/d", b"+/+/#")


class Failure(Exception):
    """A seed's history broke a promise; the text says how to see it again."""


class Result:
    """What one seed went through."""

    def __init__(self, world):
        self.seed = world.seed
        self.stats = world.stats
        self.digest = world.digest.hexdigest()

    def line(self):
        """Return the counts in one line."""
        return describe(self.stats)


def describe(stats):
    """Return the counts that show what a run is worth."""
    names = (
        "publishes QoS 0",
        "publishes QoS 1",
        "acks",
        "promises",
        "deliveries",
        "duplicates",
        "crashes",
        "listener deaths",
        "partitions",
        "heals",
        "connections lost",
        "bulk resets",
        "client drops",
        "publishes resent",
        "frames lost",
        "frames duplicated",
        "turns",
    )
    return ", ".join(f"{stats[name]} {name}" for name in names)


class Workload:
    """The plan of a seed and its clients."""

    def __init__(self, seed, trace=None, prepare=None):
        self.world = World(seed, trace)
        self.ledger = Ledger()
        self.clients = []
        world = self.world
        rng = world.rng
        world.promises = lambda publisher, message: checkers.promised_sessions(world, self.clients, publisher, message)
        count = 2 if seed % 10 == 3 else 5 if seed % 20 == 7 else 3
        self.names = [f"node{number}@h" for number in range(1, count + 1)]
        self.discovers = seed % 2 == 0
        self.bounded = seed % 8 == 5
        # The store loses its last second now and then: then nothing is promised but that all goes on.
        world.power_loss = seed % 16 == 9
        # Large messages make many frames, and frames of several parts.
        large = seed % 16 == 2
        world.padding_bytes = lambda: rng.choice((0, 0, 0, 1000, 100_000)) if large else 0
        self.settings = OwnerSettings(
            max_inflight_messages=rng.choice((1, 3, 20)),
            max_online_messages=15 if self.bounded else -1,
            max_offline_messages=10 if self.bounded else -1,
            listener_window_bytes=rng.choice((300, 2000, 1 << 20)),
        )
        if prepare is not None:
            prepare(world)

    def run(self):
        """Go through all phases."""
        world = self.world
        world.note(f"seed {world.seed}: {len(self.names)} nodes by {'discovery' if self.discovers else 'join'}")
        self._join()
        self._make_clients()
        self._load()
        self._heal()
        self._judge_store()
        self._restart()
        self._judge()
        world.stats["turns"] = world.turns
        for node in world.nodes.values():
            counted = node.link_counts()
            for name in ("link_duplicates", "link_gap", "link_resent_frames", "link_stale_frames"):
                world.count(name, counted[name])
        return Result(world)

    # Joining.

    def _join(self):
        world = self.world
        rng = world.rng
        addresses = [(name, f"{name}:1") for name in self.names]
        for name in self.names:
            others = [pair for pair in addresses if pair[0] != name] if self.discovers else []
            world.add_node(name, self.settings, rng.choice((1, 2, 3)), others)
        nodes = list(world.nodes.values())
        if self.discovers:
            for node in nodes:
                world.later(rng.choice((0.0, rng.uniform(0.0, 3.0))), node.start)
            if rng.random() < 0.3:
                victim = rng.choice(nodes)
                world.later(rng.uniform(0.5, 3.5), self._bounce, victim)
        else:
            for node in nodes:
                node.start()
            joiners = nodes[1:]
            if rng.random() < 0.5:
                for node in joiners:
                    self._join_one(node, nodes[0])
                self._wait(JOIN_S, lambda: self._results(joiners), "the joins")
            else:
                for place, node in enumerate(joiners):
                    self._join_one(node, nodes[rng.randint(0, place)])
                    self._wait(JOIN_S, lambda node=node: self._results([node]), "a join")
        self._wait(JOIN_S, lambda: checkers.membership_converged(world), "joining")
        world.note("joined")

    def _bounce(self, node):
        if node.up:
            node.kill()
            self.world.later(self.world.rng.uniform(0.1, 3.0), self._start, node)

    def _join_one(self, node, target):
        node.join_result = None
        node.core.join(target.name, target.address, self.world.now)
        node.wake(0.0)

    def _results(self, nodes):
        for node in nodes:
            if node.join_result is None:
                node.join_result = node.core.take_join_result()
            if node.join_result is None:
                return f"{node.name} has not heard whether it joined"
            self.world.check(node.join_result.joined, f"{node.name} could not join: {node.join_result.text}")
        return ""

    def _wait(self, seconds, wrong, what):
        """Run until `wrong` says ""; fail with what it says when time is up."""
        if not self.world.run(seconds, lambda: not wrong()):
            raise SimulationError(f"{what} did not end within {seconds:.0f} s: {wrong()}")

    # Load.

    def _make_clients(self):
        world = self.world
        rng = world.rng
        nodes = list(world.nodes.values())
        for index in range(6):
            filters = {
                topic_filter: rng.choice((0, 1, 1, 1)) for topic_filter in rng.sample(FILTERS, rng.randint(1, 3))
            }
            self._make_client(f"keeper{index}", nodes[index % len(nodes)], True, filters)
        for index in range(3):
            filters = {topic_filter: rng.choice((0, 1)) for topic_filter in rng.sample(FILTERS, rng.randint(1, 2))}
            self._make_client(f"visitor{index}", rng.choice(nodes), False, filters)
        self.publishers = []
        for index in range(4):
            publisher = self._make_client(f"publisher{index}", nodes[index % len(nodes)], rng.random() < 0.5, {})
            publisher.lines = rng.sample(LINES, 3)
            self.publishers.append(publisher)

    def _make_client(self, name, home, persistent, filters):
        rng = self.world.rng
        client = Client(self.world, self.ledger, name, home, rng.choice((4, 5)), persistent, filters)
        client.receive_maximum = rng.choice((1, 5, 0))
        client.ack_delay_s = rng.choice((0.0, 0.01, 0.5))
        self.clients.append(client)
        self.world.later(rng.uniform(0.0, 1.0), client.connect)
        return client

    def _load(self):
        world = self.world
        rng = world.rng
        world.run(rng.uniform(0.0, 2.0))
        for publisher in self.publishers:
            self._plan_publishes(publisher)
        self._plan_faults()
        world.run(LOAD_S)

    def _plan_publishes(self, publisher):
        rng = self.world.rng
        at = 0.0
        while at < LOAD_S:
            burst = rng.choice((1, 1, 2, 5, 15))
            for _ in range(burst):
                topic = rng.choice(publisher.lines)
                self.world.later(at, publisher.publish, topic, rng.choice((0, 1, 1)))
                at += 0.002 * rng.random()
            at += rng.expovariate(burst / 1.0) * burst * 0.18 * burst

    def _plan_faults(self):
        world = self.world
        rng = world.rng
        nodes = list(world.nodes.values())
        for _ in range(rng.randint(2, 4)):
            world.later(rng.uniform(0.0, LOAD_S), self._crash, rng.choice(nodes), rng.choice(CRASH_POINTS))
        if rng.random() < 0.2:
            at = rng.uniform(0.0, LOAD_S)
            for node in nodes:
                world.later(at + rng.uniform(0.0, 0.05), self._crash, node, rng.choice(CRASH_POINTS))
        for _ in range(rng.randint(1, 3)):
            one, other = rng.sample(self.names, 2)
            at = rng.uniform(0.0, LOAD_S)
            world.later(at, world.network.partition, one, other, rng.random() < 0.6)
            world.later(
                at + rng.choice((rng.uniform(0.05, 1.0), rng.uniform(1.0, 9.0))), world.network.heal, one, other
            )
        for _ in range(rng.randint(1, 3)):
            node = rng.choice(nodes)
            world.later(rng.uniform(0.0, LOAD_S), node.listener_died, rng.randrange(len(node.listeners)))
        for _ in range(rng.randint(1, 4)):
            breaker = rng.choice((world.network.break_bulk, world.network.break_bulk, world.network.break_connection))
            world.later(rng.uniform(0.0, LOAD_S), breaker, *rng.sample(nodes, 2))
        if rng.random() < 0.5:
            world.later(rng.uniform(0.0, LOAD_S), self._stall, rng.choice(nodes), rng.uniform(0.2, 6.0))
        for _ in range(rng.randint(5, 12)):
            world.later(rng.uniform(0.0, LOAD_S), self._disturb, rng.choice(self.clients))

    def _crash(self, node, point):
        node.crash(point)
        self.world.later(self.world.rng.choice((0.1, 1.0, 6.0)) * (0.5 + self.world.rng.random()), self._start, node)

    def _start(self, node):
        if not node.up:
            node.start()
        elif node.crash_point:
            self.world.later(0.5, self._start, node)

    def _stall(self, node, seconds):
        self.world.note(f"{node.name} stands still for {seconds:.1f} s")
        self.world.count("stalls")
        node.stalled_until = self.world.now + seconds

    def _disturb(self, client):
        """Let a client do one of the things that clients do."""
        rng = self.world.rng
        choice = rng.random()
        if choice < 0.4:
            client.disconnect(True, rng.random() < 0.4)
        elif choice < 0.6:
            client.disconnect(False)
        elif choice < 0.75:
            client.pause(rng.uniform(0.1, 3.0))
        elif choice < 0.8 and client.persistent and client.state == "online" and client not in self.publishers:
            self.world.count("clean starts")
            client.comes_back = False
            client.disconnect(False)
            client.comes_back = True
            client.connect(True)
        elif choice < 0.9 and client.wanted:
            client.unsubscribe(rng.choice(sorted(client.wanted)))
        elif client not in self.publishers:
            client.subscribe(rng.choice(FILTERS), 1)

    # Afterwards.

    def _heal(self):
        world = self.world
        rng = world.rng
        world.note("healing")
        world.network.heal_all()
        for client in self.clients:
            # A long queue and a client that takes half a second for each message are not what is waited for.
            client.ack_delay_s = min(client.ack_delay_s, 0.01)
        for node in world.nodes.values():
            node.crash_point = ""
            if not node.up:
                node.start()
        self.away = [client for client in self.clients if client.persistent and rng.random() < 0.3]
        self.away = [client for client in self.away if client not in self.publishers]
        for client in self.away:
            client.comes_back = False
            client.disconnect(rng.random() < 0.5)
        # The cluster must get quiet by itself, with messages for those who are away.
        for publisher in self.publishers:
            for _ in range(4):
                publisher.publish(rng.choice(publisher.lines), 1)
        self._wait(HEAL_S, self._unsettled, "healing")
        world.run(1.0)

    def _unsettled(self):
        world = self.world
        return (
            checkers.membership_converged(world)
            or checkers.clients_idle(world, self.clients)
            or checkers.interest_converged(world)
            or checkers.links_idle(world)
            or checkers.online_queues_empty(world)
        )

    def _judge_store(self):
        for node in self.world.nodes.values():
            node.core.validate()
            checkers.check_store(self.world, node)

    def _restart(self):
        world = self.world
        rng = world.rng
        world.note("restarting everything")
        for node in world.nodes.values():
            node.kill()
            world.later(rng.uniform(0.1, 2.0), self._start, node)
        world.run(2.5)
        for client in self.away:
            client.comes_back = True
            client.connect()
        self._wait(HEAL_S, lambda: self._unsettled() or checkers.queues_empty(world), "the last restart")
        self._judge_store()
        for node in world.nodes.values():
            contents = node.storage.snapshot()
            world.check(not contents["queue"] and not contents["message"], f"{node.name} stores what nobody waits for")

    def _judge(self):
        world = self.world
        if not world.power_loss:
            checkers.check_delivery(world, self.clients, self.ledger)
            checkers.check_copies(world, self.clients, self.ledger)
            checkers.check_order(world, self.clients, self.ledger)
        for message in self.ledger.published.values():
            settled = message.acked or message.refused or not message.qos
            world.check(settled, f"message {message.number} of {message.publisher} was never answered")


def run(seed, trace=None, prepare=None):
    """Run one seed; raise Failure if a promise was broken. `prepare` may plant faults in the world."""
    workload = Workload(seed, trace, prepare)
    try:
        return workload.run()
    except Exception as error:
        at = f"{workload.world.now:.3f}"
        raise Failure(
            f"seed {seed} at {at} s: {type(error).__name__}: {error}\n"
            f"see it again: python -m pytest tests/sim --seed {seed}"
        ) from error
