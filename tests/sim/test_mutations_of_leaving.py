"""The simulator finds bugs of leaving: each is planted, and some early seed in which a node leaves has to notice.

Two are rarely met by chance (one in 40 of such seeds), and break scenes that are written down for just that.
"""

import pytest
import test_donors as donors
import test_leaving as leaving
import workload
from builds import interpreted
from planting import caught

from broker.core.arrival import Arrival
from broker.core.draining import Draining
from broker.core.storage import PUT
from broker.core.transfer import Transfers
from cluster.leaver import Leaver
from cluster.leaving import LeaveJob
from cluster.mesh_store import MeshStore
from cluster.registrar import Registrar
from cluster.wanted import Wanted

LEAVING = [seed for seed in range(200) if workload.leaves(seed)]


def some_fails(scene, seeds):
    """Play a scene with one seed after the other, and fail if all end well."""
    for seed in seeds:
        try:
            scene(seed)
        except AssertionError as noticed:
            print(noticed)
            return
    pytest.fail(f"none of {len(seeds)} seeds noticed")


@interpreted
def test_a_node_that_leaves_with_a_stub_is_caught(monkeypatch):
    monkeypatch.setattr(Draining, "moving", lambda self: 0)
    monkeypatch.setattr(Leaver, "_departing", lambda self: 0)
    some_fails(lambda seed: leaving.killed_in_the_middle("a target", seed), range(20))


@interpreted
def test_what_was_kept_for_a_removed_node_and_is_discarded_is_caught(monkeypatch):
    monkeypatch.setattr("cluster.estates.Wanted", lambda wishes: Wanted(()))
    found = caught(seeds=LEAVING)
    # Somebody misses it, or an outbox does not end.
    assert "never arrived" in found or "stores what every other node has" in found


@interpreted
def test_a_donor_whose_queues_are_merged_without_ids_is_caught(monkeypatch):
    monkeypatch.setattr(Arrival, "has_had", lambda self, cuts, origin, number, seq: False)
    monkeypatch.setattr(Arrival, "comes_again", lambda self, origin, number, others: False)
    assert "times" in caught(seeds=LEAVING)


@interpreted
def test_a_donor_that_gives_what_was_rerouted_is_caught(monkeypatch):
    monkeypatch.setattr(MeshStore, "put_rerouted", lambda self, store_id, number: None)
    some_fails(donors.test_what_was_rerouted_is_not_recovered_once_more, range(4, 6))


@interpreted
def test_an_abort_after_which_nobody_is_served_is_caught(monkeypatch):
    monkeypatch.setattr(LeaveJob, "accepts", lambda self: self.state == 0 and not self.stamp)
    assert "accepts nobody after an abort" in caught(seeds=LEAVING)


@interpreted
def test_an_adoption_that_keeps_its_turn_is_caught(monkeypatch):
    forget = Registrar._forget

    def keep(self, waiting, now):
        if not waiting.is_adoption():
            forget(self, waiting, now)
            return
        del self._waiting[waiting.event.connection]
        del self._by_client[waiting.event.client_id]
        self._arrivals.forget(waiting.event.client_id)

    monkeypatch.setattr(Registrar, "_forget", keep)
    caught(seeds=LEAVING)


@interpreted
def test_a_second_leave_beside_the_first_is_caught(monkeypatch):
    monkeypatch.setattr(Leaver, "_refusal", lambda self, order: "")
    assert "may leave beside" in caught(seeds=LEAVING)


@interpreted
def test_a_part_that_is_forgotten_before_the_new_home_has_it_is_caught(monkeypatch):
    read = Transfers.read

    def read_and_forget(self, departure, bytes_max):
        found = read(self, departure, bytes_max)
        if found:
            self.confirm(departure, found[-1].seq)
        return found

    monkeypatch.setattr(Transfers, "read", read_and_forget)
    assert "never arrived" in caught(seeds=LEAVING)


def test_a_leave_that_is_not_stored_is_caught():
    def forget(node, effects):
        effects.writes.operations = [
            (kind, family, key, value)
            for kind, family, key, value in effects.writes.operations
            if (kind, family, key) != (PUT, "meta", b"leave")
        ]

    caught(lambda world: world.mutations.append(forget), LEAVING)
