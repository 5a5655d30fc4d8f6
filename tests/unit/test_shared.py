"""broker.core.shared: the group by itself, and shared subscriptions as clients see them."""

from collections import Counter

import pytest
from core_helpers import Node
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.events import ConnectionPaused, ConnectionResumed, UnsubscribeReceived
from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.session import Attachment, Session
from broker.core.settings import OwnerSettings
from broker.core.shared import SharedGroup
from broker.core.subscription import subscription
from broker.mqtt.packets import Connect, Disconnect, Puback, Publish, Pubrec, Subscribe, SubscriptionRequest
from broker.mqtt.properties import Property
from broker.mqtt.reasons import Reason

RECEIVE_MAXIMUM = int(Property.RECEIVE_MAXIMUM)
PACKET_BYTES_MAX = int(Property.MAXIMUM_PACKET_SIZE)
IDENTIFIER = int(Property.SUBSCRIPTION_IDENTIFIER)
MESSAGE_EXPIRY = int(Property.MESSAGE_EXPIRY_INTERVAL)
SHARED = b"$share/g/a"
LARGE = b"x" * 600
SIZES = pytest.mark.parametrize("size", [0, 600], ids=["small", "large"])


def group_of(node: Node, shared_filter: bytes = SHARED) -> SharedGroup:
    return node.owner._groups.all[shared_filter]


def publish(node: Node, count: int, qos: int = 1, size: int = 0, first: int = 0, **options) -> None:
    publisher = node.connect(f"p{first}", 5)
    for number in range(first, first + count):
        publisher.say(Publish(b"a", b"%d" % number + b"x" * size, qos, packet_id=number + 1 if qos else 0, **options))
    node.settle()


def numbers(packets) -> list[int]:
    return [int(packet.payload.rstrip(b"x")) for packet in packets]


def work(client) -> list[int]:
    """What a member hears that acknowledges at once."""
    heard = []
    while packets := client.take_publishes():
        heard += numbers(packets)
        for packet in packets:
            if packet.qos:
                client.say(Puback(packet.packet_id))
        client.node.settle()
    return heard


# The group by itself.


def asked(group: SharedGroup) -> list[Session]:
    """The connected members in the order in which they are asked."""
    return [group.in_turn(place) for place in range(len(group.online))]


def connect(session: Session) -> None:
    session.attach(Attachment(session.number, Outlet(0, 1, 1000), session, 5, 0))


def members(count: int) -> tuple[SharedGroup, list[Session]]:
    group = SharedGroup(1, b"$share/g/a/+")
    sessions = [Session(number + 2, f"c{number}", None, 0, 20) for number in range(count)]
    for session in sessions:
        group.set_member(session, subscription(1))
    return group, sessions


def test_a_group_has_the_name_and_the_filter():
    group, _ = members(0)
    assert (group.shared_filter, group.topic_filter) == (b"$share/g/a/+", b"a/+")
    assert asked(group) == []
    assert group.is_persistent(), "what it holds is another node's to have"


def test_members_know_their_group():
    group, (one, two) = members(2)
    group.set_member(one, subscription(2))
    assert one.groups == [group]
    assert group.members[one].options == 2
    assert list(group.members) == [one, two]
    group.remove_member(one)
    assert one.groups == []
    assert list(group.members) == [two]
    assert not group.is_persistent()
    one.persistent = True
    for options in (1, 2):
        group.set_member(one, subscription(options))
    assert group.is_persistent()
    group.remove_member(one)
    assert not group.is_persistent()


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "connect", "drop", "serve"]), st.integers(0, 5))))
def test_connected_members_stand_in_one_line(steps):
    """Who comes stands behind the others, who was served stands behind them again, and who goes changes nobody's place.

    What the group counts by the way is compared with all of its members.
    """
    group, sessions = members(0)[0], members(6)[1]
    for session in sessions:
        session.groups.clear()
        session.persistent = session.number % 2 == 0
    line: list[Session] = []
    for what, number in steps:
        session = sessions[number]
        if what == "join" and session not in group.members:
            group.set_member(session, subscription(1))
            line += [session] if session.attachment else []
        elif what == "leave" and session in group.members:
            group.remove_member(session)
            line = [other for other in line if other is not session]
        elif what == "connect" and session.attachment is None:
            connect(session)
            line += [session] if session in group.members else []
        elif what == "drop" and session.attachment is not None:
            session.detach()
            line = [other for other in line if other is not session]
        elif what == "serve" and number < len(line):
            group.pass_turn(number + 1)
            line = line[number + 1 :] + line[: number + 1]
        group.validate()
        assert asked(group) == line


def test_places_only_grow():
    group, _ = members(0)
    assert [group.take_seq() for _ in range(3)] == [1, 2, 3]
    group.queue.push(Delivery(group.take_seq(), Message(b"a", b""), 1))
    assert group.queue.head().seq == 4


# Who gets what.


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one_member_and_to_each_group(node, qos):
    """[MQTT-4.8.2-4] of 5.0; other subscriptions are another matter."""
    clients = [node.connect(f"c{number}", 5, listener=number % 2) for number in range(5)]
    for number, client in enumerate(clients):
        client.subscribe((b"$share/g/a", b"$share/g/a", b"$share/h/a", b"$share/h/#", b"a")[number], qos)
    publish(node, 10, qos)
    heard = [numbers(client.take_publishes()) for client in clients]
    assert sorted(heard[0] + heard[1]) == list(range(10))
    assert heard[2] == heard[3] == heard[4] == list(range(10))


def test_members_take_turns(node):
    clients = [node.connect(f"c{number}", listener=number % 2) for number in range(3)]
    for client in clients:
        client.subscribe(SHARED, 0)
    publish(node, 30, 0)
    assert [len(client.take()) for client in clients] == [10, 10, 10]


def test_the_turn_of_a_member_that_can_take_nothing_is_everybodys_gain(node):
    """Not that of the one who stands behind it."""
    clients = [node.connect(f"c{number}") for number in range(4)]
    for client in clients:
        client.subscribe(SHARED, 0)
    node.owner.receive(ConnectionPaused(clients[1].key), node.now)
    publish(node, 30, 0)
    assert [len(client.take()) for client in clients] == [10, 0, 10, 10]
    clients[0].unsubscribe(SHARED)
    publish(node, 10, 0)
    assert [len(client.take()) for client in clients] == [0, 0, 5, 5]


@given(
    st.lists(st.tuples(st.sampled_from([*["publish"] * 3, "pause", "resume", "drop", "connect"]), st.integers(0, 4)))
)
@settings(deadline=None, max_examples=50)
def test_each_message_goes_to_the_first_in_line_that_can_take_it(steps):
    """Compared with a line of all who are connected, of which everybody is asked for every message."""
    node = Node()
    clients = [node.persistent(f"c{number}", listener=number % 2) for number in range(5)]
    for client in clients:
        client.subscribe(SHARED, 0)
    publisher = node.connect("p")
    line = list(range(5))
    paused: set[int] = set()
    for what, number in steps:
        if what == "publish":
            free = [other for other in line if other not in paused]
            if not free:
                continue
            publisher.publish(b"a")
            place = line.index(free[0]) + 1
            line = line[place:] + line[:place]
            assert [other for other in range(5) if clients[other].take_publishes()] == free[:1]
        elif what in ("pause", "resume") and number in line:
            event = ConnectionPaused if what == "pause" else ConnectionResumed
            node.owner.receive(event(clients[number].key), node.now)
            (paused.add if what == "pause" else paused.discard)(number)
        elif what == "drop" and number in line:
            clients[number].drop()
            line.remove(number)
            paused.discard(number)
        elif what == "connect" and number not in line:
            clients[number] = node.persistent(f"c{number}", listener=number % 2)
            line.append(number)


def test_the_qos_of_the_member_that_gets_it(node):
    """[MQTT-3.8.4-8]"""
    clients = [node.connect(f"c{qos}", 5) for qos in range(3)]
    for qos, client in enumerate(clients):
        client.subscribe(SHARED, qos)
    publish(node, 6, 2)
    for qos, client in enumerate(clients):
        assert [packet.qos for packet in client.take_publishes()] == [qos, qos]
    publish(node, 3, 0)
    assert [packet.qos for client in clients for packet in client.take_publishes()] == [0, 0, 0]


def test_the_member_that_gets_it_is_told_its_own_identifier(node):
    """[MQTT-3.3.4-3]"""
    clients = [node.persistent(f"c{number}") for number in (1, 2)]
    for identifier, client in enumerate(clients, 1):
        client.send(Subscribe(7, (SubscriptionRequest(SHARED, 1),), {IDENTIFIER: [identifier]}))
        client.take()
    publish(node, 2)
    for world in (node, node.restart()):
        for identifier in (1, 2):
            client = clients[identifier - 1] if world is node else world.persistent(f"c{identifier}")
            (packet,) = client.take_publishes()
            assert packet.properties == {IDENTIFIER: [identifier]}


def test_no_local_is_refused(node):
    """[MQTT-3.8.3-4]"""
    client = node.connect("c", 5)
    client.send(Subscribe(7, (SubscriptionRequest(SHARED, 1, no_local=True),)))
    (packet,) = client.take()
    assert isinstance(packet, Disconnect)
    assert packet.reason == Reason.PROTOCOL_ERROR


def test_retained_messages_are_not_for_shared_subscriptions(node):
    """[MQTT-4.8.2] of 5.0: they are no new messages."""
    node.connect("p").publish(b"a", retain=True)
    client = node.connect("c", 5)
    assert client.subscribe(SHARED) == (1,)
    assert client.take() == []


# Members that can't.


def test_a_member_that_is_away_hoards_nothing(node):
    away, here = node.persistent("away"), node.persistent("here")
    for client in (away, here):
        client.subscribe(SHARED)
    away.drop()
    publish(node, 10)
    assert work(here) == list(range(10))
    assert node.persistent("away").take() == []
    assert node.stored("queue") == []


def test_a_member_that_pauses_hoards_nothing(node):
    slow, fast = node.connect("slow"), node.connect("fast")
    for client in (slow, fast):
        client.subscribe(SHARED)
    node.owner.receive(ConnectionPaused(slow.key), node.now)
    publish(node, 50)
    assert sorted(work(fast)) == list(range(50))
    node.owner.receive(ConnectionResumed(slow.key), node.now)
    publish(node, 2, first=50)
    assert len(slow.take()) == 1


def test_a_member_without_credit_hoards_nothing(start):
    node = start(settings=OwnerSettings(listener_window_bytes=4000))
    slow, fast = node.connect("slow", listener=1), node.connect("fast")
    for client in (slow, fast):
        client.subscribe(SHARED)
    node.credit_held.add(1)
    publish(node, 100, size=200)
    heard = numbers(slow.take()) + work(fast)
    assert sorted(heard) == list(range(100))


def test_full_windows_fill_the_group_and_whoever_is_free_goes_on(node):
    clients = [node.connect(f"c{number}", 5, properties={RECEIVE_MAXIMUM: 2}) for number in range(2)]
    for client in clients:
        client.subscribe(SHARED)
    publish(node, 10)
    first = [client.take_publishes() for client in clients]
    assert [len(packets) for packets in first] == [2, 2]
    assert len(group_of(node).queue) == 6
    assert all(len(client.take()) == 0 for client in clients)
    clients[1].acknowledge(*[packet.packet_id for packet in first[1]])
    assert work(clients[1]) == [4, 5, 6, 7, 8, 9]
    assert clients[0].take() == []


def test_qos0_passes_a_full_window_but_not_what_waits(node):
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(SHARED)
    publish(node, 1)
    publish(node, 1, 0, first=1)
    assert numbers(client.take_publishes()) == [0, 1]
    publish(node, 1, first=2)
    publish(node, 1, 0, first=3)
    assert client.take() == []
    client.acknowledge(1)
    assert numbers(client.take_publishes()) == [2, 3]


def test_a_new_member_takes_what_waits(node):
    slow = node.persistent("slow")
    slow.subscribe(SHARED)
    slow.drop()
    publish(node, 100)
    new = node.connect("new")
    new.take()
    new.send(Subscribe(7, (SubscriptionRequest(SHARED, 1),)))
    publishes = [packet for packet in new.take() if isinstance(packet, Publish)]
    new.acknowledge(*[packet.packet_id for packet in publishes])
    assert numbers(publishes) + work(new) == list(range(100))


def test_what_was_sent_stays_with_its_member(node):
    """[MQTT-4.8.2-5]: QoS 2 is completed with the client that it was begun with."""
    one, two = node.persistent("one"), node.persistent("two")
    one.subscribe(SHARED, 2)
    publish(node, 1, 2)
    one.take()
    one.drop()
    two.subscribe(SHARED, 2)
    assert two.take() == []
    (again,) = node.persistent("one").take_publishes()
    assert again.dup


def test_a_refusal_by_a_member_asks_no_other(node):
    """[MQTT-4.8.2-6]"""
    one, two = node.connect("one", 5), node.connect("two", 5)
    one.subscribe(SHARED, 2)
    publish(node, 1, 2)
    two.subscribe(SHARED, 2)
    one.send(Pubrec(one.take()[0].packet_id, Reason.NOT_AUTHORIZED))
    assert one.take() == two.take() == []


# The group's queue.


@SIZES
def test_the_queue_of_a_group_is_stored_and_recovered(start, size):
    node = start(settings=OwnerSettings(max_offline_messages=-1))
    for name in ("one", "two"):
        client = node.persistent(name)
        client.subscribe(SHARED)
        client.drop()
    publish(node, 2000, size=size)
    assert group_of(node).queue.in_memory() < 1000
    for world in (node, node.restart()):
        assert len(group_of(world).queue) == 2000
        assert work(world.persistent("two")) == list(range(2000))
        assert work(world.persistent("one")) == []
        world.validate()
        assert world.stored("queue") == world.stored("message") == []
    again = node.restart()
    assert len(group_of(again).members) == 2


@SIZES
def test_two_members_share_a_long_queue(start, size):
    node = start(settings=OwnerSettings(max_offline_messages=-1))
    for name in ("one", "two"):
        client = node.persistent(name)
        client.subscribe(SHARED)
        client.drop()
    publish(node, 1500, size=size)
    node = node.restart()
    clients = [node.persistent(name, properties={RECEIVE_MAXIMUM: 5}) for name in ("one", "two")]
    heard: list[int] = []
    while True:
        taken = [client.take_publishes() for client in clients]
        if not any(taken):
            break
        for client, packets in zip(clients, taken, strict=True):
            assert len(packets) <= 5
            heard += numbers(packets)
            for packet in packets:
                client.say(Puback(packet.packet_id))
        node.settle()
    assert Counter(heard) == Counter(range(1500))


def test_nothing_of_a_group_of_clean_sessions_is_written(node):
    client = node.connect("c", 5, properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(SHARED)
    publish(node, 10)
    assert not any(len(effects.writes) for effects in node.turns)
    assert len(group_of(node).queue) == 9


@pytest.mark.parametrize("how", ["unsubscribe", "clean start", "expiry", "disconnect"])
def test_the_last_member_takes_the_queue_with_it(node, how):
    client = node.persistent("c", properties={RECEIVE_MAXIMUM: 1})
    client.subscribe(SHARED)
    publish(node, 10, size=600)
    if how == "unsubscribe":
        assert client.unsubscribe(SHARED) == (0,)
    elif how == "clean start":
        node.connect("c", 5)
    elif how == "disconnect":
        client.disconnect(expiry_s=0)
    else:
        client.drop()
        node.advance(4000)
    # What was in flight stays with a session that goes on.
    assert node.dropped("group_ended") == (9 if how == "unsubscribe" else 10)
    assert node.owner._groups.all == {}
    assert node.owner.counts()["shared_subscriptions"] == 0
    assert len(node.stored("queue")) == (1 if how == "unsubscribe" else 0)
    node.validate()
    publish(node, 1)


def test_a_member_that_unsubscribes_leaves_the_rest_to_the_others(node):
    one, two = (node.persistent(name, properties={RECEIVE_MAXIMUM: 1}) for name in ("one", "two"))
    for client in (one, two):
        client.subscribe(SHARED)
    publish(node, 10)
    (first,) = one.take_publishes()
    (second,) = two.take_publishes()
    assert one.unsubscribe(SHARED) == (0,)
    one.acknowledge(first.packet_id)
    assert one.take() == []
    two.acknowledge(second.packet_id)
    assert work(two) == list(range(2, 10))


def test_a_restart_forgets_a_group_that_only_clean_sessions_are_left_of(node):
    one, two = node.persistent("one", expiry_s=10), node.connect("two", 5, properties={RECEIVE_MAXIMUM: 1})
    for client in (one, two):
        client.subscribe(SHARED)
    one.drop()
    publish(node, 5)
    node.advance(10)
    assert len(node.stored("queue")) == 5
    restarted = node.restart()
    assert restarted.owner._groups.all == {}
    assert restarted.stored("queue") == restarted.stored("session") == []
    assert restarted.dropped("group_ended") == 5


def test_order_is_kept_when_the_last_persistent_member_goes(start):
    """What was stored is older than what comes after; it must not be passed while it is in the store only."""
    node = start(settings=OwnerSettings(max_online_messages=-1, max_inflight_messages=0))
    one, two = node.persistent("one", expiry_s=10), node.connect("two")
    for client in (one, two):
        client.subscribe(SHARED)
    one.drop()
    node.owner.receive(ConnectionPaused(two.key), node.now)
    publish(node, 600)
    node.advance(10)
    publish(node, 10, first=600)
    node.owner.receive(ConnectionResumed(two.key), node.now)
    node.settle()
    assert numbers(two.take_publishes()) == list(range(610))


def test_the_limit_of_a_group(start):
    """One limit however many members are away; counted, and told once."""
    node = start(settings=OwnerSettings(max_offline_messages=10, max_online_messages=3))
    for name in ("one", "two"):
        client = node.persistent(name)
        client.subscribe(SHARED)
        client.drop()
    publish(node, 15)
    assert node.dropped("queue_full") == 5
    notices = node.owner.take_notices()
    assert len(notices) == 1
    assert "$share/g/a" in notices[0]
    assert work(node.persistent("one")) == list(range(10))


def test_qos0_waits_for_members_that_are_connected_only(node):
    client = node.persistent("c")
    client.subscribe(SHARED)
    node.owner.receive(ConnectionPaused(client.key), node.now)
    publish(node, 3, 0)
    assert len(group_of(node).queue) == 3
    client.drop()
    assert node.dropped("offline_qos0") == 3
    publish(node, 3, 0)
    assert node.persistent("c").take() == []


def test_what_expired_in_the_group(node):
    client = node.persistent("c")
    client.subscribe(SHARED)
    client.drop()
    publish(node, 3, properties={MESSAGE_EXPIRY: 5})
    publish(node, 2, first=3)
    node.advance(5)
    for world in (node, node.restart()):
        assert work(world.persistent("c")) == [3, 4]
        assert world.dropped("expired") == 3
        assert world.stored("queue") == []


# A member's session ends.


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("size", [10, 700])
def test_what_was_in_flight_to_a_session_that_ended_is_anothers(node, restarted, size):
    """Section 4.8.2: with QoS 1; with QoS 2 it is nobody's [MQTT-4.8.2-5]."""
    leaver = node.persistent("leaver")
    leaver.subscribe(SHARED, 2)
    publish(node, 2, size=size)
    publish(node, 1, qos=2, first=2, size=size)
    assert numbers(leaver.take_publishes()) == [0, 1, 2]
    stayer = node.persistent("stayer")
    stayer.subscribe(SHARED, 2)
    stayer.drop()
    leaver.drop()
    world = node.restart() if restarted else node
    world.connect("leaver", 5).drop()
    stayer = world.persistent("stayer")
    assert work(stayer) == [0, 1]
    assert world.stored("queue") == world.stored("message") == []


def test_a_clean_member_that_goes_leaves_its_work_to_the_others(node):
    clean, stayer = node.connect("clean", 5), node.connect("stayer", 5)
    for client in (clean, stayer):
        client.subscribe(SHARED)
    publish(node, 4)
    mine, others = numbers(stayer.take_publishes()), numbers(clean.take_publishes())
    clean.drop()
    assert sorted(mine + others) == [0, 1, 2, 3]
    assert numbers(stayer.take_publishes()) == others


def away(node: Node, name: str = "stayer", qos: int = 1, **options) -> None:
    """A member whose session outlives its connection, and that is not there."""
    client = node.persistent(name, **options)
    client.subscribe(SHARED, qos)
    client.drop()


def clean(node: Node, qos: int = 1, **options):
    """A member whose session ends with its connection."""
    client = node.connect("clean", 5, **options)
    client.subscribe(SHARED, qos)
    return client


@SIZES
@pytest.mark.parametrize("waited", [False, True], ids=["sent at once", "from the queue"])
def test_what_a_clean_member_had_survives_a_crash(node, size, waited):
    """The publisher was told that the group has it, and the member's session ends with the process."""
    away(node)
    if not waited:
        member = clean(node)
    publish(node, 3, size=size)
    if waited:
        member = node.connect("clean", 5)
        member.send(Subscribe(7, (SubscriptionRequest(SHARED, 1),)))
    heard = [packet for packet in member.take() if isinstance(packet, Publish)]
    assert numbers(heard) == [0, 1, 2]
    member.acknowledge(heard[1].packet_id)
    restarted = node.restart()
    restarted.validate()
    assert work(restarted.persistent("stayer")) == [0, 2]
    assert restarted.stored("queue") == restarted.stored("message") == []
    # Without a crash it is the same, and what the group kept goes with the acknowledgements.
    member.drop()
    node.validate()
    again = node.persistent("stayer").take_publishes()
    assert numbers(again) == [0, 2]
    assert not any(packet.dup for packet in again)
    node.persistent("stayer").acknowledge(*[packet.packet_id for packet in again])
    assert node.stored("queue") == node.stored("message") == []


@SIZES
def test_nothing_stays_of_what_a_clean_member_acknowledged(node, size):
    away(node)
    member = clean(node)
    publish(node, 3, size=size)
    assert len(node.stored("queue")) == 3
    assert work(member) == [0, 1, 2]
    assert node.stored("queue") == node.stored("message") == []
    assert work(node.restart().persistent("stayer")) == []


@SIZES
def test_a_clean_member_hands_over_to_a_clean_member(node, size):
    """And the group keeps it still."""
    away(node)
    member = clean(node)
    publish(node, 2, size=size)
    assert numbers(member.take_publishes()) == [0, 1]
    heir = node.connect("heir", 5)
    heir.subscribe(SHARED)
    member.drop()
    assert len(node.stored("queue")) == 2
    assert work(node.restart().persistent("stayer")) == [0, 1]
    assert work(heir) == [0, 1]
    assert node.stored("queue") == node.stored("message") == []


@SIZES
def test_what_was_kept_stands_before_a_queue_that_goes_on_in_the_store(start, size):
    node = start(settings=OwnerSettings(max_offline_messages=-1, max_online_messages=-1, max_inflight_messages=0))
    away(node)
    member = clean(node, properties={RECEIVE_MAXIMUM: 2})
    publish(node, 1000, size=size)
    first = member.take_publishes()
    assert numbers(first) == [0, 1]
    assert len(node.stored("queue")) == 1000
    member.acknowledge(first[0].packet_id)
    assert work(node.restart().persistent("stayer")) == list(range(1, 1000))
    node.persistent("stayer")
    node.validate()


@SIZES
@pytest.mark.parametrize("persistent", [False, True])
def test_what_a_member_had_when_it_unsubscribed_is_its_own_until_its_session_ends(node, size, persistent):
    """[MQTT-3.10.4-3], and section 4.8.2 after that."""
    away(node)
    member = node.persistent("member") if persistent else node.connect("member", 5)
    member.subscribe(SHARED)
    publish(node, 2, size=size)
    (first, _) = member.take_publishes()
    assert member.unsubscribe(SHARED) == (0,)
    assert node.persistent("stayer").take() == []
    member.acknowledge(first.packet_id)
    member.drop()
    for world in (node, node.restart()):
        if persistent:
            world.connect("member", 5).drop()
        assert work(world.persistent("stayer")) == [1]
        assert world.stored("queue") == world.stored("message") == []


@SIZES
def test_a_group_that_ends_keeps_nothing_of_what_was_given(node, size):
    away(node)
    member = clean(node)
    publish(node, 2, size=size)
    heard = member.take_publishes()
    assert member.unsubscribe(SHARED) == (0,)
    assert len(node.stored("queue")) == 2
    assert node.persistent("stayer").unsubscribe(SHARED) == (0,)
    assert node.stored("queue") == node.stored("message") == []
    # Another group of the name knows nothing of it.
    away(node)
    member.acknowledge(heard[0].packet_id)
    node.validate()
    member.drop()
    assert work(node.persistent("stayer")) == [1]


@pytest.mark.parametrize("received", [False, True])
@pytest.mark.parametrize("how", ["goes", "crash"])
def test_nobody_gets_what_was_begun_at_qos2_with_a_clean_member(node, received, how):
    """[MQTT-4.8.2-5]: whether its PUBREC came or not."""
    away(node, qos=2)
    member = clean(node, 2)
    publish(node, 1, 2)
    (packet,) = member.take_publishes()
    if received:
        member.send(Pubrec(packet.packet_id))
    if how == "goes":
        member.drop()
        world = node
    else:
        world = node.restart()
    assert world.persistent("stayer").take() == []
    assert world.stored("queue") == []


@pytest.mark.parametrize("restarted", [False, True])
def test_a_message_that_the_leaver_released_is_nobodys(node, restarted):
    """[MQTT-4.8.2-5]: it has the message, and what it owes is a PUBCOMP."""
    away(node, qos=2)
    leaver = node.persistent("leaver")
    leaver.subscribe(SHARED, 2)
    publish(node, 1, 2)
    (packet,) = leaver.take_publishes()
    leaver.send(Pubrec(packet.packet_id))
    world = node.restart() if restarted else node
    world.connect("leaver", 5).drop()
    assert world.persistent("stayer").take() == []
    assert world.stored("queue") == []


def test_what_expired_while_a_member_had_it_is_not_begun_with_another(node):
    """[MQTT-3.3.2-5]"""
    stayer, member = node.connect("stayer", 5), node.connect("clean", 5)
    member.subscribe(SHARED)
    publish(node, 1, properties={MESSAGE_EXPIRY: 5})
    publish(node, 1, first=1)
    assert numbers(member.take_publishes()) == [0, 1]
    stayer.subscribe(SHARED)
    node.advance(5)
    member.drop()
    assert work(stayer) == [1]
    assert node.dropped("expired") == 1


def test_what_was_published_at_qos0_is_not_kept(start):
    """Where QoS is upgraded, too: nobody was promised anything."""
    node = start(settings=OwnerSettings(upgrade_outgoing_qos=True))
    away(node)
    member = clean(node)
    publish(node, 2, 0)
    assert [packet.qos for packet in member.take_publishes()] == [1, 1]
    assert node.stored("queue") == []
    assert node.restart().persistent("stayer").take() == []


def test_what_a_group_took_before_it_outlived_anything_is_not_kept(node):
    """Its place among what is stored would be wrong, and nobody was promised it."""
    member = clean(node, properties={RECEIVE_MAXIMUM: 1})
    publish(node, 2)
    assert numbers(member.take_publishes()) == [0]
    stayer = node.persistent("stayer")
    node.owner.receive(ConnectionPaused(stayer.key), node.now)
    stayer.subscribe(SHARED)
    stayer.drop()
    publish(node, 1, first=2)
    for number in (1, 2):
        member.acknowledge(number)
        assert numbers(member.take_publishes()) == [number]
        assert len(node.stored("queue")) == 1
    assert work(node.restart().persistent("stayer")) == [2]
    member.drop()
    assert work(node.persistent("stayer")) == [2]


# Maximum Packet Size.


def test_too_large_for_one_member_is_for_another(node):
    """[MQTT-3.1.2-24], and the comment there on shared subscriptions."""
    small, large = node.connect("small", 5, properties={PACKET_BYTES_MAX: 50}), node.connect("large", 5)
    for client in (small, large):
        client.subscribe(SHARED)
    publish(node, 4, size=100)
    assert numbers(large.take_publishes()) == [0, 1, 2, 3]
    assert small.take() == []
    assert node.owner.counters.dropped == {}


def test_too_large_for_every_member_that_is_free_holds_up_nothing(node):
    """It is dropped as if it had been sent [MQTT-3.1.2-25]; what comes after it is not left behind it."""
    small = node.persistent("small", properties={PACKET_BYTES_MAX: 50})
    small.subscribe(SHARED)
    publish(node, 1, size=100)
    publish(node, 2, first=1)
    assert work(small) == [1, 2]
    assert node.dropped("max_packet_size_exceeded") == 1
    assert len(group_of(node).queue) == 0


def test_too_large_for_who_is_free_waits_for_nobody(node):
    small = node.connect("small", 5, properties={PACKET_BYTES_MAX: 50})
    large = node.connect("large", 5, properties={RECEIVE_MAXIMUM: 1})
    for client in (small, large):
        client.subscribe(SHARED)
    node.owner.receive(ConnectionPaused(large.key), node.now)
    publish(node, 1, size=100)
    publish(node, 1, first=1)
    assert work(small) == [1]
    assert node.dropped("max_packet_size_exceeded") == 1


def test_a_group_that_wants_to_read_on_may_end_in_that_turn(start):
    """It came back from a restart; its only member attaches and unsubscribes before anything is read."""
    node = start(settings=OwnerSettings(max_offline_messages=-1))
    member = node.persistent("a")
    member.subscribe(b"$share/g/t")
    member.drop()
    publisher = node.connect("p")
    for _ in range(700):
        publisher.publish(b"t", qos=1)
    restarted = node.restart()
    member = restarted.open(0, 5)
    member.say(Connect(5, "a", False, 0, properties={int(Property.SESSION_EXPIRY_INTERVAL): 3600}))
    restarted.receive_frame(restarted.listeners[0].take_frame())
    restarted.owner.receive(UnsubscribeReceived(member.key, 8, [b"$share/g/t"]), restarted.now)
    restarted.settle()
    restarted.validate()
    assert restarted.dropped("group_ended") == 700
    assert restarted.stored("queue") == []
