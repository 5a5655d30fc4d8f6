"""The run directory of a node: `<data_dir>/run`, where its local sockets and its lock live.

A Unix socket address holds 107 bytes, and a data_dir may be longer. So the directory is opened once and its
entries are addressed through `/proc/self/fd/<descriptor>/`, which is short whatever the data_dir.
Such a path means something to this process only: each process opens its own RunDir.
"""

import fcntl
import os
import time

LOCK_NAME = "lock"


class NodeRunningError(Exception):
    """Another node is running on the same data_dir."""


class RunDir:
    """The open run directory of one data_dir. Creates both, mode 0700, if they are missing; raises OSError."""

    def __init__(self, data_dir: str) -> None:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        self.directory = os.path.join(os.path.abspath(data_dir), "run")
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        # A directory that somebody made by hand is not good enough: the admin socket is guarded by its mode.
        os.chmod(self.directory, 0o700)
        self._descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def path(self, name: str) -> str:
        """The path of an entry, valid in this process while the RunDir is open."""
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def endpoint(self, name: str) -> str:
        """The ZeroMQ ipc endpoint of an entry, valid in this process while the RunDir is open."""
        return "ipc://" + self.path(name)

    def lock(self, patience_s: float = 5.0) -> int:
        """Take the lock of this node and return its descriptor; raises NodeRunningError.

        The supervisor hands the descriptor to its children, so the lock is held until the last process of the
        node has ended. When only children are left (their supervisor was killed) they are about to end too, and
        are waited for up to `patience_s` seconds.
        """
        descriptor = os.open(self.path(LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                supervisor = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                if _is_running(supervisor) or time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise NodeRunningError(
                        f"another node is running on {os.path.dirname(self.directory)} (process {supervisor or '?'})"
                    ) from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def close(self) -> None:
        """Close the directory; paths and endpoints of this RunDir are void afterwards."""
        os.close(self._descriptor)


def _is_running(process: str) -> bool:
    # A zombie has no executable any more, and holds no lock: its children do, for a moment.
    return process.isdigit() and os.path.exists(f"/proc/{process}/exe")
