"""A small cluster of the simulator from which a node leaves: sessions with messages, commands, and what comes of both.

What the supervisor does for a node that has left, the world does here: its process ends and does not begin again.
"""

import random

import checkers
from ledger import Ledger
from virtual_clients import OFFLINE, ONLINE, Client
from world import CRASH_POINTS, World

from broker.core.settings import OwnerSettings
from broker.core.storage import ensure_store_id
from cluster.donor import become_donor, fellows
from cluster.leave_frames import Order, Verb
from cluster.leaving import State

TOPIC = b"to/%d"
FAR_S = 120.0


class Command:
    """A command of an operator at a node, and what was said to it."""

    def __init__(self, number, node):
        self.number = number
        self.node = node
        self.progress = []
        self.exit_code = None
        self.text = ""

    def is_over(self):
        return self.exit_code is not None


class LeaveWorld:
    """`count` nodes, joined; sessions are made by `make_sessions`, messages by `publish`."""

    def __init__(self, seed=0, count=3, trace=None, **settings):
        self.world = World(seed, trace)
        self.ledger = Ledger()
        self.clients = []
        self.world.promises = lambda publisher, message: checkers.promise(self.world, self.clients, publisher, message)
        self.rng = random.Random(seed)
        self.commands = []
        self.crashes = True
        self.on_said = lambda said: None
        for number in range(1, count + 1):
            self.world.add_node(
                f"node{number}@h", OwnerSettings(max_offline_messages=-1, max_online_messages=-1, **settings)
            )
        self.nodes = list(self.world.nodes.values())
        for node in self.nodes:
            node.start()
        self.gone = set()
        self._watch()
        for node in self.nodes[1:]:
            node.core.join(self.nodes[0].name, self.nodes[0].address, node.clocks.monotonic())
            node.wake(0.0)
            self.wait(lambda node=node: node.core.take_join_result() is not None, "a join")
        self.wait(self.whole, "joining")

    def whole(self):
        """Say whether all that run know each other."""
        up = self.world.running_nodes()
        names = {node.name for node in up}
        return all({view.name for view in node.core.members_view() if view.running} >= names for node in up)

    def _watch(self):
        """Look at every node now and then, as its processes do: take what is said, and end what has left."""
        world = self.world
        for node in world.running_nodes():
            for said in node.core.leave_desk.take_said():
                self.on_said(said)
                for command in self.commands:
                    if command.node is node and command.number == said.command:
                        if said.is_end:
                            command.exit_code, command.text = said.exit_code, said.text
                        elif said.text:
                            command.progress.append(said.text)
            if node.core.leaver.job.state == State.LEFT or node.core.removed:
                # What it wrote in the last turn is committed by now.
                self.gone.add(node.name)
                world.note(f"{node.name} has left")
                node.kill()
        world.later(0.02, self._watch)

    def wait(self, condition, what, seconds=FAR_S):
        assert self.world.run(seconds, condition, 0.05), f"{what} did not come within {seconds} s"

    def leave(self, at, node, verb=Verb.MOVE, **order):
        """Give an order at one node about another; the result is the command."""
        command = Command(len(self.commands) + 1, at)
        self.commands.append(command)
        at.core.leave_desk.command(command.number, node.name, Order(verb, **order), at.clocks.monotonic())
        at.wake(0.0)
        return command

    def leave_and_wait(self, at, node, verb=Verb.MOVE, **order):
        command = self.leave(at, node, verb, **order)
        self.wait(command.is_over, f"the end of {order}")
        return command

    def crash_later(self, node, seconds):
        """Crash a node at some point of a turn, after a while."""
        self.world.later(seconds, self._crash, node, self.world.rng.choice(CRASH_POINTS))

    def end_crashes(self):
        """From now on nobody dies."""
        self.crashes = False
        for node in self.nodes:
            node.crash_point = ""

    def _crash(self, node, point):
        if self.crashes:
            node.crash(point)

    def make_sessions(self, home, count, qos=1, first=0, online=False):
        """Make persistent sessions, subscribed to a topic each; they go away again unless `online`."""
        made = []
        for number in range(first, first + count):
            client = Client(self.world, self.ledger, f"client{number}", home, 4, True, {TOPIC % number: qos})
            self.clients.append(client)
            made.append(client)
            client.connect()
        self.wait(lambda: all(set(client.subscribed) == set(client.wanted) for client in made), "subscribing")
        self.wait(lambda: self.known(home, made), "the interest of all")
        if not online:
            for client in made:
                client.comes_back = False
                client.disconnect(False)
            self.world.run(0.5)
        return made

    def known(self, home, clients):
        """Say whether everybody else that runs knows what these clients of a node want."""
        wanted = {topic_filter for client in clients for topic_filter in client.wanted}
        others = [node for node in self.world.running_nodes() if node is not home]
        return all(wanted <= set(node.core.mesh.interest.persistent_filters(home.name)) for node in others)

    def publisher(self, home, name="publisher"):
        client = Client(self.world, self.ledger, name, home, 4, False, {})
        self.clients.append(client)
        client.connect()
        self.wait(lambda: client.state == ONLINE, "a publisher")
        return client

    def publish(self, publisher, clients, count, qos=1):
        """Publish so many messages to each client and wait until all are acknowledged."""
        for _ in range(count):
            for client in clients:
                publisher.publish(next(iter(client.ever_wanted)), qos)
        self.wait(publisher.is_idle, "the acknowledgements")

    def queued(self, node):
        """Return what waits in each session of a node, by client id."""
        return {
            client.name: len(session.queue) + len(session.inflight)
            for client in self.clients
            if client.persistent and (session := node.core.owner.session(client.name)) is not None
        }

    def come_back(self, clients, nodes):
        """Have everybody connect again, to nodes in turn, and hear all that is for them."""
        for place, client in enumerate(clients):
            if client.state == OFFLINE:
                client.home = nodes[place % len(nodes)]
                client.come_back()
        self.wait(lambda: all(client.state == ONLINE for client in clients), "everybody's return")
        self.wait(
            lambda: (
                not any(node.core.owner.transfers.departures for node in self.world.running_nodes())
                and all(
                    session is not None and not len(session.queue) and not len(session.inflight)
                    for client in clients
                    for session in [client.home.core.owner.session(client.name)]
                )
            ),
            "everything that is queued",
        )

    def judge(self, clients):
        """Everything arrived once and in order."""
        for client in clients:
            topic = next(iter(client.ever_wanted))
            expected = [each.payload for each in self.ledger.published.values() if each.topic == topic and each.acked]
            heard = []
            for arrival in client.inbox.arrivals:
                if arrival.payload not in heard:
                    heard.append(arrival.payload)
            assert heard == expected, f"{client.name} heard {len(heard)} of {len(expected)}, or in another order"
            assert all(client.inbox.copies[payload] == 1 for payload in expected), (
                f"{client.name} heard something twice"
            )

    def recover(self, node):
        """Start a node that was removed as a donor of its queues, as its processes would."""
        self.gone.discard(node.name)
        become_donor(node.storage, node.name, self.world.rng.randbytes(16))
        node.store_id = ensure_store_id(node.storage, b"")
        node.discovery = tuple(fellows(node.storage))
        node.start()
