"""What a person who runs the service sees and types."""

import fcntl
import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import jwt
import psycopg2
import pytest
import requests
from support.commands import failure, run_command
from support.process import run_to_its_end
from support.server import (
    APPLIED,
    HASTY,
    MIGRATIONS,
    ROOT,
    Server,
    User,
    change_by_hand,
    changed_app,
    insert_by_hand,
    make_schema_of,
    new_database,
)

from app import create_app
from database.postgres import SCHEMA_LOCK
from testbed.cluster import PASSWORD
from testbed.settings import SETTINGS

TIME = r"\d\d:\d\d:\d\d"


class InTerminal(Server):
    """gunicorn with a terminal as its output, which ends up in the log file."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.master, slave = pty.openpty()
        super().__init__(folder, output=slave, **options)
        os.close(slave)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with self.log_file.open("ab", buffering=0) as log, suppress(OSError):
            while piece := os.read(self.master, 65536):
                log.write(piece)
        os.close(self.master)

    def stop(self) -> int:
        code = super().stop()
        self.reader.join(5)
        return code

    @property
    def text(self) -> str:
        return self.log_file.read_bytes().decode().replace("\r\n", "\n")

    def line(self, part: str) -> str:
        """The only line with this part. It may be on its way. Fails when it does not come."""
        deadline = time.monotonic() + 5
        while part not in self.text:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)
        (line,) = (line for line in self.text.split("\n") if part in line)
        return line


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InTerminal]:
    with InTerminal(tmp_path_factory.mktemp("terminal")) as server:
        yield server


def flask(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return run_to_its_end(folder, "flask", "--app", "app", *arguments, **environment)


def test_a_terminal_shows_requests_as_text(terminal: InTerminal) -> None:
    found = requests.get(f"{terminal.url}/api/alice/tasks?token=secret1")
    request = terminal.line("GET /api/alice/")
    requests.get(f"{terminal.url}/nope")
    miss = terminal.line("GET /nope")
    assert "GET /nope 404 " in miss
    id = found.headers["X-Request-ID"][:8]
    words = rf"{TIME} info    GET /api/alice/tasks 200 \d+\.\d ms  {id}"
    assert re.fullmatch(words, request)
    assert "secret1" not in terminal.text


@pytest.mark.parametrize(
    "part, shown",
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\nc", r"a\rb\nc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("用户 ä", "用户 ä"),
    ],
)
def test_a_path_cannot_steer_the_terminal(terminal: InTerminal, part: str, shown: str) -> None:
    requests.get(f"{terminal.url}/api/{quote(part)}/nope")
    assert terminal.line(f"GET /api/{shown}/nope 404 ").isprintable()


def test_a_terminal_says_once_what_starts(terminal: InTerminal) -> None:
    for name in MIGRATIONS:
        terminal.line(f"applied the migration {name}")
    start, workers, _ = terminal.text.partition(" info    Booting worker")
    assert [re.sub(TIME, "time", line) for line in start.split("\n")] == [
        "time info    Task API 1.1.0 started",
        f"         address   {terminal.url}",
        f"         docs      {terminal.url}/docs",
        "         database  SQLite at tasks.db",
        "         origins   http://localhost:3000, http://localhost:5173",
        "time warning Anyone who can reach this server may read and write every user's tasks",
        "time",
    ]
    assert not re.search("Task API|Anyone", workers)


def test_a_terminal_shows_a_traceback_line_by_line(tmp_path: Path) -> None:
    raises = "exec('raise Exception(chr(27) + chr(10) + chr(0x9b))')"
    app = changed_app(tmp_path, f"import models; models.get_task = lambda *_: {raises}")
    path = "/api/ann/tasks/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"
    with InTerminal(tmp_path, app=app) as server:
        id = requests.get(server.url + path).headers["X-Request-ID"][:8]
        request = server.line(f"GET {path} 500 ")
        assert re.fullmatch(rf"{TIME} info    GET {path} 500 \d+\.\d ms  {id}", request)
    _, _, trace = server.text.partition(" error   ")
    first, second, *lines = trace.split("\n")
    assert first.endswith(f"  {id}")
    assert second == "         Traceback (most recent call last):"
    end = next(n for n, line in enumerate(lines) if not line.startswith("         "))
    assert lines[end - 2 : end] == [r"         Exception: \x1b", r"         \x9b"]
    assert "\x1b" not in server.text and "\x9b" not in server.text


def test_the_start_is_one_record_without_a_secret(tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        DATABASE_URL="postgresql://ann:secret1@127.0.0.1:9/db?sslpassword=secret2",
        JWT_JWKS_URL="http://127.0.0.1:9/jwks?apikey=secret3",
        CORS_ORIGINS="https://a.example,https://b.example",
    )
    token = jwt.encode({"sub": "ann"}, "s" * 32, headers={"kid": "1"})
    with server, User(server, "ann") as ann:
        url = server.url
        ann.get("/tasks", headers={"Authorization": f"Bearer {token}"})
    started, *others = [line for line in server.log() if "database" in line]
    assert (started.pop("level"), started.pop("message")) == ("info", "Task API 1.1.0 started")
    assert re.fullmatch(r"[\d-]+T[\d:.]+Z", started.pop("time"))
    assert started == {
        "address": url,
        "docs": f"{url}/docs",
        "database": "PostgreSQL at 127.0.0.1:9/db",
        "origins": "https://a.example, https://b.example",
        "callers": "whoever has a token signed with a key at http://127.0.0.1:9/jwks",
    }
    assert others == []
    text = server.log_file.read_text()
    assert "the keys at http://127.0.0.1:9/jwks could not be fetched" in text
    assert "secret" not in text and token not in text
    assert not any("Anyone" in line["message"] for line in server.log())


def test_the_start_does_not_show_the_secret_of_the_tokens(tmp_path: Path) -> None:
    with Server(tmp_path, JWT_SECRET="sesame" * 6) as server:
        pass
    assert any(line.get("callers", "").endswith("signed with the secret") for line in server.log())
    assert "sesame" not in server.log_file.read_text()


def test_migrate_says_what_it_did(tmp_path: Path, own_url: str) -> None:
    for said in (APPLIED, "nothing to do\n"):
        result = run_command(tmp_path, "migrate", DATABASE_URL=own_url)
        assert (result.exit_code, result.stdout, result.stderr) == (0, said, "")


@pytest.mark.parametrize(
    "host, said",
    [
        ("nowhere.invalid", "cannot find the host 'nowhere.invalid': "),
        ("127.0.0.1:9", "cannot connect to 127.0.0.1: Connection refused"),
        ("localhost:9", "cannot connect to localhost: "),
    ],
)
def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, host: str, said: str) -> None:
    reason = failure(tmp_path, "migrate", DATABASE_URL=f"postgresql://ann:pass1@{host}/db")
    assert said in reason and "pass1" not in reason


@contextmanager
def schema_lock(database_url: str) -> Iterator[None]:
    """What a server holds while it makes the schema."""
    if database_url.startswith("sqlite:///"):
        folder = os.open(Path(database_url.removeprefix("sqlite:///")).parent, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
        os.close(folder)
    else:
        with closing(psycopg2.connect(database_url)) as connection:
            connection.cursor().execute("SELECT pg_advisory_lock(%s)", (SCHEMA_LOCK,))
            yield


@pytest.mark.slow
def test_migrate_waits_for_a_server_that_makes_the_schema_however_long(
    tmp_path: Path, own_url: str
) -> None:
    with ThreadPoolExecutor() as pool:
        with schema_lock(own_url):
            command = pool.submit(flask, tmp_path, "migrate", DATABASE_URL=own_url)
            with pytest.raises(TimeoutError):
                command.result(10)
        assert command.result(5).stdout == APPLIED


def test_a_stop_does_not_wait_for_another_server_that_makes_the_schema(
    tmp_path: Path, own_url: str
) -> None:
    with schema_lock(own_url), Server(tmp_path, app=HASTY, DATABASE_URL=own_url) as server:
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 6


@pytest.fixture
def guest(postgres: str) -> Iterator[tuple[str, str]]:
    """An empty database, as its owner and as a user who may not make tables."""
    url = new_database(postgres)
    change_by_hand(url, f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    yield url, url.replace("//postgres:", "//guest:")
    change_by_hand(url, "DROP OWNED BY guest")
    change_by_hand(url, "DROP ROLE guest")


def let_guests_in(database_url: str, folder: Path) -> None:
    assert run_command(folder, "migrate", DATABASE_URL=database_url).exit_code == 0
    change_by_hand(database_url, "GRANT ALL ON task TO guest")
    change_by_hand(database_url, "GRANT SELECT ON schema_migration TO guest")


def test_a_user_who_may_not_make_the_schema_is_told_so_until_somebody_else_does(
    tmp_path: Path, guest: tuple[str, str]
) -> None:
    words = "database unavailable: permission denied for schema public"
    assert failure(tmp_path, "migrate", DATABASE_URL=guest[1]) == words
    with Server(tmp_path, DATABASE_URL=guest[1]) as server, User(server, "ann") as ann:
        assert ann.get("/tasks").status_code == 503
        let_guests_in(guest[0], tmp_path)
        assert ann.tasks() == []
    warnings = {line["message"] for line in server.log() if line["level"] == "warning"}
    assert words in warnings
    assert "traceback" not in server.log_file.read_text()


def test_after_a_migration_by_hand_the_service_needs_no_right_to_make_tables(
    tmp_path: Path, guest: tuple[str, str]
) -> None:
    let_guests_in(guest[0], tmp_path)
    with Server(tmp_path, DATABASE_URL=guest[1]) as server, User(server, "ann") as ann:
        ann.create()
        assert len(ann.tasks()) == 1
        change_by_hand(guest[0], "REVOKE INSERT ON task FROM guest")
        assert ann.post("/tasks", json={"title": "Buy milk"}).status_code == 503
        assert len(ann.tasks()) == 1


def test_the_commands_are_named_and_need_no_database(tmp_path: Path, own_url: str) -> None:
    result = run_command(tmp_path, "--help", DATABASE_URL=own_url)
    assert result.stderr == ""
    assert "migrate  Bring the database's schema up to date" in result.stdout
    assert "token    Print a token for USER, signed with JWT_SECRET." in result.stdout
    options = {"JWT_SECRET": "s" * 32, "DATABASE_URL": own_url}
    token = run_command(tmp_path, "token", "ann", **options)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", token.stdout) and token.stderr == ""
    migrated = flask(tmp_path, "migrate", DATABASE_URL=own_url)
    assert (migrated.stdout, migrated.stderr) == (APPLIED, "")


@pytest.mark.parametrize("days", ["1e7", "36501", "-1", "nan", "inf"])
def test_a_token_that_is_valid_for_too_long_is_refused_in_one_line(
    tmp_path: Path, days: str
) -> None:
    reason = failure(tmp_path, "token", "ann", "--days", days, JWT_SECRET="s" * 32)
    assert reason == "--days: expected a number from 0 to 36500"


@pytest.mark.parametrize("ignored", ["", "https://example.com/jwks"])
def test_a_token_without_a_secret_is_refused_in_one_line(tmp_path: Path, ignored: str) -> None:
    secret = "s" * 32 if ignored else ""
    reason = failure(tmp_path, "token", "ann", JWT_SECRET=secret, JWT_JWKS_URL=ignored)
    assert reason == "JWT_SECRET is missing or ignored: no token can be signed"


@pytest.mark.parametrize("user", ["", "a/b", "a\n", "a\0b", "\x7f", "\x9b", "x" * 256, "\udcff"])
def test_a_token_for_a_user_who_cannot_exist_is_refused_in_one_line(
    tmp_path: Path, user: str
) -> None:
    expected = "USER: expected 1 to 255 characters, without / or control characters"
    assert failure(tmp_path, "token", user, JWT_SECRET="s" * 32) == expected


@pytest.mark.parametrize("user", ["ann", "auth0|5f", "a b", "用户", "x" * 255])
def test_a_token_is_for_the_user_who_is_named(tmp_path: Path, user: str) -> None:
    result = run_command(tmp_path, "token", user, JWT_SECRET="s" * 32)
    claims = jwt.decode(result.stdout.strip(), "s" * 32, ["HS256"])
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (user, 86_400)


def test_a_token_of_the_command_is_one_that_the_server_takes(tmp_path: Path) -> None:
    """Flask reads `.env` by itself, and looks up what follows a `$`."""
    (tmp_path / ".env").write_text("HOST=x\nJWT_SECRET=correct-horse-battery-staple-${HOST}$HOME\n")
    token = flask(tmp_path, "token", "ann").stdout.strip()
    with Server(tmp_path) as server, User(server, "ann", token) as ann:
        assert ann.tasks() == []


def test_the_files_that_flask_reads_by_itself_are_no_settings(tmp_path: Path) -> None:
    """It also reads those of parent folders, and a port of a file is no sign of a platform."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in (".env", ".flaskenv"):
        (tmp_path / file).write_text("DATABASE_URL=sqlite:///parent.db\nPORT=8001\n")
        assert flask(folder, "migrate").returncode == 0
        assert [found.name for found in folder.glob("*.db")] == ["tasks.db"]
    (folder / ".env").write_text(f"PORT=9000\nJWT_SECRET={'s' * 32}\n")
    assert flask(folder, "token", "ann").returncode == 0


def test_what_is_in_the_environment_is_a_setting_also_if_a_file_has_it(tmp_path: Path) -> None:
    """Such as the file of a parent folder whose variables a shell has exported."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / ".env").write_text(f"DATABASE_URL=sqlite:///exported.db\nJWT_SECRET={'s' * 32}\n")
    exported = {"DATABASE_URL": "sqlite:///exported.db", "JWT_SECRET": "s" * 32}
    assert flask(folder, "migrate", **exported).returncode == 0
    assert [found.name for found in folder.glob("*.db")] == ["exported.db"]
    assert flask(folder, "token", "ann", **exported).returncode == 0


def test_a_port_in_use_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        command = [sys.executable, "-m", "gunicorn", "app:create_app()", "-b", address]
        result = subprocess.run(
            [*command, "-c", str(ROOT / "gunicorn.conf.py")],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert result.returncode == 1
    (line,) = map(json.loads, (result.stdout + result.stderr).splitlines())
    assert line["level"] == "error"
    assert line["message"] == (
        f"Cannot listen at {address}: Address already in use. Trying for 5 seconds."
        " Stop what listens there, or choose another port (-b 127.0.0.1:8001)."
    )


def test_the_server_of_flask_says_where_it_is_and_logs_no_query(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "app", "run", "--port", "0"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
            stdout=log,
            stderr=log,
        )
    try:
        text, deadline = "", time.monotonic() + 15
        while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", text)):
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.02)
            text = (tmp_path / "log").read_text()
        assert requests.get(f"{found[1]}/api/ann/tasks?token=secret1").json() == []
        # Its server decodes what is not UTF-8 to U+FFFD, whatever it was.
        assert requests.get(f"{found[1]}/api/%ff/tasks").status_code == 404
        assert requests.get(f"{found[1]}/api/a%2Fb/tasks").status_code == 404
    finally:
        process.terminate()
        process.wait(10)
    text = (tmp_path / "log").read_text()
    assert text.count("/api/ann/tasks") == 1
    assert text.count("Anyone who can reach this server") == 1
    assert "secret1" not in text


@pytest.mark.parametrize("arguments", [["run"], ["migrate"], ["token", "ann"], ["--help"]])
def test_a_wrong_setting_stops_a_command_with_one_line(
    tmp_path: Path, arguments: list[str]
) -> None:
    result = flask(tmp_path, *arguments, THREADS="many")
    lines = [line for line in result.stderr.splitlines() if line]
    assert any("THREADS" in line for line in lines)
    assert "Traceback" not in result.stderr and len(lines) == 1


def test_a_database_of_before_finds_the_dotted_and_the_dotless_i(
    tmp_path: Path, own_url: str
) -> None:
    """As the first migration alone made it, with what was folded without a care for them."""
    before, new = tmp_path / "before", tmp_path / "new"
    before.mkdir()
    new.mkdir()
    make_schema_of(["0001_task"], before, own_url)
    texts = {"istan": "İstanbul", "IŞI": "ışık", "IZ": "Izmir", "\u0307 iix": "i\u0307 İıX"}
    for text in texts.values():
        insert_by_hand(own_url, "ann", text)
        insert_by_hand(own_url, "ann", "x", description=text, description_folded=text.casefold())
    with Server(new, DATABASE_URL=own_url) as server, User(server, "ann") as ann:
        for search, text in texts.items():
            found = {(task["title"], task["description"]) for task in ann.tasks(search=search)}
            assert found == {(text, None), ("x", text)}, search
        ann.create("x", description="İ")
        assert len(ann.tasks(search="i")) == 2 * len(texts) + 1
    assert "applied the migration 0002_dotted_i" in server.log_file.read_text()


def test_the_trash_comes_to_a_table_without_touching_its_rows(tmp_path: Path, own_url: str) -> None:
    before, new = tmp_path / "before", tmp_path / "new"
    before.mkdir()
    new.mkdir()
    make_schema_of([name for name in MIGRATIONS if name < "0004"], before, own_url)
    for title in "abc":
        insert_by_hand(own_url, "ann", title)
    is_postgres = own_url.startswith("postgresql:")
    place = "ctid::text, xmin::text, pg_relation_filenode('task')" if is_postgres else "''"
    rows = f"SELECT {place}, id, title, revision, updated_at FROM task ORDER BY title"
    untouched = change_by_hand(own_url, rows)
    with Server(new, DATABASE_URL=own_url) as server, User(server, "ann") as ann:
        a, b, _ = sorted(ann.tasks(), key=lambda task: task["title"])
        assert change_by_hand(own_url, rows) == untouched
        ann.delete(f"/tasks/{b['id']}")
        # What version 1.0 still writes during a deploy.
        insert_by_hand(own_url, "ann", "d")
        change_by_hand(own_url, f"DELETE FROM task WHERE id = '{a['id']}'")
        assert {task["title"] for task in ann.tasks()} == {"c", "d"}
        assert ann.post(f"/tasks/{b['id']}/restore").json() == b
    assert "applied the migration 0004_trash" in server.log_file.read_text()


@contextmanager
def another_server(folder: Path, module: str) -> Iterator[str]:
    """The address of the application on the server that `make_server` of `module` makes."""
    serve = (
        f"from {module} import make_server\nfrom app import create_app\n"
        "server = make_server('127.0.0.1', 0, create_app())\n"
        "print(server.server_port, flush=True)\nserver.serve_forever()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", serve],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{folder / 'tasks.db'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def test_a_server_that_reads_no_chunks_does_not_toggle_for_a_body_it_drops(tmp_path: Path) -> None:
    """As under uWSGI: `{"completed": true}` would count as no body, and toggle."""
    with another_server(tmp_path, "wsgiref.simple_server") as url:
        tasks = f"{url}/api/ann/tasks"
        task = requests.post(tasks, json={"title": "x"}, timeout=10).json()
        path = f"{tasks}/{task['id']}/complete"
        headers = {"Content-Type": "application/json"}
        body = iter([b'{"completed": true}'])
        assert requests.patch(path, data=body, headers=headers, timeout=10).status_code == 400
        assert requests.get(tasks, timeout=10).json() == [task]
        assert requests.patch(path, timeout=10).json()["completed"] is True
        # This server does not tell how the path was sent, either.
        for user in ("100%25ab", "a%252fb", "a%3Fb"):
            other = tasks.replace("ann", user)
            created = requests.post(other, json={"title": "x"}, timeout=10)
            assert created.json()["user_id"] == unquote(user)
        for user in ("a%FF", "a%EF%BF%BD"):  # The second is how adapters for ASGI decode it.
            assert requests.get(tasks.replace("ann", user), timeout=10).status_code == 404


@pytest.mark.parametrize(
    ("framing", "body", "expected"),
    [
        ("Transfer-Encoding: chunked", b'e\r\n{"title": "x"}\r\n0\r\n\r\n', 201),
        ("Transfer-Encoding: chunked", b'14\r\n{"title": "x"}', 400),
        ("Transfer-Encoding: chunked", b'e\r\n{"title": "x"}\r\nx\r\n', 400),
        (
            "Transfer-Encoding: chunked",
            b"20001\r\n%b\r\n0\r\n\r\n" % b'{"title": "x"}'.ljust(0x20001),
            413,
        ),
        ("Content-Length: 14", b'{"title": "x"}', 201),
        ("Content-Length: 15", b'{"title": "x"}', 400),
        ("Content-Length: 131073", b'{"title": "x"}'.ljust(0x20001), 413),
    ],
)
def test_a_body_on_the_server_of_flask_run(
    tmp_path: Path, framing: str, body: bytes, expected: int
) -> None:
    """Werkzeug cuts a body at a limit without an error: it would be a task."""
    head = f"POST /api/ann/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}"
    with another_server(tmp_path, "werkzeug.serving") as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(f"{head}\r\n\r\n".encode() + body)
            connection.shutdown(socket.SHUT_WR)
            assert int(connection.recv(65536).split()[1]) == expected
        assert len(requests.get(f"{url}/api/ann/tasks", timeout=10).json()) == (expected == 201)


def test_a_body_that_a_server_has_whole_needs_no_length(tmp_path: Path) -> None:
    """As under an adapter for ASGI: `{"completed": true}` would count as no body, and toggle."""
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    client = create_app(replace(SETTINGS, database_url=url)).test_client()
    task = client.post("/api/ann/tasks", json={"title": "x"}).json
    for _ in "12":
        changed = client.patch(
            f"/api/ann/tasks/{task['id']}/complete",
            headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"},
            input_stream=BytesIO(b'{"completed": true}'),
        )
        assert (changed.status_code, changed.json["completed"]) == (200, True)
    client.application.extensions["database"].close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--certfile", __file__, "--keyfile", __file__],
        ["--proxy-protocol"],
        ["--http-parser", "fast"],
        # The event loop would take the body of a request for the next request.
        ["--strip-header-spaces"],
        ["--permit-obsolete-folding"],
        # Each request, also of /health, would be refused.
        ["--limit-request-line", "0"],
        ["--limit-request-fields", "0"],
        ["--limit-request-field_size", "0"],
        # Without it, anyone would be let in.
        ["--env", f"JWT_SECRET={'sesame' * 6}"],
    ],
    ids=["TLS", "PROXY", "parser", "spaces", "folding", "line", "fields", "size", "environment"],
)
def test_an_option_that_would_not_work_stops_the_start(
    tmp_path: Path, arguments: list[str]
) -> None:
    server = Server(tmp_path, *arguments)
    assert server.process.wait(10) != 0
    log = server.log_file.read_text()
    assert "not supported" in log and "Traceback" not in log and "sesame" not in log


def test_a_server_that_can_never_start_a_worker_stops(tmp_path: Path) -> None:
    """Nobody can create a file for the heartbeat there."""
    server = Server(tmp_path, "--worker-tmp-dir", "/proc")
    assert server.process.wait(10) == 1
    log = server.log_file.read_text()
    assert "No worker can be started: No such file or directory" in log and "Traceback" not in log
