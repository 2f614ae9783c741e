"""A token issuer on a socket, which can hang, answer wrongly, rotate its keys or go away."""

import json
import socket
import ssl
import threading
import time
import warnings
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning

RSA = (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm)
ED25519 = (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm)
MAKERS = {
    "EdDSA": ED25519,
    "Ed25519": ED25519,
    "EdDSA of Ed448": (ed448.Ed448PrivateKey.generate, OKPAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ES384": (lambda: ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    "ES512": (lambda: ec.generate_private_key(ec.SECP521R1()), ECAlgorithm),
    **dict.fromkeys(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], RSA),
    "RS256 of 1024 bits": (lambda: rsa.generate_private_key(65537, 1024), RSAAlgorithm),
}
jws = jwt.PyJWS()
jws.register_algorithm("Ed25519", OKPAlgorithm())


class Key:
    """A key pair, and its public half as a member of a key set (RFC 7517)."""

    def __init__(self, algorithm: str, kid: str | None, **members: Any) -> None:
        """`members` are added to those of the key set; one that is None is left out."""
        make, family = MAKERS[algorithm]
        self.algorithm = algorithm.split()[0]
        self.kid = kid
        self.private = make()
        public = json.loads(family.to_jwk(self.private.public_key()))
        members = public | {"kid": kid, "alg": self.algorithm} | members
        self.jwk = {name: value for name, value in members.items() if value is not None}

    def sign(self, claims: dict[str, Any], algorithm: str | None = None, **headers: Any) -> str:
        """A token with any `claims`; a header that is None is left out."""
        headers = {"kid": self.kid} | headers
        headers = {name: value for name, value in headers.items() if value is not None}
        with warnings.catch_warnings(action="ignore", category=InsecureKeyLengthWarning):
            return jws.encode(
                json.dumps(claims).encode(), self.private, algorithm or self.algorithm, headers
            )


class Issuer:
    """Answers every connection with `answer`: bytes to send, or None to stay silent."""

    def __init__(self, *keys: Key, tls: ssl.SSLContext | None = None) -> None:
        self.requests = 0
        self.asked = b""
        self.tls = tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        origin = "https://localhost" if tls else "http://127.0.0.1"
        self.url = f"{origin}:{self.listener.getsockname()[1]}/api/auth/jwks"
        self.answer: bytes | None = None
        self.drip = 0.0  # Seconds between two bytes of the body.
        self.endless = b""  # Follows `answer` again and again.
        self.publish(*keys)
        threading.Thread(target=self._serve, daemon=True).start()

    def publish(self, *keys: Key) -> None:
        self.document = json.dumps({"keys": [key.jwk for key in keys]}).encode()
        self.say(self.document)

    def say(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.answer = head.encode() + body

    def hang(self) -> None:
        self.answer = None

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.requests += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
        with connection, suppress(OSError):
            self.asked = connection.recv(65536)
            if self.answer is None:
                connection.recv(1)
            elif self.endless:
                connection.sendall(self.answer)
                while self.endless:
                    connection.sendall(self.endless)
                    time.sleep(0.001)
            elif self.drip:
                head, end, body = self.answer.partition(b"\r\n\r\n")
                connection.sendall(head + end)
                for byte in body:
                    connection.sendall(bytes([byte]))
                    time.sleep(self.drip)
            else:
                connection.sendall(self.answer)


def encoded(part: object) -> str:
    """A part of a token as it is sent: JSON, or bytes as they are, in base64url."""
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(text).decode().rstrip("=")
