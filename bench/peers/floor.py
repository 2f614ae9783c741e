"""What the stack costs with nothing on it: a bare Flask route, and one with a bare statement."""

import os
import threading
from typing import Any

import psycopg2
from flask import Flask, Response

local = threading.local()
app = Flask(__name__)
SELECT = """
    SELECT id, user_id, title, description, completed,
        to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), revision
    FROM task WHERE user_id = %(user_id)s AND id = %(id)s
"""


def connection() -> Any:
    if not hasattr(local, "connection"):
        local.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        local.connection.autocommit = True
    return local.connection


@app.get("/health")
def bare() -> Response:
    return Response(b'{"status":"ok"}', mimetype="application/json")


@app.get("/api/<user_id>/tasks/<task_id>")
def statement(user_id: str, task_id: str) -> Response:
    with connection().cursor() as cursor:
        cursor.execute(SELECT, {"user_id": user_id, "id": task_id})
        row = cursor.fetchone()
    return Response(repr(row).encode(), mimetype="text/plain")
