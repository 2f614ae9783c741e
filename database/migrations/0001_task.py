"""The table of tasks."""

from typing import Any

from peewee import (
    BooleanField,
    CompositeKey,
    Database,
    Field,
    Model,
    PostgresqlDatabase,
    TextField,
    UUIDField,
)


class TimestampField(Field):
    field_type = "TIMESTAMPTZ"


def up(migrator: Any, db: Database) -> None:
    # Sort by code point in every locale, as SQLite does.
    collation = '"C"' if isinstance(db, PostgresqlDatabase) else None

    class Task(Model):
        user_id = TextField(collation=collation)
        id = UUIDField()
        title = TextField()
        description = TextField(null=True)
        completed = BooleanField()
        created_at = TimestampField()
        updated_at = TimestampField()
        revision = UUIDField()
        title_lower = TextField(collation=collation)
        title_folded = TextField()
        description_folded = TextField(null=True)

        class Meta:
            database = db
            primary_key = CompositeKey("user_id", "id")
            indexes = ((("user_id", "created_at", "id"), False),)

    # With IF NOT EXISTS, an index of another table that has this name would be taken for ours.
    db.create_tables([Task], safe=False)
