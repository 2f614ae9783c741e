"""Gunicorn's threaded worker, changed so that no thread waits for a client.

The event loop reads a request, and gives it to a thread once it is complete. The loop also sends
the part of a response that the client does not receive at once. So a slow client costs a socket
and a bounded amount of memory, but no thread.
"""

import logging
import math
import re
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from io import BytesIO
from queue import SimpleQueue
from select import select
from selectors import EVENT_READ, EVENT_WRITE
from threading import Thread
from time import monotonic
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.errors import LimitRequestHeaders, NoMoreData
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker
from gunicorn.workers.workertmp import WorkerTmp

from server.connection import Connection

# CLIENT_TIMEOUT_S limits the time for a whole request to arrive, for a client to take the next part
# of a response, and for it to close after the last response. While the worker stops, STOP_TIMEOUT_S
# limits them.
CLIENT_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 2.0
# A request that no thread has taken for so long is a 503: its client may have given up. The second
# limit begins when the worker stops, or when the request arrives after that.
MAX_QUEUE_S, STOP_QUEUE_S = 8.0, 1.0
# A process was frozen if the event loop wakes this much later than it intended to, or if the
# master, which asks for the heartbeats every second, has not asked for so long.
MAX_PAUSE_S = 2.0
# The most data that may wait in the loop, and that the requests given to threads may have.
MAX_WAITING_BYTES = 64 * 1024 * 1024
# The most that is received in one call.
RECEIVE_BYTES = 32 * 1024

TIMEOUT_RESPONSE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
# What can begin a request. Node.js sends the body of a DELETE without its length: if the connection
# were kept, the next request would begin with that body, and be lost.
REQUEST_BEGIN = re.compile(rb"(?:\r\n)*(?:[A-Z-]+ |[A-Z-]*\Z|\r\Z)")
HEALTH = re.compile(rb"(?:GET|HEAD) (?:https?://[^/ ]*)?/+health/?[ ?#]", re.IGNORECASE)
# The result with which Gunicorn's `finish_request` keeps a connection.
KEPT: Future[bool] = Future()
KEPT.set_result(True)

log = logging.getLogger("tasks.server")


class ThreadPool:
    """Threads that call functions. A Future for each call would cost a tenth of a GET's CPU."""

    def __init__(self, size: int) -> None:
        self._size, self._started = size, 0
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def submit(self, call: Callable[[], object], busy: int) -> None:
        """Run `call` in a thread. Start another thread if there are fewer than `busy`.

        `busy` is the number of calls that are not finished, with this one. A few clients thus use a
        few threads, each of which keeps some memory of its longest list.
        """
        if self._started < min(busy, self._size):
            with suppress(RuntimeError):  # The system has no thread left: use those that there are.
                Thread(target=self._run, daemon=True).start()
                self._started += 1
        self._calls.put(call)
        if not self._started:
            self._run_next()

    def _run(self) -> None:
        while True:
            self._run_next()

    def _run_next(self) -> None:
        try:
            self._calls.get()()
        except Exception:  # Such as a MemoryError. The thread must go on: none replaces it.
            log.exception("a request could not be answered")


class MethodQueue(PollableMethodQueue):
    """The loop's queue of calls, whose pipe stays open until the process ends.

    Otherwise, a late thread could write into another file that has the number of the pipe by then.
    """

    def close(self) -> None:
        """Do nothing."""


class Heartbeat(WorkerTmp):
    """A worker's heartbeat, which starts anew after the container was frozen.

    Gunicorn would kill the workers, and the requests that woke the container.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self._asked_at = self._thawed_at = 0.0

    def last_update(self) -> float:
        """When the worker was last alive, for the master."""
        now = monotonic()
        if now > self._asked_at + MAX_PAUSE_S:
            self._thawed_at = now
        self._asked_at = now
        return float(max(super().last_update(), self._thawed_at))


class Worker(ThreadWorker):
    """A worker whose event loop holds every connection that no thread is handling.

    For a request, the loop calls `enqueue_req`, `receive`, `proceed` and `submit`, a thread calls
    `respond`, and the loop calls `finish`, then `send`, `linger`, `enqueue_req` or, to keep an idle
    connection, Gunicorn's `finish_request`. The methods from `check_config` to `enqueue_req`, and
    `murder_pending`, replace or extend Gunicorn's.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tmp.close()
        self.tmp = Heartbeat(self.cfg)
        self.method_queue = MethodQueue()
        # Connections that wait for their client, with their deadlines, the earliest first.
        self.waiting: dict[Connection, float] = {}
        self.waiting_bytes = self.submitted_bytes = 0
        self.stopping_since = math.inf
        # /health has its own thread: platforms restart a service that answers it too late. Requests
        # for which no thread will be free soon have one, too: their 503 frees their connections.
        self.threads = ThreadPool(self.cfg.threads)
        self.health_thread, self.refusal_thread = ThreadPool(1), ThreadPool(1)

    @classmethod
    def check_config(cls, cfg: Config, log: Logger) -> None:
        super().check_config(cfg, log)
        limits = (cfg.limit_request_line, cfg.limit_request_fields, cfg.limit_request_field_size)
        unsupported = [
            ("certfile, keyfile", cfg.is_ssl, "use a proxy that terminates TLS"),
            ("proxy_protocol", cfg.proxy_protocol != "off", "let the proxy speak HTTP"),
            ("http_parser", cfg.http_parser != "python", "leave it as it is"),
            # The parser would find another end of a request than the event loop.
            ("strip_header_spaces", cfg.strip_header_spaces, "leave it as it is"),
            ("permit_obsolete_folding", cfg.permit_obsolete_folding, "leave it as it is"),
            ("limit_request_* of 0", not all(limits), "set a limit"),
            # Gunicorn would set it after the settings have been read.
            ("env", cfg.env, "set the variable before the start, or in .env"),
        ]
        for name, is_set, remedy in unsupported:
            if is_set:
                raise SystemExit(f"{name}: not supported; {remedy}")

    def accept(self, listener: socket.socket) -> None:
        try:
            accepted, client = listener.accept()
        except OSError:  # The client left, or another worker took the connection.
            return
        self.nr_conns += 1
        self.enqueue_req(Connection(self.cfg, accepted, client, listener.getsockname()))

    def set_accept_enabled(self, enabled: Any) -> None:
        """Close the listeners when the worker stops: a router can send a refused request again."""
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            self.stopping_since = min(self.stopping_since, monotonic())
            while self.sockets:
                listener = self.sockets.pop()
                for _ in range(self.worker_connections - self.nr_conns):
                    if not select([listener], [], [], 0)[0]:
                        break
                    self.accept(listener)
                listener.close()

    def init_signals(self) -> None:
        """Leave SIGINT and SIGHUP to the master: a terminal sends them to the workers, too."""
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def is_parent_alive(self) -> bool:
        """Whether the master runs. If it was killed, stop as on SIGTERM, and leave the port."""
        if not super().is_parent_alive():
            self.alive = False  # Never True: a signal may have come during the call.
        return bool(self.alive)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Handle what arrives. After the container was frozen, every deadline starts anew.

        Python's wait then ends without events (PEP 475), and Gunicorn would drop connections that
        are past their deadline with the requests that woke the container.
        """
        until = monotonic() + (timeout or 0.0)
        super().wait_for_and_dispatch_events(timeout)
        if monotonic() > until + MAX_PAUSE_S:
            self.waiting = dict.fromkeys(self.waiting, monotonic() + CLIENT_TIMEOUT_S)
            for conn in self.keepalived_conns:
                conn.set_timeout()

    def enqueue_req(self, conn: Any) -> None:
        """Wait for the next request on a connection."""
        # While a whole request is there, nothing is received: a fast client would fill the memory.
        if (conn.received and self.proceed(conn)) or self.receive(conn):
            return
        if conn.size or not conn.parser.req_count:
            self.wait(conn, EVENT_READ, self.receive)
        else:
            self.finish_request(conn, KEPT)

    def receive(self, conn: Connection) -> bool:
        """Receive what has arrived. Returns False if more must arrive before anything is done."""
        try:
            data = conn.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self.drop(conn)
            return True
        conn.received += data
        return self.proceed(conn, has_ended=not data)

    def proceed(self, conn: Connection, has_ended: bool = False) -> bool:
        """Submit the request if a thread can answer it. Returns False if more must arrive."""
        if conn.read_request() or (has_ended and conn.head):
            self.stop_waiting(conn)
            self.submit(conn)
            return True
        if has_ended:
            self.drop(conn)
            return True
        if conn.expects_continue:
            conn.expects_continue = False
            conn.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            conn.sock.flush()
        self.count_bytes(conn)
        return False

    def submit(self, conn: Connection) -> None:
        """Let a thread handle the request that has arrived."""
        busy = self.nr_conns - len(self.waiting) - len(self.keepalived_conns)
        threads = self.threads
        conn.counted_bytes = conn.size
        self.submitted_bytes += conn.counted_bytes
        if HEALTH.match(conn.head):
            threads = self.health_thread
        elif busy > self.worker_connections * 9 // 10 or self.submitted_bytes > MAX_WAITING_BYTES:
            threads, conn.sock.is_refused = self.refusal_thread, True
        threads.submit(partial(self.respond, conn, monotonic()), busy)

    def respond(self, conn: Connection, arrived: float) -> None:
        """Handle a request in a thread, and give the connection back to the loop."""
        latest = max(arrived, self.stopping_since) + STOP_QUEUE_S
        conn.sock.is_refused |= monotonic() > min(arrived + MAX_QUEUE_S, latest)
        request: Any = None
        keep_alive = False
        try:
            conn.parser.unreader.unread(conn.head)
            conn.head = b""
            request = next(conn.parser)
            request.body = BytesIO(conn.body)
            is_garbled = not REQUEST_BEGIN.match(conn.received)
            if conn.sock.is_partial or is_garbled or is_last(request):
                request.force_close()
            keep_alive = self.handle_request(request, conn)
        except Exception as error:
            if not conn.sock.unsent:
                # A head that is too long has no end. Gunicorn would answer 500, and log all of it.
                # Another name for the error would keep it, and the head, until Python's garbage
                # collector finds both.
                if isinstance(error, NoMoreData):
                    error = LimitRequestHeaders("the head is too long")
                self.handle_error(request, conn.sock, conn.client, error)
                # Gunicorn writes its page with textwrap.dedent(), which Python 3.14 has changed.
                conn.sock.unsent = conn.sock.unsent.replace(b"\r\n\n", b"\r\n\r\n", 1)
        finally:
            keep_alive = conn.sock.flush() and keep_alive
            self.method_queue.defer(self.finish, conn, keep_alive)

    def finish(self, conn: Connection, keep_alive: bool) -> None:
        """Send the rest of the response, then wait for the next request or close."""
        self.submitted_bytes -= conn.counted_bytes
        conn.counted_bytes = 0
        conn.reset()
        if conn.sock.unsent:
            self.wait(conn, EVENT_WRITE, partial(self.send, keep_alive=keep_alive))
        elif not keep_alive:
            self.linger(conn)
        elif conn.received:
            self.enqueue_req(conn)
        else:
            self.finish_request(conn, KEPT)

    def send(self, conn: Connection, keep_alive: bool) -> None:
        self.stop_waiting(conn)
        self.finish(conn, conn.sock.flush() and keep_alive)

    def linger(self, conn: Connection) -> None:
        """Let the client close first, or it may lose the response (RFC 9112, section 9.6)."""
        conn.received.clear()
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(conn)
        else:
            self.wait(conn, EVENT_READ, self.discard)

    def discard(self, conn: Connection) -> None:
        with suppress(OSError):
            if conn.sock.recv(RECEIVE_BYTES):
                return
        self.drop(conn)

    def wait(self, conn: Connection, event: int, callback: Callable[[Connection], object]) -> None:
        """Call `callback` each time the client is ready. Its bytes do not extend the timeout."""
        self.poller.register(conn.sock, event, lambda _: callback(conn))
        self.waiting[conn] = monotonic() + CLIENT_TIMEOUT_S
        self.count_bytes(conn)

    def stop_waiting(self, conn: Connection) -> None:
        if self.waiting.pop(conn, None):
            self.poller.unregister(conn.sock)
            self.count_bytes(conn)

    def count_bytes(self, conn: Connection) -> None:
        """Update `waiting_bytes`. A sum over all connections for each event would be too slow."""
        size = conn.size if conn in self.waiting else 0
        self.waiting_bytes += size - conn.counted_bytes
        conn.counted_bytes = size

    def drop(self, conn: Connection) -> None:
        self.stop_waiting(conn)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Drop connections past their deadline, and the oldest if too many wait, or too many bytes.

        Idle ones go first. Gunicorn calls this in every round of its loop.
        """
        while self.keepalived_conns and self.nr_conns >= self.worker_connections:
            idle: Any = self.keepalived_conns.popleft()
            self.poller.unregister(idle.sock)
            self.drop(idle)
        # While the worker stops, every deadline is that much earlier.
        now = monotonic() + (0.0 if self.alive else CLIENT_TIMEOUT_S - STOP_TIMEOUT_S)
        while self.waiting:
            conn, until = next(iter(self.waiting.items()))
            fits = self.waiting_bytes <= MAX_WAITING_BYTES
            # If few wait, most connections are in threads, and `submit` limits those.
            few = len(self.waiting) <= self.worker_connections // 10
            if until > now and fits and (few or self.nr_conns < self.worker_connections):
                break
            if conn.size and not conn.sock.unsent:
                conn.sock.sendall(TIMEOUT_RESPONSE)
                conn.sock.flush()
            self.drop(conn)


def is_last(request: Any) -> bool:
    """Whether the client closes after this request (RFC 9112, section 9.6).

    Gunicorn finds `close` only as the one option in the first field.
    """
    options = ",".join(value for name, value in request.headers if name == "CONNECTION")
    return "close" in [option.strip(" \t") for option in options.lower().split(",")]
