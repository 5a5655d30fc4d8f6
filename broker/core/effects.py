"""Effects: what the queue-owner wants done, in the order in which it has to be done.

The order of the fields is the order of execution. Nothing that acknowledges leaves before the
writes behind it are committed: that is the whole point of the type.
"""

from typing import Final, final

from broker.core.message import Message
from broker.core.owner_records import OwnerBatch
from broker.core.rows import RowChange
from broker.core.storage import WriteBatch

# Of a ticket whose connection ended: no connection has this number.
NO_CONNECTION: Final = -1


@final
class Ticket:
    """A PUBLISH that waits for other nodes before it may be acknowledged.

    `waiting` counts the nodes that still have to answer; `reason` is what the acknowledgement will
    say, a PUBACK or, with `qos` 2, a PUBREC. `connection` is where it waits for its turn, NO_CONNECTION when that is
    over. The links carry it and give it back; they never look inside.
    The session of `client_id` holds the ticket itself while its PUBLISH is under way: a later one does not know it.
    """

    __slots__ = ("client_id", "connection", "packet_id", "qos", "reason", "waiting")

    def __init__(self, connection: int, packet_id: int, reason: int, qos: int = 1, client_id: str = "") -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.reason = reason
        self.qos = qos
        self.client_id = client_id
        self.waiting: int = 0


@final
class Forward:
    """A message for another node, once whatever the number of its subscribers there."""

    __slots__ = ("message", "node", "ticket")

    def __init__(self, node: str, message: Message, ticket: Ticket | None) -> None:
        self.node = node
        self.message = message
        self.ticket = ticket


@final
class InterestChange:
    """This node's own wish for a filter began, ended, or changed its persistence."""

    __slots__ = ("persistent", "topic_filter", "wanted")

    def __init__(self, topic_filter: bytes, wanted: bool, persistent: bool) -> None:
        self.topic_filter = topic_filter
        self.wanted = wanted
        self.persistent = persistent


@final
class Effects:
    """One turn's duties: commit `writes` with what `rows` adds to them, tell the peers, then the listeners.

    `to_listeners` is by their index.
    """

    __slots__ = ("interest", "rows", "to_listeners", "to_peers", "writes")

    def __init__(self) -> None:
        self.writes = WriteBatch()
        self.rows: list[RowChange] = []
        self.interest: list[InterestChange] = []
        self.to_peers: list[Forward] = []
        self.to_listeners: dict[int, OwnerBatch] = {}
