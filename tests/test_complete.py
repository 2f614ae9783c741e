"""PATCH /api/{user_id}/tasks/{task_id}/complete"""

import pytest
from support.server import User


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"json": {}},
        {"data": b"", "headers": {"Content-Type": "application/json"}},
        {"data": b"", "headers": {"Content-Type": "text/plain"}},
        {"json": {"id": 1}},
        {"data": b"null", "headers": {"Content-Type": "application/json"}},
    ],
)
def test_without_a_value_it_flips(user: User, options: dict) -> None:
    task = user.create()
    path = f"/tasks/{task['id']}/complete"
    first, second = user.patch(path, **options), user.patch(path, **options)
    assert [first.status_code, second.status_code] == [200, 200]
    assert [first.json()["completed"], second.json()["completed"]] == [True, False]
    assert task["updated_at"] < first.json()["updated_at"] < second.json()["updated_at"]
    assert first.headers["ETag"] != second.headers["ETag"]


@pytest.mark.parametrize("value", [True, False])
def test_with_a_value_it_sets(user: User, value: bool) -> None:
    task = user.create()
    for _ in range(2):
        response = user.patch(f"/tasks/{task['id']}/complete", json={"completed": value})
        assert (response.status_code, response.json()["completed"]) == (200, value)
    assert user.task(task["id"]) == response.json()


@pytest.mark.parametrize("body", [b"[]", b"0", b"false", b"true", b'""', b"[null]", b'"{}"'])
@pytest.mark.one_database
def test_any_other_body_is_refused(user: User, body: bytes) -> None:
    task = user.create()
    headers = {"Content-Type": "application/json"}
    response = user.patch(f"/tasks/{task['id']}/complete", data=body, headers=headers)
    assert (response.status_code, response.json()["detail"]) == (422, "Expected a JSON object.")
    assert user.task(task["id"]) == task


@pytest.mark.parametrize("value", [None, 0, 1, "true", [], {}])
@pytest.mark.one_database
def test_any_other_value_is_refused(user: User, value: object) -> None:
    task = user.create()
    response = user.patch(f"/tasks/{task['id']}/complete", json={"completed": value})
    assert response.status_code == 422
    assert user.task(task["id"]) == task
