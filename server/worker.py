"""Gunicorn's threaded worker, changed so that no thread waits for a client.

The event loop reads a request, and gives it to a thread once it is complete. The loop also sends
the part of a response that the client does not receive at once. So a slow client costs a socket
and a bounded amount of memory, but no thread.
"""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from select import select
from selectors import EVENT_READ, EVENT_WRITE
from threading import Thread
from time import monotonic
from typing import Any

from gunicorn import util
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import RFC9110_6_5_1_FORBIDDEN_TRAILER
from gunicorn.workers.gthread import TConn, ThreadWorker

from settings import MAX_BODY

# CLIENT_TIMEOUT_S limits the time for a whole request to arrive, for a client to take the next part
# of a response, and for it to close after the last response. While the worker stops, STOP_TIMEOUT_S
# limits them.
CLIENT_TIMEOUT_S, STOP_TIMEOUT_S = 10.0, 2.0
# A request that no thread has taken for so long is a 503: its client may have given up.
MAX_QUEUE_S = 8.0
# The largest chunked body with its framing, and the most data that may wait in the loop.
MAX_CHUNKED_BYTES, MAX_WAITING_BYTES = 8 * MAX_BODY, 64 * 1024 * 1024
# The most that is searched again for the end of a chunk's first line, and of the trailers.
MAX_CHUNK_LINE, MAX_TRAILERS = 4 * 1024, 32 * 1024
# Bytes received in one call, bytes given to the parser at once, and buffers sent in one call.
RECEIVE_BYTES, PARSE_BYTES, SEND_BUFFERS = 32 * 1024, 8 * 1024, 100

# The fields that say where a request ends, and whether the client waits to be told to go on.
FRAMING = (b"content-length", b"transfer-encoding", b"expect")
FIELD = re.compile(rb"\r\n(%b):[ \t]*([^\r\n]*)" % b"|".join(FRAMING), re.IGNORECASE)
# A body whose end the head does not say is like one that is too large: no more of it is read.
UNKNOWN_LENGTH = MAX_BODY + 1
EXPECT = re.compile(rb"\r\nexpect:[^\r\n]*", re.IGNORECASE)
EMPTY_LINES = re.compile(rb"(?:\r\n)+")
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
# RFC 9112, section 7.1.1: names and values are tokens or quoted strings.
TOKEN, QUOTED = rb"[!#-'*+.0-9A-Z^-z|~-]+", rb'"(?:[^\x00-\x08\n-\x1f"\\\x7f]|\\[\t -~\x80-\xff])*"'
CHUNK = re.compile(
    rb"([0-9a-fA-F]+)(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*\r\n" % (TOKEN, TOKEN, QUOTED)
)
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


class Incoming:
    """The bytes that a client has sent, and where its request ends.

    Gunicorn's parser reads from here and validates the request. This class only finds the end (RFC
    9112, sections 6.3 and 7.1), and lets the parser refuse a malformed one.
    """

    def __init__(self, max_head: int) -> None:
        self.data = bytearray()
        self._max_head = max_head
        self.begin(b"")

    def begin(self, rest: bytes) -> None:
        """Start the next request with the `rest` that the parser has read ahead."""
        self.data[:0] = rest
        self.is_whole = self.expects_continue = False
        self._length: int | None = 0  # Of the body; None if it is chunked.
        self._head = self._searched = self._decoded = 0
        self._skip_empty_lines()

    def add(self, data: bytes) -> None:
        self.data += data
        if not self._searched:
            self._skip_empty_lines()

    def _skip_empty_lines(self) -> None:
        """Remove what a client may send after a request (RFC 9112, section 2.2)."""
        if lines := EMPTY_LINES.match(self.data):
            del self.data[: lines.end()]

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the head, then pieces of the body. The parser reads an empty piece as the end."""
        size, self._head = self._head or PARSE_BYTES, 0
        piece = bytes(self.data[:size])
        del self.data[:size]
        return piece

    def can_parse(self) -> bool:
        """Whether the parser can start: with a whole request (`is_whole`), or a bad one."""
        if not self._head:
            begin = max(0, self._searched - 3)
            self._searched = len(self.data)
            end = self.data.find(b"\r\n\r\n", begin)
            if end < 0:
                bad = BARE_LINE_FEED.search(self.data, begin)
                return bool(bad) or self._searched > self._max_head
            self._read_head(end + 4)
        if self._length is None:
            return self._has_chunks()
        self.is_whole = len(self.data) >= self._head + self._length
        return self.is_whole or self._length > MAX_BODY

    def _read_head(self, end: int) -> None:
        """Find the length of the body. Remove the field Expect, which the loop answers."""
        head = bytes(self.data[:end])
        found: dict[bytes, list[bytes]] = {name: [] for name in FRAMING}
        for field in FIELD.finditer(head):
            found[field[1].lower()].append(field[2].strip().lower())
        lengths, codings, expectations = found.values()
        is_old = False
        if codings or expectations:
            is_old = head.lstrip(b"\r\n").partition(b"\r\n")[0].endswith(b" HTTP/1.0")
        if codings:
            *others, last = map(bytes.strip, b",".join(codings).split(b","))
            is_chunked = last == b"chunked" and last not in others
            self._length = None if is_chunked and not (lengths or is_old) else UNKNOWN_LENGTH
        elif lengths:
            is_valid = len(lengths) == 1 and lengths[0].isdigit()
            self._length = int(lengths[0].lstrip(b"0")[:20] or b"0") if is_valid else UNKNOWN_LENGTH
        if expectations:
            self.expects_continue = expectations[-1] == b"100-continue" and not is_old
            self.data[:end] = head = EXPECT.sub(b"", head)
        self._head = self._searched = len(head)

    def _has_chunks(self) -> bool:
        """Do the work of `can_parse` for a chunked body."""
        while chunk := CHUNK.match(self.data, self._searched, self._searched + MAX_CHUNK_LINE):
            begin, size = chunk.end(), int(chunk[1], 16)
            if size == 0:
                self.is_whole = bool(TRAILERS.match(self.data, begin, begin + MAX_TRAILERS))
                is_long = len(self.data) - begin > MAX_TRAILERS
                if is_long or self.data.find(b"\r\n\r\n", begin) >= 0:
                    return True
                break
            if self._decoded + min(size, len(self.data) - begin) > MAX_BODY:
                return True
            if begin + size + 2 > len(self.data):
                break
            if not self.data.startswith(b"\r\n", begin + size):
                return True
            self._decoded += size
            self._searched = begin + size + 2
        is_long = len(self.data) - self._searched >= MAX_CHUNK_LINE
        is_malformed = not chunk and (is_long or self.data.find(b"\r\n", self._searched) >= 0)
        return self.is_whole or is_malformed or len(self.data) - self._head > MAX_CHUNKED_BYTES


def is_last(request: Any) -> bool:
    """Whether the client closes after this request (RFC 9112, section 9.6).

    Gunicorn finds `close` only as the one option in the first field.
    """
    fields = [value.lower() for name, value in request.headers if name == "CONNECTION"]
    return any(option.strip(" \t") == "close" for value in fields for option in value.split(","))


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

    def flush(self) -> None:
        """Send what fits into the kernel's buffer. Raises OSError if the connection is lost."""
        with suppress(BlockingIOError):
            while self.unsent:
                sent = self.sendmsg(self.unsent[:SEND_BUFFERS])
                while self.unsent and sent >= len(self.unsent[0]):
                    sent -= len(self.unsent.pop(0))
                if sent:
                    self.unsent[0] = memoryview(self.unsent[0])[sent:]


class Connection(TConn):
    """A connection, with the data that waits in either direction."""

    sock: ClientSocket

    def __init__(self, cfg: Config, accepted: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, ClientSocket(accepted), client, server)
        field_size = cfg.limit_request_field_size + len("\r\n")
        self.incoming = Incoming(cfg.limit_request_line + cfg.limit_request_fields * field_size)
        self.parser = get_parser(cfg, self.incoming, client)
        self.counted_bytes = 0

    @property
    def size(self) -> int:
        """The number of bytes that wait."""
        return len(self.incoming.data) + sum(map(len, self.sock.unsent))


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
        conn.incoming.begin(conn.parser.unreader.take_buffered())
        if conn.incoming.data and conn.incoming.can_parse():
            self.submit(conn)  # Without reading more, or a fast client would fill the memory.
        elif self.receive(conn):
            return
        elif conn.incoming.data or not conn.parser.req_count:
            self.wait(conn, EVENT_READ, self.receive)
        else:
            self.finish_request(conn, KEPT)

    def receive(self, conn: Connection) -> bool:
        """Read what has arrived. Returns False if more must arrive before anything can be done."""
        incoming, ends = conn.incoming, False
        try:
            data = conn.sock.recv(RECEIVE_BYTES)
            incoming.add(data)
            ends = not data
        except BlockingIOError:
            pass
        except OSError:
            ends = True
            incoming.data.clear()
        if ends and not incoming.data:
            self.drop(conn)
        elif incoming.can_parse() or ends:
            self.stop_waiting(conn)
            self.submit(conn)
        else:
            if incoming.expects_continue:
                incoming.expects_continue = False
                conn.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                with suppress(OSError):
                    conn.sock.flush()
            self.count(conn)
            return False
        return True

    def submit(self, conn: Connection) -> None:
        """Let a thread handle the request that has arrived."""
        busy = self.nr_conns - len(self.waiting) - len(self.keepalived_conns)
        is_health = bool(HEALTH.match(conn.incoming.data))
        conn.sock.is_refused = not is_health and busy > self.worker_connections * 9 // 10
        threads = self.refusal_thread if conn.sock.is_refused else self.threads
        if is_health:
            threads = self.health_thread
        threads.submit(partial(self.respond, conn, monotonic()), busy)

    def respond(self, conn: Any, arrived: float) -> None:
        """Handle a request in a thread, and give the connection back to the loop."""
        conn.sock.is_refused |= monotonic() > arrived + MAX_QUEUE_S
        request, keeps = None, False
        try:
            request = next(conn.parser)
            conn.sock.is_partial = not conn.incoming.is_whole
            if conn.sock.is_partial or is_last(request):
                request.force_close()
            keeps = self.handle_request(request, conn) and conn.parser.finish_body()
        except (NoMoreData, StopIteration) as error:
            self.log.debug("The client left: %s", error)
        except Exception as error:
            if not conn.sock.unsent:
                self.handle_error(request, conn.sock, conn.client, error)
        try:
            conn.sock.flush()
        except OSError:  # The client left, or Gunicorn closed the socket after half a response.
            conn.sock.unsent.clear()
            keeps = False
        self.method_queue.defer(self.finish, conn, keeps)

    def finish(self, conn: Connection, keeps: bool) -> None:
        """Send the rest of the response, then wait for the next request or close."""
        if conn.sock.unsent:
            self.wait(conn, EVENT_WRITE, partial(self.send, keeps=keeps))
        elif not keeps:
            self.linger(conn)
        elif conn.incoming.data:
            self.enqueue_req(conn)
        else:
            self.finish_request(conn, KEPT)

    def send(self, conn: Connection, keeps: bool) -> None:
        self.stop_waiting(conn)
        try:
            conn.sock.flush()
        except OSError:
            self.drop(conn)
        else:
            self.finish(conn, keeps)

    def linger(self, conn: Connection) -> None:
        """Let the client close first, or it may lose the response (RFC 9112, section 9.6)."""
        conn.incoming.data.clear()
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(conn)
        else:
            self.wait(conn, EVENT_READ, self.discard)

    def discard(self, conn: Connection) -> None:
        try:
            if conn.sock.recv(RECEIVE_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
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
            if conn.incoming.data and not conn.sock.unsent:
                util.write_error(conn.sock, 408, "Request Timeout", "")
                with suppress(OSError):
                    conn.sock.flush()
            self.drop(conn)
