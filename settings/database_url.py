"""DATABASE_URL, in the forms that providers and other drivers use."""

import os
import re
import sqlite3
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import psycopg2
from psycopg2.extensions import parse_dsn

from settings.variables import InvalidSetting, Variables, check

# A URL is often copied as part of a command or an assignment: psql '...', export NAME="...".
# If a password has an @ or a / that is not percent-encoded, libpq takes a part of the password, or
# the user, for the host.
POSTGRES_URL = re.compile(
    r"""[\w\s='":]*?postgres(?:ql)?(?:\+\w+)?://"""
    r"""(?P<credentials>[^@/\s'"]*@)?(?P<host>[^?\s'"]*)\??(?P<query>[^\s'"]*)['"]?"""
)
NOWHERE = "/no-such-folder"
POSTGRES_FORM = "postgresql://USER:PASSWORD@HOST/DATABASE"
PASSWORD_FORM = f"{POSTGRES_FORM}, with special characters in the password percent-encoded"
# In `options`. https://www.postgresql.org/docs/current/libpq-connect.html
SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path=((?:\\.|\S)+)\s*")
# A space as SQLAlchemy, urlencode and URLSearchParams write it. libpq takes it for a plus sign.
FORM_SPACE = re.compile(r"(?<=-c)\+|\+(?=-)")
# Prisma's parameter, JDBC's, and pgx's.
SCHEMA_PARAMETERS = ("schema", "currentSchema", "search_path")
SCHEMA_NAME = re.compile(r"[A-Za-z]\w{0,62}", re.ASCII)
# Other drivers' words for an `sslmode`.
SSL_MODES = {"true": "require", "1": "require", "no-verify": "require"}
SSL_MODES |= {"false": "prefer", "0": "prefer"}
# What a dashboard shows for a password, or a template that nobody has filled in.
PLACEHOLDER = re.compile(r"\[[A-Z _-]+\]|<[\w -]+>|\$?\{\{?[\w .-]+\}\}?|\*{3,}|•+", re.IGNORECASE)
# In a password that is not percent-encoded, the text before a `=` is rarely such a name.
PARAMETER_NAME = re.compile(r"[a-z][\w.-]*", re.ASCII | re.IGNORECASE)


def read_database_url(variables: Variables) -> tuple[str, str]:
    """The URL in the form that libpq or SQLite needs, and the schema of the tables."""
    text = variables.text("DATABASE_URL")
    variables.export("PG")
    if match := POSTGRES_URL.fullmatch(text):
        return read_postgres_url(**match.groupdict(""))
    if not text and variables.on_platform:
        raise InvalidSetting(
            f"DATABASE_URL is not set: expected {POSTGRES_FORM},"
            " since a file on this platform is lost with every deploy"
        )
    text = text or "sqlite:///tasks.db"
    file = Path(text.removeprefix("sqlite:///"))
    is_file = file.name != ":memory:" and not os.path.isdir(file)
    valid = text.startswith("sqlite:///") and is_file
    check("DATABASE_URL", valid, f"{POSTGRES_FORM} or sqlite:///FILE")
    reason = f"since Python's SQLite is {sqlite3.sqlite_version}, older than 3.35"
    check("DATABASE_URL", sqlite3.sqlite_version_info >= (3, 35), f"{POSTGRES_FORM}, {reason}")
    check("DATABASE_URL", "?" not in text, "sqlite:///FILE without parameters")
    check("DATABASE_URL", os.access(file.parent, os.W_OK), f"a writable folder, not {file.parent}")
    return f"sqlite:///{file}", "public"


def read_postgres_url(credentials: str, host: str, query: str) -> tuple[str, str]:
    """A URL of these parts, without the parameters that libpq refuses, and the schema.

    A URL that is copied from another driver's settings has such parameters (`?pgbouncer=true`). The
    schema is `?schema=NAME`, or the search_path in `options`.
    """
    query = query.replace("&amp;", "&")  # Copied from the source of a page.
    given = {find_libpq_name(name): value for name, value in parse_qsl(query)}
    parameters = to_libpq_parameters(query, has_mode="sslmode" in given)
    url = f"postgresql://{credentials}{host}?{'&'.join(parameters)}".removesuffix("?")
    parts = parse_url(url)
    check("DATABASE_URL", parts and not set(host) & set("@&="), PASSWORD_FORM)
    reason = find_libpq_error(url, parts)
    # A message about the port is not repeated: it can contain a part of the password.
    check("DATABASE_URL", not re.search(r"\bport\b", reason), PASSWORD_FORM)
    for name in ("user", "password", "host", "dbname"):
        expected = f"the {name} itself, not a placeholder such as [YOUR-PASSWORD] or ${{NAME}}"
        check("DATABASE_URL", not PLACEHOLDER.fullmatch(parts.get(name, "")), expected)
    expected = f"parameters that libpq accepts, also in its PG… variables; libpq says: {reason}"
    check("DATABASE_URL", not reason, expected)
    if parts.get("sslrootcert", os.environ.get("PGSSLROOTCERT")) == "system":
        set_certificate_paths()
    names = [*map(given.get, SCHEMA_PARAMETERS), *SEARCH_PATH.findall(given.get("options", ""))]
    schema = next(filter(None, names), "public").split(",")[0]
    expected = "a schema of up to 63 letters, digits and _ that begins with a letter"
    check("DATABASE_URL", SCHEMA_NAME.fullmatch(schema), expected)
    return url, schema


def to_libpq_parameters(query: str, *, has_mode: bool) -> list[str]:
    """The parameters in `query` that libpq knows, in its own spelling."""
    parameters = []
    for name, _, value in (parameter.partition("=") for parameter in query.split("&")):
        name = find_libpq_name(name)
        if name == "ssl" and has_mode:
            continue
        if name in {"ssl", "sslmode"}:
            name, value = "sslmode", SSL_MODES.get(value.lower(), value.lower())
        elif name == "unix_sock":
            name, value = "host", unquote(value).rpartition("/")[0]
        elif name == "options":  # Poolers refuse a search_path. Each statement names its schema.
            options = unquote(FORM_SPACE.sub("%20", value))
            value = quote(SEARCH_PATH.sub("", options).strip())
        if value and is_libpq_name(name):
            parameters.append(f"{name}={value}")
        elif name or value:
            is_other = PARAMETER_NAME.fullmatch(name) and "@" not in value
            check("DATABASE_URL", is_other, PASSWORD_FORM)
    return parameters


def parse_url(url: str) -> dict[str, Any]:
    """The options in `url` by libpq's names; empty if libpq cannot parse it."""
    try:
        return parse_dsn(url)
    except (psycopg2.ProgrammingError, UnicodeDecodeError):
        return {}


def is_libpq_name(name: str) -> bool:
    return name == "ssl" or bool(parse_url(f"postgresql://?{name}=x"))


def find_libpq_name(name: str) -> str:
    """libpq's name for a parameter that another driver spells `sslMode`, `ssl-mode` or `SSLMODE`.

    If it were dropped, the connection could be unencrypted, or to an unverified server.
    """
    snake = re.sub(r"\B(?=[A-Z])|-", "_", name).lower()
    spellings = (name, snake, snake.replace("_", ""))
    return next((spelling for spelling in spellings if is_libpq_name(spelling)), name)


def find_libpq_error(url: str, parts: dict[str, Any]) -> str:
    """Why libpq refuses a value in `url`, or "". libpq checks all values before it connects."""
    number = 1 + max(parts.get(name, "").count(",") for name in ("host", "hostaddr"))
    try:
        psycopg2.connect(url, host=",".join([NOWHERE] * number), hostaddr="").close()
    except psycopg2.Error as error:
        # GSSAPI is never used in a folder, even if the URL requires it.
        if NOWHERE not in str(error) and "over a local socket" not in str(error):
            return str(error).strip()
    return ""


def set_certificate_paths() -> None:
    """Set the paths of the system's certificate authorities for psycopg2's own OpenSSL.

    Without them, the OpenSSL of a wheel looks in the folder in which the wheel was built.
    """
    paths = ssl.get_default_verify_paths()
    found = paths.cafile or (paths.capath and os.listdir(paths.capath))
    remedy = f"the package ca-certificates, or the path of a file in {paths.openssl_cafile_env}"
    expected = f"{remedy}, since sslrootcert=system is set and this system has no certificates"
    check("DATABASE_URL", found, expected)
    if paths.cafile:
        os.environ[paths.openssl_cafile_env] = paths.cafile
    if paths.capath:
        os.environ[paths.openssl_capath_env] = paths.capath
