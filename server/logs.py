"""What an operator reads: one line for each request and each event, as JSON or in colours."""

import errno
import logging
import logging.config
import os
import re
from datetime import UTC, datetime
from random import getrandbits
from time import perf_counter
from typing import Any, TextIO

import orjson
from flask import has_request_context, request
from gunicorn.glogging import Logger
from psycopg2.extensions import parse_dsn

from settings import Settings

SAFE_ID = re.compile(r"[\w.:/+=@~-]{1,128}", re.ASCII)
# What Gunicorn says at the start, and the summary below says better.
SAID_ALREADY = ("Starting gunicorn", "Listening at", "Using worker")
# What it says, in four ways and five times, of an address at which it cannot listen.
CANNOT_LISTEN = re.compile(r"connection to (.+) failed: (?:\[Errno -?\d+\] )?(.+)")
SAID_WITH_IT = ("Connection in use", "Invalid address", "Can't connect to")
EVERY_ADDRESS = re.compile(r"http://(?:0\.0\.0\.0|\[::\]):(\d+)")
# Select Graphic Rendition (ECMA-48, section 8.3.117).
DIM, RED, GREEN, YELLOW, CYAN = 2, 31, 32, 33, 36
LEVELS = {"WARNING": YELLOW, "ERROR": RED, "CRITICAL": RED}
STATUSES = {2: GREEN, 3: CYAN, 4: YELLOW, 5: RED}

log = logging.getLogger("tasks.request")


class JsonLines(logging.Formatter):
    """A log record as a JSON object on one line, with the id of the request that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if has_request_context():
            line["request_id"] = request_id()
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, option=orjson.OPT_UTC_Z, default=repr).decode()


class Terminal(logging.Formatter):
    """A log record for a person: in colours, unless NO_COLOR (https://no-color.org) is set."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        words = printable(record.getMessage())
        if "status" in fields:
            status = paint(fields["status"], STATUSES.get(fields["status"] // 100, RED))
            words = printable(f"{fields['method']} {fields['path']}")
            words += f" {status} {fields['ms']} ms"
            fields.clear()
        if has_request_context():
            words += paint(f"  {request_id()[:8]}", DIM)
        time = paint(datetime.fromtimestamp(record.created).strftime("%H:%M:%S"), DIM)
        level = paint(f"{record.levelname.lower():7}", LEVELS.get(record.levelname))
        lines = [f"{name:9} {printable(str(value))}" for name, value in fields.items()]
        if record.exc_info:
            lines += map(printable, self.formatException(record.exc_info).split("\n"))
        return "\n         ".join([f"{time} {level} {words}", *lines])


class ServerLogger(Logger):
    """Gunicorn's log in the same shape. It has no line per request: the application writes that."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.said: set[str] = set()
        for handler in self.error_log.handlers:
            handler.setFormatter(formatter(getattr(handler, "stream", None)))

    def info(self, msg: object, *args: Any, **kwargs: Any) -> None:
        if not str(msg).startswith(SAID_ALREADY):
            super().info(msg, *args, **kwargs)

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Without the words of a request that is not HTTP: they may hold a token."""
        text = str(msg)
        text = text.partition(": ")[0] if text.startswith("Invalid request") else text
        super().warning(text, *args, **kwargs)

    def error(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Once, and with what to do, if it is about an address at which Gunicorn cannot listen."""
        text = str(msg)
        if match := CANNOT_LISTEN.fullmatch(text):
            address = re.sub(r"\('(.+?)', (\d+).*\)", r"\1:\2", match[1])
            text = f"Cannot listen at {address}: {match[2]}. Trying for 5 seconds."
            if match[2] == os.strerror(errno.EADDRINUSE):
                text += " Stop what listens there, or choose another port (PORT=8001)."
        if text not in self.said and not text.startswith(SAID_WITH_IT):
            super().error(text, *args, **kwargs)
        if match:
            self.said.add(text)

    def access(self, *_: Any) -> None:
        """Nothing, also where a platform asks for Gunicorn's own with `--access-logfile`."""


class StandardError(logging.Handler):
    """Writes a line in one call, as UTF-8 whatever the locale says."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(2, f"{self.format(record)}\n".encode())
        except Exception:
            self.handleError(record)


def configure_logging(level: str) -> None:
    """Send every record of the process to the standard error stream."""
    # What no line shows need not be found out. https://docs.python.org/3/howto/logging.html
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": formatter, "stream": "ext://sys.stderr"}},
            "handlers": {"stderr": {"()": StandardError, "formatter": "lines"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "tasks": {"level": level},
                # `flask run` says where it listens; its line per request would hold the query.
                "werkzeug": {"propagate": False, "filters": [lambda record: not record.args]},
            },
        }
    )


def formatter(stream: TextIO | None) -> logging.Formatter:
    """The one for whoever reads `stream`: a person at a terminal, or a machine."""
    return Terminal() if stream and stream.isatty() else JsonLines()


def printable(text: str) -> str:
    """`text` with an escape for what would steer a terminal, or fake a line of the log."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def paint(text: object, colour: int | None) -> str:
    return (
        f"\x1b[{colour}m{text}\x1b[0m" if colour and not os.environ.get("NO_COLOR") else str(text)
    )


def startup_summary(settings: Settings, addresses: list[str]) -> dict[str, str]:
    """Where the service is and what it works with; no password, and no parameter of a URL."""
    address = EVERY_ADDRESS.sub(r"port \1, on every address", ", ".join(addresses))
    fields = {
        "address": address,
        "docs": f"{addresses[0]}/docs" if address.startswith("http") else "/docs",
        "database": place(settings.database_url),
        "origins": ", ".join(settings.cors_origins),
    }
    if settings.jwt_secret:
        fields["callers"] = "whoever has a token signed with the secret"
    if settings.jwt_jwks_url:
        keys = settings.jwt_jwks_url.partition("?")[0]
        fields["callers"] = f"whoever has a token signed with a key at {keys}"
    return fields


def place(database_url: str) -> str:
    if database_url.startswith("sqlite:///"):
        return f"SQLite at {database_url.removeprefix('sqlite:///')}"
    parts = parse_dsn(database_url)
    port = f":{parts['port']}" if "port" in parts else ""
    return f"PostgreSQL at {parts.get('host', 'its socket')}{port}/{parts.get('dbname', '')}"


def request_id() -> str:
    """The id of the current request."""
    return str(request.environ["request_id"])


def log_request(environ: Any, start_response: Any) -> Any:
    """`start_response` for this request, which names its id to the client and writes its line.

    The id is the client's `X-Request-ID` if that is a safe one. The line has the path without its
    query, and neither headers nor body: no token, no content.
    """
    started = perf_counter()
    given = environ.get("HTTP_X_REQUEST_ID", "")
    environ["request_id"] = given if SAFE_ID.fullmatch(given) else f"{getrandbits(128):032x}"

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        headers.append(("X-Request-ID", environ["request_id"]))
        path = environ["PATH_INFO"]
        fields = {
            "method": environ["REQUEST_METHOD"],
            "path": path if path.isascii() else path.encode("latin-1").decode(errors="replace"),
            "status": int(status[:3]),
            "ms": round((perf_counter() - started) * 1000, 1),
        }
        log.info("request", extra={"fields": fields})
        return start_response(status, headers, *error)

    return start
