"""SQLite: one file, for development or for one machine."""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from operator import methodcaller
from pathlib import Path
from typing import Any

import peewee

from database.base import (
    FOREIGN_NAME,
    MAYBE_CHANGED,
    NOTHING_CHANGED,
    REQUEST_TIMEOUT_S,
    Read,
    TaskDatabase,
    UnusableSchema,
    time_left,
    unavailable,
)

# The longest wait for one lock: half of a request's time.
LOCK_TIMEOUT_S = REQUEST_TIMEOUT_S / 2
# How much the write-ahead log grows before it is truncated, and how long that waits for readers.
MAX_WAL_GROWTH_BYTES, CHECKPOINT_WAIT_MS = 16 * 1024 * 1024, 500
# How the driver's error about a text that is not UTF-8 begins, and what decodes such a text. The
# rest of the error quotes the text.
NOT_UTF8, DECODE = "Could not decode to UTF-8", methodcaller("decode", "utf-8", "replace")
# The device and the inode of a file, or None if it does not exist.
FileIdentity = tuple[int, int] | None


class Sqlite(TaskDatabase, peewee.SqliteDatabase):
    """Many readers at once, and one writer at a time."""

    table_query = "SELECT count(*) FROM sqlite_master WHERE lower(name) = 'task'"
    slot_wait_s = LOCK_TIMEOUT_S  # A busy file is never an outage: waiting helps.

    def __init__(self, file: str, threads: int) -> None:
        super().__init__(
            os.path.abspath(file),  # SQLite can take a name that begins with `file:` for a URI.
            threads=threads,
            timeout=LOCK_TIMEOUT_S,
            pragmas={"synchronous": "full"},
            detect_types=sqlite3.PARSE_COLNAMES,
            field_types={"TIMESTAMPTZ": "TEXT"},
        )
        self._write_lock = threading.Lock()
        # The database's file, its write-ahead log, the log's index, and the file that a thread has
        # open.
        self._file: FileIdentity = None
        self._wal: FileIdentity = None
        self._shm: FileIdentity = None
        self._opened = threading.local()
        self._max_wal_bytes = MAX_WAL_GROWTH_BYTES
        self.register_function(next_timestamp, "next_timestamp", 2)
        sqlite3.register_adapter(list, json.dumps)  # For json_each().
        sqlite3.register_converter("boolean", b"1".__eq__)

    def connect(self, reuse_if_open: bool = False) -> bool:
        file = self._file
        # Check before opening: SQLite would write the old file's log into a new file of this name.
        if file:
            self._check_file(file)
        else:  # While a thread makes a new file, `_file` is not known.
            file = self._find_file()
        connected = super().connect(reuse_if_open)
        self.connection().execute("PRAGMA user_version")  # Opens the file, and its log.
        shm, wal = (file_identity(self._beside(ending)) for ending in ("-shm", "-wal"))
        self._check_file(file)  # Otherwise, another process may have begun this log for a new file.
        self._shm, self._wal, self._opened.file = shm, wal, file
        return connected

    def _find_file(self) -> FileIdentity:
        """The database's file. One that was emptied is gone: SQLite would drop its log."""
        return file_identity(self.database, min_bytes=1)

    def _beside(self, ending: str) -> str:
        """The path of a file of SQLite: if `database` is a link, it is beside the target."""
        return f"{os.path.realpath(self.database)}{ending}"

    def _check_file(self, file: FileIdentity) -> None:
        """Raise OperationalError if `file` was removed, replaced or emptied."""
        if self._find_file() != file:
            raise sqlite3.OperationalError("the file was removed, replaced or emptied")

    def _send(self, sql: str, values: Mapping[str, Any], read: Read, retry: str) -> Any:
        # SQLite itself waits for its lock by polling, and some writers would never get it.
        is_write = not sql.startswith("SELECT")
        if is_write and not self._write_lock.acquire(timeout=lock_wait_s()):
            raise unavailable("the file is busy")
        has_written = False
        try:
            if getattr(self._opened, "file", None) != self._file:
                self.close()
            named = {**values, "now": rfc3339(datetime.now(UTC))}
            connection = self.connection()
            connection.execute(f"PRAGMA busy_timeout = {int(1000 * lock_wait_s())}")
            # Check before the statement, too: the connection may have opened another file.
            self._check_file(self._opened.file)
            try:
                result = execute(connection, sql, named, read)
            except sqlite3.OperationalError as error:
                if not str(error).startswith(NOT_UTF8):
                    raise
                # The statement has succeeded, but not the conversion of its result. From now on,
                # this connection replaces such bytes; without them, its own way is quicker.
                connection.text_factory = DECODE
                has_written = is_write
                result = execute(connection, retry, named, read)
            has_written = is_write  # Perhaps into a file that was moved away, and can come back.
            self._check_file(self._opened.file)
            if is_write:
                self._truncate_long_wal(connection)
            return result
        except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
            self.close()
            self._schema_is_current = False  # It may be another file by now.
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise unavailable(error, MAYBE_CHANGED if has_written else NOTHING_CHANGED) from error
        finally:
            if is_write:
                self._write_lock.release()

    def _truncate_long_wal(self, connection: sqlite3.Connection) -> None:
        """Write a long log into the file, and truncate the log. Needs the write lock.

        SQLite itself never truncates it while there is always a reader.
        https://www.sqlite.org/wal.html#avoiding_excessively_large_wal_files
        """
        with suppress(OSError, sqlite3.Error):  # The statement has succeeded.
            wal = self._beside("-wal")
            if os.path.getsize(wal) > self._max_wal_bytes:
                connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_MS}")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._max_wal_bytes = os.path.getsize(wal) + MAX_WAL_GROWTH_BYTES

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        self.close()
        try:
            with folder_lock(Path(self.database).resolve().parent):
                self._keep_old_wal()
                yield
                # Not before: the file may be of another program, which does not expect it.
                self.execute_sql("PRAGMA journal_mode = WAL")
                self._file = self._find_file()
        except (OSError, peewee.DatabaseError) as error:
            original = getattr(error, "orig", error)
            if getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
                raise UnusableSchema(FOREIGN_NAME.format(original)) from error
            raise unavailable(error) from error
        finally:
            self.close()

    def _keep_old_wal(self) -> None:
        """Find the file and its log. Rename the log of a file that is gone.

        It may have writes that the file does not have. SQLite would delete it, or write it into the
        new file.
        """
        path, emptied = self._beside("-wal"), Path(self._beside(""))
        with suppress(FileNotFoundError):
            # The other processes must notice. One that was missing may be restored by now.
            if self._file and not emptied.stat().st_size:
                emptied.unlink()
        file = self._find_file()
        # Another process may have begun a new log, and may open or close it now: SQLite creates the
        # index after the log, and deletes it before.
        shm, wal = file_identity(self._beside("-shm")), file_identity(path)
        is_old = wal == self._wal if wal else shm == self._shm
        if file is None or (self._file not in {None, file} and is_old):
            if wal:
                names = (Path(f"{path}.old{number or ''}") for number in count())
                Path(path).rename(next(name for name in names if not name.exists()))
            if shm:  # SQLite would use it as long as a connection has it open.
                Path(self._beside("-shm")).unlink(missing_ok=True)
            wal = shm = None
        self._file, self._wal, self._shm = file, wal, shm


def execute(connection: sqlite3.Connection, sql: str, values: Mapping[str, Any], read: Read) -> Any:
    """Send a statement, and close its cursor, also if `read` fails.

    An open cursor keeps its snapshot, which the thread's next reads would see.
    """
    with closing(connection.execute(sql, values)) as rows:
        return read(rows)


def lock_wait_s() -> float:
    """How long to wait for a lock now."""
    return min(LOCK_TIMEOUT_S, time_left())


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep every other process out by a lock on the folder.

    Closing a descriptor of the database's own file would drop SQLite's locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def file_identity(file: str, min_bytes: int = 0) -> FileIdentity:
    """The identity of `file`, if it has `min_bytes`: a new file of the same name has another."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size >= min_bytes else None


def rfc3339(moment: datetime) -> str:
    """A time in UTC as text, to the microsecond (RFC 3339, section 5.6)."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def next_timestamp(now: str, before: str) -> str:
    """`now`, or one microsecond after `before` if that is later, as RFC 3339 text."""
    if now > before:
        return now
    return rfc3339(datetime.fromisoformat(before) + timedelta(microseconds=1))
