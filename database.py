"""One connection per thread to SQLite or PostgreSQL, and what happens when it fails."""

import fcntl
import logging
import math
import os
import select
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import peewee
import psycopg2
from playhouse.migrations import Runner
from psycopg2 import errors, extensions
from werkzeug.exceptions import ServiceUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
# Any number will do, as long as every instance takes the same one.
SCHEMA_LOCK = 0x7461736B

UUID_OID = 2950

# Seconds: for a place among the threads that may use the database, for a connection, for one
# statement, for all that a request does here, and for changing the schema.
PLACE, CONNECT, STATEMENT, REQUEST, SCHEMA = 0.25, 5.0, 5.0, 8.0, 20.0
# How often a statement is sent at most, and for how many seconds a dead server is not dialled.
ATTEMPTS, PAUSE = 4, 0.5
# Threads that stay out of the database, so that /health is answered while it hangs.
RESERVE = 4

log = logging.getLogger("tasks.database")
waiting = threading.local()


class Answer(NamedTuple):
    """The rows of a statement, and whether an earlier answer to it was lost on the way."""

    rows: list[tuple[Any, ...]]
    resent: bool = False


class Guarded(peewee.Database):
    """What both databases share: a bound on the threads inside, and the schema before all else."""

    def __init__(self, *arguments: Any, threads: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places = threading.BoundedSemaphore(max(1, threads - RESERVE))
        self._migrating = threading.Lock()
        self._migrated = False

    def send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        """Send one statement, in autocommit, with `values` for its named parameters.

        Raises ServiceUnavailable when the database cannot be reached in time. A statement that
        writes may be sent more than once: it has to be one that happens once all the same.
        """
        if not self._places.acquire(timeout=PLACE):
            raise unavailable("every connection is busy")
        try:
            with within(REQUEST):
                if not self._migrated:
                    self.migrate()
                return self._send(sql, values)
        finally:
            self._places.release()

    def migrate(self) -> None:
        """Apply the migrations that this database has not seen. Raises ServiceUnavailable."""
        if not self._migrating.acquire(timeout=CONNECT):
            raise unavailable("the schema is being made")
        try:
            if not self._migrated:
                with self._schema_lock():
                    Runner(self, str(MIGRATIONS)).up()
                self._migrated = True
        finally:
            self._migrating.release()

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        raise NotImplementedError

    def _schema_lock(self) -> AbstractContextManager[None]:
        """Keep out every other process that starts at this moment."""
        raise NotImplementedError


class Sqlite(Guarded, peewee.SqliteDatabase):
    """A file, for a laptop and for tests."""

    def __init__(self, file: str, threads: int) -> None:
        super().__init__(
            file,
            threads=threads,
            timeout=REQUEST / 2,
            pragmas={"synchronous": "full"},
            field_types={"TIMESTAMPTZ": "TEXT"},
        )
        self._writing = threading.Lock()
        self.register_function(later, "later", 2)

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        # SQLite's own queue of writers is a poll with growing pauses, in which some starve.
        writes = not sql.startswith("SELECT")
        if writes and not self._writing.acquire(timeout=REQUEST / 2):
            raise unavailable("the file is busy")
        try:
            return Answer(self.connection().execute(sql, values).fetchall())
        except (sqlite3.DatabaseError, peewee.DatabaseError) as error:
            self.close()
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise unavailable(error) from error
        finally:
            if writes:
                self._writing.release()

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
            os.close(folder)


def later(now: str, before: str) -> str:
    """`now`, or the microsecond after `before` if that is later; all as RFC 3339 text."""
    if now > before:
        return now
    return rfc3339(datetime.fromisoformat(before) + timedelta(microseconds=1))


def rfc3339(moment: datetime) -> str:
    """The text of a moment in UTC, to the microsecond (RFC 3339, section 5.6)."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Postgres(Guarded, peewee.PostgresqlDatabase):
    """A server behind any network: every wait has an end, and a lost statement is sent again."""

    _state: Any  # Peewee's, with the connection of the current thread.

    def __init__(self, url: str, threads: int) -> None:
        super().__init__(url, threads=threads)
        self._generation = 0
        self._failed_dials = 0
        self._paused_until = 0.0
        extensions.set_wait_callback(wait)
        # Peewee has psycopg2 make objects of UUIDs, whose text is all that is needed here.
        extensions.string_types.pop(UUID_OID, None)

    def connect(self, reuse_if_open: bool = False) -> bool:
        """As Peewee's own, which would hold a lock of the whole process while it dials."""
        if reuse_if_open and not self.is_closed():
            return False
        if monotonic() < self._paused_until:
            raise Paused("the server did not answer a moment ago")
        try:
            with within(CONNECT):
                connection = psycopg2.connect(
                    self.database,
                    client_encoding="UTF8",
                    fallback_application_name="task-api",
                    keepalives_idle=3,
                    keepalives_interval=1,
                    keepalives_count=3,
                    tcp_user_timeout=4000,
                )
        except psycopg2.Error as error:
            self._failed_dials += ATTEMPTS if isinstance(error, DeadlinePassed) else 1
            if self._failed_dials >= ATTEMPTS:
                self._paused_until = monotonic() + PAUSE
            raise
        self._failed_dials = 0
        if connection.get_parameter_status("server_encoding") not in {"UTF8", None}:
            connection.close()
            raise psycopg2.OperationalError("the database's encoding is not UTF8")
        connection.autocommit = True
        self._state.set_connection(connection)
        self._state.generation = self._generation
        return True

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        sent = False
        for _ in range(ATTEMPTS):
            connection = None
            try:
                connection = self._live_connection()
                with within(STATEMENT), connection.cursor() as cursor:
                    cursor.execute(sql, values)
                    return Answer(cursor.fetchall(), resent=sent)
            except Paused as error:
                raise unavailable(error) from error
            except psycopg2.Error as error:
                failure = error
                if connection is None or is_lost(connection, error):
                    sent = sent or connection is not None
                    self._drop()
                elif not isinstance(error, errors.TransactionRollback):
                    if is_passing(error):
                        raise unavailable(error) from error
                    raise
        raise unavailable(failure) from failure

    def _live_connection(self) -> extensions.connection:
        """This thread's connection, after a look at its socket that costs no round trip."""
        connection = self._state.conn
        if connection and (
            connection.closed
            or self._state.generation != self._generation
            or has_input(connection)  # Nothing was asked: the server said goodbye.
        ):
            self._drop()
        if self._state.closed:
            self.connect()
        live: extensions.connection = self._state.conn
        return live

    def _drop(self) -> None:
        """Close this thread's connection; the others will not trust those as old as it was."""
        if not self._state.closed:
            self._state.conn.close()
            if self._state.generation == self._generation:
                self._generation += 1
        self._state.reset()

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        try:
            # Read committed, to see what the one before has done while this one was waiting.
            with within(SCHEMA), self.atomic("READ COMMITTED"):
                self.execute_sql("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                yield
        except (peewee.OperationalError, peewee.InterfaceError) as error:
            self._drop()
            raise unavailable(error) from error


class Paused(psycopg2.OperationalError):
    """The server is not dialled at the moment, since a moment ago it could not be reached."""


class DeadlinePassed(psycopg2.OperationalError):
    """The server, or the network before it, was silent for too long."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound what this thread waits for inside; an outer bound stays in force."""
    outer = getattr(waiting, "until", math.inf)
    waiting.until = min(outer, monotonic() + seconds)
    try:
        yield
    finally:
        waiting.until = outer


def wait(connection: extensions.connection) -> None:
    """Wait for the server, also while connecting, but not beyond the bound of `within`.

    libpq has no such bound: connect_timeout and tcp_user_timeout count for nothing against a peer
    that acknowledges and stays silent. https://www.psycopg.org/docs/extensions.html
    """
    while (state := connection.poll()) != extensions.POLL_OK:
        poll = select.poll()
        poll.register(
            connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        )
        seconds = max(0.0, waiting.until - monotonic())
        if not poll.poll(seconds * 1000):
            raise DeadlinePassed("no answer in time")


def has_input(connection: extensions.connection) -> bool:
    """Whether something lies unread in an idle connection's socket."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def is_lost(connection: extensions.connection, error: psycopg2.Error) -> bool:
    """Whether the connection is gone, and with it the answer.

    57P: the server is going down or coming up; 08: a connection exception.
    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return (
        bool(connection.closed)
        or isinstance(error, DeadlinePassed | psycopg2.InterfaceError)
        or (error.pgcode or "").startswith(("57P", "08"))
    )


def is_passing(error: psycopg2.Error) -> bool:
    """Whether the server's refusal is its own trouble, and not a fault in the statement."""
    return isinstance(error, psycopg2.OperationalError | errors.ReadOnlySqlTransaction)


def unavailable(reason: object) -> ServiceUnavailable:
    """The 503 for `reason`, which goes to the log and not to the client."""
    log.warning("database unavailable: %s", str(reason).strip().partition("\n")[0])
    return ServiceUnavailable("The database cannot be reached. Try again soon.", retry_after=1)


def open_database(url: str, threads: int) -> Guarded:
    """The database at `url`, not yet connected, for a process with `threads` threads."""
    if url.startswith("sqlite:///"):
        return Sqlite(url.removeprefix("sqlite:///"), threads)
    return Postgres(url, threads)
