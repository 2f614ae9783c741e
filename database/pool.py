"""The connections to PostgreSQL, and which of them are idle."""

import threading
from contextlib import suppress
from time import monotonic

from psycopg2 import extensions

# An idle connection is closed after one to two times this, except for the last one.
MAX_IDLE_S = 60.0
# PostgreSQL ends an idle connection to a vanished client within a minute; by default, Linux probes
# after two hours. PostgreSQL 14 or newer, some versions only on Linux, also ends a statement whose
# client has left: a pooler may have started it late.
PREAMBLE = (
    "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; "
    "SELECT CASE WHEN current_setting('server_version_num')::int >= 140000 AND version() ~ 'linux'"
    " THEN set_config('client_connection_check_interval', '500', false) END; "
)


class Connection(extensions.connection):
    """A connection, with the settings that its next statement must send first."""

    preamble = PREAMBLE


class Pool:
    """A stack of idle connections: the one that was used last is used first.

    Many threads use it without a lock, since each operation on a list is atomic.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[float, Connection]] = []
        self._timer: threading.Timer | None = None
        self._is_closed = False

    def pop(self) -> Connection | None:
        """Take the connection that was used last, if there is an idle one."""
        try:
            return self._idle.pop()[1]
        except IndexError:
            return None

    def push(self, connection: Connection) -> None:
        """Keep an idle connection, or close it if the pool is closed."""
        self._idle.append((monotonic(), connection))
        if self._is_closed:
            self.close()
        elif len(self._idle) > 1 and not self._timer:
            timer = threading.Timer(MAX_IDLE_S, self._close_idle)
            timer.daemon = True
            self._timer = timer  # Before its start, so that `close` can cancel it.
            try:
                timer.start()
            except RuntimeError:  # The system has no thread left: try again later.
                self._timer = None

    def close(self) -> None:
        """Close the idle connections now, and the others as soon as they are idle."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        while connection := self.pop():
            connection.close()

    def _close_idle(self) -> None:
        """Close what has been idle for MAX_IDLE_S. `push` starts this again if several are idle."""
        if self._timer is not threading.current_thread():
            return  # Two threads have started one at the same time; the other one does the work.
        self._timer, until = None, monotonic() - MAX_IDLE_S
        with suppress(IndexError):  # Other threads use the list at the same time.
            while len(self._idle) > 1 and self._idle[0][0] <= until:
                self._idle.pop(0)[1].close()
            self.push(self._idle.pop()[1])
