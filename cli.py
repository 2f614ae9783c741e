"""The commands of `flask --app app`."""

import re

import click
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

import auth
from database import ForeignTable, TaskDatabase
from server import configure_logging
from settings import Settings

# A hundred years. Far more would be past the last date that a token can have.
MAX_DAYS = 36_500


def add_commands(app: Flask, settings: Settings, database: TaskDatabase) -> None:
    user_id_pattern = app.url_map.converters["user_id"].regex

    @app.cli.command("token")
    @click.argument("user")
    @click.option("--days", type=float, default=1.0, help="How long the token is valid.")
    def token(user: str, days: float) -> None:
        """Print a token for USER, signed with JWT_SECRET."""
        is_utf8 = user == user.encode(errors="ignore").decode()
        if not is_utf8 or not re.fullmatch(user_id_pattern, user):
            raise click.ClickException(
                "USER: expected 1 to 255 characters, without / and control characters"
            )
        if not 0 <= days <= MAX_DAYS:
            raise click.ClickException(f"--days: expected a number from 0 to {MAX_DAYS}")
        try:
            click.echo(auth.issue_token(settings, user, days))
        except ValueError as error:
            raise click.ClickException(str(error)) from error

    @app.cli.command("migrate")
    def migrate() -> None:
        """Bring the database's schema up to date, as the server does when it starts."""
        configure_logging("ERROR")  # The output below is enough.
        try:
            names = database.migrate()
        except ServiceUnavailable as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise click.ClickException(f"database unavailable: {reason}") from error
        except ForeignTable as error:
            raise click.ClickException(str(error)) from error
        click.echo("\n".join(f"applied {name}" for name in names) or "nothing to do")
