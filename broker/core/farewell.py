"""The farewell: what a client is told when its connection ends, where its version of MQTT has a word for it.

It owns which packet that is, with which reason, and how long it may be. It closes nothing and counts nothing.
"""

from broker.mqtt.codec import PACKET_REASONS, encode
from broker.mqtt.packets import Connack, Disconnect, PacketType
from broker.mqtt.properties import NO_PROPERTIES, Properties, Property
from broker.mqtt.reasons import Reason


def farewell(version: int, is_attached: bool, reason: int, text: str, bytes_max: int, reference: str = "") -> bytes:
    """Return the last packet for a client, b"" for none. `version` 0: it has not said; `bytes_max` 0: no limit.

    `reference` is the server that it is to use instead. Where the client takes no packet of that size both texts are
    left out [MQTT-3.2.2-19] [MQTT-3.14.2-3], and there is no other property [MQTT-3.2.2-20] [MQTT-3.14.2-2]
    [MQTT-3.14.2-4].
    """
    properties: Properties = {}
    if text:
        properties[Property.REASON_STRING] = text
    if reference:
        properties[Property.SERVER_REFERENCE] = reference
    said = _word(version, is_attached, reason, properties or NO_PROPERTIES)
    if bytes_max and len(said) > bytes_max:
        said = _word(version, is_attached, reason, NO_PROPERTIES)
    # [MQTT-3.1.2-24] What is still too large can't be said.
    return b"" if bytes_max and len(said) > bytes_max else said


def _word(version: int, is_attached: bool, reason: int, properties: Properties) -> bytes:
    if is_attached:
        # [MQTT-3.14.0-1] [MQTT311-4.8.0-1] To MQTT 3, closing is all there is to say.
        return encode(Disconnect(reason, properties), version) if version == 5 else b""
    if version:
        return encode(Connack(False, refusal(reason), properties if version == 5 else NO_PROPERTIES), version)
    if reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
        # [MQTT-3.1.2-2] [MQTT311-3.1.2-2] An unknown version is answered in the form that most know.
        return encode(Connack(False, reason, NO_PROPERTIES), 4)
    # [MQTT311-3.2.2-6] There is no return code for anything else.
    return b""


def refusal(reason: int) -> int:
    """Return the reason as a CONNACK may carry it; what only a DISCONNECT can say becomes SERVER_UNAVAILABLE."""
    return reason if reason in PACKET_REASONS[PacketType.CONNACK] else int(Reason.SERVER_UNAVAILABLE)
