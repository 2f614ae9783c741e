"""Any list of any tasks is what a few lines of Python say."""

from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.server import Server, User, pages

WORDS = ["a", "B", "İ", "straße", "a, b"]
PRIORITIES = ["low", "P4", "Medium", "x", "HIGH", "p2", "urgent", "1", "none", "STRASSE"]
DAYS = ["2026-02-28", "2026-03-01", "2026-03-02"]
TIMES = ["", "T00:00:00", "T00:00:00Z", "T09:00:00", "T23:59:59Z"]
TASKS = st.fixed_dictionaries(
    {
        "title": st.sampled_from(["a", "A", "B b", "İ", "x" * 100 + "1", "X" * 100 + "0", "😀"]),
        "completed": st.booleans(),
        "priority": st.sampled_from(PRIORITIES),
        "due_date": st.none()
        | st.builds(str.__add__, st.sampled_from(DAYS), st.sampled_from(TIMES)),
        "tags": st.lists(st.sampled_from(WORDS), unique=True),
    },
    optional={"description": st.sampled_from(["a", "İ b"])},
)
SOME = {"min_size": 1, "max_size": 3}
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["all", "pending", "completed"]),
        "completed": st.sampled_from(["true", "false"]),
        "priority": st.lists(st.sampled_from([*map(str.swapcase, PRIORITIES), "all"]), **SOME),
        "tag": st.lists(st.sampled_from([*map(str.upper, WORDS), "c"]), **SOME),
        "tags": st.lists(st.sampled_from([*map(str.upper, WORDS), "c"]), **SOME),
        "due_date_from": st.sampled_from(DAYS),
        "due_date_to": st.sampled_from(DAYS),
        "search": st.sampled_from(["A", "b", "i", "x1", "B B"]),
        "sort": st.sampled_from(["created", "updated", "title", "due_date", "priority"]),
        "order": st.sampled_from(["asc", "desc"]),
        "offset": st.integers(0, 5),
    },
)
Task = dict[str, Any]
RANKS = {"none": 0, "low": 1, "p4": 1, "high": 3, "p2": 3, "urgent": 4, "1": 4}


def fold(text: str) -> str:
    return text.replace("İ", "i").replace("ı", "i").casefold()


def is_listed(task: Task, query: dict[str, Any]) -> bool:
    tags, day = set(map(fold, task["tags"])), (task["due_date"] or "")[:10]
    done = {"pending": False, "completed": True}.get(query.get("status", "all"))
    if done is None and "completed" in query:
        done = query["completed"] == "true"
    priorities = set(map(fold, query.get("priority", ["all"])))
    any_of = {fold(part.strip()) for word in query.get("tags", []) for part in word.split(",")}
    is_dated = bool(day) or not {"due_date_from", "due_date_to"} & query.keys()
    return (
        done in {None, task["completed"]}
        and ("all" in priorities or fold(task["priority"]) in priorities)
        and tags >= set(map(fold, query.get("tag", [])))
        and (not any_of or bool(tags & any_of))
        and is_dated
        and query.get("due_date_from", "") <= day <= query.get("due_date_to", "~")
        and any(
            fold(query.get("search", "")) in fold(text)
            for text in (task["title"], task["description"] or "")
        )
    )


def sort_key(task: Task, sort: str) -> Any:
    due = task["due_date"] or ""
    return {
        "created": task["created_at"],
        "updated": task["updated_at"],
        "title": task["title"].lower()[:100],
        "due_date": (due[:10], due[10:] or "~"),
        "priority": RANKS.get(fold(task["priority"]), 2),
    }[sort]


def expected(tasks: list[Task], query: dict[str, Any]) -> list[Task]:
    """The list that `query` asks for."""
    sort = query.get("sort", "created")
    falls = query.get("order", "desc" if sort == "priority" else "asc") == "desc"
    listed = [task for task in tasks if is_listed(task, query)]
    listed.sort(key=lambda task: (sort_key(task, sort), task["id"]), reverse=falls)
    if sort == "due_date":  # What has none is last in both directions.
        listed.sort(key=lambda task: task["due_date"] is None)
    return listed[query.get("offset", 0) :]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tasks=st.lists(TASKS, max_size=9),
    changed=st.lists(st.integers(0, 8), max_size=3),
    queries=st.lists(QUERIES, min_size=8, max_size=8),
    limit=st.integers(1, 4),
)
def test_any_list_agrees_with_a_model(
    server: Server,
    tasks: list[Task],
    changed: list[int],
    queries: list[dict[str, Any]],
    limit: int,
) -> None:
    with User(server, f"model-{uuid4()}") as user:
        made = [user.create(**task) for task in tasks]
        for number in changed:
            if number < len(made):
                path = f"/tasks/{made[number]['id']}"
                made[number] = user.patch(path, json={"title": made[number]["title"]}).json()
        for query in queries:
            wanted = expected(made, query)
            assert user.tasks(**query) == wanted, urlencode(query, doseq=True)
            found = pages(user, limit=limit, **query)
            assert [task for page in found for task in page] == wanted
            assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
