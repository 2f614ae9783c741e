"""Does a service do the work that is measured? Raises AssertionError if it does not."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import requests

from bench.data import Database
from bench.services import Instance, Service

FIELDS = ("id", "user_id", "title", "description", "completed", "created_at", "updated_at")
# JavaScript's dates have milliseconds.
EXACT = timedelta(milliseconds=1)


def check(service: Service, instance: Instance, database: Database) -> None:
    """Ask for everything once, and compare the answers with the rows."""
    session = requests.Session()

    def ask(method: str, path: str, *statuses: int, **options: Any) -> Any:
        answer = session.request(method, f"{instance.url}/api/{path}", timeout=10, **options)
        what = f"{service.name}: {method} {path}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code in statuses, what
        assert "json" in answer.headers["Content-Type"], what
        return answer.json()

    def rows(user: str) -> list[tuple[Any, ...]]:
        return database.execute(
            f"SELECT {', '.join(FIELDS)} FROM {service.table}"
            f" WHERE user_id = '{user}' ORDER BY created_at"
        )

    def same(tasks: list[Any], user: str) -> None:
        found = rows(user)
        assert len(tasks) == len(found), service.name
        for task, row in zip(tasks, found, strict=True):
            assert task.keys() == set(FIELDS), (service.name, task)
            *shown, created, updated = (task[name] for name in FIELDS)
            assert (*shown,) == (str(row[0]), *row[1:5]), (service.name, task, row)
            for text, moment in ((created, row[5]), (updated, row[6])):
                assert abs(datetime.fromisoformat(text) - moment) < EXACT, (service.name, task, row)

    for user, count in (("a1", 10), ("b1", 100), ("c1", 1000)):
        tasks = ask("GET", f"{user}/tasks", 200)
        assert len(tasks) == count, service.name
        same(tasks, user)
    first = f"a1/tasks/{ask('GET', 'a1/tasks', 200)[0]['id']}"
    assert ask("GET", first, 200) == ask("GET", "a1/tasks", 200)[0]
    assert ask("GET", "n0/tasks", 200) == [], service.name

    text = {"title": "Buy milk", "description": "Two bottles"}
    task = ask("POST", "n0/tasks", 201, json=text)
    same([task], "n0")
    path = f"n0/tasks/{task['id']}"
    assert text.items() <= task.items() and task["completed"] is False, task
    for change in ({"title": "Buy bread"}, {"description": None}, {"completed": True}, text):
        changed = ask("PUT", path, 200, json=change)
        assert changed == task | change | {"updated_at": changed["updated_at"]}, changed
        assert changed["updated_at"] >= task["updated_at"], changed
        same([changed], "n0")
        task = changed
    for completed in (False, True):
        task = ask("PATCH", f"{path}/complete", 200)
        assert task["completed"] is completed, (service.name, task)
        same([task], "n0")

    for wrong in ({}, {"title": ""}, {"title": "x" * 501}, {"title": "x", "completed": "?"}):
        ask("POST", "n0/tasks", 400, 422, json=wrong)
    ask("PUT", path, 400, 422, json={"title": "x" * 501})
    ask("GET", f"n0/tasks/{uuid4()}", 404)
    ask("GET", f"a1/tasks/{task['id']}", 404)
    same([task], "n0")
    assert ask("DELETE", path, 200) == {"message": "Task deleted successfully"}, service.name
    ask("DELETE", path, 404)
    same([], "n0")
