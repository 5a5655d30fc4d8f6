"""Effects: what the queue-owner wants done, in the order in which it has to be done.

The order of the fields is the order of execution. Nothing that acknowledges leaves before the
writes behind it are committed: that is the whole point of the type.
"""

from typing import Final, final

from broker.core.message import Message
from broker.core.owner_records import OwnerBatch
from broker.core.rows import RowChange
from broker.core.storage import WriteBatch

# No connection has this number.
NO_CONNECTION: Final = -1


@final
class Ticket:
    """A PUBLISH that may not be acknowledged yet: it waits for other nodes, or behind one that does.

    `waiting` counts the nodes that still have to answer; with QoS 2 none has to. `reason` is what the acknowledgement
    will say, a PUBACK or, with `qos` 2, a PUBREC. `connection` is where it waits for its turn, or waited: by now
    another connection may have that number, and nothing there waits for this ticket. The links carry it and give it
    back; they never look inside.
    """

    __slots__ = ("connection", "packet_id", "qos", "reason", "waiting")

    def __init__(self, connection: int, packet_id: int, reason: int, qos: int = 1) -> None:
        self.connection = connection
        self.packet_id = packet_id
        self.reason = reason
        self.qos = qos
        self.waiting: int = 0


@final
class Forward:
    """A message for another node, once whatever the number of its subscribers there.

    With `persistent` the node has to have it: unless a ticket waits for that, it is stored with the turn's writes.
    `groups` are the shared filters of the groups for which the node was chosen; `plain` says that it is for the other
    subscribers there as well, `waited` that it comes out of a queue.
    """

    __slots__ = ("groups", "message", "node", "persistent", "plain", "ticket", "waited")

    def __init__(
        self,
        node: str,
        message: Message,
        ticket: Ticket | None,
        persistent: bool,
        groups: list[bytes] | None = None,
        plain: bool = True,
        waited: bool = False,
    ) -> None:
        self.node = node
        self.message = message
        self.ticket = ticket
        self.persistent = persistent
        self.groups = groups
        self.plain = plain
        self.waited = waited


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
