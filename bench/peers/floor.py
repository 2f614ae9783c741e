"""What the stack costs with nothing on it: a bare Flask route, and one with a bare statement."""

import os
import threading
from typing import Any

import orjson
import psycopg2
from flask import Flask, Response
from psycopg2.extensions import set_wait_callback

from database import Postgres
from models import select_one

# The one that the service sends for the same request.
SELECT = select_one(Postgres("", "public", threads=5))
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


@one_statement.get("/api/<user_id>/tasks/<task_id>")
def answer_with_row(user_id: str, task_id: str) -> Response:
    with connection().cursor() as cursor:
        cursor.execute(SELECT, {"user_id": user_id, "id": task_id})
        row = cursor.fetchone()
    return Response(orjson.dumps(row), mimetype="application/json")
