"""The OpenAPI document, as linters and generators of clients see it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from clients.node import HERE, Tools
from support.server import Server

VALIDATOR = [sys.executable, "-m", "openapi_spec_validator", "--schema", "3.1"]
WARNING = re.compile(r"warn|error|fail|deprecat|ignor|skip|unsupported|⚠|✖|❌", re.IGNORECASE)
GENERATORS = {
    "openapi-typescript": ("openapi-typescript", "openapi.json", "--output", "client.d.ts"),
    "hey-api": ("openapi-ts", "--input", "openapi.json", "--output", "client", "--no-log-file"),
    "orval": ("orval", "--input", "openapi.json", "--output", "client.ts", "--client", "fetch"),
}

# A task with all the fields that a client can set, some in the other forms that they may have.
TASK = """
  title: "Buy milk",
  description: null,
  completed: false,
  priority: 1,
  due_date: "2026-01-31T09:30",
  tags: ["home", { name: "shop" }],
"""
QUERY = """
  status: "pending",
  priority: ["high", "urgent"],
  tag: ["home"],
  due_date_to: "2026-01-31",
  sort: "due_date",
  limit: 10,
"""
# Creates such a task, sends the answer back as it is, and lists with every kind of parameter.
USES = {
    "openapi-typescript": """
import type { components, operations } from "./client";
export const created: components["schemas"]["TaskCreate"] = { TASK };
export const answer = (task: components["schemas"]["Task"]) => {
  const echo: components["schemas"]["TaskUpdate"] = task;
  return [echo, task.tags.length, task.due_date, task.completed_at];
};
export const query: operations["listTasks"]["parameters"]["query"] = { QUERY };
""",
    "hey-api": """
import { createTask, listTasks, updateTask } from "./client";
export async function use(user_id: string) {
  const { data } = await createTask({ path: { user_id }, body: { TASK }, throwOnError: true });
  await updateTask({ path: { user_id, task_id: data.id }, body: data, throwOnError: true });
  return listTasks({ path: { user_id }, query: { QUERY } });
}
""",
    "orval": """
import { createTask, listTasks, updateTask } from "./client";
export async function use(user_id: string) {
  const { status, data } = await createTask(user_id, { TASK });
  if (status === 201) await updateTask(user_id, data.id, data);
  return listTasks(user_id, { QUERY });
}
""",
}


def test_spectral_has_nothing_to_say(tools: Tools, document: Path) -> None:
    rules = ("--ruleset", HERE / "spectral.yaml", "--fail-severity", "hint")
    lint = tools.run(
        document.parent, "spectral", "lint", "--quiet", "--format", "json", *rules, document
    )
    assert json.loads(lint.stdout) == []
    assert (lint.returncode, lint.stderr) == (0, "")


def test_redocly_has_nothing_to_say(tools: Tools, document: Path) -> None:
    rules = ("--extends", "recommended-strict", "--format", "json")
    lint = tools.run(document.parent, "redocly", "lint", *rules, document)
    result = json.loads(lint.stdout)
    assert result["problems"] == []
    assert result["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}
    assert lint.returncode == 0


def test_openapi_spec_validator_has_nothing_to_say(document: Path) -> None:
    # In a process of its own, or every worker of pytest would import it.
    subprocess.run([*VALIDATOR, "--validation-errors", "all", document], check=True)


@pytest.mark.alone  # No .pyc file is without docstrings: Python compiles every module anew.
def test_the_document_is_valid_without_docstrings(tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    with Server(tmp_path, before=["env"], PYTHONOPTIMIZE="2") as server:
        document.write_bytes(requests.get(f"{server.url}/openapi.json").content)
    subprocess.run([*VALIDATOR, document], check=True)


def test_a_title_of_white_space_is_blank_for_browsers_if_it_is_for_the_server(
    tools: Tools, document: Path, tmp_path: Path
) -> None:
    """The two languages differ in what white space is."""
    pattern = json.loads(document.read_text())["components"]["schemas"]["TaskCreate"]["properties"][
        "title"
    ]["pattern"]
    spaces = [*(chr(n) for n in range(1, 0x3001) if chr(n).isspace()), "\ufeff", "\u200b"]
    script = f"""
        const pattern = new RegExp({json.dumps(pattern)}, "u");
        console.log(JSON.stringify({json.dumps(spaces)}.filter((each) => pattern.test(each))));
    """
    found = json.loads(tools.run(tmp_path, "node", "-e", script).stdout)
    assert found == [space for space in spaces if space.strip()] == ["\ufeff", "\u200b"]


@pytest.mark.slow
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_client_is_generated_without_a_warning_and_compiles_under_strict(
    tools: Tools, document: Path, tmp_path: Path, generator: str
) -> None:
    shutil.copy(document, tmp_path)
    shutil.copy(HERE / "tsconfig.json", tmp_path)
    made = tools.run(tmp_path, *GENERATORS[generator])
    assert (made.returncode, made.stderr) == (0, ""), made.stdout
    assert not WARNING.search(made.stdout), made.stdout
    sources = [file.read_text() for file in tmp_path.rglob("*.ts")]
    for operation in ("listTasks", "createTask", "completeTask", "getReadiness"):
        assert any(operation in source for source in sources)
    use = USES[generator].replace("TASK", TASK).replace("QUERY", QUERY)
    (tmp_path / "use.ts").write_text(use)
    compiled = tools.run(tmp_path, "tsc", "--project", ".")
    assert (compiled.returncode, compiled.stdout) == (0, "")
