"""/health, /ready, request ids and the log."""

import json
import re
import signal
from pathlib import Path

import pytest
import requests
from support.network import eventually
from support.server import Server, User, changed_app, new_database


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/", "/ready/"])
def test_all_is_well(server: Server, path: str) -> None:
    response = requests.get(server.url + path, allow_redirects=False)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert requests.head(server.url + path).status_code == 200


@pytest.mark.parametrize("given", ["a", "A-z_0.9:/+=@~", "x" * 128])
@pytest.mark.one_database
def test_a_safe_request_id_is_kept(user: User, given: str) -> None:
    for path in ("/tasks", "/tasks/1", "/nope"):
        response = user.get(path, headers={"X-Request-ID": given})
        assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a,b", "ä".encode(), "{x}"])
@pytest.mark.one_database
def test_any_other_is_replaced(user: User, given: str | bytes) -> None:
    response = user.get("/tasks", headers={"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])


@pytest.mark.one_database
def test_every_answer_has_an_id_of_its_own(user: User) -> None:
    ids = {user.get("/tasks").headers["X-Request-ID"] for _ in range(20)}
    assert len(ids) == 20


def test_every_request_is_one_line_of_the_log(user: User) -> None:
    start = user.server.log_file.stat().st_size
    headers = {"Authorization": "Bearer secret1", "Cookie": "secret2"}
    response = user.post("/tasks?token=secret3", json={"title": "secret4"}, headers=headers)
    (line,) = user.server.log(start)
    assert list(line) == [
        *("time", "level", "message", "request_id", "method", "path", "status", "ms")
    ]
    assert (line["level"], line["message"], line["method"]) == ("info", "request", "POST")
    assert line["path"] == f"/api/{user.name}/tasks"
    assert line["status"] == response.status_code == 201
    assert line["request_id"] == response.headers["X-Request-ID"]
    assert 0 < line["ms"] < 5000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
    assert "secret" not in str(line)


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.one_database
def test_the_line_has_the_path_in_its_own_letters(server: Server, end: str) -> None:
    start = server.log_file.stat().st_size
    assert requests.get(f"{server.url}/api/用户/tasks{end}").status_code == 200
    (line,) = server.log(start)
    assert line["path"] == "/api/用户/tasks"


@pytest.mark.one_database
def test_no_path_commands_the_terminal_that_shows_the_log(server: Server) -> None:
    start = server.log_file.stat().st_size
    requests.get(f"{server.url}/用户/%C2%9B31m/%C2%85/%E2%80%A8/%E2%80%AE/%7F")
    (line,) = server.log_file.read_bytes()[start:].decode().splitlines()
    assert line.isprintable()
    assert json.loads(line)["path"] == "/用户/\x9b31m/\x85/\u2028/\u202e/\x7f"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nBearer secret5\r\n\r\n",
        b"GET /?token=secret5\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: secret5\r\n\r\n",
    ],
)
@pytest.mark.one_database
def test_what_is_no_http_is_not_quoted_in_the_log(server: Server, request_: bytes) -> None:
    start = server.log_file.stat().st_size
    assert 400 <= server.send(request_)[0] <= 501
    (line,) = server.log(start)
    assert line["message"].startswith("Invalid request")
    assert "secret5" not in str(line)


def test_a_bug_is_a_500_that_only_the_log_explains(tmp_path: Path) -> None:
    app = changed_app(tmp_path, "import models; models.get_task = lambda *_: 1 / 0")
    with Server(tmp_path, app=app) as server, User(server, "ann") as user:
        path = "/tasks/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"
        response = user.get(path, headers={"Origin": "http://localhost:3000"})
        assert user.get("/tasks").status_code == 200
    problem = response.json()
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert not re.search("division|lambda|broken|Traceback", response.text)
    (error,) = [line for line in server.log() if line["level"] == "error"]
    assert "ZeroDivisionError: division by zero" in error["traceback"]
    assert error["request_id"] == problem["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("place", ["jwt.decode_complete", "orjson.loads"])
def test_a_request_for_which_there_is_no_memory_is_no_bug(tmp_path: Path, place: str) -> None:
    fail = "def fail(*_, **__):\n    raise MemoryError\n"
    app = changed_app(tmp_path, f"import jwt, orjson\n{fail}{place} = fail")
    secret = {"JWT_SECRET": "s" * 32} if "jwt" in place else {}
    server = Server(tmp_path, app=app, **secret)
    with server, User(server, "ann", "a.b.c") as ann:
        answer = ann.post("/tasks", json={"title": "x"})
    assert answer.status_code == 503
    assert "may or may not have been made" in answer.json()["detail"]
    (line,) = [line for line in server.log() if line["message"] == "out of memory"]
    assert line["level"] == "warning"


@pytest.mark.parametrize("hook", ["before_request", "after_request", "teardown_request"])
def test_a_body_that_a_monitoring_agent_reads_is_not_lost(tmp_path: Path, hook: str) -> None:
    (tmp_path / "watched.py").write_text(
        "import app\nfrom flask import request\n"
        "def create_app():\n"
        "    watched = app.create_app()\n"
        f"    watched.{hook}(lambda *passed: (print(request.get_data()), *passed)[-1])\n"
        "    return watched\n"
    )
    with Server(tmp_path, app="watched:create_app()") as server, User(server, "ann") as user:
        task = user.create("seen")
        path = f"/tasks/{task['id']}/complete"
        headers = {"Content-Type": "application/json"}
        chunks = [b'{"completed":', b" true}"]
        for body in (b"".join(chunks), iter(chunks), iter(chunks)):
            response = user.patch(path, data=body, headers=headers)
            assert (response.status_code, response.json()["completed"]) == (200, True)
        assert user.patch(path).json()["completed"] is False
        if hook == "before_request":
            long = b" " * 131_073
            for body in (long, iter([long])):
                assert user.post("/tasks", data=body, headers=headers).status_code == 413
        assert user.tasks() == [user.task(task["id"])]
    assert "seen" in server.log_file.read_text()


def test_applications_of_one_process_have_each_their_own_database(
    tmp_path: Path, postgres: str
) -> None:
    urls = [f"sqlite:///{tmp_path}/{n}.db" for n in "12"] + [new_database(postgres) for _ in "34"]
    (tmp_path / "several.py").write_text(
        "import app, dataclasses, settings\n"
        "from werkzeug.middleware.dispatcher import DispatcherMiddleware\n"
        "def create_app():\n"
        "    read = settings.read_settings()\n"
        f"    each = [dataclasses.replace(read, database_url=url) for url in {urls}]\n"
        "    apps = [app.create_app(one) for one in each]\n"
        "    inner = {f'/{n}': app for n, app in enumerate(apps)}\n"
        "    apps[0].wsgi_app = DispatcherMiddleware(apps[0].wsgi_app, inner)\n"
        "    return apps[0]\n"
    )
    with Server(tmp_path, app="several:create_app()") as server, User(server, "ann") as user:
        bases = [f"{server.url}/{n}/api/ann/tasks" for n in range(4)]
        for _ in range(4):  # Whichever process and thread it meets.
            for base in bases:
                assert user.post(base, json={"title": base}).status_code == 201
        for base in bases:
            assert [task["title"] for task in user.get(base).json()] == [base] * 4
    assert '"level":"error"' not in server.log_file.read_text()


def test_the_access_log_that_a_platform_asks_for_repeats_nothing(tmp_path: Path) -> None:
    with Server(tmp_path, GUNICORN_CMD_ARGS="--access-logfile -") as server:
        requests.get(f"{server.url}/api/ann/tasks")
    assert len([line for line in server.log() if line.get("path") == "/api/ann/tasks"]) == 1


def test_the_log_can_go_to_a_file_which_can_be_renamed(tmp_path: Path) -> None:
    file, last, first = (tmp_path / name for name in ("api.log", "api.log.1", "api.log.2"))
    server = Server(tmp_path, "--log-file", str(file), WEB_CONCURRENCY="1")

    def logs_into(file: Path) -> bool:
        requests.get(f"{server.url}/api/ann/tasks")
        return "/api/ann/tasks" in file.read_text()

    with server:
        assert '"path":"/health"' in file.read_text()
        file.rename(first)
        server.process.send_signal(signal.SIGUSR1)
        eventually(lambda: file.exists() and logs_into(file), 5)
        file.rename(last)
        file.mkdir()  # Now it cannot be opened.
        server.process.send_signal(signal.SIGUSR1)
        eventually(lambda: last.read_text().count("cannot be opened: Is a directory") == 2, 5)
        assert logs_into(last)


@pytest.mark.parametrize(("query", "looks"), [("", False), ("?gssencmode=prefer", True)])
def test_a_kerberos_ticket_is_looked_for_only_if_the_url_says_so(
    tmp_path: Path, postgres: str, query: str, looks: bool
) -> None:
    """On macOS, looking can crash a process that was forked."""
    trace = tmp_path / "kerberos"  # The library of Kerberos makes this file when it is used.
    url = f"{new_database(postgres)}{query}"
    with Server(tmp_path, DATABASE_URL=url, KRB5_TRACE=str(trace)) as server:
        assert requests.get(f"{server.url}/ready").status_code == 200
    assert trace.exists() == looks
