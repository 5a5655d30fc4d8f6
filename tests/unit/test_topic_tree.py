"""broker.core.topic_tree: what the tree finds is what the plain rules say, and nothing stays behind."""

from hypothesis import given
from hypothesis import strategies as st

from broker.core.topic_tree import TopicTree
from broker.mqtt.topics import matches

# Few names, so that filters and topics meet; the empty level and one that begins with $ are among them.
LEVELS = st.sampled_from([b"a", b"b", b"", b"$s", b"ab"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=5).map(b"/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, last: b"/".join([*levels, *last]),
    st.lists(st.one_of(LEVELS, st.just(b"+")), min_size=0, max_size=4),
    st.sampled_from([[b"#"], [b"+"], [b"a"], [b""], [b"$s"]]),
).filter(bool)
ENTRIES = st.tuples(FILTERS, st.integers(0, 3))


def tree_of(entries):
    tree = TopicTree()
    for topic_filter, key in entries:
        tree.set(topic_filter, key, (topic_filter, key))
    return tree


def shape(branch):
    """Everything that a branch consists of, in no order."""
    entries = sorted(branch.entries or {}) if hasattr(branch, "entries") else None
    if entries is None:
        return branch.rest, sorted([branch.key, *(branch.others or {})])
    return entries, {name: shape(child) for name, child in branch.children.items()}


@given(st.lists(ENTRIES, max_size=30), TOPICS)
def test_finds_what_the_rules_say(entries, topic):
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.2-1], with `topics.matches` as the oracle."""
    found = tree_of(entries).match(topic)
    expected = [(key, (topic_filter, key)) for topic_filter, key in set(entries) if matches(topic_filter, topic)]
    assert sorted(found) == sorted(expected)


@given(st.lists(st.tuples(st.booleans(), ENTRIES), max_size=40), TOPICS)
def test_any_sequence_of_changes_is_a_dict_of_pairs(steps, topic):
    tree = TopicTree()
    model = {}
    for number, (add, (topic_filter, key)) in enumerate(steps):
        if add:
            assert tree.set(topic_filter, key, number) == ((topic_filter, key) not in model)
            model[topic_filter, key] = number
        else:
            assert tree.remove(topic_filter, key) == (model.pop((topic_filter, key), None) is not None)
        assert len(tree) == len(model)
    found = [(key, value) for (topic_filter, key), value in model.items() if matches(topic_filter, topic)]
    assert sorted(tree.match(topic)) == sorted(found)
    assert sorted(tree.items()) == sorted((*pair, value) for pair, value in model.items())
    assert all(tree.get(*pair) == value for pair, value in model.items())
    assert tree.get(topic, 9) is None


@given(st.lists(ENTRIES, unique=True, max_size=30), st.randoms(use_true_random=False))
def test_removal_leaves_no_empty_branches(entries, random):
    tree = tree_of(entries)
    keep = entries[: len(entries) // 3]
    gone = entries[len(entries) // 3 :]
    random.shuffle(gone)
    for topic_filter, key in gone:
        assert tree.remove(topic_filter, key)
    assert shape(tree._root) == shape(tree_of(keep)._root)
    for topic_filter, key in keep:
        assert tree.remove(topic_filter, key)
    assert len(tree) == 0
    assert not tree._root.children


def test_what_is_not_there_is_not_removed():
    tree = tree_of([(b"a/b", 1)])
    for topic_filter, key in ((b"a", 1), (b"a/b/c", 1), (b"a/b", 2), (b"x", 1), (b"a/+", 1)):
        assert not tree.remove(topic_filter, key)
    assert tree.match(b"a/b") == [(1, (b"a/b", 1))]


def test_wildcards_leave_dollar_topics_alone():
    """[MQTT-4.7.2-1]"""
    tree = tree_of([(b"#", 1), (b"+/x", 2), (b"+/#", 3), (b"$SYS/#", 4), (b"$SYS/+", 5)])
    assert sorted(key for key, _ in tree.match(b"$SYS/x")) == [4, 5]
    assert sorted(key for key, _ in tree.match(b"$SYS")) == [4]
    # Only the first level counts.
    assert sorted(key for key, _ in tree.match(b"a/$SYS")) == [1, 3]


def test_the_deepest_topics():
    deep = b"/" * 65534
    tree = tree_of([(deep, 1), (b"#", 2), (b"/#", 3)])
    assert sorted(key for key, _ in tree.match(deep)) == [1, 2, 3]
    assert tree.remove(deep, 1)
    assert sorted(tree.items()) == [(b"#", 2, (b"#", 2)), (b"/#", 3, (b"/#", 3))]


def test_filters_that_part_deep_below():
    """What they share becomes levels, and one filter again when the other goes."""
    deep = b"/" * 65000
    entries = [(deep, 1), (deep + b"a", 2), (deep + b"b/+", 3)]
    tree = tree_of(entries)
    assert sorted(key for key, _ in tree.match(deep + b"b/c")) == [3]
    assert sorted(key for key, _ in tree.match(deep)) == [1]
    for topic_filter, key in entries[1:]:
        assert tree.remove(topic_filter, key)
    assert shape(tree._root) == shape(tree_of(entries[:1])._root)
