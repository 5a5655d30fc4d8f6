"""Retained messages: the last message of a topic, kept for whoever subscribes later [MQTT-3.3.1-5].

It owns what subscribers are replayed: the newest message of each topic, wherever it entered the cluster, with the
look-up by topic filter, the limits and the expiry. All of it is in memory. And it owns this node's rows in the family
`retained` (see `retained_rows`): what was published here, or is adopted. It knows nothing of subscribers, and of other
nodes only what it is told: which message of theirs is newer (`show`), and what of its own rows may go.

Theory of operation
-------------------
A tree by topic level; a level holds its message and its children. A filter visits only levels that can match: one child
for a name, all children for `+`, everything below for `#`. Who looks for messages goes on a `RetainedWalk`, in as many
parts as it likes: a hundred thousand messages are never found at once, and those that come meanwhile tell by their
`revision` that they are younger than the walk.

What is published here is stamped above all that is known of its topic, so that it is the newest whatever any clock
says. The limits refuse only what is published here: what another node keeps is kept. While there are other members
(`shared`) a delete leaves a row that says so, for one of them may have an older message that this node has not heard
of; who knows that nobody has removes it (`drop_own`).

What the messages take in memory is estimated, for a limit that says so: MESSAGE_BYTES and its text for a message,
LEVEL_BYTES and its name for a level of the tree, which a topic may have thousands of. Measured with topics of one level
and of 127, short names and long ones, the sum is within a fifth of it.

Invariants: every level but the root has a message or children; `bytes` is the sum of what all messages and levels
count; every message that expires has an entry in the heap; an own row is never newer than what is known of its topic.
"""

import heapq
import math
from collections.abc import Callable
from typing import Final, final

from broker.core.message import Message
from broker.core.retained_rows import (
    FAMILY,
    STAMP_MAX,
    VALUE_VERSION,
    pack_deleted,
    pack_order,
    pack_retained,
    pack_stored,
    retained_row,
    stamp_of,
    stored_key,
    stored_topic,
    unpack_retained,
    value_order,
)
from broker.core.rows import ROW_VERSION, RowChange, Table, row_hash
from broker.core.storage import STORE_ID_BYTES, Storage, WriteBatch
from broker.core.stored_message import UNREADABLE, Clock, check_version, corrupt

# A message with its topic, its id and its place among all, apart from the text.
MESSAGE_BYTES: Final = 360
# A level with its table of children and its place in its parent's, apart from the name.
LEVEL_BYTES: Final = 280
# How many deadlines one call looks at, those that stand for nothing included: the rest is due at once again.
EXPIRED_MAX: Final = 1000
# So many children that a walk takes note of cost it as much as a level that it visits.
_CHILDREN_PER_STEP: Final = 16
_STEPS_AT_ONCE: Final = 1000
# Entries of the heap that stand for nothing any more, beside as many as there are messages.
_STALE_DEADLINES_MAX: Final = 64


@final
class _Level:
    __slots__ = ("children", "message", "revision")

    def __init__(self) -> None:
        self.children: dict[bytes, _Level] = {}
        self.message: Message | None = None
        self.revision: int = 0


@final
class RetainedWalk:
    """A search for the messages that a filter matches, which the tree's changes do not disturb.

    `message` is what it stands at, None when nothing was found or that was removed meanwhile.
    """

    __slots__ = ("_depths", "_level", "_names", "_root", "_waiting")

    def __init__(self, root: _Level, topic_filter: bytes) -> None:
        self._root = root
        self._names = topic_filter.split(b"/")
        # Levels that are still to be visited, the next one last, and for each list how many names are matched by them.
        self._waiting: list[list[_Level]] = [[root]]
        self._depths: list[int] = [0]
        self._level: _Level | None = None

    @property
    def message(self) -> Message | None:
        """The message that was found last, or what has taken its place."""
        return None if self._level is None else self._level.message

    @property
    def revision(self) -> int:
        """The number of the change that `message` came with."""
        return 0 if self._level is None else self._level.revision

    def is_at_end(self) -> bool:
        """Say whether there is nothing left to find."""
        return not self._waiting

    def leave(self) -> None:
        """Be done with the message that was found last."""
        self._level = None

    def find(self, steps_max: int) -> int:
        """Go to the next message, or for `steps_max` steps, and return how many they were."""
        self._level = None
        steps = 0
        names = self._names
        while self._waiting and steps < steps_max:
            steps += 1
            levels = self._waiting[-1]
            depth = self._depths[-1]
            level = levels.pop()
            if not levels:
                self._waiting.pop()
                self._depths.pop()
            if depth == len(names):
                if level.message is not None:
                    self._level = level
                    break
                continue
            name = names[depth]
            if name == b"#":
                steps += self._note(_children(level, level is self._root), depth)
                if level.message is not None:
                    self._level = level
                    break
            elif name == b"+":
                steps += self._note(_children(level, level is self._root), depth + 1)
            else:
                child = level.children.get(name)
                if child is not None:
                    self._note([child], depth + 1)
        return steps

    def _note(self, levels: list[_Level], depth: int) -> int:
        if levels:
            levels.reverse()
            self._waiting.append(levels)
            self._depths.append(depth)
        return len(levels) // _CHILDREN_PER_STEP


@final
class _Kept:
    """What is known of a topic: `message` is what subscribers get, None when it was deleted or is over.

    `order` is that of the newest row that is known of it, `own` that of this node's row, b"" for none.
    """

    __slots__ = ("message", "order", "own", "own_hash")

    def __init__(self) -> None:
        self.message: Message | None = None
        self.order: bytes = b""
        self.own: bytes = b""
        self.own_hash: int = 0


@final
class RetainedStore:
    """The retained messages of a node; negative limits are none. `bytes` is about what they take in memory.

    `changes` are those of this node's rows, for whoever tells others of them.
    """

    def __init__(self, messages_max: int, bytes_max: int, store_id: bytes = bytes(STORE_ID_BYTES)) -> None:
        self.bytes: int = 0
        # How many messages were set since the start.
        self.revision: int = 0
        self.changes: list[RowChange] = []
        # There are other members of the cluster, who may hold what this node has not heard of.
        self.shared: bool = False
        # The hybrid logical clock, where there is one.
        self.stamp: Callable[[], int] = _no_clock
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._store_id = store_id
        self._messages: int = 0
        self._by_topic: dict[bytes, _Kept] = {}
        self._root = _Level()
        self._deadlines: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return self._messages

    def set(self, message: Message, writes: WriteBatch, clock: Clock, now: float) -> bool:
        """Keep the message in place of the topic's last one [MQTT311-3.3.1-7]; false when a limit forbids it.

        An empty payload removes what is there [MQTT-3.3.1-6] [MQTT311-3.3.1-10], and is not kept itself
        [MQTT-3.3.1-7] [MQTT311-3.3.1-11].
        """
        topic = message.topic
        kept = self._by_topic.get(topic)
        if message.payload:
            if self._is_too_much(kept, message):
                return False
            kept = self._kept(topic)
            kept.order = self._next_order(kept, message)
            self._keep(kept, message)
            self._put_own(topic, kept, pack_retained(kept.order, message, clock), writes)
        elif self.shared:
            kept = self._kept(topic)
            self._hide(topic, kept)
            kept.order = self._next_order(kept, message)
            self._put_own(topic, kept, pack_deleted(kept.order), writes)
        elif kept is not None:
            self._hide(topic, kept)
            self.drop_own(topic, writes)
            del self._by_topic[topic]
        return True

    # What is known of other nodes.

    def order_of(self, topic: bytes) -> bytes:
        """Return the order of the newest row that is known of a topic, b"" if there is none."""
        kept = self._by_topic.get(topic)
        return b"" if kept is None else kept.order

    def own_order(self, topic: bytes) -> bytes:
        """Return the order of this node's row of a topic, b"" if it has none."""
        kept = self._by_topic.get(topic)
        return b"" if kept is None else kept.own

    def is_deleted(self, topic: bytes) -> bool:
        """Say whether this node's row of a topic says that it is deleted."""
        kept = self._by_topic.get(topic)
        return kept is not None and kept.message is None and kept.own != b"" and kept.own == kept.order

    def deleted(self) -> list[bytes]:
        """Return the topics of which this node's row says that they are deleted."""
        return [topic for topic in self._by_topic if self.is_deleted(topic)]

    def newest_stamp(self) -> int:
        """Return the highest stamp of all topics."""
        return max([stamp_of(kept.order) for kept in self._by_topic.values()], default=0)

    def show(self, topic: bytes, order: bytes, message: Message | None) -> bool:
        """Replay this message of another node from now on, or none; false if it is kept beyond this node's limits."""
        kept = self._by_topic.get(topic)
        too_much = message is not None and self._is_too_much(kept, message)
        kept = self._kept(topic)
        kept.order = order
        if message is None:
            self._hide(topic, kept)
        else:
            self._keep(kept, message)
        return not too_much

    def forget(self, topic: bytes) -> None:
        """No node has anything of the topic any more."""
        kept = self._by_topic.get(topic)
        if kept is not None:
            assert not kept.own
            self._hide(topic, kept)
            del self._by_topic[topic]

    def drop_own(self, topic: bytes, writes: WriteBatch) -> None:
        """Remove this node's row: a newer one is elsewhere, or there is nothing left that it stood against."""
        kept = self._by_topic[topic]
        if kept.own:
            writes.delete(FAMILY, stored_key(self._store_id, topic))
            self.changes.append(RowChange(Table.RETAINED, retained_row(topic), kept.own_hash, None))
            kept.own = b""
            kept.own_hash = 0

    def adopt(self, topic: bytes, writes: WriteBatch, clock: Clock) -> None:
        """Make what is known of a topic this node's: its owner is gone."""
        kept = self._by_topic[topic]
        message = kept.message
        value = pack_deleted(kept.order) if message is None else pack_retained(kept.order, message, clock)
        self._put_own(topic, kept, value, writes)

    def become_oldest(self, writes: WriteBatch, clock: Clock) -> None:
        """Have everything be older than whatever the cluster has that this node joins: it adds, and overrides nothing.

        Otherwise what was deleted there long ago would rise again.
        """
        for topic, kept in list(self._by_topic.items()):
            message = kept.message
            if message is None:
                self.drop_own(topic, writes)
                del self._by_topic[topic]
            else:
                kept.order = pack_order(0, kept.order[8:])
                self._put_own(topic, kept, pack_retained(kept.order, message, clock), writes)

    def _kept(self, topic: bytes) -> _Kept:
        kept = self._by_topic.get(topic)
        if kept is None:
            kept = _Kept()
            self._by_topic[topic] = kept
        return kept

    def _next_order(self, kept: _Kept, message: Message) -> bytes:
        # Above what is known of the topic even if a node whose clock is far ahead has set that: the clamped clock of
        # this node may be behind.
        return pack_order(min(max(self.stamp(), stamp_of(kept.order) + 1), STAMP_MAX), message.key())

    def _put_own(self, topic: bytes, kept: _Kept, value: bytes, writes: WriteBatch) -> None:
        row = retained_row(topic)
        writes.put(FAMILY, stored_key(self._store_id, topic), pack_stored(value))
        self.changes.append(RowChange(Table.RETAINED, row, kept.own_hash, value))
        kept.own = kept.order
        kept.own_hash = row_hash(row, value)

    def _hide(self, topic: bytes, kept: _Kept) -> None:
        """Replay nothing of the topic any more."""
        message = kept.message
        if message is None:
            return
        kept.message = None
        self._messages -= 1
        self.bytes -= MESSAGE_BYTES + message.size()
        names = topic.split(b"/")
        path: list[_Level] = [self._root]
        for name in names:
            path.append(path[-1].children[name])
        path[-1].message = None
        depth = len(names)
        while depth and path[depth].message is None and not path[depth].children:
            depth -= 1
            del path[depth].children[names[depth]]
            self.bytes -= LEVEL_BYTES + len(names[depth])

    def _is_too_much(self, kept: _Kept | None, message: Message) -> bool:
        """Say whether a limit forbids to keep the message."""
        last = None if kept is None else kept.message
        if 0 <= self._messages_max < self._messages + (1 if last is None else 0):
            return True
        return self._bytes_max >= 0 and self._size_with(last, message) > self._bytes_max

    def _size_with(self, last: Message | None, message: Message) -> int:
        """Return what `bytes` will be once the message is kept in place of `last`."""
        if last is not None:
            return self.bytes + message.size() - last.size()
        size = self.bytes + MESSAGE_BYTES + message.size()
        level: _Level | None = self._root
        for name in message.topic.split(b"/"):
            level = None if level is None else level.children.get(name)
            if level is None:
                size += LEVEL_BYTES + len(name)
        return size

    def walk(self, topic_filter: bytes) -> RetainedWalk:
        """Return a search for the messages whose topics the filter matches, expired ones included."""
        return RetainedWalk(self._root, topic_filter)

    def match(self, topic_filter: bytes, now: float) -> list[Message]:
        """Return the messages whose topics the filter matches, all at once."""
        found: list[Message] = []
        walk = self.walk(topic_filter)
        while not walk.is_at_end():
            walk.find(_STEPS_AT_ONCE)
            message = walk.message
            if message is not None and not is_expired(message, now):
                found.append(message)
        return found

    def expire(self, now: float, writes: WriteBatch) -> int:
        """Remove what has expired, and return how many; of the deadlines that are over EXPIRED_MAX are looked at.

        An own row goes, too. While there are other members it stays as one that says deleted, since one of them may
        have an older message. Others' rows are theirs to remove.
        """
        expired = 0
        looked_at = 0
        while self._deadlines and self._deadlines[0][0] <= now and looked_at < EXPIRED_MAX:
            looked_at += 1
            deadline, topic = heapq.heappop(self._deadlines)
            kept = self._by_topic.get(topic)
            message = None if kept is None else kept.message
            # Another message may have taken its place.
            if kept is None or message is None or message.expires_at != deadline:
                continue
            expired += 1
            self._hide(topic, kept)
            if self.shared:
                if kept.own == kept.order:
                    self._put_own(topic, kept, pack_deleted(kept.order), writes)
            else:
                self.drop_own(topic, writes)
                del self._by_topic[topic]
        return expired

    def next_deadline(self) -> float:
        """Return when `expire` may have something to do, in monotonic seconds; infinity when never."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def recover(self, storage: Storage, clock: Clock) -> None:
        """Read what is stored of this node's rows; call it once, before anything else."""
        start = self._store_id
        for key, stored in storage.scan(FAMILY, start, start + b"\xff\xff"):
            topic, value, message = read_stored(key, stored, clock)
            kept = self._kept(topic)
            kept.order = value_order(value)
            kept.own = kept.order
            kept.own_hash = row_hash(retained_row(topic), value)
            if message is not None:
                self._keep(kept, message)

    def _keep(self, kept: _Kept, message: Message) -> None:
        topic = message.topic
        last = kept.message
        kept.message = message
        if last is None:
            self._messages += 1
        self.bytes += message.size() + (MESSAGE_BYTES if last is None else -last.size())
        level = self._root
        for name in topic.split(b"/"):
            child = level.children.get(name)
            if child is None:
                child = _Level()
                level.children[name] = child
                self.bytes += LEVEL_BYTES + len(name)
            level = child
        level.message = message
        self.revision += 1
        level.revision = self.revision
        if message.expires_at != 0.0:
            heapq.heappush(self._deadlines, (message.expires_at, topic))
            if len(self._deadlines) > 2 * self._messages + _STALE_DEADLINES_MAX:
                # A topic that is published again and again would have an entry for each time.
                left = [(each.expires_at, each.topic) for each in self._all() if each.expires_at != 0.0]
                heapq.heapify(left)
                self._deadlines = left

    def _all(self) -> list[Message]:
        return [kept.message for kept in self._by_topic.values() if kept.message is not None]

    def validate(self) -> None:
        """Check the invariants."""
        topics: list[bytes] = []
        messages = self._all()
        size = sum(MESSAGE_BYTES + message.size() for message in messages)
        levels = [self._root]
        while levels:
            level = levels.pop()
            assert level is self._root or level.message is not None or level.children
            if level.message is not None:
                topics.append(level.message.topic)
            levels.extend(level.children.values())
            size += sum(LEVEL_BYTES + len(name) for name in level.children)
        assert sorted(topics) == sorted(message.topic for message in messages)
        assert len(messages) == self._messages
        assert self.bytes == size
        deadlines = set(self._deadlines)
        for message in messages:
            assert message.expires_at == 0.0 or (message.expires_at, message.topic) in deadlines
        for kept in self._by_topic.values():
            assert kept.own <= kept.order
            assert bool(kept.own) == bool(kept.own_hash)


def is_expired(message: Message, now: float) -> bool:
    """Say whether the message's time is over [MQTT-3.3.2-5]."""
    return message.expires_at != 0.0 and message.expires_at <= now


def read_stored(key: bytes, stored: bytes, clock: Clock) -> tuple[bytes, bytes, Message | None]:
    """Return (topic, value, message) of a stored row; StorageError if it can't be read."""
    check_version(stored, ROW_VERSION, FAMILY)
    try:
        topic = stored_topic(key)
        value = stored[1:]
        check_version(value, VALUE_VERSION, FAMILY)
        message = unpack_retained(topic, value, clock)
    except UNREADABLE as error:
        raise corrupt(FAMILY, key, error) from None
    return topic, value, message


def _no_clock() -> int:
    """One node's messages follow each other without one, topic by topic."""
    return 0


def _children(level: _Level, is_root: bool) -> list[_Level]:
    """The children that a wildcard stands for: on the first level none that begin with $ [MQTT-4.7.2-1]."""
    if not is_root:
        return list(level.children.values())
    return [child for name, child in level.children.items() if not name.startswith(b"$")]
