"""How the application is served."""

import os
import resource
import signal
import sys
from typing import Any

from gunicorn.arbiter import Arbiter

from server import Worker, logging_config, startup_summary
from settings import VERSION, read_settings

settings = read_settings()

wsgi_app = "app:create_app()"
bind = f"{settings.host}:{settings.port}"
workers = settings.workers
threads = settings.threads
worker_class = Worker
logconfig_dict = logging_config(settings.log_level)
loglevel = settings.log_level.lower()
keepalive = 65  # Longer than the routers of platforms keep theirs, or they meet a closed one.
graceful_timeout = 9  # Longer than the longest request, shorter than the shortest platform waits.
# A heartbeat in a file on a slow disk can block the worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
http_parser = "python"  # The C parser takes folded headers and bare line feeds.
limit_request_line = 8190  # The most that Gunicorn has; a search or a cursor can be long.
limit_request_field_size = 32 * 1024  # A token can be long, too.
permit_unconventional_http_method = True  # The application answers them with a 405.
# No answer depends on the scheme, and a SCRIPT_NAME from outside would move the routes.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
# The rest of the file descriptors is for the database, and for what one forgets.
worker_connections = max(100, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 124))
sendfile = False  # It would wait for the client.
control_socket_disable = True  # Nobody asks it, and it is a file in a home that may not be there.


def when_ready(server: Any) -> None:
    addresses = [str(listener) for listener in server.LISTENERS]
    fields = startup_summary(settings, addresses)
    server.log.info("Task API %s started", VERSION, extra={"fields": fields})
    if not settings.jwt_secret and not settings.jwt_jwks_url:
        server.log.warning("Anyone who can reach this server may read and write every user's tasks")


def post_fork(server: Any, worker: Any) -> None:
    worker.inherited_signals = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """Stop the start if the application refuses; obey an order to stop that came meanwhile.

    Until the worker has handlers of its own it has the master's, which queues the signal for a loop
    that does not run here: the worker would serve on until it is killed.
    """
    refusal = worker.wsgi.extensions["database"].refusal
    if refusal and worker.age == 1:  # Of two that stop it, Gunicorn makes a traceback.
        worker.log.critical(refusal)
        sys.exit(Arbiter.APP_LOAD_ERROR)
    while not worker.inherited_signals.empty():
        if worker.inherited_signals.get() in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            worker.handle_exit(signal.SIGTERM, None)
