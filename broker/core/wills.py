"""Wills: who left one, and when those whose connection is gone are due.

It owns the family `will` of the store and the deadlines. It does not publish: the owner takes what is due.

    will  client id  version u8, flags u8 (QoS, 4 retain, 8 expiry, 16 user name), deadline u64 (0: connected),
                     delay u32, expiry u32, user name str, topic str, properties u32 and bytes, payload

Theory of operation
-------------------
A will is stored with its CONNECT, also that of a session which isn't, so that it comes due although everything was
killed. It goes with a proper DISCONNECT [MQTT-3.1.2-10]. Else it waits for its delay, or the end of its session if that
comes first [MQTT-3.1.2-8], and is forgotten if the client is back in time [MQTT-3.1.3-9].
"""

import heapq
import math
import struct
from typing import Final, final

from broker.core.session_store import SessionStore
from broker.core.storage import Storage
from broker.core.stored_message import UNREADABLE, Clock, check_version, corrupt, string, unpack_string
from broker.core.will import Will

VALUE_VERSION: Final = 1
_RETAIN: Final = 4
_EXPIRY: Final = 8
_USER_NAME: Final = 16
_HEAD: Final = struct.Struct(">BBQII")
_STALE_DEADLINES_MAX: Final = 64


@final
class LeftWill:
    """A client's will; `due` is 0.0 while it is connected."""

    __slots__ = ("client_id", "due", "user_name", "will")

    def __init__(self, client_id: str, user_name: str | None, will: Will) -> None:
        self.client_id = client_id
        self.user_name = user_name
        self.will = will
        self.due: float = 0.0


@final
class Wills:
    """The wills of a node, by client id."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._left: dict[str, LeftWill] = {}
        self._due: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._left)

    def recover(self, storage: Storage, now: float, grace_s: float, delay_s_max: float, lasting: set[str]) -> None:
        """Read what is stored. Whoever was connected lost its connection to us, and has the grace to come back.

        `lasting` are the client ids whose sessions outlived that: the others ended, and with them their delays.
        """
        clock = self._store.clock
        for key, value in storage.scan("will", b"", b""):
            check_version(value, VALUE_VERSION, "will")
            try:
                left, deadline_ms = unpack_left_will(key, value)
            except UNREADABLE as error:
                raise corrupt("will", key, error) from None
            self._left[left.client_id] = left
            if deadline_ms:
                due = clock.to_monotonic(deadline_ms)
            else:
                delay_s = min(float(left.will.delay_s), delay_s_max) if left.client_id in lasting else 0.0
                due = now + max(delay_s, grace_s)
            self._schedule(left, due)

    def leave(self, client_id: str, user_name: str | None, will: Will) -> None:
        """A client connected and left its will."""
        left = LeftWill(client_id, user_name, will)
        self._left[client_id] = left
        self._put(left)

    def discard(self, client_id: str) -> None:
        """The client said goodbye properly, or is back: its will goes."""
        if client_id in self._left:
            del self._left[client_id]
            self._store.writes.delete("will", client_id.encode())

    def schedule(self, client_id: str, due: float) -> None:
        """The client's connection is gone; `take_due` has its will from `due` on."""
        left = self._left.get(client_id)
        if left is not None:
            self._schedule(left, due)
            self._put(left)

    def get(self, client_id: str) -> LeftWill | None:
        """Return the will of a client, if it left one."""
        return self._left.get(client_id)

    def take(self, client_id: str) -> LeftWill | None:
        """Take the will of a client that is not connected, due or not: its session ended."""
        left = self._left.get(client_id)
        if left is None or left.due == 0.0:
            return None
        self.discard(client_id)
        return left

    def take_due(self, now: float) -> list[LeftWill]:
        """Take the wills that are due."""
        due: list[LeftWill] = []
        while self._due and self._due[0][0] <= now:
            deadline, client_id = heapq.heappop(self._due)
            left = self._left.get(client_id)
            # Another entry, or none, stands for a will that was scheduled anew or went.
            if left is not None and left.due == deadline:
                self.discard(client_id)
                due.append(left)
        return due

    def next_deadline(self) -> float:
        """Return when `take_due` may have something, in monotonic seconds; infinity when never."""
        return self._due[0][0] if self._due else math.inf

    def _schedule(self, left: LeftWill, due: float) -> None:
        left.due = due
        heapq.heappush(self._due, (due, left.client_id))
        if len(self._due) > 2 * len(self._left) + _STALE_DEADLINES_MAX:
            # Those of clients that came back in time would otherwise stay until their time comes.
            self._due = [(left.due, client_id) for client_id, left in self._left.items() if left.due != 0.0]
            heapq.heapify(self._due)

    def suspend(self, client_id: str) -> LeftWill | None:
        """Take the will of a client whose session goes to another node, and leave it in the store until `forget`."""
        return self._left.pop(client_id, None)

    def forget(self, client_id: str) -> None:
        """The other node has what `suspend` took."""
        if client_id not in self._left:
            self._store.writes.delete("will", client_id.encode())

    def adopt(self, left: LeftWill, due: float) -> None:
        """Take over the will of a client that is not connected, from another node; `due` as in `schedule`."""
        self._left[left.client_id] = left
        self._schedule(left, due)
        self._put(left)

    def _put(self, left: LeftWill) -> None:
        self._store.writes.put("will", left.client_id.encode(), pack_left_will(left, self._store.clock))

    def validate(self) -> None:
        """Check that every will that waits has a deadline in the heap."""
        waiting = {(left.due, left.client_id) for left in self._left.values() if left.due != 0.0}
        assert waiting <= set(self._due)


def pack_left_will(left: LeftWill, clock: Clock) -> bytes:
    """Return the stored form of a will."""
    will = left.will
    flags = will.qos
    if will.retain:
        flags |= _RETAIN
    if will.expiry_s >= 0:
        flags |= _EXPIRY
    if left.user_name is not None:
        flags |= _USER_NAME
    deadline_ms = clock.to_utc_ms(left.due)
    return b"".join(
        (
            _HEAD.pack(VALUE_VERSION, flags, deadline_ms, will.delay_s, max(will.expiry_s, 0)),
            string(left.user_name or ""),
            len(will.topic).to_bytes(2, "big"),
            will.topic,
            len(will.properties).to_bytes(4, "big"),
            will.properties,
            will.payload,
        )
    )


def unpack_left_will(key: bytes, value: bytes) -> tuple[LeftWill, int]:
    """Return a stored will and its deadline in UTC ms; one of UNREADABLE if it can't be read."""
    _version, flags, deadline_ms, delay_s, expiry_s = _HEAD.unpack_from(value)
    user_name, pos = unpack_string(value, _HEAD.size)
    topic, pos = unpack_string(value, pos)
    payload: int = pos + 4 + int.from_bytes(value[pos : pos + 4], "big")
    if payload > len(value):
        raise IndexError("properties that go on behind the record")
    will = Will(
        topic,
        value[payload:],
        value[pos + 4 : payload],
        flags & 3,
        flags & _RETAIN != 0,
        delay_s,
        expiry_s if flags & _EXPIRY else -1,
    )
    left = LeftWill(key.decode(), user_name.decode() if flags & _USER_NAME else None, will)
    return left, deadline_ms
