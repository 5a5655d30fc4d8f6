"""4.8 Subscriptions: shared ones."""

import hex_packets
import pytest
from hex_packets import publish, spaced, suback, subscribe

SHARED = "$share/group/a"


def members(broker, version, *qos, shared=SHARED, **options):
    """Members of the group whose sessions stay, each with its granted QoS."""
    clients = []
    for number, granted in enumerate(qos):
        client = broker.stay(version, f"m{number}", **options)
        client.subscribe(shared, granted)
        clients.append(client)
    return clients


def test_they_are_granted(broker, version):
    """[MQTT-3.8.4-7] [MQTT311-3.8.4-5]: though 3.1.1 knows nothing of them."""
    client = broker.connect(version)
    heard = client.say(subscribe(version, 1, (SHARED, 0), ("$share/other/a", 1), ("$share/group/#", 2)))
    assert heard == spaced(suback(version, 1, "00 01 02"))


@pytest.mark.parametrize("group", ["g", "group name", "g.1", "$g", "\u6f22"])
def test_group_names(broker, group):
    """[MQTT-4.8.2-1] [MQTT-4.8.2-2]: any characters but /, + and #, and at least one."""
    client = broker.connect(5)
    client.subscribe(f"$share/{group}/a/+", 0)
    broker.connect(5, "p").publish("a/b")
    assert client.hear() == spaced(publish(5, "a/b"))


@pytest.mark.parametrize(
    "topic_filter",
    [
        "$share/",
        "$share//a",
        "$share/g",
        "$share/g/",
        "$share/+/a",
        "$share/g#/a",
        "$share/g+/a",
        "$share/#",
        "$share/#/a",
    ],
)
def test_bad_ones_close(broker, version, topic_filter):
    """[MQTT-4.8.2-1] [MQTT-4.8.2-2]"""
    assert broker.connect(version).fails(subscribe(version, 1, (topic_filter, 0)), "82")
    assert broker.connect(version).fails(hex_packets.unsubscribe(version, 1, topic_filter), "82")


def test_the_word_alone_is_refused(broker, version):
    """[MQTT-3.9.3-2] [MQTT311-3.9.3-2]: it is a filter, of a topic that is the server's; nobody can have meant it."""
    heard = broker.connect(version).say(subscribe(version, 1, ("$share", 0), ("$shared", 0), ("$share0/a", 0)))
    assert heard == spaced(suback(version, 1, {4: "80 00 00", 5: "8f 00 00"}[version]))


@pytest.mark.parametrize("published", [0, 1, 2])
def test_each_message_goes_to_one_member_with_the_qos_granted_to_it(broker, version, published):
    """[MQTT-4.8.2-3] [MQTT-3.8.4-8] [MQTT311-3.8.4-6]"""
    clients = members(broker, version, 0, 1, 2)
    publisher = broker.connect(4, "p")
    for number in range(6):
        publisher.publish("a", str(number), published, packet_id=number + 1)
    heard = [client.hear() for client in clients]
    for granted, said in enumerate(heard):
        qos = min(published, granted)
        payloads = [number for number in range(6) if f"{0x30 + number:02x}" == said.split()[-1]]
        assert len(payloads) == 1
        firsts = [publish(version, "a", str(number), qos, 1) for number in range(6)]
        seconds = [publish(version, "a", str(payloads[0]), qos, 2)]
        assert said.replace(" ", "") in [first + second for first in firsts for second in seconds]
    assert sorted(digit for said in heard for digit in payloads_of(said, version)) == list("012345")


def payloads_of(heard, version):
    """The payloads of one character, of PUBLISHes of the topic a."""
    data = bytes.fromhex(heard)
    found = []
    while data:
        size = 2 + data[1]
        assert data[0] & 0xF0 == 0x30
        found.append(chr(data[size - 1]))
        data = data[size:]
    return found


def test_groups_and_other_subscriptions_each_get_it(broker, version):
    """4.8.2: one copy for each group, and one for the subscriptions that are not shared."""
    first, second, plain = (broker.connect(version, name) for name in ("1", "2", "3"))
    first.subscribe("$share/one/a", 0)
    second.subscribe("$share/two/+", 0)
    plain.subscribe("a", 0)
    broker.connect(4, "p").publish("a")
    assert [client.hear() for client in (first, second, plain)] == [spaced(publish(version, "a"))] * 3


def test_a_member_that_is_away_does_not_get_what_another_can(broker, version):
    """4.8.2: who is connected is asked first."""
    away, here = members(broker, version, 1, 1)
    away.drop()
    publisher = broker.connect(4, "p")
    for number in range(4):
        publisher.publish("a", str(number), 1)
    assert payloads_of(here.hear(), version) == list("0123")
    assert broker.stay(version, "m0").hear() == ""


def test_what_nobody_can_take_waits_for_whoever_comes_first(broker, version):
    """[MQTT-4.5.0-1] [MQTT311-4.5.0-1]: also for a node that was restarted."""
    for client in members(broker, version, 1, 1):
        client.drop()
    broker.connect(4, "p").publish("a", "1", 1)
    broker.restart()
    assert broker.stay(version, "m1").hear() == spaced(publish(version, "a", "1", 1, 1))
    assert broker.stay(version, "m0").hear() == ""


def in_flight(broker, version, qos):
    """(the member that has the message, its name, the other member), with a message in flight."""
    clients = members(broker, version, qos, qos)
    broker.connect(4, "p").publish("a", "1", qos)
    heard = [client.hear() for client in clients]
    wanted = spaced(publish(version, "a", "1", qos, 1))
    assert sorted(heard) == ["", wanted]
    chosen = heard.index(wanted)
    return clients[chosen], f"m{chosen}", clients[1 - chosen]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_delivery_is_completed_to_its_member(broker, version, qos):
    """[MQTT-4.8.2-4]: when it reconnects; nobody else gets the message meanwhile."""
    chosen, name, other = in_flight(broker, version, qos)
    chosen.drop()
    broker.advance(30)
    assert other.hear() == ""
    chosen = broker.stay(version, name)
    assert chosen.hear() == spaced(publish(version, "a", "1", qos, 1, dup=True))
    if qos == 2:
        assert chosen.say("50 02 0001") == "62 02 00 01"
        chosen.drop()
        chosen = broker.stay(version, name)
        assert chosen.hear() == "62 02 00 01"
        assert chosen.say("70 02 0001") == ""
    else:
        chosen.say("40 02 0001")
    chosen.drop()
    assert broker.stay(version, name).hear() == ""
    assert other.hear() == ""


def test_a_delivery_is_completed_by_a_restarted_node(broker, version):
    """[MQTT-4.8.2-4]"""
    _, name, _ = in_flight(broker, version, 2)
    broker.restart()
    other = broker.stay(version, "m1" if name == "m0" else "m0")
    assert other.hear() == ""
    assert broker.stay(version, name).hear() == spaced(publish(version, "a", "1", 2, 1, dup=True))


@pytest.mark.parametrize("end", ["expiry", "clean start", "goodbye"])
def test_a_delivery_ends_with_its_members_session(broker, end):
    """[MQTT-4.8.2-5]: no other member gets the message."""
    chosen, name, other = in_flight(broker, 5, 2)
    if end == "goodbye":
        chosen.say("e0 07 00 05 11 00000000")
    chosen.drop()
    if end == "expiry":
        broker.advance(61)
    broker.connect(5, name).drop()
    broker.advance(61)
    assert other.hear() == ""
    other.drop()
    assert broker.stay(5, "m1" if name == "m0" else "m0").hear() == ""


@pytest.mark.parametrize("reason", ["80", "83", "87", "90", "91", "97", "99"])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_member_refuses_goes_to_nobody(broker, qos, reason):
    """[MQTT-4.8.2-6]"""
    chosen, name, other = in_flight(broker, 5, qos)
    assert chosen.say(f"{'40' if qos == 1 else '50'} 03 0001 {reason}") == ""
    assert other.hear() == ""
    chosen.drop()
    assert broker.stay(5, name).hear() == ""
    other.drop()
    assert broker.stay(5, "m1" if name == "m0" else "m0").hear() == ""


def test_the_receive_maximum_of_a_member(broker):
    """[MQTT-4.9.0-1] [MQTT-3.3.4-9]: what it can't take goes to who can, or waits."""
    clients = members(broker, 5, 1, 1, properties="210001")
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", str(number), 1)
    heard = [client.hear() for client in clients]
    assert [len(payloads_of(said, 5)) for said in heard] == [1, 1]
    assert clients[1].say("40 02 0001") == spaced(publish(5, "a", "2", 1, 2))


def test_an_unsubscribe_ends_a_membership(broker, version):
    """[MQTT-3.10.4-1] [MQTT-3.10.4-2] [MQTT311-3.10.4-1] [MQTT311-3.10.4-2]: of this group, and only its own."""
    first, second = members(broker, version, 0, 0)
    first.subscribe("a", 0)
    answer = hex_packets.unsuback(version, 2, "00")
    assert first.say(hex_packets.unsubscribe(version, 2, SHARED)) == spaced(answer)
    publisher = broker.connect(4, "p")
    for _ in range(3):
        publisher.publish("a")
        assert [client.hear() for client in (first, second)] == [spaced(publish(version, "a"))] * 2


def test_wildcards_in_a_shared_filter(broker, version):
    """[MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT311-4.7.1-2] [MQTT311-4.7.1-3]: are those of the filter inside."""
    (client,) = members(broker, version, 0, shared="$share/group/a/+/#")
    publisher = broker.connect(4, "p")
    for topic, wanted in (("a/b", True), ("a/b/c/d", True), ("a", False), ("group/a/b", False), ("b/a/b", False)):
        publisher.publish(topic)
        assert client.hear() == (spaced(publish(version, topic)) if wanted else "")
