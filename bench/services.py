"""What is compared, and how each is started: two workers, as each one's documentation serves it."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from bench.data import OF_TRASH, OPERATIONS
from testbed.cluster import free_port

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "bench" / "peers"
PYTHON = str(ROOT / ".venv" / "bin" / "python")
PEER_PYTHON = str(ROOT / ".venv-peers" / "bin" / "python")
GUNICORN = ("-m", "gunicorn", "-k", "gthread", "-w", "2", "--threads", "20", "-b", "127.0.0.1:PORT")

UVICORN = ("-m", "uvicorn", "--workers", "2", "--port", "PORT")


@dataclass(frozen=True)
class Service:
    """How one is started (PORT stands for the port), and the table that it uses."""

    name: str
    command: tuple[str, ...]
    folder: Path = PEERS
    table: str = "peer_task"
    environment: dict[str, str] = field(default_factory=dict)
    # What it claims to do, which is checked and measured.
    operations: tuple[str, ...] = (*(name for name in OPERATIONS if name not in OF_TRASH), "mix")

    def has(self, operation: str) -> bool:
        return operation in self.operations


@dataclass(frozen=True)
class Instance:
    """A service that runs."""

    name: str
    process: psutil.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


OURS = Service(
    "this service",
    (PYTHON, "-m", "gunicorn", "app:create_app()", "-b", "127.0.0.1:PORT"),
    folder=ROOT,
    table="task",
    operations=(*OPERATIONS, "mix"),
)
FASTAPI = Service(
    "FastAPI + SQLModel",
    (PEER_PYTHON, *UVICORN, "fastapi_sqlmodel:app"),
)
LITESTAR = Service(
    "Litestar + Advanced Alchemy",
    (PEER_PYTHON, *UVICORN, "litestar_advanced_alchemy:app"),
)
DJANGO = Service(
    "Django REST",
    (PEER_PYTHON, *GUNICORN, "django.core.wsgi:get_wsgi_application()"),
    environment={"DJANGO_SETTINGS_MODULE": "django_settings", "PEER_URLS": "django_rest"},
)
NINJA = Service(
    "Django Ninja",
    DJANGO.command,
    environment={**DJANGO.environment, "PEER_URLS": "django_ninja"},
)
FLASK = Service(
    "Flask + SQLAlchemy",
    (PEER_PYTHON, *GUNICORN, "flask_sqlalchemy_smorest:create_app()"),
)
FASTIFY = Service(
    "Fastify + pg",
    ("node", "fastify_pg.js"),
    environment={"PEER_PORT": "PORT", "NODE_ENV": "production"},
)
FASTIFY_SILENT = Service(
    "Fastify, no log",
    FASTIFY.command,
    environment={**FASTIFY.environment, "LOG": "off"},
    operations=("get", "list 10", "create", "mix"),
)
ONE_STATEMENT = Service(
    "one statement",
    (PYTHON, *GUNICORN, "floor:one_statement"),
    table="task",
    operations=("get", "list 100", "create", "update", "flip", "delete"),
)
BARE = Service("bare route", (PYTHON, *GUNICORN, "floor:bare"), table="task", operations=("get",))
PYTHON_PEERS = (FASTAPI, LITESTAR, NINJA, DJANGO, FLASK)
WHOLE = (OURS, *PYTHON_PEERS, FASTIFY)
ALL = (*WHOLE, FASTIFY_SILENT, ONE_STATEMENT, BARE)


def start(service: Service, url: str) -> Instance:
    """Start it on the database at `url`, with its log thrown away, and do not wait for it."""
    port = free_port()
    own = {name: value.replace("PORT", str(port)) for name, value in service.environment.items()}
    search = os.pathsep.join([str(PEERS), str(ROOT)])
    process = subprocess.Popen(
        [part.replace("PORT", str(port)) for part in service.command],
        cwd=service.folder,
        env=os.environ | {"DATABASE_URL": url, "PYTHONPATH": search} | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return Instance(service.name, psutil.Process(process.pid), port)


def stop(instance: Instance) -> None:
    tree = instance.tree
    instance.process.terminate()
    _, alive = psutil.wait_procs(tree, 20)
    for process in alive:
        process.kill()


@contextmanager
def serving(service: Service, url: str) -> Iterator[Instance]:
    """The running service, all of its workers. Raises RuntimeError if it does not come up."""
    instance = start(service, url)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                requests.get(f"{instance.url}/health", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{service.name} does not answer")
        time.sleep(1)
        yield instance
    finally:
        stop(instance)
