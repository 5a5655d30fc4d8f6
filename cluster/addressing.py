"""Addressing: how a forwarded message says for which shared groups of the receiver it is, and in whose stream it stood.

Owns the form of that on links and in outboxes. A message without an address is for whoever subscribes at the receiver,
but for no group there, and stands in the sender's own stream. One that was handed over (see `handover`) says where it
stood: as which number of which store's stream to the receiver.

    address = u8 flags (1 for the other subscribers, too, 2 out of a queue, 4 handed over),
              [16 bytes store_id, number: where it stood, if handed over], u32 count, bytes16 shared filter*
"""

from typing import Final, final

from broker.core.message import Message
from broker.core.storage import STORE_ID_BYTES
from broker.mqtt.reasons import ProtocolError
from broker.mqtt.topics import shared_group
from cluster.wire import FrameError, Reader, pack_bytes16, pack_u32, pack_u64

NO_ADDRESS: Final = b""
_PLAIN: Final = 1
_WAITED: Final = 2
_HANDED: Final = 4


@final
class Addressed:
    """A message with an address: its groups, and whether it is for the other subscribers of the receiver as well.

    `waited` says that it comes out of a group's queue, where it had its place. `stood` is the (store id, number) of
    one that was handed over, else None.
    """

    __slots__ = ("groups", "message", "plain", "stood", "waited")

    def __init__(
        self,
        message: Message,
        groups: list[bytes],
        plain: bool,
        waited: bool = False,
        stood: tuple[bytes, int] | None = None,
    ) -> None:
        self.message = message
        self.groups = groups
        self.plain = plain
        self.waited = waited
        self.stood = stood


def pack_address(
    groups: list[bytes], plain: bool, waited: bool = False, stood: tuple[bytes, int] | None = None
) -> bytes:
    """Return an address; NO_ADDRESS for that of nobody, or of no group if it was not handed over."""
    if not groups and (stood is None or not plain):
        return NO_ADDRESS
    flags = (_PLAIN if plain else 0) | (_WAITED if waited else 0) | (0 if stood is None else _HANDED)
    place = b"" if stood is None else stood[0] + pack_u64(stood[1])
    return bytes((flags,)) + place + pack_u32(len(groups)) + b"".join([pack_bytes16(each) for each in groups])


def unpack_address(data: bytes, position: int) -> tuple[list[bytes], bool, bool, tuple[bytes, int] | None, int]:
    """Return (groups, plain, waited, where it stood) of the address at a position, and its end; FrameError if none."""
    reader = Reader(data, position)
    flags = reader.u8()
    plain = flags & _PLAIN != 0
    stood = (reader.take(STORE_ID_BYTES), reader.number()) if flags & _HANDED else None
    groups = [reader.bytes16() for _ in range(reader.u32())]
    try:
        is_sound = None not in [shared_group(each) for each in groups]
    except ProtocolError:
        is_sound = False
    if not is_sound or not (groups or (plain and stood is not None)):
        raise FrameError("an address that is not of shared groups")
    return groups, plain, flags & _WAITED != 0, stood, len(data) - reader.left()
