"""The will of a client whose node dies as a whole: others publish it, once, though nobody else may publish."""

from collections.abc import Callable

from clients import V5, Client, wait_known
from nodes import COOKIE, LIMIT_S, Node, join_all, start_all, wait_until, wait_whole
from wire_clients import Will, Wire, connect_packet

DELAY_S = 2


def claimed(node: Node) -> int:
    """Return how many wills of others a node has published."""
    return int(next(row["Value"] for row in node.table("metrics", "show") if row["Metric"] == "cluster_wills_claimed"))


def test_a_survivor_publishes_the_will_of_a_client_of_a_killed_node(make_node: Callable[..., Node]) -> None:
    members = [make_node(number, COOKIE, ("cluster.failure_timeout_ms=1500",)) for number in (1, 2, 3)]
    dying, two, three = members
    start_all(members)
    join_all(members)
    with Client(two) as one_heir, Client(three) as other_heir, Client(dying, "heir", persistent=True) as heir:
        for client in (one_heir, other_heir, heir):
            client.subscribe("will/#")
        with Client(dying) as publisher:
            wait_known(one_heir, publisher)
            wait_known(other_heir, publisher)
        heir.disconnect()
        wire = Wire(dying)
        assert wire.attach(connect_packet("mortal", V5, will=Will("will/x", "gone", DELAY_S)), V5) is False
        # What the others know of it they know by the time at which they have heard of a later subscription.
        with Client(dying) as last, Client(two) as publisher:
            wait_known(last, publisher)
        dying.kill()
        wire.close()
        assert one_heir.message(2 * LIMIT_S) == ("will/x", "gone")
        assert other_heir.message() == ("will/x", "gone")
        assert claimed(two) + claimed(three) == 1
        dying.start()
        wait_whole(members)
        with Client(dying, "heir", persistent=True) as back:
            assert back.message() == ("will/x", "gone")
            # Once: whatever the node had to say of it would come before this.
            wait_until(lambda: claimed(dying) == 0, "the node answers")
            back.publish("will/last", "last")
            assert back.message() == one_heir.message() == other_heir.message() == ("will/last", "last")
