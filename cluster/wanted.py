"""Wanted: which sessions of a node that is gone, as it was told of last, a message is for.

Owns the plain subscriptions of those sessions as a topic tree. What is for a shared group says so itself. It knows
nothing of where the sessions are by now.
"""

from collections.abc import Iterable, Iterator
from typing import Final, final

from broker.core.message import Message
from broker.core.subscription import NO_LOCAL, QOS_MASK, RETAIN_AS_PUBLISHED, Subscription
from broker.core.topic_tree import TopicTree
from broker.mqtt.topics import SHARE_PREFIX


@final
class Wanted:
    """What the sessions of one node wanted. `wishes` are (client id, epoch counter, filter, subscription)."""

    def __init__(self, wishes: Iterable[tuple[str, int, bytes, Subscription]]) -> None:
        # Client id -> the counter of the epoch by which the session was there.
        self.counters: dict[str, int] = {}
        self._tree: Final[TopicTree[str, Subscription]] = TopicTree()
        for client_id, counter, topic_filter, subscription in wishes:
            self.counters[client_id] = counter
            if not topic_filter.startswith(SHARE_PREFIX):
                self._tree.set(topic_filter, client_id, subscription)

    def plain(self) -> Iterator[tuple[bytes, str, Subscription]]:
        """Iterate (filter, client id, subscription) of all that are not for groups."""
        return self._tree.items()

    def by(self, message: Message) -> dict[str, tuple[int, bool, bytes]]:
        """Return (QoS, RETAIN, identifiers) for each session that gets a message."""
        found: dict[str, tuple[int, bool, bytes]] = {}
        for client_id, subscription in self._tree.match(message.topic):
            options = subscription.options
            if options & NO_LOCAL and client_id == message.publisher:
                continue
            qos = min(message.qos, options & QOS_MASK)
            retain = message.retain and options & RETAIN_AS_PUBLISHED != 0
            before = found.get(client_id, (0, False, b""))
            found[client_id] = (
                max(qos, before[0]),
                retain or before[1],
                before[2] + subscription.encoded,
            )
        return found
