"""A first-in-first-out queue that takes next to no room while it is empty.

A deque has its first block of 600 bytes from the beginning, and a connection has half a dozen queues that are nearly
always empty. This is a list and the place of its first item; what was taken is let go at once, and its places are cut
off now and then, at a cost of less than one move for each item.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar, final

T = TypeVar("T")

_CUT_MIN: Final = 64


@final
class Fifo(Generic[T]):
    """Items, none of them None, in the order in which they were appended."""

    __slots__ = ("_items", "_start")

    def __init__(self) -> None:
        self._items: list[T | None] = []
        self._start: int = 0

    def __len__(self) -> int:
        return len(self._items) - self._start

    def __iter__(self) -> Iterator[T]:
        return iter([item for item in self._items if item is not None])

    def is_empty(self) -> bool:
        """Say whether there is nothing in it."""
        return len(self._items) == self._start

    def append(self, item: T) -> None:
        """Add an item behind all others."""
        self._items.append(item)

    def appendleft(self, item: T) -> None:
        """Add an item in front of all others; this costs a move for each of them."""
        self._items.insert(self._start, item)

    def first(self) -> T:
        """Return the oldest item, which must be there."""
        item = self._items[self._start]
        assert item is not None
        return item

    def last(self) -> T:
        """Return the youngest item, which must be there."""
        item = self._items[-1]
        assert item is not None
        return item

    def popleft(self) -> T:
        """Take the oldest item, which must be there."""
        item = self.first()
        self._items[self._start] = None
        self._start += 1
        if self._start == len(self._items):
            self.clear()
        elif self._start >= _CUT_MIN and self._start * 2 >= len(self._items):
            del self._items[: self._start]
            self._start = 0
        return item

    def pop(self) -> T:
        """Take the youngest item, which must be there."""
        item = self.last()
        self._items.pop()
        if self._start == len(self._items):
            self.clear()
        return item

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()
        self._start = 0
