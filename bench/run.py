"""This service beside what people would use instead: `make bench` prints the tables.

Every service does the same work on the same PostgreSQL, in turn within each round, so that a ratio
means something on a machine whose speed drifts. An absolute figure does not.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import jwt
import psycopg2
import requests
from packaging.requirements import Requirement

from bench.conformance import check, check_floor
from bench.data import OPERATIONS, READS, TABLES, TASKS_PER_SECOND, Database
from bench.load import Figures, measure, memory, open_connections, rotate, warm_up
from bench.services import (
    ALL,
    BARE,
    FASTAPI,
    FASTIFY,
    ONE_STATEMENT,
    OURS,
    PEERS,
    PYTHON_PEERS,
    ROOT,
    WHOLE,
    Instance,
    Service,
    serving,
    start,
    stop,
)
from bench.wire import Wire, wire
from testbed.cluster import Cluster

OVERLOAD = 64
FAR = ("get", "list 10", "create", "flip")
SECRET = "a secret of more than 32 bytes, for measuring"
Results = dict[str, dict[str, list[Figures]]]


def compare_cpu(database: Database, options: argparse.Namespace) -> None:
    """Throughput, CPU and latency of every operation, and of the mix."""
    results = take_turns(ALL, (*OPERATIONS, "mix"), database, options)
    names = [service.name for service in ALL]
    for title, figure in {
        "CPU µs a request, server and PostgreSQL together": "cpu",
        "CPU µs a request, server": "server",
        "CPU µs a request, PostgreSQL": "postgres",
        "Requests a second": "per_second",
        "p50 in ms": "p50",
        "p99 in ms": "p99",
    }.items():
        print_figures(title, names, results, figure)
    print_targets(results)
    if options.save:
        save({"CPU": results}, options.save)
    busiest = max(
        each.client for found in results.values() for many in found.values() for each in many
    )
    print(f"\nwrk used at most {busiest:.0%} of one core.")


def take_turns(
    services: tuple[Service, ...],
    operations: tuple[str, ...],
    database: Database,
    options: argparse.Namespace,
    tokens: dict[str, str] | None = None,
) -> Results:
    """Measure each operation with one service right after the other; all of them keep running.

    The last service gets the tokens, if there are any.
    """

    def work(service: Service) -> dict[str, list[str]]:
        found = database.requests(service.table, options.seconds)
        return with_tokens(found, tokens) if tokens and service is services[-1] else found

    results: Results = defaultdict(lambda: defaultdict(list))
    doomed = TASKS_PER_SECOND * options.seconds
    with ExitStack() as stack:
        running = [(each, stack.enter_context(serving(each, database.url))) for each in services]
        for service, instance in running:
            open_connections(instance, work(service)["get"])
        for turn in range(options.rounds):
            order = rotate(running, turn)
            for table in TABLES:
                database.restore(table, doomed)
            for operation in operations:
                for service, instance in order:
                    if service.has(operation):
                        if operation not in READS:
                            deleted = operation == "restore"
                            database.restore(service.table, doomed, deleted=deleted)
                        lines = work(service)
                        warm_up(instance, lines["get"])
                        figures = measure(instance, database, lines[operation], options.seconds)
                        results[operation][service.name].append(figures)
            progress(f"round {turn + 1}")
    return results


def compare_wire(database: Database, options: argparse.Namespace) -> None:
    """Round trips to the database, counted on the wire: the median of a few requests."""
    rows: dict[str, list[str]] = defaultdict(list)
    with wire(database.cluster.port) as proxy:
        for service in WHOLE:
            database.restore(service.table, 100)
            work = database.requests(service.table, 1)
            with serving(service, database.url_through(proxy.port)) as instance:
                for operation in OPERATIONS:
                    if not service.has(operation):
                        rows[operation].append("")
                        continue
                    # The first ones open connections and prepare statements.
                    counted = turns(instance, proxy, (work[operation] * 4)[:40])[20:]
                    rows[operation].append(f"{median(counted):g}")
    print_table("Round trips to the database", [service.name for service in WHOLE], rows)


def turns(instance: Instance, proxy: Wire, lines: list[str]) -> list[int]:
    """How often each of these, sent one after the other, had to wait for the database."""
    counted = []
    with requests.Session() as session:
        for each in lines:
            method, path, _, *body = each.split(" ", 3)
            headers = {"Content-Type": "application/json"} if body else {}
            before = proxy.turns
            answer = session.request(
                method, instance.url + path, headers=headers, data="".join(body)
            )
            answer.raise_for_status()
            time.sleep(0.02)  # Some end their transaction after they have answered.
            counted.append(proxy.turns - before)
    return counted


def compare_delay(database: Database, options: argparse.Namespace) -> None:
    """p50 with more time put into each round trip to the database."""
    rows: dict[str, list[str]] = defaultdict(list)
    with ready(OURS, database, database.url, options.seconds) as (instance, work):
        near = measure(instance, database, work["get"], options.seconds, 4).p50
    with wire(database.cluster.port) as proxy:
        url = database.url_through(proxy.port)
        for delay in (0, 5, 20):
            proxy.delay(delay / 1000)
            rows[f"SELECT 1, {delay} ms"] = [f"{bare_round_trip(url):.2f}", *[""] * len(WHOLE)]
        for service in WHOLE:
            proxy.delay(0)
            with ready(service, database, url, options.seconds) as (instance, work):
                for delay in (0, 5, 20):
                    proxy.delay(delay / 1000)
                    for operation in FAR:
                        p50 = measure(instance, database, work[operation], options.seconds, 4).p50
                        cells = rows.setdefault(f"{operation}, {delay} ms", [""])
                        cells.append(f"{p50:.1f}")
            progress(f"delay: {service.name}")
    header = ["psycopg2", *(service.name for service in WHOLE)]
    print_table("p50 in ms with so much in each round trip, 4 connections", header, rows)
    print(f"\nWithout the wire between them, get takes this service {near:.1f} ms.")


def bare_round_trip(url: str) -> float:
    """The median of a statement that does nothing, in ms."""
    taken = []
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _ in range(50):
            begin = time.perf_counter()
            cursor.execute("SELECT 1")
            taken.append(time.perf_counter() - begin)
    return median(taken) * 1000


def compare_overload(database: Database, options: argparse.Namespace) -> None:
    """The mix from twice as many clients as this service has connections to the database."""
    results: Results = {"mix": defaultdict(list)}
    for _ in range(options.rounds):
        for service in WHOLE:
            with ready(service, database, database.url, options.seconds) as (instance, work):
                figures = measure(instance, database, work["mix"], options.seconds, OVERLOAD)
                results["mix"][service.name].append(figures)
    names = [service.name for service in WHOLE]
    titles = {"p99": "p99 in ms", "p50": "p50 in ms", "per_second": "Requests a second"}
    for figure, title in titles.items():
        print_figures(f"{title}, {OVERLOAD} clients", names, results, figure)


def compare_memory(database: Database, options: argparse.Namespace) -> None:
    """PSS of the whole process tree, before and after the mix."""
    rows: dict[str, list[str]] = {"idle": [], "after the mix": []}
    for service in WHOLE:
        with serving(service, database.url) as instance:
            rows["idle"].append(f"{memory(instance):.0f}")
        with ready(service, database, database.url, options.seconds) as (instance, work):
            measure(instance, database, work["mix"], options.seconds)
            rows["after the mix"].append(f"{memory(instance):.0f}")
    print_table("Memory in MB, two workers", [service.name for service in WHOLE], rows)


def compare_start(database: Database, options: argparse.Namespace) -> None:
    """Seconds from the start of the process to the first list of tasks."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(5):
        for service in WHOLE:
            taken[service.name].append(first_answer(service, database.url))
    rows = {"the first answer": [f"{median(each):.2f}" for each in taken.values()]}
    print_table("Seconds to the first list of tasks", list(taken), rows)


def first_answer(service: Service, url: str) -> float:
    begin = time.monotonic()
    instance = start(service, url)
    try:
        while time.monotonic() < begin + 20:
            try:
                answer = requests.get(f"{instance.url}/api/a1/tasks", timeout=20)
                answer.raise_for_status()
                taken = time.monotonic() - begin
                assert len(answer.json()) == 10
                return taken
            except requests.ConnectionError:
                time.sleep(0.005)
        raise RuntimeError(f"{service.name} does not answer")
    finally:
        stop(instance)


def compare_tokens(database: Database, options: argparse.Namespace) -> None:
    """This service against itself, with a token of its own for each user."""
    signed = replace(OURS, name="with tokens", environment={"JWT_SECRET": SECRET})
    expires = int(time.time()) + 3600
    users = [f"{kind}{n}" for kind in "abcden" for n in range(1, 1001)]
    tokens = {user: jwt.encode({"sub": user, "exp": expires}, SECRET) for user in users}
    results = take_turns((OURS, signed), ("get", "mix"), database, options, tokens)
    names = [OURS.name, signed.name]
    print_figures("Tokens: CPU µs a request", names, results, "cpu")
    print_figures("Tokens: requests a second", names, results, "per_second")
    print_figures("Tokens: p50 in ms", names, results, "p50")


@contextmanager
def ready(
    service: Service, database: Database, url: str, seconds: int
) -> Iterator[tuple[Instance, dict[str, list[str]]]]:
    """The service, running and warm, and the requests of each operation on a table as it was."""
    database.restore(service.table, TASKS_PER_SECOND * seconds)
    work = database.requests(service.table, seconds)
    with serving(service, url) as instance:
        open_connections(instance, work["get"])
        yield instance, work


def with_tokens(work: dict[str, list[str]], tokens: dict[str, str]) -> dict[str, list[str]]:
    """The same requests, each with the token of the user in its path."""

    def signed(line: str) -> str:
        method, path, _, *body = line.split(" ", 3)
        return " ".join((method, path, tokens[path.split("/")[2]], *body))

    return {operation: [signed(line) for line in lines] for operation, lines in work.items()}


def print_figures(title: str, names: list[str], results: Results, figure: str) -> None:
    """A row for each operation; in parentheses, the ratio to this service's figure."""
    rows = {}
    for operation, found in results.items():
        values = {
            name: median(getattr(each, figure) for each in many) for name, many in found.items()
        }
        cells = []
        for name in names:
            if name not in values:
                cells.append("")
                continue
            value = values[name]
            cells.append(f"{value:,.0f}" if value >= 100 else f"{value:.1f}")
            if name != OURS.name:
                cells[-1] += f" ({value / values[OURS.name]:.2f})"
        rows[operation] = cells
    print_table(title, names, rows)


def print_targets(results: Results) -> None:
    """The ratios of every operation to the peers and to the floor: medians over the rounds."""

    def ratio(operation: str, figure: str, above: Service, below: Service) -> str:
        found = results[operation]
        if above.name not in found or below.name not in found:
            return ""
        pairs = zip(found[above.name], found[below.name], strict=True)
        return f"{median(getattr(a, figure) / getattr(b, figure) for a, b in pairs):.2f}"

    def least(operation: str) -> str:
        found = [ratio(operation, "cpu", peer, OURS) for peer in PYTHON_PEERS]
        return min(filter(None, found), key=float, default="")

    header = [
        "CPU of the best Python peer / ours",
        "CPU of FastAPI / ours",
        "requests/s of ours / FastAPI",
        "CPU of Fastify / ours",
        "CPU of ours / one statement",
        "CPU of ours / bare route",
    ]
    rows = {
        operation: [
            least(operation),
            ratio(operation, "cpu", FASTAPI, OURS),
            ratio(operation, "per_second", OURS, FASTAPI),
            ratio(operation, "cpu", FASTIFY, OURS),
            ratio(operation, "cpu", OURS, ONE_STATEMENT),
            ratio(operation, "cpu", OURS, BARE),
        ]
        for operation in results
    }
    print_table("Ratios, CPU of server and PostgreSQL together", header, rows)


def print_table(title: str, header: Iterable[str], rows: dict[str, list[str]]) -> None:
    header = list(header)
    print(f"\n### {title}\n\n| | " + " | ".join(header) + " |")
    print("|---" * (len(header) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def print_machine(database: Database) -> None:
    """What the figures were taken on, and with which versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    packages = json.loads((PEERS / "package.json").read_text())["dependencies"]
    pinned = [
        line.partition(";")[0]
        for file in (ROOT / "requirements.txt", PEERS / "requirements.txt")
        for line in file.read_text().split("\n")
        if "==" in line and (not (marker := Requirement(line).marker) or marker.evaluate())
    ]
    print(
        f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}),"
        f" Python {platform.python_version()}, PostgreSQL {database.version().split()[0]},"
        f" Node.js {node.stdout.strip()}\n\n"
        + ", ".join([*pinned, *(f"{name}=={version}" for name, version in packages.items())])
    )


def save(tables: dict[str, Results], file: str) -> None:
    """Write the medians of CPU, in µs a request, as JSON: what plots.py draws."""
    medians = {
        title: {
            operation: {name: median(each.cpu for each in many) for name, many in found.items()}
            for operation, found in results.items()
        }
        for title, results in tables.items()
    }
    Path(file).write_text(json.dumps(medians, indent=1))


def progress(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL that is thrown away afterwards, also after a SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)
    # All services together can open more than the 300 of the tests.
    made = Cluster(folder, "max_connections=600")
    made.start()
    try:
        # Autovacuum would disturb whichever service is measured. The tables are vacuumed by hand.
        made.execute("ALTER SYSTEM SET autovacuum = off")
        made.execute("SELECT pg_reload_conf()")
        yield made
    finally:
        made.stop("immediate")
        shutil.rmtree(folder)


PARTS = {
    "cpu": compare_cpu,
    "wire": compare_wire,
    "delay": compare_delay,
    "overload": compare_overload,
    "memory": compare_memory,
    "start": compare_start,
    "tokens": compare_tokens,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--save", help="a file for what plots.py draws")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    with cluster() as made:
        database = Database(made)
        with serving(OURS, database.url):
            database.seed()
        print_machine(database)
        for service in WHOLE:
            database.restore(service.table, 10)
            with serving(service, database.url) as instance:
                check(service, instance, database)
        with serving(OURS, database.url) as ours, serving(ONE_STATEMENT, database.url) as floor:
            check_floor(floor, ours)
        for part in parts:
            PARTS[part](database, options)
            progress(f"{part} is done")


if __name__ == "__main__":
    main()
