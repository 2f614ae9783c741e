"""Peewee queries, compiled once to SQL with named parameters."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from peewee import SQL, ColumnBase, Context, Node

from database.base import TaskDatabase


class Dialect(ColumnBase):
    """An expression that PostgreSQL and SQLite spell differently."""

    def __init__(self, *, postgres: Node, sqlite: Node) -> None:
        self.postgres, self.sqlite = postgres, sqlite

    def __sql__(self, context: Context) -> Context:
        is_postgres = context.state.param == "%s"  # In SQLite, it is "?".
        written: Context = context.sql(self.postgres if is_postgres else self.sqlite)
        return written


class Parameter(Dialect):
    """A named parameter, whose value the driver inserts when the statement is sent."""

    def __init__(self, name: str) -> None:
        super().__init__(postgres=SQL(f"%({name})s"), sqlite=SQL(f":{name}"))


def statement(build: Callable[..., Node]) -> Callable[..., str]:
    """Turn a function that builds a query into one that returns its SQL for a database.

    Each combination of arguments is compiled once: compiling is a third of a query's CPU time.
    Whatever differs between requests must be a Parameter: every other value becomes a constant.
    """

    @lru_cache(maxsize=512)  # More than clients use; each takes 2 kB.
    def compiled(database: TaskDatabase, *variant: Any) -> str:
        context = database.get_sql_context(value_literals=True)
        sql, _ = context.sql(build(*variant)).query()
        return database.qualify(str(sql))

    return compiled
