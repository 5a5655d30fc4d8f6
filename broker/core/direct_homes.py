"""Which homes of a session before this one had everything of an origin directly, and from which number on.

What a later home had directly, an older one need not give. The theory is that of `arrival`, which owns one of these.
"""

from typing import Final, final

from broker.core.places import PLACE_BITS

# So many homes that had everything of an origin directly are remembered, the oldest, of a client that goes on and on
# while one before them is away.
DIRECT_MAX: Final = 32


@final
class DirectHomes:
    """The homes that told what they had directly themselves, and those of which they had heard."""

    __slots__ = ("givers", "known")

    def __init__(self) -> None:
        # (old home, origin) -> by which epoch counter it was the home, and from which number on it had everything
        # directly, and gives it.
        self.givers: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        # Origin -> epoch counter of a home -> from which number on it had everything directly, whoever has that now.
        self.known: dict[bytes, dict[int, int]] = {}

    def add_giver(self, donor: bytes, counter: int, origin: bytes, number: int) -> None:
        """An old home had everything of an origin directly from a number on, and has it still."""
        self.givers.setdefault((donor, origin), (counter, number))

    def gives_later(self, donor: bytes, origin: bytes, number: int, seq: int) -> bool:
        """Say whether a later home than the one that gave a delivery its place had it directly, and gives it.

        An earlier one may have had it as well, and have it no more: the later one left out what came from there.
        """
        own = seq >> PLACE_BITS
        for (by, of), (counter, first) in self.givers.items():
            if of == origin and number >= first and counter > own and by != donor:
                return True
        return False

    def add(self, origin: bytes, counter: int, number: int) -> None:
        """The home of an epoch counter had everything of an origin directly from a number on."""
        known = self.known.setdefault(origin, {})
        if any(later >= counter and first <= number for later, first in known.items()):
            return
        for earlier in [each for each, first in known.items() if each <= counter and first >= number]:
            del known[earlier]
        known[counter] = number
        if len(known) > DIRECT_MAX:
            del known[max(known)]

    def is_after(self, counter: int, origin: bytes, number: int) -> bool:
        """Say whether a home later than that of an epoch counter had a message directly."""
        return any(later > counter and number >= first for later, first in self.known.get(origin, {}).items())

    def all(self) -> list[tuple[int, bytes, int]]:
        """Return (epoch counter, origin, number) of all homes."""
        return [(counter, origin, number) for origin, known in self.known.items() for counter, number in known.items()]
