"""What the fuzz targets have in common: what a target is, and inputs near its seeds.

A target is a function of bytes that raises nothing unless it has found something: it catches what its parser documents
for what nobody should have sent, and lets everything else through. The suite tries some hundred inputs of each by
hypothesis, always the same ones; `coverage_run.py` searches with coverage as its guide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = 300
INPUT_BYTES_MAX = 4096


@dataclass(frozen=True)
class Target:
    """A parser to try: `check(data)` raises what it has found."""

    name: str
    check: Callable[[bytes], None]
    seeds: list[bytes]


def examples(count: int = EXAMPLES) -> settings:
    """Settings under which the suite always tries the same inputs: a run says something of the code, not of luck."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def near(draw: Any, seeds: list[bytes]) -> bytes:
    """Bytes that nobody meant, or seeds that are joined, cut and changed here and there."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=100))
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=3))))
    for place, change in draw(st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4)), max_size=4)):
        at = place % (len(data) + 1)
        if place & 1:
            # In place of what is there; no bytes at all cut something out.
            data[at : at + max(len(change), 1)] = change
        else:
            data[at:at] = change
    return bytes(data[:INPUT_BYTES_MAX])
