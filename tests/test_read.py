"""GET /api/{user_id}/tasks/{task_id}"""

import json
from uuid import uuid4

import pytest
import requests
from support.server import Server, User


def test_a_task_reads_back_equal(user: User) -> None:
    task = user.create("Buy milk", description="Two bottles")
    response = user.get(f"/tasks/{task['id']}")
    assert response.status_code == 200
    assert response.json() == task


@pytest.mark.parametrize("form", [str.upper, lambda path: path + "/"])
def test_spellings_of_a_tasks_path(user: User, form) -> None:
    task = user.create()
    response = user.get("/tasks/" + form(task["id"]), allow_redirects=False)
    assert (response.status_code, response.json()) == (200, task)


@pytest.mark.one_database
def test_a_url_need_not_be_escaped(server: Server) -> None:
    """curl sends a query as it was typed, PHP and Java a path, too."""
    with User(server, f"用户-{uuid4()}") as user:
        task = user.create("Grüße")
        user.create()
        target = f"/api/{user.name}/tasks?search=grüße&limit=1".encode()
        status, _, body = server.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert (status, json.loads(body)) == (200, [task])


def test_nobody_learns_what_exists(user: User, other: User) -> None:
    task = user.create()
    answers = [
        other.request(method, f"/tasks/{task_id}{suffix}", json=body)
        for task_id in (task["id"], uuid4(), "1", "x" * 300, "null", uuid4().hex, f"{{{uuid4()}}}")
        for method, suffix, body in [
            ("GET", "", None),
            ("PUT", "", {"title": "mine"}),
            ("PATCH", "", {"title": "mine"}),
            ("PATCH", "", {}),
            ("PATCH", "/complete", None),
            ("DELETE", "", None),
            ("POST", "/restore", None),
        ]
    ]
    problems = [answer.json() | {"request_id": None} for answer in answers]
    assert problems == [
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "There is no such task.",
            "request_id": None,
        }
    ] * len(answers)
    assert user.task(task["id"]) == task


def test_head_answers_like_get_without_a_body(user: User) -> None:
    task = user.create()
    for path in ("/tasks", f"/tasks/{task['id']}"):
        get, head = user.get(path), user.head(path)
        assert head.status_code == 200
        assert head.content == b""
        for header in ("ETag", "Content-Length", "Content-Type"):
            assert head.headers[header] == get.headers[header]


def test_a_browser_asks_again_before_it_shows_what_it_keeps(user: User) -> None:
    for path in ("/tasks", f"/tasks/{user.create()['id']}"):
        tag = user.get(path).headers["ETag"]
        for method, headers, status in [
            ("GET", {}, 200),
            ("HEAD", {}, 200),
            ("GET", {"If-None-Match": tag}, 304),
            ("HEAD", {"If-None-Match": tag}, 304),
        ]:
            response = user.request(method, path, headers=headers)
            assert response.status_code == status
            assert response.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(
    "path, status",
    [
        ("/api/ann/tasks/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d", 404),
        ("/api/ann/tasks?limit=0", 422),
        ("/nope", 404),
        ("/health", 200),
        ("/ready", 200),
    ],
)
def test_no_cache_keeps_an_error_or_a_check(user: User, path: str, status: int) -> None:
    """Varnish keeps a 404 without Cache-Control for two minutes, also past a restore."""
    response = requests.get(user.server.url + path)
    assert (response.status_code, response.headers["Cache-Control"]) == (status, "no-store")
