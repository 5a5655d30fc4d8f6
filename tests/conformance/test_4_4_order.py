"""4.4 Sending again, and 4.6 Message ordering."""

from core_helpers import StubInterest
from hex_packets import connack, publish, spaced

# 4.4


def test_unacknowledged_deliveries_are_sent_again(broker, version):
    """[MQTT-4.4.0-1] [MQTT-3.3.1-1] [MQTT-4.6.0-1] [MQTT311-4.4.0-1] [MQTT311-3.3.1-1] [MQTT311-4.6.0-1]

    With their packet ids, DUP, in their order, again and again until they are acknowledged.
    """
    client = broker.subscriber(version)
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
    client = broker.subscriber(version)
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
    client = broker.subscriber(version)
    broker.connect(4, "p").publish("a", qos=1)
    assert client.hear() == spaced(publish(version, "a", "x", 1, 1))
    broker.advance(1000)
    assert client.hear() == ""


def test_the_dup_flag_is_the_servers_own(broker, version):
    """[MQTT-3.3.1-3] [MQTT311-3.3.1-3]: that of the publisher is not handed on."""
    client = broker.subscriber(version)
    broker.connect(version, "p").publish("a", qos=1, dup=True)
    assert client.hear() == spaced(publish(version, "a", "x", 1, 1))


def test_a_puback_with_a_failure_is_a_puback(broker):
    """[MQTT-4.4.0-2]: what the client refused is not sent again."""
    for reason in ("80", "83", "87", "90", "91", "97", "99"):
        client = broker.subscriber(5)
        broker.connect(4, "p").publish("a", qos=1)
        packet_id = client.hear()[15:20]
        assert client.say(f"40 03 {packet_id} {reason}") == ""
        client.drop()
        assert broker.stay(5).hear() == ""


# 4.6


def test_acknowledgements_are_in_the_order_of_the_publishes(broker, version):
    """[MQTT-4.6.0-2] [MQTT311-4.6.0-2]"""
    broker.subscriber(version)
    ids = [9, 1, 0xFFFF, 5]
    publisher = broker.connect(version, "p")
    heard = publisher.say("".join(publish(version, "a", "x", 1, packet_id) for packet_id in ids))
    assert heard == spaced("".join(f"4002{packet_id:04x}" for packet_id in ids))


def test_an_acknowledgement_that_must_wait_holds_back_the_next(start, version):
    """[MQTT-4.6.0-2] [MQTT311-4.6.0-2]

    Two messages are for another node, whose answers come in the wrong order; the third is for nobody far away.
    """
    broker = start(interest=StubInterest({b"far": [("other", True)]}))
    broker.subscriber(version)
    publisher = broker.connect(version, "p")
    said = [publish(version, topic, "x", 1, packet_id) for packet_id, topic in enumerate(("far", "far", "a"), 1)]
    assert publisher.say("".join(said)) == ""
    assert len(broker.node.forwards) == 2
    broker.node.acknowledge_forwards(1)
    assert publisher.hear() == ""
    broker.node.acknowledge_forwards(0)
    assert publisher.hear() == "40 02 00 01 40 02 00 02 40 02 00 03"


def test_messages_come_in_the_order_of_their_publisher(broker, version):
    """[MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT311-4.6.0-5] [MQTT311-4.6.0-6]: from a window, a queue, another connection."""
    client = broker.subscriber(version)
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
    client = broker.subscriber(version)
    said = [publish(version, "a", str(number)) for number in range(10)]
    broker.connect(version, "p").say("".join(said))
    assert client.hear() == spaced("".join(said))


def test_pubrecs_and_pubrels_are_in_the_order_of_what_they_answer(broker, version):
    """[MQTT-4.6.0-3] [MQTT-4.6.0-4] [MQTT311-4.6.0-3] [MQTT311-4.6.0-4]"""
    client = broker.subscriber(version)
    publisher = broker.connect(version, "p")
    ids = [9, 1, 0xFFFF, 5]
    heard = publisher.say("".join(publish(version, "a", "x", 2, packet_id) for packet_id in ids))
    assert heard == spaced("".join(f"5002{packet_id:04x}" for packet_id in ids))
    assert client.hear() == spaced("".join(publish(version, "a", "x", 2, number) for number in (1, 2, 3, 4)))
    assert client.say("".join(f"5002{number:04x}" for number in (3, 1, 4, 2))) == spaced(
        "".join(f"6202{number:04x}" for number in (3, 1, 4, 2))
    )
    heard = publisher.say("".join(f"6202{packet_id:04x}" for packet_id in reversed(ids)))
    assert heard == spaced("".join(f"7002{packet_id:04x}" for packet_id in reversed(ids)))


def test_a_pubrec_waits_for_what_was_published_before(start, version):
    """[MQTT-4.6.0-3] [MQTT311-4.6.0-3]: a PUBACK that waits for another node holds back the PUBRECs behind it."""
    broker = start(interest=StubInterest({b"far": [("other", True)]}))
    broker.subscriber(version)
    publisher = broker.connect(version, "p")
    sent = enumerate((("far", 1), ("far", 2), ("a", 2)), 1)
    said = [publish(version, topic, "x", qos, packet_id) for packet_id, (topic, qos) in sent]
    assert publisher.say("".join(said)) == ""
    assert len(broker.node.forwards) == 2
    # What is for another node at QoS 2 is stored for it, and waits for nobody.
    assert broker.node.forwards[1].ticket is None
    broker.node.acknowledge_forwards(0)
    assert publisher.hear() == "40 02 00 01 50 02 00 02 50 02 00 03"


def test_every_qos_is_sent_again_in_the_old_order(broker, version):
    """[MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT311-4.4.0-1] [MQTT311-4.6.0-1]"""
    client = broker.subscriber(version)
    publisher = broker.connect(4, "p")
    for number, qos in enumerate((2, 1, 2, 1, 2), 1):
        publisher.publish("a", str(number), qos, packet_id=number)
    client.drop()
    again = [publish(version, "a", str(number), qos, number, dup=True) for number, qos in enumerate((2, 1, 2, 1, 2), 1)]
    client = broker.stay(version)
    assert client.hear() == spaced("".join(again))
    broker.restart()
    assert broker.stay(version).hear() == spaced("".join(again))
