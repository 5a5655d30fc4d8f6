"""Sessions that move from one queue-owner to another: what arrives, in which order, and what a restart finds."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from core_helpers import Client, Node, started_nodes

from broker.core.arrival import Arrival
from broker.core.arrival_value import pack_arrival, unpack_arrival
from broker.core.epoch import Epoch
from broker.core.message import Delivery, Message
from broker.core.places import PLACE_BITS, first_place
from broker.core.session import Session
from broker.core.session_store import make_dormant
from broker.core.settings import OwnerSettings
from broker.core.storage import WriteBatch
from broker.core.transfer import Departure, SessionHead
from broker.mqtt.packets import Publish, Pubrel, Will
from broker.mqtt.properties import Property

HERE = b"a" * 16
THERE = b"b" * 16
ELSEWHERE = b"c" * 16
THIRD = b"d" * 16
EPOCH = Epoch(2, 5, HERE)


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    yield from started_nodes()


class Move:
    """A session on its way from one node to another, the frames between them included."""

    def __init__(self, old: Node, new: Node, client_id: str = "mover", bytes_max: int = 100_000) -> None:
        self.old = old
        self.new = new
        self.client_id = client_id
        self.bytes_max = bytes_max
        departure = old.owner.depart(client_id, old.now)
        assert departure is not None
        old.settle()
        self.departure: Departure = departure
        self.head = old.owner.transfers.head(departure)

    def begin(self, counter: int = 2, heir: bool = True) -> Session:
        """The new home takes the head, and what was in flight."""
        owner = self.new.owner
        cut = (self.new.store_id, owner.next_number())
        epoch = Epoch(counter, 0, self.new.store_id)
        row_counter = 0 if heir else 1
        session = owner.transfers.begin_arrival(self.head, epoch, self.old.store_id, row_counter, cut, self.new.now)
        self.new.settle()
        watermark = 0
        while watermark < self.head.inflight_seq:
            watermark = self.chunk()
        return session

    def chunk(self, confirmed: bool = True, settles: bool = True) -> int:
        """The next deliveries go over; the result is the watermark."""
        self.old.begin()
        after = max(self.departure.confirmed, self.departure.sent[-1].seq if self.departure.sent else 0)
        deliveries = [copy(delivery) for delivery in self.old.owner.transfers.read(self.departure, self.bytes_max)]
        session = self.new.owner.session(self.client_id)
        assert session is not None
        watermark = self.new.owner.transfers.accept(session, self.old.store_id, after, deliveries, self.new.now)
        if settles:
            self.new.settle()
        if confirmed:
            self.old.owner.transfers.confirm(self.departure, watermark)
            self.old.settle()
        return watermark

    def rest(self) -> None:
        """Everything that is left goes over."""
        while not self.old.owner.transfers.is_drained(self.departure):
            self.chunk()

    def end(self, *origins: bytes) -> None:
        """Every origin has switched, and the old home forgets the session."""
        self.rest()
        session = self.session()
        transfers = self.new.owner.transfers
        for origin in (HERE, THERE, *origins):
            transfers.pass_origin(session, HERE, origin, 1 << 62, self.new.now)
        transfers.end_donor(session, HERE, self.new.now)
        transfers.end_arrival(session, self.new.now)
        self.new.settle()
        self.old.owner.transfers.end_departure(self.departure, self.old.now)
        self.old.settle()

    def session(self) -> Session:
        session = self.new.owner.session(self.client_id)
        assert session is not None
        return session


def copy(delivery: Any) -> Any:
    """What the other side unpacks of a delivery: nothing is shared, and nothing is stored there yet."""
    twin = type(delivery)(delivery.seq, delivery.message, delivery.qos, delivery.retain, delivery.identifiers)
    twin.packet_id = delivery.packet_id
    twin.released = delivery.released
    twin.shared = delivery.shared
    twin.size = delivery.size
    return twin


def direct(node: Node, origin: bytes, number: int, payload: bytes, topic: bytes = b"t", qos: int = 1) -> None:
    """Another node forwards a message."""
    node.owner.receive_forwarded(Message(topic, payload, qos=qos, origin=origin, number=number), node.now)
    node.settle()


def payloads(client: Client) -> list[bytes]:
    """What the client is sent until it has acknowledged everything."""
    found: list[bytes] = []
    while True:
        publishes = [packet for packet in client.take() if isinstance(packet, Publish)]
        if not publishes:
            return found
        for publish in publishes:
            found.append(publish.payload)
            if publish.qos == 1:
                client.acknowledge(publish.packet_id)


def test_an_offline_session_moves_with_everything(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    publisher = old.connect("publisher")
    for number in range(40):
        publisher.publish(b"t", b"%d" % number, 1, number + 1)
    move = Move(old, new, bytes_max=500)
    move.begin()
    again = new.persistent("mover")
    assert again.connack.session_present
    move.end()
    assert payloads(again) == [b"%d" % number for number in range(40)]
    assert old.owner.counts()["num_subscriptions"] == 0
    assert new.owner.counts()["num_subscriptions"] == 1
    assert not [key for key in old.stored("session") if len(key) == 8]


def test_what_is_in_flight_keeps_its_packet_ids_and_its_place(start: Callable[..., Node]) -> None:
    settings = OwnerSettings(max_inflight_messages=3)
    old, new = start(store_id=HERE, settings=settings), start(store_id=THERE, settings=settings)
    client = old.persistent("mover", 4)
    client.subscribe(b"t", 2)
    publisher = old.connect("publisher")
    for number in range(8):
        publisher.publish(b"t", b"%d" % number, 1, number + 1)
    first = client.take_publishes()
    client.acknowledge(first[0].packet_id)
    unacknowledged = [(publish.packet_id, publish.payload) for publish in [*first[1:], *client.take_publishes()]]
    move = Move(old, new)
    assert client.closed
    move.begin()
    again = new.persistent("mover", 4)
    resent = again.take_publishes()
    assert [(publish.packet_id, publish.payload) for publish in resent] == unacknowledged
    assert all(publish.dup for publish in resent)
    again.acknowledge(*[publish.packet_id for publish in resent])
    move.end()
    assert payloads(again) == [b"4", b"5", b"6", b"7"]


def test_what_the_old_home_hears_of_after_its_head_is_sent_again_to_a_client_that_is_there(
    start: Callable[..., Node],
) -> None:
    """The client went on before an older home had given what was in flight there: seed 306."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover", 4)
    client.subscribe(b"t", 2)
    publisher = old.connect("publisher")
    for number in range(2):
        publisher.publish(b"t", b"%d" % number, 1, number + 1)
    sent = [(publish.packet_id, publish.payload) for publish in client.take_publishes()]
    move = Move(old, new)
    move.head.inflight_seq = 0
    move.begin()
    again = new.persistent("mover", 4)
    assert again.take_publishes() == []
    move.rest()
    resent = again.take_publishes()
    assert [(publish.packet_id, publish.payload) for publish in resent] == sent
    assert all(publish.dup for publish in resent)
    again.acknowledge(*[publish.packet_id for publish in resent])
    move.end()
    assert len(move.session().inflight) == 0


def test_qos_2_goes_on_in_both_directions(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover", 4)
    client.subscribe(b"t", 2)
    client.publish(b"u", b"mine", 2, 9)
    old.connect("publisher").publish_qos2(b"t", b"theirs", 1)
    publish = client.take()[-1]
    client.receive_qos2(publish.packet_id)
    move = Move(old, new)
    session = move.begin()
    assert list(session.incoming) == [9]
    watcher = new.connect("watcher")
    watcher.subscribe(b"u", 1)
    again = new.persistent("mover", 4)
    again.publish(b"u", b"mine", 2, 9)
    assert watcher.take_publishes() == []
    again.publish(b"u", b"another", 2, 9)
    assert [publish.payload for publish in watcher.take_publishes()] == [b"another"]
    assert list(session.inflight.deliveries) == []
    move.end()


def test_old_goes_before_new_although_new_comes_first(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    for number in range(5):
        direct(old, ELSEWHERE, number, b"%d" % number)
    move = Move(old, new)
    session = move.begin()
    again = new.persistent("mover")
    # Of this origin nothing is known yet: the old home has what it sends.
    direct(new, ELSEWHERE, 5, b"5")
    direct(old, ELSEWHERE, 5, b"5")
    new.owner.transfers.set_cut(session, ELSEWHERE, 6, new.now)
    direct(new, ELSEWHERE, 6, b"6")
    direct(old, ELSEWHERE, 6, b"6")
    assert payloads(again) == []
    move.rest()
    assert payloads(again) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert session.gate
    move.end(ELSEWHERE)
    assert payloads(again) == [b"6"]
    direct(new, ELSEWHERE, 7, b"7")
    assert payloads(again) == [b"7"]
    assert session.arrival is None


@pytest.mark.parametrize("upgrade", [False, True])
def test_qos_0_is_for_a_session_once_its_origin_knows_where_that_is(start: Callable[..., Node], upgrade: bool) -> None:
    """Before, the client may have had it at the old home."""
    settings = OwnerSettings(upgrade_outgoing_qos=upgrade)
    old, new = start(store_id=HERE, settings=settings), start(store_id=THERE, settings=settings)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    session = Move(old, new).begin()
    again = new.persistent("mover")
    other = new.connect("other")
    other.subscribe(b"t", 0)
    direct(new, ELSEWHERE, 0, b"before", qos=0)
    new.owner.transfers.set_cut(session, ELSEWHERE, 6, new.now)
    direct(new, ELSEWHERE, 0, b"behind", qos=0)
    for origin in (HERE, THERE, ELSEWHERE):
        new.owner.transfers.pass_origin(session, HERE, origin, 1 << 62, new.now)
    new.settle()
    assert payloads(again) == [b"behind"]
    assert payloads(other) == [b"before", b"behind"]


@pytest.mark.parametrize("restarts", [False, True])
def test_who_joins_when_the_old_home_has_said_its_last_word_sends_to_a_session_directly(
    start: Callable[..., Node], restarts: bool
) -> None:
    """It knows of the session from others and has no cut yet, while the arrival waits for what members know."""
    old, node = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    # The old home heard it before the new one did.
    direct(old, ELSEWHERE, 4, b"4")
    move = Move(old, node)
    session = move.begin()
    direct(node, ELSEWHERE, 3, b"for others")
    move.rest()
    node.owner.transfers.end_donor(session, HERE, node.now)
    node.settle()
    direct(node, ELSEWHERE, 4, b"4")
    direct(node, ELSEWHERE, 5, b"5")
    if restarts:
        node = node.restart()
        session = node.owner.session("mover")  # type: ignore[assignment]
    client = node.persistent("mover")
    direct(node, ELSEWHERE, 0, b"0", qos=0)
    node.owner.transfers.set_cut(session, ELSEWHERE, 7, node.now)
    direct(node, ELSEWHERE, 7, b"7")
    # Another old home is heard of, to which that one had sent some of it as well.
    node.owner.transfers.add_donor(session, THIRD, 1, node.now)
    assert session.arrival is not None
    session.arrival.donor(THIRD).counter = 1
    place = first_place(Epoch(1, 0, THIRD))
    deliveries = [
        Delivery(place + number, Message(b"t", b"%d" % number, qos=1, origin=ELSEWHERE, number=number), 1, False)
        for number in (5, 6, 7)
    ]
    node.owner.transfers.accept(session, THIRD, place, deliveries, node.now)
    node.settle()
    assert sorted(payloads(client)) == [b"0", b"4", b"5", b"6", b"7"]
    node.validate()


def test_a_stub_passes_on_what_comes_late(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    move = Move(old, new)
    session = move.begin()
    again = new.persistent("mover")
    new.owner.transfers.pass_origin(session, HERE, THERE, 1 << 62, new.now)
    new.connect("publisher").publish(b"t", b"here", 1, 1)
    assert payloads(again) == [b"here"]
    direct(old, ELSEWHERE, 3, b"late")
    move.rest()
    assert payloads(again) == [b"late"]
    move.end(ELSEWHERE)


def test_late_ones_go_before_what_waits_at_the_new_home(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    move = Move(old, new)
    session = move.begin()
    new.owner.transfers.pass_origin(session, HERE, THERE, 1 << 62, new.now)
    publisher = new.connect("publisher")
    for number in range(3):
        publisher.publish(b"t", b"new %d" % number, 1, number + 1)
    direct(old, ELSEWHERE, 3, b"late")
    move.rest()
    again = new.persistent("mover")
    assert payloads(again) == [b"late", b"new 0", b"new 1", b"new 2"]
    move.end(ELSEWHERE)


@pytest.mark.parametrize("confirmed", [True, False])
def test_the_old_home_restarts_in_the_middle(start: Callable[..., Node], confirmed: bool) -> None:
    old, new = Node(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    publisher = old.connect("publisher")
    for number in range(60):
        publisher.publish(b"t", b"%d" % number, 1, number + 1)
    move = Move(old, new, bytes_max=1000)
    move.begin()
    move.chunk(confirmed)
    reborn = old.restart()
    assert reborn.owner.counts()["num_offline"] == 0
    move.old = reborn
    move.departure = reborn.owner.transfers.departures["mover"]
    again = new.persistent("mover")
    move.rest()
    assert payloads(again) == [b"%d" % number for number in range(60)]
    move.end()
    reborn.validate()


def test_the_new_home_restarts_in_the_middle(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), Node(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    publisher = old.connect("publisher")
    for number in range(60):
        publisher.publish(b"t", b"%d" % number, 1, number + 1)
    move = Move(old, new, bytes_max=1000)
    move.begin()
    new.owner.transfers.set_cut(move.session(), ELSEWHERE, 7, new.now)
    direct(new, ELSEWHERE, 7, b"direct")
    move.chunk(confirmed=False)
    new.validate()
    move.new = new.restart()
    session = move.session()
    assert session.gate and session.arrival is not None
    again = move.new.persistent("mover")
    old.owner.transfers.rewind(move.departure)
    move.rest()
    assert payloads(again) == [b"%d" % number for number in range(60)]
    move.end(ELSEWHERE)
    assert payloads(again) == [b"direct"]
    move.new.validate()


def test_large_messages_are_stored_once_and_forgotten(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    for name in ("mover", "stayer"):
        client = old.persistent(name)
        client.subscribe(b"t", 1)
        client.drop()
    publisher = old.connect("publisher")
    for number in range(5):
        publisher.publish(b"t", b"x" * 2000, 1, number + 1)
    move = Move(old, new, bytes_max=3000)
    move.begin()
    move.end()
    assert len(old.stored("message")) == 5
    assert len(new.stored("message")) == 5
    assert len(payloads(new.persistent("mover"))) == 5
    assert new.stored("message") == []


def test_a_dead_old_home_holds_up_nothing(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    direct(old, ELSEWHERE, 1, b"old")
    move = Move(old, new)
    session = move.begin()
    again = new.persistent("mover")
    new.owner.transfers.set_cut(session, ELSEWHERE, 2, new.now)
    direct(new, ELSEWHERE, 2, b"new")
    assert payloads(again) == []
    new.owner.transfers.set_present(session, HERE, False, new.now)
    new.settle()
    assert payloads(again) == [b"new"]
    new.owner.transfers.set_present(session, HERE, True, new.now)
    move.rest()
    assert payloads(again) == [b"old"]
    move.end(ELSEWHERE)


def test_rivals_of_a_partition_are_merged_in_front(start: Callable[..., Node]) -> None:
    """Both sides made a session of the same epoch counter; what the loser has left goes before the winner's."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    loser = old.persistent("mover", 4)
    rival = old.owner.session("mover")
    assert rival is not None
    rival.next_seq = (2 << PLACE_BITS) + 1
    loser.subscribe(b"t", 1)
    direct(old, ELSEWHERE, 1, b"in flight")
    loser.drop()
    direct(old, ELSEWHERE, 2, b"old")
    move = Move(old, new)
    session = move.begin(heir=False)
    new.owner.transfers.pass_origin(session, HERE, THERE, 1 << 62, new.now)
    new.connect("publisher").publish(b"t", b"new", 1, 1)
    move.rest()
    again = new.persistent("mover", 4)
    publishes = again.take_publishes()
    assert [(publish.payload, publish.dup) for publish in publishes] == [
        (b"in flight", True),
        (b"old", False),
        (b"new", False),
    ]
    move.end(ELSEWHERE)


def lone_home(node: Node, *messages: tuple[int, bytes]) -> None:
    """A home that was alone has made a session, and has these messages for it."""
    client = node.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    for number, payload in messages:
        direct(node, ELSEWHERE, number, payload)


@pytest.mark.parametrize(("bytes_max", "restarts"), [(100_000, False), (1, False), (1, True)])
def test_a_rival_brings_what_another_rival_gave_to_it(
    start: Callable[..., Node], bytes_max: int, restarts: bool
) -> None:
    """Three nodes that were alone had a session each, all of one epoch counter; the places of no two are the same.

    The seed that showed it: what the second had directly took the places of what the first had given to it.
    """
    first, second = start(store_id=HERE), start(store_id=THERE)
    third = Node(store_id=THIRD) if restarts else start(store_id=THIRD)
    lone_home(first, (1, b"first 1"), (2, b"first 2"), (3, b"first 3"))
    lone_home(second, (11, b"second 1"), (12, b"second 2"))
    lone_home(third, (21, b"third"))
    for old, new in ((first, second), (second, third)):
        session = new.owner.session("mover")
        assert session is not None
        new.owner.transfers.add_donor(session, old.store_id, 1, new.now)
        move = Move(old, new, bytes_max=bytes_max)
        while not old.owner.transfers.is_drained(move.departure):
            move.chunk()
            if restarts and old is second:
                move.new = third = third.restart()
    again = third.persistent("mover")
    assert payloads(again) == [b"first 1", b"first 2", b"first 3", b"second 1", b"second 2", b"third"]
    third.validate()


def test_a_rival_does_not_get_the_places_of_one_before_it(start: Callable[..., Node]) -> None:
    """That one has given all it had, of which the client has taken nothing yet."""
    first, second, third = start(store_id=HERE), start(store_id=THERE), start(store_id=THIRD)
    lone_home(first, (1, b"first"))
    lone_home(second, (11, b"second"))
    lone_home(third, (21, b"third"))
    for old in (first, second):
        session = third.owner.session("mover")
        assert session is not None
        third.owner.transfers.add_donor(session, old.store_id, 1, third.now)
        move = Move(old, third)
        move.rest()
        third.owner.transfers.end_donor(session, old.store_id, third.now)
        if old is first:
            third.owner.transfers.end_arrival(session, third.now)
        third.settle()
    assert payloads(third.persistent("mover")) == [b"first", b"second", b"third"]


@pytest.mark.parametrize("is_over", [False, True])
def test_rivals_meet_at_a_home_of_a_later_epoch(start: Callable[..., Node], is_over: bool) -> None:
    """One of them has gone there before the other was heard, and may have given all that it had."""
    first, second, third = start(store_id=HERE), start(store_id=THERE), start(store_id=THIRD)
    lone_home(first, (1, b"first 1"), (2, b"first 2"), (3, b"first 3"))
    lone_home(second, (11, b"second 1"), (12, b"second 2"))
    for old in (second, first):
        move = Move(old, third)
        if old is second:
            session = move.begin(counter=3)
        else:
            third.owner.transfers.add_donor(session, old.store_id, 1, third.now)
        cut = (third.store_id, third.owner.next_number())
        third.owner.transfers.introduce(session, old.store_id, Epoch(1, 0, old.store_id), move.head, cut, third.now)
        move.rest()
        if is_over:
            third.owner.transfers.end_donor(session, old.store_id, third.now)
    third.owner.transfers.end_arrival(session, third.now)
    third.settle()
    assert payloads(third.persistent("mover")) == [b"first 1", b"first 2", b"first 3", b"second 1", b"second 2"]


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("begins", [False, True], ids=["the rival is heard first", "the rival is heard last"])
@pytest.mark.parametrize("gives", [False, True], ids=["the rival gives first", "the rival gives last"])
def test_what_a_home_passes_on_of_another_one_is_not_taken_for_what_a_rival_of_that_gave(
    start: Callable[..., Node], gives: bool, begins: bool, is_over: bool
) -> None:
    """It has the same places; of the one that had it nothing was heard yet but what the home between says."""
    first, between, rival, last = [start(store_id=store_id) for store_id in (HERE, THERE, THIRD, b"e" * 16)]
    lone_home(first, (1, b"first 1"), (2, b"first 2"))
    lone_home(rival, (11, b"rival 1"), (12, b"rival 2"))
    to_between = Move(first, between)
    to_between.begin(counter=2)
    to_between.rest()
    homes = [(between, 2), (rival, 1)] if begins else [(rival, 1), (between, 2)]
    givers = [between, rival] if gives else [rival, between]
    moves = {old: Move(old, last) for old, _ in homes}
    session = moves[homes[0][0]].begin(counter=4)
    heard = []
    for old, counter in homes:
        if heard:
            last.owner.transfers.add_donor(session, old.store_id, counter, last.now)
        cut = (last.store_id, last.owner.next_number())
        epoch = Epoch(counter, 0, old.store_id)
        last.owner.transfers.introduce(session, old.store_id, epoch, moves[old].head, cut, last.now)
        heard.append(old)
        while givers and givers[0] in heard:
            giver = givers.pop(0)
            moves[giver].rest()
            if is_over:
                last.owner.transfers.end_donor(session, giver.store_id, last.now)
    last.owner.transfers.end_arrival(session, last.now)
    last.settle()
    assert sorted(payloads(last.persistent("mover"))) == [b"first 1", b"first 2", b"rival 1", b"rival 2"]


def test_nothing_waits_for_what_this_node_has_given_away_itself(start: Callable[..., Node]) -> None:
    """An old home has not heard all from this node, which was the home before it, and gave the rest to a rival."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    lone_home(old, (1, b"old"))
    move = Move(old, new)
    move.head.taken = [(THERE, 0)]
    session = move.begin(counter=3)
    cut = (THERE, new.owner.next_number())
    new.owner.transfers.introduce(session, HERE, Epoch(1, 0, HERE), move.head, cut, new.now)
    move.rest()
    assert payloads(new.persistent("mover")) == [b"old"]
    move.end()


@pytest.mark.parametrize("bytes_max", [100_000, 1])
def test_rivals_meet_though_what_waits_of_the_first_is_all_that_is_known_of_it(
    start: Callable[..., Node], bytes_max: int
) -> None:
    """One message went to both, and has the same place there."""
    nodes = [start(store_id=store_id) for store_id in (HERE, THERE, ELSEWHERE, THIRD)]
    *rivals, last = nodes
    for place, rival in enumerate(rivals):
        lone_home(rival, (1, b"both"), (10 * place + 2, b"%d 1" % place), (10 * place + 3, b"%d 2" % place))
        move = Move(rival, last, bytes_max=bytes_max)
        if rival is rivals[0]:
            session = move.begin(counter=3)
        else:
            last.owner.transfers.add_donor(session, rival.store_id, 1, last.now)
        cut = (last.store_id, last.owner.next_number())
        epoch = Epoch(1, 0, rival.store_id)
        last.owner.transfers.introduce(session, rival.store_id, epoch, move.head, cut, last.now)
        move.rest()
        last.owner.transfers.end_donor(session, rival.store_id, last.now)
        last.owner.transfers.end_arrival(session, last.now)
        last.settle()
    found = payloads(last.persistent("mover"))
    assert sorted(found) == sorted([b"both", b"0 1", b"0 2", b"1 1", b"1 2", b"2 1", b"2 2"])


def test_a_session_that_ends_takes_its_arrival_with_it(start: Callable[..., Node]) -> None:
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    direct(old, ELSEWHERE, 1, b"old")
    move = Move(old, new)
    move.begin()
    new.connect("mover", clean=True)
    assert new.owner.transfers.accept(move.session(), HERE, 0, [], new.now) == 0
    old.owner.discard("mover", old.now)
    old.settle()
    assert old.owner.transfers.departures == {}
    assert old.dropped("session_ended") == 1


def test_what_an_old_home_passed_on_is_left_out_until_the_origin_has_come_as_far() -> None:
    """The seed that showed it: on a slow link the copies came when the arrival was over, and were taken again."""
    arrival = Arrival(first_place(EPOCH))
    arrival.cuts.note_relayed(ELSEWHERE, 5)
    arrival.cuts.note_relayed(ELSEWHERE, 9)
    assert not arrival.overlaps(), "nobody knows yet whether they come directly as well"
    assert arrival.set_cut(ELSEWHERE, 3)
    for state in (arrival, unpack_arrival(pack_arrival(arrival))):
        assert state.overlaps()
        assert [state.takes(state.cuts, ELSEWHERE, number) for number in (3, 9)] == [False, False]
        assert state.overlaps()
        assert not state.set_cut(ELSEWHERE, 9)
        assert state.overlaps()
    assert arrival.takes(arrival.cuts, ELSEWHERE, 10)
    assert not arrival.overlaps()
    again = unpack_arrival(pack_arrival(state))
    assert not again.set_cut(ELSEWHERE, 10), "a mark says so as well"
    assert not again.overlaps()
    assert again.takes(again.cuts, ELSEWHERE, 10)


def test_what_an_old_home_passed_on_does_not_come_again_to_a_session_that_went_on(start: Callable[..., Node]) -> None:
    """The old home has said its last word, and the origin's copy comes when the session leaves already."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    move = Move(old, new)
    session = move.begin()
    direct(old, ELSEWHERE, 9, b"passed on")
    move.rest()
    new.owner.transfers.end_donor(session, HERE, new.now)
    new.settle()
    assert len(session.queue) == 1
    assert new.owner.depart("mover", new.now) is not None
    new.settle()
    direct(new, ELSEWHERE, 9, b"passed on")
    assert len(session.queue) == 1
    direct(new, ELSEWHERE, 10, b"new")
    assert len(session.queue) == 2


def test_a_session_that_is_back_takes_again_what_it_gave_of_an_older_home(start: Callable[..., Node]) -> None:
    """That one had given it here, and is away; the home between has it now, and gives it back (seed 424)."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    for number in range(3):
        direct(old, ELSEWHERE, number + 1, b"%d" % number)
    move = Move(old, new)
    session = move.begin()
    transfers = new.owner.transfers
    assert session.arrival is not None
    session.arrival.donor(HERE).counter = 1
    move.rest()
    departure = new.owner.depart("mover", new.now)
    assert departure is not None
    new.settle()
    new.begin()
    given = [copy(delivery) for delivery in transfers.read(departure, 100_000)]
    assert len(given) == 3
    transfers.confirm(departure, given[-1].seq)
    transfers.come_back(departure, Epoch(4, 0, THERE))
    new.settle()
    assert session.arrival is not None and HERE in session.arrival.donors
    transfers.add_donor(session, ELSEWHERE, 3, new.now)
    session.arrival.donor(ELSEWHERE).counter = 3
    transfers.accept(session, ELSEWHERE, 0, given, new.now)
    new.settle()
    assert len(session.queue) == 3


def given_ids(node: Node) -> list[bytes]:
    """Return the keys of the rows in which ids are of what old homes gave."""
    return [key for key, _ in node.storage.scan("session", b"", b"") if key[8:9] == b"g"]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_session_that_is_back_takes_after_a_restart_what_it_gave_away_and_nothing_else(
    start: Callable[..., Node], restarts: bool
) -> None:
    """Of three deliveries that an old home had given, and another may have as well, it has given one away."""
    old = start(store_id=HERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    for number in range(3):
        direct(old, ELSEWHERE, number + 1, b"%d" % number)
    new = Node(store_id=THERE)
    move = Move(old, new)
    session = move.begin()
    old.begin()
    given = [copy(delivery) for delivery in old.owner.transfers.read(move.departure, 100_000)]
    again = [copy(delivery) for delivery in given]
    new.owner.transfers.accept(session, HERE, 0, given, new.now, others=True)
    new.settle()
    assert given_ids(new)
    assert new.owner.depart("mover", new.now) is not None
    new.settle()
    departure = new.owner.transfers.departures["mover"]
    new.begin()
    sent = new.owner.transfers.read(departure, 100_000)
    new.owner.transfers.confirm(departure, sent[0].seq)
    new.settle()
    if restarts:
        new = new.restart()
    new.owner.transfers.come_back(new.owner.transfers.departures["mover"], Epoch(4, 0, THERE))
    new.settle()
    new = new.restart()
    session = new.owner.session("mover")  # type: ignore[assignment]
    assert session.arrival is not None
    assert session.arrival.ids == {ELSEWHERE: {2, 3}}
    new.owner.transfers.add_donor(session, THIRD, 3, new.now)
    session.arrival.donor(THIRD).counter = 3
    new.owner.transfers.accept(session, THIRD, 0, again, new.now)
    new.settle()
    assert len(session.queue) == 3
    for donor in list(session.arrival.donors):
        new.owner.transfers.end_donor(session, donor, new.now)
    new.owner.transfers.end_arrival(session, new.now)
    new.settle()
    assert not given_ids(new)


def test_a_cut_that_is_known_in_time_overlaps_with_nothing() -> None:
    arrival = Arrival(first_place(EPOCH))
    arrival.cuts.note_relayed(ELSEWHERE, 2)
    assert arrival.set_cut(ELSEWHERE, 3)
    assert not arrival.overlaps()
    arrival.cuts.note_relayed(ELSEWHERE, 9)
    assert not arrival.overlaps()


def test_what_a_group_gave_to_the_session_comes_on_no_other_way(start: Callable[..., Node]) -> None:
    """The seed that showed it: its number is behind the cut, where other messages of the origin come directly."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"$share/g/t", 1)
    message = Message(b"t", b"given", qos=1, origin=ELSEWHERE, number=9)
    old.owner.receive_for_groups(message, [b"$share/g/t"], old.now)
    old.settle()
    assert client.take_payloads() == [b"given"]
    again = new.persistent("mover")
    again.subscribe(b"t", 1)
    session = new.owner.session("mover")
    assert session is not None
    move = Move(old, new)
    transfers = new.owner.transfers
    transfers.add_donor(session, HERE, 1, new.now)
    assert session.arrival is not None
    session.arrival.direct_from = 0
    transfers.set_cut(session, ELSEWHERE, 3, new.now)
    move.rest()
    assert payloads(again) == [b"given"]
    direct(new, ELSEWHERE, 5, b"plain")
    assert not session.arrival.overlaps()
    move.end(ELSEWHERE)
    assert payloads(again) == [b"plain"]


def test_of_what_others_have_given_a_packet_id_is_left(start: Callable[..., Node]) -> None:
    """The client may hold that of QoS 2. What a group gave, another node may have chosen: others had kept that."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover", 4)
    client.subscribe(b"t", 2)
    client.subscribe(b"$share/g/u", 1)
    direct(old, ELSEWHERE, 1, b"before")
    direct(old, ELSEWHERE, 2, b"given")
    direct(old, ELSEWHERE, 3, b"3" * 10_000, qos=2)
    message = Message(b"u", b"of a group", qos=1, origin=ELSEWHERE, number=4)
    old.owner.receive_for_groups(message, [b"$share/g/u"], old.now)
    old.settle()
    before, _given, twice, of_group = client.take_publishes()
    old.owner.transfers.skips[ELSEWHERE] = 2
    move = Move(old, new)
    move.old.begin()
    move.old.owner.transfers.read(move.departure, 100_000)
    old.settle()
    assert not old.stored("message")
    move.old.owner.transfers.rewind(move.departure)
    session = move.begin()
    assert list(session.inflight.deliveries) == [before.packet_id, twice.packet_id, of_group.packet_id]
    again = new.persistent("mover", 4)
    answers = again.take()
    assert [packet.packet_id for packet in answers if isinstance(packet, Pubrel)] == [twice.packet_id]
    assert [packet.payload for packet in answers if isinstance(packet, Publish)] == [b"before", b"of a group"]
    move.end()
    assert not old.stored("queue")


def test_what_a_stub_gave_away_comes_back_from_there(start: Callable[..., Node]) -> None:
    """The new home had it directly as well, and left out what the stub gave: the stub has it no more."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    for number in (1, 2, 3):
        direct(old, ELSEWHERE, number, b"%d" % number)
    move = Move(old, new)
    move.begin()
    move.rest()
    direct(old, ELSEWHERE, 4, b"4")
    session = old.owner.transfers.come_back(move.departure, Epoch(3, 0, HERE))
    old.settle()
    assert session.arrival is not None and session.arrival.kept == {ELSEWHERE: 4}
    place = first_place(Epoch(2, 0, THERE)) + 1
    arrival = session.arrival
    assert [arrival.has_had(arrival.cuts, ELSEWHERE, number, place) for number in (3, 4)] == [False, True]


@pytest.mark.parametrize("padding_bytes", [0, 1000])
def test_what_a_stub_gave_away_may_come_back_in_the_same_turn(start: Callable[..., Node], padding_bytes: int) -> None:
    """What the new home took is heard of with its offer, and what it gives follows that: both have the same places."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    sent = [b"%d" % number + bytes(padding_bytes) for number in (1, 2, 3)]
    for number, payload in enumerate(sent, start=1):
        direct(old, ELSEWHERE, number, payload)
    move = Move(old, new)
    move.begin()
    old.begin()
    transfers = old.owner.transfers
    given = [copy(delivery) for delivery in transfers.read(move.departure, 100_000)]
    assert len(given) == 3
    transfers.confirm(move.departure, given[-1].seq)
    session = transfers.come_back(move.departure, Epoch(3, 0, HERE))
    assert transfers.add_donor(session, THERE, 2, old.now)
    transfers.accept(session, THERE, 0, given, old.now)
    old.settle()
    assert len(session.queue) == 3
    old.validate()
    assert payloads(old.persistent("mover")) == sent


def test_the_will_that_waits_at_an_old_home_comes_along(start: Callable[..., Node]) -> None:
    """The session has begun at both, in two halves of a partition; nobody is connected to either."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    expiry = {int(Property.SESSION_EXPIRY_INTERVAL): 1000}
    will = Will(b"w", b"gone", qos=1, properties={int(Property.WILL_DELAY_INTERVAL): 60})
    old.connect("mover", 5, False, properties=expiry, will=will).drop()
    new.persistent("mover").drop()
    move = Move(old, new)
    session, transfers = move.session(), new.owner.transfers
    assert transfers.add_donor(session, HERE, 1, new.now)
    transfers.inherit_will(session, move.head, new.now)
    new.settle()
    left = new.owner.wills.get("mover")
    assert left is not None and left.will.payload == b"gone" and left.due > new.now
    assert not transfers.add_donor(session, HERE, 1, new.now)
    move.end()


def test_packet_ids_begin_elsewhere_after_a_restart_too(start: Callable[..., Node]) -> None:
    """What the client holds of the home that is away, under ids that nobody here knows, is no new message (seed 76)."""
    old, new = start(store_id=HERE), Node(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    move = Move(old, new)
    epoch = Epoch(2, 500, THERE)
    cut = (new.store_id, new.owner.next_number())
    new.owner.transfers.begin_arrival(move.head, epoch, HERE, 1, cut, new.now)
    new.settle()
    assert move.session().inflight.next_id == 501
    move.new = new.restart()
    assert move.session().inflight.next_id == 501
    move.end()
    assert move.session().arrival is None
    move.new = move.new.restart()
    assert move.session().inflight.next_id == 501, "nobody released what the old home had sent"


def test_a_stub_tells_a_third_home_only_of_what_it_still_has(start: Callable[..., Node]) -> None:
    """What it had directly it has given to the second one: that one gives it on (seed 178)."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    session = old.owner.session("mover")
    assert session is not None
    session.arrival = Arrival(first_place(Epoch(1, 0, HERE)))
    session.arrival.set_cut(ELSEWHERE, 1)
    move = Move(old, new)
    assert move.head.cuts == [(ELSEWHERE, 1)]
    move.begin()
    for number in (1, 2, 3):
        direct(old, ELSEWHERE, number, b"%d" % number)
    move.rest()
    direct(old, ELSEWHERE, 4, b"4")
    head = old.owner.transfers.head(move.departure)
    assert head.cuts == [(ELSEWHERE, 4)]
    # A home before it, and who kept something for that one, does not have to give the others either.
    assert head.direct == [(1, ELSEWHERE, 1)]


def test_a_session_that_came_back_tells_the_next_home_only_of_what_it_still_has(start: Callable[..., Node]) -> None:
    """What it had directly before it has given to the one where it was meanwhile, which may give it yet (seed 354)."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    session = old.owner.session("mover")
    assert session is not None
    session.arrival = Arrival(first_place(Epoch(1, 0, HERE)))
    session.arrival.donor(THIRD)
    session.arrival.set_cut(ELSEWHERE, 1)
    session.arrival.set_cut(THERE, 1)
    for number in (1, 2, 3):
        direct(old, ELSEWHERE, number, b"%d" % number)
    move = Move(old, new)
    move.begin()
    move.rest()
    old.owner.transfers.come_back(move.departure, Epoch(3, 0, HERE))
    direct(old, ELSEWHERE, 4, b"4")
    assert Move(old, start(store_id=ELSEWHERE)).head.cuts == [(ELSEWHERE, 4)]


def test_a_stub_that_is_the_home_again_knows_what_it_and_older_homes_had(start: Callable[..., Node]) -> None:
    """Whether older homes still give something or not."""
    for is_over in (False, True):
        node = start(store_id=HERE)
        client = node.persistent("mover")
        client.subscribe(b"t", 1)
        client.drop()
        session, transfers = node.owner.session("mover"), node.owner.transfers
        assert session is not None
        transfers.add_donor(session, THERE, 0, node.now)
        assert session.arrival is not None
        session.arrival.set_cut(ELSEWHERE, 7)
        session.arrival.direct.add(ELSEWHERE, 0, 3)
        if is_over:
            transfers.end_donor(session, THERE, node.now)
        back = transfers.come_back(transfers.depart(session), Epoch(2, 0, HERE))
        assert back.arrival is not None
        assert back.arrival.direct.known == {ELSEWHERE: {0: 3, 1: 7}}
        assert (0, ELSEWHERE, 3) in back.arrival.told_direct(2)


def test_what_an_old_home_had_from_here_has_its_place_already(start: Callable[..., Node]) -> None:
    """It confirmed it, and forgot that with its power: the queue must not count it twice (seed 281)."""
    old, new = start(store_id=HERE), start(store_id=THERE)
    for node in (old, new):
        client = node.persistent("mover")
        client.subscribe(b"t", 1)
        client.drop()
    for node in (old, new):
        for number in (1, 2, 3):
            direct(node, ELSEWHERE, number, b"%d" % number)
    move = Move(old, new)
    session, transfers = move.session(), new.owner.transfers
    # Both gave the same places.
    assert session.next_seq == move.departure.session.next_seq
    transfers.add_donor(session, HERE, 1, new.now)
    session.arrival.first_seq = first_place(Epoch(9, 0, THERE))
    move.rest()
    assert len(session.queue) == 3
    assert [publish.payload for publish in new.persistent("mover").take_publishes()] == [b"1", b"2", b"3"]
    new.validate()
    move.end()


@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("same_turn", [False, True])
@pytest.mark.parametrize("sent_by", ["nobody", "both", "second"])
def test_what_is_in_flight_at_the_heir_is_not_here_twice_though_another_gave_it_first(
    start: Callable[..., Node], sent_by: str, same_turn: bool, lifo: bool
) -> None:
    """The client came back to the first home, which the second did not hear: a third one has both (seed 13794)."""
    settings = OwnerSettings(max_inflight_messages=1, queue_lifo=lifo)
    first, second, third = [start(store_id=store_id, settings=settings) for store_id in (HERE, THERE, ELSEWHERE)]
    client = first.persistent("mover", 4)
    client.subscribe(b"t", 2)
    if sent_by != "both":
        client.drop()
    direct(first, THIRD, 1, b"1" * 10_000, qos=2)
    to_second = Move(first, second)
    # Here as below nothing comes along with the head.
    to_second.head.inflight_seq = 0
    to_second.begin()
    to_second.chunk(confirmed=False)
    if sent_by == "second":
        assert len(second.persistent("mover", 4).take_publishes()) == 1
    first.owner.transfers.come_back(to_second.departure, Epoch(2, 700, HERE))
    first.settle()
    (sent,) = first.persistent("mover", 4).take_publishes()
    direct(first, THIRD, 2, b"2" * 10_000, qos=2)
    heir, other = Move(first, third), Move(second, third)
    heir.head.inflight_seq = 0
    session = heir.begin(counter=3)
    cut = (ELSEWHERE, third.owner.next_number())
    for move, epoch in ((heir, Epoch(2, 700, HERE)), (other, Epoch(2, 0, THERE))):
        third.owner.transfers.add_donor(session, move.old.store_id, 2, third.now)
        third.owner.transfers.introduce(session, move.old.store_id, epoch, move.head, cut, third.now)
    third.settle()
    other.chunk(settles=not same_turn)
    heir.chunk()
    third.validate()
    assert list(session.inflight.deliveries) == [sent.packet_id]
    assert len(session.queue) == 1
    restarted = third.restart()
    found = restarted.owner.session("mover")
    assert found is not None
    assert (list(found.inflight.deliveries), len(found.queue)) == ([sent.packet_id], 1)
    again = third.persistent("mover", 4)
    for payload in (b"1", b"2"):
        (publish,) = [packet for packet in again.take() if isinstance(packet, Publish)]
        assert publish.payload[:1] == payload
        again.receive_qos2(publish.packet_id)
    assert not third.stored("queue") and not third.stored("message")


def test_packet_ids_begin_elsewhere_in_a_session_that_comes_back(start: Callable[..., Node]) -> None:
    """The home that it was on its way to had its head, sent a message with QoS 2 under the next id, and is away."""
    old, new = start(store_id=HERE), Node(store_id=THERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    move = Move(old, new)
    move.begin()
    session = old.owner.transfers.come_back(move.departure, Epoch(3, 700, HERE))
    old.settle()
    assert session.inflight.next_id == 701
    back = old.restart().owner.session("mover")
    assert back is not None and back.inflight.next_id == 701


@pytest.mark.parametrize("home", [HERE, bytes(16)])
def test_what_was_kept_for_the_present_home_is_taken_as_what_comes_directly(
    start: Callable[..., Node], home: bytes
) -> None:
    """What was kept for a rival of the same epoch counter is had if it came directly, and is older."""
    old, new = start(store_id=THERE), start(store_id=HERE)
    client = old.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    session = Move(old, new).begin()
    transfers = new.owner.transfers
    transfers.set_cut(session, ELSEWHERE, 5, new.now)
    new.owner.receive_forwarded(Message(b"t", b"5", qos=1, origin=ELSEWHERE, number=5), new.now)
    new.settle()
    epoch = Epoch(2, 0, home)
    assert transfers.add_donor(session, b"d" * 16, 2, new.now)
    transfers.introduce(session, b"d" * 16, epoch, SessionHead("mover", None, 0), (HERE, 1), new.now)
    place = new.owner.legacies.place(epoch, 2)
    kept = [
        Delivery(place + number, Message(b"t", b"%d" % number, qos=1, origin=ELSEWHERE, number=number), 1, False, b"")
        for number in (4, 6)
    ]
    transfers.accept(session, b"d" * 16, place, kept, new.now)
    transfers.end_arrival(session, new.now)
    new.settle()
    client = new.persistent("mover")
    assert payloads(client) == ([b"5", b"6"] if home == HERE else [b"4", b"5"])


def give(node: Node, session: Session, donor: bytes, epoch: Epoch, *numbers: int) -> None:
    """An old home gives messages of ELSEWHERE, and says its last word; it may have another store id by now."""
    transfers = node.owner.transfers
    transfers.come_again(session, epoch.store_id, donor, node.now)
    transfers.add_donor(session, donor, epoch.counter, node.now)
    transfers.introduce(session, donor, epoch, SessionHead("mover", None, 3600), (node.store_id, 9), node.now)
    had = [
        Delivery(
            first_place(epoch) + number,
            Message(b"t", b"%d" % number, qos=1, origin=ELSEWHERE, number=number),
            1,
            False,
            b"",
        )
        for number in numbers
    ]
    transfers.accept(session, donor, first_place(epoch), had, node.now)
    node.settle()
    transfers.end_donor(session, donor, node.now)
    transfers.end_arrival(session, node.now)
    node.settle()


@pytest.mark.parametrize("between", ["nothing", "restart", "back", "next home"])
def test_what_came_directly_does_not_come_once_more_from_a_home_that_was_removed_long_ago(
    start: Callable[..., Node], between: str
) -> None:
    """It says its last word then, and nothing of all this is left."""
    node = start(store_id=HERE)
    transfers = node.owner.transfers
    told = SessionHead("mover", None, 3600)
    told.subscriptions = [(b"t", 1, 0)]
    session = transfers.begin_arrival(told, Epoch(2, 0, HERE), THERE, 1, (HERE, 1), node.now)
    transfers.set_present(session, THERE, False, node.now)
    transfers.set_cut(session, ELSEWHERE, 5, node.now)
    direct(node, ELSEWHERE, 5, b"5")
    transfers.end_arrival(session, node.now)
    node.settle()
    assert not transfers.arriving()
    if between == "restart":
        node = node.restart()
        session = node.owner.session("mover")  # type: ignore[assignment]
        node.owner.transfers.end_arrival(session, node.now)
        node.settle()
    elif between == "back":
        departure = node.owner.depart("mover", node.now)
        assert departure is not None
        direct(node, ELSEWHERE, 6, b"6")
        transfers.come_back(departure, Epoch(4, 0, HERE))
        give(node, session, THIRD, Epoch(3, 0, THIRD), 6)
    elif between == "next home":
        old, node = node, start(store_id=THIRD)
        move = Move(old, node)
        session = move.begin(counter=3)
        transfers = node.owner.transfers
        transfers.introduce(session, HERE, Epoch(2, 0, HERE), move.head, (THIRD, 1), node.now)
        transfers.set_present(session, THERE, False, node.now)
        move.rest()
        transfers.end_donor(session, HERE, node.now)
        transfers.end_arrival(session, node.now)
        node.settle()
    assert not node.owner.transfers.arriving()
    give(node, session, b"e" * 16, Epoch(1, 0, THERE), 4, 5, 6)
    assert session.arrival is None
    direct(node, ELSEWHERE, 7, b"7")
    assert payloads(node.persistent("mover")) == [b"4", b"5", *([b"6"] if between == "back" else []), b"7"]
    node.validate()


@pytest.mark.parametrize("between", ["nothing", "restart", "back"])
def test_what_another_home_gave_does_not_come_once_more_from_a_home_that_was_removed_long_ago(
    start: Callable[..., Node], between: str
) -> None:
    """Its origin had sent that to both, and had no cut at the other one. The ids are in the store alone meanwhile."""
    node = start(store_id=HERE)
    transfers = node.owner.transfers
    told = SessionHead("mover", None, 3600)
    told.subscriptions = [(b"t", 1, 0)]
    session = transfers.begin_arrival(told, Epoch(3, 0, HERE), THERE, 2, (HERE, 1), node.now)
    transfers.set_present(session, THERE, False, node.now)
    give(node, session, THIRD, Epoch(2, 0, THIRD), 1, 2)
    assert not transfers.arriving()
    assert session.arrival is not None and not session.arrival.ids
    assert given_ids(node)
    if between == "restart":
        node = node.restart()
        session = node.owner.session("mover")  # type: ignore[assignment]
        node.owner.transfers.end_arrival(session, node.now)
        node.settle()
    elif between == "back":
        departure = node.owner.depart("mover", node.now)
        assert departure is not None
        transfers.come_back(departure, Epoch(4, 0, HERE))
        transfers.end_arrival(session, node.now)
        node.settle()
    give(node, session, b"e" * 16, Epoch(1, 0, THERE), 1, 2, 3)
    assert session.arrival is None
    assert not given_ids(node)
    assert payloads(node.persistent("mover")) == [b"3", b"1", b"2"]
    node.validate()


def test_what_only_a_home_that_was_removed_was_asked_for_comes_from_there(start: Callable[..., Node]) -> None:
    """The later home had everything else directly."""
    node = start(store_id=HERE)
    transfers = node.owner.transfers
    session = transfers.begin_arrival(
        SessionHead("mover", None, 3600), Epoch(2, 0, HERE), THERE, 1, (HERE, 1), node.now
    )
    transfers.set_cut(session, ELSEWHERE, 5, node.now)
    transfers.end_arrival(session, node.now)
    node.settle()
    give(node, session, b"e" * 16, Epoch(1, 0, THERE), 4, 5, 6)
    assert payloads(node.persistent("mover")) == [b"4", b"5", b"6"]


@pytest.mark.parametrize("qos", [0, 1])
def test_what_the_client_ended_at_a_later_home_stays_ended_though_an_older_one_has_it(
    start: Callable[..., Node], qos: int
) -> None:
    """Nobody had heard of either, and the older home is heard first: it has a filter that was not, or at QoS 0."""
    new = start(store_id=HERE)
    transfers = new.owner.transfers
    told = SessionHead("mover", None, 3600)
    told.subscriptions = [(b"t", 0, 0)] if qos == 0 else []
    session = transfers.begin_arrival(told, Epoch(3, 0, HERE), THERE, 2, (HERE, 1), new.now)
    older = SessionHead("mover", None, 3600)
    older.subscriptions = [(b"t", 2, 0), (b"u", 1, 0)]
    transfers.add_donor(session, ELSEWHERE, 1, new.now)
    transfers.introduce(session, ELSEWHERE, Epoch(1, 0, ELSEWHERE), older, (HERE, 1), new.now)
    assert set(session.subscriptions) == {b"t", b"u"}
    later = SessionHead("mover", None, 3600)
    later.touched = {b"t": 0}
    transfers.introduce(session, THERE, Epoch(2, 0, THERE), later, (HERE, 1), new.now)
    assert set(session.subscriptions) == {b"u"}
    new.settle()


@pytest.mark.parametrize("restarts", [False, True])
def test_what_the_client_made_again_at_a_later_home_stays_though_an_older_one_has_ended_it(
    start: Callable[..., Node], restarts: bool
) -> None:
    """The session was made of what the later one had told, and that comes last (seed 10957)."""
    new = start(store_id=HERE)
    told = SessionHead("mover", None, 3600)
    told.subscriptions = [(b"t", 1, 0), (b"v", 1, 0)]
    session = new.owner.transfers.begin_arrival(told, Epoch(5, 0, HERE), THERE, 4, (HERE, 1), new.now)
    older = SessionHead("mover", None, 3600)
    older.touched = {b"t": 0, b"u": 0, b"v": 0}
    new.owner.transfers.add_donor(session, ELSEWHERE, 3, new.now)
    new.owner.transfers.introduce(session, ELSEWHERE, Epoch(3, 0, ELSEWHERE), older, (HERE, 1), new.now)
    assert set(session.subscriptions) == {b"t", b"v"}
    new.settle()
    if restarts:
        new = new.restart()
        session = new.owner.session("mover")  # type: ignore[assignment]
    # There the client has made two that it had ended before, and ended a third once more.
    later = SessionHead("mover", None, 3600)
    later.subscriptions = [(b"t", 1, 0), (b"u", 1, 0), (b"w", 1, 0)]
    later.touched = {b"t": 0, b"u": 0, b"v": 0, b"w": 2}
    new.owner.transfers.introduce(session, THERE, Epoch(4, 0, THERE), later, (HERE, 1), new.now)
    assert set(session.subscriptions) == {b"t", b"u", b"w"}
    # One between the two knows more than the later one had heard of a still older one.
    between = SessionHead("mover", None, 3600)
    between.touched = {b"u": 0, b"w": 0}
    new.owner.transfers.add_donor(session, THIRD, 3, new.now)
    new.owner.transfers.introduce(session, THIRD, Epoch(3, 0, THIRD), between, (HERE, 1), new.now)
    assert set(session.subscriptions) == {b"t", b"u"}
    new.settle()


@pytest.mark.parametrize("qos", [0, 1])
def test_what_came_directly_at_qos_0_is_had_from_an_old_home_where_more_was_wanted(
    start: Callable[..., Node], qos: int
) -> None:
    """Only what was kept here counts as had; from a filter on which everything was, nothing comes twice."""
    new = start(store_id=HERE)
    transfers = new.owner.transfers
    told = SessionHead("mover", None, 3600)
    told.subscriptions = [(b"t", qos, 0)]
    session = transfers.begin_arrival(told, Epoch(2, 0, HERE), THERE, 1, (HERE, 1), new.now)
    transfers.set_cut(session, ELSEWHERE, 5, new.now)
    direct(new, ELSEWHERE, 5, b"5")
    head = SessionHead("mover", None, 3600)
    head.subscriptions = [(b"t", 2, 0)]
    transfers.introduce(session, THERE, Epoch(1, 0, THERE), head, (HERE, 1), new.now)
    # It goes on to send to the old home as well until it has heard what is wanted here.
    direct(new, ELSEWHERE, 6, b"6")
    transfers.set_cut(session, ELSEWHERE, 7, new.now)
    direct(new, ELSEWHERE, 7, b"7")
    kept = [
        Delivery(
            first_place(Epoch(1, 0, THERE)) + number,
            Message(b"t", b"%d" % number, qos=1, origin=ELSEWHERE, number=number),
            1,
            False,
            b"",
        )
        for number in (5, 6, 7)
    ]
    transfers.accept(session, THERE, first_place(Epoch(1, 0, THERE)), kept, new.now)
    transfers.end_donor(session, THERE, new.now)
    transfers.end_arrival(session, new.now)
    new.settle()
    assert payloads(new.persistent("mover")) == [b"5", b"6", b"7"]


@pytest.mark.parametrize("wakes", ["woken", "back", "over"])
def test_nothing_that_is_published_comes_to_a_dormant_session_before_it_wakes(
    start: Callable[..., Node], wakes: str
) -> None:
    """Nor do other nodes hear that it wants anything. It wakes for good, at the latest when it is a session again."""
    node = start(store_id=HERE)
    client = node.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    direct(node, ELSEWHERE, 1, b"before")
    batch = WriteBatch()
    make_dormant(node.storage, batch)
    node.storage.commit(batch)
    node = start(store_id=HERE, storage=node.storage.survivor())
    assert node.owner.local_interest() == []
    direct(node, ELSEWHERE, 2, b"dormant")
    node.owner.validate()
    departure = node.owner.depart("mover", node.now)
    assert departure is not None
    if wakes == "over":
        node.owner.transfers.end_departure(departure, node.now)
        node.settle()
        node.owner.validate()
        return
    if wakes == "woken":
        node.owner.transfers.wake(departure.session)
        assert node.owner.local_interest() == [(b"t", True)]
        node.settle()
    node.owner.transfers.come_back(departure, Epoch(2, 0, HERE))
    node.settle()
    node = start(store_id=HERE, storage=node.storage.survivor())
    assert node.owner.local_interest() == [(b"t", True)]
    direct(node, ELSEWHERE, 3, b"awake")
    node.owner.validate()
    assert payloads(node.persistent("mover")) == [b"before", b"awake"]


@pytest.mark.parametrize("is_donors", [True, False])
def test_a_donors_stub_does_not_give_what_its_origin_had_sent_to_the_next_home_as_well(
    start: Callable[..., Node], is_donors: bool
) -> None:
    """Another stub does: that home says what it has had. What was chosen by a group comes on no other way."""
    node = start(store_id=HERE)
    client = node.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    departure = node.owner.depart("mover", node.now)
    assert departure is not None
    transfers = node.owner.transfers
    for number in (1, 2, 3, 4):
        direct(node, ELSEWHERE, number, b"%d" % number)
    transfers.switched(departure, ELSEWHERE, 3, b"")
    # The first word of an origin counts, and of what is published here the last home.
    transfers.switched(departure, ELSEWHERE, 4, b"")
    transfers.switched(departure, HERE, 8, THERE)
    transfers.switched(departure, HERE, 9, THIRD)
    transfers.switched(departure, HERE, 10, THIRD)
    node.settle()
    if is_donors:
        batch = WriteBatch()
        make_dormant(node.storage, batch)
        node.storage.commit(batch)
    node = start(store_id=HERE, storage=node.storage.survivor())
    departure = node.owner.transfers.departures["mover"]
    assert departure.session.switched == {ELSEWHERE: 3, HERE: 9}
    assert departure.session.switched_home == THIRD
    found = node.owner.transfers.read(departure, 1 << 20)
    node.settle()
    assert [delivery.message.number for delivery in found] == ([1, 2] if is_donors else [1, 2, 3, 4])
    node.owner.validate()


def test_what_a_home_had_directly_and_has_lost_is_given_by_the_stub_of_a_donor(start: Callable[..., Node]) -> None:
    node = start(store_id=HERE)
    client = node.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    departure = node.owner.depart("mover", node.now)
    assert departure is not None
    transfers = node.owner.transfers
    transfers.forget_switched(departure, b"")
    for origin in (ELSEWHERE, THIRD, HERE):
        transfers.switched(departure, origin, 1, HERE if origin == HERE else b"")
    node.settle()
    transfers.forget_switched(departure, THIRD)
    assert departure.session.switched == {ELSEWHERE: 1, HERE: 1}
    node.settle()
    transfers.forget_switched(departure, b"")
    node.settle()
    node = start(store_id=HERE, storage=node.storage.survivor())
    departure = node.owner.transfers.departures["mover"]
    assert departure.session.switched == {}
    node.owner.transfers.come_back(departure, Epoch(2, 0, HERE))
    node.settle()
    node = start(store_id=HERE, storage=node.storage.survivor())
    assert node.persistent("mover") and node.owner.session("mover").switched is None
