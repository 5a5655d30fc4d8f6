"""Keys: every key pair of a cluster, computed from its cookie.

Owns the derivation: cookie -> seed -> one CURVE pair for each label. Two nodes with one cookie compute the same pairs
without ever having met. Every holder of the cookie can be any member: this keeps out faults and strangers, not a holder
of the cookie.

Who connects has the pair of its own name and of the name of whom it wants to reach (`towards`): a node that has taken
over an address refuses what is meant for another. Every node answers with the pair of SERVER, so that one of which only
the address is known can be asked who it is, with the pair of JOIN alone.

It must not know ZeroMQ: the arithmetic on the curve is passed in by the shell. Neither the cookie, the
seed nor a secret key appears in a repr, an error or a log.
"""

from base64 import b85encode
from collections.abc import Callable
from hashlib import blake2b, scrypt
from typing import Final, final

# The name by which a node goes before the cluster knows it. Node names hold an @: no node has this one.
JOIN: Final = "join"
# The label of the pair that every node answers with.
SERVER: Final = "server"

# The cost of trying one cookie: 128 * r * N = 128 MiB and about half a second. OpenSSL's own limit is 32 MiB.
SCRYPT_N: Final = 2**17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SCRYPT_MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024

# The salt keeps our seeds apart from other programs' use of the same cookie; it can't be random, since all nodes
# have to compute the same seed before they ever talk.
_SALT: Final = b"zvmq cluster keys 1"

_B85: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85: Final = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_TO_Z85: Final = bytes.maketrans(_B85, _Z85)

_seeds: dict[bytes, bytes] = {}


@final
class Keys:
    """The key pairs of one cookie, as 40 bytes of Z85 each, which is what ZeroMQ takes."""

    def __init__(self, seed: bytes, public_key: Callable[[bytes], bytes]) -> None:
        self._seed = seed
        self._public_key = public_key
        self._pairs: dict[str, tuple[bytes, bytes]] = {}

    def __repr__(self) -> str:
        return "Keys(...)"

    def pair(self, label: str) -> tuple[bytes, bytes]:
        """Return (public, secret) of a label."""
        pair = self._pairs.get(label)
        if pair is None:
            secret = blake2b(label.encode(), key=self._seed, digest_size=32, person=b"zvmq curve pair").digest()
            # Both base-85 forms take 4 bytes, most significant first; they differ in the alphabet only.
            secret_z85 = b85encode(secret).translate(_TO_Z85)
            pair = (self._public_key(secret_z85), secret_z85)
            self._pairs[label] = pair
        return pair

    def public(self, label: str) -> bytes:
        """Return the public key of a label."""
        return self.pair(label)[0]


def towards(node: str, name: str) -> str:
    """Return the label of the pair that a node, or JOIN, connects to `name` with; "" is whoever answers."""
    # There are no blanks in names.
    return f"{node} to {name}" if name else node


def derive(cookie: str, public_key: Callable[[bytes], bytes]) -> Keys:
    """Compute the keys of a cookie; `public_key` turns a secret key into its public one (Z85, `zmq.curve_public`).

    The seed costs half a second and is computed once a process for each cookie.
    """
    # The cookie itself need not stay in memory for longer than its caller wants.
    known = blake2b(cookie.encode(), digest_size=32).digest()
    seed = _seeds.get(known)
    if seed is None:
        seed = scrypt(
            cookie.encode(),
            salt=_SALT,
            n=SCRYPT_N,
            r=SCRYPT_R,
            p=SCRYPT_P,
            maxmem=SCRYPT_MEMORY_BYTES_MAX,
            dklen=32,
        )
        _seeds[known] = seed
    return Keys(seed, public_key)
