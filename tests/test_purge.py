"""The end of a trash: purges at the start of a server and by hand, and `forget`."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest
from support.commands import failure, run_command
from support.network import Network, eventually
from support.server import Server, User, change_by_hand, changed_app, fill, insert_by_hand

import models
from app import open_database
from database import sqlite
from testbed.cluster import PASSWORD
from testbed.settings import SETTINGS

LIMIT = 1000  # The most tasks that one statement removes.
# A change for `changed_app`: every pause of the purging thread is in the log, and short.
SHORT_PAUSES = """
import app
from time import sleep

def pause(seconds):
    app.log.info("pausing for %d seconds", seconds)
    sleep(0.1)

app.sleep = pause
"""


@pytest.fixture
def database_url(own_url: str) -> str:
    """It has the tables."""
    assert open_database(replace(SETTINGS, database_url=own_url)).migrate()
    return own_url


on_postgres = pytest.mark.parametrize("own_url", ["postgres"], indirect=True)


def days_ago(days: float) -> str:
    moment = datetime.now(UTC) - timedelta(days)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_trash(database_url: str, title: str, days: float, user: str = "ann") -> str:
    """Insert a task that was deleted so long ago, and return its id."""
    return insert_by_hand(database_url, user, title, deleted_at=days_ago(days))


def titles(database_url: str) -> list[str]:
    """The titles of all tasks, also of those in the trash."""
    return sorted(title for (title,) in change_by_hand(database_url, "SELECT title FROM task"))


def purged(server: Server) -> int:
    """How many tasks the processes of a server say that they have purged."""
    said = (re.fullmatch(r"purged (\d+) tasks from the trash", m["message"]) for m in server.log())
    return sum(int(match[1]) for match in said if match)


def pauses(server: Server) -> set[str]:
    """The different pauses after a purge, in seconds, as SHORT_PAUSES logs them."""
    said = (re.fullmatch(r"pausing for (\d+) seconds", m["message"]) for m in server.log())
    return {match[1] for match in said if match}


def fill_trash(database_url: str, number: int) -> None:
    to_trash(database_url, "old", 31)
    fill(database_url, "ann", number - 1)
    to_trash(database_url, "young", 29, "bob")
    insert_by_hand(database_url, "bob", "kept")


@contextmanager
def counted_batches(database_url: str) -> Iterator[list[int]]:
    """How many rows each statement has removed that removed any; filled in at the end."""
    change_by_hand(
        database_url,
        """
        CREATE TABLE batch (number integer);
        CREATE FUNCTION count_batch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO batch SELECT count(*) FROM gone HAVING count(*) > 0; RETURN NULL;
        END $$;
        CREATE TRIGGER counted AFTER DELETE ON task REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION count_batch();
        """,
    )
    batches: list[int] = []
    yield batches
    batches += [number for (number,) in change_by_hand(database_url, "SELECT number FROM batch")]


def waiting(database_url: str) -> int:
    """How many statements wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return int(change_by_hand(database_url, f"{sql} AND datname = current_database()")[0][0])


@pytest.mark.parametrize(
    "days, kept",
    [
        ({}, ["29", "30 less a minute", "live"]),
        ({"TRASH_DAYS": "30"}, ["29", "30 less a minute", "live"]),
        ({"TRASH_DAYS": "1"}, ["live"]),
        ({"TRASH_DAYS": "31"}, ["29", "30 and a minute", "30 less a minute", "live"]),
    ],
    ids=str,
)
def test_a_server_purges_at_its_start_what_is_old(
    tmp_path: Path, database_url: str, days: dict[str, str], kept: list[str]
) -> None:
    minute = 1 / 24 / 60
    insert_by_hand(database_url, "ann", "live")
    for title, age in {
        "29": 29,
        "30 less a minute": 30 - minute,
        "30 and a minute": 30 + minute,
        "400": 400,
    }.items():
        to_trash(database_url, title, age, f"user {title}")
    with Server(tmp_path, DATABASE_URL=database_url, **days) as server:
        eventually(lambda: titles(database_url) == kept, 10)
        eventually(lambda: purged(server) == 5 - len(kept), 10)
    assert titles(database_url) == kept


def test_a_running_server_purges_every_day(tmp_path: Path, database_url: str) -> None:
    app = changed_app(tmp_path, SHORT_PAUSES)
    with Server(tmp_path, app=app, DATABASE_URL=database_url) as server:
        eventually(lambda: pauses(server) == {"86400"}, 5)
        to_trash(database_url, "old", 31)
        eventually(lambda: titles(database_url) == [], 5)


def test_a_task_in_the_trash_that_version_1_0_has_changed_is_kept(
    tmp_path: Path, database_url: str
) -> None:
    """After a return to 1.0, users see such a task, and 1.0 acknowledges what they write to it."""
    to_trash(database_url, "old", 31)
    changed = {"deleted_at": days_ago(31), "updated_at": days_ago(1)}
    task_id = insert_by_hand(database_url, "ann", "changed", **changed)
    with Server(tmp_path, DATABASE_URL=database_url) as server, User(server, "ann") as user:
        eventually(lambda: purged(server) == 1, 5)
        assert titles(database_url) == ["changed"]
        assert user.post(f"/tasks/{task_id}/restore").json()["title"] == "changed"


@on_postgres
def test_a_day_of_the_trash_has_24_hours_in_every_time_zone(
    tmp_path: Path, database_url: str
) -> None:
    """In that of the database, summer time has begun ten days ago."""
    begin, end = (datetime.now(UTC) + timedelta(days) for days in (-10, 10))
    zone = ",".join(["AAA0BBB", *(f"{day.timetuple().tm_yday - 1}/0" for day in (begin, end))])
    name = database_url.rpartition("/")[2]
    change_by_hand(database_url, f"ALTER DATABASE {name} SET timezone = '{zone}'")
    minute = 1 / 24 / 60
    for title, age in {"young": 30 - minute, "old": 30 + minute}.items():
        to_trash(database_url, title, age)
    assert run_command(tmp_path, "purge", DATABASE_URL=database_url).exit_code == 0
    assert titles(database_url) == ["young"]


@pytest.mark.parametrize("own_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("microsecond", [0, 1, 123_456, 123_600, 999_999])
def test_a_purge_is_not_a_millisecond_early(
    tmp_path: Path, database_url: str, microsecond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC).replace(microsecond=microsecond)
    clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, zone: now)})
    monkeypatch.setattr(sqlite, "datetime", clock)
    for title, age in {"young": timedelta(30), "old": timedelta(30, 1)}.items():
        insert_by_hand(database_url, "ann", title, deleted_at=sqlite.rfc3339(now - age))
    assert run_command(tmp_path, "purge", DATABASE_URL=database_url).exit_code == 0
    assert titles(database_url) == ["young"]


def test_a_trash_of_0_days_is_kept_for_ever(tmp_path: Path, database_url: str) -> None:
    task_id = to_trash(database_url, "old", 40_000)
    options = {"DATABASE_URL": database_url, "TRASH_DAYS": "0"}
    with Server(tmp_path, **options) as server, User(server, "ann") as ann:
        time.sleep(1)
        assert [task["id"] for task in ann.trash()] == [task_id]
        assert ann.post(f"/tasks/{task_id}/restore").status_code == 200
    reason = "TRASH_DAYS is 0, which keeps deleted tasks forever"
    assert failure(tmp_path, "purge", **options) == reason
    assert titles(database_url) == ["old"]


def test_what_is_purged_is_a_404(tmp_path: Path, database_url: str) -> None:
    task_id = to_trash(database_url, "old", 31)
    with Server(tmp_path, DATABASE_URL=database_url) as server, User(server, "ann") as ann:
        eventually(lambda: ann.trash() == [], 10)
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/restore")):
            assert ann.request(method, f"/tasks/{task_id}{suffix}").status_code == 404


def test_a_full_trash_is_purged_while_requests_are_answered(
    tmp_path: Path, database_url: str
) -> None:
    fill_trash(database_url, 2 * LIMIT + 1)
    with Server(tmp_path, DATABASE_URL=database_url) as server, User(server, "bob") as bob:
        bob.create("new")
        eventually(lambda: titles(database_url) == ["kept", "new", "young"], 15)
        eventually(lambda: purged(server) == 2 * LIMIT + 1, 10)


@on_postgres
def test_two_servers_purge_the_same_trash_in_bounded_batches(
    tmp_path: Path, database_url: str
) -> None:
    fill_trash(database_url, number := 3 * LIMIT + 500)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with counted_batches(database_url) as batches:
        servers = [Server(folder, DATABASE_URL=database_url) for folder in folders]
        with servers[0].wait(), servers[1].wait():
            took = eventually(lambda: titles(database_url) == ["kept", "young"], 20)
            time.sleep(0.5)
        logs = [line for server in servers for line in server.log()]
    print(f"\ntwo servers, {number} tasks: {sorted(batches)}, purged after {took:.2f} s")
    assert sum(batches) == number
    assert max(batches) <= LIMIT
    assert not {"error", "critical"} & {line["level"] for line in logs}
    assert not any("database unavailable" in line["message"] for line in logs)


@on_postgres
def test_a_trash_that_the_statistics_do_not_know_is_purged(
    tmp_path: Path, database_url: str
) -> None:
    """PostgreSQL expects no task in the trash, and must not search a batch for each one."""
    insert_by_hand(database_url, "ann", "old")
    fill(database_url, "ann", number := 2 * LIMIT)
    change_by_hand(database_url, "ALTER TABLE task SET (autovacuum_enabled = off)")
    change_by_hand(database_url, "ANALYZE task")
    moment = f"'{days_ago(31)}'"
    delete = f"UPDATE task SET deleted_at = {moment}, updated_at = {moment} WHERE title = 'old'"
    change_by_hand(database_url, delete)
    command = run_command(tmp_path, "purge", DATABASE_URL=database_url)
    assert command.stdout == f"tasks removed: {number + 1}\n"
    sql = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'task_deleted_at'"
    ((read,),) = change_by_hand(database_url, sql)
    assert read < 10 * number


def test_purge_by_hand_says_how_many(tmp_path: Path, database_url: str) -> None:
    fill_trash(database_url, LIMIT + 2)
    for removed in (LIMIT + 2, 0):
        command = run_command(tmp_path, "purge", DATABASE_URL=database_url)
        assert (command.exit_code, command.stderr) == (0, "")
        assert command.stdout == f"tasks removed: {removed}\n"
    assert titles(database_url) == ["kept", "young"]
    run_command(tmp_path, "purge", DATABASE_URL=database_url, TRASH_DAYS="28")
    assert titles(database_url) == ["kept"]


@on_postgres
def test_a_task_that_is_restored_before_a_purge_gets_to_it_survives(
    tmp_path: Path, database_url: str
) -> None:
    """The purge has found the row, and waits behind the restore for its lock."""
    task_id = to_trash(database_url, "restored", 31)
    to_trash(database_url, "purged", 31)
    # A server that does not purge by itself.
    options = {"DATABASE_URL": database_url, "TRASH_DAYS": "0"}
    answers: list[Any] = []

    with (
        Server(tmp_path, **options) as server,
        User(server, "ann") as ann,
        closing(psycopg2.connect(database_url)) as lock,
    ):
        ann.tasks()
        lock.cursor().execute("SELECT 1 FROM task WHERE id = %s FOR UPDATE", (task_id,))
        restore = threading.Thread(
            target=lambda: answers.append(ann.post(f"/tasks/{task_id}/restore"))
        )

        def release() -> None:
            eventually(lambda: waiting(database_url) == 2, 10)
            lock.rollback()

        restore.start()
        eventually(lambda: waiting(database_url) == 1, 10)
        releasing = threading.Thread(target=release)
        releasing.start()
        command = run_command(tmp_path, "purge", DATABASE_URL=database_url)
        releasing.join(10)
        restore.join(10)
        assert [answer.status_code for answer in answers] == [200]
        assert command.stdout == "tasks removed: 1\n"
        assert ann.tasks() == [answers[0].json()]
        assert ann.trash() == []


@on_postgres
def test_a_task_that_is_purged_before_its_restore_is_a_404(
    tmp_path: Path, database_url: str
) -> None:
    task_id = to_trash(database_url, "old", 31)
    options = {"DATABASE_URL": database_url, "TRASH_DAYS": "0"}
    with (
        Server(tmp_path, **options) as server,
        User(server, "ann") as ann,
        closing(psycopg2.connect(database_url)) as purge,
    ):
        purge.cursor().execute("DELETE FROM task WHERE id = %s", (task_id,))
        timer = threading.Timer(0.5, purge.commit)
        timer.start()
        assert ann.post(f"/tasks/{task_id}/restore").status_code == 404
        timer.join()


def test_forget_asks_and_removes_all_tasks_of_one_user(tmp_path: Path, database_url: str) -> None:
    def forget(*arguments: str, answer: str = "") -> tuple[int, str, str]:
        result = run_command(
            tmp_path, "forget", *arguments, input=answer, DATABASE_URL=database_url
        )
        return result.exit_code, result.stdout, result.stderr

    for user in ("ann", "Ann", "ann ", "bob"):
        insert_by_hand(database_url, user, f"{user}: live")
        to_trash(database_url, f"{user}: trash", 1, user)
    everything = titles(database_url)
    question = "Remove all tasks of 'ann' for good? [y/N]: "
    for answer in ("n\n", "\n", ""):
        code, said, failure = forget("ann", answer=answer)
        assert (code, said.startswith(question)) == (1, True)
        assert failure.strip() == "Aborted!"
        assert titles(database_url) == everything
    assert forget("ann", answer="y\n") == (0, f"{question}y\ntasks removed: 2\n", "")
    others = [title for title in everything if not title.startswith("ann:")]
    assert titles(database_url) == others
    assert forget("ann", "--yes") == (0, "tasks removed: 0\n", "")
    assert forget("bob", "--yes") == (0, "tasks removed: 2\n", "")
    assert titles(database_url) == [title for title in others if not title.startswith("bob:")]


def test_forget_removes_more_batches_than_may_be_empty(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MAX_BATCH", 10)
    monkeypatch.setattr(models, "REMOVAL_PAUSE_S", 0.0)
    number = 10 * (models.MAX_EMPTY_BATCHES + 1)
    insert_by_hand(database_url, "ann", "x")
    fill(database_url, "ann", number)
    insert_by_hand(database_url, "bob", "kept")
    result = run_command(tmp_path, "forget", "ann", "--yes", DATABASE_URL=database_url)
    assert result.stdout == f"tasks removed: {number + 1}\n"
    assert titles(database_url) == ["kept"]


@on_postgres
def test_forget_removes_what_is_left_when_a_purge_took_its_first_batch(
    tmp_path: Path, database_url: str
) -> None:
    to_trash(database_url, "old", 31)
    fill(database_url, "ann", 2 * LIMIT)
    with closing(psycopg2.connect(database_url)) as purge:
        cursor = purge.cursor()
        batch = f"SELECT id FROM task WHERE user_id = 'ann' LIMIT {LIMIT}"
        cursor.execute(f"DELETE FROM task WHERE id IN ({batch})")

        def commit() -> None:
            eventually(lambda: waiting(database_url) == 1, 10)
            purge.commit()

        committing = threading.Thread(target=commit)
        committing.start()
        result = run_command(tmp_path, "forget", "ann", "--yes", DATABASE_URL=database_url)
        committing.join(10)
    assert result.stdout == f"tasks removed: {2 * LIMIT + 1}\n"  # As many as there were before.
    assert titles(database_url) == []


@on_postgres
def test_forget_ends_although_the_user_creates_a_task_again(
    tmp_path: Path, database_url: str
) -> None:
    network = Network(urlsplit(database_url).port or 5432)
    insert_by_hand(database_url, "ann", "first")

    def create_after(asked: bytes) -> bool:
        if asked.rstrip(b"\0").endswith(b"LIMIT 1") and not titles(database_url):
            insert_by_hand(database_url, "ann", "again")
        return False

    network.lose = create_after
    url = urlsplit(database_url)
    address = url.netloc.replace(f":{url.port}", f":{network.port}")
    url = url._replace(netloc=address)
    result = run_command(tmp_path, "forget", "ann", "--yes", DATABASE_URL=url.geturl())
    network.close()
    assert (result.exit_code, result.stdout) == (0, "tasks removed: 1\n")
    assert titles(database_url) == ["again"]


def test_forget_ends_while_the_user_creates_tasks(tmp_path: Path, database_url: str) -> None:
    insert_by_hand(database_url, "ann", "first")
    stopped = threading.Event()
    with Server(tmp_path, DATABASE_URL=database_url) as server:

        def create() -> None:
            with User(server, "ann") as user:
                while not stopped.is_set():
                    user.create("new")

        clients = [threading.Thread(target=create) for _ in range(4)]
        for client in clients:
            client.start()
        timer = threading.Timer(20, stopped.set)
        timer.start()
        result = run_command(tmp_path, "forget", "ann", "--yes", DATABASE_URL=database_url)
        timer.cancel()
        ended_first = not stopped.is_set()
        stopped.set()
        for client in clients:
            client.join()
    assert (result.exit_code, ended_first) == (0, True)
    assert "first" not in titles(database_url)


def test_a_user_who_is_forgotten_begins_anew(tmp_path: Path, database_url: str) -> None:
    content = {"json": {"title": "x"}, "headers": {"Idempotency-Key": "1"}}
    with Server(tmp_path, DATABASE_URL=database_url) as server, User(server, "用 户") as user:
        user.post("/tasks", **content)
        user.to_trash()
        command = run_command(tmp_path, "forget", "用 户", "--yes", DATABASE_URL=database_url)
        assert command.stdout == "tasks removed: 2\n"
        assert (user.tasks(), user.trash()) == ([], [])
        assert user.post("/tasks", **content).status_code == 201


@pytest.mark.parametrize("user", ["", "a/b", "a\n", "a\0b", "\x7f", "\x9b", "x" * 256, "\udcff"])
@pytest.mark.parametrize("own_url", ["sqlite"], indirect=True)
def test_a_user_who_cannot_exist_is_not_forgotten(
    tmp_path: Path, database_url: str, user: str
) -> None:
    insert_by_hand(database_url, "ann", "kept")
    expected = "USER: expected 1 to 255 characters, without / or control characters"
    assert failure(tmp_path, "forget", user, "--yes", DATABASE_URL=database_url) == expected
    assert titles(database_url) == ["kept"]


@pytest.mark.parametrize(
    "arguments", [["migrate"], ["purge"], ["forget", "ann", "--yes"]], ids=" ".join
)
def test_a_command_says_in_one_line_that_the_database_is_away(
    tmp_path: Path, arguments: list[str]
) -> None:
    url = f"postgresql://ann:{PASSWORD}@127.0.0.1:9/db"
    reason = failure(tmp_path, *arguments, DATABASE_URL=url)
    assert reason.startswith("database unavailable: ")
    assert "refused" in reason and PASSWORD not in reason


@pytest.mark.parametrize("arguments", [["purge"], ["forget", "ann", "--yes"]], ids=" ".join)
def test_a_command_makes_the_tables_that_it_needs(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "tasks.db").touch()
    result = run_command(tmp_path, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "tasks removed: 0\n", "")


@pytest.mark.parametrize("arguments", [["purge"], ["forget", "ann"]], ids=" ".join)
def test_a_command_that_removes_tasks_makes_no_file(tmp_path: Path, arguments: list[str]) -> None:
    """In the service's folder, but without its settings, `forget` would report success."""
    reason = "DATABASE_URL: the file tasks.db does not exist"
    assert failure(tmp_path, *arguments) == reason
    assert not [*tmp_path.iterdir()]


@on_postgres
def test_the_clock_of_a_server_does_not_make_a_task_old(tmp_path: Path, database_url: str) -> None:
    """The database's clock has said when it was deleted."""
    to_trash(database_url, "young", 1)
    to_trash(database_url, "old", 31)
    (tmp_path / "ahead.py").write_text(
        "import datetime\n"
        "class Ahead(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, zone=None):\n"
        "        return super().now(zone) + datetime.timedelta(31)\n"
        "datetime.datetime = Ahead\nfrom app import create_app\n"
    )
    with Server(tmp_path, app="ahead:create_app()", DATABASE_URL=database_url) as server:
        eventually(lambda: purged(server) == 1, 5)
        assert titles(database_url) == ["young"]


def refuse_removals(database_url: str) -> None:
    """Let the database keep every task, as one whose user has no right to remove them."""
    sql = "CREATE TRIGGER kept BEFORE DELETE ON task BEGIN SELECT RAISE(IGNORE); END"
    if database_url.startswith("postgresql:"):
        sql = """
            CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
            CREATE TRIGGER kept BEFORE DELETE ON task FOR EACH ROW EXECUTE FUNCTION keep();
        """
    change_by_hand(database_url, sql)


def test_a_purge_ends_where_it_may_remove_nothing(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "REMOVAL_PAUSE_S", 0.0)
    to_trash(database_url, "old", 31)
    refuse_removals(database_url)
    result = run_command(tmp_path, "purge", DATABASE_URL=database_url)
    assert (result.exit_code, result.stdout) == (0, "tasks removed: 0\n")


def test_forget_fails_where_it_may_remove_nothing(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "REMOVAL_PAUSE_S", 0.0)
    insert_by_hand(database_url, "ann", "kept")
    refuse_removals(database_url)
    reason = failure(tmp_path, "forget", "ann", "--yes", DATABASE_URL=database_url)
    assert reason.startswith("the user in DATABASE_URL may see the tasks, but not")


def test_no_process_that_forks_has_the_database_open(tmp_path: Path, database_url: str) -> None:
    """SQLite's locks would not hold between it and a worker, which would lose writes."""
    to_trash(database_url, "old", 31)
    server = Server(tmp_path, "--preload", DATABASE_URL=database_url, WEB_CONCURRENCY="1")
    with server, User(server, "ann") as ann:
        eventually(lambda: titles(database_url) == [], 10)
        ann.create()
        master = psutil.Process(server.process.pid)
        (worker,) = master.children()
        assert not uses(master, database_url) and uses(worker, database_url)


def uses(process: psutil.Process, database_url: str) -> bool:
    """Whether a process has a SQLite file open, or is connected to PostgreSQL."""
    if database_url.startswith("sqlite:///"):
        files = {file.path for file in process.open_files()}
        return database_url.removeprefix("sqlite:///") in files
    return any(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp4"))


@on_postgres
def test_a_purge_that_fails_is_logged_and_is_not_the_end(tmp_path: Path, database_url: str) -> None:
    to_trash(database_url, "old", 31)
    change_by_hand(
        database_url,
        """
        CREATE TABLE note (user_id text, id uuid, FOREIGN KEY (user_id, id) REFERENCES task);
        INSERT INTO note SELECT user_id, id FROM task;
        """,
    )
    for command in (["purge"], ["forget", "ann", "--yes"]):
        reason = failure(tmp_path, *command, DATABASE_URL=database_url)
        assert reason.startswith("the database refused: update or delete on table")
    app = changed_app(tmp_path, SHORT_PAUSES)
    with (
        Server(tmp_path, app=app, DATABASE_URL=database_url) as server,
        User(server, "ann") as user,
    ):
        task = user.create()
        messages = "the trash could not be purged"
        eventually(lambda: messages in {line["message"] for line in server.log()}, 5)
        eventually(lambda: pauses(server) == {"3600"}, 5)
        change_by_hand(database_url, "DROP TABLE note")
        eventually(lambda: titles(database_url) == [task["title"]], 5)
    assert all("Traceback" not in line["message"] for line in server.log())


@pytest.mark.parametrize("own_url", ["sqlite"], indirect=True)
def test_a_removal_that_sqlite_refuses_is_one_line(tmp_path: Path, database_url: str) -> None:
    to_trash(database_url, "old", 31)
    trigger = "CREATE TRIGGER kept BEFORE DELETE ON task BEGIN SELECT RAISE(ABORT, 'kept'); END"
    change_by_hand(database_url, trigger)
    reason = failure(tmp_path, "purge", DATABASE_URL=database_url)
    assert reason == "the database refused: kept"
