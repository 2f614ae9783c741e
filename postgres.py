"""PostgreSQL behind any network: every wait has an end, and a lost statement is sent again."""

import math
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import random
from time import monotonic, sleep
from typing import Any

import peewee
import psycopg2
from psycopg2 import errors, extensions

from database import Answer, TaskDatabase, time_left, unavailable, within

# Seconds, for a connection and for one statement.
CONNECT, STATEMENT = 5.0, 5.0
# How often a statement is sent at most, and for how many seconds a dead server is not dialled.
ATTEMPTS, PAUSE = 10, 0.5
# Seconds at most until a statement that met another one, in a stricter isolation, is sent again.
ROLLED_BACK = 0.05
# Any number will do, as long as every instance takes the same one.
SCHEMA_LOCK = 0x7461736B
UUID_OID = 2950


class Postgres(TaskDatabase, peewee.PostgresqlDatabase):
    """A connection for each thread, which is replaced when it is lost."""

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
            raise psycopg2.OperationalError("the server could not be reached a moment ago")
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
            except psycopg2.Error as error:
                failure = error
                if connection is None or is_lost(connection, error):
                    sent = sent or connection is not None
                    self._drop()
                elif isinstance(error, extensions.TransactionRollbackError):
                    sleep(random() * ROLLED_BACK)
                elif is_passing(error):
                    # Somebody may have restored the database to a time before its schema.
                    self._migrated &= not isinstance(error, errors.UndefinedTable)
                    raise unavailable(error) from error
                else:
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
            with self.atomic("READ COMMITTED"):
                self.execute_sql("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                yield
        except (peewee.OperationalError, peewee.InterfaceError) as error:
            self._drop()
            raise unavailable(error) from error
        except peewee.ProgrammingError as error:
            if not isinstance(error.__context__, errors.InsufficientPrivilege):
                raise
            raise unavailable(error) from error


class DeadlinePassed(psycopg2.OperationalError):
    """The server, or the network before it, was silent for too long."""


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
        left = time_left()
        if not poll.poll(None if left == math.inf else left * 1000):
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
    return isinstance(
        error,
        psycopg2.OperationalError
        | errors.InsufficientPrivilege
        | errors.ReadOnlySqlTransaction
        | errors.UndefinedTable,
    )
