"""SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), as a method of enhanced authentication.

It owns the exchange of four messages and the derivation of a verifier from a password. It knows no file and no chance:
verifiers come through `Verifiers`, the server's nonce from whoever makes the exchange.

Theory of operation
-------------------
    client: n,,n=user,r=nonce           server: r=nonce+ours,s=salt,i=iterations
    client: c=biws,r=nonce+ours,p=proof server: v=signature

The server holds neither the password nor anything from which a client could pretend to be the user. A user that is not
known is answered like one that is, with a salt that is always the same for the name, and fails at the end: whoever
asks does not learn who exists. Channel binding is not offered. Whatever the client says, `receive` returns a Step.
"""

import base64
import binascii
import hashlib
import hmac
import stringprep
import unicodedata
from collections.abc import Callable
from typing import Final, Protocol, final

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS, Step
from broker.mqtt.reasons import Reason

METHOD: Final = "SCRAM-SHA-256"
ITERATIONS_MIN: Final = 4096
MESSAGE_BYTES_MAX: Final = 4096
_SALT_BYTES: Final = 16

# [RFC 4013 2.3] What a user name or password must not hold.
_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


@final
class Verifier:
    """What a server keeps of a password."""

    __slots__ = ("iterations", "salt", "server_key", "stored_key")

    def __init__(self, salt: bytes, iterations: int, stored_key: bytes, server_key: bytes) -> None:
        self.salt = salt
        self.iterations = iterations
        self.stored_key = stored_key
        self.server_key = server_key


class Verifiers(Protocol):
    """Who may come in."""

    def find(self, user: str) -> Verifier | None:
        """Return the user's verifier, None for a user that is not known. The name is prepared already."""


@final
class MemoryVerifiers:
    """Verifiers in memory."""

    def __init__(self) -> None:
        self._verifiers: dict[str, Verifier] = {}

    def add(self, user: str, password: str, salt: bytes, iterations: int = ITERATIONS_MIN) -> None:
        """Add a user; ValueError when the name or the password holds what it must not."""
        self._verifiers[prepare(user)] = derive(password, salt, iterations)

    def find(self, user: str) -> Verifier | None:
        """Return the user's verifier."""
        return self._verifiers.get(user)


def derive(password: str, salt: bytes, iterations: int) -> Verifier:
    """Return the verifier of a password [RFC 5802 3]; ValueError when it holds what it must not."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare(password).encode(), salt, iterations)
    client_key = _hmac(salted, b"Client Key")
    return Verifier(salt, iterations, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))


def prepare(text: str) -> str:
    """Return the text as SASLprep has it (RFC 4013); ValueError when it holds what it must not, or nothing."""
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.normalize("NFKC", mapped)
    if not prepared:
        raise ValueError("an empty name or password")
    for char in prepared:
        if stringprep.in_table_a1(char) or any(table(char) for table in _PROHIBITED):
            raise ValueError("a character that names and passwords must not hold")
    right_to_left = [stringprep.in_table_d1(char) for char in prepared]
    left_to_right = any(stringprep.in_table_d2(char) for char in prepared)
    if any(right_to_left) and (left_to_right or not right_to_left[0] or not right_to_left[-1]):
        # [RFC 3454 6] All of it runs from right to left, beginning and end included.
        raise ValueError("text of both directions")
    return prepared


class _Refused(Exception):
    """The client's message is not one of this exchange; the text is for us."""


@final
class ScramExchange:
    """One authentication. `server_nonce` is random text without commas, `secret` the same for all exchanges."""

    def __init__(self, verifiers: Verifiers, server_nonce: str, secret: bytes) -> None:
        self._verifiers = verifiers
        self._server_nonce = server_nonce
        self._secret = secret
        self._user = ""
        self._known = False
        self._verifier = Verifier(b"", 0, b"", b"")
        self._nonce = ""
        self._header = ""
        self._first_bare = ""
        self._server_first = ""

    def receive(self, data: bytes) -> Step:
        """Take the client's next message."""
        try:
            if len(data) > MESSAGE_BYTES_MAX:
                raise _Refused("a message that is too long")
            text = data.decode()
            if not self._server_first:
                return self._first(text)
            return self._final(text)
        except (_Refused, UnicodeDecodeError, binascii.Error, ValueError):
            return Step(FAILURE, reason=int(Reason.NOT_AUTHORIZED))

    def _first(self, text: str) -> Step:
        flag, _, rest = text.partition(",")
        authzid, comma, bare = rest.partition(",")
        if flag not in ("n", "y") or not comma:
            raise _Refused("channel binding, or no header")
        fields = _fields(bare, "nr")
        user = prepare(_decode_name(fields["n"]))
        if authzid and (not authzid.startswith("a=") or prepare(_decode_name(authzid[2:])) != user):
            raise _Refused("in the name of somebody else")
        if not fields["r"]:
            raise _Refused("no nonce")
        found = self._verifiers.find(user)
        self._known = found is not None
        self._verifier = found if found is not None else self._nobody(user)
        self._user = user
        self._header = f"{flag},{authzid},"
        self._first_bare = bare
        self._nonce = fields["r"] + self._server_nonce
        salt = base64.b64encode(self._verifier.salt).decode()
        self._server_first = f"r={self._nonce},s={salt},i={self._verifier.iterations}"
        return Step(CONTINUE, self._server_first.encode())

    def _nobody(self, user: str) -> Verifier:
        """A verifier that nobody has a password for, and that is always the same for the name."""
        digest = _hmac(self._secret, user.encode())
        return Verifier(digest[:_SALT_BYTES], ITERATIONS_MIN, digest, digest)

    def _final(self, text: str) -> Step:
        without_proof, comma, proof = text.rpartition(",p=")
        if not comma:
            raise _Refused("no proof")
        fields = _fields(without_proof, "cr")
        if base64.b64decode(fields["c"], validate=True) != self._header.encode() or fields["r"] != self._nonce:
            raise _Refused("another header or nonce")
        message = f"{self._first_bare},{self._server_first},{without_proof}".encode()
        signature = _hmac(self._verifier.stored_key, message)
        claimed = base64.b64decode(proof, validate=True)
        if len(claimed) != len(signature):
            raise _Refused("a proof of another length")
        client_key = bytes([one ^ other for one, other in zip(claimed, signature, strict=True)])
        right = hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key)
        if not right or not self._known:
            return Step(FAILURE, reason=int(Reason.NOT_AUTHORIZED))
        said = base64.b64encode(_hmac(self._verifier.server_key, message))
        return Step(SUCCESS, b"v=" + said, self._user)


def scram_method(verifiers: Verifiers, make_nonce: Callable[[], str], secret: bytes) -> Callable[[], ScramExchange]:
    """Return what begins an exchange, for a MethodTable."""
    return lambda: ScramExchange(verifiers, make_nonce(), secret)


def _fields(text: str, names: str) -> dict[str, str]:
    """Read `name=value` pairs that have to come in this order; what follows them is an extension and disregarded."""
    parts = text.split(",")
    if len(parts) < len(names):
        raise _Refused("a field is missing")
    fields: dict[str, str] = {}
    for index, part in enumerate(parts):
        name, equals, value = part.partition("=")
        # [RFC 5802 5.1] A mandatory extension that is not known must be refused; it would come first.
        if not equals or len(name) != 1 or not name.isalpha() or name in fields or name == "m":
            raise _Refused("a field that is none")
        if index < len(names) and name != names[index]:
            raise _Refused("fields in another order")
        fields[name] = value
    return fields


def _decode_name(text: str) -> str:
    """Undo what a user name has instead of comma and equals sign."""
    if "=" in text.replace("=2C", "").replace("=3D", ""):
        raise _Refused("an equals sign in a name")
    return text.replace("=2C", ",").replace("=3D", "=")


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
