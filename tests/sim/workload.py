"""The workload: what one seed's nodes and clients go through, from joining to the final count.

    join      the nodes become a cluster, one after another by command or all at once by discovery
    load      publishes, and meanwhile crashes, partitions, resets, dying listeners, clients that come and go
    leave     a node leaves meanwhile, alive or dead, in the seeds that `leaves` names
    heal      everything that can run does, the leave ends; some persistent sessions stay away, so that queues hold
              something
    restart   every node at once, then those sessions come back
    count     the checkers judge the whole history

`run(seed)` is the whole of it; the result holds the counts of what happened, so that nobody mistakes a tiny workload
for proof.
"""

import checkers
import convergence
from faults import Faults, set_clocks
from latecomer import Latecomer
from leaver_plan import COUNTS, LeaverPlan
from ledger import Ledger
from population import Population
from world import SimulationError, World

from broker.core.group_choice import POLICIES
from broker.core.settings import OwnerSettings
from cluster.readiness import ALL, AVAILABLE, MAJORITY

JOIN_S = 60.0
SWITCHES = ("register", "publish", "subscribe", "unsubscribe")
HEAL_S = 90.0
LOAD_S = 16.0
LINK_COUNTS = (
    "link_duplicates",
    "link_gap",
    "link_resent_frames",
    "link_stale_frames",
    "link_spills",
    "stamps_clamped",
)


def waits(world):
    """Say whether a node of this world may be not ready."""
    return world.readiness != AVAILABLE


def readiness_of(seed):
    """Return which members a node of a seed needs to be ready."""
    return ALL if seed % 5 == 2 else MAJORITY if seed % 10 == 9 else AVAILABLE


def leaves(seed):
    """Say whether a node leaves in a seed: in one of seven, none of them one of a latecomer."""
    return seed % 7 == 4


class Failure(Exception):
    """A seed's history broke a promise; the text says how to see it again."""


# The property of a test that has the counts of its seeds: another process may sum them up than that which ran them.
COUNTED = "simulated"


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
        "publishes QoS 2",
        "acks",
        "publishes resent",
        "PUBRELs resent",
        "promises",
        "promises to groups",
        "deliveries",
        "shared deliveries",
        "put into outboxes for groups",
        "moved from dead nodes",
        "duplicates",
        "link_spills",
        "put into outboxes",
        "wills left",
        "wills due",
        "wills published",
        "retained sets",
        "retained deletes",
        "loaded from tails",
        "dropped by full queues",
        "joins",
        "late joins",
        *COUNTS,
        "skews",
        "far skews",
        "clocks set",
        "stamps_clamped",
        "crashes",
        "stalls",
        "slow nodes",
        "listener deaths",
        "partitions",
        "partitions of one direction",
        "flapping links",
        "splits",
        "heals",
        "connections lost",
        "bulk resets",
        "planned stops",
        "netsplit_detected",
        "netsplit_resolved",
        "publishes held",
        "client drops",
        "roamings",
        "takeovers",
        "races",
        "CONNECTs aborted",
        "CONNECTs refused",
        "moves",
        "revivals",
        "clean starts",
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
        self.population = None
        self.faults = None
        self.latecomer = None
        self.leaver = None
        world = self.world
        rng = world.rng
        world.promises = lambda publisher, message: checkers.promise(world, self.clients, publisher, message)
        count = 9 if seed % 60 in (27, 54) else 2 if seed % 10 == 3 else 5 if seed % 20 in (7, 16) else 3
        self.names = [f"node{number}@h" for number in range(1, count + 1)]
        self.discovers = seed % 2 == 0
        self.skewed = seed % 3 == 1
        self.is_joined_late = seed % 14 in (5, 8)
        self.bounded = seed % 8 == 5
        # Queues that are longer than what of them is in memory.
        self.flooded = seed % 11 == 6
        lifo = seed % 8 == 3 or seed % 44 == 17
        # The store loses its last second now and then: then nothing is promised but that all goes on.
        world.power_loss = seed % 16 == 9
        # Nodes that serve nobody without the others, or without most of them.
        world.has_users = True
        world.readiness = readiness_of(seed)
        allowed = {f"allow_{what}_during_netsplit": rng.random() < 0.2 for what in SWITCHES} if waits(world) else {}
        if allowed:
            # What is held is what these seeds are about.
            allowed["allow_publish_during_netsplit"] = seed % 4 == 3
        # Large messages make many frames, and frames of several parts.
        self.paddings = (0, 0, 0, 1000, 100_000) if seed % 16 == 2 else (0, 0, 0, 600) if seed % 4 == 1 else (0,)
        self.settings = OwnerSettings(
            shared_policy=POLICIES[seed // 2 % 4],
            max_inflight_messages=rng.choice((1, 3, 20)),
            max_online_messages=15 if self.bounded else -1,
            max_offline_messages=10 if self.bounded else rng.choice((-1, 700)) if self.flooded else -1,
            max_queued_bytes=800 if self.bounded and seed % 16 == 5 else -1,
            queue_lifo=lifo,
            leave_will_grace_s=rng.choice((1, 3, 10)),
            listener_window_bytes=rng.choice((300, 2000, 1 << 20)),
            **allowed,
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
        self._judge_readiness()
        self._judge_store()
        self._restart()
        self._judge()
        world.stats["turns"] = world.turns
        for node in world.nodes.values():
            counted = node.link_counts()
            for name in LINK_COUNTS:
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
        if self.skewed:
            set_clocks(world)
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
        self._wait(JOIN_S, lambda: convergence.membership_converged(world), "joining")
        world.count("joins", len(nodes) - 1)
        world.note("joined")

    def _bounce(self, node):
        if node.up:
            node.kill()
            self.world.later(self.world.rng.uniform(0.1, 3.0), self._start, node)

    def _start(self, node):
        if not node.up:
            node.start()

    def _join_one(self, node, target):
        node.join_result = None
        node.core.join(target.name, target.address, node.clocks.monotonic())
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

    @property
    def clients(self):
        """Everybody."""
        return self.population.clients

    def _make_clients(self):
        world = self.world
        self.population = Population(world, self.ledger, world.seed % 2 == 0, self.flooded)
        self.faults = Faults(world, self.population, LOAD_S)
        if leaves(world.seed):
            self.leaver = LeaverPlan(world, self.population)
        if self.flooded:
            # Looking at whole queues after each turn would take longer than everything else.
            world.validate_every = 50
        self.population.connect()
        if self.is_joined_late:
            self.latecomer = Latecomer(world, self.population, self.settings)
            self.latecomer.connect()
            self._wait(JOIN_S, self.latecomer.unready, "what the latecomer does alone")
        self._wait(JOIN_S, self.population.unready, "subscribing")
        if self.latecomer is not None:
            self.latecomer.hold()
            world.run(1.0)
            self._wait(JOIN_S, self.latecomer.unheld, "what both sides keep")
        self.population.connect_mortals()

    def _load(self):
        world = self.world
        rng = world.rng
        world.run(rng.uniform(0.0, 2.0))
        for publisher in self.population.publishers:
            self._plan_publishes(publisher)
        if self.flooded:
            self._plan_flood()
        self.faults.plan()
        if self.latecomer is not None:
            world.later(rng.uniform(0.5, 8.0), self.latecomer.join)
        if self.leaver is not None:
            self.leaver.begin()
        world.run(LOAD_S)

    def _plan_publishes(self, publisher):
        rng = self.world.rng
        at = 0.0
        while at < LOAD_S:
            burst = rng.choice((1, 1, 2, 5, 15))
            for _ in range(burst):
                topic, qos = rng.choice(publisher.lines), rng.choice((0, 1, 1, 2, 2))
                self.world.later(at, publisher.publish, topic, qos, rng.choice(self.paddings))
                at += 0.002 * rng.random()
            if self.population.retains and publisher.states and rng.random() < 0.5:
                topic, deletes = rng.choice(publisher.states), rng.random() < 0.3
                self.world.later(at, publisher.retain, topic, rng.choice((1, 2)), rng.choice(self.paddings), deletes)
            at += rng.expovariate(burst / 1.0) * burst * 0.18 * burst

    def _plan_flood(self):
        population = self.population
        rng = self.world.rng
        for client in population.flooded:
            client.stay_away(rng.uniform(6.0, LOAD_S + 2.0))
            client.disconnect(rng.random() < 0.5)
        padding_bytes = rng.choice((0, 0, 600))
        for _ in range(population.flood):
            at = rng.uniform(0.5, 6.0)
            self.world.later(at, population.flooder.publish, population.flood_topic, rng.choice((1, 2)), padding_bytes)

    # Afterwards.

    def _heal(self):
        world = self.world
        rng = world.rng
        world.note("healing")
        world.network.heal_all()
        for client in self.clients:
            # A long queue and a client that takes half a second for each message are not what is waited for.
            client.inbox.ack_delay_s = min(client.inbox.ack_delay_s, 0.01)
        for node in world.nodes.values():
            node.crash_point = ""
            self.faults.start(node)
        if self.leaver is not None:
            self.leaver.hurry()
        self.away = [
            client
            for client in self.clients
            if client.persistent and client.ever_wanted and client.comes_back and not client.contends
            if rng.random() < 0.3
        ]
        for client in self.away:
            client.comes_back = False
            client.disconnect(rng.random() < 0.5)
        for racers in self.population.races:
            racers.race()
        for publisher in self.population.publishers:
            publisher.come_back()
        # The cluster must get quiet by itself, with messages for those who are away.
        for publisher in self.population.publishers:
            for _ in range(4):
                publisher.publish(rng.choice(publisher.lines), rng.choice((1, 2)))
        self._wait(HEAL_S, self._unsettled, "healing")
        world.run(1.0)

    def _unsettled(self):
        world = self.world
        return (
            (self.leaver.unfinished() if self.leaver is not None else "")
            or convergence.unsettled(world, self.clients)
            or next(filter(None, (racers.undecided() for racers in self.population.races)), "")
        )

    def _judge_readiness(self):
        """Every node that is left alone is ready in the end, and counts each split once."""
        for node in self.world.members():
            readiness = node.core.mesh.readiness
            self.world.check(readiness.ready, f"{node.name} is not ready: {readiness.reason}")
            self.world.check(node.core.owner.netsplit.is_open, f"{node.name} still holds what clients said")

    def _judge_store(self):
        for node in self.world.members():
            node.core.validate()
            convergence.check_store(self.world, node)
            convergence.check_tables(self.world, node)
            convergence.check_clock(self.world, node)

    def _restart(self):
        world = self.world
        rng = world.rng
        world.note("restarting everything")
        for node in world.members():
            node.kill()
            world.later(rng.uniform(0.1, 2.0), self.faults.start, node)
        world.run(2.5)
        for client in self.away:
            client.come_back()
        self._wait(HEAL_S, lambda: self._unsettled() or convergence.queues_empty(world), "the last restart")
        self._judge_store()
        for node in world.members():
            contents = node.storage.snapshot()
            world.check(not contents["queue"] and not contents["message"], f"{node.name} stores what nobody waits for")
            world.check(not contents["outbox"], f"{node.name} stores what every other node has")
            incoming = [key for key in contents["session"] if key[8:9] == b"i"]
            # What an old home has that was away is released elsewhere.
            forgotten = world.power_loss or world.revived.total() or world.orphans
            world.check(forgotten or not incoming, f"{node.name} stores {len(incoming)} packet ids for ever")

    def _judge(self):
        world = self.world
        if not world.power_loss:
            checkers.check_delivery(world, self.clients, self.ledger)
            checkers.check_copies(world, self.clients, self.ledger)
            checkers.check_order(world, self.clients, self.ledger)
            checkers.check_wills(world, self.clients, self.ledger)
            checkers.check_retained(world, self.ledger)
        for message in self.ledger.published.values():
            settled = message.acked or message.refused or not message.qos or message.will
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
