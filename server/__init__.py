"""How Gunicorn serves the application, and the log."""

from server.logs import (
    ServerLogger,
    configure_logging,
    log_request,
    log_warnings,
    logging_config,
    request_id,
    startup_summary,
)
from server.worker import Worker

__all__ = [
    "ServerLogger",
    "Worker",
    "configure_logging",
    "log_request",
    "log_warnings",
    "logging_config",
    "request_id",
    "startup_summary",
]
