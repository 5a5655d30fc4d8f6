"""Draining: what is still at a node that is to give everything away, and the end of its clients' connections.

Owns nothing: it counts what the owner's parts have, and closes connections and ends memberships of groups as the owner
does. Why, and where everything goes, is the cluster's business.
"""

from collections.abc import Callable, Iterator
from typing import Final, final

from broker.core.groups import Groups
from broker.core.session import Attachment, Session
from broker.core.transfer import Transfers
from broker.core.wills import Wills
from broker.mqtt.reasons import Reason

Close = Callable[[Attachment, int, float, str], None]


@final
class Draining:
    """The sessions and connections of one node, as they are counted while they become fewer."""

    def __init__(
        self,
        attachments: dict[int, Attachment],
        sessions: dict[str, Session],
        transfers: Transfers,
        wills: Wills,
        groups: Groups,
        close: Close,
    ) -> None:
        self._attachments: Final = attachments
        self._sessions: Final = sessions
        self._transfers: Final = transfers
        self._wills: Final = wills
        self._groups: Final = groups
        self._close: Final = close

    def close(self, count: int, reference: str, now: float) -> None:
        """End so many connections; `reference` is the server that the clients are to use instead, "" for none.

        Their wills wait, for they may come back there in time.
        """
        reason = Reason.SERVER_MOVED if reference else Reason.SERVER_SHUTTING_DOWN
        for attachment in list(self._attachments.values())[:count]:
            self._close(attachment, int(reason), now, reference)

    def give_groups(self, gives_all: bool) -> None:
        """Say whether what waits in shared groups goes to members elsewhere even where there is no room for it."""
        self._groups.gives_all = gives_all

    def in_groups(self) -> tuple[int, int]:
        """Return how many messages wait in shared groups, and how many of those have no lasting member anywhere."""
        return self._groups.waiting()

    def groups_to_give(self, waits: bool) -> int:
        """Return how many of those are for other nodes; with `waits` those, too, that may turn out to be."""
        return self._groups.to_give(waits)

    def stubs_in_groups(self) -> int:
        """Return how many sessions on their way to another node are members of shared groups here."""
        return sum(1 for departure in self._transfers.departures.values() if departure.session.groups)

    def leave_groups(self, now: float) -> None:
        """Let no session that is left here be a member: nothing waits for it, and nobody chooses this node for it."""
        for session in self.everything():
            for group in list(session.groups):
                self._groups.leave(session, group.shared_filter, now)

    def online(self) -> int:
        """Return how many sessions have a client."""
        return len(self._attachments)

    def offline(self) -> int:
        """Return how many sessions have none."""
        return len(self._sessions) - len(self._attachments)

    def moving(self) -> int:
        """Return how many sessions are on their way to another node, and not wholly there."""
        return len(self._transfers.departures)

    def wills(self) -> int:
        """Return how many wills are here, those of clients that are connected included."""
        return len(self._wills)

    def messages(self) -> int:
        """Return how many messages wait in all sessions, those on their way included."""
        return sum(len(session.queue) + len(session.inflight) for session in self.everything())

    def all(self) -> Iterator[Session]:
        """Iterate over the sessions that are here; they must not change meanwhile."""
        yield from self._sessions.values()

    def everything(self) -> list[Session]:
        """Return the sessions that are here, and those that are on their way to another node."""
        return [*self._sessions.values(), *[departure.session for departure in self._transfers.departures.values()]]

    def waiting(self) -> Iterator[Session]:
        """Iterate over the sessions without a client; they must not change meanwhile."""
        for session in self._sessions.values():
            if session.attachment is None:
                yield session
