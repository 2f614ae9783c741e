"""A slow PostgreSQL: a statement ends by itself, and is not sent while it may still run."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
import requests
from support.network import Load, Network, eventually
from support.server import HASTY, REAL, Server, User

from testbed.cluster import Cluster, free_port

SLOTS = 32
CANCELED = "The database took too long. Nothing has changed. Try again soon."
RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"


@pytest.fixture
def app(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", REAL)


@pytest.fixture
def server(
    tmp_path: Path, cluster: Cluster, database: str, network: Network, app: str
) -> Iterator[Server]:
    with Server(tmp_path, app=app, DATABASE_URL=cluster.url(database, network.port)) as server:
        # On a busy machine, the migration can take longer than the short deadlines.
        eventually(lambda: requests.get(f"{server.url}/ready", timeout=10).ok, 10)
        yield server
    assert '"level":"error"' not in server.log_file.read_text()


with_short_and_real_deadlines = pytest.mark.parametrize(
    "app",
    [HASTY, pytest.param(REAL, marks=pytest.mark.slow)],
    ids=["short", "real"],
    indirect=True,
)


@contextmanager
def locked(cluster: Cluster, database: str, sql: str) -> Iterator[None]:
    """Somebody else's transaction, which has done `sql` and does not end."""
    with closing(psycopg2.connect(cluster.url(database))) as connection:
        connection.cursor().execute(sql)
        yield
        connection.rollback()


@contextmanager
def most_backends(cluster: Cluster, database: str) -> Iterator[list[int]]:
    """The highest number of connections to the database that was seen inside."""
    most, going = [0], [True]

    def count() -> None:
        while going[0]:
            most[0] = max(most[0], cluster.execute(BACKENDS.format(database))[0][0])
            time.sleep(0.1)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield most
    finally:
        going[0] = False
        counter.join()


@with_short_and_real_deadlines
@pytest.mark.parametrize("tagged", [False, True], ids=["any tag", "If-Match"])
def test_a_flip_of_a_row_that_is_locked_changes_nothing_and_says_so(
    server: Server, cluster: Cluster, database: str, tagged: bool
) -> None:
    with User(server, "ann") as user:
        created = user.post("/tasks", json={"title": "x"})
        task = created.json()
        path = f"/tasks/{task['id']}/complete"
        headers = {"If-Match": created.headers["ETag"]} if tagged else {}
        with locked(cluster, database, f"SELECT 1 FROM task WHERE id = '{task['id']}' FOR UPDATE"):
            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda _: user.patch(path, headers=headers), range(2)))
            assert cluster.execute(RUNNING, database) == [(0,)]
        assert user.task(task["id"]) == task
        flips = [user.patch(path, headers=headers).status_code for _ in range(2)]
        changed = user.task(task["id"])
    took = max(answer.elapsed.total_seconds() for answer in answers)
    print(f"\na locked row: {[answer.status_code for answer in answers]} after {took:.2f} s")
    for answer in answers:
        assert answer.status_code == 503
        assert answer.json()["detail"] == CANCELED
    assert took < 6
    assert flips == ([200, 412] if tagged else [200, 200])
    assert changed["completed"] is tagged


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_write_that_waits_for_a_lock_and_gets_it_is_made_once(
    server: Server, cluster: Cluster, database: str, method: str
) -> None:
    with User(server, "ann") as user, ThreadPoolExecutor(1) as pool:
        task = user.create()
        with locked(cluster, database, "LOCK TABLE task"):
            answer = pool.submit(user.request, method, f"/tasks/{task['id']}", json={"title": "y"})
            time.sleep(1)
        assert answer.result().status_code == 200
        assert [task["title"] for task in user.tasks()] == (["y"] if method == "PUT" else [])


@pytest.mark.slow
def test_a_locked_table_piles_up_nothing(server: Server, cluster: Cluster, database: str) -> None:
    with Load(server, clients=40) as load, most_backends(cluster, database) as most:
        time.sleep(1)
        with locked(cluster, database, "LOCK TABLE task"):
            time.sleep(12)
        back = time.monotonic()
        eventually(lambda: load.first_success(back) < float("inf"), 5)
        time.sleep(2)
    load.check("a table locked for 12 s", allowed={200, 201, 503})
    print(f"{most[0] - 1} connections at most, of {SLOTS} slots")
    assert most[0] - 1 <= SLOTS
    assert cluster.execute(RUNNING, database) == [(0,)]


@pytest.mark.slow
@pytest.mark.parametrize("swallows", [False, True], ids=["locked", "silent"])
def test_a_write_that_nobody_answers_leaves_nothing_behind(
    server: Server, cluster: Cluster, database: str, network: Network, swallows: bool
) -> None:
    """The server ends its statement, whether or not anybody is still there to hear of it."""
    with User(server, "ann") as user:
        task = user.create()
        path = f"/tasks/{task['id']}/complete"
        with locked(cluster, database, "LOCK TABLE task"), ThreadPoolExecutor(8) as pool:
            flips = [pool.submit(user.patch, path) for _ in range(8)]
            time.sleep(1)
            network.swallows = swallows
            answers = [flip.result() for flip in flips]
            time.sleep(0.5)
            running = cluster.execute(RUNNING, database)
            network.swallows = False
        user.close()
        eventually(lambda: user.get(f"/tasks/{task['id']}").status_code == 200, 10)
        assert user.task(task["id"]) == task
    details = Counter(answer.json()["detail"] for answer in answers)
    print(f"\n8 flips of a locked table, {'silent' if swallows else 'locked'}: {dict(details)}")
    assert {answer.status_code for answer in answers} == {503}
    assert all(("may or may not" in detail) is swallows for detail in details)
    assert running == [(0,)]
    assert max(answer.elapsed.total_seconds() for answer in answers) < 8


@pytest.mark.slow
def test_a_write_that_queued_in_a_full_pooler_leaves_nothing_behind(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int
) -> None:
    """It gets its connection late, and its own deadline would end it long after its 503."""
    url = cluster.url(database, pgbouncer) + "?sslmode=require"
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
        tasks = [user.create() for _ in range(30)]

        def flip(task: dict[str, object]) -> requests.Response:
            return requests.patch(f"{user.base}/tasks/{task['id']}/complete", timeout=20)

        with locked(cluster, database, "LOCK TABLE task"), ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(flip, tasks))
            time.sleep(1)
            running = cluster.execute(RUNNING, database)
        time.sleep(0.5)
        assert {answer.status_code for answer in answers} == {503}
        assert running == [(0,)]
        assert not [task for task in user.tasks() if task["completed"]]


@with_short_and_real_deadlines
def test_a_write_that_was_given_up_does_not_arrive_later(
    server: Server, network: Network, app: str
) -> None:
    """Whoever looks after the answer whether the flip was made sees what will stay."""
    with User(server, "ann") as user:
        task = user.create()
        network.swallows = True
        answer = user.patch(f"/tasks/{task['id']}/complete")
        network.swallows = False
        assert answer.status_code == 503 and "may or may not" in answer.json()["detail"]
        assert answer.headers["Retry-After"] == ("1" if app == HASTY else "4")
        time.sleep(0.5)
        assert user.task(task["id"]) == task


@with_short_and_real_deadlines
@pytest.mark.stops_postgres
def test_an_outage_is_answered_and_survived(
    server: Server, cluster: Cluster, database: str
) -> None:
    """Requests wait for a server that restarts, but not longer than 8 s, nor all of them."""
    with User(server, "ann") as user:
        path = f"{user.base}/tasks/{user.create()['id']}"
    cluster.stop("immediate")
    with ThreadPoolExecutor(300) as pool:
        answers = list(pool.map(lambda _: timed(path), range(300)))
        cluster.start()
    took = sorted(seconds for _, seconds in answers)
    print(
        f"\n300 requests in an outage: 503 after {took[0]:.2f} to {took[-1]:.2f} s,"
        f" all but {SLOTS} after {took[-1 - SLOTS]:.2f} s"
    )
    assert {status for status, _ in answers} == {503}
    assert took[-1] < 9
    assert took[-1 - SLOTS] < 2
    assert timed(path)[0] == 200


@pytest.mark.parametrize("app", [HASTY], indirect=True)
def test_a_request_tries_seldom_in_an_outage(server: Server, network: Network) -> None:
    """Its pauses grow: a database that comes back has other work than refused connections."""
    network.lose = lambda _: True
    assert requests.get(f"{server.url}/ready", timeout=10).status_code == 503
    network.lose = lambda _: False
    print(f"\na request in an outage: {network.lost} attempts")
    assert 3 < network.lost < 50


def timed(url: str) -> tuple[int, float]:
    start = time.monotonic()
    return requests.get(url, timeout=30).status_code, time.monotonic() - start


def test_requests_wait_for_each_other_again_after_an_outage(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """With five threads, one at a time may ask the database."""
    options = {"DATABASE_URL": cluster.url(database, network.port), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=HASTY, THREADS="5", **options) as server:
        ready = f"{server.url}/ready"
        eventually(lambda: requests.get(ready).ok, 10)
        network.upstream = free_port()
        network.cut()
        assert requests.get(ready).status_code == 503
        network.upstream = cluster.port
        eventually(lambda: requests.get(ready).ok, 10)
        network.delay = 0.05
        with ThreadPoolExecutor(4) as pool:
            assert all(each.ok for each in pool.map(requests.get, [ready] * 4))
        network.delay = 0.0


@with_short_and_real_deadlines
def test_the_statements_of_a_request_have_one_deadline(
    server: Server, network: Network, app: str
) -> None:
    """The second statement of a conditional write finds out why the first one met no row."""
    with User(server, "ann") as user:
        path = f"/tasks/{user.create()['id']}"
        network.delay = 4.5 / 4 if app == HASTY else 4.5
        start = time.monotonic()
        answer = user.put(path, json={"title": "y"}, headers={"If-Match": '"x"'})
        took = time.monotonic() - start
        network.delay = 0.0
    print(f"\na conditional write with 4.5 s on each way: {answer.status_code}, {took:.2f} s")
    assert answer.status_code == 503
