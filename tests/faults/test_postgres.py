"""A PostgreSQL that restarts, dies, loses answers, or falls silent."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2
import pytest
import requests
from support.network import KILL, Load, Network, eventually
from support.server import HASTY, MIGRATIONS, Server, User, changed_app

from database.postgres import SCHEMA_LOCK
from testbed.cluster import PASSWORD, Cluster


@pytest.fixture
def server(tmp_path: Path, cluster: Cluster, database: str, network: Network) -> Iterator[Server]:
    """A server that reaches PostgreSQL through the network. It never logs an error."""
    with Server(tmp_path, DATABASE_URL=cluster.url(database, network.port)) as server:
        yield server
    log = server.log_file.read_text()
    assert '"level":"error"' not in log
    assert "Traceback" not in log
    assert PASSWORD not in log


def health(server: Server) -> float:
    """How long /health took. Fails if it is not a 200."""
    start = time.monotonic()
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    return time.monotonic() - start


def watched_health(server: Server, going: Callable[[], bool]) -> float:
    """The longest that /health took while `going`."""
    longest = 0.0
    while going():
        longest = max(longest, health(server))
        time.sleep(0.05)
    return longest


@pytest.mark.stops_postgres
def test_a_connection_that_was_cut_while_idle_is_not_used(
    server: Server, cluster: Cluster, network: Network
) -> None:
    """A DELETE of a task that does not exist stays a 404, however often it is sent."""

    def are_cut() -> bool:
        cluster.execute(KILL)  # Again: PostgreSQL does not list a backend that still starts.
        return network.connections == 0

    with User(server, "ann") as user, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: user.get("/tasks"), range(64)))
        for _ in range(5):
            eventually(are_cut, 5)
            assert user.delete(f"/tasks/{uuid4()}").status_code == 404


@pytest.mark.stops_postgres
def test_no_database_at_the_start(tmp_path: Path, cluster: Cluster, database: str) -> None:
    cluster.stop("immediate")
    began = time.monotonic()
    with (
        Server(tmp_path, DATABASE_URL=cluster.url(database)) as server,
        User(server, "ann") as user,
    ):
        up = time.monotonic() - began
        assert up < 5
        for path in (user.base + "/tasks", server.url + "/ready"):
            refused = requests.get(path, timeout=10)
            assert refused.status_code == 503
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert int(refused.headers["Retry-After"]) >= 1
            assert PASSWORD not in refused.text and "127.0.0.1" not in refused.text
        assert health(server) < 0.5
        cluster.start()
        took = eventually(lambda: user.get("/tasks").status_code == 200, 5)
        user.create()
    made = cluster.execute("SELECT name FROM schema_migration", database)
    assert made == [(name,) for name in MIGRATIONS]
    assert PASSWORD not in server.log_file.read_text()
    print(f"\nno database: up in {up:.2f} s; the first answer {took:.2f} s after it came")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.stops_postgres
def test_a_restart_under_load(server: Server, cluster: Cluster, mode: str) -> None:
    with Load(server) as load:
        time.sleep(1)
        cluster.stop(mode)
        away = time.monotonic()
        time.sleep(1)
        cluster.start()
        back = time.monotonic()
        eventually(lambda: load.first_success(back) < float("inf"), 10)
        time.sleep(1)
    load.check(f"restart ({mode})", allowed={200, 201, 503})
    first = load.first_success(back)
    print(f"the first success {first:.2f} s after its return")
    assert first < 2
    assert set(load.statuses(since=back + 2)) <= {200, 201}
    before = Counter(status for _, end, _, status in load.answers if end < away - 0.5)
    assert set(before) <= {200, 201}


@pytest.mark.stops_postgres
def test_every_backend_killed_every_50_ms(server: Server, cluster: Cluster) -> None:
    with Load(server) as load:
        killed = 0
        end = time.monotonic() + 5
        while time.monotonic() < end:
            killed += len(cluster.execute(KILL))
            time.sleep(0.05)
    load.check(f"{killed} backends killed", allowed={200, 201})
    assert killed > 100
    assert load.unknown_flips == 0


def swallow(server: Server, network: Network, seconds: float, what: str) -> None:
    with Load(server, clients=12) as load, ThreadPoolExecutor(1) as pool:
        time.sleep(1)
        going = [True]
        watch = pool.submit(watched_health, server, lambda: going[0])
        network.swallows = True
        time.sleep(seconds)
        network.swallows = False
        back = time.monotonic()
        took = eventually(lambda: load.first_success(back) < float("inf"), 5)
        time.sleep(2)
        going[0] = False
        longest = watch.result()
    load.check(what, allowed={200, 201, 503})
    print(f"/health {longest:.3f} s at most; the first success {took:.2f} s after the return")
    assert load.slowest() < 10
    assert longest < 0.5
    assert load.first_success(back) < 5


@pytest.mark.slow
def test_packets_swallowed_for_20_seconds(server: Server, network: Network) -> None:
    swallow(server, network, 20, "20 s of silence")


@pytest.mark.slow
@pytest.mark.alone
def test_a_router_that_forgets_the_connections_is_met_once(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """The first thread that waits in vain tells the others not to trust their old connections."""
    url = cluster.url(database, network.port)
    server = Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1")
    with server, User(server.wait(), "ann") as user, ThreadPoolExecutor(8) as pool:
        path = f"{user.base}/tasks/{user.create()['id']}"

        def ask(method: str) -> tuple[int, float]:
            start = time.monotonic()
            status = requests.request(
                method, path, json={"completed": True}, timeout=20
            ).status_code
            return status, time.monotonic() - start

        for method, expected in ("GET", 200), ("PUT", 503):
            assert {status for status, _ in pool.map(ask, ["PUT"] * 200)} == {200}
            network.forget()
            first, then = ask(method), list(pool.map(ask, ["PUT"] * 200))
            slowest = max(took for _, took in then)
            print(f"\na router forgets: {method} {first}, then {slowest:.2f} s at most")
            # A write may have arrived, and run as long as it is allowed to: nobody knows.
            assert first[0] == expected and first[1] < 6
            assert {status for status, _ in then} == {200} and slowest < 1


@pytest.mark.slow
def test_the_server_behind_pgbouncer_falls_silent(
    tmp_path: Path, cluster: Cluster, database: str, network: Network, pgbouncer: int
) -> None:
    network.sends_again = False  # PgBouncer closes, and does not reset: a write may arrive late.
    url = cluster.url(database, pgbouncer) + "?sslmode=require"
    with Server(tmp_path, DATABASE_URL=url) as server:
        swallow(server, network, 20, "20 s of silence behind PgBouncer")
    log = server.log_file.read_text()
    assert '"level":"error"' not in log and PASSWORD not in log


@pytest.mark.slow
def test_everything_works_behind_pgbouncer(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int
) -> None:
    """In transaction mode, with TLS and SCRAM; what is pasted from Prisma is taken."""
    url = cluster.url(database, pgbouncer) + "?sslmode=require&pgbouncer=true&connection_limit=1"
    with Server(tmp_path, DATABASE_URL=url) as server:
        with Load(server, clients=16) as load:
            time.sleep(3)
        load.check("behind PgBouncer", allowed={200, 201})
    assert PASSWORD not in server.log_file.read_text()


@pytest.mark.slow
def test_200_requests_at_once_on_a_database_that_takes_2_seconds(
    server: Server, network: Network
) -> None:
    with User(server, "ann") as user:
        path = f"{user.base}/tasks/{user.create()['id']}"
    most, going = [0], [True]

    def count() -> None:
        # The server's own: a backend whose client has left goes on for a while.
        workers = server.workers
        while going[0]:
            found = [each for worker in workers for each in worker.net_connections("tcp4")]
            held = [each.raddr for each in found if each.status == psutil.CONN_ESTABLISHED]
            most[0] = max(most[0], sum(bool(at) and at.port == network.port for at in held))
            time.sleep(0.1)

    def ask(_: int) -> tuple[int, float, str]:
        start = time.monotonic()
        answer = requests.get(path, timeout=30)
        return answer.status_code, time.monotonic() - start, answer.headers.get("Retry-After", "")

    counter = threading.Thread(target=count)
    counter.start()
    network.delay = 2.0
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    going[0] = False
    network.delay = 0.0
    counter.join()
    statuses = Counter(status for status, _, _ in answers)
    longest = max(took for _, took, _ in answers)
    print(f"\n200 at once: {dict(statuses)}, longest {longest:.2f} s, {most[0]} connections")
    assert set(statuses) <= {200, 503}
    assert all(after for status, _, after in answers if status == 503)
    assert longest < 15
    # All 16 slots of a worker, and no more than two workers have, however they share the clients.
    assert 16 <= most[0] <= 32


def test_the_schema_is_made_by_one_process_at_a_time(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    with closing(psycopg2.connect(cluster.url(database))) as first:
        first.cursor().execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        with Server(tmp_path, app=HASTY, DATABASE_URL=cluster.url(database)) as server:
            ready = requests.get(f"{server.url}/ready")
            assert ready.status_code == 503
            assert "being upgraded" in ready.json()["detail"]
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            assert cluster.execute(tables, database) == []
            first.rollback()
            eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 5)


def test_servers_that_start_together_see_what_the_first_one_made(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Also if each transaction of the database sees only what was there when it began."""
    url = cluster.url(database)
    cluster.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    with closing(psycopg2.connect(url)) as other:
        other.cursor().execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        servers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            servers.append(Server(tmp_path / name, DATABASE_URL=url, WEB_CONCURRENCY="1"))
        trying = (
            "SELECT count(*) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND query LIKE 'SELECT pg_try_advisory_xact_lock%'"
        )
        eventually(lambda: cluster.execute(trying) == [(2,)], 10)
        other.rollback()
        with servers[0].wait() as one, servers[1].wait() as two:
            for server in (one, two):
                eventually(lambda s=server: requests.get(f"{s.url}/ready").ok, 5)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_database_with_another_isolation_works(
    tmp_path: Path, cluster: Cluster, database: str, isolation: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    with Server(tmp_path, DATABASE_URL=cluster.url(database), WEB_CONCURRENCY="4") as server:
        with Load(server, clients=4) as load:
            time.sleep(1)
        load.check(isolation, allowed={200, 201})


def test_a_database_in_another_time_zone_tells_the_time_in_utc(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    cluster.execute(f"ALTER DATABASE {database} SET timezone = 'Asia/Kathmandu'")
    url = cluster.url(database)
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
        tasks = [user.create(title) for title in "ab"]
        for name in ("created_at", "updated_at"):
            age = datetime.now(UTC) - datetime.fromisoformat(tasks[0][name])
            assert abs(age) < timedelta(minutes=1)
        link = user.get("/tasks?limit=1").links["next"]["url"]
        assert user.get(server.url + link).json() == tasks[1:]


def test_text_is_ordered_by_code_point_whatever_the_locale(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """No list can show it here: this PostgreSQL knows no locale that orders in another way."""
    with Server(tmp_path, DATABASE_URL=cluster.url(database)):
        found = cluster.execute(
            "SELECT column_name, collation_name FROM information_schema.columns"
            " WHERE table_name = 'task' AND collation_name IS NOT NULL",
            database,
        )
    assert dict(found) == dict.fromkeys(("user_id", "title_lower", "due_date"), "C")


def test_a_database_that_cannot_hold_every_text_is_refused(
    tmp_path: Path, cluster: Cluster
) -> None:
    name = f"db_{uuid4().hex}"
    cluster.execute(f"CREATE DATABASE {name} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    with Server(tmp_path, DATABASE_URL=cluster.url(name)) as server:
        assert requests.get(f"{server.url}/ready").status_code == 503
    assert "encoding is not UTF8" in server.log_file.read_text()


def test_a_database_that_is_restored_to_before_its_schema(
    server: Server, cluster: Cluster, database: str
) -> None:
    with User(server, "ann") as user:
        user.create()
        cluster.execute("DROP TABLE task, schema_migration", database)
        eventually(lambda: user.get("/tasks").status_code == 200, 5)
        assert user.tasks() == []


def test_a_database_that_is_restored_to_an_older_schema(
    server: Server, cluster: Cluster, database: str
) -> None:
    with User(server, "ann") as user:
        task = user.create()
        cluster.execute(
            "ALTER TABLE task DROP COLUMN recent_writes;"
            "DELETE FROM schema_migration WHERE name = '0005_recent_writes'",
            database,
        )
        path = f"/tasks/{task['id']}"
        eventually(lambda: user.put(path, json={"title": "new"}).status_code == 200, 5)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["wrong-password", "no-such-user", "no-such-database"])
def test_no_word_of_the_password(tmp_path: Path, cluster: Cluster, database: str, url: str) -> None:
    good = cluster.url(database)
    wrong = {
        "wrong-password": good.replace(PASSWORD, PASSWORD + "-not"),
        "no-such-user": good.replace("postgres:", "nobody:"),
        "no-such-database": cluster.url("nothing"),
    }[url]
    with Server(tmp_path, DATABASE_URL=wrong, LOG_LEVEL="DEBUG") as server:
        answers = [requests.get(f"{server.url}{path}") for path in ("/ready", "/api/a/tasks")]
    assert [answer.status_code for answer in answers] == [503, 503]
    seen = server.log_file.read_text() + "".join(answer.text for answer in answers)
    assert PASSWORD not in seen
    assert "database unavailable" in seen


def test_a_bug_leaves_no_connection_behind(tmp_path: Path, cluster: Cluster, database: str) -> None:
    """The error's traceback would hold it until Python's garbage collector finds both."""
    bug = "import gc, lists; gc.disable(); lists.serialize = lambda *_: 1 / 0"
    url, app = cluster.url(database), changed_app(tmp_path, bug)
    server = Server(tmp_path, app=app, DATABASE_URL=url, WEB_CONCURRENCY="1")
    with server, User(server, "ann") as ann:
        for _ in range(10):
            assert ann.get("/tasks").status_code == 500
        count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
        # PostgreSQL counts one until it has noticed its end.
        eventually(lambda: cluster.execute(count)[0][0] <= 1, 2)


@pytest.mark.stops_postgres
def test_the_schema_is_made_once_by_many_clients(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Also when the first requests have to make it, all at the same moment."""
    cluster.stop("fast")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server:
        cluster.start()
        with ThreadPoolExecutor(32) as pool:
            asked = pool.map(
                lambda n: requests.post(f"{server.url}/api/u{n}/tasks", json={"title": "x"}),
                range(64),
            )
            statuses = Counter(answer.status_code for answer in asked)
    print(f"\nfirst requests at once: {dict(statuses)}")
    assert set(statuses) <= {201, 503}
    assert statuses[201] >= 32
    assert cluster.execute("SELECT count(*) FROM task", database) == [(statuses[201],)]
