"""A PostgreSQL whose certificate an authority of the system has signed, or has not."""

import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.mounts import mounting
from support.network import Load
from support.server import APPLIED, ROOT, Server, User

from testbed.cluster import Cluster
from testbed.issuer import Issuer, Key


@pytest.fixture
def trusting(tmp_path: Path, certificate: Path) -> list[str]:
    """What to put before a command for which `certificate` is the only authority of the system."""
    folder = tmp_path / "certs"
    folder.mkdir()
    hashed = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate)]
    name = subprocess.run(hashed, check=True, capture_output=True, text=True).stdout.strip()
    for file in (f"{name}.0", "ca-certificates.crt"):
        (folder / file).write_bytes(certificate.read_bytes())
    system = ssl.get_default_verify_paths().openssl_capath
    return mounting("--bind", str(folder), os.path.realpath(system))


def migrate(
    folder: Path, before: list[str], url: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What needs a connection to the database, and says why it has none."""
    environment |= {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "DATABASE_URL": url}
    return subprocess.run(
        [*before, sys.executable, "-m", "flask", "--app", "app", "migrate"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("mode", ["", "&sslmode=verify-full"])
def test_an_authority_of_the_system_is_believed(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, trusting: list[str], mode: str
) -> None:
    url = cluster.url(database, pgbouncer).replace("127.0.0.1", "localhost")
    url += f"?sslrootcert=system{mode}"
    done = migrate(tmp_path, trusting, url)
    assert (done.returncode, done.stdout, done.stderr) == (0, APPLIED, "")
    with Server(tmp_path, before=trusting, DATABASE_URL=url) as server:
        with Load(server, clients=2) as load:
            time.sleep(0.5)
        load.check(f"an authority of the system{mode}", allowed={200, 201})


def test_libpqs_own_variable_names_the_authorities_of_the_system(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, trusting: list[str]
) -> None:
    url = cluster.url(database, pgbouncer).replace("127.0.0.1", "localhost")
    done = migrate(tmp_path, trusting, url, PGSSLROOTCERT="system", PGSSLMODE="verify-full")
    assert (done.returncode, done.stdout, done.stderr) == (0, APPLIED, "")


def test_another_authority_is_not(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int
) -> None:
    url = cluster.url(database, pgbouncer).replace("127.0.0.1", "localhost")
    done = migrate(tmp_path, [], f"{url}?sslrootcert=system")
    assert done.returncode == 1
    assert "certificate verify failed" in done.stderr


def test_who_has_no_file_of_authorities_is_told_what_to_do(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int
) -> None:
    """CockroachDB's console and Neon's documentation show such a URL."""
    done = migrate(tmp_path, [], f"{cluster.url(database, pgbouncer)}?sslmode=verify-full")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "cannot connect to 127.0.0.1: root certificate file" in done.stderr
    assert "sslrootcert=system" in done.stderr


def test_the_name_of_the_server_counts(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, trusting: list[str]
) -> None:
    done = migrate(tmp_path, trusting, f"{cluster.url(database, pgbouncer)}?sslrootcert=system")
    assert done.returncode == 1
    assert "localhost" in done.stderr and "does not match" in done.stderr


@pytest.mark.parametrize("mode", ["require", "prefer"])
def test_a_home_that_may_not_be_searched_does_not_matter(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, mode: str
) -> None:
    # Such as root's for another user: libpq looks there for a certificate. Root may search all.
    home = tmp_path / "home"
    home.symlink_to(home)
    url = f"{cluster.url(database, pgbouncer)}?sslmode={mode}"
    with Server(tmp_path, DATABASE_URL=url, HOME=str(home)) as server, User(server, "ann") as ann:
        assert ann.create("x")["title"] == "x"


@pytest.mark.parametrize("place", ["URL", "variable"])
def test_a_certificate_that_is_named_is_used_whatever_the_home(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, place: str
) -> None:
    broken, home = tmp_path / "broken.crt", tmp_path / "home"
    broken.write_text("no certificate")
    home.symlink_to(home)
    url = f"{cluster.url(database, pgbouncer)}?sslmode=require"
    options = {"DATABASE_URL": url, "PGSSLCERT": str(broken), "HOME": str(home)}
    if place == "URL":
        options["DATABASE_URL"] += f"&sslcert={options.pop('PGSSLCERT')}"
    with Server(tmp_path, **options) as server, User(server, "ann") as ann:
        assert ann.get("/tasks").status_code == 503
    assert str(broken) in server.log_file.read_text()


@pytest.mark.parametrize("home", ["/no-such-folder", "/dev/null"])
def test_a_certificate_that_a_service_file_names_is_used(
    tmp_path: Path, cluster: Cluster, database: str, pgbouncer: int, home: str
) -> None:
    broken, services = tmp_path / "broken.crt", tmp_path / "services"
    broken.write_text("no certificate")
    services.write_text(f"[tasks]\nsslcert={broken}\n")
    names = {"PGSERVICEFILE": str(services), "PGSERVICE": "tasks", "HOME": home}
    url = f"{cluster.url(database, pgbouncer)}?sslmode=require"
    with Server(tmp_path, DATABASE_URL=url, **names) as server, User(server, "ann") as ann:
        assert ann.get("/tasks").status_code == 503
    assert str(broken) in server.log_file.read_text()


def test_the_keys_of_an_issuer_come_over_tls_from_who_it_says_it_is(
    tmp_path: Path, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.parent / "key")
    key = Key("EdDSA", "one")
    issuer = Issuer(key, tls=context)
    token = key.sign({"sub": "ann", "exp": int(time.time()) + 300})
    statuses = []
    for authorities in (certificate, tmp_path / "nowhere"):
        trusts = {"JWT_JWKS_URL": issuer.url, "SSL_CERT_FILE": str(authorities)}
        with Server(tmp_path, **trusts) as server, User(server, "ann", token) as ann:
            statuses.append(ann.get("/tasks").status_code)
    issuer.close()
    assert statuses == [200, 503]
    assert "CERTIFICATE_VERIFY_FAILED" in server.log_file.read_text()
