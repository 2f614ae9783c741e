"""What this service's reads cost with more and more tasks: `make bench-growth` prints the tables.

A database for each size, from 10^3 to 10^7 tasks, 1,000 for each user; all in turn within each
round. Then the pages of one user with 100,000 tasks.
"""

import argparse
import random
from collections import defaultdict
from statistics import median

import requests

from bench.data import Database
from bench.load import Figures, measure, open_connections
from bench.run import cluster, print_machine, print_table, progress
from bench.services import OURS, Instance, serving

FILL = """
    SELECT 'u' || u AS owner, n
    FROM generate_series(1, {users}) AS u, generate_series(1, {tasks}) AS n
"""
PAGES = (1, 10, 100, 1000)
# How many different tasks and users are asked for at most.
SAMPLE = 10_000


def filled(database: Database, users: int, tasks: int) -> Database:
    """The database, with so many users with so many tasks each."""
    with serving(OURS, database.url):
        pass
    database.fill("task", FILL.format(users=users, tasks=tasks))
    database.execute("VACUUM ANALYZE")
    database.execute("CHECKPOINT")
    progress(f"{users * tasks:,} tasks")
    return database


def reads(database: Database, size: int) -> dict[str, list[str]]:
    """Tasks and users from all over the table."""
    share = min(100, 100 * SAMPLE / size)
    tasks = database.execute(f"SELECT user_id, id FROM task TABLESAMPLE BERNOULLI ({share})")
    users = [f"u{n}" for n in range(1, size // 1000 + 1)]
    lines = {
        "get": [f"GET /api/{user}/tasks/{id} -" for user, id in tasks],
        "first page": [f"GET /api/{user}/tasks?limit=20 -" for user in users],
    }
    for each in lines.values():
        random.Random(0).shuffle(each)
    return lines


def pages(instance: Instance) -> dict[str, list[str]]:
    """The addresses of some pages of 20, found by walking from the first one on."""
    path, found = "/api/u1/tasks?limit=20", {}
    with requests.Session() as session:
        for number in range(1, PAGES[-1] + 1):
            if number in PAGES:
                found[f"page {number:,}"] = [f"GET {path} -"]
            answer = session.get(instance.url + path)
            answer.raise_for_status()
            assert len(answer.json()) == 20
            path = answer.links["next"]["url"]
    return found


def print_growth(title: str, results: dict[str, dict[str, list[Figures]]]) -> None:
    """A row for each operation and figure; in brackets, how many times the first column it is."""
    rows = {}
    for operation, found in results.items():
        for name, figure in {
            "CPU µs": lambda each: each.cpu,
            "p50 ms": lambda each: each.p50,
        }.items():
            values = [median(map(figure, many)) for many in found.values()]
            rows[f"{operation}, {name}"] = [
                f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values
            ]
            for n, value in enumerate(values[1:], 1):
                rows[f"{operation}, {name}"][n] += f" ({value / values[0]:.2f})"
    columns = list(next(iter(results.values())))
    print_table(title, columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--largest", type=int, default=7, help="the power of ten of the last size")
    options = parser.parse_args()
    with cluster() as made:
        sizes = [10**power for power in range(3, options.largest + 1)]
        databases = {size: filled(Database(made), size // 1000, 1000) for size in sizes}
        print_machine(databases[sizes[0]])
        lines = {size: reads(database, size) for size, database in databases.items()}
        results: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
        for turn in range(options.rounds):
            for size, database in databases.items():
                with serving(OURS, database.url) as instance:
                    open_connections(instance, lines[size]["get"])
                    for operation, each in lines[size].items():
                        figures = measure(instance, database, each, options.seconds)
                        results[operation][f"{size:,} tasks"].append(figures)
            progress(f"round {turn + 1}")
        print_growth("Growth: CPU of server and PostgreSQL a request", results)

        database = filled(Database(made), 1, 100_000)
        deep: dict[str, dict[str, list[Figures]]] = defaultdict(lambda: defaultdict(list))
        with serving(OURS, database.url) as instance:
            lines_of_pages = pages(instance)
            open_connections(instance, lines_of_pages["page 1"])
            for _ in range(options.rounds):
                for name, each in lines_of_pages.items():
                    figures = measure(instance, database, each, options.seconds)
                    deep["20 of 100,000"][name].append(figures)
        print_growth("Pages of one user", deep)


if __name__ == "__main__":
    main()
