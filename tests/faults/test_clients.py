"""Clients that are slow, silent or rude cost the others nothing."""

import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2
import pytest
import requests
from support.network import eventually
from support.server import HASTY, Server, User, changed_app

from testbed.cluster import Cluster

HEAD = b"POST /api/slow/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED = HEAD + CHUNKS
GET_TASKS = b"GET /api/slow/tasks HTTP/1.1\r\nHost: x\r\n"
# What each sends at once, and what it drips from then on.
SLOW = {
    "silent": (b"", b""),
    "dripping a head": (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"x"),
    "dripping a body": (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
    "dripping chunks": (CHUNKED, b"1\r\n \r\n"),
    "stopping in a chunk": (CHUNKED + b"ff\r\n ", b""),
    "never reading": (GET_TASKS + b"\r\n", b""),
    "never closing": (b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b""),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, running_cluster: Cluster) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    url = running_cluster.url(running_cluster.new_database())
    with Server(folder, DATABASE_URL=url) as server:
        yield server
        assert server.stop() == 0
    assert '"level":"error"' not in server.log_file.read_text()


@pytest.fixture
def own_server(tmp_path: Path, cluster: Cluster, database: str) -> Iterator[Server]:
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server:
        yield server
        assert server.stop() == 0
    assert '"level":"error"' not in server.log_file.read_text()


class Clients:
    """Connections of which each sends `first`, then `drip` every tenth of a second."""

    def __init__(self, server: Server, number: int, first: bytes, drip: bytes = b"") -> None:
        self.drip = drip
        self.open: list[socket.socket] = []
        for _ in range(number):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(server.address)
            connection.sendall(first)
            self.open.append(connection)
        self._going = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self) -> "Clients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going.set()
        self._thread.join()
        for connection in self.open:
            connection.close()

    def _live(self) -> None:
        while self.drip and not self._going.wait(0.1):
            for connection in self.open:
                with suppress(OSError):
                    connection.send(self.drip, socket.MSG_DONTWAIT)


def held(server: Server) -> int:
    """How many connections of clients the workers have."""
    workers = server.workers
    return sum(
        connection.status != psutil.CONN_LISTEN and connection.laddr.port == server.address[1]
        for worker in workers
        for connection in worker.net_connections("tcp4")
    )


@contextmanager
def locked_table(url: str) -> Iterator[None]:
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("LOCK TABLE task")
        yield


def slowest(server: Server, seconds: float, path: str = "/health") -> float:
    """The longest answer to one request after the other, each on a new connection.

    Fails if so few were answered that they must have waited for other clients.
    """
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        assert requests.get(server.url + path, timeout=20).status_code == 200
        took.append(time.monotonic() - start)
        time.sleep(0.01)  # Otherwise most of what the server computes is for these.
    assert len(took) > 5 * seconds
    return max(took)


def read(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection that stays open. Raises AssertionError if it was closed."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(1)
        assert piece, f"closed after {answer!r}"
        answer += piece
    status, *lines = answer.decode("latin-1").strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body, length = b"", int(headers.get("content-length", 0))
    while len(body) < length:
        piece = connection.recv(length - len(body))
        assert piece, f"closed after {body!r}"
        body += piece
    return int(status.split()[1]), headers, body


def make_a_long_list(server: Server, cluster: Cluster, database: str) -> None:
    """What GET_TASKS lists has five megabytes, more than a socket takes."""
    with User(server, "slow") as user:
        user.create(description="x" * 5000)
    for _ in range(10):
        cluster.execute(
            "INSERT INTO task SELECT (jsonb_populate_record(task, id)).* FROM"
            " (SELECT task, jsonb_build_object('id', gen_random_uuid()) AS id FROM task) AS tasks",
            database,
        )


@pytest.mark.slow
@pytest.mark.alone
def test_1200_slow_clients_of_every_kind(
    own_server: Server, cluster: Cluster, database: str
) -> None:
    """All at once: ten for each thread that there is."""
    make_a_long_list(own_server, cluster, database)
    with ExitStack() as stack:
        for kind, (first, drip) in SLOW.items():
            number = 20 if kind == "never reading" else 200
            stack.enter_context(Clients(own_server, number, first, drip))
        health = slowest(own_server, 2)
        tasks = slowest(own_server, 2, "/api/other/tasks")
        most = own_server.memory_mb
        gone = eventually(lambda: held(own_server) == 0, 14)
    print(
        f"\n200 each of {', '.join(SLOW)}: /health {health:.3f} s at most, tasks {tasks:.3f} s,"
        f" memory {most:.0f} MiB, all closed after another {gone:.1f} s"
    )


@pytest.mark.slow
@pytest.mark.alone
def test_more_silent_connections_than_there_may_be(own_server: Server) -> None:
    """The oldest are closed in favor of new ones."""
    with Clients(own_server, 2500, b"GET") as clients:
        health = slowest(own_server, 3)
        most = held(own_server)
    print(f"\n{len(clients.open)} silent connections, {most} held: /health {health:.3f} s at most")
    assert most <= 2010


@pytest.mark.slow
@pytest.mark.alone
def test_1000_requests_sent_by_half(own_server: Server) -> None:
    half = HEAD + b"Content-Length: 131072\r\n\r\n" + b" " * 131_000
    before = own_server.memory_mb
    with Clients(own_server, 1000, half):
        after = own_server.memory_mb
        health = slowest(own_server, 1)
    print(
        f"\n1,000 half-sent requests of 128 KiB: {before:.0f} MiB before, {after:.0f} MiB with"
        f" them, /health {health:.3f} s at most"
    )
    assert after < before + 160


def test_half_sent_requests_may_occupy_64_megabytes(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """The oldest are closed then, long before their time is over."""
    half = HEAD + b"Content-Length: 131072\r\n\r\n" + b" " * 131_000
    url = cluster.url(database)
    with (
        Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1") as server,
        Clients(server, 700, half),
    ):
        eventually(lambda: held(server) > 450, 6)
        time.sleep(2)
        kept = held(server)
    print(f"\n{kept} of 700 half-sent requests of 128 KiB were kept")
    assert 450 < kept <= 64 * 2**20 // 131_000


def test_answers_that_nobody_reads_may_occupy_no_more(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """With a limit of 8 MiB, for which fewer clients are enough."""
    change = "import server.worker; server.worker.MAX_WAITING_BYTES = 8 * 2**20"
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=changed_app(tmp_path, change), **options) as server:
        make_a_long_list(server, cluster, database)
        with Clients(server, 12, GET_TASKS + b"\r\n"):
            answered = '"GET","path":"/api/slow/tasks"'
            eventually(lambda: server.log_file.read_text().count(answered) == 12, 20)
            eventually(lambda: held(server) < 8, 3)


def test_health_in_an_overload(own_server: Server, cluster: Cluster, database: str) -> None:
    """200 requests at once for a table that somebody has locked."""
    with User(own_server, "ann") as user:
        user.create()
    locker = threading.Event()

    def lock() -> None:
        with locked_table(cluster.url(database)):
            locker.set()
            time.sleep(2)

    thread = threading.Thread(target=lock)
    thread.start()
    locker.wait()
    with Clients(own_server, 200, GET_TASKS + b"\r\n"):
        answered = 0
        while thread.is_alive():
            assert requests.get(f"{own_server.url}/health", timeout=20).status_code == 200
            answered += 1
    print(f"\n200 requests for a table that is locked for 2 s: /health {answered} times")
    # One after the other: behind the others, each would wait a quarter of a second.
    assert answered > 20


@pytest.mark.parametrize("kind", ["dripping a head", "silent", "never closing"])
def test_a_stop_does_not_wait_for_slow_clients(own_server: Server, kind: str) -> None:
    with Clients(own_server, 20, *SLOW[kind]):
        time.sleep(0.2)
        start = time.monotonic()
        own_server.process.send_signal(signal.SIGTERM)
        code = own_server.process.wait(9)
        took = time.monotonic() - start
    print(f"\nSIGTERM with 20 {kind}: {took:.2f} s")
    assert code == 0
    assert took < 6


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/api/ann/tasks", 415),
        ("POST", "/nope", 404),
        ("POST", "/health", 405),
        ("DELETE", "/api/ann/tasks/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d", 404),
        ("GET", "/api/ann/tasks", 200),
    ],
)
def test_a_connection_that_is_kept_is_kept(
    server: Server, framing: str, method: str, path: str, expected: int
) -> None:
    """After an answer to a request whose body of 66 KB, or of 128 KiB, nobody has read."""
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode()
    for size in (66_000, 131_072):
        body = b" " * size
        if framing == "length":
            sent = request + b"Content-Length: %d\r\n\r\n" % size + body
        else:
            chunk = b"%x\r\n%b\r\n" % (size // 4, body[: size // 4])
            sent = request + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4 + b"0\r\n\r\n"
        with socket.create_connection(server.address, timeout=5) as connection:
            for _ in range(10):
                connection.sendall(sent)
                status, headers, _ = read(connection)
                assert (status, headers["connection"]) == (expected, "keep-alive")


@pytest.mark.parametrize("body", [b'{"user_id": "ann"}', b"null", b"title=x", b" " * 9000])
def test_a_body_without_a_length_does_not_spoil_the_next_request(
    server: Server, body: bytes
) -> None:
    """Node.js sends the body of a DELETE in this way."""
    delete = b"DELETE /api/ann/tasks/completed/clear HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(delete + body)
        status, headers, _ = read(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert connection.recv(1) == b""


def test_requests_that_come_before_their_turn_are_answered(server: Server) -> None:
    get = GET_TASKS + b"\r\n"
    with socket.create_connection(server.address, timeout=5) as connection:
        for rest in range(len(get)):
            connection.sendall(get + b"\r\n" + get + get[:rest])
            time.sleep(0.001)
            connection.sendall(get[rest:])
            for _ in range(3):
                status, headers, _ = read(connection)
                assert (status, headers["connection"]) == (200, "keep-alive")


@pytest.mark.parametrize(
    "fields", [b"Close", b"TE, Close", b"close,TE", b"keep-alive\r\nConnection: x,\tclose"]
)
def test_a_client_that_will_close_is_not_waited_for(server: Server, fields: bytes) -> None:
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(GET_TASKS + b"Connection: " + fields + b"\r\n\r\n")
        status, headers, _ = read(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert connection.recv(1) == b""


def test_an_empty_line_after_a_request_does_not_end_the_connection(tmp_path: Path) -> None:
    """Neither one that comes with the request nor one that comes later, nor both."""
    body = HEAD + b'Content-Length: 14\r\n\r\n{"title": "x"}'
    with Server(tmp_path, app=HASTY) as server, ExitStack() as stack:
        connections = []
        for first, later in ((b"\r\n", b""), (b"", b"\r\n"), (b"\r\n", b"\r\n\r\n")):
            connection = stack.enter_context(socket.create_connection(server.address, timeout=5))
            connection.sendall(body + first)
            assert read(connection)[0] == 201
            connection.sendall(later)
            connections.append(connection)
        time.sleep(4)  # Longer than a request has time to arrive.
        for connection in connections:
            connection.sendall(body)
            assert read(connection)[0] == 201


def test_only_a_request_that_has_begun_is_told_that_its_time_is_over(tmp_path: Path) -> None:
    """A browser could take a 408 for the answer to what it is about to send."""
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with Server(tmp_path, app=HASTY) as server, ExitStack() as stack:
        begun, kept, silent = (
            stack.enter_context(socket.create_connection(server.address, timeout=10))
            for _ in range(3)
        )
        begun.sendall(whole[:-2])
        kept.sendall(whole + whole[:-2])
        assert read(kept)[0] == 200
        for connection in (begun, kept):
            status, headers, _ = read(connection)
            assert (status, headers["connection"]) == (408, "close")
            assert connection.recv(1) == b""
        assert silent.recv(1) == b""


@pytest.mark.parametrize("cut", [b"Content-Length: 10\r\n\r\nabc", CHUNKS + b"ff\r\nabc"])
@pytest.mark.parametrize("path", ["/{}", "/{}/restore", "/completed/clear"])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_request_that_is_cut_changes_nothing(
    server: Server, cut: bytes, path: str, leaves: bool
) -> None:
    """Also one whose body would have been ignored."""
    with User(server, f"cut-{uuid4()}") as user:
        task = user.create(completed=True)
        if path.endswith("restore"):
            user.delete(f"/tasks/{task['id']}")
        before = user.tasks(), user.trash()
        method = "POST" if path.endswith("restore") else "DELETE"
        target = f"/api/{user.name}/tasks{path.format(task['id'])}"
        sent = f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode() + cut
        if leaves:
            with socket.create_connection(server.address) as connection:
                connection.sendall(sent)
            time.sleep(0.2)
        else:
            status, headers, body = server.send(sent)
            assert (status, headers["connection"]) == (400, "close")
            assert b"The body is incomplete." in body
        assert (user.tasks(), user.trash()) == before


@pytest.mark.parametrize("size", [32_700, 33_000, 64_000, 70_000])
def test_a_trailer_of_any_size_leaves_the_connection_as_its_answer_says(
    server: Server, size: int
) -> None:
    request = b"DELETE /api/ann/tasks/completed/clear HTTP/1.1\r\nHost: x\r\n" + CHUNKS
    request += b"0\r\nX: " + b"x" * size + b"\r\n\r\n"
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(request + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, _ = read(connection)
        if headers["connection"] == "keep-alive":
            assert (status, read(connection)[0]) == (200, 200)
        else:
            assert status == 400
        assert (headers["connection"] == "keep-alive") is (size < 32_768)


@pytest.mark.parametrize("size", [131_073, 3_000_000])
def test_what_is_too_large_is_told_so(server: Server, size: int) -> None:
    """The client can read its 413 after it has sent everything, and knows that it must close."""
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size // 10_000):
            connection.sendall(b" " * 10_000)
            time.sleep(0.001)
        status, headers, _ = read(connection)
        assert (status, headers["connection"]) == (413, "close")
        assert connection.recv(1) == b""


def test_requests_in_any_pieces(server: Server) -> None:
    """Sent byte by byte, or several at once, they are answered in their order."""
    body = b'{"title": "x"}'
    length = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n9;x=y\r\n%b\r\n0\r\nX: y\r\n\r\n"
    chunks %= (body[:5], body[5:])
    sent = HEAD + length + GET_TASKS + b"\r\n" + HEAD + chunks
    sent += b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for size in (1, 7, 100, len(sent)):
        with socket.create_connection(server.address, timeout=5) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(sent), size):
                connection.sendall(sent[start : start + size])
            statuses = [read(connection)[0] for _ in range(5)]
        assert statuses == [201, 200, 201, 404, 200], size


def test_a_client_that_asks_before_it_sends_a_body(server: Server) -> None:
    expects = HEAD + b"Expect: 100-Continue\r\n"
    with socket.create_connection(server.address, timeout=5) as connection:
        for _ in range(2):
            connection.sendall(expects + b"Content-Length: 14\r\n\r\n")
            assert read(connection) == (100, {}, b"")
            connection.sendall(b'{"title"')
            time.sleep(0.1)
            connection.sendall(b': "x"}')
            status, _, body = read(connection)
            assert (status, json.loads(body)["title"]) == (201, "x")
        connection.sendall(expects + b"Content-Length: 14\r\n\r\n" + b'{"title": "x"}')
        assert read(connection)[0] == 201
        connection.sendall(GET_TASKS)
        time.sleep(0.1)
        connection.sendall(b"\r\n")
        assert read(connection)[0] == 200
        old = b"User-Agent: HTTP/1.0\r\nContent-Length: 14\r\n\r\n"
        connection.sendall(expects + old)
        assert read(connection)[0] == 100
        connection.sendall(b'{"title": "x"}')
        assert read(connection)[0] == 201
        connection.sendall(expects + b"Content-Length: 140000\r\n\r\n")
        assert read(connection)[0] == 413
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(expects.replace(b"1.1", b"1.0") + b"Content-Length: 14\r\n\r\n")
        time.sleep(0.1)
        connection.sendall(b'{"title": "x"}')
        assert read(connection)[0] == 201


def test_a_length_with_zeros_in_front_is_a_length(server: Server) -> None:
    """A body that is taken for the next request would be a request of somebody else."""
    body = b'{"title": "x"}'
    with socket.create_connection(server.address, timeout=5) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"Content-Length: " + b"0" * 30 + b"14\r\n\r\n")
            time.sleep(0.1)
            connection.sendall(body)
            assert read(connection)[0] == 201


@pytest.mark.parametrize(
    "body",
    [
        b"3;=\r\nabc\r\n0\r\n\r\n",
        b"3;a b\r\nabc\r\n0\r\n\r\n",
        b"3;a=\x01\r\nabc\r\n0\r\n\r\n",
        b"3;a=%b\r\nabc\r\n0\r\n\r\n" % (b"x" * 40_000),
        b"3 ;a=b\r\nabc\r\n0\r\n\r\n",
        b"0\r\nX: \x01\r\n\r\n",
        b"0\r\nX: %b\r\n\r\n" % (b"x" * 40_000),
        b"0\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n",
    ],
)
def test_a_connection_is_kept_after_odd_chunks_or_says_that_it_is_not(
    server: Server, body: bytes
) -> None:
    delete = b"DELETE /api/ann/tasks/completed/clear HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(delete + b"Transfer-Encoding: chunked\r\n\r\n" + body[:8])
        time.sleep(0.1)
        connection.sendall(body[8:] + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, _ = read(connection)
        assert status == 200 or headers["connection"] == "close"
        if headers["connection"] == "keep-alive":
            assert read(connection)[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /nope HTTP/1.1\r\nHost: x\r\n" + b"Expect:\r\n" * 300_000 + b"\r\n",
        b"GET /nope HTTP/1.1\r\nHost: x\r\n" + b"X: %b\r\n" % (b"x" * 32_000) * 90,
        b"GET /\xff" + b"\xff" * 900_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"Content-Length: " + b"0" * 900_000 + b"x\r\n\r\n",
        HEAD + b"Transfer-Encoding: %b\r\n" % (b"a," * 16_000) * 30 + b"\r\n",
        CHUNKED + b"1" * 900_000,
        CHUNKED + b"1;a=" + b"x" * 900_000,
        CHUNKED + b"0\r\nX: " + b"x" * 900_000,
    ],
    ids=[
        "many fields",
        "long fields",
        "a URL",
        "a length",
        "codings",
        "digits",
        "an extension",
        "a trailer",
    ],
)
@pytest.mark.alone
def test_a_large_request_costs_the_others_nothing(server: Server, head: bytes) -> None:
    before = server.computed_s
    with Clients(server, 20, head, b"1"):
        health = slowest(server, 1)
    print(f"\n20 times {len(head):,} bytes: /health {health:.3f} s at most")
    assert server.computed_s - before < 1


def test_a_client_that_never_waits_for_answers_fills_no_memory(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    url = cluster.url(database)
    pieces = b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1") as server:
        before = server.memory_mb
        with socket.create_connection(server.address, timeout=30) as connection:

            def send_all() -> None:
                with suppress(ConnectionError):  # The shutdown ends it.
                    while True:
                        connection.sendall(pieces)

            sender = threading.Thread(target=send_all)
            sender.start()
            until, received = time.monotonic() + 2, 0
            while time.monotonic() < until:
                received += len(connection.recv(65536))
            after = server.memory_mb
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()
    print(f"\n{received:,} bytes of answers in 2 s: {before:.0f} MiB before, {after:.0f} after")
    assert received and after < before + 10


def test_idle_connections_give_way_to_requests(server: Server) -> None:
    """As many as there may be are kept; a client that sends its body late is still served."""
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with Clients(server, 2000, get), ExitStack() as stack:
        time.sleep(2)  # All are answered.
        late = [socket.create_connection(server.address, timeout=5) for _ in range(40)]
        for connection in late:
            stack.enter_context(connection)
            connection.sendall(HEAD + b"Content-Length: 14\r\n\r\n")
        time.sleep(0.5)
        for connection in late:
            connection.sendall(b'{"title": "x"}')
        assert [read(connection)[0] for connection in late] == [201] * 40


@pytest.fixture
def small_server(tmp_path: Path, cluster: Cluster, database: str) -> Iterator[Server]:
    """One process that may have 132 connections, since it may have 256 open files."""
    limited = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh"]
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, before=limited, **options) as server:
        assert requests.get(f"{server.url}/ready").status_code == 200
        yield server


def test_fewer_connections_are_kept_where_fewer_files_may_be_open(small_server: Server) -> None:
    """A new connection, to the database too, needs one while others are silent."""
    with Clients(small_server, 300, b"GET"), User(small_server, "ann") as ann:
        assert ann.post("/tasks", json={"title": "x"}, timeout=5).status_code == 201


def test_files_are_left_for_clients_however_many_threads_there_are(tmp_path: Path) -> None:
    """60 threads have 120 files of SQLite open."""
    limited = ["sh", "-c", 'ulimit -n 300 && exec "$@"', "sh"]
    server = Server(tmp_path, before=limited, WEB_CONCURRENCY="1", THREADS="60")
    with server, User(server, "ann") as ann, ThreadPoolExecutor(60) as pool:
        ann.create()
        with closing(sqlite3.connect(tmp_path / "tasks.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            creates = [
                pool.submit(requests.post, f"{ann.base}/tasks", json={"title": "x"})
                for _ in range(60)
            ]
            time.sleep(1)  # Each has a thread now, which will open the file.
            other.rollback()
            assert {create.result().status_code for create in creates} == {201}
        with Clients(server, 175, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
            assert requests.get(f"{server.url}/health", timeout=2).status_code == 200


def test_a_late_request_is_waited_for_while_there_are_too_many(
    small_server: Server, cluster: Cluster, database: str
) -> None:
    """It is not told that its time is over."""
    get = GET_TASKS + b"\r\n"
    with socket.create_connection(small_server.address, timeout=15) as late:
        late.sendall(get[:-2])
        with locked_table(cluster.url(database)), Clients(small_server, 200, get):
            time.sleep(0.5)
        late.sendall(get[-2:])
        assert read(late)[0] in {200, 503}


def test_a_connection_whose_request_was_refused_is_as_good_as_new(
    small_server: Server, cluster: Cluster, database: str
) -> None:
    get = GET_TASKS + b"\r\n"
    with ExitStack() as lock:
        lock.enter_context(locked_table(cluster.url(database)))
        with Clients(small_server, 130, get) as clients:
            for refused in reversed(clients.open):
                refused.settimeout(15)
                if b"The server is busy. Nothing has changed." in read(refused)[2]:
                    break
            lock.close()

            def is_served() -> bool:
                refused.sendall(get)
                return read(refused)[0] == 200

            eventually(is_served, 5)


def test_every_spelling_of_health_has_its_own_thread(
    own_server: Server, cluster: Cluster, database: str
) -> None:
    with User(own_server, "ann") as user:
        user.create()
    with locked_table(cluster.url(database)), Clients(own_server, 100, GET_TASKS + b"\r\n"):
        for target in ("/health", "/health/", "//health", "/health?x", "http://x:1/health"):
            head = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"
            assert own_server.send(head.encode(), timeout=1)[0] == 200


@pytest.mark.alone
def test_health_while_more_requests_wait_than_there_may_be_connections(
    own_server: Server, cluster: Cluster, database: str
) -> None:
    with User(own_server, "ann") as user:
        user.create()
    with (
        locked_table(cluster.url(database)),
        Clients(own_server, 2300, GET_TASKS + b"\r\n") as clients,
    ):
        health = slowest(own_server, 2)
        for connection in clients.open[1500:]:
            connection.settimeout(20)
        start = time.monotonic()
        answers = [read(connection) for connection in clients.open[1500:]]
        took = time.monotonic() - start
    print(
        f"\n2,300 requests for a locked table: /health {health:.3f} s at most; the last 800"
        f" answered within {took:.1f} s"
    )
    assert took < 16  # Eight seconds in the queue, and eight in a thread.
    for status, headers, _ in answers:
        assert (status, headers["content-type"]) == (503, "application/problem+json")
        assert headers["retry-after"] == "1"
    assert any(b"The server is busy. Nothing has changed." in body for _, _, body in answers)


def test_many_small_chunks_are_read_quickly(server: Server) -> None:
    """128 KiB in chunks of one byte is the most that has to be put together."""
    body = b'{"title": "x"}' + b" " * (131_072 - 14)
    sent = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    before = server.computed_s
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(sent)
        status, _, _ = read(connection)
    assert status == 201
    assert server.computed_s - before < 3


def test_a_slow_download_is_whole(server: Server) -> None:
    with User(server, "slow") as user:
        for _ in range(60):
            user.create(description="x" * 5000)
        expected = user.get("/tasks").content
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.settimeout(5)
        connection.sendall(GET_TASKS + b"\r\n")
        time.sleep(1)
        status, headers, body = read(connection)
        assert (status, headers["connection"], body) == (200, "keep-alive", expected)
        connection.sendall(GET_TASKS + b"\r\n")
        assert read(connection)[0] == 200


def write_broken_app(folder: Path, body: str) -> None:
    """The application with a route `/broken`, whose response `body` yields."""
    (folder / "broken.py").write_text(
        "import app, flask\n"
        "from gunicorn.http.errors import InvalidHeader\n"
        "class Unwritable(InvalidHeader):\n"
        "    def __str__(self):\n"
        "        raise MemoryError\n"
        f"def broken():\n    {body}\n"
        "def create_app():\n"
        "    made = app.create_app()\n"
        "    made.add_url_rule('/broken', view_func=lambda: flask.Response(broken()))\n"
        "    return made\n"
    )


def test_a_response_that_breaks_off(tmp_path: Path) -> None:
    """Gunicorn closes its socket in a thread. The event loop survives that."""
    write_broken_app(tmp_path, "yield b'half'; raise ValueError('broken')")
    with Server(tmp_path, app="broken:create_app()", WEB_CONCURRENCY="1") as server:
        (worker,) = server.workers
        for _ in range(3):
            with suppress(requests.RequestException):
                requests.get(f"{server.url}/broken", timeout=5)
        assert requests.get(f"{server.url}/health").status_code == 200
        assert server.workers == [worker]


def test_an_error_whose_page_cannot_be_written_costs_no_thread(tmp_path: Path) -> None:
    """As if no memory were left for the page. There are five threads, and six such errors."""
    write_broken_app(tmp_path, "raise Unwritable(''); yield b''")
    settings = {"WEB_CONCURRENCY": "1", "THREADS": "5"}
    with Server(tmp_path, app="broken:create_app()", **settings) as server:
        for _ in range(6):
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{server.url}/broken", timeout=5)
        assert requests.get(f"{server.url}/openapi.json", timeout=5).status_code == 200
        eventually(lambda: held(server) == 0, 5)
        assert "MemoryError" in server.log_file.read_text()


def test_a_socket_in_a_folder(tmp_path: Path, cluster: Cluster, database: str) -> None:
    """As nginx is often told to call."""
    path = tmp_path / "socket"
    url = cluster.url(database)
    server = Server(tmp_path, "-b", f"unix:{path}", DATABASE_URL=url)
    with server, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(GET_TASKS + b"\r\n" + GET_TASKS + b"Connection: close\r\n\r\n")
        assert [read(connection)[0] for _ in range(2)] == [200, 200]
