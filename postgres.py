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
    """A stack of connections, as many as were needed at once: few are open, and these are warm."""

    def __init__(self, url: str, threads: int) -> None:
        super().__init__(url, threads=threads)
        self._stack: list[extensions.connection] = []
        self._failed_dials = 0
        self._paused_until = 0.0
        extensions.set_wait_callback(wait)
        # Peewee has psycopg2 make objects of UUIDs, whose text is all that is needed here.
        extensions.string_types.pop(UUID_OID, None)

    def _connect(self) -> extensions.connection:
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
        return connection

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        sent = False
        for _ in range(ATTEMPTS):
            connection = None
            try:
                stack, connection = self._connection(is_delete=sql.startswith("DELETE"))
                with within(STATEMENT), connection.cursor() as cursor:
                    cursor.execute(sql, values)
                    rows = cursor.fetchall()
            except psycopg2.Error as error:
                failure = error
                if connection is None:
                    continue
                if is_lost(connection, error):
                    sent = True
                    self._leave(stack, connection)
                    continue
                stack.append(connection)
                if isinstance(error, extensions.TransactionRollbackError):
                    sleep(random() * ROLLED_BACK)
                elif is_passing(error):
                    # Somebody may have restored the database to a time before its schema.
                    self._migrated &= not isinstance(error, errors.UndefinedTable)
                    raise unavailable(error) from error
                else:
                    raise
            else:
                stack.append(connection)
                return Answer(rows, resent=sent)
        raise unavailable(failure) from failure

    def _connection(
        self, *, is_delete: bool
    ) -> tuple[list[extensions.connection], extensions.connection]:
        """The stack, and a connection of it, or a new one.

        Every statement but a DELETE can be sent on a connection that is dead: sent again, it knows
        what it has done. Where a DELETE finds nothing, the first one may have been it.
        """
        while stack := self._stack:
            try:
                connection = stack.pop()
            except IndexError:  # Another thread has it.
                break
            if not (is_delete and has_input(connection)):  # Then the server has said goodbye.
                return stack, connection
            self._leave(stack, connection)
        return stack, self._connect()

    def _leave(self, stack: list[extensions.connection], lost: extensions.connection) -> None:
        """Begin a new stack: none of those that are as old as the lost one is used again."""
        lost.close()
        if self._stack is stack:
            self._stack = []

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        try:
            # Read committed, to see what the one before has done while this one was waiting.
            with self.atomic("READ COMMITTED"):
                self.execute_sql("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                yield
        except (peewee.OperationalError, peewee.InterfaceError) as error:
            raise unavailable(error) from error
        except peewee.ProgrammingError as error:
            if not isinstance(error.__context__, errors.InsufficientPrivilege):
                raise
            raise unavailable(error) from error
        finally:
            self.dispose()


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
