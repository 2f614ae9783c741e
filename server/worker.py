"""Gunicorn's threaded worker, changed so that no thread waits for a client.

The event loop reads a request, and gives it to a thread once it is complete. The loop also sends
the part of a response that the client does not receive at once. So a slow client costs a socket
and a bounded amount of memory, but no thread.
"""

import re
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

from gunicorn import util
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import RequestParser
from gunicorn.http.message import RFC9110_6_5_1_FORBIDDEN_TRAILER
from gunicorn.workers.gthread import TConn, ThreadWorker

from settings import MAX_BODY

# CLIENT_TIMEOUT_S limits the time for a whole request to arrive, for a client to take the next part
# of a response, and for it to close after the last response. While the worker stops, STOP_TIMEOUT_S
# limits them.
CLIENT_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 2.0
# A request that no thread has taken for so long is a 503: its client may have given up.
MAX_QUEUE_S = 8.0
# The most data that may wait in the loop.
MAX_WAITING_BYTES = 64 * 1024 * 1024
# The most that is searched again for the end of a chunk's first line, and of the trailers.
MAX_CHUNK_LINE, MAX_TRAILERS = 4 * 1024, 32 * 1024
# Bytes received in one call, and buffers sent in one call.
RECEIVE_BYTES, SEND_BUFFERS = 32 * 1024, 100

# The fields that say where a request ends, and whether the client waits to be told to go on.
FRAMING = (b"content-length", b"transfer-encoding", b"expect")
FIELD = re.compile(rb"\r\n(%b):[ \t]*([^\r\n]*)" % b"|".join(FRAMING), re.IGNORECASE)
LENGTH = re.compile(rb"0*(\d{1,9})")
CHUNKED = re.compile(rb"(?:(?![ \t]*chunked\b)[^,]+,)*[ \t]*chunked", re.IGNORECASE)
# A body whose end the head does not say is like one that is too large: no more of it is read.
UNKNOWN_LENGTH = MAX_BODY + 1
EXPECT = re.compile(rb"\r\nexpect:[^\r\n]*", re.IGNORECASE)
EMPTY_LINES = re.compile(rb"(?:\r\n)+")
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
# The first line of a chunk, whose extensions mean nothing here (RFC 9112, section 7.1.1).
CHUNK = re.compile(rb"([0-9a-fA-F]+)(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
# The end of a chunked body. With other trailers, the request is refused, and the connection closed.
TRAILERS = re.compile(
    rb"(?:(?!(?:content-type|%b):)[a-z0-9-]+:[\t -~\x80-\xff]*\r\n){0,50}\r\n"
    % "|".join(RFC9110_6_5_1_FORBIDDEN_TRAILER).encode(),
    re.IGNORECASE,
)
HEALTH = re.compile(rb"(?:GET|HEAD) (?:https?://[^/ ]*)?/+health/?[ ?#]", re.IGNORECASE)
# The result with which Gunicorn's `finish_request` keeps a connection.
KEPT: Future[bool] = Future()
KEPT.set_result(True)


class ClientSocket(socket.socket):
    """A socket whose `sendall` never waits: it keeps the data for `flush`."""

    # Whether the application should answer 503, and whether the body is not whole. The application
    # finds the socket in the WSGI environment.
    is_refused = is_partial = False

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.unsent: list[Any] = []

    def sendall(self, data: Any, _flags: int = 0) -> None:
        self.unsent.append(data)

    def flush(self) -> bool:
        """Send what fits into the kernel's buffer. Returns False if the connection is lost."""
        try:
            while self.unsent:
                sent = self.sendmsg(self.unsent[:SEND_BUFFERS])
                while self.unsent and sent >= len(self.unsent[0]):
                    sent -= len(self.unsent.pop(0))
                if sent:
                    self.unsent[0] = memoryview(self.unsent[0])[sent:]
        except BlockingIOError:
            return True
        except OSError:  # The client left, or Gunicorn closed the socket after half a response.
            self.unsent.clear()
            return False
        return True


class Connection(TConn):
    """A connection: the request that arrives, and the bytes that wait in either direction.

    Gunicorn's parser validates the head. This class finds where the head ends, and reads the body
    (RFC 9112, sections 6.3 and 7.1).
    """

    sock: ClientSocket
    parser: RequestParser

    def __init__(self, cfg: Config, accepted: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, ClientSocket(accepted), client, server)
        field_size = cfg.limit_request_field_size + len("\r\n")
        self._max_head = cfg.limit_request_line + cfg.limit_request_fields * field_size
        self.parser = RequestParser(cfg, (), client)
        self.received = bytearray()
        self.counted_bytes = 0
        self.begin()

    def begin(self) -> None:
        """Wait for the next request, of which a part may have been received."""
        self.head = bytearray()
        self.body = bytearray()
        self.sock.is_partial, self.expects_continue = True, False
        self._length: int | None = 0  # Of the body; None if it is chunked.
        self._searched = 0

    @property
    def size(self) -> int:
        """The number of bytes that wait."""
        arrived = len(self.head) + len(self.body) + len(self.received)
        return arrived + sum(map(len, self.sock.unsent))

    def can_respond(self) -> bool:
        """Read what has been received. Returns whether a thread can handle the request.

        It can if the request is whole, so that `sock.is_partial` is False, or if it is bad.
        """
        if not (self.head or self._read_head()):
            return False
        if self._length is None:
            return self._read_chunks()
        if len(self.received) < self._length:
            return self._length > MAX_BODY
        self.body = self.received[: self._length]
        del self.received[: self._length]
        self.sock.is_partial = False
        return True

    def _read_head(self) -> bool:
        """Find the end of the head, and the length of the body. Returns False without an end."""
        if lines := EMPTY_LINES.match(self.received):  # RFC 9112, section 2.2.
            del self.received[: lines.end()]
        begin = max(0, self._searched - 3)
        self._searched = len(self.received)
        end = self.received.find(b"\r\n\r\n", begin)
        if end < 0:
            end = self._searched
            if end <= self._max_head and not BARE_LINE_FEED.search(self.received, begin):
                return False
        self.head, self.received = self.received, self.received[end + 4 :]
        del self.head[end + 4 :]
        fields = FIELD.findall(self.head)
        length, codings, expected = (
            b",".join(value.strip() for name, value in fields if name.lower() == wanted)
            for wanted in FRAMING
        )
        is_new = self.head.endswith(b" HTTP/1.1", 0, self.head.find(b"\r\n"))
        if codings:
            is_chunked = is_new and not length and CHUNKED.fullmatch(codings)
            self._length = None if is_chunked else UNKNOWN_LENGTH
        else:
            number = LENGTH.fullmatch(length or b"0")
            self._length = int(number[1]) if number else UNKNOWN_LENGTH
        self.expects_continue = is_new and expected.lower() == b"100-continue"
        if fields:  # The parser would refuse an unknown expectation.
            self.head = bytearray(EXPECT.sub(b"", self.head))
        return True

    def _read_chunks(self) -> bool:
        """Do the work of `can_respond` for a chunked body."""
        while chunk := CHUNK.match(self.received, 0, MAX_CHUNK_LINE):
            begin, size = chunk.end(), int(chunk[1], 16)
            end = begin + size
            if size == 0:
                if trailers := TRAILERS.match(self.received, begin, begin + MAX_TRAILERS):
                    del self.received[: trailers.end()]
                    self.sock.is_partial = False
                    return True
                is_long = len(self.received) - begin > MAX_TRAILERS
                return is_long or self.received.find(b"\r\n\r\n", begin) >= 0
            data = self.received[begin:end]
            if len(self.body) + len(data) > MAX_BODY:
                self.body += data  # The application refuses it for its length.
                return True
            if len(self.received) < end + 2:
                return False
            if not self.received.startswith(b"\r\n", end):
                return True
            self.body += data
            del self.received[: end + 2]
        return len(self.received) >= MAX_CHUNK_LINE or b"\r\n" in self.received


def is_last(request: Any) -> bool:
    """Whether the client closes after this request (RFC 9112, section 9.6).

    Gunicorn finds `close` only as the one option in the first field.
    """
    fields = [value.lower() for name, value in request.headers if name == "CONNECTION"]
    return any(option.strip(" \t") == "close" for value in fields for option in value.split(","))


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
            self._started += 1
            Thread(target=self._run, daemon=True).start()
        self._calls.put(call)

    def _run(self) -> None:
        while True:
            self._calls.get()()


class Worker(ThreadWorker):
    """A worker whose event loop holds every connection that no thread is handling."""

    @classmethod
    def check_config(cls, cfg: Config, log: Logger) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl:
            raise SystemExit("certfile, keyfile: not supported; use a proxy that terminates TLS")

    def init_process(self) -> None:
        # Connections that wait for their client, with their deadlines, the earliest first.
        self.waiting: dict[Connection, float] = {}
        self.waiting_bytes = 0
        # /health has its own thread: platforms restart a service that answers it too late. Requests
        # for which no thread will be free soon have one, too: their 503 frees their connections.
        self.threads = ThreadPool(self.cfg.threads)
        self.health_thread, self.refusal_thread = ThreadPool(1), ThreadPool(1)
        super().init_process()

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
            for listener in self.sockets:
                while self.nr_conns < self.worker_connections and select([listener], [], [], 0)[0]:
                    self.accept(listener)
                listener.close()

    def enqueue_req(self, conn: Any) -> None:
        """Wait for the next request on a connection."""
        # Without reading more than there is, or a fast client would fill the memory.
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
        return self.proceed(conn, has_left=not data)

    def proceed(self, conn: Connection, has_left: bool = False) -> bool:
        """Submit the request if a thread can answer it. Returns False if more must arrive."""
        if conn.can_respond() or (has_left and conn.head):
            self.stop_waiting(conn)
            self.submit(conn)
            return True
        if has_left:
            self.drop(conn)
            return True
        if conn.expects_continue:
            conn.expects_continue = False
            conn.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            conn.sock.flush()
        self.count(conn)
        return False

    def submit(self, conn: Connection) -> None:
        """Let a thread handle the request that has arrived."""
        busy = self.nr_conns - len(self.waiting) - len(self.keepalived_conns)
        is_health = bool(HEALTH.match(conn.head))
        conn.sock.is_refused = not is_health and busy > self.worker_connections * 9 // 10
        threads = self.refusal_thread if conn.sock.is_refused else self.threads
        if is_health:
            threads = self.health_thread
        threads.submit(partial(self.respond, conn, monotonic()), busy)

    def respond(self, conn: Connection, arrived: float) -> None:
        """Handle a request in a thread, and give the connection back to the loop."""
        conn.sock.is_refused |= monotonic() > arrived + MAX_QUEUE_S
        request: Any = None
        keeps = False
        try:
            conn.parser.unreader.unread(conn.head)
            conn.head.clear()
            request = next(conn.parser)
            request.body = BytesIO(conn.body)
            if conn.sock.is_partial or is_last(request):
                request.force_close()
            keeps = self.handle_request(request, conn)
        except Exception as error:
            if not conn.sock.unsent:
                self.handle_error(request, conn.sock, conn.client, error)
        keeps = conn.sock.flush() and keeps
        self.method_queue.defer(self.finish, conn, keeps)

    def finish(self, conn: Connection, keeps: bool) -> None:
        """Send the rest of the response, then wait for the next request or close."""
        conn.begin()
        if conn.sock.unsent:
            self.wait(conn, EVENT_WRITE, partial(self.send, keeps=keeps))
        elif not keeps:
            self.linger(conn)
        elif conn.received:
            self.enqueue_req(conn)
        else:
            self.finish_request(conn, KEPT)

    def send(self, conn: Connection, keeps: bool) -> None:
        self.stop_waiting(conn)
        self.finish(conn, conn.sock.flush() and keeps)

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
        self.count(conn)

    def stop_waiting(self, conn: Connection) -> None:
        if self.waiting.pop(conn, None):
            self.poller.unregister(conn.sock)
            self.count(conn)

    def count(self, conn: Connection) -> None:
        """Update `waiting_bytes`. A sum over all connections for each event would be too slow."""
        size = conn.size if conn in self.waiting else 0
        self.waiting_bytes += size - conn.counted_bytes
        conn.counted_bytes = size

    def drop(self, conn: Connection) -> None:
        self.stop_waiting(conn)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Drop connections past their deadline, and the oldest if too many or too much wait.

        Idle ones go first. Gunicorn calls this in every round of its loop.
        """
        while self.keepalived_conns and self.nr_conns >= self.worker_connections:
            idle: Any = self.keepalived_conns.popleft()
            self.poller.unregister(idle.sock)
            self.drop(idle)
        now = monotonic() + (0.0 if self.alive else CLIENT_TIMEOUT_S - STOP_TIMEOUT_S)
        while self.waiting:
            conn, until = next(iter(self.waiting.items()))
            fits = self.waiting_bytes <= MAX_WAITING_BYTES
            # If few wait, the others are requests, which `submit` keeps below the limit.
            few = len(self.waiting) <= self.worker_connections // 10
            if until > now and fits and (few or self.nr_conns < self.worker_connections):
                break
            if conn.size and not conn.sock.unsent:
                util.write_error(conn.sock, 408, "Request Timeout", "")
                conn.sock.flush()
            self.drop(conn)
