"""What many measurements come to: medians of the rounds, ratios to the reference, rows of a table. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFERENCE = "mosquitto"
RATIO = f"x {REFERENCE}"
# Counted over all rounds, where a median would hide what happened once.
COUNTED = ("lost", "duplicated", "reordered")

Round = Mapping[str, float | None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A figure of a round, how the table calls it, and to how many digits it is worth telling."""

    key: str
    title: str
    digits: int | None = None


def ratio(rounds: Iterable[float]) -> str | None:
    """The median ratio, as a fraction too when it is below one; None without any."""
    ratios = list(rounds)
    if not ratios:
        return None
    value = statistics.median(ratios)
    return f"{value:.3f} (1/{1 / value:.1f})" if 0 < value < 1 else f"{value:.3f}"


def ratios(ours: Sequence[Round | None], theirs: Sequence[Round | None], key: str) -> list[float]:
    """Our figure over theirs, of each round that has both: a neighbour's load moves both sides of a round."""
    found = []
    for mine, other in zip(ours, theirs, strict=False):
        over, under = (mine or {}).get(key), (other or {}).get(key)
        if over is not None and under:
            found.append(over / under)
    return found


def row(columns: Iterable[Column], rounds: Sequence[Round | None]) -> Row:
    """The figures of one broker: medians of the rounds, sums of what is counted; None where no round has any."""
    found: Row = {}
    for column in columns:
        values = [value for one in rounds if one is not None and (value := one.get(column.key)) is not None]
        if not values:
            found[column.title] = None
        elif column.key in COUNTED:
            found[column.title] = int(sum(values))
        else:
            found[column.title] = round(statistics.median(values), column.digits)
    return found


def for_people(table: Iterable[Row]) -> list[Row]:
    """The table without null: what a row does not have is an empty cell."""
    return [{title: "" if value is None else value for title, value in row.items()} for row in table]
