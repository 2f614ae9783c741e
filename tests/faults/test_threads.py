"""Threads that meet, and a limit of threads, as a container can have one."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import requests
from support.network import KILL, eventually
from support.server import Server, User, changed_app

from database import pool
from testbed.cluster import Cluster
from testbed.issuer import Issuer, Key

HOG = """
import threading, time
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError:
    print("full", flush=True)
    time.sleep(60)
"""
CAPABILITIES = "-all,+dac_override,+dac_read_search"


def limited_to(tasks: int) -> list[str]:
    """A command that runs another one as a user who may have so many processes and threads."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("no user can be changed here")
    command = ["setpriv", f"--reuid={random.randrange(10**5, 10**9)}", "--clear-groups"]
    command += [f"--{kind}={CAPABILITIES}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return [*command, "prlimit", f"--nproc={tasks}"]


@contextmanager
def no_thread_left(limited: list[str]) -> Iterator[None]:
    """Start threads as the same user until there may be no more."""
    with subprocess.Popen([*limited, sys.executable, "-c", HOG], stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout and hog.stdout.readline()
            yield
        finally:
            hog.kill()


def stop(server: Server) -> None:
    assert server.stop() == 0
    log = server.log_file.read_text()
    assert '"level":"error"' not in log and "Traceback" not in log


@pytest.mark.parametrize("tasks", [3, 4, 6, 9, 14])
def test_a_shortage_of_threads_loses_nothing(
    tmp_path: Path, cluster: Cluster, database: str, tasks: int
) -> None:
    url = cluster.url(database)
    with Server(tmp_path, before=limited_to(tasks), DATABASE_URL=url) as server:

        def create(number: int) -> list[int]:
            with User(server, "ann") as ann:
                end = time.monotonic() + 2
                found = []
                while time.monotonic() < end:
                    found.append(ann.post("/tasks", json={"title": f"{number}"}).status_code)
                return found

        with ThreadPoolExecutor(12) as clients:
            statuses = [status for found in clients.map(create, range(12)) for status in found]
        assert requests.get(f"{server.url}/health", timeout=1).status_code == 200
        stop(server)
    created = statuses.count(201)
    assert set(statuses) <= {201, 503}
    assert cluster.execute("SELECT to_regclass('task')", database)[0][0] or not created
    if created:
        assert cluster.execute("SELECT count(*) FROM task", database) == [(created,)]
    print(f"\n{tasks} processes and threads: {created} of {len(statuses)} creates, all found")


def test_a_worker_is_replaced_as_soon_as_there_may_be_a_process(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    url, limited = cluster.url(database), limited_to(50)
    with Server(tmp_path, before=limited, DATABASE_URL=url) as server:
        master = psutil.Process(server.process.pid)

        def limit(tasks: int) -> None:
            options = [f"--pid={master.pid}", f"--nproc={tasks}:50"]
            subprocess.run([*limited[:-1], *options], check=True)

        eventually(lambda: len(master.children()) == 2, 5)
        limit(1)
        victim, other = master.children()
        victim.kill()
        eventually(lambda: "No worker can be started" in server.log_file.read_text(), 5)
        assert requests.get(f"{server.url}/health", timeout=5).status_code == 200
        limit(50)
        eventually(lambda: len(master.children()) == 2, 5)
        assert other in master.children()
        assert server.stop() == 0


def test_no_user_is_signed_out_while_no_thread_can_fetch_the_keys(
    tmp_path: Path, cluster: Cluster, database: str, issuer: Issuer
) -> None:
    key = Key("EdDSA", "one")
    token = key.sign({"sub": "ann", "exp": int(time.time()) + 300})
    options = {"DATABASE_URL": cluster.url(database), "JWT_JWKS_URL": issuer.url}
    limited = limited_to(50)
    issuer.say(b"<html>", "503 Service Unavailable")
    with (
        Server(tmp_path, before=limited, WEB_CONCURRENCY="1", **options) as server,
        User(server, "ann", token) as ann,
    ):
        assert ann.get("/tasks").status_code == 503
        with no_thread_left(limited):
            issuer.publish(key)
            time.sleep(2)  # Until it would be asked again.
            assert [ann.get("/tasks").status_code for _ in range(3)] == [503] * 3
        eventually(lambda: ann.get("/tasks").status_code == 200, 5)
        stop(server)


def test_a_write_is_acknowledged_although_no_thread_is_left_to_close_its_connection(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Later, when there may be threads again, it is closed."""
    app = changed_app(tmp_path, "import database.pool; database.pool.MAX_IDLE_S = 0.5")
    url, limited = cluster.url(database), limited_to(50)
    with (
        Server(tmp_path, app=app, before=limited, DATABASE_URL=url, WEB_CONCURRENCY="1") as server,
        User(server, "ann") as ann,
        User(server, "ann") as again,
        ThreadPoolExecutor(2) as clients,
        closing(psycopg2.connect(url)) as other,
    ):
        ann.create()
        other.cursor().execute("LOCK TABLE task")
        answers = [
            clients.submit(user.post, "/tasks", json={"title": "x"}) for user in (ann, again)
        ]
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation::regclass::text"
        eventually(lambda: cluster.execute(f"{waiting} = 'task'", database) == [(2,)], 3)
        with no_thread_left(limited):
            other.rollback()
            assert [answer.result().status_code for answer in answers] == [201] * 2
            assert len(ann.tasks()) == 3
        assert len(ann.tasks()) == 3
        left = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid NOT IN"
        left += f" (pg_backend_pid(), {other.get_backend_pid()})"
        eventually(lambda: cluster.execute(left) == [(1,)], 5)
        stop(server)


def test_a_database_with_an_address_is_found_although_no_thread_is_left(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    """Only names are looked up in a thread. Without a purge, no thread ends and makes room."""
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1", "TRASH_DAYS": "0"}
    limited = limited_to(50)
    with Server(tmp_path, before=limited, **options) as server, User(server, "ann") as ann:
        ann.create()
        with no_thread_left(limited):
            cluster.execute(KILL)
            ann.create()
        stop(server)


class Idle:
    """A connection in a pool."""

    def close(self) -> None:
        """Do nothing."""


def test_two_threads_that_start_a_timer_for_idle_connections_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only one of the timers goes on: otherwise, a busy server would get more and more of them."""
    connections: Any = pool.Pool()
    made = []

    class Timer(threading.Timer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)
            if len(made) == 1:  # Another thread runs just now.
                other = threading.Thread(target=connections.push, args=[Idle()])
                other.start()
                other.join()

    monkeypatch.setattr(pool, "MAX_IDLE_S", 0.05)
    monkeypatch.setattr(threading, "Timer", Timer)
    for _ in range(50):
        connections.push(Idle())
        time.sleep(0.01)
    # For a moment, one that has started the next one has not ended yet.
    eventually(lambda: sum(timer.is_alive() for timer in made) == 1, 5)
    connections.close()
    assert len(made) > 2
