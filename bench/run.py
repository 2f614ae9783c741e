"""This service beside what people would use instead: `make bench` prints the tables.

Every service does the same work on the same PostgreSQL, in turn within each round, so that a ratio
means something on a machine whose speed drifts. An absolute figure does not.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import psycopg2
import requests
from faults.network import Cluster, free_port

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "bench" / "peers"
PYTHON = ROOT / ".venv" / "bin" / "python"
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CONNECTIONS = 16
DELETED = 20_000
# 1,000 users with 10 tasks, 10 with 100 and 90 with 1,000: 1,100 users, 101,000 tasks.
SEED = """
    INSERT INTO {table} (id, user_id, title, description, completed, created_at, updated_at{more})
    SELECT gen_random_uuid(), prefix || u, 'Task ' || n, 'What is to be done, and why', n % 3 = 0,
        now() - n * interval '1 minute', now() - n * interval '1 minute'{values}
    FROM (VALUES ('a', 1000, 10), ('b', 10, 100), ('c', 90, 1000), ('d', 1, {deleted}))
            AS kinds (prefix, users, tasks),
        generate_series(1, users) AS u, generate_series(1, tasks) AS n
"""
PEER_TABLE = """
    CREATE TABLE peer_task (
        id uuid PRIMARY KEY, user_id varchar(255) NOT NULL, title varchar(500) NOT NULL,
        description text, completed boolean NOT NULL,
        created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL
    );
    CREATE INDEX ON peer_task (user_id);
"""


@dataclass
class Service:
    """One of those that are compared: how it is started, and the table that it uses."""

    name: str
    command: list[str]
    table: str
    operations: set[str]


@dataclass
class Figures:
    """What one run of `wrk` against one service gave."""

    per_second: float
    server: float
    postgres: float
    p50: float
    p99: float


ALL = {"get", "list 10", "list 100", "list 1000", "create", "update", "flip", "delete", "mix"}
GUNICORN = ["-m", "gunicorn", "-k", "gthread", "-w", "2", "--threads", "20", "-b"]


def services(port: int) -> list[Service]:
    here = f"127.0.0.1:{port}"
    peers = [str(PEER_PYTHON)]
    return [
        Service(
            "FastAPI + SQLModel",
            [
                *peers,
                "-m",
                "uvicorn",
                "fastapi_sqlmodel:app",
                "--workers",
                "2",
                "--port",
                str(port),
            ],
            "peer_task",
            ALL,
        ),
        Service(
            "this service",
            [str(PYTHON), "-m", "gunicorn", "app:create_app()", "-b", here],
            "task",
            ALL,
        ),
        Service(
            "Flask + SQLAlchemy",
            [*peers, *GUNICORN, here, "flask_sqlalchemy_smorest:create_app()"],
            "peer_task",
            ALL,
        ),
        Service("one statement", [str(PYTHON), *GUNICORN, here, "floor:app"], "task", {"get"}),
    ]


@contextmanager
def serving(service: Service, url: str, port: int) -> Iterator[psutil.Process]:
    """The running service. Raises RuntimeError if it does not come up."""
    environment = os.environ | {"DATABASE_URL": url, "PYTHONPATH": str(PEERS)}
    ours = service.name == "this service"
    process = subprocess.Popen(
        service.command,
        cwd=ROOT if ours else PEERS,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{service.name} does not answer")
        time.sleep(1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU of a process and all its descendants, the dead ones too."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def work(connection: psycopg2.extensions.connection, table: str) -> dict[str, list[str]]:
    """The requests of each operation, on the tasks that are in `table`."""
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT user_id, id FROM {table} WHERE user_id LIKE 'a%' LIMIT 2000")
        tasks = cursor.fetchall()
        cursor.execute(f"SELECT id FROM {table} WHERE user_id = 'd1'")
        doomed = [id for (id,) in cursor.fetchall()]
    body = '{"title": "Buy milk", "description": "Two bottles, and bread"}'
    operations = {
        "get": [f"GET /api/{user}/tasks/{id}" for user, id in tasks],
        "list 10": [f"GET /api/a{n}/tasks" for n in range(1, 1001)],
        "list 100": [f"GET /api/b{n}/tasks" for n in range(1, 11)],
        "list 1000": [f"GET /api/c{n}/tasks" for n in range(1, 91)],
        "create": [f"POST /api/n{n}/tasks {body}" for n in range(1, 1001)],
        "update": [f"PUT /api/{user}/tasks/{id} {body}" for user, id in tasks],
        "flip": [f"PATCH /api/{user}/tasks/{id}/complete" for user, id in tasks],
        "delete": [f"DELETE /api/d1/tasks/{id}" for id in doomed],
    }
    shares = {"list 10": 70, "create": 10, "flip": 10, "update": 5, "delete": 5}
    operations["mix"] = [
        operations[name][(turn * share + n) % len(operations[name])]
        for turn in range(100)
        for name, share in shares.items()
        for n in range(share)
    ]
    return operations


def measure(
    process: psutil.Process, postmaster: psutil.Process, port: int, lines: list[str], seconds: int
) -> Figures:
    """Send `lines` in turn for so many seconds. Raises RuntimeError if one is refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        before = cpu(process), cpu(postmaster)
        result = subprocess.run(
            [
                *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"),
                *("-s", str(ROOT / "bench" / "replay.lua"), f"http://127.0.0.1:{port}"),
            ],
            env=os.environ | {"REQUESTS": file.name},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        after = cpu(process), cpu(postmaster)
    if "Non-2xx" in result:
        raise RuntimeError(result)
    count = int(re.search(r"(\d+) requests in", result)[1])
    return Figures(
        per_second=float(re.search(r"Requests/sec:\s+([\d.]+)", result)[1]),
        server=(after[0] - before[0]) / count * 1e6,
        postgres=(after[1] - before[1]) / count * 1e6,
        p50=milliseconds(result, 50),
        p99=milliseconds(result, 99),
    )


def milliseconds(result: str, percentile: int) -> float:
    number, unit = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", result).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def seed(url: str) -> None:
    """Fill both tables alike. Ours is there: the service has made it."""
    more = ", revision, title_lower, title_folded, description_folded"
    folded = "lower('Task ' || n), lower('Task ' || n), 'what is to be done, and why'"
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(PEER_TABLE)
        values = f", gen_random_uuid(), {folded}"
        cursor.execute(SEED.format(table="task", more=more, values=values, deleted=DELETED))
        cursor.execute(SEED.format(table="peer_task", more="", values="", deleted=DELETED))
        cursor.execute("VACUUM ANALYZE")


def again(url: str, table: str) -> None:
    """Bring back what a round has deleted, and take away what it has created."""
    more, values = "", ""
    if table == "task":
        more = ", revision, title_lower, title_folded"
        values = ", gen_random_uuid(), 'x', 'x'"
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"DELETE FROM {table} WHERE user_id = 'd1' OR user_id LIKE 'n%'")
        cursor.execute(
            f"INSERT INTO {table} (id, user_id, title, completed, created_at, updated_at{more})"
            f" SELECT gen_random_uuid(), 'd1', 'x', false, now(), now(){values}"
            f" FROM generate_series(1, {DELETED})"
        )
        cursor.execute(f"VACUUM ANALYZE {table}")


def report(results: dict[str, dict[str, list[Figures]]]) -> None:
    """Print a table per figure; the ratios are to FastAPI + SQLModel."""
    base = "FastAPI + SQLModel"

    def value(operation: str, service: str, figure: str) -> float:
        found = results[operation][service]
        if figure == "cpu":
            return median(each.server + each.postgres for each in found)
        return median(getattr(each, figure) for each in found)

    for figure, title in {
        "cpu": "CPU µs a request, server and PostgreSQL together",
        "server": "CPU µs a request, server alone",
        "per_second": "requests a second",
        "p50": "p50 in ms",
        "p99": "p99 in ms",
    }.items():
        names = list(results["get"])
        print(f"\n{title}\n\n| | " + " | ".join(names) + " |")
        print("|---|" + "---|" * len(names))
        for operation, found in results.items():
            cells = []
            for name in names:
                if name not in found:
                    cells.append("")
                    continue
                ratio = value(operation, base, figure) / value(operation, name, figure)
                ratio = 1 / ratio if figure == "per_second" else ratio
                number = value(operation, name, figure)
                cells.append(f"{number:,.0f}" if number >= 100 else f"{number:.1f}")
                cells[-1] += "" if name == base else f" ({ratio:.1f}x)"
            print(f"| {operation} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    cluster.start()
    port = free_port()
    try:
        url = cluster.url(cluster.new_database())
        postmaster = psutil.Process(int((cluster.data / "postmaster.pid").read_text().split()[0]))
        ours = next(each for each in services(port) if each.name == "this service")
        with serving(ours, url, port):
            seed(url)
        results: dict[str, dict[str, list[Figures]]] = {}
        for turn in range(options.rounds):
            for service in services(port):
                again(url, service.table)
                with (
                    serving(service, url, port) as process,
                    closing(psycopg2.connect(url)) as connection,
                ):
                    for operation, lines in work(connection, service.table).items():
                        if operation in service.operations:
                            if operation == "mix":
                                again(url, service.table)
                                lines = work(connection, service.table)["mix"]
                            figures = measure(process, postmaster, port, lines, options.seconds)
                            results.setdefault(operation, {}).setdefault(service.name, [])
                            results[operation][service.name].append(figures)
                print(f"round {turn + 1}: {service.name}", file=sys.stderr)
        report(results)
    finally:
        cluster.stop("immediate")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
