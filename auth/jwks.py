"""The public keys of a token issuer, cached, so that an issuer outage does not stop us."""

import json
import logging
import re
import threading
from contextlib import suppress
from functools import cache
from time import monotonic
from typing import Any
from urllib import request

from jwt import PyJWK, PyJWTError
from jwt.utils import base64url_decode, base64url_encode
from werkzeug.exceptions import ServiceUnavailable

from settings import VERSION

FETCH_TIMEOUT_S, MAX_BYTES = 3.0, 1024 * 1024
MAX_AGE_S = 300.0  # Older keys are still used, but fetched again.
FETCH_PAUSE_S = 30.0  # After a fetch, so that unknown key ids do not flood the issuer.
# Requests that may wait for a fetch at once; the other threads stay free for known keys.
MAX_WAITING = 4
# Some firewalls refuse the default name, `Python-urllib`.
HEADERS = {"Accept": "application/json", "User-Agent": f"task-api/{VERSION}"}
# What a key of a type and a curve can sign with (RFC 7518, section 3.1; RFC 9864, section 2.2). One
# without an `alg` means all of them, except for those that an RSA key must name.
ONLY_NAMED = {"RS384", "RS512", "PS256", "PS384", "PS512"}
ALGORITHMS = {
    ("RSA", None): {"RS256"} | ONLY_NAMED,
    ("EC", "P-256"): {"ES256"},
    ("EC", "P-384"): {"ES384"},
    ("EC", "P-521"): {"ES512"},
    ("OKP", "Ed25519"): {"EdDSA", "Ed25519"},
    ("OKP", "Ed448"): {"EdDSA"},
}
# The bytes of a coordinate (RFC 7518, section 6.2.1.2). Authlib cuts zeros at its start.
COORDINATE_BYTES = {"P-256": 32, "P-384": 48, "P-521": 66}
PUBLIC_MEMBERS = {"kty", "crv", "x", "y", "n", "e"}
# Tried at the beginning of each word only: a long word without an @ would take seconds otherwise.
PROXY_USER = re.compile(r"(?<!\S)\S*@")

# The keys by id and by algorithm: keys of two types may have one id (RFC 7517, section 4.5).
Keys = dict[str | None, dict[str, PyJWK]]

FETCHING = "The keys of the token issuer are being fetched. Try again soon."
UNREACHABLE = "The keys of the token issuer cannot be reached. Try again soon."
UNUSABLE = "The token issuer publishes no key that this server can use."

log = logging.getLogger("tasks.jwks")


class NoUsableKey(ValueError):
    """A key set in which no key can verify a token."""


class KeySet:
    """The key set at `url` (RFC 7517), fetched in the background when a token needs it."""

    def __init__(self, url: str) -> None:
        self._url, self._address = url, url.partition("?")[0]  # A query can contain an API key.
        self._keys: Keys = {}
        self._stale_at = self._next_fetch_at = 0.0
        self._failures = 0  # Since the last fetch that succeeded.
        self._problem = UNREACHABLE
        self._lock = threading.Lock()
        self._fetching = threading.Thread()
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def find(self, kid: str | None) -> dict[str, PyJWK] | None:
        """The keys with the id `kid` by algorithm, or None. Without an id, the keys of the only id.

        Only an unknown id waits for a fetch. Raises ServiceUnavailable if the issuer does not
        answer: the id may be that of a new key, and a 401 would sign its user out.
        """
        if known := self._get(kid):
            if monotonic() > self._stale_at:
                self._start_fetch()
            return known
        fetching = self._start_fetch()
        self._wait_for(fetching)
        is_away = fetching.is_alive() or self._failures  # The fetch may end after this.
        found = self._get(kid)
        if not found and is_away:
            raise ServiceUnavailable(self._problem, retry_after=1)
        return found

    def ids(self) -> list[str]:
        """The ids of the keys that are known."""
        return [kid for kid in self._keys if kid is not None]

    def _get(self, kid: str | None) -> dict[str, PyJWK] | None:
        """The known keys with the id `kid`. If no key has an id, any `kid` means the only key."""
        return self._keys.get(kid) or (None if self.ids() else self._keys.get(None))

    def _wait_for(self, fetching: threading.Thread) -> None:
        if fetching.is_alive():
            if not self._waiting.acquire(blocking=False):
                raise ServiceUnavailable(FETCHING, retry_after=1)
            try:
                fetching.join(FETCH_TIMEOUT_S)  # A lookup or a slow head can take longer.
            finally:
                self._waiting.release()
            if fetching.is_alive():
                message = "the keys at %s could not be fetched within %g s"
                log.warning(message, self._address, FETCH_TIMEOUT_S)

    def _start_fetch(self) -> threading.Thread:
        """Start a fetch unless one is running or it is too early, and return the latest one."""
        with self._lock:
            if not self._fetching.is_alive() and monotonic() >= self._next_fetch_at:
                thread = threading.Thread(target=self._fetch, daemon=True)
                try:
                    thread.start()
                    self._fetching = thread
                except RuntimeError as error:  # The system has no thread left.
                    self._note_failure(error)
            return self._fetching

    def _fetch(self) -> None:
        try:
            self._keys = read_keys(download(self._url))
            self._stale_at = monotonic() + MAX_AGE_S
            self._failures, self._problem = 0, UNREACHABLE
            self._next_fetch_at = monotonic() + FETCH_PAUSE_S
        except Exception as error:  # A hostile answer can raise anything in the libraries.
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        # An error about the proxy's address quotes it, perhaps with its password.
        cause = PROXY_USER.sub("", repr(error))[:300]
        log.warning("the keys at %s could not be fetched: %s", self._address, cause)
        self._failures += 1
        self._problem = UNUSABLE if isinstance(error, NoUsableKey) else UNREACHABLE
        # The pause is short, and doubles: until then, a token of an unknown key is a 503.
        backoff = min(2.0 ** min(self._failures, 10) / 2, FETCH_PAUSE_S)
        self._next_fetch_at = monotonic() + backoff


def download(url: str) -> Any:
    """The JSON document at `url`. Raises OSError, ValueError or HTTPException.

    Its body may take FETCH_TIMEOUT_S after its head, and MAX_BYTES. A redirect is an error: it
    could lead to an address without TLS.
    """
    opener = request.OpenerDirector()
    # An http:// address is on this machine or in a private network, where no proxy is needed. Only
    # the environment is asked: a forked process that asks macOS itself can crash.
    given = request.getproxies_environment()
    proxies = {scheme: proxy for scheme, proxy in given.items() if scheme == "https"}
    for handler in (request.ProxyHandler(proxies), request.HTTPHandler(), https_handler()):
        opener.add_handler(handler)
    body = b""
    with opener.open(request.Request(url, headers=HEADERS), timeout=FETCH_TIMEOUT_S) as response:
        until = monotonic() + FETCH_TIMEOUT_S  # Connecting can take long, if an address is dead.
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        while piece := response.read1(MAX_BYTES):
            body += piece
            if len(body) > MAX_BYTES or monotonic() > until:
                raise ValueError("the answer is too large or too slow")
    return json.loads(body)


@cache
def https_handler() -> request.HTTPSHandler:
    """What all fetches share: it loads the system's certificates, which take 0.9 MB.

    An opener and its handlers refer to each other. With a handler of its own, each fetch would keep
    that memory until Python's garbage collector looks through all objects, hours later.
    """
    return request.HTTPSHandler()


def read_keys(document: Any) -> Keys:
    """The usable public keys in a key set. If they have one id, they are under None, too.

    Raises ValueError if `document` is no key set, or NoUsableKey.
    """
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("no key set: expected an object with a list `keys` (RFC 7517, section 5)")
    keys: Keys = {}
    for member in members:
        with suppress(PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            if (member.get("use") or "sig") != "sig":
                continue
            public = {name: member[name] for name in PUBLIC_MEMBERS & member.keys()}
            if size := COORDINATE_BYTES.get(member.get("crv")):
                for name in ("x", "y"):
                    coordinate = base64url_decode(public[name]).lstrip(b"\0").rjust(size, b"\0")
                    public[name] = base64url_encode(coordinate).decode()
            algorithms, named = ALGORITHMS[member["kty"], member.get("crv")], member.get("alg")
            algorithms = algorithms & {named} if named else algorithms - ONLY_NAMED
            for algorithm in algorithms:
                # PyJWT does not know the newer name.
                key = PyJWK(public, "EdDSA" if algorithm == "Ed25519" else algorithm)
                key.algorithm_name = algorithm
                if key.Algorithm.check_key_length(key.key):
                    continue  # Too short to be safe. PyJWT would only warn.
                keys.setdefault(member.get("kid"), {}).setdefault(algorithm, key)
    if not keys:
        found = [member for member in members if isinstance(member, dict)]
        kinds = [[*map(member.get, ("kty", "crv", "alg", "use"))] for member in found]
        raise NoUsableKey(f"no usable key (RSA: of 2048 bits or more), found {kinds}"[:300])
    if len(keys) == 1:
        keys[None] = next(iter(keys.values()))
    else:
        keys.pop(None, None)
    return keys
