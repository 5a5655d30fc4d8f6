"""cluster.join_watch: which sights of a connection say for certain why an attempt to join failed."""

import pytest

from cluster.join_watch import HANDSHAKE_FAILURES_MAX, HANDSHAKE_REFUSED, JoinWatch, Seen

CONNECTING, CONNECTED, DONE = Seen.CONNECTING, Seen.CONNECTED, Seen.HANDSHAKE_DONE
FAILED, KEY_REFUSED, DISCONNECTED, RETRIED = (
    Seen.HANDSHAKE_FAILED,
    Seen.KEY_REFUSED,
    Seen.DISCONNECTED,
    Seen.RETRIED,
)

# A port that closes the connection at once, and one that says what is no handshake.
CLOSED_AT_ONCE = [CONNECTING, CONNECTED, DISCONNECTED, RETRIED]
NO_HANDSHAKE = [CONNECTING, CONNECTED, FAILED, DISCONNECTED, RETRIED]


def verdicts(sights: list[Seen], now: float = 0.0) -> list[str | None]:
    """What was said after each sight of an attempt that began at 0 and has 2 s for TCP."""
    watch = JoinWatch(2.0, 0.0)
    failures = [watch.see(seen, now) for seen in sights]
    return [None if failure is None else failure.kind for failure in failures]


@pytest.mark.parametrize(
    ("sights", "kind"),
    [
        ([RETRIED], "unknown"),
        ([CONNECTING, RETRIED], "refused"),
        ([CONNECTING, CONNECTED, KEY_REFUSED], "handshake"),
        ([CONNECTING, CONNECTED, DONE, DISCONNECTED], "disconnected"),
        (NO_HANDSHAKE * (HANDSHAKE_FAILURES_MAX - 1) + NO_HANDSHAKE[:3], "handshake"),
        (CLOSED_AT_ONCE * (HANDSHAKE_FAILURES_MAX - 1) + CLOSED_AT_ONCE[:3], "handshake"),
        # The other node went away between two handshakes.
        ([*CLOSED_AT_ONCE, CONNECTING, RETRIED], "refused"),
    ],
)
def test_the_last_sight_makes_it_certain(sights: list[Seen], kind: str) -> None:
    assert verdicts(sights) == [None] * (len(sights) - 1) + [kind]


@pytest.mark.parametrize(("now", "kind"), [(1.7, "refused"), (1.8, "timeout"), (3.0, "timeout")])
def test_a_tcp_connection_that_took_its_time_limit_has_timed_out(now: float, kind: str) -> None:
    assert verdicts([CONNECTING, RETRIED], now) == [None, kind]


def test_a_refusal_says_what_users_are_promised() -> None:
    failure = JoinWatch(2.0, 0.0).see(KEY_REFUSED, 0.0)
    assert failure is not None
    assert failure.text == HANDSHAKE_REFUSED
    assert failure.text.startswith("handshake refused: different cookie, or not a zvmq cluster port")
