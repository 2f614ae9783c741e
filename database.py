"""What both databases share: bounds on waiting, and the schema before the first statement."""

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import peewee
from playhouse.migrations import Runner
from werkzeug.exceptions import ServiceUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
# Seconds: for all that a request does in the database, and for what the start does.
REQUEST, START = 8.0, 4.0
# Threads that stay out of the database, so that /health is answered while it hangs.
RESERVE = 4

log = logging.getLogger("tasks.database")
waiting = threading.local()


class Answer(NamedTuple):
    """The rows of a statement, and whether an earlier answer to it was lost on the way."""

    rows: list[tuple[Any, ...]]
    resent: bool = False


class TaskDatabase(peewee.Database):
    """A database that many threads send statements to."""

    # Seconds for a place among the threads that may use it, when none of them gets done.
    patience = 0.25

    def __init__(self, *arguments: Any, threads: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places = threading.BoundedSemaphore(max(1, threads - RESERVE))
        self._migrating = threading.Lock()
        self._migrated = False
        self._left_at = 0.0

    def send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        """Send one statement, in autocommit, with `values` for its named parameters.

        Raises ServiceUnavailable when the database cannot be reached in time. A statement that
        writes may be sent more than once: it has to be one that happens once all the same.
        """
        with within(REQUEST):
            self._enter()
            try:
                if not self._migrated:
                    self.migrate()
                return self._send(sql, values)
            finally:
                self._left_at = monotonic()
                self._places.release()

    def _enter(self) -> None:
        """Wait for a place, but only while others leave theirs: else all threads hang here."""
        while not self._places.acquire(timeout=self.patience):
            if monotonic() - self._left_at > self.patience or not time_left():
                raise unavailable("every connection is busy")

    def migrate(self) -> list[str]:
        """Apply the migrations that this database has not seen, and name them.

        Raises ServiceUnavailable.
        """
        if not self._migrating.acquire(timeout=START):
            raise unavailable("the schema is being made")
        try:
            if self._migrated:
                return []
            with self._schema_lock():
                runner = Runner(self, str(MIGRATIONS))
                # Not without need: it creates its own table, for which some users have no right.
                pending = any(not migration.applied for migration in runner.status())
                names: list[str] = runner.up() if pending else []
            self._migrated = True
            return names
        finally:
            self._migrating.release()

    def _send(self, sql: str, values: Mapping[str, Any]) -> Answer:
        raise NotImplementedError

    def _schema_lock(self) -> AbstractContextManager[None]:
        """Keep out every other process that starts at this moment."""
        raise NotImplementedError


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


def unavailable(reason: object) -> ServiceUnavailable:
    """The 503 for `reason`, which goes to the log and not to the client."""
    log.warning("database unavailable: %s", str(reason).strip().partition("\n")[0])
    return ServiceUnavailable(retry_after=1)
