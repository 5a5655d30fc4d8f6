"""Retained messages: the last message of a topic, kept for whoever subscribes later [MQTT-3.3.1-5].

It owns the family `retained` of the store, the look-up by topic filter, the limits and the expiry. All of them are in
memory as well. It knows nothing of subscribers.

    retained  topic  version u8, flags u8 (1 deleted: room for a tombstone), stamp u64 (room for a hybrid logical
                     clock), message id (24 bytes), body (see `stored_message`)

Theory of operation
-------------------
A tree by topic level; a level holds its message and its children. A filter visits only levels that can match: one child
for a name, all children for `+`, everything below for `#`. Topics are found as references to the stored bytes, so that
whoever has to send a hundred thousand of them holds a list and not the messages.

Invariants: every level but the root has a message or children; `bytes` is the sum of the sizes; every message that
expires has an entry in the heap.
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
# How many deadlines one call looks at, those that stand for nothing included: the rest is due at once again.
EXPIRED_MAX: Final = 1000
# Entries of the heap that stand for nothing any more, beside as many as there are messages.
_STALE_DEADLINES_MAX: Final = 64
_HEAD: Final = struct.Struct(">BBQ")


@final
class _Level:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[bytes, _Level] = {}
        self.message: Message | None = None


@final
class RetainedStore:
    """The retained messages of a node; negative limits are none."""

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.bytes: int = 0
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
        size = self.bytes + message.size() - (0 if last is None else last.size())
        if 0 <= self._messages_max < messages or 0 <= self._bytes_max < size:
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
        self.bytes -= message.size()
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
        return True

    def get(self, topic: bytes, now: float) -> Message | None:
        """Return the topic's message, None when there is none or it has expired [MQTT-3.3.2-5]."""
        message = self._by_topic.get(topic)
        return None if message is None or _is_expired(message, now) else message

    def match_topics(self, topic_filter: bytes) -> list[bytes]:
        """Return the topics with a message that the filter matches, expired ones included."""
        if b"+" not in topic_filter and b"#" not in topic_filter:
            message = self._by_topic.get(topic_filter)
            return [] if message is None else [message.topic]
        found: list[bytes] = []
        levels: list[_Level] = [self._root]
        first = True
        for name in topic_filter.split(b"/"):
            following: list[_Level] = []
            for level in levels:
                if name == b"+":
                    following.extend(_children(level, first))
                elif name == b"#":
                    _collect(level, first, found)
                else:
                    child = level.children.get(name)
                    if child is not None:
                        following.append(child)
            levels = following
            first = False
        for level in levels:
            if level.message is not None:
                found.append(level.message.topic)
        return found

    def match(self, topic_filter: bytes, now: float) -> list[Message]:
        """Return the messages whose topics the filter matches."""
        found = [self._by_topic[topic] for topic in self.match_topics(topic_filter)]
        return [message for message in found if not _is_expired(message, now)]

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
                self._keep(unpack_message(value[_HEAD.size : body], value, body, clock))
            except UNREADABLE as error:
                raise corrupt("retained", key, error) from None

    def _keep(self, message: Message) -> None:
        topic = message.topic
        last = self._by_topic.get(topic)
        self._by_topic[topic] = message
        self.bytes += message.size() - (0 if last is None else last.size())
        level = self._root
        for name in topic.split(b"/"):
            child = level.children.get(name)
            if child is None:
                child = _Level()
                level.children[name] = child
            level = child
        level.message = message
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
        levels = [self._root]
        while levels:
            level = levels.pop()
            assert level is self._root or level.message is not None or level.children
            if level.message is not None:
                topics.append(level.message.topic)
            levels.extend(level.children.values())
        assert sorted(topics) == sorted(self._by_topic)
        assert self.bytes == sum(message.size() for message in self._by_topic.values())
        deadlines = set(self._deadlines)
        for topic, message in self._by_topic.items():
            assert message.expires_at == 0.0 or (message.expires_at, topic) in deadlines


def _is_expired(message: Message, now: float) -> bool:
    return message.expires_at != 0.0 and message.expires_at <= now


def _children(level: _Level, first: bool) -> list[_Level]:
    """The children that a wildcard stands for: on the first level none that begin with $ [MQTT-4.7.2-1]."""
    if not first:
        return list(level.children.values())
    return [child for name, child in level.children.items() if not name.startswith(b"$")]


def _collect(level: _Level, first: bool, found: list[bytes]) -> None:
    """Append the topics of a level, which `#` stands for too, and of everything below."""
    if level.message is not None:
        found.append(level.message.topic)
    levels = _children(level, first)
    while levels:
        below = levels.pop()
        if below.message is not None:
            found.append(below.message.topic)
        levels.extend(below.children.values())
