"""The topic tree: which keys subscribed to a filter that a topic name matches.

One tree serves the sessions of a node and another the wishes of the other nodes. It owns filters,
keys and one value for each pair; what a key or a value means is its user's business.

Theory of operation
-------------------
A node of the tree is one level. `+` and `#` are ordinary children, so that a look-up follows at
most two branches a level and never looks at filters that can't match: its cost grows with the
levels of the topic and the matching filters, not with the number of filters.

Most filters share their first levels with many and the rest with nobody. So a branch with one filter is a leaf, which
has the rest of that filter in one piece; it becomes a level when a second filter comes, and is a leaf again when that
goes. A leaf takes some 60 bytes, a level with a child 400.

Invariant: a branch is a leaf exactly while one filter has entries below it. So the tree depends on what it holds alone,
and never holds more than its filters need.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar, final

K = TypeVar("K")
V = TypeVar("V")

_SEPARATOR: Final = b"/"
_SINGLE: Final = b"+"
_MULTI: Final = b"#"


@final
class _Leaf(Generic[K, V]):
    """The one filter of a branch; `rest` are its levels below the branch, None if there are none.

    Most filters have one entry, which needs no dict: `others` are those that came after it.
    """

    __slots__ = ("key", "others", "rest", "value")

    def __init__(self, rest: bytes | None, key: K, value: V) -> None:
        self.rest = rest
        self.key = key
        self.value = value
        self.others: dict[K, V] | None = None


@final
class _Level(Generic[K, V]):
    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[bytes, _Level[K, V] | _Leaf[K, V]] = {}
        self.entries: dict[K, V] | None = None


@final
class TopicTree(Generic[K, V]):
    """A map of (topic filter, key) to a value that is searched by topic name."""

    def __init__(self) -> None:
        self._root: _Level[K, V] = _Level()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, topic_filter: bytes, key: K) -> V | None:
        """Return the value of an entry, None if there is none."""
        level = self._root
        start = 0
        while start >= 0:
            name, start = _level_at(topic_filter, start)
            child = level.children.get(name)
            if child is None:
                return None
            if isinstance(child, _Leaf):
                if child.rest != _rest_from(topic_filter, start):
                    return None
                if child.key == key:
                    return child.value
                return None if child.others is None else child.others.get(key)
            level = child
        return None if level.entries is None else level.entries.get(key)

    def items(self) -> Iterator[tuple[bytes, K, V]]:
        """Iterate (filter, key, value) of all entries; the tree must not change meanwhile."""
        branches: list[tuple[bytes, _Level[K, V] | _Leaf[K, V]]] = [(b"", self._root)]
        while branches:
            prefix, branch = branches.pop()
            if isinstance(branch, _Leaf):
                topic_filter = _joined(prefix, branch.rest)
                yield topic_filter, branch.key, branch.value
                entries = branch.others
            else:
                topic_filter = prefix
                entries = branch.entries
                for name, child in branch.children.items():
                    branches.append((name if branch is self._root else _joined(prefix, name), child))
            if entries is not None:
                for key, value in entries.items():
                    yield topic_filter, key, value

    def set(self, topic_filter: bytes, key: K, value: V) -> bool:
        """Add or replace the entry; true when it is new."""
        level = self._root
        start = 0
        while start >= 0:
            name, start = _level_at(topic_filter, start)
            child = level.children.get(name)
            if child is None:
                level.children[name] = _Leaf(_rest_from(topic_filter, start), key, value)
                self._count += 1
                return True
            if isinstance(child, _Leaf):
                rest = _rest_from(topic_filter, start)
                if child.rest == rest:
                    return self._set_in_leaf(child, key, value)
                child = _spread(child, rest)
                level.children[name] = child
            level = child
        if level.entries is None:
            level.entries = {}
        new = key not in level.entries
        level.entries[key] = value
        if new:
            self._count += 1
        return new

    def _set_in_leaf(self, leaf: _Leaf[K, V], key: K, value: V) -> bool:
        if leaf.key == key:
            leaf.value = value
            return False
        if leaf.others is None:
            leaf.others = {}
        new = key not in leaf.others
        leaf.others[key] = value
        if new:
            self._count += 1
        return new

    def remove(self, topic_filter: bytes, key: K) -> bool:
        """Remove the entry; false when there is none."""
        path: list[tuple[_Level[K, V], bytes]] = []
        level = self._root
        start = 0
        while start >= 0:
            name, start = _level_at(topic_filter, start)
            child = level.children.get(name)
            if child is None:
                return False
            path.append((level, name))
            if isinstance(child, _Leaf):
                return child.rest == _rest_from(topic_filter, start) and self._remove_from_leaf(child, key, path)
            level = child
        if level.entries is None or key not in level.entries:
            return False
        del level.entries[key]
        if not level.entries:
            level.entries = None
        self._count -= 1
        _fold(path)
        return True

    def _remove_from_leaf(self, leaf: _Leaf[K, V], key: K, path: list[tuple[_Level[K, V], bytes]]) -> bool:
        others = leaf.others
        if leaf.key != key:
            if others is None or key not in others:
                return False
            del others[key]
        elif others is not None:
            leaf.key = next(iter(others))
            leaf.value = others.pop(leaf.key)
        else:
            parent, name = path.pop()
            del parent.children[name]
            _fold(path)
        if not others:
            leaf.others = None
        self._count -= 1
        return True

    def match(self, topic: bytes) -> list[tuple[K, V]]:
        """Return the entries of every filter that matches `topic`; a key stands once for each filter.

        Levels are bytes, compared as they are [MQTT-3.3.2-3] [MQTT-4.7.3-4] [MQTT311-3.3.2-3] [MQTT311-4.7.3-4].
        """
        found: list[tuple[K, V]] = []
        names = topic.split(_SEPARATOR)
        levels: list[_Level[K, V]] = [self._root]
        for at, name in enumerate(names, start=1):
            following: list[_Level[K, V]] = []
            # [MQTT-4.7.2-1] [MQTT311-4.7.2-1] A filter that begins with a wildcard matches no topic that begins with $.
            wild = not (at == 1 and name.startswith(b"$"))
            for level in levels:
                _visit(level.children.get(name), names, at, following, found)
                if wild:
                    _visit(level.children.get(_SINGLE), names, at, following, found)
                    multi = level.children.get(_MULTI)
                    if isinstance(multi, _Leaf):
                        _take(multi, found)
            if not following:
                return found
            levels = following
        for level in levels:
            if level.entries is not None:
                found.extend(level.entries.items())
            # "sport/#" matches "sport" too: the number sign stands for the parent level as well.
            multi = level.children.get(_MULTI)
            if isinstance(multi, _Leaf):
                _take(multi, found)
        return found


def _level_at(topic_filter: bytes, start: int) -> tuple[bytes, int]:
    """Return the level that begins at `start`, and where the next one does; -1 if it is the last."""
    end = topic_filter.find(_SEPARATOR, start)
    return (topic_filter[start:], -1) if end < 0 else (topic_filter[start:end], end + 1)


def _rest_from(topic_filter: bytes, start: int) -> bytes | None:
    return None if start < 0 else topic_filter[start:]


def _joined(name: bytes, rest: bytes | None) -> bytes:
    return name if rest is None else name + _SEPARATOR + rest


def _names(rest: bytes | None) -> list[bytes]:
    return [] if rest is None else rest.split(_SEPARATOR)


def _spread(leaf: _Leaf[K, V], rest: bytes | None) -> _Level[K, V]:
    """Make levels of a leaf, down to where another filter, which goes on with `rest`, parts from it."""
    names = _names(leaf.rest)
    top: _Level[K, V] = _Level()
    level = top
    shared = 0
    for name, other in zip(names, _names(rest), strict=False):
        if name != other:
            break
        below: _Level[K, V] = _Level()
        level.children[name] = below
        level = below
        shared += 1
    if shared == len(names):
        level.entries = {leaf.key: leaf.value}
        if leaf.others is not None:
            level.entries.update(leaf.others)
    else:
        left = names[shared + 1 :]
        leaf.rest = _SEPARATOR.join(left) if left else None
        level.children[names[shared]] = leaf
    return top


def _fold(path: list[tuple[_Level[K, V], bytes]]) -> None:
    """Make a leaf of the last level on the path, and of those above it, as far as they have one filter left."""
    if not path:
        return
    parent, name = path.pop()
    level = parent.children[name]
    assert isinstance(level, _Level)
    # The levels that become the leaf's, from below.
    names: list[bytes] = []
    if level.entries is not None:
        if level.children:
            return
        key = next(iter(level.entries))
        leaf = _Leaf(None, key, level.entries.pop(key))
        if level.entries:
            leaf.others = level.entries
    else:
        only_name = next(iter(level.children))
        only = level.children[only_name]
        if len(level.children) > 1 or not isinstance(only, _Leaf):
            return
        leaf = only
        names.append(only_name)
    while path and parent.entries is None and len(parent.children) == 1:
        names.append(name)
        parent, name = path.pop()
    if names:
        names.reverse()
        leaf.rest = _joined(_SEPARATOR.join(names), leaf.rest)
    parent.children[name] = leaf


def _visit(
    child: _Level[K, V] | _Leaf[K, V] | None,
    names: list[bytes],
    at: int,
    following: list[_Level[K, V]],
    found: list[tuple[K, V]],
) -> None:
    """Follow a branch whose name is that of the topic before `at`."""
    if child is None:
        return
    if isinstance(child, _Leaf):
        if _leads_on(child.rest, names, at):
            _take(child, found)
    else:
        following.append(child)


def _leads_on(rest: bytes | None, names: list[bytes], at: int) -> bool:
    """Say whether the levels of a leaf match those of the topic from `at` on."""
    if rest is None:
        return at == len(names)
    for wanted in rest.split(_SEPARATOR):
        if wanted == _MULTI:
            return True
        if at == len(names) or (wanted != names[at] and wanted != _SINGLE):
            return False
        at += 1
    return at == len(names)


def _take(leaf: _Leaf[K, V], found: list[tuple[K, V]]) -> None:
    found.append((leaf.key, leaf.value))
    if leaf.others is not None:
        found.extend(leaf.others.items())
