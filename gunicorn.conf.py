"""How the application is served.

This file, `on_starting` and `when_ready` run before the fork; `post_fork`, `create_app` and
`post_worker_init` run after it, in each worker.
"""

import codecs
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from app import start
from database import UnusableSchema
from server import ServerLogger, Worker, log_warnings, logging_config, startup_summary
from settings import MAX_REQUEST_LINE, VERSION, process_settings

settings = process_settings()
# Requests need these. With `--user`, a worker cannot read a Python in root's home folder.
for codec in ("idna", "unicode_escape"):
    codecs.lookup(codec)

wsgi_app = "app:create_app()"
bind = f"{settings.host}:{settings.port}"
workers = settings.workers
threads = settings.threads
worker_class = Worker
logger_class = ServerLogger
logconfig_dict = logging_config(settings.log_level)
loglevel = settings.log_level
# In seconds. Longer than routers and proxies keep a connection: they would lose a request that they
# send on a closed one. Heroku keeps one for 90, Caddy for 120, Google's load balancer for 600.
keepalive = 620
# In seconds. One until a thread has taken each request, and about 8 to handle it.
graceful_timeout = 9
# A heartbeat in a file on a slow disk can block the worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
http_parser = "python"  # The C parser takes folded headers and bare line feeds.
limit_request_line = MAX_REQUEST_LINE
limit_request_field_size = 32 * 1024 + len("\r\n")  # A token can be long, too.
permit_unconventional_http_method = True  # The application answers with a 405.
# No answer depends on the scheme, and a SCRIPT_NAME header would change the routing.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
# The other file descriptors are for the database, at most two in each thread, and for files of the
# process. Without one, nobody could connect, not even for /health.
free_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 84 - 2 * threads
worker_connections = max(100, min(1000, free_files))
sendfile = False  # It blocks a thread while a slow client reads.
control_socket_disable = True  # Not used; its file needs a home folder, which can be missing.


def on_starting(server: Any) -> None:
    """Change what the master does if it cannot fork, and on SIGINT and SIGHUP."""
    server.spawn_worker = partial(spawn_worker, server, server.spawn_worker)
    # Ctrl+C, Fly and PM2 send SIGINT. Gunicorn would drop the requests; a second SIGINT still does.
    server.handle_int = server.handle_term
    if os.isatty(2):
        server.handle_hup = partial(hang_up, server, server.handle_hup)


def spawn_worker(server: Any, spawn: Callable[[], object]) -> None:
    """Keep the master if the system has no process left for a worker: Gunicorn would end it.

    The master tries again every second. If the first worker lacks something else, such as a folder
    for its heartbeat, the start stops: otherwise the port would be open, and nobody would answer.
    """
    try:
        spawn()
    except OSError as error:
        if server.worker_age == 1 and not isinstance(error, BlockingIOError):
            raise HaltServer(f"No worker can be started: {error.strerror or error}") from error
        server.log.warning("No worker can be started now: %s", error.strerror)


def hang_up(server: Any, reload: Callable[[], object]) -> None:
    """Stop the server if its terminal was closed. Gunicorn would reload, and keep the port."""
    if os.isatty(2):
        reload()
    else:
        server.handle_term()


def when_ready(server: Any) -> None:
    # The workers share the memory of the modules. Their garbage collectors would copy it.
    gc.freeze()
    addresses = [str(listener) for listener in server.LISTENERS]
    fields = startup_summary(settings, addresses)
    server.log.info("Task API %s started", VERSION, extra={"fields": fields})
    log_warnings(settings)


def post_fork(server: Any, worker: Any) -> None:
    """Keep the master's queue of signals for `post_worker_init`, which does not get the master."""
    worker.inherited_signals = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """Start the application. Stop the server if it must not run, or if a signal has asked for it.

    Before the worker sets its own signal handlers, it has the master's. These only put a signal
    into a queue that no worker reads, and the worker would run until it is killed.
    """
    try:
        start(worker.wsgi)
    except UnusableSchema as error:
        if worker.age == 1:  # If two workers stop the start, Gunicorn logs a traceback.
            worker.log.critical(error)
            sys.exit(Arbiter.APP_LOAD_ERROR)
    while not worker.inherited_signals.empty():
        if worker.inherited_signals.get() in {signal.SIGTERM, signal.SIGQUIT}:
            worker.handle_exit(signal.SIGTERM, None)
