"""The time of deletion, which only tasks in the trash have, and an index to purge them.

No row is changed. Version 1.0 sees these tasks, and removes a task that it deletes.
"""

from typing import Any

from peewee import Database, PostgresqlDatabase


def up(migrator: Any, db: Database) -> None:
    time = "TIMESTAMPTZ" if isinstance(db, PostgresqlDatabase) else "TEXT"
    db.execute_sql(f"ALTER TABLE task ADD COLUMN deleted_at {time}")
    db.execute_sql("CREATE INDEX task_deleted_at ON task (deleted_at) WHERE deleted_at IS NOT NULL")
