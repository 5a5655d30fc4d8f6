"""What remains of a node that has left its cluster: its store, put aside, and a marker.

Owns `<data_dir>/LEFT` and `<data_dir>/left-<UTC time>/`. While the marker is there the node joins nobody, whatever
`cluster.discovery` says: else an orchestrator that starts it again would have it back in the cluster within seconds. An
explicit `cluster join` removes it. The data directory may be a mount point, so that it is its contents that move.

The marker is written first and names the place, so that what was interrupted goes on there. A store that is there gets
a mark of its own: whoever finds one with that mark knows that somebody has put it back, or a copy of it, whatever has
become of the marker and the place.
"""

import contextlib
import os
import time

MARKER = "LEFT"
STORE = "store"
# In the store, once it is put aside.
MARK = "PUT-ASIDE"


class PutBackError(Exception):
    """The store is that of a node that has left, and had been put aside."""


def marker_path(data_dir: str) -> str:
    """Return the path of the marker."""
    return os.path.join(data_dir, MARKER)


def has_left(data_dir: str) -> bool:
    """Say whether the node has left its cluster and not joined one since."""
    return os.path.exists(marker_path(data_dir))


def put_aside(data_dir: str, name: str, utc_s: float) -> str:
    """Move the store of a node that has left; returns where it is. Raises PutBackError or OSError."""
    store = os.path.join(data_dir, STORE)
    place = _place(data_dir)
    if os.path.exists(os.path.join(store, MARK)) or (place and os.path.exists(os.path.join(place, STORE))):
        raise PutBackError(
            f"the store in {store} is that of a node that left its cluster, and had been put aside: it can't come "
            "back. Move it away and start again; the node is then new and empty"
        )
    if not place:
        place = os.path.join(data_dir, time.strftime("left-%Y%m%dT%H%M%SZ", time.gmtime(utc_s)))
        _write_marker(data_dir, name, place)
    os.makedirs(place, mode=0o700, exist_ok=True)
    aside = os.path.join(place, STORE)
    os.rename(store, aside)
    # Only now: what is interrupted before was not put back. A full disk may have no room for it, and then has none.
    with contextlib.suppress(OSError), open(os.path.join(aside, MARK), "w", encoding="utf-8"):
        pass
    _sync(aside)
    _sync(place)
    _sync(data_dir)
    return place


def forget(data_dir: str) -> None:
    """The node is a member of a cluster again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(marker_path(data_dir))


def _place(data_dir: str) -> str:
    """Return where the store is put aside by the marker, "" without one."""
    try:
        with open(marker_path(data_dir), encoding="utf-8") as marker:
            return os.path.join(data_dir, marker.readline().strip())
    except FileNotFoundError:
        return ""


def _write_marker(data_dir: str, name: str, place: str) -> None:
    text = (
        f"{os.path.basename(place)}\n"
        f"{name} left its cluster. Its store is in the directory named above. While this file is here the node\n"
        "ignores cluster.discovery; `vmq-admin cluster join discovery-node=NAME@HOST` removes it.\n"
    )
    fresh = marker_path(data_dir) + ".new"
    with open(fresh, "w", encoding="utf-8") as marker:
        marker.write(text)
        marker.flush()
        os.fsync(marker.fileno())
    os.rename(fresh, marker_path(data_dir))
    _sync(data_dir)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
