"""The settings: the environment and `.env`, read and checked once, as one frozen object."""

import io
import os
import re
import sqlite3
import ssl
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click
import psycopg2
from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream
from psycopg2.extensions import parse_dsn

VERSION = "1.1.0"
# In bytes. The longest legal body, each character escaped as a surrogate pair, has about 78,400.
MAX_BODY = 128 * 1024
# In bytes. The most that Gunicorn has; a search or a cursor can be long.
MAX_REQUEST_LINE = 8190
# One of these in the environment means a platform: listen on every address, no database by default,
# and no open access. docs/deploy.md lists them, too.
PLATFORM_VARIABLES = {
    "PORT",
    "DYNO",
    "FLY_APP_NAME",
    "K_SERVICE",
    "RAILWAY_ENVIRONMENT_ID",
    "RENDER",
    "VERCEL",
    "WEBSITE_SITE_NAME",
}
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
QUOTES = tuple("\"'`\u2018\u2019\u201c\u201d")
# A URL is often copied as part of a command or an assignment: psql '...', export NAME="...".
# In a password that is not percent-encoded, libpq takes what follows an @ or a / for the host.
POSTGRES_URL = re.compile(
    r"""[\w\s='":]*?postgres(?:ql)?(?:\+\w+)?://"""
    r"""(?P<credentials>[^@/\s'"]*@)?(?P<host>[^?\s'"]*)\??(?P<query>[^\s'"]*)['"]?"""
)
NOWHERE = "/no-such-folder"
POSTGRES_FORM = "postgresql://USER:PASSWORD@HOST/DATABASE"
SCHEMA_NAME = re.compile(r"[A-Za-z]\w{0,62}", re.ASCII)
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
# The development servers of Next.js and Vite.
LOCAL_ORIGINS = "http://localhost:3000,http://localhost:5173"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# Hosts that are not on the internet: names of Compose, Kubernetes and platforms' private
# networks (.internal and .local are reserved for them), and addresses (RFC 1918; RFC 4193).
PRIVATE_HOST = re.compile(
    r"[a-z][a-z0-9_-]*|[a-z0-9_.-]+\.(internal|local)|f[cd][0-9a-f]{2}:[0-9a-f:]+"
    r"|(10\.\d+|192\.168|172\.(1[6-9]|2\d|3[01]))(\.\d+){2}",
    re.ASCII,
)
# A host, a port, and a path without what a placeholder (<your-domain>) or a mistake has.
WEB_ADDRESS = re.compile(
    r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?([/?][!#-;=?-~]*)?", re.ASCII | re.IGNORECASE
)
# Other drivers' words for an `sslmode`.
SSL_MODES = {"true": "require", "1": "require", "no-verify": "require"}
SSL_MODES |= {"false": "prefer", "0": "prefer"}


class InvalidSetting(SystemExit):
    """A setting is missing or wrong. Stops the start with one line."""


@dataclass(frozen=True)
class Settings:
    """Everything that the environment decides. `.env.example` explains each setting."""

    database_url: str = field(repr=False)
    database_schema: str
    cors_origins: tuple[str, ...]
    log_level: str
    host: str
    port: int
    workers: int
    threads: int
    trash_days: int = 30
    jwt_secret: str = field(default="", repr=False)
    jwt_jwks_url: str = ""
    jwt_issuer: str | None = None
    jwt_audience: tuple[str, ...] = ()
    jwt_leeway: int = 10
    warnings: tuple[str, ...] = ()  # What an operator should know, logged at the start.

    @property
    def sqlite_file(self) -> str:
        """The path of SQLite's file, or "" for PostgreSQL."""
        prefix, url = "sqlite:///", self.database_url
        return url.removeprefix(prefix) if url.startswith(prefix) else ""


def read_settings() -> Settings:
    """The settings in the environment and, for variables that are not set, in `./.env`.

    Raises InvalidSetting, which names the variable and the expected value.
    """
    environment = _read_environment()
    variables = _read_env_file(Path(".env")) | environment

    def text(name: str, default: str = "") -> str:
        return _strip(name, variables.get(name, default))

    def number(name: str, default: int, least: int, most: int) -> int:
        digits = text(name, str(default))
        valid = re.fullmatch("[0-9]{1,9}", digits) and least <= int(digits) <= most
        _check(name, valid, f"a whole number from {least} to {most}")
        return int(digits)

    log_level = text("LOG_LEVEL", "INFO").upper()
    _check("LOG_LEVEL", log_level in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}")
    on_platform = not PLATFORM_VARIABLES.isdisjoint(environment)
    database_url, database_schema = _read_database_url(text("DATABASE_URL"), on_platform)
    return Settings(
        database_url=database_url,
        database_schema=database_schema,
        cors_origins=_read_origins(_split(text("CORS_ORIGINS", LOCAL_ORIGINS))),
        log_level=log_level,
        host="0.0.0.0" if on_platform else "127.0.0.1",
        port=number("PORT", 8000, 1, 65535),
        workers=number("WEB_CONCURRENCY", 2, 1, 64),
        threads=number("THREADS", 20, 5, 256),
        trash_days=number("TRASH_DAYS", Settings.trash_days, 0, 36_500),
        jwt_leeway=number("JWT_LEEWAY", Settings.jwt_leeway, 0, 600),
        **_read_callers(text, on_platform),
    )


# For this process and the ones that it forks: a worker that replaces another one has its settings,
# even if `.env` has changed since.
process_settings = cache(read_settings)


def _check(name: str, valid: object, expected: str) -> None:
    """Raise InvalidSetting for the variable `name` unless its value is `valid`."""
    if not valid:
        raise InvalidSetting(f"{name}: expected {expected}")


def _read_environment() -> dict[str, str]:
    """The environment, without what Flask's command copied into it from files.

    The command also reads `.flaskenv` and the files of parent folders, and expands each $NAME.
    Before that, it sets FLASK_RUN_FROM_CLI: the variables that precede it were not copied.
    """
    copied: dict[str, str | None] = {}
    if click.get_current_context(silent=True):
        for file in (".flaskenv", ".env"):
            copied |= dotenv_values(find_dotenv(file, usecwd=True))
    given = {*takewhile(lambda name: name != "FLASK_RUN_FROM_CLI", os.environ)}
    return {
        name: text for name, text in os.environ.items() if name in given or copied.get(name) != text
    }


def _read_env_file(file: Path) -> dict[str, str]:
    """The variables that `file` assigns, if it exists. A `$` in a value stays as it is.

    Raises InvalidSetting for a line that is neither empty, a comment nor an assignment. If a
    `JWT_SECRET` whose quote is not closed were skipped, the server would start without a secret.
    """
    try:
        content = file.read_bytes()
        # Windows PowerShell writes UTF-16.
        is_utf16 = content.startswith((BOM_UTF16_BE, BOM_UTF16_LE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except OSError as error:
        raise InvalidSetting(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(f"{file}, line {number}: expected text in UTF-8") from error
    variables = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, value, *_ = next(parse_stream(io.StringIO(line)))
            if name is None or value is None or not VARIABLE_NAME.fullmatch(name):
                expected = "NAME=VALUE, with every quote closed on its line"
                raise InvalidSetting(f"{file}, line {number}: expected {expected}")
            variables[name] = value
    return variables


def _strip(name: str, value: str) -> str:
    """`value` without the blanks, line breaks and quotes around it that were copied with it."""
    text = value.strip()
    if match := QUOTED.fullmatch(text):
        text = match[2].strip()
    _check(name, text.isprintable(), "no line break and no invisible character in it")
    unquoted = name == "DATABASE_URL" or not (text.startswith(QUOTES) or text.endswith(QUOTES))
    _check(name, unquoted, "no quote at its beginning or its end")
    _check(name, not text.startswith("# "), "a value before the comment")
    return text


def _read_callers(text: Callable[[str], str], on_platform: bool) -> dict[str, Any]:
    """The settings that decide who may call. Without a key, that is anyone, if it is meant."""
    secret_name = "JWT_SECRET" if text("JWT_SECRET") else "BETTER_AUTH_SECRET"
    secret, jwks_url = text(secret_name), text("JWT_JWKS_URL")
    issuer = text("JWT_ISSUER")
    audience = tuple(_strip("JWT_AUDIENCE", item) for item in _split(text("JWT_AUDIENCE")))
    anyone, warnings = text("ALLOW_ANYONE"), []
    address = "an https:// address, or an http:// one on this machine or in a private network"
    _check("JWT_JWKS_URL", not jwks_url or _is_trusted(jwks_url), address)
    _check("JWT_ISSUER", not issuer.startswith("http://") or _is_trusted(issuer), address)
    _check("ALLOW_ANYONE", anyone in {"", "true", "false"}, "true or false")
    if jwks_url:
        parts = urlsplit(jwks_url)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK:
            warnings.append(f"Whoever can change the traffic from {parts.netloc} can sign tokens")
        if secret:
            warnings.append(f"{secret_name} is ignored, since JWT_JWKS_URL is set")
            secret = ""
    elif secret:
        expected = "32 bytes or more, such as the output of `openssl rand -hex 32`"
        _check(secret_name, len(secret.encode()) >= 32, expected)
    else:
        keys, reason = "JWT_JWKS_URL or JWT_SECRET", "since JWT_ISSUER or JWT_AUDIENCE is set"
        _check(keys, not (issuer or audience), f"one of them, {reason}")
        is_meant = anyone == "true" or not (anyone or on_platform)
        _check(keys, is_meant, "one of them, or ALLOW_ANYONE=true if anyone may call for any user")
        warnings.append("Anyone who can reach this server may read and write every user's tasks")
    return {
        "jwt_secret": secret,
        "jwt_jwks_url": jwks_url,
        "jwt_issuer": issuer or None,
        "jwt_audience": audience,
        "warnings": tuple(warnings),
    }


def _read_database_url(text: str, on_platform: bool) -> tuple[str, str]:
    """The URL in the form that libpq or SQLite needs, and the schema of the tables."""
    if match := POSTGRES_URL.fullmatch(text):
        return _read_postgres_url(**match.groupdict(""))
    if not text and on_platform:
        raise InvalidSetting(
            f"DATABASE_URL is not set: expected {POSTGRES_FORM},"
            " since a file on this platform is lost with every deploy"
        )
    text = text or "sqlite:///tasks.db"
    file = Path(text.removeprefix("sqlite:///"))
    is_file = file.name not in {"", ":memory:"} and not os.path.isdir(file)
    valid = text.startswith("sqlite:///") and is_file
    _check("DATABASE_URL", valid, f"{POSTGRES_FORM} or sqlite:///FILE")
    reason = f"since Python's SQLite is {sqlite3.sqlite_version}, older than 3.35"
    _check("DATABASE_URL", sqlite3.sqlite_version_info >= (3, 35), f"{POSTGRES_FORM}, {reason}")
    _check("DATABASE_URL", "?" not in text, "sqlite:///FILE without parameters")
    _check("DATABASE_URL", os.access(file.parent, os.W_OK), f"a writable folder, not {file.parent}")
    return f"sqlite:///{file}", "public"


def _read_postgres_url(credentials: str, host: str, query: str) -> tuple[str, str]:
    """A URL of these parts, without the parameters that libpq refuses, and the schema.

    A URL that is copied from another driver's settings has such parameters (`?pgbouncer=true`). The
    schema is `?schema=NAME`, or the search_path in `options`.
    """
    given = dict(parse_qsl(query))
    parameters = []
    for name, _, value in (parameter.partition("=") for parameter in query.split("&")):
        if name == "ssl" and "sslmode" in given:
            continue
        if name in {"ssl", "sslmode"}:
            name, value = "sslmode", SSL_MODES.get(value.lower(), value.lower())
        elif name == "unix_sock":
            name, value = "host", value.rpartition("/")[0]
        if value and _parse_url(f"postgresql://?{name}={value}") is not None:
            parameters.append(f"{name}={value}")
    url = f"postgresql://{credentials}{host}?{'&'.join(parameters)}".removesuffix("?")
    parts = _parse_url(url)
    reason = _find_libpq_error(url, parts) if parts else "the form"
    # A message about the port is not repeated: it can contain a part of the password.
    valid = parts is not None and "@" not in host and "port" not in reason
    expected = f"{POSTGRES_FORM}, with special characters in the password percent-encoded"
    _check("DATABASE_URL", valid, expected)
    _check("DATABASE_URL", not reason, f"parameters that libpq accepts, which says: {reason}")
    if parts and parts.get("sslrootcert") == "system":
        _set_certificate_paths()
        valid = parts.get("sslmode", "verify-full") == "verify-full"
        _check("DATABASE_URL", valid, "sslmode=verify-full or none with sslrootcert=system")
    search_path = re.search(r"search_path=([^,\s]+)", given.get("options", ""))
    schema = given.get("schema") or (search_path[1] if search_path else "public")
    expected = "a schema of up to 63 letters, digits and _, a letter first"
    _check("DATABASE_URL", SCHEMA_NAME.fullmatch(schema), expected)
    return url, schema


def _parse_url(url: str) -> dict[str, Any] | None:
    """The options in `url` by libpq's names, or None if libpq refuses it."""
    try:
        return parse_dsn(url)
    except psycopg2.ProgrammingError:
        return None


def _find_libpq_error(url: str, parts: dict[str, Any]) -> str:
    """Why libpq refuses a value in `url`, or "". It checks all of them before it connects."""
    others = max(parts.get(name, "").count(",") for name in ("host", "hostaddr"))
    try:
        psycopg2.connect(url, host=NOWHERE + f",{NOWHERE}" * others, hostaddr="").close()
    except psycopg2.OperationalError as error:
        return "" if NOWHERE in str(error) else str(error).strip()
    return ""


def _set_certificate_paths() -> None:
    """Set the paths of the system's certificate authorities for psycopg2's own OpenSSL.

    Without them, the OpenSSL of a wheel looks in the folder in which the wheel was built.
    """
    paths = ssl.get_default_verify_paths()
    found = paths.cafile or (paths.capath and os.listdir(paths.capath))
    remedy = f"the package ca-certificates, or the path of a file in {paths.openssl_cafile_env}"
    expected = f"{remedy}, since sslrootcert=system is set and this system has no certificates"
    _check("DATABASE_URL", found, expected)
    if paths.cafile:
        os.environ[paths.openssl_cafile_env] = paths.cafile
    if paths.capath:
        os.environ[paths.openssl_capath_env] = paths.capath


def _is_trusted(url: str) -> bool:
    """Whether nobody on the internet can replace an answer from `url` on its way here."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_near = host in LOOPBACK or PRIVATE_HOST.fullmatch(host)
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_near)
        return bool(WEB_ADDRESS.fullmatch(url) and is_safe) and parts.port != 0
    except ValueError:
        return False


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _read_origins(items: tuple[str, ...]) -> tuple[str, ...]:
    """`items` in the form that browsers send: without a default port (RFC 6454, section 6.1)."""
    if items == ("*",):
        return items
    origins = []
    for item in items:
        origin = item.lower().rstrip("/")
        expected = "* or a comma-separated list of origins such as https://example.com, in ASCII"
        _check("CORS_ORIGINS", ORIGIN.fullmatch(origin), f"{expected}, got {item!r}")
        default_port = {"https": ":443", "http": ":80"}.get(origin.partition(":")[0], "/")
        origins.append(origin.removesuffix(default_port))
    return tuple(origins)
