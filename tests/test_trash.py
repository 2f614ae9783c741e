"""The trash: DELETE, GET /tasks/deleted, POST /tasks/{task_id}/restore, /tasks/completed/clear."""

import itertools
import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import pytest
from support.server import FIELDS, Server, User, change_by_hand, fill, pages, refusal

NOWHERE = "00000000-0000-0000-0000-000000000000"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
DETAILS = {"description": " Two\n", "priority": "High", "due_date": "2026-03-01", "tags": ["home"]}
NOT_A_CURSOR = ("cursor", "Not a cursor of this list: use the URL in the Link header.")
OPERATIONS = [
    ("GET", "", None),
    ("HEAD", "", None),
    ("PUT", "", {"title": "mine"}),
    ("PUT", "", {}),
    ("PATCH", "", {"title": "mine"}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]
BODIES: list[tuple[bytes, str]] = [
    (b"", "application/json"),
    (b"{}", "application/json"),
    (b'{"title": "mine", "completed": true}', "application/json"),
    (b"{", "application/json"),
    (b"\xff", "application/json"),
    (b"[1]", "application/json"),
    (b"title=mine", "application/x-www-form-urlencoded"),
    (b"mine", "text/plain"),
    (b"x" * 100_000, "application/json"),
]
each_body = pytest.mark.parametrize(
    "body, kind", BODIES, ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None
)


def deleted(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks without the time of their deletion."""
    return [{name: task[name] for name in FIELDS} for task in tasks]


def titles(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["title"] for task in tasks]


def test_a_deleted_task_is_in_the_trash_with_all_its_fields(user: User) -> None:
    task = user.create("Gone", completed=True, **DETAILS)
    response = user.delete(f"/tasks/{task['id']}")
    assert (response.status_code, response.json()) == (
        200,
        {"message": "Task deleted successfully"},
    )
    (found,) = user.trash()
    assert list(found) == [*FIELDS, "deleted_at"]
    assert found == task | {"deleted_at": found["deleted_at"]}
    assert TIME.fullmatch(found["deleted_at"])
    assert found["deleted_at"] > task["updated_at"]
    age = datetime.now(UTC) - datetime.fromisoformat(found["deleted_at"])
    assert abs(age) < timedelta(minutes=1)


@each_body
def test_a_body_of_a_delete_is_ignored(user: User, body: bytes, kind: str) -> None:
    path = f"/tasks/{user.create()['id']}"
    assert user.delete(path, data=body, headers={"Content-Type": kind}).status_code == 200


def test_a_second_delete_leaves_the_trash_as_it_is(user: User) -> None:
    task = user.to_trash()
    before = user.trash()
    assert user.delete(f"/tasks/{task['id']}").status_code == 404
    assert user.trash() == before


@pytest.mark.parametrize("method, suffix, body", OPERATIONS)
@pytest.mark.parametrize("tag", [None, "*", '"x"', "before", "in the trash"])
def test_a_task_in_the_trash_does_not_exist_for_an_operation_on_one_task(
    user: User, method: str, suffix: str, body: dict[str, Any] | None, tag: str | None
) -> None:
    content: dict[str, Any] = {"json": {"title": "x"}, "headers": {"Idempotency-Key": "1"}}
    created = user.post("/tasks", **content)
    path = f"/tasks/{created.json()['id']}"
    user.delete(path)
    replayed = user.post("/tasks", **content)
    known = {"before": created.headers["ETag"], "in the trash": replayed.headers["ETag"]}
    headers = {} if tag is None else {"If-Match": known.get(tag, tag), "If-None-Match": "*"}
    before = user.get("/tasks/deleted")
    response = user.request(method, path + suffix, json=body, headers=headers)
    assert response.status_code == 404
    if method != "HEAD":
        assert response.json()["detail"] == "There is no such task."
    after = user.get("/tasks/deleted")
    assert (after.json(), after.headers["ETag"]) == (before.json(), before.headers["ETag"])
    assert user.post("/tasks", **content).headers["ETag"] == replayed.headers["ETag"]


@pytest.mark.parametrize(
    "query",
    [
        *("", "status=all", "status=completed", "completed=true", "priority=high", "tag=home"),
        *("tags=home,work", "due_date_from=2026-01-01", "due_date_to=2026-12-31", "search=milk"),
        *("sort=title", "sort=updated&order=desc", "sort=due_date", "sort=priority", "offset=0"),
        "status=completed&priority=high&tag=home&search=milk&due_date_from=2026-03-01&sort=title",
    ],
)
def test_a_task_in_the_trash_is_in_no_list(user: User, query: str) -> None:
    kept = user.create(completed=True, **DETAILS)
    user.to_trash(completed=True, **DETAILS)
    assert user.get(f"/tasks?{query}").json() == [kept]
    assert user.get(f"/tasks?{query}&offset=1").json() == []
    assert "Link" not in user.get(f"/tasks?{query}&limit=1").headers


def test_a_list_is_another_one_after_a_delete_and_after_a_restore(user: User) -> None:
    task = user.create()
    tags = [user.get("/tasks").headers["ETag"]]
    user.delete(f"/tasks/{task['id']}")
    tags.append(user.get("/tasks").headers["ETag"])
    user.post(f"/tasks/{task['id']}/restore")
    tags.append(user.get("/tasks").headers["ETag"])
    assert tags[0] == tags[2] != tags[1]


def test_the_trash_of_a_user_never_seen_is_empty(user: User) -> None:
    response = user.get("/tasks/deleted")
    assert (response.status_code, response.json()) == (200, [])
    assert "Link" not in response.headers


def test_the_last_deleted_task_comes_first(user: User, other: User) -> None:
    tasks = {title: user.create(title) for title in "abcd"}
    for title in "bca":
        user.delete(f"/tasks/{tasks[title]['id']}")
    other.to_trash("not mine")
    found = user.trash()
    assert deleted(found) == [tasks["a"], tasks["c"], tasks["b"]]
    assert found[0]["deleted_at"] > found[1]["deleted_at"] > found[2]["deleted_at"]
    assert user.tasks() == [tasks["d"]]


def test_pages_are_the_trash_in_pieces(user: User) -> None:
    for number in range(7):
        user.to_trash(f"{number}")
    whole = user.trash()
    found = pages(user, path="/tasks/deleted", limit=2)
    assert [len(page) for page in found] == [2, 2, 2, 1]
    assert list(itertools.chain(*found)) == whole
    assert user.trash(limit=3) == whole[:3]
    assert user.trash(offset=2) == whole[2:]
    assert user.trash(offset=2, limit=3) == whole[2:5]
    assert user.trash(offset=7) == []
    assert (
        list(itertools.chain(*pages(user, path="/tasks/deleted", limit=2, offset=3))) == whole[3:]
    )
    assert "Link" not in user.get("/tasks/deleted?limit=7").headers
    link = user.get("/tasks/deleted?limit=6&sort=title").headers["Link"]
    assert link.startswith("</api/") and link.endswith('>; rel="next"')
    assert "/tasks/deleted?limit=6&cursor=" in link


def test_pages_of_tasks_that_were_deleted_at_the_same_moment(user: User) -> None:
    made = sorted((user.create(completed=True)["id"] for _ in range(5)), reverse=True)
    assert user.delete("/tasks/completed/clear").json()["deleted"] == 5
    found = list(itertools.chain(*pages(user, path="/tasks/deleted", limit=2)))
    assert len({task["deleted_at"] for task in found}) == 1
    assert [task["id"] for task in found] == made
    assert found == user.trash()


def test_a_walk_of_the_trash_sees_every_task_once_whatever_is_written_meanwhile(
    user: User,
) -> None:
    stay = [user.to_trash(f"{number:03}")["id"] for number in range(40)]
    go = [user.to_trash(f"go {number}")["id"] for number in range(10)]
    seen = []
    url: str | None = user.base + "/tasks/deleted?limit=7"
    for number in itertools.count():
        response = user.get(url)
        seen += [task["id"] for task in response.json()]
        if "next" not in response.links:
            break
        url = urljoin(response.url, response.links["next"]["url"])
        user.to_trash(f"new {number}")
        if go:
            user.post(f"/tasks/{go.pop()}/restore")
    assert len(seen) == len(set(seen))
    assert set(stay) <= set(seen)


def test_a_cursor_of_a_list_is_none_of_the_trash_and_the_other_way_round(user: User) -> None:
    for title in "ab":
        user.create(title)
        user.to_trash(title)
    list_link = user.get("/tasks?limit=1").links["next"]["url"]
    newest_link = user.get("/tasks?limit=1&order=desc").links["next"]["url"]
    trash_link = user.get("/tasks/deleted?limit=1").links["next"]["url"]
    for link in (
        list_link.replace("/tasks?", "/tasks/deleted?"),
        newest_link.replace("/tasks?", "/tasks/deleted?"),
        trash_link.replace("/tasks/deleted?", "/tasks?"),
        trash_link.replace("/tasks/deleted?", "/tasks?order=desc&"),
    ):
        assert refusal(user.get(urljoin(user.base, link))) == NOT_A_CURSOR
    for link in (list_link, newest_link, trash_link):
        assert user.get(urljoin(user.base, link)).status_code == 200


def cursor(text: str) -> str:
    return "cursor=" + urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=10001", "limit=x", "limit=-1", "offset=-1", "offset=10001"),
        *("offset=x", "cursor=", "cursor=1", "cursor=%ff", "cursor=" + "A" * 3000),
        cursor(f"deleted asc {NOWHERE} 2026-01-01T00:00:00.000000Z"),
        cursor(f"deleted desc {NOWHERE} 2026-99-01T00:00:00.000000Z"),
        cursor(f"deleted desc {NOWHERE} null"),
        cursor("deleted desc x 2026-01-01T00:00:00.000000Z"),
        cursor(f"deleted desc {NOWHERE} 2026-01-01T00:00:00.000000Z") + "&offset=1",
    ],
)
@pytest.mark.one_database
def test_a_bad_parameter_of_the_trash_is_named(user: User, query: str) -> None:
    name = query.rpartition("&")[2].partition("=")[0]
    assert refusal(user.get(f"/tasks/deleted?{query}"))[0] == name


@pytest.mark.one_database
def test_a_list_is_not_sorted_by_the_time_of_deletion(user: User) -> None:
    for word in ("deleted", "deleted_at", "deleted_desc"):
        assert refusal(user.get(f"/tasks?sort={word}"))[0] == "sort"


@pytest.mark.parametrize(
    "query", ["limit=&offset=", "status=x", "search=zzz", "sort=title&order=asc", "page=2", "%ff"]
)
def test_the_trash_ignores_what_it_does_not_know(user: User, query: str) -> None:
    tasks = [user.to_trash(title) for title in "ab"]
    assert deleted(user.get(f"/tasks/deleted?{query}").json()) == tasks[::-1]


def test_a_trash_that_is_known_is_not_sent_again(user: User) -> None:
    user.to_trash()
    get, head = user.get("/tasks/deleted"), user.head("/tasks/deleted")
    tag = get.headers["ETag"]
    for header in ("ETag", "Content-Length", "Content-Type"):
        assert head.headers[header] == get.headers[header]
    assert (head.status_code, head.content) == (200, b"")
    for method, sent in itertools.product(("GET", "HEAD"), (tag, f"W/{tag}", f'"x", {tag}', "*")):
        response = user.request(method, "/tasks/deleted", headers={"If-None-Match": sent})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag
        assert response.headers["Cache-Control"] == "private, no-cache"
    for response in (get, head):
        assert response.headers["Cache-Control"] == "private, no-cache"
    assert user.get("/tasks/deleted", headers={"If-Match": '"x"'}).json() == get.json()
    user.to_trash()
    again = user.get("/tasks/deleted", headers={"If-None-Match": tag})
    assert (again.status_code, len(again.json())) == (200, 2)


def test_a_page_of_the_trash_is_another_one_when_more_follows(user: User) -> None:
    first = user.to_trash("first")
    second = user.to_trash("second")
    tag = user.get("/tasks/deleted?limit=1").headers["ETag"]
    user.post(f"/tasks/{first['id']}/restore")
    response = user.get("/tasks/deleted?limit=1", headers={"If-None-Match": tag})
    assert (response.status_code, deleted(response.json())) == (200, [second])


def test_a_slash_at_the_end_of_a_path_of_the_trash(user: User) -> None:
    task = user.to_trash(completed=True)
    found = user.get("/tasks/deleted/", allow_redirects=False)
    assert (found.status_code, deleted(found.json())) == (200, [task])
    restored = user.post(f"/tasks/{task['id']}/restore/", allow_redirects=False)
    assert (restored.status_code, restored.json()) == (200, task)
    cleared = user.delete("/tasks/completed/clear/", allow_redirects=False)
    assert (cleared.status_code, cleared.json()["deleted"]) == (200, 1)


@pytest.fixture(scope="module")
def long_trash(server: Server, database_url: str) -> Iterator[User]:
    """A user whose trash has 3,001 tasks of 5,000 bytes."""
    with User(server, f"long-{uuid4()}") as user:
        user.to_trash(description="x" * 1000, tags=[f"{n:02}" + "😀" * 48 for n in range(20)])
        fill(database_url, user.name, 3_000)
        yield user
        change_by_hand(database_url, f"DELETE FROM task WHERE user_id = '{user.name}'")


@pytest.mark.parametrize("limit", [10_000, pytest.param(900, marks=pytest.mark.slow)])
def test_a_page_of_the_trash_ends_at_8_megabytes(long_trash: User, limit: int) -> None:
    found = pages(long_trash, path="/tasks/deleted", limit=limit)
    ids = [task["id"] for page in found for task in page]
    filled = [task_id for task_id in ids if task_id.startswith("00000000-")]
    assert filled == sorted(filled, reverse=True)
    assert len(set(ids)) == len(ids) == 3001
    assert len(found) > 1
    for page in found[:-1]:
        size = len(json.dumps(page, separators=(",", ":"), ensure_ascii=False).encode())
        assert size < 8_500_000
        assert len(page) == limit or size > 8_000_000


@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/tasks/deleted", "GET, HEAD, OPTIONS"),
        ("/tasks/{}/restore", "OPTIONS, POST"),
        ("/tasks/completed/clear", "DELETE, OPTIONS"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_other_methods_are_a_405_that_names_the_allowed_ones(
    user: User, path: str, allowed: str, slash: str
) -> None:
    gone, kept = user.to_trash(), user.create(completed=True)
    methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - {*allowed.split(", ")}
    for method in methods:
        response = user.request(method, path.format(gone["id"]) + slash, json={"title": "x"})
        assert response.status_code == 405, method
        assert response.headers["Allow"] == allowed
        if method != "HEAD":
            assert response.headers["Content-Type"] == "application/problem+json"
    assert (user.tasks(), deleted(user.trash())) == ([kept], [gone])


@pytest.mark.parametrize(
    "method, path",
    [
        *itertools.product(["GET", "PUT", "PATCH", "DELETE"], ["/tasks/completed", "/tasks/clear"]),
        *(("PATCH", "/tasks/deleted/complete"), ("POST", "/tasks/deleted/restore")),
        *(("PATCH", "/tasks/completed/complete"), ("POST", "/tasks/completed/restore")),
        *(("DELETE", "/tasks/deleted/clear"), ("DELETE", f"/tasks/{NOWHERE}/clear")),
        ("GET", "/tasks/DELETED"),
        ("DELETE", "/tasks/Completed/clear"),
        ("GET", "/tasks/restore"),
        *(("GET", f"/tasks/deleted/{NOWHERE}"), ("GET", "/tasks/deleted%20")),
    ],
)
def test_the_words_of_the_trash_are_no_ids(user: User, method: str, path: str) -> None:
    gone, kept = user.to_trash(), user.create(completed=True)
    response = user.request(method, path, json={"title": "x"})
    assert response.status_code == 404
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (user.tasks(), deleted(user.trash())) == ([kept], [gone])


def test_a_restored_task_is_as_it_was_at_its_old_place(user: User) -> None:
    tasks = [user.create(title, completed=title == "b", **DETAILS) for title in "abc"]
    path = f"/tasks/{tasks[1]['id']}"
    old = user.get(path).headers["ETag"]
    user.delete(path)
    restored = user.post(f"{path}/restore")
    assert (restored.status_code, restored.json()) == (200, tasks[1])
    assert list(restored.json()) == FIELDS
    found = user.get(path)
    assert found.json() == tasks[1]
    assert found.headers["ETag"] == restored.headers["ETag"] != old
    assert user.tasks() == tasks
    assert user.trash() == []
    assert user.delete(path, headers={"If-Match": old}).status_code == 412
    assert user.delete(path, headers={"If-Match": found.headers["ETag"]}).status_code == 200
    assert deleted(user.trash()) == [tasks[1]]


def test_a_restored_task_can_be_changed_and_deleted_again(user: User) -> None:
    first, second = user.to_trash("first"), user.to_trash("second")
    path = f"/tasks/{first['id']}"
    user.post(f"{path}/restore")
    changed = user.patch(path, json={"title": "changed"})
    assert changed.status_code == 200
    assert changed.json()["updated_at"] > first["updated_at"]
    user.delete(path)
    assert deleted(user.trash()) == [changed.json(), second]


def test_a_restore_of_a_task_that_is_not_deleted_changes_nothing(user: User) -> None:
    created = user.post("/tasks", json={"title": "x", "completed": True})
    path, tag = f"/tasks/{created.json()['id']}", created.headers["ETag"]
    for response in (user.post(f"{path}/restore"), user.post(f"{path}/restore"), user.get(path)):
        assert (response.status_code, response.json()) == (200, created.json())
        assert response.headers["ETag"] == tag


def test_a_restore_that_is_repeated_changes_nothing(user: User) -> None:
    path = f"/tasks/{user.to_trash()['id']}/restore"
    first, second = user.post(path), user.post(path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert first.headers["ETag"] == second.headers["ETag"]


def test_what_cannot_be_restored_is_a_404(user: User, other: User, database_url: str) -> None:
    gone, mine = user.to_trash("gone"), user.to_trash("mine")
    change_by_hand(database_url, f"DELETE FROM task WHERE id = '{gone['id']}'")
    for who, task_id in (
        *((other, mine["id"]), (user, gone["id"]), (user, str(uuid4())), (user, "1")),
        *((user, "null"), (user, uuid4().hex), (user, "x" * 300)),
    ):
        response = who.post(f"/tasks/{task_id}/restore")
        assert (response.status_code, response.json()["detail"]) == (404, "There is no such task.")
    assert (deleted(user.trash()), user.tasks(), other.tasks()) == ([mine], [], [])


@each_body
def test_a_body_of_a_restore_is_ignored(user: User, body: bytes, kind: str) -> None:
    task = user.to_trash()
    headers = {"Content-Type": kind, "If-Match": '"x"'}
    response = user.post(f"/tasks/{task['id']}/restore", data=body, headers=headers)
    assert (response.status_code, response.json()) == (200, task)
    assert user.tasks() == [task]


@pytest.mark.parametrize("tag", ["*", '"x"', ""])
def test_if_match_of_a_restore_is_ignored(user: User, tag: str) -> None:
    task, headers = user.to_trash(), {"If-Match": tag}
    for _ in range(2):
        response = user.post(f"/tasks/{task['id']}/restore", headers=headers)
        assert (response.status_code, response.json()) == (200, task)
    assert user.post(f"/tasks/{uuid4()}/restore", headers=headers).status_code == 404


def test_clearing_deletes_the_completed_tasks_only(user: User, other: User) -> None:
    tasks = [user.create(f"{n}", completed=n % 2 == 0, **DETAILS) for n in range(6)]
    theirs = other.create(completed=True)
    early = user.to_trash("early", completed=True)
    before = user.trash()
    tag = user.get(f"/tasks/{tasks[1]['id']}").headers["ETag"]
    response = user.delete("/tasks/completed/clear")
    assert response.status_code == 200
    assert list(response.json()) == ["message", "deleted"]
    assert response.json()["message"] and response.json()["deleted"] == 3
    assert user.tasks() == tasks[1::2]
    found = user.trash()
    assert found[3:] == before
    assert deleted(found[:3]) == sorted(tasks[::2], key=lambda task: task["id"], reverse=True)
    assert deleted(found[3:]) == [early]
    assert user.get(f"/tasks/{tasks[1]['id']}").headers["ETag"] == tag
    assert (other.tasks(), other.trash()) == ([theirs], [])


def test_clearing_nothing_says_so(user: User) -> None:
    user.to_trash(completed=True)
    kept, before = user.create(), user.trash()
    for _ in range(2):
        response = user.delete("/tasks/completed/clear")
        assert response.status_code == 200
        assert isinstance(response.json()["message"], str) and response.json()["message"]
        assert response.json()["deleted"] == 0
    assert (user.tasks(), user.trash()) == ([kept], before)


def test_a_task_is_cleared_as_it_is_now(user: User) -> None:
    undone, done = user.create("undone", completed=True), user.create("done")
    for task in (undone, done):
        user.patch(f"/tasks/{task['id']}/complete")
    assert user.delete("/tasks/completed/clear").json()["deleted"] == 1
    assert (titles(user.tasks()), titles(user.trash())) == (["undone"], ["done"])


@pytest.mark.parametrize(
    "query",
    [
        *("status=pending", "completed=false", "search=zzz", "limit=1", "limit=x", "cursor="),
        *("tag=none", "priority=low", "sort=nonsense", "offset=9", "%ff=%ff"),
    ],
)
def test_clearing_ignores_every_parameter(user: User, query: str) -> None:
    for title in "ab":
        user.create(title, completed=True)
    response = user.delete(f"/tasks/completed/clear?{query}")
    assert (response.status_code, response.json()["deleted"]) == (200, 2)


@each_body
def test_clearing_ignores_a_body_and_if_match(user: User, body: bytes, kind: str) -> None:
    user.create(completed=True)
    headers = {"Content-Type": kind, "If-Match": '"x"'}
    response = user.delete("/tasks/completed/clear", data=body, headers=headers)
    assert (response.status_code, response.json()["deleted"]) == (200, 1)


def test_cleared_tasks_are_restored_one_by_one(user: User) -> None:
    tasks = [user.create(title, completed=True) for title in "abc"]
    user.delete("/tasks/completed/clear")
    restored = [user.post(f"/tasks/{task['id']}/restore") for task in tasks[::-1]]
    assert [response.json() for response in restored] == tasks[::-1]
    assert len({response.headers["ETag"] for response in restored}) == 3
    assert (user.tasks(), user.trash()) == (tasks, [])


@pytest.mark.parametrize("own_url", ["postgres"], indirect=True)
def test_the_trash_of_a_user_does_not_read_that_of_others(tmp_path: Path, own_url: str) -> None:
    """PostgreSQL expects that a user of many tasks has deleted as many of them as the others."""
    server = Server(tmp_path, DATABASE_URL=own_url, WEB_CONCURRENCY="1")
    with server, User(server.wait(), "ann") as ann, User(server, "bob") as bob:
        ann.create()
        bob.to_trash()
        fill(own_url, "ann", 4000)
        fill(own_url, "bob", 16000)
        spread = "UPDATE task SET deleted_at = created_at WHERE user_id = 'bob'"
        change_by_hand(own_url, f"{spread}; ANALYZE task")
        assert ann.trash(limit=20) == []
        time.sleep(1.1)  # PostgreSQL counts once a second.
        assert ann.trash(limit=20) == []
    sql = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'task_deleted_at'"
    assert change_by_hand(own_url, sql) == [(0,)]
