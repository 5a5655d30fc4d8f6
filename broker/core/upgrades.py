"""Upgrades: what brings a store that an older program wrote up to date, by the schema version that it leads to.

Owns the steps and nothing else; `storage.upgrade_schema` takes them one after the other. A step knows the old layout,
which nobody else does any more.
"""

from collections.abc import Callable
from typing import Final

from broker.core.retained_rows import FAMILY, retained_row
from broker.core.rows import ROW_VERSION, bucket_of
from broker.core.storage import KEY_STORE_ID, Storage, StorageError, WriteBatch, put_schema

_ROWS_AT_ONCE: Final = 1000


def rename_retained(storage: Storage) -> None:
    """From 1 to 2: retained messages were named by their topics, and are rows of this node's table now."""
    stored = storage.get("meta", KEY_STORE_ID)
    # Behind its version.
    store_id = b"" if stored is None else stored[1:]
    batch = WriteBatch()
    renamed = 0
    for key, value in storage.scan(FAMILY, b"", b""):
        if not store_id:
            raise StorageError("the store holds retained messages and has no store id: it is corrupt")
        # What a crash has left half done: no topic begins with a store id, which is not UTF-8.
        if key.startswith(store_id):
            continue
        batch.delete(FAMILY, key)
        row = retained_row(key)
        batch.put(FAMILY, store_id + bucket_of(key).to_bytes(2, "big") + row, bytes((ROW_VERSION,)) + value)
        renamed += 1
        if renamed % _ROWS_AT_ONCE == 0:
            storage.commit(batch)
            batch = WriteBatch()
    put_schema(batch, 2)
    storage.commit(batch)


UPGRADES: Final[dict[int, Callable[[Storage], None]]] = {2: rename_retained}
