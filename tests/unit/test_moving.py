"""cluster.moving: what a node knows of members by their store ids, while they come and go."""

from mesh_network import cluster

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
