"""The OpenAPI document, and that it tells the truth."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import marshmallow as ma
import pytest
import requests
from support.server import Server, User

from schemas import TaskSchema

pytestmark = pytest.mark.one_database
OPERATIONS = {
    "listTasks": ("get", "/api/{user_id}/tasks", {200, 304, 400, 404, 413, 422, 500, 503}),
    "createTask": ("post", "/api/{user_id}/tasks", {200, 201, 400, 404, 413, 415, 422, 500, 503}),
    "getTask": ("get", "/api/{user_id}/tasks/{task_id}", {200, 304, 400, 404, 413, 500, 503}),
    "updateTask": (
        *("put", "/api/{user_id}/tasks/{task_id}"),
        {200, 400, 404, 412, 413, 415, 422, 500, 503},
    ),
    "patchTask": (
        *("patch", "/api/{user_id}/tasks/{task_id}"),
        {200, 400, 404, 412, 413, 415, 422, 500, 503},
    ),
    "deleteTask": ("delete", "/api/{user_id}/tasks/{task_id}", {200, 400, 404, 412, 413, 500, 503}),
    "completeTask": (
        *("patch", "/api/{user_id}/tasks/{task_id}/complete"),
        {200, 400, 404, 412, 413, 415, 422, 500, 503},
    ),
    "restoreTask": (
        "post",
        "/api/{user_id}/tasks/{task_id}/restore",
        {200, 400, 404, 413, 500, 503},
    ),
    "listDeletedTasks": (
        *("get", "/api/{user_id}/tasks/deleted"),
        {200, 304, 400, 404, 413, 422, 500, 503},
    ),
    "clearCompletedTasks": (
        *("delete", "/api/{user_id}/tasks/completed/clear"),
        {200, 400, 404, 413, 500, 503},
    ),
    "getHealth": ("get", "/health", {200, 400, 413, 500}),
    "getReadiness": ("get", "/ready", {200, 400, 413, 500, 503}),
}


@pytest.fixture
def document(server: Server) -> dict[str, Any]:
    response = requests.get(server.url + "/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    return response.json()


def resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def test_every_operation_is_there_with_every_status(document: dict[str, Any]) -> None:
    found = {
        operation["operationId"]: (method, path, {int(status) for status in operation["responses"]})
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    assert document["openapi"].startswith("3.1")
    assert found == OPERATIONS


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            assert operation["summary"], path
            assert operation["description"], path
            for status, response in operation["responses"].items():
                full = resolve(document, response)
                assert full["description"], (path, method, status)
                assert "X-Request-ID" in full["headers"], (path, method, status)
                if int(status) >= 400:
                    (kind,) = full["content"]
                    assert kind == "application/problem+json"
            for parameter in item.get("parameters", []) + operation.get("parameters", []):
                full = resolve(document, parameter)
                assert full["description"], (path, full)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_an_upgrade_that_is_asked_for_is_ignored(server: Server, path: str) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert requests.get(server.url + path, headers=upgrade).json() == {"status": "ok"}


def test_headers_are_documented_where_they_come(document: dict[str, Any]) -> None:
    def headers(path: str, method: str, status: str) -> set[str]:
        operation = document["paths"][path][method]
        return set(resolve(document, operation["responses"][status])["headers"]) - {"X-Request-ID"}

    tasks, task = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
    assert headers(tasks, "get", "200") == {"ETag", "Link"}
    assert headers(tasks, "post", "201") == {"ETag", "Location"}
    assert headers(tasks, "post", "200") == {"ETag", "Idempotent-Replayed"}
    assert headers(task, "get", "304") == {"ETag"}
    assert "content" not in resolve(document, document["paths"][task]["get"]["responses"]["304"])
    assert headers(task, "put", "200") == {"ETag"}
    assert headers(task, "put", "503") == {"Retry-After"}


def test_request_headers_and_bodies_are_documented(document: dict[str, Any]) -> None:
    def taken(path: str, method: str) -> set[str]:
        parameters = document["paths"][path][method]["parameters"]
        found = [resolve(document, parameter) for parameter in parameters]
        return {each["name"] for each in found if each["in"] == "header"}

    tasks, task = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
    assert taken(tasks, "get") == taken(task, "get") == {"If-None-Match"}
    assert taken(tasks, "post") == {"Idempotency-Key"}
    for path, method in ((task, "put"), (task, "delete"), (task + "/complete", "patch")):
        assert taken(path, method) == {"If-Match"}
    bodies = document["paths"][task]
    assert set(bodies["put"]["requestBody"]["content"]) == {"application/json"}
    assert set(bodies["patch"]["requestBody"]["content"]) == {
        "application/json",
        "application/merge-patch+json",
    }
    assert not document["paths"][task + "/complete"]["patch"]["requestBody"]["required"]


@pytest.mark.both_databases
def test_a_new_task_is_linked_to_all_that_can_be_done_with_it(
    user: User, document: dict[str, Any]
) -> None:
    links = document["paths"]["/api/{user_id}/tasks"]["post"]["responses"]["201"]["links"]
    linked = {link["operationId"] for link in links.values()}
    assert linked == {name for name, place in OPERATIONS.items() if "{task_id}" in place[1]}
    task = user.create()
    for link in links.values():
        fields = {name: link["parameters"][name].split("#/")[1] for name in link["parameters"]}
        assert {name: task[field] for name, field in fields.items()} == {
            "user_id": user.name,
            "task_id": task["id"],
        }


def test_a_parameter_has_its_type_and_its_values(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/api/{user_id}/tasks"]["get"]["parameters"]
    found = {each["name"]: each for each in parameters if each.get("in") == "query"}
    assert not any(each["required"] for each in found.values())
    schemas = {name: each["schema"] for name, each in found.items()}
    assert schemas["status"]["enum"] == ["all", "pending", "completed"]
    assert schemas["sort"]["enum"] == ["created", "updated", "title", "due_date", "priority"]
    assert schemas["order"]["enum"] == ["asc", "desc"]
    limit = schemas["limit"]
    assert (limit["type"], limit["minimum"], limit["maximum"]) == ("integer", 1, 10000)
    assert limit["default"] == 10000
    assert schemas["cursor"]["minLength"] == 1
    word = document["components"]["schemas"]["TaskCreate"]["properties"]["priority"]["anyOf"][0]
    for name in ("priority", "tag", "tags"):
        assert (schemas[name]["type"], schemas[name]["maxItems"]) == ("array", 20)
        assert schemas[name]["items"]["pattern"] == word["pattern"]
    (user_id,) = document["paths"]["/api/{user_id}/tasks"]["parameters"]
    assert resolve(document, user_id)["schema"]["maxLength"] == 255


def test_a_response_header_is_promised_where_it_always_comes(document: dict[str, Any]) -> None:
    headers = document["components"]["headers"]
    assert {name for name, header in headers.items() if not header["required"]} == {"Link"}


def test_every_shape_is_described(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name


def test_no_shape_is_there_that_nobody_sends(document: dict[str, Any]) -> None:
    assert set(document["components"]["schemas"]) == {
        *("Task", "TaskCreate", "TaskUpdate", "TaskCompletion", "Message", "Status", "Problem"),
        *("DeletedTask", "ReplayedTask", "Cleared"),
    }


def test_input_shapes_demand_only_what_is_needed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["TaskCreate"]["required"] == ["title"]
    assert "required" not in schemas["TaskUpdate"]
    assert "required" not in schemas["TaskCompletion"]
    assert schemas["Task"]["properties"]["description"]["type"] == ["string", "null"]
    title = schemas["TaskCreate"]["properties"]["title"]
    assert (title["minLength"], title["maxLength"]) == (1, 500)


def test_what_always_comes_is_required(document: dict[str, Any]) -> None:
    sometimes = {"Problem": {"errors"}, "ReplayedTask": {"deleted_at"}}
    for name in ("Task", "ReplayedTask", "DeletedTask", "Message", "Cleared", "Status", "Problem"):
        schema = document["components"]["schemas"][name]
        always = schema["properties"].keys() - sometimes.get(name, set())
        assert set(schema["required"]) == always, name


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize("description", [None, "", "text", "\U0001f600" * 5000])
@pytest.mark.both_databases
def test_what_is_sent_is_what_the_schema_says(
    user: User, description: str | None, completed: bool
) -> None:
    task = user.create("\U0001f600" * 500, description=description, completed=completed)
    schema = TaskSchema(unknown=ma.RAISE)
    for sent in (task, user.task(task["id"]), *user.tasks()):
        loaded = schema.load(sent)
        dumped = schema.dump(loaded)
        for stamp in ("created_at", "updated_at", *["completed_at"] * completed):
            assert loaded[stamp].isoformat(timespec="microseconds")[:-6] + "Z" == sent[stamp]
            dumped[stamp] = sent[stamp]
        assert json.dumps(dumped) == json.dumps(sent)


@pytest.mark.parametrize(
    "environment, callers",
    [
        ({}, "Anyone who can reach this server may call it for any user"),
        ({"JWT_SECRET": "s" * 32}, "signed with this server's JWT_SECRET"),
        ({"JWT_JWKS_URL": "https://a.example/jwks?key=s"}, "a token from https://a.example:"),
        (
            {"JWT_JWKS_URL": "https://a.example/jwks", "JWT_ISSUER": "https://<a>.example"},
            "a token from https://&lt;a&gt;.example:",
        ),
    ],
)
def test_the_docs_page_says_who_may_call(
    tmp_path: Path, environment: dict[str, str], callers: str
) -> None:
    with Server(tmp_path, **environment) as server:
        page = requests.get(f"{server.url}/docs").text
    assert callers in re.sub("</?code>", "", page)
    assert "s" * 32 not in page
    assert "key=" not in page


def test_the_docs_page_asks_for_nothing_from_elsewhere(server: Server) -> None:
    page = requests.get(server.url + "/docs")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    # The last three do not follow from the first.
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert f"{name} 'none'" in policy
    assert not re.search("unsafe|https?:", policy)
    assert "//" not in page.text.replace("<!--", "")
    linked = [part.split('"')[0] for part in page.text.split('src="')[1:]]
    linked += [part.split('"')[0] for part in page.text.split('href="')[1:]]
    assert len(linked) >= 5
    for path in linked:
        assert requests.get(server.url + path).status_code == 200, path


@pytest.mark.parametrize("path", ["/docs/", "/openapi.json/"])
def test_a_slash_at_the_end_is_no_redirect(server: Server, path: str) -> None:
    assert requests.get(server.url + path, allow_redirects=False).status_code == 200


def test_the_root_leads_to_the_docs(server: Server) -> None:
    response = requests.get(server.url + "/", allow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (302, "/docs")


@pytest.mark.both_databases
def test_the_examples_work_as_they_stand(user: User, document: dict[str, Any]) -> None:
    def example(name: str) -> dict[str, Any]:
        properties = document["components"]["schemas"][name]["properties"]
        return {field: schema["example"] for field, schema in properties.items()}

    created = user.post("/tasks", json=example("TaskCreate"))
    assert created.status_code == 201
    path = f"/tasks/{created.json()['id']}"
    assert user.put(path, json=example("TaskUpdate")).status_code == 200
    assert user.patch(path + "/complete", json=example("TaskCompletion")).status_code == 200
    assert user.get(f"/tasks/{uuid4()}").json()["type"] == "about:blank"


def patterns(part: Any) -> Iterator[str]:
    """Every pattern in a part of the document."""
    if isinstance(part, dict):
        yield from (part["pattern"],) if isinstance(part.get("pattern"), str) else ()
        part = [*part.values()]
    if isinstance(part, list):
        for each in part:
            yield from patterns(each)


def test_a_pattern_is_one_in_every_language(document: dict[str, Any]) -> None:
    r"""Go and Rust have no lookahead; PCRE, Go and Python's `re` differ in what \u and \Z mean."""
    found = {*patterns(document)}
    assert len(found) >= 6
    for pattern in found:
        assert not re.search(r"\(\?[^:]|\\[uUpPzZAGbB]", pattern), pattern


@pytest.mark.parametrize("part", [" ", "a", "a ", ",", "a,", " ,", "\x1c", "0"])
def test_no_text_holds_up_who_validates_by_the_document(
    document: dict[str, Any], part: str
) -> None:
    """An engine that backtracks needs minutes for it if two parts of a pattern match the same."""
    start = time.monotonic()
    for pattern in {*patterns(document)}:
        for text in (part * 3000, f"{part * 3000}\0", f"x{part * 3000}\0", f"{part * 3000}[\0"):
            re.search(pattern, text)
    assert time.monotonic() - start < 5


def test_agents_take_the_descriptions(document: dict[str, Any]) -> None:
    """Those of OpenAI take 300 characters for an operation, and 700 for a parameter."""
    parameters = [*document["components"]["parameters"].values()]
    for path in document["paths"].values():
        for method, operation in path.items():
            if method != "parameters":
                assert len(operation.get("description", "")) <= 300, operation["operationId"]
                parameters += operation.get("parameters", [])
    assert max(len(parameter.get("description", "")) for parameter in parameters) <= 700


def integers(part: Any) -> Iterator[int]:
    if isinstance(part, int):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from integers(each)


def test_every_language_can_hold_the_numbers(document: dict[str, Any]) -> None:
    """Swift cannot read a larger one, and JavaScript rounds it."""
    assert max(map(abs, integers(document))) < 2**53


def test_a_due_date_is_text_to_generated_clients(document: dict[str, Any]) -> None:
    """With `format`, they parse it, and send midnight in UTC as a date."""
    for name in ("TaskCreate", "TaskUpdate"):
        due_date = document["components"]["schemas"][name]["properties"]["due_date"]
        assert due_date["type"] == ["string", "null"]
        assert not {"anyOf", "oneOf", "format"} & due_date.keys()


def test_no_response_has_a_limit_that_clients_count_differently(document: dict[str, Any]) -> None:
    """Zod 3 and 4.1 count an emoji as two characters: they refused a whole list for one title."""
    for name in ("Task", "ReplayedTask", "DeletedTask"):
        for field in document["components"]["schemas"][name]["properties"].values():
            assert not {"minLength", "maxLength", "pattern"} & field.keys()


def test_postman_finds_the_examples(document: dict[str, Any]) -> None:
    """It ignores an example beside `anyOf`, and invents values that the server refuses."""
    for field in document["components"]["schemas"]["TaskCreate"]["properties"].values():
        if "anyOf" in field:
            assert field["anyOf"][0]["example"] == field["example"]


def test_the_example_of_a_message_is_what_is_sent(user: User, document: dict[str, Any]) -> None:
    def example(name: str) -> str:
        return document["components"]["schemas"][name]["properties"]["message"]["example"]

    task = user.create()
    assert user.delete(f"/tasks/{task['id']}").json()["message"] == example("Message")
    assert user.delete("/tasks/completed/clear").json()["message"] == example("Cleared")


@pytest.mark.parametrize("path", ["/static/docs.css", "/docs/swagger-ui/swagger-ui.css"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("If-Match", '"x"'),
        ("If-Modified-Since", "Thu, 99 Jan 99999999999 00:00:00 GMT"),
        ("If-Modified-Since", "Thu, 01 Jan 2026 00:00:00 +9999999999"),
        ("If-Unmodified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("If-Range", "Thu, 99 Jan 99999999999 00:00:00 GMT"),
        ("Range", "bytes=999999999-"),
        ("Range", "bytes=0-1,3-4"),
    ],
)
def test_no_condition_on_a_file_is_an_error(
    server: Server, path: str, name: str, value: str
) -> None:
    headers = {"Range": "bytes=0-1", name: value}
    found = requests.get(server.url + path, headers=headers)
    assert found.status_code == 200 and found.content
    again = requests.get(server.url + path, headers={"If-None-Match": found.headers["ETag"]})
    assert again.status_code == 304
