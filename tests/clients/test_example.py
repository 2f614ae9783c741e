"""The TypeScript example, as a stranger uses it: copied, generated, compiled and run."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import jwt
import pytest
import requests
from clients.node import EXAMPLE, SECRET, Tools
from support.server import ROOT, Server, User

LINE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/\S+) (\d{3})")
CAST = re.compile(r"\bas\b|\bany\b|[\w)\]]!(?!=)|@ts-|<\w+>\w")
SOURCES = [EXAMPLE / "client.ts", EXAMPLE / "main.ts"]


@pytest.fixture
def copy(node: None, tmp_path: Path) -> Path:
    """The example without what .gitignore keeps out of it, beside its installed packages."""
    for file in EXAMPLE.iterdir():
        if file.is_file() and file.name != "schema.d.ts":
            shutil.copy(file, tmp_path)
    (tmp_path / "node_modules").symlink_to(EXAMPLE / "node_modules")
    return tmp_path


@pytest.fixture
def npm(folder: Path) -> Tools:
    return Tools(EXAMPLE, folder)


@pytest.fixture
def owner(service: Server) -> Iterator[User]:
    """A user with a token; where anyone may call, nobody looks at it."""
    with User(service, f"{uuid4()}@example.com") as user:
        claims = {"sub": user.name, "exp": datetime.now(UTC) + timedelta(minutes=30)}
        user.headers["Authorization"] = f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"
        yield user


def run(npm: Tools, copy: Path, owner: User) -> str:
    """What the example prints for the user, with types generated from the running service."""
    environment = {
        "TASK_API_URL": owner.server.url,
        "TASK_API_USER": owner.name,
        "TASK_API_TOKEN": owner.headers["Authorization"].removeprefix("Bearer "),
    }
    generated = npm.run(copy, "npm", "run", "generate", "--", owner.server.url + "/openapi.json")
    assert (generated.returncode, generated.stderr) == (0, ""), generated.stdout
    ran = npm.run(copy, "npm", "start", **environment)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return ran.stdout


def operations(service: Server) -> dict[tuple[str, str], dict[str, Any]]:
    document = requests.get(service.url + "/openapi.json").json()
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


@pytest.mark.slow
def test_the_example_drives_every_operation(npm: Tools, copy: Path, owner: User) -> None:
    documented = operations(owner.server)
    kept = owner.create("Feed the cat")
    output = run(npm, copy, owner)
    seen: dict[str, set[int]] = {}
    asked: set[str] = set()
    for method, address, status in LINE.findall(output):
        parts = urlsplit(address)
        operation = documented[method, parts.path]
        assert status in operation["responses"]
        seen.setdefault(operation["operationId"], set()).add(int(status))
        asked.update(dict(parse_qsl(parts.query)))
    assert seen == {
        "listTasks": {200},
        "createTask": {200, 201, 422},
        "getTask": {200, 304},
        "updateTask": {200, 412},
        "patchTask": {200},
        "completeTask": {200},
        "deleteTask": {200, 404},
        "listDeletedTasks": {200},
        "restoreTask": {200},
        "clearCompletedTasks": {200},
        "getHealth": {200},
        "getReadiness": {200},
    }
    assert seen.keys() == {operation["operationId"] for operation in documented.values()}
    taken = documented["GET", "/api/{user_id}/tasks"]["parameters"]
    names = {each["name"] for each in taken if each.get("in") == "query"}
    assert asked == names | {"sort_by", "sort_order"}
    for line in (
        "Created before: true",
        "The same task: true",
        "Stored: medium 2026-01-31T09:30:00 [ 'home', 'later' ]",
        "To do: Buy more milk (no description)\nGET ",
        "To do: Buy milk TWO BOTTLES",
        "Due: Buy milk\n",
        "sort_order=asc: Buy more milk, Buy milk, Feed the cat\n",
        "search=more: Buy more milk\n",
        "tags=shop,later: Buy milk, Buy more milk\n",
        "priority=high: Buy milk\n",
        "Unchanged: true",
        "Now: Buy oat milk",
        "Too late: The task has changed",
        "No description: true",
        "Completed: true true",
        "Still completed: true",
        "Refused: title: Shorter than minimum length 1. [ 'Shorter than minimum length 1.' ]",
        "Cleared: 1\n",
        "In the trash: true true\n",
        "Restored: Buy oat milk\n",
        "Gone: There is no such task.",
    ):
        assert line in output
    assert owner.tasks() == [kept]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_example_has_no_cast(source: Path) -> None:
    code = re.sub(r"//.*", "", source.read_text())
    code = re.sub(r'"[^"]*"|`[^`]*`', '""', code)
    assert CAST.findall(code) == []


def test_the_example_is_strict_and_pinned() -> None:
    options = json.loads((EXAMPLE / "tsconfig.json").read_text())["compilerOptions"]
    assert options["strict"] is True
    assert "skipLibCheck" not in options
    package = json.loads((EXAMPLE / "package.json").read_text())
    for version in (package["dependencies"] | package["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_lock_files_name_no_registry() -> None:
    for folder in (EXAMPLE, Path(__file__).parent, ROOT / "tests" / "better_auth"):
        lock = json.loads((folder / "package-lock.json").read_text())
        packages = [package for name, package in lock["packages"].items() if name]
        assert packages
        assert not any("resolved" in package for package in packages)
        assert all(package["integrity"] for package in packages)
