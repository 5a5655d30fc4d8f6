"""4.3 to 4.6 and 4.9: quality of service, sending again, order, flow control."""

import hex_packets
from core_helpers import StubInterest
from hex_packets import connack, publish, spaced

from broker.core.dispatch import OwnerSettings
from broker.core.routes import NoInterest


def away(broker, version):
    """A connected subscriber of everything, whose session stays."""
    client = broker.stay(version)
    client.subscribe("#", 1)
    return client


# 4.3.1, 4.3.2


def test_qos_0(broker, version):
    """[MQTT-4.3.1-1] [MQTT-3.3.1-2] [MQTT-3.3.4-1] [MQTT-4.5.0-1]: delivered once, not marked, not answered.

    [MQTT311-4.3.1-1] [MQTT311-3.3.1-2] [MQTT311-3.3.4-1] [MQTT311-4.5.0-1]
    """
    client = away(broker, version)
    assert broker.connect(version, "p").publish("a", "x") == ""
    assert client.hear() == spaced(publish(version, "a"))
    client.drop()
    assert broker.stay(version).hear() == ""


def test_qos_1_to_a_subscriber(broker, version):
    """[MQTT-4.3.2-1] [MQTT-4.3.2-2] [MQTT-4.3.2-3] [MQTT311-4.3.2-1]

    A new id, QoS 1, not marked as sent again, and unacknowledged until the PUBACK is there.
    """
    client = away(broker, version)
    publisher = broker.connect(4, "p")
    for number in (1, 2, 3):
        publisher.publish("a", str(number), qos=1)
        assert client.hear() == spaced(publish(version, "a", str(number), 1, number))
    client.say("40 02 0002")
    client.drop()
    client = broker.stay(version)
    again = publish(version, "a", "1", 1, 1, dup=True) + publish(version, "a", "3", 1, 3, dup=True)
    assert client.hear() == spaced(again)
    client.say("40 02 0001 40 02 0003")
    client.drop()
    assert broker.stay(version).hear() == ""


def test_qos_1_from_a_publisher(broker, version):
    """[MQTT-4.3.2-4] [MQTT-3.3.4-1] [MQTT311-4.3.2-2] [MQTT311-3.3.4-1]: acknowledged when somebody owns it."""
    client = away(broker, version)
    client.drop()
    assert broker.connect(version, "p").publish("a", qos=1, packet_id=0x1234) == "40 02 12 34"
    broker.restart()
    assert broker.stay(version).hear() == spaced(publish(version, "a", "x", 1, 1))


def test_an_acknowledged_id_is_free(broker, version):
    """[MQTT-4.3.2-5] [MQTT311-4.3.2-2]: what comes under it is a new message, marked as sent again or not."""
    client = away(broker, version)
    publisher = broker.connect(version, "p")
    for number, dup in enumerate((False, False, True, True), 1):
        assert publisher.publish("a", str(number), qos=1, packet_id=7, dup=dup) == "40 02 00 07"
        assert client.hear() == spaced(publish(version, "a", str(number), 1, number))


def test_it_goes_to_every_session_with_a_matching_subscription(broker, version):
    """[MQTT-4.5.0-1] [MQTT311-4.5.0-1]: connected or not, and to no other."""
    filters = {"s1": "a/b", "s2": "a/+", "s3": "a/#", "s4": "#", "s5": "a", "s6": "a/b/c"}
    for name, topic_filter in filters.items():
        client = broker.stay(version, name)
        client.subscribe(topic_filter, 1)
        if name != "s2":
            client.drop()
    broker.connect(version, "p").publish("a/b", qos=1)
    heard = {name: broker.stay(version, name).hear()[:2] for name in filters}
    # The second client was connected and heard it; it had no chance to acknowledge.
    assert heard == {"s1": "32", "s2": "3a", "s3": "32", "s4": "32", "s5": "", "s6": ""}


# 4.4


def test_unacknowledged_deliveries_are_sent_again(broker, version):
    """[MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1] [MQTT311-4.4.0-1] [MQTT311-3.3.1-1] [MQTT311-4.6.0-1]

    With their packet ids, DUP, in their order, again and again until they are acknowledged.
    """
    client = away(broker, version)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", str(number), qos=1)
    client.hear()
    assert client.say("40 02 0002") == ""
    client.drop()
    publisher.publish("a", "3", qos=1)
    again = publish(version, "a", "0", 1, 1, dup=True) + publish(version, "a", "2", 1, 3, dup=True)
    client = broker.stay(version)
    assert client.hear() == spaced(again + publish(version, "a", "3", 1, 4))
    client.drop()
    assert broker.stay(version).hear() == spaced(again + publish(version, "a", "3", 1, 4, dup=True))


def test_they_are_sent_again_by_a_restarted_node(broker, version):
    """[MQTT-4.4.0-1] [MQTT-4.1.0-1] [MQTT311-4.4.0-1] [MQTT311-4.1.0-1]"""
    client = away(broker, version)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "1", qos=1)
    publisher.publish("a", "2", qos=1)
    client.say("40 02 0001")
    broker.restart()
    client = broker.stay(version)
    assert client.connack == connack(version, present=1)
    assert client.hear() == spaced(publish(version, "a", "2", 1, 2, dup=True))


def test_nothing_is_sent_again_on_a_live_connection(broker, version):
    """[MQTT-4.4.0-1]: only a reconnect is a reason to."""
    client = away(broker, version)
    broker.connect(4, "p").publish("a", qos=1)
    assert client.hear() == spaced(publish(version, "a", "x", 1, 1))
    broker.advance(1000)
    assert client.hear() == ""


def test_the_dup_flag_is_the_servers_own(broker, version):
    """[MQTT-3.3.1-3] [MQTT311-3.3.1-3]: that of the publisher is not handed on."""
    client = away(broker, version)
    broker.connect(version, "p").publish("a", qos=1, dup=True)
    assert client.hear() == spaced(publish(version, "a", "x", 1, 1))


def test_a_puback_with_a_failure_is_a_puback(broker):
    """[MQTT-4.4.0-2]: what the client refused is not sent again."""
    for reason in ("80", "83", "87", "90", "91", "97", "99"):
        client = away(broker, 5)
        broker.connect(4, "p").publish("a", qos=1)
        packet_id = client.hear()[15:20]
        assert client.say(f"40 03 {packet_id} {reason}") == ""
        client.drop()
        assert broker.stay(5).hear() == ""


# 4.6


def test_acknowledgements_are_in_the_order_of_the_publishes(broker, version):
    """[MQTT-4.6.0-2] [MQTT311-4.6.0-2]"""
    away(broker, version)
    ids = [9, 1, 0xFFFF, 5]
    publisher = broker.connect(version, "p")
    heard = publisher.say("".join(publish(version, "a", "x", 1, packet_id) for packet_id in ids))
    assert heard == spaced("".join(f"4002{packet_id:04x}" for packet_id in ids))


def test_an_acknowledgement_that_must_wait_holds_back_the_next(start, version):
    """[MQTT-4.6.0-2] [MQTT311-4.6.0-2]

    Two messages are for another node, whose answers come in the wrong order; the third is for nobody far away.
    """
    broker = start(interest=StubInterest({b"far": [("other", True)]}))
    away(broker, version)
    publisher = broker.connect(version, "p")
    said = [publish(version, topic, "x", 1, packet_id) for packet_id, topic in enumerate(("far", "far", "a"), 1)]
    assert publisher.say("".join(said)) == ""
    first, second = broker.node.forwards
    broker.node.owner.forward_acknowledged(second.ticket, broker.node.now)
    broker.node.settle()
    assert publisher.hear() == ""
    broker.node.owner.forward_acknowledged(first.ticket, broker.node.now)
    broker.node.settle()
    assert publisher.hear() == "40 02 00 01 40 02 00 02 40 02 00 03"


def test_messages_come_in_the_order_of_their_publisher(broker, version):
    """[MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT311-4.6.0-5] [MQTT311-4.6.0-6]: from a window, a queue, another connection."""
    client = away(broker, version)
    publisher = broker.connect(4, "p")
    heard = ""
    for number in range(30):
        publisher.publish("a", f"{number:02}", qos=1)
    heard += client.hear()
    client.drop()
    for number in range(30, 60):
        publisher.publish("a", f"{number:02}", qos=1)
    broker.restart()
    publisher = broker.connect(4, "p")
    client = broker.stay(version)
    for number in range(60, 90):
        publisher.publish("a", f"{number:02}", qos=1)
    while more := client.hear().replace(" ", ""):
        heard += more
        length = len(bytes.fromhex(publish(version, "a", "00", 1, 1)))
        data = bytes.fromhex(more)
        for at in range(0, len(data), length):
            client.client.send(bytes.fromhex(f"4002{data[at + 5 : at + 7].hex()}"))
    data = bytes.fromhex(heard)
    payloads = [int(data[at + length - 2 : at + length]) for at in range(0, len(data), length)]
    firsts = list(dict.fromkeys(payloads))
    assert firsts == list(range(90))
    # What was sent twice came in the same order twice.
    again = payloads[len(payloads) - 90 :]
    assert again == list(range(90))


def test_qos_0_is_in_order_too(broker, version):
    """[MQTT-4.6.0-5] [MQTT311-4.6.0-6]"""
    client = away(broker, version)
    said = [publish(version, "a", str(number)) for number in range(10)]
    broker.connect(version, "p").say("".join(said))
    assert client.hear() == spaced("".join(said))


# 4.9


def test_the_receive_maximum(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-3.3.4-9]"""
    client = broker.connect(5, "s", properties="210002")
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(5):
        publisher.publish("a", str(number), qos=1)
    assert client.hear() == spaced(publish(5, "a", "0", 1, 1) + publish(5, "a", "1", 1, 2))
    assert client.say("40 02 0001") == spaced(publish(5, "a", "2", 1, 3))
    # A refusal gives room like any other answer; an id that is not in use gives none.
    assert client.say("40 03 0002 80") == spaced(publish(5, "a", "3", 1, 4))
    assert client.say("40 02 0001") == ""


def test_the_receive_maximum_holds_for_what_is_sent_again(broker):
    """[MQTT-4.9.0-1] [MQTT-4.9.0-2]: that of the new connection."""
    client = broker.stay(5)
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", str(number), qos=1)
    client.drop()
    client = broker.stay(5, properties="210001")
    assert client.hear() == spaced(publish(5, "a", "0", 1, 1, dup=True))
    assert client.say("40 02 0001") == spaced(publish(5, "a", "1", 1, 2, dup=True))


def test_without_a_receive_maximum_it_is_65535(start):
    """[MQTT-4.9.0-1]: whatever the broker allows clients that can't say how much they take."""
    broker = start(settings=OwnerSettings(max_inflight_messages=1), interest=NoInterest())
    client = broker.connect(5, "s")
    client.subscribe("a", 1)
    publisher = broker.connect(4, "p")
    for number in range(3):
        publisher.publish("a", qos=1)
        assert client.hear() == spaced(publish(5, "a", "x", 1, number + 1))


def test_other_packets_do_not_wait_for_the_quota(broker):
    """[MQTT-3.3.4-10] [MQTT-4.9.0-3]"""
    client = broker.connect(5, "s", properties="210001")
    client.subscribe("a", 1)
    client.subscribe("b", 0)
    publisher = broker.connect(4, "p")
    publisher.publish("a", qos=1)
    publisher.publish("a", qos=1)
    assert client.hear() == spaced(publish(5, "a", "x", 1, 1))
    assert client.say("c0 00") == "d0 00"
    assert client.say(hex_packets.subscribe(5, 2, ("c", 1))) == "90 04 00 02 00 01"
    assert client.say(hex_packets.unsubscribe(5, 3, "c")) == "b0 04 00 03 00 00"
    assert client.publish("d", qos=1, packet_id=9) == "40 03 00 09 10"
    assert client.say("e0 00") == ""
    assert client.closed


def test_an_unknown_packet_id_is_no_fault(broker, version):
    """4.3.2: a PUBACK may answer a message that was acknowledged before a reconnect."""
    client = broker.connect(version)
    assert client.say("40 02 1234") == ""
    assert not client.closed
