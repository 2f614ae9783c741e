"""Priority, due date, tags, and the time of completion.

The defaults are constants, so no row is rewritten, and version 1.0 can still insert rows.
"""

from typing import Any

from peewee import Database, PostgresqlDatabase


def up(migrator: Any, db: Database) -> None:
    # Dates and times are compared as text: by code point in every locale, as SQLite does.
    due_date, time = "TEXT", "TEXT"
    if isinstance(db, PostgresqlDatabase):
        due_date, time = 'TEXT COLLATE "C"', "TIMESTAMPTZ"
    for column in (
        "priority TEXT NOT NULL DEFAULT 'medium'",
        f"due_date {due_date}",
        "tags TEXT NOT NULL DEFAULT '[]'",
        f"completed_at {time}",
        "priority_folded TEXT NOT NULL DEFAULT 'medium'",
        "tags_folded TEXT NOT NULL DEFAULT ''",
    ):
        db.execute_sql(f"ALTER TABLE task ADD COLUMN {column}")
