"""A small cluster of the simulator from which a node leaves: sessions with messages, orders, and what comes of both."""

import random

import checkers
from ledger import Ledger
from operators import Operators
from virtual_clients import OFFLINE, ONLINE, Client
from world import CRASH_POINTS, World

from broker.core.settings import OwnerSettings
from cluster.leave_frames import Verb
from cluster.readiness import AVAILABLE

TOPIC = b"to/%d"
FAR_S = 120.0


def heard_by(*clients):
    """Return what clients heard, each as often as it was heard."""
    return sorted([arrival.payload for client in clients for arrival in client.inbox.arrivals])


def outbox_messages(node):
    """Return how much waits at a node for members that are down."""
    return sum(view.outbox_messages for view in node.core.members_view()) if node.up else 0


class LeaveWorld:
    """`count` nodes, joined; sessions are made by `make_sessions`, messages by `publish`."""

    def __init__(self, seed=0, count=3, trace=None, readiness=AVAILABLE, **settings):
        self.world = World(seed, trace)
        self.world.readiness = readiness
        self.ledger = Ledger()
        self.clients = []
        self.world.promises = lambda publisher, message: checkers.promise(self.world, self.clients, publisher, message)
        self.rng = random.Random(seed)
        self.crashes = True
        self.on_said = lambda said: None
        self.operators = Operators(self.world, lambda said: self.on_said(said))
        self.gone = self.operators.gone
        for number in range(1, count + 1):
            self.world.add_node(
                f"node{number}@h", OwnerSettings(max_offline_messages=-1, max_online_messages=-1, **settings)
            )
        self.nodes = list(self.world.nodes.values())
        for node in self.nodes:
            node.start()
        self.operators.watch()
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

    def wait(self, condition, what, seconds=FAR_S):
        assert self.world.run(seconds, condition, 0.05), f"{what} did not come within {seconds} s"

    def leave(self, at, node, verb=Verb.MOVE, **order):
        """Give an order at one node about another; the result is the command."""
        return self.operators.order(at, node, verb, **order)

    def leave_and_wait(self, at, node, verb=Verb.MOVE, **order):
        command = self.leave(at, node, verb, **order)
        self.wait(command.is_over, f"the end of {order}")
        return command

    def crash(self, node):
        """Kill a node, and have everybody notice; return the others that run."""
        node.kill()
        others = [other for other in self.nodes if other is not node and other.up]
        self.wait(
            lambda: not any(other.core.mesh.peers[node.name].running for other in others), "the notice of its death"
        )
        return others

    def restart(self, node, publisher):
        """Start a node anew, whose publisher comes back."""
        node.kill()
        node.start()
        self.wait(lambda: publisher.state == ONLINE, "the publisher's return")

    def cut_off(self, node, *others):
        """Have a node hear nothing of some others, and they nothing of it."""
        for other in others:
            self.world.network.partition(node.name, other.name, True)
        sides = [(one, two) for other in others for one, two in ((node, other), (other, node)) if one.up]
        self.wait(lambda: not any(one.core.mesh.peers[two.name].running for one, two in sides), "its absence")

    def isolate(self, node):
        """Have a node hear nothing of all others, and they nothing of it."""
        self.cut_off(node, *[other for other in self.nodes if other is not node])

    def lose(self, *kinds):
        """From now on lose the frames of these kinds, and no others."""
        self.world.network.lose_frame = (lambda frame: frame[1] in kinds) if kinds else None

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
        # What is of QoS 2 is acknowledged to its publisher before it has come to another node.
        self.wait(
            lambda: (
                not any(node.core.owner.transfers.departures for node in self.world.running_nodes())
                and not any(
                    view.running and view.link_bytes_pending
                    for node in self.world.running_nodes()
                    for view in node.core.members_view()
                )
                and all(
                    session is not None and not len(session.queue) and not len(session.inflight)
                    for client in clients
                    for session in [client.home.core.owner.session(client.name)]
                )
            ),
            "everything that is queued",
        )

    def visit(self, clients, home):
        """Have clients connect to a node for a moment."""
        for client in clients:
            client.home = home
            client.come_back()
            client.comes_back = False
        self.wait(lambda: all(client.state == ONLINE for client in clients), "everybody's visit")
        self.world.run(0.5)
        for client in clients:
            client.disconnect(False)
        self.world.run(0.5)

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

    def recover(self, node, store_id=b""):
        """Start a node that was removed as a donor of its queues; with a store id at random if none is given."""
        self.operators.recover(node, store_id)

    def donate(self, node, dies=None):
        """Start a removed node, and again as a donor, until it has given all; meanwhile it and another one may die."""
        node.start()
        self.wait(lambda: node.name in self.gone, "the news of its removal")
        self.recover(node)
        if dies is not None:
            self.wait(lambda: node.name in dies.core.mesh.peers, "its return")
            self.world.run(0.5)
            for each in (node, dies):
                each.kill()
                each.start()
        self.wait(lambda: node.name in self.gone, "the end of the donation")
