"""The log: one line for each request and each event, as JSON or, in a terminal, as text."""

import errno
import json
import logging
import logging.config
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from random import getrandbits
from select import PIPE_BUF, select
from time import monotonic, perf_counter
from typing import Any

import orjson
from flask import has_request_context, request
from gunicorn.config import Config
from gunicorn.glogging import Logger
from psycopg2.extensions import parse_dsn

from settings import Settings

SAFE_ID = re.compile(r"[\w.:/+=@~-]{1,128}", re.ASCII)
# Messages of Gunicorn that repeat the start summary or the message about an unusable address.
REPEATED = re.compile(
    "Starting gunicorn|Listening at|Using worker|Connection in use|Invalid address|Can't connect to"
)
CANNOT_LISTEN = re.compile(r"connection to (.+) failed: (?:\[Errno -?\d+\] )?(.+)")
EVERY_ADDRESS = re.compile(r"http://(?:0\.0\.0\.0|\[::\]):(\d+)")

# How long a record may wait until there is space for it in the stream.
MAX_WRITE_S = 0.1

log = logging.getLogger("tasks.request")


class JsonFormatter(logging.Formatter):
    """A log record as a JSON object on one line, with the id of the request that it is about."""

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
        text = orjson.dumps(line, option=orjson.OPT_UTC_Z, default=repr).decode()
        if text.isprintable():
            return text
        # A terminal obeys control characters that JSON need not escape, too.
        return json.dumps(orjson.loads(text), separators=(",", ":"))


class TextFormatter(logging.Formatter):
    """A log record as text for a person, with each field and each line of a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        message = record.getMessage()
        if "status" in fields:
            message = "{method} {path} {status} {ms} ms".format_map(fields)
            fields = {}
        if has_request_context():
            message += f"  {request_id()[:8]}"
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        lines = [f"{time} {record.levelname.lower():7} {message}"]
        lines += [f"{name:9} {value}" for name, value in fields.items()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n         ".join(map(escape, lines))


class StderrHandler(logging.Handler):
    """Writes a record to the standard error stream, without a lock.

    The lock of the standard library's handlers costs 5 % of a GET's CPU at 16 clients. If nobody
    reads the stream, or its disk is full, records are dropped; otherwise, every thread would
    wait. To ask first whether there is space costs 2 %.
    """

    dropped = 0
    # Ends a line of which only the beginning was written, so that the next one can be read.
    cut = b""

    def __init__(self) -> None:
        super().__init__()
        is_terminal = os.isatty(2)
        self.file = open_terminal() if is_terminal else 2
        self.setFormatter(TextFormatter() if is_terminal else JsonFormatter())

    def handle(self, record: logging.LogRecord) -> bool:
        try:
            line = self.cut + f"{self.format(record)}\n".encode()
            rest = write(self.file, line, 0 if self.dropped else MAX_WRITE_S)
            if len(rest) < len(line):
                self.cut = b"\n" if rest else b""
            if rest:
                self.dropped += 1
            elif self.dropped:
                number, self.dropped = self.dropped, 0
                log.warning("about %d lines of the log were dropped: no space was left", number)
        except Exception:
            self.handleError(record)
        return True


@cache
def open_terminal() -> int:
    """The terminal that is the standard error stream, so that a write to it never waits.

    A terminal that has any space may have too little for a line, unlike a pipe. Other programs
    share the stream's own state, which therefore stays.
    """
    try:
        return os.open(os.ttyname(2), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # It has no name here, or belongs to another user.
        return 2


def write(file: int, line: bytes, patience_s: float) -> bytes:
    """Write to the standard error stream, in one system call unless the line is long.

    If a pipe has any space, it has some for PIPE_BUF bytes. Returns what there was no space for.
    """
    until = monotonic() + patience_s
    with suppress(OSError):  # Such as a full disk, or a pipe that nobody will read.
        while line and select([], [file], [], patience_s)[1]:
            try:
                line = line[os.write(file, line[:PIPE_BUF]) :]
            except BlockingIOError:  # Perhaps another thread or program writes to the terminal now.
                if monotonic() >= until:
                    break
    return line


class GunicornFilter(logging.Filter):
    """Rewords Gunicorn's messages, and drops those that other messages repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith("Invalid request"):
            text = text.partition(": ")[0]  # The rest quotes the request, perhaps a token.
        elif match := CANNOT_LISTEN.fullmatch(text):
            address = re.sub(r"\('(.+?)', (\d+).*\)", r"\1:\2", match[1])
            text = f"Cannot listen at {address}: {match[2]}. Trying for 5 seconds."
            if match[2] == os.strerror(errno.EADDRINUSE):
                text += " Stop what listens there, or choose another port (-b 127.0.0.1:8001)."
            if text in self.reported:
                return False
            self.reported.add(text)
        record.msg, record.args = text, ()
        return not REPEATED.match(text)


class ServerLogger(Logger):
    """Gunicorn's log without its own line for each request, which costs 35 µs."""

    def access(self, *_: Any) -> None:
        """Do nothing, even if a platform sets `--access-logfile`."""

    def setup(self, cfg: Config) -> None:
        """Configure the log. Raises RuntimeError if the file of `--log-file` cannot be written."""
        self.cfg = cfg
        self.reopen_files()  # Before the handler asks whether it writes to a terminal.
        super().setup(cfg)

    def reopen_files(self) -> None:
        """Make the standard error stream the file of `--log-file`, if there is one.

        Gunicorn calls this on SIGUSR1, when the file was renamed. An error would stop the server.
        """
        if self.cfg.errorlog != "-":
            try:
                with open(self.cfg.errorlog, "ab", 0) as file:
                    os.dup2(file.fileno(), 2)
            except OSError as error:
                self.error("The log file cannot be opened: %s", error.strerror)


def logging_config(level: str) -> dict[str, Any]:
    """The configuration of all loggers, for `logging.config`: to the standard error stream."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"()": StderrHandler}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "tasks": {"level": level},
            "gunicorn.error": {"handlers": ["stderr"], "filters": [GunicornFilter()]},
            # `flask run` logs its address; its line for each request would contain the query.
            "werkzeug": {"propagate": False, "filters": [lambda record: not record.args]},
        },
    }


def configure_logging(level: str) -> None:
    logging.config.dictConfig(logging_config(level))


def escape(text: str) -> str:
    """`text` with escapes for characters that could control a terminal or fake a log line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def startup_summary(settings: Settings, addresses: list[str]) -> dict[str, str]:
    """The settings that an operator wants to see. No password, and no parameter of a URL."""
    address = EVERY_ADDRESS.sub(r"port \1, on every address", ", ".join(addresses))
    fields = {
        "address": address,
        "docs": f"{addresses[0]}/docs" if address.startswith("http") else "/docs",
        "database": describe_database(settings),
        "origins": ", ".join(settings.cors_origins),
    }
    if settings.jwt_secret:
        fields["callers"] = "whoever has a token signed with the secret"
    if settings.jwt_jwks_url:
        url = settings.jwt_jwks_url.partition("?")[0]
        fields["callers"] = f"whoever has a token signed with a key at {url}"
    return fields


@cache
def log_warnings(settings: Settings) -> None:
    """Log what an operator should know, once for this process and the ones that it forks."""
    for warning in settings.warnings:
        logging.getLogger("tasks.settings").warning(warning)


def describe_database(settings: Settings) -> str:
    """The kind and the place of the database, without a password."""
    if settings.sqlite_file:
        return f"SQLite at {settings.sqlite_file}"
    parts = parse_dsn(settings.database_url)
    port = f":{parts['port']}" if "port" in parts else ""
    return f"PostgreSQL at {parts.get('host', 'its socket')}{port}/{parts.get('dbname', '')}"


def request_id() -> str:
    """The id of the current request."""
    return str(request.environ["request_id"])


def log_request(environ: Any, start_response: Any) -> Any:
    """A `start_response` (PEP 3333) that also sends the request's id and logs the request.

    The id is the client's `X-Request-ID`, if it is safe to log. The log has the path without its
    query, and neither headers nor body, since these can contain a token or a user's texts.
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
