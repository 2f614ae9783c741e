"""The settings: the environment and `.env`, read and checked once, as one frozen object."""

from dataclasses import dataclass, field
from functools import cache

from settings.callers import read_callers, read_origins
from settings.database_url import read_database_url
from settings.variables import PLATFORM_VARIABLES, InvalidSetting, Variables, check

__all__ = [
    "MAX_BODY",
    "MAX_REQUEST_LINE",
    "PLATFORM_VARIABLES",
    "VERSION",
    "InvalidSetting",
    "Settings",
    "process_settings",
    "read_settings",
]

VERSION = "1.1.0"
# In bytes. The longest legal body, each character escaped as a surrogate pair, has about 78,400.
MAX_BODY = 128 * 1024
# In bytes. The most that Gunicorn allows; a search or a cursor can be long.
MAX_REQUEST_LINE = 8190
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


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
    variables = Variables()
    number = variables.number
    log_level = variables.text("LOG_LEVEL", "INFO").upper()
    check("LOG_LEVEL", log_level in LOG_LEVELS, f"one of {', '.join(LOG_LEVELS)}")
    database_url, database_schema = read_database_url(variables)
    return Settings(
        database_url=database_url,
        database_schema=database_schema,
        cors_origins=read_origins(variables),
        log_level=log_level,
        host="0.0.0.0" if variables.on_platform else "127.0.0.1",
        port=number("PORT", 8000, 1, 65535),
        workers=number("WEB_CONCURRENCY", 2, 1, 64),
        threads=number("THREADS", 20, 5, 256),
        trash_days=number("TRASH_DAYS", Settings.trash_days, 0, 36_500),
        jwt_leeway=number("JWT_LEEWAY", Settings.jwt_leeway, 0, 600),
        **read_callers(variables),
    )


# For this process and the ones that it forks: a worker that replaces another one has its settings,
# even if `.env` has changed since.
process_settings = cache(read_settings)
