"""Gunicorn's threaded worker, in which no thread waits for a client.

The event loop reads a request and gives it to a thread when all of it is there. What a client does
not take of the answer at once, the loop sends later. So a client that is slow, silent or never
closes costs a socket and a bounded part of the memory.
"""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from time import monotonic
from typing import Any

from gunicorn import util
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.gthread import TConn, ThreadWorker

from settings import MAX_BODY

# How long a request may take to arrive, a client to take the next part of an answer, and a client
# to close after its last answer; and the same while the worker stops.
WAIT_S, STOP_S = 10.0, 2.0
# In bytes: a chunked body with all that frames its chunks, and what waits in a worker altogether.
MAX_CHUNKED, MAX_HELD = 8 * MAX_BODY, 64 * 1024 * 1024
# In bytes, of one system call and of one step of the parser; and buffers sent in one call.
RECEIVED, PIECE, BUFFERS = 32 * 1024, 8 * 1024, 100

FIELD = re.compile(
    rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE
)
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})[^\r\n]*\r\n")
HEALTH = re.compile(rb"(?:GET|HEAD) /health/?[ ?]")


class Incoming:
    """What a client has sent: the source that Gunicorn's parser reads, and where a request ends.

    The parser judges the request. Here only its end is looked for, as of RFC 9112, sections 6.3 and
    7.1; what has none is given to the parser as it is.
    """

    def __init__(self, max_head: int) -> None:
        self.data = bytearray()
        self._max_head = max_head
        self.begin(b"")

    def begin(self, rest: bytes) -> None:
        """Expect the next request, which begins with the `rest` of what was read before."""
        self.data[:0] = rest
        self.is_whole = self.expects_continue = False
        self._length: int | None = 0  # Of the body; None if its chunks tell.
        self._head = self._searched = self._decoded = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The head, then the next piece; an empty one is the end for the parser."""
        size, self._head = self._head or PIECE, 0
        piece = bytes(self.data[:size])
        del self.data[:size]
        return piece

    def is_enough(self) -> bool:
        """Whether all is there that will be looked at; `is_whole` if it is all of the request."""
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
        """Find how long the body is, and take out the expectation, which is met here."""
        expectations = []
        for field in FIELD.finditer(self.data, 0, end):
            name, value = field[1].lower(), field[2].strip().lower()
            if name == b"expect":
                expectations.append(field.span())
                is_old = self.data.find(b" HTTP/1.0\r\n", 0, end) >= 0
                self.expects_continue = value == b"100-continue" and not is_old
            elif name == b"transfer-encoding":
                self._length = None
            elif self._length is not None and value.isdigit():
                self._length = int(value[:20])
        for first, last in reversed(expectations):
            del self.data[first:last]
            end -= last - first
        self._head = self._searched = end

    def _has_chunks(self) -> bool:
        while chunk := CHUNK.match(self.data, self._searched):
            begin, size = chunk.end(), int(chunk[1], 16)
            if size == 0:
                ends = self.data.startswith(b"\r\n", begin)
                self.is_whole = ends or self.data.find(b"\r\n\r\n", begin) >= 0
                break
            if self._decoded + min(size, len(self.data) - begin) > MAX_BODY:
                return True
            if begin + size + 2 > len(self.data):
                break
            self._decoded += size
            self._searched = begin + size + 2
        is_malformed = not chunk and self.data.find(b"\r\n", self._searched) >= 0
        return self.is_whole or is_malformed or len(self.data) - self._head > MAX_CHUNKED


class ClientSocket(socket.socket):
    """A socket that never waits: what is written stays in it until `flush`."""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.unsent: list[Any] = []

    def sendall(self, data: Any, _flags: int = 0) -> None:
        self.unsent.append(data)

    def flush(self) -> None:
        """Send what the client takes now. Raises OSError if it has gone."""
        with suppress(BlockingIOError):
            while self.unsent:
                sent = self.sendmsg(self.unsent[:BUFFERS])
                while self.unsent and sent >= len(self.unsent[0]):
                    sent -= len(self.unsent.pop(0))
                if sent:
                    self.unsent[0] = memoryview(self.unsent[0])[sent:]


class Connection(TConn):
    """A client's connection, with what is on its way in either direction."""

    sock: ClientSocket

    def __init__(self, cfg: Config, accepted: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, ClientSocket(accepted), client, server)
        field_size = cfg.limit_request_field_size + len("\r\n")
        self.incoming = Incoming(cfg.limit_request_line + cfg.limit_request_fields * field_size)
        self.parser = get_parser(cfg, self.incoming, client)

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        return len(self.incoming.data) + sum(map(len, self.sock.unsent))


class Worker(ThreadWorker):
    """The loop owns a connection, except from a whole request to its answer."""

    @classmethod
    def check_config(cls, cfg: Config, log: Logger) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl:
            raise SystemExit("certfile, keyfile: expected none: a proxy in front has to end TLS")

    def init_process(self) -> None:
        # Each until the moment at which it is given up, the first one first.
        self.waiting: dict[Connection, float] = {}
        # Who restarts a service asks for its health, and must not wait behind all the others.
        self.health = ThreadPoolExecutor(1)
        super().init_process()

    def accept(self, listener: socket.socket) -> None:
        try:
            accepted, client = listener.accept()
        except OSError:  # The client has left, or another worker has it.
            return
        self.nr_conns += 1
        self.enqueue_req(Connection(self.cfg, accepted, client, listener.getsockname()))

    def enqueue_req(self, conn: Any) -> None:
        """Receive the next request on a connection."""
        conn.incoming.begin(conn.parser.unreader.take_buffered())
        if not self.receive(conn):
            self.wait(conn, EVENT_READ, self.receive)

    def receive(self, conn: Connection) -> bool:
        """Read what has come. Whether that was all, or the client has gone."""
        incoming, ends = conn.incoming, False
        try:
            data = conn.sock.recv(RECEIVED)
            incoming.data += data
            ends = not data
        except BlockingIOError:
            pass
        except OSError:
            ends = True
            incoming.data.clear()
        if ends and not incoming.data:
            self.drop(conn)
        elif incoming.is_enough() or ends:
            self.leave(conn)
            threads = self.health if HEALTH.match(incoming.data) else self.tpool
            future = threads.submit(self.handle, conn)
            future.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))
        else:
            if incoming.expects_continue:
                incoming.expects_continue = False
                conn.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                with suppress(OSError):
                    conn.sock.flush()
            return False
        return True

    def handle(self, conn: Any) -> bool:
        """Answer a request, in a thread. Whether the connection can have another one."""
        request, keeps = None, False
        try:
            request = next(conn.parser)
            if not conn.incoming.is_whole:
                request.force_close()
            keeps = self.handle_request(request, conn) and conn.parser.finish_body()
        except (NoMoreData, StopIteration) as error:
            self.log.debug("The client left: %s", error)
        except Exception as error:
            if not conn.sock.unsent:
                self.handle_error(request, conn.sock, conn.client, error)
        conn.sock.flush()
        return keeps

    def finish_request(self, conn: Any, fs: Future[bool]) -> None:
        """Send what is left of the answer, then receive the next request or close."""
        if fs.cancelled() or fs.exception():
            self.drop(conn)
        elif conn.sock.unsent:
            self.wait(conn, EVENT_WRITE, partial(self.send, answered=fs))
        elif not fs.result():
            self.linger(conn)
        elif conn.incoming.data:
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def send(self, conn: Connection, answered: Future[bool]) -> None:
        self.leave(conn)
        try:
            conn.sock.flush()
        except OSError:
            self.drop(conn)
        else:
            self.finish_request(conn, answered)

    def linger(self, conn: Connection) -> None:
        """Read on until the client closes: else it may lose the answer (RFC 9112, section 9.6)."""
        conn.incoming.data.clear()
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(conn)
        else:
            self.wait(conn, EVENT_READ, self.discard)

    def discard(self, conn: Connection) -> None:
        try:
            if conn.sock.recv(RECEIVED):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.drop(conn)

    def wait(self, conn: Connection, event: int, go_on: Callable[[Connection], object]) -> None:
        """Call `go_on` whenever the client is ready, and give up after WAIT_S."""
        self.poller.register(conn.sock, event, lambda _: go_on(conn))
        self.waiting[conn] = monotonic() + WAIT_S

    def leave(self, conn: Connection) -> None:
        if self.waiting.pop(conn, None):
            self.poller.unregister(conn.sock)

    def drop(self, conn: Connection) -> None:
        self.leave(conn)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Give up those that wait for too long, and the longest where all are too many."""
        now = monotonic() + (0.0 if self.alive else WAIT_S - STOP_S)
        held = sum(conn.size for conn in self.waiting)
        while self.waiting:
            conn, until = next(iter(self.waiting.items()))
            if until > now and held <= MAX_HELD and self.nr_conns < self.worker_connections:
                break
            held -= conn.size
            if conn.incoming.data and not conn.sock.unsent:
                util.write_error(conn.sock, 408, "Request Timeout", "")
                with suppress(OSError):
                    conn.sock.flush()
            self.drop(conn)
