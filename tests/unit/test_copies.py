"""cluster.copies: of a member that is down a node comes to know what any other one knows."""

import pytest
from builds import compiled
from mesh_network import cluster

from broker.core.epoch import Epoch
from broker.core.rows import (
    BUCKETS,
    RowChange,
    RowKind,
    SessionRow,
    Table,
    pack_row,
    pack_session,
    pack_subscription,
)
from broker.core.storage import WriteBatch
from cluster import commands as say
from cluster.frames import FrameType
from cluster.table_frames import TableCopy as Copy
from cluster.table_frames import (
    TableDone,
    TableRequest,
    pack_table_copy,
    pack_table_done,
    pack_table_request,
    unpack_table_copy,
    unpack_table_done,
)
from cluster.tables import ANSWER_BYTES_MAX

LATE = "node9@h"


def has_session(node, client_id, filters):
    """Have a node have a persistent session that wants these filters."""
    subject = client_id.encode()
    session = pack_session(SessionRow(Epoch(1, 1, node.store_id), True, 60, None))
    changes = [RowChange(Table.LASTING, pack_row(RowKind.SESSION, subject), 0, session)]
    for topic_filter in filters:
        row = pack_row(RowKind.SUBSCRIPTION, subject, topic_filter)
        changes.append(RowChange(Table.LASTING, row, 0, pack_subscription(1, 0)))
        node.wish(topic_filter, persistent=True)
    node.mesh.change_rows(changes)


def known(node, of):
    """Return what a node knows of another one's sessions: as of which version, and from which homes by client id."""
    return node.mesh.peers[of.name].tables.known(Table.LASTING)[1]


def sessions(node):
    return sorted(node.mesh.registry.rows())


def late(network, nodes):
    """Have a node join while the second one is down."""
    newcomer = network.add(LATE)
    result = network.join(LATE, nodes[0].name)
    assert result.joined, result.text
    return newcomer


def test_of_the_wishes_those_that_outlive_a_connection_are_copied():
    network, nodes = cluster()
    one, away, other = nodes
    away.wish(b"passing/#")
    has_session(away, "sleeper", [b"lasting/#", b"$share/g/lasting"])
    assert network.run(5, lambda: known(one, away) == known(other, away) > 0)
    network.kill(away.name)
    assert network.run(20, lambda: one.running() == other.running() == [one.name, other.name])
    newcomer = late(network, nodes)
    assert network.run(10, lambda: away.name in newcomer.mesh.peers and known(newcomer, away) == known(one, away))
    interest = newcomer.mesh.interest
    assert interest.match(b"lasting/x") == [(away.name, True)]
    assert interest.match(b"passing/x") == []
    assert newcomer.mesh.registry.find("sleeper").node == away.name
    # After a restart it knows the same, and is not told once more.
    copied = one.mesh.counters()["tables_copied"]
    before = known(newcomer, away)
    network.run(0.1)
    network.kill(LATE)
    newcomer.start()
    assert newcomer.mesh.interest.match(b"lasting/x") == [(away.name, True)]
    assert network.run(20, lambda: set(newcomer.running()) == {one.name, other.name, LATE})
    network.run(10)
    assert known(newcomer, away) == before
    assert newcomer.mesh.counters()["tables_copied"] == 0
    assert one.mesh.counters()["tables_copied"] == copied
    away.start()
    assert network.run(20, network.one_cluster)
    assert network.run(10, lambda: newcomer.mesh.is_complete())
    newcomer.mesh.peers[away.name].tables.replicas[Table.LASTING].validate_rows()
    newcomer.mesh.peers[away.name].tables.replicas[Table.PASSING].validate_rows()


@compiled
@pytest.mark.parametrize("dies", [False, True])
def test_a_long_table_is_copied_in_rounds(dies):
    """If who tells it dies, another one goes on."""
    network, nodes = cluster(count=4)
    one, away, other, third = nodes
    names = [f"sleeper {number}" for number in range(ANSWER_BYTES_MAX // 3200)]
    filters = {name: [b"%s/%d/%s" % (name.encode(), number, b"x" * 190) for number in range(20)] for name in names}
    for name in names:
        has_session(away, name, filters[name])
    assert network.run(20, lambda: known(one, away) == known(other, away) == known(third, away) > 0)
    network.kill(away.name)
    assert network.run(20, lambda: away.name not in one.running() + other.running() + third.running())
    newcomer = late(network, nodes)
    assert network.run(10, lambda: away.name in newcomer.mesh.peers)
    rounds = []
    execute = network.execute

    def spy(node, command):
        if isinstance(command, say.SendControl) and command.frame[1] == FrameType.TABLE_COPY:
            inner = unpack_table_copy(command.frame).frame
            if inner[1] == FrameType.TABLE_DONE and command.node == LATE:
                rounds.append((node.name, unpack_table_done(inner).table))
                if dies and len(rounds) == 2:
                    network.kill(node.name)
                    return
        execute(node, command)

    network.execute = spy
    assert network.run(
        60, lambda: known(newcomer, away) in {known(each, away) for each in nodes if not each.down and each is not away}
    )
    network.run(0.1)
    assert newcomer.mesh.interest.match(filters[names[-1]][-1]) == [(away.name, True)]
    assert [each[0] for each in newcomer.mesh.peers[away.name].tables.subscriptions_of(names[0])] == sorted(
        filters[names[0]]
    )
    assert any(rounds.count((name, Table.LASTING)) > 1 for name, _ in rounds)
    assert len({name for name, _ in rounds}) > dies


def test_if_a_member_does_not_answer_another_one_is_asked():
    """Its disk is full, perhaps."""
    network, nodes = cluster()
    one, away, other = nodes
    has_session(away, "sleeper", [b"lasting/#"])
    assert network.run(5, lambda: known(one, away) == known(other, away) > 0)
    network.kill(away.name)
    assert network.run(20, lambda: one.running() == other.running() == [one.name, other.name])
    newcomer = late(network, nodes)
    one.mesh.freeze(True)
    assert network.run(15, lambda: away.name in newcomer.mesh.peers and known(newcomer, away) == known(other, away))
    assert newcomer.mesh.interest.match(b"lasting/x") == [(away.name, True)]


def test_answers_that_nobody_asked_for_are_ignored():
    network, nodes = cluster()
    one, away, other = nodes
    network.kill(away.name)
    assert network.run(20, lambda: away.name not in one.running())
    connection = one.mesh.peers[other.name].connection
    before = one.mesh.counters()
    for store_id in (away.store_id, other.store_id, b"nobody".ljust(16, b".")):
        for table in (Table.PASSING, Table.LASTING, Table.RETAINED):
            done = pack_table_copy(Copy(store_id, False, 0, 0, pack_table_done(TableDone(table, 77, 0, 9, 9, 1))))
            one.mesh.receive(say.FrameReceived(other.name, connection, done), network.now)
    network.run(1)
    assert known(one, away) < 9
    assert one.mesh.counters()["tables_copied"] == before["tables_copied"]


def test_who_asks_of_one_that_is_not_known_is_answered_at_once():
    """Nothing of that is kept until what is written is committed: there may be any number of names."""
    network, nodes = cluster()
    one, other = nodes[0], nodes[2]
    asked = TableRequest(Table.LASTING, 7, 0, [0] * BUCKETS)
    request = pack_table_copy(Copy(b"nobody".ljust(16, b"."), True, 0, 0, pack_table_request(asked)))
    connection = one.mesh.peers[other.name].connection
    one.mesh.receive(say.FrameReceived(other.name, connection, request), network.now)
    answers = [each for each in one.mesh.flush(WriteBatch(), network.now) if isinstance(each, say.SendControl)]
    copy = unpack_table_copy(answers[-1].frame)
    assert unpack_table_done(copy.frame) == TableDone(Table.LASTING, 7, 0, 0, 0, BUCKETS)
