"""How Gunicorn serves the application, and what the log says."""

from server.logs import ServerLogger, configure_logging, log_request, request_id, startup_summary
from server.worker import Worker

__all__ = [
    "ServerLogger",
    "Worker",
    "configure_logging",
    "log_request",
    "request_id",
    "startup_summary",
]
