"""PostgreSQL answers, but the answer is lost on its way."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest
from support.network import Network
from support.server import Server, User, change_by_hand

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
        network.lost = 0
        network.lose = lambda asked: network.lost < times and statement in asked
        headers = {"If-Match": created.headers["ETag"]} if tagged and method != "GET" else {}
        path = "/tasks" + suffix.format(task["id"])
        answer = user.request(method, path, json=body, headers=headers)
        network.lose = lambda _: False
        tasks, trash = user.tasks(), user.trash()
    print(f"\n{method} {suffix}: {network.lost} answers lost, then {answer.status_code}")
    assert network.lost == times
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


@pytest.mark.parametrize("body", [None, {"completed": False}], ids=["toggle", "set"])
def test_a_lost_answer_leaves_no_time_of_completion_behind(
    server: Server, network: Network, body: dict[str, bool] | None
) -> None:
    with User(server, f"ann-{uuid4()}") as user:
        task = user.create(completed=True)
        network.lost = 0
        network.lose = lambda asked: network.lost < 1 and b"UPDATE" in asked
        undone = user.patch(f"/tasks/{task['id']}/complete", json=body).json()
        network.lose = lambda _: False
        assert (undone["completed"], undone["completed_at"], network.lost) == (False, None, 1)
        assert user.tasks() == [undone]


def test_a_lost_answer_to_a_delete_of_nothing_with_a_tag_that_is_old(
    server: Server, network: Network
) -> None:
    with User(server, "ann") as user:
        created = user.post("/tasks", json={"title": "old"})
        path = f"/tasks/{created.json()['id']}"
        user.patch(path, json={"title": "new"})
        network.lost = 0
        network.lose = lambda asked: network.lost < 1 and b"deleted_at" in asked
        answer = user.delete(path, headers={"If-Match": created.headers["ETag"]})
        assert (answer.status_code, network.lost) == (412, 1)
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
        network.lost = 0
        network.lose = lambda asked: network.lost < times and b"UPDATE" in asked
        answer = user.delete("/tasks/completed/clear")
        network.lose = lambda _: False
        print(f"\nclear: {network.lost} answers lost, then {answer.status_code} {answer.text}")
        assert network.lost == times
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

        def lose(asked: bytes) -> bool:
            if network.lost or b"UPDATE" not in asked:
                return False
            sql = f"SELECT deleted_at FROM task WHERE id = '{task['id']}'"
            seen.append(change_by_hand(database, sql)[0][0])
            return True

        network.lost, network.lose = 0, lose
        assert user.delete(path.format(task["id"])).status_code == 200
        network.lose = lambda _: False
        (found,) = user.trash()
    assert [datetime.fromisoformat(found["deleted_at"])] == seen
