"""The variables of the environment and of `.env`."""

import io
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from itertools import takewhile
from pathlib import Path

import click
from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream

# One of these in the environment means a platform: listen on every IPv4 address, no database by
# default, and no open access. docs/deploy.md lists them, too.
PLATFORM_VARIABLES = {
    "PORT",
    "AWS_LAMBDA_FUNCTION_NAME",
    "DYNO",
    "FLY_APP_NAME",
    "GAE_ENV",
    "K_SERVICE",
    "RAILWAY_ENVIRONMENT_ID",
    "RENDER",
    "VERCEL",
    "WEBSITE_SITE_NAME",
}
VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
QUOTED = re.compile(r"""(["'])(.*)\1""", re.DOTALL)
QUOTES = tuple("\"'`\u2018\u2019\u201c\u201d")


class InvalidSetting(SystemExit):
    """A setting is missing or wrong. Stops the start with one line."""


def check(name: str, valid: object, expected: str) -> None:
    """Raise InvalidSetting for the variable `name` unless its value is `valid`."""
    if not valid:
        raise InvalidSetting(f"{name}: expected {expected}")


class Variables:
    """The environment and, for variables that it does not have, `./.env`. Raises InvalidSetting."""

    def __init__(self) -> None:
        environment = read_environment()
        self.on_platform = not PLATFORM_VARIABLES.isdisjoint(environment)
        self._values = read_env_file(Path(".env")) | environment

    def text(self, name: str, default: str = "") -> str:
        return strip(name, self._values.get(name, default))

    def texts(self, name: str, default: str = "") -> tuple[str, ...]:
        """A comma-separated list. Commas alone, such as "$A,$B" without values, are an error."""
        text = self.text(name, default)
        items = tuple(item.strip() for item in text.split(",") if item.strip())
        check(name, items or not text, "at least one value, not only commas")
        return items

    def export(self, prefix: str) -> None:
        """Copy what only the file has into the environment, from which libraries read it."""
        for name, value in self._values.items():
            if name.startswith(prefix):
                os.environ.setdefault(name, value)

    def number(self, name: str, default: int, least: int, most: int) -> int:
        digits = self.text(name, str(default))
        valid = re.fullmatch("[0-9]{1,9}", digits) and least <= int(digits) <= most
        check(name, valid, f"a whole number from {least} to {most}")
        return int(digits)


def read_environment() -> dict[str, str]:
    """The environment, without what Flask's command copied into it from files.

    The command also reads `.flaskenv` and the files of parent folders, and expands each $NAME.
    Before that, it sets FLASK_RUN_FROM_CLI: the variables that precede it were not copied.
    """
    copied: dict[str, str | None] = {}
    if click.get_current_context(silent=True):
        for file in (".flaskenv", ".env"):
            copied |= dotenv_values(find_dotenv(file, usecwd=True))
    given = {*takewhile(lambda name: name != "FLASK_RUN_FROM_CLI", os.environ)}
    return {
        name: text for name, text in os.environ.items() if name in given or copied.get(name) != text
    }


def read_env_file(file: Path) -> dict[str, str]:
    """The variables that `file` assigns, if it exists. A `$` in a value stays as it is.

    Raises InvalidSetting for a line that is neither empty, a comment nor an assignment. If a
    `JWT_SECRET` whose quote is not closed were skipped, the server would start without a secret.
    """
    try:
        content = file.read_bytes()
        # Windows PowerShell writes UTF-16.
        is_utf16 = content.startswith((BOM_UTF16_BE, BOM_UTF16_LE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except OSError as error:
        raise InvalidSetting(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(f"{file}, line {number}: expected text in UTF-8") from error
    variables = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, value, *_ = next(parse_stream(io.StringIO(line)))
            if name is None or value is None or not VARIABLE_NAME.fullmatch(name) or "\0" in value:
                expected = "NAME=VALUE without a NUL, with every quote closed on its line"
                raise InvalidSetting(f"{file}, line {number}: expected {expected}")
            variables[name] = value
    return variables


def strip(name: str, value: str) -> str:
    """`value` without the blanks, line breaks and quotes around it that were copied with it."""
    text = value.strip()
    if match := QUOTED.fullmatch(text):
        text = match[2].strip()
    check(name, text.isprintable(), "no line break and no invisible character in it")
    unquoted = name == "DATABASE_URL" or not (text.startswith(QUOTES) or text.endswith(QUOTES))
    check(name, unquoted, "no quote at its beginning or its end")
    check(name, not text.startswith("# "), "a value before the comment")
    return text
