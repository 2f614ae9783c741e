"""The commands of `flask --app app`, in this process."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flask.cli import FlaskGroup

from app import create_app
from settings import read_settings

# Each command has an application of its own.
COMMANDS = FlaskGroup("flask", create_app=lambda: create_app(read_settings()), load_dotenv=False)


def run_command(
    folder: Path, *arguments: str, input: str | None = None, **environment: str
) -> Result:
    """Run a command in `folder` with this environment, in which `input` is typed.

    A `.env` is read by the application only.
    """
    cleared = dict.fromkeys([*os.environ, "FLASK_RUN_FROM_CLI"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(COMMANDS, arguments, input, env={**cleared, **environment})


def failure(folder: Path, *arguments: str, **environment: str) -> str:
    """Why a command fails, in the only line that it writes."""
    result = run_command(folder, *arguments, **environment)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")
