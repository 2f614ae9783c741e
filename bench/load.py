"""What `wrk` gets out of an instance, and what that costs: CPU time and memory."""

import os
import re
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import psutil

from bench.data import Database
from bench.services import ROOT, Instance

CONNECTIONS = 16


@dataclass
class Figures:
    """What one run of `wrk` gave: requests a second, CPU µs a request, and milliseconds."""

    per_second: float
    server: float
    postgres: float
    p50: float
    p99: float
    # The share of one core that `wrk` itself used: it has one thread.
    client: float

    @property
    def cpu(self) -> float:
        return self.server + self.postgres


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


def settled(instance: Instance, database: Database) -> tuple[float, float]:
    """The CPU of both, once their earlier work has ended."""
    deadline = time.monotonic() + 5
    after, quiet = (cpu(instance.process), cpu(database.postmaster)), 0
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        before, after = after, (cpu(instance.process), cpu(database.postmaster))
        quiet = quiet + 1 if sum(after) - sum(before) < 0.015 else 0
    return after


def memory(instance: Instance) -> float:
    """MB of the whole process tree, with what is shared counted once."""
    total = 0
    for process in instance.tree:
        with open(f"/proc/{process.pid}/smaps_rollup") as file:
            total += int(re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)[1])
    return total / 1024


def open_connections(instance: Instance, lines: list[str]) -> None:
    """Have every thread of every worker open its connection to the database."""
    wrk(instance, lines, 2, 48)


def warm_up(instance: Instance, lines: list[str]) -> None:
    """Open the connections again that were closed because they were idle.

    A service may fail with the first request on such a connection: that is not measured.
    """
    wrk(instance, lines, 1, CONNECTIONS, may_fail=True)


def measure(
    instance: Instance,
    database: Database,
    lines: list[str],
    seconds: int,
    connections: int = CONNECTIONS,
) -> Figures:
    """Send `lines` in turn for so many seconds. Raises RuntimeError if one is refused."""
    before = *settled(instance, database), own_children()
    result = wrk(instance, lines, seconds, connections)
    after = *settled(instance, database), own_children()
    count, took = re.search(r"(\d+) requests in ([\d.]+)s", result).groups()
    if count == "0":
        raise RuntimeError(f"{instance.name}: {lines[0]}: no answer in {seconds} s")
    # When wrk stops, each of its connections waits for one more answer.
    served = int(count) + connections
    server, postgres, client = (late - early for early, late in zip(before, after, strict=True))
    return Figures(
        per_second=float(re.search(r"Requests/sec:\s+([\d.]+)", result)[1]),
        server=server / served * 1e6,
        postgres=postgres / served * 1e6,
        p50=milliseconds(result, 50),
        p99=milliseconds(result, 99),
        client=client / float(took),
    )


def wrk(
    instance: Instance, lines: list[str], seconds: int, connections: int, *, may_fail: bool = False
) -> str:
    """What `wrk` prints. Raises RuntimeError if a request fails or is refused, unless it may."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        result = subprocess.run(
            [
                *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"),
                *("--timeout", "10s", "-s", str(ROOT / "bench" / "replay.lua"), instance.url),
            ],
            env=os.environ | {"REQUESTS": file.name},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    if not may_fail and ("Non-2xx" in result or "Socket errors" in result):
        raise RuntimeError(f"{instance.name}: {lines[0]}\n{result}")
    return result


def rotate(turns: list[Any], number: int) -> list[Any]:
    """The same turns, beginning with another one in each round: a drift affects all of them."""
    first = number % len(turns)
    return turns[first:] + turns[:first]


def own_children() -> float:
    """Seconds of CPU of the children of this process that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def milliseconds(result: str, percentile: int) -> float:
    number, unit = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", result).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
