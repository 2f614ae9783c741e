"""The files that platforms read, and the service as they start it.

Everything here listens on 127.0.0.1, where a platform's own line listens on every address: that one
difference is asked of Gunicorn's resolved configuration instead.
"""

import base64
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import jwt
import psutil
import pytest
import requests
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import validate
from ruamel.yaml import YAML
from support.network import eventually
from support.server import ROOT, Server, new_database
from test_documents import SETTINGS, code

PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
APP_JSON = json.loads((ROOT / "app.json").read_text())
RENDER_YAML = YAML(typ="safe").load(ROOT / "render.yaml")
RAILWAY_JSON = json.loads((ROOT / "railway.json").read_text())
COMPOSE = YAML(typ="safe").load(ROOT / "compose.yaml")
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
DOCKERIGNORE = re.findall(r"^[^#\n].*", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
GUIDE = (ROOT / "docs/deploy.md").read_text()
WORKFLOW = YAML(typ="safe").load(ROOT / ".github/workflows/check.yml")
HEROKU_SCHEMA = (
    ROOT / "tests/clients/node_modules/@heroku/mcp-server/dist/utils/app-json.schema.json"
)

# What its parser knows; one key more and the button fails. `buildpacks` is not among them.
# https://github.com/GoogleCloudPlatform/cloud-run-button, cmd/cloudshell_open/appfile.go
CLOUD_RUN_KEYS = {"name", "env", "options", "build", "hooks", "description", "keywords", "logo"}
CLOUD_RUN_KEYS |= {"repository", "website", "stack", "formation"}
CLOUD_RUN_ENV_KEYS = {"description", "value", "required", "generator", "order"}

# The fields that we use, as https://render.com/docs/blueprint-spec has them.
RENDER_SCHEMA = {
    "required": ["services"],
    "additionalProperties": False,
    "properties": {
        "services": {
            "type": "array",
            "items": {
                "required": ["type", "name", "runtime"],
                "additionalProperties": False,
                "properties": {
                    "type": {"enum": ["web", "pserv", "worker", "cron", "keyvalue"]},
                    "name": {"type": "string"},
                    "runtime": {"enum": ["python", "node", "ruby", "go", "docker", "image"]},
                    "plan": {"enum": ["free", "starter", "standard", "pro", "pro plus"]},
                    "region": {"enum": ["oregon", "ohio", "virginia", "frankfurt", "singapore"]},
                    "buildCommand": {"type": "string"},
                    "startCommand": {"type": "string"},
                    "healthCheckPath": {"type": "string", "pattern": "^/"},
                    "envVars": {
                        "type": "array",
                        "items": {
                            "required": ["key"],
                            "additionalProperties": False,
                            "minProperties": 2,
                            "maxProperties": 2,
                            "properties": {
                                "key": {"type": "string"},
                                "value": {"type": ["string", "number"]},
                                "generateValue": {"type": "boolean"},
                                "sync": {"type": "boolean"},
                            },
                        },
                    },
                },
            },
        },
    },
}

# The fields that we use. Railway refuses a number in quotation marks.
# https://docs.railway.com/config-as-code/reference
RAILWAY_SCHEMA = {
    "required": ["$schema", "deploy"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://railway.com/railway.schema.json"},
        "deploy": {
            "additionalProperties": False,
            "properties": {
                "healthcheckPath": {"type": "string", "pattern": "^/"},
                "drainingSeconds": {"type": "number", "minimum": 0},
            },
        },
    },
}

# What the platforms set by themselves, and a secret of the kind that each generates.
PLATFORMS = {
    "heroku": {
        "DYNO": "web.1",
        "PORT": "54321",
        "WEB_CONCURRENCY": "2",
        "FORWARDED_ALLOW_IPS": "*",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
        "JWT_SECRET": secrets.token_hex(32),
    },
    # https://render.com/docs/environment-variables
    "render": {
        "RENDER": "true",
        "PORT": "10000",
        "WEB_CONCURRENCY": "1",
        "FORWARDED_ALLOW_IPS": "*",
        "GUNICORN_CMD_ARGS": "--preload --access-logfile - --bind=0.0.0.0:10000",
        "JWT_SECRET": base64.b64encode(secrets.token_bytes(32)).decode(),
    },
    "cloud run": {
        "K_SERVICE": "task-api",
        "PORT": "8080",
        "JWT_SECRET": base64.b64encode(secrets.token_bytes(64)).decode(),
    },
}


# How each runs the Procfile's line. bash replaces itself with a command that stands alone, so that
# Gunicorn gets the signals.
STARTS = {
    "heroku": ["bash", "-c", PROCFILE["web"]],
    "dokku": shlex.split(PROCFILE["web"]),
    "foreman export systemd": ["bash", "-lc", f'exec -a "task-api-web.1" {PROCFILE["web"]}'],
}


def link_repository(folder: Path) -> None:
    """Fill `folder` with what a platform checks out."""
    for entry in ROOT.iterdir():
        if not entry.match(".*") and not entry.match("*.db*") and entry.name != "tests":
            (folder / entry.name).symlink_to(entry)


def copy_image(folder: Path) -> None:
    """Fill `folder` as the Dockerfile's COPY does. Nobody may write into it."""
    assert instructions("COPY") == ["requirements.txt ./", ". ./"]
    for entry in ROOT.iterdir():
        if is_sent_to_docker(entry.name):
            copy: Callable[..., Any] = shutil.copytree if entry.is_dir() else shutil.copy
            copy(entry, folder / entry.name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def instructions(name: str) -> list[str]:
    """The arguments of every instruction `name` in the Dockerfile."""
    return re.findall(rf"^{name} (.+)", DOCKERFILE, re.MULTILINE)


def image_environment() -> dict[str, str]:
    return dict(pair.split("=") for line in instructions("ENV") for pair in line.split())


def is_sent_to_docker(name: str) -> bool:
    """Whether .dockerignore has no pattern for an entry, or an exception after its pattern."""
    patterns = [each for each in DOCKERIGNORE if fnmatch(name, each.strip("!/"))]
    return not patterns or patterns[-1].startswith("!")


class Deployed(Server):
    """The service as a platform starts it."""

    def __init__(
        self,
        folder: Path,
        programs: Path,
        environment: dict[str, str],
        command: Sequence[str] = STARTS["heroku"],
        fill: Callable[[Path], None] = link_repository,
    ) -> None:
        self.folder = folder / "app"
        self.folder.mkdir()
        fill(self.folder)
        self.log_file = folder / "log"
        self.environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": "/dev/null/home",
            "CORS_ORIGINS": "https://tasks.example.com",
            **environment,
        }
        arguments = re.sub(r"--bind=\S+", "", environment.get("GUNICORN_CMD_ARGS", ""))
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | {"GUNICORN_CMD_ARGS": f"{arguments} -b 127.0.0.1:0"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, command: str) -> str:
        """What a command prints, run as a platform runs it beside the service."""
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    @cached_property
    def configuration(self) -> dict[str, str]:
        """What Gunicorn makes of its file, the environment and the command, by the names."""
        lines = self.run(f"{PROCFILE['web']} --print-config").splitlines()
        return {name.strip(): value.strip() for name, _, value in (x.partition("=") for x in lines)}

    def token(self, user: str) -> dict[str, str]:
        """The header with a token that is made as the README says."""
        token = self.run(f"flask --app app token {user}").removesuffix("\n")
        return {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **options: Any) -> requests.Response:
        """The answer to a request that reached the platform's router by HTTPS."""
        headers = {"Host": "tasks.example.com", "X-Forwarded-Proto": "https"}
        headers |= options.pop("headers", {})
        method = options.pop("method", "GET")
        return requests.request(
            method,
            self.url + path,
            headers=headers,
            allow_redirects=False,
            timeout=10,
            **options,
        )


@pytest.fixture(scope="module")
def database_url(postgres: str) -> str:
    return new_database(postgres).replace("postgresql://", "postgres://")


@contextmanager
def on(
    platform: str, database_url: str, folder: Path, programs: Path, **options: Any
) -> Iterator[Deployed]:
    environment = PLATFORMS[platform] | {"DATABASE_URL": database_url}
    service = Deployed(folder, programs, environment | options.pop("environment", {}), **options)
    try:
        yield service.wait()
    finally:
        service.end()


@pytest.fixture(scope="module", params=PLATFORMS)
def deployed(
    request: pytest.FixtureRequest, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("platform")
    with on(request.param, database_url, folder, Path(sys.executable).parent) as service:
        yield service


def serves(service: Deployed) -> None:
    """Fails unless a stranger is refused, and whoever has a token has a list of tasks."""
    user = f"user-{uuid4()}"
    tasks = f"/api/{user}/tasks"
    assert service.get("/health").json() == {"status": "ok"}
    assert service.get(tasks).status_code == 401
    headers = service.token(user)
    made = service.get(tasks, method="POST", json={"title": "Buy milk"}, headers=headers)
    assert made.status_code == 201
    assert service.get(tasks, headers=headers).json() == [made.json()]
    assert service.get("/api/somebody/tasks", headers=headers).status_code == 403


def test_app_json_is_as_heroku_publishes_it() -> None:
    if not HEROKU_SCHEMA.exists():
        pytest.skip("the Node packages are not installed: .ci/install")
    validate(APP_JSON, json.loads(HEROKU_SCHEMA.read_text()))


def test_app_json_has_no_key_that_the_button_of_cloud_run_refuses() -> None:
    assert set(APP_JSON) <= CLOUD_RUN_KEYS
    for variable in APP_JSON["env"].values():
        assert set(variable) <= CLOUD_RUN_ENV_KEYS
        assert not {"value", "generator"} <= set(variable)


def test_render_yaml_is_as_render_documents_it() -> None:
    validate(RENDER_YAML, RENDER_SCHEMA)


def test_railway_json_is_as_railway_documents_it() -> None:
    validate(RAILWAY_JSON, RAILWAY_SCHEMA)


def test_the_workflow_is_as_github_publishes_it_and_bounded_in_time() -> None:
    validate(WORKFLOW, get_builtin_schema("vendor.github-workflows"))
    validate(WORKFLOW, get_builtin_schema("custom.github-workflows-require-timeout"))


def test_the_workflow_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOW["jobs"].values())


def test_the_buttons_ask_for_the_database_and_generate_the_secret() -> None:
    heroku, (render,) = APP_JSON["env"], RENDER_YAML["services"]
    assert {name for name in heroku if "value" not in heroku[name]} == {
        "DATABASE_URL",
        "JWT_SECRET",
    }
    assert heroku["JWT_SECRET"]["generator"] == "secret"
    variables = {variable.pop("key"): variable for variable in map(dict, render["envVars"])}
    assert set(variables) == set(heroku)
    assert variables["DATABASE_URL"] == {"sync": False}
    assert variables["JWT_SECRET"] == {"generateValue": True}
    heaps = variables["MALLOC_ARENA_MAX"]["value"], heroku["MALLOC_ARENA_MAX"]["value"]
    assert set(heaps) == {image_environment()["MALLOC_ARENA_MAX"]}


def test_the_buttons_name_only_settings_that_there_are() -> None:
    assert set(APP_JSON["env"]) - {"MALLOC_ARENA_MAX"} <= SETTINGS


def test_render_starts_what_the_procfile_starts() -> None:
    assert list(PROCFILE) == ["web"]
    assert RENDER_YAML["services"][0]["startCommand"] == PROCFILE["web"]


def test_railway_and_fly_wait_for_the_end_of_a_stop(deployed: Deployed) -> None:
    seconds = int(deployed.configuration["graceful_timeout"])
    assert RAILWAY_JSON["deploy"]["drainingSeconds"] > seconds
    assert tomllib.loads(code(GUIDE, "toml", "fly.toml"))["kill_timeout"] > seconds


def test_the_platforms_get_a_python_on_which_the_workflow_tests() -> None:
    job = WORKFLOW["jobs"]["check"]
    (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    tested = job["strategy"]["matrix"]["python"]
    assert setup["with"]["python-version"].split() == tested
    python = (ROOT / ".python-version").read_text().rstrip("\n")
    assert python in tested
    assert instructions("FROM") == [f"python:{python}-slim-trixie"]


def run_with_python(file: Path, change: str) -> list[str]:
    """Run `make run` with a Python that is another one by a `change`. Returns what make says."""
    file.write_text(f"""#!/bin/sh\nexec "{sys.executable}" -c "import sys\n{change}\n$2"\n""")
    file.chmod(0o755)
    return run_to_its_refusal(file)


def run_to_its_refusal(python: Path) -> list[str]:
    venv = python.with_name("venv")
    command = ["make", "run", f"PYTHON={python}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert not venv.exists()
    return done.stderr.splitlines()


def test_an_older_python_is_refused_in_one_line(tmp_path: Path) -> None:
    (line,) = run_with_python(tmp_path / "python3.10", "sys.version_info = (3, 10)")
    assert "Python 3.11 or newer is needed" in line


def test_a_missing_python_is_told_after_the_shell_has_told_it(tmp_path: Path) -> None:
    _, line = run_to_its_refusal(tmp_path / "missing")
    assert "Python 3.11 or newer is needed" in line


def test_a_python_without_ensurepip_is_refused_in_one_line(tmp_path: Path) -> None:
    """Debian's python3 is one, as long as its package python3-venv is not installed."""
    (line,) = run_with_python(tmp_path / "python3", "sys.modules['ensurepip'] = None")
    assert "sudo apt install python3-venv" in line


def test_it_answers_who_has_a_token(deployed: Deployed) -> None:
    serves(deployed)


def test_behind_https_nothing_leads_back_to_http(deployed: Deployed) -> None:
    claims = {"sub": "alice", "exp": time.time() + 3600}
    token = jwt.encode(claims, deployed.environment["JWT_SECRET"], "HS256")
    tasks, headers = "/api/alice/tasks", {"Authorization": f"Bearer {token}"}
    root = deployed.get("/")
    assert root.status_code == 302
    page = urljoin("https://tasks.example.com/", root.headers["Location"])
    assert page == "https://tasks.example.com/docs"
    for _ in range(2):
        made = deployed.get(tasks, method="POST", json={"title": "Buy milk"}, headers=headers)
    first_page = deployed.get(f"{tasks}?limit=1", headers=headers)
    assert {"Location", "Link"} <= set(made.headers) | set(first_page.headers)
    others = [deployed.get(path) for path in ("/docs", "/openapi.json", "/nowhere")]
    for answer in (root, made, first_page, *others):
        assert "http://tasks.example.com" not in f"{answer.headers}{answer.text}"


def test_each_request_is_one_line_in_the_log(deployed: Deployed) -> None:
    start = deployed.log_file.stat().st_size
    deployed.get("/docs")
    assert [line["path"] for line in deployed.log(start)] == ["/docs"]


# The next test tells the first process on Cloud Run.
@pytest.mark.parametrize(
    ("platform", "send"),
    [pair for pair in product(PLATFORMS, [os.kill, os.killpg]) if pair != ("cloud run", os.kill)],
)
def test_it_stops_with_0_when_the_platform_asks(
    platform: str, send: Any, database_url: str, tmp_path: Path
) -> None:
    """Some platforms tell the first process, others all of them."""
    with on(platform, database_url, tmp_path, Path(sys.executable).parent) as service:
        send(service.process.pid, signal.SIGTERM)
        assert service.process.wait(10) == 0


@pytest.mark.parametrize("start", STARTS)
def test_every_way_to_start_it_stops_with_0(start: str, database_url: str, tmp_path: Path) -> None:
    """A login shell, which foreman's unit of systemd starts, sets its own PATH."""
    programs = Path(sys.executable).parent
    (tmp_path / ".profile").write_text(f'PATH="{programs}:$PATH"\n')
    options = {"environment": {"HOME": str(tmp_path)}, "command": STARTS[start]}
    with on("cloud run", database_url, tmp_path, programs, **options) as service:
        serves(service)
        service.process.terminate()
        assert service.process.wait(10) == 0


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_only_what_serves() -> None:
    sent = {entry.name for entry in ROOT.iterdir() if is_sent_to_docker(entry.name)}
    files = {
        "app.py",
        "cli.py",
        "lists.py",
        "models.py",
        "resources.py",
        "schemas.py",
        "gunicorn.conf.py",
    }
    assert sent == {"auth", "database", "server", "settings", "web", "requirements.txt"} | files
    assert not any(map(is_sent_to_docker, (".env", "tasks.db", ".git", "__pycache__")))


def test_the_image_serves_without_rights_and_stops_with_0(
    database_url: str, tmp_path: Path
) -> None:
    """Root without capabilities has the rights of a user who owns nothing to write into."""
    (user,) = instructions("USER")
    assert "0" not in user.split(":")
    (command,) = instructions("CMD")
    (check,) = (each.partition(" CMD ")[2] for each in instructions("HEALTHCHECK"))
    options = {
        "command": ["setpriv", "--bounding-set=-all", *json.loads(command)],
        "environment": image_environment(),
        "fill": copy_image,
    }

    def health(service: Deployed) -> int:
        port = {"PORT": str(service.address[1])}
        done = subprocess.run(json.loads(check), env=service.environment | port, timeout=20)
        return done.returncode

    with on("cloud run", database_url, tmp_path, Path(sys.executable).parent, **options) as service:
        serves(service)
        assert health(service) == 0
        service.process.terminate()
        assert service.process.wait(10) == 0
        assert health(service) == 1
    for path in (service.folder, *service.folder.rglob("*")):
        path.chmod(0o755)


def test_compose_yaml_is_as_docker_publishes_it() -> None:
    validate(COMPOSE, get_builtin_schema("vendor.compose-spec"))


def test_compose_asks_for_every_secret_and_publishes_only_the_service() -> None:
    api, database = (COMPOSE["services"][name] for name in ("api", "database"))
    used = re.findall(r"\$\{(\w+)(:[?-])?", (ROOT / "compose.yaml").read_text())
    required = {("JWT_SECRET", ":?"), ("POSTGRES_PASSWORD", ":?")}
    assert set(used) == {*required, ("WEB_CONCURRENCY", ":-")}
    assert api["ports"] == ["127.0.0.1:8000:8000"]
    assert image_environment()["PORT"] == "8000"
    assert "ports" not in database
    assert set(api["environment"]) == SETTINGS - {"ALLOW_ANYONE", "PORT"}


def test_fly_leads_to_the_port_of_the_image() -> None:
    config = tomllib.loads(code(GUIDE, "toml", "fly.toml"))
    assert str(config["http_service"]["internal_port"]) == image_environment()["PORT"]


def test_the_entry_of_vercel_is_an_application(database_url: str, tmp_path: Path) -> None:
    link_repository(tmp_path)
    (tmp_path / "index.py").write_text(code(GUIDE, "python", "index.py"))
    secret = "s" * 32
    token = jwt.encode({"sub": "ann@用户", "exp": int(time.time()) + 60}, secret, "HS256")
    script = (
        "import index\n"
        "from werkzeug.test import create_environ\n"
        "def visit(path, **headers):\n"
        "    environ = create_environ() | headers | {'PATH_INFO': path}\n"
        "    return b''.join(index.app(environ, lambda status, *_: print(status)))\n"
        "visit('/health')\n"
        "visit('/api/alice/tasks')\n"
        "path = '/api/ann%40%E7%94%A8%E6%88%B7/tasks'  # As it was sent.\n"
        f"assert visit(path, HTTP_AUTHORIZATION='Bearer {token}') == b'[]\\n'\n"
    )
    environment = {"VERCEL": "1", "DATABASE_URL": database_url, "JWT_SECRET": secret}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert [line[:3] for line in done.stdout.splitlines()] == ["200", "401", "200"]


def test_it_serves_from_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a b [work]" / "100% it's" / "é用户"
    folder.mkdir(parents=True)
    link_repository(folder)
    config = folder / "gunicorn.conf.py"
    with Server(folder, config=config, PYTHONPATH=str(folder)) as server:
        assert requests.get(f"{server.url}/ready", timeout=5).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["killed", "reloaded"])
def test_a_new_worker_has_the_code_of_the_start(tmp_path: Path, number: int) -> None:
    """Or it could mix the files of two versions, while a new one is copied over the old one."""
    link_repository(tmp_path)
    config, path = tmp_path / "gunicorn.conf.py", str(tmp_path)
    with Server(tmp_path, config=config, PYTHONPATH=path, WEB_CONCURRENCY="1") as server:
        (tmp_path / "resources.py").unlink()
        (tmp_path / "resources.py").write_text("half a li")
        master = psutil.Process(server.process.pid)
        (before,) = master.children()
        (before if number == signal.SIGKILL else master).send_signal(number)
        eventually(lambda: len(master.children()) == 1 and before not in master.children(), 5)
        assert requests.get(f"{server.url}/ready", timeout=5).status_code == 200


def test_it_obeys_the_platform(deployed: Deployed) -> None:
    """Without our `-b`, it listens on every address; and it believes the platform's router."""
    resolved, asked = deployed.configuration, deployed.environment
    assert resolved["bind"] == f"['0.0.0.0:{asked['PORT']}']"
    assert resolved["workers"] == asked.get("WEB_CONCURRENCY", "2")
    trusted = asked.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1").split(",")
    assert resolved["forwarded_allow_ips"] == str(trusted)


@pytest.mark.slow
def test_a_fresh_installation_of_requirements_txt_serves(database_url: str, tmp_path: Path) -> None:
    programs = tmp_path / "fresh" / "bin"
    subprocess.run([sys.executable, "-m", "venv", programs.parent], check=True)
    install = [programs / "pip", "install", "--quiet", "--no-deps", "-r", ROOT / "requirements.txt"]
    subprocess.run(install, check=True, timeout=300)
    subprocess.run([programs / "pip", "check"], check=True, timeout=60)
    with on("heroku", database_url, tmp_path, programs) as service:
        serves(service)
