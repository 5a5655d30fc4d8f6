"""broker.core.legacies: the places of what is handed on for a home that is gone."""

from collections.abc import Callable, Iterator

import pytest
from core_helpers import Node, started_nodes

from broker.core.epoch import Epoch
from broker.core.message import Delivery, Message
from broker.core.places import first_place, is_legacy

OLD = Epoch(2, 0, b"o" * 16)


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    yield from started_nodes()


def test_a_later_message_has_a_higher_place_though_the_stub_of_the_first_has_ended(start: Callable[..., Node]) -> None:
    node = start(store_id=b"s" * 16)
    legacies, transfers = node.owner.legacies, node.owner.transfers
    given = []
    for behind in (7, 5, 3, 0):
        departure = legacies.stub("client", OLD, legacies.place(OLD, behind))
        for _ in range(2 if behind == 7 else 1):
            delivery = Delivery(0, Message(b"t", b"x", b"", 1), 1, False, b"")
            legacies.leave(departure, delivery)
            given.append(delivery.seq)
        if behind != 5:
            transfers.end_departure(departure, node.now)
    assert given == sorted(set(given))
    assert all(is_legacy(place) and first_place(OLD) < place < first_place(Epoch(3, 0, b"")) for place in given)
    assert not is_legacy(first_place(OLD) + 1) and not is_legacy(first_place(Epoch(3, 0, b"")) - 1)
