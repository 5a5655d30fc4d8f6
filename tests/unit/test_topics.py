"""Topic names, filters and the reference matcher."""

import itertools

import pytest

from broker.mqtt import topics
from broker.mqtt.reasons import ProtocolError, Reason


def refusal(check, *arguments) -> int:
    with pytest.raises(ProtocolError) as caught:
        check(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    "topic",
    [
        b"a",
        b"/",
        b"//",
        b"a/b/c",
        b" ",
        b"$SYS/x",
        "Straße/日本".encode(),
        b"a" * 65_535,
        b"/" * 65_535,
        b"\xef\xbb\xbf",
    ],
)
def test_good_names(topic):
    for _ in range(2):  # The second time it is remembered.
        topics.check_name(topic)
    topics.check_filter(topic)


@pytest.mark.parametrize("topic", [b"", b"+", b"#", b"a/+", b"a/#", b"a+", b"a#b", b"a" * 65_536])
def test_bad_names(topic):
    for _ in range(2):
        assert refusal(topics.check_name, topic) == Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "data", [b"\xff", b"a/\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\0b", "é\0".encode()]
)
def test_ill_formed(data):
    assert refusal(topics.check_name, data) == Reason.MALFORMED_PACKET
    assert refusal(topics.check_filter, data) == Reason.MALFORMED_PACKET


@pytest.mark.parametrize("around", ["", "é"])
def test_disallowed_code_points(around):
    """All of them by themselves, and none of their neighbours."""
    planes = [plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)]
    disallowed = {*range(0x01, 0x20), *range(0x7F, 0xA0), *range(0xFDD0, 0xFDF0), *planes}
    neighbours = {code + step for code in disallowed for step in (-1, 1)} - disallowed - {0, 0x110000}
    for code in sorted(disallowed):
        topic = (around + chr(code)).encode()
        for check in (topics.check_characters, topics.check_name):
            assert refusal(check, topic) == Reason.MALFORMED_PACKET, hex(code)
        # A filter is another node's business too.
        topics.check_filter(topic)
    for code in sorted(neighbours):
        topics.check_name((around + chr(code)).encode())


def test_memory_of_names_is_bounded():
    for number in range(topics.NAMES_REMEMBERED_MAX * 2 + 10):
        topics.check_name(b"%d" % number)
    assert 0 < len(topics._names_known) <= topics.NAMES_REMEMBERED_MAX
    topics.check_name(b"x" * (topics.NAME_BYTES_REMEMBERED_MAX + 1))
    assert max(map(len, topics._names_known)) <= topics.NAME_BYTES_REMEMBERED_MAX


@pytest.mark.parametrize(
    "topic_filter",
    [
        b"#",
        b"+",
        b"+/+",
        b"/+",
        b"a/#",
        b"+/#",
        b"a/+/b",
        b"$SYS/#",
        b"$share",
        b"$share/g/#",
        b"$share/g//",
        b"$shared/x",
    ],
)
def test_good_filters(topic_filter):
    topics.check_filter(topic_filter)


@pytest.mark.parametrize(
    "topic_filter",
    [
        b"",
        b"a#",
        b"#/",
        b"a/#/b",
        b"##",
        b"a+",
        b"+a",
        b"++",
        b"a/b+/c",
        b"a" * 65_536,
        b"$share/",
        b"$share/g",
        b"$share//a",
        b"$share/g/",
        b"$share/+/a",
        b"$share/g#/a",
        b"$share/g/a#",
    ],
)
def test_bad_filters(topic_filter):
    assert refusal(topics.check_filter, topic_filter) == Reason.PROTOCOL_ERROR


def test_shared_group():
    assert topics.shared_group(b"$share/g/a/b") == (b"g", b"a/b")
    assert topics.shared_group(b"$share/g//a") == (b"g", b"/a")
    assert topics.shared_group(b"$share") is None
    assert topics.shared_group(b"share/g/a") is None


@pytest.mark.parametrize(
    ("topic_filter", "matched", "unmatched"),
    [
        (b"a/b", [b"a/b"], [b"a", b"a/b/", b"a/b/c", b"A/b", b"/a/b"]),
        (b"#", [b"a", b"a/b", b"/", b"/a"], [b"$SYS", b"$SYS/a", b"$"]),
        (b"a/#", [b"a", b"a/", b"a/b", b"a/b/c"], [b"b", b"ab", b"/a"]),
        (b"/#", [b"/", b"/a"], [b"a/"]),
        (b"+", [b"a", b" "], [b"/", b"a/", b"$SYS"]),
        (b"+/+", [b"/", b"a/b", b"/a"], [b"a", b"a/b/c", b"$SYS/a"]),
        (b"/+", [b"/", b"/a"], [b"a"]),
        (b"a/+", [b"a/", b"a/b", b"a/$b"], [b"a", b"a/b/c"]),
        (b"a/+/c", [b"a/b/c", b"a//c"], [b"a/c", b"a/b/c/d"]),
        (b"+/b/#", [b"a/b", b"a/b/c/d"], [b"a", b"$a/b", b"a/c"]),
        (b"$SYS/#", [b"$SYS", b"$SYS/a/b"], [b"SYS/a", b"$sys/a"]),
        (b"$SYS/+", [b"$SYS/a"], [b"$SYS", b"$SYS/a/b"]),
    ],
)
def test_matches(topic_filter, matched, unmatched):
    assert [topic for topic in matched if not topics.matches(topic_filter, topic)] == []
    assert [topic for topic in unmatched if topics.matches(topic_filter, topic)] == []


def spelled_out(filter_levels: list[bytes], topic_levels: list[bytes]) -> bool:
    """The rules said recursively, without the one about $."""
    if not filter_levels:
        return not topic_levels
    if filter_levels[0] == b"#":
        return True
    if not topic_levels:
        return False
    return filter_levels[0] in (b"+", topic_levels[0]) and spelled_out(filter_levels[1:], topic_levels[1:])


def test_matches_all_short_filters_and_names():
    names = [b"/".join(levels) for size in (1, 2, 3) for levels in itertools.product((b"", b"a", b"$b"), repeat=size)]
    filters = [
        b"/".join(levels)
        for size in (1, 2, 3)
        for levels in itertools.product((b"", b"a", b"$b", b"+", b"#"), repeat=size)
        if b"#" not in levels[:-1]
    ]
    for name, topic_filter in itertools.product(filter(None, names), filter(None, filters)):
        topics.check_filter(topic_filter)
        expected = spelled_out(topic_filter.split(b"/"), name.split(b"/"))
        if name.startswith(b"$") and topic_filter[:1] in (b"+", b"#"):
            expected = False
        assert topics.matches(topic_filter, name) == expected, (topic_filter, name)
