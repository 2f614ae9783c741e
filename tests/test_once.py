"""Idempotency-Key, ETag, If-Match and If-None-Match."""

from pathlib import Path
from uuid import uuid4

import pytest
from support.server import FIELDS, ROOT, Server, User, change_by_hand, refusal

WRITES = [
    ("PUT", "", {"title": "mine"}),
    ("PATCH", "", {"completed": True}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]


def test_the_same_key_gets_the_same_task(user: User) -> None:
    body, headers = {"title": "Buy milk"}, {"Idempotency-Key": "order 1"}
    first = user.post("/tasks", json=body, headers=headers)
    second = user.post("/tasks", json=body, headers=headers)
    assert (first.status_code, second.status_code) == (201, 200)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["ETag"] == first.headers["ETag"]
    assert first.json() == second.json()
    assert user.tasks() == [first.json()]


def test_a_key_belongs_to_its_user(user: User, other: User) -> None:
    tasks = [
        each.post("/tasks", json={"title": "x"}, headers={"Idempotency-Key": "1"}).json()
        for each in (user, other)
    ]
    assert tasks[0]["id"] != tasks[1]["id"]
    assert (user.tasks(), other.tasks()) == ([tasks[0]], [tasks[1]])


def test_a_key_with_other_content_is_refused(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    created = user.post("/tasks", json={"title": "x"}, headers=headers).json()
    for body in (
        {"title": "y"},
        {"title": "x", "description": ""},
        {"title": "x", "completed": True},
    ):
        response = user.post("/tasks", json=body, headers=headers)
        assert response.status_code == 422
        assert "Idempotency-Key" in response.json()["detail"]
    assert user.tasks() == [created]


def test_the_same_content_in_other_words_is_a_replay(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    user.post("/tasks", json={"title": "x"}, headers=headers)
    body = {"title": " x ", "description": None, "completed": False, "extra": 1}
    assert user.post("/tasks", json=body, headers=headers).status_code == 200


def test_a_replay_after_a_change_gets_the_task_as_it_is(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    task = user.post("/tasks", json={"title": "x"}, headers=headers).json()
    changed = user.patch(f"/tasks/{task['id']}", json={"title": "y"}).json()
    replay = user.post("/tasks", json={"title": "x"}, headers=headers)
    assert (replay.status_code, replay.json()) == (200, changed)


def test_a_late_repeat_gets_a_deleted_task_where_it_is(user: User) -> None:
    content = {"json": {"title": "x", "completed": True}, "headers": {"Idempotency-Key": "1"}}
    task = user.post("/tasks", **content).json()
    user.delete(f"/tasks/{task['id']}")
    before = user.get("/tasks/deleted")
    for late in (user.post("/tasks", **content), user.post("/tasks", **content)):
        assert (late.status_code, late.headers["Idempotent-Replayed"]) == (200, "true")
        assert list(late.json()) == [*FIELDS, "deleted_at"]
        assert [late.json()] == before.json()
        assert "Location" not in late.headers
    after = user.get("/tasks/deleted")
    assert (after.json(), after.headers["ETag"]) == (before.json(), before.headers["ETag"])
    assert user.tasks() == []


def test_a_late_repeat_with_other_content_is_refused(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    task = user.post("/tasks", json={"title": "x"}, headers=headers).json()
    user.delete(f"/tasks/{task['id']}")
    before = user.trash()
    for _ in "in the trash", "restored":
        for body in (
            {"title": "y"},
            {"title": "x", "completed": True},
            {"title": "x", "tags": "a"},
        ):
            response = user.post("/tasks", json=body, headers=headers)
            assert response.status_code == 422
            assert "Idempotency-Key" in response.json()["detail"]
        assert user.trash() == before
        user.post(f"/tasks/{task['id']}/restore")
        before = []
    assert user.tasks() == [task]


def test_a_late_repeat_gets_what_a_task_was_when_it_was_deleted(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    task = user.post("/tasks", json={"title": "x"}, headers=headers).json()
    changed = user.patch(f"/tasks/{task['id']}", json={"title": "y"}).json()
    user.delete(f"/tasks/{task['id']}")
    late = user.post("/tasks", json={"title": "x"}, headers=headers)
    assert (late.status_code, late.json()) == (200, user.trash()[0])
    assert late.json() == changed | {"deleted_at": late.json()["deleted_at"]}


def test_a_late_repeat_after_a_restore_gets_eleven_fields(user: User) -> None:
    content = {"json": {"title": "x"}, "headers": {"Idempotency-Key": "1"}}
    task = user.post("/tasks", **content).json()
    user.delete(f"/tasks/{task['id']}")
    restored = user.post(f"/tasks/{task['id']}/restore")
    late = user.post("/tasks", **content)
    assert (late.status_code, list(late.json()), late.json()) == (200, FIELDS, task)
    assert late.headers["ETag"] == restored.headers["ETag"]
    assert user.tasks() == [task]


def test_a_key_lives_as_long_as_its_task(user: User, database_url: str) -> None:
    headers = {"Idempotency-Key": "1"}
    task = user.post("/tasks", json={"title": "x"}, headers=headers).json()
    user.delete(f"/tasks/{task['id']}")
    change_by_hand(database_url, f"DELETE FROM task WHERE user_id = '{user.name}'")
    again = user.post("/tasks", json={"title": "other"}, headers=headers)
    assert (again.status_code, again.json()["title"]) == (201, "other")
    assert (user.tasks(), user.trash()) == ([again.json()], [])


@pytest.mark.parametrize("key", ["", "x" * 256, "ä".encode(), "a\tb"])
@pytest.mark.one_database
def test_a_bad_key_is_refused(user: User, key: str | bytes) -> None:
    response = user.post("/tasks", json={"title": "x"}, headers={"Idempotency-Key": key})
    assert refusal(response)[0] == "Idempotency-Key"
    assert user.tasks() == []


@pytest.mark.parametrize(
    "key", ["~", "x" * 255, "a b!\"'{}", "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"]
)
def test_keys_that_are_taken(user: User, key: str) -> None:
    headers = {"Idempotency-Key": key}
    codes = [user.post("/tasks", json={"title": "x"}, headers=headers).status_code for _ in "12"]
    assert codes == [201, 200]


@pytest.mark.parametrize("method, suffix, body", WRITES)
def test_a_write_with_an_old_tag_changes_nothing(
    user: User, method: str, suffix: str, body: dict | None
) -> None:
    created = user.post("/tasks", json={"title": "x"})
    path = f"/tasks/{created.json()['id']}"
    changed = user.patch(path, json={"title": "y"})
    current = changed.headers["ETag"].strip('"')
    for tag in (
        created.headers["ETag"],
        *(f'"{current}0"', f'"{current[:-1]}0"', f'"{current[:-1]}"', f'"{current}x"'),
        *(f'"{current}.11"', f'"x{current}"', f'"{current.upper()}"'),
        '"x"',
        "x",
        "",
        ",",
        '"*"',
        '"5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d", "y"',
        'W/"',
        '""',
        'W/""',
        '"x", *',
        "x *",
        "W/*",
    ):
        response = user.request(method, path + suffix, json=body, headers={"If-Match": tag})
        assert response.status_code == 412, tag
    assert user.task(created.json()["id"]) == changed.json()


@pytest.mark.parametrize("method, suffix, body", WRITES)
@pytest.mark.parametrize(
    "form",
    [
        *("{}", "W/{}", '"", {}', '"x", {}', "*", '{}, "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"'),
        *("{bare}", "W/{bare}", "x, {bare}"),
    ],
)
def test_a_write_with_the_current_tag_is_made(
    user: User, method: str, suffix: str, body: dict | None, form: str
) -> None:
    created = user.post("/tasks", json={"title": "x"})
    tag = created.headers["ETag"]
    headers = {"If-Match": form.format(tag, bare=tag.strip('"'))}
    path = f"/tasks/{created.json()['id']}"
    assert user.request(method, path + suffix, json=body, headers=headers).status_code == 200


@pytest.mark.parametrize("method, suffix, body", WRITES)
@pytest.mark.parametrize("tag", ["*", '"x"', '"5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"'])
def test_a_tag_of_no_task_is_a_404(
    user: User, method: str, suffix: str, body: dict | None, tag: str
) -> None:
    path = f"/tasks/{uuid4()}{suffix}"
    assert user.request(method, path, json=body, headers={"If-Match": tag}).status_code == 404


def test_a_task_that_is_known_is_not_sent_again(user: User) -> None:
    created = user.post("/tasks", json={"title": "x"})
    path, tag = f"/tasks/{created.json()['id']}", created.headers["ETag"]
    for sent in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        response = user.get(path, headers={"If-None-Match": sent})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["ETag"] == tag
    assert user.get(path, headers={"If-None-Match": '"x"'}).status_code == 200
    user.patch(path + "/complete")
    assert user.get(path, headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("suffix", ["-gzip", "-br", "-deflate", "--gzip", ":zstd"])
def test_a_tag_is_known_again_after_a_proxy_has_compressed_its_response(
    user: User, suffix: str
) -> None:
    """Apache's mod_deflate and mod_brotli, Jetty, and Flask-Compress add a suffix."""
    path = f"/tasks/{user.create()['id']}"
    for known in (path, "/tasks"):
        tag = user.get(known).headers["ETag"].replace('"', "")
        for sent in (f'"{tag}{suffix}"', f'W/"{tag}{suffix}"'):
            assert user.get(known, headers={"If-None-Match": sent}).status_code == 304
    tag = user.get(path).headers["ETag"].replace('"', "")
    for status in (200, 412):
        sent = {"If-Match": f'"{tag}{suffix}"'}
        assert user.patch(path, json={"title": "x"}, headers=sent).status_code == status


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
def test_two_slashes_are_as_good_as_one_and_keep_the_condition(
    user: User, method: str, suffix: str, body: object
) -> None:
    """An address that ends in a slash, and a path that begins with one, make them."""
    task = user.create()
    url = f"{user.server.url}//api/{user.name}/tasks/{task['id']}{suffix}"
    tag = '"5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"'
    assert user.request(method, url, json=body, headers={"If-Match": tag}).status_code == 412
    assert user.task(task["id"]) == task


def test_two_copies_of_a_virtual_machine_keep_their_writes_apart(
    tmp_path: Path, own_url: str
) -> None:
    """They have the same random numbers, as if each had been resumed from one snapshot."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        (ROOT / "gunicorn.conf.py").read_text()
        + "\nstart_application = post_worker_init\n"
        + "def post_worker_init(worker):\n    start_application(worker)\n"
        + "    __import__('random').seed(1)\n"
    )
    for write in ("post", "patch", "delete"):
        with (
            Server(tmp_path, config=config, WEB_CONCURRENCY="1", DATABASE_URL=own_url) as server,
            User(server, "ann") as ann,
        ):
            if write == "post":
                task = ann.create()
            else:
                path = f"/tasks/{task['id']}" + ("/complete" if write == "patch" else "")
                assert ann.request(write, path).status_code == 200
            tasks = ann.tasks()
    assert tasks == []
