"""The owner's answers to a client's requests as packets: what each version of MQTT has for them.

It owns no state. Which connection an answer is for, and what it means there, the connection knows.
"""

from typing import Final

from broker.core.owner_records import Answer
from broker.core.records import SUBACK, UNSUBACK
from broker.mqtt.codec import encode, encode_ack
from broker.mqtt.packets import Suback, Unsuback
from broker.mqtt.properties import NO_PROPERTIES

_FAILURE: Final = 0x80


def encode_answer(answer: Answer, version: int) -> bytes:
    """Return the PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK or UNSUBACK that says it.

    None has a property [MQTT-3.1.2-29] [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2]
    [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3] [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.11.2-1] [MQTT-3.11.2-2].
    """
    if answer.kind == SUBACK:
        # [MQTT-2.2.1-6] [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT311-2.3.1-7] [MQTT311-3.8.4-1] [MQTT311-3.8.4-2]
        reasons = tuple(reason if reason >= _FAILURE else reason & 3 for reason in answer.reasons)
        return encode(Suback(answer.packet_id, reasons, NO_PROPERTIES), version)
    if answer.kind == UNSUBACK:
        # [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT311-3.10.4-4] [MQTT311-3.10.4-5]
        return encode(Unsuback(answer.packet_id, tuple(answer.reasons), NO_PROPERTIES), version)
    # [MQTT-2.2.1-5] [MQTT-4.3.2-4] [MQTT311-2.3.1-6] [MQTT311-4.3.2-2]
    return encode_ack(answer.kind, answer.packet_id, answer.reason if version == 5 else 0, b"", version)
