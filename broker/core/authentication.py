"""Enhanced authentication of MQTT 5: the vocabulary by which a connection runs a method's exchange (section 4.12).

It owns no method: a method is an Exchange that is told what the client said and answers with a Step. It knows neither
packets nor connections.
"""

from collections.abc import Callable
from typing import Final, Protocol, final

CONTINUE: Final = 0
SUCCESS: Final = 1
FAILURE: Final = 2


@final
class Step:
    """What comes of what the client said. `data` is for the client; `user_name` counts after SUCCESS, `reason` after
    FAILURE, as MQTT 5's reason code."""

    __slots__ = ("data", "outcome", "reason", "user_name")

    def __init__(self, outcome: int, data: bytes = b"", user_name: str = "", reason: int = 0) -> None:
        self.outcome = outcome
        self.data = data
        self.user_name = user_name
        self.reason = reason


class Exchange(Protocol):
    """One authentication in progress."""

    def receive(self, data: bytes) -> Step:
        """Take the client's authentication data."""


class Authenticator(Protocol):
    """The methods that a node serves."""

    def begin(self, method: str) -> Exchange | None:
        """Begin an authentication; None: the method is not served."""


@final
class MethodTable:
    """Methods by name, each with what begins an exchange. An empty one serves none."""

    def __init__(self, methods: dict[str, Callable[[], Exchange]]) -> None:
        self._methods = methods

    def begin(self, method: str) -> Exchange | None:
        """Begin an authentication; None: the method is not served."""
        begin = self._methods.get(method)
        return None if begin is None else begin()


NO_METHODS: Final = MethodTable({})
