"""A real gunicorn, and a user who calls it."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode, urljoin
from uuid import uuid4

import psutil
import psycopg2
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool

from support.process import Forked

ROOT = Path(__file__).parent.parent.parent
MIGRATIONS = sorted(file.stem for file in (ROOT / "database" / "migrations").glob("*.py"))
# For the `app` of a server: its deadlines are a quarter as long.
HASTY = "support.hasty:create_app()"
REAL = "app:create_app()"
# A change for `changed_app`: the migrations are those of another folder.
MIGRATE_FROM = "import database.base; database.base.MIGRATIONS = {!r}"
# What `flask --app app migrate` says of an empty database.
APPLIED = "".join(f"applied {name}\n" for name in MIGRATIONS)
FIELDS = ["id", "user_id", "title", "description", "completed", "created_at", "updated_at"]
FIELDS += ["priority", "due_date", "tags", "completed_at"]
# What marshmallow and datetime say of a wrong value.
NOT_OUR_WORDS = re.compile(
    "not a valid|invalid (input|value|isoformat)|may not be|missing data|unknown field|length must"
    "|(year|month|day|hour|minute|second) (must be|is out)|does not match format|timedelta|'",
    re.IGNORECASE,
)


class Server:
    """gunicorn as the Procfile starts it, in an empty folder, on a free port of 127.0.0.1."""

    started: ClassVar[list["Server"]] = []

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        app: str = REAL,
        config: Path = ROOT / "gunicorn.conf.py",
        output: int | None = None,
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        inherited["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        arguments = ("gunicorn", app, *arguments, "-c", str(config), "-b", "127.0.0.1:0")
        self.log_file.write_bytes(b"")
        if not (before or output):
            everything = inherited | environment
            self.process = Forked([*arguments], folder, everything, self.log_file, self.log_file)
        else:
            with self.log_file.open("wb") as log:
                self.process = subprocess.Popen(
                    [*before, sys.executable, "-m", *arguments],
                    cwd=folder,
                    env=inherited | environment,
                    stdout=output or log,
                    stderr=output or log,
                )
        self.started.append(self)

    def wait(self) -> "Server":
        """Return when it answers. Fails with its log when it stops or takes 10 seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                requests.get(f"{self.url}/health", timeout=1)
                return self
            except (StopIteration, OSError):
                time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise AssertionError(self.log_file.read_text())

    @cached_property
    def url(self) -> str:
        """Raises StopIteration as long as it does not listen."""
        process = Path(f"/proc/{self.process.pid}")
        if not process.exists():  # Not Linux.
            for connection in psutil.Process(self.process.pid).net_connections("tcp4"):
                if connection.status == psutil.CONN_LISTEN:
                    return f"http://127.0.0.1:{connection.laddr.port}"
            raise StopIteration
        files = {os.readlink(file) for file in (process / "fd").iterdir()}
        with (process / "net" / "tcp").open() as table:
            for line in islice(table, 1, None):
                _, address, _, state, *_, inode = line.split()[:10]
                if state != "0A":  # Linux lists first what listens; the rest can be long.
                    break
                if f"socket:[{inode}]" in files:
                    return f"http://127.0.0.1:{int(address.rpartition(':')[2], 16)}"
        raise StopIteration

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *self.workers]

    @property
    def computed_s(self) -> float:
        """How long the workers have computed: no load of the machine is in it."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers)

    @property
    def memory_mb(self) -> float:
        """The resident memory of all processes, in MiB."""
        return sum(process.memory_info().rss for process in self.processes) / 2**20

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def log(self, start: int = 0) -> list[dict[str, Any]]:
        """What it has logged, from the byte `start` of its log on."""
        with self.log_file.open() as log:
            log.seek(start)
            return [json.loads(line) for line in log]

    def send(
        self, request: bytes, timeout: float = 5, *, closes: bool = True
    ) -> tuple[int, dict[str, str], bytes]:
        """Send bytes as they are, close our side, and read the first answer to the end.

        Without closing, the server must close.
        """
        with socket.create_connection(self.address, timeout=timeout) as connection:
            with suppress(OSError):  # It may have answered and closed before it had read all.
                connection.sendall(request)
                if closes:
                    connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        head, end, body = answer.partition(b"\r\n\r\n")
        assert end, f"no end of the head: {answer!r}"
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = (line.split(": ", 1) for line in lines)
        return int(status.split()[1]), {name.lower(): value for name, value in headers}, body

    def __enter__(self) -> "Server":
        return self.wait()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


class Connections(HTTPAdapter):
    """The connections to one server. `close` closes the idle ones; a later request opens another.

    The adapter of requests keeps one open as long as its last response exists, and a server that
    stops waits for it.
    """

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.pool = HTTPConnectionPool(*server.address, maxsize=10)

    def get_connection_with_tls_context(self, *_: object, **__: object) -> HTTPConnectionPool:
        return self.pool

    def close(self) -> None:
        self.pool.close()
        self.pool = HTTPConnectionPool(*self.server.address, maxsize=10)


class User(requests.Session):
    """A user of the API: `user.post("/tasks", json=...)` goes to this user's own path."""

    def __init__(self, server: Server, name: str, token: str = "") -> None:
        super().__init__()
        self.trust_env = False
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.mount(server.url, Connections(server))
        self.server = server
        self.name = name
        self.base = f"{server.url}/api/{requests.utils.quote(name, safe='')}"

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", 20)
        return super().request(method, url if "://" in url else self.base + url, **options)

    def create(self, title: str = "Buy milk", **fields: Any) -> dict[str, Any]:
        response = self.post("/tasks", json={"title": title, **fields})
        assert response.status_code == 201, response.text
        return response.json()

    def tasks(self, **query: Any) -> list[dict[str, Any]]:
        response = self.get("/tasks", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def trash(self, **query: Any) -> list[dict[str, Any]]:
        response = self.get("/tasks/deleted", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def to_trash(self, title: str = "Buy milk", **fields: Any) -> dict[str, Any]:
        """Create a task and delete it. Returns the task as it was before."""
        task = self.create(title, **fields)
        assert self.delete(f"/tasks/{task['id']}").status_code == 200
        return task

    def task(self, task_id: str) -> dict[str, Any]:
        response = self.get(f"/tasks/{task_id}")
        assert response.status_code == 200, response.text
        return response.json()


def pages(
    user: User, query: str = "", *, path: str = "/tasks", **more: Any
) -> list[list[dict[str, Any]]]:
    """Every page of a list, by following its links."""
    response = user.get(path, params=f"{query}&{urlencode(more, doseq=True)}")
    found = []
    while True:
        assert response.status_code == 200, response.text
        found.append(response.json())
        if "next" not in response.links:
            return found
        following = urljoin(response.url, response.links["next"]["url"])
        assert following != response.url, "a walk that does not end"
        response = user.get(following)


def refusal(response: requests.Response) -> tuple[str, str]:
    """The name and the message of the only thing that is wrong, which the API says itself."""
    assert response.status_code == 422, response.text
    problem = response.json()
    ((name, (message,)),) = problem["errors"].items()
    assert problem["detail"] == f"{name}: {message}"
    assert message.endswith(".") and not NOT_OUR_WORDS.search(message), message
    return name, message


def new_database(postgres: str) -> str:
    """The URL of an empty database on the server at `postgres`."""
    name = f"db_{uuid4().hex}"
    with closing(psycopg2.connect(postgres)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
    return f"{postgres.removesuffix('/postgres')}/{name}"


def change_by_hand(database_url: str, sql: str) -> list[Any]:
    """Send `sql` to the database, past the server, and return the rows that it has."""
    if database_url.startswith("sqlite:///"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
            rows = connection.execute(sql).fetchall()
            connection.commit()
            return rows
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        connection.commit()
        return cursor.fetchall() if cursor.description else []


def changed_app(folder: Path, change: str) -> str:
    """The application after `change`, which is Python, for the `app` of a server in `folder`."""
    (folder / "changed.py").write_text(f"from app import create_app\n{change}\n")
    return "changed:create_app()"


def make_schema_of(migrations: Sequence[str], folder: Path, database_url: str) -> str:
    """Make the schema of a release that has only these migrations, and return its `app`.

    `folder` must be empty.
    """
    (folder / "migrations").mkdir()
    for name in migrations:
        shutil.copy(ROOT / "database" / "migrations" / f"{name}.py", folder / "migrations")
    app = changed_app(folder, MIGRATE_FROM.format(str(folder / "migrations")))
    with Server(folder, app=app, DATABASE_URL=database_url) as old:
        assert requests.get(f"{old.url}/ready").status_code == 200
    return app


def insert_by_hand(database_url: str, user_id: str, title: str, **columns: Any) -> str:
    """Insert a task with the columns of the first release, and return its id."""
    moment = "2026-01-01T00:00:00.000000Z"
    row = {
        **{"user_id": user_id, "id": str(uuid4()), "title": title, "completed": False},
        **{"created_at": moment, "updated_at": moment, "revision": str(uuid4())},
        **{"title_lower": title.lower(), "title_folded": title.casefold()},
        **columns,
    }
    values = ", ".join(
        f"'{value}'" if isinstance(value, str) else f"{value}" for value in row.values()
    )
    change_by_hand(database_url, f"INSERT INTO task ({', '.join(row)}) VALUES ({values})")
    return row["id"]


def fill(database_url: str, user_id: str, number: int) -> None:
    """Make `number` tasks, each a second later, like the only one that the user has."""
    task_id = "'00000000-0000-4000-8000-' || (100000000000 + i)"
    created_at = "strftime('%Y-%m-%dT%H:%M:%S.000000Z', 'now', i || ' seconds')"
    names = "SELECT name FROM pragma_table_info('task')"
    if database_url.startswith("postgresql:"):
        task_id, created_at = f"CAST({task_id} AS uuid)", "now() + i * interval '1 second'"
        names = "SELECT attname FROM pg_attribute WHERE attrelid = 'task'::regclass AND attnum > 0"
    found = {name for (name,) in change_by_hand(database_url, names)}
    columns = ", ".join(sorted(found - {"user_id", "id", "created_at"}))
    change_by_hand(
        database_url,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        f" WHERE i < {number}) INSERT INTO task (user_id, id, created_at, {columns})"
        f" SELECT user_id, {task_id}, {created_at}, {columns} FROM task, n"
        f" WHERE user_id = '{user_id}'",
    )
