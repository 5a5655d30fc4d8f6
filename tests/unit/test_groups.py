"""broker.core.groups: parts of groups that reach over nodes, what those hear of each other and hand to each other."""

import pytest
from core_helpers import started_nodes

from broker.core.full_links import PATIENCE_S
from broker.core.group_choice import LOCAL_ONLY, RANDOM, GroupPart, GroupParts
from broker.core.groups import HAND_OVER_MAX
from broker.core.message import Message
from broker.core.rows import RowKind, Table, pack_row, unpack_group
from broker.core.settings import OwnerSettings
from broker.mqtt.packets import Puback, Publish, Subscribe, SubscriptionRequest
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason
from broker.mqtt.topics import matches, shared_group

SHARED = b"$share/g/t"
ROW = pack_row(RowKind.GROUP, SHARED)
WINDOW = int(Property.RECEIVE_MAXIMUM)
UNLIMITED = OwnerSettings(max_offline_messages=-1, max_online_messages=-1)


class Others:
    """What other nodes have of groups, as a test says."""

    def __init__(self):
        self.groups = {}
        self.wanted = []

    def match(self, topic):
        return self.wanted

    def match_groups(self, topic):
        return [group for name, group in self.groups.items() if matches(shared_group(name)[1], topic)]

    def group(self, shared_filter):
        return self.groups.get(shared_filter)


@pytest.fixture
def start():
    yield from started_nodes()


class Cluster:
    """A node among others that exist as names."""

    def __init__(self, start, **options):
        self.others = Others()
        options.setdefault("settings", UNLIMITED)
        self.node = start(interest=self.others, **options)
        self.complete = True
        self.node.owner.ask_complete(lambda: self.complete)

    def tell(self, name, online=0, persistent=False, running=True, shared_filter=SHARED, full=False):
        """Another node says what it has of a group."""
        group = self.others.groups.setdefault(shared_filter, GroupParts(shared_filter))
        group.parts[name] = GroupPart(name, online, persistent, running, full)
        self.node.owner.interest_changed()
        self.node.owner.others_changed(shared_filter)
        self.node.settle()

    def forget(self, shared_filter=SHARED):
        del self.others.groups[shared_filter]
        self.node.owner.interest_changed()
        self.node.owner.others_changed(shared_filter)
        self.node.settle()

    def publish(self, count, qos=1, first=0):
        publisher = self.node.connect("p", 5)
        for number in range(first, first + count):
            publisher.publish(b"t", b"%d" % number, qos, number % 60000 + 1)
        return publisher

    def take(self):
        """What is forwarded since the last call: (node, payload, groups, plain)."""
        forwards, self.node.forwards = self.node.forwards, []
        return [(each.node, each.message.payload, each.groups, each.plain) for each in forwards]


@pytest.fixture
def cluster(start):
    return Cluster(start)


def payloads(count, first=0):
    return [b"%d" % number for number in range(first, first + count)]


# What others hear.


def told(cluster):
    value = cluster.node.told_rows().get((int(Table.PASSING), ROW))
    return None if value is None else unpack_group(value)[:2]


def test_others_hear_how_many_are_connected_and_whether_some_come_back(cluster):
    assert told(cluster) is None
    member = cluster.node.connect("a", 5)
    member.subscribe(SHARED)
    assert told(cluster) == (False, 1)
    lasting = cluster.node.persistent("b")
    lasting.subscribe(SHARED)
    assert told(cluster) == (True, 2)
    member.drop()
    lasting.drop()
    assert told(cluster) == (True, 0)
    assert cluster.node.persistent("b").connack.session_present
    assert told(cluster) == (True, 1)
    cluster.node.persistent("b").unsubscribe(SHARED)
    assert told(cluster) is None
    assert cluster.node.local_rows() == {key: value for key, value in cluster.node.told_rows().items() if key[1] != ROW}


def test_a_storm_of_members_is_told_in_a_few_rows(cluster):
    members = [cluster.node.connect(f"m{number}", 5) for number in range(200)]
    cluster.node.turns.clear()
    for member in members:
        member.subscribe(SHARED)
    assert 100 < told(cluster)[1] <= 200
    for member in members[:-1]:
        member.drop()
    assert told(cluster) == (False, 1)
    changes = [change for turn in cluster.node.turns for change in turn.rows if change.row == ROW]
    assert len(changes) < 20


def test_a_restart_tells_the_same(cluster):
    cluster.node.persistent("b").subscribe(SHARED)
    restarted = cluster.node.restart()
    assert unpack_group(restarted.local_rows()[int(Table.PASSING), ROW]) == (True, 0, False)


# What is published here.


def test_each_group_has_a_node_and_each_node_one_forward(cluster):
    cluster.tell("n2", 1)
    cluster.tell("n2", 1, shared_filter=b"$share/h/#")
    cluster.tell("n3", 0, True, shared_filter=b"$share/i/t")
    member = cluster.node.connect("a", 5)
    member.subscribe(b"$share/h/#")
    publisher = cluster.publish(1)
    assert cluster.take() == [("n2", b"0", [SHARED], False), ("n3", b"0", [b"$share/i/t"], False)]
    assert member.take_payloads() == [b"0"]
    assert publisher.take() == [], "it waits for both"
    assert cluster.node.owner.counters.router_matches_remote == 2


def test_who_wants_it_anyway_is_told_for_which_groups_as_well(cluster):
    cluster.others.wanted = [("n2", False), ("n3", False)]
    cluster.tell("n2", 1)
    cluster.publish(1, qos=2)
    (two, three) = cluster.node.forwards
    assert (two.node, two.groups, two.plain, two.persistent) == ("n2", [SHARED], True, True)
    assert (three.node, three.groups, three.plain, three.persistent) == ("n3", None, True, False)


def test_nobody_is_told_that_a_message_was_for_nobody_else(cluster):
    cluster.tell("n2", 1)
    cluster.publish(1, qos=0)
    assert len(cluster.take()) == 1
    cluster.tell("n2", 0, True)
    cluster.publish(1, qos=0)
    assert cluster.take() == [], "QoS 0 waits for nobody"
    cluster.forget()
    publisher = cluster.publish(1)
    assert publisher.take() == [Puback(1, Reason.NO_MATCHING_SUBSCRIBERS)]


def test_a_node_without_room_is_passed_over(cluster):
    full = {"n2"}
    cluster.node.owner.ask_room(lambda node, message: node not in full)
    cluster.tell("n2", 5)
    cluster.tell("n3", 0, True)
    cluster.publish(1)
    assert cluster.take() == [("n3", b"0", [SHARED], False)]
    full.add("n3")
    publisher = cluster.publish(1)
    cluster.node.advance(PATIENCE_S)
    assert publisher.take() == [Puback(1, Reason.QUOTA_EXCEEDED)]
    assert cluster.take() == []
    assert cluster.node.dropped("link_full") == 1


@pytest.mark.parametrize("policy", [RANDOM, LOCAL_ONLY])
def test_the_policy_is_a_setting(start, policy):
    cluster = Cluster(start, settings=OwnerSettings(shared_policy=policy))
    cluster.tell("n2", 1)
    member = cluster.node.connect("a", 5)
    member.subscribe(SHARED)
    cluster.publish(20)
    there = len(cluster.take())
    assert (9 <= there <= 11) if policy == RANDOM else (there == 0)
    assert len(member.take_payloads()) == 20 - there


# What waits here.


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("count", [20, HAND_OVER_MAX + 700])
def test_what_waits_goes_to_who_connects_elsewhere_in_order_and_in_one_batch(cluster, count, qos):
    member = cluster.node.persistent("a")
    member.subscribe(SHARED, 2)
    member.drop()
    cluster.publish(count, qos)
    assert len(cluster.node.stored("queue")) == count
    cluster.node.turns.clear()
    cluster.tell("n2", 1)
    assert [payload for _, payload, _, _ in cluster.take()] == payloads(count)
    for turn in cluster.node.turns:
        deleted = sum(family == "queue" for _, family, _, _ in turn.writes.operations)
        assert deleted == len(turn.to_peers) <= HAND_OVER_MAX
    assert cluster.node.stored("queue") == []
    assert cluster.node.owner.counts()["queued_messages"] == 0


def test_what_waits_stays_while_others_are_away_as_well(cluster):
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(3)
    cluster.tell("n2", 0, True)
    cluster.tell("n3", 2, True, running=False)
    assert cluster.take() == []
    assert cluster.node.persistent("a").take_payloads() == payloads(3)


def test_local_only_waits_for_its_own(start):
    cluster = Cluster(start, settings=OwnerSettings(shared_policy=LOCAL_ONLY))
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(3)
    cluster.tell("n2", 1)
    assert cluster.take() == []
    # Without any it is the others'.
    cluster.node.advance(4000)
    assert len(cluster.take()) == 3


def test_what_finds_no_room_is_tried_again(cluster):
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(3)
    full = True
    cluster.node.owner.ask_room(lambda node, message: not full)
    cluster.tell("n2", 1)
    assert cluster.take() == []
    assert cluster.node.owner.next_deadline() > cluster.node.now
    full = False
    cluster.node.advance(1.0)
    assert len(cluster.take()) == 3


def full(cluster):
    return unpack_group(cluster.node.told_rows()[int(Table.PASSING), ROW])[2]


def test_a_part_says_when_it_is_full_and_when_it_has_room_again(start):
    cluster = Cluster(start, settings=OwnerSettings(max_online_messages=20, max_offline_messages=20))
    member = cluster.node.persistent("a", properties={WINDOW: 1})
    member.subscribe(SHARED)
    cluster.publish(11)
    assert not full(cluster)
    cluster.publish(1, first=11)
    assert full(cluster), "more than half of it waits"
    for number in range(5):
        member.acknowledge(number + 1)
    assert full(cluster)
    member.acknowledge(6)
    assert not full(cluster)


def test_what_waits_is_for_nobody_who_is_full(cluster):
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(3)
    cluster.tell("n2", 1, full=True)
    assert cluster.take() == []
    cluster.publish(1, first=3)
    assert len(cluster.take()) == 1, "what is published is for who is connected"
    cluster.tell("n2", 1)
    assert [payload for _, payload, _, _ in cluster.take()] == payloads(3)
    assert [each.waited for turn in cluster.node.turns for each in turn.to_peers] == [False, True, True, True]


def test_what_has_waited_is_not_dropped_for_want_of_room(start):
    cluster = Cluster(start, settings=OwnerSettings(max_online_messages=5, max_offline_messages=5))
    member = cluster.node.connect("a", 5, properties={WINDOW: 1})
    member.subscribe(SHARED)
    cluster.publish(6)
    for waited in (False, True):
        message = Message(b"t", b"came", b"", 1, False, 0.0, "c", b"o" * 16, 9)
        cluster.node.owner.receive_for_groups(message, [SHARED], cluster.node.now, waited)
        cluster.node.settle()
        assert cluster.node.dropped("queue_full") == 1
    assert cluster.node.owner.counts()["queued_messages"] == 7


def test_what_expired_while_it_waited_goes_nowhere(cluster):
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    publisher = cluster.node.connect("p", 5)
    publisher.publish(b"t", b"old", 1, 1, properties={int(Property.MESSAGE_EXPIRY_INTERVAL): 1})
    publisher.publish(b"t", b"new", 1, 2)
    cluster.node.advance(2.0)
    cluster.tell("n2", 1)
    assert [payload for _, payload, _, _ in cluster.take()] == [b"new"]
    assert cluster.node.dropped("expired") == 1


@pytest.mark.parametrize("how", ["unsubscribe", "expiry", "clean start"])
def test_a_part_without_members_is_for_whoever_will_come_back(cluster, how):
    member = cluster.node.persistent("a", properties={WINDOW: 1})
    member.subscribe(SHARED)
    cluster.publish(5)
    cluster.tell("n2", 0, True)
    if how == "expiry":
        member.drop()
        cluster.node.advance(4000)
    elif how == "clean start":
        cluster.node.connect("a", 5)
    else:
        member.unsubscribe(SHARED)
    # What is in flight stays with a session that goes on.
    found = sorted(cluster.take())
    assert found == [("n2", payload, [SHARED], False) for payload in payloads(5)[how == "unsubscribe" :]]
    assert told(cluster) is None
    assert cluster.node.stored("queue") == ([] if how != "unsubscribe" else cluster.node.stored("queue")[:1])
    assert cluster.node.dropped("group_ended") == 0
    assert not cluster.node.owner._groups.all


def test_a_part_without_members_waits_until_everybody_is_heard(cluster):
    cluster.complete = False
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(5)
    cluster.node.advance(4000)
    assert cluster.node.owner.counts()["queued_messages"] == len(cluster.node.stored("queue")) == 5
    assert told(cluster) is None
    cluster.complete = True
    cluster.node.advance(1.0)
    assert cluster.node.dropped("group_ended") == 5
    assert cluster.node.stored("queue") == cluster.node.stored("session") == []


def test_who_subscribes_takes_what_waits_without_members(cluster):
    cluster.complete = False
    member = cluster.node.persistent("a")
    member.subscribe(SHARED)
    member.drop()
    cluster.publish(5)
    cluster.node.advance(4000)
    late = cluster.node.connect("late", 5)
    late.send(Subscribe(7, (SubscriptionRequest(SHARED, 1),)))
    assert [packet.payload for packet in late.take() if isinstance(packet, Publish)] == payloads(5)


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_session_that_ended_had_is_another_nodes(cluster, qos):
    """[MQTT-4.8.2-5] At QoS 2 it is nobody's."""
    member = cluster.node.connect("a", 5)
    member.subscribe(SHARED, qos)
    cluster.publish(3, qos)
    cluster.tell("n2", 1)
    member.drop()
    assert [payload for _, payload, _, _ in cluster.take()] == (payloads(3) if qos == 1 else [])
    assert cluster.node.dropped("group_ended") == 0


def test_what_clean_members_have_is_kept_for_a_member_elsewhere_that_comes_back(cluster):
    """The process may die with them, and no other node would know of it."""
    cluster.tell("n2", 0, True)
    member = cluster.node.connect("a", 5, properties={WINDOW: 1})
    member.subscribe(SHARED)
    cluster.publish(3)
    assert len(cluster.node.stored("queue")) == 3
    member.acknowledge(1)
    assert len(cluster.node.stored("queue")) == 2
    crashed = Cluster.__new__(Cluster)
    crashed.node = cluster.node.restart()
    assert sorted(crashed.take()) == [("n2", payload, [SHARED], False) for payload in payloads(3)[1:]]
    assert crashed.node.stored("queue") == []


def test_what_clean_members_had_is_kept_when_they_are_members_no_more(cluster):
    cluster.tell("n2", 0, True)
    member = cluster.node.connect("a", 5)
    member.subscribe(SHARED)
    cluster.publish(3)
    member.unsubscribe(SHARED)
    cluster.node.advance(1.0)
    assert told(cluster) is None
    member.acknowledge(1)
    assert len(cluster.node.stored("queue")) == 2
    crashed = Cluster.__new__(Cluster)
    crashed.node = cluster.node.restart()
    assert sorted(crashed.take()) == [("n2", payload, [SHARED], False) for payload in payloads(3)[1:]]


@pytest.mark.parametrize("how", ["acknowledge", "drop", "others go"])
def test_a_part_without_members_ends_when_nothing_is_kept_for_others(cluster, how):
    cluster.tell("n2", 0, True)
    member = cluster.node.connect("a", 5)
    member.subscribe(SHARED)
    cluster.publish(1)
    member.unsubscribe(SHARED)
    cluster.node.advance(1.0)
    assert SHARED in cluster.node.owner._groups.all
    if how == "acknowledge":
        member.acknowledge(1)
    elif how == "drop":
        member.drop()
    else:
        cluster.forget()
    cluster.node.advance(1.0)
    assert cluster.node.owner._groups.all == {}
    assert cluster.node.stored("queue") == cluster.node.stored("session") == []
    assert cluster.take() == ([("n2", b"0", [SHARED], False)] if how == "drop" else [])
    assert cluster.node.dropped("group_ended") == 0


# What comes from other nodes.


def come(cluster, qos=1, shared_filter=SHARED):
    message = Message(b"t", b"came", b"", qos, False, 0.0, "c", b"o" * 16, 9 if qos else 0)
    cluster.node.owner.receive_for_groups(message, [shared_filter], cluster.node.now)
    cluster.node.settle()


def test_what_comes_for_one_group_is_for_no_other(cluster):
    members = []
    for name, topic_filter in (("a", SHARED), ("b", b"$share/h/t"), ("c", b"t")):
        members.append(cluster.node.connect(name, 5))
        members[-1].subscribe(topic_filter)
    come(cluster)
    assert [member.take_payloads() for member in members] == [[b"came"], [], []]
    cluster.node.owner.receive_forwarded(Message(b"t", b"plain"), cluster.node.now)
    cluster.node.settle()
    assert [member.take_payloads() for member in members] == [[], [], [b"plain"]]


@pytest.mark.parametrize("members", [False, True])
def test_what_nobody_here_can_have_goes_on(cluster, members):
    if members:
        member = cluster.node.persistent("a")
        member.subscribe(SHARED)
        member.drop()
    cluster.tell("n3", 1)
    come(cluster)
    assert cluster.take() == [("n3", b"came", [SHARED], False)]
    (forward,) = [each for turn in cluster.node.turns for each in turn.to_peers]
    assert (forward.message.origin, forward.message.number) == (b"o" * 16, 9), "it is the same message"


def test_what_is_for_nobody_anywhere_is_counted(cluster):
    come(cluster, qos=0)
    assert cluster.node.dropped("group_ended") == 0
    come(cluster)
    assert cluster.node.dropped("group_ended") == 1
    cluster.complete = False
    come(cluster)
    assert len(cluster.node.stored("queue")) == 1, "who is not heard may have members"
    cluster.tell("n2", 0, True)
    assert cluster.take() == [("n2", b"came", [SHARED], False)]
    assert cluster.node.stored("queue") == []


def test_who_could_have_what_a_dead_node_was_to_have(cluster):
    message = Message(b"t", b"x", qos=1)
    can_move = cluster.node.owner.can_move
    assert not can_move(SHARED, message)
    cluster.tell("dead", 5, True, running=False)
    assert not can_move(SHARED, message)
    cluster.tell("n2", 0, True)
    assert can_move(SHARED, message)
    cluster.forget()
    cluster.node.persistent("a").subscribe(SHARED)
    assert can_move(SHARED, message)


def test_what_concerns_this_node_alone_is_for_its_members(cluster):
    cluster.tell("n2", 1, shared_filter=b"$share/g/$SYS/#")
    member = cluster.node.connect("a", 5)
    member.subscribe(b"$share/g/$SYS/#")
    cluster.node.owner.publish_here(Message(b"$SYS/x", b"1"), cluster.node.now)
    cluster.node.settle()
    assert member.take_payloads() == [b"1"]
    assert cluster.take() == []
