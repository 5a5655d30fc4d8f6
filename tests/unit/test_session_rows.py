"""broker.core.session_rows: the other nodes hear what they need to give a session another home, and nothing twice.

Every node of the unit tests checks that its changes fit together (`core_helpers`); here is which there are.
"""

import pytest
from core_helpers import STORE_ID, Node

from broker.core.events import Detach, connection_key
from broker.core.rows import RowKind, Table, row_rest, row_subject, unpack_session, unpack_subscription
from broker.mqtt.packets import Subscribe, SubscriptionRequest, Unsubscribe
from broker.mqtt.properties import Property

PASSING, LASTING = int(Table.PASSING), int(Table.LASTING)


def session(node: Node, client_id: str = "c") -> tuple[int, bool, int, str | None]:
    """(table, persistent, expiry, user name) of the only row of a client id."""
    ((table, value),) = [
        (table, value)
        for (table, row), value in node.rows.items()
        if row[0] == RowKind.SESSION and row_subject(row) == client_id.encode()
    ]
    found = unpack_session(value)
    return table, found.persistent, found.expiry_s, found.user_name


def subscriptions(node: Node, client_id: str = "c") -> dict[bytes, tuple[int, int]]:
    return {
        row_rest(row): unpack_subscription(value)
        for (table, row), value in node.rows.items()
        if row[0] == RowKind.SUBSCRIPTION and table == LASTING and row_subject(row) == client_id.encode()
    }


def subscribe(client, topic_filter: bytes, qos: int = 1, identifier: int = 0) -> None:
    properties = {int(Property.SUBSCRIPTION_IDENTIFIER): [identifier]} if identifier else {}
    client.send(Subscribe(1, (SubscriptionRequest(topic_filter, qos),), properties))
    client.take()


def changes(node: Node) -> int:
    return sum(len(effects.rows) for effects in node.turns)


def test_a_clean_session_has_one_passing_row_while_it_lasts(node):
    client = node.connect("c")
    subscribe(client, b"a/#")
    assert session(node) == (PASSING, False, 0, None)
    assert subscriptions(node) == {}
    client.drop()
    assert node.rows == {}


def test_a_persistent_session_has_rows_for_its_subscriptions(node):
    client = node.persistent("c", expiry_s=60)
    subscribe(client, b"a/#", 2, 7)
    subscribe(client, b"$share/g/b", 0)
    assert session(node) == (LASTING, True, 60, None)
    assert subscriptions(node) == {b"a/#": (2, 7), b"$share/g/b": (0, 0)}
    subscribe(client, b"a/#", 1)
    client.send(Unsubscribe(1, (b"$share/g/b", b"never")))
    assert subscriptions(node) == {b"a/#": (1, 0)}
    client.drop()
    assert session(node) == (LASTING, True, 60, None)
    node.advance(61)
    assert node.rows == {}


def test_what_stays_the_same_is_not_told(node):
    client = node.persistent("c")
    subscribe(client, b"a")
    client.drop()
    before = changes(node)
    client = node.persistent("c")
    subscribe(client, b"a")
    client.drop()
    assert changes(node) == before


def test_another_expiry_is_told(node):
    node.persistent("c", expiry_s=60).drop()
    client = node.persistent("c", expiry_s=90)
    assert session(node)[2] == 90
    client.disconnect(120)
    assert session(node)[2] == 120


def test_a_clean_start_is_another_session(node):
    first = node.persistent("c")
    subscribe(first, b"a")
    epoch = unpack_session(next(iter(node.rows.values()))).epoch
    node.advance(1)
    node.connect("c", version=5, clean=True)
    assert session(node) == (PASSING, False, 0, None)
    assert subscriptions(node) == {}
    assert unpack_session(next(iter(node.rows.values()))).epoch > epoch


@pytest.mark.parametrize("restart", [False, True])
def test_the_epoch_is_that_of_the_beginning_and_of_this_node(node, restart):
    node.persistent("c").drop()
    epoch = unpack_session(next(iter(node.rows.values()))).epoch
    assert epoch == (1, node.utc_ms << 16, STORE_ID)
    node.advance(10)
    if restart:
        node = node.restart()
    node.persistent("c")
    assert unpack_session(next(iter(node.rows.values()))).epoch == epoch


def test_a_restart_knows_what_was_told(node):
    client = node.persistent("c")
    subscribe(client, b"a", 2)
    node.connect("clean")
    node = node.restart()
    assert [row[1][0] for row in node.rows] == [RowKind.SESSION, RowKind.SUBSCRIPTION]
    assert session(node)[0] == LASTING and subscriptions(node) == {b"a": (2, 0)}


def test_a_session_that_ends_with_its_connection_is_not_prolonged(node):
    """[MQTT-3.14.2-2]: whatever its listener lets a client say."""
    client = node.connect("c", version=5)
    subscribe(client, b"a", 2)
    node.owner.receive(Detach(connection_key(client.listener, client.connection.number), 0, 60), node.now)
    node.turn()
    assert node.owner.session("c") is None
    assert node.rows == {}
