"""Telling systemd how the node does: ready, stopping, alive.

Owns the protocol of sd_notify(3): a datagram of `NAME=value` lines to the Unix socket that $NOTIFY_SOCKET names, where
`@` begins an abstract one. Decides nothing: the supervisor says when. Nobody to tell is the ordinary case, and a
manager that does not listen is no reason to fail.
"""

import os
import socket
from collections.abc import MutableMapping

# How often the watchdog hears of us within its time: a child that is being restarted at one of those moments must not
# be the end of the node.
PINGS_PER_WATCHDOG = 4


class Notifier:
    """Says things to the service manager at `address`; an empty one is nobody.

    `watchdog_s` is how often `alive` has to be called, 0.0 when nobody waits for it.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> "Notifier":
        """Take what the service manager left for this process, so that no child takes it for its own."""
        address = environment.pop("NOTIFY_SOCKET", "")
        timeout_us = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        wanted = timeout_us.isdigit() and process in ("", str(os.getpid()))
        return cls(address, int(timeout_us) / 1_000_000 / PINGS_PER_WATCHDOG if wanted else 0.0)

    def ready(self, status: str) -> None:
        """Say that the node serves; `status` is for people."""
        self._say(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that the clean stop has begun."""
        self._say("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """Satisfy the watchdog until the next time."""
        self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sending:
            try:
                sending.sendto(text.encode(), self._address)
            except OSError:
                # It went away, or does not read. There is nobody else to tell.
                return
