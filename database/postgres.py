"""PostgreSQL behind any network: every wait has an end, and a lost statement is sent again."""

import math
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from random import random
from time import monotonic, sleep
from typing import Any

import peewee
import psycopg2
from psycopg2 import errors, extensions

from database.base import (
    NOTHING_CHANGED,
    Answer,
    Read,
    TaskDatabase,
    in_background,
    time_left,
    unavailable,
    within,
)

# For a connection, for a statement in the server, and for what the network adds to that.
CONNECT_S, STATEMENT_S, NETWORK_S = 5.0, 4.0, 1.0
# With less time than this left, nothing is begun any more.
ENOUGH_S = 2 * NETWORK_S
# The sleep before a statement is sent again: a random part of the first, then of twice as much.
FIRST_SLEEP_S, LONGEST_SLEEP_S = 0.002, 1.0
# How long a connection stays open unused. The last one stays.
IDLE_S = 60.0
# Any number will do, as long as every instance takes the same one.
SCHEMA_LOCK = 0x7461736B
# Peewee has psycopg2 make objects of UUIDs, whose text is all that is needed here.
UUID_AS_TEXT = extensions.new_type((2950,), "UUID_AS_TEXT", lambda value, cursor: value)

CANCELED = "The database took too long. Nothing has changed. Try again soon."
UNKNOWN = (
    "The database cannot be reached. The change may or may not have been made, at most once."
    " Try again soon."
)
# What psycopg2 raises when something outside is wrong: a server whose messages are not UTF-8 makes
# it a UnicodeError.
DRIVER_ERRORS = (psycopg2.Error, UnicodeError, OSError)
OUR_FAULTS = (
    psycopg2.DataError,
    psycopg2.IntegrityError,
    psycopg2.NotSupportedError,
    psycopg2.ProgrammingError,
)
# Somebody may have restored the database to a time before its schema.
SCHEMA_FAULTS = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)

# Idle connections, each with the moment since which it is; the one used last comes first.
Stack = list[tuple[float, extensions.connection]]


class Postgres(TaskDatabase, peewee.PostgresqlDatabase):
    """A stack of connections, as many as were needed at once: few are open, and these are warm."""

    def __init__(self, url: str, schema: str, threads: int) -> None:
        super().__init__(url, threads=threads)
        self.schema = schema
        self._parameters = extensions.parse_dsn(url)
        extensions.set_wait_callback(wait)

    def _begin(self) -> None:
        super()._begin()
        self._stack: Stack = []
        self._closes_idle = False
        self._lookup: Future[dict[str, str]] | None = None

    def _connect(self) -> extensions.connection:
        with within(min(CONNECT_S, time_left() - ENOUGH_S)):
            connection = psycopg2.connect(
                extensions.make_dsn(self.database, **self._addresses()),
                client_encoding="UTF8",
                fallback_application_name="task-api",
                keepalives_idle=3,
                keepalives_interval=1,
                keepalives_count=3,
            )
        if connection.get_parameter_status("server_encoding") not in {"UTF8", None}:
            connection.close()
            raise psycopg2.OperationalError("the database's encoding is not UTF8")
        connection.autocommit = True
        extensions.register_type(UUID_AS_TEXT, connection)
        return connection

    def _addresses(self) -> dict[str, str]:
        """The addresses of the hosts in the URL; libpq itself resolves names without a deadline.

        One lookup at a time: a resolver that is silent holds one thread. Raises DRIVER_ERRORS.
        """
        lookup = self._lookup
        if lookup is None or lookup.done():
            lookup = self._lookup = in_background(lambda: addresses(self._parameters))
        try:
            return lookup.result(min(CONNECT_S, time_left()))
        except TimeoutError as error:
            raise psycopg2.OperationalError("the resolver did not answer in time") from error

    def _send(self, sql: str, values: Mapping[str, Any], read: Read) -> Answer:
        is_write = not sql.startswith("SELECT")
        unanswered = was_demoted = False
        failure: Exception | None = None
        for _ in attempts():
            try:
                stack, connection = self._take(is_delete=sql.startswith("DELETE"))
            except DRIVER_ERRORS as error:
                failure = error
                self.slot_wait_s = 0.0  # In an outage no others wait for those who do.
                continue
            try:
                rows = execute(connection, sql, values, read)
            except DRIVER_ERRORS as error:
                failure = error
                if is_lost(connection, error):
                    self._discard(stack, connection)
                    unanswered |= is_write
                    if is_write and isinstance(error, DeadlinePassed):
                        break  # It may still be running, and must not run twice.
                elif isinstance(error, errors.ReadOnlySqlTransaction) and not was_demoted:
                    self._discard(stack, connection)
                    was_demoted = True
                else:
                    self._keep(stack, connection)
                    if not isinstance(error, extensions.TransactionRollbackError):
                        self._schema_is_current &= not isinstance(error, SCHEMA_FAULTS)
                        if is_our_fault(error):
                            raise
                        break
            else:
                self._keep(stack, connection)
                return Answer(rows, resent=unanswered)
        canceled = CANCELED if isinstance(failure, errors.QueryCanceled) else NOTHING_CHANGED
        raise unavailable(failure, UNKNOWN if unanswered else canceled) from failure

    def _take(self, *, is_delete: bool) -> tuple[Stack, extensions.connection]:
        """The stack, and a connection of it, or a new one. Raises DRIVER_ERRORS.

        Every statement but a DELETE can be sent on a connection that is dead: sent again, it knows
        what it has done. Where a DELETE finds nothing, the first one may have been it.
        """
        while stack := self._stack:
            try:
                _, connection = stack.pop()
            except IndexError:  # Another thread has it.
                break
            if not (is_delete and has_input(connection)):  # Then the server has said goodbye.
                return stack, connection
            self._discard(stack, connection)
        return stack, self._connect()

    def _keep(self, stack: Stack, connection: extensions.connection) -> None:
        self.slot_wait_s = TaskDatabase.slot_wait_s
        stack.append((monotonic(), connection))
        if len(stack) > 1 and not self._closes_idle:
            self._closes_idle = True
            timer = threading.Timer(IDLE_S, self._close_idle)
            timer.daemon = True
            timer.start()

    def _close_idle(self) -> None:
        """Close what nobody has used for IDLE_S; come back as long as there is more than one."""
        stack, until = self._stack, monotonic() - IDLE_S
        self._closes_idle = False
        with suppress(IndexError):  # Other threads take connections at the same time.
            while len(stack) > 1 and stack[0][0] <= until:
                stack.pop(0)[1].close()
            self._keep(stack, stack.pop()[1])

    def _discard(self, stack: Stack, lost: extensions.connection) -> None:
        """Begin a new stack: none of those that are as old as the lost one is used again."""
        lost.close()
        if self._stack is stack:
            self._stack = []

    def _has(self, table: str) -> bool:
        name = f'"{self.schema}"."{table}"'
        return bool(self.execute_sql("SELECT to_regclass(%s)", (name,)).fetchone()[0])

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        try:
            # Read committed, to see what the one before has done while this one was waiting.
            with self.atomic("READ COMMITTED"):
                self.execute_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
                self.execute_sql("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                schema = f'"{self.schema}"'
                if not self.execute_sql("SELECT to_regnamespace(%s)", (schema,)).fetchone()[0]:
                    self.execute_sql(f"CREATE SCHEMA {schema}")
                self.execute_sql(f"SET LOCAL search_path = {schema}")
                yield
        except (peewee.DatabaseError, peewee.InterfaceError, *DRIVER_ERRORS) as error:
            raise unavailable(error) from error
        finally:
            self.dispose()


class DeadlinePassed(psycopg2.OperationalError):
    """The server, or the network before it, was silent for too long."""


def attempts() -> Iterator[None]:
    """Again and again until the bound of `within`, each time after a random sleep that grows."""
    longest = FIRST_SLEEP_S
    while time_left() > ENOUGH_S:
        yield
        sleep(random() * longest)
        longest = min(2 * longest, LONGEST_SLEEP_S)


def execute(
    connection: extensions.connection, sql: str, values: Mapping[str, Any], read: Read
) -> Any:
    """What is read of a statement that the server ends by itself, before the client stops waiting.

    Both commands are one simple query, which is one implicit transaction: nothing of it stays in a
    pooled connection. https://www.postgresql.org/docs/current/protocol-flow.html
    """
    seconds = min(STATEMENT_S, time_left() - NETWORK_S)
    with within(seconds + NETWORK_S), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}; {sql}", values)
        return read(cursor)


def addresses(parameters: Mapping[str, str]) -> dict[str, str]:
    """The hosts of a connection with the address of each, as libpq takes them: three lists.

    Nothing where there is no name to look up. Raises OSError.
    """
    hosts = parameters.get("host", "").split(",")
    ports = parameters.get("port", "").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1
    if "hostaddr" in parameters or len(ports) != len(hosts) or not any(map(is_name, hosts)):
        return {}
    found: list[tuple[str, str, str]] = []
    failure = None
    for host, port in zip(hosts, ports, strict=True):
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if is_name(host) else []
        except OSError as error:  # The other hosts may have one.
            failure = error
            continue
        found += [(host, str(info[4][0]), port) for info in infos] or [(host, "", port)]
    if failure and not found:
        raise failure
    lists = map(",".join, zip(*found, strict=True))
    return dict(zip(("host", "hostaddr", "port"), lists, strict=True))


def is_name(host: str) -> bool:
    """Whether libpq would ask a resolver: not for an address, nor for the folder of a socket."""
    with suppress(ValueError):
        return not ip_address(host)
    return bool(host) and host[0] not in "/@"


def wait(connection: extensions.connection) -> None:
    """Wait for the server, also while connecting, but not beyond the bound of `within`.

    libpq has no such bound: its connect_timeout counts for nothing against a peer that acknowledges
    and stays silent. https://www.psycopg.org/docs/extensions.html
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


def is_lost(connection: extensions.connection, error: Exception) -> bool:
    """Whether the connection is gone, and with it the answer.

    57P: the server is going down or coming up; 08: a connection exception.
    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return (
        bool(connection.closed)
        or not isinstance(error, psycopg2.Error)
        or isinstance(error, DeadlinePassed | psycopg2.InterfaceError)
        or (error.pgcode or "").startswith(("57P", "08"))
    )


def is_our_fault(error: Exception) -> bool:
    """Whether the statement is wrong, and not somebody's change of the database or our rights."""
    return isinstance(error, OUR_FAULTS) and not isinstance(
        error, (*SCHEMA_FAULTS, errors.InsufficientPrivilege)
    )
