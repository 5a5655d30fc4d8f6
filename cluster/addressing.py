"""Addressing: how a forwarded message says for which shared groups of the receiver it is.

Owns the form of that on links and in outboxes. A message without an address is for whoever subscribes at the receiver,
but for no group there.

    address = u8 flags (1 for the other subscribers, too, 2 out of a queue), u32 count, bytes16 shared filter*
"""

from typing import Final, final

from broker.core.message import Message
from broker.mqtt.reasons import ProtocolError
from broker.mqtt.topics import shared_group
from cluster.wire import FrameError, Reader, pack_bytes16, pack_u32

NO_ADDRESS: Final = b""
_PLAIN: Final = 1
_WAITED: Final = 2


@final
class Addressed:
    """A message with an address: its groups, and whether it is for the other subscribers of the receiver as well.

    `waited` says that it comes out of a group's queue, where it had its place.
    """

    __slots__ = ("groups", "message", "plain", "waited")

    def __init__(self, message: Message, groups: list[bytes], plain: bool, waited: bool = False) -> None:
        self.message = message
        self.groups = groups
        self.plain = plain
        self.waited = waited


def pack_address(groups: list[bytes], plain: bool, waited: bool = False) -> bytes:
    """Return an address; NO_ADDRESS for that of no group."""
    if not groups:
        return NO_ADDRESS
    parts = [pack_bytes16(each) for each in groups]
    return bytes(((_PLAIN if plain else 0) | (_WAITED if waited else 0),)) + pack_u32(len(parts)) + b"".join(parts)


def unpack_address(data: bytes, position: int) -> tuple[list[bytes], bool, bool, int]:
    """Return (groups, plain, waited) of the address that stands there, and where it ends; FrameError if it is none."""
    reader = Reader(data, position)
    flags = reader.u8()
    groups = [reader.bytes16() for _ in range(reader.u32())]
    try:
        is_sound = bool(groups) and None not in [shared_group(each) for each in groups]
    except ProtocolError:
        is_sound = False
    if not is_sound:
        raise FrameError("an address that is not of shared groups")
    return groups, flags & _PLAIN != 0, flags & _WAITED != 0, len(data) - reader.left()
