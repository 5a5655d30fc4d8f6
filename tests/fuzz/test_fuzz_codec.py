"""Any bytes as a stream of packets, in each version.

Documented: `split`, `decode`, `decode_publish` and `decode_ack` raise ProtocolError and nothing else, with a reason
that a CONNACK or DISCONNECT may carry. What was read can be written, and is read and written the same again.
"""

from fuzzing import Target, examples, near
from hypothesis import given
from packet_table import ROWS

from broker.mqtt.codec import PACKET_REASONS, decode, decode_ack, decode_publish, encode, split
from broker.mqtt.packets import Acknowledgement, Packet, PacketType, Publish
from broker.mqtt.reasons import ProtocolError

VERSIONS = (3, 4, 5)
# A limit as a configuration sets one; splitting must not depend on it but for the refusal.
PACKET_BYTES_MAX = 1000


def check(data: bytes) -> None:
    """Read the stream behind the first byte, which says the version."""
    if not data:
        return
    version = VERSIONS[data[0] % len(VERSIONS)]
    pos = 1
    while pos < len(data):
        try:
            start, end = split(data, pos, PACKET_BYTES_MAX)
        except ProtocolError as error:
            check_reason(error, data[pos])
            return
        assert (start, end) == (0, 0) or pos + 2 <= start <= min(end, pos + 5), (start, end)
        assert end - pos <= PACKET_BYTES_MAX
        if not 0 < end <= len(data):
            return
        check_packet(data, pos, start, end, version)
        pos = end


def check_packet(data: bytes, pos: int, start: int, end: int, version: int) -> None:
    """Read one packet by all functions that can."""
    first = data[pos]
    packet: Packet | ProtocolError
    try:
        packet = decode(data, first, start, end, version)
    except ProtocolError as error:
        check_reason(error, first)
        packet = error
    if first >> 4 == PacketType.PUBLISH:
        check_same(packet, lambda: decode_publish(data, first, start, end, version))
    elif PacketType.PUBACK <= first >> 4 <= PacketType.PUBCOMP:
        check_same(packet, lambda: decode_ack(data, first, start, end, version))
    if isinstance(packet, ProtocolError):
        return
    # A CONNECT is written in its own version.
    version = getattr(packet, "version", version)
    encoded = encode(packet, version)
    again = read(encoded, version)
    assert again == packet, (packet, again)
    assert type(again) is type(packet)
    assert encode(again, version) == encoded
    assert repr(packet)


def read(data: bytes, version: int) -> Packet:
    start, end = split(data, 0, 0)
    assert end == len(data), "the packet's length is not its remaining length"
    return decode(data, data[0], start, end, version)


def check_same(packet, function) -> None:
    """The functions for what comes most often say what `decode` says."""
    try:
        found = function()
    except ProtocolError as error:
        assert isinstance(packet, ProtocolError), packet
        assert (error.reason, error.text) == (packet.reason, packet.text)
        return
    if isinstance(packet, Acknowledgement):
        assert found == (packet.packet_id, packet.reason)
    else:
        assert isinstance(packet, Publish)
        assert found == packet


def check_reason(error: ProtocolError, first: int) -> None:
    answer = PacketType.CONNACK if first >> 4 == PacketType.CONNECT else PacketType.DISCONNECT
    assert error.reason in PACKET_REASONS[answer], error
    assert error.text


TARGET = Target(
    "codec",
    check,
    [bytes([VERSIONS.index(row.version)]) + row.data for row in ROWS if len(row.data) <= PACKET_BYTES_MAX],
)


def test_the_table() -> None:
    assert len(TARGET.seeds) >= 300
    for seed in TARGET.seeds:
        check(seed)


@given(near(TARGET.seeds))
@examples()
def test_near_the_table(data: bytes) -> None:
    check(data)
