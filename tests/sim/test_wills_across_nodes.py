"""Wills when nodes die: a survivor publishes them once, whoever dies, comes back or is cut off at which moment."""

import convergence
import pytest
from checkers import check_wills
from ledger import Ledger
from virtual_clients import Client
from virtual_node import AFTER_COMMIT, PLANNED_RESTART_S, ROW_AT, is_claim
from world import World

from broker.core.epoch import Epoch
from broker.core.rows import RowKind, row_rest, row_subject, unpack_claim
from broker.core.settings import OwnerSettings
from broker.core.storage import PUT, WriteBatch
from cluster.commands import FrameReceived
from cluster.frames import FrameType
from cluster.move_frames import Take
from cluster.readiness import ALL, AVAILABLE
from cluster.running_view import keeper_among

GRACE_S = 4
# Long enough for a death to be noticed, told, and the wills claimed and published.
CLAIMED_S = 8.0
QUIET_S = 10.0


class Cluster:
    """Nodes at one, a witness of all wills at each, and one client that leaves a will at the first node."""

    def __init__(self, delay_s=0, qos=2, persistent=True, retained=False, readiness=AVAILABLE, count=3, mutation=None):
        world = World(1)
        world.mutations = [mutation] if mutation is not None else []
        world.readiness = readiness
        world.promises = lambda publisher, message: None
        settings = OwnerSettings(leave_will_grace_s=GRACE_S)
        self.world = world
        self.nodes = [world.add_node(f"node{number}@h", settings) for number in range(1, count + 1)]
        for node in self.nodes:
            node.start()
        for node in self.nodes[1:]:
            node.core.join(self.nodes[0].name, self.nodes[0].address, world.now)
            node.wake(0.0)
            assert world.run(20, lambda node=node: node.core.take_join_result() is not None)
        self.ledger = Ledger()
        self.witnesses = [
            self.client(f"witness{index}", node, True, {b"will/#": 2}) for index, node in enumerate(self.nodes)
        ]
        self.mortal = self.client("mortal", self.nodes[0], persistent, {})
        self.mortal.will = (b"will/x", qos, delay_s)
        self.mortal.will_retained = retained
        self.mortal.comes_back = False
        self.connect(*self.witnesses)
        self.connect(self.mortal)
        self.settle()

    def client(self, name, node, persistent, filters):
        return Client(self.world, self.ledger, name, node, 5, persistent, filters)

    def connect(self, *clients):
        for client in clients:
            client.connect()
        assert self.world.run(20, lambda: all(client.state == "online" for client in clients))

    def settle(self):
        """Let everybody hear everything."""
        world = self.world
        wrong = (convergence.membership_converged, convergence.tables_converged)
        assert world.run(30, lambda: not any(each(world) for each in wrong))
        world.run(2.0)

    def start(self, *nodes):
        """Start nodes, and let all that is left come to its end."""
        for node in nodes:
            node.start()
        self.settle()
        self.world.run(QUIET_S)
        self.settle()
        for node in self.nodes:
            node.core.validate()
            convergence.check_tables(self.world, node)
            kinds = {row[0] for _, row, _ in node.core.mesh.own.all[2].rows.scan()}
            assert RowKind.CLAIM not in kinds, f"{node.name} says something of wills that are gone"

    def come_back(self, node):
        """The client connects to a node."""
        self.mortal.home = node
        self.connect(self.mortal)

    def copies(self, number=0):
        """How often each witness has had the will of the client's first, or another, connection."""
        return [witness.inbox.copies[self.ledger.wills[number].message.payload] for witness in self.witnesses]

    def claimed(self):
        return sum(node.core.moving.claims.claimed for node in self.nodes if node.up)

    def claimer(self):
        """The node that will claim the client's will when the first node is gone."""
        survivors = sorted((node.store_id, node.name) for node in self.nodes[1:])
        return self.world.nodes[keeper_among(survivors, "mortal")]

    def crash_when(self, is_time):
        """Let a node crash after the commit of the first turn in which it writes a claim of which this says so."""
        seen = []

        def look(node, effects):
            for operation in filter(is_claim, effects.writes.operations):
                row, value = operation[2][ROW_AT:], operation[3][1:]
                assert row_subject(row) == b"mortal"
                own = row_rest(row)[16:] == node.store_id
                if own and not seen and is_time(unpack_claim(value)[1]):
                    seen.append(node)
                    node.crash_point = AFTER_COMMIT

        self.world.mutations.append(look)
        return seen


@pytest.mark.parametrize(
    ("qos", "persistent", "retained", "readiness"),
    [(0, True, False, AVAILABLE), (1, True, True, ALL), (2, False, True, ALL), (2, True, False, AVAILABLE)],
)
def test_a_survivor_publishes_the_will_of_a_node_that_died(qos, persistent, retained, readiness):
    cluster = Cluster(0, qos, persistent, retained, readiness)
    one, two, three = cluster.nodes
    one.kill()
    cluster.world.run(CLAIMED_S)
    assert cluster.copies() == [0, 1, 1]
    assert cluster.claimed() == 1
    assert two.core.metrics()["cluster_wills_claimed"] + three.core.metrics()["cluster_wills_claimed"] == 1
    cluster.start(one)
    # What is sent at QoS 0 does not wait for a node that is away.
    assert cluster.copies() == [min(qos, 1), 1, 1]
    for node in cluster.nodes:
        found = [message.payload for message in node.core.owner.retained.match(b"will/#", cluster.world.now)]
        assert found == ([cluster.ledger.wills[0].message.payload] if retained else [])


def test_a_will_waits_for_its_delay_after_the_death():
    cluster = Cluster(10)
    cluster.nodes[0].kill()
    cluster.world.run(CLAIMED_S)
    assert cluster.copies() == [0, 0, 0]
    cluster.world.run(10.0)
    assert cluster.copies() == [0, 1, 1]
    cluster.start(cluster.nodes[0])
    assert cluster.copies() == [1, 1, 1]


def test_a_will_that_waited_before_the_death_waits_for_the_rest():
    cluster = Cluster(20)
    cluster.mortal.disconnect(True)
    cluster.world.run(15.0)
    cluster.nodes[0].kill()
    cluster.world.run(CLAIMED_S)
    assert cluster.copies() == [0, 1, 1]
    cluster.start(cluster.nodes[0])
    assert cluster.copies() == [1, 1, 1]


def test_a_node_that_is_back_before_it_is_missed_publishes_its_wills_itself():
    cluster = Cluster()
    cluster.nodes[0].kill()
    cluster.world.run(1.0)
    cluster.start(cluster.nodes[0])
    assert cluster.copies() == [1, 1, 1]
    assert cluster.claimed() == 0


def test_a_will_that_is_not_stored_is_lost_with_its_node():
    """What the others know of it is what its node says; so the scenario before this one sees what is stored."""

    def forget(node, effects):
        kept = WriteBatch()
        kept.operations = [each for each in effects.writes.operations if each[:2] != (PUT, "will")]
        effects.writes = kept

    cluster = Cluster(mutation=forget)
    cluster.nodes[0].kill()
    cluster.world.run(1.0)
    cluster.start(cluster.nodes[0])
    assert cluster.copies() == [0, 0, 0]


@pytest.mark.parametrize("away_s", [1.0, CLAIMED_S])
def test_nobody_publishes_the_will_of_a_client_that_is_back_elsewhere(away_s):
    """Not even when that node dies in turn, and only those that heard of it are left to say so."""
    cluster = Cluster(30)
    one, two, _three = cluster.nodes
    one.kill()
    cluster.world.run(away_s)
    cluster.mortal.will = None
    cluster.come_back(two)
    cluster.world.run(40.0)
    cluster.mortal.disconnect(False)
    cluster.world.run(1.0)
    assert cluster.copies() == [0, 0, 0]
    two.kill()
    cluster.world.run(CLAIMED_S)
    one.start()
    cluster.world.run(40.0)
    cluster.start(two)
    assert cluster.copies() == [0, 0, 0]
    assert cluster.claimed() == 0


def test_a_client_without_a_lasting_session_is_back_elsewhere():
    cluster = Cluster(0, persistent=False)
    one, _two, three = cluster.nodes
    one.kill()
    cluster.world.run(1.0)
    cluster.mortal.will = None
    cluster.come_back(three)
    cluster.mortal.disconnect(False)
    cluster.world.run(CLAIMED_S)
    cluster.start(one)
    assert cluster.copies() == [0, 0, 0]


def test_a_client_is_back_at_another_node_after_its_own_has_restarted():
    cluster = Cluster(0, persistent=False)
    one, _two, three = cluster.nodes
    one.kill()
    cluster.world.run(1.0)
    one.start()
    cluster.world.run(1.0)
    cluster.mortal.will = None
    cluster.come_back(three)
    cluster.world.run(QUIET_S)
    assert cluster.copies() == [0, 0, 0]


@pytest.mark.parametrize("spent", [False, True], ids=["when it has claimed", "when it has published"])
@pytest.mark.parametrize("order", ["claimer first", "home first", "together"])
def test_a_claimer_that_dies_before_anybody_hears_of_it(spent, order):
    cluster = Cluster()
    one = cluster.nodes[0]
    claimer = cluster.claimer()
    crashed = cluster.crash_when(lambda found: found == spent)
    one.kill()
    cluster.world.run(CLAIMED_S + 10.0)
    assert crashed == [claimer]
    published = [copies for copies in cluster.copies() if copies]
    # What was claimed without a word the other survivor claims. What was told stays the claimer's to publish.
    assert published == ([] if spent else [1])
    back = {"claimer first": [claimer, one], "home first": [one, claimer], "together": [claimer, one]}[order]
    back[0].start()
    if order != "together":
        cluster.world.run(QUIET_S)
    cluster.start(back[1])
    assert cluster.copies() == [1, 1, 1]


def test_a_claimer_publishes_nothing_before_the_others_know_of_it():
    """Although what it says of it is lost for long; then it dies when it has published."""
    cluster = Cluster()
    one = cluster.nodes[0]
    claimer = cluster.claimer()
    network = cluster.world.network
    lost = (FrameType.TABLE_DELTA, FrameType.TABLE_ROWS)

    def lose(node, effects):
        if network.lose_frame is None and any(map(is_claim, effects.writes.operations)):
            network.lose_frame = lambda frame: frame[1] in lost

    cluster.world.mutations.append(lose)
    crashed = cluster.crash_when(lambda spent: spent)
    one.kill()
    cluster.world.run(CLAIMED_S + 10.0)
    assert network.lose_frame is not None
    assert (crashed, cluster.copies()) == ([], [0, 0, 0])
    network.lose_frame = lambda frame: False
    cluster.world.run(CLAIMED_S)
    assert crashed == [claimer]
    one.start()
    cluster.start(claimer)
    assert cluster.copies() == [1, 1, 1]


def test_a_claimer_that_is_away_when_the_home_is_back_is_spoken_for():
    cluster = Cluster()
    one = cluster.nodes[0]
    one.kill()
    cluster.world.run(CLAIMED_S)
    claimer = cluster.claimer()
    assert claimer.core.moving.claims.claimed == 1
    claimer.kill()
    cluster.world.run(CLAIMED_S)
    one.start()
    cluster.world.run(QUIET_S)
    cluster.start(claimer)
    assert cluster.copies() == [1, 1, 1]


@pytest.mark.parametrize("later_s", [0.0, 0.5, 1.0, 2.0])
def test_a_home_that_is_back_while_its_will_is_claimed(later_s):
    cluster = Cluster()
    one = cluster.nodes[0]
    one.kill()
    cluster.world.run(2.5 + later_s)
    cluster.start(one)
    assert cluster.copies() == [1, 1, 1]


def test_a_node_that_somebody_hears_is_not_dead():
    """Two survivors that see different members run do not publish the wills of one that only one of them misses."""
    cluster = Cluster()
    one, two, three = cluster.nodes
    cluster.world.network.partition(one.name, two.name, True)
    cluster.world.run(30.0)
    assert not two.core.mesh.peers[one.name].running
    assert three.core.mesh.peers[one.name].running
    assert cluster.copies() == [0, 0, 0]
    one.kill()
    cluster.world.run(CLAIMED_S)
    assert cluster.copies() == [0, 1, 1]
    cluster.world.network.heal(one.name, two.name)
    cluster.start(one)
    assert cluster.copies() == [1, 1, 1]


def split(cluster):
    """Cut the first node off."""
    one, *others = cluster.nodes
    for other in others:
        cluster.world.network.partition(one.name, other.name, True)


@pytest.mark.parametrize("readiness", [AVAILABLE, ALL])
def test_a_partition_publishes_once_at_most_in_each_half(readiness):
    cluster = Cluster(5, readiness=readiness)
    split(cluster)
    cluster.world.run(1.0)
    cluster.mortal.disconnect(True)
    cluster.world.run(30.0)
    assert cluster.copies() == [1, 1, 1]
    cluster.world.network.heal_all()
    cluster.settle()
    cluster.world.run(QUIET_S)
    assert all(1 <= copies <= 2 for copies in cluster.copies())
    assert cluster.claimed() == 1


def test_a_client_that_the_others_took_for_gone_leaves_its_will_when_it_goes():
    cluster = Cluster()
    split(cluster)
    cluster.world.run(20.0)
    assert cluster.copies() == [0, 1, 1]
    cluster.world.network.heal_all()
    cluster.settle()
    assert cluster.copies() == [1, 1, 1]
    assert cluster.mortal.state == "online"
    cluster.mortal.disconnect(True)
    cluster.world.run(5.0)
    assert cluster.copies() == [2, 2, 2]


def test_a_node_that_stands_still_is_taken_for_dead_by_one_that_starts():
    """It never heard that node, so it does not lose it; yet each of the two is alone, and publishes (seed 8565)."""
    cluster = Cluster(count=2)
    one, two = cluster.nodes
    two.kill()
    one.stalled_until = cluster.world.now + CLAIMED_S
    two.start()
    cluster.mortal.disconnect(True)
    cluster.world.run(CLAIMED_S - 1.0)
    assert cluster.claimed() == 1
    cluster.settle()
    assert cluster.copies() == [2, 2]
    assert [name for _, name, lived, _ in cluster.world.misses if lived] == [one.name]
    check_wills(cluster.world, cluster.witnesses, cluster.ledger)


def stop(cluster, node):
    """Stop a node as it was told to."""
    node.core.announce_stop()
    node.wake(0.0)
    cluster.world.run(0.3)
    node.kill()


def test_a_planned_stop_publishes_nothing_within_its_time():
    cluster = Cluster()
    one = cluster.nodes[0]
    stop(cluster, one)
    cluster.world.run(PLANNED_RESTART_S - 0.5)
    assert cluster.copies() == [0, 0, 0]
    one.start()
    cluster.world.run(1.0)
    cluster.mortal.will = None
    cluster.come_back(one)
    cluster.world.run(QUIET_S)
    assert cluster.copies() == [0, 0, 0]


def test_a_planned_stop_that_lasts_too_long_is_as_a_death():
    cluster = Cluster()
    one = cluster.nodes[0]
    stop(cluster, one)
    cluster.world.run(PLANNED_RESTART_S + CLAIMED_S)
    assert cluster.copies() == [0, 1, 1]
    cluster.start(one)
    assert cluster.copies() == [1, 1, 1]


def test_a_planned_stop_is_heard_of_from_others():
    """By a member that was not connected then, and by one that starts later."""
    cluster = Cluster(readiness=ALL)
    one, two, three = cluster.nodes
    cluster.world.network.partition(one.name, three.name, True)
    cluster.world.run(1.0)
    stop(cluster, one)
    cluster.world.run(1.0)
    two.kill()
    two.start()
    cluster.world.run(PLANNED_RESTART_S - 2.5)
    for node in (two, three):
        assert node.core.mesh.readiness.waited_until(one.name) > node.clocks.monotonic()
    assert cluster.copies() == [0, 0, 0]


def test_the_wills_of_a_member_that_is_to_be_removed_are_claimed_at_once():
    cluster = Cluster(60)
    one, two, three = cluster.nodes
    stop(cluster, one)
    assert cluster.world.run(8.0, lambda: not any(node.core.mesh.peers[one.name].running for node in (two, three)))
    for node in (two, three):
        assert node.core.moving.claims.unspent(one.name) == 1
        node.core.moving.claims.claim_now(one.name)
        node.wake(0.0)
    assert cluster.world.run(3.0, lambda: two.core.moving.claims.unspent(one.name) == 0)
    cluster.world.run(1.0)
    assert cluster.copies() == [0, 1, 1]


def test_a_session_that_moved_took_its_will_along():
    """The will waits at the new home, and when that dies a survivor publishes it; the old home publishes nothing."""
    cluster = Cluster(20)
    one, two, _three = cluster.nodes
    cluster.mortal.disconnect(True)
    cluster.world.run(1.0)
    take_session(two, "mortal")
    cluster.world.run(1.0)
    assert two.core.owner.wills.get("mortal") is not None
    assert one.core.owner.wills.get("mortal") is None
    two.kill()
    one.kill()
    cluster.world.run(30.0)
    assert cluster.copies() == [0, 0, 1]
    cluster.start(one, two)
    assert cluster.copies() == [1, 1, 1]


@pytest.mark.parametrize("after_s", [0.0, 0.004, 0.008, 0.016])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_move_and_a_death_race(after_s, victim):
    """The client goes again before it is attached, so that its will is still to come."""
    cluster = Cluster(5)
    cluster.mortal.disconnect(True)
    cluster.world.run(1.0)
    cluster.mortal.home = cluster.nodes[1]
    cluster.mortal.will = None
    cluster.mortal.connect()
    cluster.world.run(0.005)
    assert cluster.mortal.state == "connecting"
    cluster.mortal.disconnect(True)
    cluster.world.run(after_s)
    cluster.nodes[victim].kill()
    cluster.world.run(20.0)
    cluster.start(cluster.nodes[victim])
    assert cluster.copies() == [1, 1, 1]


@pytest.mark.parametrize("is_back", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_who_was_away_hears_that_a_will_is_over(is_back, persistent):
    """Its node died, too, before the other was back, which remembers the will and is to claim it."""
    cluster = Cluster(2, persistent=persistent)
    one, two, three = cluster.nodes
    claimer = cluster.claimer()
    knower = three if claimer is two else two
    claimer.kill()
    cluster.world.run(CLAIMED_S)
    cluster.mortal.disconnect(True)
    cluster.world.run(1.0 if is_back else 5.0)
    if is_back:
        cluster.mortal.will = None
        cluster.come_back(one)
        cluster.mortal.disconnect(False)
        cluster.world.run(5.0)
    one.kill()
    cluster.world.run(0.05)
    claimer.start()
    cluster.world.run(15.0)
    assert cluster.claimed() == 0
    # What was said stays, though only who heard it is left.
    knower.kill()
    cluster.world.run(CLAIMED_S)
    claimer.kill()
    cluster.world.run(0.1)
    claimer.start()
    cluster.world.run(CLAIMED_S)
    assert cluster.claimed() == 0
    cluster.start(one, knower)
    # A session that ends with its connection ends the delay as well.
    assert cluster.copies() == ([0, 0, 0] if is_back and persistent else [1, 1, 1])


def test_who_was_away_publishes_once_more_what_nobody_knows_that_runs():
    cluster = Cluster()
    claimer = cluster.claimer()
    others = [node for node in cluster.nodes if node is not claimer]
    claimer.kill()
    cluster.world.run(CLAIMED_S)
    cluster.mortal.disconnect(True)
    cluster.world.run(1.0)
    for node in others:
        node.kill()
    claimer.start()
    cluster.world.run(CLAIMED_S)
    assert cluster.claimed() == 1
    cluster.start(*others)
    assert cluster.copies() == [2, 2, 2]


def test_an_offer_that_is_heard_once_more_brings_no_will_back():
    """As the last frames of a lost connection may be; the client was back in time, and said goodbye since."""
    cluster = Cluster(5)
    one, two, _three = cluster.nodes
    heard = []

    def listen(frame):
        if len(frame) > 1 and frame[1] == FrameType.MOVE:
            heard.append(frame)

    cluster.world.network.lose_frame = listen
    cluster.mortal.disconnect(True)
    cluster.world.run(1.0)
    cluster.mortal.will = None
    cluster.come_back(two)
    cluster.settle()
    cluster.mortal.disconnect(False)
    assert cluster.world.run(10.0, lambda: two.core.owner.session("mortal").arrival is None)
    cluster.world.network.lose_frame = None
    assert heard
    for frame in heard:
        two.input_arrives(FrameReceived(one.name, b"bulk", frame))
    cluster.world.run(QUIET_S)
    cluster.settle()
    assert two.core.owner.wills.get("mortal") is None
    assert cluster.copies() == [0, 0, 0]


def take_session(node, client_id):
    """Have a node take a client's session, as for a client that goes again before it is attached."""
    moving = node.core.moving
    latest = node.core.mesh.registry.highest_epoch(client_id)
    epoch = Epoch(latest.counter + 1, node.core.mesh.stamp(), node.store_id)
    moving.arrivals.ask(Take(client_id, epoch, False, None), latest.store_id, node.world.now)
    node.wake(0.0)
