"""Registrations of 3, 5 and 9 nodes in virtual time, from one seed each: crashes, losses, partitions, contention.

`registration_network` looks at every grant; here is what happens to the nodes, and what has to be left at the end.
"""

import pytest
from registration_network import CLIENT_IDS, REQUEST_S, Network

SECONDS = 40.0
COUNTS = (3, 5, 9)


class Workload:
    """Connects that take turns, and faults that come between."""

    def __init__(self, network, faults, long_share):
        self.network = network
        self.rng = network.rng
        self.faults = faults
        self.long_share = long_share
        self.ends_at = network.now + SECONDS
        network.later(0.0, self.connect)
        network.later(1.0, self.fault)

    def connect(self):
        network, rng = self.network, self.rng
        if network.now < self.ends_at:
            network.later(rng.expovariate(10.0), self.connect)
        node = rng.choice(list(network.nodes.values()))
        if not node.up or (network.strict and not network.ready(node)):
            return
        token = node.request(rng.choice(CLIENT_IDS))
        if rng.random() < 0.1:
            network.later(rng.uniform(0.0, 1.0), self.leave, node, node.incarnation, token, False)
        self.look(node, node.incarnation, token)

    def look(self, node, life, token):
        """Wait for the turn, do something in it, and give it back."""
        if not node.up or node.incarnation != life or node.outcome(token) == "over":
            return
        if node.outcome(token) == "waiting":
            self.network.later(0.01, self.look, node, life, token)
            return
        # Some last until others have noticed what came in between.
        takes_s = self.rng.uniform(1.0, 4.0) if self.rng.random() < self.long_share else self.rng.uniform(0.0, 0.1)
        self.network.later(takes_s, self.leave, node, life, token, self.rng.random() < 0.8)

    def leave(self, node, life, token, raised):
        if node.up and node.incarnation == life and token in node.asked:
            node.release(token, raised)

    def fault(self):
        network, rng = self.network, self.rng
        if network.now >= self.ends_at:
            return
        network.later(rng.uniform(0.5, 4.0), self.fault)
        kind = rng.choice(self.faults)
        up = network.up()
        down = [name for name, node in network.nodes.items() if not node.up]
        if kind == "crash" and len(up) > 1:
            name = rng.choice(up).name
            network.crash(name)
            # Sooner than others notice, or much later.
            network.later(rng.choice([0.05, 1.5, 4.0]), self.restart, name)
        elif kind == "partition" and not down and len(up) > 1:
            network.partition(*rng.sample(up, 2), noticed_by_both=rng.random() < 0.7)
            network.later(rng.uniform(0.5, 8.0), network.heal)
        elif kind == "flap" and not down and len(up) > 1:
            one, other = rng.sample(up, 2)
            for _ in range(rng.randint(3, 8)):
                network.later(rng.uniform(0.0, 4.0), network.partition, one, other)
                network.later(rng.uniform(0.0, 4.0), network.heal)

    def restart(self, name):
        if not self.network.nodes[name].up:
            self.network.start(name)

    def finish(self):
        """End the faults, give everything back, and look what is left."""
        network = self.network
        network.run(self.ends_at - network.now + 7.0)
        network.heal()
        for name, node in network.nodes.items():
            if not node.up:
                network.start(name)
        network.settle()
        network.run(REQUEST_S)
        for node in network.up():
            assert not node.asked, "every request ended"
            for token in list(node.holds):
                node.release(token)
        network.run(2.0)
        for node in network.up():
            counters = node.registration.counters()
            assert counters["turns_kept"] == counters["turns_requested"] == 0
            assert node.registration.next_deadline() == float("inf"), "nothing goes on when nothing is asked"


def simulate(seed, faults, long_share=0.15, **options):
    network = Network(seed, **options)
    network.strict = not {"partition", "flap"} & set(faults)
    network.start()
    network.settle()
    workload = Workload(network, faults, long_share)
    workload.finish()
    return network


@pytest.mark.parametrize("seed", range(12))
def test_among_the_living_a_turn_has_one_holder_whoever_crashes(seed):
    network = simulate(seed, ["crash"], count=COUNTS[seed % 3], loss=0.03)
    assert network.granted > 150


@pytest.mark.parametrize("seed", range(8))
def test_frames_that_come_late_and_doubled_give_nobody_a_turn(seed):
    network = simulate(seed, ["crash"], count=COUNTS[seed % 3], loss=0.03, disturb=True)
    assert network.granted > 100


@pytest.mark.parametrize("seed", range(12))
def test_who_agrees_on_who_runs_shares_no_turn_and_no_partition_leaves_one_behind(seed):
    network = simulate(seed, ["crash", "partition", "partition", "flap"], count=COUNTS[seed % 3], loss=0.03)
    assert network.granted > 150


def test_a_quiet_cluster_grants_everything():
    network = simulate(1, ["none"], long_share=0.0, count=4)
    assert network.granted > 300
    assert network.timed_out == 0


def test_the_same_seed_makes_the_same_world():
    one, other = (simulate(3, ["crash", "partition"], count=4, loss=0.1) for _ in range(2))
    assert (one.granted, one.timed_out) == (other.granted, other.timed_out)
    epochs = [[(client_id, released[:2]) for client_id, found in each.released.items() for released in found]
              for each in (one, other)]  # fmt: skip
    assert epochs[0] == epochs[1]
