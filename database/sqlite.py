"""SQLite: a file, for a laptop and for tests."""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peewee

from database.base import REQUEST_S, Answer, Read, TaskDatabase, unavailable

# The device and the number of a file, or None where there is none.
Identity = tuple[int, int] | None


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
        # Which file is worked on, and which one is its log; and which one a thread has open.
        self._file: Identity = None
        self._log: Identity = None
        self._opened = threading.local()
        self.register_function(next_timestamp, "next_timestamp", 2)
        sqlite3.register_adapter(list, json.dumps)  # For json_each().

    def connect(self, reuse_if_open: bool = False) -> bool:
        file = self._file
        # Before it is opened: SQLite would write what the log of the file before holds into it.
        if file:
            self._expect(file)
        connected = super().connect(reuse_if_open)
        self.connection().execute("PRAGMA user_version")  # Opens the file, and its log.
        self._log = identity(f"{self.database}-wal")
        self._opened.file = file
        return connected

    def _expect(self, file: Identity) -> None:
        """Raises OperationalError if the name now leads to another file than the one known."""
        if identity(self.database) != file:
            raise sqlite3.OperationalError("the file was removed or replaced")

    def _send(self, sql: str, values: Mapping[str, Any], read: Read) -> Answer:
        # SQLite's own queue of writers is a poll with growing pauses, in which some starve.
        writes = not sql.startswith("SELECT")
        if writes and not self._writing.acquire(timeout=REQUEST_S / 2):
            raise unavailable("the file is busy")
        try:
            if getattr(self._opened, "file", None) != self._file:
                self.close()
            named = {**values, "now": rfc3339(datetime.now(UTC))}
            connection = self.connection()
            # Before, too: what has just been opened can be a file that has just come.
            self._expect(self._opened.file)
            rows = read(connection.execute(sql, named))
            self._expect(self._opened.file)
            return Answer(rows)
        except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
            self.close()
            self._schema_is_current = False  # It may be another file by now.
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
        self.close()
        try:
            with locked(Path(self.database).parent):
                log = f"{self.database}-wal"
                if self._file not in {None, identity(self.database)} and identity(log) == self._log:
                    for left in (log, f"{self.database}-shm"):
                        Path(left).unlink(missing_ok=True)
                self._file = None
                self.execute_sql("PRAGMA journal_mode = WAL")
                self._file = self._opened.file = identity(self.database)
                yield
        except (OSError, peewee.DatabaseError) as error:
            raise unavailable(error) from error
        finally:
            self.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep out every other process that starts at this moment.

    By the folder, not the file: closing a descriptor of the file would drop SQLite's own locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def identity(file: str) -> Identity:
    """What tells one file from another one that has its name later."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def next_timestamp(now: str, before: str) -> str:
    """`now`, or the microsecond after `before` if that is later; all as RFC 3339 text."""
    if now > before:
        return now
    return rfc3339(datetime.fromisoformat(before) + timedelta(microseconds=1))


def rfc3339(moment: datetime) -> str:
    """The text of a moment in UTC, to the microsecond (RFC 3339, section 5.6)."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
