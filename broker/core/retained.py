"""Retained messages: the last message of a topic, kept for whoever subscribes later [MQTT-3.3.1-5].

It owns the family `retained` of the store, the look-up by topic filter, the limits and the expiry. All of them are in
memory as well. It knows nothing of subscribers.

    retained  topic  version u8, flags u8 (1 deleted: room for a tombstone), stamp u64 (room for a hybrid logical
                     clock), message id (24 bytes), body (see `stored_message`)

Theory of operation
-------------------
A tree by topic level; a level holds its message and its children. A filter visits only levels that can match: one child
for a name, all children for `+`, everything below for `#`. Who looks for messages goes on a `RetainedWalk`, in as many
parts as it likes: a hundred thousand messages are never found at once, and those that come meanwhile tell by their
`revision` that they are younger than the walk.

What the messages take in memory is estimated, for a limit that says so: MESSAGE_BYTES and its text for a message,
LEVEL_BYTES and its name for a level of the tree, which a topic may have thousands of. Measured with topics of one level
and of 127, short names and long ones, the sum is within a fifth of it.

Invariants: every level but the root has a message or children; `bytes` is the sum of what all messages and levels
count; every message that expires has an entry in the heap.
"""

import heapq
import math
import struct
from typing import Final, final

from broker.core.message import Message
from broker.core.storage import Storage, WriteBatch
from broker.core.stored_message import (
    MESSAGE_KEY_BYTES,
    UNREADABLE,
    Clock,
    check_version,
    corrupt,
    pack_message,
    unpack_message,
)

VALUE_VERSION: Final = 1
# A message with its topic, its id and its place among all, apart from the text.
MESSAGE_BYTES: Final = 200
# A level with its table of children and its place in its parent's, apart from the name.
LEVEL_BYTES: Final = 280
# How many deadlines one call looks at, those that stand for nothing included: the rest is due at once again.
EXPIRED_MAX: Final = 1000
# So many children that a walk takes note of cost it as much as a level that it visits.
_CHILDREN_PER_STEP: Final = 16
_STEPS_AT_ONCE: Final = 1000
# Entries of the heap that stand for nothing any more, beside as many as there are messages.
_STALE_DEADLINES_MAX: Final = 64
_HEAD: Final = struct.Struct(">BBQ")


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
class RetainedStore:
    """The retained messages of a node; negative limits are none. `bytes` is about what they take in memory."""

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.bytes: int = 0
        # How many messages were set since the start.
        self.revision: int = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._by_topic: dict[bytes, Message] = {}
        self._root = _Level()
        self._deadlines: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._by_topic)

    def set(self, message: Message, writes: WriteBatch, clock: Clock, now: float) -> bool:
        """Keep the message in place of the topic's last one [MQTT311-3.3.1-7]; false when a limit forbids it.

        An empty payload removes what is there [MQTT-3.3.1-6] [MQTT311-3.3.1-10], and is not kept itself
        [MQTT-3.3.1-7] [MQTT311-3.3.1-11].
        """
        if not message.payload:
            self.remove(message.topic, writes)
            return True
        last = self._by_topic.get(message.topic)
        messages = len(self._by_topic) + (1 if last is None else 0)
        if 0 <= self._messages_max < messages or (self._bytes_max >= 0 and self._size_with(message) > self._bytes_max):
            return False
        self._keep(message)
        head = _HEAD.pack(VALUE_VERSION, 0, 0)
        writes.put("retained", message.topic, head + message.key() + pack_message(message, clock))
        return True

    def remove(self, topic: bytes, writes: WriteBatch) -> bool:
        """Remove the topic's message; false when there is none."""
        message = self._by_topic.pop(topic, None)
        if message is None:
            return False
        self.bytes -= MESSAGE_BYTES + message.size()
        writes.delete("retained", topic)
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
        return True

    def _size_with(self, message: Message) -> int:
        """Return what `bytes` will be once the message is kept."""
        last = self._by_topic.get(message.topic)
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
        """Remove what has expired, and return how many; of the deadlines that are over EXPIRED_MAX are looked at."""
        expired = 0
        looked_at = 0
        while self._deadlines and self._deadlines[0][0] <= now and looked_at < EXPIRED_MAX:
            looked_at += 1
            deadline, topic = heapq.heappop(self._deadlines)
            message = self._by_topic.get(topic)
            # Another message may have taken its place.
            if message is not None and message.expires_at == deadline:
                self.remove(topic, writes)
                expired += 1
        return expired

    def next_deadline(self) -> float:
        """Return when `expire` may have something to do, in monotonic seconds; infinity when never."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def recover(self, storage: Storage, clock: Clock) -> None:
        """Read what is stored; call it once, before anything else."""
        body = _HEAD.size + MESSAGE_KEY_BYTES
        for key, value in storage.scan("retained", b"", b""):
            check_version(value, VALUE_VERSION, "retained")
            try:
                message = unpack_message(value[_HEAD.size : body], value, body, clock)
                if message.topic != key:
                    raise ValueError(f"a message of {message.topic!r}")
            except UNREADABLE as error:
                raise corrupt("retained", key, error) from None
            self._keep(message)

    def _keep(self, message: Message) -> None:
        topic = message.topic
        last = self._by_topic.get(topic)
        self._by_topic[topic] = message
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
            if len(self._deadlines) > 2 * len(self._by_topic) + _STALE_DEADLINES_MAX:
                # A topic that is published again and again would have an entry for each time.
                kept = [(left.expires_at, left.topic) for left in self._by_topic.values() if left.expires_at != 0.0]
                heapq.heapify(kept)
                self._deadlines = kept

    def validate(self) -> None:
        """Check the invariants."""
        topics: list[bytes] = []
        size = sum(MESSAGE_BYTES + message.size() for message in self._by_topic.values())
        levels = [self._root]
        while levels:
            level = levels.pop()
            assert level is self._root or level.message is not None or level.children
            if level.message is not None:
                topics.append(level.message.topic)
            levels.extend(level.children.values())
            size += sum(LEVEL_BYTES + len(name) for name in level.children)
        assert sorted(topics) == sorted(self._by_topic)
        assert self.bytes == size
        deadlines = set(self._deadlines)
        for topic, message in self._by_topic.items():
            assert message.expires_at == 0.0 or (message.expires_at, topic) in deadlines


def is_expired(message: Message, now: float) -> bool:
    """Say whether the message's time is over [MQTT-3.3.2-5]."""
    return message.expires_at != 0.0 and message.expires_at <= now


def _children(level: _Level, is_root: bool) -> list[_Level]:
    """The children that a wildcard stands for: on the first level none that begin with $ [MQTT-4.7.2-1]."""
    if not is_root:
        return list(level.children.values())
    return [child for name, child in level.children.items() if not name.startswith(b"$")]
