"""What both databases share: deadlines, a limit of concurrent statements, and migrations."""

import glob
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import peewee
from playhouse.migrations import Runner
from werkzeug.exceptions import ServiceUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
# The longest time for all statements of a request, and for the wait for a schema upgrade.
REQUEST_TIMEOUT_S, SCHEMA_WAIT_S = 8.0, 4.0
# After this time, a request starts a running upgrade again: its connection may be lost.
UPGRADE_CHECK_S = 60.0
# How many threads of a worker have no slot: they answer 503 while all slots are in use.
RESERVED_THREADS = 4
NOTHING_CHANGED = "The database is busy or cannot be reached. Nothing has changed. Try again soon."
MAYBE_CHANGED = (
    "The database cannot be reached. The change may or may not have been made, at most once."
    " Check whether it was made before you try again."
)
UPGRADING = "The database is being upgraded. Nothing has changed. Try again soon."
FOREIGN_NAME = (
    "DATABASE_URL: {}: expected another database, or in PostgreSQL another schema (?schema=NAME)"
)
FOREIGN_TABLE = FOREIGN_NAME.format("the database has a table `{}` of another program")
MISSING_TABLE = (
    "DATABASE_URL: the table `task` is missing: restore it, or drop `schema_migration`, too"
)

# libpq's further lines that are worth a place in the log.
FURTHER_LINES = ("connection to server at", "Either provide the file, use the system's trusted")

log = logging.getLogger("tasks.database")
this_thread = threading.local()  # `this_thread.deadline` ends this thread's waits.
T = TypeVar("T")
# Makes the result of a statement from the driver's cursor.
Read = Callable[[Any], Any]


class UnusableSchema(Exception):
    """A table is missing or of another program, or the migrations are missing."""


class TaskDatabase(peewee.Database):
    """A database that many threads send statements to.

    A statement needs a slot, of which there are fewer than threads.
    """

    # How long to wait for a slot while no other request releases one.
    slot_wait_s = 0.25
    # A query whose result is true if a table, a view or the like has the name `task`.
    table_query: str
    # Where the tables are; None where a database has no schemas.
    schema: str | None = None

    def __init__(self, *arguments: Any, threads: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slots = threading.BoundedSemaphore(threads - RESERVED_THREADS)
        self._upgrade_lock = threading.Lock()
        self._upgrade: Future[list[str]] | None = None
        self._upgrade_started = 0.0
        self._schema_is_current = self._is_upgrading = False
        self._released_at = 0.0

    def send(self, sql: str, values: Mapping[str, Any], read: Read, retry: str) -> Any:
        """Send one statement in autocommit, with `values` for its named parameters.

        `read` makes the result from the driver's cursor. A statement may be sent more than once: a
        write must recognize its earlier attempt. After an attempt whose answer was lost, `retry` is
        sent instead. Raises ServiceUnavailable, or the driver's error if the statement is wrong or
        breaks a constraint.
        """
        with request_deadline():
            self._acquire_slot()
            try:
                if not self._schema_is_current:
                    self.await_schema()
                return self._send(sql, values, read, retry)
            except UnusableSchema as error:
                raise unavailable(error) from error
            finally:
                self._released_at = monotonic()
                self._slots.release()

    def _acquire_slot(self) -> None:
        """Wait for a slot, but only while other requests release slots: some threads stay free.

        Raises ServiceUnavailable.
        """
        while not self._slots.acquire(timeout=min(self.slot_wait_s, time_left())):
            if monotonic() - self._released_at >= self.slot_wait_s or not time_left():
                raise unavailable("every connection is busy")

    def await_schema(self) -> None:
        """Migrate in a background thread without a deadline, and wait for it.

        Waits until SCHEMA_WAIT_S after the migration's start. Raises ServiceUnavailable or
        UnusableSchema.
        """
        with self._upgrade_lock:
            is_old = monotonic() > self._upgrade_started + UPGRADE_CHECK_S
            if self._upgrade is None or self._upgrade.done() or is_old:
                self._upgrade, self._upgrade_started = in_background(self.migrate), monotonic()
            upgrade = self._upgrade
        try:
            with time_limit(self._upgrade_started + SCHEMA_WAIT_S - monotonic()):
                upgrade.result(time_left())
        except TimeoutError as error:
            if not self._is_upgrading:
                raise unavailable("no response in time") from error
            raise unavailable("the schema is being upgraded", UPGRADING) from error
        except ServiceUnavailable as error:  # Its reason is in the log, but without this request.
            cause = error.__cause__ or error
            raise unavailable(cause, str(error.description)) from cause
        except OSError as error:
            raise unavailable(error) from error

    def qualify(self, sql: str) -> str:
        """Name the table's schema in `sql`: a pooler may leave any search_path on a connection."""
        return sql.replace('"task"', f'"{self.schema}"."task"') if self.schema else sql

    def migrate(self) -> list[str]:
        """Apply the migrations that this database does not have, and return their names.

        Raises ServiceUnavailable, or UnusableSchema.
        """
        self._is_upgrading = True
        with self._schema_lock():
            applied = self._applied()
            if any(applied) and not self._has_table():
                raise UnusableSchema(MISSING_TABLE)
            if not any(applied) and self._has_table():
                raise UnusableSchema(FOREIGN_TABLE.format("task"))
            # `up` creates the runner's own table, for which some database users have no privilege.
            names = [] if all(applied) else self._runner().up()
        for name in names:
            log.info("applied the migration %s", name)
        self._schema_is_current = True
        return names

    def _has_table(self) -> bool:
        return bool(self.execute_sql(self.table_query).fetchone()[0])

    def _runner(self) -> Runner:
        # The runner takes the path for a pattern, in which a [ means something else.
        return Runner(self, glob.escape(str(MIGRATIONS)), schema=self.schema)

    def _applied(self) -> list[bool]:
        """Whether each migration is applied. Raises UnusableSchema."""
        runner = self._runner()
        columns = self.get_columns(runner.table_name, self.schema)
        if columns and not {"name", "applied"} <= {column.name for column in columns}:
            raise UnusableSchema(FOREIGN_TABLE.format(runner.table_name))
        # Peewee's runner also lists what other programs have applied, without a path.
        ours = [each for each in runner.status() if each.path]
        if not ours:  # A tool that packs applications can leave them out.
            raise UnusableSchema(f"{MIGRATIONS} has no migrations: the installation is incomplete")
        return [bool(each.applied) for each in ours]

    def _send(self, sql: str, values: Mapping[str, Any], read: Read, retry: str) -> Any:
        raise NotImplementedError

    def _schema_lock(self) -> AbstractContextManager[None]:
        """Keep every other process from migrating at the same time."""
        raise NotImplementedError


def in_background(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread, which does not keep the process from stopping.

    The result is an OSError if the system has no thread left.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        future.set_exception(OSError(str(error)))
    return future


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the waits of this thread to `seconds` from now, or to an earlier outer deadline."""
    outer = getattr(this_thread, "deadline", math.inf)
    this_thread.deadline = min(outer, monotonic() + seconds)
    try:
        yield
    finally:
        this_thread.deadline = outer


def request_deadline() -> AbstractContextManager[None]:
    """Limit all statements of a request to REQUEST_TIMEOUT_S together."""
    return time_limit(REQUEST_TIMEOUT_S)


def time_left() -> float:
    """Seconds until the deadline of `time_limit`, at least 0."""
    return max(0.0, getattr(this_thread, "deadline", math.inf) - monotonic())


@contextmanager
def take_turn(turns: threading.Semaphore, reason: str) -> Iterator[None]:
    """Wait until one of the `turns` is free, at most until the deadline of `time_limit`.

    Raises ServiceUnavailable, and logs `reason`.
    """
    if not turns.acquire(timeout=time_left()):
        raise unavailable(reason)
    try:
        yield
    finally:
        turns.release()


def unavailable(
    reason: object, detail: str = NOTHING_CHANGED, retry_after: int = 1
) -> ServiceUnavailable:
    """Log `reason`, and make a 503. The client sees only `detail`, and `retry_after` in seconds."""
    log.warning("database unavailable: %s", one_line(reason))
    return ServiceUnavailable(detail, retry_after=retry_after)


def one_line(reason: object) -> str:
    """The first line of an error's message, also if the driver could not decode it.

    Further lines can contain values. But libpq has one for each further host that it tried, and one
    with advice about certificates.
    """
    if isinstance(reason, UnicodeDecodeError):
        reason = reason.object.decode(errors="replace")
    first, *others = str(reason).strip().split("\n")
    more = [line for line in others if line.startswith(FURTHER_LINES)]
    return "; ".join([first, *more]) if first else repr(reason)
