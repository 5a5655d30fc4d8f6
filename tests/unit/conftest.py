"""Fixtures of what `core_helpers` has: one node without processes or sockets."""

from collections.abc import Callable, Iterator

import pytest
from core_helpers import Node, started_nodes


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    """A function that starts nodes with the options of `Node`; each is validated at the end."""
    yield from started_nodes()


@pytest.fixture
def node(start: Callable[..., Node]) -> Node:
    """A node as it is by default."""
    return start()
