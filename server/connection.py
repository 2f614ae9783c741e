"""A client's connection: the request that arrives on it, and the response that waits for it."""

import re
import socket
from typing import Any

from gunicorn.config import Config
from gunicorn.http import RequestParser
from gunicorn.http.message import RFC9110_6_5_1_FORBIDDEN_TRAILER
from gunicorn.workers.gthread import TConn

from settings import MAX_BODY

# The longest head. While the event loop searches it, a few milliseconds, all other clients wait.
MAX_HEAD = 128 * 1024
# The most that is searched again for the end of a chunk's first line, and of the trailers.
MAX_CHUNK_LINE, MAX_TRAILERS = 4 * 1024, 32 * 1024
# The fields that say where a request ends, and whether the client waits to be told to go on.
FRAMING = (b"content-length", b"transfer-encoding", b"expect")
FIELD = re.compile(rb"\r\n(%b):([^\r\n]*)" % b"|".join(FRAMING), re.IGNORECASE)
LENGTH = re.compile(rb"0*(\d{1,9})")
CHUNKED = re.compile(rb"(?:(?![ \t]*chunked\b)[^,]+,)*[ \t]*chunked", re.IGNORECASE)
# If the head does not say where the body ends, the body counts as too large: no more is read.
UNKNOWN_LENGTH = MAX_BODY + 1
# A field with a control character stays: the parser refuses it.
EXPECT = re.compile(rb"\r\nexpect:[\t -~\x80-\xff]*+(?=\r\n)", re.IGNORECASE)
# Bytes of a URL that its client should have escaped. curl sends a query as it was typed.
UNESCAPED = re.compile(rb"[\x80-\xff]")
EMPTY_LINES = re.compile(rb"(?:\r\n)+")
# With the look-behind first, the search would take 30 times as long.
BARE_LINE_FEED = re.compile(rb"\n(?<!\r\n)")
# The first line of a chunk, whose extensions mean nothing here (RFC 9112, section 7.1.1).
CHUNK = re.compile(rb"([0-9a-fA-F]+)(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
# The end of a chunked body. With other trailers, the request is refused, and the connection closed.
TRAILERS = re.compile(
    rb"(?:(?!(?:content-type|%b):)[a-z0-9-]+:[\t -~\x80-\xff]*\r\n){0,50}\r\n"
    % "|".join(RFC9110_6_5_1_FORBIDDEN_TRAILER).encode(),
    re.IGNORECASE,
)


class ClientSocket(socket.socket):
    """A socket whose `sendall` never waits: it keeps the data for `flush`."""

    # Whether the application should answer 503, and whether the body is not whole. The application
    # finds the socket in the WSGI environment.
    is_refused = is_partial = False

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.unsent = bytearray()

    def sendall(self, data: Any, _flags: int = 0) -> None:
        self.unsent += data

    def flush(self) -> bool:
        """Send what fits into the kernel's buffer. Returns False if the connection is lost."""
        try:
            while self.unsent:
                del self.unsent[: self.send(self.unsent)]
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
        self.parser = RequestParser(cfg, (), client)
        self.received = bytearray()
        self.counted_bytes = 0
        self.reset()

    def reset(self) -> None:
        """Forget the last request. `received` may have a part of the next one."""
        self.parser.mesg = None  # An idle connection would keep its headers and its body.
        self.head = b""
        self.body = bytearray()
        self.sock.is_partial, self.sock.is_refused = True, False
        self.expects_continue = False
        self._length: int | None = 0  # Of the body; None if it is chunked.
        self._searched = 0

    @property
    def size(self) -> int:
        """The number of bytes that wait."""
        return len(self.head) + len(self.body) + len(self.received) + len(self.sock.unsent)

    def read_request(self) -> bool:
        """Read what has been received. Returns whether a thread can handle the request.

        It can if the request is whole (`sock.is_partial` is False then), or if it is bad.
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
            if end <= MAX_HEAD and not BARE_LINE_FEED.search(self.received, begin):
                return False
        self.head = bytes(self.received[: end + 4])
        del self.received[: end + 4]
        line = self.head[: self.head.find(b"\r\n")]
        most, ends = self.cfg.limit_request_line, self.head.count(b"\r\n")
        has_many_fields = ends > self.cfg.limit_request_fields + 2
        if len(self.head) > MAX_HEAD or len(line) > most or has_many_fields:
            # The parser refuses a head without its end. Of the whole head, it would not count the
            # bytes together, and not each field.
            self.head = self.head.removesuffix(b"\r\n")[: 2 * most]
            self._length = UNKNOWN_LENGTH
            return True
        fields = FIELD.findall(self.head)
        length, codings, expected = (
            b",".join(value.strip() for name, value in fields if name.lower() == wanted)
            for wanted in FRAMING
        )
        is_http11 = line.endswith(b" HTTP/1.1")
        if codings:
            is_chunked = is_http11 and not length and CHUNKED.fullmatch(codings)
            self._length = None if is_chunked else UNKNOWN_LENGTH
        else:
            number = LENGTH.fullmatch(length or b"0")
            self._length = int(number[1]) if number else UNKNOWN_LENGTH
        self.expects_continue = is_http11 and expected.lower() == b"100-continue"
        if not line.isascii():
            escaped = UNESCAPED.sub(lambda byte: b"%%%02X" % byte[0][0], line)
            self.head = escaped + self.head.removeprefix(line)
        if fields:  # The parser would refuse an unknown expectation.
            self.head = EXPECT.sub(b"", self.head)
        return True

    def _read_chunks(self) -> bool:
        """Do the work of `read_request` for a chunked body."""
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
