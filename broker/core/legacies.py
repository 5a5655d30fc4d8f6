"""Legacies: messages for sessions of other nodes, handed on as if those sessions had once been here.

Owns the stubs and the places of such messages. A node that kept messages for another one, which is no member any more,
gives them to the sessions' new homes by the way on which sessions move: a stub with nothing but deliveries. What has
come to the session directly is known there by its origin and number.

Places are of the epoch counter of the home that is gone, above all that it gave and below those of rivals (see
`arrival`); each node has a range of its own. A message's place there goes by how many are behind it, so that a later
one always has a higher place: a stub may end, or this node start again, when a part of them is given.
"""

from typing import Final, final

from broker.core.epoch import Epoch
from broker.core.message import Delivery
from broker.core.places import LEGACY_BITS, first_place
from broker.core.session import Session
from broker.core.session_rows import SessionRows
from broker.core.session_store import SessionStore
from broker.core.transfer import Departure, Transfers

_RANGE_BITS: Final = 24
_RANGES: Final = 1 << 14


def is_bare(departure: Departure) -> bool:
    """Say whether a stub has nothing but what was kept for a home that is gone: the session was never here."""
    return departure.session.expiry_s == 0


@final
class Legacies:
    """What this node hands on for a home that is gone."""

    def __init__(self, store: SessionStore, transfers: Transfers, rows: SessionRows, store_id: bytes) -> None:
        self._store: Final = store
        self._transfers: Final = transfers
        self._rows: Final = rows
        self._store_id: Final = store_id

    def place(self, old_epoch: Epoch, behind: int) -> int:
        """Return the place of a message for a home of this epoch behind which so many others are."""
        own: int = int.from_bytes(self._store_id[:2], "big") % _RANGES
        end = first_place(old_epoch) + (1 << LEGACY_BITS) + ((own + 1) << _RANGE_BITS)
        return end - 1 - min(behind, (1 << _RANGE_BITS) - 2)

    def stub(self, client_id: str, old_epoch: Epoch, place: int) -> Departure:
        """Return the stub of a client's session, which has no session here, made if there is none, for this place."""
        known = self._transfers.departures.get(client_id)
        if known is not None:
            return known
        session = Session(self._store.take_number(), client_id, None, 0, 1)
        session.persistent = True
        session.departing = True
        session.epoch = old_epoch
        session.left_to = place - 1
        session.next_seq = place
        session.queue.keep_in_store()
        self._store.put_session(session)
        self._store.put_departing(session)
        # Whoever gets a later session of the client id is to know that this is here.
        self._rows.tell(session)
        departure = Departure(session, None)
        self._transfers.departures[client_id] = departure
        return departure

    def restore(self, now: float) -> None:
        """Go on with what was given before a restart; call it when everything is recovered."""
        for session in self._transfers.arriving():
            self._transfers.set_present(session, self._store_id, False, now)

    def leave(self, departure: Departure, delivery: Delivery) -> None:
        """Put a delivery behind the others of a stub."""
        session = departure.session
        delivery.seq = session.take_seq()
        self._store.put_delivery(session.number, delivery)
        session.queue.push(delivery)

    def give(self, session: Session, old_epoch: Epoch, place: int, delivery: Delivery, now: float) -> None:
        """Give a delivery to a session of this node, as its old home would have."""
        transfers = self._transfers
        transfers.add_donor(session, self._store_id, old_epoch.counter, now)
        assert session.arrival is not None
        donor = session.arrival.donor(self._store_id)
        donor.counter = old_epoch.counter
        # It holds up nobody.
        transfers.set_present(session, self._store_id, False, now)
        after = max(donor.watermark, place - 1)
        delivery.seq = after + 1
        transfers.accept(session, self._store_id, after, [delivery], now)
