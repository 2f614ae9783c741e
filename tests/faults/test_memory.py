"""How much memory the server takes, at most."""

import http.client
import itertools
import json
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import psutil
import pytest
from support.network import eventually
from support.server import Server, User, changed_app, fill

from testbed.cluster import Cluster

CLIENTS, REQUESTS, WARM = 8, 100_000, 20_000
TAGS, GROWTH_MB = 800, 6
# A page ends after the task with which it reaches 8 MB.
MOST_MB, MOST_MB_OF_A_CROWD, MOST_PAGE_BYTES = 256, 768, 8_040_000
DESCRIPTIONS = {
    "ASCII": "x" * 5000,
    "control characters": "\x01" * 5000,
    "emoji": "😀" * 5000,
    "one emoji": "x" * 4999 + "😀",
}


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path, cluster: Cluster, database: str) -> None:
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1", "LOG_LEVEL": "ERROR"}
    with Server(tmp_path, PORT="8000", ALLOW_ANYONE="true", **options) as server:
        (worker,) = server.workers

        def work(client: int, turns: int) -> None:
            connection = http.client.HTTPConnection(*server.address)

            def ask(method: str, path: str, body: object = None) -> bytes:
                sent = None if body is None else json.dumps(body)
                headers = {"Content-Type": "application/json"}
                connection.request(method, f"/api/u{client}/tasks{path}", sent, headers)
                response = connection.getresponse()
                answer = response.read()
                assert response.status < 300, answer
                return answer

            for _ in range(turns // 5):
                task = json.loads(ask("POST", "", {"title": "x"}))
                ask("GET", "")
                ask("PATCH", f"/{task['id']}/complete")
                ask("PUT", f"/{task['id']}", {"description": "y"})
                ask("DELETE", f"/{task['id']}")
            connection.close()

        def run(requests: int) -> float:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(lambda client: work(client, requests // CLIENTS), range(CLIENTS)))
            return worker.memory_info().rss / 2**20

        warm = run(WARM)
        sizes = [run((REQUESTS - WARM) // 4) for _ in range(4)]
    later = ", ".join(f"{size:.1f}" for size in sizes)
    print(f"\nmemory of a worker: {warm:.1f} MB after {WARM} requests, then {later}")
    assert max(sizes) < warm * 1.05


@pytest.mark.parametrize(
    "own_url", ["postgres", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
def test_any_number_of_tags_costs_the_same_memory(tmp_path: Path, own_url: str) -> None:
    server = Server(tmp_path, DATABASE_URL=own_url, WEB_CONCURRENCY="1", LOG_LEVEL="ERROR")
    with server, User(server, "ann") as user:
        (worker,) = server.workers
        path = f"/api/ann/tasks/{user.create()['id']}"

        def write(number: int) -> None:
            tags = [f'"{uuid4()}"' for _ in range(number)]
            lines = [", ".join(tags[start : start + 200]) for start in range(0, number, 200)]
            headers = "".join(f"If-Match: {line}\r\n" for line in lines)
            for request in (f"DELETE {path}", f"PATCH {path}/complete"):
                head = f"{request} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
                assert server.send(head.encode())[0] == 412

        for _ in range(50):
            write(TAGS)
        before = worker.memory_info().rss / 2**20
        for number in range(1, TAGS, 4):
            write(number)
        after = worker.memory_info().rss / 2**20
    print(f"\n{own_url.partition(':')[0]}: 1 to {TAGS} tags in If-Match:", end="")
    print(f" {before:.1f} MB before, {after:.1f} MB after")
    assert after < before + GROWTH_MB


def test_notifications_for_another_client_of_a_pooler_are_not_kept(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Behind a pooler, a connection can have the LISTEN of another client; here, a trigger's."""
    url = cluster.url(database)
    with Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1") as server:
        (worker,) = server.workers
        with User(server, "ann") as user:
            user.create()
            cluster.execute(
                """
                CREATE FUNCTION notify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    LISTEN tasks;
                    PERFORM pg_notify('tasks', repeat('x', 7900) || n)
                        FROM generate_series(1, 100) AS n;
                    RETURN NULL;
                END $$;
                CREATE TRIGGER notify AFTER INSERT ON task EXECUTE FUNCTION notify();
                """,
                database,
            )
            user.create()
            before = worker.memory_info().rss / 2**20
            for _ in range(40):
                user.create()
            after = worker.memory_info().rss / 2**20
    print(f"\n4,000 notifications: {before:.1f} MB before, {after:.1f} MB after")
    assert after < before + GROWTH_MB


@pytest.mark.parametrize(
    ("own_url", "text"),
    [
        ("postgres", "control characters"),
        ("sqlite", "one emoji"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in itertools.product(("postgres", "sqlite"), DESCRIPTIONS)
            if pair not in {("postgres", "control characters"), ("sqlite", "one emoji")}
        ),
    ],
    indirect=["own_url"],
)
@pytest.mark.alone
def test_four_lists_of_10000_long_tasks_at_once(tmp_path: Path, own_url: str, text: str) -> None:
    with Server(tmp_path, DATABASE_URL=own_url) as server, User(server, "ann") as user:
        user.create("x", description=DESCRIPTIONS[text])
        fill(own_url, "ann", 10_000)
        rss = watched(server, lambda process: process.memory_info().rss)
        with rss as megabytes, ThreadPoolExecutor(4) as pool:
            sizes = list(pool.map(lambda _: len(user.get("/tasks").content), range(12)))
    print(f"\n{own_url.partition(':')[0]}, {text}: pages of {max(sizes)} bytes", end="")
    print(f", {megabytes[0]:.0f} MB before, {max(megabytes):.0f} MB at most")
    assert max(sizes) <= MOST_PAGE_BYTES
    assert max(megabytes) <= MOST_MB


@contextmanager
def watched(server: Server, read: Callable[[psutil.Process], int]) -> Iterator[list[float]]:
    """What `read` has found for all processes of a server meanwhile, in MiB, every few ms."""
    processes, ended = server.processes, threading.Event()
    megabytes: list[float] = []

    def watch() -> None:
        while not (megabytes and ended.wait(0.002)):
            megabytes.append(sum(map(read, processes)) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    eventually(lambda: megabytes, 5)
    try:
        yield megabytes
    finally:
        ended.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.alone
def test_a_crowd_that_reads_long_lists_takes_little_memory(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """However many threads there are. The number of heaps is that of the buttons and the image."""
    url, before = cluster.url(database), ["env", "MALLOC_ARENA_MAX=2", "THREADS=60"]
    with Server(tmp_path, before=before, DATABASE_URL=url, WEB_CONCURRENCY="2") as server:
        with User(server, "ann") as ann:
            ann.create("x", description=DESCRIPTIONS["ASCII"])
        fill(url, "ann", 2400)

        def read(_: int) -> int:
            # While more than 64 MiB of answers are unread, the oldest connections are closed.
            with suppress(OSError, http.client.HTTPException):
                return len(urlopen(f"{server.url}/api/ann/tasks", timeout=20).read())
            return 0

        pss = watched(server, lambda process: process.memory_full_info().pss)
        with pss as megabytes, ThreadPoolExecutor(100) as pool:
            sizes = list(pool.map(read, range(200)))
    complete = sum(size > 8_000_000 for size in sizes)
    print(f"\n100 readers, {complete} lists of 8 MB: {megabytes[0]:.0f} MB before", end="")
    print(f", {max(megabytes):.0f} MB at most")
    assert complete > 80
    assert max(megabytes) <= MOST_MB_OF_A_CROWD


def test_a_long_list_that_gets_no_turn_is_a_503_in_time(tmp_path: Path) -> None:
    change = "import threading, lists; from database import base\nbase.REQUEST_TIMEOUT_S = 0.5"
    change += "\nlists.long_list_turns = threading.Semaphore(0)"
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    server = Server(tmp_path, app=changed_app(tmp_path, change), DATABASE_URL=url)
    with server, User(server, "ann") as ann:
        ann.create()
        fill(url, "ann", 400)
        assert len(ann.tasks(limit=400)) == 400
        problem = ann.get("/tasks")
    assert problem.status_code == 503 and "Nothing has changed" in problem.json()["detail"]
    assert "database unavailable: too many long lists at once" in server.log_file.read_text()


@pytest.mark.parametrize("kind", ["head", "body"])
def test_an_idle_connection_keeps_nothing_of_its_last_request(tmp_path: Path, kind: str) -> None:
    fields = "".join(f"X-{n}: {'x' * 32_000}\r\n" for n in range(4)) if kind == "head" else ""
    body = json.dumps({"title": "x"}).ljust(131_000 if kind == "body" else 0)
    head = "POST /api/ann/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}{fields}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    with Server(tmp_path, WEB_CONCURRENCY="1") as server, ExitStack() as kept:
        (worker,) = server.workers

        def send() -> None:
            connection = kept.enter_context(socket.create_connection(server.address, timeout=5))
            connection.sendall(request)
            assert b" 201 " in connection.recv(65536)

        send()
        before = worker.memory_info().rss / 2**20
        for _ in range(500):
            send()
        more = worker.memory_info().rss / 2**20 - before
    print(f"\n500 idle connections after {len(request)} bytes each: {more:.1f} MB more")
    assert more < 32


@pytest.mark.parametrize(
    ("field", "number"), [(b"X: %b\r\n" % (b"x" * 32_000), 97), (b"a:b\r\n", 600_000)]
)
def test_a_head_that_is_refused_keeps_no_memory(tmp_path: Path, field: bytes, number: int) -> None:
    head = b"GET /nope HTTP/1.1\r\nHost: x\r\n" + field * number + b"B@d: x\r\n\r\n"
    with Server(tmp_path, WEB_CONCURRENCY="1") as server:
        (worker,) = server.workers
        before = worker.memory_info().rss / 2**20
        for _ in range(60):
            with socket.create_connection(server.address, timeout=5) as connection:
                connection.sendall(head)
                assert connection.recv(65536).split()[1] in {b"400", b"431"}
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    print(f"\n60 refused heads of {len(head)} bytes: {peak - before:.1f} MB more at most")
    assert peak < before + 64


@pytest.mark.slow
def test_long_requests_that_wait_for_a_thread(tmp_path: Path) -> None:
    """While the threads wait for a locked file."""
    body = b'{"title": "x"}'.ljust(128 * 1024)
    fields = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 32_000) for n in range(4))
    head = b"POST /api/ann/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = b"%b%bContent-Length: %d\r\n\r\n%b" % (head, fields, len(body), body)
    with Server(tmp_path, WEB_CONCURRENCY="1") as server, User(server, "ann") as user:
        user.create()
        (worker,) = server.workers
        with (
            closing(sqlite3.connect(tmp_path / "tasks.db", isolation_level=None)) as blocker,
            ExitStack() as open_ones,
        ):
            blocker.execute("BEGIN IMMEDIATE")
            connections = []
            for _ in range(600):
                connection = socket.create_connection(server.address, timeout=30)
                connections.append(open_ones.enter_context(connection))
                connection.sendall(request)
                time.sleep(0.01)  # Otherwise too much is half-sent.
            answers = [connection.recv(65536).split()[1] for connection in connections]
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    print(f"\n600 requests of {len(request)} bytes: {peak:.0f} MB at most")
    assert set(answers) <= {b"503", b"201"}
    assert peak < 200
