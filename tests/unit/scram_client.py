"""The client's side of SCRAM-SHA-256, to try the server's with."""

import base64
import hashlib
import hmac

from broker.core.scram import prepare


class ScramClient:
    """One authentication; `nonce` is the client's."""

    def __init__(self, user: str, password: str, nonce: str = "clientnonce", header: str = "n,,") -> None:
        self._password = prepare(password)
        self._header = header
        self._bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self._signature = b""

    def first(self) -> bytes:
        return (self._header + self._bare).encode()

    def final(self, server_first: bytes) -> bytes:
        text = server_first.decode()
        fields = dict(part.split("=", 1) for part in text.split(","))
        salt, iterations = base64.b64decode(fields["s"]), int(fields["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self._password.encode(), salt, iterations)
        client_key = digest(salted, b"Client Key")
        without_proof = f"c={base64.b64encode(self._header.encode()).decode()},r={fields['r']}"
        message = f"{self._bare},{text},{without_proof}".encode()
        signature = digest(hashlib.sha256(client_key).digest(), message)
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        self._signature = digest(digest(salted, b"Server Key"), message)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verifies(self, server_final: bytes) -> bool:
        """Say whether the server knows the password's verifier."""
        return server_final == b"v=" + base64.b64encode(self._signature)


def digest(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
