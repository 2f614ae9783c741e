"""The fixtures of the fault tests."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from support.network import Network

from testbed.cluster import FAST, PASSWORD, Cluster, free_port


@pytest.fixture(scope="session")
def own_cluster(folder: Path) -> Iterator[Cluster]:
    (folder / "cluster").mkdir(mode=0o755)
    cluster = Cluster(folder / "cluster", *FAST)
    yield cluster
    if cluster.running:
        cluster.stop("immediate")


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The one that all tests use, unless this one stops it, or kills who is connected."""
    name = "own" if request.node.get_closest_marker("stops_postgres") else "running"
    cluster: Cluster = request.getfixturevalue(f"{name}_cluster")
    if not cluster.running:
        cluster.start()
    return cluster


@pytest.fixture
def database(cluster: Cluster) -> str:
    return cluster.new_database()


@pytest.fixture
def network(cluster: Cluster) -> Iterator[Network]:
    network = Network(cluster.port)
    yield network
    network.close()


@pytest.fixture
def certificate() -> Iterator[Path]:
    """A certificate for localhost that signs itself; its key is beside it."""
    folder = Path("/tmp") / f"pgbouncer-{uuid4().hex}"
    folder.mkdir(mode=0o755)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(command, check=True, capture_output=True)
    yield folder / "crt"
    shutil.rmtree(folder)


@pytest.fixture
def pgbouncer(cluster: Cluster, network: Network, certificate: Path) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode, with TLS and SCRAM, in front of the network."""
    if not shutil.which("pgbouncer"):
        pytest.skip("PgBouncer is not installed")
    folder = certificate.parent
    (folder / "users").write_text(f'"postgres" "{PASSWORD}"\n')
    for file in folder.iterdir():
        file.chmod(0o644)
    for _ in range(5):  # Another program may take the port.
        process = start_pgbouncer(folder, port := free_port(), network.port)
        if listens(process):
            break
    else:
        pytest.fail("PgBouncer does not start")
    yield port
    process.kill()
    process.wait()


def start_pgbouncer(folder: Path, port: int, upstream: int) -> subprocess.Popen[bytes]:
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={upstream}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"client_tls_sslmode = require\nclient_tls_key_file = {folder}/key\n"
        f"client_tls_cert_file = {folder}/crt\nmax_client_conn = 500\ndefault_pool_size = 20\n"
    )
    return subprocess.Popen(
        ["pgbouncer", str(folder / "ini")],
        user="nobody" if os.geteuid() == 0 else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether `process` listens, as soon as it does, or has ended instead."""
    end = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < end:
        with suppress(psutil.Error):
            if psutil.Process(process.pid).net_connections("tcp"):
                return True
        time.sleep(0.02)
    return False
