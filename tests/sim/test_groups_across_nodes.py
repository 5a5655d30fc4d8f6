"""Shared subscriptions across nodes: each failure that protocols.md names, and the scenarios of VerneMQ's test suites.

Every scenario runs on a few seeds, which make other delays.
"""

from collections import Counter

import convergence
import pytest
from ledger import Ledger
from virtual_clients import ONLINE, Client
from virtual_node import AFTER_COMMIT, AMID_COMMANDS, BEFORE_COMMIT, FAILURE_TIMEOUT_S
from world import World

from broker.core.group_choice import LOCAL_ONLY, POLICIES, PREFER_LOCAL, RANDOM
from broker.core.settings import OwnerSettings

SHARED = b"$share/g/t/#"
TOPIC = b"t/x"
WAIT_S = 60.0


@pytest.fixture(params=[0, 1, 2])
def seed(request):
    return request.param


class Scene:
    """A cluster and its clients; what happens is the test's to say."""

    def __init__(self, seed, count=3, policy=PREFER_LOCAL, **options):
        self.world = World(seed)
        self.ledger = Ledger()
        self.clients = []
        self.world.promises = lambda publisher, message: None
        settings = OwnerSettings(shared_policy=policy, **options)
        names = [f"node{number}@h" for number in range(1, count + 1)]
        addresses = [(name, f"{name}:1") for name in names]
        for name in names:
            others = [pair for pair in addresses if pair[0] != name]
            self.world.add_node(name, settings, 1, others)
        self.nodes = list(self.world.nodes.values())
        for node in self.nodes:
            node.start()
        self.wait(lambda: convergence.membership_converged(self.world))

    def wait(self, wrong, seconds=WAIT_S):
        """Run until `wrong` says ""."""
        assert self.world.run(seconds, lambda: not wrong()), wrong()

    def client(self, name, node, qos=1, persistent=False, topic_filter=SHARED, window=0):
        """A client that is connected, and subscribed unless `topic_filter` is None."""
        filters = {} if topic_filter is None else {topic_filter: qos}
        client = Client(self.world, self.ledger, name, node, 5, persistent, filters)
        client.receive_maximum = window
        self.clients.append(client)
        client.connect()
        self.wait(lambda: "" if client.state == ONLINE and client.subscribed == filters else f"{name} is not there")
        return client

    def known(self):
        """Wait until every node that is up knows what the others want."""
        self.wait(lambda: convergence.interest_converged(self.world) or convergence.tables_converged(self.world))

    def leave(self, client):
        """End a client's connection for good, and let that get around."""
        client.comes_back = False
        client.disconnect(False)
        self.world.run(0.5)

    def move(self, client, node):
        """Have a client connect to another node."""
        client.home = node
        client.comes_back = True
        client.connect()

    def publish(self, publisher, count, qos=1):
        """Publish messages, at most a dozen under way at a time; return the payloads that they will have."""
        first = len(self.ledger.published) + 1
        for _ in range(count):
            publisher.publish(TOPIC, qos)
        return [b"%d" % number for number in range(first, first + count)]

    def acked(self, payloads):
        """Say whether all of these are acknowledged."""
        published = self.ledger.published
        return all(each in published and published[each].acked for each in payloads)

    def acknowledged(self, payloads):
        """Wait until messages are acknowledged."""
        self.wait(lambda: "" if self.acked(payloads) else "no answer")

    def gone(self, node):
        """Kill a node, and wait until the others know."""
        node.kill()
        self.world.run(2 * FAILURE_TIMEOUT_S)

    def quiet(self):
        """Run until nothing is under way between the nodes that are up."""
        self.world.run(1.0)
        self.wait(lambda: convergence.groups_idle(self.world) if self.all_up() else "")

    def all_up(self):
        return all(node.up for node in self.nodes)

    def heard(self, *clients):
        """How often each payload came to one of the clients, as something new."""
        return sum((client.inbox.copies for client in clients), Counter())

    def dropped(self, reason):
        return sum(node.dropped()[reason] for node in self.nodes)

    def waiting(self, node):
        return node.core.owner.counts()["queued_messages"]


def once(payloads):
    return Counter(dict.fromkeys(payloads, 1))


# VerneMQ's scenarios; the numbers are those of its suites.


def test_8_1_9_random_policy(seed):
    scene = Scene(seed, policy=RANDOM)
    members = [scene.client(f"m{number}", scene.nodes[number % 3]) for number in range(10)]
    publisher = scene.client("p", scene.nodes[0], topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 10)
    scene.acknowledged(payloads)
    scene.world.run(0.2)
    assert scene.heard(*members) == once(payloads)
    # Everybody has a share in the long run.
    payloads += scene.publish(publisher, 60)
    scene.world.run(5.0)
    assert scene.heard(*members) == once(payloads)
    assert all(scene.heard(*[each for each in members if each.home is node]) for node in scene.nodes)


@pytest.mark.parametrize("policy", [each for each in POLICIES if each != RANDOM])
def test_8_1_10_prefer_local_policy(seed, policy):
    scene = Scene(seed, policy=policy)
    here = [scene.client(f"l{number}", scene.nodes[0]) for number in range(5)]
    there = [scene.client(f"r{number}", scene.nodes[1]) for number in range(5)]
    publisher = scene.client("p", scene.nodes[0], topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 10)
    scene.world.run(2.0)
    assert scene.heard(*here) == once(payloads)
    assert not scene.heard(*there)


def test_8_1_11_local_only_policy(seed):
    scene = Scene(seed, policy=LOCAL_ONLY)
    here = [scene.client(f"l{number}", scene.nodes[0]) for number in range(5)]
    there = [scene.client(f"r{number}", scene.nodes[1]) for number in range(5)]
    publisher = scene.client("p", scene.nodes[0], topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 10)
    scene.acknowledged(payloads)
    scene.world.run(0.5)
    for client in here:
        scene.leave(client)
    scene.acknowledged(scene.publish(publisher, 10))
    scene.world.run(2.0)
    assert scene.heard(*here) == once(payloads)
    assert not scene.heard(*there)


@pytest.mark.parametrize("qos", [1, 2])
def test_8_1_16_the_routing_table_survives_a_restart(seed, qos):
    scene = Scene(seed, 2)
    one, two = scene.nodes
    plain = scene.client("plain", two, qos, topic_filter=TOPIC)
    shared = scene.client("shared", two, qos)
    scene.known()
    one.kill()
    scene.world.run(1.0)
    one.start()
    scene.wait(lambda: convergence.membership_converged(scene.world))
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 10, qos)
    scene.world.run(5.0)
    assert scene.heard(plain) == scene.heard(shared) == once(payloads)


@pytest.mark.parametrize("persistent", [False, True])
def test_8_2_5_a_member_beyond_a_split_holds_up_no_publisher(seed, persistent):
    scene = Scene(seed, allow_publish_during_netsplit=True)
    one, two, three = scene.nodes
    member = scene.client("m", one, persistent=persistent)
    publisher = scene.client("p", two, topic_filter=None)
    scene.known()
    for other in (two, three):
        scene.world.network.partition(one.name, other.name, True)
    payloads = scene.publish(publisher, 5)
    scene.world.run(5.0)
    assert scene.acked(payloads)
    scene.world.network.heal_all()
    scene.wait(lambda: "" if scene.heard(member) == once(payloads) else f"{scene.heard(member)}")


# A chosen node dies.


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_node_has_not_acknowledged_before_it_died_is_anothers(seed, qos):
    scene = Scene(seed)
    one, two, three = scene.nodes
    lost = scene.client("lost", two, qos, persistent=True)
    plain = scene.client("plain", two, qos, persistent=True, topic_filter=TOPIC)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.world.network.partition(one.name, two.name, False)
    payloads = scene.publish(publisher, 10, qos)
    scene.world.run(0.1)
    # They are on their way, and nobody else could have them when they went.
    other = scene.client("other", three, qos, persistent=True)
    two.kill()
    scene.world.network.heal_all()
    scene.wait(lambda: "" if scene.heard(other) == once(payloads) else f"{len(scene.heard(other))} came")
    scene.acknowledged(payloads)
    assert sum(scene.world.moved.values()) == 10
    assert one.core.mesh.counters()["groups_moved"] == 10
    two.start()
    # What was for others there has stayed.
    scene.wait(lambda: "" if scene.heard(plain) == once(payloads) else f"{len(scene.heard(plain))} came")
    scene.quiet()
    assert scene.heard(lost, other) == once(payloads)
    assert not one.storage.snapshot()["outbox"]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_node_has_acknowledged_waits_for_it(seed, qos):
    scene = Scene(seed)
    one, two, three = scene.nodes
    member = scene.client("m", two, qos, persistent=True, window=1)
    member.inbox.ack_delay_s = 2.0
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 20, qos)
    scene.acknowledged(payloads)
    scene.wait(lambda: convergence.links_idle(scene.world))
    other = scene.client("other", three, qos, persistent=True)
    scene.known()
    scene.gone(two)
    assert not scene.heard(other)
    assert not scene.world.moved
    two.start()
    scene.wait(lambda: "" if len(scene.heard(member, other)) == 20 else "waiting")
    scene.quiet()
    assert set(scene.heard(member, other)) == set(payloads)
    if qos == 2:
        assert scene.heard(member, other) == once(payloads)


@pytest.mark.parametrize("point", [BEFORE_COMMIT, AFTER_COMMIT, AMID_COMMANDS])
@pytest.mark.parametrize("qos", [1, 2])
def test_the_publishers_node_may_die_as_well(seed, qos, point):
    """Whatever it has chosen and stored goes to who was chosen; nothing is chosen twice for its own death."""
    scene = Scene(seed)
    one, two, three = scene.nodes
    members = [scene.client(f"m{place}", node, qos, persistent=True) for place, node in enumerate((two, three))]
    publisher = scene.client("p", one, topic_filter=None, persistent=True)
    scene.known()
    payloads = scene.publish(publisher, 20, qos)
    one.crash(point)
    scene.wait(lambda: "it lives" if one.up else "")
    scene.world.run(0.5)
    one.start()
    scene.acknowledged(payloads)
    scene.world.run(FAILURE_TIMEOUT_S * 2)
    heard = scene.heard(*members)
    assert set(heard) == set(payloads)
    sends = {payload: scene.ledger.published[payload].sends for payload in payloads}
    assert all(count <= (sends[payload] if qos == 1 else 1) for payload, count in heard.items())
    assert not scene.world.moved


def test_what_waits_for_a_dead_node_alone_is_for_who_comes(seed):
    """Only a member that is away with its node could have it, until another one subscribes."""
    scene = Scene(seed, 2)
    one, two = scene.nodes
    away = scene.client("away", two, persistent=True)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.gone(two)
    payloads = scene.publish(publisher, 10)
    scene.acknowledged(payloads)
    assert len(one.storage.snapshot()["outbox"]) == 10
    newcomer = scene.client("new", one)
    scene.wait(lambda: "" if scene.heard(newcomer) == once(payloads) else "waiting")
    two.start()
    scene.quiet()
    assert scene.heard(away, newcomer) == once(payloads)


# What waits.


@pytest.mark.parametrize("qos", [1, 2])
def test_a_queue_follows_its_last_member(seed, qos):
    scene = Scene(seed)
    one, two, _ = scene.nodes
    member = scene.client("m", one, qos, persistent=True, window=1)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.leave(member)
    payloads = scene.publish(publisher, 30, qos)
    scene.acknowledged(payloads)
    assert scene.waiting(one) == 30
    scene.move(member, two)
    scene.wait(lambda: "" if scene.heard(member) == once(payloads) else f"{len(scene.heard(member))} came")
    assert [arrival.payload for arrival in member.inbox.arrivals] == payloads
    scene.quiet()
    assert scene.dropped("group_ended") == 0


@pytest.mark.parametrize("count", [5, 1200])
def test_what_waits_goes_to_who_connects_elsewhere(seed, count):
    scene = Scene(seed, 2, max_offline_messages=-1, max_online_messages=-1)
    one, two = scene.nodes
    member = scene.client("m", one, 2, persistent=True)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.leave(member)
    scene.world.validate_every = 100
    payloads = scene.publish(publisher, count, 2)
    scene.acknowledged(payloads)
    assert scene.waiting(one) == count
    other = scene.client("other", two, 2)
    scene.wait(lambda: "" if scene.heard(other) == once(payloads) else f"{len(scene.heard(other))} came")
    assert [arrival.payload for arrival in other.inbox.arrivals] == payloads
    scene.quiet()
    assert scene.waiting(one) == 0


def test_nothing_that_waits_is_dropped_for_want_of_room_elsewhere(seed):
    """Every node's queue is full when one member comes back, which takes one message at a time."""
    scene = Scene(seed, max_offline_messages=20, max_online_messages=20)
    members = [scene.client(f"m{place}", node, persistent=True, window=1) for place, node in enumerate(scene.nodes)]
    publishers = [scene.client(f"p{place}", node, topic_filter=None) for place, node in enumerate(scene.nodes)]
    scene.known()
    for member in members:
        scene.leave(member)
    payloads = []
    for publisher in publishers:
        payloads += scene.publish(publisher, 20)
        scene.acknowledged(payloads)
    assert [scene.waiting(node) for node in scene.nodes] == [20, 20, 20]
    members[1].inbox.ack_delay_s = 0.05
    members[1].come_back()
    scene.wait(lambda: "" if scene.heard(members[1]) == once(payloads) else f"{len(scene.heard(members[1]))} came")
    scene.quiet()
    assert scene.dropped("queue_full") == 0


@pytest.mark.parametrize("how", ["unsubscribe", "clean start", "disconnect"])
def test_a_part_that_ends_leaves_its_queue_to_the_others(seed, how):
    """The others are away as well: it waits for them where they will come back."""
    scene = Scene(seed, 2)
    one, two = scene.nodes
    member = scene.client("m", one, persistent=how != "disconnect", window=1)
    member.inbox.ack_delay_s = 1000.0
    other = scene.client("other", two, persistent=True)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.leave(other)
    payloads = scene.publish(publisher, 10)
    scene.acknowledged(payloads)
    if how == "unsubscribe":
        member.unsubscribe(SHARED)
    elif how == "clean start":
        member.wanted = {}
        member.comes_back = False
        member.disconnect(False)
        member.connect(True)
    else:
        scene.leave(member)
    # What was in flight stays with a session that goes on.
    left = payloads[1:] if how == "unsubscribe" else payloads
    scene.wait(lambda: "" if scene.waiting(two) == len(left) else f"{scene.waiting(two)} wait there")
    other.come_back()
    scene.wait(lambda: "" if scene.heard(other) == once(left) else f"{len(scene.heard(other))} came")
    assert scene.dropped("group_ended") == 0


@pytest.mark.parametrize("at_once", [False, True])
def test_a_member_that_begins_anew_elsewhere_leaves_what_it_had_to_the_others(seed, at_once):
    scene = Scene(seed)
    one, two, three = scene.nodes
    member = scene.client("m", one, persistent=True, window=3)
    member.inbox.ack_delay_s = 1000.0
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 10)
    scene.acknowledged(payloads)
    other = scene.client("other", three)
    member.wanted = {}
    scene.leave(member)
    if not at_once:
        # Its session is on the way already when its client wants nothing of it.
        scene.move(member, two)
        scene.world.run(0.05)
        member.comes_back = False
        member.disconnect(True)
    member.home = two
    member.comes_back = True
    member.connect(True)
    scene.wait(lambda: "" if set(scene.heard(other)) == set(payloads) else f"{len(scene.heard(other))} came")
    scene.quiet()
    assert scene.dropped("group_ended") == 0


def test_what_was_in_flight_at_qos2_is_nobody_elses(seed):
    """[MQTT-4.8.2-5] At QoS 1 another member has it, wherever that is."""
    scene = Scene(seed, 2)
    one, two = scene.nodes
    member = scene.client("m", one, 2, window=1)
    member.inbox.ack_delay_s = 1000.0
    other = scene.client("other", two, 2, persistent=True)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    payloads = scene.publish(publisher, 3, 2)
    scene.acknowledged(payloads)
    scene.leave(member)
    scene.quiet()
    scene.wait(lambda: "" if scene.heard(other) == once(payloads[1:]) else f"{len(scene.heard(other))} came")


# Forwards that come too late.


@pytest.mark.parametrize("qos", [1, 2])
def test_a_node_without_the_group_forwards_on(seed, qos):
    scene = Scene(seed)
    one, two, three = scene.nodes
    leaver = scene.client("leaver", two, qos)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    # It forgets its member while the messages are on the way, and the publisher's node does not hear of it.
    scene.world.network.partition(one.name, two.name, False)
    scene.world.network.partition(two.name, one.name, False)
    payloads = scene.publish(publisher, 10, qos)
    scene.world.run(0.1)
    other = scene.client("other", three, qos, persistent=True)
    leaver.unsubscribe(SHARED)
    scene.world.run(0.5)
    scene.world.network.heal_all()
    scene.wait(lambda: "" if set(scene.heard(other)) == set(payloads) else f"{len(scene.heard(other))} came")
    scene.acknowledged(payloads)
    scene.quiet()
    assert not scene.heard(leaver)
    assert scene.dropped("group_ended") == 0


def test_with_no_member_anywhere_a_message_is_dropped_and_counted(seed):
    scene = Scene(seed)
    one, two, _ = scene.nodes
    leaver = scene.client("leaver", two)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.world.network.partition(one.name, two.name, False)
    scene.world.network.partition(two.name, one.name, False)
    payloads = scene.publish(publisher, 10)
    scene.world.run(0.1)
    leaver.unsubscribe(SHARED)
    scene.world.run(0.3)
    scene.world.network.heal_all()
    scene.acknowledged(payloads)
    scene.wait(lambda: "" if scene.dropped("group_ended") == 10 else f"{scene.dropped('group_ended')} dropped")
    scene.quiet()
    assert all(not node.storage.snapshot()["queue"] for node in scene.nodes)


def test_a_node_that_restarted_waits_for_the_others_before_it_drops_anything(seed):
    """Its members are gone, and it does not know theirs yet, when what was on its way comes."""
    scene = Scene(seed)
    one, two, three = scene.nodes
    scene.client("gone", two)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.world.network.partition(one.name, two.name, False)
    payloads = scene.publish(publisher, 10)
    scene.world.run(0.05)
    scene.clients[0].comes_back = False
    two.kill()
    three.kill()
    two.start()
    scene.world.network.heal_all()
    scene.world.run(1.0)
    three.start()
    other = scene.client("other", three, persistent=True)
    scene.wait(lambda: "" if set(scene.heard(other)) >= set(payloads) else f"{len(scene.heard(other))} came", 90.0)


@pytest.mark.parametrize("qos", [1, 2])
def test_both_nodes_restart(seed, qos):
    """What waits in a queue, what is in an outbox, and what is taken from one for the other, is all on disk."""
    scene = Scene(seed, 2)
    one, two = scene.nodes
    member = scene.client("m", one, qos, persistent=True)
    other = scene.client("other", two, qos, persistent=True)
    publisher = scene.client("p", one, topic_filter=None)
    scene.known()
    scene.leave(member)
    scene.leave(other)
    payloads = scene.publish(publisher, 20, qos)
    scene.acknowledged(payloads)
    for node in scene.nodes:
        node.kill()
    for node in scene.nodes:
        node.start()
    other.come_back()
    scene.world.run(0.3)
    for node in scene.nodes:
        node.crash(AFTER_COMMIT)
    scene.wait(lambda: "" if not any(node.up for node in scene.nodes) else "they live")
    for node in scene.nodes:
        node.start()
    # Of QoS 1 it may come as what was on its way before.
    came = other.inbox.arrivals
    scene.wait(lambda: "" if {each.payload for each in came} == set(payloads) else f"{len(came)} came")
    scene.quiet()
    if qos == 2:
        assert scene.heard(member, other) == once(payloads)
    assert not any(node.storage.snapshot()["queue"] for node in scene.nodes)
