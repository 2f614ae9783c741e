"""How often a request waits for the database, counted on the wire."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.network import Network
from support.server import Server, User

from testbed.cluster import Cluster

STALE = {"If-Match": '"00000000-0000-4000-8000-000000000000"'}


def operations(user: User, many: User) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Each operation by its name, with the status of its answer."""
    task = f"/tasks/{user.create('a task')['id']}"
    tag = {"If-Match": user.get(task).headers["ETag"]}
    key = {"Idempotency-Key": "once"}
    body = {"title": "a title", "tags": "home, work"}
    return {
        "list": (200, lambda: user.get("/tasks")),
        "list with filters": (200, lambda: user.get("/tasks?status=pending&tag=home&sort=title")),
        "list of 400": (200, lambda: many.get("/tasks?limit=400")),
        "create": (201, lambda: user.post("/tasks", json=body)),
        "create with a key": (201, lambda: user.post("/tasks", json=body, headers=key)),
        "repeated create": (200, lambda: user.post("/tasks", json=body, headers=key)),
        "get": (200, lambda: user.get(task)),
        "get of a missing task": (404, lambda: user.get(f"/tasks/{uuid4()}")),
        "conditional update": (200, lambda: user.put(task, json=body, headers=tag)),
        "update": (200, lambda: user.patch(task, json=body)),
        "update of a missing task": (404, lambda: user.put(f"/tasks/{uuid4()}", json=body)),
        "toggle": (200, lambda: user.patch(f"{task}/complete")),
        "set": (200, lambda: user.patch(f"{task}/complete", json={"completed": True})),
        "delete": (200, lambda: user.delete(task)),
        "second delete": (404, lambda: user.delete(task)),
        "trash": (200, lambda: user.get("/tasks/deleted")),
        "restore": (200, lambda: user.post(f"{task}/restore")),
        "clear": (200, lambda: user.delete("/tasks/completed/clear")),
        "readiness": (200, lambda: user.get(f"{user.server.url}/ready")),
    }


@pytest.mark.parametrize("pooled", [False, True], ids=["PostgreSQL", "PgBouncer"])
def test_a_request_waits_for_the_database_once(
    request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster, database: str, pooled: bool
) -> None:
    """Twice to tell a 412 from a 404, and for a list of more than 400 tasks."""
    port = request.getfixturevalue("pgbouncer") if pooled else cluster.port
    network = Network(port)
    url = cluster.url(database, network.port) + ("?sslmode=require" if pooled else "")
    found = {}
    with (
        Server(tmp_path, DATABASE_URL=url, TRASH_DAYS="0") as server,
        User(server, "ann") as user,
        User(server, "ben") as many,
    ):
        for number in range(401):
            many.create(f"task {number}")
        task = f"/tasks/{user.create('another task')['id']}"
        twice = {
            "stale update": (412, lambda: user.put(task, json={"title": "b"}, headers=STALE)),
            "list of 401": (200, lambda: many.get("/tasks")),
        }
        for name, (status, call) in (operations(user, many) | twice).items():
            before = network.round_trips
            assert call().status_code == status, name
            found[name] = network.round_trips - before
    network.close()
    print("\nround trips:", ", ".join(f"{name} {number}" for name, number in found.items()))
    assert {name for name, number in found.items() if number != 1} == twice.keys()
    assert {found[name] for name in twice} == {2}
