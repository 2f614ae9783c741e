"""Who is calling: a bearer token becomes a user id, or a 401 or 403."""

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
MAX_TIME = 253402300799  # The end of the year 9999, in seconds since 1970.
INVALID = 'Bearer error="invalid_token"'


class Unauthenticated(Unauthorized):
    """A 401 with the challenge of RFC 6750, section 3, which does not say what was wrong."""

    def __init__(self, challenge: str) -> None:
        super().__init__()
        self.challenge = challenge

    def get_headers(self, *arguments: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*arguments), ("WWW-Authenticate", self.challenge)]


@dataclass(frozen=True)
class Verifier:
    """Tells whose a token is: by the secret in the settings, or by the issuer's `keys`."""

    settings: Settings
    keys: KeySet | None

    def subject(self, token: str) -> str:
        """The `sub` of a valid token. Raises Unauthenticated, or ServiceUnavailable."""
        try:
            key, algorithm = self._key(token)
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
            if not is_time(claims["exp"]) or not claims["sub"]:
                raise jwt.InvalidTokenError
        except HTTPException:
            raise
        except Exception as error:  # Whatever a hostile token makes of the libraries that read it.
            raise Unauthenticated(INVALID) from error
        return str(claims["sub"])

    def _key(self, token: str) -> tuple[str | PyJWK, str]:
        """The key to verify with, and its one algorithm: a token can only choose among our own."""
        if self.keys is None:
            return self.settings.jwt_secret, "HS256"
        header = jwt.get_unverified_header(token)
        keys = self.keys.find(header.get("kid")) or {}
        if header["alg"] not in keys:
            raise jwt.InvalidTokenError
        return keys[header["alg"]], header["alg"]


def is_time(value: object) -> bool:
    """Whether `value` is a NumericDate (RFC 7519, section 2); PyJWT takes text as well."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= MAX_TIME


def verifier(settings: Settings) -> Verifier | None:
    """The one that the settings ask for; None if anyone may call."""
    if settings.jwt_jwks_url:
        return Verifier(settings, KeySet(settings.jwt_jwks_url))
    return Verifier(settings, None) if settings.jwt_secret else None


def authorize() -> None:
    """Let the caller pass if the token's subject is the user that the path names.

    Raises Unauthenticated or Forbidden. A preflight has no token (Fetch standard, section 3.2.2).
    """
    verifier: Verifier | None = current_app.extensions["auth"]
    if verifier is None or request.method == "OPTIONS":
        return
    credentials = request.headers.get("Authorization", "")
    if not re.match(r"bearer\b", credentials, re.IGNORECASE):
        raise Unauthenticated("Bearer")
    match = BEARER.fullmatch(credentials)
    if not match:
        raise Unauthenticated(INVALID)
    if verifier.subject(match[1]) != (request.view_args or {})["user_id"]:
        raise Forbidden


def issue_token(settings: Settings, user_id: str, days: float) -> str:
    """A token with which `user_id` may call. Raises ValueError if there is no secret."""
    if not settings.jwt_secret:
        raise ValueError("JWT_SECRET is not set, and nothing else can sign a token here")
    now = datetime.now(UTC)
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + timedelta(days=days)}
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return jwt.encode(claims, settings.jwt_secret, "HS256")
