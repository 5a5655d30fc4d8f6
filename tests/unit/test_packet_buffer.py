"""broker.core.packet_buffer: bytes that wait."""

from broker.core.packet_buffer import PacketBuffer


def test_there_is_enough_when_the_packet_is_whole():
    buffer = PacketBuffer(b"ab", 5)
    assert [buffer.add(b"c"), buffer.add(b"d"), buffer.add(b"e"), buffer.add(b"f")] == [False, False, True, True]
    assert buffer.joined() == b"abcdef"


def test_a_packet_of_unknown_length_is_looked_at_with_each_piece():
    buffer = PacketBuffer(b"\x30", 0)
    assert buffer.add(b"\x80")
    assert buffer.joined() == b"\x30\x80"
