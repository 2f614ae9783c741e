"""POST /api/{user_id}/tasks"""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from support.server import FIELDS, User, refusal


def test_a_task_needs_only_a_title(user: User) -> None:
    response = user.post("/tasks", json={"title": "Buy milk"})
    task = response.json()
    assert response.status_code == 201
    assert list(task) == FIELDS
    assert UUID(task["id"]).version == 4
    assert task["user_id"] == user.name
    assert (task["title"], task["description"], task["completed"]) == ("Buy milk", None, False)
    assert task["created_at"] == task["updated_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", task["created_at"])
    age = datetime.now(UTC) - datetime.fromisoformat(task["created_at"])
    assert timedelta() <= age < timedelta(seconds=5)


def test_the_answer_says_where_the_task_is_and_which_state_it_has(user: User) -> None:
    response = user.post("/tasks", json={"title": "Buy milk"})
    again = user.get(user.server.url + response.headers["Location"])
    assert again.json() == response.json()
    assert again.headers["ETag"] == response.headers["ETag"]


@pytest.mark.parametrize(
    "title", ["x", "x" * 500, "😀" * 500, "  Hi\u2003", " " * 600 + "x", "a\x01b"]
)
def test_titles_that_are_taken(user: User, title: str) -> None:
    assert user.create(title)["title"] == title.strip()


@pytest.mark.parametrize("description", ["", " x ", "x" * 5000, "😀" * 5000, None, "a\nb\x7f"])
def test_descriptions_are_kept_as_they_are(user: User, description: str | None) -> None:
    assert user.create(description=description)["description"] == description


@pytest.mark.parametrize(
    "body, field, message",
    [
        ({}, "title", "This field is required."),
        ({"title": ""}, "title", "Shorter than minimum length 1."),
        ({"title": " \t\n\u3000"}, "title", "Shorter than minimum length 1."),
        ({"title": "x" * 501}, "title", "Longer than maximum length 500."),
        ({"title": "😀" * 501}, "title", "Longer than maximum length 500."),
        ({"title": None}, "title", "Must not be null."),
        ({"title": 5}, "title", "Must be a string."),
        ({"title": ["x"]}, "title", "Must be a string."),
        ({"title": "a\0b"}, "title", "Must not contain a NUL character."),
        (
            {"title": "x", "description": "x" * 5001},
            "description",
            "Longer than maximum length 5000.",
        ),
        ({"title": "x", "description": 5}, "description", "Must be a string."),
        ({"title": "x", "description": "\0"}, "description", "Must not contain a NUL character."),
        ({"title": "x", "completed": 0}, "completed", "Must be true or false."),
        ({"title": "x", "completed": 1.0}, "completed", "Must be true or false."),
        ({"title": "x", "completed": "yes"}, "completed", "Must be true or false."),
        ({"title": "x", "completed": "true"}, "completed", "Must be true or false."),
        ({"title": "x", "completed": None}, "completed", "Must not be null."),
    ],
)
@pytest.mark.one_database
def test_what_is_not_a_task_is_refused(user: User, body: object, field: str, message: str) -> None:
    assert refusal(user.post("/tasks", json=body)) == (field, message)
    assert user.tasks() == []


@pytest.mark.parametrize("body", ["[]", '[{"title": "x"}]', '"x"', "null", "5", "true"])
@pytest.mark.one_database
def test_what_is_no_object_is_refused(user: User, body: str) -> None:
    response = user.post("/tasks", data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"] == "Expected a JSON object."
    assert response.json()["errors"] == {"body": ["Expected a JSON object."]}
    assert user.tasks() == []


@pytest.mark.one_database
def test_what_is_no_json_is_found_by_its_place(user: User) -> None:
    response = user.post(
        "/tasks", data='{\n"title": }', headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["detail"] == "The body is not JSON in UTF-8: line 2, column 10."


def test_unknown_fields_are_ignored_and_the_servers_own_cannot_be_set(user: User) -> None:
    task = user.create("x", id="1", user_id="bob", created_at="then", category="x", revision="1")
    assert list(task) == FIELDS
    assert task["user_id"] == user.name


@pytest.mark.parametrize(
    "name",
    ["1", "ann@example.com", "用户", "auth0|5f", "a b", "%2e", "x" * 255, "\ufffd", "'--", "a\\b"],
)
def test_a_user_id_is_any_text(server, name: str) -> None:
    with User(server, name) as user:
        response = user.post("/tasks", json={"title": "x"})
        task = response.json()
        assert task["user_id"] == name
        assert task in user.tasks()
        assert user.get(server.url + response.headers["Location"]).json() == task
        assert user.delete(f"/tasks/{task['id']}").status_code == 200
