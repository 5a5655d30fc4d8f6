"""The old home's half of a move: what is lost on its way to the new home is sent again, and not too often."""

from collections.abc import Callable, Iterator

import pytest
from core_helpers import Node, started_nodes

from broker.core.epoch import Epoch
from cluster.departures import RETRY_S, Departures
from cluster.move_frames import DELIVERIES, HEAD_TAKEN, SWITCHED, MoveAck, Switch, unpack_move

HERE, THERE = b"a" * 16, b"b" * 16
EPOCH = Epoch(2, 0, THERE)
VERSION = (1, 7)


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    yield from started_nodes()


class OtherSite:
    """Two nodes, both of which run; keeps what is sent to the other."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def store_id(self) -> bytes:
        return HERE

    def others(self) -> list[bytes]:
        return [THERE]

    def is_running(self, store_id: bytes) -> bool:
        return True

    def is_complete(self) -> bool:
        return True

    def version(self) -> tuple[int, int]:
        return VERSION

    def touch(self) -> None:
        pass

    def known_version(self, store_id: bytes) -> tuple[int, int]:
        return VERSION

    def tell(self, store_id: bytes, frame: bytes) -> None:
        pass

    def send(self, store_id: bytes, frame: bytes) -> None:
        self.sent.append(frame)


class Leaver:
    """A node that a session with many messages leaves, turn by turn."""

    def __init__(self, node: Node) -> None:
        client = node.persistent("mover")
        client.subscribe(b"t", 1)
        client.drop()
        publisher = node.connect("publisher")
        for number in range(300):
            publisher.publish(b"t", b"x" * 1000, 1, number + 1)
        self.node, self.site = node, OtherSite()
        self.now = node.now
        self.departures = Departures(node.owner, self.site)
        self.departures.leave("mover", Epoch(1, 0, HERE), EPOCH, True, self.now)

    def turn(self, watermark: int = -1) -> list[int]:
        """Take an acknowledgement up to a place, if there is one; the result are the places that are sent."""
        self.node.begin()
        if self.departures.wants_load():
            self.departures.load(self.now)
        if watermark >= 0:
            ack = MoveAck("mover", EPOCH, HEAD_TAKEN, watermark)
            ack.generation, ack.version = VERSION
            self.departures.acknowledged(THERE, ack, self.now)
        self.departures.tick(self.now)
        self.site.sent.clear()
        self.departures.flush()
        self.node.settle()
        items = [item for frame in self.site.sent for item in unpack_move(frame, self.now)]
        return [one.seq for item in items if item.kind == DELIVERIES for one in item.deliveries]

    def second_part(self) -> list[int]:
        """The new home takes the head and the first part, and everybody switches; the result is what is sent then."""
        first = self.turn()
        self.turn(0)
        self.departures.switched(Switch(SWITCHED, THERE, THERE, *VERSION, 1))
        self.turn()
        self.turn(first[-1])
        return self.turn()

    def pass_time(self, seconds: float) -> list[list[int]]:
        """Do what becomes due, and return the parts that are sent."""
        parts = []
        until = self.now + seconds
        while self.departures.next_deadline() <= until:
            self.now = max(self.now, self.departures.next_deadline())
            parts.append(self.turn())
        self.now = until
        return [part for part in parts if part]


def test_a_part_that_is_lost_is_sent_again(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    lost = leaver.second_part()
    assert lost
    assert leaver.pass_time(4 * RETRY_S)[0] == lost


def test_a_part_that_is_lost_is_sent_again_though_something_else_is_answered(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    lost = leaver.second_part()
    leaver.turn(lost[0] - 1)
    assert leaver.pass_time(4 * RETRY_S)[0] == lost


def test_a_slow_link_is_not_filled_with_copies(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    part = leaver.second_part()
    copies = leaver.pass_time(60.0)
    # At growing distances: half a second, one, two and so on.
    assert copies == [part] * 6
    assert leaver.turn(part[-1]) == []
    assert leaver.turn()[0] == part[-1] + 1


def test_a_home_that_is_back_is_sent_everything_at_once(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    lost = leaver.second_part()
    leaver.pass_time(60.0)
    leaver.departures.home_is_back(THERE)
    assert leaver.pass_time(0.0)[0] == lost
