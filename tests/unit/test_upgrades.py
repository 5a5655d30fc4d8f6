"""Stores that older programs wrote: each step, with a crash in the middle, and what a node finds afterwards."""

import pytest
from core_helpers import STORE_ID, Node

from broker.core.storage import KEY_STORE_ID, META_VERSION, MemoryStorage, StorageError, WriteBatch, upgrade_schema
from broker.core.upgrades import UPGRADES

KEPT = 2500


def old_store(store_id: bytes = STORE_ID) -> MemoryStorage:
    """A store of schema 1, in which retained messages are named by their topics."""
    storage = MemoryStorage()
    batch = WriteBatch()
    batch.put("meta", b"schema", b"\x01")
    if store_id:
        batch.put("meta", KEY_STORE_ID, bytes([META_VERSION]) + store_id)
    for number in range(KEPT):
        topic = b"kept/%d" % number
        message_id = STORE_ID + number.to_bytes(8, "big")
        body = b"\x05" + bytes(8) + b"\0\x01p" + len(topic).to_bytes(2, "big") + topic + bytes(4) + b"value"
        batch.put("retained", topic, b"\x01\0" + bytes(8) + message_id + body)
    storage.commit(batch)
    return storage


class Crash(Exception):
    """The process ended here."""


class Dying:
    """A store whose process ends with the second commit."""

    def __init__(self, storage: MemoryStorage) -> None:
        # A compiled class can't be the base of one that is not.
        self.get = storage.get
        self.scan = storage.scan
        self.scan_reverse = storage.scan_reverse
        self.close = storage.close
        self._commit = storage.commit
        self._commits_left = 1

    def commit(self, batch: WriteBatch) -> None:
        if not self._commits_left:
            raise Crash
        self._commits_left -= 1
        self._commit(batch)


def test_retained_messages_named_by_topics_are_found() -> None:
    storage = old_store()
    upgrade_schema(storage, UPGRADES)
    node = Node(storage=storage, incarnation=2)
    (message,) = node.owner.retained.match(b"kept/7", node.now)
    assert (message.topic, message.payload, message.qos, message.publisher) == (b"kept/7", b"value", 1, "p")
    assert len(node.owner.retained) == KEPT


def test_a_crash_in_the_middle_is_gone_on_from() -> None:
    storage = old_store()
    with pytest.raises(Crash):
        upgrade_schema(Dying(storage), UPGRADES)
    survivor = storage.survivor()
    upgrade_schema(survivor, UPGRADES)
    assert len(Node(storage=survivor, incarnation=2).owner.retained) == KEPT


def test_a_store_without_an_id_has_nothing_that_could_be_named() -> None:
    with pytest.raises(StorageError, match="no store id"):
        upgrade_schema(old_store(b""), UPGRADES)
