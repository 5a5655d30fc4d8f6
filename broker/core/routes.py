"""Routes: who gets a message of a topic, looked up once and remembered until a subscription changes.

It owns the node's subscriptions as topic trees and the cache over them; the other nodes' wishes come through
`Interest`, which the cluster implements. It decides nothing about queues or connections, nor which part of a shared
group gets a message.
"""

from typing import Final, Protocol, final

from broker.core.events import REFUSED_TOPIC
from broker.core.group_choice import GroupParts
from broker.core.session import Session
from broker.core.shared import SharedGroup
from broker.core.subscription import NO_LOCAL, QOS_MASK, RETAIN_AS_PUBLISHED, Subscription
from broker.core.topic_tree import TopicTree
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import unmounted

# About 100 bytes an entry beside the topic: 50,000 topics cost some 10 MiB, and beyond that an
# empty cache costs one look-up in the tree for each topic.
ROUTES_MAX: Final = 50_000
# Longer topics are looked up each time: one client that never subscribes could fill gigabytes with them.
REMEMBERED_BYTES_MAX: Final = 256


class Interest(Protocol):
    """What the other nodes want, for their sessions and for their parts of shared groups."""

    def match(self, topic: bytes) -> list[tuple[str, bool]]:
        """Return (node name, persistent) of every other node that wants the topic, each once."""

    def match_groups(self, topic: bytes) -> list[GroupParts]:
        """Return the groups of other nodes that the topic is for; what is in them may change while routes stand."""

    def group(self, shared_filter: bytes) -> GroupParts | None:
        """Return what other nodes have of a group, None for nothing."""


class NoInterest:
    """The interest of a node that is alone."""

    def match(self, topic: bytes) -> list[tuple[str, bool]]:
        """Return nothing: nobody else is there."""
        return []

    def match_groups(self, topic: bytes) -> list[GroupParts]:
        """Return nothing."""
        return []

    def group(self, shared_filter: bytes) -> GroupParts | None:
        """Return nothing."""
        return None


@final
class RoutedGroup:
    """A group that a topic is for: this node's part, and what the others have; one of them at least."""

    __slots__ = ("here", "others")

    def __init__(self, here: SharedGroup | None, others: GroupParts | None) -> None:
        self.here = here
        self.others = others


@final
class Route:
    """The sessions with what is granted to each, the shared groups, and the (node name, persistent) of other nodes.

    `granted` holds the highest QoS, and RETAIN_AS_PUBLISHED. `identifiers` holds the sessions' subscription identifiers
    as encoded properties, and is empty when none has any. `no_local` holds the sessions that don't want their own
    messages. `refused` is the reason why clients may not publish to the topic, 0 when they may.
    """

    __slots__ = ("granted", "groups", "identifiers", "no_local", "nodes", "refused", "sessions")

    def __init__(self, nodes: list[tuple[str, bool]]) -> None:
        self.sessions: list[Session] = []
        self.granted: list[int] = []
        self.identifiers: list[bytes] = []
        self.groups: list[RoutedGroup] = []
        self.no_local: dict[str, Session] = {}
        self.nodes = nodes
        self.refused: int = 0

    def without(self, left_out: list[Session]) -> "Route":
        """Return the route to this node's sessions but for some."""
        route = Route(self.nodes)
        route.no_local = self.no_local
        route.refused = self.refused
        for index, session in enumerate(self.sessions):
            if session not in left_out:
                route.sessions.append(session)
                route.granted.append(self.granted[index])
                if self.identifiers:
                    route.identifiers.append(self.identifiers[index])
        return route


@final
class Routes:
    """Subscriptions of this node and the routes they make."""

    def __init__(self, interest: Interest) -> None:
        self._tree: TopicTree[Session, Subscription] = TopicTree()
        self._groups: TopicTree[SharedGroup, bool] = TopicTree()
        self._cache: dict[bytes, Route] = {}
        self._interest = interest

    def __len__(self) -> int:
        return len(self._tree)

    def set(self, topic_filter: bytes, session: Session, subscription: Subscription) -> bool:
        """Add or replace a subscription; true when it is new."""
        self._cache.clear()
        return self._tree.set(topic_filter, session, subscription)

    def remove(self, topic_filter: bytes, session: Session) -> None:
        """Remove a subscription."""
        self._cache.clear()
        self._tree.remove(topic_filter, session)

    def add_group(self, group: SharedGroup) -> None:
        """Add a shared group."""
        self._cache.clear()
        self._groups.set(group.topic_filter, group, True)

    def remove_group(self, group: SharedGroup) -> None:
        """Remove a shared group."""
        self._cache.clear()
        self._groups.remove(group.topic_filter, group)

    def invalidate(self) -> None:
        """Forget what is remembered: the other nodes' interest changed."""
        self._cache.clear()

    def find(self, topic: bytes) -> Route:
        """Return the route of a topic name."""
        route = self._cache.get(topic)
        if route is None:
            route = self._look_up(topic)
            if len(topic) > REMEMBERED_BYTES_MAX:
                return route
            if len(self._cache) >= ROUTES_MAX:
                self._cache.clear()
            self._cache[topic] = route
        return route

    def _look_up(self, topic: bytes) -> Route:
        route = Route(self._interest.match(topic))
        highest: dict[Session, int] = {}
        identifiers: dict[Session, bytes] = {}
        own: dict[str, bool] = {}
        for session, subscription in self._tree.match(topic):
            # [MQTT-3.3.4-2] [MQTT311-3.3.5-1] Overlapping subscriptions make one delivery, at the highest QoS of them,
            options = subscription.options
            before = highest.get(session, 0)
            highest[session] = max(options & QOS_MASK, before & QOS_MASK) | (options | before) & RETAIN_AS_PUBLISHED
            if subscription.encoded:
                # [MQTT-3.3.4-4] with the identifiers of all.
                identifiers[session] = identifiers.get(session, b"") + subscription.encoded
            if options & NO_LOCAL:
                route.no_local[session.client_id] = session
            else:
                own[session.client_id] = True
        for client_id in own:
            # One subscription without No Local is enough to get one's own messages.
            route.no_local.pop(client_id, None)
        route.sessions = list(highest.keys())
        route.granted = list(highest.values())
        if identifiers:
            route.identifiers = [identifiers.get(session, b"") for session in route.sessions]
        route.groups = self._match_groups(topic)
        if unmounted(topic).startswith(b"$"):
            # [MQTT-4.7.2-1] [MQTT311-4.7.2-1] and its comment: the server keeps $-topics for itself.
            route.refused = int(Reason.NOT_AUTHORIZED)
        elif topic == REFUSED_TOPIC:
            route.refused = int(Reason.TOPIC_NAME_INVALID)
        return route

    def _match_groups(self, topic: bytes) -> list[RoutedGroup]:
        here = [group for group, _ in self._groups.match(topic)]
        others = {parts.shared_filter: parts for parts in self._interest.match_groups(topic)}
        found = [RoutedGroup(group, others.pop(group.shared_filter, None)) for group in here]
        found += [RoutedGroup(None, parts) for parts in others.values()]
        return found
