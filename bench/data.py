"""The database that all use, 1,100 users with 101,000 tasks, and the requests that are made."""

import json
import random
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import psutil
import psycopg2

from testbed.cluster import Cluster

# 1,000 users with 10 tasks, 10 with 100 and 90 with 1,000.
SEED = """
    SELECT prefix || u AS owner, n
    FROM (VALUES ('a', 1000, 10), ('b', 10, 100), ('c', 90, 1000)) AS kinds (prefix, users, tasks),
        generate_series(1, users) AS u, generate_series(1, tasks) AS n
"""
# Tasks that are in the trash of this service: ten users with 100.
TRASH = "SELECT 'e' || u AS owner, n FROM generate_series(1, 10) AS u, generate_series(1, 100) AS n"
# More than any service deletes.
TASKS_PER_SECOND = 20_000
# Tasks that are there to be deleted.
DOOMED = "SELECT 'd1' AS owner, n FROM generate_series(1, {count}) AS n"
# The tags of the n-th task: home and errands, work, home or none.
TAGS = "CASE n % 5 WHEN 0 THEN {} WHEN 1 THEN {} WHEN 2 THEN {} ELSE {} END"
TITLE = "(ARRAY['Buy milk', 'Call the bank', 'Water plants', 'Pay rent', 'Fix it'])[1 + n % 5]"
# The columns of the n-th task of an owner. Half of the tasks have a due date, a half another
# priority than the default.
PEER_TASK = {
    "id": "gen_random_uuid()",
    "user_id": "owner",
    "title": f"{TITLE} || ' ' || n",
    "description": "'What is to be done, and why'",
    "completed": "n % 3 = 0",
    "created_at": "now() - n * interval '1 minute'",
    "updated_at": "now() - n * interval '1 minute'",
    "priority": "CASE n % 4 WHEN 0 THEN 'high' WHEN 1 THEN 'low' ELSE 'medium' END",
    "due_date": "CASE n % 2 WHEN 0 THEN date '2026-01-01' + n % 100 END",
    "tags": TAGS.format("'{home,errands}'::text[]", "'{work}'", "'{home}'", "'{}'"),
    "completed_at": "CASE n % 3 WHEN 0 THEN now() - n * interval '1 minute' END",
}
# This service stores dates and tags as text, and texts for searching and sorting besides.
TASK = PEER_TASK | {
    "due_date": f"({PEER_TASK['due_date']})::text",
    "tags": TAGS.format("""'["home","errands"]'""", """'["work"]'""", """'["home"]'""", "'[]'"),
    "revision": "gen_random_uuid()",
    "title_lower": f"lower({TITLE} || ' ' || n)",
    "title_folded": f"lower({TITLE} || ' ' || n)",
    "description_folded": "'what is to be done, and why'",
    "priority_folded": PEER_TASK["priority"],
    "tags_folded": TAGS.format(r"E'\nhome\n\nerrands\n'", r"E'\nwork\n'", r"E'\nhome\n'", "''"),
}
TABLES = {"task": TASK, "peer_task": PEER_TASK}
# As the peers' own tools would make it, with the index that its list needs.
PEER_TABLE = """
    CREATE TABLE peer_task (
        id uuid PRIMARY KEY, user_id varchar(255) NOT NULL, title varchar(500) NOT NULL,
        description text, completed boolean NOT NULL,
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
        priority varchar(20) NOT NULL, due_date date, tags varchar(50)[] NOT NULL,
        completed_at timestamptz
    );
    CREATE INDEX ON peer_task (user_id, created_at);
"""
BODY = json.dumps(
    {
        "title": "Buy milk",
        "description": "Two bottles, and bread",
        "priority": "high",
        "due_date": "2026-03-01",
        "tags": ["home", "errands"],
    }
)
# What a list is filtered and sorted by.
FILTERS = {
    "filter by status": "status=pending",
    "filter by priority": "priority=high",
    "filter by tag": "tag=work",
    "filter by due date": "due_date_from=2026-01-10&due_date_to=2026-02-09",
    "search": "search=the%20bank",
}
SORTS = {
    "sort by title": "sort=title",
    "sort by due date": "sort=due_date",
    "sort by priority": "sort=priority&order=desc",
}
QUERIES = FILTERS | SORTS


class Sample(NamedTuple):
    """Tasks with their owners, and tasks of the user d1 that may be deleted."""

    tasks: list[tuple[str, str]]
    doomed: list[str]


def lists(prefix: str, users: int, query: str = "") -> list[str]:
    return [f"GET /api/{prefix}{n}/tasks{query} -" for n in range(1, users + 1)]


READS: dict[str, Callable[[Sample], list[str]]] = {
    "get": lambda sample: [f"GET /api/{user}/tasks/{id} -" for user, id in sample.tasks],
    "list 10": lambda _: lists("a", 1000),
    "list 100": lambda _: lists("b", 10),
    "list 1000": lambda _: lists("c", 90),
    **{name: lambda _, query=query: lists("b", 10, f"?{query}") for name, query in QUERIES.items()},
    "list trash of 100": lambda _: lists("e", 10, "/deleted"),
    "clear nothing": lambda _: [f"DELETE /api/e{n}/tasks/completed/clear -" for n in range(1, 11)],
}
WRITES: dict[str, Callable[[Sample], list[str]]] = {
    "create": lambda _: [f"POST /api/n{n}/tasks - {BODY}" for n in range(1, 1001)],
    "update": lambda sample: [f"PUT /api/{user}/tasks/{id} - {BODY}" for user, id in sample.tasks],
    "flip": lambda sample: [
        f"PATCH /api/{user}/tasks/{id}/complete -" for user, id in sample.tasks
    ],
    "delete": lambda sample: [f"DELETE /api/d1/tasks/{id} -" for id in sample.doomed],
    "restore": lambda sample: [f"POST /api/d1/tasks/{id}/restore -" for id in sample.doomed],
}
# Only this service has a trash.
OF_TRASH = {"list trash of 100", "clear nothing", "restore"}
OPERATIONS = READS | WRITES
# The requests of a frontend in percent. Half of the frontends send a filter or a sort key.
FILTERED = "list 10, filtered"
MIX = {"list 10": 50, FILTERED: 20, "create": 10, "flip": 10, "update": 5, "delete": 5}


class Database:
    """A database of a running cluster; `url` goes straight to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.name = cluster.new_database()
        self.cluster = cluster
        self.url = cluster.url(self.name)
        pid = (cluster.data / "postmaster.pid").read_text().split()[0]
        self.postmaster = psutil.Process(int(pid))

    def url_through(self, port: int) -> str:
        return self.cluster.url(self.name, port)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self.cluster.execute(sql, self.name)

    def version(self) -> str:
        return self.execute("SHOW server_version")[0][0]

    def fill(self, table: str, numbers: str) -> None:
        """Insert a task for each `owner` and `n` that the query `numbers` returns."""
        row = TABLES[table]
        values = ", ".join(row.values())
        self.execute(f"INSERT INTO {table} ({', '.join(row)}) SELECT {values} FROM ({numbers})")

    def seed(self) -> None:
        """Fill both tables alike. Ours is there: the service has made it."""
        self.execute(PEER_TABLE)
        for table in TABLES:
            self.fill(table, SEED)
        self.fill("task", TRASH)
        self.execute("UPDATE task SET deleted_at = now() WHERE user_id LIKE 'e%'")

    def restore(self, table: str, doomed: int, *, deleted: bool = False) -> None:
        """Remove new tasks, and add tasks to be deleted, or `deleted` tasks to be restored."""
        self.execute(f"DELETE FROM {table} WHERE user_id = 'd1' OR user_id LIKE 'n%'")
        self.fill(table, DOOMED.format(count=doomed))
        if deleted:
            self.execute(f"UPDATE {table} SET deleted_at = now() WHERE user_id = 'd1'")
        self.execute(f"VACUUM ANALYZE {table}")
        self.execute("CHECKPOINT")

    def requests(self, table: str, seconds: int) -> dict[str, list[str]]:
        """The requests of each operation, enough that no task is deleted twice in `seconds`."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"SELECT user_id, id FROM {table} WHERE user_id LIKE 'a%' ORDER BY 1, 2 LIMIT 2000"
            )
            tasks = cursor.fetchall()
            cursor.execute(f"SELECT id FROM {table} WHERE user_id = 'd1'")
            sample = Sample(tasks, [id for (id,) in cursor.fetchall()])
        operations = {name: lines_of(sample) for name, lines_of in OPERATIONS.items()}
        parts = operations | {FILTERED: lists("a", 1000, "?status=pending&sort=due_date")}
        mix = [
            parts[name][(turn * share + n) % len(parts[name])]
            for turn in range(100 * seconds)
            for name, share in MIX.items()
            for n in range(share)
        ]
        random.Random(0).shuffle(mix)
        return operations | {"mix": mix}
