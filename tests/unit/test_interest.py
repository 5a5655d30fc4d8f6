"""cluster.interest: what the rows of peers make of the filters that they want, and what a restart finds again."""

import pytest

from broker.core.rows import RowKind, pack_group, pack_interest, pack_row
from broker.core.storage import MemoryStorage, WriteBatch
from cluster.interest import PeerInterest
from cluster.mesh_store import MeshStore
from cluster.turn import Turn

STORE = b"store of the peer"[:16]
SHARED = b"$share/g/a/+"


class Node:
    """An interest with the store behind it; `s` is a peer that runs."""

    def __init__(self, storage):
        self.storage = storage
        self.turn = Turn()
        self.interest = PeerInterest(MeshStore(storage, self.turn), self.turn)
        self.restored = self.interest.add_peer("s", STORE, True)
        self.interest.set_running("s", True)
        self.turn.routes_changed = False

    def want(self, topic_filter, persistent):
        self.interest.set_row("s", pack_row(RowKind.INTEREST, topic_filter), pack_interest(persistent))

    def unwant(self, topic_filter):
        self.interest.remove_row("s", pack_row(RowKind.INTEREST, topic_filter))

    def share(self, persistent, online, shared_filter=SHARED):
        self.interest.set_row("s", pack_row(RowKind.GROUP, shared_filter), pack_group(persistent, online))

    def unshare(self, shared_filter=SHARED):
        self.interest.remove_row("s", pack_row(RowKind.GROUP, shared_filter))

    def parts(self, shared_filter=SHARED):
        """(node, persistent, connected, running) of a group."""
        group = self.interest.group(shared_filter)
        parts = [] if group is None else group.parts.values()
        return [(part.node, part.persistent, part.online, part.running) for part in parts]

    def groups_changed(self):
        changed, self.turn.groups_changed = list(self.turn.groups_changed), {}
        return changed

    def changed(self):
        changed, self.turn.routes_changed = self.turn.routes_changed, False
        return changed

    def commit(self):
        batch = WriteBatch()
        self.turn.take_writes(batch)
        self.storage.commit(batch)
        return len(batch)

    def stored(self):
        self.commit()
        return sorted(key[len(b"interest/") + 16 :] for key, _ in self.storage.scan("registry", b"", b""))


@pytest.fixture
def node():
    node = Node(MemoryStorage())
    yield node
    node.interest.validate()


def test_rows_make_routes(node):
    node.want(b"a/+", False)
    node.want(b"b/#", True)
    assert node.changed()
    assert node.interest.match(b"a/x") == [("s", False)]
    assert node.interest.match(b"b") == [("s", True)]
    node.unwant(b"a/+")
    assert node.changed()
    assert node.interest.match(b"a/x") == []


def test_persistent_wins_over_passing_and_a_node_stands_once(node):
    node.want(b"a/+", False)
    node.want(b"a/#", True)
    assert node.interest.match(b"a/x") == [("s", True)]
    node.want(b"a/#", False)
    assert node.interest.match(b"a/x") == [("s", False)]


def test_only_persistent_wishes_count_for_a_peer_that_is_down(node):
    node.want(b"a", False)
    node.want(b"b", True)
    node.changed()
    node.interest.set_running("s", False)
    assert node.changed()
    assert node.interest.match(b"a") == []
    assert node.interest.match(b"b") == [("s", True)]
    node.interest.set_running("s", False)
    assert not node.changed()


def test_an_estate_wants_what_it_said_last(node):
    node.want(b"a", True)
    node.interest.set_estate("estate", [b"a", b"b", b"a"])
    assert node.changed()
    assert sorted(node.interest.match(b"a")) == [("estate", True), ("s", True)]
    assert node.interest.match(b"b") == [("estate", True)]
    node.interest.validate()
    node.interest.set_estate("estate", [b"b"])
    assert node.changed()
    assert node.interest.match(b"a") == [("s", True)]
    assert node.interest.match(b"b") == [("estate", True)]
    node.interest.validate()
    node.interest.forget("s")
    node.interest.set_estate("estate", [])
    assert node.interest.match(b"b") == []


def test_what_is_told_again_changes_nothing(node):
    node.want(b"a", True)
    assert node.changed() and node.commit() == 1
    node.want(b"a", True)
    node.unwant(b"b")
    assert not node.changed() and node.commit() == 0


def test_the_store_holds_what_is_persistent(node):
    node.want(b"a", True)
    node.want(b"b", False)
    node.want(b"c", True)
    node.want(b"d", True)
    assert node.stored() == [b"a", b"c", b"d"]
    node.want(b"c", False)
    node.unwant(b"d")
    assert node.stored() == [b"a"]
    assert node.interest.persistent_filters("s") == [b"a"]


def test_a_restart_finds_what_is_persistent_and_writes_nothing(node):
    node.want(b"a/#", True)
    node.want(b"b", False)
    node.commit()
    again = Node(node.storage)
    assert again.restored == [b"a/#"]
    assert again.interest.match(b"a/b") == [("s", True)]
    assert again.interest.match(b"b") == []
    again.want(b"a/#", True)
    assert again.commit() == 0


def test_a_forgotten_node_wants_nothing(node):
    node.want(b"a", True)
    node.interest.forget("s")
    assert node.changed()
    assert node.interest.match(b"a") == []
    assert node.interest.persistent_filters("s") == []
    assert node.stored() == []


def test_rows_make_parts_of_groups(node):
    assert node.interest.match_groups(b"a/b") == []
    node.share(True, 3)
    node.share(False, 1, b"$share/h/a/b")
    assert node.changed()
    assert node.groups_changed() == [SHARED, b"$share/h/a/b"]
    assert {group.shared_filter for group in node.interest.match_groups(b"a/b")} == {SHARED, b"$share/h/a/b"}
    assert [group.shared_filter for group in node.interest.match_groups(b"a/c")] == [SHARED]
    assert node.parts() == [("s", True, 3, True)]
    assert node.interest.match(b"a/b") == [], "a group is no wish for its topics"
    group = node.interest.group(SHARED)
    node.share(False, 0)
    assert node.interest.group(SHARED) is group
    assert (node.changed(), node.groups_changed()) == (False, [SHARED]), "routes stand, what is in them changes"
    assert node.parts() == [("s", False, 0, True)]
    node.unshare()
    assert (node.parts(), node.changed(), node.groups_changed()) == ([], True, [SHARED])
    node.unshare()
    assert not node.groups_changed()


def test_a_group_has_a_part_for_each_node_that_says_so(node):
    node.interest.add_peer("t", b"t" * 16, False)
    node.share(True, 3)
    node.changed()
    node.interest.set_row("t", pack_row(RowKind.GROUP, SHARED), pack_group(False, 2))
    assert not node.changed()
    assert node.parts() == [("s", True, 3, True), ("t", False, 2, False)]
    node.interest.set_running("t", True)
    assert node.parts()[1] == ("t", False, 2, True)
    node.groups_changed()
    node.interest.set_running("s", False)
    assert node.groups_changed() == [SHARED]
    node.interest.forget("s")
    assert node.parts() == [("t", False, 2, True)]
    node.interest.forget("t")
    assert node.interest.match_groups(b"a/b") == []


def test_a_restart_finds_the_parts_that_wait(node):
    node.share(True, 3)
    node.share(False, 3, b"$share/h/a")
    node.want(b"a", True)
    assert node.stored() == [SHARED, b"a"]
    again = Node(node.storage.survivor())
    assert sorted(again.restored) == [SHARED, b"a"]
    assert again.parts() == [("s", True, 0, True)]
    assert again.interest.persistent_filters("s") == [b"a"]
    assert again.commit() == 0
    again.share(True, 1)
    assert again.commit() == 0
    again.share(False, 1)
    assert again.stored() == [b"a"]
    again.share(True, 1)
    again.unshare()
    assert again.stored() == [b"a"]
    again.interest.validate()
