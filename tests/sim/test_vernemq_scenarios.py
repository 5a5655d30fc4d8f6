"""The cluster scenarios of VerneMQ's own test suites, as this broker answers them, and where each is tried.

Those that are marked "here" are the tests of this module, on the simulated network; `unit`, `conformance` and `system`
are the directories beside this one.

vmq_cluster_SUITE
    multiple_connect                       here, test_one_client_id_connects_everywhere
    multiple_connect_unclean               here, test_a_backlog_is_taken_one_message_per_connection
    distributed_subscribe                  here; system/test_cluster, test_a_message_reaches_subscribers_on_every_node
    racing_connect                         here, test_racing_connects; the seeds' racers
    aborted_queue_migration                here, test_an_aborted_connect_moves_the_queue
    cluster_leave, ..._myself, ..._dead_node   with the command `cluster leave`
    shared_subs_random_policy, ..._prefer_local_policy, ..._local_only_policy   with shared subscriptions across nodes
    cross_node_publish_subscribe           here, test_many_subscribers_at_another_node
    late_join_node_syncs_subscriptions     here, test_subscriptions_made_while_a_node_is_away
    late_join_node_syncs_retained_messages here; system/test_cluster, test_a_retained_message_is_every_nodes
    restarted_node_has_no_stale_sessions   here, test_a_restarted_node_has_no_stale_sessions
    routing_table_survives_node_restart    here without groups; with them, with shared subscriptions across nodes
    convert_new_msgs_to_old_format         what is stored and sent names its version: unit/test_records, test_upgrades,
                                           test_session_store (test_a_newer_version_is_refused), recorded_frames

vmq_cluster_netsplit_SUITE
    publish_qos0                           here; what a link holds in memory is sent when the network is back
    register_consistency                   here, test_nobody_registers_in_a_split; system/test_netsplit
    register_consistency_multiple_sessions here, test_both_islands_register_where_that_is_allowed
    register_not_ready                     here, test_nobody_registers_in_a_split
    remote_enqueue_cant_block_the_publisher   with shared subscriptions across nodes; of plain ones:
                                           unit/test_outbox; the publisher's PUBACK waits for no node that is away

vmq_cluster_com_SUITE
    connect and acknowledgement, then a message   unit/test_transport, test_three_meshes_join_and_a_message_crosses
    the same over TLS                      every link is encrypted: unit/test_transport
    publish waits for connect-ack          unit/test_link: nothing is sent before the receiver's position
    fallback to legacy peers               unit/test_mesh, test_versions_too_far_apart_are_refused_with_a_text
    send error, message kept               unit/test_link; the seeds' connections lost
    full buffer, reconnect, last batch again   unit/test_link, here without its duplicates: positions
    malformed, partial, oversized frames   unit/test_mesh, test_no_frame_crashes_who_receives_it;
                                           fuzz/test_fuzz_mesh_frames

vmq_queue_SUITE
    a crashed queue is rebuilt             unit/test_session_store; system/test_crash
    fifo and lifo order, offline limits    unit/test_dispatch: test_a_full_fifo_queue_keeps_its_oldest,
                                           test_a_full_lifo_queue_loses_its_oldest,
                                           test_a_lifo_queue_gives_the_youngest_first
    offline to online, online limit and override   unit/test_dispatch: test_a_long_queue_of_a_client_that_is_away,
                                           test_the_online_limit_of_a_backlog
    a takeover keeps the extended size     unit/test_dispatch, test_overriding_an_unlimited_backlog
    expiry removes queue and messages      unit/test_dispatch, test_expiry_of_a_session_with_a_long_queue
    forced disconnect, with cleanup or not with the command `session disconnect`
    a takeover of a session that lives on  here, test_a_takeover_ends_a_connection_that_does_not_notice
"""

import pytest
from racers import Racers
from scene import Scene
from virtual_clients import OFFLINE, ONLINE

from broker.core.settings import OwnerSettings
from cluster.readiness import ALL


def sessions(scene):
    """Return how many sessions all nodes have, by client id."""
    return {client.client_id: len(scene.homes(client.client_id)) for client in scene.clients}


def test_one_client_id_connects_everywhere():
    scene = Scene()
    world = scene.world
    connects = []

    def work(worker, place):
        if worker.state == ONLINE:
            connects.append(worker)
            assert len(scene.homes("one")) <= 1
            worker.disconnect(False)
        elif worker.state == OFFLINE:
            worker.home = scene.nodes[place % 3]
            worker.connect()
        if connects.count(worker) < 10:
            world.later(world.rng.uniform(0.0, 0.05), work, worker, place + 1)

    for number in range(5):
        worker = scene.client(f"worker {number}", scene.nodes[0], persistent=False, client_id="one")
        worker.contends = True
        work(worker, number)
    scene.until(lambda: len(connects) == 50)
    scene.run(1.0)
    assert scene.homes("one") == []


def test_a_backlog_is_taken_one_message_per_connection():
    scene = Scene(settings=OwnerSettings(max_inflight_messages=1))
    one, other, third = scene.nodes
    subscriber = scene.comes("subscriber", one, {b"a/b": 1}, version=4)
    scene.goes(subscriber)
    publisher = scene.comes("publisher", other)
    payloads = scene.publish(publisher, b"a/b", 1, 20)
    assert one.core.owner.counts()["queued_messages"] == 20
    for taken in range(20):
        scene.connect(subscriber, third)
        assert subscriber.session_present
        scene.until(lambda taken=taken: len(scene.payloads(subscriber)) > taken)
        scene.run(0.01)
        scene.goes(subscriber, True)
    assert scene.payloads(subscriber) == payloads
    assert scene.copies(subscriber) == 1


def test_a_subscriber_at_every_node():
    scene = Scene()
    subscribers = [scene.comes(f"subscriber {node.name}", node, {b"a/b": 1}, persistent=False) for node in scene.nodes]
    payloads = scene.publish(subscribers[0], b"a/b")
    scene.run(1.0)
    assert [scene.payloads(subscriber) for subscriber in subscribers] == [payloads] * 3


@pytest.mark.parametrize("seed", range(5))
def test_racing_connects(seed):
    scene = Scene(seed)
    nodes = [scene.world.rng.choice(scene.nodes) for _ in range(4)]
    racers = Racers(scene.world, scene.ledger, "one", nodes, True)
    racers.race()
    scene.until(lambda: not racers.undecided() and scene.connected("one"))
    scene.run(5.0)
    assert racers.undecided() == ""
    present = [contender.session_present for contender in racers.contenders]
    assert present.count(False) == 1


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.05])
def test_an_aborted_connect_moves_the_queue(after_s):
    scene = Scene()
    one, other, third = scene.nodes
    subscriber = scene.comes("subscriber", one, {b"a/b": 1})
    scene.goes(subscriber)
    payloads = scene.publish(scene.comes("publisher", other), b"a/b", 1, 10)
    # Had it been connected for a moment, it would not have acknowledged anything.
    subscriber.inbox.ack_delay_s = 1000.0
    subscriber.home = third
    subscriber.connect()
    scene.run(after_s)
    subscriber.disconnect(True)
    scene.until(lambda: scene.homes("subscriber") == [third] and not one.core.moving.counts()["moves_leaving"])
    assert third.core.owner.counts()["queued_messages"] == 10
    assert third.core.moving.counts()["turns_requested"] == 0
    subscriber.inbox.ack_delay_s = 0.0
    scene.connect(subscriber, third)
    assert subscriber.session_present
    scene.until(lambda: len(scene.payloads(subscriber)) == 10)
    assert scene.payloads(subscriber) == payloads


def test_many_subscribers_at_another_node():
    scene = Scene()
    one, other, _ = scene.nodes
    subscribers = [scene.comes(f"subscriber {number}", one, {b"a/b": 1}, persistent=False) for number in range(5)]
    payloads = scene.publish(scene.comes("publisher", other), b"a/b", 1, 10)
    scene.run(1.0)
    for subscriber in subscribers:
        assert [arrival.payload for arrival in subscriber.inbox.arrivals] == payloads


def test_subscriptions_made_while_a_node_is_away():
    scene = Scene()
    one, other, late = scene.nodes
    scene.crash(late)
    filters = [b"%d/%d" % (number % 10, number // 10) for number in range(100)]
    subscribers = []
    for number in range(10):
        home = (one, other)[number % 2]
        wanted = dict.fromkeys(filters[number::10], 1)
        subscribers.append(scene.client(f"subscriber {number}", home, wanted))
        scene.connect(subscribers[-1])
    scene.start(late)
    known = late.core.mesh.interest
    assert sorted([*known.persistent_filters(one.name), *known.persistent_filters(other.name)]) == sorted(filters)
    publisher = scene.comes("publisher", late)
    for topic in filters:
        publisher.publish(topic, 1)
    scene.until(publisher.outbox.is_empty)
    scene.run(1.0)
    assert [len(scene.payloads(subscriber)) for subscriber in subscribers] == [10] * 10


def test_what_was_retained_while_a_node_was_away():
    scene = Scene()
    one, _, late = scene.nodes
    scene.crash(late)
    publisher = scene.client("publisher", one)
    scene.connect(publisher)
    publisher.retain(b"a/b", 1, 0, False)
    scene.until(publisher.outbox.is_empty)
    scene.start(late)
    subscriber = scene.comes("subscriber", late, {b"a/+": 1})
    scene.until(lambda: scene.payloads(subscriber))
    assert scene.payloads(subscriber) == list(scene.ledger.published)


def test_a_restarted_node_has_no_stale_sessions():
    scene = Scene()
    one, other, _ = scene.nodes
    scene.comes("passing", one, {b"a/b": 1}, persistent=False)
    scene.comes("lasting", one, {b"a/c": 1})
    scene.comes("elsewhere", other, {b"a/d": 1})
    scene.crash(one)
    scene.start(one)
    scene.run(2.0)
    assert sessions(scene) == {"passing": 0, "lasting": 1, "elsewhere": 1}
    for node in scene.nodes:
        found = [client_id for home in scene.nodes for client_id, _ in node.core.mesh.registry.clients_of(home.name)]
        assert sorted(found) == ["elsewhere", "lasting"]
    assert sum(node.core.owner.counts()["num_subscriptions"] for node in scene.nodes) == 2


def test_routes_survive_the_restart_of_the_publishers_node():
    scene = Scene()
    one, other, _ = scene.nodes
    subscriber = scene.comes("subscriber", other, {b"a/#": 1})
    scene.crash(one)
    scene.start(one)
    payloads = scene.publish(scene.comes("publisher", one), b"a/b", 1, 10)
    scene.until(lambda: scene.payloads(subscriber) == payloads)


# Net splits.


def netsplits(scene):
    """Return how many splits each node detected, and how many it saw resolved."""
    found = [node.core.mesh.netsplits() for node in scene.nodes]
    return [(counts["netsplit_detected"], counts["netsplit_resolved"]) for counts in found]


def islands(scene):
    """Split one node off, and wait until all have noticed."""
    one, other, third = scene.nodes
    scene.split([one], [other, third])
    if scene.world.readiness == ALL:
        scene.until(lambda: not any(node.core.mesh.readiness.ready for node in scene.nodes))
    else:
        scene.until(lambda: not other.core.mesh.peers[one.name].running and not third.core.mesh.peers[one.name].running)
    return one, other


def test_qos_0_reaches_who_is_connected_across_a_short_split():
    scene = Scene()
    one, other, third = scene.nodes
    subscriber = scene.comes("subscriber", one, {b"a/b": 0})
    publisher = scene.comes("publisher", other)
    scene.split([one], [other, third])
    publisher.publish(b"a/b", 0)
    scene.run(0.5)
    assert scene.payloads(subscriber) == []
    scene.heal()
    scene.until(lambda: scene.payloads(subscriber))
    # Once the other side counts as away, what nobody has to have is dropped, and counted.
    islands(scene)
    publisher.publish(b"a/b", 0)
    scene.run(0.5)
    assert other.core.mesh.counters()["link_drop_not_running"] == 1
    scene.heal()
    scene.run(1.0)
    assert len(scene.payloads(subscriber)) == 1


def test_nobody_registers_in_a_split():
    scene = Scene(readiness=ALL)
    one, other = islands(scene)
    assert netsplits(scene) == [(1, 0)] * 3
    clients = [scene.client("at one", one), scene.client("at other", other)]
    for client in clients:
        client.connect()
    scene.run(1.0)
    assert [client.state for client in clients] == [OFFLINE] * 2
    assert scene.world.stats["CONNECTs refused"] == 2
    scene.heal()
    scene.until(lambda: all(node.core.mesh.readiness.ready for node in scene.nodes))
    assert netsplits(scene) == [(1, 1)] * 3
    for client in clients:
        scene.connect(client)


def test_both_islands_register_where_that_is_allowed():
    scene = Scene(readiness=ALL, settings=OwnerSettings(allow_register_during_netsplit=True))
    one, other = islands(scene)
    clients = [scene.client(f"at {node.name}", node, client_id="one") for node in (one, other)]
    for client in clients:
        scene.connect(client)
        assert not client.session_present
    assert scene.connected("one") == [one, other]
    scene.heal()
    # Afterwards there is one, and nobody asks a client to say so.
    scene.until(lambda: len(scene.homes("one")) == 1)
    scene.run(5.0)
    assert len(scene.connected("one")) == 1
    assert [client.state for client in clients].count(ONLINE) == 1


def test_a_takeover_ends_a_connection_that_does_not_notice():
    """Its client hears nothing, and its node goes on believing in it until it is told otherwise."""
    scene = Scene()
    one, other, _ = scene.nodes
    client = scene.comes("client", one, {b"a/b": 1})
    client.disconnect(True, True)
    assert scene.connected("client") == [one]
    scene.connect(client, other)
    assert client.session_present
    assert scene.connected("client") == [other]
    scene.run(10.0)
    assert client.state == ONLINE
    assert scene.connected("client") == [other]
