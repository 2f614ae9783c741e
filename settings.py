"""The environment, read and checked once, into one frozen object."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

import psycopg2
from environs import Env, EnvError
from marshmallow.validate import OneOf, Range
from psycopg2.extensions import parse_dsn

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
ORIGIN = re.compile(r"https?://[^\s/?#@,*]+", re.IGNORECASE)
# What libpq calls sslmode=require, as other drivers spell it.
TLS_REQUIRED = {"true", "1", "no-verify"}


class InvalidSetting(SystemExit):
    """A setting that is missing or wrong: stops the start with one line."""


@dataclass(frozen=True)
class Settings:
    """Everything that the environment decides; `.env.example` says what each one means."""

    database_url: str = field(repr=False)
    cors_origins: tuple[str, ...]
    log_level: str
    host: str
    port: int
    workers: int
    threads: int


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
            cors_origins=_origins(env.str("CORS_ORIGINS", "http://localhost:3000")),
            log_level=env.str("LOG_LEVEL", "INFO", validate=OneOf(LOG_LEVELS)),
            host="0.0.0.0" if on_platform else "127.0.0.1",
            port=env.int("PORT", 8000, validate=Range(1, 65535)),
            workers=env.int("WEB_CONCURRENCY", 2, validate=Range(1, 64)),
            threads=env.int("THREADS", 20, validate=Range(1, 256)),
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
    if not re.fullmatch(r"[\d,]*", ports):
        # Not libpq's own words: they can hold a piece of the password.
        raise InvalidSetting(
            "DATABASE_URL: expected postgresql://USER:PASSWORD@HOST/DATABASE,"
            " with special characters in the password percent-encoded"
        )
    return url


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip().rstrip("/") for origin in text.split(",") if origin.strip())
    if origins == ("*",):
        return origins
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise InvalidSetting(
                f"CORS_ORIGINS: expected * or a comma-separated list of origins such as"
                f" https://example.com, got {origin!r}"
            )
    return origins
