"""Deletes, restores and clears on a PostgreSQL that loses every connection."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.network import KILL
from support.server import FIELDS, Server, User

from testbed.cluster import Cluster


class Client:
    """A user of their own, who knows what must be in the list and in the trash."""

    def __init__(self, server: Server, number: int) -> None:
        self.user = User(server, f"client-{number}")
        self.tasks: dict[str, dict[str, Any]] = {}
        self.trash: dict[str, dict[str, Any]] = {}
        self.answers = Counter[tuple[str, int]]()
        self.wrong: list[str] = []

    def send(self, method: str, path: str, expected: int, **options: Any) -> Any:
        """The JSON of the answer, which must have the `expected` status."""
        answer = self.user.request(method, path, **options)
        self.answers[method, answer.status_code] += 1
        if answer.status_code != expected:
            self.wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def expect(self, found: object, expected: object) -> None:
        if found != expected:
            self.wrong.append(f"{found} instead of {expected}")

    def turn(self, number: int) -> None:
        """Create, delete, restore, delete again, and clear: each write changes what it should."""
        made = [
            self.send("POST", "/tasks", 201, json={"title": f"{number}", "completed": completed})
            for completed in (False, True, True)
        ]
        first, *completed = made
        path = f"/tasks/{first['id']}"
        self.tasks[first["id"]] = first
        self.send("DELETE", path, 200)
        self.send("DELETE", path, 404)
        self.expect(self.send("POST", f"{path}/restore", 200), first)
        self.expect(self.send("POST", f"{path}/restore", 200), first)
        tag = self.user.get(path).headers["ETag"]
        if number % 2:
            self.send("DELETE", path, 412, headers={"If-Match": '"x"'})
            self.send("DELETE", path, 200, headers={"If-Match": tag})
            self.trash[first["id"]] = self.tasks.pop(first["id"])
        cleared = self.send("DELETE", "/tasks/completed/clear", 200)
        self.expect(cleared.get("deleted"), len(completed))
        self.trash |= {task["id"]: task for task in completed}

    def check(self) -> None:
        found = {task["id"]: task for task in self.user.tasks()}
        trash = self.user.trash()
        self.expect(found, self.tasks)
        self.expect({t["id"]: {name: t[name] for name in FIELDS} for t in trash}, self.trash)
        self.expect(len(trash), len(self.trash))


@pytest.mark.stops_postgres
@pytest.mark.parametrize("seconds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_deletes_and_restores_while_every_backend_is_killed_every_50_ms(
    tmp_path: Path, cluster: Cluster, database: str, seconds: int
) -> None:
    # One process: a second one may still look at the schema when its connection is killed.
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server:
        clients = [Client(server, number) for number in range(8)]
        end = time.monotonic() + seconds

        def live(client: Client) -> None:
            number = 0
            while time.monotonic() < end:
                number += 1
                client.turn(number)

        threads = [threading.Thread(target=live, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        killed = 0
        while time.monotonic() < end:
            killed += len(cluster.execute(KILL))
            time.sleep(0.05)
        for thread in threads:
            thread.join(30)
        for client in clients:
            client.check()
            client.user.close()
    answers = sum((client.answers for client in clients), Counter[tuple[str, int]]())
    rows = cluster.execute("SELECT count(*), count(deleted_at) FROM task", database)[0]
    listed, gone = (sum(len(getattr(c, name)) for c in clients) for name in ("tasks", "trash"))
    print(f"\n{killed} backends killed: {answers.total()} writes {dict(answers)}")
    print(f"expected {listed} tasks in lists and {gone} in trashes; the table: {rows}")
    assert [line for client in clients for line in client.wrong] == []
    assert rows == (listed + gone, gone)
    assert killed > 10 * seconds
