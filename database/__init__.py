"""Sends statements to PostgreSQL or SQLite, each in its own transaction."""

from database import sql
from database.base import (
    Read,
    TaskDatabase,
    UnusableSchema,
    one_line,
    request_deadline,
    take_turn,
)
from database.compile import Parameter, statement
from database.postgres import Postgres
from database.sqlite import Sqlite

__all__ = [
    "Parameter",
    "Postgres",
    "Read",
    "Sqlite",
    "TaskDatabase",
    "UnusableSchema",
    "one_line",
    "request_deadline",
    "sql",
    "statement",
    "take_turn",
]
