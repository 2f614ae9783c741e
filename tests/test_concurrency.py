"""Many clients at the same moment, with real threads against a real server."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from support.server import FIELDS, Server, User, change_by_hand, fill, new_database

from lists import UNMEASURED_TASKS

CLIENTS = 16
KINDS = ["list", "get", "put", "patch", "flip", "delete", "restore"]


def at_once(user: User, call: Callable[[User, int], Any], clients: int = CLIENTS) -> list[Any]:
    """`call` for each client, each with its own connection, all released together."""
    barrier = Barrier(clients)

    def run(number: int) -> Any:
        with User(user.server, user.name) as client:
            client.get("/tasks?limit=1")
            barrier.wait()
            return call(client, number)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(run, range(clients)))


def codes(responses: Iterable[requests.Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


@pytest.mark.parametrize("clients", [15, 16])
def test_flips_are_all_counted(user: User, clients: int) -> None:
    path = f"/tasks/{user.create()['id']}/complete"
    answers = at_once(user, lambda client, _: client.patch(path), clients)
    assert codes(answers) == {200: clients}
    assert len({answer.headers["ETag"] for answer in answers}) == clients
    states = Counter(answer.json()["completed"] for answer in answers)
    assert states == {True: (clients + 1) // 2, False: clients // 2}
    for task in (answer.json() for answer in answers):
        assert task["completed_at"] == (task["updated_at"] if task["completed"] else None)


def test_creates_with_one_key_create_one_task(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    answers = at_once(
        user, lambda client, _: client.post("/tasks", json={"title": "x"}, headers=headers)
    )
    assert codes(answers) == {201: 1, 200: CLIENTS - 1}
    (task,) = user.tasks()
    assert all(answer.json() == task for answer in answers)


def test_creates_with_one_key_and_other_content_have_one_winner(user: User) -> None:
    headers = {"Idempotency-Key": "1"}
    answers = at_once(
        user, lambda client, n: client.post("/tasks", json={"title": f"{n}"}, headers=headers)
    )
    assert codes(answers) == {201: 1, 422: CLIENTS - 1}
    assert len(user.tasks()) == 1


@pytest.mark.parametrize(
    "method, suffix", [("PUT", ""), ("PATCH", ""), ("PATCH", "/complete"), ("DELETE", "")]
)
def test_of_many_writes_with_one_tag_one_wins(user: User, method: str, suffix: str) -> None:
    created = user.post("/tasks", json={"title": "x"})
    path, headers = f"/tasks/{created.json()['id']}{suffix}", {"If-Match": created.headers["ETag"]}
    body = None if suffix or method == "DELETE" else {"title": "y"}
    answers = at_once(
        user, lambda client, _: client.request(method, path, json=body, headers=headers)
    )
    lost = 404 if method == "DELETE" else 412
    assert codes(answers) == {200: 1, lost: CLIENTS - 1}
    winners = [answer.json() for answer in answers if answer.status_code == 200]
    assert user.tasks() == ([] if method == "DELETE" else winners)


def test_writes_of_different_fields_all_survive(user: User) -> None:
    path = f"/tasks/{user.create('old', description='old')['id']}"
    changes = [{"title": "new"}, {"description": "new"}, {"completed": True}]
    answers = at_once(user, lambda client, n: client.patch(path, json=changes[n]), 3)
    assert codes(answers) == {200: 3}
    task = user.get(path).json()
    assert (task["title"], task["description"], task["completed"]) == ("new", "new", True)


def test_the_time_of_the_last_change_always_moves_on(user: User) -> None:
    path = f"/tasks/{user.create()['id']}"

    def change(client: User, number: int) -> list[tuple[str, str]]:
        answers = [client.patch(path, json={"title": f"{number} {turn}"}) for turn in range(20)]
        return [(answer.json()["updated_at"], answer.json()["title"]) for answer in answers]

    changes = sorted(itertools.chain(*at_once(user, change)))
    assert len({moment for moment, _ in changes}) == 20 * CLIENTS
    task = user.get(path).json()
    assert (task["updated_at"], task["title"]) == changes[-1]


def test_many_deletes_delete_once(user: User) -> None:
    path = f"/tasks/{user.create()['id']}"
    answers = at_once(user, lambda client, _: client.delete(path))
    assert codes(answers) == {200: 1, 404: CLIENTS - 1}


def test_many_restores_restore_once(user: User) -> None:
    task = user.to_trash(completed=True)
    path = f"/tasks/{task['id']}/restore"
    answers = at_once(user, lambda client, _: client.post(path))
    assert codes(answers) == {200: CLIENTS}
    assert all(answer.json() == task for answer in answers)
    assert len({answer.headers["ETag"] for answer in answers}) == 1
    assert (user.tasks(), user.trash()) == ([task], [])


def test_deletes_beside_restores_leave_a_task_in_one_place(user: User) -> None:
    """Each delete that succeeds but the last, or each one, is undone by one restore."""
    created = user.post("/tasks", json={"title": "x", "completed": True})
    path = f"/tasks/{created.json()['id']}"

    def write(client: User, number: int) -> list[requests.Response]:
        if number % 2:
            return [client.delete(path) for _ in range(20)]
        return [client.post(f"{path}/restore") for _ in range(20)]

    answers = at_once(user, write)
    restores = list(itertools.chain(*answers[::2]))
    deletes = codes(itertools.chain(*answers[1::2]))
    tags = {answer.headers["ETag"] for answer in restores} - {created.headers["ETag"]}
    trash = user.trash()
    print(f"\ndeletes {dict(deletes)}, restores {len(tags)}, in the trash {len(trash)}")
    assert set(deletes) <= {200, 404}
    assert all((a.status_code, a.json()) == (200, created.json()) for a in restores)
    assert deletes[200] - len(tags) == len(trash) > -1
    assert deletes[200] > 1
    found = [{name: task[name] for name in FIELDS} for task in trash]
    assert user.tasks() + found == [created.json()]


def test_clears_beside_flips_clear_each_task_or_leave_it(user: User) -> None:
    ids = [user.create(f"{number}", completed=number % 2 == 0)["id"] for number in range(60)]

    def write(client: User, number: int) -> tuple[int, Counter[str]]:
        chance, deleted, flips = random.Random(number), 0, Counter[str]()
        for turn in range(20):
            if number % 4 == 0:
                answer = client.delete("/tasks/completed/clear")
                assert answer.status_code == 200
                deleted += answer.json()["deleted"]
                time.sleep(0.01)
            elif turn < 10:
                task_id = chance.choice(ids)
                answer = client.patch(f"/tasks/{task_id}/complete")
                assert answer.status_code in {200, 404}
                flips[task_id] += answer.status_code == 200
        return deleted, flips

    answers = at_once(user, write)
    cleared = sum(deleted for deleted, _ in answers)
    flips = sum((flips for _, flips in answers), Counter[str]())
    tasks, trash = user.tasks(), user.trash()
    print(f"\ncleared {cleared}, in the trash {len(trash)}, left {len(tasks)}, of 60")
    assert cleared == len(trash) > 0
    assert sorted(task["id"] for task in tasks + trash) == sorted(ids)
    for task in tasks + trash:
        assert task["completed"] is ((int(task["title"]) + flips[task["id"]]) % 2 == 0)
        assert (task["completed_at"] is None) is not task["completed"]
    assert all(task["completed"] for task in trash)


def test_clears_at_once_count_each_task_once(user: User) -> None:
    ids = {user.create(completed=True)["id"] for _ in range(100)}
    answers = at_once(user, lambda client, _: client.delete("/tasks/completed/clear"))
    assert codes(answers) == {200: CLIENTS}
    assert sum(answer.json()["deleted"] for answer in answers) == 100
    assert {task["id"] for task in user.trash()} == ids


def test_clears_on_connections_with_different_plans_all_succeed(
    postgres: str, tmp_path: Path
) -> None:
    """Clears that lock the same tasks in different orders would deadlock."""
    url = new_database(postgres)
    plans = ["enable_indexscan=off", "enable_bitmapscan=off%20-c%20enable_seqscan=off"]
    with ExitStack() as stack:
        users = []
        for number, plan in enumerate(plans):
            folder = tmp_path / str(number)
            folder.mkdir()
            server = Server(folder, DATABASE_URL=f"{url}?options=-c%20{plan}")
            user = User(stack.enter_context(server), "ann")
            users.append(stack.enter_context(user))
        users[0].create(completed=True)
        fill(url, "ann", 3000)
        # The index has the reverse of the table's order.
        change_by_hand(url, "UPDATE task SET created_at = now() - (created_at - now())")
        answers = at_once(users[0], lambda _, n: users[n % 2].delete("/tasks/completed/clear"))
    assert codes(answers) == {200: CLIENTS}
    assert sum(answer.json()["deleted"] for answer in answers) == 3001


def test_a_counter_kept_with_if_match_loses_no_update(user: User) -> None:
    path = f"/tasks/{user.create('0')['id']}"

    def count(client: User, _: int) -> None:
        while True:
            read = client.get(path)
            body, headers = (
                {"title": f"{int(read.json()['title']) + 1}"},
                {"If-Match": read.headers["ETag"]},
            )
            if client.put(path, json=body, headers=headers).status_code == 200:
                return

    at_once(user, count)
    assert user.get(path).json()["title"] == f"{CLIENTS}"


def test_walks_under_writes_see_every_task_once(user: User) -> None:
    stay = {user.create(f"stay {number}")["id"] for number in range(60)}

    def walk_or_write(client: User, number: int) -> list[str]:
        if number % 2:
            for turn in range(15):
                task = client.create(f"{number} {turn}")
                client.patch(f"/tasks/{random.choice(list(stay))}/complete")
                client.delete(f"/tasks/{task['id']}")
            return []
        seen: list[str] = []
        url = client.base + "/tasks?limit=9"
        while url:
            response = client.get(url)
            seen += [task["id"] for task in response.json()]
            following = response.links.get("next")
            url = urljoin(url, following["url"]) if following else ""
        return seen

    for seen in at_once(user, walk_or_write)[::2]:
        assert len(seen) == len(set(seen))
        assert stay <= set(seen)


def test_a_crowd_loses_nothing(user: User) -> None:
    """100 users, 20 requests each: what was acknowledged is there."""

    def live(client: User, number: int) -> Counter[int]:
        client.base += f"-{number}"
        chance, seen = random.Random(number), Counter[int]()
        tasks: dict[str, dict[str, Any]] = {}
        gone: dict[str, dict[str, Any]] = {}
        for _turn in range(20):
            task_id = chance.choice([*tasks, ""])
            kind = chance.choice(KINDS)
            if not task_id:
                answer = client.post("/tasks", json={"title": f"{chance.random()}"})
            elif kind == "list":
                answer = client.get("/tasks", params={"limit": 5})
            elif kind == "get":
                answer = client.get(f"/tasks/{task_id}")
                assert answer.json() == tasks[task_id]
            elif kind == "flip":
                answer = client.patch(f"/tasks/{task_id}/complete")
                assert answer.json()["completed"] is not tasks[task_id]["completed"]
            elif kind == "delete":
                answer = client.delete(f"/tasks/{task_id}")
                gone[task_id] = tasks.pop(task_id)
            elif kind == "restore":
                task_id = chance.choice([*gone, task_id])
                answer = client.post(f"/tasks/{task_id}/restore")
                assert answer.json() == (gone.pop(task_id, None) or tasks[task_id])
            else:
                body = {"description": f"{chance.random()}"}
                answer = client.request(kind, f"/tasks/{task_id}", json=body)
            seen[answer.status_code] += 1
            if ("title" in answer.text and kind != "list") or not task_id:
                tasks[answer.json()["id"]] = answer.json()
        assert {task["id"]: task for task in client.tasks()} == tasks
        trash = {task["id"]: task for task in client.trash()}
        assert {
            name: task | {"deleted_at": trash[name]["deleted_at"]} for name, task in gone.items()
        } == trash
        return seen

    seen = sum(at_once(user, live, 100), Counter[int]())
    print(f"{seen.total()} requests: {dict(seen)}")
    assert set(seen) == {200, 201}
    assert seen.total() == 100 * 20


def test_servers_that_start_together_make_one_schema(tmp_path: Path, own_url: str) -> None:
    folders = [tmp_path / f"{number}" for number in range(6)]
    for folder in folders:
        folder.mkdir()
    servers = [Server(folder, DATABASE_URL=own_url) for folder in folders]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
            with User(server, "ann") as user:
                user.create()
                found = len(user.tasks())
        print(f"\nsix servers together: all up, {found} of 6 creates found")
        assert found == 6
        assert [server.stop() for server in servers] == [0] * 6
    assert not {"error", "critical"} & {line["level"] for each in servers for line in each.log()}
    assert not any("database" in line["message"] for each in servers for line in each.log())


@pytest.mark.parametrize(
    ("sort", "changes"),
    [
        ("updated_desc", [{"description": "x"}]),
        ("title", [{"title": "a"}, {"title": "z"}]),
        ("priority", [{"priority": "urgent"}, {"priority": "low"}]),
    ],
)
def test_a_list_by_what_is_being_changed_has_every_task_once(
    user: User, database_url: str, sort: str, changes: list[dict[str, object]]
) -> None:
    """Also one that is so long that its second part is measured."""
    user.create("m")
    fill(database_url, user.name, UNMEASURED_TASKS + 100)
    ids = {task["id"] for task in user.tasks()}
    stopped = Event()

    def change() -> None:
        with User(user.server, user.name) as writer:
            for change in itertools.cycle(changes):
                for task_id in ids:
                    if stopped.is_set():
                        return
                    writer.patch(f"/tasks/{task_id}", json=change)

    thread = Thread(target=change)
    thread.start()
    try:
        for _ in range(40):
            found = [task["id"] for task in user.tasks(sort=sort)]
            assert len(found) == len(ids) and set(found) == ids
    finally:
        stopped.set()
        thread.join()
