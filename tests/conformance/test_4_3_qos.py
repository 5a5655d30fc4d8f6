"""4.3 Quality of service, and 4.5 Message receipt."""

from builds import compiled
from hex_packets import publish, size, spaced

from broker.core.settings import OwnerSettings

# 4.3.1, 4.3.2


def test_qos_0(broker, version):
    """[MQTT-4.3.1-1] [MQTT-3.3.1-2] [MQTT-3.3.4-1] [MQTT-4.5.0-1]: delivered once, not marked, not answered.

    [MQTT311-4.3.1-1] [MQTT311-3.3.1-2] [MQTT311-3.3.4-1] [MQTT311-4.5.0-1]
    """
    client = broker.subscriber(version)
    assert broker.connect(version, "p").publish("a", "x") == ""
    assert client.hear() == spaced(publish(version, "a"))
    client.drop()
    assert broker.stay(version).hear() == ""


def test_qos_1_to_a_subscriber(broker, version):
    """[MQTT-4.3.2-1] [MQTT-4.3.2-2] [MQTT-4.3.2-3] [MQTT311-4.3.2-1]

    A new id, QoS 1, not marked as sent again, and unacknowledged until the PUBACK is there.
    """
    client = broker.subscriber(version)
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
    client = broker.subscriber(version)
    client.drop()
    assert broker.connect(version, "p").publish("a", qos=1, packet_id=0x1234) == "40 02 12 34"
    broker.restart()
    assert broker.stay(version).hear() == spaced(publish(version, "a", "x", 1, 1))


def test_an_acknowledged_id_is_free(broker, version):
    """[MQTT-4.3.2-5] [MQTT311-4.3.2-2]: what comes under it is a new message, marked as sent again or not."""
    client = broker.subscriber(version)
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


def test_an_unknown_packet_id_is_no_fault(broker, version):
    """4.3.2: a PUBACK may answer a message that was acknowledged before a reconnect."""
    client = broker.connect(version)
    assert client.say("40 02 1234") == ""
    assert not client.closed


# 4.3.3, to a subscriber


def test_qos_2_to_a_subscriber(broker, version):
    """[MQTT-4.3.3-1] [MQTT-4.3.3-2] [MQTT-4.3.3-3] [MQTT-4.3.3-4] [MQTT-4.3.3-5] [MQTT-4.3.3-6] [MQTT311-4.3.3-1]

    A new id, QoS 2, not marked; sent again until the PUBREC is there, then the PUBREL until the PUBCOMP is.
    """
    client = broker.subscriber(version)
    publisher = broker.connect(4, "p")
    for number in (1, 2, 3):
        publisher.publish("a", str(number), qos=2, packet_id=number)
        assert client.hear() == spaced(publish(version, "a", str(number), 2, number))
    assert client.say("50 02 0002") == "62 02 00 02"
    client.drop()
    again = publish(version, "a", "1", 2, 1, dup=True) + publish(version, "a", "3", 2, 3, dup=True)
    for _ in range(2):
        client = broker.stay(version)
        assert sorted_releases(client.hear()) == ("62020002", again)
        client.drop()
    broker.restart()
    client = broker.stay(version)
    assert sorted_releases(client.hear()) == ("62020002", again)
    assert client.say("70 02 0002") == ""
    client.drop()
    client = broker.stay(version)
    assert client.hear() == spaced(again)
    assert client.say("50 02 0001 50 02 0003") == "62 02 00 01 62 02 00 03"
    assert client.say("70 02 0001 70 02 0003") == ""
    client.drop()
    assert broker.stay(version).hear() == ""


def sorted_releases(heard):
    """The PUBRELs that were heard, of four bytes, and everything else, in digits: their order says nothing."""
    data = bytes.fromhex(heard)
    releases = ""
    rest = ""
    while data:
        size = 2 + data[1]
        if data[0] == 0x62:
            releases += data[:size].hex()
        else:
            rest += data[:size].hex()
        data = data[size:]
    return releases, rest


def test_a_pubrec_that_comes_again_is_answered_again(broker, version):
    """[MQTT-4.3.3-4] [MQTT-4.3.3-6] [MQTT311-4.3.3-1]: with the PUBREL, and never with the PUBLISH."""
    client = broker.subscriber(version)
    broker.connect(4, "p").publish("a", qos=2)
    client.hear()
    for _ in range(3):
        assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("70 02 0001 70 02 0001") == ""
    assert not client.closed


def test_a_pubrec_with_a_failure_ends_it(broker):
    """[MQTT-4.3.3-4] [MQTT-4.4.0-2]: no PUBREL, and nothing is sent again."""
    for reason in ("80", "83", "87", "90", "91", "97", "99"):
        client = broker.subscriber(5)
        broker.connect(4, "p").publish("a", qos=2)
        packet_id = client.hear()[15:20]
        assert client.say(f"50 03 {packet_id} {reason}") == ""
        client.drop()
        assert broker.stay(5).hear() == ""


def test_a_pubrec_that_says_that_nobody_wants_it_goes_on(broker):
    """[MQTT-4.3.3-4]: 0x10 is less than 0x80."""
    client = broker.subscriber(5)
    broker.connect(4, "p").publish("a", qos=2)
    client.hear()
    assert client.say("50 03 0001 10") == "62 02 00 01"


@compiled
def test_an_id_is_in_use_until_the_pubcomp(start, version):
    """[MQTT-4.3.3-5] [MQTT-4.3.3-1] [MQTT-2.2.1-4] [MQTT311-4.3.3-1] [MQTT311-2.3.1-4]: all the way round."""
    broker = start(settings=OwnerSettings(max_inflight_messages=2000))
    client = broker.subscriber(version)
    publisher = broker.connect(4, "p")
    publisher.publish("a", "kept", qos=2)
    assert client.say("50 02 0001").endswith("62 02 00 01")
    length = size(publish(version, "a", "", 1))
    ids: list[str] = []
    while len(ids) < 66000:
        publisher.say(publish(4, "a", "", 1) * 1000)
        data = client.client.take_bytes()
        found = [data[at + 5 : at + 7].hex() for at in range(0, len(data), length)]
        client.say("".join("4002" + packet_id for packet_id in found))
        ids += found
        # Beside a client that says little a flood is paced; a moment later it is not.
        broker.advance(1.0)
    assert "0001" not in ids
    assert ids.count("0002") == 2


def test_what_was_sent_does_not_expire(broker):
    """[MQTT-4.3.3-7] [MQTT-4.3.3-13]: what was not, does."""
    client = broker.subscriber(5)
    publisher = broker.connect(5, "p")
    publisher.publish("a", "1", qos=2, packet_id=1, properties="020000000a")
    assert client.hear() == spaced(publish(5, "a", "1", 2, 1, properties="020000000a"))
    client.drop()
    publisher.publish("a", "2", qos=2, packet_id=2, properties="020000000a")
    broker.advance(20)
    client = broker.stay(5)
    assert client.hear() == spaced(publish(5, "a", "1", 2, 1, dup=True, properties="0200000000"))
    assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("70 02 0001") == ""


# 4.3.3, from a publisher


def test_qos_2_from_a_publisher(broker, version):
    """[MQTT-4.3.3-8] [MQTT-4.3.3-11] [MQTT-3.3.4-1] [MQTT311-4.3.3-2] [MQTT311-3.3.4-1]

    The PUBREC when somebody owns it, and a PUBCOMP for the PUBREL.
    """
    client = broker.subscriber(version)
    client.drop()
    publisher = broker.stay(version, "p")
    assert publisher.publish("a", qos=2, packet_id=0x1234) == "50 02 12 34"
    broker.restart()
    publisher = broker.stay(version, "p")
    assert publisher.say("62 02 1234") == "70 02 12 34"
    assert broker.stay(version).hear() == spaced(publish(version, "a", "x", 2, 1))


def test_until_the_pubrel_it_is_the_same_message(broker, version):
    """[MQTT-4.3.3-10] [MQTT311-4.3.3-2]: acknowledged each time, and delivered once; also after a reconnect."""
    client = broker.subscriber(version)
    publisher = broker.stay(version, "p")
    assert publisher.publish("a", qos=2, packet_id=7) == "50 02 00 07"
    assert client.hear() == spaced(publish(version, "a", "x", 2, 1))
    for dup in (True, False):
        assert publisher.publish("a", qos=2, packet_id=7, dup=dup) == "50 02 00 07"
    publisher.drop()
    publisher = broker.stay(version, "p")
    assert publisher.publish("a", qos=2, packet_id=7, dup=True) == "50 02 00 07"
    assert client.hear() == ""
    broker.restart()
    publisher = broker.stay(version, "p")
    assert publisher.publish("a", qos=2, packet_id=7, dup=True) == "50 02 00 07"
    assert broker.stay(version).hear() == spaced(publish(version, "a", "x", 2, 1, dup=True))
    assert publisher.say("62 02 0007") == "70 02 00 07"


def test_after_the_pubcomp_it_is_a_new_message(broker, version):
    """[MQTT-4.3.3-12] [MQTT311-4.3.3-2]: marked as sent again or not."""
    client = broker.subscriber(version)
    publisher = broker.connect(version, "p")
    for number, dup in enumerate((False, True, False), 1):
        assert publisher.publish("a", str(number), qos=2, packet_id=7, dup=dup) == "50 02 00 07"
        assert client.hear() == spaced(publish(version, "a", str(number), 2, number))
        assert publisher.say("62 02 0007") == "70 02 00 07"


def test_after_a_refusal_it_is_a_new_message(broker):
    """[MQTT-4.3.3-9]"""
    client = broker.subscriber(5)
    publisher = broker.connect(5, "p")
    assert publisher.publish("$x", qos=2, packet_id=7) == "50 03 00 07 87"
    assert publisher.publish("a", qos=2, packet_id=7) == "50 02 00 07"
    assert client.hear() == spaced(publish(5, "a", "x", 2, 1))
    assert publisher.publish("a", qos=2, packet_id=7, dup=True) == "50 02 00 07"
    assert client.hear() == ""


def test_an_expired_message_is_acknowledged_to_the_end(broker):
    """[MQTT-4.3.3-13]: nobody got it, and its id is the publisher's all the same."""
    client = broker.subscriber(5)
    client.drop()
    publisher = broker.stay(5, "p")
    assert publisher.publish("a", qos=2, packet_id=7, properties="0200000001") == "50 02 00 07"
    broker.advance(10)
    assert broker.stay(5).hear() == ""
    assert publisher.publish("a", qos=2, packet_id=7, dup=True, properties="0200000001") == "50 02 00 07"
    assert publisher.say("62 02 0007") == "70 02 00 07"


def test_the_ids_of_the_two_directions_are_apart(broker, version):
    """[MQTT-2.2.1-5] [MQTT311-2.3.1-6]: a client's 1 is not the server's 1."""
    client = broker.connect(version, "s")
    client.subscribe("a", 2)
    heard = client.publish("a", qos=2, packet_id=1)
    assert "50020001" in heard.replace(" ", "")
    assert publish(version, "a", "x", 2, 1) in heard.replace(" ", "")
    assert client.say("50 02 0001") == "62 02 00 01"
    assert client.say("62 02 0001") == "70 02 00 01"
    assert client.say("70 02 0001") == ""
