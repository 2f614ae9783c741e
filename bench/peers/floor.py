"""What the stack costs with nothing on it: a bare Flask route, and one with a bare statement.

The statements are the ones that the service sends for the same requests, and so is the JSON.
"""

import os
import threading
from typing import Any

import orjson
import psycopg2
from flask import Flask, Response
from psycopg2.extensions import set_wait_callback

from database import Postgres
from lists import OLDEST_FIRST, UNMEASURED_TASKS, select_page
from models import PUBLIC_FIELDS, select_one

postgres = Postgres("", "public", threads=5)
SELECT_ONE = select_one(postgres)
SELECT_PAGE = select_page(postgres, (), OLDEST_FIRST, False, False)
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


def select(statement: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    with connection().cursor() as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall()
    tasks = [dict(zip(PUBLIC_FIELDS, row, strict=False)) for row in rows]
    for task in tasks:
        task["tags"] = orjson.Fragment(task["tags"])
    return tasks


@one_statement.get("/api/<user_id>/tasks")
def answer_with_tasks(user_id: str) -> Response:
    values = {"user_id": user_id, "limit": UNMEASURED_TASKS + 1, "offset": 0}
    return Response(orjson.dumps(select(SELECT_PAGE, values)), mimetype="application/json")


@one_statement.get("/api/<user_id>/tasks/<task_id>")
def answer_with_task(user_id: str, task_id: str) -> Response:
    (task,) = select(SELECT_ONE, {"user_id": user_id, "id": task_id})
    return Response(orjson.dumps(task), mimetype="application/json")
