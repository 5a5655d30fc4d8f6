"""cluster.newcomers: of which sessions it is known from where on they are at a member, and for how long."""

import pytest

from broker.core.epoch import Epoch
from broker.core.message import Message
from broker.core.rows import RowKind, SessionRow, Table, bucket_of, pack_row, pack_session
from broker.core.storage import MemoryStorage, WriteBatch
from cluster.link import OutgoingLink
from cluster.mesh_store import MeshStore
from cluster.newcomers import Newcomers
from cluster.registry import Registry
from cluster.table_rows import StoredRows
from cluster.turn import Turn

OWN, PEER = b"o" * 16, b"p" * 16


class Node:
    """What a node keeps of one peer; its next message has the number 50."""

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self.storage = storage or MemoryStorage()
        self.turn = Turn()
        self.store = MeshStore(self.storage, self.turn)
        self.registry = Registry("own@h")
        self.link = OutgoingLink(OWN, self.store.outbox(PEER, 1 << 30))
        self.rows = StoredRows(self.storage, self.turn, PEER, Table.LASTING)
        self.newcomers = Newcomers(self.store, self.registry, self.link, self.rows, self.registry, PEER, lambda: 50)
        self.newcomers.restore()

    def wait(self) -> None:
        """Something waits for the peer."""
        self.link.forward(Message(b"a", b"", b"", 2, False, 0.0, "", OWN, 1), None, True, False, 0.0)

    def session(self, client_id: str, counter: int, node: str = "peer@h") -> None:
        subject = client_id.encode()
        row, value = pack_row(RowKind.SESSION, subject), pack_session(SessionRow(Epoch(counter, 0, PEER), True, 60, ""))
        if node == "peer@h":
            self.rows.put(bucket_of(subject), row, value)
            self.newcomers.set_row(node, Table.LASTING, bucket_of(subject), row, value)
        else:
            self.registry.set_row(node, Table.LASTING, bucket_of(subject), row, value)

    def known(self) -> dict[str, int]:
        """End the turn; what is stored is what counts."""
        self.newcomers.settle()
        batch = WriteBatch()
        self.turn.take_writes(batch)
        self.storage.commit(batch)
        return self.store.newcomers(PEER)


def test_it_is_known_of_who_has_another_home_when_heard_of_while_something_waited() -> None:
    node = Node()
    for client_id, counter in (("moved", 1), ("moved on", 3)):
        node.session(client_id, counter, "else@h")
    node.session("moved", 2)
    node.session("moved on", 2)
    node.session("began", 2)
    # What waits comes into the link when the turn ends.
    node.wait()
    assert node.known() == {"moved": 50, "moved on": 50}
    node.newcomers.marked = 40
    node.session("marked", 1, "else@h")
    node.session("marked", 2)
    node.session("moved", 3)
    assert node.known() == {"moved": 50, "moved on": 50, "marked": 40}, "what was known first holds"


def test_nothing_is_kept_of_who_came_when_nothing_waited() -> None:
    node = Node()
    node.session("moved", 1, "else@h")
    node.session("moved", 2)
    assert node.known() == {}
    # It is told once more, behind a message that is for it.
    node.wait()
    node.session("moved", 2)
    assert node.known() == {}


@pytest.mark.parametrize("restarts", [False, True])
def test_it_is_known_until_the_peer_has_what_waited_or_the_session_goes(restarts: bool) -> None:
    node = Node()
    for client_id in ("stays", "goes"):
        node.session(client_id, 1, "else@h")
        node.session(client_id, 2)
    node.wait()
    assert node.known() == {"stays": 50, "goes": 50}
    if restarts:
        node = Node(node.storage)
    row = pack_row(RowKind.SESSION, b"goes")
    node.newcomers.remove_row("peer@h", Table.LASTING, bucket_of(b"goes"), row)
    assert node.known() == {"stays": 50}
    node.link.acked = node.link.last_number()
    assert node.known() == {}
