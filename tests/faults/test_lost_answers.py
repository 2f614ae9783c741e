"""PostgreSQL answers, but the answer is lost on its way."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from support.network import Network, eventually
from support.server import Server, User, change_by_hand, changed_app

from testbed.cluster import Cluster


@pytest.fixture(scope="module")
def network(running_cluster: Cluster) -> Iterator[Network]:
    network = Network(running_cluster.port)
    yield network
    network.close()


@pytest.fixture(scope="module")
def database(running_cluster: Cluster) -> str:
    """The URL of the database, past the network."""
    return running_cluster.url(running_cluster.new_database())


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    running_cluster: Cluster,
    database: str,
    network: Network,
) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("lost")
    url = running_cluster.url(database.rpartition("/")[2], network.port)
    with Server(folder, DATABASE_URL=url) as server:
        yield server
    assert '"level":"error"' not in server.log_file.read_text()


@pytest.mark.parametrize(
    "statement, method, suffix, body, status",
    [
        (b"INSERT", "POST", "", {"title": "new"}, 201),
        (b"UPDATE", "PUT", "/{}", {"title": "new"}, 200),
        (b"UPDATE", "PATCH", "/{}", {"description": "new"}, 200),
        (b"UPDATE", "PATCH", "/{}", {"completed": True}, 200),
        (b"UPDATE", "PATCH", "/{}/complete", None, 200),
        (b"UPDATE", "PATCH", "/{}/complete", {"completed": True}, 200),
        (b"UPDATE", "DELETE", "/{}", None, 200),
        (b"UPDATE", "POST", "/{}/restore", None, 200),
        (b"SELECT", "GET", "/{}", None, 200),
        (b"SELECT", "GET", "", None, 200),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("tagged", [True, False])
def test_an_answer_that_is_lost(
    server: Server,
    network: Network,
    statement: bytes,
    method: str,
    suffix: str,
    body: dict[str, object] | None,
    status: int,
    times: int,
    tagged: bool,
) -> None:
    """The server finds out by itself whether the write was made: it has been, once."""
    with User(server, f"ann-{uuid4()}") as user:
        created = user.post("/tasks", json={"title": "old"})
        task = created.json()
        headers = {"If-Match": created.headers["ETag"]} if tagged and method != "GET" else {}
        path = "/tasks" + suffix.format(task["id"])
        with network.losing(statement, times):
            answer = user.request(method, path, json=body, headers=headers)
        tasks, trash = user.tasks(), user.trash()
    print(f"{method} {suffix}: {answer.status_code}")
    assert answer.status_code == status, answer.text
    if suffix.endswith("/restore"):
        assert tasks == [answer.json()] == [task]
    elif method == "POST":
        assert tasks == [task, answer.json()]
        assert "Idempotent-Replayed" not in answer.headers
    elif method == "DELETE":
        assert tasks == []
        assert [task | {"deleted_at": trash[0]["deleted_at"]}] == trash
    else:
        changes = {"completed": True} if "complete" in suffix else body or {}
        changed = tasks[0]
        moments = {name: changed[name] for name in ("updated_at", "completed_at")}
        assert changed == task | changes | moments
        if changed["completed"]:
            assert task["updated_at"] < changed["completed_at"] <= changed["updated_at"]
        else:
            assert changed["completed_at"] is None
        assert answer.json() in (changed, [changed])


def error(code: bytes) -> bytes:
    """PostgreSQL's answer to a statement that failed."""
    fields = b"SERROR\0C%b\0Mlost\0\0" % code
    return b"E%b%bZ\0\0\0\x05I" % ((4 + len(fields)).to_bytes(4), fields)


@pytest.mark.parametrize(
    ("code", "times"),
    [
        *((code, 1) for code in (b"58000", b"XX000", b"53300", b"40003")),
        *((code, 2) for code in (b"40003", b"08006", b"57P01")),
    ],
)
def test_an_error_comes_instead_of_the_answer(
    server: Server, network: Network, code: bytes, times: int
) -> None:
    """As from a pooler that lost its server, and keeps the connection of its client."""
    network.instead = error(code)
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create()
        with network.losing(b"UPDATE", times):
            answer = user.patch(f"/tasks/{task['id']}/complete")
        network.instead = b""
        assert answer.status_code == 200
        assert user.task(task["id"])["completed"] is True


@pytest.mark.parametrize("code", [b"58000", b"XX000"])
def test_an_error_comes_twice_instead_of_the_answer(
    server: Server, network: Network, code: bytes
) -> None:
    """As from a pooler that loses its server each time."""
    network.instead = error(code)
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create()
        with network.losing(b"UPDATE", 2):
            answer = user.patch(f"/tasks/{task['id']}/complete")
        network.instead = b""
        assert answer.status_code == 503
        assert "may or may not have been made" in answer.json()["detail"]
        assert user.task(task["id"])["completed"] is True


def test_a_statement_that_others_are_in_the_way_of_is_sent_again(
    server: Server, network: Network
) -> None:
    """In a database that is `serializable`, this can happen to it more than once."""
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create()
        network.instead = error(b"40001")
        with network.losing(b"SELECT", 4):
            assert user.tasks() == [task]
        network.instead = b""


@pytest.mark.parametrize("body", [None, {"completed": False}], ids=["toggle", "set"])
def test_a_lost_answer_leaves_no_time_of_completion_behind(
    server: Server, network: Network, body: dict[str, bool] | None
) -> None:
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create(completed=True)
        with network.losing(b"UPDATE"):
            undone = user.patch(f"/tasks/{task['id']}/complete", json=body).json()
        assert (undone["completed"], undone["completed_at"]) == (False, None)
        assert user.tasks() == [undone]


def test_a_lost_answer_to_a_delete_of_nothing_with_a_tag_that_is_old(
    server: Server, network: Network
) -> None:
    with User(server, "ann") as user:
        created = user.post("/tasks", json={"title": "old"})
        path = f"/tasks/{created.json()['id']}"
        user.patch(path, json={"title": "new"})
        with network.losing(b"deleted_at"):
            answer = user.delete(path, headers={"If-Match": created.headers["ETag"]})
        assert answer.status_code == 412
        assert user.get(path).status_code == 200


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_a_clear_counts_the_same_tasks(
    server: Server, network: Network, times: int
) -> None:
    """The tasks that the first try deleted, and no other, also not one that was deleted before."""
    with User(server, f"ann-{uuid4()}") as user:
        user.to_trash("deleted before", completed=True)
        kept, before = user.create("open"), user.trash()
        done = {user.create(f"{number}", completed=True)["id"] for number in range(5)}
        with network.losing(b"UPDATE", times):
            answer = user.delete("/tasks/completed/clear")
        assert (answer.status_code, answer.json()["deleted"]) == (200, 5)
        found = user.trash()
        assert user.tasks() == [kept]
    assert {task["id"] for task in found[:-1]} == done
    assert found[-1:] == before


@pytest.mark.parametrize("path", ["/tasks/{}", "/tasks/completed/clear"])
def test_the_time_of_deletion_is_that_of_the_try_that_succeeded(
    server: Server, database: str, network: Network, path: str
) -> None:
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create(completed=True)
        seen = []

        def look() -> None:
            sql = f"SELECT deleted_at FROM task WHERE id = '{task['id']}'"
            seen.append(change_by_hand(database, sql)[0][0])

        with network.losing(b"UPDATE", meanwhile=look):
            assert user.delete(path.format(task["id"])).status_code == 200
        (found,) = user.trash()
    assert [datetime.fromisoformat(found["deleted_at"])] == seen


@pytest.fixture(scope="module")
def neighbor(
    tmp_path_factory: pytest.TempPathFactory, server: Server, database: str
) -> Iterator[Server]:
    """Another server, which asks the same database past the network."""
    with Server(tmp_path_factory.mktemp("neighbor"), DATABASE_URL=database) as neighbor:
        yield neighbor


@pytest.mark.parametrize("others", [1, 31])
@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    "method, suffix, body, other_method, other_suffix, other_body, expected",
    [
        ("PATCH", "/{}/complete", None, "PATCH", "/{}", {"title": "theirs"}, (True, "theirs")),
        ("PATCH", "/{}/complete", None, "PATCH", "/{}/complete", None, (None, "old")),
        ("PATCH", "/{}/complete", None, "DELETE", "/{}", None, None),
        ("PUT", "/{}", {"title": "mine"}, "PUT", "/{}", {"title": "theirs"}, (False, "theirs")),
        ("PUT", "/{}", {"title": "mine"}, "DELETE", "/{}", None, None),
        ("DELETE", "/{}", None, "POST", "/{}/restore", None, (False, "old")),
        ("POST", "/{}/restore", None, "DELETE", "/{}", None, None),
        ("POST", "/{}/restore/", None, "DELETE", "/{}", None, None),  # Of a task that is there.
    ],
)
def test_an_answer_that_is_lost_while_others_write(
    server: Server,
    neighbor: Server,
    network: Network,
    method: str,
    suffix: str,
    body: dict[str, object] | None,
    other_method: str,
    other_suffix: str,
    other_body: dict[str, object] | None,
    expected: tuple[bool | None, str] | None,
    tagged: bool,
    others: int,
) -> None:
    """The write is made once, and what was written after it stays."""
    with User(server, f"ann-{uuid4()}") as user, User(neighbor, user.name) as other:
        created = user.post("/tasks", json={"title": "old"})
        path = f"/tasks/{created.json()['id']}"
        if suffix.endswith("restore"):
            user.delete(path)

        def write() -> None:
            # All but the last one change nothing that is looked at.
            for number in range(others - 1):
                task = other.patch(path, json={"description": f"{number}"})
                if task.status_code == 404:
                    assert other.post(f"{path}/restore").status_code == 200
            changed = other.request(
                other_method, "/tasks" + other_suffix.format(path[7:]), json=other_body
            )
            assert changed.status_code == 200, changed.text

        headers = {"If-Match": created.headers["ETag"]} if tagged else {}
        with network.losing(b"UPDATE", meanwhile=write):
            answer = user.request(
                method, "/tasks" + suffix.format(path[7:]), json=body, headers=headers
            )
        assert answer.status_code == 200, answer.text
        tasks, trash = other.tasks(), other.trash()
    if expected is None:
        assert (len(tasks), len(trash)) == (0, 1)
    else:
        completed, title = expected
        assert trash == []
        assert [(task["completed"], task["title"]) for task in tasks] == [(bool(completed), title)]


def test_a_lost_answer_to_a_create_while_another_writes(
    server: Server, neighbor: Server, network: Network
) -> None:
    """It is a 201, as it would have been, with the task as it is now."""
    with User(server, f"ann-{uuid4()}") as user, User(neighbor, user.name) as other:

        def write() -> None:
            (task,) = other.tasks()
            assert other.patch(f"/tasks/{task['id']}/complete").status_code == 200

        with network.losing(b"INSERT", meanwhile=write):
            answer = user.post("/tasks", json={"title": "new"}, headers={"Idempotency-Key": "1"})
        assert answer.status_code == 201
        assert "Idempotent-Replayed" not in answer.headers
        assert other.tasks() == [answer.json()]


def test_a_lost_answer_to_a_clear_while_another_restores(
    server: Server, neighbor: Server, network: Network
) -> None:
    """The number is that of the first try; what was restored, or completed since, stays."""
    with User(server, f"ann-{uuid4()}") as user, User(neighbor, user.name) as other:
        done = [user.create(f"{number}", completed=True)["id"] for number in range(5)]
        late = user.create("late")["id"]

        def write() -> None:
            for task in done[:2]:
                assert other.post(f"/tasks/{task}/restore").status_code == 200
            assert other.patch(f"/tasks/{late}/complete").status_code == 200

        with network.losing(b"UPDATE", meanwhile=write):
            answer = user.delete("/tasks/completed/clear")
        assert (answer.status_code, answer.json()["deleted"]) == (200, 5)
        assert [task["id"] for task in other.tasks()] == [*done[:2], late]


def test_toggles_of_one_task_by_many_while_answers_are_lost(
    server: Server, network: Network
) -> None:
    """Each is made once: an odd number of them leaves the task completed, an even number not.

    A task remembers its last 32 writes, so no more run at a time than that.
    """
    seen = set()

    def lose(asked: bytes) -> bool:
        """Lose half of the answers to first attempts."""
        revision = re.search(rb'"revision" = .*?([0-9a-f-]{36})', asked)
        is_first = bool(revision) and revision[1] not in seen
        if is_first:
            seen.add(revision[1])
        return is_first and len(seen) % 2 == 0

    with User(server, f"ann-{uuid4()}") as user:
        path = f"/tasks/{user.create()['id']}/complete"
        expected = False
        for _ in range(8):
            network.lost, network.lose = 0, lose
            with ThreadPoolExecutor(8) as pool:
                answers = [*pool.map(lambda _: user.patch(path).status_code, range(31))]
            network.lose = lambda _: False
            expected = not expected
            assert (answers, network.lost > 10) == ([200] * 31, True)
            assert user.tasks()[0]["completed"] is expected


def test_a_statement_that_arrives_after_its_own_retry_changes_nothing(
    server: Server, network: Network, database: str
) -> None:
    """Such as one that a pooler delivers late."""
    sent: list[bytes] = []

    def lose(asked: bytes) -> bool:
        sent.extend([asked] * (b"UPDATE" in asked))
        return sent == [asked]

    with User(server, f"ann-{uuid4()}") as user, closing(psycopg2.connect(database)) as late:
        path = f"/tasks/{user.create()['id']}/complete"
        network.lose = lose
        answer = user.patch(path)
        network.lose = lambda _: False
        assert (len(sent), answer.json()["completed"]) == (2, True)
        late.autocommit = True
        late.cursor().execute(sent[0][5:].rstrip(b"\0"))  # Behind its type and its length.
        assert user.tasks() == [answer.json()]


def test_a_toggle_that_waits_for_a_lock_while_its_connection_is_cut(
    tmp_path: Path, running_cluster: Cluster, neighbor: Server, network: Network, database: str
) -> None:
    """Its attempts wait side by side with another toggle, and only the first changes the task.

    As in PostgreSQL 13, where a statement whose client has left does not end.
    """
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    app = changed_app(tmp_path, "import database.pool; database.pool.Connection.preamble = ''")
    url = running_cluster.url(database.rpartition("/")[2], network.port)

    def wait_for(number: int) -> None:
        eventually(lambda: change_by_hand(database, waiting) == [(number,)], 2)

    with (
        Server(tmp_path, app=app, DATABASE_URL=url) as server,
        User(server, f"ann-{uuid4()}") as user,
        User(neighbor, user.name) as other,
        ThreadPoolExecutor(2) as pool,
        closing(psycopg2.connect(database)) as connection,
    ):
        path = f"/tasks/{user.create()['id']}/complete"
        connection.cursor().execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.name])
        answers = [pool.submit(user.patch, path)]
        wait_for(1)
        network.cut()
        wait_for(2)
        answers.append(pool.submit(other.patch, path))
        wait_for(3)
        network.cut()
        wait_for(4)
        connection.rollback()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert user.tasks()[0]["completed"] is False
        assert '"level":"error"' not in server.log_file.read_text()
