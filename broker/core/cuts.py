"""Cuts: from which number on each origin's messages come to a session directly, and not through its old homes.

The theory is that of `arrival`, which has one of these for most filters, and others for those that came late.
"""

from typing import final


@final
class Cuts:
    """From which number on each origin's messages come directly, as far as only these filters match them."""

    __slots__ = ("filters", "numbers", "relayed")

    def __init__(self, filters: list[bytes]) -> None:
        self.filters = filters
        self.numbers: dict[bytes, int] = {}
        # Origin without a cut, or of which not as much has come directly -> the last number that an old home passed on.
        self.relayed: dict[bytes, int] = {}

    def set(self, origin: bytes, number: int) -> bool:
        """Hear in an origin's stream from which number on it sends directly; false if that is known."""
        is_new = origin not in self.numbers
        if is_new:
            self.numbers[origin] = max(number, self.relayed.get(origin, -1) + 1)
        self.come_to(origin, number)
        return is_new

    def come_to(self, origin: bytes, number: int) -> None:
        """The direct way from an origin has come to a number."""
        if number > self.relayed.get(origin, -1):
            self.relayed.pop(origin, None)

    def takes(self, origin: bytes, number: int) -> bool:
        """Say whether a message that came directly is for the session."""
        if origin in self.numbers and self.relayed:
            self.come_to(origin, number)
        return self.had(origin, number)

    def had(self, origin: bytes, number: int) -> bool:
        """Say whether a message that an old home gives comes directly as well."""
        cut = self.numbers.get(origin)
        return cut is not None and number >= cut

    def note_relayed(self, origin: bytes, number: int) -> None:
        """An old home passed on a message of an origin whose cut is not known."""
        if origin not in self.numbers and number > self.relayed.get(origin, -1):
            self.relayed[origin] = number

    def overlaps_with(self, origin: bytes) -> bool:
        """Say whether something is still to come directly from an origin that an old home passed on."""
        return origin in self.relayed and origin in self.numbers

    def are_passed(self, passed: dict[bytes, int]) -> bool:
        """Say whether an old home has passed on everything below them."""
        return all(cut <= passed.get(origin, -1) for origin, cut in self.numbers.items())
