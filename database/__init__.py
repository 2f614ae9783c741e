"""Sends statements to PostgreSQL or SQLite, each in its own transaction."""

from database.base import ForeignTable, Read, Result, TaskDatabase, fetch_all, request_limit
from database.compile import Dialect, Parameter, statement
from database.postgres import Postgres
from database.sqlite import Sqlite

__all__ = [
    "Dialect",
    "ForeignTable",
    "Parameter",
    "Postgres",
    "Read",
    "Result",
    "Sqlite",
    "TaskDatabase",
    "fetch_all",
    "request_limit",
    "statement",
]
