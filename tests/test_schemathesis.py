"""Schemathesis takes the OpenAPI document at its word, with every check that it has."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import jwt
import pytest
import schemathesis
from schemathesis import Case, HookContext
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree
from support.server import ROOT, Server, new_database

from schemas import NOT_A_CURSOR

SECRET = "a secret of more than 32 bytes, for tests"
LISTS = {"priority", "tag", "tags"}
# What no schema can say: it depends on what was there before, or on another parameter.
REFUSED_BY_STATE = {
    f"cursor: {NOT_A_CURSOR}",
    "offset: Must not be sent together with cursor.",
    "Idempotency-Key: already used for a task with other content.",
}


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    """Tell, in Schemathesis' own process, whether this failure is one.

    Its checks expect that whatever fits the schema is accepted and all else is refused:
    https://schemathesis.readthedocs.io/en/stable/reference/checks/
    """
    if isinstance(failure, RejectedPositiveData) and response.status_code == 412:
        return (case.headers or {}).get("If-Match") in {None, "*"}
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        errors = problem.get("errors", {"": problem["detail"]})
        is_beyond = all(is_beyond_schema(case, name) for name in errors)
        return problem["detail"] not in REFUSED_BY_STATE and not is_beyond
    if isinstance(failure, AcceptedNegativeData):
        return not (fits_without_white_space(case) or fits_without_empty_values(case))
    # A restore makes a deleted task available again; test_trash.py proves that nothing else does.
    return not isinstance(failure, UseAfterFree)


def is_beyond_schema(case: Case, name: str) -> bool:
    """Whether the field `name` of the body was refused, but is right by the schema."""
    if name == "priority":
        return isinstance(case.body[name], float)  # Such as 1.0, an integer to a schema.
    return name == "due_date" and not is_in_calendar(case.body[name])


def is_in_calendar(due_date: str) -> bool:
    """Whether its month has such a day, its minute such a second, and UTC such a year."""
    try:
        datetime.fromisoformat(due_date).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


def fits_without_white_space(case: Case) -> bool:
    """Whether only white space around texts, which does not count, makes the body too long."""
    if not isinstance(case.body, dict):
        return False
    schema = case.operation.get_body_for_media_type(case.media_type).optimized_schema
    fits = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    return fits(strip(case.body)) and not fits(case.body)


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: strip(each) for name, each in value.items()}
    if isinstance(value, list):
        return [strip(each) for each in value]
    return value.strip() if isinstance(value, str) else value


def fits_without_empty_values(case: Case) -> bool:
    """Whether only values that count as none are wrong: empty ones, blank words and objects.

    An object is sent as other parameters or as an empty one; one word for a list, as a list.
    """
    query = case.query or {}
    sent = {}
    for name, value in query.items():
        if name in LISTS:
            words = value if isinstance(value, list) else [value]
            texts = [word if isinstance(word, str) else json.dumps(word) for word in words]
            value = [text for text in texts if text.strip()]
        if value not in ("", []) and not isinstance(value, dict):
            sent[name] = value
    parameters = case.operation.get_parameter_set(ParameterLocation.QUERY)
    return sent != query and parameters.get_strict_validator().is_valid(sent)


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
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "SCHEMATHESIS_HOOKS": Path(__file__).stem},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [line for line in service.log(start) if line["level"] in {"error", "critical"}] == []
