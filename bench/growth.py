"""What this service's reads cost with more and more tasks: `make bench-growth` prints the tables.

A database for each size, from 10^3 to 10^7 tasks, 1,000 for each user; all in turn within each
round. Then users with 10^2 to 10^5 tasks, whose lists are filtered and sorted, in a table with the
tasks of others, and the pages of the largest one.
"""

import argparse
import random
from collections import defaultdict
from statistics import median

import requests

from bench.data import QUERIES, Database
from bench.load import Figures, measure, open_connections, rotate
from bench.run import cluster, print_machine, print_table, progress, save
from bench.services import OURS, Instance, serving
from testbed.cluster import Cluster

FILL = """
    SELECT 'u' || u AS owner, n
    FROM generate_series(1, {users}) AS u, generate_series(1, {tasks}) AS n
"""
FILL_OWN = "SELECT 'own{power}' AS owner, n FROM generate_series(1, {tasks}) AS n"
PAGES = (1, 10, 100, 1000)
# The powers of ten of the tasks of single users, and of the user whose whole lists are read.
OWN, WHOLE = (2, 3, 4, 5), 4
# The percentages of 1,000 tasks of a user that are in the trash.
TRASH = (0, 10, 50, 90)
# What a list with a filter or a sort key is compared with.
PLAIN = "plain list"
# How many different tasks and users are asked for at most.
SAMPLE = 10_000
# A list of 100,000 tasks takes long to sort: with more clients, some would wait for seconds.
CONNECTIONS = 4
# For each operation the requests of each column of its table, and the figures.
Work = dict[str, dict[str, list[str]]]
Results = dict[str, dict[str, list[Figures]]]


def filled(database: Database, users: int, tasks: int, own: tuple[int, ...] = ()) -> Database:
    """The database, with so many users with so many tasks each, and the users of OWN."""
    with serving(OURS, database.url):
        pass
    database.fill("task", FILL.format(users=users, tasks=tasks))
    for power in own:
        database.fill("task", FILL_OWN.format(power=power, tasks=10**power))
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


def pages(instance: Instance, user: str) -> dict[str, list[str]]:
    """The addresses of some pages of 20, found by walking from the first one on."""
    path, found = f"/api/{user}/tasks?limit=20", {}
    with requests.Session() as session:
        for number in range(1, PAGES[-1] + 1):
            if number in PAGES:
                found[f"page {number:,}"] = [f"GET {path} -"]
            answer = session.get(instance.url + path)
            answer.raise_for_status()
            assert len(answer.json()) == 20
            path = answer.links["next"]["url"]
    return found


def first_pages() -> Work:
    """The first 100 tasks of each list with each filter and sort key, and without."""
    queries = {PLAIN: ""} | {name: f"&{query}" for name, query in QUERIES.items()}
    return {
        name: {
            f"{10**power:,} tasks": [f"GET /api/own{power}/tasks?limit=100{query} -"]
            for power in OWN
        }
        for name, query in queries.items()
    }


def whole_lists(instance: Instance, user: str) -> Work:
    """The whole list with each filter and sort key, and a plain list of the same length."""
    found = {}
    for name, query in QUERIES.items():
        path = f"/api/{user}/tasks?{query}"
        answer = requests.get(instance.url + path, timeout=60)
        answer.raise_for_status()
        count = len(answer.json())
        found[f"{name}: {count:,} tasks"] = {
            PLAIN: [f"GET /api/{user}/tasks?limit={count} -"],
            "with it": [f"GET {path} -"],
        }
    return found


def fill_trash(database: Database) -> None:
    """Make the users of TRASH. What is in the trash lies between the other tasks."""
    for share in TRASH:
        database.fill(
            "task", f"SELECT 'trash{share}' AS owner, n FROM generate_series(1, 1000) AS n"
        )
        number = "split_part(title, ' ', -1)::int * 37 % 100"
        database.execute(
            f"UPDATE task SET deleted_at = now() WHERE user_id = 'trash{share}'"
            f" AND {number} < {share}"
        )


def beside_trash(database: Database) -> Work:
    """Single tasks and first pages of users with a part of their tasks in the trash."""
    work: Work = defaultdict(dict)
    for share in TRASH:
        user, column = f"trash{share}", f"{share} % in the trash"
        found = database.execute(
            f"SELECT id FROM task WHERE user_id = '{user}' AND deleted_at IS NULL"
        )
        work["get"][column] = [f"GET /api/{user}/tasks/{id} -" for (id,) in found]
        for limit in (10, 100):
            work[f"list {limit}"][column] = [f"GET /api/{user}/tasks?limit={limit} -"]
        work["flip"][column] = [f"PATCH /api/{user}/tasks/{id}/complete -" for (id,) in found]
    return work


def print_growth(title: str, results: Results) -> None:
    """A row for each operation and figure; in parentheses, the ratio to the first column."""
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


def grow_table(made: Cluster, sizes: list[int], options: argparse.Namespace) -> Results:
    """Single tasks and first pages, in tables of these sizes."""
    databases = {size: filled(Database(made), size // 1000, 1000) for size in sizes}
    print_machine(databases[sizes[0]])
    lines = {size: reads(database, size) for size, database in databases.items()}
    results: Results = defaultdict(lambda: defaultdict(list))
    for turn in range(options.rounds):
        for size in rotate(sizes, turn):
            database = databases[size]
            with serving(OURS, database.url) as instance:
                open_connections(instance, lines[size]["get"])
                for operation, each in lines[size].items():
                    figures = measure(instance, database, each, options.seconds)
                    results[operation][f"{size:,} tasks"].append(figures)
        progress(f"round {turn + 1}")
    return results


def grow_lists(made: Cluster, others: int, options: argparse.Namespace) -> dict[str, Results]:
    """The lists of users with more and more tasks, in a table with so many tasks of others."""
    database = filled(Database(made), others // 1000, 1000, OWN)
    fill_trash(database)
    database.execute("VACUUM ANALYZE")
    found: dict[str, Results] = {}
    with serving(OURS, database.url) as instance:
        work = {
            "100 tasks of a user with so many": first_pages(),
            f"All tasks of a user with {10**WHOLE:,}": whole_lists(instance, f"own{WHOLE}"),
            "Users with 1,000 tasks": beside_trash(database),
            "Pages of one user": {f"20 of {10 ** OWN[-1]:,}": pages(instance, f"own{OWN[-1]}")},
        }
        open_connections(instance, ["GET /api/own2/tasks -"])
        for title, operations in work.items():
            results = found[title] = defaultdict(lambda: defaultdict(list))
            for turn in range(options.rounds):
                for operation, columns in operations.items():
                    for column in rotate([*columns], turn):
                        lines = columns[column]
                        figures = measure(instance, database, lines, options.seconds, CONNECTIONS)
                        results[operation][column].append(figures)
            progress(title)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--largest", type=int, default=7, help="the power of ten of the last size")
    parser.add_argument("--save", help="a file for what plots.py draws")
    options = parser.parse_args()
    sizes = [10**power for power in range(3, options.largest + 1)]
    with cluster() as made:
        tables = {"Tables of so many tasks": grow_table(made, sizes, options)}
        tables |= grow_lists(made, min(10**6, sizes[-1]), options)
    for title, results in tables.items():
        print_growth(title, results)
    if options.save:
        save(tables, options.save)


if __name__ == "__main__":
    main()
