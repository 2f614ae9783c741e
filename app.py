"""The application factory: it assembles settings, log, API, database and commands."""

import logging
import threading
from contextlib import suppress
from time import sleep

import click
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

import auth
import cli
import models
import resources
from database import Postgres, Sqlite, TaskDatabase
from server import configure_logging, log_warnings
from settings import VERSION, Settings, process_settings
from web import Api, Application, allow_origins, create_docs

DESCRIPTION = """\
A multi-user to-do list API. The path names the user; each user sees only their own tasks.

With an `Idempotency-Key`, a create is idempotent: a retry creates nothing. With the task's `ETag`
as `If-Match`, an update uses optimistic locking: it is a 412 if the task has changed.

Errors are `application/problem+json` (RFC 9457); `detail` is text for people.

Every response has an `X-Request-ID`, which is also in the server's log. A request may send its
own: 1 to 128 letters, digits and `_.:/+=@~-`. The web server itself refuses requests that are not
valid HTTP, or whose line or headers are too long, with a short page, and those that arrive too
slowly, with an empty 408. These answers have no id.
"""

# The pause after a purge of the trash, and after one that failed: a day, and an hour.
PURGE_PAUSE_S, RETRY_PAUSE_S = 86_400.0, 3_600.0

log = logging.getLogger("tasks.app")


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application from `settings`, or from the environment.

    Connects to nothing: `start` or the first request does. Raises InvalidSetting.
    """
    settings = settings or process_settings()
    configure_logging(settings.log_level)
    app = Application()
    app.config.update(
        API_TITLE="Task API",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        API_SPEC_OPTIONS={
            "info": {
                "description": DESCRIPTION,
                "contact": {"name": "the maintainers"},
                "license": {"name": "MIT", "url": "https://spdx.org/licenses/MIT.html"},
            },
            "servers": [{"url": "/"}],
        },
        TRASH_DAYS=settings.trash_days,
    )
    app.extensions["auth"] = auth.create_verifier(settings)
    app.url_map.converters["user_id"] = resources.UserIdConverter
    app.url_map.converters["task_id"] = resources.TaskIdConverter
    smorest = Api(app)
    smorest.register_blueprint(resources.tasks, parameters=[resources.USER_ID])
    smorest.register_blueprint(resources.service)
    app.register_blueprint(create_docs(settings))
    allow_origins(app, settings.cors_origins)
    app.extensions["database"] = open_database(settings)
    cli.add_commands(app, settings)
    # A server logs the warnings, `flask run` too. A command such as `token` does not.
    command = click.get_current_context(silent=True)
    if not command or command.info_name == "run":
        log_warnings(settings)
    return app


def open_database(settings: Settings) -> TaskDatabase:
    if settings.sqlite_file:
        return Sqlite(settings.sqlite_file, settings.threads)
    return Postgres(settings.database_url, settings.database_schema, settings.threads)


def start(app: Flask) -> None:
    """Do what precedes the first request: fetch the keys, migrate, and begin to purge.

    Each process that serves calls it, never one that forks: SQLite's locks would not hold in both.
    Without this call, the first request fetches and migrates, and nothing purges the trash. Raises
    UnusableSchema: the server must not run.
    """
    auth.fetch_keys(app.extensions["auth"])
    try:
        app.extensions["database"].await_schema()
    except ServiceUnavailable:
        log.warning("started without the database; a later request brings its schema up to date")
    if trash_days := app.config["TRASH_DAYS"]:
        purging = threading.Thread(target=purge_daily, args=(app, trash_days), daemon=True)
        try:
            purging.start()
        except RuntimeError as error:
            log.warning("nothing will be purged from the trash until a restart: %s", error)


def purge_daily(app: Flask, days: int) -> None:
    """Remove what has been in the trash for `days`, now and every day."""
    while True:
        pause = RETRY_PAUSE_S
        try:
            with app.app_context(), suppress(ServiceUnavailable):  # The log has the reason.
                if number := models.purge(days):
                    log.info("purged %d tasks from the trash", number)
                pause = PURGE_PAUSE_S
        except Exception:  # Such as a foreign key of another program.
            log.exception("the trash could not be purged")
        sleep(pause)
