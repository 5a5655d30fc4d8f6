"""The site: what the parts that move sessions see of the cluster around their node.

Owns nothing: the mesh implements it. Nodes are named by their store ids here, since it is stores that have sessions.
"""

from typing import Protocol

from broker.core.epoch import Epoch


class Site(Protocol):
    """One node's view of the others, and its way to them."""

    def store_id(self) -> bytes:
        """Return this node's store id."""

    def others(self) -> list[bytes]:
        """Return the other members, whether they run or not."""

    def is_running(self, store_id: bytes) -> bool:
        """Say whether a member runs and can be told something; this node always does."""

    def is_complete(self, besides: bytes = b"") -> bool:
        """Say whether all members but `besides` run, and all that they say of themselves is known here."""

    def heard(self) -> dict[bytes, tuple[int, int]]:
        """Return up to where each other member has told of its sessions, as far as that is known here."""

    def known_to_others(self) -> dict[bytes, tuple[int, int]]:
        """Return up to where all the others know that of each other member, by what that has said last."""

    def version(self) -> tuple[int, int]:
        """Return (generation, version) of this node's wishes, as told so far."""

    def touch(self) -> None:
        """Have the next version of this node's wishes told, although nothing changed."""

    def known_version(self, store_id: bytes) -> tuple[int, int]:
        """Return (generation, version) of a member's wishes as known here with its sessions; (0, 0) if they aren't."""

    def is_current(self, store_id: bytes) -> bool:
        """Say whether all that a member says of its sessions and wills is known here; of this node it always is."""

    def has_session(self, store_id: bytes, client_id: str) -> bool:
        """Say whether a member tells of a session of a client that it has, or of which it has something left."""

    def has_will(self, store_id: bytes, client_id: str) -> bool:
        """Say whether a member tells of a client's will that it has; this node's own tables count as well."""

    def home(self, client_id: str) -> Epoch:
        """Return the epoch of the latest home that is known of a client id; NO_EPOCH if there is none."""

    def tell(self, store_id: bytes, frame: bytes) -> None:
        """Send a frame on the control connection, or lose it."""

    def send(self, store_id: bytes, frame: bytes) -> None:
        """Send a frame on the bulk connection, or lose it."""
