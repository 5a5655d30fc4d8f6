"""The topic tree: which keys subscribed to a filter that a topic name matches.

One tree serves the sessions of a node and another the wishes of the other nodes. It owns filters,
keys and one value for each pair; what a key or a value means is its user's business.

Theory of operation
-------------------
A node of the tree is one level. `+` and `#` are ordinary children, so that a look-up follows at
most two branches a level and never looks at filters that can't match: its cost grows with the
levels of the topic and the matching filters, not with the number of filters. Empty branches are
removed with their last entry, so the tree never holds more than its filters need.
"""

from typing import Final, Generic, TypeVar, final

K = TypeVar("K")
V = TypeVar("V")

_SEPARATOR: Final = b"/"
_SINGLE: Final = b"+"
_MULTI: Final = b"#"


class _Level(Generic[K, V]):
    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[bytes, _Level[K, V]] = {}
        self.entries: dict[K, V] = {}


@final
class TopicTree(Generic[K, V]):
    """A map of (topic filter, key) to a value that is searched by topic name."""

    def __init__(self) -> None:
        self._root: _Level[K, V] = _Level()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def set(self, topic_filter: bytes, key: K, value: V) -> bool:
        """Add or replace the entry; true when it is new."""
        level = self._root
        for name in topic_filter.split(_SEPARATOR):
            child = level.children.get(name)
            if child is None:
                child = _Level()
                level.children[name] = child
            level = child
        new = key not in level.entries
        level.entries[key] = value
        if new:
            self._count += 1
        return new

    def remove(self, topic_filter: bytes, key: K) -> bool:
        """Remove the entry; false when there is none."""
        path: list[tuple[_Level[K, V], bytes]] = []
        level = self._root
        for name in topic_filter.split(_SEPARATOR):
            child = level.children.get(name)
            if child is None:
                return False
            path.append((level, name))
            level = child
        if key not in level.entries:
            return False
        del level.entries[key]
        self._count -= 1
        for parent, name in reversed(path):
            child = parent.children[name]
            if child.entries or child.children:
                break
            del parent.children[name]
        return True

    def match(self, topic: bytes) -> list[tuple[K, V]]:
        """Return the entries of every filter that matches `topic`; a key stands once for each filter.

        Levels are bytes, compared as they are [MQTT-3.3.2-3] [MQTT-4.7.3-4] [MQTT311-3.3.2-3] [MQTT311-4.7.3-4].
        """
        found: list[tuple[K, V]] = []
        names = topic.split(_SEPARATOR)
        levels: list[_Level[K, V]] = [self._root]
        first = True
        for name in names:
            following: list[_Level[K, V]] = []
            # [MQTT-4.7.2-1] [MQTT311-4.7.2-1] A filter that begins with a wildcard matches no topic that begins with $.
            wild = not (first and name.startswith(b"$"))
            first = False
            for level in levels:
                child = level.children.get(name)
                if child is not None:
                    following.append(child)
                if wild:
                    child = level.children.get(_SINGLE)
                    if child is not None:
                        following.append(child)
                    child = level.children.get(_MULTI)
                    if child is not None:
                        found.extend(child.entries.items())
            if not following:
                return found
            levels = following
        for level in levels:
            found.extend(level.entries.items())
            # "sport/#" matches "sport" too: the number sign stands for the parent level as well.
            child = level.children.get(_MULTI)
            if child is not None:
                found.extend(child.entries.items())
        return found
