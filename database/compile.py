"""Peewee queries as SQL with named parameters, compiled once."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from peewee import ColumnBase, Context, Node

from database.base import TaskDatabase


class Parameter(Node):
    """A value that is known only when the statement is sent; the driver finds it by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __sql__(self, context: Context) -> Context:
        return context.literal(f"%({self.name})s" if for_postgres(context) else f":{self.name}")


class Dialect(ColumnBase):
    """An expression that PostgreSQL and SQLite spell differently."""

    def __init__(self, *, postgres: Node, sqlite: Node) -> None:
        self.postgres, self.sqlite = postgres, sqlite

    def __sql__(self, context: Context) -> Context:
        written: Context = context.sql(self.postgres if for_postgres(context) else self.sqlite)
        return written


def for_postgres(context: Context) -> bool:
    """Whether the SQL is being written for PostgreSQL: the mark that its driver takes tells."""
    return bool(context.state.param == "%s")


def statement(build: Callable[..., Node]) -> Callable[..., str]:
    """Turn the function of a query into one of its SQL, which takes the database first.

    Each combination of arguments is compiled once: in Peewee that is a third of a query's cost.
    """

    @lru_cache(maxsize=256)  # Far more than the combinations that there are.
    def compiled(database: TaskDatabase, *variant: Any) -> str:
        sql, values = database.get_sql_context().sql(build(*variant)).query()
        if values:
            raise TypeError(f"a value stands in the statement where a Parameter should: {values}")
        return database.qualify(str(sql))

    return compiled
