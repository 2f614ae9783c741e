"""Python programs in a process that is forked from one which has the packages imported already.

Importing them is most of the time that a start takes. The application, its settings and Gunicorn's
are imported by each process itself, in its own folder and environment.
"""

import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGES = [
    *("apispec.ext.marshmallow", "click", "dotenv", "flask", "flask_smorest", "flask_swagger_ui"),
    *("gunicorn.arbiter", "gunicorn.http.wsgi", "gunicorn.http2.stream", "jwt", "logging.config"),
    *("cryptography.hazmat.primitives.asymmetric.ec", "http.client", "marshmallow", "orjson"),
    *("peewee", "playhouse.migrations", "psycopg2", "webargs.flaskparser", "runpy"),
]
forkserver = get_context("forkserver")
forkserver.set_forkserver_preload(PACKAGES)


def run(
    command: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path
) -> None:
    """Become `python -m COMMAND` in this folder and environment, with its output in two files."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    ours = {str(folder.parent) for folder in Path(__file__).parents[:2]}
    paths = environment["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [str(folder), *paths, *(path for path in sys.path if path not in ours)]
    for standard, file in ((1, output), (2, errors)):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.argv[:] = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


class Forked:
    """What a test needs of subprocess.Popen."""

    def __init__(self, *arguments: object) -> None:
        self._process = forkserver.Process(target=run, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        # The kernel forgets a process a moment before its exit code arrives here.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_to_its_end(
    folder: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m COMMAND` in this folder, which leaves nothing else in it."""
    with TemporaryDirectory() as outside:
        output, errors = Path(outside, "output"), Path(outside, "errors")
        process = Forked([*command], folder, environment, output, errors)
        try:
            code = process.wait(20)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, code, output.read_text(), errors.read_text())
