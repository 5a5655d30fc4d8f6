"""Addressing: how a forwarded message says for which shared groups of the receiver it is.

Owns the form of that on links and in outboxes. A message without an address is for whoever subscribes at the receiver,
but for no group there.

    address = u8 flags (1 for the other subscribers, too), u32 count, bytes16 shared filter*
"""

from typing import Final, final

from broker.core.message import Message
from broker.mqtt.reasons import ProtocolError
from broker.mqtt.topics import shared_group
from cluster.wire import FrameError, Reader, pack_bytes16, pack_u32

NO_ADDRESS: Final = b""
_PLAIN: Final = 1


@final
class Addressed:
    """A message with an address: its groups, and whether it is for the other subscribers of the receiver as well."""

    __slots__ = ("groups", "message", "plain")

    def __init__(self, message: Message, groups: list[bytes], plain: bool) -> None:
        self.message = message
        self.groups = groups
        self.plain = plain


def pack_address(groups: list[bytes], plain: bool) -> bytes:
    """Return an address; NO_ADDRESS for that of no group."""
    if not groups:
        return NO_ADDRESS
    parts = [pack_bytes16(each) for each in groups]
    return bytes((_PLAIN if plain else 0,)) + pack_u32(len(parts)) + b"".join(parts)


def unpack_address(data: bytes, position: int) -> tuple[list[bytes], bool, int]:
    """Return the groups of the address that stands there, whether it is for others as well, and where it ends.

    FrameError if there is none.
    """
    reader = Reader(data, position)
    flags = reader.u8()
    groups = [reader.bytes16() for _ in range(reader.u32())]
    try:
        is_sound = bool(groups) and None not in [shared_group(each) for each in groups]
    except ProtocolError:
        is_sound = False
    if not is_sound:
        raise FrameError("an address that is not of shared groups")
    return groups, flags & _PLAIN != 0, len(data) - reader.left()
