"""How the application is served."""

import os
import signal
import socket
from typing import Any

import logs
from settings import VERSION, read_settings

settings = read_settings()

bind = f"{settings.host}:{settings.port}"
workers = settings.workers
threads = settings.threads
worker_class = "gthread"  # A request spends most of its time waiting for the database.
timeout = 30  # Only for the heartbeat of a worker; what a request waits for is bounded in itself.
logger_class = logs.ServerLogger
loglevel = settings.log_level.lower()
keepalive = 65  # Longer than the routers of platforms keep theirs, or they meet a closed one.
graceful_timeout = 9  # Longer than the longest request, shorter than the shortest platform waits.
# A heartbeat in a file on a slow disk can block the worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
http_parser = "python"  # The C parser takes folded headers and bare line feeds.
limit_request_line = 8190  # The most that Gunicorn has; a search or a cursor can be long.
# Whose X-Forwarded-Proto is believed; platforms say so in the environment.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")
forwarder_headers = ""  # A SCRIPT_NAME from outside would move the routes.
control_socket_disable = True  # Nobody asks it, and it is a file in a home that may not be there.


def when_ready(server: Any) -> None:
    addresses = [str(listener) for listener in server.LISTENERS]
    fields = logs.summary(settings, addresses)
    server.log.info("Task API %s started", VERSION, extra={"fields": fields})
    for listener in server.LISTENERS:
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            # Whoever connects and says nothing would hold a thread for five seconds.
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
    if not settings.jwt_secret and not settings.jwt_jwks_url:
        server.log.warning("Anyone who can reach this server may read and write every user's tasks")


def post_fork(server: Any, worker: Any) -> None:
    worker.inherited_signals = server.SIG_QUEUE


def post_worker_init(worker: Any) -> None:
    """Obey an order to stop that came while the worker was starting.

    Until it has handlers of its own it has the master's, which queues the signal for a loop that
    does not run here: the worker would serve on until it is killed.
    """
    while not worker.inherited_signals.empty():
        if worker.inherited_signals.get() in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            worker.handle_exit(signal.SIGTERM, None)
