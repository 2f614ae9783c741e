"""What both databases share: bounds on waiting, and the schema before the first statement."""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import peewee
from playhouse.migrations import Runner
from werkzeug.exceptions import ServiceUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
# For all that a request does in the database, and for how long it waits for a schema change.
REQUEST_S, SCHEMA_WAIT_S = 8.0, 4.0
# Threads that stay out of the database, so that they can refuse what it has no slot for.
RESERVE = 4
NOTHING_CHANGED = "The database cannot be reached. Nothing has changed. Try again soon."
UPGRADING = "The database is being upgraded. Nothing has changed. Try again soon."
FOREIGN_TABLE = (
    "DATABASE_URL: the database has a table `task` that this service did not make: expected another"
    " database, in PostgreSQL perhaps another schema (?schema=NAME), or no such table"
)

log = logging.getLogger("tasks.database")
waiting = threading.local()
Result = TypeVar("Result")


# From the driver's cursor to what becomes of it.
Read = Callable[[Any], Any]


def fetch_all(cursor: Any) -> Any:
    return cursor.fetchall()


class ForeignTable(Exception):
    """The database has a table of our name that this service did not make."""


class Answer(NamedTuple):
    """What was read of a statement, and whether an earlier answer to it was lost on the way."""

    rows: Any
    resent: bool = False


class TaskDatabase(peewee.Database):
    """A database that many threads send statements to."""

    # How long to wait for a slot when none of those who have one gets done.
    slot_wait_s = 0.25
    # Where the tables are; None where a database has no schemas.
    schema: str | None = None
    # Why the start is to stop, if it is.
    refusal = ""

    def __init__(self, *arguments: Any, threads: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._number_of_slots = threads - RESERVE
        self._begin()
        # Gunicorn's --preload makes the application before it forks the workers.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Set up what no two processes can share."""
        self._slots = threading.BoundedSemaphore(self._number_of_slots)
        self._upgrade_lock = threading.Lock()
        self._upgrade: Future[list[str]] | None = None
        self._upgrade_started = 0.0
        self._schema_is_current = False
        self._left_at = 0.0

    def send(self, sql: str, values: Mapping[str, Any], read: Read = fetch_all) -> Answer:
        """Send one statement, in autocommit, with `values` for its named parameters.

        `read` makes what is wanted of the driver's cursor: all rows need not be there at once.
        Raises ServiceUnavailable when the database cannot be reached in time. A statement that
        writes may be sent more than once: it has to be one that happens once all the same.
        """
        with within(REQUEST_S):
            self._enter()
            try:
                if not self._schema_is_current:
                    self.await_schema()
                return self._send(sql, values, read)
            except ForeignTable as error:
                raise unavailable(error) from error
            finally:
                self._left_at = monotonic()
                self._slots.release()

    def _enter(self) -> None:
        """Wait for a slot, but only while others leave theirs: else all threads hang here."""
        while not self._slots.acquire(timeout=self.slot_wait_s):
            if monotonic() - self._left_at >= self.slot_wait_s or not time_left():
                raise unavailable("every connection is busy")

    def await_schema(self) -> None:
        """Wait for a schema that is up to date; a thread without a deadline brings it there.

        One thread at a time, SCHEMA_WAIT_S seconds at most. Raises ServiceUnavailable.
        """
        with self._upgrade_lock:
            if self._upgrade is None or self._upgrade.done():
                self._upgrade, self._upgrade_started = in_background(self.migrate), monotonic()
            upgrade = self._upgrade
        patience = self._upgrade_started + SCHEMA_WAIT_S - monotonic()
        try:
            upgrade.result(max(0.0, min(patience, time_left())))
        except TimeoutError as error:
            raise unavailable("the schema is being upgraded", UPGRADING) from error

    def qualify(self, sql: str) -> str:
        """`sql` with the schema of the table: a pooled connection has anybody's search_path."""
        return sql.replace('"task"', f'"{self.schema}"."task"') if self.schema else sql

    def migrate(self) -> list[str]:
        """Apply the migrations that this database has not seen, and name them.

        Raises ServiceUnavailable, or ForeignTable.
        """
        with self._schema_lock():
            runner = Runner(self, str(MIGRATIONS), schema=self.schema)
            status = runner.status()
            # Not without need: it creates its own table, for which some users have no right.
            if all(migration.applied for migration in status):
                names: list[str] = []
            else:
                if not any(migration.applied for migration in status) and self._has("task"):
                    raise ForeignTable(FOREIGN_TABLE)
                names = runner.up()
        for name in names:
            log.info("applied the migration %s", name)
        self._schema_is_current = True
        return names

    def _send(self, sql: str, values: Mapping[str, Any], read: Read) -> Answer:
        raise NotImplementedError

    def _has(self, table: str) -> bool:
        """Whether there is something of this name where the tables are."""
        raise NotImplementedError

    def _schema_lock(self) -> AbstractContextManager[None]:
        """Keep out every other process that starts at this moment."""
        raise NotImplementedError


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Run `work` in a thread that does not keep the process from stopping."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound how long this thread waits for a server inside; an outer bound stays in force."""
    outer = getattr(waiting, "until", math.inf)
    waiting.until = min(outer, monotonic() + seconds)
    try:
        yield
    finally:
        waiting.until = outer


def time_left() -> float:
    """Seconds until the bound of `within`; none are left if it has passed."""
    return max(0.0, getattr(waiting, "until", math.inf) - monotonic())


def unavailable(reason: object, detail: str = NOTHING_CHANGED) -> ServiceUnavailable:
    """The 503 that tells the client `detail`; `reason` goes to the log alone."""
    if isinstance(reason, UnicodeDecodeError):
        reason = reason.object.decode(errors="replace")  # A message of the server, as it came.
    log.warning("database unavailable: %s", str(reason).strip().partition("\n")[0])
    return ServiceUnavailable(detail, retry_after=1)
