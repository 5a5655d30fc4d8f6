"""Any bytes as a frame of another node, which has the cookie and may still be another program.

Documented: unpacking raises FrameError and nothing else. What was unpacked and is packed again is unpacked the same.
"""

import pytest
from fuzzing import Target, examples, near
from hypothesis import given
from librt.strings import BytesWriter
from recorded_frames import ADDRESSED, HANDED_OVER, VERSION_1

from broker.core.epoch import Epoch
from broker.core.message import Message
from broker.core.stored_message import Clock, pack_message, unpack_message
from broker.core.transfer import SessionHead
from cluster import (
    check_frames,
    forwards,
    frames,
    handover,
    leave_frames,
    move_frames,
    registration_frames,
    statuses,
    table_frames,
)
from cluster.addressing import NO_ADDRESS, Addressed, pack_address
from cluster.frames import FrameType
from cluster.wire import FrameError

SENDER = b"sender-of-frames"
NOW = 1000.0


def check(frame: bytes) -> None:
    """Unpack the frame as what it says to be, and as everything that it doesn't."""
    try:
        kind = frames.frame_type(frame)
    except FrameError:
        kind = -1
    for unpack in UNPACKERS.values():
        if unpack is not UNPACKERS.get(kind):
            try:
                unpack(frame)
            except FrameError:
                continue
    if kind in UNPACKERS:
        try:
            packed = UNPACKERS[kind](frame)
        except FrameError:
            return
        again = UNPACKERS[kind](packed)
        assert again == packed, (packed.hex(), again.hex())


def hello(frame: bytes) -> bytes:
    return frames.pack_hello(frames.unpack_hello(frame))


def welcome(frame: bytes) -> bytes:
    return frames.pack_welcome(frames.unpack_welcome(frame))


def refused(frame: bytes) -> bytes:
    found = frames.unpack_refused(frame)
    # A reason that only a newer program knows is read, and never sent.
    known = found.reason in set(frames.Refusal)
    return frames.pack_refused(frames.Refusal(found.reason), found.text) if known else frame


def heartbeat(frame: bytes) -> bytes:
    return frames.pack_heartbeat(frames.unpack_heartbeat(frame))


def members(frame: bytes) -> bytes:
    found = frames.unpack_members(frame)
    return frames.pack_members(found.members, found.removed)


def table_delta(frame: bytes) -> bytes:
    found = table_frames.unpack_table_delta(frame)
    changes = [table_frames.pack_change(change.row, change.was, change.value) for change in found.changes]
    return table_frames.pack_table_delta(found.table, found.generation, found.version, changes)


def table_request(frame: bytes) -> bytes:
    return table_frames.pack_table_request(table_frames.unpack_table_request(frame))


def table_rows(frame: bytes) -> bytes:
    found = table_frames.unpack_table_rows(frame)
    pieces = []
    for piece in found.pieces:
        entries = [table_frames.pack_entry(row, value) for row, value in piece.rows]
        pieces.append(table_frames.pack_piece(piece.bucket, piece.first, piece.last, entries))
    return table_frames.pack_table_rows(found.table, found.round, found.part, pieces)


def table_done(frame: bytes) -> bytes:
    return table_frames.pack_table_done(table_frames.unpack_table_done(frame))


def name(frame: bytes) -> bytes:
    return frames.pack_name(frames.unpack_name(frame))


def stops(frame: bytes) -> bytes:
    return frames.pack_stops(frames.unpack_stops(frame))


def check_asked(frame: bytes) -> bytes:
    return check_frames.pack_check(*check_frames.unpack_check(frame))


def checked(frame: bytes) -> bytes:
    return check_frames.pack_checked(*check_frames.unpack_checked(frame))


def leave_order(frame: bytes) -> bytes:
    return leave_frames.pack_order(*leave_frames.unpack_order(frame))


def leave_answer(frame: bytes) -> bytes:
    return leave_frames.pack_answer(*leave_frames.unpack_answer(frame))


def leave_report(frame: bytes) -> bytes:
    return leave_frames.pack_report(leave_frames.unpack_report(frame))


def leave_heard(frame: bytes) -> bytes:
    return leave_frames.pack_heard(leave_frames.unpack_heard(frame))


def adopt(frame: bytes) -> bytes:
    home, revives, orphans = leave_frames.unpack_adopt(frame)
    packed = leave_frames.pack_adopts(home, revives, orphans)
    # Nobody to be adopted is never said.
    return packed[0] if len(packed) == 1 else frame


def adopt_left(frame: bytes) -> bytes:
    return leave_frames.pack_adopt_left(*leave_frames.unpack_adopt_left(frame))


def hand_over(frame: bytes) -> bytes:
    store_id, after, number, address, message = handover.unpack_hand_over(frame, NOW)
    return handover.pack_hand_over(store_id, after, number, address, unexpired(message), NOW)


def handed(frame: bytes) -> bytes:
    return handover.pack_handed(*handover.unpack_handed(frame))


def donor(frame: bytes) -> bytes:
    return leave_frames.pack_donor(leave_frames.unpack_donor(frame))


def donor_heard(frame: bytes) -> bytes:
    return leave_frames.pack_donor_heard(*leave_frames.unpack_donor_heard(frame))


def look(frame: bytes) -> bytes:
    return statuses.pack_look(statuses.unpack_look(frame))


def status(frame: bytes) -> bytes:
    return statuses.pack_status(*statuses.unpack_status(frame))


def table_position(frame: bytes) -> bytes:
    return table_frames.pack_position(table_frames.unpack_position(frame))


def table_bulk(frame: bytes) -> bytes:
    session, inner = table_frames.unpack_table_bulk(frame)
    return table_frames.pack_table_bulk(session, inner)


def table_copy(frame: bytes) -> bytes:
    return table_frames.pack_table_copy(table_frames.unpack_table_copy(frame))


def positions(frame: bytes) -> bytes:
    found = frames.unpack_position(frame)
    return frames.pack_positions(found.session, found.position)


def link_ack(frame: bytes) -> bytes:
    found = frames.unpack_position(frame)
    return frames.pack_link_ack(found.session, found.position)


def turns(kind: FrameType, items: list[bytes]) -> bytes:
    return b"".join(registration_frames.pack_turns(kind, items))


def turn_request(frame: bytes) -> bytes:
    found = registration_frames.unpack_turn_requests(frame)
    return turns(FrameType.TURN_REQUEST, [registration_frames.pack_turn_request(each) for each in found])


def turn_grant(frame: bytes) -> bytes:
    found = registration_frames.unpack_turn_grants(frame)
    return turns(FrameType.TURN_GRANT, [registration_frames.pack_turn_grant(each) for each in found])


def turn_release(frame: bytes) -> bytes:
    found = registration_frames.unpack_turn_releases(frame)
    return turns(FrameType.TURN_RELEASE, [registration_frames.pack_turn_release(each) for each in found])


def turn_survey(frame: bytes) -> bytes:
    return registration_frames.pack_turn_survey(registration_frames.unpack_turn_survey(frame))


def turns_held(frame: bytes) -> bytes:
    found = registration_frames.unpack_turns_held(frame)
    (packed,) = registration_frames.pack_turns_held(found.round, found.view, found.held)
    # A part of more is told of like a whole, but for where it stands.
    return packed[:18] + found.part.to_bytes(4, "big") + bytes((found.last,)) + packed[23:]


def forwarded(frame: bytes) -> bytes:
    head = forwards.Forwards(frame)
    found = head.messages(SENDER, NOW)
    body = BytesWriter()
    size = 0
    for each in found:
        if isinstance(each, forwards.Mark):
            size += len(each.body)
            forwards.pack_mark(body, each)
            continue
        address = NO_ADDRESS
        if isinstance(each, Addressed):
            address = pack_address(each.groups, each.plain, each.waited, each.stood)
        message = each.message if isinstance(each, Addressed) else each
        size += message.size() + len(address)
        assert 0 <= message.qos <= 2 and message.topic and message.expires_at >= 0.0
        # Where a message goes next: to the store, and on.
        assert len(message.key()) == 24 or not message.qos
        forwards.pack_message(body, unexpired(message), message.publisher.encode(), SENDER, NOW, address)
    assert size <= len(frame)
    # An age of 0: what is left of the time was reckoned when it was unpacked.
    packed = body.getvalue()
    return forwards.pack_forwards(head.session, head.first, head.count, 0, head.start, head.gap, packed, head.after)


def unexpired(message: Message) -> Message:
    """The same with a deadline in whole milliseconds, as frames have it."""
    if message.expires_at:
        message.expires_at = NOW + round(max(message.expires_at - NOW, 0.0) * 1000) / 1000 + 1e-4
    return message


def move_take(frame: bytes) -> bytes:
    takes = move_frames.unpack_takes(frame)
    return move_frames.frame(FrameType.MOVE_TAKE, [move_frames.pack_take(take) for take in takes], True)


def move(frame: bytes) -> bytes:
    parts = []
    for item in move_frames.unpack_move(frame, NOW):
        name = (item.client_id, item.epoch)
        if item.kind == move_frames.HEAD:
            assert item.head is not None
            parts.append(move_frames.pack_head(*name, item.old_epoch, item.head, NOW))
        elif item.kind == move_frames.DELIVERIES:
            parts.append(move_frames.pack_deliveries(*name, item.after, item.deliveries, NOW))
        elif item.kind == move_frames.STATE:
            parts.append(move_frames.pack_state(*name, item.state, item.passed, item.ended))
        elif item.kind == move_frames.MOVED:
            parts.append(move_frames.pack_moved(*name, item.old_epoch))
        else:
            parts.append(move_frames.pack_no(item.kind, *name))
    return move_frames.frame(FrameType.MOVE, parts)


def move_ack(frame: bytes) -> bytes:
    return move_frames.frame(
        FrameType.MOVE_ACK, [move_frames.pack_move_ack(ack) for ack in move_frames.unpack_move_acks(frame)]
    )


def switch(frame: bytes) -> bytes:
    switches = move_frames.unpack_switches(frame)
    return move_frames.frame(FrameType.SWITCH, [move_frames.pack_switch(*each) for each in switches], True)


UNPACKERS = {
    int(FrameType.MOVE_TAKE): move_take,
    int(FrameType.MOVE): move,
    int(FrameType.MOVE_ACK): move_ack,
    int(FrameType.SWITCH): switch,
    int(FrameType.LEAVE_ORDER): leave_order,
    int(FrameType.LEAVE_ANSWER): leave_answer,
    int(FrameType.LEAVE_REPORT): leave_report,
    int(FrameType.LEAVE_HEARD): leave_heard,
    int(FrameType.ADOPT): adopt,
    int(FrameType.ADOPT_LEFT): adopt_left,
    int(FrameType.HAND_OVER): hand_over,
    int(FrameType.HANDED): handed,
    int(FrameType.DONOR): donor,
    int(FrameType.DONOR_HEARD): donor_heard,
    int(FrameType.HELLO): hello,
    int(FrameType.WELCOME): welcome,
    int(FrameType.REFUSED): refused,
    int(FrameType.HEARTBEAT): heartbeat,
    int(FrameType.MEMBERS): members,
    int(FrameType.POSITIONS): positions,
    int(FrameType.NAME): name,
    int(FrameType.STOPS): stops,
    int(FrameType.CHECK): check_asked,
    int(FrameType.CHECKED): checked,
    int(FrameType.LOOK): look,
    int(FrameType.STATUS): status,
    int(FrameType.LINK_ACK): link_ack,
    int(FrameType.FORWARDS): forwarded,
    int(FrameType.TABLE_DELTA): table_delta,
    int(FrameType.TABLE_REQUEST): table_request,
    int(FrameType.TABLE_ROWS): table_rows,
    int(FrameType.TABLE_DONE): table_done,
    int(FrameType.TABLE_POSITION): table_position,
    int(FrameType.TABLE_BULK): table_bulk,
    int(FrameType.TABLE_COPY): table_copy,
    int(FrameType.TURN_REQUEST): turn_request,
    int(FrameType.TURN_GRANT): turn_grant,
    int(FrameType.TURN_RELEASE): turn_release,
    int(FrameType.TURN_SURVEY): turn_survey,
    int(FrameType.TURNS_HELD): turns_held,
}


def marked() -> bytes:
    """Marks around a message, behind numbers that are missing."""
    body = BytesWriter()
    forwards.pack_mark(body, forwards.Mark(b"before", True, SENDER))
    message = Message(b"t", b"payload", b"", 1, False, 0.0, "c", SENDER, 7)
    forwards.pack_message(body, message, b"c", SENDER, NOW)
    forwards.pack_mark(body, forwards.Mark(b"", False, SENDER))
    return forwards.pack_forwards(5, 1 << 40, 3, 0, False, False, body.getvalue(), 12)


def head() -> bytes:
    """A MOVE with all that may stand in a head."""
    head = SessionHead("mover", "user", 3600)
    head.subscriptions = [(b"a/+", 1, 7)]
    head.incoming = {9: 0xFFFFFFFF, 10: 5}
    head.taken, head.cuts = [(SENDER, 3)], [(SENDER, 4)]
    head.direct = [(1, SENDER, 4), (0, b"o" * 16, 1)]
    head.touched = {b"a/+": 2, b"$share/g/b": 1}
    item = move_frames.pack_head("mover", Epoch(2, 7, SENDER), Epoch(1, 6, SENDER), head, NOW)
    return move_frames.frames(FrameType.MOVE, [item])[0]


RECORDED = [bytes.fromhex(recorded) for recorded in (*dict(VERSION_1).values(), ADDRESSED, HANDED_OVER)]
TARGET = Target("mesh_frames", check, [*RECORDED, marked(), head()])


def test_the_recorded_frames() -> None:
    for frame in TARGET.seeds:
        check(frame)
        if frame[1] in UNPACKERS and frame[1] != FrameType.FORWARDS:
            assert UNPACKERS[frame[1]](frame) == frame
    # Two have nothing to unpack.
    assert {frame[1] for frame in TARGET.seeds} - {FrameType.STOPPING, FrameType.WHO} == set(UNPACKERS)


@given(near(TARGET.seeds))
@examples()
def test_near_the_recorded_frames(frame: bytes) -> None:
    check(frame)


# Messages that expired at the beginning of time, and that do not expire before its end.
DEADLINES = (
    "0137000102030405061112131415161700000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000700000000000000000000000000000000000000000000000000000018191a1b1c1d1e1f000000",
    "0137c60005067e121314151617000000000000000000000000000000ffff0000000000000000012300000007000000020004c3bc40610100"
    "00000000000005ffffffffffffffff0000000307000000000003624062c80000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000080000000000000000000000000000000000",
)


@pytest.mark.parametrize("frame", DEADLINES)
def test_any_deadline_of_a_peer_can_be_told_again(frame: str) -> None:
    check(bytes.fromhex(frame))


@pytest.mark.parametrize("frame", DEADLINES)
def test_any_deadline_of_a_peer_can_be_stored(frame: str) -> None:
    _, _, _, _, message = handover.unpack_hand_over(bytes.fromhex(frame), NOW)
    clock = Clock(NOW, 1_800_000_000_000)
    again = unpack_message(message.key(), pack_message(message, clock), 0, clock)
    assert (again.expires_at > NOW) == (message.expires_at > NOW)
