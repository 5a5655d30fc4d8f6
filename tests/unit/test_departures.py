"""The old home's half of a move: what is lost on its way to the new home is sent again, and not too often."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import recorded_frames
from core_helpers import Node, started_nodes

from broker.core.arrival import Arrival
from broker.core.epoch import NO_EPOCH, Epoch
from broker.core.session import Session
from broker.core.transfer import SessionHead
from broker.mqtt.packets import Disconnect
from broker.mqtt.reasons import Reason
from cluster.departures import PATIENCE_S, WAIT_POLL_S, Departures
from cluster.frames import FrameType
from cluster.leaving_session import RETRY_S
from cluster.move_frames import (
    DELIVERIES,
    HEAD,
    HEAD_TAKEN,
    MOVED,
    NOTHING,
    OVER,
    REFUSED,
    STATE,
    SWITCHED,
    Item,
    MoveAck,
    Switch,
    Take,
    frame,
    pack_head,
    pack_take,
    unpack_move,
    unpack_switches,
    unpack_takes,
)

HERE, THERE, ELSEWHERE = b"a" * 16, b"b" * 16, b"c" * 16
EPOCH = Epoch(2, 0, THERE)
VERSION = (1, 7)


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    yield from started_nodes()


class OtherSite:
    """This node and others, which run but for those in `down`; keeps what is sent to the others."""

    def __init__(self, *others: bytes) -> None:
        self.members = list(others) or [THERE]
        self.down: list[bytes] = []
        self.sent: list[bytes] = []
        self.told: list[tuple[bytes, bytes]] = []
        self.homes: dict[str, Epoch] = {}
        self.current = True
        self.wills: list[tuple[bytes, str]] = []
        # Up to where each has told of its sessions, and all the others know that.
        self.positions: dict[bytes, tuple[int, int]] = {}
        self.known: dict[bytes, tuple[int, int]] = {}
        # Members that tell of no session of a client.
        self.without: list[tuple[bytes, str]] = []

    def store_id(self) -> bytes:
        return HERE

    def others(self) -> list[bytes]:
        return self.members

    def is_running(self, store_id: bytes) -> bool:
        return store_id not in self.down

    def is_complete(self, besides: bytes = b"") -> bool:
        return True

    def heard(self) -> dict[bytes, tuple[int, int]]:
        return dict(self.positions)

    def known_to_others(self) -> dict[bytes, tuple[int, int]]:
        return dict(self.known)

    def version(self) -> tuple[int, int]:
        return VERSION

    def touch(self) -> None:
        pass

    def known_version(self, store_id: bytes) -> tuple[int, int]:
        return VERSION

    def is_current(self, store_id: bytes) -> bool:
        return self.current

    def has_session(self, store_id: bytes, client_id: str) -> bool:
        return (store_id, client_id) not in self.without

    def has_will(self, store_id: bytes, client_id: str) -> bool:
        return (store_id, client_id) in self.wills

    def home(self, client_id: str) -> Epoch:
        return self.homes.get(client_id, NO_EPOCH)

    def tell(self, store_id: bytes, frame: bytes) -> None:
        self.told.append((store_id, frame))

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
        self.turn()
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


def test_nothing_goes_in_front_of_the_head(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    assert leaver.turn() == []
    assert leaver.turn()


def test_what_a_home_says_that_has_not_heard_the_head_does_not_end_a_session(start: Callable[..., Node]) -> None:
    """It knows of no old home that has not said its last word: the first was lost, and what came behind it was not."""
    leaver = Leaver(start(store_id=HERE))
    leaver.turn()
    lost = leaver.turn()
    leaver.departures.acknowledged(THERE, MoveAck("mover", EPOCH, OVER, 0), leaver.now)
    assert leaver.departures.has_stub("mover")
    leaver.pass_time(RETRY_S)
    leaver.turn(0)
    assert leaver.pass_time(2 * RETRY_S)[0] == lost


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


def test_what_is_confirmed_while_it_is_read_again_does_not_hold_up_the_rest(start: Callable[..., Node]) -> None:
    leaver = Leaver(start(store_id=HERE))
    part = leaver.second_part()
    leaver.now = leaver.departures.next_deadline()
    # The patience is over; what was late was the answer, which comes before anything is read.
    leaver.node.begin()
    leaver.departures.tick(leaver.now)
    ack = MoveAck("mover", EPOCH, HEAD_TAKEN, part[-1])
    ack.generation, ack.version = VERSION
    leaver.departures.acknowledged(THERE, ack, leaver.now)
    leaver.departures.tick(leaver.now)
    leaver.node.settle()
    assert leaver.pass_time(0.0)[0][0] == part[-1] + 1


class Home:
    """A node that sessions leave which have nothing queued, with two others."""

    def __init__(self, node: Node) -> None:
        self.node, self.site, self.now = node, OtherSite(THERE, ELSEWHERE), node.now
        self.departures = Departures(node.owner, self.site)

    def turn(self) -> list[Item]:
        """Do what is due; the result are the items that are sent."""
        self.node.begin()
        if self.departures.wants_load():
            self.departures.load(self.now)
        self.departures.tick(self.now)
        self.site.sent.clear()
        self.departures.flush()
        self.node.settle()
        return [item for frame in self.site.sent for item in unpack_move(frame, self.now)]

    def pass_time(self, seconds: float) -> list[Item]:
        """Do what becomes due."""
        items = self.turn()
        until = self.now + seconds
        while self.departures.next_deadline() <= until:
            self.now = max(self.now, self.departures.next_deadline())
            items += self.turn()
        self.now = until
        return items

    def leave(self, client_id: str, needs: tuple[int, int]) -> None:
        """A session leaves for THERE, which has taken the head."""
        client = self.node.persistent(client_id)
        client.subscribe(b"t", 1)
        client.drop()
        self.departures.leave(client_id, Epoch(1, 0, HERE), EPOCH, True, self.now)
        assert [item.kind for item in self.turn()] == [HEAD]
        self.acknowledge(client_id, HEAD_TAKEN, needs)

    def acknowledge(
        self,
        client_id: str,
        flags: int,
        needs: tuple[int, int] = VERSION,
        state: int = 0,
        missing: Sequence[bytes] = (),
    ) -> None:
        """THERE says how far it is, which STATE it has taken, and of whom not all has come."""
        ack = MoveAck(client_id, EPOCH, flags, 0)
        ack.generation, ack.version = needs
        ack.state = state
        ack.missing = list(missing)
        self.departures.acknowledged(THERE, ack, self.now)

    def asked(self) -> list[tuple[bytes, list[tuple[bytes, int, int]]]]:
        """Take who was asked to switch, and for what."""
        told, self.site.told = self.site.told, []
        return [(member, unpack_switches(frame)) for member, frame in told]

    def switched(self, member: bytes, version: tuple[int, int], number: int) -> None:
        """A member's stream has come to its mark."""
        self.departures.switched(Switch(SWITCHED, member, THERE, *version, number))


def test_members_are_asked_once_for_all_sessions_of_a_home(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.leave("one", (1, 3))
    home.leave("two", (1, 4))
    home.turn()
    home.turn()
    assert home.asked()[-2:] == [(THERE, [(THERE, 1, 4)]), (ELSEWHERE, [(THERE, 1, 4)])]
    home.switched(THERE, (1, 3), 10)
    home.switched(ELSEWHERE, (1, 3), 20)
    (state,) = home.turn()
    assert (state.client_id, state.kind, state.ended) == ("one", STATE, True)
    assert dict(state.passed) == {HERE: dict(state.passed)[HERE], THERE: 10, ELSEWHERE: 20}
    home.switched(THERE, (1, 5), 11)
    assert home.turn() == []
    home.switched(ELSEWHERE, (1, 4), 21)
    assert [(item.client_id, item.ended) for item in home.turn()] == [("two", True)]
    home.departures.validate()


def test_a_member_that_is_down_holds_up_the_end_and_nothing_else(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.site.down = [ELSEWHERE]
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    (state,) = home.turn()
    assert sorted(origin for origin, _ in state.passed) == [HERE, THERE] and not state.ended
    home.acknowledge("one", HEAD_TAKEN)
    home.asked()
    home.pass_time(60.0)
    assert ELSEWHERE not in dict(home.asked())
    home.site.down = []
    home.departures.members_changed()
    home.turn()
    assert dict(home.asked())[ELSEWHERE] == [(THERE, *VERSION)]
    home.switched(ELSEWHERE, VERSION, 20)
    assert [item.ended for item in home.turn()] == [True]
    home.acknowledge("one", OVER)
    assert not home.departures.leavings
    home.departures.validate()


def test_the_last_state_is_told_again_until_it_is_answered_itself(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.site.down = [ELSEWHERE]
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    (state,) = home.turn()
    home.acknowledge("one", HEAD_TAKEN, state=state.state)
    assert home.pass_time(4 * RETRY_S) == []
    home.site.down = []
    home.departures.members_changed()
    home.switched(ELSEWHERE, VERSION, 20)
    (lost,) = home.turn()
    assert lost.ended and lost.state != state.state
    # The answer to the first comes twice.
    home.acknowledge("one", HEAD_TAKEN, state=state.state)
    assert [(item.ended, item.passed) for item in home.pass_time(2 * RETRY_S)][:1] == [(True, lost.passed)]
    home.departures.validate()


def test_the_answer_of_an_older_program_names_no_state(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    home.switched(ELSEWHERE, VERSION, 20)
    home.turn()
    home.acknowledge("one", HEAD_TAKEN)
    assert [item.kind for item in home.pass_time(2 * RETRY_S)][:1] == [STATE]
    home.acknowledge("one", OVER)
    assert not home.departures.leavings


def test_a_home_by_an_earlier_epoch_than_it_asked_for_last_is_told_under_that(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    client = home.node.persistent("mover")
    client.subscribe(b"t", 1)
    client.drop()
    present, last = Epoch(2, 400, THERE), Epoch(2, 500, THERE)
    home.departures.take(THERE, Take("mover", last, False, None), home.now)
    assert [(item.kind, item.epoch) for item in home.turn()] == [(HEAD, last)]
    home.departures.take(ELSEWHERE, Take("mover", Epoch(2, 300, ELSEWHERE), False, None), home.now)
    assert home.turn() == []
    home.departures.take(THERE, Take("mover", present, False, None), home.now)
    assert [(item.kind, item.epoch) for item in home.turn()] == [(HEAD, present)]
    home.departures.validate()


@pytest.mark.parametrize(
    ("is_adoption", "reason"), [(False, Reason.SESSION_TAKEN_OVER), (True, Reason.SERVER_SHUTTING_DOWN)]
)
def test_a_client_hears_whether_another_has_its_connection(
    start: Callable[..., Node], is_adoption: bool, reason: Reason
) -> None:
    home = Home(start(store_id=HERE))
    client = home.node.persistent("mover")
    client.take_bytes()
    (take,) = unpack_takes(
        frame(FrameType.MOVE_TAKE, [pack_take(Take("mover", EPOCH, False, None, is_adoption))], True)
    )
    home.departures.take(THERE, take, home.now)
    home.node.settle()
    assert client.take() == [Disconnect(reason)]


def test_the_take_of_an_older_program_is_no_adoption() -> None:
    recorded = bytes.fromhex(dict(recorded_frames.VERSION_1)["MOVE_TAKE"])
    assert [take.is_adoption for take in unpack_takes(recorded)] == [False, False]


def test_an_older_take_that_waited_does_not_undo_what_the_registry_knows(start: Callable[..., Node]) -> None:
    """Of two connections at one node the first one's TAKE has to wait here, till the second's session is known."""
    leaver = Leaver(start())
    later = Epoch(EPOCH.counter, 1, THERE)
    leaver.site.homes["mover"] = later
    leaver.departures.retarget("mover", later)
    leaver.turn()
    leaver.departures.take(THERE, Take("mover", EPOCH, False, None), leaver.now)
    leaver.departures.tick(leaver.now)
    leaver.site.sent.clear()
    leaver.departures.flush()
    assert [item.epoch for frame in leaver.site.sent for item in unpack_move(frame, leaver.now)] == [later]


def test_a_member_that_comes_late_has_to_switch_and_one_that_left_has_not(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    late = b"d" * 16
    home.site.members = [THERE, late]
    home.departures.members_changed()
    home.asked()
    assert home.turn() == []
    assert (late, [(THERE, *VERSION)]) in home.asked()
    home.departures.validate()
    home.switched(late, VERSION, 30)
    (state,) = home.turn()
    assert sorted(origin for origin, _ in state.passed) == [HERE, THERE, late] and state.ended


@pytest.mark.parametrize("switches", [False, True])
def test_a_member_that_comes_after_the_last_word_has_to_switch(start: Callable[..., Node], switches: bool) -> None:
    """Its home may not have heard of that one when it took the last word, though it has switched before the answer."""
    home = Home(start(store_id=HERE))
    home.site.members = [THERE]
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    assert [item.ended for item in home.turn()] == [True]
    late = b"d" * 16
    home.site.members = [THERE, late]
    home.departures.members_changed()
    if switches:
        home.switched(late, VERSION, 20)
        home.turn()
    home.acknowledge("one", OVER)
    assert [item.kind for item in home.turn()] == [HEAD]
    home.acknowledge("one", HEAD_TAKEN)
    home.switched(THERE, VERSION, 11)
    assert not any(item.ended for item in home.turn())
    home.switched(late, VERSION, 30)
    (state,) = home.turn()
    assert dict(state.passed)[late] == 30 and state.ended
    home.acknowledge("one", OVER)
    assert not home.departures.leavings


def test_a_head_of_an_older_program_does_not_say_at_which_homes_filters_were_made_or_ended() -> None:
    told = SessionHead("one", None, 3600)
    told.subscriptions = [(b"a", 1, 0)]
    told.touched = {b"a": 3, b"t": 2}
    item = pack_head("one", EPOCH, Epoch(1, 0, HERE), told, 0.0)
    told_at = b"\0\1a\0\0\0\3\0\1t\0\0\0\2"
    assert item.count(told_at) == 1
    (read,) = unpack_move(frame(FrameType.MOVE, [item]), 0.0)
    assert read.head is not None and read.head.touched == {b"a": 3, b"t": 2}
    head = item[item.index(b"\x20") :]
    older = b"\4" + head[1:].replace(told_at, b"\0\1a\0\1t")
    item = item.replace(len(head).to_bytes(4, "big") + head, len(older).to_bytes(4, "big") + older)
    (read,) = unpack_move(frame(FrameType.MOVE, [item]), 0.0)
    assert read.head is not None and read.head.touched == {b"a": 0, b"t": 0}


def test_a_home_that_misses_a_member_which_was_removed_is_told_again(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.site.members = [THERE]
    home.leave("one", VERSION)
    home.turn()
    home.switched(THERE, VERSION, 10)
    (state,) = home.turn()
    assert state.ended
    # The home has not heard of the removal yet.
    home.acknowledge("one", HEAD_TAKEN, state=state.state, missing=[ELSEWHERE])
    assert [item.ended for item in home.pass_time(2 * RETRY_S)][:1] == [True]
    home.acknowledge("one", OVER)
    assert not home.departures.leavings


def arriving(home: Home) -> None:
    """A session of `mover` has come from THERE, and not wholly yet."""
    head = SessionHead("mover", None, 3600)
    home.node.owner.transfers.begin_arrival(head, Epoch(2, 0, HERE), THERE, 0, (HERE, 1), home.now)


def test_a_take_that_has_to_wait_is_answered_when_the_session_can_go(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    arriving(home)
    take = Take("mover", Epoch(3, 0, ELSEWHERE), False, None)
    home.departures.take(ELSEWHERE, take, home.now)
    assert home.pass_time(2 * WAIT_POLL_S) == []
    session = home.node.owner.session("mover")
    assert session is not None
    home.node.owner.transfers.end_donor(session, THERE, home.now)
    items = home.pass_time(2 * WAIT_POLL_S)
    assert [(item.kind, item.client_id, item.epoch) for item in items] == [(HEAD, "mover", take.epoch)]


def test_a_session_whose_rest_does_not_come_goes_without_it(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    arriving(home)
    items: list[Item] = []
    waited_s = 0.0
    while not items:
        home.departures.take(ELSEWHERE, Take("mover", Epoch(3, 0, ELSEWHERE), False, None), home.now)
        items = home.pass_time(RETRY_S)
        waited_s += RETRY_S
    assert items[0].kind == HEAD
    assert PATIENCE_S <= waited_s <= PATIENCE_S + 2 * RETRY_S


def begun_again(home: Home, user_name: str | None = None) -> Session:
    """The session of `mover`, which left for THERE, has begun here once more; its stub is here still."""
    home.leave("mover", VERSION)
    head = SessionHead("mover", user_name, 3600)
    transfers = home.node.owner.transfers
    session = transfers.begin_arrival(head, Epoch(3, 0, HERE), THERE, 2, (HERE, 1), home.now)
    transfers.add_donor(session, HERE, 1, home.now)
    home.departures.follow(session, home.now)
    assert home.departures.take_untaken(home.now) == []
    return session


def test_a_stub_makes_way_when_its_session_goes_and_not_before(start: Callable[..., Node]) -> None:
    """What members still have for it, the session does not get directly."""
    home = Home(start(store_id=HERE))
    session = begun_again(home)
    stub = home.departures.leavings["mover"]
    take = Take("mover", Epoch(4, 0, ELSEWHERE), False, None)
    home.departures.take(ELSEWHERE, take, home.now)
    home.pass_time(2 * WAIT_POLL_S)
    assert home.departures.leavings["mover"] is stub
    # It does not wait for the stub, which has nothing.
    home.node.owner.transfers.end_donor(session, THERE, home.now)
    items = home.pass_time(2 * WAIT_POLL_S)
    assert [(item.kind, item.epoch) for item in items] == [(HEAD, take.epoch)]
    assert home.departures.leavings["mover"].departure.session is session
    home.departures.validate()


def test_a_stub_does_not_make_way_to_another_user(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    begun_again(home, "ann")
    stub = home.departures.leavings["mover"]
    home.departures.take(ELSEWHERE, Take("mover", Epoch(4, 0, ELSEWHERE), False, "bob"), home.now)
    assert REFUSED in [item.kind for item in home.turn()]
    assert home.departures.leavings["mover"] is stub


def test_a_clean_start_ends_a_session_and_its_stub(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    session = begun_again(home)
    home.node.owner.transfers.end_donor(session, THERE, home.now)
    home.departures.take(ELSEWHERE, Take("mover", Epoch(4, 0, ELSEWHERE), True, None), home.now)
    assert NOTHING in [item.kind for item in home.turn()]
    assert home.node.owner.session("mover") is None
    assert not home.departures.leavings
    home.departures.validate()


def test_a_take_is_forgotten_when_who_asked_has_given_up(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    arriving(home)
    home.departures.take(ELSEWHERE, Take("mover", Epoch(3, 0, ELSEWHERE), False, None), home.now)
    assert home.pass_time(PATIENCE_S + 1.0) == []
    assert home.departures.next_deadline() == math.inf
    assert home.node.owner.session("mover") is not None


def test_a_take_is_forgotten_when_who_asked_is_no_member_any_more(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    arriving(home)
    home.departures.take(ELSEWHERE, Take("mover", Epoch(3, 0, ELSEWHERE), False, None), home.now)
    home.pass_time(2 * WAIT_POLL_S)
    home.site.members.remove(ELSEWHERE)
    home.departures.members_changed()
    session = home.node.owner.session("mover")
    assert session is not None
    home.node.owner.transfers.end_donor(session, THERE, home.now)
    assert home.pass_time(PATIENCE_S + 1.0) == []
    assert not home.departures.leavings
    assert home.node.owner.session("mover") is session
    take = Take("mover", Epoch(3, 0, THERE), False, None)
    home.departures.take(THERE, take, home.now)
    assert [(item.kind, item.epoch) for item in home.turn()] == [(HEAD, take.epoch)]


def test_a_take_that_waits_until_all_is_elsewhere_is_told_where(start: Callable[..., Node]) -> None:
    home = Home(start(store_id=HERE))
    home.leave("mover", VERSION)
    home.turn()
    for member in (THERE, ELSEWHERE):
        home.switched(member, VERSION, 10)
    home.turn()
    # The session had come from elsewhere itself, and not wholly yet.
    session = home.departures.leavings["mover"].departure.session
    session.arrival = Arrival(0)
    session.arrival.donor(THERE)
    take = Take("mover", Epoch(3, 0, ELSEWHERE), False, None)
    home.departures.take(ELSEWHERE, take, home.now)
    assert home.turn() == []
    home.acknowledge("mover", OVER)
    assert [(item.kind, item.epoch, item.old_epoch) for item in home.pass_time(WAIT_POLL_S)] == [
        (MOVED, take.epoch, EPOCH)
    ]


def test_who_asks_too_early_an_epoch_is_told_that_of_a_home_that_is_away(start: Callable[..., Node]) -> None:
    """Nobody else may know of it; under a later one the session can be had."""
    home = Home(start(store_id=HERE))
    home.leave("mover", VERSION)
    home.turn()
    early = Take("mover", Epoch(1, 500, ELSEWHERE), False, None)
    home.departures.take(ELSEWHERE, early, home.now)
    assert home.turn() == [], "it is heard of as soon as its tables are"
    home.site.down = [THERE]
    home.departures.take(ELSEWHERE, early, home.now)
    assert [(item.kind, item.epoch, item.old_epoch) for item in home.turn()] == [(MOVED, early.epoch, EPOCH)]
    late = Take("mover", Epoch(3, 500, ELSEWHERE), False, None)
    home.departures.take(ELSEWHERE, late, home.now)
    assert [(item.kind, item.epoch) for item in home.turn()] == [(HEAD, late.epoch)]


def test_a_node_without_the_session_says_where_it_went(start: Callable[..., Node]) -> None:
    """Who asks has not heard of the new home, and would begin the session anew."""
    home = Home(start(store_id=HERE))
    asked = Epoch(2, 500, THERE)
    home.departures.take(THERE, Take("mover", asked, False, None), home.now)
    assert [item.kind for item in home.turn()] == [NOTHING]
    home.site.homes["mover"] = Epoch(2, 400, ELSEWHERE)
    home.departures.take(THERE, Take("mover", asked, False, None), home.now)
    assert [(item.kind, item.old_epoch) for item in home.turn()] == [(MOVED, Epoch(2, 400, ELSEWHERE))]
