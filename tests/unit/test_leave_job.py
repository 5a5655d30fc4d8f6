"""cluster.leaving: the job of a node that leaves, and cluster.leave_frames, in which others hear of it."""

import pytest
import recorded_frames

from cluster.addressing import pack_address
from cluster.handover import pack_hand_over, pack_handed, unpack_hand_over, unpack_handed
from cluster.leave_frames import (
    Order,
    Orphan,
    Report,
    Verb,
    pack_adopt_left,
    pack_adopts,
    pack_answer,
    pack_donor,
    pack_donor_heard,
    pack_heard,
    pack_order,
    pack_report,
    unpack_adopt,
    unpack_adopt_left,
    unpack_answer,
    unpack_donor,
    unpack_donor_heard,
    unpack_heard,
    unpack_order,
    unpack_report,
)
from cluster.leaving import MISSING_S, STEP_1_DONE, Census, LeaveJob, State
from cluster.revival import Revival
from cluster.wire import FrameError

ORDER = Order(Verb.MOVE, 5, 60, 7, True, ("b@b", "c@c"))
REPORT = Report(2**63 - 1, 4, 9, "line", "failure", 252, 11328, 98000)
ORPHANS = [Orphan("ü", None), Orphan("c", "user")]
HOME = bytes(range(16))

FRAMES = [
    ("LEAVE_ORDER", pack_order(7, ORDER), unpack_order, (7, ORDER)),
    ("LEAVE_ANSWER", pack_answer(7, True, "Done für alle"), unpack_answer, (7, True, "Done für alle")),
    ("LEAVE_REPORT", pack_report(REPORT), unpack_report, REPORT),
    ("LEAVE_HEARD", pack_heard("10.0.0.1:1883"), unpack_heard, "10.0.0.1:1883"),
    ("HANDED", pack_handed(HOME, 5), unpack_handed, (HOME, 5)),
    ("DONOR", pack_donor(HOME), unpack_donor, HOME),
    ("DONOR_HEARD", pack_donor_heard(HOME, 5), unpack_donor_heard, (HOME, 5)),
    ("ADOPT", pack_adopts(HOME, Revival.ALWAYS, ORPHANS)[0], unpack_adopt, (HOME, Revival.ALWAYS, ORPHANS)),
    ("ADOPT_LEFT", pack_adopt_left(HOME, 7), unpack_adopt_left, (HOME, 7)),
]


@pytest.mark.parametrize(("name", "frame", "unpack", "value"), FRAMES, ids=[each[0] for each in FRAMES])
def test_frames_come_out_as_they_went_in(name, frame, unpack, value):
    assert unpack(frame) == value
    assert frame == bytes.fromhex(dict(recorded_frames.VERSION_1)[name])
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            unpack(frame[:end])


def test_a_message_that_is_handed_over_comes_out_as_it_went_in():
    frame = bytes.fromhex(dict(recorded_frames.VERSION_1)["HAND_OVER"])
    store_id, after, number, address, message = unpack_hand_over(frame, 100.0)
    assert (store_id, after, number) == (HOME, 8, 9)
    assert address == pack_address([b"$share/g/t"], True)
    assert (message.topic, message.payload, message.qos, message.number) == (b"a/b", b"payload", 2, 7)
    assert message.expires_at == 130.0
    assert pack_hand_over(store_id, after, number, address, message, 100.0) == frame
    with pytest.raises(FrameError):
        unpack_hand_over(pack_hand_over(store_id, after, number, address + b"x", message, 100.0), 100.0)
    for end in range(50):
        with pytest.raises(FrameError):
            unpack_hand_over(frame[:end], 100.0)


def test_who_adopts_only_while_all_others_are_heard_is_told_so_in_a_flag_of_its_own():
    """An older program, which knows the other flag alone, takes it for an adoption like any."""
    frame = pack_adopts(HOME, Revival.IF_WHOLE, ORPHANS)[0]
    assert unpack_adopt(frame) == (HOME, Revival.IF_WHOLE, ORPHANS)
    recorded = bytes.fromhex(dict(recorded_frames.VERSION_1)["ADOPT"])
    assert [(at, old, new) for at, (old, new) in enumerate(zip(recorded, frame, strict=True)) if old != new] == [
        (2 + len(HOME), 1, 3)
    ]


def test_many_orphans_take_several_frames():
    orphans = [Orphan(f"{number:060000d}", None) for number in range(9)]
    frames = pack_adopts(HOME, Revival.NEVER, orphans)
    assert len(frames) == 3
    assert [orphan for frame in frames for orphan in unpack_adopt(frame)[2]] == orphans


def test_a_text_that_is_too_long_for_a_frame_is_cut():
    assert len(unpack_answer(pack_answer(1, False, "x" * 100_000))[2]) < 20_000


def census(offline=0, online=0, moving=0, messages=0, unfinished=0, missing=(), targets=("b@b",)):
    return Census(online, offline, moving, messages, unfinished, tuple(missing), tuple(targets))


def move(**settings):
    return Order(Verb.MOVE, **{"interval_s": 1, "timeout_s": 10, **settings})


def again(job, now):
    """The job after a restart of its node."""
    other = LeaveJob("a@a")
    other.restore(job.pack(), now)
    return other


def test_every_state_survives_a_restart():
    job = LeaveJob("a@a")
    job.take_order(Order(Verb.STOP_LISTENERS), 5, 0.0)
    assert again(job, 0.0).state == State.DRAINING_LISTENERS
    assert job.take_order(Order(Verb.STOP_LISTENERS), 6, 0.0) == STEP_1_DONE
    assert job.stamp == 5
    job.take_order(move(), 7, 0.0)
    job = again(job, 100.0)
    assert (job.state, job.stamp, job.order) == (State.WAITING, 5, move())
    job.tick(census(3), 109.0)
    assert job.state == State.WAITING, "the time begins anew"
    job.tick(census(3, messages=8), 110.0)
    job = again(job, 200.0)
    assert job.state == State.FAILED_WITH_QUEUES
    assert "3 queues with 8 messages remain on a@a" in job.failure
    job.take_order(move(), 8, 200.0)
    job = again(job, 300.0)
    job.tick(census(3), 310.0)
    assert job.state == State.MIGRATING, "it is the second time"
    job = again(job, 400.0)
    job.tick(census(), 400.0)
    assert job.state == State.LEAVING
    job = again(job, 500.0)
    job.left(500.0)
    assert again(job, 600.0).state == State.LEFT


def test_how_far_a_leave_was_is_not_said_of_the_next_one():
    job = LeaveJob("a@a")
    for end in ("abort", "retry"):
        job.take_order(move(interval_s=5), 1, 0.0)
        job.tick(census(3), 0.0)
        job.tick(census(3), 5.0)
        job.tick(census(3), 10.0)
        assert (job.state, bool(job.report().line)) == (State.FAILED_WITH_QUEUES, True)
        if end == "abort":
            job.abort(11.0)
            assert (job.state, job.report().line) == (State.IDLE, "")
        else:
            job.take_order(move(interval_s=5), 1, 11.0)
            assert (job.state, job.report().line) == (State.WAITING, "")


def test_what_is_there_and_what_has_gone_is_said_at_every_interval():
    job = LeaveJob("a@a")
    job.take_order(move(force=True), 1, 0.0)
    job.tick(census(11328, messages=98000), 0.0)
    assert job.line_number == 0
    job.tick(census(11070, moving=6, messages=96800), 1.0)
    assert job.line_number == 1
    assert job.line.startswith("Migrated 252/11328 queues and 1200/98000 messages; queues: 0 online, 11070 offline, ")
    assert "6 migrating, 252 migrated; 96800 messages; 252.0 queues/s; 44 s left" in job.line
    job.tick(census(11070, moving=6, messages=96800), 1.5)
    assert job.line_number == 1
    assert (job.report().moved, job.report().queues) == (252, 11328)
    job.tick(census(), 20.0)
    assert job.state == State.LEAVING
    assert (job.report().moved, job.report().queues) == (11328, 11328)


def test_time_runs_from_the_end_of_the_last_connection():
    job = LeaveJob("a@a")
    job.take_order(move(rate=2), 1, 0.0)
    job.tick(census(offline=1, online=9), 9.0)
    job.tick(census(offline=10), 18.9)
    assert job.state == State.WAITING
    job.tick(census(offline=10), 19.0)
    assert job.state == State.FAILED_WITH_QUEUES


def test_clients_that_have_claimed_their_queues_are_waited_for_to_the_end():
    job = LeaveJob("a@a")
    job.take_order(move(), 1, 0.0)
    for there in (census(moving=4), census(unfinished=1)):
        job.tick(there, 100.0)
        assert job.state == State.WAITING
    job.tick(census(), 101.0)
    assert job.state == State.LEAVING


def test_as_many_connections_are_closed_as_the_rate_allows():
    job = LeaveJob("a@a")
    assert job.may_close(100, 0.0) == 0
    job.take_order(move(rate=10), 1, 0.0)
    closed = [job.may_close(100, 1.0 + tick / 10) for tick in range(20)]
    assert sum(closed) in (28, 29, 30) and max(closed[1:]) <= 2
    job.take_order(move(), 1, 0.0)
    assert job.may_close(100, 10.0) == 100


@pytest.mark.parametrize("hindrance", [{"missing": ("c@c",)}, {"targets": ()}], ids=["a member", "every target"])
def test_somebody_who_is_down_is_waited_for_only_for_a_while(hindrance):
    job = LeaveJob("a@a")
    job.take_order(move(force=True), 1, 0.0)
    job.tick(census(5, **hindrance), 1.0)
    job.tick(census(5), 4.0)
    job.tick(census(5, **hindrance), 5.0)
    job.tick(census(5, **hindrance), 4.9 + MISSING_S)
    assert job.state == State.MIGRATING
    job.tick(census(5, messages=3, **hindrance), 5.0 + MISSING_S)
    assert job.state == State.FAILED_WITH_QUEUES
    assert "does not run" in job.failure or "none of the targets runs" in job.failure
    assert "5 queues with 3 messages remain" in job.failure


def test_with_targets_a_member_may_be_down():
    job = LeaveJob("a@a")
    job.take_order(move(force=True, targets=("b@b",)), 1, 0.0)
    job.tick(census(5, missing=("c@c",)), 1.0)
    job.tick(census(5, missing=("c@c",)), 100.0)
    assert job.state == State.MIGRATING


@pytest.mark.parametrize("state", list(State))
def test_an_abort_ends_everything_but_the_end(state):
    job = LeaveJob("a@a")
    job.state = state
    job.failure = "x" if state == State.FAILED_WITH_QUEUES else ""
    refusal = job.abort(0.0)
    job.validate()
    if state in (State.LEAVING, State.LEFT, State.REMOVED, State.DONATING):
        assert "can't be undone" in refusal and job.state == state
    else:
        assert refusal == "" and job.state == State.IDLE and job.accepts()


def test_what_is_stored_and_can_not_be_read_is_refused():
    value = LeaveJob("a@a").pack()
    for broken in (b"\x09" + value[1:], value[:1] + b"\x77" + value[2:], value[:-1]):
        with pytest.raises(FrameError):
            LeaveJob("a@a").restore(broken, 0.0)
