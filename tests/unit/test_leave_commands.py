"""broker.runtime.leave_commands: what the flags of `cluster leave` mean."""

from typing import Any

import pytest

from broker.commands import UsageError, find
from broker.runtime.leave_commands import leave_order
from cluster.leave_frames import Order, Verb


@pytest.mark.parametrize(
    ("flags", "order"),
    [
        ({}, Order(Verb.STOP_LISTENERS, 5, 60)),
        ({"kill_sessions": True}, Order(Verb.MOVE, 5, 60)),
        ({"kill_sessions": True, "summary-interval": "1", "timeout": "120"}, Order(Verb.MOVE, 1, 120)),
        ({"force": True, "rate": "50"}, Order(Verb.MOVE, 5, 60, 50, True)),
        ({"kill_sessions": True, "force-targets": "a@b, c@d,"}, Order(Verb.MOVE, targets=("a@b", "c@d"))),
        ({"kill_sessions": True, "dry-run": True}, Order(Verb.DRY_RUN)),
        ({"abort": True}, Order(Verb.ABORT)),
    ],
)
def test_flags_make_an_order(flags: dict[str, Any], order: Order) -> None:
    assert leave_order(flags) == order


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"timeout": "0"}, "-t 0: must be a whole number from 1"),
        ({"summary-interval": "-3"}, "-i -3: must be a whole number from 1"),
        ({"rate": "many"}, "--rate many: must be a whole number from 1"),
        *[
            ({"abort": True, flag: True}, "--abort goes with no other flag")
            for flag in ("kill_sessions", "dry-run", "force", "status")
        ],
        ({"force": True, "force-targets": " , "}, "--force-targets needs the names of nodes"),
    ],
)
def test_what_makes_none_is_bad_usage(flags: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        leave_order(flags)


def test_the_node_has_to_be_named() -> None:
    command, _ = find(["cluster", "leave"])
    with pytest.raises(UsageError, match="You have to provide a node"):
        command.check({}, {"kill_sessions": True})
