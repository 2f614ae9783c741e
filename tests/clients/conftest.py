"""The fixtures of the client tests: the tools, the service and its OpenAPI document."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from clients.node import EXAMPLE, HERE, SECRET, Tools
from support.server import Server


@pytest.fixture(scope="session")
def node() -> None:
    folders = (HERE / "node_modules", EXAMPLE / "node_modules")
    if not shutil.which("npm") or not all(folder.is_dir() for folder in folders):
        pytest.skip("the Node packages are not installed: .ci/install")


@pytest.fixture(scope="session")
def tools(node: None, folder: Path) -> Tools:
    return Tools(HERE, folder)


@pytest.fixture(scope="session", params=["open", "with a secret"])
def protection(request: pytest.FixtureRequest) -> dict[str, str]:
    """Who may call decides what the document says."""
    return {} if request.param == "open" else {"JWT_SECRET": SECRET}


@pytest.fixture(scope="session")
def service(
    node: None, protection: dict[str, str], database_url: str, folder: Path
) -> Iterator[Server]:
    place = folder / f"clients-{database_url.partition(':')[0]}-{len(protection)}"
    place.mkdir()
    with Server(place, DATABASE_URL=database_url, **protection) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="session")
def document(protection: dict[str, str], folder: Path) -> Path:
    """The OpenAPI document in a file."""
    place = folder / f"document-{len(protection)}"
    place.mkdir()
    file = place / "openapi.json"
    with Server(place, DATABASE_URL=f"sqlite:///{place / 'tasks.db'}", **protection) as running:
        file.write_bytes(requests.get(running.url + "/openapi.json").content)
    return file
