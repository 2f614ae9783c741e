"""What the stack costs with nothing on it: a bare Flask route, and ones with a bare statement.

The statements are the ones that the service sends for the same requests, and so is the JSON.
Nothing is validated.
"""

import os
import threading
from typing import Any
from uuid import uuid4

import orjson
import psycopg2
from flask import Flask, Response, request
from psycopg2.extensions import set_wait_callback

from database import Postgres
from lists import OLDEST_FIRST, UNMEASURED_TASKS, select_page
from models import (
    DEFAULTS,
    PUBLIC_FIELDS,
    delete,
    insert,
    new_revision,
    select_one,
    to_columns,
    update,
)

postgres = Postgres("", "public", threads=5)
SELECT_ONE = select_one(postgres)
SELECT_PAGE = select_page(postgres, (), OLDEST_FIRST, False, False)
INSERT, FLIP, DELETE = insert(postgres), update(postgres, ()), delete(postgres)
set_wait_callback(None)  # The driver's own way of waiting.

local = threading.local()
bare = Flask("bare")
one_statement = Flask("one_statement")


def connection() -> Any:
    if not hasattr(local, "connection"):
        local.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        local.connection.autocommit = True
    return local.connection


@bare.get("/health")
@one_statement.get("/health")
def health() -> Response:
    return Response(b'{"status":"ok"}', mimetype="application/json")


@bare.get("/api/<user_id>/tasks/<task_id>")
def answer(user_id: str, task_id: str) -> Response:
    return Response(orjson.dumps((task_id, user_id)), mimetype="application/json")


def send(statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection().cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def select(statement: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    rows = send(statement, values)
    tasks = [dict(zip(PUBLIC_FIELDS, row, strict=False)) for row in rows]
    for task in tasks:
        task["tags"] = orjson.Fragment(task["tags"])
    return tasks


def sent() -> dict[str, Any]:
    """The body of the request, with its tags as the column has them."""
    body: dict[str, Any] = orjson.loads(request.data)
    if "tags" in body:
        body["tags"] = orjson.dumps(body["tags"]).decode()
    return body


def write(user_id: str, task_id: str, **values: Any) -> dict[str, Any]:
    """The values of a write."""
    values |= {"user_id": user_id, "id": task_id, "revision": new_revision(), "expected": None}
    return values


@one_statement.get("/api/<user_id>/tasks")
def answer_with_tasks(user_id: str) -> Response:
    values = {"user_id": user_id, "limit": UNMEASURED_TASKS + 1, "offset": 0}
    return Response(orjson.dumps(select(SELECT_PAGE, values)), mimetype="application/json")


@one_statement.get("/api/<user_id>/tasks/<task_id>")
def answer_with_task(user_id: str, task_id: str) -> Response:
    (task,) = select(SELECT_ONE, {"user_id": user_id, "id": task_id})
    return Response(orjson.dumps(task), mimetype="application/json")


@one_statement.post("/api/<user_id>/tasks")
def create(user_id: str) -> Response:
    content = to_columns(DEFAULTS | sent())
    (task,) = select(INSERT, write(user_id, str(uuid4()), **content, deleted_at=None))
    return Response(orjson.dumps(task), 201, mimetype="application/json")


@one_statement.put("/api/<user_id>/tasks/<task_id>")
def change(user_id: str, task_id: str) -> Response:
    changes = to_columns(sent())
    (task,) = select(update(postgres, tuple(changes)), write(user_id, task_id, **changes))
    return Response(orjson.dumps(task), mimetype="application/json")


@one_statement.patch("/api/<user_id>/tasks/<task_id>/complete")
def flip(user_id: str, task_id: str) -> Response:
    (task,) = select(FLIP, write(user_id, task_id))
    return Response(orjson.dumps(task), mimetype="application/json")


@one_statement.delete("/api/<user_id>/tasks/<task_id>")
def remove(user_id: str, task_id: str) -> Response:
    assert send(DELETE, write(user_id, task_id))
    message = b'{"message":"Task deleted successfully"}'
    return Response(message, mimetype="application/json")
