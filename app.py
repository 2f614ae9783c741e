"""The application: its parts, wired. Served by `gunicorn 'app:create_app()'`."""

import logging

import click
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

import auth
import cli
import resources
from database import ForeignTable, Postgres, Sqlite, TaskDatabase
from server import configure_logging
from settings import VERSION, Settings, read_settings
from web import Api, Application, allow_origins, docs

DESCRIPTION = """\
Every user has a list of tasks. The path names the user, who sees these tasks and no others.

Nothing is made twice and no change is lost: a create with an `Idempotency-Key` can be sent again,
and a write with the task's `ETag` as `If-Match` overwrites nobody else's.

A request that fails is answered with `application/problem+json` (RFC 9457), whose `detail` is for
people.
"""

log = logging.getLogger("tasks.app")


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application from `settings`, or from the environment.

    It starts without its database, too. Raises InvalidSetting.
    """
    settings = settings or read_settings()
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
    )
    app.extensions["auth"] = auth.verifier(settings)
    app.url_map.converters["user_id"] = resources.UserIdConverter
    app.url_map.converters["task_id"] = resources.TaskIdConverter
    register_api(app)
    app.register_blueprint(docs)
    allow_origins(app, settings.cors_origins)
    database = app.extensions["database"] = connect(settings)
    cli.add_commands(app, settings, database)
    return app


def register_api(app: Flask) -> None:
    """The operations and their OpenAPI document."""
    smorest = Api(app)
    for converter in (resources.UserIdConverter, resources.TaskIdConverter):
        smorest.register_converter(converter, lambda converter: converter.schema)
    smorest.register_blueprint(resources.tasks, parameters=resources.PATH_PARAMETERS)
    smorest.register_blueprint(resources.service)


def connect(settings: Settings) -> TaskDatabase:
    """The database, and its schema brought up to date if it is there.

    Not for a command: few need a database. `flask run` does it with the first request.
    """
    database: TaskDatabase
    if settings.database_url.startswith("sqlite:///"):
        database = Sqlite(settings.database_url.removeprefix("sqlite:///"), settings.threads)
    else:
        database = Postgres(settings.database_url, settings.database_schema, settings.threads)
    if not click.get_current_context(silent=True):
        try:
            database.await_schema()
        except ServiceUnavailable:
            log.warning("started without the database; its schema is made as soon as it is there")
        except ForeignTable as error:
            database.refusal = str(error)
    return database
