"""cluster.moving: what a node knows of members by their store ids, while they come and go."""

from mesh_network import cluster

from broker.core.epoch import Epoch
from broker.core.left_will import LeftWill, pack_will_row
from broker.core.rows import RowKind, SessionRow, Table, bucket_of, pack_row, pack_session
from broker.core.will import Will
from cluster.moving import MeshSite


def test_a_member_that_is_removed_in_this_turn_is_nobody():
    network, (one, two, three) = cluster()
    site = MeshSite(one.mesh)
    assert site.is_running(two.store_id)
    assert site.known_version(two.store_id) != (0, 0)
    one.mesh.remove(two.name, network.now)
    # The site hears of that with the next look at who runs.
    assert site.name_of(two.store_id) == ""
    assert not site.is_running(two.store_id)
    assert site.known_version(two.store_id) == (0, 0)
    site.tell(two.store_id, b"")
    site.send(two.store_id, b"")
    assert site.is_running(three.store_id)


def test_a_will_is_asked_after_by_the_store_that_has_it():
    _network, (one, two, three) = cluster()
    site = MeshSite(one.mesh)
    row, value = pack_row(RowKind.WILL, b"c1"), pack_will_row(LeftWill("c1", None, Will(b"w", b"gone")))
    one.mesh.registry.wills.set_row(two.name, bucket_of(b"c1"), row, value)
    found = [site.has_will(each.store_id, "c1") for each in (one, two, three)]
    assert found == [False, True, False]
    assert [site.is_current(each) for each in (one.store_id, two.store_id, b"?" * 16)] == [True, True, False]
    assert not site.has_will(b"?" * 16, "c1")


def test_a_session_is_asked_after_by_the_store_that_has_it():
    _network, (one, two, three) = cluster()
    site = MeshSite(one.mesh)
    value = pack_session(SessionRow(Epoch(1, 0, two.store_id), True, 60, None))
    one.mesh.registry.set_row(two.name, Table.LASTING, bucket_of(b"c1"), pack_row(RowKind.SESSION, b"c1"), value)
    found = [site.has_session(each.store_id, "c1") for each in (one, two, three)]
    assert found == [False, True, False]
    assert not site.has_session(two.store_id, "c2")
    assert not site.has_session(b"?" * 16, "c1")
