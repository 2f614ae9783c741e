"""A page of another origin, which calls the API with `fetch` in a real browser."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser, Page
from support.network import Network
from support.server import ROOT, Server, User

SECRET = "a secret of more than 32 bytes, for tests"
SMALL = {"WEB_CONCURRENCY": "1", "THREADS": "5"}
# What a script can read of an answer, or the name of the error that it gets instead.
CALL = """
async ([url, options]) => {
  try {
    const response = await fetch(url, options);
    const text = await response.text();
    const body = text ? JSON.parse(text) : null;
    return { status: response.status, headers: Object.fromEntries(response.headers), body };
  } catch (error) {
    return error.name;
  }
}
"""


class Blank(BaseHTTPRequestHandler):
    """The page of a frontend, without anything on it."""

    def do_GET(self) -> None:
        body = b"<!doctype html><link rel=icon href=data:,><title>A frontend</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Frontend:
    """A page at an origin of its own, signed in as alice."""

    def __init__(self, page: Page, origin: str) -> None:
        self.origin = origin
        self.page = page
        self.token = token("alice")
        page.goto(origin)

    def call(self, server: Server, method: str, path: str, **options: Any) -> Any:
        """What its script sees of an answer. A header that is None is left out."""
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        options["headers"] = {name: value for name, value in headers.items() if value is not None}
        answer = self.page.evaluate(CALL, [server.url + path, {"method": method, **options}])
        return answer if isinstance(answer, str) else SimpleNamespace(**answer)


def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 300}, SECRET)


@contextmanager
def frontend_at_a_port(browser: Browser) -> Iterator[Frontend]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as pages:
        Thread(target=pages.serve_forever, daemon=True).start()
        with browser.new_context() as context:
            yield Frontend(context.new_page(), f"http://127.0.0.1:{pages.server_port}")
        pages.shutdown()


@pytest.fixture(scope="module")
def frontend(chromium: Browser) -> Iterator[Frontend]:
    with frontend_at_a_port(chromium) as frontend:
        yield frontend


@pytest.fixture(scope="module")
def stranger(chromium: Browser) -> Iterator[Frontend]:
    """A page whose origin no server lists."""
    with frontend_at_a_port(chromium) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, frontend: Frontend
) -> Iterator[Callable[..., Server]]:
    """Start a server that lists the frontend's origin, unless it is told otherwise."""
    servers = []

    def start(**settings: str) -> Server:
        defaults = {"CORS_ORIGINS": f"http://localhost:3000,{frontend.origin}", **SMALL}
        server = Server(tmp_path_factory.mktemp("server"), **defaults | settings)
        servers.append(server)
        return server.wait()

    yield start
    for server in servers:
        server.process.terminate()  # All at once, since each takes its time.
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Server]) -> Server:
    return start(JWT_SECRET=SECRET)


def test_every_operation_can_be_called_with_a_token(frontend: Frontend, guarded: Server) -> None:
    def call(method: str, path: str = "", **options: Any) -> Any:
        return frontend.call(guarded, method, f"/api/alice/tasks{path}", **options)

    sent = {"Content-Type": "application/json", "X-Request-ID": "from-the-page"}
    sent["Idempotency-Key"] = "the first"
    created = call("POST", headers=sent, body='{"title": "Buy milk"}')
    path = f"/{created.body['id']}"
    assert created.status == 201
    assert created.headers["location"] == f"/api/alice/tasks{path}"
    assert created.headers["x-request-id"] == "from-the-page"
    again = call("POST", headers=sent, body='{"title": "Buy milk"}')
    assert (again.status, again.body) == (200, created.body)
    assert again.headers["idempotent-replayed"] == "true"
    json = {"Content-Type": "application/json"}
    assert call("POST", headers=json, body='{"title": "Buy bread"}').status == 201

    page = call("GET", "?limit=1")
    assert (page.status, page.body) == (200, [created.body])
    link = page.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
    following = frontend.call(guarded, "GET", link)
    assert [task["title"] for task in following.body] == ["Buy bread"]
    known = {"If-None-Match": page.headers["etag"]}
    assert call("GET", "?limit=1", headers=known).status == 304

    read = call("GET", path)
    assert (read.status, read.body) == (200, created.body)
    assert read.headers["etag"] == created.headers["etag"]
    assert call("GET", path, headers={"If-None-Match": read.headers["etag"]}).status == 304
    assert call("HEAD", path).headers["etag"] == read.headers["etag"]

    tag = {"If-Match": read.headers["etag"]}
    put = call("PUT", path, headers=json | tag, body='{"title": "Buy oat milk"}')
    assert (put.status, put.body["title"]) == (200, "Buy oat milk")
    tag = {"If-Match": put.headers["etag"]}
    merge = {"Content-Type": "application/merge-patch+json"}
    patched = call("PATCH", path, headers=merge | tag, body='{"description": "Two"}')
    assert (patched.status, patched.body["description"]) == (200, "Two")
    tag = {"If-Match": patched.headers["etag"]}
    flipped = call("PATCH", f"{path}/complete", headers=tag)
    assert (flipped.status, flipped.body["completed"]) == (200, True)
    tag = {"If-Match": flipped.headers["etag"]}
    deleted = call("DELETE", path, headers=tag)
    assert (deleted.status, deleted.body) == (200, {"message": "Task deleted successfully"})
    assert [task["title"] for task in call("GET").body] == ["Buy bread"]

    asked = {line["path"] for line in guarded.log() if line.get("method") == "OPTIONS"}
    tasks = "/api/alice/tasks"
    assert asked >= {tasks, f"{tasks}{path}", f"{tasks}{path}/complete"}


JSON = {"Content-Type": "application/json"}
NO_TASK = "/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"


@pytest.mark.parametrize(
    "status, method, path, options",
    [
        (400, "POST", "", {"headers": JSON, "body": "{"}),
        (401, "GET", "", {"headers": {"Authorization": None}}),
        (401, "GET", "", {"headers": {"Authorization": "Bearer x"}}),
        (403, "GET", "/../../bob/tasks", {}),
        (404, "GET", NO_TASK, {}),
        (404, "PATCH", "/1/complete", {}),
        (404, "PATCH", "/of/no/operation", {}),
        (405, "DELETE", "", {}),
        (413, "POST", "", {"headers": JSON, "body": '"' + "x" * 128 * 1024}),
        (415, "POST", "", {"body": "title=x"}),
        (422, "POST", "", {"headers": JSON, "body": '{"title": " "}'}),
        (422, "GET", "?limit=x", {}),
    ],
)
def test_an_error_can_be_read(
    frontend: Frontend,
    guarded: Server,
    status: int,
    method: str,
    path: str,
    options: dict[str, Any],
) -> None:
    answer = frontend.call(guarded, method, f"/api/alice/tasks{path}", **options)
    assert answer.status == answer.body["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.body["request_id"]
    assert len(answer.body["detail"]) > 10


def test_the_frontend_of_the_readme_creates_once_although_chromium_sends_again(
    frontend: Frontend, guarded: Server
) -> None:
    """Its first connection breaks after the create, before the answer. It was used before."""
    network = Network(guarded.address[1])
    url = f"http://127.0.0.1:{network.port}"
    block = re.search(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    lines = block[1].replace("http://127.0.0.1:8000", url)
    user = User(guarded, "readme")
    warm = f"await fetch('{url}/api/readme/tasks', {{ headers: {{ Authorization: 'x' }} }});"
    with network.losing(b"POST "):
        tasks = frontend.page.evaluate(
            f"async ([user, token]) => {{ {warm}\n{lines}\nreturn tasks; }}",
            [user.name, token(user.name)],
        )
    network.close()
    assert [(task["title"], task["completed"]) for task in tasks] == [("Buy milk", True)]


def test_a_lost_update_can_be_read(frontend: Frontend, guarded: Server) -> None:
    created = frontend.call(
        guarded, "POST", "/api/alice/tasks", headers=JSON, body='{"title": "x"}'
    )
    for method, path in (("PUT", ""), ("DELETE", ""), ("PATCH", "/complete")):
        answer = frontend.call(
            guarded,
            method,
            f"{created.headers['location']}{path}",
            headers=JSON | {"If-Match": '"another"'},
            body="{}" if method != "DELETE" else None,
        )
        assert (answer.status, answer.body["title"]) == (412, "Precondition Failed")


def test_a_page_learns_when_to_try_again(frontend: Frontend, start: Callable[..., Server]) -> None:
    server = start(DATABASE_URL="postgresql://alice@127.0.0.1:1/tasks")
    answer = frontend.call(server, "GET", "/api/alice/tasks")
    assert (answer.status, answer.body["title"]) == (503, "Service Unavailable")
    assert int(answer.headers["retry-after"]) >= 1


def test_another_origin_is_refused(
    frontend: Frontend, stranger: Frontend, start: Callable[..., Server]
) -> None:
    server = start()
    path = "/api/alice/tasks"
    simple = {"Authorization": None}
    assert frontend.call(server, "GET", path, headers=simple).body == []
    # It is sent and answered, but not shown; the others are not even sent.
    assert stranger.call(server, "GET", path, headers=simple) == "TypeError"
    assert stranger.call(server, "GET", path) == "TypeError"
    assert stranger.call(server, "POST", path, headers=JSON, body='{"title": "x"}') == "TypeError"
    with User(server, "alice") as alice:
        assert alice.tasks() == []


def test_credentials_may_be_sent_from_a_listed_origin(frontend: Frontend, guarded: Server) -> None:
    answer = frontend.call(guarded, "GET", "/api/alice/tasks?limit=1", credentials="include")
    assert answer.status == 200


def test_a_star_opens_the_api_to_everyone_but_not_with_credentials(
    frontend: Frontend, stranger: Frontend, start: Callable[..., Server]
) -> None:
    server = start(CORS_ORIGINS="*", JWT_SECRET=SECRET)
    for page in (frontend, stranger):
        created = page.call(server, "POST", "/api/alice/tasks", headers=JSON, body='{"title": "x"}')
        assert (created.status, "etag" in created.headers) == (201, True)
        assert page.call(server, "GET", "/api/bob/tasks").body["status"] == 403
        refused = page.call(server, "GET", "/api/alice/tasks", credentials="include")
        assert refused == "TypeError"
