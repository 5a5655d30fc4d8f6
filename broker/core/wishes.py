"""Wishes: which filters the sessions of this node want, as far as the other nodes need to know.

It owns one count for each filter. Other nodes hear of a filter when the first session wants it, when the last one
ceases to, and when it begins or ceases to be wanted by a session that outlives its connection.
"""

from typing import final

from broker.core.effects import InterestChange


@final
class Wish:
    """How many sessions want a filter, and how many of them outlive their connections."""

    __slots__ = ("persistent", "sessions")

    def __init__(self) -> None:
        self.sessions: int = 0
        self.persistent: int = 0


@final
class Wishes:
    """The filters that are wanted here."""

    __slots__ = ("_wishes",)

    def __init__(self) -> None:
        self._wishes: dict[bytes, Wish] = {}

    def count(self, topic_filter: bytes, persistent: bool, step: int) -> InterestChange | None:
        """Count a subscription in (1) or out (-1); the result is what the other nodes should hear, if anything."""
        wish = self._wishes.get(topic_filter)
        if wish is None:
            wish = Wish()
            self._wishes[topic_filter] = wish
        before, was_persistent = wish.sessions, wish.persistent
        wish.sessions += step
        if persistent:
            wish.persistent += step
        if wish.sessions == 0:
            del self._wishes[topic_filter]
        if (before == 0) != (wish.sessions == 0) or (was_persistent == 0) != (wish.persistent == 0):
            return InterestChange(topic_filter, wish.sessions > 0, wish.persistent > 0)
        return None

    def snapshot(self) -> list[tuple[bytes, bool]]:
        """Return every (filter, persistent)."""
        return [(topic_filter, wish.persistent > 0) for topic_filter, wish in self._wishes.items()]

    def total(self) -> int:
        """Return the number of subscriptions counted."""
        return sum(wish.sessions for wish in self._wishes.values())
