"""Pages of other origins, as a browser lets them call."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.server import Server, User

pytestmark = pytest.mark.one_database
LISTED, VITE = "http://localhost:3000", "http://localhost:5173"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
ALLOWED_HEADERS = {
    *("Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "If-Match"),
    *("If-None-Match", "Pragma", "X-Request-ID"),
}
EXPOSED = {"ETag", "Idempotent-Replayed", "Link", "Location", "Retry-After", "X-Request-ID"}


def names(header: str) -> set[str]:
    return {name.strip() for name in header.split(",")}


def preflight(user: User, origin: str, method: str = "PATCH") -> requests.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": ", ".join(ALLOWED_HEADERS).lower(),
    }
    return user.options("/tasks", headers=headers)


def allowed(response: requests.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("Access-")}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_preflight_of_a_listed_origin_passes(user: User, method: str) -> None:
    response = preflight(user, LISTED, method)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert names(response.headers["Access-Control-Allow-Methods"]) == METHODS
    asked = {name.lower() for name in ALLOWED_HEADERS}
    assert names(response.headers["Access-Control-Allow-Headers"]) == ALLOWED_HEADERS | asked
    # Chromium asks again after two hours, whatever a server says.
    assert response.headers["Access-Control-Max-Age"] == "7200"
    assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize(
    "asked", ["user-agent", "baggage,sentry-trace", "x-requested-with, expires", "x_1.a!"]
)
def test_a_page_may_send_headers_that_libraries_add(user: User, asked: str) -> None:
    headers = {"Origin": LISTED, "Access-Control-Request-Headers": asked}
    response = user.options("/tasks", headers=headers)
    given = names(response.headers["Access-Control-Allow-Headers"])
    assert given == ALLOWED_HEADERS | names(asked)


@pytest.mark.parametrize("asked", [b"", b"a b\x80", b"a;b", b"<b>", "é".encode(), b"\xe9"])
def test_what_is_no_name_of_a_header_is_not_repeated(server: Server, asked: bytes) -> None:
    request = (
        b"OPTIONS /api/a/tasks HTTP/1.1\r\nHost: x\r\nOrigin: http://localhost:3000\r\n"
        b"Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: %b\r\n\r\n"
    )
    status, headers, _ = server.send(request % asked)
    assert status == 200
    assert names(headers["access-control-allow-headers"]) == ALLOWED_HEADERS


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/tasks", 200),
        ("POST", "/tasks", 400),
        ("GET", "/tasks/1", 404),
        ("GET", "/tasks?limit=x", 422),
        ("DELETE", "/tasks", 405),
        ("GET", "/tasks/deleted", 200),
        ("DELETE", "/tasks/completed/clear", 200),
        ("POST", "/tasks/1/restore", 404),
        ("POST", "/tasks/deleted", 405),
        ("GET", "/nope", 404),
    ],
)
def test_answers_and_errors_can_be_read(user: User, method: str, path: str, status: int) -> None:
    response = user.request(method, path, headers={"Origin": LISTED})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert names(response.headers["Access-Control-Expose-Headers"]) == EXPOSED
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost:3001", "https://localhost:3000", "http://localhost:30000"),
        *("http://localhost:3000.evil.example", "http://localhostx3000", "http://localhost:3000/"),
        *("null", "", "*"),
    ],
)
def test_another_origin_gets_nothing(user: User, origin: str) -> None:
    for response in (preflight(user, origin), user.get("/tasks", headers={"Origin": origin})):
        assert allowed(response) == {}
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", [LISTED, VITE])
@pytest.mark.parametrize(
    "path",
    [
        *("/api/a/tasks", "/api/a/tasks/1", "/api/a/tasks/1/complete", "/api/a/nope", "/api/"),
        *("/api/a/tasks/1/restore", "/api/a/tasks/deleted", "/api/a/tasks/completed/clear"),
        *("/api/a/tasks/completed", "/api/a/tasks/deleted/complete"),
        *("/api//tasks", "/api/%FF/tasks", "/api/a%00/tasks", f"/api/{'a' * 256}/tasks"),
        *("/health", "/nope"),
    ],
)
def test_a_preflight_passes_so_that_the_404_can_be_read(
    server: Server, path: str, origin: str
) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
    response = requests.options(server.url + path, headers=headers)
    assert (response.status_code, response.content) == (200, b"")
    assert "Content-Type" not in response.headers
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert names(response.headers["Access-Control-Allow-Methods"]) == METHODS
    assert names(response.headers["Access-Control-Allow-Headers"]) == ALLOWED_HEADERS


@pytest.mark.parametrize("path, status", [("/tasks", 200), ("/nope", 404)])
def test_no_other_origin_learns_from_a_preflight(user: User, path: str, status: int) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PATCH"}
    response = user.options(path, headers=headers)
    assert (response.status_code, allowed(response)) == (status, {})


def test_options_in_lower_case_is_no_preflight(server: Server) -> None:
    request = b"options /api/a/tasks HTTP/1.1\r\nHost: x\r\nOrigin: http://localhost:3000\r\n\r\n"
    status, headers, _ = server.send(request)
    assert (status, headers["content-type"]) == (405, "application/problem+json")


def test_without_an_origin_there_is_nothing_but_vary(user: User) -> None:
    response = user.get("/tasks")
    assert allowed(response) == {}
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "path, status", [("/health", 200), ("/ready", 200), ("/openapi.json", 200), ("/tasks", 404)]
)
def test_a_page_may_ask_whether_the_service_is_up(server: Server, path: str, status: int) -> None:
    """It would show the service as down if it could not read the answer."""
    response = requests.get(server.url + path, headers={"Origin": LISTED})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == LISTED
    assert response.headers["Vary"] == "Origin"


ORIGINS = "https://A.example:443/, http://[::1]:3000,http://x.y:80, app-extension://140BB581-4D"


@pytest.fixture(params=["*", ORIGINS])
def configured(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    with Server(tmp_path, CORS_ORIGINS=request.param) as server:
        yield request.param, server


def test_the_setting_decides(configured: tuple[str, Server]) -> None:
    origins, server = configured
    with User(server, "ann") as user:
        for origin in (
            *("https://a.example", "http://[::1]:3000", "http://x.y"),
            *("app-extension://140BB581-4D", "app-extension://140bb581-4d"),
        ):
            response = user.get("/tasks", headers={"Origin": origin})
            if origins == "*":
                assert response.headers["Access-Control-Allow-Origin"] == "*"
                assert "Access-Control-Allow-Credentials" not in response.headers
                assert "Vary" not in response.headers
            else:
                assert response.headers["Access-Control-Allow-Origin"] == origin
        if origins != "*":
            assert allowed(user.get("/tasks", headers={"Origin": "http://xzy"})) == {}


def test_anyone_is_allowed_whatever_the_origin_so_that_caches_need_not_look(
    tmp_path: Path,
) -> None:
    with Server(tmp_path, CORS_ORIGINS="*") as server, User(server, "ann") as user:
        for method, path in (("GET", "/tasks"), ("GET", "/tasks/1"), ("OPTIONS", "/tasks")):
            without = user.request(method, path)
            assert allowed(without)["Access-Control-Allow-Origin"] == "*"
            assert allowed(without) == allowed(
                user.request(method, path, headers={"Origin": LISTED})
            )
            assert "Vary" not in without.headers
