"""Platforms stop, reload and kill processes every day."""

import json
import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests
from gunicorn.workers.gthread import ThreadWorker
from support.network import Load, Network, eventually
from support.server import HASTY, ROOT, Server, User

from server import logs
from server.worker import MethodQueue, Worker
from testbed.cluster import Cluster

REQUEST = (
    b"POST /api/ann/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 14\r\n\r\n{"title": "x"}'
)


@pytest.fixture
def server(tmp_path: Path, cluster: Cluster, database: str, network: Network) -> Iterator[Server]:
    with Server(tmp_path, DATABASE_URL=cluster.url(database, network.port)) as server:
        yield server
    assert '"level":"error"' not in server.log_file.read_text()


def workers(server: Server) -> set[int]:
    return {child.pid for child in server.workers}


@pytest.mark.parametrize("new_connections", [False, True], ids=["kept", "new"])
def test_a_stop_under_load(
    tmp_path: Path,
    server: Server,
    cluster: Cluster,
    database: str,
    network: Network,
    new_connections: bool,
) -> None:
    with Load(server, clients=16, new_connections=new_connections) as load:
        network.delay = 0.5
        time.sleep(1.2)
        stopped = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(10)
        took = time.monotonic() - stopped
        time.sleep(0.3)
    network.delay = 0.0
    # What was on its way longer than it takes to be accepted.
    running = [a for a in load.answers if a[0] < stopped - 0.1 and a[1] > stopped]
    after = [a for a in load.answers if a[0] > stopped]
    refused = [a for a in after if a[3] == 0]
    slowest = max((end - start for start, end, _, status in refused), default=0.0)
    (tmp_path / "again").mkdir()
    with Server(tmp_path / "again", DATABASE_URL=cluster.url(database)) as again:
        load.server = again
        load.check("SIGTERM", allowed={200, 201, 0})
    print(
        f"exit code {code} after {took:.2f} s; {len(running)} in flight, all answered;"
        f" {len(after) - len(refused)} answered after it, {len(refused)} refused in {slowest:.2f} s"
    )
    assert code == 0
    assert took < 9
    assert running and all(status in {200, 201} for _, _, _, status in running)
    assert slowest < 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_request_that_takes_seconds_survives_a_stop(
    server: Server, network: Network, name: str
) -> None:
    """Also if the signal reaches every process, as that of Ctrl+C does."""
    assert requests.get(f"{server.url}/ready").status_code == 200
    network.delay = 3.0
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(requests.get, f"{server.url}/ready")
        time.sleep(0.5)
        for process in (*workers(server), server.process.pid):
            os.kill(process, signal.Signals[name])
        assert slow.result().status_code == 200
    assert server.process.wait(10) == 0


def test_a_stop_refuses_what_would_wait_too_long_for_a_thread(tmp_path: Path) -> None:
    """Each request takes two seconds, on five threads: the last of 20 would end after eight."""
    file = tmp_path / "tasks.db"
    settings = {"DATABASE_URL": f"sqlite:///{file}", "THREADS": "5", "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, "--graceful-timeout", "4", app=HASTY, **settings) as server:
        with closing(sqlite3.connect(file)) as writer, ThreadPoolExecutor(20) as pool:
            writer.execute("BEGIN IMMEDIATE")
            url, body = f"{server.url}/api/ann/tasks", {"title": "x"}
            sent = [pool.submit(requests.post, url, json=body) for _ in range(20)]
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            assert {each.result().status_code for each in sent} == {503}
        assert server.process.wait(10) == 0


def test_a_second_ctrl_c_does_not_wait_for_requests(server: Server, network: Network) -> None:
    assert requests.get(f"{server.url}/ready").status_code == 200
    network.delay = 6.0
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(requests.get, f"{server.url}/ready")
        for _ in range(2):
            time.sleep(0.5)
            server.process.send_signal(signal.SIGINT)
        assert server.process.wait(4) == 0
        assert isinstance(slow.exception(), requests.ConnectionError)


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_port_is_free_soon_after_the_master_was_killed(server: Server) -> None:
    """Although a client is still there: a new server could not listen."""
    address = server.address
    with socket.create_connection(address):
        server.process.kill()
        eventually(lambda: is_refused(address), 4)


def test_a_new_connection_is_refused_while_a_stop_waits_for_another(server: Server) -> None:
    """A router can send a refused request to another server, but not one that is reset later."""
    address = server.address
    with closing(HTTPConnection(*address, timeout=5)) as idle:
        idle.request("GET", "/health")
        assert idle.getresponse().read() == b'{"status":"ok"}\n'
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_refused(address), 1.5)
        assert [is_refused(address) for _ in range(5)] == [True] * 5
        assert server.process.poll() is None
        assert server.process.wait(10) == 0


UNLUCKY = f"""
import os, signal, time
exec(open({str(ROOT / "gunicorn.conf.py")!r}).read())
worker_connections = 20

class Unlucky(Worker):
    was_stopped = False

    def notify(self):
        super().notify()
        if self.nr_conns >= self.worker_connections and not self.was_stopped:
            self.was_stopped = True
            os.kill(self.ppid, signal.SIGTERM)
            while self.alive:
                time.sleep(0.01)
            time.sleep(1)

worker_class = Unlucky
"""


def test_a_stop_in_the_round_in_which_the_loop_accepts_no_more(tmp_path: Path) -> None:
    """While as many connections are open as there may be, and one of them closes."""
    config = tmp_path / "unlucky.py"
    config.write_text(UNLUCKY)
    options = {"config": config, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server, ExitStack() as stack:
        with User(server, "ann") as ann:
            ann.create()
        other = stack.enter_context(closing(sqlite3.connect(tmp_path / "tasks.db")))
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        writers = stack.enter_context(ThreadPoolExecutor(18))
        writes = [
            writers.submit(requests.post, f"{server.url}/api/ann/tasks", json={"title": "x"})
            for _ in range(18)
        ]
        time.sleep(0.5)
        silent = [socket.create_connection(server.address) for _ in range(2)]
        time.sleep(0.5)
        silent.pop().close()
        time.sleep(1)
        other.execute("ROLLBACK")
        assert [write.result().status_code for write in writes] == [201] * 18
        assert server.process.wait(10) == 0
        silent.pop().close()
    assert "Traceback" not in server.log_file.read_text()


def test_a_stop_without_a_file_descriptor_left(tmp_path: Path) -> None:
    with Server(tmp_path, WEB_CONCURRENCY="1") as server, ExitStack() as stack:
        (worker,) = workers(server)
        most = max(map(int, os.listdir(f"/proc/{worker}/fd"))) + 1
        hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, hard))
        for _ in range(5):
            stack.enter_context(socket.create_connection(server.address))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(7) == 0
    assert "Worker exiting" in server.log_file.read_text()


def test_a_signal_counts_while_the_loop_looks_for_its_master(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker went on, and lost what it was doing when the master killed it 9 s later."""
    worker = Worker.__new__(Worker)
    worker.alive = True

    def is_interrupted(worker: Worker) -> bool:
        worker.alive = False  # As the handler of SIGTERM does.
        return True

    monkeypatch.setattr(ThreadWorker, "is_parent_alive", is_interrupted)
    assert not worker.is_parent_alive() and not worker.alive


def test_a_late_thread_writes_into_no_file(tmp_path: Path) -> None:
    """Not even into one that has the number of a descriptor that the loop had."""
    queue = MethodQueue()
    queue.init()
    queue.close()
    with (tmp_path / "1").open("wb") as one, (tmp_path / "2").open("wb") as other:
        queue.defer(print)
        assert one.tell() == other.tell() == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == b""


def test_a_connection_that_was_idle_can_be_used_again(server: Server) -> None:
    """For longer than the routers of platforms keep theirs; 3 s of that are tested."""
    with closing(HTTPConnection(*server.address, timeout=5)) as connection:
        for seconds in (0, 3):
            time.sleep(seconds)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}\n'


@pytest.mark.slow
def test_a_reload_under_load(server: Server) -> None:
    before = workers(server)
    with Load(server, clients=12) as load:
        for _ in range(3):
            time.sleep(0.7)
            server.process.send_signal(signal.SIGHUP)
        time.sleep(3)
    load.check("SIGHUP, three times", allowed={200, 201})
    assert not before & workers(server)


def test_a_hangup_ends_no_worker(server: Server) -> None:
    """A shell that is hung up sends SIGHUP to every process, also under `nohup`."""
    eventually(lambda: len(workers(server)) == 2, 5)
    before = workers(server)
    for worker in before:
        os.kill(worker, signal.SIGHUP)
    time.sleep(0.5)
    assert workers(server) == before


def test_a_server_whose_terminal_is_closed_stops(tmp_path: Path) -> None:
    terminal, output = os.openpty()
    with Server(tmp_path, output=output) as server:
        os.close(output)
        server.process.send_signal(signal.SIGHUP)  # By hand: it reloads.
        time.sleep(0.5)
        assert server.process.poll() is None
        os.close(terminal)
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(10) == 0


def test_a_worker_is_killed(server: Server) -> None:
    with Load(server, clients=12) as load:
        time.sleep(1)
        victim = workers(server).pop()
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        took = eventually(lambda: len(workers(server) - {victim}) == 2, 2)
        time.sleep(1)
    load.check("a worker killed", allowed={200, 201, 0})
    lost = [answer for answer in load.answers if answer[3] == 0]
    print(f"{len(lost)} requests in flight were lost; a new worker after {took:.2f} s")
    assert len(lost) <= 12
    assert all(start < killed + 1 for start, _, _, _ in lost)
    # The master logs that its worker was killed; nothing else is an error.
    log = server.log_file.read_text().replace('"level":"error","message":"Worker (pid:', "")
    server.log_file.write_text(log)


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Such as the driver of Docker whose service cannot be reached."""
    reader, writer = os.pipe()
    with Server(tmp_path, output=writer) as server, requests.Session() as session:
        os.close(writer)
        times = []
        for path in ("/api/ann/tasks", "/health") * 1000:
            answer = session.get(server.url + path, timeout=5)
            assert answer.status_code == 200
            times.append(answer.elapsed.total_seconds())
        assert len(os.read(reader, 2**20)) > 30_000
        assert session.get(f"{server.url}/health", timeout=5).status_code == 200
        lines = [*map(json.loads, os.read(reader, 2**20).decode().splitlines())]
        (dropped,) = (line for line in lines if "dropped" in line["message"])
        session.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        print(f"2,000 requests, the longest {max(times):.2f} s; then: {dropped['message']}")
    os.close(reader)


def test_a_log_of_long_lines_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """A pipe has space as soon as it has space for a part of a line."""
    reader, writer = os.pipe()
    with Server(tmp_path, output=writer) as server:
        os.close(writer)
        for _ in range(30):
            assert requests.get(f"{server.url}/{'a' * 8000}", timeout=5).status_code == 404
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(6) == 0
    os.close(reader)


def test_after_a_line_that_was_cut_the_log_can_be_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with Server(tmp_path, output=writer, WEB_CONCURRENCY="1") as server:
        os.close(writer)
        for _ in range(30):
            assert requests.get(f"{server.url}/{'a' * 8000}", timeout=5).status_code == 404
        cut = os.read(reader, 2**20).splitlines(keepends=True)[-1]
        assert not cut.endswith(b"\n")
        assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
        end, *lines = os.read(reader, 2**20).split(b"\n")[:-1]
        assert end == b""
        assert {json.loads(line)["level"] for line in lines} == {"info", "warning"}
    os.close(reader)


def test_a_terminal_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Such as one that was stopped with Ctrl+S. It can have space for a part of a line."""
    reader, writer = os.openpty()
    with Server(tmp_path, output=writer) as server, requests.Session() as session:
        os.close(writer)
        for path in ("/api/ann/tasks", "/health") * 1000:
            assert session.get(server.url + path, timeout=5).status_code == 200
        session.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(6) == 0
    os.close(reader)


def test_a_terminal_to_which_several_write_at_once_loses_no_line() -> None:
    """While one writes to a terminal, it refuses another one that does not wait."""
    reader, writer = os.openpty()
    terminal = os.open(os.ttyname(writer), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)

    def drain() -> None:
        with suppress(OSError):  # The last writer has closed the terminal.
            while os.read(reader, 65536):
                pass

    def log(_: int) -> None:
        for _ in range(2000):
            assert logs.write(terminal, b"x" * 80 + b"\n", 5) == b""

    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(log, range(4)))  # Raises what a thread has raised.
    finally:
        os.close(terminal)
        os.close(writer)
        drainer.join()
        os.close(reader)


def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with Server(tmp_path, output=full) as server, User(server, "ann") as ann:
        ann.create()
        assert len(ann.tasks()) == 1
        ann.close()
        assert server.stop() == 0
    os.close(full)


def signal_all(server: Server, number: signal.Signals) -> None:
    for pid in (server.process.pid, *workers(server)):
        os.kill(pid, number)


@pytest.mark.slow
def test_a_container_that_was_frozen_answers_the_requests_that_wake_it(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """As on Cloud Run, and with `docker pause`. The worker has 3 s to show that it works."""
    url = cluster.url(database)
    with Server(tmp_path, "--timeout", "3", DATABASE_URL=url) as server, ExitStack() as stack:
        eventually(lambda: len(workers(server)) == 2, 5)
        before = workers(server)
        connections = [
            stack.enter_context(closing(HTTPConnection(*server.address, timeout=5)))
            for _ in range(20)
        ]
        path, headers = "/api/ann/tasks", {"Content-Type": "application/json"}
        for connection in connections:
            connection.request("GET", path)
            assert connection.getresponse().read() == b"[]\n"
        for _ in range(3):
            signal_all(server, signal.SIGSTOP)
            time.sleep(5)
            for connection in connections:
                connection.request("POST", path, b'{"title": "x"}', headers)
            signal_all(server, signal.SIGCONT)
            for connection in connections:
                answer = connection.getresponse()
                assert (answer.status, answer.read()[:6]) == (201, b'{"id":')
        time.sleep(2)
        assert workers(server) == before
        assert "TIMEOUT" not in server.log_file.read_text()
        print("60 of 60 requests were answered after three times of 5 s")
    assert cluster.execute("SELECT count(*) FROM task", database) == [(60,)]


@pytest.mark.parametrize("sent", [b"", REQUEST[:-9], REQUEST[:-40]], ids=["none", "half", "head"])
@pytest.mark.parametrize("was_used", [False, True], ids=["new", "kept"])
def test_a_freeze_does_not_count_in_the_deadlines_of_connections(
    tmp_path: Path, sent: bytes, was_used: bool
) -> None:
    """It is longer than a client may take for a request, and than a connection is kept."""
    options = {"app": HASTY, "DATABASE_URL": f"sqlite:///{tmp_path / 'tasks.db'}"}
    with Server(tmp_path, "--keep-alive", "2", **options) as server, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(server.address, timeout=5))
            for _ in range(8)
        ]
        for client in clients:
            if was_used:
                client.sendall(REQUEST)
                assert client.recv(65536).startswith(b"HTTP/1.1 201 ")
            client.sendall(sent)
        time.sleep(0.5)
        signal_all(server, signal.SIGSTOP)
        time.sleep(4)
        for client in clients:
            client.sendall(REQUEST[len(sent) :])
        signal_all(server, signal.SIGCONT)
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 201 ")


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    with Server(tmp_path, "--timeout", "3") as server:
        eventually(lambda: len(workers(server)) == 2, 5)
        time.sleep(1)  # Gunicorn waits for the first heartbeat without a limit.
        victim = workers(server).pop()
        os.kill(victim, signal.SIGSTOP)
        took = eventually(lambda: len(workers(server) - {victim}) == 2, 10)
        print(f"replaced after {took:.1f} s")
        assert requests.get(f"{server.url}/health", timeout=5).status_code == 200


@pytest.mark.parametrize("left", ["THREADS=7\n", 'JWT_SECRET="unclosed\n'], ids=["open", "broken"])
@pytest.mark.parametrize("reloads", [False, True], ids=["killed", "reloaded"])
def test_a_new_worker_has_the_settings_of_the_start(
    tmp_path: Path, reloads: bool, left: str
) -> None:
    """Without them, a server whose file lost its secret would be open to anyone."""
    (tmp_path / ".env").write_text(f"JWT_SECRET={'s' * 32}\n")
    with Server(tmp_path, WEB_CONCURRENCY="1") as server:
        (tmp_path / ".env").write_text(left)
        (victim,) = workers(server)
        if reloads:
            server.process.send_signal(signal.SIGHUP)
        else:
            os.kill(victim, signal.SIGKILL)
        eventually(lambda: bool(workers(server)) and victim not in workers(server), 5)
        assert requests.get(f"{server.url}/api/ann/tasks", timeout=5).status_code == 401


@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT"])
def test_a_stop_that_finds_a_worker_starting_is_obeyed(tmp_path: Path, name: str) -> None:
    config = tmp_path / "conf.py"
    config.write_text(
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n"
        "import os\n"
        "ours = post_fork\n"
        "def post_fork(server, worker):\n"
        "    ours(server, worker)\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
    )
    server = Server(tmp_path, config=config)
    deadline = time.monotonic() + 8
    while "Worker exiting" not in server.log_file.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.stop() == 0
    assert time.monotonic() < deadline


def test_a_worker_that_may_not_read_the_files_of_python(tmp_path: Path) -> None:
    """As with `--user`, if root has installed Python in its home folder."""
    config = tmp_path / "conf.py"
    config.write_text(
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n"
        "ours = post_worker_init\n"
        "def post_worker_init(worker):\n"
        "    ours(worker)\n"
        "    sys.meta_path.clear()\n"
    )
    with Server(tmp_path, config=config) as server, User(server, "ann") as ann:
        task = ann.create(due_date="2026-03-01T09:00:00+01:00", tags="a,b")
        assert ann.tasks(search="milk", sort="title") == [task]
        assert ann.patch(f"/tasks/{task['id']}/complete").status_code == 200
        assert ann.get(f"{server.url}/docs").status_code == 200
