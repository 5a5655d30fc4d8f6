"""broker.core.listener_notices: what bites is said when it begins, and never as often as it bites."""

from broker.core.connection_limits import ConnectionLimits
from broker.core.counters import ListenerCounters
from broker.core.listener_notices import CLIENT_NOTICES_MAX, QUIET_S, ListenerNotices
from broker.mqtt.reasons import Reason


def test_a_limit_of_the_node_is_said_when_it_begins_to_bite():
    notices, counters = ListenerNotices(ConnectionLimits()), ListenerCounters()

    def second(refused):
        counters.connacks[Reason.QUOTA_EXCEEDED] += refused
        notices.begin_second(counters)
        return notices.take()

    assert second(0) == []
    assert second(3) == ["there are as many clients as mqtt.max_connections allows: more are refused"]
    assert [second(1) for _ in range(2 * QUIET_S)] == [[]] * (2 * QUIET_S)
    # Not again before it was quiet for a minute.
    assert [second(0) for _ in range(QUIET_S - 1)] == [[]] * (QUIET_S - 1)
    assert second(1) == []
    assert [second(0) for _ in range(QUIET_S)] == [[]] * QUIET_S
    assert len(second(1)) == 1


def test_each_limit_of_the_node_begins_for_itself():
    notices, counters = ListenerNotices(ConnectionLimits(connects_per_s_max=7)), ListenerCounters()
    counters.connections_refused = 5
    notices.begin_second(counters)
    assert notices.take() == ["more than 7 clients connect in a second: they are refused"]
    counters.connacks[Reason.QUOTA_EXCEEDED] = 1
    notices.begin_second(counters)
    assert len(notices.take()) == 1


def test_clients_that_connect_again_and_again_do_not_fill_the_log():
    notices, counters = ListenerNotices(ConnectionLimits()), ListenerCounters()
    for number in range(3 * CLIENT_NOTICES_MAX):
        notices.of_client(f"client {number}")
    taken = notices.take()
    assert taken[:-1] == [f"client {number}" for number in range(CLIENT_NOTICES_MAX)]
    assert "too many to name" in taken[-1]
    for _ in range(QUIET_S - 1):
        notices.begin_second(counters)
    notices.of_client("client")
    assert notices.take() == []
    notices.begin_second(counters)
    notices.of_client("client")
    assert notices.take() == ["client"]
