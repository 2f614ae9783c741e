"""The environment, read and checked once, into one frozen object."""

import io
import os
import re
import ssl
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg2
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from psycopg2.extensions import parse_dsn

VERSION = "1.0.0"
# In bytes. The longest legal body, each character escaped as a surrogate pair, has 66,032.
MAX_BODY = 128 * 1024
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
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
QUOTES = tuple("\"'`\u2018\u2019\u201c\u201d")
# With what comes along when a command or an assignment is copied: psql '...', export NAME="...".
POSTGRES_URL = re.compile(r"""[\w\s='":]*?postgres(?:ql)?(?:\+\w+)?://([^\s'"]+)['"]?""")
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
    file = _read_env_file(Path(".env"))
    assigned = dict(_assignments(file))
    # Flask's command has put them into the environment, with what follows a $ looked up.
    loaded = dotenv_values(stream=io.StringIO(file))
    given = {name: text for name, text in os.environ.items() if loaded.get(name) != text}
    variables = {**os.environ, **assigned, **given}

    def text(name: str, default: str = "") -> str:
        return _without_wrapping(name, variables.get(name, default))

    def number(name: str, default: int, least: int, most: int) -> int:
        digits = text(name, str(default))
        if not re.fullmatch("[0-9]{1,9}", digits) or not least <= int(digits) <= most:
            raise InvalidSetting(f"{name}: expected a whole number from {least} to {most}")
        return int(digits)

    log_level = text("LOG_LEVEL", "INFO").upper()
    if log_level not in LOG_LEVELS:
        raise InvalidSetting(f"LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)}")
    on_platform = not PLATFORM_VARIABLES.isdisjoint(os.environ)
    return Settings(
        database_url=_database_url(text("DATABASE_URL"), on_platform),
        database_schema=_database_schema(text("DATABASE_URL")),
        cors_origins=_origins(text("CORS_ORIGINS", "http://localhost:3000")),
        log_level=log_level,
        host="0.0.0.0" if on_platform else "127.0.0.1",
        port=number("PORT", 8000, 1, 65535),
        workers=number("WEB_CONCURRENCY", 2, 1, 64),
        threads=number("THREADS", 20, 5, 256),
        jwt_leeway=number("JWT_LEEWAY", 10, 0, 600),
        **_tokens(text),
    )


def _read_env_file(file: Path) -> str:
    """The text of `file`, if it is there. Raises InvalidSetting if it cannot be read."""
    try:
        content = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return ""
    except OSError as error:
        raise InvalidSetting(f"{file}: {error.strerror}") from error
    # The Windows PowerShell writes UTF-16.
    encoding = "utf-16" if content.startswith((BOM_UTF16_BE, BOM_UTF16_LE)) else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(f"{file}, line {line}: expected text in UTF-8") from error


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """The assignments in the text of `.env`; what follows a `$` is not looked up.

    Raises InvalidSetting for a line that is neither empty, a comment nor an assignment: left out,
    a `JWT_SECRET` whose quote is not closed would be a server without a secret.
    """
    for part in parse_stream(io.StringIO(text, newline=None)):
        source = part.original.string.strip()
        assigns = part.value is not None and NAME.fullmatch(part.key or "")
        if source and not source.startswith("#") and (not assigns or "\n" in source):
            line = part.original.line + part.original.string.partition(source)[0].count("\n")
            raise InvalidSetting(
                f".env, line {line}: expected NAME=VALUE, with every quote closed on its line"
            )
        if part.key and part.value is not None:
            yield part.key, part.value


def _without_wrapping(name: str, value: str) -> str:
    """`value` without the blanks, newlines and quotes around it that were pasted along."""
    text = value.strip()
    if match := QUOTED.fullmatch(text):
        text = match[2].strip()
    if not text.isprintable():
        raise InvalidSetting(f"{name}: expected no line break and no invisible character in it")
    if (text.startswith(QUOTES) or text.endswith(QUOTES)) and name != "DATABASE_URL":
        raise InvalidSetting(f"{name}: expected no quote at its beginning or its end")
    return text


def _database_url(text: str, on_platform: bool) -> str:
    if not text:
        if on_platform:
            raise InvalidSetting(
                "DATABASE_URL is not set: expected postgresql://USER:PASSWORD@HOST/DATABASE,"
                " since a file on this platform is lost with every deploy"
            )
        return "sqlite:///tasks.db"
    if match := POSTGRES_URL.fullmatch(text):
        return _postgres_url(match[1])
    file = Path(text.removeprefix("sqlite:///"))
    is_file = file.name not in {"", ":memory:"} and not file.is_dir()
    if not text.startswith("sqlite:///") or not is_file:
        raise InvalidSetting(
            "DATABASE_URL: expected postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:///FILE"
        )
    if "?" in text:
        raise InvalidSetting("DATABASE_URL: expected sqlite:///FILE without parameters")
    if not os.access(file.parent, os.W_OK):
        raise InvalidSetting(f"DATABASE_URL: the folder {file.parent} cannot be written to")
    return f"sqlite:///{file}"


def _postgres_url(address: str) -> str:
    """`address` behind the scheme that libpq knows, without the parameters that it refuses.

    They come along when a URL is copied from another driver's settings (`?pgbouncer=true`).
    """
    base, _, query = address.partition("?")
    parameters = []
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if not value:
            continue
        if name in {"ssl", "sslmode"}:
            parameter = f"sslmode={'require' if value in TLS_REQUIRED else value}"
        try:
            parse_dsn(f"postgresql://?{parameter}")
        except psycopg2.ProgrammingError:
            continue
        parameters.append(parameter)
    url = f"postgresql://{base}?{'&'.join(parameters)}".removesuffix("?")
    try:
        parts = parse_dsn(url)
    except psycopg2.ProgrammingError:
        parts = {"port": "unreadable"}
    if not re.fullmatch(r"[\d,]*", parts.get("port", "")) or not USER_AND_REST.fullmatch(base):
        # Not libpq's own words: they can hold a piece of the password.
        raise InvalidSetting(
            "DATABASE_URL: expected postgresql://USER:PASSWORD@HOST/DATABASE,"
            " with special characters in the password percent-encoded"
        )
    if parts.get("sslrootcert") == "system":
        _find_certificates()
        if parts.get("sslmode", "verify-full") != "verify-full":
            raise InvalidSetting(
                "DATABASE_URL: expected sslmode=verify-full or none with sslrootcert=system"
            )
    return url


def _database_schema(url: str) -> str:
    """The schema of the tables in PostgreSQL: `?schema=NAME`, or the search_path in `options`."""
    match = POSTGRES_URL.fullmatch(url)
    parameters = dict(parse_qsl(match[1].partition("?")[2])) if match else {}
    path = re.search(r"search_path=([^,\s]+)", parameters.get("options", ""))
    name = parameters.get("schema") or (path[1] if path else "public")
    if not SCHEMA_NAME.fullmatch(name):
        raise InvalidSetting(
            "DATABASE_URL: expected a schema of up to 63 letters, digits and _, a letter first"
        )
    return name


def _find_certificates() -> None:
    """Tell psycopg2's own OpenSSL where the system keeps the certificates of its authorities.

    By itself, that of a wheel looks in the folder in which it was built.
    """
    paths = ssl.get_default_verify_paths()
    if not paths.cafile and not (paths.capath and os.listdir(paths.capath)):
        raise InvalidSetting(
            "DATABASE_URL: sslrootcert=system, but this system has no certificates: expected"
            f" the package ca-certificates, or {paths.openssl_cafile_env} with the path of a file"
        )
    if paths.cafile:
        os.environ[paths.openssl_cafile_env] = paths.cafile
    if paths.capath:
        os.environ[paths.openssl_capath_env] = paths.capath


def _tokens(text: Callable[[str], str]) -> dict[str, Any]:
    """What makes a token valid; without a secret and a key set, none is asked for."""
    name = "JWT_SECRET" if text("JWT_SECRET") else "BETTER_AUTH_SECRET"
    secret, url = text(name), text("JWT_JWKS_URL")
    issuer, audience = text("JWT_ISSUER"), _items(text("JWT_AUDIENCE"))
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
