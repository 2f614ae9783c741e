"""Sends statements to PostgreSQL or SQLite, each in its own transaction."""

from database import sql
from database.base import (
    ForeignTable,
    Read,
    TaskDatabase,
    count_rows,
    fetch_all,
    request_limit,
    rfc3339,
)
from database.compile import Dialect, Parameter, statement
from database.postgres import Postgres
from database.sqlite import Sqlite

__all__ = [
    "Dialect",
    "ForeignTable",
    "Parameter",
    "Postgres",
    "Read",
    "Sqlite",
    "TaskDatabase",
    "count_rows",
    "fetch_all",
    "request_limit",
    "rfc3339",
    "sql",
    "statement",
]
