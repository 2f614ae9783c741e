"""PostgreSQL: every wait has a deadline, and a statement whose connection is lost is retried."""

import math
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from itertools import zip_longest
from random import random
from time import monotonic, sleep
from typing import Any

import peewee
import psycopg2
from psycopg2 import errors, extensions

from database.base import (
    NOTHING_CHANGED,
    UPGRADING,
    Read,
    TaskDatabase,
    in_background,
    request_limit,
    time_left,
    time_limit,
    unavailable,
)

# The longest time to connect, for the server to run a statement, and for the network besides.
CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S, NETWORK_S = 5.0, 4.0, 1.0
# With less time left than this, nothing is sent.
MIN_TIME_LEFT_S = 2 * NETWORK_S
# The sleep before a retry is random; its maximum doubles from the first to the second of these.
FIRST_SLEEP_S, MAX_SLEEP_S = 0.002, 1.0
# How long an idle connection stays open. The last one is never closed.
MAX_IDLE_S = 60.0
# How long a host that was silent is the last one to be tried.
SILENT_HOST_S = 20.0
# The number of the advisory lock, which every server uses, the pause between two tries, and the
# time for all of them.
SCHEMA_LOCK, LOCK_PAUSE_S, LOCK_WAIT_S = 0x7461736B, 0.02, 30.0
# How long a migration waits for a table, while every request waits behind it, and the pause after.
# After a second (deadlock_timeout), PostgreSQL cancels an autovacuum that is in the way.
TABLE_WAIT_S, TABLE_PAUSE_S = 2.0, 5.0
# Peewee makes psycopg2 return UUID objects; the text is enough.
UUID_AS_TEXT = extensions.new_type((2950,), "UUID_AS_TEXT", lambda value, cursor: value)

CANCELED = "The database took too long. Nothing has changed. Try again soon."
MAYBE_CHANGED = (
    "The database cannot be reached. The change may or may not have been made, at most once."
    " Read the task before you try again."
)
# What psycopg2 raises. A server whose messages are not UTF-8 makes it raise UnicodeError.
DRIVER_ERRORS = (psycopg2.Error, UnicodeError, OSError)
# The statement itself is wrong, unless the database's user may not send it.
STATEMENT_ERRORS = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.ProgrammingError)
MISSING_RIGHT = "42501"
# The tables are not whole, for instance while the database is restored, or to an earlier time.
SCHEMA_ERRORS = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.InvalidSchemaName,
    errors.InvalidColumnReference,  # A conflict target without its primary key.
)

# Idle connections, each with the time since which it is idle. The last one is used first.
Stack = list[tuple[float, extensions.connection]]
# A host as libpq's options name it.
HOST_OPTIONS = ("host", "hostaddr", "port")
Host = tuple[str, str, str]


class Postgres(TaskDatabase, peewee.PostgresqlDatabase):
    """A pool of connections, which are opened on demand, reused and closed when idle."""

    find_task = "SELECT to_regclass('task')"  # In the search_path of `_schema_lock`.

    def __init__(self, url: str, schema: str, threads: int) -> None:
        super().__init__(url, threads=threads)
        self.schema = schema
        self._parameters = extensions.parse_dsn(url)
        extensions.set_wait_callback(wait_for_server)
        self._stack: Stack = []
        self._closes_idle = False
        self._lookup: Future[list[Host]] | None = None
        # The position of the host to try first, and until when.
        self._first_host, self._first_until = 0, 0.0

    def _connect(self) -> extensions.connection:
        first_host = self._first_host if monotonic() < self._first_until else 0
        with time_limit(min(CONNECT_TIMEOUT_S, time_left() - MIN_TIME_LEFT_S)):
            hosts = self._hosts(first_host)
            try:
                connection = psycopg2.connect(
                    extensions.make_dsn(self.database, **hosts),
                    client_encoding="UTF8",
                    fallback_application_name="task-api",
                    keepalives_idle=3,
                    keepalives_interval=1,
                    keepalives_count=3,
                )
            except TimeoutError:
                # The others had no time.
                self._first_host, self._first_until = first_host + 1, monotonic() + SILENT_HOST_S
                raise
        if connection.get_parameter_status("server_encoding") not in {"UTF8", None}:
            connection.close()
            raise psycopg2.OperationalError("the database's encoding is not UTF8")
        connection.autocommit = True
        extensions.register_type(UUID_AS_TEXT, connection)
        return connection

    def _hosts(self, first: int) -> dict[str, str]:
        """The hosts for libpq, which tries them in order: the one at `first`, and then the others.

        libpq's own lookup has no limit. One lookup runs at a time, so a silent resolver holds one
        thread. Raises DRIVER_ERRORS.
        """
        if self._lookup is None or self._lookup.done():
            self._lookup = in_background(lambda: resolve(self._parameters))
        try:
            hosts = self._lookup.result(time_left())
        except TimeoutError as error:
            raise psycopg2.OperationalError("the resolver did not respond in time") from error
        first %= len(hosts)
        lists = map(",".join, zip(*hosts[first:], *hosts[:first], strict=True))
        return {name: text for name, text in zip(HOST_OPTIONS, lists, strict=True) if text}

    def _send(self, sql: str, values: Mapping[str, Any], read: Read, again: str) -> Any:
        is_write = not sql.startswith("SELECT")
        is_lost_write = was_demoted = False
        failure: Exception | None = None
        for _ in attempts():
            try:
                stack, connection = self._pop()
            except DRIVER_ERRORS as error:
                failure = error
                self.slot_wait_s = 0.0  # In an outage, no request waits for a slot.
                continue
            if time_left() <= NETWORK_S:  # The process was suspended.
                self._push(stack, connection)
                break
            try:
                rows = execute(connection, sql, values, read)
            except DRIVER_ERRORS as error:
                failure = error
                if is_lost(connection, error):
                    self._discard(stack, connection)
                    is_lost_write |= is_write
                    sql = again
                    if is_write and isinstance(error, TimeoutError):
                        break  # It may still run in the server: it must not be sent again.
                elif isinstance(error, errors.ReadOnlySqlTransaction) and not was_demoted:
                    self._discard(stack, connection)
                    was_demoted = True
                else:
                    self._push(stack, connection)
                    if isinstance(error, extensions.TransactionRollbackError):
                        continue
                    if isinstance(error, SCHEMA_ERRORS):
                        self._schema_is_current = False
                    elif isinstance(error, STATEMENT_ERRORS) and error.pgcode != MISSING_RIGHT:
                        raise
                    break
            else:
                self._push(stack, connection)
                return rows
        canceled = CANCELED if isinstance(failure, errors.QueryCanceled) else NOTHING_CHANGED
        reason = failure or "no time was left to send the statement"
        raise unavailable(reason, MAYBE_CHANGED if is_lost_write else canceled) from failure

    def _pop(self) -> tuple[Stack, extensions.connection]:
        """Take a connection from the stack, or open one. Raises DRIVER_ERRORS."""
        stack = self._stack
        try:
            return stack, stack.pop()[1]
        except IndexError:  # It is empty.
            return stack, self._connect()

    def _push(self, stack: Stack, connection: extensions.connection) -> None:
        self.slot_wait_s = TaskDatabase.slot_wait_s
        stack.append((monotonic(), connection))
        if stack is not self._stack:  # A connection of its age was lost meanwhile.
            close_all(stack)
        elif len(stack) > 1 and not self._closes_idle:
            self._closes_idle = True
            timer = threading.Timer(MAX_IDLE_S, self._close_idle)
            timer.daemon = True
            timer.start()

    def _close_idle(self) -> None:
        """Close what is idle for MAX_IDLE_S. `_push` starts this again while several are idle."""
        stack, until = self._stack, monotonic() - MAX_IDLE_S
        self._closes_idle = False
        with suppress(IndexError):  # Other threads use the stack at the same time.
            while len(stack) > 1 and stack[0][0] <= until:
                stack.pop(0)[1].close()
            self._push(stack, stack.pop()[1])

    def _discard(self, stack: Stack, lost: extensions.connection) -> None:
        """Close a lost connection, and the idle ones: they are as old, and may be lost, too."""
        if self._stack is stack:
            self._stack = []
        lost.close()
        close_all(stack)

    def _is_current(self) -> bool:
        # Most starts thus need no lock, which another server may hold for long.
        with self._own_connection(), time_limit(CONNECT_TIMEOUT_S):
            return all(self._applied())

    @contextmanager
    def _own_connection(self) -> Iterator[None]:
        """Close the connection that Peewee opens for this thread. Raises ServiceUnavailable."""
        try:
            yield
        except (peewee.PeeweeException, *DRIVER_ERRORS) as error:
            if isinstance(getattr(error, "orig", error), errors.LockNotAvailable):
                busy = TimeoutError("another transaction uses the table")
                problem = unavailable(busy, UPGRADING)
                sleep(TABLE_PAUSE_S)  # Before the next request tries again.
                raise problem from busy
            raise unavailable(error) from error
        finally:
            self.dispose()

    def _await_lock(self) -> None:
        """Wait for LOCK_WAIT_S. PostgreSQL releases the lock of a lost client after MAX_IDLE_S.

        Raises ServiceUnavailable.
        """
        limits = dict.fromkeys(("statement_timeout", "transaction_timeout"), "0")
        limits["lock_timeout"] = str(int(1000 * TABLE_WAIT_S))
        limits["idle_in_transaction_session_timeout"] = str(int(1000 * MAX_IDLE_S))
        # Older servers do not have all of them.
        limit = "SELECT set_config(name, %s, true) FROM pg_settings WHERE name = %s"
        lock = "SELECT pg_try_advisory_xact_lock(%s)"
        with request_limit():
            for name, value in limits.items():
                self.execute_sql(limit, (value, name))
        until = monotonic() + LOCK_WAIT_S
        while monotonic() < until:
            with request_limit():
                if self.execute_sql(lock, (SCHEMA_LOCK,)).fetchone()[0]:
                    return
            sleep(LOCK_PAUSE_S)
        raise unavailable("another server is upgrading the schema", UPGRADING)

    @contextmanager
    def _schema_lock(self) -> Iterator[None]:
        with self._own_connection():
            with request_limit():
                self.connect()
            # Read committed, to see what another server did while this one waited.
            with self.atomic("READ COMMITTED"):
                self._await_lock()
                schema = f'"{self.schema}"'
                if not self.execute_sql("SELECT to_regnamespace(%s)", (schema,)).fetchone()[0]:
                    self.execute_sql(f"CREATE SCHEMA {schema}")
                self.execute_sql(f"SET LOCAL search_path = {schema}")
                yield


def close_all(stack: Stack) -> None:
    """Close the connections of a stack, to which other threads may push."""
    with suppress(IndexError):
        while True:
            stack.pop()[1].close()


def attempts() -> Iterator[None]:
    """Yield for each try until MIN_TIME_LEFT_S is left, with a growing random sleep in between."""
    longest = FIRST_SLEEP_S
    while time_left() > MIN_TIME_LEFT_S:
        yield
        sleep(random() * longest)
        longest = min(2 * longest, MAX_SLEEP_S)


def execute(
    connection: extensions.connection, sql: str, values: Mapping[str, Any], read: Read
) -> Any:
    """Send a statement with its timeout, so that the server cancels it before the client gives up.

    Both commands are one simple query and so one transaction: the setting does not stay on a pooled
    connection. https://www.postgresql.org/docs/current/protocol-flow.html
    """
    seconds = max(0.001, min(STATEMENT_TIMEOUT_S, time_left() - NETWORK_S))  # 0 would be no limit.
    with time_limit(seconds + NETWORK_S), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {int(seconds * 1000)}; {sql}", values)
        return read(cursor)


def resolve(parameters: Mapping[str, str]) -> list[Host]:
    """The hosts of a connection, one for each address of a name. Raises OSError."""
    names, given, ports = (parameters.get(name, "").split(",") for name in HOST_OPTIONS)
    ports *= max(len(names), len(given)) if len(ports) == 1 else 1
    hosts: list[Host] = []
    failure = None
    for name, address, port in zip_longest(names, given, ports, fillvalue=""):
        if address or not is_name(name):
            hosts.append((name, address, port))
            continue
        try:
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            hosts += [(name, str(info[4][0]), port) for info in infos]
        except OSError as error:  # Another name may have an address.
            failure = error
    if failure and not hosts:
        raise failure
    return hosts


def is_name(host: str) -> bool:
    """Whether `host` is a name to resolve: neither an IP address nor the folder of a socket."""
    with suppress(ValueError):
        ip_address(host)
        return False
    return bool(host) and host[0] not in "/@"


def wait_for_server(connection: extensions.connection) -> None:
    """Wait for the server, also while connecting. Raises TimeoutError at the deadline.

    libpq's connect_timeout has no effect on a peer that accepts and then stays silent.
    https://www.psycopg.org/docs/extensions.html
    """
    while (state := connection.poll()) != extensions.POLL_OK:
        poll = select.poll()
        poll.register(
            connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        )
        left = time_left()
        if not poll.poll(None if left == math.inf else left * 1000):
            raise TimeoutError("no response in time")


def is_lost(connection: extensions.connection, error: Exception) -> bool:
    """Whether the connection is lost, and the response with it.

    57P: the server is going down or coming up; 08: a connection exception.
    https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    return (
        bool(connection.closed)
        or not isinstance(error, psycopg2.Error)
        or isinstance(error, psycopg2.InterfaceError)
        or (error.pgcode or "").startswith(("57P", "08"))
    )
