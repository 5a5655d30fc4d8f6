"""cluster.checks and cluster.audit: what every node really holds, whether it agrees, and what repairing does."""

import pytest
import recorded_frames
from mesh_network import cluster
from test_replication import session_row

from broker.core.rows import BUCKETS, RowKind, Table, bucket_of, pack_interest, pack_row, row_hash
from broker.core.storage import WriteBatch
from cluster import audit as audit_module
from cluster import check_frames
from cluster.audit import Finding
from cluster.checks import CHECK_TIMEOUT_S, REPAIR_TIMEOUT_S
from cluster.table_rows import KEY_TABLE
from cluster.wire import FrameError

PASSING, LASTING = int(Table.PASSING), int(Table.LASTING)
NAMES = ["node1@h", "node2@h", "node3@h"]
TOPIC = b"a/5"
WISH = pack_row(RowKind.INTEREST, TOPIC)


def filled(count=3):
    network, nodes = cluster(count=count)
    for node in nodes:
        for number in range(10):
            node.wish(b"a/%d" % number)
        node.mesh.change_rows(
            [session_row(b"%s of %s" % (b"%d" % each, node.name.encode()), node) for each in range(7)]
        )
    network.run(2)
    return network, nodes


def check(network, node, repair=False):
    node.mesh.check(repair, network.now)
    results = []

    def ended():
        result = node.mesh.take_check_result()
        if result is not None:
            results.append(result)
        return bool(results)

    assert network.run(CHECK_TIMEOUT_S + REPAIR_TIMEOUT_S + 1, ended)
    assert node.mesh.take_check_result() is None
    return results[0]


def wrong(result):
    """What doesn't agree: (holder, owner, table)."""
    return [
        (holder, each.owner, each.table)
        for holder, found in sorted(result.findings.items())
        for each in found
        if not each.agrees
    ]


def test_all_nodes_say_what_they_hold_of_all():
    network, nodes = filled()
    result = check(network, nodes[1])
    assert (result.agrees(), result.missing, sorted(result.findings)) == (True, [], NAMES)
    for found in result.findings.values():
        held = {(each.owner, each.table): each for each in found}
        assert sorted(held) == [(name, table) for name in NAMES for table in Table]
        for (owner, table), each in held.items():
            own = network.nodes[owner].mesh.own.all[table]
            rows = {PASSING: 10, LASTING: 7}.get(table, 0)
            assert each == Finding(owner, table, own.version, own.checksum, rows, True, True)


def test_a_node_that_is_alone_agrees_with_itself():
    network, nodes = filled(count=1)
    result = check(network, nodes[0])
    assert result.agrees() and [each.owner for each in result.findings["node1@h"]] == ["node1@h"] * len(Table)


def test_tables_that_change_all_the_time_agree():
    network, nodes = filled()
    turn = network.turn

    def busy(node):
        node.wish(b"busy/%f" % network.now)
        turn(node)

    network.turn = busy
    for node in nodes:
        assert check(network, node).agrees()


def test_a_row_that_is_missing_in_memory_is_found_and_repaired():
    network, nodes = filled()
    replica = nodes[2].mesh.peers["node1@h"].tables.replicas[PASSING]
    replica.rows.delete(bucket_of(TOPIC), WISH)
    for _ in range(2):
        # A look changes nothing.
        assert wrong(check(network, nodes[0])) == [("node3@h", "node1@h", PASSING)]
    result = check(network, nodes[1], repair=True)
    assert result.agrees() and result.missing == []
    assert (WISH, pack_interest(False)) in replica.rows.read(bucket_of(TOPIC))
    assert check(network, nodes[0]).agrees()


def test_a_row_that_is_missing_in_the_store_is_found_and_repaired():
    network, nodes = filled()
    key = KEY_TABLE + nodes[0].store_id + bytes((LASTING,))
    keys = [each for each in nodes[2].storage.snapshot()["registry"] if each.startswith(key)]
    assert len(keys) == 7
    batch = WriteBatch()
    batch.delete("registry", keys[3])
    nodes[2].storage.commit(batch)
    assert wrong(check(network, nodes[2])) == [("node3@h", "node1@h", LASTING)]
    assert check(network, nodes[2], repair=True).agrees()
    assert keys[3] in nodes[2].storage.snapshot()["registry"]


def test_what_a_node_told_of_itself_and_does_not_hold_is_told_anew():
    network, nodes = filled()
    nodes[0].mesh.own.all[PASSING].rows.delete(bucket_of(TOPIC), WISH)
    assert wrong(check(network, nodes[1])) == [("node1@h", "node1@h", PASSING)]
    assert check(network, nodes[1], repair=True).agrees()
    for node in nodes[1:]:
        assert ("node1@h", False) not in node.mesh.interest.match(TOPIC)
        assert ("node1@h", False) in node.mesh.interest.match(b"a/6")


def test_a_replica_that_has_other_rows_than_it_was_told_is_found_by_what_the_owner_says():
    network, nodes = filled()
    replica = nodes[1].mesh.peers["node3@h"].tables.replicas[PASSING]
    row = pack_row(RowKind.INTEREST, b"made up")
    replica.rows.put(bucket_of(b"made up"), row, pack_interest(True))
    replica.correct(bucket_of(b"made up"), row_hash(row, pack_interest(True)))
    network.lose = lambda command: b"\x01\x0d" in getattr(command, "frame", b"")[:2]
    assert wrong(check(network, nodes[0])) == [("node2@h", "node3@h", PASSING)]
    network.lose = lambda command: False
    assert check(network, nodes[0], repair=True).agrees()
    assert row not in dict(replica.rows.read(bucket_of(b"made up")))


def test_a_member_that_is_down_is_missing_and_of_its_tables_nobody_knows():
    network, nodes = filled()
    network.kill("node3@h")
    network.run(10)
    result = check(network, nodes[0])
    assert result.missing == ["node3@h"] and not result.agrees()
    assert wrong(result) == [(name, "node3@h", table) for name in NAMES[:2] for table in Table]
    assert not any(each.known for found in result.findings.values() for each in found if not each.agrees)


def test_a_member_that_says_nothing_is_not_waited_for_for_ever():
    network, nodes = filled()
    network.lose = lambda command: getattr(command, "frame", b"")[:2] == b"\x01\x23" and command.node == "node1@h"
    result = check(network, nodes[0])
    assert result.missing == NAMES[1:]
    assert wrong(result) == []


def test_a_repair_that_does_not_help_ends():
    network, nodes = filled()
    network.lose = lambda command: getattr(command, "frame", b"")[:2] == b"\x01\x0d"
    replica = nodes[1].mesh.peers["node3@h"].tables.replicas[PASSING]
    replica.rows.delete(bucket_of(TOPIC), WISH)
    assert wrong(check(network, nodes[0], repair=True)) == [("node2@h", "node3@h", PASSING)]


def test_a_turn_reads_a_part_and_the_next_is_due_at_once():
    network, nodes = filled(count=1)
    mesh = nodes[0].mesh
    mesh.check(False, network.now)
    turns = 0
    mesh.tick(network.now)
    while mesh.next_deadline() == 0.0:
        mesh.begin(network.now)
        mesh.tick(network.now)
        turns += 1
    assert turns >= 2 * BUCKETS // audit_module.BUCKETS_PER_TURN
    assert mesh.take_check_result().agrees()


def test_frames():
    found = [Finding("ü@a", 1, 5, 2**64 - 1, 7, True, True), Finding("b@b", 200, 0, 0, 0, False, False)]
    frame = check_frames.pack_checked(7, found)
    assert frame.hex() == dict(recorded_frames.VERSION_1)["CHECKED"]
    assert check_frames.unpack_checked(frame) == (7, found)
    for repair in (True, False):
        assert check_frames.unpack_check(check_frames.pack_check(2**32 - 1, repair)) == (2**32 - 1, repair)
    assert check_frames.pack_check(7, True).hex() == dict(recorded_frames.VERSION_1)["CHECK"]
    for size in range(len(frame)):
        with pytest.raises(FrameError):
            check_frames.unpack_checked(frame[:size])
