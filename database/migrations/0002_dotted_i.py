"""Search now treats İ and ı as i: fold the stored texts with these letters again."""

from typing import Any

from peewee import Database

WITH = "{0} <> replace(replace({0}, 'İ', ''), 'ı', '')"
# The old folding turned İ into i and this dot. A dot that the text itself has must stay.
DOT = "\u0307"


def up(migrator: Any, db: Database) -> None:
    for column in ("title", "description"):
        having = WITH.format(column)
        db.execute_sql(
            f"UPDATE task SET {column}_folded ="
            f" replace(replace({column}_folded, 'i{DOT}', 'i'), 'ı', 'i')"
            f" WHERE {having} AND {column} = replace({column}, '{DOT}', '')"
        )
        rest = db.execute_sql(
            f"SELECT user_id, id, {column} FROM task"
            f" WHERE {having} AND {column} <> replace({column}, '{DOT}', '')"
        ).fetchall()
        update = f"UPDATE task SET {column}_folded = ? WHERE user_id = ? AND id = ?"
        for user_id, task_id, text in rest:
            folded = text.replace("İ", "i").replace("ı", "i").casefold()
            db.execute_sql(update.replace("?", db.param), (folded, user_id, task_id))
