"""The settings that decide who may call: the keys of tokens, and the origins of web pages."""

import re
from base64 import b64decode
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import load_der_x509_certificate
from jwt import InvalidKeyError
from jwt.algorithms import HMACAlgorithm

from settings.variables import Variables, check, strip

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Hosts that are not on the internet: names of Compose, Kubernetes and platforms' private
# networks (.internal and .local are reserved for them), and addresses (RFC 1918; RFC 4193).
PRIVATE_HOST = re.compile(
    r"[a-z][a-z0-9_-]*|[a-z0-9_.-]+\.(internal|local)|f[cd][0-9a-f]{2}:[0-9a-f:]+"
    r"|(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))(\.\d+){2}"
)
HOST = r"([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?"  # Perhaps with a port.
# Its path has no character that only a placeholder (<your-domain>) or a mistake would have.
WEB_ADDRESS = re.compile(rf"https?://{HOST}([/?][!#-;=?-~]*)?", re.ASCII | re.IGNORECASE)
ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{HOST}", re.ASCII)
# The development servers of Next.js and Vite.
LOCAL_ORIGINS = "http://localhost:3000,http://localhost:5173"


def read_callers(variables: Variables) -> dict[str, Any]:
    """The settings that decide who may call. Without a key: anyone, or InvalidSetting."""
    text = variables.text
    secret_name = "JWT_SECRET" if text("JWT_SECRET") else "BETTER_AUTH_SECRET"
    secret, jwks_url = text(secret_name), text("JWT_JWKS_URL")
    issuer = text("JWT_ISSUER")
    audience = tuple(strip("JWT_AUDIENCE", item) for item in variables.texts("JWT_AUDIENCE"))
    anyone, warnings = text("ALLOW_ANYONE"), []
    address = "an https:// address, or an http:// one on this machine or in a private network"
    check("JWT_JWKS_URL", not jwks_url or is_trusted(jwks_url), address)
    check("ALLOW_ANYONE", anyone in {"", "true", "false"}, "true or false")
    if jwks_url:
        parts = urlsplit(jwks_url)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            warnings.append(f"Whoever can change the traffic from {parts.netloc} can sign tokens")
        if secret:
            warnings.append(f"{secret_name} is ignored, since JWT_JWKS_URL is set")
            secret = ""
    elif secret:
        expected = "32 bytes or more, such as the output of `openssl rand -hex 32`"
        check(secret_name, len(secret.encode()) >= 32, expected)
        expected = "a secret, not a public key or a certificate: set JWT_JWKS_URL for these"
        check(secret_name, is_secret(secret), expected)
    else:
        keys, reason = "JWT_JWKS_URL or JWT_SECRET", "since JWT_ISSUER or JWT_AUDIENCE is set"
        check(keys, not (issuer or audience), f"one of them, {reason}")
        is_meant = anyone == "true" or not (anyone or variables.on_platform)
        check(keys, is_meant, "one of them, or ALLOW_ANYONE=true if anyone may call for any user")
        warnings.append("Anyone who can reach this server may read and write every user's tasks")
    return {
        "jwt_secret": secret,
        "jwt_jwks_url": jwks_url,
        "jwt_issuer": issuer or None,
        "jwt_audience": audience,
        "warnings": tuple(warnings),
    }


def is_secret(secret: str) -> bool:
    """Whether PyJWT signs with `secret`. Everybody could sign with a public key."""
    # PyJWT takes a key without its first and last line, as Keycloak shows it, for a secret.
    for load in (load_der_public_key, load_der_x509_certificate):
        with suppress(ValueError, UnsupportedAlgorithm):
            load(b64decode(secret))
            return False
    try:
        return bool(HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret))
    except InvalidKeyError:
        return False


def is_trusted(url: str) -> bool:
    """Whether nobody on the internet can replace an answer from `url` on its way here."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_safe = parts.scheme == "https" or host in LOOPBACK or PRIVATE_HOST.fullmatch(host)
        return bool(WEB_ADDRESS.fullmatch(url) and is_safe) and parts.port != 0
    except ValueError:
        return False


def read_origins(variables: Variables) -> tuple[str, ...]:
    """CORS_ORIGINS as browsers send them: without a default port (RFC 6454, section 6.2)."""
    items = variables.texts("CORS_ORIGINS", LOCAL_ORIGINS)
    if items == ("*",):
        return items
    origins = []
    for item in items:
        origin = item.lower().rstrip("/")
        expected = "* or a comma-separated list of origins such as https://example.com, in ASCII"
        check("CORS_ORIGINS", ORIGIN.fullmatch(origin), f"{expected}, got {item!r}")
        default_port = {"https": ":443", "http": ":80"}.get(origin.partition(":")[0], "")
        origins.append(origin.removesuffix(default_port))
    return tuple(origins)
