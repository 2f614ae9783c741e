"""One statement at a time, to PostgreSQL or to SQLite."""

from database.base import Answer, ForeignTable, Read, TaskDatabase, fetch_all
from database.compile import Dialect, Parameter, statement
from database.postgres import Postgres
from database.sqlite import Sqlite

__all__ = [
    "Answer",
    "Dialect",
    "ForeignTable",
    "Parameter",
    "Postgres",
    "Read",
    "Sqlite",
    "TaskDatabase",
    "fetch_all",
    "statement",
]
