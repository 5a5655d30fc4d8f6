"""broker.core.answers: what a client reads of the owner's answers."""

import pytest

from broker.core.answers import encode_answer
from broker.core.owner_records import Answer
from broker.core.records import PUBACK, PUBCOMP, PUBREC, PUBREL, SUBACK, UNSUBACK


@pytest.mark.parametrize(
    ("kind", "reason", "five", "four"),
    [
        (PUBACK, 0, "40 02 12 34", "40 02 12 34"),
        (PUBACK, 0x10, "40 03 12 34 10", "40 02 12 34"),
        (PUBREC, 0x97, "50 03 12 34 97", "50 02 12 34"),
        (PUBREL, 0x92, "62 03 12 34 92", "62 02 12 34"),
        (PUBCOMP, 0, "70 02 12 34", "70 02 12 34"),
    ],
)
def test_acknowledgements(kind, reason, five, four):
    """[MQTT-2.2.1-5] [MQTT311-2.3.1-6]: MQTT 3 has no reasons."""
    answer = Answer(kind, 9, 0x1234, reason)
    assert [encode_answer(answer, version).hex(" ") for version in (5, 4, 3)] == [five, four, four]


def test_subacks_and_unsubacks():
    """[MQTT-2.2.1-6] [MQTT311-2.3.1-7]: of options only the QoS was granted, and MQTT 3 has one failure."""
    answer = Answer(SUBACK, 9, 0x1234, 0)
    answer.reasons = b"\x2d\x02\x8f"
    assert encode_answer(answer, 5).hex(" ") == "90 06 12 34 00 01 02 8f"
    assert encode_answer(answer, 4).hex(" ") == "90 05 12 34 01 02 80"
    answer = Answer(UNSUBACK, 9, 0x1234, 0)
    answer.reasons = b"\x00\x11"
    assert encode_answer(answer, 5).hex(" ") == "b0 05 12 34 00 00 11"
    assert encode_answer(answer, 4).hex(" ") == "b0 02 12 34"
