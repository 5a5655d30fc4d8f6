"""What passes between the mesh and its transport: inputs that happened, commands to carry out.

Both are plain values, so that a simulator can stand where the sockets do. A node is named by its node
name, or by JOIN for whoever uses the join key. `connection` is the transport's id of an incoming
connection; it is empty for what came back on a connection that this node opened.
"""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class FrameReceived:
    """A frame of `node`, as its key says, arrived."""

    node: str
    connection: bytes
    frame: bytes


@dataclass(slots=True, frozen=True)
class PeerConnected:
    """The control connection to `node` is up and its handshake done; JOIN: that of `OpenJoin`."""

    node: str


@dataclass(slots=True, frozen=True)
class PeerDisconnected:
    """The control connection to `node` is down; the transport goes on trying."""

    node: str


@dataclass(slots=True, frozen=True)
class PeerRefused:
    """`node` doesn't admit this node's key. The transport does not try again by itself."""

    node: str


@dataclass(slots=True, frozen=True)
class JoinFailed:
    """The connection of `OpenJoin` can't be had; `kind` is handshake, refused, unknown or invalid, `text` says why."""

    kind: str
    text: str


MeshInput = FrameReceived | PeerConnected | PeerDisconnected | PeerRefused | JoinFailed


@dataclass(slots=True, frozen=True)
class ConnectPeer:
    """Connect to a member, or connect anew; its address is host:port."""

    node: str
    address: str


@dataclass(slots=True, frozen=True)
class DisconnectPeer:
    """Close the connections to a member and forget it."""

    node: str


@dataclass(slots=True, frozen=True)
class SendControl:
    """Send a frame that never waits behind bulk."""

    node: str
    frame: bytes


@dataclass(slots=True, frozen=True)
class SendBulk:
    """Send a frame of messages."""

    node: str
    frame: bytes


@dataclass(slots=True, frozen=True)
class Reply:
    """Answer on an incoming connection."""

    connection: bytes
    frame: bytes


@dataclass(slots=True, frozen=True)
class Admit:
    """Let the key of `node` in."""

    node: str


@dataclass(slots=True, frozen=True)
class Revoke:
    """Let the key of `node` in no longer."""

    node: str


@dataclass(slots=True, frozen=True)
class OpenJoin:
    """Connect to `node`, or "" for whoever is there, with the join key; one such connection exists at a time."""

    node: str
    address: str


@dataclass(slots=True, frozen=True)
class SendJoin:
    """Send a frame on the connection of `OpenJoin`."""

    frame: bytes


@dataclass(slots=True, frozen=True)
class CloseJoin:
    """Close the connection of `OpenJoin`."""


MeshCommand = (
    ConnectPeer | DisconnectPeer | SendControl | SendBulk | Reply | Admit | Revoke | OpenJoin | SendJoin | CloseJoin
)
