"""A mixed load, while what the service needs comes and goes: `make soak` for half an hour."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.network import KILL, Load, Network
from support.server import Server

from testbed.cluster import Cluster
from testbed.issuer import Issuer, Key

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.3"))
PHASE_S = 15.0 if MINUTES > 1 else 2.0
# Two processes with 16 slots each, and one connection each for the schema.
MOST_CONNECTIONS = 34


@pytest.mark.slow
@pytest.mark.stops_postgres
def test_a_soak(tmp_path: Path, cluster: Cluster, database: str) -> None:
    network, key = Network(cluster.port), Key("EdDSA", "k1")
    issuer = Issuer(key)
    options = {
        "DATABASE_URL": cluster.url(database, network.port),
        "JWT_JWKS_URL": issuer.url,
        "LOG_LEVEL": "ERROR",
    }
    end = time.monotonic() + 60 * MINUTES
    sizes, connections, requests = [], 0, 0

    def kill_backends(until: float) -> None:
        while time.monotonic() < until:
            cluster.execute(KILL)
            time.sleep(0.05)

    def restart_postgres(until: float) -> None:
        cluster.stop("fast")
        cluster.start()

    def silence(until: float) -> None:
        network.swallows = True
        time.sleep(min(3.0, PHASE_S / 2))
        network.swallows = False

    def cut(until: float) -> None:
        network.cut()

    def stop_issuer(until: float) -> None:
        issuer.hang()
        time.sleep(until - time.monotonic())
        issuer.publish(key)

    def kill_worker(until: float) -> None:
        os.kill(random.choice(server.workers).pid, signal.SIGKILL)

    def nothing(until: float) -> None:
        pass

    faults: list[Callable[[float], None]] = [
        *(nothing, kill_backends, restart_postgres, silence),
        *(cut, stop_issuer, kill_worker),
    ]
    with Server(tmp_path, **options) as server:
        turn = 0
        while time.monotonic() < end or turn < len(faults):
            fault = faults[turn % len(faults)]
            user = f"load-{turn}"
            token = key.sign({"sub": user, "exp": int(time.time()) + 3600})
            with Load(server, user=user, token=token) as load:
                until = time.monotonic() + PHASE_S
                time.sleep(PHASE_S / 4)
                fault(until)
                time.sleep(max(0.0, until - time.monotonic()))
                connections = max(connections, network.connections)
            # Only a killed process leaves requests without an answer, and only a database that is
            # out of reach for seconds fails requests.
            bad = {kill_worker: {0}, restart_postgres: {503}, silence: {503}}
            load.check(fault.__name__, {200, 201} | bad.get(fault, set()))
            requests += len(load.answers)
            sizes.append(server.memory_mb)
            turn += 1
        errors = [line for line in server.log() if line["level"] == "error"]
    issuer.close()
    network.close()
    cycle = len(faults)
    first, last = max(sizes[cycle : 2 * cycle] or sizes), max(sizes[-cycle:])
    print(f"\n{requests} requests in {turn} phases; at most {connections} connections;", end=" ")
    print(f"memory {first:.0f} MiB in the second cycle, {last:.0f} MiB in the last one")
    # Gunicorn itself logs that a worker was killed.
    assert [line for line in errors if "SIGKILL" not in line["message"]] == []
    assert connections <= MOST_CONNECTIONS
    assert last <= first * 1.1
