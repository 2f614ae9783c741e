"""The commands of `flask --app app`."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg2
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

import auth
import models
from database import UnusableSchema, one_line
from server import configure_logging
from settings import Settings

# A hundred years. Far more would be past the last date that a token can have.
MAX_DAYS = 36_500


def add_commands(app: Flask, settings: Settings) -> None:
    user_id_pattern = app.url_map.converters["user_id"].regex

    def check_user(context: click.Context, parameter: click.Parameter, user: str) -> str:
        is_utf8 = user == user.encode(errors="ignore").decode()
        if not is_utf8 or not re.fullmatch(user_id_pattern, user):
            raise click.ClickException(
                "USER: expected 1 to 255 characters, without / or control characters"
            )
        return user

    def check_file() -> None:
        """Refuse a missing file: the command does not have the settings of the service."""
        file = settings.sqlite_file
        if file and not os.path.exists(file):
            raise click.ClickException(f"DATABASE_URL: the file {file} does not exist")

    @app.cli.command("token")
    @click.argument("user", callback=check_user)
    @click.option("--days", type=float, default=1.0, help="How long the token is valid.")
    def token(user: str, days: float) -> None:
        """Print a token for USER, signed with JWT_SECRET."""
        if not 0 <= days <= MAX_DAYS:
            raise click.ClickException(f"--days: expected a number from 0 to {MAX_DAYS}")
        if not settings.jwt_secret:
            raise click.ClickException("JWT_SECRET is missing or ignored: no token can be signed")
        click.echo(auth.issue_token(settings, user, days))

    @app.cli.command("migrate")
    def migrate() -> None:
        """Bring the database's schema up to date, as the server does when it starts."""
        with database_errors():
            names = app.extensions["database"].migrate()
        click.echo("\n".join(f"applied {name}" for name in names) or "nothing to do")

    @app.cli.command("purge")
    def purge() -> None:
        """Remove what has been in the trash for more than TRASH_DAYS."""
        if not settings.trash_days:
            raise click.ClickException("TRASH_DAYS is 0, which keeps deleted tasks forever")
        check_file()
        with database_errors():
            click.echo(f"tasks removed: {models.purge(settings.trash_days)}")

    @app.cli.command("forget")
    @click.argument("user", callback=check_user)
    @click.option("--yes", is_flag=True, help="Do not ask.")
    def forget(user: str, yes: bool) -> None:
        """Remove all tasks of USER for good, also those in the trash."""
        check_file()
        if not yes:
            click.confirm(f"Remove all tasks of {user!r} for good?", abort=True)
        with database_errors():
            click.echo(f"tasks removed: {models.forget(user)}")


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of the database into those of a command, whose output replaces the log."""
    configure_logging("ERROR")
    try:
        yield
    except ServiceUnavailable as error:
        reason = one_line(error.__cause__ or error)
        raise click.ClickException(f"database unavailable: {reason}") from error
    except (UnusableSchema, models.NotRemovable) as error:
        raise click.ClickException(str(error)) from error
    except (psycopg2.Error, sqlite3.Error) as error:  # Such as a foreign key of another program.
        raise click.ClickException(f"the database refused: {one_line(error)}") from error
