"""100,000 requests leave a worker as large as it was."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from faults.network import Cluster
from server import Server

CLIENTS, REQUESTS, WARM = 8, 100_000, 20_000


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path, cluster: Cluster, database: str) -> None:
    options = {"DATABASE_URL": cluster.url(database), "WEB_CONCURRENCY": "1", "LOG_LEVEL": "ERROR"}
    with Server(tmp_path, PORT="8000", **options) as server:
        (worker,) = psutil.Process(server.process.pid).children()

        def work(client: int, turns: int) -> None:
            connection = http.client.HTTPConnection(*server.address)

            def ask(method: str, path: str, body: object = None) -> bytes:
                sent = None if body is None else json.dumps(body)
                headers = {"Content-Type": "application/json"}
                connection.request(method, f"/api/u{client}/tasks{path}", sent, headers)
                response = connection.getresponse()
                answer = response.read()
                assert response.status < 300, answer
                return answer

            for _ in range(turns // 5):
                task = json.loads(ask("POST", "", {"title": "x"}))
                ask("GET", "")
                ask("PATCH", f"/{task['id']}/complete")
                ask("PUT", f"/{task['id']}", {"description": "y"})
                ask("DELETE", f"/{task['id']}")
            connection.close()

        def run(requests: int) -> float:
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(lambda client: work(client, requests // CLIENTS), range(CLIENTS)))
            return worker.memory_info().rss / 2**20

        warm = run(WARM)
        sizes = [run((REQUESTS - WARM) // 4) for _ in range(4)]
    later = ", ".join(f"{size:.1f}" for size in sizes)
    print(f"\nmemory of a worker: {warm:.1f} MB after {WARM} requests, then {later}")
    assert max(sizes) < warm * 1.05
