"""cluster.wanted: for which sessions of a node a message was."""

from broker.core.message import Message
from broker.core.subscription import NO_LOCAL, RETAIN_AS_PUBLISHED, subscription
from cluster.wanted import Wanted


def message(topic: bytes, qos: int = 2, publisher: str = "", retain: bool = False) -> Message:
    return Message(topic, b"x", qos=qos, retain=retain, publisher=publisher)


def test_a_message_is_for_who_wants_its_topic_at_the_highest_qos_of_all_filters() -> None:
    wanted = Wanted(
        [
            ("one", 3, b"a/+", subscription(1, 0)),
            ("one", 3, b"a/b", subscription(2, 0)),
            ("two", 4, b"#", subscription(0, 0)),
            ("three", 5, b"b", subscription(2, 0)),
        ]
    )
    found = wanted.by(message(b"a/b"))
    assert {client_id: qos for client_id, (qos, _, _) in found.items()} == {"one": 2, "two": 0}
    assert wanted.by(message(b"a/b", qos=1))["one"][0] == 1
    assert wanted.counters == {"one": 3, "two": 4, "three": 5}


def test_options_count_and_what_is_for_a_group_does_not() -> None:
    wanted = Wanted(
        [
            ("own", 1, b"a", subscription(1 | NO_LOCAL, 0)),
            ("retains", 1, b"a", subscription(1 | RETAIN_AS_PUBLISHED, 0)),
            ("worker", 1, b"$share/crew/a", subscription(1, 0)),
        ]
    )
    assert wanted.by(message(b"a", publisher="own", retain=True)) == {"retains": (1, True, b"")}
    assert set(wanted.by(message(b"a", publisher="other"))) == {"own", "retains"}
