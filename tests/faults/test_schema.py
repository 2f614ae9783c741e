"""Schemas that take long to upgrade, and tables of somebody else."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
from support.commands import failure, run_command
from support.network import Network, eventually
from support.server import (
    HASTY,
    MIGRATE_FROM,
    MIGRATIONS,
    ROOT,
    Server,
    User,
    change_by_hand,
    changed_app,
    fill,
    insert_by_hand,
    make_schema_of,
)

from database.postgres import SCHEMA_LOCK
from testbed.cluster import Cluster

SLOW_MIGRATION = """
import time
from peewee import SqliteDatabase

def up(migrator, db):
    db.execute_sql("CREATE TABLE IF NOT EXISTS slow (n integer)")
    db.execute_sql("INSERT INTO slow VALUES (1)")
    if isinstance(db, SqliteDatabase):
        time.sleep(10)
    else:
        db.execute_sql("SELECT pg_sleep(10)")
"""
# A long statement, and a long pause after it.
PAUSING_MIGRATION = """
import time

def up(migrator, db):
    db.execute_sql("SELECT pg_sleep(1)")
    time.sleep(1)
"""
CANCELED_MIGRATION = """
def up(migrator, db):
    db.execute_sql("SELECT pg_cancel_backend(pg_backend_pid())")
"""
NEXT_MIGRATION = """
def up(migrator, db):
    db.execute_sql("ALTER TABLE task ADD COLUMN next_field text NOT NULL DEFAULT ''")
"""
UPGRADING = "The database is being upgraded. Nothing has changed. Try again soon."


def with_migration(folder: Path, text: str) -> str:
    """The application in `folder`, with one migration more."""
    migrations = folder / "migrations"
    migrations.mkdir(parents=True)
    for file in (ROOT / "database" / "migrations").glob("*.py"):
        (migrations / file.name).write_text(file.read_text())
    (migrations / "9999_slow.py").write_text(text)
    return changed_app(folder, MIGRATE_FROM.format(str(migrations)))


@pytest.mark.slow
def test_a_migration_of_10_seconds_runs_once_to_its_end(tmp_path: Path, own_url: str) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    servers = [
        Server(folder, app=with_migration(folder, SLOW_MIGRATION), DATABASE_URL=own_url)
        for folder in folders
    ]
    details, healths, done = Counter[str](), [], threading.Event()

    def ask(server: Server) -> None:
        while not done.is_set():
            start = time.monotonic()
            assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
            healths.append(time.monotonic() - start)
            for path in ("/ready", "/api/ann/tasks"):
                answer = requests.get(server.url + path, timeout=10)
                details[answer.json()["detail"] if answer.status_code == 503 else "200"] += 1

    started = time.monotonic()
    with servers[0].wait(), servers[1].wait():
        threads = [threading.Thread(target=ask, args=(server,)) for server in servers for _ in "12"]
        for thread in threads:
            thread.start()
        took = [
            eventually(lambda s=server: requests.get(f"{s.url}/ready").status_code == 200, 30)
            for server in servers
        ]
        total = time.monotonic() - started
        done.set()
        for thread in threads:
            thread.join(10)
        with User(servers[0], "ann") as user:
            # The other process of the server may still be about to see that it can go on.
            eventually(lambda: user.post("/tasks", json={"title": "x"}).status_code == 201, 1)
        seen = "".join(server.log_file.read_text() for server in servers)
    print(f"\na migration of 10 s: ready after {total:.1f} s ({took}), {dict(details)}")
    print(f"/health {max(healths):.3f} s at most")
    assert max(healths) < 1
    assert set(details) == {"200", UPGRADING}
    assert seen.count("applied the migration 9999_slow") == 1
    assert total < 20


def test_a_migration_outlasts_the_limits_of_the_database(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Which an operator, or a provider, has set for everybody."""
    for limit in ("statement", "transaction", "idle_in_transaction_session"):
        cluster.execute(f"ALTER DATABASE {database} SET {limit}_timeout = '500ms'")
    app = with_migration(tmp_path, PAUSING_MIGRATION)
    with Server(tmp_path, app=app, DATABASE_URL=cluster.url(database)) as server:
        eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 10)


def test_the_reason_why_a_migration_failed_is_in_the_log(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Here an operator cancels it; it could also be a full disk."""
    app = with_migration(tmp_path, CANCELED_MIGRATION)
    with Server(tmp_path, app=app, DATABASE_URL=cluster.url(database)) as server:
        assert requests.get(f"{server.url}/ready").status_code == 503
    assert "canceling statement due to user request" in server.log_file.read_text()


@contextmanager
def upgrade_beside_a_dump(
    tmp_path: Path, url: str, **settings: str
) -> Iterator[tuple[Server, User, Any]]:
    """A server of the next release, a user of this one, and the dump, whose rollback ends it.

    Today's last migration may add a field that today's lists read, so this release is no old one.
    """
    (tmp_path / "this").mkdir()
    app = with_migration(tmp_path / "next", NEXT_MIGRATION)
    with Server(tmp_path / "this", DATABASE_URL=url) as this, User(this, "ann") as user:
        user.create("Buy milk")
        with closing(psycopg2.connect(url)) as dump:
            dump.cursor().execute("LOCK TABLE task IN ACCESS SHARE MODE")
            with Server(tmp_path / "next", app=app, DATABASE_URL=url, **settings) as new:
                yield new, user, dump


def test_a_migration_does_not_hold_up_other_servers_while_a_dump_runs(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Whoever waits for the table that a dump reads is in the way of everybody else."""
    with upgrade_beside_a_dump(tmp_path, cluster.url(database)) as (new, user, dump):
        start = time.monotonic()
        while time.monotonic() < start + 3:
            assert [task["title"] for task in user.tasks()] == ["Buy milk"]
        assert requests.get(f"{new.url}/ready").json()["detail"] == UPGRADING
        dump.rollback()
        eventually(lambda: requests.get(f"{new.url}/ready").status_code == 200, 15)
    assert "another transaction uses the table" in new.log_file.read_text()


def test_migrations_of_many_servers_leave_others_time_while_a_dump_runs(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """They try one after the other, with one pause between all tries: 2 of 7 seconds are lost."""
    url, done = cluster.url(database), threading.Event()
    with upgrade_beside_a_dump(tmp_path, url, WEB_CONCURRENCY="6") as (new, user, dump):

        def ask(_: int) -> None:
            while not done.is_set():
                answer = requests.get(f"{new.url}/ready", timeout=15)
                assert answer.json()["detail"] == UPGRADING

        with ThreadPoolExecutor(12) as clients:
            asking = clients.map(ask, range(12))
            held_up, start = 0.0, time.monotonic()
            try:
                while (before := time.monotonic()) < start + 14:
                    assert [task["title"] for task in user.tasks()] == ["Buy milk"]
                    took = time.monotonic() - before
                    held_up += took if took > 0.5 else 0
                    time.sleep(0.01)
            finally:
                done.set()
            list(asking)
        dump.rollback()
        eventually(lambda: requests.get(f"{new.url}/ready").status_code == 200, 15)
    print(f"\nsix processes that migrate beside a dump: held up for {held_up:.1f} of 14 s")
    assert held_up < 7


def test_an_upgrade_that_has_to_wait_for_the_table_locks_no_row_meanwhile(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Its second migration changes the row; its third one needs the table, which a dump reads."""
    url = cluster.url(database)
    (tmp_path / "old").mkdir()
    make_schema_of(MIGRATIONS[:1], tmp_path / "old", url)
    insert_by_hand(url, "ann", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}")
    with closing(psycopg2.connect(url)) as dump:
        dump.cursor().execute("LOCK TABLE task IN ACCESS SHARE MODE")
        server = Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1")
        busy = "another transaction uses the table"
        eventually(lambda: busy in server.log_file.read_text(), 10)
        change_by_hand(url, "SELECT FROM task FOR UPDATE NOWAIT")
        dump.rollback()
        with server.wait():
            eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 15)


@pytest.mark.stops_postgres
def test_a_migration_cancels_an_autovacuum_that_is_in_its_way(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """PostgreSQL does so for whoever has waited for a second (deadlock_timeout)."""
    url = cluster.url(database)
    (tmp_path / "old").mkdir()
    make_schema_of(MIGRATIONS[:-1], tmp_path / "old", url)
    insert_by_hand(url, "ann", "Buy milk")
    fill(url, "ann", 5000)
    slowly = {"threshold": 0, "scale_factor": 0, "cost_delay": 100, "cost_limit": 1}
    options = ", ".join(f"autovacuum_vacuum_{name} = {value}" for name, value in slowly.items())
    change_by_hand(url, f"ALTER TABLE task SET ({options})")
    change_by_hand(url, "UPDATE task SET completed = true")
    cluster.execute("ALTER SYSTEM SET autovacuum_naptime = 1")
    cluster.execute("SELECT pg_reload_conf()")
    try:
        vacuums = "SELECT 1 FROM pg_stat_progress_vacuum WHERE datname = current_database()"
        eventually(lambda: change_by_hand(url, vacuums), 20)
        result = run_command(tmp_path, "migrate", DATABASE_URL=url)
    finally:
        cluster.execute("ALTER SYSTEM RESET ALL")
        cluster.execute("SELECT pg_reload_conf()")
    assert (result.exit_code, result.stdout) == (0, f"applied {MIGRATIONS[-1]}\n")


def test_a_migration_whose_connection_is_forgotten_by_a_router(
    tmp_path: Path, cluster: Cluster, database: str, network: Network
) -> None:
    """Another connection makes the schema as soon as PostgreSQL has given up the first one."""

    def forget_once(asked: bytes) -> bool:
        if b"to_regnamespace" in asked:
            network.lose = lambda _: False
            network.forget()
        return False

    network.lose = forget_once
    url = cluster.url(database, network.port)
    with Server(tmp_path, app=HASTY, WEB_CONCURRENCY="1", DATABASE_URL=url) as server:
        assert requests.get(f"{server.url}/ready").json()["detail"] == UPGRADING
        # As it does by itself after a minute.
        assert cluster.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND state = 'idle in transaction'"
        ) == [(True,)]
        took = eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 20)
    print(f"\na migration whose connection is forgotten: ready after another {took:.1f} s")


@pytest.mark.parametrize("statement", [b"pg_settings", b"pg_try_advisory_xact_lock"])
def test_a_wait_for_the_lock_whose_connection_is_forgotten_by_a_router(
    tmp_path: Path, cluster: Cluster, database: str, network: Network, statement: bytes
) -> None:
    """It ends like that of a request, and another connection waits for the lock."""
    forgotten = threading.Event()

    def forget_once(asked: bytes) -> bool:
        if statement in asked and not forgotten.is_set():
            network.forget()
            forgotten.set()
        return False

    with closing(psycopg2.connect(cluster.url(database))) as other:
        other.cursor().execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        network.lose = forget_once
        url = cluster.url(database, network.port)
        with Server(tmp_path, app=HASTY, WEB_CONCURRENCY="1", DATABASE_URL=url) as server:
            assert forgotten.wait(5)
            other.rollback()
            eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 10)


def refusal(server: Server) -> str:
    """Why the server stopped at its start: the one critical line of its log."""
    assert server.process.wait(10) == 4
    (line,) = [line["message"] for line in server.log() if line["level"] == "critical"]
    return str(line)


def test_a_table_beside_the_migrations_of_another_program(tmp_path: Path, own_url: str) -> None:
    """Peewee's own runner keeps its migrations in a table of the same name."""
    change_by_hand(own_url, "CREATE TABLE task (id integer PRIMARY KEY, user_id text, title text)")
    change_by_hand(
        own_url,
        "CREATE TABLE schema_migration"
        " (id integer PRIMARY KEY, name varchar(255), applied timestamp)",
    )
    change_by_hand(
        own_url, "INSERT INTO schema_migration VALUES (1, '0001_users', '2026-01-01 00:00:00')"
    )
    assert "table `task`" in refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert change_by_hand(own_url, "SELECT name FROM schema_migration") == [("0001_users",)]


@pytest.mark.parametrize("own_url", ["postgres"], indirect=True)
def test_a_silent_database_is_not_being_upgraded(tmp_path: Path, own_url: str) -> None:
    assert run_command(tmp_path, "migrate", DATABASE_URL=own_url).exit_code == 0
    with closing(psycopg2.connect(own_url)) as other:
        other.cursor().execute("LOCK TABLE schema_migration")
        with Server(tmp_path, app=HASTY, DATABASE_URL=own_url) as server:
            problems = [requests.get(f"{server.url}/ready").json() for _ in range(4)]
            assert {problem["status"] for problem in problems} == {503}
            assert not any(problem["detail"] == UPGRADING for problem in problems)
            other.rollback()
            eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 5)


def test_a_database_that_falls_silent_is_not_being_upgraded_again(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """The server that asks made the schema itself, and looks for it since the table was away."""
    url = cluster.url(database)
    options = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, app=HASTY, **options) as server, User(server, "ann") as user:
        eventually(lambda: requests.get(f"{server.url}/ready").status_code == 200, 10)
        change_by_hand(url, "ALTER TABLE task RENAME TO away")
        assert user.get("/tasks").status_code == 503
        with closing(psycopg2.connect(url)) as other:
            other.cursor().execute("LOCK TABLE schema_migration")
            problem = requests.get(f"{server.url}/ready").json()
    assert problem["status"] == 503
    assert problem["detail"] != UPGRADING


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE task (id integer PRIMARY KEY, title varchar NOT NULL, done boolean)",
        "CREATE VIEW task AS SELECT 1 AS id",
    ],
)
def test_a_table_task_of_somebody_else_stops_the_start(
    tmp_path: Path, own_url: str, table: str
) -> None:
    change_by_hand(own_url, table)
    if "TABLE" in table:
        change_by_hand(own_url, "INSERT INTO task VALUES (1, 'x', true)")
    before = change_by_hand(own_url, "SELECT * FROM task")
    line = refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert "table `task`" in line
    rows = change_by_hand(own_url, "SELECT * FROM task")
    print(f"\na table of somebody else: the start is refused, its rows {rows}")
    assert rows == before and len(rows) == 1
    if "TABLE" in table:
        change_by_hand(own_url, "INSERT INTO task VALUES (2, 'x', true)")


@pytest.mark.parametrize("own_url", ["sqlite"], indirect=True)
def test_a_table_task_in_another_case_stays_as_it_was(tmp_path: Path, own_url: str) -> None:
    """To SQLite, `Task` and `task` are one name."""
    change_by_hand(own_url, "CREATE TABLE Task (id integer)")
    assert "table `task`" in refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert change_by_hand(own_url, "SELECT name FROM sqlite_master") == [("Task",)]


@pytest.mark.parametrize("own_url", ["sqlite"], indirect=True)
def test_a_file_of_another_program_stays_as_it_was(tmp_path: Path, own_url: str) -> None:
    """A log beside it would be kept for good, and its program may not expect one."""
    change_by_hand(own_url, "CREATE TABLE task (id integer)")
    before = Path(own_url.removeprefix("sqlite:///")).read_bytes()
    assert "table `task`" in refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert change_by_hand(own_url, "PRAGMA journal_mode") == [("delete",)]
    assert Path(own_url.removeprefix("sqlite:///")).read_bytes() == before


def test_the_indexes_of_a_kept_copy_stop_the_start(tmp_path: Path, own_url: str) -> None:
    assert run_command(tmp_path, "migrate", DATABASE_URL=own_url).exit_code == 0
    change_by_hand(own_url, "ALTER TABLE task RENAME TO task_old")
    change_by_hand(own_url, "DROP TABLE schema_migration")
    line = refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert "already exists" in line
    change_by_hand(own_url, "DROP TABLE task_old")
    with Server(tmp_path, DATABASE_URL=own_url) as server, User(server, "ann") as ann:
        ann.create()


@pytest.mark.parametrize(
    "other",
    [
        "CREATE TYPE task AS ENUM ('a')",
        "CREATE TYPE schema_migration AS ENUM ('a')",
        "CREATE SEQUENCE schema_migration",
        "CREATE TABLE schema_migration (name text)",
        "CREATE TABLE other (a integer); CREATE INDEX task_deleted_at ON other (a)",
        "CREATE TABLE other (a integer); CREATE INDEX task_user_id_created_at_id ON other (a)",
    ],
)
@pytest.mark.parametrize("own_url", ["postgres"], indirect=True)
def test_a_name_that_somebody_else_uses_stops_the_start(
    tmp_path: Path, own_url: str, other: str
) -> None:
    change_by_hand(own_url, other)
    line = refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert "expected another database" in line


@pytest.mark.parametrize("columns", ["version varchar(14) PRIMARY KEY", "name text, run_on text"])
def test_a_table_of_migrations_of_somebody_else_stops_the_start(
    tmp_path: Path, own_url: str, columns: str
) -> None:
    change_by_hand(own_url, f"CREATE TABLE schema_migration ({columns})")
    line = refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert "table `schema_migration` of another program" in line
    assert failure(tmp_path, "migrate", DATABASE_URL=own_url) == line


def test_a_table_that_was_dropped_stops_the_start(tmp_path: Path, own_url: str) -> None:
    assert run_command(tmp_path, "migrate", DATABASE_URL=own_url).exit_code == 0
    change_by_hand(own_url, "DROP TABLE task")
    line = refusal(Server(tmp_path, DATABASE_URL=own_url))
    assert "the table `task` is missing" in line
    assert failure(tmp_path, "migrate", DATABASE_URL=own_url) == line
    change_by_hand(own_url, "DROP TABLE schema_migration")
    with Server(tmp_path, DATABASE_URL=own_url) as server, User(server, "ann") as ann:
        ann.create()


def test_an_installation_without_migrations_stops_the_start(tmp_path: Path, own_url: str) -> None:
    app = changed_app(tmp_path, MIGRATE_FROM.format("/nowhere"))
    line = refusal(Server(tmp_path, app=app, DATABASE_URL=own_url))
    assert line == "/nowhere has no migrations: the installation is incomplete"


@pytest.mark.stops_postgres
def test_a_table_of_somebody_else_that_is_found_later_is_a_503(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    cluster.execute("CREATE TABLE task (id integer PRIMARY KEY)", database)
    cluster.stop("fast")
    with Server(tmp_path, DATABASE_URL=cluster.url(database)) as server:
        cluster.start()
        assert requests.get(f"{server.url}/ready").status_code == 503
    assert "table `task`" in server.log_file.read_text()
    assert cluster.execute("SELECT * FROM task", database) == []


def test_a_server_whose_schema_is_current_needs_no_lock(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """A frozen container can hold it for hours."""
    url = cluster.url(database)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with Server(tmp_path / "first", DATABASE_URL=url):
        pass
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("SELECT pg_advisory_lock(%s)", (SCHEMA_LOCK,))
        with Server(tmp_path / "second", DATABASE_URL=url) as server, User(server, "ann") as user:
            user.create()
    assert "unavailable" not in server.log_file.read_text()


def test_a_migration_does_not_wait_for_the_lock_for_ever(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    app = changed_app(tmp_path, "import database.postgres; database.postgres.LOCK_WAIT_S = 0.5")
    url = cluster.url(database)
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("SELECT pg_advisory_lock(%s)", (SCHEMA_LOCK,))
        with Server(tmp_path, app=app, DATABASE_URL=url) as server:
            assert requests.get(f"{server.url}/ready").json()["detail"] == UPGRADING
    assert "another server is upgrading the schema" in server.log_file.read_text()


@pytest.mark.parametrize(
    "protection",
    [
        "ALTER TABLE task ENABLE ROW LEVEL SECURITY",
        "CREATE TRIGGER z BEFORE UPDATE ON task FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TABLE z (id text PRIMARY KEY);"
        " ALTER TABLE task ADD FOREIGN KEY (user_id) REFERENCES z ON DELETE CASCADE",
        "CREATE RULE z AS ON DELETE TO task DO INSTEAD NOTHING",
        "CREATE PUBLICATION z FOR TABLE task",
        "CREATE PUBLICATION z FOR ALL TABLES",
        "CREATE PUBLICATION z FOR TABLES IN SCHEMA public",
        "ALTER TABLE task REPLICA IDENTITY FULL",
    ],
)
def test_the_script_for_partitions_drops_no_protection_of_the_table(
    tmp_path: Path, cluster: Cluster, database: str, protection: str
) -> None:
    url = cluster.url(database)
    assert run_command(tmp_path, "migrate", DATABASE_URL=url).exit_code == 0
    cluster.execute(protection, database)
    with pytest.raises(psycopg2.errors.RaiseException, match="its copy would lose"):
        change_by_hand(url, (ROOT / "docs" / "partitions.sql").read_text())
    kind = "SELECT relkind FROM pg_class WHERE oid = 'task'::regclass"
    assert cluster.execute(kind, database) == [("r",)]


def test_the_script_for_partitions_leaves_the_table_in_its_schema(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """By default, a schema with the name of the database's user comes first."""
    url = cluster.url(database)
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as user:
        task = user.create()
        cluster.execute("CREATE SCHEMA postgres", database)
        change_by_hand(url, (ROOT / "docs" / "partitions.sql").read_text())
        assert user.tasks() == [task]
