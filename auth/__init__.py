"""Authentication: a bearer token is verified, and becomes a user id, a 401 or a 403."""

import logging
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any

import jwt
from flask import current_app, request
from jwt import PyJWK
from werkzeug.exceptions import Forbidden, ServiceUnavailable, Unauthorized

from auth.jwks import KeySet
from settings import Settings

# RFC 6750, section 2.1, and RFC 9110, section 11.1: the scheme in any case. With nothing after it,
# the token counts as missing.
BEARER = re.compile(r"bearer\b(?!\Z)(?: +([\w.~+/=-]+)\Z)?", re.ASCII | re.IGNORECASE)
MAX_NUMERIC_DATE = 253402300799  # The end of the year 9999, in seconds since 1970.
MISSING = "The bearer token is missing: send the header Authorization: Bearer TOKEN."
INVALID = "The bearer token is not valid, or has expired. The log of the server says why."
MAX_DESCRIBED = 200
# What the log says for PyJWT's errors. In braces: parts of the token, and what they should be.
REASONS: dict[type[Exception], str] = {
    jwt.InvalidAlgorithmError: "Wrong algorithm: found alg {alg}, expected HS256",
    jwt.ExpiredSignatureError: "Expired: found exp {exp}, now is {now}",
    jwt.ImmatureSignatureError: "Not valid yet: found nbf {nbf}, iat {iat}, now is {now}",
    jwt.InvalidIssuerError: "Wrong issuer: found iss {iss}, expected {issuer}",
    jwt.InvalidAudienceError: "Wrong audience: found aud {aud}, expected {audience}",
}
# PyJWT raises MissingRequiredClaimError for a missing claim, and for an empty `aud`.
MISSING_CLAIMS: dict[object, type[Exception]] = {
    "iss": jwt.InvalidIssuerError,
    "aud": jwt.InvalidAudienceError,
}
TIMES = {"exp", "nbf", "iat", "now"}

log = logging.getLogger("tasks.auth")


class Unauthenticated(Unauthorized):
    """A 401 with a challenge (RFC 6750, section 3). Only the log gets the reason."""

    def __init__(self, reason: str, is_missing: bool = False) -> None:
        super().__init__(MISSING if is_missing else INVALID)
        self.reason = reason
        self.challenge = "Bearer" if is_missing else 'Bearer error="invalid_token"'

    def get_headers(self, *arguments: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*arguments), ("WWW-Authenticate", self.challenge)]


class Verifier:
    """Verifies tokens with the issuer's keys or, if there are none, with the secret."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = KeySet(settings.jwt_jwks_url) if settings.jwt_jwks_url else None

    def verify(self, token: str) -> str:
        """The user id in `token`: its `sub` (RFC 7519, section 4.1.2).

        Raises Unauthenticated, or ServiceUnavailable while the issuer's keys are not known.
        """
        try:
            key, algorithm = self._find_key(token)
            decoded = jwt.decode_complete(
                token,
                key,
                algorithms=[algorithm],
                issuer=self.settings.jwt_issuer,
                audience=self.settings.jwt_audience,
                leeway=self.settings.jwt_leeway,
                options={
                    "require": ["exp", "sub"],
                    "verify_aud": bool(self.settings.jwt_audience),
                },
            )
            claims = decoded["payload"]
            if {"crit", "b64"} & decoded["header"].keys():
                raise jwt.InvalidTokenError("The header has crit or b64")
            # RFC 7519, section 2. PyJWT accepts text as well.
            if type(claims["exp"]) not in {int, float} or claims["exp"] > MAX_NUMERIC_DATE:
                found = describe(claims["exp"])
                raise jwt.InvalidTokenError(
                    f"The claim exp is no time in seconds since 1970: found {found}"
                )
            if not claims["sub"]:
                raise jwt.InvalidTokenError("The claim sub is empty")
        except (ServiceUnavailable, MemoryError):
            raise
        except Exception as error:  # A hostile token can raise anything in the libraries.
            raise Unauthenticated(self._explain(error, token)) from error
        return str(claims["sub"])

    def _find_key(self, token: str) -> tuple[str | PyJWK, str]:
        """The key for `token` and the one algorithm to verify it with, which the key decides."""
        if self.keys is None:
            return self.settings.jwt_secret, "HS256"
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        keys = self.keys.find(kid)
        if keys is None:
            ids = describe(self.keys.ids())
            raise jwt.InvalidTokenError(f"Unknown key: found kid {describe(kid)}, expected {ids}")
        if algorithm not in list(keys):  # An `alg` need not be hashable.
            found = f"found alg {describe(algorithm)}"
            raise jwt.InvalidTokenError(
                f"Wrong algorithm: {found}, expected {' or '.join(sorted(keys))}"
            )
        return keys[algorithm], algorithm

    def _explain(self, error: Exception, token: str) -> str:
        """Why `token` is refused: what was found and expected, without the token itself."""
        if (number := token.count(".") + 1) != 3:
            return f"Not a JWT: found {number} part(s), expected 3 (a session id, or encrypted?)"
        message = str(error) or type(error).__name__
        reason = message.encode("ascii", "backslashreplace").decode()[: 3 * MAX_DESCRIBED]
        kind = MISSING_CLAIMS.get(getattr(error, "claim", None), type(error))
        try:
            parts = jwt.decode_complete(token, options={"verify_signature": False})
            if kind not in REASONS:
                return reason
            claims = dict.fromkeys(("exp", "nbf", "iat", "iss", "aud")) | parts["payload"]
            claims |= {"alg": parts["header"].get("alg"), "now": time()}
            return REASONS[kind].format_map(
                {name: describe(value, name in TIMES) for name, value in claims.items()}
                | {"issuer": self.settings.jwt_issuer}
                | {"audience": " or ".join(self.settings.jwt_audience)}
            )
        except Exception:  # A hostile token can raise anything in the libraries.
            return f"Not a JWT: {reason}" if kind is jwt.DecodeError else reason


def describe(value: object, is_time: bool = False) -> str:
    """`value` for the log: a number as a time if it is one, and anything else escaped and cut."""
    with suppress(OverflowError, OSError, ValueError):
        if is_time and isinstance(value, int | float):
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return ascii(value)[:MAX_DESCRIBED]


def create_verifier(settings: Settings) -> Verifier | None:
    """A verifier with the secret or the key set in `settings`, or None if anyone may call."""
    return Verifier(settings) if settings.jwt_jwks_url or settings.jwt_secret else None


def fetch_keys(verifier: Verifier | None) -> None:
    """Fetch the issuer's keys, if there is an issuer, before many first requests wait for them."""
    if verifier and verifier.keys:
        with suppress(ServiceUnavailable):
            verifier.keys.find(None)


def authorize() -> None:
    """Check that the request's token is for the user in the path.

    Raises Unauthenticated, Forbidden, or ServiceUnavailable while the issuer's keys are not known.
    A preflight has no token: https://fetch.spec.whatwg.org/#cors-protocol-and-credentials
    """
    verifier: Verifier | None = current_app.extensions["auth"]
    if verifier is None or request.method == "OPTIONS":
        return
    try:
        user_id = verifier.verify(bearer_token())
    except Unauthenticated as error:
        log.info("unauthorized: %s", error.reason)
        raise
    if user_id != (request.view_args or {})["user_id"]:
        log.info("forbidden: the token is for %s", describe(user_id))
        raise Forbidden


def bearer_token() -> str:
    """The token of the request. Raises Unauthenticated."""
    match = BEARER.match(request.headers.get("Authorization", ""))
    if not match:
        raise Unauthenticated("No bearer token", is_missing=True)
    if not match[1]:
        raise Unauthenticated("Not a JWT: The header Authorization is not `Bearer TOKEN`")
    return match[1]


def issue_token(settings: Settings, user_id: str, days: float) -> str:
    """A token for `user_id`, valid for `days` and signed with the secret."""
    now = datetime.now(UTC)
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + timedelta(days=days)}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return jwt.encode(claims, settings.jwt_secret, "HS256")
