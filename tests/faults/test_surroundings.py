"""A PostgreSQL, a pooler and a resolver that are not set up as one would like."""

import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from random import randrange

import psycopg2
import pytest
import requests
from support.commands import run_command
from support.mounts import mounting
from support.network import Load, Network, eventually
from support.server import HASTY, REAL, Server, User, changed_app

from database.postgres import Postgres
from testbed.cluster import PASSWORD, Cluster, free_port

# The timer of a socket in the output of `ss`, which has no number at 0.
WITHIN_3_S = re.compile(r"timer:\(keepalive,([123]sec|[012]\.\d+sec|([12]\.)?\d+ms)?,")
WITHIN_30_S = re.compile(r"timer:\(keepalive,(30|[12]?\d)sec,")


def quiet(server: Server) -> None:
    log = server.log_file.read_text()
    assert '"level":"error"' not in log and "Traceback" not in log and PASSWORD not in log


@pytest.mark.stops_postgres
def test_a_server_that_was_demoted_is_left_for_the_new_one(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Old connections lead to a server that has become read-only, new ones to one that has not."""
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server:
        with Load(server) as load:
            time.sleep(0.5)
            cluster.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
            cluster.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            cluster.execute("SELECT pg_reload_conf()")
            try:
                time.sleep(1)
            finally:
                cluster.execute("ALTER SYSTEM RESET ALL", database)
                cluster.execute("SELECT pg_reload_conf()")
        load.check("a server that was demoted", allowed={200, 201})
    quiet(server)


def test_a_database_that_is_read_only_can_be_read(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        task = user.create()
    cluster.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        assert user.tasks() == [task]
        answer = user.post("/tasks", json={"title": "x"})
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert "Nothing has changed" in answer.json()["detail"]
        assert answer.elapsed.total_seconds() < 1
    quiet(server)


def test_a_fresh_database_that_is_read_only_is_a_503(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server:
        assert requests.get(f"{server.url}/ready").status_code == 503
    quiet(server)
    assert "read-only transaction" in server.log_file.read_text()


def test_a_role_that_is_made_again_is_served_by_new_connections(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """The old connections keep the role that is gone, and its missing rights."""
    role = f"again_{database}"
    make = f"""
        CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}';
        GRANT SELECT, INSERT, UPDATE, DELETE ON task TO {role};
        GRANT SELECT ON schema_migration TO {role};
    """
    assert run_command(tmp_path, "migrate", DATABASE_URL=cluster.url(database)).exit_code == 0
    cluster.execute(make, database)
    url = cluster.url(database).replace("//postgres:", f"//{role}:")
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
        with ThreadPoolExecutor(8) as threads:
            tasks = list(threads.map(lambda _: user.create(), range(40)))
        cluster.execute(f"DROP OWNED BY {role}; DROP ROLE {role}; {make}", database)
        flips = [user.patch(f"/tasks/{task['id']}/complete") for task in tasks]
        assert {flip.status_code for flip in flips} == {200}
        assert all(task["completed"] for task in user.tasks())
    quiet(server)


def test_a_setting_that_is_put_right_counts_for_the_next_request(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        path = f"/tasks/{user.create()['id']}/complete"
    cluster.execute(f"ALTER DATABASE {database} SET lock_timeout = '20ms'")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        with closing(psycopg2.connect(cluster.url(database))) as other:
            other.cursor().execute("SELECT FROM task FOR UPDATE")
            refused = user.patch(path)
            assert refused.status_code == 503
            assert "Nothing has changed" in refused.json()["detail"]
            cluster.execute(f"ALTER DATABASE {database} RESET lock_timeout")
            with ThreadPoolExecutor(4) as threads:
                flips = [threads.submit(user.patch, path) for _ in range(4)]
                time.sleep(0.5)
                other.rollback()
        assert [flip.result().status_code for flip in flips] == [200] * 4
    quiet(server)


@pytest.mark.parametrize("first", ["on", "off"])
@pytest.mark.stops_postgres
def test_a_backslash_stays_one_while_its_meaning_changes(
    tmp_path: Path, cluster: Cluster, database: str, first: str
) -> None:
    """`standard_conforming_strings` changes by a reload, also for connections that are open."""

    def mean(setting: str) -> None:
        cluster.execute(f"ALTER SYSTEM SET standard_conforming_strings = {setting}")
        cluster.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)

    evil = "\\', title = 'changed'; --"
    url = cluster.url(database)
    try:
        mean(first)
        with Server(tmp_path, DATABASE_URL=url) as server, User(server, "a") as user:
            task = user.create()["id"]
            mean("off" if first == "on" else "on")
            for text in (evil, r"\', \\'', c:\new\b", "\\", evil):
                answer = user.patch(f"/tasks/{task}", json={"description": text, "tags": [text]})
                assert answer.status_code == 200, answer.text
                assert answer.json()["title"] == "Buy milk"
                assert (answer.json()["description"], answer.json()["tags"]) == (text, [text])
            assert len(user.tasks(tag=evil, search=evil)) == 1
    finally:
        cluster.execute("ALTER SYSTEM RESET standard_conforming_strings")
        cluster.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("path", ["''", "nowhere", '"$user"', "pg_temp"])
def test_a_role_with_another_search_path_works(
    tmp_path: Path, cluster: Cluster, database: str, path: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET search_path = {path}")
    for _ in range(2):
        with (
            Server(tmp_path, DATABASE_URL=cluster.url(database)) as server,
            User(server, "a") as user,
        ):
            user.create()
        quiet(server)
    assert cluster.execute("SELECT count(*) FROM public.task", database) == [(2,)]


@pytest.mark.parametrize("query", ["?schema=Tasks", "?options=-csearch_path%3DTasks"])
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_the_schema_can_be_another_one(
    tmp_path: Path,
    cluster: Cluster,
    database: str,
    request: pytest.FixtureRequest,
    query: str,
    pooled: bool,
) -> None:
    """PgBouncer refuses a search_path in `options`."""
    url = cluster.url(database) + query
    if pooled:
        port = request.getfixturevalue("pgbouncer")
        url = cluster.url(database, port) + f"{query}&sslmode=require"
    for _ in range(2):
        with Server(tmp_path, DATABASE_URL=url) as server, User(server, "a") as user:
            user.create()
        quiet(server)
    assert cluster.execute('SELECT count(*) FROM "Tasks".task', database) == [(2,)]
    assert cluster.execute("SELECT to_regclass('public.task')", database) == [(None,)]


def test_another_client_of_the_pooler_that_leaves_its_search_path(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int
) -> None:
    url = cluster.url(database, pgbouncer) + "?sslmode=require"
    going = [True]

    def leave() -> None:
        while going[0]:
            with closing(psycopg2.connect(url)) as connection:
                connection.autocommit = True
                for _ in range(20):
                    connection.cursor().execute("SET search_path = ''")

    with Server(tmp_path, DATABASE_URL=url) as server:
        other = threading.Thread(target=leave)
        other.start()
        try:
            with Load(server, clients=8) as load:
                time.sleep(2)
            assert requests.get(f"{server.url}/ready").status_code == 200
        finally:
            going[0] = False
            other.join()
        load.check("a pooler with search_path = ''", allowed={200, 201})
    quiet(server)


class Foreigner:
    """A server that refuses every connection, in Latin-1."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        fields = "SFATAL\0C53300\0Mdas Limit für Verbindungen ist überschritten\0\0".encode(
            "latin-1"
        )
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    if connection.recv(8)[4:] == struct.pack("!I", 80877103):  # SSLRequest
                        connection.sendall(b"N")
                        connection.recv(8)
                    connection.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
                    connection.recv(1000)


@pytest.fixture
def foreigner() -> Iterator[Foreigner]:
    foreigner = Foreigner()
    yield foreigner
    foreigner.listener.close()


def test_a_server_whose_messages_are_not_utf_8(
    tmp_path: Path, cluster: Cluster, database: str, network: Network, foreigner: Foreigner
) -> None:
    """At the start, and when it comes instead of another one."""
    network.upstream = foreigner.port
    url = cluster.url(database, network.port)
    with Server(tmp_path, app=HASTY, DATABASE_URL=url) as server:
        assert requests.get(f"{server.url}/health").status_code == 200
        assert requests.get(f"{server.url}/ready").status_code == 503
        network.upstream = cluster.port
        eventually(lambda: requests.get(f"{server.url}/ready").ok, 5)
        with Load(server, clients=2) as load:
            network.upstream = foreigner.port
            network.cut()
            eventually(lambda: 503 in load.statuses(), 5)
            network.upstream = cluster.port
            back = time.monotonic()
            eventually(lambda: load.first_success(back) < float("inf"), 5)
        load.check("a server with messages in Latin-1", allowed={200, 201, 503})
    quiet(server)
    log = server.log_file.read_text()
    # On CPython 3.11, psycopg2 loses the message.
    message = "Verbindungen ist \N{REPLACEMENT CHARACTER}berschritten"
    assert (message if sys.version_info >= (3, 12) else "OperationalError()") in log


def test_a_server_whose_shared_memory_cannot_be_written_starts(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Such as a container with a read-only file system and a folder /tmp."""
    before = [*mounting("-t", "tmpfs", "-o", "ro", "none", "/dev/shm"), "env", "--chdir=/"]
    with (
        Server(tmp_path, before=before, DATABASE_URL=cluster.url(database)) as server,
        User(server, "ann") as user,
    ):
        user.create()
    quiet(server)


@pytest.fixture
def silent_resolver(tmp_path: Path) -> Iterator[tuple[list[str], socket.socket]]:
    """A command that runs another one where the only resolver never answers, and its socket."""
    address = f"127.53.{randrange(256)}.{randrange(256)}"  # Another run may have its own.
    configuration = tmp_path / "resolv.conf"
    configuration.write_text(f"nameserver {address}\noptions timeout:5 attempts:2\n")
    command = mounting("--bind", str(configuration), "/etc/resolv.conf")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind((address, 53))
        yield command, resolver


@pytest.mark.parametrize(
    "app", [HASTY, pytest.param(REAL, marks=pytest.mark.slow)], ids=["short", "real"]
)
@pytest.mark.alone
def test_a_resolver_that_is_silent(
    tmp_path: Path, silent_resolver: tuple[list[str], socket.socket], app: str
) -> None:
    """Each of two processes has one lookup at a time, which asks for two kinds of addresses.

    The first lookup takes ten seconds, but on a slow machine a second one may begin.
    """
    command, resolver = silent_resolver
    url = "postgresql://ann:secret@database.example.com/tasks"
    start = time.monotonic()
    with Server(tmp_path, app=app, before=command, DATABASE_URL=url) as server:
        started = time.monotonic() - start
        answers = []
        for _ in range(4):
            answers.append(requests.get(f"{server.url}/api/ann/tasks"))
            time.sleep(0.3)
    resolver.setblocking(False)
    queries = set()
    with suppress(BlockingIOError):
        while True:
            queries.add(resolver.recv(512)[:2])  # Its id, which a repeat has, too.
    took = max(answer.elapsed.total_seconds() for answer in answers)
    print(f"\na silent resolver: up after {started:.2f} s, requests {took:.2f} s at most")
    assert {answer.status_code for answer in answers} == {503}
    assert started < 6
    assert took < 6
    assert len(queries) <= 6
    quiet(server)


def test_a_host_in_the_environment_is_looked_up_within_the_deadline(
    tmp_path: Path, silent_resolver: tuple[list[str], socket.socket]
) -> None:
    """libpq's own lookup would take as long as the resolver does, here ten seconds."""
    change = "import support.hasty, database; database.Postgres.await_schema = lambda self: None"
    app, options = changed_app(tmp_path, change), {"PGHOST": "database.example.com"}
    url = "postgresql://ann:secret@/tasks"
    with Server(
        tmp_path, app=app, before=silent_resolver[0], DATABASE_URL=url, **options
    ) as server:
        answer = requests.get(f"{server.url}/ready")
    assert answer.status_code == 503
    assert answer.elapsed.total_seconds() < 6
    quiet(server)


def test_an_address_in_the_environment_needs_no_lookup(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    url = cluster.url(database).replace("127.0.0.1", "nowhere.invalid")
    with (
        Server(tmp_path, DATABASE_URL=url, PGHOSTADDR="127.0.0.1") as server,
        User(server, "ann") as user,
    ):
        user.create()
    quiet(server)


def test_names_are_resolved(tmp_path: Path, cluster: Cluster, database: str) -> None:
    """Several hosts, of which some are unknown; the port belongs to its host."""
    at = f"nowhere.invalid:1,localhost:{cluster.port}"
    url = cluster.url(database).replace(f"127.0.0.1:{cluster.port}", at)
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
        user.create()
    quiet(server)


@pytest.mark.parametrize(("hosts", "is_in_url"), [("127.0.0.3,127.0.0.1", True), ("twice", False)])
def test_one_port_is_that_of_every_host(
    tmp_path: Path, cluster: Cluster, database: str, hosts: str, is_in_url: bool
) -> None:
    """A name with two addresses, as `localhost` often is, counts as two."""
    (tmp_path / "hosts").write_text("127.0.0.1 twice\n127.0.0.2 twice\n")
    mount = mounting("--bind", str(tmp_path / "hosts"), "/etc/hosts")
    port = str(cluster.port)
    url = cluster.url(database).replace(f"127.0.0.1:{port}", hosts)
    options = {"DATABASE_URL": f"{url}?port={port}"} if is_in_url else {"PGPORT": port}
    options.setdefault("DATABASE_URL", url)
    with Server(tmp_path, before=mount, **options) as server, User(server, "ann") as user:
        user.create()
    quiet(server)


def test_the_log_has_the_reason_of_each_host(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """The first may be an IPv6 address that this machine has no route to."""
    url = cluster.url(database).replace("127.0.0.1", f"127.0.0.1:{free_port()},localhost")
    with Server(tmp_path, DATABASE_URL=url.replace(PASSWORD, "wrong")) as server:
        assert requests.get(f"{server.url}/ready").status_code == 503
    (reason,) = {line["message"] for line in server.log() if "unavailable" in line["message"]}
    refused = "cannot connect to 127.0.0.1, localhost: Connection refused"
    assert f"{refused}; connection to server at" in reason
    assert "password authentication failed" in reason


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("/tasks?port=1", "cannot connect to its socket: connection to server on socket"),
        ("127.0.0.1:{}/tasks", "cannot connect to 127.0.0.1: no response in time"),
    ],
    ids=["no socket", "silent"],
)
def test_the_log_says_what_cannot_be_connected_to(tmp_path: Path, at: str, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://{at.format(silent.getsockname()[1])}"
        with Server(tmp_path, app=HASTY, DATABASE_URL=url) as server:
            assert requests.get(f"{server.url}/ready").status_code == 503
    quiet(server)
    assert reason in server.log_file.read_text()


@contextmanager
def refusing(reason: str, after_s: float) -> Iterator[int]:
    """The port of a server that refuses each connection, as far away as Neon's proxy may be."""

    def refuse(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(1000)
            time.sleep(after_s)
            fields = f"SERROR\0CXX000\0M{reason}\0\0".encode()
            client.sendall(b"E" + struct.pack("!I", 4 + len(fields)) + fields)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=refuse, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_the_log_has_the_reason_also_if_the_last_attempt_had_no_time(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    url = f"{cluster.url(database, network.port)}?sslmode=disable"
    options = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=HASTY, **options) as server, User(server, "ann") as ann:
        ann.create()
        refusal = refusing("Your project has exceeded the compute time quota.", 0.2)
        with refusal as network.upstream, ThreadPoolExecutor(10) as pool:
            network.cut()
            answers = list(pool.map(lambda _: ann.get("/tasks").status_code, range(10)))
    assert answers == [503] * 10
    reasons = [line["message"] for line in server.log() if "unavailable" in line["message"]]
    assert len(reasons) >= 10  # The purge may have met it, too.
    assert all("compute time quota" in reason for reason in reasons)


def test_the_log_has_the_reason_of_each_503_also_while_the_schema_is_not_known(
    tmp_path: Path,
) -> None:
    with refusing("Your project has exceeded the compute time quota.", 0.1) as port:
        url = f"postgresql://ann:secret@127.0.0.1:{port}/tasks?sslmode=disable"
        server = Server(tmp_path, app=HASTY, DATABASE_URL=url)
        with server, User(server, "ann") as ann, ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: ann.get("/tasks"), range(8)))
    assert [answer.status_code for answer in answers] == [503] * 8
    reasons = [line for line in server.log() if "compute time quota" in line["message"]]
    ids = {answer.headers["X-Request-ID"] for answer in answers}
    assert ids <= {line.get("request_id") for line in reasons}


@pytest.mark.parametrize("change", ["ADD org int NOT NULL", "ADD CHECK (title = 'x')"])
def test_a_table_that_refuses_a_task_does_not_get_it_into_the_log(
    tmp_path: Path, cluster: Cluster, database: str, change: str
) -> None:
    """As an operator may have changed it. PostgreSQL quotes the row in the error's details."""
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "ann") as ann:
        assert ann.tasks() == []
        cluster.execute(f"ALTER TABLE task {change}", database)
        assert ann.post("/tasks", json={"title": "secret1"}).status_code == 500
    (error,) = (line for line in server.log() if "traceback" in line)
    assert "violates" in error["traceback"]
    assert "secret1" not in server.log_file.read_text()


def test_a_unique_index_that_refuses_a_task_is_no_outage(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Nor does the index get the task into the log."""
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "ann") as ann:
        ann.create("secret1")
        cluster.execute("CREATE UNIQUE INDEX one ON task (title)", database)
        assert ann.post("/tasks", json={"title": "secret1"}).status_code == 500
    (error,) = (line for line in server.log() if "traceback" in line)
    assert "UniqueViolation" in error["traceback"]
    assert "secret1" not in server.log_file.read_text()


@pytest.mark.parametrize("idle", [0.5, 60.0])
def test_connections_are_closed_when_they_are_not_used(
    tmp_path: Path, cluster: Cluster, database: str, network: Network, idle: float
) -> None:
    app = changed_app(tmp_path, f"import database.pool; database.pool.MAX_IDLE_S = {idle}")
    options = {"DATABASE_URL": cluster.url(database, network.port), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=app, **options) as server:
        network.delay = 0.05
        with Load(server, clients=12):
            time.sleep(1)
        network.delay = 0.0
        peak = network.connections
        assert peak > 4
        if idle > 1:
            time.sleep(1.5)
            assert network.connections == peak
        else:
            took = eventually(lambda: network.connections == 1, 3)
            print(f"\n{peak} connections at the peak, 1 after {took:.2f} s")
            with User(server, "ann") as user:
                assert user.tasks() == []
    quiet(server)


def test_connections_that_fail_are_closed_at_once(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """An error keeps its traceback, and so the connection, until Python collects garbage."""
    url = cluster.url(database, network.port)
    with Server(tmp_path, app=HASTY, DATABASE_URL=url, WEB_CONCURRENCY="1") as server:
        (worker,) = server.workers
        with User(server, "ann") as user:
            user.create()
            network.swallows = True
            for _ in range(3):
                assert user.get("/tasks").status_code == 503
        left = [each for each in worker.net_connections("tcp") if each.raddr[1:] == (network.port,)]
    assert left == []


def test_a_lost_connection_takes_the_idle_ones_with_it(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """They are as old. Until Python collects what is forgotten, there could be too many."""
    options = {"DATABASE_URL": cluster.url(database, network.port), "WEB_CONCURRENCY": "1"}
    server = Server(tmp_path, app=changed_app(tmp_path, "import gc; gc.disable()"), **options)
    with server, User(server.wait(), "ann") as user:
        for _ in range(2):
            network.delay = 0.05
            with Load(server, clients=12):
                time.sleep(1)
            network.delay = 0.0
            assert user.tasks() == []
            assert network.connections > 4
            cluster.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{database}' AND backend_type = 'client backend'"
                " ORDER BY state_change DESC LIMIT 1"
            )
            assert user.tasks() == []
            eventually(lambda: network.connections == 1, 1)
    quiet(server)


def test_connections_in_use_while_another_is_lost_are_closed_after_their_use(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """They are as old, too, and more would stay open than there are clients."""
    options = {"DATABASE_URL": cluster.url(database, network.port), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server:
        network.delay = 0.05
        with Load(server, clients=12):
            time.sleep(0.5)
            cluster.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{database}' AND backend_type = 'client backend'"
                " ORDER BY state_change DESC LIMIT 1"
            )
            time.sleep(0.5)
        network.delay = 0.0
        eventually(lambda: network.connections <= 12, 1)
    quiet(server)


def test_connections_that_refuse_a_write_are_closed(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """Until Python collects what is forgotten, there could be too many."""
    assert run_command(tmp_path, "migrate", DATABASE_URL=cluster.url(database)).exit_code == 0
    cluster.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    options = {"DATABASE_URL": cluster.url(database, network.port), "WEB_CONCURRENCY": "1"}
    server = Server(tmp_path, app=changed_app(tmp_path, "import gc; gc.disable()"), **options)
    with server, User(server.wait(), "ann") as user:
        for _ in range(5):
            assert user.post("/tasks", json={"title": "x"}).status_code == 503
        eventually(lambda: network.connections <= 1, 1)
    quiet(server)


def test_a_silent_host_does_not_hide_the_next_one(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Such as a primary that is frozen, with another one behind it in the URL."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{cluster.port}"
        url = cluster.url(database).replace(f"127.0.0.1:{cluster.port}", at)
        with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
            start = time.monotonic()
            user.create()
            print(f"\na silent host before the right one: {time.monotonic() - start:.2f} s")
    quiet(server)


def test_a_standby_replaces_a_silent_primary_until_that_is_back(
    tmp_path: Path, cluster: Cluster, own_cluster: Cluster, database: str, network: Network
) -> None:
    """The standby answers reads. The first write after a while finds the primary again."""
    if not own_cluster.running:
        own_cluster.start()
    own_cluster.execute(f"CREATE DATABASE {database}")
    migrated = run_command(tmp_path, "migrate", DATABASE_URL=own_cluster.url(database))
    assert migrated.exit_code == 0
    own_cluster.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    hosts = f"127.0.0.1:{network.port},127.0.0.1:{own_cluster.port}"
    url = cluster.url(database).replace(f"127.0.0.1:{cluster.port}", hosts)
    options = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=HASTY, **options) as server, User(server, "ann") as ann:
        ann.create()
        network.swallows = True
        network.cut()
        with ThreadPoolExecutor(4) as threads:  # An even number of dials at once.
            answers = list(threads.map(lambda _: requests.get(f"{ann.base}/tasks"), range(4)))
        assert [(answer.status_code, answer.json()) for answer in answers] == [(200, [])] * 4
        network.swallows = False
        network.cut()
        eventually(lambda: ann.post("/tasks", json={"title": "x"}).status_code == 201, 10)
        assert len(ann.tasks()) == 2
    quiet(server)


def test_a_table_that_is_being_restored_is_a_503(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        task = user.create()
        cluster.execute("ALTER TABLE task DROP CONSTRAINT task_pkey", database)
        assert user.post("/tasks", json={"title": "x"}).status_code == 503
        cluster.execute("ALTER TABLE task ADD PRIMARY KEY (user_id, id)", database)
        user.create()
        assert len(user.tasks()) == 2 and user.task(task["id"]) == task
    quiet(server)


def test_repeats_of_creates_while_the_primary_key_is_indexed_again(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """An open transaction keeps two indexes, of which ON CONFLICT regards only one."""
    phase = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE '%marking dead'"
    url = cluster.url(database)
    with (
        Server(tmp_path, DATABASE_URL=url) as server,
        User(server, "ann") as user,
        ThreadPoolExecutor(5) as threads,
        closing(psycopg2.connect(url)) as reader,
    ):

        def create(number: int) -> int:
            key = {"Idempotency-Key": str(number)}
            body = {"title": str(number)}
            return requests.post(f"{user.base}/tasks", json=body, headers=key).status_code

        user.create()
        reader.cursor().execute("SELECT FROM task")
        reindex = "REINDEX INDEX CONCURRENTLY task_pkey"
        indexing = threads.submit(cluster.execute, reindex, database)
        try:
            eventually(lambda: cluster.execute(phase, database) == [(1,)], 10)
            statuses = Counter(threads.map(create, [n // 4 for n in range(800)]))
        finally:
            reader.rollback()
        indexing.result()
        print(f"\n200 creates, each sent four times, beside REINDEX CONCURRENTLY: {dict(statuses)}")
        assert statuses == {201: 200, 200: 600}
        assert len(user.tasks()) == 201
    quiet(server)


def test_a_schema_that_is_back_is_found_although_no_further_connection_is_allowed(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    role = f"one_{database}"
    cluster.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1")
    cluster.execute(f"GRANT ALL ON SCHEMA public TO {role}", database)
    url = cluster.url(database).replace("//postgres:", f"//{role}:")
    with (
        Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1") as server,
        User(server, "ann") as ann,
    ):
        task = ann.create()
        cluster.execute("ALTER TABLE task RENAME TO away", database)
        assert ann.get("/tasks").status_code == 503
        cluster.execute("ALTER TABLE away RENAME TO task", database)
        eventually(lambda: ann.get("/tasks").status_code == 200, 5)
        assert ann.tasks() == [task]
    quiet(server)


def idle_sockets(which: str) -> list[str]:
    """The lines of `ss` for the sockets that its filter `which` selects, once all are idle.

    Until the last packet is acknowledged, a socket has another timer than that of its keepalive.
    """
    found: list[str] = []

    def are_idle() -> bool:
        command = ["ss", "-tnoH", "state", "established", which]
        found[:] = subprocess.check_output(command, text=True).splitlines()
        return bool(found) and all("timer:(keepalive," in line for line in found)

    eventually(are_idle, 5)
    return found


def test_the_kernel_asks_after_idle_connections(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """So that a router that forgets one is noticed before the next request needs it."""
    url = cluster.url(database, network.port)
    with Server(tmp_path, DATABASE_URL=url) as server:
        assert requests.get(f"{server.url}/ready").status_code == 200
        idle = idle_sockets(f"dport = :{network.port}")
    assert all(WITHIN_3_S.search(line) for line in idle), idle


def test_postgres_asks_after_idle_connections(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """So that it does not keep them for hours if the machine of the service vanishes."""
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1", "TRASH_DAYS": "0"}
    with Server(tmp_path, **options) as server:
        assert requests.get(f"{server.url}/ready").status_code == 200
        found = cluster.execute(
            "SELECT client_port FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND backend_type = 'client backend'"
        )
        ports = " or ".join(f"dport = :{port}" for (port,) in found)
        idle = idle_sockets(f"sport = :{cluster.port} and ( {ports} )")
    assert all(WITHIN_30_S.search(line) for line in idle), idle


def test_a_connection_that_is_gone_is_noticed_within_six_seconds(
    cluster: Cluster, database: str
) -> None:
    """What the kernel was told; no network of these tests loses packets before the kernel."""
    postgres = Postgres(cluster.url(database), "public", threads=20)
    with socket.socket(fileno=os.dup(postgres.connection().fileno())) as connection:
        idle, interval, count = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
    postgres.close()
    assert idle + interval * count <= 6


def test_clients_of_the_database_may_have_another_encoding(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET client_encoding = LATIN1")
    options = {"DATABASE_URL": cluster.url(database), "PGCLIENTENCODING": "LATIN1"}
    with Server(tmp_path, **options) as server, User(server, "\u7528\u6237") as user:
        task = user.create("\u4efb\u52a1")
        assert (task["title"], user.tasks()) == ("\u4efb\u52a1", [task])
    quiet(server)


def test_the_database_may_have_another_time_zone(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET timezone = 'Asia/Kathmandu'")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server, User(server, "a") as user:
        task = user.create()
        (moment,) = cluster.execute("SELECT created_at FROM task", database)[0]
        assert datetime.fromisoformat(task["created_at"]) == moment
        assert user.tasks() == [task]
        assert moment.utcoffset() == timedelta(hours=5, minutes=45)
