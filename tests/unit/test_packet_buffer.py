"""broker.core.packet_buffer: bytes that wait."""

from broker.core.packet_buffer import PacketBuffer


def test_it_is_empty_at_first_and_after_it_was_taken():
    buffer = PacketBuffer()
    assert (buffer.size, buffer.take()) == (0, b"")
    buffer.hold(b"ab", 0)
    assert (buffer.size, buffer.take()) == (2, b"ab")
    assert (buffer.size, buffer.take()) == (0, b"")


def test_there_is_enough_when_the_packet_is_whole():
    buffer = PacketBuffer()
    buffer.hold(b"ab", 5)
    assert [buffer.add(b"c"), buffer.add(b"d"), buffer.add(b"e"), buffer.add(b"f")] == [False, False, True, True]
    assert buffer.take() == b"abcdef"
    # The next one says what it needs.
    buffer.hold(b"a", 3)
    assert not buffer.add(b"b")


def test_a_packet_of_unknown_length_is_looked_at_with_each_piece():
    buffer = PacketBuffer()
    buffer.hold(b"\x30", 0)
    assert buffer.add(b"\x80")
    assert buffer.take() == b"\x30\x80"


def test_nothing_held_is_nothing():
    buffer = PacketBuffer()
    buffer.hold(b"", 7)
    assert buffer.size == 0
