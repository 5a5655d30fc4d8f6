"""The new home's half of a move: when a client may go on, though several old homes have something of its session."""

from collections.abc import Callable, Iterator

import pytest
from core_helpers import Node, started_nodes
from test_departures import ELSEWHERE, HERE, THERE, OtherSite

from broker.core.epoch import Epoch
from broker.core.left_will import LeftWill
from broker.core.message import NO_MESSAGE, Delivery, Message
from broker.core.transfer import SessionHead
from broker.core.will import Will
from cluster.arrivals import GONE_S, Arrivals
from cluster.move_frames import (
    DELIVERIES,
    HEAD,
    HEAD_TAKEN,
    OVER,
    STATE,
    Item,
    MoveAck,
    Take,
    unpack_move_acks,
)
from cluster.registry import Registry

EPOCH = Epoch(3, 0, HERE)
# Of a session that is made of what others know.
KNOWN = Epoch(2, 0, THERE)


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    yield from started_nodes()


def head(old_home: bytes, inflight_seq: int) -> Item:
    """Return what an old home offers, which has deliveries in flight up to a place."""
    item = Item(HEAD, "mover", EPOCH)
    item.old_epoch = Epoch(2 if old_home == THERE else 1, 0, old_home)
    item.head = SessionHead("mover", None, 3600)
    item.head.inflight_seq = inflight_seq
    return item


def test_a_client_waits_for_what_was_in_flight_whatever_older_homes_have_said(start: Callable[..., Node]) -> None:
    node = start(store_id=HERE)
    arrivals = Arrivals(node.owner, OtherSite(THERE, ELSEWHERE), Registry("a"))
    arrivals.ask(Take("mover", EPOCH, False, None), THERE, node.now)
    in_flight = Item(DELIVERIES, "mover", EPOCH)
    in_flight.deliveries = [Delivery((2 << 40) + 7, NO_MESSAGE, 2)]
    in_flight.deliveries[0].packet_id = 5
    in_flight.deliveries[0].released = True
    last_word = Item(STATE, "mover", EPOCH)
    last_word.ended = True
    node.begin()
    arrivals.receive(THERE, [head(THERE, (2 << 40) + 7)], node.now)
    arrivals.receive(ELSEWHERE, [head(ELSEWHERE, 0)], node.now)
    assert arrivals.take_ready() == []
    for member in (HERE, THERE, ELSEWHERE):
        last_word.passed.append((member, 1 << 60))
        session = node.owner.session("mover")
        assert session is not None
        node.owner.transfers.set_cut(session, member, 1, node.now)
    arrivals.receive(ELSEWHERE, [last_word], node.now)
    assert list(session.arrival.donors if session.arrival is not None else ()) == [THERE]
    assert arrivals.take_ready() == []
    arrivals.receive(THERE, [in_flight], node.now)
    assert arrivals.take_ready() == [("mover", HEAD, EPOCH)]
    node.settle()


def arrived(node: Node) -> tuple[Arrivals, OtherSite]:
    """A session that comes from THERE, which has given the head."""
    site = OtherSite(THERE)
    arrivals = Arrivals(node.owner, site, Registry("a"))
    arrivals.ask(Take("mover", EPOCH, False, None), THERE, node.now)
    node.begin()
    arrivals.receive(THERE, [head(THERE, 0)], node.now)
    return arrivals, site


def test_a_will_comes_along_only_while_its_node_tells_of_it(start: Callable[..., Node]) -> None:
    """Two homes have met. The offer waits until that is known, and may be heard again when it is over."""
    node = start(store_id=HERE)
    site = OtherSite(THERE)
    arrivals = Arrivals(node.owner, site, Registry("a"))
    client = node.persistent("mover")
    client.drop()
    session = node.owner.session("mover")
    assert session is not None
    item = head(THERE, 0)
    item.epoch = session.epoch

    def offer() -> list[MoveAck]:
        site.told.clear()
        item.head = SessionHead("mover", None, 3600)
        item.head.will = LeftWill("mover", None, Will(b"w", b"gone", delay_s=60))
        item.head.will.due = node.now + 60
        node.begin()
        arrivals.receive(THERE, [item], node.now)
        arrivals.flush()
        node.settle()
        return [ack for _, frame in site.told for ack in unpack_move_acks(frame)]

    site.current = False
    site.wills.append((THERE, "mover"))
    assert offer() == []
    assert node.owner.wills.get("mover") is None
    site.current = True
    assert [ack.flags for ack in offer()] == [HEAD_TAKEN]
    assert node.owner.wills.get("mover") is not None
    node.begin()
    node.owner.wills.discard("mover")
    node.owner.transfers.end_donor(session, THERE, node.now)
    node.settle()
    site.wills.clear()
    assert [ack.flags for ack in offer()] == [HEAD_TAKEN]
    assert node.owner.wills.get("mover") is None


@pytest.mark.parametrize("is_here", [False, True])
def test_an_offer_that_nobody_asked_for_waits_until_its_node_tells_of_the_session(
    start: Callable[..., Node], is_here: bool
) -> None:
    """It may be an old one, which is heard once more when all is over that came of it."""
    node = start(store_id=HERE)
    site = OtherSite(THERE)
    arrivals = Arrivals(node.owner, site, Registry("a"))
    item = head(THERE, 0)
    if is_here:
        node.persistent("mover").drop()
        session = node.owner.session("mover")
        assert session is not None
        item.epoch = session.epoch

    def offer() -> list[int]:
        site.told.clear()
        node.begin()
        arrivals.receive(THERE, [item], node.now)
        arrivals.flush()
        node.settle()
        return [ack.flags for _, frame in site.told for ack in unpack_move_acks(frame)]

    site.without.append((THERE, "mover"))
    assert offer() == []
    session = node.owner.session("mover")
    assert (session is not None) == is_here
    assert session is None or session.arrival is None
    site.without.clear()
    assert offer() == [HEAD_TAKEN]
    session = node.owner.session("mover")
    assert session is not None
    assert session.arrival is not None
    assert list(session.arrival.donors) == [THERE]
    # It has not said its last word.
    site.without.append((THERE, "mover"))
    assert offer() == [HEAD_TAKEN]
    node.begin()
    node.owner.transfers.end_donor(session, THERE, node.now)
    node.settle()
    # It would never say that again.
    assert offer() == []


def test_an_old_home_hears_that_it_is_over_whatever_it_says(start: Callable[..., Node]) -> None:
    """The answer to its last word was lost, and it has got more since: it says no last word any more (seed 12)."""
    node = start(store_id=HERE)
    arrivals, site = arrived(node)
    session = node.owner.session("mover")
    assert session is not None
    node.owner.transfers.end_donor(session, THERE, node.now)
    arrivals.flush()
    site.told.clear()
    late = Item(DELIVERIES, "mover", EPOCH)
    arrivals.receive(THERE, [late], node.now)
    arrivals.flush()
    (ack,) = [ack for _, frame in site.told for ack in unpack_move_acks(frame)]
    assert ack.flags & OVER
    node.settle()


def test_an_old_home_of_which_only_others_have_told_is_to_give_its_head_first(start: Callable[..., Node]) -> None:
    node = start(store_id=HERE)
    site = OtherSite(THERE)
    arrivals = Arrivals(node.owner, site, Registry("a"))
    node.begin()
    session = arrivals.revive(SessionHead("mover", None, 3600), EPOCH, KNOWN, node.now)
    part = Item(DELIVERIES, "mover", EPOCH)
    part.deliveries = [Delivery((2 << 40) + 7, Message(b"t", b"x", qos=1, origin=THERE, number=1), 1)]
    arrivals.receive(THERE, [part], node.now)
    arrivals.flush()
    (ack,) = [ack for _, frame in site.told for ack in unpack_move_acks(frame)]
    assert (ack.flags, ack.watermark, len(session.queue)) == (0, 0, 0)
    node.settle()


def test_what_was_kept_for_others_ends_while_the_stub_of_a_session_is_here(start: Callable[..., Node]) -> None:
    """What members send to the stub until they have switched comes from there alone."""
    node = start(store_id=HERE)
    arrivals = Arrivals(node.owner, OtherSite(THERE), Registry("a"))
    client = node.persistent("mover")
    client.drop()
    stub = node.owner.depart("mover", node.now)
    assert stub is not None
    node.begin()
    session = arrivals.revive(SessionHead("mover", None, 3600), EPOCH, KNOWN, node.now)
    arrivals.receive(HERE, [head(HERE, 0)], node.now)
    assert session.arrival is not None
    arrivals.end_own(node.now)
    assert HERE in session.arrival.donors
    node.owner.transfers.end_departure(stub, node.now)
    arrivals.end_own(node.now)
    assert HERE not in session.arrival.donors
    node.settle()


def test_an_old_home_without_the_session_is_not_waited_for(start: Callable[..., Node]) -> None:
    """It restarted, and its stub was not stored: it says no last word (seed 9)."""
    node = start(store_id=HERE)
    arrivals, _ = arrived(node)
    session = node.owner.session("mover")
    assert session is not None
    arrivals.tick(node.now)
    assert session.arrival is not None
    arrivals.tick(node.now + GONE_S - 0.5)
    assert session.arrival is not None
    arrivals.tick(node.now + GONE_S + 0.5)
    assert session.arrival is None
    assert arrivals.counts()["moves_arriving"] == 0
    node.settle()


def test_an_arrival_is_over_when_all_know_that_the_old_home_has_nothing_any_more(start: Callable[..., Node]) -> None:
    """Who does not may have kept what it sent there, and gives it when the old home is removed (seed 139584)."""
    node = start(store_id=HERE)
    arrivals, site = arrived(node)
    session = node.owner.session("mover")
    assert session is not None
    node.owner.transfers.end_donor(session, THERE, node.now)
    site.positions[THERE] = (2, 7)
    for now, known, is_over in ((1, (0, 0), False), (2, (1, 9), False), (3, (2, 6), False), (4, (2, 7), True)):
        # What it tells later is not about this session.
        site.positions[THERE] = (2, 6 + now)
        site.known[THERE] = known
        arrivals.tick(node.now + now)
        assert (session.arrival is None) == is_over
    node.settle()


def test_who_is_no_member_any_more_is_not_asked_what_others_know(start: Callable[..., Node]) -> None:
    node = start(store_id=HERE)
    arrivals, site = arrived(node)
    session = node.owner.session("mover")
    assert session is not None
    node.owner.transfers.end_donor(session, THERE, node.now)
    site.positions[THERE], site.known[THERE] = (2, 7), (0, 0)
    arrivals.tick(node.now)
    assert session.arrival is not None
    del site.positions[THERE], site.known[THERE]
    arrivals.tick(node.now + 1)
    assert session.arrival is None
    node.settle()


def test_a_stub_of_a_session_that_is_here_is_waited_for(start: Callable[..., Node]) -> None:
    """The tables tell of no home but this one. What a member sends on a slow link comes to the stub alone."""
    node = start(store_id=HERE)
    arrivals = Arrivals(node.owner, OtherSite(THERE), Registry("a"))
    client = node.persistent("mover")
    client.drop()
    stub = node.owner.depart("mover", node.now)
    assert stub is not None
    node.begin()
    session = arrivals.revive(SessionHead("mover", None, 3600), EPOCH, KNOWN, node.now)
    arrivals.receive(HERE, [head(HERE, 0)], node.now)
    arrivals.tick(node.now)
    arrivals.tick(node.now + 2 * GONE_S)
    assert session.arrival is not None
    node.owner.transfers.end_departure(stub, node.now)
    arrivals.tick(node.now + 3 * GONE_S)
    arrivals.tick(node.now + 4 * GONE_S + 0.5)
    assert session.arrival is None
    node.settle()


def test_what_was_confirmed_and_lost_with_the_power_is_not_waited_for(start: Callable[..., Node]) -> None:
    """The old home has it no more, and goes on behind it for ever (seed 761)."""
    node = start(store_id=HERE)
    arrivals, site = arrived(node)
    session = node.owner.session("mover")
    assert session is not None
    for after, place in ((0, 1), (5, 6)):
        part = Item(DELIVERIES, "mover", EPOCH)
        part.after = (2 << 40) + after
        part.deliveries = [Delivery((2 << 40) + place, Message(b"t", b"x", qos=1, origin=THERE, number=place), 1)]
        arrivals.receive(THERE, [part], node.now)
    arrivals.flush()
    watermarks = [ack.watermark for _, frame in site.told for ack in unpack_move_acks(frame)]
    assert watermarks[-1] == (2 << 40) + 6
    assert len(session.queue) == 2
    node.settle()
