"""PostgreSQL: every wait has a deadline, and a statement whose connection is lost is retried."""

import math
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from random import random
from time import monotonic, sleep
from typing import Any

import peewee
import psycopg2
from psycopg2 import errors, extensions
from psycopg2.errorcodes import INSUFFICIENT_PRIVILEGE

from database.base import (
    FOREIGN_NAME,
    MAYBE_CHANGED,
    NOTHING_CHANGED,
    UPGRADING,
    Read,
    TaskDatabase,
    UnusableSchema,
    one_line,
    request_deadline,
    time_left,
    time_limit,
    unavailable,
)
from database.hosts import HOST_OPTIONS, Hosts
from database.pool import Connection, Pool

# The longest time to connect and for the server to run a statement, and the time that is then left
# for its answer to arrive.
CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S, MARGIN_S = 5.0, 4.0, 1.0
# With less time left than this, no attempt begins.
MIN_TIME_LEFT_S = 2 * MARGIN_S
# The sleep before a retry is random; its maximum doubles from the first to the second of these.
FIRST_SLEEP_S, MAX_SLEEP_S = 0.002, 1.0
# The key of the advisory lock, which all servers use.
SCHEMA_LOCK = 0x7461736B
# The longest wait for this lock, and the pause between two tries. PostgreSQL releases the lock of a
# client that has been silent for LOST_CLIENT_S.
LOCK_WAIT_S, LOCK_PAUSE_S, LOST_CLIENT_S = 30.0, 0.02, 60.0
# The longest wait of a migration for a table, since every request waits behind it, and the pause
# before any server tries again. After a second (deadlock_timeout), PostgreSQL cancels an
# autovacuum.
TABLE_WAIT_S, TABLE_PAUSE_S = 2.0, 5.0
# Where libpq looks for a client's certificate. If it cannot look there, such as in root's home
# after a setuid, TLS fails. With the name of a file that does not exist, TLS works.
CLIENT_CERTIFICATE, NO_FILE = "~/.postgresql/postgresql.crt", "/no-such-folder/no-such-file"
# Peewee makes psycopg2 return UUID objects; the text is enough.
UUID_AS_TEXT = extensions.new_type((2950,), "UUID_AS_TEXT", lambda value, cursor: value)

CANCELED = "The database took too long. Nothing has changed. Try again soon."
# What psycopg2 raises. A server whose messages are not UTF-8 makes it raise UnicodeError.
DRIVER_ERRORS = (psycopg2.Error, UnicodeError, OSError)
# The statement itself is wrong, unless the database's user has no privilege for it.
STATEMENT_ERRORS = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.ProgrammingError)
# Another program, or a copy of the table, uses a name that a migration needs.
NAME_ERRORS = (
    errors.DuplicateObject,
    errors.DuplicateTable,
    errors.UndefinedColumn,
    errors.WrongObjectType,
)
# A table or a column is missing, such as while the database is restored, or since it was restored
# to an earlier time.
SCHEMA_ERRORS = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.InvalidColumnReference,  # A conflict target without its primary key.
)


class Postgres(TaskDatabase, peewee.PostgresqlDatabase):
    """PostgreSQL, with connections that are opened on demand, reused and closed when idle."""

    def __init__(self, url: str, schema: str, threads: int) -> None:
        super().__init__(url, threads=threads)
        self.schema = schema
        self.table_query = f"""SELECT to_regclass('"{schema}".task')"""
        parameters = extensions.parse_dsn(url)
        given = parameters.keys() | os.environ.keys()
        # A service file has precedence over the variables, such as PGHOST.
        if not given & {"service", "PGSERVICE"}:
            defaults = {name: os.environ.get(f"PG{name.upper()}", "") for name in HOST_OPTIONS}
            parameters = defaults | parameters
        self._hosts = Hosts(parameters)
        self._has_certificate = bool(given & {"sslcert", "PGSSLCERT"})
        # By default, libpq looks for a Kerberos ticket, which can crash a forked process on macOS.
        os.environ.setdefault("PGGSSENCMODE", "disable")
        self._pool = Pool()
        extensions.set_wait_callback(wait_for_server)
        extensions.register_adapter(str, to_literal)

    def _connect(self) -> Connection:
        limit_s = min(CONNECT_TIMEOUT_S, time_left() - MIN_TIME_LEFT_S)
        is_hidden = not self._has_certificate and is_inaccessible(CLIENT_CERTIFICATE)
        certificate = {"sslcert": NO_FILE} if is_hidden else {}
        with time_limit(limit_s), self._hosts.options() as hosts:
            try:
                connection = psycopg2.connect(
                    extensions.make_dsn(self.database, **hosts, **certificate),
                    connection_factory=Connection,
                    client_encoding="UTF8",
                    fallback_application_name="task-api",
                    keepalives_idle=3,
                    keepalives_interval=1,
                    keepalives_count=3,
                )
            except (psycopg2.OperationalError, TimeoutError) as error:
                # libpq's message does not always name the host.
                names = ", ".join(dict.fromkeys(hosts.get("host", "its socket").split(",")))
                raise type(error)(f"cannot connect to {names}: {one_line(error)}") from error
        if connection.get_parameter_status("server_encoding") not in {"UTF8", None}:
            connection.close()
            raise psycopg2.OperationalError("the database's encoding is not UTF8")
        connection.autocommit = True
        extensions.register_type(UUID_AS_TEXT, connection)
        return connection

    def _send(self, sql: str, values: Mapping[str, Any], read: Read, retry: str) -> Any:
        is_write = not sql.startswith("SELECT")
        is_lost_write = was_refused = False
        failure: Exception | None = None
        refusal: Exception | None = None
        for _ in attempts():
            pool = self._pool
            try:
                connection = pool.pop() or self._connect()
            except DRIVER_ERRORS as error:
                if refusal is None or not isinstance(error, TimeoutError):
                    refusal = error  # The last attempt may have no time to learn the reason.
                failure = refusal
                self.slot_wait_s = 0.0  # In an outage, no request waits for a slot.
                continue
            try:
                if time_left() <= MARGIN_S:  # The process was suspended.
                    break
                result = execute(connection, sql, values, read)
                self.slot_wait_s = TaskDatabase.slot_wait_s
                return result
            except DRIVER_ERRORS as error:
                failure = error
                if is_lost(connection, error):
                    self._discard(pool, connection)
                    is_lost_write |= is_write
                    sql = retry
                    if is_write and isinstance(error, TimeoutError):
                        break  # It may still run in the server: it must not be sent again.
                elif isinstance(error, SCHEMA_ERRORS):
                    # Leaves room for the connection that migrates: there may be a limit.
                    self._discard(pool, connection)
                    self._schema_is_current = False
                    break
                elif isinstance(error, errors.QueryCanceled):
                    break
                elif isinstance(error, errors.UniqueViolation) and not was_refused:
                    # One of two creates of a task, while REINDEX CONCURRENTLY has two indexes.
                    # https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT
                    was_refused = True
                elif isinstance(error, STATEMENT_ERRORS) and error.pgcode != INSUFFICIENT_PRIVILEGE:
                    # Further lines can have the row, which must not get into the log.
                    raise type(error)(one_line(error)) from None
                elif not isinstance(error, extensions.TransactionRollbackError):
                    # A new connection may succeed: it leads to the server that was promoted, or
                    # has the current privileges and settings.
                    self._discard(pool, connection)
                    is_lost_write |= is_write and is_of_pooler(error)
                    if was_refused:
                        break
                    was_refused, sql = True, retry
            except BaseException:
                # Such as a MemoryError. A part of the result may not be read yet.
                connection.close()
                raise
            finally:
                if not connection.closed:
                    pool.push(connection)
        detail, retry_after = NOTHING_CHANGED, 1
        if is_lost_write:
            detail, retry_after = MAYBE_CHANGED, math.ceil(STATEMENT_TIMEOUT_S)  # It may still run.
        elif isinstance(failure, errors.QueryCanceled):
            detail = CANCELED
        reason = failure or "no time was left to send the statement"
        raise unavailable(reason, detail, retry_after) from failure

    def _discard(self, pool: Pool, lost: Connection) -> None:
        """Close a lost connection, and the idle ones: they are as old, and may be lost, too."""
        new = Pool()
        if self._pool is pool:  # No other thread runs between this and the assignment.
            self._pool = new
        lost.close()
        pool.close()

    def migrate(self) -> list[str]:
        self._is_upgrading = False
        try:
            with time_limit(CONNECT_TIMEOUT_S):
                self._schema_is_current = all(self._applied()) and self._has_table()
            # Most starts thus need no lock, which another server may hold for long.
            return [] if self._schema_is_current else super().migrate()
        except (peewee.PeeweeException, *DRIVER_ERRORS) as error:
            original = getattr(error, "orig", error)
            if isinstance(original, NAME_ERRORS):
                raise UnusableSchema(FOREIGN_NAME.format(one_line(original))) from error
            raise unavailable(error) from error
        finally:
            # Only here, not between the two steps: after a close, PostgreSQL may not allow another
            # connection yet.
            self.dispose()

    def _await_lock(self) -> None:
        """Take the lock, which is released with the transaction. Raises ServiceUnavailable."""
        limits = dict.fromkeys(("statement_timeout", "transaction_timeout"), "0")
        limits["lock_timeout"] = str(int(1000 * TABLE_WAIT_S))
        limits["idle_in_transaction_session_timeout"] = str(int(1000 * LOST_CLIENT_S))
        # Older servers do not have all of them.
        limit = "SELECT set_config(name, %s, true) FROM pg_settings WHERE name = %s"
        lock = "SELECT pg_try_advisory_xact_lock(%s)"
        with request_deadline():
            for name, value in limits.items():
                self.execute_sql(limit, (value, name))
        until = monotonic() + LOCK_WAIT_S
        while monotonic() < until:
            with request_deadline():
                if self.execute_sql(lock, (SCHEMA_LOCK,)).fetchone()[0]:
                    return
            sleep(LOCK_PAUSE_S)
        raise unavailable("another server is upgrading the schema", UPGRADING)

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        # Read committed, to see what another server did while this one waited.
        with self.atomic("READ COMMITTED"):
            self._await_lock()
            schema = f'"{self.schema}"'
            if not self.execute_sql("SELECT to_regnamespace(%s)", (schema,)).fetchone()[0]:
                self.execute_sql(f"CREATE SCHEMA {schema}")
            self.execute_sql(f"SET LOCAL search_path = {schema}")
            try:
                with self.atomic():  # A savepoint: its end releases the table.
                    yield
            except peewee.OperationalError as error:
                if not isinstance(getattr(error, "orig", None), errors.LockNotAvailable):
                    raise
                busy = TimeoutError("another transaction uses the table")
                problem = unavailable(busy, UPGRADING)
                # Otherwise, the tries of several servers would leave requests no time in between.
                sleep(TABLE_PAUSE_S)
                raise problem from busy


def attempts() -> Iterator[None]:
    """Yield for each try until MIN_TIME_LEFT_S is left, with a growing random sleep in between."""
    longest = FIRST_SLEEP_S
    while time_left() > MIN_TIME_LEFT_S:
        yield
        sleep(random() * longest)
        longest = min(2 * longest, MAX_SLEEP_S)


def execute(connection: Connection, sql: str, values: Mapping[str, Any], read: Read) -> Any:
    """Send a statement with its timeout, so that the server cancels it before the client gives up.

    All commands are one simple query and so one transaction: the timeout does not stay on a pooled
    connection. The preamble does, unless the statement fails: then the next one sends it again.
    https://www.postgresql.org/docs/current/protocol-flow.html
    """
    seconds = max(0.001, min(STATEMENT_TIMEOUT_S, time_left() - MARGIN_S))  # 0 would be no limit.
    with time_limit(seconds + MARGIN_S), connection.cursor() as cursor:
        timeout = f"SET LOCAL statement_timeout = {int(seconds * 1000)}; "
        cursor.execute(f"{connection.preamble}{timeout}{sql}", values)
        connection.preamble = ""
        # psycopg2 keeps what another client of a pooler has subscribed to with LISTEN.
        connection.notifies.clear()
        return read(cursor)


def is_inaccessible(file: str) -> bool:
    try:
        os.stat(os.path.expanduser(file))
    except OSError as error:
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def to_literal(text: str) -> extensions.AsIs | extensions.QuotedString:
    """A text as a literal that has the same meaning in every session.

    psycopg2 does not see that another client of a pooler, or a reload, has changed
    `standard_conforming_strings`. A backslash before a quote could then end the literal.
    https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-STRINGS-ESCAPE
    """
    if "\\" not in text:
        return extensions.QuotedString(text)
    doubled = text.replace("\\", "\\\\").replace("'", "''")
    return extensions.AsIs(f"E'{doubled}'")


def wait_for_server(connection: Connection) -> None:
    """Wait for the server, also while connecting. Raises TimeoutError at the deadline.

    With a wait callback, psycopg2 connects by PQconnectStart, which ignores `connect_timeout`.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQCONNECTSTARTPARAMS
    """
    try:
        while (state := connection.poll()) != extensions.POLL_OK:
            event = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
            poll = select.poll()
            poll.register(connection.fileno(), event)
            left = time_left()
            if not poll.poll(None if left == math.inf else left * 1000):
                with suppress(OSError):
                    reset_on_close(connection)  # psycopg2 closes it at an error.
                raise TimeoutError("no response in time")
    finally:
        # An error's traceback would keep a connection that failed open until a garbage collection.
        del connection


def reset_on_close(connection: Connection) -> None:
    """Make the kernel drop unacknowledged data, instead of sending it again after the close.

    Otherwise a write could arrive long after its 503.
    https://man7.org/linux/man-pages/man7/socket.7.html (SO_LINGER)
    """
    same = socket.socket(fileno=connection.fileno())
    try:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        same.detach()


def is_lost(connection: Connection, error: Exception) -> bool:
    """Whether the connection is lost, and the response with it.

    57P: the server is going down or coming up; 08: a connection exception; 40003: it is not known
    whether the statement was completed.
    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return (
        bool(connection.closed)
        or not isinstance(error, psycopg2.Error)  # A late response would be taken for the next.
        or isinstance(error, psycopg2.InterfaceError)
        or (error.pgcode or "").startswith(("57P", "08", "40003"))
    )


def is_of_pooler(error: Exception) -> bool:
    """Whether `error` can be that of a pooler whose server may have run the statement.

    58: a system error; XX: an internal error.
    """
    return (getattr(error, "pgcode", None) or "XX")[:2] in {"58", "XX"}
