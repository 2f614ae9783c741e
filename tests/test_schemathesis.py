"""Schemathesis takes the OpenAPI document at its word, with every check that it has."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from support.server import ROOT, Server, new_database

HOOKS = "support.schemathesis_hooks"
SECRET = "a secret of more than 32 bytes, for tests"

slow = pytest.mark.slow


# The guarded service has all that the open one has; PostgreSQL is the stricter of the two.
@pytest.fixture(
    scope="module",
    params=[
        ("guarded", "postgres"),
        *(
            pytest.param(pair, marks=slow)
            for pair in [("guarded", "sqlite"), ("open", "postgres"), ("open", "sqlite")]
        ),
    ],
    ids=" on ".join,
)
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    protection, kind = request.param
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{folder}/tasks.db"
    if kind == "postgres":
        url = new_database(request.getfixturevalue("postgres"))
    secret = {"JWT_SECRET": SECRET} if protection == "guarded" else {}
    with Server(folder, DATABASE_URL=url, **secret) as server:
        yield server


# The same seed finds the same every time, as far as the state of the server allows. Stateful tests
# stop early when that differs between two runs, and so are repeated until the time is spent.
@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--phases=examples,coverage", id="short"),
        pytest.param("--phases=fuzzing --max-examples=100", marks=slow, id="fuzzing"),
        pytest.param("--phases=stateful --max-time=30", marks=slow, id="stateful"),
    ],
)
def test_schemathesis_finds_nothing(service: Server, tmp_path: Path, options: str) -> None:
    start = service.log_file.stat().st_size
    tokens = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {token}"}]}
        for name in ("alice", "bob")
        for token in [jwt.encode({"sub": name, "exp": time.time() + 3600}, SECRET)]
    ]
    (tmp_path / "tokens.json").write_text(json.dumps({"auth": tokens}))
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", str(ROOT / "tests/schemathesis.toml")]
    command += ["run", f"{service.url}/openapi.json", "--seed=1", "--generation-database=none"]
    command += ["--request-timeout=30", *options.split()]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "SCHEMATHESIS_HOOKS": HOOKS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line for line in service.log(start) if line["level"] in {"error", "critical"}] == []
