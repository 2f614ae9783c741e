"""Every test runs once on SQLite and once on a real PostgreSQL, unless neither can change it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support.commands import run_command
from support.server import APPLIED, ROOT, Server, User, change_by_hand, new_database

from testbed.cluster import FAST, Cluster
from testbed.issuer import Issuer

# What a partitioned table must do, too.
ON_PARTITIONS = {"create", "read", "list", "update", "delete", "complete", "once", "fields"}
ON_PARTITIONS |= {"list_words", "list_model", "trash"}
MEMORY = Path("/dev/shm")


def pytest_configure() -> None:
    """Keep the databases of the tests in memory if it has room: a commit waits for a disk."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not is_needless(item)]


def is_needless(item: pytest.Item) -> bool:
    """Whether a test on PostgreSQL is one that SQLite decides, or partitions do not concern."""
    callspec = getattr(item, "callspec", None)
    database = callspec and callspec.params.get("database_url")
    if database not in {"postgres", "partitions"}:
        return False
    if database == "partitions" and item.path.stem.removeprefix("test_") not in ON_PARTITIONS:
        return True
    on_one = item.get_closest_marker("one_database")
    return bool(on_one) and not item.get_closest_marker("both_databases")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    # Not pytest's own: PostgreSQL refuses to run as root, and its user may not look into that.
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT")
    path = Path(tempfile.mkdtemp(prefix="task-api-", dir=root))
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
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A PostgreSQL 18 that no test stops."""
    (folder / "postgres").mkdir(mode=0o755)
    cluster = Cluster(folder / "postgres", *FAST)
    cluster.start()
    yield cluster
    cluster.stop("immediate")


@pytest.fixture(scope="session")
def postgres(running_cluster: Cluster) -> str:
    """Its URL."""
    return running_cluster.url("postgres")


@pytest.fixture(scope="session")
def partitions(postgres: str, folder: Path) -> str:
    """The URL of a database whose table has the 16 partitions of docs/partitions.sql."""
    url = new_database(postgres)
    place = folder / "partitions"
    place.mkdir()
    assert run_command(place, "migrate", DATABASE_URL=url).stdout == APPLIED
    change_by_hand(url, (ROOT / "docs" / "partitions.sql").read_text())
    parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'task'::regclass"
    assert change_by_hand(url, parts) == [(16,)]
    return url


@pytest.fixture(
    scope="session",
    params=["sqlite", "postgres", pytest.param("partitions", marks=pytest.mark.slow)],
)
def database_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'tasks.db'}"
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["sqlite", "postgres"])
def own_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database for one test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'own.db'}"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def server(database_url: str, folder: Path) -> Iterator[Server]:
    place = folder / f"server-{database_url.rpartition('/')[2]}"
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
def issuer() -> Iterator[Issuer]:
    """It has no key yet."""
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def other(server: Server) -> Iterator[User]:
    with User(server, f"other-{uuid4()}") as user:
        yield user
