"""SQLite: a file, for a laptop and for tests."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peewee

from database import REQUEST_S, Answer, TaskDatabase, unavailable


class Sqlite(TaskDatabase, peewee.SqliteDatabase):
    """One writer at a time, in a queue that is fair, and many readers."""

    slot_wait_s = REQUEST_S / 2  # No network is in between that could swallow an answer.

    def __init__(self, file: str, threads: int) -> None:
        super().__init__(
            file,
            threads=threads,
            timeout=REQUEST_S / 2,
            pragmas={"synchronous": "full"},
            field_types={"TIMESTAMPTZ": "TEXT"},
        )
        self._writing = threading.Lock()
        self.register_function(later, "later", 2)

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        # SQLite's own queue of writers is a poll with growing pauses, in which some starve.
        writes = not sql.startswith("SELECT")
        if writes and not self._writing.acquire(timeout=REQUEST_S / 2):
            raise unavailable("the file is busy")
        try:
            named = {**values, "now": rfc3339(datetime.now(UTC))}
            return Answer(self.connection().execute(sql, named).fetchall())
        except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
            self.close()
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise unavailable(error) from error
        finally:
            if writes:
                self._writing.release()

    def _has(self, table: str) -> bool:
        sql = "SELECT 1 FROM sqlite_master WHERE lower(name) = ?"
        return bool(self.execute_sql(sql, (table,)).fetchone())

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        # The folder, not the file: closing a descriptor of the file would drop SQLite's own locks.
        folder = os.open(Path(self.database).parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.execute_sql("PRAGMA journal_mode = WAL")
            yield
        except peewee.DatabaseError as error:
            raise unavailable(error) from error
        finally:
            self.close()
            os.close(folder)


def later(now: str, before: str) -> str:
    """`now`, or the microsecond after `before` if that is later; all as RFC 3339 text."""
    if now > before:
        return now
    return rfc3339(datetime.fromisoformat(before) + timedelta(microseconds=1))


def rfc3339(moment: datetime) -> str:
    """The text of a moment in UTC, to the microsecond (RFC 3339, section 5.6)."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
