"""The public keys of a token issuer, kept so that the issuer's troubles do not become ours."""

import logging
import socket
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import orjson
from jwt import PyJWK, PyJWTError
from werkzeug.exceptions import ServiceUnavailable

# Seconds: what a fetch may take, how old the keys get before they are fetched again, and the
# least time between two fetches.
FETCH, FRESH, PAUSE = 3.0, 300.0, 30.0
# How many requests may wait for a fetch, so that the other threads are free for known keys.
WAITING = 4
MAX_BYTES = 1024 * 1024
# One algorithm for each type of key (RFC 7518, section 6.1; RFC 8037, section 2).
ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
PUBLIC = {"kty", "kid", "crv", "x", "y", "n", "e"}

# The keys with an id, by their algorithm: RFC 7517, section 4.5, lets keys of other types share it.
Keys = dict[str | None, dict[str, PyJWK]]

log = logging.getLogger("tasks.jwks")


class KeySet:
    """The keys that the document at `url` holds (RFC 7517), fetched when the first token comes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Keys = {}
        self._fresh_until = self._not_before = 0.0
        self._failures = 0
        self._starting = threading.Lock()
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._fetched = threading.Event()
        self._fetched.set()

    def find(self, kid: str | None) -> dict[str, PyJWK] | None:
        """The keys with this id by algorithm, or None. A token without an id means the only id.

        A key that is known is given at once; when the set has aged it is fetched meanwhile, and
        used for as long as that fails. Raises ServiceUnavailable while there is no set at all.
        """
        if self._keys.get(kid) is None:
            self._wait_for(self._fetch_soon())
        elif monotonic() > self._fresh_until:
            self._fetch_soon()
        if not self._keys:
            raise unavailable()
        return self._keys.get(kid)

    def _wait_for(self, fetched: threading.Event) -> None:
        if not fetched.is_set():
            if not self._waiting.acquire(blocking=False):
                raise unavailable()
            try:
                fetched.wait(FETCH)
            finally:
                self._waiting.release()

    def _fetch_soon(self) -> threading.Event:
        """Begin a fetch, unless one is under way or it is too early. The event is its end."""
        with self._starting:
            if self._fetched.is_set() and monotonic() >= self._not_before:
                self._fetched = threading.Event()
                threading.Thread(target=self._fetch, args=(self._fetched,), daemon=True).start()
            return self._fetched

    def _fetch(self, fetched: threading.Event) -> None:
        try:
            self._keys = read_keys(download(self._url))
            self._fresh_until = monotonic() + FRESH
        except Exception as error:  # Whatever the issuer makes of the libraries that ask it.
            address = self._url.partition("?")[0]  # Some issuers want a key in the query.
            log.warning("the keys at %s could not be fetched: %r", address, error)
            self._failures += 1
        # Soon again as long as nobody can be let in, but not faster and faster.
        pause = PAUSE if self._keys else min(0.5 * 2 ** min(self._failures, 10), PAUSE)
        self._not_before = monotonic() + pause
        fetched.set()


def download(url: str) -> bytes:
    """The document at `url`, within FETCH seconds, however slowly it comes.

    Raises OSError, HTTPException, or ValueError if the answer is another one, such as a redirect.
    """
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=FETCH)

    def give_up() -> None:
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    alarm = threading.Timer(FETCH, give_up)
    alarm.start()
    try:
        target = f"{parts.path or '/'}?{parts.query}".removesuffix("?")
        connection.request("GET", target, headers={"Accept": "application/json"})
        response = connection.getresponse()
        document = response.read(MAX_BYTES + 1)
    finally:
        alarm.cancel()
        connection.close()
    if response.status != 200 or len(document) > MAX_BYTES:
        raise ValueError(f"status {response.status}, {len(document)} bytes")
    return document


def read_keys(document: bytes) -> Keys:
    """The public keys in a key set, under None too if they have only one id.

    Raises ValueError if there is none that signs with one of our algorithms.
    """
    found = orjson.loads(document)
    members = found.get("keys") if isinstance(found, dict) else None
    keys: Keys = {}
    for member in members if isinstance(members, list) else []:
        with suppress(PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            key = public_key(member)
            keys.setdefault(member.get("kid"), {}).setdefault(key.algorithm_name, key)
    if not keys:
        raise ValueError("no key of a known type")
    if len(keys) == 1:
        keys[None] = next(iter(keys.values()))
    else:
        keys.pop(None, None)
    return keys


def public_key(member: dict[str, Any]) -> PyJWK:
    """A member of a key set as a key to verify with. Raises ValueError, KeyError or PyJWTError."""
    algorithm = ALGORITHMS[member["kty"]]
    if member.get("alg", algorithm) != algorithm or member.get("use", "sig") != "sig":
        raise ValueError("a key for another purpose")
    return PyJWK({name: value for name, value in member.items() if name in PUBLIC}, algorithm)


def unavailable() -> ServiceUnavailable:
    return ServiceUnavailable(
        "The keys of the token issuer cannot be reached. Try again soon.", retry_after=1
    )
