"""What the client tests share: Node.js tools, kept off the network, and the OpenAPI documents."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from server import ROOT, Server

HERE = Path(__file__).parent
EXAMPLE = ROOT / "examples" / "typescript"
SECRET = "a secret of the tests, of 32 bytes or more"
# No telemetry and no question about updates; whatever asks all the same reaches nobody.
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "REDOCLY_TELEMETRY": "off",
    "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
    "npm_config_update_notifier": "false",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "NO_COLOR": "1",
}


class Tools:
    """The commands in a folder's `node_modules`."""

    def __init__(self, packages: Path, home: Path) -> None:
        self.environment = OFFLINE | {
            "HOME": str(home),
            "PATH": f"{packages / 'node_modules' / '.bin'}:{os.environ['PATH']}",
        }

    def run(
        self, folder: Path, *command: str | Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


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
def document(node: None, protection: dict[str, str], folder: Path) -> Path:
    """The OpenAPI document in a file."""
    place = folder / f"document-{len(protection)}"
    place.mkdir()
    file = place / "openapi.json"
    with Server(place, DATABASE_URL=f"sqlite:///{place / 'tasks.db'}", **protection) as running:
        file.write_bytes(requests.get(running.url + "/openapi.json").content)
    return file
