"""The latecomer: a node that was alone, with clients and data of its own, and joins the cluster under load.

Whatever it brings adds to what the cluster has and never overrides it. Its own sessions, with what waits for them, and
its own retained messages are everybody's from then on. Where both have a word, the cluster's counts: the session of a
client id that the cluster knows as well, however often it began anew here, and the retained message of a topic, however
late it was set here.
"""

from virtual_clients import OFFLINE, ONLINE

NAME = "latecomer@h"
# Retained by both, here last.
HELD = b"state/held/x"
TWIN_FILTER = b"at/late/#"


class Latecomer:
    """The node and its clients; `twin` has the client id of somebody in the cluster."""

    def __init__(self, world, population, settings):
        self.world = world
        self.population = population
        self.members = list(world.nodes.values())
        self.node = world.add_node(NAME, settings, 2)
        self.node.is_alone = True
        self.node.start()
        make = population.make
        self.keeper = make("late keeper", self.node, True, {b"at/late/#": 2, b"a/#": 1})
        self.sleeper = make("late sleeper", self.node, True, {b"at/late/#": 1})
        self.keeper.steady = self.sleeper.steady = True
        self.publisher = make("late publisher", self.node, True, {})
        self.publisher.lines = [b"at/late/q", b"a/b", b"c//d"]
        self.publisher.states = [b"state/of/late"]
        population.publishers.append(self.publisher)
        self.twin = make("late twin", self.node, True, {TWIN_FILTER: 1})
        self.twin.client_id = population.clients[0].client_id
        population.clients.remove(self.twin)
        world.twins[self.twin.client_id] += 1
        self._rounds = 0
        self._asked = None

    def connect(self):
        """Let the clients come."""
        for client in (self.keeper, self.sleeper, self.publisher):
            client.connect()
        self._begin_anew()

    def _begin_anew(self):
        """Let the twin have many sessions: its last one is as late as can be."""
        twin = self.twin
        if twin.state == ONLINE and twin.subscribed:
            self._rounds += 1
            twin.disconnect(False)
        if self._rounds == 4:
            twin.comes_back = False
            return
        if twin.state == OFFLINE:
            twin.connect(True)
        self.world.later(0.05, self._begin_anew)

    def unready(self):
        """Return "" when everybody is subscribed and the twin has gone."""
        if self._rounds < 4:
            return "the twin has not had all its sessions"
        return ""

    def hold(self):
        """Have both sides say something that is to meet; the messages that `unheld` looks at."""
        population = self.population
        self.sleeper.stay_away(30.0)
        self.sleeper.disconnect(False)
        for _ in range(3):
            self.publisher.publish(b"at/late/q", 1)
        if population.retains:
            population.publishers[0].retain(HELD, 1, 0, False)
            self.world.later(0.5, self.publisher.retain, HELD, 1, 0, False)

    def unheld(self):
        """Return "" when everything that `hold` had said is acknowledged."""
        if not self.publisher.outbox.is_empty() or not self.population.publishers[0].outbox.is_empty():
            return "not everything is acknowledged"
        return ""

    def join(self):
        """Ask a member to be taken in, again and again until it has happened."""
        node = self.node
        if node.up:
            core = node.core
            if core.mesh.peers:
                node.is_alone = False
                self.world.count("late joins")
                self.world.note(f"{NAME} is a member")
                return
            if core is not self._asked or core.take_join_result() is not None:
                self._asked = core
                target = self.world.rng.choice(self.members)
                core.join(target.name, target.address, node.clocks.monotonic())
                node.wake(0.0)
        self.world.later(0.3, self.join)
