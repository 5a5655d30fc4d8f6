"""The outbox: what waits on disk for one other node, in the order of the stream to it.

Owns the family `outbox`, of one peer each, and counts what is in it. It knows nothing of the link that writes it, or of
who waits for what: what is put is the store's as soon as the turn's batch is committed, and read back only then.

    outbox  peer's store_id, stream number u64    version u8, [address], message id (24 bytes), body

A record with an address (see `addressing`) has version 2, one without version 1.

What a body is, `stored_message` says; its deadline is a UTC one, and becomes what is left of it when it is sent. Reads
seek to the number that they are asked for, and never pass what was deleted before.

Invariant, once everything is committed: `messages` and `bytes` are what the store holds of the peer.
"""

from typing import Final, final

from broker.core.message import Message
from broker.core.storage import STORE_ID_BYTES, Storage
from broker.core.stored_message import (
    MESSAGE_KEY_BYTES,
    UNREADABLE,
    Clock,
    check_version,
    corrupt,
    pack_message,
    unpack_message,
)
from cluster.addressing import NO_ADDRESS, pack_address, unpack_address
from cluster.turn import Turn
from cluster.wire import FrameError

FAMILY: Final = "outbox"
VALUE_VERSION: Final = 2
_PLAIN: Final = bytes([1])
_ADDRESSED: Final = bytes([2])
_KEY_BYTES: Final = STORE_ID_BYTES + 8


@final
class Stored:
    """A message that was read back: its number in the stream, and how many bytes it takes in the store."""

    __slots__ = ("groups", "message", "number", "plain", "size", "stood", "waited")

    def __init__(
        self,
        number: int,
        message: Message,
        size: int,
        groups: list[bytes],
        plain: bool,
        waited: bool,
        stood: tuple[bytes, int] | None,
    ) -> None:
        self.groups = groups
        self.plain = plain
        self.waited = waited
        self.stood = stood
        self.number = number
        self.message = message
        self.size = size

    def address(self) -> bytes:
        """Return its address, as `addressing` packs it."""
        return pack_address(self.groups, self.plain, self.waited, self.stood)


@final
class Outbox:
    """What is stored for the peer with this store id. At most `bytes_max`, if whoever writes asks `is_full` before."""

    def __init__(self, storage: Storage, turn: Turn, clock: Clock, peer: bytes, bytes_max: int) -> None:
        self.messages = 0
        self.bytes = 0
        # Numbers between which all are that a link, which is new to the outbox, finds in it.
        self.first = 1
        self.last = 0
        self.bytes_max = bytes_max
        # Whether something for shared groups may be in it.
        self.addressed = False
        self._storage = storage
        self._turn = turn
        self._clock = clock
        self._peer = peer

    def found(self, number: int, size: int, addressed: bool = False) -> None:
        """An earlier life of this node left a message of so many bytes; call it in the order of the numbers."""
        self.addressed = self.addressed or addressed
        if not self.messages:
            self.first = number
        self.last = number
        self.messages += 1
        self.bytes += size

    def is_full(self, size: int) -> bool:
        """Say whether a message of about `size` bytes is too much. An empty outbox takes one of any size."""
        return self.bytes > 0 and self.bytes + size > self.bytes_max

    def put(self, number: int, message: Message, address: bytes = NO_ADDRESS) -> int:
        """Write a message into the turn's batch; return how many bytes it takes."""
        value = message.key() + pack_message(message, self._clock)
        if address:
            self.addressed = True
            value = _ADDRESSED + address + value
        else:
            value = _PLAIN + value
        self._turn.writes.put(FAMILY, self._key(number), value)
        size = _KEY_BYTES + len(value)
        self.messages += 1
        self.bytes += size
        return size

    def delete(self, numbers: list[int], size: int) -> None:
        """Remove messages, which take `size` bytes together: the peer has them."""
        for number in numbers:
            self._turn.writes.delete(FAMILY, self._key(number))
        self.messages -= len(numbers)
        self.bytes -= size
        self.addressed = self.addressed and self.messages > 0

    def read(self, first: int, last: int, bytes_max: int) -> list[Stored]:
        """Return the messages from `first` to `last`, as many as `bytes_max` allows, at least one if there is one.

        Everything that was written up to `last` must be committed.
        """
        found: list[Stored] = []
        total = 0
        for key, value in self._storage.scan(FAMILY, self._key(first), self._key(last + 1)):
            size = len(key) + len(value)
            if found and total + size > bytes_max:
                break
            total += size
            check_version(value, VALUE_VERSION, FAMILY)
            groups: list[bytes] = []
            plain = True
            waited = False
            stood: tuple[bytes, int] | None = None
            pos = 1
            try:
                if value[:1] == _ADDRESSED:
                    groups, plain, waited, stood, pos = unpack_address(value, pos)
                body = pos + MESSAGE_KEY_BYTES
                message = unpack_message(value[pos:body], value, body, self._clock)
            except (*UNREADABLE, FrameError) as error:
                raise corrupt(FAMILY, key, error) from None
            found.append(Stored(_number(key), message, size, groups, plain, waited, stood))
        return found

    def sizes(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the number and the bytes of each message from `first` to `last`; all must be committed."""
        rows = self._storage.scan(FAMILY, self._key(first), self._key(last + 1))
        return [(_number(key), len(key) + len(value)) for key, value in rows]

    def shift(self, first: int, by: int) -> None:
        """Give all messages from `first` on numbers that are larger by `by`; all must be committed."""
        rows = list(self._storage.scan(FAMILY, self._key(first), self._key((1 << 64) - 1)))
        for key, _ in rows:
            self._turn.writes.delete(FAMILY, key)
        for key, value in rows:
            self._turn.writes.put(FAMILY, self._key(_number(key) + by), value)

    def _key(self, number: int) -> bytes:
        return self._peer + number.to_bytes(8, "big")


def recover(storage: Storage, turn: Turn, clock: Clock) -> dict[bytes, Outbox]:
    """Return what an earlier life of this node left, by the peer's store id."""
    found: dict[bytes, Outbox] = {}
    for key, value in storage.scan(FAMILY, b"", b""):
        check_version(value, VALUE_VERSION, FAMILY)
        if len(key) != _KEY_BYTES:
            raise corrupt(FAMILY, key, AssertionError("a key of another length"))
        peer = key[:STORE_ID_BYTES]
        if peer not in found:
            found[peer] = Outbox(storage, turn, clock, peer, 0)
        found[peer].found(_number(key), len(key) + len(value), value[:1] == _ADDRESSED)
    return found


def _number(key: bytes) -> int:
    return int.from_bytes(key[STORE_ID_BYTES:], "big")
