"""A user of the real Better Auth, from the sign-up to a rotated key."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from support.network import eventually
from support.server import Server, User

HERE = Path(__file__).parent


class BetterAuth:
    """`issuer.js`, which obeys its commands in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["node", "issuer.js"],
            cwd=HERE,
            env={
                "PATH": f"{Path(shutil.which('node') or '').parent}",
                "BETTER_AUTH_TELEMETRY": "0",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.origin = f"http://127.0.0.1:{self.answer()}"

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.process.wait(5)
        return line

    def obey(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        assert self.answer() == "done"


class Page(requests.Session):
    """A page that has signed a new user up, and has the cookie of the session."""

    def __init__(self, issuer: BetterAuth) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Origin"] = issuer.origin
        self.auth_url = f"{issuer.origin}/api/auth"
        person = {"name": "Ann", "email": f"{uuid4()}@example.com", "password": "correct horse"}
        answer = self.post(f"{self.auth_url}/sign-up/email", json=person, timeout=10)
        assert answer.status_code == 200, answer.text
        self.user_id = answer.json()["user"]["id"]

    def token(self) -> str:
        """What `authClient.token()` returns."""
        return self.get(f"{self.auth_url}/token", timeout=10).json()["token"]


@pytest.fixture(scope="module")
def issuer() -> Iterator[BetterAuth]:
    if not shutil.which("node") or not (HERE / "node_modules").is_dir():
        pytest.skip("the Node packages are not installed: .ci/install")
    issuer = BetterAuth()
    yield issuer
    issuer.process.kill()
    issuer.process.communicate()


@pytest.fixture
def server(issuer: BetterAuth, tmp_path: Path) -> Iterator[Server]:
    """Configured as docs/tokens.md says."""
    options = {"JWT_ISSUER": issuer.origin, "JWT_AUDIENCE": issuer.origin, "WEB_CONCURRENCY": "1"}
    with Server(tmp_path, JWT_JWKS_URL=f"{issuer.origin}/api/auth/jwks", **options) as server:
        yield server


@pytest.fixture
def page(issuer: BetterAuth) -> Iterator[Page]:
    with Page(issuer) as page:
        yield page


@pytest.fixture
def user(server: Server, page: Page) -> Iterator[User]:
    """The page's user, with a token."""
    with User(server, page.user_id, page.token()) as user:
        yield user


def status(user: User, token: str) -> int:
    return user.get("/tasks", headers={"Authorization": f"Bearer {token}"}).status_code


def test_the_token_of_a_page_is_good_for_every_operation(user: User) -> None:
    paths = user.get(f"{user.server.url}/openapi.json").json()["paths"]
    operations = [
        (method, path.removeprefix("/api/{user_id}"))
        for path, item in paths.items()
        for method in item
        if path.startswith("/api/") and method != "parameters"
    ]
    assert len(operations) >= 7
    for method, path in operations:
        place = path.replace("{task_id}", user.create()["id"])
        assert user.request(method, place, json={"title": "x"}).ok, (method, path)
        refused = user.request(method, place, json={"title": "x"}, headers={"Authorization": ""})
        assert refused.status_code == 401, (method, path)
    with User(user.server, "somebody-else") as other:
        assert other.get("/tasks", headers=user.headers).status_code == 403


@pytest.mark.slow
def test_a_rotated_key_is_found_and_known_keys_outlive_the_issuer(
    issuer: BetterAuth, page: Page, user: User
) -> None:
    """The service asks for keys at most every 30 s: before that, a new key is unknown (401), and
    afterwards, it cannot be fetched (503).
    """
    old = page.token()
    assert status(user, old) == 200
    issuer.obey("rotate")
    new = page.token()
    issuer.obey("stop")
    with pytest.raises(requests.ConnectionError):
        page.token()

    def has_failed_to_ask() -> bool:
        assert (status(user, new), status(user, old)) in {(401, 200), (503, 200)}
        return "could not be fetched" in user.server.log_file.read_text()

    eventually(has_failed_to_ask, 35)
    assert (status(user, new), status(user, old)) == (503, 200)
    issuer.obey("start")
    waited = eventually(lambda: status(user, new) == 200, 35)
    print(f"the new key was found {waited:.0f} s after the issuer was back")
    assert (status(user, old), status(user, page.token())) == (200, 200)
