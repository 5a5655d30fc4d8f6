"""broker.core.routes: one look-up a topic, right after every change."""

from core_helpers import StubInterest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import routes as routes_module
from broker.core.routes import REMEMBERED_BYTES_MAX, NoInterest, Routes
from broker.core.session import Session
from broker.core.subscription import NO_LOCAL, subscription
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import matches


def session(client_id="c", number=1):
    return Session(number, client_id, None, 0, 20)


def pairs(route):
    return [(found.client_id, granted) for found, granted in zip(route.sessions, route.granted, strict=True)]


def test_overlapping_subscriptions_are_one_delivery_at_the_highest_qos():
    """[MQTT-3.3.4-2]"""
    routes = Routes(NoInterest())
    one = session()
    for topic_filter, granted in ((b"a/#", 0), (b"a/+", 1), (b"a/b", 0)):
        assert routes.set(topic_filter, one, subscription(granted))
    assert pairs(routes.find(b"a/b")) == [("c", 1)]
    assert len(routes) == 3


def test_a_replaced_subscription_changes_the_route():
    """[MQTT-3.8.4-3]"""
    routes = Routes(NoInterest())
    one = session()
    assert routes.set(b"a", one, subscription(0))
    assert pairs(routes.find(b"a")) == [("c", 0)]
    assert not routes.set(b"a", one, subscription(1))
    assert pairs(routes.find(b"a")) == [("c", 1)]
    routes.remove(b"a", one)
    assert pairs(routes.find(b"a")) == []


def test_a_route_is_looked_up_once():
    class Counting(StubInterest):
        asked = 0

        def match(self, topic):
            self.asked += 1
            return super().match(topic)

    interest = Counting({b"a": [("n2", True)]})
    routes = Routes(interest)
    assert routes.find(b"a") is routes.find(b"a")
    assert interest.asked == 1
    interest.wanted = {}
    assert routes.find(b"a").nodes == [("n2", True)]
    routes.invalidate()
    assert routes.find(b"a").nodes == []


def test_the_cache_is_bounded():
    routes = Routes(NoInterest())
    routes_max = routes_module.ROUTES_MAX
    for number in range(routes_max + 2):
        routes.find(b"t/%d" % number)
    assert len(routes._cache) <= routes_max


def test_no_local_names_the_sessions_that_ask_for_it():
    routes = Routes(NoInterest())
    one, two, three = (session(name, number) for number, name in enumerate(("one", "two", "three"), start=1))
    routes.set(b"a", one, subscription(NO_LOCAL | 1))
    routes.set(b"a", two, subscription(1))
    routes.set(b"a", three, subscription(NO_LOCAL))
    # A subscription without No Local that matches too is enough to get one's own.
    routes.set(b"#", three, subscription(0))
    route = routes.find(b"a")
    assert dict(pairs(route)) == {"one": 1, "two": 1, "three": 0}
    assert set(route.no_local) == {"one"}


def test_topics_of_the_server():
    """[MQTT-4.7.2-1]: clients don't publish to $-topics, and wildcards in front don't match them."""
    routes = Routes(NoInterest())
    routes.set(b"#", session(), subscription(0))
    assert routes.find(b"$SYS/x").refused == Reason.NOT_AUTHORIZED
    assert pairs(routes.find(b"$SYS/x")) == []
    assert routes.find(b"a/$SYS").refused == 0


LEVELS = st.sampled_from([b"a", b"b", b"+"])
FILTERS = st.lists(LEVELS, min_size=1, max_size=3).map(b"/".join)
CHANGES = st.lists(st.tuples(st.integers(0, 3), FILTERS, st.integers(-1, 1)), max_size=25)


@given(CHANGES, st.lists(st.sampled_from([b"a", b"b", b"a/b", b"b/a", b"a/a/a"]), min_size=1, max_size=5))
def test_after_any_changes_a_route_is_what_the_subscriptions_say(changes, topics):
    routes = Routes(NoInterest())
    sessions = [session(f"c{number}", number) for number in range(4)]
    model = {}
    for number, topic_filter, granted in changes:
        for topic in topics:
            routes.find(topic)
        if granted >= 0:
            assert routes.set(topic_filter, sessions[number], subscription(granted)) == (
                (number, topic_filter) not in model
            )
            model[number, topic_filter] = granted
        elif model.pop((number, topic_filter), None) is not None:
            routes.remove(topic_filter, sessions[number])
    assert len(routes) == len(model)
    for topic in topics:
        expected = {}
        for (number, topic_filter), granted in model.items():
            if matches(topic_filter, topic):
                expected[f"c{number}"] = max(granted, expected.get(f"c{number}", 0))
        found = pairs(routes.find(topic))
        assert len(found) == len(expected)
        assert dict(found) == expected


def test_long_topics_are_not_remembered():
    routes = Routes(NoInterest())
    for size in (REMEMBERED_BYTES_MAX, REMEMBERED_BYTES_MAX + 1):
        topic = b"t" * size
        assert (routes.find(topic) is routes.find(topic)) == (size == REMEMBERED_BYTES_MAX)
