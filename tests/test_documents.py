"""The README, the guides, and what they refer to."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import jwt
import pytest
import requests
from support.server import ROOT, Server, User

from settings import PLATFORM_VARIABLES

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "bench/README.md",
    ROOT / "examples/typescript/README.md",
]
README = (ROOT / "README.md").read_text()
SECRET = "a secret of more than 32 bytes, for tests"
EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS = set(re.findall(r"^# ([A-Z_]+)=", EXAMPLE, re.MULTILINE))
LINK = re.compile(r"\]\((?!https?://)([^)#]+)\)")


def code(document: str, language: str, part: str) -> str:
    """The one block of code in a document that has this `part`."""
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```$", document, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if part in block)
    return dedent(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).is_file()] == []


def test_every_guide_is_linked_from_the_readme() -> None:
    guides = {str(path.relative_to(ROOT)) for path in DOCUMENTS} - {"README.md"}
    assert guides <= set(LINK.findall(README))


def test_the_readme_explains_every_setting_of_the_example() -> None:
    table = README.partition("## Settings")[2].partition("## ")[0]
    assert set(re.findall(r"`([A-Z_]+)`", table)) >= SETTINGS


def test_the_picture_is_a_small_one() -> None:
    picture = (ROOT / "docs/docs-page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


@pytest.mark.parametrize("secret", ["", "Zm9v+/b=" * 5, '-$é "x' * 9])
def test_the_lines_that_sign_a_token_sign_one(tmp_path: Path, secret: str) -> None:
    """They are run as they stand, and with other secrets in the place of theirs."""
    lines = code(README, "sh", "openssl dgst")
    if secret:
        lines = re.sub("'the secret .*'", lambda _: f"'{secret}'", lines)
    done = subprocess.run(
        ["sh", "-euc", f'{lines}printf \'%s\\n\' "$JWT_SECRET" "$token"'],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    signed_with, token = done.stdout.splitlines()
    assert "=" not in token  # RFC 7515, section 2.
    headers = {"Authorization": f"Bearer {token}"}
    with Server(tmp_path, JWT_SECRET=signed_with) as server:
        assert requests.get(f"{server.url}/api/alice/tasks", headers=headers).json() == []
        assert requests.get(f"{server.url}/api/bob/tasks", headers=headers).status_code == 403
    days = (jwt.decode(token, options={"verify_signature": False})["exp"] - time.time()) / 86400
    assert 0.99 < days <= 1


@pytest.mark.parametrize("guarded", [True, False])
def test_the_frontend_of_the_readme_works(tmp_path: Path, guarded: bool) -> None:
    if not shutil.which("node"):
        pytest.skip("Node.js is not installed: .ci/install")

    def run(server: Server, token: str) -> Any:
        """What Node prints after the README's lines: the list, or the message of their error."""
        lines = code(README, "js", "fetch").replace("http://127.0.0.1:8000", server.url)
        inputs = f"const [user, token] = {json.dumps([user.name, token])};\n"
        (tmp_path / "frontend.mjs").write_text(
            f"{inputs}try {{\n{lines}\nconsole.log(JSON.stringify(tasks));\n}}"
            "catch (error) { console.log(JSON.stringify(error.message)); }"
        )
        command = ["node", tmp_path / "frontend.mjs"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    environment = {"JWT_SECRET": SECRET} if guarded else {}
    with (
        Server(tmp_path, **environment) as server,
        User(server, "zoë 用户 ?#%&@x.example") as user,
    ):
        token = jwt.encode({"sub": user.name, "exp": int(time.time()) + 300}, SECRET, "HS256")
        user.headers["Authorization"] = f"Bearer {token}"
        assert run(server, token) == user.tasks()
        assert [(task["title"], task["completed"]) for task in user.tasks()] == [("Buy milk", True)]
        if guarded:
            assert "token" in run(server, "x.y.z")


def test_the_document_for_deploys_names_every_sign_of_a_platform() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    (names,) = re.findall(r"detects a platform by any of these variables: ([^.]+)\.", text)
    assert set(re.findall(r"`(\w+)`", names)) == PLATFORM_VARIABLES
