"""The database that all use, 1,100 users with 101,000 tasks, and the requests that are made."""

import random
from contextlib import closing
from typing import Any

import psutil
import psycopg2

from testbed.cluster import Cluster

# 1,000 users with 10 tasks, 10 with 100 and 90 with 1,000.
SEED = """
    INSERT INTO {table} (id, user_id, title, description, completed, created_at, updated_at{more})
    SELECT gen_random_uuid(), prefix || u, 'Task ' || n, 'What is to be done, and why', n % 3 = 0,
        now() - n * interval '1 minute', now() - n * interval '1 minute'{values}
    FROM (VALUES ('a', 1000, 10), ('b', 10, 100), ('c', 90, 1000)) AS kinds (prefix, users, tasks),
        generate_series(1, users) AS u, generate_series(1, tasks) AS n
"""
# Tasks that are there to be deleted.
DOOMED = """
    DELETE FROM {table} WHERE user_id = 'd1' OR user_id LIKE 'n%';
    INSERT INTO {table} (id, user_id, title, description, completed, created_at, updated_at{more})
    SELECT gen_random_uuid(), 'd1', 'Task ' || n, 'What is to be done, and why', false,
        now(), now(){values}
    FROM generate_series(1, {count}) AS n
"""
# What only this service keeps besides.
MORE = ", revision, title_lower, title_folded, description_folded"
VALUES = """,
    gen_random_uuid(), lower('Task ' || n), lower('Task ' || n), 'what is to be done, and why'"""
# As the peers' own tools would make it, with the index that its list needs.
PEER_TABLE = """
    CREATE TABLE peer_task (
        id uuid PRIMARY KEY, user_id varchar(255) NOT NULL, title varchar(500) NOT NULL,
        description text, completed boolean NOT NULL,
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL
    );
    CREATE INDEX ON peer_task (user_id, created_at);
"""
BODY = '{"title": "Buy milk", "description": "Two bottles, and bread"}'
OPERATIONS = ("get", "list 10", "list 100", "list 1000", "create", "update", "flip", "delete")
MIX = {"list 10": 70, "create": 10, "flip": 10, "update": 5, "delete": 5}


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

    def seed(self) -> None:
        """Fill both tables alike. Ours is there: the service has made it."""
        self.execute(PEER_TABLE)
        self.execute(SEED.format(table="task", more=MORE, values=VALUES))
        self.execute(SEED.format(table="peer_task", more="", values=""))

    def restore(self, table: str, doomed: int) -> None:
        """Bring back what was deleted, and take away what was created."""
        more, values = (MORE, VALUES) if table == "task" else ("", "")
        self.execute(DOOMED.format(table=table, more=more, values=values, count=doomed))
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
            doomed = [id for (id,) in cursor.fetchall()]
        operations = {
            "get": [f"GET /api/{user}/tasks/{id} -" for user, id in tasks],
            "list 10": [f"GET /api/a{n}/tasks -" for n in range(1, 1001)],
            "list 100": [f"GET /api/b{n}/tasks -" for n in range(1, 11)],
            "list 1000": [f"GET /api/c{n}/tasks -" for n in range(1, 91)],
            "create": [f"POST /api/n{n}/tasks - {BODY}" for n in range(1, 1001)],
            "update": [f"PUT /api/{user}/tasks/{id} - {BODY}" for user, id in tasks],
            "flip": [f"PATCH /api/{user}/tasks/{id}/complete -" for user, id in tasks],
            "delete": [f"DELETE /api/d1/tasks/{id} -" for id in doomed],
        }
        mix = [
            operations[name][(turn * share + n) % len(operations[name])]
            for turn in range(100 * seconds)
            for name, share in MIX.items()
            for n in range(share)
        ]
        random.Random(0).shuffle(mix)
        return operations | {"mix": mix}
