"""Who is calling: a bearer token becomes a user id, a 401 or a 403."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from flask import current_app, request
from jwt import PyJWK
from werkzeug.exceptions import Forbidden, HTTPException, Unauthorized

from auth.jwks import KeySet
from settings import Settings

# RFC 6750, section 2.1, and RFC 9110, section 11.1: the scheme in any case.
BEARER = re.compile(r"bearer +([\w.~+/=-]+)", re.ASCII | re.IGNORECASE)
MAX_NUMERIC_DATE = 253402300799  # The end of the year 9999, in seconds since 1970.
INVALID_TOKEN = 'Bearer error="invalid_token"'


class Unauthenticated(Unauthorized):
    """A 401 with a challenge (RFC 6750, section 3), which does not tell why a token is invalid."""

    def __init__(self, challenge: str) -> None:
        super().__init__()
        self.challenge = challenge

    def get_headers(self, *arguments: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*arguments), ("WWW-Authenticate", self.challenge)]


@dataclass(frozen=True)
class Verifier:
    """Verifies tokens with the issuer's `keys` or, if there are none, the secret in `settings`."""

    settings: Settings
    keys: KeySet | None

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
                audience=self.settings.jwt_audience or None,
                leeway=self.settings.jwt_leeway,
                options={
                    "require": ["exp", "sub"],
                    "verify_aud": bool(self.settings.jwt_audience),
                    "enforce_minimum_key_length": True,
                },
            )
            claims = decoded["payload"]
            if {"crit", "b64"} & decoded["header"].keys():
                raise jwt.InvalidTokenError
            if not is_numeric_date(claims["exp"]) or not claims["sub"]:
                raise jwt.InvalidTokenError
        except HTTPException:
            raise
        except Exception as error:  # A hostile token can raise anything in the libraries.
            raise Unauthenticated(INVALID_TOKEN) from error
        return str(claims["sub"])

    def _find_key(self, token: str) -> tuple[str | PyJWK, str]:
        """The key for `token` and the one algorithm to verify it with, which the key decides."""
        if self.keys is None:
            return self.settings.jwt_secret, "HS256"
        header = jwt.get_unverified_header(token)
        keys = self.keys.find(header.get("kid")) or {}
        if header["alg"] not in keys:
            raise jwt.InvalidTokenError
        return keys[header["alg"]], header["alg"]


def is_numeric_date(value: object) -> bool:
    """Whether `value` is a NumericDate (RFC 7519, section 2). PyJWT accepts text as well."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= MAX_NUMERIC_DATE


def create_verifier(settings: Settings) -> Verifier | None:
    """A verifier with the secret or the key set in `settings`, or None if anyone may call."""
    if settings.jwt_jwks_url:
        return Verifier(settings, KeySet(settings.jwt_jwks_url))
    return Verifier(settings, None) if settings.jwt_secret else None


def authorize() -> None:
    """Check that the request's token is for the user in the path.

    Raises Unauthenticated, Forbidden, or ServiceUnavailable while the issuer's keys are not known.
    A preflight has no token (Fetch standard, section 3.2.2).
    """
    verifier: Verifier | None = current_app.extensions["auth"]
    if verifier is None or request.method == "OPTIONS":
        return
    credentials = request.headers.get("Authorization", "")
    if not re.match(r"bearer\b", credentials, re.IGNORECASE):
        raise Unauthenticated("Bearer")
    match = BEARER.fullmatch(credentials)
    if not match:
        raise Unauthenticated(INVALID_TOKEN)
    if verifier.verify(match[1]) != (request.view_args or {})["user_id"]:
        raise Forbidden


def issue_token(settings: Settings, user_id: str, days: float) -> str:
    """A token for `user_id`, valid for `days`. Raises ValueError if there is no secret."""
    if not settings.jwt_secret:
        raise ValueError("JWT_SECRET is not set, and a token cannot be signed without it")
    now = datetime.now(UTC)
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + timedelta(days=days)}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return jwt.encode(claims, settings.jwt_secret, "HS256")
