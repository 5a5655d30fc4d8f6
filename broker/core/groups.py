"""Groups: the shared groups of this node as parts of the cluster's, and which node gets what of them.

It owns who is a member here, what other nodes hear of that, and where a group's message goes: to the node that
`group_choice` names, once. Among this node's members `shared_dispatch` chooses. It knows other nodes by name, as
`Forward`s and through `Interest`.

Theory of operation
-------------------
Whoever publishes chooses one node for each group that matches (`choose`) and says for which groups the message is
forwarded there. Whoever holds a message of a group that nobody here can have any more places it anew (`place`): one
that came for a group which is here no longer, one that was in flight at QoS 1 to a session that ended, one that a node
was to have which died. From then on it is a message as any other.

What waits here while nobody of the group is connected goes to those that are connected elsewhere, and what waits in a
part without members to those that will come back, too: the oldest first, from the queue into the outbox in one batch.
It is not dropped there for want of room, and goes only where the queue is not full: a part says so when half of its
limits is taken, and again when but a quarter is. (A node that leaves gives it all the same.) A group that something of
the sort has happened to is in `_due`, and `tick` looks at it. When nobody is known to have it a part without members
waits until every member of the cluster is heard, and then ends with its queue, which is counted. What it keeps of
sessions that were members it keeps as long as others may have to have it: until those sessions have acknowledged it.

Invariants: a part without members has a queue, or is looked at now or after a while; others are told of no part without
members.
"""

import math
from collections.abc import Callable, Iterator
from typing import Final, final

from broker.core.dispatch import Dispatcher
from broker.core.effects import Forward
from broker.core.forwarding import Forwarding
from broker.core.group_choice import HERE, LOCAL_ONLY, PREFER_LOCAL, GroupParts, Lots, choose
from broker.core.message import Message
from broker.core.routes import Interest, RoutedGroup, Routes
from broker.core.rows import RowChange, RowKind, Table, pack_row, row_hash
from broker.core.session import Session
from broker.core.session_store import SessionStore
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.subscription import Subscription

# So many messages go to other nodes in a turn, of all groups; and after so long is looked again at what could not go.
HAND_OVER_MAX: Final = 500
RETRY_S: Final = 0.5


@final
class Choice:
    """Who gets a message of the groups that match: groups here, and by node the shared filters of groups there."""

    __slots__ = ("here", "nodes")

    def __init__(self) -> None:
        self.here: list[SharedGroup] = []
        self.nodes: dict[str, list[bytes]] = {}


# What nobody adds to: no group matches.
NOBODY: Final = Choice()


@final
class Groups:
    """The groups with members here, by shared filter in `all`."""

    def __init__(
        self,
        settings: OwnerSettings,
        store: SessionStore,
        routes: Routes,
        dispatcher: Dispatcher,
        forwarding: Forwarding,
        interest: Interest,
        seed: int,
    ) -> None:
        self.all = dispatcher.shared.groups
        # Whether every member of the cluster is heard, and what each has is known.
        self.is_complete: Callable[[], bool] = _yes
        # This node is to have nothing in the end: what waits goes to other nodes whether or not there is room.
        self.gives_all = False
        self._policy = settings.shared_policy
        self._store = store
        self._routes = routes
        self._dispatcher = dispatcher
        self._shared = dispatcher.shared
        self._counters = dispatcher.counters
        self._forwarding = forwarding
        self._interest = interest
        self._lots = Lots(seed)
        # Groups of which other nodes may have to hear something else; those that `tick` looks at, now or after a while.
        self._changed = dispatcher.shared.changed
        self._due: dict[SharedGroup, bool] = {}
        self._stuck: dict[SharedGroup, bool] = {}
        self._retry_at: float = math.inf

    # Members.

    def join(self, session: Session, shared_filter: bytes, wanted: Subscription) -> None:
        """Make a session a member, or change how it subscribes."""
        group = self._group(shared_filter)
        group.set_member(session, wanted)
        self._note(group)

    def leave(self, session: Session, shared_filter: bytes, now: float) -> None:
        """A session is no member any more; nothing, if it was none."""
        group = self.all.get(shared_filter)
        if group is None or session not in group.members:
            return
        group.remove_member(session)
        if group.members:
            self._dispatcher.member_gone(group, now)
        else:
            self._shared.member_gone(group)
            self._due[group] = True
        self._note(group)

    def attached(self, session: Session) -> None:
        """A member's connection began."""
        for group in session.groups:
            self._note(group)

    def detached(self, session: Session, now: float) -> None:
        """A member's connection ended, and the session did not."""
        for group in list(session.groups):
            self._dispatcher.member_gone(group, now)
            self._note(group)

    def restore(self, groups: dict[bytes, SharedGroup]) -> None:
        """Take over what recovery found: parts without members, until sessions join them."""
        for group in groups.values():
            self.all[group.shared_filter] = group
            self._add(group)
            if not group.queue.is_empty():
                self._shared.waiting[group] = True

    def _group(self, shared_filter: bytes) -> SharedGroup:
        group = self.all.get(shared_filter)
        if group is None:
            group = SharedGroup(self._store.take_number(), shared_filter)
            self.all[shared_filter] = group
            self._add(group)
        return group

    def _add(self, group: SharedGroup) -> None:
        self._routes.add_group(group)
        group.others = self._interest.group(group.shared_filter)
        self._due[group] = True

    def _end(self, group: SharedGroup) -> None:
        del self.all[group.shared_filter]
        self._routes.remove_group(group)
        self._shared.group_ends(group)
        self._stuck.pop(group, None)

    def _note(self, group: SharedGroup) -> None:
        """Somebody came, went or changed."""
        self._changed[group] = True
        if not group.online and not group.queue.is_empty():
            self._due[group] = True

    # What other nodes hear, and what is heard of them.

    def take_rows(self) -> list[RowChange]:
        """Return the changes of this node's GROUP rows since the last call."""
        if not self._changed:
            return []
        changes = []
        for group in self._changed:
            value = group.row_value()
            if value != group.told:
                row = pack_row(RowKind.GROUP, group.shared_filter)
                was = row_hash(row, group.told) if group.told else 0
                changes.append(RowChange(Table.PASSING, row, was, value or None))
                group.told = value
        self._changed.clear()
        return changes

    def snapshot(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Iterate (table, row, value) of all groups here, and take it for told."""
        for group in self.all.values():
            group.told = group.row_value()
            if group.told:
                yield int(Table.PASSING), pack_row(RowKind.GROUP, group.shared_filter), group.told

    def others_changed(self, shared_filter: bytes) -> None:
        """Another node's part of a group began, changed or ended."""
        group = self.all.get(shared_filter)
        if group is not None:
            group.others = self._interest.group(shared_filter)
            self._note(group)

    # Messages.

    def choose(self, routed: list[RoutedGroup], message: Message) -> Choice:
        """Return who gets a message that is published here."""
        choice = Choice()
        for each in routed:
            here = each.here
            if each.others is None:
                if here is not None and here.members:
                    choice.here.append(here)
                continue
            node = self._choose(self._policy, here, each.others, message)
            if node == HERE:
                assert here is not None
                choice.here.append(here)
            elif node is not None:
                choice.nodes.setdefault(node, []).append(each.others.shared_filter)
        return choice

    def place(self, shared_filter: bytes, message: Message, now: float, waited: bool = False) -> None:
        """Give a message that is the group's already to a member here or to a node that has one.

        `waited` says that it comes out of another node's queue.
        """
        group = self.all.get(shared_filter)
        node = self._choose(PREFER_LOCAL, group, self._interest.group(shared_filter), message)
        if node is None and message.qos and not self.is_complete():
            # Whoever is not heard yet may have members.
            group = self._group(shared_filter)
            node = HERE
        if node is None:
            if message.qos:
                self._counters.drop("group_ended")
        elif node == HERE:
            assert group is not None
            self._shared.offer(group, message, now, waited)
            if not group.online:
                self._due[group] = True
        else:
            self._forward(node, shared_filter, message, waited)

    def can_move(self, shared_filter: bytes, message: Message) -> bool:
        """Say whether somebody that runs could have a message of a group which another node was to have."""
        group = self.all.get(shared_filter)
        others = self._interest.group(shared_filter)
        running = [] if others is None else [part for part in others.parts.values() if part.running]
        online = 0 if group is None else len(group.online)
        lasting = group is not None and group.lasting > 0
        return choose(PREFER_LOCAL, online, lasting, running, message.qos > 0, 0) is not None

    def session_ended(self, session: Session, now: float) -> None:
        """What groups had given to a session at QoS 1 is another member's.

        What it had at QoS 2 must not go to anybody else [MQTT-4.8.2-5].
        """
        for delivery in session.inflight.deliveries.values():
            if not delivery.shared or delivery.qos != 1:
                continue
            message = delivery.message
            if message.expires_at and message.expires_at <= now:
                # [MQTT-3.3.2-5] Its delivery to another has not begun.
                self._counters.drop("expired")
            else:
                self.place(delivery.shared, message, now)
            self._shared.forget_kept(delivery)

    def _choose(
        self, policy: str, group: SharedGroup | None, others: GroupParts | None, message: Message
    ) -> str | None:
        """Choose a node that has room; one that has none if no other can have the message."""
        online = 0 if group is None else len(group.online)
        lasting = group is not None and group.lasting > 0
        parts = [] if others is None else list(others.parts.values())
        keeps = message.qos > 0
        full: str | None = None
        while True:
            node = choose(policy, online, lasting, parts, keeps, self._lots.take())
            if node is None:
                return full
            if node == HERE or not keeps or self._forwarding.has_room(node, message):
                return node
            full = full or node
            parts = [part for part in parts if part.node != node]

    def _forward(self, node: str, shared_filter: bytes, message: Message, waited: bool) -> None:
        """Who is sent a group's message is the only one, and so has to have it."""
        self._counters.router_matches_remote += 1
        self._forwarding.add(Forward(node, message, None, True, [shared_filter], False, waited))

    # What waits.

    def tick(self, now: float) -> None:
        """Hand over what waits for nobody here; call it once a turn."""
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._due.update(self._stuck)
            self._stuck = {}
        if not self._due:
            return
        budget = HAND_OVER_MAX
        due, self._due = self._due, {}
        for group in due:
            if self.all.get(group.shared_filter) is group:
                budget -= self._look(group, budget, now)

    def next_deadline(self) -> float:
        """Return when `tick` has something to do; 0.0 if now, infinity if never."""
        return 0.0 if self._due else self._retry_at

    def _look(self, group: SharedGroup, budget: int, now: float) -> int:
        """See what has to go from here, and return how many messages went."""
        if group.queue.is_empty() or not self._is_wanted_elsewhere(group):
            if self._is_over(group):
                self._end(group)
            elif not group.members:
                self._look_again(group, now)
            return 0
        count = 0
        while count < budget and not group.queue.is_empty():
            delivery = group.queue.head()
            if delivery is None:
                # `load` of the next turn reads on.
                self._shared.loading[group] = True
                break
            message = delivery.message
            if message.expires_at and message.expires_at <= now:
                self._shared.take(group, delivery)
                self._counters.drop("expired")
                continue
            node = self._next_home(group, message)
            if not node:
                self._look_again(group, now)
                return count
            self._shared.take(group, delivery)
            self._counters.queue_message_out += 1
            self._forward(node, group.shared_filter, message, True)
            count += 1
        self._due[group] = True
        return count

    def _is_over(self, group: SharedGroup) -> bool:
        """Say whether nobody is to have anything more of what this node has of a group."""
        if group.members:
            return False
        if group.queue.is_empty() and not group.kept:
            return True
        return self.is_complete() and not self._is_wanted_elsewhere(group)

    def _is_wanted_elsewhere(self, group: SharedGroup) -> bool:
        """Say whether what waits is for other nodes: of a part without connected members."""
        if group.online or group.others is None or (self._policy == LOCAL_ONLY and group.members):
            return False
        return bool(choose(PREFER_LOCAL, 0, group.lasting > 0, group.others.parts.values(), True, 0))

    def _next_home(self, group: SharedGroup, message: Message) -> str | None:
        """Return the node that has room for the next of what waits here, HERE or None if it has to wait on."""
        assert group.others is not None
        parts = [part for part in group.others.parts.values() if self.gives_all or not part.full]
        node = choose(PREFER_LOCAL, 0, group.lasting > 0, parts, True, self._lots.take())
        return node if node and self._forwarding.has_room(node, message) else None

    def waiting(self) -> tuple[int, int]:
        """Return how many messages wait here, and how many of those nobody would have but members that don't last."""
        count = 0
        passing = 0
        for group in self.all.values():
            parts = [] if group.others is None else list(group.others.parts.values())
            count += len(group.queue)
            if choose(PREFER_LOCAL, 0, group.lasting > 0, parts, True, 0) is None:
                passing += len(group.queue)
        return count, passing

    def to_give(self, waits: bool) -> int:
        """Return how many messages here are for other nodes; with `waits` those, too, that may turn out to be."""
        maybe = waits and not self.is_complete()
        return sum(len(group.queue) for group in self.all.values() if maybe or self._is_wanted_elsewhere(group))

    def _look_again(self, group: SharedGroup, now: float) -> None:
        self._stuck[group] = True
        self._retry_at = min(self._retry_at, now + RETRY_S)

    def validate(self) -> None:
        """Check the invariants of the parts; those of the groups themselves are `shared_dispatch`'s."""
        for group in self.all.values():
            assert group.members or group in self._due or group in self._stuck or not group.queue.is_empty()
            assert group.members or not group.told or group in self._changed
            assert group.others is self._interest.group(group.shared_filter)


def _yes() -> bool:
    """A node that is alone knows all."""
    return True
