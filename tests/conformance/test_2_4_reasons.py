"""2.4 Reason codes: each of the 256 in each packet that a client may send with one.

The tables are those of 3.4.2.1, 3.5.2.1, 3.6.2.1, 3.7.2.1, 3.14.2.1 and 3.15.2.1.
"""

import pytest
from hex_packets import packet, text

RECEIVED = {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
RELEASED = {0x00, 0x92}
DISCONNECTED = {
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97,
    0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "allowed"),
    [("40", RECEIVED), ("50", RECEIVED), ("62", RELEASED), ("70", RELEASED)],
    ids=["PUBACK", "PUBREC", "PUBREL", "PUBCOMP"],
)
def test_reasons_of_acknowledgements(broker, first, allowed):
    """[MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]: with properties and without."""
    for reason in range(256):
        for rest in ("", "00"):
            said = packet(first, f"0001{reason:02x}", rest)
            client = broker.connect(5)
            if reason in allowed:
                client.say(said)
                assert client.say("c000") == "d0 00", reason
            else:
                assert client.fails(said, "82"), reason


def test_reasons_of_a_disconnect(broker):
    """[MQTT-3.14.2-1]: all that there are end the connection without an answer."""
    for reason in range(256):
        for rest in ("", "00"):
            said = packet("e0", f"{reason:02x}", rest)
            client = broker.connect(5)
            if reason in DISCONNECTED:
                assert client.say(said) == "", reason
                assert client.closed, reason
            else:
                assert client.fails(said, "82"), reason


def test_reasons_of_an_auth(broker):
    """[MQTT-3.15.2-1] [MQTT-4.12.0-7]: without a method in the CONNECT there is none that would do."""
    method = "15" + text("m")
    for reason in range(256):
        assert broker.connect(5).fails(packet("f0", f"{reason:02x}", "04", method), "82"), reason
        assert broker.connect(5).fails(packet("f0", f"{reason:02x}", "00"), "82"), reason
    assert broker.connect(5).fails("f0 00", "82")
