"""Fixtures of the system tests. Whatever a test starts is gone when it ends, and a failed one shows the nodes' logs."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import namespaces
import nodes
import pytest
from nodes import COOKIE, Node, close_started, join_all, start_all, wait_whole


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--crash-rounds N` and `--leave-kills N` search longer; `--crash-seed N`: begin with that round."""
    parser.addoption("--crash-rounds", type=int, default=None, help="how many rounds of kills test_crash goes through")
    parser.addoption("--leave-kills", type=int, default=None, help="how often test_leave_kills kills each victim")
    parser.addoption("--crash-seed", type=int, default=None, help="the seed of the first of them")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes said when a test fails."""
    report = yield
    if report.failed:
        for node in nodes.started:
            report.sections.append((f"the end of the log of {node.name}", node.log_tail()))
    return report


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make a node in a directory of its own; `make_node(number=1, cookie="", settings=())`."""
    with ExitStack() as stack:

        def make(number: int = 1, cookie: str = "", settings: Any = (), place: str = "") -> Node:
            node = Node(tmp_path / (place or f"node{number}"), number, cookie, settings)
            stack.callback(close_started, node)
            return node

        yield make


@pytest.fixture
def fresh_loopback() -> Iterator[None]:
    """For tests of fixed ports: a loopback on which all are free, where that can be had; else the machine's own."""
    with namespaces.fresh_loopback():
        yield


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node that is ready."""
    return make_node().start()


@pytest.fixture
def three(make_node: Callable[..., Node]) -> list[Node]:
    """A cluster of three nodes that found each other by `cluster.discovery`."""
    members = [make_node(number, COOKIE) for number in (1, 2, 3)]
    listed = ", ".join(member.discovery_node for member in members)
    for member in members:
        member.settings.append(f"cluster.discovery=[{listed}]")
    start_all(members)
    wait_whole(members)
    return members


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """A cluster of three nodes, made by hand, for the tests of a module that leave it as it is."""
    directory = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        members = [Node(directory / f"node{number}", number, COOKIE) for number in (1, 2, 3)]
        for member in members:
            stack.callback(close_started, member)
        start_all(members)
        join_all(members)
        yield members
        for member in members:
            member.stop()
