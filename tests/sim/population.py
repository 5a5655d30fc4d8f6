"""The clients of a seed: who they are, where they are at home, and what they subscribe to and publish.

keepers      persistent sessions with filters of all kinds; some want what only their own node's publishers say
visitors     sessions that end with their connections
publishers   publish at all QoS; some have no session beside their connection
workers      members of shared groups that reach over all nodes: of the crew two never leave, some have no session
             beside their connection, and one roams, for ever if it has QoS 2; of the gang nobody stays for ever
mortals      leave a will with every connection; some roam
witnesses    one at each node, subscribed to all wills before the first is left
roamers      persistent sessions that connect now to one node and now to another
nomads       publishers that do so
racers       two client ids that clients at several nodes claim at once, of a persistent session and of none
hoarders     away while a publisher floods them: their queues go on in the store
"""

from racers import Racers
from virtual_clients import ONLINE, Client

LINES = (b"a/b", b"a/c", b"a/b/c", b"b", b"b/x/y", b"c//d")
# What matches wherever it is published, and so makes other nodes want nearly everything.
WIDE_FILTERS = (b"#", b"+/+/#")
FILTERS = (b"a/#", b"a/+", b"a/b", b"+/b", b"b/#", b"+", b"b/+/y", b"c/+/d")
CREW = b"$share/crew/work/#"
GANG = b"$share/gang/work/+"
WORK = b"work/x"
FLOOD = b"flood/x"
# What is retained: everybody's topics, and some that one publisher alone sets. Where nobody wants nearly everything,
# nobody subscribes to them.
STATES = (b"state/x", b"state/y")


class Population:
    """The clients, by what they do."""

    def __init__(self, world, ledger, wide, flooded):
        self.world = world
        self.clients = []
        self.publishers = []
        self.workers = []
        self.mortals = []
        self.witnesses = []
        self.hoarders = []
        self.roamers = []
        self.races = []
        self._ledger = ledger
        self.retains = not wide
        self.filters = FILTERS + WIDE_FILTERS if wide else FILTERS
        nodes = list(world.nodes.values())
        self._make_subscribers(nodes)
        self._make_roamers(nodes)
        self._make_publishers(nodes)
        self._make_crews(nodes)
        self._make_wills(nodes)
        self._make_racers(nodes)
        if flooded:
            self._make_hoarders(nodes[0])

    def make(self, name, home, persistent, filters):
        """Make a client that comes to its home and goes as all do."""
        rng = self.world.rng
        client = Client(self.world, self._ledger, name, home, rng.choice((4, 5)), persistent, filters)
        client.receive_maximum = rng.choice((1, 5, 0))
        client.inbox.ack_delay_s = rng.choice((0.0, 0.01, 0.5))
        client.outbox.release_delay_s = rng.choice((0.0, 0.01, 0.5))
        self.clients.append(client)
        return client

    def connect(self):
        """Let everybody but the mortals come."""
        for client in self.clients:
            if client not in self.mortals and not client.contends:
                self.world.later(self.world.rng.uniform(0.0, 1.0), client.connect)

    def connect_mortals(self):
        """Let the mortals come, whose wills have witnesses now."""
        for client in self.mortals:
            self.world.later(self.world.rng.uniform(0.0, 1.0), client.connect)

    def unready(self):
        """Return "" when every witness, hoarder and worker that never leaves is subscribed."""
        for client in self.clients:
            if client.steady and (client.state != ONLINE or set(client.subscribed) != set(client.wanted)):
                return f"{client.name} is not subscribed"
        return ""

    def _make_subscribers(self, nodes):
        rng = self.world.rng
        for index in range(6):
            place = index % len(nodes)
            filters = {name: rng.choice((0, 1, 1, 2, 2)) for name in rng.sample(self.filters, rng.randint(1, 3))}
            filters[b"at/%d/#" % place] = rng.choice((1, 2, 2))
            self.make(f"keeper{index}", nodes[place], True, filters)
        for index in range(3):
            filters = {name: rng.choice((0, 1, 2)) for name in rng.sample(self.filters, rng.randint(1, 2))}
            self.make(f"visitor{index}", rng.choice(nodes), False, filters)

    def _make_roamers(self, nodes):
        rng = self.world.rng
        for index in range(3):
            filters = {name: rng.choice((1, 2, 2)) for name in rng.sample(self.filters, rng.randint(1, 3))}
            roamer = self.make(f"roamer{index}", rng.choice(nodes), True, filters)
            roamer.roams = True
            roamer.steady = True
            roamer.aborts = True
            self.roamers.append(roamer)

    def _make_publishers(self, nodes):
        rng = self.world.rng
        for index in range(4):
            place = index % len(nodes)
            publisher = self.make(f"publisher{index}", nodes[place], rng.random() < 0.7, {})
            publisher.lines = [*rng.sample(LINES, 2), b"at/%d/q" % place, WORK]
            publisher.states = [*STATES, b"state/of/%d" % index]
            self.publishers.append(publisher)
        nomad = self.make("nomad", rng.choice(nodes), rng.random() < 0.8, {})
        nomad.lines = rng.sample(LINES, 2)
        nomad.states = []
        nomad.roams = True
        self.publishers.append(nomad)
        self.roamers.append(nomad)

    def _make_crews(self, homes):
        rng = self.world.rng
        for place, home in enumerate(homes):
            for index in range(rng.choice((2, 3)) if place < 2 else rng.choice((0, 1))):
                steady = index == 0 and place < 2
                persistent = steady or (index != 1 and rng.random() < 0.5)
                # [MQTT-4.8.2-5] What a session that ends had in flight at QoS 2 is lost: only who stays has it.
                worker = self.make(f"worker{place}{index}", home, persistent, {CREW: 2 if steady else 1})
                worker.steady = steady
                if not steady:
                    # The slower, the more is in its hands when something happens.
                    worker.inbox.ack_delay_s = rng.choice((0.01, 0.5, 2.0))
                self.workers.append(worker)
        roamer = self.make("workroamer", rng.choice(homes), True, {CREW: rng.choice((1, 2))})
        roamer.roams = True
        roamer.steady = 2 in roamer.wanted.values()
        self.workers.append(roamer)
        for index in range(rng.choice((1, 2, 3))):
            member = self.make(f"gangster{index}", rng.choice(homes), rng.random() < 0.5, {GANG: 1})
            self.workers.append(member)

    def _make_wills(self, nodes):
        rng = self.world.rng
        for index, home in enumerate(nodes):
            witness = self.make(f"witness{index}", home, True, {b"will/#": 2})
            witness.steady = True
            self.witnesses.append(witness)
        for index in range(4):
            mortal = self.make(f"mortal{index}", nodes[index % len(nodes)], rng.random() < 0.6, {})
            delay_s = rng.choice((0, 0, 2, 5)) if mortal.version == 5 else 0
            mortal.roams = rng.random() < 0.4
            mortal.will = (b"will/%d" % index, rng.choice((1, 2)), delay_s)
            self.mortals.append(mortal)

    def _make_racers(self, nodes):
        rng = self.world.rng
        for client_id, persistent in (("racer", True), ("clean racer", False)):
            racers = Racers(self.world, self._ledger, client_id, rng.sample(nodes, min(len(nodes), 3)), persistent)
            self.races.append(racers)
            self.clients.extend(racers.contenders)

    def _make_hoarders(self, home):
        rng = self.world.rng
        for index in range(2):
            hoarder = self.make(f"hoarder{index}", home, True, {b"flood/#": 2 - index})
            hoarder.steady = True
            hoarder.receive_maximum = 0
            hoarder.inbox.ack_delay_s = 0.0
            self.hoarders.append(hoarder)
        self.flooder = self.make("flooder", home, True, {})
        self.flooder.outbox.release_delay_s = 0.0
        self.flood = rng.choice((700, 1200, 1800))
        # A crew that is away is flooded as well.
        self.flood_topic = FLOOD if rng.random() < 0.7 else WORK
        self.flooded = self.hoarders if self.flood_topic == FLOOD else self.workers
