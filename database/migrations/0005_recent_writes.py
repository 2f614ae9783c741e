"""The marks of the last writes of a task, among which a write that is sent again finds its own.

No row is changed. A server of an earlier version leaves the column as it is.
"""

from typing import Any

from peewee import Database


def up(migrator: Any, db: Database) -> None:
    db.execute_sql("ALTER TABLE task ADD COLUMN recent_writes TEXT NOT NULL DEFAULT ''")
