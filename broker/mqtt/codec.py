"""Packets to bytes and back, for MQTT 3.1, 3.1.1 and 5.0: the one module that users of the codec import.

How it is driven: `split` finds a packet in the stream, `decode` reads its body once it has wholly arrived, `encode` is
the mirror image. PUBLISH and the acknowledgements have functions of their own for callers that know what they have.
"""

from broker.mqtt.decoder import decode, decode_ack, decode_publish
from broker.mqtt.encoder import encode, encode_ack, encode_publish, encode_publish_parts
from broker.mqtt.framing import is_utf8, split
from broker.mqtt.packets import PACKET_REASONS

__all__ = [
    "PACKET_REASONS",
    "decode",
    "decode_ack",
    "decode_publish",
    "encode",
    "encode_ack",
    "encode_publish",
    "encode_publish_parts",
    "is_utf8",
    "split",
]
