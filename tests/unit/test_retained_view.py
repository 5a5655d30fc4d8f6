"""cluster.retained_view: every node replays the newest message of a topic, and what was deleted does not rise again."""

import pytest
from builds import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from retained_network import RETAINED, RetainedNetwork, join_all, retained_cluster

from broker.core.message import Message
from broker.core.retained_rows import FAMILY, ORDER_BYTES, pack_deleted, pack_stored, retained_row, stamp_of, stored_key
from broker.core.storage import StorageError, WriteBatch, put_store_id
from cluster import commands as say
from cluster.clock import AHEAD_MS_MAX, LOGICAL_BITS
from cluster.frames import FrameType
from cluster.mesh_store import forget_cluster
from cluster.replication import BULK_BYTES_MAX
from cluster.retained_view import heir
from cluster.table_frames import unpack_table_bulk

YEAR_2099_MS = 2_300_000_000_000


def is_table_bulk(command):
    return isinstance(command, say.SendBulk) and command.frame[1] == FrameType.TABLE_BULK


def is_message(received):
    return isinstance(received, Message)


def requests(nodes):
    return sum(node.mesh.counters()["table_requests"] for node in nodes)


def test_the_last_message_is_replayed_everywhere_and_its_owner_alone_has_a_row():
    network, (one, two, three) = retained_cluster()
    one.publish(b"t", b"first")
    assert network.run(5, lambda: network.shows({b"t": b"first"}))
    assert (one.rows(), two.rows()) == ({b"t": b"first"}, {})
    two.publish(b"t", b"second")
    three.publish(b"u", b"another")
    assert network.run(5, lambda: network.shows({b"t": b"second", b"u": b"another"}))
    assert network.run(5, network.agrees)
    assert (one.rows(), two.rows(), three.rows()) == ({}, {b"t": b"second"}, {b"u": b"another"})


def test_a_delete_stays_as_a_row_until_nobody_has_anything_older():
    network, (one, two, three) = retained_cluster()
    one.publish(b"t", b"old")
    assert network.run(5, lambda: network.shows({b"t": b"old"}))
    network.kill("node1@h")
    two.publish(b"t", b"")
    assert network.run(20, lambda: not three.shown() and three.mesh.peers["node1@h"].running is False)
    assert network.run(5, lambda: False) is False
    assert two.rows() == {b"t": None}
    one.start()
    assert one.shown() == {b"t": b"old"}
    assert network.run(20, network.agrees)
    assert network.shows({})
    network.run(5)
    assert [node.retained.order_of(b"t") for node in network.up()] == [b""] * 3


def test_a_node_alone_keeps_no_row_of_what_is_deleted_or_over():
    network = RetainedNetwork()
    node = network.add("node1@h")
    node.publish(b"t", b"x")
    node.publish(b"u", b"x", expiry_s=2.0)
    node.publish(b"t", b"")
    node.publish(b"never", b"")
    network.run(1)
    assert node.rows() == {b"u": b"x"}
    network.run(3)
    assert (node.rows(), list(node.storage.scan(FAMILY, b"", b""))) == ({}, [])


@compiled
def test_what_expires_does_not_uncover_what_is_older():
    network, (one, two, three) = retained_cluster()
    one.publish(b"t", b"old")
    network.run(1)
    network.cut = {frozenset((one.name, two.name)), frozenset((one.name, three.name))}
    two.publish(b"t", b"new", expiry_s=20.0)
    assert network.run(15, lambda: three.shown() == {b"t": b"new"})
    network.run(25)
    assert not two.shown() and not three.shown()
    assert two.rows() == {b"t": None}
    network.cut = set()
    assert network.run(30, network.agrees)
    assert network.shows({})


def test_what_is_replayed_stays_until_the_newer_message_is_here():
    """Its owner has heard of a newer one, of which this node has not."""
    network, (one, two, three) = retained_cluster()
    one.publish(b"t", b"old")
    assert network.run(5, lambda: network.shows({b"t": b"old"}))
    execute = network.execute
    until = network.now + 10

    def through(node, command):
        # What two tells three of its rows is lost for a while.
        if not (is_table_bulk(command) and node is two and command.node == three.name and network.now < until):
            execute(node, command)

    network.execute = through
    two.publish(b"t", b"new")
    seen = set()

    def look():
        seen.add(tuple(three.shown().values()))
        return network.shows({b"t": b"new"})

    assert not network.run(9, look)
    assert one.rows() == {}
    assert network.run(20, look)
    assert seen == {(b"old",), (b"new",)}


def test_a_restart_without_changes_sends_nothing():
    network, nodes = retained_cluster()
    for number in range(300):
        nodes[number % 3].publish(b"t%d" % number, b"x" * (1 + number))
    network.run(2)
    assert network.agrees()
    told = set()
    execute = network.execute

    def through(node, command):
        if is_table_bulk(command):
            told.add(unpack_table_bulk(command.frame)[1][1])
        execute(node, command)

    network.execute = through
    for node in nodes:
        network.kill(node.name)
        network.run(1)
        node.start()
        assert len(node.shown()) == 300
        assert network.run(20, lambda: all(each.mesh.is_complete() for each in nodes))
        assert network.agrees()
    assert told == {FrameType.TABLE_POSITION}
    assert requests(nodes) == 0


def test_a_row_goes_ahead_of_the_message_that_is_forwarded():
    """Reason: who subscribes after others had the message must not be replayed the one before."""
    network, (one, two) = retained_cluster(count=2)
    one.publish(b"t", b"old")
    assert network.run(5, lambda: network.shows({b"t": b"old"}))
    sent = []
    execute = network.execute

    def through(node, command):
        if node is one and isinstance(command, say.SendBulk):
            kind = command.frame[1]
            sent.append(unpack_table_bulk(command.frame)[1][1] if kind == FrameType.TABLE_BULK else kind)
        execute(node, command)

    network.execute = through
    for number in range(20):
        payload = b"%d" % number
        live = Message(b"t", payload, b"", 1, True, 0.0, "client", one.store_id, (1 << 40) + number)
        one.mesh.forward(two.name, live, None, network.now)
        one.publish(b"t", payload)
        sent.clear()
        assert network.run(5, lambda number=number: len([each for each in two.received if is_message(each)]) > number)
        assert two.shown() == {b"t": payload}
        news = [kind for kind in sent if kind != FrameType.TABLE_POSITION]
        assert news == [FrameType.TABLE_DELTA, FrameType.FORWARDS]


# Clocks.


def test_a_node_whose_clock_is_decades_ahead_wins_no_longer_than_until_the_next_message():
    network = RetainedNetwork()
    one = network.add("node1@h")
    wrong = network.add("node2@h", skew_ms=YEAR_2099_MS)
    join_all(network, ["node1@h", "node2@h"])
    wrong.publish(b"t", b"from the future")
    assert network.run(5, lambda: network.shows({b"t": b"from the future"}))
    one.publish(b"t", b"of today")
    one.publish(b"u", b"of today")
    assert network.run(5, network.agrees)
    assert network.shows({b"t": b"of today", b"u": b"of today"})
    # Nothing else that it stamps is taken along.
    now_ms = network.utc_ms(one)
    assert stamp_of(one.retained.order_of(b"u")) >> LOGICAL_BITS <= now_ms + AHEAD_MS_MAX + 1
    assert one.mesh.counters()["stamps_clamped"] > 0
    one.publish(b"t", b"")
    assert network.run(10, network.agrees)
    assert network.shows({b"u": b"of today"})


def test_a_clock_that_is_behind_does_not_lose_what_is_published_in_knowledge_of_the_last():
    network = RetainedNetwork()
    late = network.add("node1@h", skew_ms=-3_600_000)
    one = network.add("node2@h")
    join_all(network, ["node1@h", "node2@h"])
    one.publish(b"t", b"first")
    assert network.run(5, lambda: network.shows({b"t": b"first"}))
    late.publish(b"t", b"second")
    assert network.run(5, lambda: network.shows({b"t": b"second"}))
    assert network.run(5, network.agrees)


@pytest.mark.parametrize("payload", [b"of the next life", b""])
def test_a_stamp_that_is_given_again_after_a_power_loss_hides_no_message(payload):
    """Reason: the others have heard of the message that was lost, and took the next one of that stamp for the same."""
    network, (one, _, _) = retained_cluster()
    network.run(1)
    one.skew_ms = -3_600_000
    one.publish(b"t", b"first")
    assert network.run(5, lambda: network.shows({b"t": b"first"}))
    synced = one.storage.survivor()
    one.publish(b"t", b"lost")
    assert network.run(5, lambda: network.shows({b"t": b"lost"}))
    lost = one.retained.order_of(b"t")
    network.kill(one.name)
    one.storage = synced
    network.run(1)
    one.start()
    assert one.shown() == {b"t": b"first"}
    one.publish(b"t", payload)
    assert stamp_of(one.retained.order_of(b"t")) == stamp_of(lost)
    shown = {b"t": payload} if payload else {}
    assert network.run(20, network.agrees)
    assert network.shows(shown)


# Who comes and who goes.


def test_a_store_that_joins_adds_and_overrides_nothing():
    network = RetainedNetwork()
    old = network.add("node1@h")
    old.publish(b"both", b"of the cluster")
    old.publish(b"cluster", b"x")
    network.run(1)
    joiner = network.add("node2@h")
    joiner.publish(b"both", b"of the joiner, later")
    joiner.publish(b"joiner", b"y")
    network.run(1)
    join_all(network, ["node1@h", "node2@h"])
    assert network.run(10, network.agrees)
    assert network.shows({b"both": b"of the cluster", b"cluster": b"x", b"joiner": b"y"})
    joiner.publish(b"both", b"of a member")
    joiner.publish(b"joiner", b"")
    assert network.run(10, network.agrees)
    assert network.shows({b"both": b"of a member", b"cluster": b"x"})


def remove(network, gone):
    """What `cluster leave` of a node that is down comes to at a member."""
    network.kill(gone.name)
    member = next(node for node in network.up())
    member.mesh._peers.merge([], [(gone.name, gone.store_id)], network.now)


def test_what_a_removed_member_had_is_divided_among_the_others():
    network, (one, two, three) = retained_cluster()
    shown = {}
    for number in range(40):
        shown[b"t%d" % number] = b"x%d" % number
        three.publish(b"t%d" % number, b"x%d" % number)
    network.run(1)
    one.publish(b"t0", b"newer")
    shown[b"t0"] = b"newer"
    assert network.run(10, lambda: network.agrees() and network.shows(shown))
    remove(network, three)
    assert network.run(20, network.agrees)
    assert network.shows(shown)
    assert one.rows() and two.rows()
    stores = [one.store_id, two.store_id]
    assert all(heir(topic, stores) == one.store_id for topic in one.rows() if topic != b"t0")
    # It survives a restart, too.
    network.run(1)
    network.kill(one.name)
    one.start()
    assert one.shown() == shown


def test_what_only_some_had_heard_of_a_removed_member_is_kept():
    network, (one, two, three) = retained_cluster()
    execute = network.execute

    def through(node, command):
        # What three says last of its rows, two alone hears.
        if not (is_table_bulk(command) and node is three and command.node == one.name):
            execute(node, command)

    network.execute = through
    shown = {}
    for number in range(20):
        shown[b"t%d" % number] = b"x"
        three.publish(b"t%d" % number, b"x")
    network.run(0.5)
    assert (two.shown(), one.shown()) == (shown, {})
    remove(network, three)
    assert network.run(30, network.agrees)
    assert network.shows(shown)


def test_a_copied_store_makes_all_that_it_holds_its_own():
    network, (one, two, _) = retained_cluster()
    one.publish(b"t", b"of one")
    two.publish(b"u", b"of two")
    network.run(1)
    copy = RetainedNetwork()
    node = copy.add("node9@h", start=False)
    node.storage = one.storage.survivor()
    batch = WriteBatch()
    put_store_id(batch, node.store_id)
    forget_cluster(batch)
    node.storage.commit(batch)
    node.start()
    copy.run(1)
    assert node.rows() == node.shown() == {b"t": b"of one", b"u": b"of two"}
    assert len(list(node.storage.scan(FAMILY, b"", b""))) == 2
    copy.kill(node.name)
    node.start()
    assert node.shown() == {b"t": b"of one", b"u": b"of two"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"short", b"\1"),
        (stored_key(b"x" * 16, b"t"), b"\1\1"),
        (stored_key(b"x" * 16, b"t"), b""),
        (stored_key(b"x" * 16, b"t"), b"\x63"),
        (b"x" * 16 + b"\0\0" + retained_row(b"t"), pack_stored(pack_deleted(bytes(ORDER_BYTES)))),
        (b"x" * 16 + b"\xff\xff" + retained_row(b"t"), pack_stored(pack_deleted(bytes(ORDER_BYTES)))),
        (b"\xff" * 40, b"\1"),
    ],
)
def test_stored_rows_of_others_that_can_not_be_read_are_named(key, value):
    network = RetainedNetwork()
    node = network.add("node1@h", start=False)
    batch = WriteBatch()
    batch.put(FAMILY, key, value)
    node.storage.commit(batch)
    with pytest.raises(StorageError, match="retained record"):
        node.start()


# Limits and sizes.


def test_limits_refuse_what_is_published_here_and_keep_what_comes_from_others():
    network, (one, two, _) = retained_cluster(messages_max=2)
    assert one.publish(b"a", b"x") and one.publish(b"b", b"x")
    assert not one.publish(b"c", b"x")
    network.run(1)
    assert not two.publish(b"c", b"x")
    network.cut = {frozenset((one.name, two.name))}
    assert two.publish(b"a", b"")
    network.run(0.1)
    assert two.publish(b"d", b"x")
    assert two.publish(b"a", b"") and two.publish(b"b", b"")
    network.run(0.1)
    assert two.publish(b"e", b"x")
    assert one.publish(b"a", b"y") and one.publish(b"b", b"y")
    network.cut = set()
    assert network.run(30, network.agrees)
    assert network.shows({b"a": b"y", b"b": b"y", b"d": b"x", b"e": b"x"})
    assert one.mesh.counters()["retained_over_limit"] > 0
    assert not one.publish(b"f", b"x")


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
def test_large_messages_go_on_the_bulk_connection_alone(size):
    network, (one, two, three) = retained_cluster()
    longest = 0
    execute = network.execute

    def through(node, command):
        nonlocal longest
        if isinstance(command, say.SendControl):
            longest = max(longest, len(command.frame))
        execute(node, command)

    network.execute = through
    shown = {}
    for number in range(12):
        shown[b"t%d" % (number % 4)] = b"%d" % number * size
        one.publish(b"t%d" % (number % 4), b"%d" % number * size)
    assert network.run(10, lambda: network.shows(shown))
    # And so do the answers of whoever lost all that was told.
    network.kill(three.name)
    two.publish(b"t0", b"y" * size)
    one.publish(b"t1", b"y" * size)
    shown.update({b"t0": b"y" * size, b"t1": b"y" * size})
    network.run(5)
    three.start()
    assert network.run(30, network.agrees)
    assert network.shows(shown)
    assert longest < 10_000


def test_a_peer_that_does_not_keep_up_is_not_told_everything_and_asks_afterwards():
    network, (one, two, _) = retained_cluster()
    sent = []
    execute = network.execute

    def through(node, command):
        if is_table_bulk(command) and node is one and command.node == two.name and network.now < until:
            sent.append(len(command.frame))
        else:
            execute(node, command)

    until = network.now + 2
    network.execute = through
    for number in range(40):
        one.publish(b"t%d" % number, b"x" * 500_000)
        network.run(0.01)
    assert sum(sent) < BULK_BYTES_MAX + 1_000_000
    assert network.run(30, network.agrees)
    assert len(two.shown()) == 40


# Whatever happens.

NODES = st.integers(0, 2)
TOPICS = st.sampled_from([b"a", b"b", b"c/d"])
STEPS = st.one_of(
    st.tuples(st.just("set"), NODES, TOPICS),
    st.tuples(st.just("set"), NODES, TOPICS),
    st.tuples(st.just("delete"), NODES, TOPICS),
    st.tuples(st.just("cut"), NODES, NODES),
    st.tuples(st.just("heal"), NODES, NODES),
    st.tuples(st.just("restart"), NODES, st.sampled_from([0.5, 7.0])),
    st.tuples(st.just("lose"), st.sampled_from([0.0, 0.5, 1.0]), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 1.0, 8.0]), st.just(0)),
)


@compiled
@settings(max_examples=12, deadline=None)
@given(st.lists(STEPS, max_size=25), st.integers(0, 1000))
def test_all_nodes_come_to_the_newest(steps, seed):
    network, nodes = retained_cluster(seed)
    newest = {}
    lost = 0.0
    network.lose = lambda command: is_table_bulk(command) and network.rng.random() < lost
    back_at = {}
    for number, (what, one, other) in enumerate(steps):
        for name in [name for name, at in back_at.items() if at <= network.now]:
            del back_at[name]
            network.nodes[name].start()
        if what == "wait":
            network.run(one)
        elif what == "lose":
            lost = one
        elif what == "cut" and one != other:
            network.cut = network.cut | {frozenset((nodes[one].name, nodes[other].name))}
        elif what == "heal":
            network.cut = network.cut - {frozenset((nodes[one].name, nodes[other].name))}
        elif what == "restart" and not nodes[one].down:
            network.kill(nodes[one].name)
            back_at[nodes[one].name] = network.now + other
        elif what in ("set", "delete") and not nodes[one].down:
            payload = b"%d" % number if what == "set" else b""
            assert nodes[one].publish(other, payload)
            newest[other] = payload
            network.run(0.02)
    network.cut = set()
    lost = 0.0
    for name, at in back_at.items():
        # Not before the others hear that its connections ended: no new one comes before the end of the old one.
        network.run(max(0.0, at - network.now))
        network.nodes[name].start()
    assert network.run(60, network.agrees), [(node.shown(), node.rows()) for node in nodes]
    assert network.shows({topic: payload for topic, payload in newest.items() if payload})
    # And nothing is left of what is not there, nor does anything rise.
    network.run(5)
    assert network.agrees()
    assert network.shows({topic: payload for topic, payload in newest.items() if payload})
    assert all(not node.retained.order_of(topic) for node in nodes for topic in newest if not newest[topic])
    for node in nodes:
        for peer in node.mesh.peers.values():
            peer.tables.replicas[RETAINED].validate_rows()
