"""PUT and PATCH /api/{user_id}/tasks/{task_id}"""

import pytest
from support.server import User, change_by_hand

both = pytest.mark.parametrize("method", ["PUT", "PATCH"])


@both
@pytest.mark.parametrize(
    "change",
    [
        {"title": "New"},
        {"title": "  New  "},
        {"description": "New"},
        {"description": None},
        {"description": ""},
        {"completed": True},
        {"title": "New", "description": "New", "completed": True},
    ],
)
def test_what_is_sent_changes_and_the_rest_stays(user: User, method: str, change: dict) -> None:
    task = user.create("Old", description="Old")
    response = user.request(method, f"/tasks/{task['id']}", json=change)
    changed = response.json()
    assert response.status_code == 200
    expected = task | change | {"updated_at": changed["updated_at"]}
    expected["completed_at"] = changed["updated_at"] if expected["completed"] else None
    assert changed == expected | {"title": expected["title"].strip()}
    assert changed["updated_at"] > task["updated_at"]
    assert user.tasks() == [changed]


@both
def test_an_empty_object_changes_nothing_at_all(user: User, method: str) -> None:
    created = user.post("/tasks", json={"title": "Old"})
    response = user.request(method, f"/tasks/{created.json()['id']}", json={})
    assert response.status_code == 200
    assert response.json() == created.json()
    assert response.headers["ETag"] == created.headers["ETag"]


@both
def test_setting_the_same_value_is_a_change(user: User, method: str) -> None:
    created = user.post("/tasks", json={"title": "Old"})
    response = user.request(method, f"/tasks/{created.json()['id']}", json={"title": "Old"})
    assert response.json()["updated_at"] > created.json()["updated_at"]
    assert response.headers["ETag"] != created.headers["ETag"]


@pytest.mark.parametrize(
    ("suffix", "body"),
    [("", {"completed": True}), ("/complete", {"completed": True}), ("/complete", {})],
)
def test_the_time_moves_on_where_another_clock_is_ahead(
    user: User, database_url: str, suffix: str, body: dict
) -> None:
    path = f"/tasks/{user.create()['id']}"
    ahead = "2999-12-31T23:59:59.999999Z"
    sql = f"UPDATE task SET updated_at = '{ahead}' WHERE user_id = '{user.name}'"
    change_by_hand(database_url, sql)
    first, second = (user.patch(path + suffix, json=body).json() for _ in range(2))
    assert first["completed_at"] == first["updated_at"] == "3000-01-01T00:00:00.000000Z"
    assert second["updated_at"] == "3000-01-01T00:00:00.000001Z"


def test_a_task_that_is_changed_often_does_not_grow(user: User, database_url: str) -> None:
    path = f"/tasks/{user.create()['id']}/complete"
    sql = f"SELECT length(recent_writes) FROM task WHERE user_id = '{user.name}'"
    lengths = []
    for _ in range(40):
        assert user.patch(path).status_code == 200
        lengths += change_by_hand(database_url, sql)
    assert lengths[0] < lengths[20]
    assert lengths[-1] == lengths[-5]


@both
def test_unknown_fields_are_ignored(user: User, method: str) -> None:
    task = user.create("Old")
    echo = task | {"title": "New", "user_id": "bob", "id": "1", "created_at": "now", "category": []}
    changed = user.request(method, f"/tasks/{task['id']}", json=echo).json()
    assert changed == task | {"title": "New", "updated_at": changed["updated_at"]}


@both
@pytest.mark.parametrize(
    "change, field",
    [
        ({"title": None}, "title"),
        ({"title": " "}, "title"),
        ({"title": "x" * 501}, "title"),
        ({"description": "x" * 5001}, "description"),
        ({"description": False}, "description"),
        ({"completed": None}, "completed"),
        ({"completed": 1}, "completed"),
        ({"completed": "on"}, "completed"),
        ([], "body"),
    ],
)
@pytest.mark.one_database
def test_what_is_wrong_is_refused(user: User, method: str, change: object, field: str) -> None:
    task = user.create("Old")
    response = user.request(method, f"/tasks/{task['id']}", json=change)
    assert response.status_code == 422
    assert list(response.json()["errors"]) == [field]
    assert user.task(task["id"]) == task


@both
@pytest.mark.one_database
def test_no_body_at_all_is_a_400(user: User, method: str) -> None:
    task = user.create()
    assert user.request(method, f"/tasks/{task['id']}").status_code == 400
    assert user.task(task["id"]) == task


def test_patch_takes_a_merge_patch(user: User) -> None:
    task = user.create("Old", description="Old")
    response = user.patch(
        f"/tasks/{task['id']}",
        data=b'{"description": null}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert response.json()["description"] is None
