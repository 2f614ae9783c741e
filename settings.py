"""The environment, read and checked once, into one frozen object."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg2
from environs import Env, EnvError
from marshmallow.validate import OneOf, Range
from psycopg2.extensions import parse_dsn

VERSION = "1.0.0"
# Set by the platforms that deploy from a Procfile, of which PORT is what all have in common.
PLATFORM_VARIABLES = {
    "PORT",
    "DYNO",
    "FLY_APP_NAME",
    "K_SERVICE",
    "RAILWAY_ENVIRONMENT_ID",
    "RENDER",
    "WEBSITE_SITE_NAME",
}
LOG_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
POSTGRES_URL = re.compile(r"postgres(?:ql)?(?:\+\w+)?://([^\s'\"]+)")
# An @ further on is one of the password, the rest of which libpq takes for the host's name.
USER_AND_REST = re.compile(r"([^@/]*@)?[^@]*")
SCHEMA_NAME = re.compile(r"[A-Za-z]\w{0,62}", re.ASCII)
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# What libpq calls sslmode=require, as other drivers spell it.
TLS_REQUIRED = {"true", "1", "no-verify"}


class InvalidSetting(SystemExit):
    """A setting that is missing or wrong: stops the start with one line."""


@dataclass(frozen=True)
class Settings:
    """Everything that the environment decides; `.env.example` says what each one means."""

    database_url: str = field(repr=False)
    database_schema: str
    cors_origins: tuple[str, ...]
    log_level: str
    host: str
    port: int
    workers: int
    threads: int
    jwt_secret: str = field(default="", repr=False)
    jwt_jwks_url: str = ""
    jwt_issuer: str | None = None
    jwt_audience: tuple[str, ...] = ()
    jwt_leeway: int = 10


def read_settings() -> Settings:
    """Read the environment and, for what it lacks, `.env` in the working folder.

    Raises InvalidSetting, which names the variable and what was expected.
    """
    env = Env()
    env.read_env(".env", recurse=False)
    on_platform = not PLATFORM_VARIABLES.isdisjoint(os.environ)
    try:
        return Settings(
            database_url=_database_url(env.str("DATABASE_URL", ""), on_platform),
            database_schema=_database_schema(env.str("DATABASE_URL", "")),
            cors_origins=_origins(env.str("CORS_ORIGINS", "http://localhost:3000")),
            log_level=env.str("LOG_LEVEL", "INFO", validate=OneOf(LOG_LEVELS)),
            host="0.0.0.0" if on_platform else "127.0.0.1",
            port=env.int("PORT", 8000, validate=Range(1, 65535)),
            workers=env.int("WEB_CONCURRENCY", 2, validate=Range(1, 64)),
            threads=env.int("THREADS", 20, validate=Range(1, 256)),
            **_tokens(env),
        )
    except EnvError as error:
        raise InvalidSetting(str(error)) from error


def _database_url(text: str, on_platform: bool) -> str:
    if not text.strip():
        if on_platform:
            raise InvalidSetting(
                "DATABASE_URL is not set: expected postgresql://USER:PASSWORD@HOST/DATABASE,"
                " since a file on this platform is lost with every deploy"
            )
        return "sqlite:///tasks.db"
    if match := POSTGRES_URL.search(text):
        return _postgres_url(match[1])
    file = Path(text.strip().removeprefix("sqlite:///"))
    if not text.strip().startswith("sqlite:///") or file.name in {"", ":memory:"}:
        raise InvalidSetting(
            "DATABASE_URL: expected postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
        )
    if not os.access(file.parent, os.W_OK):
        raise InvalidSetting(f"DATABASE_URL: the folder {file.parent} cannot be written to")
    return f"sqlite:///{file}"


def _postgres_url(address: str) -> str:
    """`address` behind the scheme that libpq knows, without the parameters that it refuses.

    They come along when a URL is copied from another driver's settings (`?pgbouncer=true`).
    """
    base, _, query = address.partition("?")
    parameters = []
    for name, value in parse_qsl(query):
        if name in {"ssl", "sslmode"} and value in TLS_REQUIRED:
            value = "require"
        parameter = ("sslmode" if name == "ssl" else name, value)
        try:
            parse_dsn("postgresql://?" + urlencode([parameter], quote_via=quote))
        except psycopg2.ProgrammingError:
            continue
        parameters.append(parameter)
    url = f"postgresql://{base}?{urlencode(parameters, quote_via=quote, safe='/')}".removesuffix(
        "?"
    )
    try:
        ports = parse_dsn(url).get("port", "")
    except psycopg2.ProgrammingError:
        ports = "unreadable"
    if not re.fullmatch(r"[\d,]*", ports) or not USER_AND_REST.fullmatch(base):
        # Not libpq's own words: they can hold a piece of the password.
        raise InvalidSetting(
            "DATABASE_URL: expected postgresql://USER:PASSWORD@HOST/DATABASE,"
            " with special characters in the password percent-encoded"
        )
    return url


def _database_schema(url: str) -> str:
    """The schema of the tables in PostgreSQL: `?schema=NAME`, or the search_path in `options`."""
    parameters = dict(parse_qsl(url.partition("?")[2]))
    path = re.search(r"search_path=([^,\s]+)", parameters.get("options", ""))
    name = parameters.get("schema") or (path[1] if path else "public")
    if not SCHEMA_NAME.fullmatch(name):
        raise InvalidSetting(
            "DATABASE_URL: expected a schema of up to 63 letters, digits and _, a letter first"
        )
    return name


def _tokens(env: Env) -> dict[str, Any]:
    """What makes a token valid; without a secret and a key set, none is asked for."""
    name = "JWT_SECRET" if env.str("JWT_SECRET", "") else "BETTER_AUTH_SECRET"
    secret, url = env.str(name, ""), env.str("JWT_JWKS_URL", "")
    issuer, audience = env.str("JWT_ISSUER", ""), _items(env.str("JWT_AUDIENCE", ""))
    if secret and url:
        raise InvalidSetting(f"{name} and JWT_JWKS_URL are both set: expected only one of them")
    if secret and len(secret.encode()) < 32:
        raise InvalidSetting(f"{name}: expected 32 bytes or more, such as `openssl rand -hex 32`")
    if url:
        _check_address("JWT_JWKS_URL", url)
    if issuer.startswith("http://"):
        _check_address("JWT_ISSUER", issuer)
    if (issuer or audience) and not (secret or url):
        raise InvalidSetting("JWT_SECRET or JWT_JWKS_URL: expected with JWT_ISSUER or JWT_AUDIENCE")
    return {
        "jwt_secret": secret,
        "jwt_jwks_url": url,
        "jwt_issuer": issuer or None,
        "jwt_audience": audience,
        "jwt_leeway": env.int("JWT_LEEWAY", 10, validate=Range(0, 600)),
    }


def _check_address(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        valid = safe and parts.hostname and not parts.username and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidSetting(
            f"{name}: expected an https:// address, or an http:// one on this machine"
        )


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _origins(text: str) -> tuple[str, ...]:
    """The origins as browsers send them (RFC 6454, section 6.1)."""
    if _items(text) == ("*",):
        return ("*",)
    origins = []
    for item in _items(text):
        origin = item.lower().rstrip("/")
        default_port = {"https": ":443", "http": ":80"}.get(origin.partition("://")[0], "/")
        origins.append(origin.removesuffix(default_port))
        if not ORIGIN.fullmatch(origin):
            raise InvalidSetting(
                "CORS_ORIGINS: expected * or a comma-separated list of origins such as"
                f" https://example.com, in ASCII, got {item!r}"
            )
    return tuple(origins)
