"""What an operator reads: one JSON line for each request and each event."""

import logging
import logging.config
import os
import re
import secrets
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import orjson
from flask import has_request_context, request
from gunicorn.glogging import Logger

SAFE_ID = re.compile(r"[\w.:/+=@~-]{1,128}", re.ASCII)

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


class ServerLogger(Logger):
    """Gunicorn's log in the same shape. It has no line per request: the application writes that."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JsonLines())

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Without the words of a request that is not HTTP: they may hold a token."""
        text = str(msg)
        text = text.partition(": ")[0] if text.startswith("Invalid request") else text
        super().warning(text, *args, **kwargs)

    def access(self, *_: Any) -> None:
        """Nothing, also where a platform asks for Gunicorn's own with `--access-logfile`."""


class StandardError(logging.Handler):
    """Writes a line in one call, for which no thread has to wait for another one."""

    def createLock(self) -> None:
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.write(2, f"{self.format(record)}\n".encode())
        except Exception:
            self.handleError(record)


def configure(level: str) -> None:
    """Send every record of the process to the standard error stream."""
    # What no line shows need not be found out. https://docs.python.org/3/howto/logging.html
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": JsonLines}},
            "handlers": {"stderr": {"()": StandardError, "formatter": "lines"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {"tasks": {"level": level}},
        }
    )


def request_id() -> str:
    """The id of the current request."""
    return str(request.environ["request_id"])


def logged(environ: Any, start_response: Any) -> Any:
    """`start_response` for this request, which names its id to the client and writes its line.

    The id is the client's `X-Request-ID` if that is a safe one. The line has the path without its
    query, and neither headers nor body: no token, no content.
    """
    started = perf_counter()
    given = environ.get("HTTP_X_REQUEST_ID", "")
    environ["request_id"] = given if SAFE_ID.fullmatch(given) else secrets.token_hex(16)

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
