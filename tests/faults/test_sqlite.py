"""A SQLite file under many writers, killed processes and a full disk."""

import fcntl
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import requests
from support.network import Load, eventually
from support.server import HASTY, REAL, ROOT, Server, User, change_by_hand, fill
from werkzeug.exceptions import ServiceUnavailable

from database import sqlite
from database.sqlite import Sqlite
from models import count_rows, fetch_all

FULL = 2


@pytest.mark.slow
def test_16_writers_and_then_everything_killed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    server = Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="4").wait()
    with Load(server, clients=16) as load:
        time.sleep(4)
        processes = [server.process.pid]
        processes += [child.pid for child in server.workers]
        killed = time.monotonic()
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    server.process.wait(5)
    assert "locked" not in server.log_file.read_text()
    assert {status for _, end, _, status in load.answers if end < killed} == {200, 201}
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    (tmp_path / "again").mkdir()
    with Server(tmp_path / "again", DATABASE_URL=url) as load.server:
        load.check("SQLite, 16 writers, kill -9", allowed={200, 201, 0})


def test_who_reads_does_not_wait_for_who_writes(tmp_path: Path) -> None:
    file = tmp_path / "tasks.db"
    with Server(tmp_path, DATABASE_URL=f"sqlite:///{file}") as server, User(server, "ann") as ann:
        task = ann.create()
        with closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            start = time.monotonic()
            assert ann.tasks() == [task]
            assert time.monotonic() - start < 2


def test_a_list_that_fails_leaves_no_old_state_behind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    server = Server(tmp_path, DATABASE_URL=url, WEB_CONCURRENCY="1")
    with server, User(server, "ann") as ann, User(server, "bob") as bob:
        ann.create()
        task = bob.create()
        fill(url, "ann", 300)
        change_by_hand(url, "UPDATE task SET title = x'00' WHERE user_id = 'ann'")
        assert ann.get("/tasks").status_code == 500
        change_by_hand(url, "UPDATE task SET title = 'new' WHERE user_id = 'bob'")
        assert bob.task(task["id"])["title"] == "new"
        bob.create()


def test_a_name_that_begins_like_a_uri_is_a_name(tmp_path: Path) -> None:
    with Server(tmp_path, DATABASE_URL="sqlite:///file:x.db") as server, User(server, "ann") as ann:
        ann.create()
        assert (tmp_path / "file:x.db").exists() and not (tmp_path / "x.db").exists()


def test_a_text_that_is_not_utf8_is_shown_and_not_logged(tmp_path: Path) -> None:
    """Another program, or a damaged disk, wrote it."""
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    options = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server, User(server, "ann") as ann:
        path = f"/tasks/{ann.create(description='private')['id']}"
        change_by_hand(url, "UPDATE task SET description = CAST(description || x'ff' AS TEXT)")
        assert ann.patch(f"{path}/complete").json()["completed"] is True
        assert ann.patch(f"{path}/complete").json()["completed"] is False
        (task,) = ann.tasks()
        assert task["description"] == "private\ufffd" and not task["completed"]
    assert "private" not in server.log_file.read_text()


def test_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    """It survives a power failure, which no test can make: https://sqlite.org/pragma.html"""
    database = Sqlite(str(tmp_path / "tasks.db"), threads=20)
    database.migrate()
    assert database.send("PRAGMA synchronous", {}, fetch_all, "") == [(FULL,)]
    database.close()


def test_no_writer_starves(tmp_path: Path) -> None:
    """Without a queue of our own, later writes overtake one that has polled for the file longer."""
    file = tmp_path / "tasks.db"
    server = Server(tmp_path, DATABASE_URL=f"sqlite:///{file}", WEB_CONCURRENCY="1")
    with server, User(server.wait(), "ann") as user, ThreadPoolExecutor(16) as pool:
        user.create("before")

        def create(title: str) -> int:
            return requests.post(f"{user.base}/tasks", json={"title": title}).status_code

        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            created = [pool.submit(create, "first")]
            time.sleep(1)
            created += [pool.submit(create, "later") for _ in range(15)]
            time.sleep(0.1)
        assert {each.result() for each in created} == {201}
        with closing(sqlite3.connect(file)) as connection:
            titles = connection.execute("SELECT title FROM task ORDER BY rowid").fetchall()
    assert titles[:2] == [("before",), ("first",)]


@pytest.mark.parametrize("threads", [5, 20])
@pytest.mark.parametrize(
    ("app", "most"), [(HASTY, 2.0), pytest.param(REAL, 8.0, marks=pytest.mark.slow)]
)
def test_writers_do_not_wait_one_after_the_other_for_a_file_that_is_locked(
    tmp_path: Path, app: str, most: float, threads: int
) -> None:
    """With 5 threads they wait for one slot, with 20 for their turn to write."""
    file = tmp_path / "tasks.db"
    options = {"DATABASE_URL": f"sqlite:///{file}", "WEB_CONCURRENCY": "1"}
    server = Server(tmp_path, app=app, THREADS=str(threads), **options)
    with server, User(server.wait(), "ann") as user, ThreadPoolExecutor(threads) as pool:
        task, url = user.create(), f"{user.base}/tasks"
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            asked = [
                pool.submit(requests.post, url, json={"title": "x"}, timeout=30)
                for _ in range(threads)
            ]
            answers = [answer.result() for answer in asked]
        took = max(answer.elapsed.total_seconds() for answer in answers)
        print(f"\na locked file: {threads} refused after {took:.2f} s")
        assert {answer.status_code for answer in answers} == {503}
        assert took < most + 1
        assert user.tasks() == [task]


def test_the_schema_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    server = Server(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db")
    eventually(lambda: server.log_file.read_text().count("Booting") == 2, 5)
    time.sleep(1)
    assert not (tmp_path / "tasks.db").exists()
    os.close(folder)
    with server, User(server.wait(), "ann") as user:
        user.create()


@pytest.mark.parametrize(
    "how", ["removed", "removed with its log", "replaced", "emptied", "folder removed"]
)
def test_no_write_is_acknowledged_into_a_file_that_is_gone(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    file, backup = folder / "tasks.db", tmp_path / "backup.db"
    with Server(tmp_path, DATABASE_URL=f"sqlite:///{file}") as server, User(server, "ann") as ann:

        def create(title: str) -> int:
            with User(server, "ann") as user:
                return user.post("/tasks", json={"title": title}).status_code

        ann.create("kept")
        change_by_hand(f"sqlite:///{file}", f"VACUUM INTO '{backup}'")
        with ThreadPoolExecutor(16) as pool:  # So that the log is longer than the backup.
            assert set(pool.map(create, [f"lost {n}" for n in range(400)])) == {201}
            if how == "replaced":
                backup.rename(file)
            elif how == "removed":
                file.unlink()
            elif how == "emptied":
                os.truncate(file, 0)
            else:
                for part in folder.iterdir():
                    part.unlink()
            if how == "folder removed":
                folder.rmdir()
                assert {create("nowhere") for _ in range(8)} == {503}  # By both processes.
                folder.mkdir()
            titles = [f"new {n}" for n in range(400)]
            statuses = list(pool.map(create, titles))
        refused = statuses.count(503)
        assert set(statuses[100:]) == {201}, statuses
        acknowledged = {
            title for title, status in zip(titles, statuses, strict=True) if status == 201
        }
        kept = {"kept"} if how == "replaced" else set()
        assert {task["title"] for task in ann.tasks()} == acknowledged | kept
        assert server.stop() == 0
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = {title for (title,) in connection.execute("SELECT title FROM task")}
    assert found == acknowledged | kept
    print(f"\n{how}: {refused} refused, {len(acknowledged)} acknowledged, all of them found")
    assert '"level":"error"' not in server.log_file.read_text()


def test_a_file_is_moved_away_with_its_log_but_without_its_index(tmp_path: Path) -> None:
    """While clients write, so that other connections hold the index of the old log."""
    file, moved = tmp_path / "tasks.db", tmp_path / "moved.db"
    stopped = threading.Event()
    statuses: list[tuple[float, int]] = []
    with Server(tmp_path, DATABASE_URL=f"sqlite:///{file}") as server:

        def create() -> None:
            with User(server, "ann") as user:
                while not stopped.is_set():
                    status = user.post("/tasks", json={"title": "x"}).status_code
                    statuses.append((time.monotonic(), status))

        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(create)
            time.sleep(1)
            file.rename(moved)
            Path(f"{file}-wal").rename(f"{moved}-wal")
            later = time.monotonic() + 2
            time.sleep(3)
            stopped.set()
    assert {status for at, status in statuses if at > later} == {201}


def test_a_write_whose_file_is_moved_away_may_have_been_made(tmp_path: Path) -> None:
    """It is in the moved file, which can come back."""
    file, moved = tmp_path / "tasks.db", tmp_path / "moved.db"
    database = Sqlite(str(file), threads=20)
    database.migrate()

    def move(rows: sqlite3.Cursor) -> int:
        file.rename(moved)
        return rows.rowcount

    with pytest.raises(ServiceUnavailable, match="may or may not have been made"):
        database.send("DELETE FROM task", {}, move, "")
    moved.rename(file)
    with pytest.raises(ServiceUnavailable, match="Nothing has changed"):
        database.send("SELECT 1", {}, move, "")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Sqlite, Sqlite]]:
    """What two processes have, which find at the end what they have inserted: "a", "b" and "c"."""
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    first, second = (Sqlite(str(tmp_path / "tasks.db"), threads=20) for _ in range(2))
    first.migrate()
    change_by_hand(url, "CREATE TABLE note (text)")
    change_by_hand(url, f"VACUUM INTO '{tmp_path / 'backup.db'}'")
    insert(first, "lost")
    insert(second, "lost")
    yield first, second
    for database in (first, second):
        rows = database.send("SELECT text FROM note", {}, fetch_all, "")
        database.close()
        assert sorted(rows) == [("a",), ("b",), ("c",)]


def insert(database: Sqlite, text: str) -> None:
    database.send(f"INSERT INTO note VALUES ('{text}')", {}, count_rows, "")


def insert_into_the_new_file(database: Sqlite, text: str) -> None:
    """The first statement finds that the file has been replaced."""
    with pytest.raises(ServiceUnavailable):
        insert(database, "refused")
    insert(database, text)


def test_the_log_of_a_new_file_stays_if_it_began_while_another_process_opened_the_old_one(
    two: tuple[Sqlite, Sqlite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    second.close()
    open_now = second._connect

    def open_later() -> sqlite3.Connection:
        monkeypatch.undo()
        (tmp_path / "backup.db").rename(tmp_path / "tasks.db")
        insert_into_the_new_file(first, "a")
        return open_now()

    monkeypatch.setattr(second, "_connect", open_later)
    insert_into_the_new_file(second, "b")
    insert(first, "c")


def test_the_log_of_a_new_file_stays_if_it_begins_while_another_process_looks_for_the_old_one(
    two: tuple[Sqlite, Sqlite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    (tmp_path / "backup.db").rename(tmp_path / "tasks.db")
    insert_into_the_new_file(first, "a")
    first.close()  # As the last one, it deletes the log.
    with pytest.raises(ServiceUnavailable):
        insert(second, "refused")

    def look(file: str, min_bytes: int = 0) -> sqlite.FileIdentity:
        found = file_identity(file, min_bytes)
        if file.endswith("-wal"):
            monkeypatch.undo()
            assert found is None
            insert(first, "b")
        return found

    file_identity = sqlite.file_identity
    monkeypatch.setattr(sqlite, "file_identity", look)
    second.migrate()
    insert(second, "c")


def test_the_old_log_is_known_also_after_an_upgrade_that_failed(
    two: tuple[Sqlite, Sqlite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would write it into the new file, and delete it."""
    first, second = two
    file, moved = tmp_path / "tasks.db", tmp_path / "moved.db"
    first.close()

    def fail() -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(first, "_connect", fail)
    for _ in ("the statement", "the upgrade"):
        with pytest.raises(ServiceUnavailable):
            insert(first, "refused")
    monkeypatch.undo()
    file.rename(moved)
    (tmp_path / "backup.db").rename(file)
    insert(first, "a")
    insert_into_the_new_file(second, "b")
    insert(first, "c")
    Path(f"{file}-wal.old").rename(f"{moved}-wal")
    assert change_by_hand(f"sqlite:///{moved}", "SELECT text FROM note") == [("lost",), ("lost",)]


def test_the_old_log_is_kept_if_the_file_is_replaced_while_a_process_looks_at_it(
    two: tuple[Sqlite, Sqlite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    file, moved = tmp_path / "tasks.db", tmp_path / "moved.db"

    def look() -> list[bool]:
        monkeypatch.undo()
        file.rename(moved)
        (tmp_path / "backup.db").rename(file)
        return first._applied()

    monkeypatch.setattr(first, "_applied", look)
    with pytest.raises(ServiceUnavailable):
        first.migrate()
    insert_into_the_new_file(first, "a")
    insert_into_the_new_file(second, "b")
    insert(first, "c")
    Path(f"{file}-wal.old").rename(f"{moved}-wal")
    assert change_by_hand(f"sqlite:///{moved}", "SELECT text FROM note") == [("lost",), ("lost",)]


def test_a_file_that_is_restored_while_a_process_looks_for_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by two `mv` under load, the second of which moves the only copy."""
    file, backup = tmp_path / "tasks.db", tmp_path / "backup.db"
    database = Sqlite(str(file), threads=20)
    database.migrate()
    change_by_hand(f"sqlite:///{file}", "CREATE TABLE note (text)")
    change_by_hand(f"sqlite:///{file}", f"VACUUM INTO '{backup}'")
    file.unlink()

    def look(path: str, min_bytes: int = 0) -> sqlite.FileIdentity:
        found = file_identity(path, min_bytes)
        if path == str(file):
            monkeypatch.undo()
            assert found is None
            backup.rename(file)
        return found

    file_identity = sqlite.file_identity
    monkeypatch.setattr(sqlite, "file_identity", look)
    database.migrate()
    assert database.send("SELECT text FROM note", {}, fetch_all, "") == []
    database.close()


@pytest.mark.parametrize("had_it_open", [True, False])
def test_the_log_of_a_file_that_is_moved_away_is_kept(tmp_path: Path, had_it_open: bool) -> None:
    """Its writes are whole again once it is beside the file."""
    file, moved = tmp_path / "tasks.db", tmp_path / "moved.db"
    options = {"DATABASE_URL": f"sqlite:///{file}", "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server:
        with User(server, "ann") as ann:
            titles = [ann.create(f"old {n}")["title"] for n in range(9)]
        file.rename(moved)
        if not had_it_open:
            server.workers[0].kill()  # Another takes its place.
        with User(server, "ann") as ann:
            eventually(lambda: ann.post("/tasks", json={"title": "new"}).status_code == 201, 5)
            Path(f"{file}-wal.old").rename(f"{moved}-wal")
            assert [task["title"] for task in ann.tasks()] == ["new"]
    with closing(sqlite3.connect(moved)) as connection:
        found = connection.execute("SELECT title FROM task ORDER BY title").fetchall()
    assert found == [(title,) for title in titles]


def test_a_file_behind_a_link_is_replaced_and_moved_away(tmp_path: Path) -> None:
    """SQLite keeps the log beside the file, not beside the link."""
    link, file = tmp_path / "tasks.db", tmp_path / "data" / "shared.db"
    backup, moved = tmp_path / "backup.db", tmp_path / "moved.db"
    file.parent.mkdir()
    link.symlink_to(file)
    options = {"DATABASE_URL": f"sqlite:///{link}", "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, **options) as server, User(server, "ann") as ann:
        ann.create("old")
        change_by_hand(f"sqlite:///{file}", f"VACUUM INTO '{backup}'")
        for n in range(9):
            ann.create(f"lost {n}")
        backup.rename(file)
        eventually(lambda: ann.post("/tasks", json={"title": "new"}).status_code == 201, 5)
        assert [task["title"] for task in ann.tasks()] == ["old", "new"]
        file.rename(moved)
        eventually(lambda: ann.post("/tasks", json={"title": "newer"}).status_code == 201, 5)
        Path(f"{file}-wal.old1").rename(f"{moved}-wal")
        assert [task["title"] for task in ann.tasks()] == ["newer"]
    with closing(sqlite3.connect(moved)) as connection:
        found = connection.execute("SELECT title FROM task ORDER BY created_at").fetchall()
    assert found == [("old",), ("new",)]


def test_a_backup_ends_while_others_write(tmp_path: Path) -> None:
    """The command of docs/deploy.md, and its restore."""
    guide = (ROOT / "docs" / "deploy.md").read_text()
    back_up, restore = re.findall(r'`(sqlite3 tasks.db ".+?")`', guide)
    url, stopped = f"sqlite:///{tmp_path / 'tasks.db'}", threading.Event()
    with Server(tmp_path, DATABASE_URL=url) as server, User(server, "ann") as ann:
        ann.create(description="x" * 5000)
        fill(url, "ann", 20_000)

        def write() -> None:
            with User(server, "bob") as bob:
                while not stopped.is_set():
                    bob.create()

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write) for _ in range(4)]
            try:
                subprocess.run(back_up, shell=True, cwd=tmp_path, check=True, timeout=20)
            finally:
                stopped.set()
        assert [writer.result() for writer in writers] == [None] * 4
    subprocess.run(restore, shell=True, cwd=tmp_path, check=True, timeout=20)
    assert change_by_hand(url, "SELECT count(*) FROM task WHERE user_id = 'ann'") == [(20_001,)]
    assert change_by_hand(url, "PRAGMA integrity_check") == [("ok",)]


def test_the_logs_of_two_files_that_are_moved_away_are_kept(tmp_path: Path) -> None:
    file, options = tmp_path / "tasks.db", {"WEB_CONCURRENCY": "1"}
    moved = [tmp_path / "moved.db", tmp_path / "moved again.db"]
    options["DATABASE_URL"] = f"sqlite:///{file}"
    with Server(tmp_path, **options) as server, User(server, "ann") as ann:
        for name in moved:
            eventually(lambda: ann.post("/tasks", json={"title": "x"}).status_code == 201, 5)
            ann.create(name.stem)
            file.rename(name)
        eventually(lambda: ann.get("/tasks").status_code == 200, 5)
    for name, kept in zip(moved, ("old", "old1"), strict=True):
        Path(f"{file}-wal.{kept}").rename(f"{name}-wal")
        titles = change_by_hand(f"sqlite:///{name}", "SELECT title FROM task")
        assert sorted(titles) == [(name.stem,), ("x",)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_a_503_and_heals(tmp_path: Path, small_disk: Path) -> None:
    server = Server(tmp_path, DATABASE_URL=f"sqlite:///{small_disk}/tasks.db")
    with server, User(server.wait(), "ann") as user:

        def create() -> int:
            return user.post("/tasks", json={"title": "x" * 500}).status_code

        kept = user.create("kept")
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
        statuses = [create() for _ in range(20)]
        assert set(statuses[-5:]) == {503}, statuses
        assert kept in user.tasks()
        ballast.unlink()
        took = eventually(lambda: create() == 201, 5)
        assert len(user.tasks()) == statuses.count(201) + 2
    print(f"\na full disk: {statuses.count(503)} refused; healed in {took:.2f} s")
    assert '"level":"error"' not in server.log_file.read_text()


def test_who_reads_does_not_notice_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    with Server(tmp_path, DATABASE_URL=f"sqlite:///{small_disk}/tasks.db") as server:
        with User(server, "ann") as user:
            path = f"/tasks/{user.create()['id']}"
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))

        def use(_: int) -> None:
            with User(server, "ann") as user:
                for _ in range(40):
                    user.post("/tasks", json={"title": "x" * 500})
                    statuses.append(user.get(path).status_code)

        statuses: list[int] = []
        with ThreadPoolExecutor(16) as clients:
            list(clients.map(use, range(16)))
    assert set(statuses) == {200}
    assert "removed, replaced or emptied" not in server.log_file.read_text()


@pytest.mark.slow
def test_the_log_stays_short_while_somebody_always_reads(tmp_path: Path) -> None:
    file, stop = tmp_path / "tasks.db", threading.Event()

    def read_by_turns() -> None:
        """Two readers, of which each begins before the other ends."""
        with (
            closing(sqlite3.connect(file, isolation_level=None)) as one,
            closing(sqlite3.connect(file, isolation_level=None)) as two,
        ):
            two.execute("BEGIN")
            while not stop.wait(0.02):
                one, two = two, one
                two.execute("BEGIN")
                two.execute("SELECT count(*) FROM task").fetchall()
                one.execute("COMMIT")

    with Server(tmp_path, DATABASE_URL=f"sqlite:///{file}") as server, User(server, "ann") as ann:
        path = f"/tasks/{ann.create()['id']}"
        readers = threading.Thread(target=read_by_turns)
        readers.start()
        try:
            for n in range(2500):
                assert ann.put(path, json={"description": f"{n}" + "x" * 4900}).status_code == 200
        finally:
            stop.set()
            readers.join()
        assert os.stat(f"{file}-wal").st_size < 20 * 1024 * 1024
