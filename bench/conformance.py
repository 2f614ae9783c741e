"""Checks that a service does the work that is measured. Raises AssertionError if it does not."""

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import requests

from bench.data import PEER_TASK, QUERIES, Database
from bench.services import Instance, Service

FIELDS = tuple(PEER_TASK)
TEXT = {"title": "Buy milk", "description": "Two bottles"}
SORTABLE = {"priority": "high", "due_date": "2026-03-01", "tags": ["home", "errands"]}
DEFAULTS = {
    "description": None,
    "completed": False,
    "priority": "medium",
    "due_date": None,
    "tags": [],
    "completed_at": None,
}
# JavaScript's dates have milliseconds.
EXACT = timedelta(milliseconds=1)
RANKS = {"low": 1, "medium": 2, "high": 3}
# The tasks that each filter keeps, and the key that each list is sorted by.
KEEPS: dict[str, Callable[[Any], bool]] = {
    "filter by status": lambda task: not task["completed"],
    "filter by priority": lambda task: task["priority"] == "high",
    "filter by tag": lambda task: "work" in task["tags"],
    "filter by due date": lambda task: "2026-01-10" <= (task["due_date"] or "") <= "2026-02-09",
    "search": lambda task: "the bank" in task["title"].lower(),
}
KEYS: dict[str, Callable[[Any], Any]] = {
    "sort by title": lambda task: task["title"].lower(),
    "sort by due date": lambda task: task["due_date"],
    "sort by priority": lambda task: RANKS[task["priority"]],
}


class Checker:
    """Sends requests to a service, and compares the answers with the rows."""

    def __init__(self, service: Service, instance: Instance, database: Database) -> None:
        self.service, self.instance, self.database = service, instance, database
        self.session = requests.Session()

    def ask(self, method: str, path: str, *statuses: int, **options: Any) -> Any:
        url = f"{self.instance.url}/api/{path}"
        answer = self.session.request(method, url, timeout=10, **options)
        what = f"{self.service.name}: {method} {path}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code in statuses, what
        assert "json" in answer.headers["Content-Type"], what
        return answer.json()

    def same(self, tasks: list[Any], user: str) -> None:
        """The tasks are all of the user's, oldest first, with all fields."""
        rows = self.database.execute(
            f"SELECT {', '.join(FIELDS)} FROM {self.service.table} AS t WHERE user_id = '{user}'"
            # Only one of the tables has this column.
            " AND to_jsonb(t) ->> 'deleted_at' IS NULL ORDER BY created_at"
        )
        assert len(tasks) == len(rows), self.service.name
        for task, row in zip(tasks, rows, strict=True):
            assert task.keys() == set(FIELDS), (self.service.name, task)
            for name, value in zip(FIELDS, row, strict=True):
                assert equal(task[name], value, name), (self.service.name, name, task, row)


def equal(shown: Any, stored: Any, name: str) -> bool:
    """Whether a field of an answer is what its column has."""
    if isinstance(stored, datetime) and isinstance(shown, str):
        return abs(datetime.fromisoformat(shown) - stored) < EXACT
    if name == "tags" and isinstance(stored, str):
        return str(shown) == stored.replace('"', "'").replace(",", ", ")
    return bool(shown == (str(stored) if name == "id" or isinstance(stored, date) else stored))


def check_reads(checker: Checker) -> None:
    for user, count in (("a1", 10), ("b1", 100), ("c1", 1000)):
        tasks = checker.ask("GET", f"{user}/tasks", 200)
        assert len(tasks) == count, checker.service.name
        checker.same(tasks, user)
    first = checker.ask("GET", "a1/tasks", 200)[0]
    assert checker.ask("GET", f"a1/tasks/{first['id']}", 200) == first
    assert checker.ask("GET", "n0/tasks", 200) == [], checker.service.name


def check_queries(checker: Checker) -> None:
    """Every filter and sort key, in both orders, and what is not one."""

    def lists(*query: str) -> list[Any]:
        tasks = checker.ask("GET", f"b1/tasks?{'&'.join(query)}", 200)
        assert isinstance(tasks, list)
        return tasks

    def expect(tasks: list[Any], *query: str) -> None:
        assert lists(*query) == tasks, (name, query)

    name = checker.service.name
    every = lists()
    for operation, keeps in KEEPS.items():
        kept = [task for task in every if keeps(task)]
        assert 0 < len(kept) < len(every)
        expect(kept, QUERIES[operation])
    for operation, key in KEYS.items():
        query = QUERIES[operation].partition("&")[0]
        for order in ("asc", "desc"):
            found = lists(query, f"order={order}")
            assert sorted(map(str, found)) == sorted(map(str, every)), (name, operation)
            keys = [key(task) for task in found]
            known = sorted((each for each in keys if each is not None), reverse=order == "desc")
            assert keys == known + [None] * (len(keys) - len(known)), (name, operation, order)
    expect(every[::-1], "order=desc")

    late = [task for task in every if task["completed"] and "work" in task["tags"]]
    expect(late, "status=completed", "tag=work")
    expect([task for task in every if "errands" in task["tags"]], "tag=home", "tag=errands")
    expect(
        [task for task in every if RANKS[task["priority"]] != 2], "priority=low", "priority=high"
    )
    expect(every, "search=BE%20DONE")
    for wildcard in ("%25", "_", "%5C"):
        expect([], f"search={wildcard}")
    for wrong in ("status=maybe", "due_date_from=soon", "sort=color", "order=up"):
        checker.ask("GET", f"b1/tasks?{wrong}", 400, 422)


def check_writes(checker: Checker) -> None:
    """Create, update, flip and delete a task of a user who has no other."""
    name = checker.service.name
    task = checker.ask("POST", "n0/tasks", 201, json=TEXT | SORTABLE)
    checker.same([task], "n0")
    assert (DEFAULTS | TEXT | SORTABLE).items() <= task.items(), (name, task)
    path = f"n0/tasks/{task['id']}"
    for change in (
        {"title": "Buy bread"},
        {"description": None},
        {"completed": True},
        {"priority": "urgent", "due_date": None, "tags": []},
        {"completed": True, "tags": ["work"]},
        TEXT | SORTABLE,
        TEXT | SORTABLE,
    ):
        time.sleep(EXACT.total_seconds())
        changed = checker.ask("PUT", path, 200, json=change)
        moved = {each: changed[each] for each in ("updated_at", "completed_at")}
        assert changed == task | change | moved, (name, changed)
        assert changed["updated_at"] > task["updated_at"], (name, changed)
        if task["completed"]:
            assert changed["completed_at"] == task["completed_at"], (name, changed)
        check_completion(name, changed)
        checker.same([changed], "n0")
        task = changed
    for completed in (False, True):
        task = checker.ask("PATCH", f"{path}/complete", 200)
        assert task["completed"] is completed, (name, task)
        check_completion(name, task)
        checker.same([task], "n0")

    checker.ask("PUT", path, 400, 422, json={"title": "x" * 501})
    checker.ask("GET", f"n0/tasks/{uuid4()}", 404)
    checker.ask("GET", f"a1/tasks/{task['id']}", 404)
    checker.same([task], "n0")
    deleted = checker.ask("DELETE", path, 200)
    assert deleted == {"message": "Task deleted successfully"}, name
    checker.ask("DELETE", path, 404)
    checker.same([], "n0")


def check_trash(checker: Checker) -> None:
    task = checker.ask("POST", "n2/tasks", 201, json={"title": "x", "completed": True})
    assert checker.ask("DELETE", "n2/tasks/completed/clear", 200)["deleted"] == 1
    (deleted,) = checker.ask("GET", "n2/tasks/deleted", 200)
    assert deleted == task | {"deleted_at": deleted["deleted_at"]}
    assert checker.ask("POST", f"n2/tasks/{task['id']}/restore", 200) == task
    checker.same([task], "n2")


def check_completion(name: str, task: dict[str, Any]) -> None:
    """A completed task has the time of its completion, which is recent; another has none."""
    assert task["completed"] is (task["completed_at"] is not None), (name, task)
    if task["completed"]:
        age = datetime.now(UTC) - datetime.fromisoformat(task["completed_at"])
        assert abs(age) < timedelta(minutes=1), (name, task)


def check_input(checker: Checker) -> None:
    """Defaults, tags without blanks and repetitions, and what is refused."""
    task = checker.ask("POST", "n0/tasks", 201, json={"title": "x"})
    assert (DEFAULTS | {"title": "x"}).items() <= task.items(), task
    checker.ask("DELETE", f"n0/tasks/{task['id']}", 200)
    body = {"title": "x", "completed": True, "tags": [" home ", "", "work", "home"]}
    task = checker.ask("POST", "n0/tasks", 201, json=body)
    assert task["tags"] == ["home", "work"], (checker.service.name, task)
    check_completion(checker.service.name, task)
    checker.ask("DELETE", f"n0/tasks/{task['id']}", 200)
    for wrong in (
        {},
        {"title": ""},
        {"title": "x" * 501},
        {"title": "x", "completed": "?"},
        {"title": "x", "priority": "x" * 21},
        {"title": "x", "due_date": "soon"},
        {"title": "x", "tags": ["x" * 51]},
        {"title": "x", "tags": [str(n) for n in range(21)]},
        {"title": "x", "tags": [{}]},
    ):
        checker.ask("POST", "n0/tasks", 400, 422, json=wrong)
    checker.same([], "n0")


# What a service must do for each of its operations.
CHECKS: dict[str, Callable[[Checker], None]] = {
    "list 10": check_reads,
    "search": check_queries,
    "delete": check_writes,
    "create": check_input,
    "restore": check_trash,
}


def check(service: Service, instance: Instance, database: Database) -> None:
    """Ask for everything once, and compare the answers with the rows."""
    checker = Checker(service, instance, database)
    for operation, check_it in CHECKS.items():
        if service.has(operation):
            check_it(checker)


def check_floor(floor: Instance, ours: Instance) -> None:
    """The bare statements' routes answer what this service does, and write what it reads."""

    def send(to: Instance, method: str, path: str = "", body: Any = None, user: str = "b1") -> Any:
        url = f"{to.url}/api/{user}/tasks{path}"
        answer = requests.request(method, url, json=body, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    (first, *_) = tasks = send(ours, "GET")
    assert send(floor, "GET") == tasks
    assert send(floor, "GET", f"/{first['id']}") == first
    created = send(floor, "POST", body=TEXT | SORTABLE, user="n1")
    path = f"/{created['id']}"
    for method, at, body in (("PUT", path, TEXT | SORTABLE), ("PATCH", f"{path}/complete", None)):
        assert send(ours, "GET", path, user="n1") == created
        written = send(floor, method, at, body, user="n1")
        assert written["updated_at"] > created["updated_at"]
        created = written
    assert created["completed"] and created["completed_at"] == created["updated_at"]
    assert send(ours, "GET", path, user="n1") == created
    message = send(floor, "DELETE", path, user="n1")
    other = send(ours, "POST", body=TEXT, user="n1")
    assert message == send(ours, "DELETE", f"/{other['id']}", user="n1")
    assert send(ours, "GET", user="n1") == []
