"""broker.core.fifo: what a deque does, in less room."""

import weakref
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.fifo import Fifo

STEPS = st.lists(st.sampled_from(["append", "append", "appendleft", "popleft", "pop", "clear"]), max_size=400)


@given(STEPS)
def test_it_is_a_deque(steps: list[str]) -> None:
    fifo: Fifo[int] = Fifo()
    model: deque[int] = deque()
    for number, step in enumerate(steps):
        if step.startswith("append"):
            getattr(fifo, step)(number)
            getattr(model, step)(number)
        elif step == "clear" and number % 7 == 0:
            fifo.clear()
            model.clear()
        elif step != "clear" and model:
            assert getattr(fifo, step)() == getattr(model, step)()
        assert list(fifo) == list(model)
        assert (len(fifo), fifo.is_empty()) == (len(model), not model)
        if model:
            assert (fifo.first(), fifo.last()) == (model[0], model[-1])


def test_nothing_is_taken_from_nothing() -> None:
    for method in ("first", "last", "pop", "popleft"):
        fifo: Fifo[int] = Fifo()
        fifo.append(1)
        fifo.popleft()
        with pytest.raises((AssertionError, IndexError)):
            getattr(fifo, method)()


class Item:
    """Something that can be watched going."""


def test_what_was_taken_is_let_go() -> None:
    fifo: Fifo[Item] = Fifo()
    watched = []
    for _ in range(1000):
        item = Item()
        watched.append(weakref.ref(item))
        fifo.append(item)
    del item
    for _ in range(900):
        fifo.popleft()
    assert sum(1 for reference in watched if reference() is not None) == 100
