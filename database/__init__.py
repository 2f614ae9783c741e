"""One statement at a time, to PostgreSQL or to SQLite."""

from database.base import ForeignTable, Read, Result, TaskDatabase, fetch_all
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
    "statement",
]
